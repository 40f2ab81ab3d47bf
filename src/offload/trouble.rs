//! [`Trouble`]: why a rule is not in the device though wanted, and when to try again.

use std::time::{Duration, Instant};

use super::state::Refusal;

/// The first and the longest wait after a failure of the device.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(10));

/// What stands between a rule and what its owners want: the reason, as data.
#[derive(Clone, Debug)]
pub struct Trouble {
    pub why: Refusal,
    /// The device's words, or the field or action that it cannot do.
    pub text: String,
    /// The decision that met it; a newer one is tried at once.
    pub decision: u64,
    pub attempts: u32,
    pub first: Instant,
    pub last: Instant,
    /// When to try again; `None`: not before something else changes.
    pub next: Option<Instant>,
}

impl Trouble {
    pub fn new(why: Refusal, text: String, decision: u64, now: Instant, next: Option<Instant>) -> Trouble {
        Trouble { why, text, decision, attempts: 1, first: now, last: now, next }
    }

    /// This trouble as the latest of a row, with the time of the next attempt: twice as late each time, a quarter
    /// earlier or later by the rule's hash so that rules that failed together do not come back together.
    pub fn after(mut self, before: Option<&Trouble>, hash: u64) -> Trouble {
        if let Some(before) = before.filter(|before| before.why == self.why) {
            self.attempts = before.attempts.saturating_add(1);
            self.first = before.first;
        }
        let (least, most) = BACKOFF;
        let wait = least.saturating_mul(1 << (self.attempts - 1).min(16)).min(most);
        let share = (hash.rotate_left(self.attempts) & 0xff) as u32;
        self.next = Some(self.last + wait * 3 / 4 + wait / 2 * share / 256);
        self
    }

    pub fn is_due(&self, now: Instant) -> bool {
        self.next.is_some_and(|next| next <= now)
    }

    /// Whether a put for `decision` is worth it: the decision is news, or the time has come, or a device is there now.
    pub fn may_try(&self, decision: u64, now: Instant) -> bool {
        decision > self.decision || self.why == Refusal::NoDevice || self.is_due(now)
    }
}
