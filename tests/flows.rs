//! Datapath flows added by hand, and packets made by hand.

use std::collections::BTreeSet;

use serde_json::json;

use crate::capture;
use crate::world::{Stage, World};

const NET_10: &str = "in_port(1),eth(),eth_type(0x0800),ipv4(dst=10.0.0.0/255.0.0.0)";
const ARP: &str = "in_port(1),eth(src=02:00:00:00:00:01,dst=ff:ff:ff:ff:ff:ff),eth_type(0x0806),\
    arp(sip=10.0.0.1,tip=10.0.0.2,op=1,sha=02:00:00:00:00:01,tha=00:00:00:00:00:00)";
const TO_10: &str = "in_port(1),eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02),eth_type(0x0800),\
    ipv4(src=192.0.2.1,dst=10.1.2.3,proto=17,tos=0,ttl=64,frag=no),udp(src=1000,dst=2000)";

/// Three ports in memory that record what they send; one rule, which drops.
fn world(config: &str, device: &str) -> World {
    let stage = Stage::new();
    stage.file("config", config);
    stage.file("rules", "priority=0,actions=drop\n");
    let ports: String = (1..=3).map(|n| format!("--port p{n},type=sim,port_no={n},tx=DIR/tx{n}.pcap ")).collect();
    stage.start(&format!("{ports} --config DIR/config --rules DIR/rules --offload {device}"))
}

fn receive(world: &World, flow: &str) {
    world.ctl(["netdev-dummy/receive", "p1", flow]);
}

/// Match and actions of each line of a dump.
fn texts(dump: &str) -> BTreeSet<(String, String)> {
    let lines = dump.lines().filter(|line| !line.starts_with("flow-dump"));
    let split = |line: &str| {
        let (key, rest) = line.split_once(", packets:").unwrap();
        (key.to_owned(), rest.split_once("actions:").unwrap().1.to_owned())
    };
    lines.map(split).collect()
}

#[test]
fn a_flow_is_added_found_changed_and_deleted_by_its_text() {
    let world = world("", "sim");
    world.ctl(["dpctl/add-flow", NET_10, "2"]);
    assert_eq!(world.ctl_err(["dpctl/add-flow", NET_10, "3"]), "updating flow table (File exists)");
    receive(&world, TO_10);
    world.wait_until("the packet leaves", || world.port_count("p2", "tx_packets") == 1);
    let flow = world.flow("10.0.0.0/255.0.0.0").unwrap();
    assert_eq!((&flow["by_hand"], &flow["packets"], &flow["actions"]), (&json!(true), &json!(1), &json!("2")));

    let ufid = format!("ufid:{}", flow["ufid"].as_str().unwrap());
    let shown = world.ctl(["dpctl/get-flow", "--no-names", &ufid]);
    assert!(shown.starts_with(&format!("{ufid}, ")) && shown.contains("in_port(1)"), "{shown}");
    assert!(shown.trim_end().ends_with("actions:2"), "{shown}");
    world.ctl(["dpctl/mod-flow", NET_10, "set(ipv4(dst=10.9.9.9)),3,2"]);
    receive(&world, TO_10);
    world.wait_until("the packet leaves as it is to now", || world.port_count("p3", "tx_packets") == 1);
    assert!(world.ctl(["dpctl/mod-flow", "-s", "--clear", &ufid, "3"]).starts_with("packets:2, bytes:"));
    assert_eq!(world.flow("10.0.0.0").unwrap()["packets"], 0, "the counts were cleared");

    assert!(world.ctl(["dpctl/del-flow", "-s", NET_10]).starts_with("packets:0, bytes:0, used:never"));
    assert_eq!(
        world.ctl_err(["dpctl/del-flow", NET_10]),
        "deleting flow (No such file or directory). Perhaps you need to specify a UFID?"
    );
    assert_eq!(world.ctl_err(["dpctl/mod-flow", NET_10, "2"]), "updating flow table (No such file or directory)");
    assert_eq!(world.ctl_err(["dpctl/get-flow", &ufid]), "getting flow (No such file or directory)");
    assert_eq!(
        world.ctl_err(["dpctl/del-flow", &ufid]).split('.').next().unwrap(),
        "deleting flow (No such file or directory)"
    );
    world.wait_until("the device has forgotten it", || world.offload("/rules") == 0);
}

#[test]
fn a_flow_by_hand_goes_before_the_rules_and_outlives_what_they_made() {
    let world = world("[datapath]\nmax-idle = \"100ms\"", "sim");
    world.ctl(["rule/add", "priority=1,arp,actions=output:3"]);
    receive(&world, ARP);
    world.wait_until("the rule decides", || world.port_count("p3", "tx_packets") == 1);

    // Over a megaflow that stands already, and narrower than it.
    world.ctl(["dpctl/add-flow", "in_port(1),eth(dst=ff:ff:ff:ff:ff:ff),eth_type(0x0806)", "2"]);
    receive(&world, ARP);
    world.wait_until("the flow by hand goes first", || world.port_count("p2", "tx_packets") == 1);
    assert_eq!(world.port_count("p3", "tx_packets"), 1);
    world.wait_until("the rule's flow is idle for too long", || world.flows().len() == 1);
    // For as long as another flow takes to come and go, in which this one could.
    world.ctl(["rule/add", "priority=1,ip,actions=output:3"]);
    receive(&world, TO_10);
    world.wait_until("another flow came", || world.perf("upcalls") == 2);
    world.wait_until("and went", || world.flows().len() == 1);
    assert_eq!(world.flows()[0]["by_hand"], true);

    // Rules come and go without it.
    world.ctl(["rule/del"]);
    receive(&world, ARP);
    world.wait_until("still first", || world.port_count("p2", "tx_packets") == 2);
    world.ctl(["dpctl/del-flows"]);
    assert!(world.flows().is_empty());
}

#[test]
fn a_dump_with_names_can_be_replayed() {
    let world = world("", "none");
    for (flow, actions) in [
        (NET_10, "set(ipv4(src=192.0.2.7,ttl=9)),p2,push_vlan(vid=7,pcp=3),p3"),
        (
            "in_port(p1),eth(),eth_type(0x8100),vlan(vid=5),encap(eth_type(0x86dd),ipv6(proto=6),tcp(dst=80))",
            "pop_vlan,p2",
        ),
        ("in_port(2),eth(src=02:00:00:00:00:01),eth_type(0x0806),arp(op=1)", "drop"),
        ("in_port(3),eth(),eth_type(0x8847),mpls(label=100/0xffff0)", "1,2"),
    ] {
        world.ctl(["dpctl/add-flow", flow, actions]);
    }
    for option in ["--names", "--no-names"] {
        let before = texts(&world.ctl(["dpctl/dump-flows", option]));
        assert_eq!(before.len(), 4);
        assert_eq!(option == "--names", before.iter().all(|(key, _)| key.contains("in_port(p")));
        world.ctl(["dpctl/del-flows"]);
        for (key, actions) in &before {
            world.ctl(["dpctl/add-flow", key, actions]);
        }
        assert_eq!(texts(&world.ctl(["dpctl/dump-flows", option])), before);
    }
}

#[test]
fn every_poller_has_a_flow_by_hand_and_they_share_its_mark() {
    let world = world("[datapath]\npollers = 2", "sim");
    world.ctl(["dpctl/add-flow", NET_10, "2"]);
    let dump = world.ctl(["dpctl/dump-flows"]);
    let titles: Vec<&str> = dump.lines().filter(|line| line.starts_with("flow-dump")).collect();
    assert_eq!(titles, ["flow-dump from poller: 0", "flow-dump from poller: 1"]);
    let flows = world.flows();
    assert_eq!(flows[0]["ufid"], flows[1]["ufid"]);

    // In the order in which they asked for it.
    world.wait_until("both own one rule", || {
        let owners = &world.json(["offload/mark-show"])[0]["owners"];
        *owners == json!([0, 1]) || *owners == json!([1, 0])
    });
    let marks = world.json(["offload/mark-show"]);
    assert_eq!((marks.as_array().unwrap().len(), &marks[0]["ufid"]), (1, &flows[0]["ufid"]));
    assert_eq!(world.offload("/rules"), 1);
    let queue = world.json(["offload/queue-show"]);
    assert!(queue["total"]["enqueued"].as_u64().unwrap() >= 2, "{queue}");
    world.wait_until("the mark is bound", || world.flows().iter().all(|flow| flow["mark"] == marks[0]["mark"]));
    let more = world.ctl(["dpctl/dump-flows", "-m"]);
    assert_eq!(more.matches(&format!("offloaded:partial, dp:ovs, mark:{},", marks[0]["mark"])).count(), 2, "{more}");

    // The rule goes with its last owner.
    world.ctl(["dpctl/del-flow", NET_10]);
    world.wait_until("the device has forgotten it", || world.offload("/rules") == 0);
    assert_eq!(world.ctl(["offload/mark-show"]), "");
}

#[test]
fn the_packet_that_missed_is_not_in_its_flows_count() {
    let world = world("", "sim");
    world.ctl(["rule/add", "priority=1,ip,actions=output:2"]);
    for _ in 0..3 {
        receive(&world, TO_10);
    }
    world.wait_until("all are sent", || world.port_count("p2", "tx_packets") == 3);
    let flow = world.flow("proto").or_else(|| world.flow("0x0800")).unwrap();
    assert_eq!(flow["packets"], 2);
    world.wait_until("the rule counts all of them", || world.rule_packets("ip") == 3);
    assert_eq!((world.perf("upcalls"), world.perf("rx_packets")), (1, 3));
}

#[test]
fn packets_by_hand_are_hex_or_made_of_a_flow() {
    let world = world("", "none");
    world.ctl(["rule/add", "priority=1,actions=output:2"]);
    let hex = "ffffffffffff 020000000001 88b5 0102030405060708090a";
    world.ctl(["netdev-dummy/receive", "p1", hex, "--len", "64", hex, TO_10, TO_10, "--len", "100"]);
    world.wait_until("all are sent", || world.port_count("p2", "tx_packets") == 4);
    let sent: Vec<Vec<u8>> =
        capture::read(world.path("tx2.pcap")).unwrap().into_iter().map(|frame| frame.bytes).collect();
    let mut first: Vec<u8> = [vec![0xff; 6], vec![2, 0, 0, 0, 0, 1, 0x88, 0xb5], (1..=10).collect()].concat();
    assert!(sent.contains(&first), "{sent:?}");
    first.resize(64, 0);
    assert!(sent.contains(&first), "{sent:?}");
    let made: Vec<&Vec<u8>> = sent.iter().filter(|frame| frame[12..14] == [8, 0]).collect();
    for frame in &made {
        let packet = etherparse::SlicedPacket::from_ethernet(frame).unwrap();
        let ip = packet.net.as_ref().unwrap().ipv4_ref().unwrap().header().to_header();
        assert_eq!((ip.source, ip.destination, ip.time_to_live), ([192, 0, 2, 1], [10, 1, 2, 3], 64));
        assert_eq!(ip.header_checksum, ip.calc_header_checksum());
        let Some(etherparse::TransportSlice::Udp(udp)) = packet.transport else { panic!("{frame:?}") };
        assert_eq!((udp.source_port(), udp.destination_port()), (1000, 2000));
        let sum = udp.to_header().calc_checksum_ipv4(&ip, udp.payload()).unwrap();
        assert!(udp.checksum() == 0 || udp.checksum() == sum, "{frame:?}");
    }
    assert_eq!(made.iter().map(|frame| frame.len()).max(), Some(100));
}
