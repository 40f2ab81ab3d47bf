//! Models of everything that is shared without a lock, checked in every interleaving that the memory model allows.
//!
//! `RUSTFLAGS="--cfg loom" LOOM_MAX_PREEMPTIONS=3 CARGO_TARGET_DIR=target/loom cargo test --release --test model`
//!
//! - [`queue`]: nothing pushed is lost or popped twice, and a sleeping worker is woken
//! - [`attention`]: who looks last sees the newest, in both directions
//! - [`mark`]: no frame with an old mark meets the mark's next owner
//!
//! Each has a variant that is wrong on purpose, and that the checker must catch.
#![cfg(loom)]

mod attention;
mod mark;
mod queue;

/// Runs a model that is wrong on purpose.
fn is_caught(model: impl Fn() + Sync + Send + 'static) -> bool {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| loom::model(model))).is_err()
}
