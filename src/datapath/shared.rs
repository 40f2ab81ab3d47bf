//! [`Shared`]: the little that all pollers of a datapath have in common.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::emc::ENTRIES;
use crate::slowpath::Slowpath;

/// What all pollers have in common.
///
/// # Thread-safety
/// Atomics that slow paths touch; packets that hit read [`Slowpath::epoch`] alone.
pub struct Shared {
    pub slowpath: Arc<Slowpath>,
    /// The moment that nanosecond counts start from.
    pub start: Instant,
    /// Decided flows of all pollers.
    flows: AtomicUsize,
    /// Flows added by hand, each counted in every poller that has it.
    by_hand: AtomicUsize,
    /// The most decided flows of all pollers.
    flow_limit: AtomicUsize,
    /// Milliseconds without a packet after which a decided flow is deleted, while there is room.
    max_idle_ms: AtomicU64,
    /// Numbers decisions, so that of two pollers with one megaflow the newest wins.
    decisions: AtomicU64,
    /// Pollers spin instead of sleeping.
    pub busy_poll: AtomicBool,
    /// Flows are neither expired nor revalidated by sweeps.
    sweep_paused: AtomicBool,
    /// Entries in each poller's exact-match cache.
    emc_entries: AtomicUsize,
}

/// Flow counts above this share of the limit (in percent) make flows expire faster.
const CROWDED_PERCENT: usize = 75;
/// Idle time allowed at the limit.
const MIN_IDLE: Duration = Duration::from_millis(100);

impl Shared {
    pub fn new(
        slowpath: Arc<Slowpath>,
        start: Instant,
        flow_limit: usize,
        max_idle: Duration,
        busy_poll: bool,
    ) -> Shared {
        Shared {
            slowpath,
            start,
            flows: AtomicUsize::new(0),
            by_hand: AtomicUsize::new(0),
            flow_limit: AtomicUsize::new(flow_limit),
            max_idle_ms: AtomicU64::new(max_idle.as_millis() as u64),
            decisions: AtomicU64::new(1),
            busy_poll: AtomicBool::new(busy_poll),
            sweep_paused: AtomicBool::new(false),
            emc_entries: AtomicUsize::new(ENTRIES),
        }
    }

    /// Nanoseconds from [`Shared::start`] to `now`, at least 1: 0 means never.
    #[inline]
    pub fn nanos(&self, now: Instant) -> u64 {
        (now.saturating_duration_since(self.start).as_nanos() as u64).max(1)
    }

    /// A number above all given so far. Take it before looking at what the decision depends on.
    pub fn decision_number(&self) -> u64 {
        self.decisions.fetch_add(1, Ordering::Relaxed)
    }

    /// Makes room for one more decided flow, if there is any.
    pub fn admit(&self) -> bool {
        let limit = self.flow_limit.load(Ordering::Relaxed);
        let one_more = |flows| (flows < limit).then_some(flows + 1);
        self.flows.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
    }

    /// Gives back the room of `n` decided flows.
    pub fn forget(&self, n: usize) {
        self.flows.fetch_sub(n, Ordering::Relaxed);
    }

    /// One more flow by hand.
    pub fn add_by_hand(&self) {
        self.by_hand.fetch_add(1, Ordering::Relaxed);
    }

    /// One less.
    pub fn forget_by_hand(&self) {
        self.by_hand.fetch_sub(1, Ordering::Relaxed);
    }

    /// Flows added by hand, of all pollers.
    pub fn by_hand(&self) -> usize {
        self.by_hand.load(Ordering::Relaxed)
    }

    /// Decided flows of all pollers.
    pub fn flows(&self) -> usize {
        self.flows.load(Ordering::Relaxed)
    }

    pub fn flow_limit(&self) -> usize {
        self.flow_limit.load(Ordering::Relaxed)
    }

    pub fn set_flow_limit(&self, limit: usize) {
        self.flow_limit.store(limit, Ordering::Relaxed);
    }

    /// Whether sweeps are paused: no flow expires, and none is revalidated unless a packet of it comes.
    pub fn is_sweep_paused(&self) -> bool {
        self.sweep_paused.load(Ordering::Relaxed)
    }

    pub(super) fn pause_sweep(&self, paused: bool) {
        self.sweep_paused.store(paused, Ordering::Relaxed);
    }

    /// Entries in the exact-match cache of a poller, also of those that start later.
    pub fn emc_entries(&self) -> usize {
        self.emc_entries.load(Ordering::Relaxed)
    }

    pub(super) fn set_emc_entries(&self, entries: usize) {
        self.emc_entries.store(entries, Ordering::Relaxed);
    }

    pub fn set_max_idle(&self, max_idle: Duration) {
        self.max_idle_ms.store(max_idle.as_millis() as u64, Ordering::Relaxed);
    }

    /// How long a decided flow may be idle now: the configured time up to three quarters of the flow limit, then
    /// linearly less, down to 100 ms at the limit.
    pub fn max_idle(&self) -> Duration {
        let full = Duration::from_millis(self.max_idle_ms.load(Ordering::Relaxed));
        let (flows, limit) = (self.flows(), self.flow_limit().max(1));
        let crowded = limit * CROWDED_PERCENT / 100;
        if flows <= crowded {
            return full;
        }
        let left = limit.saturating_sub(flows) as f64 / (limit - crowded).max(1) as f64;
        full.mul_f64(left).max(MIN_IDLE.min(full))
    }
}
