//! [`Pace`]: how time passes in a device that is made up.

use std::time::{Duration, Instant};

/// Called with the time that an operation takes. Replaceable, so that tests need not wait.
pub type Pace = fn(Duration);

/// Lets `time` pass: asleep where that is worth it, spinning where the system would oversleep.
pub fn spend(time: Duration) {
    const WORTH_SLEEPING: Duration = Duration::from_micros(50);
    if time >= WORTH_SLEEPING {
        std::thread::sleep(time);
        return;
    }
    let end = Instant::now() + time;
    while Instant::now() < end {
        std::hint::spin_loop();
    }
}
