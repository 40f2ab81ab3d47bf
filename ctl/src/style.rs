//! [`Style`]: colours for what is said, where they are wanted.

use anstyle::{AnsiColor, Style as Ansi};

/// How text is coloured, if at all.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    on: bool,
}

/// What a piece of text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Heading,
    /// Wholly in the device.
    Full,
    /// In the device, with a mark.
    Mark,
    Refused,
    Error,
    /// Changed since it was last looked at.
    Changed,
}

/// Words that say where a flow is, and what they are.
const STATES: [(&str, Role); 6] = [
    ("offloaded:yes", Role::Full),
    ("offloaded:partial", Role::Mark),
    ("full", Role::Full),
    ("mark", Role::Mark),
    ("refused", Role::Refused),
    ("reason:", Role::Refused),
];

impl Style {
    pub fn new(on: bool) -> Style {
        Style { on }
    }

    /// Whether there are colours.
    #[cfg(feature = "top")]
    pub fn is_on(self) -> bool {
        self.on
    }

    /// `text`, coloured.
    pub fn paint(self, role: Role, text: &str) -> String {
        if !self.on || text.is_empty() {
            return text.to_owned();
        }
        let colour = |colour: AnsiColor| Ansi::new().fg_color(Some(colour.into()));
        let style = match role {
            Role::Heading | Role::Changed => Ansi::new().bold(),
            Role::Full => colour(AnsiColor::Green),
            Role::Mark => colour(AnsiColor::Cyan),
            Role::Refused => colour(AnsiColor::Yellow),
            Role::Error => colour(AnsiColor::Red).bold(),
        };
        format!("{style}{text}{style:#}")
    }

    /// A word that says where a flow is, coloured; others as they are.
    pub fn state(self, word: &str) -> String {
        match STATES.iter().find(|(known, _)| *known == word) {
            Some((_, role)) => self.paint(*role, word),
            None => word.to_owned(),
        }
    }

    /// The daemon's own text: headings, and states of flows.
    pub fn text(self, text: &str) -> String {
        if !self.on {
            return text.to_owned();
        }
        let line = |line: &str| {
            let body = line.trim_end_matches('\n');
            if !body.starts_with(' ') && body.ends_with(':') {
                return line.replacen(body, &self.paint(Role::Heading, body), 1);
            }
            let painted = |line: String, (word, role): &(&str, Role)| match word.contains(':') {
                true => line.replacen(word, &self.paint(*role, word), 1),
                false => line,
            };
            STATES.iter().fold(line.to_owned(), painted)
        };
        text.split_inclusive('\n').map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_coloured_only_where_that_is_wanted() {
        let text = "flow-dump from poller: 0:\nufid:1, dp:ovs, offloaded:yes, actions:2\n";
        assert_eq!(Style::new(false).text(text), text);
        let coloured = Style::new(true).text(text);
        assert!(coloured.starts_with("\u{1b}[1mflow-dump from poller: 0:\u{1b}[0m\n"), "{coloured:?}");
        assert!(coloured.contains("\u{1b}[32moffloaded:yes\u{1b}[0m, actions:2\n"), "{coloured:?}");
        assert_eq!(Style::new(true).state("other"), "other");
    }
}
