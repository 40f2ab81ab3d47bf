//! [`Table`]: the NIC's rules, in one group for each set of compared bits, oldest group first.
//!
//! A rule compares *columns*: the places of [`FIELDS`], counted once where fields share one (an ARP address and an
//! IPv4 address are the same column, since no packet has both). A packet is found by cutting its columns down to the
//! group's bits and looking for exactly that.
//!
//! ```text
//!   mask ─► layouts ─► group: which columns, which bits; and its rules by the hash of their values ─► slot: the rule
//!   handle ─────────────────────────────────────────────────────────────────────────────────────────► slot
//! ```
//!
//! A put and a delete cost a few hundred nanoseconds: what a mask compares is worked out once, a slot keeps its memory
//! when its rule goes, and a handle names its slot.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use crate::flow::field::FIELDS;
use crate::flow::{Actions, Field, Mask, Match};
use crate::offload::backend::Handle;
use crate::offload::mark::Mark;
use crate::offload::state::{FlowStats, Level};

/// A packet as the NIC sees it: the value of each column, by [`column`].
pub type Columns = [u128; FIELDS.len()];

/// Bits of a handle that are the number of a slot: as many as the largest table needs. The others tell the rules apart
/// that had the slot; at a million puts a second into one slot they last for twelve days.
const SLOT_BITS: u32 = 24;

/// Groups without rules that are remembered, since masks come back.
const IDLE: usize = 256;

/// The column of each field: the number of the first one at its place.
const COLUMN: [u8; FIELDS.len()] = {
    let mut columns = [0; FIELDS.len()];
    let mut at = 0;
    while at < columns.len() {
        let mut first = 0;
        loop {
            let (a, b) = (FIELDS[first].at, FIELDS[at].at);
            if a.word == b.word && a.shift == b.shift && a.bits == b.bits {
                break;
            }
            first += 1;
        }
        columns[at] = first as u8;
        at += 1;
    }
    columns
};

/// The column of `field` in [`Columns`].
#[inline]
pub fn column(field: Field) -> usize {
    usize::from(COLUMN[field as usize])
}

/// Rules and their counts. Lookup and counting take `&self`.
#[derive(Default)]
pub struct Table {
    /// The groups with rules, by the time since when they have any.
    order: Vec<u32>,
    groups: Vec<Group>,
    layouts: HashMap<Mask, u32, RandomState>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    hasher: RandomState,
    /// What the generations of new slots begin with: above those of all slots that were.
    floor: u64,
    born: u64,
    full: usize,
    forgotten: u64,
}

/// The bits of one column that count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Compared {
    field: Field,
    bits: u128,
}

struct Group {
    compared: Vec<Compared>,
    rules: HashTable<u32>,
}

/// Room for a rule, one after the other.
struct Slot {
    generation: u64,
    values: Vec<u128>,
    hash: u64,
    rule: Option<Rule>,
}

/// What is done with the packets of a rule.
pub struct Rule {
    group: u32,
    /// Smaller in older rules.
    born: u64,
    pub mark: Mark,
    pub level: Level,
    pub actions: Actions,
    /// Packets that were stamped for it while it was no more than a mark.
    marked: AtomicU64,
    /// Packets that were handled wholly.
    full: AtomicU64,
    /// How many of those somebody has read.
    read: AtomicU64,
    bytes: AtomicU64,
    used_ns: AtomicU64,
}

impl Table {
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// The mark of each rule.
    pub fn marks(&self) -> impl Iterator<Item = Mark> {
        self.slots.iter().filter_map(|slot| Some(slot.rule.as_ref()?.mark))
    }

    /// Whether some rule handles packets wholly.
    pub fn handles_any(&self) -> bool {
        self.full > 0
    }

    /// Packets that rules handled wholly and whose counts went with the rules before they were read.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// `None`, and no change, if there is a rule with this very match.
    pub fn insert(&mut self, matching: &Match, mark: Mark, level: Level, actions: &Actions) -> Option<Handle> {
        let group = self.group_of(matching.mask());
        let at = self.vacancy();
        // The slot is still free, so its values may be overwritten before it is known whether it is needed.
        let slot = &mut self.slots[at as usize];
        let Group { compared, rules } = &mut self.groups[group as usize];
        slot.values.clear();
        slot.values.extend(compared.iter().map(|compared| matching.key().get(compared.field)));
        slot.hash = hash(&self.hasher, &slot.values);
        let (hash, slots) = (slot.hash, &self.slots);
        if rules.find(hash, |&other| slots[other as usize].values == slots[at as usize].values).is_some() {
            return None;
        }
        if rules.is_empty() {
            self.order.push(group);
        }
        rules.insert_unique(hash, at, |&slot| slots[slot as usize].hash);
        self.free.pop();
        self.born += 1;
        self.full += usize::from(level == Level::Full);
        let slot = &mut self.slots[at as usize];
        slot.rule = Some(Rule::new(group, self.born, mark, level, actions.clone()));
        Some(Handle(slot.generation << SLOT_BITS | u64::from(at)))
    }

    /// Gives a rule another mark, level and actions in one step. Answers with its counts, which go on; `None` if it is not
    /// there.
    pub fn replace(&mut self, handle: Handle, mark: Mark, level: Level, actions: &Actions) -> Option<FlowStats> {
        let at = self.slot_of(handle)?;
        let rule = self.slots[at].rule.as_mut()?;
        self.full -= usize::from(rule.level == Level::Full);
        self.full += usize::from(level == Level::Full);
        (rule.mark, rule.level, rule.actions) = (mark, level, actions.clone());
        Some(rule.stats())
    }

    /// The rule's final counts, if it was there.
    pub fn remove(&mut self, handle: Handle) -> Option<FlowStats> {
        self.take(handle).map(|rule| rule.stats())
    }

    /// Removes a rule whose counts nobody wants.
    pub fn discard(&mut self, handle: Handle) {
        if let Some(rule) = self.take(handle) {
            self.forgotten += rule.unread();
        }
    }

    /// Removes all rules; no handle of theirs is given again.
    pub fn clear(&mut self) {
        self.forgotten += self.slots.iter().filter_map(|slot| slot.rule.as_ref()).map(Rule::unread).sum::<u64>();
        self.floor = self.slots.iter().map(|slot| slot.generation + 1).fold(self.floor, u64::max);
        self.order.clear();
        self.groups.clear();
        self.layouts.clear();
        self.slots.clear();
        self.free.clear();
        self.full = 0;
    }

    /// The rule's counts, which are read with this.
    pub fn stats(&self, handle: Handle) -> Option<FlowStats> {
        self.slots[self.slot_of(handle)?].rule.as_ref().map(Rule::stats)
    }

    /// The first rule that a packet matches. `scratch` is of no meaning.
    #[inline]
    pub fn find(&self, packet: &Columns, scratch: &mut Vec<u128>) -> Option<&Rule> {
        self.order.iter().find_map(|&group| {
            let Group { compared, rules } = &self.groups[group as usize];
            scratch.clear();
            scratch.extend(compared.iter().map(|compared| packet[column(compared.field)] & compared.bits));
            let at = rules.find(hash(&self.hasher, scratch), |&at| self.slots[at as usize].values == *scratch)?;
            self.slots[*at as usize].rule.as_ref()
        })
    }

    /// Exchanges the marks of the two oldest rules. `false` with fewer than two.
    pub fn swap_two_marks(&mut self) -> bool {
        let mut rules: Vec<_> = self.slots.iter_mut().filter_map(|slot| slot.rule.as_mut()).collect();
        rules.sort_unstable_by_key(|rule| rule.born);
        let [first, second, ..] = rules.as_mut_slice() else { return false };
        std::mem::swap(&mut first.mark, &mut second.mark);
        true
    }

    /// The group of rules with this mask, with rules or without.
    fn group_of(&mut self, mask: &Mask) -> u32 {
        if let Some(&group) = self.layouts.get(mask) {
            return group;
        }
        if self.groups.len() >= self.order.len() + IDLE {
            self.forget_idle_groups();
        }
        let compared = compared_by(mask);
        // Masks that differ in bits outside all fields compare the same.
        let group = match self.groups.iter().position(|group| group.compared == compared) {
            Some(at) => at as u32,
            None => {
                self.groups.push(Group { compared, rules: HashTable::new() });
                self.groups.len() as u32 - 1
            }
        };
        self.layouts.insert(*mask, group);
        group
    }

    #[cold]
    fn forget_idle_groups(&mut self) {
        let mut numbers = vec![u32::MAX; self.groups.len()];
        let mut kept = 0;
        for (number, group) in numbers.iter_mut().zip(&self.groups) {
            if !group.rules.is_empty() {
                *number = kept;
                kept += 1;
            }
        }
        self.groups.retain(|group| !group.rules.is_empty());
        self.layouts.retain(|_, group| numbers[*group as usize] != u32::MAX);
        let rules = self.slots.iter_mut().filter_map(|slot| slot.rule.as_mut()).map(|rule| &mut rule.group);
        for group in self.layouts.values_mut().chain(&mut self.order).chain(rules) {
            *group = numbers[*group as usize];
        }
    }

    /// A free slot: the last of `free`.
    fn vacancy(&mut self) -> u32 {
        if let Some(&at) = self.free.last() {
            return at;
        }
        let at = self.slots.len() as u32;
        self.slots.push(Slot { generation: self.floor, values: Vec::new(), hash: 0, rule: None });
        self.free.push(at);
        at
    }

    fn slot_of(&self, handle: Handle) -> Option<usize> {
        let at = (handle.0 & ((1 << SLOT_BITS) - 1)) as usize;
        let slot = self.slots.get(at)?;
        (slot.generation == handle.0 >> SLOT_BITS).then_some(at)
    }

    fn take(&mut self, handle: Handle) -> Option<Rule> {
        let at = self.slot_of(handle)?;
        let slot = &mut self.slots[at];
        let rule = slot.rule.take()?;
        slot.generation += 1;
        let rules = &mut self.groups[rule.group as usize].rules;
        if let Ok(entry) = rules.find_entry(slot.hash, |&other| other as usize == at) {
            entry.remove();
        }
        if rules.is_empty() {
            self.order.retain(|group| *group != rule.group);
        }
        self.free.push(at as u32);
        self.full -= usize::from(rule.level == Level::Full);
        Some(rule)
    }
}

impl Rule {
    fn new(group: u32, born: u64, mark: Mark, level: Level, actions: Actions) -> Rule {
        let zero = || AtomicU64::new(0);
        let (marked, full, read, bytes, used_ns) = (zero(), zero(), zero(), zero(), zero());
        Rule { group, born, mark, level, actions, marked, full, read, bytes, used_ns }
    }

    /// One packet of `bytes` bytes was stamped for it.
    #[inline]
    pub fn count_marked(&self, bytes: usize, now_ns: u64) {
        self.count(&self.marked, bytes, now_ns);
    }

    /// One packet of `bytes` bytes was handled wholly.
    #[inline]
    pub fn count_full(&self, bytes: usize, now_ns: u64) {
        self.count(&self.full, bytes, now_ns);
    }

    #[inline]
    fn count(&self, packets: &AtomicU64, bytes: usize, now_ns: u64) {
        packets.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        // 0 stands for never.
        self.used_ns.fetch_max(now_ns.max(1), Ordering::Relaxed);
    }

    fn stats(&self) -> FlowStats {
        let full = self.full.load(Ordering::Relaxed);
        self.read.fetch_max(full, Ordering::Relaxed);
        FlowStats {
            packets: self.marked.load(Ordering::Relaxed) + full,
            bytes: self.bytes.load(Ordering::Relaxed),
            used_ns: self.used_ns.load(Ordering::Relaxed),
        }
    }

    fn unread(&self) -> u64 {
        self.full.load(Ordering::Relaxed) - self.read.load(Ordering::Relaxed)
    }
}

#[inline]
fn hash(state: &RandomState, values: &[u128]) -> u64 {
    let mut hasher = state.build_hasher();
    values.iter().for_each(|&value| hasher.write_u128(value));
    hasher.finish()
}

/// What a mask compares, column by column.
fn compared_by(mask: &Mask) -> Vec<Compared> {
    FIELDS
        .iter()
        .filter(|def| column(def.field) == def.field as usize)
        .map(|def| Compared { field: def.field, bits: mask.get(def.field) })
        .filter(|compared| compared.bits != 0)
        .collect()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::flow::{Key, PortNo};
    use proptest::prelude::*;

    /// A match of bits `mask` of the IPv4 destination, which are `value`.
    fn rule(value: u32, mask: u32) -> Match {
        let (mut key, mut bits) = (Key::ZERO, Mask::EMPTY);
        key.set(Field::Ipv4Dst, value);
        bits.add(Field::Ipv4Dst, mask.into());
        Match::new(&key, &bits)
    }

    fn packet(destination: u32) -> Columns {
        let mut columns = [0; FIELDS.len()];
        columns[column(Field::Ipv4Dst)] = destination.into();
        columns
    }

    fn insert(table: &mut Table, matching: &Match, mark: u32) -> Option<Handle> {
        table.insert(matching, Mark::new(mark).unwrap(), Level::Full, &Actions::drop())
    }

    fn found(table: &Table, destination: u32) -> Option<u32> {
        table.find(&packet(destination), &mut Vec::new()).map(|rule| rule.mark.0.get())
    }

    #[test]
    fn fields_at_the_same_place_are_one_column() {
        assert_eq!(column(Field::ArpSip), column(Field::Ipv4Src));
        assert_eq!(column(Field::Ipv4Dst), Field::Ipv4Dst as usize);
        for def in &FIELDS {
            assert_eq!(FIELDS[column(def.field)].at, def.at, "{}", def.name);
        }
    }

    #[test]
    fn a_handle_never_names_two_rules_whatever_was_cleared_between() {
        let mut table = Table::default();
        let mut seen = Vec::new();
        for round in 0..6 {
            for value in 0..3 {
                seen.push(insert(&mut table, &rule(value, u32::MAX), 1).unwrap());
            }
            match round % 2 {
                0 => table.clear(),
                _ => seen.iter().for_each(|handle| table.discard(*handle)),
            }
            assert_eq!(table.len(), 0);
        }
        let all = seen.len();
        seen.sort_unstable_by_key(|handle| handle.0);
        seen.dedup();
        assert_eq!(seen.len(), all);
    }

    #[test]
    fn more_masks_than_are_remembered_change_nothing_for_the_rules_there_are() {
        let mut table = Table::default();
        let stays = insert(&mut table, &rule(7, u32::MAX), 7).unwrap();
        for mask in 1..3 * IDLE as u32 {
            let handle = insert(&mut table, &rule(mask, mask), 1).unwrap();
            let later = (mask % 100 == 0).then(|| insert(&mut table, &rule(mask << 8, mask << 8), 2).unwrap());
            assert!(table.remove(handle).is_some());
            later.into_iter().for_each(|handle| assert!(table.remove(handle).is_some()));
        }
        assert!(table.groups.len() <= IDLE + 2, "{} groups", table.groups.len());
        assert_eq!(found(&table, 7), Some(7));
        assert!(table.remove(stays).is_some());
        assert_eq!((found(&table, 7), table.len()), (None, 0));
    }

    #[test]
    fn what_was_handled_wholly_and_never_read_is_forgotten_exactly_once() {
        let mut table = Table::default();
        let handles: Vec<_> = (0..3).map(|value| insert(&mut table, &rule(value, u32::MAX), 1).unwrap()).collect();
        let pass = |table: &Table, n: u32| {
            for value in (0..3).flat_map(|value| (0..n).map(move |_| value)) {
                table.find(&packet(value), &mut Vec::new()).unwrap().count_full(60, 5);
            }
        };
        pass(&table, 10);
        assert_eq!(table.stats(handles[0]).map(|stats| stats.packets), Some(10));
        assert!(table.replace(handles[1], Mark::new(2).unwrap(), Level::Mark, &Actions::drop()).is_some());
        table.find(&packet(1), &mut Vec::new()).unwrap().count_marked(60, 6);
        assert_eq!(table.remove(handles[1]).map(|stats| (stats.packets, stats.used_ns)), Some((11, 6)));
        assert_eq!(table.forgotten(), 0);
        table.find(&packet(0), &mut Vec::new()).unwrap().count_full(60, 5);
        table.discard(handles[0]);
        assert_eq!(table.forgotten(), 1);
        table.clear();
        table.clear();
        assert_eq!(table.forgotten(), 11);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u32, u32),
        Remove(usize),
        Look(u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u32..8, 1u32..8).prop_map(|(value, mask)| Step::Insert(value & mask, mask)),
            any::<usize>().prop_map(Step::Remove),
            (0u32..8).prop_map(Step::Look),
        ]
    }

    proptest! {
        #[test]
        fn a_packet_finds_a_rule_exactly_when_one_matches(steps in prop::collection::vec(step(), 0..60)) {
            let mut table = Table::default();
            let mut rules: Vec<(Handle, u32, u32, u32)> = Vec::new();
            for (step, mark) in steps.into_iter().zip(1..) {
                match step {
                    Step::Insert(value, mask) => {
                        let there = rules.iter().any(|rule| (rule.1, rule.2) == (value, mask));
                        let handle = insert(&mut table, &rule(value, mask), mark);
                        prop_assert_eq!(handle.is_none(), there);
                        rules.extend(handle.map(|handle| (handle, value, mask, mark)));
                    }
                    Step::Remove(_) if rules.is_empty() => {}
                    Step::Remove(i) => {
                        let (handle, ..) = rules.remove(i % rules.len());
                        prop_assert!(table.remove(handle).is_some());
                        prop_assert!(table.remove(handle).is_none());
                    }
                    Step::Look(destination) => {
                        let matching = |rule: &&(Handle, u32, u32, u32)| destination & rule.2 == rule.1;
                        let marks: Vec<u32> = rules.iter().filter(matching).map(|rule| rule.3).collect();
                        match found(&table, destination) {
                            Some(mark) => prop_assert!(marks.contains(&mark)),
                            None => prop_assert!(marks.is_empty()),
                        }
                    }
                }
                prop_assert_eq!(table.len(), rules.len());
            }
        }
    }

    #[test]
    fn a_rule_of_a_port_does_not_match_another() {
        let (mut key, mut mask) = (Key::ZERO, Mask::EMPTY);
        key.set(Field::InPort, PortNo(1).0);
        mask.add_field(Field::InPort);
        let mut table = Table::default();
        insert(&mut table, &Match::new(&key, &mask), 9).unwrap();
        let mut columns = packet(0);
        for (port, mark) in [(1u128, Some(9)), (2, None)] {
            columns[column(Field::InPort)] = port;
            assert_eq!(table.find(&columns, &mut Vec::new()).map(|rule| rule.mark.0.get()), mark);
        }
    }
}
