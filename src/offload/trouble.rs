//! [`Trouble`]: why a flow is not as far in the device as wanted, as data: what it is about, whose words, how often, until when.
//!
//! # Thread-safety
//! Immutable once made, and shared by reference count: the worker's rule and the cells of its owners show one and the same.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::backend::Unsupported;

/// The first and the longest wait after a failure of the device.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(10));

/// Why a flow is not in the device, or not wholly.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The put lane had no room when the flow was new. It asks again when there is.
    QueueFull,
    /// All marks are in use or in quarantine. It is put when one is free.
    NoMark,
    /// The device's table is full. It is put when there is room, or when it is busier than a flow that is in.
    NoRoom,
    /// It was in the device and made room for a busier flow.
    Evicted,
    /// The device cannot match a field of it.
    Match,
    /// The device cannot execute an action of it.
    Action,
    /// The device does not serve its port, or cannot send to one.
    Port,
    /// The device failed. It is tried again, less and less often.
    Device,
    /// The device hung or broke, and is not used any more.
    Off,
    /// Offload is switched off.
    Disabled,
    /// It has not carried enough packets, for long enough, or fast enough, to be worth it.
    Policy,
}

/// What a reason is about.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The flow's match.
    Match,
    /// Its actions.
    Action,
    /// Room in the queue, the device, or among the marks.
    Resource,
    /// A port.
    Port,
    /// The device itself.
    Device,
    /// What the operator wants.
    Policy,
    /// Nothing is in its way; it is its turn soon.
    Pending,
}

impl Reason {
    /// Every reason, in the order of their codes.
    pub const ALL: [Reason; 11] = [
        Reason::QueueFull,
        Reason::NoMark,
        Reason::NoRoom,
        Reason::Evicted,
        Reason::Match,
        Reason::Action,
        Reason::Port,
        Reason::Device,
        Reason::Off,
        Reason::Disabled,
        Reason::Policy,
    ];

    pub fn kind(self) -> Kind {
        match self {
            Reason::QueueFull | Reason::NoMark | Reason::NoRoom | Reason::Evicted => Kind::Resource,
            Reason::Match => Kind::Match,
            Reason::Action => Kind::Action,
            Reason::Port => Kind::Port,
            Reason::Device | Reason::Off => Kind::Device,
            Reason::Disabled | Reason::Policy => Kind::Policy,
        }
    }

    /// Whether the flow waits for room, which others give back.
    pub(super) fn is_want_of_room(self) -> bool {
        matches!(self, Reason::NoMark | Reason::NoRoom | Reason::Evicted)
    }
}

impl From<Unsupported> for Reason {
    fn from(what: Unsupported) -> Reason {
        match what {
            Unsupported::Field(_) | Unsupported::Match => Reason::Match,
            Unsupported::Action(_) | Unsupported::Outputs => Reason::Action,
            Unsupported::Port(_) | Unsupported::Sight(_) => Reason::Port,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::QueueFull => "queue full",
            Reason::NoMark => "no mark free",
            Reason::NoRoom => "no room in the device",
            Reason::Evicted => "evicted for a busier flow",
            Reason::Match => "match not supported",
            Reason::Action => "action not supported",
            Reason::Port => "port not served",
            Reason::Device => "device error",
            Reason::Off => "device off",
            Reason::Disabled => "switched off",
            Reason::Policy => "not worth it yet",
        })
    }
}

impl Kind {
    pub const ALL: [Kind; 7] =
        [Kind::Match, Kind::Action, Kind::Resource, Kind::Port, Kind::Device, Kind::Policy, Kind::Pending];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Match => "match",
            Kind::Action => "action",
            Kind::Resource => "resource",
            Kind::Port => "port",
            Kind::Device => "device",
            Kind::Policy => "policy",
            Kind::Pending => "pending",
        })
    }
}

/// What stands between a flow and what its owners want.
#[derive(Clone, PartialEq, Debug)]
pub struct Trouble {
    pub why: Reason,
    /// The field, the action, the port, or the device's own words.
    pub text: Arc<str>,
    /// The decision that met it; a newer one is tried at once.
    pub decision: u64,
    pub attempts: u32,
    pub first: Instant,
    pub last: Instant,
    /// When to try again; `None`: not before something else changes.
    pub next: Option<Instant>,
}

impl Trouble {
    pub fn new(why: Reason, text: impl Into<Arc<str>>, decision: u64, now: Instant) -> Trouble {
        Trouble { why, text: text.into(), decision, attempts: 1, first: now, last: now, next: None }
    }

    /// What the device cannot do.
    pub fn unsupported(what: Unsupported, decision: u64, now: Instant) -> Trouble {
        Trouble::new(what.into(), what.to_string(), decision, now)
    }

    /// This trouble as the latest of a row: it began when the first of them did.
    pub fn after(mut self, before: Option<&Trouble>) -> Trouble {
        if let Some(before) = before.filter(|before| before.why == self.why) {
            self.attempts = before.attempts.saturating_add(1);
            self.first = before.first;
        }
        self
    }

    /// With the time of the next attempt: twice as late each time, a quarter earlier or later by the rule's hash so that
    /// rules that failed together do not come back together.
    pub fn backing_off(mut self, hash: u64) -> Trouble {
        let (least, most) = BACKOFF;
        let wait = least.saturating_mul(1 << (self.attempts - 1).min(16)).min(most);
        let share = (hash.rotate_left(self.attempts) & 0xff) as u32;
        self.next = Some(self.last + wait * 3 / 4 + wait / 2 * share / 256);
        self
    }

    pub fn is_due(&self, now: Instant) -> bool {
        self.next.is_some_and(|next| next <= now)
    }

    /// Whether a put for `decision` is worth it: the decision is news, or the time has come, or what was missing may be there
    /// now. What is still missing is found out without asking the device.
    pub fn may_try(&self, decision: u64, now: Instant) -> bool {
        let cheap = matches!(self.why, Reason::Port | Reason::Off | Reason::Disabled | Reason::Match | Reason::Action);
        decision > self.decision || cheap || self.is_due(now)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_differ_from_rule_to_rule() {
        let now = Instant::now();
        let mut before: Option<Trouble> = None;
        let mut waits = Vec::new();
        for _ in 0..40 {
            let trouble = Trouble::new(Reason::Device, "no", 0, now).after(before.as_ref()).backing_off(0x0123_4567);
            waits.push(trouble.next.unwrap() - now);
            before = Some(trouble);
        }
        assert!(waits[0] >= Duration::from_micros(7_500) && waits[0] <= Duration::from_micros(12_500));
        assert!(waits.iter().all(|wait| *wait <= Duration::from_micros(12_500_000)), "{waits:?}");
        assert!(waits[12] >= Duration::from_micros(7_500_000));
        assert_eq!(before.map(|trouble| trouble.attempts), Some(40));
        let at = |hash: u64| Trouble::new(Reason::Device, "no", 0, now).backing_off(hash).next;
        assert_ne!(at(1), at(77));
    }

    #[test]
    fn every_reason_is_of_a_kind_and_no_kind_is_without_reasons_but_pending() {
        for kind in Kind::ALL {
            assert_eq!(Reason::ALL.iter().any(|reason| reason.kind() == kind), kind != Kind::Pending, "{kind}");
        }
    }
}
