//! AF_XDP sockets and their rings (`Documentation/networking/af_xdp.rst` of the kernel).
//!
//! ```text
//!            Receiver, one thread's                          Sender, one thread's
//!   free ─► fill ring ─► kernel ─► receive ring ─►     ─► send ring ─► kernel ─► completion ring ─► free
//! ```
//!
//! Each ring has one producer and one consumer, of which the kernel is one. A ring is seen through a copy of the other side's index that is
//! refreshed when it seems full or empty, and what was done is told once a batch.
//!
//! # Thread-safety
//! A [`Receiver`] and a [`Sender`] have one owner each. A [`Socket`] is shared, and closed with its last owner.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use libc::{c_int, c_void, socklen_t};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::net::xdp::{
    SocketAddrXdp, SocketAddrXdpFlags, SocketAddrXdpWithSharedUmem, XDP_PGOFF_RX_RING, XDP_PGOFF_TX_RING,
    XDP_UMEM_PGOFF_COMPLETION_RING, XDP_UMEM_PGOFF_FILL_RING, XdpDesc, XdpDescOptions, XdpOptionsFlags, XdpRingFlags,
    XdpRingOffset, XdpStatistics, XdpUmemReg, XdpUmemRegFlags,
};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with, sockopt,
};

use super::netdev::checked;
use super::umem::{CHUNK, Frame, Lent, Umem};

/// Where a received frame begins in its chunk: the kernel keeps that much for programs (`XDP_PACKET_HEADROOM`).
pub const FRAME_AT: usize = 256;

/// The bytes in front of a received frame in which a program may leave a word for us.
pub const METADATA: std::ops::Range<usize> = FRAME_AT - 8..FRAME_AT;

/// The longest piece of a frame that one chunk holds, in bytes.
pub const PIECE: usize = CHUNK - FRAME_AT;

/// The most calls that push out what waits to be sent; the kernel sends 32 frames or more with each.
const KICKS: usize = 64;

/// What is asked of a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Setup {
    /// Places in each of the four rings, a power of two.
    pub ring: u32,
    /// `Some(true)`: frames are not copied; `Some(false)`: they are; `None`: as the driver can.
    pub zero_copy: Option<bool>,
    /// The kernel says when it wants to be called.
    pub need_wakeup: bool,
    /// Frames may have several pieces.
    pub pieces: bool,
    /// How long the kernel polls the device when it is called; zero: interrupts wake it.
    pub busy_poll: Duration,
}

impl Setup {
    /// Whether sockets of both kinds can be of one registration of the memory, of which the kernel keeps these.
    fn shares_with(&self, other: &Setup) -> bool {
        let kept = |setup: &Setup| (setup.zero_copy, setup.need_wakeup, setup.pieces);
        kept(self) == kept(other)
    }
}

/// Memory, and the sockets that use it. It is registered with the kernel once for all that share a setup, and chunks of it are good for all.
///
/// # Thread-safety
/// Shared; opening a socket takes a lock.
pub struct Group {
    umem: Arc<Umem>,
    sockets: Mutex<Vec<(Setup, Weak<Socket>)>>,
}

/// Chunks of any memory that the kernel may yet use though their socket is closed: on their way out, or where a device writes by itself.
struct Parking(Mutex<Vec<Parked>>);

/// Of the process, as interfaces are, in the one network namespace that it has its ports in.
static PARKING: Parking = Parking(Mutex::new(Vec::new()));

struct Parked {
    interface: u32,
    queue: u32,
    lent: Lent,
}

impl Parking {
    fn places(&self) -> MutexGuard<'_, Vec<Parked>> {
        // Each change is one call, so whoever panicked left a list.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kernel has let go of what was parked for the queues that are `over`.
    fn release(&self, over: impl Fn(u32, u32) -> bool) {
        let released: Vec<_> = self.places().extract_if(.., |parked| over(parked.interface, parked.queue)).collect();
        released.into_iter().for_each(|parked| parked.lent.come_home());
    }
}

impl Group {
    pub fn new(umem: Arc<Umem>) -> Group {
        Group { umem, sockets: Mutex::default() }
    }

    /// Chunks that no socket has and that nobody can have now, but for those that come back when the first `queues` queues of the interface of
    /// this index are opened.
    pub fn missing(&self, interface: u32, queues: u32) -> u32 {
        let comes_back = |parked: &Parked| parked.interface == interface && parked.queue < queues;
        let here = |parked: &&Parked| !comes_back(parked) && std::ptr::eq(parked.lent.umem(), &*self.umem);
        self.umem.lost() + PARKING.places().iter().filter(here).map(|parked| parked.lent.count()).sum::<u32>()
    }

    /// Takes back what sockets of interfaces left that are `gone`: with an interface goes all that is under way there.
    pub fn forget_interfaces(gone: impl Fn(u32) -> bool) {
        PARKING.release(|interface, _| gone(interface));
    }

    pub fn umem(&self) -> &Arc<Umem> {
        &self.umem
    }

    /// Opens a socket for a queue of the interface of this index.
    ///
    /// # Errors
    /// `EBUSY`: the queue has a socket, or had one until a moment ago. `EOPNOTSUPP`, `EINVAL`: not like that. `ENOBUFS`: more memory than may be locked.
    pub fn open(&self, interface: u32, queue: u32, setup: &Setup) -> io::Result<(Receiver, Sender)> {
        let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        sockets.retain(|(_, socket)| socket.strong_count() > 0);
        let opening = Opening { interface, queue, setup };
        let (rings, fd) = opening.bind(&self.umem, &sockets)?;
        // A queue is busy until the last frame of its former socket has gone, and the device writes nowhere any more (`xp_clear_dev` in the
        // kernel's net/xdp/xsk_buff_pool.c comes after both).
        PARKING.release(|of, at| (of, at) == (interface, queue));
        let home = Home { interface, queue };
        let socket = Arc::new(Socket { fd, left: Mutex::default(), home });
        // In front: the next shares with one that is known to be bound.
        sockets.insert(0, (*setup, Arc::downgrade(&socket)));
        let Rings { fill, receive, send, completion } = rings;
        let receiver = Receiver {
            fill,
            ring: receive,
            lent: Some(Lent::new(&self.umem)),
            socket: Arc::clone(&socket),
            polls: !setup.busy_poll.is_zero(),
            strange: 0,
        };
        let lent = Some(Lent::new(&self.umem));
        let sender = Sender { ring: send, completion, lent, socket };
        Ok((receiver, sender))
    }
}

struct Opening<'a> {
    interface: u32,
    queue: u32,
    setup: &'a Setup,
}

struct Rings {
    fill: Ring<u64>,
    receive: Ring<XdpDesc>,
    send: Ring<XdpDesc>,
    completion: Ring<u64>,
}

impl Opening<'_> {
    /// Binds with the registration of one of `sockets` where that costs nothing, else with one of its own.
    fn bind(&self, umem: &Umem, sockets: &[(Setup, Weak<Socket>)]) -> io::Result<(Rings, OwnedFd)> {
        let alike = sockets.iter().filter(|(of, _)| of.shares_with(self.setup));
        let Some(first) = alike.filter_map(|(_, socket)| socket.upgrade()).next() else { return self.bind_first(umem) };
        let is = |error: &io::Error, number| error.raw_os_error() == Some(number);
        // Who shares gets what the first has, zero-copy or not, though its own interface may do better, or not do so.
        if self.setup.zero_copy.is_none() && first.home.interface != self.interface && !first.is_zero_copy() {
            return match self.bind_first(umem) {
                Err(error) if is(&error, libc::ENOBUFS) => self.bind_shared(&first),
                other => other,
            };
        }
        match self.bind_shared(&first) {
            // Its interface is gone, so it shares with nobody; or it has zero-copy, which this one has not.
            Err(error) if is(&error, libc::EBADF) || is(&error, libc::EOPNOTSUPP) => self.bind_first(umem),
            other => other,
        }
    }

    fn bind_first(&self, umem: &Umem) -> io::Result<(Rings, OwnedFd)> {
        let socket = self.socket()?;
        let (addr, len) = umem.area();
        let flags = XdpUmemRegFlags::empty();
        let register = XdpUmemReg { addr, len, chunk_size: CHUNK as u32, headroom: 0, flags, tx_metadata_len: 0 };
        sockopt::set_xdp_umem_reg(&socket, register)?;
        let rings = self.rings(&socket)?;
        let mut flags = SocketAddrXdpFlags::empty();
        flags.set(SocketAddrXdpFlags::XDP_USE_NEED_WAKEUP, self.setup.need_wakeup);
        flags.set(SocketAddrXdpFlags::XDP_USE_SG, self.setup.pieces);
        match self.setup.zero_copy {
            Some(true) => flags |= SocketAddrXdpFlags::XDP_ZEROCOPY,
            Some(false) => flags |= SocketAddrXdpFlags::XDP_COPY,
            None => {}
        }
        bind(&socket, &SocketAddrXdp::new(flags, self.interface, self.queue))?;
        Ok((rings, socket))
    }

    /// Binds with the memory, and so with the flags, of `first`.
    fn bind_shared(&self, first: &Socket) -> io::Result<(Rings, OwnedFd)> {
        let socket = self.socket()?;
        let rings = self.rings(&socket)?;
        let addr = SocketAddrXdp::new(SocketAddrXdpFlags::XDP_SHARED_UMEM, self.interface, self.queue);
        bind(&socket, &SocketAddrXdpWithSharedUmem { addr, shared_umem_fd: first.fd.as_fd() })?;
        Ok((rings, socket))
    }

    fn socket(&self) -> io::Result<OwnedFd> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::XDP, SocketType::RAW, flags, None)?;
        // Where frames are copied, those on their way count for this. Without the privilege, the kernel gives what it may.
        let bytes = self.setup.ring as usize * CHUNK;
        sockopt::set_socket_send_buffer_size_force(&socket, bytes)
            .or_else(|_| sockopt::set_socket_send_buffer_size(&socket, bytes))?;
        Ok(socket)
    }

    fn rings(&self, socket: &OwnedFd) -> io::Result<Rings> {
        let ring = self.setup.ring;
        sockopt::set_xdp_umem_fill_ring_size(socket, ring)?;
        sockopt::set_xdp_umem_completion_ring_size(socket, ring)?;
        sockopt::set_xdp_rx_ring_size(socket, ring)?;
        sockopt::set_xdp_tx_ring_size(socket, ring)?;
        if !self.setup.busy_poll.is_zero() {
            let micros = self.setup.busy_poll.as_micros().min(i32::MAX as u128) as c_int;
            set_option(socket, libc::SO_PREFER_BUSY_POLL, 1)?;
            set_option(socket, libc::SO_BUSY_POLL, micros)?;
            set_option(socket, libc::SO_BUSY_POLL_BUDGET, 64)?;
        }
        let at = sockopt::xdp_mmap_offsets(socket)?;
        Ok(Rings {
            fill: Ring::map(socket, &at.fr, XDP_UMEM_PGOFF_FILL_RING, ring, Side::Producer)?,
            completion: Ring::map(socket, &at.cr, XDP_UMEM_PGOFF_COMPLETION_RING, ring, Side::Consumer)?,
            receive: Ring::map(socket, &at.rx, XDP_PGOFF_RX_RING, ring, Side::Consumer)?,
            send: Ring::map(socket, &at.tx, XDP_PGOFF_TX_RING, ring, Side::Producer)?,
        })
    }
}

/// An option of the socket's own level, a number.
fn set_option(socket: &OwnedFd, option: c_int, value: c_int) -> io::Result<()> {
    let (pointer, len) = ((&raw const value).cast::<c_void>(), size_of::<c_int>() as socklen_t);
    // SAFETY: the pointer is to a number of the length given, which lives during the call and is only read.
    checked(unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, pointer, len) }).map(drop)
}

/// A bound socket.
pub struct Socket {
    /// Closed before what is below is dropped.
    fd: OwnedFd,
    /// What its sides had lent to the kernel.
    left: Mutex<Vec<Left>>,
    home: Home,
}

/// Where a socket's chunks wait.
#[derive(Clone, Copy)]
struct Home {
    interface: u32,
    queue: u32,
}

/// Chunks of a socket that has been closed when this is dropped.
enum Left {
    /// The kernel copied into them, and is waited for when the socket is closed.
    Copied(Option<Lent>),
    /// They may be in use for a while.
    InUse(Option<Lent>, Home),
}

impl Drop for Left {
    fn drop(&mut self) {
        match self {
            Left::Copied(lent) => lent.take().into_iter().for_each(Lent::come_home),
            Left::InUse(lent, Home { interface, queue }) => {
                let parked = lent.take().filter(|lent| lent.count() > 0);
                PARKING.places().extend(parked.map(|lent| Parked { interface: *interface, queue: *queue, lent }));
            }
        }
    }
}

impl Socket {
    pub fn statistics(&self) -> io::Result<XdpStatistics> {
        Ok(sockopt::xdp_statistics(&self.fd)?)
    }

    /// Whether the device reads and writes the memory itself.
    pub fn is_zero_copy(&self) -> bool {
        sockopt::xdp_options(&self.fd).is_ok_and(|flags| flags.contains(XdpOptionsFlags::XDP_OPTIONS_ZEROCOPY))
    }

    fn leave(&self, left: Left) {
        self.left.lock().unwrap_or_else(PoisonError::into_inner).push(left);
    }

    /// What has gone wrong since it was last asked.
    ///
    /// # Errors
    /// `ENETDOWN`: the interface is gone.
    pub fn error(&self) -> io::Result<()> {
        Ok(sockopt::socket_error(&self.fd)??)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A received piece of a frame.
pub struct Received {
    pub frame: Frame,
    /// Where the piece begins in its chunk, and how long it is; inside the chunk.
    pub at: usize,
    pub len: usize,
    /// The next piece goes on with this one.
    pub more: bool,
}

/// The receiving side of a socket.
pub struct Receiver {
    fill: Ring<u64>,
    ring: Ring<XdpDesc>,
    /// `None` only while it is dropped.
    lent: Option<Lent>,
    socket: Arc<Socket>,
    /// The kernel polls the device when it is called, and at no other time.
    polls: bool,
    /// Descriptors that make no sense.
    strange: u64,
}

impl Receiver {
    pub fn socket(&self) -> &Arc<Socket> {
        &self.socket
    }

    /// Descriptors so far that named no chunk that was lent. No kernel is known to make them.
    pub fn strange(&self) -> u64 {
        self.strange
    }

    /// Lends the kernel frames to receive into, until the ring is full or `frame` has none. What was in front of a frame that was there before is
    /// wiped out.
    pub fn refill(&mut self, mut frame: impl FnMut() -> Option<Frame>) {
        let Some(lent) = &mut self.lent else { return };
        let mut filled = 0;
        while self.fill.has_room(filled) {
            let Some(mut next) = frame() else { break };
            next.bytes_mut()[METADATA].fill(0);
            match lent.lend(next) {
                Ok(address) => self.fill.put(filled, address),
                // Of other memory: not what was asked for.
                Err(_) => continue,
            }
            filled += 1;
        }
        self.fill.tell(filled);
    }

    /// Takes up to `most` pieces in order of arrival. Answers with how many were there.
    #[inline]
    pub fn receive(&mut self, most: usize, mut each: impl FnMut(Received)) -> usize {
        let Some(lent) = &mut self.lent else { return 0 };
        let there = self.ring.waiting(most as u32);
        // Another processor has just written them: fetched together, they are waited for once.
        for i in 0..there {
            lent.umem().prefetch(self.ring.get(i).addr);
        }
        for i in 0..there {
            let desc: XdpDesc = self.ring.get(i);
            let Some(frame) = lent.reclaim(desc.addr) else {
                self.strange += 1;
                continue;
            };
            let (at, len) = ((desc.addr % CHUNK as u64) as usize, desc.len as usize);
            if at + len > CHUNK {
                self.strange += 1;
                continue;
            }
            each(Received { frame, at, len, more: desc.options.contains(XdpDescOptions::XDP_PKT_CONTD) });
        }
        self.ring.tell(there);
        there as usize
    }

    /// Calls the kernel where it wants to be called to go on receiving.
    #[inline]
    pub fn kick(&self) {
        if self.polls || self.fill.wants_wakeup() {
            let mut nothing: [u8; 0] = [];
            // Whatever it answers, the rings tell.
            let _ = recv(&self.socket.fd, &mut nothing, RecvFlags::DONTWAIT);
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let lent = self.lent.take();
        self.socket.leave(match self.socket.is_zero_copy() {
            true => Left::InUse(lent, self.socket.home),
            false => Left::Copied(lent),
        });
    }
}

/// The sending side of a socket.
pub struct Sender {
    ring: Ring<XdpDesc>,
    completion: Ring<u64>,
    /// `None` only while it is dropped.
    lent: Option<Lent>,
    socket: Arc<Socket>,
}

/// Why nothing is sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// The kernel has no room now.
    Full,
    /// The interface is down or gone.
    Down,
}

impl Sender {
    /// The number of its queue.
    pub fn queue(&self) -> u32 {
        self.socket.home.queue
    }

    /// Whether the kernel has given back all that it was to send, as of the last [`Sender::complete`].
    pub fn is_idle(&self) -> bool {
        self.lent.as_ref().is_none_or(|lent| lent.count() == 0)
    }

    /// Whether the kernel has taken all that it was to send.
    pub fn is_emptied(&mut self) -> bool {
        self.ring.is_emptied()
    }

    pub fn socket(&self) -> &Arc<Socket> {
        &self.socket
    }

    /// Takes back what was sent.
    #[inline]
    pub fn complete(&mut self, mut each: impl FnMut(Frame)) {
        let Some(lent) = &mut self.lent else { return };
        let there = self.completion.waiting(u32::MAX);
        for i in 0..there {
            // No kernel is known to give back what it was not lent: there would be nothing to take.
            lent.reclaim(self.completion.get(i)).into_iter().for_each(&mut each);
        }
        self.completion.tell(there);
    }

    /// How many pieces there is room for, at least; at most `most`.
    #[inline]
    pub fn room(&mut self, most: usize) -> usize {
        self.ring.room(most as u32) as usize
    }

    /// Lays the bytes `at`..`at + len` of `frame` in the `i`th place after what was told of last. There is room for it.
    ///
    /// # Errors
    /// A frame of other memory, or bytes that are not inside it.
    #[inline]
    pub fn put(&mut self, i: usize, frame: Frame, at: usize, len: usize, more: bool) -> Result<(), Frame> {
        let Some(lent) = self.lent.as_mut().filter(|_| at + len <= CHUNK) else { return Err(frame) };
        let address = lent.lend(frame)?;
        let options = if more { XdpDescOptions::XDP_PKT_CONTD } else { XdpDescOptions::empty() };
        self.ring.put(i as u32, XdpDesc { addr: address + at as u64, len: len as u32, options });
        Ok(())
    }

    /// Tells the kernel of the `n` places that were filled, and has it send them.
    ///
    /// # Errors
    /// It does not. They wait all the same, and go when it can.
    #[inline]
    pub fn send(&mut self, n: usize) -> Result<(), Refused> {
        self.ring.tell(n as u32);
        if !self.ring.wants_wakeup() {
            return Ok(());
        }
        for _ in 0..KICKS {
            match send(&self.socket.fd, &[], SendFlags::DONTWAIT) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                // It has sent as many as it does at once, or all that its socket buffer holds.
                Err(Errno::AGAIN | Errno::BUSY) if self.ring.is_emptied() => return Ok(()),
                Err(Errno::AGAIN | Errno::BUSY) => {}
                Err(Errno::NOBUFS | Errno::NOMEM) => return Err(Refused::Full),
                Err(_) => return Err(Refused::Down),
            }
        }
        Err(Refused::Full)
    }
}

impl Drop for Sender {
    /// What was sent is free; what is on its way still, or waits for the kernel, which may come for it, is not yet.
    fn drop(&mut self) {
        self.complete(drop);
        self.socket.leave(Left::InUse(self.lent.take(), self.socket.home));
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Producer,
    Consumer,
}

/// A ring of `T`s in memory shared with the kernel.
struct Ring<T> {
    memory: NonNull<u8>,
    /// Bytes of the mapping.
    len: usize,
    places: NonNull<T>,
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    size: u32,
    /// Our own index, as last told, and the other side's, as last seen.
    ours: u32,
    theirs: u32,
    side: Side,
}

impl<T: Copy> Ring<T> {
    fn map(socket: &OwnedFd, at: &XdpRingOffset, offset: u64, size: u32, side: Side) -> io::Result<Ring<T>> {
        let wrong = || io::Error::from(io::ErrorKind::InvalidData);
        let len = usize::try_from(at.desc).map_err(|_| wrong())? + size as usize * size_of::<T>();
        let inside = |offset: u64| offset.is_multiple_of(4) && offset + 4 <= len as u64;
        let flags_at = at.flags.ok_or_else(wrong)?;
        if !size.is_power_of_two()
            || ![at.producer, at.consumer, flags_at].into_iter().all(inside)
            || !at.desc.is_multiple_of(8)
        {
            return Err(wrong());
        }
        // SAFETY: a new mapping where the kernel has room for it touches no memory in use.
        let memory = unsafe {
            let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::POPULATE);
            mmap(std::ptr::null_mut(), len, protection, flags, socket, offset)?
        };
        let memory = NonNull::new(memory.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: the places were found to be inside the mapping, whose length counts the descriptors, and aligned, as it is itself.
        let place = |offset: u64| unsafe { memory.add(offset as usize) };
        let mut ring = Ring {
            memory,
            len,
            places: place(at.desc).cast(),
            producer: place(at.producer).cast(),
            consumer: place(at.consumer).cast(),
            flags: place(flags_at).cast(),
            size,
            ours: 0,
            theirs: 0,
            side,
        };
        ring.ours = ring.index(side).load(Ordering::Relaxed);
        Ok(ring)
    }

    fn index(&self, side: Side) -> &AtomicU32 {
        let place = if side == Side::Producer { &self.producer } else { &self.consumer };
        // SAFETY: inside the mapping and aligned, as `map` saw to; the kernel touches it as an atomic, too.
        unsafe { place.as_ref() }
    }

    /// Reads how far the other side has come. Acquire: what it wrote, or is done reading, comes before.
    #[inline]
    fn look(&mut self) {
        let other = if self.side == Side::Producer { Side::Consumer } else { Side::Producer };
        self.theirs = self.index(other).load(Ordering::Acquire);
    }

    /// Consumer: how many are there, at most `most`.
    #[inline]
    fn waiting(&mut self, most: u32) -> u32 {
        let mut there = self.theirs.wrapping_sub(self.ours);
        if there < most.min(self.size) {
            self.look();
            there = self.theirs.wrapping_sub(self.ours);
        }
        // What the kernel says is never believed further than the ring goes.
        there.min(self.size).min(most)
    }

    /// Producer: how many there is room for, at least; at most `most`.
    #[inline]
    fn room(&mut self, most: u32) -> u32 {
        let mut room = self.size.wrapping_sub(self.ours.wrapping_sub(self.theirs)).min(self.size);
        if room < most {
            self.look();
            room = self.size.saturating_sub(self.ours.wrapping_sub(self.theirs));
        }
        room.min(most)
    }

    #[inline]
    fn has_room(&mut self, filled: u32) -> bool {
        self.room(filled + 1) > filled
    }

    /// Producer: whether the kernel has taken all that it was told of.
    fn is_emptied(&mut self) -> bool {
        self.look();
        self.theirs == self.ours
    }

    /// The `i`th place after our index.
    #[inline]
    fn place(&self, i: u32) -> NonNull<T> {
        // SAFETY: masked, so below the size, and that many lie inside the mapping.
        unsafe { self.places.add((self.ours.wrapping_add(i) & (self.size - 1)) as usize) }
    }

    #[inline]
    fn get(&self, i: u32) -> T {
        // SAFETY: a place that the kernel has handed over, or at worst one that it still writes: integers, of which any bits are a value. It is read
        // once and checked afterwards.
        unsafe { self.place(i).read_volatile() }
    }

    #[inline]
    fn put(&mut self, i: u32, value: T) {
        // SAFETY: a place of the mapping; the kernel does not read it before it is told of.
        unsafe { self.place(i).write(value) };
    }

    /// Tells the kernel of `n` more. Release: they were written, or read, before.
    #[inline]
    fn tell(&mut self, n: u32) {
        if n > 0 {
            self.ours = self.ours.wrapping_add(n);
            self.index(self.side).store(self.ours, Ordering::Release);
        }
    }

    #[inline]
    fn wants_wakeup(&self) -> bool {
        // SAFETY: as in `index`.
        let flags = unsafe { self.flags.as_ref() }.load(Ordering::Relaxed);
        flags & XdpRingFlags::XDP_RING_NEED_WAKEUP.bits() != 0
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        // SAFETY: the whole mapping, which nobody else knows; nothing is borrowed of it. Unmapping what is mapped does not fail.
        let _ = unsafe { munmap(self.memory.as_ptr().cast(), self.len) };
    }
}

// SAFETY: the mapping is the ring's own and not bound to a thread.
unsafe impl<T: Send> Send for Ring<T> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parked_chunks_are_missing_but_for_those_of_queues_that_are_opened_again() {
        let umem = Umem::new(8).unwrap();
        let group = Group::new(Arc::clone(&umem));
        let mut lent = Lent::new(&umem);
        lent.lend(umem.take().unwrap()).ok().unwrap();
        // No interface has this index.
        let (interface, queue) = (u32::MAX, 3);
        drop(Left::InUse(Some(lent), Home { interface, queue }));
        assert_eq!([4, 3, 0].map(|queues| group.missing(interface, queues)), [0, 1, 1]);
        assert_eq!(group.missing(1, 64), 1);
        assert_eq!(umem.free(), 7);
        Group::forget_interfaces(|gone| gone == interface);
        assert_eq!((group.missing(1, 64), umem.free()), (0, 8));
    }
}
