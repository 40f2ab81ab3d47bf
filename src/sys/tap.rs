//! TAP interfaces of our own: `/dev/net/tun` (Documentation/networking/tuntap.rst).

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use libc::{c_int, c_uint, c_ulong};
use rustix::fs::{Mode, OFlags};

use super::netdev::{call, checked, request};

/// An open queue of a TAP interface, and the interface's name.
pub struct Tap {
    pub queue: OwnedFd,
    pub name: String,
    /// Whether the kernel leaves UDP segmentation to us (Linux 6.2).
    pub udp_segments: bool,
}

/// Opens a queue of the TAP interface `name`, which is created if it is not there, without blocking, with a virtio-net header of `header`
/// bytes, and with every offload that the kernel knows left to us. The interface goes with its last queue, unless it was made to persist.
pub fn open(name: &str, multi_queue: bool, header: usize) -> io::Result<Tap> {
    let queue = rustix::fs::open("/dev/net/tun", OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
    let mut request = request(name)?;
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if multi_queue {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    call(&queue, libc::TUNSETIFF as c_ulong, &mut request)?;

    let size = header as c_int;
    // SAFETY: TUNSETVNETHDRSZ reads one int, which lives during the call.
    checked(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETVNETHDRSZ as c_ulong, &raw const size) })?;
    let all = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    let udp_segments = match offload(&queue, all | libc::TUN_F_USO4 | libc::TUN_F_USO6) {
        Ok(()) => true,
        Err(_) => {
            offload(&queue, all)?;
            false
        }
    };
    // SAFETY: TUNSETIFF left the name in place, with a zero byte inside the array.
    let name = unsafe { CStr::from_ptr(request.ifr_name.as_ptr()) }.to_string_lossy().into_owned();
    Ok(Tap { queue, name, udp_segments })
}

fn offload(queue: &OwnedFd, features: c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its bits as the argument itself and touches no memory of ours.
    checked(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETOFFLOAD as c_ulong, c_ulong::from(features)) })
        .map(drop)
}
