//! [`Key`], what a packet is compared with; [`Mask`], which of its bits count; [`Match`], the two together.
//!
//! # Thread-safety
//! Plain values. A key is 136 bytes: pass it by reference.

use std::fmt;
use std::hash::{Hash, Hasher};

use super::field::{Field, WORDS};

/// A port's number in the datapath, 1 to 65535. 0 stands for "no port" in keys of packets that came from none.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct PortNo(pub u32);

impl PortNo {
    pub const NONE: PortNo = PortNo(0);
    /// The highest number a port can have.
    pub const MAX: PortNo = PortNo(65_535);
}

impl fmt::Display for PortNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Ethernet types that decide how a packet is read on.
pub mod eth_type {
    pub const IPV4: u16 = 0x0800;
    pub const ARP: u16 = 0x0806;
    pub const RARP: u16 = 0x8035;
    pub const VLAN: u16 = 0x8100;
    pub const QINQ: u16 = 0x88a8;
    pub const IPV6: u16 = 0x86dd;
    pub const MPLS: u16 = 0x8847;
    pub const MPLS_MULTICAST: u16 = 0x8848;
    /// What a key holds for an IEEE 802.3 frame without an Ethernet type.
    pub const NONE: u16 = 0x05ff;
}

/// IP protocol numbers that have fields of their own.
pub mod ip_proto {
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ICMP6: u8 = 58;
    pub const SCTP: u8 = 132;
}

/// Values of [`Field::IpFrag`]: bit 0 says "a fragment", bit 1 "not the first".
pub mod frag {
    pub const NO: u8 = 0;
    pub const FIRST: u8 = 1;
    pub const LATER: u8 = 3;
}

/// What is known of a packet, as fields at fixed places ([the layout](super::field)).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Key {
    words: [u64; WORDS],
}

/// Which bits of a key count: 1 = must be equal, 0 = wildcard.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Mask {
    words: [u64; WORDS],
}

impl Default for Key {
    fn default() -> Self {
        Key::ZERO
    }
}

impl Default for Mask {
    fn default() -> Self {
        Mask::EMPTY
    }
}

impl Key {
    pub const ZERO: Key = Key { words: [0; WORDS] };

    #[inline]
    pub fn from_words(words: [u64; WORDS]) -> Key {
        Key { words }
    }

    #[inline]
    pub fn words(&self) -> &[u64; WORDS] {
        &self.words
    }

    #[inline]
    pub fn words_mut(&mut self) -> &mut [u64; WORDS] {
        &mut self.words
    }

    #[inline]
    pub fn get(&self, field: Field) -> u128 {
        field.get(&self.words)
    }

    #[inline]
    pub fn set(&mut self, field: Field, value: impl Into<u128>) {
        field.set(&mut self.words, value.into());
    }

    #[inline]
    pub fn in_port(&self) -> PortNo {
        PortNo((self.words[0] >> 32) as u32)
    }

    #[inline]
    pub fn eth_type(&self) -> u16 {
        self.words[1] as u16
    }

    #[inline]
    pub fn ip_proto(&self) -> u8 {
        (self.words[11] >> 56) as u8
    }

    /// Whether the outermost VLAN tag is there.
    #[inline]
    pub fn has_vlan(&self) -> bool {
        self.get(Field::Vlan0Cfi) != 0
    }
}

impl Mask {
    /// Matches every packet.
    pub const EMPTY: Mask = Mask { words: [0; WORDS] };
    /// Every bit counts.
    pub const EXACT: Mask = Mask { words: [u64::MAX; WORDS] };

    #[inline]
    pub fn from_words(words: [u64; WORDS]) -> Mask {
        Mask { words }
    }

    #[inline]
    pub fn words(&self) -> &[u64; WORDS] {
        &self.words
    }

    #[inline]
    pub fn words_mut(&mut self) -> &mut [u64; WORDS] {
        &mut self.words
    }

    #[inline]
    pub fn get(&self, field: Field) -> u128 {
        field.get(&self.words)
    }

    /// Adds `bits` of `field`; what is set stays set.
    #[inline]
    pub fn add(&mut self, field: Field, bits: u128) {
        let old = field.get(&self.words);
        field.set(&mut self.words, old | bits);
    }

    /// Adds all of `field`.
    #[inline]
    pub fn add_field(&mut self, field: Field) {
        field.set(&mut self.words, u128::MAX);
    }

    /// Adds every bit of `other`.
    #[inline]
    pub fn add_all(&mut self, other: &Mask) {
        for (mine, theirs) in self.words.iter_mut().zip(&other.words) {
            *mine |= theirs;
        }
    }

    /// The bits of `key` that count; the others 0.
    #[inline]
    pub fn apply(&self, key: &Key) -> Key {
        let mut words = [0; WORDS];
        for (out, (k, m)) in words.iter_mut().zip(key.words.iter().zip(&self.words)) {
            *out = k & m;
        }
        Key { words }
    }

    /// Adds the fields that say what other fields mean in a packet with this key: a mask that looks at a port also looks at
    /// the protocol, one that looks at a neighbour's address also at the ICMPv6 type. Ethernet type and VLAN tags are the
    /// caller's to look at.
    pub fn establish(&mut self, key: &Key) {
        const NEIGHBOUR: [Field; 5] =
            [Field::NdTarget, Field::NdSll, Field::NdTll, Field::NdOptionsType, Field::NdReserved];
        const TRANSPORT: [Field; 3] = [Field::TpSrc, Field::TpDst, Field::TcpFlags];
        if !matches!(key.eth_type(), eth_type::IPV4 | eth_type::IPV6) {
            return;
        }
        let looks_at = |fields: &[Field]| fields.iter().any(|field| self.get(*field) != 0);
        let neighbour = looks_at(&NEIGHBOUR);
        if neighbour || looks_at(&TRANSPORT) {
            self.add_field(Field::IpProto);
            self.add_field(Field::IpFrag);
        }
        if neighbour && key.ip_proto() == ip_proto::ICMP6 {
            self.add_field(Field::Icmp6Type);
        }
    }

    /// Whether every bit of `other` is also set here.
    pub fn contains(&self, other: &Mask) -> bool {
        self.words.iter().zip(&other.words).all(|(mine, theirs)| theirs & !mine == 0)
    }

    /// Whether every bit of `field` counts.
    pub fn is_exact(&self, field: Field) -> bool {
        self.get(field) == field.full()
    }
}

/// A masked key: `key` holds no bit that `mask` does not.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Match {
    key: Key,
    mask: Mask,
}

impl Match {
    /// Keeps of `key` what `mask` lets through.
    pub fn new(key: &Key, mask: &Mask) -> Match {
        Match { key: mask.apply(key), mask: *mask }
    }

    pub fn key(&self) -> &Key {
        &self.key
    }

    pub fn mask(&self) -> &Mask {
        &self.mask
    }

    /// Whether a packet with this key matches.
    #[inline]
    pub fn matches(&self, key: &Key) -> bool {
        self.key
            .words
            .iter()
            .zip(key.words.iter().zip(&self.mask.words))
            .all(|(want, (have, mask))| have & mask == *want)
    }

    /// Whether some packet could match both.
    pub fn overlaps(&self, other: &Match) -> bool {
        (0..WORDS).all(|i| (self.key.words[i] ^ other.key.words[i]) & self.mask.words[i] & other.mask.words[i] == 0)
    }
}

impl Hash for Match {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // The mask counts too: equal masked values under different masks are different megaflows.
        self.key.words.hash(state);
        self.mask.words.hash(state);
    }
}

fn debug_words(name: &str, words: &[u64; WORDS], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut s = f.debug_struct(name);
    for def in &super::field::FIELDS {
        let value = def.field.get(words);
        if value != 0 {
            s.field(def.name, &format_args!("{value:#x}"));
        }
    }
    s.finish()
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug_words("Key", &self.words, f)
    }
}

impl fmt::Debug for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug_words("Mask", &self.words, f)
    }
}

impl fmt::Debug for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Match").field("key", &self.key).field("mask", &self.mask).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_masked_values_under_different_masks_are_different_matches() {
        let mut key = Key::ZERO;
        key.set(Field::Ipv4Src, 0x0a00_0000u32);
        let (mut eight, mut sixteen) = (Mask::EMPTY, Mask::EMPTY);
        eight.add(Field::Ipv4Src, 0xff00_0000);
        sixteen.add(Field::Ipv4Src, 0xffff_0000);
        assert_ne!(Match::new(&key, &eight), Match::new(&key, &sixteen));
    }

    #[test]
    fn a_match_ignores_bits_outside_its_mask() {
        let mut key = Key::ZERO;
        key.set(Field::TpDst, 80u16);
        let mut mask = Mask::EMPTY;
        mask.add_field(Field::TpDst);
        let m = Match::new(&key, &mask);
        key.set(Field::TpSrc, 1u16);
        assert!(m.matches(&key));
        key.set(Field::TpDst, 81u16);
        assert!(!m.matches(&key));
    }
}
