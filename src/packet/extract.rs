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
    let mut words = [0; WORDS];
    words[0] = u64::from(packet.meta.in_port.0) << 32;
    dissect(packet.bytes(), packet.meta.offload.segment.is_some(), &mut words);
    Key::from_words(words)
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
    let mut addresses = [0u64; 2];
    let mut first = 0u8;
    while let Some(option) = options.first_chunk::<8>() {
        let size = usize::from(option[1]) * 8;
        let Some(behind) = options.get(size..).filter(|_| size != 0) else { break };
        if let kind @ (1 | 2) = option[0]
            && size == 8
        {
            let address = &mut addresses[usize::from(kind) - 1];
            if *address != 0 {
                return;
            }
            *address = be64(option, 0) << 16;
            first = if first == 0 { kind } else { first };
        }
        options = behind;
    }
    words[12] = u64::from(first) << 40 | u64::from(be32(header, 4));
    words[13] = addresses[0];
    words[14] = addresses[1];
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
