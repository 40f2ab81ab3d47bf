//! stub
use super::Packet;
use crate::flow::Set;
/// Why an edit left a packet as it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EditError {
    NoHeadroom,
    Absent,
}
pub fn push_vlan(_packet: &mut Packet, _tpid: u16, _tci: u16) -> Result<(), EditError> {
    todo!()
}
pub fn pop_vlan(_packet: &mut Packet) -> Result<(), EditError> {
    todo!()
}
pub fn set(_packet: &mut Packet, _set: &Set) -> Result<(), EditError> {
    todo!()
}
