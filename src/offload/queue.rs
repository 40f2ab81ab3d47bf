//! [`Queue`]: flows that need the worker's attention, and how the worker is woken.
//!
//! Each poller has a *lane* of its own, with two stacks of the cells themselves: *puts*, where a flow that was
//! never let in is refused when there is no room; and *deletes*, which refuse nobody. Neither needs memory: the
//! nodes are the flows' own, each at most once a link, so both are bounded by the flows that were let in. A flow that
//! is in may need the worker to take its old actions out of the device, so asking for it again is never refused either.
//!
//! ```text
//!   poller 0 ──► lane 0: deletes, puts ──┐
//!   poller 1 ──► lane 1: deletes, puts ──┼──► worker: all deletes, then puts; a few of each lane in turn
//!   poller 2 ──► lane 2: deletes, puts ──┘
//! ```
//!
//! A lane's puts come out in the order in which they went in. What a poller writes to enqueue a flow is the flow's link
//! and its lane; it shares no written cache line with another poller on another lane.
//!
//! # The wake-up
//! ```text
//!   producer                                      worker
//!   publish what is wanted                        lock
//!   claim, push ──► the stack was expecting it?   sleeping: false ─► true
//!                   no: done                      each stack: empty ─► expecting; one that is not: stay awake
//!                   yes: sleeping: ? ─► false     wait while sleeping
//!                        was true: lock, notify
//! ```
//!
//! An empty stack is of two kinds: plain, and *expecting* a push. So a push learns by the exchange that it makes
//! anyway whether the worker may sleep: no fence, nothing shared by all lanes to read, and no mutex and no system call
//! unless it does. Why no wake-up is lost: the exchange with which the worker makes a stack expecting fails if there
//! was a push, and every later one finds it so. A stack that was left expecting by an earlier sleep may look so to the
//! worker although there was a push just now; but that push's producer turns to `sleeping` next. Whoever changes that
//! does so by read-modify-write, never by a store, so each change is seen by the next. Either the producer finds `true`,
//! and wakes the worker; or the worker's change to `true` comes later, and then the worker sees what was pushed.
//!
//! # Thread-safety
//! Any thread may produce, on any lane. One thread consumes.

mod lane;
mod room;

use std::time::Duration;

use crossbeam_utils::CachePadded;

use crate::sync::{Arc, AtomicBool, AtomicU64, Condvar, Mutex, MutexGuard, Ordering};
use crate::sys::stack::{List, Node, Stack};
use lane::{Lane, Load};
use room::{BYTES, ENTRIES, Room};

pub use lane::{DELETE, LANES, PUT};

/// Messages that may wait before questions are refused; more wait only while the device hangs.
const MESSAGES: usize = 256;
/// Entries that the worker takes of one lane before it looks at the next.
const TURN: usize = 32;

/// What became of a request to put.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Admission {
    Queued,
    /// It was waiting already; the worker will see what is wanted now.
    Coalesced,
    /// There is no room for a flow that is not in yet. [`Queue::has_room`] says when to ask again.
    Full,
}

/// What can say how much memory it keeps while it waits.
pub trait Weigh {
    /// In bytes, counted up to 4 GiB. Asked when the entry enters; that much leaves with it, whatever it weighs then.
    fn weigh(&self) -> usize;
}

/// What a worker wakes up for; each includes the ones before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Sake {
    /// Messages and pokes.
    Messages,
    /// What goes before puts.
    Urgent,
    Anything,
}

/// Lanes of nodes and a list of rare messages, consumed by one thread that sleeps when there is nothing.
pub struct Queue<T, M> {
    lanes: [Lane<T>; LANES],
    room: Room,
    wake: CachePadded<Wake<M>>,
}

/// The worker's sleep, and what is left for it besides nodes. Written when it falls asleep or is woken, and by messages.
struct Wake<M> {
    /// The worker sleeps, or is about to. Changed by read-modify-write only.
    sleeping: AtomicBool,
    /// The worker is to take another look.
    poked: AtomicBool,
    has_messages: AtomicBool,
    messages: Mutex<Messages<M>>,
    bell: Condvar,
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
    /// Flows that wait to be put.
    pub depth: usize,
    /// Flows that wait for something of theirs to be deleted or changed.
    pub deletes: usize,
    /// Memory that waits, in bytes: the puts' and, which no limit holds back, the deletes'.
    pub bytes: usize,
    /// The depth above which new flows are refused.
    pub limit: usize,
    /// The bytes of waiting puts above which new flows are refused.
    pub byte_limit: usize,
    /// The greatest depth that was seen; one between two looks of the worker may be missed.
    pub high_water: usize,
    /// Requests that entered.
    pub enqueued: u64,
    /// Requests for a flow that was waiting already.
    pub coalesced: u64,
    /// New flows turned away because there was no room.
    pub refused: u64,
    /// Times that a sleeping worker was woken.
    pub wakeups: u64,
}

impl QueueCounts {
    /// What there is, with what was counted since `earlier`. The greatest depth stays that since the start.
    pub fn since(self, earlier: &QueueCounts) -> QueueCounts {
        QueueCounts {
            enqueued: self.enqueued.saturating_sub(earlier.enqueued),
            coalesced: self.coalesced.saturating_sub(earlier.coalesced),
            refused: self.refused.saturating_sub(earlier.refused),
            wakeups: self.wakeups.saturating_sub(earlier.wakeups),
            ..self
        }
    }

    /// The counts of several queues together.
    pub fn sum(all: impl Iterator<Item = QueueCounts>) -> QueueCounts {
        all.reduce(|sum, more| QueueCounts {
            depth: sum.depth + more.depth,
            deletes: sum.deletes + more.deletes,
            bytes: sum.bytes + more.bytes,
            limit: sum.limit + more.limit,
            byte_limit: sum.byte_limit.saturating_add(more.byte_limit),
            high_water: sum.high_water + more.high_water,
            enqueued: sum.enqueued + more.enqueued,
            coalesced: sum.coalesced + more.coalesced,
            refused: sum.refused + more.refused,
            wakeups: sum.wakeups + more.wakeups,
        })
        .unwrap_or_default()
    }
}

impl<T: Weigh, M> Queue<T, M> {
    /// Asks the worker to look at `node`. `lane`: the poller's number. `admitted`: it was let in before, so it is not
    /// refused now.
    pub fn put(&self, lane: usize, node: &Arc<Node<T>>, admitted: bool) -> Admission {
        let lane = lane % LANES;
        let puts = &self.lanes[lane].puts;
        let Some(claimed) = Node::claim::<PUT>(node) else {
            puts.coalesced.fetch_add(1, Ordering::Relaxed);
            return Admission::Coalesced;
        };
        let weight = weight(&***node);
        if !self.room.enter(&self.lanes, lane, Load::one(weight), admitted) {
            puts.refused.fetch_add(1, Ordering::Relaxed);
            return Admission::Full;
        }
        if puts.side.stack.push_and_tell(claimed.weighing(weight)) {
            self.wake_if_asleep();
        }
        Admission::Queued
    }

    /// Asks the worker to look at `node` before all puts: the device may have something of it that must go, because it is
    /// dead or wants something else now. Never refused.
    pub fn delete(&self, lane: usize, node: &Arc<Node<T>>) {
        let lane = &self.lanes[lane % LANES];
        let Some(claimed) = Node::claim::<DELETE>(node) else {
            lane.puts.coalesced.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let weight = weight(&***node);
        // Before the push, so that it is not counted to leave first.
        lane.deletes.entered.fetch_add(Load::one(weight).0, Ordering::Relaxed);
        if lane.deletes.stack.push_and_tell(claimed.weighing(weight)) {
            self.wake_if_asleep();
        }
    }
}

impl<T, M> Queue<T, M> {
    /// New flows are refused while `limit` flows wait to be put, or where they would weigh more than `bytes` together
    /// with those that wait; a single one above that is always refused. At most 2²⁷ flows and 32 GiB.
    ///
    /// Exceeded by up to one flow for each producer where they ask in the same moment, and by flows that were admitted
    /// before.
    pub fn new(limit: usize, bytes: usize) -> Queue<T, M> {
        let wake = Wake {
            sleeping: AtomicBool::new(false),
            poked: AtomicBool::new(false),
            has_messages: AtomicBool::new(false),
            messages: Mutex::new(Messages { waiting: Vec::new(), closed: false }),
            bell: Condvar::new(),
            wakeups: AtomicU64::new(0),
        };
        Queue {
            lanes: std::array::from_fn(|_| Lane::default()),
            room: Room::new(limit, bytes),
            wake: CachePadded::new(wake),
        }
    }

    /// Whether a producer whose put was refused should ask again: something has left since. Costs two loads. It may
    /// find the room taken by another.
    pub fn has_room(&self, lane: usize) -> bool {
        self.room.is_worth_asking(&self.lanes[lane % LANES])
    }

    /// Has the worker take another look at what concerns it besides this queue, once. Takes the mutex only when the
    /// worker sleeps.
    pub fn poke(&self) {
        self.wake.poked.store(true, Ordering::Release);
        self.wake_if_asleep();
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

    /// Leaves `message`, and takes back what the worker has yet to read and for which `which` holds.
    pub fn send_in_place_of(&self, which: impl Fn(&M) -> bool, message: M) {
        let mut messages = self.lock();
        if !messages.closed {
            messages.waiting.retain(|waiting| !which(waiting));
            messages.waiting.push(message);
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
        let [limit, byte_limit] = [ENTRIES, BYTES].map(|bound| self.room.limits()[bound]);
        let mut counts = QueueCounts {
            limit,
            byte_limit,
            high_water: self.room.high_water(&self.lanes),
            wakeups: self.wake.wakeups.load(Ordering::Relaxed),
            ..QueueCounts::default()
        };
        for lane in &self.lanes {
            let (puts, deletes) = (lane.puts_waiting(), lane.deletes_waiting());
            counts.depth += puts.entries();
            counts.deletes += deletes.entries();
            counts.bytes += puts.bytes() + deletes.bytes();
            counts.enqueued += lane.entries();
            counts.coalesced += lane.puts.coalesced.load(Ordering::Relaxed);
            counts.refused += lane.puts.refused.load(Ordering::Relaxed);
        }
        counts
    }

    /// Wakes the worker should it sleep. To be called after what it must see was published.
    #[cold]
    fn wake_if_asleep(&self) {
        // The swap picks one producer to do the waking.
        if self.wake.sleeping.swap(false, Ordering::AcqRel) {
            // The worker holds the mutex from announcing its sleep until it waits: once we had it, it waits or is up.
            // Given back before the bell, or the worker would wake to find it taken, and cost another system call.
            drop(self.lock());
            self.wake.wakeups.fetch_add(1, Ordering::Relaxed);
            self.wake.bell.notify_one();
        }
    }

    /// Has the worker look at the messages. To be called with the mutex in hand.
    fn announce(&self) {
        self.wake.has_messages.store(true, Ordering::Release);
        self.wake.sleeping.swap(false, Ordering::AcqRel);
        self.wake.bell.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Messages<M>> {
        // A list of messages is whole between any two statements that change it, so a poisoned one is still good.
        self.wake.messages.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn weight<T: Weigh>(value: &T) -> u32 {
    u32::try_from(value.weigh()).unwrap_or(u32::MAX)
}

/// The worker's end: nodes taken from the lanes and not yet looked at.
pub struct Consumer<T, M> {
    queue: Arc<Queue<T, M>>,
    puts: Round<T, PUT>,
    deletes: Round<T, DELETE>,
}

impl<T, M> Consumer<T, M> {
    pub fn new(queue: Arc<Queue<T, M>>) -> Consumer<T, M> {
        Consumer { queue, puts: Round::default(), deletes: Round::default() }
    }

    /// The oldest put of the lane whose turn it is.
    pub fn next_put(&mut self) -> Option<Arc<Node<T>>> {
        let Queue { lanes, room, .. } = &*self.queue;
        if self.puts.is_at_new_turn() {
            room.high_water(lanes);
        }
        let (at, node, weight) = self.puts.next(|at| &lanes[at].puts.side.stack)?;
        room.leave(&lanes[at], Load::one(weight));
        Some(node)
    }

    /// The oldest delete of the lane whose turn it is.
    pub fn next_delete(&mut self) -> Option<Arc<Node<T>>> {
        let lanes = &self.queue.lanes;
        let (at, node, weight) = self.deletes.next(|at| &lanes[at].deletes.stack)?;
        lanes[at].leave(DELETE, Load::one(weight));
        Some(node)
    }

    /// Messages sent since the last time; `None` when the queue was closed.
    pub fn take_messages(&mut self) -> Option<Vec<M>> {
        if !self.queue.wake.has_messages.load(Ordering::Acquire) {
            return Some(Vec::new());
        }
        let mut messages = self.queue.lock();
        if messages.closed {
            return None;
        }
        self.queue.wake.has_messages.store(false, Ordering::Relaxed);
        Some(std::mem::take(&mut messages.waiting))
    }

    /// Whether a message waits, or the queue was closed.
    pub fn has_messages(&self) -> bool {
        self.queue.wake.has_messages.load(Ordering::Relaxed)
    }

    /// Whether something waits that goes before puts.
    pub fn is_urgent(&self) -> bool {
        self.has_messages() || self.deletes.has_any(|at| &self.queue.lanes[at].deletes.stack)
    }

    /// Whether anything waits at all. A poke is told of once.
    pub fn has_work(&self) -> bool {
        self.is_urgent() || self.puts.has_any(|at| &self.queue.lanes[at].puts.side.stack) || self.take_poke()
    }

    /// Sleeps until something is enqueued or sent, the queue is poked, or `timeout` is over. Returns at once when
    /// something waits.
    pub fn sleep(&mut self, timeout: Option<Duration>) {
        self.sleep_for(Sake::Anything, timeout);
    }

    /// The same for the sake of `sake` alone: what else waits, or comes, is left waiting until `timeout` at least.
    pub fn sleep_for(&mut self, sake: Sake, timeout: Option<Duration>) {
        let wake = &*self.queue.wake;
        let mut messages = self.queue.lock();
        // A swap, as in `wake_if_asleep`: what was published before the flag was last cleared is seen below.
        wake.sleeping.swap(true, Ordering::AcqRel);
        if self.expects(sake) && !self.take_poke() {
            // `sleeping` is the predicate: only a producer or sender that has something for us clears it, so that a
            // spurious wake-up waits again. The lanes are looked at afterwards, never popped on trust. Acquire: a poke
            // that cleared it is seen below.
            while wake.sleeping.load(Ordering::Acquire) {
                messages = match timeout {
                    None => wake.bell.wait(messages).unwrap_or_else(|poisoned| poisoned.into_inner()),
                    Some(timeout) => {
                        let waited = wake.bell.wait_timeout(messages, timeout);
                        let (guard, result) = waited.unwrap_or_else(|poisoned| poisoned.into_inner());
                        if result.timed_out() {
                            wake.sleeping.swap(false, Ordering::AcqRel);
                        }
                        guard
                    }
                };
            }
            // The look that it asked for is the caller's next.
            self.take_poke();
        }
        wake.sleeping.swap(false, Ordering::AcqRel);
        drop(messages);
    }

    /// Whether nothing of the kind waits, and whoever changes that will tell. To be called with the mutex in hand.
    fn expects(&self, sake: Sake) -> bool {
        let lanes = &self.queue.lanes;
        let deletes = || self.deletes.is_empty() && lanes.iter().all(|lane| lane.deletes.stack.expect());
        let puts = || self.puts.is_empty() && lanes.iter().all(|lane| lane.puts.side.stack.expect());
        !self.has_messages() && (sake < Sake::Urgent || deletes()) && (sake < Sake::Anything || puts())
    }

    fn take_poke(&self) -> bool {
        let poked = &self.queue.wake.poked;
        poked.load(Ordering::Relaxed) && poked.swap(false, Ordering::AcqRel)
    }
}

/// The worker's way through the stacks of one link: so many entries of each lane in turn.
struct Round<T, const AT: usize> {
    /// What was taken of each lane and not yet given out.
    taken: [List<T, AT>; LANES],
    /// The lane whose turn it is.
    at: usize,
    /// Entries that it has left of its turn.
    turn: usize,
}

impl<T, const AT: usize> Default for Round<T, AT> {
    fn default() -> Self {
        Round { taken: std::array::from_fn(|_| List::default()), at: 0, turn: TURN }
    }
}

impl<T, const AT: usize> Round<T, AT> {
    /// The next entry with its lane and its weight.
    fn next<'a>(&mut self, stack: impl Fn(usize) -> &'a Stack<T, AT>) -> Option<(usize, Arc<Node<T>>, u32)>
    where
        T: 'a,
    {
        if self.turn == 0 {
            self.advance();
        }
        for _ in 0..LANES {
            let taken = &mut self.taken[self.at];
            if taken.is_empty() {
                *taken = stack(self.at).take_all();
            }
            if let Some((node, weight)) = taken.pop() {
                self.turn -= 1;
                return Some((self.at, node, weight));
            }
            self.advance();
        }
        None
    }

    fn advance(&mut self) {
        self.at = (self.at + 1) % LANES;
        self.turn = TURN;
    }

    /// Whether no entry has been given out in this turn.
    fn is_at_new_turn(&self) -> bool {
        self.turn == TURN || self.turn == 0
    }

    /// Whether everything that was taken has been given out.
    fn is_empty(&self) -> bool {
        self.taken.iter().all(List::is_empty)
    }

    fn has_any<'a>(&self, stack: impl Fn(usize) -> &'a Stack<T, AT>) -> bool
    where
        T: 'a,
    {
        !self.is_empty() || (0..LANES).any(|at| !stack(at).is_empty())
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
    use crate::sync::AtomicUsize;

    /// Says itself what it weighs.
    impl Weigh for AtomicUsize {
        fn weigh(&self) -> usize {
            self.load(Ordering::Relaxed)
        }
    }

    fn node(weight: usize) -> Arc<Node<AtomicUsize>> {
        Arc::new(Node::new(AtomicUsize::new(weight)))
    }

    fn nodes<const N: usize>() -> [Arc<Node<AtomicUsize>>; N] {
        std::array::from_fn(node)
    }

    fn value(node: Option<Arc<Node<AtomicUsize>>>) -> Option<usize> {
        node.map(|node| node.load(Ordering::Relaxed))
    }

    #[test]
    fn a_full_queue_refuses_new_flows_but_neither_deletes_nor_flows_that_were_let_in() {
        let queue: Arc<Queue<_, ()>> = Arc::new(Queue::new(2, usize::MAX));
        let nodes: [_; 4] = nodes();
        assert_eq!(queue.put(0, &nodes[0], false), Admission::Queued);
        assert_eq!(queue.put(0, &nodes[1], false), Admission::Queued);
        assert_eq!(queue.put(0, &nodes[2], false), Admission::Full);
        assert_eq!(queue.put(0, &nodes[0], false), Admission::Coalesced);
        assert_eq!(queue.put(0, &nodes[3], true), Admission::Queued);
        queue.delete(0, &nodes[2]);
        let counts = queue.counts();
        assert_eq!(
            (counts.depth, counts.deletes, counts.refused, counts.coalesced, counts.high_water, counts.enqueued),
            (3, 1, 1, 1, 3, 4)
        );
        let mut consumer = Consumer::new(Arc::clone(&queue));
        assert_eq!(value(consumer.next_delete()), Some(2));
        assert_eq!(value(consumer.next_put()), Some(0));
        assert_eq!(queue.put(0, &nodes[0], false), Admission::Full, "two still wait");
        consumer.next_put();
        assert_eq!(queue.put(0, &nodes[2], false), Admission::Queued, "a refused flow may ask again");
        assert_eq!((queue.counts().high_water, queue.counts().enqueued), (3, 5));
    }

    #[test]
    fn the_limit_is_of_all_lanes_together_and_any_lane_can_use_it_whole() {
        let queue: Arc<Queue<_, ()>> = Arc::new(Queue::new(1_000, usize::MAX));
        let mut consumer = Consumer::new(Arc::clone(&queue));
        for lane in [3, 7, 7, 0] {
            let nodes: Vec<_> = (0..1_001).map(|_| node(1)).collect();
            let queued = nodes.iter().filter(|node| queue.put(lane, node, false) == Admission::Queued).count();
            assert_eq!((queued, queue.counts().depth), (1_000, 1_000));
            assert_eq!(queue.put(5, &nodes[1_000], false), Admission::Full, "another lane");
            consumer.next_put();
            assert_eq!(queue.put(5, &nodes[1_000], false), Admission::Queued, "gets what leaves");
            while consumer.next_put().is_some() {}
        }
        assert_eq!((queue.counts().depth, queue.counts().bytes, queue.counts().high_water), (0, 0, 1_000));
    }

    #[test]
    fn new_flows_are_refused_by_their_bytes_and_each_leaves_as_heavy_as_it_entered() {
        let queue: Arc<Queue<_, ()>> = Arc::new(Queue::new(100, 1_000));
        let mut consumer = Consumer::new(Arc::clone(&queue));
        let [light, heavy, other] = [400, 600, 1].map(node);
        assert_eq!(queue.put(0, &light, false), Admission::Queued);
        assert_eq!(queue.put(1, &heavy, false), Admission::Queued);
        assert_eq!(queue.put(2, &other, false), Admission::Full);
        queue.delete(1, &heavy);
        assert_eq!((queue.counts().bytes, queue.counts().byte_limit), (1_600, 1_000));
        // What it was to enter with, it keeps.
        light.store(900, Ordering::Relaxed);
        heavy.store(5, Ordering::Relaxed);
        while consumer.next_delete().or_else(|| consumer.next_put()).is_some() {}
        assert_eq!(queue.counts().bytes, 0);
        assert_eq!(queue.put(2, &light, false), Admission::Queued, "room for what it weighs now");
        assert_eq!(queue.put(2, &node(101), false), Admission::Full);
        assert_eq!(queue.put(2, &node(100), false), Admission::Queued);
        assert_eq!(queue.put(3, &node(1_001), false), Admission::Full);
    }

    #[test]
    fn a_refused_producer_is_told_to_ask_again_when_something_has_left() {
        let queue: Arc<Queue<_, ()>> = Arc::new(Queue::new(1, 10));
        let mut consumer = Consumer::new(Arc::clone(&queue));
        let [first, second, heavy] = [1, 1, 11].map(node);
        assert!(queue.has_room(0), "nobody was refused yet");
        queue.put(0, &first, false);
        assert_eq!(queue.put(1, &second, false), Admission::Full);
        assert!(!queue.has_room(1));
        consumer.next_put();
        assert!(queue.has_room(1));
        assert_eq!(queue.put(1, &second, false), Admission::Queued);
        consumer.next_put();
        assert_eq!(queue.put(0, &heavy, false), Admission::Full);
        assert!(queue.has_room(0), "nothing waits, so nothing will leave to say so");
        assert_eq!(queue.put(1, &second, false), Admission::Queued, "what it could not use is others' again");
    }

    #[test]
    fn lanes_take_turns_and_each_keeps_its_order_with_all_deletes_before() {
        let queue: Arc<Queue<_, ()>> = Arc::new(Queue::new(usize::MAX, usize::MAX));
        let mut consumer = Consumer::new(Arc::clone(&queue));
        let nodes: Vec<_> = (0..10 * TURN).map(node).collect();
        let (busy, quiet) = nodes.split_at(9 * TURN);
        busy.iter().for_each(|node| assert_eq!(queue.put(1, node, false), Admission::Queued));
        quiet.iter().for_each(|node| assert_eq!(queue.put(LANES + 2, node, false), Admission::Queued));
        queue.delete(4, &nodes[7]);
        assert!(consumer.is_urgent());
        assert_eq!(value(consumer.next_delete()), Some(7));
        assert!(!consumer.is_urgent());
        let order: Vec<_> = std::iter::from_fn(|| value(consumer.next_put())).collect();
        let (first, rest) = (0..TURN, TURN..9 * TURN);
        assert_eq!(order, first.chain(9 * TURN..10 * TURN).chain(rest).collect::<Vec<_>>());
    }

    #[test]
    fn a_poke_is_seen_once() {
        let queue: Arc<Queue<AtomicUsize, ()>> = Arc::new(Queue::new(1, 1));
        let mut consumer = Consumer::new(Arc::clone(&queue));
        assert!(!consumer.has_work());
        queue.poke();
        assert!(!consumer.is_urgent());
        assert!(consumer.has_work());
        assert!(!consumer.has_work());
        queue.poke();
        consumer.sleep(None);
        assert!(!consumer.has_work());
        assert_eq!(queue.counts().wakeups, 0);
    }

    #[test]
    fn messages_that_nobody_will_read_are_dropped_and_questions_do_not_pile_up() {
        let queue: Arc<Queue<AtomicUsize, Option<Arc<()>>>> = Arc::new(Queue::new(2, 2));
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
        let queue: Arc<Queue<AtomicUsize, i8>> = Arc::new(Queue::new(2, 2));
        let mut consumer = Consumer::new(Arc::clone(&queue));
        for _ in 0..1_000 {
            queue.take_back_or_send(|&waiting| waiting == 1, -1);
            queue.send(1);
        }
        assert_eq!(consumer.take_messages(), Some(vec![-1, 1]));
    }

    #[test]
    fn a_worker_with_work_does_not_sleep_and_a_producer_wakes_one_that_sleeps() {
        let queue: Arc<Queue<AtomicUsize, u8>> = Arc::new(Queue::new(8, 8));
        let mut consumer = Consumer::new(Arc::clone(&queue));
        queue.put(0, &node(1), false);
        consumer.sleep(None);
        assert_eq!(queue.counts().wakeups, 0);
        assert!(consumer.next_put().is_some());
        queue.send(9);
        consumer.sleep(None);
        assert_eq!(consumer.take_messages(), Some(vec![9]));
        let producer = std::thread::spawn({
            let queue = Arc::clone(&queue);
            move || {
                while !queue.wake.sleeping.load(Ordering::Relaxed) {
                    std::thread::yield_now();
                }
                queue.put(1, &node(2), false);
            }
        });
        consumer.sleep(None);
        assert_eq!(value(consumer.next_put()), Some(2));
        producer.join().unwrap();
        assert_eq!(queue.counts().wakeups, 1);
    }
}
