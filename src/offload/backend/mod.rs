//! What a device must be able to do: [`Backend`], its verbs and one description of its abilities.
//!
//! - [`sim`]: a simulated NIC that truly matches packets
//!
//! To add a kind: a file here, an arm in [`open`]. The contract that every backend keeps is written down as tests in
//! `contract`, which run over each of them.

#[cfg(all(test, not(loom)))]
pub mod contract;
pub mod sim;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::mark::Mark;
use super::state::{FlowStats, Level};
use crate::flow::field::FIELDS;
use crate::flow::{Actions, Field, Mask, Match, PortNo};
use crate::port::{PortInfo, RxQueue};

/// A device that flows are put into. Owned by one worker; never seen by a packet.
pub trait Backend: Send {
    fn capabilities(&self) -> BackendCaps;

    /// Puts a rule; its packets are marked, or handled wholly, from some moment during the call on.
    ///
    /// # Errors
    /// The device has no rule then.
    fn put(&mut self, flow: Install<'_>) -> Result<(Handle, Level), PutError>;

    /// Gives a rule another mark, level or actions without a moment in which it is missing. Only called where
    /// [`BackendCaps::replace_in_place`] is set.
    ///
    /// # Errors
    /// The rule stands as it was.
    fn replace(&mut self, handle: Handle, flow: Install<'_>) -> Result<Level, PutError>;

    /// Removes a rule and gives its final counts. A rule that is not there is removed already: no error, no counts.
    /// When this returns, no packet is stamped with its mark any more.
    ///
    /// # Errors
    /// The rule may or may not be there. The worker asks again.
    fn delete(&mut self, handle: Handle) -> Result<FlowStats, DeleteError>;

    /// Appends the counts of each of `handles` in order; those of a rule that is not there are 0.
    ///
    /// # Errors
    /// Nothing was appended.
    fn stats(&mut self, handles: &[Handle], into: &mut Vec<FlowStats>) -> Result<(), StatsError>;

    /// Changes when the device has forgotten every rule by itself.
    fn generation(&mut self) -> Generation;

    /// Removes every rule.
    ///
    /// # Errors
    /// Some rules may be left.
    fn flush(&mut self) -> Result<(), FlushError>;

    /// Makes everybody ignore this device's marks at once, should it hang or fail for good.
    fn fence(&self) -> Fence;

    /// A port whose packets may be matched.
    fn port_added(&mut self, port: &PortInfo) {
        let _ = port;
    }

    /// The port's rules have been removed; it is going away.
    fn port_removed(&mut self, port: PortNo) {
        let _ = port;
    }
}

/// A rule to be put. `in_port`: the one port it concerns, if there is one.
#[derive(Clone, Copy, Debug)]
pub struct Install<'a> {
    pub matching: &'a Match,
    pub actions: &'a Actions,
    pub mark: Mark,
    /// The level wanted; the device may do less and says so.
    pub level: Level,
    pub in_port: Option<PortNo>,
}

/// What a device calls a rule. Never given twice, not even after a flush or a reset.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Handle(pub u64);

/// How often a device has forgotten everything.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Generation(pub u64);

/// What a device can do.
#[derive(Clone, Debug)]
pub struct BackendCaps {
    pub name: &'static str,
    /// The bits it can match.
    pub fields: Mask,
    /// The most that it does for a flow.
    pub level: Level,
    /// Rules that fit, where that is known.
    pub capacity: Option<usize>,
    /// Width of the marks that it stamps, 8 to 32.
    pub mark_bits: u8,
    pub replace_in_place: bool,
}

impl BackendCaps {
    /// Whether a flow can be put at all, whatever the room.
    ///
    /// # Errors
    /// Names what the device cannot do.
    pub fn check(&self, matching: &Match, _actions: &Actions) -> Result<(), Unsupported> {
        // At level `Mark` the actions stay in software, so any will do.
        if self.fields.contains(matching.mask()) {
            return Ok(());
        }
        let beyond =
            |def: &&crate::flow::field::FieldDef| matching.mask().get(def.field) & !self.fields.get(def.field) != 0;
        Err(FIELDS.iter().find(beyond).map_or(Unsupported::Match, |def| Unsupported::Field(def.field)))
    }
}

/// What a device cannot do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unsupported {
    #[error("cannot match {}", .0.name())]
    Field(Field),
    #[error("cannot match bits outside any field")]
    Match,
    #[error("cannot execute {0}")]
    Action(&'static str),
}

/// Why a rule was not put or replaced.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PutError {
    /// Never, for this match and these actions.
    #[error("the device {0}")]
    Unsupported(Unsupported),
    /// Later, when rules have gone.
    #[error("the device has no room")]
    NoRoom,
    /// Perhaps soon: try again after a while.
    #[error("the device failed: {0}")]
    Device(String),
}

/// Why a rule could not be removed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the device failed to remove a rule: {0}")]
pub struct DeleteError(pub String);

/// Why counts could not be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the device failed to count: {0}")]
pub struct StatsError(pub String);

/// Why rules are left.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the device failed to flush: {0}")]
pub struct FlushError(pub String);

/// Whether a device's marks are to be ignored. Raised once, by whoever notices that the device is not to be trusted.
#[derive(Clone, Debug, Default)]
pub struct Fence(Arc<AtomicBool>);

impl Fence {
    pub fn raise(&self) {
        self.0.store(true, Ordering::Release);
    }

    #[inline]
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// What a device puts between a port and its poller.
pub trait Front: Send + Sync {
    /// The receive queue as the poller should see it: with marks.
    fn wrap_rx(&self, port: &PortInfo, queue: Box<dyn RxQueue>) -> Box<dyn RxQueue>;

    /// What the device did with a port's packets; `None` for a port it does not know.
    fn port_counts(&self, port: PortNo) -> Option<PortCounts>;
}

/// What a device did with a port's packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct PortCounts {
    /// Packets that a rule matched.
    pub hits: u64,
    /// Packets that no rule matched.
    pub misses: u64,
    /// Packets that passed unmatched because the table was being changed.
    pub busy: u64,
}

/// `KIND[,option=value…]`, as after `--offload`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackendSpec {
    pub kind: String,
    pub options: Vec<(String, String)>,
}

/// Why a backend could not be opened.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OpenError {
    #[error("offload: {0:?} is not a kind of device; known: none, sim")]
    Kind(String),
    #[error("offload {text}: {part:?} is not option=value")]
    Syntax { text: String, part: String },
    #[error("offload {kind}: option {option}={value}: {expected}")]
    Option { kind: &'static str, option: String, value: String, expected: String },
}

impl FromStr for BackendSpec {
    type Err = OpenError;

    fn from_str(text: &str) -> Result<BackendSpec, OpenError> {
        let mut parts = text.split(',').map(str::trim);
        let kind = parts.next().unwrap_or_default().to_owned();
        let option = |part: &str| match part.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
            _ => Err(OpenError::Syntax { text: text.to_owned(), part: part.to_owned() }),
        };
        Ok(BackendSpec { kind, options: parts.map(option).collect::<Result<_, _>>()? })
    }
}

impl fmt::Display for BackendSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.kind)?;
        self.options.iter().try_for_each(|(name, value)| write!(f, ",{name}={value}"))
    }
}

/// An open device: the worker's end and the ports' end.
pub struct Opened {
    pub backend: Box<dyn Backend>,
    pub front: Arc<dyn Front>,
}

impl Opened {
    /// See [`Front::wrap_rx`].
    pub fn wrap_rx(&self, port: &PortInfo, queue: Box<dyn RxQueue>) -> Box<dyn RxQueue> {
        self.front.wrap_rx(port, queue)
    }
}

/// Opens the device that `spec` describes.
///
/// # Errors
/// Names the kind or option that is not understood, and what would be.
pub fn open(spec: &BackendSpec) -> Result<Opened, OpenError> {
    match spec.kind.as_str() {
        "sim" => Ok(sim::open(sim::Options::parse(&spec.options)?)),
        _ => Err(OpenError::Kind(spec.kind.clone())),
    }
}
