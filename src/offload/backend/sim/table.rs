//! [`Table`]: the NIC's rules, in one group for each set of compared bits, oldest group first.
//!
//! A rule compares *columns*: the places of [`FIELDS`], counted once where fields share one (an ARP address and an
//! IPv4 address are the same column, since no packet has both). A packet is found by cutting its columns down to the
//! group's bits and looking for exactly that.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::flow::Match;
use crate::flow::field::FIELDS;
use crate::offload::backend::Handle;
use crate::offload::mark::Mark;
use crate::offload::state::FlowStats;

/// A packet as the NIC sees it: the value of each column, by the number of its first field.
pub type Columns = [u128; FIELDS.len()];

/// Rules and their counts. Lookup takes `&self`.
#[derive(Default)]
pub struct Table {
    groups: Vec<Group>,
    places: HashMap<Handle, (Vec<Compared>, Vec<u128>)>,
}

/// The bits of one column that count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Compared {
    column: u8,
    bits: u128,
}

struct Group {
    compared: Vec<Compared>,
    rules: HashMap<Vec<u128>, Entry>,
}

struct Entry {
    handle: Handle,
    mark: Mark,
    packets: AtomicU64,
    bytes: AtomicU64,
    used_ns: AtomicU64,
}

impl Table {
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// `false`, and no change, if there is a rule with this very match.
    pub fn insert(&mut self, handle: Handle, matching: &Match, mark: Mark) -> bool {
        let (compared, values) = columns_of(matching);
        let group = match self.groups.iter().position(|group| group.compared == compared) {
            Some(at) => &mut self.groups[at],
            None => self.groups.push_mut(Group { compared: compared.clone(), rules: HashMap::new() }),
        };
        if group.rules.contains_key(&values) {
            return false;
        }
        let zero = || AtomicU64::new(0);
        let entry = Entry { handle, mark, packets: zero(), bytes: zero(), used_ns: zero() };
        group.rules.insert(values.clone(), entry);
        self.places.insert(handle, (compared, values));
        true
    }

    pub fn set_mark(&mut self, handle: Handle, mark: Mark) -> bool {
        let Some((compared, values)) = self.places.get(&handle) else { return false };
        let group = self.groups.iter_mut().find(|group| group.compared == *compared);
        let Some(entry) = group.and_then(|group| group.rules.get_mut(values)) else { return false };
        entry.mark = mark;
        true
    }

    /// The rule's counts, if it was there.
    pub fn remove(&mut self, handle: Handle) -> Option<FlowStats> {
        let (compared, values) = self.places.remove(&handle)?;
        let at = self.groups.iter().position(|group| group.compared == compared)?;
        let entry = self.groups[at].rules.remove(&values)?;
        if self.groups[at].rules.is_empty() {
            self.groups.remove(at);
        }
        Some(entry.stats())
    }

    pub fn clear(&mut self) {
        self.groups.clear();
        self.places.clear();
    }

    pub fn stats(&self, handle: Handle) -> Option<FlowStats> {
        let (compared, values) = self.places.get(&handle)?;
        let group = self.groups.iter().find(|group| group.compared == *compared)?;
        group.rules.get(values).map(Entry::stats)
    }

    /// The mark of the first rule that a packet of `bytes` bytes matches, which is counted. `scratch` is of no meaning.
    pub fn hit(&self, packet: &Columns, bytes: usize, now_ns: u64, scratch: &mut Vec<u128>) -> Option<Mark> {
        self.groups.iter().find_map(|group| {
            scratch.clear();
            scratch.extend(group.compared.iter().map(|c| packet[usize::from(c.column)] & c.bits));
            let entry = group.rules.get(scratch.as_slice())?;
            entry.packets.fetch_add(1, Ordering::Relaxed);
            entry.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
            entry.used_ns.store(now_ns, Ordering::Relaxed);
            Some(entry.mark)
        })
    }

    /// Exchanges the marks of the two oldest rules. `false` with fewer than two.
    pub fn swap_two_marks(&mut self) -> bool {
        let mut entries: Vec<_> = self.groups.iter_mut().flat_map(|group| group.rules.values_mut()).collect();
        entries.sort_unstable_by_key(|entry| entry.handle.0);
        let [first, second, ..] = entries.as_mut_slice() else { return false };
        std::mem::swap(&mut first.mark, &mut second.mark);
        true
    }
}

impl Entry {
    fn stats(&self) -> FlowStats {
        FlowStats {
            packets: self.packets.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            used_ns: self.used_ns.load(Ordering::Relaxed),
        }
    }
}

/// What a match compares, column by column, and with what.
fn columns_of(matching: &Match) -> (Vec<Compared>, Vec<u128>) {
    let first_there = |at: usize| FIELDS.iter().position(|def| def.at == FIELDS[at].at) == Some(at);
    (0..FIELDS.len())
        .filter(|&at| first_there(at))
        .filter_map(|at| {
            let field = FIELDS[at].field;
            let bits = matching.mask().get(field);
            (bits != 0).then(|| (Compared { column: at as u8, bits }, matching.key().get(field)))
        })
        .unzip()
}
