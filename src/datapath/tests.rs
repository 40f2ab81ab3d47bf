//! The pipeline against the plain reading of its job: each packet alone, decided anew, nothing remembered.

use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_channel::oneshot;
use proptest::prelude::*;

use super::counters::{PollerCounters, PortCounters};
use super::execute::{Way, execute};
use super::hash::Seeds;
use super::inbox::{Change, Job, NewFlow, Page, SLICE, Which};
use super::output::{Output, Outputs, PortLimits, Tx};
use super::pipeline::Pipeline;
use super::shared::Shared;
use super::sweep::{PERIOD, Sweep};
use super::table::{FlowTable, Namer};
use crate::flow::text::{parse_actions, parse_flow};
use crate::flow::{Actions, Field, Key, Match, PortNo};
use crate::packet::compose::compose;
use crate::packet::extract::extract;
use crate::packet::{Packet, Pool};
use crate::port::{Sent, TxQueue};
use crate::slowpath::{Options, Slowpath};

/// Frames that left, by port.
type Wire = Arc<Mutex<Vec<(u32, Vec<u8>)>>>;

struct Recorder(u32, Wire);

impl TxQueue for Recorder {
    fn transmit(&mut self, _now: Instant, pool: &mut Pool, packets: &mut Vec<Packet>) -> Sent {
        let sent = Sent { packets: packets.len() as u64, ..Sent::default() };
        self.1.lock().unwrap().extend(packets.iter().map(|packet| (self.0, packet.bytes().to_vec())));
        pool.give_all(packets);
        sent
    }
}

fn outputs(wire: &Wire) -> Outputs {
    let mut outputs = Outputs::new();
    for port in 1..=3 {
        let limits = Arc::new(PortLimits { mtu: AtomicU32::new(1_500) });
        let tx = Tx::Own(Box::new(Recorder(port, Arc::clone(wire))));
        outputs.add(PortNo(port), Output::new(tx, false, false, limits, Arc::new(PortCounters::default())));
    }
    outputs
}

struct Bench {
    pipeline: Pipeline,
    slowpath: Arc<Slowpath>,
    wire: Wire,
    start: Instant,
}

impl Bench {
    fn new(flow_limit: usize) -> Bench {
        let start = Instant::now();
        let slowpath = Arc::new(Slowpath::new(Options::default()));
        slowpath.set_ports((1..=3).map(|n| (PortNo(n), format!("p{n}"))).collect());
        let shared = Arc::new(Shared::new(Arc::clone(&slowpath), start, flow_limit, Duration::from_secs(10), false));
        let seeds = Seeds::random();
        let table = FlowTable::new(seeds.clone(), Namer::random(), None);
        let mut pipeline = Pipeline::new(shared, Arc::new(PollerCounters::default()), table, seeds);
        let wire = Wire::default();
        pipeline.outputs = outputs(&wire);
        Bench { pipeline, slowpath, wire, start }
    }

    fn rules(&self, rules: &[&str]) {
        self.slowpath.load(&rules.join("\n"), &(), self.start).unwrap();
    }

    fn process(&mut self, now: Instant, frames: &[Vec<u8>]) {
        let mut packets: Vec<Packet> = frames.iter().map(|frame| packet(frame)).collect();
        self.pipeline.process(now, &mut packets);
        assert!(packets.is_empty());
    }

    fn sweep(&mut self, now: Instant) {
        let mut sweep = Sweep::new(now - PERIOD);
        sweep.slice(now, &mut self.pipeline);
        while sweep.is_under_way() {
            sweep.slice(now, &mut self.pipeline);
        }
    }

    fn sent(&self) -> Vec<(u32, Vec<u8>)> {
        std::mem::take(&mut self.wire.lock().unwrap())
    }

    fn lookup(&self, name: &str) -> u64 {
        self.pipeline.counters.lookup.get(name)
    }
}

fn packet(frame: &[u8]) -> Packet {
    let mut packet = Packet::from_bytes(frame);
    // The last byte chooses the port, so that a frame's text is all that there is to it.
    packet.meta.in_port = PortNo(1 + u32::from(frame[frame.len() - 1]) % 3);
    packet
}

fn udp(src: u8, dst: u8, tp_dst: u16, port: u8) -> Vec<u8> {
    let flow = format!(
        "eth(src=02:00:00:00:00:{src:02x},dst=02:00:00:00:00:{dst:02x}),eth_type(0x0800),\
         ipv4(src=10.0.{src}.1,dst=10.1.{dst}.1,proto=17,ttl=64),udp(src=1000,dst={tp_dst})"
    );
    let mut frame = compose(parse_flow(&flow, &()).unwrap().matching.key(), 0);
    *frame.last_mut().unwrap() = port - 1;
    frame
}

/// What may change while packets flow.
#[derive(Clone, Debug)]
enum Step {
    Packets(Vec<(u8, u8, u8, u8)>),
    Rules(Vec<usize>),
    AddByHand(usize),
    DeleteByHand(usize),
    ModifyByHand(usize),
    Sweep,
    Pause,
}

const RULES: [&str; 9] = [
    "priority=10,ip,nw_dst=10.1.0.0/16,actions=output:2",
    "priority=20,ip,nw_dst=10.1.1.0/24,actions=mod_nw_src:1.2.3.4,output:1,output:3",
    "priority=30,udp,tp_dst=80,actions=push_vlan:0x8100,mod_vlan_vid:7,output:3",
    "priority=40,in_port=2,actions=drop",
    "priority=15,dl_dst=02:00:00:00:00:03,actions=flood",
    "priority=25,udp,nw_src=10.0.2.0/24,actions=resubmit(,1),output:2",
    "table=1,priority=5,udp,tp_dst=81,actions=dec_ttl,output:1",
    "table=1,priority=1,actions=in_port",
    "priority=1,actions=all",
];

const BY_HAND: [(&str, &str); 4] = [
    ("in_port(1),eth_type(0x0800),ipv4(dst=10.1.1.1,frag=no)", "3"),
    ("in_port(3)", "1"),
    ("in_port(1),eth_type(0x0800),ipv4(proto=17,frag=no),udp(dst=81)", "drop"),
    ("in_port(2),eth(dst=02:00:00:00:00:02)", "set(eth(src=02:aa:00:00:00:01)),2"),
];

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let packets = prop::collection::vec((1..5u8, 1..5u8, 0..4u8, 1..4u8), 1..32);
    let step = prop_oneof![
        8 => packets.prop_map(Step::Packets),
        2 => prop::collection::vec(0..RULES.len(), 0..RULES.len()).prop_map(Step::Rules),
        2 => (0..BY_HAND.len()).prop_map(Step::AddByHand),
        1 => (0..BY_HAND.len()).prop_map(Step::DeleteByHand),
        1 => (0..BY_HAND.len()).prop_map(Step::ModifyByHand),
        1 => Just(Step::Sweep),
        1 => Just(Step::Pause),
    ];
    prop::collection::vec(step, 1..40)
}

/// Executes what flows by hand or else the rules say, packet by packet. `None` when several flows by hand match: then any may hold.
fn plainly(
    slowpath: &Slowpath,
    by_hand: &[(Match, Actions)],
    now: Instant,
    frame: &[u8],
) -> Option<Vec<(u32, Vec<u8>)>> {
    let packet = packet(frame);
    let key = extract(&packet);
    let mut matching = by_hand.iter().filter(|(m, _)| m.matches(&key));
    let actions = match (matching.next(), matching.next()) {
        (Some(_), Some(_)) => return None,
        (Some((_, actions)), None) => actions.clone(),
        (None, _) => slowpath.decide(&key, now, false).actions,
    };
    let (wire, mut pool, counters) = (Wire::default(), Pool::new(), PollerCounters::default());
    let mut outputs = outputs(&wire);
    execute(Way::of(&actions, None), &actions, &mut vec![packet], &mut outputs, &mut pool, &counters.fate);
    outputs.flush(now, &mut pool, &counters.fate);
    let mut sent = std::mem::take(&mut *wire.lock().unwrap());
    sent.sort();
    Some(sent)
}

proptest! {
    /// Caches, megaflows, revalidation and flows by hand may make a packet faster, never its outcome different: at every
    /// moment each packet leaves as if everything had been decided for it alone, by the rules as they are now.
    #[test]
    fn a_packet_leaves_as_if_decided_alone(steps in steps()) {
        let mut bench = Bench::new(200_000);
        bench.rules(&RULES);
        let mut by_hand: Vec<(Match, Actions)> = Vec::new();
        let mut now = bench.start + Duration::from_secs(1);
        let mut received = 0u64;
        for step in steps {
            now += Duration::from_millis(10);
            match step {
                Step::Packets(list) => {
                    received += list.len() as u64;
                    let frames: Vec<Vec<u8>> = list.iter().map(|&(s, d, t, p)| udp(s, d, 79 + u16::from(t), p)).collect();
                    let expected: Option<Vec<_>> =
                        frames.iter().map(|frame| plainly(&bench.slowpath, &by_hand, now, frame)).collect();
                    bench.process(now, &frames);
                    let mut sent = bench.sent();
                    sent.sort();
                    if let Some(expected) = expected {
                        let mut expected = expected.concat();
                        expected.sort();
                        prop_assert_eq!(sent, expected);
                    }
                }
                Step::Rules(which) => bench.rules(&which.iter().map(|&i| RULES[i]).collect::<Vec<_>>()),
                Step::AddByHand(i) => {
                    let matching = parse_flow(BY_HAND[i].0, &()).unwrap().matching;
                    let actions = parse_actions(BY_HAND[i].1, &()).unwrap();
                    let flow = NewFlow { ufid: None, matching, actions: actions.clone(), number: 0 };
                    let added = bench.pipeline.add_flow(now, flow);
                    let known = by_hand.iter().any(|(m, _)| *m == matching);
                    prop_assert_eq!(added.is_err(), known);
                    if !known {
                        by_hand.push((matching, actions));
                    }
                }
                Step::DeleteByHand(i) => {
                    let matching = parse_flow(BY_HAND[i].0, &()).unwrap().matching;
                    let known = by_hand.iter().any(|(m, _)| *m == matching);
                    let deleted = bench.pipeline.delete_flow(now, &Which::Match(Box::new(matching)));
                    prop_assert!(deleted.is_some() || !known);
                    by_hand.retain(|(m, _)| *m != matching);
                }
                Step::ModifyByHand(i) => {
                    let matching = parse_flow(BY_HAND[i].0, &()).unwrap().matching;
                    let actions = parse_actions("2", &()).unwrap();
                    let change = Change { actions: actions.clone(), clear: false, number: 1 };
                    if bench.pipeline.modify_flow(now, &Which::Match(Box::new(matching)), change).is_some() {
                        by_hand.retain(|(m, _)| *m != matching);
                        by_hand.push((matching, actions));
                    }
                }
                Step::Sweep => bench.sweep(now),
                Step::Pause => {
                    now += Duration::from_secs(11);
                    bench.sweep(now);
                    prop_assert_eq!(bench.pipeline.table.decided.len(), 0);
                    prop_assert_eq!(bench.pipeline.shared.flows(), 0);
                }
            }
            prop_assert_eq!(bench.pipeline.table.by_hand.len(), by_hand.len());
            prop_assert_eq!(bench.pipeline.shared.by_hand(), by_hand.len());
            prop_assert_eq!(bench.pipeline.shared.flows(), bench.pipeline.table.decided.len());
        }
        let counted: u64 = bench.pipeline.counters.lookup.list().iter().map(|(_, n)| n).sum();
        prop_assert_eq!(counted, received);
    }
}

#[test]
fn packets_of_one_flow_keep_their_order_through_hits_and_misses() {
    let mut bench = Bench::new(200_000);
    bench.rules(&["actions=output:3"]);
    let mut expected = Vec::new();
    for round in 0..20u8 {
        let frames: Vec<Vec<u8>> = (0..32u8)
            .map(|i| {
                let mut frame = udp(1 + i % 4, 1, 80, 1);
                let place = frame.len() - 3;
                (frame[place], frame[place + 1]) = (round, i);
                frame
            })
            .collect();
        expected.extend(frames.iter().cloned());
        bench.process(bench.start, &frames);
        if round == 10 {
            bench.rules(&["priority=1,actions=output:3"]);
        }
    }
    let sent = bench.sent();
    for flow in 0..4u8 {
        let of_flow = |frame: &&Vec<u8>| frame[frame.len() - 2] % 4 == flow;
        let got: Vec<&Vec<u8>> = sent.iter().map(|(_, frame)| frame).filter(of_flow).collect();
        assert_eq!(got, expected.iter().filter(of_flow).collect::<Vec<_>>());
    }
}

#[test]
fn the_packet_that_missed_counts_for_its_rule_but_not_for_its_flow() {
    let mut bench = Bench::new(200_000);
    bench.rules(&["actions=output:3"]);
    let frame = udp(1, 1, 80, 1);
    let key = extract(&packet(&frame));
    for _ in 0..3 {
        bench.process(bench.start, std::slice::from_ref(&frame));
    }
    let flow = bench.pipeline.table.decided.lookup(&key).unwrap();
    assert_eq!(bench.pipeline.table.flows.stats(flow).packets, 2);
    bench.sweep(bench.start + PERIOD);
    let dump = bench.slowpath.dump("", &(), bench.start + PERIOD).unwrap().concat();
    assert!(dump.contains("n_packets=3,"), "{dump}");
}

#[test]
fn above_the_flow_limit_packets_still_pass_and_are_counted_so() {
    let mut bench = Bench::new(2);
    bench.rules(&["udp,tp_dst=1,actions=drop", "actions=output:3"]);
    bench.rules(&[
        "ip,nw_dst=10.1.1.0/24,actions=output:3",
        "ip,nw_dst=10.1.2.0/24,actions=output:3",
        "ip,nw_dst=10.1.3.0/24,actions=output:3",
    ]);
    let frames: Vec<Vec<u8>> = (1..=3).map(|dst| udp(1, dst, 80, 1)).collect();
    bench.process(bench.start, &frames);
    assert_eq!(bench.sent().len(), 3);
    assert_eq!((bench.lookup("upcall_installed"), bench.lookup("upcall_flow_limit")), (2, 1));
    bench.process(bench.start, &frames);
    assert_eq!((bench.lookup("upcall_installed"), bench.lookup("upcall_flow_limit")), (2, 2));
}

#[test]
fn a_changed_rule_changes_the_megaflow_in_place() {
    let mut bench = Bench::new(200_000);
    bench.rules(&["udp,actions=output:3"]);
    let frame = udp(1, 1, 80, 1);
    bench.process(bench.start, std::slice::from_ref(&frame));
    let before = page(&bench.pipeline).flows[0].ufid;
    bench.rules(&["udp,actions=output:2"]);
    bench.process(bench.start, std::slice::from_ref(&frame));
    assert_eq!(bench.sent().iter().map(|(port, _)| *port).collect::<Vec<_>>(), [3, 2]);
    assert_eq!(page(&bench.pipeline).flows[0].ufid, before);
    assert_eq!(bench.pipeline.counters.doings.modified.get(), 1);
}

#[test]
fn a_runt_is_counted_and_goes_nowhere() {
    let mut bench = Bench::new(200_000);
    bench.rules(&["actions=output:3"]);
    bench.process(bench.start, &[vec![0; 13], udp(1, 1, 80, 1), vec![1]]);
    assert_eq!(bench.lookup("runt"), 2);
    assert_eq!(bench.sent().len(), 1);
}

#[test]
fn a_frame_longer_than_the_port_allows_is_dropped_and_counted() {
    let mut bench = Bench::new(200_000);
    bench.rules(&["actions=output:3"]);
    let key: Key = *parse_flow("eth_type(0x0800),ipv4(proto=17),udp()", &()).unwrap().matching.key();
    let fits = compose(&key, 1_514);
    let too_long = compose(&key, 1_515);
    bench.process(bench.start, &[fits, too_long]);
    assert_eq!(bench.sent().len(), 1);
    assert_eq!(bench.pipeline.counters.fate.dropped_too_long.get(), 1);
}

#[test]
fn megaflows_are_as_wide_as_the_rules_allow() {
    let mut bench = Bench::new(200_000);
    bench.rules(&["ip,nw_dst=10.1.1.0/24,actions=output:3"]);
    bench.process(bench.start, &[udp(1, 1, 80, 1)]);
    let page = page(&bench.pipeline);
    assert_eq!(page.flows[0].matching.mask().get(Field::Ipv4Dst), 0xffff_ff00);
    assert_eq!(page.flows[0].matching.mask().get(Field::TpDst), 0);
}

/// A flow by hand that only its number tells from others.
fn by_hand(tp_dst: u16) -> NewFlow {
    let text = format!("in_port(1),eth_type(0x0800),ipv4(proto=17,frag=no),udp(dst={tp_dst})");
    let matching = parse_flow(&text, &()).unwrap().matching;
    NewFlow { ufid: None, matching, actions: parse_actions("2", &()).unwrap(), number: 0 }
}

#[test]
fn a_flush_spares_flows_that_came_after_it() {
    let mut bench = Bench::new(200_000);
    for tp_dst in 0..SLICE as u16 + 10 {
        bench.pipeline.add_flow(bench.start, by_hand(tp_dst)).unwrap();
    }
    let (done, mut answer) = futures_channel::oneshot::channel();
    let job = Job::delete(&bench.pipeline, None, done).slice(bench.start, &mut bench.pipeline).unwrap();
    // Takes a number that the job has freed, and one that it has still to look at.
    for tp_dst in 1_000..1_200 {
        bench.pipeline.add_flow(bench.start, by_hand(tp_dst)).unwrap();
    }
    assert!(job.slice(bench.start, &mut bench.pipeline).is_none());
    assert_eq!(answer.try_recv(), Ok(Some(SLICE as usize + 10)));
    assert_eq!(bench.pipeline.table.by_hand.len(), 200);
}

#[test]
fn a_name_given_by_hand_stays_with_its_flow() {
    let mut bench = Bench::new(200_000);
    bench.rules(&["in_port=3,actions=output:2", "in_port=2,actions=output:3"]);
    let frame = udp(1, 1, 80, 3);
    bench.process(bench.start, std::slice::from_ref(&frame));
    let decided = page(&bench.pipeline).flows[0].ufid;
    bench.pipeline.delete_flow(bench.start, &Which::Ufid(decided)).unwrap();
    bench.pipeline.add_flow(bench.start, NewFlow { ufid: Some(decided), ..by_hand(80) }).unwrap();
    // The megaflow comes again, and goes again.
    bench.process(bench.start, std::slice::from_ref(&frame));
    bench.sweep(bench.start + Duration::from_secs(11));
    assert_eq!(bench.pipeline.table.decided.len(), 0);
    let found = bench.pipeline.get_flow(&Which::Ufid(decided)).unwrap();
    assert_eq!(found.matching, by_hand(80).matching);
}

#[test]
fn a_packet_that_its_rules_drop_is_counted_by_the_reason() {
    let mut bench = Bench::new(200_000);
    let frame = udp(1, 1, 80, 1);
    let cases: [(&[&str], &str); 5] = [
        (&[], "dropped_no_rule"),
        (&["actions=drop"], "dropped_by_action"),
        (&["ip,nw_ttl=64,actions=mod_nw_ttl:1,dec_ttl,output:2"], "dropped_ttl"),
        (&["actions=resubmit(,0)"], "dropped_too_deep"),
        (&["actions=output:9"], "dropped_no_port"),
    ];
    for (rules, reason) in cases {
        bench.rules(rules);
        let before = bench.pipeline.counters.fate.get(reason);
        // By upcall or revalidation first, then by hits.
        for _ in 0..3 {
            bench.process(bench.start, std::slice::from_ref(&frame));
        }
        assert_eq!(
            bench.pipeline.counters.fate.get(reason) - before,
            3,
            "{reason}: {:?}",
            bench.pipeline.counters.fate
        );
    }
    let total: u64 = bench.pipeline.counters.fate.list().iter().map(|(_, n)| n).sum();
    assert_eq!(total, 15);
}

/// The first page of flows.
fn page(pipeline: &Pipeline) -> Page {
    let (done, mut page) = oneshot::channel();
    let mut job = Some(Job::dump(0, done));
    while let Some(Job::Dump(rest)) = job.take() {
        job = rest.slice(pipeline).map(Job::Dump);
    }
    page.try_recv().unwrap().unwrap()
}
