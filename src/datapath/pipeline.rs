//! THE STORY: what happens to a batch of packets.
//!
//! ```text
//!  received ─► 1 mark ──hit─────────────────────────────────┐
//!                └─► key ─► 2 EMC ──hit─────────────────────┤
//!                             └─► 3 (a signature cache)     ├─► groups by flow ─► actions ─► outputs
//!                                   └─► 4 classifier ──hit──┤
//!                                          └─► 5 upcall ────┘ (after the groups, one by one)
//! ```
//!
//! Packets of one flow keep their order: they fall into one group however they were found, and a packet that needs an
//! upcall has, in the same batch, no later packet of its flow that was found without one.
//!
//! Nothing on the way to an output locks, allocates, or asks the kernel or a device; the lists below are kept and used again.

use std::sync::Arc;
use std::time::Instant;

use super::classifier::bits;
use super::counters::PollerCounters;
use super::execute::{Way, execute};
use super::flows::NO_GROUP;
use super::hash::Seeds;
use super::output::Outputs;
use super::shared::Shared;
use super::table::FlowTable;
use crate::flow::{Field, Key};
use crate::packet::extract::{extract, extract_into};
use crate::packet::{BATCH, Packet, Pool};

/// A frame shorter than this is no Ethernet frame.
const RUNT: usize = 14;

/// One poller's way from received packets to outputs.
pub struct Pipeline {
    pub shared: Arc<Shared>,
    pub counters: Arc<PollerCounters>,
    pub table: FlowTable,
    pub outputs: Outputs,
    pub pool: Pool,
    seeds: Seeds,
    /// Room to work in.
    keys: Box<[Key; BATCH]>,
    /// Of whole keys, for the exact-match cache alone.
    hashes: Box<[u64; BATCH]>,
    found: Box<[u32; BATCH]>,
    groups: Vec<Group>,
    /// Packets for upcalls, with whether a lookup counter has them already.
    missed: Vec<(Packet, Key, bool)>,
    one: Vec<Packet>,
}

/// The packets of a batch that belong to one flow.
#[derive(Default)]
struct Group {
    flow: u32,
    count: u32,
    bytes: u64,
    tcp_flags: u16,
    /// `None`: the flow is gone.
    way: Option<Way>,
    /// In the order they came; filled only when the groups of a batch go different ways.
    packets: Vec<Packet>,
}

impl Pipeline {
    pub fn new(shared: Arc<Shared>, counters: Arc<PollerCounters>, table: FlowTable, seeds: Seeds) -> Pipeline {
        Pipeline {
            shared,
            counters,
            table,
            outputs: Outputs::new(),
            pool: Pool::new(),
            seeds,
            keys: Box::new([Key::ZERO; BATCH]),
            hashes: Box::new([0; BATCH]),
            found: Box::new([0; BATCH]),
            groups: Vec::with_capacity(BATCH),
            missed: Vec::with_capacity(BATCH),
            one: Vec::with_capacity(1),
        }
    }

    /// Takes up to [`BATCH`] received packets through the switch and leaves the list empty.
    pub fn process(&mut self, now: Instant, packets: &mut Vec<Packet>) {
        debug_assert!(packets.len() <= BATCH);
        self.counters.doings.batches.add(1);
        self.drop_runts(packets);

        let unmarked = self.find_by_mark(packets);
        let missed = self.find_by_key(packets, unmarked);
        let groups = self.group(packets, unmarked, missed);
        let way = self.settle(now, groups);
        self.execute(packets, groups, missed, way);
        self.upcalls(now);
        let sent = self.outputs.flush(now, &mut self.pool, &self.counters.fate);
        self.counters.doings.tx_batches.add(sent);
    }

    fn drop_runts(&mut self, packets: &mut Vec<Packet>) {
        if packets.iter().all(|packet| packet.len() >= RUNT) {
            return;
        }
        for runt in packets.extract_if(.., |packet| packet.len() < RUNT) {
            self.counters.lookup.runt.add(1);
            self.pool.give(runt);
        }
    }

    /// Step 1: a live mark names the flow; neither key nor lookup is needed. Answers with the packets that need them.
    #[inline]
    fn find_by_mark(&mut self, packets: &[Packet]) -> u32 {
        let mut unmarked = 0u32;
        let mut unbound = 0;
        for (i, packet) in packets.iter().enumerate() {
            let Some(mark) = packet.meta.mark else {
                unmarked |= 1 << i;
                continue;
            };
            match self.table.marks.get(mark).filter(|flow| self.table.flows.is_live(*flow)) {
                Some(flow) => self.found[i] = flow.index,
                None => {
                    unmarked |= 1 << i;
                    unbound += 1;
                }
            }
        }
        let hits = packets.len() as u64 - u64::from(unmarked.count_ones());
        if hits > 0 {
            self.counters.lookup.mark_hit.add(hits);
        }
        if unbound > 0 {
            self.counters.doings.mark_unbound.add(unbound);
        }
        unmarked
    }

    /// Steps 2 to 4: by the packet's key. Answers with the packets that no flow matches.
    #[inline]
    fn find_by_key(&mut self, packets: &[Packet], unmarked: u32) -> u32 {
        if unmarked == 0 {
            return 0;
        }
        for i in bits(unmarked) {
            extract_into(&packets[i], &mut self.keys[i]);
        }
        let mut wanted = unmarked;
        let ask_emc = self.table.emc.is_worthwhile(unmarked.count_ones());
        if ask_emc {
            for i in bits(unmarked) {
                self.hashes[i] = self.seeds.key(&self.keys[i]);
            }
            for i in bits(unmarked) {
                if let Some(flow) = self.table.emc.lookup(&self.keys[i], self.hashes[i], &self.table.flows) {
                    self.found[i] = flow;
                    wanted &= !(1 << i);
                }
            }
            self.counters.lookup.emc_hit.add(u64::from((unmarked ^ wanted).count_ones()));
        }
        if wanted == 0 {
            return 0;
        }
        let asked = wanted;
        let mut probes = 0;
        if !self.table.by_hand.is_empty() {
            (wanted, probes) = self.table.by_hand.lookup_batch(&self.keys[..], wanted, &mut self.found[..]);
        }
        let (missed, more) = self.table.decided.lookup_batch(&self.keys[..], wanted, &mut self.found[..]);
        let hits = asked ^ missed;
        self.table.emc.passed(hits.count_ones(), probes + more);
        if ask_emc {
            for i in bits(hits) {
                let flow = self.table.flows.reference(self.found[i]);
                self.table.emc.offer(&self.keys[i], self.hashes[i], flow, &self.table.flows);
            }
        }
        self.counters.lookup.megaflow_hit.add(u64::from(hits.count_ones()));
        self.counters.doings.subtable_probes.add(probes + more);
        missed
    }

    /// Finds the groups of the packets that have a flow, one a flow, and answers with their number. From here on `found`
    /// says which group, not which flow.
    #[inline]
    fn group(&mut self, packets: &[Packet], keyed: u32, missed: u32) -> usize {
        let mut groups = 0;
        for (i, packet) in packets.iter().enumerate() {
            if missed & (1 << i) != 0 {
                continue;
            }
            let flow = self.found[i];
            let hot = self.table.flows.hot_mut(flow);
            if hot.group == NO_GROUP {
                hot.group = groups as u16;
                if groups == self.groups.len() {
                    self.groups.push(Group { packets: Vec::with_capacity(BATCH), ..Group::default() });
                }
                let group = &mut self.groups[groups];
                (group.flow, group.count, group.bytes, group.tcp_flags) = (flow, 0, 0, 0);
                groups += 1;
            }
            self.found[i] = hot.group.into();
            let group = &mut self.groups[hot.group as usize];
            group.count += 1;
            group.bytes += packet.len() as u64;
            if keyed & (1 << i) != 0 {
                group.tcp_flags |= self.keys[i].get(Field::TcpFlags) as u16;
            }
        }
        groups
    }

    /// Counts each group for its flow, after deciding anew for a flow that is older than the rules. Answers with the way
    /// that all of them go, if they do.
    #[inline]
    fn settle(&mut self, now: Instant, groups: usize) -> Option<Way> {
        if groups == 0 {
            return None;
        }
        let nanos = self.shared.nanos(now);
        let epoch = self.epoch();
        let mut same = true;
        for i in 0..groups {
            let flow = self.groups[i].flow;
            let hot = self.table.flows.hot_mut(flow);
            hot.group = NO_GROUP;
            if hot.epoch < epoch && !self.revalidate(now, flow) {
                self.groups[i].way = None;
                same = false;
                continue;
            }
            let group = &mut self.groups[i];
            let hot = self.table.flows.hot_mut(flow);
            hot.packets += u64::from(group.count);
            hot.bytes += group.bytes;
            hot.tcp_flags |= group.tcp_flags;
            hot.used_ns = nanos;
            let way = hot.way();
            group.way = Some(way);
            // Two lists are not compared.
            same &= i == 0 || (way != Way::List && self.groups[0].way == Some(way));
        }
        self.groups[0].way.filter(|_| same)
    }

    /// Executes the actions of each group, on all packets at once if they all go one `way`.
    #[inline]
    fn execute(&mut self, packets: &mut Vec<Packet>, groups: usize, missed: u32, way: Option<Way>) {
        let (outputs, pool, fate) = (&mut self.outputs, &mut self.pool, &self.counters.fate);
        if let Some(way) = way
            && missed == 0
        {
            let actions = self.table.flows.hot(self.groups[0].flow).actions();
            execute(way, actions, packets, outputs, pool, fate);
            return;
        }
        for (i, packet) in packets.drain(..).enumerate() {
            if missed & (1 << i) != 0 {
                self.missed.push((packet, self.keys[i], false));
            } else {
                self.groups[self.found[i] as usize].packets.push(packet);
            }
        }
        for group in &mut self.groups[..groups] {
            if let Some(way) = group.way {
                execute(way, self.table.flows.hot(group.flow).actions(), &mut group.packets, outputs, pool, fate);
                continue;
            }
            // The flow is gone: its packets are decided one by one. They stay counted by how they found the flow.
            for packet in group.packets.drain(..) {
                let key = extract(&packet);
                self.missed.push((packet, key, true));
            }
        }
    }

    /// Step 5: what no flow matched, in order of arrival.
    fn upcalls(&mut self, now: Instant) {
        if self.missed.is_empty() {
            return;
        }
        let begun = Instant::now();
        let mut missed = std::mem::take(&mut self.missed);
        for (packet, key, counted) in missed.drain(..) {
            self.one.push(packet);
            self.upcall(now, &key, counted);
        }
        self.missed = missed;
        self.counters.doings.upcall_ns.add(begun.elapsed().as_nanos() as u64);
    }

    /// The packet under upcall.
    pub(super) fn one(&mut self) -> &mut Vec<Packet> {
        &mut self.one
    }

    /// What a flow's epoch must not be below: rises when a rule, a port or a flow added by hand may have changed its actions.
    #[inline]
    pub fn epoch(&self) -> u64 {
        // Both only rise, so the sum tells any change of either.
        self.shared.slowpath.epoch() + self.table.by_hand_epoch()
    }
}
