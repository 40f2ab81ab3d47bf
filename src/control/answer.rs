//! [`Answer`]: what a command says, for people and for programs; [`CommandError`]: that it could not, and why.
//!
//! ```text
//!   Answer::nothing, new, of   said at once, whole
//!   Answer::paged              said part by part, each made when the client has read the one before: [`Part`], [`Pages`]
//!   Answer::working            not yet known; how far the work is can be told meanwhile: [`Progress`]
//! ```

use std::fmt::{self, Display};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use serde_json::{Value, json};

use super::registry::Reply;

/// A command's answer. Text and JSON say the same; only the form that the client wants is made.
pub struct Answer(Content);

enum Content {
    Both(String, Value),
    Either(Box<dyn Say + Send>),
    Paged(Box<dyn FnOnce(Format) -> Pages + Send>),
    Working(Arc<Progress>, Reply),
}

/// The form in which a client wants answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Text,
    Json,
}

/// What comes of an answer in one form.
pub(super) enum Rendered {
    Whole(Value),
    Paged(Format, Pages),
    Working(Arc<Progress>, Reply),
}

/// The next part of a long answer, later.
pub type Pages = Pin<Box<dyn Future<Output = Result<Part, CommandError>> + Send>>;

/// Some of a long answer: whole lines of text or, in JSON, elements of the one array that the answer is.
///
/// An error instead of the first part is the command's error. One instead of a later part ends the connection: what was said
/// cannot be taken back, and must not look whole.
pub struct Part {
    format: Format,
    said: String,
    rest: Option<Pages>,
}

impl Part {
    /// Nothing said so far, and nothing to follow.
    pub fn new(format: Format) -> Part {
        Part { format, said: String::new(), rest: None }
    }

    /// The form in which to add.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Adds to a part of text. (Nothing to a part of JSON.)
    pub fn text(&mut self, add: impl FnOnce(&mut String)) {
        if self.format == Format::Text {
            add(&mut self.said);
        }
    }

    /// Adds an element to a part of JSON. (Nothing to a part of text.)
    pub fn row(&mut self, row: &impl Serialize) -> Result<(), CommandError> {
        if self.format == Format::Json {
            let text = serde_json::to_string(row)?;
            if !self.said.is_empty() {
                self.said.push(',');
            }
            self.said.push_str(&text);
        }
        Ok(())
    }

    /// The same, and `rest` to follow it.
    pub fn then(mut self, rest: Pages) -> Part {
        self.rest = Some(rest);
        self
    }

    pub(super) fn into_inner(self) -> (String, Option<Pages>) {
        (self.said, self.rest)
    }
}

/// How far a long piece of work is, of its units (flows, lines). Whoever does the work says so, from any thread.
#[derive(Debug, Default)]
pub struct Progress {
    pub done: AtomicU64,
    /// 0 while it is not known.
    pub total: AtomicU64,
}

impl Progress {
    /// Done, and of how many.
    pub fn get(&self) -> (u64, u64) {
        // Two numbers for people to look at; nothing depends on them.
        (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed))
    }
}

impl Answer {
    /// Nothing to say: an empty text, an empty JSON object.
    pub fn nothing() -> Answer {
        Answer::new("", json!({}))
    }

    /// Text and JSON, both made already.
    pub fn new(text: impl Into<String>, json: Value) -> Answer {
        Answer(Content::Both(text.into(), json))
    }

    /// A value that can be shown either way.
    pub fn of(value: impl Display + Serialize + Send + 'static) -> Answer {
        Answer(Content::Either(Box::new(value)))
    }

    /// An answer that is too long to be made at once. `first` begins it; its JSON is an array.
    pub fn paged(first: impl FnOnce(Format) -> Pages + Send + 'static) -> Answer {
        Answer(Content::Paged(Box::new(first)))
    }

    /// An answer that takes its time; clients that want to know are told meanwhile how far it is.
    pub fn working(progress: Arc<Progress>, reply: Reply) -> Answer {
        Answer(Content::Working(progress, reply))
    }

    /// The answer in the form that the client wants; an error if the value cannot be JSON (a map whose keys are no strings, say).
    pub(super) fn render(self, format: Format) -> Result<Rendered, CommandError> {
        Ok(Rendered::Whole(match (format, self.0) {
            (_, Content::Paged(first)) => return Ok(Rendered::Paged(format, first(format))),
            (_, Content::Working(progress, reply)) => return Ok(Rendered::Working(progress, reply)),
            (Format::Text, Content::Both(text, _)) => ended(text).into(),
            (Format::Text, Content::Either(value)) => ended(value.text()).into(),
            (Format::Json, Content::Both(_, json)) => json,
            (Format::Json, Content::Either(value)) => value.json()?,
        }))
    }

    /// What a short answer says, for tests of what makes it.
    #[cfg(test)]
    pub(super) fn said(self, format: Format) -> Result<Value, CommandError> {
        match self.render(format)? {
            Rendered::Whole(value) => Ok(value),
            Rendered::Paged(..) | Rendered::Working(..) => panic!("the answer is not said at once"),
        }
    }
}

/// The text with its last line ended: older clients print it as it is.
pub(super) fn ended(mut text: String) -> String {
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text
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
            (answer().said(Format::Text).unwrap(), answer().said(Format::Json).unwrap().to_string())
        };
        assert_eq!(shown(Answer::nothing), (json!(""), "{}".into()));
        assert_eq!(shown(|| Answer::new("one", json!([1]))), (json!("one\n"), "[1]".into()));
        assert_eq!(shown(|| Answer::of(7)), (json!("7\n"), "7".into()));
    }

    #[test]
    fn a_part_takes_what_its_form_needs_and_nothing_else() {
        let said = |format| {
            let mut part = Part::new(format);
            part.text(|out| out.push_str("a\n"));
            part.row(&1).unwrap();
            part.row(&"b").unwrap();
            part.into_inner().0
        };
        assert_eq!((said(Format::Text).as_str(), said(Format::Json).as_str()), ("a\n", "1,\"b\""));
    }
}
