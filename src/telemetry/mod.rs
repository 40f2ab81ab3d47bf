//! What the daemon says of itself: counters, histograms, log.
//!
//! - [`counter`]: single-writer counts
//! - [`coverage`]: how fast counts rise
//! - [`histogram`]: how long things took, by one writer, too
//! - [`limiter`]: not too many lines
//! - [`log`]: log output, levels changeable per module at run time
//! - [`metrics`]: all of it as families of samples, and their text; [`spread`]: histograms with few bounds for that
//! - [`process`]: what the kernel tells of this process

pub mod counter;
pub mod coverage;
pub mod histogram;
pub mod limiter;
pub mod log;
pub mod metrics;
pub mod process;
pub mod spread;

pub use counter::Counter;
pub use histogram::Histogram;
