//! [`Client`]: one connection to a daemon, one call at a time, each within a time limit.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde_json::Value;

use crate::frames::{FrameError, Frames};
use crate::protocol::{Message, Request};

/// A longer reply is refused. It is far beyond any dump, and keeps a mad server from eating all memory.
const MAX_REPLY_BYTES: usize = 1 << 30;

/// A connection to a daemon's control socket.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    frames: Frames,
    next_id: u64,
    deadline: Option<Instant>,
}

/// Why a call brought no result.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("cannot connect to {path:?}: {source}{}", hint(source))]
    Connect { path: PathBuf, source: io::Error },
    #[error("no answer within the time limit")]
    TimedOut,
    #[error("the server closed the connection without an answer")]
    Closed,
    #[error("connection lost: {0}")]
    Io(#[source] io::Error),
    #[error("protocol error: {0}")]
    Protocol(#[from] FrameError),
    /// The server understood the call and says that it failed.
    #[error("{0}")]
    Server(String),
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => " (is the daemon running?)",
        io::ErrorKind::PermissionDenied => " (it is for root, the daemon's user and the members of its group)",
        _ => "",
    }
}

impl Client {
    /// Connects to the socket `path`. `deadline` bounds this and all calls; without one they may take for ever.
    pub fn connect(path: &Path, deadline: Option<Instant>) -> Result<Client, ClientError> {
        match open(path, deadline) {
            Ok(stream) => Ok(Client { stream, frames: Frames::new(MAX_REPLY_BYTES), next_id: 0, deadline }),
            Err(source) if timed_out(&source) => Err(ClientError::TimedOut),
            Err(source) => Err(ClientError::Connect { path: path.to_owned(), source }),
        }
    }

    /// From now on, calls are given up at `deadline`.
    pub fn set_deadline(&mut self, deadline: Instant) {
        self.deadline = Some(deadline);
    }

    /// Calls `method` and waits for its result: text, or what JSON value the server answers.
    ///
    /// After an error other than [`ClientError::Server`] the connection is of no more use.
    pub fn call(&mut self, method: &str, args: &[String]) -> Result<Value, ClientError> {
        self.call_and_watch(method, args, &mut |_, _| ())
    }

    /// The same; `progress` is told how much is done, and of how much, where the server says so (`set-options --progress`).
    pub fn call_and_watch(
        &mut self,
        method: &str,
        args: &[String],
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Value, ClientError> {
        let request = Request::new(self.next_id, method, args);
        self.next_id += 1;
        self.send(&request.encode())?;
        loop {
            match self.receive()? {
                Message::Reply(reply) if reply.id == request.id => {
                    return reply.outcome.map_err(|error| match error {
                        Value::String(text) => ClientError::Server(text),
                        other => ClientError::Server(other.to_string()),
                    });
                }
                Message::Notification { method, params } if method == "progress" => {
                    if let [done, total] = params.as_slice() {
                        progress(done.as_u64().unwrap_or(0), total.as_u64().unwrap_or(0));
                    }
                }
                // Another notification, or an answer to something else: not for us.
                _ => continue,
            }
        }
    }

    fn send(&mut self, mut bytes: &[u8]) -> Result<(), ClientError> {
        while !bytes.is_empty() {
            self.stream.set_write_timeout(time_left(self.deadline)?).map_err(ClientError::Io)?;
            match self.stream.write(bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(error) => self.give_up(error)?,
            }
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<Message, ClientError> {
        let mut piece = [0; 64 * 1024];
        loop {
            if let Some(message) = self.frames.take()? {
                return Ok(message);
            }
            self.stream.set_read_timeout(time_left(self.deadline)?).map_err(ClientError::Io)?;
            match self.stream.read(&mut piece) {
                Ok(0) => return Err(ClientError::Closed),
                Ok(length) => self.frames.push(&piece[..length]),
                Err(error) => self.give_up(error)?,
            }
        }
    }

    /// What a failed read or write means; nothing, if it was merely interrupted or the deadline is yet to come.
    fn give_up(&self, error: io::Error) -> Result<(), ClientError> {
        match error.kind() {
            io::ErrorKind::Interrupted => Ok(()),
            _ if timed_out(&error) => time_left(self.deadline).map(|_| ()),
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Err(ClientError::Closed),
            _ => Err(ClientError::Io(error)),
        }
    }
}

/// Opens the connection; a server with a full backlog is waited for until the deadline, which std's `connect` could not do.
fn open(path: &Path, deadline: Option<Instant>) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let left = time_left(deadline).map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
    set_socket_timeout(&socket, Timeout::Send, left)?;
    connect(&socket, &address)?;
    Ok(UnixStream::from(socket))
}

/// The time until the deadline, never zero, which would mean "for ever".
fn time_left(deadline: Option<Instant>) -> Result<Option<Duration>, ClientError> {
    match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
        Some(left) if left.is_zero() => Err(ClientError::TimedOut),
        left => Ok(left),
    }
}

fn timed_out(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    /// What a client makes of a server that reads one request and answers `reply`, then closes.
    fn answered_with(reply: &'static str) -> Result<Value, ClientError> {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 1000]).unwrap();
            stream.write_all(reply.as_bytes()).unwrap();
        });
        let deadline = Instant::now() + Duration::from_secs(20);
        let result = Client::connect(&path, Some(deadline)).unwrap().call("m", &[]);
        server.join().unwrap();
        result
    }

    #[test]
    fn both_shapes_of_replies_are_understood() {
        assert_eq!(answered_with(r#"{"id":0,"result":"x","error":null}"#).unwrap(), "x");
        assert_eq!(answered_with(r#"{"id":0,"result":"x"}"#).unwrap(), "x");
        for error in [r#"{"id":0,"error":"no"}"#, r#"{"id":0,"result":null,"error":"no"}"#] {
            assert!(matches!(answered_with(error), Err(ClientError::Server(text)) if text == "no"));
        }
        assert!(
            matches!(answered_with(r#"{"id":0,"error":{"a":1}}"#), Err(ClientError::Server(text)) if text == "{\"a\":1}")
        );
    }

    #[test]
    fn what_is_not_the_answer_is_skipped_and_nonsense_refused() {
        let skipped = r#"{"id":null,"method":"update","params":[]} {"id":"0","result":"no"}{"id":0,"result":"yes"}"#;
        assert_eq!(answered_with(skipped).unwrap(), "yes");
        assert!(matches!(answered_with(r#"{"id":1,"result":"x"}"#), Err(ClientError::Closed)));
        assert!(matches!(answered_with(""), Err(ClientError::Closed)));
        for nonsense in
            ["HTTP/1.1 400", r#"{"id":0,"result":null}"#, r#"{"id":0,"result":1,"error":"x"}"#, r#"{"id":0,"x":1}"#]
        {
            assert!(matches!(answered_with(nonsense), Err(ClientError::Protocol(_))), "{nonsense}");
        }
    }

    #[test]
    fn a_silent_or_busy_server_is_left_at_the_deadline() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("s");
        // Nobody accepts: connecting succeeds until the backlog is full, and then must not hang either.
        let _listener = UnixListener::bind(&path).unwrap();
        let deadline = || Some(Instant::now() + Duration::from_millis(30));
        let mut waiting = Vec::new();
        loop {
            match Client::connect(&path, deadline()) {
                Ok(mut client) => {
                    if waiting.is_empty() {
                        assert!(matches!(client.call("m", &[]), Err(ClientError::TimedOut)));
                    }
                    waiting.push(client);
                }
                Err(error) => {
                    assert!(matches!(error, ClientError::TimedOut), "{error}");
                    break;
                }
            }
            assert!(waiting.len() < 100_000, "the backlog has no end");
        }
    }

    #[test]
    fn a_socket_that_is_not_there_is_named() {
        let error = Client::connect(Path::new("/nonexistent/x.ctl"), None).unwrap_err().to_string();
        assert_eq!(
            error,
            "cannot connect to \"/nonexistent/x.ctl\": No such file or directory (os error 2) (is the daemon running?)"
        );
    }
}
