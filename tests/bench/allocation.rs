//! Packets whose flow is known allocate nothing, at whatever level it is found; nor does asking for a flow's offload.

#[allow(dead_code, reason = "the benches use the rest of it")]
mod rig;
#[allow(dead_code, reason = "a bench lets them race")]
mod rivals;

use allocation_counter::measure;
use offloadd::flow::Actions;
use offloadd::packet::BATCH;
use rig::{Rig, output, tuple_mask, tuple_masks};
use rivals::{Lanes, List, Rival};

/// Packets in each measurement: several thousand batches.
const PACKETS: u64 = 100_000;

/// Warms the rig up, then counts what its packets allocate.
fn allocations(rig: &mut Rig, before: fn(&mut Rig)) -> u64 {
    rig.measure(BATCH as u64, before, |_| {});
    measure(|| {
        rig.measure(PACKETS, before, |_| {});
    })
    .count_total
}

#[test]
fn a_mark_hit_allocates_nothing() {
    let mut rig = Rig::exact(1_000, &[tuple_mask(32)], &output()).marked();
    assert_eq!(allocations(&mut rig, |_| {}), 0);
    let hits = rig.pipeline.counters.lookup.mark_hit.get();
    assert!(hits >= PACKETS, "all packets were mark hits: {hits}");
}

#[test]
fn an_emc_hit_allocates_nothing() {
    let mut rig = Rig::exact(1_000, &tuple_masks(10), &output()).cached();
    assert_eq!(allocations(&mut rig, |_| {}), 0);
    let hits = rig.pipeline.counters.lookup.emc_hit.get();
    // A window of lookups at least: then it may rest, where the few keys that have no place in it are cheap to find.
    assert!(hits > PACKETS / 20, "many packets were EMC hits: {hits}");
}

#[test]
fn entering_a_key_in_the_emc_allocates_nothing() {
    let mut rig = Rig::exact(1_000, &tuple_masks(10), &output());
    assert_eq!(allocations(&mut rig, |_| {}), 0);
    let lookup = &rig.pipeline.counters.lookup;
    assert!(lookup.emc_hit.get() > 0 && lookup.megaflow_hit.get() > 0, "some were entered: {lookup:?}");
}

#[test]
fn a_megaflow_hit_allocates_nothing_in_whatever_subtable() {
    for actions in [output(), Actions::drop()] {
        let mut rig = Rig::exact(1_000, &tuple_masks(10), &actions);
        assert_eq!(allocations(&mut rig, Rig::pass_by_emc), 0);
        let hits = rig.pipeline.counters.lookup.megaflow_hit.get();
        assert!(hits >= PACKETS, "all packets were megaflow hits: {hits}");
    }
}

/// Requests for offload in each measurement: one a flow.
const REQUESTS: usize = 10_000;

fn allocations_for<R: Rival>() -> u64 {
    let rival = R::new(1, REQUESTS);
    measure(|| (0..REQUESTS).for_each(|flow| rival.request(0, flow))).count_total
}

#[test]
fn asking_for_offload_allocates_nothing_where_the_2017_patch_did_twice() {
    assert_eq!(allocations_for::<Lanes>(), 0);
    assert_eq!(allocations_for::<List>(), 2 * REQUESTS as u64);
}
