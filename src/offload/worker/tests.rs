//! Workers that the test steps by hand, on a device that does what the test says. No thread, no sleep.

mod batch;
mod bugs;
mod device;
mod life;
mod marks;
mod off;
mod orders;
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

    fn put(&mut self, flow: &Install<'_>) -> Result<(Handle, Done), PutError> {
        self.tell(flow);
        if let Some(error) = self.put_answers.pop_front() {
            return Err(error);
        }
        if self.rules.len() >= self.capacity {
            return Err(PutError::NoRoom);
        }
        self.next += 1;
        assert!(self.rules.values().all(|rule| rule.0 != *flow.matching), "put twice");
        self.rules.insert(self.next, (*flow.matching, flow.mark.0.get(), flow.actions.clone()));
        Ok((Handle(self.next), self.done(flow.level)))
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
        self.operate("put").put(&flow)
    }

    fn put_all(&mut self, flows: &[Install<'_>], into: &mut Vec<Result<(Handle, Done), PutError>>) {
        let mut script = self.operate("put_all");
        assert!((1..=script.caps.batch).contains(&flows.len()), "as many as it said at most");
        into.extend(flows.iter().map(|flow| script.put(flow)));
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
            batch: 1,
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
