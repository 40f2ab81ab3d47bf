//! `dpif-netdev/*`: what pollers did, under the names that Open vSwitch gives it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;

use super::{DATAPATH, Options, PATIENCE};
use crate::control::answer::{Answer, CommandError};
use crate::control::registry::{Command, Right, deadline};
use crate::daemon::Daemon;
use crate::datapath::balance::Move;
use crate::datapath::counters::PollerCounters;
use crate::datapath::reassign::RxView;
use crate::datapath::{sweep, window};
use crate::flow::PortNo;
use crate::flow::text::PortNames as _;
use crate::telemetry::Histogram;

type Result<T> = std::result::Result<T, CommandError>;

pub static COMMANDS: &[Command<Arc<Daemon>>] = &[
    Command {
        name: "dpif-netdev/pmd-perf-show",
        usage: "[-nh] [-pmd POLLER] [DP]",
        help: "Shows for each poller, or for one, how it spent its time and how it found the flows of its packets. There are no histories: -nh changes nothing.",
        args: 0..=4,
        right: Right::Read,
        run: |daemon, args| {
            Box::pin(async move {
                let chosen = Chosen::parse(args, &["-pmd"], "dpif-netdev/pmd-perf-show [-nh] [-pmd POLLER] [DP]")?;
                Ok(Answer::of(PerfShow::new(&daemon, Instant::now(), chosen.poller(&daemon)?)))
            })
        },
    },
    Command {
        name: "dpif-netdev/pmd-stats-clear",
        usage: "[DP]",
        help: "Lets the counts of dpif-netdev/pmd-perf-show start from 0.",
        args: 0..=1,
        right: Right::Write,
        run: |daemon, args| {
            Box::pin(async move {
                Options::split(args, &[])?.exactly::<0>("dpif-netdev/pmd-stats-clear [DP]")?;
                deadline(PATIENCE, daemon.switch.clear_counters(Instant::now())).await?;
                Ok(Answer::nothing())
            })
        },
    },
    Command {
        name: "dpif-netdev/pmd-rxq-show",
        usage: "[-pmd POLLER] [-secs SECS] [DP]",
        help: "Shows for each poller, or for one, its receive queues, and how busy each kept it in the last SECS seconds, at most and by default 60.",
        args: 0..=5,
        right: Right::Read,
        run: |daemon, args| {
            Box::pin(async move {
                let usage = "dpif-netdev/pmd-rxq-show [-pmd POLLER] [-secs SECS] [DP]";
                let chosen = Chosen::parse(args, &["-pmd", "-secs"], usage)?;
                Ok(Answer::of(RxqShow::new(&daemon, Instant::now(), chosen.poller(&daemon)?, chosen.seconds)))
            })
        },
    },
    Command {
        name: "dpif-netdev/pmd-sleep-show",
        usage: "[DP]",
        help: "Shows how long each poller may sleep when it has nothing to do, at most.",
        args: 0..=1,
        right: Right::Read,
        run: |daemon, args| {
            Box::pin(async move {
                Options::split(args, &[])?.exactly::<0>("dpif-netdev/pmd-sleep-show [DP]")?;
                Ok(Answer::of(SleepShow::new(&daemon)))
            })
        },
    },
    Command {
        name: "dpif-netdev/pmd-rxq-rebalance",
        usage: "[DP]",
        help: "Moves receive queues so that each poller has about as many packets, going by the last minute.",
        args: 0..=1,
        right: Right::Write,
        run: |daemon, args| {
            Box::pin(async move {
                Options::split(args, &[])?.exactly::<0>("dpif-netdev/pmd-rxq-rebalance [DP]")?;
                let done = daemon.in_background("rebalance", |daemon| daemon.rebalance(Instant::now()));
                let moves = deadline(PATIENCE, done).await??;
                let names = daemon.switch.names();
                let moved = |moved: Move| Moved {
                    port: names.name(moved.port).unwrap_or_else(|| moved.port.to_string()),
                    port_no: moved.port,
                    queue: moved.queue,
                    from: moved.from,
                    to: moved.to,
                    packets: moved.packets,
                };
                Ok(Answer::of(Rebalanced { moved: moves.into_iter().map(moved).collect() }))
            })
        },
    },
    Command {
        name: "dpif-netdev/pmd-rxq-move",
        usage: "[DP] PORT QUEUE POLLER",
        help: "Moves a receive queue of a port, named or numbered, to another poller.",
        args: 3..=4,
        right: Right::Write,
        run: |daemon, args| Box::pin(async move { move_rx(&daemon, args).await }),
    },
];

async fn move_rx(daemon: &Arc<Daemon>, args: Vec<String>) -> Result<Answer> {
    let options = Options::split(args, &[])?;
    let [port, queue, poller] = options.exactly("dpif-netdev/pmd-rxq-move [DP] PORT QUEUE POLLER")?;
    let number = daemon
        .switch
        .port_number(port)
        .ok_or_else(|| CommandError::new(format!("no port {port:?} in {DATAPATH} (No such device)")))?;
    let count = |what: &str, text: &str| {
        text.parse::<usize>().map_err(|_| CommandError::new(format!("{what} {text:?}: expected a number from 0 on")))
    };
    let (queue, poller) = (count("receive queue", queue)?, count("poller", poller)?);
    let moved = daemon.in_background("move-rxq", move |daemon| daemon.move_rx(number, queue, poller));
    deadline(PATIENCE, moved).await???;
    Ok(Answer::new("", json!({ "port_no": number, "queue": queue, "poller": poller })))
}

/// What the options of a command choose.
struct Chosen {
    poller: Option<usize>,
    seconds: u64,
}

impl Chosen {
    /// `known`: the options that a value follows.
    fn parse(mut args: Vec<String>, known: &[&str], usage: &str) -> Result<Chosen> {
        let mut chosen = Chosen { poller: None, seconds: window::LENGTH.as_secs() };
        args.retain(|arg| arg != "-nh");
        while args.first().is_some_and(|first| known.contains(&first.as_str())) {
            let option = args.remove(0);
            let value = (!args.is_empty()).then(|| args.remove(0));
            let value = value.ok_or_else(|| CommandError::new(format!("usage: {usage}")))?;
            let wrong = |expected: &str| CommandError::new(format!("{option} {value:?}: expected {expected}"));
            match option.as_str() {
                "-pmd" => chosen.poller = Some(value.parse().map_err(|_| wrong("a poller's number"))?),
                _ => {
                    let within = |secs: &u64| (1..=window::LENGTH.as_secs()).contains(secs);
                    chosen.seconds = value.parse().ok().filter(within).ok_or_else(|| wrong("1 to 60 seconds"))?;
                }
            }
        }
        Options::split(args, &[])?.exactly::<0>(usage)?;
        Ok(chosen)
    }

    /// The one poller, if one was chosen.
    fn poller(&self, daemon: &Daemon) -> Result<Option<usize>> {
        let pollers = daemon.switch.pollers();
        match self.poller {
            Some(poller) if poller >= pollers => {
                Err(CommandError::new(format!("-pmd {poller}: there are pollers 0 to {}", pollers.saturating_sub(1))))
            }
            poller => Ok(poller),
        }
    }
}

/// What `dpif-netdev/pmd-sleep-show` says.
#[derive(Serialize)]
struct SleepShow {
    max_sleep_us: u64,
    pollers: Vec<SleepRow>,
}

#[derive(Serialize)]
struct SleepRow {
    poller: usize,
    place: String,
    max_sleep_us: u64,
}

impl SleepShow {
    fn new(daemon: &Daemon) -> SleepShow {
        // Until the next sweep, if nothing comes before; not at all when it polls without a pause.
        let spins = daemon.switch.shared.busy_poll.load(std::sync::atomic::Ordering::Relaxed);
        let max_sleep_us = if spins { 0 } else { sweep::PERIOD.as_micros() as u64 };
        let row = |poller| SleepRow { poller, place: daemon.poller_place(poller), max_sleep_us };
        SleepShow { max_sleep_us, pollers: (0..daemon.switch.pollers()).map(row).collect() }
    }
}

impl fmt::Display for SleepShow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Default max sleep: {:>6} us", self.max_sleep_us)?;
        self.pollers.iter().try_for_each(|row| writeln!(f, "{}:\n  max sleep: {:>6} us", row.place, row.max_sleep_us))
    }
}

/// What `dpif-netdev/pmd-rxq-show` says.
#[derive(Serialize)]
struct RxqShow {
    /// The longest time that usage is of.
    seconds: u64,
    pollers: Vec<RxqPoller>,
}

#[derive(Serialize)]
struct RxqPoller {
    poller: usize,
    place: String,
    isolated: bool,
    rx_queues: Vec<Rxq>,
}

#[derive(Serialize)]
struct Rxq {
    port: String,
    port_no: PortNo,
    queue: usize,
    enabled: bool,
    /// In the last minute.
    packets: u64,
    /// Of a poller's time in the last minute; `None` of a queue that was opened just now.
    usage_percent: Option<f64>,
}

impl RxqShow {
    fn new(daemon: &Daemon, now: Instant, only: Option<usize>, seconds: u64) -> RxqShow {
        let views = daemon.switch.rx_views(now, Duration::from_secs(seconds));
        let queues = |poller: usize| views.iter().filter(move |view| view.poller == poller).map(Rxq::new);
        let poller = |poller: usize| RxqPoller {
            poller,
            place: daemon.poller_place(poller),
            // No receive queue is bound to a poller for good.
            isolated: false,
            rx_queues: queues(poller).collect(),
        };
        let pollers = (0..daemon.switch.pollers()).filter(|poller| only.is_none_or(|only| only == *poller));
        RxqShow { seconds, pollers: pollers.map(poller).collect() }
    }
}

impl Rxq {
    fn new(view: &RxView) -> Rxq {
        let nanos = view.recent.time.as_nanos() as f64;
        Rxq {
            port: view.name.clone(),
            port_no: view.port,
            queue: view.queue,
            enabled: true,
            packets: view.recent.packets,
            usage_percent: (nanos > 0.0).then(|| (100.0 * view.recent.busy_ns as f64 / nanos).min(100.0)),
        }
    }
}

impl fmt::Display for RxqShow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Displaying last {} seconds pmd usage %", self.seconds)?;
        for poller in &self.pollers {
            writeln!(f, "{}:", poller.place)?;
            writeln!(f, "  isolated : {}", poller.isolated)?;
            for rxq in &poller.rx_queues {
                write!(f, "  port: {:<16}  queue-id: {:>2} ", rxq.port, rxq.queue)?;
                f.write_str(if rxq.enabled { "(enabled) " } else { "(disabled)" })?;
                match rxq.usage_percent {
                    Some(percent) => writeln!(f, "  pmd usage: {percent:>2.0} %")?,
                    None => writeln!(f, "  pmd usage: NOT AVAIL")?,
                }
            }
            // What a busy turn takes is charged to its packets, whole.
            writeln!(f, "  overhead: NOT AVAIL")?;
        }
        Ok(())
    }
}

/// What `dpif-netdev/pmd-rxq-rebalance` says.
#[derive(Serialize)]
struct Rebalanced {
    moved: Vec<Moved>,
}

#[derive(Serialize)]
struct Moved {
    port: String,
    port_no: PortNo,
    queue: usize,
    from: usize,
    to: usize,
    /// In the last minute.
    packets: u64,
}

impl fmt::Display for Rebalanced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "pmd rxq rebalance requested.")?;
        for Moved { port, queue, from, to, packets, .. } in &self.moved {
            writeln!(f, "  port: {port:<16}  queue-id: {queue:>2}  poller: {from} -> {to}  ({packets} packets)")?;
        }
        match self.moved.is_empty() {
            true => writeln!(f, "  nothing to move"),
            false => Ok(()),
        }
    }
}

/// What a poller did to its flows, by the names of [`Doings`](crate::datapath::counters::Doings).
const FLOW_COUNTS: [&str; 5] = ["revalidated", "modified", "deleted_stale", "deleted_idle", "mark_unbound"];

/// What `dpif-netdev/pmd-perf-show` says.
#[derive(Serialize)]
struct PerfShow {
    /// Since the counts were cleared, or the daemon started.
    seconds: f64,
    pollers: Vec<Perf>,
    /// Of all pollers that have ended; `None` when there were none.
    ended: Option<Perf>,
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
    turns: Turns,
}

/// Nanoseconds that busy turns took.
#[derive(Serialize)]
struct Turns {
    p50_ns: u64,
    p99_ns: u64,
    p999_ns: u64,
    max_ns: u64,
}

impl Turns {
    fn new(turns: &Histogram) -> Turns {
        Turns { p50_ns: turns.at(0.5), p99_ns: turns.at(0.99), p999_ns: turns.at(0.999), max_ns: turns.max() }
    }
}

impl PerfShow {
    fn new(daemon: &Daemon, now: Instant, only: Option<usize>) -> PerfShow {
        let crew = daemon.switch.crew();
        let elapsed = |since: Instant| now.saturating_duration_since(since).as_secs_f64();
        let counted = crew.pollers.iter().map(|poller| poller.since_cleared()).enumerate();
        let pollers: Vec<Perf> = counted
            .filter(|(id, _)| only.is_none_or(|only| only == *id))
            .map(|(id, (since, counters))| Perf::new(daemon.poller_place(id), elapsed(since), &counters))
            .collect();
        let seconds = pollers.iter().map(|perf| perf.seconds).fold(0.0, f64::max);
        let ended = crew.ended_since_cleared().filter(|_| only.is_none());
        let ended = ended.map(|counters| Perf::new("ended pollers".to_owned(), seconds, &counters));
        PerfShow { seconds, pollers, ended }
    }
}

impl Perf {
    fn new(place: String, seconds: f64, counters: &PollerCounters) -> Perf {
        let PollerCounters { lookup, fate, doings, turns } = counters;
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
            turns: Turns::new(turns),
        }
    }
}

fn per(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

impl fmt::Display for PerfShow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Measurement duration: {:.3} s", self.seconds)?;
        self.pollers.iter().chain(&self.ended).try_for_each(|perf| write!(f, "\n{perf}"))
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
        let Turns { p50_ns, p99_ns, p999_ns, max_ns } = self.turns;
        writeln!(f, "  - idle iterations:  {idle:>12}")?;
        writeln!(
            f,
            "  - busy iterations:  {:>12}  ({:5.1} % of the time)",
            self.busy_iterations,
            100.0 * per(self.busy_s, self.seconds)
        )?;
        writeln!(f, "    - busy time (ns):  p50 {p50_ns}, p99 {p99_ns}, p99.9 {p999_ns}, max {max_ns}")?;
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
