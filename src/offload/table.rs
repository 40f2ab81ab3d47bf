//! [`Installed`]: every megaflow that a worker knows, with what its owners want and what the device has.
//!
//! A rule is found by its whole match; the hash only says where to look. Rules have ids that are never used twice
//! ([`RuleId`]), so that a timer or a list may keep one without keeping the rule.
//!
//! # Thread-safety
//! Owned by one worker.

use std::sync::Arc;
use std::time::Instant;

use hashbrown::HashTable;
use smallvec::SmallVec;

use super::backend::{Handle, Unsupported};
use super::mark::MarkLease;
use super::state::{FlowStats, Level, OffloadCell};
use super::trouble::Trouble;
use super::waiting::Ticket;
use crate::flow::{Actions, Field, Match, PortNo, Ufid};
use crate::sync::Arc as Shared;

/// The cells of one megaflow, one or more a poller while an older one is dying.
pub type Owners = SmallVec<[Shared<OffloadCell>; 2]>;

/// One megaflow: wanted by its owners, in the device, or both.
pub struct Rule {
    pub matching: Match,
    pub hash: u64,
    pub ufid: Ufid,
    pub owners: Owners,
    pub has: Option<InDevice>,
    /// The device's rule must go before another may be put, whatever the owners want.
    pub condemned: bool,
    /// It is to make room for a busier one.
    pub evicted: bool,
    /// More may be possible than the device did at the last attempt.
    pub retry: bool,
    /// It waits for its turn under the limit of operations.
    pub delayed: bool,
    /// Its put waits for the batch that it is part of.
    pub staged: Option<Staged>,
    /// Why it is not in the device though wanted.
    pub trouble: Option<Arc<Trouble>>,
    /// Why the device does less for it than it could.
    pub short: Option<Arc<Trouble>>,
    /// Why it could not be removed though not wanted.
    pub stuck: Option<Trouble>,
    /// Its place among the rules that wait for room or a mark.
    pub ticket: Option<Ticket>,
    pub pace: Pace,
}

/// How fast packets of a megaflow come.
#[derive(Clone, Copy, Default, Debug)]
pub struct Pace {
    /// Packets a second, of late.
    pub rate: u64,
    measured: bool,
    /// What its owners had counted when last looked at, and when that was.
    seen: Option<(u64, Instant)>,
}

impl Pace {
    /// `count` packets have come until `now`. The newest window counts for half of the rate; the first for all of it.
    pub fn observe(&mut self, count: u64, now: Instant) {
        let Some((before, then)) = self.seen.replace((count, now)) else { return };
        let seconds = now.saturating_duration_since(then).as_secs_f64();
        if seconds > 0.0 {
            // Where an owner has left, the count is lower than before.
            let rate = count.saturating_sub(before) as f64 / seconds;
            let of_late = if std::mem::replace(&mut self.measured, true) { self.rate as f64 } else { rate };
            self.rate = ((of_late + rate) / 2.0).round() as u64;
        }
    }
}

/// A rule of a batch that has not been asked of the device yet: there is no other step to take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Staged {
    Undisturbed,
    /// Something happened for which it must be looked at again.
    Disturbed,
}

/// What the device has of a rule.
pub struct InDevice {
    pub handle: Handle,
    pub level: Level,
    pub lease: MarkLease,
    pub actions: Actions,
    /// What is in the way of a higher level.
    pub short: Option<Unsupported>,
    /// The flush generation that it was put under.
    pub flush: u64,
    pub since: Instant,
    /// The device's counts at the last reading.
    pub stats: FlowStats,
    /// The device has counted a packet.
    pub confirmed: bool,
}

impl Rule {
    pub fn new(cell: &OffloadCell) -> Rule {
        Rule {
            matching: *cell.matching(),
            hash: cell.hash(),
            ufid: cell.ufid(),
            owners: Owners::new(),
            has: None,
            condemned: false,
            evicted: false,
            retry: false,
            delayed: false,
            staged: None,
            trouble: None,
            short: None,
            stuck: None,
            ticket: None,
            pace: Pace::default(),
        }
    }

    /// The port whose packets it matches; `None` where that is wildcarded.
    pub fn in_port(&self) -> Option<PortNo> {
        self.matching.mask().is_exact(Field::InPort).then(|| self.matching.key().in_port())
    }

    /// Whether the device sends its packets to one of these ports, or would if it could.
    pub fn sends_by(&self, is_it: impl Fn(PortNo) -> bool) -> bool {
        let Some(has) = &self.has else { return false };
        match has.short {
            Some(Unsupported::Port(short)) if is_it(short) => true,
            _ => has.level == Level::Full && has.actions.outputs().any(is_it),
        }
    }

    pub fn owns(&self, cell: &Shared<OffloadCell>) -> bool {
        self.owners.iter().any(|owner| Shared::ptr_eq(owner, cell))
    }

    /// Packets that anybody has counted.
    pub fn seen(&self) -> u64 {
        self.owners.iter().fold(0, |sum: u64, owner| sum.saturating_add(owner.seen()))
    }

    /// The owners whose flows live.
    pub fn living(&self) -> impl Iterator<Item = &Shared<OffloadCell>> {
        self.owners.iter().filter(|owner| !owner.is_dead())
    }
}

/// A rule's place in the table, good until the rule is removed and naming nothing afterwards.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RuleId {
    index: u32,
    generation: u32,
}

#[cfg(test)]
impl RuleId {
    /// For tests of those who keep ids.
    pub fn of(index: u32) -> RuleId {
        RuleId { index, generation: 0 }
    }
}

/// All rules of one worker.
#[derive(Default)]
pub struct Installed {
    index: HashTable<u32>,
    places: Vec<Place>,
    free: Vec<u32>,
    in_device: usize,
}

#[derive(Default)]
struct Place {
    generation: u32,
    rule: Option<Rule>,
}

impl Installed {
    pub fn len(&self) -> usize {
        self.index.len()
    }

    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    pub fn find(&self, hash: u64, matching: &Match) -> Option<RuleId> {
        let same = |&index: &u32| self.at(index).is_some_and(|rule| rule.matching == *matching);
        let index = *self.index.find(hash, same)?;
        Some(RuleId { index, generation: self.places[index as usize].generation })
    }

    /// Adds a rule whose match is not in the table yet.
    pub fn insert(&mut self, rule: Rule) -> RuleId {
        let hash = rule.hash;
        self.in_device += usize::from(rule.has.is_some());
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place::default());
            // More than 2^32 rules do not fit into memory.
            (self.places.len() - 1) as u32
        });
        let place = &mut self.places[index as usize];
        place.rule = Some(rule);
        let id = RuleId { index, generation: place.generation };
        let places = &self.places;
        let hash_of = |&index: &u32| places[index as usize].rule.as_ref().map_or(0, |rule| rule.hash);
        self.index.insert_unique(hash, index, hash_of);
        id
    }

    pub fn get(&self, id: RuleId) -> Option<&Rule> {
        let place = self.places.get(id.index as usize)?;
        place.rule.as_ref().filter(|_| place.generation == id.generation)
    }

    pub fn get_mut(&mut self, id: RuleId) -> Option<&mut Rule> {
        let place = self.places.get_mut(id.index as usize)?;
        place.rule.as_mut().filter(|_| place.generation == id.generation)
    }

    pub fn remove(&mut self, id: RuleId) -> Option<Rule> {
        let hash = self.get(id)?.hash;
        if let Ok(entry) = self.index.find_entry(hash, |&index| index == id.index) {
            entry.remove();
        }
        let place = &mut self.places[id.index as usize];
        place.generation = place.generation.wrapping_add(1);
        self.free.push(id.index);
        let rule = place.rule.take();
        self.in_device -= usize::from(rule.as_ref().is_some_and(|rule| rule.has.is_some()));
        rule
    }

    /// Every rule, in no order that means anything.
    pub fn iter(&self) -> impl Iterator<Item = (RuleId, &Rule)> {
        self.places.iter().enumerate().filter_map(|(index, place)| {
            let rule = place.rule.as_ref()?;
            Some((RuleId { index: index as u32, generation: place.generation }, rule))
        })
    }

    /// Up to `n` rules from place `from` on, looking at no more than `4 n` places, and the place to go on from; 0 after the
    /// last.
    pub fn slice(&self, from: usize, n: usize) -> (Vec<RuleId>, usize) {
        let mut ids = Vec::with_capacity(n.min(self.len()));
        let to = self.places.len().min(from.saturating_add(n.saturating_mul(4)));
        for (index, place) in self.places.iter().enumerate().take(to).skip(from) {
            if ids.len() == n {
                return (ids, index);
            }
            if place.rule.is_some() {
                ids.push(RuleId { index: index as u32, generation: place.generation });
            }
        }
        (ids, if to < self.places.len() { to } else { 0 })
    }

    /// Every rule in the device.
    pub fn all_in_device(&self) -> Vec<RuleId> {
        self.iter().filter(|(_, rule)| rule.has.is_some()).map(|(id, _)| id).collect()
    }

    /// What the device calls the rules that it has.
    pub fn handles(&self) -> Vec<Handle> {
        self.places.iter().filter_map(|place| Some(place.rule.as_ref()?.has.as_ref()?.handle)).collect()
    }

    /// Rules that the device has.
    pub fn in_device(&self) -> usize {
        self.in_device
    }

    /// Records what the device has of a rule now, and gives what it had before.
    pub fn set_has(&mut self, id: RuleId, has: Option<InDevice>) -> Option<InDevice> {
        let now = usize::from(has.is_some());
        let rule = self.get_mut(id)?;
        let before = std::mem::replace(&mut rule.has, has);
        self.in_device = self.in_device + now - usize::from(before.is_some());
        before
    }

    fn at(&self, index: u32) -> Option<&Rule> {
        self.places.get(index as usize)?.rule.as_ref()
    }
}
