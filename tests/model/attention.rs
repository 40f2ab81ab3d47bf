//! The attention bit: what was published last is seen, though each node is in a lane at most once.

use std::time::{Duration, Instant};

use loom::thread;
use offloadd::flow::{Action, Actions, Key, Mask, Match, PortNo, Ufid};
use offloadd::offload::backend::{
    Backend, BackendCaps, DeleteError, Fence, FlushError, Generation, Handle, Install, PutError, StatsError,
};
use offloadd::offload::queue::{Consumer, Queue};
use offloadd::offload::{FlowSlot, FlowStats, Level, Offload, OffloadConfig, Standing};
use offloadd::sync::{Arc, AtomicBool, AtomicUsize, Ordering};
use offloadd::sys::stack::Node;

/// A node whose content has no order of its own: only the link's claim can make it visible.
#[test]
fn the_worker_sees_what_was_wanted_last() {
    loom::model(|| {
        let queue = Arc::new(Queue::<AtomicUsize, ()>::new(8));
        let node = Arc::new(Node::new(AtomicUsize::new(0)));
        let producer = {
            let (queue, node) = (Arc::clone(&queue), Arc::clone(&node));
            thread::spawn(move || {
                for wanted in 1..=2 {
                    node.store(wanted, Ordering::Relaxed);
                    queue.put(&node, true);
                }
            })
        };
        let mut consumer = Consumer::new(queue);
        let mut seen = 0;
        if let Some(node) = consumer.next_put() {
            seen = node.load(Ordering::Relaxed);
        }
        producer.join().unwrap();
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
        let queue = Arc::new(Queue::<AtomicUsize, ()>::new(8));
        let node = Arc::new(Node::new(AtomicUsize::new(0)));
        queue.put(&node, true);
        let producer = {
            let (queue, node) = (Arc::clone(&queue), Arc::clone(&node));
            thread::spawn(move || {
                node.store(1, Ordering::Relaxed);
                queue.put(&node, true) == offloadd::offload::queue::Admission::Coalesced
            })
        };
        let mut consumer = Consumer::new(queue);
        let first = consumer.next_put().expect("pushed before");
        let seen = first.load(Ordering::Relaxed);
        let coalesced = producer.join().unwrap();
        assert!(!coalesced || seen == 1);
    });
}

/// A device that holds one rule.
struct OneRule(Arc<AtomicUsize>);

impl Backend for OneRule {
    fn capabilities(&self) -> BackendCaps {
        BackendCaps {
            name: "one",
            fields: Mask::EXACT,
            level: Level::Full,
            capacity: None,
            mark_bits: 8,
            replace_in_place: true,
        }
    }

    fn put(&mut self, flow: Install<'_>) -> Result<(Handle, Level), PutError> {
        assert_eq!(self.0.swap(outputs(flow.actions), Ordering::Relaxed), 0, "put twice");
        Ok((Handle(1), Level::Full))
    }

    fn replace(&mut self, _: Handle, flow: Install<'_>) -> Result<Level, PutError> {
        self.0.store(outputs(flow.actions), Ordering::Relaxed);
        Ok(Level::Full)
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

    fn flush(&mut self) -> Result<(), FlushError> {
        Ok(())
    }

    fn fence(&self) -> Fence {
        Fence::default()
    }
}

fn outputs(actions: &Actions) -> usize {
    actions.outputs().map(|port| port.0 as usize).sum()
}

fn output(port: u32) -> Actions {
    Actions::new(vec![Action::Output(PortNo(port))])
}

/// The whole path: agent, cell, lanes, worker, inbox. `die`: the flow ends dead instead of changed.
fn whole_path(die: bool) {
    loom::model(move || {
        let device = Arc::new(AtomicUsize::new(0));
        let config = OffloadConfig { stats_interval: Duration::from_secs(3_600), ..OffloadConfig::default() };
        let (offload, mut worker) = Offload::assemble(Box::new(OneRule(Arc::clone(&device))), &config);
        let agent = offload.agent(0, Box::new(|| {}));
        let now = Instant::now();
        let slot = FlowSlot { index: 0, generation: 0 };
        // It matches any port, so any port will do.
        let matching = Match::new(&Key::ZERO, &Mask::EMPTY);
        offload.port_added(port(), Vec::new());
        worker.turn(now);
        let cell = agent.adopt(now, slot, Ufid(0), matching, output(1), 1);
        let poller = {
            let cell = Arc::clone(&cell);
            thread::spawn(move || {
                if die {
                    agent.release(now, &cell);
                } else {
                    agent.update(now, &cell, output(2), 2);
                }
                agent
            })
        };
        worker.turn(now);
        let agent = poller.join().unwrap();
        worker.turn(now);
        assert!(!worker.has_work(now));
        let mut visits = 0;
        agent.drain(|cell| {
            visits += 1;
            assert!(cell.mark().is_some());
        });
        if die {
            assert_eq!((cell.standing(), device.load(Ordering::Relaxed), visits), (Standing::Gone, 0, 0));
        } else {
            assert_eq!((cell.standing(), device.load(Ordering::Relaxed)), (Standing::Offloaded(Level::Full), 2));
            assert_eq!(visits, 1);
        }
    });
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

#[test]
fn a_flow_that_changes_at_any_moment_ends_with_its_newest_actions_in_the_device() {
    whole_path(false);
}

#[test]
fn a_flow_that_dies_at_any_moment_ends_with_nothing_in_the_device() {
    whole_path(true);
}
