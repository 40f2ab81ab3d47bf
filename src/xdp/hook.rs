//! [`Hook`]: the XDP program at one interface.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::netlink;
use super::object::{LoadError, Object};
use crate::sys::bpf::{Map, XdpLink};
use crate::sys::xsk::Socket;

/// A program attached to an interface by a `bpf_link`, and the sockets that it gives frames to. Detached when it is dropped, and by the
/// kernel when the process ends, however that comes.
///
/// # Thread-safety
/// Shared by the port, its queues and the device. Pollers call [`Hook::generation`] alone.
pub struct Hook {
    state: Mutex<State>,
    interface: u32,
    mode: Mode,
    plain: Object,
    /// The plain program's.
    sockets: Map,
    generation: AtomicU32,
}

struct State {
    link: XdpLink,
    /// What runs, unless it is the plain program.
    other: Option<OwnedFd>,
    queues: Vec<(u32, Arc<Socket>)>,
}

/// Where the program runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// In the driver, before the kernel has made a packet of the frame.
    Native,
    /// Behind the driver, where it knows no XDP.
    Generic,
}

impl Mode {
    /// `XDP_FLAGS_DRV_MODE` or `XDP_FLAGS_SKB_MODE`.
    fn flags(self) -> u32 {
        match self {
            Mode::Native => 1 << 2,
            Mode::Generic => 1 << 1,
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Native => "native",
            Mode::Generic => "generic",
        })
    }
}

/// Why no program was attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("XDP program {} is attached already (force=yes displaces it)", id(*.0))]
    Taken(Option<u32>),
    #[error("attaching an XDP program in {mode} mode: {source}")]
    Refused { mode: Mode, source: io::Error },
    #[error("XDP: {0}")]
    Io(#[from] io::Error),
}

fn id(program: Option<u32>) -> String {
    program.map_or_else(|| "of unknown number".to_owned(), |id| id.to_string())
}

impl Hook {
    /// Attaches the plain program to `interface`, an index. `wanted`: in this mode, or where there is none in the first that works.
    /// `frags`: it must take frames in several buffers. `force`: whatever program is attached goes.
    ///
    /// # Errors
    /// Another program is attached, the mode is not to be had, or a privilege is missing.
    pub fn attach(interface: u32, wanted: Option<Mode>, frags: bool, force: bool) -> Result<Hook, AttachError> {
        let plain = match Object::plain(true) {
            // Without frames in several buffers, an older kernel will do.
            Err(LoadError::Kernel { .. }) if !frags => Object::plain(false)?,
            plain => plain?,
        };
        if let Some(program) = netlink::attached_program(interface)? {
            if !force {
                return Err(AttachError::Taken(Some(program)));
            }
            if XdpLink::detach_others(program, interface)? == 0 {
                netlink::detach_program(interface)?;
            }
            log::warn!(target: "xdp", "interface {interface}: displaced XDP program {program}");
        }
        let modes: &[Mode] = match &wanted {
            Some(mode) => std::slice::from_ref(mode),
            None => &[Mode::Native, Mode::Generic],
        };
        let mut refused = None;
        for mode in modes {
            match XdpLink::attach(plain.program()?, interface, mode.flags()) {
                Ok(link) => {
                    let (sockets, mode) = (plain.map("sockets")?, *mode);
                    let state = Mutex::new(State { link, other: None, queues: Vec::new() });
                    return Ok(Hook { state, interface, mode, plain, sockets, generation: AtomicU32::new(0) });
                }
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                    return Err(AttachError::Taken(netlink::attached_program(interface)?));
                }
                Err(source) => refused = Some(AttachError::Refused { mode: *mode, source }),
            }
        }
        Err(refused.unwrap_or(AttachError::Taken(None)))
    }

    pub fn interface(&self) -> u32 {
        self.interface
    }

    pub fn mode(&self) -> Mode {
        self.mode
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Whole at any moment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Frames of this receive queue go to that socket from now on. It stays open for as long as the hook.
    ///
    /// # Errors
    /// A queue beyond 64.
    pub fn add_socket(&self, queue: u32, socket: Arc<Socket>) -> io::Result<()> {
        self.sockets.update(&queue.to_ne_bytes(), &socket.as_fd().as_raw_fd().to_ne_bytes())?;
        self.state().queues.push((queue, socket));
        Ok(())
    }

    /// The sockets there are, with their queues.
    pub fn sockets(&self) -> Vec<(u32, Arc<Socket>)> {
        self.state().queues.clone()
    }

    /// What stands behind the mark in front of a frame that is marked now; 0: no frame is.
    #[inline]
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::Relaxed)
    }

    /// From now on frames are marked with this generation; 0: they are not.
    pub fn set_generation(&self, generation: u32) {
        self.generation.store(generation, Ordering::Relaxed);
    }

    /// Puts another program in the place of what is attached, without a moment between.
    ///
    /// # Errors
    /// The interface is gone, or somebody has detached us; or this interface does not take the program.
    pub fn run(&self, program: BorrowedFd<'_>) -> io::Result<()> {
        let mut state = self.state();
        state.link.update(program)?;
        state.other = Some(program.try_clone_to_owned()?);
        Ok(())
    }

    /// The plain program runs again.
    ///
    /// # Errors
    /// As of [`Hook::run`].
    pub fn run_plain(&self) -> io::Result<()> {
        let mut state = self.state();
        // Also where the link is broken: this is what is attached again.
        state.other = None;
        state.link.update(self.plain.program()?)
    }

    /// Whether a program of ours is still attached.
    pub fn is_attached(&self) -> bool {
        self.state().link.info().is_ok_and(|info| info.interface == self.interface)
    }

    /// Attaches what ran last, after somebody detached it.
    ///
    /// # Errors
    /// The interface is gone, or another program is attached.
    pub fn attach_again(&self) -> io::Result<()> {
        let mut state = self.state();
        let program = match &state.other {
            Some(other) => other.as_fd(),
            None => self.plain.program()?,
        };
        state.link = XdpLink::attach(program, self.interface, self.mode.flags())?;
        Ok(())
    }
}
