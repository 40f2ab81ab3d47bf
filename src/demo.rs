//! [`Demo`]: a line a second about the switch at work, and a report at its end.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Instant;

use crate::daemon::Daemon;
use crate::datapath::counters::PollerCounters;

/// What the lines are differences from.
pub struct Demo {
    begun: Instant,
    last: Reading,
    lines: u64,
}

/// The counts of all pollers at one moment.
#[derive(Clone, Copy)]
struct Reading {
    at: Instant,
    mark: u64,
    emc: u64,
    megaflow: u64,
    upcall: u64,
    sent: u64,
}

/// Lines between two headings.
const PAGE: u64 = 20;

impl Demo {
    /// Says what there is to see.
    pub fn begin(now: Instant, daemon: &Daemon) -> Demo {
        let socket = "offloadctl dpif/offload-show";
        say(&format!(
            "demo: 1,000 flows at a simulated port, a simulated NIC; look inside with `{socket}`, end with Ctrl-C"
        ));
        Demo { begun: now, last: Reading::take(now, daemon), lines: 0 }
    }

    /// One line, about the time since the last.
    ///
    /// # Errors
    /// Nobody reads it.
    pub fn line(&mut self, now: Instant, daemon: &Daemon) -> io::Result<()> {
        if self.lines.is_multiple_of(PAGE) {
            print(
                "   time  pps by: mark        emc   megaflow     upcall |   flows    marks   queue | offload p50     p99",
            )?;
        }
        self.lines += 1;
        let reading = Reading::take(now, daemon);
        let seconds = now.saturating_duration_since(self.last.at).as_secs_f64().max(1e-9);
        let rate = |new: u64, old: u64| ((new - old) as f64 / seconds).round();
        let offload = daemon.switch.offload.snapshot();
        print(&format!(
            "{:>6.1}s  {:>12} {:>10} {:>10} {:>10} | {:>7} {:>8} {:>7} | {:>8.1}us {:>6.1}us",
            now.saturating_duration_since(self.begun).as_secs_f64(),
            rate(reading.mark, self.last.mark),
            rate(reading.emc, self.last.emc),
            rate(reading.megaflow, self.last.megaflow),
            rate(reading.upcall, self.last.upcall),
            daemon.switch.shared.flows(),
            offload.marks.in_use,
            offload.queue.depth,
            offload.latency.all.p50_ns as f64 / 1e3,
            offload.latency.all.p99_ns as f64 / 1e3,
        ))?;
        self.last = reading;
        Ok(())
    }

    /// The final report.
    pub fn end(self, now: Instant, daemon: &Daemon) {
        let total = Reading::take(now, daemon);
        let packets = total.mark + total.emc + total.megaflow + total.upcall;
        let percent = |part: u64| 100.0 * part as f64 / packets.max(1) as f64;
        let offload = daemon.switch.offload.snapshot();
        let seconds = now.saturating_duration_since(self.begun).as_secs_f64();
        say(&format!("\nreport after {seconds:.1} s:"));
        say(&format!("  packets received   {packets:>12}   ({:.0} per second)", packets as f64 / seconds.max(1e-9)));
        say(&format!("    by mark          {:>12}   {:5.1} %", total.mark, percent(total.mark)));
        say(&format!("    by EMC           {:>12}   {:5.1} %", total.emc, percent(total.emc)));
        say(&format!("    by megaflow      {:>12}   {:5.1} %", total.megaflow, percent(total.megaflow)));
        say(&format!("    by upcall        {:>12}   {:5.1} %", total.upcall, percent(total.upcall)));
        say(&format!("  packets sent       {:>12}", total.sent));
        say(&format!("  flows              {:>12}", daemon.switch.shared.flows()));
        say(&format!("  rules in device    {:>12}", offload.rules));
        say(&format!(
            "  offload latency    p50 {:.1} us, p99 {:.1} us, max {:.1} us ({} operations)",
            offload.latency.all.p50_ns as f64 / 1e3,
            offload.latency.all.p99_ns as f64 / 1e3,
            offload.latency.all.max_ns as f64 / 1e3,
            offload.operations.total()
        ));
    }
}

impl Reading {
    fn take(at: Instant, daemon: &Daemon) -> Reading {
        let PollerCounters { lookup, fate, .. } = daemon.switch.totals();
        Reading {
            at,
            mark: lookup.mark_hit.get(),
            emc: lookup.emc_hit.get(),
            megaflow: lookup.megaflow_hit.get(),
            upcall: lookup.upcall_installed.get() + lookup.upcall_flow_limit.get(),
            sent: fate.sent.get(),
        }
    }
}

/// A line for people.
fn print(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    // A terminal may have echoed ^C at the line's beginning.
    let start = if out.is_terminal() { "\r" } else { "" };
    writeln!(out, "{start}{line}")
}

/// A line for whoever is still there.
fn say(line: &str) {
    let _ = print(line);
}
