//! [`Baton`]: whoever holds it may change the datapath's make-up.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_channel::oneshot;

/// Passes from one change of the datapath to the next, in the order in which they asked for it: a change that must hear
/// from pollers holds it while it waits, which a lock of a thread could not.
///
/// # Thread-safety
/// Any thread, any executor. Not for pollers: taking it waits.
#[derive(Clone, Default)]
pub struct Baton(Arc<Mutex<Queue>>);

/// The right to change; it passes on when dropped.
#[must_use = "a baton that is dropped passes on at once"]
pub struct Held(Baton);

#[derive(Default)]
struct Queue {
    taken: bool,
    waiting: VecDeque<oneshot::Sender<Held>>,
}

impl Baton {
    /// Waits until all who asked before are through. A future that is dropped meanwhile stands in nobody's way.
    pub async fn take(&self) -> Held {
        loop {
            let Some(turn) = self.ask() else { return Held(self.clone()) };
            // Cancelled only when the queue is gone, which we hold.
            if let Ok(held) = turn.await {
                return held;
            }
        }
    }

    /// `None`: it was free, and is taken now.
    fn ask(&self) -> Option<oneshot::Receiver<Held>> {
        let mut queue = self.lock();
        if !std::mem::replace(&mut queue.taken, true) {
            return None;
        }
        let (pass, turn) = oneshot::channel();
        queue.waiting.push_back(pass);
        Some(turn)
    }

    /// The next who still waits; without one, the baton is free again.
    fn next(&self) -> Option<oneshot::Sender<Held>> {
        let mut queue = self.lock();
        let next = std::iter::from_fn(|| queue.waiting.pop_front()).find(|pass| !pass.is_canceled());
        queue.taken = next.is_some();
        next
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Each change under this lock is whole, so a panic leaves no half of one behind.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(next) = self.0.next() {
            // One who gave up just now gives it back here, and its drop passes it on.
            drop(next.send(Held(self.0.clone())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    fn poll<T>(future: Pin<&mut impl Future<Output = T>>) -> Option<T> {
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    #[test]
    fn it_passes_on_in_the_order_in_which_it_was_asked_for() {
        let baton = Baton::default();
        let held = poll(pin!(baton.take())).unwrap();
        let (mut second, mut third) = (pin!(baton.take()), pin!(baton.take()));
        assert!(poll(second.as_mut()).is_none() && poll(third.as_mut()).is_none());
        drop(held);
        assert!(poll(third.as_mut()).is_none());
        let held = poll(second.as_mut()).unwrap();
        assert!(poll(third.as_mut()).is_none());
        drop(held);
        assert!(poll(third.as_mut()).is_some());
        assert!(poll(pin!(baton.take())).is_some(), "it is free again");
    }

    #[test]
    fn one_who_gives_up_waiting_holds_nobody_up_whether_before_its_turn_or_after() {
        let baton = Baton::default();
        let held = poll(pin!(baton.take())).unwrap();
        let (mut before, mut after, mut last) =
            (Box::pin(baton.take()), Box::pin(baton.take()), Box::pin(baton.take()));
        assert!(poll(before.as_mut()).is_none() && poll(after.as_mut()).is_none() && poll(last.as_mut()).is_none());
        drop(before);
        drop(held);
        // It is the turn of `after`, which does not look any more.
        drop(after);
        assert!(poll(last.as_mut()).is_some());
    }
}
