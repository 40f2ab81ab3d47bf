//! [`Ring`]: frames that an AF_PACKET socket leaves in memory shared with the kernel (`PACKET_RX_RING`, version 2; packet(7) and
//! `Documentation/networking/packet_mmap.rst` of the kernel).
//!
//! ```text
//!  slot 0        slot 1        slot 2            …        each slot, a power of two long:
//!  [ours|frame]  [ours|frame]  [the kernel's]             [tpacket2_hdr … | virtio header | frame …]
//!    ▲ next                                                status = whose    mac - 10        mac
//! ```
//!
//! The kernel fills the slots in order and hands each over by setting its status; we hand it back by clearing it. A frame that
//! is longer than a slot is also queued, whole, for recv(2), in the slots' order.
//!
//! # Thread-safety
//! One owner, which may be any thread.

use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use libc::{c_int, tpacket_req, tpacket2_hdr};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::packet;

/// Bytes in front of a frame in its slot, at most: the kernel's header and address, and what aligns the network header.
const OVERHEAD: usize = 118;

/// The shortest and longest slots. Longer ones would be few.
const SLOTS: std::ops::RangeInclusive<usize> = 1 << 11..=1 << 14;

/// Bytes that the kernel allocates in one piece. Slots never cross its border.
const BLOCK: usize = 1 << 16;

/// A receive ring.
pub struct Ring {
    memory: NonNull<u8>,
    /// Bytes in a slot, a power of two.
    slot_len: usize,
    slots: usize,
    /// Bytes of virtio header in front of each frame.
    lead: usize,
    next: usize,
}

/// What stands in a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame<'a> {
    /// The virtio header and what of the frame has room in the slot; empty when the kernel's offsets make no sense.
    pub bytes: &'a [u8],
    /// Bytes of the whole frame, without the header.
    pub len: usize,
    /// The whole frame waits to be received from the socket.
    pub queued: bool,
    /// The VLAN tag that the kernel took off the frame, as `(TPID, TCI)`.
    pub vlan: Option<(u16, u16)>,
}

impl Ring {
    /// A ring of at most `bytes`, and at least 64 KiB, whose slots hold frames of `frame` bytes, or as much as 16 KiB hold. `lead` is the length of
    /// the virtio header that the socket puts in front of each. The socket's options are to be set before.
    pub fn new(socket: impl AsFd, bytes: usize, frame: usize, lead: usize) -> io::Result<Ring> {
        let slot_len = (OVERHEAD + lead + frame).clamp(*SLOTS.start(), *SLOTS.end()).next_power_of_two();
        let blocks = (bytes / BLOCK).max(1);
        let slots = blocks * (BLOCK / slot_len);
        packet::set_option(&socket, libc::PACKET_VERSION, &(libc::tpacket_versions::TPACKET_V2 as c_int))?;
        // Any value makes it queue the frames that are too long for a slot.
        packet::set_option(&socket, libc::PACKET_COPY_THRESH, &1)?;
        let request = tpacket_req {
            tp_block_size: BLOCK as u32,
            tp_block_nr: blocks as u32,
            tp_frame_size: slot_len as u32,
            tp_frame_nr: slots as u32,
        };
        packet::set_option(&socket, libc::PACKET_RX_RING, &request)?;
        // SAFETY: a new mapping where the kernel has room for it touches no memory in use.
        let memory = unsafe {
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            mmap(std::ptr::null_mut(), blocks * BLOCK, protection, MapFlags::SHARED, socket, 0)?
        };
        let memory = NonNull::new(memory.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Ring { memory, slot_len, slots, lead, next: 0 })
    }

    /// How many frames it holds.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// The frame that came first, if there is one; the same again until [`Ring::advance`].
    #[inline]
    pub fn front(&self) -> Option<Frame<'_>> {
        // Acquire: what the kernel wrote before it handed the slot over is seen.
        let status = self.status().load(Ordering::Acquire);
        if status & libc::TP_STATUS_USER == 0 {
            return None;
        }
        // SAFETY: the slot lies inside the mapping and begins with this header, suitably aligned, for slots are. It is ours until `advance`,
        // which needs `&mut self`, so that nobody writes it meanwhile; it is integers only.
        let header = unsafe { self.place().cast::<tpacket2_hdr>().read() };
        let start =
            usize::from(header.tp_mac).checked_sub(self.lead).filter(|start| *start >= size_of::<tpacket2_hdr>());
        let len = self.lead + header.tp_snaplen as usize;
        let bytes = match start {
            // SAFETY: these bytes lie inside the slot, so inside the mapping, behind the header with its status; they are ours until `advance`, and
            // initialized, for the kernel gives zeroed memory.
            Some(start) if start + len <= self.slot_len => unsafe {
                std::slice::from_raw_parts(self.place().add(start).as_ptr(), len)
            },
            _ => &[],
        };
        Some(Frame {
            bytes,
            len: header.tp_len as usize,
            queued: status & libc::TP_STATUS_COPY != 0,
            vlan: (status & libc::TP_STATUS_VLAN_VALID != 0).then(|| {
                let known = status & libc::TP_STATUS_VLAN_TPID_VALID != 0;
                (if known { header.tp_vlan_tpid } else { libc::ETH_P_8021Q as u16 }, header.tp_vlan_tci)
            }),
        })
    }

    /// Hands the front slot back to the kernel, if it is ours.
    #[inline]
    pub fn advance(&mut self) {
        if self.status().load(Ordering::Relaxed) & libc::TP_STATUS_USER == 0 {
            return;
        }
        // Release: what was read of the slot was read before.
        self.status().store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.next += 1;
        if self.next == self.slots {
            self.next = 0;
        }
    }

    /// The front slot's first byte.
    #[inline]
    fn place(&self) -> NonNull<u8> {
        // SAFETY: `next` is below the number of slots, all of which lie inside the mapping.
        unsafe { self.memory.add(self.next * self.slot_len) }
    }

    /// Whose the front slot is. The kernel reads and writes it whole.
    #[inline]
    fn status(&self) -> &AtomicU32 {
        // SAFETY: a u32 inside the slot, aligned as its header is, that lives as long as the mapping, and that we touch in no other way.
        unsafe { self.place().add(offset_of!(tpacket2_hdr, tp_status)).cast::<AtomicU32>().as_ref() }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the whole mapping, which nobody else knows; what was borrowed of it is not borrowed any more. Unmapping what is mapped does not fail.
        let _ = unsafe { munmap(self.memory.as_ptr().cast(), self.slots * self.slot_len) };
    }
}

// SAFETY: the mapping is the ring's own and not bound to a thread.
unsafe impl Send for Ring {}
