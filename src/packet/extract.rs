//! [`extract`]: frame → [`Key`]; and [`layers`]: where a frame's headers stand, for those who rewrite or cut it.
//!
//! One parser serves both: `dissect` is inlined into each, and the compiler removes the half that is not asked for.
//! It never reads past the frame, never allocates, and yields a defined key for any bytes:
//!
//! | the frame | the key |
//! |---|---|
//! | shorter than 14 bytes | only `in_port` |
//! | a VLAN tag (type 0x8100 or 0x88a8) of which not all 4 bytes are there | `eth_type` is the tag's type; no tag, nothing behind |
//! | more than two VLAN tags | `eth_type` is the third tag's type; nothing behind |
//! | an IEEE 802.3 length instead of a type | `eth_type` from LLC/SNAP with OUI 0, else `0x05ff` and nothing behind |
//! | MPLS | up to three labels, ending with the bottom of the stack; those cut off are zero; nothing behind is read |
//! | ARP or RARP that is not Ethernet/IPv4, or shorter than 28 bytes | all ARP fields zero |
//! | IPv4: version not 4, header shorter than 20 bytes, total length shorter than the header or longer than the frame | all IP fields zero |
//! | IPv6: version not 6, header shorter than 40 bytes, payload length longer than the frame | all IP fields zero |
//! | IPv6: an extension header that is cut off, or the one after [`MAX_EXTENSIONS`] of them | `ip_proto` is that header's number; no transport fields |
//! | a fragment but the first | no transport fields; over IPv6, `ip_proto` is 44, because only the first fragment is sure to tell |
//! | a transport header shorter than TCP 20, UDP 8, SCTP 12, ICMP 8, ICMPv6 4 bytes | its fields zero; `ip_proto` stays |
//! | a neighbour message shorter than 24 bytes, with code not 0, or with the same link-layer address option twice | `nd_*` zero |
//! | a neighbour option of length zero or longer than the message | the options before it count |
//!
//! Bytes behind the IP datagram (Ethernet padding) are never read as its content. A frame that a kernel left to be
//! segmented may say 0 where its length does not fit (IPv4 total length, IPv6 jumbograms); then the frame's end counts.
//! The bit between pcp and vid of a tag reads as 1 whatever the frame says: it tells that there is a tag.
//! `nd_options_type` is the type of the first link-layer address option, 1 (source) or 2 (target), 0 without one.

use super::Packet;
use crate::flow::Key;
use crate::flow::field::WORDS;
use crate::flow::key::{eth_type as et, frag, ip_proto as ip};

/// IPv6 extension headers that are walked. RFC 8200 §4.1 knows six places for them.
pub const MAX_EXTENSIONS: usize = 8;

/// The `ip_proto` of an IPv6 fragment that is not the first.
pub const IPV6_FRAGMENT: u8 = 44;

/// The bit that tells that a tag is there.
const CFI: u16 = 0x1000;

/// The key of `packet`.
#[inline]
pub fn extract(packet: &Packet) -> Key {
    let mut key = Key::ZERO;
    extract_into(packet, &mut key);
    key
}

/// Replaces `key` by that of `packet`: for a batch's array of keys, because a key that is returned is also copied, and the
/// copy has to wait until its parts have left the store buffer.
#[inline]
pub fn extract_into(packet: &Packet, key: &mut Key) {
    *key = Key::ZERO;
    let words = key.words_mut();
    words[0] = u64::from(packet.meta.in_port.0) << 32;
    dissect(packet.bytes(), packet.meta.offload.segment.is_some(), words);
}

/// Where the headers of `packet` stand, behind any number of VLAN tags: actions may have pushed more than a key holds.
#[inline]
pub fn layers(packet: &Packet) -> Layers {
    let frame = packet.bytes();
    // Frames with three tags in a row are read as if they began so much later that two are left.
    let tag = |at: usize| frame.get(at..at + 2).is_some_and(|tpid| is_vlan(u16::from_be_bytes([tpid[0], tpid[1]])));
    let mut skip = 0;
    while tag(skip + 12) && tag(skip + 16) && tag(skip + 20) {
        skip += 4;
    }
    let mut layers = dissect(&frame[skip..], packet.meta.offload.segment.is_some(), &mut [0; WORDS]);
    layers.tags += skip / 4;
    layers.network_at += skip;
    layers.transport_at += skip;
    layers.end += skip;
    layers
}

/// Where a frame's headers stand, in bytes from its start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Layers {
    /// VLAN tags, the first of which stands at 12.
    pub tags: usize,
    pub network: Network,
    /// Start of the IP header.
    pub network_at: usize,
    /// The protocol behind IP and its extensions, as in the key.
    pub proto: u8,
    /// One of [`frag`]'s values.
    pub frag: u8,
    /// The IPv6 destination is a waypoint: a routing header holds the one that checksums cover (RFC 8200 §8.1).
    pub routed: bool,
    pub transport: Transport,
    /// Start of what follows IP and its extensions.
    pub transport_at: usize,
    /// End of the IP datagram; never behind the frame's.
    pub end: usize,
}

/// What stands behind Ethernet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Network {
    /// Something else, or a malformed header.
    #[default]
    Other,
    Ipv4,
    Ipv6,
}

/// Which transport header is there, long enough to be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Transport {
    #[default]
    None,
    Tcp,
    Udp,
    Sctp,
    Icmp,
    Icmp6,
}

/// Whether a frame's type says that a VLAN tag follows.
#[inline(always)]
pub(super) fn is_vlan(eth_type: u16) -> bool {
    eth_type == et::VLAN || eth_type == et::QINQ
}

/// Fills `words` but the first. `whole`: the frame is yet to be segmented.
#[inline(always)]
fn dissect(frame: &[u8], whole: bool, words: &mut [u64; WORDS]) -> Layers {
    let mut layers = Layers::default();
    let Some((eth, mut rest)) = frame.split_first_chunk::<14>() else { return layers };
    let mut eth_type = be16(eth, 12);

    if is_vlan(eth_type)
        && let Some((tag, behind)) = rest.split_first_chunk::<4>()
    {
        words[3] = u64::from(eth_type) << 48 | u64::from(be16(tag, 0) | CFI) << 32;
        (eth_type, rest, layers.tags) = (be16(tag, 2), behind, 1);
        if is_vlan(eth_type)
            && let Some((tag, behind)) = rest.split_first_chunk::<4>()
        {
            words[3] |= u64::from(eth_type) << 16 | u64::from(be16(tag, 0) | CFI);
            (eth_type, rest, layers.tags) = (be16(tag, 2), behind, 2);
        }
    }
    if eth_type < 0x600 {
        eth_type = match rest.split_first_chunk::<8>() {
            // LLC with SNAP, organization 0: an Ethernet type follows (RFC 1042).
            Some((&[0xaa, 0xaa, 3, 0, 0, 0, high, low], behind)) if high >= 6 => {
                rest = behind;
                u16::from_be_bytes([high, low])
            }
            _ => et::NONE,
        };
    }
    words[1] = be64(eth, 0) & !0xffff | u64::from(eth_type);
    words[2] = be64(eth, 4) << 16;
    layers.network_at = frame.len() - rest.len();

    match eth_type {
        et::IPV4 => ipv4(rest, whole, words, &mut layers),
        et::IPV6 => ipv6(rest, whole, words, &mut layers),
        et::ARP | et::RARP => arp(rest, words),
        et::MPLS | et::MPLS_MULTICAST => mpls(rest, words),
        _ => {}
    }
    layers
}

#[inline(always)]
fn ipv4(datagram: &[u8], whole: bool, words: &mut [u64; WORDS], layers: &mut Layers) {
    let Some(header) = datagram.first_chunk::<20>() else { return };
    let header_len = usize::from(header[0] & 0x0f) * 4;
    let mut total = usize::from(be16(header, 2));
    if total == 0 && whole {
        total = datagram.len();
    }
    if header[0] >> 4 != 4 || header_len < 20 || total < header_len || total > datagram.len() {
        return;
    }
    let (more, offset) = (header[6] & 0x20 != 0, be16(header, 6) & 0x1fff);
    layers.frag = match (offset, more) {
        (0, false) => frag::NO,
        (0, true) => frag::FIRST,
        _ => frag::LATER,
    };
    layers.network = Network::Ipv4;
    layers.proto = header[9];
    layers.transport_at = layers.network_at + header_len;
    layers.end = layers.network_at + total;
    words[6] = be64(header, 12);
    words[11] = network_word(layers, header[1], header[8]);
    if layers.frag != frag::LATER {
        transport(&datagram[header_len..total], ip::ICMP, words, layers);
    }
}

#[inline(always)]
fn ipv6(datagram: &[u8], whole: bool, words: &mut [u64; WORDS], layers: &mut Layers) {
    let Some((header, payload)) = datagram.split_first_chunk::<40>() else { return };
    let first = be32(header, 0);
    let mut len = usize::from(be16(header, 4));
    if len == 0 && whole {
        len = payload.len();
    }
    if first >> 28 != 6 || len > payload.len() {
        return;
    }
    let mut inner = Extensions { proto: header[6], frag: frag::NO, routed: false, rest: &payload[..len] };
    if is_extension(inner.proto) {
        inner.walk();
    }
    layers.network = Network::Ipv6;
    layers.proto = inner.proto;
    layers.frag = inner.frag;
    layers.routed = inner.routed;
    layers.end = layers.network_at + 40 + len;
    layers.transport_at = layers.end - inner.rest.len();
    words[5] = u64::from(first & 0xf_ffff);
    words[7] = be64(header, 8);
    words[8] = be64(header, 16);
    words[9] = be64(header, 24);
    words[10] = be64(header, 32);
    words[11] = network_word(layers, (first >> 20) as u8, header[7]);
    transport(inner.rest, ip::ICMP6, words, layers);
}

/// The upper half of the word that IP and its payload share.
#[inline(always)]
fn network_word(layers: &Layers, tos: u8, ttl: u8) -> u64 {
    u64::from(u32::from_be_bytes([layers.proto, tos, ttl, layers.frag])) << 32
}

/// Reads what IP carries; `icmp` is the ICMP that belongs to its version.
#[inline(always)]
fn transport(payload: &[u8], icmp: u8, words: &mut [u64; WORDS], layers: &mut Layers) {
    match layers.proto {
        ip::TCP => {
            let Some(header) = payload.first_chunk::<20>() else { return };
            layers.transport = Transport::Tcp;
            words[11] |= u64::from(be32(header, 0));
            words[12] = u64::from(be16(header, 12) & 0x0fff) << 48;
        }
        ip::UDP => {
            let Some(header) = payload.first_chunk::<8>() else { return };
            layers.transport = Transport::Udp;
            words[11] |= u64::from(be32(header, 0));
        }
        ip::SCTP => {
            let Some(header) = payload.first_chunk::<12>() else { return };
            layers.transport = Transport::Sctp;
            words[11] |= u64::from(be32(header, 0));
        }
        ip::ICMP if icmp == ip::ICMP => {
            let Some(header) = payload.first_chunk::<8>() else { return };
            layers.transport = Transport::Icmp;
            words[11] |= u64::from(header[0]) << 16 | u64::from(header[1]);
        }
        ip::ICMP6 if icmp == ip::ICMP6 => {
            let Some(&[kind, code, _, _]) = payload.first_chunk() else { return };
            layers.transport = Transport::Icmp6;
            words[11] |= u64::from(kind) << 16 | u64::from(code);
            if matches!(kind, 135 | 136) && code == 0 {
                neighbour(payload, words);
            }
        }
        _ => {}
    }
}

/// A walk over IPv6 extension headers.
struct Extensions<'a> {
    /// What `rest` begins with.
    proto: u8,
    frag: u8,
    routed: bool,
    rest: &'a [u8],
}

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;

#[inline(always)]
pub(super) fn is_extension(proto: u8) -> bool {
    matches!(proto, HOP_BY_HOP | ROUTING | IPV6_FRAGMENT | AUTHENTICATION | DESTINATION)
}

impl Extensions<'_> {
    /// Goes to the first header that is not an extension, or that cannot be passed.
    #[inline(never)]
    fn walk(&mut self) {
        for _ in 0..MAX_EXTENSIONS {
            if !is_extension(self.proto) {
                return;
            }
            let Some(header) = self.rest.first_chunk::<8>() else { return };
            let size = match self.proto {
                IPV6_FRAGMENT => 8,
                // In 4-byte units less 2 (RFC 4302 §2.2), while all others count 8-byte units less 1 (RFC 8200 §4).
                AUTHENTICATION => (usize::from(header[1]) + 2) * 4,
                _ => (usize::from(header[1]) + 1) * 8,
            };
            let Some(behind) = self.rest.get(size..) else { return };
            if self.proto == ROUTING {
                self.routed |= header[3] != 0;
            }
            if self.proto == IPV6_FRAGMENT {
                if be16(header, 2) & 0xfff8 != 0 {
                    self.frag = frag::LATER;
                    self.rest = behind;
                    return;
                }
                // An "atomic" fragment, the whole datagram in one, is none (RFC 6946).
                self.frag |= if header[3] & 1 != 0 { frag::FIRST } else { frag::NO };
            }
            (self.proto, self.rest) = (header[0], behind);
        }
    }
}

/// Neighbour solicitation or advertisement (RFC 4861 §4.3, §4.4).
#[inline(never)]
fn neighbour(message: &[u8], words: &mut [u64; WORDS]) {
    let Some((header, mut options)) = message.split_first_chunk::<24>() else { return };
    // Source address, then target address.
    let mut addresses = [None; 2];
    let mut first = 0u8;
    while let Some(option) = options.first_chunk::<8>() {
        let size = usize::from(option[1]) * 8;
        let Some(behind) = options.get(size..).filter(|_| size != 0) else { break };
        if let kind @ (1 | 2) = option[0]
            && size == 8
        {
            let address = &mut addresses[usize::from(kind) - 1];
            if address.replace(be64(option, 0) << 16).is_some() {
                return;
            }
            first = if first == 0 { kind } else { first };
        }
        options = behind;
    }
    words[12] = u64::from(first) << 40 | u64::from(be32(header, 4));
    words[13] = addresses[0].unwrap_or(0);
    words[14] = addresses[1].unwrap_or(0);
    words[15] = be64(header, 8);
    words[16] = be64(header, 16);
}

#[inline(always)]
fn arp(message: &[u8], words: &mut [u64; WORDS]) {
    let Some(message) = message.first_chunk::<28>() else { return };
    let head = be64(message, 0);
    // Ethernet, IPv4, and the lengths of their addresses.
    if head >> 16 != 0x0001_0800_0604 {
        return;
    }
    let op = head & 0xffff;
    words[6] = u64::from(be32(message, 14)) << 32 | u64::from(be32(message, 24));
    words[11] = if op <= 0xff { op << 56 } else { 0 };
    words[13] = be64(message, 6) << 16;
    words[14] = be64(message, 16) << 16;
}

#[inline(always)]
fn mpls(mut stack: &[u8], words: &mut [u64; WORDS]) {
    const BOTTOM: u32 = 0x100;
    for i in 0..3 {
        let Some((label, behind)) = stack.split_first_chunk::<4>() else { return };
        let label = be32(label, 0);
        words[4 + i / 2] |= u64::from(label) << if i == 1 { 0 } else { 32 };
        if label & BOTTOM != 0 {
            return;
        }
        stack = behind;
    }
}

// With `at` a constant, these become one load: the bounds of an array are known.

#[inline(always)]
fn be16<const N: usize>(bytes: &[u8; N], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

#[inline(always)]
fn be32<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[inline(always)]
fn be64<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    u64::from(be32(bytes, at)) << 32 | u64::from(be32(bytes, at + 4))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::PortNo;
    use crate::flow::field::Field::{self, *};
    use crate::packet::compose::{compose, keys};
    use crate::packet::{SegmentKind, Segmentation};
    use etherparse::{LinkExtSlice, LinkSlice, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
    use proptest::prelude::*;

    fn frame(eth_type: u16, behind: &[&[u8]]) -> Vec<u8> {
        [&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1], &eth_type.to_be_bytes()[..], &behind.concat()].concat()
    }

    fn key_of(frame: &[u8]) -> Key {
        extract(&Packet::from_bytes(frame))
    }

    /// A key of these fields beside the addresses of [`frame`], laid out by the registry.
    fn key(fields: &[&[(Field, u128)]]) -> Key {
        let mut key = Key::ZERO;
        key.set(EthDst, 0x0200_0000_0002u64);
        key.set(EthSrc, 0x0200_0000_0001u64);
        for (field, value) in fields.iter().copied().flatten() {
            key.set(*field, *value);
        }
        key
    }

    /// An IPv4 datagram with the fields [`IPV4`].
    fn ipv4(proto: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
        let [high, low] = (20 + payload.len() as u16).to_be_bytes();
        let [flags, offset] = fragment.to_be_bytes();
        let header = [0x45, 0x28, high, low, 0, 1, flags, offset, 64, proto, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        [&header, payload].concat()
    }

    const IPV4: &[(Field, u128)] =
        &[(EthType, 0x0800), (Ipv4Src, 0x0a00_0001), (Ipv4Dst, 0x0a00_0002), (IpTos, 0x28), (IpTtl, 64)];

    /// An IPv6 datagram with the fields [`IPV6`].
    fn ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
        let [high, low] = (payload.len() as u16).to_be_bytes();
        let addresses = [0xfdu128 << 120 | 1, 0xfd << 120 | 2].map(u128::to_be_bytes).concat();
        [&[0x62, 0x81, 0x23, 0x45, high, low, next, 64], &addresses[..], payload].concat()
    }

    const IPV6: &[(Field, u128)] = &[
        (EthType, 0x86dd),
        (Ipv6Src, 0xfd << 120 | 1),
        (Ipv6Dst, 0xfd << 120 | 2),
        (IpTos, 0x28),
        (Ipv6Label, 0x12345),
        (IpTtl, 64),
    ];

    /// UDP from port 0x1234 to 53.
    const UDP: &[u8] = &[0x12, 0x34, 0, 53, 0, 12, 0, 0, 9, 9, 9, 9];
    const PORTS: &[(Field, u128)] = &[(IpProto, 17), (TpSrc, 0x1234), (TpDst, 53)];

    #[test]
    fn a_frame_shorter_than_ethernet_is_known_by_its_port_only() {
        let mut packet = Packet::from_bytes(&[0xff; 13]);
        packet.meta.in_port = PortNo(7);
        let mut want = Key::ZERO;
        want.set(InPort, 7u32);
        assert_eq!(extract(&packet), want);
    }

    #[test]
    fn tcp_is_read_with_twelve_flag_bits_and_only_when_its_header_is_whole() {
        let tcp = [0x12, 0x34, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x5f, 0x12, 0xff, 0xff, 0, 0, 0, 0];
        let want = key(&[IPV4, &[(IpProto, 6), (TpSrc, 0x1234), (TpDst, 80), (TcpFlags, 0xf12)]]);
        assert_eq!(key_of(&frame(0x0800, &[&ipv4(6, 0x4000, &tcp)])), want);
        assert_eq!(key_of(&frame(0x0800, &[&ipv4(6, 0, &tcp[..19])])), key(&[IPV4, &[(IpProto, 6)]]));
    }

    #[test]
    fn sctp_and_icmp_are_read_by_their_own_lengths() {
        let sctp = [0x12, 0x34, 0, 53, 0, 0, 0, 0, 0, 0, 0, 0];
        let want = key(&[IPV6, PORTS, &[(IpProto, 132)]]);
        assert_eq!(key_of(&frame(0x86dd, &[&ipv6(132, &sctp)])), want);
        assert_eq!(key_of(&frame(0x86dd, &[&ipv6(132, &sctp[..11])])), key(&[IPV6, &[(IpProto, 132)]]));
        let echo = [8, 3, 0, 0, 0, 0, 0, 0];
        let want = key(&[IPV4, &[(IpProto, 1), (IcmpType, 8), (IcmpCode, 3)]]);
        assert_eq!(key_of(&frame(0x0800, &[&ipv4(1, 0, &echo)])), want);
        let want = key(&[IPV6, &[(IpProto, 58), (Icmp6Type, 8), (Icmp6Code, 3)]]);
        assert_eq!(key_of(&frame(0x86dd, &[&ipv6(58, &echo[..4])])), want);
        // Each ICMP belongs to its own IP.
        assert_eq!(key_of(&frame(0x86dd, &[&ipv6(1, &echo)])), key(&[IPV6, &[(IpProto, 1)]]));
        assert_eq!(key_of(&frame(0x0800, &[&ipv4(58, 0, &echo)])), key(&[IPV4, &[(IpProto, 58)]]));
    }

    #[test]
    fn padding_behind_the_datagram_is_not_read_as_ports() {
        let cut = key(&[IPV4, &[(IpProto, 17)]]);
        assert_eq!(key_of(&frame(0x0800, &[&ipv4(17, 0, &UDP[..4]), &UDP[4..]])), cut);
        let cut = key(&[IPV6, &[(IpProto, 17)]]);
        assert_eq!(key_of(&frame(0x86dd, &[&ipv6(17, &UDP[..4]), &UDP[4..]])), cut);
    }

    #[test]
    fn ipv4_options_are_passed() {
        let mut datagram = ipv4(17, 0, &[&[1, 1, 1, 0], UDP].concat());
        datagram[0] = 0x46;
        assert_eq!(key_of(&frame(0x0800, &[&datagram])), key(&[IPV4, PORTS]));
    }

    #[test]
    fn a_malformed_ip_header_leaves_all_ip_fields_zero() {
        let good4 = ipv4(17, 0, UDP);
        for (at, value) in [(0, 0x55), (0, 0x44), (3, 19), (3, 200), (0, 0x4f)] {
            let mut bad = good4.clone();
            bad[at] = value;
            assert_eq!(key_of(&frame(0x0800, &[&bad])), key(&[&[(EthType, 0x0800)]]), "byte {at} = {value:#x}");
        }
        let good6 = ipv6(17, UDP);
        for (at, value) in [(0, 0x52), (5, 13), (4, 1)] {
            let mut bad = good6.clone();
            bad[at] = value;
            assert_eq!(key_of(&frame(0x86dd, &[&bad])), key(&[&[(EthType, 0x86dd)]]), "byte {at} = {value:#x}");
        }
        assert_eq!(key_of(&frame(0x0800, &[&good4[..19]])), key(&[&[(EthType, 0x0800)]]));
        assert_eq!(key_of(&frame(0x86dd, &[&good6[..39]])), key(&[&[(EthType, 0x86dd)]]));
    }

    #[test]
    fn only_first_fragments_have_ports() {
        let fragment = |bits, payload| key_of(&frame(0x0800, &[&ipv4(17, bits, payload)]));
        assert_eq!(fragment(0x2000, UDP), key(&[IPV4, PORTS, &[(IpFrag, 1)]]));
        assert_eq!(fragment(0x2001, UDP), key(&[IPV4, &[(IpProto, 17), (IpFrag, 3)]]));
        assert_eq!(fragment(0x0001, UDP), key(&[IPV4, &[(IpProto, 17), (IpFrag, 3)]]));
        let fragment = |bits: u16| {
            let [high, low] = bits.to_be_bytes();
            key_of(&frame(0x86dd, &[&ipv6(44, &[&[17, 0, high, low, 0, 0, 0, 1], UDP].concat())]))
        };
        assert_eq!(fragment(0x0001), key(&[IPV6, PORTS, &[(IpFrag, 1)]]));
        assert_eq!(fragment(0x0008), key(&[IPV6, &[(IpProto, 44), (IpFrag, 3)]]));
        assert_eq!(fragment(0x0000), key(&[IPV6, PORTS]), "an atomic fragment");
    }

    #[test]
    fn ipv6_extension_headers_are_passed_up_to_a_number() {
        let extension = |next: u8| [next, 0, 0, 0, 0, 0, 0, 0];
        let authentication = |next: u8| [&[next, 2][..], &[0; 14]].concat();
        let all = [&extension(43)[..], &extension(51), &authentication(60), &extension(17), UDP].concat();
        assert_eq!(key_of(&frame(0x86dd, &[&ipv6(0, &all)])), key(&[IPV6, PORTS]));

        let many = |n: usize| [extension(60).repeat(n - 1), extension(17).to_vec(), UDP.to_vec()].concat();
        assert_eq!(key_of(&frame(0x86dd, &[&ipv6(60, &many(MAX_EXTENSIONS))])), key(&[IPV6, PORTS]));
        let want = key(&[IPV6, &[(IpProto, 60)]]);
        assert_eq!(key_of(&frame(0x86dd, &[&ipv6(60, &many(MAX_EXTENSIONS + 1))])), want);

        let cut = [&extension(43)[..], &[17, 2, 0, 0, 0, 0, 0, 0], UDP].concat();
        assert_eq!(key_of(&frame(0x86dd, &[&ipv6(0, &cut)])), key(&[IPV6, &[(IpProto, 43)]]));
    }

    #[test]
    fn a_waypoint_is_not_the_address_that_checksums_cover() {
        let routing = |left: u8| [&[17, 2, 4, left, 0, 0, 0, 0][..], &[0; 16], UDP].concat();
        let layers = |left| super::layers(&Packet::from_bytes(&frame(0x86dd, &[&ipv6(43, &routing(left))])));
        assert!(layers(1).routed && !layers(0).routed);
        assert_eq!((layers(1).transport, layers(1).transport_at), (Transport::Udp, 14 + 40 + 24));
    }

    #[test]
    fn two_tags_are_read_and_a_third_is_the_type() {
        let datagram = ipv4(17, 0, UDP);
        let one: &[(Field, u128)] = &[(Vlan0Tpid, 0x8100), (Vlan0Pcp, 5), (Vlan0Cfi, 1), (Vlan0Vid, 0x123)];
        assert_eq!(key_of(&frame(0x8100, &[&[0xa1, 0x23, 8, 0], &datagram])), key(&[IPV4, PORTS, one]));
        assert_eq!(key_of(&frame(0x8100, &[&[0xb1, 0x23, 8, 0], &datagram])), key(&[IPV4, PORTS, one]), "its DEI set");
        let two: &[(Field, u128)] = &[
            (Vlan0Tpid, 0x88a8),
            (Vlan0Cfi, 1),
            (Vlan0Vid, 7),
            (Vlan1Tpid, 0x8100),
            (Vlan1Pcp, 7),
            (Vlan1Cfi, 1),
            (Vlan1Vid, 0xfff),
        ];
        let tags = [0, 7, 0x81, 0, 0xef, 0xff];
        assert_eq!(key_of(&frame(0x88a8, &[&tags, &[8, 0], &datagram])), key(&[IPV4, PORTS, two]));
        let three = frame(0x88a8, &[&tags, &[0x81, 0, 0, 9, 8, 0], &datagram]);
        assert_eq!(key_of(&three), key(&[two, &[(EthType, 0x8100)]]));
        let layers = layers(&Packet::from_bytes(&three));
        assert_eq!((layers.tags, layers.network_at, layers.transport), (3, 26, Transport::Udp));
        assert_eq!(key_of(&frame(0x8100, &[&[0xa1, 0x23, 8]])), key(&[&[(EthType, 0x8100)]]), "a tag cut off");
    }

    #[test]
    fn lengths_in_place_of_types_lead_through_snap_or_nowhere() {
        let datagram = ipv4(17, 0, UDP);
        let none = key(&[&[(EthType, 0x05ff)]]);
        assert_eq!(key_of(&frame(40, &[&[0xaa, 0xaa, 3, 0, 0, 0, 8, 0], &datagram])), key(&[IPV4, PORTS]));
        assert_eq!(key_of(&frame(40, &[&[0xaa, 0xaa, 3, 0, 0, 1, 8, 0], &datagram])), none);
        assert_eq!(key_of(&frame(40, &[&[0xaa, 0xaa, 3, 0, 0, 0, 5, 0xff], &datagram])), none);
        assert_eq!(key_of(&frame(3, &[&[0x42, 0x42, 3]])), none);
    }

    #[test]
    fn mpls_labels_are_read_down_to_the_bottom_of_the_stack() {
        let label: &[(Field, u128)] = &[(EthType, 0x8847), (Mpls0Label, 0x12345), (Mpls0Tc, 3), (Mpls0Ttl, 64)];
        let (more, last) = ([0x12, 0x34, 0x56, 64], [0xab, 0xcd, 0xef, 2]);
        let second: &[(Field, u128)] = &[(Mpls1Label, 0xabcde), (Mpls1Tc, 7), (Mpls1Bos, 1), (Mpls1Ttl, 2)];
        assert_eq!(key_of(&frame(0x8847, &[&more, &last, &more])), key(&[label, second]));
        let third: &[(Field, u128)] = &[
            (Mpls1Label, 0x12345),
            (Mpls1Tc, 3),
            (Mpls1Ttl, 64),
            (Mpls2Label, 0xabcde),
            (Mpls2Tc, 7),
            (Mpls2Bos, 1),
            (Mpls2Ttl, 2),
        ];
        assert_eq!(key_of(&frame(0x8847, &[&more, &more, &last, &more])), key(&[label, third]));
        assert_eq!(key_of(&frame(0x8847, &[&more, &last[..3]])), key(&[label]));
    }

    #[test]
    fn arp_is_read_for_ethernet_and_ipv4_only() {
        let arp = |hardware: u8, op: u16| {
            let [high, low] = op.to_be_bytes();
            let head = [0, hardware, 8, 0, 6, 4, high, low];
            let body = [2, 0, 0, 0, 0, 1, 10, 0, 0, 1, 2, 0, 0, 0, 0, 9, 10, 0, 0, 9];
            frame(0x0806, &[&head, &body])
        };
        let fields: &[(Field, u128)] = &[
            (EthType, 0x0806),
            (ArpSip, 0x0a00_0001),
            (ArpTip, 0x0a00_0009),
            (ArpSha, 0x0200_0000_0001),
            (ArpTha, 0x0200_0000_0009),
        ];
        assert_eq!(key_of(&arp(1, 2)), key(&[fields, &[(ArpOp, 2)]]));
        assert_eq!(key_of(&arp(1, 258)), key(&[fields]));
        assert_eq!(key_of(&arp(6, 2)), key(&[&[(EthType, 0x0806)]]));
        assert_eq!(key_of(&arp(1, 2)[..41]), key(&[&[(EthType, 0x0806)]]));
    }

    #[test]
    fn neighbour_messages_are_read_with_their_link_layer_addresses() {
        let message = |code: u8, options: &[&[u8]]| {
            let target = (0xfeu128 << 120 | 3).to_be_bytes();
            let message = [&[135, code, 0, 0, 0xe0, 0, 0, 1], &target[..], &options.concat()].concat();
            key_of(&frame(0x86dd, &[&ipv6(58, &message)]))
        };
        let plain: &[(Field, u128)] = &[(IpProto, 58), (Icmp6Type, 135)];
        let read: &[(Field, u128)] = &[(NdTarget, 0xfe << 120 | 3), (NdReserved, 0xe000_0001)];
        let (sll, tll) = ([1, 1, 2, 0, 0, 0, 0, 5], [2, 1, 2, 0, 0, 0, 0, 6]);
        let (source, target) = ((NdSll, 0x0200_0000_0005), (NdTll, 0x0200_0000_0006));
        assert_eq!(message(0, &[]), key(&[IPV6, plain, read]));
        assert_eq!(message(0, &[&sll, &tll]), key(&[IPV6, plain, read, &[source, target, (NdOptionsType, 1)]]));
        assert_eq!(
            message(0, &[&[14, 1, 0, 0, 0, 0, 0, 0], &tll]),
            key(&[IPV6, plain, read, &[target, (NdOptionsType, 2)]])
        );
        assert_eq!(message(0, &[&sll, &[0; 8], &tll]), key(&[IPV6, plain, read, &[source, (NdOptionsType, 1)]]));
        assert_eq!(message(0, &[&sll, &sll]), key(&[IPV6, plain]));
        assert_eq!(message(1, &[&sll]), key(&[IPV6, plain, &[(Icmp6Code, 1)]]));
    }

    #[test]
    fn a_frame_to_be_segmented_may_say_no_length() {
        for (eth_type, mut datagram, length_at, want) in
            [(0x0800, ipv4(17, 0, UDP), 2, key(&[IPV4, PORTS])), (0x86dd, ipv6(17, UDP), 4, key(&[IPV6, PORTS]))]
        {
            datagram[length_at..length_at + 2].fill(0);
            let mut packet = Packet::from_bytes(&frame(eth_type, &[&datagram]));
            assert_ne!(extract(&packet), want);
            packet.meta.offload.segment = Some(Segmentation { kind: SegmentKind::Udp, size: 1000, ecn: false });
            assert_eq!(extract(&packet), want);
        }
    }

    /// The key as an independent parser sees a frame without MPLS, SCTP and ICMPv6, which it does not read.
    fn witness(frame: &[u8]) -> Key {
        fn number(bytes: &[u8]) -> u128 {
            bytes.iter().fold(0, |n, byte| n << 8 | u128::from(*byte))
        }
        let sliced = SlicedPacket::from_ethernet(frame).expect("a well-formed frame");
        let mut key = Key::ZERO;
        let Some(LinkSlice::Ethernet2(eth)) = sliced.link else { panic!("no Ethernet") };
        key.set(EthDst, number(&eth.destination()));
        key.set(EthSrc, number(&eth.source()));
        let mut eth_type = eth.ether_type().0;
        let rows = [(Vlan0Tpid, Vlan0Pcp, Vlan0Cfi, Vlan0Vid), (Vlan1Tpid, Vlan1Pcp, Vlan1Cfi, Vlan1Vid)];
        for (tag, (tpid, pcp, cfi, vid)) in sliced.link_exts.iter().zip(rows) {
            let LinkExtSlice::Vlan(tag) = tag else { panic!("no VLAN tag") };
            key.set(tpid, eth_type);
            key.set(pcp, tag.priority_code_point().value());
            key.set(cfi, 1u8);
            key.set(vid, tag.vlan_identifier().value());
            eth_type = tag.ether_type().0;
        }
        key.set(EthType, eth_type);
        match &sliced.net {
            Some(NetSlice::Ipv4(ip)) => {
                let header = ip.header();
                key.set(Ipv4Src, number(&header.source()));
                key.set(Ipv4Dst, number(&header.destination()));
                key.set(IpTos, header.dcp().value() << 2 | header.ecn().value());
                key.set(IpTtl, header.ttl());
                key.set(IpProto, header.protocol().0);
                let later = header.fragments_offset().value() != 0;
                key.set(IpFrag, u8::from(later || header.more_fragments()) | u8::from(later) << 1);
            }
            Some(NetSlice::Ipv6(ip)) => {
                let header = ip.header();
                key.set(Ipv6Src, number(&header.source()));
                key.set(Ipv6Dst, number(&header.destination()));
                key.set(IpTos, header.traffic_class());
                key.set(Ipv6Label, header.flow_label().value());
                key.set(IpTtl, header.hop_limit());
                key.set(IpProto, ip.payload().ip_number.0);
            }
            Some(NetSlice::Arp(arp)) => {
                key.set(ArpOp, u8::try_from(arp.operation().0).unwrap_or(0));
                key.set(ArpSha, number(arp.sender_hw_addr()));
                key.set(ArpSip, number(arp.sender_protocol_addr()));
                key.set(ArpTha, number(arp.target_hw_addr()));
                key.set(ArpTip, number(arp.target_protocol_addr()));
            }
            None => {}
        }
        match &sliced.transport {
            Some(TransportSlice::Tcp(tcp)) => {
                key.set(TpSrc, tcp.source_port());
                key.set(TpDst, tcp.destination_port());
                key.set(TcpFlags, number(&tcp.slice()[12..14]) & 0x0fff);
            }
            Some(TransportSlice::Udp(udp)) => {
                key.set(TpSrc, udp.source_port());
                key.set(TpDst, udp.destination_port());
            }
            Some(TransportSlice::Icmpv4(icmp)) => {
                key.set(IcmpType, icmp.type_u8());
                key.set(IcmpCode, icmp.code_u8());
            }
            _ => {}
        }
        key
    }

    proptest! {
        #[test]
        fn frames_of_another_builder_read_as_its_parser_reads_them(
            macs: [[u8; 6]; 2], v4: [[u8; 4]; 2], v6: [[u8; 16]; 2], ttl: u8, ports: [u16; 2], tags in 0..3, six: bool, transport in 0..3,
            vids in [0u16..4096, 0u16..4096], payload in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let eth = PacketBuilder::ethernet2(macs[0], macs[1]);
            let vid = |i: usize| vids[i].try_into().unwrap();
            let network = match (tags, six) {
                (0, false) => eth.ipv4(v4[0], v4[1], ttl),
                (0, true) => eth.ipv6(v6[0], v6[1], ttl),
                (1, false) => eth.single_vlan(vid(0)).ipv4(v4[0], v4[1], ttl),
                (1, true) => eth.single_vlan(vid(0)).ipv6(v6[0], v6[1], ttl),
                (_, false) => eth.double_vlan(vid(0), vid(1)).ipv4(v4[0], v4[1], ttl),
                (_, true) => eth.double_vlan(vid(0), vid(1)).ipv6(v6[0], v6[1], ttl),
            };
            let mut frame = Vec::new();
            match transport {
                0 => network.udp(ports[0], ports[1]).write(&mut frame, &payload).unwrap(),
                // It reads ICMP over either IP; we do not.
                _ if transport == 1 || six => network.tcp(ports[0], ports[1], 1, 2).syn().ece().ns().write(&mut frame, &payload).unwrap(),
                _ => network.icmpv4_echo_request(ports[0], ports[1]).write(&mut frame, &payload).unwrap(),
            }
            prop_assert_eq!(key_of(&frame), witness(&frame));
        }

        #[test]
        fn composed_frames_read_as_another_parser_reads_them(key in keys::key(), len in 0usize..300) {
            let fragment = key.get(IpFrag);
            let beyond_it = match key.eth_type() {
                // It does not read the transport header of first fragments, and of IPv6 ones does not tell which they are.
                0x0800 => key.ip_proto() == 132 || fragment == 1,
                0x86dd => matches!(key.ip_proto(), 58 | 132) || fragment != 0,
                0x8847 | 0x05ff => true,
                _ => false,
            };
            if beyond_it {
                return Ok(());
            }
            let frame = compose(&key, len);
            prop_assert_eq!(key_of(&frame), witness(&frame));
        }

        #[test]
        fn the_key_depends_on_the_bytes_of_the_frame_alone(
            bytes in proptest::collection::vec(any::<u8>(), 0..200), key in keys::key(), composed: bool, cut in 0usize..200, behind: u8,
        ) {
            let bytes = if composed { compose(&key, bytes.len()) } else { bytes };
            let cut = cut.min(bytes.len());
            let alone = Packet::from_bytes(&bytes[..cut]);
            let mut longer = Packet::from_bytes(&[&bytes[..cut], &[behind; 64]].concat());
            longer.set_len(cut);
            prop_assert_eq!(extract(&longer), extract(&alone));
            let layers = layers(&alone);
            prop_assert!(layers.end <= cut || layers.network == Network::Other);
            prop_assert!(layers.transport == Transport::None || layers.transport_at < layers.end);
        }

        #[test]
        fn layers_and_key_are_of_one_mind(key in keys::key(), len in 0usize..300) {
            let packet = Packet::from_bytes(&compose(&key, len));
            let layers = layers(&packet);
            prop_assert_eq!(layers.tags, usize::from(key.has_vlan()) + usize::from(key.get(Vlan1Cfi) != 0));
            if layers.network != Network::Other {
                prop_assert_eq!((layers.proto, u128::from(layers.frag)), (key.ip_proto(), key.get(IpFrag)));
            }
            if matches!(layers.transport, Transport::Tcp | Transport::Udp | Transport::Sctp) {
                let ports = &packet.bytes()[layers.transport_at..][..4];
                prop_assert_eq!(u128::from(u16::from_be_bytes([ports[0], ports[1]])), key.get(TpSrc));
                prop_assert_eq!(u128::from(u16::from_be_bytes([ports[2], ports[3]])), key.get(TpDst));
            }
        }
    }
}
