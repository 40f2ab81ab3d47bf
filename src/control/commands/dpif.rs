//! `dpif/*`: the datapath under its bridge's name, and offload in Open vSwitch's shape.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Value, json};

use super::dpctl::dump::{Dump, named};
use super::{BRIDGE, DATAPATH, Options};
use crate::control::answer::{Answer, CommandError};
use crate::control::registry::{Command, Right};
use crate::daemon::Daemon;
use crate::datapath::switch::PortView;
use crate::offload::backend::PortCounts;
use crate::offload::report::Percentiles;

type Result<T> = std::result::Result<T, CommandError>;

pub static COMMANDS: &[Command<Arc<Daemon>>] = &[
    Command {
        name: "dpif/show",
        usage: "",
        help: "Shows the bridge and its ports, and how packets were looked up.",
        args: 0..=0,
        right: Right::Read,
        run: |daemon, _| Box::pin(async move { Ok(Answer::of(Show::new(&daemon))) }),
    },
    Command {
        name: "dpif/dump-dps",
        usage: "",
        help: "Names the bridge: there is one.",
        args: 0..=0,
        right: Right::Read,
        run: |_, _| {
            Box::pin(async { Ok(Answer::new(format!("netdev@{BRIDGE}"), json!([format!("netdev@{BRIDGE}")]))) })
        },
    },
    Command {
        name: "dpif/dump-flows",
        usage: "[-m] [--names|--no-names] BRIDGE",
        help: "Lists the flows of BRIDGE, as dpctl/dump-flows does.",
        args: 1..=4,
        right: Right::Read,
        run: |daemon, args| {
            Box::pin(async move {
                let options = Options::split(args, &["-m", "--more", "--names", "--no-names"])?;
                bridge(&options, "dpif/dump-flows [-m] [--names|--no-names] BRIDGE")?;
                let more = options.has(&["-m", "--more"]);
                Ok(Dump::new(&daemon, more, named(&options)).answer(daemon))
            })
        },
    },
    Command {
        name: "dpif/offload/show",
        usage: "",
        help: "Shows which devices take flows of which ports, and what they did with packets, in Open vSwitch's words.",
        args: 0..=0,
        right: Right::Read,
        run: |daemon, _| Box::pin(async move { Ok(Answer::of(OffloadShow::new(&daemon))) }),
    },
    Command {
        name: "dpif/offload/classes",
        usage: "",
        help: "Lists the kinds of offload devices, and the kind of datapath that they serve.",
        args: 0..=0,
        right: Right::Read,
        run: |_, _| Box::pin(async { Ok(Answer::of(Classes)) }),
    },
];

fn bridge(options: &Options, usage: &str) -> Result<()> {
    let [bridge] = options.exactly(usage)?;
    match bridge == BRIDGE {
        true => Ok(()),
        false => Err(CommandError::new(format!("no such bridge: {bridge:?}; there is {BRIDGE}"))),
    }
}

/// What `dpif/show` says.
struct Show {
    hit: u64,
    missed: u64,
    ports: Vec<PortView>,
}

impl Show {
    fn new(daemon: &Daemon) -> Show {
        let (hit, missed) = daemon.switch.totals().lookup.hits_and_misses();
        Show { hit, missed, ports: daemon.switch.port_views() }
    }
}

/// What a port was opened with that people would ask for.
fn settings(port: &PortView) -> Vec<(String, String)> {
    let ifindex = port.info.ifindex.map(|ifindex| ("ifindex".to_owned(), ifindex.to_string()));
    let queues = ("n_rxq".to_owned(), port.info.rx_queues.to_string());
    let details = port.details.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
    ifindex.into_iter().chain([queues]).chain(details).collect()
}

impl fmt::Display for Show {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{DATAPATH}: hit:{} missed:{}\n  {BRIDGE}:", self.hit, self.missed)?;
        for port in &self.ports {
            let number = port.info.number;
            let settings: Vec<_> = settings(port).iter().map(|(name, value)| format!("{name}={value}")).collect();
            writeln!(f, "    {} {number}/{number}: ({}: {})", port.info.name, port.info.kind, settings.join(", "))?;
        }
        Ok(())
    }
}

/// In Open vSwitch's shape, where numbers are strings.
impl Serialize for Show {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let port = |port: &PortView| {
            let config: BTreeMap<_, _> = settings(port).into_iter().collect();
            let number = port.info.number.to_string();
            let shown = json!({ "config": config, "ofport": number, "port_no": number, "type": port.info.kind });
            (port.info.name.clone(), shown)
        };
        let ports: BTreeMap<String, Value> = self.ports.iter().map(port).collect();
        let stats = json!({ "hit": self.hit.to_string(), "missed": self.missed.to_string() });
        json!({ DATAPATH: { "bridges": { BRIDGE: ports }, "stats": stats } }).serialize(serializer)
    }
}

/// What `dpif/offload/show` says.
struct OffloadShow {
    enabled: bool,
    /// `None`: there is no device.
    device: Option<String>,
    ports: BTreeMap<String, PortRow>,
}

#[derive(Serialize)]
struct PortRow {
    port_no: u32,
    #[serde(flatten)]
    counts: Option<Counts>,
}

#[derive(Serialize)]
struct Counts {
    rx_offload_full: u64,
    rx_offload_miss: u64,
    rx_offload_partial: u64,
    rx_offload_pipe_abort: u64,
}

impl OffloadShow {
    fn new(daemon: &Daemon) -> OffloadShow {
        let snapshot = daemon.switch.offload.snapshot();
        let has_device = daemon.switch.offload.has_device();
        let row = |number| {
            let counts = daemon.switch.device_counts(number).map(|counts| {
                let PortCounts { hits, full, misses, busy, aborted, .. } = counts;
                Counts {
                    rx_offload_full: full,
                    rx_offload_miss: misses + busy,
                    rx_offload_partial: hits.saturating_sub(aborted),
                    rx_offload_pipe_abort: aborted,
                }
            });
            PortRow { port_no: number.0, counts }
        };
        OffloadShow {
            enabled: has_device && snapshot.off.is_none() && snapshot.settings.enabled,
            device: has_device.then(|| snapshot.backend.to_owned()),
            ports: snapshot.ports.iter().map(|port| (port.name.clone(), row(port.number))).collect(),
        }
    }
}

impl fmt::Display for OffloadShow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Globally enabled: {}\nDatapaths:\n{DATAPATH}:", self.enabled)?;
        let Some(device) = &self.device else { return Ok(()) };
        writeln!(f, "  {device}")?;
        for (name, port) in &self.ports {
            writeln!(f, "  - {name}: port_no: {}", port.port_no)?;
            if let Some(counts) = &port.counts {
                writeln!(f, "    rx_offload_partial   : {}", counts.rx_offload_partial)?;
                writeln!(f, "    rx_offload_full      : {}", counts.rx_offload_full)?;
                writeln!(f, "    rx_offload_miss      : {}", counts.rx_offload_miss)?;
                writeln!(f, "    rx_offload_pipe_abort: {}", counts.rx_offload_pipe_abort)?;
            }
        }
        Ok(())
    }
}

/// In Open vSwitch's shape: `ports` is absent where there are none.
impl Serialize for OffloadShow {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let ports = if self.ports.is_empty() { json!({}) } else { json!({ "ports": self.ports }) };
        let providers: BTreeMap<_, _> = self.device.iter().map(|device| (device.clone(), ports.clone())).collect();
        let priority: Vec<_> = self.device.iter().collect();
        json!({ DATAPATH: { "priority": priority, "providers": providers }, "enabled": self.enabled })
            .serialize(serializer)
    }
}

/// What `dpif/offload/classes` says.
struct Classes;

impl fmt::Display for Classes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Offload Class     Supported dpif class(es)")?;
        writeln!(f, "----------------  ------------------------")?;
        CLASSES.iter().try_for_each(|class| writeln!(f, "{class:<16}  netdev"))
    }
}

impl Serialize for Classes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_map(CLASSES.iter().map(|class| (class, ["netdev"])))
    }
}

/// Kinds of devices, as `offload.device` of the configuration names them.
const CLASSES: [&str; 2] = ["chaos", "sim"];

/// What `dpctl/offload-stats-show` says.
#[derive(Serialize)]
pub(super) struct OffloadStats {
    datapath: &'static str,
    /// `None`: there is no device.
    device: Option<String>,
    total: Stats,
    workers: Vec<Stats>,
}

#[derive(Serialize)]
struct Stats {
    enqueued: u64,
    inserted: u64,
    /// From request to done.
    latency: Percentiles,
}

impl OffloadStats {
    pub(super) fn new(daemon: &Daemon) -> OffloadStats {
        let snapshot = daemon.switch.offload.snapshot();
        let workers: Vec<Stats> = snapshot
            .workers
            .iter()
            .map(|worker| Stats {
                enqueued: worker.queue.depth as u64,
                inserted: worker.rules as u64,
                latency: worker.latency.all,
            })
            .collect();
        let total = Stats {
            enqueued: workers.iter().map(|worker| worker.enqueued).sum(),
            inserted: workers.iter().map(|worker| worker.inserted).sum(),
            latency: snapshot.latency.all,
        };
        let device = daemon.switch.offload.has_device().then(|| snapshot.backend.to_owned());
        OffloadStats { datapath: DATAPATH, device, total, workers }
    }
}

impl fmt::Display for OffloadStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "HW Offload stats:")?;
        let Some(device) = &self.device else { return Ok(()) };
        writeln!(f, "  {device}[{}]:", self.datapath)?;
        let names = (0..).map(|id| format!("[{id:3}]"));
        let blocks = [("Total".to_owned(), &self.total)].into_iter().chain(names.zip(&self.workers));
        for (name, Stats { enqueued, inserted, latency }) in blocks {
            let mut line = |what: &str, value: String| writeln!(f, "      {name} {what:>38}: {value:>6}");
            line("Enqueued offloads", enqueued.to_string())?;
            line("Inserted offloads", inserted.to_string())?;
            let us = |ns: u64| (ns / 1_000).to_string();
            line("Latency, median (us)", us(latency.p50_ns))?;
            line("Latency, 90th percentile (us)", us(latency.p90_ns))?;
            line("Latency, 99th percentile (us)", us(latency.p99_ns))?;
            line("Latency, highest (us)", us(latency.max_ns))?;
        }
        Ok(())
    }
}
