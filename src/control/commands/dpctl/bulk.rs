//! `dpctl/add-flows`, `mod-flows`, `del-flows FILE`: what a file says of flows, a line each.
//!
//! ```text
//!   # a comment                          what a line does is what the command does, unless it says so itself:
//!   in_port(1),eth() 2                   add, modify or delete, then the flow, a blank, and the actions
//!   delete ufid:U                        (none to delete). Lines of dpctl/dump-flows are understood, too.
//! ```
//!
//! All lines are understood before the first is carried out. Flows to add that follow each other go to the pollers at once, and
//! either all of them are added or none.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::json;

use super::Result;
use super::edit::{self, addable, parse_actions, parse_flow, which};
use crate::control::answer::{Answer, CommandError, Progress};
use crate::control::commands::{DATAPATH, Options, read_file};
use crate::daemon::{Daemon, block_on};
use crate::datapath::inbox::Which;
use crate::datapath::switch::{AddFlow, Names};
use crate::flow::{Actions, Ufid};

/// Told of how far it is each time so many lines were understood or carried out.
const STEP: u64 = 1_000;

/// What to do where a line does not say.
#[derive(Clone, Copy)]
pub(super) enum Verb {
    Add,
    Modify,
    Delete,
}

/// What a line says. Nearly all of a long file's are of the largest kind.
#[expect(clippy::large_enum_variant)]
enum Line {
    Add(AddFlow),
    Modify(Which, Actions),
    Delete(Which),
}

/// What was done.
#[derive(Default, Clone, Copy)]
struct Done {
    added: usize,
    modified: usize,
    deleted: usize,
}

pub(super) fn run(daemon: &Arc<Daemon>, args: Vec<String>, verb: Verb, usage: &str) -> Result<Answer> {
    let options = Options::split(args, &[])?;
    let [file] = options.exactly(usage)?;
    let (path, progress) = (PathBuf::from(file), Arc::new(Progress::default()));
    let told = Arc::clone(&progress);
    let done = daemon.in_background("flows-file", move |daemon| carry_out(daemon, &path, verb, &told));
    let reply = Box::pin(async move {
        let Done { added, modified, deleted } = done.await??;
        Ok(Answer::new("", json!({ "added": added, "modified": modified, "deleted": deleted })))
    });
    Ok(Answer::working(progress, reply))
}

/// Whether the one argument of `del-flows` names a file: it does unless it names a datapath.
pub(super) fn is_file(args: &[String]) -> bool {
    args.last().is_some_and(|last| last != DATAPATH && !last.contains('@'))
}

fn carry_out(daemon: &Daemon, path: &Path, verb: Verb, progress: &Arc<Progress>) -> Result<Done> {
    let text = read_file(path)?;
    let at =
        |line: usize, error: &dyn std::fmt::Display| CommandError::new(format!("{}:{line}: {error}", path.display()));
    // Each line counts twice: once understood, once carried out.
    progress.total.store(2 * text.lines().count() as u64, Ordering::Relaxed);
    let lines = parse(&text, verb, &daemon.switch.names(), progress).map_err(|(line, error)| at(line, &error))?;
    let mut done = Done::default();
    let mut lines = lines.into_iter().peekable();
    while let Some((number, line)) = lines.next() {
        let so_far = done;
        let failed = |number: usize, error: &str| {
            let Done { added, modified, deleted } = so_far;
            let before = match added + modified + deleted {
                0 => "nothing was changed".to_owned(),
                n => format!("the changes of {n} flows before it stay"),
            };
            at(number, &format!("{error}; {before}"))
        };
        match line {
            Line::Add(flow) => {
                let (mut flows, mut numbers) = (vec![flow], vec![number]);
                while let Some((number, Line::Add(flow))) = lines.next_if(|(_, line)| matches!(line, Line::Add(_))) {
                    flows.push(flow);
                    numbers.push(number);
                }
                let n = flows.len();
                let told = Arc::clone(progress);
                block_on(daemon.switch.add_flows(flows, move |added| count(&told, added)))
                    .map_err(|taken| failed(numbers[taken.index], &taken.error.to_string()))?;
                done.added += n;
            }
            Line::Modify(which, actions) => {
                let before = block_on(daemon.switch.modify_flow(which, actions, false));
                before.ok_or_else(|| failed(number, edit::NOT_FOUND))?;
                done.modified += 1;
                count(progress, 1);
            }
            Line::Delete(which) => {
                block_on(daemon.switch.delete_flow(which)).ok_or_else(|| failed(number, edit::NOT_THERE))?;
                done.deleted += 1;
                count(progress, 1);
            }
        }
    }
    Ok(done)
}

fn count(progress: &Progress, lines: u64) {
    progress.done.fetch_add(lines, Ordering::Relaxed);
}

/// All lines with their numbers, from 1; or the first that means nothing, and why.
fn parse(
    text: &str,
    verb: Verb,
    names: &Names,
    progress: &Progress,
) -> std::result::Result<Vec<(usize, Line)>, (usize, CommandError)> {
    let mut lines = Vec::new();
    let (mut matches, mut ufids): (HashSet<_, foldhash::fast::RandomState>, HashSet<Ufid>) = Default::default();
    for (line, number) in text.lines().zip(1..) {
        if (number as u64).is_multiple_of(STEP) {
            count(progress, STEP);
        }
        let parsed = parse_line(line, verb, names).map_err(|error| (number, error))?;
        if let Some(Line::Add(flow)) = &parsed {
            // A flow that another line of the file deletes in between may be added again.
            let new = matches.insert(flow.matching) & flow.ufid.is_none_or(|ufid| ufids.insert(ufid));
            if !new {
                return Err((number, CommandError::new("the flow stands in the file already")));
            }
        } else if parsed.is_some() {
            matches.clear();
            ufids.clear();
        }
        lines.extend(parsed.map(|line| (number, line)));
    }
    Ok(lines)
}

fn parse_line(line: &str, verb: Verb, names: &Names) -> Result<Option<Line>> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') || line.starts_with("flow-dump from ") {
        return Ok(None);
    }
    let (verb, rest) = match line.split_once(char::is_whitespace) {
        Some(("add", rest)) => (Verb::Add, rest.trim_start()),
        Some(("modify", rest)) => (Verb::Modify, rest.trim_start()),
        Some(("delete", rest)) => (Verb::Delete, rest.trim_start()),
        _ => (verb, line),
    };
    let (flow, actions) = split(rest);
    let wants_actions = || CommandError::new("expected a flow, a blank, and actions");
    Ok(Some(match verb {
        Verb::Add => {
            let flow = addable(flow, names)?;
            let actions = parse_actions(actions.ok_or_else(wants_actions)?, names)?;
            Line::Add(AddFlow { ufid: flow.ufid, matching: flow.matching, actions })
        }
        Verb::Modify => {
            let actions = parse_actions(actions.ok_or_else(wants_actions)?, names)?;
            Line::Modify(which(&parse_flow(flow, names)?), actions)
        }
        Verb::Delete => Line::Delete(which(&parse_flow(flow, names)?)),
    }))
}

/// The flow and the actions of a line: of one that a dump printed, or of one with a blank between the two.
fn split(line: &str) -> (&str, Option<&str>) {
    if let Some((before, actions)) = line.split_once(" actions:") {
        let flow = before.split_once(", packets:").map_or(before, |(flow, _)| flow);
        return (flow.trim_end_matches([',', ' ']), Some(actions));
    }
    // A blank behind a comma separates keys.
    let gap = line.char_indices().find(|(at, c)| c.is_whitespace() && !line[..*at].trim_end().ends_with(','));
    match gap {
        Some((at, _)) => (&line[..at], Some(line[at..].trim_start())),
        None => (line, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_split_where_the_actions_begin() {
        assert_eq!(split("in_port(1),eth() 2,3"), ("in_port(1),eth()", Some("2,3")));
        assert_eq!(split("in_port(1), eth()  drop"), ("in_port(1), eth()", Some("drop")));
        assert_eq!(split("in_port(1)"), ("in_port(1)", None));
        let dumped = "ufid:U, in_port(1),eth(), packets:3, bytes:18, used:never, dp:ovs, actions:set(eth(src=1)),2";
        assert_eq!(split(dumped), ("ufid:U, in_port(1),eth()", Some("set(eth(src=1)),2")));
    }

    #[test]
    fn the_first_bad_line_is_named_and_a_flow_may_not_stand_twice() {
        let parse = |text: &str| {
            let parsed = parse(text, Verb::Add, &Names::default(), &Progress::default());
            parsed.map(|lines| lines.len()).map_err(|(line, error)| (line, error.to_string()))
        };
        assert_eq!(parse("# x\n\nin_port(1) 2\nadd in_port(2) drop\ndelete in_port(1)\nmodify in_port(2) 3\n"), Ok(4));
        assert_eq!(parse("in_port(1) 2\nin_port(1) 3"), Err((2, "the flow stands in the file already".into())));
        assert_eq!(parse("in_port(1) 2\ndelete in_port(1)\nin_port(1) 3"), Ok(3));
        let (line, error) = parse("in_port(1) 2\nin_port(1),bogus(1) 3").unwrap_err();
        assert!(line == 2 && error.contains("bogus") && error.contains("column 12"), "{error}");
        assert_eq!(parse("in_port(1)").unwrap_err().0, 1);
        assert_eq!(parse("eth() 1"), Err((1, "flow: in_port is not an exact match".into())));
    }
}
