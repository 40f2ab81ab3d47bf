//! The integration tests, in one binary.

/// The control socket: what clients of every kind may do to it, and what they get.
mod control;
