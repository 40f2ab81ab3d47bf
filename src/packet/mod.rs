//! Bytes, and what may be said of them: no I/O, no clock, no allocation per packet.
//!
//! - [`Packet`]: one frame in a buffer with headroom, and its [`Meta`] (where it came from, its mark, unfinished offloads)
//! - [`pool`]: where buffers come from and go back to
//! - [`extract`]: frame → [`Key`](crate::flow::Key)
//! - [`compose`]: key → frame, for tests and for `netdev-dummy/receive` with flow text
//! - [`edit`]: rewriting headers with checksums kept right
//! - [`checksum`]: RFC 1071 sums and RFC 1624 updates
//! - [`segment`]: finishing what a kernel left to the device: partial checksums, segmentation
//!
//! # Thread-safety
//! A packet has one owner and moves; nothing here is shared.

pub mod checksum;
pub mod compose;
pub mod edit;
pub mod extract;
pub mod pool;
pub mod segment;

use std::sync::Arc;

use crate::flow::PortNo;
use crate::offload::mark::Mark;
use crate::sys::buffer::Buffer;
use crate::sys::umem::{Frame, Umem};

pub use pool::Pool;

/// Packets that are received, looked up and sent together.
pub const BATCH: usize = 32;

/// Free bytes in front of a received frame: room for two VLAN tags and for a port's own header, on a cache line's border.
pub const HEADROOM: usize = 128;

/// The longest frame: 64 KiB of segmentation-offloaded payload and its headers.
pub const MAX_FRAME: usize = 65_536 + 256;

/// One frame, with room in front of it.
pub struct Packet {
    buffer: Buffer,
    start: u32,
    end: u32,
    pub meta: Meta,
}

/// What is known of a packet beside its bytes.
#[derive(Clone, Copy, Default, Debug)]
pub struct Meta {
    /// The port it came from.
    pub in_port: PortNo,
    /// The flow mark that the device stamped on it.
    pub mark: Option<Mark>,
    /// What the sender's kernel left undone, for the last device to finish.
    pub offload: Offload,
    /// When it was captured, for replay and recording; nanoseconds since the Unix epoch, 0 = not known.
    pub captured_ns: u64,
}

/// Work left to the device that the frame leaves by, as in a virtio-net header (Virtual I/O Device v1.2 §5.1.6).
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Offload {
    /// The checksum field holds the pseudo-header's sum only; the rest must be added.
    pub checksum: Option<PartialChecksum>,
    /// The frame stands for several.
    pub segment: Option<Segmentation>,
}

/// Where an unfinished checksum covers and where it goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PartialChecksum {
    /// First byte summed, from the start of the frame.
    pub start: u16,
    /// The checksum field, from `start`.
    pub offset: u16,
}

/// How a frame is to be cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segmentation {
    pub kind: SegmentKind,
    /// Payload bytes in each piece but the last; never 0.
    pub size: u16,
    /// The sender uses ECN: CWR stands in the first piece only.
    pub ecn: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SegmentKind {
    TcpIpv4,
    TcpIpv6,
    /// UDP datagrams cut into datagrams (`UDP_SEGMENT`), not IP fragments.
    Udp,
}

impl Packet {
    /// An empty frame at [`HEADROOM`] in `buffer`.
    ///
    /// # Panics
    /// If `buffer` is shorter than [`HEADROOM`]; pools hand out none.
    pub fn new(buffer: impl Into<Buffer>) -> Packet {
        let buffer = buffer.into();
        assert!(buffer.len() >= HEADROOM, "a packet buffer has headroom");
        Packet { buffer, start: HEADROOM as u32, end: HEADROOM as u32, meta: Meta::default() }
    }

    /// A frame of its own memory; for tests and slow paths.
    pub fn from_bytes(frame: &[u8]) -> Packet {
        let mut buffer = vec![0; HEADROOM + frame.len()].into_boxed_slice();
        buffer[HEADROOM..].copy_from_slice(frame);
        let end = buffer.len() as u32;
        Packet { buffer: buffer.into(), start: HEADROOM as u32, end, meta: Meta::default() }
    }

    /// The frame that a device left in `buffer`: `len` bytes from `at`, as far as they are inside.
    #[inline]
    pub fn received(buffer: impl Into<Buffer>, at: usize, len: usize) -> Packet {
        let buffer = buffer.into();
        let start = at.min(buffer.len());
        let end = (start + len).min(buffer.len());
        Packet { buffer, start: start as u32, end: end as u32, meta: Meta::default() }
    }

    /// The frame.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        &self.buffer.bytes()[self.start as usize..self.end as usize]
    }

    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buffer.bytes_mut()[self.start as usize..self.end as usize]
    }

    #[inline]
    pub fn len(&self) -> usize {
        (self.end - self.start) as usize
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        self.end == self.start
    }

    /// Free bytes in front.
    #[inline]
    pub fn headroom(&self) -> usize {
        self.start as usize
    }

    /// Everything behind the current start of the frame, for a port to receive into; then say how much with [`Packet::set_len`].
    #[inline]
    pub fn room_mut(&mut self) -> &mut [u8] {
        &mut self.buffer.bytes_mut()[self.start as usize..]
    }

    /// How long a frame could stand at the current start.
    #[inline]
    pub fn capacity(&self) -> usize {
        self.buffer.len() - self.start as usize
    }

    /// Says how long the frame is, capped at [`Packet::capacity`].
    #[inline]
    pub fn set_len(&mut self, len: usize) {
        self.end = self.start + len.min(self.capacity()) as u32;
    }

    /// Makes the frame longer at its front by `n` bytes of unspecified content. `false`, and no change, when the headroom is too small.
    #[inline]
    pub fn prepend(&mut self, n: usize) -> bool {
        if n > self.headroom() {
            return false;
        }
        self.start -= n as u32;
        true
    }

    /// Takes `n` bytes from the front; no more than there are.
    #[inline]
    pub fn trim_front(&mut self, n: usize) {
        self.start += n.min(self.len()) as u32;
    }

    /// Makes this an empty frame at the usual place again, with nothing known of it.
    #[inline]
    pub fn reset(&mut self) {
        self.start = HEADROOM as u32;
        self.end = HEADROOM as u32;
        self.meta = Meta::default();
    }

    /// The chunk of `umem` that it stands in, where in it, and how long it is.
    ///
    /// # Errors
    /// It stands in other memory.
    #[inline]
    pub fn into_frame(self, umem: &Arc<Umem>) -> Result<(Frame, usize, usize), Packet> {
        if !self.buffer.is_of(umem) {
            return Err(self);
        }
        let (start, end, meta) = (self.start, self.end, self.meta);
        match self.buffer.into_frame() {
            Ok(frame) => Ok((frame, start as usize, (end - start) as usize)),
            Err(buffer) => Err(Packet { buffer, start, end, meta }),
        }
    }

    /// The bare buffer.
    pub fn into_buffer(self) -> Buffer {
        self.buffer
    }
}

impl std::fmt::Debug for Packet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Packet({} bytes, {:?})", self.len(), self.meta)
    }
}
