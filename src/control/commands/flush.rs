//! `flow-flush`, `offload/flush`: flows go, or only what the device has of them, and it is waited for.

use std::time::{Duration, Instant};

use serde_json::json;

use super::DATAPATH;
use crate::control::answer::{Answer, CommandError};
use crate::control::registry::deadline;
use crate::daemon::Daemon;
use crate::flow::PortNo;
use crate::offload::Flushed;

/// How long the device is waited for unless somebody says otherwise.
pub(super) const FLUSH_PATIENCE: Duration = Duration::from_secs(10);

/// What is to be flushed, and how long it may take.
struct Wanted {
    offload_only: bool,
    port: Option<PortNo>,
    patience: Duration,
}

impl Wanted {
    fn parse(daemon: &Daemon, args: &[String]) -> Result<Wanted, CommandError> {
        let mut wanted = Wanted { offload_only: false, port: None, patience: FLUSH_PATIENCE };
        let mut args = args.iter();
        while let Some(option) = args.next() {
            let mut value = || args.next().map_or("", String::as_str);
            match option.as_str() {
                "--offload" => wanted.offload_only = true,
                "--port" => {
                    let port = value();
                    let number = daemon.switch.port_number(port);
                    let none = || CommandError::new(format!("no port {port:?} in {DATAPATH} (No such device)"));
                    wanted.port = Some(number.ok_or_else(none)?);
                }
                "--wait" => {
                    let seconds = value();
                    let time = seconds.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
                    wanted.patience = time.ok_or_else(|| {
                        CommandError::new(format!("--wait {seconds:?}: expected a number of seconds"))
                    })?;
                }
                _ => return Err(CommandError::new("usage: flow-flush [--offload] [--port PORT] [--wait SECS]")),
            }
        }
        if wanted.offload_only && wanted.port.is_some() {
            return Err(CommandError::new("--offload flushes the device as a whole; it does not go with --port"));
        }
        Ok(wanted)
    }
}

pub(super) async fn flush(daemon: &Daemon, args: &[String]) -> Result<Answer, CommandError> {
    let Wanted { offload_only, port, patience } = Wanted::parse(daemon, args)?;
    // Deleted flows take their rules along before the device is asked to forget what is left, so all removals are counted.
    let removed = || daemon.switch.offload.snapshot().operations.delete.done;
    let before = removed();
    let begun = Instant::now();
    let shown = humantime::format_duration(patience);
    let flows = match offload_only {
        true => 0,
        false => deadline(patience, daemon.switch.flush(port))
            .await
            .map_err(|_| CommandError::new(format!("the datapath has not deleted all flows within {shown}")))?,
    };
    let left = patience.saturating_sub(begun.elapsed());
    let settled = match port {
        // The other ports' flows keep their rules; those that go have been asked for already.
        Some(_) => deadline(left, daemon.switch.offload.caught_up())
            .await
            .ok()
            .map(|()| Ok(Flushed { removed: 0, trouble: None })),
        // After the flows: the device is to forget what they left there, too.
        None => forgotten(daemon, left).await,
    };
    let Some(flushed) = settled else {
        let rules = removed() - before;
        return Err(CommandError::new(format!(
            "{flows} datapath flows deleted, {rules} device rules removed so far; the device has not forgotten all within {shown}"
        )));
    };
    let flushed = flushed.map_err(|error| CommandError::new(format!("{flows} flows deleted; {error}")))?;
    if let Some(trouble) = flushed.trouble {
        return Err(CommandError::new(format!("{flows} flows deleted; the device may still have rules: {trouble}")));
    }
    let rules = match offload_only {
        true => flushed.removed as u64,
        false => removed() - before,
    };
    Ok(Answer::new(
        format!("{flows} datapath flows deleted, {rules} device rules removed"),
        json!({ "flows": flows, "rules": rules }),
    ))
}

/// Waits until the device has forgotten every rule that was put before.
pub(super) async fn forgotten(daemon: &Daemon, patience: Duration) -> Option<Result<Flushed, CommandError>> {
    let flushed = deadline(patience, daemon.switch.offload.flush()).await.ok()?;
    Some(flushed.map_err(|_| CommandError::new("the offload worker does not answer")))
}
