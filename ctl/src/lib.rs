//! The control protocol of offloadd, and the client that speaks it.
//!
//! ```text
//!   args ──► rundir: whom?  ──► client: connect, call ──► protocol: one message ──► frames: where it ends
//!   main      NAME → socket      within a time limit        request, reply            bytes → objects
//! ```
//!
//! - [`frames`]: cuts a byte stream into JSON objects, in linear time and bounded memory
//! - [`protocol`]: what such an object says: request, reply or notification
//! - [`rundir`]: where a daemon leaves its pidfile and socket, and how a name leads there
//! - [`client`]: one connection, one call at a time, with a deadline
//! - [`args`]: the command line; [`run`] is the whole program, short of the process around it
//! - [`surroundings`]: terminals, colours and time; `table`, `style`, `progress`, `watch`: how answers look in them
//! - `help`, `suggest`, `completions`: what can be asked; `events`, [`top`]: what can be watched
//!
//! The protocol is Open vSwitch's "unixctl": JSON-RPC 1.0 objects on a unix stream socket with nothing between them.
//! So this crate talks to Open vSwitch's daemons as well, and the daemon uses its types to talk to Open vSwitch's clients.
#![forbid(unsafe_code)]

pub mod args;
pub mod client;
mod completions;
mod events;
pub mod frames;
mod help;
mod progress;
pub mod protocol;
mod run;
pub mod rundir;
mod style;
mod suggest;
pub mod surroundings;
mod table;
#[cfg(feature = "top")]
pub mod top;
mod watch;

pub use client::{Client, ClientError};
pub use run::{Exit, run, run_in};
