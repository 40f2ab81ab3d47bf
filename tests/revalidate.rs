//! Megaflows follow what they were decided by: rules, ports, stations, time; and so does the device.

use crate::world::{Stage, World};

/// A frame from one station to another, as `netdev-dummy/receive` makes it.
fn frame(from: u8, to: u8) -> String {
    format!(
        "eth(src=02:00:00:00:00:{from:02x},dst=02:00:00:00:00:{to:02x}),eth_type(0x0800),\
         ipv4(src=10.0.0.{from},dst=10.0.0.{to},proto=17,ttl=64,frag=no),udp(src=1,dst=2)"
    )
}

fn receive(world: &World, port: &str, from: u8, to: u8) {
    world.ctl(["netdev-dummy/receive", port, &frame(from, to)]);
}

fn world(config: &str, rules: &str) -> World {
    let stage = Stage::new();
    stage.file("config", config);
    stage.file("rules", rules);
    let ports: String = (1..=3).map(|n| format!("--port p{n},type=sim,port_no={n} ")).collect();
    stage.start(&format!("{ports} --config DIR/config --rules DIR/rules --offload sim"))
}

fn sent(world: &World, port: &str) -> u64 {
    world.port_count(port, "tx_packets")
}

/// Waits until port p1 has made `packets` frames; how many were received. On a busy machine its ring may overflow.
fn generated(world: &World, packets: u64, mut meanwhile: impl FnMut()) -> u64 {
    world.wait_until("every frame has been made", || {
        meanwhile();
        world.port_count("p1", "rx_packets") + world.port_count("p1", "rx_missed") == packets
    });
    let received = world.port_count("p1", "rx_packets");
    assert!(received > packets / 2, "{received} of {packets} frames received");
    received
}

/// Waits until the flow whose key holds `part` is in the device and its mark bound; the flow's ufid.
fn offloaded(world: &World, part: &str) -> String {
    world.wait_until("the flow is offloaded", || world.flow(part).is_some_and(|flow| flow["mark"].is_u64()));
    world.flow(part).unwrap()["ufid"].as_str().unwrap().to_owned()
}

#[test]
fn a_changed_rule_changes_its_megaflow_in_place_for_the_next_packet() {
    let world = world("", "priority=10,in_port=1,ip,actions=output:2\npriority=0,actions=drop\n");
    receive(&world, "p1", 1, 2);
    let ufid = offloaded(&world, "in_port(1)");
    let mark = world.flow("in_port(1)").unwrap()["mark"].clone();
    receive(&world, "p1", 1, 2);
    world.wait_until("the device has found a packet", || world.perf("mark_hits") == 1);

    let asked = world.offload("/latency/all/count");
    world.ctl(["rule/add", "priority=10,in_port=1,ip,actions=mod_dl_dst:02:00:00:00:00:09,output:3"]);
    // From the answer on the new rule holds, also for what the device marks.
    receive(&world, "p1", 1, 2);
    world.wait_until("the packet leaves", || sent(&world, "p2") + sent(&world, "p3") == 3);
    assert_eq!(sent(&world, "p3"), 1);
    // The worker was asked; to a device that only marks, there was nothing to say.
    world.wait_until("the worker has looked", || world.offload("/latency/all/count") == asked + 1);
    let flow = world.flow("in_port(1)").unwrap();
    assert_eq!((flow["ufid"].as_str().unwrap(), &flow["mark"]), (ufid.as_str(), &mark), "the same flow, changed");
    assert_eq!((world.offload("/operations/put/done"), world.offload("/operations/delete/done")), (1, 0));

    world.ctl(["rule/del", "--strict", "priority=10,in_port=1,ip"]);
    receive(&world, "p1", 1, 2);
    world.wait_until("nobody decides for it any more", || world.rule_packets("priority=0 ") == 1);
    assert_eq!((sent(&world, "p2"), sent(&world, "p3")), (2, 1));
}

#[test]
fn a_removed_port_takes_its_flows_along_and_no_others() {
    let world = world("", "priority=10,in_port=1,actions=output:3\npriority=10,in_port=2,actions=output:3\n");
    receive(&world, "p1", 1, 9);
    receive(&world, "p2", 2, 9);
    offloaded(&world, "in_port(1)");
    let stays = offloaded(&world, "in_port(2)");

    world.ctl(["dpctl/del-if", "p1"]);
    assert!(world.flow("in_port(1)").is_none());
    world.wait_until("the device has forgotten its rule", || world.offload("/rules") == 1);
    assert_eq!(world.flow("in_port(2)").unwrap()["ufid"], stays);
    receive(&world, "p2", 2, 9);
    world.wait_until("the others go on", || sent(&world, "p3") == 3);
    assert_eq!(world.ctl_err(["netdev-dummy/receive", "p1", "00"]), "no such dummy netdev");

    // Its output gone, too: what went there goes nowhere, until the port is back.
    world.ctl(["dpctl/del-if", "3"]);
    receive(&world, "p2", 2, 9);
    world.ctl(["dpctl/add-if", "p3,type=sim,port_no=3"]);
    receive(&world, "p2", 2, 9);
    world.wait_until("it is sent again", || sent(&world, "p3") == 1);
    assert_eq!(world.perf("rx_packets"), 5);
}

#[test]
fn traffic_follows_a_station_that_moves() {
    let world = world("", "actions=normal\n");
    receive(&world, "p2", 2, 1);
    world.wait_until("to an unknown station, everywhere", || (sent(&world, "p1"), sent(&world, "p3")) == (1, 1));
    receive(&world, "p1", 1, 2);
    world.wait_until("to a known one, there alone", || sent(&world, "p2") == 1);
    receive(&world, "p3", 3, 1);
    world.wait_until("to one that has answered", || sent(&world, "p1") == 2);
    let bystander = offloaded(&world, "in_port(3)");
    offloaded(&world, "in_port(1)");
    let there = (sent(&world, "p2"), sent(&world, "p3"));

    // The station shows up behind another port.
    receive(&world, "p3", 2, 1);
    world.wait_until("its place is known", || {
        world
            .ctl(["fdb/show"])
            .lines()
            .any(|line| line.contains("02:00:00:00:00:02") && line.trim_start().starts_with("3 "))
    });
    world.wait_until("traffic to it follows", || {
        receive(&world, "p1", 1, 2);
        sent(&world, "p3") > there.1
    });
    let before = sent(&world, "p2");
    receive(&world, "p1", 1, 2);
    world.wait_until("and stays there", || sent(&world, "p3") > there.1 + 1);
    assert_eq!(sent(&world, "p2"), before);
    let flows = world.flows();
    assert!(flows.iter().any(|flow| flow["ufid"] == bystander), "who did not talk to it is not disturbed");
}

#[test]
fn rules_end_at_their_timeouts_and_traffic_keeps_them_from_being_idle() {
    let world = world(
        "",
        "priority=9,in_port=1,idle_timeout=2,actions=output:2\n\
         priority=9,in_port=2,idle_timeout=2,actions=output:1\n\
         priority=9,in_port=3,hard_timeout=4,actions=output:1\n",
    );
    receive(&world, "p2", 2, 9);
    receive(&world, "p3", 3, 9);
    receive(&world, "p1", 1, 9);
    offloaded(&world, "in_port(1)");
    let mut sent_by_1 = 1;
    let rule = |part: &str| world.ctl(["rule/dump"]).contains(part);
    let mut keep_busy = || {
        receive(&world, "p1", 1, 9);
        sent_by_1 += 1;
        // By hand, so that waiting does not flood the device.
        std::thread::sleep(std::time::Duration::from_millis(20));
    };
    world.wait_until("the idle rule has gone", || {
        keep_busy();
        !rule("in_port=p2")
    });
    assert!(rule("in_port=p1") && rule("in_port=p3"), "{}", world.ctl(["rule/dump"]));
    world.wait_until("the rule at its hard timeout has gone", || {
        keep_busy();
        !rule("in_port=p3")
    });
    assert!(rule("in_port=p1"), "what the device finds keeps a rule, too");
    world.wait_until("the busy rule has all its packets", || world.rule_packets("in_port=p1") == sent_by_1);
    assert!(world.perf("mark_hits") > sent_by_1 / 2);
    assert_eq!(sent(&world, "p2"), sent_by_1);
    // What the rules made is changed with them.
    receive(&world, "p2", 2, 9);
    world.wait_until("the packet is received", || world.port_count("p2", "rx_packets") == 2);
    assert_eq!(sent(&world, "p1"), 2);
}

#[test]
fn an_idle_megaflow_leaves_the_datapath_and_the_device() {
    let world = world("[datapath]\nmax-idle = \"2s\"", "actions=output:2\n");
    receive(&world, "p1", 1, 2);
    offloaded(&world, "in_port(1)");
    assert_eq!((world.offload("/rules"), world.offload("/marks/in_use")), (1, 1));
    world.wait_until("it is deleted", || world.flows().is_empty());
    world.wait_until("everywhere", || world.offload("/rules") == 0);
    world.wait_until("and its mark free", || world.offload("/marks/in_use") + world.offload("/marks/quarantined") == 0);
    receive(&world, "p1", 1, 2);
    world.wait_until("it can come back", || sent(&world, "p2") == 2);
    offloaded(&world, "in_port(1)");
}

#[test]
fn above_the_flow_limit_packets_are_decided_one_by_one_and_none_is_lost() {
    const PACKETS: u64 = 5_000;
    let stage = Stage::new();
    stage.file("config", "[datapath]\nflow-limit = 100");
    let rules: String =
        (0..1_000).map(|i| format!("ip,nw_dst=172.16.{}.{},actions=output:2\n", i / 256, i % 256)).collect();
    stage.file("rules", &rules);
    let world = stage.start(&format!(
        "--port p1,type=sim,flows=1000,rate=5000,count={PACKETS} --port p2,type=sim --config DIR/config --rules DIR/rules"
    ));
    let mut most = 0;
    let all = generated(&world, PACKETS, || most = most.max(world.json(["dpctl/show"])["flows"].as_u64().unwrap()));
    assert!((1..=100).contains(&most), "{most} flows");
    let perf = world.json(["dpif-netdev/pmd-perf-show"]);
    let outcomes = perf["pollers"][0]["upcall_outcomes"].as_array().unwrap();
    let refused = outcomes.iter().find(|outcome| outcome[0] == "flow_limit").unwrap()[1].as_u64().unwrap();
    assert!(refused > 0, "{perf}");
    assert_eq!(world.perf("rx_packets"), all);
    world.wait_until("every packet is sent", || sent(&world, "p2") == all);
    world.wait_until("the rules count every packet", || world.rule_packets("nw_dst") == all);
}

#[test]
fn what_the_device_finds_counts_for_the_rule() {
    const PACKETS: u64 = 4_000;
    let stage = Stage::new();
    stage.file("rules", "priority=5,udp,actions=output:2\npriority=4,tcp,actions=output:2\npriority=0,actions=drop\n");
    let world = stage.start(&format!(
        "--port p1,type=sim,flows=50,rate=4000,proto=both,count={PACKETS} --port p2,type=sim --rules DIR/rules --offload sim"
    ));
    let all = generated(&world, PACKETS, || ());
    world.wait_until("every packet is sent", || sent(&world, "p2") == all);
    assert!(world.perf("mark_hits") > all / 2);
    world.wait_until("the rules have counted every packet", || {
        let (udp, tcp) = (world.rule_packets("udp"), world.rule_packets("tcp"));
        udp + tcp == all && udp.abs_diff(tcp) <= PACKETS - all
    });
    assert_eq!(world.rule_packets("priority=0 "), 0);
}
