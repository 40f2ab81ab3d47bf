//! [`Exchange`]: one message of a client, and what comes back.
//!
//! ```text
//!   message ──► calls, one after the other ──► whole answer ───────────────────► bytes
//!   1.0: one    Running::Command ──────┬──────► Running::Pages: part by part ──►
//!   2.0: one, or a batch               └──────► Running::Work: progress, then ─►
//! ```
//!
//! A step makes at most one answer or part of one, and is taken only when the client has read what was made before. So memory
//! does not grow with the length of a dump or of a batch.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};

use offloadctl::protocol::{Message, Reply as Old, modern};
use serde::Serialize;
use serde_json::Value;

use super::answer::{Format, Pages, Progress};
use super::registry::{Dispatch, Failure, Outcome, Peer, Said};

pub(super) struct Exchange {
    style: Style,
    waiting: VecDeque<modern::Element>,
    current: Option<Current>,
}

/// How answers look.
enum Style {
    /// JSON-RPC 1.0, as Open vSwitch speaks it.
    Old,
    Modern,
    /// Answers of 2.0 in one array.
    Batch {
        /// An answer stands in the array already.
        begun: bool,
    },
}

/// A call that is not answered to its end.
struct Current {
    /// What the answer is to begin with; `None` when nobody wants one, or it has begun.
    id: Option<Value>,
    running: Running,
}

enum Running {
    Command(Outcome),
    Work { progress: Arc<Progress>, told: (u64, u64), outcome: Outcome },
    Pages { format: Format, rest: Option<Pages>, begun: bool },
}

/// What a step came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stepped {
    /// There may be something to send, and there is more to come.
    On,
    /// All is said.
    Done,
}

/// An answer broke off after some of it was said.
#[derive(Debug, thiserror::Error)]
#[error("an answer broke off: {0}")]
pub(super) struct Broken(String);

/// Answers the calls of a client, for as long as it is there.
pub(super) struct Answering<'a> {
    pub(super) dispatch: &'a Dispatch,
    pub(super) peer: &'a Arc<Peer>,
    /// An answer longer than this many bytes is replaced by an error.
    pub(super) room: usize,
}

impl Exchange {
    /// `None`: the message is no request.
    pub(super) fn new(message: Message) -> Option<Exchange> {
        let (style, waiting) = match message {
            Message::Request(request) => {
                let call = modern::Call { id: Some(request.id), method: request.method, params: request.params };
                (Style::Old, [Ok(call)].into())
            }
            Message::Modern(modern::Calls::Single(element)) => (Style::Modern, [element].into()),
            Message::Modern(modern::Calls::Batch(elements)) => (Style::Batch { begun: false }, elements.into()),
            Message::Notification { .. } | Message::Reply(_) => return None,
        };
        Some(Exchange { style, waiting, current: None })
    }

    /// How many calls the message holds that were not begun.
    pub(super) fn calls(&self) -> usize {
        self.waiting.len()
    }

    /// Goes on with the call at hand, or begins the next. `out` is where to put what the client is to read.
    pub(super) fn step(
        &mut self,
        answering: &Answering,
        context: &mut Context,
        out: &mut Vec<u8>,
    ) -> Poll<Result<Stepped, Broken>> {
        let Some(mut current) = self.current.take() else {
            match self.waiting.pop_front() {
                Some(Ok(call)) => {
                    let outcome = answering.dispatch.call(call.method, call.params, Arc::clone(answering.peer));
                    self.current = Some(Current { id: call.id, running: Running::Command(outcome) });
                }
                Some(Err(modern::Invalid { id, error })) => self.write(id, Err(error), usize::MAX, out),
                None => {
                    self.finish(out);
                    return Poll::Ready(Ok(Stepped::Done));
                }
            }
            return Poll::Ready(Ok(Stepped::On));
        };
        match &mut current.running {
            Running::Command(outcome) | Running::Work { outcome, .. } => match outcome.as_mut().poll(context) {
                Poll::Ready(outcome) => {
                    self.current = self.take(outcome, current.id, answering.room, out);
                    Poll::Ready(Ok(Stepped::On))
                }
                Poll::Pending => {
                    if let Running::Work { progress, told, .. } = &mut current.running
                        && answering.peer.wants_progress()
                    {
                        self.tell(progress, told, out);
                    }
                    self.current = Some(current);
                    Poll::Pending
                }
            },
            Running::Pages { format, rest, begun } => {
                let Some(pages) = rest else {
                    self.close(*format, out);
                    return Poll::Ready(Ok(Stepped::On));
                };
                match pages.as_mut().poll(context) {
                    Poll::Pending => {
                        self.current = Some(current);
                        Poll::Pending
                    }
                    Poll::Ready(Err(error)) => Poll::Ready(Err(Broken(error.to_string()))),
                    Poll::Ready(Ok(part)) => {
                        let (said, next) = part.into_inner();
                        put_part(*format, &said, begun, out);
                        *rest = next;
                        self.current = Some(current);
                        Poll::Ready(Ok(Stepped::On))
                    }
                }
            }
        }
    }

    /// Writes an answer, or its beginning; what is left to do of it.
    fn take(
        &mut self,
        outcome: Result<Said, Failure>,
        id: Option<Value>,
        room: usize,
        out: &mut Vec<u8>,
    ) -> Option<Current> {
        match (outcome, id) {
            (Ok(Said::Working(progress, outcome)), id) => {
                Some(Current { id, running: Running::Work { progress, told: (0, 0), outcome } })
            }
            (_, None) => None,
            (Ok(Said::Paged(format, part)), Some(id)) => {
                let (said, rest) = part.into_inner();
                self.open(&id, format, out);
                let mut begun = false;
                put_part(format, &said, &mut begun, out);
                Some(Current { id: None, running: Running::Pages { format, rest, begun } })
            }
            (Ok(Said::Whole(value)), Some(id)) => {
                self.write(id, Ok(value), room, out);
                None
            }
            (Err(Failure { code, message }), Some(id)) => {
                self.write(id, Err(modern::Error { code, message }), room, out);
                None
            }
        }
    }

    /// Writes a whole answer; an error in its place if it is longer than `room`.
    fn write(&mut self, id: Value, outcome: Result<Value, modern::Error>, room: usize, out: &mut Vec<u8>) {
        self.separate(out);
        let start = out.len();
        let modern = !matches!(self.style, Style::Old);
        let encode = |outcome: Result<Value, modern::Error>, out: &mut Vec<u8>| match modern {
            true => append(out, &Modern::new(&id, outcome)),
            false => {
                out.extend(Old { id: id.clone(), outcome: outcome.map_err(|error| error.message.into()) }.encode())
            }
        };
        encode(outcome, out);
        let size = out.len() - start;
        if size > room {
            *out = out[..start].to_vec(); // and gives the memory back
            let message =
                format!("the answer has {size} bytes, and {room} are free for answers: ask for less, or later");
            encode(Err(modern::Error { code: modern::FAILED, message }), out);
        }
    }

    /// Begins an answer that follows in parts.
    fn open(&mut self, id: &Value, format: Format, out: &mut Vec<u8>) {
        self.separate(out);
        out.extend(if let Style::Old = self.style { b"{\"id\":".as_slice() } else { b"{\"jsonrpc\":\"2.0\",\"id\":" });
        append(out, id);
        out.extend(b",\"result\":");
        out.push(if format == Format::Text { b'"' } else { b'[' });
    }

    /// Ends an answer that came in parts.
    fn close(&self, format: Format, out: &mut Vec<u8>) {
        out.push(if format == Format::Text { b'"' } else { b']' });
        out.extend(if let Style::Old = self.style { b",\"error\":null}".as_slice() } else { b"}" });
    }

    /// Says how far the work is, if that has changed.
    fn tell(&self, progress: &Progress, told: &mut (u64, u64), out: &mut Vec<u8>) {
        let now = progress.get();
        // Inside a batch's array there is no place for notifications.
        if now == *told || matches!(self.style, Style::Batch { .. }) {
            return;
        }
        *told = now;
        let version = if let Style::Old = self.style { "\"id\":null" } else { "\"jsonrpc\":\"2.0\"" };
        let (done, total) = now;
        out.extend(format!("{{{version},\"method\":\"progress\",\"params\":[{done},{total}]}}").bytes());
    }

    /// What stands before an answer.
    fn separate(&mut self, out: &mut Vec<u8>) {
        if let Style::Batch { begun } = &mut self.style {
            out.push(if std::mem::replace(begun, true) { b',' } else { b'[' });
        }
    }

    /// What stands behind all answers.
    fn finish(&mut self, out: &mut Vec<u8>) {
        if let Style::Batch { begun: true } = self.style {
            out.push(b']');
        }
    }
}

/// An answer of JSON-RPC 2.0.
#[derive(Serialize)]
struct Modern<'a> {
    jsonrpc: &'static str,
    id: &'a Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<modern::Error>,
}

impl Modern<'_> {
    fn new(id: &Value, outcome: Result<Value, modern::Error>) -> Modern<'_> {
        let (result, error) = match outcome {
            Ok(result) => (Some(result), None),
            Err(error) => (None, Some(modern::Error { message: error.message.trim_end().to_owned(), ..error })),
        };
        Modern { jsonrpc: "2.0", id, result, error }
    }
}

/// Adds a part of an answer: text inside the string that it is, or elements inside the array.
fn put_part(format: Format, said: &str, begun: &mut bool, out: &mut Vec<u8>) {
    if said.is_empty() {
        return;
    }
    match format {
        Format::Json => {
            if std::mem::replace(begun, true) {
                out.push(b',');
            }
            out.extend(said.as_bytes());
        }
        Format::Text => {
            let start = out.len();
            append(out, &said);
            // Its own quotation marks: the string was begun before, and does not end here.
            out.remove(start);
            out.pop();
        }
    }
}

fn append(out: &mut Vec<u8>, value: &impl Serialize) {
    // Writing to memory cannot fail, and no value here holds what JSON lacks (maps with keys other than strings).
    serde_json::to_writer(out, value).expect("answers are plain JSON values");
}
