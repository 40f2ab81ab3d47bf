//! [`Printer`]: flows as text and as JSON, as of one moment.

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::json;

use super::super::Options;
use crate::clock;
use crate::control::answer::Answer;
use crate::daemon::Daemon;
use crate::datapath::inbox::FlowView;
use crate::datapath::switch::Names;
use crate::flow::text::{self, PortNames};
use crate::offload::{Level, Reason, Standing};

/// A flow as JSON has it.
#[derive(Serialize)]
pub(in super::super) struct FlowJson {
    ufid: String,
    /// `None`: of all pollers together.
    poller: Option<usize>,
    key: String,
    actions: String,
    packets: u64,
    bytes: u64,
    /// Seconds since the last packet; `None`: never.
    used_s: Option<f64>,
    /// Of all packets so far.
    tcp_flags: u16,
    by_hand: bool,
    offload: Option<Standing>,
    /// The device has been seen to match a packet of it since it was last put.
    confirmed: bool,
    /// Why it is not as far in the device as it could be.
    reason: Option<Reason>,
    /// Seconds since the device's part of the counts was read; `None`: it has none.
    device_stats_age_s: Option<f64>,
    mark: Option<u32>,
}

/// Prints flows as of one moment.
pub(in super::super) struct Printer {
    now_ns: u64,
    more: bool,
    names: Option<Names>,
}

impl Printer {
    /// `more`: everything there is, as with `-m`. `names`: ports by name.
    pub(in super::super) fn new(daemon: &Daemon, more: bool, names: bool) -> Printer {
        let names = names.then(|| daemon.switch.names());
        Printer { now_ns: daemon.switch.shared.nanos(clock::now()), more, names }
    }

    fn names(&self) -> &dyn PortNames {
        match &self.names {
            Some(names) => names,
            None => &(),
        }
    }

    /// Seconds since the flow's last packet.
    fn used(&self, flow: &FlowView) -> Option<f64> {
        (flow.stats.used_ns != 0).then(|| self.now_ns.saturating_sub(flow.stats.used_ns) as f64 / 1e9)
    }

    /// Seconds since the device's part of the counts was read; `None` where the device counts nothing of the flow.
    fn device_age(&self, flow: &FlowView) -> Option<f64> {
        let counts = flow.standing == Some(Standing::Offloaded(Level::Full)) && flow.read_ns != 0;
        counts.then(|| self.now_ns.saturating_sub(flow.read_ns) as f64 / 1e9)
    }

    fn counts(&self, out: &mut String, flow: &FlowView) {
        // Writing to a string does not fail.
        let _ = write!(out, "packets:{}, bytes:{}, used:", flow.stats.packets, flow.stats.bytes);
        let _ = match self.used(flow) {
            Some(seconds) => write!(out, "{seconds:.3}s"),
            None => write!(out, "never"),
        };
        if flow.tcp_flags != 0 {
            let _ = write!(out, ", flags:{}", tcp_flags(flow.tcp_flags));
        }
    }

    /// `-s` of a command that changes or deletes a flow: the counts that it had.
    pub(super) fn last_counts(&self, options: &Options, flow: &FlowView) -> Answer {
        let mut out = String::new();
        if options.has(&["-s", "--statistics"]) {
            self.counts(&mut out, flow);
        }
        Answer::new(out, json!({ "packets": flow.stats.packets, "bytes": flow.stats.bytes, "used_s": self.used(flow) }))
    }

    /// The flow in a line, without its end.
    pub(in super::super) fn line(&self, out: &mut String, flow: &FlowView) {
        if self.more {
            let _ = write!(out, "ufid:{}, ", flow.ufid);
        }
        out.push_str(&text::format_match(&flow.matching, self.more, self.names()));
        out.push_str(", ");
        self.counts(out, flow);
        if self.more {
            out.push_str(match flow.standing {
                Some(Standing::Offloaded(Level::Full)) => ", offloaded:yes, dp:offloadd",
                Some(Standing::Offloaded(Level::Mark)) => ", offloaded:partial, dp:ovs",
                _ => ", dp:ovs",
            });
            if let Some(mark) = flow.mark {
                let _ = write!(out, ", mark:{mark}");
            }
            if let Some(age) = self.device_age(flow) {
                let _ = write!(out, ", dev_stats_age:{age:.3}s");
            }
        }
        out.push_str(", actions:");
        out.push_str(&text::format_actions(&flow.actions, self.names()));
    }

    pub(in super::super) fn json(&self, flow: &FlowView, poller: Option<usize>) -> FlowJson {
        FlowJson {
            ufid: flow.ufid.to_string(),
            poller,
            key: text::format_match(&flow.matching, self.more, self.names()),
            actions: text::format_actions(&flow.actions, self.names()),
            packets: flow.stats.packets,
            bytes: flow.stats.bytes,
            used_s: self.used(flow),
            tcp_flags: flow.tcp_flags,
            by_hand: flow.by_hand,
            offload: flow.standing,
            confirmed: flow.confirmed,
            reason: flow.trouble.as_ref().map(|trouble| trouble.why),
            device_stats_age_s: self.device_age(flow),
            mark: flow.mark.map(|mark| mark.0.get()),
        }
    }
}

/// A letter for each TCP flag, as Open vSwitch and tcpdump print them.
fn tcp_flags(flags: u16) -> String {
    const LETTERS: [(u16, char); 9] =
        [(2, 'S'), (1, 'F'), (8, 'P'), (4, 'R'), (0x20, 'U'), (0x10, '.'), (0x40, 'E'), (0x80, 'C'), (0x100, 'N')];
    LETTERS.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, letter)| letter).collect()
}
