//! [`run`]: the whole program, from arguments to exit status.

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use serde_json::Value;

use crate::args::{Args, Call, Format};
use crate::client::{Client, ClientError};
use crate::rundir::{Places, TargetError};

/// How the program ends; the values are its exit statuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The server did what was asked.
    Done = 0,
    /// Wrong usage, no connection, no answer in time, or an answer that was not understood.
    Failed = 1,
    /// The server answered that it could not.
    Refused = 2,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// Runs `offloadctl` with `args` (the program's name first): the answer goes to `out`, everything else to `err`.
pub fn run(
    args: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Exit {
    let args = match Args::try_parse_from(args) {
        Ok(args) => args,
        Err(usage) if usage.use_stderr() => {
            let _ = write!(err, "{usage}");
            return Exit::Failed;
        }
        Err(help) => return finish(write!(out, "{help}"), err),
    };
    match ask(&args) {
        Ok(answer) => finish(print(&answer, out), err),
        Err(Failure { target, error: Error::Client(ClientError::Server(message)) }) => {
            let _ = writeln!(err, "{}\noffloadctl: {target}: server returned an error", message.trim_end());
            Exit::Refused
        }
        Err(Failure { target, error: Error::Client(error @ (ClientError::TimedOut | ClientError::Closed)) }) => {
            let _ = writeln!(err, "offloadctl: {target}: {error}");
            Exit::Failed
        }
        Err(Failure { error, .. }) => {
            let _ = writeln!(err, "offloadctl: {error}");
            Exit::Failed
        }
    }
}

/// What went wrong, and with whom.
struct Failure {
    target: String,
    error: Error,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("--pretty is supported with --format json only")]
    PrettyText,
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("{target}: the answer is no text (try --format json)")]
    NotText { target: String },
}

fn ask(args: &Args) -> Result<String, Failure> {
    let deadline = args.patience().map(|patience| Instant::now() + patience);
    let name = args.target.as_deref();
    let failed = |error| Failure { target: name.unwrap_or(crate::rundir::DAEMON).to_owned(), error };
    if args.pretty && args.format == Format::Text {
        return Err(failed(Error::PrettyText));
    }
    let target = Places::from_env().resolve(name).map_err(|error| failed(error.into()))?;
    let mut client = Client::connect(&target.socket, deadline).map_err(|error| failed(error.into()))?;
    let Call::Verbatim(words) = &args.call;
    // clap gives an external subcommand its name, always.
    let (command, rest) = words.split_first().expect("a subcommand has a name");
    if args.format == Format::Json {
        client.call("set-options", &["--format".into(), "json".into()]).map_err(|error| failed(error.into()))?;
    }
    let answer = client.call(command, rest).map_err(|error| failed(error.into()))?;
    match (args.format, answer) {
        (Format::Text, Value::String(text)) => Ok(text),
        (Format::Text, _) => Err(failed(Error::NotText { target: target.name })),
        (Format::Json, answer) if args.pretty => Ok(format!("{answer:#}")),
        (Format::Json, answer) => Ok(answer.to_string()),
    }
}

/// Prints the answer with a final newline; of an empty answer, nothing.
fn print(answer: &str, out: &mut dyn Write) -> io::Result<()> {
    out.write_all(answer.as_bytes())?;
    if !answer.is_empty() && !answer.ends_with('\n') {
        out.write_all(b"\n")?;
    }
    out.flush()
}

/// A reader that went away (`offloadctl … | head`) is no failure; a full disk is.
fn finish(written: io::Result<()>, err: &mut dyn Write) -> Exit {
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let _ = writeln!(err, "offloadctl: cannot write the answer: {error}");
            Exit::Failed
        }
        _ => Exit::Done,
    }
}
