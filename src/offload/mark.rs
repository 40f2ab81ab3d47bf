//! [`Mark`], the number on a packet; [`MarkPool`], where marks come from and go back to.
//!
//! A mark's life has three moments, and each is a type, so that none can be skipped or repeated:
//!
//! ```text
//!             take                retire: the device forgot it        release: every ring turned over
//!   MarkPool ──────► MarkLease ──────────────────────────► Quarantined ──────────────────► MarkPool
//! ```
//!
//! *Why the quarantine*: frames that carry the old mark may still wait in a receive ring. A mark that is taken again
//! too early would send them to a stranger's actions; one held too long costs one number of millions.
//!
//! # Thread-safety
//! Plain values, owned by one worker. Only [`Quarantined::is_over`] looks at other threads' progress.

use std::collections::VecDeque;
use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::port::{RxPoint, RxProgress};

/// A flow mark: the number that a device stamps on the packets of a flow. 0 is no mark.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Mark(pub NonZeroU32);

impl Mark {
    pub fn new(value: u32) -> Option<Mark> {
        NonZeroU32::new(value).map(Mark)
    }

    #[inline]
    pub fn index(self) -> usize {
        self.0.get() as usize
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The marks that no flow has.
///
/// Marks that were used before are taken first, the longest free one at the front: the tables that pollers index by
/// mark, and this pool, grow with the marks in use at once, not with the pool's width.
#[derive(Debug)]
pub struct MarkPool {
    bits: u8,
    /// The lowest mark that was never taken; one above the last when all were.
    fresh: u64,
    free: VecDeque<Mark>,
}

impl MarkPool {
    /// The narrowest and the widest pool, in bits.
    pub const BITS: std::ops::RangeInclusive<u8> = 8..=32;

    /// Marks 1 to 2^`bits` − 1; `bits` is brought into [`MarkPool::BITS`].
    pub fn new(bits: u8) -> MarkPool {
        MarkPool { bits: bits.clamp(*Self::BITS.start(), *Self::BITS.end()), fresh: 1, free: VecDeque::new() }
    }

    /// How many marks there are.
    pub fn capacity(&self) -> u64 {
        (1 << self.bits) - 1
    }

    /// How many marks are leased or in quarantine.
    pub fn taken(&self) -> u64 {
        self.fresh - 1 - self.free.len() as u64
    }

    /// A mark that nobody has; `None` when all are leased or in quarantine.
    pub fn take(&mut self) -> Option<MarkLease> {
        if let Some(mark) = self.free.pop_front() {
            return Some(MarkLease { mark });
        }
        if self.fresh > self.capacity() {
            return None;
        }
        let mark = Mark::new(self.fresh as u32)?;
        self.fresh += 1;
        Some(MarkLease { mark })
    }

    /// Gives back a mark that reached no device.
    pub fn give_back(&mut self, lease: MarkLease) {
        self.free.push_back(lease.mark);
    }

    /// Ends a quarantine.
    ///
    /// # Errors
    /// Gives the mark back when frames that carry it may still wait.
    pub fn release(&mut self, quarantined: Quarantined) -> Result<(), Quarantined> {
        if !quarantined.is_over() {
            return Err(quarantined);
        }
        self.free.push_back(quarantined.mark);
        Ok(())
    }
}

/// The right to have a device stamp this mark. Neither copied nor dropped by intent: it goes back by
/// [`MarkLease::retire`], or by [`MarkPool::give_back`] if no device has ever had it.
#[derive(PartialEq, Eq, Debug)]
#[must_use = "a lease that is dropped loses its mark for ever"]
pub struct MarkLease {
    mark: Mark,
}

impl MarkLease {
    pub fn mark(&self) -> Mark {
        self.mark
    }

    /// The device has forgotten the mark: no frame that enters a ring from now on carries it. `queues`: the receive
    /// queues in which older frames may wait.
    pub fn retire<'a>(self, queues: impl IntoIterator<Item = &'a Arc<RxProgress>>) -> Quarantined {
        let points = queues.into_iter().map(|queue| (Arc::clone(queue), queue.mark_point())).collect();
        Quarantined { mark: self.mark, points }
    }
}

/// A mark that no device stamps any more, but that frames in a ring may still carry.
#[derive(Debug)]
#[must_use = "a quarantined mark that is dropped is lost for ever"]
pub struct Quarantined {
    mark: Mark,
    /// Most rules are of one port, and many ports have one queue.
    points: SmallVec<[(Arc<RxProgress>, RxPoint); 1]>,
}

impl Quarantined {
    pub fn mark(&self) -> Mark {
        self.mark
    }

    /// Frames that carry it may wait in these queues, too.
    pub fn wait_for(&mut self, queues: &[Arc<RxProgress>]) {
        self.points.extend(queues.iter().map(|queue| (Arc::clone(queue), queue.mark_point())));
    }

    /// Whether every frame that was in a ring at retirement has been taken out.
    pub fn is_over(&self) -> bool {
        self.points.iter().all(|(queue, point)| queue.turned_over_since(point))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_released_mark_is_not_taken_again_before_the_ring_turned_over() {
        let mut pool = MarkPool::new(8);
        let queue = Arc::new(RxProgress::new(64));
        let lease = pool.take().unwrap();
        let mark = lease.mark();
        let waiting = lease.retire([&queue]);
        let waiting = pool.release(waiting).unwrap_err();
        let others: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(others.len(), 254);
        assert!(others.iter().all(|other| other.mark() != mark));
        queue.took(0);
        let waiting = pool.release(waiting).unwrap_err();
        queue.took(0);
        pool.release(waiting).unwrap();
        assert_eq!(pool.take().map(|lease| lease.mark()), Some(mark));
    }

    #[test]
    fn a_ring_that_is_never_seen_empty_turns_over_by_its_length() {
        let mut pool = MarkPool::new(8);
        let queue = Arc::new(RxProgress::new(64));
        let mut waiting = pool.take().unwrap().retire([&queue]);
        // The first ring's worth may have been under way at the retirement.
        for _ in 0..3 {
            queue.took(32);
            waiting = pool.release(waiting).unwrap_err();
        }
        queue.took(32);
        pool.release(waiting).unwrap();
    }

    #[test]
    fn a_closed_queue_holds_no_mark_back() {
        let mut pool = MarkPool::new(8);
        let (open, closed) = (Arc::new(RxProgress::new(8)), Arc::new(RxProgress::new(8)));
        let waiting = pool.take().unwrap().retire([&open, &closed]);
        closed.close();
        let waiting = pool.release(waiting).unwrap_err();
        open.close();
        pool.release(waiting).unwrap();
        assert_eq!(pool.taken(), 0);
    }

    #[test]
    fn a_pool_grows_with_use_and_ends_at_its_width() {
        let mut wide = MarkPool::new(32);
        assert_eq!(wide.capacity(), u64::from(u32::MAX));
        assert_eq!(wide.take().unwrap().mark(), Mark::new(1).unwrap());
        let mut narrow = MarkPool::new(8);
        let mut leases: Vec<_> = std::iter::from_fn(|| narrow.take()).collect();
        assert_eq!(leases.len(), 255);
        assert_eq!((narrow.taken(), narrow.capacity()), (255, 255));
        narrow.give_back(leases.pop().unwrap());
        assert_eq!(narrow.taken(), 254);
        assert!(narrow.take().is_some());
    }
}
