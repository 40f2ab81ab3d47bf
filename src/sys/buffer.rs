//! [`Buffer`]: a packet's memory, from the heap or from a [`Umem`], with one way to its bytes for both.
//!
//! # Thread-safety
//! One owner, which may be any thread.

use std::ptr::NonNull;
use std::sync::Arc;

use super::umem::{CHUNK, Frame, Umem};

/// Owned bytes.
pub struct Buffer {
    place: NonNull<u8>,
    len: u32,
    /// Of the chunk, where there is one.
    chunk: u32,
    /// `None`: the heap.
    umem: Option<Arc<Umem>>,
}

impl Buffer {
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `len` initialized bytes, of a box or of a frame that was forgotten when this was made of it, so that they are this one's alone and live
        // until it is dropped.
        unsafe { std::slice::from_raw_parts(self.place.as_ptr(), self.len as usize) }
    }

    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.place.as_ptr(), self.len as usize) }
    }

    #[inline]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The frame that this is.
    ///
    /// # Errors
    /// It is of the heap.
    #[inline]
    pub fn into_frame(mut self) -> Result<Frame, Buffer> {
        match self.umem.take() {
            None => Err(self),
            Some(umem) => {
                let chunk = self.chunk;
                std::mem::forget(self);
                // SAFETY: the memory and the chunk are of the frame that this was made of, and this is not dropped.
                Ok(unsafe { Frame::from_parts(umem, chunk) })
            }
        }
    }

    /// Whether it is a chunk of this memory.
    #[inline]
    pub fn is_of(&self, umem: &Arc<Umem>) -> bool {
        self.umem.as_ref().is_some_and(|mine| Arc::ptr_eq(mine, umem))
    }
}

impl From<Box<[u8]>> for Buffer {
    /// # Panics
    /// If it is 4 GiB or longer.
    #[inline]
    fn from(bytes: Box<[u8]>) -> Buffer {
        let len = u32::try_from(bytes.len()).expect("no packet is that long");
        // SAFETY: a box's pointer is not null.
        let place = unsafe { NonNull::new_unchecked(Box::into_raw(bytes).cast::<u8>()) };
        Buffer { place, len, chunk: 0, umem: None }
    }
}

impl From<Frame> for Buffer {
    #[inline]
    fn from(frame: Frame) -> Buffer {
        let (umem, chunk, place) = frame.into_parts();
        Buffer { place, len: CHUNK as u32, chunk, umem: Some(umem) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        match self.umem.take() {
            // SAFETY: the memory and the chunk are of the frame that this was made of; it is not used again.
            Some(umem) => drop(unsafe { Frame::from_parts(umem, self.chunk) }),
            None => {
                let bytes = std::ptr::slice_from_raw_parts_mut(self.place.as_ptr(), self.len as usize);
                // SAFETY: the pointer and the length of the box that this was made of, which nobody else has.
                drop(unsafe { Box::from_raw(bytes) });
            }
        }
    }
}

// SAFETY: it owns its bytes, which are bound to no thread.
unsafe impl Send for Buffer {}
// SAFETY: shared, it only lets its bytes be read.
unsafe impl Sync for Buffer {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_the_same_before_and_after_and_is_freed_either_way() {
        let umem = Umem::new(2).unwrap();
        let mut buffer = Buffer::from(umem.take().unwrap());
        buffer.bytes_mut()[CHUNK - 1] = 7;
        assert!(buffer.is_of(&umem));
        let frame = buffer.into_frame().ok().unwrap();
        assert_eq!((frame.bytes()[CHUNK - 1], umem.free()), (7, 1));
        drop(Buffer::from(frame));
        assert_eq!((umem.free(), Arc::strong_count(&umem)), (2, 1));
    }

    #[test]
    fn bytes_of_the_heap_are_no_frame() {
        let buffer = Buffer::from(vec![1, 2, 3].into_boxed_slice()).into_frame().err().unwrap();
        assert_eq!(buffer.bytes(), [1, 2, 3]);
    }
}
