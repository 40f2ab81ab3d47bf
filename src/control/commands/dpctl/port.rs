//! `dpctl/add-if`, `set-if`, `del-if`: ports.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::Result;
use crate::control::answer::{Answer, CommandError};
use crate::control::commands::{DATAPATH, Options};
use crate::control::registry::deadline;
use crate::daemon::Daemon;
use crate::flow::PortNo;
use crate::port::PortSpec;

/// How long a port may take to open or close: a capture may be long, and its flows many.
const PORT_PATIENCE: Duration = Duration::from_secs(30);

pub(super) async fn add(daemon: Arc<Daemon>, args: Vec<String>) -> Result<Answer> {
    let options = Options::split(args, &[])?;
    let [spec] = options.exactly("dpctl/add-if [DP] NAME[,type=KIND][,OPTION=VALUE]…")?;
    let spec: PortSpec = spec.parse()?;
    let added = daemon.in_background("add-port", move |daemon| daemon.add_port(&spec));
    let number = deadline(PORT_PATIENCE, added).await???;
    Ok(Answer::new("", json!({ "port_no": number })))
}

/// Opens a port anew with other options: no kind of port can change one while it is open.
pub(super) async fn set(daemon: Arc<Daemon>, args: Vec<String>) -> Result<Answer> {
    let options = Options::split(args, &[])?;
    let [text] = options.exactly("dpctl/set-if [DP] NAME[,OPTION=VALUE]…")?;
    let name = text.split(',').next().unwrap_or_default();
    let number = number(&daemon, name)?;
    let before = daemon.switch.port_spec(number).ok_or_else(|| no_port(name))?;
    // Read as a port of its kind, so that options are checked as those of a new one are.
    let written = match text.split_once(',') {
        Some((_, rest)) if !rest.contains("type=") => format!("{},type={},{rest}", before.name, before.kind),
        _ => text.replacen(name, &before.name, 1),
    };
    let wanted: PortSpec = written.parse()?;
    if text.contains(',') && (wanted.kind != before.kind || wanted.number.is_some_and(|wanted| wanted != number)) {
        let what = "type and port_no of a port cannot change; dpctl/del-if and dpctl/add-if make another";
        return Err(CommandError::new(format!("port {}: {what}", before.name)));
    }
    let mut spec = before.clone();
    spec.number = Some(number);
    spec.options.extend(wanted.options);
    if spec.options == before.options {
        return Ok(Answer::new("", json!({ "port_no": number, "reopened": false })));
    }
    let changed = daemon.in_background("set-port", move |daemon| daemon.replace_port(&before, &spec));
    deadline(2 * PORT_PATIENCE, changed).await???;
    Ok(Answer::new("", json!({ "port_no": number, "reopened": true })))
}

pub(super) async fn delete(daemon: Arc<Daemon>, args: Vec<String>) -> Result<Answer> {
    let options = Options::split(args, &[])?;
    let [port] = options.exactly("dpctl/del-if [DP] PORT")?;
    let number = number(&daemon, port)?;
    let removed = daemon.in_background("remove-port", move |daemon| daemon.remove_port(number));
    deadline(PORT_PATIENCE, removed).await??;
    Ok(Answer::nothing())
}

fn number(daemon: &Daemon, port: &str) -> Result<PortNo> {
    daemon.switch.port_number(port).ok_or_else(|| no_port(port))
}

fn no_port(port: &str) -> CommandError {
    CommandError::new(format!("no port {port:?} in {DATAPATH} (No such device)"))
}
