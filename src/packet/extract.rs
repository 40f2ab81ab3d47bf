//! stub
use super::Packet;
use crate::flow::Key;
/// The key of `packet`.
pub fn extract(_packet: &Packet) -> Key {
    todo!()
}
