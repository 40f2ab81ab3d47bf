//! [`Registry`]: the commands there are.
//!
//! Each part of the daemon declares its commands in a table of [`Command`]s; dispatch, `list-commands`, `help` and the check of
//! arguments all read it. Handlers get a context of the daemon's choosing, so nothing in here knows the daemon.
//!
//! ```
//! use offloadd::control::{Answer, Command, CommandError, Registry, Right};
//!
//! static COMMANDS: &[Command<u64>] = &[Command {
//!     name: "toy/add",
//!     usage: "NUMBER",
//!     help: "Adds NUMBER to the daemon's favourite.",
//!     args: 1..=1,
//!     right: Right::Read,
//!     run: |favourite, args| {
//!         Box::pin(async move {
//!             let number: u64 = args[0].parse().map_err(|_| CommandError::new(format!("{:?} is no number", args[0])))?;
//!             Ok(Answer::of(favourite.wrapping_add(number)))
//!         })
//!     },
//! }];
//!
//! let mut registry = Registry::new("toyd 1.0");
//! registry.add(COMMANDS, 42);
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::ops::RangeInclusive;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use jsonrpc_core::{Call, ErrorCode, Id, MetaIoHandler, MethodCall, Output, Params};
use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::Value;

use super::answer::{Answer, CommandError, Format, one_line};

/// A command, as its part of the daemon declares it.
pub struct Command<C: 'static> {
    /// The name that clients call, like `dpctl/show`.
    pub name: &'static str,
    /// The arguments as `list-commands` shows them, like `[-m] [DP]`; empty if there are none.
    pub usage: &'static str,
    /// What the command does, in a sentence or more.
    pub help: &'static str,
    /// How many arguments it takes; the handler gets no other number of them.
    pub args: RangeInclusive<usize>,
    /// What a client must be allowed, to call it.
    pub right: Right,
    /// Starts the command. What it does before the future's first await is done on the server's thread at once: it must be short.
    pub run: fn(C, Vec<String>) -> Reply,
}

/// What a command may touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Right {
    /// Looks, changes nothing.
    Read,
    /// Changes what the switch does.
    Write,
    /// Changes or ends the daemon itself.
    Admin,
}

/// A command's answer, now or later. Whoever completes it later wakes the server through the future's waker, as futures do
/// (`futures_channel::oneshot` does). It is dropped unfinished if the client goes away.
pub type Reply = Pin<Box<dyn Future<Output = Result<Answer, CommandError>> + Send>>;

/// Waits for `future` no longer than `limit`, so that a command cannot hang on a thread that does not answer.
///
/// The server looks at unfinished commands every [tick](super::server::TICK), so the limit is kept to within one.
pub async fn deadline<T>(limit: Duration, future: impl Future<Output = T>) -> Result<T, CommandError> {
    let start = Instant::now();
    let mut future = pin!(future);
    poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(value) => Poll::Ready(Ok(value)),
        Poll::Pending if start.elapsed() >= limit => {
            Poll::Ready(Err(CommandError::new(format!("no answer within {}", humantime::format_duration(limit)))))
        }
        Poll::Pending => Poll::Pending,
    })
    .await
}

/// All commands, with their contexts.
pub struct Registry {
    dispatch: MetaIoHandler<Arc<Peer>>,
    catalog: Catalog,
    version: &'static str,
}

/// What is known of the client of one connection.
#[derive(Default)]
pub(super) struct Peer {
    wants_json: AtomicBool,
}

impl Peer {
    fn format(&self) -> Format {
        if self.wants_json.load(Ordering::Relaxed) { Format::Json } else { Format::Text }
    }
}

impl Registry {
    /// The built-in commands: `help`, `list-commands`, `set-options` and `version`, which answers `version`, like `offloadd 0.1.0`.
    pub fn new(version: &'static str) -> Registry {
        let dispatch = MetaIoHandler::with_compatibility(jsonrpc_core::Compatibility::V1);
        let mut registry = Registry { dispatch, catalog: Catalog::default(), version };
        registry.add_set_options();
        registry
    }

    /// Adds commands whose handlers get a clone of `context` each time.
    ///
    /// # Panics
    /// If there is a command of the same name already: that is a mistake in the program, found by its first start.
    pub fn add<C: Clone + Send + Sync + 'static>(&mut self, commands: &[Command<C>], context: C) {
        for command in commands {
            self.catalog.add(command);
            add_method(&mut self.dispatch, command, context.clone());
        }
    }

    /// Lets clients choose between text and JSON, as Open vSwitch's do.
    fn add_set_options(&mut self) {
        let command = Command::<()> {
            name: "set-options",
            usage: "[--format text|json]",
            help: "Chooses the form of this connection's answers, this one included.",
            args: 1..=2,
            right: Right::Read,
            // Never called: it is about the connection, which handlers do not see.
            run: |(), _| Box::pin(async { Ok(Answer::nothing()) }),
        };
        self.catalog.add(&command);
        let args = command.args;
        self.dispatch.add_method_with_meta(command.name, move |params: Params, peer: Arc<Peer>| {
            let chosen = arguments("set-options", &args, params)
                .and_then(|args| chosen_format(&args).map_err(|error| failure(error.to_string())));
            async move {
                peer.wants_json.store(chosen? == Format::Json, Ordering::Relaxed);
                answer_to(Ok(Answer::nothing()), &peer)
            }
        });
    }

    /// The finished table: `help` and `list-commands` know all commands now.
    pub(super) fn finish(mut self) -> Dispatch {
        BUILT_IN.iter().for_each(|command| self.catalog.add(command));
        let context = Arc::new(BuiltIn { version: self.version, catalog: self.catalog });
        BUILT_IN.iter().for_each(|command| add_method(&mut self.dispatch, command, context.clone()));
        Dispatch(self.dispatch)
    }
}

/// Finds and runs the command that a request names.
pub(super) struct Dispatch(MetaIoHandler<Arc<Peer>>);

/// What comes of a request: the result, or the error's text. Text for people ends its last line: older clients print it as it is.
pub(super) type Outcome = Pin<Box<dyn Future<Output = Result<Value, String>> + Send>>;

impl Dispatch {
    /// Starts the command.
    pub(super) fn call(&self, method: String, params: Vec<Value>, peer: Arc<Peer>) -> Outcome {
        let unknown = one_line(&format!(
            "\"{method}\" is not a valid command (use \"list-commands\" to see a list of valid commands)"
        ));
        // The request's own id may be any JSON value, which jsonrpc-core's may not; the session puts it into the reply.
        let call = MethodCall { jsonrpc: None, method, params: Params::Array(params), id: Id::Num(0) };
        let output = self.0.handle_call(Call::MethodCall(call), peer.clone());
        Box::pin(async move {
            let outcome = match output.await {
                Some(Output::Success(success)) => Ok(success.result),
                Some(Output::Failure(failure)) if failure.error.code == ErrorCode::MethodNotFound => Err(unknown),
                Some(Output::Failure(failure)) => Err(failure.error.message),
                None => Err("the command gave no answer".into()), // only notifications have none, and this is a call
            };
            match (peer.format(), outcome) {
                (Format::Text, Ok(Value::String(text))) => Ok(Value::String(ended(text))),
                (Format::Text, Err(text)) => Err(ended(text)),
                (_, outcome) => outcome,
            }
        })
    }
}

/// The text with its last line ended.
fn ended(mut text: String) -> String {
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

fn add_method<C: Clone + Send + Sync + 'static>(
    dispatch: &mut MetaIoHandler<Arc<Peer>>,
    command: &Command<C>,
    context: C,
) {
    let (name, run, args) = (command.name, command.run, command.args.clone());
    dispatch.add_method_with_meta(name, move |params: Params, peer: Arc<Peer>| {
        let reply = arguments(name, &args, params).map(|args| run(context.clone(), args));
        async move { answer_to(reply?.await, &peer) }
    });
}

fn answer_to(result: Result<Answer, CommandError>, peer: &Peer) -> jsonrpc_core::Result<Value> {
    result.and_then(|answer| answer.render(peer.format())).map_err(|error| failure(error.to_string()))
}

fn failure(message: String) -> jsonrpc_core::Error {
    jsonrpc_core::Error { code: ErrorCode::ServerError(1), message, data: None }
}

/// Checks number and type of the arguments. The errors are worded as Open vSwitch's, which scripts compare with.
fn arguments(name: &str, allowed: &RangeInclusive<usize>, params: Params) -> jsonrpc_core::Result<Vec<String>> {
    let Params::Array(params) = params else { return Err(failure(format!("\"{name}\" command takes an array"))) };
    let wrong = if params.len() < *allowed.start() {
        format!("requires at least {} arguments", allowed.start())
    } else if params.len() > *allowed.end() {
        format!("takes at most {} arguments", allowed.end())
    } else {
        let strings = params.into_iter().map(|param| match param {
            Value::String(text) => Ok(text),
            _ => Err(failure(format!("\"{name}\" command has non-string argument"))),
        });
        return strings.collect();
    };
    Err(failure(format!("\"{name}\" command {wrong}")))
}

fn chosen_format(args: &[String]) -> Result<Format, CommandError> {
    let value = match args {
        [option, value] if option == "--format" => value,
        [option] => option
            .strip_prefix("--format=")
            .ok_or_else(|| CommandError::new(format!("expected --format text or --format json, not {option:?}")))?,
        _ => {
            return Err(CommandError::new(format!(
                "expected --format text or --format json, not {:?}",
                args.join(" ")
            )));
        }
    };
    match value {
        "text" => Ok(Format::Text),
        "json" => Ok(Format::Json),
        other => Err(CommandError::new(format!("option format has invalid value {other}"))),
    }
}

/// What people may want to know of each command, by name.
#[derive(Default)]
struct Catalog(BTreeMap<&'static str, Entry>);

#[derive(Debug, Clone, Serialize)]
struct Entry {
    name: &'static str,
    usage: &'static str,
    help: &'static str,
    right: Right,
}

impl Catalog {
    fn add<C>(&mut self, command: &Command<C>) {
        let Command { name, usage, help, right, .. } = *command;
        let before = self.0.insert(name, Entry { name, usage, help, right });
        assert!(before.is_none(), "two commands are called {name:?}");
    }
}

/// `list-commands`: names and arguments, as Open vSwitch shows them in either form.
struct Listing(Arc<BuiltIn>);

impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "The available commands are:")?;
        self.0.catalog.0.values().try_for_each(|entry| writeln!(f, "  {:<23} {}", entry.name, entry.usage))
    }
}

impl Serialize for Listing {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for entry in self.0.catalog.0.values() {
            map.serialize_entry(entry.name, entry.usage)?;
        }
        map.end()
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let space = if self.usage.is_empty() { "" } else { " " };
        writeln!(f, "{}{space}{}\n  {}", self.name, self.usage, self.help)
    }
}

/// What the built-in commands need to know.
struct BuiltIn {
    version: &'static str,
    catalog: Catalog,
}

static BUILT_IN: &[Command<Arc<BuiltIn>>] = &[
    Command {
        name: "help",
        usage: "COMMAND",
        help: "Says what COMMAND does.",
        args: 1..=1,
        right: Right::Read,
        run: |this, args| {
            Box::pin(async move {
                match this.catalog.0.get(args[0].as_str()) {
                    Some(entry) => Ok(Answer::of(entry.clone())),
                    None => Err(CommandError::new(format!("{:?} is not a valid command", args[0]))),
                }
            })
        },
    },
    Command {
        name: "list-commands",
        usage: "",
        help: "Lists all commands.",
        args: 0..=0,
        right: Right::Read,
        run: |this, _| Box::pin(async move { Ok(Answer::of(Listing(this))) }),
    },
    Command {
        name: "version",
        usage: "",
        help: "Says the daemon's name and version.",
        args: 0..=0,
        right: Right::Read,
        run: |this, _| Box::pin(async move { Ok(Answer::text(this.version)) }),
    },
];
