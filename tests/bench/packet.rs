//! Reading one packet: its key, its checksums.

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use offloadd::flow::key::{eth_type, frag, ip_proto};
use offloadd::flow::{Field, Key};
use offloadd::packet::checksum::Sum;
use offloadd::packet::compose::compose;
use offloadd::packet::extract::extract_into;
use offloadd::packet::{BATCH, Packet};

use crate::rig;

pub fn bench(c: &mut Criterion) {
    let mut g = c.benchmark_group("key extraction");
    g.throughput(Throughput::Elements(BATCH as u64));
    for (name, fields) in kinds() {
        let mut key = rig::key(7);
        fields.iter().for_each(|(field, value)| key.set(*field, *value));
        let packets: Vec<Packet> = (0..BATCH).map(|_| Packet::from_bytes(&compose(&key, 60))).collect();
        let mut keys = [Key::ZERO; BATCH];
        g.bench_function(name, |b| {
            b.iter(|| {
                for (packet, key) in packets.iter().zip(&mut keys) {
                    extract_into(black_box(packet), key);
                }
                black_box(&mut keys);
            });
        });
    }
    g.finish();

    let mut g = c.benchmark_group("checksum");
    for len in [20, 60, 1_460, 65_536] {
        let bytes = vec![0xa5u8; len];
        g.throughput(Throughput::Bytes(len as u64));
        g.bench_function(format!("{len} bytes"), |b| b.iter(|| Sum::of(black_box(&bytes)).checksum()));
    }
    g.finish();
}

/// Packet kinds, as what they have beside or instead of what a UDP packet has.
fn kinds() -> Vec<(&'static str, Vec<(Field, u128)>)> {
    use Field::*;
    let v6 = [(EthType, eth_type::IPV6.into()), (Ipv4Src, 0), (Ipv4Dst, 0), (Ipv6Src, 1 << 64), (Ipv6Dst, 2 << 64)];
    let tag0 = [(Vlan0Tpid, eth_type::VLAN.into()), (Vlan0Cfi, 1), (Vlan0Vid, 10)];
    let tag1 = [(Vlan0Tpid, eth_type::QINQ.into()), (Vlan1Tpid, eth_type::VLAN.into()), (Vlan1Cfi, 1), (Vlan1Vid, 11)];
    let nothing = [(IpProto, 0), (IpTtl, 0), (Ipv4Src, 0), (Ipv4Dst, 0), (TpSrc, 0), (TpDst, 0)];
    vec![
        ("IPv4 UDP", vec![]),
        ("IPv4 TCP", vec![(IpProto, ip_proto::TCP.into()), (TcpFlags, 0x10)]),
        ("IPv4 ICMP", vec![(IpProto, ip_proto::ICMP.into()), (IcmpType, 8), (IcmpCode, 0)]),
        ("IPv4 later fragment", vec![(IpFrag, frag::LATER.into()), (TpSrc, 0), (TpDst, 0)]),
        ("IPv6 UDP", v6.to_vec()),
        ("IPv6 TCP", [&v6[..], &[(IpProto, ip_proto::TCP.into()), (TcpFlags, 0x10)]].concat()),
        ("one VLAN tag, IPv4 UDP", tag0.to_vec()),
        ("two VLAN tags, IPv4 UDP", [&tag0[..], &tag1[..]].concat()),
        ("ARP", [&nothing[..], &[(EthType, eth_type::ARP.into()), (ArpOp, 1), (ArpSip, 5), (ArpTip, 6)]].concat()),
        ("MPLS", [&nothing[..], &[(EthType, eth_type::MPLS.into()), (Mpls0Label, 5), (Mpls0Bos, 1)]].concat()),
    ]
}
