//! [`run`]: the whole program, from arguments to exit status.

use std::env;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use serde_json::Value;

use crate::args::{Args, Call, Format};
use crate::client::{Client, ClientError};
use crate::progress::Bar;
use crate::rundir::{Places, Target, TargetError};
use crate::style::{Role, Style};
use crate::suggest::nearest;
use crate::surroundings::Surroundings;
use crate::table::table;
use crate::{completions, events, help, watch};

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

/// Commands whose answers are rows: tables on a terminal.
const TABLES: [&str; 7] =
    ["config/show", "coverage/show", "fdb/show", "flow-top", "offload/explain", "offload/mark-show", "rule/dump"];

/// Commands that read a file and may take their time.
const LOADS: [&str; 4] = ["dpctl/add-flows", "dpctl/del-flows", "dpctl/mod-flows", "rule/load"];

/// Runs `offloadctl` with `args` (the program's name first) for another program: the answer goes to `out`, everything else to `err`.
pub fn run(
    args: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Exit {
    run_in(args, Surroundings::plain(), out, err)
}

/// The same, wherever it is.
pub fn run_in(
    args: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    mut around: Surroundings,
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
    let style = Style::new(around.wants_colour(args.color));
    let Call::Verbatim(words) = &args.call;
    // clap gives an external subcommand its name, always.
    let (command, rest) = words.split_first().expect("a subcommand has a name");
    let done = match command.as_str() {
        "completions" => completions::print(rest, out),
        "complete" => completions::complete(rest, || Asked::new(&args).ok(), out),
        "events" => events::follow(&args, rest, &mut around, out),
        #[cfg(feature = "top")]
        "top" => crate::top::show(&args, rest, &around, style, out),
        _ if args.watch.is_some() => watch::watch(&args, words, &mut around, style, out),
        _ => Asked::new(&args).and_then(|mut asked| {
            let answer = asked.answer(words, &around, style, err)?;
            asked.written(print(&answer, out))
        }),
    };
    match done {
        Ok(()) => Exit::Done,
        Err(failure) => failure.tell(style, err),
    }
}

/// What went wrong, and with whom.
pub(crate) struct Failure {
    pub target: String,
    pub error: Error,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("--pretty is supported with --format json only")]
    PrettyText,
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("{target}: the answer is no text (try --format json)")]
    NotText { target: String },
    #[error("cannot write the answer: {0}")]
    Write(#[source] io::Error),
    /// The server does not know the command.
    #[error("{message}")]
    Unknown { message: String, instead: Vec<String> },
}

impl Failure {
    /// Says it, and how the program ends.
    fn tell(self, style: Style, err: &mut dyn Write) -> Exit {
        let Failure { target, error } = self;
        let server = |message: &str| {
            let message = style.paint(Role::Error, message.trim_end());
            format!("{message}\n")
        };
        let blame = format!("offloadctl: {target}: server returned an error\n");
        let (text, exit) = match error {
            // Whoever reads has seen enough.
            Error::Write(error) if error.kind() == io::ErrorKind::BrokenPipe => return Exit::Done,
            Error::Client(ClientError::Server(message)) => (server(&message) + &blame, Exit::Refused),
            Error::Unknown { message, instead } if instead.is_empty() => (server(&message) + &blame, Exit::Refused),
            Error::Unknown { message, instead } => {
                let instead = format!("did you mean {}?\n", instead.join(" or "));
                (server(&message) + &instead + &blame, Exit::Refused)
            }
            Error::Client(error @ (ClientError::TimedOut | ClientError::Closed)) => {
                (format!("offloadctl: {target}: {error}\n"), Exit::Failed)
            }
            error => (format!("offloadctl: {error}\n"), Exit::Failed),
        };
        let _ = err.write_all(text.as_bytes());
        exit
    }
}

/// A server that is asked, and how its answers are to look.
pub(crate) struct Asked<'a> {
    args: &'a Args,
    pub target: Target,
    pub client: Client,
    /// What it was told to answer with.
    wire: Wire,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wire {
    Text,
    Json,
}

impl<'a> Asked<'a> {
    /// Connects to the server that the arguments name.
    pub fn new(args: &'a Args) -> Result<Asked<'a>, Failure> {
        let name = args.target.as_deref();
        let failed = |error| Failure { target: name.unwrap_or(crate::rundir::DAEMON).to_owned(), error };
        if args.pretty && args.format != Some(Format::Json) {
            return Err(failed(Error::PrettyText));
        }
        let deadline = args.patience().map(|patience| Instant::now() + patience);
        let target = Places::from_env().resolve(name).map_err(|error| failed(error.into()))?;
        let client = Client::connect(&target.socket, deadline).map_err(|error| failed(error.into()))?;
        Ok(Asked { args, target, client, wire: Wire::Text })
    }

    pub fn failed(&self, error: impl Into<Error>) -> Failure {
        let target = self.args.target.as_deref().unwrap_or(crate::rundir::DAEMON);
        Failure { target: target.to_owned(), error: error.into() }
    }

    pub fn written(&self, written: io::Result<()>) -> Result<(), Failure> {
        written.map_err(|error| self.failed(Error::Write(error)))
    }

    /// What comes of a command, ready to be printed.
    pub fn answer(
        &mut self,
        words: &[String],
        around: &Surroundings,
        style: Style,
        err: &mut dyn Write,
    ) -> Result<String, Failure> {
        let (command, rest) = words.split_first().map_or(("", &[][..]), |(command, rest)| (command.as_str(), rest));
        if rest.len() == 1 && (rest[0] == "--help" || rest[0] == "-h") {
            return help::of_command(self, command, style);
        }
        if command == "help" && rest.is_empty() && self.args.format.is_none() && around.out_is_terminal {
            return help::of_all(self, around.width, style);
        }
        let as_table = match self.args.format {
            Some(format) => format == Format::Table,
            None => around.out_is_terminal && TABLES.contains(&command),
        };
        if as_table
            && self.speak(Wire::Json).is_ok()
            && let Value::Array(rows) = self.call(command, rest, around, err)?
            && let Some(table) = table(&rows, around.width, style)
        {
            return Ok(table);
        }
        let wire = if self.args.format == Some(Format::Json) { Wire::Json } else { Wire::Text };
        self.speak(wire).map_err(|error| self.failed(error))?;
        match (wire, self.call(command, rest, around, err)?) {
            (Wire::Text, Value::String(text)) => Ok(style.text(&text)),
            (Wire::Text, _) => Err(self.failed(Error::NotText { target: self.target.name.clone() })),
            (Wire::Json, answer) if self.args.pretty => Ok(format!("{answer:#}")),
            (Wire::Json, answer) => Ok(answer.to_string()),
        }
    }

    /// A command's answer as JSON.
    pub fn json(&mut self, command: &str, rest: &[String]) -> Result<Value, ClientError> {
        self.speak(Wire::Json)?;
        self.client.call(command, rest)
    }

    /// A command's answer as text.
    pub fn text(&mut self, command: &str, rest: &[String]) -> Result<String, ClientError> {
        self.speak(Wire::Text)?;
        Ok(self.client.call(command, rest)?.as_str().unwrap_or_default().to_owned())
    }

    fn speak(&mut self, wire: Wire) -> Result<(), ClientError> {
        if self.wire != wire {
            let format = if wire == Wire::Json { "json" } else { "text" };
            self.client.call("set-options", &["--format".into(), format.into()])?;
            self.wire = wire;
        }
        Ok(())
    }

    fn call(
        &mut self,
        command: &str,
        rest: &[String],
        around: &Surroundings,
        err: &mut dyn Write,
    ) -> Result<Value, Failure> {
        let answer = match LOADS.contains(&command) {
            true => self.load(command, rest, around, err),
            false => self.client.call(command, rest),
        };
        match answer {
            Err(ClientError::Server(message)) if message.contains("is not a valid command") => {
                let instead = self.instead_of(command);
                Err(self.failed(Error::Unknown { message, instead }))
            }
            answer => answer.map_err(|error| self.failed(error)),
        }
    }

    /// Has the server read a file, which it looks for in its own directory unless told where; and shows how far it is.
    fn load(
        &mut self,
        command: &str,
        rest: &[String],
        around: &Surroundings,
        err: &mut dyn Write,
    ) -> Result<Value, ClientError> {
        let mut rest = rest.to_vec();
        if let Some(file) = rest.last_mut()
            && Path::new(&*file).is_relative()
            && Path::new(&*file).exists()
            && let Some(whole) = env::current_dir().ok().and_then(|dir| dir.join(&*file).to_str().map(str::to_owned))
        {
            *file = whole;
        }
        if !around.err_is_terminal || self.client.call("set-options", &["--progress".into()]).is_err() {
            return self.client.call(command, &rest);
        }
        let mut bar = Bar::new(around.width, err);
        let answer = self.client.call_and_watch(command, &rest, &mut |done, total| bar.show(done, total));
        bar.remove();
        answer
    }

    /// What the server knows that a command may have been meant for.
    fn instead_of(&mut self, command: &str) -> Vec<String> {
        let list = self.text("list-commands", &[]).unwrap_or_default();
        let server = list.lines().skip(1).filter_map(|line| line.split_whitespace().next());
        nearest(command, server.chain(["completions", "events", "top"])).into_iter().map(str::to_owned).collect()
    }
}

/// Prints the answer with a final newline; of an empty answer, nothing.
pub(crate) fn print(answer: &str, out: &mut dyn Write) -> io::Result<()> {
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
