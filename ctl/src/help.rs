//! Help from the server's own list of commands.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::client::ClientError;
use crate::run::{Asked, Failure};
use crate::style::{Role, Style};

/// What one command does. A server that does not tell says at least what arguments the command takes.
pub fn of_command(asked: &mut Asked, command: &str, style: Style) -> Result<String, Failure> {
    match asked.text("help", &[command.to_owned()]) {
        Ok(text) => Ok(text),
        Err(ClientError::Server(_)) => {
            let list = asked.text("list-commands", &[]).map_err(|error| asked.failed(error))?;
            let usage = list.lines().find(|line| line.split_whitespace().next() == Some(command));
            let unknown = || asked.failed(ClientError::Server(format!("{command:?} is not a valid command")));
            Ok(style.paint(Role::Heading, usage.ok_or_else(unknown)?.trim()) + "\n")
        }
        Err(error) => Err(asked.failed(error)),
    }
}

/// What all commands do, in groups. A server that does not tell lists them at least.
pub fn of_all(asked: &mut Asked, width: usize, style: Style) -> Result<String, Failure> {
    match asked.json("help", &[]) {
        Ok(Value::Array(entries)) => Ok(grouped(&entries, width, style)),
        _ => asked.text("list-commands", &[]).map_err(|error| asked.failed(error)),
    }
}

fn grouped(entries: &[Value], width: usize, style: Style) -> String {
    let mut groups: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
    for entry in entries {
        let name = entry["name"].as_str().unwrap_or_default();
        groups.entry(name.split_once('/').map_or("", |(group, _)| group)).or_default().push(entry);
    }
    let mut out = String::new();
    for (group, entries) in groups {
        let title = if group.is_empty() { "general".to_owned() } else { format!("{group}/") };
        out += &format!("{}\n", style.paint(Role::Heading, &title));
        for entry in entries {
            let text = |name: &str| entry[name].as_str().unwrap_or_default();
            out += &format!("  {} {}\n", text("name"), text("usage")).replace(" \n", "\n");
            let help: String = text("help").split_whitespace().collect::<Vec<_>>().join(" ");
            out += &wrapped(&format!("{help} ({})", text("right")), 6, width);
        }
        out.push('\n');
    }
    out
}

/// `text` in lines of at most `width` columns, indented.
fn wrapped(text: &str, indent: usize, width: usize) -> String {
    let (mut out, mut used) = (String::new(), 0);
    for word in text.split(' ') {
        let length = word.chars().count();
        if used > 0 && used + 1 + length > width {
            out.push('\n');
            used = 0;
        }
        if used == 0 {
            out += &" ".repeat(indent);
            used = indent;
        } else {
            out.push(' ');
            used += 1;
        }
        out += word;
        used += length;
    }
    out + "\n"
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn commands_stand_in_groups_and_lines_are_not_too_long() {
        let entries = json!([
            {"name": "exit", "usage": "[--cleanup]", "help": "Ends.", "right": "admin"},
            {"name": "dpctl/show", "usage": "", "help": "Shows ports\n  and flows and whatever else there is to show.", "right": "read"},
        ]);
        assert_eq!(
            grouped(entries.as_array().unwrap(), 40, Style::new(false)),
            "general\n  exit [--cleanup]\n      Ends. (admin)\n\ndpctl/\n  dpctl/show\n      Shows ports and flows and whatever\n      else there is to show. (read)\n\n"
        );
    }
}
