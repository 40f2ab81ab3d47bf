//! What an interface is and how it is set: the `ioctl`s of netdevice(7), on any socket of the network namespace asked about.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use libc::{c_int, c_ulong, ifreq};

/// The longest name of an interface, in bytes.
pub const NAME_MAX: usize = libc::IFNAMSIZ - 1;

/// The longest payload that the interface sends, in bytes.
pub fn mtu(socket: impl AsFd, name: &str) -> io::Result<usize> {
    let mut request = request(name)?;
    call(socket, libc::SIOCGIFMTU, &mut request)?;
    // SAFETY: every bit pattern is an int, and SIOCGIFMTU has filled this one in.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    Ok(usize::try_from(mtu).unwrap_or(0))
}

/// Whether frames of this interface begin with an Ethernet header.
pub fn is_ethernet(socket: impl AsFd, name: &str) -> io::Result<bool> {
    let mut request = request(name)?;
    call(socket, libc::SIOCGIFHWADDR, &mut request)?;
    // SAFETY: every bit pattern is a sockaddr, and SIOCGIFHWADDR has filled this one in.
    let family = unsafe { request.ifr_ifru.ifru_hwaddr.sa_family };
    Ok([libc::ARPHRD_ETHER, libc::ARPHRD_LOOPBACK].contains(&family))
}

/// How many receive queues are in use.
///
/// # Errors
/// Among others `EOPNOTSUPP`, for drivers that do not tell.
pub fn rx_queues(socket: impl AsFd, name: &str) -> io::Result<u32> {
    /// `struct ethtool_channels`.
    #[derive(Default)]
    #[repr(C)]
    struct Channels {
        command: u32,
        /// Received, sent, other, combined.
        most: [u32; 4],
        rx: u32,
        tx: u32,
        other: u32,
        combined: u32,
    }
    /// `ETHTOOL_GCHANNELS`.
    const GET_CHANNELS: u32 = 0x3c;
    let mut channels = Channels { command: GET_CHANNELS, ..Channels::default() };
    let mut request = request(name)?;
    request.ifr_ifru.ifru_data = (&raw mut channels).cast();
    // The kernel follows the pointer, to a structure of the length that the command takes and that lives and is ours alone during the call.
    call(socket, libc::SIOCETHTOOL, &mut request)?;
    Ok(channels.rx.saturating_add(channels.combined))
}

/// The name of the interface's driver.
///
/// # Errors
/// Among others `EOPNOTSUPP`, for drivers that do not tell.
pub fn driver(socket: impl AsFd, name: &str) -> io::Result<String> {
    /// `struct ethtool_drvinfo`.
    #[repr(C)]
    struct Info {
        command: u32,
        driver: [u8; 32],
        _rest: [u8; 160],
    }
    /// `ETHTOOL_GDRVINFO`.
    const GET_INFO: u32 = 3;
    let mut info = Info { command: GET_INFO, driver: [0; 32], _rest: [0; 160] };
    let mut request = request(name)?;
    request.ifr_ifru.ifru_data = (&raw mut info).cast();
    // The kernel follows the pointer, to a structure of the length that the command takes and that lives and is ours alone during the call.
    call(socket, libc::SIOCETHTOOL, &mut request)?;
    Ok(info.driver.iter().take_while(|byte| **byte != 0).map(|byte| char::from(*byte)).collect())
}

/// Sets the interface up.
pub fn set_up(socket: impl AsFd, name: &str) -> io::Result<()> {
    let mut request = request(name)?;
    call(&socket, libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: every bit pattern is a short, and SIOCGIFFLAGS has filled this one in; the union's other fields are not used.
    unsafe { request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short };
    call(socket, libc::SIOCSIFFLAGS, &mut request)
}

/// A request about the interface `name`, zero otherwise.
pub(super) fn request(name: &str) -> io::Result<ifreq> {
    if name.is_empty() || name.len() > NAME_MAX || name.contains('\0') {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: ifreq is integers, arrays of them and a pointer: all zero bits are a value of it.
    let mut request: ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

/// One of the requests that read and write nothing but their ifreq.
pub(super) fn call(file: impl AsFd, what: c_ulong, request: &mut ifreq) -> io::Result<()> {
    // SAFETY: the callers of this module pass requests whose argument is a pointer to an ifreq, which lives and is ours alone during the call.
    checked(unsafe { libc::ioctl(file.as_fd().as_raw_fd(), what, std::ptr::from_mut(request)) }).map(drop)
}

/// What a system call answered, or why it failed.
pub(super) fn checked(answer: c_int) -> io::Result<c_int> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}
