//! Whose packets the device marks when ten thousand flows want to be in it and a thousand fit: soon those of the
//! busiest, and not of those that came first.
//!
//! Time is virtual: the pipeline, the simulated NIC and the workers are the real ones, and the test takes their steps.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

use offloadd::datapath::counters::{PollerCounters, PortCounters};
use offloadd::datapath::hash::Seeds;
use offloadd::datapath::output::{Output, PortLimits, Tx};
use offloadd::datapath::pipeline::Pipeline;
use offloadd::datapath::shared::Shared;
use offloadd::datapath::sweep::Sweep;
use offloadd::datapath::table::{FlowTable, Namer};
use offloadd::flow::PortNo;
use offloadd::flow::key::{eth_type, ip_proto};
use offloadd::flow::{Field, Key};
use offloadd::offload::backend::open;
use offloadd::offload::worker::Worker;
use offloadd::offload::{Offload, OffloadConfig};
use offloadd::packet::compose::compose;
use offloadd::packet::{BATCH, Packet, Pool};
use offloadd::port::{Kind, PortInfo, RxProgress, RxQueue, Sent, TxQueue};
use offloadd::slowpath::Slowpath;

const FLOWS: usize = 10_000;
const CAPACITY: usize = 1_000;
/// Packets a second of virtual time.
const RATE: u64 = 100_000;
/// Until rules have come and gone as they will.
const SETTLING: Duration = Duration::from_secs(20);
/// What is measured afterwards.
const MEASURED: Duration = Duration::from_secs(3);
/// The share of the best possible that must be reached.
const NEAR: f64 = 0.95;

/// Numbers that look random and are the same every time (splitmix64).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// At least 0 and below 1.
    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Packets of flows whose popularity follows Zipf's law: that of rank r is in proportion to 1/r.
struct Zipf {
    dice: Dice,
    /// The share of the traffic of each rank and those above it.
    summed: Vec<f64>,
    /// The flow of each rank.
    flows: Vec<u16>,
    frames: Vec<Vec<u8>>,
}

impl Zipf {
    fn new(seed: u64) -> Zipf {
        let mut dice = Dice(seed);
        let all: f64 = (1..=FLOWS).map(|rank| 1.0 / rank as f64).sum();
        let share = |sum: &mut f64, rank: usize| {
            *sum += 1.0 / rank as f64 / all;
            Some(*sum)
        };
        let summed = (1..=FLOWS).scan(0.0, share).collect();
        let mut flows: Vec<u16> = (0..FLOWS as u16).collect();
        for at in (1..FLOWS).rev() {
            flows.swap(at, dice.next() as usize % (at + 1));
        }
        let frames = (0..FLOWS as u16).map(|flow| compose(&key(flow), 60)).collect();
        Zipf { dice, summed, flows, frames }
    }

    /// The share of the traffic that the busiest `n` flows have: no choice of `n` flows has more.
    fn best(&self, n: usize) -> f64 {
        self.summed[n - 1]
    }
}

impl RxQueue for Zipf {
    fn receive(&mut self, _now: Instant, pool: &mut Pool, into: &mut Vec<Packet>) -> io::Result<usize> {
        for _ in 0..BATCH {
            let share = self.dice.share();
            let rank = self.summed.partition_point(|sum| *sum <= share).min(FLOWS - 1);
            let frame = &self.frames[usize::from(self.flows[rank])];
            let mut packet = pool.take();
            packet.set_len(frame.len());
            packet.bytes_mut().copy_from_slice(frame);
            packet.meta.in_port = PortNo(1);
            into.push(packet);
        }
        Ok(BATCH)
    }

    fn readable(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// A transmit queue that takes everything and keeps nothing.
struct Null;

impl TxQueue for Null {
    fn transmit(&mut self, _now: Instant, pool: &mut Pool, packets: &mut Vec<Packet>) -> Sent {
        let sent = Sent { packets: packets.len() as u64, ..Sent::default() };
        pool.give_all(packets);
        sent
    }
}

/// A poller, a device that is too small, and workers that are stepped by hand.
struct World {
    now: Instant,
    start: Instant,
    pipeline: Pipeline,
    sweep: Sweep,
    queue: Box<dyn RxQueue>,
    progress: Arc<RxProgress>,
    workers: Vec<Worker>,
    offload: Offload,
    batch: Vec<Packet>,
}

impl World {
    fn new(zipf: Zipf, workers: usize) -> World {
        let now = Instant::now();
        let device = open(&format!("sim,capacity={CAPACITY}").parse().unwrap(), now).unwrap();
        let config = OffloadConfig { threads: workers, ..OffloadConfig::default() };
        let (offload, workers) = Offload::assemble_many(Arc::clone(&device), now, &config);
        let progress = Arc::new(RxProgress::new(64));
        offload.port_added(port(), vec![Arc::clone(&progress)]);
        let queue = device.wrap_rx(&port(), Box::new(zipf));

        let slowpath = Arc::new(Slowpath::default());
        slowpath.set_ports(vec![(PortNo(1), "in".to_owned()), (PortNo(2), "out".to_owned())]);
        // What the first rule wants every packet is compared with, so each source port gets a megaflow of its own.
        let rules = ["priority=1,udp,tp_src=65535,actions=drop", "priority=0,actions=output:2"];
        slowpath.add_rules(rules, &(), now).unwrap();
        // No flow is deleted for being rare.
        let shared = Arc::new(Shared::new(slowpath, now, 2 * FLOWS, Duration::from_secs(3_600), true));
        let seeds = Seeds::random();
        let table = FlowTable::new(seeds.clone(), Namer::random(), offload.agent(0, Box::new(|| {})));
        let mut pipeline = Pipeline::new(shared, Arc::new(PollerCounters::default()), table, seeds);
        let limits = Arc::new(PortLimits { mtu: AtomicU32::new(1_500) });
        pipeline.outputs.add(
            PortNo(2),
            Output::new(Tx::Own(Box::new(Null)), false, false, limits, Arc::new(PortCounters::default())),
        );
        let batch = Vec::with_capacity(BATCH);
        World { now, start: now, pipeline, sweep: Sweep::new(now), queue, progress, workers, offload, batch }
    }

    /// Lets `time` pass under traffic. Answers with the share of packets that marks handled.
    fn run(&mut self, time: Duration) -> f64 {
        let (until, marked) = (self.now + time, self.marked());
        let mut packets = 0;
        while self.now < until {
            self.now += Duration::from_nanos(BATCH as u64 * 1_000_000_000 / RATE);
            let taken = self.queue.receive(self.now, &mut self.pipeline.pool, &mut self.batch).unwrap();
            self.progress.took(taken);
            packets += taken as u64;
            self.pipeline.process(self.now, &mut self.batch);
            self.pipeline.table.take_events();
            self.pipeline.table.chores(self.now);
            self.sweep.slice(self.now, &mut self.pipeline);
            for worker in &mut self.workers {
                if worker.has_work(self.now) {
                    worker.turn(self.now);
                }
            }
        }
        (self.marked() - marked) as f64 / packets as f64
    }

    fn marked(&self) -> u64 {
        self.pipeline.counters.lookup.mark_hit.get()
    }
}

/// Lets a device fill up, and then make room for the busiest.
fn the_busiest_get_in(workers: usize) {
    let zipf = Zipf::new(2_017);
    let best = zipf.best(CAPACITY);
    let mut world = World::new(zipf, workers);
    // Nothing is swapped before there are rates: until then the rules are those of whoever came first.
    let mut came_first = 0.0;
    loop {
        let share = world.run(Duration::from_millis(100));
        if world.offload.snapshot().evictions > 0 {
            break;
        }
        came_first = share;
        assert!(world.now - world.start < SETTLING, "nobody makes room: {:#?}", world.offload.snapshot());
    }
    let mut course = Vec::new();
    while world.now - world.start < SETTLING {
        course.push(format!("{:.1}", 100.0 * world.run(Duration::from_secs(2))));
    }
    let evictions = world.offload.snapshot().evictions;
    let reached = world.run(MEASURED);
    let snapshot = world.offload.snapshot();
    println!(
        "{workers} workers, {FLOWS} flows, room for {CAPACITY}: {:.1} % of packets are handled by marks, of {:.1} % possible; \
         first come, first served: {:.1} %; {} evictions in {:?}, {} more while measuring; every 2 s: {}",
        100.0 * reached,
        100.0 * best,
        100.0 * came_first,
        evictions,
        SETTLING,
        snapshot.evictions - evictions,
        course.join(", "),
    );
    assert!(snapshot.rules <= CAPACITY);
    assert!(reached >= NEAR * best, "{reached} of {best} possible");
    assert!(came_first < NEAR * best && came_first < reached, "first come, first served is as good: {came_first}");
}

#[test]
fn the_busiest_of_zipf_traffic_are_in_a_small_device_almost_as_if_it_had_been_foreseen() {
    the_busiest_get_in(1);
}

#[test]
fn four_workers_choose_as_well_as_one() {
    the_busiest_get_in(4);
}

fn key(flow: u16) -> Key {
    let mut key = Key::ZERO;
    key.set(Field::InPort, 1u32);
    key.set(Field::EthDst, 0x0200_0000_0002u64);
    key.set(Field::EthSrc, 0x0200_0000_0001u64);
    key.set(Field::EthType, eth_type::IPV4);
    key.set(Field::IpProto, ip_proto::UDP);
    key.set(Field::IpTtl, 64u8);
    key.set(Field::Ipv4Src, 0x0a00_0001u32);
    key.set(Field::Ipv4Dst, 0xac10_0001u32);
    key.set(Field::TpSrc, flow + 1);
    key.set(Field::TpDst, 80u16);
    key
}

fn port() -> PortInfo {
    PortInfo {
        name: "in".to_owned(),
        number: PortNo(1),
        kind: Kind::Sim,
        ifindex: None,
        rx_queues: 1,
        tx_checksum: false,
        tx_segment: false,
        ring: 64,
    }
}
