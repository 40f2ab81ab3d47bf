//! [`Window`]: what a receive queue brought in the last minute.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::counters::RxCounters;

/// How far back a window reaches: as far as Open vSwitch's.
pub const LENGTH: Duration = Duration::from_secs(60);

/// Readings of a receive queue's counts, the oldest no more than about [`LENGTH`] old.
pub struct Window {
    samples: VecDeque<Sample>,
}

/// Counts at a moment.
#[derive(Clone, Copy)]
struct Sample {
    at: Instant,
    packets: u64,
    busy_ns: u64,
}

/// What came in the last minute, or since the queue was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Recent {
    pub time: Duration,
    pub packets: u64,
    pub busy_ns: u64,
}

impl Window {
    /// The queue was opened at `now`.
    pub fn new(now: Instant) -> Window {
        Window { samples: VecDeque::from([Sample { at: now, packets: 0, busy_ns: 0 }]) }
    }

    /// To be called about once a second.
    pub fn sample(&mut self, now: Instant, counters: &RxCounters) {
        let (packets, busy_ns) = (counters.packets.get(), counters.busy_ns.get());
        self.samples.push_back(Sample { at: now, packets, busy_ns });
        // The one that stays in front is the first at least as old as the window is long.
        while self.samples.get(1).is_some_and(|second| now.saturating_duration_since(second.at) >= LENGTH) {
            self.samples.pop_front();
        }
    }

    /// What came in about the last `over`, at most [`LENGTH`].
    pub fn recent(&self, now: Instant, over: Duration, counters: &RxCounters) -> Recent {
        let old = |sample: &&Sample| now.saturating_duration_since(sample.at) >= over;
        // There is one from the beginning.
        let base = self.samples.iter().rev().find(old).or(self.samples.front());
        let base = base.copied().unwrap_or(Sample { at: now, packets: 0, busy_ns: 0 });
        Recent {
            time: now.saturating_duration_since(base.at),
            packets: counters.packets.get().saturating_sub(base.packets),
            busy_ns: counters.busy_ns.get().saturating_sub(base.busy_ns),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_shows_all_in_the_first_minute_and_the_last_minute_afterwards() {
        let (start, counters) = (Instant::now(), RxCounters::default());
        let mut window = Window::new(start);
        let second = |n: u64| start + Duration::from_secs(n);
        for n in 1..=200 {
            counters.packets.add(10);
            counters.busy_ns.add(7);
            window.sample(second(n), &counters);
            let seconds = n.min(60);
            let expected = Recent { time: Duration::from_secs(seconds), packets: 10 * seconds, busy_ns: 7 * seconds };
            assert_eq!(window.recent(second(n), LENGTH, &counters), expected);
        }
        assert!(window.samples.len() <= 62);
    }
}
