//! [`finish`]: doing what a kernel left to the device, where the output port cannot: partial checksums and segmentation.
//!
//! ```text
//!  one frame  │ Ethernet, tags │ IP, options │ TCP or UDP │ payload ─────────────────────────────── │
//!  becomes    │ Ethernet, tags │ IP, options │ TCP or UDP │ size bytes │
//!             │ Ethernet, tags │ IP, options │ TCP or UDP │ size bytes │
//!             │ Ethernet, tags │ IP, options │ TCP or UDP │ the rest │
//!                                 lengths, IPv4 identification, TCP sequence and flags, checksums anew
//! ```
//!
//! What a packet asks for comes from another kernel, by a virtio-net header, and is checked as if it came from the wire.

use super::checksum::{Sum, crc32c, pseudo_ipv4, pseudo_ipv6};
use super::extract::{self, Layers, Network, Transport};
use super::{Meta, Offload, Packet, PartialChecksum, Pool, SegmentKind, Segmentation};
use crate::flow::key::frag;

/// The most frames that one may be cut into: 64 KiB in pieces of 32 bytes, so that a tiny segment size does not make
/// one frame take all memory. The smallest segments that TCP and UDP send in earnest are larger.
pub const MAX_PIECES: usize = 2_048;

/// Why a frame could not be finished. It was dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SegmentError {
    #[error("the checksum to finish lies outside the frame")]
    Checksum,
    #[error(
        "the frame is not of the kind it is to be cut as, is a fragment, or has an IPv6 routing header not yet done with"
    )]
    Headers,
    #[error("the segment size is 0, makes more than {MAX_PIECES} frames, or makes one longer than IP can say")]
    Size,
}

/// Appends to `into` the frames that `packet` stands for, segmented, and with finished checksums if `checksum_too`; else
/// with partial ones, but for SCTP: its CRC is always finished, because a virtio-net header cannot ask for one.
/// Buffers come from and go to `pool`; what is known of the packet goes with each piece.
///
/// # Errors
/// The packet asks for what cannot be; it is given to the pool and `into` is as it was.
pub fn finish(
    mut packet: Packet,
    pool: &mut Pool,
    checksum_too: bool,
    into: &mut Vec<Packet>,
) -> Result<(), SegmentError> {
    let Offload { checksum, segment } = packet.meta.offload;
    let result = match (segment, checksum) {
        (Some(segment), _) => {
            let result = cut(&packet, segment, pool, checksum_too, into);
            pool.give(packet);
            return result;
        }
        (None, Some(partial)) => complete(&mut packet, partial, checksum_too),
        (None, None) => Ok(()),
    };
    match result {
        Ok(()) => into.push(packet),
        Err(_) => pool.give(packet),
    }
    result
}

/// Whether `packet` can leave as it is by a port that finishes partial checksums (`tx_checksum`) and segments (`tx_segment`).
#[inline]
pub fn is_finished(packet: &Packet, tx_checksum: bool, tx_segment: bool) -> bool {
    let Offload { checksum, segment } = packet.meta.offload;
    (segment.is_none() || tx_segment) && checksum.is_none_or(|c| tx_checksum && c.offset != SCTP_CHECKSUM)
}

/// Whether the longest frame that `packet` stands for fits `mtu`, which counts neither the Ethernet header nor VLAN tags.
#[inline]
pub fn fits(packet: &Packet, mtu: usize) -> bool {
    packet.len() <= mtu + 14 || wire_len(packet) <= mtu
}

/// The length of the longest frame that `packet` stands for, without Ethernet header and VLAN tags, to be compared with an MTU.
pub fn wire_len(packet: &Packet) -> usize {
    let layers = extract::layers(packet);
    let link = 14 + 4 * layers.tags;
    let longest = packet.meta.offload.segment.and_then(|segment| {
        let payload_at = payload_at(packet.bytes(), &layers, segment.kind).ok()?;
        Some(payload_at + usize::from(segment.size).min(layers.end - payload_at))
    });
    longest.unwrap_or(packet.len()).saturating_sub(link)
}

/// Where SCTP's checksum is in its header. No other protocol has one there.
const SCTP_CHECKSUM: u16 = 8;

/// Where UDP's is; so is that of UDP-Lite and DCCP, to which 0 and 0xffff are the same.
const UDP_CHECKSUM: usize = 6;

/// Finishes a partial checksum in place.
fn complete(packet: &mut Packet, partial: PartialChecksum, wanted: bool) -> Result<(), SegmentError> {
    let (start, offset) = (usize::from(partial.start), usize::from(partial.offset));
    let sctp = partial.offset == SCTP_CHECKSUM;
    if !sctp && !wanted {
        return Ok(());
    }
    let covered = packet.bytes_mut().get_mut(start..).ok_or(SegmentError::Checksum)?;
    if sctp {
        let field = covered.get_mut(8..12).ok_or(SegmentError::Checksum)?;
        field.fill(0);
        let crc = crc32c::of(&[covered]);
        covered[8..12].copy_from_slice(&crc.to_le_bytes());
    } else {
        let sum = Sum::of(covered);
        let field = covered.get_mut(offset..offset + 2).ok_or(SegmentError::Checksum)?;
        let checksum = if offset == UDP_CHECKSUM { sum.udp_checksum() } else { sum.checksum() };
        field.copy_from_slice(&checksum.to_be_bytes());
    }
    packet.meta.offload.checksum = None;
    Ok(())
}

/// Where the payload begins of a frame to be cut as `kind`.
fn payload_at(frame: &[u8], layers: &Layers, kind: SegmentKind) -> Result<usize, SegmentError> {
    use {Network::*, SegmentKind as K, Transport as T};
    let header = match (kind, layers.network, layers.transport) {
        (K::TcpIpv4, Ipv4, T::Tcp) | (K::TcpIpv6, Ipv6, T::Tcp) => {
            usize::from(frame[layers.transport_at + 12] >> 4) * 4
        }
        (K::Udp, Ipv4 | Ipv6, T::Udp) => 8,
        _ => return Err(SegmentError::Headers),
    };
    let at = layers.transport_at + header;
    let short = kind != K::Udp && header < 20;
    if short || at > layers.end || layers.frag != frag::NO || layers.routed {
        Err(SegmentError::Headers)
    } else {
        Ok(at)
    }
}

/// Appends the pieces of `packet` to `into`.
fn cut(
    packet: &Packet,
    segment: Segmentation,
    pool: &mut Pool,
    checksum_too: bool,
    into: &mut Vec<Packet>,
) -> Result<(), SegmentError> {
    let layers = extract::layers(packet);
    let frame = packet.bytes();
    let payload_at = payload_at(frame, &layers, segment.kind)?;
    let payload = &frame[payload_at..layers.end];
    let size = usize::from(segment.size);
    let longest = payload_at - layers.network_at + size.min(payload.len());
    if size == 0 || payload.len().div_ceil(size) > MAX_PIECES || longest > usize::from(u16::MAX) {
        return Err(SegmentError::Size);
    }

    // The headers of each piece: those of the frame, without the jumbo payload option if there is one.
    let jumbo = jumbo_option(frame, &layers);
    let (left_out_at, left_out) = jumbo.map_or((payload_at, 0), |at| (at, JUMBO_OPTION));
    let headers = payload_at - left_out;
    let piece = Piece {
        segment,
        network_at: layers.network_at,
        transport_at: layers.transport_at - left_out,
        proto: layers.proto,
        v6: layers.network == Network::Ipv6,
        partial_at: (!checksum_too)
            .then(|| u16::try_from(layers.transport_at - left_out).map_err(|_| SegmentError::Headers))
            .transpose()?,
        unchecked: segment.kind == SegmentKind::Udp
            && packet.meta.offload.checksum.is_none()
            && frame[layers.transport_at + 6..][..2] == [0, 0],
    };

    let count = payload.len().div_ceil(size).max(1);
    for i in 0..count {
        let chunk = &payload[i * size..payload.len().min((i + 1) * size)];
        // Never too long: IP's 65,535 bytes, Ethernet's header and two tags are less than MAX_FRAME.
        let Some(mut out) = pool.take_for(headers + chunk.len()) else { return Err(SegmentError::Size) };
        out.set_len(headers + chunk.len());
        out.meta = Meta { offload: Offload::default(), ..packet.meta };
        let bytes = out.bytes_mut();
        bytes[..left_out_at].copy_from_slice(&frame[..left_out_at]);
        bytes[left_out_at..headers].copy_from_slice(&frame[left_out_at + left_out..payload_at]);
        bytes[headers..].copy_from_slice(chunk);
        if let Some(at) = jumbo {
            bytes[layers.network_at + 6] = frame[at];
        }
        out.meta.offload.checksum = piece.finish(bytes, i, i + 1 == count);
        into.push(out);
    }
    Ok(())
}

/// Bytes of a hop-by-hop header that holds the jumbo payload option and nothing else (RFC 2675 §2).
const JUMBO_OPTION: usize = 8;

/// Where that header stands, which may not stay in a datagram that is no longer a jumbogram.
fn jumbo_option(frame: &[u8], layers: &Layers) -> Option<usize> {
    let at = layers.network_at + 40;
    let no_length = layers.network == Network::Ipv6 && frame[layers.network_at + 4..][..3] == [0, 0, 0];
    (no_length && layers.transport_at >= at + JUMBO_OPTION && frame[at + 1..][..3] == [0, 0xc2, 4]).then_some(at)
}

/// What all pieces of a frame have in common.
struct Piece {
    segment: Segmentation,
    network_at: usize,
    transport_at: usize,
    proto: u8,
    v6: bool,
    /// The start of the partial checksum that each piece is to have; `None`: a finished one.
    partial_at: Option<u16>,
    /// UDP without a checksum.
    unchecked: bool,
}

const FIN_PSH: u8 = 0x09;
const CWR: u8 = 0x80;

impl Piece {
    /// Makes `bytes`, the frame's headers and the payload of piece `i`, a frame of its own. Says what checksum is left to do.
    fn finish(&self, bytes: &mut [u8], i: usize, last: bool) -> Option<PartialChecksum> {
        let (ip, message) = bytes[self.network_at..].split_at_mut(self.transport_at - self.network_at);
        let len = message.len();
        let pseudo = if self.v6 { self.ipv6(ip, len) } else { self.ipv4(ip, len, i) };
        let offset = match self.segment.kind {
            SegmentKind::Udp => {
                message[4..6].copy_from_slice(&(len as u16).to_be_bytes());
                6
            }
            SegmentKind::TcpIpv4 | SegmentKind::TcpIpv6 => {
                let sequence = u32::from_be_bytes([message[4], message[5], message[6], message[7]]);
                let sequence = sequence.wrapping_add(i as u32 * u32::from(self.segment.size));
                message[4..8].copy_from_slice(&sequence.to_be_bytes());
                if !last {
                    message[13] &= !FIN_PSH;
                }
                if i > 0 && self.segment.ecn {
                    message[13] &= !CWR;
                }
                16
            }
        };
        if self.unchecked {
            return None;
        }
        let put =
            |message: &mut [u8], checksum: u16| message[offset..offset + 2].copy_from_slice(&checksum.to_be_bytes());
        put(message, pseudo.folded());
        if let Some(start) = self.partial_at {
            return Some(PartialChecksum { start, offset: offset as u16 });
        }
        let sum = Sum::of(message);
        put(message, if self.segment.kind == SegmentKind::Udp { sum.udp_checksum() } else { sum.checksum() });
        None
    }

    /// Finishes an IPv4 header in front of `len` bytes; the sum of its pseudo-header.
    fn ipv4(&self, header: &mut [u8], len: usize, i: usize) -> Sum {
        let total = (header.len() + len) as u16;
        header[2..4].copy_from_slice(&total.to_be_bytes());
        let identification = u16::from_be_bytes([header[4], header[5]]).wrapping_add(i as u16);
        header[4..6].copy_from_slice(&identification.to_be_bytes());
        header[10..12].fill(0);
        let checksum = Sum::of(header).checksum();
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        // A header of 20 bytes at least holds both addresses.
        header[12..].first_chunk().map_or(Sum::default(), |addresses| pseudo_ipv4(addresses, self.proto, len as u32))
    }

    /// Finishes an IPv6 header and its extensions in front of `len` bytes; the sum of its pseudo-header.
    fn ipv6(&self, header: &mut [u8], len: usize) -> Sum {
        let length = (header.len() - 40 + len) as u16;
        header[4..6].copy_from_slice(&length.to_be_bytes());
        // A header of 40 bytes holds both addresses.
        header[8..].first_chunk().map_or(Sum::default(), |addresses| pseudo_ipv6(addresses, self.proto, len as u32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{Field, Key};
    use crate::packet::compose::compose;
    use crate::packet::compose::keys;
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};
    use proptest::prelude::*;

    /// A frame of `kind` with `len` bytes of payload that can be told apart, as a kernel would leave it.
    fn unsegmented(kind: SegmentKind, tagged: bool, len: usize, size: u16) -> Packet {
        let mut key = Key::ZERO;
        let (eth_type, proto) = match kind {
            SegmentKind::TcpIpv4 => (0x0800u16, 6u8),
            SegmentKind::TcpIpv6 => (0x86dd, 6),
            SegmentKind::Udp => (0x0800, 17),
        };
        key.set(Field::EthType, eth_type);
        key.set(Field::IpProto, proto);
        key.set(Field::IpTtl, 64u8);
        key.set(Field::TpSrc, 1000u16);
        key.set(Field::TpDst, 2000u16);
        if eth_type == 0x0800 {
            key.set(Field::Ipv4Src, 0x0a00_0001u32);
            key.set(Field::Ipv4Dst, 0x0a00_0002u32);
        } else {
            key.set(Field::Ipv6Src, 1u128 << 100 | 7);
            key.set(Field::Ipv6Dst, 1u128 << 101 | 9);
        }
        if proto == 6 {
            // CWR, PSH, ACK and FIN.
            key.set(Field::TcpFlags, 0x99u16);
        }
        if tagged {
            key.set(Field::Vlan0Cfi, 1u8);
            key.set(Field::Vlan0Tpid, 0x8100u16);
            key.set(Field::Vlan0Vid, 5u16);
        }
        let layers = extract::layers(&Packet::from_bytes(&compose(&key, 0)));
        let headers = layers.transport_at + if proto == 6 { 20 } else { 8 };
        let mut packet = Packet::from_bytes(&compose(&key, headers + len));
        for (i, byte) in packet.bytes_mut()[headers..].iter_mut().enumerate() {
            *byte = (i * 7 + i / 256) as u8;
        }
        let offset = if proto == 6 { 16 } else { 6 };
        packet.bytes_mut()[layers.transport_at + offset..][..2].fill(0);
        packet.meta.offload = Offload {
            checksum: Some(PartialChecksum { start: layers.transport_at as u16, offset: offset as u16 }),
            segment: Some(Segmentation { kind, size, ecn: true }),
        };
        packet
    }

    /// The payload of a frame whose every checksum and length an independent parser found right.
    fn checked_payload(frame: &[u8]) -> Vec<u8> {
        let sliced = SlicedPacket::from_ethernet(frame).expect("a well-formed frame");
        let transport = sliced.transport.expect("a transport header");
        match (sliced.net.expect("an IP header"), transport) {
            (NetSlice::Ipv4(ip), TransportSlice::Tcp(tcp)) => {
                let header = ip.header().to_header();
                assert_eq!(header.header_checksum, header.calc_header_checksum());
                let (src, dst) = (header.source, header.destination);
                assert_eq!(tcp.checksum(), tcp.calc_checksum_ipv4(src, dst).unwrap());
                tcp.payload().to_vec()
            }
            (NetSlice::Ipv6(ip), TransportSlice::Tcp(tcp)) => {
                let (src, dst) = (ip.header().source(), ip.header().destination());
                assert_eq!(tcp.checksum(), tcp.calc_checksum_ipv6(src, dst).unwrap());
                tcp.payload().to_vec()
            }
            (NetSlice::Ipv4(ip), TransportSlice::Udp(udp)) => {
                let header = ip.header().to_header();
                assert_eq!(header.header_checksum, header.calc_header_checksum());
                let wanted = udp.to_header().calc_checksum_ipv4(&header, udp.payload()).unwrap();
                assert_eq!(udp.checksum(), wanted);
                assert_eq!(usize::from(udp.length()), 8 + udp.payload().len());
                udp.payload().to_vec()
            }
            other => panic!("{other:?}"),
        }
    }

    fn kind() -> impl Strategy<Value = SegmentKind> {
        prop_oneof![Just(SegmentKind::TcpIpv4), Just(SegmentKind::TcpIpv6), Just(SegmentKind::Udp)]
    }

    proptest! {
        #[test]
        fn pieces_hold_the_payload_in_order_and_every_checksum_is_right(
            kind in kind(), tagged: bool, len in 100usize..9000, size in 100u16..2000, device: bool,
        ) {
            let packet = unsegmented(kind, tagged, len, size);
            let longest = wire_len(&packet);
            let first = packet.bytes().to_vec();
            let mut pool = Pool::new();
            let mut pieces = Vec::new();
            finish(packet, &mut pool, !device, &mut pieces).unwrap();
            prop_assert_eq!(pieces.len(), len.div_ceil(usize::from(size)));
            let mut payload = Vec::new();
            let count = pieces.len();
            let link = if tagged { 18 } else { 14 };
            prop_assert_eq!(pieces.iter().map(|p| p.len() - link).max(), Some(longest));
            for (i, piece) in pieces.drain(..).enumerate() {
                prop_assert_eq!(piece.meta.offload.segment, None);
                prop_assert_eq!(piece.meta.offload.checksum.is_some(), device);
                // Finishes what was left to a device, to be checked like the rest.
                let mut finished = Vec::new();
                finish(piece, &mut pool, true, &mut finished).unwrap();
                let frame = finished[0].bytes();
                payload.extend(checked_payload(frame));
                let at = extract::layers(&finished[0]).transport_at;
                if kind != SegmentKind::Udp {
                    let flags = frame[at + 13];
                    prop_assert_eq!(flags & FIN_PSH != 0, i + 1 == count);
                    prop_assert_eq!(flags & CWR != 0, i == 0);
                    let sequence = u32::from_be_bytes(frame[at + 4..at + 8].try_into().unwrap());
                    prop_assert_eq!(sequence as usize, i * usize::from(size));
                }
                if kind != SegmentKind::TcpIpv6 {
                    let id = u16::from_be_bytes(frame[link + 4..link + 6].try_into().unwrap());
                    prop_assert_eq!(usize::from(id), i);
                }
            }
            prop_assert_eq!(&payload[..], &first[first.len() - len..]);
        }

        #[test]
        fn hostile_offloads_of_any_frame_end_in_frames_or_a_named_error(
            frame in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..200),
                (keys::key(), 0usize..300).prop_map(|(key, len)| compose(&key, len)),
            ],
            kind in kind(), size: u16, checksum: Option<(u16, u16)>, near: bool, segmented: bool, too: bool,
        ) {
            let mut packet = Packet::from_bytes(&frame);
            let near = |n: u16| if near { n % 80 } else { n };
            packet.meta.offload = Offload {
                checksum: checksum.map(|(start, offset)| PartialChecksum { start: near(start), offset: near(offset) }),
                segment: segmented.then_some(Segmentation { kind, size: near(size), ecn: false }),
            };
            let mut into = Vec::new();
            prop_assert!(wire_len(&packet) <= packet.len());
            match finish(packet, &mut Pool::new(), too, &mut into) {
                Ok(()) => prop_assert!(!into.is_empty()),
                Err(_) => prop_assert!(into.is_empty()),
            }
        }

        #[test]
        fn finishing_a_partial_checksum_gives_the_whole_one(key in keys::key(), len in 0usize..400) {
            let whole = Packet::from_bytes(&compose(&key, len));
            let layers = extract::layers(&whole);
            let (offset, width) = match layers.transport {
                Transport::Tcp => (16, 2),
                Transport::Udp => (6, 2),
                Transport::Sctp if layers.frag == frag::NO => (8, 4),
                _ => return Ok(()),
            };
            let mut partial = Packet::from_bytes(&whole.bytes()[..layers.end]);
            let covered = layers.end - layers.transport_at;
            let at = layers.network_at;
            let pseudo = match layers.network {
                Network::Ipv4 => pseudo_ipv4(whole.bytes()[at + 12..].first_chunk().unwrap(), layers.proto, covered as u32),
                _ => pseudo_ipv6(whole.bytes()[at + 8..].first_chunk().unwrap(), layers.proto, covered as u32),
            };
            let field = &mut partial.bytes_mut()[layers.transport_at + offset..][..width];
            field.fill(0);
            if width == 2 {
                field.copy_from_slice(&pseudo.folded().to_be_bytes());
            }
            partial.meta.offload.checksum =
                Some(PartialChecksum { start: layers.transport_at as u16, offset: offset as u16 });
            prop_assert_eq!(is_finished(&partial, true, true), width == 2);
            let mut into = Vec::new();
            finish(partial, &mut Pool::new(), true, &mut into).unwrap();
            prop_assert_eq!(into[0].bytes(), &whole.bytes()[..layers.end]);
            prop_assert!(is_finished(&into[0], false, false));
        }
    }

    #[test]
    fn a_jumbogram_s_option_is_left_out_of_its_pieces() {
        let plain = unsegmented(SegmentKind::TcpIpv6, false, 4000, 1000);
        let mut frame = plain.bytes().to_vec();
        frame[18..21].copy_from_slice(&[0, 0, 0]);
        frame.splice(54..54, [6, 0, 0xc2, 4, 0, 0, 0x0f, 0xb4 + 8]);
        let mut jumbogram = Packet::from_bytes(&frame);
        jumbogram.meta = plain.meta;
        let (mut pool, mut of_plain, mut of_jumbogram) = (Pool::new(), Vec::new(), Vec::new());
        finish(plain, &mut pool, true, &mut of_plain).unwrap();
        finish(jumbogram, &mut pool, true, &mut of_jumbogram).unwrap();
        assert_eq!(of_plain.len(), 4);
        for (a, b) in of_plain.iter().zip(&of_jumbogram) {
            assert_eq!(a.bytes(), b.bytes());
        }
    }

    #[test]
    fn a_tiny_segment_size_is_refused_and_the_buffer_goes_back() {
        let packet = unsegmented(SegmentKind::TcpIpv4, false, 9000, 1);
        let mut into = Vec::new();
        assert_eq!(finish(packet, &mut Pool::new(), true, &mut into), Err(SegmentError::Size));
        assert!(into.is_empty());
    }

    #[test]
    fn a_frame_of_another_kind_is_refused() {
        let mut packet = unsegmented(SegmentKind::Udp, false, 900, 100);
        packet.meta.offload.segment = Some(Segmentation { kind: SegmentKind::TcpIpv4, size: 100, ecn: false });
        assert_eq!(finish(packet, &mut Pool::new(), true, &mut Vec::new()), Err(SegmentError::Headers));
    }

    #[test]
    fn the_mtu_counts_neither_ethernet_nor_tags_and_only_one_piece() {
        let packet = unsegmented(SegmentKind::TcpIpv4, true, 9000, 1460);
        assert_eq!(wire_len(&packet), 1500);
        assert!(fits(&packet, 1500) && !fits(&packet, 1499));
        let plain = Packet::from_bytes(&[0; 1514]);
        assert!(fits(&plain, 1500) && !fits(&plain, 1499));
    }
}
