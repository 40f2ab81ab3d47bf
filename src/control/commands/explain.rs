//! `offload/explain`: why a flow is not as far in the device as it could be.

use std::fmt;
use std::time::Instant;

use serde::Serialize;

use super::PATIENCE;
use crate::clock;
use crate::control::answer::{Answer, CommandError};
use crate::control::registry::deadline;
use crate::daemon::Daemon;
use crate::datapath::inbox::FlowView;
use crate::flow::Ufid;
use crate::flow::text::format_match;
use crate::offload::{Kind, Level, Reason, Standing};

/// Which flows are asked about.
enum Which {
    /// Whatever there is to say of one.
    One(Ufid),
    /// Those that could be further, of a kind or reason.
    All(Option<Filter>),
}

enum Filter {
    Kind(Kind),
    Reason(Reason),
}

/// What is said of one poller's flow.
#[derive(Serialize)]
struct Row {
    ufid: String,
    poller: usize,
    key: String,
    offload: Standing,
    /// The device has matched a packet of it.
    confirmed: bool,
    kind: Option<Kind>,
    reason: Option<Reason>,
    /// The field, action or port, or the device's own words.
    text: String,
    attempts: u32,
    /// Seconds since this was first so.
    first_s: Option<f64>,
    /// Seconds since this was last found to be so.
    last_s: Option<f64>,
    /// Seconds until the next attempt; `None`: when something changes.
    next_s: Option<f64>,
}

#[derive(Serialize)]
#[serde(transparent)]
struct Explanation(Vec<Row>);

pub(super) async fn explain(daemon: &Daemon, args: &[String]) -> Result<Answer, CommandError> {
    let which = parse(args)?;
    let (now, names) = (clock::now(), daemon.switch.names());
    let mut rows = Vec::new();
    for poller in 0..daemon.switch.pollers() {
        let mut next = Some(0);
        while let Some(from) = next {
            let page = deadline(PATIENCE, daemon.switch.page(poller, from)).await?;
            next = page.next;
            let chosen = page.flows.iter().filter(|flow| match &which {
                Which::One(ufid) => flow.ufid == *ufid,
                Which::All(_) => true,
            });
            rows.extend(chosen.filter_map(|flow| {
                let row = row(flow, poller, now, format_match(&flow.matching, false, &names))?;
                which.includes(&row).then_some(row)
            }));
        }
    }
    match which {
        Which::One(ufid) if rows.is_empty() => Err(CommandError::new(format!("no flow has ufid {ufid}"))),
        _ => Ok(Answer::of(Explanation(rows))),
    }
}

fn parse(args: &[String]) -> Result<Which, CommandError> {
    match args {
        [all] if all == "--all" => Ok(Which::All(None)),
        [all, filter] if all == "--all" => {
            let kind = Kind::ALL.into_iter().find(|kind| kind.to_string() == *filter).map(Filter::Kind);
            let reason = Reason::ALL.into_iter().find(|reason| name(reason) == *filter).map(Filter::Reason);
            let known = || {
                let kinds = Kind::ALL.iter().map(Kind::to_string);
                kinds.chain(Reason::ALL.iter().map(name)).collect::<Vec<_>>().join(", ")
            };
            let filter = kind
                .or(reason)
                .ok_or_else(|| CommandError::new(format!("{filter:?} is no kind of reason; there are: {}", known())))?;
            Ok(Which::All(Some(filter)))
        }
        [ufid] => match ufid.strip_prefix("ufid:").unwrap_or(ufid).parse() {
            Ok(ufid) => Ok(Which::One(ufid)),
            Err(error) => Err(CommandError::new(format!("{ufid:?}: expected --all or a ufid: {error}"))),
        },
        _ => Err(CommandError::new("usage: offload/explain UFID|--all [REASON]")),
    }
}

/// A reason's name in JSON, which is how one is asked for.
pub(super) fn name(reason: &Reason) -> String {
    serde_json::to_value(reason).ok().and_then(|name| Some(name.as_str()?.to_owned())).unwrap_or_default()
}

impl Which {
    fn includes(&self, row: &Row) -> bool {
        match self {
            Which::One(_) => true,
            Which::All(None) => row.kind.is_some(),
            Which::All(Some(Filter::Kind(kind))) => row.kind == Some(*kind),
            Which::All(Some(Filter::Reason(reason))) => row.reason == Some(*reason),
        }
    }
}

/// `None` where there is no device.
fn row(flow: &FlowView, poller: usize, now: Instant, key: String) -> Option<Row> {
    let standing = flow.standing?;
    let ago = |then: Instant| now.saturating_duration_since(then).as_secs_f64();
    let pending = match standing {
        Standing::Software => Some("to be looked at"),
        Standing::Queued => Some("waits for its turn"),
        Standing::Installing => Some("is being put"),
        Standing::Removing => Some("its old rule is being removed"),
        Standing::Offloaded(_) | Standing::Refused(_) | Standing::Gone => None,
    };
    // What was in the way before does not matter while it is on its way.
    let trouble = flow.trouble.as_ref().filter(|_| pending.is_none());
    Some(Row {
        ufid: flow.ufid.to_string(),
        poller,
        key,
        offload: standing,
        confirmed: flow.confirmed,
        kind: trouble.map(|trouble| trouble.why.kind()).or(pending.map(|_| Kind::Pending)),
        reason: trouble.map(|trouble| trouble.why),
        text: trouble.map(|trouble| trouble.text.to_string()).or(pending.map(str::to_owned)).unwrap_or_default(),
        attempts: trouble.map_or(0, |trouble| trouble.attempts),
        first_s: trouble.map(|trouble| ago(trouble.first)),
        last_s: trouble.map(|trouble| ago(trouble.last)),
        next_s: trouble.and_then(|trouble| trouble.next).map(|next| next.saturating_duration_since(now).as_secs_f64()),
    })
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let offloaded = match self.offload {
            Standing::Offloaded(Level::Full) => "yes",
            Standing::Offloaded(Level::Mark) => "partial",
            _ => "no",
        };
        write!(f, "ufid:{}, poller{}, offloaded:{offloaded}", self.ufid, self.poller)?;
        if offloaded != "no" {
            f.write_str(if self.confirmed { ", confirmed by hits" } else { ", no hit seen yet" })?;
        }
        if let Some(kind) = self.kind {
            write!(f, ", reason:{kind} (")?;
            if let Some(reason) = self.reason {
                write!(f, "{reason}: ")?;
            }
            write!(f, "{})", self.text)?;
        }
        if let (Some(first), Some(last)) = (self.first_s, self.last_s) {
            write!(f, ", attempts:{}, first:{first:.1}s ago, last:{last:.1}s ago, next:", self.attempts)?;
            match self.next_s {
                Some(next) => write!(f, "in {next:.1}s")?,
                None => f.write_str("when something changes")?,
            }
        }
        write!(f, ", {}", self.key)
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|row| writeln!(f, "{row}"))
    }
}
