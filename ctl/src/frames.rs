//! [`Frames`]: cuts a byte stream into the JSON objects (or arrays, in JSON-RPC 2.0) it is made of.
//!
//! The protocol puts nothing between two objects, so an object's end is found by counting braces outside strings. Each byte is
//! looked at once for that, however small the pieces in which it arrives; a parser is then given whole objects only.

use serde::de::IgnoredAny;

use crate::protocol::{Malformed, Message};

/// How deep arrays and objects may nest, the message itself included. serde_json refuses to go deeper than this, too.
pub const MAX_NESTING: usize = 127;

/// A buffer that outgrew this many bytes is given back when it runs empty.
const KEEP_BYTES: usize = 64 * 1024;

/// Received bytes that were not yet taken as messages.
///
/// ```text
///  buffer   ……taken……│{"id":0,"method":"ver│
///                    start                 scanned = end of what was looked at
/// ```
#[derive(Debug)]
pub struct Frames {
    buffer: Vec<u8>,
    start: usize,
    scanned: usize,
    scan: Scan,
    /// The length of the unfinished object when it was last checked for being JSON so far.
    checked: usize,
    limit: usize,
}

/// Where in an object the scan stands.
#[derive(Debug, Default, Clone, Copy)]
struct Scan {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

/// Why a stream of bytes cannot be understood any further.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("expected a JSON object or array, found byte 0x{0:02x}")]
    NotAnObject(u8),
    #[error("message is longer than {0} bytes")]
    TooLong(usize),
    #[error("message nests deeper than {MAX_NESTING} levels")]
    TooDeep,
    #[error("not JSON: {0}")]
    NotJson(serde_json::Error),
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

impl Frames {
    /// No bytes yet. A message longer than `limit` bytes is an error.
    pub fn new(limit: usize) -> Frames {
        Frames { buffer: Vec::new(), start: 0, scanned: 0, scan: Scan::default(), checked: 0, limit }
    }

    /// Appends what was received.
    ///
    /// The buffer holds at most `limit` bytes and one such piece, if the caller takes all messages before it appends again.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.scanned -= self.start;
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Takes the next whole message; `None` means that more bytes are needed.
    ///
    /// # Errors
    /// After an error the rest of the stream means nothing: the connection is to be closed.
    pub fn take(&mut self) -> Result<Option<Message>, FrameError> {
        self.skip_whitespace()?;
        while let Some(&byte) = self.buffer.get(self.scanned) {
            self.scanned += 1;
            let ended = self.scan.step(byte)?;
            if self.scanned - self.start > self.limit {
                return Err(FrameError::TooLong(self.limit));
            }
            if ended {
                let object = &self.buffer[self.start..self.scanned];
                let message = Message::decode(object)?;
                self.start = self.scanned;
                self.checked = 0;
                self.release_if_empty();
                return Ok(Some(message));
            }
        }
        self.check_unfinished()?;
        self.release_if_empty();
        Ok(None)
    }

    /// How many received bytes wait for the rest of their message.
    pub fn pending(&self) -> usize {
        self.buffer.len() - self.start
    }

    fn skip_whitespace(&mut self) -> Result<(), FrameError> {
        while self.scan.depth == 0 {
            match self.buffer.get(self.start) {
                Some(b' ' | b'\t' | b'\r' | b'\n') => self.start += 1,
                Some(b'{' | b'[') | None => break,
                Some(&other) => return Err(FrameError::NotAnObject(other)),
            }
            self.scanned = self.start;
        }
        Ok(())
    }

    /// Refuses an unfinished object that can no longer become JSON, so that a confused peer is not waited for.
    ///
    /// It is parsed again only when it has doubled since: all checks together cost no more than two passes over it.
    fn check_unfinished(&mut self) -> Result<(), FrameError> {
        let pending = &self.buffer[self.start..];
        if pending.is_empty() || pending.len() < 2 * self.checked {
            return Ok(());
        }
        self.checked = pending.len();
        match parse_unfinished(pending) {
            // To the parser, a number that is cut off is wrong; with another digit it is one.
            Err(error) => parse_unfinished(&[pending, b"0"].concat()).map_err(|_| FrameError::NotJson(error)),
            Ok(()) => Ok(()),
        }
    }

    fn release_if_empty(&mut self) {
        if self.pending() == 0 {
            self.buffer.clear();
            self.start = 0;
            self.scanned = 0;
            if self.buffer.capacity() > KEEP_BYTES {
                self.buffer = Vec::new();
            }
        }
    }
}

/// # Errors
/// Whatever follows `text`, it is not the beginning of JSON.
fn parse_unfinished(text: &[u8]) -> serde_json::Result<()> {
    match serde_json::Deserializer::from_slice(text).into_iter::<IgnoredAny>().next() {
        Some(Err(error)) if !error.is_eof() => Err(error),
        _ => Ok(()),
    }
}

impl Scan {
    /// Goes over one byte; true if it ended the object.
    fn step(&mut self, byte: u8) -> Result<bool, FrameError> {
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return Ok(false);
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => {
                self.depth += 1;
                if self.depth > MAX_NESTING {
                    return Err(FrameError::TooDeep);
                }
            }
            b'}' | b']' => {
                self.depth -= 1; // not below 0: the object's first byte raised it, and the scan ends where it is 0 again
                return Ok(self.depth == 0);
            }
            _ => {}
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn methods(frames: &mut Frames) -> Vec<String> {
        let mut methods = Vec::new();
        while let Some(message) = frames.take().unwrap() {
            match message {
                Message::Request(request) => methods.push(request.method),
                other => panic!("{other:?}"),
            }
        }
        methods
    }

    #[test]
    fn objects_are_found_whatever_the_pieces_they_arrive_in() {
        let text = " {\"id\":0,\"method\":\"a{\\\"}\",\"params\":[\"ü]\\\\\"]}\n{\"id\":1,\"method\":\"b\",\"params\":[]}{\"id\":2,\"method\":\"c\",\"params\":[]} ";
        for size in 1..=text.len() {
            let mut frames = Frames::new(1000);
            let mut found = Vec::new();
            for piece in text.as_bytes().chunks(size) {
                frames.push(piece);
                found.extend(methods(&mut frames));
            }
            assert_eq!(found, ["a{\"}", "b", "c"], "in pieces of {size}");
            assert_eq!(frames.pending(), 0);
        }
    }

    #[test]
    fn an_object_that_is_cut_off_anywhere_is_waited_for() {
        let text = "{\"id\":0,\"method\":\"a-\",\"params\":[-1.25e-3,0.5E+10,true,false,null,\"ü\\u00e9\"]}";
        for end in 0..text.len() {
            let mut frames = Frames::new(1000);
            frames.push(&text.as_bytes()[..end]);
            let taken = frames.take();
            assert!(matches!(taken, Ok(None)), "{:?}: {taken:?}", &text.as_bytes()[..end].escape_ascii().to_string());
        }
    }

    #[test]
    fn what_cannot_become_an_object_is_refused_before_it_ends() {
        for text in ["x", "]", "[,", "12", "\"a\"", "{]", "{\"a\" 1", "{,", "{\"id\":0,,"] {
            let mut frames = Frames::new(1000);
            frames.push(text.as_bytes());
            assert!(frames.take().is_err(), "{text}");
        }
    }

    #[test]
    fn length_and_depth_are_bounded() {
        let mut frames = Frames::new(100);
        frames.push(b"{\"id\":\"");
        frames.push(&[b'x'; 200]);
        assert!(matches!(frames.take(), Err(FrameError::TooLong(100))));

        let nested = |depth: usize| {
            // The message and its params are two levels themselves.
            let inner = "[".repeat(depth - 2) + &"]".repeat(depth - 2);
            let mut frames = Frames::new(1000);
            frames.push(format!("{{\"id\":0,\"method\":\"m\",\"params\":[{inner}]}}").as_bytes());
            frames.take()
        };
        assert!(nested(MAX_NESTING).is_ok());
        assert!(matches!(nested(MAX_NESTING + 1), Err(FrameError::TooDeep)));
    }

    #[test]
    fn a_message_that_trickles_in_byte_by_byte_is_not_parsed_over_and_over() {
        let text = format!("{{\"id\":0,\"method\":\"m\",\"params\":[\"{}\"]}}", "x".repeat(1 << 20));
        let mut frames = Frames::new(2 << 20);
        let mut found = Vec::new();
        for piece in text.as_bytes().chunks(1) {
            frames.push(piece); // quadratic work would need 10^12 steps here
            found.extend(methods(&mut frames));
        }
        assert_eq!(found, ["m"]);
        assert!(frames.buffer.capacity() <= KEEP_BYTES, "a large buffer is given back");
    }
}
