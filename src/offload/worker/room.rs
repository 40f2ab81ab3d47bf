//! Whose turn it is: rules whose time has come, rules that wait for room, for a mark, or under the limit of operations, and marks
//! on their way back.

use std::cmp::Reverse;
use std::sync::Arc as StdArc;
use std::time::Instant;

use super::{BATCH, Leaving, PROBE, QUARANTINE_LOOK, Retired, Worker};
use crate::offload::state::Standing;
use crate::offload::table::RuleId;

impl Worker {
    /// The oldest timer that is due.
    pub(super) fn next_timer(&mut self, now: Instant) -> Option<RuleId> {
        let Reverse((due, _)) = self.timers.peek()?;
        if *due > now {
            return None;
        }
        self.timers.pop().map(|Reverse((_, id))| id)
    }

    /// Whether the limit of operations lets one through.
    pub(super) fn may_operate(&mut self, now: Instant) -> bool {
        self.next_operation = self.crew.may_operate(now).err();
        self.next_operation.is_none()
    }

    /// It is not the rule's turn yet.
    pub(super) fn delay(&mut self, id: RuleId) {
        let Some(rule) = self.rules.get_mut(id) else { return };
        rule.living().filter(|_| rule.has.is_none()).for_each(|owner| owner.set_outcome(Standing::Queued));
        if !std::mem::replace(&mut rule.delayed, true) {
            self.delayed.push_back(id);
        }
    }

    /// The rule that has been delayed for longest, if it is its turn.
    pub(super) fn next_delayed(&mut self, now: Instant) -> Option<RuleId> {
        if self.delayed.is_empty() || !self.may_operate(now) {
            return None;
        }
        let id = self.delayed.pop_front()?;
        if let Some(rule) = self.rules.get_mut(id) {
            rule.delayed = false;
        }
        Some(id)
    }

    /// A rule or a mark was given back.
    pub(super) fn room_appeared(&mut self) {
        self.crew.freed(self.id);
    }

    /// Rules that waited for room or a mark try, one for each that was given back by any worker, the busiest first.
    pub(super) fn admit_waiting(&mut self, now: Instant) {
        let appeared = self.crew.room_so_far();
        if appeared != self.room_known {
            self.room += (appeared - self.room_known) as usize;
            self.room_known = appeared;
            self.full = false;
        }
        if !self.waiting.is_empty() && now >= self.next_probe {
            // Room may appear by itself.
            self.next_probe = now + PROBE;
            self.full = false;
            self.room += 1;
            self.probing = true;
        }
        for _ in 0..BATCH {
            if self.room == 0 || self.waiting.is_empty() || !self.may_operate(now) {
                break;
            }
            let Some(id) = self.waiting.pop() else { break };
            let Some(rule) = self.rules.get_mut(id) else { continue };
            rule.ticket = None;
            if let Some(trouble) = &mut rule.trouble {
                StdArc::make_mut(trouble).next = Some(now);
            }
            self.reconcile(id, now);
            match self.rules.get(id) {
                // One that turned out to be dead leaves the room to the next.
                None => {}
                Some(rule) if rule.has.is_some() => self.room -= usize::from(!self.probing),
                Some(_) => {
                    self.room -= 1;
                    self.probing = false;
                }
            }
            if self.full {
                // Somebody else was quicker.
                self.room = 0;
            }
            if self.consumer.has_messages() {
                break;
            }
        }
        if self.waiting.is_empty() {
            self.room = 0;
        }
    }

    /// Takes marks whose quarantine is over back into the pool.
    pub(super) fn release_marks(&mut self, now: Instant) {
        if self.quarantine.is_empty() || now < self.next_quarantine_look {
            return;
        }
        self.next_quarantine_look = now + QUARANTINE_LOOK;
        let mut held = false;
        for _ in 0..self.quarantine.len().min(4 * BATCH) {
            let Some(leaving) = self.quarantine.pop_front() else { break };
            let Leaving { mark, port, mut unbinding } = leaving;
            unbinding.retain(|owner| !owner.is_delivered());
            let left = match mark {
                Retired::UnderWay(lease, grace) if grace.is_over() => {
                    Some(Retired::Waiting(self.quarantined(lease, port)))
                }
                Retired::Waiting(mark) if unbinding.is_empty() => {
                    self.crew.release_mark(mark).err().map(Retired::Waiting)
                }
                mark => Some(mark),
            };
            match left {
                None => self.room_appeared(),
                Some(mark) => {
                    held = true;
                    self.quarantine.push_back(Leaving { mark, port, unbinding });
                }
            }
        }
        if held {
            self.ring_pollers();
        }
    }

    /// A sleeping poller does not look at its queues by itself.
    pub(super) fn ring_pollers(&mut self) {
        self.mailboxes.retain(|mailbox| !mailbox.is_closed());
        self.mailboxes.iter().for_each(|mailbox| mailbox.ring());
    }
}
