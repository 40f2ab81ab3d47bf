//! [`OffloadCell`]: what one poller's flow and the worker know of each other.
//!
//! ```text
//!                 put                popped                 backend ok
//!    Software ─────────► Queued ───────────► Installing ─────────────► Offloaded(Mark | Full)
//!     ▲  ▲  ▲              │                     │                         │
//!     │  │  └─ queue full ─┤ (counted)           │ refused                 │ flow died, changed, or evicted
//!     │  │                 │ flow died           ▼                         ▼
//!     │  │                 ▼                 Refused(why)              Removing ── flow died ──► Gone
//!     │  │                Gone                   │                         │
//!     │  └── actions changed, room again, backoff over                     │
//!     └───────────────── flow lives on: changed, evicted, flushed ─────────┘
//! ```
//!
//! The drawing is what dumps show. What drives the trip is level-triggered, in both directions: one side publishes
//! the new state, then claims the cell's link ([`crate::sys::stack`]), and pushes the cell if the claim succeeded; the
//! other side gives the link up, then reads the state. So a cell is in a lane at most once, and whoever reads it last
//! reads the newest.
//!
//! # Thread-safety
//! What the flow wants is written by its poller; the mark, the outcome and the device's counts by the worker. Before
//! the flow was first let into the queue the outcome is the poller's too. Anybody may read.

use std::fmt;
use std::hash::BuildHasher;
use std::sync::atomic::AtomicUsize as AtomicCount;
use std::sync::{Arc as StdArc, OnceLock};
use std::time::{Duration, Instant};

use super::agent::Mailbox;
use super::mark::Mark;
use super::queue::Weigh;
use super::trouble::{Reason, Trouble};
use crate::flow::{Actions, Match, Ufid};
use crate::sync::{Arc, AtomicBool, AtomicU32, AtomicU64, Ordering};
use crate::sys::stack::Node;

/// How far a device takes a flow.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Helps the software path: packets arrive marked.
    Mark,
    /// Replaces it.
    Full,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Level::Mark => "mark",
            Level::Full => "full",
        })
    }
}

/// Where a flow stands on its trip, as dumps show it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    Software,
    Queued,
    Installing,
    Offloaded(Level),
    Refused(Reason),
    Removing,
    Gone,
}

impl Standing {
    /// In a word.
    pub fn name(&self) -> &'static str {
        match self {
            Standing::Software => "software",
            Standing::Queued => "queued",
            Standing::Installing => "installing",
            Standing::Offloaded(Level::Mark) => "mark",
            Standing::Offloaded(Level::Full) => "full",
            Standing::Refused(_) => "refused",
            Standing::Removing => "removing",
            Standing::Gone => "gone",
        }
    }

    fn code(self) -> u32 {
        match self {
            Standing::Software => 0,
            Standing::Queued => 1,
            Standing::Installing => 2,
            Standing::Removing => 3,
            Standing::Gone => 4,
            Standing::Offloaded(Level::Mark) => 5,
            Standing::Offloaded(Level::Full) => 6,
            Standing::Refused(why) => 7 + why as u32,
        }
    }

    fn from_code(code: u32) -> Standing {
        match code {
            1 => Standing::Queued,
            2 => Standing::Installing,
            3 => Standing::Removing,
            4 => Standing::Gone,
            5 => Standing::Offloaded(Level::Mark),
            6 => Standing::Offloaded(Level::Full),
            _ => match Reason::ALL.get((code as usize).wrapping_sub(7)) {
                Some(&why) => Standing::Refused(why),
                None => Standing::Software,
            },
        }
    }
}

/// Packets and bytes of a flow, and when the last came (nanoseconds on the daemon's clock; 0 = never).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct FlowStats {
    pub packets: u64,
    pub bytes: u64,
    pub used_ns: u64,
}

impl FlowStats {
    /// The most packets or bytes that are believed of a device. No flow comes near, and with what a poller counts added it is
    /// still a number.
    pub const MOST: u64 = 1 << 62;

    /// What came since `earlier`; nothing where a counter went back, as after a device's reset.
    pub fn since(&self, earlier: &FlowStats) -> FlowStats {
        FlowStats {
            packets: self.packets.saturating_sub(earlier.packets),
            bytes: self.bytes.saturating_sub(earlier.bytes),
            used_ns: self.used_ns,
        }
    }
}

/// Which flow of its poller a cell belongs to: an index that is used again, and a generation that is not.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FlowSlot {
    pub index: u32,
    pub generation: u32,
}

/// What one poller's flow and the worker know of each other. The node's links are the flow's place in the two lanes
/// to the worker and in the poller's inbox.
pub type OffloadCell = Node<Cell>;

/// The content of an [`OffloadCell`].
pub struct Cell {
    slot: FlowSlot,
    ufid: Ufid,
    matching: Match,
    hash: u64,
    mailbox: Arc<Mailbox>,
    wants: Published<Wants>,
    /// The poller asked for removal. Never taken back.
    dead: AtomicBool,
    /// It was let into the queue once. The poller's.
    admitted: AtomicBool,
    /// When the oldest request that is not done yet was made: nanoseconds on the offload's clock, plus one; 0 = none.
    requested: AtomicU64,
    /// Code of the outcome. Without `Queued`, which follows from the link.
    outcome: AtomicU32,
    /// Why the outcome is not what was wanted.
    trouble: Note,
    mark: AtomicU32,
    /// The device has counted a packet of it since it was last put.
    confirmed: AtomicBool,
    packets: AtomicU64,
    bytes: AtomicU64,
    used_ns: AtomicU64,
    /// When the device was last asked for its counts; 0 = not since it was last put.
    read_ns: AtomicU64,
    /// Packets that the poller has counted, as of its last sweep. The poller's.
    software: AtomicU64,
    /// Who gets what the device counts after the flow's death.
    heir: OnceLock<StdArc<dyn Heir>>,
    /// Which life of the offload path it belongs to.
    life: u32,
    _counted: Counted,
}

/// How many cells there are, whoever holds them.
///
/// # Thread-safety
/// Clones share one count. Cells are made and dropped by any thread.
#[derive(Clone, Debug, Default)]
pub struct Census(StdArc<AtomicCount>);

/// A cell in the census, for as long as it lives.
struct Counted(Census);

impl Census {
    pub fn cells(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    fn enter(&self) -> Counted {
        self.0.fetch_add(1, Ordering::Relaxed);
        Counted(self.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Who gets what the device counted between a flow's death and the moment it forgot the rule.
pub trait Heir: Send + Sync {
    /// `stats`: everything that the device forwarded by itself over the cell's life. Called once, by the worker, if at all.
    fn inherit(&self, stats: FlowStats);
}

/// What a flow should do, as decided by decision number `decision`: the highest wins among several owners.
#[derive(Clone, Debug)]
pub struct Wants {
    pub actions: Actions,
    pub decision: u64,
}

/// Says that two matches are the same megaflow, for tables and for the choice of a worker. Seeded, because packets'
/// authors choose matches.
#[cfg(not(loom))]
pub type MatchHasher = foldhash::fast::RandomState;

/// The same in every run, which is what the model checker asks for.
#[cfg(loom)]
pub type MatchHasher = foldhash::fast::FixedState;

impl Cell {
    pub(super) fn new(
        slot: FlowSlot,
        ufid: Ufid,
        matching: Match,
        wants: Wants,
        hasher: &MatchHasher,
        mailbox: Arc<Mailbox>,
        life: u32,
    ) -> OffloadCell {
        Node::new(Cell {
            slot,
            ufid,
            _counted: mailbox.census().enter(),
            hash: hasher.hash_one(matching),
            matching,
            mailbox,
            wants: Published::new(wants),
            dead: AtomicBool::new(false),
            admitted: AtomicBool::new(false),
            requested: AtomicU64::new(0),
            outcome: AtomicU32::new(Standing::Software.code()),
            trouble: Note::default(),
            mark: AtomicU32::new(0),
            confirmed: AtomicBool::new(false),
            packets: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            used_ns: AtomicU64::new(0),
            read_ns: AtomicU64::new(0),
            software: AtomicU64::new(0),
            heir: OnceLock::new(),
            life,
        })
    }

    pub fn slot(&self) -> FlowSlot {
        self.slot
    }

    pub fn ufid(&self) -> Ufid {
        self.ufid
    }

    pub fn matching(&self) -> &Match {
        &self.matching
    }

    /// What the flow wants to do now.
    pub fn actions(&self) -> Actions {
        self.wants.load().actions.clone()
    }

    /// The mark that packets of this flow carry now, which the poller should have bound to it.
    #[inline]
    pub fn mark(&self) -> Option<Mark> {
        Mark::new(self.mark.load(Ordering::Acquire))
    }

    /// What the device forwarded by itself. Each number is right by itself; together they may be of two moments.
    pub fn device_stats(&self) -> FlowStats {
        FlowStats {
            packets: self.packets.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            used_ns: self.used_ns.load(Ordering::Relaxed),
        }
    }

    /// Why the flow is not as far in the device as wanted; `None` while nothing is in its way.
    pub fn trouble(&self) -> Option<StdArc<Trouble>> {
        self.trouble.read()
    }

    /// Whether the device has been seen to match a packet of the flow since it was last put.
    pub fn is_confirmed(&self) -> bool {
        self.confirmed.load(Ordering::Relaxed)
    }

    /// When the counts of [`Cell::device_stats`] were read, in nanoseconds on the daemon's clock; 0 = not since the flow was
    /// last put.
    pub fn read_ns(&self) -> u64 {
        self.read_ns.load(Ordering::Relaxed)
    }

    /// The poller's: how many packets of the flow it has counted.
    #[inline]
    pub fn publish_software(&self, packets: u64) {
        self.software.store(packets, Ordering::Relaxed);
    }

    /// Packets of the flow that anybody has counted, as far as known.
    pub(super) fn seen(&self) -> u64 {
        self.software.load(Ordering::Relaxed).wrapping_add(self.packets.load(Ordering::Relaxed))
    }

    pub(super) fn life(&self) -> u32 {
        self.life
    }

    /// The poller's, before it releases the flow.
    pub fn leave_to(&self, heir: StdArc<dyn Heir>) {
        // A flow dies once; a second heir would be a mistake, and gets nothing.
        let _ = self.heir.set(heir);
    }

    /// The worker's: the flow is dead and the device has forgotten it.
    pub(super) fn settle_estate(&self) {
        if let Some(heir) = self.heir.get() {
            heir.inherit(self.device_stats());
        }
    }

    /// The id of the poller whose flow it is.
    pub fn poller(&self) -> u32 {
        self.mailbox.poller()
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    /// The newest wants.
    pub fn wants(&self) -> std::sync::Arc<Wants> {
        self.wants.load()
    }

    /// Whether the flow has been released.
    #[inline]
    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    pub(super) fn is_admitted(&self) -> bool {
        self.admitted.load(Ordering::Relaxed)
    }

    pub(super) fn admit(&self) {
        self.admitted.store(true, Ordering::Relaxed);
    }

    /// The poller's: publishes what the flow wants. Lock-free; costs one small allocation, as decisions do.
    pub(super) fn want(&self, wants: Wants) {
        self.wants.store(wants);
    }

    /// The poller's: publishes that the flow is dead.
    pub(super) fn die(&self) {
        self.dead.store(true, Ordering::Release);
    }

    /// The poller's: remembers when the oldest open request was made.
    pub(super) fn request(&self, since_start: Duration) {
        if self.requested.load(Ordering::Relaxed) == 0 {
            self.requested.store(since_start.as_nanos() as u64 + 1, Ordering::Relaxed);
        }
    }

    /// When the oldest open request was made, since the offload's start; `None`: there is none.
    pub(super) fn requested(&self) -> Option<Duration> {
        self.requested.load(Ordering::Relaxed).checked_sub(1).map(Duration::from_nanos)
    }

    /// The worker's: closes the open request and says how long it was open.
    pub(super) fn answer(&self, since_start: Duration) -> Option<Duration> {
        let requested = self.requested.swap(0, Ordering::Relaxed).checked_sub(1)?;
        Some(since_start.saturating_sub(Duration::from_nanos(requested)))
    }

    pub(super) fn set_outcome(&self, outcome: Standing) {
        self.outcome.store(outcome.code(), Ordering::Relaxed);
    }

    pub(super) fn set_trouble(&self, trouble: Option<&StdArc<Trouble>>) {
        self.trouble.write(trouble.cloned());
    }

    pub(super) fn outcome(&self) -> Standing {
        Standing::from_code(self.outcome.load(Ordering::Relaxed))
    }

    /// The worker's: counts what the device forwarded by itself since the last time.
    pub(super) fn add_device_stats(&self, more: &FlowStats) {
        let add = |total: &AtomicU64, n: u64| {
            let sum = total.load(Ordering::Relaxed).saturating_add(n);
            total.store(sum.min(FlowStats::MOST), Ordering::Relaxed);
        };
        add(&self.packets, more.packets);
        add(&self.bytes, more.bytes);
        self.used_ns.fetch_max(more.used_ns, Ordering::Relaxed);
    }
}

/// The worker's words about a rule in the device.
impl Cell {
    /// It was just put: nothing that was known of an earlier rule holds for it.
    pub(super) fn begin_reading(&self) {
        self.confirmed.store(false, Ordering::Relaxed);
        self.read_ns.store(0, Ordering::Relaxed);
    }

    /// Its counts were read at `read_ns`. `hit`: the device has matched a packet.
    pub(super) fn note_reading(&self, read_ns: u64, hit: bool) {
        self.read_ns.store(read_ns, Ordering::Relaxed);
        if hit && !self.is_confirmed() {
            self.confirmed.store(true, Ordering::Relaxed);
        }
    }
}

impl Weigh for Cell {
    /// The cell and its wants, without what long lists of actions keep elsewhere.
    fn weigh(&self) -> usize {
        size_of::<OffloadCell>() + size_of::<Wants>()
    }
}

impl OffloadCell {
    /// Where the flow stands now.
    pub fn standing(&self) -> Standing {
        let waits = Node::is_claimed::<{ super::queue::PUT }>(self);
        match self.outcome() {
            Standing::Software | Standing::Refused(_) if waits => Standing::Queued,
            outcome => outcome,
        }
    }

    /// The worker's: publishes the mark and, where it changed and the flow lives, has the poller look.
    pub(super) fn publish_mark(cell: &Arc<OffloadCell>, mark: Option<Mark>) {
        let value = mark.map_or(0, |mark| mark.0.get());
        if cell.mark.load(Ordering::Relaxed) == value {
            return;
        }
        cell.mark.store(value, Ordering::Release);
        if !cell.is_dead() {
            cell.mailbox.deliver(cell);
        }
    }

    /// Whether the poller has looked at every mark that was published.
    pub(super) fn is_delivered(&self) -> bool {
        self.is_dead() || !Node::is_claimed::<{ super::agent::INBOX }>(self)
    }
}

/// Wants are few words that change together, with one writer and any number of readers. Most never change, and cost no more
/// than a reference count.
#[cfg(not(loom))]
struct Published<T> {
    first: StdArc<T>,
    later: OnceLock<arc_swap::ArcSwap<T>>,
}

#[cfg(not(loom))]
impl<T> Published<T> {
    fn new(value: T) -> Published<T> {
        Published { first: StdArc::new(value), later: OnceLock::new() }
    }

    fn load(&self) -> StdArc<T> {
        self.later.get().map_or_else(|| StdArc::clone(&self.first), |later| later.load_full())
    }

    fn store(&self, value: T) {
        let value = StdArc::new(value);
        match self.later.get() {
            Some(later) => later.store(value),
            // There is one writer, so nobody else has set it meanwhile.
            None => drop(self.later.set(arc_swap::ArcSwap::new(value))),
        }
    }
}

/// The model checker cannot look into `ArcSwap`; a mutex gives it the same values.
#[cfg(loom)]
struct Published<T>(crate::sync::Mutex<std::sync::Arc<T>>);

#[cfg(loom)]
impl<T> Published<T> {
    fn new(value: T) -> Published<T> {
        Published(crate::sync::Mutex::new(std::sync::Arc::new(value)))
    }

    fn load(&self) -> std::sync::Arc<T> {
        std::sync::Arc::clone(&self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }

    fn store(&self, value: T) {
        *self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = std::sync::Arc::new(value);
    }
}

/// What is noted of a flow now and then, and read by dumps. Of most flows nothing ever is.
#[cfg(not(loom))]
#[derive(Default)]
struct Note(OnceLock<arc_swap::ArcSwapOption<Trouble>>);

#[cfg(not(loom))]
impl Note {
    fn read(&self) -> Option<StdArc<Trouble>> {
        self.0.get()?.load_full()
    }

    fn write(&self, trouble: Option<StdArc<Trouble>>) {
        if trouble.is_some() || self.0.get().is_some() {
            self.0.get_or_init(arc_swap::ArcSwapOption::default).store(trouble);
        }
    }
}

#[cfg(loom)]
#[derive(Default)]
struct Note(std::sync::Mutex<Option<StdArc<Trouble>>>);

/// Nothing depends on it, so the model checker need not look at it.
#[cfg(loom)]
impl Note {
    fn read(&self) -> Option<StdArc<Trouble>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    fn write(&self, trouble: Option<StdArc<Trouble>>) {
        *self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = trouble;
    }
}

/// The clock that requests are timed by: what has passed since the offload was started.
pub(super) fn since(start: Instant, now: Instant) -> Duration {
    now.saturating_duration_since(start)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn every_standing_survives_its_code() {
        let mut all = vec![
            Standing::Software,
            Standing::Queued,
            Standing::Installing,
            Standing::Removing,
            Standing::Gone,
            Standing::Offloaded(Level::Mark),
            Standing::Offloaded(Level::Full),
        ];
        all.extend(Reason::ALL.map(Standing::Refused));
        for (i, standing) in all.iter().enumerate() {
            assert_eq!(Standing::from_code(standing.code()), *standing);
            assert!(all[..i].iter().all(|other| other.code() != standing.code()));
        }
    }

    #[test]
    fn a_counter_that_went_back_adds_nothing() {
        let (before, after) =
            (FlowStats { packets: 9, bytes: 90, used_ns: 1 }, FlowStats { packets: 2, bytes: 20, used_ns: 5 });
        assert_eq!(after.since(&before), FlowStats { packets: 0, bytes: 0, used_ns: 5 });
    }
}
