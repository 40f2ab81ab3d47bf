//! Packets that no flow matches, and flows whose decision may no longer hold.

use std::time::Instant;

use super::execute::{Way, execute};
use super::inbox::NewFlow;
use super::pipeline::Pipeline;
use super::table::Maker;
use crate::flow::text::canonical;
use crate::flow::{Actions, Key, Mask, Match};

impl Pipeline {
    /// Decides about the one packet in [`Pipeline::one`], executes that once, and installs the megaflow.
    ///
    /// A flow that an earlier upcall of the batch installed is used instead. As in Open vSwitch, the packet counts for
    /// the rules but not for the flow that it made. `counted`: a lookup counter has it already.
    pub(super) fn upcall(&mut self, now: Instant, key: &Key, counted: bool) {
        let counters = std::sync::Arc::clone(&self.counters);
        let once = u64::from(!counted);
        if let Some(flow) = self.table.by_hand.lookup(key).or_else(|| self.table.decided.lookup(key))
            && (self.table.flows.hot(flow).epoch >= self.epoch() || self.revalidate(now, flow))
        {
            counters.lookup.megaflow_hit.add(once);
            let bytes = self.one().iter().map(|packet| packet.len() as u64).sum::<u64>();
            let nanos = self.shared.nanos(now);
            let hot = self.table.flows.hot_mut(flow);
            hot.packets += 1;
            hot.bytes += bytes;
            hot.used_ns = nanos;
            let (way, actions) = (hot.way(), hot.actions().clone());
            return self.execute_one(way, &actions);
        }
        let number = self.shared.decision_number();
        let mut decision = self.shared.slowpath.decide(key, now, true);
        let bytes = self.one().iter().map(|packet| packet.len() as u64).sum::<u64>();
        for rule in &decision.rules {
            rule.credit(1, bytes, now);
        }
        let actions = decision.actions.clone();
        let way = Way::of(&actions, decision.dropped);
        let separate = self.table.separate(key, &mut decision.mask);
        if separate && self.shared.admit() {
            counters.lookup.upcall_installed.add(once);
            let epoch = decision.epoch + self.table.by_hand_epoch();
            let matching = megaflow(key, &decision.mask);
            // A flow of this very match would have matched the packet.
            let flow = NewFlow { ufid: None, matching, actions: actions.clone(), number };
            self.table.insert(now, flow, Maker::Decided { decision: Box::new(decision), epoch });
        } else {
            counters.lookup.upcall_flow_limit.add(once);
        }
        self.execute_one(way, &actions);
    }

    /// Decides anew about a flow. `false`: the new decision looks at more than the flow's match says, and the flow is deleted.
    pub fn revalidate(&mut self, now: Instant, index: u32) -> bool {
        let Some(flow) = self.table.flows.get(index) else { return false };
        if flow.is_by_hand() {
            return true;
        }
        let matching = flow.matching;
        let counters = std::sync::Arc::clone(&self.counters);
        counters.doings.revalidated.add(1);
        let number = self.shared.decision_number();
        let stations_epoch = self.shared.slowpath.stations_epoch();
        let mut decision = self.shared.slowpath.revalidate(&matching, now);
        let epoch = decision.epoch + self.table.by_hand_epoch();
        let separate = self.table.separate(matching.key(), &mut decision.mask);
        let looked_at = megaflow(matching.key(), &decision.mask);
        if !separate || !matching.mask().contains(looked_at.mask()) {
            counters.doings.deleted_stale.add(1);
            self.delete(now, index);
            return false;
        }
        self.credit(now, index);
        let changed = *self.table.flows.hot(index).actions() != decision.actions;
        if changed {
            counters.doings.modified.add(1);
            self.table.modify(now, index, decision.actions.clone(), number);
        }
        let hot = self.table.flows.hot_mut(index);
        // Equal actions may drop for another reason now.
        hot.set_actions(decision.actions.clone(), decision.dropped);
        hot.epoch = epoch;
        if let Some(flow) = self.table.flows.get_mut(index) {
            flow.decision = Some(Box::new(decision));
            flow.stations_epoch = stations_epoch;
        }
        true
    }

    fn execute_one(&mut self, way: Way, actions: &Actions) {
        let mut one = std::mem::take(self.one());
        execute(way, actions, &mut one, &mut self.outputs, &mut self.pool, &self.counters.fate);
        *self.one() = one;
    }
}

/// The match of all packets equal to `key` in the bits that a decision looked at: with the fields that give those bits
/// their meaning, and without bits that say nothing, so that flows differ only where packets can.
fn megaflow(key: &Key, looked_at: &Mask) -> Match {
    let mut mask = *looked_at;
    mask.establish(key);
    canonical(&Match::new(key, &mask))
}
