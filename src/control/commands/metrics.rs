//! `metrics/show`: every counter, gauge and histogram.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::Serialize;

use super::explain::name;
use crate::control::answer::Answer;
use crate::control::registry::{Command, Right};
use crate::daemon::Daemon;
use crate::offload::Snapshot;
use crate::offload::report::Outcomes;
use crate::telemetry::metrics::{self, Family};
use crate::telemetry::process;

pub static COMMANDS: &[Command<Arc<Daemon>>] = &[Command {
    name: "metrics/show",
    usage: "",
    help: "Shows every counter, gauge and histogram, as Prometheus reads them.",
    args: 0..=0,
    right: Right::Read,
    run: |daemon, _| Box::pin(async move { Ok(Answer::of(Metrics(collect(&daemon)))) }),
}];

#[derive(Serialize)]
#[serde(transparent)]
struct Metrics(Vec<Family>);

impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&metrics::text(&self.0))
    }
}

/// Everything there is to measure, now. From any thread; no poller waits for it.
pub fn collect(daemon: &Daemon) -> Vec<Family> {
    let snapshot = daemon.switch.offload.snapshot();
    let mut families = process_families(daemon);
    families.extend(pollers(daemon));
    families.extend(flows(daemon));
    families.extend(ports(daemon));
    families.extend(offload(daemon, &snapshot));
    families.extend(workers(daemon, &snapshot));
    families
}

fn process_families(daemon: &Daemon) -> Vec<Family> {
    let served = &daemon.served;
    let read = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed) as f64;
    vec![
        Family::gauge("build_info", "Always 1; the version is a label.")
            .with([("version", env!("CARGO_PKG_VERSION"))], 1.0),
        Family::gauge("uptime_seconds", "Seconds since the daemon started.")
            .with([], daemon.started.elapsed().as_secs_f64()),
        Family::gauge("resident_memory_bytes", "Bytes of the process that are in memory.")
            .with([], process::resident_bytes() as f64),
        Family::counter("cpu_seconds", "Processor time of all threads.").with([], process::cpu_seconds()),
        Family::counter("control_connections", "Clients of the control socket, by whether they were let in.")
            .with([("outcome", "accepted")], read(&served.accepted))
            .with([("outcome", "turned_away")], read(&served.turned_away)),
        Family::counter("control_requests", "Commands asked for, by how they ended.")
            .with([("outcome", "done")], read(&served.done))
            .with([("outcome", "failed")], read(&served.failed))
            .with([("outcome", "refused")], read(&served.refused)),
    ]
}

fn pollers(daemon: &Daemon) -> Vec<Family> {
    let mut lookups = Family::counter("lookup_packets", "Packets received, by how their flow was found.");
    let mut fates = Family::counter("packet_fates", "Packets and copies of them, by what became of them.");
    let mut doings = Family::counter("poller_events", "What pollers did beside that, by what it was.");
    let mut time = Family::counter("poller_time_seconds", "Time of pollers, by what it went into.");
    let mut turns = Family::times("poller_turn", "Time of each turn of a poller that received packets.");
    let crew = daemon.switch.crew();
    for (id, poller) in crew.pollers.iter().enumerate() {
        let (id, counters) = (id.to_string(), &poller.counters);
        for (name, n) in counters.lookup.list() {
            lookups.add([("poller", &id), ("how", name)], n as f64);
        }
        for (name, n) in counters.fate.list() {
            fates.add([("poller", &id), ("fate", name)], n as f64);
        }
        for (name, n) in counters.doings.list() {
            match name.strip_suffix("_ns") {
                Some(what) => time.add([("poller", &id), ("what", what)], n as f64 / 1e9),
                None => doings.add([("poller", &id), ("what", name)], n as f64),
            }
        }
        turns.add_times([("poller", &id)], counters.turns.spread());
    }
    let count = Family::gauge("pollers", "Threads that move packets.").with([], crew.pollers.len() as f64);
    vec![count, lookups, fates, doings, time, turns]
}

fn flows(daemon: &Daemon) -> Vec<Family> {
    let shared = &daemon.switch.shared;
    let stations = daemon.slowpath.stations().counts();
    vec![
        Family::gauge("flows", "Datapath flows of all pollers, by who made them.")
            .with([("by", "rules")], shared.flows() as f64)
            .with([("by", "hand")], shared.by_hand() as f64),
        Family::gauge("flow_limit", "The most datapath flows that rules may make.")
            .with([], shared.flow_limit() as f64),
        Family::gauge("rules", "Rules.").with([], daemon.slowpath.rule_count() as f64),
        Family::gauge("stations", "Stations known.").with([], stations.stations as f64),
        Family::counter("station_events", "What happened to stations.")
            .with([("event", "learned")], stations.learned as f64)
            .with([("event", "moved")], stations.moved as f64)
            .with([("event", "expired")], stations.expired as f64)
            .with([("event", "evicted")], stations.evicted as f64),
    ]
}

fn ports(daemon: &Daemon) -> Vec<Family> {
    let mut info = Family::gauge("port_info", "Always 1; number and kind of a port are labels.");
    let mut packets = Family::counter("port_packets", "Packets of a port, by direction.");
    let mut bytes = Family::counter("port_bytes", "Bytes of a port, by direction.");
    let mut dropped = Family::counter("port_drops", "Packets of a port that were lost there, by why.");
    let mut device = Family::counter("port_device_packets", "Packets of a port, by what the device did with them.");
    for port in daemon.switch.port_views() {
        let (name, number) = (port.info.name.as_str(), port.info.number.to_string());
        info.add([("port", name), ("port_no", &number), ("kind", &port.info.kind.to_string())], 1.0);
        for (count, n) in &port.counters {
            let n = *n as f64;
            match *count {
                "rx_packets" => packets.add([("port", name), ("direction", "rx")], n),
                "tx_packets" => packets.add([("port", name), ("direction", "tx")], n),
                "rx_bytes" => bytes.add([("port", name), ("direction", "rx")], n),
                "tx_bytes" => bytes.add([("port", name), ("direction", "tx")], n),
                other => dropped.add([("port", name), ("why", other)], n),
            }
        }
        if let Some(counts) = daemon.switch.device_counts(port.info.number) {
            for (what, n) in counts.list().into_iter().filter(|(what, _)| *what != "full_bytes") {
                device.add([("port", name), ("what", what)], n as f64);
            }
        }
    }
    vec![info, packets, bytes, dropped, device]
}

fn offload(daemon: &Daemon, snapshot: &Snapshot) -> Vec<Family> {
    let on = daemon.switch.offload.has_device() && snapshot.off.is_none() && snapshot.settings.enabled;
    let mut operations = Family::counter("offload_operations", "Operations on the device, by kind and outcome.");
    let kinds = [
        ("put", snapshot.operations.put),
        ("modify", snapshot.operations.modify),
        ("delete", snapshot.operations.delete),
    ];
    for (kind, Outcomes { done, unsupported, no_room, device }) in kinds {
        let outcomes = [("done", done), ("unsupported", unsupported), ("no_room", no_room), ("device", device)];
        for (outcome, n) in outcomes {
            operations.add([("operation", kind), ("outcome", outcome)], n as f64);
        }
    }
    let mut not_offloaded = Family::gauge("not_offloaded", "Megaflows that are not in the device, by reason.");
    for (reason, n) in &snapshot.refused {
        not_offloaded.add([("reason", &name(reason))], *n as f64);
    }
    let mut marked_only = Family::gauge("marked_only", "Megaflows that the device only marks, by reason.");
    for (reason, n) in &snapshot.short {
        marked_only.add([("reason", &name(reason))], *n as f64);
    }
    let mut events = Family::counter("offload_events", "What happened to rules in the device.");
    for (kind, n) in daemon.switch.offload.events.counts() {
        events.add([("event", kind.name())], n as f64);
    }
    let mut capacity = Family::gauge("device_capacity", "Rules that the device has room for, where that is known.");
    if let Some(rules) = snapshot.capacity {
        capacity.add([], rules as f64);
    }
    let mut forgotten = Family::counter("device_forgotten_packets", "Packets that the device forgot to tell of.");
    if let Some(packets) = snapshot.forgotten {
        forgotten.add([], packets as f64);
    }
    let marks = snapshot.marks;
    let full = snapshot.rules_full;
    vec![
        Family::gauge("offload_enabled", "1 while flows are handed to a device.").with([], f64::from(u8::from(on))),
        Family::gauge("device_off", "1 while a device that there is was given up.")
            .with([], f64::from(u8::from(snapshot.off.is_some()))),
        Family::gauge("device_rules", "Rules in the device, by level.")
            .with([("level", "mark")], snapshot.rules.saturating_sub(full) as f64)
            .with([("level", "full")], full as f64),
        Family::gauge("device_rules_confirmed", "Rules that the device has been seen to match a packet with.")
            .with([], snapshot.rules_confirmed as f64),
        capacity,
        Family::gauge("megaflows", "Megaflows that offload workers know.").with([], snapshot.megaflows as f64),
        Family::gauge("marks", "Marks, by state.")
            .with([("state", "in_use")], marks.in_use as f64)
            .with([("state", "quarantined")], marks.quarantined as f64),
        Family::gauge("mark_capacity", "Marks that there are.").with([], marks.capacity as f64),
        operations,
        not_offloaded,
        marked_only,
        events,
        Family::counter("evictions", "Rules removed to make room for busier flows.")
            .with([], snapshot.evictions as f64),
        Family::counter("device_resets", "Times that the device forgot all rules by itself.")
            .with([], snapshot.resets as f64),
        forgotten,
    ]
}

fn workers(daemon: &Daemon, snapshot: &Snapshot) -> Vec<Family> {
    let mut depth = Family::gauge("queue_depth", "Flows that wait for a worker, by what they want.");
    let mut limit = Family::gauge("queue_limit", "The depth above which new flows are refused.");
    let mut high = Family::gauge("queue_high_water", "The greatest depth that was seen.");
    let mut bytes = Family::gauge("queue_bytes", "Memory of flows that wait or were not seen to yet.");
    let mut byte_limit = Family::gauge("queue_byte_limit", "The memory above which new flows are refused.");
    let mut events = Family::counter("queue_events", "What happened to requests.");
    let mut waiting = Family::gauge("worker_waiting", "Megaflows that wait for room in the device, or for a mark.");
    let mut rules = Family::gauge("worker_rules", "Rules in the device, by the worker that sees to them.");
    let mut latency = Family::times("offload_latency", "Time from a flow's request to its outcome, by what was asked.");
    let mut device = Family::times("device_operation", "Time in the device for one operation.");
    for (worker, times) in snapshot.workers.iter().zip(daemon.switch.offload.spreads()) {
        let (id, queue) = (worker.id.to_string(), &worker.queue);
        let id = id.as_str();
        depth.add([("worker", id), ("wants", "put")], queue.depth as f64);
        depth.add([("worker", id), ("wants", "delete")], queue.deletes as f64);
        limit.add([("worker", id)], queue.limit as f64);
        high.add([("worker", id)], queue.high_water as f64);
        bytes.add([("worker", id)], queue.bytes as f64);
        byte_limit.add([("worker", id)], queue.byte_limit as f64);
        let counts = [
            ("enqueued", queue.enqueued),
            ("coalesced", queue.coalesced),
            ("refused", queue.refused),
            ("wakeup", queue.wakeups),
        ];
        for (event, n) in counts {
            events.add([("worker", id), ("event", event)], n as f64);
        }
        waiting.add([("worker", id)], worker.waiting as f64);
        rules.add([("worker", id)], worker.rules as f64);
        for (what, spread) in times {
            match what {
                "device" => device.add_times([("worker", id)], spread),
                request => latency.add_times([("worker", id), ("request", request)], spread),
            }
        }
    }
    vec![depth, limit, high, bytes, byte_limit, events, waiting, rules, latency, device]
}
