//! stub
use super::{OpenError, Port, PortSpec};
use crate::flow::PortNo;

pub fn open(_spec: &PortSpec, _number: PortNo) -> Result<Box<dyn Port>, OpenError> {
    todo!()
}
