//! The grammar: which keys and actions there are, and what stands inside them.

use super::value::Kind;
use Field::{Inner, Is, Optional, Perhaps, Unnamed, Word};
use Kind::*;

/// What stands in the parentheses of a key or action.
#[derive(Debug, PartialEq, Eq)]
pub enum Shape {
    /// Nothing; an action has no parentheses, or empty ones.
    Nothing,
    /// One value.
    One(Kind),
    /// Fields, in any order.
    Fields(&'static [Field]),
    /// Keys, as at the front of a packet.
    Keys,
    /// Actions.
    Actions,
    /// Geneve options, each in braces.
    Options,
}

/// A key or an action.
#[derive(Debug, PartialEq, Eq)]
pub struct Item {
    pub name: &'static str,
    pub shape: Shape,
    /// An action that may also stand without parentheses.
    pub bare: bool,
}

/// Something inside one.
#[derive(Debug, PartialEq, Eq)]
pub enum Field {
    /// `name=value`
    Is(&'static str, Kind),
    /// `name`
    Word(&'static str),
    /// `name`, perhaps with `=value`.
    Perhaps(&'static str, Kind),
    /// `name(…)`
    Inner(&'static str, Shape),
    /// `name`, perhaps with parentheses.
    Optional(&'static str, Shape),
    /// A value without a name.
    Unnamed(Kind),
    /// An action.
    Action,
}

impl Field {
    pub fn name(&self) -> &'static str {
        match self {
            Is(name, _) | Word(name) | Perhaps(name, _) | Inner(name, _) | Optional(name, _) => name,
            Unnamed(_) => "a value",
            Field::Action => "an action",
        }
    }
}

const fn one(name: &'static str, kind: Kind) -> Item {
    Item { name, shape: Shape::One(kind), bare: false }
}

const fn fields(name: &'static str, fields: &'static [Field]) -> Item {
    Item { name, shape: Shape::Fields(fields), bare: false }
}

const fn of(name: &'static str, shape: Shape) -> Item {
    Item { name, shape, bare: false }
}

const fn bare(name: &'static str, shape: Shape) -> Item {
    Item { name, shape, bare: true }
}

const TCP_FLAGS: Kind = Flags(&["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr", "ns"]);
const CT_STATE: Kind = Flags(&["new", "est", "rel", "rpl", "inv", "trk", "snat", "dnat"]);
const TUNNEL_FLAGS: Kind = Flags(&["df", "csum", "key", "oam", "crit"]);

const TP: &[Field] = &[Is("src", Masked(16)), Is("dst", Masked(16))];
const ICMP: &[Field] = &[Is("type", Masked(8)), Is("code", Masked(8))];
const MAC_PAIR: &[Field] = &[Is("src", Mac), Is("dst", Mac)];
const LABEL: &[Field] = &[Is("label", Masked(20)), Is("tc", Masked(3)), Is("ttl", Masked(8)), Is("bos", Masked(1))];
const NSH: &[Field] = &[
    Is("flags", Masked(8)),
    Is("ttl", Masked(8)),
    Is("mdtype", Masked(8)),
    Is("np", Masked(8)),
    Is("spi", Masked(24)),
    Is("si", Masked(8)),
    Is("c1", Masked(32)),
    Is("c2", Masked(32)),
    Is("c3", Masked(32)),
    Is("c4", Masked(32)),
    Is("md2", Hex),
];

/// Inside the braces of a Geneve option.
pub static GENEVE_OPTION: [Field; 4] =
    [Is("class", Masked(16)), Is("type", Masked(8)), Is("len", Masked(8)), Unnamed(MaskedHex)];

/// Every key.
pub static KEYS: [Item; 30] = [
    one("skb_priority", Masked(32)),
    one("skb_mark", Masked(32)),
    one("recirc_id", Masked(32)),
    one("dp_hash", Masked(32)),
    one("ct_state", CT_STATE),
    one("ct_zone", Masked(16)),
    one("ct_mark", Masked(32)),
    one("ct_label", Masked(128)),
    fields(
        "ct_tuple4",
        &[Is("src", Ipv4), Is("dst", Ipv4), Is("proto", Masked(8)), Is("tp_src", Masked(16)), Is("tp_dst", Masked(16))],
    ),
    fields(
        "ct_tuple6",
        &[
            Is("src", Ipv6),
            Is("dst", Ipv6),
            Is("proto", Masked(8)),
            Is("src_port", Masked(16)),
            Is("dst_port", Masked(16)),
            Is("tp_src", Masked(16)),
            Is("tp_dst", Masked(16)),
        ],
    ),
    fields(
        "tunnel",
        &[
            Is("tun_id", Masked(64)),
            Is("src", Ipv4),
            Is("dst", Ipv4),
            Is("ipv6_src", Ipv6),
            Is("ipv6_dst", Ipv6),
            Is("tos", Masked(8)),
            Is("ttl", Masked(8)),
            Is("tp_src", Masked(16)),
            Is("tp_dst", Masked(16)),
            Inner(
                "erspan",
                Shape::Fields(&[
                    Is("ver", Masked(8)),
                    Is("idx", Masked(32)),
                    Is("sid", Masked(16)),
                    Is("dir", Masked(8)),
                    Is("hwid", Masked(8)),
                ]),
            ),
            Inner(
                "vxlan",
                Shape::Fields(&[Inner("gbp", Shape::Fields(&[Is("id", Masked(16)), Is("flags", Masked(8))]))]),
            ),
            Inner("geneve", Shape::Options),
            Inner("gtpu", Shape::Fields(&[Is("flags", Masked(8)), Is("msgtype", Masked(8))])),
            Inner("flags", Shape::One(TUNNEL_FLAGS)),
        ],
    ),
    one("in_port", Port),
    fields("packet_type", &[Is("ns", Uint(16)), Is("id", Masked(16))]),
    fields("eth", MAC_PAIR),
    fields("vlan", &[Is("vid", Masked(12)), Is("pcp", Masked(3)), Is("cfi", Masked(1))]),
    one("eth_type", Masked(16)),
    of("encap", Shape::Keys),
    fields("mpls", LABEL),
    fields(
        "ipv4",
        &[
            Is("src", Ipv4),
            Is("dst", Ipv4),
            Is("proto", Masked(8)),
            Is("tos", Masked(8)),
            Is("ttl", Masked(8)),
            Is("frag", Frag),
        ],
    ),
    fields(
        "ipv6",
        &[
            Is("src", Ipv6),
            Is("dst", Ipv6),
            Is("label", Masked(20)),
            Is("proto", Masked(8)),
            Is("tclass", Masked(8)),
            Is("hlimit", Masked(8)),
            Is("frag", Frag),
        ],
    ),
    fields("tcp", TP),
    fields("udp", TP),
    fields("sctp", TP),
    one("tcp_flags", TCP_FLAGS),
    fields("icmp", ICMP),
    fields("icmpv6", ICMP),
    fields("arp", &[Is("sip", Ipv4), Is("tip", Ipv4), Is("op", Masked(16)), Is("sha", Mac), Is("tha", Mac)]),
    fields("nd", &[Is("target", Ipv6), Is("sll", Mac), Is("tll", Mac)]),
    fields("nd_ext", &[Is("nd_reserved", Masked(32)), Is("nd_options_type", Masked(8))]),
    fields("nsh", NSH),
];

const LE_GT: [Field; 3] = [Is("size", Uint(16)), Inner("gt", Shape::Actions), Inner("le", Shape::Actions)];

/// Every action but the number or name of a port.
pub static ACTIONS: [Item; 26] = [
    of("drop", Shape::Nothing),
    one("lb_output", Uint(32)),
    one("trunc", Uint(32)),
    one("recirc", Uint(32)),
    fields(
        "userspace",
        &[
            Is("pid", Uint(32)),
            Inner("sFlow", Shape::Fields(&[Is("vid", Uint(12)), Is("pcp", Uint(3)), Is("output", Uint(32))])),
            Inner("slow_path", Shape::Fields(&[Unnamed(Kind::Word)])),
            Inner(
                "flow_sample",
                Shape::Fields(&[
                    Is("probability", Uint(16)),
                    Is("collector_set_id", Uint(32)),
                    Is("obs_domain_id", Uint(32)),
                    Is("obs_point_id", Uint(32)),
                    Is("output_port", Port),
                    Word("ingress"),
                    Word("egress"),
                ]),
            ),
            Inner("ipfix", Shape::Fields(&[Is("output_port", Port)])),
            Inner(
                "controller",
                Shape::Fields(&[
                    Is("reason", Any),
                    Is("dont_send", Uint(1)),
                    Is("continuation", Uint(1)),
                    Is("recirc_id", Uint(32)),
                    Is("rule_cookie", Uint(64)),
                    Is("controller_id", Uint(16)),
                    Is("max_len", Uint(16)),
                ]),
            ),
            Inner("userdata", Shape::One(Hex)),
            Word("actions"),
            Is("tunnel_out_port", Port),
        ],
    ),
    of("set", Shape::Keys),
    fields("push_eth", MAC_PAIR),
    of("pop_eth", Shape::Nothing),
    fields("push_vlan", &[Is("tpid", Uint(16)), Is("vid", Uint(12)), Is("pcp", Uint(3)), Is("cfi", Uint(1))]),
    of("pop_vlan", Shape::Nothing),
    fields(
        "push_mpls",
        &[Is("label", Uint(20)), Is("tc", Uint(3)), Is("ttl", Uint(8)), Is("bos", Uint(1)), Is("eth_type", Uint(16))],
    ),
    fields("pop_mpls", &[Is("eth_type", Uint(16))]),
    fields(
        "add_mpls",
        &[Is("label", Uint(20)), Is("tc", Uint(3)), Is("ttl", Uint(8)), Is("bos", Uint(1)), Is("eth_type", Uint(16))],
    ),
    bare("dec_ttl", Shape::Fields(&[Inner("le_1", Shape::Actions)])),
    fields(
        "hash",
        &[
            Inner("l4", Shape::One(Uint(32))),
            Inner("hash_l4", Shape::One(Uint(32))),
            Inner("sym_l4", Shape::One(Uint(32))),
            Inner("hash_sym_l4", Shape::One(Uint(32))),
        ],
    ),
    one("meter", Uint(32)),
    fields("sample", &[Is("sample", Percent), Inner("actions", Shape::Actions)]),
    of("clone", Shape::Actions),
    fields("push_nsh", NSH),
    bare("pop_nsh", Shape::Fields(&[])),
    one("tnl_pop", Port),
    fields(
        "tnl_push",
        &[
            Inner("tnl_port", Shape::One(Port)),
            Inner(
                "header",
                Shape::Fields(&[
                    Is("size", Uint(16)),
                    Is("type", Uint(16)),
                    Inner("eth", Shape::Fields(&[Is("dst", Mac), Is("src", Mac), Is("dl_type", Uint(16))])),
                    Inner(
                        "ipv4",
                        Shape::Fields(&[
                            Is("src", Ipv4),
                            Is("dst", Ipv4),
                            Is("proto", Uint(8)),
                            Is("tos", Uint(8)),
                            Is("ttl", Uint(8)),
                            Is("frag", Uint(16)),
                        ]),
                    ),
                    Inner(
                        "ipv6",
                        Shape::Fields(&[
                            Is("src", Ipv6),
                            Is("dst", Ipv6),
                            Is("label", Uint(20)),
                            Is("proto", Uint(8)),
                            Is("tclass", Uint(8)),
                            Is("hlimit", Uint(8)),
                        ]),
                    ),
                    Inner("udp", Shape::Fields(&[Is("src", Uint(16)), Is("dst", Uint(16)), Is("csum", Uint(16))])),
                    Inner("vxlan", Shape::Fields(&[Is("flags", Uint(32)), Is("vni", Uint(24))])),
                    Inner(
                        "geneve",
                        Shape::Fields(&[
                            Word("oam"),
                            Word("crit"),
                            Is("vni", Uint(24)),
                            Inner("options", Shape::Options),
                        ]),
                    ),
                    Inner(
                        "gre",
                        Shape::Fields(&[
                            Is("flags", Uint(16)),
                            Is("proto", Uint(16)),
                            Is("csum", Uint(16)),
                            Is("key", Uint(32)),
                            Is("seq", Uint(32)),
                        ]),
                    ),
                    Inner(
                        "erspan",
                        Shape::Fields(&[
                            Is("ver", Uint(8)),
                            Is("sid", Uint(16)),
                            Is("idx", Uint(32)),
                            Is("dir", Uint(8)),
                            Is("hwid", Uint(8)),
                        ]),
                    ),
                    Inner("gtpu", Shape::Fields(&[Is("flags", Uint(8)), Is("msgtype", Uint(8)), Is("teid", Uint(32))])),
                    Inner(
                        "srv6",
                        Shape::Fields(&[Is("segments_left", Uint(8)), Inner("segs", Shape::Fields(&[Unnamed(Ipv6)]))]),
                    ),
                ]),
            ),
            Inner("out_port", Shape::One(Port)),
        ],
    ),
    bare(
        "ct",
        Shape::Fields(&[
            Word("commit"),
            Word("force_commit"),
            Is("zone", Uint(16)),
            Is("mark", Masked(32)),
            Is("label", Masked(128)),
            Is("helper", Kind::Word),
            Is("timeout", Kind::Word),
            Optional(
                "nat",
                Shape::Fields(&[
                    Perhaps("src", Range),
                    Perhaps("dst", Range),
                    Word("persistent"),
                    Word("hash"),
                    Word("random"),
                ]),
            ),
        ]),
    ),
    of("ct_clear", Shape::Nothing),
    fields("check_pkt_len", &LE_GT),
    fields("psample", &[Is("group", Uint(32)), Is("cookie", Hex)]),
];
