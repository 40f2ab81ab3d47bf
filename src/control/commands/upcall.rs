//! `upcall/*`, `revalidator/*`: flows that rules made, and the sweeps that look after them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::json;

use super::{DATAPATH, PATIENCE};
use crate::config::MAX_FLOW_LIMIT;
use crate::control::answer::{Answer, CommandError};
use crate::control::registry::{Command, Right, deadline};
use crate::daemon::Daemon;

/// How long a sweep of many flows, or the deletion of them, may take.
const SWEEP_PATIENCE: Duration = Duration::from_secs(60);

pub static COMMANDS: &[Command<Arc<Daemon>>] = &[
    Command {
        name: "upcall/show",
        usage: "",
        help: "Shows how many flows rules have made, how many they may, how long a sweep over them takes, and each poller's flows.",
        args: 0..=0,
        right: Right::Read,
        run: |daemon, _| Box::pin(async move { Ok(Answer::of(Show::new(&daemon).await?)) }),
    },
    Command {
        name: "upcall/set-flow-limit",
        usage: "LIMIT",
        help: "Lets rules make at most LIMIT flows, until the configuration is read again.",
        args: 1..=1,
        right: Right::Write,
        run: |daemon, args| {
            Box::pin(async move {
                let limit = args[0].parse().ok().filter(|limit| (1..=MAX_FLOW_LIMIT).contains(limit));
                let limit = limit.ok_or_else(|| {
                    CommandError::new(format!("flow limit {:?}: expected 1 to {MAX_FLOW_LIMIT}", args[0]))
                })?;
                daemon.switch.shared.set_flow_limit(limit);
                Ok(Answer::new(format!("set flow_limit to {limit}"), json!({ "flow_limit": limit })))
            })
        },
    },
    Command {
        name: "revalidator/wait",
        usage: "",
        help: "Waits until the device's counts were read, and every poller has looked at each of its flows once more.",
        args: 0..=0,
        right: Right::Read,
        run: |daemon, _| {
            Box::pin(async move {
                deadline(SWEEP_PATIENCE, daemon.switch.offload.caught_up()).await?;
                match deadline(SWEEP_PATIENCE, daemon.switch.sweep()).await? {
                    true => Ok(Answer::nothing()),
                    false => Err(CommandError::new("sweeps are paused; revalidator/resume lets them go on")),
                }
            })
        },
    },
    Command {
        name: "revalidator/purge",
        usage: "",
        help: "Deletes all flows that rules made.",
        args: 0..=0,
        right: Right::Write,
        run: |daemon, _| {
            Box::pin(async move {
                let deleted = deadline(SWEEP_PATIENCE, daemon.switch.purge()).await?;
                Ok(Answer::new("", json!({ "deleted": deleted })))
            })
        },
    },
    Command {
        name: "revalidator/pause",
        usage: "",
        help: "Pauses sweeps: no flow expires, and none is decided anew before a packet of it comes.",
        args: 0..=0,
        right: Right::Write,
        run: |daemon, _| {
            Box::pin(async move {
                daemon.switch.pause_sweep(true);
                Ok(Answer::nothing())
            })
        },
    },
    Command {
        name: "revalidator/resume",
        usage: "",
        help: "Lets sweeps go on.",
        args: 0..=0,
        right: Right::Write,
        run: |daemon, _| {
            Box::pin(async move {
                daemon.switch.pause_sweep(false);
                Ok(Answer::nothing())
            })
        },
    },
];

/// What `upcall/show` says.
#[derive(Serialize)]
struct Show {
    datapath: &'static str,
    /// Made by rules.
    flows: usize,
    average: u64,
    max: u64,
    flow_limit: usize,
    offloaded: usize,
    /// The longest of the pollers' last sweeps.
    sweep_s: f64,
    paused: bool,
    pollers: Vec<Poller>,
}

#[derive(Serialize)]
struct Poller {
    poller: usize,
    /// Those by hand included.
    flows: usize,
    sweep_s: f64,
}

impl Show {
    async fn new(daemon: &Daemon) -> Result<Show, CommandError> {
        let looks = deadline(PATIENCE, daemon.switch.looks()).await?;
        let shared = &daemon.switch.shared;
        let pollers: Vec<Poller> = (0..)
            .zip(&looks)
            .map(|(poller, look)| Poller { poller, flows: look.flows, sweep_s: look.sweep.as_secs_f64() })
            .collect();
        let (average, max) = daemon.flow_history();
        Ok(Show {
            datapath: DATAPATH,
            flows: shared.flows(),
            average,
            max: max.max(shared.flows() as u64),
            flow_limit: shared.flow_limit(),
            offloaded: daemon.switch.offload.snapshot().rules,
            sweep_s: pollers.iter().map(|poller| poller.sweep_s).fold(0.0, f64::max),
            paused: shared.is_sweep_paused(),
            pollers,
        })
    }
}

impl fmt::Display for Show {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Show { datapath, flows, average, max, flow_limit, .. } = self;
        writeln!(f, "{datapath}:")?;
        writeln!(f, "  flows         : (current {flows}) (avg {average}) (max {max}) (limit {flow_limit})")?;
        if self.offloaded > 0 {
            writeln!(f, "  offloaded flows : {}", self.offloaded)?;
        }
        writeln!(f, "  dump duration : {:.0}ms", self.sweep_s * 1e3)?;
        writeln!(f, "  ufid enabled : true")?;
        if self.paused {
            writeln!(f, "  paused : true")?;
        }
        writeln!(f)?;
        self.pollers.iter().try_for_each(|poller| writeln!(f, "  {}: (keys {})", poller.poller, poller.flows))
    }
}
