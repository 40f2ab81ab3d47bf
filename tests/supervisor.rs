//! What the daemon tells systemd, or whoever starts it so: here, a socket and a file of ours.

use std::fs::{self, DirEntry, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::world::{PATIENCE, Stage};

/// A service manager's end of the socket, and the service.
struct Manager {
    socket: UnixDatagram,
    service: Child,
}

impl Manager {
    /// Starts the service; it must give a sign of life every three seconds.
    fn start(stage: &Stage, args: &str) -> Manager {
        let path = stage.path("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut command = stage.command(args);
        command.env("NOTIFY_SOCKET", path).env("WATCHDOG_USEC", "3000000").env_remove("WATCHDOG_PID");
        Manager { socket, service: command.stderr(File::create(stage.path("log")).unwrap()).spawn().unwrap() }
    }

    /// The next message, by lines.
    fn hear(&self) -> Vec<String> {
        let mut bytes = [0; 4096];
        let length = self.socket.recv(&mut bytes).expect("it says something in time");
        std::str::from_utf8(&bytes[..length]).unwrap().lines().map(str::to_owned).collect()
    }

    /// The next message that is not a sign of life.
    fn hear_more(&self) -> Vec<String> {
        loop {
            let message = self.hear();
            if message != ["WATCHDOG=1"] {
                return message;
            }
        }
    }

    fn send(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.service), signal).unwrap();
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = self.service.kill();
        let _ = self.service.wait();
    }
}

#[test]
fn the_service_manager_hears_of_its_start_its_life_its_reloads_and_its_end() {
    let stage = Stage::new();
    stage.file("config", "[datapath]\nports = [\"p1,type=sim\", \"p2,type=sim\"]\npollers = 1\n");
    let mut manager = Manager::start(&stage, "--config DIR/config --offload sim");
    assert_eq!(manager.hear(), ["READY=1", "STATUS=2 ports, 1 pollers, offload device sim"]);
    assert_eq!([manager.hear(), manager.hear()], [["WATCHDOG=1"], ["WATCHDOG=1"]]);

    for (config, status) in [
        ("[datapath]\nports = [\"p1,type=sim\"]\npollers = 1\n", "1 ports, 1 pollers, offload device sim"),
        ("nonsense", "1 ports, 1 pollers, offload device sim; not reloaded: "),
    ] {
        stage.file("config", config);
        manager.send(Signal::HUP);
        let reloading = manager.hear_more();
        assert_eq!(reloading[0], "RELOADING=1");
        assert!(reloading.iter().any(|line| line.starts_with("MONOTONIC_USEC=")), "{reloading:?}");
        let ready = manager.hear_more();
        assert!(ready[0] == "READY=1" && ready[1].starts_with(&format!("STATUS={status}")), "{ready:?}");
    }

    manager.send(Signal::TERM);
    assert_eq!(manager.hear_more(), ["STOPPING=1", "STATUS=removing rules from the device"]);
    assert!(manager.service.wait().unwrap().success());
}

/// Stops one thread, says so, and holds it until standard input ends. By ptrace(2): PTRACE_SEIZE and PTRACE_INTERRUPT.
const HOLD: &str = "
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
for request in 0x4206, 0x4207:
    if libc.ptrace(request, int(sys.argv[1]), None, None) != 0:
        sys.exit(f'errno {ctypes.get_errno()}')
print('held', flush=True)
sys.stdin.read()
";

/// The thread of this name.
fn thread_of(process: u32, name: &str) -> String {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap().map(|task| task.unwrap());
    let named = |task: &DirEntry| fs::read_to_string(task.path().join("comm")).unwrap().trim_end() == name;
    tasks.into_iter().find(named).expect("there is such a thread").file_name().into_string().unwrap()
}

#[test]
fn a_poller_that_hangs_silences_the_signs_of_life_until_it_goes_on() {
    let stage = Stage::new();
    let manager = Manager::start(&stage, "--port p1,type=sim");
    assert_eq!(manager.hear()[0], "READY=1");

    let poller = thread_of(manager.service.id(), "poller0");
    let mut hold = Command::new("python3");
    hold.args(["-c", HOLD, &poller]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let Ok(mut hold) = hold.spawn() else {
        println!("skipped: there is no python3 to stop a thread with");
        return;
    };
    let mut said = String::new();
    BufReader::new(hold.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
    if said != "held\n" {
        hold.wait().unwrap();
        println!("skipped: a thread of another process cannot be stopped here");
        return;
    }
    let begun = Instant::now();
    while !fs::read_to_string(stage.path("log")).unwrap().contains("poller 0 has made no turn for 1.5s") {
        assert!(begun.elapsed() < PATIENCE, "nobody misses the poller");
        thread::sleep(Duration::from_millis(10));
    }
    manager.socket.set_nonblocking(true).unwrap();
    while manager.socket.recv(&mut [0; 64]).is_ok() {}
    manager.socket.set_nonblocking(false).unwrap();
    manager.socket.set_read_timeout(Some(Duration::from_millis(2500))).unwrap();
    assert!(manager.socket.recv(&mut [0; 64]).is_err(), "for two ticks and more there is no sign");

    drop(hold.stdin.take());
    assert!(hold.wait().unwrap().success());
    manager.socket.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(manager.hear(), ["WATCHDOG=1"]);
}

#[test]
fn a_daemon_that_cannot_start_is_never_ready() {
    let stage = Stage::new();
    let mut manager = Manager::start(&stage, "--port nothing,type=packet");
    assert_eq!(manager.service.wait().unwrap().code(), Some(1));
    manager.socket.set_nonblocking(true).unwrap();
    assert!(manager.socket.recv(&mut [0; 64]).is_err(), "it has said nothing");
}

/// Standard error of a daemon that is told that it leads to the journal, truly or not.
fn log_of(args: &str, truly: bool) -> String {
    let stage = Stage::new();
    let log = File::create(stage.path("log")).unwrap();
    let meta = log.metadata().unwrap();
    let mut command: Command = stage.command(args);
    command.env("JOURNAL_STREAM", format!("{}:{}", meta.dev(), meta.ino() + u64::from(!truly)));
    command.stderr(log).status().unwrap();
    fs::read_to_string(stage.path("log")).unwrap()
}

#[test]
fn lines_for_the_journal_have_their_priority_and_no_time() {
    let log = log_of("--port p1,type=sim --duration 100ms", true);
    assert!(log.starts_with("<6>00001|") && log.lines().all(|line| line.starts_with("<6>000")), "{log}");
    let log = log_of("--port nothing,type=packet", true);
    assert!(log.lines().last().unwrap().starts_with("<3>offloadd: "), "{log}");
    let log = log_of("--port p1,type=sim --duration 100ms", false);
    assert!(log.starts_with("20") && log.contains("Z|00001|"), "{log}");
}
