//! What a worker does in a second: `cargo bench --bench throughput`.
//!
//! Flows wait in the queue before the clock starts, and the workers' threads do nothing but take turns until there is
//! nothing left to do: puts first, then deletes. So a number is that of the workers alone, without the poller that asks.
//! The device either is the simulated NIC, as fast as it can, or counts and does nothing else: then all of the time is
//! the workers' own.
//!
//! Beside it, how long a worker that sleeps needs from a request to the start of its operation.
//! `cargo bench --bench throughput -- --test` sees that it can be run.

#[allow(dead_code, reason = "the benches use the rest of it")]
mod rig;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use offloadd::flow::{Mask, Match, Ufid};
use offloadd::offload::backend::{
    ActionSet, Backend, BackendCaps, DeleteError, Device, Done, Fence, FlushError, Generation, Handle, Install,
    PutError, StatsError, sim,
};
use offloadd::offload::worker::Worker;
use offloadd::offload::{Agent, FlowSlot, FlowStats, Level, Offload, OffloadConfig};
use offloadd::port::{Kind, PortInfo, RxProgress};
use offloadd::telemetry::Histogram;

/// Flows of one measurement.
const FLOWS: u32 = 100_000;
/// Measurements of each kind; the median is told.
const ROUNDS: usize = 9;
/// Requests to a worker that sleeps.
const WAKES: u64 = 4_000;

fn main() {
    let test = std::env::args().any(|arg| arg == "--test");
    let (flows, rounds, wakes) = if test { (1_000, 1, 20) } else { (FLOWS, ROUNDS, WAKES) };
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    println!("{cores} processors; {flows} flows at a time, median (and range) of {rounds} rounds\n");
    println!("{:<34} {:>26} {:>26} {:>26}", "operations a second", "puts", "deletes", "both");
    for workers in [1, 2] {
        for (name, device) in [
            ("simulated NIC, preset=instant", (|| sim::open(sim::Options::default(), Instant::now())) as fn() -> _),
            ("a device that only counts", || Arc::new(Counter(Counting::new(false)))),
        ] {
            let rounds: Vec<Round> = (0..rounds).map(|_| round(device(), workers, flows)).collect();
            let rate = |time: fn(&Round) -> Duration, operations: u32| {
                rates(rounds.iter().map(|round| f64::from(operations) / time(round).as_secs_f64()).collect())
            };
            let (puts, deletes) = (rate(|round| round.puts, flows), rate(|round| round.deletes, flows));
            let both = rate(|round| round.puts + round.deletes, 2 * flows);
            println!("{:<34} {puts:>26} {deletes:>26} {both:>26}", format!("{workers} × {name}"));
        }
    }
    wake_up(wakes);
}

/// How long the workers took.
struct Round {
    puts: Duration,
    deletes: Duration,
}

/// Has `workers` workers put `flows` flows and delete them.
fn round(device: Arc<dyn Device>, workers: usize, flows: u32) -> Round {
    let epoch = Instant::now();
    let config = OffloadConfig { threads: workers, queue_limit: usize::MAX, ..OffloadConfig::default() };
    let (offload, mut crew) = Offload::assemble_many(device, epoch, &config);
    let agent = offload.agent(0, Box::new(|| {})).expect("there is a device");
    let progress = Arc::new(RxProgress::new(1_024));
    offload.port_added(port(), vec![Arc::clone(&progress)]);
    // Ports, agents: nothing of it is measured.
    work(&mut crew);
    let now = Instant::now();
    let cells: Vec<_> = (0..flows).map(|n| adopt(&agent, now, n)).collect();
    let puts = work(&mut crew);
    agent.drain(|_| ());
    let now = Instant::now();
    cells.iter().for_each(|cell| agent.release(now, cell));
    let deletes = work(&mut crew);
    let done = offload.snapshot().operations;
    assert_eq!((done.put.done, done.delete.done), (flows.into(), flows.into()), "each flow was put and deleted once");
    Round { puts, deletes }
}

/// Has each worker take turns in a thread of its own until the queues are empty. Answers with how long that took from the
/// start of the first to the end of the last.
fn work(crew: &mut [Worker]) -> Duration {
    let start = Barrier::new(crew.len());
    let spans: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = crew.iter_mut().map(|worker| scope.spawn(|| drain(worker, &start))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a worker does not panic")).collect()
    });
    let (begun, ended) = spans.into_iter().reduce(|a, b| (a.0.min(b.0), a.1.max(b.1))).expect("there is a worker");
    ended - begun
}

fn drain(worker: &mut Worker, start: &Barrier) -> (Instant, Instant) {
    start.wait();
    let begun = Instant::now();
    loop {
        let now = Instant::now();
        worker.turn(now);
        if !worker.has_work(now) {
            return (begun, Instant::now());
        }
    }
}

fn adopt(agent: &Agent, now: Instant, n: u32) -> offloadd::sync::Arc<offloadd::offload::OffloadCell> {
    let matching = Match::new(&rig::key(n), &rig::tuple_mask(32));
    agent.adopt(now, FlowSlot { index: n, generation: 1 }, Ufid(n.into()), matching, rig::output(), n.into())
}

/// The time from a request to a worker that sleeps to the start of its operation.
fn wake_up(wakes: u64) {
    let device = Counting::new(true);
    let epoch = device.epoch;
    let offload = Offload::start(Arc::new(Counter(Arc::clone(&device))), epoch, OffloadConfig::default())
        .expect("a thread starts");
    offload.port_added(port(), Vec::new());
    let agent = offload.agent(0, Box::new(|| {})).expect("there is a device");
    let times = Histogram::default();
    let mut n = 0;
    while times.count() < wakes {
        // Long enough for the worker to go to sleep, mostly; whether it had is seen afterwards.
        std::thread::sleep(Duration::from_micros(300));
        let (woken, puts) = (offload.queue().wakeups, device.puts.load(Ordering::Acquire));
        n += 1;
        let asked = epoch.elapsed().as_nanos() as u64;
        let cell = adopt(&agent, Instant::now(), n);
        while device.puts.load(Ordering::Acquire) == puts {
            std::thread::sleep(Duration::from_micros(50));
        }
        if offload.queue().wakeups > woken {
            times.record(device.begun_ns.load(Ordering::Acquire) - asked);
        }
        agent.release(Instant::now(), &cell);
        agent.drain(|_| ());
    }
    println!(
        "\nfrom a request to the start of its operation, worker asleep: p50 {:.1} µs, p99 {:.1} µs, max {:.1} µs of {wakes}",
        times.at(0.5) as f64 / 1e3,
        times.at(0.99) as f64 / 1e3,
        times.max() as f64 / 1e3,
    );
}

/// A device that counts, and does nothing else.
struct Counting {
    epoch: Instant,
    /// Looks at the clock when a put begins; it costs as much as a few puts.
    timed: bool,
    puts: AtomicU64,
    /// When the newest put began, in nanoseconds from `epoch`.
    begun_ns: AtomicU64,
    fence: Fence,
}

/// A worker's end of it.
struct Channel(Arc<Counting>);

impl Counting {
    fn new(timed: bool) -> Arc<Counting> {
        let (puts, begun_ns) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Counting { epoch: Instant::now(), timed, puts, begun_ns, fence: Fence::default() })
    }
}

/// A device whose channels hold it.
struct Counter(Arc<Counting>);

impl Device for Counter {
    fn capabilities(&self) -> BackendCaps {
        BackendCaps {
            name: "counter",
            fields: Mask::EXACT,
            level: Level::Mark,
            actions: ActionSet::NONE,
            capacity: None,
            mark_bits: 32,
            replace_in_place: true,
        }
    }

    fn channel(&self) -> Box<dyn Backend> {
        Box::new(Channel(Arc::clone(&self.0)))
    }

    fn fence(&self) -> Fence {
        self.0.fence.clone()
    }

    fn restart(&self) -> Result<(), FlushError> {
        Ok(())
    }
}

impl Backend for Channel {
    fn put(&mut self, _: Install<'_>) -> Result<(Handle, Done), PutError> {
        if self.0.timed {
            self.0.begun_ns.store(self.0.epoch.elapsed().as_nanos() as u64, Ordering::Release);
        }
        Ok((Handle(self.0.puts.fetch_add(1, Ordering::Release)), Done::at(Level::Mark)))
    }

    fn replace(&mut self, _: Handle, _: Install<'_>) -> Result<Done, PutError> {
        Ok(Done::at(Level::Mark))
    }

    fn delete(&mut self, _: Handle) -> Result<FlowStats, DeleteError> {
        Ok(FlowStats::default())
    }

    fn stats(&mut self, handles: &[Handle], into: &mut Vec<FlowStats>) -> Result<(), StatsError> {
        into.extend(handles.iter().map(|_| FlowStats::default()));
        Ok(())
    }

    fn generation(&mut self) -> Generation {
        Generation::default()
    }

    fn flush(&mut self, _: &[Handle]) -> Result<(), FlushError> {
        Ok(())
    }
}

fn port() -> PortInfo {
    PortInfo {
        name: "in".to_owned(),
        number: rig::IN,
        kind: Kind::Sim,
        ifindex: None,
        rx_queues: 1,
        tx_checksum: false,
        tx_segment: false,
        ring: 1_024,
    }
}

/// Millions a second: the median, the least and the most.
fn rates(mut rates: Vec<f64>) -> String {
    rates.sort_unstable_by(f64::total_cmp);
    let millions = |at: usize| rates[at] / 1e6;
    format!("{:.2} M ({:.2} to {:.2})", millions(rates.len() / 2), millions(0), millions(rates.len() - 1))
}
