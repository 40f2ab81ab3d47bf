//! The rules: [`RuleSpec`] as somebody wrote it, [`Rule`] as it stands in a table, [`RuleSet`] all of them at one moment.
//!
//! A set never changes. Whoever wants another takes a [`Draft`] of it, adds and removes, and freezes the draft into
//! the next set. Tables and subtables that a draft does not touch are shared with the set it came from, so the price of
//! a change is that of the subtables it touches (a few milliseconds for one of 10,000 rules), however many are changed at once.
//!
//! # Thread-safety
//! [`RuleSet`] is immutable and shared by reference count. [`RuleStats`] are atomics that anybody may add to.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::classify::Table;
use crate::flow::{Assign, Match, PortNo};

/// The most rules that a set holds.
pub const MAX_RULES: usize = 1_000_000;

/// How late the counts of a device may come: a second between its readings, half of one between sweeps, and some.
const DEVICE_LAG: Duration = Duration::from_secs(2);

/// The priority of a rule that names none.
pub const DEFAULT_PRIORITY: u16 = 32_768;

/// The highest table; 255 means "every table" to OpenFlow and is no table.
pub const MAX_TABLE: u8 = 254;

/// A rule as it was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RuleSpec {
    /// 0 to [`MAX_TABLE`]. A packet's trip begins in table 0.
    pub table: u8,
    /// The higher wins; among equals, the rule that has stood longer.
    pub priority: u16,
    /// Whatever its author wants to find it by.
    pub cookie: u64,
    /// Seconds without a packet after which it goes; 0 = never.
    pub idle_timeout: u16,
    /// Seconds of life after which it goes; 0 = never.
    pub hard_timeout: u16,
    pub matching: Match,
    /// Empty = drop.
    pub actions: Arc<[RuleAction]>,
}

/// One step of a rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RuleAction {
    /// Sends to a port, unless the packet came from it.
    Output(PortNo),
    /// Sends back to where the packet came from.
    InPort,
    /// Sends to every port but the one it came from.
    Flood,
    /// The same as [`RuleAction::Flood`]: no port is kept out of floods yet.
    All,
    /// Does what a learning switch does.
    Normal,
    /// Puts a tag with this TPID, vid 0 and pcp 0 in front.
    PushVlan(u16),
    /// Takes the outermost tag away, if there is one.
    PopVlan,
    /// Writes the outermost tag's vid; without a tag, adds one with TPID 0x8100 first.
    ModVlanVid(u16),
    /// Writes the outermost tag's pcp; without a tag, adds one with TPID 0x8100 and vid 0 first.
    ModVlanPcp(u8),
    /// Writes bits of a field.
    Set(Assign),
    /// Takes one from the TTL or hop limit; at 1 or 0 the packet's trip ends instead.
    DecTtl,
    /// Looks up another table and comes back. `port` stands in for `in_port` in that one lookup; without `table`, this rule's own.
    Resubmit { port: Option<PortNo>, table: Option<u8> },
    /// Looks up a later table and does not come back.
    Goto(u8),
}

/// A rule's place in the order of its table: the greater wins.
pub(super) type Rank = (u16, Reverse<u64>);

/// A rule in a table.
#[derive(Debug)]
pub struct Rule {
    pub spec: RuleSpec,
    pub stats: Arc<RuleStats>,
    /// Rises with each rule added: the smaller has stood longer.
    age: u64,
}

impl Rule {
    pub(super) fn rank(&self) -> Rank {
        (self.spec.priority, Reverse(self.age))
    }

    /// Whether one of its timeouts has passed.
    fn is_expired(&self, now: Instant) -> bool {
        let past = |since: Instant, seconds: u16| {
            seconds != 0 && now.saturating_duration_since(since) >= Duration::from_secs(seconds.into())
        };
        past(self.stats.created(), self.spec.hard_timeout)
            || (past(self.stats.used(), self.spec.idle_timeout)
                && past(self.stats.used() + self.stats.lag(now), self.spec.idle_timeout))
    }

    fn is_timed(&self) -> bool {
        self.spec.idle_timeout != 0 || self.spec.hard_timeout != 0
    }
}

/// What a rule has done so far.
///
/// # Thread-safety
/// Any thread may credit and read. Counts are exact; a reader may see packets before their bytes.
#[derive(Debug)]
pub struct RuleStats {
    created: Instant,
    packets: AtomicU64,
    bytes: AtomicU64,
    /// Nanoseconds from `created` to the last packet.
    used: AtomicU64,
    /// Nanoseconds from `created` to when a device was last seen forwarding for it by itself; 0 = never.
    watched: AtomicU64,
}

impl RuleStats {
    pub fn new(created: Instant) -> RuleStats {
        RuleStats {
            created,
            packets: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            used: AtomicU64::new(0),
            watched: AtomicU64::new(0),
        }
    }

    /// Adds what a megaflow carried, the last of it at `used`. Only for deltas with packets in them.
    pub fn credit(&self, packets: u64, bytes: u64, used: Instant) {
        self.packets.fetch_add(packets, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let used = used.saturating_duration_since(self.created).as_nanos();
        self.used.fetch_max(u64::try_from(used).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// A device forwards packets for this rule by itself, as of `now`: their counts come late.
    pub fn is_watched_by_device(&self, now: Instant) {
        let watched = now.saturating_duration_since(self.created).as_nanos();
        self.watched.store(u64::try_from(watched).unwrap_or(u64::MAX).max(1), Ordering::Relaxed);
    }

    /// How late the rule may hear of a packet.
    fn lag(&self, now: Instant) -> Duration {
        match self.watched.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            watched if now.saturating_duration_since(self.created + Duration::from_nanos(watched)) > DEVICE_LAG => {
                Duration::ZERO
            }
            _ => DEVICE_LAG,
        }
    }

    pub fn packets(&self) -> u64 {
        self.packets.load(Ordering::Relaxed)
    }

    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub fn created(&self) -> Instant {
        self.created
    }

    /// When the last packet came; before any did, when the rule was made.
    pub fn used(&self) -> Instant {
        self.created + Duration::from_nanos(self.used.load(Ordering::Relaxed))
    }
}

/// Every rule at one moment.
#[derive(Clone, Default)]
pub struct RuleSet {
    tables: BTreeMap<u8, Arc<Table>>,
    /// Of the next rule.
    age: u64,
    rules: usize,
    /// Rules with a timeout.
    timed: usize,
}

impl RuleSet {
    pub fn len(&self) -> usize {
        self.rules
    }

    pub fn is_empty(&self) -> bool {
        self.rules == 0
    }

    pub(super) fn table(&self, number: u8) -> Option<&Table> {
        self.tables.get(&number).map(Arc::as_ref)
    }

    /// All rules by table, and in each the winning ones first.
    pub fn sorted(&self) -> Vec<&Arc<Rule>> {
        let mut rules: Vec<_> = self.tables.values().flat_map(|t| t.rules()).collect();
        rules.sort_by_key(|r| (r.spec.table, Reverse(r.rank())));
        rules
    }

    /// Whether [`Draft::expire`] would find something to remove.
    pub fn has_expired(&self, now: Instant) -> bool {
        self.timed != 0 && self.tables.values().flat_map(|t| t.rules()).any(|r| r.is_expired(now))
    }

    /// The beginning of the next set.
    pub fn draft(&self) -> Draft {
        Draft { set: self.clone(), touched: BTreeSet::new() }
    }
}

/// The set holds [`MAX_RULES`] rules already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

/// A set that is being changed.
pub struct Draft {
    set: RuleSet,
    touched: BTreeSet<u8>,
}

impl Draft {
    /// Adds a rule. One of the same table, priority and match is replaced: the new one takes its place in the order of
    /// age, and nothing of its counters.
    pub fn add(&mut self, spec: RuleSpec, now: Instant) -> Result<(), Full> {
        let table = self.set.tables.entry(spec.table).or_default();
        let old = table.same(&spec).cloned();
        if old.is_none() && self.set.rules >= MAX_RULES {
            return Err(Full);
        }
        self.touched.insert(spec.table);
        let table = Arc::make_mut(table);
        let mut rule = Rule { spec, stats: Arc::new(RuleStats::new(now)), age: self.set.age };
        if let Some(old) = old {
            rule.age = old.age;
            table.remove(&old);
            self.set.rules -= 1;
            self.set.timed -= usize::from(old.is_timed());
        }
        self.set.age += 1;
        self.set.rules += 1;
        self.set.timed += usize::from(rule.is_timed());
        table.insert(Arc::new(rule));
        Ok(())
    }

    /// Removes every rule that `unwanted` says yes to; how many those were.
    pub fn remove(&mut self, unwanted: impl Fn(&Rule) -> bool) -> usize {
        let before = self.set.rules;
        for (number, table) in &mut self.set.tables {
            let (gone, timed) = table
                .rules()
                .filter(|r| unwanted(r))
                .fold((0, 0), |(gone, timed), rule| (gone + 1, timed + usize::from(rule.is_timed())));
            if gone > 0 {
                Arc::make_mut(table).remove_all(&unwanted);
                self.set.rules -= gone;
                self.set.timed -= timed;
                self.touched.insert(*number);
            }
        }
        before - self.set.rules
    }

    /// Removes every rule whose idle or hard timeout has passed; how many those were.
    pub fn expire(&mut self, now: Instant) -> usize {
        self.remove(|r| r.is_expired(now))
    }

    /// The next set.
    pub fn freeze(mut self) -> RuleSet {
        for number in self.touched {
            if let Some(table) = self.set.tables.get_mut(&number) {
                Arc::make_mut(table).seal();
            }
        }
        self.set.tables.retain(|_, t| !t.is_empty());
        self.set
    }
}
