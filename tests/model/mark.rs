//! The life of a mark: a frame that was stamped for one flow never meets the mark's next flow.

use std::sync::Arc as StdArc;

use loom::thread;
use offloadd::offload::mark::{MarkPool, Quarantined};
use offloadd::port::RxProgress;
use offloadd::sync::{Arc, AtomicUsize, Ordering, fence};

/// What tells when the frames of a ring are gone: the poller says what it took, the worker remembers a point.
trait Progress: Send + Sync + 'static {
    type Point;
    fn new() -> Self;
    fn took(&self, n: usize);
    fn point(self: &StdArc<Self>) -> Self::Point;
    fn is_over(point: Self::Point) -> Result<(), Self::Point>;
}

impl Progress for RxProgress {
    type Point = (MarkPool, Quarantined);

    fn new() -> RxProgress {
        RxProgress::new(8)
    }

    fn took(&self, n: usize) {
        RxProgress::took(self, n);
    }

    fn point(self: &StdArc<Self>) -> (MarkPool, Quarantined) {
        let mut pool = MarkPool::new(8);
        let lease = pool.take().expect("a new pool has marks");
        (pool, lease.retire([self]))
    }

    fn is_over((mut pool, quarantined): (MarkPool, Quarantined)) -> Result<(), (MarkPool, Quarantined)> {
        pool.release(quarantined).map_err(|again| (pool, again))
    }
}

/// The same, but wrong: with fewer turns than are needed, or without the poller's fence.
struct Wrong<const TURNS: usize, const FENCED: bool>(AtomicUsize);

impl<const TURNS: usize, const FENCED: bool> Progress for Wrong<TURNS, FENCED> {
    type Point = (StdArc<Self>, usize);

    fn new() -> Self {
        Wrong(AtomicUsize::new(0))
    }

    fn took(&self, n: usize) {
        if n == 0 {
            self.0.store(self.0.load(Ordering::Relaxed) + 1, Ordering::Release);
            if FENCED {
                fence(Ordering::SeqCst);
            }
        }
    }

    fn point(self: &StdArc<Self>) -> Self::Point {
        fence(Ordering::SeqCst);
        (StdArc::clone(self), self.0.load(Ordering::Acquire))
    }

    fn is_over((progress, point): Self::Point) -> Result<(), Self::Point> {
        match progress.0.load(Ordering::Acquire) >= point + TURNS {
            true => Ok(()),
            false => Err((progress, point)),
        }
    }
}

/// A frame of flow 1 enters the ring, which has no lock, just before the device forgets its rule. Its mark goes to flow
/// 2 once `P` says that it may. The poller takes frames, says so, executes them by the marks bound so far, and binds
/// what is new between two looks, as the real one does.
fn a_mark_changes_hands<P: Progress>() {
    let ring = Arc::new(AtomicUsize::new(0));
    let bind = Arc::new(AtomicUsize::new(0));
    let progress = StdArc::new(P::new());
    let poller = {
        let (ring, bind, progress) = (Arc::clone(&ring), Arc::clone(&bind), StdArc::clone(&progress));
        thread::spawn(move || {
            let mut bound = 0;
            for _ in 0..3 {
                let stamped_for = ring.load(Ordering::Acquire);
                if stamped_for != 0 {
                    ring.store(0, Ordering::Relaxed);
                }
                progress.took(usize::from(stamped_for != 0));
                // Flow 1 is dead, and its mark unbound at its death; unbound marks are ignored.
                assert!(stamped_for == 0 || bound == 0 || bound == stamped_for, "a stranger's actions");
                bound = bind.load(Ordering::Acquire);
            }
        })
    };
    ring.store(1, Ordering::Release);
    let mut point = progress.point();
    for _ in 0..2 {
        match P::is_over(point) {
            Ok(()) => {
                bind.store(2, Ordering::Release);
                break;
            }
            Err(again) => point = again,
        }
        thread::yield_now();
    }
    poller.join().unwrap();
}

#[test]
fn no_frame_with_an_old_mark_meets_the_marks_next_flow() {
    loom::model(a_mark_changes_hands::<RxProgress>);
}

#[test]
fn the_checker_catches_a_mark_that_is_used_again_at_once() {
    assert!(crate::is_caught(a_mark_changes_hands::<Wrong<0, true>>));
}

#[test]
fn the_checker_catches_a_quarantine_that_ends_with_a_look_under_way() {
    assert!(crate::is_caught(a_mark_changes_hands::<Wrong<1, true>>));
}

#[test]
fn the_checker_catches_turns_counted_without_a_fence() {
    assert!(crate::is_caught(a_mark_changes_hands::<Wrong<2, false>>));
}

/// So that what is caught above is caught for its fault.
#[test]
fn two_turns_and_a_fence_are_enough() {
    loom::model(a_mark_changes_hands::<Wrong<2, true>>);
}
