//! The screen: [`draw`] makes a frame of a [`Model`].
//!
//! ```text
//!  title
//!  ┌ Packets/s: a line a level, with its history ────────────┐
//!  ┌ Device ─────────────────┐┌ Workers ─────────────────────┐
//!  ┌ Flows: the busiest ─────────────────────────────────────┐
//!  keys
//! ```

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Clear, LineGauge, Paragraph, Row, Sparkline, Table};

use super::model::{Device, Flow, Level, Model, Worker};

/// The least that there is something to see in.
const LEAST: (u16, u16) = (60, 15);

/// Stands where nothing is known.
const UNKNOWN: &str = "–";

pub fn draw(frame: &mut Frame, model: &Model) {
    let area = frame.area();
    let (width, height) = LEAST;
    if area.width < width || area.height < height {
        let text = format!("{}x{}: top needs {width}x{height}", area.width, area.height);
        return frame.render_widget(Paragraph::new(text), area);
    }
    let middle = (model.workers.len() as u16).max(3).min(area.height / 4) + 3;
    let rows = [
        Constraint::Length(1),
        Constraint::Length(8),
        Constraint::Length(middle),
        Constraint::Min(2),
        Constraint::Length(1),
    ];
    let [title, packets, parts, flows, keys] = Layout::vertical(rows).areas(area);
    let [device, workers] = Layout::horizontal([Constraint::Percentage(50), Constraint::Percentage(50)]).areas(parts);
    draw_title(frame, model, title);
    draw_packets(frame, model, packets);
    draw_device(frame, model, device);
    draw_workers(frame, model, workers);
    draw_flows(frame, model, flows);
    let text = " q quit  p pause  +/- interval  s sort  \u{2191}/\u{2193} scroll  ? help";
    frame.render_widget(Paragraph::new(text).style(dim(model)), keys);
    if model.help {
        draw_help(frame);
    }
}

fn draw_title(frame: &mut Frame, model: &Model, area: Rect) {
    let version = if model.version.is_empty() { String::new() } else { format!("  {}", model.version) };
    let mut spans = vec![Span::styled(" offloadctl top", Modifier::BOLD)];
    if model.lost.is_none() {
        spans.push(Span::raw(format!("{version}  every {:.2} s", model.interval.as_secs_f64())));
    }
    if model.paused {
        spans.push(Span::styled("  paused", Modifier::REVERSED));
    }
    if let Some(why) = &model.lost {
        spans.push(Span::styled(format!("  lost, trying again: {why}"), colour(model, Color::Red)));
    }
    frame.render_widget(Line::from(spans), area);
}

fn draw_packets(frame: &mut Frame, model: &Model, area: Rect) {
    let total = model.total().map_or(UNKNOWN.into(), count);
    let block = Block::bordered().title(format!(" Packets/s: {total} "));
    let inside = block.inner(area);
    frame.render_widget(block, area);
    let lines = Layout::vertical([Constraint::Length(1); 6]).split(inside);
    let colours = [Color::Green, Color::Cyan, Color::Blue, Color::White, Color::Yellow];
    for ((level, line), tint) in model.levels.iter().zip(lines.iter()).zip(colours) {
        draw_level(frame, model, level, *line, tint);
    }
    if let Some(line) = lines.get(5) {
        draw_level(frame, model, &model.drops, *line, Color::Red);
    }
}

fn draw_level(frame: &mut Frame, model: &Model, level: &Level, area: Rect, tint: Color) {
    let [text, history] = Layout::horizontal([Constraint::Length(30), Constraint::Min(0)]).areas(area);
    let rate = level.rate.map_or(UNKNOWN.into(), count);
    let share = match (level.rate, model.total()) {
        (Some(rate), Some(total)) if total > 0.0 => format!("{:5.1} %", 100.0 * rate / total),
        _ => String::new(),
    };
    let line = format!(" {:<9} {rate:>9} {share:>8} ", level.name);
    frame.render_widget(Line::styled(line, colour(model, tint)), text);
    let shown = usize::from(history.width);
    let values: Vec<u64> = level.history.iter().rev().take(shown).rev().copied().collect();
    frame.render_widget(Sparkline::default().data(&values).style(colour(model, tint)), history);
}

fn draw_device(frame: &mut Frame, model: &Model, area: Rect) {
    let Device { name, enabled, off, rules, full, capacity, marks, mark_capacity, quarantined, reasons } =
        &model.device;
    let state = match (off, enabled) {
        (Some(why), _) => format!("given up: {why}"),
        (None, Some(true)) => "on".to_owned(),
        (None, Some(false)) => "off".to_owned(),
        (None, None) => UNKNOWN.to_owned(),
    };
    let block = Block::bordered().title(format!(" Device {name}: {state} "));
    let inside = block.inner(area);
    frame.render_widget(block, area);
    let lines = Layout::vertical([Constraint::Length(1), Constraint::Length(1), Constraint::Min(0)]).split(inside);
    let known = |n: &Option<u64>| n.map_or(UNKNOWN.into(), |n| count(n as f64));
    let label = format!("rules {} of {} (full {})", known(rules), known(capacity), known(full));
    match (rules, capacity) {
        (Some(rules), Some(capacity)) if *capacity > 0 => {
            let gauge = LineGauge::default()
                .filled_style(colour(model, Color::Green))
                .label(label)
                .ratio((*rules as f64 / *capacity as f64).clamp(0.0, 1.0));
            frame.render_widget(gauge, lines[0]);
        }
        _ => frame.render_widget(Line::raw(label), lines[0]),
    }
    let marks = format!("marks {} of {} (quarantined {})", known(marks), known(mark_capacity), known(quarantined));
    frame.render_widget(Line::raw(marks), lines[1]);
    let reason = |(reason, n): &(String, u64)| {
        Line::styled(format!("not offloaded, {reason}: {}", count(*n as f64)), colour(model, Color::Yellow))
    };
    frame.render_widget(Paragraph::new(reasons.iter().map(reason).collect::<Vec<_>>()), lines[2]);
}

fn draw_workers(frame: &mut Frame, model: &Model, area: Rect) {
    let block = Block::bordered().title(" Workers ");
    let row = |worker: &Worker| {
        let known = |n: Option<u64>| n.map_or(UNKNOWN.into(), |n| count(n as f64));
        let time = |ns: Option<u64>| ns.map_or(UNKNOWN.into(), duration);
        let queue = format!("{}/{}", known(worker.depth), known(worker.limit));
        Row::new([
            worker.id.to_string(),
            queue,
            known(worker.rules),
            time(worker.p50_ns),
            time(worker.p99_ns),
            time(worker.p999_ns),
        ])
    };
    let widths = [
        Constraint::Length(2),
        Constraint::Length(10),
        Constraint::Length(5),
        Constraint::Length(5),
        Constraint::Length(5),
        Constraint::Length(5),
    ];
    let header = Row::new(["id", "queue", "rules", "p50", "p99", "p99.9"]).style(Modifier::BOLD);
    let table = Table::new(model.workers.iter().map(row), widths).header(header).block(block).column_spacing(1);
    frame.render_widget(table, area);
}

fn draw_flows(frame: &mut Frame, model: &Model, area: Rect) {
    let block = Block::bordered().title(format!(" Busiest flows, by {} ", model.sort.name()));
    if let Some(why) = &model.no_flows {
        return frame.render_widget(Paragraph::new(why.as_str()).block(block), area);
    }
    let row = |flow: &Flow| {
        let state = match &flow.reason {
            Some(reason) => format!("{}: {reason}", flow.standing),
            None => flow.standing.clone(),
        };
        let tint = match flow.standing.as_str() {
            "full" => Color::Green,
            "mark" => Color::Cyan,
            "refused" => Color::Yellow,
            _ => Color::White,
        };
        Row::new([
            Cell::from(format!("{:>8}", count(flow.pps))),
            Cell::from(format!("{:>8}", count(flow.bps))),
            Cell::from(state).style(colour(model, tint)),
            Cell::from(format!("{}, actions:{}", flow.key, flow.actions)),
        ])
    };
    let widths = [Constraint::Length(8), Constraint::Length(8), Constraint::Length(16), Constraint::Min(10)];
    let header = Row::new(["   pkts/s", "   bit/s", "state", "flow"].map(|title| title.trim_start_matches("  ")));
    let flows = model.flows.iter().skip(model.scroll).map(row);
    frame.render_widget(Table::new(flows, widths).header(header.style(Modifier::BOLD)).block(block), area);
}

fn draw_help(frame: &mut Frame) {
    let text = [
        "q, Esc, Ctrl-C   quit",
        "p, space         pause, go on",
        "+  -             look less often, more often",
        "s                sort flows by packets, bits, state",
        "up, down         scroll flows",
        "?, h             this help",
        "",
        "device    forwarded by the device alone",
        "mark      found by the mark that the device stamped",
        "EMC       found in the exact-match cache",
        "megaflow  found in the classifier",
        "upcall    decided by rules",
    ];
    let whole = frame.area();
    let (width, height) = (58.min(whole.width), (text.len() as u16 + 2).min(whole.height));
    let area = Rect::new((whole.width - width) / 2, (whole.height - height) / 2, width, height);
    frame.render_widget(Clear, area);
    frame.render_widget(Paragraph::new(text.join("\n")).block(Block::bordered().title(" Help ")), area);
}

fn colour(model: &Model, tint: Color) -> Style {
    if model.colour { Style::new().fg(tint) } else { Style::new() }
}

fn dim(model: &Model) -> Style {
    if model.colour { Style::new().add_modifier(Modifier::DIM) } else { Style::new() }
}

/// A number in at most six letters: 950, 12.3k, 4.56M.
fn count(n: f64) -> String {
    for (unit, name) in [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")] {
        if n >= unit {
            let scaled = n / unit;
            return if scaled < 10.0 { format!("{scaled:.2}{name}") } else { format!("{scaled:.1}{name}") };
        }
    }
    format!("{n:.0}")
}

/// A time in at most six letters.
fn duration(ns: u64) -> String {
    let ns = ns as f64;
    for (unit, name) in [(1e9, "s"), (1e6, "ms"), (1e3, "us")] {
        if ns >= unit {
            let scaled = ns / unit;
            return if scaled < 10.0 { format!("{scaled:.1}{name}") } else { format!("{scaled:.0}{name}") };
        }
    }
    format!("{ns:.0}ns")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_whatever_their_size() {
        assert_eq!(
            [0.0, 999.0, 1_234.0, 12_345.0, 7.5e6, 3e12].map(count),
            ["0", "999", "1.23k", "12.3k", "7.50M", "3.00T"]
        );
        assert_eq!([0, 999, 1_500, 48_000, 3_000_000_000].map(duration), ["0ns", "999ns", "1.5us", "48us", "3.0s"]);
    }
}
