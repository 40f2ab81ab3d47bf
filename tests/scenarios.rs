//! What Open vSwitch's own tests of offload show, played with the simulated NIC: the same packets, the same claims.
//!
//! Each test names the scenario of Open vSwitch that it answers to. Time stands still and is set forward by hand.

use std::fs::File;

use pcap_file::pcap::PcapReader;
use serde_json::json;

use crate::world::{Stage, World};

/// A UDP packet in VLAN 99, from a port's wire.
const TAGGED_UDP: &str = "in_port(1),eth(src=00:06:07:08:09:0a,dst=00:01:02:03:04:05),eth_type(0x8100),vlan(vid=99,pcp=7),\
    encap(eth_type(0x0800),ipv4(src=127.0.0.1,dst=127.0.0.1,proto=17,tos=0,ttl=64,frag=no),udp(src=54392,dst=5201))";
const UDP: &str = "in_port(1),eth(src=00:06:07:08:09:0a,dst=00:01:02:03:04:05),eth_type(0x0800),\
    ipv4(src=127.0.0.1,dst=127.0.0.1,proto=17,tos=0,ttl=64,frag=no),udp(src=54392,dst=5201)";
const TAGGED_ARP: &str = "in_port(1),eth(src=00:06:07:08:09:0a,dst=00:01:02:03:04:05),eth_type(0x8100),vlan(vid=99,pcp=7),\
    encap(eth_type(0x0806),arp(sip=127.0.0.1,tip=127.0.0.1,op=1,sha=00:0b:0c:0d:0e:0f,tha=00:00:00:00:00:00))";

/// Ports p1 and p2 in memory, which record what they send; these rules; the clock stopped.
fn world(rules: &str, device: &str) -> World {
    let stage = Stage::new();
    stage.file("rules", rules);
    let ports = "--port p1,type=dummy-pmd,port_no=1,tx=DIR/tx1.pcap --port p2,type=dummy-pmd,port_no=2,tx=DIR/tx2.pcap";
    let world = stage.start(&format!("{ports} --rules DIR/rules --offload {device} --time-control"));
    world.ctl(["time/stop"]);
    world
}

/// A packet arrives at p1, and everything that follows from it has happened: in the datapath, and in the device.
fn receive(world: &World, packet: &str) {
    let before = received(world);
    world.ctl(["netdev-dummy/receive", "p1", packet]);
    world.wait_until("the packet is received", || received(world) > before);
    world.ctl(["time/warp", "1000"]);
    world.ctl(["revalidator/wait"]);
}

/// Packets that came to p1, whoever saw them.
fn received(world: &World) -> u64 {
    let device = |count: &str| world.offload(&format!("/port_counts/p1/{count}"));
    device("hits") + device("full") + device("misses") + device("busy")
}

fn frames(world: &World, name: &str, count: usize) -> Vec<Vec<u8>> {
    let read = || {
        let mut frames = Vec::new();
        let reader = File::open(world.path(name)).ok().and_then(|file| PcapReader::new(file).ok());
        let Some(mut reader) = reader else { return frames };
        while let Some(Ok(packet)) = reader.next_packet() {
            frames.push(packet.data.into_owned());
        }
        frames
    };
    world.wait_until("frames are recorded", || read().len() >= count);
    read()
}

/// "partial hw offload": the first packet misses, the second is found by its mark, and the flow and its rule expire.
#[test]
fn partial_offload_a_miss_then_a_mark_then_expiry() {
    let world = world("in_port=1,actions=IN_PORT\n", "sim");
    receive(&world, UDP);
    assert_eq!((world.perf("upcalls"), world.perf("mark_hits")), (1, 0));
    let marks = world.json(["offload/mark-show"]);
    assert!(marks[0]["mark"] == 1 && marks[1].is_null(), "{marks}");
    let events = world.json(["offload/events"]);
    assert!(events["events"][0]["kind"] == "installed" && events["events"][0]["mark"] == 1, "{events}");

    receive(&world, UDP);
    assert_eq!((world.perf("upcalls"), world.perf("mark_hits")), (1, 1));
    let flow = world.flow("in_port(1)").unwrap();
    assert_eq!((&flow["mark"], &flow["offload"]), (&json!(1), &json!({"offloaded": "mark"})));
    let dump = world.ctl(["dpctl/dump-flows", "-m", "type=partially-offloaded"]);
    assert!(dump.contains("offloaded:partial, dp:ovs, mark:1, actions:p1"), "{dump}");

    assert_eq!(world.ctl(["time/warp", "15000"]), "warped\n");
    world.ctl(["revalidator/wait"]);
    assert!(world.flows().is_empty());
    world.wait_until("the device has forgotten the rule", || world.offload("/rules") == 0);
    let events = world.json(["offload/events", &events["next"].to_string()]);
    assert!(events["events"][0]["kind"] == "retired" && events["events"][0]["mark"] == 1, "{events}");
}

/// "partial hw offload with packet modifications": rewriting a marked packet, whose headers were not looked at, hits the right bytes.
#[test]
fn partial_offload_marked_packets_are_rewritten_as_unmarked_ones_are() {
    let rules = "in_port=1,udp,actions=mod_nw_src:192.168.0.7,mod_tp_dst:3773,output:2\n";
    let world = world(rules, "sim");
    receive(&world, TAGGED_UDP);
    receive(&world, TAGGED_UDP);
    assert_eq!((world.perf("upcalls"), world.perf("mark_hits")), (1, 1));
    let frames = frames(&world, "tx2.pcap", 2);
    assert_eq!(frames[0], frames[1]);
    let packet = etherparse::SlicedPacket::from_ethernet(&frames[0]).unwrap();
    let etherparse::NetSlice::Ipv4(ip) = packet.net.unwrap() else { panic!("IPv4") };
    assert_eq!(ip.header().source_addr().to_string(), "192.168.0.7");
    assert_eq!(ip.header().to_header().calc_header_checksum(), ip.header().header_checksum());
    let Some(etherparse::TransportSlice::Udp(udp)) = packet.transport else { panic!("UDP") };
    assert_eq!((udp.source_port(), udp.destination_port()), (54_392, 3_773));
    assert_eq!(frames[0][12..16], [0x81, 0x00, 0xe0, 99], "the tag is as it was");
}

/// "partial hw offload with arp vlan id modifications".
#[test]
fn partial_offload_a_marked_arp_packet_changes_its_vlan() {
    let world = world("in_port=1,arp,dl_vlan=99,actions=mod_vlan_vid:11,output:2\n", "sim");
    receive(&world, TAGGED_ARP);
    receive(&world, TAGGED_ARP);
    assert_eq!((world.perf("upcalls"), world.perf("mark_hits")), (1, 1));
    let frames = frames(&world, "tx2.pcap", 2);
    assert_eq!(frames[0], frames[1]);
    assert_eq!(frames[0][..18], [0, 1, 2, 3, 4, 5, 0, 6, 7, 8, 9, 10, 0x81, 0x00, 0xe0, 11, 0x08, 0x06]);
    assert_eq!(frames[0][26..32], [0, 11, 12, 13, 14, 15], "the sender's address inside is as it was");
}

/// "full hw offload": the second packet never sees the processor; when its way out is gone, packets come up again.
#[test]
fn full_offload_bypasses_the_processor_until_the_port_it_sends_to_goes_away() {
    let world = world("in_port=1,actions=output:2\n", "sim,level=full");
    receive(&world, UDP);
    receive(&world, UDP);
    assert_eq!((world.perf("upcalls"), world.perf("mark_hits"), world.perf("rx_packets")), (1, 0, 1));
    let dump = world.ctl(["dpctl/dump-flows", "-m", "type=offloaded"]);
    assert!(dump.contains(", offloaded:yes, dp:offloadd, mark:1, ") && dump.contains("actions:p2"), "{dump}");
    assert!(dump.contains("packets:1,") || dump.contains("packets:2,"), "the device's packets count: {dump}");
    assert_eq!(frames(&world, "tx2.pcap", 2).len(), 2);
    let shown = |full: u64, miss: u64, aborted: u64| {
        let text = format!(
            "  - p1: port_no: 1\n    rx_offload_partial   : 0\n    rx_offload_full      : {full}\n    \
             rx_offload_miss      : {miss}\n    rx_offload_pipe_abort: {aborted}\n"
        );
        let said = world.ctl(["dpif/offload/show"]);
        assert!(said.starts_with("Globally enabled: true\nDatapaths:\nnetdev@offloadd:\n  sim\n"), "{said}");
        assert!(said.contains(&text), "{said}\nis not\n{text}");
        let json = world.json(["dpif/offload/show"]);
        let port = &json["netdev@offloadd"]["providers"]["sim"]["ports"]["p1"];
        let wanted = json!({
            "port_no": 1, "rx_offload_partial": 0, "rx_offload_full": full, "rx_offload_miss": miss,
            "rx_offload_pipe_abort": aborted,
        });
        assert_eq!(
            (port, &json["enabled"], &json["netdev@offloadd"]["priority"]),
            (&wanted, &json!(true), &json!(["sim"]))
        );
    };
    shown(1, 1, 0);

    world.ctl(["revalidator/pause"]);
    world.ctl(["dpctl/del-if", "p2"]);
    let before = received(&world);
    world.ctl(["netdev-dummy/receive", "p1", UDP]);
    world.wait_until("the packet is received", || received(&world) > before);
    shown(1, 1, 1);
    assert_eq!(world.flows().len(), 1, "the flow is still listed");
    world.ctl(["revalidator/resume"]);
    world.ctl(["revalidator/wait"]);
}

/// "dpctl add-flow in_port exact match", "wider ip match": what may be added.
#[test]
fn flows_by_hand_say_their_port_exactly_and_masks_may_overlap() {
    let world = world("actions=drop\n", "sim");
    let refused = world.ctl_err(["dpctl/add-flow", "in_port(),eth(),eth_type(0x0800),ipv4()", "2"]);
    assert_eq!(refused, "flow: in_port is not an exact match");
    for mask in ["255.255.255.0", "255.255.0.0", "255.0.0.0"] {
        world.ctl(["dpctl/add-flow", &format!("in_port(1),eth(),eth_type(0x0800),ipv4(dst=192.0.0.0/{mask})"), "2"]);
    }
    assert_eq!(world.flows().len(), 3);
}

/// "mega flow ufid uniqueness": one value under two masks makes two megaflows, in the device as well.
#[test]
fn one_value_under_two_masks_is_two_megaflows() {
    let world = world("actions=drop\n", "sim");
    for mask in ["255.255.255.0", "255.255.0.0"] {
        world.ctl(["dpctl/add-flow", &format!("in_port(1),eth(),eth_type(0x0800),ipv4(dst=10.1.0.0/{mask})"), "2"]);
    }
    world.wait_until("both are in the device", || world.offload("/rules") == 2);
    let marks = world.json(["offload/mark-show"]);
    assert!(marks[0]["ufid"] != marks[1]["ufid"] && marks[0]["mark"] != marks[1]["mark"], "{marks}");
}

/// "datapath flow modification": a packet that is found by its mark takes the newest actions.
#[test]
fn a_flow_that_changes_is_followed_by_marked_packets() {
    let world = world("actions=drop\n", "sim");
    let flow = "in_port(1),eth(),eth_type(0x0800),ipv4(dst=127.0.0.0/255.0.0.0)";
    world.ctl(["dpctl/add-flow", flow, "2"]);
    receive(&world, UDP);
    receive(&world, UDP);
    assert_eq!(frames(&world, "tx2.pcap", 2).len(), 2);
    world.ctl(["dpctl/mod-flow", flow, "1"]);
    receive(&world, UDP);
    assert!(world.perf("mark_hits") >= 2);
    assert_eq!(frames(&world, "tx1.pcap", 1).len(), 1);
    assert_eq!(world.port_count("p2", "tx_packets"), 2);
    assert_eq!(world.json(["rule/trace", UDP])["dropped"], "the rules send it nowhere");
}

/// "miss upcall key": the flow that is installed is the one that is dumped, and what rules look at is in it.
#[test]
fn what_a_packet_misses_with_is_what_is_installed_and_dumped() {
    let world = world("in_port=1,ip,nw_dst=127.0.0.1,actions=output:2\n", "none");
    let before = world.perf("rx_packets");
    world.ctl(["netdev-dummy/receive", "p1", UDP]);
    world.wait_until("the packet is received", || world.perf("rx_packets") > before);
    let trace = world.json(["rule/trace", UDP]);
    let flow = world.json(["dpctl/dump-flows", "--names"]);
    assert_eq!(trace["megaflow"], flow[0]["key"]);
    assert_eq!((&trace["actions"], &flow[0]["actions"]), (&json!("p2"), &json!("p2")));
    assert!(trace["steps"][0]["rule"].as_str().unwrap().contains("nw_dst=127.0.0.1"), "{trace}");
}
