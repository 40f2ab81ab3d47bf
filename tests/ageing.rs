//! Time as seen through a device: what only the device sees is used, and what it sees no more grows old.

use serde_json::Value;

use crate::world::{Stage, World};

/// Frames of one flow, and how many a second.
const FRAMES: u64 = 1_600;
const RATE: u64 = 200;

fn fully_offloaded(flow: &Value) -> bool {
    flow["offload"]["offloaded"] == "full"
}

/// The station that the generator sends from.
fn knows_station(world: &World) -> bool {
    world.ctl(["fdb/show"]).contains("02:00:00:00:00:01")
}

fn has_rule(world: &World) -> bool {
    world.ctl(["rule/dump"]).contains("idle_timeout=3")
}

#[test]
fn rules_stations_and_flows_stay_while_only_the_device_sees_their_packets_and_go_afterwards() {
    let stage = Stage::new();
    stage.file("config", "[datapath]\nmax-idle = \"1s\"\n[slowpath]\nmac-ageing = \"3s\"\n");
    stage.file("rules", "priority=10,in_port=1,idle_timeout=3,actions=normal\npriority=0,actions=drop\n");
    let world = stage.start(&format!(
        "--config DIR/config --rules DIR/rules --offload sim,level=full \
         --port p2,type=sim,port_no=2 --port p1,type=sim,port_no=1,flows=1,rate={RATE},count={FRAMES}"
    ));
    let handled = || world.offload("/port_counts/p1/full");
    let arrived = || handled() + world.port_count("p1", "rx_packets");
    world.wait_until("the flow is in the device", || world.flow("in_port(1)").is_some_and(|f| fully_offloaded(&f)));
    let in_software = world.port_count("p1", "rx_packets");
    world.wait_until("every packet has arrived", || {
        assert!(has_rule(&world), "the rule is used");
        assert!(knows_station(&world), "the station sends");
        assert!(world.flow("in_port(1)").is_some_and(|flow| fully_offloaded(&flow)), "the flow has packets");
        arrived() == FRAMES
    });
    assert_eq!(world.port_count("p1", "rx_packets"), in_software, "all the others were the device's");
    assert_eq!((world.perf("upcalls"), world.perf("deleted_idle")), (1, 0));
    assert_eq!(world.offload("/port_counts/p2/sent") + world.port_count("p2", "tx_packets"), FRAMES);
    world.wait_until("the flow goes", || world.flows().is_empty());
    world.wait_until("the rule goes", || !has_rule(&world));
    world.wait_until("the station goes", || !knows_station(&world));
    assert_eq!(world.offload("/rules"), 0);
}
