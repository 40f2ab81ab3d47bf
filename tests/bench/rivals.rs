//! Two ways to ask a worker for a flow's offload: [`Lanes`], ours, and [`List`], that of the 2017 patch.
//!
//! The patch ("dpif-netdev: do hw flow offload in another thread", ovs-dev, November 2017) allocates an item for each
//! request, with a copy of the flow's match and of its actions, and appends it to a list under one mutex, signalling a
//! condition variable each time. Its worker takes one item at a time under that mutex.
//!
//! Where they differ from what they stand for, it is to the list's advantage: our matches are smaller than its were, a
//! request names its flow by a number, and a queue of boxes grows without the links of a list.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use offloadd::flow::{Action, Actions, Match};
use offloadd::offload::queue::{Admission, Consumer, Queue, Weigh};
use offloadd::sys::stack::Node;

use crate::rig;

/// What the worker does when nothing waits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Idle {
    /// Stays awake.
    Looks,
    Sleeps,
}

/// A queue of requests from several pollers to one worker.
pub trait Rival: Send + Sync + 'static {
    /// Each poller has so many flows.
    fn new(pollers: usize, flows: usize) -> Self;
    /// What a poller does to have its flow number `flow` looked at.
    fn request(&self, poller: usize, flow: usize);
    /// The worker's life until [`Rival::stop`].
    fn serve(&self, idle: Idle);
    /// Requests that the worker took.
    fn served(&self) -> u64;
    /// Times that the worker was woken.
    fn wakeups(&self) -> u64;
    fn stop(&self);
}

/// A flow as both queues need it.
pub struct Flow {
    matching: Match,
    actions: Actions,
}

impl Flow {
    fn all(pollers: usize, flows: usize) -> impl Iterator<Item = impl Iterator<Item = Flow>> {
        (0..pollers).map(move |poller| {
            (0..flows).map(move |n| {
                let key = rig::key((poller * flows + n) as u32);
                Flow { matching: Match::new(&key, &rig::tuple_mask(32)), actions: rig::output() }
            })
        })
    }
}

impl Weigh for Flow {
    fn weigh(&self) -> usize {
        size_of::<Node<Flow>>()
    }
}

/// The lanes of [`offloadd::offload::queue`].
pub struct Lanes {
    queue: Arc<Queue<Flow, ()>>,
    flows: Vec<Vec<Arc<Node<Flow>>>>,
    served: AtomicU64,
}

impl Rival for Lanes {
    fn new(pollers: usize, flows: usize) -> Lanes {
        let nodes = |flows: &mut dyn Iterator<Item = Flow>| flows.map(|flow| Arc::new(Node::new(flow))).collect();
        Lanes {
            queue: Arc::new(Queue::new(65_536, usize::MAX)),
            flows: Flow::all(pollers, flows).map(|mut flows| nodes(&mut flows)).collect(),
            served: AtomicU64::new(0),
        }
    }

    fn request(&self, poller: usize, flow: usize) {
        let admission = self.queue.put(poller, &self.flows[poller][flow], false);
        assert_eq!(admission, Admission::Queued, "each request is a new one, and there is room");
    }

    fn serve(&self, idle: Idle) {
        let mut consumer = Consumer::new(Arc::clone(&self.queue));
        while consumer.take_messages().is_some() {
            while consumer.next_delete().or_else(|| consumer.next_put()).is_some() {
                self.served.fetch_add(1, Ordering::Relaxed);
            }
            match idle {
                Idle::Looks => std::thread::yield_now(),
                Idle::Sleeps => consumer.sleep(None),
            }
        }
    }

    fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    fn wakeups(&self) -> u64 {
        self.queue.counts().wakeups
    }

    fn stop(&self) {
        self.queue.close();
    }
}

/// The list of the 2017 patch.
pub struct List {
    flows: Vec<Vec<Flow>>,
    items: Mutex<Items>,
    signal: Condvar,
    served: AtomicU64,
}

struct Items {
    waiting: VecDeque<Box<Item>>,
    /// Whether the worker waits for the signal. The C library's condition variable knows, and makes a system call only
    /// then; Rust's makes one each time, which would be unfair.
    sleeping: bool,
    stopped: bool,
    wakeups: u64,
}

#[expect(dead_code, reason = "a worker with a device would read them")]
struct Item {
    poller: usize,
    flow: usize,
    operation: Operation,
    matching: Match,
    actions: Box<[Action]>,
}

enum Operation {
    Put,
}

impl List {
    fn lock(&self) -> MutexGuard<'_, Items> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Rival for List {
    fn new(pollers: usize, flows: usize) -> List {
        let waiting = VecDeque::with_capacity(pollers * flows);
        List {
            flows: Flow::all(pollers, flows).map(Iterator::collect).collect(),
            items: Mutex::new(Items { waiting, sleeping: false, stopped: false, wakeups: 0 }),
            signal: Condvar::new(),
            served: AtomicU64::new(0),
        }
    }

    fn request(&self, poller: usize, flow: usize) {
        let Flow { matching, actions } = &self.flows[poller][flow];
        let item = Box::new(Item {
            poller,
            flow,
            operation: Operation::Put,
            matching: *matching,
            actions: actions.iter().cloned().collect(),
        });
        let mut items = self.lock();
        items.waiting.push_back(item);
        if items.sleeping {
            items.wakeups += 1;
            self.signal.notify_one();
        }
    }

    fn serve(&self, idle: Idle) {
        let mut items = self.lock();
        loop {
            if let Some(item) = items.waiting.pop_front() {
                drop(items);
                drop(item);
                self.served.fetch_add(1, Ordering::Relaxed);
                items = self.lock();
            } else if items.stopped {
                return;
            } else if idle == Idle::Looks {
                drop(items);
                std::thread::yield_now();
                items = self.lock();
            } else {
                items.sleeping = true;
                items = self.signal.wait(items).unwrap_or_else(PoisonError::into_inner);
                items.sleeping = false;
            }
        }
    }

    fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    fn wakeups(&self) -> u64 {
        self.lock().wakeups
    }

    fn stop(&self) {
        self.lock().stopped = true;
        self.signal.notify_one();
    }
}
