//! The words of a match, both ways.

use super::scan::{Fail, Piece, port_name};
use crate::flow::key::{eth_type, frag, ip_proto};
use crate::flow::text::PortNames;
use crate::flow::{Field, Key, Mask, Match, PortNo};

/// What a match must say for a word to mean anything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Requires {
    Nothing,
    Vlan,
    Mpls,
    Arp,
    Ipv4,
    Ipv4OrArp,
    Ipv6,
    Ip,
    IpOrArp,
    Transport,
    Tcp,
    Udp,
    Sctp,
    Icmp,
    Icmp6,
    AnyIcmp,
    Nd,
    NdSolicit,
    NdAdvert,
}

impl Requires {
    /// As a person would write it.
    pub fn words(self) -> &'static str {
        match self {
            Requires::Nothing => "nothing",
            Requires::Vlan => "a VLAN tag: dl_vlan=N, vlan_tci=0x1000/0x1000, or an earlier push_vlan",
            Requires::Mpls => "mpls or mplsm",
            Requires::Arp => "arp or rarp",
            Requires::Ipv4 => "ip",
            Requires::Ipv4OrArp => "ip, arp or rarp",
            Requires::Ipv6 => "ipv6",
            Requires::Ip => "ip or ipv6",
            Requires::IpOrArp => "ip, ipv6, arp or rarp",
            Requires::Transport => "tcp, udp or sctp",
            Requires::Tcp => "tcp or tcp6",
            Requires::Udp => "udp or udp6",
            Requires::Sctp => "sctp or sctp6",
            Requires::Icmp => "icmp",
            Requires::Icmp6 => "icmp6",
            Requires::AnyIcmp => "icmp or icmp6",
            Requires::Nd => "icmp6,icmp_type=135 or 136,icmp_code=0",
            Requires::NdSolicit => "icmp6,icmp_type=135,icmp_code=0",
            Requires::NdAdvert => "icmp6,icmp_type=136,icmp_code=0",
        }
    }

    /// Whether every packet that `m` matches has it.
    pub fn holds(self, m: &Match) -> bool {
        let exact = |f: Field| m.mask().is_exact(f).then(|| m.key().get(f) as u16);
        let ether = |types: &[u16]| exact(Field::EthType).is_some_and(|t| types.contains(&t));
        let ip = || ether(&[eth_type::IPV4, eth_type::IPV6]);
        let arp = || ether(&[eth_type::ARP, eth_type::RARP]);
        let proto = |protos: &[u8]| ip() && exact(Field::IpProto).is_some_and(|p| protos.contains(&(p as u8)));
        let icmp = || ether(&[eth_type::IPV4]) && proto(&[ip_proto::ICMP]);
        let icmp6 = || ether(&[eth_type::IPV6]) && proto(&[ip_proto::ICMP6]);
        let nd = |types: &[u16]| {
            let is_type = exact(Field::Icmp6Type).is_some_and(|t| types.contains(&t));
            icmp6() && is_type && exact(Field::Icmp6Code) == Some(0)
        };
        match self {
            Requires::Nothing => true,
            Requires::Vlan => exact(Field::Vlan0Cfi) == Some(1),
            Requires::Mpls => ether(&[eth_type::MPLS, eth_type::MPLS_MULTICAST]),
            Requires::Arp => arp(),
            Requires::Ipv4 => ether(&[eth_type::IPV4]),
            Requires::Ipv4OrArp => ether(&[eth_type::IPV4]) || arp(),
            Requires::Ipv6 => ether(&[eth_type::IPV6]),
            Requires::Ip => ip(),
            Requires::IpOrArp => ip() || arp(),
            Requires::Transport => proto(&[ip_proto::TCP, ip_proto::UDP, ip_proto::SCTP]),
            Requires::Tcp => proto(&[ip_proto::TCP]),
            Requires::Udp => proto(&[ip_proto::UDP]),
            Requires::Sctp => proto(&[ip_proto::SCTP]),
            Requires::Icmp => icmp(),
            Requires::Icmp6 => icmp6(),
            Requires::AnyIcmp => icmp() || icmp6(),
            Requires::Nd => nd(&[135, 136]),
            Requires::NdSolicit => nd(&[135]),
            Requires::NdAdvert => nd(&[136]),
        }
    }
}

/// How a word's value is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Form {
    /// A number up to this, all bits of which count.
    Exact(u16),
    /// A number up to this, with or without a mask.
    Masked(u32),
    Mac,
    Ipv4,
    Ipv6,
    /// A number up to `.0`, shifted left by `.1` in the field, of which only these bits count.
    Part(u8, u8),
}

impl Form {
    /// Value and mask, as they lie in the field.
    pub fn parse(self, field: Field, value: &Piece) -> Result<(u128, u128), Fail> {
        match self {
            Form::Exact(max) => Ok((value.number(max.into())?.into(), field.full())),
            Form::Masked(max) => value.masked_number(max.into()),
            Form::Mac => value.mac(),
            Form::Ipv4 => value.ipv4(),
            Form::Ipv6 => value.ipv6(),
            Form::Part(max, shift) => Ok((u128::from(value.number(max.into())?) << shift, u128::from(max) << shift)),
        }
    }

    /// The same as text.
    pub fn format(self, field: Field, value: u128, mask: u128) -> String {
        let full = field.full();
        let mac = |v: u128| {
            let bytes = (v as u64).to_be_bytes();
            bytes[2..].iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":")
        };
        let v4 = |v: u128| std::net::Ipv4Addr::from(v as u32).to_string();
        let v6 = |v: u128| std::net::Ipv6Addr::from(v).to_string();
        let address = |text: &dyn Fn(u128) -> String| match mask {
            _ if mask == full => text(value),
            0 => format!("{}/0", text(value)),
            _ if (mask | (mask - 1)) == full => format!("{}/{}", text(value), mask.count_ones()),
            _ => format!("{}/{}", text(value), text(mask)),
        };
        match self {
            Form::Part(_, shift) => (value >> shift).to_string(),
            Form::Exact(_) => value.to_string(),
            Form::Masked(max) if mask == u128::from(max) && field == Field::Ipv6Label => format!("{value:#07x}"),
            Form::Masked(max) if mask == u128::from(max) => value.to_string(),
            Form::Masked(_) => format!("{value:#x}/{mask:#x}"),
            Form::Mac if mask == full => mac(value),
            Form::Mac => format!("{}/{}", mac(value), mac(mask)),
            Form::Ipv4 => address(&v4),
            Form::Ipv6 => address(&v6),
        }
    }
}

const PORT: Form = Form::Masked(0xffff);

/// A word for a field. Several words may stand for one; printing takes the first whose requirement holds.
type Word = (&'static str, Field, Form, Requires);

/// Words that stand for a field as it is, in the order of printing.
static WORDS: [Word; 45] = {
    use Field::*;
    use Requires::*;
    [
        ("dl_src", EthSrc, Form::Mac, Nothing),
        ("eth_src", EthSrc, Form::Mac, Nothing),
        ("dl_dst", EthDst, Form::Mac, Nothing),
        ("eth_dst", EthDst, Form::Mac, Nothing),
        ("arp_spa", ArpSip, Form::Ipv4, Arp),
        ("nw_src", Ipv4Src, Form::Ipv4, Ipv4OrArp),
        ("ip_src", Ipv4Src, Form::Ipv4, Ipv4),
        ("arp_tpa", ArpTip, Form::Ipv4, Arp),
        ("nw_dst", Ipv4Dst, Form::Ipv4, Ipv4OrArp),
        ("ip_dst", Ipv4Dst, Form::Ipv4, Ipv4),
        ("ipv6_src", Ipv6Src, Form::Ipv6, Ipv6),
        ("ipv6_dst", Ipv6Dst, Form::Ipv6, Ipv6),
        ("ipv6_label", Ipv6Label, Form::Masked(0xf_ffff), Ipv6),
        ("arp_op", ArpOp, Form::Exact(255), Arp),
        ("nw_proto", IpProto, Form::Exact(255), IpOrArp),
        ("ip_proto", IpProto, Form::Exact(255), Ip),
        ("ip_dscp", IpTos, Form::Part(63, 2), Ip),
        ("nw_ecn", IpTos, Form::Part(3, 0), Ip),
        ("ip_ecn", IpTos, Form::Part(3, 0), Ip),
        ("nw_ttl", IpTtl, Form::Exact(255), Ip),
        ("tp_src", TpSrc, PORT, Transport),
        ("tcp_src", TpSrc, PORT, Tcp),
        ("udp_src", TpSrc, PORT, Udp),
        ("sctp_src", TpSrc, PORT, Sctp),
        ("tp_dst", TpDst, PORT, Transport),
        ("tcp_dst", TpDst, PORT, Tcp),
        ("udp_dst", TpDst, PORT, Udp),
        ("sctp_dst", TpDst, PORT, Sctp),
        ("icmp_type", IcmpType, Form::Exact(255), AnyIcmp),
        ("icmpv6_type", Icmp6Type, Form::Exact(255), Icmp6),
        ("icmp6_type", Icmp6Type, Form::Exact(255), Icmp6),
        ("icmpv4_type", IcmpType, Form::Exact(255), Icmp),
        ("icmp_code", IcmpCode, Form::Exact(255), AnyIcmp),
        ("icmpv6_code", Icmp6Code, Form::Exact(255), Icmp6),
        ("icmp6_code", Icmp6Code, Form::Exact(255), Icmp6),
        ("icmpv4_code", IcmpCode, Form::Exact(255), Icmp),
        ("nd_target", NdTarget, Form::Ipv6, Nd),
        ("nd_sll", NdSll, Form::Mac, NdSolicit),
        ("nd_tll", NdTll, Form::Mac, NdAdvert),
        ("arp_sha", ArpSha, Form::Mac, Arp),
        ("arp_tha", ArpTha, Form::Mac, Arp),
        ("mpls_label", Mpls0Label, Form::Masked(0xf_ffff), Mpls),
        ("mpls_tc", Mpls0Tc, Form::Exact(7), Mpls),
        ("mpls_bos", Mpls0Bos, Form::Exact(1), Mpls),
        ("mpls_ttl", Mpls0Ttl, Form::Exact(255), Mpls),
    ]
};

/// Words whose values are read each in its own way.
static OWN: [&str; 12] = [
    "in_port",
    "dl_type",
    "eth_type",
    "dl_vlan",
    "dl_vlan_pcp",
    "vlan_pcp",
    "vlan_vid",
    "vlan_tci",
    "nw_tos",
    "ip_frag",
    "nw_frag",
    "tcp_flags",
];

/// One word for an Ethernet type and protocol, as printing prefers them.
static SHORTHANDS: [(&str, u16, Option<u8>); 15] = [
    ("tcp", eth_type::IPV4, Some(ip_proto::TCP)),
    ("udp", eth_type::IPV4, Some(ip_proto::UDP)),
    ("sctp", eth_type::IPV4, Some(ip_proto::SCTP)),
    ("icmp", eth_type::IPV4, Some(ip_proto::ICMP)),
    ("tcp6", eth_type::IPV6, Some(ip_proto::TCP)),
    ("udp6", eth_type::IPV6, Some(ip_proto::UDP)),
    ("sctp6", eth_type::IPV6, Some(ip_proto::SCTP)),
    ("icmp6", eth_type::IPV6, Some(ip_proto::ICMP6)),
    ("ip", eth_type::IPV4, None),
    ("ipv6", eth_type::IPV6, None),
    ("ip6", eth_type::IPV6, None),
    ("arp", eth_type::ARP, None),
    ("rarp", eth_type::RARP, None),
    ("mpls", eth_type::MPLS, None),
    ("mplsm", eth_type::MPLS_MULTICAST, None),
];

/// Values of `ip_frag`, with their masks. Bit 0 says "a fragment", bit 1 "not the first".
static FRAGS: [(&str, u8, u8); 5] =
    [("no", frag::NO, 3), ("first", frag::FIRST, 3), ("yes", 1, 1), ("later", 2, 2), ("not_later", 0, 2)];

/// Flags of a TCP header from bit 0 (RFC 9293 §3.1; NS: RFC 3540).
static FLAGS: [&str; 9] = ["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr", "ns"];
/// They and the three bits that are reserved.
const ALL_FLAGS: u128 = 0xfff;

const TCI_CFI: u64 = 0x1000;
/// Where a key's first VLAN slot holds the TCI.
const TCI_WORD: usize = 3;
const TCI_SHIFT: u32 = 32;

/// Gathers the words of a match.
#[derive(Default)]
pub(super) struct Builder<'t> {
    key: Key,
    mask: Mask,
    /// To be held against the whole match.
    required: Vec<(Piece<'t>, Requires)>,
}

impl<'t> Builder<'t> {
    /// Adds `WORD=VALUE`, or with an empty value a shorthand.
    pub fn word(&mut self, word: Piece<'t>, value: Piece<'t>, ports: &dyn PortNames) -> Result<(), Fail> {
        if let Some((_, ether, proto)) = SHORTHANDS.iter().find(|(name, ..)| *name == word.text) {
            if !value.text.is_empty() {
                return Err(value.fail(format!("{} takes no value", word.text)));
            }
            self.put(word, Field::EthType, u128::from(*ether), 0xffff)?;
            return proto.map_or(Ok(()), |p| self.put(word, Field::IpProto, p.into(), 0xff));
        }
        let name = match word.text {
            // As Open vSwitch has it: what TCP keeps in its ports, ICMP keeps in type and code.
            "tp_src" if self.is_icmp() => "icmp_type",
            "tp_dst" if self.is_icmp() => "icmp_code",
            name => name,
        };
        if value.text == "*" && (OWN.contains(&name) || WORDS.iter().any(|(known, ..)| *known == name)) {
            return Ok(());
        }
        match name {
            "in_port" => {
                let port = value.port(ports)?;
                self.put(word, Field::InPort, port.0.into(), Field::InPort.full())
            }
            "dl_type" | "eth_type" => {
                self.put(word, Field::EthType, value.number(0xffff)?.into(), Field::EthType.full())
            }
            "dl_vlan" if value.number(0xffff)? == 0xffff => self.tci(word, 0, TCI_CFI),
            "dl_vlan" => self.tci(word, TCI_CFI | value.number(0xfff)?, TCI_CFI | 0xfff),
            "dl_vlan_pcp" | "vlan_pcp" => self.tci(word, TCI_CFI | value.number(7)? << 13, TCI_CFI | 7 << 13),
            "vlan_vid" => self.vlan_vid(word, value),
            "vlan_tci" => {
                let (vid, mask) = value.masked_number(0xffff)?;
                self.tci(word, (vid & mask) as u64, mask as u64)
            }
            "nw_tos" => {
                self.required.push((word, Requires::Ip));
                self.put(word, Field::IpTos, tos(&value)?, 0xfc)
            }
            "ip_frag" | "nw_frag" => {
                self.required.push((word, Requires::Ip));
                let known = FRAGS.iter().find(|(name, ..)| *name == value.text);
                let (_, frag, mask) = known.ok_or_else(|| value.refuse("no, yes, first, later or not_later"))?;
                self.put(word, Field::IpFrag, (*frag).into(), (*mask).into())
            }
            "tcp_flags" => {
                self.required.push((word, Requires::Tcp));
                let (flags, mask) = tcp_flags(&value)?;
                self.put(word, Field::TcpFlags, flags, mask)
            }
            _ => {
                let Some((_, field, form, requires)) = WORDS.iter().find(|(known, ..)| *known == name) else {
                    return Err(word.refuse("a word of a match, like in_port, tcp or nw_dst (see offload-flow(7))"));
                };
                self.required.push((word, *requires));
                let (value, mask) = form.parse(*field, &value)?;
                self.put(word, *field, value, mask)
            }
        }
    }

    fn is_icmp(&self) -> bool {
        Requires::AnyIcmp.holds(&Match::new(&self.key, &self.mask))
    }

    /// `V[/M]` of 13 bits: bit 12 says that there is a tag. As people write it, a plain vid means a tag with it; a plain 0, none.
    fn vlan_vid(&mut self, word: Piece<'t>, value: Piece<'t>) -> Result<(), Fail> {
        let (vid, mask) = value.masked_number(0x1fff)?;
        let (vid, mask) = (vid as u64, mask as u64);
        match value.masked().1 {
            Some(_) => self.tci(word, vid & mask, mask),
            None if vid == 0 => self.tci(word, 0, TCI_CFI),
            None => self.tci(word, vid | TCI_CFI, mask),
        }
    }

    /// Adds bits of the first tag's TCI. Without a tag they are all 0.
    fn tci(&mut self, word: Piece<'t>, tci: u64, mask: u64) -> Result<(), Fail> {
        let absent = mask & TCI_CFI != 0 && tci & TCI_CFI == 0;
        if absent && tci != 0 {
            return Err(
                word.fail(format!("{} asks for bits of a tag and for no tag; bit 0x1000 is a tag's", word.text))
            );
        }
        let mask = if absent { TCI_CFI } else { mask };
        let fields = [(Field::Vlan0Cfi, 12), (Field::Vlan0Vid, 0), (Field::Vlan0Pcp, 13)];
        fields.into_iter().try_for_each(|(field, shift)| {
            let of = |bits: u64| u128::from(bits >> shift) & field.full();
            self.put(word, field, of(tci), of(mask))
        })
    }

    fn put(&mut self, word: Piece<'t>, field: Field, value: u128, mask: u128) -> Result<(), Fail> {
        let (before, known) = (self.key.get(field), self.mask.get(field));
        if (before ^ value) & known & mask != 0 {
            return Err(word.fail(format!("{} contradicts what the match says of {} before", word.text, field.name())));
        }
        self.key.set(field, before | value & mask);
        self.mask.add(field, mask);
        Ok(())
    }

    /// The match, when every word has what it needs.
    pub fn finish(self) -> Result<Match, Fail> {
        let matching = Match::new(&self.key, &self.mask);
        match self.required.iter().find(|(_, requires)| !requires.holds(&matching)) {
            Some((word, requires)) => Err(word.fail(format!("{} needs {}", word.text, requires.words()))),
            None => Ok(matching),
        }
    }
}

/// A DS byte whose ECN bits are 0.
pub(super) fn tos(value: &Piece) -> Result<u128, Fail> {
    match value.number(255)? {
        tos if tos & 3 == 0 => Ok(tos.into()),
        _ => Err(value.refuse("a multiple of 4 from 0 to 252; the ECN bits are nw_ecn's")),
    }
}

/// `+flag-flag…` of some flags, `flag|flag…` of all, or `VALUE[/MASK]`.
fn tcp_flags(value: &Piece) -> Result<(u128, u128), Fail> {
    let (mut flags, mut mask, mut rest) = (0, 0, *value);
    if value.text.starts_with(|c: char| c.is_ascii_alphabetic()) {
        while let Some((name, more)) = rest.split("|") {
            flags |= tcp_flag(&name)?;
            rest = more;
        }
        return Ok((flags | tcp_flag(&rest)?, ALL_FLAGS));
    }
    if !value.text.starts_with(['+', '-']) {
        return value.masked_number(ALL_FLAGS as u64);
    }
    while !rest.text.is_empty() {
        let sign = rest.take(1);
        let name = rest.take(rest.text.find(['+', '-']).unwrap_or(rest.text.len()));
        let flag = tcp_flag(&name)?;
        mask |= flag;
        if sign.text == "+" {
            flags |= flag;
        }
    }
    Ok((flags, mask))
}

/// The bit of a flag's name.
fn tcp_flag(name: &Piece) -> Result<u128, Fail> {
    match FLAGS.iter().position(|f| *f == name.text) {
        Some(bit) => Ok(1 << bit),
        None => Err(name.refuse(&format!("a TCP flag ({})", FLAGS.join(", ")))),
    }
}

/// The words of a match.
pub(super) fn format(m: &Match, ports: &dyn PortNames) -> Vec<String> {
    let mut words = Vec::new();
    let exact = |f: Field| m.mask().is_exact(f).then(|| m.key().get(f));
    let mut shown = Mask::EMPTY;
    if let Some(ether) = exact(Field::EthType) {
        shown.add_field(Field::EthType);
        let proto = exact(Field::IpProto);
        let short = |(_, e, p): &&(&str, u16, Option<u8>)| {
            u128::from(*e) == ether && p.is_none_or(|p| Some(u128::from(p)) == proto)
        };
        match SHORTHANDS.iter().find(short) {
            Some((name, _, proto)) => {
                words.push((*name).to_owned());
                if proto.is_some() {
                    shown.add_field(Field::IpProto);
                }
            }
            None => words.push(format!("dl_type={ether:#06x}")),
        }
    }
    if let Some(port) = exact(Field::InPort) {
        words.push(format!("in_port={}", port_name(PortNo(port as u32), ports)));
    }
    format_tag(m, &mut words);
    if let Some((name, ..)) = FRAGS.iter().find(|(_, value, mask)| {
        m.mask().get(Field::IpFrag) == u128::from(*mask) && m.key().get(Field::IpFrag) == u128::from(*value)
    }) {
        words.push(format!("ip_frag={name}"));
    }
    format_tcp_flags(m, &mut words);
    for &(name, field, form, requires) in &WORDS {
        let part = match form {
            Form::Part(max, shift) => u128::from(max) << shift,
            _ => field.full(),
        };
        let mask = m.mask().get(field) & part;
        if mask & !shown.get(field) == 0 || !requires.holds(m) {
            continue;
        }
        shown.add(field, part);
        words.push(format!("{name}={}", form.format(field, m.key().get(field) & part, mask)));
    }
    words
}

fn format_tag(m: &Match, words: &mut Vec<String>) {
    let tci = |all: &[u64]| all[TCI_WORD] >> TCI_SHIFT & 0xffff;
    let (value, mask) = (tci(m.key().words()), tci(m.mask().words()));
    let (vid, pcp) = (mask & 0xfff, mask & 0xe000);
    let whole = matches!(vid, 0 | 0xfff) && matches!(pcp, 0 | 0xe000) && vid | pcp != 0;
    if mask == 0 {
        return;
    }
    if whole && value & mask & TCI_CFI != 0 {
        if vid != 0 {
            words.push(format!("dl_vlan={}", value & 0xfff));
        }
        if pcp != 0 {
            words.push(format!("dl_vlan_pcp={}", value >> 13));
        }
    } else {
        words.push(format!("vlan_tci={value:#06x}/{mask:#06x}"));
    }
}

fn format_tcp_flags(m: &Match, words: &mut Vec<String>) {
    let (value, mask) = (m.key().get(Field::TcpFlags), m.mask().get(Field::TcpFlags));
    if mask == 0 || !Requires::Tcp.holds(m) {
        return;
    }
    if mask == ALL_FLAGS && value != 0 && value >> FLAGS.len() == 0 {
        let set = FLAGS.iter().enumerate().filter(|(bit, _)| value >> bit & 1 != 0);
        words.push(format!("tcp_flags={}", set.map(|(_, name)| *name).collect::<Vec<_>>().join("|")));
        return;
    }
    if mask >> FLAGS.len() != 0 {
        words.push(format!("tcp_flags={value:#05x}/{mask:#05x}"));
        return;
    }
    let named = FLAGS.iter().enumerate().filter(|(bit, _)| mask >> bit & 1 != 0);
    let flags: String =
        named.map(|(bit, name)| format!("{}{name}", if value >> bit & 1 != 0 { '+' } else { '-' })).collect();
    words.push(format!("tcp_flags={flags}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_of_a_match_stands_in_the_manual_page() {
        let page = include_str!("../../../man/offload-flow.7");
        let described: Vec<&str> = page
            .lines()
            .filter(|line| line.starts_with(".It Cm "))
            .flat_map(|line| line.split([' ', ',']).skip(2).take_while(|word| *word != "Ns"))
            .collect();
        let short = SHORTHANDS.iter().map(|(name, ..)| *name);
        for word in WORDS.iter().map(|(name, ..)| *name).chain(short).chain(OWN) {
            assert!(described.contains(&word), "{word}");
        }
    }
}
