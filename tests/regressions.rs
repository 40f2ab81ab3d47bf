//! Mistakes that others made and that show from outside only. The table in `src/offload/worker/tests/bugs.rs` lists them all.

use crate::world::Stage;

#[test]
fn offloading_a_thousand_flows_is_not_a_line_in_the_log_each() {
    let stage = Stage::new();
    let rule = |i| format!("udp,nw_dst=172.16.{}.{},actions=output:2\n", i / 256, i % 256);
    stage.file("rules", &(0..1_000).map(rule).collect::<String>());
    let world = stage.start(
        "--rules DIR/rules --offload sim --port p1,type=sim,port_no=1,flows=1000,rate=20000 --port p2,type=sim,port_no=2",
    );
    world.wait_until("all are in the device", || world.offload("/rules") >= 1_000);
    world.ctl(["flow-flush"]);
    world.wait_until("and are put again", || world.offload("/operations/put/done") >= 2_000);
    assert!(world.offload("/operations/delete/done") >= 1_000);
    let lines = world.log().lines().count();
    assert!((1..50).contains(&lines), "{lines} lines:\n{}", world.log());
}

#[test]
fn each_flow_of_a_dump_stands_under_the_title_of_its_own_poller() {
    let stage = Stage::new();
    stage.file("config", "[datapath]\npollers = 2\n");
    stage.file("rules", "in_port=1,actions=output:2\nin_port=2,actions=output:1\n");
    let world = stage.start(
        "--config DIR/config --rules DIR/rules --offload none \
         --port p1,type=sim,port_no=1 --port p2,type=sim,port_no=2",
    );
    world.ctl(["dpif-netdev/pmd-rxq-move", "p1", "0", "0"]);
    world.ctl(["dpif-netdev/pmd-rxq-move", "p2", "0", "1"]);
    let titles = || {
        let (mut title, mut found) = (String::new(), Vec::new());
        for line in world.ctl(["dpctl/dump-flows", "--no-names"]).lines() {
            match line.starts_with("flow-dump") {
                true => title = line.to_owned(),
                false => found.push((title.clone(), line.split_once("in_port(").unwrap().1[..1].to_owned())),
            }
        }
        found
    };
    // The first poller has no flow, so nothing of it may stand above the second's.
    world.ctl(["netdev-dummy/receive", "p2", "ffffffffffff0200000000010806"]);
    world.wait_until("the second poller has a flow", || !world.flows().is_empty());
    let of = |poller, port: &str| (format!("flow-dump from poller: {poller}"), port.to_owned());
    assert_eq!(titles(), [of(1, "2")]);
    world.ctl(["netdev-dummy/receive", "p1", "ffffffffffff0200000000020806"]);
    world.wait_until("both have one", || world.flows().len() == 2);
    assert_eq!(titles(), [of(0, "1"), of(1, "2")]);
}
