//! [`Limiter`]: keeps one module's flood of log lines from drowning the others, and the disk.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Lines that a module may log at once…
const BURST: f64 = 1_000.0;
/// …and so many a second from then on.
const PER_SECOND: f64 = 100.0;

/// Of one module. Any thread may ask.
pub struct Limiter {
    enabled: AtomicBool,
    bucket: Mutex<Bucket>,
}

struct Bucket {
    left: f64,
    at: Option<Instant>,
    /// Lines kept back since the last that passed.
    kept_back: u64,
}

impl Default for Limiter {
    fn default() -> Limiter {
        Limiter::new()
    }
}

impl Limiter {
    pub const fn new() -> Limiter {
        let bucket = Bucket { left: BURST, at: None, kept_back: 0 };
        Limiter { enabled: AtomicBool::new(true), bucket: Mutex::new(bucket) }
    }

    pub fn enable(&self, enabled: bool) {
        self.enabled.store(enabled, Ordering::Relaxed);
    }

    pub fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Relaxed)
    }

    /// Whether a line may pass now, and then how many were kept back before it.
    pub fn pass(&self, now: Instant) -> Option<u64> {
        // Numbers, whole at any moment.
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let since = bucket.at.map_or(0.0, |at| now.saturating_duration_since(at).as_secs_f64());
        bucket.at = Some(now);
        bucket.left = (bucket.left + since * PER_SECOND).min(BURST);
        if self.is_enabled() && bucket.left < 1.0 {
            bucket.kept_back += 1;
            return None;
        }
        bucket.left = (bucket.left - 1.0).max(0.0);
        Some(std::mem::take(&mut bucket.kept_back))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_flood_is_cut_to_a_rate_and_what_was_kept_back_is_told() {
        let (limiter, start) = (Limiter::new(), Instant::now());
        let passed = (0..5_000).filter(|_| limiter.pass(start).is_some()).count();
        assert_eq!(passed, BURST as usize);
        let later = start + Duration::from_secs(1);
        assert_eq!(limiter.pass(later), Some(4_000));
        let passed = (0..5_000).filter(|_| limiter.pass(later).is_some()).count();
        assert_eq!(passed, PER_SECOND as usize - 1);
        limiter.enable(false);
        assert!((0..5_000).all(|_| limiter.pass(later).is_some()));
    }
}
