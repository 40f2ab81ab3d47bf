//! Frame → [`Columns`], the NIC's own way: a cursor that walks the headers and writes down what it passes.
//!
//! What a column means is fixed by [`crate::flow::field`]; how a frame is read is written here anew, and on purpose
//! not shared with the datapath. Where a header is cut short or contradicts itself, the columns of that header, and of
//! those above it, stay 0; what was read below stays.
//!
//! Sources: IEEE 802.1Q, RFC 3032 (MPLS), RFC 826 (ARP), RFC 791, RFC 8200, RFC 9293, RFC 768, RFC 9260, RFC 4861.

use super::table::{Columns, column};
use crate::flow::field::FIELDS;
use crate::flow::key::frag;
use crate::flow::{Field, PortNo};

/// IPv6 extension headers that the NIC passes at most.
const EXTENSIONS: usize = 8;

/// Reads `frame`, which came from `port`. `unsegmented`: it stands for several, so an IP length of 0 means that the
/// true one does not fit.
pub fn columns(frame: &[u8], port: PortNo, unsegmented: bool) -> Columns {
    let mut seen = Seen { columns: [0; FIELDS.len()], unsegmented };
    seen.put(Field::InPort, port.0);
    seen.ethernet(Cursor(frame));
    seen.columns
}

struct Seen {
    columns: Columns,
    unsegmented: bool,
}

/// What is left of the frame.
#[derive(Clone, Copy)]
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn left(&self) -> usize {
        self.0.len()
    }

    /// The next `n` bytes as a number, without passing them.
    fn peek(&self, at: usize, n: usize) -> Option<u128> {
        let bytes = self.0.get(at..at.checked_add(n)?)?;
        Some(bytes.iter().fold(0, |number, &byte| number << 8 | u128::from(byte)))
    }

    fn number(&mut self, n: usize) -> Option<u128> {
        let number = self.peek(0, n)?;
        self.0 = &self.0[n..];
        Some(number)
    }

    fn byte(&mut self) -> Option<u8> {
        Some(self.number(1)? as u8)
    }

    fn pair(&mut self) -> Option<u16> {
        Some(self.number(2)? as u16)
    }

    fn pass(&mut self, n: usize) -> Option<()> {
        self.0 = self.0.get(n..)?;
        Some(())
    }

    /// Only the first `n` bytes of what is left.
    fn only(self, n: usize) -> Option<Cursor<'a>> {
        Some(Cursor(self.0.get(..n)?))
    }
}

impl Seen {
    fn put(&mut self, field: Field, value: impl Into<u128>) {
        self.columns[column(field)] = value.into() & field.full();
    }

    fn ethernet(&mut self, mut at: Cursor<'_>) -> Option<()> {
        if at.left() < 14 {
            return None;
        }
        let (dst, src) = (at.number(6)?, at.number(6)?);
        self.put(Field::EthDst, dst);
        self.put(Field::EthSrc, src);
        let tags = [
            [Field::Vlan0Tpid, Field::Vlan0Pcp, Field::Vlan0Cfi, Field::Vlan0Vid],
            [Field::Vlan1Tpid, Field::Vlan1Pcp, Field::Vlan1Cfi, Field::Vlan1Vid],
        ];
        for [tpid, pcp, cfi, vid] in tags {
            let kind = at.peek(0, 2)?;
            // A tag is four bytes and is followed by a type.
            if !matches!(kind, 0x8100 | 0x88a8) || at.left() < 6 {
                break;
            }
            at.pass(2)?;
            let tci = at.pair()?;
            self.put(tpid, kind);
            self.put(pcp, tci >> 13);
            self.put(cfi, 1u8);
            self.put(vid, tci & 0xfff);
        }
        let kind = match at.pair()? {
            ..0x600 => length_frame(&mut at),
            kind => kind,
        };
        self.put(Field::EthType, kind);
        match kind {
            0x0800 => self.ipv4(at),
            0x86dd => self.ipv6(at),
            0x0806 | 0x8035 => self.arp(at),
            0x8847 | 0x8848 => self.mpls(at),
            _ => None,
        }
    }

    fn mpls(&mut self, mut at: Cursor<'_>) -> Option<()> {
        let labels = [
            [Field::Mpls0Label, Field::Mpls0Tc, Field::Mpls0Bos, Field::Mpls0Ttl],
            [Field::Mpls1Label, Field::Mpls1Tc, Field::Mpls1Bos, Field::Mpls1Ttl],
            [Field::Mpls2Label, Field::Mpls2Tc, Field::Mpls2Bos, Field::Mpls2Ttl],
        ];
        for [label, tc, bos, ttl] in labels {
            let entry = at.number(4)?;
            self.put(label, entry >> 12);
            self.put(tc, entry >> 9);
            self.put(bos, entry >> 8);
            self.put(ttl, entry);
            if entry >> 8 & 1 == 1 {
                break;
            }
        }
        Some(())
    }

    fn arp(&mut self, mut at: Cursor<'_>) -> Option<()> {
        // Ethernet and IPv4 addresses only.
        if at.left() < 28 || at.number(6)? != 0x0001_0800_0604 {
            return None;
        }
        let op = at.pair()?;
        self.put(Field::ArpOp, if op > 255 { 0 } else { op });
        for (field, bytes) in [(Field::ArpSha, 6), (Field::ArpSip, 4), (Field::ArpTha, 6), (Field::ArpTip, 4)] {
            let address = at.number(bytes)?;
            self.put(field, address);
        }
        Some(())
    }

    fn ipv4(&mut self, at: Cursor<'_>) -> Option<()> {
        let first = at.peek(0, 1)? as u8;
        let header = usize::from(first & 0xf) * 4;
        let total = match at.peek(2, 2)? as usize {
            0 if self.unsegmented => at.left(),
            total => total,
        };
        if first >> 4 != 4 || header < 20 || at.left() < header || total < header || total > at.left() {
            return None;
        }
        let fragment = at.peek(6, 2)?;
        let kind = match (fragment & 0x1fff, fragment & 0x2000) {
            (0, 0) => frag::NO,
            (0, _) => frag::FIRST,
            _ => frag::LATER,
        };
        let protocol = at.peek(9, 1)? as u8;
        self.put(Field::IpTos, at.peek(1, 1)?);
        self.put(Field::IpTtl, at.peek(8, 1)?);
        self.put(Field::IpProto, protocol);
        self.put(Field::IpFrag, kind);
        self.put(Field::Ipv4Src, at.peek(12, 4)?);
        self.put(Field::Ipv4Dst, at.peek(16, 4)?);
        let mut payload = at.only(total)?;
        payload.pass(header)?;
        if kind == frag::LATER {
            return None;
        }
        self.transport(protocol, payload, false)
    }

    fn ipv6(&mut self, at: Cursor<'_>) -> Option<()> {
        let first = at.peek(0, 4)?;
        let length = match at.peek(4, 2)? as usize {
            0 if self.unsegmented => at.left().saturating_sub(40),
            length => length,
        };
        if at.left() < 40 || first >> 28 != 6 || length > at.left() - 40 {
            return None;
        }
        let mut next = at.peek(6, 1)? as u8;
        let mut payload = at.only(40 + length)?;
        payload.pass(40)?;
        let mut kind = frag::NO;
        for _ in 0..EXTENSIONS {
            match extension(next, payload) {
                Extension::None => break,
                Extension::Passed { follows, behind, first } => {
                    (next, payload) = (follows, behind);
                    kind |= if first { frag::FIRST } else { frag::NO };
                }
                Extension::Later => {
                    kind = frag::LATER;
                    break;
                }
            }
        }
        self.put(Field::Ipv6Label, first);
        self.put(Field::IpTos, first >> 20);
        self.put(Field::IpTtl, at.peek(7, 1)?);
        self.put(Field::Ipv6Src, at.peek(8, 16)?);
        self.put(Field::Ipv6Dst, at.peek(24, 16)?);
        self.put(Field::IpProto, next);
        self.put(Field::IpFrag, kind);
        // A later fragment has no transport header; `next` still names the fragment header then.
        self.transport(next, payload, true)
    }

    fn transport(&mut self, protocol: u8, mut at: Cursor<'_>, v6: bool) -> Option<()> {
        let least = match (protocol, v6) {
            (6, _) => 20,
            (17, _) => 8,
            (132, _) => 12,
            (1, false) => 8,
            (58, true) => 4,
            _ => return None,
        };
        if at.left() < least {
            return None;
        }
        match protocol {
            1 => {
                let (kind, code) = (at.byte()?, at.byte()?);
                self.put(Field::IcmpType, kind);
                self.put(Field::IcmpCode, code);
            }
            58 => return self.icmp6(at),
            _ => {
                self.put(Field::TpSrc, at.peek(0, 2)?);
                self.put(Field::TpDst, at.peek(2, 2)?);
                if protocol == 6 {
                    self.put(Field::TcpFlags, at.peek(12, 2)? & 0xfff);
                }
            }
        }
        Some(())
    }

    fn icmp6(&mut self, mut at: Cursor<'_>) -> Option<()> {
        let (kind, code) = (at.byte()?, at.byte()?);
        self.put(Field::Icmp6Type, kind);
        self.put(Field::Icmp6Code, code);
        // Neighbour solicitation and advertisement, RFC 4861 §4.3 and §4.4.
        if !matches!(kind, 135 | 136) || code != 0 {
            return None;
        }
        at.pass(2)?;
        let (reserved, target) = (at.number(4)?, at.number(16)?);
        let (mut source, mut destination, mut first) = (None, None, None);
        while let (Some(option), Some(length)) = (at.peek(0, 1), at.peek(1, 1)) {
            let address = at.peek(2, 6);
            if length == 0 || at.pass(length as usize * 8).is_none() {
                break;
            }
            let place = match option {
                1 if length == 1 => &mut source,
                2 if length == 1 => &mut destination,
                _ => continue,
            };
            if place.is_some() {
                // Which of two is meant?
                return None;
            }
            *place = address;
            first = first.or(Some(option));
        }
        self.put(Field::NdReserved, reserved);
        self.put(Field::NdTarget, target);
        self.put(Field::NdOptionsType, first.unwrap_or(0));
        self.put(Field::NdSll, source.unwrap_or(0));
        self.put(Field::NdTll, destination.unwrap_or(0));
        Some(())
    }
}

/// IEEE 802.3: a length, then LLC. Behind a SNAP header of Ethernet's own (RFC 1042) stands a type after all.
fn length_frame(at: &mut Cursor<'_>) -> u16 {
    const SNAP: u128 = 0xaaaa_0300_0000;
    match (at.peek(0, 6), at.peek(6, 2)) {
        (Some(SNAP), Some(kind)) if kind >= 0x600 && at.pass(8).is_some() => kind as u16,
        _ => 0x05ff,
    }
}

/// What one step over IPv6 extension headers found.
enum Extension<'a> {
    /// Not an extension header, or one that is cut off.
    None,
    /// One that was passed; `first`: it said that this is the first of several fragments.
    Passed { follows: u8, behind: Cursor<'a>, first: bool },
    /// A fragment header that says that earlier fragments hold the rest.
    Later,
}

/// RFC 8200 §4: an extension header names its successor, then says how long it is.
fn extension(kind: u8, at: Cursor<'_>) -> Extension<'_> {
    let step = || {
        at.peek(0, 8)?;
        let (follows, units) = (at.peek(0, 1)? as u8, at.peek(1, 1)? as usize);
        let length = match kind {
            0 | 43 | 60 => 8 * units + 8,
            44 => 8,
            51 => 4 * units + 8,
            _ => return None,
        };
        let mut behind = at;
        behind.pass(length)?;
        let fragment = if kind == 44 { at.peek(2, 2)? } else { 0 };
        Some(match fragment >> 3 {
            0 => Extension::Passed { follows, behind, first: fragment & 1 == 1 },
            _ => Extension::Later,
        })
    };
    step().unwrap_or(Extension::None)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(frame: &[u8]) -> impl Fn(Field) -> u128 + use<> {
        let columns = columns(frame, PortNo(3), false);
        move |field| columns[column(field)]
    }

    fn ethernet(rest: &[u8]) -> Vec<u8> {
        [&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1], rest].concat()
    }

    fn ipv4(fragment: u16, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let total = (20 + payload.len()) as u16;
        let mut header = vec![0x08, 0x00, 0x45, 0x10];
        header.extend(total.to_be_bytes());
        header.extend([0, 1]);
        header.extend(fragment.to_be_bytes());
        header.extend([64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        header.extend(payload);
        header
    }

    #[test]
    fn two_tags_a_datagram_and_its_ports_are_read() {
        let udp = [0x12, 0x34, 0, 53, 0, 8, 0, 0];
        let tagged = [&[0x88, 0xa8, 0x60, 5, 0x81, 0, 0, 9][..], &ipv4(0, 17, &udp)].concat();
        let field = read(&ethernet(&tagged));
        let expected = [
            (Field::InPort, 3),
            (Field::EthSrc, 0x0200_0000_0001),
            (Field::EthType, 0x0800),
            (Field::Vlan0Tpid, 0x88a8),
            (Field::Vlan0Pcp, 3),
            (Field::Vlan0Cfi, 1),
            (Field::Vlan0Vid, 5),
            (Field::Vlan1Cfi, 1),
            (Field::Vlan1Vid, 9),
            (Field::IpTos, 0x10),
            (Field::IpTtl, 64),
            (Field::IpFrag, 0),
            (Field::Ipv4Src, 0x0a00_0001),
            (Field::TpSrc, 0x1234),
            (Field::TpDst, 53),
        ];
        for (name, value) in expected {
            assert_eq!(field(name), value, "{}", name.name());
        }
    }

    #[test]
    fn only_the_first_fragment_has_ports() {
        let udp = [0x12, 0x34, 0, 53, 0, 8, 0, 0];
        for (fragment, kind, port) in [(0x2000, frag::FIRST, 53), (0x2001, frag::LATER, 0), (0x0001, frag::LATER, 0)] {
            let field = read(&ethernet(&ipv4(fragment, 17, &udp)));
            assert_eq!((field(Field::IpFrag), field(Field::TpDst)), (u128::from(kind), port), "{fragment:#x}");
        }
    }

    #[test]
    fn a_contradictory_header_leaves_its_columns_empty() {
        let mut longer_than_the_frame = ipv4(0, 17, &[0; 8]);
        longer_than_the_frame[5] += 1;
        let field = read(&ethernet(&longer_than_the_frame));
        assert_eq!((field(Field::EthType), field(Field::Ipv4Src), field(Field::IpProto)), (0x0800, 0, 0));
    }

    #[test]
    fn lengths_odd_operations_and_extension_headers_are_read_as_the_fields_say() {
        assert_eq!(read(&ethernet(&[0, 40, 0x42, 0x42, 3]))(Field::EthType), 0x05ff);
        assert_eq!(read(&ethernet(&[0, 40, 0xaa, 0xaa, 3, 0, 0, 0, 0x12, 0x34]))(Field::EthType), 0x1234);
        let mut arp = vec![8, 6, 0, 1, 8, 0, 6, 4, 1, 2];
        arp.extend([9; 20]);
        let field = read(&ethernet(&arp));
        assert_eq!((field(Field::ArpOp), field(Field::ArpSip)), (0, 0x0909_0909));
        let mut ipv6 = vec![0x86, 0xdd, 0x60, 0, 0, 1, 0, 16, 0, 64];
        ipv6.extend([1; 32]);
        ipv6.extend([58, 0, 1, 4, 0, 0, 0, 0, 128, 0, 0, 0, 0, 0, 0, 0]);
        let field = read(&ethernet(&ipv6));
        assert_eq!((field(Field::IpProto), field(Field::Icmp6Type), field(Field::Ipv6Label)), (58, 128, 1));
    }

    #[test]
    fn a_neighbour_advertisement_tells_target_and_address() {
        let mut message = vec![0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, 255];
        message.extend([1; 32]);
        message.extend([136, 0, 0, 0, 0x60, 0, 0, 0]);
        message.extend([5; 16]);
        message.extend([2, 1, 2, 0, 0, 0, 0, 7]);
        let field = read(&ethernet(&message));
        assert_eq!((field(Field::NdTll), field(Field::NdSll)), (0x0200_0000_0007, 0));
        assert_eq!((field(Field::NdOptionsType), field(Field::NdReserved)), (2, 0x6000_0000));
        assert_eq!(field(Field::NdTarget) & 0xff, 5);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_to_their_end_and_no_further(
            kind in prop::sample::select(vec![[0x08, 0], [0x86, 0xdd], [0x08, 0x06], [0x81, 0], [0x88, 0x47], [0, 40]]),
            rest in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let frame = ethernet(&[&kind[..], &rest].concat());
            for cut in 0..frame.len() {
                let field = read(&frame[..cut]);
                prop_assert_eq!(field(Field::InPort), 3);
                prop_assert!(cut >= 14 || field(Field::EthDst) == 0);
            }
        }
    }
}
