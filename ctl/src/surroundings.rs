//! [`Surroundings`]: what the program finds itself in: terminals, their width, the environment, time.

use std::env;
use std::io::{IsTerminal, stderr, stdout};
use std::thread;
use std::time::Duration;

use rustix::termios::tcgetwinsize;

use crate::args::Colour;

/// Columns where nobody says how many there are.
const WIDTH: usize = 80;

/// Everything outside that decides how answers look. Tests make their own.
pub struct Surroundings {
    pub out_is_terminal: bool,
    pub err_is_terminal: bool,
    /// Columns.
    pub width: usize,
    /// What the environment wants of colours, if anything.
    pub colour: Option<bool>,
    /// Lets time pass; `false`: it is time to end.
    pub pause: Box<dyn FnMut(Duration) -> bool>,
}

impl Surroundings {
    /// Those of this process.
    pub fn of_process() -> Surroundings {
        let width = tcgetwinsize(stdout()).ok().map(|size| usize::from(size.ws_col)).filter(|width| *width > 0);
        let columns = || env::var("COLUMNS").ok()?.parse().ok();
        Surroundings {
            out_is_terminal: stdout().is_terminal(),
            err_is_terminal: stderr().is_terminal(),
            width: width.or_else(columns).unwrap_or(WIDTH),
            colour: colour_of(|name| env::var(name).ok()),
            pause: Box::new(|time| {
                thread::sleep(time);
                true
            }),
        }
    }

    /// No terminal, no colours: output goes to a program.
    pub fn plain() -> Surroundings {
        Surroundings {
            out_is_terminal: false,
            err_is_terminal: false,
            width: WIDTH,
            colour: None,
            pause: Box::new(|time| {
                thread::sleep(time);
                true
            }),
        }
    }

    /// Whether output is to be coloured.
    pub fn wants_colour(&self, wish: Colour) -> bool {
        match wish {
            Colour::Always => true,
            Colour::Never => false,
            Colour::Auto => self.colour.unwrap_or(self.out_is_terminal),
        }
    }
}

/// `NO_COLOR` (<https://no-color.org>), `CLICOLOR_FORCE`, and a terminal that cannot.
fn colour_of(variable: impl Fn(&str) -> Option<String>) -> Option<bool> {
    let is_set = |name: &str| variable(name).is_some_and(|value| !value.is_empty());
    if is_set("NO_COLOR") {
        return Some(false);
    }
    if variable("CLICOLOR_FORCE").is_some_and(|value| !value.is_empty() && value != "0") {
        return Some(true);
    }
    (variable("TERM").as_deref() == Some("dumb")).then_some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_for_terminals_unless_somebody_says_otherwise() {
        let of = |set: &[(&str, &str)]| {
            colour_of(|name| set.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
        };
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[("NO_COLOR", "1"), ("CLICOLOR_FORCE", "1")]), Some(false));
        assert_eq!((of(&[("NO_COLOR", "")]), of(&[("CLICOLOR_FORCE", "0")])), (None, None));
        assert_eq!((of(&[("CLICOLOR_FORCE", "1")]), of(&[("TERM", "dumb")])), (Some(true), Some(false)));
        let terminal = Surroundings { out_is_terminal: true, ..Surroundings::plain() };
        assert!(terminal.wants_colour(Colour::Auto) && !terminal.wants_colour(Colour::Never));
        assert!(
            !Surroundings::plain().wants_colour(Colour::Auto) && Surroundings::plain().wants_colour(Colour::Always)
        );
        let told = Surroundings { colour: Some(false), ..terminal };
        assert!(!told.wants_colour(Colour::Auto) && told.wants_colour(Colour::Always));
    }
}
