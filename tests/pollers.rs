//! Pollers come and go and receive queues move while packets flow: each is sent once, in its flow's order, and nothing is
//! left behind.

use std::collections::BTreeMap;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::capture::{self, Frame};
use crate::world::{Stage, World};

/// Changes of the pollers' number, each at a share of the packets.
const CHANGES: [u64; 4] = [3, 2, 4, 1];

/// Reads the configuration with another number of pollers, and waits until it is in force.
fn set_pollers(world: &World, pollers: u64) {
    let reloads = |world: &World| world.log().matches("|reloaded\n").count();
    let before = reloads(world);
    world.file("config", &format!("[datapath]\npollers = {pollers}\n"));
    world.send(Signal::HUP);
    world.wait_until("it is reloaded", || reloads(world) > before);
    assert_eq!(running(world).len() as u64, pollers);
}

/// The receive queues of each poller, as `(port, queue)`.
fn running(world: &World) -> Vec<Vec<(String, u64)>> {
    let show = world.json(["dpif-netdev/pmd-rxq-show"]);
    let queue = |rxq: &Value| (rxq["port"].as_str().unwrap().to_owned(), rxq["queue"].as_u64().unwrap());
    let queues = |poller: &Value| poller["rx_queues"].as_array().unwrap().iter().map(queue).collect();
    show["pollers"].as_array().unwrap().iter().map(queues).collect()
}

/// A count of `dpif-netdev/pmd-perf-show`, of all pollers that there are and were.
fn counted(world: &World, count: &str) -> u64 {
    let perf = world.json(["dpif-netdev/pmd-perf-show"]);
    let ended = perf["ended"].as_object().map_or(0, |ended| ended[count].as_u64().unwrap());
    ended + perf["pollers"].as_array().unwrap().iter().map(|poller| poller[count].as_u64().unwrap()).sum::<u64>()
}

/// Every packet is in one count of how it was found, was sent, and none is dropped.
fn assert_all_sent(world: &World, packets: u64) {
    let outcomes = ["mark_hits", "emc_hits", "smc_hits", "megaflow_hits", "upcalls", "runts"];
    assert_eq!(outcomes.map(|outcome| counted(world, outcome)).iter().sum::<u64>(), packets);
    assert_eq!(counted(world, "rx_packets"), packets);
    assert_eq!(counted(world, "tx_packets"), packets);
}

/// Once its flows are flushed, the device has no rule, and no mark is in use or waits for a ring.
fn assert_nothing_leaks(world: &World) {
    world.ctl(["flow-flush"]);
    assert!(world.flows().is_empty());
    assert_eq!((world.offload("/rules"), world.offload("/marks/in_use")), (0, 0));
    world.wait_until("every mark is free", || world.offload("/marks/quarantined") == 0);
    assert_eq!(world.offload("/operations/delete/device"), 0);
}

#[test]
fn every_packet_is_sent_once_while_pollers_come_and_go() {
    const PACKETS: u64 = 40_000;
    const FLOWS: u64 = 100;
    let stage = Stage::new();
    stage.file("config", "[datapath]\npollers = 1\n");
    let rules: String = (0..FLOWS).map(|i| format!("ip,nw_dst=172.16.0.{i},actions=output:2\n")).collect();
    stage.file("rules", &rules);
    // Rules of a file that is configured would be read again, and count anew.
    let world = stage.start("--config DIR/config --offload sim --port p2,type=sim,port_no=2");
    world.ctl(["rule/load", &world.path("rules")]);
    // The rings have room for all that may come while the machine is busy elsewhere.
    world.ctl([
        "dpctl/add-if",
        &format!("p1,type=sim,port_no=1,queues=4,ring=65536,flows={FLOWS},rate=10000,count={PACKETS}"),
    ]);
    let received = || world.port_count("p1", "rx_packets");
    let by_hand = "in_port(2),eth_type(0x0806)";
    world.ctl(["dpctl/add-flow", by_hand, "1"]);
    for (i, pollers) in (1..).zip(CHANGES) {
        world.wait_until("packets have flown", || received() >= i * PACKETS / 6);
        set_pollers(&world, pollers);
        let queues: Vec<usize> = running(&world).iter().map(Vec::len).collect();
        assert!(queues.iter().max().unwrap() - queues.iter().min().unwrap() <= 1, "{queues:?}");
        let added = world.flows().into_iter().filter(|flow| flow["by_hand"] == true).count();
        assert_eq!(added as u64, pollers, "a flow by hand is in every poller");
    }
    let marked = counted(&world, "mark_hits");
    world.wait_until("marks are found again", || counted(&world, "mark_hits") > marked + 1_000);
    world.wait_until("every packet is received", || received() == PACKETS);
    world.wait_until("every packet is sent", || world.port_count("p2", "tx_packets") == PACKETS);
    assert_eq!(world.port_count("p1", "rx_missed"), 0);
    assert_all_sent(&world, PACKETS);
    let show = world.json(["dpctl/show"]);
    assert_eq!(show["hit"].as_u64().unwrap() + show["missed"].as_u64().unwrap(), PACKETS, "{show}");
    world.wait_until("the rules have counted every packet", || world.rule_packets("nw_dst") == PACKETS);
    assert_nothing_leaks(&world);
}

/// Frames of `flows` flows in turn, from one station, numbered in their last bytes.
fn numbered(station: u8, flows: u8, frames: u32) -> Vec<Frame> {
    let frame = |n: u32| {
        let flow = n % u32::from(flows);
        let mut bytes = [[2, 0, 0, 0, 0, 0xfe], [2, 0, 0, 0, station, flow as u8]].concat();
        bytes.extend([0x88, 0xb5]);
        bytes.resize(60, 0);
        bytes[56..].copy_from_slice(&n.to_be_bytes());
        Frame { timestamp: Duration::from_micros(u64::from(n)), bytes }
    };
    (0..frames).map(frame).collect()
}

/// That the frames that left are those that arrived, in order within each flow.
fn assert_in_order(world: &World, stations: u8, frames: u32) {
    let mut next: BTreeMap<Vec<u8>, Vec<u32>> = BTreeMap::new();
    for Frame { bytes, .. } in capture::read(world.path("tx.pcap")).unwrap() {
        next.entry(bytes[6..12].to_vec()).or_default().push(u32::from_be_bytes(bytes[56..60].try_into().unwrap()));
    }
    assert_eq!(next.values().map(Vec::len).sum::<usize>(), usize::from(stations) * frames as usize);
    for (flow, numbers) in next {
        assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "flow {flow:x?} left out of order, or twice");
    }
}

/// Three ports replay captures, each of its own flows; all leave by one port with a single transmit queue.
fn three_sources(frames: u32) -> World {
    let stage = Stage::new();
    stage.file("config", "[datapath]\npollers = 1\n");
    stage.file("rules", "dl_type=0x88b5,actions=output:9\n");
    let mut args =
        "--config DIR/config --rules DIR/rules --offload sim --port out,type=pcap,port_no=9,tx=DIR/tx.pcap".to_owned();
    for station in 1..=3u8 {
        capture::write(stage.path(&format!("rx{station}.pcap")), &numbered(station, 5, frames)).unwrap();
        args += &format!(" --port in{station},type=pcap,port_no={station},rx=DIR/rx{station}.pcap,pace=3000");
    }
    stage.start(&args)
}

fn received(world: &World) -> u64 {
    (1..=3).map(|station| world.port_count(&format!("in{station}"), "rx_packets")).sum()
}

#[test]
fn flows_keep_their_order_while_pollers_come_and_go_and_share_one_way_out() {
    const FRAMES: u32 = 12_000;
    let world = three_sources(FRAMES);
    let all = 3 * u64::from(FRAMES);
    for (i, pollers) in (1..).zip(CHANGES) {
        world.wait_until("packets have flown", || received(&world) >= i * all / 6);
        set_pollers(&world, pollers);
    }
    world.wait_until("every frame is sent", || world.port_count("out", "tx_packets") == all);
    assert_all_sent(&world, all);
    assert_in_order(&world, 3, FRAMES);
    assert_nothing_leaks(&world);
}

#[test]
fn a_receive_queue_moves_to_and_fro_without_a_packet_lost_or_overtaken() {
    const FRAMES: u32 = 9_000;
    let world = three_sources(FRAMES);
    set_pollers(&world, 3);
    let all = 3 * u64::from(FRAMES);
    let mut moves = 0u64;
    while received(&world) < all * 4 / 5 {
        // One poller owns the way out, wherever that is: queues come to it and leave it.
        let port = format!("in{}", 1 + moves % 3);
        let poller = (moves / 3) % 3;
        world.ctl(["dpif-netdev/pmd-rxq-move", &port, "0", &poller.to_string()]);
        assert!(running(&world)[poller as usize].contains(&(port, 0)));
        moves += 1;
    }
    assert!(moves >= 9, "{moves}");
    let marked = counted(&world, "mark_hits");
    world.wait_until("marks are found again", || counted(&world, "mark_hits") > marked);
    world.wait_until("every frame is sent", || world.port_count("out", "tx_packets") == all);
    assert_all_sent(&world, all);
    assert_in_order(&world, 3, FRAMES);
    assert_nothing_leaks(&world);
}

#[test]
fn receive_queues_are_rebalanced_by_their_packets() {
    let stage = Stage::new();
    stage.file("config", "[datapath]\npollers = 2\n");
    stage.file("rules", "actions=drop\n");
    let world = stage.start(
        "--config DIR/config --rules DIR/rules --offload none \
         --port p1,type=sim,queues=4,ring=65536,flows=4,rate=4000,count=2000 --port p2,type=sim",
    );
    for queue in ["0", "1", "2", "3"] {
        world.ctl(["dpif-netdev/pmd-rxq-move", "p1", queue, "0"]);
    }
    world.wait_until("every packet is charged to its queue", || {
        let show = world.json(["dpif-netdev/pmd-rxq-show"]);
        let queues =
            show["pollers"].as_array().unwrap().iter().flat_map(|poller| poller["rx_queues"].as_array().unwrap());
        queues.map(|rxq| rxq["packets"].as_u64().unwrap()).sum::<u64>() == 2_000
    });
    let moved = world.json(["dpif-netdev/pmd-rxq-rebalance"]);
    let moved = moved["moved"].as_array().unwrap();
    assert_eq!(moved.len(), 2, "{moved:?}");
    for moved in moved {
        assert_eq!((&moved["port"], &moved["from"], &moved["to"]), (&"p1".into(), &0.into(), &1.into()));
        assert_eq!(moved["packets"], 500);
    }
    assert_eq!(world.ctl(["dpif-netdev/pmd-rxq-rebalance"]), "pmd rxq rebalance requested.\n  nothing to move\n");
    let shown = world.ctl(["dpif-netdev/pmd-rxq-show"]);
    let mut lines = shown.lines();
    assert_eq!(lines.next(), Some("Displaying last 60 seconds pmd usage %"));
    assert_eq!((lines.next(), lines.next()), (Some("poller: 0:"), Some("  isolated : false")));
    let queues: Vec<&str> = shown.lines().filter(|line| line.contains("port: p1 ")).collect();
    assert_eq!(queues.len(), 4);
    for line in queues {
        assert!(line.starts_with("  port: p1                queue-id:  "), "{line}");
        assert!(line.contains(" (enabled)   pmd usage: ") && line.ends_with(" %"), "{line}");
    }
}

#[test]
fn a_move_to_or_of_what_is_not_there_is_refused_and_changes_nothing() {
    let world = Stage::new().start("--port p1,type=sim,port_no=1,queues=2");
    let before = running(&world);
    let refused =
        |port: &str, queue: &str, poller: &str| world.ctl_err(["dpif-netdev/pmd-rxq-move", port, queue, poller]);
    assert_eq!(refused("p9", "0", "0"), "no port \"p9\" in netdev@offloadd (No such device)");
    assert_eq!(refused("p1", "2", "0"), "port 1 has no receive queue 2; it has 2");
    assert!(refused("p1", "0", "300").starts_with("there is no poller 300; there are "));
    assert_eq!(refused("p1", "x", "0"), "receive queue \"x\": expected a number from 0 on");
    assert_eq!(running(&world), before);
}

#[test]
fn cleared_counts_start_from_0_and_those_of_ports_go_on() {
    let stage = Stage::new();
    stage.file("config", "[datapath]\npollers = 2\n");
    let world = stage.start("--config DIR/config --port p1,type=sim --port p2,type=sim --offload none");
    let receive = || {
        let sent = world.port_count("p2", "tx_packets");
        world.ctl(["netdev-dummy/receive", "p1", "eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02),eth_type(0x88b5)"]);
        world.wait_until("it is sent", || world.port_count("p2", "tx_packets") > sent);
    };
    let turns = || world.json(["dpif-netdev/pmd-perf-show"])["pollers"][0]["turns"].clone();
    receive();
    // A turn is counted after its packets have left.
    world.wait_until("the turn is counted", || turns()["max_ns"].as_u64().unwrap() > 0);
    let shown = turns();
    assert!(shown["p50_ns"].as_u64().unwrap() <= shown["max_ns"].as_u64().unwrap(), "{shown}");
    // The counts of pollers that end are cleared like the others.
    set_pollers(&world, 1);
    world.ctl(["dpif-netdev/pmd-stats-clear"]);
    assert_eq!((counted(&world, "rx_packets"), counted(&world, "tx_packets")), (0, 0));
    assert_eq!((turns()["p50_ns"].as_u64(), turns()["max_ns"].as_u64()), (Some(0), Some(0)));
    assert_eq!((world.port_count("p1", "rx_packets"), world.port_count("p2", "tx_packets")), (1, 1));
    receive();
    assert_eq!((counted(&world, "rx_packets"), world.port_count("p1", "rx_packets")), (1, 2));
    let text = world.ctl(["dpif-netdev/pmd-perf-show"]);
    assert!(text.contains("ended pollers:\n") && text.contains("busy time (ns):  p50 "), "{text}");
}

#[test]
fn pollers_move_to_the_processors_that_a_reload_names() {
    let stage = Stage::new();
    stage.file("config", "[datapath]\npollers = 1\n");
    let world = stage.start("--config DIR/config --port p1,type=sim");
    let allowed = || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", world.pid())).unwrap();
        let status = |task: std::io::Result<std::fs::DirEntry>| {
            let path = task.unwrap().path();
            let name = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
            (name.trim() == "poller0").then(|| std::fs::read_to_string(path.join("status")).unwrap())
        };
        let status = tasks.filter_map(status).next().unwrap();
        status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim().to_owned()
    };
    let reload = |config: &str| {
        let before = world.log().matches("|reloaded\n").count();
        world.file("config", config);
        world.send(Signal::HUP);
        world.wait_until("it is reloaded", || world.log().matches("|reloaded\n").count() > before);
    };
    let anywhere = allowed();
    let first = anywhere.split([',', '-']).next().unwrap().to_owned();
    reload(&format!("[datapath]\npollers = 1\ncpus = [{first}]\n"));
    world.wait_until("it runs there alone", || allowed() == first);
    assert!(world.ctl(["dpif-netdev/pmd-rxq-show"]).contains(&format!("pmd thread numa_id 0 core_id {first}:\n")));
    reload("[datapath]\npollers = 1\n");
    world.wait_until("it runs anywhere again", || allowed() == anywhere);
}
