//! [`Outbox`]: a way out through the kernel's own packets, a batch of frames a system call.
//!
//! ```text
//!   frames ─► memory of a map ─► program (src/xdp/bpf/send.bpf.c) ─► the interface's queueing discipline ─► driver
//!             put                send: one call
//! ```
//!
//! Where a socket copies its frames anyway, this is less work: an AF_XDP socket in copy mode hands the driver one packet after the other, and
//! what receives them in the same machine (a veth's other end, a bridge) runs after each. Here it runs once a batch. The program is run by
//! `BPF_PROG_RUN` (`Documentation/bpf/bpf_prog_run.rst` of the kernel) on a packet that it fills with each frame in turn, and of which
//! `bpf_clone_redirect` (bpf-helpers(7)) sends a copy.
//!
//! From Linux 6.3 on: before, the program is interrupted by whoever receives, as a socket is.
//!
//! # Thread-safety
//! One owner, as of any transmit queue.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::Ordering::Relaxed;

use super::Sent;
use crate::sys::bpf::{Memory, run_on};
use crate::xdp::{LoadError, Object};

/// The longest frame, in bytes: the kernel begins with a packet of a page, less what it needs around it, and here none may grow.
pub const LONGEST: usize = 3_400;

/// The shortest: an Ethernet header.
const SHORTEST: usize = 14;

/// Frames a call, and bytes for all of them.
const FRAMES: usize = 32;
const ROOM: usize = 1 << 16;

/// The least that the kernel is told of a packet at first: of one said to be IP it wants a header, whatever the frame is.
const LEAST: usize = 64;

/// Where the members of `struct outbox` stand.
mod at {
    pub const INTERFACE: usize = 0;
    pub const QUEUE: usize = 4;
    pub const COUNT: usize = 8;
    pub const SENT: usize = 16;
    pub const FAILED: usize = 20;
    pub const SENT_BYTES: usize = 24;
    pub const FRAMES: usize = 32;
    pub const BYTES: usize = FRAMES + 8 * super::FRAMES;
}

/// Frames that wait to be sent together, of one Ethernet type.
pub struct Outbox {
    program: OwnedFd,
    memory: Memory,
    count: usize,
    /// Bytes of the room that are taken.
    filled: usize,
    /// Bytes of the longest that waits.
    longest: usize,
    /// The type of the first, by which the kernel knows all that are sent with it.
    kind: [u8; 2],
    /// The network namespace of the interface, until it is known to be the sender's.
    home: Option<u64>,
    /// It is not.
    astray: bool,
}

impl Outbox {
    /// An empty one, for a transmit queue of the interface of this index in the calling thread's network namespace. Where it has no such
    /// queue, or is told to choose otherwise (XPS), the kernel takes another.
    ///
    /// # Errors
    /// The kernel or a privilege does not allow it.
    pub fn open(interface: u32, queue: u32) -> Result<Outbox, LoadError> {
        let other = |error: io::Error| LoadError::Other(error.to_string());
        let object = Object::send()?;
        let map = object.map("outboxes").map_err(other)?;
        if map.value_len() != at::BYTES + ROOM + LONGEST {
            return Err(LoadError::Other("its memory is laid out otherwise".to_owned()));
        }
        let memory = map.memory().map_err(other)?;
        memory.u32(at::INTERFACE).store(interface, Relaxed);
        memory.u32(at::QUEUE).store(queue, Relaxed);
        let program = object.program().and_then(|program| program.try_clone_to_owned()).map_err(other)?;
        // Whether it may be run, and on so much.
        run_on(program.as_fd(), &memory, at::BYTES..at::BYTES + LONGEST).map_err(other)?;
        let (kind, home) = ([0; 2], Some(network_namespace()));
        Ok(Outbox { program, memory, count: 0, filled: 0, longest: 0, kind, home, astray: false })
    }

    /// Whether `frame` can be laid beside what waits. If not, it can be once that was sent.
    #[inline]
    pub fn has_room_for(&self, frame: &[u8]) -> bool {
        self.count == 0 || self.count < FRAMES && self.filled < ROOM && self.kind == kind(frame)
    }

    /// Lays a frame beside those that wait. `false`: it is too short or too long to be sent.
    ///
    /// # Panics
    /// Where there was no room.
    #[inline]
    pub fn put(&mut self, frame: &[u8]) -> bool {
        if !(SHORTEST..=LONGEST).contains(&frame.len()) {
            return false;
        }
        if self.count == 0 {
            (self.longest, self.kind) = (LEAST, kind(frame));
        }
        assert!(self.count < FRAMES && self.filled < ROOM, "room for a frame");
        let (place, entry) = (self.filled, at::FRAMES + 8 * self.count);
        self.memory.u32(entry).store(place as u32, Relaxed);
        self.memory.u32(entry + 4).store(frame.len() as u32, Relaxed);
        self.memory.write(at::BYTES + place, frame);
        self.longest = self.longest.max(frame.len());
        self.filled = (place + frame.len()).next_multiple_of(8);
        self.count += 1;
        true
    }

    /// Sends what waits. From another network namespace than it was opened in all of it fails; the first call looks, and the thread stays
    /// where it was.
    #[inline]
    pub fn send(&mut self) -> Sent {
        let count = std::mem::take(&mut self.count) as u64;
        self.filled = 0;
        if count == 0 {
            return Sent::default();
        }
        if let Some(home) = self.home.take() {
            self.astray = home != network_namespace();
        }
        if self.astray {
            return Sent { failed: count, ..Sent::default() };
        }
        self.memory.u32(at::COUNT).store(count as u32, Relaxed);
        self.memory.u32(at::SENT).store(0, Relaxed);
        self.memory.u32(at::FAILED).store(0, Relaxed);
        self.memory.u64(at::SENT_BYTES).store(0, Relaxed);
        // As long as any of them, of whatever bytes.
        let first = at::BYTES..at::BYTES + self.longest;
        let refused = run_on(self.program.as_fd(), &self.memory, first).err();
        let packets = self.memory.u32(at::SENT).load(Relaxed).into();
        let (failed, bytes) =
            (self.memory.u32(at::FAILED).load(Relaxed).into(), self.memory.u64(at::SENT_BYTES).load(Relaxed));
        let left = count.saturating_sub(packets + failed);
        match refused.is_none_or(|error| error.kind() == io::ErrorKind::OutOfMemory) {
            true => Sent { packets, bytes, failed, full: left },
            false => Sent { packets, bytes, failed: failed + left, full: 0 },
        }
    }
}

/// The number of the calling thread's network namespace, which the kernel looks in for an interface of an index; 0: nobody says.
#[cold]
fn network_namespace() -> u64 {
    std::fs::metadata("/proc/thread-self/ns/net").map_or(0, |namespace| namespace.ino())
}

/// The Ethernet type; what is below 1,536 is a length (IEEE 802.3 §3.2.6) and says nothing.
#[inline]
fn kind(frame: &[u8]) -> [u8; 2] {
    match frame.get(12..14) {
        Some(&[high, low]) if high >= 6 => [high, low],
        _ => [0, 0],
    }
}
