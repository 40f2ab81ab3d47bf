//! `dpif-netdev/*`: what pollers did, under the names that Open vSwitch gives it.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use crate::control::answer::Answer;
use crate::control::registry::{Command, Right};
use crate::daemon::Daemon;
use crate::datapath::counters::PollerCounters;

pub static COMMANDS: &[Command<Arc<Daemon>>] = &[Command {
    name: "dpif-netdev/pmd-perf-show",
    usage: "",
    help: "Shows for each poller how it spent its time and how it found the flows of its packets.",
    args: 0..=0,
    right: Right::Read,
    run: |daemon, _| {
        Box::pin(async move {
            let seconds = Instant::now().saturating_duration_since(daemon.switch.shared.start).as_secs_f64();
            let pollers = (0..daemon.switch.pollers())
                .map(|id| Perf::new(daemon.poller_place(id), seconds, daemon.switch.counters(id)))
                .collect();
            Ok(Answer::of(PerfShow { seconds, pollers }))
        })
    },
}];

/// What a poller did to its flows, by the names of [`Doings`](crate::datapath::counters::Doings).
const FLOW_COUNTS: [&str; 5] = ["revalidated", "modified", "deleted_stale", "deleted_idle", "mark_unbound"];

/// What `dpif-netdev/pmd-perf-show` says.
#[derive(Serialize)]
struct PerfShow {
    seconds: f64,
    pollers: Vec<Perf>,
}

#[derive(Serialize)]
struct Perf {
    place: String,
    #[serde(skip)]
    seconds: f64,
    iterations: u64,
    busy_iterations: u64,
    busy_s: f64,
    sleeps: u64,
    slept_s: f64,
    rx_packets: u64,
    mark_hits: u64,
    emc_hits: u64,
    smc_hits: u64,
    megaflow_hits: u64,
    subtable_probes: u64,
    upcalls: u64,
    upcall_outcomes: Vec<(&'static str, u64)>,
    upcall_s: f64,
    runts: u64,
    fate: Vec<(&'static str, u64)>,
    flows: Vec<(&'static str, u64)>,
    tx_packets: u64,
    tx_batches: u64,
}

impl Perf {
    fn new(place: String, seconds: f64, counters: &PollerCounters) -> Perf {
        let PollerCounters { lookup, fate, doings } = counters;
        let lookups = lookup.list();
        let upcall_outcomes: Vec<_> =
            lookups.iter().filter_map(|(name, n)| Some((name.strip_prefix("upcall_")?, *n))).collect();
        let nanos = |ns: u64| ns as f64 / 1e9;
        Perf {
            place,
            seconds,
            iterations: doings.iterations.get(),
            busy_iterations: doings.busy_iterations.get(),
            busy_s: nanos(doings.busy_ns.get()),
            sleeps: doings.sleeps.get(),
            slept_s: nanos(doings.slept_ns.get()),
            rx_packets: lookups.iter().map(|(_, n)| n).sum(),
            mark_hits: lookup.mark_hit.get(),
            emc_hits: lookup.emc_hit.get(),
            smc_hits: 0, // its place: there is no signature cache yet
            megaflow_hits: lookup.megaflow_hit.get(),
            subtable_probes: doings.subtable_probes.get(),
            upcalls: upcall_outcomes.iter().map(|(_, n)| n).sum(),
            upcall_outcomes,
            upcall_s: nanos(doings.upcall_ns.get()),
            runts: lookup.runt.get(),
            fate: fate.list(),
            flows: FLOW_COUNTS.iter().map(|name| (*name, doings.get(name))).collect(),
            tx_packets: fate.sent.get(),
            tx_batches: doings.tx_batches.get(),
        }
    }
}

fn per(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

impl fmt::Display for PerfShow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Measurement duration: {:.3} s", self.seconds)?;
        self.pollers.iter().try_for_each(|perf| write!(f, "\n{perf}"))
    }
}

impl fmt::Display for Perf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kpps = |packets: u64| per(packets as f64, self.seconds) / 1e3;
        let percent = |part: u64| 100.0 * per(part as f64, self.rx_packets as f64);
        let idle = self.iterations - self.busy_iterations.min(self.iterations);
        let looped = (self.seconds - self.slept_s).max(0.0);
        writeln!(f, "{}:\n", self.place)?;
        writeln!(
            f,
            "  Iterations:         {:>12}  ({:.2} us/it)",
            self.iterations,
            1e6 * per(looped, self.iterations as f64)
        )?;
        writeln!(f, "  - idle iterations:  {idle:>12}")?;
        writeln!(
            f,
            "  - busy iterations:  {:>12}  ({:5.1} % of the time)",
            self.busy_iterations,
            100.0 * per(self.busy_s, self.seconds)
        )?;
        writeln!(
            f,
            "  - sleep iterations: {:>12}  ({:5.1} % of iterations)",
            self.sleeps,
            100.0 * per(self.sleeps as f64, self.iterations as f64)
        )?;
        writeln!(
            f,
            "  Sleep time (us):    {:>12.0}  ({:.0} us/iteration avg.)",
            1e6 * self.slept_s,
            1e6 * per(self.slept_s, self.sleeps as f64)
        )?;
        writeln!(
            f,
            "  Rx packets:         {:>12}  ({:.0} Kpps, {:.0} ns/pkt)",
            self.rx_packets,
            kpps(self.rx_packets),
            1e9 * per(self.busy_s, self.rx_packets as f64)
        )?;
        writeln!(f, "  Datapath passes:    {:>12}  (1.00 passes/pkt)", self.rx_packets)?;
        writeln!(f, "  - PHWOL hits:       {:>12}  ({:5.1} %)", self.mark_hits, percent(self.mark_hits))?;
        writeln!(f, "  - EMC hits:         {:>12}  ({:5.1} %)", self.emc_hits, percent(self.emc_hits))?;
        writeln!(f, "  - SMC hits:         {:>12}  ({:5.1} %)", self.smc_hits, percent(self.smc_hits))?;
        writeln!(
            f,
            "  - Megaflow hits:    {:>12}  ({:5.1} %, {:.2} subtbl lookups/hit)",
            self.megaflow_hits,
            percent(self.megaflow_hits),
            per(self.subtable_probes as f64, self.megaflow_hits as f64)
        )?;
        writeln!(
            f,
            "  - Upcalls:          {:>12}  ({:5.1} %, {:.1} us/upcall)",
            self.upcalls,
            percent(self.upcalls),
            1e6 * per(self.upcall_s, self.upcalls as f64)
        )?;
        for (name, n) in &self.upcall_outcomes {
            writeln!(f, "    - {name:<17}{n:>11}  ({:5.1} %)", percent(*n))?;
        }
        writeln!(f, "  - Lost upcalls:     {:>12}  ({:5.1} %)", 0, 0.0)?;
        writeln!(f, "  - Dropped, runt:    {:>12}  ({:5.1} %)", self.runts, percent(self.runts))?;
        writeln!(f, "  Tx packets:         {:>12}  ({:.0} Kpps)", self.tx_packets, kpps(self.tx_packets))?;
        writeln!(
            f,
            "  Tx batches:         {:>12}  ({:.2} pkts/batch)",
            self.tx_batches,
            per(self.tx_packets as f64, self.tx_batches as f64)
        )?;
        for (name, n) in self.fate.iter().filter(|(name, n)| *name != "sent" && *n > 0) {
            writeln!(f, "  - {name}: {n}")?;
        }
        let flows: Vec<String> = self.flows.iter().map(|(name, n)| format!("{name}:{n}")).collect();
        writeln!(f, "  Flows: {}", flows.join(" "))
    }
}
