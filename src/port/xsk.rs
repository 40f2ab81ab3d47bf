//! The `xsk` port: AF_XDP sockets on an existing interface (`Documentation/networking/af_xdp.rst` of the kernel), one a receive queue.
//!
//! | option | meaning |
//! | --- | --- |
//! | `queues=N` | receive queues, 1 to 64; by default all that the interface has, also when they become others. Frames of others are dropped |
//! | `xdp-mode=MODE` | `best-effort` (the default), `native-with-zerocopy`, `native` or `generic` |
//! | `ring=N` | frames that wait in each ring of a queue, a power of two from 64 to 16,384; 1,024 by default |
//! | `use-need-wakeup=no` | the kernel is called whether it wants to be or not |
//! | `send=WAY` | `ring`: through the socket; `batch`: as packets of the kernel's, many a call ([`Outbox`]); `auto`, the default: below |
//! | `busy-poll=USEC` | the kernel polls the device for so long when it is called, up to 1,000,000; 0, the default: interrupts wake it |
//! | `promisc=no` | takes only the frames that the interface takes anyway |
//! | `force=yes` | displaces the XDP program of somebody else |
//!
//! All `xsk` ports share their memory as far as it goes ([`Group`]), so that a frame goes out by another port in the chunk that it came in.
//! What comes from elsewhere is copied into a chunk, and a frame longer than a chunk is cut into several and gathered from them, which takes
//! Linux 6.6 and a driver that knows how.
//!
//! The other end must finish its checksums and segments itself, as on a wire: no word of what a kernel left undone comes with a frame. For veth that is
//! `ethtool -K PEER tx off gso off tso off`.
//!
//! With `send=auto`, frames leave in batches by a veth whose socket copies anyway, from Linux 6.3 on, where the MTU is no more than 3,378 bytes. They
//! pass, unlike those of a socket, what the kernel has at the port's interface on the way out: the queueing discipline, programs of tc and rules of
//! nftables for egress. And they are *redirected* to it, so that it shows them to no XDP program in generic mode at the other end
//! (`netif_receive_generic_xdp` in its net/core/dev.c). While there is one, frames leave through the ring; but it is looked for about once a second, and
//! until then misses them. Programs in the driver, which is what a veth is given unless somebody insists, see all frames.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::netdevice::{index_to_name_inlined, name_to_index};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::outbox::{self, Outbox};
use super::{Kind, OpenError, Port, PortInfo, PortSpec, RxQueue, Sent, TxQueue};
use crate::flow::PortNo;
use crate::offload::mark::Mark;
use crate::packet::{BATCH, MAX_FRAME, Packet, Pool};
use crate::sys::netdev;
use crate::sys::packet;
use crate::sys::umem::{CHUNK, Frame, Umem};
use crate::sys::xsk::{FRAME_AT, Group, METADATA, PIECE, Received, Receiver, Refused, Sender, Setup};
use crate::xdp::{AttachError, Hook, Mode, netlink};

/// Chunks of one memory: 64 MiB.
const CHUNKS: u32 = 16_384;
/// Of those, chunks that are for the pollers' pools, and for frames on their way.
const RESERVE: u32 = 4_096;

/// Receive queues that a port can serve.
const MOST_QUEUES: u32 = 64;

/// An Ethernet header and two VLAN tags, in bytes.
const ETHERNET: usize = 14 + 2 * 4;

/// How often a queue without frames is asked what became of its interface.
const CHECK: Duration = Duration::from_millis(10);

/// How long a queue is waited for whose last socket was just closed.
const PATIENCE: Duration = Duration::from_secs(2);

/// The memory of all ports, with how many chunks are promised to them.
static GROUPS: Mutex<Vec<(Arc<Group>, u32)>> = Mutex::new(Vec::new());

/// A port's share of a memory.
struct Share {
    group: Arc<Group>,
    chunks: u32,
}

impl Share {
    /// A share of `chunks`, for `queues` queues of the interface of this index, of the first memory that has so many left, or of a new one. `gone`: there is no interface
    /// of an index.
    fn new(chunks: u32, interface: u32, queues: u32, gone: impl Fn(u32) -> bool) -> io::Result<Share> {
        let mut groups = GROUPS.lock().unwrap_or_else(PoisonError::into_inner);
        Group::forget_interfaces(gone);
        let roomy = groups.iter_mut().find(|(group, promised)| {
            promised + chunks + RESERVE <= group.umem().chunks().saturating_sub(group.missing(interface, queues))
        });
        if let Some((group, promised)) = roomy {
            *promised += chunks;
            return Ok(Share { group: Arc::clone(group), chunks });
        }
        let group = Arc::new(Group::new(Umem::new(CHUNKS.max(chunks + RESERVE))?));
        groups.push((Arc::clone(&group), chunks));
        Ok(Share { group, chunks })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut groups = GROUPS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, promised)) = groups.iter_mut().find(|(group, _)| Arc::ptr_eq(group, &self.group)) {
            *promised -= self.chunks;
        }
        // The memory is kept for the next port: pollers have chunks of it in their pools.
    }
}

struct XskPort {
    info: PortInfo,
    ifindex: u32,
    rx: Vec<Box<dyn RxQueue>>,
    tx: Arc<Senders>,
    hook: Arc<Hook>,
    setup: Setup,
    zero_copy: bool,
    /// How frames are to leave, `None`: as is best.
    way: Option<Way>,
    /// They can leave in batches.
    can_batch: bool,
    /// They leave in batches now.
    batches: Arc<AtomicBool>,
    /// A socket of the interface's namespace, to ask about it.
    asking: OwnedFd,
    /// While it is open, the interface takes every frame. `None`: only those that it takes anyway.
    _takes_all: Option<OwnedFd>,
    mtu: Cell<usize>,
    was_attached: bool,
    /// Receive queues that the interface had when it was last looked at.
    there: u32,
    /// No number of queues was asked for.
    serves_all: bool,
    share: Share,
}

/// How frames leave.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Batch,
    Ring,
}

/// Sending sides that no poller has.
type Senders = Mutex<Vec<Sender>>;

/// What `xdp-mode=` says.
fn mode(spec: &PortSpec) -> Result<(Option<Mode>, Option<bool>), OpenError> {
    Ok(match spec.text("xdp-mode") {
        None | Some("best-effort" | "best") => (None, None),
        Some("native-with-zerocopy") => (Some(Mode::Native), Some(true)),
        Some("native") => (Some(Mode::Native), Some(false)),
        Some("generic") => (Some(Mode::Generic), Some(false)),
        Some(_) => {
            let expected = "best-effort, native-with-zerocopy, native or generic is needed";
            return Err(spec.refused("xdp-mode", expected.to_owned()));
        }
    })
}

/// What `send=` says.
fn way(spec: &PortSpec) -> Result<Option<Way>, OpenError> {
    match spec.text("send") {
        None | Some("auto") => Ok(None),
        Some("batch") => Ok(Some(Way::Batch)),
        Some("ring") => Ok(Some(Way::Ring)),
        Some(_) => Err(spec.refused("send", "auto, batch or ring is needed".to_owned())),
    }
}

pub fn open(spec: &PortSpec, number: PortNo) -> Result<Box<dyn Port>, OpenError> {
    let queues = spec.number_in("queues", 1..=MOST_QUEUES.into(), 0)? as u32;
    let ring = spec.number_in("ring", 64..=16_384, 1_024)? as u32;
    if !ring.is_power_of_two() {
        return Err(spec.refused("ring", "a power of two from 64 to 16384 is needed".to_owned()));
    }
    let busy_poll = Duration::from_micros(spec.number_in("busy-poll", 0..=1_000_000, 0)?);
    let need_wakeup = spec.flag("use-need-wakeup", true)?;
    let promiscuous = spec.flag("promisc", true)?;
    let force = spec.flag("force", false)?;
    let (wanted, zero_copy) = mode(spec)?;
    let way = way(spec)?;

    let asking = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
    let asking = asking.map_err(|error| spec.failed("a socket", error))?;
    let ifindex = name_to_index(&asking, &spec.name).map_err(|error| match error {
        Errno::NODEV => spec.wrong("no interface has that name"),
        error => spec.failed("looking for the interface", error),
    })?;
    let about = |error| spec.failed("asking about the interface", error);
    if !netdev::is_ethernet(&asking, &spec.name).map_err(about)? {
        return Err(spec.wrong("not an Ethernet interface"));
    }
    let mtu = netdev::mtu(&asking, &spec.name).map_err(about)?;
    // What does not tell has one.
    let there = netdev::rx_queues(&asking, &spec.name).unwrap_or(1).max(1);
    if queues > there {
        let expected = format!("the interface has {there} receive queues");
        return Err(spec.refused("queues", expected));
    }
    let serves_all = queues == 0;
    let queues = if serves_all { there.min(MOST_QUEUES) } else { queues };
    if queues < there {
        log::warn!(target: "port", "{}: frames of {} of its {there} receive queues are dropped", spec.name, there - queues);
    }

    let long = ETHERNET + mtu > PIECE;
    let hook = Hook::attach(ifindex, wanted, long, force).map_err(|error| match error {
        AttachError::Refused { mode, source } => {
            spec.failed(format!("attaching an XDP program in {mode} mode"), source)
        }
        error => spec.wrong(error.to_string()),
    })?;
    let hook = Arc::new(hook);
    let gone = |interface| matches!(index_to_name_inlined(&asking, interface), Err(Errno::NODEV | Errno::NXIO));
    let share = Share::new(queues * 2 * ring, ifindex, queues, gone)
        .map_err(|error| spec.failed("memory to share with the kernel", error))?;
    let mut setup = Setup { ring, zero_copy, need_wakeup, pieces: true, busy_poll };
    let mut rx: Vec<Box<dyn RxQueue>> = Vec::new();
    let mut tx = Vec::new();
    let mut is_zero_copy = true;
    for queue in 0..queues {
        let opened = open_queue(&share.group, ifindex, queue, &mut setup, long);
        let (mut receiver, sender) = opened.map_err(|error| told(spec, queue, &setup, error))?;
        receiver.refill(|| share.group.umem().take());
        let socket = Arc::clone(receiver.socket());
        is_zero_copy &= socket.is_zero_copy();
        hook.add_socket(queue, socket).map_err(|error| spec.failed("an AF_XDP socket for the program", error))?;
        rx.push(Box::new(XskRx::new(receiver, Arc::clone(share.group.umem()), Arc::clone(&hook), ifindex, number)));
        tx.push(sender);
    }
    let takes_all = promiscuous.then(|| take_all(ifindex)).transpose();
    let takes_all = takes_all.map_err(|error| spec.failed("promiscuous mode", error))?;
    // In the order of the queues they are taken.
    tx.reverse();
    let info = PortInfo {
        name: spec.name.clone(),
        number,
        kind: Kind::Xsk,
        ifindex: Some(ifindex),
        rx_queues: queues as usize,
        tx_checksum: false,
        tx_segment: false,
        ring: ring.into(),
    };
    let (mtu, zero_copy, tx) = (Cell::new(mtu), is_zero_copy, Arc::new(Mutex::new(tx)));
    let was_attached = true;
    let may_batch = match way {
        Some(way) => way == Way::Batch,
        None => is_linux(6, 3) && !matches!(netlink::peer_is_generic(ifindex), Ok(None)),
    };
    let can_batch = may_batch && !zero_copy;
    let port = XskPort {
        info,
        ifindex,
        rx,
        tx,
        hook,
        setup,
        zero_copy,
        way,
        can_batch,
        batches: Arc::default(),
        asking,
        _takes_all: takes_all,
        mtu,
        was_attached,
        there,
        serves_all,
        share,
    };
    port.choose_way();
    Ok(Box::new(port))
}

/// Has the interface of this index take every frame, whoever it is for, for as long as the answer is open.
fn take_all(ifindex: u32) -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    packet::promiscuous(&socket, ifindex)?;
    Ok(socket)
}

/// Opens one queue's socket; without frames in several pieces where the kernel or the driver knows none and none are `needed`.
fn open_queue(
    group: &Group,
    ifindex: u32,
    queue: u32,
    setup: &mut Setup,
    needed: bool,
) -> io::Result<(Receiver, Sender)> {
    let since = Instant::now();
    loop {
        match group.open(ifindex, queue, setup) {
            // The kernel closes sockets a moment after we do.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && since.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(error)
                if setup.pieces && !needed && matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) =>
            {
                setup.pieces = false;
            }
            other => return other,
        }
    }
}

/// Why a queue has no socket, and what to do about it.
fn told(spec: &PortSpec, queue: u32, setup: &Setup, error: io::Error) -> OpenError {
    let advice = match error.raw_os_error() {
        Some(libc::EPERM) => "it needs CAP_NET_RAW",
        Some(libc::ENOBUFS) => "it needs CAP_IPC_LOCK or a higher RLIMIT_MEMLOCK",
        Some(libc::EBUSY) => "the queue has a socket",
        Some(libc::EOPNOTSUPP) if setup.zero_copy == Some(true) => "the driver has no zero-copy",
        Some(libc::EINVAL) if setup.pieces => "frames longer than a chunk need Linux 6.6; a smaller MTU needs less",
        _ => return spec.failed(format!("an AF_XDP socket for queue {queue}"), error),
    };
    spec.wrong(format!("an AF_XDP socket for queue {queue}: {advice} ({error})"))
}

impl XskPort {
    /// The interface's name now: it may have been given another.
    fn name(&self) -> Option<String> {
        index_to_name_inlined(&self.asking, self.ifindex).ok().map(|name| name.as_str().to_owned())
    }

    /// Finds out how frames should leave from now on.
    fn choose_way(&self) {
        // All in one way, or one might overtake another.
        let fit = || ETHERNET + self.mtu() <= outbox::LONGEST;
        let seen = || netlink::peer_is_generic(self.ifindex).is_ok_and(|is| is == Some(false));
        let batches = self.can_batch && fit() && (self.way == Some(Way::Batch) || seen());
        self.batches.store(batches, Ordering::Relaxed);
    }
}

/// Whether the kernel is of this version, or a newer one.
fn is_linux(major: u32, minor: u32) -> bool {
    let system = rustix::system::uname();
    let release = system.release().to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (major, minor)
}

impl Port for XskPort {
    fn info(&self) -> &PortInfo {
        &self.info
    }

    fn mtu(&self) -> usize {
        if let Some(mtu) = self.name().and_then(|name| netdev::mtu(&self.asking, &name).ok()) {
            self.mtu.set(mtu);
        }
        self.mtu.get()
    }

    fn take_rx(&mut self) -> Vec<Box<dyn RxQueue>> {
        std::mem::take(&mut self.rx)
    }

    fn open_tx(&mut self) -> io::Result<Option<Box<dyn TxQueue>>> {
        let Some(sender) = self.tx.lock().unwrap_or_else(PoisonError::into_inner).pop() else { return Ok(None) };
        let (umem, home) = (Arc::clone(self.share.group.umem()), Arc::clone(&self.tx));
        let queue = sender.queue();
        let ring = RingTx { sender: Some(sender), umem, pieces: self.setup.pieces, home };
        if self.can_batch {
            match Outbox::open(self.ifindex, queue) {
                Ok(outbox) => {
                    return Ok(Some(Box::new(BatchTx {
                        outbox,
                        batches: Arc::clone(&self.batches),
                        ring,
                        ring_in_use: false,
                    })));
                }
                Err(error) => {
                    log::warn!(target: "port", "{}: frames leave through the ring: {error}", self.info.name);
                    self.can_batch = false;
                    self.choose_way();
                }
            }
        }
        Ok(Some(Box::new(ring)))
    }

    fn open_wire(&mut self) -> io::Result<Option<Box<dyn TxQueue>>> {
        // A device that forwards to it has the program do so.
        Ok(None)
    }

    fn hook(&self) -> Option<Arc<Hook>> {
        Some(Arc::clone(&self.hook))
    }

    fn look_after(&mut self) -> bool {
        self.choose_way();
        let there = self.name().and_then(|name| netdev::rx_queues(&self.asking, &name).ok());
        if let Some(there) = there.filter(|there| *there != self.there) {
            self.there = there;
            let (name, ours) = (&self.info.name, self.info.rx_queues as u32);
            if self.serves_all && there.min(MOST_QUEUES) != ours {
                log::warn!(target: "port", "{name}: its receive queues have become {there}; it is opened anew");
                return false;
            }
            log::warn!(target: "port", "{name}: its receive queues have become {there}, of which it serves {ours}");
        }
        if self.hook.is_attached() {
            self.was_attached = true;
            return true;
        }
        let told = std::mem::replace(&mut self.was_attached, false);
        match self.hook.attach_again() {
            Ok(()) => {
                log::warn!(target: "port", "{}: somebody detached its XDP program; it is attached again", self.info.name)
            }
            Err(_) if !told => {}
            Err(error) => log::error!(target: "port", "{}: somebody detached its XDP program: {error}", self.info.name),
        }
        true
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
        let umem = self.share.group.umem();
        let mode = match (self.hook.is_attached(), self.zero_copy) {
            (false, _) => "detached".to_owned(),
            (true, true) => format!("{}-with-zerocopy", self.hook.mode()),
            (true, false) => self.hook.mode().to_string(),
        };
        vec![
            ("xdp-mode", mode),
            ("use-need-wakeup", yes(self.setup.need_wakeup)),
            ("busy-poll", format!("{} us", self.setup.busy_poll.as_micros())),
            ("send", if self.batches.load(Ordering::Relaxed) { "batch" } else { "ring" }.to_owned()),
            ("ring", self.setup.ring.to_string()),
            ("multi-buffer", yes(self.setup.pieces)),
            (
                "umem",
                format!(
                    "{} KiB, {} chunks free, {} lost",
                    (umem.chunks() as usize * CHUNK) >> 10,
                    umem.free(),
                    umem.lost()
                ),
            ),
        ]
    }
}

struct XskRx {
    receiver: Receiver,
    umem: Arc<Umem>,
    hook: Arc<Hook>,
    ifindex: u32,
    number: PortNo,
    /// A frame of which not all pieces have come. `None` inside: it is too long, or no room was left, and is dropped.
    partial: Option<Option<Packet>>,
    /// When to ask about the interface next.
    check: Option<Instant>,
    too_long: u64,
}

impl XskRx {
    fn new(receiver: Receiver, umem: Arc<Umem>, hook: Arc<Hook>, ifindex: u32, number: PortNo) -> XskRx {
        XskRx { receiver, umem, hook, ifindex, number, partial: None, check: None, too_long: 0 }
    }

    /// Asks, not too often, what became of the interface: nothing else tells of it.
    #[cold]
    fn look_after(&mut self, now: Instant) -> io::Result<()> {
        self.check = Some(now + CHECK);
        let gone = || io::Error::new(io::ErrorKind::NotFound, format!("interface {} is gone", self.ifindex));
        // Told once when it is unregistered; an interface that is merely down says nothing.
        self.receiver.socket().error().map_err(|_| gone())
    }
}

/// The mark in front of a frame, if it is of this generation.
#[inline]
fn mark_of(piece: &Received, generation: u32) -> Option<Mark> {
    if generation == 0 || piece.at != FRAME_AT {
        return None;
    }
    let (mark, of) = piece.frame.bytes()[METADATA].split_first_chunk::<4>()?;
    if of != generation.to_ne_bytes() {
        return None;
    }
    Mark::new(u32::from_ne_bytes(*mark))
}

/// Adds a piece to a frame in the making; `None`: it is longer than any frame.
#[cold]
fn gather(mut packet: Packet, piece: &Received) -> Option<Packet> {
    let len = packet.len();
    if len + piece.len > MAX_FRAME {
        return None;
    }
    packet.set_len(len + piece.len);
    packet.bytes_mut()[len..].copy_from_slice(&piece.frame.bytes()[piece.at..piece.at + piece.len]);
    Some(packet)
}

impl RxQueue for XskRx {
    fn receive(&mut self, now: Instant, pool: &mut Pool, into: &mut Vec<Packet>) -> io::Result<usize> {
        let (generation, number) = (self.hook.generation(), self.number);
        let (partial, too_long) = (&mut self.partial, &mut self.too_long);
        let taken = self.receiver.receive(BATCH, |piece| {
            if !piece.more && partial.is_none() {
                let mark = mark_of(&piece, generation);
                let mut packet = Packet::received(piece.frame, piece.at, piece.len);
                (packet.meta.in_port, packet.meta.mark) = (number, mark);
                into.push(packet);
                return;
            }
            let so_far = partial.take().unwrap_or_else(|| {
                let mut packet = pool.take_jumbo();
                (packet.meta.in_port, packet.meta.mark) = (number, mark_of(&piece, generation));
                Some(packet)
            });
            let so_far = so_far.and_then(|packet| gather(packet, &piece));
            match (piece.more, so_far) {
                (true, so_far) => *partial = Some(so_far),
                (false, Some(packet)) => into.push(packet),
                (false, None) => *too_long += 1,
            }
            pool.give_frame(piece.frame);
        });
        let umem = &self.umem;
        self.receiver.refill(|| pool.take_frame(umem));
        self.receiver.kick();
        if taken == 0 && self.check.is_none_or(|at| now >= at) {
            self.look_after(now)?;
        }
        Ok(taken)
    }

    fn readable(&self) -> Option<BorrowedFd<'_>> {
        Some(self.receiver.socket().as_fd())
    }

    fn missed(&mut self) -> u64 {
        let kernel = self.receiver.socket().statistics().map_or(0, |counts| {
            // Frames that found no chunk to lie in, and those that found no place in the ring.
            counts.rx_dropped + counts.rx_ring_full.unwrap_or(0)
        });
        kernel + self.receiver.strange() + self.too_long
    }
}

/// Sends in batches while it may.
struct BatchTx {
    outbox: Outbox,
    batches: Arc<AtomicBool>,
    ring: RingTx,
    /// Something may be in the ring.
    ring_in_use: bool,
}

struct RingTx {
    /// `None` only while it is dropped.
    sender: Option<Sender>,
    umem: Arc<Umem>,
    /// Frames may have several.
    pieces: bool,
    /// Where another poller may take it.
    home: Arc<Senders>,
}

impl Drop for RingTx {
    fn drop(&mut self) {
        let mut home = self.home.lock().unwrap_or_else(PoisonError::into_inner);
        home.extend(self.sender.take());
    }
}

/// Lays one packet in the ring from place `at` on. Answers with how many places it took; 0: it cannot be sent.
#[inline]
fn put(sender: &mut Sender, at: usize, packet: Packet, umem: &Arc<Umem>, pieces: bool, pool: &mut Pool) -> usize {
    match packet.into_frame(umem) {
        Ok((frame, start, len)) => usize::from(sender.put(at, frame, start, len, false).is_ok()),
        Err(packet) => {
            let placed = put_copy(sender, at, &packet, umem, pieces, pool);
            pool.give(packet);
            placed
        }
    }
}

/// The same for a packet in other memory, cut into pieces where it may be.
fn put_copy(
    sender: &mut Sender,
    at: usize,
    packet: &Packet,
    umem: &Arc<Umem>,
    may_cut: bool,
    pool: &mut Pool,
) -> usize {
    let mut frames: [Option<Frame>; MOST_PIECES] = std::array::from_fn(|_| None);
    let pieces = pieces_of(packet);
    if pieces > 1 && !may_cut || pieces > MOST_PIECES {
        return 0;
    }
    // All or none.
    for frame in &mut frames[..pieces] {
        *frame = pool.take_frame(umem);
    }
    if frames[..pieces].iter().any(Option::is_none) {
        frames.into_iter().flatten().for_each(|frame| pool.give_frame(frame));
        return 0;
    }
    let mut left = packet.bytes();
    for (i, mut frame) in frames.into_iter().flatten().enumerate() {
        let (piece, behind) = left.split_at(left.len().min(PIECE));
        frame.bytes_mut()[FRAME_AT..FRAME_AT + piece.len()].copy_from_slice(piece);
        // The memory is its own, and the piece inside.
        let _ = sender.put(at + i, frame, FRAME_AT, piece.len(), !behind.is_empty());
        left = behind;
    }
    pieces
}

/// The most pieces that the kernel takes for one frame (`MAX_SKB_FRAGS`).
const MOST_PIECES: usize = 17;

fn pieces_of(packet: &Packet) -> usize {
    packet.len().div_ceil(PIECE).max(1)
}

impl BatchTx {
    fn by_the_ring(&mut self, now: Instant, pool: &mut Pool, packets: &mut Vec<Packet>) -> Sent {
        self.ring_in_use = true;
        self.ring.transmit(now, pool, packets)
    }

    /// Whether frames wait in the ring yet: they leave first.
    #[cold]
    fn await_ring(&mut self, pool: &mut Pool) -> bool {
        let Some(sender) = &mut self.ring.sender else { return false };
        sender.complete(|frame| pool.give_frame(frame));
        self.ring_in_use = !sender.is_idle();
        !sender.is_emptied()
    }
}

impl TxQueue for BatchTx {
    fn transmit(&mut self, now: Instant, pool: &mut Pool, packets: &mut Vec<Packet>) -> Sent {
        if !self.batches.load(Ordering::Relaxed) || self.ring_in_use && self.await_ring(pool) {
            return self.by_the_ring(now, pool, packets);
        }
        let mut sent = Sent::default();
        // A frame that is too long for a batch, after the MTU has changed, takes all behind it along.
        let fit = packets.iter().position(|packet| packet.len() > outbox::LONGEST).unwrap_or(packets.len());
        for packet in packets.drain(..fit) {
            if !self.outbox.has_room_for(packet.bytes()) {
                sent.add(self.outbox.send());
            }
            sent.failed += u64::from(!self.outbox.put(packet.bytes()));
            pool.give(packet);
        }
        sent.add(self.outbox.send());
        if !packets.is_empty() {
            sent.add(self.by_the_ring(now, pool, packets));
        }
        sent
    }
}

impl TxQueue for RingTx {
    fn transmit(&mut self, _now: Instant, pool: &mut Pool, packets: &mut Vec<Packet>) -> Sent {
        let mut sent = Sent::default();
        let Some(sender) = &mut self.sender else { return sent };
        sender.complete(|frame| pool.give_frame(frame));
        let mut placed = 0;
        for packet in packets.drain(..) {
            let (len, needed) = (packet.len() as u64, pieces_of(&packet));
            if sender.room(placed + needed) < placed + needed {
                sent.full += 1;
                pool.give(packet);
                continue;
            }
            match put(sender, placed, packet, &self.umem, self.pieces, pool) {
                0 => sent.failed += 1,
                n => {
                    placed += n;
                    sent.packets += 1;
                    sent.bytes += len;
                }
            }
        }
        if let Err(Refused::Down) = sender.send(placed) {
            // They wait in the ring, for an interface that is down.
            sent = Sent { failed: sent.failed + sent.packets, full: sent.full, ..Sent::default() };
        }
        sent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_is_said_before_anything_is_opened() {
        let error = |text: &str| open(&text.parse().unwrap(), PortNo(1)).err().unwrap().to_string();
        assert_eq!(error("no-such-if0,type=xsk"), "port no-such-if0: no interface has that name");
        assert_eq!(
            error("lo,type=afxdp,ring=100"),
            "port lo: option ring=100: a power of two from 64 to 16384 is needed"
        );
        assert_eq!(
            error("lo,type=xsk,xdp-mode=fast"),
            "port lo: option xdp-mode=fast: best-effort, native-with-zerocopy, native or generic is needed"
        );
    }
}
