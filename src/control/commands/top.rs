//! `flow-top`: the busiest flows, by what two looks at all of them, a while apart, differ in.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::fmt;
use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::PATIENCE;
use crate::control::answer::{Answer, CommandError};
use crate::control::registry::deadline;
use crate::daemon::Daemon;
use crate::datapath::inbox::{FlowView, Which};
use crate::flow::Ufid;
use crate::flow::text::{format_actions, format_match};
use crate::offload::{Reason, Standing};

/// The most flows shown.
const MOST: usize = 1_000;

/// A flow's packets and bytes at the first look. Flows beyond these are not watched: 16 million take about half a gigabyte.
type Seen = HashMap<(usize, Ufid), (u64, u64), foldhash::fast::RandomState>;
const MOST_SEEN: usize = 16_000_000;

#[derive(Serialize)]
#[serde(transparent)]
struct Top(Vec<Row>);

#[derive(Serialize)]
struct Row {
    ufid: String,
    poller: usize,
    /// Packets and bits a second.
    pps: f64,
    bps: f64,
    key: String,
    actions: String,
    standing: &'static str,
    mark: Option<u32>,
    reason: Option<Reason>,
}

/// A flow's pace: packets and bytes in the time between the looks.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Pace {
    packets: u64,
    bytes: u64,
    poller: usize,
    ufid: Ufid,
}

pub(super) async fn top(daemon: &Daemon, args: &[String]) -> Result<Answer, CommandError> {
    let (count, over) = parse(args)?;
    let _one_of_few = OneOfFew::enter()?;
    let mut seen = Seen::default();
    look(daemon, |poller, flow| {
        if seen.len() < MOST_SEEN {
            seen.insert((poller, flow.ufid), (flow.stats.packets, flow.stats.bytes));
        }
    })
    .await?;
    let begun = Instant::now();
    wait(over).await;
    let mut busiest: BinaryHeap<Reverse<Pace>> = BinaryHeap::new();
    look(daemon, |poller, flow| {
        let (packets, bytes) = seen.get(&(poller, flow.ufid)).copied().unwrap_or_default();
        let packets = flow.stats.packets.saturating_sub(packets);
        if packets > 0 {
            let bytes = flow.stats.bytes.saturating_sub(bytes);
            busiest.push(Reverse(Pace { packets, bytes, poller, ufid: flow.ufid }));
            if busiest.len() > count {
                busiest.pop();
            }
        }
    })
    .await?;
    let seconds = begun.elapsed().as_secs_f64();
    let names = daemon.switch.names();
    let mut rows = Vec::new();
    // The least first, wrapped in `Reverse`: sorted that way, the busiest come first.
    for Reverse(Pace { packets, bytes, poller, ufid }) in busiest.into_sorted_vec() {
        // It may be gone by now.
        let Some(flow) = deadline(PATIENCE, daemon.switch.get_flow(Which::Ufid(ufid))).await? else { continue };
        rows.push(Row {
            ufid: ufid.to_string(),
            poller,
            pps: packets as f64 / seconds,
            bps: 8.0 * bytes as f64 / seconds,
            key: format_match(&flow.matching, false, &names),
            actions: format_actions(&flow.actions, &names),
            standing: flow.standing.as_ref().map_or("software", Standing::name),
            mark: flow.mark.map(|mark| mark.0.get()),
            reason: flow.trouble.as_ref().map(|trouble| trouble.why),
        });
    }
    Ok(Answer::of(Top(rows)))
}

/// Looks that are under way: each remembers all flows.
static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);
const FEW: usize = 4;

struct OneOfFew;

impl OneOfFew {
    fn enter() -> Result<OneOfFew, CommandError> {
        let one_more = |n| (n < FEW).then_some(n + 1);
        match UNDER_WAY.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more) {
            Ok(_) => Ok(OneOfFew),
            Err(_) => Err(CommandError::new(format!("{FEW} others look for the busiest flows already; try again"))),
        }
    }
}

impl Drop for OneOfFew {
    fn drop(&mut self) {
        UNDER_WAY.fetch_sub(1, Ordering::Relaxed);
    }
}

fn parse(args: &[String]) -> Result<(usize, Duration), CommandError> {
    let (mut count, mut over) = (10, Duration::from_secs(1));
    let mut args = args.iter();
    while let Some(option) = args.next() {
        let value = args.next().map_or("", String::as_str);
        let wrong = |expected: &str| CommandError::new(format!("{option} {value:?}: expected {expected}"));
        match option.as_str() {
            "-n" => {
                let within = |count: &usize| (1..=MOST).contains(count);
                count = value.parse().ok().filter(within).ok_or_else(|| wrong(&format!("1 to {MOST} flows")))?;
            }
            "--over" => {
                let within = |seconds: &f64| (0.1..=60.0).contains(seconds);
                let seconds = value.parse().ok().filter(within).ok_or_else(|| wrong("0.1 to 60 seconds"))?;
                over = Duration::from_secs_f64(seconds);
            }
            _ => return Err(CommandError::new("usage: flow-top [-n N] [--over SECS]")),
        }
    }
    Ok((count, over))
}

/// Shows every flow, page by page.
async fn look(daemon: &Daemon, mut see: impl FnMut(usize, &FlowView)) -> Result<(), CommandError> {
    for poller in 0..daemon.switch.pollers() {
        let mut next = Some(0);
        while let Some(from) = next {
            let page = deadline(PATIENCE, daemon.switch.page(poller, from)).await?;
            page.flows.iter().for_each(|flow| see(poller, flow));
            next = page.next;
        }
    }
    Ok(())
}

/// Lets time pass; the server looks at unfinished commands often enough.
async fn wait(time: Duration) {
    let end = Instant::now() + time;
    poll_fn(|_| if Instant::now() < end { Poll::Pending } else { Poll::Ready(()) }).await;
}

impl fmt::Display for Top {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:>12} {:>12}  {:<9}  flow", "packets/s", "kbit/s", "state")?;
        for Row { pps, bps, standing, key, actions, .. } in &self.0 {
            writeln!(f, "{pps:>12.0} {:>12.1}  {standing:<9}  {key}, actions:{actions}", bps / 1e3)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_or_refused_with_what_would_do() {
        let parse = |line: &str| {
            let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            parse(&args).map_err(|error| error.to_string())
        };
        assert_eq!(parse("").unwrap(), (10, Duration::from_secs(1)));
        assert_eq!(parse("--over 0.5 -n 3").unwrap(), (3, Duration::from_millis(500)));
        assert_eq!(parse("-n 0").unwrap_err(), "-n \"0\": expected 1 to 1000 flows");
        assert_eq!(parse("--over nan").unwrap_err(), "--over \"nan\": expected 0.1 to 60 seconds");
        assert!(parse("--over").is_err() && parse("bogus").is_err());
    }
}
