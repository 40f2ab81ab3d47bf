//! [`Table`]: the rules that are in the program's maps, and the masks that they have.
//!
//! Every change ends with the program's processors having left what was before ([`Shared::settle`]): the kernel uses a removed rule's memory for
//! the next rule at once, and a packet that had found the old one must not meet the new one there. Where one does not leave it, nothing is put
//! before it has.

use std::io;
use std::sync::Arc;

use super::layout::{self, MASKS, Words};
use super::rewrite::Rewrite;
use super::shared::Shared;
use crate::flow::{Mask, Match};
use crate::offload::backend::{DeleteError, Handle, PutError};
use crate::offload::mark::Mark;
use crate::offload::state::FlowStats;

/// The rules of a device. One thread at a time: its owner is a lock.
pub struct Table {
    shared: Arc<Shared>,
    /// By the lower bits of their handles.
    rules: Vec<Option<Rule>>,
    /// Places there that are free.
    places: Vec<u32>,
    masks: [Option<Tried>; MASKS],
    capacity: usize,
    /// The upper bits of the next handle.
    serial: u64,
    next_mask: u32,
    /// Slots of counts that are at zero and that nobody has.
    slots: Vec<u32>,
    /// Slots of counts that a processor may yet count in.
    leaving: Vec<u32>,
    /// A processor may yet use memory of the map that a rule has left.
    unsettled: bool,
}

/// Lower bits of a handle, which are a place: more than rules can be.
const PLACE_BITS: u32 = 24;

/// A rule to be put.
pub struct New<'m> {
    pub matching: &'m Match,
    pub mark: Mark,
    pub rewrite: Rewrite,
    /// The slot of the port that it sends packets to, if it does.
    pub out: Option<u32>,
}

/// A rule in the maps.
struct Rule {
    handle: Handle,
    key: [u8; layout::KEY],
    /// The place of its mask.
    mask: usize,
    slot: u32,
    mark: Mark,
    out: Option<u32>,
    /// What it had counted in slots before.
    counted: FlowStats,
}

/// A mask that some rules have.
struct Tried {
    /// Never given twice.
    number: u32,
    mask: Mask,
    words: Words,
    rules: usize,
    /// How often it was hit when the masks were last put in order, and before its first rule.
    hits: u64,
    /// Hits between the last two times.
    recent: u64,
}

impl Table {
    pub fn new(shared: Arc<Shared>, capacity: usize) -> Table {
        Table {
            shared,
            rules: Vec::new(),
            places: Vec::new(),
            masks: std::array::from_fn(|_| None),
            capacity,
            serial: 0,
            next_mask: 0,
            slots: (0..=capacity as u32).rev().collect(),
            leaving: Vec::new(),
            unsettled: false,
        }
    }

    /// Whether rules send to the port of this slot.
    pub fn sends_to(&self, slot: usize) -> bool {
        // Asked when a port comes, which is rare enough to look at all.
        self.rules.iter().flatten().any(|rule| rule.out == Some(slot as u32))
    }

    pub fn put(&mut self, new: &New<'_>) -> Result<Handle, PutError> {
        self.be_settled()?;
        let slot = self.take_slot(0).ok_or(PutError::NoRoom)?;
        self.insert(new, slot)
    }

    /// Puts many rules of different matches, none of which is there, by one call of the kernel for all whose masks are tried already. What
    /// became of each, in order.
    pub fn put_all(&mut self, all: &[New<'_>]) -> Vec<Result<Handle, PutError>> {
        if let Err(error) = self.be_settled() {
            return vec![Err(error); all.len()];
        }
        let mut results: Vec<_> = all.iter().map(|_| Err(PutError::NoRoom)).collect();
        let (mut keys, mut values, mut batch) = (Vec::new(), Vec::new(), Vec::new());
        for (new, result) in all.iter().zip(&mut results) {
            let Some(slot) = self.take_slot(batch.len()) else { continue };
            let Some(mask) = self.tried(new.matching.mask()) else {
                // The program is to be told of its mask.
                *result = self.insert(new, slot);
                continue;
            };
            let key = self.key(mask, new.matching);
            keys.extend_from_slice(&key);
            values.extend_from_slice(&new.rewrite.rule(slot, new.mark.0.get(), new.out.unwrap_or(0)));
            batch.push((
                result,
                Rule {
                    handle: Handle(0),
                    key,
                    mask,
                    slot,
                    mark: new.mark,
                    out: new.out,
                    counted: FlowStats::default(),
                },
            ));
        }
        let mut batch = batch.into_iter();
        let mut from = 0;
        while batch.len() > 0 {
            let put = self.shared.rules.update_all(&keys[from * layout::KEY..], &values[from * layout::RULE..]);
            let (done, error) = put.map_or_else(|(done, error)| (done, Some(error)), |()| (batch.len(), None));
            batch.by_ref().take(done).for_each(|(result, rule)| *result = Ok(self.keep(rule)));
            if let (Some(error), Some((result, rule))) = (error, batch.next()) {
                *result = Err(refusal(&error));
                self.slots.push(rule.slot);
            }
            from += done + 1;
        }
        results
    }

    /// A place for a rule's counts, if there is room for the rule beside those that are there and so many `more`.
    fn take_slot(&mut self, more: usize) -> Option<u32> {
        let rules = self.rules.len() - self.places.len() + more;
        (rules < self.capacity).then(|| self.slots.pop())?
    }

    /// A match under the number of its mask, as the program looks for it.
    pub(super) fn key(&self, mask: usize, matching: &Match) -> [u8; layout::KEY] {
        let number = self.masks[mask].as_ref().map_or(0, |tried| tried.number);
        layout::bytes(&layout::words(matching.key().words(), number))
    }

    /// Puts a rule that counts in this slot, which is free again if that fails.
    fn insert(&mut self, new: &New<'_>, slot: u32) -> Result<Handle, PutError> {
        self.try_insert(new, slot).inspect_err(|_| self.slots.push(slot))
    }

    fn try_insert(&mut self, new: &New<'_>, slot: u32) -> Result<Handle, PutError> {
        let New { matching, mark, ref rewrite, out } = *new;
        let (mask, new) = self.mask_of(matching.mask()).ok_or(PutError::NoRoom)?;
        let key = self.key(mask, matching);
        let put = self.shared.rules.insert(&key, &rewrite.rule(slot, mark.0.get(), out.unwrap_or(0)));
        let put = put.map_err(|error| refusal(&error));
        let put = put.and_then(|()| match new {
            false => Ok(()),
            true => self.publish().map_err(|error| {
                // Not tried by anybody, so found by nobody.
                let _ = self.shared.rules.delete(&key);
                PutError::Device(error.to_string())
            }),
        });
        if let Err(error) = put {
            if new {
                self.masks[mask] = None;
            }
            return Err(error);
        }
        Ok(self.keep(Rule { handle: Handle(0), key, mask, slot, mark, out, counted: FlowStats::default() }))
    }

    /// Remembers a rule that is in the maps, under a handle of its own.
    fn keep(&mut self, rule: Rule) -> Handle {
        if let Some(tried) = &mut self.masks[rule.mask] {
            tried.rules += 1;
        }
        let place = self.places.pop().unwrap_or_else(|| {
            self.rules.push(None);
            self.rules.len() as u32 - 1
        });
        self.serial += 1;
        let handle = Handle(self.serial << PLACE_BITS | u64::from(place));
        self.rules[place as usize] = Some(Rule { handle, ..rule });
        handle
    }

    fn rule(&self, handle: Handle) -> Option<&Rule> {
        self.rules.get(place(handle))?.as_ref().filter(|rule| rule.handle == handle)
    }

    fn take_rule(&mut self, handle: Handle) -> Option<Rule> {
        let rule = self.rules.get_mut(place(handle))?.take_if(|rule| rule.handle == handle)?;
        self.places.push(place(handle) as u32);
        Some(rule)
    }

    /// No processor uses what has left the maps.
    ///
    /// # Errors
    /// One still may.
    fn settle(&mut self) -> io::Result<()> {
        self.unsettled = true;
        self.shared.settle()?;
        self.unsettled = false;
        while let Some(slot) = self.leaving.pop() {
            self.free_slot(slot);
        }
        Ok(())
    }

    /// No processor counts in this slot any more.
    fn free_slot(&mut self, slot: u32) {
        self.shared.clear(slot);
        self.slots.push(slot);
    }

    /// The same, where it has not been seen to be so yet.
    fn be_settled(&mut self) -> Result<(), PutError> {
        match self.unsettled {
            true => self.settle().map_err(|error| PutError::Device(error.to_string())),
            false => Ok(()),
        }
    }

    /// The place of this mask, if it is tried.
    pub(super) fn tried(&self, mask: &Mask) -> Option<usize> {
        self.masks.iter().position(|tried| tried.as_ref().is_some_and(|tried| tried.mask == *mask))
    }

    /// The place of this mask, and whether nobody tries it yet. `None`: there are too many.
    fn mask_of(&mut self, mask: &Mask) -> Option<(usize, bool)> {
        if let Some(place) = self.tried(mask) {
            return Some((place, false));
        }
        let place = self.masks.iter().position(Option::is_none)?;
        self.next_mask += 1;
        self.masks[place] = Some(Tried {
            number: self.next_mask,
            mask: *mask,
            words: layout::words(mask.words(), 0),
            rules: 0,
            hits: self.shared.mask_hits(place),
            recent: 0,
        });
        Some((place, true))
    }

    /// Tells the program the masks, the most hit first.
    fn publish(&self) -> io::Result<()> {
        let mut masks: Vec<_> =
            self.masks.iter().enumerate().filter_map(|(slot, tried)| Some((slot, tried.as_ref()?))).collect();
        masks.sort_by_key(|(_, tried)| (std::cmp::Reverse(tried.recent), tried.number));
        let masks: Vec<_> = masks.into_iter().map(|(slot, tried)| (tried.number, slot, tried.words)).collect();
        self.shared.publish(&masks)
    }

    /// Puts the masks in the order of their hits since the last call.
    pub fn reorder(&mut self) {
        let mut recent = Vec::new();
        for (slot, tried) in self.masks.iter_mut().enumerate() {
            let Some(tried) = tried else { continue };
            let hits = self.shared.mask_hits(slot);
            tried.recent = hits.saturating_sub(std::mem::replace(&mut tried.hits, hits));
            recent.push(tried.recent);
        }
        if recent.len() > 1 && recent.iter().any(|hits| *hits > 0)
            // They stay as they are, and work as well.
            && let Err(error) = self.publish()
        {
            log::debug!(target: "xdp", "masks in the order of their hits: {error}");
        }
    }

    /// Gives a rule another mark and rewrite. Answers with what it had counted until then.
    pub fn replace(
        &mut self,
        handle: Handle,
        mark: Mark,
        rewrite: &Rewrite,
        out: Option<u32>,
    ) -> Result<FlowStats, PutError> {
        let device = |text: String| PutError::Device(text);
        self.be_settled()?;
        let rule = self.rules.get_mut(place(handle)).and_then(Option::as_mut).filter(|rule| rule.handle == handle);
        let Some(rule) = rule else { return Err(device("there is no such rule".to_owned())) };
        // There is one more than rules.
        let Some(slot) = self.slots.pop() else { return Err(device("no place for counts".to_owned())) };
        let put = self.shared.rules.update(&rule.key, &rewrite.rule(slot, mark.0.get(), out.unwrap_or(0)));
        if let Err(error) = put {
            self.slots.push(slot);
            return Err(device(format!("replacing a rule: {error}")));
        }
        rule.mark = mark;
        let before = std::mem::replace(&mut rule.slot, slot);
        rule.out = out;
        // The rule stands as it is wanted; what the old one is still counting is lost at worst.
        let settled = self.settle();
        let counted = self.shared.counted(before);
        match settled {
            Ok(()) => self.free_slot(before),
            Err(_) => self.leaving.push(before),
        }
        let rule = self.rules.get_mut(place(handle)).and_then(Option::as_mut);
        Ok(rule.map_or(counted, |rule| {
            rule.counted = sum(rule.counted, counted);
            rule.counted
        }))
    }

    /// Removes a rule. Answers with all that it counted.
    pub fn delete(&mut self, handle: Handle) -> Result<FlowStats, DeleteError> {
        if self.rule(handle).is_none() {
            return Ok(FlowStats::default());
        }
        self.remove(handle)?;
        self.settle().map_err(|error| DeleteError(error.to_string()))?;
        let Some(rule) = self.take_rule(handle) else { return Ok(FlowStats::default()) };
        let counted = sum(rule.counted, self.shared.counted(rule.slot));
        self.forget(rule);
        Ok(counted)
    }

    /// Removes all of `handles`, waiting once.
    pub fn flush(&mut self, handles: &[Handle]) -> Result<(), DeleteError> {
        for handle in handles {
            self.remove(*handle)?;
        }
        self.settle().map_err(|error| DeleteError(error.to_string()))?;
        for handle in handles {
            if let Some(rule) = self.take_rule(*handle) {
                self.forget(rule);
            }
        }
        Ok(())
    }

    /// Takes a rule out of the program's sight.
    fn remove(&mut self, handle: Handle) -> Result<(), DeleteError> {
        let Some(rule) = self.rule(handle) else { return Ok(()) };
        let deleted = self.shared.rules.delete(&rule.key);
        self.unsettled = true;
        match deleted {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(DeleteError(error.to_string())),
            _ => Ok(()),
        }
    }

    /// What a rule had is free again: no program sees it any more.
    fn forget(&mut self, rule: Rule) {
        self.free_slot(rule.slot);
        let Some(tried) = &mut self.masks[rule.mask] else { return };
        tried.rules -= 1;
        if tried.rules == 0 {
            self.masks[rule.mask] = None;
            // A mask without rules is tried in vain, and nothing worse.
            let _ = self.publish();
        }
    }

    pub fn counted(&self, handle: Handle) -> FlowStats {
        self.rule(handle).map_or(FlowStats::default(), |rule| sum(rule.counted, self.shared.counted(rule.slot)))
    }

    pub fn handles(&self) -> Vec<Handle> {
        self.rules.iter().flatten().map(|rule| rule.handle).collect()
    }

    pub fn marks(&self) -> Vec<Mark> {
        self.rules.iter().flatten().map(|rule| rule.mark).collect()
    }
}

/// Why the kernel did not take a rule.
fn refusal(error: &io::Error) -> PutError {
    match error.raw_os_error() {
        Some(libc::E2BIG) => PutError::NoRoom,
        Some(libc::EEXIST) => PutError::Device("there is a rule of that match".to_owned()),
        _ => PutError::Device(format!("putting a rule: {error}")),
    }
}

fn place(handle: Handle) -> usize {
    (handle.0 & ((1 << PLACE_BITS) - 1)) as usize
}

fn sum(a: FlowStats, b: FlowStats) -> FlowStats {
    FlowStats { packets: a.packets + b.packets, bytes: a.bytes + b.bytes, used_ns: a.used_ns.max(b.used_ns) }
}
