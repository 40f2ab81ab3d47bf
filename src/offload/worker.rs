//! [`Worker`]: compares what flows want with what the device has, and does something about the difference.
//!
//! Read `Worker::reconcile` first: it is the whole policy. Everything else only says which rule to look at, and
//! when. A turn looks at, in this order: messages, flows that died or changed, rules that something else concerns (a flush, a port, a
//! reset, a setting), rules whose time has come, rules that waited for room, and at last a batch of puts.
//!
//! ```text
//!            owners want ──┐                    ┌── no rule, wanted ─────► put
//!                          ├──► what is next? ──┼── rule, not wanted ────► delete, until the device has forgotten
//!            device has ───┘                    ├── other actions ───────► replace, or delete and put
//!                                               └── as wanted ───────────► bind the mark at the owners' pollers
//! ```
//!
//! - `steps`: what is asked of the device for one rule
//! - `batch`: puts that are asked of it together
//! - `reasons`: why a rule is not as wanted
//! - `room`, `rates`: whose turn it is, and who makes room for whom
//! - `messages`, `shards`: what comes from the control thread, and from other workers
//! - `device`: the channel to the device
//!
//! # Thread-safety
//! One thread owns it. Others reach it through its queue, read its `Report`, and see its cells. What it shares with other
//! workers is in the `Crew`.

mod batch;
mod device;
mod messages;
mod rates;
mod reasons;
mod room;
mod shards;
mod steps;
#[cfg(all(test, not(loom)))]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::sync::Arc as StdArc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use batch::Put;
use device::Device;
use futures_channel::oneshot;

pub use messages::Gathering;
pub use shards::Parcel;

use super::Stopped;
use super::agent::Mailbox;
use super::backend::{Done, Grace, PutError};
use super::crew::{Crew, SHARDS};
use super::mark::{MarkLease, Quarantined};
use super::queue::{Consumer, Queue, Sake};
use super::report::{MarkPage, PortRow, Request, Tally};
use super::state::{Cell, Level, OffloadCell, Wants};
use super::table::{Installed, Owners, Rule, RuleId};
use super::trouble::{Reason, Trouble};
use super::waiting::Waiting;
use crate::clock;
use crate::flow::PortNo;
use crate::port::{PortInfo, RxPoint, RxProgress};
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
    /// The device serves the port.
    PortConnected(PortNo, u64),
    /// The device can do more, or less, for packets that leave by it.
    PortChanged(PortNo, u64),
    Flush {
        number: u64,
        gathering: StdArc<Gathering>,
    },
    Marks {
        after: u32,
        limit: usize,
        reply: oneshot::Sender<MarkPage>,
    },
    /// Something that all workers share has changed: settings, whose a shard is, room, or that the device is off.
    Look,
    /// A shard, with all that is known of its megaflows.
    Adopt(Box<Parcel>),
    /// No shard is to be given away any more.
    Halt(std::sync::mpsc::Sender<()>),
    Stop {
        deadline: Instant,
        reply: std::sync::mpsc::Sender<Stopped>,
    },
}

/// One thread's share of the megaflows, and its channel to the device.
pub struct Worker {
    id: usize,
    crew: StdArc<Crew>,
    consumer: Consumer<Cell, Message>,
    device: Device,
    rules: Installed,
    /// The shards that are ours now.
    shards: [bool; SHARDS],
    /// Flows of shards that are on their way here.
    held: Vec<Arc<OffloadCell>>,
    quarantine: VecDeque<Leaving>,
    next_quarantine_look: Instant,
    /// The device was restarted: nothing is put before the marks of its former life have left the receive queues.
    convalescent: bool,
    recovery: Vec<(StdArc<RxProgress>, RxPoint)>,
    ports: BTreeMap<PortNo, Attached>,
    /// The newest change of the device's ways to ports that its rules know of, and of all before.
    ways_known: u64,
    mailboxes: Vec<Arc<Mailbox>>,
    enabled: bool,
    /// Puts that wait for their batch; `None` where there is none being made.
    batch: Option<Vec<Put>>,
    /// How many rules wait for the device's answer to their batch.
    staged: usize,
    /// Rules that something else than their owners concerns.
    todo: VecDeque<RuleId>,
    timers: BinaryHeap<Reverse<(Instant, RuleId)>>,
    /// Rules whose turn has not come under the limit of operations, oldest first.
    delayed: VecDeque<RuleId>,
    /// When that limit lets the next through.
    next_operation: Option<Instant>,
    /// Rules that wait for room or a mark.
    waiting: Waiting,
    /// How many waiting rules may try.
    room: usize,
    /// Whether they try on for as long as it goes well.
    probing: bool,
    /// Up to where the crew's count of room that appeared is known.
    room_known: u64,
    /// The device said that it has no room, and nothing was removed since.
    full: bool,
    next_probe: Instant,
    /// Rules that are to make room for busier ones.
    evictions: VecDeque<RuleId>,
    next_evictions: Instant,
    /// Rules put under an older number must go.
    flush: u64,
    flushes: Vec<Flushing>,
    stats_interval: Duration,
    next_stats: Instant,
    /// The place in the table where the reading of counts goes on; `None` between two readings.
    stats_at: Option<usize>,
    refused: [usize; Reason::ALL.len()],
    short: [usize; Reason::ALL.len()],
    full_rules: usize,
    confirmed_rules: usize,
    tally: Tally,
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
    mark: Retired,
    /// The one port whose frames may carry it, if its rule had one.
    port: Option<PortNo>,
    unbinding: Owners,
}

/// A mark that the device stamps no more.
enum Retired {
    /// Until then a frame that carries it may be on its way to a receive queue.
    UnderWay(MarkLease, Grace),
    /// Frames that carry it may wait in receive queues.
    Waiting(Quarantined),
}

/// A flush that is under way: rules put under an older number than `number` are left to be removed.
struct Flushing {
    number: u64,
    left: usize,
    removed: usize,
    gathering: StdArc<Gathering>,
}

/// What is to be done about a rule next.
enum Step {
    /// All is as wanted.
    Bind,
    /// Takes it as far as `Done` says.
    Put(StdArc<Wants>, Done),
    Replace(StdArc<Wants>, Done),
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
    /// Worker number `id` of `crew`, with the shards that are its own now. `convalescent`: the device was restarted.
    pub(super) fn new(
        id: usize,
        crew: StdArc<Crew>,
        shards: [bool; SHARDS],
        config: &super::OffloadConfig,
        convalescent: bool,
    ) -> Worker {
        let start = clock::now();
        Worker {
            id,
            consumer: Consumer::new(Arc::clone(&crew.lanes[id])),
            device: Device::new(id, StdArc::clone(&crew)),
            rules: Installed::default(),
            shards,
            held: Vec::new(),
            quarantine: VecDeque::new(),
            next_quarantine_look: start,
            convalescent,
            recovery: Vec::new(),
            ports: BTreeMap::new(),
            ways_known: crew.newest_way(),
            mailboxes: Vec::new(),
            enabled: crew.settings.is_enabled(),
            batch: None,
            staged: 0,
            todo: VecDeque::new(),
            timers: BinaryHeap::new(),
            delayed: VecDeque::new(),
            next_operation: None,
            waiting: Waiting::default(),
            room: 0,
            probing: false,
            room_known: crew.room_so_far(),
            full: false,
            next_probe: start,
            evictions: VecDeque::new(),
            next_evictions: start,
            flush: crew.newest_flush(),
            flushes: Vec::new(),
            stats_interval: config.stats_interval,
            next_stats: start + config.stats_interval,
            stats_at: None,
            refused: [0; Reason::ALL.len()],
            short: [0; Reason::ALL.len()],
            full_rules: 0,
            confirmed_rules: 0,
            tally: Tally::default(),
            stopped: false,
            crew,
        }
    }

    /// Works until it is told to stop.
    pub fn run(mut self) {
        while !self.stopped {
            let now = clock::now();
            self.turn(now);
            if !self.stopped && !self.has_work(now) {
                let timeout = self.next_due().map(|due| due.saturating_duration_since(clock::now()));
                if timeout != Some(Duration::ZERO) {
                    self.consumer.sleep_for(self.sake(), timeout);
                }
            }
        }
    }

    /// One round of everything that is due at `now`. A message that comes in the midst of it, which may be the one to
    /// stop, waits for no more than one more step of each kind, however slow the device.
    pub fn turn(&mut self, now: Instant) {
        self.device.tell_time(now);
        match self.consumer.take_messages() {
            Some(messages) => messages.into_iter().for_each(|message| self.obey(message, now)),
            // It was given up while it hung in the device.
            None => drop(self.stop(now, now)),
        }
        if self.stopped || !self.is_well(now) {
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
        self.go_through(now, |worker, _| worker.todo.pop_front());
        self.go_through(now, Worker::next_timer);
        self.go_through(now, Worker::next_delayed);
        self.admit_waiting(now);
        self.evict(now);
        self.begin_batch();
        for _ in 0..PUTS {
            if !self.may_operate(now) {
                break;
            }
            let Some(cell) = self.consumer.next_put() else { break };
            self.visit(&cell, now);
            if self.consumer.is_urgent() || self.is_batch_full() {
                break;
            }
        }
        self.end_batch(now);
        self.read_device(now);
        self.publish();
    }

    /// Looks at the rules that `next` names, a batch of them.
    fn go_through(&mut self, now: Instant, next: impl Fn(&mut Worker, Instant) -> Option<RuleId>) {
        for _ in 0..BATCH {
            let Some(id) = next(self, now) else { break };
            self.reconcile(id, now);
            if self.consumer.has_messages() {
                break;
            }
        }
    }

    /// Whether the device may be used: after a restart not before the pollers have forgotten the marks of its former life, and
    /// the receive queues have turned over. Then its marks may be trusted again.
    fn is_well(&mut self, now: Instant) -> bool {
        if !self.convalescent {
            return true;
        }
        self.recovery.retain(|(queue, point)| !queue.turned_over_since(point));
        if self.recovery.is_empty() && self.crew.is_renewed() {
            self.convalescent = false;
            self.crew.trust();
            return true;
        }
        self.next_quarantine_look = now + QUARANTINE_LOOK;
        self.ring_pollers();
        false
    }

    /// Whether another turn at `now` would find something to do.
    pub fn has_work(&self, now: Instant) -> bool {
        if self.convalescent {
            return self.consumer.has_messages();
        }
        let puts = self.next_operation.is_none_or(|due| due <= now);
        (if puts { self.consumer.has_work() } else { self.consumer.is_urgent() })
            || !self.todo.is_empty()
            || (puts && !self.delayed.is_empty())
            || (puts && (self.room > 0 || self.room_known != self.crew.room_so_far()) && !self.waiting.is_empty())
            || (puts && !self.evictions.is_empty())
            || self.stats_at.is_some()
            || self.next_due().is_some_and(|due| due <= now)
    }

    /// What there is to wake up for.
    fn sake(&self) -> Sake {
        match self.next_operation {
            _ if self.convalescent => Sake::Messages,
            Some(_) => Sake::Urgent,
            None => Sake::Anything,
        }
    }

    /// When something falls due by itself.
    fn next_due(&self) -> Option<Instant> {
        if self.convalescent {
            return Some(self.next_quarantine_look);
        }
        let timer = self.timers.peek().map(|Reverse((due, _))| *due);
        let quarantine = (!self.quarantine.is_empty()).then_some(self.next_quarantine_look);
        let probe = (!self.waiting.is_empty()).then_some(self.next_probe);
        let stats = (!self.rules.is_empty()).then_some(self.next_stats);
        [timer, quarantine, probe, stats, self.next_operation].into_iter().flatten().min()
    }

    /// An owner of a megaflow asked for attention.
    fn visit(&mut self, cell: &Arc<OffloadCell>, now: Instant) {
        if !self.is_ours(cell) {
            return;
        }
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
        if self.put_off(id) {
            return;
        }
        let mut request = Request::Put;
        loop {
            self.bury_the_dead(id);
            match self.next_step(id, now) {
                Step::Bind => return self.bind(id, request, now),
                Step::Put(..) if !self.may_operate(now) => return self.delay(id),
                Step::Replace(..) if !self.may_operate(now) => {
                    // Better in software than by actions that nobody wants any more; what only marks has none.
                    let acts = self
                        .rules
                        .get(id)
                        .and_then(|rule| rule.has.as_ref())
                        .is_some_and(|has| has.level == Level::Full);
                    if !acts || !self.remove(id, now) {
                        return self.delay(id);
                    }
                }
                Step::Put(wants, done) => {
                    if self.put(id, wants, done, now) {
                        return;
                    }
                }
                Step::Replace(wants, done) => {
                    request = Request::Modify;
                    if self.replace(id, &wants, done, now) {
                        return self.bind(id, request, now);
                    }
                }
                Step::Remove => {
                    request = Request::Modify;
                    if !self.remove(id, now) {
                        return;
                    }
                }
                Step::Refuse(trouble) => return self.refuse(id, trouble, now),
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
        let able = |wants: &Wants| self.crew.caps.check(&rule.matching, &wants.actions);
        match (&rule.has, newest) {
            (Some(has), wants) => {
                let keep = served && self.enabled && !rule.condemned && !rule.evicted && has.flush >= self.flush;
                match wants.filter(|_| keep).and_then(|wants| Some((able(&wants).ok()?, wants))) {
                    None if rule.stuck.as_ref().is_some_and(|stuck| !stuck.is_due(now)) => Step::Rest,
                    None => Step::Remove,
                    // Where a rule only marks, the device has no actions that could be out of date.
                    Some((done, _)) if has.level == Level::Mark && done.level == Level::Mark => Step::Bind,
                    Some((_, wants)) if has.actions == wants.actions && !rule.retry => Step::Bind,
                    Some((done, wants)) if self.crew.caps.replace_in_place => Step::Replace(wants, done),
                    Some(_) => Step::Remove,
                }
            }
            (None, None) => Step::Forget,
            (None, Some(wants)) => {
                let refuse = |why, text: &str| Step::Refuse(Trouble::new(why, text, wants.decision, now));
                if let Some(why) = self.crew.off() {
                    return refuse(Reason::Off, why);
                }
                if !self.enabled {
                    return refuse(Reason::Disabled, "offload is switched off");
                }
                if !served {
                    return refuse(Reason::Port, "no device serves the port");
                }
                if rule.evicted {
                    return refuse(Reason::Evicted, &format!("at {} packets a second", rule.pace.rate));
                }
                let done = match able(&wants) {
                    Ok(done) => done,
                    Err(what) => return Step::Refuse(Trouble::unsupported(what, wants.decision, now)),
                };
                match &rule.trouble {
                    Some(trouble) if !trouble.may_try(wants.decision, now) => Step::Wait,
                    _ if self.full => refuse(Reason::NoRoom, &PutError::NoRoom.to_string()),
                    _ => Step::Put(wants, done),
                }
            }
        }
    }

    fn serves(&self, port: Option<PortNo>) -> bool {
        self.crew.off().is_none()
            && match port {
                Some(port) => self.ports.get(&port).is_some_and(|attached| !attached.leaving),
                None => !self.ports.is_empty(),
            }
    }

    fn publish(&mut self) {
        if self.crew.off().is_some() && self.rules.in_device() > 0 {
            // Nothing can be asked of it any more, and its fence keeps its marks away.
            self.forget_all();
        }
        let post = &self.crew.posts[self.id];
        self.crew.set_waiting(self.id, self.waiting.len());
        post.in_device.store(self.rules.in_device(), Ordering::Relaxed);
        let mut report = post.report();
        report.take(&mut self.tally);
        report.rules = self.rules.in_device();
        report.rules_full = self.full_rules;
        report.rules_confirmed = self.confirmed_rules;
        report.megaflows = self.rules.len();
        report.waiting = self.waiting.len();
        report.refused = self.refused;
        report.short = self.short;
        report.quarantined = self.quarantine.len() as u64;
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
            let why = format!("offload worker {} panicked", self.id);
            log::error!("offload is off: {why}");
            self.crew.fail(why);
        }
    }
}

/// `moment`: now, from the crew's start.
pub(super) fn answer(cell: &OffloadCell, request: Request, moment: Duration, tally: &mut Tally) {
    tally.latency.extend(cell.answer(moment).map(|time| (request, time)));
}
