//! `exit`, `vlog/*`: the daemon itself.

use std::sync::Arc;

use crate::control::answer::Answer;
use crate::control::registry::{Command, Right};
use crate::daemon::Daemon;
use crate::telemetry::log;

pub static COMMANDS: &[Command<Arc<Daemon>>] = &[
    Command {
        name: "exit",
        usage: "[--cleanup]",
        help: "Drains and ends the daemon; --cleanup is accepted, everything is always cleaned up.",
        args: 0..=1,
        right: Right::Admin,
        run: |daemon, _| {
            Box::pin(async move {
                daemon.ask_to_stop();
                Ok(Answer::nothing())
            })
        },
    },
    Command {
        name: "vlog/list",
        usage: "",
        help: "Lists log modules with their levels for each destination.",
        args: 0..=0,
        right: Right::Read,
        run: |_, _| Box::pin(async { Ok(Answer::of(log::levels())) }),
    },
    Command {
        name: "vlog/set",
        usage: "{SPEC | MODULE[:DESTINATION[:LEVEL]]}…",
        help: "Changes log levels: module (or any), destination (console, file or any), level (off, err, warn, info, dbg).",
        args: 1..=64,
        right: Right::Admin,
        run: |_, args| {
            Box::pin(async move {
                log::set(&args)?;
                Ok(Answer::nothing())
            })
        },
    },
];
