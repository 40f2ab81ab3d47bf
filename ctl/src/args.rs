//! [`Args`]: the command line of `offloadctl`.

use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};

/// See and steer offloadd, or any daemon that speaks Open vSwitch's unixctl protocol.
#[derive(Debug, Parser)]
#[command(
    name = "offloadctl",
    version,
    override_usage = "offloadctl [OPTIONS] COMMAND [ARG]...",
    disable_help_subcommand = true,
    subcommand_required = true,
    after_help = "\
Options come before COMMAND; what follows it goes to the server as it is.

Commands of offloadctl itself:
  help [COMMAND]                        what the server's commands do; also COMMAND --help
  top [--interval SECS] [--once]        a live screen of what the switch does
  events [--json] [--backlog]           what happens to flows in the device, as it happens
  completions bash|zsh|fish             a script that completes commands in that shell

Examples:
  offloadctl list-commands              what the daemon can do
  offloadctl dpif/offload-show          the offload queue, marks in use, latency
  offloadctl dpctl/dump-flows -m        the datapath's flows, with all fields
  offloadctl flow-flush                 remove all flows, wait until the device forgot them
  offloadctl vlog/set offload:file:dbg  more about offloading in the log file
  offloadctl -t ovs-vswitchd version    ask an Open vSwitch daemon

Exit status: 0 all went well; 1 wrong usage, no connection, no answer in time, or not understood; 2 the server says an error."
)]
pub struct Args {
    /// Whom to ask: the path of a socket (with a slash in it), or the name of a daemon whose pidfile is in offloadd's run
    /// directory, $OVS_RUNDIR or /run/openvswitch [default: the user's own offloadd]
    #[arg(short, long, value_name = "SOCKET|NAME")]
    pub target: Option<String>,

    /// Give up after this many seconds; 0 waits for ever
    #[arg(
        short = 'T',
        long,
        value_name = "SECS",
        env = "OVS_CTL_TIMEOUT",
        default_value_t = 0,
        hide_default_value = true
    )]
    pub timeout: u32,

    /// How the answer is to look [default: text; on a terminal, a table where the answer is rows]
    #[arg(short, long, value_enum)]
    pub format: Option<Format>,

    /// Indent JSON for people to read; only with --format json
    #[arg(long)]
    pub pretty: bool,

    /// Colours: when it is a terminal, always, or never
    #[arg(long, value_enum, default_value_t = Colour::Auto)]
    pub color: Colour,

    /// Ask again every SECS seconds, and show what changed
    #[arg(
        long,
        value_name = "SECS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "2",
        value_parser = interval
    )]
    pub watch: Option<Duration>,

    #[command(subcommand)]
    pub call: Call,
}

/// What the server is asked to do: whatever the server knows, so nothing is checked here.
#[derive(Debug, Subcommand)]
pub enum Call {
    /// The command's name, then its arguments.
    #[command(external_subcommand)]
    Verbatim(Vec<String>),
}

/// The form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Text,
    Json,
    Table,
}

/// When output is coloured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Colour {
    Auto,
    Always,
    Never,
}

/// Seconds between two looks, a tenth to a day.
pub(crate) fn interval(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected a number of seconds".to_owned())?;
    match (0.1..=86_400.0).contains(&seconds) {
        true => Ok(Duration::from_secs_f64(seconds)),
        false => Err("expected 0.1 to 86400 seconds".to_owned()),
    }
}

impl Args {
    /// The time that may pass until the answer; `None` for any.
    pub fn patience(&self) -> Option<Duration> {
        (self.timeout > 0).then(|| Duration::from_secs(self.timeout.into()))
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(std::iter::once("offloadctl").chain(line.split_whitespace()))
    }

    #[test]
    fn what_follows_the_command_is_the_servers() {
        let args = parse("-t x -f json --pretty netdev-dummy/receive p1 00ff --len 64 -t y --help -- -T").unwrap();
        let Call::Verbatim(words) = &args.call;
        assert_eq!(words.join(" "), "netdev-dummy/receive p1 00ff --len 64 -t y --help -- -T");
        assert_eq!((args.target.as_deref(), args.format, args.pretty), (Some("x"), Some(Format::Json), true));
        let Call::Verbatim(words) = parse("help me").unwrap().call;
        assert_eq!(words, ["help", "me"]);
    }

    #[test]
    fn what_comes_before_the_command_must_be_ours() {
        for line in [
            "",
            "-t x",
            "--bogus version",
            "-f xml version",
            "-T soon version",
            "-T -1 version",
            "--watch=0 version",
            "--color red version",
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.use_stderr(), "{line}: {error}");
        }
    }

    #[test]
    fn the_manual_page_describes_every_option() {
        let page = include_str!("../../man/offloadctl.8");
        let mut command = Args::command();
        command.build();
        for option in command.get_arguments() {
            for flag in
                option.get_short().map(String::from).into_iter().chain(option.get_long().map(|long| format!("-{long}")))
            {
                let item = format!("Fl {flag}");
                let found = page
                    .lines()
                    .any(|line| line.starts_with(".It ") && line.split(" , ").any(|part| part.contains(&item)));
                assert!(found, "man/offloadctl.8 has no item for -{flag}");
            }
        }
    }
}
