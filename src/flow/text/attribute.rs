//! The registry of attributes `NAME(FIELD=VALUE[/MASK],…)`: which fields each holds, and what must be matched for it to mean something.
//!
//! [`ATTRIBUTES`] lists each attribute behind those that it needs, in the order they are printed; [`ETH`] and [`VLAN`] need none.

use super::TextError;
use super::scan::{Scanner, quote};
use super::value::{self, Masked};
use crate::flow::key::{eth_type, frag, ip_proto};
use crate::flow::{Field, Key, Mask, Match};

/// A row of [`ATTRIBUTES`].
pub struct Attribute {
    pub name: &'static str,
    pub needs: Needs,
    /// Names and fields in the order they are printed. An unnamed field is the attribute's only one.
    pub fields: &'static [(&'static str, Field)],
}

/// What must be matched exactly before an attribute can be.
#[derive(Clone, Copy)]
pub enum Needs {
    Nothing,
    /// One of these packet types.
    EthType(&'static [u16]),
    /// One of these packet types, this IP protocol, and no fragment that is known to be a later one.
    Protocol(&'static [u16], u8),
    /// An ICMPv6 neighbour solicitation or advertisement.
    Neighbour,
}

const IPV4: &[u16] = &[eth_type::IPV4];
const IPV6: &[u16] = &[eth_type::IPV6];
const IP: &[u16] = &[eth_type::IPV4, eth_type::IPV6];

/// ICMPv6 types of neighbour solicitation and advertisement (RFC 4861 §4.3, §4.4).
const NEIGHBOUR_TYPES: std::ops::RangeInclusive<u128> = 135..=136;

pub static ETH: Attribute = row("eth", Needs::Nothing, &[("src", Field::EthSrc), ("dst", Field::EthDst)]);

/// The outer tag and the one behind it.
pub static VLAN: [Attribute; 2] = {
    use Field::*;
    [
        row("vlan", Needs::Nothing, &[("vid", Vlan0Vid), ("pcp", Vlan0Pcp), ("cfi", Vlan0Cfi)]),
        row("vlan", Needs::Nothing, &[("vid", Vlan1Vid), ("pcp", Vlan1Pcp), ("cfi", Vlan1Cfi)]),
    ]
};

/// The attributes that follow the packet's type.
pub static ATTRIBUTES: [Attribute; 12] = {
    use Field::*;
    [
        row(
            "mpls",
            Needs::EthType(&[eth_type::MPLS, eth_type::MPLS_MULTICAST]),
            &[
                ("label", Mpls0Label),
                ("tc", Mpls0Tc),
                ("ttl", Mpls0Ttl),
                ("bos", Mpls0Bos),
                ("label", Mpls1Label),
                ("tc", Mpls1Tc),
                ("ttl", Mpls1Ttl),
                ("bos", Mpls1Bos),
                ("label", Mpls2Label),
                ("tc", Mpls2Tc),
                ("ttl", Mpls2Ttl),
                ("bos", Mpls2Bos),
            ],
        ),
        row(
            "ipv4",
            Needs::EthType(IPV4),
            &[("src", Ipv4Src), ("dst", Ipv4Dst), ("proto", IpProto), ("tos", IpTos), ("ttl", IpTtl), ("frag", IpFrag)],
        ),
        row(
            "ipv6",
            Needs::EthType(IPV6),
            &[
                ("src", Ipv6Src),
                ("dst", Ipv6Dst),
                ("label", Ipv6Label),
                ("proto", IpProto),
                ("tclass", IpTos),
                ("hlimit", IpTtl),
                ("frag", IpFrag),
            ],
        ),
        row(
            "arp",
            Needs::EthType(&[eth_type::ARP, eth_type::RARP]),
            &[("sip", ArpSip), ("tip", ArpTip), ("op", ArpOp), ("sha", ArpSha), ("tha", ArpTha)],
        ),
        row("tcp", Needs::Protocol(IP, ip_proto::TCP), &[("src", TpSrc), ("dst", TpDst)]),
        row("tcp_flags", Needs::Protocol(IP, ip_proto::TCP), &[("", TcpFlags)]),
        row("udp", Needs::Protocol(IP, ip_proto::UDP), &[("src", TpSrc), ("dst", TpDst)]),
        row("sctp", Needs::Protocol(IP, ip_proto::SCTP), &[("src", TpSrc), ("dst", TpDst)]),
        row("icmp", Needs::Protocol(IPV4, ip_proto::ICMP), &[("type", IcmpType), ("code", IcmpCode)]),
        row("icmpv6", Needs::Protocol(IPV6, ip_proto::ICMP6), &[("type", Icmp6Type), ("code", Icmp6Code)]),
        row("nd", Needs::Neighbour, &[("target", NdTarget), ("sll", NdSll), ("tll", NdTll)]),
        row("nd_ext", Needs::Neighbour, &[("nd_reserved", NdReserved), ("nd_options_type", NdOptionsType)]),
    ]
};

const fn row(name: &'static str, needs: Needs, fields: &'static [(&'static str, Field)]) -> Attribute {
    Attribute { name, needs, fields }
}

impl Attribute {
    /// Reads `FIELD=VALUE[/MASK],…)`, in any order, each at most once. Where names repeat (the labels of an MPLS stack), a
    /// name that was seen begins the next group.
    pub fn parse(&self, s: &mut Scanner<'_>) -> Result<Vec<(Field, Masked)>, TextError> {
        let mut read: Vec<(Field, Masked)> = Vec::new();
        let mut group = 0;
        while !s.at_body_end(read.is_empty())? {
            let place = s.place();
            if let [("", field)] = self.fields {
                if !read.is_empty() {
                    return Err(s.error_at(place, format!("{}: one value expected", self.name)));
                }
                read.push((*field, value::parse(s, *field, self.name)?));
                continue;
            }
            let name = s.word();
            let size = self.names().count();
            if !self.names().any(|known| known == name) {
                let known: Vec<_> = self.names().collect();
                let what = format!("{}: no field {}, only {}", self.name, quote(name), known.join(", "));
                return Err(s.error_at(place, what));
            }
            let unread = |(i, (n, field)): &(usize, &(&str, Field))| {
                *n == name && i / size >= group && read.iter().all(|(seen, _)| seen != field)
            };
            let Some((i, (name, field))) = self.fields.iter().enumerate().find(unread) else {
                return Err(s.error_at(place, format!("{}: {name} is given too often", self.name)));
            };
            group = i / size;
            s.expect("=")?;
            read.push((*field, value::parse(s, *field, format_args!("{}: {name}", self.name))?));
        }
        Ok(read)
    }

    /// The names of the fields, each once.
    fn names(&self) -> impl Iterator<Item = &'static str> {
        let first = self.fields[0].0;
        let repeat = self.fields.iter().skip(1).position(|(name, _)| *name == first);
        self.fields.iter().take(repeat.map_or(self.fields.len(), |i| i + 1)).map(|(name, _)| *name)
    }

    /// Prints `NAME(FIELD=VALUE[/MASK],…)`; `verbose`: also of what is wildcarded. Nothing when there is nothing to say.
    pub fn format(&self, out: &mut List, m: &Match, verbose: bool) {
        let mask_of = |field| value::narrow(field, m.mask().get(field));
        if !verbose && self.fields.iter().all(|(_, field)| mask_of(*field) == 0) {
            return;
        }
        let mut body = List::default();
        for (name, field) in self.fields {
            // A wildcarded frag has no value to print, not even verbosely.
            if mask_of(*field) != 0 || (verbose && *field != Field::IpFrag) {
                body.item(|out| format_field(out, name, *field, Masked::of(m, *field)));
            }
        }
        out.item(|out| body.wrap(out, self.name));
    }
}

/// Prints `NAME=VALUE[/MASK]`, or `VALUE[/MASK]` for an unnamed field.
pub fn format_field(out: &mut String, name: &str, field: Field, masked: Masked) {
    if !name.is_empty() {
        out.push_str(name);
        out.push('=');
    }
    value::format(out, field, masked);
}

/// Items with commas between them.
#[derive(Default)]
pub struct List(String);

impl List {
    /// Adds what `print` writes.
    pub fn item(&mut self, print: impl FnOnce(&mut String)) {
        if !self.0.is_empty() {
            self.0.push(',');
        }
        print(&mut self.0);
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Writes `NAME(ITEM,…)`.
    pub fn wrap(&self, out: &mut String, name: &str) {
        out.push_str(name);
        out.push('(');
        out.push_str(&self.0);
        out.push(')');
    }

    pub fn into_text(self) -> String {
        self.0
    }
}

impl Needs {
    /// Whether what is needed is matched.
    pub fn met(self, m: &Match) -> bool {
        match self {
            Needs::Nothing => true,
            Needs::EthType(types) => {
                exact(m, Field::EthType).is_some_and(|t| types.iter().any(|x| u128::from(*x) == t))
            }
            Needs::Protocol(types, protocol) => {
                Needs::EthType(types).met(m)
                    && exact(m, Field::IpProto) == Some(protocol.into())
                    && m.key().get(Field::IpFrag) & !u128::from(frag::FIRST) == 0
            }
            Needs::Neighbour => {
                Needs::Protocol(IPV6, ip_proto::ICMP6).met(m)
                    && exact(m, Field::Icmp6Type).is_some_and(|t| NEIGHBOUR_TYPES.contains(&t))
            }
        }
    }

    /// What to write to meet it.
    pub fn describe(self) -> String {
        let types =
            |types: &[u16]| types.iter().map(|t| format!("eth_type({t:#06x})")).collect::<Vec<_>>().join(" or ");
        match self {
            Needs::Nothing => String::new(),
            Needs::EthType(list) => types(list),
            Needs::Protocol(list, protocol) => {
                let ip = match list {
                    [eth_type::IPV4] => "ipv4",
                    [eth_type::IPV6] => "ipv6",
                    _ => "ipv4 or ipv6",
                };
                format!("{}, {ip}(proto={protocol}), and not frag=later", types(list))
            }
            Needs::Neighbour => "icmpv6(type=135) or icmpv6(type=136)".to_owned(),
        }
    }
}

/// A match being put together.
#[derive(Clone, Copy, Default)]
pub struct Draft {
    pub key: Key,
    pub mask: Mask,
}

impl Draft {
    pub fn set(&mut self, field: Field, Masked { value, mask }: Masked) {
        self.key.set(field, value);
        self.mask.add(field, value::widen(field, mask));
    }

    pub fn finish(&self) -> Match {
        Match::new(&self.key, &self.mask)
    }
}

fn exact(m: &Match, field: Field) -> Option<u128> {
    m.mask().is_exact(field).then(|| m.key().get(field))
}
