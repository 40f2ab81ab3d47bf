//! [`Events`]: what happened to rules in the device lately.
//!
//! A bounded ring that workers write and people read. Each event has a number; whoever asks from a number on gets what came since, and
//! how many of that have gone from the ring already.
//!
//! # Thread-safety
//! A lock that is held for one push, or for one page of reading. Only workers push; no poller comes here.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::state::Level;
use super::trouble::Reason;
use crate::flow::{Match, Ufid};

/// Events that are kept: the last some seconds of a busy device, hours of a calm one. About 7 MB.
const KEPT: usize = 16_384;

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    /// The device has the rule, and marks its packets.
    Installed,
    /// The device has the rule, and handles its packets wholly.
    Offloaded,
    /// The device does not take the rule.
    Refused,
    /// The device has forgotten the rule.
    Retired,
    /// The same, to make room for a busier flow.
    Evicted,
    /// The device was found to have forgotten all rules by itself.
    Reset,
}

impl EventKind {
    pub const ALL: [EventKind; 6] = [
        EventKind::Installed,
        EventKind::Offloaded,
        EventKind::Refused,
        EventKind::Retired,
        EventKind::Evicted,
        EventKind::Reset,
    ];

    pub fn name(self) -> &'static str {
        match self {
            EventKind::Installed => "installed",
            EventKind::Offloaded => "offloaded",
            EventKind::Refused => "refused",
            EventKind::Retired => "retired",
            EventKind::Evicted => "evicted",
            EventKind::Reset => "reset",
        }
    }
}

/// Something that happened.
#[derive(Clone, Debug)]
pub struct Event {
    /// On the switch's clock.
    pub at: Instant,
    pub kind: EventKind,
    pub worker: usize,
    /// What it happened to; `None`: to the device.
    pub rule: Option<EventRule>,
}

#[derive(Clone, Debug)]
pub struct EventRule {
    pub ufid: Ufid,
    pub matching: Match,
    pub mark: Option<u32>,
    pub level: Option<Level>,
    pub reason: Option<Reason>,
    /// In a few words.
    pub why: Option<&'static str>,
}

/// The ring.
#[derive(Default)]
pub struct Events(Mutex<Ring>);

#[derive(Default)]
struct Ring {
    /// The number of the next event.
    next: u64,
    kept: VecDeque<Event>,
    counts: [u64; EventKind::ALL.len()],
}

/// Events from one number on.
#[derive(Debug)]
pub struct Backlog {
    /// The number of the first of `events`.
    pub first: u64,
    pub events: Vec<Event>,
    /// Where to go on.
    pub next: u64,
    /// Events since the number asked for that are gone.
    pub lost: u64,
}

impl Events {
    pub fn push(&self, event: Event) {
        let mut ring = self.ring();
        ring.counts[event.kind as usize] += 1;
        ring.next += 1;
        if ring.kept.len() == KEPT {
            ring.kept.pop_front();
        }
        ring.kept.push_back(event);
    }

    /// At most `limit` events from number `cursor` on. A cursor of the future is taken for now.
    pub fn since(&self, cursor: u64, limit: usize) -> Backlog {
        let ring = self.ring();
        let oldest = ring.next - ring.kept.len() as u64;
        let first = cursor.clamp(oldest, ring.next);
        let events: Vec<Event> = ring.kept.iter().skip((first - oldest) as usize).take(limit).cloned().collect();
        Backlog { first, next: first + events.len() as u64, events, lost: first.saturating_sub(cursor.min(ring.next)) }
    }

    /// How many of each kind there were.
    pub fn counts(&self) -> [(EventKind, u64); EventKind::ALL.len()] {
        let counts = self.ring().counts;
        EventKind::ALL.map(|kind| (kind, counts[kind as usize]))
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        // Each push leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(worker: usize) -> Event {
        Event { at: Instant::now(), kind: EventKind::Reset, worker, rule: None }
    }

    #[test]
    fn a_reader_gets_each_event_once_and_learns_what_it_missed() {
        let events = Events::default();
        (0..10).for_each(|n| events.push(event(n)));
        let page = events.since(0, 4);
        assert_eq!((page.events.len(), page.next, page.lost), (4, 4, 0));
        let page = events.since(page.next, 100);
        assert_eq!((page.first, page.events.len(), page.events[0].worker, page.next), (4, 6, 4, 10));
        let page = events.since(page.next, 100);
        assert_eq!((page.events.len(), page.next, page.lost), (0, 10, 0));
        (0..KEPT + 5).for_each(|n| events.push(event(n)));
        let page = events.since(10, 1);
        assert_eq!((page.lost, page.first, page.events[0].worker), (5, 15, 5));
        assert_eq!(events.since(u64::MAX, 9).next, 10 + KEPT as u64 + 5, "a cursor of the future is now");
        assert_eq!(events.counts()[EventKind::Reset as usize].1, 10 + KEPT as u64 + 5);
    }
}
