//! Arguments → configuration → daemon → exit code; nothing else.

use std::process::ExitCode;

use clap::Parser as _;
use offloadd::config::{Args, Config};
use offloadd::control::answer::one_line;
use offloadd::daemon;
use offloadd::telemetry::log::stderr_is_journal;

fn main() -> ExitCode {
    let args = Args::parse();
    match Config::load(&args).map_err(anyhow::Error::from).and_then(|config| daemon::run(config, args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The journal's mark of an error.
            let priority = if stderr_is_journal() { "<3>" } else { "" };
            eprintln!("{priority}offloadd: {}", one_line(&told_once(&error)));
            ExitCode::FAILURE
        }
    }
}

/// The error and its causes, without those that the text so far ends with already.
fn told_once(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| match text.as_str() {
        "" => cause,
        told if told.ends_with(&cause) => text,
        _ => format!("{text}: {cause}"),
    })
}
