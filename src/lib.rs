//! offloadd: a userspace switch for Linux that hands its flows to hardware without making a packet wait.
#![deny(unsafe_code)]

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
pub mod sync;
pub mod sys;
pub mod telemetry;
