//! `exit`: the daemon itself.

use std::sync::Arc;

use crate::control::answer::{Answer, CommandError};
use crate::control::registry::{Command, Right};
use crate::daemon::Daemon;

pub static COMMANDS: &[Command<Arc<Daemon>>] = &[Command {
    name: "exit",
    usage: "[--cleanup]",
    help: "Drains and ends the daemon; --cleanup is accepted, everything is always cleaned up.",
    args: 0..=1,
    right: Right::Admin,
    run: |daemon, args| {
        Box::pin(async move {
            if let Some(unknown) = args.first().filter(|arg| *arg != "--cleanup") {
                return Err(CommandError::new(format!("unknown option {unknown:?}; accepted: --cleanup")));
            }
            daemon.ask_to_stop();
            Ok(Answer::nothing())
        })
    },
}];
