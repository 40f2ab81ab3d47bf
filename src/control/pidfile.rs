//! [`Pidfile`]: tells the world which process the daemon is, and that it lives.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use offloadctl::rundir::{PidfileError as Unreadable, running};
use rustix::fs::{FlockOperation, fcntl_lock};

/// A file that holds our process id and that we hold locked; it goes when this is dropped.
///
/// It is written under another name, locked, and only then given its own: who sees it, sees it whole and locked. The lock is the
/// process's: opening and closing the file elsewhere in the daemon would lose it.
#[derive(Debug)]
pub struct Pidfile {
    path: PathBuf,
    file: File,
}

/// Why there is no pidfile of ours.
#[derive(Debug, thiserror::Error)]
pub enum PidfileError {
    #[error("already running as process {pid} (pidfile {path:?})")]
    Running { path: PathBuf, pid: u32 },
    #[error("{path:?} exists and holds no process id: not replaced")]
    NotAPidfile { path: PathBuf },
    #[error("another process is just starting (it holds {path:?} locked)")]
    Starting { path: PathBuf },
    #[error("cannot write pidfile {path:?}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

impl Pidfile {
    /// Writes and locks the pidfile; one that a dead process left behind is replaced.
    pub fn create(path: impl Into<PathBuf>) -> Result<Pidfile, PidfileError> {
        let path = path.into();
        let mut temporary = path.clone().into_os_string();
        temporary.push(".tmp");
        let temporary = PathBuf::from(temporary);

        let io_error = |source: io::Error| PidfileError::Io { path: path.clone(), source };
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).mode(0o644).open(&temporary).map_err(io_error)?;
        match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS) => {
                return Err(PidfileError::Starting { path: temporary });
            }
            Err(errno) => return Err(io_error(errno.into())),
        }
        // Whoever else starts waits for our lock on the temporary file, or finds the pidfile locked by now.
        let written = refuse_if_running(&path).and_then(|()| {
            file.set_len(0)
                .and_then(|()| writeln!(&file, "{}", std::process::id()))
                .and_then(|()| fs::rename(&temporary, &path))
                .map_err(io_error)
        });
        match written {
            Ok(()) => Ok(Pidfile { path, file }),
            Err(error) => {
                let _ = fs::remove_file(&temporary);
                Err(error)
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Pidfile {
    /// Removes the file, unless somebody else has put theirs in its place.
    fn drop(&mut self) {
        let ours = self.file.metadata().map(|meta| (meta.dev(), meta.ino()));
        let there = fs::symlink_metadata(&self.path).map(|meta| (meta.dev(), meta.ino()));
        if matches!((ours, there), (Ok(ours), Ok(there)) if ours == there) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn refuse_if_running(path: &Path) -> Result<(), PidfileError> {
    match running(path) {
        Ok(pid) if pid != std::process::id() => Err(PidfileError::Running { path: path.to_owned(), pid }),
        Err(Unreadable::HeldByOther { holder, .. }) => {
            Err(PidfileError::Running { path: path.to_owned(), pid: holder.unsigned_abs() })
        }
        Err(Unreadable::Read { path, source }) if source.kind() != io::ErrorKind::NotFound => {
            Err(PidfileError::Io { path, source })
        }
        Err(Unreadable::NotAPid { path }) => Err(PidfileError::NotAPidfile { path }),
        // No such file, or one that no living process holds: ours to replace.
        _ => Ok(()),
    }
}
