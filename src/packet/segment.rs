//! stub
use super::{Packet, Pool};
/// Finishes what `packet` left to a device.
pub fn finish(
    _packet: Packet,
    _pool: &mut Pool,
    _checksum_too: bool,
    _into: &mut Vec<Packet>,
) -> Result<(), SegmentError> {
    todo!()
}
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SegmentError {
    Malformed,
}
