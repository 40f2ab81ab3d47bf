//! The set of rules: how it is changed, expires, is saved and loaded, and the words that it is written in.

use std::time::{Duration, Instant};

use super::{slowpath, tcp};
use crate::flow::PortNo;
use crate::flow::text::PortNames;
use crate::slowpath::rules::{RuleAction, RuleSet};
use crate::slowpath::{RuleError, Slowpath, text};

#[test]
fn adding_a_rule_again_replaces_it_and_its_counters() {
    let (slowpath, now) = (Slowpath::default(), Instant::now());
    slowpath.set_ports(vec![(PortNo(2), "p2".into())]);
    slowpath.add_rules(["ip,actions=drop"], &(), now).unwrap();
    let epoch = slowpath.epoch();
    slowpath.decide(&tcp(1, 1), now, false).rules[0].credit(3, 318, now);
    assert!(slowpath.dump("", &(), now).unwrap()[0].contains("n_packets=3, n_bytes=318"));
    slowpath.add_rules(["ip,actions=output:2"], &(), now).unwrap();
    assert!(slowpath.epoch() > epoch);
    let dump = slowpath.dump("", &(), now).unwrap();
    assert_eq!(
        dump,
        [" cookie=0x0, duration=0.000s, table=0, n_packets=0, n_bytes=0, priority=32768,ip actions=output:2"]
    );
}

#[test]
fn timeouts_count_from_the_last_packet_and_from_the_beginning() {
    let (slowpath, now) = (Slowpath::default(), Instant::now());
    let after = |seconds| now + Duration::from_secs(seconds);
    slowpath
        .add_rules(["ip,idle_timeout=10,actions=drop", "arp,hard_timeout=12,actions=drop", "actions=drop"], &(), now)
        .unwrap();
    assert_eq!(slowpath.expire(after(9)), 0);
    slowpath.decide(&tcp(1, 1), now, false).rules[0].credit(1, 64, after(8));
    let epoch = slowpath.epoch();
    assert_eq!(slowpath.expire(after(11)), 0);
    assert_eq!(slowpath.epoch(), epoch);
    assert_eq!(slowpath.expire(after(12)), 1);
    assert_eq!(slowpath.expire(after(18)), 1);
    assert!(slowpath.epoch() > epoch);
    assert_eq!(slowpath.rule_count(), 1);
}

#[test]
fn one_more_rule_does_not_disturb_the_set_it_came_from() {
    let now = Instant::now();
    let spec = |n: u32| {
        let text = format!("priority={},ip,nw_dst=10.0.{}.{},actions=output:2", n % 9, n >> 8, n & 255);
        text::parse_rule(&text, &()).unwrap()
    };
    let mut draft = RuleSet::default().draft();
    (0..1000).for_each(|n| draft.add(spec(n), now).unwrap());
    let old = draft.freeze();
    let mut draft = old.draft();
    draft.add(spec(1000), now).unwrap();
    assert_eq!(draft.remove(|r| r.spec.priority == 0), 112);
    let new = draft.freeze();
    assert_eq!((old.len(), old.sorted().len()), (1000, 1000));
    assert_eq!((new.len(), new.sorted().len()), (889, 889));
}

#[test]
fn a_loose_delete_takes_the_more_specific_and_a_strict_one_the_very_rule() {
    let rules = [
        "priority=1,ip,cookie=0x11,actions=output:2",
        "priority=2,ip,nw_dst=10.0.0.0/8,actions=output:3",
        "table=1,tcp,nw_dst=10.0.0.0/24,cookie=0x12,actions=resubmit(,2)",
        "arp,actions=output:2",
    ];
    let left = |filter: &str, strict| {
        let (slowpath, _) = slowpath(&rules.map(str::to_owned), &[]);
        slowpath.delete_rules(filter, strict, &()).unwrap();
        slowpath.rule_count()
    };
    assert_eq!(left("", false), 0);
    assert_eq!(left("ip", false), 1);
    assert_eq!(left("ip,nw_dst=10.0.0.0/16", false), 3);
    assert_eq!(left("table=1", false), 3);
    assert_eq!(left("cookie=0x10/0xf0", false), 2);
    assert_eq!(left("out_port=2", false), 2);
    assert_eq!(left("ip", true), 4);
    assert_eq!(left("ip,priority=1", true), 3);
}

#[test]
fn a_file_with_one_bad_line_changes_nothing_and_names_the_line() {
    let (slowpath, now) = (Slowpath::default(), Instant::now());
    let epoch = slowpath.epoch();
    let error = slowpath.load("# rules\nactions=normal # all\n\n  tp_dst=80,actions=drop\n", &(), now).unwrap_err();
    let RuleError::Line { line: 4, error } = &error else { panic!("{error:?}") };
    assert_eq!(error.to_string(), "tp_dst needs tcp, udp or sctp at column 3");
    assert_eq!((slowpath.rule_count(), slowpath.epoch()), (0, epoch));
}

#[test]
fn a_saved_file_loads_as_the_same_rules() {
    let (slowpath, now) = (Slowpath::default(), Instant::now());
    let file = "table=1,priority=5,tcp,tp_dst=80,cookie=0x7,idle_timeout=3,actions=dec_ttl,goto_table:2\nip,actions=flood\nipv6,actions=all\n";
    assert_eq!(slowpath.load(file, &(), now), Ok(3));
    let saved = slowpath.save();
    let other = Slowpath::default();
    assert_eq!(other.load(&saved, &(), now), Ok(3));
    assert_eq!(other.save(), saved);
    assert!(saved.starts_with("table=0,priority=32768,ip actions=FLOOD\n"), "{saved}");
}

#[test]
fn a_loaded_file_replaces_all_rules() {
    let (slowpath, now) = (Slowpath::default(), Instant::now());
    slowpath.add_rules(["table=3,ip,actions=drop", "arp,actions=drop"], &(), now).unwrap();
    slowpath.load("arp,actions=flood\n", &(), now).unwrap();
    assert_eq!(slowpath.save(), "table=0,priority=32768,arp actions=FLOOD\n");
    slowpath.load("# nothing\n", &(), now).unwrap();
    assert_eq!(slowpath.rule_count(), 0);
}

#[test]
fn errors_say_where_and_what_would_do() {
    for (rule, wanted) in [
        ("ip", "a rule needs actions=, for instance actions=drop at column 3"),
        ("in_port=p9,actions=drop", "\"p9\" is not a port's name or a number from 1 to 65535 at column 9"),
        ("table=255,actions=drop", "\"255\" is not a number from 0 to 254 at column 7"),
        ("ip,tp_dst=80,actions=drop", "tp_dst needs tcp, udp or sctp at column 4"),
        ("tcp,udp,actions=drop", "udp contradicts what the match says of ip_proto before at column 5"),
        ("ip,nw_dst=10.0.0.0/33,actions=drop", "\"33\" is not a number from 0 to 32 at column 20"),
        ("actions=mod_nw_dst:10.0.0.1", "setting ip_dst needs ip at column 9"),
        (
            "dl_vlan=5,actions=pop_vlan,set_field:6->vlan_vid",
            "setting vlan_vid needs a VLAN tag: dl_vlan=N, vlan_tci=0x1000/0x1000, or an earlier push_vlan at column 28",
        ),
        ("actions=goto_table:1,output:2", "nothing can follow goto_table:1 at column 22"),
        ("table=3,actions=goto_table:3", "\"3\" is not a table after the rule's own, 4 to 254 at column 28"),
        ("actions=", "actions= names none; actions=drop drops at column 9"),
        (
            "é=1,actions=drop",
            "\"é\" is not a word of a match, like in_port, tcp or nw_dst (see offload-flow(7)) at column 1",
        ),
    ] {
        assert_eq!(text::parse_rule(rule, &()).unwrap_err().to_string(), wanted, "{rule}");
    }
}

#[test]
fn an_asterisk_leaves_a_field_wild_and_the_same_packets_match() {
    let plain = text::parse_rule("tcp,actions=drop", &()).unwrap();
    for word in
        ["in_port", "dl_type", "dl_vlan", "dl_src", "nw_dst", "nw_tos", "ip_frag", "tcp_flags", "tp_dst", "arp_op"]
    {
        assert_eq!(text::parse_rule(&format!("tcp,{word}=*,actions=drop"), &()), Ok(plain.clone()), "{word}");
    }
    for wrong in ["tcp=*", "teapot=*", "priority=*", "nw_dst=*/8"] {
        assert!(text::parse_rule(&format!("{wrong},actions=drop"), &()).is_err(), "{wrong}");
    }
}

#[test]
fn a_line_of_a_dump_can_be_added_and_is_the_same_rule() {
    let (first, now) = (Slowpath::default(), Instant::now());
    let rule = "table=1,priority=5,tcp,tp_dst=80,tcp_flags=syn,cookie=0x7,idle_timeout=3,actions=dec_ttl,goto_table:2";
    first.add_rules([rule], &(), now).unwrap();
    let dump = first.dump("", &(), now + Duration::from_secs(5)).unwrap();
    let second = Slowpath::default();
    second.add_rules(dump.iter().map(String::as_str), &(), now).unwrap();
    assert_eq!(second.save(), first.save());
    let aged = format!("idle_age=2, hard_age=9,{rule}");
    assert_eq!(text::parse_rule(&aged, &()), text::parse_rule(rule, &()));
    assert_eq!(second.dump("n_packets=0, n_bytes=0, duration=5s, tcp", &(), now).unwrap().len(), 1);
}

#[test]
fn a_bare_number_is_the_ports_number_even_if_another_port_is_called_so() {
    struct Named;
    impl PortNames for Named {
        fn number(&self, name: &str) -> Option<PortNo> {
            [("1", 7), ("70000", 8), ("p9", 9)].iter().find(|(n, _)| *n == name).map(|(_, number)| PortNo(*number))
        }

        fn name(&self, number: PortNo) -> Option<String> {
            (number == PortNo(7)).then(|| "1".to_owned())
        }
    }
    for (words, wanted) in [("1", Some(1)), ("\"1\"", Some(7)), ("70000", Some(8)), ("p9", Some(9)), ("\"9\"", None)] {
        let read = text::parse_rule(&format!("in_port={words},actions=output:{words},{words}"), &Named);
        let got = read.as_ref().ok().map(|spec| (spec.matching.key().in_port(), spec.actions.to_vec()));
        let port = wanted.map(PortNo);
        assert_eq!(got, port.map(|p| (p, vec![RuleAction::Output(p); 2])), "{words}");
        if let Ok(spec) = read {
            assert_eq!(text::parse_rule(&text::format_rule(&spec, &Named), &Named), Ok(spec));
        }
    }
}

#[test]
fn the_words_of_ovs_ofctl_are_understood() {
    for (rule, printed) in [
        (
            "table=0,priority=100,in_port=1,tcp,nw_dst=10.0.0.0/24,tp_dst=80,cookie=0x1,idle_timeout=10,hard_timeout=60,actions=1",
            "cookie=0x1,table=0,idle_timeout=10,hard_timeout=60,priority=100,tcp,in_port=1,nw_dst=10.0.0.0/24,tp_dst=80 actions=output:1",
        ),
        ("dl_type=0x800 nw_proto=17 udp_src=5, actions=NORMAL", "table=0,priority=32768,udp,tp_src=5 actions=NORMAL"),
        ("dl_vlan=0xffff,actions=strip_vlan", "table=0,priority=32768,vlan_tci=0x0000/0x1000 actions=pop_vlan"),
        (
            "vlan_vid=7,vlan_pcp=2,actions=set_field:4196->vlan_vid,2",
            "table=0,priority=32768,dl_vlan=7,dl_vlan_pcp=2 actions=set_field:100->vlan_vid,output:2",
        ),
        ("tcp,tcp_flags=+syn-ack,actions=drop", "table=0,priority=32768,tcp,tcp_flags=+syn-ack actions=drop"),
        (
            "tcp6,tcp_flags=0x800/0x800,nw_tos=0x20,actions=drop",
            "table=0,priority=32768,tcp6,tcp_flags=0x800/0x800,ip_dscp=8 actions=drop",
        ),
        (
            "arp,nw_src=10.0.0.1,nw_proto=2,actions=drop",
            "table=0,priority=32768,arp,arp_spa=10.0.0.1,arp_op=2 actions=drop",
        ),
        (
            "mplsm,mpls_label=16,mpls_bos=1,actions=drop",
            "table=0,priority=32768,mplsm,mpls_label=16,mpls_bos=1 actions=drop",
        ),
        (
            "icmp6,icmpv6_type=136,icmpv6_code=0,nd_tll=02:00:00:00:00:01,actions=drop",
            "table=0,priority=32768,icmp6,icmp_type=136,icmp_code=0,nd_tll=02:00:00:00:00:01 actions=drop",
        ),
        (
            "ip,nw_dst=0.0.0.1/0.0.0.255,ip_frag=not_later,actions=resubmit(2,7),resubmit:3,resubmit(,4)",
            "table=0,priority=32768,ip,ip_frag=not_later,nw_dst=0.0.0.1/0.0.0.255 actions=resubmit(2,7),resubmit(3,),resubmit(,4)",
        ),
        ("tcp,tcp_flags=syn,actions=drop", "table=0,priority=32768,tcp,tcp_flags=syn actions=drop"),
        ("tcp6,tcp_flags=ack|syn,actions=drop", "table=0,priority=32768,tcp6,tcp_flags=syn|ack actions=drop"),
        ("tcp,tcp_flags=0,actions=drop", "table=0,priority=32768,tcp,tcp_flags=0x000/0xfff actions=drop"),
        ("tcp,tcp_flags=0x12,actions=drop", "table=0,priority=32768,tcp,tcp_flags=syn|ack actions=drop"),
        (
            "ip6,actions=mod_nw_ecn:2,set_field:1->ip_ecn",
            "table=0,priority=32768,ipv6 actions=set_field:2->nw_ecn,set_field:1->nw_ecn",
        ),
        ("actions=set_vlan_vid:5,set_vlan_pcp:3", "table=0,priority=32768 actions=mod_vlan_vid:5,mod_vlan_pcp:3"),
        ("icmp,tp_src=8,tp_dst=0,actions=drop", "table=0,priority=32768,icmp,icmp_type=8,icmp_code=0 actions=drop"),
        (
            "icmp6,tp_src=135,tp_dst=0,nd_target=::1,actions=drop",
            "table=0,priority=32768,icmp6,icmp_type=135,icmp_code=0,nd_target=::1 actions=drop",
        ),
        (
            "sctp,actions=mod_tp_src:9,mod_nw_tos:8,set_field:02:00:00:00:00:00/ff:ff:00:00:00:00->eth_src",
            "table=0,priority=32768,sctp actions=set_field:9->tp_src,set_field:2->ip_dscp,set_field:02:00:00:00:00:00/ff:ff:00:00:00:00->eth_src",
        ),
    ] {
        let got = text::parse_rule(rule, &()).map(|spec| text::format_rule(&spec, &())).unwrap_or_default();
        assert_eq!(got, printed, "{rule}");
    }
}
