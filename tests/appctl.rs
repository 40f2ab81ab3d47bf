//! `ovs-appctl` of Debian's `openvswitch-common` as a client.

use std::process::Command;

use crate::world::{Stage, World};

/// Runs `ovs-appctl` on the daemon's socket: exit code, output, errors. `None`, and a line that says so, without one.
fn appctl<const N: usize>(world: &World, words: [&str; N]) -> Option<(Option<i32>, String, String)> {
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

#[test]
fn ovs_appctl_lists_shows_and_dumps_as_offloadctl_does() {
    let world = Stage::new().start("--port p1,type=sim,flows=1 --port p2,type=sim --offload sim");
    world.wait_until("flows are in the device", || world.perf("mark_hits") > 0);
    let Some((code, list, err)) = appctl(&world, ["list-commands"]) else { return };
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert_eq!(list, world.ctl(["list-commands"]));
    for command in ["dpctl/dump-flows", "dpif/offload-show", "flow-flush", "dpif-netdev/pmd-perf-show", "exit"] {
        assert!(list.lines().any(|line| line.split_whitespace().next() == Some(command)), "{command}: {list}");
    }

    let run = |words: [&str; 2]| {
        let (code, out, err) = appctl(&world, words).unwrap();
        assert_eq!((code, err.as_str()), (Some(0), ""), "{words:?}");
        out
    };
    let show = appctl(&world, ["dpif/offload-show"]).unwrap().1;
    assert!(show.starts_with("Globally enabled: true\n") && show.contains("marks in use: 1 of "), "{show}");
    let dump = run(["dpctl/dump-flows", "-m"]);
    let flow = dump.lines().find(|line| line.starts_with("ufid:")).unwrap();
    assert!(flow.contains("in_port(p1)") && flow.contains(", offloaded:partial, dp:ovs, mark:1, actions:p2"), "{flow}");

    let (code, out, err) = appctl(&world, ["dpctl/add-flow", "in_port(1),bogus(3)", "2"]).unwrap();
    assert_eq!((code, out.as_str()), (Some(2), ""));
    assert!(err.starts_with("parsing flow key (unknown key \"bogus\" at column 12)\n"), "{err}");
}
