//! The schema document, held against a daemon at work: it lists every command, every answer is as it says, and it says nothing
//! that no answer has.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde_json::Value;

use crate::world::{Stage, World};

/// Commands that are not called here, each with the reason.
const UNCALLED: [&str; 1] = ["exit"]; // the daemon's last; its answer is that of many others: {}

/// What is called, in order; `UFID`, `MARKED` stand for flows' ufids, `DIR` for the daemon's directory.
const CALLS: [&str; 91] = [
    "list-commands",
    "help",
    "help version",
    "version",
    "set-options --format=json",
    "config/show",
    "config/reload",
    "coverage/show",
    "coverage/read-counter lookup_mark_hit",
    "memory/show",
    "metrics/show",
    "dpctl/show",
    "dpctl/show -s",
    "dpctl/dump-dps",
    "dpctl/dump-flows",
    "dpctl/dump-flows -m",
    "dpctl/get-flow ufid:UFID",
    "dpctl/add-flow in_port(2),eth(),eth_type(0x0901) 1",
    "dpctl/mod-flow in_port(2),eth(),eth_type(0x0901) drop",
    "dpctl/mod-flow --may-create in_port(2),eth(),eth_type(0x0902) drop",
    "dpctl/del-flow in_port(2),eth(),eth_type(0x0901)",
    "dpctl/add-flows DIR/flows",
    "dpctl/mod-flows DIR/flows",
    "dpctl/del-flows DIR/flows",
    "dpctl/add-if p8,type=sim",
    "dpctl/set-if p8,n_rxq=2",
    "dpctl/set-if p8,n_rxq=2",
    "dpctl/del-if p8",
    "dpctl/offload-stats-show",
    "dpctl/cache-get-size",
    "dpctl/cache-set-size emc 8192",
    "dpctl/parse-actions 1,push_vlan(vid=1,pcp=0),ct(commit),clone(2)",
    "dpctl/normalize-actions in_port(1) 1,push_vlan(vid=1,pcp=0),2",
    "dpif/show",
    "dpif/dump-dps",
    "dpif/dump-flows offloadd",
    "dpif/offload/show",
    "dpif/offload/classes",
    "dpif/offload-show",
    "dpif-netdev/pmd-perf-show",
    "dpif-netdev/pmd-rxq-show",
    "dpif-netdev/pmd-sleep-show",
    "dpif-netdev/pmd-rxq-move p2 0 1",
    "dpif-netdev/pmd-rxq-move p1 0 1",
    "dpif-netdev/pmd-rxq-rebalance",
    "netdev-dummy/receive p2 in_port(2),eth(),eth_type(0x0800),ipv4(dst=10.0.0.1)",
    "netdev-dummy/set-admin-state p2 up",
    "rule/add priority=77,ip,nw_dst=9.9.9.9,actions=drop",
    "rule/dump",
    "rule/trace in_port(1),eth(dst=02:00:00:00:00:99),eth_type(0x0800),ipv4(dst=172.16.0.1,ttl=9,frag=no)",
    "rule/trace in_port(1),eth(dst=02:00:00:00:00:99),eth_type(0x0806)",
    "rule/del --strict priority=77,ip,nw_dst=9.9.9.9",
    "rule/save DIR/saved",
    "rule/load DIR/saved",
    "fdb/add p2 0 02:00:00:00:00:42",
    "fdb/show",
    "fdb/stats-show",
    "fdb/del 0 02:00:00:00:00:42",
    "fdb/flush",
    "offload/explain --all",
    "offload/explain UFID",
    "offload/explain MARKED",
    "offload/mark-show",
    "offload/queue-show",
    "offload/events",
    "offload/set",
    "offload/stats-clear",
    "offload/flush",
    "sim/fault",
    "sim/fault reset",
    "sim/fault clear",
    "offload/events",
    "flow-top -n 3 --over 0.2",
    "upcall/show",
    "upcall/set-flow-limit 200000",
    "revalidator/pause",
    "revalidator/resume",
    "revalidator/wait",
    "time/stop",
    "time/warp 10",
    "vlog/list",
    "vlog/list-pattern",
    "vlog/set port:info",
    "vlog/enable-rate-limit",
    "vlog/disable-rate-limit",
    "vlog/close",
    "vlog/reopen",
    "offload/pause",
    "offload/resume",
    "revalidator/purge",
    "flow-flush",
];

/// Afterwards, so that there is something to clear.
const LAST: [&str; 2] = ["dpif-netdev/pmd-stats-clear", "dpctl/del-flows"];

fn document() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/offloadd.schema.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap_or_else(|_| "{}".into())).unwrap()
}

/// A daemon with something of everything: flows in the device, refused and by hand, rules, stations, two pollers.
fn world() -> World {
    let stage = Stage::new();
    // A megaflow a host.
    let host = |n| format!("priority=9,ip,nw_dst=172.16.0.{n},hard_timeout=3600,actions=dec_ttl,output:2\n");
    let hosts: String = (0..40).map(host).collect();
    stage.file(
        "rules",
        &format!("priority=10,cookie=0x5,udp,tp_dst=53,actions=drop\n{hosts}priority=0,actions=normal\n"),
    );
    stage.file("flows", "in_port(2),eth(),eth_type(0x0807) 1\nin_port(2),eth(),eth_type(0x0808) 1\n");
    stage.file("config", "[datapath]\npollers = 2\n[offload]\nthreads = 2\n");
    let world = stage.start(
        "--config DIR/config --rules DIR/rules --port p1,type=sim,port_no=1,flows=40,rate=4000 --port p2,type=sim,port_no=2 \
         --offload sim,level=full,capacity=8,without=output --time-control",
    );
    world.ctl(["dpctl/add-flow", "in_port(2),eth(),eth_type(0x0900)", "1"]);
    world.ctl(["dpctl/add-flow", "in_port(2),eth(),eth_type(0x0903)", "drop"]);
    world.wait_until("the device is full", || world.offload("/rules") == 8);
    world.ctl(["sim/fault", "fail=30%"]);
    world.ctl(["offload/flush"]);
    world.wait_until("some operation failed", || world.offload("/operations/put/device") > 0);
    world.ctl(["sim/fault", "clear"]);
    world.wait_until("the device is full", || world.offload("/rules") == 8);
    world
}

/// Each command with what it answered, call by call.
fn answers(world: &World) -> BTreeMap<String, Vec<Value>> {
    let mut answers: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    let ufid = |marked: bool| {
        let flows = world.flows();
        let flow = flows.iter().find(|flow| flow["mark"].is_null() != marked).or(flows.first()).unwrap();
        flow["ufid"].as_str().unwrap().to_owned()
    };
    for call in CALLS.iter().chain(&LAST) {
        let call = call.replace("DIR", world.dir().to_str().unwrap());
        let call = if call.contains("MARKED") { call.replace("MARKED", &ufid(true)) } else { call };
        let call = if call.contains("UFID") { call.replace("UFID", &ufid(false)) } else { call };
        let words: Vec<&str> = call.split(' ').collect();
        answers.entry(words[0].to_owned()).or_default().push(world.json_of(&words));
    }
    answers
}

#[test]
fn every_answer_is_as_the_schema_says_and_the_schema_says_no_more() {
    let world = world();
    let answers = answers(&world);
    if let Some(path) = std::env::var_os("OFFLOADD_ANSWERS") {
        fs::write(path, serde_json::to_string(&answers).unwrap()).unwrap();
    }
    let document = document();
    let described: BTreeSet<&str> = document["properties"].as_object().unwrap().keys().map(String::as_str).collect();
    let listed = world.json(["list-commands"]);
    let listed: BTreeSet<&str> = listed.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(described, listed, "the commands of the document, and those there are");
    let called: BTreeSet<&str> = answers.keys().map(String::as_str).chain(UNCALLED).collect();
    assert_eq!(called, listed, "the commands that were called, and those there are");

    let validator = jsonschema::validator_for(&document).unwrap();
    let mut seen = BTreeSet::new();
    for (command, answers) in &answers {
        for answer in answers {
            is_as_said(&validator, command, answer);
            visit(answer, &document, &document["properties"][command], command, &mut seen);
        }
    }
    let mut named = BTreeSet::new();
    for (command, schema) in document["properties"].as_object().unwrap() {
        if !UNCALLED.contains(&command.as_str()) {
            members(schema, &document, command, &mut named);
        }
    }
    let unseen: Vec<&String> = named.difference(&seen).collect();
    assert!(unseen.is_empty(), "no answer has these: {unseen:#?}");
}

/// Flows that wait for a device have no reason and no times yet, and one that is wholly in it lacks nothing.
#[test]
fn flows_that_wait_and_flows_that_lack_nothing_are_as_the_schema_says() {
    let stage = Stage::new();
    stage.file("config", "[offload]\npatience = \"10m\"\n");
    stage.file("rules", "actions=drop\n");
    let world = stage.start(
        "--config DIR/config --rules DIR/rules --port p1,type=sim,port_no=1,flows=4,rate=4000 --offload chaos,level=full,hang=true",
    );
    let validator = jsonschema::validator_for(&document()).unwrap();
    let explain = |which: &[&str]| {
        let answer = world.json_of(&[&["offload/explain"], which].concat());
        is_as_said(&validator, "offload/explain", &answer);
        answer
    };
    world.wait_until("a flow waits", || {
        let waiting = explain(&["--all", "pending"]);
        waiting[0]["kind"] == "pending" && waiting[0]["reason"].is_null() && waiting[0]["first_s"].is_null()
    });
    world.ctl(["sim/fault", "clear"]);
    world.wait_until("it is in the device", || world.offload("/rules") > 0);
    let ufid = world.flows()[0]["ufid"].as_str().unwrap().to_owned();
    world.wait_until("it lacks nothing", || explain(&[&ufid])[0]["kind"].is_null());
}

fn is_as_said(validator: &jsonschema::Validator, command: &str, answer: &Value) {
    let instance = serde_json::json!({ command: answer });
    let errors: Vec<String> =
        validator.iter_errors(&instance).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(errors.is_empty(), "{command}: {errors:#?}\n{answer:.2000}");
}

/// Follows a reference into the document.
fn resolve<'a>(schema: &'a Value, document: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(path) => document.pointer(path.trim_start_matches('#')).unwrap(),
        None => schema,
    }
}

/// Notes the members that an answer has, by their place in the schema.
fn visit(answer: &Value, document: &Value, schema: &Value, place: &str, seen: &mut BTreeSet<String>) {
    let schema = resolve(schema, document);
    match answer {
        Value::Object(map) => {
            for (name, value) in map {
                match schema["properties"].get(name) {
                    Some(inner) => {
                        let place = format!("{place}/{name}");
                        seen.insert(place.clone());
                        visit(value, document, inner, &place, seen);
                    }
                    None => visit(value, document, &schema["additionalProperties"], &format!("{place}/*"), seen),
                }
            }
        }
        Value::Array(list) => {
            list.iter().for_each(|value| visit(value, document, &schema["items"], &format!("{place}/[]"), seen));
        }
        _ => {}
    }
}

/// Notes the members that the schema names.
fn members(schema: &Value, document: &Value, place: &str, named: &mut BTreeSet<String>) {
    let schema = resolve(schema, document);
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        let place = format!("{place}/{name}");
        named.insert(place.clone());
        members(inner, document, &place, named);
    }
    if schema["properties"].is_object() {
        assert!(!schema["additionalProperties"].is_null(), "{place} says nothing of other members");
    }
    if schema["additionalProperties"].is_object() {
        members(&schema["additionalProperties"], document, &format!("{place}/*"), named);
    }
    if schema["items"].is_object() {
        members(&schema["items"], document, &format!("{place}/[]"), named);
    }
}
