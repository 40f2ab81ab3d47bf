//! stub
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lookup {
    pub vlan: u16,
    pub mac: u64,
    pub found: Option<crate::flow::PortNo>,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Station {
    pub vlan: u16,
    pub mac: u64,
    pub port: crate::flow::PortNo,
}
