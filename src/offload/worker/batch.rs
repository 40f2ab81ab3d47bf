//! [`Put`], and puts that are asked of the device together, where it takes many at once sooner than one by one.
//!
//! ```text
//! flows that ask ──► begin_batch ─► stage ─► stage ─► … ─► end_batch ──► one call of the device
//!                                     ▲                        │
//!                  a rule that is staged takes no other step   └──► each rule as after a put of its own
//! ```

use std::sync::Arc;
use std::time::Instant;

use super::Worker;
use crate::offload::backend::{Done, Install};
use crate::offload::mark::MarkLease;
use crate::offload::state::Wants;
use crate::offload::table::{Rule, RuleId, Staged};

/// A put that is about to be asked of the device.
pub(super) struct Put {
    pub id: RuleId,
    pub wants: Arc<Wants>,
    /// How far the device's kind could take it.
    pub able: Done,
    pub lease: MarkLease,
}

impl Put {
    pub fn install<'r>(&'r self, rule: &'r Rule) -> Install<'r> {
        Install {
            matching: &rule.matching,
            actions: &self.wants.actions,
            mark: self.lease.mark(),
            level: self.able.level,
            in_port: rule.in_port(),
        }
    }
}

impl Worker {
    /// Puts wait from now on for [`Worker::end_batch`], if the device has a use for that.
    pub(super) fn begin_batch(&mut self) {
        self.batch = (self.crew.caps.batch > 1).then(Vec::new);
    }

    pub(super) fn is_batch_full(&self) -> bool {
        self.batch.as_ref().is_some_and(|batch| batch.len() >= self.crew.caps.batch)
    }

    /// Adds a put to the batch that is being made.
    pub(super) fn stage(&mut self, put: Put) {
        if let (Some(batch), Some(rule)) = (&mut self.batch, self.rules.get_mut(put.id)) {
            rule.staged = Some(Staged::Undisturbed);
            self.staged += 1;
            batch.push(put);
        }
    }

    /// Whether a rule waits for its batch. Then whoever wanted to look at it is told to wait, and that is noted.
    pub(super) fn put_off(&mut self, id: RuleId) -> bool {
        match self.rules.get_mut(id).map(|rule| &mut rule.staged) {
            Some(Some(staged)) => {
                *staged = Staged::Disturbed;
                true
            }
            _ => false,
        }
    }

    /// Asks the device for all that waits.
    pub(super) fn end_batch(&mut self, now: Instant) {
        let Some(batch) = self.batch.take().filter(|batch| !batch.is_empty()) else { return };
        // A staged rule takes no step and is not given away, so none has gone.
        let flows: Vec<_> = batch.iter().filter_map(|put| Some(put.install(self.rules.get(put.id)?))).collect();
        debug_assert_eq!(flows.len(), batch.len());
        let results = self.device.put_all(&flows, &mut self.tally);
        for (put, result) in batch.into_iter().zip(results) {
            let id = put.id;
            self.staged -= 1;
            let staged = self.rules.get_mut(id).and_then(|rule| rule.staged.take());
            if !self.see_put(put, result, now) || staged == Some(Staged::Disturbed) {
                self.reconcile(id, now);
            }
        }
        // What was asked for meanwhile, and had to wait.
        self.give_away();
    }
}
