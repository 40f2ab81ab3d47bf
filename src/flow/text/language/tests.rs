//! Every text that the grammar can make is read and printed back, byte for byte; samples of Open vSwitch's own; and mistakes.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::Union;

use super::grammar::{ACTIONS, Field, GENEVE_OPTION, Item, KEYS, Shape};
use super::value::Kind;
use super::*;

fn reads_back(text: &str, parse: fn(&str) -> Result<Vec<Node>, TextError>) {
    let nodes = parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    assert_eq!(print(&nodes), text);
}

#[test]
fn what_open_vswitch_prints_reads_and_prints_back() {
    for keys in [
        "recirc_id(0),dp_hash(0/0),skb_priority(0/0),in_port(p1),skb_mark(0/0),ct_state(0/0),ct_zone(0/0),ct_mark(0/0),ct_label(0/0),packet_type(ns=0,id=0),eth(src=00:06:07:08:09:0a/00:00:00:00:00:00,dst=00:01:02:03:04:05),eth_type(0x0800),ipv4(src=127.0.0.1/0.0.0.0,dst=127.0.0.1,proto=17,tos=0/0,ttl=64,frag=no),udp(src=54392/0,dst=5201/0)",
        "recirc_id(0x5),in_port(2),ct_state(+new-est+trk),ct_tuple4(src=10.0.0.1,dst=10.0.0.2/255.255.255.0,proto=6,tp_src=80,tp_dst=0/0),eth(),eth_type(0x0800),ipv4(frag=later)",
        "tunnel(tun_id=0x7b,src=1.1.2.92,dst=1.1.2.88,ttl=64,tp_dst=4789,vxlan(gbp(id=512,flags=8)),flags(-df+csum+key)),in_port(1)",
        "tunnel(tun_id=0x0,geneve({class=0xffff,type=0x80,len=4,0xa/0xf}{class=0,type=0,len=8,0x1234567812345678}),flags(df|key)),in_port(1),eth_type(0x1234/0)",
        "in_port(1),eth_type(0x88a8),vlan(vid=99,pcp=7),encap(eth_type(0x8100),vlan(vid=1/0xff,pcp=0/0x0),encap(eth_type(0x86dd),ipv6(src=::1/::,dst=2001:db8::/ffff::,label=0xfff,proto=6,tclass=0,hlimit=128,frag=no),tcp(src=1,dst=2),tcp_flags(syn|ack)))",
        "in_port(1),eth_type(0x8847),mpls(label=100,tc=3,ttl=64,bos=0,label=200,tc=1,ttl=63,bos=1)",
        "in_port(1),eth_type(0x894f),nsh(flags=0,ttl=63,mdtype=1,np=3,spi=0x123456,si=255,c1=0x11223344,c2=0x1,c3=0x2,c4=0x3)",
        "in_port(1),eth_type(0x0806),arp(sip=1.2.3.4,tip=5.6.7.8,op=1,sha=00:0f:10:11:12:13,tha=00:14:15:16:17:18)",
        "in_port(1),eth_type(0x86dd),ipv6(frag=no),icmpv6(type=136,code=0),nd(target=::3,sll=00:05:06:07:08:09,tll=00:0a:0b:0c:0d:0e),nd_ext(nd_reserved=0x0,nd_options_type=2)",
        "in_port(1),tcp_flags(+syn-ack),ct_label(0x1234567890abcdef1234567890abcdef/0xffffffffffffffffffffffffffffffff)",
    ] {
        reads_back(keys, parse_keys);
    }
    for actions in [
        "1",
        "1,2,3",
        "drop",
        "p1,br-int,eth0.5",
        "lb_output(3)",
        "trunc(100),2",
        "recirc(0x1)",
        "hash(l4(0)),recirc(0x2)",
        "userspace(pid=9765,slow_path(cfm,controller))",
        "userspace(pid=555666777,sFlow(vid=9,pcp=7,output=10),actions)",
        "userspace(pid=6633,flow_sample(probability=123,collector_set_id=1234,obs_domain_id=2345,obs_point_id=3456,output_port=10,egress),tunnel_out_port=10)",
        "userspace(pid=6633,ipfix(output_port=10),tunnel_out_port=10)",
        "userspace(pid=6633,controller(reason=1,dont_send=0,continuation=1,recirc_id=4444,rule_cookie=0x5555,controller_id=0,max_len=65535))",
        "userspace(pid=9765,userdata(0102030405),actions)",
        "set(tunnel(tun_id=0xabcdef1234567890,src=1.1.1.1,dst=2.2.2.2,ttl=64,flags(df|csum|key)))",
        "set(eth(src=00:01:02:03:04:05,dst=10:11:12:13:14:15)),set(ipv4(src=35.8.2.41/255.255.0.0,ttl=63)),set(tcp(src=80))",
        "set(vlan(vid=10,pcp=1)),set(nsh(flags=0,ttl=63,spi=0x123,si=1)),set(skb_mark(0x5/0xf))",
        "push_vlan(tpid=0x9100,vid=13,pcp=4,cfi=0),pop_vlan",
        "push_eth(src=fe:fe:fe:fe:fe:fe,dst=aa:bb:cc:dd:ee:ff),pop_eth",
        "push_mpls(label=10,tc=7,ttl=64,bos=1,eth_type=0x8847),pop_mpls(eth_type=0x800)",
        "add_mpls(label=200,tc=7,ttl=64,bos=1,eth_type=0x8847)",
        "dec_ttl",
        "meter(2),3",
        "sample(sample=9.7%,actions(1,2,3,push_vlan(vid=1,pcp=2)))",
        "clone(1)",
        "clone(drop)",
        "clone(clone(push_vlan(vid=12,pcp=0),2),1)",
        "push_nsh(flags=0,ttl=63,mdtype=2,np=3,spi=0x123,si=2,md2=0x1122334455)",
        "pop_nsh()",
        "tnl_pop(4)",
        "tnl_push(tnl_port(6),header(size=58,type=5,eth(dst=f8:bc:12:44:34:b6,src=f8:bc:12:46:58:e0,dl_type=0x0800),ipv4(src=1.1.2.88,dst=1.1.2.92,proto=17,tos=0,ttl=64,frag=0x4000),udp(src=0,dst=6081,csum=0x0),geneve(oam,crit,vni=0x1c7,options({class=0xffff,type=0x80,len=4,0xa}))),out_port(1))",
        "tnl_push(tnl_port(4),header(size=42,type=3,eth(dst=f8:bc:12:44:34:b6,src=f8:bc:12:46:58:e0,dl_type=0x0800),ipv4(src=1.1.2.88,dst=1.1.2.92,proto=47,tos=0,ttl=64,frag=0x4000),gre(flags=0x2000,proto=0x6558,key=0x1e241)),out_port(1))",
        "ct",
        "ct(commit,zone=15,mark=0xf0/0xf0,label=0x1234/0xffff,helper=ftp,timeout=ovs_tp_1_tcp4)",
        "ct(commit,nat(src=10.0.0.240-10.0.0.254:32768-65535,persistent,hash)),ct(nat),ct_clear",
        "ct(force_commit,nat(dst=fe80::20c:29ff:fe88:1-fe80::20c:29ff:fe88:a18b,random))",
        "check_pkt_len(size=200,gt(4),le(5,push_vlan(vid=1,pcp=0)))",
        "psample(group=12,cookie=0xdeadbeef)",
    ] {
        reads_back(actions, parse_actions);
    }
}

#[test]
fn mistakes_are_told_with_their_column() {
    let keys = |text: &str| parse_keys(text).unwrap_err().to_string();
    let actions = |text: &str| parse_actions(text).unwrap_err().to_string();
    assert_eq!(keys("in_port(1),bogus(2)"), "unknown key \"bogus\" at column 12");
    assert_eq!(
        keys("ct_zone(70000)"),
        "ct_zone: \"70000\" is no integer of at most 16 bits, or two with / between at column 9"
    );
    assert_eq!(keys("ipv4(src=10.0.0.256)"), "ipv4: src: \"10.0.0.256\" is no IPv4 address at column 10");
    assert!(keys("ipv4(source=1.2.3.4)").starts_with("ipv4: no field \"source\", only src, dst, proto"));
    assert_eq!(keys("tcp_flags(syn|foo)").split(" is no").next(), Some("tcp_flags: \"syn|foo\""));
    assert_eq!(keys("eth(").rsplit_once("column ").unwrap().1, "5");
    assert_eq!(actions("1,-1").rsplit_once("column ").unwrap().1, "3");
    assert_eq!(actions("meter(-1)").rsplit_once("column ").unwrap().1, "7");
    assert_eq!(actions("1,drop"), "drop stands alone at column 3");
    assert_eq!(actions("1 2) 3").rsplit_once("column ").unwrap().1, "4");
    assert!(actions("bogus(1)").starts_with("unknown action \"bogus\""));
    let deep = "clone(".repeat(40) + "1" + &")".repeat(40);
    assert!(actions(&deep).starts_with("more than 32 levels"));
    let good = "clone(".repeat(MAX_DEPTH) + "1" + &")".repeat(MAX_DEPTH);
    reads_back(&good, parse_actions);
}

#[test]
fn json_is_a_tree_with_numbers_as_numbers() {
    let tree = |text: &str| json(&parse_actions(text).unwrap());
    assert_eq!(tree("2,p1,pop_vlan"), json!([{"output": 2}, {"output": "p1"}, {"pop_vlan": {}}]));
    assert_eq!(
        tree("push_vlan(vid=5,pcp=1),ct(commit,mark=0xf0/0xff),clone(1)"),
        json!([
            {"push_vlan": {"vid": 5, "pcp": 1}},
            {"ct": {"commit": true, "mark": {"value": 240, "mask": 255}}},
            {"clone": [{"output": 1}]},
        ])
    );
    let keys = json(&parse_keys("in_port(1),mpls(label=1,tc=0,label=2,tc=1)").unwrap());
    assert_eq!(keys[1]["mpls"], json!([{"label": 1}, {"tc": 0}, {"label": 2}, {"tc": 1}]));
}

/// Values of a kind, as Open vSwitch prints them.
fn values(kind: Kind) -> BoxedStrategy<String> {
    let number = |bits: u32| any::<u128>().prop_map(move |n| if bits >= 128 { n } else { n & ((1 << bits) - 1) });
    let spelled = move |bits: u32| {
        prop_oneof![number(bits).prop_map(|n| n.to_string()), number(bits).prop_map(|n| format!("{n:#x}"))].boxed()
    };
    let with_mask = |plain: BoxedStrategy<String>| {
        prop_oneof![plain.clone(), (plain.clone(), plain).prop_map(|(value, mask)| format!("{value}/{mask}"))].boxed()
    };
    match kind {
        Kind::Uint(bits) => spelled(bits),
        Kind::Masked(bits) => with_mask(spelled(bits)),
        Kind::Mac => {
            with_mask(any::<[u8; 6]>().prop_map(|mac| mac.map(|byte| format!("{byte:02x}")).join(":")).boxed())
        }
        Kind::Ipv4 => with_mask(any::<u32>().prop_map(|ip| std::net::Ipv4Addr::from(ip).to_string()).boxed()),
        Kind::Ipv6 => with_mask(any::<u128>().prop_map(|ip| std::net::Ipv6Addr::from(ip).to_string()).boxed()),
        Kind::Port => prop_oneof!["[a-z][a-z0-9_.-]{0,8}", any::<u16>().prop_map(|n| n.to_string())].boxed(),
        Kind::Frag => prop_oneof![Just("no"), Just("first"), Just("later")].prop_map(str::to_owned).boxed(),
        Kind::Flags(names) => {
            let some = proptest::sample::subsequence(names, 1..=names.len());
            let signed = (some.clone(), any::<u16>()).prop_map(|(names, signs)| {
                let signed =
                    |(i, name): (usize, &&str)| format!("{}{name}", if signs >> i & 1 == 1 { '+' } else { '-' });
                names.iter().enumerate().map(signed).collect::<String>()
            });
            prop_oneof![some.prop_map(|names| names.join("|")), signed, with_mask(spelled(16))].boxed()
        }
        Kind::Hex => "(0x)?([0-9a-f]{2}){1,8}".boxed(),
        Kind::MaskedHex => with_mask("0x([0-9a-f]{2}){1,8}".boxed()),
        Kind::Percent => (0..=1_000u32).prop_map(|tenths| format!("{:.1}%", f64::from(tenths) / 10.0)).boxed(),
        Kind::Word | Kind::Any => "[a-z][a-z0-9_]{0,9}".boxed(),
        Kind::Range => prop_oneof![
            any::<(u32, u32)>().prop_map(|(a, b)| format!(
                "{}-{}",
                std::net::Ipv4Addr::from(a),
                std::net::Ipv4Addr::from(b)
            )),
            any::<(u32, u16)>().prop_map(|(a, port)| format!("{}:{port}", std::net::Ipv4Addr::from(a))),
        ]
        .boxed(),
    }
}

fn bodies(shape: &'static Shape, depth: u32) -> BoxedStrategy<Body> {
    match shape {
        Shape::Nothing => Just(Body::Items(Vec::new())).boxed(),
        Shape::One(kind) => values(*kind).prop_map(Body::Paren).boxed(),
        Shape::Fields(list) => fields(list, depth).prop_map(Body::Items).boxed(),
        Shape::Options => {
            let braces = fields(&GENEVE_OPTION, depth).prop_map(|inside| Node::new("", Body::Braces(inside)));
            vec(braces, 0..3).prop_map(Body::Items).boxed()
        }
        Shape::Keys if depth == 0 => Just(Body::Items(Vec::new())).boxed(),
        Shape::Keys => vec(items(&KEYS, depth - 1), 0..4).prop_map(Body::Items).boxed(),
        Shape::Actions if depth == 0 => Just(Body::Items(vec![Node::new("1", Body::Bare)])).boxed(),
        Shape::Actions => actions(depth - 1).prop_map(Body::Items).boxed(),
    }
}

fn fields(list: &'static [Field], depth: u32) -> BoxedStrategy<Vec<Node>> {
    if list.is_empty() {
        return Just(Vec::new()).boxed();
    }
    let one = move |field: &'static Field| match field {
        Field::Is(name, kind) => values(*kind).prop_map(|text| Node::new(name, Body::Equals(text))).boxed(),
        Field::Word(name) => Just(Node::new(name, Body::Bare)).boxed(),
        Field::Perhaps(name, kind) => prop_oneof![
            values(*kind).prop_map(|text| Node::new(name, Body::Equals(text))),
            Just(Node::new(name, Body::Bare)),
        ]
        .boxed(),
        Field::Inner(name, shape) | Field::Optional(name, shape) => {
            bodies(shape, depth).prop_map(|body| Node::new(name, body)).boxed()
        }
        Field::Unnamed(kind) => values(*kind).prop_map(|text| Node::new("", Body::Equals(text))).boxed(),
        Field::Action => Just(Node::new("1", Body::Bare)).boxed(),
    };
    let some = proptest::sample::subsequence((0..list.len()).collect::<Vec<_>>(), 0..=list.len());
    some.prop_flat_map(move |chosen| chosen.into_iter().map(|index| one(&list[index])).collect::<Vec<_>>()).boxed()
}

fn items(list: &'static [Item], depth: u32) -> BoxedStrategy<Node> {
    let one = |item: &'static Item| {
        let body = bodies(&item.shape, depth).prop_map(|body| Node::new(item.name, body)).boxed();
        let bare = Just(Node::new(item.name, Body::Bare)).boxed();
        match item {
            Item { shape: Shape::Nothing, .. } => bare,
            Item { bare: true, .. } => prop_oneof![bare, body].boxed(),
            _ => body,
        }
    };
    Union::new(list.iter().map(one)).boxed()
}

fn actions(depth: u32) -> BoxedStrategy<Vec<Node>> {
    let port = values(Kind::Port)
        .prop_filter("a port of this name goes by its number", |name| !is_action(name))
        .prop_map(|name| Node::new(&name, Body::Bare));
    let action = items(&ACTIONS, depth).prop_filter("drop stands alone", |node| node.name != "drop");
    prop_oneof![
        1 => Just(vec![Node::new("drop", Body::Bare)]),
        9 => vec(prop_oneof![port, action], 1..5),
    ]
    .boxed()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_flow_prints_and_parses_back_to_itself(keys in vec(items(&KEYS, 2), 0..6)) {
        let text = print(&keys);
        let parsed = parse_keys(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
        prop_assert_eq!(&print(&parsed), &text);
        prop_assert_eq!(parsed, keys);
    }

    #[test]
    fn any_actions_print_and_parse_back_to_themselves(list in actions(3)) {
        let text = print(&list);
        let parsed = parse_actions(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
        prop_assert_eq!(&print(&parsed), &text);
        prop_assert_eq!(parsed, list);
    }

    #[test]
    fn no_text_makes_it_panic_and_what_it_reads_it_prints(text in "[a-z0-9_(){}=,/ +.:-]{0,60}") {
        for parse in [parse_keys, parse_actions] {
            if let Ok(nodes) = parse(&text) {
                let printed = print(&nodes);
                let again = parse(&printed).unwrap_or_else(|error| panic!("{printed}: {error}"));
                prop_assert_eq!(print(&again), printed);
            }
        }
    }
}
