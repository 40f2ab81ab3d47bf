//! [`Graces`]: when packets that the program has let go are sure to be where they were going.
//!
//! A frame that was marked and redirected is in its socket's ring only when the driver's batch ends. That is inside an RCU read-side critical
//! section (`Documentation/bpf/redirect.rst` of the kernel), and membarrier(2), called globally, waits for those that have begun to be over.
//! That takes milliseconds, so a thread of its own does it, for all who asked meanwhile.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use rustix::thread::{MembarrierCommand, membarrier};

use crate::offload::backend::Grace;

/// How long a batch of a driver is believed to take where the kernel does not wait for it.
const BLIND: Duration = Duration::from_secs(1);

/// The thread that waits, and who asked.
///
/// # Thread-safety
/// Shared. Asking takes a lock for a moment.
pub struct Graces {
    shared: Arc<Waiting>,
}

#[derive(Default)]
struct Waiting {
    /// How often it was asked, and whether the thread is to end.
    asked: Mutex<(u64, bool)>,
    bell: Condvar,
    /// Up to which question all is over.
    over: Arc<AtomicU64>,
}

impl Graces {
    /// # Errors
    /// No thread left.
    pub fn start() -> std::io::Result<Graces> {
        let shared = Arc::<Waiting>::default();
        let waiting = Arc::clone(&shared);
        std::thread::Builder::new().name("xdp-grace".to_owned()).spawn(move || waiting.run())?;
        Ok(Graces { shared })
    }

    /// Over when every packet that was in a program before this call is where it was going.
    pub fn ask(&self) -> Grace {
        let mut asked = self.shared.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.0 += 1;
        self.shared.bell.notify_one();
        Grace::new(asked.0, Arc::clone(&self.shared.over))
    }
}

impl Drop for Graces {
    fn drop(&mut self) {
        self.shared.asked.lock().unwrap_or_else(PoisonError::into_inner).1 = true;
        self.shared.bell.notify_one();
    }
}

impl Waiting {
    fn run(&self) {
        let mut done = 0;
        loop {
            let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            let asked = self.bell.wait_while(asked, |(asked, ending)| *asked == done && !*ending);
            let (asked, ending) = *asked.unwrap_or_else(PoisonError::into_inner);
            if ending {
                return;
            }
            if membarrier(MembarrierCommand::Global).is_err() {
                std::thread::sleep(BLIND);
            }
            self.over.store(asked, Ordering::Release);
            done = asked;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn whoever_asks_is_told_and_those_who_ask_together_at_once() {
        let graces = Graces::start().unwrap();
        let all: Vec<_> = (0..100).map(|_| graces.ask()).collect();
        let since = Instant::now();
        while !all.iter().all(Grace::is_over) {
            assert!(since.elapsed() < Duration::from_secs(30), "a grace period ends");
            std::thread::yield_now();
        }
    }
}
