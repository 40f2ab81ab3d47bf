//! [`Doorbell`]: wakes one sleeping poller; costs its callers one load while the poller is awake.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering, fence};

use rustix::event::{EventfdFlags, eventfd};

/// An eventfd that is written only when somebody sleeps on it.
///
/// # Thread-safety
/// [`ring`](Doorbell::ring) from any thread. [`about_to_sleep`](Doorbell::about_to_sleep) and
/// [`awake`](Doorbell::awake) only from the poller that owns it. A caller publishes its news first and rings
/// after; the poller says that it is about to sleep first and looks for news after. Whichever comes second sees
/// the other, so no news is slept through. A ring too many is harmless: the poller looks once in vain.
#[derive(Debug)]
pub struct Doorbell {
    sleeping: AtomicBool,
    eventfd: OwnedFd,
}

impl Doorbell {
    /// # Errors
    /// The process has no file descriptor left.
    pub fn new() -> io::Result<Doorbell> {
        let eventfd = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Doorbell { sleeping: AtomicBool::new(false), eventfd })
    }

    /// Wakes the poller if it sleeps or is about to.
    #[inline]
    pub fn ring(&self) {
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::Relaxed) && self.sleeping.swap(false, Ordering::Relaxed) {
            // Fails only when the counter is full, and then the descriptor is readable already.
            let _ = rustix::io::write(&self.eventfd, &1u64.to_ne_bytes());
        }
    }

    /// From now on [`ring`](Doorbell::ring) writes. Look for news once more before sleeping.
    pub fn about_to_sleep(&self) {
        self.sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Awake again: forgets the rings so far.
    pub fn awake(&self) {
        self.sleeping.store(false, Ordering::Relaxed);
        let mut count = [0u8; 8];
        // WouldBlock says that nobody rang.
        let _ = rustix::io::read(&self.eventfd, &mut count);
    }

    /// What becomes readable at a ring.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.eventfd.as_fd()
    }
}
