//! What the daemon says of itself: counters, histograms, log.
//!
//! - [`counter`]: single-writer counts
//! - [`log`]: log output, levels changeable per module at run time

pub mod counter;
pub mod log;

pub use counter::Counter;
