//! The virtio-net header that TAP devices and packet sockets put in front of a frame.
//!
//! It says what a kernel left undone (a checksum to finish, a frame to cut), in both directions, so that such frames
//! cross the switch whole. Layout: Virtual I/O Device v1.2 §5.1.6, the ten legacy bytes, in the machine's own byte
//! order (`TUNSETVNETLE` is off; packet sockets know no other).
//!
//! ```text
//!  0      1         2        4         6           8            10
//!  flags  gso_type  hdr_len  gso_size  csum_start  csum_offset
//! ```
//!
//! A reader does not know how long the next frame is. It offers an ordinary buffer and, behind it, the tail of a large one; a [`Slot`]
//! makes a frame of what came, so that an ordinary frame is not copied again, and of a long one only the first part:
//!
//! ```text
//!  virtio header   an ordinary buffer       a large buffer, from where the ordinary one's room would end
//!  [10 bytes]      [headroom|1,984 bytes]   [headroom|   not used  |64 KiB …]
//! ```

use crate::packet::{Offload, Packet, PartialChecksum, Pool, SegmentKind, Segmentation};

/// Bytes of the header.
pub const LEN: usize = 10;

const NEEDS_CSUM: u8 = 1;

const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// The header describes nothing that can be done to its frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed;

/// Where the next frame goes, whatever its length turns out to be.
pub struct Slot {
    header: [u8; LEN],
    small: Packet,
    large: Packet,
}

impl Slot {
    pub fn new(pool: &mut Pool) -> Slot {
        Slot { header: [0; LEN], small: pool.take(), large: pool.take_jumbo() }
    }

    /// What to receive into: the header, the frame's first part, and its rest.
    #[inline]
    pub fn buffers(&mut self) -> [&mut [u8]; 3] {
        let first = self.small.capacity();
        [&mut self.header, self.small.room_mut(), &mut self.large.room_mut()[first..]]
    }

    /// The frame of which `received` bytes came, header included, with what is left to do for it. Afterwards the slot is ready for the next one.
    ///
    /// # Errors
    /// As [`decode`] has them.
    #[inline]
    pub fn take(&mut self, received: usize, pool: &mut Pool) -> Result<Packet, Malformed> {
        let len = received.checked_sub(LEN).ok_or(Malformed)?;
        let first = self.small.capacity();
        let mut packet;
        if len <= first {
            packet = std::mem::replace(&mut self.small, pool.take());
            packet.set_len(len);
        } else {
            packet = std::mem::replace(&mut self.large, pool.take_jumbo());
            packet.set_len(len);
            packet.bytes_mut()[..first].copy_from_slice(&self.small.room_mut()[..first]);
        }
        match describe(&mut packet, &self.header, None) {
            Ok(()) => Ok(packet),
            Err(malformed) => {
                pool.give(packet);
                Err(malformed)
            }
        }
    }
}

/// Says in `packet` what `header` says of it, and puts back the VLAN tag `(TPID, TCI)` that the kernel took off.
///
/// # Errors
/// As [`decode`] has them, or the frame is shorter than what precedes a tag.
#[inline]
pub fn describe(packet: &mut Packet, header: &[u8; LEN], tag: Option<(u16, u16)>) -> Result<(), Malformed> {
    let inserted = match tag {
        Some(tag) => put_tag_back(packet, tag)?,
        None => 0,
    };
    packet.meta.offload = decode(header, packet.len(), inserted)?;
    Ok(())
}

/// Puts a VLAN tag back between the addresses and the type. Answers with its length.
fn put_tag_back(packet: &mut Packet, (tpid, tci): (u16, u16)) -> Result<u16, Malformed> {
    const ADDRESSES: usize = 12;
    const TAG: usize = 4;
    if packet.len() < ADDRESSES || !packet.prepend(TAG) {
        return Err(Malformed);
    }
    let frame = packet.bytes_mut();
    frame.copy_within(TAG..TAG + ADDRESSES, 0);
    frame[ADDRESSES..ADDRESSES + 2].copy_from_slice(&tpid.to_be_bytes());
    frame[ADDRESSES + 2..ADDRESSES + TAG].copy_from_slice(&tci.to_be_bytes());
    Ok(TAG as u16)
}

/// Reads a header whose frame has `frame_len` bytes, the first `inserted` of which the header does not know of.
///
/// # Errors
/// The checksum field lies outside the frame, pieces would be empty, or the kind of segmentation is unknown (UDP fragmentation
/// offload among them, which Linux gave up with 4.14). Such a frame is to be dropped: nobody can finish it.
#[inline]
pub fn decode(header: &[u8; LEN], frame_len: usize, inserted: u16) -> Result<Offload, Malformed> {
    if header[0] & NEEDS_CSUM == 0 && header[1] == GSO_NONE {
        return Ok(Offload::default());
    }
    let field = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
    let mut offload = Offload::default();
    if header[0] & NEEDS_CSUM != 0 {
        let start = field(6).checked_add(inserted).ok_or(Malformed)?;
        let offset = field(8);
        if usize::from(start) + usize::from(offset) + 2 > frame_len {
            return Err(Malformed);
        }
        offload.checksum = Some(PartialChecksum { start, offset });
    }
    let kind = match header[1] & !GSO_ECN {
        GSO_NONE => return Ok(offload),
        GSO_TCPV4 => SegmentKind::TcpIpv4,
        GSO_TCPV6 => SegmentKind::TcpIpv6,
        GSO_UDP_L4 => SegmentKind::Udp,
        _ => return Err(Malformed),
    };
    let size = field(4);
    if size == 0 {
        return Err(Malformed);
    }
    offload.segment = Some(Segmentation { kind, size, ecn: header[1] & GSO_ECN != 0 });
    Ok(offload)
}

/// The header that says what is left to do for `frame`.
#[inline]
pub fn encode(offload: &Offload, frame: &[u8]) -> [u8; LEN] {
    let mut header = [0; LEN];
    let mut put = |at: usize, value: u16| header[at..at + 2].copy_from_slice(&value.to_ne_bytes());
    if let Some(checksum) = offload.checksum {
        put(6, checksum.start);
        put(8, checksum.offset);
    }
    if let Some(segment) = offload.segment {
        put(2, headers_len(offload, frame));
        put(4, segment.size);
        let kind = match segment.kind {
            SegmentKind::TcpIpv4 => GSO_TCPV4,
            SegmentKind::TcpIpv6 => GSO_TCPV6,
            SegmentKind::Udp => GSO_UDP_L4,
        };
        header[1] = kind | if segment.ecn { GSO_ECN } else { 0 };
    }
    header[0] = if offload.checksum.is_some() { NEEDS_CSUM } else { 0 };
    header
}

/// How long the headers are that each piece repeats; 0 when that is not known. With it, the kernel copies only the headers
/// into linear memory; without it, it looks for 64 KiB in one piece.
fn headers_len(offload: &Offload, frame: &[u8]) -> u16 {
    let (Some(checksum), Some(segment)) = (offload.checksum, offload.segment) else { return 0 };
    let start = usize::from(checksum.start);
    let transport = match segment.kind {
        SegmentKind::Udp => 8,
        SegmentKind::TcpIpv4 | SegmentKind::TcpIpv6 => {
            frame.get(start + 12).map_or(0, |byte| usize::from(byte >> 4) * 4)
        }
    };
    u16::try_from((start + transport).min(frame.len())).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn offloads() -> impl Strategy<Value = Offload> {
        let checksum =
            proptest::option::of((14u16..200, 0u16..20).prop_map(|(start, offset)| PartialChecksum { start, offset }));
        let kind = prop_oneof![Just(SegmentKind::TcpIpv4), Just(SegmentKind::TcpIpv6), Just(SegmentKind::Udp)];
        let segment = proptest::option::of((kind, 1u16.., any::<bool>()).prop_map(|(kind, size, ecn)| Segmentation {
            kind,
            size,
            ecn,
        }));
        (checksum, segment).prop_map(|(checksum, segment)| Offload { checksum, segment })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(offload in offloads()) {
            let frame = [0x50; 300];
            prop_assert_eq!(decode(&encode(&offload, &frame), frame.len(), 0), Ok(offload));
        }

        #[test]
        fn a_hostile_header_never_points_outside_its_frame(header: [u8; LEN], len in 0usize..70_000, inserted in 0u16..9) {
            if let Ok(offload) = decode(&header, len, inserted) {
                if let Some(c) = offload.checksum {
                    prop_assert!(usize::from(c.start) + usize::from(c.offset) + 2 <= len);
                }
                prop_assert!(offload.segment.is_none_or(|s| s.size > 0));
                let again = encode(&offload, &vec![0xff; len]);
                prop_assert!(usize::from(u16::from_ne_bytes([again[2], again[3]])) <= len);
            }
        }
    }

    #[test]
    fn the_header_of_a_tcp_segment_is_the_kernels() {
        let mut frame = [0; 2_000];
        frame[34 + 12] = 8 << 4;
        let offload = Offload {
            checksum: Some(PartialChecksum { start: 34, offset: 16 }),
            segment: Some(Segmentation { kind: SegmentKind::TcpIpv4, size: 1_448, ecn: false }),
        };
        let mut expected = vec![1, 1];
        for field in [66u16, 1_448, 34, 16] {
            expected.extend(field.to_ne_bytes());
        }
        assert_eq!(encode(&offload, &frame)[..], expected);
    }

    #[test]
    fn a_frame_is_whole_whatever_buffer_it_ended_in() {
        let mut pool = Pool::new();
        let mut slot = Slot::new(&mut pool);
        let first = pool.take().capacity();
        for len in [0, 1, first - 1, first, first + 1, crate::packet::MAX_FRAME, 60] {
            let frame: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            let (head, tail) = frame.split_at(len.min(first));
            let [header, small, large] = slot.buffers();
            header.fill(0);
            small[..head.len()].copy_from_slice(head);
            large[..tail.len()].copy_from_slice(tail);
            assert_eq!(slot.take(LEN + len, &mut pool).unwrap().bytes(), frame);
        }
        assert_eq!(slot.take(LEN - 1, &mut pool).unwrap_err(), Malformed);
        assert_eq!(describe(&mut Packet::from_bytes(&[0; 11]), &[0; LEN], Some((0x8100, 1))), Err(Malformed));
    }

    #[test]
    fn a_tag_goes_between_addresses_and_type_without_moving_the_rest() {
        let mut packet = Packet::from_bytes(&(0..60).collect::<Vec<u8>>());
        put_tag_back(&mut packet, (0x88a8, 0x2064)).unwrap();
        let expected: Vec<u8> = (0..12).chain([0x88, 0xa8, 0x20, 0x64]).chain(12..60).collect();
        assert_eq!(packet.bytes(), expected);
    }

    #[test]
    fn a_vlan_tag_put_back_moves_the_checksum() {
        let mut header = [0; LEN];
        header[0] = NEEDS_CSUM;
        header[6..8].copy_from_slice(&34u16.to_ne_bytes());
        header[8..10].copy_from_slice(&6u16.to_ne_bytes());
        assert_eq!(decode(&header, 64, 4).unwrap().checksum, Some(PartialChecksum { start: 38, offset: 6 }));
        assert_eq!(decode(&header, 45, 4), Err(Malformed));
        header[6..8].copy_from_slice(&u16::MAX.to_ne_bytes());
        assert_eq!(decode(&header, 1 << 20, 4), Err(Malformed));
    }

    #[test]
    fn an_unknown_or_empty_segmentation_is_refused() {
        let mut header = [0; LEN];
        header[4..6].copy_from_slice(&100u16.to_ne_bytes());
        for kind in [2, 3, 6, 0x7f] {
            header[1] = kind;
            assert_eq!(decode(&header, 1_000, 0), Err(Malformed));
        }
        header[1] = GSO_TCPV4;
        assert!(decode(&header, 1_000, 0).is_ok());
        header[4..6].fill(0);
        assert_eq!(decode(&header, 1_000, 0), Err(Malformed));
    }
}
