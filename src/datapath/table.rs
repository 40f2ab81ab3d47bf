//! [`FlowTable`]: a poller's flows with everything that points at them, kept in step.
//!
//! ```text
//!   marks ──┐
//!   emc ────┼──► flows (hot | rest) ──► offload cell, shared with the worker
//!   by hand ┤
//!   decided ┘    two classifiers: flows added by hand are asked first
//! ```
//!
//! A flow added by hand holds for every packet that it matches, whatever the rules decided before. So its classifier is
//! asked first, flows that were decided are made not to overlap it ([`FlowTable::separate`]), and adding one raises the
//! epoch, so that each flow decided earlier is looked at again before it is next used.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc as StdArc;
use std::time::Instant;

use super::classifier::Classifier;
use super::emc::Emc;
use super::flows::{BY_HAND, Flow, FlowRef, Flows, Pace};
use super::hash::Seeds;
use super::inbox::NewFlow;
use super::marks::Marks;
use crate::flow::field::FIELDS;
use crate::flow::{Actions, Key, Mask, Match, Ufid};
use crate::offload::mark::Mark;
use crate::offload::state::FlowSlot;
use crate::offload::{Agent, FlowStats, Heir, Level, OffloadCell, Reason, Record, Standing, Trouble};
use crate::slowpath::Decision;

/// Flows that are looked at between two batches.
const SLICE: u32 = 128;

/// Flows that were turned away and ask again between two batches: few, since each batch with them waits for them.
const ASKS: u32 = 4;

/// Flows of one hand-made mask up to which each is told apart by itself; above, by the whole mask.
const SEPARATE_EACH: usize = 32;

/// A poller's flows, and all that finds them.
pub struct FlowTable {
    pub flows: Flows,
    pub marks: Marks,
    pub emc: Emc,
    pub by_hand: Classifier,
    pub decided: Classifier,
    by_name: HashMap<Ufid, u32, foldhash::fast::RandomState>,
    /// This poller's end of the offload path; `None` when there is no device.
    agent: Option<Agent>,
    /// Flows that the full offload queue turned away, in the order in which they ask again. Some may be dead by now.
    turned_away: VecDeque<FlowRef>,
    /// Where the adoption of all flows by a new agent goes on.
    adopting: Option<u32>,
    /// Flows made so far.
    births: u64,
    /// Rises with each flow added by hand.
    by_hand_epoch: u64,
    namer: Namer,
}

/// Names megaflows: the same match has the same name in every poller of a process.
#[derive(Clone)]
pub struct Namer {
    high: Seeds,
    low: Seeds,
}

impl Namer {
    pub fn random() -> Namer {
        Namer { high: Seeds::random(), low: Seeds::random() }
    }

    /// Depends on the masked key *and* the mask.
    pub fn name(&self, matching: &Match) -> Ufid {
        let half = |seeds: &Seeds| {
            let mask = Key::from_words(*matching.mask().words());
            seeds.list(&[seeds.key(matching.key()), seeds.key(&mask)])
        };
        Ufid(u128::from(half(&self.high)) << 64 | u128::from(half(&self.low)))
    }
}

/// Whose a flow is.
pub enum Maker {
    Hand,
    /// The slow path; `epoch` is what [`Pipeline::epoch`](super::pipeline::Pipeline::epoch) was when it began to decide.
    Decided {
        decision: Box<Decision>,
        epoch: u64,
    },
}

impl FlowTable {
    pub fn new(seeds: Seeds, namer: Namer, agent: Option<Agent>) -> FlowTable {
        FlowTable {
            flows: Flows::new(),
            marks: Marks::new(),
            emc: Emc::new(),
            by_hand: Classifier::new(seeds.clone()),
            decided: Classifier::new(seeds),
            by_name: HashMap::default(),
            agent,
            turned_away: VecDeque::new(),
            adopting: None,
            births: 0,
            by_hand_epoch: 0,
            namer,
        }
    }

    /// Rises when what was decided earlier may no longer hold because of a flow added by hand.
    #[inline]
    pub fn by_hand_epoch(&self) -> u64 {
        self.by_hand_epoch
    }

    /// The flow with exactly this match.
    pub fn find(&self, matching: &Match) -> Option<u32> {
        self.by_hand.find(matching).or_else(|| self.decided.find(matching))
    }

    /// Flows made so far: whoever goes through the table can tell those that came later.
    pub fn births(&self) -> u64 {
        self.births
    }

    /// The flow with this name.
    pub fn named(&self, ufid: Ufid) -> Option<u32> {
        self.by_name.get(&ufid).copied()
    }

    /// Starts a flow's software counts from 0 again.
    pub fn clear_counts(&mut self, index: u32) {
        let hot = self.flows.hot_mut(index);
        (hot.packets, hot.bytes, hot.used_ns, hot.tcp_flags) = (0, 0, 0, 0);
        let device = self.flows.get(index).map(Flow::device_stats).unwrap_or_default();
        if let Some(flow) = self.flows.get_mut(index) {
            flow.cleared = device;
            flow.credited = FlowStats::default();
        }
    }

    /// Adds a flow and asks for it to be offloaded. The caller has seen that no flow has this match.
    pub fn insert(&mut self, now: Instant, new: NewFlow, maker: Maker) -> FlowRef {
        let NewFlow { ufid, matching, actions, number } = new;
        let ufid = ufid.unwrap_or_else(|| self.namer.name(&matching));
        let next = self.flows.next_ref();
        let cell = self.agent.as_ref().map(|agent| {
            let slot = FlowSlot { index: next.index, generation: next.generation };
            agent.adopt(now, slot, ufid, matching, actions.clone(), number)
        });
        let turned_away = cell.as_ref().is_some_and(|cell| is_turned_away(cell));
        let (hash, epoch, decision) = match maker {
            Maker::Hand => {
                self.by_hand_epoch += 1;
                (self.by_hand.insert(&matching, next.index), BY_HAND, None)
            }
            Maker::Decided { decision, epoch } => (self.decided.insert(&matching, next.index), epoch, Some(decision)),
        };
        let flow = Flow {
            ufid,
            matching,
            born: self.births,
            hash,
            created: now,
            decision,
            stations_epoch: 0,
            cell,
            bound: None,
            credited: FlowStats::default(),
            cleared: FlowStats::default(),
            pace: Pace::default(),
        };
        self.births += 1;
        if turned_away {
            self.turn_away(next);
        }
        // A name given by hand stays with the flow that it was given to.
        let name = self.by_name.entry(ufid).or_insert(next.index);
        if flow.is_by_hand() {
            *name = next.index;
        }
        self.flows.insert(flow, actions, epoch)
    }

    /// Takes a flow out of everything; its mark means nothing from now on, and what the device still counts is the heir's.
    pub fn remove(&mut self, now: Instant, index: u32, heir: Option<StdArc<dyn Heir>>) -> Option<Flow> {
        let reference = self.flows.reference(index);
        let flow = self.flows.remove(index)?;
        let classifier = if flow.is_by_hand() { &mut self.by_hand } else { &mut self.decided };
        classifier.remove(&flow.matching, flow.hash, index);
        if self.by_name.get(&flow.ufid) == Some(&index) {
            self.by_name.remove(&flow.ufid);
        }
        if let Some(mark) = flow.bound {
            self.marks.unbind(mark, reference);
        }
        if let (Some(agent), Some(cell)) = (&self.agent, &flow.cell) {
            if let Some(heir) = heir {
                cell.leave_to(heir);
            }
            agent.release(now, cell);
        }
        Some(flow)
    }

    /// Replaces a flow's actions, here at once and in the device as soon as it can.
    pub fn modify(&mut self, now: Instant, index: u32, actions: Actions, decision_number: u64) {
        self.flows.hot_mut(index).set_actions(actions.clone(), None);
        if let (Some(agent), Some(cell)) = (&self.agent, self.flows.get(index).and_then(|flow| flow.cell.as_ref())) {
            agent.update(now, cell, actions, decision_number);
        }
    }

    /// Asks for a flow that was not worth offloading, or while offload was switched off, if it is by now.
    pub fn consider(&mut self, now: Instant, index: u32) {
        let Some(agent) = &self.agent else { return };
        let Some(flow) = self.flows.get(index) else { return };
        let Some(cell) = &flow.cell else { return };
        if let Standing::Refused(Reason::Policy | Reason::Disabled) = cell.standing() {
            agent.consider(now, cell, &self.record(now, index, flow));
            if is_turned_away(cell) {
                self.turn_away(self.flows.reference(index));
            }
        }
    }

    fn record(&self, now: Instant, index: u32, flow: &Flow) -> Record {
        Record {
            packets: self.flows.stats(index).packets,
            age: now.saturating_duration_since(flow.created),
            rate: flow.pace.rate,
        }
    }

    /// Whether the device may forward a flow's packets by itself.
    pub fn is_in_device(&self, flow: &Flow) -> bool {
        self.standing(flow) == Some(Standing::Offloaded(Level::Full))
    }

    /// Whether the device counts packets that no poller sees.
    pub fn counts_in_device(&self) -> bool {
        self.agent.as_ref().is_some_and(|agent| agent.level() == Level::Full)
    }

    /// Where a flow stands on its trip to the device; `None` without a device.
    pub fn standing(&self, flow: &Flow) -> Option<Standing> {
        Some(self.agent.as_ref()?.standing(flow.cell.as_ref()?))
    }

    /// Why a flow is not as far in the device as it could be.
    pub fn trouble(&self, flow: &Flow) -> Option<StdArc<Trouble>> {
        self.agent.as_ref()?.trouble(flow.cell.as_ref()?)
    }

    /// What there is to do beside packets, a little at a time: flows that were turned away ask again while there is room, and
    /// a new agent adopts.
    #[inline]
    pub fn chores(&mut self, now: Instant) {
        if !self.turned_away.is_empty() {
            self.ask_again(now);
        }
        if let Some(from) = self.adopting {
            self.adopt_slice(now, from);
        }
    }

    /// Whether [`FlowTable::chores`] has something to do that nobody will wake us for.
    pub fn has_chores(&self) -> bool {
        self.adopting.is_some()
    }

    fn turn_away(&mut self, flow: FlowRef) {
        // Dead flows leave the list when it grows: it is never longer than twice the flows there are, and a few.
        if self.turned_away.len() > 2 * self.flows.len() + 64 {
            let flows = &self.flows;
            self.turned_away.retain(|flow| flows.is_live(*flow));
        }
        self.turned_away.push_back(flow);
    }

    fn ask_again(&mut self, now: Instant) {
        let Some(agent) = &self.agent else { return self.turned_away.clear() };
        for _ in 0..ASKS {
            let Some(next) = self.turned_away.front().copied() else { break };
            let flow = self.flows.get(next.index).filter(|_| self.flows.is_live(next));
            if let Some(cell) = flow.and_then(|flow| flow.cell.as_ref()).filter(|cell| is_turned_away(cell)) {
                if !agent.has_room(cell) {
                    break;
                }
                agent.ask_again(now, cell);
                if is_turned_away(cell) {
                    break;
                }
            }
            self.turned_away.pop_front();
        }
    }

    /// Replaces this poller's end of the offload path: the device was restarted and knows nothing. No mark means anything from
    /// now on, and each flow asks anew, a slice at a time.
    pub fn set_agent(&mut self, agent: Agent) {
        if self.agent.as_ref().is_some_and(|present| present.is_of_same_life(&agent)) {
            // This poller began after the restart.
            return;
        }
        self.marks = Marks::new();
        self.turned_away.clear();
        self.agent = Some(agent);
        self.adopting = Some(0);
    }

    fn adopt_slice(&mut self, now: Instant, from: u32) {
        let slots = self.flows.slots();
        let to = slots.min(from.saturating_add(SLICE));
        for index in from..to {
            let (Some(agent), Some(flow)) = (&self.agent, self.flows.get(index)) else { continue };
            // One that was born since has a cell of this agent's.
            let Some(old) = flow.cell.as_ref().filter(|cell| !agent.is_mine(cell)) else { continue };
            let wants = old.wants();
            let record = self.record(now, index, flow);
            let actions = self.flows.hot(index).actions().clone();
            let cell = agent.adopt(now, old.slot(), flow.ufid, flow.matching, actions, wants.decision);
            agent.consider(now, &cell, &record);
            let (turned_away, reference) = (is_turned_away(&cell), self.flows.reference(index));
            self.flows.keep_device_counts(index);
            if let Some(flow) = self.flows.get_mut(index) {
                flow.cell = Some(cell);
                flow.bound = None;
            }
            if turned_away {
                self.turn_away(reference);
            }
        }
        self.adopting = (to < slots).then_some(to);
    }

    /// Binds and unbinds the marks that the offload worker changed since the last call. One load when there are none.
    #[inline]
    pub fn take_events(&mut self) {
        let Some(agent) = &self.agent else { return };
        if !agent.has_events() {
            return;
        }
        let (flows, marks) = (&mut self.flows, &mut self.marks);
        agent.drain(|cell| {
            let slot = cell.slot();
            let reference = FlowRef { index: slot.index, generation: slot.generation };
            if !flows.is_live(reference) {
                return; // Its mark was unbound when it died.
            }
            let Some(flow) = flows.get_mut(reference.index) else { return };
            let wanted: Option<Mark> = cell.mark();
            if flow.bound != wanted {
                if let Some(old) = flow.bound {
                    marks.unbind(old, reference);
                }
                if let Some(new) = wanted {
                    marks.bind(new, reference);
                }
                flow.bound = wanted;
            }
        });
    }

    /// Whether the worker changed a mark since the last [`FlowTable::take_events`].
    pub fn has_events(&self) -> bool {
        self.agent.as_ref().is_some_and(Agent::has_events)
    }

    /// Adds to `mask`, the bits that a decision about `key` looked at, what tells `key` from every flow added by hand;
    /// `false` when one of them matches `key`: then nothing may be installed.
    pub fn separate(&self, key: &Key, mask: &mut Mask) -> bool {
        for subtable in self.by_hand.subtables() {
            if subtable.len() > SEPARATE_EACH {
                if self.by_hand.find(&Match::new(key, subtable.mask())).is_some() {
                    return false;
                }
                mask.add_all(subtable.mask());
                continue;
            }
            for flow in subtable.flows().filter_map(|index| self.flows.get(index)) {
                if !tell_apart(&flow.matching, key, mask) {
                    return false;
                }
            }
        }
        true
    }
}

fn is_turned_away(cell: &OffloadCell) -> bool {
    cell.standing() == Standing::Refused(Reason::QueueFull)
}

/// Makes `mask` hold a bit in which `key` differs from `other`; `false` when it differs in none that `other` looks at.
fn tell_apart(other: &Match, key: &Key, mask: &mut Mask) -> bool {
    let differs = |i: usize| (other.key().words()[i] ^ key.words()[i]) & other.mask().words()[i];
    if (0..key.words().len()).any(|i| differs(i) & mask.words()[i] != 0) {
        return true;
    }
    let different =
        FIELDS.iter().find(|def| (other.key().get(def.field) ^ key.get(def.field)) & other.mask().get(def.field) != 0);
    match different {
        Some(def) => {
            mask.add(def.field, other.mask().get(def.field));
            true
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{Action, Field, PortNo};
    use crate::offload::{Offload, OffloadConfig, Wanted, backend};

    fn table() -> FlowTable {
        FlowTable::new(Seeds::random(), Namer::random(), None)
    }

    fn matching(fields: &[(Field, u128)]) -> Match {
        let (mut key, mut mask) = (Key::ZERO, Mask::EMPTY);
        for (field, value) in fields {
            key.set(*field, *value);
            mask.add_field(*field);
        }
        Match::new(&key, &mask)
    }

    fn add(table: &mut FlowTable, matching: Match, maker: Maker) -> FlowRef {
        let actions = Actions::new(vec![Action::Output(PortNo(1))]);
        table.insert(Instant::now(), NewFlow { ufid: None, matching, actions, number: 0 }, maker)
    }

    #[test]
    fn the_name_of_a_megaflow_covers_its_mask() {
        let namer = Namer::random();
        let narrow = matching(&[(Field::InPort, 1), (Field::TpDst, 0)]);
        let wide = matching(&[(Field::InPort, 1)]);
        assert_eq!(narrow.key(), wide.key());
        assert_ne!(namer.name(&narrow), namer.name(&wide));
        assert_eq!(namer.name(&wide), namer.clone().name(&wide));
    }

    #[test]
    fn a_decision_is_told_apart_from_flows_added_by_hand() {
        for crowd in [1, SEPARATE_EACH as u128 + 8] {
            let mut table = table();
            for i in 0..crowd {
                add(&mut table, matching(&[(Field::InPort, 1), (Field::TpDst, 80 + i)]), Maker::Hand);
            }
            let mut key = Key::ZERO;
            key.set(Field::InPort, 1u32);
            key.set(Field::TpDst, 79u32);
            let mut mask = Mask::EMPTY;
            assert!(table.separate(&key, &mut mask));
            let decided = Match::new(&key, &mask);
            for i in 0..crowd {
                assert!(!decided.overlaps(&matching(&[(Field::InPort, 1), (Field::TpDst, 80 + i)])), "{crowd} {i}");
            }
            key.set(Field::TpDst, 80u32);
            assert!(!table.separate(&key, &mut mask), "a packet of a hand-made flow is not decided");
        }
    }

    #[test]
    fn flows_that_are_worth_it_by_now_and_find_the_queue_full_ask_again() {
        let now = Instant::now();
        let device = backend::open(&"sim".parse().unwrap(), now).unwrap();
        let config = OffloadConfig { queue_limit: 1, ..OffloadConfig::default() };
        let (offload, mut worker) = Offload::assemble(device, now, &config);
        let agent = offload.agent(0, Box::new(|| {}));
        let mut table = FlowTable::new(Seeds::random(), Namer::random(), agent);
        offload.set(&Wanted { min_packets: 1, ..Wanted::default() });
        let flows: Vec<FlowRef> =
            (0..5).map(|i| add(&mut table, matching(&[(Field::InPort, 1), (Field::TpDst, i)]), Maker::Hand)).collect();
        offload.set(&Wanted::default());
        flows.iter().for_each(|flow| table.consider(now, flow.index));
        let standings = |table: &FlowTable, standing| {
            let flows = flows.iter().filter_map(|flow| table.flows.get(flow.index));
            flows.filter(|flow| table.standing(flow) == Some(standing)).count()
        };
        assert_eq!(standings(&table, Standing::Refused(Reason::QueueFull)), 4);
        for _ in &flows {
            worker.turn(now);
            table.chores(now);
        }
        assert_eq!(standings(&table, Standing::Refused(Reason::Port)), 5, "the worker has heard of all of them");
    }

    #[test]
    fn a_removed_flow_is_found_by_nothing() {
        let mut table = table();
        let m = matching(&[(Field::InPort, 1)]);
        let flow = add(&mut table, m, Maker::Hand);
        let mark = Mark::new(3).unwrap();
        table.marks.bind(mark, flow);
        table.flows.get_mut(flow.index).unwrap().bound = Some(mark);
        let key = *m.key();
        assert_eq!(table.by_hand.lookup(&key), Some(flow.index));
        table.remove(Instant::now(), flow.index, None);
        assert_eq!(table.by_hand.lookup(&key), None);
        assert_eq!(table.marks.get(mark), None);
        assert!(!table.flows.is_live(flow));
    }
}
