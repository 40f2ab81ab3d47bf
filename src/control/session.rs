//! [`Session`]: one client's connection.
//!
//! ```text
//!             ┌────────── a message at a time ──────────┐
//!  socket ──► frames ──► exchange ──────────► output ──► socket
//!   stop reading while ◄────┴───────────────────┘ there is either
//! ```
//!
//! So replies come in order, and a client that sends without reading fills its own socket's buffers, not our memory: a session
//! holds at most one unfinished message and one answer, or one part of a long one.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::net::UnixStream;
use offloadctl::frames::{FrameError, Frames};

use super::exchange::{Answering, Broken, Exchange, Stepped};
use super::registry::{Dispatch, Peer};
use super::server::{Limits, TICK};

/// How many steps a session takes before others have their turn.
const STEPS_PER_TURN: usize = 16;

/// How much one step reads.
const READ_BYTES: usize = 16 * 1024;

/// An output buffer that outgrew this many bytes is given back when all is sent.
const KEEP_BYTES: usize = 64 * 1024;

pub(super) struct Session {
    stream: UnixStream,
    /// The kernel reported data and has not yet said that there is no more (reports are edge-triggered).
    readable: bool,
    /// The client will send no more.
    ended: bool,
    /// The client has gone and will read nothing.
    gone: bool,
    frames: Frames,
    exchange: Option<Exchange>,
    /// When to go on with the exchange even if nobody woke us; that is what drives [`super::deadline`].
    ask_again: Instant,
    output: Output,
    peer: Arc<Peer>,
    /// Queues this session for the server's next turn.
    waker: Waker,
    /// When something last moved.
    active: Instant,
    idle: Duration,
    /// Calls that one message may hold.
    batch: usize,
}

/// Bytes for the client.
#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
    sent: usize,
}

/// How a session is left after its turn.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum After {
    /// It waits for the client, or for a command's answer.
    Waits,
    /// It has more to do, and lets others go first.
    Continues,
    /// It is over.
    Ends,
}

/// What a step came to.
enum Step {
    Progress,
    Blocked,
    End,
}

/// Why a session is cut off.
#[derive(Debug, thiserror::Error)]
enum Cut {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Broken(#[from] Broken),
    #[error("the message is no request")]
    NoRequest,
    #[error("a batch of {calls} calls; at most {most} may be in one")]
    TooMany { calls: usize, most: usize },
}

impl Session {
    pub(super) fn new(stream: UnixStream, peer: Peer, limits: &Limits, waker: Waker, now: Instant) -> Session {
        Session {
            stream,
            readable: true,
            ended: false,
            gone: false,
            frames: Frames::new(limits.request),
            exchange: None,
            ask_again: now,
            output: Output::default(),
            peer: Arc::new(peer),
            waker,
            active: now,
            idle: limits.idle,
            batch: limits.batch,
        }
    }

    /// The connection, for the poll's registry.
    pub(super) fn source(&mut self) -> &mut UnixStream {
        &mut self.stream
    }

    /// Takes note of what the kernel reports.
    pub(super) fn note(&mut self, event: &Event) {
        self.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
        self.gone |= event.is_write_closed() || event.is_error();
    }

    /// When the session wants a turn even if nothing happens.
    pub(super) fn next_turn(&self) -> Instant {
        if self.waits_for_client() { self.active + self.idle } else { self.ask_again }
    }

    /// Whether it is the client's turn, to send or to read.
    fn waits_for_client(&self) -> bool {
        self.exchange.is_none() || self.backlog() > 0
    }

    /// How many bytes wait for the client to read.
    pub(super) fn backlog(&self) -> usize {
        self.output.bytes.len() - self.output.sent
    }

    /// Goes on as far as it can, up to a fair share of steps. An answer longer than `room` is replaced by an error.
    pub(super) fn advance(&mut self, dispatch: &Dispatch, room: usize, now: Instant) -> After {
        if self.waits_for_client() && now >= self.active + self.idle {
            log::debug!(target: "control", "closing a connection idle for {}", humantime::format_duration(self.idle));
            return After::Ends;
        }
        for _ in 0..STEPS_PER_TURN {
            match self.step(dispatch, room, now) {
                Ok(Step::Progress) => self.active = now,
                Ok(Step::Blocked) => return After::Waits,
                Ok(Step::End) => return After::Ends,
                Err(cut) => {
                    log::debug!(target: "control", "closing a connection: {cut}");
                    return After::Ends;
                }
            }
        }
        After::Continues
    }

    /// Does the one thing that comes next: first get rid of output, then of the command, then take a request, then read.
    fn step(&mut self, dispatch: &Dispatch, room: usize, now: Instant) -> Result<Step, Cut> {
        if self.backlog() > 0 {
            return Ok(self.output.send(&mut self.stream)?);
        }
        if let Some(exchange) = &mut self.exchange {
            self.ask_again = now + TICK;
            let answering = Answering { dispatch, peer: &self.peer, room };
            return match exchange.step(&answering, &mut Context::from_waker(&self.waker), &mut self.output.bytes) {
                Poll::Ready(stepped) => {
                    if stepped? == Stepped::Done {
                        self.exchange = None;
                    }
                    Ok(Step::Progress)
                }
                Poll::Pending if self.backlog() > 0 => Ok(Step::Progress),
                Poll::Pending if self.gone => Ok(Step::End),
                Poll::Pending => Ok(Step::Blocked),
            };
        }
        match self.frames.take()? {
            Some(message) => {
                let exchange = Exchange::new(message).ok_or(Cut::NoRequest)?;
                let (calls, most) = (exchange.calls(), self.batch);
                if calls > most {
                    return Err(Cut::TooMany { calls, most });
                }
                self.exchange = Some(exchange);
                self.ask_again = now;
                Ok(Step::Progress)
            }
            None if self.ended => Ok(Step::End),
            None if !self.readable => Ok(Step::Blocked),
            None => Ok(self.read()?),
        }
    }

    fn read(&mut self) -> io::Result<Step> {
        let mut piece = [0; READ_BYTES];
        match self.stream.read(&mut piece) {
            Ok(0) => self.ended = true,
            Ok(length) => self.frames.push(&piece[..length]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                return Ok(Step::Blocked);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        Ok(Step::Progress)
    }
}

impl Output {
    fn send(&mut self, stream: &mut UnixStream) -> io::Result<Step> {
        match stream.write(&self.bytes[self.sent..]) {
            Ok(length) => self.sent += length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Step::Blocked),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if self.sent == self.bytes.len() {
            self.bytes.clear();
            self.sent = 0;
            if self.bytes.capacity() > KEEP_BYTES {
                self.bytes = Vec::new();
            }
        }
        Ok(Step::Progress)
    }
}
