//! [`Waiting`]: rules that wait for room in the device or for a mark, the busiest first.
//!
//! # Thread-safety
//! Owned by one worker.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::table::RuleId;

/// A place in the line. The rule that holds it is the only one that can give it up.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Ticket {
    /// Packets a second; more come first.
    rate: Reverse<u64>,
    /// Among equals, whoever came first.
    number: u64,
}

impl Ticket {
    pub fn rate(&self) -> u64 {
        self.rate.0
    }
}

/// The line.
#[derive(Default)]
pub struct Waiting {
    line: BTreeMap<Ticket, RuleId>,
    next: u64,
}

impl Waiting {
    pub fn len(&self) -> usize {
        self.line.len()
    }

    pub fn is_empty(&self) -> bool {
        self.line.is_empty()
    }

    /// A rule lines up, behind all that are as busy.
    pub fn add(&mut self, rate: u64, id: RuleId) -> Ticket {
        let ticket = Ticket { rate: Reverse(rate), number: self.next };
        self.next += 1;
        self.line.insert(ticket, id);
        ticket
    }

    /// The rule leaves the line.
    pub fn remove(&mut self, ticket: Ticket) {
        self.line.remove(&ticket);
    }

    /// The rule is as busy as `rate` now: its new place, which does not change how long it has waited.
    pub fn pace(&mut self, ticket: Ticket, rate: u64) -> Ticket {
        if ticket.rate.0 == rate {
            return ticket;
        }
        let Some(id) = self.line.remove(&ticket) else { return ticket };
        let ticket = Ticket { rate: Reverse(rate), ..ticket };
        self.line.insert(ticket, id);
        ticket
    }

    /// The first in line leaves it.
    pub fn pop(&mut self) -> Option<RuleId> {
        self.line.pop_first().map(|(_, id)| id)
    }

    /// The rates of those in line, the busiest first.
    pub fn rates(&self) -> impl Iterator<Item = u64> + '_ {
        self.line.keys().map(Ticket::rate)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_busiest_come_first_and_among_equals_the_oldest() {
        let mut waiting = Waiting::default();
        let ids = [0, 1, 2, 3].map(RuleId::of);
        let tickets = ids.map(|id| waiting.add(0, id));
        let busy = waiting.pace(tickets[2], 50);
        assert_eq!(waiting.pace(busy, 50), busy);
        waiting.pace(tickets[3], 7);
        waiting.remove(tickets[0]);
        assert_eq!(waiting.rates().collect::<Vec<_>>(), [50, 7, 0]);
        assert_eq!(std::iter::from_fn(|| waiting.pop()).collect::<Vec<_>>(), [ids[2], ids[3], ids[1]]);
    }
}
