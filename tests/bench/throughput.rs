//! What a worker does in a second: `cargo bench --bench throughput`.
//!
//! Flows wait in the queue before the clock starts, and the workers' threads do nothing but take turns until there is
//! nothing left to do: puts first, then deletes. So a number is that of the workers alone, without the poller that asks.
//! The device either is the simulated NIC, as fast as it can, or counts and does nothing else: then all of the time is
//! the workers' own. With the privileges for it, also the XDP device: then the kernel's time is in it, of a system call or two an operation.
//!
//! Beside it, how long a worker that sleeps needs from a request to the start of its operation.
//! `cargo bench --bench throughput -- --test` sees that it can be run.

#[allow(dead_code, reason = "the benches use the rest of it")]
mod rig;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use offloadd::flow::{Field, Mask, Match, Ufid};
use offloadd::offload::backend::{
    self, ActionSet, Backend, BackendCaps, BackendSpec, DeleteError, Device, Done, Fence, FlushError, Generation,
    Grace, Handle, Install, PutError, StatsError, sim,
};
use offloadd::offload::worker::Worker;
use offloadd::offload::{Agent, FlowSlot, FlowStats, Level, Offload, OffloadConfig};
use offloadd::port::{Kind, PortInfo, RxProgress};
use offloadd::telemetry::Histogram;

/// Flows that wait at a time: few, as for a worker that keeps up, so that all of them are in the processor's caches; and a
/// backlog that is in none.
const FLOWS: [u32; 2] = [1_000, 100_000];
/// Puts of one measurement, and as many deletes.
const PUTS: u32 = 200_000;
/// Measurements of each kind; the median is told.
const ROUNDS: usize = 9;
/// Requests to a worker that sleeps.
const WAKES: u64 = 4_000;

/// What a device is opened by.
type Open = fn() -> Arc<dyn Device>;

fn main() {
    let test = std::env::args().any(|arg| arg == "--test");
    let (flows, puts, rounds, wakes) = if test { ([10, 1_000], 1_000, 1, 20) } else { (FLOWS, PUTS, ROUNDS, WAKES) };
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    println!("{cores} processors; millions of operations in a second of processor time of the busiest worker, median");
    println!("(and range) of {rounds} rounds of {puts} puts and {puts} deletes\n");
    println!("{:<52} {:>22} {:>22} {:>22}", "", "puts", "deletes", "both");
    let mut devices: Vec<(&str, Open)> = vec![
        ("simulated NIC, preset=instant", || sim::open(sim::Options::default(), Instant::now())),
        ("a device that only counts", || Arc::new(Counter(Counting::new(false)))),
    ];
    match backend::open(&xdp(), Instant::now()) {
        Ok(_) => {
            devices.push(("XDP", open_xdp));
            devices.push(("XDP, one by one", || Arc::new(OneByOne(open_xdp()))));
        }
        Err(error) => println!("skipped: {error}"),
    }
    for workers in [1, 2] {
        for (name, open) in &devices {
            for flows in flows {
                let rounds = measure(open(), workers, flows, puts, rounds);
                let rate = |time: fn(&Round) -> Duration, operations: u32| {
                    rates(rounds.iter().map(|round| f64::from(operations) / time(round).as_secs_f64()).collect())
                };
                let both = rate(|round| round.puts + round.deletes, 2 * puts);
                let (puts, deletes) = (rate(|round| round.puts, puts), rate(|round| round.deletes, puts));
                let name = format!("{workers} × {name}, {flows} at a time");
                println!("{name:<52} {puts:>22} {deletes:>22} {both:>22}");
            }
        }
    }
    wake_up(wakes);
}

/// With room for all flows.
fn xdp() -> BackendSpec {
    BackendSpec { kind: "xdp".to_owned(), options: Vec::new() }
}

fn open_xdp() -> Arc<dyn Device> {
    backend::open(&xdp(), Instant::now()).expect("it could be opened before")
}

/// A device as if it took one rule at a time.
struct OneByOne(Arc<dyn Device>);

impl Device for OneByOne {
    fn capabilities(&self) -> BackendCaps {
        BackendCaps { batch: 1, ..self.0.capabilities() }
    }

    fn channel(&self) -> Box<dyn Backend> {
        self.0.channel()
    }

    fn fence(&self) -> Fence {
        self.0.fence()
    }

    fn restart(&self) -> Result<(), FlushError> {
        self.0.restart()
    }

    fn grace(&self) -> Option<Grace> {
        self.0.grace()
    }
}

/// How long the workers took.
#[derive(Clone, Copy, Default)]
struct Round {
    puts: Duration,
    deletes: Duration,
}

/// Has `workers` workers put `flows` flows and delete them, so often that it is `puts` of each, for each of `rounds`.
fn measure(device: Arc<dyn Device>, workers: usize, flows: u32, puts: u32, rounds: usize) -> Vec<Round> {
    let epoch = Instant::now();
    let config = OffloadConfig { threads: workers, queue_limit: usize::MAX, ..OffloadConfig::default() };
    let (offload, mut crew) = Offload::assemble_many(device, epoch, &config);
    let agent = offload.agent(0, Box::new(|| {})).expect("there is a device");
    let progress = Arc::new(RxProgress::new(1_024));
    offload.port_added(port(), vec![Arc::clone(&progress)]);
    let mut turn_around = || {
        let now = Instant::now();
        let cells: Vec<_> = (0..flows).map(|n| adopt(&agent, now, n)).collect();
        let puts = work(&mut crew);
        agent.drain(|_| ());
        let now = Instant::now();
        cells.iter().for_each(|cell| agent.release(now, cell));
        drop(cells);
        let deletes = work(&mut crew);
        // The marks may be used again.
        (0..2).for_each(|_| progress.took(0));
        Round { puts, deletes }
    };
    // Tables grow, ports are told of: nothing of it is measured.
    turn_around();
    let times = puts / flows;
    let add = |sum: Round, more: Round| Round { puts: sum.puts + more.puts, deletes: sum.deletes + more.deletes };
    let all = (0..rounds).map(|_| (0..times).map(|_| turn_around()).fold(Round::default(), add)).collect();
    let (done, asked) = (offload.snapshot().operations, u64::from(flows) * (1 + rounds as u64 * u64::from(times)));
    assert_eq!((done.put.done, done.delete.done), (asked, asked), "each flow was put and deleted once");
    all
}

/// Has each worker take turns in a thread of its own until the queues are empty. Answers with the processor time of the
/// one that took longest: on a busy machine that is what it would have taken on an idle one.
fn work(crew: &mut [Worker]) -> Duration {
    let start = Barrier::new(crew.len());
    std::thread::scope(|scope| {
        let threads: Vec<_> = crew.iter_mut().map(|worker| scope.spawn(|| drain(worker, &start))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a worker does not panic")).max().unwrap_or_default()
    })
}

fn drain(worker: &mut Worker, start: &Barrier) -> Duration {
    start.wait();
    let begun = processor_time();
    loop {
        let now = Instant::now();
        worker.turn(now);
        if !worker.has_work(now) {
            return processor_time() - begun;
        }
    }
}

/// Of this thread.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn adopt(agent: &Agent, now: Instant, n: u32) -> offloadd::sync::Arc<offloadd::offload::OffloadCell> {
    // Of no port in particular, for the XDP device takes rules of ports that it is at.
    let mut mask = rig::tuple_mask(32);
    Field::InPort.set(mask.words_mut(), 0u128);
    let matching = Match::new(&rig::key(n), &mask);
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
            batch: 1,
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

    fn replace(&mut self, _: Handle, _: Install<'_>) -> Result<(Done, FlowStats), PutError> {
        Ok((Done::at(Level::Mark), FlowStats::default()))
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

/// In millions: the median, the least and the most.
fn rates(mut rates: Vec<f64>) -> String {
    rates.sort_unstable_by(f64::total_cmp);
    let millions = |at: usize| rates[at] / 1e6;
    format!("{:.2} ({:.2} to {:.2})", millions(rates.len() / 2), millions(0), millions(rates.len() - 1))
}
