//! What the offload path tells of itself: counts by kind and outcome, latencies, and the [`Snapshot`] made of them.
//!
//! # Thread-safety
//! A worker gathers in a `Tally` of its own and adds it to the shared `Report` once a turn. The mutex around that
//! is shared by the worker and the control thread only; no poller ever takes it.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::backend::PutError;
use super::queue::QueueCounts;
use super::settings::Wanted;
use super::state::Level;
use super::trouble::Reason;
use crate::flow::{Match, PortNo, Ufid};
use crate::telemetry::spread::Spread;

/// Everything there is to say about the offload path at one moment.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Snapshot {
    pub backend: &'static str,
    /// Why the device is no longer used; `None` while it is.
    pub off: Option<String>,
    pub settings: Wanted,
    /// The most that the device does for a flow.
    pub level: Level,
    pub ports: Vec<PortRow>,
    /// Rules in the device.
    pub rules: usize,
    /// Those that handle their packets wholly.
    pub rules_full: usize,
    /// Those that the device has been seen to match a packet with.
    pub rules_confirmed: usize,
    /// Rules that fit, where that is known.
    pub capacity: Option<usize>,
    /// Megaflows known, in the device or not.
    pub megaflows: usize,
    pub marks: MarkCounts,
    /// Sums over the workers.
    pub queue: QueueCounts,
    pub operations: Operations,
    /// Megaflows that are not in the device, by reason: those that the workers know, and flows that were turned away before.
    pub refused: Vec<(Reason, usize)>,
    /// Megaflows that the device does less for than it can, by reason.
    pub short: Vec<(Reason, usize)>,
    /// Megaflows that made room for busier ones.
    pub evictions: u64,
    /// Times that the device was found to have forgotten every rule by itself.
    pub resets: u64,
    /// Packets handled wholly whose counts the device forgot before they were read, where it can tell.
    pub forgotten: Option<u64>,
    /// From a flow's request to its outcome.
    pub latency: Latencies,
    /// Spent in the device for one operation.
    pub device_time: Percentiles,
    pub workers: Vec<WorkerRow>,
}

/// One worker.
#[derive(Clone, Debug, serde::Serialize)]
pub struct WorkerRow {
    pub id: usize,
    pub queue: QueueCounts,
    pub rules: usize,
    pub megaflows: usize,
    /// Megaflows that wait for room or a mark.
    pub waiting: usize,
    pub operations: Operations,
    pub latency: Latencies,
    pub device_time: Percentiles,
    /// How long its operation under way has taken, in nanoseconds.
    pub busy_ns: Option<u64>,
}

/// From a flow's request to its outcome, by what was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct Latencies {
    pub all: Percentiles,
    /// From a new flow to its rule, or to the reason why there is none.
    pub put: Percentiles,
    /// From a decision for other actions to the device's word that it acts by them.
    pub modify: Percentiles,
    /// From a flow's death to the device's having forgotten it.
    pub delete: Percentiles,
}

/// What a request asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Request {
    Put,
    Modify,
    Delete,
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
    pub(super) fn add(&mut self, other: &Operations) {
        self.put.add(&other.put);
        self.modify.add(&other.modify);
        self.delete.add(&other.delete);
    }

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

    pub(super) fn add(&mut self, other: &Outcomes) {
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
    pub evictions: u64,
    pub latency: Vec<(Request, Duration)>,
    pub device_time: Vec<Duration>,
}

/// What a worker has told so far.
pub(crate) struct Report {
    pub ports: Vec<PortRow>,
    pub rules: usize,
    pub rules_full: usize,
    pub rules_confirmed: usize,
    pub megaflows: usize,
    pub quarantined: u64,
    pub waiting: usize,
    pub refused: [usize; Reason::ALL.len()],
    pub short: [usize; Reason::ALL.len()],
    pub operations: Operations,
    pub resets: u64,
    pub evictions: u64,
    pub times: Times,
}

/// The histograms of one or several workers.
#[derive(Clone)]
pub(crate) struct Times {
    put: Histogram<u64>,
    modify: Histogram<u64>,
    delete: Histogram<u64>,
    device: Histogram<u64>,
}

impl Default for Report {
    fn default() -> Self {
        Report {
            ports: Vec::new(),
            rules: 0,
            rules_full: 0,
            rules_confirmed: 0,
            megaflows: 0,
            quarantined: 0,
            waiting: 0,
            refused: [0; Reason::ALL.len()],
            short: [0; Reason::ALL.len()],
            operations: Operations::default(),
            resets: 0,
            evictions: 0,
            times: Times::default(),
        }
    }
}

impl Report {
    /// Moves `tally` in and leaves it empty.
    pub(super) fn take(&mut self, tally: &mut Tally) {
        self.operations.add(&tally.operations);
        self.resets += tally.resets;
        self.evictions += tally.evictions;
        for (request, time) in tally.latency.drain(..) {
            let histogram = match request {
                Request::Put => &mut self.times.put,
                Request::Modify => &mut self.times.modify,
                Request::Delete => &mut self.times.delete,
            };
            histogram.saturating_record(time.as_nanos() as u64);
        }
        tally.device_time.drain(..).for_each(|time| self.times.device.saturating_record(time.as_nanos() as u64));
        tally.operations = Operations::default();
        (tally.resets, tally.evictions) = (0, 0);
    }

    /// Counts and times begin anew; what there is stays.
    pub fn clear(&mut self) {
        self.operations = Operations::default();
        (self.resets, self.evictions) = (0, 0);
        self.times = Times::default();
    }
}

impl Default for Times {
    fn default() -> Self {
        // A nanosecond to a minute at two digits: about 50 KiB each. Longer times count as a minute.
        let histogram =
            || Histogram::new_with_bounds(1, 60_000_000_000, 2).expect("1 is below a minute and 2 digits are few");
        Times { put: histogram(), modify: histogram(), delete: histogram(), device: histogram() }
    }
}

impl Times {
    pub fn add(&mut self, other: &Times) {
        // Of equal bounds, so there is room for every value.
        for (sum, more) in [
            (&mut self.put, &other.put),
            (&mut self.modify, &other.modify),
            (&mut self.delete, &other.delete),
            (&mut self.device, &other.device),
        ] {
            sum.add(more).expect("histograms of equal bounds can be added");
        }
    }

    pub fn latencies(&self) -> Latencies {
        let mut all = self.put.clone();
        for more in [&self.modify, &self.delete] {
            all.add(more).expect("histograms of equal bounds can be added");
        }
        Latencies {
            all: percentiles(&all),
            put: percentiles(&self.put),
            modify: percentiles(&self.modify),
            delete: percentiles(&self.delete),
        }
    }

    /// Each histogram with its name, with few bounds.
    pub fn spreads(&self) -> [(&'static str, Spread); 4] {
        let spread = |histogram: &Histogram<u64>| {
            let mut spread = Spread::default();
            for recorded in histogram.iter_recorded() {
                spread.add(recorded.value_iterated_to(), recorded.count_at_value());
            }
            spread
        };
        [("put", &self.put), ("modify", &self.modify), ("delete", &self.delete), ("device", &self.device)]
            .map(|(name, histogram)| (name, spread(histogram)))
    }

    pub fn device_time(&self) -> Percentiles {
        percentiles(&self.device)
    }
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

impl MarkPage {
    /// The first `limit` rows of several workers' pages.
    pub(super) fn merge(pages: Vec<MarkPage>, limit: usize) -> MarkPage {
        let mut more = pages.iter().any(|page| page.next.is_some());
        let mut rows: Vec<MarkRow> = pages.into_iter().flat_map(|page| page.rows).collect();
        rows.sort_unstable_by_key(|row| row.mark);
        more |= rows.len() > limit;
        rows.truncate(limit);
        // None is missing in between: a page that goes on is of `limit` rows, so all of these lie before its end.
        let next = rows.last().filter(|_| more).map(|row| row.mark);
        MarkPage { rows, next }
    }
}
