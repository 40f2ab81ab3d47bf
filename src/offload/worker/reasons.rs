//! The reasons: why a rule is not as wanted, shown to its owners, and counted.

use std::cmp::Reverse;
use std::sync::Arc as StdArc;
use std::time::Instant;

use super::{PROBE, Worker, answer};
use crate::flow::PortNo;
use crate::offload::backend::PutError;
use crate::offload::events::EventKind;
use crate::offload::report::Request;
use crate::offload::state::{Level, Standing, since};
use crate::offload::table::{Rule, RuleId};
use crate::offload::trouble::{Reason, Trouble};

impl Worker {
    /// A put or a replace failed.
    pub(super) fn fail(&mut self, id: RuleId, error: PutError, decision: u64, now: Instant) {
        let why = match error {
            PutError::Unsupported(what) => what.into(),
            PutError::NoRoom => Reason::NoRoom,
            PutError::Device(_) if self.crew.off().is_some() => Reason::Off,
            PutError::Device(_) => Reason::Device,
        };
        let text = match error {
            PutError::Device(words) => words,
            PutError::Unsupported(what) => what.to_string(),
            PutError::NoRoom => error.to_string(),
        };
        self.full |= why == Reason::NoRoom;
        self.refuse(id, Trouble::new(why, text, decision, now), now);
    }

    /// Records why a rule is not as wanted, and sees to it that it is tried again if that can help.
    pub(super) fn refuse(&mut self, id: RuleId, trouble: Trouble, now: Instant) {
        let Some(rule) = self.rules.get_mut(id) else { return };
        let mut trouble = trouble.after(rule.trouble.as_deref());
        if trouble.why == Reason::Device {
            trouble = trouble.backing_off(rule.hash);
        }
        rule.evicted = false;
        if trouble.why.is_want_of_room() && rule.ticket.is_none() {
            if self.waiting.is_empty() {
                self.next_probe = trouble.last + PROBE;
                if trouble.attempts == 1 {
                    // How busy it is must be seen first.
                    self.next_evictions = self.next_evictions.max(now + self.stats_interval);
                }
            }
            rule.ticket = Some(self.waiting.add(rule.pace.rate, id));
        }
        self.timers.extend(trouble.next.map(|due| Reverse((due, id))));
        let is_news = trouble.attempts == 1;
        self.set_trouble(id, Some(StdArc::new(trouble)));
        if is_news {
            self.tell(id, EventKind::Refused, None);
        }
        self.show_trouble(id);
    }

    pub(super) fn show_trouble(&mut self, id: RuleId) {
        let Some((rule, trouble)) = self.rules.get(id).and_then(|rule| Some((rule, rule.trouble.as_ref()?))) else {
            return;
        };
        let moment = since(self.crew.start, self.device.clock());
        for owner in rule.living() {
            owner.set_outcome(Standing::Refused(trouble.why));
            owner.set_trouble(Some(trouble));
            answer(owner, Request::Put, moment, &mut self.tally);
        }
    }

    /// Says why a rule is at a lower level than the device offers.
    pub(super) fn explain_shortfall(&mut self, id: RuleId, now: Instant) {
        let Some((rule, has)) = self.rules.get(id).and_then(|rule| Some((rule, rule.has.as_ref()?))) else { return };
        if has.level == Level::Full || self.crew.caps.level == Level::Mark {
            return self.set_short(id, None);
        }
        let Some(wants) = rule.living().map(|owner| owner.wants()).max_by_key(|wants| wants.decision) else { return };
        // The actions may have changed without a word to the device, which does not have them.
        let able = self.crew.caps.check(&rule.matching, &wants.actions).ok().and_then(|done| done.short);
        let Some(what) = able.or(has.short) else { return self.set_short(id, None) };
        if rule.short.as_ref().is_none_or(|short| *short.text != *what.to_string()) {
            self.set_short(id, Some(StdArc::new(Trouble::unsupported(what, wants.decision, now))));
        }
    }

    pub(super) fn set_trouble(&mut self, id: RuleId, trouble: Option<StdArc<Trouble>>) {
        let Some(rule) = self.rules.get_mut(id) else { return };
        let why = trouble.as_ref().map(|trouble| trouble.why);
        if let Some(why) = why {
            self.refused[why as usize] += 1;
        }
        if !why.is_some_and(Reason::is_want_of_room)
            && let Some(ticket) = rule.ticket.take()
        {
            self.waiting.remove(ticket);
        }
        if let Some(before) = std::mem::replace(&mut rule.trouble, trouble) {
            self.refused[before.why as usize] -= 1;
        }
    }

    pub(super) fn set_short(&mut self, id: RuleId, short: Option<StdArc<Trouble>>) {
        let Some(rule) = self.rules.get_mut(id) else { return };
        if let Some(short) = &short {
            self.short[short.why as usize] += 1;
        }
        if let Some(before) = std::mem::replace(&mut rule.short, short) {
            self.short[before.why as usize] -= 1;
        }
    }

    /// Counts the troubles of a rule that comes from another worker, or goes to one.
    pub(super) fn count_trouble(&mut self, rule: &Rule, comes: bool) {
        let change = |counts: &mut [usize], trouble: &Option<StdArc<Trouble>>| {
            if let Some(trouble) = trouble {
                let count = &mut counts[trouble.why as usize];
                *count = if comes { *count + 1 } else { *count - 1 };
            }
        };
        change(&mut self.refused, &rule.trouble);
        change(&mut self.short, &rule.short);
    }

    /// Counts a rule in the device that comes, or goes.
    pub(super) fn count_in_device(&mut self, rule: &Rule, comes: bool) {
        let Some(has) = &rule.has else { return };
        self.count(has.level, has.confirmed, rule.in_port(), comes);
    }

    /// The same of a rule that is in the table.
    pub(super) fn count_has(&mut self, id: RuleId, comes: bool) {
        let Some((rule, has)) = self.rules.get(id).and_then(|rule| Some((rule, rule.has.as_ref()?))) else { return };
        self.count(has.level, has.confirmed, rule.in_port(), comes);
    }

    pub(super) fn count(&mut self, level: Level, confirmed: bool, port: Option<PortNo>, comes: bool) {
        let change = |count: &mut usize| *count = if comes { *count + 1 } else { count.saturating_sub(1) };
        if level == Level::Full {
            change(&mut self.full_rules);
        }
        if confirmed {
            change(&mut self.confirmed_rules);
        }
        // A rule of a port that was let go before it came is not counted when it goes, either.
        if let Some(attached) = port.and_then(|port| self.ports.get_mut(&port)) {
            change(&mut attached.rules);
        }
    }
}
