//! [`Pool`]: packet buffers that are used again instead of allocated.
//!
//! A poller owns one pool; receiving takes from it, sending and dropping give back to it, so that the hit path
//! allocates nothing once the pool is warm. Two sizes: [`SMALL`] for ordinary frames, [`JUMBO`] for frames that a
//! kernel left unsegmented. Chunks of memory that is shared with the kernel are kept apart, for the ports that receive into them.
//!
//! # Thread-safety
//! One owner. Buffers may come from another poller's pool; each keeps at most [`KEPT`] of a size and frees the rest.

use std::sync::Arc;

use super::{HEADROOM, MAX_FRAME, Packet};
use crate::sys::buffer::Buffer;
use crate::sys::umem::{CHUNK, Frame, Umem};

/// Bytes of an ordinary buffer, headroom included: a frame of a 1,500-byte MTU with room to spare.
pub const SMALL: usize = HEADROOM + 2_048 - 64;

/// Bytes of a buffer that holds [`MAX_FRAME`].
pub const JUMBO: usize = HEADROOM + MAX_FRAME;

/// Free buffers kept of each size.
pub const KEPT: usize = 1_024;

/// Free packet buffers of one poller.
#[derive(Default)]
pub struct Pool {
    small: Vec<Buffer>,
    jumbo: Vec<Buffer>,
    chunks: Vec<Chunks>,
}

/// Chunks of one memory; mostly there is one.
struct Chunks {
    umem: Arc<Umem>,
    frames: Vec<Frame>,
}

impl Pool {
    pub fn new() -> Pool {
        Pool { small: Vec::with_capacity(KEPT), jumbo: Vec::new(), chunks: Vec::new() }
    }

    /// An empty packet that can hold an ordinary frame.
    #[inline]
    pub fn take(&mut self) -> Packet {
        Packet::new(self.small.pop().unwrap_or_else(|| vec![0; SMALL].into_boxed_slice().into()))
    }

    /// An empty packet that can hold any frame.
    pub fn take_jumbo(&mut self) -> Packet {
        Packet::new(self.jumbo.pop().unwrap_or_else(|| vec![0; JUMBO].into_boxed_slice().into()))
    }

    /// An empty packet for a frame of `len` bytes; `None` above [`MAX_FRAME`].
    #[inline]
    pub fn take_for(&mut self, len: usize) -> Option<Packet> {
        match len {
            _ if len <= SMALL - HEADROOM => Some(self.take()),
            _ if len <= MAX_FRAME => Some(self.take_jumbo()),
            _ => None,
        }
    }

    /// A copy of `packet`, with all that is known of it.
    pub fn copy(&mut self, packet: &Packet) -> Packet {
        // A packet in a jumbo buffer can be longer than MAX_FRAME by at most the headroom it grew into.
        let mut copy = self.take_for(packet.len()).unwrap_or_else(|| Packet::from_bytes(packet.bytes()));
        copy.set_len(packet.len());
        copy.bytes_mut().copy_from_slice(packet.bytes());
        copy.meta = packet.meta;
        copy
    }

    /// Gives a packet's buffer back.
    #[inline]
    pub fn give(&mut self, packet: Packet) {
        let buffer = packet.into_buffer();
        match buffer.len() {
            SMALL if self.small.len() < KEPT => self.small.push(buffer),
            JUMBO if self.jumbo.len() < KEPT / 8 => self.jumbo.push(buffer),
            CHUNK => {
                if let Ok(frame) = buffer.into_frame() {
                    self.give_frame(frame);
                }
            }
            _ => drop(buffer),
        }
    }

    /// A chunk of this memory; `None`: all are in use.
    #[inline]
    pub fn take_frame(&mut self, umem: &Arc<Umem>) -> Option<Frame> {
        let kept = self.chunks.iter_mut().find(|chunks| Arc::ptr_eq(&chunks.umem, umem));
        kept.and_then(|chunks| chunks.frames.pop()).or_else(|| umem.take())
    }

    /// Gives a chunk back.
    #[inline]
    pub fn give_frame(&mut self, frame: Frame) {
        match self.chunks.iter_mut().find(|chunks| Arc::ptr_eq(&chunks.umem, frame.umem())) {
            Some(chunks) if chunks.frames.len() < KEPT => chunks.frames.push(frame),
            Some(_) => drop(frame),
            None => {
                let umem = Arc::clone(frame.umem());
                let mut frames = Vec::with_capacity(KEPT);
                frames.push(frame);
                self.chunks.push(Chunks { umem, frames });
            }
        }
    }

    /// Gives a whole list back and leaves it empty.
    #[inline]
    pub fn give_all(&mut self, packets: &mut Vec<Packet>) {
        for packet in packets.drain(..) {
            self.give(packet);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_given_back_is_taken_again_and_holds_nothing_of_its_past() {
        let mut pool = Pool::new();
        let mut packet = pool.take();
        packet.set_len(60);
        packet.prepend(4);
        packet.meta.in_port = crate::flow::PortNo(7);
        let address = packet.room_mut().as_ptr() as usize;
        pool.give(packet);
        let again = pool.take();
        assert_eq!(again.bytes().as_ptr() as usize, address + 4);
        assert!(again.is_empty());
        assert_eq!(again.meta.in_port, crate::flow::PortNo::NONE);
    }

    #[test]
    fn a_copy_is_equal_and_separate() {
        let mut pool = Pool::new();
        let mut original = Packet::from_bytes(&[1, 2, 3]);
        let copy = pool.copy(&original);
        original.bytes_mut()[0] = 9;
        assert_eq!(copy.bytes(), [1, 2, 3]);
    }
}
