//! `rule/trace`: what rules would make of a packet, and what a device would make of that. Nothing is learned, counted or installed.

use std::fmt;

use serde::Serialize;

use crate::clock;
use crate::control::answer::{Answer, CommandError};
use crate::daemon::Daemon;
use crate::datapath::switch::Names;
use crate::flow::text::{format_actions, format_match, parse_flow};
use crate::flow::{Field, Match};
use crate::offload::Level;
use crate::slowpath::decide::{Met, Step};
use crate::slowpath::text::{format_rule_actions, format_rule_match};
use crate::slowpath::{Decision, DropReason};

/// What `rule/trace` says.
#[derive(Serialize)]
struct Trace {
    flow: String,
    steps: Vec<Row>,
    /// Where `normal` looked for receivers.
    stations: Vec<Lookup>,
    actions: String,
    /// Why nothing is sent, if so.
    dropped: Option<&'static str>,
    /// All packets that are treated alike.
    megaflow: String,
    offload: Verdict,
}

/// A table looked into, or an action done.
#[derive(Serialize)]
struct Row {
    depth: usize,
    table: Option<u8>,
    /// What the rule that matched in the table matches; `None` if none did.
    rule: Option<String>,
    priority: Option<u16>,
    cookie: Option<u64>,
    action: Option<String>,
}

#[derive(Serialize)]
struct Lookup {
    vlan: u16,
    mac: String,
    /// `None`: not known, so the packet is flooded.
    port_no: Option<u32>,
}

/// Whether a device could take the megaflow.
#[derive(Serialize)]
struct Verdict {
    device: Option<&'static str>,
    /// `None`: it stays in software.
    level: Option<Level>,
    /// Why it goes no further.
    reason: Option<String>,
}

pub(super) fn trace(daemon: &Daemon, args: &[String]) -> Result<Answer, CommandError> {
    let [text] = args else { return Err(CommandError::new("usage: rule/trace FLOW")) };
    let names = daemon.switch.names();
    let flow = parse_flow(text, &names).map_err(|error| CommandError::new(format!("parsing flow key ({error})")))?;
    if !flow.matching.mask().is_exact(Field::InPort) {
        return Err(CommandError::new("the flow must say in_port: a packet comes from somewhere"));
    }
    let key = flow.matching.key();
    let (decision, steps) = daemon.slowpath.trace(key, clock::now());
    let megaflow = Match::new(key, &decision.mask);
    let mac = |mac: u64| mac.to_be_bytes()[2..].iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":");
    let lookup = |lookup: &crate::slowpath::learn::Lookup| Lookup {
        vlan: lookup.vlan,
        mac: mac(lookup.mac),
        port_no: lookup.found.map(|port| port.0),
    };
    Ok(Answer::of(Trace {
        flow: format_match(&flow.matching, false, &names),
        steps: steps.iter().map(|step| Row::new(step, &names)).collect(),
        stations: decision.lookups.iter().map(lookup).collect(),
        actions: format_actions(&decision.actions, &names),
        dropped: decision.dropped.map(DropReason::text),
        megaflow: format_match(&megaflow, false, &names),
        offload: verdict(daemon, &megaflow, &decision),
    }))
}

fn verdict(daemon: &Daemon, megaflow: &Match, decision: &Decision) -> Verdict {
    let offload = &daemon.switch.offload;
    let Some(device) = daemon.switch.device() else {
        return Verdict { device: None, level: None, reason: Some("there is no device".to_owned()) };
    };
    let caps = device.capabilities();
    let stays = |reason: String| Verdict { device: Some(caps.name), level: None, reason: Some(reason) };
    if let Some(why) = offload.off() {
        return stays(why);
    }
    if !offload.settings().get().enabled {
        return stays("offload is switched off".to_owned());
    }
    match caps.check(megaflow, &decision.actions) {
        Err(lacking) => stays(lacking.to_string()),
        Ok(done) => {
            let reason = done.short.map(|lacking| lacking.to_string());
            Verdict { device: Some(caps.name), level: Some(done.level), reason }
        }
    }
}

impl Row {
    fn new(step: &Step, names: &Names) -> Row {
        let nothing = Row { depth: step.depth, table: None, rule: None, priority: None, cookie: None, action: None };
        match &step.what {
            Met::Table(table, None) => Row { table: Some(*table), ..nothing },
            Met::Table(table, Some(rule)) => Row {
                table: Some(*table),
                rule: Some(format_rule_match(&rule.spec.matching, names)),
                priority: Some(rule.spec.priority),
                cookie: Some(rule.spec.cookie),
                ..nothing
            },
            Met::Action(action) => Row { action: Some(format_rule_actions(&[*action], names)), ..nothing },
        }
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Flow: {}\n", self.flow)?;
        for Row { depth, table, rule, priority, cookie, action } in &self.steps {
            let indent = "    ".repeat(*depth);
            match (table, rule, action) {
                (Some(table), None, _) => writeln!(f, "{indent}{table:>2}. No match.")?,
                (Some(table), Some(rule), _) => {
                    let comma = if rule.is_empty() { "" } else { ", " };
                    write!(f, "{indent}{table:>2}. {rule}{comma}priority {}", priority.unwrap_or_default())?;
                    match cookie {
                        Some(cookie) if *cookie != 0 => writeln!(f, ", cookie {cookie:#x}")?,
                        _ => writeln!(f)?,
                    }
                }
                (None, _, Some(action)) => writeln!(f, "{indent}    {action}")?,
                (None, _, None) => {}
            }
        }
        for Lookup { vlan, mac, port_no } in &self.stations {
            match port_no {
                Some(port) => writeln!(f, "    station {mac} in VLAN {vlan}: port {port}")?,
                None => writeln!(f, "    station {mac} in VLAN {vlan}: not known, flooded")?,
            }
        }
        writeln!(f, "\nMegaflow: {}\nDatapath actions: {}", self.megaflow, self.actions)?;
        if let Some(why) = self.dropped {
            writeln!(f, "Dropped: {why}")?;
        }
        let Verdict { device, level, reason } = &self.offload;
        let device = device.unwrap_or("no device");
        match (level, reason) {
            (Some(level), None) => writeln!(f, "Offload: {device} takes it, level {level}"),
            (Some(level), Some(reason)) => writeln!(f, "Offload: {device} takes it, level {level} only: {reason}"),
            (None, reason) => {
                writeln!(f, "Offload: stays in software, {device}: {}", reason.as_deref().unwrap_or("it is refused"))
            }
        }
    }
}
