//! Who may call what: the real daemon, asked by processes of other users. Needs root, who may become anybody.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Output};

use rustix::process::{Signal, geteuid};

use crate::world::{Stage, World};

/// Users and a group that need not have names; nobody else here has them.
const READER: u32 = 40_001;
const WRITER: u32 = 40_002;
const STRANGER: u32 = 40_003;
const GROUP: u32 = 40_010;
const WRITERS: u32 = 40_011;

/// A daemon whose socket the group may use; `None` without root.
fn world(control: &str) -> Option<World> {
    if !geteuid().is_root() {
        println!("skipped: only root can become other users");
        return None;
    }
    if !Path::new("/usr/bin/ovs-appctl").exists() {
        println!("skipped: ovs-appctl is not installed (Debian: openvswitch-common)");
        return None;
    }
    let stage = Stage::new();
    fs::set_permissions(stage.dir(), fs::Permissions::from_mode(0o755)).unwrap();
    stage.file("config", &format!("[control]\ngroup = '{GROUP}'\n{control}\n"));
    Some(stage.start("--config DIR/config --port p1,type=sim"))
}

/// What Open vSwitch's client says when `user`, who is in these groups, calls a command: nothing, or why not.
fn call(world: &World, user: u32, groups: &[u32], method: &str) -> Result<(), String> {
    let groups: Vec<String> = groups.iter().map(u32::to_string).collect();
    let groups = if groups.is_empty() { "--clear-groups".into() } else { format!("--groups={}", groups.join(",")) };
    let mut process = Command::new("setpriv");
    process.args([&format!("--reuid={user}"), &format!("--regid={user}"), &groups]);
    process.args(["/usr/bin/ovs-appctl", "-t", &world.path("ctl"), method]);
    let Output { status, stderr, .. } = process.output().expect("setpriv is installed: util-linux is everywhere");
    if status.success() { Ok(()) } else { Err(String::from_utf8(stderr).unwrap()) }
}

#[test]
fn the_socket_is_for_root_and_the_members_of_its_group() {
    let Some(world) = world("read = ['*']") else { return };
    let meta = fs::metadata(world.path("ctl")).unwrap();
    assert_eq!((meta.mode() & 0o777, meta.uid(), meta.gid()), (0o660, 0, GROUP));
    let error = call(&world, STRANGER, &[], "version").unwrap_err();
    assert!(error.contains("cannot connect") && error.contains("Permission denied"), "{error}");
    assert_eq!(call(&world, STRANGER, &[GROUP], "version"), Ok(()));
}

#[test]
fn each_command_needs_its_access_which_users_and_groups_have() {
    let Some(world) = world(&format!("read = ['{READER}']\nwrite = ['@{WRITERS}']")) else { return };
    let refused = |user: u32, right: &str, method: &str| {
        let groups: &[u32] = if user == WRITER { &[GROUP, WRITERS] } else { &[GROUP] };
        let said = call(&world, user, groups, method).unwrap_err();
        assert!(said.starts_with(&format!("{method} needs {right} access, which user {user} does not have")), "{said}");
    };
    assert_eq!(call(&world, READER, &[GROUP], "dpctl/show"), Ok(()));
    refused(READER, "write", "dpctl/del-flows");
    refused(READER, "admin", "exit");
    assert_eq!(call(&world, WRITER, &[GROUP, WRITERS], "dpctl/show"), Ok(()));
    assert_eq!(call(&world, WRITER, &[GROUP, WRITERS], "dpctl/del-flows"), Ok(()));
    refused(WRITER, "admin", "exit");
    refused(STRANGER, "read", "version");
    let log = world.log();
    assert!(log.contains(&format!("refused: exit, to user {READER} (process ")), "{log}");
}

#[test]
fn a_reload_changes_who_may_do_what_for_those_who_are_connected_too() {
    let Some(world) = world(&format!("read = ['{READER}']")) else { return };
    assert_eq!(call(&world, READER, &[GROUP], "dpctl/show"), Ok(()));
    world.reload(&format!("[control]\ngroup = '{GROUP}'\nread = []\n"));
    assert!(call(&world, READER, &[GROUP], "dpctl/show").is_err());
    assert!(world.ctl(["dpctl/show"]).contains("port 1: p1"), "root goes on");
    // A user that is not there changes nothing.
    world.file("config", "[control]\nread = ['*', 'no such user']\n");
    world.send(Signal::HUP);
    world.wait_until("it is refused", || world.log().contains("control.read: there is no user \"no such user\""));
    assert!(call(&world, READER, &[GROUP], "dpctl/show").is_err());
}
