//! The manual pages say what is true: each table of the program is compared with the place where its page tells of it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use clap::CommandFactory as _;
use offloadctl::Client;
use offloadd::config::Args;
use offloadd::datapath::counters::{Fate, Lookup};
use offloadd::flow::text::{format_actions, format_match, parse_actions, parse_flow};
use offloadd::offload::{self, Reason, backend};
use offloadd::port::Kind;
use offloadd::slowpath::text::{format_rule, parse_rule};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tempfile::TempDir;

/// Longer than anything here takes; reaching it is a failure.
const PATIENCE: Duration = Duration::from_secs(30);

const PAGES: [&str; 4] = ["offloadd.8", "offloadctl.8", "offloadd.toml.5", "offload-flow.7"];

/// Macros of mdoc(7) that stand in the lines read here, and print nothing of their own.
const MACROS: [&str; 13] = [".It", "Ic", "Cm", "Ar", "Fl", "Ns", "No", "Oo", "Oc", "Op", "Pq", "Va", "Li"];

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn page(name: &str) -> String {
    fs::read_to_string(source().join("man").join(name)).unwrap()
}

/// What stands under the heading `macro_and_title` (`.Ss Flows`), up to the next heading of the same or a higher rank.
fn section<'t>(page: &'t str, heading: &str) -> &'t str {
    let start = page.find(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no heading {heading:?}")) + 1;
    let body = &page[start + heading.len()..];
    let ends = if heading.starts_with(".Ss") { vec!["\n.Ss ", "\n.Sh "] } else { vec!["\n.Sh "] };
    &body[..ends.iter().filter_map(|end| body.find(end)).min().unwrap_or(body.len())]
}

/// The tagged paragraphs of a text: the words of the tag, macros left out, and the whole paragraph.
fn items(text: &str) -> Vec<(Vec<&str>, &str)> {
    let starts: Vec<usize> = text.match_indices("\n.It ").map(|(at, _)| at + 1).collect();
    let ends = starts.iter().skip(1).copied().chain([text.len()]);
    let paragraph = |(start, end): (&usize, usize)| {
        let paragraph = &text[*start..end];
        (words(paragraph.lines().next().unwrap_or_default()), paragraph)
    };
    starts.iter().zip(ends).map(paragraph).collect()
}

/// The words of a line of mdoc, or of a usage line, that carry meaning: no macros, no brackets, no dashes.
fn words(line: &str) -> Vec<&str> {
    line.split([' ', '\t'])
        .filter(|token| !MACROS.contains(token))
        .flat_map(|token| token.split(|c: char| !c.is_ascii_alphanumeric() && !"-_/.".contains(c)))
        .map(|word| word.trim_matches(['-', '.']))
        .filter(|word| !word.is_empty())
        .collect()
}

/// A daemon of our own, ended when dropped.
struct Daemon {
    process: Child,
    dir: TempDir,
}

impl Daemon {
    /// With the configuration that `toml` makes of a directory for the daemon's files; the control socket is `ctl` in there.
    fn start(toml: impl Fn(&str) -> String) -> Daemon {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("offloadd.toml");
        fs::write(&file, toml(dir.path().to_str().unwrap())).unwrap();
        let process = offloadd(&["--config", file.to_str().unwrap()]).spawn().unwrap();
        Daemon { process, dir }
    }

    fn send(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }

    /// Waits until `condition` holds of the log file `log`; what it holds then.
    fn log_when(&self, condition: impl Fn(&str) -> bool) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            if condition(&log) {
                return log;
            }
            assert!(Instant::now() < end, "{log}");
            thread::yield_now();
        }
    }

    fn ask(&self, command: &str, args: &[&str]) -> serde_json::Value {
        let mut client = self.client();
        call(&mut client, "set-options", &["--format", "json"]);
        call(&mut client, command, args)
    }

    /// A command's answer for people.
    fn ask_text(&self, command: &str) -> String {
        call(&mut self.client(), command, &[]).as_str().unwrap().to_owned()
    }

    fn client(&self) -> Client {
        let end = Instant::now() + PATIENCE;
        loop {
            match Client::connect(&self.dir.path().join("ctl"), Some(end)) {
                Ok(client) => return client,
                Err(error) => assert!(Instant::now() < end, "{error}"),
            }
            thread::yield_now();
        }
    }
}

fn call(client: &mut Client, command: &str, args: &[&str]) -> serde_json::Value {
    client.call(command, &args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>()).unwrap()
}

fn offloadd(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_offloadd"));
    command.args(args).env_remove("RUST_LOG").stdout(Stdio::null()).stderr(Stdio::null());
    command
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn every_option_of_the_daemon_is_told_of_and_no_other() {
    let page = page("offloadd.8");
    let described: BTreeSet<&str> =
        items(section(&page, ".Sh DESCRIPTION")).into_iter().map(|(words, _)| words[0]).collect();
    let mut command = Args::command();
    command.build();
    let options: BTreeSet<&str> = command.get_arguments().filter_map(|arg| arg.get_long()).collect();
    assert_eq!(described, options);
    let synopsis = section(&page, ".Sh SYNOPSIS");
    for option in options {
        assert!(synopsis.contains(&format!("-{option}")), "--{option} is not in the synopsis");
    }
}

#[test]
fn every_command_of_a_running_daemon_is_told_of_with_its_arguments_and_no_other() {
    let page = page("offloadd.8");
    let described: BTreeSet<Vec<&str>> =
        items(section(&page, ".Sh COMMANDS")).into_iter().map(|(words, _)| words).collect();
    let daemon = Daemon::start(|dir| format!("unixctl = '{dir}/ctl'\noffload.device = 'none'\n"));
    let listed = daemon.ask("list-commands", &[]);
    let commands: BTreeSet<Vec<&str>> = listed
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, usage)| [vec![name.as_str()], words(usage.as_str().unwrap())].concat())
        .collect();
    assert_eq!(described, commands);
}

#[test]
fn every_kind_of_port_is_told_of_with_its_options_and_no_other() {
    let page = page("offloadd.8");
    for kind in Kind::ALL {
        let section = section(&page, &format!(".Ss type={kind}"));
        let described: BTreeSet<&str> = items(section).into_iter().map(|(words, _)| words[0]).collect();
        assert_eq!(described, kind.options().iter().copied().collect(), "type={kind}");
        for name in &kind.names()[1..] {
            assert!(section.lines().any(|line| line == format!(".Cm {name}")), "type={kind}: other name {name}");
        }
    }
}

#[test]
fn every_option_of_the_simulated_device_is_told_of_and_no_other() {
    let page = page("offloadd.8");
    let refused = |text: &str| match backend::open(&text.parse().unwrap(), std::time::Instant::now()) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("{text} is no option"),
    };
    let wrong_option = refused("sim,colour=red");
    let (_, options) = wrong_option.split_once("known: ").unwrap();
    let described = items(section(&page, ".Ss sim"));
    let is_preset = |words: &[&str]| words.get(1) == Some(&"Ta");
    let named: Vec<&str> = described.iter().filter(|(words, _)| !is_preset(words)).map(|(words, _)| words[0]).collect();
    assert_eq!(named.join(", "), options);
    let presets: Vec<&str> =
        described.iter().filter(|(words, _)| is_preset(words)).map(|(words, _)| words[0]).collect();
    assert!(presets.len() >= 5);
    let wrong_preset = refused("sim,preset=none");
    for preset in &presets {
        assert!(wrong_preset.contains(preset), "{preset}");
    }
    let (_, known) = wrong_preset.split_once("expected ").unwrap();
    assert_eq!(known.split([',', ' ']).filter(|word| !word.is_empty() && *word != "or").count(), presets.len());
}

#[test]
#[cfg(xdp)]
fn every_option_of_the_xdp_device_is_told_of_and_no_other() {
    let page = page("offloadd.8");
    let refused =
        backend::open(&"xdp,colour=red".parse().unwrap(), std::time::Instant::now()).err().unwrap().to_string();
    let (_, options) = refused.split_once("known: ").unwrap();
    let named: Vec<&str> = items(section(&page, ".Ss xdp")).iter().map(|(words, _)| words[0]).collect();
    assert_eq!(named.join(", "), options.trim_end_matches(')'));
}

#[test]
fn every_fault_of_a_device_is_told_of_and_no_other() {
    let page = page("offloadd.8");
    let described: Vec<&str> = items(section(&page, ".Ss chaos")).into_iter().map(|(words, _)| words[0]).collect();
    assert_eq!(described[0], "over");
    assert_eq!(described[1..], backend::chaos::Settings::NAMES);
}

#[test]
fn every_count_of_packets_is_told_of() {
    let page = page("offloadd.8");
    let named = |heading: &str| -> Vec<String> {
        items(section(&page, heading)).into_iter().map(|(words, _)| words[0].to_owned()).collect()
    };
    let names = |list: Vec<(&'static str, u64)>| list.into_iter().map(|(name, _)| name.to_owned()).collect::<Vec<_>>();
    assert_eq!(named(".Ss Lookups"), names(Lookup::default().list()));
    assert_eq!(named(".Ss Fate"), names(Fate::default().list()));
}

#[test]
fn every_reason_is_told_of_with_its_kind_and_with_what_to_do_about_it() {
    let (page, story) = (page("offloadd.8"), page("offload-flow.7"));
    let section = section(&page, ".Ss Megaflows that are not offloaded");
    let told = items(section);
    let titles = |items: &[(Vec<&str>, &str)]| items.iter().map(|(words, _)| words.join(" ")).collect::<Vec<_>>();
    assert_eq!(titles(&told), Reason::ALL.map(|reason| reason.to_string()));
    for ((_, paragraph), reason) in told.iter().zip(Reason::ALL) {
        let name = serde_json::to_value(reason).unwrap();
        let line = format!(".Pq Cm {} , {}", reason.kind(), name.as_str().unwrap());
        assert!(paragraph.lines().any(|told| told == line), "{reason}: {line}");
    }
    let reasonless: Vec<_> =
        offload::Kind::ALL.into_iter().filter(|kind| !section.contains(&format!(".Pq Cm {kind} ,"))).collect();
    assert!(reasonless.iter().all(|kind| section.contains(&format!(".Cm {kind} :"))), "{reasonless:?}");
    let advice = items(self::section(&story, ".Ss Why a flow is not offloaded"));
    assert_eq!(titles(&advice), titles(&told));
}

#[test]
fn every_line_of_offload_show_is_told_of() {
    let page = page("offloadd.8");
    let told: Vec<String> = items(section(&page, ".Ss The offload path"))
        .into_iter()
        .map(|(_, paragraph)| paragraph.lines().next().unwrap().trim_start_matches(".It Li ").to_owned())
        .collect();
    let daemon = Daemon::start(|dir| {
        let rule = |i| format!("udp,nw_dst=172.16.0.{i},actions=output:2\n");
        fs::write(format!("{dir}/rules"), (0..9).map(rule).collect::<String>()).unwrap();
        format!(
            "unixctl = '{dir}/ctl'\n[datapath]\nports = ['p1,type=sim,flows=9,rate=1000', 'p2,type=sim']\n\
             [slowpath]\nrules = '{dir}/rules'\n[offload]\ndevice = 'sim,level=full,capacity=2,without=output'\n"
        )
    });
    let end = Instant::now() + PATIENCE;
    let full = |show: &serde_json::Value| !show["refused"].as_array().unwrap().is_empty() && show["rules"] == 2;
    while !full(&daemon.ask("dpif/offload-show", &[])) {
        assert!(Instant::now() < end);
        thread::yield_now();
    }
    let shown = daemon.ask_text("dpif/offload-show");
    let (_, lines) = shown.split_once("port_no: 1\n").unwrap();
    let lines = lines.lines().filter(|line| !line.contains("port_no: ") && !line.starts_with("    put"));
    let lines: Vec<&str> =
        lines.filter(|line| !line.starts_with("    modify") && !line.starts_with("    delete")).collect();
    assert!(lines.len() > 15, "{shown}");
    for line in lines {
        let label = line.split([':']).next().unwrap().trim();
        let is_told = told.iter().any(|told| label == told || label.starts_with(&format!("{told}, ")));
        assert!(is_told, "{label:?} is not told of");
    }
}

/// A key of the example configuration.
#[derive(Debug, PartialEq, Eq)]
struct Key {
    name: String,
    default: Option<String>,
    live: bool,
}

/// The keys of `packaging/offloadd.toml`: what stands behind `#: ` is a default, and a comment with `(live)` belongs to the key
/// that follows.
fn example_keys() -> Vec<Key> {
    let text = fs::read_to_string(source().join("packaging/offloadd.toml")).unwrap();
    let mut keys: Vec<Key> = Vec::new();
    // Behind the file's own introduction.
    let mut live = false;
    for line in text.lines().skip_while(|line| !line.is_empty()) {
        live = (live && !line.is_empty()) || line.contains("(live)");
        let Some((name, value)) = line.trim_start_matches(['#', ':', ' ']).split_once(" = ") else { continue };
        if name.contains(' ') || keys.iter().any(|key| key.name == name) {
            continue;
        }
        let default = line.starts_with("#: ").then(|| value.to_owned());
        keys.push(Key { name: name.to_owned(), default, live });
    }
    keys
}

#[test]
fn every_key_of_the_configuration_is_told_of_with_its_default_and_whether_it_is_live() {
    let page = page("offloadd.toml.5");
    let described: Vec<Key> = items(section(&page, ".Sh DESCRIPTION"))
        .into_iter()
        .map(|(words, paragraph)| {
            let default = paragraph.lines().find_map(|line| line.strip_prefix("Default: "));
            let value = |text: &str| text.trim_end_matches('.').trim_end_matches("; live").to_owned();
            let live = paragraph.lines().any(|line| line == "Live." || default.is_some() && line.ends_with("; live."));
            Key { name: words[0].to_owned(), default: default.map(value), live }
        })
        .collect();
    assert_eq!(described, example_keys());
    assert_eq!(described.len(), 33);
}

#[test]
fn what_sighup_says_needs_a_restart_is_what_the_page_does_not_call_live() {
    let daemon = Daemon::start(|dir| format!("unixctl = '{dir}/ctl'\nlog-file = '{dir}/log'\n"));
    daemon.log_when(|log| log.contains("is ready"));
    let dir = daemon.dir.path().to_str().unwrap();
    fs::write(format!("{dir}/rules"), "priority=7,arp,actions=flood\n").unwrap();
    let other = format!(
        "unixctl = '{dir}/ctl2'\npidfile = '{dir}/pid'\nlog = ['port:dbg']\nlog-file = '{dir}/log2'\n\
         [control]\ngroup = ''\nread = ['*']\nwrite = ['0']\nadmin = ['@0']\nconnections = 9\nrequest-bytes = 2000\n\
         output-bytes = 70000\nbatch = 7\nidle = '1m'\n\
         [metrics]\nlisten = '{dir}/metrics'\n\
         [datapath]\nports = ['p1,type=sim']\npollers = 2\ncpus = [0]\nbusy-poll = true\nflow-limit = 9\nmax-idle = '1s'\n\
         [slowpath]\nrules = '{dir}/rules'\nmac-ageing = '1s'\nmac-limit = 9\n\
         [offload]\ndevice = 'none'\nqueue-limit = 9\nqueue-bytes = 70000\nenabled = false\nthreads = 2\nmin-packets = 3\nmin-age = '4s'\n\
         min-rate = 5\noperation-rate = 6\npatience = '7s'\n"
    );
    let keys = example_keys();
    assert!(keys.iter().all(|key| other.contains(&format!("{} = ", key.name))), "each key has another value");
    fs::write(format!("{dir}/offloadd.toml"), other).unwrap();
    daemon.send(Signal::HUP);
    let log = daemon.log_when(|log| log.contains("|reloaded"));
    let said: BTreeSet<&str> = log
        .lines()
        .filter_map(|line| line.strip_suffix(" has changed; the change takes effect at the next start"))
        .map(|line| line.rsplit(['|', '.']).next().unwrap())
        .collect();
    let not_live: BTreeSet<&str> = keys.iter().filter(|key| !key.live).map(|key| key.name.as_str()).collect();
    assert_eq!(said, not_live, "{log}");
    let rules = daemon.ask("rule/dump", &[]);
    assert!(rules[0]["priority"] == 7 && rules[0]["match"] == "arp" && rules[1].is_null(), "{rules}");
    assert_eq!(daemon.ask("dpctl/show", &[])["flow_limit"], 9);
    assert_eq!(daemon.ask("dpctl/show", &[])["ports"][0]["name"], "p1");
    let settings = json!({
        "enabled": false, "threads": 2, "min_packets": 3, "min_age_ms": 4_000, "min_rate": 5, "operation_rate": 6,
    });
    assert_eq!(daemon.ask("offload/set", &[]), settings);
}

#[test]
fn exit_statuses_are_as_told() {
    let page = page("offloadd.8");
    let told: Vec<&str> = items(section(&page, ".Sh EXIT STATUS")).into_iter().map(|(words, _)| words[0]).collect();
    assert_eq!(told, ["0", "1", "2"]);
    for stop in [Signal::TERM, Signal::INT] {
        let mut daemon = Daemon::start(|dir| format!("unixctl = '{dir}/ctl'\nlog-file = '{dir}/log'\n"));
        daemon.log_when(|log| log.contains("is ready"));
        daemon.send(stop);
        assert_eq!(daemon.process.wait().unwrap().code(), Some(0), "{stop:?}");
        assert!(!daemon.dir.path().join("ctl").exists());
    }
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("ctl");
    let status = |args: &[&str]| offloadd(args).arg("--unixctl").arg(&socket).status().unwrap().code();
    assert_eq!(status(&["--duration", "0s"]), Some(0));
    assert_eq!(status(&["--offload", "asic"]), Some(1));
    assert_eq!(status(&["--port", "x,type=carrier-pigeon"]), Some(1));
    assert_eq!(status(&["--rules", "/nonexistent"]), Some(1));
    assert_eq!(status(&["--faster"]), Some(2));
}

#[test]
fn every_example_of_a_rule_or_flow_is_understood_and_means_what_it_says() {
    let page = page("offload-flow.7");
    let mut seen = [0; 3];
    for line in page.lines().map(|line| line.strip_prefix(".Dl ").unwrap_or(line)) {
        if let Some(text) = line.strip_prefix("actions: ") {
            let actions = parse_actions(text, &()).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert!(!actions.is_drop(), "{text}");
            assert_eq!(parse_actions(&format_actions(&actions, &()), &()), Ok(actions));
            seen[0] += 1;
        } else if line.starts_with("table=") {
            let rule = parse_rule(line, &()).unwrap_or_else(|error| panic!("{line}: {error}"));
            assert_eq!(parse_rule(&format_rule(&rule, &()), &()), Ok(rule));
            seen[1] += 1;
        } else if line.starts_with("in_port(") {
            let flow = parse_flow(line, &()).unwrap_or_else(|error| panic!("{line}: {error}"));
            assert_eq!(parse_flow(&format_match(&flow.matching, false, &()), &()), Ok(flow));
            seen[2] += 1;
        }
    }
    assert!(seen.iter().all(|count| *count >= 2), "examples were not found: {seen:?}");
}

#[test]
fn the_pages_are_good_mdoc() {
    for name in PAGES {
        let path = source().join("man").join(name);
        match Command::new("mandoc").args(["-Tlint", "-W", "warning"]).arg(&path).output() {
            Ok(output) => {
                let said = [output.stdout, output.stderr].concat();
                assert!(output.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
            }
            Err(error) => println!("skipped: mandoc: {error}"),
        }
    }
}

#[test]
fn the_readme_shows_the_namespaces_example_as_it_is_run() {
    let script = include_str!("../packaging/examples/two-namespaces.sh");
    let (_, body) = script.split_once("# Two namespaces, each on a wire of its own.").unwrap();
    // What the script remembers for its cleaning up is left out.
    let body: Vec<&str> = body.trim().lines().filter(|line| !line.contains("made=")).collect();
    assert!(include_str!("../README.md").contains(&body.join("\n")), "README.md differs from two-namespaces.sh");
}
