//! `dpctl/*`: ports and flows of the datapath, in Open vSwitch's words.

use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;

use super::{DATAPATH, Options, PATIENCE};
use crate::control::answer::{Answer, CommandError};
use crate::control::registry::{Command, Right, deadline};
use crate::daemon::Daemon;
use crate::datapath::inbox::{FlowView, Which};
use crate::datapath::switch::{Names, PortView};
use crate::flow::text::{self, PortNames};
use crate::flow::{Key, PortNo};
use crate::offload::{Level, Reason, Standing};
use crate::packet::compose::compose;
use crate::port::{InjectError, PortSpec};

type Result<T> = std::result::Result<T, CommandError>;

const NAMING: [&str; 2] = ["--names", "--no-names"];

/// How long a port may take to open or close: a capture may be long, and its flows many.
const PORT_PATIENCE: Duration = Duration::from_secs(30);

pub static COMMANDS: &[Command<Arc<Daemon>>] = &[
    Command {
        name: "dpctl/show",
        usage: "[-s] [DP]",
        help: "Shows the datapath: lookups, flows and ports; with -s also each port's counters.",
        args: 0..=2,
        right: Right::Read,
        run: |daemon, args| Box::pin(async move { show(&daemon, args) }),
    },
    Command {
        name: "dpctl/dump-flows",
        usage: "[-m] [--names|--no-names] [DP]",
        help: "Lists the datapath's flows, poller by poller; with -m also ufid, wildcarded fields, offload and mark.",
        args: 0..=4,
        right: Right::Read,
        run: |daemon, args| Box::pin(async move { dump_flows(&daemon, args).await }),
    },
    Command {
        name: "dpctl/add-flow",
        usage: "[DP] FLOW ACTIONS",
        help: "Adds a flow by hand in every poller. It is never expired or revalidated, and goes before what rules decide.",
        args: 2..=4,
        right: Right::Write,
        run: |daemon, args| Box::pin(async move { add_flow(&daemon, args).await }),
    },
    Command {
        name: "dpctl/mod-flow",
        usage: "[-s] [--clear] [DP] FLOW ACTIONS",
        help: "Replaces a flow's actions; with --clear its counts start from 0, with -s the counts until then are shown.",
        args: 2..=5,
        right: Right::Write,
        run: |daemon, args| Box::pin(async move { mod_flow(&daemon, args).await }),
    },
    Command {
        name: "dpctl/del-flow",
        usage: "[-s] [DP] FLOW",
        help: "Deletes the flow with exactly this match or ufid; with -s its last counts are shown.",
        args: 1..=3,
        right: Right::Write,
        run: |daemon, args| Box::pin(async move { del_flow(&daemon, args).await }),
    },
    Command {
        name: "dpctl/get-flow",
        usage: "[--names|--no-names] [DP] ufid:UFID",
        help: "Shows the flow with this ufid or exactly this match.",
        args: 1..=3,
        right: Right::Read,
        run: |daemon, args| Box::pin(async move { get_flow(&daemon, args).await }),
    },
    Command {
        name: "dpctl/del-flows",
        usage: "[DP]",
        help: "Deletes all flows.",
        args: 0..=1,
        right: Right::Write,
        run: |daemon, args| {
            Box::pin(async move {
                Options::split(args, &[])?.exactly::<0>("dpctl/del-flows [DP]")?;
                let flows = deadline(PATIENCE, daemon.switch.flush(None)).await?;
                Ok(Answer::new("", json!({ "flows": flows })))
            })
        },
    },
    Command {
        name: "dpctl/add-if",
        usage: "[DP] NAME[,type=KIND][,OPTION=VALUE]…",
        help: "Adds a port.",
        args: 1..=2,
        right: Right::Write,
        run: |daemon, args| {
            Box::pin(async move {
                let options = Options::split(args, &[])?;
                let [spec] = options.exactly("dpctl/add-if [DP] NAME[,type=KIND][,OPTION=VALUE]…")?;
                let spec: PortSpec = spec.parse()?;
                let added = daemon.in_background("add-port", move |daemon| daemon.add_port(&spec));
                let number = deadline(PORT_PATIENCE, added).await???;
                Ok(Answer::new("", json!({ "port_no": number })))
            })
        },
    },
    Command {
        name: "dpctl/del-if",
        usage: "[DP] PORT",
        help: "Removes a port, named or numbered, and the flows of packets from it.",
        args: 1..=2,
        right: Right::Write,
        run: |daemon, args| {
            Box::pin(async move {
                let options = Options::split(args, &[])?;
                let [port] = options.exactly("dpctl/del-if [DP] PORT")?;
                let number = daemon.switch.port_number(port).ok_or_else(|| no_port(port))?;
                let removed = daemon.in_background("remove-port", move |daemon| daemon.remove_port(number));
                deadline(PORT_PATIENCE, removed).await??;
                Ok(Answer::nothing())
            })
        },
    },
    Command {
        name: "netdev-dummy/receive",
        usage: "NAME [--qid Q] PACKET|FLOW [--len N] …",
        help: "Makes packets arrive at a port in memory: bytes in hex, or a flow in ODP syntax, of which a frame is made.",
        args: 2..=4_096,
        right: Right::Write,
        run: |daemon, args| Box::pin(async move { receive(&daemon, args) }),
    },
];

fn no_port(port: &str) -> CommandError {
    CommandError::new(format!("no port {port:?} in {DATAPATH} (No such device)"))
}

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

fn show(daemon: &Daemon, args: Vec<String>) -> Result<Answer> {
    let options = Options::split(args, &["-s", "--statistics"])?;
    options.exactly::<0>("dpctl/show [-s] [DP]")?;
    let lookup = daemon.switch.totals().lookup;
    let hit = lookup.mark_hit.get() + lookup.emc_hit.get() + lookup.megaflow_hit.get();
    let missed = lookup.upcall_installed.get() + lookup.upcall_flow_limit.get();
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

/// A flow as JSON has it.
#[derive(Serialize)]
struct FlowJson {
    ufid: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    poller: Option<usize>,
    key: String,
    actions: String,
    packets: u64,
    bytes: u64,
    /// Seconds since the last packet; `None`: never.
    used_s: Option<f64>,
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

async fn dump_flows(daemon: &Daemon, args: Vec<String>) -> Result<Answer> {
    let options = Options::split(args, &["-m", "--more", NAMING[0], NAMING[1]])?;
    options.exactly::<0>("dpctl/dump-flows [-m] [--names|--no-names] [DP]")?;
    let more = options.has(&["-m", "--more"]);
    let printer = Printer::new(daemon, more, options.has(&NAMING[..1]) || (more && !options.has(&NAMING[1..])));
    let mut flows_json = Vec::new();
    let mut out = String::new();
    for poller in 0..daemon.switch.pollers() {
        let mut titled = false;
        let mut from = Some(0);
        while let Some(next) = from {
            let page = deadline(PATIENCE, daemon.switch.page(poller, next)).await?;
            for flow in &page.flows {
                if !std::mem::replace(&mut titled, true) {
                    out.push_str(&daemon.poller_title(poller));
                    out.push('\n');
                }
                printer.line(&mut out, flow);
                out.push('\n');
                flows_json.push(printer.json(flow, Some(poller)));
            }
            from = page.next;
        }
    }
    Ok(Answer::new(out, serde_json::to_value(flows_json)?))
}

async fn add_flow(daemon: &Daemon, args: Vec<String>) -> Result<Answer> {
    let options = Options::split(args, &["-m", "--more", "--may-create"])?;
    let [flow, actions] = options.exactly("dpctl/add-flow [DP] FLOW ACTIONS")?;
    let names = daemon.switch.names();
    let flow = parse_flow(flow, &names)?;
    if !flow.matching.mask().is_exact(crate::flow::Field::InPort) {
        return Err(CommandError::new("flow: in_port is not an exact match"));
    }
    let actions = parse_actions(actions, &names)?;
    deadline(PATIENCE, daemon.switch.add_flow(flow.ufid, flow.matching, actions)).await??;
    Ok(Answer::nothing())
}

async fn mod_flow(daemon: &Daemon, args: Vec<String>) -> Result<Answer> {
    let options = Options::split(args, &["-s", "--statistics", "--clear"])?;
    let [flow, actions] = options.exactly("dpctl/mod-flow [-s] [--clear] [DP] FLOW ACTIONS")?;
    let names = daemon.switch.names();
    let which = which(flow, &names)?;
    let actions = parse_actions(actions, &names)?;
    let before = deadline(PATIENCE, daemon.switch.modify_flow(which, actions, options.has(&["--clear"]))).await?;
    let before = before.ok_or_else(|| CommandError::new("updating flow table (No such file or directory)"))?;
    Ok(counts(daemon, &options, &before))
}

async fn del_flow(daemon: &Daemon, args: Vec<String>) -> Result<Answer> {
    let options = Options::split(args, &["-s", "--statistics"])?;
    let [flow] = options.exactly("dpctl/del-flow [-s] [DP] FLOW")?;
    let which = which(flow, &daemon.switch.names())?;
    let gone = deadline(PATIENCE, daemon.switch.delete_flow(which)).await?.ok_or_else(|| {
        CommandError::new("deleting flow (No such file or directory). Perhaps you need to specify a UFID?")
    })?;
    Ok(counts(daemon, &options, &gone))
}

async fn get_flow(daemon: &Daemon, args: Vec<String>) -> Result<Answer> {
    let options = Options::split(args, &NAMING)?;
    let [flow] = options.exactly("dpctl/get-flow [DP] ufid:UFID")?;
    let which = which(flow, &daemon.switch.names())?;
    let flow = deadline(PATIENCE, daemon.switch.get_flow(which)).await?;
    let flow = flow.ok_or_else(|| CommandError::new("getting flow (No such file or directory)"))?;
    let printer = Printer::new(daemon, true, !options.has(&NAMING[1..]));
    let mut out = String::new();
    printer.line(&mut out, &flow);
    Ok(Answer::new(out, serde_json::to_value(printer.json(&flow, None))?))
}

fn parse_flow(text: &str, names: &Names) -> Result<text::FlowText> {
    text::parse_flow(text, names).map_err(|error| CommandError::new(format!("parsing flow key ({error})")))
}

fn parse_actions(text: &str, names: &Names) -> Result<crate::flow::Actions> {
    text::parse_actions(text, names).map_err(|error| CommandError::new(format!("parsing actions ({error})")))
}

/// A flow named by its ufid, or by its whole match.
fn which(text: &str, names: &Names) -> Result<Which> {
    let flow = parse_flow(text, names)?;
    Ok(flow.ufid.map_or_else(|| Which::Match(Box::new(flow.matching)), Which::Ufid))
}

/// `-s`: the counts that a changed or deleted flow had.
fn counts(daemon: &Daemon, options: &Options, flow: &FlowView) -> Answer {
    let printer = Printer::new(daemon, false, false);
    let mut out = String::new();
    if options.has(&["-s", "--statistics"]) {
        printer.counts(&mut out, flow);
    }
    Answer::new(out, json!({ "packets": flow.stats.packets, "bytes": flow.stats.bytes, "used_s": printer.used(flow) }))
}

/// Prints flows as of one moment.
struct Printer {
    now_ns: u64,
    more: bool,
    names: Option<Names>,
}

impl Printer {
    fn new(daemon: &Daemon, more: bool, names: bool) -> Printer {
        let names = names.then(|| daemon.switch.names());
        Printer { now_ns: daemon.switch.shared.nanos(Instant::now()), more, names }
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
        let used = self.used(flow).map_or("never".into(), |seconds| format!("{seconds:.3}s"));
        // Writing to a string does not fail.
        let _ = write!(out, "packets:{}, bytes:{}, used:{used}", flow.stats.packets, flow.stats.bytes);
        if flow.tcp_flags != 0 {
            let _ = write!(out, ", flags:{}", tcp_flags(flow.tcp_flags));
        }
    }

    fn line(&self, out: &mut String, flow: &FlowView) {
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

    fn json(&self, flow: &FlowView, poller: Option<usize>) -> FlowJson {
        FlowJson {
            ufid: flow.ufid.to_string(),
            poller,
            key: text::format_match(&flow.matching, self.more, self.names()),
            actions: text::format_actions(&flow.actions, self.names()),
            packets: flow.stats.packets,
            bytes: flow.stats.bytes,
            used_s: self.used(flow),
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

fn receive(daemon: &Daemon, args: Vec<String>) -> Result<Answer> {
    let mut args = args.into_iter().peekable();
    let name = args.next().ok_or(InjectError::Unsupported)?;
    let number = daemon.switch.port_number(&name).ok_or(InjectError::Unsupported)?;
    let names = daemon.switch.names();
    let name = names.name(number).unwrap_or(name);
    let mut queue = 0;
    if args.peek().is_some_and(|arg| arg == "--qid") {
        args.next();
        queue = args.next().and_then(|text| text.parse().ok()).ok_or(InjectError::Queue)?;
    }
    let mut frames = Vec::new();
    while let Some(packet) = args.next() {
        let mut len = 0;
        if args.peek().is_some_and(|arg| arg == "--len") {
            args.next();
            let text = args.next().unwrap_or_default();
            len = text.parse().ok().filter(|len| *len <= crate::packet::MAX_FRAME).ok_or_else(|| {
                CommandError::new(format!(
                    "--len {text:?}: expected a number of bytes up to {}",
                    crate::packet::MAX_FRAME
                ))
            })?;
        }
        frames.push(frame(&packet, len, number, &names)?);
    }
    // All are understood before the first arrives.
    for frame in &frames {
        daemon.switch.inject(&name, queue, frame)?;
    }
    Ok(Answer::new("", json!({ "packets": frames.len() })))
}

/// The bytes that `text` stands for: hex, blanks allowed, or a flow.
fn frame(text: &str, len: usize, port: PortNo, names: &Names) -> Result<Vec<u8>> {
    let digits: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    if !digits.is_empty() && digits.chars().all(|c| c.is_ascii_hexdigit()) {
        if !digits.len().is_multiple_of(2) {
            return Err(CommandError::new(format!("{} hex digits make no whole number of bytes", digits.len())));
        }
        let mut bytes: Vec<u8> =
            (0..digits.len()).step_by(2).filter_map(|i| u8::from_str_radix(&digits[i..i + 2], 16).ok()).collect();
        if bytes.len() > crate::packet::MAX_FRAME {
            return Err(CommandError::new(format!("a packet has at most {} bytes", crate::packet::MAX_FRAME)));
        }
        bytes.resize(bytes.len().max(len), 0);
        return Ok(bytes);
    }
    let flow = text::parse_flow(text, names)
        .map_err(|error| CommandError::new(format!("neither hex bytes nor a flow: {error}")))?;
    let mut key: Key = *flow.matching.key();
    key.set(crate::flow::Field::InPort, port.0);
    Ok(compose(&key, len))
}
