//! A million changes of a thousand flows, while the device takes five thousand operations a second: what it does in the
//! end is what was wanted last, and it was not asked for what nobody wanted any more.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use offloadd::flow::key::{eth_type, ip_proto};
use offloadd::flow::{Action, Actions, Assign, Field, Header, Key, Mask, Match, PortNo, Set, Ufid};
use offloadd::offload::backend::{Device, open};
use offloadd::offload::{Agent, FlowSlot, Level, Offload, OffloadCell, OffloadConfig, Standing};
use offloadd::packet::compose::compose;
use offloadd::packet::extract::extract;
use offloadd::packet::{BATCH, Packet, Pool};
use offloadd::port::{Kind, PortInfo, RxProgress, RxQueue, Sent, TxQueue};

type Cell = offloadd::sync::Arc<OffloadCell>;

const FLOWS: usize = 1_000;
/// An unoptimized build is so slow at asking that it makes do with a tenth.
const CHANGES: u64 = if cfg!(debug_assertions) { 100_000 } else { 1_000_000 };
/// What the device may be asked for at most: a fiftieth of the changes.
const OPERATIONS: u64 = 20_000;
const IN: PortNo = PortNo(1);
const OUT: PortNo = PortNo(2);

/// A wire whose other end the test looks at.
#[derive(Clone, Default)]
struct Wire(Arc<Mutex<Vec<Key>>>);

impl TxQueue for Wire {
    fn transmit(&mut self, _now: Instant, pool: &mut Pool, packets: &mut Vec<Packet>) -> Sent {
        let sent = Sent { packets: packets.len() as u64, ..Sent::default() };
        self.0.lock().unwrap().extend(packets.iter().map(extract));
        pool.give_all(packets);
        sent
    }
}

/// A receive queue that delivers what the test gives it.
struct Given(Arc<Mutex<Vec<Packet>>>);

impl RxQueue for Given {
    fn receive(&mut self, _now: Instant, _pool: &mut Pool, into: &mut Vec<Packet>) -> io::Result<usize> {
        into.append(&mut self.0.lock().unwrap());
        Ok(into.len())
    }

    fn readable(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// A thousand flows in a device that forwards by itself, and a packet of each.
struct World {
    device: Arc<dyn Device>,
    offload: Offload,
    agent: Agent,
    cells: Vec<Cell>,
    /// The newest decision of each flow.
    wanted: Vec<u64>,
    frames: Vec<Vec<u8>>,
    arriving: Arc<Mutex<Vec<Packet>>>,
    queue: Box<dyn RxQueue>,
    progress: Arc<RxProgress>,
    wire: Wire,
}

impl World {
    fn new() -> World {
        let epoch = Instant::now();
        let device = open(&"sim,preset=fw,level=full".parse().unwrap(), epoch).unwrap();
        let wire = Wire::default();
        device.connect(&port(IN), 1_500, None, None);
        device.connect(&port(OUT), 1_500, Some(Box::new(wire.clone())), None);
        let arriving = Arc::new(Mutex::new(Vec::new()));
        let queue = device.wrap_rx(&port(IN), Box::new(Given(Arc::clone(&arriving))));
        let offload = Offload::start(Arc::clone(&device), epoch, OffloadConfig::default()).unwrap();
        let progress = Arc::new(RxProgress::new(64));
        offload.port_added(port(IN), vec![Arc::clone(&progress)]);
        offload.port_added(port(OUT), Vec::new());
        let agent = offload.agent(0, Box::new(|| {})).unwrap();
        let adopt = |n: usize| {
            let slot = FlowSlot { index: n as u32, generation: 1 };
            let matching = Match::new(&key(n), &mask());
            agent.adopt(Instant::now(), slot, Ufid(n as u128), matching, rewrite(0), 0)
        };
        let cells = (0..FLOWS).map(adopt).collect();
        let frames = (0..FLOWS).map(|n| compose(&key(n), 60)).collect();
        World { device, offload, agent, cells, wanted: vec![0; FLOWS], frames, arriving, queue, progress, wire }
    }

    /// Decision number `decision`, about the flow whose turn it is.
    fn change(&mut self, decision: u64) {
        let flow = decision as usize % FLOWS;
        self.wanted[flow] = decision;
        self.agent.update(Instant::now(), &self.cells[flow], rewrite(decision), decision);
    }

    /// What a poller does between batches: marks of rules that were removed leave quarantine for it.
    fn chores(&self) {
        self.agent.drain(|_| ());
        self.progress.took(0);
    }

    /// By which decision the device sends on a packet of each flow; `None` where it leaves it to the poller.
    fn acts_by(&mut self) -> Vec<Option<u64>> {
        let mut pool = Pool::new();
        let mut acts = vec![None; FLOWS];
        for (chunk, frames) in self.frames.chunks(BATCH).enumerate() {
            // A batch that meets a change of the table passes unmatched, and is sent again.
            let busy = self.busy();
            loop {
                let mut packets: Vec<_> = frames.iter().map(|frame| Packet::from_bytes(frame)).collect();
                packets.iter_mut().for_each(|packet| packet.meta.in_port = IN);
                self.arriving.lock().unwrap().append(&mut packets);
                let before = self.busy();
                self.queue.receive(Instant::now(), &mut pool, &mut Vec::new()).unwrap();
                if self.busy() == before {
                    break;
                }
                assert!(self.busy() - busy < 1_000_000, "the device is never at rest");
            }
            for key in self.wire.0.lock().unwrap().drain(..) {
                let flow = key.get(Field::TpSrc) as usize;
                assert!((chunk * BATCH..(chunk + 1) * BATCH).contains(&flow));
                acts[flow] = Some(key.get(Field::Ipv4Dst) as u64);
            }
        }
        acts
    }

    fn busy(&self) -> u64 {
        self.device.port_counts(IN).unwrap().busy
    }

    /// Waits until every flow is in the device and no change of one waits.
    fn settle(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        let settled = |world: &World| {
            let queue = world.offload.queue();
            let full = |cell: &Cell| cell.standing() == Standing::Offloaded(Level::Full);
            queue.depth + queue.deletes == 0
                && world.offload.snapshot().workers.iter().all(|worker| worker.busy_ns.is_none())
                && world.cells.iter().all(full)
        };
        while !settled(self) {
            assert!(Instant::now() < deadline, "{:#?}", self.offload.snapshot());
            self.chores();
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn a_million_changes_of_a_thousand_flows_end_in_few_operations_and_the_newest_actions() {
    let mut world = World::new();
    world.settle();
    let begun = Instant::now();
    let before = world.offload.snapshot().operations.total();
    (1..=CHANGES / 2).for_each(|decision| world.change(decision));

    // In the midst of it: what was wanted earlier must go, however much is wanted later.
    let wanted_at_flush = world.wanted.clone();
    let mut flush = world.offload.flush();
    let mut flushed = None;
    let mut decisions = CHANGES / 2 + 1..=CHANGES;
    while flushed.is_none() || !decisions.is_empty() {
        if decisions.is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(60), "{:#?}", world.offload.snapshot());
            std::thread::sleep(Duration::from_millis(1));
        }
        decisions.by_ref().take(1_000).for_each(|decision| world.change(decision));
        world.chores();
        if flushed.is_none()
            && let Some(answer) = flush.try_recv().unwrap()
        {
            for (flow, acts) in world.acts_by().into_iter().enumerate() {
                assert!(acts.is_none_or(|acts| acts >= wanted_at_flush[flow]), "flow {flow} by {acts:?}");
            }
            flushed = Some(answer);
        }
    }
    let flushed = flushed.unwrap();
    assert_eq!((flushed.removed, &flushed.trouble), (FLOWS, &None));
    world.settle();
    let (took, snapshot) = (begun.elapsed(), world.offload.snapshot());

    let operations = snapshot.operations.total() - before;
    println!(
        "{CHANGES} changes of {FLOWS} flows and a flush: {operations} operations in {took:.1?}; {} requests coalesced",
        snapshot.queue.coalesced
    );
    assert!(operations <= OPERATIONS, "{operations} operations");
    assert!(snapshot.queue.high_water <= FLOWS, "a flow waits once at most");
    let acts = world.acts_by();
    for (flow, wanted) in world.wanted.iter().enumerate() {
        assert_eq!(acts[flow], Some(*wanted), "flow {flow}");
    }
    assert!(took < Duration::from_secs(20), "{took:?}");
}

/// Writes the decision's number into the packet, and sends it.
fn rewrite(decision: u64) -> Actions {
    let set = Set::new(Header::Ipv4, &[Assign::full(Field::Ipv4Dst, decision.into())]).unwrap();
    Actions::new(vec![Action::Set(set), Action::Output(OUT)])
}

/// A UDP packet whose source port is the flow's number.
fn key(n: usize) -> Key {
    let mut key = Key::ZERO;
    key.set(Field::InPort, IN.0);
    key.set(Field::EthDst, 0x0200_0000_0002u64);
    key.set(Field::EthSrc, 0x0200_0000_0001u64);
    key.set(Field::EthType, eth_type::IPV4);
    key.set(Field::IpProto, ip_proto::UDP);
    key.set(Field::IpTtl, 64u8);
    key.set(Field::Ipv4Src, 0x0a00_0001u32);
    key.set(Field::Ipv4Dst, 0xac10_0001u32);
    key.set(Field::TpSrc, n as u16);
    key.set(Field::TpDst, 80u16);
    key
}

fn mask() -> Mask {
    let mut mask = Mask::EMPTY;
    let fields = [Field::InPort, Field::EthType, Field::IpProto, Field::IpFrag, Field::TpSrc];
    fields.into_iter().for_each(|field| mask.add_field(field));
    mask
}

fn port(number: PortNo) -> PortInfo {
    PortInfo {
        name: format!("p{number}"),
        number,
        kind: Kind::Sim,
        ifindex: None,
        rx_queues: 1,
        tx_checksum: false,
        tx_segment: false,
        ring: 64,
    }
}
