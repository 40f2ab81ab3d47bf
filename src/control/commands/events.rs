//! `offload/events`: what happened to rules in the device lately.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::clock;
use crate::control::answer::{Answer, CommandError};
use crate::daemon::Daemon;
use crate::datapath::switch::Names;
use crate::flow::text::format_match;
use crate::offload::events::{Event, EventKind};
use crate::offload::{Level, Reason};

/// The most events of one answer.
const MOST: usize = 5_000;

/// What `offload/events` says.
#[derive(Serialize)]
struct EventsShow {
    /// Where to go on.
    next: u64,
    /// Events since the cursor that are gone.
    lost: u64,
    events: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    seq: u64,
    /// Seconds since 1970 began.
    time: f64,
    kind: EventKind,
    worker: usize,
    ufid: Option<String>,
    mark: Option<u32>,
    level: Option<Level>,
    reason: Option<Reason>,
    why: Option<&'static str>,
    key: Option<String>,
}

pub(super) fn events(daemon: &Daemon, args: &[String]) -> Result<Answer, CommandError> {
    let (mut cursor, mut limit) = (0, MOST);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if arg == "--limit" {
            let value = args.next().map_or("", String::as_str);
            limit = value
                .parse()
                .ok()
                .filter(|limit| (1..=MOST).contains(limit))
                .ok_or_else(|| CommandError::new(format!("--limit {value:?}: expected 1 to {MOST}")))?;
        } else {
            cursor = arg.parse().map_err(|_| {
                CommandError::new(format!(
                    "{arg:?}: expected a cursor, which is the number \"next\" of an earlier answer"
                ))
            })?;
        }
    }
    let names = daemon.switch.names();
    let backlog = daemon.switch.offload.events.since(cursor, limit);
    let (clock, wall) = (clock::now(), SystemTime::now());
    let row = |(seq, event): (u64, Event)| {
        let age = clock.saturating_duration_since(event.at);
        let time = wall.checked_sub(age).and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        Row::new(seq, time.map_or(0.0, |time| time.as_secs_f64()), event, &names)
    };
    let events = (backlog.first..).zip(backlog.events).map(row).collect();
    Ok(Answer::of(EventsShow { next: backlog.next, lost: backlog.lost, events }))
}

impl Row {
    fn new(seq: u64, time: f64, event: Event, names: &Names) -> Row {
        let Event { kind, worker, rule, .. } = event;
        let rule = rule.as_ref();
        Row {
            seq,
            time,
            kind,
            worker,
            ufid: rule.map(|rule| rule.ufid.to_string()),
            mark: rule.and_then(|rule| rule.mark),
            level: rule.and_then(|rule| rule.level),
            reason: rule.and_then(|rule| rule.reason),
            why: rule.and_then(|rule| rule.why),
            key: rule.map(|rule| format_match(&rule.matching, false, names)),
        }
    }
}

impl fmt::Display for EventsShow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.lost > 0 {
            writeln!(f, "{} events are gone", self.lost)?;
        }
        self.events.iter().try_for_each(|event| writeln!(f, "{event}"))?;
        writeln!(f, "next: {}", self.next)
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:.3} {} worker{}", self.seq, self.time, self.kind.name(), self.worker)?;
        if let Some(ufid) = &self.ufid {
            write!(f, " ufid:{ufid}")?;
        }
        if let Some(mark) = self.mark {
            write!(f, " mark:{mark}")?;
        }
        if let Some(reason) = self.reason {
            write!(f, " reason:{reason}")?;
        }
        if let Some(why) = self.why {
            write!(f, " ({why})")?;
        }
        match &self.key {
            Some(key) => write!(f, " {key}"),
            None => Ok(()),
        }
    }
}
