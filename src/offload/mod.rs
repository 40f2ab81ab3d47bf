//! A flow's trip to the device and back.
//!
//! The poller's end is an [`Agent`]; the worker's end is in [`worker`]; between them stands one [`OffloadCell`] a flow,
//! which says what the flow wants, what the device has, and whether either side should look again.
//!
//! ```text
//!   poller                      queue                        worker                     device
//!   Agent::adopt ──wants──► put lane    ─┐ condvar, only  ┌─► compare wants with  ──► put/replace
//!   Agent::update ─wants──► put lane    ─┤ when asleep    │   what the device has ──► delete
//!   Agent::release ─dead──► delete lane ─┘                │   ◄── outcome ──────────
//!   Agent::drain ◄────────── inbox of cells ◄─────────────┘   (bind or unbind this mark)
//! ```
//!
//! Both directions are level-triggered: what travels is "look at this cell again", each cell at most once a lane,
//! never a history of operations.
//!
//! In reading order:
//!
//! - [`state`]: the cell
//! - [`queue`]: the lanes and the wake-up
//! - [`agent`]: what a poller may do
//! - [`worker`]: what is done about it, with its table of rules ([`table`]), their
//!   troubles ([`trouble`]) and marks ([`mark`])
//! - [`backend`]: what a device must be able to do, and the devices
//! - [`report`]: what can be seen of all this

pub mod agent;
pub mod backend;
pub mod mark;
pub mod queue;
pub mod report;
pub mod state;
pub mod table;
pub mod trouble;
pub mod worker;

use std::sync::{Arc as StdArc, Mutex as StdMutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures_channel::oneshot;

use crate::flow::PortNo;
use crate::port::{PortInfo, RxProgress};
use crate::sync::Arc;

pub use agent::Agent;
pub use report::{MarkPage, MarkRow, Snapshot};
pub use state::{FlowSlot, FlowStats, Level, OffloadCell, Refusal, Standing};

use agent::Mailbox;
use backend::{ActionSet, BackendCaps, Device};
use queue::{Queue, QueueCounts};
use report::Report;
use state::MatchHasher;
use worker::{Lanes, Message, Worker};

/// What is wanted of the offload path.
#[derive(Clone, Debug)]
pub struct OffloadConfig {
    /// New flows that may wait to be put.
    pub queue_limit: usize,
    /// Width of the marks used, 8 to 32; never more than the device stamps.
    pub mark_bits: u8,
    /// How often the device's counts are read.
    pub stats_interval: Duration,
}

impl Default for OffloadConfig {
    /// Room for a second of new flows at the rate that a fast NIC takes them, all the marks that a device has, and
    /// counts as fresh as a person looks at them.
    fn default() -> Self {
        OffloadConfig { queue_limit: 65_536, mark_bits: 32, stats_interval: Duration::from_secs(1) }
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
/// No method waits for the device but [`Offload::stop`], which waits until its deadline.
pub struct Offload {
    shared: StdArc<Shared>,
    report: StdArc<StdMutex<Report>>,
    thread: StdMutex<Option<JoinHandle<()>>>,
}

/// What agents need of it.
pub(crate) struct Shared {
    queues: Vec<Arc<Lanes>>,
    caps: BackendCaps,
    hasher: MatchHasher,
    start: Instant,
}

/// Workers share the megaflows by this many fixed parts.
const SHARDS: u64 = 64;

impl Shared {
    /// The queue of the worker that sees to megaflows with this hash; `None` without a device.
    pub(crate) fn queue_for(&self, hash: u64) -> Option<&Arc<Lanes>> {
        let shard = (hash % SHARDS) as usize;
        self.queues.get(shard.checked_rem(self.queues.len())?)
    }
}

impl Offload {
    /// Starts the worker thread for `device`; `epoch` as it was opened with.
    ///
    /// # Errors
    /// The system has no room for another thread.
    pub fn start(device: &dyn Device, epoch: Instant, config: OffloadConfig) -> std::io::Result<Offload> {
        let (offload, worker) = Offload::assemble(device, epoch, &config);
        let thread = std::thread::Builder::new().name("offload-0".to_owned()).spawn(move || worker.run())?;
        *offload.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(offload)
    }

    /// No device: every flow stays in software, for that reason.
    pub fn none() -> Offload {
        let caps = BackendCaps {
            name: "none",
            fields: crate::flow::Mask::EMPTY,
            level: Level::Mark,
            actions: ActionSet::NONE,
            capacity: Some(0),
            mark_bits: 8,
            replace_in_place: false,
        };
        let shared = Shared { queues: Vec::new(), caps, hasher: MatchHasher::default(), start: Instant::now() };
        Offload { shared: StdArc::new(shared), report: StdArc::default(), thread: StdMutex::default() }
    }

    /// The path and its worker, for whoever wants to take the steps himself: [`Worker::run`] or [`Worker::turn`].
    pub fn assemble(device: &dyn Device, start: Instant, config: &OffloadConfig) -> (Offload, Worker) {
        let queue = Arc::new(Queue::new(config.queue_limit, usize::MAX));
        let report = StdArc::<StdMutex<Report>>::default();
        let caps = device.capabilities();
        let worker = Worker::new(Arc::clone(&queue), device, start, config, StdArc::clone(&report));
        let shared = Shared { queues: vec![queue], caps, hasher: MatchHasher::default(), start };
        (Offload { shared: StdArc::new(shared), report, thread: StdMutex::default() }, worker)
    }

    /// A poller's end. `ring_doorbell` wakes poller number `poller` should it sleep; workers call it after they left
    /// something for it, and when it should look at its receive queues.
    pub fn agent(&self, poller: u32, ring_doorbell: Box<dyn Fn() + Send + Sync>) -> Agent {
        let mailbox = Arc::new(Mailbox::new(poller, ring_doorbell));
        self.tell(|| Message::AgentAdded(Arc::clone(&mailbox)));
        Agent::new(StdArc::clone(&self.shared), mailbox)
    }

    /// The moment that the nanoseconds of [`FlowStats`] count from.
    pub fn started(&self) -> Instant {
        self.shared.start
    }

    /// Whether there is a device at all.
    pub fn has_device(&self) -> bool {
        !self.shared.queues.is_empty()
    }

    /// A port whose flows may be offloaded, and how far its receive queues have been emptied. To be told before the
    /// first packet is received.
    pub fn port_added(&self, port: PortInfo, queues: Vec<StdArc<RxProgress>>) {
        self.tell(|| Message::PortAdded(port.clone(), queues.clone()));
    }

    /// The port's rules are to be removed from the device; later flows of it stay in software. Does not wait.
    pub fn port_removed(&self, port: PortNo) {
        // A port that came and went while the device hangs concerns nobody any more.
        let added = |message: &Message| matches!(message, Message::PortAdded(info, _) if info.number == port);
        self.shared.queues.iter().for_each(|queue| queue.take_back_or_send(added, Message::PortRemoved(port)));
    }

    /// Removes every rule that is in the device when the worker reads this, even if wanted again meanwhile. Completes
    /// when the device has forgotten them; drop it to stop waiting. Cancelled when the worker is gone, or has not read
    /// hundreds of earlier questions.
    pub fn flush(&self) -> oneshot::Receiver<Flushed> {
        let (reply, receiver) = oneshot::channel();
        match self.shared.queues.first() {
            Some(queue) => queue.ask(Message::Flush(reply)),
            // The receiver is alive: it is returned below.
            None => drop(reply.send(Flushed { removed: 0, trouble: None })),
        }
        receiver
    }

    /// Everything there is to say at this moment.
    pub fn snapshot(&self) -> Snapshot {
        let caps = &self.shared.caps;
        let queue = self.queue();
        let report = self.report();
        let refused = Refusal::ALL.into_iter().zip(report.refused).filter(|(_, n)| *n > 0).collect();
        Snapshot {
            backend: caps.name,
            off: report.off.clone(),
            level: caps.level,
            ports: report.ports.clone(),
            rules: report.rules,
            capacity: caps.capacity,
            megaflows: report.megaflows,
            marks: report.marks,
            queue,
            queue_bytes: queue.bytes,
            operations: report.operations,
            refused,
            resets: report.resets,
            latency: report.latency(),
            device_time: report.device_time(),
        }
    }

    /// Up to `limit` (at most 1,000) marks above `after` with their megaflows. Answered by the worker, so not while
    /// the device hangs; cancelled as [`Offload::flush`].
    pub fn marks(&self, after: u32, limit: usize) -> oneshot::Receiver<MarkPage> {
        let (reply, receiver) = oneshot::channel();
        let limit = limit.clamp(1, 1_000);
        match self.shared.queues.first() {
            Some(queue) => queue.ask(Message::Marks { after, limit, reply }),
            // The receiver is alive: it is returned below.
            None => drop(reply.send(MarkPage::default())),
        }
        receiver
    }

    /// The queue's counts.
    pub fn queue(&self) -> QueueCounts {
        self.shared.queues.first().map(|queue| queue.counts()).unwrap_or_default()
    }

    /// Removes every rule from the device and ends the worker. A worker that has not ended at `deadline` hangs in the
    /// device, and is left behind.
    pub fn stop(&self, deadline: Instant) -> Stopped {
        // Taken out whole, so a panic leaves no half of one behind.
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(thread) = thread else { return Stopped::default() };
        let (reply, receiver) = mpsc::channel();
        if thread.is_finished() {
            return Stopped { removed: 0, left: self.report().rules };
        }
        self.tell(|| Message::Stop { deadline, reply: reply.clone() });
        drop(reply);
        match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(stopped) => {
                // It has nothing left to do; a panic on the way out changes nothing.
                let _ = thread.join();
                stopped
            }
            Err(_) => {
                let left = self.report().rules;
                self.shared.queues.iter().for_each(|queue| queue.close());
                log::warn!("the offload worker did not stop in time; {left} rules may be left in the device");
                Stopped { removed: 0, left }
            }
        }
    }

    fn tell(&self, message: impl Fn() -> Message) {
        self.shared.queues.iter().for_each(|queue| queue.send(message()));
    }

    fn report(&self) -> std::sync::MutexGuard<'_, Report> {
        // Counts are right one by one, so those of a poisoned report are still good.
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Offload {
    fn drop(&mut self) {
        self.stop(Instant::now() + Duration::from_secs(1));
    }
}
