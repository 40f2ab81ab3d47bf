//! What a packet is compared with, and what is done then.
//!
//! Knows nothing of bytes, ports, threads or devices: plain values and their texts.
//!
//! - [`field`] is the registry of match fields; read it first
//! - [`key`] has [`Key`], [`Mask`] and [`Match`]
//! - [`action`] has [`Actions`]
//! - [`ufid`] has the name of a megaflow
//! - [`text`] has the ODP syntax, both ways

pub mod action;
pub mod field;
pub mod key;
pub mod text;
pub mod ufid;

pub use action::{Action, Actions, Assign, Header, Set};
pub use field::Field;
pub use key::{Key, Mask, Match, PortNo};
pub use ufid::Ufid;
