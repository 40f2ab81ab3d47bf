//! stub with the final public face: who decides what an unknown packet deserves.
pub mod learn;
pub mod rules;

use crate::flow::{Actions, Key, Mask, PortNo};
use crate::sync::AtomicU64;
use std::sync::Arc;
use std::time::Instant;

/// What an unknown packet deserves, and what that depended on.
#[derive(Clone, Debug)]
pub struct Decision {
    /// Every bit that was looked at: all packets equal in these bits deserve the same.
    pub mask: Mask,
    pub actions: Actions,
    /// Why nothing leaves, when nothing does.
    pub dropped: Option<DropReason>,
    /// The rules that took part; each is credited with the megaflow's packets.
    pub rules: Vec<Arc<rules::RuleStats>>,
    /// MAC lookups that `normal` made: revalidate when one of them would now end otherwise.
    pub lookups: Vec<learn::Lookup>,
    /// The station to keep fresh while packets come.
    pub learned: Option<learn::Station>,
    /// The rule set's epoch that this was decided under.
    pub epoch: u64,
}

/// Why a decision drops.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DropReason {
    NoRule,
    Rule,
    Ttl,
    TooDeep,
    NoPort,
}

/// Rules, stations and ports, shared by all pollers.
pub struct Slowpath {
    _private: (),
}

impl Slowpath {
    /// The decision for `key`. `learn`: also learn where its sender is (for packets, not for revalidation).
    pub fn decide(&self, _key: &Key, _now: Instant, _learn: bool) -> Decision {
        todo!()
    }
    /// Rises whenever a rule or port changes.
    pub fn epoch(&self) -> u64 {
        todo!()
    }
    /// Rises whenever a station appears, moves or goes.
    pub fn stations_epoch(&self) -> u64 {
        todo!()
    }
    pub fn set_ports(&self, _ports: Vec<(PortNo, String)>) {
        todo!()
    }
}
pub type _Unused = AtomicU64;
