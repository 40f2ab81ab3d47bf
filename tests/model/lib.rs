//! Models of everything that is shared without a lock, checked in every interleaving that the memory model allows.
//!
//! `RUSTFLAGS="--cfg loom" LOOM_MAX_PREEMPTIONS=3 CARGO_TARGET_DIR=target/loom cargo test --release -p offloadd-model`
//!
//! - `queue`: nothing pushed is lost or popped twice, the bound holds, and a sleeping worker is woken
//! - `attention`: who looks last sees the newest, in both directions
//! - `mark`: no frame with an old mark meets the mark's next owner
//!
//! Each has variants that are wrong on purpose, and that the checker must catch.
//!
//! Who publishes does so on the main thread, who looks is spawned: the checker runs the main thread first, and searches
//! for other orders from there. It remembers one access to an atomic only, so a push (a load, then an exchange) that
//! follows the other side's look would hide that the two race.
#![cfg(all(loom, test))]

mod attention;
mod mark;
mod queue;

use std::ops::Deref;

use offloadd::offload::queue::Weigh;

/// What the models' nodes hold: weighs one byte.
struct Content<A>(A);

impl<A> Weigh for Content<A> {
    fn weigh(&self) -> usize {
        1
    }
}

impl<A> Deref for Content<A> {
    type Target = A;

    fn deref(&self) -> &A {
        &self.0
    }
}

/// Runs a model that is wrong on purpose.
fn is_caught(model: impl Fn() + Sync + Send + 'static) -> bool {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| loom::model(model))).is_err()
}
