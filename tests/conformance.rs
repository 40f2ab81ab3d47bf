//! Open vSwitch's clients drive the daemon; ours drives Open vSwitch's; and the two servers behave alike on the wire.

use std::fs;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use offloadctl::Exit;
use serde_json::Value;

use crate::ovs::Ovs;
use crate::world::{PATIENCE, Stage, World};

/// Runs `ovs-appctl` on the daemon's socket: exit code, output, errors. `None`, and a line that says so, without one.
fn appctl(world: &World, words: &[&str]) -> Option<(Option<i32>, String, String)> {
    match Command::new("ovs-appctl").arg("-t").arg(world.path("ctl")).args(["-T", "30"]).args(words).output() {
        Ok(output) => {
            let text = |bytes| String::from_utf8(bytes).unwrap();
            Some((output.status.code(), text(output.stdout), text(output.stderr)))
        }
        Err(_) => {
            println!("skipped: ovs-appctl is not installed (Debian: openvswitch-common)");
            None
        }
    }
}

/// Runs our client in this process: exit, output, errors.
fn offloadctl(target: &str, words: &[&str]) -> (Exit, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let to = ["offloadctl", "-t", target, "-T", "30"];
    let exit = offloadctl::run(to.iter().chain(words).map(|word| (*word).to_owned()), &mut out, &mut err);
    (exit, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

/// Two ports and a flow in the device.
fn world() -> World {
    let world = Stage::new().start("--port p1,type=sim,flows=1 --port p2,type=sim --offload sim");
    world.wait_until("flows are in the device", || world.perf("mark_hits") > 0);
    world
}

#[test]
fn ovs_appctl_lists_shows_and_dumps_as_offloadctl_does() {
    let world = world();
    let Some((code, list, err)) = appctl(&world, &["list-commands"]) else { return };
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert_eq!(list, world.ctl(["list-commands"]));
    let run = |words: &[&str]| {
        let (code, out, err) = appctl(&world, words).unwrap();
        assert_eq!((code, err.as_str()), (Some(0), ""), "{words:?}");
        out
    };
    let show = run(&["dpif/offload-show"]);
    assert!(show.starts_with("Globally enabled: true\n") && show.contains("marks in use: 1 of "), "{show}");
    let dump = run(&["dpctl/dump-flows", "-m"]);
    let flow = dump.lines().find(|line| line.starts_with("ufid:")).unwrap();
    assert!(flow.contains("in_port(p1)") && flow.contains(", offloaded:partial, dp:ovs, mark:1, actions:p2"), "{flow}");

    let (code, out, err) = appctl(&world, &["dpctl/add-flow", "in_port(1),bogus(3)", "2"]).unwrap();
    assert_eq!((code, out.as_str()), (Some(2), ""));
    assert!(err.starts_with("parsing flow key (unknown key \"bogus\" at column 12)\n"), "{err}");
    let (code, _, err) = appctl(&world, &["dpctl/dump-flow"]).unwrap();
    assert!(code == Some(2) && err.contains("server returned an error"), "{err}");
}

#[test]
fn every_command_can_be_called_by_ovs_appctl_and_has_json_that_is_no_wrapped_text() {
    let world = world();
    let list = world.json(["list-commands"]);
    for command in list.as_object().unwrap().keys().filter(|command| *command != "exit") {
        let Some((code, out, err)) = appctl(&world, &[command]) else { return };
        assert!(code == Some(0) || code == Some(2), "{command}: {code:?} {err}");
        assert_eq!(code == Some(2), !err.is_empty(), "{command}: {err}");
        assert!(out.is_empty() || out.ends_with('\n'), "{command}: {out}");
        let (exit, json, _) = offloadctl(&world.path("ctl"), &["-f", "json", command]);
        if exit == Exit::Done {
            let json: Value = serde_json::from_str(&json).unwrap();
            assert!(json.get("reply-format").is_none() && !json.is_string() && !json.is_null(), "{command}: {json}");
        }
    }
    assert_eq!(world.ctl(["version"]), format!("{}\n", offloadd::daemon::VERSION));
}

#[test]
fn pythons_client_drives_the_daemon() {
    let script = r#"
import sys, json
import ovs.unixctl.client as c
error, client = c.UnixctlClient.create(sys.argv[1])
assert not error, error
for command, args in [("version", []), ("dpctl/show", []), ("nosuch", []), ("dpctl/get-flow", ["ufid:00000000-0000-0000-0000-000000000001"])]:
    error, failure, result = client.transact(command, args)
    assert not error, error
    print(json.dumps([failure, result]))
client.close()
"#;
    let world = world();
    let output = Command::new("/usr/bin/python3").args(["-c", script, &world.path("ctl")]).output();
    let Ok(output) = output else { return println!("skipped: python3 is not installed") };
    let err = String::from_utf8(output.stderr).unwrap();
    if err.contains("No module named") {
        return println!("skipped: python3-openvswitch is not installed");
    }
    assert!(output.status.success(), "{err}");
    let out = String::from_utf8(output.stdout).unwrap();
    let said: Vec<[Option<String>; 2]> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(said[0], [None, Some(format!("{}\n", offloadd::daemon::VERSION))]);
    assert!(said[1][1].as_ref().unwrap().starts_with("netdev@offloadd:\n"));
    assert!(said[2][0].as_ref().unwrap().starts_with("\"nosuch\" is not a valid command"));
    assert_eq!(said[3][0].as_deref(), Some("getting flow (No such file or directory)\n"));
}

#[test]
fn offloadctl_drives_open_vswitch_as_ovs_appctl_does() {
    let Some(ovs) = Ovs::start() else { return };
    let socket = ovs.socket();
    let target = socket.to_str().unwrap();
    for words in [
        &["version"][..],
        &["list-commands"],
        &["dpctl/show"],
        &["dpctl/dump-flows"],
        &["vlog/set", "console:off"],
        &["fdb/show", "br0"],
        &["dpif/dump-dps"],
        &["coverage/read-counter", "bridge_reconfigure"],
        &["nosuch"],
        &["dpctl/add-flow", "in_port(1),bogus(2)", "2"],
        &["dpctl/get-flow", "ufid:00000000-0000-0000-0000-000000000001"],
        &["coverage/read-counter"],
    ] {
        let theirs = ovs.appctl(&[&["-t", target], words].concat());
        let ours = offloadctl(target, words);
        assert_eq!(theirs.0, Some(ours.0 as i32), "{words:?}: {theirs:?} {ours:?}");
        assert_eq!(ours.1, theirs.1, "{words:?}");
        assert_eq!(ours.2.lines().next(), theirs.2.lines().next(), "{words:?}");
    }
    // It is older than `set-options`: an error, and not a hang.
    assert_eq!(offloadctl(target, &["-f", "json", "version"]).0, Exit::Refused);
    let help = offloadctl(target, &["dpctl/show", "--help"]);
    assert!(help.0 == Exit::Done && help.1.contains("dpctl/show"), "{help:?}");
    let misspelt = offloadctl(target, &["dpctl/shwo"]);
    assert!(misspelt.0 == Exit::Refused && misspelt.2.contains("did you mean dpctl/show?"), "{}", misspelt.2);
}

#[test]
fn a_name_leads_to_open_vswitchs_daemon_by_its_pidfile_while_it_lives() {
    let Some(ovs) = Ovs::start() else { return };
    // A process of its own: the environment is each process's.
    let program = Path::new(env!("CARGO_BIN_EXE_offloadd")).with_file_name("offloadctl");
    if !program.exists() {
        return println!("skipped: {} was not built", program.display());
    }
    let run = |name: &str| {
        let output = Command::new(&program).env("OVS_RUNDIR", ovs.run_dir()).args(["-t", name, "version"]).output();
        let output = output.unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, out, err) = run("ovs-vswitchd");
    assert!(code == Some(0) && out.starts_with("ovs-vswitchd (Open vSwitch)"), "{out}{err}");
    let (code, out, _) = run("ovsdb-server");
    assert!(code == Some(0) && out.starts_with("ovsdb-server (Open vSwitch)"), "{out}");
    fs::write(ovs.run_dir().join("dead.pid"), "1\n").unwrap();
    let (code, _, err) = run("dead");
    assert!(code == Some(1) && err.contains("No such process"), "{err}");
    assert_eq!(run("nobody").0, Some(1));
}

/// All that a server says to these pieces, sent one after the other, until it closes or has said all that it will.
fn exchange(socket: &Path, pieces: &[&[u8]]) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    for piece in pieces {
        // It may have closed already.
        let _ = stream.write_all(piece);
        thread::sleep(Duration::from_millis(2));
    }
    let _ = stream.shutdown(Shutdown::Write);
    let mut said = Vec::new();
    match stream.read_to_end(&mut said) {
        Err(error) if error.kind() != io::ErrorKind::ConnectionReset => panic!("{error}"),
        _ => String::from_utf8(said).unwrap(),
    }
}

/// What matters of replies: ids, and whether each is a result or an error.
fn shape(said: &str) -> Vec<(Value, bool)> {
    let replies = serde_json::Deserializer::from_str(said).into_iter::<Value>();
    replies.map(|reply| reply.unwrap()).map(|reply| (reply["id"].clone(), reply["error"].is_null())).collect()
}

#[test]
fn both_servers_answer_or_close_alike() {
    let Some(ovs) = Ovs::start() else { return };
    let world = world();
    let (theirs, ours) = (ovs.socket(), Path::new(&world.path("ctl")).to_owned());
    let good = br#"{"id":0,"method":"version","params":[]}"#;
    let whole: &[&[u8]] = &[
        good,
        br#"{"id":"a","method":"version","params":[]}{"id":[1],"method":"nosuch","params":[]} {"id":1.5,"method":"version","params":[]}"#,
        b" \n\t{\"id\":true,\"method\":\"version\",\"params\":[]}\n",
        br#"{"id":0,"method":"version","params":["x"]}"#,
        br#"{"id":0,"method":"version","params":[1]}"#,
        br#"{"id":0,"method":"dpctl/get-flow","params":["ufid:00000000-0000-0000-0000-000000000001"]}"#,
        br#"{"id":0,"method":"version"}"#,
        br#"{"id":0,"method":"version","params":{}}"#,
        br#"{"id":0,"method":"version","params":null}"#,
        br#"{"id":null,"method":"version","params":[]}"#,
        br#"{"method":"version","params":[]}"#,
        br#"{"id":0,"method":7,"params":[]}"#,
        br#"{"id":0,"method":"version","params":[],"extra":1}"#,
        br#"{"id":0,"method":"version","params":["\u0000"]}"#,
        br#"{"id":0,"result":"x","error":null}"#,
        br#"{"id":0}"#,
        b"{}",
        b"[]",
        b"7",
        b"nonsense",
        b"{\"id\":0,,",
        br#"{"id":0,"method":"version","params":[]} garbage"#,
        br#"{"id":0,"method":"version","params":[]}{"id":1}"#,
    ];
    for text in whole {
        let (their_shape, our_shape) = (shape(&exchange(&theirs, &[text])), shape(&exchange(&ours, &[text])));
        assert_eq!(our_shape, their_shape, "{}", text.escape_ascii());
    }
    let pieces: Vec<&[u8]> = good.chunks(3).collect();
    assert_eq!(shape(&exchange(&ours, &pieces)), shape(&exchange(&theirs, &pieces)));
    assert_eq!(exchange(&ours, &[&good[..20]]), exchange(&theirs, &[&good[..20]]), "half a request has no answer");
    // The one difference: JSON-RPC 2.0 is answered.
    for modern in [
        r#"{"jsonrpc":"2.0","id":0,"method":"version","params":[]}"#,
        r#"[{"jsonrpc":"2.0","id":0,"method":"version","params":[]}]"#,
    ] {
        assert_eq!(exchange(&theirs, &[modern.as_bytes()]), "");
        assert!(exchange(&ours, &[modern.as_bytes()]).contains(r#""jsonrpc":"2.0""#));
    }
}
