//! Sends UDP frames into an interface as fast as AF_PACKET takes them: `afgen INTERFACE FLOWS SECONDS`.
//!
//! The frames have 60 bytes, 64 on a wire with their checksum, and go through the flows in turn, which differ in their source address and port.
//! At the end the number of frames sent is printed. `compare-ovs` is what uses it.

use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use offloadd::packet::checksum::Sum;
use offloadd::sys::mmsg::Sender;
use offloadd::sys::packet::{self, Flag};
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// Frames a system call.
const BATCH: usize = 64;

fn main() -> ExitCode {
    match run() {
        Ok(sent) => {
            println!("{sent}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("afgen: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<u64> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [interface, flows, seconds] = &args[..] else { anyhow::bail!("usage: afgen INTERFACE FLOWS SECONDS") };
    let flows: u16 = flows.parse().context("FLOWS is 1 to 65535")?;
    let seconds = Duration::try_from_secs_f64(seconds.parse().context("SECONDS")?).context("SECONDS")?;

    let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    let ifindex = name_to_index(&socket, interface).context(interface.clone())?;
    packet::set(&socket, Flag::QdiscBypass, true)?;
    packet::bind(&socket, ifindex, 0)?;

    let frames: Vec<[u8; 60]> = (0..flows.max(1)).map(frame).collect();
    let mut next = frames.iter().cycle();
    let (mut sender, mut sent, end) = (Sender::new(BATCH), 0, Instant::now() + seconds);
    while Instant::now() < end {
        // No room just now, or the interface is down: the next call tells.
        sent += sender.send(&socket, next.by_ref().take(BATCH).map(|frame| &frame[..])).unwrap_or(0) as u64;
    }
    Ok(sent)
}

/// A frame of flow `i`, to a station that nobody is.
fn frame(i: u16) -> [u8; 60] {
    let [high, low] = i.to_be_bytes();
    let mut frame = [0; 60];
    frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, 0x99, 2, 0, 0, 0, 0, 1, 8, 0]);
    frame[14..26].copy_from_slice(&[0x45, 0, 0, 46, 0, 0, 0x40, 0, 64, 17, 0, 0]);
    frame[26..30].copy_from_slice(&Ipv4Addr::new(10, 1, high, low).octets());
    frame[30..34].copy_from_slice(&Ipv4Addr::new(10, 2, 0, 1).octets());
    let sum = Sum::of(&frame[14..34]).checksum();
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    // UDP without a checksum, which IPv4 allows (RFC 768).
    frame[34..42].copy_from_slice(&[high, low, 0, 9, 0, 26, 0, 0]);
    frame
}
