//! [`Model`]: what the screen shows, worked out of samples.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Looks that a history line remembers.
const HISTORY: usize = 240;

/// Everything that the daemon said at one moment. What it did not say is `null`.
#[derive(Debug, Clone)]
pub struct Sample {
    pub at: Instant,
    /// `version`, `dpif-netdev/pmd-perf-show`, `dpif/offload-show`, `offload/queue-show`.
    pub version: Value,
    pub perf: Value,
    pub offload: Value,
    pub queue: Value,
    /// The busiest flows, if there is news of them; `Err`: why there is not.
    pub flows: Option<Result<Vec<Flow>, String>>,
}

/// One of the busiest flows.
#[derive(Debug, Clone, PartialEq)]
pub struct Flow {
    pub pps: f64,
    pub bps: f64,
    pub standing: String,
    pub reason: Option<String>,
    pub key: String,
    pub actions: String,
}

/// How packets found their flows.
#[derive(Debug, Clone)]
pub struct Level {
    pub name: &'static str,
    /// Packets a second; `None` before the second look.
    pub rate: Option<f64>,
    pub history: VecDeque<u64>,
    total: Option<u64>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Worker {
    pub id: u64,
    pub depth: Option<u64>,
    pub limit: Option<u64>,
    pub rules: Option<u64>,
    pub p50_ns: Option<u64>,
    pub p99_ns: Option<u64>,
    pub p999_ns: Option<u64>,
}

/// By what flows are sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sort {
    Packets,
    Bits,
    State,
}

impl Sort {
    pub fn next(self) -> Sort {
        match self {
            Sort::Packets => Sort::Bits,
            Sort::Bits => Sort::State,
            Sort::State => Sort::Packets,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Sort::Packets => "packets",
            Sort::Bits => "bits",
            Sort::State => "state",
        }
    }
}

pub struct Model {
    pub interval: Duration,
    pub colour: bool,
    pub paused: bool,
    pub help: bool,
    pub sort: Sort,
    pub scroll: usize,
    pub version: String,
    /// Why the daemon does not answer.
    pub lost: Option<String>,
    pub levels: Vec<Level>,
    pub drops: Level,
    pub device: Device,
    pub workers: Vec<Worker>,
    pub flows: Vec<Flow>,
    /// Why there are no flows to be shown.
    pub no_flows: Option<String>,
    last: Option<Instant>,
}

/// What is known of the device.
#[derive(Debug, Clone, Default)]
pub struct Device {
    pub name: String,
    pub enabled: Option<bool>,
    pub off: Option<String>,
    pub rules: Option<u64>,
    pub full: Option<u64>,
    pub capacity: Option<u64>,
    pub marks: Option<u64>,
    pub mark_capacity: Option<u64>,
    pub quarantined: Option<u64>,
    /// Why flows are not there, most frequent first.
    pub reasons: Vec<(String, u64)>,
}

const LEVELS: [&str; 5] = ["device", "mark", "EMC", "megaflow", "upcall"];

impl Level {
    fn new(name: &'static str) -> Level {
        Level { name, rate: None, history: VecDeque::new(), total: None }
    }

    /// The count is `total` now; it was looked at `seconds` ago.
    fn note(&mut self, total: Option<u64>, seconds: Option<f64>) {
        let rate = match (self.total, total, seconds) {
            // A count that fell was cleared, or the daemon was started anew: what it is now came since.
            (Some(before), Some(now), Some(seconds)) if seconds > 0.0 => {
                Some(now.checked_sub(before).unwrap_or(now) as f64 / seconds)
            }
            _ => None,
        };
        self.total = total;
        self.rate = rate.or(self.rate.filter(|_| seconds == Some(0.0)));
        if let Some(rate) = rate {
            self.history.push_back(rate as u64);
            if self.history.len() > HISTORY {
                self.history.pop_front();
            }
        }
    }
}

impl Model {
    pub fn new(interval: Duration, colour: bool) -> Model {
        Model {
            interval,
            colour,
            paused: false,
            help: false,
            sort: Sort::Packets,
            scroll: 0,
            version: String::new(),
            lost: None,
            levels: LEVELS.map(Level::new).to_vec(),
            drops: Level::new("drops"),
            device: Device::default(),
            workers: Vec::new(),
            flows: Vec::new(),
            no_flows: None,
            last: None,
        }
    }

    /// The daemon does not answer.
    pub fn lose(&mut self, why: String) {
        self.lost = Some(why);
        self.last = None;
    }

    /// Takes in what the daemon said.
    pub fn feed(&mut self, sample: Sample) {
        let seconds = self.last.map(|last| sample.at.saturating_duration_since(last).as_secs_f64());
        self.last = Some(sample.at);
        self.lost = None;
        self.version = match (sample.version["name"].as_str(), sample.version["version"].as_str()) {
            (Some(name), Some(version)) => format!("{name} {version}"),
            _ => String::new(),
        };
        let totals = [
            device_packets(&sample.offload),
            of_pollers(&sample.perf, |poller| poller["mark_hits"].as_u64()),
            of_pollers(&sample.perf, |poller| poller["emc_hits"].as_u64()),
            of_pollers(&sample.perf, |poller| poller["megaflow_hits"].as_u64()),
            of_pollers(&sample.perf, |poller| poller["upcalls"].as_u64()),
        ];
        for (level, total) in self.levels.iter_mut().zip(totals) {
            level.note(total, seconds);
        }
        self.drops.note(of_pollers(&sample.perf, drops), seconds);
        self.device = Device::read(&sample.offload);
        self.workers = sample.queue["workers"].as_array().into_iter().flatten().map(Worker::read).collect();
        match sample.flows {
            Some(Ok(flows)) => (self.flows, self.no_flows) = (flows, None),
            Some(Err(why)) => (self.flows, self.no_flows) = (Vec::new(), Some(why)),
            None => {}
        }
        self.sort_flows();
        self.scroll = self.scroll.min(self.flows.len().saturating_sub(1));
    }

    pub fn sort_flows(&mut self) {
        let sort = self.sort;
        self.flows.sort_by(|a, b| match sort {
            Sort::Packets => b.pps.total_cmp(&a.pps),
            Sort::Bits => b.bps.total_cmp(&a.bps),
            Sort::State => a.standing.cmp(&b.standing).then(b.pps.total_cmp(&a.pps)),
        });
    }

    /// All packets a second.
    pub fn total(&self) -> Option<f64> {
        self.levels.iter().map(|level| level.rate).try_fold(0.0, |sum, rate| Some(sum + rate?))
    }
}

/// The sum over the pollers; `None` if one does not say.
fn of_pollers(perf: &Value, count: impl Fn(&Value) -> Option<u64>) -> Option<u64> {
    let pollers = perf["pollers"].as_array()?;
    pollers.iter().map(count).try_fold(0u64, |sum, n| Some(sum.saturating_add(n?)))
}

/// Packets that a poller dropped, for whatever reason.
fn drops(poller: &Value) -> Option<u64> {
    let fates = poller["fate"].as_array()?;
    let dropped = fates.iter().filter(|fate| fate[0].as_str().is_some_and(|name| name.starts_with("dropped")));
    Some(dropped.filter_map(|fate| fate[1].as_u64()).sum::<u64>() + poller["runts"].as_u64().unwrap_or(0))
}

/// Packets that the device forwarded by itself.
fn device_packets(offload: &Value) -> Option<u64> {
    let ports = offload["port_counts"].as_object()?;
    Some(ports.values().filter_map(|port| port["full"].as_u64()).sum())
}

impl Device {
    fn read(offload: &Value) -> Device {
        let number = |pointer: &str| offload.pointer(pointer).and_then(Value::as_u64);
        let mut reasons: Vec<(String, u64)> = ["refused", "short"]
            .iter()
            .flat_map(|list| offload[*list].as_array().into_iter().flatten())
            .filter_map(|row| Some((row[0].as_str()?.to_owned(), row[1].as_u64()?)))
            .collect();
        reasons.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
        Device {
            name: offload["backend"].as_str().unwrap_or_default().to_owned(),
            enabled: offload["enabled"].as_bool(),
            off: offload["off"].as_str().map(str::to_owned),
            rules: number("/rules"),
            full: number("/rules_full"),
            capacity: number("/capacity"),
            marks: number("/marks/in_use"),
            mark_capacity: number("/marks/capacity"),
            quarantined: number("/marks/quarantined"),
            reasons,
        }
    }
}

impl Worker {
    fn read(worker: &Value) -> Worker {
        let number = |pointer: &str| worker.pointer(pointer).and_then(Value::as_u64);
        Worker {
            id: number("/id").unwrap_or(0),
            depth: number("/queue/depth"),
            limit: number("/queue/limit"),
            rules: number("/rules"),
            p50_ns: number("/latency/all/p50_ns"),
            p99_ns: number("/latency/all/p99_ns"),
            p999_ns: number("/latency/all/p999_ns"),
        }
    }
}

impl Flow {
    pub fn read(row: &Value) -> Flow {
        let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
        Flow {
            pps: row["pps"].as_f64().unwrap_or(0.0),
            bps: row["bps"].as_f64().unwrap_or(0.0),
            standing: text("standing"),
            reason: row["reason"].as_str().map(str::to_owned),
            // What all flows have says nothing of one.
            key: COMMON.iter().fold(text("key"), |key, common| key.replacen(common, "", 1)),
            actions: text("actions"),
        }
    }
}

/// Keys that stand in every flow.
const COMMON: [&str; 2] = ["recirc_id(0),", "packet_type(ns=0,id=0),"];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sample(at: Instant, mark_hits: Value) -> Sample {
        Sample {
            at,
            version: Value::Null,
            perf: json!({"pollers": [{"mark_hits": mark_hits, "fate": [["sent", 5], ["dropped_ttl", 2]]}]}),
            offload: Value::Null,
            queue: Value::Null,
            flows: None,
        }
    }

    #[test]
    fn rates_are_of_what_came_between_two_looks() {
        let (mut model, start) = (Model::new(Duration::from_secs(1), false), Instant::now());
        let at = |second| start + Duration::from_secs(second);
        let mut rate = |second, hits: Value| {
            model.feed(sample(at(second), hits));
            model.levels[1].rate
        };
        assert_eq!(rate(0, json!(100)), None, "the first look knows no rate");
        assert_eq!(rate(2, json!(300)), Some(100.0));
        assert_eq!(rate(2, json!(300)), Some(100.0), "no time has passed");
        assert_eq!(rate(3, json!(40)), Some(40.0), "the count was cleared meanwhile");
        assert_eq!(rate(4, Value::Null), None, "nothing was said");
        assert_eq!(rate(5, json!(60)), None);
        assert_eq!(rate(6, json!(61)), Some(1.0));
        model.lose("gone".into());
        model.feed(sample(at(9), json!(70)));
        assert_eq!(model.levels[1].rate, None, "nobody knows how long it was away");
        assert_eq!(model.levels[0].rate, None, "a daemon may not tell");
        assert_eq!((model.total(), model.lost), (None, None));
    }

    #[test]
    fn history_is_bounded() {
        let (mut model, start) = (Model::new(Duration::from_secs(1), false), Instant::now());
        for n in 0..1_000 {
            model.feed(sample(start + Duration::from_secs(n), json!(n * 7)));
        }
        assert_eq!(model.levels[1].history.len(), HISTORY);
        assert!(model.levels[1].history.iter().all(|rate| *rate == 7));
    }

    #[test]
    fn flows_are_sorted_as_wanted_and_what_is_missing_is_empty() {
        let mut model = Model::new(Duration::from_secs(1), false);
        model.flows = [(1.0, 9.0, "mark"), (2.0, 1.0, "full"), (0.5, 5.0, "full")]
            .map(|(pps, bps, standing)| Flow { pps, bps, standing: standing.into(), ..Flow::read(&Value::Null) })
            .to_vec();
        let mut sorted = |sort| {
            model.sort = sort;
            model.sort_flows();
            model.flows.iter().map(|flow| flow.pps).collect::<Vec<_>>()
        };
        assert_eq!(sorted(Sort::Packets), [2.0, 1.0, 0.5]);
        assert_eq!(sorted(Sort::Bits), [1.0, 0.5, 2.0]);
        assert_eq!(sorted(Sort::State), [2.0, 0.5, 1.0]);
    }
}
