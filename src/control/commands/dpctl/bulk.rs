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

use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, available_parallelism};

use serde_json::json;

use super::Result;
use super::edit::{self, addable, parse_actions, parse_flow, which};
use crate::control::answer::{Answer, CommandError, Progress};
use crate::control::commands::{DATAPATH, Options, read_file};
use crate::daemon::{Daemon, block_on};
use crate::datapath::inbox::{AddFlow, Which};
use crate::datapath::switch::Names;
use crate::flow::{Actions, Ufid};

/// Told of how far it is each time so many lines were understood or carried out.
const STEP: u64 = 1_000;

/// Threads that read a file, at most.
const READERS: usize = 4;

/// What to do where a line does not say.
#[derive(Clone, Copy)]
pub(super) enum Verb {
    Add,
    Modify,
    Delete,
}

/// What a line says.
enum Line {
    Nothing,
    Add(Box<AddFlow>),
    Modify(Which, Actions),
    Delete(Which),
}

/// What is done at once: for the lines of these numbers.
enum Step {
    Add(Vec<AddFlow>, Vec<usize>),
    Modify(Which, Actions, usize),
    Delete(Which, usize),
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

/// # Errors
/// The file is not open to everybody.
pub(super) fn must_be_public(args: &[String]) -> Result<()> {
    let file = args.last().map_or("", String::as_str);
    let meta = std::fs::metadata(file).map_err(|error| CommandError::new(format!("{file}: {error}")))?;
    match meta.mode() & 0o004 {
        0 => Err(CommandError::new(format!("{file}: expected a file that everybody may read (mode o+r)"))),
        _ => Ok(()),
    }
}

fn carry_out(daemon: &Daemon, path: &Path, verb: Verb, progress: &Arc<Progress>) -> Result<Done> {
    let text = read_file(path)?;
    let at =
        |line: usize, error: &dyn std::fmt::Display| CommandError::new(format!("{}:{line}: {error}", path.display()));
    let lines: Vec<&str> = text.lines().collect();
    // Each line counts twice: once understood, once carried out.
    progress.total.store(2 * lines.len() as u64, Ordering::Relaxed);
    let steps = parse(&lines, verb, &daemon.switch.names(), progress).map_err(|(line, error)| at(line, &error))?;
    let mut done = Done::default();
    for step in steps {
        let Done { added, modified, deleted } = done;
        let failed = |line: usize, error: &str| {
            let before = match added + modified + deleted {
                0 => "nothing was changed".to_owned(),
                n => format!("the changes of {n} flows before it stay"),
            };
            at(line, &format!("{error}; {before}"))
        };
        match step {
            Step::Add(flows, lines) => {
                done.added += flows.len();
                let told = Arc::clone(progress);
                block_on(daemon.switch.add_flows(flows, move |added| count(&told, added)))
                    .map_err(|taken| failed(lines[taken.index], &taken.error.to_string()))?;
            }
            Step::Modify(which, actions, line) => {
                let before = block_on(daemon.switch.modify_flow(which, actions, false));
                before.ok_or_else(|| failed(line, edit::NOT_FOUND))?;
                done.modified += 1;
                count(progress, 1);
            }
            Step::Delete(which, line) => {
                block_on(daemon.switch.delete_flow(which)).ok_or_else(|| failed(line, edit::NOT_THERE))?;
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

/// A line that means nothing, and why.
type Wrong = (usize, CommandError);

/// What to do, in order; or the first line, from 1, that means nothing, and why. Reads with several threads.
fn parse(lines: &[&str], verb: Verb, names: &Names, progress: &Progress) -> std::result::Result<Vec<Step>, Wrong> {
    let share = lines.len().div_ceil(available_parallelism().map_or(1, usize::from).min(READERS)).max(1);
    let read: Vec<_> = thread::scope(|scope| {
        let chunks = lines.chunks(share).enumerate();
        let start = |(index, lines)| scope.spawn(move || read(index * share, lines, verb, names, progress));
        let others: Vec<_> = chunks.skip(1).map(start).collect();
        let first = lines.chunks(share).next().map(|lines| read(0, lines, verb, names, progress));
        let lost = || Err((1, CommandError::new("a reader ended unexpectedly")));
        first.into_iter().chain(others.into_iter().map(|other| other.join().unwrap_or_else(|_| lost()))).collect()
    });
    let mut steps = Vec::new();
    for more in read {
        more?.into_iter().for_each(|step| push(&mut steps, step));
    }
    steps.iter().try_for_each(no_flow_twice)?;
    Ok(steps)
}

/// Flows to add that follow each other are one step.
fn push(steps: &mut Vec<Step>, step: Step) {
    match (steps.last_mut(), step) {
        (Some(Step::Add(flows, lines)), Step::Add(mut more, mut more_lines)) => {
            flows.append(&mut more);
            lines.append(&mut more_lines);
        }
        (_, step) => steps.push(step),
    }
}

/// Reads some of the lines; `before` stand before them.
fn read(
    before: usize,
    lines: &[&str],
    verb: Verb,
    names: &Names,
    progress: &Progress,
) -> std::result::Result<Vec<Step>, Wrong> {
    let mut steps = Vec::new();
    for (line, number) in lines.iter().zip(before + 1..) {
        if (number as u64).is_multiple_of(STEP) {
            count(progress, STEP);
        }
        match parse_line(line, verb, names).map_err(|error| (number, error))? {
            Line::Nothing => {}
            Line::Add(flow) => match steps.last_mut() {
                Some(Step::Add(flows, numbers)) => {
                    flows.push(*flow);
                    numbers.push(number);
                }
                _ => {
                    let mut flows = Vec::with_capacity(lines.len());
                    flows.push(*flow);
                    steps.push(Step::Add(flows, vec![number]));
                }
            },
            Line::Modify(which, actions) => steps.push(Step::Modify(which, actions, number)),
            Line::Delete(which) => steps.push(Step::Delete(which, number)),
        }
    }
    Ok(steps)
}

/// # Errors
/// Two lines add one flow. (One that another line deletes in between is another step's.)
fn no_flow_twice(step: &Step) -> std::result::Result<(), Wrong> {
    let Step::Add(flows, lines) = step else { return Ok(()) };
    let hasher = foldhash::fast::RandomState::default();
    // By hash, since matches are large; equal ones are compared.
    let mut matches: HashMap<u64, usize, foldhash::fast::RandomState> = HashMap::default();
    let mut ufids: HashSet<Ufid> = HashSet::new();
    matches.reserve(flows.len());
    for (index, flow) in flows.iter().enumerate() {
        let hash = hasher.hash_one((flow.matching.key(), flow.matching.mask()));
        let same = matches.insert(hash, index).is_some_and(|other| flows[other].matching == flow.matching);
        if same || flow.ufid.is_some_and(|ufid| !ufids.insert(ufid)) {
            return Err((lines[index], CommandError::new("the flow stands in the file already")));
        }
    }
    Ok(())
}

fn parse_line(line: &str, verb: Verb, names: &Names) -> Result<Line> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') || line.starts_with("flow-dump from ") {
        return Ok(Line::Nothing);
    }
    let (verb, rest) = match line.split_once(char::is_whitespace) {
        Some(("add", rest)) => (Verb::Add, rest.trim_start()),
        Some(("modify", rest)) => (Verb::Modify, rest.trim_start()),
        Some(("delete", rest)) => (Verb::Delete, rest.trim_start()),
        _ => (verb, line),
    };
    let (flow, actions) = split(rest);
    let wants_actions = || CommandError::new("expected a flow, a blank, and actions");
    Ok(match verb {
        Verb::Add => {
            let flow = addable(flow, names)?;
            let actions = parse_actions(actions.ok_or_else(wants_actions)?, names)?;
            Line::Add(Box::new(AddFlow { ufid: flow.ufid, matching: flow.matching, actions }))
        }
        Verb::Modify => {
            let actions = parse_actions(actions.ok_or_else(wants_actions)?, names)?;
            Line::Modify(which(&parse_flow(flow, names)?), actions)
        }
        Verb::Delete => Line::Delete(which(&parse_flow(flow, names)?)),
    })
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
            let lines: Vec<&str> = text.lines().collect();
            let parsed = parse(&lines, Verb::Add, &Names::default(), &Progress::default());
            let flows = |step: &Step| if let Step::Add(flows, _) = step { flows.len() } else { 1 };
            parsed
                .map(|steps| steps.iter().map(flows).sum::<usize>())
                .map_err(|(line, error)| (line, error.to_string()))
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
