//! [`Watchdog`], and the few words that the daemon has for whoever started it: systemd, by sd_notify(3).
//!
//! ```text
//!   ready ──► alive, alive, alive, … ──► reloading ──► ready ──► alive, … ──► stopping
//!                 └ for as long as every poller makes turns
//! ```
//!
//! Each word is a datagram to the socket that `NOTIFY_SOCKET` names; without that variable, nothing is sent. How often a sign of life is
//! wanted is in `WATCHDOG_USEC`. A manager that cannot be told is told of in the log, and the daemon goes on; one that does not read what it
//! is sent makes the thread that tells it wait. No poller tells anything.

use std::time::{Duration, Instant};

use sd_notify::NotifyState::{self, Ready, Reloading, Status, Stopping};

/// The daemon does its work; `status` is a line for people.
pub fn ready(status: &str) {
    say(&[Ready, Status(status)]);
}

/// The configuration is read again; [`ready`] must follow.
pub fn reloading() {
    let mut states = vec![Reloading, Status("reading the configuration again")];
    states.extend(NotifyState::monotonic_usec_now());
    say(&states);
}

/// The daemon ends; `status` is a line for people.
pub fn stopping(status: &str) {
    say(&[Stopping, Status(status)]);
}

fn say(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        log::warn!(target: "daemon", "the service manager cannot be told: {error}");
    }
}

/// Gives signs of life while every poller makes turns; the manager kills and restarts a daemon that gives none.
#[derive(Debug)]
pub struct Watchdog {
    /// How long a poller may stand still: half of what the manager waits.
    limit: Duration,
    /// Of each poller, how many turns it had made when it was last seen to have made one, and when that was.
    seen: Vec<(u64, Instant)>,
    /// A poller that stands still has been told of.
    told: bool,
}

impl Watchdog {
    /// `None` if nobody wants signs of life.
    pub fn from_env() -> Option<Watchdog> {
        sd_notify::watchdog_enabled().filter(|patience| !patience.is_zero()).map(Watchdog::new)
    }

    /// For a manager that waits so long for a sign of life.
    fn new(patience: Duration) -> Watchdog {
        Watchdog { limit: patience / 2, seen: Vec::new(), told: false }
    }

    /// To be called about once a second, with the turns that each poller has made: gives a sign of life if all of them live.
    pub fn tick(&mut self, now: Instant, turns: impl IntoIterator<Item = u64>) {
        let stuck = self.stuck(now, turns);
        match stuck {
            None => say(&[NotifyState::Watchdog]),
            Some(poller) if !self.told => {
                log::error!(target: "daemon", "poller {poller} has made no turn for {:?}; the service manager gets no more signs of life", self.limit);
            }
            Some(_) => {}
        }
        self.told = stuck.is_some();
    }

    /// The first poller that has made no turn for too long.
    fn stuck(&mut self, now: Instant, turns: impl IntoIterator<Item = u64>) -> Option<usize> {
        let mut pollers = 0;
        let mut stuck = None;
        for (poller, turns) in turns.into_iter().enumerate() {
            pollers += 1;
            match self.seen.get_mut(poller) {
                Some((before, since)) if *before == turns => {
                    if now.saturating_duration_since(*since) >= self.limit {
                        stuck.get_or_insert(poller);
                    }
                }
                Some(seen) => *seen = (turns, now),
                None => self.seen.push((turns, now)),
            }
        }
        self.seen.truncate(pollers);
        stuck
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A watchdog with a clock.
    fn of_twenty_seconds() -> (Watchdog, impl Fn(u64) -> Instant) {
        let start = Instant::now();
        (Watchdog::new(Duration::from_secs(20)), move |seconds| start + Duration::from_secs(seconds))
    }

    #[test]
    fn a_poller_that_stands_still_for_half_the_managers_patience_is_stuck() {
        let (mut watchdog, at) = of_twenty_seconds();
        assert_eq!(watchdog.stuck(at(0), [1, 1]), None);
        assert_eq!(watchdog.stuck(at(9), [2, 1]), None);
        assert_eq!(watchdog.stuck(at(10), [3, 1]), Some(1));
        assert_eq!(watchdog.stuck(at(11), [3, 2]), None, "it goes on");
        assert_eq!(watchdog.stuck(at(20), [3, 2]), Some(0));
    }

    #[test]
    fn pollers_that_come_and_go_are_not_stuck() {
        let (mut watchdog, at) = of_twenty_seconds();
        assert_eq!(watchdog.stuck(at(0), [7, 7]), None);
        assert_eq!(watchdog.stuck(at(1), [8]), None, "the second has ended");
        assert_eq!(watchdog.stuck(at(15), [9, 7]), None, "another second one is new, and has its time");
        assert_eq!(watchdog.stuck(at(16), []), None);
    }
}
