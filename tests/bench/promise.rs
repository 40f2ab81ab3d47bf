//! The promise: a device that takes 10 ms for an operation costs a poller nothing. `cargo bench --bench promise`.
//!
//! A pipeline with all that a poller does between batches is offered a million packets a second from a ring of 1,024
//! frames: known flows in turn, and among them the first packets of 50,000 new flows a second, each of which is decided,
//! installed, and dies when the sweep finds it idle. What a batch of 32 takes is measured with offload and without, in
//! turn; and once more with the device called from the poller when a flow is installed, as before the patch of 2017.
//!
//! The simulated NIC is no part of the traffic: it stamps nothing, so that offload has its costs and none of its gains.
//! `cargo bench --bench promise -- --test` sees that it can be run, in a second or two.

#[allow(dead_code, reason = "the benches use the rest of it")]
mod rig;

use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use offloadd::datapath::sweep::Sweep;
use offloadd::flow::field::Field;
use offloadd::flow::{Action, Actions, Key};
use offloadd::offload::backend::{Backend, Install, open};
use offloadd::offload::mark::Mark;
use offloadd::offload::queue::QueueCounts;
use offloadd::offload::{Level, Offload, OffloadCell, OffloadConfig};
use offloadd::packet::compose::compose;
use offloadd::packet::{BATCH, Packet};
use offloadd::port::{Kind, PortInfo, RxProgress};
use offloadd::telemetry::Histogram;
use rig::Rig;

/// Packets offered a second.
const OFFERED: u64 = 1_000_000;
/// Frames that wait at most; those that come later are lost.
const RING: u64 = 1_024;
/// Flows whose packets come all the time.
const KNOWN: u16 = 1_000;
/// New flows a second.
const NEW: u64 = 50_000;
/// New flows a second where the device is called by the poller: ten times what it can take.
const NEW_INLINE: u64 = 1_000;
/// A flow that is idle for so long is deleted.
const IDLE: Duration = Duration::from_millis(500);
/// What runs before anything is counted: until as many flows die as are born.
const WARM_UP: Duration = Duration::from_millis(1_500);
/// The most that the 99.9th percentile with offload may be of that without.
const PROMISED: f64 = 1.2;

const DEVICE: &str = "sim,op-time=10ms";

/// Who calls the device.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Caller {
    Nobody,
    Worker,
    Poller,
}

/// What one run saw.
struct Run {
    /// The time of each batch by the clock, and that of the processor.
    batches: Histogram,
    processor: Histogram,
    time: Duration,
    /// Packets taken out of the ring, and lost before.
    taken: u64,
    lost: u64,
    /// Packets that did not leave.
    dropped: u64,
    new: u64,
    /// Times that the system took the processor away, and that the poller gave it away to wait.
    preempted: u64,
    waited: u64,
    /// Of the queue to the worker.
    queue: QueueCounts,
    operations: u64,
}

/// A poller's load, with the frames of it.
struct Load {
    known: Vec<Vec<u8>>,
    fresh: Vec<u8>,
    new_per_second: u64,
    /// The next packet of the traffic, lost ones included.
    at: u64,
}

fn main() {
    let test = std::env::args().any(|arg| arg == "--test");
    let (pairs, time) = if test { (1, Duration::from_millis(200)) } else { (7, Duration::from_secs(3)) };
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    println!("{cores} processors, no thread bound to one; the device sleeps {DEVICE:?}");
    println!("{OFFERED} packets/s offered, {KNOWN} known flows, {NEW} new flows/s, {pairs} pairs of {time:?}\n");

    let (mut with, mut without) = (Vec::new(), Vec::new());
    for pair in 0..pairs {
        // In turn, and each first as often as the other, so that neither has the quieter moments.
        for caller in if pair % 2 == 0 { [Caller::Worker, Caller::Nobody] } else { [Caller::Nobody, Caller::Worker] } {
            let run = measure(caller, NEW, time, test);
            if caller == Caller::Worker { &mut with } else { &mut without }.push(run);
        }
    }
    let ratio = compare(&with, &without);
    bounds(&with);
    headline(&measure(Caller::Poller, NEW_INLINE, time, test), &measure(Caller::Worker, NEW_INLINE, time, test));
    if !test && ratio > PROMISED {
        println!("\nThe promise is NOT kept: {ratio:.2} is more than {PROMISED}.");
        std::process::exit(1);
    }
}

/// The table: a row for each percentile. Answers with the median ratio of the 99.9th, in processor time.
fn compare(with: &[Run], without: &[Run]) -> f64 {
    println!("batch of {BATCH}, with chores     offload on   offload off   ratio (least to most of the pairs)");
    let clocks = [("", (|run| &run.batches) as fn(&Run) -> &Histogram), (", processor", |run| &run.processor)];
    let mut promised = 0.0;
    for (clock, times) in clocks {
        for (name, share) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)] {
            let at = |runs: &[Run]| runs.iter().map(|run| times(run).at(share) as f64).collect::<Vec<_>>();
            let (on, off) = (at(with), at(without));
            let mut ratios: Vec<f64> = on.iter().zip(&off).map(|(on, off)| on / off).collect();
            ratios.sort_unstable_by(f64::total_cmp);
            let (least, most) = (ratios[0], ratios[ratios.len() - 1]);
            let ratio = median(ratios);
            let (on, off, name) = (micros(median(on)), micros(median(off)), format!("{name}{clock}"));
            println!("{name:<26} {on:>12} {off:>13}   {ratio:.2} ({least:.2} to {most:.2})");
            if share == 0.999 {
                promised = ratio;
            }
        }
    }
    for (name, count) in [
        ("packets forwarded", (|run| run.taken - run.dropped) as fn(&Run) -> u64),
        ("lost before the poller", |run| run.lost),
        ("dropped by the poller", |run| run.dropped),
        ("flows installed", |run| run.new),
        ("preempted by others", |run| run.preempted),
        ("waited of its own accord", |run| run.waited),
    ] {
        let sum = |runs: &[Run]| runs.iter().map(count).sum::<u64>();
        println!("{name:<26} {:>12} {:>13}", sum(with), sum(without));
    }
    assert!(with.iter().chain(without).all(|run| run.dropped == 0), "a packet died for want of a worker");
    promised
}

/// That memory stays inside the queue's bound.
fn bounds(runs: &[Run]) {
    let Some(worst) = runs.iter().max_by_key(|run| run.queue.high_water) else { return };
    let QueueCounts { high_water, limit, .. } = worst.queue;
    let refused: u64 = runs.iter().map(|run| run.queue.refused).sum();
    let (operations, wakeups) = (runs.iter().map(|run| run.operations), runs.iter().map(|run| run.queue.wakeups));
    let bytes = size_of::<OffloadCell>();
    println!(
        "\nqueue: at most {high_water} of {limit} flows deep, {:.1} MiB at {bytes} bytes a flow; {refused} flows turned away \
         and kept in software; {} operations; a sleeping worker woken {} times",
        (high_water * bytes) as f64 / f64::from(1 << 20),
        operations.sum::<u64>(),
        wakeups.sum::<u64>(),
    );
    assert!(high_water <= limit, "the queue grew beyond its limit");
}

/// What the patch of 2017 was for.
fn headline(inline: &Run, ours: &Run) {
    let (slow, fast) = (inline.batches.at(0.999) as f64, ours.batches.at(0.999) as f64);
    let rate = |run: &Run| (run.taken - run.dropped) as f64 / run.time.as_secs_f64();
    let mut line = String::new();
    // Writing into a string does not fail.
    let _ = write!(
        line,
        "\nThe device called by the poller, {NEW_INLINE} new flows/s: p99.9 of a batch {}, {:.0} packets/s forwarded; \
         by the worker: {}, {:.0} packets/s: {:.0} times shorter, {:.1} times as many.",
        micros(slow),
        rate(inline),
        micros(fast),
        rate(ours),
        slow / fast,
        rate(ours) / rate(inline)
    );
    println!("{line}");
}

/// Runs a poller under load for `time` after a warm-up.
fn measure(caller: Caller, new_per_second: u64, time: Duration, test: bool) -> Run {
    let epoch = Instant::now();
    let device = open(&DEVICE.parse().expect("it is a spec"), epoch).expect("it is a device");
    let progress = Arc::new(RxProgress::new(RING));
    let offload = match caller {
        Caller::Worker => {
            Offload::start(Arc::clone(&device), epoch, OffloadConfig::default()).expect("a thread starts")
        }
        Caller::Poller | Caller::Nobody => Offload::none(),
    };
    offload.port_added(port(), vec![Arc::clone(&progress)]);
    let mut rig = Rig::new(offload.agent(0, Box::new(|| {})));
    // A packet is compared with a port of each of them, so each pair of ports gets a megaflow of its own.
    let rules = ["priority=2,udp,tp_dst=1,actions=drop", "priority=1,udp,tp_src=1,actions=drop"];
    rig.pipeline.shared.slowpath.add_rules(rules, &(), rig.now).expect("the rules are right");
    rig.pipeline.shared.set_max_idle(IDLE);
    let mut inline = Inline { channel: (caller == Caller::Poller).then(|| device.channel()), marks: 0 };
    let mut load = Load::new(new_per_second);
    let mut run = Run::default();
    load.offer(&mut rig, &progress, &mut inline, if test { time } else { WARM_UP }, &mut run);
    let (before, queue, operations) = (counts(&rig), offload.queue(), operations(&offload));
    let switches = switches();
    run = Run::default();
    load.offer(&mut rig, &progress, &mut inline, time, &mut run);
    let (sent, installed) = counts(&rig);
    let after = self::switches();
    (run.preempted, run.waited) = (after.0 - switches.0, after.1 - switches.1);
    (run.dropped, run.new) = (run.taken - (sent - before.0), installed - before.1);
    run.operations = self::operations(&offload) - operations;
    run.queue = offload.queue();
    run.queue.refused -= queue.refused;
    run.queue.wakeups -= queue.wakeups;
    run
}

/// Packets sent and flows installed so far.
fn counts(rig: &Rig) -> (u64, u64) {
    let counters = &rig.pipeline.counters;
    (counters.fate.sent.get(), counters.lookup.upcall_installed.get())
}

fn operations(offload: &Offload) -> u64 {
    offload.snapshot().operations.total()
}

/// The device in the poller's own hands.
struct Inline {
    channel: Option<Box<dyn Backend>>,
    marks: u32,
}

impl Inline {
    /// Puts a flow that was just installed.
    fn put(&mut self, key: &Key) {
        let Some(channel) = &mut self.channel else { return };
        let mut mask = rig::wide_mask();
        [Field::IpProto, Field::TpSrc, Field::TpDst].into_iter().for_each(|field| mask.add_field(field));
        self.marks += 1;
        let install = Install {
            matching: &offloadd::flow::Match::new(key, &mask),
            actions: &Actions::new(vec![Action::Output(rig::OUT)]),
            mark: Mark::new(self.marks).expect("counted from 1"),
            level: Level::Mark,
            in_port: Some(rig::IN),
        };
        channel.put(install).expect("each flow is new, and there is room");
    }
}

impl Load {
    fn new(new_per_second: u64) -> Load {
        let known = (0..KNOWN).map(|n| compose(&key(100 + n, 80), 60)).collect();
        Load { known, fresh: compose(&key(0, 0), 60), new_per_second, at: 0 }
    }

    /// New flows among the first `packets` packets.
    fn new_before(&self, packets: u64) -> u64 {
        packets * self.new_per_second / OFFERED
    }

    /// The ports of new flow number `n`: none that a rule or a known flow has, and different for billions of them.
    fn ports(n: u64) -> (u16, u16) {
        ((1_000 + n % 60_000) as u16, (1_000 + n / 60_000 % 60_000) as u16)
    }

    /// Has a poller take what arrives in `time`.
    fn offer(&mut self, rig: &mut Rig, progress: &RxProgress, inline: &mut Inline, time: Duration, run: &mut Run) {
        let mut sweep = Sweep::new(Instant::now());
        let mut batch = Vec::with_capacity(BATCH);
        let mut fresh = Vec::with_capacity(BATCH);
        let (started, from) = (Instant::now(), self.at);
        loop {
            run.time = started.elapsed();
            if run.time >= time {
                return;
            }
            let arrived = (run.time.as_nanos() * u128::from(OFFERED) / 1_000_000_000) as u64;
            let waiting = arrived - (self.at - from);
            if waiting < BATCH as u64 {
                std::hint::spin_loop();
                continue;
            }
            let lost = waiting.saturating_sub(RING);
            run.lost += lost;
            self.at += lost;
            self.next_batch(rig, &mut batch, &mut fresh);

            let processor = processor_time();
            let begun = Instant::now();
            rig.pipeline.process(begun, &mut batch);
            fresh.drain(..).for_each(|(source, destination)| inline.put(&key(source, destination)));
            rig.pipeline.table.take_events();
            rig.pipeline.table.chores(begun);
            sweep.slice(begun, &mut rig.pipeline);
            run.batches.record(begun.elapsed().as_nanos() as u64);
            run.processor.record((processor_time() - processor).as_nanos() as u64);

            progress.took(BATCH);
            run.taken += BATCH as u64;
        }
    }

    /// The next packets, and the ports of the new flows among them.
    fn next_batch(&mut self, rig: &mut Rig, batch: &mut Vec<Packet>, fresh: &mut Vec<(u16, u16)>) {
        for _ in 0..BATCH {
            let new = self.new_before(self.at);
            let mut packet = rig.pipeline.pool.take();
            if self.new_before(self.at + 1) > new {
                let (source, destination) = Load::ports(new);
                packet.set_len(self.fresh.len());
                packet.bytes_mut().copy_from_slice(&self.fresh);
                // Behind Ethernet's 14 bytes and IP's 20. Nobody looks at the checksum.
                packet.bytes_mut()[34..36].copy_from_slice(&source.to_be_bytes());
                packet.bytes_mut()[36..38].copy_from_slice(&destination.to_be_bytes());
                fresh.push((source, destination));
            } else {
                let frame = &self.known[(self.at % self.known.len() as u64) as usize];
                packet.set_len(frame.len());
                packet.bytes_mut().copy_from_slice(frame);
            }
            packet.meta.in_port = rig::IN;
            batch.push(packet);
            self.at += 1;
        }
    }
}

impl Default for Run {
    fn default() -> Run {
        Run {
            batches: Histogram::default(),
            processor: Histogram::default(),
            time: Duration::ZERO,
            taken: 0,
            lost: 0,
            dropped: 0,
            new: 0,
            preempted: 0,
            waited: 0,
            queue: QueueCounts::default(),
            operations: 0,
        }
    }
}

fn key(source: u16, destination: u16) -> Key {
    let mut key = rig::key(0);
    key.set(Field::TpSrc, source);
    key.set(Field::TpDst, destination);
    key
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
        ring: RING,
    }
}

/// How often this thread has been made to wait for a processor, and how often it has waited for something else.
fn switches() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let count = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
    };
    (count("nonvoluntary_ctxt_switches:"), count("voluntary_ctxt_switches:"))
}

/// Of this thread.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

fn micros(nanos: f64) -> String {
    format!("{:.1} µs", nanos / 1_000.0)
}
