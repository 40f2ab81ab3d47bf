//! [`Ovs`]: Open vSwitch's own daemons, in a directory of their own, with a datapath that needs no kernel.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::world::PATIENCE;

const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";

/// A database, a switch with bridge `br0` and ports `p1` and `p2`. Both end with this.
pub struct Ovs {
    dir: TempDir,
    switch: Child,
    database: Child,
}

impl Ovs {
    /// `None`, and a line that says so, where Open vSwitch is not installed.
    pub fn start() -> Option<Ovs> {
        if !Path::new("/usr/sbin/ovs-vswitchd").exists() || !Path::new(SCHEMA).exists() {
            println!("skipped: ovs-vswitchd is not installed (Debian: openvswitch-switch)");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let run = |program: &str| {
            let mut command = Command::new(program);
            for variable in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR"] {
                command.env(variable, dir.path());
            }
            command.stdin(Stdio::null()).stdout(Stdio::null());
            command.stderr(File::create(at("stderr")).unwrap());
            command
        };
        let done = |command: &mut Command| assert!(command.status().unwrap().success(), "{command:?}");
        done(run("ovsdb-tool").args(["create", &at("db"), SCHEMA]));
        let remote = format!("punix:{}", at("db.sock"));
        let server = ["--pidfile", "--no-chdir", "-vconsole:off"];
        let database =
            run("/usr/sbin/ovsdb-server").arg(at("db")).arg(format!("--remote={remote}")).args(server).spawn();
        let database = database.unwrap();
        wait("the database listens", || Path::new(&at("db.sock")).exists());
        let db = format!("--db=unix:{}", at("db.sock"));
        let vsctl = |words: &str| done(run("ovs-vsctl").args([&db, "--timeout=20"]).args(words.split_whitespace()));
        vsctl("--no-wait init");
        let socket = format!("unix:{}", at("db.sock"));
        let mut switch = run("/usr/sbin/ovs-vswitchd");
        switch.arg(socket).args(server).args(["--enable-dummy=override", "--disable-system"]);
        let ovs = Ovs { switch: switch.spawn().unwrap(), database, dir };
        let vsctl = |words: &str| {
            let mut command = Command::new("ovs-vsctl");
            done(command.env("OVS_RUNDIR", ovs.run_dir()).args([&db, "--timeout=20"]).args(words.split_whitespace()));
        };
        vsctl(
            "add-br br0 -- set bridge br0 datapath_type=dummy fail-mode=secure -- add-port br0 p1 -- set interface p1 \
             type=dummy -- add-port br0 p2 -- set interface p2 type=dummy",
        );
        Some(ovs)
    }

    pub fn run_dir(&self) -> &Path {
        self.dir.path()
    }

    /// The switch's control socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join(format!("ovs-vswitchd.{}.ctl", self.switch.id()))
    }

    /// `ovs-appctl`: exit code, output, errors.
    pub fn appctl(&self, words: &[&str]) -> (Option<i32>, String, String) {
        let output = Command::new("ovs-appctl").env("OVS_RUNDIR", self.run_dir()).args(words).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }
}

fn wait(what: &str, done: impl Fn() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "in vain: {what}");
        thread::sleep(Duration::from_millis(4));
    }
}

impl Drop for Ovs {
    fn drop(&mut self) {
        for process in [&mut self.switch, &mut self.database] {
            let _ = kill_process(Pid::from_child(process), Signal::KILL);
            let _ = process.wait();
        }
        let _ = fs::remove_dir_all(self.dir.path());
    }
}
