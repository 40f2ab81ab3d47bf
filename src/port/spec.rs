//! [`PortSpec`]: a port as people write it, `NAME[,type=KIND][,option=value…]`.

use std::collections::BTreeMap;

use crate::flow::PortNo;

/// What is behind a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Sim,
    Pcap,
    Tap,
    Packet,
}

/// A port as it was asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortSpec {
    pub name: String,
    pub kind: Kind,
    /// `port_no=`; else the lowest free number from 1.
    pub number: Option<PortNo>,
    /// The other options, checked by the kind that they are for.
    pub options: BTreeMap<String, String>,
}
