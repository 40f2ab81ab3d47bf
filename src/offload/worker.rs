//! [`Worker`]: compares what flows want with what the device has, and does something about the difference.
//!
//! Read `Worker::reconcile` first: it is the whole policy. Everything else only says which rule to look at, and
//! when. A turn looks at, in this order: messages, dead flows, rules that something else concerns (a flush, a port, a
//! reset), rules whose time has come, rules that waited for room, and at last a batch of puts.
//!
//! ```text
//!            owners want ──┐                    ┌── no rule, wanted ─────► put
//!                          ├──► what is next? ──┼── rule, not wanted ────► delete, until the device has forgotten
//!            device has ───┘                    ├── other actions ───────► replace, or delete and put
//!                                               └── as wanted ───────────► bind the mark at the owners' pollers
//! ```
//!
//! # Thread-safety
//! One thread owns it. Others reach it through its queue, read its `Report`, and see its cells.

mod device;
mod messages;
#[cfg(all(test, not(loom)))]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::sync::Arc as StdArc;
use std::sync::Mutex as StdMutex;
use std::time::{Duration, Instant};

use device::Device;
use futures_channel::oneshot;

use super::agent::Mailbox;
use super::backend::{self, DeleteError, Install, PutError};
use super::mark::{MarkLease, MarkPool, Quarantined};
use super::queue::{Consumer, Queue};
use super::report::{MarkCounts, MarkPage, PortRow, Report, Tally};
use super::state::{Cell, FlowStats, Level, OffloadCell, Refusal, Standing, Wants, since};
use super::table::{InDevice, Installed, Owners, Rule, RuleId};
use super::trouble::Trouble;
use super::{Flushed, Stopped};
use crate::flow::PortNo;
use crate::port::{PortInfo, RxProgress};
use crate::sync::Arc;

/// The queue of one worker.
pub type Lanes = Queue<Cell, Message>;

/// Puts between two looks at everything that goes before them.
const PUTS: usize = 64;
/// Most other things done between two looks at messages.
const BATCH: usize = 256;
/// How often marks in quarantine are looked at while there are some.
const QUARANTINE_LOOK: Duration = Duration::from_millis(5);
/// How often a device that was full is asked again though nothing was removed.
const PROBE: Duration = Duration::from_secs(1);

/// What is rare enough to be a message.
pub enum Message {
    AgentAdded(Arc<Mailbox>),
    PortAdded(PortInfo, Vec<StdArc<RxProgress>>),
    PortRemoved(PortNo),
    Flush(oneshot::Sender<Flushed>),
    Marks { after: u32, limit: usize, reply: oneshot::Sender<MarkPage> },
    Stop { deadline: Instant, reply: std::sync::mpsc::Sender<Stopped> },
}

/// One thread's share of the megaflows, and the device.
pub struct Worker {
    consumer: Consumer<Cell, Message>,
    device: Device,
    start: Instant,
    rules: Installed,
    marks: MarkPool,
    quarantine: VecDeque<Leaving>,
    next_quarantine_look: Instant,
    ports: BTreeMap<PortNo, Attached>,
    mailboxes: Vec<Arc<Mailbox>>,
    /// Rules that something else than their owners concerns.
    todo: VecDeque<RuleId>,
    timers: BinaryHeap<Reverse<(Instant, RuleId)>>,
    /// Rules that wait for room or a mark, oldest first.
    waiting: BTreeMap<u64, RuleId>,
    next_ticket: u64,
    /// How many waiting rules may try.
    room: usize,
    /// The device said that it has no room, and nothing was removed since.
    full: bool,
    next_probe: Instant,
    /// Rules put under an older number must go.
    flush: u64,
    flushes: Vec<Flushing>,
    stats_interval: Duration,
    next_stats: Instant,
    /// The place in the table where the reading of counts goes on; `None` between two readings.
    stats_at: Option<usize>,
    refused: [usize; Refusal::ALL.len()],
    tally: Tally,
    report: StdArc<StdMutex<Report>>,
    stopped: bool,
}

/// A port that is served, and the receive queues that its packets wait in.
struct Attached {
    info: PortInfo,
    queues: Vec<StdArc<RxProgress>>,
    /// Its rules in the device.
    rules: usize,
    /// It goes when its last rule has gone.
    leaving: bool,
}

/// A mark on its way back to the pool: its owners' pollers must have unbound it, and the rings have turned over.
struct Leaving {
    mark: Quarantined,
    /// The one port whose frames may carry it, if its rule had one.
    port: Option<PortNo>,
    unbinding: Owners,
}

/// A flush that is under way: rules put under an older number than `number` are left to be removed.
struct Flushing {
    number: u64,
    left: usize,
    removed: usize,
    reply: oneshot::Sender<Flushed>,
}

/// What is to be done about a rule next.
enum Step {
    /// All is as wanted.
    Bind,
    Put(StdArc<Wants>),
    Replace(StdArc<Wants>),
    Remove,
    /// It is wanted, but cannot be put, or not yet.
    Wait,
    Refuse(Trouble),
    /// A removal that failed is not due yet.
    Rest,
    /// Nobody wants it and the device does not have it.
    Forget,
}

impl Worker {
    pub(super) fn new(
        queue: Arc<Lanes>,
        device: &dyn backend::Device,
        start: Instant,
        config: &super::OffloadConfig,
        report: StdArc<StdMutex<Report>>,
    ) -> Worker {
        let device = Device::new(device);
        Worker {
            consumer: Consumer::new(queue),
            marks: MarkPool::new(device.caps.mark_bits.min(config.mark_bits)),
            device,
            start,
            rules: Installed::default(),
            quarantine: VecDeque::new(),
            next_quarantine_look: start,
            ports: BTreeMap::new(),
            mailboxes: Vec::new(),
            todo: VecDeque::new(),
            timers: BinaryHeap::new(),
            waiting: BTreeMap::new(),
            next_ticket: 0,
            room: 0,
            full: false,
            next_probe: start,
            flush: 0,
            flushes: Vec::new(),
            stats_interval: config.stats_interval,
            next_stats: start + config.stats_interval,
            stats_at: None,
            refused: [0; Refusal::ALL.len()],
            tally: Tally::default(),
            report,
            stopped: false,
        }
    }

    /// Works until it is told to stop.
    pub fn run(mut self) {
        while !self.stopped {
            let now = Instant::now();
            self.turn(now);
            if !self.stopped && !self.has_work(now) {
                let timeout = self.next_due().map(|due| due.saturating_duration_since(Instant::now()));
                if timeout != Some(Duration::ZERO) {
                    self.consumer.sleep(timeout);
                }
            }
        }
    }

    /// One round of everything that is due at `now`. A message that comes in the midst of it, which may be the one to
    /// stop, waits for no more than one more step of each kind, however slow the device.
    pub fn turn(&mut self, now: Instant) {
        match self.consumer.take_messages() {
            Some(messages) => messages.into_iter().for_each(|message| self.obey(message, now)),
            // It was given up while it hung in the device.
            None => drop(self.stop(now, now)),
        }
        if self.stopped {
            return self.publish();
        }
        // Right after the messages: any port that was added before a mark retired is known by now.
        self.release_marks(now);
        for _ in 0..BATCH {
            let Some(cell) = self.consumer.next_delete() else { break };
            self.visit(&cell, now);
            if self.consumer.has_messages() {
                break;
            }
        }
        for _ in 0..BATCH {
            let Some(id) = self.todo.pop_front() else { break };
            self.reconcile(id, now);
            if self.consumer.has_messages() {
                break;
            }
        }
        for _ in 0..BATCH {
            let Some(id) = self.next_timer(now) else { break };
            self.reconcile(id, now);
            if self.consumer.has_messages() {
                break;
            }
        }
        self.admit_waiting(now);
        for _ in 0..PUTS {
            let Some(cell) = self.consumer.next_put() else { break };
            self.visit(&cell, now);
            if self.consumer.is_urgent() {
                break;
            }
        }
        self.read_device(now);
        self.publish();
    }

    /// Whether another turn at `now` would find something to do.
    pub fn has_work(&self, now: Instant) -> bool {
        self.consumer.has_work()
            || !self.todo.is_empty()
            || (self.room > 0 && !self.waiting.is_empty())
            || self.stats_at.is_some()
            || self.next_due().is_some_and(|due| due <= now)
    }

    /// When something falls due by itself.
    fn next_due(&self) -> Option<Instant> {
        let timer = self.timers.peek().map(|Reverse((due, _))| *due);
        let quarantine = (!self.quarantine.is_empty()).then_some(self.next_quarantine_look);
        let probe = (!self.waiting.is_empty()).then_some(self.next_probe);
        let stats = (self.rules.in_device() > 0).then_some(self.next_stats);
        [timer, quarantine, probe, stats].into_iter().flatten().min()
    }

    /// An owner of a megaflow asked for attention.
    fn visit(&mut self, cell: &Arc<OffloadCell>, now: Instant) {
        let known = self.rules.find(cell.hash(), cell.matching());
        if cell.is_dead() {
            match known {
                Some(id) if self.rules.get(id).is_some_and(|rule| rule.owns(cell)) => self.reconcile(id, now),
                _ => self.bury(cell),
            }
            return;
        }
        let id = known.unwrap_or_else(|| self.rules.insert(Rule::new(cell)));
        if let Some(rule) = self.rules.get_mut(id)
            && !rule.owns(cell)
        {
            rule.owners.push(Arc::clone(cell));
        }
        self.reconcile(id, now);
    }

    /// Takes steps until the device has what the owners want, or cannot have it now.
    fn reconcile(&mut self, id: RuleId, now: Instant) {
        loop {
            self.bury_the_dead(id);
            match self.next_step(id, now) {
                Step::Bind => return self.bind(id),
                Step::Put(wants) => {
                    if self.put(id, &wants, now) {
                        return;
                    }
                }
                Step::Replace(wants) => {
                    if self.replace(id, &wants, now) {
                        return self.bind(id);
                    }
                }
                Step::Remove => {
                    if !self.remove(id, now) {
                        return;
                    }
                }
                Step::Refuse(trouble) => return self.refuse(id, trouble),
                Step::Wait => return self.show_trouble(id),
                Step::Rest => return,
                Step::Forget => {
                    self.set_trouble(id, None);
                    self.rules.remove(id);
                    return;
                }
            }
        }
    }

    fn next_step(&self, id: RuleId, now: Instant) -> Step {
        let Some(rule) = self.rules.get(id) else { return Step::Rest };
        let newest = rule.living().map(|owner| owner.wants()).max_by_key(|wants| wants.decision);
        let served = self.serves(rule.in_port());
        match (&rule.has, newest) {
            (Some(has), wants) => {
                let wants = wants.filter(|_| served && !rule.condemned && has.flush >= self.flush);
                match wants {
                    None if rule.stuck.as_ref().is_some_and(|stuck| !stuck.is_due(now)) => Step::Rest,
                    None => Step::Remove,
                    // A device that only marks has no actions that could be out of date.
                    Some(_) if has.level == Level::Mark && self.device.caps.level == Level::Mark => Step::Bind,
                    Some(wants) if has.actions == wants.actions => Step::Bind,
                    Some(wants) if self.device.caps.replace_in_place => Step::Replace(wants),
                    Some(_) => Step::Remove,
                }
            }
            (None, None) => Step::Forget,
            (None, Some(wants)) => {
                let refuse = |why, text: String| Step::Refuse(Trouble::new(why, text, wants.decision, now, None));
                if let Some(why) = &self.device.off {
                    return refuse(Refusal::NoDevice, why.clone());
                }
                if !served {
                    return refuse(Refusal::NoDevice, "no device serves the port".to_owned());
                }
                if let Err(what) = self.device.caps.check(&rule.matching, &wants.actions) {
                    return refuse(Refusal::Unsupported, what.to_string());
                }
                match &rule.trouble {
                    Some(trouble) if !trouble.may_try(wants.decision, now) => Step::Wait,
                    _ if self.full => refuse(Refusal::NoRoom, PutError::NoRoom.to_string()),
                    _ => Step::Put(wants),
                }
            }
        }
    }

    /// Puts a rule that the device does not have. `true` when the rule needs no further look.
    fn put(&mut self, id: RuleId, wants: &Wants, now: Instant) -> bool {
        let Some(lease) = self.marks.take() else {
            let text = format!("all {} marks are in use", self.marks.capacity());
            self.refuse(id, Trouble::new(Refusal::NoMark, text, wants.decision, now, None));
            return true;
        };
        if self.rules.in_device() == 0 {
            // Nothing is lost by a reset of an empty device, so it is none to start over for.
            self.device.was_reset();
        }
        let Some(rule) = self.rules.get(id) else {
            self.marks.give_back(lease);
            return true;
        };
        rule.living().for_each(|owner| owner.set_outcome(Standing::Installing));
        let install = Install {
            matching: &rule.matching,
            actions: &wants.actions,
            mark: lease.mark(),
            level: self.device.caps.level,
            in_port: rule.in_port(),
        };
        match self.device.put(install, &mut self.tally) {
            Ok((handle, done)) => {
                let (actions, level) = (wants.actions.clone(), done.level);
                let has = InDevice { handle, level, lease, actions, flush: self.flush, stats: FlowStats::default() };
                if let Some(attached) = rule.in_port().and_then(|port| self.ports.get_mut(&port)) {
                    attached.rules += 1;
                }
                self.rules.set_has(id, Some(has));
                self.set_trouble(id, None);
                // Another look: an owner may have died or changed its mind meanwhile.
                false
            }
            Err(error) => {
                match error {
                    // A device that failed may have had the rule for a moment.
                    PutError::Device(_) => self.retire(id, lease, Owners::new()),
                    PutError::Unsupported(_) | PutError::NoRoom => self.marks.give_back(lease),
                }
                self.fail(id, error, wants.decision, now);
                true
            }
        }
    }

    /// Changes a rule in place. `false` when it failed: then the rule stands with actions that nobody wants, so it is
    /// condemned. Its mark stays its own until the device has forgotten it.
    fn replace(&mut self, id: RuleId, wants: &Wants, now: Instant) -> bool {
        let Some((rule, has)) = self.rules.get(id).and_then(|rule| Some((rule, rule.has.as_ref()?))) else {
            return false;
        };
        let install = Install {
            matching: &rule.matching,
            actions: &wants.actions,
            mark: has.lease.mark(),
            level: self.device.caps.level,
            in_port: rule.in_port(),
        };
        let result = self.device.replace(has.handle, install, &mut self.tally);
        let Some(rule) = self.rules.get_mut(id) else { return false };
        match (result, rule.has.as_mut()) {
            (Ok(done), Some(has)) => {
                has.level = done.level;
                has.actions = wants.actions.clone();
                self.set_trouble(id, None);
                // It may be out of date again already; then the flow stands in a lane, and will be looked at.
                true
            }
            (Ok(_), None) => false,
            (Err(error), _) => {
                rule.condemned = true;
                self.fail(id, error, wants.decision, now);
                false
            }
        }
    }

    /// Removes a rule from the device. `false` when that failed; it is tried again until it does not.
    fn remove(&mut self, id: RuleId, now: Instant) -> bool {
        let Some((rule, has)) = self.rules.get(id).and_then(|rule| Some((rule, rule.has.as_ref()?))) else {
            return true;
        };
        for owner in &rule.owners {
            OffloadCell::publish_mark(owner, None);
            owner.set_outcome(Standing::Removing);
        }
        match self.device.delete(has.handle, &mut self.tally) {
            Ok(stats) => {
                self.credit(id, stats);
                self.forgotten(id);
                self.full = false;
                self.room += 1;
                true
            }
            Err(DeleteError(text)) => {
                let Some(rule) = self.rules.get_mut(id) else { return false };
                rule.condemned = true;
                let stuck = Trouble::new(Refusal::Device, text, 0, now, None).after(rule.stuck.as_ref(), rule.hash);
                let due = stuck.next;
                rule.stuck = Some(stuck);
                self.timers.extend(due.map(|due| Reverse((due, id))));
                false
            }
        }
    }

    /// The device has no such rule any more: its mark leaves.
    fn forgotten(&mut self, id: RuleId) {
        let Some(has) = self.rules.set_has(id, None) else { return };
        let mut unbinding = Owners::new();
        if let Some(rule) = self.rules.get_mut(id) {
            rule.condemned = false;
            rule.stuck = None;
            unbinding.extend(rule.living().cloned());
        }
        self.retire(id, has.lease, unbinding);
        for flush in &mut self.flushes {
            if has.flush < flush.number {
                flush.left -= 1;
                flush.removed += 1;
            }
        }
        self.end_flushes();
        if let Some(port) = self.rules.get(id).and_then(Rule::in_port) {
            if let Some(attached) = self.ports.get_mut(&port) {
                attached.rules -= 1;
            }
            self.detach(port);
        }
    }

    /// Puts a mark into quarantine until the receive queues of the rule's ports have turned over.
    fn retire(&mut self, id: RuleId, lease: MarkLease, unbinding: Owners) {
        let port = self.rules.get(id).and_then(Rule::in_port);
        let concerned = self.ports.iter().filter(|(number, _)| port.is_none_or(|port| port == **number));
        let mark = lease.retire(concerned.flat_map(|(_, attached)| &attached.queues));
        self.quarantine.push_back(Leaving { mark, port, unbinding });
    }

    /// The owners learn their mark.
    fn bind(&mut self, id: RuleId) {
        let Some((rule, has)) = self.rules.get(id).and_then(|rule| Some((rule, rule.has.as_ref()?))) else { return };
        for owner in rule.living() {
            OffloadCell::publish_mark(owner, Some(has.lease.mark()));
            owner.set_outcome(Standing::Offloaded(has.level));
            answer(owner, self.start, &mut self.tally);
        }
    }

    /// Dead owners leave a rule that does without them: one that the device does not have, or that others own.
    fn bury_the_dead(&mut self, id: RuleId) {
        let Some(rule) = self.rules.get_mut(id) else { return };
        if rule.has.is_some() && rule.living().next().is_none() {
            return;
        }
        let (dead, alive) = rule.owners.drain(..).partition::<Owners, _>(|owner| owner.is_dead());
        rule.owners = alive;
        dead.iter().for_each(|cell| self.bury(cell));
    }

    fn bury(&mut self, cell: &Arc<OffloadCell>) {
        OffloadCell::publish_mark(cell, None);
        cell.set_outcome(Standing::Gone);
        answer(cell, self.start, &mut self.tally);
    }

    /// A put or a replace failed.
    fn fail(&mut self, id: RuleId, error: PutError, decision: u64, now: Instant) {
        let text = error.to_string();
        let why = match error {
            PutError::Unsupported(_) => Refusal::Unsupported,
            PutError::NoRoom => Refusal::NoRoom,
            PutError::Device(_) if self.device.off.is_some() => Refusal::NoDevice,
            PutError::Device(_) => Refusal::Device,
        };
        self.full |= why == Refusal::NoRoom;
        self.refuse(id, Trouble::new(why, text, decision, now, None));
    }

    /// Records why a rule is not as wanted, and sees to it that it is tried again if that can help.
    fn refuse(&mut self, id: RuleId, trouble: Trouble) {
        let Some(rule) = self.rules.get_mut(id) else { return };
        let mut trouble = trouble;
        match trouble.why {
            Refusal::Device => trouble = trouble.after(rule.trouble.as_ref(), rule.hash),
            Refusal::NoRoom | Refusal::NoMark if rule.ticket.is_none() => {
                rule.ticket = Some(self.next_ticket);
                if self.waiting.is_empty() {
                    self.next_probe = trouble.last + PROBE;
                }
                self.waiting.insert(self.next_ticket, id);
                self.next_ticket += 1;
            }
            _ => {}
        }
        self.timers.extend(trouble.next.map(|due| Reverse((due, id))));
        self.set_trouble(id, Some(trouble));
        self.show_trouble(id);
    }

    fn show_trouble(&mut self, id: RuleId) {
        let Some((rule, trouble)) = self.rules.get(id).and_then(|rule| Some((rule, rule.trouble.as_ref()?))) else {
            return;
        };
        for owner in rule.living() {
            owner.set_outcome(Standing::Refused(trouble.why));
            answer(owner, self.start, &mut self.tally);
        }
    }

    fn set_trouble(&mut self, id: RuleId, trouble: Option<Trouble>) {
        let Some(rule) = self.rules.get_mut(id) else { return };
        let why = trouble.as_ref().map(|trouble| trouble.why);
        if let Some(why) = why {
            self.refused[why as usize] += 1;
        }
        if !matches!(why, Some(Refusal::NoRoom | Refusal::NoMark))
            && let Some(ticket) = rule.ticket.take()
        {
            self.waiting.remove(&ticket);
        }
        if let Some(before) = std::mem::replace(&mut rule.trouble, trouble) {
            self.refused[before.why as usize] -= 1;
        }
    }

    /// The oldest timer that is due.
    fn next_timer(&mut self, now: Instant) -> Option<RuleId> {
        let Reverse((due, _)) = self.timers.peek()?;
        if *due > now {
            return None;
        }
        self.timers.pop().map(|Reverse((_, id))| id)
    }

    /// Rules that waited for room or a mark try, one for each that was given back.
    fn admit_waiting(&mut self, now: Instant) {
        if !self.waiting.is_empty() && now >= self.next_probe {
            // Room may appear by itself.
            self.next_probe = now + PROBE;
            self.full = false;
            self.room += 1;
        }
        for _ in 0..BATCH {
            if self.room == 0 {
                break;
            }
            let Some((_, id)) = self.waiting.pop_first() else { break };
            let Some(rule) = self.rules.get_mut(id) else { continue };
            rule.ticket = None;
            if let Some(trouble) = &mut rule.trouble {
                trouble.next = Some(now);
            }
            self.reconcile(id, now);
            // One that turned out to be dead leaves the room to the next.
            self.room -= usize::from(self.rules.get(id).is_some());
            if self.consumer.has_messages() {
                break;
            }
        }
        if self.waiting.is_empty() {
            self.room = 0;
        }
    }

    /// Takes marks whose quarantine is over back into the pool.
    fn release_marks(&mut self, now: Instant) {
        if self.quarantine.is_empty() || now < self.next_quarantine_look {
            return;
        }
        self.next_quarantine_look = now + QUARANTINE_LOOK;
        let mut held = false;
        for _ in 0..self.quarantine.len().min(4 * BATCH) {
            let Some(leaving) = self.quarantine.pop_front() else { break };
            let Leaving { mark, port, mut unbinding } = leaving;
            unbinding.retain(|owner| !owner.is_delivered());
            let mark = if unbinding.is_empty() { self.marks.release(mark) } else { Err(mark) };
            match mark {
                Ok(()) => self.room += 1,
                Err(mark) => {
                    held = true;
                    self.quarantine.push_back(Leaving { mark, port, unbinding });
                }
            }
        }
        if held {
            // A sleeping poller does not look at its queues by itself.
            self.mailboxes.retain(|mailbox| !mailbox.is_closed());
            self.mailboxes.iter().for_each(|mailbox| mailbox.ring());
        }
    }

    /// Asks the device whether it is still the one that the rules were put into, and what it has counted.
    fn read_device(&mut self, now: Instant) {
        if self.stats_at.is_none() {
            if now < self.next_stats || self.rules.in_device() == 0 {
                return;
            }
            self.next_stats = now + self.stats_interval;
            if self.device.was_reset() {
                return self.start_over();
            }
            self.stats_at = Some(0);
        }
        let (ids, next) = self.rules.slice(self.stats_at.unwrap_or(0), BATCH);
        self.stats_at = (next > 0).then_some(next);
        let handles: Vec<_> = ids.iter().filter_map(|&id| Some(self.rules.get(id)?.has.as_ref()?.handle)).collect();
        let Some(all) = self.device.stats(&handles) else { return };
        for (id, stats) in ids.into_iter().zip(all) {
            self.credit(id, stats);
        }
    }

    /// Adds what a rule has counted since the last reading to its flow. Of several owners one gets it, so that the
    /// sum is right.
    fn credit(&mut self, id: RuleId, stats: FlowStats) {
        let Some(rule) = self.rules.get_mut(id) else { return };
        let Some(has) = &mut rule.has else { return };
        let more = stats.since(&has.stats);
        has.stats = stats;
        // Packets that were only marked come to a poller, which counts them.
        if has.level == Level::Full
            && let Some(owner) = rule.owners.iter().find(|owner| !owner.is_dead()).or(rule.owners.first())
        {
            owner.add_device_stats(&more);
        }
    }

    /// The device was reset at some moment since it was last asked. Rules put after that moment are in it and stamp
    /// their marks, so all that the table says is there must go before a mark may.
    fn start_over(&mut self) {
        self.tally.resets += 1;
        if self.device.flush(&self.rules.handles()) {
            return self.forget_all();
        }
        let (ids, _) = self.rules.slice(0, usize::MAX);
        for id in ids {
            if let Some(rule) = self.rules.get_mut(id) {
                rule.condemned = true;
            }
            self.todo.push_back(id);
        }
        self.full = false;
    }

    /// The device has no rule any more.
    fn forget_all(&mut self) {
        let (ids, _) = self.rules.slice(0, usize::MAX);
        for id in ids {
            if let Some(rule) = self.rules.get(id) {
                for owner in &rule.owners {
                    OffloadCell::publish_mark(owner, None);
                    owner.set_outcome(Standing::Software);
                }
            }
            self.forgotten(id);
            self.todo.push_back(id);
        }
        self.full = false;
        self.stats_at = None;
    }

    fn serves(&self, port: Option<PortNo>) -> bool {
        self.device.off.is_none()
            && match port {
                Some(port) => self.ports.get(&port).is_some_and(|attached| !attached.leaving),
                None => !self.ports.is_empty(),
            }
    }

    fn publish(&mut self) {
        if self.device.off.is_some() && self.rules.in_device() > 0 {
            // Nothing can be asked of it any more, and its fence keeps its marks away.
            self.forget_all();
        }
        let mut report = self.report.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        report.take(&mut self.tally);
        report.off.clone_from(&self.device.off);
        report.rules = self.rules.in_device();
        report.megaflows = self.rules.len();
        report.refused = self.refused;
        report.marks = MarkCounts {
            in_use: self.marks.taken() - self.quarantine.len() as u64,
            quarantined: self.quarantine.len() as u64,
            capacity: self.marks.capacity(),
        };
        if !report.ports.iter().map(|row| row.number).eq(self.ports.keys().copied()) {
            let row = |a: &Attached| PortRow { number: a.info.number, name: a.info.name.clone() };
            report.ports = self.ports.values().map(row).collect();
        }
    }
}

impl Drop for Worker {
    /// A worker that ends by a panic of its own leaves nobody to watch the device: its marks are ignored from now on.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.device.fence.raise();
            let mut report = self.report.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            report.off = Some("the offload worker panicked".to_owned());
        }
    }
}

fn answer(cell: &OffloadCell, start: Instant, tally: &mut Tally) {
    // The end of a request is now, whenever the turn began.
    tally.latency.extend(cell.answer(since(start, Instant::now())));
}
