//! Bad input: at the start the daemon says one line and ends with code 1; later a command says one line, and nothing has changed.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use crate::world::{OFFLOADD, Stage, World};

#[test]
fn a_port_that_cannot_be_had_is_named_with_the_reason() {
    let stage = Stage::new();
    let refused = |spec: &str| stage.refused(&format!("--port ok,type=sim --port {spec}"));
    assert_eq!(
        refused("p1,type=carrier-pigeon"),
        "offloadd: port p1: unknown type 'carrier-pigeon' (known: packet, system, xsk, afxdp, tap, pcap, sim, dummy, dummy-pmd)"
    );
    let said = refused("nosuch0,type=packet");
    // Without root, the missing right is found out first.
    assert!(
        ["no interface has that name", "packet sockets need CAP_NET_RAW"]
            .contains(&said.strip_prefix("offloadd: port nosuch0: ").unwrap()),
        "{said}"
    );
    assert_eq!(refused("ok,type=sim"), "offloadd: port ok exists already");
    assert_eq!(refused("p2,type=sim,port_no=1"), "offloadd: port p2: number 1 is taken by ok");
    assert_eq!(
        refused("p2,type=sim,colour=red").split(" (of").next().unwrap(),
        "offloadd: port p2: unknown option 'colour'"
    );
    assert_eq!(refused("p2,type=sim,ring=0"), "offloadd: port p2: option ring=0: a number from 1 to 65536 is needed");
    assert_eq!(
        refused("p2,type=pcap,rx=DIR/none"),
        "offloadd: port p2: rx=DIR/none: No such file or directory (os error 2)"
    );
    stage.file("text", "this is no capture");
    assert_eq!(refused("p2,type=pcap,rx=DIR/text"), "offloadd: port p2: rx=DIR/text: neither a pcap nor a pcapng file");
    // A pcap header, and a record that is cut off.
    let header = [0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    fs::write(stage.path("cut"), header).unwrap();
    assert_eq!(
        refused("p2,type=pcap,rx=DIR/cut"),
        "offloadd: port p2: rx=DIR/cut: the file ends in the middle of a record, after frame 0"
    );
}

#[test]
fn rules_and_configuration_are_refused_by_line() {
    let stage = Stage::new();
    stage.file("rules", "# fine\npriority=1,actions=drop\n\npriority=2,tcp,tp_dst=http,actions=drop\n");
    let said = stage.refused("--rules DIR/rules");
    assert!(
        said.starts_with("offloadd: rules DIR/rules: line 4: \"http\" is not a number from 0 to 65535 at column"),
        "{said}"
    );
    stage.file("rules", "actions=output:nowhere");
    let said = stage.refused("--rules DIR/rules");
    assert!(said.starts_with("offloadd: rules DIR/rules: line 1: ") && said.contains("nowhere"), "{said}");
    assert_eq!(stage.refused("--rules DIR/none"), "offloadd: rules DIR/none: No such file or directory (os error 2)");

    for (config, said) in [
        ("[datapath]\nports = []\nflowlimit = 1", "DIR/config: line 3: unknown field `flowlimit`"),
        ("[datapath\n", "DIR/config: line 1: "),
        ("[datapath]\nflow-limit = 0", "DIR/config: datapath.flow-limit: 0 is not between 1 and 10000000"),
        ("[datapath]\nmax-idle = \"soon\"", "DIR/config: datapath.max-idle: \"soon\": "),
        ("[datapath]\nports = [\"p,type=dpdk\"]", "DIR/config: port p: unknown type 'dpdk'"),
    ] {
        stage.file("config", config);
        let refused = stage.refused("--config DIR/config");
        assert!(refused.strip_prefix("offloadd: ").unwrap().starts_with(said), "{config:?}: {refused}");
    }
    // The system's words once, not once for each cause.
    assert_eq!(stage.refused("--config DIR/none"), "offloadd: DIR/none: No such file or directory (os error 2)");
    let said = stage.refused("--log-file DIR/none/log");
    assert_eq!(said.matches("No such file or directory").count(), 1, "{said}");
}

#[test]
fn unknown_devices_and_options_are_refused_with_what_would_do() {
    let stage = Stage::new();
    for (device, said) in [
        ("asic", "asic"),
        (
            "sim,colour=red",
            "colour=red: no such option; known: preset, op-time, capacity, mark-bits, replace, level, without, ring",
        ),
        ("sim,preset=slow", "preset=slow: expected fw, tc, sws, hws or instant"),
        ("sim,mark-bits=40", "mark-bits=40: expected 8 to 32"),
    ] {
        let refused = stage.refused(&format!("--offload {device}"));
        assert!(refused.starts_with("offloadd: ") && refused.contains(said), "{refused}");
    }
    for usage in ["--bogus", "--duration soon"] {
        let (code, out, err) = stage.run(usage);
        assert_eq!((code, out.as_str()), (Some(2), ""));
        assert!(err.starts_with("error: ") && err.contains(usage.split(' ').next().unwrap()), "{err}");
    }
}

#[test]
fn a_second_daemon_leaves_the_first_alone() {
    let world = Stage::new().start("--port p1,type=sim --pidfile DIR/pid");
    let second = Stage::new();
    let (socket, pidfile) = (world.path("ctl"), world.path("pid"));
    assert_eq!(
        second.refused(&format!("--port p1,type=sim --unixctl {socket}")),
        format!("offloadd: another daemon answers on socket {socket:?}")
    );
    let said = second.refused(&format!("--unixctl DIR/ctl --pidfile {pidfile}"));
    assert!(said.contains(&format!("already running as process {}", world.pid())), "{said}");
    assert!(world.ctl(["dpctl/show"]).contains("port 1: p1"));

    second.file("file", "precious");
    let said = second.refused("--unixctl DIR/file");
    assert!(said.contains("DIR/file") && said.contains("socket"), "{said}");
    assert_eq!(fs::read_to_string(second.path("file")).unwrap(), "precious");
    assert!(second.refused("--unixctl DIR/no/ctl").contains("DIR/no/ctl"));
}

#[test]
fn without_permission_a_port_is_refused_by_name() {
    let stage = Stage::new();
    let said = if rustix::process::geteuid().is_root() {
        // A copy, because nobody may be kept from where the program lies.
        let program = stage.path("offloadd");
        fs::copy(OFFLOADD, &program).unwrap();
        fs::set_permissions(stage.dir(), Permissions::from_mode(0o777)).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", &program]);
        command.args(["--unixctl", &stage.path("ctl"), "--duration", "1m", "--port", "lo,type=packet"]);
        match command.stdin(Stdio::null()).env("RUST_LOG", "off").output() {
            Ok(output) => {
                assert_eq!(output.status.code(), Some(1));
                String::from_utf8(output.stderr).unwrap()
            }
            Err(_) => return println!("skipped: setpriv is not installed (Debian: util-linux)"),
        }
    } else {
        stage.refused("--port lo,type=packet")
    };
    assert!(said.starts_with("offloadd: port lo: ") && said.contains("CAP_NET_RAW"), "{said}");
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    assert!(!stage.dir().join("ctl").exists());
}

/// Everything that a refused command must leave as it is.
fn state(world: &World) -> [String; 3] {
    let saved = world.path("saved");
    world.ctl(["rule/save", &saved]);
    [world.ctl(["dpctl/dump-flows", "-m"]), world.ctl(["dpctl/show"]), fs::read_to_string(saved).unwrap()]
}

#[test]
fn a_refused_command_says_one_line_and_changes_nothing() {
    let world = Stage::new().start("--port p1,type=sim --port p2,type=sim --offload sim");
    world.ctl(["rule/add", "priority=7,tcp,tp_dst=80,actions=output:2"]);
    world.ctl(["dpctl/add-flow", "in_port(1),eth_type(0x0806)", "2"]);
    world.wait_until("the flow is offloaded", || world.flows()[0]["mark"].is_u64());
    let before = state(&world);

    let cases: [(&[&str], &str); 24] = [
        (&["dpctl/add-flow", "in_port(1),bogus(3)", "2"], "parsing flow key (unknown key \"bogus\" at column 12)"),
        (&["dpctl/add-flow", "in_port(1),eth_type(0x0800),ipv4(dst=10.0.0.300)", "2"], "parsing flow key ("),
        (
            &["dpctl/add-flow", "in_port(1)", "2,foo"],
            "parsing actions (unknown action \"foo\", and no port of that name at column 3)",
        ),
        (&["dpctl/add-flow", "eth_type(0x0800)", "2"], "flow: in_port is not an exact match"),
        (&["dpctl/add-flow", "in_port(1/0xff)", "2"], "flow: in_port is not an exact match"),
        (&["dpctl/add-flow", "in_port(1),eth_type(0x0806)", "2"], "updating flow table (File exists)"),
        (&["dpctl/add-flow", "-x", "in_port(1)", "2"], "unknown option \"-x\"; accepted: "),
        (&["dpctl/add-flow", "other@dp", "in_port(1)", "2"], "no datapath \"other@dp\"; there is netdev@offloadd"),
        (&["dpctl/mod-flow", "in_port(1)", "2"], "updating flow table (No such file or directory)"),
        (&["dpctl/mod-flow", "in_port(1),eth_type(0x0806)", "nonsense"], "parsing actions ("),
        (
            &["dpctl/del-flow", "in_port(1)"],
            "deleting flow (No such file or directory). Perhaps you need to specify a UFID?",
        ),
        (&["dpctl/get-flow", "ufid:nonsense"], "parsing flow key ("),
        (&["dpctl/add-if", "p3,type=carrier-pigeon"], "port p3: unknown type 'carrier-pigeon'"),
        (&["dpctl/add-if", "nosuch0"], "port nosuch0: "),
        (&["dpctl/add-if", "p1,type=sim"], "port p1 exists already"),
        (&["dpctl/add-if", "p3,type=pcap,rx=/nowhere"], "port p3: rx=/nowhere: No such file or directory"),
        (&["dpctl/del-if", "p3"], "no port \"p3\" in netdev@offloadd (No such device)"),
        (
            &["rule/add", "priority=9,actions=drop", "priority=1,tcp,tp_dst=99999,actions=drop"],
            "\"99999\" is not a number from 0 to 65535",
        ),
        (&["rule/add", "priority=1,tp_dst=80,actions=drop"], "tp_dst"),
        (&["rule/add", "priority=1,actions=explode"], "\"explode\" is not an action"),
        (&["rule/del", "nonsense=1"], "\"nonsense"),
        (&["rule/load", "/nowhere"], "/nowhere: No such file or directory"),
        (&["netdev-dummy/receive", "p1", "00", "xyz"], "neither hex bytes nor a flow: "),
        (&["vlog/set", "nonsense:dbg:more"], "no destination, level, or module \""),
    ];
    for (words, said) in cases {
        let error = world.refusal(words);
        assert!(
            error.contains(said) && (error.starts_with(said) || words[0].starts_with("rule")),
            "{words:?}: {error}"
        );
        assert!(words[0] != "rule/add" || error.contains(" at column "), "{words:?}: {error}");
    }
    assert_eq!(state(&world), before);

    world.file("rules", "actions=drop\nactions=\n");
    assert_eq!(
        world.ctl_err(["rule/load", &world.path("rules")]).split(": ").take(2).collect::<Vec<_>>(),
        ["DIR/rules", "line 2"]
    );
    assert_eq!(state(&world), before);
    assert_eq!(world.perf("rx_packets"), 0, "of several packets none arrives when one is nonsense");
}

#[test]
fn what_a_user_wrote_comes_back_on_one_line() {
    let world = Stage::new().start("--port p1,type=sim");
    for words in [vec!["dpctl/add-if", "q\nr,type=sim"], vec!["x\n\u{1b}[31my"], vec!["vlog/set", "a\nb"]] {
        let said = world.refusal(&words);
        assert!(!said.trim_end().contains(['\n', '\u{1b}']), "{said:?}");
    }
}
