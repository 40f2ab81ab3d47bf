//! [`compose`]: key → a frame that has it, for `netdev-dummy/receive` with flow text and for tests.
//!
//! For every key `k` that [`extract`](super::extract::extract) can give of a frame of at least 14 bytes,
//! `extract(compose(k, len))` is `k`, but for the port, which is not in the frame. Of a key that no frame has, the frame shows
//! what the outer headers leave room for: a field whose header the types and protocols do not call for is not written.

use super::MAX_FRAME;
use super::checksum::{Sum, crc32c, pseudo_ipv4, pseudo_ipv6};
use super::extract::{IPV6_FRAGMENT, is_extension, is_vlan};
use crate::flow::key::{eth_type as et, frag, ip_proto as ip};
use crate::flow::{Field, Key};

/// The shortest frame that Ethernet carries, without its check sequence (IEEE 802.3 §3.2.7).
pub const MIN_FRAME: usize = 60;

/// A well-formed frame with this key and right checksums, `len` bytes long, but at least as long as its headers and
/// [`MIN_FRAME`], and at most [`MAX_FRAME`]. What is longer than the headers is payload, all zero, where
/// the protocol has payload (IP lengths include it), and Ethernet padding elsewhere.
///
/// Some keys only broken frames have: those with the type of a VLAN tag behind fewer than two tags end right there, whatever `len` says.
/// A first fragment's transport checksum is computed as if the datagram ended with it.
pub fn compose(key: &Key, len: usize) -> Vec<u8> {
    let len = len.clamp(MIN_FRAME, MAX_FRAME);
    let mut frame = Vec::with_capacity(len);
    let eth_type = key.eth_type();
    put(&mut frame, key, Field::EthDst);
    put(&mut frame, key, Field::EthSrc);
    let tags = [
        (Field::Vlan0Tpid, Field::Vlan0Pcp, Field::Vlan0Cfi, Field::Vlan0Vid),
        (Field::Vlan1Tpid, Field::Vlan1Pcp, Field::Vlan1Cfi, Field::Vlan1Vid),
    ];
    let mut tagged = 0;
    for (tpid, pcp, cfi, vid) in tags {
        if key.get(cfi) == 0 {
            break;
        }
        let tpid = Some(get16(key, tpid)).filter(|tpid| is_vlan(*tpid)).unwrap_or(et::VLAN);
        frame.extend(tpid.to_be_bytes());
        frame.extend((get16(key, pcp) << 13 | get16(key, vid)).to_be_bytes());
        tagged += 1;
    }
    if eth_type < 0x600 {
        llc(&mut frame, len);
    } else {
        frame.extend(eth_type.to_be_bytes());
    }
    match eth_type {
        _ if is_vlan(eth_type) && tagged < 2 => return frame,
        et::IPV4 => ipv4(&mut frame, key, len),
        et::IPV6 => ipv6(&mut frame, key, len),
        et::ARP | et::RARP => arp(&mut frame, key),
        et::MPLS | et::MPLS_MULTICAST => mpls(&mut frame, key),
        _ => {}
    }
    frame.resize(frame.len().max(len), 0);
    frame
}

/// Appends a field that is a whole number of bytes.
fn put(frame: &mut Vec<u8>, key: &Key, field: Field) {
    frame.extend_from_slice(&key.get(field).to_be_bytes()[16 - usize::from(field.bits() / 8)..]);
}

fn get8(key: &Key, field: Field) -> u8 {
    key.get(field) as u8
}

fn get16(key: &Key, field: Field) -> u16 {
    key.get(field) as u16
}

fn get32(key: &Key, field: Field) -> u32 {
    key.get(field) as u32
}

/// A length in place of the type, and the LLC header of a bridge's spanning tree, which is no SNAP.
fn llc(frame: &mut Vec<u8>, len: usize) {
    let length = len.saturating_sub(frame.len() + 2).clamp(3, 1_500);
    frame.extend((length as u16).to_be_bytes());
    frame.extend([0x42, 0x42, 0x03]);
}

fn mpls(frame: &mut Vec<u8>, key: &Key) {
    let labels = [
        (Field::Mpls0Label, Field::Mpls0Tc, Field::Mpls0Bos, Field::Mpls0Ttl),
        (Field::Mpls1Label, Field::Mpls1Tc, Field::Mpls1Bos, Field::Mpls1Ttl),
        (Field::Mpls2Label, Field::Mpls2Tc, Field::Mpls2Bos, Field::Mpls2Ttl),
    ];
    for (label, tc, bos, ttl) in labels {
        let [label, tc, bottom, ttl] = [label, tc, bos, ttl].map(|field| get32(key, field));
        frame.extend((label << 12 | tc << 9 | bottom << 8 | ttl).to_be_bytes());
        if bottom != 0 {
            return;
        }
    }
    // The stack goes on behind what a key can hold; end it.
    frame.extend(0x100u32.to_be_bytes());
}

fn arp(frame: &mut Vec<u8>, key: &Key) {
    // Ethernet, IPv4, and the lengths of their addresses.
    frame.extend([0, 1, 8, 0, 6, 4, 0]);
    for field in [Field::ArpOp, Field::ArpSha, Field::ArpSip, Field::ArpTha, Field::ArpTip] {
        put(frame, key, field);
    }
}

fn ipv4(frame: &mut Vec<u8>, key: &Key, len: usize) {
    let at = frame.len();
    let proto = key.ip_proto();
    frame.extend([0x45, get8(key, Field::IpTos), 0, 0, 0, 0]);
    frame.extend(
        match get8(key, Field::IpFrag) {
            frag::NO => 0u16,
            frag::FIRST => MORE,
            _ => OFFSET / 8,
        }
        .to_be_bytes(),
    );
    frame.extend([get8(key, Field::IpTtl), proto, 0, 0]);
    put(frame, key, Field::Ipv4Src);
    put(frame, key, Field::Ipv4Dst);
    let payload_at = frame.len();
    payload(frame, key, proto, len, usize::from(u16::MAX) - 20);

    let total = (frame.len() - at) as u16;
    frame[at + 2..at + 4].copy_from_slice(&total.to_be_bytes());
    let checksum = Sum::of(&frame[at..payload_at]).checksum();
    frame[at + 10..at + 12].copy_from_slice(&checksum.to_be_bytes());
    if let Some(addresses) = frame[at + 12..].first_chunk() {
        let pseudo = pseudo_ipv4(addresses, proto, (frame.len() - payload_at) as u32);
        finish(frame, key, proto, payload_at, pseudo);
    }
}

/// IPv4's "more fragments".
const MORE: u16 = 0x2000;
/// Where a later fragment stands in its datagram, in bytes: what a 1,500-byte MTU leaves for the first.
const OFFSET: u16 = 1_480;

fn ipv6(frame: &mut Vec<u8>, key: &Key, len: usize) {
    let at = frame.len();
    let (proto, fragment) = (key.ip_proto(), get8(key, Field::IpFrag));
    frame.extend((6 << 28 | get32(key, Field::IpTos) << 20 | get32(key, Field::Ipv6Label)).to_be_bytes());
    frame.extend([0, 0, if fragment == frag::NO { proto } else { IPV6_FRAGMENT }, get8(key, Field::IpTtl)]);
    put(frame, key, Field::Ipv6Src);
    put(frame, key, Field::Ipv6Dst);
    match fragment {
        frag::NO => {}
        frag::FIRST => frame.extend([proto, 0, 0, 1, 0, 0, 0, 0]),
        _ => {
            let [high, low] = OFFSET.to_be_bytes();
            frame.extend([NO_NEXT, 0, high, low, 0, 0, 0, 0]);
        }
    }
    let payload_at = frame.len();
    let room = usize::from(u16::MAX) - (payload_at - at - 40);
    match fragment {
        frag::NO | frag::FIRST if is_extension(proto) => {
            // Such a key is of a datagram that ends within its extension headers.
        }
        _ => payload(frame, key, proto, len, room),
    }
    let length = (frame.len() - at - 40) as u16;
    frame[at + 4..at + 6].copy_from_slice(&length.to_be_bytes());
    if let Some(addresses) = frame[at + 8..].first_chunk() {
        let pseudo = pseudo_ipv6(addresses, proto, (frame.len() - payload_at) as u32);
        finish(frame, key, proto, payload_at, pseudo);
    }
}

/// IPv6's "nothing follows".
const NO_NEXT: u8 = 59;

/// Appends what IP carries, of at most `room` bytes, so that the frame becomes `len` long where it can.
fn payload(frame: &mut Vec<u8>, key: &Key, proto: u8, len: usize, room: usize) {
    let at = frame.len();
    let v6 = key.eth_type() == et::IPV6;
    let mut grows = true;
    if get8(key, Field::IpFrag) != frag::LATER {
        match proto {
            ip::TCP => {
                frame.extend(get32_ports(key).to_be_bytes());
                frame.extend([0; 8]);
                frame.extend((5 << 12 | get16(key, Field::TcpFlags) & 0x0fff).to_be_bytes());
                frame.extend([0xff, 0xff, 0, 0, 0, 0]);
            }
            ip::UDP => {
                frame.extend(get32_ports(key).to_be_bytes());
                frame.extend([0; 4]);
            }
            ip::SCTP => {
                frame.extend(get32_ports(key).to_be_bytes());
                frame.extend([0; 8]);
            }
            ip::ICMP if !v6 => frame.extend([get8(key, Field::IcmpType), get8(key, Field::IcmpCode), 0, 0, 0, 0, 0, 0]),
            ip::ICMP6 if v6 => {
                let (kind, code) = (get8(key, Field::Icmp6Type), get8(key, Field::Icmp6Code));
                frame.extend([kind, code, 0, 0]);
                if matches!(kind, 135 | 136) && code == 0 {
                    neighbour(frame, key);
                    grows = false;
                } else {
                    frame.extend([0; 4]);
                }
            }
            _ => {}
        }
    }
    let mut end = if grows { frame.len().max(len).min(at + room) } else { frame.len() };
    if get8(key, Field::IpFrag) == frag::FIRST {
        // All fragments but the last carry a multiple of 8 bytes. Up where the headers need it, else down.
        let down = at + (end - at) / 8 * 8;
        end = if down < frame.len() { down + 8 } else { down };
    }
    frame.resize(end, 0);
}

fn get32_ports(key: &Key) -> u32 {
    get32(key, Field::TpSrc) << 16 | get32(key, Field::TpDst)
}

/// The rest of a neighbour message: an option for each link-layer address that is there, or that comes first.
fn neighbour(frame: &mut Vec<u8>, key: &Key) {
    put(frame, key, Field::NdReserved);
    put(frame, key, Field::NdTarget);
    let first = get8(key, Field::NdOptionsType);
    let mut options = [(1, Field::NdSll), (2, Field::NdTll)];
    if first == 2 {
        options.reverse();
    }
    for (kind, address) in options {
        if kind == first || key.get(address) != 0 {
            frame.extend([kind, 1]);
            put(frame, key, address);
        }
    }
}

/// Writes the lengths and checksums of what stands at `at`.
fn finish(frame: &mut [u8], key: &Key, proto: u8, at: usize, pseudo: Sum) {
    if get8(key, Field::IpFrag) == frag::LATER || at == frame.len() {
        return;
    }
    let message = &mut frame[at..];
    let v6 = key.eth_type() == et::IPV6;
    match proto {
        ip::TCP => {
            let checksum = pseudo.plus(Sum::of(message)).checksum();
            message[16..18].copy_from_slice(&checksum.to_be_bytes());
        }
        ip::UDP => {
            let len = message.len() as u16;
            message[4..6].copy_from_slice(&len.to_be_bytes());
            let checksum = pseudo.plus(Sum::of(message)).udp_checksum();
            message[6..8].copy_from_slice(&checksum.to_be_bytes());
        }
        ip::SCTP => {
            let crc = crc32c::of(&[message]);
            message[8..12].copy_from_slice(&crc.to_le_bytes());
        }
        ip::ICMP if !v6 => {
            let checksum = Sum::of(message).checksum();
            message[2..4].copy_from_slice(&checksum.to_be_bytes());
        }
        ip::ICMP6 if v6 => {
            let checksum = pseudo.plus(Sum::of(message)).checksum();
            message[2..4].copy_from_slice(&checksum.to_be_bytes());
        }
        _ => {}
    }
}

/// Keys that well-formed frames have, for the tests of the whole crate.
#[cfg(test)]
pub(crate) mod keys {
    use super::*;
    use crate::flow::field::WORDS;
    use proptest::prelude::*;

    /// Any key that [`extract`](crate::packet::extract::extract) gives of some well-formed frame without a port.
    pub fn key() -> impl Strategy<Value = Key> {
        (any::<[u64; WORDS]>(), 0..3usize, 0..7usize, 0..6usize, any::<[u8; 4]>()).prop_map(
            |(noise, tags, kind, transport, dice)| consistent(&Key::from_words(noise), tags, kind, transport, dice),
        )
    }

    fn consistent(noise: &Key, tags: usize, kind: usize, transport: usize, dice: [u8; 4]) -> Key {
        use Field::*;
        let mut key = Key::ZERO;
        let take = |key: &mut Key, fields: &[Field]| fields.iter().for_each(|f| key.set(*f, noise.get(*f)));
        take(&mut key, &[EthDst, EthSrc]);
        let tpid = if dice[0] & 1 == 0 { et::VLAN } else { et::QINQ };
        if tags > 0 {
            take(&mut key, &[Vlan0Pcp, Vlan0Vid]);
            key.set(Vlan0Cfi, 1u8);
            key.set(Vlan0Tpid, tpid);
        }
        if tags > 1 {
            take(&mut key, &[Vlan1Pcp, Vlan1Vid]);
            key.set(Vlan1Cfi, 1u8);
            key.set(Vlan1Tpid, et::VLAN);
        }
        let eth_type = [et::IPV4, et::IPV6, et::IPV4, et::IPV6, et::ARP, et::MPLS, et::NONE][kind];
        key.set(EthType, if dice[1] == 0 { 0x88b5 } else { eth_type });
        let v6 = eth_type == et::IPV6;
        match key.eth_type() {
            et::IPV4 => take(&mut key, &[Ipv4Src, Ipv4Dst, IpTos, IpTtl]),
            et::IPV6 => take(&mut key, &[Ipv6Src, Ipv6Dst, Ipv6Label, IpTos, IpTtl]),
            et::ARP => take(&mut key, &[ArpOp, ArpSha, ArpSip, ArpTha, ArpTip]),
            et::MPLS => {
                take(&mut key, &[Mpls0Label, Mpls0Tc, Mpls0Ttl]);
                key.set(Mpls0Bos, dice[2] & 1);
                if dice[2] & 1 == 0 {
                    take(&mut key, &[Mpls1Label, Mpls1Tc, Mpls1Ttl]);
                    key.set(Mpls1Bos, dice[2] >> 1 & 1);
                    if dice[2] >> 1 & 1 == 0 {
                        take(&mut key, &[Mpls2Label, Mpls2Tc, Mpls2Bos, Mpls2Ttl]);
                    }
                }
            }
            _ => {}
        }
        if !matches!(key.eth_type(), et::IPV4 | et::IPV6) {
            return key;
        }
        match dice[0] >> 1 & 7 {
            0 => key.set(IpFrag, frag::FIRST),
            1 => {
                key.set(IpFrag, frag::LATER);
                key.set(IpProto, if v6 { IPV6_FRAGMENT } else { [ip::TCP, ip::UDP][transport % 2] });
                return key;
            }
            _ => {}
        }
        let icmp = if v6 { ip::ICMP6 } else { ip::ICMP };
        let proto = [ip::TCP, ip::UDP, ip::SCTP, icmp, icmp, 47][transport];
        key.set(IpProto, proto);
        match proto {
            ip::TCP | ip::UDP | ip::SCTP => take(&mut key, &[TpSrc, TpDst]),
            ip::ICMP | ip::ICMP6 => {
                key.set(IcmpType, noise.get(IcmpType) & 0xff);
                key.set(IcmpCode, noise.get(IcmpCode) & 0xff);
            }
            _ => {}
        }
        if proto == ip::TCP {
            key.set(TcpFlags, noise.get(TcpFlags) & 0x0fff);
        }
        let code = key.get(Icmp6Code);
        if proto == ip::ICMP6 && (transport == 4 || matches!(key.get(Icmp6Type), 135 | 136) && code == 0) {
            key.set(Icmp6Type, 135 + (dice[2] & 1));
            key.set(Icmp6Code, 0u8);
            take(&mut key, &[NdTarget, NdReserved]);
            let options = dice[3] & 3;
            if options & 1 != 0 {
                take(&mut key, &[NdSll]);
            }
            if options & 2 != 0 {
                take(&mut key, &[NdTll]);
            }
            let first = [0, 1, 2, 1 + (dice[3] >> 2 & 1)][usize::from(options)];
            key.set(NdOptionsType, first);
        }
        key
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::extract::extract;
    use crate::packet::{Packet, checksum};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_composed_frame_has_the_key_it_was_composed_of(key in keys::key(), len in 0usize..2000) {
            let frame = compose(&key, len);
            prop_assert_eq!(extract(&Packet::from_bytes(&frame)), key);
            prop_assert!(frame.len() >= len.max(MIN_FRAME));
        }

        #[test]
        fn every_key_that_a_frame_can_have_is_composed_again(frame in proptest::collection::vec(any::<u8>(), 14..200), pick: u16, head: [u8; 3], len in 0usize..200) {
            // Types and first bytes that lead somewhere, with whatever behind them.
            let mut frame = frame;
            let types = [0x0800u16, 0x86dd, 0x0806, 0x8847, 0x8100, 0x88a8, 0x0011, 0x86dd];
            frame[12..14].copy_from_slice(&types[usize::from(pick % 8)].to_be_bytes());
            match (types[usize::from(pick % 8)], frame.get_mut(14..)) {
                (0x0800, Some([first, _, high, low, ..])) => (*first, *high, *low) = (0x45, 0, head[0] % 64),
                (0x86dd, Some([first, _, _, _, high, low, next, ..])) => {
                    let protos = [0, 6, 17, 43, 44, 51, 58, 60, 132];
                    (*first, *high, *low, *next) = (0x60, 0, head[0] % 160, protos[usize::from(head[1]) % protos.len()]);
                }
                _ => {}
            }
            let key = extract(&Packet::from_bytes(&frame));
            let again = compose(&key, len);
            prop_assert_eq!(extract(&Packet::from_bytes(&again)), key, "{:02x?} of {:02x?}", again, frame);
        }
    }

    #[test]
    fn no_key_and_no_length_makes_it_panic_or_grow_without_bound() {
        for word in [0u64, u64::MAX, 0x5555_5555_5555_5555, 0x0800, 0x86dd] {
            for eth_type in [0u16, 0x05ff, 0x0800, 0x86dd, 0x0806, 0x8847, 0x8100, 0xffff] {
                for proto in [0u8, 6, 17, 44, 58, 132] {
                    for len in [0, 60, 1514, MAX_FRAME, usize::MAX] {
                        let mut key = Key::from_words([word; crate::flow::field::WORDS]);
                        key.set(Field::EthType, eth_type);
                        if eth_type != 0x0806 {
                            key.set(Field::IpProto, proto);
                        }
                        let frame = compose(&key, len);
                        assert!(frame.len() <= MAX_FRAME);
                        extract(&Packet::from_bytes(&frame));
                    }
                }
            }
        }
    }

    #[test]
    fn a_length_becomes_payload_that_the_checksums_cover() {
        let mut key = Key::ZERO;
        key.set(Field::EthType, et::IPV4);
        key.set(Field::IpProto, ip::UDP);
        let frame = compose(&key, 500);
        assert_eq!(frame.len(), 500);
        assert_eq!(&frame[16..18], &486u16.to_be_bytes());
        assert_eq!(&frame[38..40], &466u16.to_be_bytes());
        let pseudo = checksum::pseudo_ipv4(frame[26..].first_chunk().unwrap(), ip::UDP, 466);
        assert_eq!(pseudo.plus(Sum::of(&frame[34..])).folded(), 0xffff);
    }
}
