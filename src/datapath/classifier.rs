//! [`Classifier`]: tuple-space search (Srinivasan, Suri, Varghese, SIGCOMM 1999): one hash table, a [`Subtable`], per mask.
//!
//! A packet is looked up in one subtable after the other until one has it; the megaflows of one classifier give equal
//! answers wherever they overlap, so the first found is right, and there are no priorities. Subtables are ranked by
//! recent hits, so that most packets are found in the first.
//!
//! ```text
//!   subtable   mask = words (word 0: in_port, word 11: tp_dst)      ranked by hits
//!     slots    [ tag | flow ] [ tag | flow ] …                      open addressing, linear probing
//!     keys     [ w0 w11     ] [ w0 w11     ] …                      only the words that the mask looks at
//! ```
//!
//! A probe touches a slot, and on an equal tag the few words beside it: the flow itself is touched only when it is found.

use std::collections::HashMap;

use super::hash::Seeds;
use crate::flow::field::WORDS;
use crate::flow::{Key, Mask, Match};

/// Slots that a new subtable starts with; a power of two.
const FIRST_SLOTS: usize = 16;

/// From key to flow number, by wildcarded match.
pub struct Classifier {
    seeds: Seeds,
    /// In the order they are asked.
    subtables: Vec<Subtable>,
    /// Where each mask's subtable stands in that order.
    by_mask: HashMap<Mask, usize, foldhash::fast::RandomState>,
    len: usize,
}

/// The flows that share one mask.
pub struct Subtable {
    mask: Mask,
    /// The words that the mask looks at, with their bits of it.
    words: Box<[(u8, u64)]>,
    slots: Box<[Slot]>,
    /// `words.len()` words for each slot.
    keys: Box<[u64]>,
    len: usize,
    /// Hits since the last ranking.
    hits: u64,
    /// A moving average of hits, what the ranking goes by.
    rank: u64,
}

#[derive(Clone, Copy)]
struct Slot {
    /// High half of the hash.
    tag: u32,
    flow: u32,
}

/// No flow has this number.
const FREE: u32 = u32::MAX;

impl Classifier {
    pub fn new(seeds: Seeds) -> Classifier {
        Classifier { seeds, subtables: Vec::new(), by_mask: HashMap::default(), len: 0 }
    }

    /// Flows.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// In the order they are asked.
    pub fn subtables(&self) -> &[Subtable] {
        &self.subtables
    }

    /// Asks subtable after subtable for the packets of a batch that have no flow yet: those whose bit is set in
    /// `wanted`. Writes the flow of each that is found to `found` and answers with the bits that are still wanted,
    /// and how many subtables were asked for those that were found.
    #[inline]
    pub fn lookup_batch(&mut self, keys: &[Key], mut wanted: u32, found: &mut [u32]) -> (u32, u64) {
        let mut probes = 0u64;
        for (order, subtable) in self.subtables.iter_mut().enumerate() {
            if wanted == 0 {
                break;
            }
            let before = wanted;
            wanted = subtable.lookup_batch(&self.seeds, keys, wanted, found);
            let hits = u64::from((before ^ wanted).count_ones());
            subtable.hits += hits;
            probes += hits * (order as u64 + 1);
        }
        (wanted, probes)
    }

    /// The flow of one key.
    pub fn lookup(&mut self, key: &Key) -> Option<u32> {
        let mut found = [FREE];
        let (missed, _) = self.lookup_batch(std::slice::from_ref(key), 1, &mut found);
        (missed == 0).then_some(found[0])
    }

    /// The flow with exactly this match.
    pub fn find(&self, matching: &Match) -> Option<u32> {
        let subtable = &self.subtables[*self.by_mask.get(matching.mask())?];
        subtable.find(self.seeds.masked(matching.key().words(), &subtable.words), matching.key())
    }

    /// Adds a flow; answers with the hash to remove it by.
    ///
    /// The caller has seen with [`Classifier::find`] that no flow has this match.
    pub fn insert(&mut self, matching: &Match, flow: u32) -> u64 {
        let subtables = &mut self.subtables;
        let order = *self.by_mask.entry(*matching.mask()).or_insert_with(|| {
            subtables.push(Subtable::new(matching.mask()));
            subtables.len() - 1
        });
        let hash = self.seeds.masked(matching.key().words(), &self.subtables[order].words);
        self.subtables[order].insert(&self.seeds, hash, matching.key(), flow);
        self.len += 1;
        hash
    }

    /// Takes a flow out. `hash` is what [`Classifier::insert`] answered.
    pub fn remove(&mut self, matching: &Match, hash: u64, flow: u32) {
        let Some(&order) = self.by_mask.get(matching.mask()) else { return };
        let subtable = &mut self.subtables[order];
        if subtable.remove(&self.seeds, hash, flow) {
            self.len -= 1;
            if subtable.len == 0 {
                self.by_mask.remove(matching.mask());
                self.subtables.remove(order);
                for place in self.by_mask.values_mut().filter(|place| **place > order) {
                    *place -= 1;
                }
            }
        }
    }

    /// Puts the subtables with the most recent hits in front. Call every so often, between batches.
    pub fn rank(&mut self) {
        for subtable in &mut self.subtables {
            subtable.rank = subtable.rank / 2 + subtable.hits;
            subtable.hits = 0;
        }
        if self.subtables.is_sorted_by(|a, b| a.rank >= b.rank) {
            return;
        }
        self.subtables.sort_by_key(|subtable| std::cmp::Reverse(subtable.rank));
        for (order, subtable) in self.subtables.iter().enumerate() {
            if let Some(place) = self.by_mask.get_mut(&subtable.mask) {
                *place = order;
            }
        }
    }
}

impl Subtable {
    fn new(mask: &Mask) -> Subtable {
        let words: Box<[(u8, u64)]> =
            mask.words().iter().enumerate().filter(|(_, m)| **m != 0).map(|(i, m)| (i as u8, *m)).collect();
        let (slots, keys) = storage(FIRST_SLOTS, words.len());
        Subtable { mask: *mask, words, slots, keys, len: 0, hits: 0, rank: 0 }
    }

    pub fn mask(&self) -> &Mask {
        &self.mask
    }

    /// Flows.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The flows in it, in no particular order.
    pub fn flows(&self) -> impl Iterator<Item = u32> + '_ {
        self.slots.iter().filter(|slot| slot.flow != FREE).map(|slot| slot.flow)
    }

    /// First all hashes, then all probes: the loads of different packets overlap instead of waiting for each other.
    #[inline]
    fn lookup_batch(&self, seeds: &Seeds, keys: &[Key], wanted: u32, found: &mut [u32]) -> u32 {
        let mut hashes = [0u64; crate::packet::BATCH];
        let mut first = [Slot { tag: 0, flow: FREE }; crate::packet::BATCH];
        for i in bits(wanted) {
            hashes[i] = seeds.masked(keys[i].words(), &self.words);
            first[i] = self.slots[self.home(hashes[i])];
        }
        let mut missed = wanted;
        for i in bits(wanted) {
            let mut place = self.home(hashes[i]);
            let mut slot = first[i];
            while slot.flow != FREE {
                if slot.tag == tag(hashes[i]) && self.holds(place, &keys[i]) {
                    found[i] = slot.flow;
                    missed &= !(1 << i);
                    break;
                }
                place = (place + 1) & (self.slots.len() - 1);
                slot = self.slots[place];
            }
        }
        missed
    }

    /// Whether the words at `place` are those of `key`.
    #[inline]
    fn holds(&self, place: usize, key: &Key) -> bool {
        let n = self.words.len();
        let words = &self.keys[place * n..place * n + n];
        words.iter().zip(&self.words).all(|(have, (word, mask))| key.words()[*word as usize] & mask == *have)
    }

    fn find(&self, hash: u64, key: &Key) -> Option<u32> {
        let mut place = self.home(hash);
        while self.slots[place].flow != FREE {
            if self.slots[place].tag == tag(hash) && self.holds(place, key) {
                return Some(self.slots[place].flow);
            }
            place = (place + 1) & (self.slots.len() - 1);
        }
        None
    }

    fn insert(&mut self, seeds: &Seeds, hash: u64, key: &Key, flow: u32) {
        if (self.len + 1) * 4 > self.slots.len() * 3 {
            self.resize(seeds, self.slots.len() * 2);
        }
        let mut masked = [0; WORDS];
        for (out, (word, mask)) in masked.iter_mut().zip(&self.words) {
            *out = key.words()[*word as usize] & mask;
        }
        self.place(hash, &masked[..self.words.len()], flow);
        self.len += 1;
    }

    fn place(&mut self, hash: u64, words: &[u64], flow: u32) {
        let mut place = self.home(hash);
        while self.slots[place].flow != FREE {
            place = (place + 1) & (self.slots.len() - 1);
        }
        self.slots[place] = Slot { tag: tag(hash), flow };
        self.keys[place * words.len()..(place + 1) * words.len()].copy_from_slice(words);
    }

    /// Takes `flow` out and closes the gap, so that no probe ever has to pass a grave (Knuth, TAOCP 6.4, algorithm R).
    fn remove(&mut self, seeds: &Seeds, hash: u64, flow: u32) -> bool {
        let n = self.words.len();
        let last = self.slots.len() - 1;
        let mut gap = self.home(hash);
        while self.slots[gap].flow != flow {
            if self.slots[gap].flow == FREE {
                return false;
            }
            gap = (gap + 1) & last;
        }
        let mut next = gap;
        loop {
            next = (next + 1) & last;
            if self.slots[next].flow == FREE {
                break;
            }
            let home = self.home(seeds.list(&self.keys[next * n..next * n + n]));
            // Whoever's home lies cyclically in (gap, next] would be lost in front of its home.
            let stays = if gap <= next { gap < home && home <= next } else { gap < home || home <= next };
            if !stays {
                self.slots[gap] = self.slots[next];
                self.keys.copy_within(next * n..next * n + n, gap * n);
                gap = next;
            }
        }
        self.slots[gap].flow = FREE;
        self.len -= 1;
        if self.slots.len() > FIRST_SLOTS && self.len * 8 < self.slots.len() {
            self.resize(seeds, self.slots.len() / 2);
        }
        true
    }

    fn resize(&mut self, seeds: &Seeds, slots: usize) {
        let n = self.words.len();
        let (slots, keys) = storage(slots, n);
        let old_slots = std::mem::replace(&mut self.slots, slots);
        let old_keys = std::mem::replace(&mut self.keys, keys);
        for (place, slot) in old_slots.iter().enumerate().filter(|(_, slot)| slot.flow != FREE) {
            let words = &old_keys[place * n..place * n + n];
            self.place(seeds.list(words), words, slot.flow);
        }
    }

    #[inline]
    fn home(&self, hash: u64) -> usize {
        hash as usize & (self.slots.len() - 1)
    }
}

#[inline]
fn tag(hash: u64) -> u32 {
    (hash >> 32) as u32
}

fn storage(slots: usize, words: usize) -> (Box<[Slot]>, Box<[u64]>) {
    (vec![Slot { tag: 0, flow: FREE }; slots].into_boxed_slice(), vec![0; slots * words].into_boxed_slice())
}

/// The positions of the set bits, lowest first.
#[inline]
pub fn bits(mut set: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        if set == 0 {
            return None;
        }
        let lowest = set.trailing_zeros() as usize;
        set &= set - 1;
        Some(lowest)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::Field;
    use proptest::prelude::*;

    const FIELDS: [Field; 4] = [Field::InPort, Field::Ipv4Src, Field::TpDst, Field::Ipv6Dst];

    fn key(values: [u8; 4]) -> Key {
        let mut key = Key::ZERO;
        for (field, value) in FIELDS.iter().zip(values) {
            key.set(*field, value);
        }
        key
    }

    fn mask(which: u8) -> Mask {
        let mut mask = Mask::EMPTY;
        for (i, field) in FIELDS.iter().enumerate() {
            match which >> (2 * i) & 3 {
                0 => {}
                1 => mask.add(*field, 1),
                2 => mask.add(*field, 6),
                _ => mask.add_field(*field),
            }
        }
        mask
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert([u8; 4], u8),
        Remove(usize),
        Rank,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        prop::collection::vec(
            prop_oneof![
                6 => (any::<[u8; 4]>(), any::<u8>()).prop_map(|(k, m)| Step::Insert(k.map(|v| v & 7), m)),
                3 => any::<usize>().prop_map(Step::Remove),
                1 => Just(Step::Rank),
            ],
            1..300,
        )
    }

    proptest! {
        /// Whatever was added and removed in whatever order: a key is found exactly when a linear scan finds a match for it,
        /// and what is found matches.
        #[test]
        fn agrees_with_a_linear_scan(steps in steps(), probes in prop::collection::vec(any::<[u8; 4]>(), 1..40)) {
            let mut classifier = Classifier::new(Seeds::random());
            let mut linear: Vec<(Match, u32, u64)> = Vec::new();
            for (flow, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Insert(k, m) => {
                        let matching = Match::new(&key(k), &mask(m));
                        let known = linear.iter().find(|(l, ..)| *l == matching).map(|(_, f, _)| *f);
                        prop_assert_eq!(classifier.find(&matching), known);
                        if known.is_none() {
                            let hash = classifier.insert(&matching, flow as u32);
                            linear.push((matching, flow as u32, hash));
                        }
                    }
                    Step::Remove(i) if !linear.is_empty() => {
                        let (matching, flow, hash) = linear.swap_remove(i % linear.len());
                        classifier.remove(&matching, hash, flow);
                    }
                    Step::Remove(_) => {}
                    Step::Rank => classifier.rank(),
                }
                prop_assert_eq!(classifier.len(), linear.len());
            }
            let keys: Vec<Key> = probes.into_iter().map(|k| key(k.map(|v| v & 7))).take(crate::packet::BATCH).collect();
            let mut found = vec![FREE; keys.len()];
            let wanted = if keys.len() == 32 { u32::MAX } else { (1u32 << keys.len()) - 1 };
            let (missed, _) = classifier.lookup_batch(&keys, wanted, &mut found);
            for (i, key) in keys.iter().enumerate() {
                let expected: Vec<u32> = linear.iter().filter(|(m, ..)| m.matches(key)).map(|(_, f, _)| *f).collect();
                if missed & (1 << i) != 0 {
                    prop_assert!(expected.is_empty());
                } else {
                    prop_assert!(expected.contains(&found[i]));
                }
            }
            let subtables: std::collections::HashSet<Mask> = linear.iter().map(|(m, ..)| *m.mask()).collect();
            prop_assert_eq!(classifier.subtables().len(), subtables.len());
        }
    }

    #[test]
    fn the_busiest_subtable_is_asked_first() {
        let mut classifier = Classifier::new(Seeds::random());
        classifier.insert(&Match::new(&key([1, 0, 0, 0]), &mask(0b11)), 1);
        classifier.insert(&Match::new(&key([2, 9, 0, 0]), &mask(0b1111)), 2);
        for _ in 0..10 {
            assert_eq!(classifier.lookup(&key([2, 9, 0, 0])), Some(2));
        }
        classifier.rank();
        assert_eq!(classifier.subtables()[0].mask(), &mask(0b1111));
        let (_, probes) = classifier.lookup_batch(&[key([2, 9, 0, 0])], 1, &mut [0]);
        assert_eq!(probes, 1);
    }
}
