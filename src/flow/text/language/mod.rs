//! The whole ODP language, as Open vSwitch prints it: also keys and actions that this datapath has not.
//!
//! A text becomes a tree of [`Node`]s, which prints as it was written. The `grammar` says which names there are and what stands
//! inside them; what it says is checked as the text is read, so a tree is always good.
//!
//! ```text
//!   text ──► Scanner ──► read, by the Shape of each name ──► Node ──► text, JSON
//!                              ▲
//!                        grammar: KEYS, ACTIONS                 lowering to a Match or to Actions is the business of `key` and `action`
//! ```

pub mod grammar;
#[cfg(test)]
mod tests;
pub mod value;

use std::fmt;

use serde_json::{Map, Value, json};

use super::TextError;
use super::scan::{Scanner, quote};
use grammar::{ACTIONS, Field, Item, KEYS, Shape};
use value::Kind;

/// How deep keys and actions may stand inside each other.
pub const MAX_DEPTH: usize = 32;

/// A key, an action, or something inside one, as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Empty for a value without a name, and for the braces of a Geneve option.
    pub name: String,
    pub body: Body,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// `name`
    Bare,
    /// `name(value)`
    Paren(String),
    /// `name=value`
    Equals(String),
    /// `name(item,…)`
    Items(Vec<Node>),
    /// `{item,…}`
    Braces(Vec<Node>),
}

/// Reads a flow's keys.
///
/// # Errors
/// Says what was not understood, or does not fit, and where.
pub fn parse_keys(text: &str) -> Result<Vec<Node>, TextError> {
    let mut reader = Reader { s: Scanner::new(text), depth: 0 };
    reader.list(&KEYS, "key")
}

/// Reads actions. An empty text has none.
///
/// # Errors
/// As [`parse_keys`].
pub fn parse_actions(text: &str) -> Result<Vec<Node>, TextError> {
    let mut reader = Reader { s: Scanner::new(text), depth: 0 };
    reader.actions_to_end()
}

/// Reads the body of a key, behind its opening parenthesis.
pub(super) fn read_key_body(s: &mut Scanner<'_>, name: &str) -> Result<Body, TextError> {
    read_body(s, &KEYS, name)
}

/// Reads what follows an action's name.
pub(super) fn read_action_rest(s: &mut Scanner<'_>, name: &str) -> Result<Body, TextError> {
    match ACTIONS.iter().find(|item| item.name == name) {
        Some(Item { shape: Shape::Nothing, .. }) => Ok(Body::Bare),
        Some(Item { bare: true, .. }) if !s.comes("(") => Ok(Body::Bare),
        _ => {
            s.expect("(")?;
            read_body(s, &ACTIONS, name)
        }
    }
}

fn read_body(s: &mut Scanner<'_>, items: &'static [Item], name: &str) -> Result<Body, TextError> {
    let place = s.place();
    let Some(item) = items.iter().find(|item| item.name == name) else {
        return Err(s.error_at(place, format!("unknown {}", quote(name))));
    };
    let mut reader = Reader { s: s.clone(), depth: 0 };
    let body = reader.body(item.name, &item.shape)?;
    *s = reader.s;
    Ok(body)
}

/// Whether a word begins an action of the language.
pub(super) fn is_action(word: &str) -> bool {
    ACTIONS.iter().any(|item| item.name == word)
}

/// Whether a word is a key of the language.
pub(super) fn is_key(word: &str) -> bool {
    KEYS.iter().any(|item| item.name == word)
}

/// The text of keys or actions.
pub fn print(nodes: &[Node]) -> String {
    nodes.iter().map(Node::to_string).collect::<Vec<_>>().join(",")
}

/// Keys or actions as JSON: an array of objects, each with the name of the key or action, and what stands inside.
pub fn json(nodes: &[Node]) -> Value {
    nodes.iter().map(Node::json).collect()
}

/// What actions stand in.
const ACTION_LISTS: [&str; 5] = ["actions", "clone", "gt", "le", "le_1"];

impl Node {
    fn new(name: &str, body: Body) -> Node {
        Node { name: name.to_owned(), body }
    }

    /// Whether it says nothing of a packet: every mask in it is zero.
    pub fn is_wildcard(&self) -> bool {
        match &self.body {
            Body::Bare => false,
            Body::Paren(text) | Body::Equals(text) => {
                text.is_empty() || text.split_once('/').is_some_and(|(_, mask)| value::is_zero(mask))
            }
            Body::Items(nodes) | Body::Braces(nodes) => nodes.iter().all(Node::is_wildcard),
        }
    }

    fn json(&self) -> Value {
        let inside = match &self.body {
            Body::Bare => json!({}),
            Body::Paren(text) | Body::Equals(text) => value::json(text),
            Body::Items(nodes) if ACTION_LISTS.contains(&self.name.as_str()) => json(nodes),
            Body::Items(nodes) | Body::Braces(nodes) => members(nodes),
        };
        match &self.body {
            Body::Bare if !is_action(&self.name) => json!({ "output": value::json(&self.name) }),
            Body::Braces(_) => inside,
            _ => json!({ self.name.as_str(): inside }),
        }
    }
}

/// What stands inside a node: an object of its fields, or an array where names repeat, or where there are none.
fn members(nodes: &[Node]) -> Value {
    let is_field = |node: &Node| matches!(node.body, Body::Equals(_) | Body::Bare) && !node.name.is_empty();
    let mut map = Map::new();
    for node in nodes.iter().filter(|node| is_field(node)) {
        let value = if node.body == Body::Bare { json!(true) } else { node.json()[&node.name].clone() };
        if map.insert(node.name.clone(), value).is_some() {
            return json(nodes);
        }
    }
    if map.len() == nodes.len() { Value::Object(map) } else { json(nodes) }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, nodes: &[Node]| {
            nodes.iter().enumerate().try_for_each(|(index, node)| {
                // Braces need nothing between them.
                let comma = index > 0 && !matches!(node.body, Body::Braces(_));
                f.write_str(if comma { "," } else { "" })?;
                node.fmt(f)
            })
        };
        f.write_str(&self.name)?;
        match &self.body {
            Body::Bare => Ok(()),
            Body::Paren(text) => write!(f, "({text})"),
            Body::Equals(text) if self.name.is_empty() => f.write_str(text),
            Body::Equals(text) => write!(f, "={text}"),
            Body::Items(nodes) => {
                f.write_str("(")?;
                list(f, nodes)?;
                f.write_str(")")
            }
            Body::Braces(nodes) => {
                f.write_str("{")?;
                list(f, nodes)?;
                f.write_str("}")
            }
        }
    }
}

struct Reader<'a> {
    s: Scanner<'a>,
    depth: usize,
}

impl<'a> Reader<'a> {
    /// Reads items up to the end of the text.
    fn list(&mut self, items: &'static [Item], what: &str) -> Result<Vec<Node>, TextError> {
        let mut nodes = Vec::new();
        loop {
            self.s.skip_separators();
            if self.s.is_at_end() {
                return Ok(nodes);
            }
            nodes.push(self.item(items, what)?);
        }
    }

    fn item(&mut self, items: &'static [Item], what: &str) -> Result<Node, TextError> {
        let place = self.s.place();
        let name = self.s.word();
        let Some(item) = items.iter().find(|item| item.name == name) else {
            let text = match name {
                "" => format!("expected a {what}, found {}", self.s.found()),
                name => format!("unknown {what} {}", quote(name)),
            };
            return Err(self.s.error_at(place, text));
        };
        self.s.expect("(")?;
        Ok(Node::new(name, self.body(item.name, &item.shape)?))
    }

    fn actions_to_end(&mut self) -> Result<Vec<Node>, TextError> {
        let mut nodes = Vec::new();
        loop {
            let before = self.s.place();
            self.s.skip_separators();
            if self.s.is_at_end() {
                return Ok(nodes);
            }
            if !nodes.is_empty() && self.s.place() == before {
                return Err(self.s.error_at(before, format!("expected \",\", found {}", self.s.found())));
            }
            let place = self.s.place();
            let node = self.action()?;
            self.push_action(&mut nodes, node, place)?;
        }
    }

    fn push_action(&mut self, nodes: &mut Vec<Node>, node: Node, place: usize) -> Result<(), TextError> {
        if !nodes.is_empty() && (node.name == "drop" || nodes[0].name == "drop") {
            return Err(self.s.error_at(place, "drop stands alone"));
        }
        nodes.push(node);
        Ok(())
    }

    fn action(&mut self) -> Result<Node, TextError> {
        let place = self.s.place();
        let name = self.s.word();
        let Some(item) = ACTIONS.iter().find(|item| item.name == name) else {
            // A port, by number or name.
            return match name {
                "" => Err(self.s.error_at(place, format!("expected an action, found {}", self.s.found()))),
                name if self.s.comes("(") => Err(self.s.error_at(place, format!("unknown action {}", quote(name)))),
                name => match Kind::Port.check(name) {
                    Ok(()) => Ok(Node::new(name, Body::Bare)),
                    Err(wanted) => Err(self.s.error_at(place, format!("{} is no {wanted}", quote(name)))),
                },
            };
        };
        if matches!(item.shape, Shape::Nothing) || (item.bare && !self.s.comes("(")) {
            return Ok(Node::new(name, Body::Bare));
        }
        self.s.expect("(")?;
        Ok(Node::new(name, self.body(item.name, &item.shape)?))
    }

    /// Reads what stands in parentheses, behind the opening one.
    fn body(&mut self, name: &str, shape: &'static Shape) -> Result<Body, TextError> {
        if self.depth == MAX_DEPTH {
            return Err(self.s.error_at(self.s.place(), format!("more than {MAX_DEPTH} levels")));
        }
        self.depth += 1;
        let body = self.inside(name, shape)?;
        self.depth -= 1;
        Ok(body)
    }

    fn inside(&mut self, name: &str, shape: &'static Shape) -> Result<Body, TextError> {
        match shape {
            Shape::Nothing => {
                self.s.expect(")")?;
                Ok(Body::Items(Vec::new()))
            }
            Shape::One(kind) => {
                let text = self.value(name, *kind)?;
                self.s.expect(")")?;
                Ok(Body::Paren(text))
            }
            Shape::Fields(fields) => Ok(Body::Items(self.fields(name, fields, ')')?)),
            Shape::Options => {
                let mut nodes = Vec::new();
                while !self.s.at_body_end(true)? {
                    self.s.expect("{")?;
                    nodes.push(Node::new("", Body::Braces(self.fields(name, &grammar::GENEVE_OPTION, '}')?)));
                }
                Ok(Body::Items(nodes))
            }
            Shape::Keys => {
                let mut nodes = Vec::new();
                while !self.s.at_body_end(nodes.is_empty())? {
                    nodes.push(self.item(&KEYS, "key")?);
                }
                Ok(Body::Items(nodes))
            }
            Shape::Actions => {
                let mut nodes = Vec::new();
                while !self.s.at_body_end(nodes.is_empty())? {
                    let place = self.s.place();
                    let node = self.action()?;
                    self.push_action(&mut nodes, node, place)?;
                }
                Ok(Body::Items(nodes))
            }
        }
    }

    fn fields(&mut self, of: &str, fields: &'static [Field], end: char) -> Result<Vec<Node>, TextError> {
        let mut nodes: Vec<Node> = Vec::new();
        while !self.s.at_list_end(nodes.is_empty(), end)? {
            let place = self.s.place();
            let name = self.s.word();
            let known = |field: &&Field| field.name() == name;
            if let Some(field) = fields.iter().find(known) {
                nodes.push(match field {
                    Field::Is(name, kind) => {
                        self.s.expect("=")?;
                        let text = self.value(&format!("{of}: {name}"), *kind)?;
                        Node::new(name, Body::Equals(text))
                    }
                    Field::Perhaps(name, kind) if self.s.eat("=") => {
                        let text = self.value(&format!("{of}: {name}"), *kind)?;
                        Node::new(name, Body::Equals(text))
                    }
                    Field::Word(name) | Field::Perhaps(name, _) => Node::new(name, Body::Bare),
                    Field::Inner(name, shape) => {
                        self.s.expect("(")?;
                        Node::new(name, self.body(name, shape)?)
                    }
                    Field::Optional(name, shape) if self.s.comes("(") => {
                        self.s.expect("(")?;
                        Node::new(name, self.body(name, shape)?)
                    }
                    Field::Optional(name, _) => Node::new(name, Body::Bare),
                    Field::Unnamed(_) | Field::Action => Node::new(name, Body::Bare),
                });
                continue;
            }
            if let Some(Field::Unnamed(kind)) = fields.iter().find(|field| matches!(field, Field::Unnamed(_))) {
                self.s.back_to(place);
                let text = self.value(of, *kind)?;
                nodes.push(Node::new("", Body::Equals(text)));
            } else if fields.contains(&Field::Action) {
                self.s.back_to(place);
                nodes.push(self.action()?);
            } else {
                let known: Vec<&str> = fields.iter().map(Field::name).collect();
                let what = format!("{of}: no field {}, only {}", quote(name), known.join(", "));
                return Err(self.s.error_at(place, what));
            }
        }
        Ok(nodes)
    }

    fn value(&mut self, of: &str, kind: Kind) -> Result<String, TextError> {
        let place = self.s.place();
        let text = self.s.value();
        match kind.check(text) {
            Ok(()) => Ok(text.to_owned()),
            Err(wanted) => Err(self.s.error_at(place, format!("{of}: {} is no {wanted}", quote(text)))),
        }
    }
}
