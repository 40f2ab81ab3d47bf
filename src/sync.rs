//! Atomics, locks and reference counts, by the one name that the model checker can replace.
//!
//! Everything that is model-checked (the queue, the wake-up, the life of a mark, the offload cell) takes its
//! primitives from here. A build with `--cfg loom` swaps in loom's, which explore every interleaving that the
//! memory model allows; every other build gets the standard library's.

#[cfg(not(loom))]
pub use std::sync::{
    Arc, Condvar, Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence},
};

#[cfg(loom)]
pub use loom::sync::{
    Arc, Condvar, Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence},
};
