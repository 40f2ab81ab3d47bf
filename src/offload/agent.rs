//! stub with the final public face
use super::state::{FlowSlot, OffloadCell};
use crate::flow::{Actions, Match, Ufid};
use crate::sync::Arc;
use std::time::Instant;

/// A poller's end of the offload path.
pub struct Agent {
    _private: (),
}

impl Agent {
    /// A new flow: makes its cell and asks for it to be put.
    pub fn adopt(
        &self,
        now: Instant,
        slot: FlowSlot,
        ufid: Ufid,
        matching: Match,
        actions: Actions,
        decision: u64,
    ) -> Arc<OffloadCell> {
        let _ = (now, slot, ufid, matching, actions, decision);
        todo!()
    }
    /// The flow's actions changed by decision number `decision`.
    pub fn update(&self, now: Instant, cell: &Arc<OffloadCell>, actions: Actions, decision: u64) {
        let _ = (now, cell, actions, decision);
        todo!()
    }
    /// Asks again for a flow that was refused for a reason that can pass.
    pub fn ask_again(&self, now: Instant, cell: &Arc<OffloadCell>) {
        let _ = (now, cell);
        todo!()
    }
    /// The flow is dead. Never refused.
    pub fn release(&self, now: Instant, cell: &Arc<OffloadCell>) {
        let _ = (now, cell);
        todo!()
    }
    /// Whether [`Agent::drain`] would visit a cell; one load.
    pub fn has_events(&self) -> bool {
        todo!()
    }
    /// Visits each cell whose mark may have changed, once.
    pub fn drain(&self, visit: impl FnMut(&Arc<OffloadCell>)) {
        let _ = visit;
        todo!()
    }
}
