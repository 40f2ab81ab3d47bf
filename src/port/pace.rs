//! [`Rate`]: how many frames are due by now, for ports that make or replay frames at a rate.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

/// A steady number of frames a second, counted from the first time it is asked.
#[derive(Clone, Debug)]
pub struct Rate {
    per_second: NonZeroU64,
    start: Option<Instant>,
    taken: u64,
}

impl Rate {
    pub fn new(per_second: NonZeroU64) -> Rate {
        Rate { per_second, start: None, taken: 0 }
    }

    /// Frames that are due at `now` and not taken yet. The first is due at once.
    pub fn due(&mut self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(*self.start.get_or_insert(now));
        let passed = elapsed.as_nanos() * u128::from(self.per_second.get()) / 1_000_000_000 + 1;
        u64::try_from(passed).unwrap_or(u64::MAX).saturating_sub(self.taken)
    }

    /// `n` frames were taken, or given up.
    pub fn take(&mut self, n: u64) {
        self.taken = self.taken.saturating_add(n);
    }

    /// When the next frame falls due; `None` before the first time that it was asked, and after the end of time.
    pub fn next_due(&self) -> Option<Instant> {
        // Rounded up: a nanosecond too early would find nothing due.
        let nanos = (u128::from(self.taken) * 1_000_000_000).div_ceil(u128::from(self.per_second.get()));
        self.start?.checked_add(Duration::from_nanos(u64::try_from(nanos).ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_due_exactly_when_it_was_announced() {
        for pps in [1, 3, 7, 1_000, 999_983, 14_880_952] {
            let start = Instant::now();
            let mut rate = Rate::new(NonZeroU64::new(pps).unwrap());
            assert_eq!(rate.next_due(), None);
            assert_eq!(rate.due(start), 1);
            for n in 1..100 {
                rate.take(1);
                let next = rate.next_due().unwrap();
                assert_eq!(rate.due(next - Duration::from_nanos(1)), 0, "frame {n} at {pps}");
                assert_eq!(rate.due(next), 1, "frame {n} at {pps}");
            }
        }
    }

    #[test]
    fn a_second_holds_the_rate() {
        let start = Instant::now();
        let mut rate = Rate::new(NonZeroU64::new(1_000_000).unwrap());
        rate.due(start);
        assert_eq!(rate.due(start + Duration::from_secs(1)), 1_000_001);
        rate.take(u64::MAX);
        assert_eq!((rate.due(start), rate.next_due()), (0, None));
    }
}
