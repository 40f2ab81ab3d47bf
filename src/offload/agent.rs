//! [`Agent`]: a poller's end of the offload path, and [`Mailbox`], where the worker leaves what the poller should see.
//!
//! # Thread-safety
//! An agent belongs to one poller. Its mailbox is filled by the workers. Neither side waits for the other.

use std::time::Instant;

use super::Shared;
use super::queue::Admission;
use super::state::{Cell, FlowSlot, OffloadCell, Refusal, Standing, Wants, since};
use crate::flow::{Actions, Match, Ufid};
use crate::sync::{Arc, AtomicBool, Ordering, fence};
use crate::sys::stack::{Node, Stack};

/// The link of the inbox.
pub const INBOX: usize = 2;

/// A poller's end of the offload path.
///
/// Release every flow before dropping it; flows that were not stay in the device until a flush.
pub struct Agent {
    shared: std::sync::Arc<Shared>,
    mailbox: Arc<Mailbox>,
}

impl Agent {
    pub(super) fn new(shared: std::sync::Arc<Shared>, mailbox: Arc<Mailbox>) -> Agent {
        Agent { shared, mailbox }
    }

    /// A new flow: makes its cell and asks for it to be put. What the device is known not to be able to do is refused
    /// here and now.
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
        let mailbox = Arc::clone(&self.mailbox);
        let cell = Arc::new(Cell::new(slot, ufid, matching, wants, &self.shared.hasher, mailbox));
        self.ask(now, &cell);
        cell
    }

    /// The flow's actions changed by decision number `decision`.
    pub fn update(&self, now: Instant, cell: &Arc<OffloadCell>, actions: Actions, decision: u64) {
        cell.want(Wants { actions, decision });
        self.ask(now, cell);
    }

    /// Asks again for a flow that was refused for a reason that can pass.
    pub fn ask_again(&self, now: Instant, cell: &Arc<OffloadCell>) {
        self.ask(now, cell);
    }

    /// The flow is dead. Never refused. The caller has unbound the flow's mark, or does so before it receives again.
    pub fn release(&self, now: Instant, cell: &Arc<OffloadCell>) {
        cell.die();
        match self.shared.queue_for(cell.hash()) {
            Some(queue) if cell.is_admitted() => {
                cell.request(since(self.shared.start, now));
                queue.delete(self.lane(), cell);
            }
            // The worker has never heard of it.
            _ => cell.set_outcome(Standing::Gone),
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
        let admitted = cell.is_admitted();
        let Some(queue) = self.shared.queue_for(cell.hash()) else {
            cell.set_outcome(Standing::Refused(Refusal::NoDevice));
            return;
        };
        // A flow that is in must be looked at even when it now wants what cannot be: its old rule has to go.
        if !admitted && self.shared.caps.check(cell.matching(), &cell.wants().actions).is_err() {
            cell.set_outcome(Standing::Refused(Refusal::Unsupported));
            return;
        }
        cell.request(since(self.shared.start, now));
        match queue.put(self.lane(), cell, admitted) {
            Admission::Queued | Admission::Coalesced => cell.admit(),
            Admission::Full => cell.set_outcome(Standing::Refused(Refusal::QueueFull)),
        }
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
}

impl Mailbox {
    /// `ring` wakes poller number `poller` should it sleep. It is called on a worker's thread.
    pub fn new(poller: u32, ring: Box<dyn Fn() + Send + Sync>) -> Mailbox {
        Mailbox { poller, cells: Stack::default(), closed: AtomicBool::new(false), ring }
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
