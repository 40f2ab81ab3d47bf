//! Many messages in one system call: sendmmsg(2), with all arrays made once and used again.
//!
//! The kernel is given pointers into buffers that the caller lends for one call; they are written anew for every call, so that none
//! outlives its loan.
//!
//! # Thread-safety
//! One owner. The pointers kept between calls are never followed, so a sender may move between threads.

use std::io;
use std::mem::zeroed;
use std::os::fd::{AsFd, AsRawFd};

use libc::{c_uint, c_void, iovec, mmsghdr};

use super::netdev::checked;

/// Messages for sending, each in one piece: gathering pieces costs the kernel more than most frames are long.
pub struct Sender {
    messages: Box<[mmsghdr]>,
    pieces: Box<[iovec]>,
}

impl Sender {
    /// For up to `n` messages a call.
    pub fn new(n: usize) -> Sender {
        Sender { messages: messages(n), pieces: vec![EMPTY; n].into() }
    }

    /// Sends messages in order and does not wait. The answer is how many of them went, from the first on, at least one.
    ///
    /// # Errors
    /// Why the first did not go.
    pub fn send<'a>(&mut self, socket: impl AsFd, messages: impl Iterator<Item = &'a [u8]>) -> io::Result<usize> {
        let mut n = 0;
        for ((message, piece), bytes) in self.messages.iter_mut().zip(&mut self.pieces).zip(messages) {
            *piece = iovec { iov_base: bytes.as_ptr().cast_mut().cast::<c_void>(), iov_len: bytes.len() };
            message.msg_hdr.msg_iov = piece;
            message.msg_hdr.msg_iovlen = 1;
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

// SAFETY: the pointers inside are followed only by the system call above, which first writes all that it uses.
unsafe impl Send for Sender {}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};

    #[test]
    fn messages_go_in_order_each_whole() {
        let (a, b) = socketpair(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::NONBLOCK, None).unwrap();
        let messages = [&b"abc"[..], b"x", b"a longer one"];
        assert_eq!(Sender::new(4).send(&a, messages.into_iter()).unwrap(), 3);
        for message in messages {
            let mut room = [0; 20];
            let (len, _) = recv(&b, &mut room[..], RecvFlags::empty()).unwrap();
            assert_eq!(&room[..len], message);
        }
    }

    #[test]
    fn no_more_messages_go_than_there_is_room_for() {
        let (a, _b) = socketpair(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::NONBLOCK, None).unwrap();
        let sent = Sender::new(2).send(&a, std::iter::repeat_n(&b"x"[..], 5));
        assert_eq!(sent.unwrap(), 2);
    }
}
