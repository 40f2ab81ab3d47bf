//! What people can ask of the daemon, a table of commands a file.
//!
//! - [`dpctl`]: ports and flows of the datapath, as Open vSwitch's `dpctl` has them
//! - [`offload`]: the device, its queue and its marks
//! - [`rule`]: rules and stations
//! - [`poller`]: what pollers did
//! - [`process`]: the daemon itself
//! - [`vlog`]: its log

pub mod dpctl;
pub mod offload;
pub mod poller;
pub mod process;
pub mod rule;
pub mod vlog;

use std::sync::Arc;
use std::time::Duration;

use super::answer::CommandError;
use super::registry::Registry;
use crate::daemon::Daemon;

/// The one datapath's name, where Open vSwitch would print its own.
pub const DATAPATH: &str = "netdev@offloadd";

/// How long a command waits for pollers, which answer between two batches.
const PATIENCE: Duration = Duration::from_secs(5);

/// Declares every command of the daemon.
pub fn register(registry: &mut Registry, daemon: &Arc<Daemon>) {
    for table in [dpctl::COMMANDS, offload::COMMANDS, poller::COMMANDS, process::COMMANDS, rule::COMMANDS] {
        registry.add(table, Arc::clone(daemon));
    }
    registry.add(vlog::COMMANDS, ());
}

/// A command's arguments: options first, as `dpctl` has them, then the datapath's name, which may be left out.
struct Options {
    given: Vec<String>,
    rest: Vec<String>,
}

impl Options {
    /// Splits the options off that `known` lists; an unknown one is an error.
    fn split(args: Vec<String>, known: &[&str]) -> Result<Options, CommandError> {
        let options = args.iter().take_while(|arg| arg.starts_with('-') && arg.len() > 1).count();
        let (given, rest) = args.split_at(options);
        if let Some(unknown) = given.iter().find(|option| !known.contains(&option.as_str())) {
            let accepted = if known.is_empty() { "none".into() } else { known.join(", ") };
            return Err(CommandError::new(format!("unknown option {unknown:?}; accepted: {accepted}")));
        }
        let mut rest = rest.to_vec();
        if rest.first().is_some_and(|first| first.contains('@')) {
            let name = rest.remove(0);
            if name != DATAPATH {
                return Err(CommandError::new(format!("no datapath {name:?}; there is {DATAPATH}")));
            }
        }
        Ok(Options { given: given.to_vec(), rest })
    }

    fn has(&self, names: &[&str]) -> bool {
        self.given.iter().any(|option| names.contains(&option.as_str()))
    }

    /// The arguments behind the options, exactly `N` of them.
    fn exactly<const N: usize>(&self, usage: &str) -> Result<&[String; N], CommandError> {
        self.rest.as_slice().try_into().map_err(|_| CommandError::new(format!("usage: {usage}")))
    }
}
