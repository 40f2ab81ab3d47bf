//! What the syntax promises, in both directions.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::flow::field::{FIELDS, Needs};
use crate::flow::key::{eth_type, frag, ip_proto};
use crate::flow::{Action, Assign, Field, Header, Key, Mask, Set};

/// Ports 1 to 3 are p1 to p3, 4 is `drop`, 5 is `7`, and 6 has a name that another port answers to.
struct Ports;

impl PortNames for Ports {
    fn number(&self, name: &str) -> Option<PortNo> {
        let names = [("p1", 1), ("p2", 2), ("p3", 3), ("drop", 4), ("7", 5)];
        names.iter().find(|(n, _)| *n == name).map(|(_, number)| PortNo(*number))
    }

    fn name(&self, number: PortNo) -> Option<String> {
        let names = ["p1", "p2", "p3", "drop", "7", "p1"];
        Some((*names.get(number.0.checked_sub(1)? as usize)?).to_owned())
    }
}

fn matching(text: &str) -> Match {
    parse_flow(text, &()).unwrap_or_else(|e| panic!("{text}: {e}")).matching
}

/// Reads `text` and prints it again.
fn reprint(text: &str, verbose: bool) -> String {
    format_match(&matching(text), verbose, &())
}

fn refusal(text: &str) -> String {
    match parse_flow(text, &Ports) {
        Ok(flow) => panic!("{text} was read as {:?}", flow.matching),
        Err(e) => e.to_string(),
    }
}

fn value(m: &Match, field: Field) -> Option<u128> {
    m.mask().is_exact(field).then(|| m.key().get(field))
}

#[test]
fn dumps_of_open_vswitch_are_printed_again_as_they_were() {
    for text in [
        "recirc_id(0),in_port(3),packet_type(ns=0,id=0),eth_type(0x0806)",
        "recirc_id(0),in_port(1),packet_type(ns=0,id=0),eth_type(0x0800),ipv4(frag=no)",
        "recirc_id(0),in_port(1),packet_type(ns=0,id=0),eth(src=00:06:07:08:09:0a,dst=01:00:00:00:00:00/01:00:00:00:00:00),eth_type(0x0800),ipv4(dst=10.0.0.0/255.0.0.0,proto=6,tos=0/0x3,ttl=64,frag=no),tcp(dst=80),tcp_flags(-syn+ack)",
        "recirc_id(0x1),in_port(1),packet_type(ns=0,id=0),eth_type(0x8100),vlan(vid=10,pcp=0),encap(eth_type(0x0800),ipv4(proto=17,frag=no),udp(src=1024/0xfc00))",
        "recirc_id(0),in_port(1),packet_type(ns=0,id=0),eth_type(0x88a8),vlan(vid=10),encap(eth_type(0x8100),vlan(vid=20,pcp=3),encap(eth_type(0x86dd),ipv6(frag=later)))",
        "recirc_id(0),in_port(1),packet_type(ns=0,id=0),eth_type(0x8847),mpls(label=100/0xfffff,tc=0/0,ttl=64/0x0,bos=1/1)",
        "recirc_id(0),in_port(1),packet_type(ns=0,id=0),eth_type(0x86dd),ipv6(src=fe80::/ffff::,label=0x12345,proto=58,tclass=0xb8,hlimit=255,frag=no),icmpv6(type=135,code=0),nd(target=fe80::1,sll=00:00:00:00:00:01)",
        "recirc_id(0),in_port(1),packet_type(ns=0,id=0),eth_type(0x0806),arp(sip=10.0.0.1,tip=10.0.0.2,op=1,sha=00:00:00:00:00:01,tha=00:00:00:00:00:00)",
    ] {
        // A masked-out value is all that is not kept.
        assert_eq!(reprint(text, false), text.replace("ttl=64/0x0", "ttl=0/0x0"), "{text}");
    }
}

#[test]
fn a_verbose_dump_of_open_vswitch_can_be_replayed_and_is_printed_alike() {
    let dump = "ufid:107ab6d6-58ce-4ce9-a538-a3fd23b0c32c, recirc_id(0),dp_hash(0/0),skb_priority(0/0),in_port(p1),skb_mark(0/0),ct_state(0/0),ct_zone(0/0),ct_mark(0/0),ct_label(0/0),packet_type(ns=0,id=0),eth(src=00:06:07:08:09:0a/00:00:00:00:00:00,dst=00:00:00:00:00:00/00:00:00:00:00:00),eth_type(0x0800),ipv4(src=127.0.0.1/0.0.0.0,dst=127.0.0.1/0.0.0.0,proto=17,tos=0/0,ttl=64/0,frag=no),udp(src=54392/0,dst=5201/0)";
    let flow = parse_flow(dump, &Ports).expect("it is what Open vSwitch prints");
    assert_eq!(flow.ufid.map(|u| u.to_string()), Some("107ab6d6-58ce-4ce9-a538-a3fd23b0c32c".to_owned()));
    let printed = format_match(&flow.matching, true, &Ports);
    let (_, key) = dump.split_once(", ").expect("there is a ufid");
    let masked = key.replace("00:06:07:08:09:0a/", "00:00:00:00:00:00/").replace("=127.0.0.1/", "=0.0.0.0/");
    assert_eq!(printed, masked.replace("ttl=64/0", "ttl=0/0").replace("54392/0", "0/0").replace("5201/0", "0/0"));
}

#[test]
fn the_text_says_whether_a_tag_must_be_there() {
    use Field::{EthType, Vlan0Cfi, Vlan0Tpid, Vlan0Vid, Vlan1Cfi};
    for (text, eth, cfi0, tpid0, vid0, cfi1) in [
        ("eth_type(0x0800)", Some(0x0800), Some(0), None, None, None),
        ("eth_type(0x8100),vlan(vid=5)", None, Some(1), Some(0x8100), Some(5), None),
        ("eth_type(0x8100)", None, Some(1), Some(0x8100), None, None),
        ("eth_type(0x8100),vlan()", None, Some(1), Some(0x8100), None, None),
        ("vlan(vid=5)", None, Some(1), None, Some(5), None),
        ("vlan(cfi=1)", None, Some(1), None, None, None),
        ("in_port(1)", None, None, None, None, None),
        ("vlan()", None, None, None, None, None),
        ("eth_type(0x0800),vlan(cfi=0/0)", Some(0x0800), None, None, None, None),
        ("eth_type(0x0800),vlan()", Some(0x0800), None, None, None, None),
        ("vlan(cfi=0)", None, Some(0), None, None, None),
        ("eth_type(0x8100),vlan(vid=0,pcp=0,cfi=0)", Some(0x8100), Some(0), None, None, None),
        ("eth_type(0x8100),encap(eth_type(0x0800))", Some(0x0800), Some(1), Some(0x8100), None, Some(0)),
        ("eth_type(0x8100),encap(eth_type(0x8100))", None, Some(1), Some(0x8100), None, Some(1)),
        (
            "eth_type(0x8100),encap(eth_type(0x8100),encap(eth_type(0x8100)))",
            Some(0x8100),
            Some(1),
            Some(0x8100),
            None,
            Some(1),
        ),
    ] {
        let m = matching(text);
        let got = [EthType, Vlan0Cfi, Vlan0Tpid, Vlan0Vid, Vlan1Cfi].map(|f| value(&m, f));
        assert_eq!(got, [eth, cfi0, tpid0, vid0, cfi1], "{text}");
        assert_eq!(matching(&reprint(text, false)), m, "{text}");
    }
}

#[test]
fn separators_are_any_run_and_numbers_any_base() {
    let plain = matching("in_port(1),eth_type(0x0800),ipv4(proto=6,ttl=8),tcp(src=1,dst=2)");
    assert_eq!(matching(" in_port(0x1)\r\n\teth_type(2048) ,, ipv4(proto=6 ttl=010), tcp( dst=2,\nsrc=1 )"), plain);
}

#[test]
fn labels_of_a_stack_are_told_apart_by_their_order() {
    let m = matching("eth_type(0x8847),mpls(label=1,ttl=9,label=2,tc=3,bos=1)");
    assert_eq!(value(&m, Field::Mpls0Label), Some(1));
    assert_eq!(value(&m, Field::Mpls0Tc), None);
    assert_eq!(value(&m, Field::Mpls1Label), Some(2));
    assert_eq!(value(&m, Field::Mpls1Tc), Some(3));
    assert_eq!(value(&m, Field::Mpls2Label), None);
}

#[test]
fn a_flow_that_cannot_be_is_refused_with_the_place_and_the_reason() {
    for (text, says) in [
        ("bogus", "expected \"(\" behind \"bogus\", found the end at column 6"),
        ("in_port(1),bogus(1)", "unknown key \"bogus\" at column 12"),
        ("in_port(1),in_port(2)", "in_port is given twice at column 12"),
        ("in_port(99999)", "in_port: 99999 is above 65535 at column 9"),
        ("in_port(nosuch)", "in_port: no port \"nosuch\" at column 9"),
        ("in_port(1/x)", "in_port: the mask is no 32-bit number at column 11"),
        ("in_port(1", "expected \")\", found the end at column 10"),
        ("ipv4(src=10.0.0.1)", "ipv4 needs eth_type(0x0800) at column 1"),
        ("eth_type(0x86dd),ipv4()", "ipv4 needs eth_type(0x0800) at column 18"),
        (
            "eth_type(0x0800),tcp(src=1)",
            "tcp needs eth_type(0x0800) or eth_type(0x86dd), ipv4 or ipv6(proto=6), and not frag=later at column 18",
        ),
        (
            "eth_type(0x0800),ipv4(proto=6,frag=later),tcp(src=1)",
            "tcp needs eth_type(0x0800) or eth_type(0x86dd), ipv4 or ipv6(proto=6), and not frag=later at column 43",
        ),
        (
            "eth_type(0x86dd),ipv6(proto=58),icmpv6(type=1),nd()",
            "nd needs icmpv6(type=135) or icmpv6(type=136) at column 48",
        ),
        ("eth_type(0x0800),ipv4(ttl=256)", "ipv4: ttl: 256 is above 255 at column 27"),
        ("eth_type(0x0800),ipv4(ttl=1,ttl=1)", "ipv4: ttl is given too often at column 29"),
        ("eth_type(0x0800),ipv4(nw=1)", "ipv4: no field \"nw\", only src, dst, proto, tos, ttl, frag at column 23"),
        ("eth_type(0x8100),ipv4()", "ipv4 of a tagged packet stands in encap(…) at column 18"),
        (
            "eth_type(0x0800),encap()",
            "encap needs vlan(…) with a tag, or eth_type(0x8100) or eth_type(0x88a8) at column 18",
        ),
        (
            "eth_type(0x0800),vlan(vid=1)",
            "the eth_type beside vlan(…) is the tag's, 0x8100 or 0x88a8; the packet's own stands in encap(…) at column 1",
        ),
        ("vlan(vid=1,cfi=0)", "vlan: vid and pcp need a tag, which cfi=1 says at column 1"),
        ("vlan(vid=4096)", "vlan: vid: 4096 is above 4095 at column 10"),
        (
            "eth_type(0x8100),encap(eth_type(0x8100),encap(vlan(vid=1)))",
            "a third VLAN tag is not supported by this datapath at column 47",
        ),
        ("eth_type(0x8100),encap(in_port(1))", "in_port stands outside encap() at column 24"),
        ("ct_state(+trk)", "ct_state: not supported by this datapath at column 1"),
        ("skb_mark(1)", "skb_mark: not supported by this datapath at column 1"),
        (
            "packet_type(ns=1,id=0)",
            "packet_type: only packet_type(ns=0,id=0) is supported by this datapath at column 1",
        ),
        ("ufid:1234,in_port(1)", "ufid: \"1234\" is no UUID at column 6"),
        ("in_port(1),é", "expected \"(\" behind \"é\", found the end at column 13"),
    ] {
        assert_eq!(refusal(text), says, "{text}");
    }
}

#[test]
fn a_port_goes_by_its_name_only_when_the_name_is_read_back_as_it() {
    let output = |port| Actions::new(vec![Action::Output(PortNo(port))]);
    for (port, text) in [(1, "p1"), (3, "p3"), (4, "4"), (5, "5"), (6, "6"), (9, "9")] {
        assert_eq!(format_actions(&output(port), &Ports), text);
        assert_eq!(parse_actions(text, &Ports), Ok(output(port)));
        let m = matching(&format!("in_port({port})"));
        assert_eq!(format_match(&m, false, &Ports), format!("in_port({text}),packet_type(ns=0,id=0)"));
    }
}

#[test]
fn actions_are_printed_as_they_were_read() {
    for text in [
        "drop",
        "2",
        "1,2,3",
        "p1,pop_vlan,p2",
        "push_vlan(vid=10,pcp=0),2",
        "push_vlan(tpid=0x88a8,vid=10,pcp=7,cfi=0),2",
        "set(eth(src=00:00:00:00:00:01,dst=00:00:00:00:00:02)),2",
        "set(ipv4(src=10.0.0.1,dst=10.0.0.0/255.0.0.0,tos=0x4/0xfc,ttl=63)),set(tcp(dst=80)),2",
        "set(ipv6(dst=fe80::1,label=0x1,tclass=0xb8,hlimit=1)),set(udp(src=1/0x1)),2",
        "set(vlan(vid=5,pcp=1)),set(sctp(src=1)),2",
    ] {
        let read = parse_actions(text, &Ports).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(format_actions(&read, &()), text.replace("p1", "1").replace("p2", "2"));
    }
    assert_eq!(parse_actions("", &()), Ok(Actions::drop()));
    assert_eq!(parse_actions(" 1\n2 ", &()), parse_actions("1,2", &()));
}

#[test]
fn an_action_list_that_cannot_be_is_refused_with_the_place_and_the_reason() {
    for (text, says) in [
        ("1,drop", "drop stands alone at column 3"),
        ("drop,1", "drop stands alone at column 6"),
        ("drop,drop", "drop stands alone at column 6"),
        ("0", "0 is no port: they are 1 to 65535 at column 1"),
        ("1,70000", "70000 is no port: they are 1 to 65535 at column 3"),
        ("1,ct(commit),2", "ct: not supported by this datapath at column 3"),
        ("recirc(0x1)", "recirc: not supported by this datapath at column 1"),
        ("fly", "unknown action \"fly\", and no port of that name at column 1"),
        ("pop_vlan()", "expected \",\", found \"()\" at column 9"),
        ("push_vlan(pcp=1)", "push_vlan needs vid= at column 1"),
        ("push_vlan(vid=4096)", "push_vlan: vid: \"4096\" is not 0 to 4095 at column 15"),
        ("push_vlan(tpid=0x800,vid=1)", "push_vlan: tpid: \"0x800\" is not 0x8100 or 0x88a8 at column 16"),
        ("push_vlan(vid=1,vid=1)", "push_vlan: vid is given twice at column 17"),
        ("set(ipv4())", "set(ipv4()) names no field at column 5"),
        ("set(ipv4(proto=1))", "ip_proto cannot be set in ipv4 at column 5"),
        ("set(vlan(cfi=0))", "vlan_cfi cannot be set in vlan at column 5"),
        (
            "set(arp(op=1))",
            "set(\"arp\"): not supported by this datapath, only eth, vlan, ipv4, ipv6, tcp, udp, sctp at column 5",
        ),
        ("set(udp(src=1)", "expected \")\", found the end at column 15"),
    ] {
        let error = parse_actions(text, &()).expect_err(text);
        assert_eq!(error.to_string(), says, "{text}");
    }
}

/// What a packet could be.
#[derive(Clone, Debug)]
struct Packet {
    tags: usize,
    eth_type: u16,
    protocol: u8,
    frag: u8,
    values: Vec<u128>,
}

impl Packet {
    fn any() -> impl Strategy<Value = Packet> {
        let types = [
            eth_type::IPV4,
            eth_type::IPV6,
            eth_type::ARP,
            eth_type::RARP,
            eth_type::MPLS,
            eth_type::MPLS_MULTICAST,
            eth_type::NONE,
            eth_type::VLAN,
            eth_type::QINQ,
            0x88cc,
            0,
        ];
        let protocols = [ip_proto::TCP, ip_proto::UDP, ip_proto::SCTP, ip_proto::ICMP, ip_proto::ICMP6, 47];
        let frags = [frag::NO, frag::FIRST, frag::LATER];
        (
            0..=2usize,
            prop::sample::select(types.to_vec()),
            prop::sample::select(protocols.to_vec()),
            prop::sample::select(frags.to_vec()),
            vec(any::<u128>(), FIELDS.len()),
        )
            .prop_map(|(tags, eth_type, protocol, frag, values)| Packet {
                tags,
                eth_type,
                protocol,
                frag,
                values,
            })
    }

    /// Whether the headers are there that a field needs.
    fn has(&self, needs: Needs) -> bool {
        let v4 = self.eth_type == eth_type::IPV4;
        let v6 = self.eth_type == eth_type::IPV6;
        let transport = |protocols: &[u8]| (v4 || v6) && self.frag != frag::LATER && protocols.contains(&self.protocol);
        match needs {
            Needs::Nothing => true,
            Needs::Vlan0 => self.tags > 0,
            Needs::Vlan1 => self.tags > 1,
            Needs::Mpls => [eth_type::MPLS, eth_type::MPLS_MULTICAST].contains(&self.eth_type),
            Needs::Arp => [eth_type::ARP, eth_type::RARP].contains(&self.eth_type),
            Needs::Ipv4 => v4,
            Needs::Ipv6 => v6,
            Needs::Ip => v4 || v6,
            Needs::Transport => transport(&[ip_proto::TCP, ip_proto::UDP, ip_proto::SCTP]),
            Needs::Tcp => transport(&[ip_proto::TCP]),
            Needs::Icmp => v4 && transport(&[ip_proto::ICMP]),
            Needs::Icmp6 => v6 && transport(&[ip_proto::ICMP6]),
            Needs::Nd => v6 && transport(&[ip_proto::ICMP6]) && self.is_neighbour(),
        }
    }

    fn is_neighbour(&self) -> bool {
        self.values[Field::Icmp6Type as usize].is_multiple_of(2)
    }

    /// The key that this packet has: fields of headers that are not there are zero.
    fn key(&self) -> Key {
        let mut key = Key::ZERO;
        for def in FIELDS.iter().filter(|def| self.has(def.needs)) {
            let random = self.values[def.field as usize];
            let value = match def.field {
                Field::EthType => self.eth_type.into(),
                Field::InPort => random & 0xffff,
                Field::Vlan0Tpid | Field::Vlan1Tpid if random & 1 == 0 => eth_type::VLAN.into(),
                Field::Vlan0Tpid | Field::Vlan1Tpid => eth_type::QINQ.into(),
                Field::Vlan0Cfi | Field::Vlan1Cfi => 1,
                Field::IpProto => self.protocol.into(),
                Field::IpFrag => self.frag.into(),
                Field::TcpFlags => random & 0xfff,
                Field::Icmp6Type if self.is_neighbour() => 135 + (random >> 1 & 1),
                Field::Icmp6Type => random & 0x7f,
                Field::IcmpType | Field::IcmpCode | Field::Icmp6Code => random & 0xff,
                _ => random,
            };
            key.set(def.field, value);
        }
        key
    }

    /// What of `wanted` the slow path could look at in this packet, beside what it always looks at.
    fn looked_at(&self, wanted: &Mask) -> Mask {
        let always = deciding();
        let mut mask = Mask::EMPTY;
        for field in FIELDS.iter().filter(|def| self.has(def.needs)).map(|def| def.field) {
            let bits = wanted.get(field) | always.get(field);
            mask.add(field, value::widen(field, value::narrow(field, bits)));
        }
        // That a tag is not there is looked at too.
        for (tags, cfi) in [(0, Field::Vlan0Cfi), (1, Field::Vlan1Cfi)] {
            if self.tags == tags {
                mask.add_field(cfi);
            }
        }
        mask
    }
}

/// Any mask: each field ignored, exact, or any bits of it.
fn any_mask() -> impl Strategy<Value = Mask> {
    let bits = prop_oneof![2 => Just(0), 2 => Just(u128::MAX), 1 => any::<u128>()];
    vec(bits, FIELDS.len()).prop_map(|bits| {
        let mut mask = Mask::EMPTY;
        for (def, bits) in FIELDS.iter().zip(bits) {
            mask.add(def.field, bits & def.field.full());
        }
        mask
    })
}

/// What every decision of the slow path looks at.
fn deciding() -> Mask {
    let mut mask = Mask::EMPTY;
    for field in [
        Field::InPort,
        Field::EthType,
        Field::Vlan0Cfi,
        Field::Vlan0Tpid,
        Field::Vlan1Cfi,
        Field::Vlan1Tpid,
        Field::IpProto,
        Field::IpFrag,
        Field::Icmp6Type,
    ] {
        mask.add_field(field);
    }
    mask
}

fn any_actions() -> impl Strategy<Value = Actions> {
    let headers = [Header::Eth, Header::Vlan, Header::Ipv4, Header::Ipv6, Header::Tcp, Header::Udp, Header::Sctp];
    let set = (prop::sample::select(headers.to_vec()), vec((any::<u128>(), 1..=u128::MAX), 5), any::<u8>()).prop_map(
        |(header, bits, turn)| {
            let fields = header.fields();
            let assigns: Vec<_> = (0..fields.len())
                .map(|i| (fields[(i + usize::from(turn)) % fields.len()], bits[i]))
                .map(|(field, (value, mask))| {
                    let mask = if mask & field.full() == 0 { field.full() } else { mask & field.full() };
                    Assign { field, value: value & mask, mask }
                })
                .collect();
            Action::Set(Set::new(header, &assigns).expect("the header's own fields can be set"))
        },
    );
    let action = prop_oneof![
        (1..=65_535u32).prop_map(|port| Action::Output(PortNo(port))),
        Just(Action::PopVlan),
        (any::<bool>(), any::<u16>())
            .prop_map(|(outer, tci)| Action::PushVlan { tpid: if outer { 0x88a8 } else { 0x8100 }, tci }),
        set,
    ];
    vec(action, 0..6).prop_map(Actions::new)
}

proptest! {
    #[test]
    fn every_match_is_read_back_from_its_text(packet in Packet::any(), mask in any_mask(), verbose: bool) {
        let m = Match::new(&packet.key(), &mask);
        let text = format_match(&m, verbose, &Ports);
        let read = parse_flow(&text, &Ports).map_err(|e| TestCaseError::fail(format!("{text}: {e}")))?.matching;
        prop_assert_eq!(read, canonical(&m), "{}", &text);
        prop_assert_eq!(format_match(&read, verbose, &Ports), text);
    }

    #[test]
    fn what_the_slow_path_looks_at_is_read_back_whole(packet in Packet::any(), mask in any_mask(), verbose: bool) {
        let m = Match::new(&packet.key(), &packet.looked_at(&mask));
        prop_assert_eq!(canonical(&m), m);
        let text = format_match(&m, verbose, &());
        prop_assert_eq!(matching(&text), m, "{}", text);
    }

    #[test]
    fn the_canonical_form_matches_the_same_packets(packet in Packet::any(), other in Packet::any(), mask in any_mask()) {
        let mut seen = mask;
        seen.add_all(&deciding());
        let m = Match::new(&packet.key(), &seen);
        let canonical = canonical(&m);
        prop_assert!(canonical.matches(&packet.key()));
        prop_assert_eq!(canonical.matches(&other.key()), m.matches(&other.key()));
        let near = Packet { values: other.values, ..packet };
        prop_assert_eq!(canonical.matches(&near.key()), m.matches(&near.key()));
    }

    #[test]
    fn every_action_list_is_read_back_from_its_text(actions in any_actions()) {
        let text = format_actions(&actions, &Ports);
        prop_assert_eq!(parse_actions(&text, &Ports), Ok(actions), "{}", text);
    }

    #[test]
    fn no_text_can_panic(text in "\\PC{0,80}") {
        let _ = parse_flow(&text, &Ports);
        let _ = parse_actions(&text, &Ports);
    }

    #[test]
    fn any_text_is_refused_with_a_place_in_it_or_read_back_the_same(words in vec(prop::sample::select(WORDS), 0..40)) {
        let text = words.concat();
        for error in [parse_flow(&text, &Ports).err(), parse_actions(&text, &Ports).err()].into_iter().flatten() {
            prop_assert!((1..=text.chars().count() + 1).contains(&error.column), "{}", text);
            prop_assert!(!error.what.contains('\n'), "{}", error.what);
        }
        if let Ok(flow) = parse_flow(&text, &Ports) {
            prop_assert_eq!(matching(&format_match(&flow.matching, false, &())), flow.matching, "{}", &text);
        }
        if let Ok(actions) = parse_actions(&text, &Ports) {
            prop_assert_eq!(parse_actions(&format_actions(&actions, &()), &()), Ok(actions), "{}", &text);
        }
    }
}

/// Pieces that get a random text far into the parsers.
const WORDS: &[&str] = &[
    "in_port(",
    "recirc_id(0)",
    "eth(",
    "eth_type(0x0800)",
    "eth_type(0x8100)",
    "eth_type(0x86dd)",
    "eth_type(",
    "vlan(",
    "encap(",
    "ipv4(",
    "ipv6(",
    "mpls(",
    "arp(",
    "tcp(",
    "tcp_flags(",
    "icmpv6(",
    "nd(",
    "ct_state(0/0)",
    "tunnel(",
    "set(",
    "push_vlan(",
    "pop_vlan",
    "drop",
    "ufid:",
    "src=",
    "dst=",
    "vid=",
    "cfi=",
    "proto=",
    "frag=",
    "label=",
    "type=",
    "no",
    "later",
    "6",
    "58",
    "135",
    "0",
    "1",
    "10.0.0.1",
    "fe80::1",
    "00:00:00:00:00:01",
    "+syn",
    "-ack",
    "syn|ack",
    "/",
    "/24",
    "/0",
    "0x",
    ")",
    "))",
    "(",
    ",",
    " ",
    "\n",
    "=",
    "é",
    "p1",
];

#[test]
fn every_attribute_stands_in_the_manual_page_with_its_fields() {
    let page = include_str!("../../../man/offload-flow.7");
    let (_, section) = page.split_once("\n.Sh FLOWS\n").unwrap();
    let rows = attribute::ATTRIBUTES.iter().chain([&attribute::ETH, &attribute::VLAN[0]]);
    for attribute in rows.filter(|row| row.name != "tcp_flags") {
        let mut fields: Vec<&str> = attribute.fields.iter().map(|(name, _)| *name).collect();
        // An entry of the label stack stands for all three.
        fields.truncate(if attribute.name == "mpls" { 4 } else { fields.len() });
        let line = format!(".It Cm {} Ns Pq Cm {}", attribute.name, fields.join(" , "));
        assert!(section.lines().any(|l| l == line), "{line}");
    }
    assert!(section.lines().any(|line| line.starts_with(".It Cm tcp_flags ")));
}
