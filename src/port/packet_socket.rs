//! The `packet` port: AF_PACKET sockets on an existing interface (packet(7)).
//!
//! | option | meaning |
//! | --- | --- |
//! | `queues=N` | receive queues, 1 by default; the kernel spreads flows over them (`PACKET_FANOUT`) |
//! | `rcvbuf=KIB` | memory of each receive queue, for what may wait in it; 8,192 by default |
//! | `promisc=no` | takes only the frames that the interface takes anyway |
//! | `qdisc-bypass=no` | sends through the interface's queueing discipline |
//!
//! Interfaces keep their defaults: frames that a kernel left unfinished come and go whole, described by a [`vnet`] header, and
//! a VLAN tag that the kernel took off is put back. Each receive queue and each poller's transmit queue is a socket of
//! its own, so that nothing is shared.
//!
//! Frames are taken from a [`Ring`] without a system call; only a frame too long for the ring's slots, one that no wire could
//! carry, is fetched with one. What a batch sends goes with one call.

use std::cell::Cell;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::netdevice::{index_to_name_inlined, name_to_index};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SocketFlags, SocketType, recvmsg, socket_with, sockopt,
};

use super::{Kind, OpenError, Port, PortInfo, PortSpec, RxQueue, Sent, TxQueue, vnet};
use crate::flow::PortNo;
use crate::packet::{BATCH, Packet, Pool};
use crate::sys::mmsg::Sender;
use crate::sys::netdev;
use crate::sys::packet::{self, ETH_P_ALL, Flag};
use crate::sys::ring::{Frame, Ring};

/// What `type=packet` takes.
pub const OPTIONS: &[&str] = &["queues", "rcvbuf", "promisc", "qdisc-bypass"];

/// What may wait to be sent, in bytes: some large frames.
const SEND_BUFFER: usize = 4 << 20;

/// An Ethernet header and two VLAN tags, in bytes.
const ETHERNET: usize = 14 + 2 * 4;

/// How often a queue without frames is asked what became of its interface. The socket tells no other way.
const CHECK: Duration = Duration::from_millis(10);

/// How often a frame is asked for that must be there: errors of the past come first.
const FETCHES: usize = 4;

struct PacketPort {
    info: PortInfo,
    ifindex: u32,
    rx: Vec<Box<dyn RxQueue>>,
    /// A socket of the interface's namespace, to ask about it. It receives nothing.
    socket: OwnedFd,
    mtu: Cell<usize>,
    rcvbuf: usize,
    qdisc_bypass: bool,
}

pub fn open(spec: &PortSpec, number: PortNo) -> Result<Box<dyn Port>, OpenError> {
    let queues = spec.number_in("queues", 1..=16, 1)? as usize;
    let rcvbuf = (spec.number_in("rcvbuf", 16..=1 << 20, 8 << 10)? as usize) << 10;
    let promiscuous = spec.flag("promisc", true)?;
    let qdisc_bypass = spec.flag("qdisc-bypass", true)?;

    let socket = new_socket().map_err(|error| match error {
        Errno::PERM => spec.wrong("packet sockets need CAP_NET_RAW"),
        error => spec.failed("packet socket", error),
    })?;
    let ifindex = name_to_index(&socket, &spec.name).map_err(|error| match error {
        Errno::NODEV => spec.wrong("no interface has that name"),
        error => spec.failed("looking for the interface", error),
    })?;
    let about = |error| spec.failed("asking about the interface", error);
    if !netdev::is_ethernet(&socket, &spec.name).map_err(about)? {
        return Err(spec.wrong("not an Ethernet interface"));
    }
    let mtu = netdev::mtu(&socket, &spec.name).map_err(about)?;

    let mut group = None;
    let mut rx: Vec<Box<dyn RxQueue>> = Vec::new();
    let mut ring = 0;
    for _ in 0..queues {
        let (socket, slots) = rx_socket(rcvbuf, mtu).map_err(|(what, error)| spec.failed(what, error))?;
        ring = slots.slots() as u64;
        let mut queue = PacketRx::new(socket, slots, ifindex, number);
        let begun = queue.begin(promiscuous, queues > 1, &mut group);
        begun.map_err(|(what, error)| spec.failed(what, error))?;
        rx.push(Box::new(queue));
    }
    let info = PortInfo {
        name: spec.name.clone(),
        number,
        kind: Kind::Packet,
        ifindex: Some(ifindex),
        rx_queues: queues,
        tx_checksum: true,
        tx_segment: true,
        ring,
    };
    Ok(Box::new(PacketPort { info, ifindex, rx, socket, mtu: Cell::new(mtu), rcvbuf, qdisc_bypass }))
}

/// A packet socket that receives nothing: it has no protocol yet.
fn new_socket() -> Result<OwnedFd, Errno> {
    socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
}

/// A socket with a ring for frames of `mtu`, not yet bound. `rcvbuf` bounds the ring, and once more the frames too long for it.
fn rx_socket(rcvbuf: usize, mtu: usize) -> Result<(OwnedFd, Ring), (&'static str, io::Error)> {
    let socket = new_socket().map_err(|error| ("packet socket", error.into()))?;
    packet::set(&socket, Flag::VnetHeader, true).map_err(|error| ("PACKET_VNET_HDR", error))?;
    packet::set(&socket, Flag::IgnoreOutgoing, true).map_err(|error| ("PACKET_IGNORE_OUTGOING", error))?;
    // The kernel doubles what it is told; without the privilege, it gives what it may.
    sockopt::set_socket_recv_buffer_size_force(&socket, rcvbuf / 2)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(&socket, rcvbuf / 2))
        .map_err(|error| ("SO_RCVBUF", error.into()))?;
    let ring = Ring::new(&socket, rcvbuf, ETHERNET + mtu, vnet::LEN).map_err(|error| ("PACKET_RX_RING", error))?;
    Ok((socket, ring))
}

impl Port for PacketPort {
    fn info(&self) -> &PortInfo {
        &self.info
    }

    fn mtu(&self) -> usize {
        // By its number, for it may have been renamed.
        let name = index_to_name_inlined(&self.socket, self.ifindex);
        if let Some(mtu) = name.ok().and_then(|name| netdev::mtu(&self.socket, name.as_str()).ok()) {
            self.mtu.set(mtu);
        }
        self.mtu.get()
    }

    fn take_rx(&mut self) -> Vec<Box<dyn RxQueue>> {
        std::mem::take(&mut self.rx)
    }

    fn open_tx(&mut self) -> io::Result<Option<Box<dyn TxQueue>>> {
        let socket = new_socket()?;
        packet::set(&socket, Flag::VnetHeader, true)?;
        if self.qdisc_bypass {
            packet::set(&socket, Flag::QdiscBypass, true)?;
        }
        sockopt::set_socket_send_buffer_size_force(&socket, SEND_BUFFER)
            .or_else(|_| sockopt::set_socket_send_buffer_size(&socket, SEND_BUFFER))?;
        packet::bind(&socket, self.ifindex, 0)?;
        Ok(Some(Box::new(PacketTx { socket, sender: Sender::new(BATCH), qdisc_bypass: self.qdisc_bypass })))
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let bypass = if self.qdisc_bypass { "yes" } else { "no" };
        vec![("rcvbuf", format!("{} KiB", self.rcvbuf >> 10)), ("qdisc-bypass", bypass.to_owned())]
    }
}

struct PacketRx {
    ring: Ring,
    socket: OwnedFd,
    ifindex: u32,
    number: PortNo,
    /// When to ask about the interface next.
    check: Option<Instant>,
    /// The interface has been down since the queue was opened, or it is gone.
    was_down: bool,
    dropped: u64,
    malformed: u64,
}

impl PacketRx {
    fn new(socket: OwnedFd, ring: Ring, ifindex: u32, number: PortNo) -> PacketRx {
        PacketRx { ring, socket, ifindex, number, check: None, was_down: false, dropped: 0, malformed: 0 }
    }

    /// Receives from the interface from now on, and only from it: all else is set before.
    fn begin(
        &mut self,
        promiscuous: bool,
        shared: bool,
        group: &mut Option<u16>,
    ) -> Result<(), (&'static str, io::Error)> {
        if promiscuous {
            packet::promiscuous(&self.socket, self.ifindex).map_err(|error| ("promiscuous mode", error))?;
        }
        packet::bind(&self.socket, self.ifindex, ETH_P_ALL).map_err(|error| ("binding to the interface", error))?;
        if shared {
            let first = group.is_none();
            *group = Some(packet::join_fanout(&self.socket, *group).map_err(|error| ("PACKET_FANOUT", error))?);
            if !first {
                // Until it joined, it was given what the others were given too.
                self.discard();
            }
        }
        Ok(())
    }

    /// Forgets the frames that wait, a ring of them at most.
    fn discard(&mut self) {
        for _ in 0..self.ring.slots() {
            let Some(frame) = self.ring.front() else { break };
            if frame.queued {
                let _ = fetch(&self.socket, &mut [0; vnet::LEN], &mut []);
            }
            self.ring.advance();
        }
    }

    /// Asks, not too often, what became of the interface: nothing else tells of it.
    #[cold]
    fn look_after(&mut self, now: Instant) -> io::Result<()> {
        self.check = Some(now + CHECK);
        match sockopt::socket_error(&self.socket)? {
            Ok(()) | Err(Errno::INTR | Errno::NOBUFS | Errno::NOMEM) => {}
            Err(Errno::NETDOWN) => self.was_down = true,
            Err(error) => return Err(error.into()),
        }
        // Down passes; gone does not, and may follow down a moment later without another word.
        if self.was_down && index_to_name_inlined(&self.socket, self.ifindex).is_err() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the interface is gone"));
        }
        Ok(())
    }
}

/// The packet that `frame` describes; `None` when it is malformed, or could not be kept whole.
#[inline]
fn take(frame: &Frame<'_>, socket: &OwnedFd, was_down: &mut bool, pool: &mut Pool) -> Option<Packet> {
    let Some(mut packet) = pool.take_for(frame.len) else {
        if frame.queued {
            let _ = fetch(socket, &mut [0; vnet::LEN], &mut []);
        }
        return None;
    };
    packet.set_len(frame.len);
    let whole = match frame.bytes.split_first_chunk() {
        _ if frame.queued => fetch_whole(socket, was_down, &mut packet),
        Some((header, bytes)) if bytes.len() == frame.len => {
            packet.bytes_mut().copy_from_slice(bytes);
            Some(*header)
        }
        _ => None,
    };
    let described = whole.is_some_and(|header| vnet::describe(&mut packet, &header, frame.vlan).is_ok());
    if described {
        return Some(packet);
    }
    pool.give(packet);
    None
}

/// Fetches a frame that was too long for its slot into `packet`, which is as long. Answers with its header.
#[cold]
fn fetch_whole(socket: &OwnedFd, was_down: &mut bool, packet: &mut Packet) -> Option<[u8; vnet::LEN]> {
    let mut header = [0; vnet::LEN];
    for _ in 0..FETCHES {
        match fetch(socket, &mut header, packet.bytes_mut()) {
            Ok(len) if len == vnet::LEN + packet.len() => return Some(header),
            // One that should have been fetched before.
            Ok(_) => {}
            // Told once, and before the frames that wait.
            Err(Errno::NETDOWN) => *was_down = true,
            Err(Errno::INTR | Errno::NOBUFS | Errno::NOMEM) => {}
            Err(_) => return None,
        }
    }
    None
}

/// Takes the first waiting frame from the socket; what has no room is lost. Answers with the length of the whole.
fn fetch(socket: &OwnedFd, header: &mut [u8; vnet::LEN], room: &mut [u8]) -> Result<usize, Errno> {
    let mut pieces = [IoSliceMut::new(header), IoSliceMut::new(room)];
    let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
    recvmsg(socket, &mut pieces, &mut RecvAncillaryBuffer::default(), flags).map(|message| message.bytes)
}

impl RxQueue for PacketRx {
    fn receive(&mut self, now: Instant, pool: &mut Pool, into: &mut Vec<Packet>) -> io::Result<usize> {
        // Malformed frames, which no kernel is known to make, do not keep us here: whatever waited at the start was seen after a ring's worth.
        for taken in 0..self.ring.slots() {
            if into.len() >= BATCH {
                return Ok(taken);
            }
            let Some(frame) = self.ring.front() else {
                if self.check.is_none_or(|at| now >= at) {
                    self.look_after(now)?;
                }
                return Ok(taken);
            };
            match take(&frame, &self.socket, &mut self.was_down, pool) {
                Some(mut packet) => {
                    packet.meta.in_port = self.number;
                    into.push(packet);
                }
                None => self.malformed += 1,
            }
            self.ring.advance();
        }
        Ok(self.ring.slots())
    }

    fn readable(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }

    fn missed(&mut self) -> u64 {
        // Asking takes the kernel's count away.
        self.dropped += packet::drops(&self.socket).unwrap_or(0);
        self.dropped + self.malformed
    }
}

struct PacketTx {
    socket: OwnedFd,
    sender: Sender,
    qdisc_bypass: bool,
}

/// What to do about frames that were not sent.
enum Refusal {
    /// This frame is at fault.
    One,
    /// There is no room for this frame and those behind it.
    Full,
    /// The interface takes none of them.
    All,
    Again,
}

impl PacketTx {
    fn judge(&mut self, error: io::Error, first: &Packet) -> Refusal {
        match Errno::from_io_error(&error) {
            Some(Errno::INTR) => Refusal::Again,
            // Past the queueing discipline, a frame that the driver cannot cut itself is refused; with it, the kernel cuts.
            Some(Errno::NOBUFS) if self.qdisc_bypass && first.meta.offload.segment.is_some() => {
                self.qdisc_bypass = false;
                match packet::set(&self.socket, Flag::QdiscBypass, false) {
                    Ok(()) => Refusal::Again,
                    Err(_) => Refusal::Full,
                }
            }
            Some(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM) => Refusal::Full,
            Some(Errno::NETDOWN | Errno::NODEV | Errno::NXIO) => Refusal::All,
            // Too long (EMSGSIZE), or a header that the kernel does not believe (EINVAL).
            _ => Refusal::One,
        }
    }

    /// Sends up to a batch of packets that begin with their headers.
    fn send(&mut self, packets: &[Packet]) -> Sent {
        let mut sent = Sent::default();
        let mut at = 0;
        while at < packets.len() {
            let rest = packets.len() - at;
            match self.sender.send(&self.socket, packets[at..].iter().map(Packet::bytes)) {
                Ok(n) => {
                    // The kernel answers no more than it was given, and at least one; were it 0, we would be here for ever.
                    let n = n.clamp(1, rest);
                    sent.packets += n as u64;
                    sent.bytes +=
                        packets[at..at + n].iter().map(|packet| (packet.len() - vnet::LEN) as u64).sum::<u64>();
                    at += n;
                }
                Err(error) => match self.judge(error, &packets[at]) {
                    Refusal::Again => {}
                    Refusal::One => {
                        sent.failed += 1;
                        at += 1;
                    }
                    Refusal::Full => {
                        sent.full += rest as u64;
                        break;
                    }
                    Refusal::All => {
                        sent.failed += rest as u64;
                        break;
                    }
                },
            }
        }
        sent
    }
}

impl TxQueue for PacketTx {
    fn transmit(&mut self, _now: Instant, pool: &mut Pool, packets: &mut Vec<Packet>) -> Sent {
        let mut sent = Sent::default();
        for packet in packets.iter_mut() {
            put_header(packet, pool);
        }
        for batch in packets.chunks(BATCH) {
            sent.add(self.send(batch));
        }
        pool.give_all(packets);
        sent
    }
}

/// Puts in front of a packet what is left to do for it.
#[inline]
fn put_header(packet: &mut Packet, pool: &mut Pool) {
    let header = vnet::encode(&packet.meta.offload, packet.bytes());
    if !packet.prepend(vnet::LEN) {
        let roomy = pool.copy(packet);
        pool.give(std::mem::replace(packet, roomy));
        // A new packet has headroom for more than this.
        packet.prepend(vnet::LEN);
    }
    packet.bytes_mut()[..vnet::LEN].copy_from_slice(&header);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_interface_is_named_before_anything_is_opened() {
        let spec = "no-such-if0".parse().unwrap();
        let error = open(&spec, PortNo(1)).err().unwrap().to_string();
        let expected =
            ["port no-such-if0: no interface has that name", "port no-such-if0: packet sockets need CAP_NET_RAW"];
        assert!(expected.contains(&error.as_str()), "{error}");
    }
}
