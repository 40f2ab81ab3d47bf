//! Captures of mixed traffic, made anew for each test from a seed.
//!
//! A capture is some hundred flows, each of one [`Kind`] behind no, one or two VLAN tags, and each with several packets that
//! differ in what a flow's packets differ in: sequence numbers, TCP flags, lengths, payload. Headers and checksums come from
//! etherparse, which shares no code with the daemon.
//!
//! Frames are 14 to 1514 bytes long, and 4 more for each tag: cut ones keep their Ethernet addresses and type.

use std::fs::File;
use std::io::{self, BufReader, BufWriter};
use std::path::Path;
use std::time::Duration;

use etherparse::{
    ArpEthIpv4Packet, ArpOperation, IcmpEchoHeader, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpNumber,
    Ipv4Header, Ipv6Header, TcpHeader, UdpHeader,
};
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapReader, PcapWriter};
use pcap_file::{PcapError, TsResolution};

/// One frame, and when it was seen, since the Unix epoch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    pub timestamp: Duration,
    pub bytes: Vec<u8>,
}

/// The same `packets` frames for the same `seed`, with rising timestamps. From 1,200 packets on, every flow has two or more.
pub fn generate(seed: u64, packets: usize) -> Vec<Frame> {
    let mut random = Random(seed);
    let mut flows = flows(&mut random);
    // 2023-11-14 22:13:20 UTC, so that captures do not depend on when they were made.
    let mut now = Duration::from_secs(1_700_000_000);
    (0..packets)
        .map(|i| {
            // Twice round all flows; then the first ones come more often, as elephants do among mice.
            let all = flows.len() as u64;
            let which = if i < 2 * flows.len() { i as u64 % all } else { random.below(all).min(random.below(all)) };
            let flow = &mut flows[which as usize];
            flow.sent += 1;
            now += Duration::from_nanos(1_000 + random.below(50_000));
            Frame { timestamp: now, bytes: flow.frame(&mut random) }
        })
        .collect()
}

/// Writes a capture file with nanosecond timestamps.
pub fn write(path: impl AsRef<Path>, frames: &[Frame]) -> io::Result<()> {
    let header = PcapHeader { ts_resolution: TsResolution::NanoSecond, ..PcapHeader::default() };
    let mut writer = PcapWriter::with_header(BufWriter::new(File::create(path)?), header).map_err(io_error)?;
    for Frame { timestamp, bytes } in frames {
        writer.write_packet(&PcapPacket::new(*timestamp, bytes.len() as u32, bytes)).map_err(io_error)?;
    }
    io::Write::flush(&mut writer.into_writer())
}

/// Reads a capture file of either resolution.
pub fn read(path: impl AsRef<Path>) -> io::Result<Vec<Frame>> {
    let mut reader = PcapReader::new(BufReader::new(File::open(path)?)).map_err(io_error)?;
    let mut frames = Vec::new();
    while let Some(packet) = reader.next_packet() {
        let packet = packet.map_err(io_error)?;
        frames.push(Frame { timestamp: packet.timestamp, bytes: packet.data.into_owned() });
    }
    Ok(frames)
}

fn io_error(error: PcapError) -> io::Error {
    match error {
        PcapError::IoError(error) => error,
        other => io::Error::new(io::ErrorKind::InvalidData, other),
    }
}

/// What a flow's packets are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Tcp4,
    /// With IP options.
    Tcp4Options,
    Tcp6,
    Udp4,
    /// Without a checksum, which IPv4 allows.
    Udp4Unsummed,
    Udp6,
    Sctp4,
    Sctp6,
    Icmp4,
    Icmp6,
    NeighbourSolicitation,
    NeighbourAdvertisement,
    /// Requests and replies by turns.
    Arp,
    /// First, middle and last by turns.
    Fragments4,
    Fragments6,
    /// IPv6 with one to four extension headers before UDP.
    Extensions6,
    /// One to three labels before IPv4.
    Mpls,
    Gre4,
    /// IEEE 802.3 with a length where Ethernet II has a type.
    Llc,
    /// An Ethernet type nobody knows.
    UnknownType,
    /// An IP packet whose header lies about its lengths.
    Lying,
    /// Of any other kind, and cut anywhere behind the Ethernet type.
    Cut,
}

impl Kind {
    const ALL: [Kind; 22] = [
        Kind::Tcp4,
        Kind::Tcp4Options,
        Kind::Tcp6,
        Kind::Udp4,
        Kind::Udp4Unsummed,
        Kind::Udp6,
        Kind::Sctp4,
        Kind::Sctp6,
        Kind::Icmp4,
        Kind::Icmp6,
        Kind::NeighbourSolicitation,
        Kind::NeighbourAdvertisement,
        Kind::Arp,
        Kind::Fragments4,
        Kind::Fragments6,
        Kind::Extensions6,
        Kind::Mpls,
        Kind::Gre4,
        Kind::Llc,
        Kind::UnknownType,
        Kind::Lying,
        Kind::Cut,
    ];
}

/// The types of a frame's VLAN tags, from the front.
const TAGGINGS: [&[u16]; 5] = [&[], &[0x8100], &[0x88a8], &[0x88a8, 0x8100], &[0x8100, 0x8100]];

/// Flows of each kind with each tagging.
const FLOWS_EACH: u64 = 5;

/// The longest frame without its tags.
const MTU: usize = 1500;
const ETHERNET: usize = 14;
/// Shorter frames are padded on a wire.
const SHORTEST: usize = 60;

fn flows(random: &mut Random) -> Vec<Flow> {
    let mut flows = Vec::new();
    for number in 0..FLOWS_EACH {
        for tags in TAGGINGS {
            for kind in Kind::ALL {
                flows.push(Flow::new(kind, tags, number, random));
            }
        }
    }
    flows
}

/// What stays the same in the packets of a flow.
struct Flow {
    kind: Kind,
    /// Which of its kind and tagging.
    number: u64,
    tags: Vec<(u16, u16)>,
    stations: ([u8; 6], [u8; 6]),
    ports: (u16, u16),
    v4: ([u8; 4], [u8; 4]),
    v6: ([u8; 16], [u8; 16]),
    ttl: u8,
    /// Packets so far, the current one included.
    sent: u64,
}

impl Flow {
    fn new(kind: Kind, tags: &[u16], number: u64, random: &mut Random) -> Flow {
        let station = |random: &mut Random| {
            let [a, b, ..] = random.next().to_be_bytes();
            // Locally administered, unicast; few, so that stations are seen on both ends of flows.
            [0x02, 0, 0, 0, a & 1, b & 0x1f]
        };
        let v4 =
            |random: &mut Random| [10, (random.below(4)) as u8, random.below(256) as u8, 1 + random.below(250) as u8];
        let v6 = |random: &mut Random| {
            let mut address = [0; 16];
            address[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
            address[8..].copy_from_slice(&random.next().to_be_bytes());
            address
        };
        // Priority, no drop eligibility, vid 1 to 40.
        let tci = |random: &mut Random| ((random.below(8) << 13) | (1 + random.below(40))) as u16;
        Flow {
            kind,
            number,
            tags: tags.iter().map(|tpid| (*tpid, tci(random))).collect(),
            stations: (station(random), station(random)),
            ports: (1_024 + random.below(60_000) as u16, *random.pick(&[22, 53, 80, 443, 5_001, 8_080])),
            v4: (v4(random), v4(random)),
            v6: (v6(random), v6(random)),
            ttl: *random.pick(&[1, 2, 64, 128, 255]),
            sent: 0,
        }
    }

    fn frame(&self, random: &mut Random) -> Vec<u8> {
        let kind = match self.kind {
            Kind::Cut => Kind::ALL[((self.number * 5 + self.sent) % (Kind::ALL.len() as u64 - 1)) as usize],
            kind => kind,
        };
        let broadcast = kind == Kind::Arp && self.sent % 2 == 1;
        let mut frame = if broadcast { vec![0xff; 6] } else { self.stations.1.to_vec() };
        frame.extend(self.stations.0);
        for (tpid, tci) in &self.tags {
            frame.extend(tpid.to_be_bytes());
            frame.extend(tci.to_be_bytes());
        }
        let behind_tags = frame.len();
        let (ether_type, packet) = self.packet(kind, random);
        frame.extend(ether_type.to_be_bytes());
        frame.extend(packet);
        if self.kind == Kind::Cut {
            // Half the time in the headers, where it hurts.
            let end = if random.below(2) == 0 { frame.len().min(behind_tags + 64) } else { frame.len() };
            frame.truncate(ETHERNET + random.below((end - ETHERNET).max(1) as u64) as usize);
        } else if random.below(2) == 0 && frame.len() < SHORTEST {
            frame.resize(SHORTEST, 0);
        }
        frame
    }

    /// The Ethernet type, or length, and what follows it.
    fn packet(&self, kind: Kind, random: &mut Random) -> (u16, Vec<u8>) {
        match kind {
            Kind::Tcp4 => (0x0800, self.ipv4(IpNumber::TCP, &[], random, |r, room| self.tcp(r, room, false))),
            Kind::Tcp4Options => {
                // Router alert (RFC 2113), and an end of options.
                let options = [0x94, 4, 0, 0, 0, 0, 0, 0];
                (0x0800, self.ipv4(IpNumber::TCP, &options, random, |r, room| self.tcp(r, room, false)))
            }
            Kind::Tcp6 => (0x86dd, self.ipv6(IpNumber::TCP, &[], random, |r, room| self.tcp(r, room, true))),
            Kind::Udp4 => (0x0800, self.ipv4(IpNumber::UDP, &[], random, |r, room| self.udp(r, room, false))),
            Kind::Udp4Unsummed => {
                let unsummed = |r: &mut Random, room| {
                    let mut datagram = self.udp(r, room, false);
                    datagram[6..8].fill(0);
                    datagram
                };
                (0x0800, self.ipv4(IpNumber::UDP, &[], random, unsummed))
            }
            Kind::Udp6 => (0x86dd, self.ipv6(IpNumber::UDP, &[], random, |r, room| self.udp(r, room, true))),
            Kind::Sctp4 => (0x0800, self.ipv4(IpNumber::SCTP, &[], random, |r, room| self.sctp(r, room))),
            Kind::Sctp6 => (0x86dd, self.ipv6(IpNumber::SCTP, &[], random, |r, room| self.sctp(r, room))),
            Kind::Icmp4 => (0x0800, self.ipv4(IpNumber::ICMP, &[], random, |r, room| self.icmp4(r, room))),
            Kind::Icmp6 => (0x86dd, self.ipv6(IpNumber::IPV6_ICMP, &[], random, |r, room| self.icmp6(r, room))),
            Kind::NeighbourSolicitation => (0x86dd, self.ipv6(IpNumber::IPV6_ICMP, &[], random, |_, _| self.nd(135))),
            Kind::NeighbourAdvertisement => (0x86dd, self.ipv6(IpNumber::IPV6_ICMP, &[], random, |_, _| self.nd(136))),
            Kind::Arp => (0x0806, self.arp()),
            Kind::Fragments4 => (0x0800, self.fragment4(random)),
            Kind::Fragments6 => (0x86dd, self.fragment6(random)),
            Kind::Extensions6 => (0x86dd, self.extensions6(random)),
            Kind::Mpls => (0x8847, self.mpls(random)),
            Kind::Gre4 => (0x0800, self.ipv4(IpNumber::GRE, &[], random, |r, room| r.payload(room))),
            Kind::Llc => {
                // Spanning tree's service access points, unnumbered information (IEEE 802.2), then whatever.
                let mut packet = vec![0x42, 0x42, 0x03];
                packet.extend(random.payload(MTU - packet.len()));
                (packet.len() as u16, packet)
            }
            Kind::UnknownType => (0x88b5, random.payload(MTU)),
            Kind::Lying => self.lying(random),
            Kind::Cut => unreachable!("the cut kind stands for another"),
        }
    }

    fn ipv4(
        &self,
        protocol: IpNumber,
        options: &[u8],
        random: &mut Random,
        inside: impl FnOnce(&mut Random, usize) -> Vec<u8>,
    ) -> Vec<u8> {
        let mut header =
            Ipv4Header::new(0, self.ttl, protocol, self.v4.0, self.v4.1).expect("no payload is not too long");
        header.options = options.try_into().expect("options are whole words");
        header.identification = self.sent as u16;
        header.dscp = ((self.number * 10 % 64) as u8).try_into().expect("below 64");
        header.dont_fragment = true;
        let payload = inside(random, MTU - header.header_len());
        finish_ipv4(header, &payload)
    }

    fn ipv6(
        &self,
        protocol: IpNumber,
        extensions: &[u8],
        random: &mut Random,
        inside: impl FnOnce(&mut Random, usize) -> Vec<u8>,
    ) -> Vec<u8> {
        let payload = inside(random, MTU - Ipv6Header::LEN - extensions.len());
        let header = Ipv6Header {
            traffic_class: (self.number * 40) as u8,
            flow_label: ((self.ports.0 as u32) << 4).try_into().expect("20 bits"),
            payload_length: (extensions.len() + payload.len()) as u16,
            next_header: protocol,
            hop_limit: self.ttl,
            source: self.v6.0,
            destination: self.v6.1,
        };
        [&header.to_bytes()[..], extensions, &payload].concat()
    }

    fn tcp(&self, random: &mut Random, room: usize, v6: bool) -> Vec<u8> {
        let mut header = TcpHeader::new(self.ports.0, self.ports.1, self.sent as u32 * 1_448, 64_240);
        // A connection's life over and over: open, acknowledge, push, then the rarer ones.
        match self.sent % 8 {
            1 => {
                header.syn = true;
                // Maximum segment size, selective acknowledgement, timestamps, window scale (RFC 9293, 2018, 7323).
                let options = [2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7];
                header.set_options_raw(&options).expect("options are whole words");
            }
            2 => (header.syn, header.ack, header.ece) = (true, true, true),
            4 => (header.psh, header.ack) = (true, true),
            5 => (header.urg, header.ack, header.urgent_pointer) = (true, true, 1),
            6 => (header.fin, header.ack, header.cwr) = (true, true, true),
            7 => header.rst = true,
            _ => header.ack = true,
        }
        let payload = if header.syn { Vec::new() } else { random.payload(room - header.header_len()) };
        header.checksum = if v6 {
            header.calc_checksum_ipv6_raw(self.v6.0, self.v6.1, &payload)
        } else {
            header.calc_checksum_ipv4_raw(self.v4.0, self.v4.1, &payload)
        }
        .expect("the payload fits a packet");
        [&header.to_bytes()[..], &payload].concat()
    }

    fn udp(&self, random: &mut Random, room: usize, v6: bool) -> Vec<u8> {
        let payload = random.payload(room - UdpHeader::LEN);
        let length = (UdpHeader::LEN + payload.len()) as u16;
        let mut header = UdpHeader { source_port: self.ports.0, destination_port: self.ports.1, length, checksum: 0 };
        header.checksum = if v6 {
            header.calc_checksum_ipv6_raw(self.v6.0, self.v6.1, &payload)
        } else {
            header.calc_checksum_ipv4_raw(self.v4.0, self.v4.1, &payload)
        }
        .expect("the payload fits a packet");
        [&header.to_bytes()[..], &payload].concat()
    }

    /// A DATA chunk (RFC 9260 §3.3.1), with the checksum in the header.
    fn sctp(&self, random: &mut Random, room: usize) -> Vec<u8> {
        let data = random.payload(room - 12 - 16 - 3);
        let mut packet = Vec::new();
        packet.extend(self.ports.0.to_be_bytes());
        packet.extend(self.ports.1.to_be_bytes());
        packet.extend(0x1234_5678u32.to_be_bytes());
        packet.extend([0; 4]);
        packet.extend([0, 3]);
        packet.extend((16 + data.len() as u16).to_be_bytes());
        packet.extend((self.sent as u32).to_be_bytes());
        packet.extend([0; 8]);
        packet.extend(&data);
        packet.resize(packet.len().next_multiple_of(4), 0);
        let sum = crc32c(&packet).to_le_bytes();
        packet[8..12].copy_from_slice(&sum);
        packet
    }

    fn icmp4(&self, random: &mut Random, room: usize) -> Vec<u8> {
        let payload = random.payload(room - 8);
        let echo = IcmpEchoHeader { id: self.ports.0, seq: self.sent as u16 };
        let icmp_type = if self.sent % 2 == 1 { Icmpv4Type::EchoRequest(echo) } else { Icmpv4Type::EchoReply(echo) };
        [&Icmpv4Header::with_checksum(icmp_type, &payload).to_bytes()[..], &payload].concat()
    }

    fn icmp6(&self, random: &mut Random, room: usize) -> Vec<u8> {
        let payload = random.payload(room - 8);
        let echo = IcmpEchoHeader { id: self.ports.0, seq: self.sent as u16 };
        let icmp_type = if self.sent % 2 == 1 { Icmpv6Type::EchoRequest(echo) } else { Icmpv6Type::EchoReply(echo) };
        self.with_icmp6_header(icmp_type, &payload)
    }

    /// A neighbour solicitation (135) or advertisement (136) with its link-layer address option (RFC 4861).
    fn nd(&self, type_u8: u8) -> Vec<u8> {
        let (flags, option) = if type_u8 == 135 { (0, 1) } else { (0x60, 2) };
        let payload = [&self.v6.1[..], &[option, 1], &self.stations.0].concat();
        self.with_icmp6_header(Icmpv6Type::Unknown { type_u8, code_u8: 0, bytes5to8: [flags, 0, 0, 0] }, &payload)
    }

    fn with_icmp6_header(&self, icmp_type: Icmpv6Type, payload: &[u8]) -> Vec<u8> {
        let header = Icmpv6Header::with_checksum(icmp_type, self.v6.0, self.v6.1, payload);
        [&header.expect("the payload fits a packet").to_bytes()[..], payload].concat()
    }

    fn arp(&self) -> Vec<u8> {
        let asks = self.sent % 2 == 1;
        let packet = ArpEthIpv4Packet {
            operation: if asks { ArpOperation::REQUEST } else { ArpOperation::REPLY },
            sender_mac: self.stations.0,
            sender_ipv4: self.v4.0,
            target_mac: if asks { [0; 6] } else { self.stations.1 },
            target_ipv4: self.v4.1,
        };
        packet.to_bytes().to_vec()
    }

    /// Where the current fragment begins, in bytes, what it holds, and whether more follow.
    fn fragment(&self, random: &mut Random, v6: bool) -> (u16, Vec<u8>, bool) {
        const PIECE: usize = 64;
        match self.sent % 3 {
            1 => {
                let mut datagram = self.udp(random, MTU - 100, v6);
                datagram.resize(PIECE, 0xaa);
                (0, datagram, true)
            }
            2 => (PIECE as u16, random.bytes(PIECE), true),
            _ => {
                let length = 1 + random.below(PIECE as u64) as usize;
                (2 * PIECE as u16, random.bytes(length), false)
            }
        }
    }

    fn fragment4(&self, random: &mut Random) -> Vec<u8> {
        let (offset, payload, more) = self.fragment(random, false);
        let mut header =
            Ipv4Header::new(0, self.ttl, IpNumber::UDP, self.v4.0, self.v4.1).expect("no payload is not too long");
        header.identification = (self.sent / 3) as u16;
        header.fragment_offset = (offset / 8).try_into().expect("13 bits");
        header.more_fragments = more;
        finish_ipv4(header, &payload)
    }

    fn fragment6(&self, random: &mut Random) -> Vec<u8> {
        let (offset, payload, more) = self.fragment(random, true);
        let mut extension = vec![IpNumber::UDP.0, 0];
        extension.extend((offset | u16::from(more)).to_be_bytes());
        extension.extend((self.sent as u32 / 3).to_be_bytes());
        self.ipv6(IpNumber::IPV6_FRAGMENTATION_HEADER, &extension, random, |_, _| payload)
    }

    /// Hop-by-hop options, a routing header, an authentication header and destination options (RFC 8200, 4302), as many as
    /// the flow's number says.
    fn extensions6(&self, random: &mut Random) -> Vec<u8> {
        let padding = [1, 4, 0, 0, 0, 0];
        let chain: [(IpNumber, Vec<u8>); 4] = [
            (IpNumber::IPV6_HEADER_HOP_BY_HOP, [&[0][..], &padding].concat()),
            (IpNumber::IPV6_ROUTE_HEADER, [&[2, 4, 0, 0, 0, 0, 0][..], &[0x20; 16]].concat()),
            (
                IpNumber::AUTHENTICATION_HEADER,
                vec![4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9],
            ),
            (IpNumber::IPV6_DESTINATION_OPTIONS, [&[0][..], &padding].concat()),
        ];
        let used = &chain[..1 + (self.number % 4) as usize];
        let mut extensions = Vec::new();
        for (i, (_, rest)) in used.iter().enumerate() {
            extensions.push(used.get(i + 1).map_or(IpNumber::UDP, |(next, _)| *next).0);
            extensions.extend(rest);
        }
        self.ipv6(used[0].0, &extensions, random, |r, room| self.udp(r, room, true))
    }

    fn mpls(&self, random: &mut Random) -> Vec<u8> {
        let labels = 1 + self.number % 3;
        let mut packet = Vec::new();
        for i in 0..labels {
            let label = 16 + self.number as u32 * 100 + i as u32;
            let bottom = u32::from(i + 1 == labels);
            packet.extend(((label << 12) | (5 << 9) | (bottom << 8) | u32::from(self.ttl)).to_be_bytes());
        }
        let inside = self.ipv4(IpNumber::UDP, &[], random, |r, room| self.udp(r, room - 12, false));
        packet.extend(inside);
        packet
    }

    /// A good packet, with one of its length fields made wrong.
    fn lying(&self, random: &mut Random) -> (u16, Vec<u8>) {
        let (ether_type, mut packet) = self.packet(*random.pick(&[Kind::Tcp4, Kind::Udp6]), random);
        match (ether_type, random.below(4)) {
            (0x0800, 0) => packet[0] = 0x40 | random.below(5) as u8,
            (0x0800, 1) => packet[0] = 0x4f,
            (0x0800, 2) => packet[2..4].copy_from_slice(&(random.below(20) as u16).to_be_bytes()),
            (0x0800, _) => packet[32] = (random.below(5) as u8) << 4,
            (_, 0) => packet[0] = 0x70,
            (_, 1) => packet[4..6].fill(0xff),
            (_, 2) => packet[4..6].fill(0),
            // A chain of extension headers that runs off the end.
            (_, _) => (packet[6], packet[41]) = (60, 255),
        }
        (ether_type, packet)
    }
}

fn finish_ipv4(mut header: Ipv4Header, payload: &[u8]) -> Vec<u8> {
    header.set_payload_len(payload.len()).expect("the payload fits a packet");
    header.header_checksum = header.calc_header_checksum();
    [&header.to_bytes()[..], payload].concat()
}

/// SCTP's checksum (RFC 9260 appendix A), bit by bit.
pub fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
    })
}

/// A splitmix64 sequence (Steele, Lea, Flood 2014): the same on every machine and in every version of every crate.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 to `end` - 1. Slightly uneven, which does no harm here.
    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }

    /// Up to `room` bytes: none, few, many, or all of it.
    fn payload(&mut self, room: usize) -> Vec<u8> {
        let length = match self.below(8) {
            0 => 0,
            1 => room,
            2..=5 => self.below(64) as usize,
            _ => self.below(room as u64 + 1) as usize,
        };
        self.bytes(length.min(room))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};

    use etherparse::SlicedPacket;

    use super::*;

    const PACKETS: usize = 10_000;

    #[test]
    fn a_seed_always_gives_the_same_capture_and_another_seed_another() {
        assert_eq!(generate(1, 3_000), generate(1, 3_000));
        assert_ne!(generate(1, 3_000), generate(2, 3_000));
        // A longer capture begins with the shorter one.
        assert_eq!(generate(1, 3_000)[..500], generate(1, 500)[..]);
    }

    #[test]
    fn a_capture_holds_every_kind_of_packet() {
        let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
        for frame in generate(7, PACKETS) {
            for label in labels(&frame.bytes) {
                *seen.entry(label).or_default() += 1;
            }
        }
        for label in [
            "untagged",
            "802.1Q",
            "802.1ad",
            "two tags",
            "ipv4",
            "ipv4 options",
            "ipv6",
            "ipv6 extensions",
            "arp request",
            "arp reply",
            "llc",
            "unknown type",
            "mpls 1",
            "mpls 2",
            "mpls 3",
            "tcp",
            "tcp options",
            "tcp syn",
            "tcp fin",
            "tcp rst",
            "tcp urg",
            "udp",
            "sctp",
            "icmp",
            "icmpv6 echo",
            "neighbour solicitation",
            "neighbour advertisement",
            "other protocol",
            "fragment first",
            "fragment middle",
            "fragment last",
            "cut",
            "odd",
            "even",
            "shortest",
            "longest",
            "longest, one tag",
            "longest, two tags",
            "padded",
        ] {
            let count = seen.get(label).copied().unwrap_or(0);
            assert!(count >= 10, "{count} packets are {label:?}; there are {seen:?}");
        }
    }

    #[test]
    fn flows_repeat_and_time_rises() {
        let frames = generate(7, PACKETS);
        assert_eq!(frames.len(), PACKETS);
        assert!(frames.windows(2).all(|pair| pair[0].timestamp < pair[1].timestamp));
        // Addresses, tags and type tell flows of whole packets apart well enough.
        let mut packets: HashMap<&[u8], usize> = HashMap::new();
        for frame in frames.iter().filter(|frame| frame.bytes.len() >= 34) {
            *packets.entry(&frame.bytes[..14]).or_default() += 1;
        }
        assert!(packets.len() >= 300, "{} flows", packets.len());
        let repeated = packets.values().filter(|count| **count >= 5).count();
        assert!(repeated >= 300, "{repeated} flows of five or more packets");
    }

    #[test]
    fn frames_are_as_long_as_a_wire_allows() {
        for frame in generate(7, PACKETS) {
            let tags = tags(&frame.bytes).len();
            let range = ETHERNET..=ETHERNET + MTU + 4 * tags;
            assert!(range.contains(&frame.bytes.len()), "{} bytes with {tags} tags", frame.bytes.len());
        }
    }

    #[test]
    fn whole_packets_parse_and_their_sums_are_right() {
        let whole = [Kind::Tcp4, Kind::Tcp4Options, Kind::Tcp6, Kind::Udp4, Kind::Udp6, Kind::Icmp4, Kind::Icmp6];
        let mut random = Random(3);
        for kind in whole {
            for sent in 0..200 {
                let flow = Flow { sent, ..Flow::new(kind, &[0x88a8, 0x8100], 1, &mut random) };
                let bytes = flow.frame(&mut random);
                SlicedPacket::from_ethernet(&bytes).unwrap_or_else(|e| panic!("{kind:?}: {e}"));
                let ip = &bytes[22..];
                let (addresses, body, protocol) = if ip[0] >> 4 == 4 {
                    let header = usize::from(ip[0] & 15) * 4;
                    assert_eq!(sum(&[&ip[..header]]), 0xffff, "{kind:?}");
                    let end = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
                    (&ip[12..20], &ip[header..end], ip[9])
                } else {
                    let end = 40 + usize::from(u16::from_be_bytes([ip[4], ip[5]]));
                    (&ip[8..40], &ip[40..end], ip[6])
                };
                let length = (body.len() as u32).to_be_bytes();
                let pseudo: &[&[u8]] =
                    if protocol == 1 { &[body] } else { &[addresses, &length, &[0, protocol], body] };
                assert_eq!(sum(pseudo), 0xffff, "{kind:?} {sent}");
            }
        }
    }

    #[test]
    fn the_sctp_sum_is_the_published_one() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_written_capture_is_read_back() {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let path = directory.path().join("mixed.pcap");
        let frames = generate(7, 500);
        write(&path, &frames).expect("it can be written");
        assert_eq!(read(&path).expect("it can be read"), frames);
    }

    /// The one's complement sum of 16-bit words (RFC 1071); each part but the last is of even length.
    fn sum(parts: &[&[u8]]) -> u16 {
        let mut sum: u32 = 0;
        for word in parts.iter().flat_map(|part| part.chunks(2)) {
            sum += u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    /// The types of the tags at the front of `frame`.
    fn tags(frame: &[u8]) -> Vec<u16> {
        let tag = |at: &usize| [0x8100, 0x88a8].into_iter().find(|t| word(frame, *at) == Some(*t));
        [12, 16].iter().map_while(tag).collect()
    }

    fn word(bytes: &[u8], at: usize) -> Option<u16> {
        Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
    }

    /// What can be said of `frame`, found by looking at its bytes alone.
    fn labels(frame: &[u8]) -> Vec<&'static str> {
        let tags = tags(frame);
        let mut labels = match tags[..] {
            [] => vec!["untagged"],
            [0x8100] => vec!["802.1Q"],
            [_] => vec!["802.1ad"],
            _ => vec!["two tags"],
        };
        labels.push(if frame.len() % 2 == 1 { "odd" } else { "even" });
        match (frame.len(), tags.len()) {
            (1514, 0) => labels.push("longest"),
            (1518, 1) => labels.push("longest, one tag"),
            (1522, 2) => labels.push("longest, two tags"),
            (60, _) => labels.push("shortest"),
            _ => {}
        }
        let at = 12 + 4 * tags.len();
        if inside(frame, at, &mut labels).is_none() {
            labels.push("cut");
        }
        labels
    }

    /// Reads on from the type at `at`; `None` where bytes are missing.
    fn inside(frame: &[u8], at: usize, labels: &mut Vec<&'static str>) -> Option<()> {
        let kind = word(frame, at)?;
        let mut rest = &frame[at + 2..];
        match kind {
            0x0806 => {
                rest.get(27)?;
                labels.push(if word(rest, 6)? == 1 { "arp request" } else { "arp reply" });
            }
            0x8847 => {
                let bottom = rest.chunks_exact(4).position(|entry| entry[2] & 1 == 1)?;
                labels.push(["mpls 1", "mpls 2", "mpls 3"].get(bottom)?);
            }
            0x0800 => {
                rest.get(19)?;
                let header = usize::from(rest[0] & 15) * 4;
                let total = usize::from(word(rest, 2)?);
                if rest.len() < total {
                    return None;
                }
                labels.push(if header > 20 { "ipv4 options" } else { "ipv4" });
                if rest.len() > total {
                    labels.push("padded");
                    rest = &rest[..total.max(20)];
                }
                let fragment = word(rest, 6)?;
                transport(rest[9], fragment << 3, fragment & 0x2000 != 0, rest.get(header..)?, labels)?;
            }
            0x86dd => {
                rest.get(39)?;
                labels.push("ipv6");
                let (mut next, mut body, mut offset, mut more) = (rest[6], &rest[40..], 0, false);
                if body.len() < usize::from(word(rest, 4)?) {
                    return None;
                }
                while [0, 43, 44, 51, 60].contains(&next) {
                    let length = match next {
                        44 => {
                            (offset, more) = (word(body, 2)? & !7, body[3] & 1 == 1);
                            8
                        }
                        51 => (usize::from(*body.get(1)?) + 2) * 4,
                        _ => (usize::from(*body.get(1)?) + 1) * 8,
                    };
                    labels.push("ipv6 extensions");
                    (next, body) = (body[0], body.get(length..)?);
                }
                transport(next, offset, more, body, labels)?;
            }
            0..0x600 => {
                labels.push("llc");
                rest.get(..usize::from(kind))?;
            }
            _ => labels.push("unknown type"),
        }
        Some(())
    }

    fn transport(protocol: u8, offset: u16, more: bool, body: &[u8], labels: &mut Vec<&'static str>) -> Option<()> {
        match (offset, more) {
            (0, false) => {}
            (0, true) => labels.push("fragment first"),
            (_, true) => labels.push("fragment middle"),
            (_, false) => labels.push("fragment last"),
        }
        if offset > 0 {
            return Some(());
        }
        match protocol {
            6 => {
                let flags = *body.get(13)?;
                labels.push("tcp");
                if body[12] >> 4 > 5 {
                    labels.push("tcp options");
                }
                for (bit, label) in [(1, "tcp fin"), (2, "tcp syn"), (4, "tcp rst"), (32, "tcp urg")] {
                    if flags & bit != 0 {
                        labels.push(label);
                    }
                }
            }
            17 => {
                body.get(7)?;
                labels.push("udp");
            }
            132 => {
                body.get(11)?;
                labels.push("sctp");
            }
            1 => {
                body.get(7)?;
                labels.push("icmp");
            }
            58 => labels.push(match *body.first()? {
                135 => "neighbour solicitation",
                136 => "neighbour advertisement",
                _ => "icmpv6 echo",
            }),
            _ => labels.push("other protocol"),
        }
        Some(())
    }
}
