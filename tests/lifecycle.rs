//! A daemon's life: reloads, flushes, and its end by every way there is.

use std::time::{Duration, Instant};
use std::{fs, thread};

use rustix::process::Signal;

use crate::world::{Stage, World};

/// Flows of the traffic, each with a rule, and so a megaflow, of its own.
const FLOWS: u64 = 50;

/// A daemon with traffic in it, and with rules in its device.
fn busy() -> World {
    let stage = Stage::new();
    let rules: String = (0..FLOWS).map(|i| format!("ip,nw_dst=172.16.0.{i},actions=output:2\n")).collect();
    stage.file("rules", &rules);
    let world = stage.start(&format!(
        "--port p1,type=sim,flows={FLOWS},rate=2000 --port p2,type=sim --pidfile DIR/pid --rules DIR/rules --offload sim"
    ));
    world.wait_until("flows are in the device", || world.perf("mark_hits") > 0 && world.offload("/rules") == FLOWS);
    world
}

#[test]
fn however_it_is_ended_nothing_is_left_of_it() {
    let ways: [fn(&World); 4] = [
        |world| drop(world.ctl(["exit"])),
        |world| drop(world.ctl(["exit", "--cleanup"])),
        |world| world.send(Signal::TERM),
        |world| world.send(Signal::INT),
    ];
    for end in ways {
        let world = busy();
        let pidfile = fs::read_to_string(world.path("pid")).unwrap();
        assert_eq!(pidfile, format!("{}\n", world.pid()));
        end(&world);
        // That socket and pidfile are gone is looked at there.
        let (_, log) = world.end();
        let removed = log.split("stopped; ").nth(1).unwrap().split(' ').next().unwrap().parse::<u64>().unwrap();
        assert_eq!(removed, FLOWS, "{log}");
    }
}

#[test]
fn it_ends_by_itself_after_its_duration() {
    let stage = Stage::new();
    let (code, out, err) = stage.run("--port p1,type=sim --duration 300ms --pidfile DIR/pid");
    assert_eq!((code, out.as_str()), (Some(0), ""), "{err}");
    assert!(err.contains("is ready") && err.contains("stopped; 0 rules removed"), "{err}");
    assert!(!stage.dir().join("ctl").exists() && !stage.dir().join("pid").exists());
}

#[test]
fn a_reload_changes_what_can_change_and_a_bad_file_nothing() {
    let stage = Stage::new();
    let config = |ports: &str, more: &str| format!("[datapath]\nports = [{ports}]\n{more}");
    stage.file("config", &config(r#""p1,type=sim,port_no=1", "p2,type=sim,port_no=2""#, "flow-limit = 500"));
    let world = stage.start("--config DIR/config --port p9,type=sim,port_no=9 --offload sim");
    world.ctl(["netdev-dummy/receive", "p1", "eth(src=02:00:00:00:00:01,dst=ff:ff:ff:ff:ff:ff),eth_type(0x88b5)"]);
    world.wait_until("the flow is offloaded", || world.offload("/rules") == 1);
    let ufid = world.flows()[0]["ufid"].clone();

    world.file("config", &config(r#""p1,type=sim,port_no=1", "p3,type=sim,port_no=3""#, "flow-limit = 7"));
    world.send(Signal::HUP);
    world.wait_until("it is reloaded", || world.log().contains("|reloaded"));
    let show = world.json(["dpctl/show"]);
    let names: Vec<&str> =
        show["ports"].as_array().unwrap().iter().map(|port| port["name"].as_str().unwrap()).collect();
    assert_eq!((names.as_slice(), &show["flow_limit"]), (["p1", "p3", "p9"].as_slice(), &7.into()));
    assert_eq!(world.flows()[0]["ufid"], ufid, "what did not change was not disturbed");
    world.ctl(["netdev-dummy/receive", "p1", "eth(src=02:00:00:00:00:01,dst=ff:ff:ff:ff:ff:ff),eth_type(0x88b5)"]);
    world.wait_until("the new port is flooded to", || world.port_count("p3", "tx_packets") == 1);

    let before = world.ctl(["dpctl/show"]);
    for bad in ["[datapath]\nflow-limit = 0", "[datapath]\nports = [\"p4,type=nonsense\"]", "nonsense"] {
        let complaints = world.log().matches("not reloaded: ").count();
        world.file("config", bad);
        world.send(Signal::HUP);
        world.wait_until("it says no", || world.log().matches("not reloaded: ").count() > complaints);
        assert_eq!(world.ctl(["dpctl/show"]), before);
        assert_eq!(world.json(["dpctl/show"])["flow_limit"], 7);
    }
}

#[test]
fn a_port_that_cannot_be_changed_stays_as_it_was() {
    let stage = Stage::new();
    stage.file("config", "[datapath]\nports = [\"p1,type=sim\", \"p2,type=sim\"]");
    let world = stage.start("--config DIR/config");
    world.file("config", "[datapath]\nports = [\"p1,type=sim,mtu=banana\", \"p2,type=sim\"]");
    world.send(Signal::HUP);
    world.wait_until("it is reloaded", || world.log().contains("|reloaded, with 1 errors"));
    assert!(world.log().contains("p1: option mtu=banana"), "{}", world.log());
    assert!(world.ctl(["dpctl/show"]).contains("port 1: p1 (sim: "));
}

#[test]
fn a_log_file_that_was_moved_away_is_opened_again_at_a_reload() {
    let world = Stage::new().start("--port p1,type=sim --log-file DIR/l");
    fs::rename(world.path("l"), world.path("l.1")).unwrap();
    world.send(Signal::HUP);
    world.wait_until("there is a new one", || {
        fs::read_to_string(world.path("l")).is_ok_and(|l| l.contains("|reloaded"))
    });
    assert!(fs::read_to_string(world.path("l.1")).unwrap().contains("is ready"));
}

#[test]
fn a_flush_that_runs_out_of_time_says_how_far_it_came() {
    // A device of 5,000 rules a second has work for some time.
    let stage = Stage::new();
    let rules: String =
        (0..2_000).map(|i| format!("ip,nw_dst=172.16.{}.{},actions=output:2\n", i / 256, i % 256)).collect();
    stage.file("rules", &rules);
    let world = stage
        .start("--port p1,type=sim,flows=2000,rate=20000 --port p2,type=sim --rules DIR/rules --offload sim,preset=fw");
    world.wait_until("there is something to forget", || world.offload("/rules") == 2_000);
    let said = world.ctl_err(["flow-flush", "--wait", "0.2"]);
    assert!(said.contains("datapath flows deleted, ") && said.contains("has not forgotten all within 200ms"), "{said}");
}

#[test]
fn an_idle_daemon_leaves_the_processor_alone() {
    let world = Stage::new().start("--port p1,type=sim --port p2,type=sim --offload sim");
    world.ctl(["netdev-dummy/receive", "p1", "eth(src=02:00:00:00:00:01),eth_type(0x88b5)"]);
    world.wait_until("the flow is offloaded", || world.offload("/rules") == 1);
    // The nanoseconds that each thread has run are the first number of its schedstat.
    let ran = || {
        let tasks = fs::read_dir(format!("/proc/{}/task", world.pid())).unwrap();
        let stats = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap());
        stats.map(|stat| stat.split(' ').next().unwrap().parse::<u64>().unwrap()).sum::<u64>()
    };
    let (begun, before) = (Instant::now(), ran());
    thread::sleep(Duration::from_secs(2));
    let share = (ran() - before) as f64 / begun.elapsed().as_nanos() as f64;
    assert!(share < 0.02, "it used {:.1} % of a processor", 100.0 * share);
}

#[test]
fn a_flush_amid_traffic_is_complete_and_loses_no_packet() {
    let world = busy();
    for _ in 0..5 {
        let flushed = world.json(["flow-flush"]);
        assert_eq!(flushed["flows"], FLOWS, "{flushed}");
        // A flow that is back before the device has forgotten it has a rule that is flushed once more, or not at all.
        assert!(flushed["rules"].as_u64().unwrap() >= FLOWS, "{flushed}");
        world.wait_until("the flows are back", || world.offload("/rules") == FLOWS);
    }
    let said = world.ctl(["flow-flush", "--wait", "20"]);
    assert!(said.ends_with(" device rules removed\n") && said.contains(" datapath flows deleted, "), "{said}");
    let marked = world.perf("mark_hits");
    world.wait_until("the device marks again", || world.perf("mark_hits") > marked + 100);
    world.ctl(["dpctl/del-if", "p1"]);
    assert_eq!(world.perf("rx_packets"), world.port_count("p2", "tx_packets"));
    assert_eq!(world.offload("/operations/delete/device"), 0);
}

#[test]
fn the_demo_shows_its_work_and_ends_well() {
    let (code, out, err) = Stage::new().run("--demo --duration 3s");
    assert_eq!(code, Some(0), "{err}");
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[0].starts_with("demo: "), "{out}");
    let seconds =
        lines.iter().filter(|line| line.trim_start().starts_with(|c: char| c.is_ascii_digit()) && line.contains(" | "));
    assert!(seconds.count() >= 2, "a line a second: {out}");
    let report = |what: &str| {
        let line = lines.iter().find(|line| line.trim_start().starts_with(what)).unwrap_or_else(|| panic!("{out}"));
        line[what.len() + 2..].split_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    assert!(report("packets received") > 1_000 && report("packets sent") > 1_000, "{out}");
    assert_eq!(report("rules in device"), report("flows"), "{out}");
    assert!(report("flows") >= 1_000, "{out}");
}

#[test]
fn ctrl_c_ends_the_demo_with_its_report() {
    let world = Stage::new().start("--demo");
    world.wait_until("the device finds packets", || world.perf("mark_hits") > 0);
    world.send(Signal::INT);
    let (out, _) = world.end();
    assert!(out.contains("report after ") && out.contains("by mark"), "{out}");
}
