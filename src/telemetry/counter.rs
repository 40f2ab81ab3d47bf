//! [`Counter`]: a number that one thread raises and any thread reads.

use std::sync::atomic::{AtomicU64, Ordering};

/// A count with one writer: raising it is a load and a store, no read-modify-write.
///
/// # Thread-safety
/// Any thread may read. One thread at a time may raise it; two would lose counts (never corrupt memory).
#[derive(Default, Debug)]
pub struct Counter(AtomicU64);

impl Counter {
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Takes `n` back, for counts of what there is.
    #[inline]
    pub fn subtract(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_sub(n), Ordering::Relaxed);
    }

    /// Replaces the count, for totals that a device keeps.
    #[inline]
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
