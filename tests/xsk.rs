//! `xsk` ports and the XDP device against the real kernel: AF_XDP sockets and XDP programs at veth pairs in network namespaces.
//!
//! ```text
//!   host 1: eth0 ──── p1 ─ [ offloadd, XDP programs at p1 and p2 ] ─ p2 ──── eth0 :host 2
//! ```
//!
//! Without root the tests say that they are skipped; without a tool, so do the parts that need it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use offloadd::flow::text::parse_flow;
use offloadd::packet::Packet;
use offloadd::packet::compose::compose;
use offloadd::port::Sent;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, recv, socket_with};
use rustix::process::Signal;

use crate::capture;
use crate::linear;
use crate::namespaces::{LIMIT, Program, Switch, has, host, iperf3, number, pings_pass, plug, until};
use crate::netns::Namespace;
use crate::ports_netns::{Open, bytes, frame};

/// Drivers and the kernel's own place for programs, and with each of them one of the ways out.
const MODES: [&str; 2] = ["native,send=batch", "generic,send=ring"];

/// What flows are offloaded to.
const DEVICES: [&str; 3] = ["none", "xdp", "xdp,level=full"];

/// Those of them that the kernel is new enough for.
fn devices() -> &'static [&'static str] {
    if forwards() { &DEVICES } else { &DEVICES[..2] }
}

/// Whether the kernel says which drivers take redirected frames.
fn forwards() -> bool {
    is_linux((6, 3), "frames that the device forwards")
}

impl Namespace {
    /// `COMMAND ARGUMENTS` in it, which must do.
    fn run(&self, command: &str) {
        let mut words = command.split(' ');
        let mut command = Command::new(words.next().unwrap());
        let output = self.enter(|| command.args(words).output().unwrap());
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Has `interface`, at the other end of an `xsk` port, finish its checksums and segments itself, and take frames that a program redirects.
    fn prepare(&self, interface: &str) {
        self.run(&format!("ethtool -K {interface} tx off gso off tso off gro on"));
    }
}

/// A switch of `n` hosts with `xsk` ports, of one `mode` and with one `device`.
fn switched(n: u8, mode: &str, device: &str) -> Option<(Switch, Vec<Namespace>)> {
    let place = Namespace::new()?;
    if !has("ethtool") {
        return None;
    }
    let hosts: Vec<Namespace> = (1..=n).map(|i| host(&place, i)).collect();
    hosts.iter().for_each(|host| host.prepare("eth0"));
    let ports: Vec<String> = (1..=n).map(|i| format!("p{i},type=xsk,port_no={i},xdp-mode={mode}")).collect();
    let ports: Vec<&str> = ports.iter().map(String::as_str).collect();
    Some((Switch::start_with(place, &["--offload", device], &ports), hosts))
}

/// Packets that the device did `what` with, at all ports.
fn by_device(switch: &Switch, what: &str) -> u64 {
    let text = switch.ask("dpif/offload/show");
    text.lines().filter_map(|line| line.trim().strip_prefix(what)).map(|rest| number(rest, ":")).sum()
}

/// Packets that pollers received.
fn polled(switch: &Switch) -> u64 {
    switch.number("dpif-netdev/pmd-perf-show", "Rx packets:")
}

#[test]
fn ping_tcp_and_udp_pass_in_every_mode_and_at_every_level() {
    for mode in MODES {
        for &device in devices() {
            let Some((switch, hosts)) = switched(2, mode, device) else { return };
            let [a, b] = &hosts[..] else { unreachable!() };
            let shown = switch.ask("dpctl/show");
            for option in format!("xdp-mode={mode}").split(',') {
                assert!(shown.contains(option), "{shown}");
            }
            if !(has("ping") && has("iperf3")) {
                return;
            }
            pings_pass(a, "10.1.0.2", 50);
            pings_pass(b, "10.1.0.1", 50);
            let mut mbits = Vec::new();
            for direction in ["", "--reverse"] {
                let end = iperf3(a, b, direction);
                mbits.push(end["sum_received"]["bits_per_second"].as_f64().unwrap() / 1e6);
            }
            eprintln!("iperf3 TCP, {mode}, {device}: {mbits:.0?} Mbit/s");
            let end = iperf3(a, b, "--udp --bitrate 10M --length 1000");
            let (sent, lost) = (end["sum"]["packets"].as_u64().unwrap(), end["sum"]["lost_packets"].as_u64().unwrap());
            assert!(sent > 0 && lost * 50 <= sent, "{lost} of {sent} UDP datagrams lost, {mode}, {device}");

            let (all, hits, full) = (polled(&switch), switch.mark_hits(), by_device(&switch, "rx_offload_full"));
            match device {
                "none" => assert_eq!((hits, full), (0, 0)),
                // All but the first packets of a flow, those before its rule was in the device.
                "xdp" => assert!(all > 1_000 && hits * 100 >= all * 99 && full == 0, "{hits} of {all} marked, {full}"),
                _ => assert!(full > 1_000 && all * 20 <= full, "pollers saw {all} packets, and {full} were forwarded"),
            }
        }
    }
}

#[test]
fn every_packet_is_in_one_count_and_flows_count_what_the_device_forwards() {
    for device in ["xdp", "xdp,level=full"] {
        let Some((switch, hosts)) = switched(2, "native", device) else { return };
        if !has("ping") {
            return;
        }
        pings_pass(&hosts[0], "10.1.0.2", 200);
        let counted = |what: &str| by_device(&switch, what);
        let received = || counted("rx_offload_partial") + counted("rx_offload_full") + counted("rx_offload_miss");
        assert!(received() >= 400);
        assert_eq!(counted("rx_offload_partial") + counted("rx_offload_miss"), polled(&switch));
        // Packets of flows, those that made them among them.
        let in_flows = || {
            let flows = switch.ask("dpctl/dump-flows");
            flows.lines().filter(|line| line.contains("packets:")).map(|line| number(line, "packets:")).sum::<u64>()
        };
        let misses = || switch.number("dpif-netdev/pmd-perf-show", "Upcalls:");
        // The device's counts are read once a second.
        until("every packet is a flow's", || in_flows() + misses() == received());
    }
}

/// Whether the kernel is of this version, or a newer one; if not, says what is left out.
fn is_linux(version: (u32, u32), what: &str) -> bool {
    let system = rustix::system::uname();
    let release = system.release().to_string_lossy();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse().ok());
    let is_it = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= version;
    if !is_it {
        eprintln!("skipped: {what} need Linux {}.{}, this is {release}", version.0, version.1);
    }
    is_it
}

#[test]
fn jumbo_frames_pass_in_several_pieces() {
    if !is_linux((6, 6), "frames longer than a chunk") {
        return;
    }
    for mode in MODES {
        for &device in devices() {
            let Some(place) = Namespace::new() else { return };
            if !(has("ethtool") && has("ping")) {
                return;
            }
            let hosts: Vec<Namespace> = (1..=2).map(|i| host(&place, i)).collect();
            for (i, host) in hosts.iter().enumerate() {
                host.prepare("eth0");
                host.ip("link set eth0 mtu 9000");
                place.ip(&format!("link set p{} mtu 9000", i + 1));
            }
            let ports = [1, 2].map(|i| format!("p{i},type=xsk,xdp-mode={mode}"));
            let switch = Switch::start_with(place, &["--offload", device], &ports.each_ref().map(String::as_str));
            for size in [3_000, 3_800, 3_850, 8_000, 8_972] {
                pings_pass(&hosts[0], &format!("10.1.0.2 -M do -s {size}"), 20);
            }
            if device == "xdp" {
                assert!(switch.mark_hits() > 100, "the mark stands before the first piece");
            }
        }
    }
}

#[test]
fn two_queues_are_polled_by_two_pollers() {
    let Some(place) = Namespace::new() else { return };
    if !(has("ethtool") && has("iperf3")) {
        return;
    }
    let hosts: Vec<Namespace> = (1..=2).map(|_| Namespace::new().unwrap()).collect();
    for (i, host) in hosts.iter().enumerate() {
        let (i, name) = (i + 1, &host.name);
        let queues = "numrxqueues 2 numtxqueues 2";
        place.ip(&format!("link add p{i} {queues} type veth peer name eth0 netns {name} {queues}"));
        place.ip(&format!("link set p{i} up"));
        place.run(&format!("ethtool -L p{i} rx 2 tx 2"));
        host.run("ethtool -L eth0 rx 2 tx 2");
        host.ip("link set eth0 up");
        host.ip(&format!("addr add 10.1.0.{i}/24 dev eth0"));
        host.prepare("eth0");
    }
    let config = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(config.path(), "[datapath]\npollers = 2\n").unwrap();
    let arguments = ["--config", config.path().to_str().unwrap(), "--offload", "xdp"];
    let switch = Switch::start_with(place, &arguments, &["p1,type=xsk", "p2,type=xsk"]);
    assert!(switch.ask("dpctl/show").contains("n_rxq=2"));
    let end = iperf3(&hosts[0], &hosts[1], "--parallel 8");
    assert!(end["sum_received"]["bits_per_second"].as_f64().unwrap() > 0.0);
    let queues = switch.ask("dpif-netdev/pmd-rxq-show");
    assert_eq!(queues.matches("queue-id:  1").count(), 2, "{queues}");
    let pollers = switch.ask("dpif-netdev/pmd-perf-show");
    let received: Vec<u64> = pollers.split("poller:").skip(1).map(|text| number(text, "Rx packets:")).collect();
    assert!(received.len() == 2 && received.iter().all(|packets| *packets > 100), "{received:?}");
}

#[test]
fn pollers_may_come_and_go_under_traffic() {
    let Some(place) = Namespace::new() else { return };
    if !(has("ethtool") && has("ping")) {
        return;
    }
    let hosts: Vec<Namespace> = (1..=2).map(|i| host(&place, i)).collect();
    hosts.iter().for_each(|host| host.prepare("eth0"));
    let config = tempfile::NamedTempFile::new().unwrap();
    let pollers = |n: u32| std::fs::write(config.path(), format!("[datapath]\npollers = {n}\n")).unwrap();
    pollers(1);
    let arguments = ["--config", config.path().to_str().unwrap(), "--offload", "xdp"];
    let switch = Switch::start_with(place, &arguments, &["p1,type=xsk", "p2,type=xsk"]);
    for n in [3, 1, 2] {
        pings_pass(&hosts[0], "10.1.0.2", 20);
        pollers(n);
        switch.ask("config/reload");
        until("there are as many pollers", || {
            switch.ask("dpif-netdev/pmd-perf-show").matches("poller:").count() == n as usize
        });
    }
    pings_pass(&hosts[1], "10.1.0.1", 20);
}

#[test]
fn a_port_follows_its_interfaces_number_of_queues_unless_it_has_a_number_of_its_own() {
    if !(has("ethtool") && has("ping")) {
        return;
    }
    for (device, counter) in [("xdp", "rx_offload_partial   :"), ("xdp,level=full", "rx_offload_full      :")] {
        if !devices().contains(&device) {
            continue;
        }
        let Some(place) = Namespace::new() else { return };
        let hosts: Vec<Namespace> = (1..=2).map(|i| host(&place, i)).collect();
        hosts.iter().for_each(|host| host.prepare("eth0"));
        let switch = Switch::start_with(place, &["--offload", device], &["p1,type=xsk", "p2,type=xsk,queues=1"]);
        pings_pass(&hosts[0], "10.1.0.2", 20);
        switch.place.run("ethtool -L p2 rx 2 tx 2");
        until("it is told", || {
            switch.daemon.err().contains("p2: its receive queues have become 2, of which it serves 1")
        });
        switch.place.run("ethtool -L p1 rx 2 tx 2");
        let polls = |port: &str, queue: u32| {
            let shown = switch.ask("dpif-netdev/pmd-rxq-show");
            shown.lines().any(|line| line.contains(port) && line.contains(&format!("queue-id:  {queue}")))
        };
        until("both queues are polled", || polls("p1", 0) && polls("p1", 1));
        assert!(polls("p2", 0) && !polls("p2", 1), "{}", switch.ask("dpif-netdev/pmd-rxq-show"));
        // In the device again, too.
        let by_p1 = || {
            let shown = switch.ask("dpif/offload/show");
            number(&shown[shown.find("- p1:").expect("p1 is at the device")..], counter)
        };
        let before = by_p1();
        pings_pass(&hosts[0], "10.1.0.2", 20);
        pings_pass(&hosts[1], "10.1.0.1", 20);
        until("packets from p1 are the device's", || by_p1() > before);
    }
}

#[test]
fn packets_that_the_device_does_not_see_have_a_reason_and_a_port_that_takes_frames_later_is_noticed() {
    if !forwards() {
        return;
    }
    let Some(place) = Namespace::new() else { return };
    if !(has("ethtool") && has("ping")) {
        return;
    }
    let hosts: Vec<Namespace> = (1..=3).map(|i| host(&place, i)).collect();
    // Without GRO and without a program, a veth takes no frames that are redirected to its peer.
    hosts[..2].iter().for_each(|host| host.run("ethtool -K eth0 tx off gso off tso off gro off"));
    let ports = ["p1,type=xsk,port_no=1", "p2,type=xsk,port_no=2", "p3,type=packet,port_no=3"];
    let switch = Switch::start_with(place, &["--offload", "xdp,level=full"], &ports);
    pings_pass(&hosts[0], "10.1.0.2", 20);
    pings_pass(&hosts[2], "10.1.0.1", 20);
    let said = |text: &str| switch.ask("offload/explain --all").contains(text);
    until("what is not seen is told", || said("does not see packets of port 3"));
    until("what cannot be sent is told", || said("cannot send to port 2"));
    assert_eq!(by_device(&switch, "rx_offload_full"), 0);
    hosts[..2].iter().for_each(|host| host.run("ethtool -K eth0 gro on"));
    until("the device forwards", || {
        pings_pass(&hosts[0], "10.1.0.2", 5);
        by_device(&switch, "rx_offload_full") > 10
    });
    hosts[..2].iter().for_each(|host| host.run("ethtool -K eth0 gro off"));
    until("it is told again", || {
        pings_pass(&hosts[0], "10.1.0.2", 5);
        said("cannot send to port 2")
    });
}

/// All frames that wait at a port.
fn drain(port: &mut Open, into: &mut Vec<Vec<u8>>) {
    let mut packets: Vec<Packet> = Vec::new();
    for rx in &mut port.rx {
        while rx.receive(Instant::now(), &mut port.pool, &mut packets).unwrap() > 0 {
            into.append(&mut bytes(&packets));
            port.pool.give_all(&mut packets);
        }
    }
}

/// The frame of so many bytes that a flow in ODP syntax describes.
fn made(flow: &str, len: usize) -> Vec<u8> {
    compose(parse_flow(flow, &()).unwrap().matching.key(), len)
}

/// The first expected frame of a port that did not come, in words.
fn first_missing(expected: &BTreeMap<u32, Vec<Vec<u8>>>, left: &BTreeMap<u32, Vec<Vec<u8>>>) -> String {
    let absent = |port: &u32, frame: &&Vec<u8>| !left.get(port).is_some_and(|frames| frames.contains(frame));
    let missing =
        expected.iter().find_map(|(port, frames)| Some((port, frames.iter().find(|frame| absent(port, frame))?)));
    format!("missing at port and frame: {missing:02x?}")
}

#[test]
fn a_capture_leaves_byte_for_byte_as_the_rules_say_in_every_mode_and_at_every_level() {
    let frames: Vec<Vec<u8>> = capture::generate(5, 2_000).into_iter().map(|frame| frame.bytes).collect();
    let rules = linear::rules();
    let rules_file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(rules_file.path(), linear::text()).unwrap();
    for (mode, device) in MODES.into_iter().flat_map(|mode| devices().iter().map(move |device| (mode, *device))) {
        let Some(place) = Namespace::new() else { return };
        let others = Namespace::new().unwrap();
        let ports: Vec<String> =
            linear::PORTS.iter().map(|i| format!("p{i},type=xsk,port_no={i},xdp-mode={mode}")).collect();
        for i in linear::PORTS {
            place.ip(&format!("link add p{i} type veth peer name q{i} netns {}", others.name));
            // Three tags are more than the kernel allows beyond the MTU.
            place.ip(&format!("link set p{i} mtu 1508 up"));
            others.ip(&format!("link set q{i} mtu 1508 up"));
        }
        // With a program at the other ends, redirected frames are taken there, and come as they were sent.
        let mut ends: Vec<Open> =
            linear::PORTS.iter().map(|i| others.open(&format!("q{i},type=xsk,send=ring"))).collect();
        let arguments = ["--offload", device, "--rules", rules_file.path().to_str().unwrap()];
        let switch = Switch::start_with(place, &arguments, &ports.iter().map(String::as_str).collect::<Vec<_>>());

        let mut left: BTreeMap<u32, Vec<Vec<u8>>> = BTreeMap::new();
        let mut expected = left.clone();
        for some in frames.chunks(16) {
            for frame in some {
                for (port, bytes) in linear::evaluate(&rules, 1, frame) {
                    expected.entry(port).or_default().push(bytes);
                }
            }
            assert_eq!(ends[0].send(some).packets, some.len() as u64);
            let end = Instant::now() + LIMIT;
            while left.values().map(Vec::len).sum::<usize>() < expected.values().map(Vec::len).sum() {
                assert!(Instant::now() < end, "{mode}, {device}: {}", first_missing(&expected, &left));
                for (port, open) in linear::PORTS.into_iter().zip(&mut ends) {
                    drain(open, left.entry(port).or_default());
                }
            }
        }
        left.retain(|_, frames| !frames.is_empty());
        for (port, mut want) in expected {
            let mut got = left.remove(&port).unwrap_or_default();
            // What the device forwards may overtake what waits for the poller, when a flow's rule comes.
            want.sort();
            got.sort();
            let differs = want.iter().zip(&got).find(|(want, got)| want != got);
            assert!(want == got, "{mode}, {device}, port {port}: {differs:02x?}");
        }
        assert_eq!(left, BTreeMap::new());
        let (hits, full) = (switch.mark_hits(), by_device(&switch, "rx_offload_full"));
        eprintln!("{mode}, {device}: {hits} marked, {full} forwarded of {}", frames.len());
        match device {
            "none" => assert_eq!((hits, full), (0, 0)),
            "xdp" => assert!(hits > 500),
            _ => assert!(full > 200 && hits > 0),
        }
    }
}

#[test]
fn frames_pass_between_xsk_ports_byte_for_byte_and_their_memory_is_used_again() {
    let Some(world) = Namespace::new() else { return };
    world.veth("va", "vb");
    for round in 0..20 {
        let (mut a, mut b) = (world.open("va,type=xsk,ring=64,send=ring"), world.open("vb,type=xsk,ring=64"));
        for _ in 0..10 {
            let frames: Vec<Vec<u8>> = (0..50).map(|i| frame(60 + i * 29, &[])).collect();
            assert_eq!(a.send(&frames).packets, 50, "round {round}");
            assert_eq!(bytes(&b.receive(50)), frames);
            std::mem::swap(&mut a, &mut b);
        }
        let umem = a.port.details().into_iter().find(|(name, _)| *name == "umem").unwrap().1;
        assert!(umem.ends_with(" 0 lost"), "{umem}");
        // Others may have ports of the same memory, but not all of it.
        assert!(number(&umem, "KiB,") > 1_000, "{umem}");
    }
}

#[test]
fn memory_of_frames_that_never_left_comes_back_with_the_queue_or_when_the_interface_goes() {
    let Some((switch, hosts)) = switched(2, "native,send=ring", "none") else { return };
    let free = || number(&switch.ask("dpctl/show"), "KiB,");
    let mut sender = hosts[0].open("eth0,type=packet");
    let frames: Vec<Vec<u8>> = (0..1_000).map(|_| frame(60, &[])).collect();
    let before = free();
    for goes in [false, true, false, true] {
        switch.place.ip("link set p2 down");
        // They wait for the interface to come up, and keep their memory.
        until("frames wait", || {
            sender.send(&frames);
            free() + 1_000 < before
        });
        if goes {
            switch.place.ip("link del p2");
            until("the port is gone", || !switch.ask("dpctl/show").contains("port 2: p2"));
            plug(&switch.place, &hosts[1], 2);
        } else {
            switch.ask("dpctl/del-if p2");
            switch.place.ip("link set p2 up");
        }
        switch.ask("dpctl/add-if p2,type=xsk,port_no=2,xdp-mode=native,send=ring");
        // But for what the poller keeps for the next frames.
        until("their memory is back", || free() + 1_500 > before);
    }
    assert!(switch.ask("dpctl/show").contains(" 0 lost"));
}

#[test]
fn a_frame_too_long_is_refused_alone_and_a_missing_place_is_counted() {
    let Some(world) = Namespace::new() else { return };
    world.veth("va", "vb");
    let (mut a, mut b) = (world.open("va,type=xsk,ring=64,send=ring"), world.open("vb,type=xsk,ring=64"));
    for _ in 0..2 {
        let sent = a.send(&[frame(60, &[]), frame(70_000, &[]), frame(61, &[])]);
        assert_eq!((sent.packets, sent.failed), (2, 1));
        assert_eq!(bytes(&b.receive(2)), [frame(60, &[]), frame(61, &[])]);
        std::mem::swap(&mut a, &mut b);
    }
    let frames: Vec<Vec<u8>> = (0..50).map(|i| frame(60 + i, &[])).collect();
    for _ in 0..3 {
        assert_eq!(a.send(&frames).packets, 50);
    }
    assert_eq!(bytes(&b.receive(64)), [&frames[..], &frames[..14]].concat());
    until("what found no place is counted", || b.rx[0].missed() == 86);
}

#[test]
fn what_an_xsk_port_needs_is_named() {
    let Some(world) = Namespace::new() else { return };
    world.veth("va", "vb");
    let error = |spec: &str| world.try_open(spec).err().unwrap().to_string();
    assert_eq!(error("va,type=xsk,queues=3"), "port va: option queues=3: the interface has 1 receive queues");
    let refused = error("va,type=xsk,xdp-mode=native-with-zerocopy");
    assert!(refused.starts_with("port va: an AF_XDP socket for queue 0: the driver has no zero-copy"), "{refused}");
    let _first = world.open("va,type=xsk");
    let refused = error("va,type=xsk");
    assert!(refused.starts_with("port va: XDP program ") && refused.ends_with("(force=yes displaces it)"), "{refused}");
}

#[test]
fn the_interface_takes_every_frame_while_there_is_a_port_unless_it_is_not_to() {
    let Some(world) = Namespace::new() else { return };
    world.veth("va", "vb");
    let takers = || {
        let shown = world.enter(|| Command::new("ip").args(["-d", "link", "show", "va"]).output().unwrap());
        number(&String::from_utf8_lossy(&shown.stdout), "promiscuity")
    };
    for (promisc, expected) in [("", 1), (",promisc=no", 0)] {
        let port = world.open(&format!("va,type=xsk{promisc}"));
        assert_eq!(takers(), expected);
        drop(port);
        until("it is as it was", || takers() == 0);
    }
}

#[test]
fn a_program_that_was_displaced_or_detached_is_noticed() {
    let Some((switch, hosts)) = switched(2, "native", "xdp") else { return };
    if !(has("bpftool") && has("ping")) {
        return;
    }
    pings_pass(&hosts[0], "10.1.0.2", 20);
    // Somebody takes the program away from the first port.
    let program = {
        let shown = switch.place.enter(|| Command::new("ip").args(["link", "show", "p1"]).output().unwrap());
        number(&String::from_utf8_lossy(&shown.stdout), "prog/xdp id")
    };
    let links = Command::new("bpftool").args(["--json", "link", "list"]).output().unwrap();
    let links: serde_json::Value = serde_json::from_slice(&links.stdout).unwrap();
    let mine = |link: &&serde_json::Value| link["type"] == "xdp" && link["prog_id"] == program;
    // Both ports run the same program.
    let ids: Vec<u64> =
        links.as_array().unwrap().iter().filter(mine).map(|link| link["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), 2, "{links}");
    for id in ids {
        let done = Command::new("bpftool").args(["link", "detach", "id", &id.to_string()]).status().unwrap();
        assert!(done.success());
    }
    until("it is told", || {
        switch.daemon.err().matches("somebody detached its XDP program; it is attached again").count() == 2
    });
    let hits = switch.mark_hits();
    pings_pass(&hosts[0], "10.1.0.2", 20);
    assert!(switch.mark_hits() > hits, "marks come again");
}

#[test]
fn an_interface_removed_under_a_port_disturbs_no_other_and_may_come_back() {
    for &device in devices() {
        let Some((switch, hosts)) = switched(3, "native", device) else { return };
        if !has("ping") {
            return;
        }
        let [a, _, c] = &hosts[..] else { unreachable!() };
        pings_pass(a, "10.1.0.2", 10);
        pings_pass(c, "10.1.0.1", 10);
        switch.place.ip("link del p3");
        until("the port is gone", || !switch.ask("dpctl/show").contains("port 3: p3"));
        assert!(switch.daemon.err().contains("p3: interface"), "{}", switch.daemon.err());
        pings_pass(a, "10.1.0.2", 10);
        plug(&switch.place, c, 3);
        c.prepare("eth0");
        switch.ask("dpctl/add-if p3,type=xsk,port_no=3,xdp-mode=native");
        pings_pass(c, "10.1.0.1", 10);
    }
}

/// What the kernel keeps for a process, of what `bpftool` knows: kind and id.
fn kept(pid: u32) -> BTreeSet<(&'static str, u64)> {
    let files = std::fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap();
    let texts = files.filter_map(|file| std::fs::read_to_string(file.unwrap().path()).ok());
    let ids = texts.flat_map(|text| {
        let id = |line: &str| match line.split_once(":\t")? {
            ("prog_id", id) => Some(("prog", id.parse().unwrap())),
            ("map_id", id) => Some(("map", id.parse().unwrap())),
            ("link_id", id) => Some(("link", id.parse().unwrap())),
            _ => None,
        };
        text.lines().filter_map(id).collect::<Vec<_>>()
    });
    ids.collect()
}

fn there_is(kind: &str, id: u64) -> bool {
    // Its own status does not tell: that of version 7.8 is not 0 though a link was shown.
    !Command::new("bpftool").args([kind, "show", "id", &id.to_string()]).output().unwrap().stdout.is_empty()
}

#[test]
fn a_daemon_that_is_killed_leaves_nothing_and_the_next_one_starts() {
    let Some((mut switch, hosts)) = switched(2, "native", "xdp,level=full") else { return };
    if !(has("bpftool") && has("ping")) {
        return;
    }
    pings_pass(&hosts[0], "10.1.0.2", 20);
    let kept = kept(switch.daemon.pid());
    for kind in ["prog", "map", "link"] {
        assert!(kept.iter().any(|(of, id)| *of == kind && there_is(kind, *id)), "no {kind} in {kept:?}");
    }
    switch.daemon.signal(Signal::KILL);
    switch.daemon.end();
    until("nothing is left of its programs, maps and links", || !kept.iter().any(|(kind, id)| there_is(kind, *id)));
    let attached = |place: &Namespace| {
        let shown = place.enter(|| Command::new("ip").args(["link", "show"]).output().unwrap());
        String::from_utf8_lossy(&shown.stdout).contains("xdp")
    };
    until("the kernel has detached its programs", || !attached(&switch.place));
    let Switch { place, .. } = switch;
    let ports = ["p1,type=xsk,port_no=1", "p2,type=xsk,port_no=2"];
    let next = Switch::start_with(place, &["--offload", "xdp,level=full"], &ports);
    pings_pass(&hosts[0], "10.1.0.2", 20);
    assert!(!forwards() || by_device(&next, "rx_offload_full") > 0);
}

#[test]
fn a_full_map_refuses_with_a_reason_and_packets_pass_all_the_same() {
    let Some(place) = Namespace::new() else { return };
    if !(has("ethtool") && has("ping")) {
        return;
    }
    let hosts: Vec<Namespace> = (1..=2).map(|i| host(&place, i)).collect();
    hosts.iter().for_each(|host| host.prepare("eth0"));
    let ports = ["p1,type=xsk", "p2,type=xsk"];
    let switch = Switch::start_with(place, &["--offload", "xdp,rules=2"], &ports);
    for i in 1..=5 {
        hosts[0].ip(&format!("addr add 10.1.0.{}/24 dev eth0", 10 + i));
    }
    // Each pair of addresses has flows of its own, for ARP as for IPv4 two.
    let mut rules = String::new();
    for table in ["ip,nw_src=10.1.0.1", "ip,nw_src=10.1.0.2", "arp"] {
        rules += &format!("priority=10,{table},actions=normal\n");
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), rules).unwrap();
    switch.ask(&format!("rule/load {}", file.path().display()));
    pings_pass(&hosts[0], "10.1.0.2 -I 10.1.0.1", 20);
    until("some flow has no room", || {
        pings_pass(&hosts[0], "10.1.0.2 -I 10.1.0.1", 5);
        switch.ask("dpif/offload-show").contains("no room in the device")
    });
    assert_eq!(switch.number("dpif/offload-show", "rules in use:"), 2);
}

#[test]
fn frames_of_any_type_and_length_leave_as_they_are_and_in_order_either_way() {
    let Some(world) = Namespace::new() else { return };
    world.veth("va", "vb");
    // Ethernet types, of which some say what does not follow, and lengths in their place.
    let types: [[u8; 2]; 8] = [[8, 0], [0x86, 0xdd], [0x81, 0], [8, 6], [0x88, 0xb5], [0, 40], [0, 0], [6, 0]];
    let lengths = (14..70).chain([1_513, 1_514]);
    let frames = lengths.flat_map(|len| {
        types.map(|kind| {
            let mut frame: Vec<u8> = (0..len).map(|i| (0x47 + i) as u8).collect();
            frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
            frame[12..14].copy_from_slice(&kind);
            frame
        })
    });
    // All of a type one after the other, and no two.
    let mixed: Vec<Vec<u8>> = frames.collect();
    let sorted: Vec<Vec<u8>> =
        types.iter().flat_map(|kind| mixed.iter().filter(|frame| frame[12..14] == *kind)).cloned().collect();
    for way in ["batch", "ring"] {
        let (mut a, mut b) = (world.open(&format!("va,type=xsk,send={way}")), world.open("vb,type=xsk"));
        assert!(a.port.details().contains(&("send", way.to_owned())));
        for frames in [&mixed, &sorted] {
            for some in frames.chunks(50) {
                let bytes = some.iter().map(|frame| frame.len() as u64).sum();
                assert_eq!(a.send(some), Sent { packets: some.len() as u64, bytes, ..Sent::default() }, "{way}");
                let mut came = BTreeMap::new();
                until("they have come", || {
                    drain(&mut b, came.entry(0).or_default());
                    came[&0].len() >= some.len()
                });
                assert_eq!(came[&0], some, "{way}");
            }
        }
    }
}

#[test]
fn what_becomes_of_frames_sent_in_a_batch_is_counted() {
    let Some(world) = Namespace::new() else { return };
    world.veth("va", "vb");
    let frames: Vec<Vec<u8>> = (0..40).map(|_| frame(60, &[])).collect();
    let (mut a, _b) = (world.open("va,type=xsk,send=batch"), world.open("vb,type=xsk"));
    let sent = |packets, failed| Sent { packets, bytes: packets * 60, failed, full: 0 };
    assert_eq!(a.send(&frames), sent(40, 0));
    world.ip("link set va down");
    assert_eq!(a.send(&frames), Sent { full: 40, ..Sent::default() });
    world.ip("link set va up");
    assert_eq!(a.send(&frames), sent(40, 0));
    // Longer than the other end takes.
    assert_eq!(a.send(&[frame(2_000, &[]), frame(60, &[])]), Sent { full: 1, ..sent(1, 0) });
    world.ip("link del va");
    assert_eq!(a.send(&frames), sent(0, 40));
}

#[test]
fn a_batch_goes_nowhere_from_another_namespace_than_its_own() {
    let (Some(world), Some(other)) = (Namespace::new(), Namespace::new()) else { return };
    world.veth("va", "vb");
    other.veth("va", "vb");
    let mut a = world.open("va,type=xsk,send=batch");
    a.place = other.name.clone();
    assert_eq!(a.send(&[frame(60, &[])]), Sent { failed: 1, ..Sent::default() });
    let received = other.enter(|| std::fs::read_to_string("/proc/thread-self/net/dev").unwrap());
    assert_eq!(number(&received, "vb:"), 0, "{received}");
}

#[test]
fn a_program_in_generic_mode_at_the_other_end_sees_every_frame() {
    if !is_linux((6, 3), "batches that nobody asked for") {
        return;
    }
    let (Some(world), Some(other)) = (Namespace::new(), Namespace::new()) else { return };
    world.ip(&format!("link add va up type veth peer name vb netns {}", other.name));
    other.ip("link set vb up");
    let mut a = world.open("va,type=xsk");
    let looked = |a: &mut Open, way: &str| {
        assert!(world.enter(|| a.port.look_after()));
        assert!(a.port.details().contains(&("send", way.to_owned())), "not by {way}");
    };
    // It sees what leaves as the kernel's packets, and not what the socket sends.
    let all = Protocol::from_raw(0x0003_u32.to_be().wrapping_shr(16).try_into().unwrap());
    let tap =
        world.enter(|| socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::NONBLOCK, Some(all)).unwrap());
    let tapped = || std::iter::from_fn(|| recv(&tap, &mut [0_u8; 100][..], RecvFlags::empty()).ok()).count();
    let frames: Vec<Vec<u8>> = (0..40).map(|i| frame(60 + i, &[])).collect();
    for (mode, way) in [("generic", "ring"), ("native", "batch"), ("generic", "ring")] {
        let mut b = other.open(&format!("vb,type=xsk,xdp-mode={mode}"));
        looked(&mut a, way);
        assert_eq!(a.send(&frames).packets, 40);
        assert_eq!(bytes(&b.receive(40)), frames);
        assert_eq!(tapped(), if way == "batch" { 40 } else { 0 }, "{mode}");
        drop(b);
        looked(&mut a, "batch");
        for _ in 0..3 {
            assert_eq!(a.send(&frames).packets, 40);
        }
        // Whatever was in the ring has left at the first time.
        assert!(tapped() >= 80);
    }
}

#[test]
fn a_receiver_is_told_of_all_the_memory_of_frames_that_came_in_a_batch() {
    let (Some(world), Some(other)) = (Namespace::new(), Namespace::new()) else { return };
    world.ip(&format!("link add va up type veth peer name vb netns {}", other.name));
    other.ip("link set vb address 02:00:00:00:00:09 up");
    other.ip("addr add 10.1.0.2/24 dev vb");
    let mut a = world.open("va,type=xsk,send=batch");
    let socket = other.enter(|| std::net::UdpSocket::bind("10.1.0.2:9").unwrap());
    rustix::net::sockopt::set_socket_recv_buffer_size(&socket, 16_384).unwrap();
    let room = rustix::net::sockopt::socket_recv_buffer_size(&socket).unwrap();
    // A short one first: what is behind it is longer.
    let datagram = |len: usize| {
        let flow = "in_port(1),eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:09),eth_type(0x0800),\
                    ipv4(src=10.1.0.1,dst=10.1.0.2,proto=17,tos=0,ttl=64,frag=no),udp(src=9,dst=9)";
        made(flow, len)
    };
    let frames: Vec<Vec<u8>> = std::iter::once(datagram(60)).chain((0..31).map(|_| datagram(1_514))).collect();
    assert_eq!(a.send(&frames).packets, 32);
    socket.set_nonblocking(true).unwrap();
    let mut came = Vec::new();
    let mut bytes = [0; 2_000];
    while let Ok(len) = socket.recv(&mut bytes) {
        came.push(len);
    }
    let sum: usize = came.iter().sum();
    assert!(came.len() > 2 && sum <= room, "{sum} bytes are in {room} bytes of memory: {came:?}");
}

#[test]
fn a_batch_leaves_in_order_where_the_interface_has_several_queues() {
    let Some(world) = Namespace::new() else { return };
    if !has("ethtool") {
        return;
    }
    world.ip("link add va numtxqueues 4 numrxqueues 4 type veth peer name vb numtxqueues 4 numrxqueues 4");
    for interface in ["va", "vb"] {
        world.run(&format!("ethtool -L {interface} rx 4 tx 4"));
        world.ip(&format!("link set {interface} up"));
    }
    let (mut a, mut b) = (world.open("va,type=xsk,send=batch"), world.open("vb,type=xsk"));
    // Of flows that a hash would tell apart.
    let frames: Vec<Vec<u8>> = (0..64)
        .map(|i| {
            let text = format!(
                "in_port(1),eth_type(0x0800),ipv4(src=10.1.0.{},dst=10.1.0.2,proto=17),udp(src={i},dst=9)",
                i % 8
            );
            made(&text, 60 + i)
        })
        .collect();
    for _ in 0..10 {
        assert_eq!(a.send(&frames).packets, 64);
        let mut came = Vec::new();
        until("they have come", || {
            drain(&mut b, &mut came);
            came.len() >= frames.len()
        });
        assert_eq!(came, frames);
    }
}

#[test]
fn frames_that_wait_in_the_ring_leave_before_those_of_a_batch() {
    let (Some(world), Some(other)) = (Namespace::new(), Namespace::new()) else { return };
    world.ip(&format!("link add va up type veth peer name vb netns {}", other.name));
    other.ip("link set vb up");
    let mut a = world.open("va,type=xsk");
    let frames: Vec<Vec<u8>> = (0..60).map(|i| frame(60 + i, &[])).collect();
    let generic = other.open("vb,type=xsk,xdp-mode=generic");
    let looks = |a: &mut Open| assert!(world.enter(|| a.port.look_after()));
    looks(&mut a);
    world.ip("link set va down");
    assert_eq!(a.send(&frames[..20]).packets, 0, "they wait");
    drop(generic);
    let mut b = other.open("vb,type=xsk,xdp-mode=native");
    looks(&mut a);
    world.ip("link set va up");
    a.send(&frames[20..40]);
    a.send(&frames[40..]);
    assert_eq!(bytes(&b.receive(60)), frames);
}

/// Moves an interface from here to `place`, where it goes up; it comes back when `place` is gone.
fn lend(interface: &str, place: &Namespace) {
    until("the interface is here", || Path::new("/sys/class/net").join(interface).exists());
    let moved = Command::new("ip").args(["link", "set", interface, "netns", &place.name]).status().unwrap();
    assert!(moved.success());
    place.ip(&format!("link set {interface} up"));
}

#[test]
fn zero_copy_ports_forward_marked_packets() {
    let Ok(wires) = std::env::var("OFFLOADD_WIRES") else {
        eprintln!("skipped: needs OFFLOADD_WIRES=PORT-PEER,PORT-PEER, two wires between interfaces with zero-copy");
        return;
    };
    let wires: Vec<(&str, &str)> = wires.split(',').map(|wire| wire.split_once('-').unwrap()).collect();
    let names = [wires[0].0, wires[1].0];
    for device in ["none", "xdp", "xdp,level=full"] {
        let Some(place) = Namespace::new() else { return };
        if !(has("ethtool") && has("ping")) {
            return;
        }
        let mut hosts: Vec<Namespace> = wires.iter().map(|_| Namespace::new().unwrap()).collect();
        for (i, (port, peer)) in wires.iter().enumerate() {
            lend(port, &place);
            lend(peer, &hosts[i]);
            hosts[i].ip(&format!("addr add 10.1.0.{}/24 dev {peer}", i + 1));
        }
        // The third port copies, in the same memory.
        hosts.push(host(&place, 3));
        hosts[2].prepare("eth0");
        let spec = |i: usize| format!("{},type=xsk,port_no={},xdp-mode=native-with-zerocopy", names[i], i + 1);
        let copies = "p3,type=xsk,port_no=3,xdp-mode=native".to_owned();
        let ports = [spec(0), spec(1), copies];
        let switch = Switch::start_with(place, &["--offload", device], &ports.each_ref().map(String::as_str));
        let shown = switch.ask("dpctl/show");
        assert_eq!(shown.matches("xdp-mode=native-with-zerocopy").count(), 2, "{shown}");
        for size in [0, 16, 56, 700, 1_472] {
            pings_pass(&hosts[0], &format!("10.1.0.2 -M do -s {size}"), 200);
            pings_pass(&hosts[1], &format!("10.1.0.3 -M do -s {size}"), 50);
            pings_pass(&hosts[2], &format!("10.1.0.1 -M do -s {size}"), 50);
        }
        if has("iperf3") {
            for direction in ["", "--reverse"] {
                let end = iperf3(&hosts[0], &hosts[1], direction);
                let mbits = end["sum_received"]["bits_per_second"].as_f64().unwrap() / 1e6;
                eprintln!("iperf3 TCP, zero-copy, {device}: {mbits:.0} Mbit/s");
                assert!(mbits > 0.0);
            }
        }
        let (all, hits, full) = (polled(&switch), switch.mark_hits(), by_device(&switch, "rx_offload_full"));
        eprintln!("{device}: {hits} of {all} marked, {full} forwarded");
        match device {
            "none" => assert_eq!((hits, full), (0, 0)),
            "xdp" => assert!(all > 1_000 && hits * 100 >= all * 95 && full == 0),
            // What the wires' driver would drop is not forwarded to it, but to the port at a veth.
            _ => assert!(all > 1_000 && hits * 100 >= all * 95 && full > 100),
        }

        // Ports go and come back under traffic, with the memory that they had.
        let free = || number(&switch.ask("dpctl/show"), "KiB,");
        let before = free();
        for round in 0..6 {
            let i = round % 2;
            let flood = Program::start(&hosts[0], "ping -n -q -i 0.002 -w 600 -s 1400 10.1.0.2");
            until("packets pass", || {
                let all = polled(&switch);
                pings_pass(&hosts[2], "10.1.0.1", 5);
                polled(&switch) > all + 20
            });
            switch.ask(&format!("dpctl/del-if {}", names[i]));
            switch.ask(&format!("dpctl/add-if {}", spec(i)));
            pings_pass(&hosts[0], "10.1.0.2", 20);
            drop(flood);
            until("its memory is back", || free() + 1_500 > before);
        }
        let shown = switch.ask("dpctl/show");
        assert!(shown.contains(" 0 lost") && shown.matches("xdp-mode=native-with-zerocopy").count() == 2, "{shown}");
    }
}
