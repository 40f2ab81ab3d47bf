//! [`Classifier`]: tuple-space search (Srinivasan, Suri, Varghese, SIGCOMM 1999): one hash table, a [`Subtable`], per mask.
//!
//! A packet is looked up in one subtable after the other until one has it; the megaflows of one classifier give equal
//! answers wherever they overlap, so the first found is right, and there are no priorities. Subtables are ranked by
//! recent hits, so that most packets are found in the first.
//!
//! ```text
//!   subtable   mask = words (word 0: in_port, word 11: tp_dst)           ranked by hits
//!     tags     [ 8 tags of a byte | 8 tags | … ]                         a bucket is one word
//!     entries  [ flow w0 w11 | flow w0 w11 | … ]                         only the words that the mask looks at
//! ```
//!
//! A flow stands in the bucket that its hash says, or in the next that has room. A probe compares the eight tags of a
//! bucket at once. Most probes fail, when there are many masks, and those cost that one word; only an equal tag (one
//! in 255 by chance) leads to an entry, and the flow itself is touched only when it is found.

use std::collections::HashMap;

use super::hash::Seeds;
use crate::flow::field::WORDS;
use crate::flow::{Key, Mask, Match};

/// Buckets that a new subtable starts with; a power of two.
const FIRST_BUCKETS: usize = 2;

/// Flows in a bucket: bytes in a word of tags.
const SLOTS: usize = 8;

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
    /// A byte for each slot of a bucket, 0 when it is free.
    tags: Box<[u64]>,
    /// For each slot its flow's number and then `words.len()` words.
    entries: Box<[u64]>,
    len: usize,
    /// Hits since the last ranking.
    hits: u64,
    /// A moving average of hits, what the ranking goes by.
    rank: u64,
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
        let hash = self.seeds.masked(matching.key().words(), &subtable.words);
        subtable.search(&subtable.words, hash, matching.key())
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
        let (tags, entries) = storage(FIRST_BUCKETS, words.len());
        Subtable { mask: *mask, words, tags, entries, len: 0, hits: 0, rank: 0 }
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
        (0..self.tags.len() * SLOTS).filter(|slot| self.tag_at(*slot) != 0).map(|slot| self.flow_at(slot))
    }

    #[inline]
    fn lookup_batch(&self, seeds: &Seeds, keys: &[Key], wanted: u32, found: &mut [u32]) -> u32 {
        // One body for each usual number of words, so that there are no loops over them.
        match &*self.words {
            words @ [_, _] => self.probe(words, seeds, keys, wanted, found),
            words @ [_, _, _] => self.probe(words, seeds, keys, wanted, found),
            words @ [_, _, _, _] => self.probe(words, seeds, keys, wanted, found),
            words @ [_, _, _, _, _] => self.probe(words, seeds, keys, wanted, found),
            words @ [_, _, _, _, _, _] => self.probe(words, seeds, keys, wanted, found),
            words => self.probe(words, seeds, keys, wanted, found),
        }
    }

    /// First all hashes and tags, then the entries that are worth a look: the loads of different packets overlap
    /// instead of waiting for each other.
    #[inline(always)]
    fn probe(&self, words: &[(u8, u64)], seeds: &Seeds, keys: &[Key], wanted: u32, found: &mut [u32]) -> u32 {
        let mut hashes = [0u64; crate::packet::BATCH];
        let mut promising = 0;
        for i in bits(wanted) {
            let hash = seeds.masked(keys[i].words(), words);
            hashes[i] = hash;
            let tags = self.tags[self.home(hash)];
            let look = zero_bytes(tags ^ repeated(tag(hash))) != 0 || zero_bytes(tags) == 0;
            promising |= u32::from(look) << i;
        }
        let mut missed = wanted;
        for i in bits(promising) {
            if let Some(flow) = self.search(words, hashes[i], &keys[i]) {
                found[i] = flow;
                missed &= !(1 << i);
            }
        }
        missed
    }

    /// The flow of `key`, whose masked words have this hash.
    #[inline(always)]
    fn search(&self, words: &[(u8, u64)], hash: u64, key: &Key) -> Option<u32> {
        let size = words.len() + 1;
        let mut bucket = self.home(hash);
        loop {
            let tags = self.tags[bucket];
            let mut equal = zero_bytes(tags ^ repeated(tag(hash)));
            while equal != 0 {
                let at = (bucket * SLOTS + first_byte(equal)) * size;
                if let [flow, have @ ..] = &self.entries[at..at + size]
                    && have.iter().zip(words).all(|(have, (word, mask))| key.words()[*word as usize] & mask == *have)
                {
                    return Some(*flow as u32);
                }
                equal &= equal - 1;
            }
            if zero_bytes(tags) != 0 {
                return None;
            }
            bucket = self.behind(bucket);
        }
    }

    fn insert(&mut self, seeds: &Seeds, hash: u64, key: &Key, flow: u32) {
        // Five eighths full: then one bucket of eight is, and a failing probe hardly ever goes on to the next.
        if (self.len + 1) * 8 > self.tags.len() * SLOTS * 5 {
            self.resize(seeds, self.tags.len() * 2);
        }
        let mut entry = [0; WORDS + 1];
        entry[0] = flow.into();
        for (out, (word, mask)) in entry[1..].iter_mut().zip(&self.words) {
            *out = key.words()[*word as usize] & mask;
        }
        self.place(hash, &entry[..self.size()]);
        self.len += 1;
    }

    fn place(&mut self, hash: u64, entry: &[u64]) {
        let mut bucket = self.home(hash);
        while zero_bytes(self.tags[bucket]) == 0 {
            bucket = self.behind(bucket);
        }
        let slot = bucket * SLOTS + first_byte(zero_bytes(self.tags[bucket]));
        self.set_tag(slot, tag(hash));
        self.entries[slot * entry.len()..(slot + 1) * entry.len()].copy_from_slice(entry);
    }

    /// Takes `flow` out, and closes the gap that it leaves in a full bucket, so that no probe ever has to pass a grave
    /// (Knuth, TAOCP 6.4, algorithm R).
    fn remove(&mut self, seeds: &Seeds, hash: u64, flow: u32) -> bool {
        let Some(mut gap) = self.slot_of(hash, flow) else { return false };
        let mut bucket = gap / SLOTS;
        // Whoever had no room in a bucket stands behind it, with only full buckets between. Some bucket is not full.
        while zero_bytes(self.tags[bucket]) == 0 {
            bucket = self.behind(bucket);
            let lost = (bucket * SLOTS..(bucket + 1) * SLOTS).find(|&slot| {
                // Whose home lies cyclically in (gap, bucket] never passed the gap.
                let from_home = bucket.wrapping_sub(self.home(seeds.list(&self.entry(slot)[1..])));
                let from_gap = bucket.wrapping_sub(gap / SLOTS);
                let last = self.tags.len() - 1;
                self.tag_at(slot) != 0 && from_home & last >= from_gap & last
            });
            if let Some(slot) = lost {
                let size = self.size();
                self.entries.copy_within(slot * size..(slot + 1) * size, gap * size);
                self.set_tag(gap, self.tag_at(slot));
                gap = slot;
            }
        }
        self.set_tag(gap, 0);
        self.len -= 1;
        if self.tags.len() > FIRST_BUCKETS && self.len * 8 < self.tags.len() * SLOTS {
            self.resize(seeds, self.tags.len() / 2);
        }
        true
    }

    fn slot_of(&self, hash: u64, flow: u32) -> Option<usize> {
        let mut bucket = self.home(hash);
        loop {
            let slots = bucket * SLOTS..(bucket + 1) * SLOTS;
            let slot = slots.into_iter().find(|&slot| self.tag_at(slot) != 0 && self.flow_at(slot) == flow);
            if slot.is_some() || zero_bytes(self.tags[bucket]) != 0 {
                return slot;
            }
            bucket = self.behind(bucket);
        }
    }

    fn resize(&mut self, seeds: &Seeds, buckets: usize) {
        let (tags, entries) = storage(buckets, self.words.len());
        let (old, size) = (std::mem::replace(&mut self.tags, tags), self.size());
        let old_entries = std::mem::replace(&mut self.entries, entries);
        for (slot, entry) in old_entries.chunks_exact(size).enumerate() {
            if byte(&old, slot) != 0 {
                self.place(seeds.list(&entry[1..]), entry);
            }
        }
    }

    /// Words in an entry.
    fn size(&self) -> usize {
        self.words.len() + 1
    }

    fn entry(&self, slot: usize) -> &[u64] {
        &self.entries[slot * self.size()..(slot + 1) * self.size()]
    }

    fn flow_at(&self, slot: usize) -> u32 {
        self.entries[slot * self.size()] as u32
    }

    fn tag_at(&self, slot: usize) -> u8 {
        byte(&self.tags, slot)
    }

    fn set_tag(&mut self, slot: usize, tag: u8) {
        let shift = slot % SLOTS * 8;
        let tags = &mut self.tags[slot / SLOTS];
        *tags = *tags & !(0xff << shift) | u64::from(tag) << shift;
    }

    #[inline]
    fn home(&self, hash: u64) -> usize {
        hash as usize & (self.tags.len() - 1)
    }

    #[inline]
    fn behind(&self, bucket: usize) -> usize {
        (bucket + 1) & (self.tags.len() - 1)
    }
}

/// From other bits than [`Subtable::home`]; never 0, which is a free slot's.
#[inline]
fn tag(hash: u64) -> u8 {
    ((hash >> 56) as u8).max(1)
}

const ONES: u64 = 0x0101_0101_0101_0101;

#[inline]
fn repeated(byte: u8) -> u64 {
    u64::from(byte) * ONES
}

/// The top bit of each byte that is 0 (Warren, Hacker's Delight, 6-1).
#[inline]
fn zero_bytes(word: u64) -> u64 {
    const LOW: u64 = 0x7f * ONES;
    !(((word & LOW) + LOW) | word | LOW)
}

/// The number of the byte that the lowest set bit is in.
#[inline]
fn first_byte(word: u64) -> usize {
    word.trailing_zeros() as usize / 8
}

fn byte(words: &[u64], n: usize) -> u8 {
    (words[n / 8] >> (n % 8 * 8)) as u8
}

fn storage(buckets: usize, words: usize) -> (Box<[u64]>, Box<[u64]>) {
    let zeros = |n: usize| vec![0; n].into_boxed_slice();
    (zeros(buckets), zeros(buckets * SLOTS * (words + 1)))
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
    fn flows_that_found_their_bucket_full_outlive_those_that_filled_it() {
        let host = |n: u32| {
            let mut key = Key::ZERO;
            key.set(Field::Ipv4Src, n);
            let mut mask = Mask::EMPTY;
            mask.add_field(Field::Ipv4Src);
            Match::new(&key, &mask)
        };
        for count in [10u32, 80, 5_000] {
            let mut classifier = Classifier::new(Seeds::random());
            let hashes: Vec<u64> = (0..count).map(|n| classifier.insert(&host(n), n)).collect();
            for step in [3, 2, 1] {
                for n in (0..count).step_by(step) {
                    if classifier.find(&host(n)).is_some() {
                        classifier.remove(&host(n), hashes[n as usize], n);
                        assert_eq!(classifier.find(&host(n)), None);
                    }
                }
                let left = (0..count).filter(|&n| classifier.lookup(host(n).key()) == Some(n)).count();
                assert_eq!(left, classifier.len());
            }
            assert!(classifier.subtables().is_empty());
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
