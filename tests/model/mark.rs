//! The life of a mark: a frame that was stamped for one flow never meets the mark's next flow.

use std::sync::Arc as StdArc;

use loom::thread;
use offloadd::offload::mark::{MarkPool, Quarantined};
use offloadd::port::RxProgress;
use offloadd::sync::{Arc, AtomicUsize, Mutex, Ordering};

/// Flow 1 has the only mark, and a frame of it waits in the ring. The worker retires the mark, and binds it to flow 2
/// once `is_over` says so; the poller goes on taking frames and says what mark each was stamped with, and what the mark
/// meant to it.
fn a_mark_changes_hands(is_over: fn(&Quarantined) -> bool) {
    let ring = Arc::new(Mutex::new(vec![1_usize]));
    let bound = Arc::new(AtomicUsize::new(1));
    let progress = StdArc::new(RxProgress::new(1));
    let mut pool = MarkPool::new(8);
    let lease = pool.take().expect("a new pool has marks");
    let poller = {
        let (ring, bound, progress) = (Arc::clone(&ring), Arc::clone(&bound), StdArc::clone(&progress));
        thread::spawn(move || {
            for _ in 0..3 {
                let frames = std::mem::take(&mut *ring.lock().unwrap());
                for &stamped_for in &frames {
                    let executed_as = bound.load(Ordering::Acquire);
                    assert!(executed_as == 0 || executed_as == stamped_for, "a stranger's actions");
                }
                progress.took(frames.len());
            }
        })
    };
    // The device has forgotten flow 1: nothing is stamped for it from here on.
    bound.store(0, Ordering::Release);
    let mut quarantined = lease.retire([&progress]);
    for _ in 0..2 {
        if is_over(&quarantined) {
            match pool.release(quarantined) {
                Ok(()) => {}
                // Only the broken variant comes here: it does not ask the pool.
                Err(early) => drop(early),
            }
            bound.store(2, Ordering::Release);
            ring.lock().unwrap().push(2);
            break;
        }
        match pool.release(quarantined) {
            Ok(()) => {
                bound.store(2, Ordering::Release);
                ring.lock().unwrap().push(2);
                break;
            }
            Err(again) => quarantined = again,
        }
    }
    poller.join().unwrap();
}

#[test]
fn no_frame_with_an_old_mark_meets_the_marks_next_flow() {
    loom::model(|| a_mark_changes_hands(|quarantined| quarantined.is_over()));
}

#[test]
fn the_checker_catches_a_mark_that_is_used_again_at_once() {
    assert!(crate::is_caught(|| a_mark_changes_hands(|_| true)));
}
