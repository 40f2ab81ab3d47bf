//! Commands, by what they are about.

pub mod vlog;
