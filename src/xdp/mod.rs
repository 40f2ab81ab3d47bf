//! XDP programs at interfaces: what an AF_XDP port needs to be given frames, and what the [XDP device](crate::offload::backend::xdp) is made of.
//!
//! - [`Hook`]: the program attached to one interface, plain at first, the device's when there is one
//! - [`object`]: the programs, compiled by `build.rs` from `bpf/`, and how they are loaded
//! - [`netlink`]: what an interface tells of XDP
//!
//! ```text
//!   bpf/plain.bpf.c     every frame to its queue's socket                  one load for each hook
//!   bpf/send.bpf.c      a batch of frames out of memory to an interface    one load for each transmit queue; attached nowhere
//!   bpf/offload.bpf.c   parse.h ─► tables.h ─► edit.h: marks, forwards     one load for the device, shared by all interfaces
//! ```
//!
//! # What it needs
//! Linux 5.9 for `bpf_link` at interfaces; 5.18 for the device's program; 6.6 for frames longer than a chunk. `CAP_BPF`, `CAP_NET_ADMIN` and
//! `CAP_NET_RAW`; `CAP_PERFMON` for the device's program, which subtracts packet pointers.

pub mod hook;
pub mod netlink;
pub mod object;

pub use hook::{AttachError, Hook, Mode};
pub use object::{LoadError, Object};
