//! What the offload path tells of itself: counts by kind and outcome, latencies, and the [`Snapshot`] made of them.
//!
//! # Thread-safety
//! A worker gathers in a `Tally` of its own and adds it to the shared `Report` once a turn. The mutex around that
//! is shared by the worker and the control thread only; no poller ever takes it.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::backend::PutError;
use super::queue::QueueCounts;
use super::state::{Level, Refusal};
use crate::flow::{Match, PortNo, Ufid};

/// Everything there is to say about the offload path at one moment.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Snapshot {
    pub backend: &'static str,
    /// Why the device is no longer used; `None` while it is.
    pub off: Option<String>,
    /// The most that the device does for a flow.
    pub level: Level,
    pub ports: Vec<PortRow>,
    /// Rules in the device.
    pub rules: usize,
    /// Rules that fit, where that is known.
    pub capacity: Option<usize>,
    /// Megaflows known, in the device or not.
    pub megaflows: usize,
    pub marks: MarkCounts,
    pub queue: QueueCounts,
    /// Memory that the flows waiting in the lanes take.
    pub queue_bytes: usize,
    pub operations: Operations,
    /// Megaflows that are not in the device though wanted, by reason.
    pub refused: Vec<(Refusal, usize)>,
    /// Times that the device was found to have forgotten every rule by itself.
    pub resets: u64,
    /// From a flow's request to its outcome.
    pub latency: Percentiles,
    /// Spent in the device for one operation.
    pub device_time: Percentiles,
}

/// A port that the device serves.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct PortRow {
    pub number: PortNo,
    pub name: String,
}

/// Where the marks are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct MarkCounts {
    /// Stamped by the device on the packets of some flow.
    pub in_use: u64,
    /// Waiting for receive rings to turn over.
    pub quarantined: u64,
    pub capacity: u64,
}

/// Operations on the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct Operations {
    pub put: Outcomes,
    pub modify: Outcomes,
    pub delete: Outcomes,
}

impl Operations {
    /// All operations asked of the device.
    pub fn total(&self) -> u64 {
        [self.put, self.modify, self.delete].iter().map(|o| o.done + o.failed()).sum()
    }
}

/// How the operations of one kind ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct Outcomes {
    pub done: u64,
    pub unsupported: u64,
    pub no_room: u64,
    pub device: u64,
}

impl Outcomes {
    pub fn failed(&self) -> u64 {
        self.unsupported + self.no_room + self.device
    }

    pub(super) fn count<T>(&mut self, result: &Result<T, PutError>) {
        match result {
            Ok(_) => self.done += 1,
            Err(PutError::Unsupported(_)) => self.unsupported += 1,
            Err(PutError::NoRoom) => self.no_room += 1,
            Err(PutError::Device(_)) => self.device += 1,
        }
    }

    fn add(&mut self, other: &Outcomes) {
        self.done += other.done;
        self.unsupported += other.unsupported;
        self.no_room += other.no_room;
        self.device += other.device;
    }
}

/// Percentiles of a time, in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct Percentiles {
    pub count: u64,
    pub p50_ns: u64,
    pub p90_ns: u64,
    pub p99_ns: u64,
    pub p999_ns: u64,
    pub max_ns: u64,
}

/// One row of `offload/mark-show`.
#[derive(Clone, PartialEq, Debug)]
pub struct MarkRow {
    pub mark: u32,
    pub ufid: Ufid,
    pub matching: Match,
    pub level: Level,
    /// Ids of the pollers whose flow it is, ascending.
    pub owners: Vec<u32>,
    /// Packets that the device matched, at the last reading.
    pub hits: u64,
}

/// Some rows in order of marks.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct MarkPage {
    pub rows: Vec<MarkRow>,
    /// The mark to go on after; `None` after the last.
    pub next: Option<u32>,
}

/// What a worker has counted since the last turn.
#[derive(Default)]
pub(super) struct Tally {
    pub operations: Operations,
    pub resets: u64,
    pub latency: Vec<Duration>,
    pub device_time: Vec<Duration>,
}

/// What a worker has told so far.
pub(super) struct Report {
    pub off: Option<String>,
    pub ports: Vec<PortRow>,
    pub rules: usize,
    pub megaflows: usize,
    pub marks: MarkCounts,
    pub refused: [usize; Refusal::ALL.len()],
    pub operations: Operations,
    pub resets: u64,
    latency: Histogram<u64>,
    device_time: Histogram<u64>,
}

impl Default for Report {
    fn default() -> Self {
        Report {
            off: None,
            ports: Vec::new(),
            rules: 0,
            megaflows: 0,
            marks: MarkCounts::default(),
            refused: [0; Refusal::ALL.len()],
            operations: Operations::default(),
            resets: 0,
            latency: histogram(),
            device_time: histogram(),
        }
    }
}

impl Report {
    /// Moves `tally` in and leaves it empty.
    pub fn take(&mut self, tally: &mut Tally) {
        self.operations.put.add(&tally.operations.put);
        self.operations.modify.add(&tally.operations.modify);
        self.operations.delete.add(&tally.operations.delete);
        self.resets += tally.resets;
        let record = |into: &mut Histogram<u64>, from: &mut Vec<Duration>| {
            from.drain(..).for_each(|time| into.saturating_record(time.as_nanos() as u64));
        };
        record(&mut self.latency, &mut tally.latency);
        record(&mut self.device_time, &mut tally.device_time);
        tally.operations = Operations::default();
        tally.resets = 0;
    }

    pub fn latency(&self) -> Percentiles {
        percentiles(&self.latency)
    }

    pub fn device_time(&self) -> Percentiles {
        percentiles(&self.device_time)
    }
}

fn histogram() -> Histogram<u64> {
    // A nanosecond to a minute at two digits: about 50 KiB. Longer times count as a minute.
    Histogram::new_with_bounds(1, 60_000_000_000, 2).expect("1 is below a minute and 2 digits are few")
}

fn percentiles(times: &Histogram<u64>) -> Percentiles {
    Percentiles {
        count: times.len(),
        p50_ns: times.value_at_quantile(0.5),
        p90_ns: times.value_at_quantile(0.9),
        p99_ns: times.value_at_quantile(0.99),
        p999_ns: times.value_at_quantile(0.999),
        max_ns: times.max(),
    }
}
