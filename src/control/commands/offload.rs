//! `dpif/offload-show`, `flow-flush`, `offload/*`: the device, its queue, its marks, and why a flow is not in it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::json;

use super::flush::{FLUSH_PATIENCE, forgotten};
use super::{DATAPATH, PATIENCE, events, explain, flush, top};
use crate::control::answer::{Answer, CommandError};
use crate::control::registry::{Command, Right, deadline};
use crate::daemon::Daemon;
use crate::flow::text::format_match;
use crate::offload::backend::PortCounts;
use crate::offload::queue::QueueCounts;
use crate::offload::report::{Outcomes, Percentiles, PortRow, WorkerRow};
use crate::offload::{Flushed, Snapshot, Wanted};

/// How long a device that was given up may take to come back.
const RESUME_PATIENCE: Duration = Duration::from_secs(60);

/// Marks asked of the workers at a time.
const MARK_PAGE: usize = 1_000;

pub static COMMANDS: &[Command<Arc<Daemon>>] = &[
    Command {
        name: "dpif/offload-show",
        usage: "",
        help: "Shows the offload path: device, ports, rules, marks, queue, operations by outcome, reasons, latency from request to done.",
        args: 0..=0,
        right: Right::Read,
        run: |daemon, _| Box::pin(async move { Ok(Answer::of(OffloadShow::new(&daemon))) }),
    },
    Command {
        name: "flow-flush",
        usage: "[--offload] [--port PORT] [--wait SECS]",
        help: "Deletes all datapath flows, or those of packets from PORT, and waits until the device has forgotten them, at most SECS (default 10).\n  \
               With --offload only the device forgets; the flows stay, and come back to it.",
        args: 0..=5,
        right: Right::Write,
        run: |daemon, args| Box::pin(async move { flush::flush(&daemon, &args).await }),
    },
    Command {
        name: "flow-top",
        usage: "[-n N] [--over SECS]",
        help: "Shows the N flows (default 10) with the most packets in SECS seconds (default 1).",
        args: 0..=4,
        right: Right::Read,
        run: |daemon, args| Box::pin(async move { top::top(&daemon, &args).await }),
    },
    Command {
        name: "offload/events",
        usage: "[CURSOR] [--limit N]",
        help: "Shows what happened to rules in the device since CURSOR, the number \"next\" of an earlier answer: installed, offloaded, refused, retired, evicted, reset.",
        args: 0..=3,
        right: Right::Read,
        run: |daemon, args| Box::pin(async move { events::events(&daemon, &args) }),
    },
    Command {
        name: "offload/explain",
        usage: "UFID|--all [REASON]",
        help: "Says why a flow, or each flow, is not as far in the device as it could be; with REASON only those of that kind or reason.",
        args: 1..=2,
        right: Right::Read,
        run: |daemon, args| Box::pin(async move { explain::explain(&daemon, &args).await }),
    },
    Command {
        name: "offload/flush",
        usage: "[--wait SECS]",
        help: "Makes the device forget all rules, and waits for that, at most SECS (default 10); flows stay, and come back to it.",
        args: 0..=2,
        right: Right::Write,
        run: |daemon, args| {
            Box::pin(async move {
                let args: Vec<String> = [vec!["--offload".to_owned()], args].concat();
                flush::flush(&daemon, &args).await
            })
        },
    },
    Command {
        name: "offload/mark-show",
        usage: "",
        help: "Lists the marks in use: mark, ufid, the pollers that have the flow, packets that the device matched, megaflow.",
        args: 0..=0,
        right: Right::Read,
        run: |daemon, _| Box::pin(async move { marks(&daemon).await }),
    },
    Command {
        name: "offload/pause",
        usage: "",
        help: "Switches offload off: removes every rule from the device, waits up to 10 s for that, and goes on in software.",
        args: 0..=0,
        right: Right::Write,
        run: |daemon, _| Box::pin(async move { pause(&daemon).await }),
    },
    Command {
        name: "offload/queue-show",
        usage: "",
        help: "Shows each offload worker's queue: depth, limit, what came, coalesced, was refused, how often it was woken; and its times.",
        args: 0..=0,
        right: Right::Read,
        run: |daemon, _| Box::pin(async move { Ok(Answer::of(QueueShow::new(&daemon))) }),
    },
    Command {
        name: "offload/resume",
        usage: "",
        help: "Switches offload on again; a device that hung or failed is restarted first, and filled anew.",
        args: 0..=0,
        right: Right::Write,
        run: |daemon, _| Box::pin(async move { resume(daemon).await }),
    },
    Command {
        name: "offload/set",
        usage: "[KEY=VALUE]...",
        help: "Changes settings until the next reload: threads, min-packets, min-age, min-rate, operation-rate. Without any, shows them.",
        args: 0..=5,
        right: Right::Write,
        run: |daemon, args| Box::pin(async move { set(&daemon, &args) }),
    },
    Command {
        name: "offload/stats-clear",
        usage: "",
        help: "Sets the counts of operations and the percentiles of dpif/offload-show back to nothing.",
        args: 0..=0,
        right: Right::Write,
        run: |daemon, _| {
            Box::pin(async move {
                daemon.switch.offload.clear_counts();
                Ok(Answer::nothing())
            })
        },
    },
];

/// What `dpif/offload-show` says.
#[derive(Serialize)]
struct OffloadShow {
    enabled: bool,
    datapath: &'static str,
    #[serde(flatten)]
    snapshot: Snapshot,
    /// What the device did with each port's packets, by port name.
    port_counts: BTreeMap<String, PortCounts>,
}

impl OffloadShow {
    fn new(daemon: &Daemon) -> OffloadShow {
        let snapshot = daemon.switch.offload.snapshot();
        let enabled = daemon.switch.offload.has_device() && snapshot.off.is_none() && snapshot.settings.enabled;
        let counts = |row: &PortRow| Some((row.name.clone(), daemon.switch.device_counts(row.number)?));
        let port_counts = snapshot.ports.iter().filter_map(counts).collect();
        OffloadShow { enabled, datapath: DATAPATH, snapshot, port_counts }
    }
}

impl fmt::Display for OffloadShow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let OffloadShow { enabled, datapath, snapshot, port_counts } = self;
        writeln!(f, "Globally enabled: {enabled}")?;
        if let Some(reason) = &snapshot.off {
            writeln!(f, "Off because: {reason}")?;
        }
        writeln!(f, "Datapaths:\n{datapath}:\n  {}", snapshot.backend)?;
        for port in &snapshot.ports {
            writeln!(f, "  - {}: port_no: {}", port.name, port.number)?;
            if let Some(PortCounts { hits, full, misses, busy, .. }) = port_counts.get(&port.name) {
                writeln!(f, "    rx_offload_partial   : {hits}")?;
                writeln!(f, "    rx_offload_full      : {full}")?;
                writeln!(f, "    rx_offload_miss      : {misses}")?;
                writeln!(f, "    rx_offload_busy      : {busy}")?;
            }
        }
        let capacity = snapshot.capacity.map_or("no limit".into(), |rules| rules.to_string());
        writeln!(f, "  level: {}", snapshot.level)?;
        writeln!(
            f,
            "  rules in use: {} of {capacity} (full: {}, confirmed by hits: {})",
            snapshot.rules, snapshot.rules_full, snapshot.rules_confirmed
        )?;
        writeln!(f, "  megaflows known: {}", snapshot.megaflows)?;
        let marks = &snapshot.marks;
        writeln!(f, "  marks in use: {} of {} (quarantined: {})", marks.in_use, marks.capacity, marks.quarantined)?;
        let queue = &snapshot.queue;
        writeln!(f, "  workers: {}", snapshot.workers.len())?;
        writeln!(
            f,
            "  queue depth: {} of {} (highest: {}, bytes: {} of {})",
            queue.depth, queue.limit, queue.high_water, queue.bytes, queue.byte_limit
        )?;
        writeln!(f, "  operations:        done   unsupported  no room  device error")?;
        let operations = &snapshot.operations;
        for (name, outcomes) in [("put", operations.put), ("modify", operations.modify), ("delete", operations.delete)]
        {
            let Outcomes { done, unsupported, no_room, device } = outcomes;
            writeln!(f, "    {name:<8} {done:>12}  {unsupported:>12}  {no_room:>7}  {device:>12}")?;
        }
        for (reason, megaflows) in &snapshot.refused {
            writeln!(f, "  not offloaded, {reason}: {megaflows}")?;
        }
        for (reason, megaflows) in &snapshot.short {
            writeln!(f, "  marked only, {reason}: {megaflows}")?;
        }
        if snapshot.evictions > 0 {
            writeln!(f, "  evicted for busier flows: {}", snapshot.evictions)?;
        }
        if snapshot.resets > 0 {
            writeln!(f, "  device resets: {}", snapshot.resets)?;
        }
        if let Some(packets) = snapshot.forgotten.filter(|packets| *packets > 0) {
            writeln!(f, "  packets that the device forgot to tell of: {packets}")?;
        }
        writeln!(f, "  latency, request to done: {}", Micros(&snapshot.latency.all))?;
        writeln!(f, "  latency, decision to new actions: {}", Micros(&snapshot.latency.modify))?;
        writeln!(f, "  device time, operation:   {}", Micros(&snapshot.device_time))
    }
}

/// Percentiles in microseconds.
struct Micros<'a>(&'a Percentiles);

impl fmt::Display for Micros<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Percentiles { count, p50_ns, p90_ns, p99_ns, p999_ns, max_ns } = *self.0;
        let us = |ns: u64| ns as f64 / 1e3;
        write!(
            f,
            "p50 {:.1} us, p90 {:.1} us, p99 {:.1} us, p99.9 {:.1} us, max {:.1} us ({count} samples)",
            us(p50_ns),
            us(p90_ns),
            us(p99_ns),
            us(p999_ns),
            us(max_ns)
        )
    }
}

/// What `offload/queue-show` says.
#[derive(Serialize)]
struct QueueShow {
    total: QueueCounts,
    workers: Vec<WorkerRow>,
}

impl QueueShow {
    fn new(daemon: &Daemon) -> QueueShow {
        let snapshot = daemon.switch.offload.snapshot();
        QueueShow { total: snapshot.queue, workers: snapshot.workers }
    }
}

impl fmt::Display for QueueShow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for worker in &self.workers {
            let queue = &worker.queue;
            writeln!(f, "worker {}:", worker.id)?;
            writeln!(f, "  puts waiting: {} of {} (highest: {})", queue.depth, queue.limit, queue.high_water)?;
            writeln!(f, "  deletes and changes waiting: {}", queue.deletes)?;
            writeln!(f, "  bytes: {} of {}", queue.bytes, queue.byte_limit)?;
            writeln!(f, "  enqueued: {}", queue.enqueued)?;
            writeln!(f, "  coalesced: {}", queue.coalesced)?;
            writeln!(f, "  refused, queue full: {}", queue.refused)?;
            writeln!(f, "  wake-ups: {}", queue.wakeups)?;
            writeln!(
                f,
                "  rules: {}, megaflows: {}, waiting for room: {}",
                worker.rules, worker.megaflows, worker.waiting
            )?;
            writeln!(f, "  latency, request to done: {}", Micros(&worker.latency.all))?;
            writeln!(f, "  device time, operation:   {}", Micros(&worker.device_time))?;
            if let Some(busy) = worker.busy_ns {
                writeln!(f, "  in the device for {:.1} ms", busy as f64 / 1e6)?;
            }
        }
        Ok(())
    }
}

async fn pause(daemon: &Daemon) -> Result<Answer, CommandError> {
    let offload = &daemon.switch.offload;
    if !offload.has_device() {
        return Err(CommandError::new("there is no device"));
    }
    offload.set(&Wanted { enabled: false, ..offload.settings().get() });
    match forgotten(daemon, FLUSH_PATIENCE).await {
        Some(Ok(Flushed { removed, trouble: None })) => Ok(Answer::new(
            format!("offload is switched off; {removed} device rules removed"),
            json!({ "rules": removed }),
        )),
        Some(Ok(Flushed { trouble: Some(trouble), .. })) => {
            Err(CommandError::new(format!("offload is switched off; the device may still have rules: {trouble}")))
        }
        Some(Err(error)) => Err(CommandError::new(format!("offload is switched off, but {error}"))),
        None => Err(CommandError::new("offload is switched off; the device has not forgotten all rules within 10s")),
    }
}

async fn resume(daemon: Arc<Daemon>) -> Result<Answer, CommandError> {
    let offload = &daemon.switch.offload;
    if !offload.has_device() {
        return Err(CommandError::new("there is no device"));
    }
    offload.set(&Wanted { enabled: true, ..offload.settings().get() });
    if offload.off().is_none() {
        return Ok(Answer::new("offload is on", json!({ "restarted": false })));
    }
    let resumed = daemon.in_background("offload-resume", |daemon| daemon.resume_offload());
    let restarted = deadline(RESUME_PATIENCE, resumed)
        .await
        .map_err(|_| CommandError::new("the device has not come back within 1m; offload stays off"))?
        .map_err(|_| CommandError::new("the device could not be restarted; see the log"))?
        .map_err(|error| CommandError::new(format!("the device could not be restarted: {error}")))?;
    Ok(Answer::new("offload is on; the device was restarted", json!({ "restarted": restarted })))
}

/// What `offload/set` says.
#[derive(Serialize)]
struct SettingsShow {
    threads: usize,
    #[serde(flatten)]
    wanted: Wanted,
}

impl fmt::Display for SettingsShow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Wanted { enabled, min_packets, min_age, min_rate, operation_rate } = self.wanted;
        writeln!(f, "enabled={enabled}")?;
        writeln!(f, "threads={}", self.threads)?;
        writeln!(f, "min-packets={min_packets}")?;
        writeln!(f, "min-age={}", humantime::format_duration(min_age))?;
        writeln!(f, "min-rate={min_rate}")?;
        writeln!(f, "operation-rate={operation_rate}")
    }
}

fn set(daemon: &Daemon, args: &[String]) -> Result<Answer, CommandError> {
    let offload = &daemon.switch.offload;
    let (mut wanted, mut threads) = (offload.settings().get(), offload.threads());
    for arg in args {
        let (key, value) = arg.split_once('=').unwrap_or((arg, ""));
        let refuse = |expected: &str| CommandError::new(format!("{key}={value}: expected {expected}"));
        let number = || value.parse::<u64>().map_err(|_| refuse("a number"));
        match key {
            "threads" => {
                threads = value.parse().ok().filter(|n| (1..=16).contains(n)).ok_or_else(|| refuse("1 to 16"))?;
            }
            "min-packets" => wanted.min_packets = number()?,
            "min-age" => {
                wanted.min_age = humantime::parse_duration(value).map_err(|_| refuse("a time such as 500ms"))?;
            }
            "min-rate" => wanted.min_rate = number()?,
            "operation-rate" => wanted.operation_rate = number()?,
            _ => {
                let known = "threads, min-packets, min-age, min-rate, operation-rate";
                return Err(CommandError::new(format!("{arg:?}: expected KEY=VALUE with a KEY of {known}")));
            }
        }
    }
    // Nothing has changed so far: what is wrong costs nothing.
    if !args.is_empty() {
        if !offload.has_device() {
            return Err(CommandError::new("there is no device"));
        }
        offload.set_threads(threads).map_err(|error| CommandError::new(format!("threads={threads}: {error}")))?;
        offload.set(&wanted);
    }
    Ok(Answer::of(SettingsShow { threads, wanted }))
}

async fn marks(daemon: &Daemon) -> Result<Answer, CommandError> {
    let names = daemon.switch.names();
    let mut text = String::new();
    let mut list = Vec::new();
    let mut after = Some(0);
    while let Some(from) = after {
        let page = deadline(PATIENCE, daemon.switch.offload.marks(from, MARK_PAGE)).await?;
        let page = page.map_err(|_| CommandError::new("the offload worker does not answer"))?;
        for row in &page.rows {
            let owners: Vec<String> = row.owners.iter().map(|poller| format!("poller{poller}")).collect();
            let key = format_match(&row.matching, false, &names);
            text += &format!(
                "mark:{}, ufid:{}, owners:{}, hits:{}, {key}\n",
                row.mark,
                row.ufid,
                owners.join("+"),
                row.hits
            );
            list.push(json!({
                "mark": row.mark, "ufid": row.ufid.to_string(), "owners": row.owners, "hits": row.hits, "key": key,
            }));
        }
        after = page.next;
    }
    Ok(Answer::new(text, json!(list)))
}
