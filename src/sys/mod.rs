//! The only unsafe code: what no well-kept crate gives safely, each thing behind a safe type.
//!
//! Every block carries the argument why it is sound. Nothing outside this folder may write `unsafe`.
//!
//! - [`stack`]: reference-counted nodes passed between threads without a lock and without an allocation
//! - [`bpf`]: maps and their memory, links, test runs: what bpf(2) is asked beside loading programs
//! - [`umem`]: memory that AF_XDP sockets share with the kernel, in owned chunks; [`xsk`]: those sockets and their rings
//! - [`buffer`]: a packet's memory, whether of the heap or such a chunk
//! - [`mmsg`]: many messages in one system call
//! - [`packet`]: what is peculiar to AF_PACKET sockets
//! - [`ring`]: frames that such a socket leaves in shared memory
//! - [`netdev`]: what an interface is and how it is set, asked by name
//! - [`peer`]: whose process is at the other end of a unix socket
//! - [`tap`]: TAP interfaces of our own
//! - [`turns`]: how the scheduler treats a thread
#![allow(unsafe_code)]

#[cfg(xdp)]
pub mod bpf;
pub mod buffer;
pub mod mmsg;
pub mod netdev;
pub mod packet;
pub mod peer;
pub mod ring;
pub mod stack;
pub mod tap;
pub mod turns;
pub mod umem;
#[cfg(xdp)]
pub mod xsk;
