//! What is decided of one packet: how wide its megaflow is, what is sent, why nothing is, and what `normal` learns.

use std::time::Instant;

use super::{decided, mask, slowpath, tcp};
use crate::flow::key::{eth_type, frag};
use crate::flow::{Action, Field, Key, PortNo};
use crate::slowpath::DropReason;

#[test]
fn rules_that_ask_for_the_port_only_leave_everything_else_wild() {
    let decision = decided(&["in_port=1,actions=output:2", "in_port=2,actions=output:1"], &tcp(0x0a00_0001, 80));
    assert_eq!(decision.mask, mask(&[]));
    assert_eq!(*decision.actions, [Action::Output(PortNo(2))]);
}

#[test]
fn a_set_of_24_bit_prefixes_yields_masks_of_24_bits() {
    for count in [3u32, 200] {
        let rules: Vec<String> = (0..count).map(|i| format!("ip,nw_dst=10.0.{i}.0/24,actions=output:2")).collect();
        let (slowpath, _) = slowpath(&rules, &[]);
        let decision = slowpath.decide(&tcp(0x0a00_0107, 80), Instant::now(), false);
        assert_eq!(decision.mask, mask(&[(Field::Ipv4Dst, 0xffff_ff00)]), "{count} rules");
        assert_eq!(decision.dropped, None);
        let decision = slowpath.decide(&tcp(0xc0a8_0107, 80), Instant::now(), false);
        assert_eq!(decision.mask, mask(&[(Field::Ipv4Dst, 0x8000_0000)]), "{count} rules");
        assert_eq!(decision.dropped, Some(DropReason::NoRule));
    }
}

#[test]
fn longer_prefixes_above_shorter_ones_cost_only_the_bits_that_tell_them_apart() {
    for count in [3u32, 200] {
        let mut rules: Vec<String> =
            (0..count).map(|i| format!("priority=9,ip,nw_dst=10.0.{i}.255,actions=output:3")).collect();
        rules.push("priority=1,ip,nw_dst=10.0.0.0/8,actions=output:2".into());
        let decision = slowpath(&rules, &[]).0.decide(&tcp(0x0a00_0101, 80), Instant::now(), false);
        assert_eq!(decision.mask, mask(&[(Field::Ipv4Dst, 0xffff_ff80)]), "{count} rules");
        assert_eq!(*decision.actions, [Action::Output(PortNo(2))]);
    }
}

#[test]
fn a_better_rule_for_another_protocol_does_not_cost_its_ports() {
    let rules = ["priority=9,udp,tp_dst=53,actions=drop", "priority=1,ip,actions=output:2"];
    assert_eq!(decided(&rules, &tcp(0x0a00_0001, 80)).mask, mask(&[(Field::IpProto, 0xff)]));
}

#[test]
fn rewritten_bits_are_not_looked_at() {
    let rules = ["table=0,ip,actions=mod_nw_dst:10.0.0.1,resubmit(,1)", "table=1,ip,nw_dst=10.0.0.1,actions=output:2"];
    let decision = decided(&rules, &tcp(0x0a63_0001, 80));
    assert_eq!(decision.mask, mask(&[]));
    assert_eq!(decision.rules.len(), 2);
    let [Action::Set(set), Action::Output(PortNo(2))] = &*decision.actions else { panic!("{:?}", decision.actions) };
    assert_eq!((set.header().name(), set.assigns()[0].value), ("ipv4", 0x0a00_0001));
}

#[test]
fn a_later_fragment_has_no_ports_to_rewrite() {
    let rules = [
        "tcp,actions=mod_tp_dst:80,resubmit(,1)",
        "table=1,tcp,tp_dst=80,actions=output:2",
        "table=1,actions=output:3",
    ];
    let mut key = tcp(0x0a00_0001, 0);
    key.set(Field::TpSrc, 0u8);
    key.set(Field::IpFrag, frag::LATER);
    assert_eq!(*decided(&rules, &key).actions, [Action::Output(PortNo(3))]);
}

#[test]
fn rewrites_that_no_output_follows_are_left_out() {
    let decision = decided(&["ip,actions=output:2,mod_nw_dst:10.0.0.1"], &tcp(0x0a63_0001, 80));
    assert_eq!(*decision.actions, [Action::Output(PortNo(2))]);
}

#[test]
fn every_drop_has_its_reason() {
    let key = tcp(0x0a00_0001, 80);
    let reason = |rules: &[&str]| decided(rules, &key).dropped;
    assert_eq!(reason(&[]), Some(DropReason::NoRule));
    assert_eq!(reason(&["actions=drop"]), Some(DropReason::Rule));
    assert_eq!(reason(&["actions=output:1"]), Some(DropReason::Rule));
    assert_eq!(reason(&["actions=output:4"]), Some(DropReason::NoPort));
    assert_eq!(reason(&["ip,actions=mod_nw_ttl:1,dec_ttl,output:2"]), Some(DropReason::Ttl));
    assert_eq!(reason(&["actions=output:2,resubmit(,0)"]), Some(DropReason::TooDeep));
    assert_eq!(reason(&["actions=in_port"]), None);
}

#[test]
fn a_trip_that_branches_forever_ends() {
    let many = format!("actions={}", vec!["resubmit(,1)"; 90].join(","));
    let rules = [many.clone(), format!("table=1,{}", many.replace(",1)", ",2)")), format!("table=2,{many}")];
    let decision = slowpath(&rules, &[]).0.decide(&tcp(1, 1), Instant::now(), false);
    assert_eq!(decision.dropped, Some(DropReason::TooDeep));
    let outputs = format!("table=1,actions={}", vec!["output:2"; 5000].join(","));
    let decision = slowpath(&[many, outputs], &[]).0.decide(&tcp(1, 1), Instant::now(), false);
    assert_eq!(decision.dropped, Some(DropReason::TooDeep));
}

#[test]
fn normal_learns_the_sender_and_then_finds_it() {
    let (slowpath, now) = (slowpath(&["actions=normal".into()], &[]).0, Instant::now());
    let there = tcp(0x0a00_0001, 80);
    let mut back = there;
    back.set(Field::InPort, 3u8);
    back.set(Field::EthSrc, there.get(Field::EthDst));
    back.set(Field::EthDst, there.get(Field::EthSrc));
    let before = slowpath.stations_epoch();
    let flooded = slowpath.decide(&there, now, true);
    assert_eq!(flooded.actions.outputs().collect::<Vec<_>>(), [2, 3, 5].map(PortNo));
    assert!(slowpath.stations_epoch() > before);
    assert_eq!(*slowpath.decide(&back, now, true).actions, [Action::Output(PortNo(1))]);
    assert!(!slowpath.still_true(&flooded.lookups[0]), "the receiver has been heard since");
    let direct = slowpath.decide(&there, now, true);
    assert_eq!(*direct.actions, [Action::Output(PortNo(3))]);
    let whole = |f: Field| (f, f.full());
    assert_eq!(direct.mask, mask(&[whole(Field::EthSrc), whole(Field::EthDst)]));
    slowpath.set_ports(vec![(PortNo(1), "p1".into()), (PortNo(2), "p2".into())]);
    assert!(!slowpath.still_true(&direct.lookups[0]), "its port is gone");
}

#[test]
fn one_address_in_two_vlans_is_two_stations_whatever_the_tags_type() {
    let (slowpath, now) = (slowpath(&["actions=normal".into()], &[]).0, Instant::now());
    let tagged = |tpid: u16, vid: u16, port: u8| {
        let mut key = tcp(0x0a00_0001, 80);
        key.set(Field::InPort, port);
        key.set(Field::Vlan0Cfi, 1u8);
        key.set(Field::Vlan0Tpid, tpid);
        key.set(Field::Vlan0Vid, vid);
        key
    };
    let back = |key: &Key| {
        let mut back = *key;
        back.set(Field::InPort, 5u8);
        back.set(Field::EthSrc, 0x0200_0000_0009u64);
        back.set(Field::EthDst, key.get(Field::EthSrc));
        *slowpath.decide(&back, now, false).actions == [Action::Output(key.in_port())]
    };
    for tpid in [eth_type::QINQ, eth_type::VLAN] {
        let (in_7, in_8) = (tagged(tpid, 7, 1), tagged(tpid, 8, 2));
        slowpath.decide(&in_7, now, true);
        slowpath.decide(&in_8, now, true);
        assert!(back(&in_7) && back(&in_8), "{tpid:#06x}");
    }
    // A vid is the same VLAN in a tag of either type, and none but VLAN 0 has packets without a tag.
    slowpath.decide(&tagged(eth_type::QINQ, 9, 3), now, true);
    assert!(back(&tagged(eth_type::VLAN, 9, 3)));
    assert!(!back(&tcp(0x0a00_0001, 80)));
}
