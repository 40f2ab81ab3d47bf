//! The simulated NIC reads packets by code of its own. Here it is held against the datapath's: whatever match is put into
//! it, it must stamp exactly the packets that the datapath says match. So neither can be wrong alone and go unnoticed. And
//! what it executes by itself must leave as if the datapath had executed it.

use std::collections::HashSet;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use offloadd::datapath::counters::{Fate, PortCounters};
use offloadd::datapath::execute::{Way, execute};
use offloadd::datapath::output::{Output, Outputs, PortLimits, Tx};
use offloadd::flow::field::FIELDS;
use offloadd::flow::{Action, Actions, Assign, Header, Key, Mask, Match, PortNo, Set};
use offloadd::offload::Level;
use offloadd::offload::backend::sim::{Nic, Options, Sim};
use offloadd::offload::backend::{Device, Install};
use offloadd::offload::mark::Mark;
use offloadd::packet::extract::extract;
use offloadd::packet::{BATCH, Packet, PartialChecksum, Pool};
use offloadd::port::{Kind, PortInfo, RxQueue, Sent, TxQueue};

use crate::capture;

/// Matches put at a time.
const RULES: usize = 3;

/// A receive queue that delivers what the test gives it.
struct Given(Vec<Packet>);

impl RxQueue for Given {
    fn receive(&mut self, _now: Instant, _pool: &mut Pool, into: &mut Vec<Packet>) -> io::Result<usize> {
        into.append(&mut self.0);
        Ok(into.len())
    }

    fn readable(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

fn port() -> PortInfo {
    numbered(1)
}

fn numbered(number: u32) -> PortInfo {
    PortInfo {
        name: format!("p{number}"),
        number: PortNo(number),
        kind: Kind::Sim,
        ifindex: None,
        rx_queues: 1,
        tx_checksum: false,
        tx_segment: false,
        ring: 64,
    }
}

fn packets(frames: &[Vec<u8>]) -> Vec<Packet> {
    frames
        .iter()
        .map(|bytes| {
            let mut packet = Packet::from_bytes(bytes);
            packet.meta.in_port = PortNo(1);
            packet
        })
        .collect()
}

/// The marks that the NIC stamps on `frames` while `matches[i]` is in it with mark i + 1.
fn stamped(nic: &Arc<Nic>, matches: &[Match], frames: &[Vec<u8>], sabotage: bool) -> Vec<Option<usize>> {
    let mut device = Sim::new(Arc::clone(nic), Options::default()).channel();
    let actions = Actions::drop();
    let handles: Vec<_> = matches
        .iter()
        .zip(1..)
        .map(|(matching, mark)| {
            let mark = Mark::new(mark).unwrap();
            let install = Install { matching, actions: &actions, mark, level: Level::Mark, in_port: Some(PortNo(1)) };
            device.put(install).unwrap().0
        })
        .collect();
    if sabotage {
        assert!(nic.corrupt());
    }
    let mut marks = Vec::new();
    for chunk in frames.chunks(BATCH) {
        let mut queue = nic.wrap_rx(&port(), Box::new(Given(packets(chunk))));
        let mut out = Vec::new();
        queue.receive(Instant::now(), &mut Pool::new(), &mut out).unwrap();
        marks.extend(out.iter().map(|packet| packet.meta.mark.map(|mark| mark.index() - 1)));
    }
    for handle in handles {
        device.delete(handle).unwrap();
    }
    marks
}

/// Numbers that look random and are the same every time (Marsaglia's xorshift).
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

/// A match that `key` satisfies: some of its fields, some of those in part.
fn some_match(key: &Key, dice: &mut Dice) -> Match {
    let mut mask = Mask::EMPTY;
    for _ in 0..2 + dice.below(7) {
        let field = FIELDS[dice.below(FIELDS.len())].field;
        match dice.below(3) {
            0 => mask.add(field, (u128::from(dice.0) << 64 | u128::from(dice.0.rotate_left(17))) & field.full()),
            _ => mask.add_field(field),
        }
    }
    Match::new(key, &mask)
}

fn distinct(matches: impl Iterator<Item = Match>) -> Vec<Match> {
    let mut seen = HashSet::new();
    matches.filter(|m| seen.insert(*m)).collect()
}

/// The frames of a capture, and the same with bytes changed or cut off at random.
fn frames() -> Vec<Vec<u8>> {
    let mut dice = Dice(0x5eed);
    let mut frames: Vec<Vec<u8>> = capture::generate(7, 6_000).into_iter().map(|frame| frame.bytes).collect();
    for i in 0..frames.len() {
        let mut bytes = frames[i].clone();
        for _ in 0..1 + dice.below(3) {
            // The headers, where changes matter.
            let at = dice.below(bytes.len().min(80));
            bytes[at] = dice.below(256) as u8;
        }
        if dice.below(4) == 0 {
            bytes.truncate(14 + dice.below(bytes.len() - 13));
        }
        frames.push(bytes);
    }
    frames
}

#[test]
fn the_nic_stamps_exactly_the_packets_that_the_datapath_says_match() {
    let frames = frames();
    let keys: Vec<Key> = packets(&frames).iter().map(extract).collect();
    let nic = Nic::new(Instant::now());
    let mut dice = Dice(0xd1ce);
    let (mut hits, mut misses) = (0, 0);
    for chunk in (0..frames.len()).collect::<Vec<_>>().chunks(4 * BATCH) {
        let matches = distinct((0..RULES).map(|_| some_match(&keys[chunk[dice.below(chunk.len())]], &mut dice)));
        let marks = stamped(&nic, &matches, &frames[chunk[0]..=chunk[chunk.len() - 1]], false);
        for (&i, mark) in chunk.iter().zip(&marks) {
            match mark {
                Some(rule) => assert!(
                    matches[*rule].matches(&keys[i]),
                    "stamped, though {:?} does not match {:?}\nframe {:02x?}",
                    matches[*rule],
                    keys[i],
                    frames[i]
                ),
                None => {
                    let missed = matches.iter().find(|m| m.matches(&keys[i]));
                    assert!(missed.is_none(), "not stamped: {missed:?}\nkey {:?}\nframe {:02x?}", keys[i], frames[i]);
                }
            }
        }
        hits += marks.iter().flatten().count();
        misses += marks.iter().filter(|mark| mark.is_none()).count();
    }
    // Both verdicts were really tried.
    assert!(hits > 2_000 && misses > 2_000, "{hits} hits, {misses} misses");
}

#[test]
fn every_exact_key_is_stamped() {
    let frames = frames();
    let keys: Vec<Key> = packets(&frames).iter().map(extract).collect();
    let nic = Nic::new(Instant::now());
    for (frames, keys) in frames.chunks(BATCH).zip(keys.chunks(BATCH)) {
        let mut exact = Mask::EMPTY;
        FIELDS.iter().for_each(|def| exact.add_field(def.field));
        let matches = distinct(keys.iter().map(|key| Match::new(key, &exact)));
        for (i, mark) in stamped(&nic, &matches, frames, false).into_iter().enumerate() {
            let rule = mark.unwrap_or_else(|| panic!("not stamped: key {:?}\nframe {:02x?}", keys[i], frames[i]));
            assert!(matches[rule].matches(&keys[i]));
        }
    }
}

#[test]
fn a_nic_that_lies_is_noticed() {
    let frames = frames();
    let keys: Vec<Key> = packets(&frames[..64]).iter().map(extract).collect();
    let mut exact = Mask::EMPTY;
    FIELDS.iter().for_each(|def| exact.add_field(def.field));
    let first = Match::new(&keys[0], &exact);
    let other = keys.iter().map(|key| Match::new(key, &exact)).find(|m| *m != first).unwrap();
    let marks = stamped(&Nic::new(Instant::now()), &[first, other], &frames[..1], true);
    let rule = marks[0].expect("the swapped mark is stamped");
    assert!(![first, other][rule].matches(&keys[0]), "the comparison of the other tests would fail");
}

/// The frames that left by a port, in order.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<Vec<u8>>>>);

impl TxQueue for Log {
    fn transmit(&mut self, _now: Instant, pool: &mut Pool, packets: &mut Vec<Packet>) -> Sent {
        let sent = Sent { packets: packets.len() as u64, ..Sent::default() };
        self.0.lock().unwrap().extend(packets.iter().map(|packet| packet.bytes().to_vec()));
        pool.give_all(packets);
        sent
    }
}

impl Log {
    fn take(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

/// Ports 1 to 3 of an MTU of 1,000 and one that is a little larger, so that some frames are too long for some; the second
/// finishes checksums.
const MTUS: [u32; 3] = [1_000, 1_500, 1_004];

fn finishes_checksums(number: u32) -> bool {
    number == 2
}

/// The datapath's way out, into logs of its own.
fn software() -> (Outputs, [Log; 3]) {
    let (mut outputs, logs) = (Outputs::new(), <[Log; 3]>::default());
    for ((log, mtu), number) in logs.iter().zip(MTUS).zip(1..) {
        let limits = Arc::new(PortLimits { mtu: AtomicU32::new(mtu) });
        let tx = Tx::Own(Box::new(log.clone()));
        outputs.add(
            PortNo(number),
            Output::new(tx, finishes_checksums(number), false, limits, Arc::new(PortCounters::default())),
        );
    }
    (outputs, logs)
}

fn some_actions(dice: &mut Dice) -> Actions {
    const HEADERS: [Header; 7] =
        [Header::Eth, Header::Vlan, Header::Ipv4, Header::Ipv6, Header::Tcp, Header::Udp, Header::Sctp];
    let some_set = |dice: &mut Dice| {
        let header = HEADERS[dice.below(HEADERS.len())];
        let field = header.fields()[dice.below(header.fields().len())];
        let value = u128::from(dice.0) << 64 | u128::from(dice.0.rotate_left(23));
        let whole = Assign::full(field, value);
        let assign =
            if dice.below(3) == 0 { Assign { mask: whole.mask & value.rotate_left(7), ..whole } } else { whole };
        Set::new(header, &[assign]).unwrap()
    };
    (0..dice.below(8))
        .map(|_| match dice.below(6) {
            0..=2 => Action::Output(PortNo(1 + dice.below(3) as u32)),
            3 => Action::PushVlan { tpid: 0x8100, tci: 0x1000 | dice.below(4_096) as u16 },
            4 => Action::PopVlan,
            _ => Action::Set(some_set(dice)),
        })
        .collect()
}

/// As they arrive: a few with a checksum that a kernel left to be finished.
fn arriving(frames: &[Vec<u8>]) -> Vec<Packet> {
    let mut packets = packets(frames);
    for (i, packet) in packets.iter_mut().enumerate().filter(|(_, packet)| packet.len() >= 60) {
        if i % 16 == 5 {
            packet.meta.offload.checksum = Some(PartialChecksum { start: 34, offset: 6 });
        }
    }
    packets
}

#[test]
fn what_the_nic_executes_by_itself_leaves_as_if_the_datapath_had_executed_it() {
    let frames = frames();
    let mut dice = Dice(0xac7);
    let (mut outputs, expected) = software();
    let nic = Nic::new(Instant::now());
    let device = Sim::new(Arc::clone(&nic), Options { level: Level::Full, ..Options::default() });
    let wires = <[Log; 3]>::default();
    for ((wire, mtu), number) in wires.iter().zip(MTUS).zip(1..) {
        let info = PortInfo { tx_checksum: finishes_checksums(number), ..numbered(number) };
        device.connect(&info, mtu as usize, Some(Box::new(wire.clone())), None);
    }
    let (now, mut pool, fate) = (Instant::now(), Pool::new(), Fate::default());
    let (mut handled, mut handed_up, mut in_order) = (0, 0, 0);
    for chunk in frames.chunks(BATCH) {
        let actions = some_actions(&mut dice);
        let way = Way::of(&actions, None);
        let mut run = |packets: &mut Vec<Packet>, pool: &mut Pool| {
            execute(way, &actions, packets, &mut outputs, pool, &fate);
            outputs.flush(now, pool, &fate);
            expected.each_ref().map(Log::take)
        };
        let mut software = run(&mut arriving(chunk), &mut pool);

        let mut backend = device.channel();
        let (matching, mark) = (Match::new(&Key::ZERO, &Mask::EMPTY), Mark::new(1).unwrap());
        let install =
            Install { matching: &matching, actions: &actions, mark, level: Level::Full, in_port: Some(PortNo(1)) };
        let (handle, done) = backend.put(install).unwrap();
        assert_eq!((done.level, done.short), (Level::Full, None));
        let mut left = Vec::new();
        let mut queue = device.wrap_rx(&port(), Box::new(Given(arriving(chunk))));
        assert_eq!(queue.receive(now, &mut pool, &mut left).unwrap(), chunk.len());
        let kept = chunk.len() - left.len();
        assert_eq!(backend.delete(handle).unwrap().packets, kept as u64);
        handled += kept;
        handed_up += left.len();
        let mut hardware = wires.each_ref().map(Log::take);
        let all_done = left.is_empty();
        // What it cannot do comes up untouched, and is the datapath's.
        for (sent, rest) in hardware.iter_mut().zip(run(&mut left, &mut pool)) {
            sent.extend(rest);
        }
        let mut ports: Vec<_> = actions.outputs().collect();
        ports.sort_unstable();
        if all_done && ports.windows(2).all(|pair| pair[0] != pair[1]) {
            in_order += 1;
        } else {
            // The datapath sends a packet's second copy to a port behind the first copies of the others, the NIC right behind its own.
            hardware.iter_mut().chain(&mut software).for_each(|sent| sent.sort());
        }
        for (hardware, software) in hardware.iter().zip(&software) {
            let differs = hardware.iter().zip(software).find(|(hardware, software)| hardware != software);
            assert!(hardware.len() == software.len() && differs.is_none(), "{actions:?}: {differs:02x?}");
        }
    }
    // All ways were really tried.
    assert!(handled > 4_000 && handed_up > 500 && in_order > 20, "{handled}, {handed_up}, {in_order}");
}
