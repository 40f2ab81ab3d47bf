//! Shards that come and go when the number of workers changes.

use super::{Message, Worker};
use crate::offload::backend::Generation;
use crate::offload::crew::{SHARDS, shard_of};
use crate::offload::state::OffloadCell;
use crate::offload::table::Rule;
use crate::sync::Arc;

/// A shard on its way to another worker: all that is known of its megaflows.
pub struct Parcel {
    shard: usize,
    rules: Vec<Rule>,
    /// The device's generation as the giver knew it: a reset since is news to him, and not for the rules.
    generation: Option<Generation>,
    /// The newest change of the device's ways to ports that the rules know of, and of all before.
    ways: u64,
}

impl Worker {
    /// Whether this worker sees to `cell` now. If not, the cell is passed on to whoever does, or kept until its shard has
    /// come.
    pub(super) fn is_ours(&mut self, cell: &Arc<OffloadCell>) -> bool {
        let shard = shard_of(cell.hash());
        if self.shards[shard] {
            return true;
        }
        let owner = self.crew.route(shard);
        if owner == self.id {
            self.held.push(Arc::clone(cell));
        } else {
            self.pass_on(cell, owner);
        }
        false
    }

    fn pass_on(&self, cell: &Arc<OffloadCell>, to: usize) {
        let lane = cell.poller() as usize;
        if cell.is_dead() {
            self.crew.lanes[to].delete(lane, cell);
        } else {
            self.crew.lanes[to].put(lane, cell, true);
        }
    }

    /// Whether a shard that should be ours has not come yet.
    pub(super) fn awaits_shards(&self) -> bool {
        (0..SHARDS).any(|shard| !self.shards[shard] && self.crew.planned(shard) == self.id)
    }

    /// Gives away what should be others'. Not while a flush counts rules here, or the device has yet to answer for some; the end of either
    /// calls again.
    pub(super) fn give_away(&mut self) {
        if self.staged > 0 || self.flushes.iter().any(|flush| flush.left > 0) {
            return;
        }
        if self.crew.is_stopping() {
            return;
        }
        // Looked at once: the plan may change at any moment, and each shard goes as a whole or not at all.
        let plan: [usize; SHARDS] = std::array::from_fn(|shard| self.crew.planned(shard));
        let goes: [bool; SHARDS] = std::array::from_fn(|shard| self.shards[shard] && plan[shard] != self.id);
        if !goes.contains(&true) {
            return;
        }
        let mut parcels: Vec<Vec<Rule>> = (0..SHARDS).map(|_| Vec::new()).collect();
        let ids: Vec<_> = self.rules.iter().filter(|(_, rule)| goes[shard_of(rule.hash)]).map(|(id, _)| id).collect();
        for id in ids {
            if let Some(ticket) = self.rules.get_mut(id).and_then(|rule| rule.ticket.take()) {
                self.waiting.remove(ticket);
            }
            let Some(mut rule) = self.rules.remove(id) else { continue };
            rule.delayed = false;
            self.count_trouble(&rule, false);
            self.count_in_device(&rule, false);
            parcels[shard_of(rule.hash)].push(rule);
        }
        self.detach_all();
        for (shard, rules) in parcels.into_iter().enumerate() {
            if !goes[shard] {
                continue;
            }
            let to = plan[shard];
            self.shards[shard] = false;
            let (generation, ways) = (self.device.generation(), self.ways_known);
            // The route first: once the parcel is there, the shard and its route are the other's to give away again.
            self.crew.set_route(shard, to);
            self.crew.lanes[to].send(Message::Adopt(Box::new(Parcel { shard, rules, generation, ways })));
        }
    }

    /// A shard has come: its rules are ours, and its flows that were here before it are looked at now.
    pub(super) fn adopt(&mut self, parcel: Parcel) {
        let Parcel { shard, rules, generation, ways } = parcel;
        self.shards[shard] = true;
        if self.rules.in_device() == 0 && rules.iter().any(|rule| rule.has.is_some()) {
            self.device.begin_at(generation);
        }
        // One of the two has heard of a reset that the other has not. The device knows whether it has these rules, and forgets them
        // either way.
        let is_doubtful = self.device.generation() != generation;
        for mut rule in rules {
            rule.condemned |= is_doubtful && rule.has.is_some();
            // A change that was told here while they were on their way was told to nobody who had them.
            rule.retry |= ways < self.ways_known && rule.sends_by(|_| true);
            self.count_trouble(&rule, true);
            self.count_in_device(&rule, true);
            if let Some(has) = &rule.has {
                self.flushes.iter_mut().filter(|flush| has.flush < flush.number).for_each(|flush| flush.left += 1);
            }
            let waits = rule.trouble.as_ref().is_some_and(|trouble| trouble.why.is_want_of_room());
            let due = [rule.trouble.as_ref().and_then(|t| t.next), rule.stuck.as_ref().and_then(|t| t.next)];
            let rate = rule.pace.rate;
            let id = self.rules.insert(rule);
            self.timers.extend(due.into_iter().flatten().map(|due| std::cmp::Reverse((due, id))));
            if waits && let Some(rule) = self.rules.get_mut(id) {
                rule.ticket = Some(self.waiting.add(rate, id));
            }
            self.todo.push_back(id);
        }
        let (come, held) = std::mem::take(&mut self.held).into_iter().partition(|cell| shard_of(cell.hash()) == shard);
        self.held = held;
        // Not looked at here and now: a device that is not well yet must not be asked.
        let come: Vec<Arc<OffloadCell>> = come;
        come.iter().for_each(|cell| self.pass_on(cell, self.id));
        self.end_flushes();
        // The plan may have changed while it was on its way.
        self.give_away();
    }
}
