//! What a device must be able to do: [`Device`], what all share of it, and [`Backend`], one worker's end with the verbs.
//!
//! - [`sim`]: a simulated NIC that truly matches packets
//! - [`chaos`]: any device, made to go wrong on purpose, as its [`faults`] say
//! - [`pace`]: how time passes in those that are made up
//!
//! To add a kind: a file here, an arm in `open_plain`. The contract that every backend keeps is written down as tests in
//! `contract`, which run over each of them.

pub mod chaos;
#[cfg(all(test, not(loom)))]
pub mod contract;
pub mod faults;
pub mod pace;
pub mod sim;
#[cfg(xdp)]
pub mod xdp;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use chaos::{Chaos, Faults, Settings};

use super::mark::Mark;
use super::state::{FlowStats, Level};
use crate::flow::field::FIELDS;
use crate::flow::{Action, Actions, Field, Mask, Match, PortNo};
use crate::port::{Hook, PortInfo, RxQueue, TxQueue};

/// A device, opened once: what its workers and its ports share.
///
/// # Thread-safety
/// Every method may be called from any thread, none from a poller's hit path.
pub trait Device: Send + Sync {
    fn capabilities(&self) -> BackendCaps;

    /// A worker's end. Rules are the device's: a handle given by one channel is good in every other.
    fn channel(&self) -> Box<dyn Backend>;

    /// Makes everybody ignore this device's marks at once, should it hang or fail for good.
    fn fence(&self) -> Fence;

    /// Brings the device back after it hung or failed: it is empty afterwards, and every channel given before is powerless,
    /// whenever the call returns that one is stuck in: it changes nothing any more. The fence is lowered by the caller.
    ///
    /// # Errors
    /// It does not come back. Nothing is promised of it then.
    fn restart(&self) -> Result<(), FlushError>;

    /// Makes the device forget every rule by itself, as a power cut would: its [generation](Backend::generation) changes, and
    /// channels stay good. `false`, and no change, where that cannot be had.
    fn reset(&self) -> bool {
        false
    }

    /// A port whose packets the device sees, of this MTU (as [`Port::mtu`](crate::port::Port::mtu)). `wire`: where packets
    /// leave that the device sends there by itself; `None` where it cannot. Called before the first packet is received.
    /// `hook`: the XDP program at its interface, if there is one.
    fn connect(&self, port: &PortInfo, mtu: usize, wire: Option<Box<dyn TxQueue>>, hook: Option<Arc<Hook>>) {
        let _ = (port, mtu, wire, hook);
    }

    /// The MTU of a connected port, as of now.
    /// `true`: what it can do for packets that are to leave by the port has changed since it was last told.
    fn set_mtu(&self, port: PortNo, mtu: usize) -> bool {
        let _ = (port, mtu);
        false
    }

    /// The port is gone: nothing is sent there any more, whatever the rules say.
    fn disconnect(&self, port: PortNo) {
        let _ = port;
    }

    /// The receive queue as the poller should see it: with marks.
    fn wrap_rx(&self, port: &PortInfo, queue: Box<dyn RxQueue>) -> Box<dyn RxQueue> {
        let _ = port;
        queue
    }

    /// The most frames that can wait behind a receive queue of `ring` frames as the poller sees it.
    fn ring(&self, ring: u64) -> u64 {
        ring
    }

    /// A span that is over when every frame that the device has let go is in its receive queue; `None`: it is when the device lets it go.
    fn grace(&self) -> Option<Grace> {
        None
    }

    /// What the device did with a port's packets; `None` for a port it does not know.
    fn port_counts(&self, port: PortNo) -> Option<PortCounts> {
        let _ = port;
        None
    }

    /// Packets that rules handled wholly and whose counts the device forgot before they were read, where it can tell.
    fn forgotten(&self) -> Option<u64> {
        None
    }

    /// The marks of the rules in its table, in no order, for whoever compares it with what is believed to be there; `None`
    /// where it cannot tell.
    fn marks(&self) -> Option<Vec<Mark>> {
        None
    }

    /// What can be made to go wrong at run time; `None` for devices that only go wrong by themselves.
    fn faults(&self) -> Option<&Faults> {
        None
    }
}

/// One worker's end of a device: the verbs. Owned by the worker; never seen by a packet.
pub trait Backend: Send {
    /// Puts a rule; its packets are marked, or handled wholly, from some moment during the call on.
    ///
    /// # Errors
    /// The device has no rule then.
    fn put(&mut self, flow: Install<'_>) -> Result<(Handle, Done), PutError>;

    /// Puts many rules, each as [`Backend::put`] does, and appends what became of each, in order. Only called where
    /// [`BackendCaps::batch`] is more than 1, with so many at most, of different matches that the device has no rule of.
    fn put_all(&mut self, flows: &[Install<'_>], into: &mut Vec<Result<(Handle, Done), PutError>>) {
        into.extend(flows.iter().map(|flow| self.put(*flow)));
    }

    /// Gives a rule another mark, level or actions without a moment in which it is missing. When this returns, no packet
    /// that arrives later gets what the rule was before. Answers with what it does now, and with the counts that the rule had
    /// at that moment: they go on, but packets before it had another level. Only called where
    /// [`BackendCaps::replace_in_place`] is set.
    ///
    /// # Errors
    /// The rule stands as it was.
    fn replace(&mut self, handle: Handle, flow: Install<'_>) -> Result<(Done, FlowStats), PutError>;

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

    /// Removes all of `handles`, sooner than one by one where the device can. Rules that are not there are removed already.
    ///
    /// # Errors
    /// Some of them may be left.
    fn flush(&mut self, handles: &[Handle]) -> Result<(), FlushError>;
}

/// What the device does for a rule that it took.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Done {
    pub level: Level,
    /// What stands in the way of more, where more was wanted.
    pub short: Option<Unsupported>,
}

impl Done {
    pub fn at(level: Level) -> Done {
        Done { level, short: None }
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
    /// What it executes by itself at [`Level::Full`].
    pub actions: ActionSet,
    /// Rules that fit, where that is known.
    pub capacity: Option<usize>,
    /// Width of the marks that it stamps, 8 to 32.
    pub mark_bits: u8,
    pub replace_in_place: bool,
    /// The most rules that it takes at once, sooner than one by one; 1 where it does not. The first of them waits for the last.
    pub batch: usize,
}

impl BackendCaps {
    /// How far a flow can be taken, whatever the room, and what stands in the way of more. Ports are the device's own to judge.
    ///
    /// # Errors
    /// Not at all; names what the device cannot do.
    pub fn check(&self, matching: &Match, actions: &Actions) -> Result<Done, Unsupported> {
        if !self.fields.contains(matching.mask()) {
            let beyond =
                |def: &&crate::flow::field::FieldDef| matching.mask().get(def.field) & !self.fields.get(def.field) != 0;
            return Err(FIELDS.iter().find(beyond).map_or(Unsupported::Match, |def| Unsupported::Field(def.field)));
        }
        if self.level == Level::Mark {
            // The actions stay in software, so any will do.
            return Ok(Done::at(Level::Mark));
        }
        match self.actions.lacking(actions) {
            None => Ok(Done::at(Level::Full)),
            short => Ok(Done { level: Level::Mark, short: short.map(Unsupported::Action) }),
        }
    }
}

/// The actions that a device executes by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ActionSet(u16);

impl ActionSet {
    pub const NONE: ActionSet = ActionSet(0);
    pub const ALL: ActionSet = ActionSet((1 << ActionSet::NAMES.len()) - 1);

    /// The names of actions, as the ODP syntax has them; `drop` stands for a list without an output.
    pub const NAMES: [&str; 11] = [
        "output",
        "drop",
        "push_vlan",
        "pop_vlan",
        "set(eth)",
        "set(vlan)",
        "set(ipv4)",
        "set(ipv6)",
        "set(tcp)",
        "set(udp)",
        "set(sctp)",
    ];

    /// Without the action of this name; `None` for a name that is none.
    pub fn without(self, name: &str) -> Option<ActionSet> {
        let at = ActionSet::NAMES.iter().position(|known| *known == name)?;
        Some(ActionSet(self.0 & !(1 << at)))
    }

    /// The first action of `actions` that is not among these.
    pub fn lacking(self, actions: &Actions) -> Option<&'static str> {
        let place = |action: &Action| match action {
            Action::Output(_) => 0,
            Action::PushVlan { .. } => 2,
            Action::PopVlan => 3,
            // In the order of the names.
            Action::Set(set) => 4 + set.header() as usize,
        };
        let lacks = |at: &usize| self.0 & (1 << at) == 0;
        let lacking = match actions.is_drop() {
            // What comes before a drop changes nothing that anybody sees.
            true => Some(1).filter(lacks),
            false => actions.iter().map(place).find(lacks),
        };
        lacking.map(|at| ActionSet::NAMES[at])
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
    #[error("cannot send to more than one port")]
    Outputs,
    /// A port that it has no wire to.
    #[error("cannot send to port {0}")]
    Port(PortNo),
    /// A port whose packets do not pass it.
    #[error("does not see packets of port {0}")]
    Sight(PortNo),
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

/// A span of time that somebody else ends.
///
/// # Thread-safety
/// Any thread may ask.
#[derive(Clone, Debug)]
pub struct Grace {
    number: u64,
    over: Arc<AtomicU64>,
}

impl Grace {
    /// One that is over when `over` is `number` or more.
    pub fn new(number: u64, over: Arc<AtomicU64>) -> Grace {
        Grace { number, over }
    }

    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire) >= self.number
    }
}

/// Whether a device's marks are to be ignored. Raised by whoever notices that the device is not to be
/// trusted, lowered when it was restarted.
#[derive(Clone, Default)]
pub struct Fence(Arc<Raised>);

#[derive(Default)]
struct Raised {
    is: AtomicBool,
    /// Who else is told at once.
    tell: Option<Box<dyn Fn(bool) + Send + Sync>>,
}

impl Fence {
    /// One that also calls `tell` when it is raised or lowered, before that returns.
    pub fn telling(tell: impl Fn(bool) + Send + Sync + 'static) -> Fence {
        Fence(Arc::new(Raised { is: AtomicBool::new(false), tell: Some(Box::new(tell)) }))
    }

    pub fn raise(&self) {
        self.set(true);
    }

    /// The device is to be trusted again.
    pub fn lower(&self) {
        self.set(false);
    }

    fn set(&self, raised: bool) {
        self.0.is.store(raised, Ordering::Release);
        if let Some(tell) = &self.0.tell {
            tell(raised);
        }
    }

    #[inline]
    pub fn is_raised(&self) -> bool {
        self.0.is.load(Ordering::Acquire)
    }
}

impl fmt::Debug for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Fence").field(&self.is_raised()).finish()
    }
}

impl PortCounts {
    /// Each count with its name.
    pub fn list(&self) -> [(&'static str, u64); 8] {
        let PortCounts { hits, full, full_bytes, aborted, misses, busy, sent, lost } = *self;
        [
            ("marked", hits),
            ("full", full),
            ("full_bytes", full_bytes),
            ("aborted", aborted),
            ("missed", misses),
            ("busy", busy),
            ("sent", sent),
            ("lost", lost),
        ]
    }
}

/// What a device did with a port's packets. Each that came from there is in one of `hits`, `full`, `misses` and `busy`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct PortCounts {
    /// Packets that a rule marked.
    pub hits: u64,
    /// Packets that a rule handled wholly.
    pub full: u64,
    /// Bytes of those.
    pub full_bytes: u64,
    /// Of `hits`: packets of a rule that handles them wholly, which it could not finish, as the port that they should leave by is gone.
    pub aborted: u64,
    /// Packets that no rule matched.
    pub misses: u64,
    /// Packets that passed unmatched because the table was being changed.
    pub busy: u64,
    /// Packets that the device sent to the port by itself, from whichever port they came.
    pub sent: u64,
    /// Packets that it would have sent, had the port taken them.
    pub lost: u64,
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
    #[error("offload: {0:?} is not a kind of device; known: none, sim, chaos, xdp")]
    Kind(String),
    #[error("offload {text}: {part:?} is not option=value")]
    Syntax { text: String, part: String },
    #[error("offload {kind}: option {option}={value}: {expected}")]
    Option { kind: &'static str, option: String, value: String, expected: String },
    #[error("offload {kind}: {text}")]
    Device { kind: &'static str, text: String },
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

/// Opens the device that `spec` describes. `epoch`: what the nanoseconds of its [`FlowStats`] count from.
///
/// # Errors
/// Names the kind or option that is not understood, and what would be.
pub fn open(spec: &BackendSpec, epoch: Instant) -> Result<Arc<dyn Device>, OpenError> {
    match spec.kind.as_str() {
        "chaos" => chaos::open(&spec.options, epoch),
        // So that it can be made to go wrong later; until then that costs a load an operation.
        "sim" => Ok(Arc::new(Chaos::new(open_plain(spec, epoch)?, Settings::default()))),
        _ => open_plain(spec, epoch),
    }
}

/// As [`open`], a device that goes wrong by itself at most.
fn open_plain(spec: &BackendSpec, epoch: Instant) -> Result<Arc<dyn Device>, OpenError> {
    match spec.kind.as_str() {
        "sim" => Ok(sim::open(sim::Options::parse(&spec.options)?, epoch)),
        #[cfg(xdp)]
        "xdp" => xdp::open(xdp::Options::parse(&spec.options)?, epoch),
        #[cfg(not(xdp))]
        "xdp" => Err(OpenError::Device { kind: "xdp", text: crate::port::NO_XDP.to_owned() }),
        _ => Err(OpenError::Kind(spec.kind.clone())),
    }
}
