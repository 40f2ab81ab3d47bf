//! `exit`: the daemon itself.

use std::sync::Arc;

use crate::control::answer::Answer;
use crate::control::registry::{Command, Right};
use crate::daemon::Daemon;

pub static COMMANDS: &[Command<Arc<Daemon>>] = &[Command {
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
}];
