//! `dpctl/dump-flows`: flows page by page, of pollers that go on forwarding meanwhile.
//!
//! ```text
//!   part ──► page of a poller, between two of its batches ──► lines or rows ──► client ──► next part …
//! ```
//!
//! A page is asked for when the client has read what came before, so a slow client costs a slow dump and nothing else. Flows that
//! come and go meanwhile may be missing or not; one that is there all the time is shown once.

use std::sync::Arc;

use super::print::Printer;
use super::{NAMING, Result};
use crate::control::answer::{Answer, CommandError, Format, Pages, Part};
use crate::control::commands::{DATAPATH, Options, PATIENCE};
use crate::control::registry::deadline;
use crate::daemon::Daemon;
use crate::datapath::inbox::FlowView;
use crate::flow::Match;
use crate::offload::{Level, Standing};
use crate::slowpath::text::parse_match;

pub(super) const USAGE: &str = "[-m] [--names|--no-names] [DP] [filter=MATCH] [type=TYPES] [pmd=POLLER]";

/// Which flows to show, and how.
pub(in crate::control::commands) struct Dump {
    printer: Printer,
    wanted: Wanted,
    /// Of this poller only, and then without a title.
    only: Option<usize>,
}

#[derive(Default)]
struct Wanted {
    /// Flows that could match a packet which this matches.
    filter: Option<Match>,
    /// Flows of any of these types; of all, if there are none.
    types: Vec<Type>,
}

/// What `type=` can name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Type {
    All,
    /// Executed by the datapath, with a mark or without.
    Ovs,
    /// Executed by a device, whatever kind.
    Offloaded,
    PartiallyOffloaded,
    NonOffloaded,
    /// Executed by a device of a kind that there is not.
    Nothing,
}

const TYPES: [(&str, Type); 8] = [
    ("all", Type::All),
    ("ovs", Type::Ovs),
    ("offloadd", Type::Offloaded),
    ("offloaded", Type::Offloaded),
    ("partially-offloaded", Type::PartiallyOffloaded),
    ("non-offloaded", Type::NonOffloaded),
    ("tc", Type::Nothing),
    ("dpdk", Type::Nothing),
];

impl Type {
    fn includes(self, standing: Option<Standing>) -> bool {
        let level = match standing {
            Some(Standing::Offloaded(level)) => Some(level),
            _ => None,
        };
        match self {
            Type::All => true,
            Type::Ovs => level != Some(Level::Full),
            Type::Offloaded => level == Some(Level::Full),
            Type::PartiallyOffloaded => level == Some(Level::Mark),
            Type::NonOffloaded => level.is_none(),
            Type::Nothing => false,
        }
    }
}

impl Wanted {
    fn includes(&self, flow: &FlowView) -> bool {
        self.filter.as_ref().is_none_or(|filter| filter.overlaps(&flow.matching))
            && (self.types.is_empty() || self.types.iter().any(|kind| kind.includes(flow.standing)))
    }
}

impl Dump {
    /// All flows; as [`Printer::new`].
    pub(in crate::control::commands) fn new(daemon: &Daemon, more: bool, names: bool) -> Dump {
        Dump { printer: Printer::new(daemon, more, names), wanted: Wanted::default(), only: None }
    }

    pub(super) fn parse(daemon: &Daemon, args: Vec<String>) -> Result<Dump> {
        let mut options = Options::split(args, &["-m", "--more", NAMING[0], NAMING[1]])?;
        let mut dump = Dump::new(daemon, options.has(&["-m", "--more"]), named(&options));
        let is_choice = |arg: &String| ["filter=", "type=", "pmd="].iter().any(|choice| arg.starts_with(choice));
        for choice in options.take(is_choice) {
            match choice.split_once('=') {
                Some(("filter", text)) => {
                    let filter = parse_match(text, &daemon.switch.names());
                    let filter = filter.map_err(|error| CommandError::new(format!("filter={text}: {error}")))?;
                    dump.wanted.filter = Some(filter);
                }
                Some(("type", list)) => dump.wanted.types = types(list)?,
                Some((_, text)) => dump.only = Some(poller(daemon, text)?),
                None => {}
            }
        }
        options.exactly::<0>(&format!("dpctl/dump-flows {USAGE}"))?;
        Ok(dump)
    }

    pub(in crate::control::commands) fn answer(self, daemon: Arc<Daemon>) -> Answer {
        let poller = self.only.unwrap_or(0);
        Answer::paged(move |format| self.part(daemon, Place { poller, from: 0, titled: false }, format))
    }

    fn part(self, daemon: Arc<Daemon>, mut place: Place, format: Format) -> Pages {
        Box::pin(async move {
            let page = deadline(PATIENCE, daemon.switch.page(place.poller, place.from)).await?;
            let mut part = Part::new(format);
            for flow in page.flows.iter().filter(|flow| self.wanted.includes(flow)) {
                // Above the first flow that is shown, so that no flow stands under another poller's title.
                let title = !std::mem::replace(&mut place.titled, true) && self.only.is_none();
                part.text(|out| {
                    if title {
                        out.extend([&daemon.poller_title(place.poller), "\n"]);
                    }
                    self.printer.line(out, flow);
                    out.push('\n');
                });
                if format == Format::Json {
                    part.row(&self.printer.json(flow, Some(place.poller)))?;
                }
            }
            let last = self.only.map_or(daemon.switch.pollers(), |only| only + 1);
            let next = match page.next {
                Some(from) => Some(Place { from, ..place }),
                None => Some(Place { poller: place.poller + 1, from: 0, titled: false }),
            };
            Ok(match next.filter(|next| next.poller < last) {
                Some(next) => part.then(self.part(daemon, next, format)),
                None => part,
            })
        })
    }
}

/// How far a dump has come.
struct Place {
    poller: usize,
    from: u32,
    /// Something of this poller was shown.
    titled: bool,
}

/// Whether ports go by their names: if told so, and with `-m` unless told otherwise.
pub(in crate::control::commands) fn named(options: &Options) -> bool {
    options.has(&NAMING[..1]) || (options.has(&["-m", "--more"]) && !options.has(&NAMING[1..]))
}

fn types(list: &str) -> Result<Vec<Type>> {
    let named = |name: &str| TYPES.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind);
    let unknown = |name: &str| {
        let known: Vec<&str> = TYPES.iter().map(|(name, _)| *name).collect();
        CommandError::new(format!("Failed to parse type ({name}) (Invalid argument); there are {}", known.join(", ")))
    };
    list.split(',').map(|name| named(name).ok_or_else(|| unknown(name))).collect()
}

fn poller(daemon: &Daemon, text: &str) -> Result<usize> {
    let pollers = daemon.switch.pollers();
    text.parse().ok().filter(|poller| *poller < pollers).ok_or_else(|| {
        let last = pollers.saturating_sub(1);
        CommandError::new(format!(
            "pmd={text}: {DATAPATH} has the pollers 0 to {last}; its main thread forwards nothing"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_told_apart_by_who_executes_the_flow() {
        let shown = |list: &str| -> Vec<bool> {
            let types = types(list).unwrap();
            let standings = [None, Some(Standing::Offloaded(Level::Mark)), Some(Standing::Offloaded(Level::Full))];
            standings.map(|standing| types.iter().any(|kind| kind.includes(standing))).to_vec()
        };
        assert_eq!(shown("all"), [true, true, true]);
        assert_eq!(shown("ovs"), [true, true, false]);
        assert_eq!(shown("offloaded"), [false, false, true]);
        assert_eq!(shown("partially-offloaded"), [false, true, false]);
        assert_eq!(shown("non-offloaded"), [true, false, false]);
        assert_eq!(shown("tc,dpdk"), [false, false, false]);
        assert_eq!(shown("dpdk,non-offloaded,offloadd"), [true, false, true]);
        let error = types("all,dummy").unwrap_err().to_string();
        assert!(error.starts_with("Failed to parse type (dummy) (Invalid argument)"), "{error}");
    }
}
