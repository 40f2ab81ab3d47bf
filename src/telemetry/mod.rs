//! What the daemon says of itself: counters, histograms, log.
//!
//! - [`counter`]: single-writer counts
//! - [`coverage`]: how fast counts rise
//! - [`histogram`]: how long things took, by one writer, too
//! - [`limiter`]: not too many lines
//! - [`log`]: log output, levels changeable per module at run time
//! - [`process`]: what the kernel tells of this process

pub mod counter;
pub mod coverage;
pub mod histogram;
pub mod limiter;
pub mod log;
pub mod process;

pub use counter::Counter;
pub use histogram::Histogram;
