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
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use jsonrpc_core::{Call, ErrorCode, Id, MetaIoHandler, MethodCall, Output, Params};
use offloadctl::protocol::modern;
use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::{Value, json};

pub use super::access::Right;
use super::access::{Access, Credentials};
use super::answer::{Answer, CommandError, Format, Part, Progress, Rendered, ended, one_line};
use super::server::Served;

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

/// The client of one connection.
pub(super) struct Peer {
    credentials: Credentials,
    access: Arc<ArcSwap<Access>>,
    served: Arc<Served>,
    wants_json: AtomicBool,
    wants_progress: AtomicBool,
    /// Where a command leaves an answer that is more than a value. Calls of one client come one after the other, so there is one place.
    longer: Mutex<Option<Said>>,
}

impl Peer {
    pub(super) fn new(credentials: Credentials, access: Arc<ArcSwap<Access>>, served: Arc<Served>) -> Peer {
        let (wants_json, wants_progress) = Default::default();
        Peer { credentials, access, served, wants_json, wants_progress, longer: Mutex::default() }
    }

    /// Whether it is to be told how far a long command is.
    pub(super) fn wants_progress(&self) -> bool {
        self.wants_progress.load(Ordering::Relaxed)
    }

    fn format(&self) -> Format {
        if self.wants_json.load(Ordering::Relaxed) { Format::Json } else { Format::Text }
    }

    fn longer(&self) -> std::sync::MutexGuard<'_, Option<Said>> {
        self.longer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// # Errors
    /// Says which right is missing, and logs it.
    fn must_have(&self, right: Right, command: &str) -> jsonrpc_core::Result<()> {
        if self.access.load().allows(&self.credentials, right) {
            return Ok(());
        }
        log::warn!(target: "control", "refused: {command}, to {}, who has no {right} access", self.credentials);
        let message = format!(
            "{command} needs {right} access, which user {} does not have ([control] of offloadd.toml says who has)",
            self.credentials.uid
        );
        Err(failure(modern::NOT_ALLOWED, message))
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

    /// Lets clients choose between text and JSON, as Open vSwitch's do, and be told of progress.
    fn add_set_options(&mut self) {
        let command = Command::<()> {
            name: "set-options",
            usage: "[--format text|json] [--progress]",
            help: "Chooses the form of this connection's answers, this one included; with --progress, long commands tell \
                   meanwhile how far they are, by notifications.",
            args: 1..=3,
            right: Right::Read,
            // Never called: it is about the connection, which handlers do not see.
            run: |(), _| Box::pin(async { Ok(Answer::nothing()) }),
        };
        self.catalog.add(&command);
        let args = command.args;
        self.dispatch.add_method_with_meta(command.name, move |params: Params, peer: Arc<Peer>| {
            let chosen = arguments("set-options", &args, params)
                .and_then(|args| Chosen::read(&args).map_err(|error| failure(modern::FAILED, error.to_string())));
            async move {
                let Chosen { format, progress } = chosen?;
                if let Some(format) = format {
                    peer.wants_json.store(format == Format::Json, Ordering::Relaxed);
                }
                if progress {
                    peer.wants_progress.store(true, Ordering::Relaxed);
                }
                leave(settle(Ok(Answer::nothing()), peer.format()).await, &peer)
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

/// What comes of a request.
pub(super) type Outcome = Pin<Box<dyn Future<Output = Result<Said, Failure>> + Send>>;

/// What a command said.
pub(super) enum Said {
    Whole(Value),
    /// The beginning of something long.
    Paged(Format, Part),
    /// Nothing yet.
    Working(Arc<Progress>, Outcome),
}

/// Why a command said nothing; `code` is JSON-RPC 2.0's.
pub(super) struct Failure {
    pub(super) code: i64,
    /// Text for people ends its last line: older clients print it as it is.
    pub(super) message: String,
}

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
            let failed = |code, message| {
                let message = if peer.format() == Format::Text { ended(message) } else { message };
                Err(Failure { code, message })
            };
            let output = output.await;
            let count = match &output {
                Some(Output::Success(_)) => &peer.served.done,
                Some(Output::Failure(failure)) if failure.error.code.code() == modern::NOT_ALLOWED => {
                    &peer.served.refused
                }
                _ => &peer.served.failed,
            };
            count.fetch_add(1, Ordering::Relaxed);
            match output {
                Some(Output::Success(success)) => Ok(peer.longer().take().unwrap_or(Said::Whole(success.result))),
                Some(Output::Failure(failure)) if failure.error.code == ErrorCode::MethodNotFound => {
                    failed(modern::METHOD_NOT_FOUND, unknown)
                }
                Some(Output::Failure(failure)) => failed(failure.error.code.code(), failure.error.message),
                // Only notifications have none, and this is a call.
                None => failed(modern::FAILED, "the command gave no answer".into()),
            }
        })
    }
}

fn add_method<C: Clone + Send + Sync + 'static>(
    dispatch: &mut MetaIoHandler<Arc<Peer>>,
    command: &Command<C>,
    context: C,
) {
    let (name, run, args, right) = (command.name, command.run, command.args.clone(), command.right);
    dispatch.add_method_with_meta(name, move |params: Params, peer: Arc<Peer>| {
        let allowed = peer.must_have(right, name);
        let reply = allowed.and_then(|()| arguments(name, &args, params)).map(|args| run(context.clone(), args));
        async move {
            let format = peer.format();
            leave(settle(reply?.await, format).await, &peer)
        }
    });
}

/// What a command says, up to where it would take long.
fn settle(result: Result<Answer, CommandError>, format: Format) -> Outcome {
    let failed = move |error: CommandError| {
        let message = error.to_string();
        Failure { code: modern::FAILED, message: if format == Format::Text { ended(message) } else { message } }
    };
    Box::pin(async move {
        match result.and_then(|answer| answer.render(format)).map_err(failed)? {
            Rendered::Whole(value) => Ok(Said::Whole(value)),
            Rendered::Paged(format, first) => Ok(Said::Paged(format, first.await.map_err(failed)?)),
            Rendered::Working(progress, reply) => {
                Ok(Said::Working(progress, Box::pin(async move { settle(reply.await, format).await })))
            }
        }
    })
}

/// Hands jsonrpc-core the value that it wants; what is more than a value goes past it.
fn leave(said: Result<Said, Failure>, peer: &Peer) -> jsonrpc_core::Result<Value> {
    match said {
        Ok(Said::Whole(value)) => Ok(value),
        Ok(longer) => {
            *peer.longer() = Some(longer);
            Ok(Value::Null)
        }
        Err(Failure { code, message }) => Err(failure(code, message)),
    }
}

fn failure(code: i64, message: String) -> jsonrpc_core::Error {
    jsonrpc_core::Error { code: code.into(), message, data: None }
}

/// Checks number and type of the arguments. The errors are worded as Open vSwitch's, which scripts compare with.
fn arguments(name: &str, allowed: &RangeInclusive<usize>, params: Params) -> jsonrpc_core::Result<Vec<String>> {
    let Params::Array(params) = params else {
        return Err(failure(modern::INVALID_PARAMS, format!("\"{name}\" command takes an array")));
    };
    let wrong = if params.len() < *allowed.start() {
        format!("requires at least {} arguments", allowed.start())
    } else if params.len() > *allowed.end() {
        format!("takes at most {} arguments", allowed.end())
    } else {
        let strings = params.into_iter().map(|param| match param {
            Value::String(text) => Ok(text),
            _ => Err(failure(modern::INVALID_PARAMS, format!("\"{name}\" command has non-string argument"))),
        });
        return strings.collect();
    };
    Err(failure(modern::INVALID_PARAMS, format!("\"{name}\" command {wrong}")))
}

/// What `set-options` was told.
#[derive(Default)]
struct Chosen {
    format: Option<Format>,
    progress: bool,
}

impl Chosen {
    fn read(args: &[String]) -> Result<Chosen, CommandError> {
        let mut chosen = Chosen::default();
        let mut args = args.iter().map(String::as_str);
        while let Some(option) = args.next() {
            let value = match option {
                "--progress" => {
                    chosen.progress = true;
                    continue;
                }
                "--format" => args.next(),
                _ => option.strip_prefix("--format="),
            };
            chosen.format = match value {
                Some("text") => Some(Format::Text),
                Some("json") => Some(Format::Json),
                Some(other) => return Err(CommandError::new(format!("option format has invalid value {other}"))),
                None => {
                    let expected = "expected --format text, --format json or --progress";
                    return Err(CommandError::new(format!("{expected}, not {option:?}")));
                }
            };
        }
        Ok(chosen)
    }
}

/// What people may want to know of each command, by name.
#[derive(Default, Clone)]
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

impl fmt::Display for Catalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.values().try_for_each(|entry| entry.fmt(f))
    }
}

impl Serialize for Catalog {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.values())
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let space = if self.usage.is_empty() { "" } else { " " };
        writeln!(f, "{}{space}{}\n  {}\n  Needs {} access.", self.name, self.usage, self.help, self.right)
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
        usage: "[COMMAND]",
        help: "Says what COMMAND, or each command, does, and what access it needs.",
        args: 0..=1,
        right: Right::Read,
        run: |this, args| {
            Box::pin(async move {
                match args.first().map(|name| (name, this.catalog.0.get(name.as_str()))) {
                    None => Ok(Answer::of(this.catalog.clone())),
                    Some((_, Some(entry))) => Ok(Answer::of(entry.clone())),
                    Some((name, None)) => Err(CommandError::new(format!("{name:?} is not a valid command"))),
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
        run: |this, _| {
            Box::pin(async move {
                let (name, version) = this.version.split_once(' ').unwrap_or((this.version, ""));
                Ok(Answer::new(this.version, json!({ "name": name, "version": version })))
            })
        },
    },
];
