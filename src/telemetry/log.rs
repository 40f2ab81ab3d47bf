//! Log output through `env_logger`, with levels changeable per module at run time.
//!
//! A line looks like this, one number counting up per destination, so that a lost line shows:
//!
//! ```text
//! 2026-11-23T06:00:00.123Z|00001|offload(worker0)|INFO|p1: device is back
//! ```
//!
//! Where standard error is the journal's, which has a clock of its own, the line's priority stands in place of the time, as sd-daemon(3) has
//! it: `<6>00001|offload(worker0)|INFO|p1: device is back`.
//!
//! Code logs with one of [`MODULES`] as target: `log::info!(target: "port", "{name}: gone")`. A record without a target, whose
//! target is then the path of the Rust module, counts as the last module named in that path.
//!
//! `env_logger` formats and filters but cannot change its mind. So there is one of its loggers for each destination, and changing
//! a level replaces both; readers of the old ones finish undisturbed.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Instant;

use arc_swap::{ArcSwap, ArcSwapOption};
use env_logger::Target;
use log::{LevelFilter, Log, Metadata, Record};
use rustix::fs::fstat;
use serde::{Serialize, Serializer, ser::SerializeMap};

use super::limiter::Limiter;

/// What log lines may be about, and `library` for all that is not ours. No name begins with another.
pub const MODULES: &[&str] = &["control", "daemon", "library", "offload", "poller", "port", "slowpath", "worker"];

/// Where log lines go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Destination {
    Console,
    File,
}

/// How severe a line must be, by Open vSwitch's names, of which `EMER` is one that we never use: it logs nothing, as `OFF`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Off,
    Emer,
    Err,
    Warn,
    Info,
    Dbg,
}

impl Level {
    const ALL: [(&str, Level); 6] = [
        ("off", Level::Off),
        ("emer", Level::Emer),
        ("err", Level::Err),
        ("warn", Level::Warn),
        ("info", Level::Info),
        ("dbg", Level::Dbg),
    ];

    fn filter(self) -> LevelFilter {
        match self {
            Level::Off | Level::Emer => LevelFilter::Off,
            Level::Err => LevelFilter::Error,
            Level::Warn => LevelFilter::Warn,
            Level::Info => LevelFilter::Info,
            Level::Dbg => LevelFilter::Trace,
        }
    }

    fn of(filter: LevelFilter) -> Level {
        match filter {
            LevelFilter::Off => Level::Off,
            LevelFilter::Error => Level::Err,
            LevelFilter::Warn => Level::Warn,
            LevelFilter::Info => Level::Info,
            LevelFilter::Debug | LevelFilter::Trace => Level::Dbg,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Level::Off => "OFF",
            Level::Emer => "EMER",
            Level::Err => "ERR",
            Level::Warn => "WARN",
            Level::Info => "INFO",
            Level::Dbg => "DBG",
        }
    }
}

/// The level of each module at each destination. Shown as Open vSwitch shows its own, a column for the absent syslog included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Levels {
    console: [Level; MODULES.len()],
    file: [Level; MODULES.len()],
}

/// What is wrong with a change of levels.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    #[error("no destination, level, or module \"{0}\"")]
    Unknown(String),
    #[error("\"{0}\" is not supported: destinations are console and file")]
    Unsupported(String),
    #[error("unknown module \"{0}\"")]
    Module(String),
    #[error("\"{spec}\" has more than one {what}")]
    Twice { spec: String, what: &'static str },
    #[error("log filter \"{spec}\": {reason}")]
    Filter { spec: String, reason: String },
}

impl Default for Levels {
    fn default() -> Levels {
        Levels { console: [Level::Info; MODULES.len()], file: [Level::Info; MODULES.len()] }
    }
}

impl Levels {
    /// These levels, changed by `spec`; see [`set`].
    fn changed(mut self, spec: &str) -> Result<Levels, SpecError> {
        let (mut module, mut destination, mut level) = (None, None, None);
        let words = spec.split([':', ',', ' ']).filter(|word| !word.is_empty());
        for word in words {
            let twice = |what| SpecError::Twice { spec: spec.to_owned(), what };
            let lower = word.to_ascii_lowercase();
            if let Some(&(_, found)) = Level::ALL.iter().find(|(name, _)| *name == lower) {
                level.replace(found).map_or(Ok(()), |_| Err(twice("level")))?;
            } else if let Some(found) = MODULES.iter().position(|name| *name == lower) {
                module.replace(Some(found)).map_or(Ok(()), |_| Err(twice("module")))?;
            } else {
                match lower.as_str() {
                    "any" => module.replace(None).map_or(Ok(()), |_| Err(twice("module")))?,
                    "console" => {
                        destination.replace(Destination::Console).map_or(Ok(()), |_| Err(twice("destination")))?
                    }
                    "file" => destination.replace(Destination::File).map_or(Ok(()), |_| Err(twice("destination")))?,
                    "syslog" | "facility" | "pattern" => return Err(SpecError::Unsupported(word.to_owned())),
                    _ => return Err(SpecError::Unknown(word.to_owned())),
                }
            }
        }
        let level = level.unwrap_or(Level::Dbg);
        let modules = match module.flatten() {
            Some(one) => one..one + 1,
            None => 0..MODULES.len(),
        };
        if destination != Some(Destination::File) {
            self.console[modules.clone()].fill(level);
        }
        if destination != Some(Destination::Console) {
            self.file[modules].fill(level);
        }
        Ok(self)
    }

    /// These levels, with the console's as a filter in `env_logger`'s syntax says, like `info,poller=debug`.
    fn filtered(mut self, filter: &str) -> Result<Levels, SpecError> {
        let mut builder = env_filter::Builder::new();
        if let Err(error) = builder.try_parse(filter) {
            return Err(SpecError::Filter { spec: filter.to_owned(), reason: error.to_string() });
        }
        let filter = builder.build();
        for (module, level) in MODULES.iter().zip(&mut self.console) {
            let enabled =
                |level: &log::Level| filter.enabled(&Metadata::builder().target(module).level(*level).build());
            let most = log::Level::iter().filter(enabled).max();
            *level = Level::of(most.map_or(LevelFilter::Off, |level| level.to_level_filter()));
        }
        Ok(self)
    }

    fn rows(&self) -> impl Iterator<Item = (&'static str, Level, Level)> {
        MODULES
            .iter()
            .zip(self.console.iter().zip(&self.file))
            .map(|(module, (console, file))| (*module, *console, *file))
    }
}

impl fmt::Display for Levels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "                 console    syslog    file")?;
        writeln!(f, "                 -------    ------    ------")?;
        self.rows().try_for_each(|(module, console, file)| {
            writeln!(f, "{module:<16}  {:>4}       {:>4}       {:>4}", console.name(), Level::Off.name(), file.name())
        })
    }
}

impl Serialize for Levels {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Row {
            console: Level,
            syslog: Level,
            file: Level,
        }
        let mut map = serializer.serialize_map(Some(MODULES.len()))?;
        for (module, console, file) in self.rows() {
            map.serialize_entry(module, &Row { console, syslog: Level::Off, file })?;
        }
        map.end()
    }
}

/// The daemon's logger.
struct Logger {
    /// Where the file is to be found, and the open file, which [`reopen`] replaces and [`close`] closes.
    file: Option<(PathBuf, ArcSwapOption<File>)>,
    /// How many lines each destination has seen.
    console_lines: Arc<AtomicU64>,
    file_lines: Arc<AtomicU64>,
    limiters: [Limiter; MODULES.len()],
    now: ArcSwap<Loggers>,
}

/// What is in force until the next change.
struct Loggers {
    levels: Levels,
    console: env_logger::Logger,
    file: Option<env_logger::Logger>,
}

static LOGGER: OnceLock<Logger> = OnceLock::new();

/// Why logging cannot start.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("cannot open log file {path:?}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Filter(#[from] SpecError),
    #[error("logging has started already")]
    Started,
}

/// Starts logging: to standard error as `filter` says (in `RUST_LOG`'s syntax; `None`: info and above), and to `file` if given.
pub fn init(filter: Option<&str>, file: Option<&Path>) -> Result<(), LogError> {
    let levels = filter.map_or(Ok(Levels::default()), |filter| Levels::default().filtered(filter))?;
    let file =
        file.map(|path| Ok::<_, LogError>((path.to_owned(), ArcSwapOption::new(Some(open(path)?))))).transpose()?;
    let (console_lines, file_lines) = (Arc::default(), Arc::default());
    let opened = file.as_ref().and_then(|(_, file)| file.load_full());
    let now = Loggers::new(levels, &console_lines, opened.as_ref(), &file_lines);
    log::set_max_level(now.max());
    let limiters = [const { Limiter::new() }; MODULES.len()];
    let logger = Logger { file, console_lines, file_lines, limiters, now: ArcSwap::from_pointee(now) };
    LOGGER.set(logger).map_err(|_| LogError::Started)?;
    LOGGER.get().map_or(Ok(()), |logger| log::set_logger(logger)).map_err(|_| LogError::Started)
}

/// The levels in force.
pub fn levels() -> Levels {
    LOGGER.get().map(|logger| logger.now.load().levels.clone()).unwrap_or_default()
}

/// Changes the levels: all of `specs` one after the other, or none if one of them is wrong.
///
/// A spec holds a module, a destination and a level in any order, apart by colons, commas or spaces: `poller:file:dbg`. What is
/// left out means every module, every destination, and `dbg`.
pub fn set(specs: &[String]) -> Result<(), SpecError> {
    let levels = specs.iter().try_fold(levels(), |levels, spec| levels.changed(spec))?;
    if let Some(logger) = LOGGER.get() {
        logger.apply(levels);
    }
    Ok(())
}

/// Opens the log file by its name again, for whoever has moved the old one away.
///
/// # Errors
/// It cannot be opened; then the old one stays in use.
pub fn reopen() -> Result<(), LogError> {
    if let Some(logger) = LOGGER.get()
        && let Some((path, file)) = &logger.file
    {
        file.store(Some(open(path)?));
        logger.apply(levels());
    }
    Ok(())
}

/// Closes the log file until it is reopened; lines for it are lost meanwhile.
pub fn close() {
    if let Some(logger) = LOGGER.get()
        && let Some((_, file)) = &logger.file
    {
        file.store(None);
        logger.apply(levels());
    }
}

/// Switches the limit of lines a second on or off, for the modules named, or for all if none is. Answers with what holds then.
///
/// # Errors
/// A name is no module's; then nothing has changed.
pub fn limit_rate(enabled: bool, modules: &[String]) -> Result<Vec<(&'static str, bool)>, SpecError> {
    let find = |name: &String| MODULES.iter().position(|module| module.eq_ignore_ascii_case(name));
    let known = |name: &String| find(name).ok_or_else(|| SpecError::Module(name.clone()));
    let chosen: Vec<usize> = match modules {
        [] => (0..MODULES.len()).collect(),
        [any] if any.eq_ignore_ascii_case("any") => (0..MODULES.len()).collect(),
        named => named.iter().map(known).collect::<Result<_, _>>()?,
    };
    let Some(logger) = LOGGER.get() else { return Ok(Vec::new()) };
    chosen.iter().for_each(|module| logger.limiters[*module].enable(enabled));
    Ok(MODULES.iter().copied().zip(logger.limiters.iter().map(Limiter::is_enabled)).collect())
}

/// How a line looks on standard error and in the log file, in Open vSwitch's notation.
pub fn patterns() -> [&'static str; 2] {
    const TIMED: &str = "%D{%Y-%m-%dT%H:%M:%S.###Z}|%05N|%c(%t)|%p|%m";
    const RANKED: &str = "<%B>%05N|%c(%t)|%p|%m";
    [if stderr_is_journal() { RANKED } else { TIMED }, TIMED]
}

/// Whether standard error leads to systemd's journal: `JOURNAL_STREAM` says so, see systemd.exec(5).
pub fn stderr_is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    fstat(io::stderr()).is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// A level as syslog(3) numbers it.
fn priority(level: log::Level) -> u8 {
    match level {
        log::Level::Error => 3,
        log::Level::Warn => 4,
        log::Level::Info => 6,
        log::Level::Debug | log::Level::Trace => 7,
    }
}

fn open(path: &Path) -> Result<Arc<File>, LogError> {
    let opened = OpenOptions::new().append(true).create(true).open(path);
    opened.map(Arc::new).map_err(|source| LogError::File { path: path.to_owned(), source })
}

impl Logger {
    fn apply(&self, levels: Levels) {
        let file = self.file.as_ref().and_then(|(_, file)| file.load_full());
        let next = Loggers::new(levels, &self.console_lines, file.as_ref(), &self.file_lines);
        log::set_max_level(next.max());
        self.now.store(Arc::new(next));
    }
}

impl Loggers {
    fn new(
        levels: Levels,
        console_lines: &Arc<AtomicU64>,
        file: Option<&Arc<File>>,
        file_lines: &Arc<AtomicU64>,
    ) -> Loggers {
        let console = logger(&levels.console, Target::Stderr, stderr_is_journal(), console_lines.clone());
        let pipe = |file: &Arc<File>| Target::Pipe(Box::new(file.clone()));
        let file = file.map(|file| logger(&levels.file, pipe(file), false, file_lines.clone()));
        Loggers { levels, console, file }
    }

    fn max(&self) -> LevelFilter {
        self.console.filter().max(self.file.as_ref().map_or(LevelFilter::Off, env_logger::Logger::filter))
    }

    fn all(&self) -> impl Iterator<Item = &env_logger::Logger> {
        [&self.console].into_iter().chain(&self.file)
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let metadata = Metadata::builder().level(metadata.level()).target(module(metadata.target())).build();
        self.now.load().all().any(|logger| logger.enabled(&metadata))
    }

    fn log(&self, record: &Record<'_>) {
        let now = self.now.load();
        let module = module(record.target());
        let metadata = Metadata::builder().level(record.level()).target(module).build();
        if !now.all().any(|logger| logger.enabled(&metadata)) {
            return;
        }
        let limiter = MODULES.iter().position(|name| *name == module).map(|index| &self.limiters[index]);
        let Some(kept_back) = limiter.map_or(Some(0), |limiter| limiter.pass(Instant::now())) else { return };
        let say = |args: fmt::Arguments| {
            now.all().for_each(|logger| logger.log(&Record::builder().metadata(metadata.clone()).args(args).build()));
        };
        if kept_back > 0 {
            say(format_args!("{kept_back} lines before this one were kept back: there were too many"));
        }
        say(*record.args());
    }

    fn flush(&self) {
        self.now.load().all().for_each(|logger| logger.flush());
    }
}

/// One that writes each line with its priority where it goes to the `journal`, else with its time.
fn logger(levels: &[Level; MODULES.len()], target: Target, journal: bool, lines: Arc<AtomicU64>) -> env_logger::Logger {
    let mut builder = env_logger::Builder::new();
    for (module, level) in MODULES.iter().zip(levels) {
        builder.filter_module(module, level.filter());
    }
    builder.target(target).write_style(env_logger::WriteStyle::Never);
    builder.format(move |f, record| {
        let number = lines.fetch_add(1, Ordering::Relaxed) + 1;
        if journal {
            write!(f, "<{}>", priority(record.level()))?;
        } else {
            let time = f.timestamp_millis();
            write!(f, "{time}|")?;
        }
        let thread = thread::current();
        let level = Level::of(record.level().to_level_filter()).name();
        writeln!(f, "{number:05}|{}({})|{level}|{}", record.target(), thread.name().unwrap_or("?"), record.args())
    });
    builder.build()
}

/// The module that a record's target stands for.
fn module(target: &str) -> &'static str {
    let named = |word: &str| MODULES.iter().copied().find(|module| *module == word);
    match target.strip_prefix(concat!(env!("CARGO_PKG_NAME"), "::")) {
        Some(path) => path.rsplit("::").find_map(named).unwrap_or("daemon"),
        None => named(target).unwrap_or(if target == env!("CARGO_PKG_NAME") { "daemon" } else { "library" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(levels: &Levels, module: &str) -> (Level, Level) {
        let (_, console, file) = levels.rows().find(|row| row.0 == module).unwrap();
        (console, file)
    }

    #[test]
    fn a_spec_changes_what_it_names_and_nothing_else() {
        let changed = |spec: &str| Levels::default().changed(spec).unwrap();
        let info = (Level::Info, Level::Info);
        assert_eq!(of(&changed("poller:file:dbg"), "poller"), (Level::Info, Level::Dbg));
        assert_eq!(of(&changed("poller:file:dbg"), "port"), info);
        assert_eq!(of(&changed("POLLER console WARN"), "poller"), (Level::Warn, Level::Info));
        assert_eq!(of(&changed("err"), "worker"), (Level::Err, Level::Err));
        assert_eq!(of(&changed("ANY:file:off"), "worker"), (Level::Info, Level::Off));
        assert_eq!(of(&changed("worker"), "worker"), (Level::Dbg, Level::Dbg), "a module alone means dbg");
        assert_eq!(of(&changed("worker"), "port"), info);
    }

    #[test]
    fn a_wrong_spec_says_what_is_wrong_with_it() {
        let refused = |spec: &str| Levels::default().changed(spec).unwrap_err().to_string();
        assert_eq!(refused("bogus"), "no destination, level, or module \"bogus\"");
        assert_eq!(refused("port:syslog:dbg"), "\"syslog\" is not supported: destinations are console and file");
        assert_eq!(refused("port:dbg:err"), "\"port:dbg:err\" has more than one level");
        assert_eq!(refused("port:worker"), "\"port:worker\" has more than one module");
    }

    #[test]
    fn the_table_has_the_shape_that_scripts_know() {
        let levels = Levels::default().changed("port:console:off").unwrap();
        let table = levels.to_string();
        let mut lines = table.lines();
        assert_eq!(lines.next(), Some("                 console    syslog    file"));
        assert_eq!(lines.next(), Some("                 -------    ------    ------"));
        assert!(table.contains("\nport               OFF        OFF       INFO\n"), "{table}");
        let json = serde_json::to_value(&levels).unwrap();
        assert_eq!(json["port"], serde_json::json!({"console": "off", "syslog": "off", "file": "info"}));
    }

    #[test]
    fn a_filter_from_the_environment_sets_the_consoles_levels() {
        let levels = Levels::default().filtered("warn,poller=debug,port=off").unwrap();
        assert_eq!(of(&levels, "poller"), (Level::Dbg, Level::Info));
        assert_eq!(of(&levels, "port"), (Level::Off, Level::Info));
        assert_eq!(of(&levels, "worker"), (Level::Warn, Level::Info));
        assert!(Levels::default().filtered("poller=loud").is_err());
    }

    #[test]
    fn every_record_belongs_to_a_module() {
        for (target, wanted) in [
            ("poller", "poller"),
            ("offloadd::datapath::poller", "poller"),
            ("offloadd::offload::worker", "worker"),
            ("offloadd::offload::backend::sim", "offload"),
            ("offloadd::config", "daemon"),
            ("offloadd", "daemon"),
            ("mio::poll", "library"),
            ("", "library"),
        ] {
            assert_eq!(module(target), wanted, "{target}");
        }
        for (i, a) in MODULES.iter().enumerate() {
            assert!(
                !MODULES.iter().enumerate().any(|(j, b)| i != j && b.starts_with(a)),
                "env_logger matches prefixes"
            );
        }
    }

    #[test]
    fn lines_go_to_the_file_at_the_files_level_and_changes_hold_at_once() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("log");
        let file = Some(open(&path).unwrap());
        let (console_lines, file_lines) = (Arc::default(), Arc::default());
        let levels = Levels::default().changed("console:off").unwrap();
        let loggers = |levels| Loggers::new(levels, &console_lines, file.as_ref(), &file_lines);
        let logger = Logger {
            file: file.clone().map(|file| (path.clone(), ArcSwapOption::new(Some(file)))),
            limiters: [const { Limiter::new() }; MODULES.len()],
            console_lines: Arc::clone(&console_lines),
            file_lines: Arc::clone(&file_lines),
            now: ArcSwap::from_pointee(loggers(levels.clone())),
        };
        let log = |target: &str, level| {
            logger.log(&Record::builder().target(target).level(level).args(format_args!("said by {target}")).build());
        };
        log("port", log::Level::Info);
        log("port", log::Level::Debug);
        logger.now.store(Arc::new(loggers(levels.changed("port:file:dbg").unwrap())));
        log("offloadd::port::tap", log::Level::Debug);
        log("worker", log::Level::Debug);

        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines[0].contains("Z|00001|port(") && lines[0].ends_with("|INFO|said by port"), "{text}");
        assert!(lines[1].contains("Z|00002|port(") && lines[1].ends_with("|DBG|said by offloadd::port::tap"), "{text}");
        assert_eq!(console_lines.load(Ordering::Relaxed), 0);
    }
}
