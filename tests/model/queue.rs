//! The lanes and the wake-up, on the real code.

use loom::thread;
use offloadd::offload::queue::{Admission, Consumer, Queue};
use offloadd::sync::{Arc, AtomicBool, AtomicUsize, Condvar, Mutex, Ordering, fence};
use offloadd::sys::stack::Node;

type Lanes = Queue<AtomicUsize, u32>;

fn node() -> Arc<Node<AtomicUsize>> {
    Arc::new(Node::new(AtomicUsize::new(0)))
}

#[test]
fn two_producers_lose_nothing_and_wake_the_worker() {
    loom::model(|| {
        let queue = Arc::new(Lanes::new(8));
        let producers: Vec<_> = [false, true]
            .into_iter()
            .map(|dead| {
                let queue = Arc::clone(&queue);
                thread::spawn(move || {
                    let node = node();
                    node.store(1, Ordering::Relaxed);
                    if dead {
                        queue.delete(&node);
                    } else {
                        assert_eq!(queue.put(&node, false), Admission::Queued);
                    }
                })
            })
            .collect();
        let mut consumer = Consumer::new(Arc::clone(&queue));
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
        assert_eq!((counts.depth, counts.deletes, counts.enqueued), (0, 0, 2));
    });
}

#[test]
fn a_message_wakes_the_worker() {
    loom::model(|| {
        let queue = Arc::new(Lanes::new(8));
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
        let queue = Arc::new(Queue::<AtomicUsize, Arc<()>>::new(8));
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

/// The same wake-up with the producer's fence left out.
#[test]
fn the_checker_catches_a_wake_up_without_the_producers_fence() {
    assert!(crate::is_caught(|| {
        let shared = Arc::new((AtomicBool::new(false), AtomicBool::new(false), Mutex::new(()), Condvar::new()));
        let producer = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                let (pushed, sleeping, mutex, wake) = &*shared;
                pushed.store(true, Ordering::Release);
                if sleeping.load(Ordering::Relaxed) && sleeping.swap(false, Ordering::Relaxed) {
                    let _guard = mutex.lock().unwrap();
                    wake.notify_one();
                }
            })
        };
        let (pushed, sleeping, mutex, wake) = &*shared;
        let mut guard = mutex.lock().unwrap();
        sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if !pushed.load(Ordering::Acquire) {
            while sleeping.load(Ordering::Relaxed) {
                guard = wake.wait(guard).unwrap();
            }
        }
        drop(guard);
        producer.join().unwrap();
    }));
}
