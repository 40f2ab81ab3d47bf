//! `offloadctl events`: what happens to flows in the device, as it happens.

use std::io::Write;
use std::time::Duration;

use clap::Parser;
use serde_json::Value;

use crate::args::Args;
use crate::run::{Asked, Error, Failure};
use crate::surroundings::Surroundings;

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(200);

/// A cursor that no daemon has come to: it means "from now on".
const NOW: u64 = u64::MAX;

#[derive(Debug, Parser)]
#[command(
    name = "offloadctl events",
    about = "Follow what happens to flows in the device",
    disable_version_flag = true
)]
struct Options {
    /// JSON, a line each
    #[arg(long)]
    json: bool,
    /// Begin with what the daemon still remembers
    #[arg(long)]
    backlog: bool,
    /// Begin behind an event: its number and one
    #[arg(long, value_name = "CURSOR", conflicts_with = "backlog")]
    since: Option<u64>,
    /// End after so many
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Only of this kind: installed, offloaded, refused, retired, evicted, reset
    #[arg(long, value_name = "KIND")]
    kind: Option<String>,
}

pub fn follow(args: &Args, words: &[String], around: &mut Surroundings, out: &mut dyn Write) -> Result<(), Failure> {
    let options = Options::try_parse_from(std::iter::once("events").chain(words.iter().map(String::as_str)));
    let usage = |error: clap::Error| Failure {
        target: String::new(),
        error: Error::Usage(error.to_string().trim_end().trim_start_matches("error: ").to_owned()),
    };
    let options = options.map_err(usage)?;
    let mut asked = Asked::new(args)?;
    let mut cursor = if options.backlog { 0 } else { options.since.unwrap_or(NOW) };
    let mut left = options.count.unwrap_or(u64::MAX);
    loop {
        let answer = asked.json("offload/events", &[cursor.to_string()]).map_err(|error| asked.failed(error))?;
        let mut text = String::new();
        let lost = answer["lost"].as_u64().unwrap_or(0);
        if lost > 0 && cursor != NOW {
            text += &if options.json { format!("{{\"lost\":{lost}}}\n") } else { format!("{lost} events are gone\n") };
        }
        let wanted = |event: &&Value| options.kind.as_deref().is_none_or(|kind| event["kind"] == kind);
        let events = answer["events"].as_array().map_or(&[][..], Vec::as_slice);
        for event in events.iter().filter(wanted).take(usize::try_from(left).unwrap_or(usize::MAX)) {
            text += &if options.json { event.to_string() } else { line(event) };
            text.push('\n');
            left -= 1;
        }
        asked.written(out.write_all(text.as_bytes()).and_then(|()| out.flush()))?;
        // A daemon that was started anew begins to count anew.
        cursor = answer["next"].as_u64().unwrap_or(0);
        if left == 0 || (events.is_empty() && !(around.pause)(INTERVAL)) {
            return Ok(());
        }
    }
}

/// An event for people: the time of day in UTC, and what happened.
fn line(event: &Value) -> String {
    let text = |name: &str| event[name].as_str().unwrap_or_default();
    let time = event["time"].as_f64().unwrap_or(0.0);
    let day = time.rem_euclid(86_400.0);
    let (hours, minutes, seconds) = (day / 3_600.0, day / 60.0 % 60.0, day % 60.0);
    let mut line = format!("{:02}:{:02}:{seconds:06.3} {:<9}", hours as u64, minutes as u64, text("kind"));
    if let Some(mark) = event["mark"].as_u64() {
        line += &format!(" mark:{mark}");
    }
    for (name, value) in [("reason", text("reason")), ("ufid", text("ufid"))] {
        if !value.is_empty() {
            line += &format!(" {name}:{value}");
        }
    }
    if !text("why").is_empty() {
        line += &format!(" ({})", text("why"));
    }
    format!("{line} {}", text("key")).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_is_a_line_whatever_is_missing() {
        let event = json!({
            "seq": 3, "time": 86_400.0 + 3_661.25, "kind": "retired", "ufid": "u", "mark": 7, "reason": null,
            "why": "the flow is gone", "key": "in_port(1)",
        });
        assert_eq!(line(&event), "01:01:01.250 retired   mark:7 ufid:u (the flow is gone) in_port(1)");
        assert_eq!(line(&json!({"kind": "reset"})), "00:00:00.000 reset");
    }
}
