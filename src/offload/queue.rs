//! [`Queue`]: flows that need the worker's attention, and how the worker is woken.
//!
//! Two lanes of the cells themselves. A *put* lane, where a flow that was never let in is refused above a limit; and
//! a *delete* lane, which refuses nobody. Neither needs memory: the nodes are the flows' own, each at most once a
//! lane, so both are bounded by the flows that were let in. A flow that is in may need the worker to take its old
//! actions out of the device, so asking for it again is never refused either.
//!
//! ```text
//!   producer                                worker
//!   publish what is wanted                  lock
//!   claim, push                             sleeping = true
//!   fence ◄────── one of the two ─────────► fence
//!   sleeping? ──► lock, notify              anything in a lane? ──► stay awake
//!                                           wait while sleeping
//! ```
//!
//! The two fences make sure that the producer sees the worker sleeping or the worker sees what was pushed (an
//! eventcount). So a producer takes the mutex, and makes a system call, only when the worker sleeps.
//!
//! # Thread-safety
//! Any thread may produce. One thread consumes.

use std::time::Duration;

use crossbeam_utils::CachePadded;

use crate::sync::{Arc, AtomicBool, AtomicU64, AtomicUsize, Condvar, Mutex, MutexGuard, Ordering, fence};
use crate::sys::stack::{List, Node, Stack};

/// The link of the put lane.
pub const PUT: usize = 0;
/// The link of the delete lane.
pub const DELETE: usize = 1;

/// Messages that may wait before questions are refused; more wait only while the device hangs.
const MESSAGES: usize = 256;

/// What became of a request to put.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Admission {
    Queued,
    /// It was in the lane already; the worker will see what is wanted now.
    Coalesced,
    /// The lane has no room for a flow that is not in yet.
    Full,
}

/// Lanes of nodes and a list of rare messages, consumed by one thread that sleeps when there is nothing.
pub struct Queue<T, M> {
    puts: CachePadded<Stack<T, PUT>>,
    deletes: CachePadded<Stack<T, DELETE>>,
    depth: CachePadded<AtomicUsize>,
    /// The worker sleeps, or is about to.
    sleeping: CachePadded<AtomicBool>,
    has_messages: AtomicBool,
    limit: usize,
    messages: Mutex<Messages<M>>,
    wake: Condvar,
    deletes_waiting: AtomicUsize,
    high_water: AtomicUsize,
    enqueued: AtomicU64,
    coalesced: AtomicU64,
    refused: AtomicU64,
    wakeups: AtomicU64,
}

struct Messages<M> {
    waiting: Vec<M>,
    /// Nobody will read any more.
    closed: bool,
}

/// Counts of one queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct QueueCounts {
    /// Flows in the put lane.
    pub depth: usize,
    /// Flows in the delete lane.
    pub deletes: usize,
    /// The depth above which new flows are refused.
    pub limit: usize,
    pub high_water: usize,
    /// Requests that entered a lane.
    pub enqueued: u64,
    /// Requests for a flow that was waiting already.
    pub coalesced: u64,
    /// New flows turned away because the put lane was full.
    pub refused: u64,
    /// Times that a sleeping worker was woken.
    pub wakeups: u64,
}

impl QueueCounts {
    /// The counts of several queues together.
    pub fn sum(all: impl Iterator<Item = QueueCounts>) -> QueueCounts {
        all.reduce(|sum, more| QueueCounts {
            depth: sum.depth + more.depth,
            deletes: sum.deletes + more.deletes,
            limit: sum.limit + more.limit,
            high_water: sum.high_water + more.high_water,
            enqueued: sum.enqueued + more.enqueued,
            coalesced: sum.coalesced + more.coalesced,
            refused: sum.refused + more.refused,
            wakeups: sum.wakeups + more.wakeups,
        })
        .unwrap_or_default()
    }
}

impl<T, M> Queue<T, M> {
    /// `limit`: the depth of the put lane above which new flows are refused.
    pub fn new(limit: usize) -> Queue<T, M> {
        Queue {
            puts: CachePadded::new(Stack::default()),
            deletes: CachePadded::new(Stack::default()),
            depth: CachePadded::new(AtomicUsize::new(0)),
            sleeping: CachePadded::new(AtomicBool::new(false)),
            has_messages: AtomicBool::new(false),
            limit,
            messages: Mutex::new(Messages { waiting: Vec::new(), closed: false }),
            wake: Condvar::new(),
            deletes_waiting: AtomicUsize::new(0),
            high_water: AtomicUsize::new(0),
            enqueued: AtomicU64::new(0),
            coalesced: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            wakeups: AtomicU64::new(0),
        }
    }

    /// Asks the worker to look at `node`. `admitted`: it was let in before, so it is not refused now.
    pub fn put(&self, node: &Arc<Node<T>>, admitted: bool) -> Admission {
        let Some(claimed) = Node::claim::<PUT>(node) else {
            self.coalesced.fetch_add(1, Ordering::Relaxed);
            return Admission::Coalesced;
        };
        let depth = self.depth.fetch_add(1, Ordering::Relaxed);
        if depth >= self.limit && !admitted {
            self.depth.fetch_sub(1, Ordering::Relaxed);
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Admission::Full;
        }
        self.puts.push(claimed);
        self.entered(depth + 1);
        Admission::Queued
    }

    /// Asks the worker to look at a dead `node`, before all that are alive. Never refused.
    pub fn delete(&self, node: &Arc<Node<T>>) {
        let Some(claimed) = Node::claim::<DELETE>(node) else {
            self.coalesced.fetch_add(1, Ordering::Relaxed);
            return;
        };
        self.deletes_waiting.fetch_add(1, Ordering::Relaxed);
        self.deletes.push(claimed);
        self.entered(0);
    }

    /// Leaves a message for the worker. Takes the mutex, as all that follow: for rare things. What a closed queue is
    /// sent is dropped.
    pub fn send(&self, message: M) {
        let mut messages = self.lock();
        if !messages.closed {
            messages.waiting.push(message);
            self.announce();
        }
    }

    /// Leaves a question, which is dropped where it would have to wait behind too many messages.
    pub fn ask(&self, question: M) {
        let mut messages = self.lock();
        if !messages.closed && messages.waiting.len() < MESSAGES {
            messages.waiting.push(question);
            self.announce();
        }
    }

    /// Takes back the newest message for which `which` holds, if the worker has not read it; otherwise leaves `message`.
    pub fn take_back_or_send(&self, which: impl Fn(&M) -> bool, message: M) {
        let mut messages = self.lock();
        match messages.waiting.iter().rposition(which) {
            Some(at) => drop(messages.waiting.remove(at)),
            None if !messages.closed => {
                messages.waiting.push(message);
                self.announce();
            }
            None => {}
        }
    }

    /// Drops all messages, and those to come: whoever waits for an answer learns that there will be none.
    pub fn close(&self) {
        let mut messages = self.lock();
        messages.closed = true;
        let unread = std::mem::take(&mut messages.waiting);
        self.announce();
        drop(messages);
        drop(unread);
    }

    /// Counts of this queue, each right by itself.
    pub fn counts(&self) -> QueueCounts {
        QueueCounts {
            depth: self.depth.load(Ordering::Relaxed),
            deletes: self.deletes_waiting.load(Ordering::Relaxed),
            limit: self.limit,
            high_water: self.high_water.load(Ordering::Relaxed),
            enqueued: self.enqueued.load(Ordering::Relaxed),
            coalesced: self.coalesced.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            wakeups: self.wakeups.load(Ordering::Relaxed),
        }
    }

    fn entered(&self, depth: usize) {
        self.enqueued.fetch_add(1, Ordering::Relaxed);
        if depth > self.high_water.load(Ordering::Relaxed) {
            self.high_water.fetch_max(depth, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        // The swap picks one producer to do the waking.
        if self.sleeping.load(Ordering::Relaxed) && self.sleeping.swap(false, Ordering::AcqRel) {
            // The worker holds the mutex from announcing its sleep until it waits: with it in hand, it waits or is up.
            let _messages = self.lock();
            self.wakeups.fetch_add(1, Ordering::Relaxed);
            self.wake.notify_one();
        }
    }

    /// Has the worker look at the messages. To be called with the mutex in hand.
    fn announce(&self) {
        self.has_messages.store(true, Ordering::Release);
        self.sleeping.store(false, Ordering::Relaxed);
        self.wake.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Messages<M>> {
        // A list of messages is whole between any two statements that change it, so a poisoned one is still good.
        self.messages.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The worker's end: nodes taken from the lanes and not yet looked at.
pub struct Consumer<T, M> {
    queue: Arc<Queue<T, M>>,
    puts: List<T, PUT>,
    deletes: List<T, DELETE>,
}

impl<T, M> Consumer<T, M> {
    pub fn new(queue: Arc<Queue<T, M>>) -> Consumer<T, M> {
        Consumer { queue, puts: List::default(), deletes: List::default() }
    }

    /// The oldest node of the put lane.
    pub fn next_put(&mut self) -> Option<Arc<Node<T>>> {
        if self.puts.is_empty() {
            self.puts = self.queue.puts.take_all();
        }
        let node = self.puts.next()?;
        self.queue.depth.fetch_sub(1, Ordering::Relaxed);
        Some(node)
    }

    /// The oldest node of the delete lane.
    pub fn next_delete(&mut self) -> Option<Arc<Node<T>>> {
        if self.deletes.is_empty() {
            self.deletes = self.queue.deletes.take_all();
        }
        let node = self.deletes.next()?;
        self.queue.deletes_waiting.fetch_sub(1, Ordering::Relaxed);
        Some(node)
    }

    /// Messages sent since the last time; `None` when the queue was closed.
    pub fn take_messages(&mut self) -> Option<Vec<M>> {
        if !self.queue.has_messages.load(Ordering::Acquire) {
            return Some(Vec::new());
        }
        let mut messages = self.queue.lock();
        if messages.closed {
            return None;
        }
        self.queue.has_messages.store(false, Ordering::Relaxed);
        Some(std::mem::take(&mut messages.waiting))
    }

    /// Whether a message waits, or the queue was closed.
    pub fn has_messages(&self) -> bool {
        self.queue.has_messages.load(Ordering::Relaxed)
    }

    /// Whether something waits that goes before the put lane.
    pub fn is_urgent(&self) -> bool {
        self.has_messages() || !self.deletes.is_empty() || !self.queue.deletes.is_empty()
    }

    /// Whether anything waits at all.
    pub fn has_work(&self) -> bool {
        self.is_urgent() || !self.puts.is_empty() || !self.queue.puts.is_empty()
    }

    /// Sleeps until something is enqueued or sent, or `timeout` is over. Returns at once when something waits.
    pub fn sleep(&mut self, timeout: Option<Duration>) {
        let queue = &*self.queue;
        let mut messages = queue.lock();
        // A swap, as in `entered`: each change of the flag then follows the one it replaces, so that a producer which
        // sees this one cannot take an older "awake" for a newer.
        queue.sleeping.swap(true, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        if !self.has_work() {
            // `sleeping` is the predicate: only a producer or sender that has something for us clears it, so that a
            // spurious wake-up waits again. The lanes are looked at afterwards, never popped on trust.
            while queue.sleeping.load(Ordering::Relaxed) {
                messages = match timeout {
                    None => queue.wake.wait(messages).unwrap_or_else(|poisoned| poisoned.into_inner()),
                    Some(timeout) => {
                        let waited = queue.wake.wait_timeout(messages, timeout);
                        let (guard, result) = waited.unwrap_or_else(|poisoned| poisoned.into_inner());
                        if result.timed_out() {
                            queue.sleeping.store(false, Ordering::Relaxed);
                        }
                        guard
                    }
                };
            }
        }
        queue.sleeping.store(false, Ordering::Relaxed);
        drop(messages);
    }
}

impl<T, M> Drop for Consumer<T, M> {
    fn drop(&mut self) {
        self.queue.close();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn node(value: u32) -> Arc<Node<u32>> {
        Arc::new(Node::new(value))
    }

    #[test]
    fn a_full_put_lane_refuses_new_flows_but_neither_deletes_nor_flows_that_were_let_in() {
        let queue: Arc<Queue<u32, ()>> = Arc::new(Queue::new(2));
        let nodes: Vec<_> = (0..4).map(node).collect();
        assert_eq!(queue.put(&nodes[0], false), Admission::Queued);
        assert_eq!(queue.put(&nodes[1], false), Admission::Queued);
        assert_eq!(queue.put(&nodes[2], false), Admission::Full);
        assert_eq!(queue.put(&nodes[0], false), Admission::Coalesced);
        assert_eq!(queue.put(&nodes[3], true), Admission::Queued);
        queue.delete(&nodes[2]);
        let counts = queue.counts();
        assert_eq!(
            (counts.depth, counts.deletes, counts.refused, counts.coalesced, counts.high_water),
            (3, 1, 1, 1, 3)
        );
        let mut consumer = Consumer::new(Arc::clone(&queue));
        assert_eq!(**consumer.next_delete().unwrap(), 2);
        assert_eq!(**consumer.next_put().unwrap(), 0);
        assert_eq!(queue.put(&nodes[0], false), Admission::Full, "two still wait");
        consumer.next_put();
        assert_eq!(queue.put(&nodes[2], false), Admission::Queued, "a refused flow may ask again");
    }

    #[test]
    fn messages_that_nobody_will_read_are_dropped_and_questions_do_not_pile_up() {
        let queue: Arc<Queue<u32, Option<Arc<()>>>> = Arc::new(Queue::new(2));
        let mut consumer = Consumer::new(Arc::clone(&queue));
        let question = Arc::new(());
        for _ in 0..2 * MESSAGES {
            queue.ask(Some(Arc::clone(&question)));
        }
        assert_eq!(Arc::strong_count(&question), 1 + MESSAGES);
        queue.send(None);
        assert_eq!(consumer.take_messages().map(|messages| messages.len()), Some(MESSAGES + 1), "orders always wait");
        queue.send(Some(Arc::clone(&question)));
        queue.close();
        queue.send(Some(Arc::clone(&question)));
        queue.ask(Some(Arc::clone(&question)));
        queue.take_back_or_send(|_| false, Some(Arc::clone(&question)));
        assert_eq!(Arc::strong_count(&question), 1);
        consumer.sleep(None);
        assert_eq!(consumer.take_messages(), None);
    }

    #[test]
    fn an_order_and_its_opposite_do_not_both_wait() {
        let queue: Arc<Queue<u32, i8>> = Arc::new(Queue::new(2));
        let mut consumer = Consumer::new(Arc::clone(&queue));
        for _ in 0..1_000 {
            queue.take_back_or_send(|&waiting| waiting == 1, -1);
            queue.send(1);
        }
        assert_eq!(consumer.take_messages(), Some(vec![-1, 1]));
    }

    #[test]
    fn a_worker_with_work_does_not_sleep_and_a_producer_wakes_one_that_sleeps() {
        let queue: Arc<Queue<u32, u8>> = Arc::new(Queue::new(8));
        let mut consumer = Consumer::new(Arc::clone(&queue));
        queue.put(&node(1), false);
        consumer.sleep(None);
        assert_eq!(queue.counts().wakeups, 0);
        assert!(consumer.next_put().is_some());
        queue.send(9);
        consumer.sleep(None);
        assert_eq!(consumer.take_messages(), Some(vec![9]));
        let producer = std::thread::spawn({
            let queue = Arc::clone(&queue);
            move || {
                while !queue.sleeping.load(Ordering::Relaxed) {
                    std::thread::yield_now();
                }
                queue.put(&node(2), false);
            }
        });
        consumer.sleep(None);
        assert_eq!(**consumer.next_put().unwrap(), 2);
        producer.join().unwrap();
        assert_eq!(queue.counts().wakeups, 1);
    }
}
