//! What asking for a flow's offload costs a poller, beside the mutex-and-list queue of the 2017 patch, and how soon a
//! sleeping worker has it: `cargo bench --bench queue`, or with `-- --test` to see that it still can.
//!
//! A request is made for a flow that exists already and does not wait yet. Three things are measured, the first two in
//! rounds in which the two queues alternate; the ratio is the median of the rounds' ratios.
//!
//! - *worker awake*: pollers make requests in bursts while the worker takes them as fast as it can. The time is the
//!   poller's own processor time, so neither another thread's turn on its core counts nor, to the list's advantage,
//!   that a mutex was waited for. A round's time is the mean of its bursts: some of them meet another thread at work
//!   on the queue and some do not, and both are what it costs. Short bursts end before another poller has begun its
//!   own, where cores are few, and what they touch is still in the cache.
//! - *worker asleep*: each poller makes one request at a time, when the worker sleeps. The time is that on the wall, as
//!   is right for something that happens once, and a round's is the median; requests are left out for which the worker
//!   was still awake.
//! - *from put to popped*: on the wall, for a worker that has slept for a millisecond.

#[allow(dead_code, reason = "the other benches use the rest of it")]
mod rig;
mod rivals;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use offloadd::offload::queue::{Consumer, Queue, Weigh};
use offloadd::sys::stack::Node;
use rivals::{Idle, Lanes, List, Rival};
use rustix::time::{ClockId, clock_gettime};

/// Requests in a burst: enough that reading the processor time, some 200 ns, does not matter.
const BURSTS: [usize; 2] = [1_024, 8_192];

/// How much is measured.
struct Extent {
    rounds: usize,
    requests: usize,
    sleeps: usize,
    latencies: usize,
}

const WHOLE: Extent = Extent { rounds: 9, requests: 262_144, sleeps: 400, latencies: 3_000 };
const TRIAL: Extent = Extent { rounds: 1, requests: 8_192, sleeps: 2, latencies: 3 };

fn main() {
    let extent = if std::env::args().any(|arg| arg == "--test") { TRIAL } else { WHOLE };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    println!("ns per request, median of {} rounds; {cores} cores\n", extent.rounds);
    println!("{:<8} {:<22} {:>8} {:>11} {:>7}", "pollers", "worker", "lanes", "2017 list", "ratio");
    // With as many pollers as cores the worker has no core to itself; with more, it would be a bench of the scheduler.
    for pollers in [1, 2, 4].into_iter().filter(|&pollers| pollers <= cores.max(2)) {
        for burst in BURSTS {
            row(pollers, &format!("awake, {burst} at once"), extent.rounds, || {
                (awake::<Lanes>(pollers, burst, extent.requests), awake::<List>(pollers, burst, extent.requests))
            });
        }
        row(pollers, "asleep", extent.rounds, || {
            (asleep::<Lanes>(pollers, extent.sleeps), asleep::<List>(pollers, extent.sleeps))
        });
    }
    let mut latencies = latencies(extent.latencies);
    latencies.sort_unstable();
    let at = |percent: usize| latencies[(latencies.len() * percent / 100).min(latencies.len() - 1)];
    println!("\nfrom put to popped, worker asleep: p50 {:?}, p99 {:?}, worst {:?}", at(50), at(99), at(100));
}

fn row(pollers: usize, worker: &str, rounds: usize, mut round: impl FnMut() -> (f64, f64)) {
    let times: Vec<(f64, f64)> = (0..rounds).map(|_| round()).collect();
    let of = |time: fn(&(f64, f64)) -> f64| median(times.iter().map(time).collect());
    let (lanes, list, ratio) = (of(|time| time.0), of(|time| time.1), of(|time| time.1 / time.0));
    println!("{pollers:<8} {worker:<22} {lanes:>8.1} {list:>11.1} {ratio:>7.1}");
}

/// Processor time of a request in ns, the mean of so many by each poller, `burst` at once.
fn awake<R: Rival>(pollers: usize, burst: usize, requests: usize) -> f64 {
    let rival = R::new(pollers, burst);
    let start = Barrier::new(pollers);
    let times = with_worker(&rival, Idle::Looks, pollers, |poller| {
        let one = |n: usize| {
            start.wait();
            let begun = processor_time();
            (0..burst).for_each(|flow| rival.request(poller, flow));
            let time = processor_time() - begun;
            // The next are requests for the same flows, which must not wait any more.
            while rival.served() < ((n + 1) * pollers * burst) as u64 {
                thread::yield_now();
            }
            time.as_nanos() as f64 / burst as f64
        };
        (0..requests / burst).map(one).collect()
    });
    times.iter().sum::<f64>() / times.len() as f64
}

/// Time of a request in ns that finds the worker asleep, or woken by another poller that moment; the median.
fn asleep<R: Rival>(pollers: usize, sleeps: usize) -> f64 {
    let rival = R::new(pollers, 1);
    let start = Barrier::new(pollers);
    let times = with_worker(&rival, Idle::Sleeps, pollers, |poller| {
        let mut times = Vec::new();
        for n in 0..sleeps as u64 {
            while rival.served() < n * pollers as u64 {
                thread::yield_now();
            }
            thread::sleep(Duration::from_micros(100));
            let before = rival.wakeups();
            start.wait();
            let begun = Instant::now();
            rival.request(poller, 0);
            let time = begun.elapsed();
            start.wait();
            if rival.wakeups() > before {
                times.push(time.as_nanos() as f64);
            }
        }
        times
    });
    median(times)
}

/// Runs the pollers beside a worker; what they return, together.
fn with_worker<R: Rival>(rival: &R, idle: Idle, pollers: usize, poll: impl Fn(usize) -> Vec<f64> + Sync) -> Vec<f64> {
    thread::scope(|scope| {
        let worker = scope.spawn(|| rival.serve(idle));
        let poll = &poll;
        let pollers: Vec<_> = (0..pollers).map(|poller| scope.spawn(move || poll(poller))).collect();
        let times = pollers.into_iter().flat_map(|poller| poller.join().expect("no poller panics")).collect();
        rival.stop();
        worker.join().expect("the worker does not panic");
        times
    })
}

/// Says when it was put.
struct Stamp(AtomicU64);

impl Weigh for Stamp {
    fn weigh(&self) -> usize {
        size_of::<Node<Stamp>>()
    }
}

/// From before `put` to after the pop of a worker that slept.
fn latencies(count: usize) -> Vec<Duration> {
    let queue = Arc::new(Queue::<Stamp, ()>::new(1, usize::MAX));
    let node = Arc::new(Node::new(Stamp(AtomicU64::new(0))));
    let epoch = Instant::now();
    let (sender, popped) = mpsc::channel();
    let mut consumer = Consumer::new(Arc::clone(&queue));
    let worker = thread::spawn(move || {
        while consumer.take_messages().is_some() {
            consumer.sleep(None);
            while let Some(node) = consumer.next_put() {
                let latency = epoch.elapsed() - Duration::from_nanos(node.0.load(Ordering::Relaxed));
                sender.send(latency).expect("it is received below");
            }
        }
    });
    let one = |_| {
        thread::sleep(Duration::from_millis(1));
        node.0.store(epoch.elapsed().as_nanos() as u64, Ordering::Relaxed);
        queue.put(0, &node, false);
        popped.recv().expect("the worker lives until the queue is closed")
    };
    let latencies = (0..count).map(one).collect();
    queue.close();
    worker.join().expect("the worker does not panic");
    latencies
}

/// What this thread has used.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
