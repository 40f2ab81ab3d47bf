//! [`Emc`], the exact-match cache: the flows of recently seen keys.
//!
//! Two places for a key, [`ENTRIES`] in all. An entry is believed only if its key is equal in every bit and its flow is
//! still the flow it was. A key is entered once in about [`INSERT_ONE_IN`] lookups that passed the cache by, so that a
//! flood of short flows does not wash out the long ones.
//!
//! A hit saves the subtables that the classifier would have asked, and asking in vain costs about as much as two
//! subtables: more than the whole classifier where there is one. When the hits do not pay for the asking, the cache is
//! passed by for a while and tried again.

use super::flows::{FlowRef, Flows};
use crate::flow::Key;

/// Entries in the cache unless somebody wants more or fewer; a power of two, as every number of them is.
pub const ENTRIES: usize = 8_192;
/// The fewest entries and the most: the hash has bits for so many.
pub const MIN_ENTRIES: usize = 64;
pub const MAX_ENTRIES: usize = 65_536;

/// A missed key is entered about once in this many times.
pub const INSERT_ONE_IN: u32 = 32;

/// Lookups after which it is judged whether the cache pays.
const WINDOW: u32 = 8_192;
/// It pays when its hits save this many subtables for each lookup…
const PRICE: u64 = 2;
/// …else it rests for this many windows.
const REST: u32 = 32;

/// The exact-match cache of one poller.
pub struct Emc {
    tags: Box<[Tag]>,
    keys: Box<[Key]>,
    /// A linear congruential generator's state, for choosing which keys to enter.
    lottery: u32,
    lookups: u32,
    hits: u32,
    /// What the classifier found, and how many subtables it asked for that: a hit saves `probes / passed`.
    passed: u64,
    probes: u64,
    /// Lookups left until the cache is tried again.
    resting: u32,
}

#[derive(Clone, Copy, Default)]
struct Tag {
    hash: u32,
    flow: FlowRef,
}

impl Default for Emc {
    fn default() -> Self {
        Emc::new()
    }
}

impl Emc {
    pub fn new() -> Emc {
        Emc::with_entries(ENTRIES)
    }

    /// # Panics
    /// If `entries` is no power of two from [`MIN_ENTRIES`] to [`MAX_ENTRIES`].
    pub fn with_entries(entries: usize) -> Emc {
        assert!(entries.is_power_of_two() && (MIN_ENTRIES..=MAX_ENTRIES).contains(&entries));
        Emc {
            tags: vec![Tag::default(); entries].into_boxed_slice(),
            keys: vec![Key::ZERO; entries].into_boxed_slice(),
            lottery: 1,
            lookups: 0,
            hits: 0,
            passed: 0,
            probes: 0,
            resting: 0,
        }
    }

    /// Whether the cache is worth asking now; accounts for `lookups` of them.
    #[inline]
    pub fn is_worthwhile(&mut self, lookups: u32) -> bool {
        if self.resting > 0 {
            self.resting = self.resting.saturating_sub(lookups);
            return false;
        }
        self.lookups += lookups;
        if self.lookups >= WINDOW {
            let saved = u64::from(self.hits) * self.probes;
            if saved < u64::from(self.lookups) * self.passed * PRICE {
                self.resting = WINDOW * REST;
            }
            (self.lookups, self.hits) = (0, 0);
            // What others cost is remembered for a while, because when all lookups hit there are no others.
            (self.passed, self.probes) = (self.passed / 2, self.probes / 2);
        }
        true
    }

    /// Accounts for `found` lookups for which the classifier asked `probes` subtables in all.
    #[inline]
    pub fn passed(&mut self, found: u32, probes: u64) {
        self.passed += u64::from(found);
        self.probes += probes;
    }

    /// The live flow of `key`.
    #[inline]
    pub fn lookup(&mut self, key: &Key, hash: u64, flows: &Flows) -> Option<u32> {
        for place in self.places(hash) {
            let tag = &self.tags[place];
            if tag.hash == hash as u32 && flows.is_live(tag.flow) && same(&self.keys[place], key) {
                self.hits += 1;
                return Some(tag.flow.index);
            }
        }
        None
    }

    /// Perhaps remembers that `key` belongs to `flow`.
    #[inline]
    pub fn offer(&mut self, key: &Key, hash: u64, flow: FlowRef, flows: &Flows) {
        self.lottery = self.lottery.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        if self.lottery >> 8 < (1 << 24) / INSERT_ONE_IN {
            self.insert(key, hash, flow, flows);
        }
    }

    /// Remembers that `key` belongs to `flow`, in place of an older entry for the key, a dead one, or the one that lost the toss.
    pub fn insert(&mut self, key: &Key, hash: u64, flow: FlowRef, flows: &Flows) {
        let [first, second] = self.places(hash);
        let same = |place: usize| self.tags[place].hash == hash as u32 && self.keys[place] == *key;
        let dead = |place: usize| !flows.is_live(self.tags[place].flow);
        let place = if same(first) || (!same(second) && dead(first)) {
            first
        } else if same(second) || dead(second) || self.lottery & 0x80 != 0 {
            second
        } else {
            first
        };
        self.tags[place] = Tag { hash: hash as u32, flow };
        self.keys[place] = *key;
    }

    #[inline]
    fn places(&self, hash: u64) -> [usize; 2] {
        let last = self.tags.len() - 1;
        // The tag takes the low 32 bits, the places bits above: equal places do not make equal tags.
        [(hash >> 32) as usize & last, (hash >> 46) as usize & last]
    }
}

/// Equality of keys, without the call and the branches of a `memcmp`.
#[inline]
fn same(a: &Key, b: &Key) -> bool {
    a.words().iter().zip(b.words()).fold(0, |differing, (a, b)| differing | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::flows::Flow;
    use crate::flow::{Actions, Field, Mask, Match, Ufid};

    fn flows(n: u32) -> Flows {
        let mut flows = Flows::new();
        for _ in 0..n {
            let flow = Flow {
                ufid: Ufid(0),
                matching: Match::new(&Key::ZERO, &Mask::EMPTY),
                born: 0,
                hash: 0,
                created: std::time::Instant::now(),
                decision: None,
                stations_epoch: 0,
                cell: None,
                bound: None,
                credited: Default::default(),
                cleared: Default::default(),
                pace: Default::default(),
            };
            flows.insert(flow, Actions::drop(), 0);
        }
        flows
    }

    fn key(n: u32) -> Key {
        let mut key = Key::ZERO;
        key.set(Field::Ipv4Src, n);
        key
    }

    #[test]
    fn a_key_finds_its_flow_until_the_flow_dies() {
        let mut flows = flows(2);
        let mut emc = Emc::new();
        emc.insert(&key(1), 77, flows.reference(0), &flows);
        assert_eq!(emc.lookup(&key(1), 77, &flows), Some(0));
        flows.remove(0);
        assert_eq!(emc.lookup(&key(1), 77, &flows), None);
    }

    #[test]
    fn a_key_with_another_keys_hash_is_not_found() {
        let flows = flows(1);
        let mut emc = Emc::new();
        emc.insert(&key(1), 77, flows.reference(0), &flows);
        assert_eq!(emc.lookup(&key(2), 77, &flows), None);
    }

    #[test]
    fn the_newest_flow_of_a_key_is_the_one_found() {
        let flows = flows(3);
        let mut emc = Emc::new();
        let hash = 0x1234_5678_9abc_def0;
        emc.insert(&key(1), hash, flows.reference(0), &flows);
        emc.insert(&key(2), hash, flows.reference(1), &flows);
        emc.insert(&key(1), hash, flows.reference(2), &flows);
        assert_eq!(emc.lookup(&key(1), hash, &flows), Some(2));
        assert_eq!(emc.lookup(&key(2), hash, &flows), Some(1));
    }

    /// Of [`WINDOW`] × ([`REST`] + 2) lookups, those that the cache was asked for, when one in `one_in` hits and the others
    /// take `probes` subtables.
    fn asked(one_in: u32, probes: u64) -> u32 {
        let flows = flows(1);
        let mut emc = Emc::new();
        emc.insert(&key(1), 77, flows.reference(0), &flows);
        let mut asked = 0;
        for i in 0..WINDOW * (REST + 2) {
            let ask = emc.is_worthwhile(1);
            asked += u32::from(ask);
            if i % one_in != 0 {
                emc.passed(1, probes);
            } else if ask {
                emc.lookup(&key(1), 77, &flows);
            }
        }
        asked
    }

    #[test]
    fn a_cache_whose_hits_save_little_is_passed_by_and_tried_again() {
        let asked = asked(4, 3);
        assert!(asked >= 2 * WINDOW - 1, "tried again: {asked}");
        assert!(asked < 3 * WINDOW, "passed by: {asked}");
    }

    #[test]
    fn rare_hits_pay_where_each_saves_many_subtables() {
        assert_eq!(asked(4, 10), WINDOW * (REST + 2));
        assert_eq!(asked(1, 1), WINDOW * (REST + 2));
    }
}
