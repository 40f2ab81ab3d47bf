//! [`Scrape`]: metrics over HTTP, for whoever scrapes them: `GET /metrics`, one request a connection (RFC 9112).
//!
//! It has a thread of its own, so that neither a slow scraper nor a hostile one costs the control socket anything. Each client may
//! send so many bytes and take so long; there may be so many clients; the rest are turned away.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use mio::{Events, Interest, Poll, Token};

/// Clients at a time.
const CLIENTS: usize = 16;
/// The longest request, its headers included.
const REQUEST_BYTES: usize = 8 * 1024;
/// The most headers of one.
const HEADERS: usize = 64;
/// How long a client may take, from its connection to its last byte.
const PATIENCE: Duration = Duration::from_secs(10);

const STOP: Token = Token(0);
const LISTENER: Token = Token(1);
const FIRST_CLIENT: usize = 2;

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// Of this machine only.
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// Why a text is no address to listen on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    #[error("{0:?}: expected a loopback address with a port, such as 127.0.0.1:9464, or the path of a socket")]
    Syntax(String),
    #[error(
        "{0} can be reached from outside; expected a loopback address, such as 127.0.0.1:9464 (a proxy can serve others)"
    )]
    NotLoopback(SocketAddr),
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Address, AddressError> {
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() => Ok(Address::Tcp(address)),
            Ok(address) => Err(AddressError::NotLoopback(address)),
            Err(_) if text.starts_with('/') => Ok(Address::Unix(text.into())),
            Err(_) => Err(AddressError::Syntax(text.to_owned())),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => address.fmt(f),
            Address::Unix(path) => path.display().fmt(f),
        }
    }
}

/// A thread that answers scrapers; it ends when this is dropped.
pub struct Scrape {
    stop: Arc<mio::Waker>,
    thread: Option<JoinHandle<()>>,
    /// To be removed in the end.
    file: Option<PathBuf>,
}

/// What scrapers get.
pub type Page = Box<dyn Fn() -> String + Send>;

impl Scrape {
    /// Listens on `address` and answers with what `page` makes each time.
    ///
    /// # Errors
    /// The address cannot be had.
    pub fn start(address: &Address, page: Page) -> io::Result<Scrape> {
        let poll = Poll::new()?;
        let stop = Arc::new(mio::Waker::new(poll.registry(), STOP)?);
        let (mut listener, file) = match address {
            Address::Tcp(address) => (Listener::Tcp(TcpListener::bind(*address)?), None),
            Address::Unix(path) => {
                // Of a daemon that was killed; one that lives would answer.
                let is_socket = fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
                let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
                if is_socket && UnixStream::connect(path).is_err_and(refused) {
                    fs::remove_file(path)?;
                }
                (Listener::Unix(UnixListener::bind(path)?), Some(path.clone()))
            }
        };
        match &mut listener {
            Listener::Tcp(socket) => poll.registry().register(socket, LISTENER, Interest::READABLE)?,
            Listener::Unix(socket) => poll.registry().register(socket, LISTENER, Interest::READABLE)?,
        }
        let server = Server { poll, listener, page, clients: BTreeMap::new(), next: FIRST_CLIENT };
        let thread = thread::Builder::new().name("metrics".into()).spawn(move || server.run())?;
        Ok(Scrape { stop, thread: Some(thread), file })
    }
}

impl Drop for Scrape {
    fn drop(&mut self) {
        // An eventfd that is full wakes as well.
        let _ = self.stop.wake();
        let _ = self.thread.take().map(JoinHandle::join);
        let _ = self.file.take().map(fs::remove_file);
    }
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

struct Server {
    poll: Poll,
    listener: Listener,
    page: Page,
    clients: BTreeMap<usize, Client>,
    next: usize,
}

/// A connection: it sends a request, and reads an answer.
struct Client {
    stream: Stream,
    request: Vec<u8>,
    /// What is to be sent, and how much of it was; `None` before the request is whole.
    answer: Option<(Vec<u8>, usize)>,
    until: Instant,
}

impl Server {
    fn run(mut self) {
        let mut events = Events::with_capacity(64);
        loop {
            let now = Instant::now();
            let until = self.clients.values().map(|client| client.until).min();
            match self.poll.poll(&mut events, until.map(|until| until.saturating_duration_since(now))) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return log::error!(target: "control", "metrics are not served any more: {error}"),
                Ok(()) => {}
            }
            let now = Instant::now();
            for event in &events {
                match event.token() {
                    STOP => return,
                    LISTENER => self.accept(now),
                    Token(number) => self.serve(number),
                }
            }
            self.clients.retain(|_, client| client.until > now);
        }
    }

    fn accept(&mut self, now: Instant) {
        loop {
            let accepted = match &self.listener {
                Listener::Tcp(listener) => listener.accept().map(|(stream, _)| Stream::Tcp(stream)),
                Listener::Unix(listener) => listener.accept().map(|(stream, _)| Stream::Unix(stream)),
            };
            // Whatever is wrong with one, the next event tells of the next.
            let Ok(stream) = accepted else { return };
            if self.clients.len() >= CLIENTS {
                continue;
            }
            let mut client = Client { stream, request: Vec::new(), answer: None, until: now + PATIENCE };
            let (interest, token) = (Interest::READABLE | Interest::WRITABLE, Token(self.next));
            let registry = self.poll.registry();
            let registered = match &mut client.stream {
                Stream::Tcp(stream) => registry.register(stream, token, interest),
                Stream::Unix(stream) => registry.register(stream, token, interest),
            };
            if registered.is_ok() {
                self.clients.insert(self.next, client);
                self.next += 1;
            }
        }
    }

    fn serve(&mut self, number: usize) {
        let Some(client) = self.clients.get_mut(&number) else { return };
        // An error ends the connection as its end does.
        if client.go_on(&self.page).unwrap_or(true) {
            self.clients.remove(&number);
        }
    }
}

impl Client {
    /// Goes on as far as it can; whether it is over.
    fn go_on(&mut self, page: &Page) -> io::Result<bool> {
        if self.answer.is_none() {
            match self.read()? {
                Heard::Nothing => return Ok(false),
                Heard::End => return Ok(true),
                Heard::Request(answer) => self.answer = Some((answer(page), 0)),
            }
        }
        let Some((bytes, sent)) = &mut self.answer else { return Ok(false) };
        while *sent < bytes.len() {
            match self.stream.write(&bytes[*sent..]) {
                Ok(length) => *sent += length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn read(&mut self) -> io::Result<Heard> {
        let mut piece = [0; 2_048];
        loop {
            match self.stream.read(&mut piece) {
                Ok(0) => return Ok(Heard::End),
                Ok(length) => self.request.extend_from_slice(&piece[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Heard::Nothing),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            if let Some(answer) = answer_to(&self.request) {
                return Ok(Heard::Request(answer));
            }
        }
    }
}

enum Heard {
    /// Not enough yet.
    Nothing,
    /// It will say no more.
    End,
    Request(fn(&Page) -> Vec<u8>),
}

/// What to answer; `None` while the request is not whole.
fn answer_to(request: &[u8]) -> Option<fn(&Page) -> Vec<u8>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    Some(match parsed.parse(request) {
        Ok(httparse::Status::Partial) if request.len() < REQUEST_BYTES => return None,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            |_| response("431 Request Header Fields Too Large", "too long\n", true)
        }
        Err(_) => |_| response("400 Bad Request", "no HTTP\n", true),
        Ok(httparse::Status::Complete(_)) => {
            let path = parsed.path.unwrap_or_default().split('?').next().unwrap_or_default();
            match (parsed.method.unwrap_or_default(), path) {
                ("GET", "/metrics") => |page| response("200 OK", &page(), true),
                ("HEAD", "/metrics") => |page| response("200 OK", &page(), false),
                (_, "/metrics") => |_| response("405 Method Not Allowed", "GET or HEAD\n", true),
                ("HEAD", _) => |_| response("404 Not Found", "there is /metrics\n", false),
                _ => |_| response("404 Not Found", "there is /metrics\n", true),
            }
        }
    })
}

fn response(status: &str, body: &str, with_body: bool) -> Vec<u8> {
    let allow = if status.starts_with("405") { "Allow: GET, HEAD\r\n" } else { "" };
    let mut response = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\n{allow}Connection: close\r\n\r\n",
        body.len()
    );
    if with_body {
        response.push_str(body);
    }
    response.into_bytes()
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.read(into),
            Stream::Unix(stream) => stream.read(into),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.write(bytes),
            Stream::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream as Client;

    use super::*;

    /// What a client gets that sends `request`, from a server on a socket of its own.
    fn exchange(request: &[u8]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m");
        let scrape = Scrape::start(&Address::Unix(path.clone()), Box::new(|| "a 1\n".repeat(100_000))).unwrap();
        let mut client = Client::connect(&path).unwrap();
        // The server may have answered and closed before all is sent.
        let _ = client.write_all(request);
        let mut answer = String::new();
        let _ = client.read_to_string(&mut answer);
        drop(scrape);
        assert!(!path.exists(), "the socket goes with its server");
        answer
    }

    #[test]
    fn whoever_asks_for_the_page_gets_it_whole() {
        let answer = exchange(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("Content-Length: 400000"), "{head}");
        assert_eq!(body.len(), 400_000);
        assert!(exchange(b"HEAD /metrics?x HTTP/1.1\r\n\r\n").ends_with("Connection: close\r\n\r\n"));
    }

    #[test]
    fn everything_else_is_refused_by_its_name() {
        for (request, status) in [
            ("GET / HTTP/1.1\r\n\r\n", "404 Not Found"),
            ("POST /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
            ("nonsense\r\n\r\n", "400 Bad Request"),
            (&format!("GET /metrics HTTP/1.1\r\nx: {}", "y".repeat(9_000)), "431 Request Header Fields Too Large"),
            (
                &format!("GET /metrics HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(100)),
                "431 Request Header Fields Too Large",
            ),
        ] {
            assert!(exchange(request.as_bytes()).starts_with(&format!("HTTP/1.1 {status}\r\n")), "{request:.40}");
        }
    }

    #[test]
    fn many_who_say_nothing_do_not_keep_others_out_for_long_and_cost_no_more_than_their_places() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m");
        let _scrape = Scrape::start(&Address::Unix(path.clone()), Box::new(|| "a 1\n".into())).unwrap();
        let silent: Vec<Client> = (0..CLIENTS).map(|_| Client::connect(&path).unwrap()).collect();
        let mut turned_away = Client::connect(&path).unwrap();
        assert_eq!(turned_away.read(&mut [0; 10]).unwrap(), 0);
        drop(silent);
        let begun = Instant::now();
        loop {
            let mut client = Client::connect(&path).unwrap();
            let _ = client.write_all(b"GET /metrics HTTP/1.1\r\n\r\n");
            let mut answer = String::new();
            if client.read_to_string(&mut answer).is_ok() && answer.ends_with("a 1\n") {
                break;
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "the places are still taken");
        }
    }

    #[test]
    fn only_this_machine_may_be_served() {
        assert_eq!("127.0.0.1:1".parse(), Ok(Address::Tcp(([127, 0, 0, 1], 1).into())));
        assert!(matches!("[::1]:9".parse(), Ok(Address::Tcp(_))) && matches!("/run/x".parse(), Ok(Address::Unix(_))));
        let refused = |text: &str| text.parse::<Address>().unwrap_err().to_string();
        assert!(refused("0.0.0.0:9464").starts_with("0.0.0.0:9464 can be reached from outside"));
        assert!(refused("9464").contains("expected a loopback address with a port"));
    }
}
