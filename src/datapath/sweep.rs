//! The sweep: every half second a poller looks at each of its flows, a slice at a time between batches.
//!
//! For each flow: what came since the last look is credited to its rules, and keeps its sender's station fresh; a flow
//! without packets for too long is deleted; one whose rule, port or station changed is decided anew; one that was not worth
//! offloading is considered again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_channel::oneshot;

use super::pipeline::Pipeline;
use crate::offload::{FlowStats, Heir};
use crate::slowpath::Slowpath;
use crate::slowpath::learn::Station;
use crate::slowpath::rules::RuleStats;

/// From the start of one sweep to the start of the next.
pub const PERIOD: Duration = Duration::from_millis(500);

/// Flows looked at between two batches: no more than there are packets in one, since each look may miss the caches.
pub const SLICE: u32 = 32;

/// Flows deleted between two batches, beyond as many as were made since the last. Deleting one costs as much as looking at
/// twenty, and more where a worker is told: a slice full of dead flows would be seen in the percentiles of every batch.
const DEATHS: usize = 4;

/// Where the sweep stands.
#[derive(Debug)]
pub struct Sweep {
    /// The next number to look at; `None` between sweeps.
    next: Option<u32>,
    due: Instant,
    /// Flows that had been made at the last slice.
    births: u64,
    /// Sweeps that began so far, and what began the last.
    begun: u64,
    began: Instant,
    /// How long the last whole sweep took.
    took: Duration,
    /// Who waits until the sweep of a number is over.
    waiting: Vec<(u64, oneshot::Sender<()>)>,
}

impl Sweep {
    pub fn new(now: Instant) -> Sweep {
        Sweep {
            next: None,
            due: now + PERIOD,
            births: 0,
            begun: 0,
            began: now,
            took: Duration::ZERO,
            waiting: Vec::new(),
        }
    }

    /// Whether a sweep is under way.
    pub fn is_under_way(&self) -> bool {
        self.next.is_some()
    }

    /// When the next sweep begins.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Begins the next sweep at once.
    pub fn hasten(&mut self, now: Instant) {
        self.due = now;
    }

    /// Tells when a whole sweep that begins from now on is over.
    pub fn tell_when_over(&mut self, now: Instant, done: oneshot::Sender<()>) {
        self.waiting.push((self.begun + 1, done));
        self.hasten(now);
    }

    /// Lets go of everybody who waits.
    pub fn give_up_waiting(&mut self) {
        self.waiting.clear();
    }

    /// How long the last whole sweep took.
    pub fn took(&self) -> Duration {
        self.took
    }

    /// Looks at the next slice of flows, if a sweep is under way or due. Answers whether a sweep began.
    pub fn slice(&mut self, now: Instant, pipeline: &mut Pipeline) -> bool {
        // Flows never come faster than they may go.
        let births = pipeline.table.births();
        let deaths = DEATHS + (births - std::mem::replace(&mut self.births, births)) as usize;
        let begins = self.next.is_none();
        let from = match self.next {
            Some(from) => from,
            None if now < self.due => return false,
            None => {
                self.due = now + PERIOD;
                (self.begun, self.began) = (self.begun + 1, now);
                pipeline.table.decided.rank();
                pipeline.table.by_hand.rank();
                0
            }
        };
        let slots = pipeline.table.flows.slots();
        let to = slots.min(from.saturating_add(SLICE));
        let max_idle = pipeline.shared.max_idle();
        let (alive, mut next) = (pipeline.table.flows.len(), from);
        while next < to && pipeline.table.flows.len() + deaths > alive {
            pipeline.look_after(now, next, max_idle);
            next += 1;
        }
        self.next = (next < slots).then_some(next);
        if self.next.is_none() {
            self.took = now.saturating_duration_since(self.began);
            let over = |(number, _): &mut (u64, _)| *number <= self.begun;
            for (_, done) in self.waiting.extract_if(.., over) {
                // Whoever waits may have gone.
                let _ = done.send(());
            }
            if !self.waiting.is_empty() {
                self.due = now;
            }
        }
        begins
    }
}

impl Pipeline {
    /// One flow's share of the sweep.
    fn look_after(&mut self, now: Instant, index: u32, max_idle: Duration) {
        let packets = match self.table.flows.get(index) {
            Some(_) => self.table.flows.hot(index).packets,
            None => return,
        };
        if let Some(flow) = self.table.flows.get_mut(index) {
            flow.pace.observe(packets, now);
            if let Some(cell) = &flow.cell {
                cell.publish_software(packets);
            }
        }
        self.table.consider(now, index);
        let Some(flow) = self.table.flows.get(index) else { return };
        if flow.is_by_hand() {
            return;
        }
        let created = flow.created;
        let stations_epoch = flow.stations_epoch;
        // What only the device sees is known up to its last reading: a flow is as idle as it was then.
        let known = match (&flow.cell, self.table.is_in_device(flow)) {
            (Some(cell), true) => self.shared.start + Duration::from_nanos(cell.read_ns()),
            _ => now,
        };
        self.credit(now, index);
        let used = match self.table.flows.stats(index).used_ns {
            0 => created,
            nanos => self.shared.start + Duration::from_nanos(nanos),
        };
        if known.saturating_duration_since(used) > max_idle {
            self.counters.doings.deleted_idle.add(1);
            self.delete(now, index);
            return;
        }
        let stations_now = self.shared.slowpath.stations_epoch();
        if self.table.flows.hot(index).epoch < self.epoch()
            || (stations_epoch != stations_now && !self.lookups_still_true(index))
        {
            self.revalidate(now, index);
        } else if let Some(flow) = self.table.flows.get_mut(index) {
            flow.stations_epoch = stations_now;
        }
    }

    /// Whether the stations that a flow's decision looked up are where they were.
    fn lookups_still_true(&self, index: u32) -> bool {
        let decision = self.table.flows.get(index).and_then(|flow| flow.decision.as_ref());
        decision.is_none_or(|decision| decision.lookups.iter().all(|lookup| self.shared.slowpath.still_true(lookup)))
    }

    /// Credits what a flow counted since the last time to the rules that made it, and keeps its sender's station fresh.
    pub fn credit(&mut self, now: Instant, index: u32) {
        let stats = self.table.flows.stats(index);
        let in_device = self.table.flows.get(index).is_some_and(|flow| self.table.is_in_device(flow));
        if in_device && let Some(decision) = self.table.flows.get(index).and_then(|flow| flow.decision.as_ref()) {
            decision.rules.iter().for_each(|rule| rule.is_watched_by_device(now));
        }
        let Some(flow) = self.table.flows.get_mut(index) else { return };
        let packets = stats.packets.saturating_sub(flow.credited.packets);
        let bytes = stats.bytes.saturating_sub(flow.credited.bytes);
        if packets == 0 && bytes == 0 {
            return;
        }
        flow.credited =
            FlowStats { packets: flow.credited.packets + packets, bytes: flow.credited.bytes + bytes, ..stats };
        if let Some(decision) = self.table.flows.get(index).and_then(|flow| flow.decision.as_ref()) {
            // The device's word comes late: packets came until now, as far as timeouts are concerned.
            let used = if in_device { now } else { (self.shared.start + Duration::from_nanos(stats.used_ns)).min(now) };
            for rule in &decision.rules {
                rule.credit(packets, bytes, used);
            }
            if let Some(station) = &decision.learned {
                self.shared.slowpath.refresh(station, used);
            }
        }
    }

    /// Deletes a flow after crediting its last packets.
    pub fn delete(&mut self, now: Instant, index: u32) -> Option<FlowStats> {
        self.credit(now, index);
        let stats = self.table.flows.stats(index);
        let heir = self.heir(index);
        let flow = self.table.remove(now, index, heir)?;
        match flow.is_by_hand() {
            true => self.shared.forget_by_hand(),
            false => self.shared.forget(1),
        }
        Some(stats)
    }

    /// Who gets what the device will have counted of a flow between now and the moment that it forgets the rule.
    fn heir(&self, index: u32) -> Option<Arc<dyn Heir>> {
        let flow = self.table.flows.get(index)?;
        let decision = flow.decision.as_ref()?;
        flow.cell.as_ref().filter(|_| self.table.counts_in_device())?;
        Some(Arc::new(Legacy {
            slowpath: Arc::clone(&self.shared.slowpath),
            start: self.shared.start,
            credited: self.table.flows.credited_of_device(index),
            rules: decision.rules.clone(),
            learned: decision.learned,
        }))
    }
}

/// What a dead flow leaves to the rules that made it.
struct Legacy {
    slowpath: Arc<Slowpath>,
    start: Instant,
    /// What of the device's counts they have already.
    credited: FlowStats,
    rules: Vec<Arc<RuleStats>>,
    learned: Option<Station>,
}

impl Heir for Legacy {
    fn inherit(&self, stats: FlowStats) {
        let tail = stats.since(&self.credited);
        if tail.packets == 0 && tail.bytes == 0 {
            return;
        }
        let used = self.start + Duration::from_nanos(stats.used_ns);
        for rule in &self.rules {
            rule.credit(tail.packets, tail.bytes, used);
        }
        if let Some(station) = &self.learned {
            self.slowpath.refresh(station, used);
        }
    }
}
