//! [`Rig`]: a real [`Pipeline`] with made flows, and packets that go round: copied from templates between two measurements,
//! taken through the pipeline while the clock runs, and back in the pool at the end.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

use offloadd::datapath::counters::{PollerCounters, PortCounters};
use offloadd::datapath::flows::FlowRef;
use offloadd::datapath::hash::Seeds;
use offloadd::datapath::inbox::NewFlow;
use offloadd::datapath::output::{Output, PortLimits, Tx};
use offloadd::datapath::pipeline::Pipeline;
use offloadd::datapath::shared::Shared;
use offloadd::datapath::table::{FlowTable, Maker, Namer};
use offloadd::flow::key::{eth_type, ip_proto};
use offloadd::flow::{Action, Actions, Field, Key, Mask, Match, PortNo};
use offloadd::offload::Agent;
use offloadd::offload::mark::Mark;
use offloadd::packet::compose::compose;
use offloadd::packet::{BATCH, Packet, Pool};
use offloadd::port::{Sent, TxQueue};
use offloadd::slowpath::{Decision, Slowpath};

pub const IN: PortNo = PortNo(1);
pub const OUT: PortNo = PortNo(2);

/// Batches between two looks at the clock, which cost about as much as two packets.
const BATCHES: usize = 8;

/// Bytes of a frame without its check sequence: what Ethernet calls 64.
const FRAME: usize = 60;

/// A pipeline and the traffic for it.
pub struct Rig {
    pub pipeline: Pipeline,
    pub now: Instant,
    seeds: Seeds,
    templates: Vec<Template>,
    /// The template of the next packet.
    next: usize,
    batches: Vec<Vec<Packet>>,
}

struct Template {
    frame: Vec<u8>,
    mark: Option<Mark>,
}

/// A transmit queue that takes everything and keeps nothing.
pub struct Null;

impl TxQueue for Null {
    fn transmit(&mut self, _now: Instant, pool: &mut Pool, packets: &mut Vec<Packet>) -> Sent {
        let sent = Sent {
            packets: packets.len() as u64,
            bytes: packets.iter().map(|packet| packet.len() as u64).sum(),
            ..Sent::default()
        };
        pool.give_all(packets);
        sent
    }
}

impl Rig {
    /// No flows and no traffic yet; a rule sends everything to [`OUT`].
    pub fn new(agent: Option<Agent>) -> Rig {
        let now = Instant::now();
        let slowpath = Arc::new(Slowpath::default());
        slowpath.set_ports(vec![(IN, "in".to_owned()), (OUT, "out".to_owned())]);
        slowpath.add_rules(["priority=0,actions=output:2"], &(), now).expect("the rule is right");
        let shared = Arc::new(Shared::new(slowpath, now, usize::MAX / 2, Duration::from_secs(10), true));
        let seeds = Seeds::random();
        let table = FlowTable::new(seeds.clone(), Namer::random(), agent);
        let mut pipeline = Pipeline::new(shared, Arc::new(PollerCounters::default()), table, seeds.clone());
        let limits = Arc::new(PortLimits { mtu: AtomicU32::new(1_500) });
        let null = Tx::Own(Box::new(Null));
        pipeline.outputs.add(OUT, Output::new(null, false, false, limits, Arc::new(PortCounters::default())));
        let batches = (0..BATCHES).map(|_| Vec::with_capacity(BATCH)).collect();
        Rig { pipeline, now, seeds, templates: Vec::new(), next: 0, batches }
    }

    /// Makes the traffic `flows` flows in turn, all of them of one megaflow that looks at `mask`.
    pub fn wide(flows: u32, mask: &Mask, actions: &Actions) -> Rig {
        let mut rig = Rig::new(None);
        rig.install(&Match::new(&key(0), mask), actions);
        rig.traffic(flows);
        rig
    }

    /// Makes the traffic `flows` flows in turn with a megaflow each, in turn of each of `masks`.
    pub fn exact(flows: u32, masks: &[Mask], actions: &Actions) -> Rig {
        let mut rig = Rig::new(None);
        for flow in 0..flows {
            rig.install(&Match::new(&key(flow), &masks[flow as usize % masks.len()]), actions);
        }
        rig.traffic(flows);
        rig
    }

    /// Gives the packets of each flow a mark that is bound to its megaflow.
    pub fn marked(mut self) -> Rig {
        for flow in 0..self.templates.len() {
            let mark = Mark::new(flow as u32 + 1).expect("not 0");
            let reference = self.find(&key(flow as u32));
            self.pipeline.table.marks.bind(mark, reference);
            self.templates[flow].mark = Some(mark);
        }
        self
    }

    /// Enters every flow in the exact-match cache.
    pub fn cached(mut self) -> Rig {
        for flow in 0..self.templates.len() {
            let key = key(flow as u32);
            let reference = self.find(&key);
            let table = &mut self.pipeline.table;
            table.emc.insert(&key, self.seeds.key(&key), reference, &table.flows);
        }
        self
    }

    fn find(&mut self, key: &Key) -> FlowRef {
        let table = &mut self.pipeline.table;
        let index = table.decided.lookup(key).expect("every flow of the traffic has a megaflow");
        table.flows.reference(index)
    }

    fn install(&mut self, matching: &Match, actions: &Actions) {
        // A list of its own, as a decision makes it.
        let actions = &Actions::new(actions.to_vec());
        let decision = Decision {
            mask: *matching.mask(),
            actions: actions.clone(),
            dropped: None,
            rules: Vec::new(),
            lookups: Vec::new(),
            learned: None,
            epoch: self.pipeline.shared.slowpath.epoch(),
        };
        let (epoch, number) = (self.pipeline.epoch(), self.pipeline.shared.decision_number());
        let maker = Maker::Decided { decision: Box::new(decision), epoch };
        let flow = NewFlow { ufid: None, matching: *matching, actions: actions.clone(), number };
        self.pipeline.table.insert(self.now, flow, maker);
    }

    /// Makes the traffic `flows` flows in turn.
    pub fn traffic(&mut self, flows: u32) {
        self.templates = (0..flows).map(|flow| Template { frame: compose(&key(flow), FRAME), mark: None }).collect();
    }

    /// Lets the exact-match cache rest, as it does when hardly anything hits, so that the classifier is asked.
    pub fn pass_by_emc(&mut self) {
        while self.pipeline.table.emc.is_worthwhile(8_192) {
            self.pipeline.table.emc.passed(1, 1);
        }
    }

    /// Makes the next packets, in buffers of the pool.
    pub fn prepare(&mut self) {
        for batch in &mut self.batches {
            for _ in 0..BATCH {
                let template = &self.templates[self.next];
                self.next = if self.next + 1 == self.templates.len() { 0 } else { self.next + 1 };
                let mut packet = self.pipeline.pool.take();
                packet.set_len(template.frame.len());
                packet.bytes_mut().copy_from_slice(&template.frame);
                packet.meta.in_port = IN;
                packet.meta.mark = template.mark;
                batch.push(packet);
            }
        }
    }

    /// Takes the packets made through the pipeline; answers with the time that took.
    pub fn run(&mut self) -> Duration {
        let begun = Instant::now();
        for batch in &mut self.batches {
            self.pipeline.process(self.now, batch);
        }
        begun.elapsed()
    }

    /// The time of at least `packets` packets, and how many those were.
    pub fn measure(&mut self, packets: u64, before: impl Fn(&mut Rig), after: impl Fn(&mut Rig)) -> (Duration, u64) {
        let (mut time, mut done) = (Duration::ZERO, 0);
        while done < packets {
            before(self);
            self.prepare();
            time += self.run();
            done += (BATCHES * BATCH) as u64;
            after(self);
        }
        (time, done)
    }

    /// Removes every flow, so that the next packet of each is unknown again.
    pub fn forget(&mut self) {
        for index in 0..self.pipeline.table.flows.slots() {
            if self.pipeline.table.remove(self.now, index, None).is_some() {
                self.pipeline.shared.forget(1);
            }
        }
    }
}

/// The key of a UDP packet of flow `n`: source address and source port say which.
pub fn key(n: u32) -> Key {
    let mut key = Key::ZERO;
    key.set(Field::InPort, IN.0);
    key.set(Field::EthDst, 0x0200_0000_0002u64);
    key.set(Field::EthSrc, 0x0200_0000_0001u64);
    key.set(Field::EthType, eth_type::IPV4);
    key.set(Field::IpProto, ip_proto::UDP);
    key.set(Field::IpTtl, 64u8);
    key.set(Field::Ipv4Src, 0x0a00_0000 + n);
    key.set(Field::Ipv4Dst, 0xac10_0001u32);
    key.set(Field::TpSrc, (n & 0xffff) as u16);
    key.set(Field::TpDst, 80u16);
    key
}

/// What a rule without a match makes megaflows look at.
pub fn wide_mask() -> Mask {
    let mut mask = Mask::EMPTY;
    [Field::InPort, Field::EthType, Field::IpFrag].into_iter().for_each(|field| mask.add_field(field));
    mask
}

/// Port, protocol, and the five-tuple but for the last `32 - prefix` bits of the destination.
pub fn tuple_mask(prefix: u32) -> Mask {
    let mut mask = wide_mask();
    [Field::IpProto, Field::Ipv4Src, Field::TpSrc, Field::TpDst].into_iter().for_each(|field| mask.add_field(field));
    mask.add(Field::Ipv4Dst, u128::from(u32::MAX.unbounded_shl(32 - prefix)));
    mask
}

/// `n` of them, all different.
pub fn tuple_masks(n: u32) -> Vec<Mask> {
    (0..n)
        .map(|i| {
            let mut mask = tuple_mask(32 - i % 32);
            mask.add(Field::IpTos, u128::from(i / 32));
            mask
        })
        .collect()
}

pub fn output() -> Actions {
    Actions::new(vec![Action::Output(OUT)])
}
