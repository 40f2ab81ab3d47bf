//! The simulated NIC as its workers and pollers meet it: what goes in, what comes out, what is counted.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Mutex;
use std::time::Duration;

use super::*;
use crate::flow::text::parse_actions;
use crate::flow::{Actions, Field, Key, Mask, Match};
use crate::offload::backend::contract;
use crate::offload::mark::Mark;
use crate::packet::{BATCH, Packet, Pool};
use crate::port::{Kind, RxProgress, Sent};

/// A receive queue that delivers what it is given, a batch at a time.
#[derive(Clone, Default)]
struct Inner(Arc<Mutex<VecDeque<Vec<u8>>>>, Arc<Mutex<Option<io::Error>>>);

impl Inner {
    fn arrive(&self, frames: impl IntoIterator<Item = Vec<u8>>) {
        self.0.lock().unwrap().extend(frames);
    }
}

impl RxQueue for Inner {
    fn receive(&mut self, _: Instant, _: &mut Pool, into: &mut Vec<Packet>) -> io::Result<usize> {
        assert!(into.is_empty());
        let mut waiting = self.0.lock().unwrap();
        let batch = waiting.len().min(BATCH);
        into.extend(waiting.drain(..batch).map(|frame| Packet::from_bytes(&frame)));
        into.iter_mut().for_each(|packet| packet.meta.in_port = PortNo(1));
        match self.1.lock().unwrap().take() {
            Some(error) => Err(error),
            None => Ok(into.len()),
        }
    }

    fn readable(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// What left by the wires, by port.
type Log = Arc<Mutex<Vec<(u32, u8, usize)>>>;

struct Recorder(u32, Log);

impl TxQueue for Recorder {
    fn transmit(&mut self, _: Instant, pool: &mut Pool, packets: &mut Vec<Packet>) -> Sent {
        let sent = Sent { packets: packets.len() as u64, ..Sent::default() };
        let line = |packet: &Packet| (self.0, packet.bytes()[5], packet.len());
        self.1.lock().unwrap().extend(packets.iter().map(line));
        pool.give_all(packets);
        sent
    }
}

fn info(number: u32) -> PortInfo {
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

/// A frame to station `last`.
fn frame(last: u8) -> Vec<u8> {
    let mut frame = vec![2; 60];
    frame[5] = last;
    frame
}

fn to(last: u8) -> Match {
    let (mut key, mut mask) = (Key::ZERO, Mask::EMPTY);
    key.set(Field::EthDst, 0x0202_0202_0200_u64 | u64::from(last));
    mask.add_field(Field::EthDst);
    Match::new(&key, &mask)
}

/// A NIC with port 1 to receive from and ports 2 and 3 to send to, of an MTU of 100.
struct Bench {
    nic: Arc<Nic>,
    device: Sim,
    backend: Box<dyn Backend>,
    inner: Inner,
    queue: Box<dyn RxQueue>,
    log: Log,
    pool: Pool,
    start: Instant,
}

impl Bench {
    fn new(options: &str) -> Bench {
        let start = Instant::now();
        let spec: crate::offload::backend::BackendSpec = options.parse().unwrap();
        let nic = Nic::new(start);
        let device = Sim::new(Arc::clone(&nic), Options::parse(&spec.options).unwrap());
        let (inner, log) = (Inner::default(), Log::default());
        for number in [2, 3] {
            device.connect(&info(number), 100, Some(Box::new(Recorder(number, Arc::clone(&log)))), None);
        }
        let queue = device.wrap_rx(&info(1), Box::new(inner.clone()));
        let backend = device.channel();
        Bench { nic, device, backend, inner, queue, log, pool: Pool::new(), start }
    }

    fn install(&mut self, last: u8, mark: u32, level: Level, actions: &str) -> Result<(Handle, Done), PutError> {
        let (matching, actions) = (to(last), parse_actions(actions, &()).unwrap());
        let mark = Mark::new(mark).unwrap();
        self.backend.put(Install { matching: &matching, actions: &actions, mark, level, in_port: None })
    }

    fn put(&mut self, last: u8, mark: u32) -> Handle {
        self.install(last, mark, Level::Full, "2").unwrap().0
    }

    fn replace(&mut self, handle: Handle, mark: u32, level: Level, actions: &str) -> Result<Done, PutError> {
        let (matching, actions) = (to(0), parse_actions(actions, &()).unwrap());
        let mark = Mark::new(mark).unwrap();
        let install = Install { matching: &matching, actions: &actions, mark, level, in_port: None };
        self.backend.replace(handle, install).map(|(done, _)| done)
    }

    /// One look at the queue: the count, and the marks of what is handed up.
    fn look(&mut self) -> (usize, Vec<Option<u32>>) {
        let mut packets = Vec::new();
        let taken = self.queue.receive(self.start, &mut self.pool, &mut packets).unwrap();
        (taken, packets.iter().map(|packet| packet.meta.mark.map(|mark| mark.0.get())).collect())
    }

    /// Lets frames arrive and looks once.
    fn pass(&mut self, stations: &[u8]) -> Vec<Option<u32>> {
        self.inner.arrive(stations.iter().map(|last| frame(*last)));
        self.look().1
    }

    fn sent(&self) -> Vec<(u32, u8, usize)> {
        std::mem::take(&mut *self.log.lock().unwrap())
    }

    fn packets(&mut self, handle: Handle) -> u64 {
        let mut counts = Vec::new();
        self.backend.stats(&[handle], &mut counts).unwrap();
        counts[0].packets
    }

    fn counts(&self) -> PortCounts {
        self.nic.port_counts(PortNo(1)).unwrap()
    }
}

#[test]
fn the_simulated_nic_keeps_the_contract_of_backends_whatever_it_can() {
    for options in ["sim", "sim,level=full", "sim,replace=false", "sim,level=full,ring=8"] {
        let spec: crate::offload::backend::BackendSpec = options.parse().unwrap();
        let options = Options { capacity: contract::CAPACITY, ..Options::parse(&spec.options).unwrap() };
        contract::check(|| open(options.clone(), Instant::now()));
    }
}

#[test]
fn packets_that_a_rule_matches_carry_its_mark_and_are_counted() {
    let mut bench = Bench::new("sim");
    assert_eq!(bench.pass(&[1, 2, 1]), [None; 3]);
    let handle = bench.put(1, 7);
    assert_eq!(bench.pass(&[1, 2, 1]), [Some(7), None, Some(7)]);
    let mut counts = Vec::new();
    bench.backend.stats(&[handle], &mut counts).unwrap();
    // Seen at the very start of its clock: 1, because 0 is never.
    assert_eq!(counts, [FlowStats { packets: 2, bytes: 120, used_ns: 1 }]);
    assert_eq!(bench.counts(), PortCounts { hits: 2, misses: 4, ..PortCounts::default() });
    assert_eq!(bench.backend.delete(handle).map(|counts| counts.packets), Ok(2));
    assert_eq!(bench.pass(&[1, 2]), [None; 2]);
    assert_eq!(bench.sent(), [], "marks only");
}

#[test]
fn a_full_rule_executes_its_actions_and_its_packets_never_reach_the_poller() {
    let mut bench = Bench::new("sim,level=full");
    let (handle, done) = bench.install(1, 7, Level::Full, "2,push_vlan(vid=5,pcp=0),3").unwrap();
    assert_eq!(done, Done::at(Level::Full));
    bench.install(9, 9, Level::Full, "drop").unwrap();
    bench.install(4, 4, Level::Mark, "2").unwrap();
    assert_eq!(bench.pass(&[1, 6, 1, 9, 4]), [None, Some(4)]);
    assert_eq!(bench.sent(), [(2, 1, 60), (2, 1, 60), (3, 1, 64), (3, 1, 64)]);
    let expected = PortCounts { hits: 1, full: 3, full_bytes: 180, misses: 1, ..PortCounts::default() };
    assert_eq!(bench.counts(), expected);
    assert_eq!(bench.packets(handle), 2);
    bench.inner.arrive([frame(1)]);
    assert_eq!(bench.look(), (1, vec![]), "it was taken out of the queue all the same");
}

#[test]
fn a_rule_to_a_port_without_a_wire_is_a_mark_and_says_which_port() {
    let mut bench = Bench::new("sim,level=full");
    let (_, done) = bench.install(1, 7, Level::Full, "2,8").unwrap();
    assert_eq!(done, Done { level: Level::Mark, short: Some(Unsupported::Port(PortNo(8))) });
    assert_eq!(bench.pass(&[1]), [Some(7)]);
    bench.device.connect(&info(8), 100, None, None);
    assert_eq!(bench.install(2, 8, Level::Full, "8").unwrap().1.level, Level::Mark);
}

#[test]
fn what_the_nic_is_without_is_left_to_the_poller_or_refused() {
    let mut bench = Bench::new("sim,level=full,without=pop_vlan+eth_dst");
    assert!(matches!(
        bench.install(1, 7, Level::Full, "2"),
        Err(PutError::Unsupported(Unsupported::Field(Field::EthDst)))
    ));
    let mut bench = Bench::new("sim,level=full,without=pop_vlan");
    let (_, done) = bench.install(1, 7, Level::Full, "pop_vlan,2").unwrap();
    assert_eq!(done, Done { level: Level::Mark, short: Some(Unsupported::Action("pop_vlan")) });
    assert_eq!(bench.pass(&[1]), [Some(7)]);
}

#[test]
fn a_packet_that_the_nic_cannot_finish_is_handed_up_marked_and_is_not_the_rules() {
    let mut bench = Bench::new("sim,level=full");
    let handle = bench.put(1, 7);
    let mut long = frame(1);
    long.resize(115, 0);
    bench.inner.arrive([long.clone(), frame(1), frame(1)[..13].to_vec()]);
    assert_eq!(bench.look(), (3, vec![Some(7), None]));
    assert_eq!(bench.sent(), [(2, 1, 60)]);
    assert_eq!((bench.packets(handle), bench.counts().full), (1, 1));
    bench.device.set_mtu(PortNo(2), 101);
    bench.inner.arrive([long]);
    assert_eq!(bench.look(), (1, vec![]));
    assert_eq!(bench.sent(), [(2, 1, 115)]);
}

#[test]
fn nothing_is_sent_to_a_port_that_is_gone_and_its_packets_come_up_marked() {
    let mut bench = Bench::new("sim,level=full");
    bench.install(1, 7, Level::Full, "3,2").unwrap();
    bench.device.disconnect(PortNo(2));
    assert_eq!(bench.pass(&[1, 1]), [Some(7); 2]);
    assert_eq!(bench.sent(), []);
    bench.device.connect(&info(2), 100, Some(Box::new(Recorder(2, Arc::clone(&bench.log)))), None);
    assert_eq!(bench.pass(&[1]), []);
    assert_eq!(bench.nic.port_counts(PortNo(1)).map(|counts| (counts.full, counts.hits)), Some((1, 2)));
}

#[test]
fn what_was_sent_to_a_port_is_counted_on_when_its_wire_is_replaced_and_anew_when_the_port_was_gone() {
    let mut bench = Bench::new("sim,level=full");
    bench.install(1, 7, Level::Full, "2").unwrap();
    // A port's counts live as long as its queues.
    let _queue = bench.device.wrap_rx(&info(2), Box::new(Inner::default()));
    let sent = |bench: &Bench| bench.nic.port_counts(PortNo(2)).unwrap().sent;
    let wire = |bench: &Bench| -> Option<Box<dyn TxQueue>> { Some(Box::new(Recorder(2, Arc::clone(&bench.log)))) };
    bench.pass(&[1, 1]);
    bench.device.connect(&info(2), 100, None, None);
    assert_eq!((bench.pass(&[1]), sent(&bench)), (vec![Some(7)], 2));
    bench.device.connect(&info(2), 100, wire(&bench), None);
    assert_eq!((bench.pass(&[1]), sent(&bench)), (vec![], 3));
    bench.device.disconnect(PortNo(2));
    bench.device.connect(&info(2), 100, wire(&bench), None);
    assert_eq!((bench.pass(&[1]), sent(&bench)), (vec![], 1));
}

#[test]
fn a_replaced_rule_has_new_actions_level_and_mark_and_its_old_counts() {
    let mut bench = Bench::new("sim,level=full");
    let handle = bench.put(1, 7);
    assert_eq!(bench.pass(&[1]), []);
    assert_eq!(bench.replace(handle, 8, Level::Mark, "drop"), Ok(Done::at(Level::Mark)));
    assert_eq!(bench.pass(&[1]), [Some(8)]);
    assert_eq!(bench.replace(handle, 9, Level::Full, "3"), Ok(Done::at(Level::Full)));
    assert_eq!(bench.pass(&[1]), []);
    assert_eq!(bench.sent(), [(2, 1, 60), (3, 1, 60)]);
    assert_eq!(bench.packets(handle), 3);
    let short = bench.replace(handle, 9, Level::Full, "8").unwrap();
    assert_eq!(short.short, Some(Unsupported::Port(PortNo(8))));
    assert_eq!(bench.pass(&[1]), [Some(9)]);
}

#[test]
fn behind_a_raised_fence_no_packet_is_marked_or_executed_and_each_is_still_counted() {
    let mut bench = Bench::new("sim,level=full");
    bench.put(1, 7);
    bench.install(2, 8, Level::Mark, "2").unwrap();
    bench.device.fence().raise();
    assert_eq!(bench.pass(&[1, 2]), [None, None]);
    assert_eq!(bench.sent(), []);
    assert_eq!(bench.counts(), PortCounts { misses: 2, ..PortCounts::default() });
    bench.device.fence().lower();
    assert_eq!(bench.pass(&[1, 2]), [Some(8)]);
}

#[test]
fn a_packet_never_waits_for_a_change_of_the_table() {
    let mut bench = Bench::new("sim,level=full");
    bench.put(1, 7);
    let nic = Arc::clone(&bench.nic);
    let changing = nic.change();
    assert_eq!(bench.pass(&[1]), [None]);
    drop(changing);
    assert_eq!(bench.pass(&[1]), []);
    assert_eq!(bench.counts(), PortCounts { full: 1, full_bytes: 60, busy: 1, ..PortCounts::default() });
}

#[test]
fn frames_in_the_ring_carry_the_marks_of_the_moment_they_entered_it() {
    let mut bench = Bench::new("sim,ring=64");
    assert_eq!(bench.device.ring(64), 160);
    let handle = bench.put(1, 7);
    bench.inner.arrive((0..64).map(|_| frame(1)));
    assert_eq!(bench.look(), (32, vec![Some(7); 32]));
    bench.backend.delete(handle).unwrap();
    bench.put(1, 8);
    bench.inner.arrive([frame(1)]);
    assert!(bench.queue.next_due().is_some_and(|due| due <= bench.start), "a poller must not sleep");
    assert_eq!(bench.look(), (32, vec![Some(7); 32]));
    assert_eq!(bench.look(), (1, vec![Some(8)]));
    assert_eq!(bench.look(), (0, vec![]));
    assert_eq!(bench.queue.next_due(), None);
    assert_eq!(bench.counts().hits, 65);
}

#[test]
fn what_the_nic_forwards_waits_for_what_is_in_the_ring_before_it() {
    let mut bench = Bench::new("sim,level=full,ring=64");
    bench.inner.arrive((0..40).map(|_| frame(1)));
    assert_eq!(bench.look(), (32, vec![None; 32]));
    let handle = bench.put(1, 7);
    bench.put(2, 8);
    // Eight came before the rule did.
    bench.inner.arrive([1, 2, 3, 1].map(frame));
    assert_eq!((bench.look(), bench.sent()), ((8, vec![None; 8]), vec![]));
    assert_eq!((bench.look(), bench.sent()), ((3, vec![None]), vec![(2, 1, 60), (2, 2, 60)]));
    assert_eq!((bench.look(), bench.sent()), ((1, vec![]), vec![(2, 1, 60)]));
    // With nothing before them they do not wait.
    assert_eq!((bench.pass(&[1, 3, 1]), bench.sent()), (vec![None], vec![(2, 1, 60), (2, 1, 60)]));
    let expected = PortCounts { full: 5, full_bytes: 300, misses: 42, ..PortCounts::default() };
    assert_eq!(bench.counts(), expected);
    // A rule that has gone before their turn came does not forward them.
    bench.inner.arrive((0..33).map(|_| frame(3)).chain([frame(1), frame(2)]));
    assert_eq!(bench.look(), (32, vec![None; 32]));
    bench.backend.delete(handle).unwrap();
    assert_eq!((bench.look(), bench.sent()), ((1, vec![None]), vec![]));
    assert_eq!((bench.look(), bench.sent()), ((2, vec![None]), vec![(2, 2, 60)]));
    assert_eq!(bench.look(), (0, vec![]));
    assert_eq!(bench.counts(), PortCounts { full: 6, full_bytes: 360, misses: 76, ..PortCounts::default() });
}

#[test]
fn the_ring_holds_no_more_than_it_may_and_a_turn_takes_every_frame_that_was_in_it() {
    let mut bench = Bench::new("sim,level=full,ring=100");
    let handle = bench.install(1, 7, Level::Mark, "2").unwrap().0;
    bench.put(2, 8);
    let progress = RxProgress::new(bench.device.ring(64));
    // Frames of a full rule among the others, more than fit, and always more to come.
    let traffic = |bench: &Bench| bench.inner.arrive((0..192).map(|i| frame(1 + (i % 3 != 0) as u8)));
    for _ in 0..20 {
        traffic(&bench);
        let (taken, _) = bench.look();
        progress.took(taken);
    }
    bench.backend.delete(handle).unwrap();
    let point = progress.mark_point();
    let (mut looks, mut stale) = (0, 0);
    while !progress.turned_over_since(&point) {
        traffic(&bench);
        let (taken, marks) = bench.look();
        progress.took(taken);
        stale += marks.iter().flatten().count();
        looks += 1;
        assert!(looks < 1_000, "a turn ends");
    }
    // A third of those in the ring.
    assert!((23..=44).contains(&stale), "{stale} frames were in the ring");
    for _ in 0..20 {
        assert!(bench.look().1.iter().all(Option::is_none), "the old mark is gone");
    }
}

#[test]
fn frames_in_the_ring_lose_their_marks_behind_a_raised_fence() {
    let mut bench = Bench::new("sim,ring=64");
    bench.put(1, 7);
    bench.inner.arrive((0..40).map(|_| frame(1)));
    assert_eq!(bench.look().1, [Some(7); 32]);
    bench.device.fence().raise();
    assert_eq!(bench.look().1, [None; 8]);
}

#[test]
fn a_queue_that_breaks_hands_its_ring_out_before_it_says_so() {
    let mut bench = Bench::new("sim,ring=64");
    bench.inner.arrive((0..40).map(|_| frame(1)));
    *bench.inner.1.lock().unwrap() = Some(io::Error::other("unplugged"));
    assert_eq!(bench.look().0, 32);
    let mut packets = Vec::new();
    let error = bench.queue.receive(bench.start, &mut bench.pool, &mut packets).unwrap_err();
    assert_eq!((error.to_string(), packets.len()), ("unplugged".to_owned(), 0));
}

#[test]
fn what_a_reset_a_restart_or_a_flush_forgets_unread_is_counted_once() {
    let mut bench = Bench::new("sim,level=full");
    let forgotten = |bench: &Bench| bench.device.forgotten().unwrap();
    let (first, second) = (bench.put(1, 7), bench.put(2, 8));
    bench.pass(&[1, 1, 2, 2, 2]);
    assert_eq!(bench.packets(first), 2);
    bench.pass(&[1, 3]);
    bench.backend.flush(&[first]).unwrap();
    assert_eq!(forgotten(&bench), 1);
    let before = bench.backend.generation();
    assert!(bench.device.reset());
    assert_ne!(bench.backend.generation(), before);
    assert_eq!(forgotten(&bench), 4);
    assert_eq!(bench.backend.delete(second), Ok(FlowStats::default()));
    bench.put(1, 7);
    let marked = bench.install(2, 8, Level::Mark, "2").unwrap().0;
    bench.pass(&[1, 2]);
    let before = bench.backend.generation();
    bench.device.restart().unwrap();
    assert_eq!(bench.device.channel().generation(), before);
    assert_eq!(forgotten(&bench), 5, "and what was marked the poller has counted");
    assert!(bench.backend.delete(marked).is_err());
}

#[test]
fn an_operation_that_takes_until_after_a_restart_changes_nothing() {
    static UNDERWAY: std::sync::OnceLock<Arc<Nic>> = std::sync::OnceLock::new();
    // The NIC is restarted while the operation takes its time.
    let restart: Pace = |_| UNDERWAY.get().into_iter().for_each(|nic| nic.restart());
    let nic = Nic::new(Instant::now());
    let options = Options { operation: Duration::from_millis(1), ..Options::default() };
    let device = Sim::new(Arc::clone(&nic), options).with_pace(restart);
    let mut backend = device.channel();
    let (handle, _) = contract::put(&mut *backend, 1).unwrap();
    assert!(UNDERWAY.set(Arc::clone(&nic)).is_ok());
    assert_eq!(contract::put(&mut *backend, 2), Err(PutError::Device("it was restarted".to_owned())));
    assert_eq!(nic.rules(), 0);
    let mut again = device.channel();
    assert!(again.delete(handle).is_err(), "it is an earlier life's again when its time is over");
}

#[test]
fn a_port_that_is_added_again_counts_anew_whatever_the_worker_has_heard_of_it() {
    let mut bench = Bench::new("sim");
    bench.pass(&[1]);
    assert_eq!(bench.counts().misses, 1);
    bench.queue = Box::new(Inner::default());
    assert_eq!(bench.nic.port_counts(PortNo(1)), None);
    bench.queue = bench.nic.wrap_rx(&info(1), Box::new(bench.inner.clone()));
    bench.pass(&[1]);
    assert_eq!(bench.counts().misses, 1);
}

#[test]
fn a_corrupted_nic_stamps_the_wrong_marks() {
    let mut bench = Bench::new("sim");
    bench.put(1, 7);
    assert!(!bench.nic.corrupt());
    bench.put(2, 8);
    assert!(bench.nic.corrupt());
    assert_eq!(bench.pass(&[1, 2]), [Some(8), Some(7)]);
}

#[test]
fn a_put_of_a_match_that_is_there_is_refused() {
    let mut bench = Bench::new("sim");
    let _ = bench.put(1, 7);
    assert!(matches!(bench.install(1, 8, Level::Mark, "2"), Err(PutError::Device(_))));
    let actions = Actions::drop();
    let (matching, mark) = (to(2), Mark::new(9).unwrap());
    let install = Install { matching: &matching, actions: &actions, mark, level: Level::Mark, in_port: None };
    assert!(bench.backend.put(install).is_ok());
}
