//! Any bytes: their key is defined, is the same whatever stands behind them, can be composed again, and no edit or
//! segmentation of them panics.
#![no_main]

use libfuzzer_sys::fuzz_target;
use offloadd::flow::{Assign, Header, Set};
use offloadd::packet::{
    Offload, Packet, PartialChecksum, Pool, SegmentKind, Segmentation, compose::compose, edit, extract::extract, segment,
};

fuzz_target!(|bytes: &[u8]| {
    let packet = Packet::from_bytes(bytes);
    let key = extract(&packet);
    let mut longer = Packet::from_bytes(&[bytes, &[0xff; 64]].concat());
    longer.set_len(bytes.len());
    assert_eq!(extract(&longer), key);
    if bytes.len() >= 14 {
        assert_eq!(extract(&Packet::from_bytes(&compose(&key, bytes.len()))), key);
    }

    for header in [Header::Eth, Header::Vlan, Header::Ipv4, Header::Ipv6, Header::Tcp, Header::Udp, Header::Sctp] {
        let assigns: Vec<Assign> = header.fields().iter().map(|field| Assign::full(*field, 0x5a5a)).collect();
        let set = Set::new(header, &assigns).expect("fields of the header");
        let _ = edit::set(&mut Packet::from_bytes(bytes), &set);
    }

    // The last bytes say how to finish the frame.
    if let Some((_, &[kind, size, start, offset])) = bytes.split_last_chunk::<4>() {
        let kind = [SegmentKind::TcpIpv4, SegmentKind::TcpIpv6, SegmentKind::Udp][usize::from(kind) % 3];
        let mut packet = Packet::from_bytes(bytes);
        packet.meta.offload = Offload {
            checksum: Some(PartialChecksum { start: start.into(), offset: offset.into() }),
            segment: (size != 0).then_some(Segmentation { kind, size: size.into(), ecn: true }),
        };
        let _ = segment::finish(packet, &mut Pool::new(), offset & 1 == 0, &mut Vec::new());
    }
});
