//! `dpif/offload-show`, `flow-flush`, `offload/*`: the device, its queue and its marks.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;

use super::{DATAPATH, PATIENCE};
use crate::control::answer::{Answer, CommandError};
use crate::control::registry::{Command, Right, deadline};
use crate::daemon::Daemon;
use crate::flow::text::format_match;
use crate::offload::Snapshot;
use crate::offload::backend::PortCounts;
use crate::offload::queue::QueueCounts;
use crate::offload::report::{Outcomes, Percentiles, PortRow};

/// How long `flow-flush` waits for the device unless told.
const FLUSH_PATIENCE: Duration = Duration::from_secs(10);

/// Marks asked of the worker at a time.
const MARK_PAGE: usize = 1_000;

pub static COMMANDS: &[Command<Arc<Daemon>>] = &[
    Command {
        name: "dpif/offload-show",
        usage: "",
        help: "Shows the offload path: device, ports, rules, marks, queue, operations by outcome, latency from request to done.",
        args: 0..=0,
        right: Right::Read,
        run: |daemon, _| Box::pin(async move { Ok(Answer::of(OffloadShow::new(&daemon))) }),
    },
    Command {
        name: "flow-flush",
        usage: "[--wait SECS]",
        help: "Deletes all datapath flows and waits until the device has forgotten them, at most SECS (default 10).",
        args: 0..=2,
        right: Right::Write,
        run: |daemon, args| Box::pin(async move { flush(&daemon, &args).await }),
    },
    Command {
        name: "offload/mark-show",
        usage: "",
        help: "Lists the marks in use: mark, ufid, the pollers that have the flow, packets that the device marked, megaflow.",
        args: 0..=0,
        right: Right::Read,
        run: |daemon, _| Box::pin(async move { marks(&daemon).await }),
    },
    Command {
        name: "offload/queue-show",
        usage: "",
        help: "Shows the offload queue: depth, limit, what came, coalesced, was refused, and how often its worker was woken.",
        args: 0..=0,
        right: Right::Read,
        run: |daemon, _| Box::pin(async move { Ok(Answer::of(QueueShow(daemon.switch.offload.queue()))) }),
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
        let enabled = daemon.switch.offload.has_device() && snapshot.off.is_none();
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
        writeln!(f, "  rules in use: {} of {capacity}", snapshot.rules)?;
        writeln!(f, "  megaflows known: {}", snapshot.megaflows)?;
        let marks = &snapshot.marks;
        writeln!(f, "  marks in use: {} of {} (quarantined: {})", marks.in_use, marks.capacity, marks.quarantined)?;
        let queue = &snapshot.queue;
        writeln!(
            f,
            "  queue depth: {} of {} (highest: {}, bytes: {})",
            queue.depth, queue.limit, queue.high_water, snapshot.queue_bytes
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
        if snapshot.resets > 0 {
            writeln!(f, "  device resets: {}", snapshot.resets)?;
        }
        writeln!(f, "  latency, request to done: {}", Micros(&snapshot.latency))?;
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
#[serde(transparent)]
struct QueueShow(QueueCounts);

impl fmt::Display for QueueShow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queue = &self.0;
        writeln!(f, "puts waiting: {} of {} (highest: {})", queue.depth, queue.limit, queue.high_water)?;
        writeln!(f, "deletes waiting: {}", queue.deletes)?;
        writeln!(f, "enqueued: {}", queue.enqueued)?;
        writeln!(f, "coalesced: {}", queue.coalesced)?;
        writeln!(f, "refused, queue full: {}", queue.refused)?;
        writeln!(f, "wake-ups: {}", queue.wakeups)
    }
}

async fn flush(daemon: &Daemon, args: &[String]) -> Result<Answer, CommandError> {
    let patience = match args {
        [] => FLUSH_PATIENCE,
        [option, seconds] if option == "--wait" => seconds
            .parse()
            .ok()
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            .ok_or_else(|| CommandError::new(format!("--wait {seconds:?}: expected a number of seconds")))?,
        _ => return Err(CommandError::new("usage: flow-flush [--wait SECS]")),
    };
    // Deleted flows take their rules along before the device is asked to forget what is left, so all removals are counted.
    let removed = || daemon.switch.offload.snapshot().operations.delete.done;
    let before = removed();
    let begun = Instant::now();
    let shown = humantime::format_duration(patience);
    let flows = deadline(patience, daemon.switch.flush(None))
        .await
        .map_err(|_| CommandError::new(format!("the datapath has not deleted all flows within {shown}")))?;
    // After the flows: the device is to forget what they left there, too.
    let left = patience.saturating_sub(begun.elapsed());
    let Ok(flushed) = deadline(left, daemon.switch.offload.flush()).await else {
        let rules = removed() - before;
        return Err(CommandError::new(format!(
            "{flows} datapath flows deleted, {rules} device rules removed so far; the device has not forgotten all within {shown}"
        )));
    };
    let flushed =
        flushed.map_err(|_| CommandError::new(format!("{flows} flows deleted; the offload worker does not answer")))?;
    if let Some(trouble) = flushed.trouble {
        return Err(CommandError::new(format!("{flows} flows deleted; the device may still have rules: {trouble}")));
    }
    let rules = removed() - before;
    Ok(Answer::new(
        format!("{flows} datapath flows deleted, {rules} device rules removed"),
        json!({ "flows": flows, "rules": rules }),
    ))
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
