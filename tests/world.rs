//! [`World`]: the daemon that users run, in a directory of its own, driven through the client that users run.
//!
//! ```text
//!   Stage: a directory ──start──► World: a daemon that answers ──drop──► SIGTERM, exit code 0, nothing left behind
//!      └──────refused──► exit code and standard error of a daemon that must not start
//! ```
//!
//! A test that fails prints what the daemon thought of its flows, its device and itself before it ends.

use std::fs::{self, File};
use std::ops::Deref;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use offloadctl::Exit;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// Longer than anything here takes; reaching it is a failure.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Between two looks at something awaited.
const POLL: Duration = Duration::from_millis(4);

/// The daemon under test.
pub const OFFLOADD: &str = env!("CARGO_BIN_EXE_offloadd");

/// A directory, before a daemon lives in it.
pub struct Stage {
    dir: TempDir,
}

impl Stage {
    pub fn new() -> Stage {
        Stage { dir: tempfile::tempdir().unwrap() }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// Writes a file into the directory; its path.
    pub fn file(&self, name: &str, content: &str) -> String {
        fs::write(self.dir.path().join(name), content).unwrap();
        self.path(name)
    }

    /// The daemon with these arguments, `DIR` standing for the directory; not started yet.
    ///
    /// It ends by itself after two minutes, should the test be killed.
    pub fn command(&self, args: &str) -> Command {
        let mut command = Command::new(OFFLOADD);
        let dir = self.dir.path().to_str().unwrap();
        command.args(args.split_whitespace().map(|arg| arg.replace("DIR", dir)));
        if !args.contains("--duration") {
            command.args(["--duration", "2m"]);
        }
        if !args.contains("--unixctl") {
            command.args(["--unixctl", &self.path("ctl")]);
        }
        command.env("RUST_LOG", "info").current_dir(dir).stdin(Stdio::null());
        command
    }

    /// Starts a daemon and waits until it answers.
    pub fn start(self, args: &str) -> World {
        let log = self.dir.path().join("log");
        let mut command = self.command(args);
        command.stdout(File::create(self.path("out")).unwrap()).stderr(File::create(&log).unwrap());
        let daemon = command.spawn().unwrap();
        let mut world = World { stage: self, daemon, ended: false };
        let begun = Instant::now();
        while world.try_ctl(&["version"], &[]).is_err() {
            if let Some(status) = world.daemon.try_wait().unwrap() {
                world.ended = true;
                panic!("the daemon ended with {status}:\n{}", world.log());
            }
            assert!(begun.elapsed() < PATIENCE, "the daemon does not answer:\n{}", world.log());
            thread::sleep(POLL);
        }
        world
    }

    /// Runs a daemon that ends by itself: exit code, standard output, standard error.
    pub fn run(&self, args: &str) -> (Option<i32>, String, String) {
        let output = self.command(args).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }

    /// Runs a daemon that must refuse to start; what it says, without the log, and with `DIR` for the directory.
    pub fn refused(&self, args: &str) -> String {
        let (code, out, err) = self.run(args);
        assert_eq!((code, out.as_str()), (Some(1), ""), "{args}: {err}");
        let said: Vec<&str> = err.lines().filter(|line| !is_log(line)).collect();
        assert_eq!(said.len(), 1, "one line says what is wrong: {err}");
        assert!(!self.dir().join("ctl").exists() && !self.dir().join("pid").exists(), "something is left behind");
        said[0].replace(self.dir.path().to_str().unwrap(), "DIR")
    }
}

/// Whether a line of standard error is the log's: `2026-01-31T23:59:59.999Z|00001|…`.
fn is_log(line: &str) -> bool {
    line.split('|').next().is_some_and(|time| time.ends_with('Z') && time.starts_with("20"))
}

/// A running daemon.
pub struct World {
    stage: Stage,
    daemon: Child,
    ended: bool,
}

impl Deref for World {
    type Target = Stage;

    fn deref(&self) -> &Stage {
        &self.stage
    }
}

impl World {
    /// Runs `offloadctl` in this process: the answer, or what it says about an error.
    fn try_ctl(&self, words: &[&str], options: &[&str]) -> Result<String, String> {
        let socket = self.path("ctl");
        let to = ["offloadctl", "-t", &socket, "-T", "30"];
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let args = to.iter().chain(options).chain(words).map(|word| (*word).to_owned());
        match offloadctl::run(args, &mut out, &mut err) {
            Exit::Done => Ok(String::from_utf8(out).unwrap()),
            exit => {
                let err = String::from_utf8(err).unwrap();
                if exit == Exit::Refused {
                    assert_eq!(err.lines().count(), 2, "an error is one line, and one that says whose it is: {err}");
                }
                Err(err.lines().next().unwrap_or_default().to_owned())
            }
        }
    }

    /// A command's answer.
    pub fn ctl<const N: usize>(&self, words: [&str; N]) -> String {
        self.try_ctl(&words, &[]).unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    /// What the server says about a command that it must refuse; `DIR` stands for the directory.
    pub fn ctl_err<const N: usize>(&self, words: [&str; N]) -> String {
        self.refusal(&words)
    }

    /// As [`World::ctl_err`], of any number of words.
    pub fn refusal(&self, words: &[&str]) -> String {
        match self.try_ctl(words, &[]) {
            Ok(answer) => panic!("{words:?} was accepted: {answer}"),
            Err(error) => error.replace(self.dir().to_str().unwrap(), "DIR"),
        }
    }

    /// A command's answer as JSON.
    pub fn json<const N: usize>(&self, words: [&str; N]) -> Value {
        let text = self.try_ctl(&words, &["--format", "json"]).unwrap_or_else(|error| panic!("{words:?}: {error}"));
        serde_json::from_str(&text).unwrap()
    }

    /// As [`World::json`], of any number of words.
    pub fn json_of(&self, words: &[&str]) -> Value {
        let text = self.try_ctl(words, &["--format", "json"]).unwrap_or_else(|error| panic!("{words:?}: {error}"));
        serde_json::from_str(&text).unwrap()
    }

    /// Flows of all pollers, as `dpctl/dump-flows` has them in JSON.
    pub fn flows(&self) -> Vec<Value> {
        self.json(["dpctl/dump-flows", "--no-names"]).as_array().unwrap().clone()
    }

    /// The one flow whose key holds `part`.
    pub fn flow(&self, part: &str) -> Option<Value> {
        let mut found = self.flows().into_iter().filter(|flow| flow["key"].as_str().unwrap().contains(part));
        let flow = found.next();
        assert!(found.next().is_none(), "more than one flow holds {part}");
        flow
    }

    /// A count of a port, all pollers together.
    pub fn port_count(&self, port: &str, count: &str) -> u64 {
        let show = self.json(["dpctl/show", "-s"]);
        let ports = show["ports"].as_array().unwrap();
        let port = ports.iter().find(|shown| shown["name"] == port).unwrap_or_else(|| panic!("no port {port}"));
        port["counters"][count].as_u64().unwrap()
    }

    /// A count of `dpif-netdev/pmd-perf-show`, those of flows included, summed over the pollers that there are and were.
    pub fn perf(&self, count: &str) -> u64 {
        let perf = self.json(["dpif-netdev/pmd-perf-show"]);
        let of_flows = |poller: &Value| {
            let mut counts = poller["flows"].as_array().unwrap().iter();
            counts.find(|named| named[0] == count).unwrap_or_else(|| panic!("no count {count}"))[1].as_u64()
        };
        let of = |poller: &Value| poller[count].as_u64().or_else(|| of_flows(poller)).unwrap();
        let ended = Some(&perf["ended"]).filter(|ended| !ended.is_null());
        perf["pollers"].as_array().unwrap().iter().chain(ended).map(of).sum()
    }

    /// A number of `dpif/offload-show`, by its JSON pointer.
    pub fn offload(&self, pointer: &str) -> u64 {
        let show = self.json(["dpif/offload-show"]);
        show.pointer(pointer).and_then(Value::as_u64).unwrap_or_else(|| panic!("{pointer} is no number in {show}"))
    }

    /// A rule's packets, summed over the lines of `rule/dump` that hold `part`.
    pub fn rule_packets(&self, part: &str) -> u64 {
        let dump = self.ctl(["rule/dump"]);
        let lines = dump.lines().filter(|line| line.contains(part));
        lines
            .map(|line| line.split("n_packets=").nth(1).unwrap().split(',').next().unwrap().parse::<u64>().unwrap())
            .sum()
    }

    /// Reads the configuration again, which is now `config`, and waits until it is in force.
    pub fn reload(&self, config: &str) {
        let reloads = || self.log().matches("|reloaded\n").count();
        let before = reloads();
        self.file("config", config);
        self.send(Signal::HUP);
        self.wait_until("it is reloaded", || reloads() > before);
    }

    /// Waits until `cond` holds.
    pub fn wait_until(&self, what: &str, mut cond: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !cond() {
            assert!(begun.elapsed() < PATIENCE, "in vain: {what}");
            thread::sleep(POLL);
        }
    }

    pub fn pid(&self) -> u32 {
        self.daemon.id()
    }

    pub fn send(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.daemon), signal).unwrap();
    }

    /// What the daemon logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir().join("log")).unwrap()
    }

    /// Waits for the end that somebody else has asked for, and looks that nothing is left; its output and its log.
    pub fn end(mut self) -> (String, String) {
        let status = self.wait();
        self.assert_clean(status);
        (fs::read_to_string(self.dir().join("out")).unwrap(), self.log())
    }

    fn wait(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.daemon.try_wait().unwrap() {
                self.ended = true;
                return status;
            }
            if begun.elapsed() > PATIENCE {
                self.daemon.kill().unwrap();
                self.daemon.wait().unwrap();
                self.ended = true;
                panic!("the daemon did not end:\n{}", self.log());
            }
            thread::sleep(POLL);
        }
    }

    fn assert_clean(&self, status: ExitStatus) {
        assert!(status.success(), "the daemon ended with {status}:\n{}", self.log());
        for left in ["ctl", "pid"] {
            assert!(!self.dir().join(left).exists(), "{left} is left behind");
        }
        assert!(self.log().contains("rules removed from the device"), "{}", self.log());
        assert!(!self.log().contains("panicked") && !self.log().contains("may be left"), "{}", self.log());
    }

    /// The whole state, as an operator would ask for it.
    fn print_state(&self) {
        for words in [
            ["dpif/offload-show"].as_slice(),
            &["dpctl/show", "-s"],
            &["dpctl/dump-flows", "-m"],
            &["rule/dump"],
            &["dpif-netdev/pmd-perf-show"],
        ] {
            // A full dump is of use to nobody.
            let answer = self.try_ctl(words, &[]).unwrap_or_else(|error| error);
            let shown: Vec<&str> = answer.lines().take(60).collect();
            eprintln!("--- {}\n{}", words.join(" "), shown.join("\n"));
        }
        eprintln!("--- log\n{}", self.log());
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        if thread::panicking() {
            self.print_state();
            let _ = self.daemon.kill();
            let _ = self.daemon.wait();
            return;
        }
        self.send(Signal::TERM);
        let status = self.wait();
        self.assert_clean(status);
    }
}
