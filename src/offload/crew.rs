//! `Crew`: what the workers of one device have in common.
//!
//! Megaflows are dealt out in [`SHARDS`] fixed parts by their hash, so each megaflow has one worker for all pollers and
//! whatever is done about it is done in order. Two tables say whose a shard is:
//!
//! ```text
//!   plan    whose a shard should be; written by whoever changes the number of workers
//!   routes  whose queue its flows go to; written by the worker that has the shard, when it gives it away
//!
//!   old worker                                          new worker
//!   route = new worker                                  flows of it that come now are held
//!   rules of the shard ──── message ──────────────────► its own from now on; what was held is looked at
//!   flows of it that still come ──── passed on ───────► looked at
//! ```
//!
//! The plan may change at any moment, while a shard is on its way, too. The route is written by the worker that has the
//! shard, before the message that gives it away: so there is one writer at a time, and whoever has got the shard may give it
//! on at once.
//!
//! Since the queue only says "look at this flow", a flow may be passed on, late and out of order, without harm.
//!
//! # Thread-safety
//! Shared by workers, agents and the control thread. An agent only reads the routes; nothing here makes it wait.

use std::sync::atomic::{AtomicBool as Flag, AtomicU8 as PlanEntry, AtomicU64 as Word, AtomicUsize as Size, fence};
use std::sync::{Arc as StdArc, Mutex as StdMutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;

use super::backend::{BackendCaps, Device, Fence};
use super::events::Events;
use super::mark::{MarkLease, MarkPool, Quarantined};
use super::queue::Queue;
use super::report::Report;
use super::settings::Settings;
use super::state::MatchHasher;
use super::worker::{Lanes, Message};
use crate::sync::{Arc, AtomicU8, Ordering};

/// The most workers; the model checker makes do with fewer.
pub const WORKERS: usize = if cfg!(loom) { 2 } else { 16 };

/// Parts that megaflows are dealt out in.
pub const SHARDS: usize = if cfg!(loom) { 2 } else { 64 };

/// The shard of megaflows with this hash.
pub fn shard_of(hash: u64) -> usize {
    (hash % SHARDS as u64) as usize
}

/// What the workers of one device have in common, from a start or a resumption to the end or the device's failing.
pub(crate) struct Crew {
    /// How many there were before it.
    pub life: u32,
    pub device: StdArc<dyn Device>,
    pub caps: BackendCaps,
    pub fence: Fence,
    /// The moment that nanoseconds count from.
    pub start: Instant,
    pub settings: StdArc<Settings>,
    pub events: StdArc<Events>,
    pub hasher: MatchHasher,
    /// One for each worker there can be.
    pub lanes: Vec<Arc<Lanes>>,
    pub posts: Vec<CachePadded<Post>>,
    routes: Vec<AtomicU8>,
    plan: Vec<PlanEntry>,
    marks: StdMutex<MarkPool>,
    throttle: StdMutex<Bucket>,
    off: OnceLock<String>,
    renewed: Flag,
    stopping: Flag,
    /// The number of the newest flush.
    flushes: Word,
    /// Rules and marks given back so far: whoever waits for room knows by it that there is some.
    freed: Word,
    /// The number of the newest change of the device's way to a port.
    ways: Word,
    /// The workers with rules that wait for room, a bit for each.
    hungry: Word,
}

/// What one worker tells the others and its watchers.
#[derive(Default)]
pub(crate) struct Post {
    /// When the operation under way began, in nanoseconds from [`Crew::start`], plus one; 0 = none is.
    operation: Word,
    /// Rules that wait for room.
    pub waiting: Size,
    /// Rules in the device.
    pub in_device: Size,
    pub report: StdMutex<Report>,
}

/// A token bucket.
#[derive(Default)]
struct Bucket {
    tokens: f64,
    filled: Option<Instant>,
}

impl Crew {
    pub fn new(
        life: u32,
        device: StdArc<dyn Device>,
        start: Instant,
        (settings, events): (StdArc<Settings>, StdArc<Events>),
        config: &super::OffloadConfig,
        threads: usize,
    ) -> Crew {
        let (caps, fence) = (device.capabilities(), device.fence());
        let marks = MarkPool::new(caps.mark_bits.min(config.mark_bits));
        let dealt = |shard: usize| (shard % threads.clamp(1, WORKERS)) as u8;
        Crew {
            life,
            device,
            caps,
            fence,
            start,
            settings,
            events,
            hasher: MatchHasher::default(),
            lanes: (0..WORKERS).map(|_| Arc::new(Queue::new(config.queue_limit, config.queue_bytes))).collect(),
            posts: (0..WORKERS).map(|_| CachePadded::default()).collect(),
            routes: (0..SHARDS).map(|shard| AtomicU8::new(dealt(shard))).collect(),
            plan: (0..SHARDS).map(|shard| PlanEntry::new(dealt(shard))).collect(),
            marks: StdMutex::new(marks),
            throttle: StdMutex::default(),
            off: OnceLock::new(),
            renewed: Flag::new(life == 0),
            stopping: Flag::new(false),
            flushes: Word::new(0),
            freed: Word::new(0),
            ways: Word::new(0),
            hungry: Word::new(0),
        }
    }

    /// The queue of the worker that sees to megaflows with this hash. One load.
    #[inline]
    pub fn queue_for(&self, hash: u64) -> &Arc<Lanes> {
        &self.lanes[self.route(shard_of(hash))]
    }

    /// The worker whose queue a shard's flows go to.
    pub fn route(&self, shard: usize) -> usize {
        self.routes[shard].load(Ordering::Acquire) as usize
    }

    /// The worker's that gives the shard away, before the message that gives it.
    pub fn set_route(&self, shard: usize, worker: usize) {
        self.routes[shard].store(worker as u8, Ordering::Release);
    }

    /// The worker that a shard should belong to.
    pub fn planned(&self, shard: usize) -> usize {
        self.plan[shard].load(Ordering::Acquire) as usize
    }

    /// The shards whose flows go to worker `id`.
    pub fn shards_of(&self, id: usize) -> [bool; SHARDS] {
        std::array::from_fn(|shard| self.route(shard) == id)
    }

    /// Deals the shards out to the first `threads` workers.
    pub fn deal(&self, threads: usize) {
        for (shard, entry) in self.plan.iter().enumerate() {
            entry.store((shard % threads.clamp(1, WORKERS)) as u8, Ordering::Release);
        }
    }

    /// The number for a flush: greater than all before.
    pub fn next_flush(&self) -> u64 {
        self.flushes.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Why the device is not used any more.
    pub fn off(&self) -> Option<&str> {
        self.off.get().map(String::as_str)
    }

    /// The device is not used any more, and its marks are ignored from this moment. `false`: it was off before.
    pub fn fail(&self, why: String) -> bool {
        let first = self.off.set(why).is_ok();
        if first {
            // Once a life: whoever comes back from a former one has no say about the present.
            fence(Ordering::SeqCst);
            self.fence.raise();
        }
        self.lanes.iter().for_each(|lanes| lanes.ask(Message::Look));
        first
    }

    /// The device's marks may be trusted, unless it has failed meanwhile: with the two fences, either that is seen here, or
    /// the fence is raised later than it is lowered here.
    pub fn trust(&self) {
        self.fence.lower();
        fence(Ordering::SeqCst);
        if self.off.get().is_some() {
            self.fence.raise();
        }
    }

    /// Whether every poller has an agent of this life, and no mark of a former one.
    pub fn is_renewed(&self) -> bool {
        self.renewed.load(Ordering::Acquire)
    }

    pub fn set_renewed(&self) {
        self.renewed.store(true, Ordering::Release);
        self.poke();
    }

    /// Lets every worker look again at what is due.
    pub fn poke(&self) {
        self.lanes.iter().for_each(|lanes| lanes.poke());
    }

    /// Whether the workers have been told to end: nothing is handed from one to another any more.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    pub fn set_stopping(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// The number of the newest flush: what a rule that is put now is younger than.
    pub fn newest_flush(&self) -> u64 {
        self.flushes.load(Ordering::Relaxed)
    }

    pub fn take_mark(&self) -> Option<MarkLease> {
        self.marks().take()
    }

    /// See [`MarkPool::give_back`].
    pub fn give_mark_back(&self, lease: MarkLease) {
        self.marks().give_back(lease);
    }

    /// See [`MarkPool::release`].
    pub fn release_mark(&self, mark: Quarantined) -> Result<(), Quarantined> {
        self.marks().release(mark)
    }

    /// Marks leased or in quarantine, and all there are.
    pub fn marks_taken(&self) -> (u64, u64) {
        let marks = self.marks();
        (marks.taken(), marks.capacity())
    }

    /// Room has appeared: wakes those that wait for it.
    pub fn freed(&self, by: usize) {
        // In one order with `set_waiting` and the look that follows it: either they are seen here, or they see the room.
        self.freed.fetch_add(1, Ordering::SeqCst);
        let others = self.hungry.load(Ordering::SeqCst) & !(1 << by);
        if others != 0 {
            (0..WORKERS).filter(|id| others & (1 << id) != 0).for_each(|id| self.lanes[id].poke());
        }
    }

    /// So many of a worker's rules wait for room.
    pub fn set_waiting(&self, id: usize, rules: usize) {
        let before = self.posts[id].waiting.swap(rules, Ordering::Relaxed);
        match (before, rules) {
            (0, 1..) => self.hungry.fetch_or(1 << id, Ordering::SeqCst),
            (1.., 0) => self.hungry.fetch_and(!(1 << id), Ordering::SeqCst),
            _ => return,
        };
    }

    /// The number of a change of the device's way to a port: greater than all before.
    pub fn next_way(&self) -> u64 {
        self.ways.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// The number of the newest such change: what a rule that is put now knows of.
    pub fn newest_way(&self) -> u64 {
        self.ways.load(Ordering::SeqCst)
    }

    /// How much room has appeared so far.
    pub fn room_so_far(&self) -> u64 {
        self.freed.load(Ordering::SeqCst)
    }

    /// Whether a put or change may be asked of the device at `now`; otherwise when.
    pub fn may_operate(&self, now: Instant) -> Result<(), Instant> {
        let rate = self.settings.operation_rate();
        if rate == 0 {
            return Ok(());
        }
        self.bucket().look(rate, now)
    }

    /// An operation is asked of the device.
    pub fn operated(&self) {
        let rate = self.settings.operation_rate();
        if rate > 0 {
            self.bucket().spend(rate);
        }
    }

    pub(super) fn marks(&self) -> MutexGuard<'_, MarkPool> {
        // Each call is one change of a list and a number, so whoever panicked left at worst a mark unused.
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bucket(&self) -> MutexGuard<'_, Bucket> {
        // Any number of tokens will do.
        self.throttle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bucket {
    /// What is not held back makes debts, of a second's tokens at most: puts and changes must go on some time.
    fn spend(&mut self, rate: u64) {
        self.tokens = (self.tokens - 1.0).max(-(rate as f64));
    }

    /// Holds a tenth of a second's tokens at most.
    fn look(&mut self, rate: u64, now: Instant) -> Result<(), Instant> {
        let rate = rate as f64;
        let most = (rate / 10.0).max(1.0);
        let since = self.filled.map_or(f64::INFINITY, |filled| now.saturating_duration_since(filled).as_secs_f64());
        self.tokens = (self.tokens + since * rate).min(most);
        self.filled = Some(self.filled.map_or(now, |filled| filled.max(now)));
        if self.tokens >= 1.0 {
            return Ok(());
        }
        Err(now + Duration::from_secs_f64((1.0 - self.tokens) / rate))
    }
}

impl Post {
    pub fn begin(&self, start: Instant, now: Instant) {
        self.operation.store(now.saturating_duration_since(start).as_nanos() as u64 + 1, Ordering::Relaxed);
    }

    pub fn end(&self) {
        self.operation.store(0, Ordering::Relaxed);
    }

    /// How long the operation under way has taken at `now`.
    pub fn busy_for(&self, start: Instant, now: Instant) -> Option<Duration> {
        let began = self.operation.load(Ordering::Relaxed).checked_sub(1)?;
        Some(now.saturating_duration_since(start).saturating_sub(Duration::from_nanos(began)))
    }

    pub fn report(&self) -> MutexGuard<'_, Report> {
        // Counts are right one by one, so those of a poisoned report are still good.
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_lets_so_many_through_a_second_and_removals_count() {
        let start = Instant::now();
        let mut bucket = Bucket::default();
        let mut passed = 0;
        let mut now = start;
        while now < start + Duration::from_secs(10) {
            match bucket.look(100, now) {
                Ok(()) => {
                    bucket.spend(100);
                    passed += 1;
                }
                Err(due) => now = due,
            }
        }
        assert!((1_000..=1_011).contains(&passed), "{passed}");
        (0..50).for_each(|_| bucket.spend(100));
        let due = bucket.look(100, now).unwrap_err();
        assert!(due > now + Duration::from_millis(450), "fifty removals are half a second");
        (0..100_000).for_each(|_| bucket.spend(100));
        let due = bucket.look(100, now).unwrap_err();
        assert!(due <= now + Duration::from_millis(1_010), "debts have a bound");
    }
}
