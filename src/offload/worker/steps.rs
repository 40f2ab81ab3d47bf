//! The steps: what is asked of the device for one rule, and what follows from its answer.

use std::cmp::Reverse;
use std::sync::Arc as StdArc;
use std::time::Instant;

use super::{Leaving, Put, Retired, Worker, answer};
use crate::flow::PortNo;
use crate::offload::backend::{DeleteError, Done, Handle, Install, PutError};
use crate::offload::events::{Event, EventKind, EventRule};
use crate::offload::mark::{MarkLease, Quarantined};
use crate::offload::report::Request;
use crate::offload::state::{FlowStats, Level, OffloadCell, Standing, Wants, since};
use crate::offload::table::{InDevice, Owners, Rule, RuleId};
use crate::offload::trouble::{Reason, Trouble};
use crate::sync::Arc;

impl Worker {
    /// Puts a rule that the device does not have, now or with its batch. `true` when the rule needs no further look.
    pub(super) fn put(&mut self, id: RuleId, wants: StdArc<Wants>, able: Done, now: Instant) -> bool {
        let Some(lease) = self.crew.take_mark() else {
            let (_, capacity) = self.crew.marks_taken();
            let text = format!("all {capacity} marks are in use");
            self.refuse(id, Trouble::new(Reason::NoMark, text, wants.decision, now), now);
            return true;
        };
        if self.rules.in_device() == 0 && self.staged == 0 {
            // Nothing is lost by a reset of an empty device, so it is none to start over for.
            self.device.was_reset();
        }
        let Some(rule) = self.rules.get(id) else {
            self.crew.give_mark_back(lease);
            return true;
        };
        rule.living().for_each(|owner| owner.set_outcome(Standing::Installing));
        // One more operation, whenever it is asked of the device.
        self.crew.operated();
        let put = Put { id, wants, able, lease };
        if self.batch.is_some() {
            self.stage(put);
            return true;
        }
        let result = self.device.put(put.install(rule), &mut self.tally);
        self.see_put(put, result, now)
    }

    /// What becomes of a put that the device has answered. `true` when the rule needs no further look.
    pub(super) fn see_put(&mut self, put: Put, result: Result<(Handle, Done), PutError>, now: Instant) -> bool {
        let Put { id, wants, able, lease } = put;
        match result {
            Ok((handle, done)) => {
                if let Some(rule) = self.rules.get_mut(id) {
                    rule.living().for_each(|owner| owner.begin_reading());
                    rule.retry = false;
                }
                let has = InDevice {
                    handle,
                    level: done.level,
                    lease,
                    actions: wants.actions.clone(),
                    short: done.short.or(able.short),
                    flush: self.flush,
                    since: now,
                    stats: FlowStats::default(),
                    confirmed: false,
                };
                self.set_trouble(id, None);
                self.rules.set_has(id, Some(has));
                self.count_has(id, true);
                let kind = if done.level == Level::Full { EventKind::Offloaded } else { EventKind::Installed };
                self.tell(id, kind, None);
                // Another look: an owner may have died or changed its mind meanwhile.
                false
            }
            Err(error) => {
                match error {
                    // A device that failed may have had the rule for a moment.
                    PutError::Device(_) => self.retire(id, lease, Owners::new()),
                    PutError::Unsupported(_) | PutError::NoRoom => self.crew.give_mark_back(lease),
                }
                self.fail(id, error, wants.decision, now);
                true
            }
        }
    }

    /// Changes a rule in place. `false` when it failed: then the rule stands with actions that nobody wants, so it is
    /// condemned. Its mark stays its own until the device has forgotten it.
    pub(super) fn replace(&mut self, id: RuleId, wants: &Wants, able: Done, now: Instant) -> bool {
        let Some((rule, has)) = self.rules.get(id).and_then(|rule| Some((rule, rule.has.as_ref()?))) else {
            return false;
        };
        let install = Install {
            matching: &rule.matching,
            actions: &wants.actions,
            mark: has.lease.mark(),
            level: able.level,
            in_port: rule.in_port(),
        };
        let result = self.device.replace(has.handle, install, &mut self.tally).map(|(done, stats)| {
            // Until then it was at the level that it had.
            self.credit(id, stats, now);
            done
        });
        self.count_has(id, false);
        let Some(rule) = self.rules.get_mut(id) else { return false };
        rule.retry = false;
        let mut risen = false;
        let replaced = match (result, rule.has.as_mut()) {
            (Ok(done), Some(has)) => {
                risen = done.level == Level::Full && has.level == Level::Mark;
                has.level = done.level;
                has.short = done.short.or(able.short);
                has.actions = wants.actions.clone();
                Ok(true)
            }
            (Ok(_), None) => Ok(false),
            (Err(error), _) => {
                rule.condemned = true;
                Err(error)
            }
        };
        self.count_has(id, true);
        match replaced {
            Ok(replaced) => {
                if risen {
                    self.tell(id, EventKind::Offloaded, None);
                }
                self.set_trouble(id, None);
                // It may be out of date again already; then the flow stands in a lane, and will be looked at.
                replaced
            }
            Err(error) => {
                self.fail(id, error, wants.decision, now);
                false
            }
        }
    }

    /// Removes a rule from the device. `false` when that failed; it is tried again until it does not.
    pub(super) fn remove(&mut self, id: RuleId, now: Instant) -> bool {
        let Some((rule, has)) = self.rules.get(id).and_then(|rule| Some((rule, rule.has.as_ref()?))) else {
            return true;
        };
        for owner in &rule.owners {
            OffloadCell::publish_mark(owner, None);
            owner.set_outcome(Standing::Removing);
        }
        match self.device.delete(has.handle, &mut self.tally) {
            Ok(stats) => {
                self.credit(id, stats, now);
                self.forgotten(id);
                self.full = false;
                self.room_appeared();
                true
            }
            Err(DeleteError(text)) => {
                let Some(rule) = self.rules.get_mut(id) else { return false };
                rule.condemned = true;
                let stuck =
                    Trouble::new(Reason::Device, text, 0, now).after(rule.stuck.as_ref()).backing_off(rule.hash);
                let due = stuck.next;
                rule.stuck = Some(stuck);
                self.timers.extend(due.map(|due| Reverse((due, id))));
                false
            }
        }
    }

    /// The device has no such rule any more: its mark leaves.
    pub(super) fn forgotten(&mut self, id: RuleId) {
        self.tell_retired(id);
        self.count_has(id, false);
        let Some(has) = self.rules.set_has(id, None) else { return };
        let mut unbinding = Owners::new();
        if let Some(rule) = self.rules.get_mut(id) {
            rule.condemned = false;
            rule.stuck = None;
            unbinding.extend(rule.living().cloned());
        }
        self.set_short(id, None);
        self.retire(id, has.lease, unbinding);
        for flush in &mut self.flushes {
            if has.flush < flush.number {
                flush.left -= 1;
                flush.removed += 1;
            }
        }
        self.end_flushes();
        if let Some(port) = self.rules.get(id).and_then(Rule::in_port) {
            self.detach(port);
        }
    }

    /// Says that a rule is about to be forgotten, and why.
    fn tell_retired(&self, id: RuleId) {
        let Some((rule, has)) = self.rules.get(id).and_then(|rule| Some((rule, rule.has.as_ref()?))) else { return };
        let (kind, why) = match rule {
            rule if rule.evicted => (EventKind::Evicted, "a busier flow needs the room"),
            rule if rule.living().next().is_none() => (EventKind::Retired, "the flow is gone"),
            _ if has.flush < self.flush => (EventKind::Retired, "the device was flushed"),
            rule if rule.condemned => (EventKind::Retired, "it was out of date, or the device was reset"),
            _ if !self.enabled => (EventKind::Retired, "offload is off"),
            _ => (EventKind::Retired, "it is not wanted in the device any more"),
        };
        self.tell(id, kind, Some(why));
    }

    /// Notes what happened to a rule.
    pub(super) fn tell(&self, id: RuleId, kind: EventKind, why: Option<&'static str>) {
        let Some(rule) = self.rules.get(id) else { return };
        let Some(owner) = rule.owners.first() else { return };
        let reason = rule.trouble.as_ref().filter(|_| kind == EventKind::Refused).map(|trouble| trouble.why);
        let has = rule.has.as_ref();
        let told = EventRule {
            ufid: owner.ufid(),
            matching: rule.matching,
            mark: has.map(|has| has.lease.mark().0.get()),
            level: has.map(|has| has.level),
            reason,
            why,
        };
        self.crew.events.push(Event { at: self.device.clock(), kind, worker: self.id, rule: Some(told) });
    }

    /// Puts a mark into quarantine until the receive queues of the rule's ports have turned over.
    pub(super) fn retire(&mut self, id: RuleId, lease: MarkLease, unbinding: Owners) {
        let port = self.rules.get(id).and_then(Rule::in_port);
        let mark = match self.crew.device.grace() {
            Some(grace) => Retired::UnderWay(lease, grace),
            None => Retired::Waiting(self.quarantined(lease, port)),
        };
        self.quarantine.push_back(Leaving { mark, port, unbinding });
    }

    /// Every frame that carries this mark, which were of `port` if there is one, is in a receive queue now.
    pub(super) fn quarantined(&self, lease: MarkLease, port: Option<PortNo>) -> Quarantined {
        let concerned = self.ports.iter().filter(|(number, _)| port.is_none_or(|port| port == **number));
        lease.retire(concerned.flat_map(|(_, attached)| &attached.queues))
    }

    /// The owners learn their mark.
    pub(super) fn bind(&mut self, id: RuleId, request: Request, now: Instant) {
        self.explain_shortfall(id, now);
        let Some((rule, has)) = self.rules.get(id).and_then(|rule| Some((rule, rule.has.as_ref()?))) else { return };
        let moment = since(self.crew.start, self.device.clock());
        for owner in rule.living() {
            OffloadCell::publish_mark(owner, Some(has.lease.mark()));
            owner.set_outcome(Standing::Offloaded(has.level));
            owner.set_trouble(rule.short.as_ref());
            answer(owner, request, moment, &mut self.tally);
        }
    }

    /// Dead owners leave a rule that does without them: one that the device does not have, or that others own.
    pub(super) fn bury_the_dead(&mut self, id: RuleId) {
        let Some(rule) = self.rules.get_mut(id) else { return };
        if rule.has.is_some() && rule.living().next().is_none() {
            return;
        }
        if !rule.owners.iter().any(|owner| owner.is_dead()) {
            return;
        }
        let (dead, alive) = rule.owners.drain(..).partition::<Owners, _>(|owner| owner.is_dead());
        rule.owners = alive;
        dead.iter().for_each(|cell| self.bury(cell));
    }

    pub(super) fn bury(&mut self, cell: &Arc<OffloadCell>) {
        if cell.outcome() == Standing::Gone {
            // It stood in both lanes.
            return;
        }
        OffloadCell::publish_mark(cell, None);
        cell.set_outcome(Standing::Gone);
        cell.settle_estate();
        answer(cell, Request::Delete, since(self.crew.start, self.device.clock()), &mut self.tally);
    }

    /// The device was reset at some moment since it was last asked. Rules put after that moment are in it and stamp
    /// their marks, so all that the table says is there must go before a mark may.
    pub(super) fn start_over(&mut self) {
        self.tally.resets += 1;
        let (at, worker) = (self.device.clock(), self.id);
        self.crew.events.push(Event { at, kind: EventKind::Reset, worker, rule: None });
        if self.device.flush(&self.rules.handles()) {
            return self.forget_all();
        }
        for id in self.rules.all_in_device() {
            if let Some(rule) = self.rules.get_mut(id) {
                rule.condemned = true;
            }
            self.todo.push_back(id);
        }
        self.full = false;
    }

    /// The device has no rule any more.
    pub(super) fn forget_all(&mut self) {
        for id in self.rules.all_in_device() {
            if let Some(rule) = self.rules.get(id) {
                for owner in &rule.owners {
                    OffloadCell::publish_mark(owner, None);
                    owner.set_outcome(Standing::Software);
                }
            }
            self.forgotten(id);
            self.todo.push_back(id);
        }
        self.full = false;
        self.stats_at = None;
        self.room_appeared();
    }
}
