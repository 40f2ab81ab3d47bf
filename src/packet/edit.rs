//! Rewriting headers in place, with every checksum that covers them kept as right, or as wrong, as it was.
//!
//! Checksums are amended by the difference (RFC 1624), so a frame that came damaged leaves damaged. What a kernel left
//! to the device ([`Offload`](super::Offload)) stays left: an unfinished checksum follows changed addresses, which are in the sum that
//! its field holds, and ignores changed ports, which the device has yet to add.
//!
//! A first fragment carries the checksum of its whole datagram and is amended like any other packet, but for SCTP:
//! a CRC depends on the number of bytes behind the change, and those are in fragments not seen here. Its ports change and its
//! CRC does not, so that the receiver drops the datagram.

use super::checksum::{Sum, crc32c};
use super::extract::{self, Layers, Network, Transport, is_vlan};
use super::{Packet, PartialChecksum};
use crate::flow::key::{frag, ip_proto};
use crate::flow::{Assign, Field, Header, Set};

/// Why an edit left a packet as it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EditError {
    #[error("no room in front of the frame for another VLAN tag")]
    NoHeadroom,
    #[error("the packet does not have the header")]
    Absent,
}

const TAG: usize = 4;
/// Both Ethernet addresses, which stay in front of every tag.
const ADDRESSES: usize = 12;

/// Puts a VLAN tag in front of those there are. Bit 12 of `tci`, which tells in a key that there is a tag, is 0 on the wire.
pub fn push_vlan(packet: &mut Packet, tpid: u16, tci: u16) -> Result<(), EditError> {
    if packet.len() < ADDRESSES + 2 {
        return Err(EditError::Absent);
    }
    if !packet.prepend(TAG) {
        return Err(EditError::NoHeadroom);
    }
    let frame = packet.bytes_mut();
    frame.copy_within(TAG..TAG + ADDRESSES, 0);
    frame[ADDRESSES..ADDRESSES + 2].copy_from_slice(&tpid.to_be_bytes());
    frame[ADDRESSES + 2..ADDRESSES + 4].copy_from_slice(&(tci & 0xefff).to_be_bytes());
    // A start this far behind is beyond all headers: it says nothing true before or after.
    shift(packet, |start| start.saturating_add(TAG as u16));
    Ok(())
}

/// Takes the outermost VLAN tag away.
pub fn pop_vlan(packet: &mut Packet) -> Result<(), EditError> {
    let frame = packet.bytes_mut();
    // The tag, and the type behind it.
    if frame.len() < ADDRESSES + TAG + 2 || !is_vlan(u16::from_be_bytes([frame[ADDRESSES], frame[ADDRESSES + 1]])) {
        return Err(EditError::Absent);
    }
    frame.copy_within(..ADDRESSES, TAG);
    packet.trim_front(TAG);
    shift(packet, |start| start.saturating_sub(TAG as u16));
    Ok(())
}

fn shift(packet: &mut Packet, by: impl Fn(u16) -> u16) {
    if let Some(PartialChecksum { start, .. }) = &mut packet.meta.offload.checksum {
        *start = by(*start);
    }
}

/// Rewrites the fields of one header.
pub fn set(packet: &mut Packet, set: &Set) -> Result<(), EditError> {
    let layers = extract::layers(packet);
    let header = set.header();
    let start = start_of(header, packet.len(), &layers).ok_or(EditError::Absent)?;

    // What changes in the header's own words, and of that in the addresses, which the transport checksum covers too.
    let (mut changed, mut addresses) = (Sum::default(), Sum::default());
    let mut ports = [0; 4];
    for assign in set.assigns() {
        let place = place_of(header, assign.field);
        let bytes = &mut packet.bytes_mut()[start + place.at..][..place.len];
        let (mut old, mut new) = ([0; 16], [0; 16]);
        old[..place.len].copy_from_slice(bytes);
        rewrite(bytes, place.shift, assign);
        new[..place.len].copy_from_slice(bytes);
        let difference = Sum::default().change(&old, &new);
        changed = changed.plus(difference);
        match assign.field {
            Field::Ipv6Dst if layers.routed => {}
            Field::Ipv4Src | Field::Ipv4Dst | Field::Ipv6Src | Field::Ipv6Dst => addresses = addresses.plus(difference),
            Field::TpSrc | Field::TpDst => {
                for i in 0..2 {
                    ports[place.at + i] ^= old[i] ^ new[i];
                }
            }
            _ => {}
        }
    }
    match header {
        Header::Eth | Header::Vlan => {}
        Header::Ipv4 => {
            amend(&mut packet.bytes_mut()[start + 10..], |checksum| changed.amend(checksum));
            amend_transport(packet, &layers, addresses, true);
        }
        Header::Ipv6 => amend_transport(packet, &layers, addresses, true),
        Header::Tcp | Header::Udp => amend_transport(packet, &layers, changed, false),
        Header::Sctp => amend_sctp(packet, &layers, ports),
    }
    Ok(())
}

/// Where `header` starts; `None` if the packet does not have it.
fn start_of(header: Header, len: usize, layers: &Layers) -> Option<usize> {
    let transport = |kind| (layers.transport == kind).then_some(layers.transport_at);
    match header {
        Header::Eth => (len >= ADDRESSES + 2).then_some(0),
        Header::Vlan => (layers.tags > 0).then_some(ADDRESSES),
        Header::Ipv4 => (layers.network == Network::Ipv4).then_some(layers.network_at),
        Header::Ipv6 => (layers.network == Network::Ipv6).then_some(layers.network_at),
        Header::Tcp => transport(Transport::Tcp),
        Header::Udp => transport(Transport::Udp),
        Header::Sctp => transport(Transport::Sctp),
    }
}

/// The bytes of a header that hold a field, on 16-bit borders as checksums want them, and the field's lowest bit in them.
struct Place {
    at: usize,
    len: usize,
    shift: u32,
}

fn place_of(header: Header, field: Field) -> Place {
    let (at, len, shift) = match (header, field) {
        (Header::Eth, Field::EthDst) => (0, 6, 0),
        (Header::Eth, _) => (6, 6, 0),
        (Header::Vlan, Field::Vlan0Pcp) => (2, 2, 13),
        (Header::Vlan, _) => (2, 2, 0),
        (Header::Ipv4, Field::IpTos) => (0, 2, 0),
        (Header::Ipv4, Field::IpTtl) => (8, 2, 8),
        (Header::Ipv4, Field::Ipv4Src) => (12, 4, 0),
        (Header::Ipv4, _) => (16, 4, 0),
        (Header::Ipv6, Field::IpTos) => (0, 2, 4),
        (Header::Ipv6, Field::Ipv6Label) => (0, 4, 0),
        (Header::Ipv6, Field::IpTtl) => (6, 2, 0),
        (Header::Ipv6, Field::Ipv6Src) => (8, 16, 0),
        (Header::Ipv6, _) => (24, 16, 0),
        (Header::Tcp | Header::Udp | Header::Sctp, Field::TpSrc) => (0, 2, 0),
        (Header::Tcp | Header::Udp | Header::Sctp, _) => (2, 2, 0),
    };
    Place { at, len, shift }
}

/// Assigns to the bits from `shift` up of the number that `bytes`, at most 16, are.
fn rewrite(bytes: &mut [u8], shift: u32, assign: &Assign) {
    let mut number = [0; 16];
    let number_at = 16 - bytes.len();
    number[number_at..].copy_from_slice(bytes);
    let new = u128::from_be_bytes(number) & !(assign.mask << shift) | assign.value << shift;
    bytes.copy_from_slice(&new.to_be_bytes()[number_at..]);
}

/// Replaces the checksum that `bytes` begins with.
fn amend(bytes: &mut [u8], by: impl FnOnce(u16) -> u16) {
    if let Some(field) = bytes.first_chunk_mut() {
        *field = by(u16::from_be_bytes(*field)).to_be_bytes();
    }
}

/// Lets the transport checksum follow a change of the addresses, or of what stands behind them.
fn amend_transport(packet: &mut Packet, layers: &Layers, changed: Sum, of_addresses: bool) {
    if layers.frag == frag::LATER {
        return;
    }
    let offset = match layers.proto {
        ip_proto::TCP => 16,
        ip_proto::UDP | UDP_LITE | DCCP => 6,
        ip_proto::ICMP6 if layers.network == Network::Ipv6 => 2,
        _ => return,
    };
    let at = layers.transport_at + offset;
    if at + 2 > layers.end {
        return;
    }
    let partial = packet.meta.offload.checksum.is_some_and(|c| usize::from(c.start) + usize::from(c.offset) == at);
    let udp = layers.proto == ip_proto::UDP;
    amend(&mut packet.bytes_mut()[at..], |checksum| match checksum {
        _ if partial && of_addresses => changed.word(checksum).folded(),
        _ if partial => checksum,
        // None was sent (RFC 768, RFC 6935), and none is sent on.
        0 if udp => 0,
        _ if udp => changed.word(!checksum).udp_checksum(),
        _ => changed.amend(checksum),
    });
}

// They have no fields in the key, but their checksums cover the addresses (RFC 3828, RFC 4340 §9.1).
const UDP_LITE: u8 = 136;
const DCCP: u8 = 33;

/// Lets the CRC of an SCTP packet follow its ports; `difference` is old xor new of both.
fn amend_sctp(packet: &mut Packet, layers: &Layers, difference: [u8; 4]) {
    let at = layers.transport_at + 8;
    let partial = packet.meta.offload.checksum.is_some_and(|c| usize::from(c.start) + usize::from(c.offset) == at);
    if layers.frag != frag::NO || partial {
        return;
    }
    let behind = layers.end - layers.transport_at - difference.len();
    if let Some(field) = packet.bytes_mut()[at..].first_chunk_mut() {
        *field = (u32::from_le_bytes(*field) ^ crc32c::change(&difference, behind)).to_le_bytes();
    }
}
