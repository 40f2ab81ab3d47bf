//! What happens to offload while a capture is replayed: it is paused, its workers and the pollers change, the device is
//! reset, or hangs. The same frames leave, and every packet is counted.

use serde_json::Value;

use crate::capture;
use crate::replay::{Expected, Replay};
use crate::world::{Stage, World};

const PACKETS: usize = 16_000;

/// Frames a second: four seconds in all.
const PACE: &str = "4000";

/// No flow is given up for the while that the machine may take.
fn config(pollers: u64, offload: &str) -> String {
    format!("[datapath]\npollers = {pollers}\nmax-idle = \"1m\"\n[offload]\n{offload}\n")
}

/// Why the device is not used.
fn off(world: &World) -> Option<String> {
    world.json(["dpif/offload-show"])["off"].as_str().map(str::to_owned)
}

/// Waits until the device has helped with some hundred packets more.
fn await_help(replay: &Replay<'_>) {
    let before = replay.helped();
    replay.world.wait_until("the device helps", || replay.helped() >= before + 200);
}

/// That for some hundred packets the device does not help with any.
fn assert_no_help(replay: &Replay<'_>) {
    let (helped, arrived) = (replay.helped(), replay.arrived());
    replay.world.wait_until("packets arrive", || replay.arrived() >= arrived + 500);
    assert_eq!(replay.helped(), helped, "the device is not used");
}

fn changes_under_traffic(seed: u64, device: &str) {
    let frames = capture::generate(seed, PACKETS);
    let expected = Expected::of(&[&frames]);
    let replay = Replay::start_reloadable(&frames, &expected, PACE, device, &config(1, ""));
    let world = &replay.world;
    replay.await_share((1, 8));
    await_help(&replay);
    world.ctl(["offload/pause"]);
    assert_eq!(world.offload("/rules"), 0);
    assert_no_help(&replay);
    world.ctl(["offload/resume"]);
    await_help(&replay);
    replay.await_share((3, 8));
    world.ctl(["offload/set", "threads=4"]);
    assert_eq!(world.json(["dpif/offload-show"])["workers"].as_array().unwrap().len(), 4);
    await_help(&replay);
    replay.await_share((4, 8));
    world.reload(&config(2, "threads = 4"));
    let poller = |poller: usize| world.json(["dpif-netdev/pmd-perf-show"])["pollers"][poller]["rx_packets"].as_u64();
    let idle = (0..2).min_by_key(|id| poller(*id).unwrap()).unwrap();
    world.ctl(["dpif-netdev/pmd-rxq-move", "p1", "0", &idle.to_string()]);
    let moved = poller(idle);
    world.wait_until("the other poller has packets", || poller(idle) > moved);
    replay.await_share((5, 8));
    world.ctl(["offload/set", "threads=1"]);
    await_help(&replay);
    replay.await_share((6, 8));
    world.reload(&config(1, ""));
    await_help(&replay);
    replay.assert_sent();
    replay.assert_helped(4);
    replay.assert_counted();
}

#[test]
fn the_same_frames_come_out_while_marking_is_paused_and_threads_come_and_go() {
    changes_under_traffic(21, "sim,level=mark");
}

#[test]
fn the_same_frames_come_out_while_forwarding_is_paused_and_threads_come_and_go() {
    changes_under_traffic(22, "sim,level=full,ring=256");
}

#[test]
fn a_device_that_is_reset_is_noticed_and_filled_again() {
    let frames = capture::generate(23, PACKETS);
    let expected = Expected::of(&[&frames]);
    let replay = Replay::start_reloadable(&frames, &expected, PACE, "sim,level=full", &config(1, ""));
    let world = &replay.world;
    for (resets, share) in [(1, (1, 5)), (2, (3, 5))] {
        replay.await_share(share);
        await_help(&replay);
        world.ctl(["sim/fault", "reset"]);
        world.wait_until("the reset is noticed", || world.offload("/resets") == resets);
        world.wait_until("it is filled again", || world.offload("/rules_full") > 100);
        await_help(&replay);
    }
    replay.assert_sent();
    replay.assert_helped(3);
    assert!(world.offload("/forgotten") > 0, "it forgot what nobody had read");
    replay.assert_counted();
}

#[test]
fn a_device_that_hangs_is_left_alone_until_it_is_told_to_come_back() {
    let frames = capture::generate(24, PACKETS);
    let expected = Expected::of(&[&frames]);
    let config = config(1, "patience = \"100ms\"");
    let replay = Replay::start_reloadable(&frames, &expected, PACE, "sim,level=full", &config);
    let world = &replay.world;
    replay.await_share((1, 4));
    await_help(&replay);
    world.ctl(["sim/fault", "hang=true"]);
    world.wait_until("the hang is noticed", || off(world).is_some());
    let why = off(world).unwrap();
    assert!(why.contains("has not answered worker 0"), "{why}");
    assert!(world.ctl(["dpif/offload-show"]).contains(&format!("Off because: {why}\n")));
    assert_no_help(&replay);
    let explained = world.json(["offload/explain", "--all", "device"]);
    let explained = explained.as_array().unwrap();
    assert!(explained.len() > 100, "{} flows", explained.len());
    assert!(explained.iter().all(|row: &Value| row["reason"] == "off" && row["text"] == why.as_str()), "{explained:?}");
    world.ctl(["sim/fault", "clear"]);
    world.ctl(["offload/resume"]);
    assert_eq!(off(world), None);
    await_help(&replay);
    assert!(world.offload("/rules_full") > 0);
    replay.assert_sent();
    replay.assert_helped(4);
    replay.assert_counted();
}

#[test]
fn a_flow_that_the_device_marks_and_forwards_by_turns_is_counted_once() {
    const FRAMES: u64 = 12_000;
    let stage = Stage::new();
    stage.file("rules", "in_port=1,actions=output:2\n");
    stage.file("config", &config(1, ""));
    let world = stage.start(&format!(
        "--config DIR/config --rules DIR/rules --offload sim,level=full,without=push_vlan \
         --port p2,type=sim,port_no=2 --port p1,type=sim,port_no=1,flows=1,rate=4000,count={FRAMES}"
    ));
    let of_device = |count: &str| world.offload(&format!("/port_counts/p1/{count}"));
    let shown = || world.json(["dpif/offload-show"]);
    world.wait_until("the worker knows the port", || shown()["port_counts"]["p1"].is_object());
    let arrived = || world.perf("rx_packets") + of_device("full");
    // The device cannot push a tag, so that it marks what is to have one, and forwards what is not.
    for (actions, count) in [("push_vlan:0x8100,output:2", "hits"), ("output:2", "full")].into_iter().cycle() {
        world.ctl(["rule/add", &format!("in_port=1,actions={actions}")]);
        let before = of_device(count);
        world.wait_until("the device acts by the rule", || of_device(count) > before + 100 || arrived() == FRAMES);
        if arrived() > FRAMES * 4 / 5 {
            break;
        }
    }
    world.wait_until("every packet has arrived", || arrived() == FRAMES);
    assert!(world.offload("/operations/modify/done") >= 8, "the rule was changed in place");
    let counted = || world.flow("in_port(1)").unwrap()["packets"].as_u64().unwrap() + world.perf("upcalls");
    world.wait_until("every packet is counted", || counted() >= FRAMES);
    world.ctl(["offload/pause"]);
    assert_eq!(counted(), FRAMES);
}
