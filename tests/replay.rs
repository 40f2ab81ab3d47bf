//! Captures of mixed traffic, replayed through the rules of [`linear`](crate::linear) without a device and with several.
//!
//! However a packet's flow was found, and whoever sent it, every frame must leave as the rules say, in order within its
//! flow, and be in exactly one count of each kind. The last test makes the device wrong, to show that the comparison would
//! hear it.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::pin::pin;
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use std::{iter, thread};

use offloadd::datapath::poller::Reports;
use offloadd::datapath::shared::Shared;
use offloadd::datapath::switch::{PollerConfig, Switch};
use offloadd::flow::PortNo;
use offloadd::offload::backend::sim::{Nic, Options as NicOptions, Sim};
use offloadd::offload::{Offload, OffloadConfig};
use offloadd::slowpath::{Options, Slowpath};
use serde_json::Value;

use crate::capture::{self, Frame};
use crate::linear;
use crate::world::{PATIENCE, Stage, World};

const PACKETS: usize = 12_000;

/// Frames a second at each port.
const PACE: &str = "4000";

/// What leaves by each port, by the flow that it arrived in, in order.
type Sent = BTreeMap<(u32, Vec<u8>), Vec<Vec<u8>>>;

/// What the rules say of a capture.
pub struct Expected {
    sent: Sent,
    /// The flow that a frame which leaves by a port arrived in. For one that could be of several flows, when rules have
    /// made them the same, the frame itself.
    flows: BTreeMap<(u32, Vec<u8>), Vec<u8>>,
}

impl Expected {
    /// Of captures that arrive at the first ports, one at each.
    pub fn of(captures: &[&[Frame]]) -> Expected {
        let rules = linear::rules();
        let mut left = Vec::new();
        let mut flows = BTreeMap::new();
        for (frames, in_port) in captures.iter().zip(linear::PORTS) {
            for frame in *frames {
                let flow = [&in_port.to_be_bytes()[..], &linear::flow_of(&frame.bytes)].concat();
                for (port, bytes) in linear::evaluate(&rules, in_port, &frame.bytes) {
                    let known = flows.entry((port, bytes.clone())).or_insert_with(|| flow.clone());
                    if *known != flow {
                        known.clone_from(&bytes);
                    }
                    left.push((port, bytes));
                }
            }
        }
        let mut expected = Expected { sent: Sent::new(), flows };
        expected.sent = expected.by_flow(left);
        expected
    }

    fn by_flow(&self, frames: impl IntoIterator<Item = (u32, Vec<u8>)>) -> Sent {
        let mut sent = Sent::new();
        for (port, bytes) in frames {
            let frame = (port, bytes);
            let flow = self.flows.get(&frame).cloned().unwrap_or_default();
            sent.entry((port, flow)).or_default().push(frame.1);
        }
        sent
    }

    /// What the ports have recorded.
    fn recorded(&self, dir: &Path) -> Sent {
        let frames = |port| capture::read(dir.join(format!("tx{port}.pcap"))).unwrap().into_iter();
        self.by_flow(linear::PORTS.into_iter().flat_map(|port| frames(port).map(move |frame| (port, frame.bytes))))
    }
}

/// How many frames are missing; or the first that is wrong, too many or out of order, in words.
fn missing(expected: &Sent, sent: &Sent) -> Result<u64, String> {
    let hex = |bytes: &[u8]| bytes.iter().take(80).map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut missing = expected.values().map(|frames| frames.len() as u64).sum::<u64>();
    for (key, got) in sent {
        let mut want = expected.get(key).into_iter().flatten();
        for frame in got {
            let next = want.clone().next().map_or("nothing".into(), |frame| hex(frame));
            if !want.any(|wanted| wanted == frame) {
                return Err(format!("port {}:\n  expected {next}\n  sent     {}", key.0, hex(frame)));
            }
            missing -= 1;
        }
    }
    Ok(missing)
}

/// Captures on their way through a switch.
pub struct Replay<'a> {
    pub world: World,
    expected: &'a Expected,
    /// Frames of all captures.
    packets: u64,
    /// Whether pollers send by transmit queues of each other, which are full when the machine lets the other one wait.
    hands_over: bool,
}

impl<'a> Replay<'a> {
    /// Replays captures at the first ports, with a poller for each.
    pub fn start(captures: &[&[Frame]], expected: &'a Expected, pace: &str, device: &str) -> Replay<'a> {
        let stage = Stage::new();
        stage.file("rules", &linear::text());
        stage.file("config", &format!("[datapath]\npollers = {}\nmax-idle = \"1m\"", captures.len()));
        let mut args = format!("--config DIR/config --rules DIR/rules --offload {device}");
        for (i, port) in linear::PORTS.into_iter().enumerate() {
            let pace = captures.get(i).map(|frames| write(&stage, port, frames, pace));
            args += &format!(" --port {}", spec(port, pace, stage.dir()));
        }
        let world = stage.start(&args);
        let packets = captures.iter().map(|frames| frames.len() as u64).sum();
        Replay { world, expected, packets, hands_over: captures.len() > 1 }
    }

    /// Replays a capture at the first port of a switch that can be [reloaded](World::reload): its rules are no file's
    /// that is configured, so that they are not read again and count on.
    pub fn start_reloadable(
        frames: &[Frame],
        expected: &'a Expected,
        pace: &str,
        device: &str,
        config: &str,
    ) -> Replay<'a> {
        let stage = Stage::new();
        stage.file("config", config);
        stage.file("rules", &linear::text());
        let [first, others @ ..] = linear::PORTS;
        let ports = others.map(|port| format!(" --port {}", spec(port, None, stage.dir()))).concat();
        let first = spec(first, Some(write(&stage, first, frames, pace)), stage.dir());
        let world = stage.start(&format!("--config DIR/config --offload {device}{ports}"));
        world.ctl(["rule/load", &world.path("rules")]);
        world.ctl(["dpctl/add-if", &first]);
        Replay { world, expected, packets: frames.len() as u64, hands_over: false }
    }

    /// Packets that a poller has looked up, or the device has handled wholly.
    pub fn arrived(&self) -> u64 {
        self.world.perf("rx_packets") + self.by_device("full")
    }

    /// Packets that the device has marked for a poller or handled wholly.
    pub fn helped(&self) -> u64 {
        self.world.perf("mark_hits") + self.by_device("full")
    }

    /// Waits until this share of the packets has arrived.
    pub fn await_share(&self, (part, whole): (u64, u64)) {
        self.world.wait_until("packets have arrived", || self.arrived() >= self.packets * part / whole);
    }

    /// What the device says of one of its counts, all ports together.
    fn by_device(&self, count: &str) -> u64 {
        let show = self.world.json(["dpif/offload-show"]);
        let ports = show["port_counts"].as_object().unwrap();
        ports.values().map(|port| port[count].as_u64().unwrap()).sum()
    }

    /// Packets whose counts went with a device that forgot its rules.
    fn forgotten(&self) -> u64 {
        self.world.json(["dpif/offload-show"])["forgotten"].as_u64().unwrap_or(0)
    }

    /// Packets that the rules of the first table have counted. Every packet meets one of them.
    fn credited(&self) -> u64 {
        self.world.rule_packets(" table=0,")
    }

    /// Waits until all has left, and compares it with what the rules say.
    pub fn assert_sent(&self) {
        let world = &self.world;
        world.wait_until("every packet has arrived", || self.arrived() == self.packets);
        let to_send: u64 = self.expected.sent.values().map(|frames| frames.len() as u64).sum();
        let sum = |count| linear::PORTS.iter().map(|port| world.port_count(&format!("p{port}"), count)).sum::<u64>();
        let sent = || sum("tx_packets") + self.by_device("sent");
        world.wait_until("every frame is sent, or dropped", || sent() + sum("tx_full") >= to_send);
        let missing = missing(&self.expected.sent, &self.expected.recorded(world.dir()));
        let missing = missing.unwrap_or_else(|wrong| panic!("{wrong}"));
        assert!(missing == 0 || self.hands_over, "{missing} frames are missing");
        assert_eq!((sent(), sum("tx_full")), (to_send - missing, missing), "what is missing is counted");
        assert_eq!(self.by_device("lost"), 0);
    }

    /// That every packet is in exactly one count of each kind: of how it was found, of what the device did with it, of a
    /// flow or the upcall that made it, and of a rule. All of them have arrived.
    pub fn assert_counted(&self) {
        let world = &self.world;
        let outcomes = ["mark_hits", "emc_hits", "smc_hits", "megaflow_hits", "upcalls", "runts"];
        let found: u64 = outcomes.iter().map(|count| world.perf(count)).sum();
        assert_eq!(found + self.by_device("full"), self.packets, "a packet is found once");
        let received =
            linear::PORTS.iter().map(|port| world.port_count(&format!("p{port}"), "rx_packets")).sum::<u64>();
        assert_eq!(received, found, "what the device handles no poller receives");
        let seen = ["hits", "full", "misses", "busy"].map(|count| self.by_device(count)).iter().sum::<u64>();
        let has_device = world.json(["dpif/offload-show"])["backend"] != "none";
        assert_eq!(seen, if has_device { self.packets } else { 0 }, "the device has seen every packet once");
        world.wait_until("the rules have counted every packet", || self.credited() + self.forgotten() == self.packets);
        if world.json(["dpif-netdev/pmd-perf-show"])["ended"].is_null() {
            assert_eq!((world.perf("deleted_stale"), world.perf("deleted_idle")), (0, 0), "every flow is still there");
            let flows: u64 = world.flows().iter().map(|flow| flow["packets"].as_u64().unwrap()).sum();
            assert_eq!(flows + world.perf("upcalls") + self.forgotten(), self.packets, "a packet is of one flow");
        }
        // What the device still has of each flow is the rules' when it dies.
        world.ctl(["flow-flush"]);
        world.wait_until("the device's last counts are told", || world.offload("/megaflows") == 0);
        assert_eq!(self.credited() + self.forgotten(), self.packets, "a packet is of one rule");
        assert_eq!((world.offload("/rules"), world.flows().len()), (0, 0));
    }

    /// That the device has dealt with at least one in `n` packets.
    pub fn assert_helped(&self, n: u64) {
        let helped = self.helped();
        assert!(helped >= self.packets / n, "the device helped with {helped} of {}", self.packets);
    }
}

/// Writes a port's capture; how fast it is to be replayed.
fn write<'a>(stage: &Stage, port: u32, frames: &[Frame], pace: &'a str) -> &'a str {
    capture::write(stage.path(&format!("rx{port}.pcap")), frames).unwrap();
    pace
}

/// A port that records what it sends: one with a capture has one transmit queue, the others one for each poller, and room
/// for frames with more tags than they came with.
fn spec(port: u32, pace: Option<&str>, dir: &Path) -> String {
    let dir = dir.display();
    let kind = match pace {
        Some(pace) => format!("type=pcap,rx={dir}/rx{port}.pcap,pace={pace}"),
        None => "type=sim,mtu=9000".to_owned(),
    };
    format!("p{port},{kind},port_no={port},tx={dir}/tx{port}.pcap")
}

/// A capture at each port, at a wire's pace, through a device that must help with one in `n` packets.
fn replay(seeds: &[u64], device: &str, n: u64) {
    replay_at(PACE, seeds, device, n);
}

fn replay_at(pace: &str, seeds: &[u64], device: &str, n: u64) {
    let captures: Vec<Vec<Frame>> = seeds.iter().map(|seed| capture::generate(*seed, PACKETS)).collect();
    let captures: Vec<&[Frame]> = captures.iter().map(Vec::as_slice).collect();
    let expected = Expected::of(&captures);
    let replay = Replay::start(&captures, &expected, pace, device);
    replay.assert_sent();
    replay.assert_helped(n);
    replay.assert_counted();
}

#[test]
fn a_capture_comes_out_as_the_rules_say_with_a_device_and_without() {
    let frames = capture::generate(2026, PACKETS);
    let captures = [frames.as_slice()];
    let expected = Expected::of(&captures);
    assert!(linear::PORTS.iter().all(|port| expected.sent.keys().any(|(sent, _)| sent == port)), "every port is used");
    for device in ["none", "sim,preset=instant", "sim,preset=fw"] {
        let replay = Replay::start(&captures, &expected, "asap", device);
        replay.assert_sent();
        if device == "none" {
            assert_eq!(replay.helped(), 0);
        } else {
            replay.world.wait_until("the device has rules", || replay.world.offload("/rules") > 0);
        }
        replay.assert_counted();
    }
}

#[test]
fn the_same_frames_come_out_of_a_device_that_marks() {
    replay(&[7], "sim,level=mark", 2);
    // Fewer marks than there are megaflows.
    replay(&[8], "sim,preset=fw,mark-bits=9", 2);
}

#[test]
fn the_same_frames_come_out_of_a_device_that_forwards_behind_a_ring() {
    replay(&[9], "sim,level=full,ring=256", 2);
}

/// Devices in which a fifth of all operations fail. One forgets its rules now and then, the other before it has a tenth of
/// them, so that it helps with few packets.
fn replay_in_chaos(seeds: [u64; 2], level: &str) {
    for (seed, reset, n) in [(seeds[0], "0.05%", 5), (seeds[1], "1%", 100)] {
        replay(&[seed], &format!("chaos,seed={seed},fail=20%,reset={reset},level={level}"), n);
    }
}

#[test]
fn the_same_frames_come_out_of_a_device_that_marks_though_it_fails_and_forgets() {
    replay_in_chaos([1, 2], "mark");
}

#[test]
fn the_same_frames_come_out_of_a_device_that_forwards_though_it_fails_and_forgets() {
    replay_in_chaos([3, 4], "full");
}

#[test]
fn two_pollers_send_by_the_same_ports_what_the_rules_say() {
    replay(&[11, 12], "sim,preset=hws", 2);
    replay(&[13, 14], "sim,level=full", 2);
}

#[test]
fn two_pollers_send_what_the_rules_say_whatever_the_device_does() {
    // What waits in a ring is not helped, and two pollers and a worker share what processors there are.
    replay_at("2000", &[15, 16], "sim,level=full,ring=256", 2);
    replay(&[17, 18], "chaos,seed=5,fail=20%,reset=0.05%,level=full", 5);
}

#[test]
fn the_device_executes_every_kind_of_action_by_itself() {
    let frames = capture::generate(2027, PACKETS);
    let captures = [frames.as_slice()];
    let expected = Expected::of(&captures);
    let replay = Replay::start(&captures, &expected, PACE, "sim,level=full");
    replay.assert_sent();
    replay.assert_helped(2);
    let world = &replay.world;
    let hits = |row: &Value| Some((row["ufid"].as_str()?.to_owned(), row["hits"].as_u64()?));
    let executed = || -> Vec<String> {
        let marks = world.json(["offload/mark-show"]);
        let hits: HashMap<String, u64> = marks.as_array().unwrap().iter().filter_map(hits).collect();
        let full = |flow: &Value| {
            flow["offload"]["offloaded"] == "full" && hits.get(flow["ufid"].as_str().unwrap()).is_some_and(|n| *n > 0)
        };
        world
            .flows()
            .iter()
            .filter(|flow| full(flow))
            .map(|flow| flow["actions"].as_str().unwrap().to_owned())
            .collect()
    };
    let kinds = [
        "push_vlan(",
        "pop_vlan",
        "set(eth(",
        "set(ipv4(",
        "set(ipv6(",
        "set(tcp(",
        "set(udp(",
        "set(sctp(",
        "ttl=",
        "hlimit=",
        "drop",
        "2,set(",
        "2,3,4,5",
    ];
    let lacks = || -> Vec<&str> {
        let executed = executed();
        kinds.into_iter().filter(|kind| !executed.iter().any(|actions| actions.contains(kind))).collect()
    };
    let mut lacking = lacks();
    let begun = Instant::now();
    // Counts are read once a second.
    while !lacking.is_empty() && begun.elapsed() < PATIENCE / 3 {
        lacking = lacks();
    }
    assert!(lacking.is_empty(), "never executed: {lacking:?}");
    replay.assert_counted();
}

/// A switch in this process, with a device that the test has in its hands.
struct Bench {
    stage: Stage,
    switch: Switch,
    nic: Arc<Nic>,
    injected: u64,
}

impl Bench {
    fn new() -> Bench {
        let stage = Stage::new();
        let nic = Nic::new(Instant::now());
        let device = Arc::new(Sim::new(Arc::clone(&nic), NicOptions::default()));
        let offload = Offload::start(device.clone(), Instant::now(), OffloadConfig::default()).unwrap();
        let slowpath = Arc::new(Slowpath::new(Options { stations: 100, ageing: PATIENCE }));
        let shared = Shared::new(Arc::clone(&slowpath), offload.started(), 1_000, PATIENCE, false);
        let reports = Reports { channel: mpsc::channel().0, wake: Arc::new(|| ()) };
        let pollers = PollerConfig { count: 1, cpus: Vec::new() };
        let switch = Switch::start(Arc::new(shared), offload, Some(device), &pollers, reports).unwrap();
        for port in linear::PORTS {
            let spec = format!("p{port},type=sim,port_no={port},tx={}", stage.path(&format!("tx{port}.pcap")));
            finish(switch.add_port(&spec.parse().unwrap())).unwrap();
        }
        slowpath.load(&linear::text(), &switch.names(), Instant::now()).unwrap();
        switch.begin();
        Bench { stage, switch, nic, injected: 0 }
    }

    /// Lets a frame arrive and waits until the switch has looked it up.
    fn inject(&mut self, frame: &Frame) {
        self.switch.inject("p1", 0, &frame.bytes).unwrap();
        self.injected += 1;
        let lookups = || self.switch.counters(0).lookup.list().iter().map(|(_, n)| n).sum::<u64>();
        await_that("the frame is looked up", || lookups() == self.injected);
    }

    fn mark_hits(&self) -> u64 {
        self.switch.counters(0).lookup.mark_hit.get()
    }

    /// Lets the poller finish and end; what left.
    fn sent(&self, expected: &Expected) -> Sent {
        self.switch.stop();
        expected.recorded(self.stage.dir())
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.switch.stop();
        self.switch.offload.stop(Instant::now() + PATIENCE);
    }
}

fn await_that(what: &str, mut cond: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !cond() {
        assert!(begun.elapsed() < PATIENCE, "in vain: {what}");
        thread::sleep(Duration::from_micros(200));
    }
}

fn finish<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut answer = None;
    await_that("an answer", || match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => answer.replace(value).is_none(),
        Poll::Pending => false,
    });
    answer.unwrap()
}

#[test]
fn a_port_may_be_added_while_the_one_of_its_name_and_number_is_on_its_way_out() {
    let bench = Bench::new();
    let spec = "p2,type=sim,port_no=2".parse().unwrap();
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..20 {
        let (mut removal, mut addition) =
            (pin!(bench.switch.remove_port(PortNo(2))), pin!(bench.switch.add_port(&spec)));
        // Begun first, so that it is under way.
        let mut is_removed = removal.as_mut().poll(&mut context).is_ready();
        let mut added = None;
        await_that("one is gone and the other there", || {
            if added.is_none()
                && let Poll::Ready(answer) = addition.as_mut().poll(&mut context)
            {
                added = Some(answer.unwrap());
            }
            is_removed = is_removed || removal.as_mut().poll(&mut context).is_ready();
            is_removed && added == Some(PortNo(2))
        });
    }
}

#[test]
fn a_device_that_swaps_two_marks_is_found_out() {
    let untagged = |eth_type: [u8; 2]| {
        let all = capture::generate(3, PACKETS).into_iter();
        all.filter(move |frame| frame.bytes.len() >= 60 && frame.bytes[12..14] == eth_type).take(20)
    };
    // Of two megaflows that differ in what becomes of them: one is sent everywhere, the other out of one port.
    let frames: Vec<Frame> =
        iter::zip(untagged([0x08, 0x06]), untagged([0x88, 0x47])).flat_map(|(a, m)| [a, m]).collect();
    for wrong in [false, true] {
        let mut bench = Bench::new();
        let (first, rest) = frames.split_at(2);
        first.iter().for_each(|frame| bench.inject(frame));
        await_that("both flows are in the device", || bench.nic.rules() == 2);
        // Marks are bound when the poller takes the event, which it does at the latest with a packet.
        let mut sent: Vec<Frame> = first.to_vec();
        for frame in first.iter().cycle() {
            bench.inject(frame);
            sent.push(frame.clone());
            if bench.mark_hits() >= 2 {
                break;
            }
            assert!(sent.len() < 1_000, "no packet is found by its mark");
        }
        assert!(!wrong || bench.nic.corrupt(), "there are two rules to be mixed up");
        rest.iter().for_each(|frame| bench.inject(frame));
        assert!(bench.mark_hits() >= rest.len() as u64);
        sent.extend_from_slice(rest);
        let expected = Expected::of(&[&sent]);
        let missing = missing(&expected.sent, &bench.sent(&expected));
        assert_eq!(missing != Ok(0), wrong, "{missing:?}");
    }
}
