//! The compiled programs, and how they get into the kernel.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use aya::maps::{Map as AyaMap, MapData};
use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfError, EbpfLoader, VerifierLogLevel};

use crate::sys::bpf::Map;

static PLAIN: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/plain.bpf.o"));
static OFFLOAD: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/offload.bpf.o"));
static SEND: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/send.bpf.o"));

/// An object file in the kernel: its maps, and one of its programs. They go when this is dropped and nobody else uses them.
pub struct Object {
    ebpf: Ebpf,
    program: &'static str,
}

/// Why a program could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("loading BPF programs needs CAP_BPF and CAP_NET_ADMIN, and CAP_PERFMON for the device's")]
    Permission,
    #[error("the kernel is older than {needed}, or lacks what the program needs: {text}")]
    Kernel { needed: &'static str, text: String },
    #[error("loading the BPF program: {0}")]
    Other(String),
}

impl Object {
    /// The program that gives every frame to its queue's socket. `frags`: also frames in several buffers.
    pub fn plain(frags: bool) -> Result<Object, LoadError> {
        let (program, needed) = if frags { ("plain", "5.18") } else { ("plain_single", "5.9") };
        Object::load(&mut EbpfLoader::new(), PLAIN, program, needed)
    }

    /// The device's program, with room for `rules` rules, on as many processors as there may ever be.
    pub fn offload(rules: u32, processors: u32) -> Result<Object, LoadError> {
        let mut loader = EbpfLoader::new();
        loader
            .map_max_entries("rules", rules)
            .map_max_entries("counts", rules.saturating_mul(processors))
            .map_max_entries("cpus", processors)
            .override_global("RULES", &rules, true);
        Object::load(&mut loader, OFFLOAD, "offload", "5.18")
    }

    /// The program that sends a batch of frames from memory.
    pub fn send() -> Result<Object, LoadError> {
        Object::load(&mut EbpfLoader::new(), SEND, "send", "5.9")
    }

    fn load(
        loader: &mut EbpfLoader<'_>,
        bytes: &[u8],
        program: &'static str,
        needed: &'static str,
    ) -> Result<Object, LoadError> {
        // The log of a long program takes the kernel longer to write than the program takes to be checked.
        let mut object = Object::open(loader.verifier_log_level(VerifierLogLevel::STATS), bytes, program)?;
        match object.verify() {
            Ok(()) => Ok(object),
            Err(ProgramError::LoadError { io_error, .. }) if is_forbidden(&io_error) => Err(LoadError::Permission),
            Err(ProgramError::LoadError { io_error, .. }) => {
                // Once more, to hear why.
                let mut again = Object::open(loader.verifier_log_level(VerifierLogLevel::VERBOSE), bytes, program)?;
                let why = match again.verify() {
                    Err(ProgramError::LoadError { verifier_log, .. }) => reason(&verifier_log.to_string()),
                    _ => String::new(),
                };
                Err(LoadError::Kernel { needed, text: format!("{io_error}{why}") })
            }
            Err(error) => Err(LoadError::Other(chain(&error))),
        }
    }

    fn open(loader: &mut EbpfLoader<'_>, bytes: &[u8], program: &'static str) -> Result<Object, LoadError> {
        let ebpf = loader.load(bytes).map_err(|error| match &error {
            EbpfError::MapError(aya::maps::MapError::CreateError { io_error, .. }) if is_forbidden(io_error) => {
                LoadError::Permission
            }
            _ => LoadError::Other(chain(&error)),
        })?;
        Ok(Object { ebpf, program })
    }

    fn verify(&mut self) -> Result<(), ProgramError> {
        match self.ebpf.program_mut(self.program) {
            Some(Program::Xdp(program)) => program.load(),
            Some(Program::SchedClassifier(program)) => program.load(),
            _ => Err(ProgramError::UnexpectedProgramType),
        }
    }

    /// The program.
    ///
    /// # Errors
    /// None that is known: it was loaded when this was made.
    pub fn program(&self) -> io::Result<BorrowedFd<'_>> {
        let program = self.ebpf.program(self.program).ok_or(io::ErrorKind::NotFound)?;
        program.fd().map(|fd| fd.as_fd()).map_err(io::Error::other)
    }

    /// The map of this name.
    ///
    /// # Errors
    /// No such map, or no file descriptor left.
    pub fn map(&self, name: &str) -> io::Result<Map> {
        let data: &MapData = match self.ebpf.map(name) {
            Some(AyaMap::Array(data) | AyaMap::HashMap(data) | AyaMap::XskMap(data) | AyaMap::DevMap(data)) => data,
            _ => return Err(io::ErrorKind::NotFound.into()),
        };
        Map::new(data.fd().as_fd().try_clone_to_owned()?)
    }
}

/// Not `EACCES`, by which the kernel refuses a program that it cannot follow.
fn is_forbidden(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EPERM)
}

/// What a verifier's log ends with: why it refuses the program. Behind it are statistics.
fn reason(log: &str) -> String {
    let is_told = |line: &&str| !line.trim().is_empty() && !line.starts_with("processed ");
    log.lines().rev().find(is_told).map_or_else(String::new, |line| format!(": {}", line.trim()))
}

/// An error and its causes in a line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let told = error.to_string();
        if !text.ends_with(&told) {
            text = format!("{text}: {told}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_what_stands_before_the_statistics() {
        let log = "1035: (61) r0 = *(u32 *)(r4 +0)\nR4 offset is outside of the packet\nprocessed 501 insns (limit 1000000)\n\n";
        assert_eq!(reason(log), ": R4 offset is outside of the packet");
        assert_eq!(reason(""), "");
    }
}
