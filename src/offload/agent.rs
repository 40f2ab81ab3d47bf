//! [`Agent`]: a poller's end of the offload path, and [`Mailbox`], where the worker leaves what the poller should see.
//!
//! # Thread-safety
//! An agent belongs to one poller. Its mailbox is filled by the workers. Neither side waits for the other's work: who wakes a
//! worker that is just falling asleep waits for the few instructions that this takes.

use std::sync::Arc as StdArc;
use std::time::Instant;

use super::crew::Crew;
use super::queue::Admission;
use super::settings::Record;
use super::state::{Cell, Census, FlowSlot, Level, OffloadCell, Standing, Wants, since};
use super::trouble::{Reason, Trouble};
use crate::flow::{Actions, Match, Ufid};
use crate::sync::{Arc, AtomicBool, Ordering, fence};
use crate::sys::stack::{Node, Stack};
use crate::telemetry::Counter;

/// The link of the inbox.
pub const INBOX: usize = 2;

/// A poller's end of the offload path.
///
/// Release every flow before dropping it; flows that were not stay in the device until a flush.
pub struct Agent {
    crew: StdArc<Crew>,
    mailbox: Arc<Mailbox>,
}

impl Agent {
    pub(super) fn new(crew: StdArc<Crew>, mailbox: Arc<Mailbox>) -> Agent {
        Agent { crew, mailbox }
    }

    /// A new flow: makes its cell and asks for it to be put. What the device is known not to be able to do is refused
    /// here and now, and so is a flow that is not worth it while it is new.
    pub fn adopt(
        &self,
        now: Instant,
        slot: FlowSlot,
        ufid: Ufid,
        matching: Match,
        actions: Actions,
        decision: u64,
    ) -> Arc<OffloadCell> {
        let wants = Wants { actions, decision };
        let (mailbox, life) = (Arc::clone(&self.mailbox), self.crew.life);
        let cell = Arc::new(Cell::new(slot, ufid, matching, wants, &self.crew.hasher, mailbox, life));
        self.consider(now, &cell, &Record::NEW);
        cell
    }

    /// The flow's actions changed by decision number `decision`.
    pub fn update(&self, now: Instant, cell: &Arc<OffloadCell>, actions: Actions, decision: u64) {
        cell.want(Wants { actions, decision });
        // A flow that waits to be worth it, or for offload to be switched on, still does.
        if !matches!(cell.standing(), Standing::Refused(Reason::Policy | Reason::Disabled)) || cell.is_admitted() {
            self.ask(now, cell);
        }
    }

    /// Asks for a flow that is not in yet, if it is worth it by now.
    pub fn consider(&self, now: Instant, cell: &Arc<OffloadCell>, record: &Record) {
        // One of an earlier life of the device is replaced soon, and counted nowhere until then.
        if cell.is_admitted() || !self.is_mine(cell) {
            return;
        }
        if let Some(lacking) = self.crew.settings.lacks(record) {
            // Nothing new is not worth a new note.
            if cell.outcome() != Standing::Refused(Reason::Policy) {
                self.refuse(now, cell, Reason::Policy, lacking);
            }
            return;
        }
        self.ask(now, cell);
    }

    /// Asks again for a flow that was turned away because the queue was full.
    pub fn ask_again(&self, now: Instant, cell: &Arc<OffloadCell>) {
        self.ask(now, cell);
    }

    /// Whether a flow that was turned away because the queue was full would be let in now. A few loads.
    pub fn has_room(&self, cell: &OffloadCell) -> bool {
        self.crew.queue_for(cell.hash()).has_room(self.lane())
    }

    /// The flow is dead. Never refused. The caller has unbound the flow's mark, or does so before it receives again. What the
    /// device counts from now on is the cell's heir's.
    pub fn release(&self, now: Instant, cell: &Arc<OffloadCell>) {
        cell.die();
        self.uncount(cell);
        if cell.is_admitted() && self.is_mine(cell) {
            cell.request(since(self.crew.start, now));
            self.crew.queue_for(cell.hash()).delete(self.lane(), cell);
        } else {
            // No worker has ever heard of it, or none that is still there.
            cell.set_outcome(Standing::Gone);
        }
    }

    /// Whether both were made between the same two restarts of the device.
    pub fn is_of_same_life(&self, other: &Agent) -> bool {
        self.crew.life == other.crew.life
    }

    /// Whether the device is given up: what cells say of it holds no longer.
    pub fn is_off(&self) -> bool {
        self.crew.off().is_some()
    }

    /// The most that the device does for a flow.
    pub fn level(&self) -> Level {
        self.crew.caps.level
    }

    /// Where a flow stands.
    pub fn standing(&self, cell: &OffloadCell) -> Standing {
        match cell.standing() {
            Standing::Gone => Standing::Gone,
            _ if self.is_off() || !self.is_mine(cell) => Standing::Refused(Reason::Off),
            standing => standing,
        }
    }

    /// Why a flow is not as far in the device as wanted.
    pub fn trouble(&self, cell: &OffloadCell) -> Option<StdArc<Trouble>> {
        match self.crew.off() {
            Some(why) => Some(StdArc::new(Trouble::new(Reason::Off, why, 0, Instant::now()))),
            // Not noted with each flow: where the queue is full, that would be with every new one.
            None if self.standing(cell) == Standing::Refused(Reason::QueueFull) => {
                let asked = self.crew.start + cell.requested().unwrap_or_default();
                Some(StdArc::new(Trouble::new(Reason::QueueFull, "the put lane is full", cell.wants().decision, asked)))
            }
            None => cell.trouble(),
        }
    }

    /// Whether [`Agent::drain`] would visit a cell; one load.
    #[inline]
    pub fn has_events(&self) -> bool {
        !self.mailbox.cells.is_empty()
    }

    /// Visits each cell whose mark may have changed, once; not those that were released.
    pub fn drain(&self, mut visit: impl FnMut(&Arc<OffloadCell>)) {
        for cell in self.mailbox.cells.take_all() {
            if !cell.is_dead() {
                visit(&cell);
            }
        }
    }

    /// The poller's own lane in every worker's queue.
    fn lane(&self) -> usize {
        self.mailbox.poller() as usize
    }

    fn ask(&self, now: Instant, cell: &Arc<OffloadCell>) {
        if !self.is_mine(cell) {
            return;
        }
        let queue = self.crew.queue_for(cell.hash());
        if cell.is_admitted() {
            // Its rule may be out of date, and then has to go or to change, even when what the flow wants now cannot be: before
            // any put, as a delete.
            cell.request(since(self.crew.start, now));
            return queue.delete(self.lane(), cell);
        }
        if !self.crew.settings.is_enabled() {
            return self.refuse(now, cell, Reason::Disabled, "offload is switched off");
        }
        if let Some(why) = self.crew.off() {
            return self.refuse(now, cell, Reason::Off, why);
        }
        if let Err(what) = self.crew.caps.check(cell.matching(), &cell.wants().actions) {
            return self.refuse(now, cell, what.into(), what.to_string());
        }
        // From the put on, the outcome is the worker's.
        self.uncount(cell);
        cell.set_outcome(Standing::Software);
        cell.set_trouble(None);
        cell.request(since(self.crew.start, now));
        match queue.put(self.lane(), cell, false) {
            Admission::Queued | Admission::Coalesced => cell.admit(),
            Admission::Full => {
                self.mailbox.refused[Reason::QueueFull as usize].add(1);
                cell.set_outcome(Standing::Refused(Reason::QueueFull));
            }
        }
    }

    /// A flow that no worker knows is not let in.
    fn refuse(&self, now: Instant, cell: &OffloadCell, why: Reason, text: impl Into<StdArc<str>>) {
        self.uncount(cell);
        self.mailbox.refused[why as usize].add(1);
        let trouble = Trouble::new(why, text, cell.wants().decision, now).after(cell.trouble().as_deref());
        cell.set_outcome(Standing::Refused(why));
        cell.set_trouble(Some(&StdArc::new(trouble)));
    }

    /// A flow that no worker knows is no longer refused for the reason that it was.
    fn uncount(&self, cell: &OffloadCell) {
        if !cell.is_admitted()
            && self.is_mine(cell)
            && let Standing::Refused(why) = cell.outcome()
        {
            self.mailbox.refused[why as usize].subtract(1);
        }
    }

    /// Whether the cell was made by this agent, not by one of an earlier life of the device.
    pub fn is_mine(&self, cell: &OffloadCell) -> bool {
        cell.life() == self.crew.life
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.mailbox.close();
    }
}

/// Where the workers leave cells for one poller.
pub struct Mailbox {
    poller: u32,
    cells: Stack<Cell, INBOX>,
    closed: AtomicBool,
    ring: Box<dyn Fn() + Send + Sync>,
    /// Flows of the poller that no worker knows, by why not. The poller writes.
    refused: [Counter; Reason::ALL.len()],
    /// Where the poller's cells are counted.
    census: Census,
}

impl Mailbox {
    /// `ring` wakes poller number `poller` should it sleep. It is called on a worker's thread.
    pub fn new(poller: u32, ring: Box<dyn Fn() + Send + Sync>, census: Census) -> Mailbox {
        let (cells, closed) = (Stack::default(), AtomicBool::new(false));
        Mailbox { poller, cells, closed, ring, refused: Default::default(), census }
    }

    pub(super) fn census(&self) -> &Census {
        &self.census
    }

    pub fn poller(&self) -> u32 {
        self.poller
    }

    /// Has the poller look at `cell`.
    pub fn deliver(&self, cell: &Arc<OffloadCell>) {
        let Some(claimed) = Node::claim(cell) else { return };
        let was_empty = self.cells.push(claimed);
        fence(Ordering::SeqCst);
        if self.closed.load(Ordering::Relaxed) {
            drop(self.cells.take_all());
        } else if was_empty {
            // Otherwise who pushed first has rung, and the poller has not drained since.
            self.ring();
        }
    }

    /// Flows that were turned away before any worker heard of them, by reason.
    pub(super) fn refused(&self) -> [usize; Reason::ALL.len()] {
        std::array::from_fn(|why| self.refused[why].get() as usize)
    }

    /// Wakes the poller should it sleep.
    pub fn ring(&self) {
        (self.ring)();
    }

    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Nobody will drain it again. A cell and its mailbox hold each other, so what is in it must not stay.
    fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        // With the fence in `deliver`: a delivery sees `closed`, or we see what it pushed.
        fence(Ordering::SeqCst);
        drop(self.cells.take_all());
    }
}
