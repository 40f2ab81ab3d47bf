//! Workers that the test steps by hand, on a device that does what the test says. No thread, no sleep.

mod bugs;
mod off;
mod room;
mod several;

use std::collections::{BTreeMap, VecDeque};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::*;
use crate::flow::{Action, Actions, Field, Key, Mask, Match, PortNo, Ufid};
use crate::offload::backend::{
    ActionSet, Backend, BackendCaps, DeleteError, Done, Fence, FlushError, Generation, Handle, Install, StatsError,
    Unsupported,
};
use crate::offload::{Agent, FlowSlot, FlowStats, Flushed, Offload, OffloadConfig, Standing};
use crate::port::{Kind, RxProgress};

/// What the device holds, what was asked of it, and what it will answer.
struct Script {
    rules: BTreeMap<u64, (Match, u32, Actions)>,
    operations: Vec<&'static str>,
    /// What it was told with each put and change.
    told: Vec<Told>,
    put_answers: VecDeque<PutError>,
    replace_answers: VecDeque<PutError>,
    delete_failures: u32,
    capacity: usize,
    caps: BackendCaps,
    counts: FlowStats,
    /// Those of one rule, by its mark.
    counts_of: BTreeMap<u32, FlowStats>,
    /// What keeps puts and changes at level `Mark`.
    short: Option<Unsupported>,
    generation: u64,
    flush_fails: bool,
    panic_at: Option<&'static str>,
    /// Runs in the midst of the next operation.
    meanwhile: Option<Box<dyn FnOnce() + Send>>,
    /// Runs before the generation is told the next time.
    meanwhile_generation: Option<Box<dyn FnOnce() + Send>>,
    next: u64,
}

/// An [`Install`] to keep.
#[derive(PartialEq, Debug)]
struct Told {
    matching: Match,
    actions: Actions,
    mark: Option<u32>,
    level: Level,
    in_port: Option<PortNo>,
}

impl Script {
    fn tell(&mut self, flow: &Install<'_>) {
        let Install { matching, actions, mark, level, in_port } = *flow;
        let (actions, mark) = (actions.clone(), Some(mark.0.get()));
        self.told.push(Told { matching: *matching, actions, mark, level, in_port });
    }

    fn done(&self, wanted: Level) -> Done {
        match self.short {
            Some(_) if wanted == Level::Full => Done { level: Level::Mark, short: self.short },
            _ => Done::at(wanted.min(self.caps.level)),
        }
    }

    fn counts(&self, handle: Handle) -> FlowStats {
        let mark = self.rules.get(&handle.0).map_or(0, |rule| rule.1);
        self.counts_of.get(&mark).copied().unwrap_or(self.counts)
    }
}

struct Scripted(Arc<Mutex<Script>>);

/// A device whose channels `channel` makes.
struct Of<F>(BackendCaps, Fence, F);

impl<F: Fn() -> Box<dyn Backend> + Send + Sync> crate::offload::backend::Device for Of<F> {
    fn capabilities(&self) -> BackendCaps {
        self.0.clone()
    }

    fn channel(&self) -> Box<dyn Backend> {
        (self.2)()
    }

    fn fence(&self) -> Fence {
        self.1.clone()
    }

    fn restart(&self) -> Result<(), FlushError> {
        Ok(())
    }
}

impl Scripted {
    fn operate(&self, name: &'static str) -> std::sync::MutexGuard<'_, Script> {
        let mut script = self.0.lock().unwrap();
        script.operations.push(name);
        if script.panic_at == Some(name) {
            drop(script);
            panic!("as the script says");
        }
        if let Some(meanwhile) = script.meanwhile.take() {
            drop(script);
            meanwhile();
            script = self.0.lock().unwrap();
        }
        script
    }
}

impl Backend for Scripted {
    fn put(&mut self, flow: Install<'_>) -> Result<(Handle, Done), PutError> {
        let mut script = self.operate("put");
        script.tell(&flow);
        if let Some(error) = script.put_answers.pop_front() {
            return Err(error);
        }
        if script.rules.len() >= script.capacity {
            return Err(PutError::NoRoom);
        }
        script.next += 1;
        let handle = script.next;
        assert!(script.rules.values().all(|rule| rule.0 != *flow.matching), "put twice");
        script.rules.insert(handle, (*flow.matching, flow.mark.0.get(), flow.actions.clone()));
        Ok((Handle(handle), script.done(flow.level)))
    }

    fn replace(&mut self, handle: Handle, flow: Install<'_>) -> Result<(Done, FlowStats), PutError> {
        let mut script = self.operate("replace");
        script.tell(&flow);
        if let Some(error) = script.replace_answers.pop_front() {
            return Err(error);
        }
        let rule = script.rules.get_mut(&handle.0).expect("a rule that is replaced is there");
        assert_eq!(rule.0, *flow.matching);
        *rule = (*flow.matching, flow.mark.0.get(), flow.actions.clone());
        Ok((script.done(flow.level), script.counts(handle)))
    }

    fn delete(&mut self, handle: Handle) -> Result<FlowStats, DeleteError> {
        let mut script = self.operate("delete");
        if script.delete_failures > 0 {
            script.delete_failures -= 1;
            return Err(DeleteError("not now".to_owned()));
        }
        let counts = script.counts(handle);
        Ok(script.rules.remove(&handle.0).map_or(FlowStats::default(), |_| counts))
    }

    fn stats(&mut self, handles: &[Handle], into: &mut Vec<FlowStats>) -> Result<(), StatsError> {
        let script = self.0.lock().unwrap();
        into.extend(handles.iter().map(|handle| script.counts(*handle)));
        Ok(())
    }

    fn generation(&mut self) -> Generation {
        let meanwhile = self.0.lock().unwrap().meanwhile_generation.take();
        meanwhile.into_iter().for_each(|meanwhile| meanwhile());
        Generation(self.0.lock().unwrap().generation)
    }

    fn flush(&mut self, handles: &[Handle]) -> Result<(), FlushError> {
        let mut script = self.operate("flush");
        if script.flush_fails {
            return Err(FlushError("not at once".to_owned()));
        }
        script.rules.retain(|handle, _| !handles.contains(&Handle(*handle)));
        Ok(())
    }
}

/// A device of `script`.
fn scripted(script: &Arc<Mutex<Script>>, fence: &Fence) -> impl crate::offload::backend::Device + use<> {
    let (caps, script) = (script.lock().unwrap().caps.clone(), Arc::clone(script));
    Of(caps, fence.clone(), move || Box::new(Scripted(Arc::clone(&script))) as Box<dyn Backend>)
}

struct World {
    offload: Arc<Offload>,
    worker: Worker,
    others: Vec<Worker>,
    agent: Arc<Agent>,
    script: Arc<Mutex<Script>>,
    fence: Fence,
    ring: Arc<RxProgress>,
    now: Instant,
}

impl World {
    fn new(adjust: impl FnOnce(&mut Script, &mut OffloadConfig)) -> World {
        let caps = BackendCaps {
            name: "scripted",
            fields: Mask::EXACT,
            level: Level::Full,
            actions: ActionSet::ALL,
            capacity: None,
            mark_bits: 8,
            replace_in_place: true,
        };
        let mut script = Script {
            rules: BTreeMap::new(),
            operations: Vec::new(),
            told: Vec::new(),
            put_answers: VecDeque::new(),
            replace_answers: VecDeque::new(),
            delete_failures: 0,
            capacity: usize::MAX,
            caps,
            counts: FlowStats::default(),
            counts_of: BTreeMap::new(),
            short: None,
            generation: 0,
            flush_fails: false,
            panic_at: None,
            meanwhile: None,
            meanwhile_generation: None,
            next: 0,
        };
        let mut config = OffloadConfig::default();
        adjust(&mut script, &mut config);
        let (script, fence) = (Arc::new(Mutex::new(script)), Fence::default());
        let device = scripted(&script, &fence);
        let (offload, mut workers) = Offload::assemble_many(Arc::new(device), Instant::now(), &config);
        let worker = workers.remove(0);
        let agent = Arc::new(offload.agent(0, Box::new(|| {})).unwrap());
        let ring = Arc::new(RxProgress::new(64));
        offload.port_added(port(1), vec![Arc::clone(&ring)]);
        let offload = Arc::new(offload);
        let mut world = World { offload, worker, others: workers, agent, script, fence, ring, now: Instant::now() };
        world.settle();
        world
    }

    /// Steps the worker until it has nothing to do at this time.
    fn settle(&mut self) {
        for _ in 0..1_000 {
            let workers = std::iter::once(&mut self.worker).chain(&mut self.others);
            workers.for_each(|worker| worker.turn(self.now));
            let mut workers = std::iter::once(&self.worker).chain(&self.others);
            if !workers.any(|worker| worker.has_work(self.now)) {
                return;
            }
        }
        panic!("the worker does not come to rest");
    }

    /// Lets time pass in steps, with the poller asleep.
    fn pass(&mut self, time: Duration) {
        let steps = 20;
        for _ in 0..steps {
            self.now += time / steps;
            self.settle();
        }
    }

    /// The poller looks at its empty ring often enough.
    fn turn_ring_over(&self) {
        self.ring.took(0);
        self.ring.took(0);
    }

    fn adopt(&self, i: u32) -> crate::sync::Arc<OffloadCell> {
        self.adopt_for(&self.agent, i, output(1), 1)
    }

    fn adopt_for(&self, agent: &Agent, i: u32, actions: Actions, decision: u64) -> crate::sync::Arc<OffloadCell> {
        let slot = FlowSlot { index: i, generation: 0 };
        agent.adopt(self.now, slot, Ufid(u128::from(i)), flow(i), actions, decision)
    }

    fn marks(&mut self, after: u32, limit: usize) -> MarkPage {
        let offload = Arc::clone(&self.offload);
        let mut page = pin!(offload.marks(after, limit));
        assert_eq!(poll(&mut page), None);
        self.settle();
        poll(&mut page).unwrap().unwrap()
    }

    fn operations(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.script.lock().unwrap().operations)
    }

    fn device_actions(&self) -> Vec<Actions> {
        self.script.lock().unwrap().rules.values().map(|rule| rule.2.clone()).collect()
    }

    fn drained(&self) -> Vec<(u32, Option<u32>)> {
        let mut seen = Vec::new();
        self.agent.drain(|cell| seen.push((cell.slot().index, cell.mark().map(|mark| mark.0.get()))));
        seen
    }
}

/// Waits for what another thread does.
fn await_that(what: &str, mut cond: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !cond() {
        assert!(begun.elapsed() < Duration::from_secs(30), "in vain: {what}");
        std::thread::yield_now();
    }
}

/// What the future has come to.
fn poll<T>(future: &mut Pin<&mut impl Future<Output = T>>) -> Option<T> {
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

fn port(number: u32) -> PortInfo {
    PortInfo {
        name: format!("p{number}"),
        number: PortNo(number),
        kind: Kind::Sim,
        ifindex: None,
        rx_queues: 1,
        tx_checksum: true,
        tx_segment: true,
        ring: 64,
    }
}

fn flow_of(port: u32, i: u32) -> Match {
    let (mut key, mut mask) = (Key::ZERO, Mask::EMPTY);
    for (field, value) in [(Field::InPort, port), (Field::Ipv4Dst, i)] {
        key.set(field, value);
        mask.add_field(field);
    }
    Match::new(&key, &mask)
}

fn flow(i: u32) -> Match {
    flow_of(1, i)
}

fn output(port: u32) -> Actions {
    Actions::new(vec![Action::Output(PortNo(port))])
}

fn mark_of(cell: &OffloadCell) -> Option<u32> {
    cell.mark().map(|mark| mark.0.get())
}

#[test]
fn a_new_flow_is_put_once_and_its_poller_learns_the_mark() {
    let mut world = World::new(|_, _| {});
    let cell = world.adopt(1);
    assert_eq!(cell.standing(), Standing::Queued);
    assert!(!world.agent.has_events());
    world.settle();
    assert_eq!(cell.standing(), Standing::Offloaded(Level::Full));
    assert!(world.agent.has_events());
    assert_eq!(world.drained(), [(1, Some(1))]);
    assert_eq!(world.drained(), []);
    world.agent.ask_again(world.now, &cell);
    world.settle();
    assert_eq!(world.operations(), ["put"]);
    let snapshot = world.offload.snapshot();
    assert_eq!((snapshot.rules, snapshot.marks.in_use, snapshot.queue.depth), (1, 1, 0));
    assert_eq!((snapshot.operations.put.done, snapshot.latency.all.count >= 1), (1, true));
}

#[test]
fn a_flow_that_dies_while_queued_is_never_installed() {
    let mut world = World::new(|_, _| {});
    let cell = world.adopt(1);
    world.agent.update(world.now, &cell, output(2), 2);
    world.agent.release(world.now, &cell);
    world.settle();
    assert_eq!(world.operations(), [""; 0]);
    assert_eq!(cell.standing(), Standing::Gone);
    assert!(world.worker.rules.is_empty());
    assert_eq!(crate::sync::Arc::strong_count(&cell), 1, "nobody keeps a dead flow");
}

#[test]
fn a_flow_that_dies_while_installing_is_removed_after_and_never_bound() {
    let mut world = World::new(|_, _| {});
    let cell = world.adopt(1);
    let (agent, dying, now) = (Arc::clone(&world.agent), crate::sync::Arc::clone(&cell), world.now);
    world.script.lock().unwrap().meanwhile = Some(Box::new(move || agent.release(now, &dying)));
    world.settle();
    assert_eq!(world.operations(), ["put", "delete"]);
    assert_eq!(world.drained(), []);
    assert_eq!((cell.standing(), cell.mark()), (Standing::Gone, None));
    assert!(world.worker.rules.is_empty());
}

#[test]
fn a_flow_that_changes_while_installing_ends_with_its_newest_actions() {
    let mut world = World::new(|_, _| {});
    let cell = world.adopt(1);
    let (agent, changing, now) = (Arc::clone(&world.agent), crate::sync::Arc::clone(&cell), world.now);
    let change = move || agent.update(now, &changing, output(9), 2);
    world.script.lock().unwrap().meanwhile = Some(Box::new(change));
    world.settle();
    assert_eq!(world.device_actions(), [output(9)]);
    assert_eq!(world.operations(), ["put", "replace"]);
}

#[test]
fn many_changes_between_two_looks_cost_one_operation() {
    let mut world = World::new(|_, _| {});
    let cell = world.adopt(1);
    world.settle();
    for decision in 2..1_000 {
        world.agent.update(world.now, &cell, output(decision as u32), decision);
    }
    world.settle();
    assert_eq!(world.operations(), ["put", "replace"]);
    assert_eq!(world.device_actions(), [output(999)]);
    assert_eq!(world.offload.queue().coalesced, 997);
}

#[test]
fn a_device_that_only_marks_is_not_told_of_new_actions() {
    let mut world = World::new(|script, _| script.caps.level = Level::Mark);
    let cell = world.adopt(1);
    world.settle();
    world.agent.update(world.now, &cell, output(2), 2);
    world.settle();
    assert_eq!(world.operations(), ["put"]);
    assert_eq!(cell.standing(), Standing::Offloaded(Level::Mark));
}

#[test]
fn a_flow_made_again_while_its_old_rule_is_being_removed_ends_installed_once() {
    let mut world = World::new(|script, _| script.delete_failures = 1);
    let old = world.adopt(1);
    world.settle();
    world.agent.release(world.now, &old);
    world.settle();
    assert_eq!(old.standing(), Standing::Removing);
    let new = world.adopt_for(&world.agent, 1, output(2), 2);
    world.settle();
    assert_eq!(world.operations(), ["put", "delete"], "the failed removal waits for its time");
    world.pass(Duration::from_millis(100));
    assert_eq!(world.operations(), ["delete", "put"]);
    assert_eq!((old.standing(), new.standing()), (Standing::Gone, Standing::Offloaded(Level::Full)));
    assert_eq!(world.device_actions(), [output(2)]);
}

#[test]
fn a_flow_made_again_before_its_death_was_seen_ends_installed_once() {
    let mut world = World::new(|_, _| {});
    let old = world.adopt(1);
    world.settle();
    world.agent.release(world.now, &old);
    let new = world.adopt_for(&world.agent, 1, output(2), 2);
    world.settle();
    assert_eq!(world.device_actions(), [output(2)]);
    assert_eq!((old.standing(), new.standing()), (Standing::Gone, Standing::Offloaded(Level::Full)));
    world.agent.release(world.now, &new);
    world.settle();
    assert_eq!(world.device_actions(), []);
}

#[test]
fn pollers_share_a_megaflows_rule_until_the_last_leaves_and_the_newest_decision_wins() {
    let mut world = World::new(|_, _| {});
    let other = world.offload.agent(7, Box::new(|| {})).unwrap();
    let first = world.adopt_for(&world.agent, 1, output(2), 5);
    let second = world.adopt_for(&other, 1, output(3), 4);
    world.settle();
    assert_eq!(world.operations(), ["put"]);
    assert_eq!(world.device_actions(), [output(2)], "an older decision changes nothing");
    assert_eq!(first.mark(), second.mark());
    let rows = world.marks(0, 10).rows;
    assert_eq!((rows.len(), rows[0].owners.clone(), rows[0].ufid), (1, vec![0, 7], Ufid(1)));
    other.update(world.now, &second, output(4), 6);
    world.settle();
    assert_eq!(world.device_actions(), [output(4)]);
    world.agent.release(world.now, &first);
    world.settle();
    assert_eq!(first.standing(), Standing::Gone);
    assert_eq!(world.operations(), ["replace"]);
    other.release(world.now, &second);
    world.settle();
    assert_eq!(world.operations(), ["delete"]);
}

#[test]
fn equal_values_under_different_masks_are_two_rules() {
    let mut world = World::new(|_, _| {});
    let (mut key, mut eight, mut sixteen) = (Key::ZERO, Mask::EMPTY, Mask::EMPTY);
    key.set(Field::InPort, 1u32);
    key.set(Field::Ipv4Src, 0x0a00_0000u32);
    for (mask, bits) in [(&mut eight, 0xff00_0000), (&mut sixteen, 0xffff_0000)] {
        mask.add_field(Field::InPort);
        mask.add(Field::Ipv4Src, bits);
    }
    for (i, mask) in [eight, sixteen].iter().enumerate() {
        let slot = FlowSlot { index: i as u32, generation: 0 };
        world.agent.adopt(world.now, slot, Ufid(0), Match::new(&key, mask), output(1), 1);
    }
    world.settle();
    assert_eq!(world.offload.snapshot().rules, 2);
}

#[test]
fn what_a_rule_counted_before_it_had_another_level_is_the_flows_only_if_it_forwarded() {
    let mut world = World::new(|script, _| script.short = Some(Unsupported::Port(PortNo(9))));
    let counts = |packets| FlowStats { packets, bytes: 100 * packets, used_ns: 1 };
    let cell = world.adopt(1);
    world.settle();
    assert_eq!(cell.standing(), Standing::Offloaded(Level::Mark));
    // What is counted in one level is first told when the level changes.
    let steps = [(2, 10, None, Level::Full, 0), (3, 13, Some(Unsupported::Port(PortNo(9))), Level::Mark, 3)];
    for (decision, counted, short, level, forwarded) in steps {
        {
            let mut script = world.script.lock().unwrap();
            (script.short, script.counts) = (short, counts(counted));
        }
        world.agent.update(world.now, &cell, output(decision), decision.into());
        world.settle();
        assert_eq!((cell.standing(), cell.device_stats().packets), (Standing::Offloaded(level), forwarded));
    }
    world.script.lock().unwrap().counts = counts(20);
    world.pass(Duration::from_secs(3));
    assert_eq!(cell.device_stats().packets, 3);
    assert_eq!(world.operations(), ["put", "replace", "replace"]);
}

#[test]
fn a_failed_replace_keeps_the_mark_until_the_device_has_forgotten_the_rule() {
    let mut world = World::new(|script, _| {
        script.replace_answers.push_back(PutError::Device("no".to_owned()));
        script.delete_failures = 1;
    });
    let cell = world.adopt(1);
    world.settle();
    world.agent.update(world.now, &cell, output(2), 2);
    world.settle();
    assert_eq!(world.operations(), ["put", "replace", "delete"]);
    assert_eq!(cell.mark(), None, "a rule with actions that nobody wants is not bound");
    world.adopt(2);
    world.settle();
    let marks = |world: &World| world.script.lock().unwrap().rules.values().map(|rule| rule.1).collect::<Vec<_>>();
    assert_eq!(marks(&world), [1, 2], "mark 1 is still in the device, so nobody else has it");
    world.pass(Duration::from_millis(200));
    assert_eq!(world.device_actions(), [output(1), output(2)]);
    assert_eq!(marks(&world), [2, 3], "mark 1 is in quarantine");
    assert_eq!(mark_of(&cell), Some(3));
}

#[test]
fn a_rule_that_cannot_be_replaced_is_unbound_while_it_is_deleted_and_put() {
    let mut world = World::new(|script, _| script.caps.replace_in_place = false);
    let cell = world.adopt(1);
    world.settle();
    assert_eq!(world.drained(), [(1, Some(1))]);
    world.agent.update(world.now, &cell, output(2), 2);
    let unbound = Arc::new(Mutex::new(None));
    let (seen, watched) = (Arc::clone(&unbound), crate::sync::Arc::clone(&cell));
    let watch = move || *seen.lock().unwrap() = Some(watched.mark().is_none());
    world.script.lock().unwrap().meanwhile = Some(Box::new(watch));
    world.settle();
    assert_eq!(world.operations(), ["put", "delete", "put"]);
    assert_eq!(*unbound.lock().unwrap(), Some(true));
    assert_eq!(world.drained(), [(1, Some(2))], "two changes, one visit, the newest mark");
}

#[test]
fn a_mark_is_not_used_again_before_its_poller_unbound_it_and_the_ring_turned_over() {
    let mut world = World::new(|_, _| {});
    let cell = world.adopt(1);
    world.settle();
    world.drained();
    world.script.lock().unwrap().generation += 1;
    world.script.lock().unwrap().rules.clear();
    // The device has forgotten; the flow lives on and gets another mark.
    world.pass(Duration::from_secs(2));
    assert_eq!(mark_of(&cell), Some(2));
    assert_eq!(world.offload.snapshot().marks.quarantined, 1);
    world.turn_ring_over();
    world.pass(Duration::from_millis(100));
    assert_eq!(world.offload.snapshot().marks.quarantined, 1, "its poller still has mark 1 bound");
    assert_eq!(world.drained(), [(1, Some(2))]);
    world.pass(Duration::from_millis(100));
    assert_eq!(world.offload.snapshot().marks.quarantined, 0);
    let next = world.adopt(2);
    world.settle();
    assert_eq!(mark_of(&next), Some(1));
}

#[test]
fn a_mark_waits_for_the_rings_of_a_port_that_was_added_while_its_rule_was_removed() {
    let mut world = World::new(|_, _| {});
    let cell = world.adopt(1);
    world.settle();
    let ring = Arc::new(RxProgress::new(64));
    let (queue, added) = (crate::sync::Arc::clone(&world.worker.crew.lanes[0]), Arc::clone(&ring));
    let add = move || queue.send(Message::PortAdded(port(1), vec![added]));
    world.script.lock().unwrap().meanwhile = Some(Box::new(add));
    world.agent.release(world.now, &cell);
    // The old ring is at rest, and does not hold the mark back.
    world.ring.close();
    world.settle();
    world.pass(Duration::from_millis(50));
    assert_eq!(world.offload.snapshot().marks.quarantined, 1);
    ring.took(0);
    ring.took(0);
    world.pass(Duration::from_millis(50));
    assert_eq!(world.offload.snapshot().marks.quarantined, 0);
}

#[test]
fn a_sleeping_poller_is_woken_to_look_while_marks_wait_for_it() {
    let mut world = World::new(|_, _| {});
    let rung = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let bell = Arc::clone(&rung);
    let agent = world.offload.agent(
        1,
        Box::new(move || {
            bell.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }),
    );
    let agent = agent.unwrap();
    let cell = world.adopt_for(&agent, 1, output(1), 1);
    world.settle();
    agent.drain(|_| {});
    agent.release(world.now, &cell);
    world.settle();
    let before = rung.load(std::sync::atomic::Ordering::Relaxed);
    world.pass(Duration::from_millis(50));
    assert!(rung.load(std::sync::atomic::Ordering::Relaxed) > before);
    world.turn_ring_over();
    world.pass(Duration::from_millis(50));
    let after = rung.load(std::sync::atomic::Ordering::Relaxed);
    world.pass(Duration::from_millis(50));
    assert_eq!(rung.load(std::sync::atomic::Ordering::Relaxed), after, "and not once they are back");
}

#[test]
fn without_a_free_mark_a_flow_waits_and_is_put_when_one_is_released() {
    let mut world = World::new(|_, _| {});
    let mut cells: Vec<_> = (1..=256).map(|i| world.adopt(i)).collect();
    world.settle();
    assert_eq!(cells[255].standing(), Standing::Refused(Reason::NoMark));
    assert_eq!(world.script.lock().unwrap().rules.len(), 255);
    assert_eq!(world.offload.snapshot().refused, [(Reason::NoMark, 1)]);
    world.agent.release(world.now, &cells.remove(0));
    world.pass(Duration::from_millis(50));
    assert_eq!(cells[254].standing(), Standing::Refused(Reason::NoMark), "the mark is in quarantine");
    world.turn_ring_over();
    world.pass(Duration::from_millis(50));
    assert_eq!(cells[254].standing(), Standing::Offloaded(Level::Full));
    assert_eq!(mark_of(&cells[254]), Some(1));
    assert_eq!(world.offload.snapshot().refused, []);
}

#[test]
fn a_full_table_is_asked_again_only_when_room_appears() {
    let mut world = World::new(|script, _| script.capacity = 2);
    let cells: Vec<_> = (1..=5).map(|i| world.adopt(i)).collect();
    world.settle();
    assert_eq!(world.operations(), ["put", "put", "put"], "once the device said so, it is believed");
    assert_eq!(cells[4].standing(), Standing::Refused(Reason::NoRoom));
    world.pass(Duration::from_millis(500));
    assert_eq!(world.operations(), [""; 0]);
    world.agent.release(world.now, &cells[0]);
    world.settle();
    assert_eq!(world.operations(), ["delete", "put"]);
    assert_eq!(cells[2].standing(), Standing::Offloaded(Level::Full), "the first that waited");
    assert_eq!(cells[3].standing(), Standing::Refused(Reason::NoRoom));
    world.script.lock().unwrap().capacity = 3;
    world.pass(Duration::from_secs(3));
    assert_eq!(cells[3].standing(), Standing::Offloaded(Level::Full), "room that appeared by itself");
}

#[test]
fn flows_that_died_waiting_for_room_leave_nothing_behind_and_take_no_room() {
    let mut world = World::new(|script, _| script.capacity = 1);
    let first = world.adopt(1);
    world.settle();
    for i in 2..1_000 {
        let cell = world.adopt(i);
        world.settle();
        assert_eq!(cell.standing(), Standing::Refused(Reason::NoRoom));
        world.agent.release(world.now, &cell);
        world.settle();
        assert!(world.worker.waiting.is_empty());
    }
    let dying = world.adopt(1_000);
    let living = world.adopt(1_001);
    world.settle();
    let (agent, now) = (Arc::clone(&world.agent), world.now);
    world.agent.release(world.now, &first);
    // One more dies at the very moment in which room appears.
    world.script.lock().unwrap().meanwhile = Some(Box::new(move || agent.release(now, &dying)));
    world.settle();
    assert_eq!(living.standing(), Standing::Offloaded(Level::Full));
    assert!(world.worker.waiting.is_empty());
}

#[test]
fn a_message_waits_for_one_step_of_each_kind_at_most() {
    let mut world = World::new(|_, _| {});
    let mut cells: Vec<_> = (1..=100).map(|i| world.adopt(i)).collect();
    world.settle();
    world.operations();
    // Something of each kind: removals by death and by flush, puts.
    cells.drain(..50).for_each(|cell| world.agent.release(world.now, &cell));
    let _flush = world.offload.flush();
    (101..=150).for_each(|i| drop(world.adopt(i)));
    let queue = crate::sync::Arc::clone(&world.worker.crew.lanes[0]);
    world.script.lock().unwrap().meanwhile = Some(Box::new(move || queue.send(Message::PortRemoved(PortNo(9)))));
    world.worker.turn(world.now);
    let operations = world.operations().len();
    assert!((1..=5).contains(&operations), "{operations}");
    world.settle();
    assert_eq!(world.offload.snapshot().rules, 100);
}

#[test]
fn a_failed_put_is_tried_again_later_and_later() {
    let mut world = World::new(|script, _| script.put_answers = vec![PutError::Device("busy".to_owned()); 3].into());
    let cell = world.adopt(1);
    world.settle();
    assert_eq!(cell.standing(), Standing::Refused(Reason::Device));
    world.agent.ask_again(world.now, &cell);
    world.settle();
    assert_eq!(world.operations(), ["put"], "asking does not hurry the device");
    let mut waits = Vec::new();
    while cell.standing() != Standing::Offloaded(Level::Full) {
        let began = world.now;
        while world.operations().is_empty() {
            world.now += Duration::from_millis(1);
            world.settle();
        }
        waits.push(world.now - began);
    }
    assert_eq!(waits.len(), 3);
    assert!(waits.is_sorted() && waits[2] > waits[0] * 2, "{waits:?}");
}

#[test]
fn a_delete_is_tried_until_the_device_has_forgotten() {
    let mut world = World::new(|script, _| script.delete_failures = 5);
    let cell = world.adopt(1);
    world.settle();
    world.agent.release(world.now, &cell);
    world.pass(Duration::from_secs(2));
    assert_eq!(world.operations(), ["put", "delete", "delete", "delete", "delete", "delete", "delete"]);
    assert_eq!(cell.standing(), Standing::Gone);
    assert_eq!(
        world.offload.snapshot().operations.delete,
        crate::offload::report::Outcomes { done: 1, device: 5, ..Default::default() }
    );
}

#[test]
fn what_the_device_cannot_match_is_refused_at_once() {
    let mut world = World::new(|script, _| {
        let mut fields = Mask::EXACT;
        Field::Ipv4Dst.set(fields.words_mut(), 0);
        script.caps.fields = fields;
    });
    let cell = world.adopt(1);
    assert_eq!(cell.standing(), Standing::Refused(Reason::Match));
    world.settle();
    assert_eq!(world.operations(), [""; 0]);
    let why = world.script.lock().unwrap().caps.check(&flow(1), &output(1));
    assert_eq!(why, Err(Unsupported::Field(Field::Ipv4Dst)));
    world.agent.release(world.now, &cell);
    assert_eq!(cell.standing(), Standing::Gone);
}

#[test]
fn a_full_queue_costs_speed_and_the_flow_may_ask_again() {
    let mut world = World::new(|_, config| config.queue_limit = 2);
    let cells: Vec<_> = (1..=3).map(|i| world.adopt(i)).collect();
    assert_eq!(cells[2].standing(), Standing::Refused(Reason::QueueFull));
    assert_eq!(world.offload.queue().refused, 1);
    world.settle();
    world.agent.ask_again(world.now, &cells[2]);
    assert_eq!(cells[2].standing(), Standing::Queued);
    world.settle();
    assert_eq!(cells[2].standing(), Standing::Offloaded(Level::Full));
}

#[test]
fn a_flush_ends_when_the_device_has_forgotten_every_older_rule() {
    let mut world = World::new(|script, _| script.delete_failures = 1);
    let cells: Vec<_> = (1..=3).map(|i| world.adopt(i)).collect();
    world.settle();
    world.operations();
    let mut flush = world.offload.flush();
    world.settle();
    assert_eq!(flush.try_recv(), Ok(None), "one removal failed");
    world.pass(Duration::from_millis(100));
    assert_eq!(flush.try_recv(), Ok(Some(Flushed { removed: 3, trouble: None })));
    assert!(cells.iter().all(|cell| cell.standing() == Standing::Offloaded(Level::Full)), "they are wanted again");
    let deletes = world.operations().iter().filter(|name| **name == "delete").count();
    assert_eq!(deletes, 4);
    let mut empty = world.offload.flush();
    cells.iter().for_each(|cell| world.agent.release(world.now, cell));
    world.settle();
    assert_eq!(empty.try_recv(), Ok(Some(Flushed { removed: 3, trouble: None })));
    assert!(world.worker.rules.is_empty());
}

#[test]
fn a_removed_port_takes_its_rules_along_and_gets_them_back_when_it_returns() {
    let mut world = World::new(|_, _| {});
    world.offload.port_added(port(2), vec![]);
    let other =
        world.agent.adopt(world.now, FlowSlot { index: 9, generation: 0 }, Ufid(9), flow_of(2, 9), output(1), 1);
    let cell = world.adopt(1);
    world.settle();
    world.offload.port_removed(PortNo(1));
    world.settle();
    assert_eq!(cell.standing(), Standing::Refused(Reason::Port));
    assert_eq!(other.standing(), Standing::Offloaded(Level::Full));
    let ports: Vec<_> = world.offload.snapshot().ports.iter().map(|row| row.number.0).collect();
    assert_eq!(ports, [2]);
    assert_eq!(world.operations(), ["put", "put", "delete"]);
    world.offload.port_added(port(1), vec![]);
    world.settle();
    assert_eq!(cell.standing(), Standing::Offloaded(Level::Full));
}

#[test]
fn a_device_that_forgot_its_rules_is_filled_again() {
    let mut world = World::new(|_, _| {});
    let cells: Vec<_> = (1..=3).map(|i| world.adopt(i)).collect();
    world.settle();
    let mut script = world.script.lock().unwrap();
    script.rules.clear();
    script.generation += 1;
    drop(script);
    world.pass(Duration::from_secs(2));
    assert_eq!(world.script.lock().unwrap().rules.len(), 3);
    assert!(cells.iter().all(|cell| cell.standing() == Standing::Offloaded(Level::Full)));
    assert_eq!(world.offload.snapshot().resets, 1);
}

/// What no device may ever have: two rules with one mark, or a mark that the table thinks is free.
fn assert_marks_are_their_rules_own(world: &World) {
    let mut stamped: Vec<_> = world.script.lock().unwrap().rules.values().map(|rule| rule.1).collect();
    let mut leased: Vec<_> =
        world.worker.rules.iter().filter_map(|(_, rule)| Some(rule.has.as_ref()?.lease.mark().0.get())).collect();
    stamped.sort_unstable();
    leased.sort_unstable();
    assert_eq!(stamped, leased);
    leased.dedup();
    assert_eq!(stamped.len(), leased.len());
}

#[test]
fn rules_put_between_a_reset_and_its_detection_leave_the_device_before_their_marks_are_used_again() {
    for flush_fails in [false, true] {
        let mut world = World::new(|script, _| script.flush_fails = flush_fails);
        let before = world.adopt(1);
        world.settle();
        let mut script = world.script.lock().unwrap();
        script.rules.clear();
        script.generation += 1;
        script.delete_failures = 3;
        drop(script);
        let after = world.adopt(2);
        world.settle();
        assert_eq!(mark_of(&after), Some(2), "nobody knows of the reset yet");
        for i in 3..9 {
            world.pass(Duration::from_millis(500));
            world.drained();
            world.turn_ring_over();
            world.adopt(i);
            world.settle();
            let script = world.script.lock().unwrap();
            let marks: std::collections::BTreeSet<_> = script.rules.values().map(|rule| rule.1).collect();
            assert_eq!(marks.len(), script.rules.len(), "no mark is stamped for two flows");
        }
        world.pass(Duration::from_secs(1));
        assert_marks_are_their_rules_own(&world);
        assert!([before, after].iter().all(|cell| cell.standing() == Standing::Offloaded(Level::Full)));
        assert_eq!(world.offload.snapshot().resets, 1);
    }
}

#[test]
fn a_reset_of_an_empty_device_costs_nothing() {
    let mut world = World::new(|_, _| {});
    world.script.lock().unwrap().generation += 1;
    let cell = world.adopt(1);
    world.pass(Duration::from_secs(3));
    assert_eq!((world.operations(), mark_of(&cell)), (vec!["put"], Some(1)));
    assert_eq!(world.offload.snapshot().resets, 0);
}

#[test]
fn a_device_that_panics_is_left_alone_and_its_marks_are_ignored() {
    let mut world = World::new(|_, _| {});
    let cell = world.adopt(1);
    world.settle();
    world.script.lock().unwrap().panic_at = Some("put");
    let second = world.adopt(2);
    world.settle();
    assert!(world.fence.is_raised());
    for cell in [&cell, &second] {
        assert_eq!((cell.standing(), cell.mark()), (Standing::Refused(Reason::Off), None));
    }
    let snapshot = world.offload.snapshot();
    assert_eq!(snapshot.off.as_deref(), Some("the scripted device panicked: as the script says"));
    assert_eq!(snapshot.rules, 0);
    world.operations();
    world.agent.release(world.now, &cell);
    let mut flush = world.offload.flush();
    world.settle();
    assert_eq!(cell.standing(), Standing::Gone);
    assert!(flush.try_recv().unwrap().unwrap().trouble.is_some());
    assert_eq!(world.operations(), [""; 0]);
}

#[test]
fn what_the_device_counted_is_the_flows_and_the_last_reading_is_not_lost() {
    let mut world = World::new(|_, _| {});
    let cell = world.adopt(1);
    world.settle();
    let counts = |packets, bytes, used_ns| FlowStats { packets, bytes, used_ns };
    world.script.lock().unwrap().counts = counts(10, 1_000, 5);
    world.pass(Duration::from_secs(2));
    assert_eq!(cell.device_stats(), counts(10, 1_000, 5));
    world.script.lock().unwrap().counts = counts(13, 1_300, 7);
    world.agent.release(world.now, &cell);
    world.settle();
    assert_eq!(cell.device_stats(), counts(13, 1_300, 7));
}

#[test]
fn counts_that_cannot_be_true_stay_numbers_that_can_be_added_to() {
    let mut world = World::new(|_, _| {});
    let cell = world.adopt(1);
    world.settle();
    world.script.lock().unwrap().counts = FlowStats { packets: u64::MAX, bytes: u64::MAX, used_ns: u64::MAX };
    world.pass(Duration::from_secs(3));
    let FlowStats { packets, bytes, .. } = cell.device_stats();
    assert_eq!((packets, bytes), (FlowStats::MOST, FlowStats::MOST));
    assert!(packets.checked_mul(3).is_some(), "with what was kept of an earlier life, and what a poller counts");
}

#[test]
fn one_reading_counts_every_rule_however_many_there_are() {
    let mut world = World::new(|script, _| script.caps.mark_bits = 16);
    let cells: Vec<_> = (1..=3 * BATCH as u32).map(|i| world.adopt(i)).collect();
    world.settle();
    world.script.lock().unwrap().counts = FlowStats { packets: 7, bytes: 700, used_ns: 9 };
    world.now += Duration::from_secs(1);
    world.settle();
    assert!(cells.iter().all(|cell| cell.device_stats().packets == 7));
}

#[test]
fn pages_of_marks_come_in_order_and_end() {
    let mut world = World::new(|_, _| {});
    let cells: Vec<_> = (1..=5).map(|i| world.adopt(i)).collect();
    world.settle();
    let (mut after, mut pages) = (Some(0), Vec::new());
    while let Some(mark) = after {
        let page = world.marks(mark, 2);
        pages.push(page.rows.iter().map(|row| row.mark).collect::<Vec<_>>());
        after = page.next;
    }
    assert_eq!(pages, [vec![1, 2], vec![3, 4], vec![5]]);
    drop(cells);
}

#[test]
fn stopping_removes_every_rule_even_where_the_device_cannot_flush() {
    for flush_fails in [false, true] {
        let mut world = World::new(|script, _| script.flush_fails = flush_fails);
        let cells: Vec<_> = (1..=3).map(|i| world.adopt(i)).collect();
        world.settle();
        let (reply, receiver) = std::sync::mpsc::channel();
        let deadline = Instant::now() + Duration::from_secs(60);
        world.worker.crew.lanes[0].send(Message::Stop { deadline, reply: reply.clone() });
        world.worker.turn(world.now);
        assert_eq!(receiver.try_recv(), Ok(Stopped { removed: 3, left: 0 }));
        assert_eq!(world.device_actions(), []);
        assert!(cells.iter().all(|cell| cell.mark().is_none()));
    }
}

#[test]
fn a_port_that_comes_and_goes_while_the_worker_does_not_look_leaves_no_messages() {
    let mut world = World::new(|_, _| {});
    let cell = world.adopt(1);
    world.settle();
    for _ in 0..1_000 {
        world.offload.port_removed(PortNo(1));
        world.offload.port_added(port(1), vec![]);
        world.offload.port_added(port(2), vec![]);
        world.offload.port_removed(PortNo(2));
    }
    assert_eq!(world.worker.consumer.take_messages().map(|messages| messages.len()), Some(2));
    world.offload.port_removed(PortNo(1));
    world.settle();
    assert_eq!(cell.standing(), Standing::Refused(Reason::Port));
}

#[test]
fn questions_to_a_worker_that_is_gone_are_cancelled() {
    let World { offload, worker, .. } = World::new(|_, _| {});
    let mut before = offload.flush();
    drop(worker);
    assert!(before.try_recv().is_err() && offload.flush().try_recv().is_err());
}

#[test]
fn a_worker_thread_offloads_and_stops_clean() {
    let world = World::new(|_, _| {});
    let device = scripted(&world.script, &Fence::default());
    let offload = Offload::start(Arc::new(device), Instant::now(), OffloadConfig::default()).unwrap();
    offload.port_added(port(1), vec![]);
    let agent = offload.agent(0, Box::new(|| {})).unwrap();
    let cells: Vec<_> = (1..=100).map(|i| world.adopt_for(&agent, i, output(1), 1)).collect();
    await_that("all are put", || cells.iter().all(|cell| cell.standing() == Standing::Offloaded(Level::Full)));
    let stopped = offload.stop(Instant::now() + Duration::from_secs(60));
    assert_eq!(stopped, Stopped { removed: 100, left: 0 });
}

#[test]
fn without_a_device_there_is_nobody_to_ask_and_nothing_to_flush() {
    let offload = Offload::none();
    assert!(offload.agent(0, Box::new(|| {})).is_none());
    assert_eq!(offload.flush().try_recv(), Ok(Some(Flushed { removed: 0, trouble: None })));
    assert_eq!(offload.snapshot().workers.len(), 0);
    assert!(matches!(offload.resume(), Err(crate::offload::ResumeError::NoDevice)));
}
