//! The clock that the switch lives by: real time, unless a test stops it or sets it forward.
//!
//! What concerns flows, rules, stations and offload goes by this clock. What concerns the world outside does not: clients' deadlines,
//! how long a device may hang, the time that work takes.
//!
//! ```text
//!   at(real) = real + ahead              while it runs
//!   at(real) = the moment of the stop + what was warped since         while it stands
//! ```
//!
//! # Thread-safety
//! One clock a process. Reading it is two relaxed loads beside the system's clock. Whoever turns it must wake those who wait for it.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The moment that the nanoseconds below count from; not looked at before the clock is first turned.
static BASE: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Nanoseconds by which the clock is ahead of real time.
static AHEAD: AtomicU64 = AtomicU64::new(0);

/// Where the clock stands, in nanoseconds from the base; 0 while it runs.
static STANDS_AT: AtomicU64 = AtomicU64::new(0);

/// The time now.
#[inline]
pub fn now() -> Instant {
    at(Instant::now())
}

/// The time at a real moment, which must not lie far back.
#[inline]
pub fn at(real: Instant) -> Instant {
    let (ahead, stands_at) = (AHEAD.load(Ordering::Relaxed), STANDS_AT.load(Ordering::Relaxed));
    match (ahead, stands_at) {
        (0, 0) => real,
        (ahead, 0) => real + Duration::from_nanos(ahead),
        (_, stands_at) => *BASE + Duration::from_nanos(stands_at),
    }
}

/// Stops the clock for good. It can still be set forward.
pub fn stop() {
    let base = *BASE;
    let stand = || (now().saturating_duration_since(base).as_nanos() as u64).max(1);
    // Stopping it twice must not let it jump.
    let _ = STANDS_AT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |at| (at == 0).then(stand));
}

/// Sets the clock forward.
pub fn warp(by: Duration) {
    let nanos = by.as_nanos() as u64;
    match STANDS_AT.load(Ordering::Relaxed) {
        0 => AHEAD.fetch_add(nanos, Ordering::Relaxed),
        _ => STANDS_AT.fetch_add(nanos, Ordering::Relaxed),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The only test that turns the clock of the tests' process: forward by a little, which nobody else notices.
    #[test]
    fn it_runs_ahead_by_what_it_was_set_forward() {
        let real = Instant::now();
        let before = at(real);
        warp(Duration::from_micros(3));
        assert_eq!(at(real), before + Duration::from_micros(3));
        assert!(now() >= before);
    }
}
