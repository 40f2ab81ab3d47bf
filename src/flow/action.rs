//! What is done with the packets of a flow: [`Actions`], an ordered list of [`Action`].
//!
//! # Thread-safety
//! Immutable once made, and shared by reference count: a flow, its dump and the device's copy are one list.

use std::sync::Arc;

use super::field::Field;
use super::key::PortNo;

/// One step. A list without an [`Action::Output`] drops.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Send the packet as it is now.
    Output(PortNo),
    /// Put a VLAN tag in front of those there are. `tci` holds pcp, cfi (1 in every tag that we push by rule) and vid.
    PushVlan { tpid: u16, tci: u16 },
    /// Take the outermost VLAN tag away; a packet without one stays as it is.
    PopVlan,
    /// Rewrite fields of one header. Checksums follow.
    Set(Set),
}

/// A rewrite of one header: never empty, all fields of the same [`Header`], in the order they were written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Set {
    header: Header,
    assigns: Arc<[Assign]>,
}

/// `field = (field & !mask) | value`; `value` holds no bit that `mask` does not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Assign {
    pub field: Field,
    pub value: u128,
    pub mask: u128,
}

impl Assign {
    /// Replaces the whole field.
    pub fn full(field: Field, value: u128) -> Assign {
        Assign { field, value: value & field.full(), mask: field.full() }
    }
}

/// The headers that [`Set`] can rewrite, as the ODP syntax names them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Header {
    Eth,
    Vlan,
    Ipv4,
    Ipv6,
    Tcp,
    Udp,
    Sctp,
}

impl Header {
    /// The name in `set(NAME(…))`.
    pub fn name(self) -> &'static str {
        match self {
            Header::Eth => "eth",
            Header::Vlan => "vlan",
            Header::Ipv4 => "ipv4",
            Header::Ipv6 => "ipv6",
            Header::Tcp => "tcp",
            Header::Udp => "udp",
            Header::Sctp => "sctp",
        }
    }

    /// The fields that can be rewritten in it.
    pub fn fields(self) -> &'static [Field] {
        match self {
            Header::Eth => &[Field::EthSrc, Field::EthDst],
            Header::Vlan => &[Field::Vlan0Vid, Field::Vlan0Pcp],
            Header::Ipv4 => &[Field::Ipv4Src, Field::Ipv4Dst, Field::IpTos, Field::IpTtl],
            Header::Ipv6 => &[Field::Ipv6Src, Field::Ipv6Dst, Field::Ipv6Label, Field::IpTos, Field::IpTtl],
            Header::Tcp | Header::Udp | Header::Sctp => &[Field::TpSrc, Field::TpDst],
        }
    }
}

/// Why a [`Set`] cannot be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SetError {
    #[error("set({}()) names no field", header.name())]
    Empty { header: Header },
    #[error("{} cannot be set in {}", field.name(), header.name())]
    Field { header: Header, field: Field },
}

impl Set {
    /// Checks that there is something to set and that each field can be set in `header`.
    pub fn new(header: Header, assigns: &[Assign]) -> Result<Set, SetError> {
        if assigns.is_empty() {
            return Err(SetError::Empty { header });
        }
        if let Some(bad) = assigns.iter().find(|a| !header.fields().contains(&a.field)) {
            return Err(SetError::Field { header, field: bad.field });
        }
        let assigns = assigns.iter().map(|a| Assign { value: a.value & a.mask, ..*a }).collect();
        Ok(Set { header, assigns })
    }

    pub fn header(&self) -> Header {
        self.header
    }

    pub fn assigns(&self) -> &[Assign] {
        &self.assigns
    }
}

/// An ordered list of actions; empty = drop.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Actions(Arc<[Action]>);

impl Actions {
    pub fn new(list: Vec<Action>) -> Actions {
        Actions(list.into())
    }

    pub fn drop() -> Actions {
        Actions(Arc::from([]))
    }

    /// Whether no packet leaves.
    pub fn is_drop(&self) -> bool {
        !self.0.iter().any(|a| matches!(a, Action::Output(_)))
    }

    /// The ports that packets leave by, in order, with repeats.
    pub fn outputs(&self) -> impl Iterator<Item = PortNo> + '_ {
        self.0.iter().filter_map(|a| match a {
            Action::Output(port) => Some(*port),
            _ => None,
        })
    }
}

impl std::ops::Deref for Actions {
    type Target = [Action];

    fn deref(&self) -> &[Action] {
        &self.0
    }
}

impl FromIterator<Action> for Actions {
    fn from_iter<I: IntoIterator<Item = Action>>(iter: I) -> Self {
        Actions(iter.into_iter().collect())
    }
}
