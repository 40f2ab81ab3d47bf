//! What is peculiar to AF_PACKET sockets: binding to an interface, and the options of packet(7) that `rustix` lacks.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd};

use libc::{c_int, c_ushort, c_void, socklen_t};

use super::netdev::checked;

/// Every protocol, for [`bind`].
pub const ETH_P_ALL: u16 = libc::ETH_P_ALL as u16;

/// An option that is on or off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i32)]
pub enum Flag {
    /// A virtio-net header comes in front of each frame, both ways.
    VnetHeader = libc::PACKET_VNET_HDR,
    /// Frames that leave by the interface are not received.
    IgnoreOutgoing = libc::PACKET_IGNORE_OUTGOING,
    /// Frames go to the driver past the queueing discipline.
    QdiscBypass = libc::PACKET_QDISC_BYPASS,
}

/// Turns an option on or off.
pub fn set(socket: impl AsFd, flag: Flag, on: bool) -> io::Result<()> {
    set_option(socket, flag as c_int, &c_int::from(on))
}

/// Binds to the interface `ifindex`, to receive frames of `protocol`; of 0, none.
pub fn bind(socket: impl AsFd, ifindex: u32, protocol: u16) -> io::Result<()> {
    // SAFETY: sockaddr_ll is integers and arrays of them: all zero bits are a value of it.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as c_ushort;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = ifindex as c_int;
    let (pointer, len) = (&raw const address, size_of::<libc::sockaddr_ll>() as socklen_t);
    // SAFETY: the pointer is to an address of that length, which lives during the call and is only read.
    checked(unsafe { libc::bind(socket.as_fd().as_raw_fd(), pointer.cast(), len) }).map(drop)
}

/// Makes the interface take every frame, for as long as this socket lives.
pub fn promiscuous(socket: impl AsFd, ifindex: u32) -> io::Result<()> {
    let membership = libc::packet_mreq {
        mr_ifindex: ifindex as c_int,
        mr_type: libc::PACKET_MR_PROMISC as c_ushort,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    set_option(socket, libc::PACKET_ADD_MEMBERSHIP, &membership)
}

/// Joins the bound `socket` to a group that shares the interface's frames by their flows: to `group`, or to a new one, whose number is the answer.
pub fn join_fanout(socket: impl AsFd, group: Option<u16>) -> io::Result<u16> {
    let mut kind = libc::PACKET_FANOUT_HASH | libc::PACKET_FANOUT_FLAG_IGNORE_OUTGOING;
    if group.is_none() {
        kind |= libc::PACKET_FANOUT_FLAG_UNIQUEID;
    }
    set_option(&socket, libc::PACKET_FANOUT, &(u32::from(group.unwrap_or(0)) | kind << 16))?;
    let mut answer: u32 = 0;
    get_option(socket, libc::PACKET_FANOUT, &mut answer)?;
    Ok(answer as u16)
}

/// Frames dropped for want of room, since the last time it was asked.
pub fn drops(socket: impl AsFd) -> io::Result<u64> {
    let mut stats = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    get_option(socket, libc::PACKET_STATISTICS, &mut stats)?;
    Ok(u64::from(stats.tp_drops))
}

pub(super) fn set_option<T: Plain>(socket: impl AsFd, option: c_int, value: &T) -> io::Result<()> {
    let (fd, pointer) = (socket.as_fd().as_raw_fd(), std::ptr::from_ref(value).cast::<c_void>());
    // SAFETY: the pointer is to a value of the length given, which lives during the call and is only read; it has no padding to leak.
    checked(unsafe { libc::setsockopt(fd, libc::SOL_PACKET, option, pointer, size_of::<T>() as socklen_t) }).map(drop)
}

fn get_option<T: Plain>(socket: impl AsFd, option: c_int, value: &mut T) -> io::Result<()> {
    let mut len = size_of::<T>() as socklen_t;
    let (fd, pointer) = (socket.as_fd().as_raw_fd(), std::ptr::from_mut(value).cast::<c_void>());
    // SAFETY: the kernel writes at most `len` bytes, the size of the value that is ours alone; any bytes are a value of a `Plain` type.
    checked(unsafe { libc::getsockopt(fd, libc::SOL_PACKET, option, pointer, &raw mut len) }).map(drop)
}

/// Types made of integers only, without padding, so that any bytes are a value of them.
pub(super) trait Plain {}
impl Plain for c_int {}
impl Plain for u32 {}
impl Plain for libc::packet_mreq {}
impl Plain for libc::tpacket_req {}
impl Plain for libc::tpacket_stats {}
