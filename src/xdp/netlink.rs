//! What interfaces tell of XDP: which program is attached (rtnetlink(7)), and whether a driver takes redirected frames (the `netdev` family
//! of generic netlink, `Documentation/netlink/specs/netdev.yaml` of the kernel).
//!
//! # Thread-safety
//! Each call has a socket of its own. None is made for a packet.

use std::io;

use netlink_packet_core::{
    DefaultNla, Emitable, ErrorContext as _, NLM_F_ACK, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable, Nla, NlasIterator, Parseable, ParseableParametrized,
};
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage, LinkXdp};
use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};

/// The XDP program attached to the interface of this index, in whichever mode.
///
/// # Errors
/// No such interface.
pub fn attached_program(interface: u32) -> io::Result<Option<u32>> {
    Ok(programs(link(interface, None)?).find_map(|attribute| match attribute {
        LinkXdp::ProgId(id) | LinkXdp::DrvProgId(id) | LinkXdp::SkbProgId(id) => Some(id).filter(|id| *id != 0),
        _ => None,
    }))
}

/// Whether the other end of the veth of this index, in whichever network namespace, has a program in generic mode. `None`: it is no veth.
///
/// # Errors
/// The other end is gone, or we have no privilege where it is.
pub fn peer_is_generic(interface: u32) -> io::Result<Option<bool>> {
    let (mut is_veth, mut peer, mut place) = (false, None, None);
    for attribute in link(interface, None)? {
        match attribute {
            LinkAttribute::LinkInfo(info) => is_veth = info.contains(&LinkInfo::Kind(InfoKind::Veth)),
            LinkAttribute::Link(index) => peer = Some(index),
            LinkAttribute::LinkNetNsId(id) => place = Some(id),
            _ => {}
        }
    }
    let Some(peer) = peer.filter(|_| is_veth) else { return Ok(None) };
    let is_one = |attribute| matches!(attribute, LinkXdp::SkbProgId(id) if id != 0);
    Ok(Some(programs(link(peer, place)?).any(is_one)))
}

/// What the kernel says of an interface, in our network namespace or in that of number `place`.
fn link(interface: u32, place: Option<i32>) -> io::Result<Vec<LinkAttribute>> {
    let mut message = LinkMessage::default();
    message.header.index = interface;
    message.attributes.extend(place.map(LinkAttribute::IfNetnsId));
    match ask(NETLINK_ROUTE, 0, RouteNetlinkMessage::GetLink(message).into())? {
        Some(RouteNetlinkMessage::NewLink(link)) => Ok(link.attributes),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn programs(link: Vec<LinkAttribute>) -> impl Iterator<Item = LinkXdp> {
    let xdp = link.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::Xdp(xdp) => Some(xdp),
        _ => None,
    });
    xdp.unwrap_or_default().into_iter()
}

/// Detaches whatever program is attached without a link.
///
/// # Errors
/// It is held by a link, or no such interface.
pub fn detach_program(interface: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = interface;
    message.attributes.push(LinkAttribute::Xdp(vec![LinkXdp::Fd(-1)]));
    ask(NETLINK_ROUTE, NLM_F_ACK, RouteNetlinkMessage::SetLink(message).into()).map(drop)
}

/// Whether the driver of the interface of this index sends frames that programs redirect there, as of now: veth's does while its peer has a
/// program, or GRO. `None` where the kernel, older than 6.3, does not tell.
pub fn takes_redirects(interface: u32) -> io::Result<Option<bool>> {
    let family = GenlCtrl {
        cmd: GenlCtrlCmd::GetFamily,
        nlas: vec![GenlCtrlAttrs::FamilyName(Netdev::family_name().to_owned())],
    };
    let family = match ask(NETLINK_GENERIC, 0, GenlMessage::from_payload(family).into()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        answer => answer?,
    };
    let family = family.and_then(|family| {
        family.payload.nlas.into_iter().find_map(|attribute| match attribute {
            GenlCtrlAttrs::FamilyId(id) => Some(id),
            _ => None,
        })
    });
    let Some(family) = family else { return Ok(None) };
    let mut request =
        GenlMessage::from_payload(Netdev(vec![DefaultNla::new(IFINDEX, interface.to_ne_bytes().to_vec())]));
    request.set_resolved_family_id(family);
    let Some(answer) = ask(NETLINK_GENERIC, 0, request.into())? else { return Ok(None) };
    Ok(answer.payload.0.iter().find(|attribute| attribute.kind() == XDP_FEATURES).map(|attribute| {
        let mut bytes = [0; 8];
        attribute.emit_value(&mut bytes[..attribute.value_len().min(8)]);
        u64::from_ne_bytes(bytes) & NDO_XMIT != 0
    }))
}

/// `NETDEV_A_DEV_IFINDEX`, `NETDEV_A_DEV_XDP_FEATURES` and `NETDEV_CMD_DEV_GET`.
const IFINDEX: u16 = 1;
const XDP_FEATURES: u16 = 3;
const DEV_GET: u8 = 1;

/// `NETDEV_XDP_ACT_NDO_XMIT`.
const NDO_XMIT: u64 = 4;

/// A message of the `netdev` family about one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Netdev(Vec<DefaultNla>);

impl GenlFamily for Netdev {
    fn family_name() -> &'static str {
        "netdev"
    }

    fn command(&self) -> u8 {
        DEV_GET
    }

    fn version(&self) -> u8 {
        1
    }
}

impl Emitable for Netdev {
    fn buffer_len(&self) -> usize {
        self.0.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.0.as_slice().emit(buffer);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for Netdev {
    fn parse_with_param(bytes: &[u8], _: GenlHeader) -> Result<Netdev, netlink_packet_core::DecodeError> {
        let attributes = NlasIterator::new(bytes).map(|attribute| {
            attribute.and_then(|attribute| DefaultNla::parse(&attribute)).context("an attribute of netdev")
        });
        attributes.collect::<Result<_, _>>().map(Netdev)
    }
}

/// Sends a request to the kernel; its answer, or `None` when it only acknowledges.
fn ask<T: NetlinkSerializable + NetlinkDeserializable>(
    protocol: isize,
    flags: u16,
    payload: NetlinkPayload<T>,
) -> io::Result<Option<T>> {
    let mut request = NetlinkMessage::new(NetlinkHeader::default(), payload);
    request.header.flags = NLM_F_REQUEST | flags;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&bytes, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<T>::deserialize(&answer).map_err(io::Error::other)?;
    match answer.payload {
        NetlinkPayload::InnerMessage(message) => Ok(Some(message)),
        NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
        _ => Ok(None),
    }
}
