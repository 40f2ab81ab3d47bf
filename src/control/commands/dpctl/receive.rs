//! `netdev-dummy/*`: packets and wires by hand.

use serde_json::json;

use super::Result;
use crate::control::answer::{Answer, CommandError};
use crate::daemon::Daemon;
use crate::datapath::switch::Names;
use crate::flow::text::{self, PortNames as _};
use crate::flow::{Field, Key, PortNo};
use crate::packet::MAX_FRAME;
use crate::packet::compose::compose;
use crate::port::InjectError;

pub(super) fn receive(daemon: &Daemon, args: Vec<String>) -> Result<Answer> {
    let mut args = args.into_iter().peekable();
    let name = args.next().ok_or(InjectError::Unsupported)?;
    let number = daemon.switch.port_number(&name).ok_or(InjectError::Unsupported)?;
    let names = daemon.switch.names();
    let name = names.name(number).unwrap_or(name);
    let mut queue = 0;
    if args.peek().is_some_and(|arg| arg == "--qid") {
        args.next();
        queue = args.next().and_then(|text| text.parse().ok()).ok_or(InjectError::Queue)?;
    }
    let mut frames = Vec::new();
    while let Some(packet) = args.next() {
        let mut len = 0;
        if args.peek().is_some_and(|arg| arg == "--len") {
            args.next();
            let text = args.next().unwrap_or_default();
            len = text.parse().ok().filter(|len| *len <= MAX_FRAME).ok_or_else(|| {
                CommandError::new(format!("--len {text:?}: expected a number of bytes up to {}", MAX_FRAME))
            })?;
        }
        frames.push(frame(&packet, len, number, &names)?);
    }
    // All are understood before the first arrives.
    for frame in &frames {
        daemon.switch.inject(&name, queue, frame)?;
    }
    Ok(Answer::new("", json!({ "packets": frames.len() })))
}

/// The bytes that `text` stands for: hex, blanks allowed, or a flow.
fn frame(text: &str, len: usize, port: PortNo, names: &Names) -> Result<Vec<u8>> {
    let digits: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    if !digits.is_empty() && digits.chars().all(|c| c.is_ascii_hexdigit()) {
        if !digits.len().is_multiple_of(2) {
            return Err(CommandError::new(format!("{} hex digits make no whole number of bytes", digits.len())));
        }
        let mut bytes: Vec<u8> =
            (0..digits.len()).step_by(2).filter_map(|i| u8::from_str_radix(&digits[i..i + 2], 16).ok()).collect();
        if bytes.len() > MAX_FRAME {
            return Err(CommandError::new(format!("a packet has at most {} bytes", MAX_FRAME)));
        }
        bytes.resize(bytes.len().max(len), 0);
        return Ok(bytes);
    }
    let flow = text::parse_flow(text, names)
        .map_err(|error| CommandError::new(format!("neither hex bytes nor a flow: {error}")))?;
    let mut key: Key = *flow.matching.key();
    key.set(Field::InPort, port.0);
    Ok(compose(&key, len))
}

pub(super) fn set_admin_state(daemon: &Daemon, args: &[String]) -> Result<Answer> {
    let (port, state) = match args {
        [state] => (None, state),
        [port, state, ..] => (Some(port.as_str()), state),
        [] => return Err(CommandError::new("usage: netdev-dummy/set-admin-state [PORT] up|down")),
    };
    let up = match state.as_str() {
        "up" => true,
        "down" => false,
        _ => return Err(CommandError::new(format!("Invalid Admin State {state:?}; expected up or down"))),
    };
    match daemon.switch.set_up(port, up) {
        0 if port.is_some() => Err(CommandError::new("Unknown Dummy Interface")),
        ports => Ok(Answer::new("OK", json!({ "ports": ports }))),
    }
}
