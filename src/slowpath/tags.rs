//! The VLAN tags of a packet while its rules are followed: where each came from, and what has become of it.
//!
//! A key shows the two outermost tags in two slots. Pushing and popping moves tags between slots, so what a rule sees
//! in slot 0 may be a tag that came in slot 1, or one that an earlier rule wrote itself and that no bit of the packet stands for:
//!
//! ```text
//!   as it came        pop           push            in the key
//!   slot 0: A         slot 0: B     slot 0: new     slot 0 ← constant
//!   slot 1: B                       slot 1: B       slot 1 ← slot 1
//! ```
//!
//! Whether a slot holds a tag, and with which TPID, is looked at in every decision, so of an absent tag everything is known.
//! A third tag is beyond the key, as in Open vSwitch: when both others are popped, it stays on the packet unseen.

use smallvec::SmallVec;

use crate::flow::{Action, Assign, Field, Header, Set};

/// Bits of a tag as they lie in a key's slot: `tpid(16) pcp(3) cfi(1) vid(12)`.
const CFI: u32 = 0x1000;

/// The tags, the innermost first.
#[derive(Default)]
pub(super) struct Tags {
    now: SmallVec<[Tag; 4]>,
    /// As the actions given out so far leave the packet.
    done: SmallVec<[u32; 4]>,
    next_id: u32,
}

#[derive(Clone, Copy)]
struct Tag {
    /// Tells it from every other tag of this packet.
    id: u32,
    bits: u32,
    /// The slot that it came in; `None` for one that was pushed.
    from: Option<usize>,
    /// Bits that do not come from the packet.
    written: u32,
    /// Bits written since actions were given out last.
    pending: u32,
}

impl Tags {
    /// The tags in word 3 of a key.
    pub fn of(word: u64) -> Tags {
        let mut tags = Tags::default();
        let slots = [(word >> 32) as u32, word as u32];
        let present = slots.iter().take_while(|s| **s & CFI != 0).count();
        for from in (0..present).rev() {
            tags.put(Tag { id: 0, bits: slots[from], from: Some(from), written: 0, pending: 0 });
        }
        tags.done = tags.now.iter().map(|t| t.id).collect();
        tags
    }

    fn put(&mut self, tag: Tag) {
        self.now.push(Tag { id: self.next_id, ..tag });
        self.next_id += 1;
    }

    pub fn push(&mut self, tpid: u16) {
        let bits = u32::from(tpid) << 16 | CFI;
        self.put(Tag { id: 0, bits, from: None, written: u32::MAX, pending: 0 });
    }

    pub fn pop(&mut self) {
        self.now.pop();
    }

    pub fn is_empty(&self) -> bool {
        self.now.is_empty()
    }

    /// Writes bits of the outermost tag; nothing without one.
    pub fn write(&mut self, field: Field, value: u128, mask: u128) {
        let shift = if field == Field::Vlan0Pcp { 13 } else { 0 };
        if let Some(tag) = self.now.last_mut() {
            let (value, mask) = ((value << shift) as u32, (mask << shift) as u32);
            tag.bits = tag.bits & !mask | value & mask;
            tag.written |= mask;
            tag.pending |= mask;
        }
    }

    /// Word 3 of the key as it is now.
    pub fn word(&self) -> u64 {
        self.slots(|tag| tag.map_or(0, |t| t.bits))
    }

    /// Bits of [`Tags::word`] that count as seen when the bits `seen` of the word that came are.
    pub fn seen(&self, seen: u64) -> u64 {
        self.slots(|tag| tag.map_or(u32::MAX, |t| t.written | t.from.map_or(0, |slot| slot_of(seen, slot))))
    }

    /// The bits of the word that came which `bits` of [`Tags::word`] stem from.
    pub fn origin(&self, bits: u64) -> u64 {
        let mut origin = 0;
        for (slot, tag) in self.now.iter().rev().take(2).enumerate() {
            if let Some(from) = tag.from {
                origin |= u64::from(slot_of(bits, slot) & !tag.written) << shift_of(from);
            }
        }
        origin
    }

    fn slots(&self, value: impl Fn(Option<&Tag>) -> u32) -> u64 {
        let mut outermost = self.now.iter().rev();
        let (outer, inner) = (value(outermost.next()), value(outermost.next()));
        u64::from(outer) << 32 | u64::from(inner)
    }

    /// Gives out what turns the tags that the packet has now into these: takes off what is gone, writes the outermost
    /// of those that stay (no other can have been written), puts the new ones on.
    pub fn commit(&mut self, out: &mut Vec<Action>) {
        let stay = self.done.iter().zip(&self.now).take_while(|(id, tag)| **id == tag.id).count();
        out.extend((stay..self.done.len()).map(|_| Action::PopVlan));
        if let Some(tag) = self.now[..stay].last_mut() {
            out.extend(tag.rewrite());
        }
        for tag in &mut self.now[stay..] {
            out.push(Action::PushVlan { tpid: (tag.bits >> 16) as u16, tci: tag.bits as u16 });
            tag.pending = 0;
        }
        self.done = self.now.iter().map(|t| t.id).collect();
    }
}

impl Tag {
    fn rewrite(&mut self) -> Option<Action> {
        let assign = |field, shift: u32, full: u32| {
            let mask = self.pending >> shift & full;
            (mask != 0).then(|| Assign { field, value: u128::from(self.bits >> shift & mask), mask: mask.into() })
        };
        let vid = assign(Field::Vlan0Vid, 0, 0xfff);
        let assigns: SmallVec<[Assign; 2]> = vid.into_iter().chain(assign(Field::Vlan0Pcp, 13, 7)).collect();
        self.pending = 0;
        Set::new(Header::Vlan, &assigns).ok().map(Action::Set)
    }
}

fn shift_of(slot: usize) -> u32 {
    if slot == 0 { 32 } else { 0 }
}

fn slot_of(word: u64, slot: usize) -> u32 {
    (word >> shift_of(slot)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAGGED: u64 = 0x88a8_1064_8100_3007;

    #[test]
    fn a_popped_tags_neighbour_keeps_its_origin_and_a_pushed_one_has_none() {
        let mut tags = Tags::of(TAGGED);
        assert_eq!(tags.word(), TAGGED);
        tags.pop();
        assert_eq!(tags.word(), 0x8100_3007_0000_0000);
        assert_eq!(tags.origin(0x0fff_0000_0000), 0x0fff);
        tags.push(0x8100);
        assert_eq!(tags.word(), 0x8100_1000_8100_3007);
        assert_eq!(tags.origin(0x0fff_0000_0fff), 0x0fff);
        assert_eq!(tags.seen(0x0007), 0xffff_ffff_0000_0007);
    }

    #[test]
    fn what_is_pushed_and_popped_again_leaves_no_trace() {
        let mut tags = Tags::of(TAGGED);
        tags.push(0x8100);
        tags.pop();
        let mut out = Vec::new();
        tags.commit(&mut out);
        assert!(out.is_empty(), "{out:?}");
    }

    #[test]
    fn an_inner_tag_is_written_before_others_are_put_on_it() {
        let mut tags = Tags::of(TAGGED);
        tags.pop();
        tags.write(Field::Vlan0Vid, 9, 0xfff);
        tags.push(0x88a8);
        tags.write(Field::Vlan0Vid, 5, 0xfff);
        let mut out = Vec::new();
        tags.commit(&mut out);
        let set = Set::new(Header::Vlan, &[Assign::full(Field::Vlan0Vid, 9)]).unwrap();
        assert_eq!(out, [Action::PopVlan, Action::Set(set), Action::PushVlan { tpid: 0x88a8, tci: 0x1005 }]);
        out.clear();
        tags.commit(&mut out);
        assert!(out.is_empty(), "{out:?}");
    }
}
