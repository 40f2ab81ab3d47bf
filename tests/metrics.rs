//! Metrics: all that is counted is there, Prometheus' own tool is content with the text, and dashboard and alerts ask for what there is.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use offloadd::datapath::counters::{Fate, Lookup, PortCounters};

use crate::world::{Stage, World};

/// A daemon with something of everything.
fn world() -> World {
    let stage = Stage::new();
    let host = |n| format!("priority=9,ip,nw_dst=172.16.0.{n},actions=dec_ttl,output:2\n");
    stage.file("rules", &(0..40).map(host).collect::<String>());
    stage.file("config", &format!("[metrics]\nlisten = \"{}\"\n", stage.path("metrics")));
    let world = stage.start(
        "--config DIR/config --rules DIR/rules --port p1,type=sim,port_no=1,flows=40,rate=4000 --port p2,type=sim,port_no=2 \
         --offload sim,level=full,capacity=8,without=output",
    );
    world.wait_until("the device is full", || world.offload("/rules") == 8);
    world
}

/// `promtool`, from Debian's `prometheus`; `None`, and a line that says so, without it.
fn promtool() -> Option<Command> {
    let is_there = Command::new("promtool").arg("--version").output().is_ok();
    if !is_there {
        println!("skipped: promtool is not installed (Debian: prometheus)");
    }
    is_there.then(|| Command::new("promtool"))
}

fn packaging(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(name)
}

#[test]
fn every_counter_is_a_sample_and_promtool_is_content() {
    let world = world();
    let refused = |text: &str| text.contains("offloadd_not_offloaded{reason=\"no-room\"}");
    world.wait_until("some flows find no room", || refused(&world.ctl(["metrics/show"])));
    let text = world.ctl(["metrics/show"]);
    let has = |sample: &str| assert!(text.contains(sample), "{sample} is not in\n{text}");
    for (name, _) in Lookup::default().list() {
        has(&format!("offloadd_lookup_packets_total{{poller=\"0\",how=\"{name}\"}}"));
    }
    for (name, _) in Fate::default().list() {
        has(&format!("offloadd_packet_fates_total{{poller=\"0\",fate=\"{name}\"}}"));
    }
    for (name, _) in PortCounters::default().list() {
        let shown = match name.split_once('_') {
            Some((direction, "packets")) => {
                format!("offloadd_port_packets_total{{port=\"p1\",direction=\"{direction}\"}}")
            }
            Some((direction, "bytes")) => format!("offloadd_port_bytes_total{{port=\"p1\",direction=\"{direction}\"}}"),
            _ => format!("offloadd_port_drops_total{{port=\"p1\",why=\"{name}\"}}"),
        };
        has(&shown);
    }
    has("offloadd_offload_latency_seconds_bucket{worker=\"0\",request=\"put\",le=\"0.001\"}");

    let Some(mut promtool) = promtool() else { return };
    let check = promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut check = check.spawn().unwrap();
    check.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let said = check.wait_with_output().unwrap();
    let said = [said.stdout, said.stderr].concat();
    assert!(said.is_empty(), "{}", String::from_utf8_lossy(&said));
}

#[test]
fn metrics_are_had_over_http_while_the_control_socket_is_quiet() {
    let world = world();
    let mut scraper = UnixStream::connect(world.path("metrics")).unwrap();
    scraper.write_all(b"GET /metrics HTTP/1.1\r\nHost: offloadd\r\n\r\n").unwrap();
    let mut answer = String::new();
    scraper.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4"), "{head}");
    assert!(body.contains("offloadd_control_requests_total{outcome=\"done\"}"));
}

#[test]
fn dashboard_and_alerts_ask_for_what_there_is() {
    let world = world();
    let families = world.json(["metrics/show"]);
    let there: BTreeSet<&str> =
        families.as_array().unwrap().iter().map(|family| family["name"].as_str().unwrap()).collect();
    for file in ["grafana/offloadd.json", "prometheus/alerts.yml"] {
        let text = fs::read_to_string(packaging(file)).unwrap();
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let asked: BTreeSet<&str> = words.filter(|word| word.starts_with("offloadd_")).collect();
        assert!(asked.len() > 5, "{file}");
        for name in asked {
            let family = name.strip_suffix("_bucket").unwrap_or(name);
            assert!(there.contains(family), "{file} asks for {name}");
        }
    }
    let dashboard: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(packaging("grafana/offloadd.json")).unwrap()).unwrap();
    assert!(dashboard["panels"].as_array().unwrap().len() > 10);
    for arguments in [["check", "rules", "alerts.yml"], ["test", "rules", "alerts.test.yml"]] {
        let Some(mut promtool) = promtool() else { return };
        let output = promtool.args(arguments).current_dir(packaging("prometheus")).output().unwrap();
        assert!(
            output.status.success(),
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
