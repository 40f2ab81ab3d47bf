//! `--watch`: the same question again and again, and what has changed since.

use std::collections::HashSet;
use std::io::Write;
use std::time::Duration;

use crate::args::Args;
use crate::client::ClientError;
use crate::run::{Asked, Error, Failure, print};
use crate::style::{Role, Style};
use crate::surroundings::Surroundings;

/// Moves to the upper left corner and clears the screen.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Asks until it is time to end, the reader goes, or the server goes and does not come back.
pub fn watch(
    args: &Args,
    words: &[String],
    around: &mut Surroundings,
    style: Style,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let interval = args.watch.unwrap_or(Duration::from_secs(2));
    let mut asked = Asked::new(args)?;
    let mut before: Option<String> = None;
    loop {
        let mut nowhere = std::io::sink();
        let answer = match asked.answer(words, around, style, &mut nowhere) {
            // It may have been started anew.
            Err(Failure { error: Error::Client(ClientError::Closed | ClientError::Io(_)), .. }) => {
                asked = Asked::new(args)?;
                asked.answer(words, around, style, &mut nowhere)?
            }
            answer => answer?,
        };
        let shown = match around.out_is_terminal {
            true => {
                let title = format!("Every {:.1} s: offloadctl {}\n\n", interval.as_secs_f64(), words.join(" "));
                CLEAR.to_owned() + &title + &changed(before.as_deref(), &answer, style)
            }
            false if before.is_some() => format!("---\n{answer}"),
            false => answer.clone(),
        };
        asked.written(print(&shown, out))?;
        before = Some(answer);
        if !(around.pause)(interval) {
            return Ok(());
        }
    }
}

/// The answer with the lines that were not in the last one made bold.
fn changed(before: Option<&str>, answer: &str, style: Style) -> String {
    let Some(before) = before else { return answer.to_owned() };
    let old: HashSet<&str> = before.lines().collect();
    let line = |line: &str| match line.trim_end_matches('\n') {
        body if !body.is_empty() && !old.contains(body) => line.replacen(body, &style.paint(Role::Changed, body), 1),
        _ => line.to_owned(),
    };
    answer.split_inclusive('\n').map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_were_not_there_before_stand_out() {
        let style = Style::new(true);
        assert_eq!(changed(None, "a\nb\n", style), "a\nb\n");
        assert_eq!(changed(Some("a\nc\n"), "a\nb\n\n", style), "a\n\u{1b}[1mb\u{1b}[0m\n\n");
    }
}
