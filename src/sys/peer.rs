//! The groups of the process at the other end of a unix socket: `SO_PEERGROUPS` of unix(7), which rustix lacks.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use libc::{gid_t, socklen_t};

use super::netdev::checked;

/// A process can be in no more groups than this (`NGROUPS_MAX` of limits.h).
const MOST: usize = 65_536;

/// The supplementary groups that the process had when it connected.
pub fn peer_groups(socket: impl AsFd) -> io::Result<Vec<u32>> {
    let fd = socket.as_fd().as_raw_fd();
    let mut groups: Vec<gid_t> = vec![0; 32];
    loop {
        let mut bytes = (groups.len() * size_of::<gid_t>()) as socklen_t;
        // SAFETY: the kernel writes at most `bytes` bytes of gid_t, for which any bits are a value, into the vector, which is
        // that long; and the length into `bytes`. Both live and are ours alone during the call.
        let answer = checked(unsafe {
            libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERGROUPS, groups.as_mut_ptr().cast(), &mut bytes)
        });
        match answer {
            Ok(_) => {
                groups.truncate(bytes as usize / size_of::<gid_t>());
                return Ok(groups);
            }
            // The kernel has said how long it must be.
            Err(error) if error.raw_os_error() == Some(libc::ERANGE) && groups.len() < MOST => {
                groups.resize((bytes as usize / size_of::<gid_t>()).clamp(groups.len() + 1, MOST), 0);
            }
            Err(error) => return Err(error),
        }
    }
}
