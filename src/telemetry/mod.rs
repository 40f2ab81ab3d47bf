//! What the daemon says of itself: counters, histograms, log.
//!
//! - [`counter`]: single-writer counts
//! - [`histogram`]: how long things took, by one writer, too
//! - [`log`]: log output, levels changeable per module at run time

pub mod counter;
pub mod histogram;
pub mod log;

pub use counter::Counter;
pub use histogram::Histogram;
