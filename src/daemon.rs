//! [`Daemon`]: the house with everybody in it, and [`run`], a day in its life.
//!
//! ```text
//!   Config ─► socket and pidfile ─► slow path ─► offload worker ─► pollers ─► ports, rules, packets ─► "ready"
//!                                                                                     │
//!             main thread: control socket, signals, reports, timers  ◄────────────────┘
//!                                                                                     │ SIGTERM, exit, --duration
//!   ports closed ◄─ pollers ended ◄─ rules out of the device ◄────────────────────────┘
//! ```
//!
//! # Thread-safety
//! The main thread runs [`run`]; commands, and the short-lived threads that reload or remove a broken port, share the
//! [`Daemon`] by reference count.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use futures_channel::oneshot;
use offloadctl::rundir::RunDir;
use serde_json::json;

use crate::clock;
use crate::config::{Args, Config, Rules, Shown, Source};
use crate::control::access::group;
use crate::control::commands;
use crate::control::scrape::Scrape;
use crate::control::server::Served;
use crate::control::{Access, Endpoint, Pidfile, Registry, Server};
use crate::datapath::balance::Move;
use crate::datapath::counters::PollerCounters;
use crate::datapath::poller::{Report, Reports};
use crate::datapath::reassign::MoveRxError;
use crate::datapath::shared::Shared;
use crate::datapath::switch::{AddPortError, PollerConfig, Switch};
use crate::demo::Demo;
use crate::flow::PortNo;
use crate::flow::text::PortNames as _;
use crate::offload::backend::{self, BackendSpec};
use crate::offload::report::Outcomes;
use crate::offload::{Offload, OffloadConfig, ResumeError};
use crate::port::PortSpec;
use crate::slowpath::{Options, Slowpath};
use crate::supervisor::{self, Watchdog};
use crate::telemetry::coverage::{self, Coverage, Reading};
use crate::telemetry::{log as logging, metrics, process};

/// How often timers run: rule timeouts, station ageing, ports' MTUs.
const TICK: Duration = Duration::from_secs(1);

/// How long a stop waits for the device to forget its rules.
const DRAIN: Duration = Duration::from_secs(5);

/// What `version` answers.
pub const VERSION: &str = concat!("offloadd ", env!("CARGO_PKG_VERSION"));

/// Everything that commands reach.
pub struct Daemon {
    pub switch: Switch,
    pub slowpath: Arc<Slowpath>,
    args: Args,
    config: Mutex<Config>,
    access: Arc<ArcSwap<Access>>,
    /// Held while the configuration is read again: one reload at a time.
    reloading: Mutex<()>,
    stop: AtomicBool,
    wake: Arc<dyn Fn() + Send + Sync>,
    history: Mutex<History>,
    pub started: Instant,
    /// What the control socket has served.
    pub served: Arc<Served>,
}

/// What reading the configuration again came to.
#[derive(Debug, serde::Serialize)]
pub struct Reloaded {
    /// Keys that have other values now.
    pub changed: Vec<&'static str>,
    /// Keys whose new values take effect at the next start.
    pub needs_restart: Vec<&'static str>,
    pub errors: Vec<String>,
}

/// What was seen tick by tick.
#[derive(Default)]
struct History {
    coverage: Coverage,
    /// Flows that rules have made: sum over the ticks, how many ticks, and the most.
    flows: (u64, u64, u64),
}

/// Builds the daemon, runs it until it is told to stop, and takes it down again.
///
/// # Errors
/// Something cannot be had: socket, pidfile, device, port, rules. Then nothing is left behind.
pub fn run(config: Config, args: Args) -> anyhow::Result<()> {
    // The demo's screen is for its lines.
    let default_filter = config.demo.then(|| "warn".to_owned());
    logging::init(std::env::var("RUST_LOG").ok().or(default_filter).as_deref(), config.log_file.as_deref())?;
    logging::set(&config.log).with_context(|| match &config.file {
        Some(file) => format!("{}: log", file.display()),
        None => "log".to_owned(),
    })?;
    let (mut endpoint, _pidfile) = open_door(&config)?;
    endpoint.watch_signals().context("cannot catch signals")?;
    let handle = endpoint.handle();
    let wake: Arc<dyn Fn() + Send + Sync> = Arc::new(move || handle.wake());
    let (reports, incoming) = mpsc::channel();

    let reports = Reports { channel: reports, wake: Arc::clone(&wake) };
    let access = endpoint.access();
    access.store(Arc::new(config.access.clone()));
    let daemon = Arc::new(Daemon::build(config.clone(), args, (access, endpoint.served()), reports, wake)?);
    if let Err(error) = daemon.furnish(&config) {
        daemon.take_down();
        return Err(error);
    }
    let scrape = match serve_metrics(&config, &daemon) {
        Ok(scrape) => scrape,
        Err(error) => {
            daemon.take_down();
            return Err(error);
        }
    };
    let result = {
        let mut registry = Registry::new(VERSION);
        commands::register(&mut registry, &daemon);
        let mut server = endpoint.serve(registry);
        log::info!(target: "daemon", "{VERSION} is ready");
        supervisor::ready(&daemon.status());
        daemon.live(&mut server, &incoming)
        // The server goes here: no command sees the house half taken down.
    };
    supervisor::stopping("removing rules from the device");
    drop(scrape);
    let removed = daemon.take_down();
    log::info!(target: "daemon", "stopped; {removed} rules removed from the device");
    result
}

/// Metrics over HTTP, if somebody wants them.
fn serve_metrics(config: &Config, daemon: &Arc<Daemon>) -> anyhow::Result<Option<Scrape>> {
    let Some(address) = &config.metrics else { return Ok(None) };
    let daemon = Arc::clone(daemon);
    let page = move || metrics::text(&commands::metrics::collect(&daemon));
    let scrape = Scrape::start(address, Box::new(page));
    scrape.map(Some).with_context(|| format!("cannot serve metrics on {address}"))
}

/// Socket and pidfile, before anything else: a second daemon finds out before it touches anything.
fn open_door(config: &Config) -> anyhow::Result<(Endpoint, Option<Pidfile>)> {
    let run_dir = RunDir::of_user();
    if config.unixctl.is_none() {
        run_dir.create(group(&config.control_group))?;
        run_dir.sweep();
    }
    let pidfile: Option<PathBuf> = match (&config.pidfile, &config.unixctl) {
        (Some(path), _) => Some(path.clone()),
        (None, None) => Some(run_dir.pidfile()),
        (None, Some(_)) => None,
    };
    let pidfile = pidfile.map(Pidfile::create).transpose()?;
    let socket = config.unixctl.clone().unwrap_or_else(|| run_dir.socket(std::process::id()));
    let endpoint = Endpoint::bind(socket, Some(&config.control_group), config.control_limits.clone())?;
    Ok((endpoint, pidfile))
}

impl Daemon {
    /// Everything but ports and rules.
    fn build(
        config: Config,
        args: Args,
        (access, served): (Arc<ArcSwap<Access>>, Arc<Served>),
        reports: Reports,
        wake: Arc<dyn Fn() + Send + Sync>,
    ) -> anyhow::Result<Daemon> {
        let slowpath = Arc::new(Slowpath::new(Options { stations: config.mac_limit, ageing: config.mac_ageing }));
        let epoch = Instant::now();
        let (offload, device) = match &config.device {
            None => (Offload::none(), None),
            Some(text) => {
                let spec: BackendSpec = text.parse()?;
                let device = backend::open(&spec, epoch)?;
                let offload = OffloadConfig {
                    threads: config.offload_threads,
                    queue_limit: config.queue_limit,
                    queue_bytes: config.queue_bytes,
                    patience: config.offload_patience,
                    wanted: config.offload,
                    ..OffloadConfig::default()
                };
                (Offload::start(Arc::clone(&device), epoch, offload).context("offload worker")?, Some(device))
            }
        };
        let shared =
            Shared::new(Arc::clone(&slowpath), offload.started(), config.flow_limit, config.max_idle, config.busy_poll);
        let switch = Switch::start(Arc::new(shared), offload, device, &pollers(&config), reports).context("pollers")?;
        Ok(Daemon {
            switch,
            slowpath,
            args,
            config: Mutex::new(config),
            access,
            reloading: Mutex::default(),
            stop: AtomicBool::new(false),
            wake,
            history: Mutex::default(),
            started: Instant::now(),
            served,
        })
    }

    /// Ports, then the rules, which may name them, and only then packets.
    fn furnish(&self, config: &Config) -> anyhow::Result<()> {
        for spec in &config.ports {
            self.add_port(spec)?;
        }
        self.load_rules(&config.rules)?;
        self.switch.begin();
        Ok(())
    }

    fn load_rules(&self, rules: &Rules) -> anyhow::Result<()> {
        let names = self.switch.names();
        let loaded = match rules {
            Rules::Normal => self.slowpath.load("priority=0,actions=normal\n", &names, clock::now())?,
            Rules::Text(text) => self.slowpath.load(text, &names, clock::now())?,
            Rules::File(path) => commands::rule::load(self, path).map_err(|error| anyhow::anyhow!("rules {error}"))?,
        };
        log::info!(target: "slowpath", "{loaded} rules loaded");
        Ok(())
    }

    /// The main thread's loop.
    fn live(self: &Arc<Self>, server: &mut Server, incoming: &mpsc::Receiver<Report>) -> anyhow::Result<()> {
        let (duration, demo) = {
            let config = self.config();
            (config.duration, config.demo)
        };
        let start = Instant::now();
        // The end of a time longer than the clock can tell does not come.
        let end = duration.and_then(|duration| start.checked_add(duration));
        let mut demo = demo.then(|| Demo::begin(start, self));
        let mut watchdog = Watchdog::from_env();
        let mut tick = start + TICK;
        loop {
            let next = end.map_or(tick, |end| end.min(tick));
            let turn = server.turn(Some(next.saturating_duration_since(Instant::now()))).context("control loop")?;
            incoming.try_iter().for_each(|report| self.hear(report));
            if turn.reload {
                drop(self.in_background("reload", |daemon| drop(daemon.reload())));
            }
            let now = Instant::now();
            if now >= tick {
                // A late tick is not made up for.
                tick = (tick + TICK).max(now);
                self.tick(now);
                if let Some(watchdog) = &mut watchdog {
                    watchdog.tick(now, self.switch.crew().turns());
                }
                if demo.as_mut().is_some_and(|demo| demo.line(now, self).is_err()) {
                    self.ask_to_stop(); // nobody watches any more
                }
                if self.switch.poller_died() {
                    anyhow::bail!("a poller ended unexpectedly; see the log");
                }
            }
            if turn.stop || self.stop.load(Ordering::Relaxed) || end.is_some_and(|end| now >= end) {
                log::info!(target: "daemon", "stopping");
                if let Some(demo) = demo {
                    demo.end(now, self);
                }
                return Ok(());
            }
        }
    }

    /// What is done about once a second, at the real moment `now`.
    pub fn tick(self: &Arc<Self>, now: Instant) {
        // First of all: whatever else is looked at, a device that hangs is seen.
        self.switch.offload.watch(now);
        let counts = self.counts();
        let mut history = self.history();
        history.coverage.note(now, &counts);
        let flows = self.switch.shared.flows() as u64;
        let (sum, ticks, most) = history.flows;
        history.flows = (sum + flows, ticks + 1, most.max(flows));
        drop(history);
        self.slowpath.expire(clock::at(now));
        for port in self.switch.refresh_ports(now) {
            drop(self.in_background("reopen-port", move |daemon| daemon.reopen_port(port)));
        }
    }

    fn hear(self: &Arc<Self>, report: Report) {
        match report {
            Report::PortFailed { port, error } => {
                let name = self.switch.names().name(port).unwrap_or_else(|| format!("port {port}"));
                log::error!(target: "port", "{name}: {error}; removing it");
                drop(self.in_background("remove-port", move |daemon| daemon.remove_port(port)));
            }
        }
    }

    /// Reads the configuration again and changes what can change while packets flow.
    ///
    /// # Errors
    /// The file or the log levels in it are wrong; then nothing has changed. All of it is logged, too.
    pub fn reload(&self) -> Result<Reloaded, String> {
        let _one_at_a_time = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        supervisor::reloading();
        let reloaded = self.read_again();
        supervisor::ready(&match &reloaded {
            Ok(Reloaded { errors, .. }) if errors.is_empty() => self.status(),
            Ok(Reloaded { errors, .. }) => format!("{}; reloaded, but {}", self.status(), errors.join("; ")),
            Err(error) => format!("{}; not reloaded: {error}", self.status()),
        });
        reloaded
    }

    fn read_again(&self) -> Result<Reloaded, String> {
        let current = self.config().clone();
        let refused = |error: String| {
            log::error!(target: "daemon", "not reloaded: {error}");
            error
        };
        let config = Config::load(&self.args).map_err(|error| refused(error.to_string()))?;
        logging::set(&config.log).map_err(|error| refused(format!("log: {error}")))?;
        let errors = self.apply(&current, &config);
        for error in &errors {
            log::error!(target: "daemon", "reload: {error}");
        }
        let restart = needs_restart(&current, &config);
        for key in &restart {
            log::warn!(target: "daemon", "{key} has changed; the change takes effect at the next start");
        }
        let (old, new) = (current.shown(&self.args), config.shown(&self.args));
        let changed = old.iter().zip(&new).filter(|(old, new)| old.value != new.value).map(|(_, new)| new.key);
        let changed = changed.filter(|key| !restart.contains(key)).collect();
        *self.config() = config;
        match errors.len() {
            0 => log::info!(target: "daemon", "reloaded"),
            n => log::warn!(target: "daemon", "reloaded, with {n} errors"),
        }
        Ok(Reloaded { changed, needs_restart: restart, errors })
    }

    /// Changes what can change while packets flow; what went wrong.
    fn apply(&self, current: &Config, config: &Config) -> Vec<String> {
        let mut errors = Vec::new();
        self.access.store(Arc::new(config.access.clone()));
        self.switch.shared.set_flow_limit(config.flow_limit);
        self.switch.shared.set_max_idle(config.max_idle);
        self.switch.shared.busy_poll.store(config.busy_poll, Ordering::Relaxed);
        self.switch.offload.set(&config.offload);
        if let Err(error) = self.switch.offload.set_threads(config.offload_threads) {
            errors.push(format!("offload.threads: {error}"));
        }
        let gone = current.ports.iter().filter(|spec| !config.ports.contains(spec));
        for number in gone.filter_map(|spec| self.switch.port_number(&spec.name)).collect::<Vec<_>>() {
            self.remove_port(number);
        }
        if (current.pollers, &current.cpus) != (config.pollers, &config.cpus)
            && let Err(error) = block_on(self.switch.set_pollers(&pollers(config)))
        {
            errors.push(error.to_string());
        }
        if let Err(error) = logging::reopen() {
            errors.push(error.to_string());
        }
        // Also those that could not be opened the last time, or broke since.
        let is_there = |spec: &&PortSpec| self.switch.port_number(&spec.name).is_some() && current.ports.contains(spec);
        for spec in config.ports.iter().filter(|spec| !is_there(spec)) {
            if let Err(error) = self.add_port(spec) {
                errors.push(error.to_string());
                // Better the port as it was than none.
                let before = current.ports.iter().find(|old| old.name == spec.name);
                if let Some(Err(error)) = before.map(|old| self.add_port(old)) {
                    errors.push(format!("and not as it was, either: {error}"));
                }
            }
        }
        if let Rules::File(_) = config.rules
            && let Err(error) = self.load_rules(&config.rules)
        {
            errors.push(format!("{error:#}"));
        }
        errors
    }

    /// What there is, in a line for people.
    fn status(&self) -> String {
        let (ports, pollers) = (self.switch.names().len(), self.switch.pollers());
        let device = self.config().device.clone();
        format!("{ports} ports, {pollers} pollers, offload device {}", device.as_deref().unwrap_or("none"))
    }

    /// Every key of the configuration as it is in force.
    pub fn settings(&self) -> Vec<Shown> {
        let mut all = self.config().shown(&self.args);
        let offload = self.switch.offload.settings().get();
        let time = |time| json!(humantime::format_duration(time).to_string());
        // What commands can change.
        let mut living = vec![("datapath.flow-limit", json!(self.switch.shared.flow_limit()))];
        if self.switch.offload.has_device() {
            living.extend([
                ("offload.enabled", json!(offload.enabled)),
                ("offload.threads", json!(self.switch.offload.threads())),
                ("offload.min-packets", json!(offload.min_packets)),
                ("offload.min-age", time(offload.min_age)),
                ("offload.min-rate", json!(offload.min_rate)),
                ("offload.operation-rate", json!(offload.operation_rate)),
            ]);
        }
        for shown in &mut all {
            let now = living.iter().find(|(key, value)| *key == shown.key && shown.value.as_ref() != Some(value));
            if let Some((_, value)) = now {
                (shown.value, shown.source) = (Some(value.clone()), Source::Command);
            }
        }
        all
    }

    fn history(&self) -> std::sync::MutexGuard<'_, History> {
        // Lists and sums, whole at any moment.
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The flows that rules made: their average number so far, and the highest, both seen once a second.
    pub fn flow_history(&self) -> (u64, u64) {
        let (sum, ticks, most) = self.history().flows;
        (sum / ticks.max(1), most)
    }

    /// Every counter with its name.
    pub fn counts(&self) -> Reading {
        let PollerCounters { lookup, fate, doings, .. } = self.switch.totals();
        let snapshot = self.switch.offload.snapshot();
        let queue = snapshot.queue;
        let groups = [("lookup", lookup.list()), ("packet", fate.list()), ("poller", doings.list())];
        let ours = groups
            .into_iter()
            .flat_map(|(group, counts)| counts.into_iter().map(move |(name, n)| (format!("{group}_{name}"), n)));
        let operations = snapshot.operations;
        let named = [("put", operations.put), ("modify", operations.modify), ("delete", operations.delete)];
        let offload = named.into_iter().flat_map(|(name, outcomes)| {
            let Outcomes { done, unsupported, no_room, device } = outcomes;
            [("done", done), ("unsupported", unsupported), ("no_room", no_room), ("device_error", device)]
                .map(|(outcome, n)| (format!("offload_{name}_{outcome}"), n))
        });
        let queue = [
            ("enqueued", queue.enqueued),
            ("coalesced", queue.coalesced),
            ("refused", queue.refused),
            ("wakeups", queue.wakeups),
        ];
        let queue = queue.map(|(name, n)| (format!("offload_queue_{name}"), n));
        let stations = self.slowpath.stations().counts();
        let rest = [
            ("offload_evicted", snapshot.evictions),
            ("offload_device_resets", snapshot.resets),
            ("mac_learned", stations.learned),
            ("mac_moved", stations.moved),
            ("mac_expired", stations.expired),
            ("mac_evicted", stations.evicted),
        ];
        ours.chain(offload).chain(queue).chain(rest.map(|(name, n)| (name.to_owned(), n))).collect()
    }

    /// How fast the counters rise.
    pub fn coverage(&self, now: Instant) -> coverage::Report {
        let counts = self.counts();
        self.history().coverage.report(now, counts)
    }

    /// How many of everything there are.
    pub fn memory(&self) -> BTreeMap<&'static str, u64> {
        let snapshot = self.switch.offload.snapshot();
        let shared = &self.switch.shared;
        let sizes = [
            ("cells", self.switch.offload.cells()),
            ("flows", shared.flows()),
            ("flows-by-hand", shared.by_hand()),
            ("marks", snapshot.marks.in_use as usize),
            ("megaflows", snapshot.megaflows),
            ("offload-queue", snapshot.queue.depth),
            ("offload-queue-bytes", snapshot.queue.bytes),
            ("pollers", self.switch.pollers()),
            ("ports", self.switch.names().len()),
            ("resident-bytes", process::resident_bytes()),
            ("rules", self.slowpath.rule_count()),
            ("rules-in-device", snapshot.rules),
            ("stations", self.slowpath.stations().counts().stations),
        ];
        sizes.into_iter().map(|(name, n)| (name, n as u64)).collect()
    }

    /// Whether the clock may be turned.
    pub fn has_time_control(&self) -> bool {
        self.args.time_control
    }

    /// Makes the main loop end.
    pub fn ask_to_stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        (self.wake)();
    }

    /// What a poller's flows stand under in dumps.
    pub fn poller_title(&self, poller: usize) -> String {
        format!("flow-dump from {}", self.place(poller, "pmd on cpu core: "))
    }

    /// What a poller's counts stand under.
    pub fn poller_place(&self, poller: usize) -> String {
        self.place(poller, "pmd thread numa_id 0 core_id ")
    }

    /// A poller's processor if it has one of its own, else its number.
    fn place(&self, poller: usize, pinned: &str) -> String {
        match self.switch.crew().cpus.get(poller) {
            Some(cpu) => format!("{pinned}{cpu}"),
            None => format!("poller: {poller}"),
        }
    }

    fn config(&self) -> std::sync::MutexGuard<'_, Config> {
        // Replaced whole, so a panic leaves no half of one behind.
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs what must wait for others, and must be run to its end, on a thread of its own, so that the control socket goes
    /// on answering. The answer is an error when there is no such thread, or it panicked.
    pub fn in_background<T: Send + 'static>(
        self: &Arc<Self>,
        name: &str,
        work: impl FnOnce(&Daemon) -> T + Send + 'static,
    ) -> oneshot::Receiver<T> {
        let (reply, answer) = oneshot::channel();
        let daemon = Arc::clone(self);
        // Whoever asked may have given up waiting.
        let work = move || drop(reply.send(work(&daemon)));
        if let Err(error) = thread::Builder::new().name(name.into()).spawn(work) {
            log::error!(target: "daemon", "{name}: {error}");
        }
        answer
    }

    /// As [`Switch::add_port`]; for threads that may sleep.
    pub fn add_port(&self, spec: &PortSpec) -> Result<PortNo, AddPortError> {
        block_on(self.switch.add_port(spec))
    }

    /// Closes a port and opens it as `new`; as it was if that cannot be. For threads that may sleep.
    pub fn replace_port(&self, old: &PortSpec, new: &PortSpec) -> Result<PortNo, AddPortError> {
        if let Some(number) = self.switch.port_number(&old.name) {
            self.remove_port(number);
        }
        self.add_port(new).inspect_err(|_| {
            let as_it_was = PortSpec { number: new.number, ..old.clone() };
            if let Err(error) = self.add_port(&as_it_was) {
                log::error!(target: "port", "{}: not as it was, either: {error}", old.name);
            }
        })
    }

    /// Closes a port and opens it as it was asked for, with its number; for threads that may sleep. Its packets are lost meanwhile.
    fn reopen_port(&self, port: PortNo) {
        let Some(spec) = self.switch.port_spec(port) else { return };
        self.remove_port(port);
        if let Err(error) = self.add_port(&PortSpec { number: Some(port), ..spec }) {
            log::error!(target: "port", "it cannot be opened anew, and stays closed: {error}");
        }
    }

    /// As [`Switch::remove_port`]; for threads that may sleep.
    pub fn remove_port(&self, port: PortNo) -> Option<String> {
        block_on(self.switch.remove_port(port))
    }

    /// Restarts a device that hung or failed and has every flow ask for it anew. `false`: it is not off. For threads that may
    /// sleep.
    pub fn resume_offload(&self) -> Result<bool, ResumeError> {
        let resumed = self.switch.offload.resume()?;
        if resumed {
            block_on(self.switch.renew_agents());
        }
        Ok(resumed)
    }

    /// As [`Switch::move_rx`]; for threads that may sleep.
    pub fn move_rx(&self, port: PortNo, queue: usize, poller: usize) -> Result<(), MoveRxError> {
        block_on(self.switch.move_rx(port, queue, poller))
    }

    /// As [`Switch::rebalance`]; for threads that may sleep.
    pub fn rebalance(&self, now: Instant) -> Vec<Move> {
        block_on(self.switch.rebalance(now))
    }

    /// The reverse of the building: first no more packets, then no rules in the device. Answers with how many those were.
    fn take_down(&self) -> usize {
        self.switch.stop();
        let stopped = self.switch.offload.stop(Instant::now() + DRAIN);
        if stopped.left > 0 {
            log::error!(target: "daemon", "{} rules may be left in the device", stopped.left);
        }
        stopped.removed
    }
}

/// The pollers that the configuration wants.
fn pollers(config: &Config) -> PollerConfig {
    PollerConfig { count: poller_count(config), cpus: config.cpus.clone() }
}

/// One poller a receive queue of the ports that are configured, and one processor for everything else.
fn poller_count(config: &Config) -> usize {
    if let Some(count) = config.pollers {
        return count.get();
    }
    let queues: usize = config.ports.iter().map(PortSpec::rx_queues).sum();
    let processors = thread::available_parallelism().map_or(1, usize::from);
    queues.min(processors.saturating_sub(1)).max(1)
}

/// The keys that differ and cannot change while packets flow.
fn needs_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    let differs = [
        ("unixctl", old.unixctl != new.unixctl),
        ("pidfile", old.pidfile != new.pidfile),
        ("metrics.listen", old.metrics != new.metrics),
        ("log-file", old.log_file != new.log_file),
        ("control.group", old.control_group != new.control_group),
        ("control.connections", old.control_limits.connections != new.control_limits.connections),
        ("control.request-bytes", old.control_limits.request != new.control_limits.request),
        ("control.output-bytes", old.control_limits.output != new.control_limits.output),
        ("control.batch", old.control_limits.batch != new.control_limits.batch),
        ("control.idle", old.control_limits.idle != new.control_limits.idle),
        ("slowpath.mac-ageing", old.mac_ageing != new.mac_ageing),
        ("slowpath.mac-limit", old.mac_limit != new.mac_limit),
        ("offload.device", old.device != new.device),
        ("offload.queue-limit", old.queue_limit != new.queue_limit),
        ("offload.queue-bytes", old.queue_bytes != new.queue_bytes),
        ("offload.patience", old.offload_patience != new.offload_patience),
    ];
    differs.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
}

/// Waits for a future on this thread; for threads that may sleep.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(value) => return value,
            Poll::Pending => thread::park(),
        }
    }
}
