//! `dpctl/parse-actions`, `normalize-actions`: lists of actions, also of those that this datapath has not.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use serde_json::Value;

use super::{NAMING, Result};
use crate::control::answer::{Answer, CommandError};
use crate::control::commands::Options;
use crate::flow::text::TextError;
use crate::flow::text::language::{self, Body, Node};

pub(super) fn parse(args: Vec<String>) -> Result<Answer> {
    let options = Options::split(args, &[])?;
    let [text] = options.exactly("dpctl/parse-actions ACTIONS")?;
    let actions = read_actions(text)?;
    Ok(Answer::new(shown(&actions), language::json(&actions)))
}

/// Sorts actions by the tags and labels that a packet has when they come, as Open vSwitch does to compare lists.
pub(super) fn normalize(args: Vec<String>) -> Result<Answer> {
    let options = Options::split(args, &NAMING)?;
    let [flow, actions] = options.exactly("dpctl/normalize-actions [--names|--no-names] FLOW ACTIONS")?;
    let flow = language::parse_keys(flow).map_err(|error| wrong("flow key", &error))?;
    Ok(Answer::of(Groups::new(&flow, read_actions(actions)?)))
}

fn read_actions(text: &str) -> Result<Vec<Node>> {
    language::parse_actions(text).map_err(|error| wrong("actions", &error))
}

fn wrong(what: &str, error: &TextError) -> CommandError {
    CommandError::new(format!("parsing {what} ({error})"))
}

/// An empty list drops.
fn shown(actions: &[Node]) -> String {
    if actions.is_empty() { "drop".to_owned() } else { language::print(actions) }
}

/// The tag and the label that a packet has outermost, as text.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Encapsulation {
    vlan: Option<String>,
    mpls: Option<String>,
}

/// Actions by what the packet is wrapped in when they come.
struct Groups(BTreeMap<Encapsulation, Vec<Node>>);

impl Groups {
    fn new(flow: &[Node], actions: Vec<Node>) -> Groups {
        let key = |name: &str| flow.iter().find(|node| node.name == name && !node.is_wildcard()).map(inside);
        let mut now = Encapsulation { vlan: key("vlan"), mpls: key("mpls") };
        let mut groups = Groups(BTreeMap::new());
        for action in actions {
            match action.name.as_str() {
                "push_vlan" => now.vlan = Some(inside(&action)),
                "pop_vlan" => now.vlan = None,
                "push_mpls" => now.mpls = Some(inside(&action)),
                "pop_mpls" => now.mpls = None,
                _ => groups.0.entry(now.clone()).or_default().push(action),
            }
        }
        groups.0.values_mut().for_each(|actions| sort_outputs(actions));
        groups
    }
}

/// What stands in a node's parentheses.
fn inside(node: &Node) -> String {
    match &node.body {
        Body::Items(nodes) => language::print(nodes),
        Body::Paren(text) | Body::Equals(text) => text.clone(),
        Body::Braces(_) | Body::Bare => String::new(),
    }
}

/// Outputs that follow each other go to different ports; their order means nothing.
fn sort_outputs(actions: &mut [Node]) {
    let is_output = |node: &Node| node.body == Body::Bare && node.name.chars().all(|c| c.is_ascii_digit());
    for run in actions.chunk_by_mut(|a, b| is_output(a) && is_output(b)) {
        if is_output(&run[0]) {
            run.sort_by_key(|node| node.name.parse::<u64>().unwrap_or(u64::MAX));
        }
    }
}

impl fmt::Display for Groups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (Encapsulation { vlan, mpls }, actions) in &self.0 {
            match vlan {
                Some(tag) => write!(f, "vlan({tag}): ")?,
                None => write!(f, "no vlan: ")?,
            }
            match mpls {
                Some(label) => write!(f, "mpls({label}): ")?,
                None => write!(f, "no mpls: ")?,
            }
            writeln!(f, "{}", shown(actions))?;
        }
        if self.0.is_empty() { writeln!(f, "drop") } else { Ok(()) }
    }
}

impl Serialize for Groups {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Group<'a> {
            #[serde(flatten)]
            encapsulation: &'a Encapsulation,
            actions: Value,
        }
        let group = |(encapsulation, actions)| Group { encapsulation, actions: language::json(actions) };
        serializer
            .collect_seq(self.0.iter().map(|(encapsulation, actions): (_, &Vec<Node>)| group((encapsulation, actions))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actions_are_sorted_by_what_the_packet_is_wrapped_in() {
        let normal = |flow: &str, actions: &str| {
            let (flow, actions) = (language::parse_keys(flow).unwrap(), language::parse_actions(actions).unwrap());
            Groups::new(&flow, actions).to_string()
        };
        assert_eq!(
            normal("in_port(1),eth_type(0x0800)", "3,1,push_vlan(vid=5,pcp=0),2,pop_vlan,4"),
            "no vlan: no mpls: 1,3,4\nvlan(vid=5,pcp=0): no mpls: 2\n"
        );
        assert_eq!(
            normal("in_port(1),eth_type(0x8100),vlan(vid=9,pcp=0)", "2,pop_vlan,1"),
            "no vlan: no mpls: 1\nvlan(vid=9,pcp=0): no mpls: 2\n"
        );
        assert_eq!(normal("in_port(1)", "drop"), "no vlan: no mpls: drop\n");
        assert_eq!(normal("in_port(1)", ""), "drop\n");
    }
}
