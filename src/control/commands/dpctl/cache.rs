//! `dpctl/cache-get-size`, `cache-set-size`: the exact-match cache of each poller.

use serde_json::json;

use super::Result;
use crate::control::answer::{Answer, CommandError};
use crate::control::commands::{Options, PATIENCE};
use crate::control::registry::deadline;
use crate::daemon::Daemon;
use crate::datapath::emc::{MAX_ENTRIES, MIN_ENTRIES};

/// The one cache whose size can be asked and set.
const EMC: &str = "emc";

pub(super) fn get(daemon: &Daemon, args: Vec<String>) -> Result<Answer> {
    Options::split(args, &[])?.exactly::<0>("dpctl/cache-get-size [DP]")?;
    let entries = daemon.switch.emc_entries();
    Ok(Answer::new(format!("Name    Size\n{EMC}     {entries}\n"), json!({ EMC: entries })))
}

pub(super) async fn set(daemon: &Daemon, args: Vec<String>) -> Result<Answer> {
    let options = Options::split(args, &[])?;
    let [cache, size] = options.exactly("dpctl/cache-set-size [DP] CACHE SIZE")?;
    if cache != EMC {
        return Err(CommandError::new(format!("there is no cache {cache:?}; there is {EMC:?}")));
    }
    let allowed = |n: &usize| n.is_power_of_two() && (MIN_ENTRIES..=MAX_ENTRIES).contains(n);
    let entries = size.parse().ok().filter(allowed).ok_or_else(|| {
        CommandError::new(format!("size {size:?}: expected a power of two from {MIN_ENTRIES} to {MAX_ENTRIES}"))
    })?;
    deadline(PATIENCE, daemon.switch.set_emc_entries(entries)).await?;
    Ok(Answer::new("", json!({ EMC: entries })))
}
