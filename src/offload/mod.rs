//! A flow's trip to the device and back.
//!
//! The poller's end is an [`Agent`]; the workers' end is in [`worker`]; between them stands one [`OffloadCell`] a flow,
//! which says what the flow wants, what the device has, and whether either side should look again.
//!
//! ```text
//!   poller                      a worker's queue             that worker                device
//!   Agent::adopt ──wants──► put lane    ─┐ condvar, only  ┌─► compare wants with  ──► put/replace
//!   Agent::update ─wants──► delete lane ─┤ when asleep    │   what the device has ──► delete
//!   Agent::release ─dead──► delete lane ─┘                │   ◄── outcome ──────────
//!   Agent::drain ◄────────── inbox of cells ◄─────────────┘   (bind or unbind this mark)
//! ```
//!
//! Both directions are level-triggered: what travels is "look at this cell again", each cell at most once a lane,
//! never a history of operations. Which worker a megaflow belongs to follows from its match, for all pollers, so what is
//! done about it is done in order; workers share the marks and nothing else that changes often.
//!
//! A flow that is not as far in the device as it could be has a [`Trouble`] that says why: its owner's [`Settings`] keep it
//! out, there is no room, the device cannot or fails, or it is off. A device in which a worker hangs for longer than the
//! patience is fenced by [`Offload::watch`]: its marks mean nothing from then on, until [`Offload::resume`].
//!
//! In reading order:
//!
//! - [`state`]: the cell
//! - [`queue`]: the lanes and the wake-up
//! - [`agent`]: what a poller may do
//! - [`worker`]: what is done about it, with its table of rules ([`table`]), their troubles ([`trouble`]), those that
//!   wait for room ([`waiting`]) and marks ([`mark`])
//! - [`crew`]: several workers, and what they have in common
//! - [`settings`]: what operators change while it runs
//! - [`backend`]: what a device must be able to do, and the devices
//! - [`report`]: what can be seen of all this

pub mod agent;
pub mod backend;
pub mod crew;
pub mod events;
pub mod mark;
pub mod queue;
pub mod report;
pub mod settings;
pub mod state;
pub mod table;
pub mod trouble;
pub mod waiting;
pub mod worker;

use std::collections::BTreeMap;
use std::sync::{Arc as StdArc, Mutex as StdMutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures_channel::oneshot;

use crate::flow::PortNo;
use crate::port::{PortInfo, RxProgress};
use crate::sync::Arc;
use crate::sys::turns::take_short_turns;
use crate::telemetry::spread::Spread;

pub use agent::Agent;
pub use report::{MarkPage, MarkRow, Snapshot};
pub use settings::{Record, Settings, Wanted};
pub use state::{Census, FlowSlot, FlowStats, Heir, Level, OffloadCell, Standing};
pub use trouble::{Kind, Reason, Trouble};

use agent::Mailbox;
use backend::{BackendCaps, Device};
use crew::{Crew, WORKERS};
use events::Events;
use queue::QueueCounts;
use report::{Latencies, MarkCounts, Operations, Percentiles, Times, WorkerRow};
use worker::{Gathering, Message, Worker};

/// What is wanted of the offload path from its start.
#[derive(Clone, Debug)]
pub struct OffloadConfig {
    /// Workers, 1 to 16.
    pub threads: usize,
    /// New flows that may wait to be put, for each worker…
    pub queue_limit: usize,
    /// …and the memory that they may take while they do, in bytes.
    pub queue_bytes: usize,
    /// Width of the marks used, 8 to 32; never more than the device stamps.
    pub mark_bits: u8,
    /// How often the device's counts are read, and rates measured.
    pub stats_interval: Duration,
    /// How long an operation may take before the device is held to hang.
    pub patience: Duration,
    pub wanted: Wanted,
}

impl Default for OffloadConfig {
    /// One worker keeps up with most devices. Room for a second of new flows at the rate that a fast NIC takes them, all the
    /// marks that a device has, counts as fresh as a person looks at them, and ten times the patience that the slowest
    /// operation of a healthy device was ever seen to need.
    fn default() -> Self {
        OffloadConfig {
            threads: 1,
            queue_limit: 65_536,
            queue_bytes: 256 << 20,
            mark_bits: 32,
            stats_interval: Duration::from_secs(1),
            patience: Duration::from_secs(5),
            wanted: Wanted::default(),
        }
    }
}

/// A flush that is over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Flushed {
    /// Rules that the device has forgotten for it.
    pub removed: usize,
    /// Why the device could not be asked, should it be off.
    pub trouble: Option<String>,
}

/// A stop that is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stopped {
    /// Rules that were removed from the device.
    pub removed: usize,
    /// Rules that may still be there.
    pub left: usize,
}

/// The offload path as the daemon and the control thread hold it.
///
/// # Thread-safety
/// No method waits for the device but [`Offload::stop`], which waits until its deadline, and [`Offload::resume`], which
/// waits for a device that was given up.
pub struct Offload {
    start: Instant,
    settings: StdArc<Settings>,
    config: OffloadConfig,
    census: Census,
    /// What happened lately, in all lives of the device.
    pub events: StdArc<Events>,
    /// `None`: there is no device.
    path: Option<Path>,
}

/// What there is where there is a device.
struct Path {
    device: StdArc<dyn Device>,
    caps: BackendCaps,
    staff: StdMutex<Staff>,
    /// Held while the device is brought back: one at a time.
    resuming: StdMutex<()>,
}

/// The crew of this life of the device, and what a new worker or a new crew must be told.
struct Staff {
    crew: StdArc<Crew>,
    /// Workers that were ever started, or are stepped by hand.
    hired: usize,
    /// Their threads, where they have any that nobody has joined.
    threads: Vec<JoinHandle<()>>,
    /// How many workers have shards.
    working: usize,
    ports: BTreeMap<PortNo, (PortInfo, Vec<StdArc<RxProgress>>)>,
    mailboxes: Vec<Arc<Mailbox>>,
    /// What the queues had counted when the counts were last cleared.
    cleared: Vec<QueueCounts>,
    stopped: bool,
}

/// Why the offload path cannot be resumed.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    #[error("there is no device")]
    NoDevice,
    #[error("offload is stopping")]
    Stopping,
    #[error(transparent)]
    Device(#[from] backend::FlushError),
    #[error("cannot start a worker: {0}")]
    Thread(#[from] std::io::Error),
}

impl Offload {
    /// Starts the workers of `device`; `epoch` as it was opened with.
    ///
    /// # Errors
    /// The system has no room for another thread.
    pub fn start(device: StdArc<dyn Device>, epoch: Instant, config: OffloadConfig) -> std::io::Result<Offload> {
        let offload = Offload::assemble_idle(device, epoch, &config);
        if let Some(path) = &offload.path {
            path.staff().employ(config.threads, &config, false)?;
        }
        Ok(offload)
    }

    /// No device: every flow stays in software.
    pub fn none() -> Offload {
        let config = OffloadConfig::default();
        let settings = StdArc::new(Settings::new(&config.wanted));
        let (census, events) = Default::default();
        Offload { start: Instant::now(), settings, config, census, events, path: None }
    }

    /// The path and its first worker, for whoever wants to take the steps himself: [`Worker::run`] or [`Worker::turn`].
    pub fn assemble(device: StdArc<dyn Device>, start: Instant, config: &OffloadConfig) -> (Offload, Worker) {
        let (offload, mut workers) =
            Offload::assemble_many(device, start, &OffloadConfig { threads: 1, ..config.clone() });
        (offload, workers.remove(0))
    }

    /// As [`Offload::assemble`], with as many workers as `config` says.
    pub fn assemble_many(device: StdArc<dyn Device>, start: Instant, config: &OffloadConfig) -> (Offload, Vec<Worker>) {
        let offload = Offload::assemble_idle(device, start, config);
        let workers = offload.path.iter().flat_map(|path| {
            let mut staff = path.staff();
            let threads = config.threads.clamp(1, WORKERS);
            (staff.hired, staff.working) = (threads, threads);
            let crew = &staff.crew;
            (0..threads)
                .map(|id| Worker::new(id, StdArc::clone(crew), crew.shards_of(id), config, false))
                .collect::<Vec<_>>()
        });
        let workers = workers.collect();
        (offload, workers)
    }

    fn assemble_idle(device: StdArc<dyn Device>, start: Instant, config: &OffloadConfig) -> Offload {
        let settings = StdArc::new(Settings::new(&config.wanted));
        let (census, events): (_, StdArc<Events>) = Default::default();
        let shared = (StdArc::clone(&settings), StdArc::clone(&events));
        let crew = Crew::new(0, StdArc::clone(&device), start, shared, config, config.threads);
        let caps = crew.caps.clone();
        let staff = Staff {
            crew: StdArc::new(crew),
            hired: 0,
            threads: Vec::new(),
            working: 0,
            ports: BTreeMap::new(),
            mailboxes: Vec::new(),
            cleared: Vec::new(),
            stopped: false,
        };
        let path = Path { device, caps, staff: StdMutex::new(staff), resuming: StdMutex::default() };
        Offload { start, settings, config: config.clone(), census, events, path: Some(path) }
    }

    /// A poller's end. `ring_doorbell` wakes poller number `poller` should it sleep; workers call it after they left
    /// something for it, and when it should look at its receive queues. `None` without a device.
    pub fn agent(&self, poller: u32, ring_doorbell: Box<dyn Fn() + Send + Sync>) -> Option<Agent> {
        let mailbox = Arc::new(Mailbox::new(poller, ring_doorbell, self.census.clone()));
        let mut staff = self.path.as_ref()?.staff();
        staff.mailboxes.retain(|mailbox| !mailbox.is_closed());
        staff.mailboxes.push(Arc::clone(&mailbox));
        staff.tell(|| Message::AgentAdded(Arc::clone(&mailbox)));
        Some(Agent::new(StdArc::clone(&staff.crew), mailbox))
    }

    /// The moment that the nanoseconds of [`FlowStats`] count from.
    pub fn started(&self) -> Instant {
        self.start
    }

    /// Whether there is a device at all.
    pub fn has_device(&self) -> bool {
        self.path.is_some()
    }

    /// What operators have asked for.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Changes what operators ask for. Takes effect soon; switching off removes every rule, switching on offloads what lives.
    pub fn set(&self, wanted: &Wanted) {
        self.settings.set(wanted);
        if let Some(path) = &self.path {
            path.staff().tell(|| Message::Look);
        }
    }

    /// How many workers there are.
    pub fn threads(&self) -> usize {
        self.path.as_ref().map_or(0, |path| path.staff().working)
    }

    /// Has `threads` workers (1 to 16) share the megaflows from now on. Rules move between workers without touching the
    /// device. Workers that are not needed sleep until they are.
    ///
    /// # Errors
    /// The system has no room for another thread; then those there are go on.
    pub fn set_threads(&self, threads: usize) -> std::io::Result<()> {
        match &self.path {
            Some(path) => path.staff().employ(threads, &self.config, false),
            None => Ok(()),
        }
    }

    /// A port whose flows may be offloaded, and how far its receive queues have been emptied. To be told before the
    /// first packet is received.
    pub fn port_added(&self, port: PortInfo, queues: Vec<StdArc<RxProgress>>) {
        if let Some(path) = &self.path {
            let mut staff = path.staff();
            staff.tell(|| Message::PortAdded(port.clone(), queues.clone()));
            staff.ports.insert(port.number, (port, queues));
        }
    }

    /// The device serves the port from now on: rules of it can be put, and those that send there are put anew, for it may have another place
    /// there than the port that had its number before. Does not wait.
    pub fn port_connected(&self, port: PortNo) {
        let Some(path) = &self.path else { return };
        let staff = path.staff();
        // Under the lock, so that workers hear of changes in the order of their numbers.
        let way = staff.crew.next_way();
        for lanes in staff.lanes() {
            let same = |message: &Message| matches!(message, Message::PortConnected(number, _) if *number == port);
            lanes.send_in_place_of(same, Message::PortConnected(port, way));
        }
    }

    /// What the device can do for packets that are to leave by the port has changed: rules that send there are tried anew. Does not wait.
    pub fn port_changed(&self, port: PortNo) {
        let Some(path) = &self.path else { return };
        let staff = path.staff();
        // Under the lock, so that workers hear of changes in the order of their numbers.
        let way = staff.crew.next_way();
        for lanes in staff.lanes() {
            let same = |message: &Message| matches!(message, Message::PortChanged(number, _) if *number == port);
            lanes.send_in_place_of(same, Message::PortChanged(port, way));
        }
    }

    /// The port's rules are to be removed from the device; later flows of it stay in software. Does not wait.
    pub fn port_removed(&self, port: PortNo) {
        let Some(path) = &self.path else { return };
        let mut staff = path.staff();
        staff.ports.remove(&port);
        // A port that came and went while the device hangs concerns nobody any more.
        let added = |message: &Message| matches!(message, Message::PortAdded(info, _) if info.number == port);
        for lanes in staff.lanes() {
            lanes.take_back_or_send(added, Message::PortRemoved(port));
        }
    }

    /// Removes every rule that is in the device now, even if wanted again meanwhile. Completes when the device has forgotten
    /// them; drop it to stop waiting. Cancelled when a worker is gone, or has not read hundreds of earlier questions.
    pub fn flush(&self) -> oneshot::Receiver<Flushed> {
        let (reply, receiver) = oneshot::channel();
        match &self.path {
            Some(path) => {
                let staff = path.staff();
                let number = staff.crew.next_flush();
                let gathering = StdArc::new(Gathering::new(staff.hired, reply));
                for lanes in staff.lanes() {
                    lanes.ask(Message::Flush { number, gathering: StdArc::clone(&gathering) });
                }
            }
            // The receiver is alive: it is returned below.
            None => drop(reply.send(Flushed { removed: 0, trouble: None })),
        }
        receiver
    }

    /// Looks after the workers: a device in which one has been for longer than it may is not used any more. To be called
    /// now and then.
    pub fn watch(&self, now: Instant) {
        let Some(path) = &self.path else { return };
        let staff = path.staff();
        let crew = &staff.crew;
        if staff.stopped {
            return;
        }
        for id in 0..staff.hired {
            let Some(busy) = crew.posts[id].busy_for(crew.start, now).filter(|busy| *busy >= self.config.patience)
            else {
                continue;
            };
            if crew.off().is_none() {
                let seconds = busy.as_secs_f64();
                let why = format!("the {} device has not answered worker {id} for {seconds:.1} s", crew.caps.name);
                log::error!("offload is off: {why}; `offload/resume` tries again");
                crew.fail(why);
            }
            // Should it ever come back, it has nothing to do any more, and nobody waits for it meanwhile.
            crew.lanes[id].close();
        }
    }

    /// Why the device is not used any more.
    pub fn off(&self) -> Option<String> {
        let staff = self.path.as_ref()?.staff();
        staff.crew.off().map(str::to_owned)
    }

    /// Brings a device back that hung or failed: restarts it and hires a new crew. Agents of the old one are of no more use:
    /// each poller must be given a new one ([`Offload::agent`]) and adopt its flows again; then call [`Offload::renewed`].
    /// `false`: it was not off.
    ///
    /// # Errors
    /// It does not come back; it stays off.
    pub fn resume(&self) -> Result<bool, ResumeError> {
        let path = self.path.as_ref().ok_or(ResumeError::NoDevice)?;
        // It guards no data.
        let _alone = path.resuming.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let staff = path.staff();
            if staff.stopped {
                return Err(ResumeError::Stopping);
            }
            if staff.crew.off().is_none() {
                return Ok(false);
            }
            // Whoever hangs in the device has been given up; whoever does not, ends.
            staff.crew.lanes.iter().for_each(|lanes| lanes.close());
        }
        path.device.restart()?;
        let mut staff = path.staff();
        if staff.stopped || staff.crew.off().is_none() {
            return Ok(false);
        }
        let (life, threads) = (staff.crew.life + 1, staff.working);
        let shared = (StdArc::clone(&self.settings), StdArc::clone(&self.events));
        let crew = Crew::new(life, StdArc::clone(&path.device), self.start, shared, &self.config, threads);
        staff.crew = StdArc::new(crew);
        staff.threads.clear();
        staff.cleared.clear();
        staff.hired = 0;
        if let Err(error) = staff.employ(threads, &self.config, true) {
            staff.crew.fail(format!("cannot start a worker: {error}"));
            return Err(error.into());
        }
        log::info!("offload: the {} device is back", path.caps.name);
        Ok(true)
    }

    /// Every poller has been given a new agent after [`Offload::resume`], and knows no mark of the device's former life any more.
    /// Only then is the device filled.
    pub fn renewed(&self) {
        if let Some(path) = &self.path {
            path.staff().crew.set_renewed();
        }
    }

    /// Everything there is to say at this moment.
    pub fn snapshot(&self) -> Snapshot {
        match &self.path {
            Some(path) => path.snapshot(&self.settings),
            None => Snapshot::of_nothing(self.settings.get()),
        }
    }

    /// Counts and times begin anew; what there is, and the greatest depth of a queue, stays.
    pub fn clear_counts(&self) {
        let Some(path) = &self.path else { return };
        let mut staff = path.staff();
        staff.crew.posts.iter().for_each(|post| post.report().clear());
        staff.cleared = staff.lanes().map(|lanes| lanes.counts()).collect();
    }

    /// Up to `limit` (at most 1,000) marks above `after` with their megaflows. Answered by the workers, so not while the
    /// device hangs; cancelled as [`Offload::flush`].
    pub async fn marks(&self, after: u32, limit: usize) -> Result<MarkPage, oneshot::Canceled> {
        let limit = limit.clamp(1, 1_000);
        let answers: Vec<_> = self.path.iter().flat_map(|path| path.staff().ask_for_marks(after, limit)).collect();
        let mut pages = Vec::new();
        for answer in answers {
            pages.push(answer.await?);
        }
        Ok(MarkPage::merge(pages, limit))
    }

    /// Each worker's times, from request to outcome by what was asked, and in the device.
    pub fn spreads(&self) -> Vec<[(&'static str, Spread); 4]> {
        let Some(path) = &self.path else { return Vec::new() };
        let staff = path.staff();
        staff.crew.posts.iter().take(staff.hired).map(|post| post.report().times.spreads()).collect()
    }

    /// Lets every worker look again at what is due: the clock was turned.
    pub fn poke(&self) {
        self.path.iter().for_each(|path| path.staff().crew.poke());
    }

    /// Waits until every worker has done all that was due when it was asked.
    pub async fn caught_up(&self) {
        // The first answer comes at the beginning of a turn, the second after its end. A worker that has ended has nothing to do.
        for _ in 0..2 {
            let _ = self.marks(0, 1).await;
            self.poke();
        }
    }

    /// Cells that somebody still holds: those of the flows there are, of dead ones that the workers have not seen to yet, and of
    /// flows that wait for a new agent after a resumption.
    pub fn cells(&self) -> usize {
        self.census.cells()
    }

    /// The queues' counts, together.
    pub fn queue(&self) -> QueueCounts {
        let Some(path) = &self.path else { return QueueCounts::default() };
        let staff = path.staff();
        QueueCounts::sum((0..staff.hired).map(|id| staff.counts(id)))
    }

    /// Removes every rule from the device and ends the workers. A worker that has not ended at `deadline` hangs in the
    /// device, and is left behind.
    pub fn stop(&self, deadline: Instant) -> Stopped {
        match &self.path {
            Some(path) => path.stop(deadline),
            None => Stopped::default(),
        }
    }
}

/// How long workers are waited for at most that are to give no shards away, when they are stopped.
const HALT: Duration = Duration::from_secs(1);

/// Up to `most` answers, as far as they come until `deadline`.
fn answers_of<T>(receiver: &mpsc::Receiver<T>, most: usize, deadline: Instant) -> Vec<T> {
    let next = || receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok();
    std::iter::from_fn(next).take(most).collect()
}

impl Path {
    fn staff(&self) -> MutexGuard<'_, Staff> {
        // Every change under the lock is whole at any moment, or is that of a list that is told of again.
        self.staff.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self, deadline: Instant) -> Stopped {
        // Taken out whole, so a panic leaves no half of one behind.
        let (crew, threads) = {
            let mut staff = self.staff();
            staff.stopped = true;
            staff.crew.set_stopping();
            (StdArc::clone(&staff.crew), std::mem::take(&mut staff.threads))
        };
        let mut stopped = Stopped::default();
        let mut running = Vec::new();
        for (id, thread) in threads.iter().enumerate() {
            match thread.is_finished() {
                true => stopped.left += crew.posts[id].report().rules,
                false => running.push(&crew.lanes[id]),
            }
        }
        // A shard that is given away at this moment reaches its new worker before the message to stop does. Who hangs in the device gives none away.
        let (reply, receiver) = mpsc::channel();
        running.iter().for_each(|lanes| lanes.send(Message::Halt(reply.clone())));
        drop(reply);
        let patience = HALT.min(deadline.saturating_duration_since(Instant::now()) / 4);
        answers_of(&receiver, running.len(), Instant::now() + patience);

        let (reply, receiver) = mpsc::channel();
        running.iter().for_each(|lanes| lanes.send(Message::Stop { deadline, reply: reply.clone() }));
        drop(reply);
        let (asked, answers) = (running.len(), answers_of(&receiver, running.len(), deadline));
        for one in &answers {
            stopped.removed += one.removed;
            stopped.left += one.left;
        }
        crew.lanes.iter().for_each(|lanes| lanes.close());
        if answers.len() == asked {
            // They have nothing left to do; a panic on the way out changes nothing.
            threads.into_iter().filter(|_| crew.off().is_none()).for_each(|thread| drop(thread.join()));
        } else {
            stopped.left = crew.posts.iter().map(|post| post.report().rules).sum();
            log::warn!("an offload worker did not stop in time; {} rules may be left in the device", stopped.left);
        }
        stopped
    }

    fn snapshot(&self, settings: &Settings) -> Snapshot {
        let staff = self.staff();
        let crew = &staff.crew;
        let now = Instant::now();
        let mut all = Snapshot::of_nothing(settings.get());
        let mut times = Times::default();
        let (mut refused, mut short) = ([0; Reason::ALL.len()], [0; Reason::ALL.len()]);
        let mut quarantined = 0;
        for (id, post) in crew.posts.iter().enumerate().take(staff.hired) {
            let report = post.report();
            times.add(&report.times);
            all.operations.add(&report.operations);
            all.rules += report.rules;
            all.rules_full += report.rules_full;
            all.rules_confirmed += report.rules_confirmed;
            all.megaflows += report.megaflows;
            all.evictions += report.evictions;
            all.resets = all.resets.max(report.resets);
            quarantined += report.quarantined;
            if id == 0 {
                all.ports.clone_from(&report.ports);
            }
            (0..refused.len()).for_each(|why| {
                refused[why] += report.refused[why];
                short[why] += report.short[why];
            });
            all.workers.push(WorkerRow {
                id,
                queue: staff.counts(id),
                rules: report.rules,
                megaflows: report.megaflows,
                waiting: report.waiting,
                operations: report.operations,
                latency: report.times.latencies(),
                device_time: report.times.device_time(),
                busy_ns: post.busy_for(crew.start, now).map(|busy| busy.as_nanos() as u64),
            });
        }
        for mailbox in staff.mailboxes.iter().filter(|mailbox| !mailbox.is_closed()) {
            refused.iter_mut().zip(mailbox.refused()).for_each(|(sum, more)| *sum += more);
        }
        let (taken, capacity) = crew.marks_taken();
        let named = |counts: [usize; Reason::ALL.len()]| {
            Reason::ALL.into_iter().zip(counts).filter(|(_, n)| *n > 0).collect::<Vec<_>>()
        };
        Snapshot {
            backend: crew.caps.name,
            off: crew.off().map(str::to_owned),
            level: crew.caps.level,
            capacity: crew.caps.capacity,
            marks: MarkCounts { in_use: taken.saturating_sub(quarantined), quarantined, capacity },
            queue: QueueCounts::sum(all.workers.iter().map(|worker| worker.queue)),
            refused: named(refused),
            short: named(short),
            forgotten: self.device.forgotten(),
            latency: times.latencies(),
            device_time: times.device_time(),
            ..all
        }
    }
}

impl Staff {
    /// The queues of the workers that there are.
    fn lanes(&self) -> impl Iterator<Item = &Arc<worker::Lanes>> {
        self.crew.lanes.iter().take(self.hired)
    }

    /// What a worker's queue has counted since the counts were last cleared.
    fn counts(&self, id: usize) -> QueueCounts {
        let cleared = self.cleared.get(id).copied().unwrap_or_default();
        self.crew.lanes[id].counts().since(&cleared)
    }

    fn tell(&self, message: impl Fn() -> Message) {
        self.lanes().for_each(|lanes| lanes.send(message()));
    }

    fn ask_for_marks(&self, after: u32, limit: usize) -> Vec<oneshot::Receiver<MarkPage>> {
        self.lanes()
            .map(|lanes| {
                let (reply, receiver) = oneshot::channel();
                lanes.ask(Message::Marks { after, limit, reply });
                receiver
            })
            .collect()
    }

    /// Starts the workers that are missing of `threads` and deals the shards out among them. `convalescent`: the device was
    /// restarted, and frames with marks of its former life may still wait.
    fn employ(&mut self, threads: usize, config: &OffloadConfig, convalescent: bool) -> std::io::Result<()> {
        let threads = threads.clamp(1, WORKERS);
        while self.hired < threads {
            let id = self.hired;
            // Before it looks for the first time: it must know every queue in which old marks may wait.
            let lanes = &self.crew.lanes[id];
            for mailbox in &self.mailboxes {
                lanes.send(Message::AgentAdded(Arc::clone(mailbox)));
            }
            for (info, queues) in self.ports.values() {
                lanes.send(Message::PortAdded(info.clone(), queues.clone()));
            }
            // Its shards are those of this moment: what it is given later comes with a message. All else is its own to make, so
            // that a thread that does not start leaves nothing behind.
            let (crew, shards, config) = (StdArc::clone(&self.crew), self.crew.shards_of(id), config.clone());
            let work = move || {
                // What it does, it does in microseconds, and a poller beside it never sleeps.
                if let Err(error) = take_short_turns() {
                    log::debug!(target: "offload", "worker {id} waits for others' turns: {error}");
                }
                Worker::new(id, crew, shards, &config, convalescent).run();
            };
            let thread = std::thread::Builder::new().name(format!("offload-{id}")).spawn(work)?;
            self.threads.push(thread);
            self.hired += 1;
        }
        self.working = threads;
        self.crew.deal(threads);
        self.tell(|| Message::Look);
        Ok(())
    }
}

impl Snapshot {
    /// Of a path without a device.
    fn of_nothing(settings: Wanted) -> Snapshot {
        Snapshot {
            backend: "none",
            off: None,
            settings,
            level: Level::Mark,
            ports: Vec::new(),
            rules: 0,
            rules_full: 0,
            rules_confirmed: 0,
            capacity: Some(0),
            megaflows: 0,
            marks: MarkCounts::default(),
            queue: QueueCounts::default(),
            operations: Operations::default(),
            refused: Vec::new(),
            short: Vec::new(),
            evictions: 0,
            resets: 0,
            forgotten: None,
            latency: Latencies::default(),
            device_time: Percentiles::default(),
            workers: Vec::new(),
        }
    }
}

impl Drop for Offload {
    fn drop(&mut self) {
        self.stop(Instant::now() + Duration::from_secs(1));
    }
}
