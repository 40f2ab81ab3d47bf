//! Where a daemon leaves its pidfile and its control socket, and how a target's name leads there.
//!
//! A daemon `NAME` with process id `PID` has two files in its run directory, as Open vSwitch's daemons have them:
//!
//! ```text
//!   NAME.pid        "PID\n", under an fcntl write lock for as long as the daemon lives
//!   NAME.PID.ctl    its control socket
//! ```
//!
//! The lock tells a living daemon's pidfile from one that a crash left behind. It belongs to the *process* and goes as soon as the
//! process closes any descriptor of that file: a daemon must not call [`running`] on its own pidfile.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::{env, fmt};

use rustix::process::{Flock, FlockType, fcntl_getlk, geteuid};

/// The daemon that is meant where no name is given.
pub const DAEMON: &str = "offloadd";

/// Where Open vSwitch's daemons leave theirs, unless `OVS_RUNDIR` says otherwise.
const OVS_RUN_DIR: &str = "/run/openvswitch";

/// Whom the system's daemon runs as, where it is no other than root.
const SERVICE_USER: &str = "offloadd";

/// The system's run directory.
const SYSTEM: &str = "/run/offloadd";

/// offloadd's run directory for the user this process acts for.
///
/// `/run/offloadd` for root, and for a service that systemd has made it for, else `$XDG_RUNTIME_DIR/offloadd`, else `/tmp/offloadd-UID`.
/// Whoever can write to it can pose as the daemon, so it must belong to the user (the system's: to root or the user offloadd),
/// and nobody else may write to it; in `/tmp`, where anyone can make a directory of that name first, nobody else may even look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunDir {
    path: PathBuf,
    owner: u32,
    /// It is the system's: its daemon has a user of its own, perhaps, and serves the members of a group as well.
    system: bool,
    /// Permission bits that must not be set.
    forbidden: u32,
}

/// Why a run directory is not to be used.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    #[error("cannot use run directory {path:?}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("run directory {path:?} is not to be trusted: it is no directory; remove it")]
    NotADirectory { path: PathBuf },
    #[error("run directory {path:?} is not to be trusted: it belongs to user {owner}, not to user {wanted}")]
    Foreign { path: PathBuf, owner: u32, wanted: u32 },
    #[error("run directory {path:?} is not to be trusted: its mode is {mode:04o}, it should be 0700")]
    Open { path: PathBuf, mode: u32 },
}

impl RunDir {
    /// The run directory of the system's daemon.
    pub fn of_system() -> RunDir {
        RunDir { path: PathBuf::from(SYSTEM), owner: 0, system: true, forbidden: 0o022 }
    }

    /// The run directory of this process's user; it may not exist yet.
    pub fn of_user() -> RunDir {
        let directory = |variable| env::var_os(variable).map(PathBuf::from);
        // The first is what systemd made for a service, see systemd.exec(5).
        RunDir::of(geteuid().as_raw(), directory("RUNTIME_DIRECTORY"), directory("XDG_RUNTIME_DIR"))
    }

    fn of(uid: u32, runtime_directory: Option<PathBuf>, xdg_runtime_dir: Option<PathBuf>) -> RunDir {
        let of_service = runtime_directory.is_some_and(|dir| dir == Path::new(SYSTEM));
        let (path, forbidden) = match xdg_runtime_dir {
            _ if uid == 0 || of_service => return RunDir::of_system(),
            Some(dir) if dir.is_absolute() => (dir.join(DAEMON), 0o022),
            _ => (PathBuf::from(format!("/tmp/offloadd-{uid}")), 0o077),
        };
        RunDir { path, owner: uid, system: false, forbidden }
    }

    /// Makes the directory if it is not there, and checks that it is to be trusted. Its mode is 0700; the system's is open to the members of
    /// `group` (0750), if there is one, and we may open it to them.
    pub fn create(&self, group: Option<u32>) -> Result<(), RunDirError> {
        let failed = |source| RunDirError::Io { path: self.path.clone(), source };
        match DirBuilder::new().mode(0o700).create(&self.path) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => return Err(failed(source)),
            _ => self.check()?,
        }
        match group {
            Some(group) if self.system => {
                let opened = chown(&self.path, None, Some(group))
                    .and_then(|()| fs::set_permissions(&self.path, Permissions::from_mode(0o750)));
                match opened {
                    // A service that is not in that group.
                    Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
                    opened => opened.map_err(failed),
                }
            }
            _ => Ok(()),
        }
    }

    /// Checks that the directory exists and is to be trusted.
    pub fn check(&self) -> Result<(), RunDirError> {
        let path = self.path.clone();
        let meta = match fs::symlink_metadata(&path) {
            Ok(meta) => meta,
            Err(source) => return Err(RunDirError::Io { path, source }),
        };
        if !meta.is_dir() {
            Err(RunDirError::NotADirectory { path })
        } else if !self.may_belong_to(meta.uid()) {
            Err(RunDirError::Foreign { path, owner: meta.uid(), wanted: self.owner })
        } else if meta.mode() & self.forbidden != 0 {
            Err(RunDirError::Open { path, mode: meta.mode() & 0o7777 })
        } else {
            Ok(())
        }
    }

    fn may_belong_to(&self, uid: u32) -> bool {
        // The user database is asked last: it may take its time.
        let of_system =
            || uid == geteuid().as_raw() || uzers::get_user_by_name(SERVICE_USER).is_some_and(|u| u.uid() == uid);
        uid == self.owner || self.system && of_system()
    }

    /// Removes the sockets that daemons left which were killed: those whose process is no more.
    pub fn sweep(&self) {
        let owner =
            |name: &str| name.strip_prefix(DAEMON)?.strip_prefix('.')?.strip_suffix(".ctl")?.parse::<u32>().ok();
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            let dead = entry
                .file_name()
                .to_str()
                .and_then(owner)
                .is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists());
            if dead {
                // Whoever else sweeps may have been quicker.
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the daemon's pidfile goes by default.
    pub fn pidfile(&self) -> PathBuf {
        pidfile_in(&self.path, DAEMON)
    }

    /// Where the socket of the daemon with this process id goes by default.
    pub fn socket(&self, pid: u32) -> PathBuf {
        socket_in(&self.path, DAEMON, pid)
    }
}

fn pidfile_in(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.pid"))
}

fn socket_in(dir: &Path, name: &str, pid: u32) -> PathBuf {
    dir.join(format!("{name}.{pid}.ctl"))
}

/// Whom a command is for: the text the user gave, and the socket it leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub name: String,
    pub socket: PathBuf,
}

/// Why a target's name leads nowhere.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    #[error(transparent)]
    Pidfile(#[from] PidfileError),
    #[error("no pidfile of {name:?} in {}: is it running? (-t /PATH names a socket directly)", Listed(dirs))]
    NotFound { name: String, dirs: Vec<PathBuf> },
}

/// The directories where pidfiles are looked for, first to last.
#[derive(Debug, Clone)]
pub struct Places {
    pub own: Vec<RunDir>,
    pub ovs: Vec<PathBuf>,
}

impl Places {
    /// Our run directory, then the system's, then `$OVS_RUNDIR`, then `/run/openvswitch`.
    pub fn from_env() -> Places {
        let ovs_rundir = env::var_os("OVS_RUNDIR").filter(|dir| !dir.is_empty()).map(PathBuf::from);
        let mut own = vec![RunDir::of_user(), RunDir::of_system()];
        own.dedup();
        Places { own, ovs: ovs_rundir.into_iter().chain([PathBuf::from(OVS_RUN_DIR)]).collect() }
    }

    /// Finds the socket of `target`: a path if it holds a slash, else a daemon's name; without one, our own daemon's.
    ///
    /// A name is looked up in every place until a living daemon is found.
    pub fn resolve(&self, target: Option<&str>) -> Result<Target, TargetError> {
        let name = target.unwrap_or(DAEMON);
        if name.contains('/') {
            return Ok(Target { name: name.to_owned(), socket: PathBuf::from(name) });
        }
        // Without a name, only a daemon of ours will do.
        let ovs: &[PathBuf] = if target.is_some() { &self.ovs } else { &[] };
        let own = self.own.iter().map(|dir| (dir.path(), Some(dir)));
        let places: Vec<_> = own.chain(ovs.iter().map(|dir| (dir.as_path(), None))).collect();
        let mut first_problem = None;
        for (dir, to_check) in &places {
            match Self::look_in(dir, name, *to_check) {
                Ok(Some(socket)) => return Ok(Target { name: name.to_owned(), socket }),
                Ok(None) => {}
                Err(problem) => {
                    first_problem.get_or_insert(problem);
                }
            }
        }
        Err(first_problem.unwrap_or_else(|| TargetError::NotFound {
            name: name.to_owned(),
            dirs: places.iter().map(|(dir, _)| dir.to_path_buf()).collect(),
        }))
    }

    /// The socket that `name`'s pidfile in `dir` leads to; `None` if there is no such pidfile.
    fn look_in(dir: &Path, name: &str, to_check: Option<&RunDir>) -> Result<Option<PathBuf>, TargetError> {
        let pidfile = pidfile_in(dir, name);
        if fs::symlink_metadata(&pidfile).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            return Ok(None);
        }
        to_check.map_or(Ok(()), RunDir::check)?;
        Ok(Some(socket_in(dir, name, running(&pidfile)?)))
    }
}

/// Why a pidfile names no living daemon.
#[derive(Debug, thiserror::Error)]
pub enum PidfileError {
    #[error("cannot read pidfile {path:?}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("pidfile {path:?} holds no process id")]
    NotAPid { path: PathBuf },
    #[error("cannot read pidfile {path:?}: No such process (left behind by process {pid})")]
    NotRunning { path: PathBuf, pid: u32 },
    #[error("pidfile {path:?} names process {pid}, but process {holder} holds its lock")]
    HeldByOther { path: PathBuf, pid: u32, holder: i32 },
}

/// The process id in `pidfile`, if the daemon that wrote it lives, i.e. still holds the file's lock.
///
/// The caller's own pidfile always counts as living: a process does not see its own locks (and loses this one, see the module).
pub fn running(pidfile: &Path) -> Result<u32, PidfileError> {
    let path = pidfile.to_owned();
    let mut text = String::new();
    let mut file = match File::open(pidfile) {
        Ok(file) => file,
        Err(source) => return Err(PidfileError::Read { path, source }),
    };
    if let Err(source) = (&mut file).take(32).read_to_string(&mut text) {
        return Err(PidfileError::Read { path, source });
    }
    let pid = match text.trim_end().parse::<u32>() {
        Ok(pid) if pid > 0 => pid,
        _ => return Err(PidfileError::NotAPid { path }),
    };
    if pid == std::process::id() {
        return Ok(pid);
    }
    match fcntl_getlk(&file, &Flock::from(FlockType::WriteLock)) {
        Err(errno) => Err(PidfileError::Read { path, source: errno.into() }),
        Ok(None) => Err(PidfileError::NotRunning { path, pid }),
        // No id is given for a process outside our pid namespace, nor then does the file's mean anything; its socket's name does.
        Ok(Some(lock)) => match lock.pid.map(|holder| holder.as_raw_pid()) {
            Some(holder) if holder > 0 && holder as u32 != pid => Err(PidfileError::HeldByOther { path, pid, holder }),
            _ => Ok(pid),
        },
    }
}

/// Paths as `"a", "b" or "c"`.
struct Listed<'a>(&'a [PathBuf]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, path) in self.0.iter().enumerate() {
            let before = match i {
                0 => "",
                _ if i + 1 == self.0.len() => " or ",
                _ => ", ",
            };
            write!(f, "{before}{path:?}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn own_dir_in(dir: &Path) -> RunDir {
        RunDir {
            path: dir.join("offloadd-1"),
            owner: geteuid().as_raw(),
            system: geteuid().is_root(),
            forbidden: 0o077,
        }
    }

    #[test]
    fn each_user_has_a_run_directory() {
        let path = |uid, xdg: Option<&str>| RunDir::of(uid, None, xdg.map(PathBuf::from)).path;
        assert_eq!(path(0, Some("/run/user/0")), Path::new("/run/offloadd"));
        assert_eq!(path(7, Some("/run/user/7")), Path::new("/run/user/7/offloadd"));
        assert_eq!(path(7, Some("")), Path::new("/tmp/offloadd-7"));
        assert_eq!(path(7, None), Path::new("/tmp/offloadd-7"));
        let service = |dir: &str| RunDir::of(7, Some(dir.into()), Some("/run/user/7".into()));
        assert_eq!(service("/run/offloadd"), RunDir::of_system());
        assert_eq!(service("/run/other").path, Path::new("/run/user/7/offloadd"));
        let dir = RunDir::of(0, None, None);
        assert_eq!(dir.pidfile(), Path::new("/run/offloadd/offloadd.pid"));
        assert_eq!(dir.socket(12), Path::new("/run/offloadd/offloadd.12.ctl"));
    }

    #[test]
    fn sockets_of_the_dead_are_swept_and_nothing_else() {
        let temp = tempfile::tempdir().unwrap();
        let dir = own_dir_in(temp.path());
        dir.create(None).unwrap();
        // No process has so high a number.
        let (dead, alive) = (dir.socket(u32::MAX), dir.socket(std::process::id()));
        let others = [dir.pidfile(), dir.path().join("offloadd.x.ctl"), dir.path().join("other.4294967295.ctl")];
        for path in [&dead, &alive].into_iter().chain(&others) {
            fs::write(path, "").unwrap();
        }
        dir.sweep();
        assert!(!dead.exists() && alive.exists() && others.iter().all(|path| path.exists()));
    }

    #[test]
    fn a_run_directory_that_others_could_have_prepared_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let dir = own_dir_in(temp.path());
        dir.create(None).unwrap();
        assert_eq!(fs::metadata(dir.path()).unwrap().mode() & 0o7777, 0o700);
        dir.create(None).unwrap();

        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(dir.create(None), Err(RunDirError::Open { mode: 0o755, .. })));
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();

        if geteuid().is_root() {
            let group = 40_010;
            dir.create(Some(group)).unwrap();
            let meta = fs::metadata(dir.path()).unwrap();
            assert_eq!((meta.mode() & 0o7777, meta.gid()), (0o750, group), "root's is open to the members of a group");
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        }

        let stranger = RunDir { owner: dir.owner + 1, system: false, ..dir.clone() };
        assert!(matches!(stranger.create(None), Err(RunDirError::Foreign { .. })));
        assert!(RunDir { system: true, ..stranger }.create(None).is_ok(), "the system's may be the daemon's own");
        if geteuid().is_root() {
            // The system's may be a service's, but not just anybody's.
            chown(dir.path(), Some(40_003), None).unwrap();
            assert!(matches!(dir.create(None), Err(RunDirError::Foreign { owner: 40_003, .. })));
        }

        fs::remove_dir(dir.path()).unwrap();
        symlink(temp.path(), dir.path()).unwrap();
        assert!(matches!(dir.create(None), Err(RunDirError::NotADirectory { .. })));
    }

    #[test]
    fn a_name_leads_to_the_first_living_daemon_and_a_path_to_itself() {
        let temp = tempfile::tempdir().unwrap();
        let own = own_dir_in(temp.path());
        let places = Places { own: vec![own.clone()], ovs: vec![temp.path().join("a"), temp.path().join("b")] };

        let path = places.resolve(Some("/x/y.ctl")).unwrap();
        assert_eq!((path.name.as_str(), path.socket), ("/x/y.ctl", PathBuf::from("/x/y.ctl")));
        let error = places.resolve(Some("ovsdb-server")).unwrap_err().to_string();
        assert!(error.contains("offloadd-1\", ") && error.contains("is it running?"), "{error}");

        // Our own process counts as living; process 1 holds no lock on what we write.
        own.create(None).unwrap();
        fs::create_dir(temp.path().join("b")).unwrap();
        fs::write(own.path().join("offloadd.pid"), "1\n").unwrap();
        fs::write(temp.path().join("b/offloadd.pid"), format!("{}\n", std::process::id())).unwrap();
        let living = places.resolve(Some("offloadd")).unwrap();
        assert_eq!(living.socket, temp.path().join(format!("b/offloadd.{}.ctl", std::process::id())));
        let stale = places.resolve(None).unwrap_err().to_string();
        assert!(stale.contains("No such process"), "{stale}");

        fs::write(own.path().join("offloadd.pid"), "-3\n").unwrap();
        assert!(matches!(places.resolve(None), Err(TargetError::Pidfile(PidfileError::NotAPid { .. }))));
        fs::set_permissions(own.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(places.resolve(None), Err(TargetError::RunDir(RunDirError::Open { .. }))));
    }
}
