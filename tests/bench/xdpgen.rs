//! Sends UDP frames into an interface as fast as the kernel makes them: `xdpgen OBJECT INTERFACE FLOWS SECONDS`.
//!
//! OBJECT is `generate.bpf.c`, compiled. The frames have 60 bytes, 64 on a wire with their checksum, and go through the flows in turn, which differ in
//! their source address. `compare-xdp` is what uses it.

use std::process::ExitCode;

#[cfg(not(xdp))]
fn main() -> ExitCode {
    eprintln!("xdpgen: {}", offloadd::port::NO_XDP);
    ExitCode::FAILURE
}

#[cfg(xdp)]
fn main() -> ExitCode {
    match generator::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xdpgen: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(xdp)]
mod generator {
    use std::os::fd::AsFd;
    use std::time::{Duration, Instant};

    use anyhow::Context as _;
    use aya::EbpfLoader;
    use aya::programs::Xdp;
    use offloadd::packet::checksum::Sum;
    use offloadd::sys::bpf::let_live;
    use rustix::net::netdevice::name_to_index;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    use rustix::time::{ClockId, clock_gettime};

    /// Frames a system call, which SIGTERM cuts short: the kernel waits a while between two.
    const FRAMES: u32 = 1 << 30;

    pub fn run() -> anyhow::Result<()> {
        let args: Vec<String> = std::env::args().skip(1).collect();
        let [object, interface, flows, seconds] = &args[..] else {
            anyhow::bail!("usage: xdpgen OBJECT INTERFACE FLOWS SECONDS")
        };
        let flows: u32 = flows.parse().context("FLOWS is a number")?;
        let seconds = Duration::try_from_secs_f64(seconds.parse().context("SECONDS")?).context("SECONDS")?;
        let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        let out = name_to_index(&socket, interface).context(interface.clone())?;
        let now = clock_gettime(ClockId::Monotonic);
        let deadline = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64 + seconds.as_nanos() as u64;
        let mut ebpf = EbpfLoader::new()
            .override_global("OUT", &out, true)
            .override_global("FLOWS", &flows.max(1), true)
            .override_global("END", &deadline, true)
            .load_file(object)?;
        let program: &mut Xdp = ebpf.program_mut("generate").context("no program 'generate'")?.try_into()?;
        program.load()?;
        let end = Instant::now() + seconds;
        while Instant::now() < end {
            let_live(program.fd()?.as_fd(), &frame(), FRAMES)?;
        }
        Ok(())
    }

    /// From 0.0.0.0, to a station that nobody is.
    fn frame() -> [u8; 60] {
        let mut frame = [0; 60];
        frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, 0x99, 2, 0, 0, 0, 0, 1, 8, 0]);
        frame[14..26].copy_from_slice(&[0x45, 0, 0, 46, 0, 0, 0x40, 0, 64, 17, 0, 0]);
        frame[30..34].copy_from_slice(&[192, 0, 2, 1]);
        let checksum = !Sum::of(&frame[14..34]).folded();
        frame[24..26].copy_from_slice(&checksum.to_be_bytes());
        frame[34..42].copy_from_slice(&[0x10, 0, 0x20, 0, 0, 26, 0, 0]);
        frame
    }
}
