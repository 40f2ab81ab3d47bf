//! The device's promises, and that its program reads and rewrites packets as the daemon does, held against the loaded program itself
//! by the kernel's test runs. They need the privileges that the device needs.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rustix::net::xdp::{XdpUmemReg, XdpUmemRegFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with, sockopt};

use super::layout::QUEUES;
use super::*;
use crate::flow::action::{Assign, Header, Set};
use crate::flow::{Action, Field, Key, Mask, Match};
use crate::offload::backend::contract;
use crate::packet::compose::{compose, keys};
use crate::packet::edit::{self, EditError};
use crate::packet::extract::extract;
use crate::sys::bpf::{TestRun, test_run};

const DROP: u32 = 1;
const REDIRECT: u32 = 4;

/// A device whose port 1 receives what test runs let arrive, and whose port 2 is sent to.
struct Bench {
    device: XdpDevice,
    /// Where unmatched and marked frames go. It is not bound, so that it never receives one.
    _socket: OwnedFd,
}

impl Bench {
    /// `None`, with a word, where the privileges are missing.
    fn new(options: Options) -> Option<Bench> {
        let device = match XdpDevice::new(options, Instant::now()) {
            Err(error) if error.to_string().contains("CAP_BPF") => {
                eprintln!("skipped: {error}");
                return None;
            }
            device => device.unwrap(),
        };
        let socket = socket();
        let mut state = device.nic.state();
        let slot = state.ports.enter(PortNo(1), 1, None, |_| false).unwrap();
        let place = (slot * QUEUES) as u32;
        device.nic.shared.sockets.update(&place.to_ne_bytes(), &socket.as_raw_fd().to_ne_bytes()).unwrap();
        state.ports.enter(PortNo(2), u32::MAX, None, |_| false).unwrap();
        state.ports.pretend_to_take(PortNo(2)).unwrap();
        drop(state);
        Some(Bench { device, _socket: socket })
    }

    fn full() -> Option<Bench> {
        Bench::new(Options { rules: contract::CAPACITY, full: true })
    }

    fn run(&self, frame: &[u8]) -> TestRun {
        test_run(self.device.nic.shared.object.program().unwrap(), frame).unwrap()
    }

    /// The rule's mark on a frame, or what else became of it.
    fn mark(&self, frame: &[u8]) -> Result<Option<u32>, u32> {
        let run = self.run(frame);
        match (run.action, run.metadata.as_slice()) {
            (REDIRECT, &[0, 0, 0, 0, 0, 0, 0, 0]) => Ok(None),
            (REDIRECT, &[a, b, c, d, 1, 0, 0, 0]) => Ok(Some(u32::from_ne_bytes([a, b, c, d]))),
            (action, _) => Err(action),
        }
    }

    fn put(&self, matching: &Match, actions: &Actions, mark: u32) -> Result<(Handle, Done), PutError> {
        let install = Install {
            matching,
            actions,
            mark: Mark::new(mark).unwrap(),
            level: self.device.capabilities().level,
            in_port: None,
        };
        self.device.channel().put(install)
    }

    fn delete(&self, handle: Handle) -> FlowStats {
        self.device.channel().delete(handle).unwrap()
    }
}

/// An AF_XDP socket that a map takes.
fn socket() -> OwnedFd {
    let socket = socket_with(AddressFamily::XDP, SocketType::RAW, SocketFlags::CLOEXEC, None).unwrap();
    // For as long as the test lives; nothing is written there.
    let area = Box::leak(vec![0u8; 5 * 4096].into_boxed_slice()).as_ptr() as u64;
    let register = XdpUmemReg {
        addr: area.next_multiple_of(4096),
        len: 4 * 4096,
        chunk_size: 4096,
        headroom: 0,
        flags: XdpUmemRegFlags::empty(),
        tx_metadata_len: 0,
    };
    sockopt::set_xdp_umem_reg(&socket, register).unwrap();
    sockopt::set_xdp_umem_fill_ring_size(&socket, 4).unwrap();
    sockopt::set_xdp_umem_completion_ring_size(&socket, 4).unwrap();
    sockopt::set_xdp_rx_ring_size(&socket, 4).unwrap();
    socket
}

/// Lets frames of receive queues take the way through the program.
struct Through(Bench);

impl Device for Arc<Through> {
    fn capabilities(&self) -> BackendCaps {
        self.0.device.capabilities()
    }

    fn channel(&self) -> Box<dyn Backend> {
        self.0.device.channel()
    }

    fn fence(&self) -> Fence {
        self.0.device.fence()
    }

    fn restart(&self) -> Result<(), FlushError> {
        self.0.device.restart()
    }

    fn wrap_rx(&self, _: &PortInfo, queue: Box<dyn RxQueue>) -> Box<dyn RxQueue> {
        Box::new(Run(Arc::clone(self), queue))
    }
}

struct Run(Arc<Through>, Box<dyn RxQueue>);

impl RxQueue for Run {
    fn receive(&mut self, now: Instant, pool: &mut Pool, into: &mut Vec<Packet>) -> io::Result<usize> {
        let taken = self.1.receive(now, pool, into)?;
        into.retain_mut(|packet| {
            let mark = self.0.0.mark(packet.bytes());
            packet.meta.mark = mark.ok().flatten().and_then(Mark::new);
            mark.is_ok()
        });
        Ok(taken)
    }

    fn readable(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

#[test]
fn the_device_keeps_the_contract() {
    if Bench::full().is_none() {
        return;
    }
    contract::check(|| Arc::new(Arc::new(Through(Bench::full().unwrap()))));
}

#[test]
fn a_device_that_only_marks_keeps_the_contract() {
    let bench = || Bench::new(Options { rules: contract::CAPACITY, full: false });
    if bench().is_none() {
        return;
    }
    contract::check(|| Arc::new(Arc::new(Through(bench().unwrap()))));
}

/// The key of a frame from port 1.
fn key_of(frame: &[u8]) -> Key {
    let mut packet = Packet::from_bytes(frame);
    packet.meta.in_port = PortNo(1);
    extract(&packet)
}

/// All that the program can match of packets with this key.
fn widest(key: &Key) -> Match {
    let mut mask = layout::fields();
    let beside: &[Field] = match key.eth_type() {
        0x86dd => &[Field::Ipv4Src, Field::Ipv4Dst],
        _ => &[Field::Ipv6Src, Field::Ipv6Dst],
    };
    for field in beside {
        field.set(mask.words_mut(), 0u128);
    }
    Match::new(key, &mask)
}

/// The frames that the program leaves to the daemon: see `parse.h`.
fn may_decline(frame: &[u8]) -> bool {
    let be16 = |at: usize| frame.get(at..at + 2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
    let mut at = 12;
    for _ in 0..2 {
        if let Some(0x8100 | 0x88a8) = be16(at) {
            if frame.len() < at + 6 {
                return true;
            }
            at += 4;
        }
    }
    let network = frame.get(at + 2..).unwrap_or_default();
    match be16(at) {
        None | Some(..0x600) => true,
        Some(0x0800) => network.first().is_some_and(|first| first & 15 > 5) || network.get(2..4) == Some(&[0, 0]),
        Some(0x86dd) => {
            network.get(6).is_some_and(|next| matches!(next, 0 | 43 | 44 | 51 | 60))
                || network.get(4..6) == Some(&[0, 0])
        }
        _ => false,
    }
}

/// Frames of known kinds, cut and damaged in places, and others.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    let composed = (keys::key(), 0usize..100).prop_map(|(key, len)| compose(&key, len));
    let damage = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    let damaged = (composed, damage, any::<prop::sample::Index>(), 0..4).prop_map(|(mut frame, damage, cut, often)| {
        for (at, byte) in damage {
            let at = at.index(frame.len());
            frame[at] = byte;
        }
        if often == 0 {
            frame.truncate(14 + cut.index(frame.len().max(15) - 14));
        }
        frame.resize(frame.len().max(14), 0);
        frame
    });
    let random = proptest::collection::vec(any::<u8>(), 14..120);
    prop_oneof![8 => damaged, 1 => random]
}

fn cases(cases: u32) -> TestRunner {
    TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() })
}

#[test]
fn the_program_sees_the_key_that_the_daemon_sees_or_leaves_the_packet_to_it() {
    let Some(bench) = Bench::new(Options { rules: 4, full: false }) else { return };
    let declined = std::cell::Cell::new(0);
    let tried = std::cell::Cell::new(0);
    cases(20_000)
        .run(&frame(), |frame| {
            let (handle, _) = bench.put(&widest(&key_of(&frame)), &Actions::drop(), 7).unwrap();
            let mark = bench.mark(&frame);
            bench.delete(handle);
            tried.set(tried.get() + 1);
            match mark {
                Ok(Some(7)) => Ok(()),
                Ok(None) if may_decline(&frame) => {
                    declined.set(declined.get() + 1);
                    Ok(())
                }
                other => Err(TestCaseError::fail(format!("{other:?} for {:?}", key_of(&frame)))),
            }
        })
        .unwrap();
    let (declined, tried): (u32, u32) = (declined.get(), tried.get());
    assert!(declined < tried / 2, "{declined} of {tried} frames were left to the daemon");
}

#[test]
fn a_rule_matches_no_packet_with_another_key() {
    let Some(bench) = Bench::new(Options { rules: 4, full: false }) else { return };
    cases(5_000)
        .run(&(frame(), frame()), |(one, other)| {
            let matching = widest(&key_of(&one));
            let (handle, _) = bench.put(&matching, &Actions::drop(), 7).unwrap();
            let mark = bench.mark(&other);
            bench.delete(handle);
            prop_assert!(mark == Ok(None) || matching.matches(&key_of(&other)));
            Ok(())
        })
        .unwrap();
}

fn set() -> impl Strategy<Value = Action> {
    use Header::*;
    let header = prop_oneof![Just(Eth), Just(Vlan), Just(Ipv4), Just(Ipv6), Just(Tcp), Just(Udp)];
    let assign = (any::<prop::sample::Index>(), any::<u128>(), any::<u128>(), any::<bool>());
    (header, proptest::collection::vec(assign, 1..4)).prop_map(|(header, list)| {
        let assigns: Vec<_> = list
            .into_iter()
            .map(|(field, value, mask, whole)| {
                let full = Assign::full(header.fields()[field.index(header.fields().len())], value);
                if whole { full } else { Assign { mask: mask & full.mask, ..full } }
            })
            .collect();
        Action::Set(Set::new(header, &assigns).unwrap())
    })
}

/// Lists that end with the only output.
fn actions() -> impl Strategy<Value = Actions> {
    let tag = (prop_oneof![Just(0x8100u16), Just(0x88a8)], any::<u16>());
    let tag = tag.prop_map(|(tpid, tci)| Action::PushVlan { tpid, tci: tci | 0x1000 });
    let action = prop_oneof![4 => set(), 1 => tag, 1 => Just(Action::PopVlan)];
    proptest::collection::vec(action, 0..4).prop_map(|mut list| {
        list.push(Action::Output(PortNo(2)));
        Actions::new(list)
    })
}

/// What the daemon makes of a frame.
fn edited(frame: &[u8], actions: &Actions) -> Vec<u8> {
    let mut packet = Packet::from_bytes(frame);
    for action in actions.iter() {
        let done = match action {
            Action::Output(_) => break,
            Action::PushVlan { tpid, tci } => edit::push_vlan(&mut packet, *tpid, *tci),
            Action::PopVlan => edit::pop_vlan(&mut packet),
            Action::Set(set) => edit::set(&mut packet, set),
        };
        assert_ne!(done, Err(EditError::NoHeadroom));
    }
    packet.bytes().to_vec()
}

#[test]
fn the_program_rewrites_packets_as_the_daemon_does_or_leaves_them_to_it_as_they_were() {
    let Some(bench) = Bench::full() else { return };
    let full = std::cell::Cell::new(0);
    cases(20_000)
        .run(&(frame(), actions()), |(frame, actions)| {
            let (handle, done) = bench.put(&widest(&key_of(&frame)), &actions, 7).unwrap();
            let before = bench.device.port_counts(PortNo(1)).unwrap();
            let run = bench.run(&frame);
            let counts = bench.device.port_counts(PortNo(1)).unwrap();
            bench.delete(handle);
            prop_assert_eq!(run.action, REDIRECT);
            prop_assert!(counts.misses == before.misses || may_decline(&frame));
            if counts.full == before.full {
                prop_assert_eq!(run.frame, frame);
            } else {
                prop_assert_eq!(done.level, Level::Full);
                full.set(full.get() + 1);
                prop_assert_eq!(run.frame, edited(&frame, &actions));
            }
            Ok(())
        })
        .unwrap();
    let full: u32 = full.get();
    assert!(full > 3_000, "only {full} packets were handled wholly");
}

fn ipv4_dst(prefix: u32, value: Ipv4Addr) -> Match {
    let (mut key, mut mask) = (Key::ZERO, Mask::EMPTY);
    for (field, value) in [(Field::InPort, 1u32), (Field::EthType, 0x0800), (Field::Ipv4Dst, value.into())] {
        key.set(field, value);
        mask.add_field(field);
    }
    Field::Ipv4Dst.set(mask.words_mut(), (u32::MAX << (32 - prefix)) as u128);
    Match::new(&key, &mask)
}

#[test]
fn each_of_many_masks_is_found_and_one_more_has_no_room() {
    let Some(bench) = Bench::new(Options { rules: 100, full: false }) else { return };
    // 31 masks of an address, twice: with and without the protocol.
    let mut handles = Vec::new();
    let mut put = |matching: &Match, mark| handles.push(bench.put(matching, &Actions::drop(), mark).unwrap().0);
    let addresses: Vec<_> = (1..=32u32).map(|prefix| (prefix, Ipv4Addr::from(1u32 << (32 - prefix)))).collect();
    for (prefix, address) in &addresses {
        put(&ipv4_dst(*prefix, *address), *prefix);
    }
    let frame = |address: Ipv4Addr| {
        let mut key = *ipv4_dst(32, address).key();
        key.set(Field::IpProto, 17u8);
        compose(&key, 0)
    };
    for _ in 0..2 {
        for (prefix, address) in &addresses {
            assert_eq!(bench.mark(&frame(*address)), Ok(Some(*prefix)), "{address}");
        }
    }
    assert_eq!(bench.mark(&frame(Ipv4Addr::UNSPECIFIED)), Ok(None));
    // Another 32 masks, of which none matches.
    for bit in 0..32u32 {
        let (mut key, mut mask) = (Key::ZERO, Mask::EMPTY);
        key.set(Field::EthSrc, 1u64 << bit);
        mask.add(Field::EthSrc, 1 << bit);
        put(&Match::new(&key, &mask), 100 + bit);
    }
    let mut mask = Mask::EMPTY;
    mask.add_field(Field::EthDst);
    assert_eq!(bench.put(&Match::new(&Key::ZERO, &mask), &Actions::drop(), 200).map(drop), Err(PutError::NoRoom));
    let handle = handles.pop().unwrap();
    bench.delete(handle);
    bench.put(&Match::new(&Key::ZERO, &mask), &Actions::drop(), 200).expect("a mask whose rules are gone makes room");
}

#[test]
fn what_cannot_be_told_apart_or_done_is_refused_with_its_name() {
    let Some(bench) = Bench::full() else { return };
    let refused = |text: &str| {
        let flow = crate::flow::text::parse_flow(text, &()).unwrap();
        bench.put(&flow.matching, &Actions::drop(), 1).err().map(|error| error.to_string())
    };
    assert_eq!(
        refused("in_port(1),eth_type(0x8847),mpls(label=3)"),
        Some("the device cannot match mpls_label".to_owned())
    );
    let short = |actions: &str| {
        let actions = crate::flow::text::parse_actions(actions, &()).unwrap();
        let (handle, done) = bench.put(&ipv4_dst(8, Ipv4Addr::LOCALHOST), &actions, 1).unwrap();
        bench.delete(handle);
        done.short
    };
    assert_eq!(short("2"), None);
    assert_eq!(short("3"), Some(Unsupported::Port(PortNo(3))));
    assert_eq!(short("2,2"), Some(Unsupported::Outputs));
    assert_eq!(short("set(sctp(src=5)),2"), Some(Unsupported::Action("set(sctp)")));
    assert_eq!(short("pop_vlan,pop_vlan,2"), Some(Unsupported::Action("pop_vlan")));
}

#[test]
fn counts_of_a_port_say_what_became_of_each_packet() {
    let Some(bench) = Bench::full() else { return };
    let frame = |i| compose(contract::megaflow(i).key(), 0);
    let out = Actions::new(vec![Action::Output(PortNo(2))]);
    let gone = Actions::new(vec![Action::Output(PortNo(2)), Action::Output(PortNo(2))]);
    bench.put(&contract::megaflow(1), &Actions::drop(), 1).unwrap();
    bench.put(&contract::megaflow(2), &out, 2).unwrap();
    bench.put(&contract::megaflow(3), &gone, 3).unwrap();
    assert_eq!(bench.mark(&frame(1)), Err(DROP));
    assert_eq!(bench.mark(&frame(2)), Err(REDIRECT), "sent as it is");
    assert_eq!(bench.mark(&frame(3)), Ok(Some(3)));
    assert_eq!(bench.mark(&frame(4)), Ok(None));
    let counts = bench.device.port_counts(PortNo(1)).unwrap();
    assert_eq!((counts.hits, counts.full, counts.aborted, counts.misses), (1, 2, 0, 1));
    assert_eq!(bench.device.port_counts(PortNo(2)).unwrap().sent, 1);
    bench.device.disconnect(PortNo(2));
    assert_eq!(bench.mark(&frame(2)), Ok(Some(2)), "what cannot leave is the poller's, marked");
    let counts = bench.device.port_counts(PortNo(1)).unwrap();
    assert_eq!((counts.hits, counts.full, counts.aborted), (2, 2, 1));
}

#[test]
fn a_batch_may_have_masks_that_are_new_and_rules_that_cannot_be() {
    let Some(bench) = Bench::new(Options { rules: 8, full: false }) else { return };
    let of = |i: u32, fields: &[Field]| {
        let (mut key, mut mask) = (Key::ZERO, Mask::EMPTY);
        for (field, value) in [(Field::InPort, 1), (Field::EthType, 0x0800), (Field::Ipv4Dst, i), (Field::Ipv4Src, i)] {
            if fields.contains(&field) {
                key.set(field, value);
                mask.add_field(field);
            }
        }
        Match::new(&key, &mask)
    };
    let (to, from) = ([Field::InPort, Field::EthType, Field::Ipv4Dst], [Field::InPort, Field::EthType, Field::Ipv4Src]);
    let mut beyond = (*of(9, &to).key(), *of(9, &to).mask());
    beyond.0.set(Field::RecircId, 1u32);
    beyond.1.add_field(Field::RecircId);
    let beyond = Match::new(&beyond.0, &beyond.1);
    let matches = [of(1, &to), of(2, &from), beyond, of(3, &to), of(4, &from)];
    let actions = Actions::drop();
    let install = |(i, matching)| {
        let mark = Mark::new(i as u32 + 1).unwrap();
        Install { matching, actions: &actions, mark, level: Level::Mark, in_port: None }
    };
    let flows: Vec<_> = matches.iter().enumerate().map(install).collect();
    let mut results = Vec::new();
    bench.device.channel().put_all(&flows, &mut results);
    let put: Vec<_> = results.iter().map(Result::is_ok).collect();
    assert_eq!(put, [true, true, false, true, true], "{results:?}");
    assert!(matches!(results[2], Err(PutError::Unsupported(_))));
    for (flow, result) in flows.iter().zip(&results).filter(|(_, result)| result.is_ok()) {
        let frame = compose(flow.matching.key(), 0);
        assert_eq!(bench.mark(&frame), Ok(Some(flow.mark.0.get())), "{result:?}");
    }
    // And all are known by their handles.
    for (handle, _) in results.iter().flatten() {
        bench.delete(*handle);
    }
    assert_eq!(bench.device.marks(), Some(Vec::new()));
    assert_eq!(bench.mark(&compose(matches[0].key(), 0)), Ok(None));
}

#[test]
fn the_kernel_says_how_far_it_came_in_a_batch() {
    let Some(bench) = Bench::new(Options { rules: 2, full: false }) else { return };
    let rules = &bench.device.nic.shared.rules;
    let keys: Vec<u8> = (0..5).flat_map(|i| [i; layout::KEY]).collect();
    let values = vec![0; 5 * layout::RULE];
    // There is room for one more than rules.
    let (put, error) = rules.update_all(&keys, &values).unwrap_err();
    assert_eq!((put, error.raw_os_error()), (3, Some(libc::E2BIG)));
    let (put, error) = rules.update_all(&keys[4 * layout::KEY..], &values[4 * layout::RULE..]).unwrap_err();
    assert_eq!((put, error.raw_os_error()), (0, Some(libc::E2BIG)));
    rules.update_all(&keys[..layout::KEY], &values[..layout::RULE]).expect("what is there is replaced");
    let (put, error) = rules.update_all(&keys, &values[1..]).unwrap_err();
    assert_eq!((put, error.kind()), (0, io::ErrorKind::InvalidInput));
    assert!(rules.update_all(&[], &[]).is_err());
}

#[test]
fn what_stands_in_front_of_an_unmarked_frame_is_no_mark() {
    let Some(bench) = Bench::new(Options { rules: 2, full: false }) else { return };
    let frame = compose(contract::megaflow(1).key(), 0);
    assert_eq!(bench.run(&frame).metadata, [0; 8], "without rules");
    bench.put(&contract::megaflow(1), &Actions::drop(), 7).unwrap();
    assert_eq!(bench.mark(&frame), Ok(Some(7)));
    assert_eq!(bench.run(&compose(contract::megaflow(2).key(), 0)).metadata, [0; 8], "without a rule");
    assert_eq!(bench.run(&[0; 14]).metadata, [0; 8], "not read");
    bench.device.fence().raise();
    assert_eq!(bench.run(&frame).metadata, [0; 8], "fenced");
}

#[test]
fn marks_of_a_device_that_was_restarted_are_not_believed() {
    let Some(bench) = Bench::full() else { return };
    bench.put(&contract::megaflow(1), &Actions::drop(), 7).unwrap();
    bench.device.restart().unwrap();
    let install = Install {
        matching: &contract::megaflow(1),
        actions: &Actions::drop(),
        mark: Mark::new(7).unwrap(),
        level: Level::Mark,
        in_port: None,
    };
    bench.device.channel().put(install).unwrap();
    let metadata = bench.run(&compose(contract::megaflow(1).key(), 0)).metadata;
    assert_eq!(metadata[..4], 7u32.to_ne_bytes());
    assert_ne!(metadata[4..], 1u32.to_ne_bytes());
}

#[test]
fn a_rule_that_sent_to_a_port_that_is_gone_does_not_send_to_the_next() {
    let Some(bench) = Bench::full() else { return };
    let to_two = Actions::new(vec![Action::Output(PortNo(2))]);
    let frame = compose(contract::megaflow(1).key(), 0);
    let (handle, done) = bench.put(&contract::megaflow(1), &to_two, 7).unwrap();
    assert_eq!((done.level, bench.run(&frame).metadata.len()), (Level::Full, 0), "sent");
    let enter = |number| {
        let State { table, ports, .. } = &mut *bench.device.nic.state();
        let slot = ports.enter(PortNo(number), u32::MAX, None, |slot| table.sends_to(slot)).unwrap();
        ports.pretend_to_take(PortNo(number)).unwrap();
        slot
    };
    let before = bench.device.nic.state().ports.slot(PortNo(2)).unwrap();
    bench.device.disconnect(PortNo(2));
    assert_ne!(enter(5), before);
    assert_eq!(bench.mark(&frame), Ok(Some(7)), "to the poller, which knows what is to be done");
    bench.delete(handle);
    assert_eq!(enter(6), before, "nobody sends there any more");
}

#[test]
fn while_a_processor_does_not_leave_the_program_no_memory_that_it_may_use_is_used_again() {
    let Some(bench) = Bench::new(Options { rules: 2, full: false }) else { return };
    let drop = Actions::drop();
    let put = |i| bench.put(&contract::megaflow(i), &drop, i);
    let (one, _) = put(1).unwrap();
    let (two, _) = put(2).unwrap();
    bench.device.nic.shared.pretend_to_be_busy(true);
    let mut channel = bench.device.channel();
    assert!(channel.delete(one).is_err(), "it may be marking a packet yet");
    let install =
        |matching| Install { matching, actions: &drop, mark: Mark::new(9).unwrap(), level: Level::Mark, in_port: None };
    let (second, third) = (contract::megaflow(2), contract::megaflow(3));
    let waits = |result: Result<_, PutError>| matches!(result, Err(PutError::Device(_)));
    assert!(waits(channel.replace(two, install(&second)).map(|_| ())));
    assert!(waits(channel.put(install(&third)).map(|_| ())));
    let mut results = Vec::new();
    channel.put_all(&[install(&third)], &mut results);
    assert!(results.len() == 1 && waits(results.remove(0).map(|_| ())));
    bench.device.nic.shared.pretend_to_be_busy(false);
    channel.delete(one).unwrap();
    channel.put(install(&third)).unwrap();
    // A change that was made before the processor was seen to stay keeps its places for as long, and then they are back.
    for _ in 0..3 {
        channel.replace(two, install(&second)).unwrap();
        bench.device.nic.shared.pretend_to_be_busy(true);
        channel.replace(two, install(&second)).unwrap();
        bench.device.nic.shared.pretend_to_be_busy(false);
    }
    assert_eq!(bench.mark(&compose(second.key(), 0)), Ok(Some(9)));
}

#[test]
fn a_batch_goes_on_behind_a_rule_that_the_kernel_did_not_take() {
    let Some(bench) = Bench::new(Options { rules: 3, full: false }) else { return };
    let (matches, actions) = ([1, 2, 3, 4].map(contract::megaflow), Actions::drop());
    bench.put(&matches[0], &actions, 1).unwrap();
    {
        // The kernel's map is full, but for what may take the place of the third.
        let state = bench.device.nic.state();
        let place = state.table.tried(matches[2].mask()).unwrap();
        let third = state.table.key(place, &matches[2]);
        for key in [third, [0xee; layout::KEY], [0xff; layout::KEY]] {
            bench.device.nic.shared.rules.insert(&key, &[0; layout::RULE]).unwrap();
        }
    }
    let install = |i: usize| Install {
        matching: &matches[i],
        actions: &actions,
        mark: Mark::new(i as u32 + 1).unwrap(),
        level: Level::Mark,
        in_port: None,
    };
    let mut results = Vec::new();
    bench.device.channel().put_all(&[install(1), install(2), install(3)], &mut results);
    assert!(matches!(results[..], [Err(PutError::NoRoom), Ok(_), Err(PutError::NoRoom)]), "{results:?}");
    assert_eq!(bench.mark(&compose(matches[2].key(), 0)), Ok(Some(3)));
    for (handle, _) in results.iter().flatten() {
        bench.delete(*handle);
    }
    assert_eq!(bench.device.marks(), Some(vec![Mark::new(1).unwrap()]));
}
