//! The only unsafe code: what no well-kept crate gives safely, each thing behind a safe type.
//!
//! - [`stack`]: reference-counted nodes passed between threads without a lock and without an allocation
//!
//! Every block carries the argument why it is sound. Nothing outside this folder may write `unsafe`.
#![allow(unsafe_code)]

pub mod stack;
