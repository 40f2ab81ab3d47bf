//! A mark that was given back never reaches a packet that was received before: a receive ring full of stale marks, and churn.
//!
//! A poller, a simulated NIC with a ring of its own in which frames keep the marks of the moment when they entered it, and the
//! worker, are taken one step at a time. Every flow writes its own number into its packets, so that one which a stranger's
//! actions were done to is told by its looks.
//!
//! ```text
//!   round:  flows are put ─► the ring is filled with their marks ─► they die, others take their place and their marks
//!           ─► the ring is emptied, in the midst of all that: each frame must look as its own flow made it
//! ```
//!
//! The same with a worker that knows of no ring, so that marks have no quarantine, must be caught.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use offloadd::datapath::counters::PollerCounters;
use offloadd::datapath::doorbell::Doorbell;
use offloadd::datapath::hash::Seeds;
use offloadd::datapath::inbox::{Inbox, Message, NewFlow, Which};
use offloadd::datapath::output::{Output, PortLimits, Tx};
use offloadd::datapath::pipeline::Pipeline;
use offloadd::datapath::poller::{Poller, Receiver, Reports};
use offloadd::datapath::shared::Shared;
use offloadd::datapath::table::{FlowTable, Namer};
use offloadd::flow::text::{parse_actions, parse_flow};
use offloadd::flow::{Match, PortNo};
use offloadd::offload::worker::Worker;
use offloadd::offload::{Offload, OffloadConfig, backend};
use offloadd::packet::compose::compose;
use offloadd::packet::{BATCH, Packet, Pool};
use offloadd::port::{Kind, PortInfo, RxProgress, RxQueue, Sent, TxQueue};
use offloadd::slowpath::{Options, Slowpath};

/// Frames that wait in the NIC's ring.
const RING: usize = 256;

/// Frames that wait in the receive queue behind it, as the worker is told.
const QUEUE: u64 = 64;

const IN: PortNo = PortNo(1);
const OUT: PortNo = PortNo(2);

/// Frames on their way to the NIC.
#[derive(Clone, Default)]
struct Wire(Arc<Mutex<VecDeque<Packet>>>);

impl RxQueue for Wire {
    fn receive(&mut self, _now: Instant, _pool: &mut Pool, into: &mut Vec<Packet>) -> io::Result<usize> {
        let mut waiting = self.0.lock().unwrap();
        let taken = waiting.len().min(BATCH);
        into.extend(waiting.drain(..taken));
        Ok(taken)
    }

    fn readable(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// What left: which flow a frame belongs to, and which flow's actions were done to it.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<(u32, u32)>>>);

impl TxQueue for Seen {
    fn transmit(&mut self, _now: Instant, pool: &mut Pool, packets: &mut Vec<Packet>) -> Sent {
        let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap()) & 0xffff;
        let look = |packet: &Packet| (number(&packet.bytes()[30..34]), number(&packet.bytes()[26..30]));
        self.0.lock().unwrap().extend(packets.iter().map(look));
        let sent = Sent { packets: packets.len() as u64, ..Sent::default() };
        pool.give_all(packets);
        sent
    }
}

/// A poller, its NIC and the worker, taken one step at a time.
struct Bench {
    poller: Poller,
    offload: Offload,
    worker: Worker,
    wire: Wire,
    seen: Seen,
    now: Instant,
    /// Flows made so far.
    flows: u32,
}

/// What came of some rounds.
#[derive(Debug, Default)]
struct Outcome {
    /// Packets to which another flow's actions were done.
    strangers: usize,
    /// Packets that left.
    sent: usize,
    /// Packets that came with a mark that meant nothing any more.
    stale: u64,
    /// Rules that were put, each with a mark.
    put: u64,
}

fn port() -> PortInfo {
    PortInfo {
        name: "p1".to_owned(),
        number: IN,
        kind: Kind::Sim,
        ifindex: None,
        rx_queues: 1,
        tx_checksum: false,
        tx_segment: false,
        ring: QUEUE,
    }
}

fn address(net: u32, flow: u32) -> String {
    format!("10.{net}.{}.{}", flow >> 8, flow & 0xff)
}

fn matching(flow: u32) -> Match {
    let text = format!("in_port(1),eth_type(0x0800),ipv4(dst={},frag=no)", address(0, flow));
    parse_flow(&text, &()).unwrap().matching
}

impl Bench {
    /// `quarantine`: whether the worker is told of the ring that marks must wait for.
    fn new(quarantine: bool) -> Bench {
        let now = Instant::now();
        let device = backend::open(&format!("sim,ring={RING},mark-bits=8").parse().unwrap(), now).unwrap();
        let (offload, worker) = Offload::assemble(Arc::clone(&device), now, &OffloadConfig::default());
        let agent = offload.agent(0, Box::new(|| {}));
        let slowpath = Arc::new(Slowpath::new(Options::default()));
        slowpath.set_ports([(IN, "p1".to_owned()), (OUT, "p2".to_owned())].into());
        slowpath.load("actions=drop\n", &(), now).unwrap();
        // Room for no flow that rules make: all flows here are made by hand.
        let shared = Arc::new(Shared::new(slowpath, now, 0, Duration::from_secs(3_600), false));
        let seeds = Seeds::random();
        let table = FlowTable::new(seeds.clone(), Namer::random(), agent);
        let mut pipeline = Pipeline::new(shared, Arc::new(PollerCounters::default()), table, seeds);
        let seen = Seen::default();
        let limits = Arc::new(PortLimits { mtu: AtomicU32::new(1_500) });
        let output = Output::new(Tx::Own(Box::new(seen.clone())), false, false, limits, Arc::default());
        pipeline.outputs.add(OUT, output);

        let wire = Wire::default();
        device.connect(&port(), 1_500, None, None);
        let queue = device.wrap_rx(&port(), Box::new(wire.clone()));
        let progress = Arc::new(RxProgress::new(device.ring(QUEUE)));
        offload.port_added(port(), if quarantine { vec![Arc::clone(&progress)] } else { Vec::new() });
        let inbox = Arc::new(Inbox::default());
        let reports = Reports { channel: std::sync::mpsc::channel().0, wake: Arc::new(|| ()) };
        let mut poller = Poller::new(now, pipeline, Arc::clone(&inbox), Arc::new(Doorbell::new().unwrap()), reports);
        let receiver = Receiver::new((IN, 0), queue, progress, Arc::default(), Arc::default());
        inbox.send(Message::AddRx(Box::new(receiver)));
        assert!(poller.chores(now).is_continue());
        Bench { poller, offload, worker, wire, seen, now, flows: 0 }
    }

    /// A new flow, which writes its number into the source address of its packets.
    fn make(&mut self) -> u32 {
        self.flows += 1;
        let flow = self.flows;
        let actions = parse_actions(&format!("set(ipv4(src={})),2", address(9, flow)), &()).unwrap();
        let number = self.poller.pipeline.shared.decision_number();
        let new = NewFlow { ufid: None, matching: matching(flow), actions, number };
        self.poller.pipeline.add_flow(self.now, new).unwrap();
        flow
    }

    fn kill(&mut self, flow: u32) {
        self.poller.pipeline.delete_flow(self.now, &Which::Match(Box::new(matching(flow)))).unwrap();
    }

    /// A packet of `flow` comes to the NIC.
    fn arrive(&self, flow: u32) {
        let text = format!(
            "eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02),eth_type(0x0800),\
             ipv4(src=10.200.0.1,dst={},proto=17,ttl=64),udp(src=1,dst=2)",
            address(0, flow)
        );
        let mut packet = Packet::from_bytes(&compose(parse_flow(&text, &()).unwrap().matching.key(), 0));
        packet.meta.in_port = IN;
        self.wire.0.lock().unwrap().push_back(packet);
    }

    /// The worker does all that it has to do, a moment later, and the poller hears of it.
    fn work(&mut self) {
        self.now += Duration::from_millis(5);
        for _ in 0..1_000 {
            self.worker.turn(self.now);
            if !self.worker.has_work(self.now) {
                break;
            }
        }
        assert!(self.poller.chores(self.now).is_continue());
    }

    /// The poller looks once; whether any frame came.
    fn look(&mut self) -> bool {
        self.poller.turn(self.now) > 0
    }

    /// `rounds` of: flows come, the ring is full of their frames, they go and others come while it is emptied.
    fn churn(&mut self, rounds: u32) -> Outcome {
        for round in 0..rounds {
            // Some rounds leave no mark unused, others most.
            let flows: Vec<u32> = (0..40 + round * 37 % 90).map(|_| self.make()).collect();
            self.work();
            (0..RING).for_each(|i| self.arrive(flows[i % flows.len()]));
            self.look();
            flows.iter().for_each(|flow| self.kill(*flow));
            let heirs: Vec<u32> = (0..flows.len()).map(|_| self.make()).collect();
            // The worker is quick: it has put the heirs while most of the ring is still to be looked at.
            (0..1 + round % 4).for_each(|_| self.work());
            for (i, heir) in heirs.iter().enumerate() {
                self.arrive(*heir);
                if i % 16 == 0 {
                    self.look();
                    self.work();
                }
            }
            while self.look() {
                self.work();
            }
            // An empty ring is looked at often enough for every mark to come back.
            (0..3).for_each(|_| {
                self.look();
                self.work();
            });
            heirs.iter().for_each(|heir| self.kill(*heir));
            self.work();
        }
        let seen = self.seen.0.lock().unwrap();
        Outcome {
            strangers: seen.iter().filter(|(own, done)| own != done).count(),
            sent: seen.len(),
            stale: self.poller.pipeline.counters.doings.mark_unbound.get(),
            put: self.offload.snapshot().operations.put.done,
        }
    }
}

#[test]
fn no_packet_of_a_full_ring_of_stale_marks_meets_a_strangers_actions() {
    let mut bench = Bench::new(true);
    let outcome = bench.churn(100);
    assert_eq!(outcome.strangers, 0, "{outcome:?}");
    assert!(outcome.stale > 100 * RING as u64 / 2, "the ring was not full of stale marks: {outcome:?}");
    assert!(outcome.put > 20 * 255, "marks were not used again: {outcome:?}");
    assert!(outcome.sent > 5_000, "{outcome:?}");
    let marks = bench.offload.snapshot().marks;
    assert!(marks.in_use + marks.quarantined <= marks.capacity && marks.capacity == 255, "{marks:?}");
}

#[test]
fn marks_without_a_quarantine_are_found_out_by_the_same_check() {
    let outcome = Bench::new(false).churn(100);
    assert!(outcome.strangers > 1_000, "{outcome:?}");
}
