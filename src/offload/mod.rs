//! A flow's trip to the device and back.
//!
//! The poller's end is an [`Agent`]; the worker's end is in [`worker`]; between them stands one [`OffloadCell`] a flow,
//! which says what the flow wants, what the device has, and whether either side should look again.
//!
//! ```text
//!   poller                      queue                        worker                     device
//!   Agent::adopt ──wants──► put lane    ─┐ condvar, only  ┌─► compare wants with  ──► put/replace
//!   Agent::update ─wants──► put lane    ─┤ when asleep    │   what the device has ──► delete
//!   Agent::release ─dead──► delete lane ─┘                │   ◄── outcome ──────────
//!   Agent::drain ◄────────── inbox of cells ◄─────────────┘   (bind or unbind this mark)
//! ```
//!
//! Both directions are level-triggered: what travels is "look at this cell again", each cell at most once a lane,
//! never a history of operations.

pub mod agent;
pub mod backend;
pub mod mark;
pub mod queue;
pub mod state;
pub mod table;
pub mod worker;

pub use agent::Agent;
pub use state::{FlowStats, Level, OffloadCell, Standing};
