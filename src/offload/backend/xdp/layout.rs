//! What the program and the daemon share, as `src/xdp/bpf/tables.h` describes it in C: sizes, places, and how keys are laid out.

use super::super::Unsupported;
use crate::flow::field::WORDS as KEY_WORDS;
use crate::flow::key::eth_type;
use crate::flow::{Field, Mask, Match};

/// Words of a key.
pub const WORDS: usize = 9;
/// Masks that rules have at once, and ports, and queues of a port.
pub const MASKS: usize = 64;
pub const PORTS: usize = 64;
pub const QUEUES: usize = 64;

/// `struct key`, `struct rule`, `struct count`, `struct cpu`, `struct control`, `struct table`, `struct port`; in bytes.
pub const KEY: usize = WORDS * 8;
pub const RULE: usize = 24 + 8 + 3 * 8 + 10 * 8;
pub const COUNT: usize = 32;
pub const CPU: usize = 64 + MASKS * 8 + PORTS * PORT_COUNTS;
pub const PORT_COUNTS: usize = 64;
pub const CONTROL: usize = 8;
pub const TABLE: usize = 8 + 2 * 4 * MASKS + MASKS * KEY;
pub const PORT: usize = 16;
pub const WIRE: usize = 8;

/// Places in `struct control`.
pub const CURRENT: usize = 0;
pub const FENCED: usize = 4;
/// Places in `struct cpu`.
pub const TURN: usize = 0;
pub const MASK_HITS: usize = 64;
pub const PORT_COUNTS_AT: usize = MASK_HITS + MASKS * 8;
/// Places in `struct table`.
pub const TABLE_COUNT: usize = 0;
pub const TABLE_NUMBERS: usize = 8;
pub const TABLE_SLOTS: usize = TABLE_NUMBERS + 4 * MASKS;
pub const TABLE_MASKS: usize = TABLE_SLOTS + 4 * MASKS;

/// `struct key`.
pub type Words = [u64; WORDS];

/// What the program knows of a key, under the mask of this number; 0 for a packet's own.
pub fn words(key: &[u64; KEY_WORDS], number: u32) -> Words {
    let upper = |word: u64| word & !0xffff;
    [
        key[0] & !0xffff_ffff | u64::from(number),
        key[1],
        upper(key[2]) | key[12] >> 48,
        key[3],
        key[6] | key[7],
        key[8],
        key[9],
        key[10],
        key[11],
    ]
}

/// The bytes of a key, as maps take them.
pub fn bytes(words: &Words) -> [u8; KEY] {
    let mut bytes = [0; KEY];
    for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

/// `struct bpf_devmap_val` of the interface of this index: frames go there as they are.
pub fn wire(interface: u32) -> [u8; WIRE] {
    let [a, b, c, d] = interface.to_ne_bytes();
    [a, b, c, d, 0, 0, 0, 0]
}

/// `struct port`.
pub fn port(number: u32, slot: u32, generation: u32) -> [u8; PORT] {
    let mut bytes = [0; PORT];
    for (place, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip([number, slot, generation]) {
        *place = word.to_ne_bytes();
    }
    bytes
}

/// The fields that the program reads.
const FIELDS: [Field; 27] = [
    Field::InPort,
    Field::RecircId,
    Field::EthDst,
    Field::EthSrc,
    Field::EthType,
    Field::Vlan0Tpid,
    Field::Vlan0Pcp,
    Field::Vlan0Cfi,
    Field::Vlan0Vid,
    Field::Vlan1Tpid,
    Field::Vlan1Pcp,
    Field::Vlan1Cfi,
    Field::Vlan1Vid,
    Field::Ipv4Src,
    Field::Ipv4Dst,
    Field::ArpSip,
    Field::ArpTip,
    Field::Ipv6Src,
    Field::Ipv6Dst,
    Field::IpProto,
    Field::IpTos,
    Field::IpTtl,
    Field::IpFrag,
    Field::ArpOp,
    Field::TpSrc,
    Field::TpDst,
    Field::TcpFlags,
];

/// The bits that the program can match.
pub fn fields() -> Mask {
    let mut mask = Mask::EMPTY;
    FIELDS.iter().for_each(|field| mask.add_field(*field));
    mask
}

/// Whether the program can tell the packets of `matching`, whose mask holds no bit beyond [`fields`].
///
/// # Errors
/// Names what is in the way.
pub fn check(matching: &Match) -> Result<(), Unsupported> {
    let (key, mask) = (matching.key(), matching.mask());
    if key.get(Field::RecircId) != 0 {
        // No packet comes a second time.
        return Err(Unsupported::Field(Field::RecircId));
    }
    // Addresses of both IP versions have the same place.
    let looks_at = |field: Field| mask.get(field) != 0;
    let (four, six) =
        (looks_at(Field::Ipv4Src) || looks_at(Field::Ipv4Dst), looks_at(Field::Ipv6Src) || looks_at(Field::Ipv6Dst));
    let is_six = key.eth_type() == eth_type::IPV6;
    if (four || six) && !mask.is_exact(Field::EthType) || four && is_six || six && !is_six {
        let field = if four { Field::Ipv4Src } else { Field::Ipv6Src };
        return Err(Unsupported::Field(field));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_that_can_be_matched_has_its_bits_in_the_words() {
        for field in FIELDS.into_iter().filter(|field| *field != Field::RecircId) {
            let mut mask = Mask::EMPTY;
            mask.add_field(field);
            let ones: u32 = words(mask.words(), 0).iter().map(|word| word.count_ones()).sum();
            assert_eq!(ones, crate::flow::field::FIELDS[field as usize].at.bits as u32, "{}", field.name());
        }
    }
}
