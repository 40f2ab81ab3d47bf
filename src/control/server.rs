//! [`Server`]: the control socket, and the poll that the daemon's main thread waits in.
//!
//! The main thread drives it turn by turn and does its own timers in between:
//!
//! ```text
//!   Endpoint::bind(path)      the socket is ours, or somebody answers there and we leave
//!        │ handle()           a Handle for the threads that will want to wake the main thread
//!        ▼ serve(registry)
//!   Server ──► turn(timeout) ──► Turn { stop, reload } ──► the daemon's timers ──┐
//!                  ▲                                                             │
//!                  └─────────────────────────────────────────────────────────────┘
//! ```

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use mio::event::Event;
use mio::net::{UnixListener, UnixStream};
use mio::{Events, Interest, Poll, Token};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook_mio::v1_0::Signals;

use super::access::{Access, Credentials, group};
use super::registry::{Dispatch, Peer, Registry};
use super::session::{After, Session};

/// How often an unfinished command is asked again even if nobody woke it.
pub const TICK: Duration = Duration::from_millis(100);

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 64;

/// Who may connect: the owner, and those of the socket's group if one was wanted and is there.
const OWNER_ONLY: u32 = 0o600;
const OWNER_AND_GROUP: u32 = 0o660;

const LISTENER: Token = Token(0);
const SIGNALS: Token = Token(1);
const DOORBELL: Token = Token(2);
const FIRST_SESSION: usize = 3;

/// What clients may cost us. The default is far beyond what people and scripts need, and far below what would hurt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Open connections; further ones are closed at once. Every fourth is kept for root and the daemon's own user.
    pub connections: usize,
    /// Bytes of one request; a longer one closes its connection.
    pub request: usize,
    /// Bytes of answers that clients have not read yet, over all connections; an answer beyond that becomes an error.
    pub output: usize,
    /// Calls of one batch (JSON-RPC 2.0); a longer one closes its connection.
    pub batch: usize,
    /// How long a client may do nothing when it is its turn to send or to read.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { connections: 64, request: 1 << 20, output: 256 << 20, batch: 100, idle: Duration::from_secs(15 * 60) }
    }
}

/// What clients asked for so far, and what came of it.
#[derive(Debug, Default)]
pub struct Served {
    pub accepted: AtomicU64,
    pub turned_away: AtomicU64,
    /// Commands that did what was asked.
    pub done: AtomicU64,
    pub failed: AtomicU64,
    /// To clients who may not.
    pub refused: AtomicU64,
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("another daemon answers on socket {path:?}")]
    InUse { path: PathBuf },
    #[error("{path:?} exists and is no socket: not replaced")]
    NotASocket { path: PathBuf },
    #[error("cannot create socket {path:?}: {source}")]
    Socket { path: PathBuf, source: io::Error },
    #[error("cannot set up the control loop: {0}")]
    Poll(#[source] io::Error),
}

/// A bound socket that nobody serves yet: clients may connect, and wait.
pub struct Endpoint {
    poll: Poll,
    listener: UnixListener,
    signals: Option<Signals>,
    doorbell: Arc<Doorbell>,
    limits: Limits,
    access: Arc<ArcSwap<Access>>,
    served: Arc<Served>,
    file: SocketFile,
}

impl Endpoint {
    /// Binds the socket `path`, replacing one that a dead daemon left behind. Those in the group `for_group`, if there is one of that
    /// name and we may give it away, may connect as well as we.
    ///
    /// # Errors
    /// One that a living daemon answers on is left alone, as is anything that is no socket.
    pub fn bind(path: impl Into<PathBuf>, for_group: Option<&str>, limits: Limits) -> Result<Endpoint, BindError> {
        let path = path.into();
        remove_stale(&path)?;
        let (mut listener, file) = match listen_on(&path, for_group.and_then(group)) {
            Ok(bound) => bound,
            Err(source) => return Err(BindError::Socket { path, source }),
        };
        let poll = Poll::new().map_err(BindError::Poll)?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE).map_err(BindError::Poll)?;
        let waker = mio::Waker::new(poll.registry(), DOORBELL).map_err(BindError::Poll)?;
        let doorbell = Arc::new(Doorbell { waker, rung: Mutex::default() });
        Ok(Endpoint {
            poll,
            listener,
            signals: None,
            doorbell,
            limits,
            access: Arc::default(),
            served: Arc::default(),
            file,
        })
    }

    /// Turns SIGTERM, SIGINT and SIGHUP into [`Turn`]s from now on, for the whole process.
    pub fn watch_signals(&mut self) -> io::Result<()> {
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
        self.poll.registry().register(&mut signals, SIGNALS, Interest::READABLE)?;
        self.signals = Some(signals);
        Ok(())
    }

    /// What other threads wake the server with.
    pub fn handle(&self) -> Handle {
        Handle(self.doorbell.clone())
    }

    /// Who may do what; what is stored there holds from then on, for those who are connected as well.
    pub fn access(&self) -> Arc<ArcSwap<Access>> {
        Arc::clone(&self.access)
    }

    /// What clients asked for so far.
    pub fn served(&self) -> Arc<Served> {
        Arc::clone(&self.served)
    }

    /// Serves these commands.
    pub fn serve(self, registry: Registry) -> Server {
        Server {
            endpoint: self,
            dispatch: registry.finish(),
            events: Events::with_capacity(128),
            sessions: BTreeMap::new(),
            next_session: FIRST_SESSION,
            ready: Vec::new(),
            accept_at: None,
        }
    }
}

/// Serves clients, on the thread that calls [`turn`](Server::turn). Dropping it closes all connections and removes the socket.
pub struct Server {
    endpoint: Endpoint,
    dispatch: Dispatch,
    events: Events,
    /// Ordered by age, so that each turn serves them in the same order.
    sessions: BTreeMap<usize, Session>,
    next_session: usize,
    /// Sessions that did not finish in their last turn.
    ready: Vec<usize>,
    /// When to accept without being told: there were too many, or an error that may pass.
    accept_at: Option<Instant>,
}

/// What happened in a turn that concerns the daemon.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// SIGTERM or SIGINT came.
    pub stop: bool,
    /// SIGHUP came.
    pub reload: bool,
}

impl Server {
    /// Waits until something happens, up to `timeout` (`None`: for ever), and serves it.
    ///
    /// It may return early with nothing done. Replies of commands that ended in this turn are on their way when it returns.
    ///
    /// # Errors
    /// Only if the poll itself fails; trouble with a client ends that client's connection.
    pub fn turn(&mut self, timeout: Option<Duration>) -> io::Result<Turn> {
        let patience = self.patience(timeout, Instant::now());
        match self.endpoint.poll.poll(&mut self.events, patience) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => self.events.clear(),
            result => result?,
        }
        let now = Instant::now();
        let mut turn = Turn::default();
        let mut accept = self.accept_at.is_some_and(|at| at <= now);
        let mut ready = std::mem::take(&mut self.ready);
        for event in &self.events {
            match event.token() {
                LISTENER => accept = true,
                SIGNALS => turn = self.endpoint.signals_came(),
                DOORBELL => {}
                Token(number) => ready.extend(note(&mut self.sessions, number, event)),
            }
        }
        if accept {
            self.accept(now, &mut ready);
        }
        ready.append(&mut self.endpoint.doorbell.take());
        ready.extend(self.sessions.iter().filter(|(_, session)| session.next_turn() <= now).map(|(number, _)| *number));
        ready.sort_unstable();
        ready.dedup();
        for number in ready {
            self.advance(number, now);
        }
        Ok(turn)
    }

    /// What other threads wake the server with.
    pub fn handle(&self) -> Handle {
        self.endpoint.handle()
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.endpoint.file.path
    }

    /// How long the poll may wait.
    fn patience(&self, timeout: Option<Duration>, now: Instant) -> Option<Duration> {
        if !self.ready.is_empty() {
            return Some(Duration::ZERO);
        }
        let turns = self.sessions.values().map(Session::next_turn).chain(self.accept_at);
        let until = turns.min().map(|at| at.saturating_duration_since(now));
        match (timeout, until) {
            (Some(timeout), Some(until)) => Some(timeout.min(until)),
            (timeout, until) => timeout.or(until),
        }
    }

    /// Accepts clients, as many as may be, and no more in a turn than may be at all.
    fn accept(&mut self, now: Instant, ready: &mut Vec<usize>) {
        self.accept_at = None;
        for _ in 0..self.endpoint.limits.connections {
            match self.endpoint.listener.accept() {
                Ok((stream, _)) => match self.open(stream, now) {
                    Ok(Some(number)) => ready.push(number),
                    Ok(None) => {
                        self.endpoint.served.turned_away.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) => log::warn!(target: "control", "cannot serve a connection: {error}"),
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {
                }
                Err(error) => {
                    log::warn!(target: "control", "cannot accept a connection: {error}");
                    self.accept_at = Some(now + TICK);
                    return;
                }
            }
        }
        self.accept_at = Some(now);
    }

    /// Makes a session of a connection, unless there are too many.
    fn open(&mut self, stream: UnixStream, now: Instant) -> io::Result<Option<usize>> {
        let limits = &self.endpoint.limits;
        if self.sessions.len() >= limits.connections {
            log::warn!(target: "control", "closing a new connection: there are {} already", self.sessions.len());
            return Ok(None);
        }
        let credentials = Credentials::of_peer(&stream)?;
        if !credentials.is_master() && self.sessions.len() >= limits.connections.div_ceil(4) * 3 {
            log::warn!(target: "control", "closing a new connection of {credentials}: the rest is kept for root");
            return Ok(None);
        }
        let number = self.next_session;
        let waker = Waker::from(Arc::new(Ring { doorbell: self.endpoint.doorbell.clone(), session: number }));
        let mut session = Session::new(
            stream,
            Peer::new(credentials, self.endpoint.access(), self.endpoint.served()),
            limits,
            waker,
            now,
        );
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.endpoint.poll.registry().register(session.source(), Token(number), interest)?;
        self.next_session += 1;
        self.endpoint.served.accepted.fetch_add(1, Ordering::Relaxed);
        self.sessions.insert(number, session);
        Ok(Some(number))
    }

    fn advance(&mut self, number: usize, now: Instant) {
        let backlog: usize = self.sessions.values().map(Session::backlog).sum();
        let room = self.endpoint.limits.output.saturating_sub(backlog);
        // A session may have ended since it was woken.
        let Some(session) = self.sessions.get_mut(&number) else { return };
        match session.advance(&self.dispatch, room, now) {
            After::Waits => {}
            After::Continues => self.ready.push(number),
            After::Ends => {
                let _ = self.endpoint.poll.registry().deregister(session.source());
                self.sessions.remove(&number);
            }
        }
    }
}

fn note(sessions: &mut BTreeMap<usize, Session>, number: usize, event: &Event) -> Option<usize> {
    sessions.get_mut(&number).map(|session| {
        session.note(event);
        number
    })
}

impl Endpoint {
    fn signals_came(&mut self) -> Turn {
        let mut turn = Turn::default();
        for signal in self.signals.iter_mut().flat_map(Signals::pending) {
            match signal {
                SIGHUP => turn.reload = true,
                _ => turn.stop = true,
            }
        }
        turn
    }
}

/// Wakes the server, from any thread.
#[derive(Clone)]
pub struct Handle(Arc<Doorbell>);

impl Handle {
    /// Lets the current or next [`Server::turn`] return soon.
    pub fn wake(&self) {
        self.0.ring();
    }
}

/// Where other threads leave word that a session can go on.
///
/// # Thread-safety
/// The number is left before the bell rings, and the server takes the numbers after it woke, so none is missed. The lock is held
/// for a push or a swap only.
struct Doorbell {
    waker: mio::Waker,
    rung: Mutex<Vec<usize>>,
}

impl Doorbell {
    fn ring(&self) {
        // An eventfd: this fails only if its counter is full, and then the server is awake anyway.
        let _ = self.waker.wake();
    }

    fn take(&self) -> Vec<usize> {
        std::mem::take(&mut *self.rung.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The waker of one session's commands.
struct Ring {
    doorbell: Arc<Doorbell>,
    session: usize,
}

impl Wake for Ring {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut rung = self.doorbell.rung.lock().unwrap_or_else(PoisonError::into_inner);
        if !rung.contains(&self.session) {
            rung.push(self.session);
        }
        drop(rung);
        self.doorbell.ring();
    }
}

/// The socket's name in the file system; removed on drop, unless somebody else has put theirs in its place.
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    fn at(path: &Path) -> io::Result<SocketFile> {
        Ok(SocketFile { path: path.to_owned(), identity: identity(path)? })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|there| there == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|meta| (meta.dev(), meta.ino()))
}

/// Removes a socket on which nobody listens.
fn remove_stale(path: &Path) -> Result<(), BindError> {
    let socket_error = |source| BindError::Socket { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(socket_error(error)),
        Ok(meta) if !meta.file_type().is_socket() => return Err(BindError::NotASocket { path: path.to_owned() }),
        Ok(_) => {}
    }
    // mio's connect does not block, should the other daemon be too busy to accept.
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(socket_error),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(socket_error(error)),
        _ => Err(BindError::InUse { path: path.to_owned() }),
    }
}

/// A listening socket. Nobody can connect before `listen`, so its file has the right mode from the moment it matters.
fn listen_on(path: &Path, group: Option<u32>) -> io::Result<(UnixListener, SocketFile)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    let file = SocketFile::at(path)?;
    let given = group.is_some_and(|group| chown(path, None, Some(group)).is_ok());
    let mode = if given { OWNER_AND_GROUP } else { OWNER_ONLY };
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    listen(&socket, BACKLOG)?;
    Ok((UnixListener::from_std(socket.into()), file))
}
