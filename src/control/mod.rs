//! A command's trip: from the control socket to a handler and back.
//!
//! ```text
//!   client ──► server ───────► session ────────► registry ────► handler: fn(context, arguments)
//!              one mio poll:    one connection:   one table:        │
//!              socket, signals  frames, order,    dispatch, help,   │ at once, or later from
//!              wake-ups         limits            list-commands     ▼ any other thread
//!   client ◄── bytes ◄───────── text or JSON ◄─────────────────── Answer | CommandError
//! ```
//!
//! - [`server`]: owns the socket and the poll; the daemon's main thread drives it, turn by turn
//! - `session`: one connection; a message at a time, answers in order, memory bounded
//! - `exchange`: one message, of JSON-RPC 1.0 or 2.0, and the bytes that answer it
//! - [`access`]: who may call which commands
//! - [`registry`]: what commands there are; the one table behind dispatch, `list-commands` and `help`
//! - [`answer`]: what a command says, as text and as JSON
//! - [`commands`]: commands, by what they are about
//! - [`scrape`]: metrics over HTTP, on a thread of its own
//! - [`pidfile`]: tells the world which process the daemon is
//!
//! All of it runs on one thread. A handler that has to ask another thread returns a future, and whoever completes it wakes the
//! server by the future's own waker; meanwhile other connections are served.

pub mod access;
pub mod answer;
pub mod commands;
mod exchange;
pub mod pidfile;
pub mod registry;
pub mod scrape;
pub mod server;
mod session;

pub use access::Access;
pub use answer::{Answer, CommandError, Format, Pages, Part, Progress};
pub use pidfile::Pidfile;
pub use registry::{Command, Registry, Reply, Right, deadline};
pub use server::{BindError, Endpoint, Handle, Limits, Server, Turn};
