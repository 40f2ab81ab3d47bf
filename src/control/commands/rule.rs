//! `rule/*`: the rules that decide.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;

use super::{read_file, trace};
use crate::clock;
use crate::control::answer::{Answer, CommandError};
use crate::control::registry::{Command, Right, deadline};
use crate::daemon::Daemon;
use crate::datapath::switch::Names;
use crate::slowpath::rules::Rule;
use crate::slowpath::text::{format_rule_actions, format_rule_match, format_rule_with_stats};

/// How long a file of rules may take.
const LOAD_PATIENCE: Duration = Duration::from_secs(120);

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
                let (names, now) = (daemon.switch.names(), clock::now());
                let rules = daemon.slowpath.rules(filter, &names)?;
                let line = |rule: &Arc<Rule>| format_rule_with_stats(&rule.spec, &rule.stats, &names, now) + "\n";
                let rows: Vec<Row> = rules.iter().map(|rule| Row::new(rule, &names, now)).collect();
                Ok(Answer::new(rules.iter().map(line).collect::<String>(), serde_json::to_value(rows)?))
            })
        },
    },
    Command {
        name: "rule/trace",
        usage: "FLOW",
        help: "Shows what the rules would make of a packet: tables, rules, actions, the megaflow, and whether the device could take that. Changes nothing.",
        args: 1..=1,
        right: Right::Read,
        run: |daemon, args| Box::pin(async move { trace::trace(&daemon, &args) }),
    },
    Command {
        name: "rule/load",
        usage: "FILE",
        help: "Replaces all rules by those of a file, one a line; a file with a mistake changes nothing.",
        args: 1..=1,
        right: Right::Admin,
        run: |daemon, args| {
            Box::pin(async move {
                let file = PathBuf::from(&args[0]);
                let loaded = daemon.in_background("load-rules", move |daemon| load(daemon, &file));
                let loaded = deadline(LOAD_PATIENCE, loaded).await???;
                Ok(Answer::new(format!("{loaded} rules loaded"), json!({ "rules": loaded })))
            })
        },
    },
    Command {
        name: "rule/save",
        usage: "FILE",
        help: "Writes all rules to a file that rule/load reads.",
        args: 1..=1,
        right: Right::Admin,
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

/// A rule as JSON has it.
#[derive(Serialize)]
struct Row {
    table: u8,
    priority: u16,
    cookie: u64,
    r#match: String,
    actions: String,
    packets: u64,
    bytes: u64,
    /// Seconds since it was added.
    duration_s: f64,
    /// Seconds; 0: never.
    idle_timeout_s: u16,
    hard_timeout_s: u16,
}

impl Row {
    fn new(rule: &Rule, names: &Names, now: Instant) -> Row {
        let spec = &rule.spec;
        Row {
            table: spec.table,
            priority: spec.priority,
            cookie: spec.cookie,
            r#match: format_rule_match(&spec.matching, names),
            actions: format_rule_actions(&spec.actions, names),
            packets: rule.stats.packets(),
            bytes: rule.stats.bytes(),
            duration_s: now.saturating_duration_since(rule.stats.created()).as_secs_f64(),
            idle_timeout_s: spec.idle_timeout,
            hard_timeout_s: spec.hard_timeout,
        }
    }
}

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
