//! [`Room`]: how many puts may wait, and how many bytes of them, over all lanes.
//!
//! Each lane has a *quota* of both, and what no lane has is in a pool: together always the limits. A put that fits in
//! its lane's quota enters without a look at anything else. Only when the quota is used up a producer gets more:
//! first from the pool, then half of what another lane holds and does not use. So a poller alone can fill the whole
//! queue, and one that comes later gets its share as others' entries leave.
//!
//! ```text
//!                 ┌───────── limit ─────────┐
//!   lane 0  quota ██████▒▒▒                    █ waits   ▒ unused, may be borrowed
//!   lane 1  quota          ███████
//!   pool                          ░░░░░░░░░░
//! ```
//!
//! # How far a limit holds
//! Borrowing makes the other lane's quota smaller, *then* looks at what waits there, and gives back what turns out to
//! be in use. A producer of that lane that looked at its quota before and entered after can do so once: its next
//! attempt reads what the borrower wrote, and with it the smaller quota. So what waits is never above the limit plus
//! one entry for each producer. Flows that were let in before come on top, as they are never refused.
//!
//! # Thread-safety
//! Any thread may enter. Nobody waits: each loop is repeated only when another thread got ahead. The worker alone
//! tells what has left.

use crossbeam_utils::CachePadded;

use super::lane::{LANES, Lane, Load, NEVER, PUT};
use crate::sync::{AtomicU64, AtomicUsize, Ordering};

/// The first bound's place in limits, pools and quotas.
pub const ENTRIES: usize = 0;
/// The second's.
pub const BYTES: usize = 1;

/// The bounds of all lanes together.
pub(super) struct Room {
    limits: [usize; 2],
    /// What no lane has in its quota.
    pools: CachePadded<[AtomicUsize; 2]>,
    worker: CachePadded<Seen>,
}

/// What the worker writes.
struct Seen {
    /// Puts that have left, of all lanes.
    left: AtomicU64,
    high_water: AtomicUsize,
}

impl Room {
    /// Room for `entries` of together `bytes`; more than 2²⁷ entries or 2³⁵ bytes are taken for that many.
    pub fn new(entries: usize, bytes: usize) -> Room {
        let limits = [entries.min(Load::MAX_ENTRIES), (bytes as u64).min(Load::MAX_BYTES) as usize];
        Room {
            limits,
            pools: CachePadded::new(limits.map(AtomicUsize::new)),
            worker: CachePadded::new(Seen { left: AtomicU64::new(0), high_water: AtomicUsize::new(0) }),
        }
    }

    pub fn limits(&self) -> [usize; 2] {
        self.limits
    }

    /// Counts an entry into lane number `at`, before it is pushed. `false`, and nothing counted, when there is no room
    /// and it was not `admitted` before.
    #[inline]
    pub fn enter<T>(&self, lanes: &[Lane<T>; LANES], at: usize, entry: Load, admitted: bool) -> bool {
        let puts = &lanes[at].puts;
        loop {
            // In this order: what was seen to leave had entered before.
            let seen = Load(puts.seen.load(Ordering::Acquire));
            let entered = Load(puts.side.entered.load(Ordering::Relaxed));
            if !lanes[at].holds(entered.since(seen).plus(entry)) {
                if self.make_room(lanes, at, entry, admitted) {
                    continue;
                }
                if !admitted {
                    return false;
                }
                puts.side.entered.fetch_add(entry.0, Ordering::AcqRel);
                return true;
            }
            // The exchange makes sure that no producer of the same lane used the quota meanwhile. Acquire: a borrower
            // that looked before us has made the quota smaller for our next attempt to see.
            let (old, new) = (entered.0, entered.plus(entry).0);
            if puts.side.entered.compare_exchange_weak(old, new, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                return true;
            }
        }
    }

    /// Whether a put of this lane, refused before, may fit now: something has left since. Two loads.
    #[inline]
    pub fn is_worth_asking<T>(&self, lane: &Lane<T>) -> bool {
        lane.puts.refused_at.load(Ordering::Relaxed) != self.worker.left.load(Ordering::Relaxed)
    }

    /// The worker's: a put has left lane number `at`.
    pub fn leave<T>(&self, lane: &Lane<T>, entry: Load) {
        // The lane first: who knows of this by the count of all finds that the lane has room.
        lane.leave(PUT, entry);
        let left = &self.worker.left;
        left.store(left.load(Ordering::Relaxed) + 1, Ordering::Release);
    }

    /// The most puts that waited when somebody looked: before each batch that the worker takes, and now.
    pub fn high_water<T>(&self, lanes: &[Lane<T>; LANES]) -> usize {
        let now = lanes.iter().map(|lane| lane.puts_waiting().entries()).sum();
        let high_water = &self.worker.high_water;
        if now > high_water.load(Ordering::Relaxed) {
            high_water.fetch_max(now, Ordering::Relaxed);
        }
        now.max(high_water.load(Ordering::Relaxed))
    }

    /// Sees to it that the lane's quota holds another entry, if it can. `true`: try again.
    #[cold]
    fn make_room<T>(&self, lanes: &[Lane<T>; LANES], at: usize, entry: Load, admitted: bool) -> bool {
        let puts = &lanes[at].puts;
        // Before the look: what leaves after a look that finds no room changes this count.
        let left = self.worker.left.load(Ordering::Acquire);
        if admitted && puts.refused_at.load(Ordering::Relaxed) == left {
            // It goes in anyway, so a look at all lanes that cannot help is spared.
            return false;
        }
        let seen = lanes[at].left(PUT);
        puts.seen.store(seen.0, Ordering::Release);
        // Always in this order, so that no two producers hold what the other lacks.
        for bound in [ENTRIES, BYTES] {
            let entered = Load(puts.side.entered.load(Ordering::Relaxed));
            let wanted = part(entered.since(seen).plus(entry), bound);
            let lacking = wanted.saturating_sub(puts.quota[bound].load(Ordering::Relaxed));
            if lacking == 0 {
                continue;
            }
            let found = self.borrow(lanes, at, bound, lacking);
            puts.quota[bound].fetch_add(found, Ordering::Relaxed);
            if found < lacking {
                // With nothing waiting nothing will leave: then others are just sorting out their quotas.
                let waits = lanes.iter().any(|lane| lane.puts_waiting().entries() > 0);
                puts.refused_at.store(if waits { left } else { NEVER }, Ordering::Relaxed);
                return false;
            }
        }
        true
    }

    /// Takes `lacking` or more from the pool and from quotas of lanes other than `at`; less if there is less.
    fn borrow<T>(&self, lanes: &[Lane<T>; LANES], at: usize, bound: usize, lacking: usize) -> usize {
        // Enough that one seldom comes back, little enough that each lane can have some.
        let mut found = take(&self.pools[bound], lacking.max(self.limits[bound] / (4 * LANES)));
        for lane in (1..LANES).map(|n| &lanes[(at + n) % LANES]) {
            if found >= lacking {
                break;
            }
            let quota = &lane.puts.quota[bound];
            let unused = quota.load(Ordering::Relaxed).saturating_sub(part(lane.puts_waiting(), bound));
            let taken = take(quota, unused.min(unused.div_ceil(2).max(lacking - found)));
            if taken > 0 {
                // An addition of nothing reads the newest and, unlike a load, is seen by the next that enters.
                let left = lane.left(PUT);
                let waiting = Load(lane.puts.side.entered.fetch_add(0, Ordering::AcqRel)).since(left);
                let used = part(waiting, bound).saturating_sub(quota.load(Ordering::Relaxed)).min(taken);
                quota.fetch_add(used, Ordering::Relaxed);
                found += taken - used;
            }
        }
        found
    }
}

impl<T> Lane<T> {
    /// Whether the quota holds so much.
    #[inline]
    fn holds(&self, load: Load) -> bool {
        let holds = |bound: usize| part(load, bound) <= self.puts.quota[bound].load(Ordering::Relaxed);
        holds(ENTRIES) && holds(BYTES)
    }
}

#[inline]
fn part(load: Load, bound: usize) -> usize {
    if bound == ENTRIES { load.entries() } else { load.bytes() }
}

/// Takes up to `most`.
fn take(from: &AtomicUsize, most: usize) -> usize {
    let mut there = from.load(Ordering::Relaxed);
    loop {
        let taken = there.min(most);
        if taken == 0 {
            return 0;
        }
        match from.compare_exchange_weak(there, there - taken, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return taken,
            Err(now) => there = now,
        }
    }
}
