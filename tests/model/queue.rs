//! The lanes, their room and the wake-up, on the real code.

use std::sync::Arc as StdArc;

use loom::thread;
use offloadd::offload::queue::{Admission, Consumer, Queue};
use offloadd::sync::{Arc, AtomicBool, AtomicUsize, Condvar, Mutex, Ordering};
use offloadd::sys::stack::Node;

use crate::Content;

type Lanes = Queue<Content<AtomicUsize>, u32>;

fn node() -> Arc<Node<Content<AtomicUsize>>> {
    Arc::new(Node::new(Content(AtomicUsize::new(0))))
}

/// Two producers, each on its lane, each with a flow that is alive or dead.
fn two_producers(lanes: [usize; 2], dead: [bool; 2]) {
    let queue = Arc::new(Lanes::new(64, 64));
    let mut consumer = Consumer::new(Arc::clone(&queue));
    // Both lanes have their quotas already, as mostly.
    for lane in [0, 1] {
        assert_eq!(queue.put(lane, &node(), false), Admission::Queued);
        assert!(consumer.next_put().is_some());
    }
    let producers: Vec<_> = lanes
        .into_iter()
        .zip(dead)
        .map(|(lane, dead)| {
            let queue = Arc::clone(&queue);
            thread::spawn(move || {
                let node = node();
                node.store(1, Ordering::Relaxed);
                if dead {
                    queue.delete(lane, &node);
                } else {
                    assert_eq!(queue.put(lane, &node, false), Admission::Queued);
                }
            })
        })
        .collect();
    let mut popped = 0;
    while popped < 2 {
        // Without a wake-up for each push that finds the worker asleep, the model ends in a deadlock.
        consumer.sleep(None);
        while let Some(node) = consumer.next_delete().or_else(|| consumer.next_put()) {
            assert_eq!(node.load(Ordering::Relaxed), 1, "what was written before the push is seen");
            popped += 1;
        }
    }
    producers.into_iter().for_each(|producer| producer.join().unwrap());
    assert!(!consumer.has_work(), "nothing is popped twice");
    let counts = queue.counts();
    assert_eq!((counts.depth, counts.deletes, counts.bytes, counts.enqueued), (0, 0, 0, 4));
}

#[test]
fn two_producers_on_two_lanes_lose_nothing_and_wake_the_worker() {
    loom::model(|| two_producers([0, 1], [false, false]));
    loom::model(|| two_producers([0, 1], [false, true]));
}

#[test]
fn two_producers_on_one_lane_lose_nothing_and_wake_the_worker() {
    loom::model(|| two_producers([1, 1], [false, false]));
    loom::model(|| two_producers([1, 1], [false, true]));
}

/// What a lane counts, by one read-modify-write or as if its producer were alone.
fn a_count(alone: bool) {
    let entered = Arc::new(AtomicUsize::new(0));
    let enter = move |entered: &AtomicUsize| match alone {
        true => entered.store(entered.load(Ordering::Relaxed) + 1, Ordering::Relaxed),
        false => drop(entered.fetch_add(1, Ordering::Relaxed)),
    };
    let other = {
        let entered = Arc::clone(&entered);
        thread::spawn(move || enter(&entered))
    };
    enter(&entered);
    other.join().unwrap();
    assert_eq!(entered.load(Ordering::Relaxed), 2);
}

#[test]
fn the_checker_catches_a_shared_lane_that_counts_as_if_it_were_not() {
    loom::model(|| a_count(false));
    assert!(crate::is_caught(|| a_count(true)));
}

/// What two producers may put into a queue that is empty, though lane 0 has all of it in its quota.
const LIMIT: usize = 3;

#[test]
fn two_producers_that_take_room_from_each_other_exceed_the_limit_by_one_each_at_most() {
    loom::model(|| {
        let queue = Arc::new(Lanes::new(LIMIT, usize::MAX));
        let mut consumer = Consumer::new(Arc::clone(&queue));
        let mine: Vec<_> = (0..LIMIT).map(|_| node()).collect();
        for node in &mine {
            assert_eq!(queue.put(0, node, false), Admission::Queued);
        }
        while consumer.next_put().is_some() {}
        let borrower = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || {
                let admitted = |_: &usize| queue.put(1, &node(), false) == Admission::Queued;
                (0..LIMIT).filter(admitted).count()
            })
        };
        let lender = mine.iter().filter(|node| queue.put(0, node, false) == Admission::Queued).count();
        let waiting = lender + borrower.join().unwrap();
        assert!(waiting <= LIMIT + 2, "{waiting}");
        assert_eq!(queue.counts().depth, waiting);
        // And no room is lost.
        while consumer.next_put().is_some() {}
        let admitted = (0..=LIMIT).filter(|_| queue.put(1, &node(), false) == Admission::Queued).count();
        assert_eq!(admitted, LIMIT);
    });
}

/// A quota that is taken by another, who then looks at what of it is in use, or looked before.
fn a_loan(looks_again: bool) {
    let lender = Arc::new((AtomicUsize::new(LIMIT), AtomicUsize::new(0)));
    let borrower = {
        let lender = Arc::clone(&lender);
        thread::spawn(move || {
            let (quota, entered) = &*lender;
            let unused = LIMIT - entered.load(Ordering::Relaxed).min(LIMIT);
            quota.fetch_sub(unused, Ordering::Relaxed);
            match looks_again {
                true => unused - (entered.fetch_add(0, Ordering::AcqRel) + unused).saturating_sub(LIMIT).min(unused),
                false => unused,
            }
        })
    };
    let (quota, entered) = &*lender;
    for n in 0..LIMIT {
        if n < quota.load(Ordering::Relaxed) {
            entered.fetch_add(1, Ordering::AcqRel);
        }
    }
    let borrowed = borrower.join().unwrap();
    assert!(entered.load(Ordering::Relaxed) + borrowed <= LIMIT + 1);
}

#[test]
fn the_checker_catches_a_loan_of_room_that_is_in_use() {
    loom::model(|| a_loan(true));
    assert!(crate::is_caught(|| a_loan(false)));
}

#[test]
fn a_producer_that_was_refused_is_told_when_something_has_left() {
    loom::model(|| {
        let queue = Arc::new(Lanes::new(1, 8));
        assert_eq!(queue.put(0, &node(), false), Admission::Queued);
        let mut consumer = Consumer::new(Arc::clone(&queue));
        let worker = thread::spawn(move || {
            assert!(consumer.next_put().is_some());
            consumer
        });
        let admission = queue.put(1, &node(), false);
        let _consumer = worker.join().unwrap();
        assert!(admission == Admission::Queued || queue.has_room(1));
    });
}

/// What a refused producer remembers, taken down before its look or after.
fn a_refusal(remembered_first: bool) {
    let queue = Arc::new((AtomicUsize::new(1), AtomicUsize::new(0)));
    let worker = {
        let queue = Arc::clone(&queue);
        thread::spawn(move || {
            queue.0.store(0, Ordering::Release);
            queue.1.store(1, Ordering::Release);
        })
    };
    let (waiting, left) = &*queue;
    let before = left.load(Ordering::Acquire);
    let refused = waiting.load(Ordering::Acquire) > 0;
    let refused_at = if remembered_first { before } else { left.load(Ordering::Acquire) };
    worker.join().unwrap();
    assert!(!refused || refused_at != left.load(Ordering::Relaxed));
}

#[test]
fn the_checker_catches_a_refusal_that_forgets_what_left_meanwhile() {
    loom::model(|| a_refusal(true));
    assert!(crate::is_caught(|| a_refusal(false)));
}

#[test]
fn a_poke_wakes_the_worker_which_sees_what_was_done_before() {
    loom::model(|| {
        let queue = Arc::new(Lanes::new(8, 8));
        let done = Arc::new(AtomicBool::new(false));
        let poker = {
            let (queue, done) = (Arc::clone(&queue), Arc::clone(&done));
            thread::spawn(move || {
                done.store(true, Ordering::Relaxed);
                queue.poke();
            })
        };
        let mut consumer = Consumer::new(queue);
        consumer.sleep(None);
        assert!(done.load(Ordering::Relaxed), "nothing else wakes it");
        poker.join().unwrap();
        assert!(!consumer.has_work(), "and it is seen once");
    });
}

#[test]
fn a_message_wakes_the_worker() {
    loom::model(|| {
        let queue = Arc::new(Lanes::new(8, 8));
        let sender = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || queue.send(7))
        };
        let mut consumer = Consumer::new(queue);
        let mut messages = Vec::new();
        while messages.is_empty() {
            consumer.sleep(None);
            messages = consumer.take_messages().expect("nobody closed the queue");
        }
        assert_eq!(messages, [7]);
        sender.join().unwrap();
    });
}

/// A queue that is given up wakes its worker, whatever was sent meanwhile, and keeps nothing.
#[test]
fn a_closed_queue_wakes_the_worker_and_keeps_nothing() {
    loom::model(|| {
        let queue = Arc::new(Queue::<Content<AtomicUsize>, Arc<()>>::new(8, 8));
        let message = Arc::new(());
        let sender = {
            let (queue, message) = (Arc::clone(&queue), Arc::clone(&message));
            thread::spawn(move || queue.send(message))
        };
        let giver_up = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || queue.close())
        };
        let mut consumer = Consumer::new(queue);
        while consumer.take_messages().is_some() {
            consumer.sleep(None);
        }
        sender.join().unwrap();
        giver_up.join().unwrap();
        assert_eq!(Arc::strong_count(&message), 1);
    });
}

/// What can be done wrong in a wake-up.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flaw {
    None,
    /// The worker looks whether a stack is empty, but does not make it expecting.
    OnlyLooks,
    /// The worker makes the stacks expecting before it announces its sleep.
    ExpectsTooEarly,
    /// The producer looks whether the stack is expecting before it pushes.
    PushesTooLate,
    /// The producer only reads whether the worker sleeps.
    OnlyReads,
    /// A worker that stays awake takes the announcement of its sleep back by a store.
    WakesByStore,
}

/// Heads of a stack.
const EMPTY: usize = 0;
const EXPECTING: usize = 1;
const PUSHED: usize = 2;

/// The wake-up by itself: a producer pushes on the second of two stacks, which starts as that `head`.
fn a_wake_up(flaw: Flaw, head: usize) {
    let stacks = [AtomicUsize::new(EMPTY), AtomicUsize::new(head)];
    // Not counted by the checker: it would be while a deadlock unwinds, which the checker does not survive.
    let shared = StdArc::new((stacks, AtomicBool::new(false), Mutex::new(()), Condvar::new()));
    let producer = {
        let shared = StdArc::clone(&shared);
        thread::spawn(move || {
            let (stacks, sleeping, mutex, wake) = &*shared;
            let expecting = match flaw {
                Flaw::PushesTooLate => stacks[1].load(Ordering::Acquire) == EXPECTING,
                _ => stacks[1].swap(PUSHED, Ordering::AcqRel) == EXPECTING,
            };
            let asleep = || match flaw {
                Flaw::OnlyReads => sleeping.load(Ordering::Acquire),
                _ => true,
            };
            if expecting && asleep() && sleeping.swap(false, Ordering::AcqRel) {
                drop(mutex.lock().unwrap());
                wake.notify_one();
            }
            if flaw == Flaw::PushesTooLate {
                stacks[1].swap(PUSHED, Ordering::AcqRel);
            }
        })
    };
    let (stacks, sleeping, mutex, wake) = &*shared;
    let expects = |stack: &AtomicUsize| match stack.load(Ordering::Acquire) {
        EMPTY if flaw == Flaw::OnlyLooks => true,
        EMPTY => stack.compare_exchange(EMPTY, EXPECTING, Ordering::AcqRel, Ordering::Acquire).is_ok(),
        head => head == EXPECTING,
    };
    let expects_all = || stacks.iter().all(expects);
    // A sleep that comes to nothing, as if there had been a message, and one that does not.
    sleeping.swap(true, Ordering::AcqRel);
    match flaw {
        Flaw::WakesByStore => sleeping.store(false, Ordering::Release),
        _ => drop(sleeping.swap(false, Ordering::AcqRel)),
    }
    let mut guard = mutex.lock().unwrap();
    let early = flaw == Flaw::ExpectsTooEarly && expects_all();
    sleeping.swap(true, Ordering::AcqRel);
    if early || (flaw != Flaw::ExpectsTooEarly && expects_all()) {
        while sleeping.load(Ordering::Acquire) {
            guard = wake.wait(guard).unwrap();
        }
    }
    drop(guard);
    producer.join().unwrap();
}

#[test]
fn the_checker_catches_a_wake_up_in_which_anything_is_done_wrong() {
    for head in [EMPTY, EXPECTING] {
        loom::model(move || a_wake_up(Flaw::None, head));
    }
    for flaw in [Flaw::OnlyLooks, Flaw::ExpectsTooEarly, Flaw::PushesTooLate] {
        assert!(crate::is_caught(move || a_wake_up(flaw, EMPTY)));
    }
    for flaw in [Flaw::OnlyReads, Flaw::WakesByStore] {
        assert!(crate::is_caught(move || a_wake_up(flaw, EXPECTING)));
    }
}
