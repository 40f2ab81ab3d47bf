//! stub with the final public face
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

pub fn parse_flow(_text: &str, _ports: &dyn PortNames) -> Result<FlowText, TextError> {
    todo!()
}
pub fn parse_actions(_text: &str, _ports: &dyn PortNames) -> Result<Actions, TextError> {
    todo!()
}
/// `verbose`: also fields that are wildcarded, as `dump-flows -m` prints them.
pub fn format_match(_m: &Match, _verbose: bool, _ports: &dyn PortNames) -> String {
    todo!()
}
pub fn format_actions(_a: &Actions, _ports: &dyn PortNames) -> String {
    todo!()
}
