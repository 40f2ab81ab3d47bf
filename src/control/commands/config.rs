//! `config/*`: what is in force, and reading it again.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::config::{Shown, Source};
use crate::control::answer::{Answer, CommandError};
use crate::control::registry::{Command, Right, deadline};
use crate::daemon::{Daemon, Reloaded};

/// How long ports, pollers and rules may take to change.
const RELOAD_PATIENCE: Duration = Duration::from_secs(120);

pub static COMMANDS: &[Command<Arc<Daemon>>] = &[
    Command {
        name: "config/show",
        usage: "[--changed]",
        help: "Shows every key of the configuration as it is in force, and where that comes from; with --changed only those that are not at their default.",
        args: 0..=1,
        right: Right::Read,
        run: |daemon, args| {
            Box::pin(async move {
                if let Some(unknown) = args.first().filter(|arg| *arg != "--changed") {
                    return Err(CommandError::new(format!("unknown option {unknown:?}; accepted: --changed")));
                }
                let mut settings = daemon.settings();
                settings.retain(|shown| args.is_empty() || shown.source != Source::Default);
                Ok(Answer::of(Settings(settings)))
            })
        },
    },
    Command {
        name: "config/reload",
        usage: "",
        help: "Reads the configuration file again, as SIGHUP makes it: says what has changed, and what takes effect at the next start.",
        args: 0..=0,
        right: Right::Admin,
        run: |daemon, _| {
            Box::pin(async move {
                let reloaded = daemon.in_background("reload", Daemon::reload);
                let reloaded = deadline(RELOAD_PATIENCE, reloaded).await??;
                let report = reloaded.map_err(|error| CommandError::new(format!("not reloaded: {error}")))?;
                match report.errors.as_slice() {
                    [] => Ok(Answer::of(report)),
                    errors => Err(CommandError::new(format!("reloaded, but {}", errors.join("; ")))),
                }
            })
        },
    },
];

#[derive(Serialize)]
#[serde(transparent)]
struct Settings(Vec<Shown>);

impl fmt::Display for Settings {
    /// As the file would have it, table by table.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = "";
        for Shown { key, value, source } in &self.0 {
            let (in_table, name) = key.split_once('.').unwrap_or(("", key));
            if in_table != table {
                writeln!(f, "[{in_table}]")?;
                table = in_table;
            }
            let source = match source {
                Source::Default => "default",
                Source::File => "file",
                Source::CommandLine => "command line",
                Source::Command => "command",
            };
            match value {
                Some(value) => writeln!(f, "{name} = {value}  # {source}")?,
                None => writeln!(f, "# {name} is not set")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Reloaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |keys: &[&str]| if keys.is_empty() { "nothing".to_owned() } else { keys.join(", ") };
        writeln!(f, "changed: {}", list(&self.changed))?;
        writeln!(f, "takes effect at the next start: {}", list(&self.needs_restart))
    }
}
