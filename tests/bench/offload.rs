//! What offload costs a poller: asking for a flow, and (where the NIC is simulated) the NIC.

use std::hint::black_box;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use offloadd::flow::{Match, PortNo, Ufid};
use offloadd::offload::backend::{Install, sim};
use offloadd::offload::mark::Mark;
use offloadd::offload::{Agent, FlowSlot, Level, Offload, OffloadConfig};
use offloadd::packet::compose::compose;
use offloadd::packet::{BATCH, Packet, Pool};
use offloadd::port::{Kind, PortInfo, RxQueue};

use crate::rig;

pub fn bench(c: &mut Criterion) {
    adopt(c);
    operate(c);
    stamp(c);
}

fn adopt(c: &mut Criterion) {
    let mut g = c.benchmark_group("offload adopt");
    g.throughput(Throughput::Elements(1));
    g.bench_function("worker awake", |b| {
        b.iter_custom(|flows| {
            // A worker that has taken no turn is not asleep.
            let device = sim::open(sim::Options::default(), Instant::now());
            let config = OffloadConfig { queue_limit: usize::MAX, ..OffloadConfig::default() };
            let (offload, _worker) = Offload::assemble(device, Instant::now(), &config);
            let agent = offload.agent(0, Box::new(|| {})).expect("there is a device");
            (0..flows).map(|n| adopt_one(&agent, n as u32)).sum()
        });
    });
    let device = sim::open(sim::Options::default(), Instant::now());
    let offload = Offload::start(device, Instant::now(), OffloadConfig::default()).expect("a thread can be started");
    let agent = offload.agent(0, Box::new(|| {})).expect("there is a device");
    let mut n = 0;
    g.bench_function("worker asleep", |b| {
        b.iter_custom(|flows| {
            let (mut time, mut woken) = (Duration::ZERO, 0);
            while woken < flows {
                // Long enough for the worker to go to sleep, mostly; whether it had is seen afterwards.
                std::thread::sleep(Duration::from_micros(100));
                let wakeups = offload.queue().wakeups;
                n += 1;
                let one = adopt_one(&agent, n);
                if offload.queue().wakeups > wakeups {
                    (time, woken) = (time + one, woken + 1);
                }
            }
            time
        });
    });
    g.finish();
}

/// The time of one [`Agent::adopt`]; the flow is given back afterwards.
fn adopt_one(agent: &Agent, n: u32) -> Duration {
    let matching = Match::new(&rig::key(n), &rig::tuple_mask(32));
    let actions = rig::output();
    let now = Instant::now();
    let begun = Instant::now();
    let slot = FlowSlot { index: n, generation: 1 };
    let cell = agent.adopt(now, slot, Ufid(n.into()), matching, actions, u64::from(n));
    let time = begun.elapsed();
    agent.release(now, &cell);
    time
}

/// What a put and a delete cost in the simulated NIC, which is to cost a worker nothing when it is to be measured.
fn operate(c: &mut Criterion) {
    let mut g = c.benchmark_group("simulated NIC put and delete");
    for (rules, name) in [(1, "empty table"), (1_000, "1k rules"), (100_000, "100k rules")] {
        let device = sim::open(sim::Options::default(), Instant::now());
        let mut backend = device.channel();
        let (mask, actions) = (rig::tuple_mask(32), rig::output());
        let matches: Vec<Match> = (0..rules).map(|n| Match::new(&rig::key(n), &mask)).collect();
        let install = |matching| Install {
            matching,
            actions: &actions,
            mark: Mark::new(1).expect("not 0"),
            level: Level::Mark,
            in_port: Some(rig::IN),
        };
        let mut handles: Vec<_> =
            matches.iter().map(|matching| backend.put(install(matching)).expect("there is room").0).collect();
        let mut next = (0..matches.len()).cycle();
        g.bench_function(name, |b| {
            b.iter(|| {
                // A cycle has no end.
                let at = next.next().unwrap_or(0);
                backend.delete(handles[at]).expect("it does not fail");
                handles[at] = backend.put(install(&matches[at])).expect("there is room").0;
            });
        });
    }
    g.finish();
}

/// The simulated NIC's own table: no part of what the switch costs with a real one.
fn stamp(c: &mut Criterion) {
    let mut g = c.benchmark_group("simulated NIC stamping");
    g.throughput(Throughput::Elements(BATCH as u64));
    for (flows, name) in [(0, "empty table"), (1, "1 rule"), (1_000, "1k rules"), (10_000, "10k rules")] {
        let device = sim::open(sim::Options::default(), Instant::now());
        let mut backend = device.channel();
        for n in 0..flows {
            let install = Install {
                matching: &Match::new(&rig::key(n), &rig::tuple_mask(32)),
                actions: &rig::output(),
                mark: Mark::new(n + 1).expect("not 0"),
                level: Level::Mark,
                in_port: Some(rig::IN),
            };
            backend.put(install).expect("there is room");
        }
        let packets = (0..flows.max(1)).map(packet).collect();
        let mut queue = device.wrap_rx(&port(), Box::new(Wheel { packets, next: 0 }));
        let (now, mut pool, mut batch) = (Instant::now(), Pool::new(), Vec::with_capacity(BATCH));
        g.bench_function(name, |b| {
            b.iter(|| {
                queue.receive(now, &mut pool, &mut batch).expect("a wheel does not break");
                black_box(&mut batch);
                pool.give_all(&mut batch);
            });
        });
    }
    g.finish();
}

fn packet(n: u32) -> Packet {
    let mut packet = Packet::from_bytes(&compose(&rig::key(n), 60));
    packet.meta.in_port = rig::IN;
    packet
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
        ring: 1_024,
    }
}

/// A receive queue that gives copies of the same packets in turn.
struct Wheel {
    packets: Vec<Packet>,
    next: usize,
}

impl RxQueue for Wheel {
    fn receive(&mut self, _now: Instant, pool: &mut Pool, into: &mut Vec<Packet>) -> io::Result<usize> {
        for _ in 0..BATCH {
            into.push(pool.copy(&self.packets[self.next]));
            self.next = (self.next + 1) % self.packets.len();
        }
        Ok(into.len())
    }

    fn readable(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
