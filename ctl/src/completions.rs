//! `offloadctl completions SHELL`, and `complete`, which the scripts it prints call for each word.

use std::io::Write;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::run::{Asked, Error, Failure};

const SCRIPTS: [(&str, &str); 3] = [
    ("bash", include_str!("../completions/offloadctl.bash")),
    ("zsh", include_str!("../completions/_offloadctl")),
    ("fish", include_str!("../completions/offloadctl.fish")),
];

/// The program's own words.
const OPTIONS: [&str; 9] =
    ["--target", "--timeout", "--format", "--pretty", "--color", "--watch", "--help", "--version", "-t"];
const COMMANDS: [&str; 3] = ["completions", "events", "top"];
/// Options that a value follows.
const WITH_VALUE: [&str; 7] = ["-t", "--target", "-T", "--timeout", "-f", "--format", "--color"];

/// A shell that waits is worse than one that does not know.
const PATIENCE: Duration = Duration::from_millis(300);

/// Flows whose ufids are offered, at most.
const MOST_UFIDS: usize = 200;

pub fn print(words: &[String], out: &mut dyn Write) -> Result<(), Failure> {
    let failed = |error| Failure { target: String::new(), error };
    let script = match words {
        [shell] => SCRIPTS.iter().find(|(name, _)| name == shell).map(|(_, script)| *script),
        _ => None,
    };
    let script = script.ok_or_else(|| failed(Error::Usage("usage: offloadctl completions bash|zsh|fish".into())))?;
    out.write_all(script.as_bytes()).map_err(|error| failed(Error::Write(error)))
}

/// Prints what the last of `words` (which begin behind the program's name) may become, one a line. Says nothing of trouble.
pub fn complete<'a>(
    words: &[String],
    connect: impl FnOnce() -> Option<Asked<'a>>,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let words = words.strip_prefix(&["--".to_owned()]).unwrap_or(words);
    let Some((word, before)) = words.split_last() else { return Ok(()) };
    let mut server = connect();
    if let Some(server) = &mut server {
        server.client.set_deadline(Instant::now() + PATIENCE);
    }
    let mut candidates = match command(before) {
        Place::Value("-f" | "--format") => ["text", "json", "table"].map(str::to_owned).to_vec(),
        Place::Value("--color") => ["auto", "always", "never"].map(str::to_owned).to_vec(),
        Place::Value("-t" | "--target") => ["offloadd", "ovs-vswitchd", "ovsdb-server"].map(str::to_owned).to_vec(),
        Place::Value(_) => Vec::new(),
        Place::Command => {
            let known = server.as_mut().and_then(|server| server.text("list-commands", &[]).ok()).unwrap_or_default();
            let names = known.lines().skip(1).filter_map(|line| line.split_whitespace().next());
            names.chain(COMMANDS).chain(OPTIONS).map(str::to_owned).collect()
        }
        Place::Argument("completions") => ["bash", "zsh", "fish"].map(str::to_owned).to_vec(),
        Place::Argument(command) => server.map(|mut server| arguments(&mut server, command)).unwrap_or_default(),
    };
    candidates.retain(|candidate| candidate.starts_with(word.as_str()));
    candidates.sort();
    candidates.dedup();
    let text: String = candidates.iter().flat_map(|candidate| [candidate.as_str(), "\n"]).collect();
    let _ = out.write_all(text.as_bytes());
    Ok(())
}

/// Where the word to complete stands.
#[derive(Debug, PartialEq, Eq)]
enum Place<'a> {
    Command,
    /// Behind an option that wants a value.
    Value(&'a str),
    /// Behind a command.
    Argument(&'a str),
}

fn command(before: &[String]) -> Place<'_> {
    let mut words = before.iter().map(String::as_str);
    while let Some(word) = words.next() {
        if WITH_VALUE.contains(&word) {
            if words.next().is_none() {
                return Place::Value(word);
            }
        } else if !word.starts_with('-') {
            return Place::Argument(word);
        }
    }
    Place::Command
}

/// What the usage of a command names: options and words as they are, and ports, ufids and commands that there are.
fn arguments(server: &mut Asked, command: &str) -> Vec<String> {
    let Ok(entry) = server.json("help", &[command.to_owned()]) else { return Vec::new() };
    let usage = entry["usage"].as_str().unwrap_or_default();
    let is_word = |word: &&str| !word.is_empty() && !word.chars().any(|c| c.is_ascii_uppercase());
    let split = |c: char| " []|{}".contains(c) || c == '…';
    let mut words: Vec<String> = usage.split(split).filter(is_word).map(str::to_owned).collect();
    words.retain(|word| word.chars().any(char::is_alphanumeric));
    let names = |name: &str| usage.split(|c: char| !c.is_ascii_uppercase()).any(|word| word == name);
    if names("PORT") || names("NAME") {
        let show = server.json("dpctl/show", &[]).unwrap_or_default();
        words.extend(texts(&show["ports"], "name"));
    }
    if names("UFID") {
        let flows = server.json("dpctl/dump-flows", &[]).unwrap_or_default();
        let prefix = if usage.contains("ufid:") { "ufid:" } else { "" };
        words.extend(texts(&flows, "ufid").take(MOST_UFIDS).map(|ufid| format!("{prefix}{ufid}")));
    }
    if names("COMMAND") {
        let all = server.json("help", &[]).unwrap_or_default();
        words.extend(texts(&all, "name"));
    }
    words.retain(|word| word != "ufid:");
    words
}

fn texts<'a>(rows: &'a Value, name: &'a str) -> impl Iterator<Item = String> + 'a {
    rows.as_array().into_iter().flatten().filter_map(move |row| Some(row[name].as_str()?.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_a_word_is_found_behind_options_and_their_values() {
        let place = |line: &'static str| {
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            format!("{:?}", command(&words))
        };
        assert_eq!(place("--pretty -T 3"), "Command");
        assert_eq!(place("-t"), "Value(\"-t\")");
        assert_eq!(place("-f json dpctl/show -s"), "Argument(\"dpctl/show\")");
    }

    #[test]
    fn what_needs_no_server_is_completed_without_one() {
        let complete = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            let mut out = Vec::new();
            assert!(complete(&words, || None, &mut out).is_ok());
            String::from_utf8(out).unwrap()
        };
        assert_eq!(complete(&["--p"]), "--pretty\n");
        assert_eq!(complete(&["completions", "b"]), "bash\n");
        assert_eq!(complete(&["-f", ""]), "json\ntable\ntext\n");
        assert_eq!(complete(&["dpctl/show", ""]), "");
    }
}
