//! Commands that have no other place: what each does to a running switch, and what it says.

use std::fs;
use std::thread;
use std::time::Duration;

use offloadctl::Client;
use serde_json::{Value, json};

use crate::world::{Stage, World};

const ARP: &str = "in_port(1),eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02),eth_type(0x0806),\
    arp(sip=10.0.0.1,tip=10.0.0.2,op=1,sha=02:00:00:00:00:01,tha=00:00:00:00:00:00)";

/// Two quiet ports in memory.
fn world(rules: &str, options: &str) -> World {
    let stage = Stage::new();
    stage.file("rules", rules);
    stage.start(&format!("--port p1,type=sim,port_no=1 --port p2,type=sim,port_no=2 --rules DIR/rules {options}"))
}

fn receive(world: &World, packet: &str) {
    let before = world.perf("rx_packets");
    world.ctl(["netdev-dummy/receive", "p1", packet]);
    world.wait_until("the packet is received", || world.perf("rx_packets") > before);
}

#[test]
fn a_file_of_flows_is_carried_out_whole_or_not_at_all() {
    let world = world("actions=drop\n", "--offload none");
    let flow = |n: u32| format!("in_port(1),eth(),eth_type(0x0800),ipv4(dst=10.0.{}.{})", n / 256, n % 256);
    let lines: String = (0..1_000).map(|n| format!("{} 2\n", flow(n))).collect();
    let file = world.file("flows", &format!("# a thousand\n\n{lines}"));
    assert_eq!(world.json(["dpctl/add-flows", &file]), json!({"added": 1_000, "modified": 0, "deleted": 0}));
    assert_eq!(world.flows().len(), 1_000);

    // One that is there already keeps all others out.
    let file = world.file("more", &format!("{} 2\n{} 2\n", flow(5_000), flow(7)));
    let refused = world.ctl_err(["dpctl/add-flows", &file]);
    assert_eq!(refused, "DIR/more:2: updating flow table (File exists); nothing was changed");
    let file = world.file("wrong", &format!("{} 2\n{},bogus(1) 2\n", flow(5_000), flow(5_001)));
    let refused = world.ctl_err(["dpctl/add-flows", &file]);
    assert!(refused.starts_with("DIR/wrong:2: parsing flow key (unknown key \"bogus\" at column "), "{refused}");
    assert_eq!(world.flows().len(), 1_000);

    let file = world.file("mixed", &format!("modify {} drop\n{}\nadd {} 1\n", flow(0), flow(1), flow(9_999)));
    assert_eq!(world.json(["dpctl/del-flows", &file]), json!({"added": 1, "modified": 1, "deleted": 1}));
    assert_eq!(world.flow("dst=10.0.0.0)").unwrap()["actions"], "drop");
    let file = world.file("missing", &format!("{} 1\n{} 1\n", flow(0), flow(1)));
    let refused = world.ctl_err(["dpctl/mod-flows", &file]);
    assert!(
        refused.starts_with("DIR/missing:2: updating flow table (No such file or directory); the changes of 1 flows"),
        "{refused}"
    );

    // A dump can be read again.
    let dump = world.ctl(["dpctl/dump-flows", "-m"]);
    let file = world.file("dump", &dump);
    world.ctl(["dpctl/del-flows"]);
    assert_eq!(world.json(["dpctl/add-flows", &file])["added"], 1_000);
    assert_eq!(world.ctl(["dpctl/dump-flows", "-m"]).lines().count(), dump.lines().count());
    assert!(world.ctl_err(["dpctl/add-flows", "/nonexistent"]).contains("No such file"));
}

#[test]
fn whoever_wants_is_told_how_far_a_long_load_is() {
    let world = world("actions=drop\n", "--offload none");
    let lines: String = (0..60_000u32).map(|n| format!("in_port(1),eth(),eth_type({n:#x}) 2\n")).collect();
    let file = world.file("flows", &lines);
    let mut client = Client::connect(world.path("ctl").as_ref(), None).unwrap();
    client.call("set-options", &["--progress".into()]).unwrap();
    let mut told = Vec::new();
    let answer = client.call_and_watch("dpctl/add-flows", &[file], &mut |done, total| told.push((done, total)));
    assert_eq!(answer.unwrap(), "");
    assert!(told.iter().any(|(_, total)| *total == 120_000), "{told:?}");
    assert!(told.is_sorted() && told.iter().all(|(done, total)| done <= total), "{told:?}");
}

#[test]
fn dumps_show_the_flows_that_are_asked_for_under_their_own_title() {
    let stage = Stage::new();
    stage.file("config", "[datapath]\npollers = 2\n");
    let world =
        stage.start("--port p1,type=sim,port_no=1 --port p2,type=sim,port_no=2 --config DIR/config --offload none");
    world.ctl(["dpctl/add-flow", "in_port(1),eth(),eth_type(0x0800),ipv4(dst=10.1.2.3)", "2"]);
    world.ctl(["dpctl/add-flow", "in_port(2),eth(),eth_type(0x0806)", "1"]);
    let dump = |words: [&str; 2]| world.ctl(["dpctl/dump-flows", words[0], words[1]]);
    let arp = dump(["filter=arp", "type=all"]);
    assert_eq!(arp.lines().count(), 4, "{arp}");
    assert!(arp.lines().step_by(2).zip(["poller: 0", "poller: 1"]).all(|(line, title)| line.ends_with(title)), "{arp}");
    let one = dump(["filter=ip,nw_dst=10.0.0.0/8", "pmd=1"]);
    assert!(one.lines().count() == 1 && one.contains("dst=10.1.2.3"), "no title with pmd=: {one}");
    assert_eq!(dump(["filter=ip,nw_dst=10.2.0.0/16", "type=ovs"]), "");
    assert_eq!(dump(["type=offloaded,tc", "pmd=0"]), "");
    assert_eq!(dump(["type=non-offloaded", "pmd=0"]).lines().count(), 2);
    for (word, error) in [
        ("type=dummy", "Failed to parse type (dummy) (Invalid argument)"),
        ("pmd=2", "pmd=2: netdev@offloadd has the pollers 0 to 1"),
        ("filter=nw_dst=x", "filter=nw_dst=x: "),
        ("bogus", "usage: dpctl/dump-flows"),
    ] {
        let refused = world.ctl_err(["dpctl/dump-flows", word]);
        assert!(refused.starts_with(error), "{refused}");
    }
}

#[test]
fn a_port_changes_its_options_or_stays_as_it_was() {
    let world = world("actions=drop\n", "--offload none");
    let port = |name: &str| {
        let show = world.json(["dpctl/show"]);
        show["ports"].as_array().unwrap().iter().find(|port| port["name"] == name).unwrap().clone()
    };
    assert_eq!(world.json(["dpctl/set-if", "p1,n_rxq=2"]), json!({"port_no": 1, "reopened": true}));
    assert_eq!((&port("p1")["rx_queues"], &port("p1")["number"]), (&json!(2), &json!(1)));
    assert_eq!(world.json(["dpctl/set-if", "p1,n_rxq=2"])["reopened"], false);
    let refused = world.ctl_err(["dpctl/set-if", "p1,n_rxq=x"]);
    assert!(refused.contains("p1") && refused.contains("x"), "refused by the port itself: {refused}");
    assert_eq!(port("p1")["rx_queues"], 2, "as it was");
    assert!(world.ctl_err(["dpctl/set-if", "p1,type=tap"]).contains("cannot change"));
    assert!(world.ctl_err(["dpctl/set-if", "p1,bogus=1"]).contains("unknown option 'bogus'"));
    assert!(world.ctl_err(["dpctl/set-if", "p9,n_rxq=2"]).contains("No such device"));
}

#[test]
fn a_wire_that_is_unplugged_carries_nothing() {
    let world = world("in_port=1,actions=output:2\n", "--offload none");
    assert_eq!(world.ctl(["netdev-dummy/set-admin-state", "p2", "down"]), "OK\n");
    receive(&world, ARP);
    world.wait_until("the packet is lost", || world.port_count("p2", "tx_failed") == 1);
    assert_eq!(world.ctl(["netdev-dummy/set-admin-state", "up"]), "OK\n");
    receive(&world, ARP);
    world.wait_until("the packet leaves", || world.port_count("p2", "tx_packets") == 1);
    assert_eq!(world.ctl_err(["netdev-dummy/set-admin-state", "p9", "up"]), "Unknown Dummy Interface");
    assert!(world.ctl_err(["netdev-dummy/set-admin-state", "p1", "sideways"]).starts_with("Invalid Admin State"));
}

#[test]
fn the_cache_has_the_size_that_was_asked_for_and_still_finds_flows() {
    let world = world("in_port=1,actions=output:2\n", "--offload none");
    assert_eq!(world.json(["dpctl/cache-get-size"]), json!({"emc": 8_192}));
    world.ctl(["dpctl/cache-set-size", "emc", "64"]);
    assert_eq!(world.ctl(["dpctl/cache-get-size"]), "Name    Size\nemc     64\n");
    (0..3).for_each(|_| receive(&world, ARP));
    assert_eq!(world.perf("upcalls"), 1);
    for (size, cache) in [("100", "emc"), ("131072", "emc"), ("64", "smc")] {
        world.ctl_err(["dpctl/cache-set-size", cache, size]);
    }
    assert_eq!(world.json(["dpctl/cache-get-size"]), json!({"emc": 64}));
}

#[test]
fn stations_by_hand_stay_where_they_are_and_decide() {
    let world = world("actions=normal\n", "--offload none");
    world.ctl(["fdb/add", "p2", "0", "02:00:00:00:00:02"]);
    receive(&world, ARP);
    world.wait_until("the packet leaves", || world.port_count("p2", "tx_packets") == 1);
    let flow = world.flow("eth_type(0x0806)").unwrap();
    assert_eq!(flow["actions"], "2", "not flooded, but sent");
    let table = world.ctl(["fdb/show", "offloadd"]);
    assert!(table.contains("    2     0  02:00:00:00:00:02  static\n"), "{table}");
    assert!(table.contains("    1     0  02:00:00:00:00:01  "), "{table}");
    assert_eq!(world.json(["fdb/flush"]), json!({"flushed": 1}));
    let stats = world.json(["fdb/stats-show"]);
    assert_eq!((&stats["stations"], &stats["fixed"], &stats["learned"]), (&json!(1), &json!(1), &json!(1)));
    world.ctl(["fdb/del", "0", "02:00:00:00:00:02"]);
    assert_eq!(world.ctl_err(["fdb/del", "0", "02:00:00:00:00:02"]), "no station 02:00:00:00:00:02 in VLAN 0");
    assert!(world.ctl_err(["fdb/show", "br0"]).starts_with("no such bridge"));
}

#[test]
fn time_stands_until_it_is_set_forward_and_sweeps_until_they_are_resumed() {
    let world = world("in_port=1,actions=output:2\n", "--offload none --time-control");
    world.ctl(["time/stop"]);
    receive(&world, ARP);
    let show = world.json(["upcall/show"]);
    assert_eq!((&show["flows"], &show["pollers"][0]["flows"]), (&json!(1), &json!(1)));
    world.ctl(["revalidator/pause"]);
    assert_eq!(world.ctl(["time/warp", "20000"]), "warped\n");
    assert!(world.ctl_err(["revalidator/wait"]).starts_with("sweeps are paused"));
    assert_eq!(world.flows().len(), 1, "nothing expires");
    world.ctl(["revalidator/resume"]);
    world.ctl(["revalidator/wait"]);
    assert!(world.flows().is_empty());
    receive(&world, ARP);
    world.ctl(["dpctl/add-flow", "in_port(2),eth(),eth_type(0x0800),ipv4()", "1"]);
    assert_eq!(world.json(["revalidator/purge"]), json!({"deleted": 1}));
    assert_eq!(world.flows().len(), 1, "what was added by hand stays");
    assert_eq!(world.ctl(["time/warp", "3000", "1000"]), "warped\n");
    assert!(world.ctl_err(["time/warp", "0"]).contains("expected milliseconds"));
    assert_eq!(world.ctl(["upcall/set-flow-limit", "7"]), "set flow_limit to 7\n");
    assert_eq!(world.json(["dpctl/show"])["flow_limit"], 7);
    assert!(world.ctl_err(["upcall/set-flow-limit", "0"]).contains("expected 1 to"));
}

#[test]
fn the_clock_cannot_be_turned_unless_the_daemon_was_started_for_that() {
    let world = world("actions=drop\n", "--offload none");
    assert!(world.ctl_err(["time/stop"]).contains("is not a valid command"));
}

#[test]
fn counters_have_rates_and_what_there_is_is_counted() {
    let world = world("in_port=1,actions=output:2\n", "--offload none");
    (0..3).for_each(|_| receive(&world, ARP));
    assert_eq!(world.ctl(["coverage/read-counter", "lookup_upcall_installed"]), "1\n");
    assert_eq!(world.ctl_err(["coverage/read-counter", "nonsense"]), "No such counter");
    let rows = world.json(["coverage/show"]);
    let row = rows.as_array().unwrap().iter().find(|row| row["name"] == "packet_sent").unwrap();
    assert_eq!(row["total"], 3);
    let memory = world.json(["memory/show"]);
    assert_eq!((&memory["flows"], &memory["ports"], &memory["rules"]), (&json!(1), &json!(2), &json!(1)));
    assert!(memory["resident-bytes"].as_u64().unwrap() > 1 << 20);
}

#[test]
fn the_device_alone_is_flushed_and_filled_again_or_one_port_is() {
    let world = world("in_port=1,actions=output:2\n", "--offload sim");
    for port in [1, 2] {
        for n in 0..10 {
            let flow = format!("in_port({port}),eth(),eth_type(0x0800),ipv4(dst=10.0.0.{n})");
            world.ctl(["dpctl/add-flow", &flow, "drop"]);
        }
    }
    world.wait_until("all are in the device", || world.offload("/rules") == 20);
    let flushed = world.json(["offload/flush"]);
    assert_eq!(flushed, json!({"flows": 0, "rules": 20}));
    world.wait_until("all are there again", || world.offload("/rules") == 20);
    assert_eq!(world.json(["flow-flush", "--port", "p2", "--wait", "5"])["flows"], 10);
    assert_eq!(world.offload("/rules"), 10);
    let events = world.json(["offload/events"]);
    let kinds = |kind: &str| events["events"].as_array().unwrap().iter().filter(|event| event["kind"] == kind).count();
    assert_eq!((kinds("installed"), kinds("retired")), (40, 30), "{events}");
    let rest = world.json(["offload/events", &events["next"].to_string()]);
    assert_eq!((&rest["events"], &rest["lost"]), (&json!([]), &json!(0)));
    assert!(world.ctl_err(["flow-flush", "--port", "p2", "--offload"]).contains("does not go with --port"));
    assert!(world.ctl_err(["offload/events", "soon"]).contains("expected a cursor"));
}

#[test]
fn the_busiest_flows_come_first_with_their_pace() {
    let stage = Stage::new();
    stage.file("rules", "actions=output:2\n");
    let ports = "--port p1,type=sim,port_no=1,flows=5,rate=5000 --port p2,type=sim,port_no=2";
    let world = stage.start(&format!("{ports} --rules DIR/rules --offload sim"));
    world.wait_until("flows are marked", || world.perf("mark_hits") > 100);
    let top = world.json(["flow-top", "-n", "3", "--over", "0.5"]);
    let rows = top.as_array().unwrap();
    assert!(!rows.is_empty() && rows.len() <= 3, "{top}");
    let pace: f64 = rows.iter().map(|row| row["pps"].as_f64().unwrap()).sum();
    assert!(pace > 500.0 && rows.iter().all(|row| row["standing"] == "mark"), "{top}");
    assert!(world.ctl(["flow-top", "--over", "0.1"]).lines().count() >= 2);
}

#[test]
fn the_configuration_in_force_tells_where_each_value_comes_from() {
    let stage = Stage::new();
    stage.file("config", "[datapath]\nmax-idle = \"20s\"\n");
    let world = stage.start("--config DIR/config --port p1,type=sim --offload sim");
    let value = |key: &str| {
        let all = world.json(["config/show"]);
        let row = all.as_array().unwrap().iter().find(|row| row["key"] == key).unwrap().clone();
        (row["value"].clone(), row["source"].clone())
    };
    assert_eq!(value("datapath.max-idle"), (json!("20s"), json!("file")));
    assert_eq!(value("offload.device"), (json!("sim"), json!("command-line")));
    assert_eq!(value("slowpath.mac-limit"), (json!(8_192), json!("default")));
    world.ctl(["offload/set", "min-rate=7"]);
    assert_eq!(value("offload.min-rate"), (json!(7), json!("command")));
    let changed = world.ctl(["config/show", "--changed"]);
    assert!(changed.contains("min-rate = 7  # command\n") && !changed.contains("mac-limit"), "{changed}");

    world.file("config", "[datapath]\nmax-idle = \"30s\"\n[slowpath]\nmac-limit = 9\n");
    let report = world.json(["config/reload"]);
    assert_eq!(
        report,
        json!({"changed": ["datapath.max-idle"], "needs_restart": ["slowpath.mac-limit"], "errors": []})
    );
    world.file("config", "[datapath]\nmax-idle = \"soon\"\n");
    let refused = world.ctl_err(["config/reload"]);
    assert!(refused.starts_with("not reloaded: DIR/config: datapath.max-idle: \"soon\""), "{refused}");
    assert_eq!(value("datapath.max-idle").0, json!("30s"));
}

#[test]
fn the_log_file_is_closed_reopened_and_spared_floods() {
    let stage = Stage::new();
    let world = stage.start("--log-file DIR/file --port p1,type=sim --offload none");
    let lines = || fs::read_to_string(world.path("file")).unwrap_or_default();
    assert!(lines().contains("is ready"));
    fs::rename(world.path("file"), world.path("old")).unwrap();
    world.ctl(["vlog/reopen"]);
    world.ctl(["dpctl/add-if", "p2,type=sim"]);
    world.wait_until("it is in the new file", || lines().contains("p2: added"));
    world.ctl(["vlog/close"]);
    world.ctl(["dpctl/add-if", "p3,type=sim"]);
    world.ctl(["vlog/reopen"]);
    assert!(!lines().contains("p3: added"));
    let limited = world.json(["vlog/disable-rate-limit", "port"]);
    assert_eq!((&limited["port"], &limited["daemon"]), (&json!(false), &json!(true)));
    assert_eq!(world.json(["vlog/enable-rate-limit"])["port"], true);
    assert_eq!(world.ctl_err(["vlog/enable-rate-limit", "nosuch"]), "unknown module \"nosuch\"");
    assert!(world.ctl(["vlog/list-pattern"]).contains("console   %D{"));
}

#[test]
fn pollers_can_be_chosen_and_say_how_long_they_may_sleep() {
    let world = world("actions=drop\n", "--offload none");
    assert!(world.ctl(["dpif-netdev/pmd-sleep-show"]).starts_with("Default max sleep: "));
    let rxq = world.json(["dpif-netdev/pmd-rxq-show", "-pmd", "0", "-secs", "5"]);
    assert_eq!((&rxq["seconds"], rxq["pollers"].as_array().unwrap().len()), (&json!(5), 1));
    assert!(world.ctl_err(["dpif-netdev/pmd-perf-show", "-pmd", "3"]).contains("there are pollers 0 to 0"));
    assert!(world.ctl(["dpif-netdev/pmd-perf-show", "-nh"]).starts_with("Measurement duration"));
    assert!(world.ctl_err(["dpif-netdev/pmd-rxq-show", "-secs", "61"]).contains("1 to 60 seconds"));
}

/// A dump of many flows goes on while the client reads slowly; the daemon's memory does not grow, and others are served.
#[test]
fn a_slow_reader_of_a_long_dump_costs_nobody_else_anything() {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    let world = world("actions=drop\n", "--offload none");
    let lines: String = (0..30_000u32)
        .map(|n| format!("in_port(1),eth(),eth_type(0x0800),ipv4(dst={}) 2\n", std::net::Ipv4Addr::from(n)))
        .collect();
    let file = world.file("flows", &lines);
    world.ctl(["dpctl/add-flows", &file]);
    let resident = || world.json(["memory/show"])["resident-bytes"].as_u64().unwrap();
    let before = resident();
    let mut slow = UnixStream::connect(world.path("ctl")).unwrap();
    slow.write_all(br#"{"id":0,"method":"dpctl/dump-flows","params":["-m"]}"#).unwrap();
    let mut said = vec![0; 1_000_000];
    slow.read_exact(&mut said).unwrap();
    thread::sleep(Duration::from_millis(50));
    assert_eq!(world.json(["dpctl/show"])["flows"], 30_000);
    let grown = resident().saturating_sub(before);
    assert!(grown < 4 << 20, "{grown} bytes for a dump that nobody reads");
    slow.shutdown(std::net::Shutdown::Write).unwrap();
    slow.read_to_end(&mut said).unwrap();
    let reply: Value = serde_json::from_slice(&said).unwrap();
    assert_eq!(reply["result"].as_str().unwrap().lines().count(), 30_001);
}
