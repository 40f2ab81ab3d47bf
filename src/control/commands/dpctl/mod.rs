//! `dpctl/*`: ports and flows of the datapath, in Open vSwitch's words.
//!
//! - `show`: lookups, flows and ports
//! - `dump`: flows, page by page; `print`: a flow as text and as JSON
//! - `edit`: one flow at a time; `bulk`: a file of them
//! - `port`: ports that come, change and go
//! - `cache`: the size of a cache
//! - `actions`: lists of actions, for whoever wants to compare them
//! - `receive`: packets by hand

mod actions;
mod bulk;
mod cache;
pub(super) mod dump;
mod edit;
mod port;
pub(super) mod print;
mod receive;
mod show;

use std::sync::Arc;

use serde_json::json;

use super::{DATAPATH, Options, PATIENCE};
use crate::control::answer::{Answer, CommandError};
use crate::control::registry::{Command, Right, deadline};
use crate::daemon::Daemon;
use bulk::Verb;
use dump::Dump;

type Result<T> = std::result::Result<T, CommandError>;

const NAMING: [&str; 2] = ["--names", "--no-names"];

pub static COMMANDS: &[Command<Arc<Daemon>>] = &[
    Command {
        name: "dpctl/show",
        usage: "[-s] [DP]...",
        help: "Shows the datapath: lookups, flows and ports; with -s also each port's counters.",
        args: 0..=16,
        right: Right::Read,
        run: |daemon, args| Box::pin(async move { show::show(&daemon, args) }),
    },
    Command {
        name: "dpctl/dump-dps",
        usage: "",
        help: "Names the datapath: there is one.",
        args: 0..=0,
        right: Right::Read,
        run: |_, _| Box::pin(async { Ok(Answer::new(DATAPATH, json!([DATAPATH]))) }),
    },
    Command {
        name: "dpctl/dump-flows",
        usage: dump::USAGE,
        help: "Lists the datapath's flows, poller by poller; with -m also ufid, wildcarded fields, offload and mark.\n  \
               filter= shows those that could match a packet of MATCH (as in rules), type= those that are ovs (in software), \
               offloaded, partially-offloaded, non-offloaded or all, pmd= those of one poller.",
        args: 0..=8,
        right: Right::Read,
        run: |daemon, args| Box::pin(async move { Ok(Dump::parse(&daemon, args)?.answer(daemon)) }),
    },
    Command {
        name: "dpctl/get-flow",
        usage: "[--names|--no-names] [DP] ufid:UFID",
        help: "Shows the flow with this ufid or exactly this match.",
        args: 1..=3,
        right: Right::Read,
        run: |daemon, args| Box::pin(async move { edit::get_flow(&daemon, args).await }),
    },
    Command {
        name: "dpctl/add-flow",
        usage: "[DP] FLOW ACTIONS",
        help: "Adds a flow by hand in every poller. It is never expired or revalidated, and goes before what rules decide.",
        args: 2..=4,
        right: Right::Write,
        run: |daemon, args| Box::pin(async move { edit::add_flow(&daemon, args).await }),
    },
    Command {
        name: "dpctl/mod-flow",
        usage: "[-s] [--clear] [--may-create] [DP] FLOW ACTIONS",
        help: "Replaces a flow's actions; with --clear its counts start from 0, with -s the counts until then are shown, with \
               --may-create it is added if it is not there.",
        args: 2..=6,
        right: Right::Write,
        run: |daemon, args| Box::pin(async move { edit::mod_flow(&daemon, args).await }),
    },
    Command {
        name: "dpctl/del-flow",
        usage: "[-s] [DP] FLOW",
        help: "Deletes the flow with exactly this match or ufid; with -s its last counts are shown.",
        args: 1..=3,
        right: Right::Write,
        run: |daemon, args| Box::pin(async move { edit::del_flow(&daemon, args).await }),
    },
    Command {
        name: "dpctl/add-flows",
        usage: "[DP] FILE",
        help: "Does what each line of FILE says: a flow, a blank and actions to add, or add, modify or delete in front of that.\n  \
               Lines of dpctl/dump-flows are understood, too. A file with a mistake changes nothing.",
        args: 1..=2,
        right: Right::Admin,
        run: |daemon, args| Box::pin(async move { bulk::run(&daemon, args, Verb::Add, "dpctl/add-flows [DP] FILE") }),
    },
    Command {
        name: "dpctl/mod-flows",
        usage: "[DP] FILE",
        help: "As dpctl/add-flows, but a line modifies unless it says add or delete.",
        args: 1..=2,
        right: Right::Admin,
        run: |daemon, args| {
            Box::pin(async move { bulk::run(&daemon, args, Verb::Modify, "dpctl/mod-flows [DP] FILE") })
        },
    },
    Command {
        name: "dpctl/del-flows",
        usage: "[DP] [FILE]",
        help: "Deletes all flows; with FILE, which all must be able to read, as dpctl/add-flows, but a line deletes unless it says add or modify.",
        args: 0..=2,
        right: Right::Write,
        run: |daemon, args| {
            Box::pin(async move {
                if bulk::is_file(&args) {
                    // Without admin access, nobody is to learn from error messages what others' files hold.
                    bulk::must_be_public(&args)?;
                    return bulk::run(&daemon, args, Verb::Delete, "dpctl/del-flows [DP] [FILE]");
                }
                Options::split(args, &[])?.exactly::<0>("dpctl/del-flows [DP] [FILE]")?;
                let flows = deadline(PATIENCE, daemon.switch.flush(None)).await?;
                Ok(Answer::new("", json!({ "deleted": flows })))
            })
        },
    },
    Command {
        name: "dpctl/add-if",
        usage: "[DP] NAME[,type=KIND][,OPTION=VALUE]…",
        help: "Adds a port.",
        args: 1..=2,
        right: Right::Admin,
        run: |daemon, args| Box::pin(port::add(daemon, args)),
    },
    Command {
        name: "dpctl/set-if",
        usage: "[DP] NAME[,OPTION=VALUE]…",
        help: "Changes options of a port; it is opened anew, and flows of packets from it are deleted. Other options stay.",
        args: 1..=2,
        right: Right::Admin,
        run: |daemon, args| Box::pin(port::set(daemon, args)),
    },
    Command {
        name: "dpctl/del-if",
        usage: "[DP] PORT",
        help: "Removes a port, named or numbered, and the flows of packets from it.",
        args: 1..=2,
        right: Right::Write,
        run: |daemon, args| Box::pin(port::delete(daemon, args)),
    },
    Command {
        name: "dpctl/offload-stats-show",
        usage: "[DP]",
        help: "Shows what waits for the device, what it holds, and how long requests take, in all and for each worker.",
        args: 0..=1,
        right: Right::Read,
        run: |daemon, args| {
            Box::pin(async move {
                Options::split(args, &[])?.exactly::<0>("dpctl/offload-stats-show [DP]")?;
                Ok(Answer::of(super::dpif::OffloadStats::new(&daemon)))
            })
        },
    },
    Command {
        name: "dpctl/cache-get-size",
        usage: "[DP]",
        help: "Shows how many entries the exact-match cache of each poller has.",
        args: 0..=1,
        right: Right::Read,
        run: |daemon, args| Box::pin(async move { cache::get(&daemon, args) }),
    },
    Command {
        name: "dpctl/cache-set-size",
        usage: "[DP] CACHE SIZE",
        help: "Gives each poller an empty exact-match cache (emc) of SIZE entries, a power of two.",
        args: 2..=3,
        right: Right::Write,
        run: |daemon, args| Box::pin(async move { cache::set(&daemon, args).await }),
    },
    Command {
        name: "dpctl/parse-actions",
        usage: "ACTIONS",
        help: "Reads a list of actions, also of those that this datapath has not, and prints it as a dump would.",
        args: 1..=1,
        right: Right::Read,
        run: |_, args| Box::pin(async move { actions::parse(args) }),
    },
    Command {
        name: "dpctl/normalize-actions",
        usage: "[--names|--no-names] FLOW ACTIONS",
        help: "Groups actions by the VLAN tag and the MPLS label that a packet of FLOW has when they come, and sorts outputs, so that lists can be compared.",
        args: 2..=3,
        right: Right::Read,
        run: |_, args| Box::pin(async move { actions::normalize(args) }),
    },
    Command {
        name: "netdev-dummy/receive",
        usage: "NAME [--qid Q] PACKET|FLOW [--len N] …",
        help: "Makes packets arrive at a port in memory: bytes in hex, or a flow in ODP syntax, of which a frame is made.",
        args: 2..=4_096,
        right: Right::Write,
        run: |daemon, args| Box::pin(async move { receive::receive(&daemon, args) }),
    },
    Command {
        name: "netdev-dummy/set-admin-state",
        usage: "[PORT] up|down",
        help: "Plugs the wire of a port in memory, or of all, in or out: without it nothing arrives, and what is sent is dropped.",
        args: 1..=2,
        right: Right::Write,
        run: |daemon, args| Box::pin(async move { receive::set_admin_state(&daemon, &args) }),
    },
];
