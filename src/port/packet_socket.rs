//! The `packet` port: AF_PACKET sockets on an existing interface (packet(7)).
//!
//! | option | meaning |
//! | --- | --- |
//! | `queues=N` | receive queues, 1 by default; the kernel spreads flows over them (`PACKET_FANOUT`) |
//! | `rcvbuf=KIB` | what may wait in each receive queue; 8,192 by default |
//! | `promisc=no` | takes only the frames that the interface takes anyway |
//! | `qdisc-bypass=no` | sends through the interface's queueing discipline |
//!
//! Interfaces keep their defaults: frames that a kernel left unfinished come and go whole, described by a [`vnet`] header, and
//! a VLAN tag that the kernel took off is put back. Each receive queue and each poller's transmit queue is a socket of
//! its own, so that nothing is shared.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::netdevice::{index_to_name_inlined, name_to_index};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socket_with, sockopt};

use super::{Kind, OpenError, Port, PortInfo, PortSpec, RxQueue, Sent, TxQueue, vnet};
use crate::flow::PortNo;
use crate::packet::{BATCH, Packet, Pool};
use crate::sys::mmsg::{Received, Receiver, Sender};
use crate::sys::netdev;
use crate::sys::packet::{self, ETH_P_ALL, Flag};

/// What `type=packet` takes.
pub const OPTIONS: &[&str] = &["queues", "rcvbuf", "promisc", "qdisc-bypass"];

/// What may wait to be sent, in bytes: some large frames.
const SEND_BUFFER: usize = 4 << 20;

/// The least memory that a waiting frame takes of the receive buffer, in bytes: a small one's `skb` and data.
const LEAST_FRAME: usize = 512;

/// How often a batch is looked for, should errors or malformed frames, which no kernel is known to make, keep it from becoming full.
const ROUNDS: usize = 4;

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
    let mut room = rcvbuf;
    for _ in 0..queues {
        let opened = rx_socket(ifindex, rcvbuf, promiscuous, queues > 1, &mut group);
        let socket = opened.map_err(|(what, error)| spec.failed(what, error))?;
        room = sockopt::socket_recv_buffer_size(&socket).unwrap_or(rcvbuf);
        rx.push(Box::new(PacketRx::new(socket, ifindex, number)));
    }
    if room < rcvbuf {
        log::warn!(
            "port {}: the receive buffer has {room} bytes, not {rcvbuf}: net.core.rmem_max and no CAP_NET_ADMIN",
            spec.name
        );
    }
    let info = PortInfo {
        name: spec.name.clone(),
        number,
        kind: Kind::Packet,
        ifindex: Some(ifindex),
        rx_queues: queues,
        tx_checksum: true,
        tx_segment: true,
        ring: (room / LEAST_FRAME) as u64,
    };
    Ok(Box::new(PacketPort { info, ifindex, rx, socket, mtu: Cell::new(mtu), rcvbuf: room, qdisc_bypass }))
}

/// A packet socket that receives nothing: it has no protocol yet.
fn new_socket() -> Result<OwnedFd, Errno> {
    socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
}

/// A socket that receives from the interface, and only from it: all is set before it is bound.
fn rx_socket(
    ifindex: u32,
    rcvbuf: usize,
    promiscuous: bool,
    shared: bool,
    group: &mut Option<u16>,
) -> Result<OwnedFd, (&'static str, io::Error)> {
    let socket = new_socket().map_err(|error| ("packet socket", error.into()))?;
    packet::set(&socket, Flag::VnetHeader, true).map_err(|error| ("PACKET_VNET_HDR", error))?;
    packet::set(&socket, Flag::AuxData, true).map_err(|error| ("PACKET_AUXDATA", error))?;
    packet::set(&socket, Flag::IgnoreOutgoing, true).map_err(|error| ("PACKET_IGNORE_OUTGOING", error))?;
    // The kernel doubles what it is told; without the privilege, it gives what it may.
    sockopt::set_socket_recv_buffer_size_force(&socket, rcvbuf / 2)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(&socket, rcvbuf / 2))
        .map_err(|error| ("SO_RCVBUF", error.into()))?;
    if promiscuous {
        packet::promiscuous(&socket, ifindex).map_err(|error| ("promiscuous mode", error))?;
    }
    packet::bind(&socket, ifindex, ETH_P_ALL).map_err(|error| ("binding to the interface", error))?;
    if shared {
        let first = group.is_none();
        *group = Some(packet::join_fanout(&socket, *group).map_err(|error| ("PACKET_FANOUT", error))?);
        if !first {
            // Until it joined, it was given what the others were given too.
            let mut byte = [0; 1];
            let bound = rcvbuf / LEAST_FRAME;
            let _ = (0..bound).try_for_each(|_| recv(&socket, &mut byte[..], RecvFlags::DONTWAIT).map(drop));
        }
    }
    Ok(socket)
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
        Ok(Some(Box::new(PacketTx {
            socket,
            sender: Sender::new(BATCH),
            headers: vec![[0; vnet::LEN]; BATCH].into(),
            qdisc_bypass: self.qdisc_bypass,
        })))
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let bypass = if self.qdisc_bypass { "yes" } else { "no" };
        vec![("rcvbuf", format!("{} KiB", self.rcvbuf >> 10)), ("qdisc-bypass", bypass.to_owned())]
    }
}

struct PacketRx {
    socket: OwnedFd,
    ifindex: u32,
    number: PortNo,
    receiver: Receiver,
    /// Filled by the first look, when there is a pool to take from.
    slots: Vec<vnet::Slot>,
    dropped: u64,
    malformed: u64,
}

impl PacketRx {
    fn new(socket: OwnedFd, ifindex: u32, number: PortNo) -> PacketRx {
        PacketRx {
            socket,
            ifindex,
            number,
            receiver: Receiver::new(BATCH),
            slots: Vec::with_capacity(BATCH),
            dropped: 0,
            malformed: 0,
        }
    }

    /// What an error of the socket means: `Ok` when it passes.
    fn judge(&mut self, error: io::Error) -> io::Result<()> {
        match Errno::from_io_error(&error) {
            Some(Errno::AGAIN | Errno::INTR | Errno::NOBUFS | Errno::NOMEM) => Ok(()),
            // A frame that this kernel's virtio-net header cannot describe, such as a UDP segment before Linux 6.2; it is lost.
            Some(Errno::INVAL) => {
                self.malformed += 1;
                Ok(())
            }
            // It went down, which passes, or it is gone, which does not.
            Some(Errno::NETDOWN) if index_to_name_inlined(&self.socket, self.ifindex).is_ok() => Ok(()),
            Some(Errno::NETDOWN | Errno::NODEV | Errno::NXIO) => {
                Err(io::Error::new(io::ErrorKind::NotFound, "the interface is gone"))
            }
            _ => Err(error),
        }
    }
}

impl RxQueue for PacketRx {
    fn receive(&mut self, _now: Instant, pool: &mut Pool, into: &mut Vec<Packet>) -> io::Result<()> {
        while self.slots.len() < BATCH {
            self.slots.push(vnet::Slot::new(pool));
        }
        for _ in 0..ROUNDS {
            let room = BATCH.saturating_sub(into.len());
            let buffers = self.slots[..room].iter_mut().map(vnet::Slot::buffers);
            let n = match self.receiver.receive(&self.socket, buffers) {
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    self.judge(error)?;
                    continue;
                }
            };
            for (i, slot) in self.slots[..n].iter_mut().enumerate() {
                let Received { len, truncated, vlan } = self.receiver.received(i);
                match slot.take(len, vlan, pool) {
                    Ok(mut packet) if !truncated => {
                        packet.meta.in_port = self.number;
                        into.push(packet);
                    }
                    Ok(packet) => {
                        self.malformed += 1;
                        pool.give(packet);
                    }
                    Err(vnet::Malformed) => self.malformed += 1,
                }
            }
            // Full, or the queue is empty. Otherwise a malformed frame left a gap, and fewer than a batch would say "empty".
            if n < room || into.len() >= BATCH {
                break;
            }
        }
        Ok(())
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
    headers: Box<[[u8; vnet::LEN]]>,
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

    /// Sends up to a batch.
    fn send(&mut self, packets: &[Packet]) -> Sent {
        let mut sent = Sent::default();
        for (header, packet) in self.headers.iter_mut().zip(packets) {
            *header = vnet::encode(&packet.meta.offload, packet.bytes());
        }
        let mut at = 0;
        while at < packets.len() {
            let rest = packets.len() - at;
            let messages =
                self.headers[at..].iter().zip(&packets[at..]).map(|(header, packet)| [&header[..], packet.bytes()]);
            match self.sender.send(&self.socket, messages) {
                Ok(n) => {
                    // The kernel answers no more than it was given, and at least one; were it 0, we would be here for ever.
                    let n = n.clamp(1, rest);
                    sent.packets += n as u64;
                    sent.bytes += packets[at..at + n].iter().map(|packet| packet.len() as u64).sum::<u64>();
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
        for batch in packets.chunks(BATCH) {
            sent.add(self.send(batch));
        }
        pool.give_all(packets);
        sent
    }
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
