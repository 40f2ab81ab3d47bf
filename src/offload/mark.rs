//! stub: the MarkPool; Mark itself is final
use std::fmt;
use std::num::NonZeroU32;

/// A flow mark: the number that a device stamps on the packets of a flow. 0 is no mark.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Mark(pub NonZeroU32);

impl Mark {
    pub fn new(value: u32) -> Option<Mark> {
        NonZeroU32::new(value).map(Mark)
    }

    #[inline]
    pub fn index(self) -> usize {
        self.0.get() as usize
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
