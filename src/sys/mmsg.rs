//! Many messages in one system call: recvmmsg(2) and sendmmsg(2), with all arrays made once and used again.
//!
//! The kernel is given pointers into buffers that the caller lends for one call; they are written anew for every call, so that none
//! outlives its loan.
//!
//! # Thread-safety
//! One owner. The pointers kept between calls are never followed, so both types may move between threads.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd};

use libc::{c_uint, c_void, iovec, mmsghdr, msghdr};

use super::netdev::checked;

/// Messages for receiving, each gathered from three buffers.
pub struct Receiver {
    messages: Box<[mmsghdr]>,
    pieces: Box<[[iovec; 3]]>,
    controls: Box<[Control]>,
}

/// A message that was received.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Received {
    /// Bytes of the message, over all its buffers.
    pub len: usize,
    /// The message was longer than its buffers.
    pub truncated: bool,
    /// The VLAN tag that the kernel took off the frame, as `(TPID, TCI)`.
    pub vlan: Option<(u16, u16)>,
}

/// Messages for sending, each of two pieces.
pub struct Sender {
    messages: Box<[mmsghdr]>,
    pieces: Box<[[iovec; 2]]>,
}

/// Room for the one control message that a packet socket sends, aligned as control messages are.
type Control = [u64; CONTROL / 8];

// SAFETY: CMSG_SPACE is arithmetic on its argument.
const CONTROL: usize =
    (unsafe { libc::CMSG_SPACE(size_of::<libc::tpacket_auxdata>() as c_uint) } as usize).next_multiple_of(8);

impl Receiver {
    /// For up to `n` messages a call.
    pub fn new(n: usize) -> Receiver {
        Receiver {
            messages: messages(n),
            pieces: vec![[EMPTY; 3]; n].into(),
            controls: vec![Control::default(); n].into(),
        }
    }

    /// Receives messages into `buffers`, one message into each three in turn, and does not wait. The answer is how many; their lengths are asked
    /// from [`Receiver::received`].
    pub fn receive<'a>(
        &mut self,
        socket: impl AsFd,
        buffers: impl Iterator<Item = [&'a mut [u8]; 3]>,
    ) -> io::Result<usize> {
        let mut n = 0;
        let slots = self.messages.iter_mut().zip(&mut self.pieces).zip(&mut self.controls);
        for (((message, pieces), control), buffers) in slots.zip(buffers) {
            *pieces = buffers.map(|b| iovec { iov_base: b.as_mut_ptr().cast::<c_void>(), iov_len: b.len() });
            message.msg_hdr.msg_iov = pieces.as_mut_ptr();
            message.msg_hdr.msg_iovlen = pieces.len();
            message.msg_hdr.msg_control = control.as_mut_ptr().cast::<c_void>();
            message.msg_hdr.msg_controllen = CONTROL;
            message.msg_hdr.msg_flags = 0;
            n += 1;
        }
        let fd = socket.as_fd().as_raw_fd();
        // SAFETY: the first `n` headers, just written, point to arrays of our own boxes and to slices that are borrowed exclusively for 'a, which
        // outlasts this call; each pointer goes with its own length, and nothing else uses that memory meanwhile.
        let received = unsafe {
            libc::recvmmsg(fd, self.messages.as_mut_ptr(), n as c_uint, libc::MSG_DONTWAIT as _, std::ptr::null_mut())
        };
        checked(received).map(|received| received as usize)
    }

    /// The `i`th message of the last call, below its answer.
    pub fn received(&self, i: usize) -> Received {
        let message = &self.messages[i];
        Received {
            len: message.msg_len as usize,
            truncated: message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
            vlan: vlan(&message.msg_hdr, &self.controls[i]),
        }
    }
}

/// The VLAN tag in a message's control data. What is not whole is not there.
fn vlan(header: &msghdr, control: &Control) -> Option<(u16, u16)> {
    const HEADER: usize = size_of::<libc::cmsghdr>();
    const AUXDATA: usize = size_of::<libc::tpacket_auxdata>();
    // The only control message that we ask for is the first.
    if header.msg_controllen < HEADER + AUXDATA {
        return None;
    }
    // SAFETY: `control` is as large as a control message's header and its auxdata, and aligned for the header; both types are integers only,
    // so that any bytes are values of them. The read of the data need not be aligned.
    let (message, data) = unsafe {
        let start = control.as_ptr().cast::<u8>();
        (start.cast::<libc::cmsghdr>().read(), start.add(HEADER).cast::<libc::tpacket_auxdata>().read_unaligned())
    };
    if (message.cmsg_level, message.cmsg_type) != (libc::SOL_PACKET, libc::PACKET_AUXDATA)
        || data.tp_status & libc::TP_STATUS_VLAN_VALID == 0
    {
        return None;
    }
    let tpid = if data.tp_status & libc::TP_STATUS_VLAN_TPID_VALID != 0 {
        data.tp_vlan_tpid
    } else {
        libc::ETH_P_8021Q as u16
    };
    Some((tpid, data.tp_vlan_tci))
}

impl Sender {
    /// For up to `n` messages a call.
    pub fn new(n: usize) -> Sender {
        Sender { messages: messages(n), pieces: vec![[EMPTY; 2]; n].into() }
    }

    /// Sends messages in order and does not wait. The answer is how many of them went, from the first on, at least one.
    ///
    /// # Errors
    /// Why the first did not go.
    pub fn send<'a>(&mut self, socket: impl AsFd, messages: impl Iterator<Item = [&'a [u8]; 2]>) -> io::Result<usize> {
        let mut n = 0;
        for ((message, pieces), buffers) in self.messages.iter_mut().zip(&mut self.pieces).zip(messages) {
            *pieces = buffers.map(|b| iovec { iov_base: b.as_ptr().cast_mut().cast::<c_void>(), iov_len: b.len() });
            message.msg_hdr.msg_iov = pieces.as_mut_ptr();
            message.msg_hdr.msg_iovlen = pieces.len();
            n += 1;
        }
        let fd = socket.as_fd().as_raw_fd();
        // SAFETY: the first `n` headers, just written, point to arrays of our own box and to slices that are borrowed for 'a, which outlasts this
        // call; sending only reads them, although an iovec has no pointer to constant memory.
        let sent = unsafe { libc::sendmmsg(fd, self.messages.as_mut_ptr(), n as c_uint, libc::MSG_DONTWAIT as _) };
        checked(sent).map(|sent| sent as usize)
    }
}

const EMPTY: iovec = iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

/// Message headers that point nowhere yet.
fn messages(n: usize) -> Box<[mmsghdr]> {
    // SAFETY: mmsghdr is integers and pointers: all zero bits are a value of it.
    (0..n).map(|_| unsafe { zeroed() }).collect()
}

// SAFETY: the pointers inside are followed only by the system calls above, which first write all that they use.
unsafe impl Send for Receiver {}
// SAFETY: as for the receiver.
unsafe impl Send for Sender {}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    #[test]
    fn messages_are_gathered_and_scattered_whole() {
        let (a, b) = socketpair(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::NONBLOCK, None).unwrap();
        let mut sender = Sender::new(4);
        let sent =
            sender.send(&a, [[&b"ab"[..], &b"cdef"[..]], [b"", b"x"], [b"longer", b" than its room"]].into_iter());
        assert_eq!(sent.unwrap(), 3);
        let mut receiver = Receiver::new(4);
        let mut room = [[[0u8; 3]; 3]; 4];
        let buffers = room.iter_mut().map(|slot| slot.each_mut().map(|piece| &mut piece[..]));
        assert_eq!(receiver.receive(&b, buffers).unwrap(), 3);
        assert_eq!(receiver.received(0), Received { len: 6, truncated: false, vlan: None });
        assert_eq!(room[0], [*b"abc", *b"def", [0; 3]]);
        assert_eq!(receiver.received(1).len, 1);
        assert_eq!(receiver.received(2), Received { len: 9, truncated: true, vlan: None });
        assert_eq!(room[2], [*b"lon", *b"ger", *b" th"]);
        let buffers = room.iter_mut().map(|slot| slot.each_mut().map(|piece| &mut piece[..]));
        assert_eq!(receiver.receive(&b, buffers).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn no_more_messages_go_than_there_is_room_for() {
        let (a, _b) = socketpair(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::NONBLOCK, None).unwrap();
        let sent = Sender::new(2).send(&a, std::iter::repeat_n([&b"x"[..], &b"y"[..]], 5));
        assert_eq!(sent.unwrap(), 2);
    }
}
