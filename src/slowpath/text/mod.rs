//! Rules as text, in the syntax of `ovs-ofctl add-flow`, both ways.
//!
//! ```text
//! table=0,priority=100,tcp,in_port=1,nw_dst=10.0.0.0/24,tp_dst=80,actions=dec_ttl,output:2
//! └── the rule's own ───┘ └──────────── match ───────────────────┘ └──── actions ─────────┘
//! ```
//!
//! Parsing what [`format_rule`] printed gives the same rule. Every error names the column, what was refused, and what
//! would be accepted.
//!
//! - `scan`: pieces of text that know their place, and values
//! - `matching`: the words of a match
//! - `actions`: the words of actions

mod actions;
mod matching;
mod scan;

use std::fmt::Write as _;
use std::time::Instant;

use super::rules::{DEFAULT_PRIORITY, MAX_TABLE, RuleAction, RuleSpec, RuleStats};
use crate::flow::text::{PortNames, TextError};
use crate::flow::{Match, PortNo};
use matching::Builder;
use scan::{Fail, Piece};

/// What a dump tells of a rule besides; read over, so that its lines can be given back.
const REPORTED: [&str; 5] = ["duration", "n_packets", "n_bytes", "idle_age", "hard_age"];

/// Reads a rule.
pub fn parse_rule(text: &str, ports: &dyn PortNames) -> Result<RuleSpec, TextError> {
    rule(text, ports).map_err(|fail| fail.within(text))
}

/// Which rules a command means.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Filter {
    table: Option<u8>,
    /// Value and mask.
    cookie: Option<(u64, u64)>,
    out_port: Option<PortNo>,
    matching: Match,
    /// The one rule with this priority and exactly this match.
    strict: Option<u16>,
}

/// Reads which rules a command means: a match, `table=`, `cookie=VALUE[/MASK]`, `out_port=`; and `priority=` if `strict`.
pub fn parse_filter(text: &str, strict: bool, ports: &dyn PortNames) -> Result<Filter, TextError> {
    filter(text, strict, ports).map_err(|fail| fail.within(text))
}

/// Reads the words of a match alone, as they stand in front of a rule's actions.
pub fn parse_match(text: &str, ports: &dyn PortNames) -> Result<Match, TextError> {
    words(text, ports).map_err(|fail| fail.within(text))
}

fn words(text: &str, ports: &dyn PortNames) -> Result<Match, Fail> {
    let mut builder = Builder::default();
    let mut rest = Piece::whole(text);
    while let Some((word, value)) = scan::next_word(&mut rest, false)? {
        builder.word(word, value, ports)?;
    }
    builder.finish()
}

impl Filter {
    pub fn selects(&self, rule: &RuleSpec) -> bool {
        self.table.is_none_or(|t| t == rule.table)
            && self.cookie.is_none_or(|(value, mask)| rule.cookie & mask == value & mask)
            && self.out_port.is_none_or(|p| rule.actions.contains(&RuleAction::Output(p)))
            && match self.strict {
                Some(priority) => rule.priority == priority && rule.matching == self.matching,
                None => {
                    rule.matching.mask().contains(self.matching.mask()) && self.matching.matches(rule.matching.key())
                }
            }
    }
}

/// The rule as [`parse_rule`] reads it. Ports that `ports` has a plain name for are named.
pub fn format_rule(rule: &RuleSpec, ports: &dyn PortNames) -> String {
    let mut out = String::new();
    if rule.cookie != 0 {
        // Writing to a string does not fail.
        let _ = write!(out, "cookie={:#x},", rule.cookie);
    }
    let _ = write!(out, "table={},", rule.table);
    timeouts(rule, ",", &mut out);
    conditions(rule, ports, &mut out);
    actions::format(&rule.actions, ports, &mut out);
    out
}

/// The rule with what it has done, as `ovs-ofctl dump-flows` prints it.
pub fn format_rule_with_stats(rule: &RuleSpec, stats: &RuleStats, ports: &dyn PortNames, now: Instant) -> String {
    let age = now.saturating_duration_since(stats.created()).as_secs_f64();
    let mut out = format!(
        " cookie={:#x}, duration={age:.3}s, table={}, n_packets={}, n_bytes={}, ",
        rule.cookie,
        rule.table,
        stats.packets(),
        stats.bytes()
    );
    timeouts(rule, ", ", &mut out);
    conditions(rule, ports, &mut out);
    actions::format(&rule.actions, ports, &mut out);
    out
}

/// A rule's match alone, without its priority; empty if it matches everything.
pub fn format_rule_match(matching: &Match, ports: &dyn PortNames) -> String {
    matching::format(matching, ports).join(",")
}

/// A rule's actions alone.
pub fn format_rule_actions(actions: &[RuleAction], ports: &dyn PortNames) -> String {
    let mut out = String::new();
    actions::format(actions, ports, &mut out);
    out.split_off("actions=".len())
}

fn timeouts(rule: &RuleSpec, separator: &str, out: &mut String) {
    for (name, seconds) in [("idle_timeout", rule.idle_timeout), ("hard_timeout", rule.hard_timeout)] {
        if seconds != 0 {
            let _ = write!(out, "{name}={seconds}{separator}");
        }
    }
}

/// Priority and match, and the space before the actions.
fn conditions(rule: &RuleSpec, ports: &dyn PortNames, out: &mut String) {
    let _ = write!(out, "priority={}", rule.priority);
    for word in matching::format(&rule.matching, ports) {
        let _ = write!(out, ",{word}");
    }
    out.push(' ');
}

fn rule(text: &str, ports: &dyn PortNames) -> Result<RuleSpec, Fail> {
    let (mut table, mut priority, mut cookie, mut idle, mut hard) = (0, DEFAULT_PRIORITY, 0, 0, 0);
    let mut builder = Builder::default();
    let mut rest = Piece::whole(text);
    loop {
        let Some((word, value)) = scan::next_word(&mut rest, true)? else {
            return Err(rest.fail("a rule needs actions=, for instance actions=drop".into()));
        };
        match word.text {
            "actions" | "action" => break,
            "table" => table = value.number(MAX_TABLE.into())? as u8,
            "priority" => priority = value.number(u16::MAX.into())? as u16,
            "cookie" => cookie = value.number(u64::MAX)?,
            "idle_timeout" => idle = value.number(u16::MAX.into())? as u16,
            "hard_timeout" => hard = value.number(u16::MAX.into())? as u16,
            reported if REPORTED.contains(&reported) => {}
            _ => builder.word(word, value, ports)?,
        }
    }
    let matching = builder.finish()?;
    let actions = actions::parse(rest, table, &matching, ports)?.into();
    Ok(RuleSpec { table, priority, cookie, idle_timeout: idle, hard_timeout: hard, matching, actions })
}

fn filter(text: &str, strict: bool, ports: &dyn PortNames) -> Result<Filter, Fail> {
    let (mut table, mut cookie, mut out_port, mut priority) = (strict.then_some(0), None, None, DEFAULT_PRIORITY);
    let mut builder = Builder::default();
    let mut rest = Piece::whole(text);
    while let Some((word, value)) = scan::next_word(&mut rest, false)? {
        match word.text {
            "actions" | "action" => return Err(word.fail("actions do not select rules; out_port=PORT does".into())),
            "table" => table = Some(value.number(MAX_TABLE.into())? as u8),
            "cookie" => {
                let (value, mask) = value.masked();
                cookie = Some((value.number(u64::MAX)?, mask.map_or(Ok(u64::MAX), |m| m.number(u64::MAX))?));
            }
            "out_port" => out_port = Some(value.port(ports)?),
            "priority" if strict => priority = value.number(u16::MAX.into())? as u16,
            "priority" => return Err(word.fail("priority selects a rule only with --strict".into())),
            reported if REPORTED.contains(&reported) => {}
            _ => builder.word(word, value, ports)?,
        }
    }
    Ok(Filter { table, cookie, out_port, matching: builder.finish()?, strict: strict.then_some(priority) })
}
