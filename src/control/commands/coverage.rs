//! `memory/show`, `coverage/*`: what there is, and how often what happened.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use serde_json::json;

use crate::control::answer::{Answer, CommandError};
use crate::control::registry::{Command, Right};
use crate::daemon::Daemon;

pub static COMMANDS: &[Command<Arc<Daemon>>] = &[
    Command {
        name: "memory/show",
        usage: "",
        help: "Shows how many of everything there are, and how many bytes the process has in memory.",
        args: 0..=0,
        right: Right::Read,
        run: |daemon, _| Box::pin(async move { Ok(Answer::of(Memory(daemon.memory()))) }),
    },
    Command {
        name: "coverage/show",
        usage: "",
        help: "Shows how often what happened: rates over the last 5 seconds, minute and hour, and totals.",
        args: 0..=0,
        right: Right::Read,
        run: |daemon, _| Box::pin(async move { Ok(Answer::of(daemon.coverage(Instant::now()))) }),
    },
    Command {
        name: "coverage/read-counter",
        usage: "COUNTER",
        help: "Shows the total of one counter of coverage/show.",
        args: 1..=1,
        right: Right::Read,
        run: |daemon, args| {
            Box::pin(async move {
                let found = daemon.counts().into_iter().find(|(name, _)| *name == args[0]);
                let (_, total) = found.ok_or_else(|| CommandError::new("No such counter"))?;
                Ok(Answer::new(total.to_string(), json!(total)))
            })
        },
    },
];

#[derive(Serialize)]
#[serde(transparent)]
struct Memory(BTreeMap<&'static str, u64>);

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs: Vec<String> = self.0.iter().map(|(name, value)| format!("{name}:{value}")).collect();
        writeln!(f, "{}", pairs.join(" "))
    }
}
