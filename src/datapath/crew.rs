//! [`Crew`]: the pollers there are, as everybody else holds them.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use futures_channel::oneshot;
use rustix::thread::CpuSet;

use super::counters::PollerCounters;
use super::doorbell::Doorbell;
use super::emc::Emc;
use super::hash::Seeds;
use super::inbox::{Inbox, Message};
use super::pipeline::Pipeline;
use super::poller::{Poller, Receiver, Reports, run_on};
use super::shared::Shared;
use super::table::{FlowTable, Namer};
use crate::clock;
use crate::offload::Offload;

/// The pollers at one moment. Replaced whole when they change, so whoever holds one sees pollers and sums that belong together.
#[derive(Default)]
pub struct Crew {
    /// By number.
    pub pollers: Vec<Arc<PollerHandle>>,
    /// Without receive queues, on their way out.
    pub leaving: Vec<Arc<PollerHandle>>,
    /// What those counted that have ended.
    pub ended: Arc<Ended>,
    /// The processor of each poller, as far as there are any.
    pub cpus: Vec<usize>,
}

/// What pollers counted that have ended.
#[derive(Default)]
pub struct Ended {
    /// How many there were.
    pub pollers: usize,
    pub counters: PollerCounters,
    /// Of these counts, what was there when they were last cleared.
    pub cleared: Mutex<PollerCounters>,
}

/// What the control thread keeps of a poller.
pub struct PollerHandle {
    inbox: Arc<Inbox>,
    pub doorbell: Arc<Doorbell>,
    pub counters: Arc<PollerCounters>,
    /// When its counts were last cleared, at first when it started, and what they were.
    cleared: Mutex<(Instant, PollerCounters)>,
    /// It was told to end.
    dismissed: AtomicBool,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What every poller is given.
pub struct Kit {
    pub namer: Namer,
    pub reports: Reports,
    /// Where a poller without a processor of its own runs.
    pub anywhere: CpuSet,
}

impl Kit {
    /// Starts poller number `id`, without receive queues or ways out.
    ///
    /// # Errors
    /// No thread or file descriptor left.
    pub fn start(
        &self,
        id: usize,
        cpu: Option<usize>,
        shared: &Arc<Shared>,
        offload: &Offload,
    ) -> io::Result<PollerHandle> {
        let doorbell = Arc::new(Doorbell::new()?);
        let inbox = Arc::new(Inbox::default());
        let counters = Arc::new(PollerCounters::default());
        let seeds = Seeds::random();
        let ring = Arc::clone(&doorbell);
        let agent = offload.agent(id as u32, Box::new(move || ring.ring()));
        let mut table = FlowTable::new(seeds.clone(), self.namer.clone(), agent);
        table.emc = Emc::with_entries(shared.emc_entries());
        let pipeline = Pipeline::new(Arc::clone(shared), Arc::clone(&counters), table, seeds);
        let now = clock::now();
        let poller = Poller::new(now, pipeline, Arc::clone(&inbox), Arc::clone(&doorbell), self.reports.clone());
        let anywhere = self.anywhere;
        let thread = std::thread::Builder::new().name(format!("poller{id}")).spawn(move || {
            run_on(cpu, &anywhere);
            poller.run();
        })?;
        let cleared = Mutex::new((now, PollerCounters::default()));
        let thread = Mutex::new(Some(thread));
        Ok(PollerHandle { inbox, doorbell, counters, cleared, dismissed: AtomicBool::new(false), thread })
    }
}

impl PollerHandle {
    /// What wakes the poller should it sleep.
    pub fn bell(&self) -> Box<dyn Fn() + Send + Sync> {
        let doorbell = Arc::clone(&self.doorbell);
        Box::new(move || doorbell.ring())
    }

    pub fn send(&self, message: Message) {
        self.inbox.send(message);
        self.doorbell.ring();
    }

    /// The answer is cancelled when the poller has ended.
    pub fn ask<T>(&self, message: impl FnOnce(oneshot::Sender<T>) -> Message) -> oneshot::Receiver<T> {
        let (reply, answer) = oneshot::channel();
        self.send(message(reply));
        answer
    }

    /// Tells it to end.
    pub fn dismiss(&self) {
        self.dismissed.store(true, Ordering::Relaxed);
        self.send(Message::Stop);
    }

    /// Whether it ended without being told to.
    pub fn has_died(&self) -> bool {
        let ended = self.thread().as_ref().is_some_and(JoinHandle::is_finished);
        // One that ended because it was told to ended after it was told.
        ended && !self.dismissed.load(Ordering::Relaxed)
    }

    /// Waits for its end, which it was told to come to: it is through with its batch in well under a millisecond.
    pub fn join(&self) {
        let thread = self.thread().take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            log::error!(target: "poller", "a poller panicked");
        }
    }

    /// What it counted since its counts were cleared, and since when.
    pub fn since_cleared(&self) -> (Instant, PollerCounters) {
        let cleared = self.cleared();
        (cleared.0, self.counters.since(&cleared.1))
    }

    fn clear(&self, now: Instant) {
        *self.cleared() = (now, self.counters.read());
    }

    fn cleared(&self) -> MutexGuard<'_, (Instant, PollerCounters)> {
        // Replaced whole, so a panic leaves no half of one behind.
        self.cleared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn thread(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Crew {
    /// Asks every poller the same; the answers of those that have not ended, in order.
    pub async fn ask<T>(&self, message: impl Fn(oneshot::Sender<T>) -> Message) -> Vec<Option<T>> {
        ask_all(&self.pollers, message).await
    }

    /// Takes every receive queue from its poller; all that they received before has left, or was handed over.
    pub async fn take_rx(&self) -> Vec<Receiver> {
        self.ask(|reply| Message::TakeRx(None, reply)).await.into_iter().flatten().flatten().collect()
    }

    /// How many turns each poller has made; one that lives makes two a second at least.
    pub fn turns(&self) -> impl Iterator<Item = u64> {
        self.pollers.iter().map(|poller| poller.counters.doings.iterations.get())
    }

    /// The counts of all pollers that there are and were.
    pub fn totals(&self) -> PollerCounters {
        let totals = self.ended.counters.read();
        self.pollers.iter().chain(&self.leaving).for_each(|poller| totals.add(&poller.counters));
        totals
    }

    /// What pollers counted since the last clearing that have ended, or are about to; `None` when there are none.
    pub fn ended_since_cleared(&self) -> Option<PollerCounters> {
        if self.ended.pollers + self.leaving.len() == 0 {
            return None;
        }
        let ended = self.ended.counters.since(&self.ended.cleared());
        self.leaving.iter().for_each(|poller| ended.add(&poller.since_cleared().1));
        Some(ended)
    }

    /// From now on, only what comes is shown as counted since the clearing.
    pub fn clear(&self, now: Instant) {
        self.pollers.iter().chain(&self.leaving).for_each(|poller| poller.clear(now));
        *self.ended.cleared() = self.ended.counters.read();
    }
}

impl Ended {
    /// With the counts of more pollers that have ended.
    pub fn with(&self, more: &[Arc<PollerHandle>]) -> Ended {
        let (counters, cleared) = (self.counters.read(), self.cleared().read());
        for poller in more {
            counters.add(&poller.counters);
            cleared.add(&poller.cleared().1);
        }
        Ended { pollers: self.pollers + more.len(), counters, cleared: Mutex::new(cleared) }
    }

    fn cleared(&self) -> MutexGuard<'_, PollerCounters> {
        // Replaced whole, so a panic leaves no half of one behind.
        self.cleared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks some pollers the same; `None` from one that has ended.
pub async fn ask_all<T>(
    pollers: &[Arc<PollerHandle>],
    message: impl Fn(oneshot::Sender<T>) -> Message,
) -> Vec<Option<T>> {
    let answers: Vec<_> = pollers.iter().map(|poller| poller.ask(&message)).collect();
    let mut all = Vec::with_capacity(answers.len());
    for answer in answers {
        all.push(answer.await.ok());
    }
    all
}
