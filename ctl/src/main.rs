//! The program `offloadctl`: [`offloadctl::run`] on this process's arguments and streams.
#![forbid(unsafe_code)]

use std::io;
use std::process::ExitCode;

fn main() -> ExitCode {
    offloadctl::run(std::env::args_os(), &mut io::stdout().lock(), &mut io::stderr().lock()).into()
}
