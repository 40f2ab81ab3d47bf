//! What people can ask of the daemon, a table of commands a file.
//!
//! - [`dpctl`]: ports and flows of the datapath, as Open vSwitch's `dpctl` has them; `dpif`: its `dpif`
//! - [`offload`]: the device, its queue and its marks; `explain`: why a flow is not in it; `events`: what happened to it;
//!   `flush`: how it goes; `top`: the busiest flows
//! - [`rule`]: rules; `trace`: what they would make of a packet; `fdb`: stations
//! - [`poller`]: what pollers did; `upcall`: what rules made them install, and the sweeps over that
//! - [`process`]: the daemon itself; `config`: its configuration; `coverage`, `metrics`: how much of everything, and
//!   how often what happened
//! - `time`: the clock, for tests
//! - [`sim`]: what is made to go wrong with a simulated device
//! - [`vlog`]: its log

mod config;
mod coverage;
pub mod dpctl;
mod dpif;
mod events;
mod explain;
mod fdb;
mod flush;
pub mod metrics;
pub mod offload;
pub mod poller;
pub mod process;
pub mod rule;
pub mod sim;
mod time;
mod top;
mod trace;
mod upcall;
pub mod vlog;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::answer::CommandError;
use super::registry::Registry;
use crate::daemon::Daemon;

/// The one datapath's name, where Open vSwitch would print its own.
pub const DATAPATH: &str = "netdev@offloadd";

/// The one bridge's name, where Open vSwitch's commands want one.
pub const BRIDGE: &str = "offloadd";

/// A file of flows or rules larger than this is refused: it is none.
const MAX_FILE: u64 = 256 << 20;

/// How long a command waits for pollers, which answer between two batches.
const PATIENCE: Duration = Duration::from_secs(5);

/// Declares every command of the daemon.
pub fn register(registry: &mut Registry, daemon: &Arc<Daemon>) {
    let tables = [
        config::COMMANDS,
        coverage::COMMANDS,
        dpctl::COMMANDS,
        dpif::COMMANDS,
        fdb::COMMANDS,
        metrics::COMMANDS,
        offload::COMMANDS,
        poller::COMMANDS,
        process::COMMANDS,
        rule::COMMANDS,
        sim::COMMANDS,
        upcall::COMMANDS,
    ];
    for table in tables {
        registry.add(table, Arc::clone(daemon));
    }
    if daemon.has_time_control() {
        registry.add(time::COMMANDS, Arc::clone(daemon));
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
        Ok(Options { given: given.to_vec(), rest: rest.to_vec() })
    }

    /// Takes out the arguments that `wanted` chooses.
    fn take(&mut self, wanted: impl Fn(&String) -> bool) -> Vec<String> {
        self.rest.extract_if(.., |arg| wanted(arg)).collect()
    }

    fn has(&self, names: &[&str]) -> bool {
        self.given.iter().any(|option| names.contains(&option.as_str()))
    }

    /// The arguments behind the options and the datapath's name, exactly `N` of them. One more is the datapath's name: what it
    /// looks like does not tell, because ports may have such names.
    fn exactly<const N: usize>(&self, usage: &str) -> Result<&[String; N], CommandError> {
        let rest = match self.rest.split_first() {
            Some((first, rest)) if rest.len() == N && first == DATAPATH => rest,
            Some((first, rest)) if rest.len() == N && first.contains('@') => {
                return Err(CommandError::new(format!("no datapath {first:?}; there is {DATAPATH}")));
            }
            _ => &self.rest,
        };
        rest.try_into().map_err(|_| CommandError::new(format!("usage: {usage}")))
    }
}

/// The text of a file of flows or rules.
fn read_file(path: &Path) -> Result<String, CommandError> {
    let named = |error: &dyn std::fmt::Display| CommandError::new(format!("{}: {error}", path.display()));
    let meta = std::fs::metadata(path).map_err(|error| named(&error))?;
    if !meta.is_file() || meta.len() > MAX_FILE {
        return Err(named(&format!("not a regular file of at most {} MiB", MAX_FILE >> 20)));
    }
    std::fs::read_to_string(path).map_err(|error| named(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split<const N: usize>(args: &[&str]) -> Result<[String; N], String> {
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        let options = Options::split(args, &["-s"]).map_err(|error| error.to_string())?;
        options.exactly::<N>("x [-s] [DP] …").cloned().map_err(|error| error.to_string())
    }

    #[test]
    fn the_datapath_may_be_named_and_is_told_from_a_port_of_such_a_name() {
        assert_eq!(split(&["-s", DATAPATH, "p1"]), Ok(["p1".to_owned()]));
        assert_eq!(split(&["eth0@if3"]), Ok(["eth0@if3".to_owned()]));
        assert_eq!(split(&["in_port(eth0@if3)", "2"]), Ok(["in_port(eth0@if3)".to_owned(), "2".to_owned()]));
        assert_eq!(split::<0>(&[DATAPATH]), Ok([]));
    }

    #[test]
    fn another_datapath_an_unknown_option_and_a_wrong_number_of_arguments_are_refused() {
        assert_eq!(split::<1>(&["system@x", "p1"]), Err(format!("no datapath \"system@x\"; there is {DATAPATH}")));
        assert_eq!(split::<0>(&["-m"]), Err("unknown option \"-m\"; accepted: -s".to_owned()));
        assert_eq!(split::<1>(&["a", "b"]), Err("usage: x [-s] [DP] …".to_owned()));
        assert_eq!(split::<1>(&[]), Err("usage: x [-s] [DP] …".to_owned()));
    }
}
