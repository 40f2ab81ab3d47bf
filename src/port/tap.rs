//! The `tap` port: a TAP interface of our own, whose other side is the host's network stack.
//!
//! | option | meaning |
//! | --- | --- |
//! | `queues=N` | receive queues, 1 by default; the kernel spreads flows over them |
//! | `up=no` | leaves the interface down |
//!
//! An interface of that name that was made to persist is attached to; else it is created, and goes when the port is closed.
//! Frames that the host left unfinished come and go whole, described by a [`vnet`] header. A character device knows no
//! batches: each frame costs a system call.

use std::cell::Cell;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::{Kind, OpenError, Port, PortInfo, PortSpec, RxQueue, Sent, TxQueue, vnet};
use crate::flow::PortNo;
use crate::packet::{BATCH, Packet, Pool};
use crate::sys::{netdev, tap};

/// What `type=tap` takes.
pub const OPTIONS: &[&str] = &["queues", "up"];

/// Frames that the kernel keeps for a queue: the interface's `txqueuelen` when it is created.
const RING: u64 = 1_000;

/// How often a batch is looked for, should malformed frames, which no kernel is known to make, keep it from becoming full.
const ROUNDS: usize = 4;

struct TapPort {
    info: PortInfo,
    queues: Vec<OwnedFd>,
    rx: Vec<Box<dyn RxQueue>>,
    /// Any socket of the namespace that the interface is in, to ask about it.
    socket: OwnedFd,
    mtu: Cell<usize>,
    udp_segments: bool,
}

pub fn open(spec: &PortSpec, number: PortNo) -> Result<Box<dyn Port>, OpenError> {
    let n = spec.number_in("queues", 1..=16, 1)? as usize;
    let up = spec.flag("up", true)?;
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .map_err(|error| spec.failed("socket", error))?;
    let (mut queues, mut udp_segments) = (Vec::new(), true);
    for _ in 0..n {
        let queue = tap::open(&spec.name, n > 1, vnet::LEN).map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::PERM) => spec.wrong("creating a TAP interface needs CAP_NET_ADMIN"),
            Some(Errno::NOENT) => spec.wrong("/dev/net/tun is missing: the kernel module tun is not loaded"),
            Some(Errno::BUSY) => spec.wrong("the TAP interface is in use by another program"),
            Some(Errno::INVAL) => {
                spec.wrong("an interface of that name exists and is no TAP interface, or has another number of queues")
            }
            _ => spec.failed("creating the TAP interface", error),
        })?;
        if queue.name != spec.name {
            return Err(spec.wrong(format!("the kernel would name the interface {}", queue.name)));
        }
        udp_segments &= queue.udp_segments;
        queues.push(queue.queue);
    }
    if up {
        netdev::set_up(&socket, &spec.name).map_err(|error| spec.failed("setting the interface up", error))?;
    }
    let mtu = netdev::mtu(&socket, &spec.name).map_err(|error| spec.failed("asking for the MTU", error))?;
    let mut rx: Vec<Box<dyn RxQueue>> = Vec::new();
    for queue in &queues {
        let queue = queue.try_clone().map_err(|error| spec.failed("duplicating a queue", error))?;
        rx.push(Box::new(TapRx { queue, number, slot: None, malformed: 0 }));
    }
    let info = PortInfo {
        name: spec.name.clone(),
        number,
        kind: Kind::Tap,
        ifindex: name_to_index(&socket, &spec.name).ok(),
        rx_queues: n,
        tx_checksum: true,
        tx_segment: true,
        ring: RING,
    };
    Ok(Box::new(TapPort { info, queues, rx, socket, mtu: Cell::new(mtu), udp_segments }))
}

impl Port for TapPort {
    fn info(&self) -> &PortInfo {
        &self.info
    }

    fn mtu(&self) -> usize {
        if let Ok(mtu) = netdev::mtu(&self.socket, &self.info.name) {
            self.mtu.set(mtu);
        }
        self.mtu.get()
    }

    fn take_rx(&mut self) -> Vec<Box<dyn RxQueue>> {
        std::mem::take(&mut self.rx)
    }

    /// Frames may be written to one queue by many at once, each whole.
    fn open_tx(&mut self) -> io::Result<Option<Box<dyn TxQueue>>> {
        Ok(Some(Box::new(TapTx { queue: self.queues[0].try_clone()? })))
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let segments = if self.udp_segments { "tcp, udp" } else { "tcp" };
        vec![("rx_segments", segments.to_owned())]
    }
}

struct TapRx {
    queue: OwnedFd,
    number: PortNo,
    /// Made by the first look, when there is a pool to take from.
    slot: Option<vnet::Slot>,
    malformed: u64,
}

impl RxQueue for TapRx {
    fn receive(&mut self, _now: Instant, pool: &mut Pool, into: &mut Vec<Packet>) -> io::Result<usize> {
        let slot = self.slot.get_or_insert_with(|| vnet::Slot::new(pool));
        for _ in 0..BATCH * ROUNDS {
            if into.len() == BATCH {
                break;
            }
            let len = match rustix::io::readv(&self.queue, &mut slot.buffers().map(IoSliceMut::new)) {
                Ok(len) => len,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => continue,
                // The interface was deleted.
                Err(Errno::BADFD) => return Err(io::Error::new(io::ErrorKind::NotFound, "the interface is gone")),
                Err(other) => return Err(other.into()),
            };
            match slot.take(len, pool) {
                Ok(mut packet) => {
                    packet.meta.in_port = self.number;
                    into.push(packet);
                }
                Err(vnet::Malformed) => self.malformed += 1,
            }
        }
        Ok(into.len())
    }

    fn readable(&self) -> Option<BorrowedFd<'_>> {
        Some(self.queue.as_fd())
    }

    fn missed(&mut self) -> u64 {
        self.malformed
    }
}

struct TapTx {
    queue: OwnedFd,
}

impl TxQueue for TapTx {
    fn transmit(&mut self, _now: Instant, pool: &mut Pool, packets: &mut Vec<Packet>) -> Sent {
        let mut sent = Sent::default();
        for packet in packets.drain(..) {
            let header = vnet::encode(&packet.meta.offload, packet.bytes());
            match rustix::io::writev(&self.queue, &[IoSlice::new(&header), IoSlice::new(packet.bytes())]) {
                Ok(_) => {
                    sent.packets += 1;
                    sent.bytes += packet.len() as u64;
                }
                Err(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM) => sent.full += 1,
                Err(_) => sent.failed += 1,
            }
            pool.give(packet);
        }
        sent
    }
}
