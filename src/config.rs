//! Configuration: what was written, and what is true.
//!
//! [`RawConfig`] is a file as it stands, every key optional; [`Args`] is the command line, which wins over it; [`Config`] is
//! the two put together, checked, with every default filled in. The rest of the daemon sees only a [`Config`].

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::control::access::{Access, Holders, NobodyError};
use crate::control::scrape::{Address, AddressError};
use crate::control::server::Limits;
use crate::offload::Wanted;
use crate::offload::crew::WORKERS;
use crate::port::PortSpec;

/// The most flows that may be configured: 10 million need about 5 GB.
pub const MAX_FLOW_LIMIT: usize = 10_000_000;

/// What `--version` prints behind the name: the version, and what is built in.
#[cfg(xdp)]
const LONG_VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\nwith XDP: ports type=xsk, device xdp");
#[cfg(not(xdp))]
const LONG_VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    "\nwithout XDP (ports type=xsk, device xdp): clang was not there when it was built"
);

/// The command line.
#[derive(clap::Parser, Clone, Debug, Default)]
#[command(
    name = "offloadd",
    version,
    long_version = LONG_VERSION,
    about = "A userspace switch that hands its flows to hardware without making a packet wait"
)]
pub struct Args {
    /// Configuration file (TOML); without it, only what the command line says
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Control socket; else offloadd.PID.ctl in the run directory
    #[arg(long, value_name = "PATH")]
    pub unixctl: Option<PathBuf>,
    /// Pidfile; else offloadd.pid in the run directory, or none when --unixctl is given
    #[arg(long, value_name = "PATH")]
    pub pidfile: Option<PathBuf>,
    /// Ports to add, as [`PortSpec`] reads them
    #[arg(
        long = "port",
        value_name = "SPEC",
        help = "Add a port: NAME[,type=packet|xsk|tap|pcap|sim][,port_no=N][,option=value…]; may be repeated"
    )]
    pub ports: Vec<String>,
    /// Rules to start with, one a line in the syntax of ovs-ofctl add-flow; without them, actions=normal for every packet
    #[arg(long, value_name = "FILE")]
    pub rules: Option<PathBuf>,
    /// Offload device: none, or KIND[,option=value…] such as sim,preset=fw,capacity=10000,mark-bits=24
    #[arg(long, value_name = "DEVICE")]
    pub offload: Option<String>,
    /// Stop after this time, such as 10s or 5m
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub duration: Option<Duration>,
    /// Log to this file too
    #[arg(long, value_name = "PATH")]
    pub log_file: Option<PathBuf>,
    /// Let time/stop and time/warp turn the switch's clock; for tests
    #[arg(long)]
    pub time_control: bool,
    /// Show the switch at work without root or hardware: simulated ports, traffic of 1,000 flows and a line a second
    #[arg(long)]
    pub demo: bool,
}

/// A configuration file as it stands. `packaging/offloadd.toml` documents each key.
#[derive(serde::Deserialize, Clone, Debug, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RawConfig {
    unixctl: Option<PathBuf>,
    pidfile: Option<PathBuf>,
    log: Option<Vec<String>>,
    log_file: Option<PathBuf>,
    #[serde(default)]
    control: RawControl,
    #[serde(default)]
    metrics: RawMetrics,
    #[serde(default)]
    datapath: RawDatapath,
    #[serde(default)]
    slowpath: RawSlowpath,
    #[serde(default)]
    offload: RawOffload,
}

#[derive(serde::Deserialize, Clone, Debug, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawControl {
    group: Option<String>,
    read: Option<Vec<String>>,
    write: Option<Vec<String>>,
    admin: Option<Vec<String>>,
    connections: Option<usize>,
    request_bytes: Option<usize>,
    output_bytes: Option<usize>,
    batch: Option<usize>,
    idle: Option<String>,
}

#[derive(serde::Deserialize, Clone, Debug, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawMetrics {
    listen: Option<String>,
}

#[derive(serde::Deserialize, Clone, Debug, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawDatapath {
    ports: Option<Vec<String>>,
    pollers: Option<usize>,
    cpus: Option<Vec<usize>>,
    busy_poll: Option<bool>,
    flow_limit: Option<usize>,
    max_idle: Option<String>,
}

#[derive(serde::Deserialize, Clone, Debug, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawSlowpath {
    rules: Option<PathBuf>,
    mac_ageing: Option<String>,
    mac_limit: Option<usize>,
}

#[derive(serde::Deserialize, Clone, Debug, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawOffload {
    device: Option<String>,
    enabled: Option<bool>,
    threads: Option<usize>,
    queue_limit: Option<usize>,
    queue_bytes: Option<usize>,
    min_packets: Option<usize>,
    min_age: Option<String>,
    min_rate: Option<usize>,
    operation_rate: Option<usize>,
    patience: Option<String>,
}

/// What is true: everything checked, everything filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where this came from, to be read again; `None` when there is no file.
    pub file: Option<PathBuf>,
    /// The keys that the file gives, like `offload.device`.
    pub written: BTreeSet<String>,
    pub unixctl: Option<PathBuf>,
    pub pidfile: Option<PathBuf>,
    /// The group whose members may connect to the control socket, if there is one of that name; empty: nobody's.
    pub control_group: String,
    pub access: Access,
    pub control_limits: Limits,
    /// Where metrics are to be had over HTTP; `None`: nowhere.
    pub metrics: Option<Address>,
    /// Log levels as `vlog/set` takes them, in order.
    pub log: Vec<String>,
    pub log_file: Option<PathBuf>,
    pub duration: Option<Duration>,
    pub demo: bool,
    pub ports: Vec<PortSpec>,
    pub pollers: Option<NonZeroUsize>,
    pub cpus: Vec<usize>,
    pub busy_poll: bool,
    pub flow_limit: usize,
    pub max_idle: Duration,
    pub rules: Rules,
    pub mac_ageing: Duration,
    pub mac_limit: usize,
    /// `None`: no device.
    pub device: Option<String>,
    /// Workers that talk to the device.
    pub offload_threads: usize,
    pub queue_limit: usize,
    pub queue_bytes: usize,
    /// How long an operation may take before the device is held to hang.
    pub offload_patience: Duration,
    pub offload: Wanted,
}

/// The rules to start with.
#[derive(Clone, Debug, PartialEq)]
pub enum Rules {
    /// One rule: `actions=normal`.
    Normal,
    File(PathBuf),
    /// Rules of our own, for the demo.
    Text(String),
}

/// Why a configuration is none.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: {what}", path.display())]
    Syntax { path: PathBuf, what: String },
    #[error("{key}: {what}")]
    Value { key: &'static str, what: String },
    #[error("metrics.listen: {0}")]
    Listen(#[from] AddressError),
    #[error("{key}: {source}")]
    Nobody { key: &'static str, source: NobodyError },
    #[error(transparent)]
    Port(#[from] crate::port::spec::SpecError),
    #[error("{}: {error}", path.display())]
    In { path: PathBuf, error: Box<ConfigError> },
}

impl ConfigError {
    /// The same error, said of the file that it was found in.
    fn of(self, file: Option<&PathBuf>) -> ConfigError {
        match file {
            Some(path) => ConfigError::In { path: path.clone(), error: Box::new(self) },
            None => self,
        }
    }
}

impl RawConfig {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, is no TOML, or holds a key or type that is not known; says where.
    pub fn read(path: &Path) -> Result<(RawConfig, BTreeSet<String>), ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.into(), source })?;
        let wrong = |error: toml::de::Error| {
            let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
            ConfigError::Syntax { path: path.into(), what: format!("line {line}: {}", error.message()) }
        };
        let raw = toml::from_str(&text).map_err(wrong)?;
        let mut written = BTreeSet::new();
        for (name, value) in toml::from_str::<toml::Table>(&text).map_err(wrong)? {
            match value {
                toml::Value::Table(table) => written.extend(table.keys().map(|key| format!("{name}.{key}"))),
                _ => drop(written.insert(name)),
            }
        }
        Ok((raw, written))
    }
}

impl Config {
    /// Puts file and command line together.
    ///
    /// # Errors
    /// As [`RawConfig::read`], or a value is out of its range; says which and what would be accepted.
    pub fn load(args: &Args) -> Result<Config, ConfigError> {
        let (raw, written) = match &args.config {
            Some(path) => RawConfig::read(path)?,
            None => Default::default(),
        };
        let given = parse_ports(&args.ports)?;
        let config = Config::resolve(raw, args, given).map_err(|error| error.of(args.config.as_ref()))?;
        Ok(Config { written, ..config })
    }

    /// `given`: the ports of the command line.
    fn resolve(raw: RawConfig, args: &Args, given: Vec<PortSpec>) -> Result<Config, ConfigError> {
        let RawConfig { control, metrics, datapath, slowpath, offload, .. } = raw;
        let mut ports = parse_ports(&datapath.ports.unwrap_or_default())?;
        ports.extend(given);
        if args.demo && ports.is_empty() {
            ports = demo_ports()?;
        }
        let rules = match args.rules.clone().or(slowpath.rules) {
            Some(file) => Rules::File(file),
            None if args.demo => Rules::Text(demo_rules()),
            None => Rules::Normal,
        };
        let default_device = if args.demo { DEMO_DEVICE } else { DEFAULT_DEVICE };
        let device = args.offload.clone().or(offload.device).unwrap_or_else(|| default_device.into());
        Ok(Config {
            file: args.config.clone(),
            written: BTreeSet::new(),
            unixctl: args.unixctl.clone().or(raw.unixctl),
            pidfile: args.pidfile.clone().or(raw.pidfile),
            access: access(&control)?,
            control_group: control.group.unwrap_or_else(|| DEFAULT_GROUP.into()),
            control_limits: {
                let default = Limits::default();
                let Limits { connections, request, output, batch, idle } = default;
                Limits {
                    connections: in_range("control.connections", control.connections, connections, 1, 10_000)?,
                    request: in_range("control.request-bytes", control.request_bytes, request, 1_024, 1 << 30)?,
                    output: in_range("control.output-bytes", control.output_bytes, output, 65_536, 32 << 30)?,
                    batch: in_range("control.batch", control.batch, batch, 1, 10_000)?,
                    idle: duration("control.idle", control.idle, idle)?,
                }
            },
            metrics: metrics.listen.map(|text| text.parse()).transpose()?,
            log: raw.log.unwrap_or_default(),
            log_file: args.log_file.clone().or(raw.log_file),
            duration: args.duration,
            demo: args.demo,
            ports,
            // 0 says "choose", which is also the default.
            pollers: NonZeroUsize::new(in_range("datapath.pollers", datapath.pollers, 0, 0, 256)?),
            cpus: datapath.cpus.unwrap_or_default(),
            // Sleeping costs the first packet after a pause some tens of microseconds and saves a core.
            busy_poll: datapath.busy_poll.unwrap_or(false),
            // Open vSwitch's default, too.
            flow_limit: in_range("datapath.flow-limit", datapath.flow_limit, 200_000, 1, MAX_FLOW_LIMIT)?,
            // Long enough to outlive a pause between requests, short enough to forget scans.
            max_idle: duration("datapath.max-idle", datapath.max_idle, Duration::from_secs(10))?,
            rules,
            // IEEE 802.1D-2004, table 7-5.
            mac_ageing: duration("slowpath.mac-ageing", slowpath.mac_ageing, Duration::from_secs(300))?,
            mac_limit: in_range("slowpath.mac-limit", slowpath.mac_limit, 8_192, 1, 1_000_000)?,
            device: (device != "none").then_some(device),
            // Some tens of milliseconds of a fast device's work.
            queue_limit: in_range("offload.queue-limit", offload.queue_limit, 65_536, 1, MAX_FLOW_LIMIT)?,
            // Four times what so many flows take, so that the number is the bound unless somebody wants another.
            queue_bytes: in_range("offload.queue-bytes", offload.queue_bytes, 256 << 20, 65_536, 32 << 30)?,
            // One keeps up with all but the fastest devices.
            offload_threads: in_range("offload.threads", offload.threads, 1, 1, WORKERS)?,
            // A thousand times what the slowest of healthy devices take.
            offload_patience: duration("offload.patience", offload.patience, Duration::from_secs(5))?,
            // Everything at once: whoever has a small device lets the policy choose.
            offload: Wanted {
                enabled: offload.enabled.unwrap_or(true),
                min_packets: in_range("offload.min-packets", offload.min_packets, 0, 0, usize::MAX)? as u64,
                min_age: match offload.min_age.as_deref() {
                    None | Some("0" | "0s") => Duration::ZERO,
                    Some(_) => duration("offload.min-age", offload.min_age, Duration::ZERO)?,
                },
                min_rate: in_range("offload.min-rate", offload.min_rate, 0, 0, usize::MAX)? as u64,
                operation_rate: in_range("offload.operation-rate", offload.operation_rate, 0, 0, usize::MAX)? as u64,
            },
        })
    }
}

/// Whose members may connect, look and change, unless the file says otherwise.
const DEFAULT_GROUP: &str = "offloadd";

/// Who may do what. Those that the file names must be there; the default group need not.
fn access(control: &RawControl) -> Result<Access, ConfigError> {
    let holders = |key: &'static str, written: &Option<Vec<String>>, default: &[&str]| {
        let mut holders = Holders::default();
        match written {
            Some(names) => {
                for name in names {
                    holders.add(name).map_err(|source| ConfigError::Nobody { key, source })?;
                }
            }
            None => default.iter().for_each(|name| drop(holders.add(name))),
        }
        Ok::<_, ConfigError>(holders)
    };
    let members = format!("@{DEFAULT_GROUP}");
    Ok(Access {
        read: holders("control.read", &control.read, &[&members])?,
        write: holders("control.write", &control.write, &[&members])?,
        admin: holders("control.admin", &control.admin, &[])?,
    })
}

/// A key as it is in force.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Shown {
    pub key: &'static str,
    /// `None`: unset, and there is no default.
    pub value: Option<Value>,
    pub source: Source,
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    Default,
    File,
    CommandLine,
    /// Somebody changed it since.
    Command,
}

impl Config {
    /// Every key with its value, as far as the configuration knows.
    pub fn shown(&self, args: &Args) -> Vec<Shown> {
        let time = |time: Duration| json!(humantime::format_duration(time).to_string());
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| json!(path));
        let limits = &self.control_limits;
        let rules = match &self.rules {
            Rules::File(path) => Some(json!(path)),
            Rules::Normal | Rules::Text(_) => None,
        };
        let ports: Vec<String> = self.ports.iter().map(PortSpec::to_string).collect();
        let offload = &self.offload;
        let values = [
            ("unixctl", path(&self.unixctl), args.unixctl.is_some()),
            ("pidfile", path(&self.pidfile), args.pidfile.is_some()),
            ("log", Some(json!(self.log)), false),
            ("log-file", path(&self.log_file), args.log_file.is_some()),
            ("control.group", Some(json!(self.control_group)), false),
            ("control.read", Some(json!(self.access.read.texts())), false),
            ("control.write", Some(json!(self.access.write.texts())), false),
            ("control.admin", Some(json!(self.access.admin.texts())), false),
            ("control.connections", Some(json!(limits.connections)), false),
            ("control.request-bytes", Some(json!(limits.request)), false),
            ("control.output-bytes", Some(json!(limits.output)), false),
            ("control.batch", Some(json!(limits.batch)), false),
            ("control.idle", Some(time(limits.idle)), false),
            ("metrics.listen", self.metrics.as_ref().map(|address| json!(address.to_string())), false),
            ("datapath.ports", Some(json!(ports)), !args.ports.is_empty()),
            ("datapath.pollers", Some(json!(self.pollers.map_or(0, NonZeroUsize::get))), false),
            ("datapath.cpus", Some(json!(self.cpus)), false),
            ("datapath.busy-poll", Some(json!(self.busy_poll)), false),
            ("datapath.flow-limit", Some(json!(self.flow_limit)), false),
            ("datapath.max-idle", Some(time(self.max_idle)), false),
            ("slowpath.rules", rules, args.rules.is_some()),
            ("slowpath.mac-ageing", Some(time(self.mac_ageing)), false),
            ("slowpath.mac-limit", Some(json!(self.mac_limit)), false),
            ("offload.device", Some(json!(self.device.as_deref().unwrap_or("none"))), args.offload.is_some()),
            ("offload.enabled", Some(json!(offload.enabled)), false),
            ("offload.threads", Some(json!(self.offload_threads)), false),
            ("offload.queue-limit", Some(json!(self.queue_limit)), false),
            ("offload.queue-bytes", Some(json!(self.queue_bytes)), false),
            ("offload.min-packets", Some(json!(offload.min_packets)), false),
            ("offload.min-age", Some(time(offload.min_age)), false),
            ("offload.min-rate", Some(json!(offload.min_rate)), false),
            ("offload.operation-rate", Some(json!(offload.operation_rate)), false),
            ("offload.patience", Some(time(self.offload_patience)), false),
        ];
        let shown = |(key, value, given): (&'static str, Option<Value>, bool)| {
            let source = match given {
                true => Source::CommandLine,
                false if self.written.contains(key) => Source::File,
                false => Source::Default,
            };
            Shown { key, value, source }
        };
        values.into_iter().map(shown).collect()
    }
}

/// The device when none is named.
const DEFAULT_DEVICE: &str = "sim";

/// The demo's device: a simulated NIC that takes its time to insert a rule.
const DEMO_DEVICE: &str = "sim,preset=tc";

/// What the demo forwards by: a router's thousand host routes, a dropped service, and the learning switch for the rest.
fn demo_rules() -> String {
    let host = |i: u32| {
        let [_, _, high, low] = i.to_be_bytes();
        format!(
            "table=1,priority=10,ip,nw_dst=172.16.{high}.{low},actions=mod_dl_dst:02:00:00:00:{high:02x}:{low:02x},dec_ttl,output:2\n"
        )
    };
    let first = "table=0,priority=200,udp,tp_dst=53,actions=drop\n\
                 table=0,priority=100,in_port=1,ip,nw_dst=172.16.0.0/12,actions=goto_table:1\n\
                 table=0,priority=0,actions=normal\n";
    first.to_owned() + &(0..DEMO_FLOWS).map(host).collect::<String>()
}

/// Flows of the demo's traffic, each to a host of its own.
const DEMO_FLOWS: u32 = 1_000;

fn demo_ports() -> Result<Vec<PortSpec>, ConfigError> {
    let source = format!("in,type=sim,port_no=1,flows={DEMO_FLOWS},rate=1000000,size=64");
    Ok([source.as_str(), "out,type=sim,port_no=2"].iter().map(|text| text.parse()).collect::<Result<_, _>>()?)
}

fn parse_ports(texts: &[String]) -> Result<Vec<PortSpec>, ConfigError> {
    Ok(texts.iter().map(|text| text.parse()).collect::<Result<_, _>>()?)
}

fn in_range(
    key: &'static str,
    value: Option<usize>,
    default: usize,
    min: usize,
    max: usize,
) -> Result<usize, ConfigError> {
    match value.unwrap_or(default) {
        value if (min..=max).contains(&value) => Ok(value),
        value => Err(ConfigError::Value { key, what: format!("{value} is not between {min} and {max}") }),
    }
}

fn duration(key: &'static str, value: Option<String>, default: Duration) -> Result<Duration, ConfigError> {
    let Some(text) = value else { return Ok(default) };
    match humantime::parse_duration(&text) {
        Ok(duration) if duration >= Duration::from_millis(100) => Ok(duration),
        Ok(_) => Err(ConfigError::Value { key, what: format!("{text} is shorter than 100ms") }),
        Err(error) => Err(ConfigError::Value { key, what: format!("{text:?}: {error}; expected a time such as 10s") }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(toml: &str, args: &Args) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        fs::write(&path, toml).unwrap();
        let args = Args { config: Some(path.clone()), ..args.clone() };
        Config::load(&args).map_err(|error| error.to_string().replace(path.to_str().unwrap(), "FILE"))
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let args = Args { offload: Some("none".into()), ..Args::default() };
        let config = resolve("[offload]\ndevice = \"sim\"\nqueue-limit = 9", &args).unwrap();
        assert_eq!(config.device, None);
        assert_eq!(config.queue_limit, 9);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place_and_what_would_do() {
        let none = Args::default();
        let error = |toml| resolve(toml, &none).unwrap_err();
        assert!(error("[datapath]\nflow-limit = 0").starts_with("FILE: datapath.flow-limit: 0 is not between 1 and"));
        assert!(error("[datapath]\nmax-idle = \"soon\"").contains("expected a time such as 10s"));
        assert!(error("\n[datapath]\nflowlimit = 1").starts_with("FILE: line 3: unknown field `flowlimit`"));
        assert!(error("[datapath]\nports = [\"x,type=carrier-pigeon\"]").contains("carrier-pigeon"));
    }

    #[test]
    fn the_example_file_holds_every_key_with_its_default() {
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/offloadd.toml");
        let text = fs::read_to_string(&example).unwrap();
        // The example shows each key commented out, with its default; a key without a default as an example.
        let uncommented: String = text
            .lines()
            .map(|line| line.strip_prefix("#: ").unwrap_or(line))
            .filter(|line| !line.starts_with("#"))
            .fold(String::new(), |all, line| all + line + "\n");
        let from_example = resolve(&uncommented, &Args::default()).unwrap();
        let mut defaults = resolve("", &Args::default()).unwrap();
        defaults.file = from_example.file.clone();
        defaults.written = from_example.written.clone();
        assert_eq!(from_example, defaults);
        let keys = [
            "unixctl",
            "pidfile",
            "log",
            "log-file",
            "group",
            "read",
            "write",
            "admin",
            "connections",
            "request-bytes",
            "output-bytes",
            "batch",
            "idle",
            "listen",
            "ports",
            "pollers",
            "cpus",
            "busy-poll",
            "flow-limit",
            "max-idle",
            "rules",
            "mac-ageing",
            "mac-limit",
            "device",
            "enabled",
            "threads",
            "queue-limit",
            "queue-bytes",
            "min-packets",
            "min-age",
            "min-rate",
            "operation-rate",
            "patience",
        ];
        for key in keys {
            let shown = |line: &str| {
                line.trim_start_matches("#:").trim_start_matches('#').trim().starts_with(&format!("{key} ="))
            };
            assert!(text.lines().any(shown), "{key} is not in the example");
        }
    }
}
