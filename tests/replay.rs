//! Captures of mixed traffic, replayed through the rules of [`linear`](crate::linear) without a device and with several.
//!
//! However a packet's flow was found, every frame must leave as the rules say, in order within its flow, and be in
//! exactly one count. The last test makes the device wrong, to show that the comparison would hear it.

use std::collections::BTreeMap;
use std::path::Path;
use std::pin::pin;
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use std::{iter, thread};

use offloadd::datapath::poller::Reports;
use offloadd::datapath::shared::Shared;
use offloadd::datapath::switch::{PollerConfig, Switch};
use offloadd::offload::backend::sim::{Nic, Options as NicOptions, Sim};
use offloadd::offload::{Offload, OffloadConfig};
use offloadd::slowpath::{Options, Slowpath};

use crate::capture::{self, Frame};
use crate::linear;
use crate::world::{PATIENCE, Stage, World};

const PACKETS: usize = 12_000;

/// What leaves by each port, by the flow that it arrived in, in order.
type Sent = BTreeMap<(u32, Vec<u8>), Vec<Vec<u8>>>;

/// What the rules say of a capture.
struct Expected {
    sent: Sent,
    /// The flow that a frame which leaves by a port arrived in. For one that could be of several flows, when rules have
    /// made them the same, the frame itself.
    flows: BTreeMap<(u32, Vec<u8>), Vec<u8>>,
}

impl Expected {
    /// Of captures that arrive at the first ports, one at each.
    fn of(captures: &[&[Frame]]) -> Expected {
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

/// Replays captures at the first ports, with a poller for each, and compares with what the rules say.
fn replay(captures: &[&[Frame]], expected: &Expected, pace: &str, device: &str) -> World {
    let stage = Stage::new();
    stage.file("rules", &linear::text());
    stage.file("config", &format!("[datapath]\npollers = {}", captures.len()));
    let mut args = format!("--config DIR/config --rules DIR/rules --offload {device}");
    for (i, port) in linear::PORTS.into_iter().enumerate() {
        args += &format!(" --port p{port},type=pcap,port_no={port},tx=DIR/tx{port}.pcap");
        if let Some(frames) = captures.get(i) {
            capture::write(stage.path(&format!("rx{port}.pcap")), frames).unwrap();
            args += &format!(",rx=DIR/rx{port}.pcap,pace={pace}");
        }
    }
    let world = stage.start(&args);
    for (frames, port) in captures.iter().zip(linear::PORTS) {
        let received = || world.port_count(&format!("p{port}"), "rx_packets");
        world.wait_until("every frame is received", || received() == frames.len() as u64);
    }
    let to_send: u64 = expected.sent.values().map(|frames| frames.len() as u64).sum();
    let sum = |count| linear::PORTS.iter().map(|port| world.port_count(&format!("p{port}"), count)).sum::<u64>();
    world.wait_until("every frame is sent, or dropped", || sum("tx_packets") + sum("tx_full") >= to_send);
    let missing = missing(&expected.sent, &expected.recorded(world.dir()));
    let missing = missing.unwrap_or_else(|wrong| panic!("{device}, pace={pace}: {wrong}"));
    // A poller sends by a port of another through a queue, which is full when the machine lets that other one wait for long.
    assert!(missing == 0 || captures.len() > 1, "{missing} frames are missing");
    assert_eq!((sum("tx_packets"), sum("tx_full")), (to_send - missing, missing), "what is missing is counted");
    let outcomes = ["mark_hits", "emc_hits", "smc_hits", "megaflow_hits", "upcalls", "runts"];
    let found: u64 = outcomes.iter().map(|count| world.perf(count)).sum();
    let total = captures.iter().map(|frames| frames.len() as u64).sum::<u64>();
    assert_eq!(found, total, "a packet is in exactly one count");
    world
}

#[test]
fn a_capture_comes_out_as_the_rules_say_with_a_device_and_without() {
    let frames = capture::generate(2026, PACKETS);
    let captures = [frames.as_slice()];
    let expected = Expected::of(&captures);
    assert!(linear::PORTS.iter().all(|port| expected.sent.keys().any(|(sent, _)| sent == port)), "every port is used");

    let world = replay(&captures, &expected, "asap", "none");
    assert_eq!(world.perf("mark_hits"), 0);
    drop(world);
    for device in ["sim,preset=instant", "sim,preset=fw"] {
        let world = replay(&captures, &expected, "asap", device);
        world.wait_until("the device has rules", || world.offload("/rules") > 0);
    }
}

#[test]
fn a_capture_at_a_wires_pace_is_mostly_found_by_mark() {
    let frames = capture::generate(7, PACKETS);
    let captures = [frames.as_slice()];
    let expected = Expected::of(&captures);
    // The second has fewer marks than there are megaflows.
    for device in ["sim,preset=instant", "sim,preset=fw,mark-bits=9"] {
        let world = replay(&captures, &expected, "4000", device);
        let marked = world.perf("mark_hits");
        assert!(marked >= PACKETS as u64 / 2, "{marked} of {PACKETS} found by mark with {device}");
    }
}

#[test]
fn two_pollers_send_by_the_same_ports_what_the_rules_say() {
    let (first, second) = (capture::generate(11, PACKETS), capture::generate(12, PACKETS));
    let captures = [first.as_slice(), second.as_slice()];
    let expected = Expected::of(&captures);
    let world = replay(&captures, &expected, "4000", "sim,preset=hws");
    let perf = world.json(["dpif-netdev/pmd-perf-show"]);
    let received: Vec<u64> =
        perf["pollers"].as_array().unwrap().iter().map(|poller| poller["rx_packets"].as_u64().unwrap()).collect();
    assert_eq!(received, [PACKETS as u64; 2]);
    let marked = world.perf("mark_hits");
    assert!(marked >= PACKETS as u64 / 2, "{marked} of twice {PACKETS} found by mark");
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
