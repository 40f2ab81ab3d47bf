//! Finds the rule for a key, and which bits prove that it is the one.
//!
//! A [`Table`] is searched as a tuple space: rules with the same mask stand in one [`Subtable`], where one hash look-up
//! finds the only ones that can match. Subtables are ranked by their best rule, so the search ends at the first subtable
//! whose best could not win any more.
//!
//! # Which bits were looked at
//!
//! A megaflow made from a decision catches every packet that agrees with the decided one in [`Sight::known`]. For all of
//! those the same rule must win, so
//!
//! - the winner's mask is known: they all match the winner;
//! - for every better rule some known bit differs from what that rule wants: none of them matches a better one.
//!
//! The second part is where width is won. In a subtable of up to [`FEW`] rules each better rule is disproved by itself:
//! for nothing, when a known bit already differs; else by its first differing field in the order of [`STAGES`], and of
//! an address only by the prefix down to the first differing bit. In a larger subtable all rules are disproved at once:
//! by an address prefix that none of them has, or by the first stages of the mask that no rule agrees with.
//!
//! # Deciding again
//!
//! A megaflow's masked key has zeros where the megaflow has wildcards. Those may differ from rules in places where the
//! first packet did not, and looking there would widen the mask for nothing. [`Sight::hint`] names the bits that the
//! megaflow has anyway: proofs are taken from them wherever they suffice, and for unchanged rules they always do.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::{HashMap, HashSet, HashTable};
use smallvec::SmallVec;

use super::rules::{Rank, Rule, RuleSpec};
use crate::flow::{Field, Key, Mask, Match};

/// Up to so many rules in a subtable are disproved one by one.
const FEW: usize = 32;

/// The order in which bits are spent on proofs: first those that every megaflow has anyway, then layer by layer.
/// Fields that share their bits with another are named once.
const STAGES: [&[Field]; 4] = {
    use Field::*;
    [
        &[InPort, RecircId, EthType, Vlan0Cfi, Vlan0Tpid, Vlan1Cfi, Vlan1Tpid],
        &[
            EthDst, EthSrc, Vlan0Vid, Vlan0Pcp, Vlan1Vid, Vlan1Pcp, Mpls0Label, Mpls0Tc, Mpls0Bos, Mpls0Ttl,
            Mpls1Label, Mpls1Tc, Mpls1Bos, Mpls1Ttl, Mpls2Label, Mpls2Tc, Mpls2Bos, Mpls2Ttl,
        ],
        &[IpProto, IpFrag, Ipv4Dst, Ipv4Src, Ipv6Dst, Ipv6Src, IpTos, IpTtl, Ipv6Label],
        &[TpDst, TpSrc, TcpFlags, ArpSha, ArpTha, NdTarget, NdOptionsType, NdReserved],
    ]
};

/// Fields that are looked at from the front, as far as needed.
const ADDRESSES: [Field; 5] = [Field::Ipv4Dst, Field::Ipv4Src, Field::Ipv6Dst, Field::Ipv6Src, Field::NdTarget];

/// What may be relied on of a key.
pub(super) struct Sight {
    /// Bits whose value all packets of the megaflow in the making share.
    pub known: Mask,
    /// Bits that may be looked at for nothing.
    pub hint: Mask,
}

impl Sight {
    /// Whether looking at `mask` costs nothing.
    fn is_free(&self, mask: &Mask) -> bool {
        let mut free = self.known;
        free.add_all(&self.hint);
        free.contains(mask)
    }
}

/// The rules of one table.
#[derive(Clone, Default)]
pub(super) struct Table {
    by_mask: HashMap<Mask, Arc<Subtable>, RandomState>,
    /// The same subtables, the one with the best rule first. Empty while the table is being changed, so that a
    /// subtable nobody else shares can be changed where it stands.
    ranked: Vec<Arc<Subtable>>,
}

impl Table {
    /// The best rule that matches `key`, after adding to `sight.known` what proves it (or, without one, what proves that none does).
    pub fn lookup(&self, key: &Key, sight: &mut Sight) -> Option<&Arc<Rule>> {
        let winner = self.find(key);
        if let Some(rule) = winner {
            sight.known.add_all(rule.spec.matching.mask());
        }
        let floor = winner.map(|r| r.rank());
        for subtable in self.ranked.iter().take_while(|s| Some(s.best) > floor) {
            subtable.disprove(key, floor, sight);
        }
        winner
    }

    fn find(&self, key: &Key) -> Option<&Arc<Rule>> {
        let mut best: Option<&Arc<Rule>> = None;
        for subtable in &self.ranked {
            if best.is_some_and(|b| b.rank() > subtable.best) {
                break;
            }
            if let Some(rule) = subtable.find(key)
                && best.is_none_or(|b| rule.rank() > b.rank())
            {
                best = Some(rule);
            }
        }
        best
    }

    pub fn is_empty(&self) -> bool {
        self.by_mask.is_empty()
    }

    /// In no order.
    pub fn rules(&self) -> impl Iterator<Item = &Arc<Rule>> {
        self.by_mask.values().flat_map(|s| s.rules.iter().flatten())
    }

    /// The rule with the same priority and match.
    pub fn same(&self, spec: &RuleSpec) -> Option<&Arc<Rule>> {
        let rules = self.by_mask.get(spec.matching.mask())?.all(spec.matching.key())?;
        position(rules, spec.priority).ok().map(|at| &rules[at])
    }

    /// Adds a rule; there must be none with the same priority and match. [`Table::seal`] must follow.
    pub fn insert(&mut self, rule: Arc<Rule>) {
        self.ranked.clear();
        let mask = *rule.spec.matching.mask();
        Arc::make_mut(self.by_mask.entry(mask).or_insert_with(|| Arc::new(Subtable::new(mask)))).insert(rule);
    }

    /// Removes a rule. [`Table::seal`] must follow.
    pub fn remove(&mut self, rule: &Arc<Rule>) {
        self.ranked.clear();
        if let Some(subtable) = self.by_mask.get_mut(rule.spec.matching.mask()) {
            Arc::make_mut(subtable).remove(rule);
        }
    }

    /// Removes every rule that `unwanted` says yes to. [`Table::seal`] must follow.
    pub fn remove_all(&mut self, unwanted: &impl Fn(&Rule) -> bool) {
        self.ranked.clear();
        for subtable in self.by_mask.values_mut() {
            if subtable.rules.iter().flatten().any(|r| unwanted(r)) {
                Arc::make_mut(subtable).remove_all(unwanted);
            }
        }
    }

    /// Makes the table fit for look-ups again after changes.
    pub fn seal(&mut self) {
        self.by_mask.retain(|_, s| !s.rules.is_empty());
        for subtable in self.by_mask.values_mut().filter(|s| matches!(s.proof, Proof::Stale)) {
            Arc::make_mut(subtable).seal();
        }
        self.ranked = self.by_mask.values().cloned().collect();
        self.ranked.sort_by_key(|s| std::cmp::Reverse(s.best));
    }
}

/// Rules with the same mask.
#[derive(Clone)]
struct Subtable {
    mask: Mask,
    hasher: RandomState,
    /// By masked key; of equal matches the highest priority first.
    rules: HashTable<SmallVec<[Arc<Rule>; 1]>>,
    best: Rank,
    proof: Proof,
}

/// What shows that no rule of a subtable matches.
#[derive(Clone)]
enum Proof {
    /// The rules have changed since.
    Stale,
    /// Each rule by itself, the best first.
    Each(Vec<Arc<Rule>>),
    /// All at once.
    Staged { prefixes: Vec<Prefixes>, stages: Vec<Stage> },
}

/// The beginnings of the mask, up to the end of a stage, and which masked keys begin so.
#[derive(Clone)]
struct Stage {
    mask: Mask,
    /// Hashes only: a collision looks at a stage more than needed, which is harmless.
    keys: HashSet<u64, RandomState>,
}

/// The prefixes that rules have in an address field. All have the same length, as they have the same mask.
#[derive(Clone)]
struct Prefixes {
    field: Field,
    mask: u128,
    /// Sorted, without repeats.
    values: Vec<u128>,
}

impl Subtable {
    fn new(mask: Mask) -> Subtable {
        let hasher = RandomState::default();
        let best = (0, std::cmp::Reverse(u64::MAX));
        Subtable { mask, hasher, rules: HashTable::new(), best, proof: Proof::Stale }
    }

    fn hash(&self, key: &Key, mask: &Mask) -> u64 {
        hash(&self.hasher, key, mask)
    }

    fn all(&self, key: &Key) -> Option<&SmallVec<[Arc<Rule>; 1]>> {
        self.rules.find(self.hash(key, &self.mask), |rules| rules[0].spec.matching.matches(key))
    }

    fn find(&self, key: &Key) -> Option<&Arc<Rule>> {
        self.all(key).map(|rules| &rules[0])
    }

    fn insert(&mut self, rule: Arc<Rule>) {
        self.proof = Proof::Stale;
        let (hasher, mask) = (self.hasher.clone(), self.mask);
        let key = *rule.spec.matching.key();
        match self.rules.find_mut(hash(&hasher, &key, &mask), |rules| rules[0].spec.matching.matches(&key)) {
            Some(rules) => {
                let at = position(rules, rule.spec.priority).unwrap_or_else(|at| at);
                rules.insert(at, rule);
            }
            None => {
                let rehash = |rules: &SmallVec<[Arc<Rule>; 1]>| hash(&hasher, rules[0].spec.matching.key(), &mask);
                self.rules.insert_unique(hash(&hasher, &key, &mask), SmallVec::from_buf([rule]), rehash);
            }
        }
    }

    fn remove(&mut self, rule: &Arc<Rule>) {
        self.proof = Proof::Stale;
        let key = rule.spec.matching.key();
        let hash = self.hash(key, &self.mask);
        if let Ok(mut entry) = self.rules.find_entry(hash, |rules| rules[0].spec.matching.matches(key)) {
            if let Ok(at) = position(entry.get(), rule.spec.priority) {
                entry.get_mut().remove(at);
            }
            if entry.get().is_empty() {
                entry.remove();
            }
        }
    }

    fn remove_all(&mut self, unwanted: impl Fn(&Rule) -> bool) {
        self.proof = Proof::Stale;
        self.rules.retain(|rules| {
            rules.retain(|rule| !unwanted(rule));
            !rules.is_empty()
        });
    }

    /// Rebuilds what look-ups need from the rules.
    fn seal(&mut self) {
        let count: usize = self.rules.iter().map(SmallVec::len).sum();
        if count <= FEW {
            let mut rules: Vec<_> = self.rules.iter().flatten().cloned().collect();
            rules.sort_by_key(|r| std::cmp::Reverse(r.rank()));
            self.best = rules.first().map_or(self.best, |r| r.rank());
            self.proof = Proof::Each(rules);
            return;
        }
        // Rules lie all over the memory: one walk copies what the rest needs.
        let mut keys = Vec::with_capacity(self.rules.len());
        self.best = (0, std::cmp::Reverse(u64::MAX));
        for rules in &self.rules {
            self.best = self.best.max(rules[0].rank());
            keys.push(*rules[0].spec.matching.key());
        }
        self.proof = Proof::Staged { prefixes: self.prefixes(&keys), stages: self.stages(&keys) };
    }

    fn prefixes(&self, keys: &[Key]) -> Vec<Prefixes> {
        let is_prefix = |f: &Field| {
            let mask = self.mask.get(*f);
            mask != 0 && (mask | (mask - 1)) == f.full()
        };
        let prefixes = |field: Field| {
            let mut values: Vec<u128> = keys.iter().map(|key| key.get(field)).collect();
            values.sort_unstable();
            values.dedup();
            Prefixes { field, mask: self.mask.get(field), values }
        };
        ADDRESSES.into_iter().filter(is_prefix).map(prefixes).collect()
    }

    fn stages(&self, keys: &[Key]) -> Vec<Stage> {
        let mut stages = Vec::new();
        let mut mask = Mask::EMPTY;
        for fields in STAGES {
            let before = mask;
            for &field in fields {
                mask.add(field, self.mask.get(field));
            }
            if mask != before {
                let mut stage = Stage { mask, keys: HashSet::default() };
                stage.keys.extend(keys.iter().map(|key| self.hash(key, &mask)));
                stages.push(stage);
            }
        }
        stages
    }

    /// Adds to `sight.known` what shows that no rule ranked above `floor` matches `key`. None does.
    fn disprove(&self, key: &Key, floor: Option<Rank>, sight: &mut Sight) {
        match &self.proof {
            Proof::Each(rules) => {
                for rule in rules.iter().take_while(|r| Some(r.rank()) > floor) {
                    disprove(&rule.spec.matching, key, sight);
                }
            }
            Proof::Staged { prefixes, stages } => {
                let mask = self.cheapest(key, prefixes, stages, |mask| sight.is_free(mask));
                let mask = mask.or_else(|| self.cheapest(key, prefixes, stages, |_| true));
                // Without a proof that none matches, a rule below the floor does: then so it is for the whole mask.
                sight.known.add_all(&mask.unwrap_or(self.mask));
            }
            Proof::Stale => sight.known.add_all(&self.mask),
        }
    }

    /// Bits that show that no rule matches: the first stages that no rule has, or an address prefix that none has if
    /// that comes before. Only of those that `allowed` says yes to.
    fn cheapest(
        &self,
        key: &Key,
        prefixes: &[Prefixes],
        stages: &[Stage],
        allowed: impl Fn(&Mask) -> bool,
    ) -> Option<Mask> {
        let absent = prefixes.iter().filter_map(|p| p.absent(key)).filter(|mask| allowed(mask));
        let absent = absent.min_by_key(|mask| mask.words().iter().map(|w| w.count_ones()).sum::<u32>());
        let has_address = |mask: &Mask| ADDRESSES.iter().any(|f| mask.get(*f) != 0);
        for stage in stages {
            if absent.is_some() && has_address(&stage.mask) {
                return absent;
            }
            if allowed(&stage.mask) && !stage.keys.contains(&self.hash(key, &stage.mask)) {
                return Some(stage.mask);
            }
        }
        None
    }
}

/// Where among rules of the same match, the best first, the one with this priority is (or belongs).
fn position(rules: &[Arc<Rule>], priority: u16) -> Result<usize, usize> {
    rules.binary_search_by(|rule| priority.cmp(&rule.spec.priority))
}

impl Prefixes {
    /// The shortest prefix of the key's address that shows that it begins like none of ours; `None` when one is its beginning.
    fn absent(&self, key: &Key) -> Option<Mask> {
        // All our values have zeros behind the prefix, so the key's neighbours in the order share the most bits with it.
        let address = key.get(self.field) & self.mask;
        let after = self.values.partition_point(|v| *v <= address);
        let near = [after.checked_sub(1), Some(after)];
        let shared = near.into_iter().flatten().filter_map(|i| self.values.get(i));
        let differing = shared.map(|v| v ^ address).min()?;
        let mut mask = Mask::EMPTY;
        mask.add(self.field, prefix_to(self.field, differing)?);
        Some(mask)
    }
}

/// All bits of `field` from its front to the first one in `differing`; `None` when there is none.
fn prefix_to(field: Field, differing: u128) -> Option<u128> {
    let bit = 127u32.checked_sub(differing.leading_zeros())?;
    Some(field.full() & !((1u128 << bit) - 1))
}

/// Adds to `sight.known` what shows that `rule` does not match `key`. It must not.
fn disprove(rule: &Match, key: &Key, sight: &mut Sight) {
    let mut differing = Mask::EMPTY;
    for (i, out) in differing.words_mut().iter_mut().enumerate() {
        *out = (rule.key().words()[i] ^ key.words()[i]) & rule.mask().words()[i];
    }
    let shared = |a: &Mask, b: &Mask| Mask::from_words(std::array::from_fn(|i| a.words()[i] & b.words()[i]));
    if shared(&differing, &sight.known) != Mask::EMPTY {
        return;
    }
    let hinted = shared(&differing, &sight.hint);
    let (differing, usable) =
        if hinted != Mask::EMPTY { (hinted, shared(rule.mask(), &sight.hint)) } else { (differing, *rule.mask()) };
    for &field in STAGES.iter().copied().flatten() {
        let bits = differing.get(field);
        if bits != 0 {
            let seen = if ADDRESSES.contains(&field) { prefix_to(field, bits).unwrap_or(u128::MAX) } else { u128::MAX };
            sight.known.add(field, seen & usable.get(field));
            return;
        }
    }
    debug_assert!(false, "a rule that matches, or that looks at bits of no field");
    sight.known.add_all(rule.mask());
}

fn hash(hasher: &RandomState, key: &Key, mask: &Mask) -> u64 {
    let mut state = hasher.build_hasher();
    for (k, m) in key.words().iter().zip(mask.words()).filter(|(_, m)| **m != 0) {
        state.write_u64(k & m);
    }
    state.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::field::{FIELDS, WORDS};

    #[test]
    fn the_stages_name_every_bit_of_every_field_once() {
        let mut seen = [0u64; WORDS];
        for &field in STAGES.iter().copied().flatten() {
            let mut one = Mask::EMPTY;
            one.add_field(field);
            for (all, new) in seen.iter_mut().zip(one.words()) {
                assert_eq!(*all & new, 0, "{} shares bits with a field named before", field.name());
                *all |= new;
            }
        }
        for def in &FIELDS {
            assert!(Mask::from_words(seen).is_exact(def.field), "{} is in no stage", def.name);
        }
    }

    #[test]
    fn an_absent_prefix_is_as_short_as_its_nearest_neighbour_allows() {
        let prefixes =
            Prefixes { field: Field::Ipv4Dst, mask: 0xffff_ff00, values: vec![0x0a00_0000, 0x0a00_0100, 0xc0a8_0000] };
        let absent = |address: u32| {
            let mut key = Key::ZERO;
            key.set(Field::Ipv4Dst, address);
            prefixes.absent(&key).map(|m| (m.get(Field::Ipv4Dst) as u32).leading_ones())
        };
        assert_eq!(absent(0x0a00_0200), Some(23));
        assert_eq!(absent(0x7f00_0001), Some(2));
        assert_eq!(absent(0xc0a8_0001), None);
    }
}
