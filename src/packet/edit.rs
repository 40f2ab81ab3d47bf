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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::Key;
    use crate::packet::checksum::{pseudo_ipv4, pseudo_ipv6};
    use crate::packet::compose::{compose, keys};
    use crate::packet::extract::extract;
    use proptest::prelude::*;

    /// The sums that must be 0xffff (or the CRC that must be the field), all recomputed; a first fragment counts as its datagram.
    fn checksums_are_right(packet: &Packet) -> bool {
        let layers = extract::layers(packet);
        let bytes = packet.bytes();
        let header = &bytes[layers.network_at..];
        let message = &bytes[layers.transport_at..layers.end.max(layers.transport_at)];
        let ip = layers.network != Network::Ipv4
            || Sum::of(&bytes[layers.network_at..layers.transport_at]).folded() == 0xffff;
        let pseudo = match layers.network {
            Network::Ipv4 => pseudo_ipv4(header[12..].first_chunk().unwrap(), layers.proto, message.len() as u32),
            Network::Ipv6 => pseudo_ipv6(header[8..].first_chunk().unwrap(), layers.proto, message.len() as u32),
            Network::Other => return true,
        };
        ip && match layers.transport {
            Transport::Tcp | Transport::Udp | Transport::Icmp6 => pseudo.plus(Sum::of(message)).folded() == 0xffff,
            Transport::Icmp => Sum::of(message).folded() == 0xffff,
            Transport::Sctp if layers.frag == frag::NO => {
                crc32c::of(&[&message[..8], &[0; 4], &message[12..]]).to_le_bytes() == message[8..12]
            }
            Transport::Sctp | Transport::None => true,
        }
    }

    fn header() -> impl Strategy<Value = Header> {
        use Header::*;
        prop_oneof![Just(Eth), Just(Vlan), Just(Ipv4), Just(Ipv6), Just(Tcp), Just(Udp), Just(Sctp)]
    }

    /// A rewrite of one to four fields of `header`, some in part.
    fn rewrite_of(header: Header) -> impl Strategy<Value = Set> {
        let assign = (0..header.fields().len(), any::<u128>(), any::<u128>(), any::<bool>());
        proptest::collection::vec(assign, 1..5).prop_map(move |list| {
            let assigns: Vec<Assign> = list
                .into_iter()
                .map(|(i, value, mask, whole)| {
                    let field = header.fields()[i];
                    let full = Assign::full(field, value);
                    if whole { full } else { Assign { mask: mask & full.mask, ..full } }
                })
                .collect();
            Set::new(header, &assigns).expect("fields of the header")
        })
    }

    /// The keys' own reading of what [`set`] shall do.
    fn expected(key: &Key, set: &Set) -> Result<Key, EditError> {
        let proto = |p| matches!(key.eth_type(), 0x0800 | 0x86dd) && key.ip_proto() == p && key.get(Field::IpFrag) != 3;
        let has = match set.header() {
            Header::Eth => true,
            Header::Vlan => key.has_vlan(),
            Header::Ipv4 => key.eth_type() == 0x0800,
            Header::Ipv6 => key.eth_type() == 0x86dd,
            Header::Tcp => proto(6),
            Header::Udp => proto(17),
            Header::Sctp => proto(132),
        };
        let mut key = *key;
        for assign in set.assigns() {
            key.set(assign.field, key.get(assign.field) & !assign.mask | assign.value);
        }
        if has { Ok(key) } else { Err(EditError::Absent) }
    }

    proptest! {
        #[test]
        fn a_set_changes_its_fields_and_nothing_else_and_all_checksums_stay_right(
            key in keys::key(), len in 0usize..300, set in header().prop_flat_map(rewrite_of),
        ) {
            let mut packet = Packet::from_bytes(&compose(&key, len));
            let before = packet.bytes().to_vec();
            prop_assert!(checksums_are_right(&packet), "as composed");
            let done = super::set(&mut packet, &set);
            match expected(&key, &set) {
                Ok(key) => {
                    prop_assert_eq!(done, Ok(()));
                    prop_assert_eq!(extract(&packet), key);
                    prop_assert!(checksums_are_right(&packet));
                }
                Err(error) => {
                    prop_assert_eq!(done, Err(error));
                    prop_assert_eq!(packet.bytes(), &before[..]);
                }
            }
        }

        #[test]
        fn a_set_of_any_bytes_changes_at_most_bytes_and_never_their_number(
            bytes in proptest::collection::vec(any::<u8>(), 0..120), eth_type in 0usize..3, set in header().prop_flat_map(rewrite_of),
        ) {
            let mut bytes = bytes;
            if let Some(field) = bytes.get_mut(12..15) {
                field.copy_from_slice([&[8, 0, 0x45], &[0x86, 0xdd, 0x60], &[0x81, 0, 0]][eth_type]);
            }
            let mut packet = Packet::from_bytes(&bytes);
            let _ = super::set(&mut packet, &set);
            prop_assert_eq!(packet.len(), bytes.len());
        }

        #[test]
        fn an_unfinished_checksum_comes_out_right_whatever_is_set_before_it_is_finished(
            key in keys::key(), len in 0usize..300, set in header().prop_flat_map(rewrite_of),
        ) {
            let mut whole = Packet::from_bytes(&compose(&key, len));
            let layers = extract::layers(&whole);
            let offset = match layers.transport {
                Transport::Tcp => 16,
                Transport::Udp => 6,
                Transport::Sctp if layers.frag == frag::NO => 8,
                _ => return Ok(()),
            };
            // A kernel pads no frame that it has yet to finish.
            whole.set_len(layers.end);
            let mut partial = Packet::from_bytes(whole.bytes());
            partial.meta.offload.checksum =
                Some(PartialChecksum { start: layers.transport_at as u16, offset });
            let message = &mut partial.bytes_mut()[layers.transport_at..];
            if offset == 8 {
                message[8..12].fill(0);
            } else {
                let field = usize::from(offset)..usize::from(offset) + 2;
                let finished = u16::from_be_bytes(message[field.clone()].try_into().unwrap());
                message[field.clone()].fill(0);
                // The sum of the pseudo-header is what the message's own sum leaves of the finished one.
                let pseudo = Sum::default().word(!finished).word(!Sum::of(message).folded()).folded();
                message[field].copy_from_slice(&pseudo.to_be_bytes());
            }
            prop_assert_eq!(super::set(&mut whole, &set), super::set(&mut partial, &set));
            prop_assert_eq!(super::push_vlan(&mut whole, 0x8100, 7), super::push_vlan(&mut partial, 0x8100, 7));
            let mut into = Vec::new();
            crate::packet::segment::finish(partial, &mut crate::packet::Pool::new(), true, &mut into).unwrap();
            prop_assert!(super::pop_vlan(&mut into[0]).is_ok());
            prop_assert!(checksums_are_right(&into[0]));
            prop_assert_eq!(extract(&into[0]), { super::pop_vlan(&mut whole).unwrap(); extract(&whole) });
        }

        #[test]
        fn a_pushed_tag_is_the_outermost_and_popping_it_restores_the_frame(key in keys::key(), tci: u16, qinq: bool) {
            let mut packet = Packet::from_bytes(&compose(&key, 0));
            let before = packet.bytes().to_vec();
            let tpid = if qinq { 0x88a8 } else { 0x8100 };
            push_vlan(&mut packet, tpid, tci).unwrap();
            let tagged = extract(&packet);
            prop_assert_eq!(tagged.get(Field::Vlan0Tpid), u128::from(tpid));
            prop_assert_eq!(tagged.get(Field::Vlan0Vid), u128::from(tci & 0xfff));
            prop_assert_eq!(tagged.get(Field::Vlan0Pcp), u128::from(tci >> 13));
            prop_assert_eq!(tagged.get(Field::Vlan1Vid), key.get(Field::Vlan0Vid));
            pop_vlan(&mut packet).unwrap();
            prop_assert_eq!(packet.bytes(), &before[..]);
        }
    }

    #[test]
    fn udp_without_a_checksum_stays_without() {
        let mut key = Key::ZERO;
        key.set(Field::EthType, 0x0800u16);
        key.set(Field::IpProto, 17u8);
        let mut packet = Packet::from_bytes(&compose(&key, 0));
        packet.bytes_mut()[40..42].fill(0);
        let change = |header, field| Set::new(header, &[Assign::full(field, 0x1234)]).unwrap();
        set(&mut packet, &change(Header::Udp, Field::TpDst)).unwrap();
        set(&mut packet, &change(Header::Ipv4, Field::Ipv4Src)).unwrap();
        assert_eq!(packet.bytes()[40..42], [0, 0]);
        assert_eq!(packet.bytes()[36..38], [0x12, 0x34]);
    }

    #[test]
    fn a_wrong_crc_stays_as_wrong_as_it_was() {
        let mut key = Key::ZERO;
        key.set(Field::EthType, 0x0800u16);
        key.set(Field::IpProto, 132u8);
        let mut packet = Packet::from_bytes(&compose(&key, 100));
        packet.bytes_mut()[42] ^= 0x10;
        set(&mut packet, &Set::new(Header::Sctp, &[Assign::full(Field::TpDst, 99)]).unwrap()).unwrap();
        assert!(!checksums_are_right(&packet));
        packet.bytes_mut()[42] ^= 0x10;
        assert!(checksums_are_right(&packet));
    }

    #[test]
    fn a_tag_without_headroom_is_refused_and_a_tagless_frame_no_tag() {
        let mut packet = Packet::from_bytes(&[0; 60]);
        assert_eq!(pop_vlan(&mut packet), Err(EditError::Absent));
        for _ in 0..crate::packet::HEADROOM / 4 {
            push_vlan(&mut packet, 0x8100, 1).unwrap();
        }
        assert_eq!(push_vlan(&mut packet, 0x8100, 1), Err(EditError::NoHeadroom));
        assert_eq!(packet.len(), 60 + crate::packet::HEADROOM);
        assert_eq!(push_vlan(&mut Packet::from_bytes(&[0; 13]), 0x8100, 1), Err(EditError::Absent));
    }
}
