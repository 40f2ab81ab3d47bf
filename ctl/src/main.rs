//! The program `offloadctl`: [`offloadctl::run_in`] on this process's arguments, streams and surroundings.
#![forbid(unsafe_code)]

use std::io;
use std::process::ExitCode;

use offloadctl::surroundings::Surroundings;

fn main() -> ExitCode {
    let around = Surroundings::of_process();
    offloadctl::run_in(std::env::args_os(), around, &mut io::stdout().lock(), &mut io::stderr().lock()).into()
}
