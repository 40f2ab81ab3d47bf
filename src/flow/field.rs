//! The registry of match fields: where each lies in a [`Key`](super::Key), how wide it is, and when it means something.
//!
//! [`FIELDS`] is the one list. Keys, masks, both flow syntaxes, `set_field` and the reasons a device gives all
//! read it, so a new field is one row here, its extraction, and its words in the two syntaxes.
//!
//! # Layout of a key
//!
//! A key is [`WORDS`] 64-bit words, most significant bit first. Fields that can never hold a meaning at the same
//! time share bits (an ARP address lies where the IPv4 address does), which keeps a key short to hash and compare.
//!
//! ```text
//! word  63                              31                              0
//!  0    in_port(32)                     recirc_id(32)
//!  1    eth_dst(48)                                     eth_type(16)
//!  2    eth_src(48)                                     -(16)
//!  3    vlan0: tpid(16) pcp(3) cfi(1) vid(12)     vlan1: the same
//!  4    mpls0: label(20) tc(3) bos(1) ttl(8)      mpls1: the same
//!  5    mpls2: the same                 -(12) ipv6_label(20)
//!  6    ipv4_src | arp_sip (32)         ipv4_dst | arp_tip (32)
//!  7,8  ipv6_src(128)
//!  9,10 ipv6_dst(128)
//! 11    ip_proto | arp_op (8) ip_tos(8) ip_ttl(8) ip_frag(8)   tp_src | icmp_type (16)  tp_dst | icmp_code (16)
//! 12    tcp_flags(16) nd_options_type(8) -(8)   nd_reserved(32)
//! 13    arp_sha | nd_sll (48)                           -(16)
//! 14    arp_tha | nd_tll (48)                           -(16)
//! 15,16 nd_target(128)
//! ```

/// 64-bit words in a key.
pub const WORDS: usize = 17;

/// One match field. The discriminant is its row in [`FIELDS`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Field {
    InPort,
    RecircId,
    EthDst,
    EthSrc,
    /// The type after all VLAN tags: the value below `0x600` of an IEEE 802.3 length frame is `0x05ff`, as in Open vSwitch.
    EthType,
    Vlan0Tpid,
    Vlan0Pcp,
    /// 1 when the tag is present, as in Open vSwitch: tells "no tag" from "tag with vid 0".
    Vlan0Cfi,
    Vlan0Vid,
    Vlan1Tpid,
    Vlan1Pcp,
    Vlan1Cfi,
    Vlan1Vid,
    Mpls0Label,
    Mpls0Tc,
    Mpls0Bos,
    Mpls0Ttl,
    Mpls1Label,
    Mpls1Tc,
    Mpls1Bos,
    Mpls1Ttl,
    Mpls2Label,
    Mpls2Tc,
    Mpls2Bos,
    Mpls2Ttl,
    Ipv4Src,
    Ipv4Dst,
    ArpSip,
    ArpTip,
    Ipv6Src,
    Ipv6Dst,
    Ipv6Label,
    IpProto,
    /// The whole DS byte: DSCP and ECN (IPv6: traffic class).
    IpTos,
    /// TTL, or IPv6's hop limit.
    IpTtl,
    /// [`frag::NO`](super::key::frag::NO), [`FIRST`](super::key::frag::FIRST) or [`LATER`](super::key::frag::LATER).
    IpFrag,
    /// ARP operation; 0 for operations above 255, as in Open vSwitch.
    ArpOp,
    TpSrc,
    TpDst,
    IcmpType,
    IcmpCode,
    Icmp6Type,
    Icmp6Code,
    /// The twelve flag bits of the TCP header (RFC 9293 §3.1, with the reserved bits above CWR).
    TcpFlags,
    NdOptionsType,
    NdReserved,
    ArpSha,
    ArpTha,
    NdTarget,
    NdSll,
    NdTll,
}

/// Where a field lies: `bits` bits of word `word`, the lowest at `shift`. A 128-bit field takes `word` (its high half) and `word + 1`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slice {
    pub word: u8,
    pub shift: u8,
    pub bits: u8,
}

/// How people write a field's value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Notation {
    Decimal,
    Hex,
    Mac,
    Ipv4,
    Ipv6,
    Frag,
    FlagNames,
}

/// What a packet must be for the field to mean anything; bits of other packets are zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Needs {
    Nothing,
    Vlan0,
    Vlan1,
    Mpls,
    Arp,
    Ipv4,
    Ipv6,
    Ip,
    /// TCP, UDP or SCTP.
    Transport,
    Tcp,
    Icmp,
    Icmp6,
    /// ICMPv6 neighbour solicitation or advertisement (RFC 4861).
    Nd,
}

/// A row of [`FIELDS`].
#[derive(Clone, Copy, Debug)]
pub struct FieldDef {
    pub field: Field,
    /// The name in messages, and in `set_field:VALUE->NAME`.
    pub name: &'static str,
    pub at: Slice,
    pub notation: Notation,
    pub needs: Needs,
}

const fn row(field: Field, name: &'static str, at: (u8, u8, u8), notation: Notation, needs: Needs) -> FieldDef {
    let (word, shift, bits) = at;
    FieldDef { field, name, at: Slice { word, shift, bits }, notation, needs }
}

/// Every field, in the order of [`Field`].
pub static FIELDS: [FieldDef; 51] = {
    use Field::*;
    use Needs as N;
    use Notation::*;
    [
        row(InPort, "in_port", (0, 32, 32), Decimal, N::Nothing),
        row(RecircId, "recirc_id", (0, 0, 32), Hex, N::Nothing),
        row(EthDst, "eth_dst", (1, 16, 48), Mac, N::Nothing),
        row(EthSrc, "eth_src", (2, 16, 48), Mac, N::Nothing),
        row(EthType, "eth_type", (1, 0, 16), Hex, N::Nothing),
        row(Vlan0Tpid, "vlan_tpid", (3, 48, 16), Hex, N::Vlan0),
        row(Vlan0Pcp, "vlan_pcp", (3, 45, 3), Decimal, N::Vlan0),
        row(Vlan0Cfi, "vlan_cfi", (3, 44, 1), Decimal, N::Vlan0),
        row(Vlan0Vid, "vlan_vid", (3, 32, 12), Decimal, N::Vlan0),
        row(Vlan1Tpid, "vlan1_tpid", (3, 16, 16), Hex, N::Vlan1),
        row(Vlan1Pcp, "vlan1_pcp", (3, 13, 3), Decimal, N::Vlan1),
        row(Vlan1Cfi, "vlan1_cfi", (3, 12, 1), Decimal, N::Vlan1),
        row(Vlan1Vid, "vlan1_vid", (3, 0, 12), Decimal, N::Vlan1),
        row(Mpls0Label, "mpls_label", (4, 44, 20), Decimal, N::Mpls),
        row(Mpls0Tc, "mpls_tc", (4, 41, 3), Decimal, N::Mpls),
        row(Mpls0Bos, "mpls_bos", (4, 40, 1), Decimal, N::Mpls),
        row(Mpls0Ttl, "mpls_ttl", (4, 32, 8), Decimal, N::Mpls),
        row(Mpls1Label, "mpls1_label", (4, 12, 20), Decimal, N::Mpls),
        row(Mpls1Tc, "mpls1_tc", (4, 9, 3), Decimal, N::Mpls),
        row(Mpls1Bos, "mpls1_bos", (4, 8, 1), Decimal, N::Mpls),
        row(Mpls1Ttl, "mpls1_ttl", (4, 0, 8), Decimal, N::Mpls),
        row(Mpls2Label, "mpls2_label", (5, 44, 20), Decimal, N::Mpls),
        row(Mpls2Tc, "mpls2_tc", (5, 41, 3), Decimal, N::Mpls),
        row(Mpls2Bos, "mpls2_bos", (5, 40, 1), Decimal, N::Mpls),
        row(Mpls2Ttl, "mpls2_ttl", (5, 32, 8), Decimal, N::Mpls),
        row(Ipv4Src, "ip_src", (6, 32, 32), Ipv4, N::Ipv4),
        row(Ipv4Dst, "ip_dst", (6, 0, 32), Ipv4, N::Ipv4),
        row(ArpSip, "arp_spa", (6, 32, 32), Ipv4, N::Arp),
        row(ArpTip, "arp_tpa", (6, 0, 32), Ipv4, N::Arp),
        row(Ipv6Src, "ipv6_src", (7, 0, 128), Ipv6, N::Ipv6),
        row(Ipv6Dst, "ipv6_dst", (9, 0, 128), Ipv6, N::Ipv6),
        row(Ipv6Label, "ipv6_label", (5, 0, 20), Hex, N::Ipv6),
        row(IpProto, "ip_proto", (11, 56, 8), Decimal, N::Ip),
        row(IpTos, "nw_tos", (11, 48, 8), Hex, N::Ip),
        row(IpTtl, "nw_ttl", (11, 40, 8), Decimal, N::Ip),
        row(IpFrag, "ip_frag", (11, 32, 8), Frag, N::Ip),
        row(ArpOp, "arp_op", (11, 56, 8), Decimal, N::Arp),
        row(TpSrc, "tp_src", (11, 16, 16), Decimal, N::Transport),
        row(TpDst, "tp_dst", (11, 0, 16), Decimal, N::Transport),
        row(IcmpType, "icmp_type", (11, 16, 16), Decimal, N::Icmp),
        row(IcmpCode, "icmp_code", (11, 0, 16), Decimal, N::Icmp),
        row(Icmp6Type, "icmpv6_type", (11, 16, 16), Decimal, N::Icmp6),
        row(Icmp6Code, "icmpv6_code", (11, 0, 16), Decimal, N::Icmp6),
        row(TcpFlags, "tcp_flags", (12, 48, 16), FlagNames, N::Tcp),
        row(NdOptionsType, "nd_options_type", (12, 40, 8), Decimal, N::Nd),
        row(NdReserved, "nd_reserved", (12, 0, 32), Hex, N::Nd),
        row(ArpSha, "arp_sha", (13, 16, 48), Mac, N::Arp),
        row(ArpTha, "arp_tha", (14, 16, 48), Mac, N::Arp),
        row(NdTarget, "nd_target", (15, 0, 128), Ipv6, N::Nd),
        row(NdSll, "nd_sll", (13, 16, 48), Mac, N::Nd),
        row(NdTll, "nd_tll", (14, 16, 48), Mac, N::Nd),
    ]
};

impl Field {
    /// This field's row.
    #[inline]
    pub fn def(self) -> &'static FieldDef {
        &FIELDS[self as usize]
    }

    /// The name in messages.
    pub fn name(self) -> &'static str {
        self.def().name
    }

    /// Width in bits, 1 to 128.
    pub fn bits(self) -> u8 {
        self.def().at.bits
    }

    /// The largest value, which is also the mask of an exact match.
    #[inline]
    pub fn full(self) -> u128 {
        let bits = self.def().at.bits;
        if bits == 128 { u128::MAX } else { (1u128 << bits) - 1 }
    }

    /// This field of `words`.
    #[inline]
    pub fn get(self, words: &[u64; WORDS]) -> u128 {
        let Slice { word, shift, bits } = self.def().at;
        let word = word as usize;
        if bits == 128 {
            (u128::from(words[word]) << 64) | u128::from(words[word + 1])
        } else {
            u128::from(words[word] >> shift) & self.full()
        }
    }

    /// Replaces this field of `words`; bits of `value` above the field's width are ignored.
    #[inline]
    pub fn set(self, words: &mut [u64; WORDS], value: u128) {
        let Slice { word, shift, bits } = self.def().at;
        let word = word as usize;
        if bits == 128 {
            words[word] = (value >> 64) as u64;
            words[word + 1] = value as u64;
        } else {
            let full = self.full() as u64;
            words[word] = (words[word] & !(full << shift)) | (((value as u64) & full) << shift);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_stands_at_its_fields_number() {
        for (i, def) in FIELDS.iter().enumerate() {
            assert_eq!(def.field as usize, i, "{}", def.name);
        }
    }

    #[test]
    fn setting_a_field_changes_only_fields_that_share_its_bits() {
        for def in &FIELDS {
            let mut words = [0u64; WORDS];
            def.field.set(&mut words, u128::MAX);
            assert_eq!(def.field.get(&words), def.field.full(), "{}", def.name);
            let ones: u32 = words.iter().map(|w| w.count_ones()).sum();
            assert_eq!(ones, u32::from(def.at.bits), "{}", def.name);
            def.field.set(&mut words, 0);
            assert_eq!(words, [0; WORDS], "{}", def.name);
        }
    }
}
