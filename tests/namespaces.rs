//! The whole switch between network namespaces: the real daemon, the kernel's own TCP at both ends, stock tools.
//!
//! ```text
//!   host 1            switch                     host 2
//!   eth0 ──── p1 ─ [ offloadd, actions=normal ] ─ p2 ──── eth0
//! ```
//!
//! Without root the tests say that they are skipped; without `ping` or `iperf3`, so do the parts that need them.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use offloadctl::Client;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::netns::Namespace;

/// How long anything may take before the test fails.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Between two looks at something that will come about.
const LOOK: Duration = Duration::from_millis(5);

/// Waits until `come` is true.
pub fn until(what: &str, mut come: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !come() {
        assert!(Instant::now() < end, "waited in vain until {what}");
        thread::sleep(LOOK);
    }
}

/// Whether a tool can be run; says so if not.
pub fn has(tool: &str) -> bool {
    let found =
        std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|p| p.join(tool).exists()));
    if !found {
        eprintln!("skipped: needs {tool}");
    }
    found
}

/// A program of ours, killed when dropped, whose output goes to a file.
pub struct Program {
    name: String,
    child: Child,
    dir: TempDir,
}

impl Program {
    /// Starts `command`, a program and its arguments, in `place`.
    pub fn start(place: &Namespace, command: &str) -> Program {
        let mut words = command.split(' ');
        let program = words.next().unwrap();
        let mut command = Command::new(program);
        command.args(words);
        Program::of(program, place.enter(|| Program::spawn(command)))
    }

    fn spawn(mut command: Command) -> (Child, TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let file = |name| File::create(dir.path().join(name)).unwrap();
        let child = command.stdin(Stdio::null()).stdout(file("out")).stderr(file("err")).spawn().unwrap();
        (child, dir)
    }

    fn of(name: &str, (child, dir): (Child, TempDir)) -> Program {
        Program { name: name.to_owned(), child, dir }
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn out(&self) -> String {
        fs::read_to_string(self.dir.path().join("out")).unwrap()
    }

    pub fn err(&self) -> String {
        fs::read_to_string(self.dir.path().join("err")).unwrap()
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for its end.
    pub fn end(&mut self) -> ExitStatus {
        until(&format!("{} ends", self.name), || self.child.try_wait().unwrap().is_some());
        self.child.wait().unwrap()
    }

    /// What it wrote, when it has ended well.
    pub fn output(mut self) -> String {
        let status = self.end();
        assert!(status.success(), "{}: {status}\n{}\n{}", self.name, self.out(), self.err());
        self.out()
    }

    /// Processor time used so far, in clock ticks of 10 ms.
    fn ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // Fields 14 and 15 (proc(5)), counted from behind the name, which is the second.
        let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 2..].split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("{}:\n{}\n{}", self.name, self.out(), self.err());
        }
    }
}

/// A running daemon in a namespace of its own.
pub struct Switch {
    pub place: Namespace,
    pub daemon: Program,
    dir: TempDir,
}

impl Switch {
    fn start(place: Namespace, ports: &[&str]) -> Switch {
        Switch::start_with(place, &["--offload", "sim,preset=instant"], ports)
    }

    /// The same with `arguments` of the daemon's.
    pub fn start_with(place: Namespace, arguments: &[&str], ports: &[&str]) -> Switch {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_offloadd"));
        command.env_remove("RUST_LOG").args(arguments);
        command.arg("--unixctl").arg(dir.path().join("ctl")).arg("--pidfile").arg(dir.path().join("pid"));
        for port in ports {
            command.args(["--port", port]);
        }
        let mut daemon = Program::of("offloadd", place.enter(|| Program::spawn(command)));
        until("the daemon is ready", || daemon.err().contains("is ready") || daemon.has_ended());
        assert!(!daemon.has_ended(), "{}", daemon.err());
        Switch { place, daemon, dir }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("ctl")
    }

    /// Runs a command, whose arguments are separated by spaces, and answers with its text.
    pub fn ask(&self, line: &str) -> String {
        let mut words = line.split(' ').map(str::to_owned);
        let name = words.next().unwrap();
        let mut client = Client::connect(&self.socket(), Some(Instant::now() + LIMIT)).unwrap();
        match client.call(&name, &words.collect::<Vec<_>>()).unwrap() {
            Value::String(text) => text,
            other => panic!("{line}: {other}"),
        }
    }

    /// The number behind `label`, wherever it first stands in the answer to `line`.
    pub fn number(&self, line: &str, label: &str) -> u64 {
        number(&self.ask(line), label)
    }

    pub fn mark_hits(&self) -> u64 {
        self.number("dpif-netdev/pmd-perf-show", "PHWOL hits:")
    }

    /// Frames received at a port so far.
    pub fn received(&self, port: &str) -> u64 {
        let text = self.ask("dpctl/show -s");
        let at = text.find(&format!(": {port} (")).unwrap_or_else(|| panic!("no port {port} in\n{text}"));
        number(&text[at..], "RX packets:")
    }

    /// Stops it as an init system does, and looks at what is left.
    fn stop(mut self) {
        let rules = self.number("dpif/offload-show", "rules in use:");
        self.daemon.signal(Signal::TERM);
        let status = self.daemon.end();
        assert_eq!((status.code(), status.signal()), (Some(0), None), "{}", self.daemon.err());
        assert_eq!(files(self.dir.path()), Vec::<PathBuf>::new(), "socket and pidfile are gone");
        let log = self.daemon.err();
        let removed = number(&log, "stopped; ");
        // Rules of flows that came meanwhile are removed too.
        assert!(rules > 0 && removed >= rules && !log.contains("may be left"), "{rules} rules before:\n{log}");
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// The number behind the first `label` in `text`.
pub fn number(text: &str, label: &str) -> u64 {
    let at = text.find(label).unwrap_or_else(|| panic!("no {label:?} in\n{text}")) + label.len();
    let rest = text[at..].trim_start();
    rest[..rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len())].parse().unwrap()
}

/// The host `i`: its `eth0`, 10.1.0.I, is a wire to `pI` in `switch`.
pub fn host(switch: &Namespace, i: u8) -> Namespace {
    let host = Namespace::new().unwrap();
    plug(switch, &host, i);
    host
}

pub fn plug(switch: &Namespace, host: &Namespace, i: u8) {
    switch.ip(&format!("link add p{i} type veth peer name eth0 netns {}", host.name));
    switch.ip(&format!("link set p{i} up"));
    host.ip("link set eth0 up");
    host.ip(&format!("addr add 10.1.0.{i}/24 dev eth0"));
}

/// A switch between hosts 1 to `n`, with default rules and default interfaces.
fn switched(n: u8) -> Option<(Switch, Vec<Namespace>)> {
    let place = Namespace::new()?;
    let hosts: Vec<Namespace> = (1..=n).map(|i| host(&place, i)).collect();
    let ports: Vec<String> = (1..=n).map(|i| format!("p{i},type=packet,port_no={i}")).collect();
    let switch = Switch::start(place, &ports.iter().map(String::as_str).collect::<Vec<_>>());
    Some((switch, hosts))
}

/// What `ping` says at its end: requests sent, answers received, the fastest round trip in milliseconds.
fn ping_result(output: &str) -> (u64, u64, f64) {
    let line = output.lines().find(|line| line.contains(" packets transmitted")).unwrap_or_else(|| panic!("{output}"));
    let words: Vec<&str> = line.split(' ').collect();
    let rtt = output.split("min/avg/max/mdev = ").nth(1).and_then(|rest| rest.split('/').next());
    (words[0].parse().unwrap(), words[3].parse().unwrap(), rtt.map_or(f64::INFINITY, |ms| ms.parse().unwrap()))
}

/// Every one of `n` pings is answered.
pub fn pings_pass(from: &Namespace, to: &str, n: u64) {
    let output = Program::start(from, &format!("ping -n -i 0.01 -w 30 -c {n} {to}")).output();
    assert_eq!(ping_result(&output).1, n, "{output}");
}

/// Runs `iperf3` from `client` to `server` with `options`; answers with the end of its report.
pub fn iperf3(client: &Namespace, server: &Namespace, options: &str) -> Value {
    let mut serving = Program::start(server, "iperf3 --server --one-off");
    let sockets = format!("/proc/{}/net/tcp6", serving.child.id());
    // Port 5201, listening.
    until("iperf3 listens", || {
        fs::read_to_string(&sockets).unwrap().lines().any(|line| line.contains(":1451 ") && line.contains(" 0A "))
    });
    let output = Program::start(client, &format!("iperf3 --json --client 10.1.0.2 --time 1 {options}")).output();
    serving.end();
    let report: Value = serde_json::from_str(&output).unwrap();
    assert_eq!(report["error"], Value::Null, "{output}");
    report["end"].clone()
}

/// The longest average frame of any flow, in bytes.
fn longest_frames(switch: &Switch) -> u64 {
    let flows = switch.ask("dpctl/dump-flows");
    let average = |line: &str| number(line, "bytes:").checked_div(number(line, "packets:"));
    flows.lines().filter(|line| line.contains("packets:")).filter_map(average).max().unwrap_or(0)
}

#[test]
fn ping_tcp_and_udp_pass_between_two_namespaces_and_their_flows_carry_marks() {
    let Some((switch, hosts)) = switched(2) else { return };
    let (a, b) = (&hosts[0], &hosts[1]);
    if has("ping") {
        pings_pass(a, "10.1.0.2", 100);
        pings_pass(b, "10.1.0.1", 100);
    }
    if has("iperf3") {
        for direction in ["", "--reverse"] {
            let end = iperf3(a, b, direction);
            let mbits = end["sum_received"]["bits_per_second"].as_f64().unwrap() / 1e6;
            eprintln!("iperf3 TCP {direction}: {mbits:.0} Mbit/s, {} retransmits", end["sum_sent"]["retransmits"]);
            assert!(mbits > 0.0);
        }
        assert!(longest_frames(&switch) > 1_514, "frames are cut by nobody:\n{}", switch.ask("dpctl/dump-flows"));
        let end = iperf3(a, b, "--udp --bitrate 10M --length 1000");
        let (sent, lost) = (end["sum"]["packets"].as_u64().unwrap(), end["sum"]["lost_packets"].as_u64().unwrap());
        assert!(sent > 0 && lost * 100 <= sent, "{lost} of {sent} UDP datagrams lost");
    }
    if has("ping") {
        // Four flows at least: ARP and IPv4, both ways.
        assert!(switch.number("dpif/offload-show", "marks in use:") >= 4);
        until("packets come with marks", || {
            pings_pass(a, "10.1.0.2", 10);
            switch.mark_hits() > 0
        });
    }
    switch.stop();
}

#[test]
fn tap_ports_given_to_namespaces_are_switched_like_any_other() {
    let Some(place) = Namespace::new() else { return };
    let a = Namespace::new().unwrap();
    let b = host(&place, 2);
    let switch = Switch::start(place, &["t1,type=tap", "p2,type=packet"]);
    switch.place.ip(&format!("link set t1 netns {}", a.name));
    a.ip("link set t1 up");
    a.ip("addr add 10.1.0.1/24 dev t1");
    if has("ping") {
        pings_pass(&a, "10.1.0.2", 100);
        pings_pass(&b, "10.1.0.1", 100);
        assert!(switch.number("dpif/offload-show", "marks in use:") >= 4);
        assert!(switch.mark_hits() > 0);
    }
    if has("iperf3") {
        for direction in ["", "--reverse"] {
            let end = iperf3(&a, &b, direction);
            eprintln!(
                "iperf3 TCP over tap {direction}: {:.0} Mbit/s",
                end["sum_received"]["bits_per_second"].as_f64().unwrap() / 1e6
            );
        }
        assert!(longest_frames(&switch) > 1_514, "frames are cut by nobody");
    }
    switch.stop();
}

#[test]
fn an_interface_removed_amid_traffic_disturbs_no_other() {
    let Some((switch, hosts)) = switched(3) else { return };
    let [a, _, c] = &hosts[..] else { unreachable!() };
    if !has("ping") {
        return;
    }
    let mut steady = Program::start(a, "ping -n -i 0.005 10.1.0.2");
    let mut doomed = Program::start(c, "ping -n -i 0.005 10.1.0.1");
    until("all three talk", || ["p1", "p2", "p3"].iter().all(|port| switch.received(port) > 50));

    switch.place.ip("link del p3");
    until("the port is gone", || !switch.ask("dpctl/show").contains("port 3: p3"));
    let before = switch.received("p1");
    until("the others go on", || switch.received("p1") > before + 100);
    assert!(!switch.ask("dpctl/dump-flows").contains("in_port(3)"), "its flows went with it");

    steady.signal(Signal::INT);
    steady.end();
    let (sent, answered, _) = ping_result(&steady.out());
    // The last one may be under way.
    assert!(answered >= 100 && sent - answered <= 1, "{answered} of {sent} pings answered");
    doomed.signal(Signal::INT);
    doomed.end();

    // The name and the number are free again.
    plug(&switch.place, c, 3);
    switch.ask("dpctl/add-if p3,type=packet,port_no=3");
    pings_pass(c, "10.1.0.1", 10);
    switch.stop();
}

#[test]
fn an_idle_daemon_costs_next_to_nothing_and_answers_at_once() {
    let Some((switch, hosts)) = switched(2) else { return };
    if has("ping") {
        pings_pass(&hosts[0], "10.1.0.2", 10);
    }
    let (begun, ticks) = (Instant::now(), switch.daemon.ticks());
    thread::sleep(Duration::from_secs(3));
    let (idle, used) = (begun.elapsed(), Duration::from_millis(10) * (switch.daemon.ticks() - ticks) as u32);
    assert!(used * 50 <= idle, "{used:?} of processor time in {idle:?}");
    if has("ping") {
        // Each finds the pollers asleep. The fastest tells what the switch adds, whatever else the machine does.
        let output = Program::start(&hosts[0], "ping -n -i 0.2 -w 30 -c 10 10.1.0.2").output();
        let (_, answered, fastest) = ping_result(&output);
        assert!(answered == 10 && fastest < 2.0, "each way at most a millisecond:\n{output}");
    }
    switch.stop();
}

#[test]
fn the_example_of_the_manual_runs_as_written_and_leaves_nothing_behind() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    if !(has("ping") && has("iperf3") && has("unshare")) {
        return;
    }
    // The example's names are plain, so it gets a network, and a /run for their files, of its own.
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/examples/two-namespaces.sh");
    let around = format!(
        "mount -t tmpfs tmpfs /run && {script} && echo left: $(find /run -type f,s) $(ip netns) $(ip -o link | wc -l)"
    );
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "sh", "-c", &around]).env("PATH", path_with_ours());
    let example = Program::of("two-namespaces.sh", Program::spawn(command));
    let output = example.output();
    assert!(output.contains(" 0% packet loss") && output.contains("iperf Done."), "{output}");
    assert!(number(&output, "marks in use:") >= 4, "{output}");
    assert!(number(&output, "PHWOL hits:") > 0, "{output}");
    assert!(output.contains("offloadd: exit code 0"), "{output}");
    assert!(output.ends_with("left: 1\n"), "only the loopback interface is left:\n{output}");
}

/// `PATH` with the directory of our programs before all others. Cargo builds the daemon for these tests, but not the client, which belongs to
/// another package.
fn path_with_ours() -> std::ffi::OsString {
    let ours = Path::new(env!("CARGO_BIN_EXE_offloadd")).parent().unwrap();
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .args(["build", "--quiet", "--offline", "--package", "offloadctl", "--target-dir"])
        .arg(ours.parent().unwrap());
    if ours.ends_with("release") {
        cargo.arg("--release");
    }
    assert!(cargo.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap().success());
    let others = std::env::var_os("PATH").unwrap_or_default();
    std::env::join_paths([ours.to_owned()].into_iter().chain(std::env::split_paths(&others))).unwrap()
}
