//! [`Lane`]: a poller's own place in the queue, and [`Load`], what waits there.
//!
//! What producers write, what they write for deletes, and what the worker writes lie on cache lines of their own, so
//! that pollers on different lanes write nothing in common, and the worker disturbs a lane's producers only when it
//! takes what they left.
//!
//! # Thread-safety
//! Any thread may enter any lane; one that has it for itself never waits for a cache line that another producer
//! writes. Only the worker calls [`Lane::leave`].

use crossbeam_utils::CachePadded;

use crate::sync::{AtomicU64, AtomicUsize, Ordering};
use crate::sys::stack::Stack;

/// The link of the put side.
pub const PUT: usize = 0;
/// The link of the delete side.
pub const DELETE: usize = 1;

/// Lanes of a queue: as many pollers as have one to themselves.
pub const LANES: usize = if cfg!(loom) { 2 } else { 16 };

/// One lane: two stacks, and the counts of what went through them.
pub(super) struct Lane<T> {
    pub puts: CachePadded<Puts<T>>,
    pub deletes: CachePadded<Side<T, DELETE>>,
    /// By link.
    left: CachePadded<[Left; 2]>,
}

/// What producers of puts write.
pub(super) struct Puts<T> {
    pub side: Side<T, PUT>,
    /// How much may wait here, by [`ENTRIES`](super::room::ENTRIES) and [`BYTES`](super::room::BYTES).
    pub quota: [AtomicUsize; 2],
    /// What was known to have left when the quota was last used up: never more than has left, so what seems to wait
    /// is never less than what does.
    pub seen: AtomicU64,
    /// Where the count of puts that left the queue stood when a put was refused here.
    pub refused_at: AtomicU64,
    pub coalesced: AtomicU64,
    pub refused: AtomicU64,
}

/// A stack and the sum of all that ever entered it.
pub(super) struct Side<T, const AT: usize> {
    pub stack: Stack<T, AT>,
    pub entered: AtomicU64,
}

/// What has left a stack by the worker's hand.
#[derive(Default)]
struct Left {
    load: AtomicU64,
    /// The entries again, as a count that does not wrap.
    entries: AtomicU64,
}

/// `refused_at` of a lane whose producer need not wait for anything to leave.
pub(super) const NEVER: u64 = u64::MAX;

impl<T> Default for Lane<T> {
    fn default() -> Self {
        let puts = Puts {
            side: Side::default(),
            quota: Default::default(),
            seen: AtomicU64::new(0),
            refused_at: AtomicU64::new(NEVER),
            coalesced: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        };
        Lane { puts: CachePadded::new(puts), deletes: CachePadded::default(), left: CachePadded::default() }
    }
}

impl<T, const AT: usize> Default for Side<T, AT> {
    fn default() -> Self {
        Side { stack: Stack::default(), entered: AtomicU64::new(0) }
    }
}

impl<T> Lane<T> {
    /// What has left link `at`'s stack. To be read before what has entered: then the difference is not negative.
    pub fn left(&self, at: usize) -> Load {
        Load(self.left[at].load.load(Ordering::Acquire))
    }

    /// Puts that wait here.
    pub fn puts_waiting(&self) -> Load {
        let left = self.left(PUT);
        Load(self.puts.side.entered.load(Ordering::Relaxed)).since(left)
    }

    /// Deletes that wait here.
    pub fn deletes_waiting(&self) -> Load {
        let left = self.left(DELETE);
        Load(self.deletes.entered.load(Ordering::Relaxed)).since(left)
    }

    /// All entries that there ever were.
    pub fn entries(&self) -> u64 {
        let all = |at: usize, entered: &AtomicU64| {
            let left = self.left[at].entries.load(Ordering::Acquire);
            // The sum wraps, but its lower bits are the count's own, and no more wait than fit in them.
            left + (entered.load(Ordering::Relaxed).wrapping_sub(left) & ENTRIES_MASK)
        };
        all(PUT, &self.puts.side.entered) + all(DELETE, &self.deletes.entered)
    }

    /// The worker's: an entry of this load has left link `at`'s stack.
    pub fn leave(&self, at: usize, load: Load) {
        let left = &self.left[at];
        // One writer. Release: who sees it leave has seen it enter.
        left.load.store(Load(left.load.load(Ordering::Relaxed)).plus(load).0, Ordering::Release);
        left.entries.store(left.entries.load(Ordering::Relaxed) + 1, Ordering::Release);
    }
}

/// Entries and their bytes in one word, so that one addition counts both: bytes above, entries in the lower 28 bits.
///
/// A sum of everything that ever entered wraps. The difference of two sums is right nevertheless, as long as it is
/// below 2²⁸ entries and 2³⁶ bytes: fewer than fit in memory, as an entry is a flow of some hundred bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Load(pub u64);

const ENTRIES_BITS: u32 = 28;
const ENTRIES_MASK: u64 = (1 << ENTRIES_BITS) - 1;

impl Load {
    pub const MAX_ENTRIES: usize = 1 << (ENTRIES_BITS - 1);
    pub const MAX_BYTES: u64 = 1 << (63 - ENTRIES_BITS);

    /// One entry of so many bytes.
    pub fn one(bytes: u32) -> Load {
        Load((u64::from(bytes) << ENTRIES_BITS) + 1)
    }

    pub fn plus(self, more: Load) -> Load {
        Load(self.0.wrapping_add(more.0))
    }

    pub fn since(self, earlier: Load) -> Load {
        Load(self.0.wrapping_sub(earlier.0))
    }

    pub fn entries(self) -> usize {
        (self.0 & ENTRIES_MASK) as usize
    }

    pub fn bytes(self) -> usize {
        (self.0 >> ENTRIES_BITS) as usize
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_difference_of_two_loads_is_right_though_both_have_wrapped() {
        let entry = Load::one(u32::MAX);
        let (mut entered, mut left) = (Load::default(), Load::default());
        for n in 0..100 {
            entered = entered.plus(entry);
            if n >= 3 {
                left = left.plus(entry);
            }
            assert_eq!(entered.since(left).entries(), (n + 1).min(3));
            assert_eq!(entered.since(left).bytes(), (n + 1).min(3) * u32::MAX as usize);
        }
        let entered = Load(u64::MAX).plus(Load::one(5)).plus(Load::one(6));
        assert_eq!((entered.since(Load(u64::MAX)).entries(), entered.since(Load(u64::MAX)).bytes()), (2, 11));
    }

    #[test]
    fn all_entries_are_counted_beyond_the_bits_that_a_load_has_for_them() {
        let lane = Lane::<()>::default();
        lane.left[PUT].entries.store(ENTRIES_MASK - 1, Ordering::Relaxed);
        lane.puts.side.entered.store(ENTRIES_MASK - 1, Ordering::Relaxed);
        for n in 1..=4 {
            lane.puts.side.entered.fetch_add(Load::one(700).0, Ordering::Relaxed);
            assert_eq!(lane.entries(), ENTRIES_MASK - 1 + n);
        }
        lane.leave(PUT, Load::one(700));
        assert_eq!(lane.entries(), ENTRIES_MASK + 3);
    }
}
