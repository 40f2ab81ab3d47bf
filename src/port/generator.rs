//! [`Generator`]: made-up traffic, the same on every run.
//!
//! Flow `i` is `10.P.x.y:s → 172.16+…:80`, UDP or TCP, where `P` is the port's number and `x.y` the low bits of `i`: flows differ
//! in source and destination address, and beyond 65,536 of them in source port. Frames have right checksums and go through
//! the flows in turn. A frame costs a copy of its template and the patching of 18 bytes.

use std::net::Ipv4Addr;
use std::time::Instant;

use super::pace::Rate;
use crate::flow::PortNo;
use crate::packet::{BATCH, Packet, Pool};

/// The shortest frame: Ethernet, IPv4 and TCP headers, padded as Ethernet wants it.
pub const MIN_SIZE: usize = 60;

/// The longest: IPv4 can say no more.
pub const MAX_SIZE: usize = 14 + 65_535;

/// The most flows.
pub const MAX_FLOWS: u32 = 1 << 22;

const IPV4: usize = 14;
const L4: usize = IPV4 + 20;

/// What to make.
#[derive(Clone, Debug)]
pub struct Traffic {
    pub source_mac: [u8; 6],
    pub destination_mac: [u8; 6],
    pub protocols: Vec<Protocol>,
    /// From 1 to [`MAX_FLOWS`].
    pub flows: u32,
    /// Bytes of a frame, without its check sequence; from [`MIN_SIZE`] to [`MAX_SIZE`].
    pub size: usize,
    /// Frames to make; `None`: no end.
    pub count: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    Udp,
    Tcp,
}

/// Makes the frames of every `step`th flow, for one receive queue.
pub struct Generator {
    port: PortNo,
    templates: Vec<Template>,
    flows: u32,
    flow: u32,
    first: u32,
    step: u32,
    left: u64,
    rate: Option<Rate>,
    backlog: u64,
    made: Instant,
    /// When frames were first asked for.
    start: Option<Instant>,
}

/// A frame without addresses and source port, and what its checksums add up to without them.
struct Template {
    frame: Vec<u8>,
    ip_sum: u32,
    l4_sum: u32,
    l4_checksum_at: usize,
}

impl Generator {
    /// Queue `queue` of `queues` of port `port`, with its share of the flows and of the count; `rate` is this queue's own.
    /// No more than `backlog` frames wait when they are not taken in time.
    pub fn new(
        port: PortNo,
        traffic: &Traffic,
        queue: u32,
        queues: u32,
        rate: Option<Rate>,
        backlog: u64,
    ) -> Generator {
        let share = |n: u64| n / u64::from(queues) + u64::from(u64::from(queue) < n % u64::from(queues));
        Generator {
            port,
            templates: traffic.protocols.iter().map(|&protocol| Template::new(protocol, traffic)).collect(),
            flows: traffic.flows,
            flow: queue,
            first: queue,
            step: queues,
            // A queue without a flow of its own makes nothing.
            left: if queue < traffic.flows { traffic.count.map_or(u64::MAX, share) } else { 0 },
            rate,
            backlog,
            made: Instant::now(),
            start: None,
        }
    }

    /// Fills `into` up to a batch with what is due at `now`; the answer is how many frames were lost because nobody took them in time.
    pub fn make(&mut self, now: Instant, pool: &mut Pool, into: &mut Vec<Packet>) -> u64 {
        self.start.get_or_insert(now);
        let room = BATCH.saturating_sub(into.len()) as u64;
        let mut lost = 0;
        let due = match &mut self.rate {
            None => room,
            Some(rate) => {
                let due = rate.due(now);
                lost = due.saturating_sub(self.backlog).min(self.left);
                rate.take(lost);
                self.left -= lost;
                due - lost
            }
        };
        let n = due.min(room).min(self.left);
        for _ in 0..n {
            into.push(self.next(pool));
        }
        self.left -= n;
        if let Some(rate) = &mut self.rate {
            rate.take(n);
        }
        lost
    }

    /// When the next frame falls due; `None` when there is none.
    pub fn next_due(&self) -> Option<Instant> {
        if self.left == 0 {
            return None;
        }
        let Some(start) = self.start else { return Some(self.made) };
        self.rate.as_ref().map_or(Some(start), Rate::next_due)
    }

    fn next(&mut self, pool: &mut Pool) -> Packet {
        let flow = self.flow;
        self.flow = flow + self.step;
        if self.flow >= self.flows {
            self.flow = self.first;
        }
        let template = &self.templates[flow as usize % self.templates.len()];
        let mut packet = pool.take_for(template.frame.len()).unwrap_or_else(|| Packet::from_bytes(&template.frame));
        packet.set_len(template.frame.len());
        let frame = packet.bytes_mut();
        frame.copy_from_slice(&template.frame);
        template.patch(frame, source(self.port, flow), destination(flow), source_port(flow));
        packet.meta.in_port = self.port;
        packet
    }
}

fn source(port: PortNo, flow: u32) -> Ipv4Addr {
    Ipv4Addr::new(10, port.0 as u8, (flow >> 8) as u8, flow as u8)
}

fn destination(flow: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::from_be_bytes([172, 16, 0, 0]) + flow % (1 << 20))
}

fn source_port(flow: u32) -> u16 {
    1_024 + (flow >> 16) as u16
}

impl Template {
    fn new(protocol: Protocol, traffic: &Traffic) -> Template {
        const PORT: u16 = 80;
        let ip_len = traffic.size - IPV4;
        let l4_len = ip_len - 20;
        let number = match protocol {
            Protocol::Udp => 17,
            Protocol::Tcp => 6,
        };
        let mut frame = [&traffic.destination_mac[..], &traffic.source_mac, &[0x08, 0x00, 0x45, 0]].concat();
        frame.extend((ip_len as u16).to_be_bytes());
        // Identification 0, do not fragment, 64 hops, checksum and addresses to come.
        frame.extend([0, 0, 0x40, 0, 64, number, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        frame.extend(PORT.to_be_bytes());
        let l4_checksum_at = match protocol {
            Protocol::Udp => {
                frame.extend((l4_len as u16).to_be_bytes());
                frame.extend([0, 0]);
                L4 + 6
            }
            Protocol::Tcp => {
                // Sequence and acknowledgement 1, five words of header, ACK, a full window.
                frame.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
                L4 + 16
            }
        };
        frame.resize(traffic.size, 0);
        let l4_sum = sum(&frame[L4..]) + u32::from(number) + l4_len as u32;
        Template { ip_sum: sum(&frame[IPV4..L4]), l4_sum, l4_checksum_at, frame }
    }

    #[inline]
    fn patch(&self, frame: &mut [u8], source: Ipv4Addr, destination: Ipv4Addr, port: u16) {
        frame[IPV4 + 12..IPV4 + 16].copy_from_slice(&source.octets());
        frame[IPV4 + 16..IPV4 + 20].copy_from_slice(&destination.octets());
        frame[L4..L4 + 2].copy_from_slice(&port.to_be_bytes());
        let addresses = sum(&frame[IPV4 + 12..L4]);
        frame[IPV4 + 10..IPV4 + 12].copy_from_slice(&finished(self.ip_sum + addresses).to_be_bytes());
        // A UDP checksum of 0 would mean "none" (RFC 768); its complement means the same sum, for TCP too.
        let checksum = match finished(self.l4_sum + addresses + u32::from(port)) {
            0 => 0xffff,
            checksum => checksum,
        };
        frame[self.l4_checksum_at..self.l4_checksum_at + 2].copy_from_slice(&checksum.to_be_bytes());
    }
}

/// The sum of 16-bit words (RFC 1071), not folded: at most 2³¹ for a frame.
fn sum(bytes: &[u8]) -> u32 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u32::from(low)));
    words.sum()
}

fn finished(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::num::NonZeroU64;
    use std::time::Duration;

    fn traffic(flows: u32, size: usize, count: Option<u64>) -> Traffic {
        let protocols = vec![Protocol::Udp, Protocol::Tcp];
        Traffic { source_mac: [2, 0, 0, 0, 0, 1], destination_mac: [2, 0, 0, 0, 0, 2], protocols, flows, size, count }
    }

    fn all(generator: &mut Generator) -> Vec<Vec<u8>> {
        let (mut pool, mut frames, mut batch) = (Pool::new(), Vec::new(), Vec::new());
        loop {
            assert_eq!(generator.make(Instant::now(), &mut pool, &mut batch), 0);
            if batch.is_empty() {
                return frames;
            }
            frames.extend(batch.iter().map(|packet| packet.bytes().to_vec()));
            pool.give_all(&mut batch);
        }
    }

    #[test]
    fn frames_are_sound_to_another_parser_and_flows_come_in_turn() {
        for size in [60, 61, 64, 1_514, 9_014, MAX_SIZE] {
            let frames = all(&mut Generator::new(PortNo(5), &traffic(7, size, Some(70)), 0, 1, None, 0));
            assert_eq!(frames.len(), 70);
            for (i, frame) in frames.iter().enumerate() {
                assert_eq!(frame, &frames[i % 7]);
                let packet = etherparse::PacketHeaders::from_ethernet_slice(frame).unwrap();
                let Some(etherparse::NetHeaders::Ipv4(ip, _)) = packet.net else { panic!("not IPv4") };
                assert_eq!(ip.source, [10, 5, 0, (i % 7) as u8]);
                assert_eq!(ip.header_checksum, ip.calc_header_checksum());
                let payload = packet.payload.slice();
                match packet.transport.unwrap() {
                    etherparse::TransportHeader::Udp(udp) => {
                        assert_eq!(udp.checksum, udp.calc_checksum_ipv4(&ip, payload).unwrap());
                    }
                    etherparse::TransportHeader::Tcp(tcp) => {
                        let expected = tcp.calc_checksum_ipv4(&ip, payload).unwrap();
                        assert!(tcp.checksum == expected || (tcp.checksum, expected) == (0xffff, 0));
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    #[test]
    fn queues_share_the_flows_without_overlap() {
        let traffic = traffic(10, 64, Some(1_001));
        let queues: Vec<Vec<Vec<u8>>> =
            (0..3).map(|q| all(&mut Generator::new(PortNo(1), &traffic, q, 3, None, 0))).collect();
        assert_eq!(queues.iter().map(Vec::len).sum::<usize>(), 1_001);
        let sets: Vec<HashSet<&Vec<u8>>> = queues.iter().map(|frames| frames.iter().collect()).collect();
        assert_eq!(sets.iter().map(HashSet::len).collect::<Vec<_>>(), [4, 3, 3]);
        assert_eq!(sets.iter().flatten().collect::<HashSet<_>>().len(), 10);
        assert!(all(&mut Generator::new(PortNo(1), &traffic, 11, 12, None, 0)).is_empty());
    }

    #[test]
    fn a_million_flows_are_a_million_tuples() {
        let tuples: HashSet<_> =
            (0..1_000_000).map(|i| (source(PortNo(1), i), destination(i), source_port(i))).collect();
        assert_eq!(tuples.len(), 1_000_000);
    }

    #[test]
    fn a_late_poller_finds_a_full_ring_and_the_rest_counted() {
        let rate = Rate::new(NonZeroU64::new(1_000).unwrap());
        let mut generator = Generator::new(PortNo(1), &traffic(1, 64, None), 0, 1, Some(rate), 100);
        let (start, mut pool, mut batch) = (Instant::now(), Pool::new(), Vec::new());
        assert_eq!(generator.make(start, &mut pool, &mut batch), 0);
        assert_eq!(batch.len(), 1);
        assert_eq!(generator.next_due(), Some(start + Duration::from_millis(1)));
        batch.clear();
        assert_eq!(generator.make(start + Duration::from_secs(1), &mut pool, &mut batch), 900);
        assert_eq!(batch.len(), BATCH);
        batch.clear();
        generator.make(start + Duration::from_secs(1), &mut pool, &mut batch);
        generator.make(start + Duration::from_secs(1), &mut pool, &mut batch);
        assert_eq!(batch.len(), BATCH);
    }
}
