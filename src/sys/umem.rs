//! [`Umem`]: memory in chunks that AF_XDP sockets share with the kernel; [`Frame`], one chunk of it, owned (AF_XDP, `Documentation/networking/af_xdp.rst`
//! of the kernel).
//!
//! A chunk is in exactly one place, and the types say in which:
//!
//! ```text
//!                 take                        lend
//!   free ──────────────────► Frame, owned ───────────────► Lent: the kernel's, in a ring or on the wire
//!    ▲          drop           │      ▲        reclaim                 │
//!    └─────────────────────────┘      └────────────────────────────────┘
//! ```
//!
//! What a kernel has of a socket that is closed is parked until it is known to have let go of it (`xsk.rs`).
//! What it gives back is compared with what it was lent, so that no answer of its makes a second owner.
//!
//! # Thread-safety
//! Frames move between threads. The free ones are in a lock-free queue. A [`Lent`] has one owner.

use std::io;
use std::mem::ManuallyDrop;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crossbeam_queue::ArrayQueue;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Bytes in a chunk: a page, the most that the kernel takes without huge pages.
pub const CHUNK: usize = 4_096;

/// Chunks of memory.
pub struct Umem {
    place: NonNull<u8>,
    chunks: u32,
    /// Numbers of chunks that nobody has.
    free: ArrayQueue<u32>,
    /// Chunks that were in a kernel's hands when their socket was closed, and may be read there still.
    lost: AtomicU32,
}

/// One chunk, and the right to it. Dropped, it is free again.
pub struct Frame {
    umem: Arc<Umem>,
    chunk: u32,
}

impl Umem {
    /// Memory of `chunks` chunks, 1 to 2^20, in place at once.
    ///
    /// # Errors
    /// No memory.
    pub fn new(chunks: u32) -> io::Result<Arc<Umem>> {
        let chunks = chunks.clamp(1, 1 << 20);
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping where the kernel has room for it touches no memory in use.
        let place = unsafe {
            let flags = MapFlags::PRIVATE | MapFlags::POPULATE;
            mmap_anonymous(std::ptr::null_mut(), chunks as usize * CHUNK, protection, flags)?
        };
        let place = NonNull::new(place.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let free = ArrayQueue::new(chunks as usize);
        for chunk in 0..chunks {
            // It has room for all.
            let _ = free.push(chunk);
        }
        Ok(Arc::new(Umem { place, chunks, free, lost: AtomicU32::new(0) }))
    }

    pub fn chunks(&self) -> u32 {
        self.chunks
    }

    /// Chunks that nobody has, about.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Chunks that nobody will ever have again.
    pub fn lost(&self) -> u32 {
        self.lost.load(Ordering::Relaxed)
    }

    /// The address of the first byte, and how many there are: what the kernel is told.
    pub fn area(&self) -> (u64, u64) {
        (self.place.as_ptr() as u64, (self.chunks as usize * CHUNK) as u64)
    }

    /// A free chunk, with whatever it held last.
    #[inline]
    pub fn take(self: &Arc<Umem>) -> Option<Frame> {
        Some(Frame { umem: Arc::clone(self), chunk: self.free.pop()? })
    }

    /// The first byte of a chunk.
    #[inline]
    fn chunk(&self, chunk: u32) -> NonNull<u8> {
        debug_assert!(chunk < self.chunks);
        // SAFETY: chunks that exist as numbers are those of `new`, all inside the mapping.
        unsafe { self.place.add(chunk as usize * CHUNK) }
    }

    /// Begins to fetch what stands at `address`, and what is in front of it, from wherever another processor has left it.
    #[cfg(xdp)]
    #[inline]
    pub(super) fn prefetch(&self, address: u64) {
        #[cfg(target_arch = "x86_64")]
        if address >= 64 && address < self.chunks as u64 * CHUNK as u64 {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: both places are inside the mapping; a prefetch reads nothing that anybody sees.
            unsafe {
                let place = self.place.as_ptr().add(address as usize).cast::<i8>();
                _mm_prefetch(place, _MM_HINT_T0);
                _mm_prefetch(place.sub(64), _MM_HINT_T0);
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = address;
    }

    fn give(&self, chunk: u32) {
        // It has room for all, and no number is there twice.
        let _ = self.free.push(chunk);
    }
}

impl Drop for Umem {
    fn drop(&mut self) {
        // SAFETY: the whole mapping; frames, and what the kernel was lent, hold this by reference count, so there are none. What a kernel still reads
        // of it, it holds itself. Unmapping what is mapped does not fail.
        let _ = unsafe { munmap(self.place.as_ptr().cast(), self.chunks as usize * CHUNK) };
    }
}

// SAFETY: the mapping is not bound to a thread, and only frames, of which each chunk has one, give access to it.
unsafe impl Send for Umem {}
// SAFETY: as above; all that is shared is the queue and a counter.
unsafe impl Sync for Umem {}

impl Frame {
    /// The memory that it is of.
    pub fn umem(&self) -> &Arc<Umem> {
        &self.umem
    }

    #[inline]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: a chunk inside the mapping, which lives as long as the frame; it is initialized, for the kernel gives zeroed memory. Only its one frame
        // gives access to it, and it is borrowed for as long as the slice lives. While the kernel may write it there is no frame of it.
        unsafe { std::slice::from_raw_parts(self.umem.chunk(self.chunk).as_ptr(), CHUNK) }
    }

    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.umem.chunk(self.chunk).as_ptr(), CHUNK) }
    }

    /// The memory, the chunk's number and its first byte; nobody frees it any more.
    pub(super) fn into_parts(self) -> (Arc<Umem>, u32, NonNull<u8>) {
        let frame = ManuallyDrop::new(self);
        let place = frame.umem.chunk(frame.chunk);
        // SAFETY: read once, for the frame is never used or dropped again.
        (unsafe { std::ptr::read(&frame.umem) }, frame.chunk, place)
    }

    /// # Safety
    /// Both are of one [`Frame::into_parts`], and of no other frame.
    pub(super) unsafe fn from_parts(umem: Arc<Umem>, chunk: u32) -> Frame {
        Frame { umem, chunk }
    }
}

impl Drop for Frame {
    #[inline]
    fn drop(&mut self) {
        self.umem.give(self.chunk);
    }
}

/// The chunks that one side of a socket was lent.
pub struct Lent {
    umem: Arc<Umem>,
    /// A bit for each chunk: it was lent. The frame was forgotten with its count on the memory, which is thus held for it.
    chunks: Box<[u64]>,
}

impl Lent {
    pub fn new(umem: &Arc<Umem>) -> Lent {
        Lent { umem: Arc::clone(umem), chunks: vec![0; (umem.chunks as usize).div_ceil(64)].into_boxed_slice() }
    }

    #[cfg(xdp)]
    pub(super) fn umem(&self) -> &Umem {
        &self.umem
    }

    /// Makes the kernel the owner. Answers with where the chunk begins, counted from the memory's start.
    ///
    /// # Errors
    /// A frame of other memory is given back.
    #[inline]
    pub fn lend(&mut self, frame: Frame) -> Result<u64, Frame> {
        if !Arc::ptr_eq(&frame.umem, &self.umem) {
            return Err(frame);
        }
        let frame = ManuallyDrop::new(frame);
        self.chunks[frame.chunk as usize / 64] |= 1 << (frame.chunk % 64);
        Ok(u64::from(frame.chunk) * CHUNK as u64)
    }

    /// Takes back the chunk in which `address` lies; `None`: it was not lent.
    #[inline]
    pub fn reclaim(&mut self, address: u64) -> Option<Frame> {
        let chunk = u32::try_from(address / CHUNK as u64).ok()?;
        let word = self.chunks.get_mut(chunk as usize / 64)?;
        let bit = 1 << (chunk % 64);
        if *word & bit == 0 {
            return None;
        }
        *word &= !bit;
        Some(self.frame(chunk))
    }

    /// The frame that was forgotten when this chunk was lent. Its bit was just cleared.
    #[inline]
    fn frame(&self, chunk: u32) -> Frame {
        // SAFETY: `lend` forgot a frame of this memory with its count, and set its bit, which was cleared once: this is that count.
        let umem = unsafe { Arc::from_raw(Arc::as_ptr(&self.umem)) };
        Frame { umem, chunk }
    }

    fn drain(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        for word in 0..self.chunks.len() {
            let mut bits = std::mem::take(&mut self.chunks[word]);
            while bits != 0 {
                frames.push(self.frame(word as u32 * 64 + bits.trailing_zeros()));
                bits &= bits - 1;
            }
        }
        frames
    }

    /// How many chunks the kernel has.
    #[cfg(xdp)]
    pub(super) fn count(&self) -> u32 {
        self.chunks.iter().map(|word| word.count_ones()).sum()
    }

    /// The kernel has let go of every chunk: they are free again.
    pub fn come_home(mut self) {
        drop(self.drain());
    }
}

impl Drop for Lent {
    /// What was not reclaimed may be in use by the kernel, and is nobody's.
    fn drop(&mut self) {
        for frame in self.drain() {
            let (umem, _, _) = frame.into_parts();
            umem.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_chunk_comes_back_once_and_only_if_it_was_lent() {
        let umem = Umem::new(4).unwrap();
        let mut lent = Lent::new(&umem);
        let mut frame = umem.take().unwrap();
        frame.bytes_mut()[7] = 9;
        let address = lent.lend(frame).ok().unwrap();
        assert!(lent.reclaim(address ^ CHUNK as u64).is_none());
        assert!(lent.reclaim(u64::MAX).is_none());
        assert_eq!(lent.reclaim(address + 256).unwrap().bytes()[7], 9);
        assert!(lent.reclaim(address).is_none(), "a second time");
        assert_eq!(umem.free(), 4);
    }

    #[test]
    fn what_the_kernel_kept_is_lost_and_holds_no_memory() {
        let umem = Umem::new(4).unwrap();
        let mut lent = Lent::new(&umem);
        assert!(lent.lend(umem.take().unwrap()).is_ok());
        drop(lent);
        assert_eq!((umem.free(), umem.lost(), Arc::strong_count(&umem)), (3, 1, 1));
        let mut lent = Lent::new(&umem);
        assert!(lent.lend(umem.take().unwrap()).is_ok());
        lent.come_home();
        assert_eq!((umem.free(), umem.lost(), Arc::strong_count(&umem)), (3, 1, 1));
    }

    proptest! {
        #[test]
        fn every_chunk_is_in_one_place(steps in proptest::collection::vec((0..5u8, any::<prop::sample::Index>()), 0..300)) {
            let umem = Umem::new(16).unwrap();
            let mut lent = [Lent::new(&umem), Lent::new(&umem)];
            let (mut owned, mut addresses): (Vec<Frame>, [Vec<u64>; 2]) = Default::default();
            for (step, at) in steps {
                let side = at.index(2);
                match step {
                    0 => owned.extend(umem.take()),
                    1 if !owned.is_empty() => drop(owned.swap_remove(at.index(owned.len()))),
                    2 if !owned.is_empty() => {
                        let frame = owned.swap_remove(at.index(owned.len()));
                        addresses[side].push(lent[side].lend(frame).ok().unwrap());
                    }
                    3 if !addresses[side].is_empty() => {
                        let address = addresses[side].swap_remove(at.index(addresses[side].len()));
                        owned.push(lent[side].reclaim(address).unwrap());
                    }
                    4 => prop_assert!(addresses[side].first().is_none_or(|address| lent[1 - side].reclaim(*address).is_none())),
                    _ => {}
                }
                let kernels = addresses[0].len() + addresses[1].len();
                prop_assert_eq!(umem.free() + owned.len() + kernels, 16);
                let mut chunks: Vec<_> = owned.iter().map(|frame| frame.bytes().as_ptr()).collect();
                chunks.sort();
                chunks.dedup();
                prop_assert_eq!(chunks.len(), owned.len());
            }
        }
    }
}
