//! Arguments → configuration → daemon → exit code; nothing else.

use std::process::ExitCode;

use clap::Parser as _;
use offloadd::config::{Args, Config};
use offloadd::daemon;

fn main() -> ExitCode {
    let args = Args::parse();
    match Config::load(&args).map_err(anyhow::Error::from).and_then(|config| daemon::run(config, args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("offloadd: {error:#}");
            ExitCode::FAILURE
        }
    }
}
