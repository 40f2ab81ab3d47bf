//! `dpctl/show`: lookups, flows and ports of the datapath.

use std::fmt;

use serde::Serialize;

use super::super::{DATAPATH, Options};
use crate::control::answer::{Answer, CommandError};
use crate::daemon::Daemon;
use crate::datapath::switch::PortView;

/// What `dpctl/show` says.
#[derive(Serialize)]
struct Show {
    datapath: &'static str,
    hit: u64,
    missed: u64,
    lost: u64,
    /// Of all pollers, those by hand included.
    flows: usize,
    by_hand: usize,
    /// For flows that rules make.
    flow_limit: usize,
    #[serde(skip)]
    statistics: bool,
    ports: Vec<PortView>,
}

pub(super) fn show(daemon: &Daemon, args: Vec<String>) -> Result<Answer, CommandError> {
    let options = Options::split(args, &["-s", "--statistics"])?;
    if let Some(other) = options.rest.iter().find(|name| *name != DATAPATH) {
        return Err(CommandError::new(format!("no datapath {other:?}; there is {DATAPATH}")));
    }
    let (hit, missed) = daemon.switch.totals().lookup.hits_and_misses();
    Ok(Answer::of(Show {
        datapath: DATAPATH,
        hit,
        missed,
        lost: 0, // upcalls are made by the poller itself: none waits, none is lost
        flows: daemon.switch.shared.flows() + daemon.switch.shared.by_hand(),
        by_hand: daemon.switch.shared.by_hand(),
        flow_limit: daemon.switch.shared.flow_limit(),
        statistics: options.has(&["-s", "--statistics"]),
        ports: daemon.switch.port_views(),
    }))
}

impl fmt::Display for Show {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}:", self.datapath)?;
        writeln!(f, "  lookups: hit:{} missed:{} lost:{}", self.hit, self.missed, self.lost)?;
        writeln!(f, "  flows: {}", self.flows)?;
        for port in &self.ports {
            let info = &port.info;
            write!(f, "  port {}: {} ({}: ", info.number, info.name, info.kind)?;
            if let Some(ifindex) = info.ifindex {
                write!(f, "ifindex={ifindex}, ")?;
            }
            write!(f, "n_rxq={}, mtu={}", info.rx_queues, port.mtu)?;
            for (name, value) in &port.details {
                write!(f, ", {name}={value}")?;
            }
            writeln!(f, ")")?;
            if self.statistics {
                let count = |name| port.counters.get(name).copied().unwrap_or_default();
                let dropped = count("tx_full") + count("tx_too_long");
                writeln!(
                    f,
                    "    RX packets:{} errors:? dropped:{} overruns:? frame:?",
                    count("rx_packets"),
                    count("rx_missed")
                )?;
                writeln!(
                    f,
                    "    TX packets:{} errors:{} dropped:{dropped} aborted:? carrier:?",
                    count("tx_packets"),
                    count("tx_failed")
                )?;
                writeln!(f, "    collisions:?")?;
                writeln!(f, "    RX bytes:{}  TX bytes:{}", count("rx_bytes"), count("tx_bytes"))?;
            }
        }
        Ok(())
    }
}
