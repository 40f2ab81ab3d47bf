//! The ODP flow syntax, both ways: what Open vSwitch's `dpctl` commands read and print.
//!
//! - [`parse_flow`], [`format_match`]: keys
//! - [`parse_actions`], [`format_actions`]: actions
//! - [`canonical`]: a match without the mask bits that say nothing
//!
//! ```text
//! flow      := [ufid:UUID [,]] attribute {separator attribute}
//! attribute := NAME(VALUE[/MASK]) | NAME(FIELD=VALUE[/MASK],…) | encap(attribute,…)
//! actions   := drop | action {separator action}
//! action    := PORT | set(NAME(FIELD=VALUE[/MASK],…)) | push_vlan([tpid=,]vid=[,pcp=][,cfi=]) | pop_vlan
//! ```
//!
//! A separator is any run of commas, blanks, tabs and line ends. Integers are decimal, `0x…` hexadecimal or `0…` octal.
//! Without a mask all bits count; masks are literal, and addresses also take a prefix length (`10.0.0.0/8`), which Open
//! vSwitch refuses. What is not mentioned, and what stands in empty parentheses, is wildcarded. A number too large for its
//! field is an error; Open vSwitch cuts it. Keys that Open vSwitch has and this datapath has not (`ct_state` and such) are read when
//! they are wildcarded, so that its verbose dumps can be replayed.
//!
//! # VLAN tags
//!
//! A tag wraps what follows it: `eth_type(TAG'S TYPE),vlan(vid=…,pcp=…),encap(…)`, twice for two tags. Whether a tag must
//! be there is a match of its own ([`Field::Vlan0Cfi`](super::Field::Vlan0Cfi), 1 = there), and follows from the text so, at the packet's
//! front as well as behind the first tag:
//!
//! | text | tag | `eth_type` says |
//! | --- | --- | --- |
//! | `eth_type(0x0800)` | must not be there | the packet's type |
//! | `eth_type(0x8100),vlan(vid=5)` | must be there, vid 5 | the tag's type |
//! | `eth_type(0x8100)`, `eth_type(0x8100),vlan()` | must be there, any vid | the tag's type |
//! | `vlan(vid=5)` or `vlan(cfi=1)`, no `eth_type` | must be there, of any type | (nothing) |
//! | no `eth_type`, no `vlan` | any | (nothing) |
//! | `eth_type(0x0800),vlan(cfi=0/0)`, or `…,vlan()` | any | the packet's type, behind whatever tags |
//! | `vlan(cfi=0)`, no `eth_type` | must not be there | (nothing) |
//! | `eth_type(0x8100),vlan(cfi=0)` | no whole tag | what stood where a tag was cut off |
//!
//! Without `encap(…)`, nothing behind the tag is matched. Behind two tags `eth_type` is the packet's type whatever it is.
//!
//! # Thread-safety
//! Plain functions on plain values.

mod action;
mod attribute;
mod key;
pub mod language;
mod scan;
#[cfg(test)]
mod tests;
mod value;

use super::{Actions, Match, PortNo, Ufid};

/// Translates between port names and numbers; `()` knows none.
pub trait PortNames {
    fn number(&self, name: &str) -> Option<PortNo>;
    fn name(&self, number: PortNo) -> Option<String>;
}

impl PortNames for () {
    fn number(&self, _: &str) -> Option<PortNo> {
        None
    }

    fn name(&self, _: PortNo) -> Option<String> {
        None
    }
}

/// What was wrong with a text, and where.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{what} at column {column}")]
pub struct TextError {
    /// From 1, in characters.
    pub column: usize,
    pub what: String,
}

/// `[ufid:U,] key…`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowText {
    pub ufid: Option<Ufid>,
    pub matching: Match,
}

/// Reads a flow's key. The match is [`canonical`]; an empty text matches every packet.
///
/// # Errors
/// Says what was not understood, does not fit its field, contradicts itself, or lacks the attribute that makes it mean something.
pub fn parse_flow(text: &str, ports: &dyn PortNames) -> Result<FlowText, TextError> {
    key::parse(text, ports)
}

/// Reads an action list. An empty text drops, as `drop` does.
///
/// # Errors
/// Says what was not understood, does not fit its field, or is not supported by this datapath.
pub fn parse_actions(text: &str, ports: &dyn PortNames) -> Result<Actions, TextError> {
    action::parse(text, ports)
}

/// Prints `m` as [`parse_flow`] reads it: the outcome equals [`canonical`]`(m)`. Ports are printed by the names that `ports` knows.
/// `verbose`: also fields that are wildcarded, as `dump-flows -m` prints them.
pub fn format_match(m: &Match, verbose: bool, ports: &dyn PortNames) -> String {
    key::format(m, verbose, ports)
}

/// Prints `actions` as [`parse_actions`] reads them: `drop` for the empty list.
pub fn format_actions(actions: &Actions, ports: &dyn PortNames) -> String {
    action::format(actions, ports)
}

/// `m` without the mask bits that say nothing: bits of headers that `m` itself says are not there, or does not say are
/// there. Where `m` looks at what decides its headers (types, tags, protocol, fragment), as every decision of the slow path does,
/// the outcome matches the same packets, because [`extract`](crate::packet::extract) leaves the bits of absent headers zero; else it is wider.
///
/// Texts carry canonical matches only, so install megaflows in this form where they shall be found by their text.
pub fn canonical(m: &Match) -> Match {
    key::canonical(m)
}

/// The name to print for `port`: one that `ports` would read back as it and that cannot be taken for something else.
fn printable_name(port: PortNo, ports: &dyn PortNames) -> Option<String> {
    let name = ports.name(port)?;
    let plain = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || "_.-@:".contains(c));
    let mistakable = scan::integer(&name).is_some() || action::is_reserved(&name);
    (plain && !mistakable && ports.number(&name) == Some(port)).then_some(name)
}
