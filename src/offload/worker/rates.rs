//! What the device counts, how busy megaflows are, and who makes room for whom.
//!
//! Rates are measured over one window (the interval at which counts are read), and half of a rate is what it was before. Over
//! another, twice as long, the idlest rules in a full device make room for waiting ones that are busier by a good margin.
//! A rule is not looked at before it has been in the device for a window. So a burst, or two megaflows about as busy as each other,
//! do not make rules come and go.

use std::sync::atomic::Ordering;
use std::time::Instant;

use super::{BATCH, Worker};
use crate::clock;
use crate::offload::crew::SHARDS;
use crate::offload::state::{FlowStats, Level, since};
use crate::offload::table::RuleId;

/// Windows of measuring to one of swapping.
const WINDOWS: u32 = 2;

/// Most rules that make room in one window of swapping.
const SWAPS: usize = 1_024;

/// A waiting megaflow must be this much busier than the rule that makes room for it: a quarter.
fn is_busier(waiting: u64, installed: u64) -> bool {
    waiting > installed.saturating_add(installed / 4).saturating_add(1)
}

impl Worker {
    /// Asks the device whether it is still the one that the rules were put into, and what it has counted.
    pub(super) fn read_device(&mut self, now: Instant) {
        if self.stats_at.is_none() {
            if now < self.next_stats || self.rules.is_empty() {
                return;
            }
            self.next_stats = now + self.stats_interval;
            if self.rules.in_device() > 0 && self.device.was_reset() {
                return self.start_over();
            }
            self.stats_at = Some(0);
        }
        let (ids, next) = self.rules.slice(self.stats_at.unwrap_or(0), BATCH);
        self.stats_at = (next > 0).then_some(next);
        self.read(&ids);
        for id in ids {
            self.measure(id, now);
        }
    }

    /// Reads the counts of those of `ids` that are in the device.
    pub(super) fn read(&mut self, ids: &[RuleId]) {
        let known: Vec<_> = ids.iter().filter_map(|&id| Some((id, self.rules.get(id)?.has.as_ref()?.handle))).collect();
        if known.is_empty() {
            return;
        }
        let handles: Vec<_> = known.iter().map(|(_, handle)| *handle).collect();
        // The device was asked after this moment, so it had not counted anything later.
        let asked = clock::now();
        let Some(all) = self.device.stats(&handles) else { return };
        for ((id, _), stats) in known.into_iter().zip(all) {
            self.credit(id, stats, asked);
        }
    }

    /// Adds what a rule has counted since the last reading to its flow. Of several owners one gets it, so that the
    /// sum is right. What a device tells is never taken back, and lies in no future.
    pub(super) fn credit(&mut self, id: RuleId, stats: FlowStats, asked: Instant) {
        let read_ns = (since(self.crew.start, asked).as_nanos() as u64).max(1);
        let Some(rule) = self.rules.get_mut(id) else { return };
        let Some(has) = &mut rule.has else { return };
        let mut more = stats.since(&has.stats);
        more.used_ns = more.used_ns.min(read_ns);
        has.stats.packets = has.stats.packets.max(stats.packets);
        has.stats.bytes = has.stats.bytes.max(stats.bytes);
        has.stats.used_ns = has.stats.used_ns.max(stats.used_ns);
        let hit = has.stats.packets > 0;
        if hit && !std::mem::replace(&mut has.confirmed, true) {
            self.confirmed_rules += 1;
        }
        // Packets that were only marked come to a poller, which counts them.
        if has.level == Level::Full
            && let Some(owner) = rule.owners.iter().find(|owner| !owner.is_dead()).or(rule.owners.first())
        {
            owner.add_device_stats(&more);
        }
        rule.owners.iter().for_each(|owner| owner.note_reading(read_ns, hit));
    }

    /// Sees how busy a megaflow is.
    fn measure(&mut self, id: RuleId, now: Instant) {
        let Some(rule) = self.rules.get_mut(id) else { return };
        rule.pace.observe(rule.seen(), now);
        if let Some(ticket) = rule.ticket {
            rule.ticket = Some(self.waiting.pace(ticket, rule.pace.rate));
        }
    }

    /// The idlest rules make room for waiting ones that are busier.
    pub(super) fn evict(&mut self, now: Instant) {
        if self.evictions.is_empty() && !self.waiting.is_empty() && now >= self.next_evictions {
            self.next_evictions = now + self.stats_interval * WINDOWS;
            self.choose(now);
        }
        for _ in 0..BATCH {
            // Room that nobody may take is of no use.
            if !self.may_operate(now) {
                break;
            }
            let Some(id) = self.evictions.pop_front() else { break };
            if self.waiting.is_empty() {
                self.evictions.clear();
                break;
            }
            let Some(rule) = self.rules.get_mut(id).filter(|rule| rule.has.is_some()) else { continue };
            rule.evicted = true;
            self.tally.evictions += 1;
            self.reconcile(id, now);
            if self.consumer.has_messages() {
                break;
            }
        }
    }

    /// Chooses the rules that are to make room.
    fn choose(&mut self, now: Instant) {
        let mut installed: Vec<(u64, RuleId)> = self
            .rules
            .iter()
            .filter(|(_, rule)| {
                rule.has.as_ref().is_some_and(|has| now.saturating_duration_since(has.since) >= self.stats_interval)
            })
            .map(|(id, rule)| (rule.pace.rate, id))
            .collect();
        let most = SWAPS.min(installed.len());
        if most > 0 && most < installed.len() {
            installed.select_nth_unstable(most);
            installed.truncate(most);
        }
        installed.sort_unstable();
        let swaps =
            self.waiting.rates().zip(&installed).take_while(|(waiting, (rate, _))| is_busier(*waiting, *rate)).count();
        // Beyond that, a worker with more than its share of a full device gives some of it to those that have less.
        let shared = self.beyond_share().saturating_sub(swaps);
        self.evictions.extend(installed.iter().take(swaps + shared).map(|(_, id)| *id));
    }

    /// How many rules this worker should give up so that others, which wait, have their share of the device.
    fn beyond_share(&self) -> usize {
        let posts = &self.crew.posts;
        let in_device = |id: usize| posts[id].in_device.load(Ordering::Relaxed);
        let shards = |id: usize| (0..SHARDS).filter(|shard| self.crew.route(*shard) == id).count();
        let all: usize = (0..posts.len()).map(in_device).sum();
        let share = |id: usize| all * shards(id) / SHARDS;
        let lacking: usize = (0..posts.len())
            .filter(|id| *id != self.id)
            .map(|id| share(id).saturating_sub(in_device(id)).min(posts[id].waiting.load(Ordering::Relaxed)))
            .sum();
        self.rules.in_device().saturating_sub(share(self.id)).min(lacking)
    }
}
