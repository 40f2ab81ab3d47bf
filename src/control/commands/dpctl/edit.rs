//! `dpctl/add-flow`, `mod-flow`, `del-flow`, `get-flow`: one flow at a time.

use super::dump::named;
use super::print::Printer;
use super::{NAMING, Result};
use crate::control::answer::{Answer, CommandError};
use crate::control::commands::{Options, PATIENCE};
use crate::control::registry::deadline;
use crate::daemon::Daemon;
use crate::datapath::inbox::Which;
use crate::datapath::switch::Names;
use crate::flow::text::{self, FlowText};
use crate::flow::{Actions, Field};

/// Why a flow that is to be changed cannot be.
pub(super) const NOT_FOUND: &str = "updating flow table (No such file or directory)";

/// Why a flow that is to go cannot.
pub(super) const NOT_THERE: &str = "deleting flow (No such file or directory). Perhaps you need to specify a UFID?";

pub(super) async fn add_flow(daemon: &Daemon, args: Vec<String>) -> Result<Answer> {
    let options = Options::split(args, &["-m", "--more", "--may-create"])?;
    let [flow, actions] = options.exactly("dpctl/add-flow [DP] FLOW ACTIONS")?;
    let names = daemon.switch.names();
    let (flow, actions) = (addable(flow, &names)?, parse_actions(actions, &names)?);
    deadline(PATIENCE, daemon.switch.add_flow(flow.ufid, flow.matching, actions)).await??;
    Ok(Answer::nothing())
}

pub(super) async fn mod_flow(daemon: &Daemon, args: Vec<String>) -> Result<Answer> {
    let options = Options::split(args, &["-s", "--statistics", "--clear", "--may-create"])?;
    let [flow, actions] = options.exactly("dpctl/mod-flow [-s] [--clear] [--may-create] [DP] FLOW ACTIONS")?;
    let names = daemon.switch.names();
    let text = parse_flow(flow, &names)?;
    let actions = parse_actions(actions, &names)?;
    let modified = daemon.switch.modify_flow(which(&text), actions.clone(), options.has(&["--clear"]));
    match deadline(PATIENCE, modified).await? {
        Some(before) => Ok(Printer::new(daemon, false, false).last_counts(&options, &before)),
        None if options.has(&["--may-create"]) => {
            let flow = addable(flow, &names)?;
            deadline(PATIENCE, daemon.switch.add_flow(flow.ufid, flow.matching, actions)).await??;
            Ok(Answer::nothing())
        }
        None => Err(CommandError::new(NOT_FOUND)),
    }
}

pub(super) async fn del_flow(daemon: &Daemon, args: Vec<String>) -> Result<Answer> {
    let options = Options::split(args, &["-s", "--statistics"])?;
    let [flow] = options.exactly("dpctl/del-flow [-s] [DP] FLOW")?;
    let flow = parse_flow(flow, &daemon.switch.names())?;
    let gone = deadline(PATIENCE, daemon.switch.delete_flow(which(&flow))).await?;
    let gone = gone.ok_or_else(|| CommandError::new(NOT_THERE))?;
    Ok(Printer::new(daemon, false, false).last_counts(&options, &gone))
}

pub(super) async fn get_flow(daemon: &Daemon, args: Vec<String>) -> Result<Answer> {
    let mut options = Options::split(args, &NAMING)?;
    options.given.push("-m".into());
    let [flow] = options.exactly("dpctl/get-flow [--names|--no-names] [DP] ufid:UFID")?;
    let flow = parse_flow(flow, &daemon.switch.names())?;
    let flow = deadline(PATIENCE, daemon.switch.get_flow(which(&flow))).await?;
    let flow = flow.ok_or_else(|| CommandError::new("getting flow (No such file or directory)"))?;
    let printer = Printer::new(daemon, true, named(&options));
    let mut out = String::new();
    printer.line(&mut out, &flow);
    Ok(Answer::new(out, serde_json::to_value(printer.json(&flow, None))?))
}

pub(super) fn parse_flow(text: &str, names: &Names) -> Result<FlowText> {
    text::parse_flow(text, names).map_err(|error| CommandError::new(format!("parsing flow key ({error})")))
}

pub(super) fn parse_actions(text: &str, names: &Names) -> Result<Actions> {
    text::parse_actions(text, names).map_err(|error| CommandError::new(format!("parsing actions ({error})")))
}

/// A flow that may be added: it says from which port its packets come.
pub(super) fn addable(text: &str, names: &Names) -> Result<FlowText> {
    let flow = parse_flow(text, names)?;
    match flow.matching.mask().is_exact(Field::InPort) {
        true => Ok(flow),
        false => Err(CommandError::new("flow: in_port is not an exact match")),
    }
}

/// A flow named by its ufid, or by its whole match.
pub(super) fn which(flow: &FlowText) -> Which {
    flow.ufid.map_or_else(|| Which::Match(Box::new(flow.matching)), Which::Ufid)
}
