//! Where packets come from and go to.
//!
//! A [`Port`] belongs to the control thread and is only ever opened, described and closed there. Its queues move to
//! the pollers: each [`RxQueue`] to one, a [`TxQueue`] to each, because any poller may send to any port.
//!
//! - [`spec`]: how ports are written, `NAME[,type=KIND][,option=value…]`
//! - [`sim`]: in memory, filled by command or by a traffic generator
//! - [`pcap`]: capture files
//! - [`tap`]: a TAP interface of our own
//! - [`packet_socket`]: AF_PACKET on an existing interface
//! - `xsk`: AF_XDP on an existing interface, where it is built in
//! - [`handoff`]: one transmit queue for all pollers, where a device has no more
//! - [`capture`], [`generator`], [`pace`], [`vnet`]: capture files, made-up traffic, frames a second, virtio-net headers
//!
//! To add a kind: a row in [`spec::Kind`], a file here, an arm in [`open`].

pub mod capture;
pub mod generator;
pub mod handoff;
#[cfg(xdp)]
pub mod outbox;
pub mod pace;
pub mod packet_socket;
pub mod pcap;
pub mod sim;
pub mod spec;
pub mod tap;
pub mod vnet;
#[cfg(xdp)]
pub mod xsk;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use crate::flow::PortNo;
use crate::packet::{Packet, Pool};
use crate::sync::{AtomicBool, AtomicU64, Ordering, fence};

#[cfg(xdp)]
pub use crate::xdp::Hook;
pub use spec::{Kind, PortSpec, SpecError};

/// No interface has an XDP program: there is none.
#[cfg(not(xdp))]
pub enum Hook {}

/// What is said to whoever asks for XDP.
#[cfg(not(xdp))]
pub const NO_XDP: &str = "this build has no XDP; build it with clang installed (apt install clang)";

/// What a port is and can do; fixed while it is open, but for [`Port::mtu`].
#[derive(Clone, Debug, serde::Serialize)]
pub struct PortInfo {
    pub name: String,
    pub number: PortNo,
    pub kind: Kind,
    /// Of the interface behind it, where there is one.
    pub ifindex: Option<u32>,
    pub rx_queues: usize,
    /// Finishes partial checksums, so that a frame may be sent with one.
    pub tx_checksum: bool,
    /// Cuts frames into segments, so that a frame may be sent whole.
    pub tx_segment: bool,
    /// The most frames that can wait in one receive queue, for deciding when old marks have left it.
    pub ring: u64,
}

/// An open port, owned by the control thread.
pub trait Port: Send {
    fn info(&self) -> &PortInfo;

    /// The longest frame payload behind the Ethernet header (and VLAN tags), in bytes, as of now.
    fn mtu(&self) -> usize;

    /// Takes the receive queues; each goes to one poller. Empty the second time.
    fn take_rx(&mut self) -> Vec<Box<dyn RxQueue>>;

    /// One more transmit queue, or `None` where the device has no more: the rest then share through [`handoff`].
    fn open_tx(&mut self) -> io::Result<Option<Box<dyn TxQueue>>>;

    /// A transmit queue for the device itself, where it forwards packets without us; `None`: it cannot send here.
    fn open_wire(&mut self) -> io::Result<Option<Box<dyn TxQueue>>> {
        self.open_tx()
    }

    /// Makes `frame` arrive at receive queue `queue`, as if from a wire. Only for ports in memory.
    fn inject(&self, queue: usize, frame: &[u8]) -> Result<(), InjectError> {
        let _ = (queue, frame);
        Err(InjectError::Unsupported)
    }

    /// Plugs the wire in or out; `false`: this kind of port has none to plug. Only for ports in memory.
    fn set_up(&self, up: bool) -> bool {
        let _ = up;
        false
    }

    /// The XDP program at the interface, which a device may replace; `None` where there is none.
    fn hook(&self) -> Option<Arc<Hook>> {
        None
    }

    /// Repairs what others may have broken. Called about once a second. `false`: only opening it anew would do, which this asks for once.
    fn look_after(&mut self) -> bool {
        true
    }

    /// Device settings worth showing, as `(name, value)`.
    fn details(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }
}

/// Why a frame could not be made to arrive.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InjectError {
    #[error("no such dummy netdev")]
    Unsupported,
    #[error("bad rx queue id.")]
    Queue,
    #[error("the receive queue is full")]
    Full,
    #[error("the port is down")]
    Down,
    #[error("the frame is longer than {} bytes", crate::packet::MAX_FRAME)]
    TooLong,
}

/// One receive queue, owned by one poller.
pub trait RxQueue: Send {
    /// Appends up to [`BATCH`](crate::packet::BATCH) frames to the empty list `into`, in order of arrival, with `meta.in_port` set; never waits.
    /// Answers with how many frames were taken out of the queue: more than `into` holds where the device dealt with some of
    /// them by itself, and 0 only when the queue was seen empty.
    ///
    /// # Errors
    /// The device is gone or broken: the poller reports it and does not ask this queue again.
    fn receive(&mut self, now: Instant, pool: &mut Pool, into: &mut Vec<Packet>) -> io::Result<usize>;

    /// What becomes readable when a frame arrives; `None` for queues that only time fills.
    fn readable(&self) -> Option<BorrowedFd<'_>>;

    /// When the next frame falls due, for queues that time fills. `None`: nothing is planned. Their time begins with the first
    /// [`RxQueue::receive`], which is due at once.
    fn next_due(&self) -> Option<Instant> {
        None
    }

    /// Frames that the device dropped before we took them, since the queue was opened. May cost a system call: not to be asked per batch.
    fn missed(&mut self) -> u64 {
        0
    }
}

/// One transmit queue, owned by one poller.
pub trait TxQueue: Send {
    /// Sends `packets` in order and leaves the list empty; what cannot be sent now is dropped and counted in the answer. Never waits.
    /// Frames are no longer than the MTU allows and carry no [`Offload`](crate::packet::Offload) that [`PortInfo`] does not promise to finish.
    fn transmit(&mut self, now: Instant, pool: &mut Pool, packets: &mut Vec<Packet>) -> Sent;
}

/// What became of a list of packets. Each is in one of the counts.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Sent {
    pub packets: u64,
    pub bytes: u64,
    /// The device had no room, or what is in front of it dropped them.
    pub full: u64,
    /// The device refused them (down, gone, too long for it).
    pub failed: u64,
}

impl Sent {
    /// Adds what became of another list.
    #[inline]
    pub fn add(&mut self, other: Sent) {
        self.packets += other.packets;
        self.bytes += other.bytes;
        self.full += other.full;
        self.failed += other.failed;
    }
}

/// How far a receive queue has been emptied: what tells when frames that an old mark was stamped on are gone.
///
/// The poller counts *turns*: one ends when a look finds the queue empty, or when as many frames as the queue holds were
/// taken since the last one ended. So a turn takes every frame that was in the queue when it began.
///
/// ```text
///   poller                                     worker
///   turn p ends: turns = p + 1                 the device has forgotten the mark
///   fence ◄────────── one of the two ────────► fence
///   looks of turn p + 1 …                      the point: turns == p
///   turn p + 1 ends: turns = p + 2             over: turns >= p + 2
/// ```
///
/// Of two fences one comes first: either the worker sees that turn p has ended, and the point is later; or the looks
/// after it see every frame that was in the queue before the worker's fence. So of the turns that end after the point
/// only the first may have begun too early, and two are enough. Without the poller's fence a core may look again
/// before its earlier count has left its store buffer, and count looks that were over before the point as later ones.
/// It costs nothing where packets are handled: only a look at an empty queue, and one in many full batches, has it.
///
/// # Thread-safety
/// The queue's poller writes, the offload worker reads.
#[derive(Default, Debug)]
pub struct RxProgress {
    /// Turns ended so far.
    turns: AtomicU64,
    /// Frames taken in this turn. The poller's alone.
    taken: AtomicU64,
    closed: AtomicBool,
    ring: u64,
}

impl RxProgress {
    /// `ring`: the most frames that the queue holds.
    pub fn new(ring: u64) -> RxProgress {
        RxProgress { ring, ..RxProgress::default() }
    }

    /// The poller took `n` frames in one look; none means that the queue was empty.
    #[inline]
    pub fn took(&self, n: usize) {
        // One writer: plain loads and stores.
        let taken = self.taken.load(Ordering::Relaxed) + n as u64;
        if n > 0 && taken < self.ring {
            self.taken.store(taken, Ordering::Relaxed);
            return;
        }
        self.taken.store(0, Ordering::Relaxed);
        self.turns.store(self.turns.load(Ordering::Relaxed) + 1, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// The queue will not be asked again.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Remembers where the queue stands.
    pub fn mark_point(&self) -> RxPoint {
        fence(Ordering::SeqCst);
        RxPoint(self.turns.load(Ordering::Acquire))
    }

    /// Whether every frame that was in the queue at `point` has been taken.
    pub fn turned_over_since(&self, point: &RxPoint) -> bool {
        self.is_closed() || self.turns.load(Ordering::Acquire) >= point.0 + 2
    }
}

/// A place in a receive queue's history.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RxPoint(u64);

/// Opens the port that `spec` describes, as port `number`.
///
/// # Errors
/// Says what is missing: interface, file, permission, option.
pub fn open(spec: &PortSpec, number: PortNo) -> Result<Box<dyn Port>, OpenError> {
    spec.check()?;
    match spec.kind {
        Kind::Sim => sim::open(spec, number),
        Kind::Pcap => pcap::open(spec, number),
        Kind::Tap => tap::open(spec, number),
        Kind::Packet => packet_socket::open(spec, number),
        #[cfg(xdp)]
        Kind::Xsk => xsk::open(spec, number),
        #[cfg(not(xdp))]
        Kind::Xsk => Err(spec.wrong(NO_XDP)),
    }
}

/// Why a port could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error("port {port}: option {option}={value}: {expected}")]
    Option { port: String, option: String, value: String, expected: String },
    #[error("port {port}: {what}: {source}")]
    Io { port: String, what: String, source: io::Error },
    #[error("port {port}: {what}")]
    Other { port: String, what: String },
}
