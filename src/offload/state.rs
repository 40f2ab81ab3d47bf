//! stub with the final public face
use super::mark::Mark;
use crate::flow::{Actions, Match, Ufid};

/// How far a device takes a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    /// Helps the software path: packets arrive marked.
    Mark,
    /// Replaces it.
    Full,
}

/// Where a flow stands on its trip, as dumps show it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    Software,
    Queued,
    Installing,
    Offloaded(Level),
    Refused(Refusal),
    Removing,
    Gone,
}

/// Why a flow is not in the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    QueueFull,
    NoMark,
    NoRoom,
    Unsupported,
    Device,
    NoDevice,
}

/// Packets and bytes of a flow, and when the last came (nanoseconds on the daemon's clock; 0 = never).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FlowStats {
    pub packets: u64,
    pub bytes: u64,
    pub used_ns: u64,
}

/// Which flow of its poller a cell belongs to: an index that is used again, and a generation that is not.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FlowSlot {
    pub index: u32,
    pub generation: u32,
}

/// What one poller's flow and the worker know of each other.
pub struct OffloadCell {
    _private: (),
}

impl OffloadCell {
    pub fn slot(&self) -> FlowSlot {
        todo!()
    }
    pub fn ufid(&self) -> Ufid {
        todo!()
    }
    pub fn matching(&self) -> &Match {
        todo!()
    }
    pub fn actions(&self) -> Actions {
        todo!()
    }
    /// The mark that packets of this flow carry now, which the poller should have bound to it.
    pub fn mark(&self) -> Option<Mark> {
        todo!()
    }
    pub fn standing(&self) -> Standing {
        todo!()
    }
    /// What the device forwarded by itself.
    pub fn device_stats(&self) -> FlowStats {
        todo!()
    }
}
