//! `offloadctl top`: a live screen of what the switch does.
//!
//! ```text
//!   source: asks the daemon ──► model: rates and history ──► screen: a frame ──► terminal
//!           flows on a connection      of samples, pure             pure            ▲
//!           of their own                     ▲                                     │
//!                                            └───────── keys ◄─────────────────────┘
//! ```

mod model;
mod screen;
mod source;

use std::io::{self, Write};
use std::time::{Duration, Instant};

use clap::Parser;
use crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;

use crate::args::{Args, interval};
use crate::run::{Error, Failure};
use crate::style::Style;
use crate::surroundings::Surroundings;
use model::Model;
use source::Source;

/// Lines of a screenful that is printed as text.
const LINES: u16 = 24;

#[derive(Debug, Parser)]
#[command(name = "offloadctl top", about = "A live screen of what the switch does", disable_version_flag = true)]
struct Options {
    /// Seconds between two looks
    #[arg(long, value_name = "SECS", default_value = "1", value_parser = interval)]
    interval: Duration,
    /// Print one screenful as text, and end
    #[arg(long)]
    once: bool,
}

/// Shows the screen until somebody quits.
pub(crate) fn show(
    args: &Args,
    words: &[String],
    around: &Surroundings,
    style: Style,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let failed = |error| Failure { target: args.target.clone().unwrap_or_else(|| crate::rundir::DAEMON.into()), error };
    let options = Options::try_parse_from(std::iter::once("top").chain(words.iter().map(String::as_str)));
    let options = options
        .map_err(|error| failed(Error::Usage(error.to_string().trim_end().trim_start_matches("error: ").to_owned())))?;
    let mut source = Source::connect(args)?;
    let mut model = Model::new(options.interval, style.is_on());
    if options.once {
        let mut first = source.sample()?;
        first.flows = source.flows_now(options.interval);
        model.feed(first);
        let mut second = source.sample()?;
        second.flows = None;
        model.feed(second);
        let text = text_of(&model, around.width.clamp(60, 500) as u16, LINES);
        return out.write_all(text.as_bytes()).map_err(|error| failed(Error::Write(error)));
    }
    if !around.out_is_terminal {
        return Err(failed(Error::Usage("top needs a terminal; top --once prints one screenful".into())));
    }
    let mut terminal = ratatui::try_init().map_err(|error| failed(Error::Write(error)))?;
    // The terminal is as it was, whatever happens: also after a panic, for which ratatui has set a hook.
    let ended = live(&mut source, &mut model, &mut terminal);
    ratatui::restore();
    ended.map_err(|error| failed(Error::Write(error)))
}

fn live(source: &mut Source, model: &mut Model, terminal: &mut ratatui::DefaultTerminal) -> io::Result<()> {
    source.watch_flows();
    let mut due = Instant::now();
    loop {
        let now = Instant::now();
        if now >= due {
            due = now + model.interval;
            if !model.paused {
                match source.sample() {
                    Ok(sample) => model.feed(sample),
                    // It may come back.
                    Err(failure) => {
                        model.lose(failure.error.to_string());
                        source.reconnect();
                    }
                }
            }
        }
        terminal.draw(|frame| screen::draw(frame, model))?;
        if event::poll(due.saturating_duration_since(Instant::now()))?
            && let Event::Key(key) = event::read()?
            && press(model, key)
        {
            return Ok(());
        }
    }
}

/// What a key does; `true`: it ends the program.
fn press(model: &mut Model, key: KeyEvent) -> bool {
    if key.kind == KeyEventKind::Release {
        return false;
    }
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return true,
        KeyCode::Esc if model.help => model.help = false,
        KeyCode::Char('q') | KeyCode::Esc => return true,
        KeyCode::Char('p') | KeyCode::Char(' ') => model.paused = !model.paused,
        KeyCode::Char('+') => model.interval = (model.interval * 2).min(Duration::from_secs(60)),
        KeyCode::Char('-') => model.interval = (model.interval / 2).max(Duration::from_millis(250)),
        KeyCode::Char('s') => model.sort = model.sort.next(),
        KeyCode::Down => model.scroll = (model.scroll + 1).min(model.flows.len().saturating_sub(1)),
        KeyCode::Up => model.scroll = model.scroll.saturating_sub(1),
        KeyCode::Char('?' | 'h') => model.help = !model.help,
        _ => {}
    }
    false
}

/// A screenful as text.
fn text_of(model: &Model, width: u16, height: u16) -> String {
    let mut terminal = match Terminal::new(TestBackend::new(width, height)) {
        Ok(terminal) => terminal,
        Err(never) => match never {},
    };
    match terminal.draw(|frame| screen::draw(frame, model)) {
        Ok(_) => lines(terminal.backend().buffer()),
        Err(never) => match never {},
    }
}

fn lines(buffer: &Buffer) -> String {
    let width = usize::from(buffer.area.width).max(1);
    let line = |cells: &[ratatui::buffer::Cell]| {
        cells.iter().map(|cell| cell.symbol()).collect::<String>().trim_end().to_owned() + "\n"
    };
    buffer.content.chunks(width).map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A model of recorded answers: four looks, a second apart.
    fn recorded() -> Model {
        let mut model = Model::new(Duration::from_secs(1), false);
        let start = Instant::now();
        for n in 0..4 {
            model.feed(source::recorded(start + Duration::from_secs(n), n));
        }
        model
    }

    /// Compares with the file, which `UPDATE_GOLDEN=1` writes anew.
    fn golden(name: &str, text: &str) {
        let path = format!("{}/tests/golden/{name}.txt", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::create_dir_all(std::path::Path::new(&path).parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
        }
        let wanted = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(text == wanted, "{path} differs; it is now:\n{text}\nwas:\n{wanted}");
    }

    #[test]
    fn the_screen_is_as_it_was_drawn_before() {
        let model = recorded();
        golden("top-80x24", &text_of(&model, 80, 24));
        golden("top-120x40", &text_of(&model, 120, 40));
    }

    #[test]
    fn what_is_unusual_is_said() {
        let mut model = recorded();
        model.lose("connection lost".into());
        assert!(text_of(&model, 80, 24).contains("lost, trying again: connection lost"));
        model.help = true;
        assert!(text_of(&model, 80, 24).contains("quit"));
        assert!(text_of(&model, 50, 10).contains("needs 60x15"));
        let empty = Model::new(Duration::from_secs(1), false);
        assert!(text_of(&empty, 80, 24).contains("offloadctl top"));
    }

    #[test]
    fn every_size_can_be_drawn() {
        let model = recorded();
        for width in [1, 20, 59, 60, 61, 79, 200] {
            for height in [1, 10, 14, 15, 16, 23, 60] {
                text_of(&model, width, height);
            }
        }
    }

    #[test]
    fn keys_do_what_the_help_says() {
        let mut model = recorded();
        let mut key = |code| press(&mut model, KeyEvent::from(code));
        assert!(
            !key(KeyCode::Char('p')) && !key(KeyCode::Char('+')) && !key(KeyCode::Char('s')) && !key(KeyCode::Down)
        );
        assert!(!key(KeyCode::Char('?')) && !key(KeyCode::Esc), "Esc closes the help first");
        assert!(key(KeyCode::Esc));
        assert!(model.paused && !model.help && model.scroll == 1);
        assert_eq!(model.interval, Duration::from_secs(2));
        (0..9).for_each(|_| assert!(!press(&mut model, KeyEvent::from(KeyCode::Char('-')))));
        assert_eq!(model.interval, Duration::from_millis(250));
        (0..99).for_each(|_| assert!(!press(&mut model, KeyEvent::from(KeyCode::Down))));
        assert_eq!(model.scroll, model.flows.len() - 1);
        assert!(press(&mut model, KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)));
        assert!(press(&mut model, KeyEvent::from(KeyCode::Char('q'))));
    }
}
