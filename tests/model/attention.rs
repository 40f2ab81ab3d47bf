//! The attention bit: what was published last is seen, though each node is in a lane at most once.

use std::time::{Duration, Instant};

use loom::thread;
use offloadd::flow::{Action, Actions, Key, Mask, Match, PortNo, Ufid};
use offloadd::offload::backend::{
    ActionSet, Backend, BackendCaps, DeleteError, Device, Done, Fence, FlushError, Generation, Handle, Install,
    PutError, StatsError,
};
use offloadd::offload::queue::{Consumer, Queue};
use offloadd::offload::worker::Worker;
use offloadd::offload::{Agent, FlowSlot, FlowStats, Level, Offload, OffloadCell, OffloadConfig, Standing};
use offloadd::sync::{Arc, AtomicBool, AtomicUsize, Ordering, fence};
use offloadd::sys::stack::{Node, Stack};

use crate::Content;

/// A node whose content has no order of its own: only the link's claim can make it visible.
#[test]
fn the_worker_sees_what_was_wanted_last() {
    loom::model(|| {
        let queue = Arc::new(Queue::<Content<AtomicUsize>, ()>::new(8, 8));
        let node = Arc::new(Node::new(Content(AtomicUsize::new(0))));
        let worker = {
            let mut consumer = Consumer::new(Arc::clone(&queue));
            thread::spawn(move || {
                let seen = consumer.next_put().map_or(0, |node| node.load(Ordering::Relaxed));
                (consumer, seen)
            })
        };
        for wanted in 1..=2 {
            node.store(wanted, Ordering::Relaxed);
            queue.put(0, &node, true);
        }
        let (mut consumer, mut seen) = worker.join().unwrap();
        // Whatever was coalesced, it was coalesced into a look that had not happened yet.
        let before_join = seen;
        while let Some(node) = consumer.next_put() {
            seen = node.load(Ordering::Relaxed);
        }
        assert_eq!(seen, 2, "first saw {before_join}");
    });
}

/// The same with the claim given up by a plain store, as one might think enough, and no join to hide it.
#[test]
fn the_checker_catches_a_claim_that_is_given_up_by_a_store() {
    assert!(crate::is_caught(|| {
        let (wanted, claimed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(true)));
        let producer = {
            let (wanted, claimed) = (Arc::clone(&wanted), Arc::clone(&claimed));
            thread::spawn(move || {
                wanted.store(1, Ordering::Relaxed);
                // `true`: it was coalesced into the look below, which must see it.
                claimed.swap(true, Ordering::AcqRel)
            })
        };
        claimed.store(false, Ordering::Release);
        let seen = wanted.load(Ordering::Relaxed);
        let coalesced = producer.join().unwrap();
        assert!(!coalesced || seen == 1);
    }));
}

/// And as it is: the claim is given up by a read-modify-write.
#[test]
fn a_failed_claim_is_seen_by_the_look_that_it_was_coalesced_into() {
    loom::model(|| {
        let queue = Arc::new(Queue::<Content<AtomicUsize>, ()>::new(8, 8));
        let node = Arc::new(Node::new(Content(AtomicUsize::new(0))));
        queue.put(0, &node, true);
        let producer = {
            let (queue, node) = (Arc::clone(&queue), Arc::clone(&node));
            thread::spawn(move || {
                node.store(1, Ordering::Relaxed);
                queue.put(0, &node, true) == offloadd::offload::queue::Admission::Coalesced
            })
        };
        let mut consumer = Consumer::new(queue);
        let first = consumer.next_put().expect("pushed before");
        let seen = first.load(Ordering::Relaxed);
        let coalesced = producer.join().unwrap();
        assert!(!coalesced || seen == 1);
    });
}

/// A device that holds one rule, and takes so many at once.
#[derive(Clone)]
struct OneRule(Arc<AtomicUsize>, usize);

impl Device for OneRule {
    fn capabilities(&self) -> BackendCaps {
        BackendCaps {
            name: "one",
            fields: Mask::EXACT,
            level: Level::Full,
            actions: ActionSet::ALL,
            capacity: None,
            mark_bits: 8,
            replace_in_place: true,
            batch: self.1,
        }
    }

    fn channel(&self) -> Box<dyn Backend> {
        Box::new(self.clone())
    }

    fn fence(&self) -> Fence {
        Fence::default()
    }

    fn restart(&self) -> Result<(), FlushError> {
        Ok(())
    }
}

impl Backend for OneRule {
    fn put(&mut self, flow: Install<'_>) -> Result<(Handle, Done), PutError> {
        assert_eq!(self.0.swap(outputs(flow.actions), Ordering::Relaxed), 0, "put twice");
        Ok((Handle(1), Done::at(Level::Full)))
    }

    fn replace(&mut self, _: Handle, flow: Install<'_>) -> Result<(Done, FlowStats), PutError> {
        self.0.store(outputs(flow.actions), Ordering::Relaxed);
        Ok((Done::at(Level::Full), FlowStats::default()))
    }

    fn delete(&mut self, _: Handle) -> Result<FlowStats, DeleteError> {
        self.0.store(0, Ordering::Relaxed);
        Ok(FlowStats::default())
    }

    fn stats(&mut self, _: &[Handle], _: &mut Vec<FlowStats>) -> Result<(), StatsError> {
        Ok(())
    }

    fn generation(&mut self) -> Generation {
        Generation(0)
    }

    fn flush(&mut self, _: &[Handle]) -> Result<(), FlushError> {
        Ok(())
    }
}

fn outputs(actions: &Actions) -> usize {
    actions.outputs().map(|port| port.0 as usize).sum()
}

fn output(port: u32) -> Actions {
    Actions::new(vec![Action::Output(PortNo(port))])
}

/// An offload path whose device serves one port, with the worker to be stepped by hand.
fn path() -> (Arc<AtomicUsize>, Offload, Worker, Agent, Instant) {
    path_of(1)
}

/// The same, with a device that takes so many rules at once.
fn path_of(batch: usize) -> (Arc<AtomicUsize>, Offload, Worker, Agent, Instant) {
    let device = Arc::new(AtomicUsize::new(0));
    let config = OffloadConfig { stats_interval: Duration::from_secs(3_600), ..OffloadConfig::default() };
    let (offload, mut worker) =
        Offload::assemble(std::sync::Arc::new(OneRule(Arc::clone(&device), batch)), Instant::now(), &config);
    let agent = offload.agent(0, Box::new(|| {})).expect("there is a device");
    let now = Instant::now();
    offload.port_added(port(), Vec::new());
    worker.turn(now);
    (device, offload, worker, agent, now)
}

fn adopt(agent: &Agent, now: Instant) -> Arc<OffloadCell> {
    // It matches any port, so any port will do.
    let matching = Match::new(&Key::ZERO, &Mask::EMPTY);
    agent.adopt(now, FlowSlot { index: 0, generation: 0 }, Ufid(0), matching, output(1), 1)
}

fn port() -> offloadd::port::PortInfo {
    offloadd::port::PortInfo {
        name: "p1".to_owned(),
        number: PortNo(1),
        kind: offloadd::port::Kind::Sim,
        ifindex: None,
        rx_queues: 1,
        tx_checksum: false,
        tx_segment: false,
        ring: 1,
    }
}

/// The whole path: agent, cell, lanes, worker, inbox.
#[test]
fn a_flow_that_changes_at_any_moment_ends_with_its_newest_actions_in_the_device() {
    loom::model(|| a_change(1));
}

#[test]
fn a_flow_that_changes_while_its_put_waits_for_a_batch_ends_with_its_newest_actions_in_the_device() {
    loom::model(|| a_change(2));
}

fn a_change(batch: usize) {
    let (device, _offload, mut worker, agent, now) = path_of(batch);
    let cell = adopt(&agent, now);
    let thread = thread::spawn(move || {
        worker.turn(now);
        worker
    });
    agent.update(now, &cell, output(2), 2);
    let mut worker = thread.join().unwrap();
    worker.turn(now);
    assert!(!worker.has_work(now));
    let mut visits = 0;
    agent.drain(|cell| {
        visits += 1;
        assert!(cell.mark().is_some());
    });
    assert_eq!((cell.standing(), device.load(Ordering::Relaxed)), (Standing::Offloaded(Level::Full), 2));
    assert_eq!(visits, 1);
}

#[test]
fn a_flow_that_dies_at_any_moment_ends_with_nothing_in_the_device() {
    // One that waits for a batch is not in the device yet.
    for (installed, batch) in [(false, 1), (true, 1), (false, 2)] {
        loom::model(move || {
            let (device, _offload, mut worker, agent, now) = path_of(batch);
            let cell = adopt(&agent, now);
            if installed {
                worker.turn(now);
                agent.drain(|_| {});
            }
            let thread = thread::spawn(move || {
                worker.turn(now);
                worker
            });
            agent.release(now, &cell);
            let mut worker = thread.join().unwrap();
            // The dead flow, then its mark.
            worker.turn(now);
            worker.turn(now);
            assert!(!worker.has_work(now));
            assert_eq!((cell.standing(), device.load(Ordering::Relaxed)), (Standing::Gone, 0));
            agent.drain(|_| panic!("a flow that was released is not visited"));
        });
    }
}

/// The inbox, drained while the worker binds: the poller's last look sees the newest mark.
#[test]
fn the_poller_sees_the_mark_that_was_published_last() {
    loom::model(|| {
        let (_device, _offload, mut worker, agent, now) = path();
        let cell = adopt(&agent, now);
        let poller = thread::spawn(move || {
            let mut seen = None;
            agent.drain(|cell| seen = cell.mark());
            (agent, seen)
        });
        worker.turn(now);
        let (agent, mut seen) = poller.join().unwrap();
        agent.drain(|cell| seen = cell.mark());
        assert!(seen.is_some() && seen == cell.mark());
    });
}

/// A lane, and a flow's word that it is dead, in either order.
fn a_death(published_first: bool) {
    let queue = Arc::new(Queue::<Content<AtomicBool>, ()>::new(8, 8));
    let node = Arc::new(Node::new(Content(AtomicBool::new(false))));
    let found_dead = |node: Arc<Node<Content<AtomicBool>>>| node.load(Ordering::Relaxed);
    let worker = {
        let mut consumer = Consumer::new(Arc::clone(&queue));
        thread::spawn(move || {
            let early = consumer.next_delete().map(found_dead);
            (consumer, early)
        })
    };
    if published_first {
        node.store(true, Ordering::Relaxed);
    }
    queue.delete(0, &node);
    if !published_first {
        node.store(true, Ordering::Relaxed);
    }
    let (mut consumer, early) = worker.join().unwrap();
    let late = consumer.next_delete().map(found_dead);
    assert_eq!(early.or(late), Some(true), "whoever is in the delete lane is dead");
}

#[test]
fn a_flow_in_the_delete_lane_is_seen_dead() {
    loom::model(|| a_death(true));
}

#[test]
fn the_checker_catches_a_flow_that_is_enqueued_before_it_is_dead() {
    assert!(crate::is_caught(|| a_death(false)));
}

/// A mark and the inbox that says "look at it", in either order.
fn a_binding(published_first: bool) {
    let inbox = Arc::new(Stack::<AtomicUsize, 0>::default());
    let cell = Arc::new(Node::new(AtomicUsize::new(0)));
    let poller = {
        let inbox = Arc::clone(&inbox);
        thread::spawn(move || inbox.take_all().last().map(|cell| cell.load(Ordering::Relaxed)))
    };
    if published_first {
        cell.store(1, Ordering::Relaxed);
    }
    inbox.push(Node::claim(&cell).expect("nobody else claims it"));
    if !published_first {
        cell.store(1, Ordering::Relaxed);
    }
    let early = poller.join().unwrap();
    let late = inbox.take_all().last().map(|cell| cell.load(Ordering::Relaxed));
    assert_eq!(early.or(late), Some(1), "the poller's last look sees the newest mark");
}

#[test]
fn a_mark_in_the_inbox_is_the_newest() {
    loom::model(|| a_binding(true));
}

#[test]
fn the_checker_catches_a_mark_that_is_delivered_before_it_is_published() {
    assert!(crate::is_caught(|| a_binding(false)));
}

/// A cell in a mailbox and its mailbox hold each other: what is delivered to a poller that leaves must not stay.
#[test]
fn a_poller_that_leaves_while_its_flows_are_bound_leaves_nothing_behind() {
    loom::model(|| {
        let (_device, _offload, mut worker, agent, now) = path();
        let cell = adopt(&agent, now);
        let poller = thread::spawn(move || drop(agent));
        worker.turn(now);
        poller.join().unwrap();
        drop(worker);
        assert_eq!(Arc::strong_count(&cell), 1);
    });
}

/// The same without the fences between pushing and looking whether the mailbox is closed.
#[test]
fn the_checker_catches_a_mailbox_that_is_closed_without_a_fence() {
    for fenced in [true, false] {
        let model = move || {
            let mailbox = Arc::new((Stack::<(), 0>::default(), AtomicBool::new(false)));
            let cell = Arc::new(Node::new(()));
            let between = move || {
                if fenced {
                    fence(Ordering::SeqCst);
                }
            };
            let poller = {
                let mailbox = Arc::clone(&mailbox);
                thread::spawn(move || {
                    mailbox.1.store(true, Ordering::Relaxed);
                    between();
                    drop(mailbox.0.take_all());
                })
            };
            mailbox.0.push(Node::claim(&cell).expect("nobody else claims it"));
            between();
            if mailbox.1.load(Ordering::Relaxed) {
                drop(mailbox.0.take_all());
            }
            poller.join().unwrap();
            assert_eq!(Arc::strong_count(&cell), 1);
        };
        match fenced {
            true => loom::model(model),
            false => assert!(crate::is_caught(model)),
        }
    }
}

/// Whose a flow is changes while it changes: whoever has its shard in the end has heard of its newest actions, and no other
/// puts it a second time.
#[test]
fn a_flow_that_changes_while_its_shard_moves_ends_with_its_newest_actions_in_the_device() {
    loom::model(|| {
        let device = Arc::new(AtomicUsize::new(0));
        let hour = Duration::from_secs(3_600);
        let config = OffloadConfig { threads: 2, stats_interval: hour, ..OffloadConfig::default() };
        let one_rule = std::sync::Arc::new(OneRule(Arc::clone(&device), 1));
        let (offload, mut workers) = Offload::assemble_many(one_rule, Instant::now(), &config);
        let agent = offload.agent(0, Box::new(|| {})).expect("there is a device");
        let now = Instant::now();
        offload.port_added(port(), Vec::new());
        let cell = adopt(&agent, now);
        workers.iter_mut().for_each(|worker| worker.turn(now));
        // Whichever worker has it, one of the two plans takes it away.
        offload.set_threads(1).expect("nobody is hired");
        let thread = thread::spawn(move || {
            workers.iter_mut().rev().for_each(|worker| worker.turn(now));
            workers
        });
        agent.update(now, &cell, output(2), 2);
        let mut workers = thread.join().unwrap();
        for _ in 0..4 {
            workers.iter_mut().for_each(|worker| worker.turn(now));
        }
        assert!(!workers.iter().any(|worker| worker.has_work(now)));
        assert_eq!((cell.standing(), device.load(Ordering::Relaxed)), (Standing::Offloaded(Level::Full), 2));
    });
}
