//! [`Flows`]: the flows of one poller, found by number; what the caches, the classifier and the mark table point into.
//!
//! A flow is two records under one number. [`Hot`] is what a packet needs, one cache line: actions, counts, whether it
//! is still to be believed. [`Flow`] is the rest: its match, what its decision depended on, its offload cell.
//!
//! A number is used again after its flow died; its generation is not. Whoever keeps a number keeps a [`FlowRef`], and
//! [`Flows::is_live`] tells a flow from its successor.

use std::time::{Duration, Instant};

use super::execute::Way;
use crate::flow::{Actions, Match, Ufid};
use crate::offload::mark::Mark;
use crate::offload::{FlowStats, OffloadCell};
use crate::slowpath::{Decision, DropReason};
use crate::sync::Arc;

/// A flow's number and which flow of that number.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FlowRef {
    pub index: u32,
    /// 0 belongs to no flow, so that a zeroed table refers to none.
    pub generation: u32,
}

/// What a packet needs of its flow.
#[repr(align(64))]
pub struct Hot {
    actions: Actions,
    way: Way,
    pub packets: u64,
    pub bytes: u64,
    /// When the last packet came, in nanoseconds on the datapath's clock; 0 = never.
    pub used_ns: u64,
    /// The epoch that the actions were decided in; [`BY_HAND`] never grows old.
    pub epoch: u64,
    generation: u32,
    /// TCP flags seen, as far as packets were looked into.
    pub tcp_flags: u16,
    /// This flow's place in the batch under way, or [`NO_GROUP`].
    pub group: u16,
}

impl Hot {
    #[inline]
    pub fn actions(&self) -> &Actions {
        &self.actions
    }

    /// The actions in short.
    #[inline]
    pub fn way(&self) -> Way {
        self.way
    }

    /// `dropped`: as [`Way::of`].
    pub fn set_actions(&mut self, actions: Actions, dropped: Option<DropReason>) {
        self.way = Way::of(&actions, dropped);
        self.actions = actions;
    }
}

/// The epoch of flows added by hand: later than any.
pub const BY_HAND: u64 = u64::MAX;

/// Says that a flow has no packet in the batch under way.
pub const NO_GROUP: u16 = u16::MAX;

/// What only the slow paths need of a flow.
pub struct Flow {
    pub ufid: Ufid,
    pub matching: Match,
    /// How many flows this table had made before it.
    pub born: u64,
    /// The hash of its masked key in its subtable.
    pub hash: u64,
    pub created: Instant,
    /// What its decision depended on; `None` for flows added by hand.
    pub decision: Option<Box<Decision>>,
    /// The stations epoch that the decision's lookups were last compared in.
    pub stations_epoch: u64,
    pub cell: Option<Arc<OffloadCell>>,
    /// The mark that is bound to it in this poller's mark table.
    pub bound: Option<Mark>,
    /// Packets and bytes already credited to its rules, the device's included.
    pub credited: FlowStats,
    /// What the device had counted when the counts were last set to 0.
    pub cleared: FlowStats,
    pub pace: Pace,
}

/// How fast a flow's packets come, by the sweeps.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    seen: Option<(u64, Instant)>,
    /// Packets a second between the last two looks; `None` before there were two.
    pub rate: Option<u64>,
}

impl Pace {
    /// Looks so close together say little, and are passed over.
    const LEAST: Duration = Duration::from_millis(200);

    /// The flow has carried `packets` by `now`.
    pub fn observe(&mut self, packets: u64, now: Instant) {
        let Some((before, then)) = self.seen else {
            self.seen = Some((packets, now));
            return;
        };
        let time = now.saturating_duration_since(then);
        if time >= Pace::LEAST {
            self.rate = Some((packets.saturating_sub(before) as f64 / time.as_secs_f64()).round() as u64);
            self.seen = Some((packets, now));
        }
    }
}

impl Flow {
    pub fn is_by_hand(&self) -> bool {
        self.decision.is_none()
    }

    /// What the device forwarded by itself, since the cell was made.
    pub fn device_stats(&self) -> FlowStats {
        self.cell.as_ref().map(|cell| cell.device_stats()).unwrap_or_default()
    }
}

/// The flows of one poller.
#[derive(Default)]
pub struct Flows {
    hot: Vec<Hot>,
    flows: Vec<Option<Flow>>,
    free: Vec<u32>,
    live: usize,
}

impl Flows {
    pub fn new() -> Flows {
        Flows::default()
    }

    /// Live flows.
    pub fn len(&self) -> usize {
        self.live
    }

    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// Numbers that are or were in use: flows are found below this.
    pub fn slots(&self) -> u32 {
        self.flows.len() as u32
    }

    /// The number and generation that the next [`insert`](Flows::insert) will give.
    pub fn next_ref(&self) -> FlowRef {
        match self.free.last() {
            Some(&index) => self.reference(index),
            None => FlowRef { index: self.slots(), generation: 1 },
        }
    }

    /// Adds a flow.
    pub fn insert(&mut self, flow: Flow, actions: Actions, epoch: u64) -> FlowRef {
        let index = self.free.pop().unwrap_or_else(|| {
            self.hot.push(Hot {
                actions: Actions::drop(),
                way: Way::Drop(DropReason::Rule),
                packets: 0,
                bytes: 0,
                used_ns: 0,
                epoch: 0,
                generation: 1,
                tcp_flags: 0,
                group: NO_GROUP,
            });
            self.flows.push(None);
            self.slots() - 1
        });
        let hot = &mut self.hot[index as usize];
        hot.set_actions(actions, flow.decision.as_ref().and_then(|decision| decision.dropped));
        hot.epoch = epoch;
        (hot.packets, hot.bytes, hot.used_ns, hot.tcp_flags) = (0, 0, 0, 0);
        self.flows[index as usize] = Some(flow);
        self.live += 1;
        self.reference(index)
    }

    /// Takes a flow out; its number may be used again, its generation never.
    pub fn remove(&mut self, index: u32) -> Option<Flow> {
        let flow = self.flows.get_mut(index as usize)?.take()?;
        let hot = &mut self.hot[index as usize];
        hot.set_actions(Actions::drop(), None);
        // 0 belongs to no flow.
        hot.generation = hot.generation.checked_add(1).unwrap_or(1);
        self.free.push(index);
        self.live -= 1;
        Some(flow)
    }

    #[inline]
    pub fn reference(&self, index: u32) -> FlowRef {
        FlowRef { index, generation: self.hot[index as usize].generation }
    }

    /// Whether `flow` still is the flow it was.
    #[inline]
    pub fn is_live(&self, flow: FlowRef) -> bool {
        self.hot.get(flow.index as usize).is_some_and(|hot| hot.generation == flow.generation) && flow.generation != 0
    }

    /// # Panics
    /// If no flow ever had this number; numbers come from [`Flows::insert`].
    #[inline]
    pub fn hot(&self, index: u32) -> &Hot {
        &self.hot[index as usize]
    }

    /// # Panics
    /// As [`Flows::hot`].
    #[inline]
    pub fn hot_mut(&mut self, index: u32) -> &mut Hot {
        &mut self.hot[index as usize]
    }

    pub fn get(&self, index: u32) -> Option<&Flow> {
        self.flows.get(index as usize)?.as_ref()
    }

    pub fn get_mut(&mut self, index: u32) -> Option<&mut Flow> {
        self.flows.get_mut(index as usize)?.as_mut()
    }

    /// What of the device's counts has been credited to the flow's rules.
    pub fn credited_of_device(&self, index: u32) -> FlowStats {
        let (hot, Some(flow)) = (self.hot(index), self.get(index)) else { return FlowStats::default() };
        FlowStats {
            packets: (flow.credited.packets + flow.cleared.packets).saturating_sub(hot.packets),
            bytes: (flow.credited.bytes + flow.cleared.bytes).saturating_sub(hot.bytes),
            used_ns: flow.credited.used_ns,
        }
    }

    /// Makes the device's counts the flow's own: its cell is about to be replaced by one that has none.
    pub fn keep_device_counts(&mut self, index: u32) {
        let all = self.stats(index);
        let hot = self.hot_mut(index);
        hot.packets = all.packets.min(FlowStats::MOST);
        hot.bytes = all.bytes.min(FlowStats::MOST);
        hot.used_ns = all.used_ns;
        if let Some(flow) = self.get_mut(index) {
            flow.cleared = FlowStats::default();
        }
    }

    /// Packets, bytes and last use, the device's included.
    pub fn stats(&self, index: u32) -> FlowStats {
        let hot = self.hot(index);
        let (device, cleared) = self.get(index).map(|flow| (flow.device_stats(), flow.cleared)).unwrap_or_default();
        FlowStats {
            packets: hot.packets + device.packets.saturating_sub(cleared.packets),
            bytes: hot.bytes + device.bytes.saturating_sub(cleared.bytes),
            used_ns: hot.used_ns.max(device.used_ns),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{Key, Mask};

    fn flow() -> Flow {
        Flow {
            ufid: Ufid(1),
            matching: Match::new(&Key::ZERO, &Mask::EMPTY),
            born: 0,
            hash: 0,
            created: Instant::now(),
            decision: None,
            stations_epoch: 0,
            cell: None,
            bound: None,
            credited: FlowStats::default(),
            cleared: FlowStats::default(),
            pace: Pace::default(),
        }
    }

    #[test]
    fn a_number_used_again_is_not_mistaken_for_the_flow_it_was() {
        let mut flows = Flows::new();
        let first = flows.insert(flow(), Actions::drop(), 0);
        assert!(flows.is_live(first));
        flows.remove(first.index);
        assert!(!flows.is_live(first));
        let expected = flows.next_ref();
        let second = flows.insert(flow(), Actions::drop(), 0);
        assert_eq!(second, expected);
        assert_eq!(first.index, second.index);
        assert!(flows.is_live(second) && !flows.is_live(first));
    }

    #[test]
    fn a_zeroed_reference_refers_to_no_flow() {
        let mut flows = Flows::new();
        flows.insert(flow(), Actions::drop(), 0);
        assert!(!flows.is_live(FlowRef::default()));
    }

    #[test]
    fn what_a_packet_needs_is_one_cache_line() {
        assert_eq!(std::mem::size_of::<Hot>(), 64);
    }
}
