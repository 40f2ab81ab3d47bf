//! `rule/*`: the rules that decide.

use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::read_file;
use crate::clock;
use crate::control::answer::{Answer, CommandError};
use crate::control::registry::{Command, Right};
use crate::daemon::Daemon;

pub static COMMANDS: &[Command<Arc<Daemon>>] = &[
    Command {
        name: "rule/add",
        usage: "RULE…",
        help: "Adds rules in the syntax of ovs-ofctl add-flow, all or none; one of the same table, priority and match is replaced.",
        args: 1..=10_000,
        right: Right::Write,
        run: |daemon, args| {
            Box::pin(async move {
                let rules = args.iter().map(String::as_str);
                let added = daemon.slowpath.add_rules(rules, &daemon.switch.names(), clock::now())?;
                Ok(Answer::new("", json!({ "rules": added })))
            })
        },
    },
    Command {
        name: "rule/del",
        usage: "[--strict] [MATCH]",
        help: "Deletes the rules that are as specific as MATCH or more, without MATCH all; with --strict the one with exactly this match and priority.",
        args: 0..=2,
        right: Right::Write,
        run: |daemon, args| {
            Box::pin(async move {
                let strict = args.first().is_some_and(|arg| arg == "--strict");
                let text = match &args[usize::from(strict)..] {
                    [] => "",
                    [text] => text,
                    _ => return Err(CommandError::new("usage: rule/del [--strict] [MATCH]")),
                };
                let deleted = daemon.slowpath.delete_rules(text, strict, &daemon.switch.names())?;
                Ok(Answer::new(format!("{deleted} rules deleted"), json!({ "rules": deleted })))
            })
        },
    },
    Command {
        name: "rule/dump",
        usage: "[MATCH]",
        help: "Lists the rules with their counts, table by table, highest priority first; with MATCH those that are as specific or more.",
        args: 0..=1,
        right: Right::Read,
        run: |daemon, args| {
            Box::pin(async move {
                let filter = args.first().map_or("", String::as_str);
                let lines = daemon.slowpath.dump(filter, &daemon.switch.names(), clock::now())?;
                let text: String = lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect();
                Ok(Answer::new(text, json!(lines)))
            })
        },
    },
    Command {
        name: "rule/load",
        usage: "FILE",
        help: "Replaces all rules by those of a file, one a line; a file with a mistake changes nothing.",
        args: 1..=1,
        right: Right::Write,
        run: |daemon, args| {
            Box::pin(async move {
                let loaded = load(&daemon, Path::new(&args[0]))?;
                Ok(Answer::new(format!("{loaded} rules loaded"), json!({ "rules": loaded })))
            })
        },
    },
    Command {
        name: "rule/save",
        usage: "FILE",
        help: "Writes all rules to a file that rule/load reads.",
        args: 1..=1,
        right: Right::Write,
        run: |daemon, args| {
            Box::pin(async move {
                let text = daemon.slowpath.save();
                let rules = text.lines().count();
                replace_file(Path::new(&args[0]), &text)
                    .map_err(|error| CommandError::new(format!("{}: {error}", args[0])))?;
                Ok(Answer::new(format!("{rules} rules saved"), json!({ "rules": rules })))
            })
        },
    },
];

/// Replaces all rules by those of the file at `path`.
///
/// # Errors
/// The file cannot be read, or a line of it is no rule; then the rules are as they were.
pub fn load(daemon: &Daemon, path: &Path) -> Result<usize, CommandError> {
    let text = read_file(path)?;
    let loaded = daemon.slowpath.load(&text, &daemon.switch.names(), clock::now());
    loaded.map_err(|error| CommandError::new(format!("{}: {error}", path.display())))
}

/// Writes a file beside `path` and renames it: whoever reads `path` sees all of the old or all of the new.
fn replace_file(path: &Path, text: &str) -> std::io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    std::fs::write(&new, text)?;
    std::fs::rename(&new, path)
}
