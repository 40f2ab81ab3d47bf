//! `packet` and `tap` ports against the real kernel.
//!
//! Each test makes network namespaces with names of its own and removes them; without root it says that it is skipped.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use offloadd::flow::PortNo;
use offloadd::packet::{Offload, Packet, PartialChecksum, Pool, SegmentKind, Segmentation};
use offloadd::port::{self, OpenError, Port, RxQueue, Sent, TxQueue};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::CapabilitySet;

use crate::netns::{Namespace, enter};

/// How long anything may take before the test fails.
const LIMIT: Duration = Duration::from_secs(20);

/// An Ethernet type for experiments (IEEE Std 802), which no kernel answers.
const EXPERIMENT: [u8; 2] = [0x88, 0xb5];

impl Namespace {
    pub fn try_open(&self, spec: &str) -> Result<Box<dyn Port>, OpenError> {
        self.enter(|| port::open(&spec.parse().unwrap(), PortNo(1)))
    }

    pub fn open(&self, spec: &str) -> Open {
        let mut port = self.try_open(spec).unwrap();
        let rx = port.take_rx();
        assert_eq!(rx.len(), port.info().rx_queues);
        // A queue is a socket of its own, of the namespace that it is opened in.
        let tx = self.enter(|| port.open_tx().unwrap().unwrap());
        Open { place: self.name.clone(), port, rx, tx, pool: Pool::new() }
    }
}

/// A port with its queues.
pub struct Open {
    /// The namespace that it sends in.
    pub place: String,
    pub port: Box<dyn Port>,
    pub rx: Vec<Box<dyn RxQueue>>,
    pub tx: Box<dyn TxQueue>,
    pub pool: Pool,
}

impl Open {
    pub fn send(&mut self, frames: &[Vec<u8>]) -> Sent {
        let mut packets = frames.iter().map(|frame| Packet::from_bytes(frame)).collect();
        let (tx, pool) = (&mut self.tx, &mut self.pool);
        // Where its pollers would do it.
        let sent = enter(&self.place, || tx.transmit(Instant::now(), pool, &mut packets));
        assert!(packets.is_empty());
        sent
    }

    /// Waits for `n` frames of ours, at any queue; other frames are passed over.
    pub fn receive(&mut self, n: usize) -> Vec<Packet> {
        let (mut ours, mut packets, end) = (Vec::new(), Vec::new(), Instant::now() + LIMIT);
        while ours.len() < n {
            assert!(Instant::now() < end, "{} of {n} frames came", ours.len());
            wait(&self.rx.iter().map(|rx| &**rx).collect::<Vec<_>>());
            for rx in &mut self.rx {
                rx.receive(Instant::now(), &mut self.pool, &mut packets).unwrap();
                ours.extend(packets.drain(..).filter(|packet| is_ours(packet.bytes())));
            }
        }
        ours
    }
}

/// Waits until one of the queues is readable, a second at most.
fn wait(queues: &[&dyn RxQueue]) {
    let fds: Vec<_> = queues.iter().map(|rx| rx.readable().unwrap()).collect();
    let mut polled: Vec<_> = fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    poll(&mut polled, Some(&Timespec { tv_sec: 1, tv_nsec: 0 })).unwrap();
}

/// A frame of `len` bytes for the experiment, behind `tags`.
pub fn frame(len: usize, tags: &[u8]) -> Vec<u8> {
    let mut frame = [&[2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 8], tags, &EXPERIMENT].concat();
    let start = frame.len();
    frame.extend((start..len).map(|i| (i * 31 + len) as u8));
    frame
}

fn is_ours(frame: &[u8]) -> bool {
    (12..frame.len().min(22)).step_by(4).any(|at| frame.get(at..at + 2) == Some(&EXPERIMENT))
}

pub fn bytes(packets: &[Packet]) -> Vec<Vec<u8>> {
    packets.iter().map(|packet| packet.bytes().to_vec()).collect()
}

#[test]
fn frames_pass_between_packet_ports_byte_for_byte() {
    let Some(world) = Namespace::new() else { return };
    world.veth("va", "vb");
    let (mut a, mut b) = (world.open("va,type=packet"), world.open("vb"));
    assert_eq!((a.port.mtu(), a.port.info().tx_segment), (1_500, true));
    let frames: Vec<Vec<u8>> = (0..100).map(|i| frame(60 + i * 14, &[])).chain([frame(1_514, &[])]).collect();
    for _ in 0..2 {
        let bytes_sent = frames.iter().map(|frame| frame.len() as u64).sum();
        assert_eq!(a.send(&frames), Sent { packets: 101, bytes: bytes_sent, ..Sent::default() });
        assert_eq!(bytes(&b.receive(101)), frames);
        std::mem::swap(&mut a, &mut b);
    }
    assert_eq!(a.rx[0].missed(), 0);
}

#[test]
fn a_frame_too_long_for_the_interface_fails_alone() {
    let Some(world) = Namespace::new() else { return };
    world.veth("va", "vb");
    let (mut a, mut b) = (world.open("va"), world.open("vb"));
    let sent = a.send(&[frame(60, &[]), frame(3_000, &[]), frame(61, &[]), frame(70_000, &[]), frame(62, &[])]);
    assert_eq!((sent.packets, sent.failed, sent.full), (3, 2, 0));
    assert_eq!(bytes(&b.receive(3)), [frame(60, &[]), frame(61, &[]), frame(62, &[])]);
    world.ip("link set va mtu 9000");
    world.ip("link set vb mtu 9000");
    assert_eq!(a.port.mtu(), 9_000);
    assert_eq!(a.send(&[frame(9_014, &[]), frame(60, &[])]).packets, 2);
    assert_eq!(bytes(&b.receive(2)), [frame(9_014, &[]), frame(60, &[])]);
}

#[test]
fn frames_keep_their_order_round_the_ring_whether_or_not_they_fit_its_slots() {
    let Some(world) = Namespace::new() else { return };
    world.veth("va", "vb");
    // 64 KiB are 32 slots, made for an MTU of 1,500 bytes.
    let (mut a, mut b) = (world.open("va"), world.open("vb,rcvbuf=64"));
    assert_eq!(b.port.info().ring, 32);
    for end in ["va", "vb"] {
        world.ip(&format!("link set {end} mtu 9000"));
    }
    for round in 0..5 {
        // Two long ones at a time: they also need room in the receive buffer.
        let frames: Vec<Vec<u8>> =
            (0..20).map(|i| frame(if i % 9 == 5 { 4_000 + i } else { 60 + round + i }, &[])).collect();
        assert_eq!(a.send(&frames).packets, 20);
        assert_eq!(bytes(&b.receive(20)), frames);
    }
    assert_eq!(b.rx[0].missed(), 0);
}

#[test]
fn what_a_full_ring_has_no_slot_for_is_counted_as_missed() {
    let Some(world) = Namespace::new() else { return };
    world.veth("va", "vb");
    let (mut a, mut b) = (world.open("va"), world.open("vb,rcvbuf=64"));
    let frames: Vec<Vec<u8>> = (0..50).map(|i| frame(60 + i, &[])).collect();
    for round in 1..=3 {
        assert_eq!(a.send(&frames).packets, 50);
        assert_eq!(bytes(&b.receive(32)), frames[..32]);
        assert_eq!(b.rx[0].missed(), round * 18);
    }
}

#[test]
fn vlan_tags_that_the_kernel_took_off_are_put_back() {
    let Some(world) = Namespace::new() else { return };
    world.veth("va", "vb");
    let (mut a, mut b) = (world.open("va"), world.open("vb"));
    let tags: [&[u8]; 4] = [
        &[0x81, 0x00, 0x00, 0x64],
        &[0x81, 0x00, 0xb0, 0x00],
        &[0x88, 0xa8, 0x30, 0x05],
        &[0x88, 0xa8, 0x20, 0x07, 0x81, 0x00, 0x6f, 0xfe],
    ];
    let frames: Vec<Vec<u8>> = tags.iter().map(|tags| frame(100, tags)).collect();
    assert_eq!(a.send(&frames).packets, 4);
    assert_eq!(bytes(&b.receive(4)), frames);
    // As long as the MTU allows, the tag not counted.
    assert_eq!(a.send(&[frame(1_518, tags[0])]).packets, 1);
    assert_eq!(bytes(&b.receive(1)), [frame(1_518, tags[0])]);
}

#[test]
fn several_queues_get_each_frame_once() {
    let Some(world) = Namespace::new() else { return };
    world.veth("va", "vb");
    let (mut a, mut b) = (world.open("va"), world.open("vb,queues=3"));
    let frames: Vec<Vec<u8>> = (0..200).map(|i| frame(60 + i, &[])).collect();
    assert_eq!(a.send(&frames).packets, 200);
    let mut received = bytes(&b.receive(200));
    received.sort_by_key(Vec::len);
    assert_eq!(received, frames);
    // What the port itself sends comes back to none of its queues.
    assert_eq!(b.send(&frames).packets, 200);
    assert_eq!(a.receive(200).len(), 200);
    let mut packets = Vec::new();
    for rx in &mut b.rx {
        rx.receive(Instant::now(), &mut Pool::new(), &mut packets).unwrap();
    }
    assert!(!packets.iter().any(|packet| is_ours(packet.bytes())));
}

#[test]
fn an_interface_that_goes_down_comes_back_and_one_removed_is_an_error() {
    let Some(world) = Namespace::new() else { return };
    world.veth("va", "vb");
    let (mut a, mut b) = (world.open("va"), world.open("vb"));
    world.ip("link set va down");
    let mut packets = Vec::new();
    for _ in 0..3 {
        a.rx[0].receive(Instant::now(), &mut a.pool, &mut packets).unwrap();
    }
    assert_eq!(a.send(&[frame(60, &[]), frame(61, &[])]).failed, 2);
    world.ip("link set va up");
    // The carrier comes back a moment after the command has returned.
    let end = Instant::now() + LIMIT;
    while b.send(&[frame(60, &[])]).packets == 0 {
        assert!(Instant::now() < end);
        std::thread::yield_now();
    }
    assert_eq!(bytes(&a.receive(1)), [frame(60, &[])]);

    world.ip("link del va");
    for port in [&mut a, &mut b] {
        let end = Instant::now() + LIMIT;
        let error = loop {
            assert!(Instant::now() < end, "no error was told");
            wait(&[&*port.rx[0]]);
            if let Err(error) = port.rx[0].receive(Instant::now(), &mut port.pool, &mut packets) {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        assert_eq!(port.send(&[frame(60, &[]), frame(61, &[])]).failed, 2);
        assert_eq!(port.port.mtu(), 1_500, "the last one known");
        assert!(world.enter(|| port.port.open_tx().is_err()));
    }
}

#[test]
fn what_a_packet_or_tap_port_needs_is_named() {
    let Some(world) = Namespace::new() else { return };
    world.veth("va", "vb");
    let _taken = world.try_open("t0,type=tap").unwrap();
    let error = |spec: &str| world.try_open(spec).err().unwrap().to_string();
    assert_eq!(error("c"), "port c: no interface has that name");
    assert_eq!(error("t0,type=tap"), "port t0: the TAP interface is in use by another program");
    assert_eq!(
        error("va,type=tap"),
        "port va: an interface of that name exists and is no TAP interface, or has another number of queues"
    );
    assert_eq!(error("t%d,type=tap"), "port t%d: the kernel would name the interface t1");
    let powerless = |spec: &str| {
        world.enter(|| {
            let mut sets = rustix::thread::capabilities(None).unwrap();
            sets.effective.remove(CapabilitySet::NET_RAW | CapabilitySet::NET_ADMIN);
            rustix::thread::set_capabilities(None, sets).unwrap();
            port::open(&spec.parse().unwrap(), PortNo(1)).err().unwrap().to_string()
        })
    };
    assert_eq!(powerless("va"), "port va: packet sockets need CAP_NET_RAW");
    assert_eq!(powerless("t9,type=tap"), "port t9: creating a TAP interface needs CAP_NET_ADMIN");
}

#[test]
fn a_tap_interface_goes_with_its_port_and_its_removal_is_an_error() {
    let Some(world) = Namespace::new() else { return };
    let there =
        |name: &str| world.enter(|| std::fs::read_to_string("/proc/thread-self/net/dev").unwrap().contains(name));
    let tap = world.open("mytap,type=tap,queues=2");
    assert!(there("mytap:"));
    assert_eq!(tap.port.mtu(), 1_500);
    drop(tap);
    // Not at once: a command that another test is just starting holds the descriptors for a moment longer.
    let end = Instant::now() + LIMIT;
    while there("mytap:") {
        assert!(Instant::now() < end, "the interface stays");
        std::thread::yield_now();
    }

    let mut tap = world.open("mytap,type=tap");
    world.ip("link set mytap down");
    assert_eq!(tap.send(&[frame(60, &[])]).failed, 1);
    tap.rx[0].receive(Instant::now(), &mut tap.pool, &mut Vec::new()).unwrap();
    world.ip("link del mytap");
    let error = tap.rx[0].receive(Instant::now(), &mut tap.pool, &mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert_eq!(tap.send(&[frame(60, &[])]).failed, 1);
}

#[test]
fn frames_pass_between_a_tap_port_and_a_packet_port_on_its_interface() {
    let Some(world) = Namespace::new() else { return };
    let mut tap = world.open("t0,type=tap");
    let mut host = world.open("t0,type=packet");
    let frames: Vec<Vec<u8>> =
        (0..40).map(|i| frame(60 + i * 37, if i % 2 == 0 { &[] } else { &[0x81, 0, 0, 7] })).collect();
    assert_eq!(tap.send(&frames).packets, 40);
    assert_eq!(bytes(&host.receive(40)), frames);
    assert_eq!(host.send(&frames).packets, 40);
    assert_eq!(bytes(&tap.receive(40)), frames);
}

/// What a TCP transfer through two ports looked like to them.
#[derive(Default, Debug)]
struct Seen {
    longest: usize,
    segmented: u64,
    partial: u64,
    lost: u64,
}

/// Sends 8 MB over TCP from `client` to `server`, whose frames the two ports carry to each other whole.
fn transfer(client: &Namespace, server: &Namespace, mut a: Open, mut b: Open) -> Seen {
    const BYTES: usize = 8 << 20;
    let listener = server.enter(|| TcpListener::bind("10.9.0.2:5001").unwrap());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let carrier = scope.spawn(|| {
            let (mut seen, mut packets, end) = (Seen::default(), Vec::new(), Instant::now() + LIMIT);
            while !done.load(Ordering::Relaxed) && Instant::now() < end {
                for _ in 0..2 {
                    a.rx[0].receive(Instant::now(), &mut a.pool, &mut packets).unwrap();
                    for packet in &packets {
                        seen.longest = seen.longest.max(packet.len());
                        seen.partial += u64::from(packet.meta.offload.checksum.is_some());
                        if let Some(segment) = packet.meta.offload.segment {
                            assert_eq!(segment.kind, SegmentKind::TcpIpv4);
                            seen.segmented += 1;
                        }
                    }
                    let sent = b.tx.transmit(Instant::now(), &mut b.pool, &mut packets);
                    seen.lost += sent.full + sent.failed;
                    std::mem::swap(&mut a, &mut b);
                }
                let fds = [a.rx[0].readable().unwrap(), b.rx[0].readable().unwrap()];
                let mut polled = [PollFd::new(&fds[0], PollFlags::IN), PollFd::new(&fds[1], PollFlags::IN)];
                poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 50_000_000 })).unwrap();
            }
            seen
        });
        let sender = scope.spawn(|| {
            client.enter(|| {
                let mut stream = TcpStream::connect_timeout(&"10.9.0.2:5001".parse().unwrap(), LIMIT).unwrap();
                let data: Vec<u8> = (0..BYTES).map(|i| (i % 251) as u8).collect();
                stream.set_write_timeout(Some(LIMIT)).unwrap();
                stream.write_all(&data).unwrap();
            });
        });
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut data = Vec::new();
        let outcome = stream.read_to_end(&mut data);
        sender.join().unwrap();
        done.store(true, Ordering::Relaxed);
        let seen = carrier.join().unwrap();
        outcome.unwrap();
        assert_eq!(data.len(), BYTES, "{seen:?}");
        assert!(data.iter().enumerate().all(|(i, &byte)| byte == (i % 251) as u8));
        seen
    })
}

#[test]
fn tcp_crosses_packet_ports_in_frames_that_no_wire_could_carry() {
    let (Some(client), Some(switch), Some(server)) = (Namespace::new(), Namespace::new(), Namespace::new()) else {
        return;
    };
    for (host, address, end) in [(&client, "10.9.0.1/24", "c"), (&server, "10.9.0.2/24", "s")] {
        switch.ip(&format!("link add {end} type veth peer name eth0 netns {}", host.name));
        switch.ip(&format!("link set {end} up"));
        host.ip("link set eth0 up");
        host.ip(&format!("addr add {address} dev eth0"));
    }
    let seen = transfer(&client, &server, switch.open("c"), switch.open("s"));
    assert!(seen.longest > 1_514 && seen.segmented > 0 && seen.partial > 0, "{seen:?}");
}

#[test]
fn a_tagged_tcp_frame_to_be_cut_arrives_whole_with_what_is_left_to_do() {
    let Some(world) = Namespace::new() else { return };
    world.veth("va", "vb");
    let (mut a, mut b) = (world.open("va"), world.open("vb"));
    for (tag, start) in [(&[][..], 34), (&[0x81, 0, 0x60, 5], 38), (&[0x88, 0xa8, 0, 7, 0x81, 0, 0x60, 5], 42)] {
        let mut packet = Packet::from_bytes(&tcp(tag, 20_000));
        let offload = Offload {
            checksum: Some(PartialChecksum { start, offset: 16 }),
            segment: Some(Segmentation { kind: SegmentKind::TcpIpv4, size: 1_400, ecn: false }),
        };
        packet.meta.offload = offload;
        let expected = packet.bytes().to_vec();
        let sent = a.tx.transmit(Instant::now(), &mut a.pool, &mut vec![packet]);
        assert_eq!(sent.packets, 1, "{sent:?}");
        let (mut packets, end) = (Vec::new(), Instant::now() + LIMIT);
        while packets.is_empty() {
            assert!(Instant::now() < end, "nothing came");
            wait(&[&*b.rx[0]]);
            b.rx[0].receive(Instant::now(), &mut b.pool, &mut packets).unwrap();
        }
        assert_eq!((packets.len(), packets[0].bytes()), (1, &expected[..]), "{tag:x?}");
        assert_eq!(packets[0].meta.offload, offload);
    }
}

/// A TCP segment of `payload` bytes over IPv4, whose checksum holds the sum of its pseudo-header only.
fn tcp(tag: &[u8], payload: u16) -> Vec<u8> {
    let mut frame = [&[2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 8], tag, &[8, 0, 0x45, 0]].concat();
    frame.extend((payload + 40).to_be_bytes());
    frame.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 10, 9, 0, 1, 10, 9, 0, 2]);
    frame.extend([0x13, 0x88, 0x13, 0x89, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0x12, 0x34, 0, 0]);
    frame.extend((0..payload).map(|i| i as u8));
    frame
}

#[test]
fn tcp_crosses_tap_ports_in_frames_that_no_wire_could_carry() {
    let (Some(client), Some(server)) = (Namespace::new(), Namespace::new()) else { return };
    let (a, b) = (client.open("t0,type=tap"), server.open("t0,type=tap"));
    client.ip("addr add 10.9.0.1/24 dev t0");
    server.ip("addr add 10.9.0.2/24 dev t0");
    let seen = transfer(&client, &server, a, b);
    assert!(seen.longest > 1_514 && seen.segmented > 0 && seen.partial > 0, "{seen:?}");
}
