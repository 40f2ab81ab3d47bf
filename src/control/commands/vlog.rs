//! `vlog/list`, `vlog/set`: what is logged, and where.

use crate::control::{Answer, Command, Right};
use crate::telemetry::log;

/// The commands; they need no context.
pub static COMMANDS: &[Command<()>] = &[
    Command {
        name: "vlog/list",
        usage: "",
        help: "Lists the least severe level that each module logs to each destination.",
        args: 0..=0,
        right: Right::Read,
        run: |(), _| Box::pin(async { Ok(Answer::of(log::levels())) }),
    },
    Command {
        name: "vlog/set",
        usage: "{[MODULE][:DESTINATION][:LEVEL]}...",
        help: "Sets what MODULE (any, if left out) logs to DESTINATION (console or file; both, if left out): LEVEL and what is more severe.\n  \
               Levels are off, emer, err, warn, info and dbg, which is meant if it is left out.",
        args: 1..=usize::MAX,
        right: Right::Admin,
        run: |(), args| {
            Box::pin(async move {
                log::set(&args)?;
                Ok(Answer::nothing())
            })
        },
    },
];
