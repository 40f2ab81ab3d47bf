//! offloadd: a userspace switch for Linux that hands its flows to hardware without making a packet wait.
//!
//! # The map
//!
//! From the packet's side of the house to the operator's; each layer knows only those above it in this list:
//!
//! | module | what it is | what it refuses to know |
//! | --- | --- | --- |
//! | [`flow`] | keys, masks, matches, actions, and their texts | bytes, threads, devices |
//! | [`packet`] | frames: reading, editing, finishing them | sockets, clocks |
//! | [`port`] | where frames come from and go to | flows |
//! | [`slowpath`] | rules and stations: what an unknown packet deserves | pollers, devices |
//! | [`offload`] | a flow's trip to the device and back | packets, rules |
//! | [`datapath`] | a packet's trip; owns the flows | commands, files |
//! | [`control`] | a command's trip: socket, JSON-RPC, the commands | the hit path |
//! | [`daemon`] | the house with everybody in it; [`config`] furnishes it, [`demo`] shows it, [`supervisor`] hears of it | |
//!
//! Beside them: [`telemetry`] (counters, log), `xdp` (programs at interfaces, where it is built in), [`sync`] (primitives that the model checker can replace) and [`sys`] (the
//! only unsafe code). The client, and the protocol both sides speak, is the crate `offloadctl`.
//!
//! Start with [`datapath::pipeline`]: it tells a packet's trip in order.
//!
//! # Three trips
//!
//! ```text
//! A packet        port ─► mark table ─► EMC ─► classifier ─► upcall ─► actions ─► port
//!                           │ hit        │ hit    │ hit          │ decides, installs a megaflow
//!                           └────────────┴────────┴──────────────┘ whichever finds the flow first
//!
//! A flow          installed ─► worth it? ─► "look at me" in a bounded queue ─► worker: wants ≠ has? ─► device
//!                 packets arrive marked, or never, as the device forwards them ◄─ mark bound ◄─ accepted ◄─┘
//!
//! A command       offloadctl ─► unix socket ─► registry ─► message to the pollers ─► answer, text or JSON
//! ```
//!
//! # Who owns what
//!
//! Every state has one owning thread; everything else is a message.
//!
//! | thread | owns | is reached by |
//! | --- | --- | --- |
//! | main | control socket, ports (their devices, not their queues), timers, signals, the watch over workers that hang | clients; reports from pollers |
//! | each poller | its receive queues, its transmit queues, its flows with caches, classifiers and mark table | an inbox, looked into between batches; a doorbell when it sleeps |
//! | each offload worker, 1 to 16 | its share of the megaflows with their rules, its channel to the device | a lock-free queue; a condition variable when it sleeps |
//!
//! Shared are: the rules (one immutable set, swapped whole), the stations (sharded locks, slow path only), a few atomics,
//! one [`offload::OffloadCell`] for each flow, and among the offload workers alone the [pool of marks](offload::mark).
//!
//! # Unsafe
//!
//! `#![deny(unsafe_code)]` here, allowed in [`sys`] alone, each block with its argument. So "where can memory go wrong?" has a
//! one-word answer.

#![deny(unsafe_code)]

pub mod clock;
pub mod config;
pub mod control;
pub mod daemon;
pub mod datapath;
pub mod demo;
pub mod flow;
pub mod offload;
pub mod packet;
pub mod port;
pub mod slowpath;
pub mod supervisor;
pub mod sync;
pub mod sys;
pub mod telemetry;
#[cfg(xdp)]
pub mod xdp;
