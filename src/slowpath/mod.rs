//! Who decides what an unknown packet deserves.
//!
//! A poller that finds no megaflow for a packet asks [`Slowpath::decide`], and makes a megaflow of the answer: all packets that
//! agree with this one in [`Decision::mask`] deserve the same actions. When rules, ports or stations have changed, it asks again
//! ([`Slowpath::revalidate`]) and changes or removes its megaflow.
//!
//! - [`decide`]: the story, a packet's trip through the tables; read it first
//! - [`rules`]: rules, and the immutable sets of them
//! - `classify`: the winning rule, and which bits prove that it wins
//! - `tags`: where VLAN tags came from, once rules push and pop
//! - `normal`, [`learn`]: the learning switch
//! - [`text`]: the `ovs-ofctl` syntax, both ways
//!
//! # Epochs
//!
//! [`Slowpath::epoch`] tells whether a decision may be out of date. A change first replaces the rules and ports, then raises the
//! epoch; a decision reads the epoch first, then the rules and ports. So a decision made while a change goes on may carry
//! the older epoch although it saw the newer rules, which costs one needless revalidation; it never carries a newer epoch
//! than what it saw, which would leave a wrong megaflow standing. [`Slowpath::stations_epoch`] does the same for [`Decision::lookups`]:
//! note it before deciding, and look the lookups over ([`Slowpath::still_true`]) when it has moved.
//!
//! # Thread-safety
//! Shared by all threads. Deciding takes no lock but those of the station table's shards; changes wait for each other.

mod classify;
pub mod decide;
pub mod learn;
mod normal;
pub mod rules;
mod tags;
#[cfg(test)]
mod tests;
pub mod text;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::flow::text::{PortNames, TextError};
use crate::flow::{Actions, Key, Mask, Match, PortNo};
use learn::{Learned, Lookup, MacTable, Station};
use rules::{MAX_RULES, RuleSet, RuleStats};

/// What an unknown packet deserves, and what that depended on.
#[derive(Clone, Debug)]
pub struct Decision {
    /// Every bit that was looked at: all packets equal in these bits deserve the same.
    pub mask: Mask,
    pub actions: Actions,
    /// Why nothing leaves, when nothing does.
    pub dropped: Option<DropReason>,
    /// The rules that took part, in order; each is credited with the megaflow's packets.
    pub rules: Vec<Arc<RuleStats>>,
    /// MAC lookups that `normal` made: revalidate when one of them would now end otherwise.
    pub lookups: Vec<Lookup>,
    /// The station to keep fresh while packets come.
    pub learned: Option<Station>,
    /// The rule set's epoch that this was decided under.
    pub epoch: u64,
}

/// Why a decision drops.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DropReason {
    /// Table 0 has no rule for it.
    NoRule,
    /// Its rules output nothing: `drop`, a receiver where the sender is, a reserved address.
    Rule,
    /// `dec_ttl` found a TTL of 1 or 0 before any output.
    Ttl,
    /// Its rules lead through too many tables ([`decide`], Bounds).
    TooDeep,
    /// Every port it was to leave by is missing.
    NoPort,
}

impl DropReason {
    /// For people.
    pub fn text(self) -> &'static str {
        match self {
            DropReason::NoRule => "no rule of table 0 matches",
            DropReason::Rule => "the rules send it nowhere",
            DropReason::Ttl => "its TTL ends here",
            DropReason::TooDeep => "the rules lead through too many tables",
            DropReason::NoPort => "the ports it was to leave by are not there",
        }
    }
}

/// How much the slow path remembers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// The most stations that `normal` knows at a time.
    pub stations: usize,
    /// After so long without a packet a station is forgotten.
    pub ageing: Duration,
}

impl Default for Options {
    /// Open vSwitch's defaults.
    fn default() -> Options {
        Options { stations: 8192, ageing: Duration::from_secs(300) }
    }
}

/// Why rules were not changed. Nothing was.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RuleError {
    #[error(transparent)]
    Text(#[from] TextError),
    #[error("line {line}: {error}")]
    Line { line: usize, error: TextError },
    #[error("the rule table is full: it holds at most {MAX_RULES} rules")]
    Full,
}

/// Rules, stations and ports, shared by all pollers.
pub struct Slowpath {
    world: ArcSwap<World>,
    /// Held while the next world is made of this one.
    changing: Mutex<()>,
    epoch: AtomicU64,
    stations: MacTable,
}

/// What decisions depend on and commands change.
#[derive(Clone, Default)]
struct World {
    rules: RuleSet,
    ports: Ports,
}

/// The ports there are, by number.
#[derive(Clone, Default)]
struct Ports(Arc<[(PortNo, String)]>);

impl Ports {
    fn contains(&self, port: PortNo) -> bool {
        self.0.binary_search_by_key(&port, |(number, _)| *number).is_ok()
    }

    fn numbers(&self) -> impl Iterator<Item = PortNo> {
        self.0.iter().map(|(number, _)| *number)
    }
}

impl Default for Slowpath {
    fn default() -> Slowpath {
        Slowpath::new(Options::default())
    }
}

/// What pollers ask.
impl Slowpath {
    /// Without rules or ports: drops everything.
    pub fn new(options: Options) -> Slowpath {
        Slowpath {
            world: ArcSwap::default(),
            changing: Mutex::new(()),
            epoch: AtomicU64::new(0),
            stations: MacTable::new(options.stations, options.ageing),
        }
    }

    /// The decision for `key`. `learn`: also learn where its sender is (for packets, not for revalidation).
    pub fn decide(&self, key: &Key, now: Instant, learn: bool) -> Decision {
        self.decide_within(key, &Mask::EMPTY, now, learn)
    }

    /// The decision for `key`, and what led to it. Nothing is learned or counted.
    pub fn trace(&self, key: &Key, now: Instant) -> (Decision, Vec<decide::Step>) {
        let epoch = self.epoch();
        let world = self.world.load();
        decide::Trip::new(&world, &self.stations, key, &Mask::EMPTY, now, false).run_traced(epoch)
    }

    /// The decision for all packets of a megaflow. Where there is a choice, it looks at bits of the megaflow's mask, so that while
    /// the same rules take part its mask is no larger. When it is larger, the megaflow is too wide now.
    pub fn revalidate(&self, megaflow: &Match, now: Instant) -> Decision {
        self.decide_within(megaflow.key(), megaflow.mask(), now, false)
    }

    fn decide_within(&self, key: &Key, hint: &Mask, now: Instant, learn: bool) -> Decision {
        let epoch = self.epoch();
        let world = self.world.load();
        decide::Trip::new(&world, &self.stations, key, hint, now, learn).run(epoch)
    }

    /// Rises whenever a rule or port changes.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Rises whenever a station appears, moves or goes.
    pub fn stations_epoch(&self) -> u64 {
        self.stations.epoch()
    }

    /// Whether `normal` would still find what it found.
    pub fn still_true(&self, lookup: &Lookup) -> bool {
        self.stations.still_true(lookup)
    }

    /// A megaflow carried packets from `station`, the last of them at `used`.
    pub fn refresh(&self, station: &Station, used: Instant) -> Learned {
        // A station at a port that was just removed would outlive it.
        if self.world.load().ports.contains(station.port) { self.stations.refresh(station, used) } else { Learned::Not }
    }
}

/// What commands change and show.
impl Slowpath {
    /// Replaces the list of ports. Stations at ports that are gone are forgotten; rules stay.
    pub fn set_ports(&self, mut ports: Vec<(PortNo, String)>) {
        ports.sort_by_key(|(number, _)| *number);
        ports.dedup_by_key(|(number, _)| *number);
        let ports = Ports(ports.into());
        let gone = self.change(|world| {
            let gone: Vec<PortNo> = world.ports.numbers().filter(|p| !ports.contains(*p)).collect();
            (Some(World { ports: ports.clone(), ..world.clone() }), gone)
        });
        for port in gone {
            self.stations.flush(Some(port));
        }
    }

    /// Adds one rule for each text, or none and says why; how many those were. A rule of the same table, priority and match is replaced.
    pub fn add_rules<'t>(
        &self,
        texts: impl IntoIterator<Item = &'t str>,
        ports: &dyn PortNames,
        now: Instant,
    ) -> Result<usize, RuleError> {
        let specs = texts.into_iter().map(|text| text::parse_rule(text, ports)).collect::<Result<Vec<_>, _>>()?;
        self.add(None, specs, now)
    }

    /// Replaces all rules by those of a file, one a line, or changes nothing and says which line is wrong and why; how many those
    /// were. `#` begins a comment.
    pub fn load(&self, file: &str, ports: &dyn PortNames, now: Instant) -> Result<usize, RuleError> {
        let specs = file
            .lines()
            .enumerate()
            .map(|(i, line)| (i + 1, line.split('#').next().unwrap_or_default()))
            .filter(|(_, line)| !line.trim().is_empty())
            .map(|(line, rule)| text::parse_rule(rule, ports).map_err(|error| RuleError::Line { line, error }))
            .collect::<Result<Vec<_>, _>>()?;
        self.add(Some(RuleSet::default()), specs, now)
    }

    /// Adds to the rules there are, or to `base` in their place.
    fn add(&self, base: Option<RuleSet>, specs: Vec<rules::RuleSpec>, now: Instant) -> Result<usize, RuleError> {
        let count = specs.len();
        self.change(|world| {
            let mut draft = base.as_ref().unwrap_or(&world.rules).draft();
            for spec in specs {
                if draft.add(spec, now).is_err() {
                    return (None, Err(RuleError::Full));
                }
            }
            (Some(World { rules: draft.freeze(), ports: world.ports.clone() }), Ok(count))
        })
    }

    /// Removes every rule that is at least as specific as `text`, or if `strict` only the one with exactly its table (0 if it names
    /// none), priority and match; how many those were. An empty text means every rule.
    pub fn delete_rules(&self, text: &str, strict: bool, ports: &dyn PortNames) -> Result<usize, RuleError> {
        let filter = text::parse_filter(text, strict, ports)?;
        Ok(self.change(|world| {
            let mut draft = world.rules.draft();
            match draft.remove(|rule| filter.selects(&rule.spec)) {
                0 => (None, 0),
                removed => (Some(World { rules: draft.freeze(), ports: world.ports.clone() }), removed),
            }
        }))
    }

    /// Removes every rule whose idle or hard timeout has passed; how many those were. For idle timeouts to be true, megaflows must have
    /// credited their rules before.
    pub fn expire_rules(&self, now: Instant) -> usize {
        if !self.world.load().rules.has_expired(now) {
            return 0;
        }
        self.change(|world| {
            let mut draft = world.rules.draft();
            match draft.expire(now) {
                0 => (None, 0),
                removed => (Some(World { rules: draft.freeze(), ports: world.ports.clone() }), removed),
            }
        })
    }

    /// Forgets rules and stations whose time has passed; how many rules those were.
    pub fn expire(&self, now: Instant) -> usize {
        self.stations.expire(now);
        self.expire_rules(now)
    }

    /// How many rules there are.
    pub fn rule_count(&self) -> usize {
        self.world.load().rules.len()
    }

    /// The rules that `filter` selects, by table and then the winning ones first.
    pub fn rules(&self, filter: &str, ports: &dyn PortNames) -> Result<Vec<Arc<rules::Rule>>, RuleError> {
        let filter = text::parse_filter(filter, false, ports)?;
        let world = self.world.load();
        Ok(world.rules.sorted().into_iter().filter(|rule| filter.selects(&rule.spec)).cloned().collect())
    }

    /// The same with their counters, a line each.
    pub fn dump(&self, filter: &str, ports: &dyn PortNames, now: Instant) -> Result<Vec<String>, RuleError> {
        let rules = self.rules(filter, ports)?;
        Ok(rules.iter().map(|rule| text::format_rule_with_stats(&rule.spec, &rule.stats, ports, now)).collect())
    }

    /// A file that [`Slowpath::load`] makes the same rules of, in the same order of age.
    pub fn save(&self) -> String {
        let world = self.world.load();
        world.rules.sorted().into_iter().map(|r| text::format_rule(&r.spec, &()) + "\n").collect()
    }

    /// The stations that `normal` has learned.
    pub fn stations(&self) -> &MacTable {
        &self.stations
    }

    /// Replaces the world by the one that `next` makes of it, if any, and raises the epoch.
    fn change<R>(&self, next: impl FnOnce(&World) -> (Option<World>, R)) -> R {
        // The lock guards no data: whoever panicked under it replaced nothing.
        let _alone = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let (world, result) = next(&self.world.load());
        if let Some(world) = world {
            self.world.store(Arc::new(world));
            self.epoch.fetch_add(1, Ordering::Release);
        }
        result
    }
}
