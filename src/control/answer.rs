//! [`Answer`]: what a command says, for people and for programs; [`CommandError`]: that it could not, and why.

use std::fmt::{self, Display};

use serde::Serialize;
use serde_json::{Value, json};

/// A command's answer. Text and JSON say the same; only the form that the client wants is made.
pub struct Answer(Content);

enum Content {
    Text(String),
    Both(String, Value),
    Either(Box<dyn Say + Send>),
}

/// The form in which a client wants answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Text,
    Json,
}

impl Answer {
    /// Nothing to say: an empty text, an empty JSON object.
    pub fn nothing() -> Answer {
        Answer::text(String::new())
    }

    /// Text only. A client that wants JSON gets it in the wrapper that Open vSwitch uses: `{"reply":TEXT,"reply-format":"plain"}`.
    pub fn text(text: impl Into<String>) -> Answer {
        Answer(Content::Text(text.into()))
    }

    /// Text and JSON, both made already.
    pub fn new(text: impl Into<String>, json: Value) -> Answer {
        Answer(Content::Both(text.into(), json))
    }

    /// A value that can be shown either way.
    pub fn of(value: impl Display + Serialize + Send + 'static) -> Answer {
        Answer(Content::Either(Box::new(value)))
    }

    /// The answer in the form that the client wants; an error if the value cannot be JSON (a map whose keys are no strings, say).
    pub(super) fn render(self, format: Format) -> Result<Value, CommandError> {
        match (format, self.0) {
            (Format::Text, Content::Text(text) | Content::Both(text, _)) => Ok(text.into()),
            (Format::Text, Content::Either(value)) => Ok(value.text().into()),
            (Format::Json, Content::Text(text)) if text.is_empty() => Ok(json!({})),
            (Format::Json, Content::Text(text)) => Ok(json!({"reply": text, "reply-format": "plain"})),
            (Format::Json, Content::Both(_, json)) => Ok(json),
            (Format::Json, Content::Either(value)) => Ok(value.json()?),
        }
    }
}

/// What can be shown as text and as JSON.
trait Say {
    fn text(&self) -> String;
    fn json(&self) -> serde_json::Result<Value>;
}

impl<T: Display + Serialize> Say for T {
    fn text(&self) -> String {
        self.to_string()
    }

    fn json(&self) -> serde_json::Result<Value> {
        serde_json::to_value(self)
    }
}

/// Why a command failed: one line that says what was refused and what would be accepted.
///
/// Any error turns into it by `?`. (That is why it is no `std::error::Error` itself.)
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandError(String);

impl CommandError {
    pub fn new(message: impl Into<String>) -> CommandError {
        CommandError(one_line(&message.into()))
    }
}

/// `text` with its control characters escaped: what a user wrote comes back in messages, and must neither break their one
/// line nor drive a terminal.
pub fn one_line(text: &str) -> String {
    let escape = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(escape).collect()
}

impl Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<E: std::error::Error> From<E> for CommandError {
    fn from(error: E) -> CommandError {
        CommandError::new(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_whatever_the_user_wrote() {
        assert_eq!(CommandError::new("no \"a\nb\x1b[31m\" – ü").to_string(), "no \"a\\nb\\u{1b}[31m\" – ü");
    }

    #[test]
    fn each_kind_of_answer_has_both_forms() {
        let shown = |answer: fn() -> Answer| {
            (answer().render(Format::Text).unwrap(), answer().render(Format::Json).unwrap().to_string())
        };
        assert_eq!(shown(Answer::nothing), (json!(""), "{}".into()));
        assert_eq!(shown(|| Answer::text("x\n")), (json!("x\n"), r#"{"reply":"x\n","reply-format":"plain"}"#.into()));
        assert_eq!(shown(|| Answer::new("one", json!([1]))), (json!("one"), "[1]".into()));
        assert_eq!(shown(|| Answer::of(7)), (json!("7"), "7".into()));
    }
}
