//! What the daemon tells systemd, or whoever starts it so: here, a socket and a file of ours.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command};

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

    /// The next message that is not a sign of life; how many of those came before.
    fn hear_more(&self) -> (usize, Vec<String>) {
        let mut signs = 0;
        loop {
            match self.hear() {
                message if message == ["WATCHDOG=1"] => signs += 1,
                message => return (signs, message),
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
    assert!(stage.dir().join("ctl").exists(), "who is ready answers");
    assert_eq!([manager.hear(), manager.hear()], [["WATCHDOG=1"], ["WATCHDOG=1"]]);

    stage.file("config", "[datapath]\nports = [\"p1,type=sim\"]\npollers = 1\n");
    for (config, status) in [
        ("[datapath]\nports = [\"p1,type=sim\"]\npollers = 1\n", "1 ports, 1 pollers, offload device sim"),
        ("nonsense", "1 ports, 1 pollers, offload device sim; not reloaded: "),
    ] {
        stage.file("config", config);
        manager.send(Signal::HUP);
        let (_, reloading) = manager.hear_more();
        assert_eq!(reloading[0], "RELOADING=1");
        assert!(reloading.iter().any(|line| line.starts_with("MONOTONIC_USEC=")), "{reloading:?}");
        let (_, ready) = manager.hear_more();
        assert!(ready[0] == "READY=1" && ready[1].starts_with(&format!("STATUS={status}")), "{ready:?}");
    }

    manager.send(Signal::TERM);
    let (_, stopping) = manager.hear_more();
    assert_eq!(stopping, ["STOPPING=1", "STATUS=removing rules from the device"]);
    assert!(manager.service.wait().unwrap().success());
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
