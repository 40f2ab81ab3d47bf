//! A flow's life: born, put, changed, shared, dead, at any moment.

use super::*;

#[test]
fn a_new_flow_is_put_once_and_its_poller_learns_the_mark() {
    let mut world = World::new(|_, _| {});
    let cell = world.adopt(1);
    assert_eq!(cell.standing(), Standing::Queued);
    assert!(!world.agent.has_events());
    world.settle();
    assert_eq!(cell.standing(), Standing::Offloaded(Level::Full));
    assert!(world.agent.has_events());
    assert_eq!(world.drained(), [(1, Some(1))]);
    assert_eq!(world.drained(), []);
    world.agent.ask_again(world.now, &cell);
    world.settle();
    assert_eq!(world.operations(), ["put"]);
    let snapshot = world.offload.snapshot();
    assert_eq!((snapshot.rules, snapshot.marks.in_use, snapshot.queue.depth), (1, 1, 0));
    assert_eq!((snapshot.operations.put.done, snapshot.latency.all.count >= 1), (1, true));
}

#[test]
fn a_flow_that_dies_while_queued_is_never_installed() {
    let mut world = World::new(|_, _| {});
    let cell = world.adopt(1);
    world.agent.update(world.now, &cell, output(2), 2);
    world.agent.release(world.now, &cell);
    world.settle();
    assert_eq!(world.operations(), [""; 0]);
    assert_eq!(cell.standing(), Standing::Gone);
    assert!(world.worker.rules.is_empty());
    assert_eq!(crate::sync::Arc::strong_count(&cell), 1, "nobody keeps a dead flow");
}

#[test]
fn a_flow_that_dies_while_installing_is_removed_after_and_never_bound() {
    let mut world = World::new(|_, _| {});
    let cell = world.adopt(1);
    let (agent, dying, now) = (Arc::clone(&world.agent), crate::sync::Arc::clone(&cell), world.now);
    world.script.lock().unwrap().meanwhile = Some(Box::new(move || agent.release(now, &dying)));
    world.settle();
    assert_eq!(world.operations(), ["put", "delete"]);
    assert_eq!(world.drained(), []);
    assert_eq!((cell.standing(), cell.mark()), (Standing::Gone, None));
    assert!(world.worker.rules.is_empty());
}

#[test]
fn a_flow_that_changes_while_installing_ends_with_its_newest_actions() {
    let mut world = World::new(|_, _| {});
    let cell = world.adopt(1);
    let (agent, changing, now) = (Arc::clone(&world.agent), crate::sync::Arc::clone(&cell), world.now);
    let change = move || agent.update(now, &changing, output(9), 2);
    world.script.lock().unwrap().meanwhile = Some(Box::new(change));
    world.settle();
    assert_eq!(world.device_actions(), [output(9)]);
    assert_eq!(world.operations(), ["put", "replace"]);
}

#[test]
fn many_changes_between_two_looks_cost_one_operation() {
    let mut world = World::new(|_, _| {});
    let cell = world.adopt(1);
    world.settle();
    for decision in 2..1_000 {
        world.agent.update(world.now, &cell, output(decision as u32), decision);
    }
    world.settle();
    assert_eq!(world.operations(), ["put", "replace"]);
    assert_eq!(world.device_actions(), [output(999)]);
    assert_eq!(world.offload.queue().coalesced, 997);
}

#[test]
fn a_device_that_only_marks_is_not_told_of_new_actions() {
    let mut world = World::new(|script, _| script.caps.level = Level::Mark);
    let cell = world.adopt(1);
    world.settle();
    world.agent.update(world.now, &cell, output(2), 2);
    world.settle();
    assert_eq!(world.operations(), ["put"]);
    assert_eq!(cell.standing(), Standing::Offloaded(Level::Mark));
}

#[test]
fn a_flow_made_again_while_its_old_rule_is_being_removed_ends_installed_once() {
    let mut world = World::new(|script, _| script.delete_failures = 1);
    let old = world.adopt(1);
    world.settle();
    world.agent.release(world.now, &old);
    world.settle();
    assert_eq!(old.standing(), Standing::Removing);
    let new = world.adopt_for(&world.agent, 1, output(2), 2);
    world.settle();
    assert_eq!(world.operations(), ["put", "delete"], "the failed removal waits for its time");
    world.pass(Duration::from_millis(100));
    assert_eq!(world.operations(), ["delete", "put"]);
    assert_eq!((old.standing(), new.standing()), (Standing::Gone, Standing::Offloaded(Level::Full)));
    assert_eq!(world.device_actions(), [output(2)]);
}

#[test]
fn a_flow_made_again_before_its_death_was_seen_ends_installed_once() {
    let mut world = World::new(|_, _| {});
    let old = world.adopt(1);
    world.settle();
    world.agent.release(world.now, &old);
    let new = world.adopt_for(&world.agent, 1, output(2), 2);
    world.settle();
    assert_eq!(world.device_actions(), [output(2)]);
    assert_eq!((old.standing(), new.standing()), (Standing::Gone, Standing::Offloaded(Level::Full)));
    world.agent.release(world.now, &new);
    world.settle();
    assert_eq!(world.device_actions(), []);
}

#[test]
fn pollers_share_a_megaflows_rule_until_the_last_leaves_and_the_newest_decision_wins() {
    let mut world = World::new(|_, _| {});
    let other = world.offload.agent(7, Box::new(|| {})).unwrap();
    let first = world.adopt_for(&world.agent, 1, output(2), 5);
    let second = world.adopt_for(&other, 1, output(3), 4);
    world.settle();
    assert_eq!(world.operations(), ["put"]);
    assert_eq!(world.device_actions(), [output(2)], "an older decision changes nothing");
    assert_eq!(first.mark(), second.mark());
    let rows = world.marks(0, 10).rows;
    assert_eq!((rows.len(), rows[0].owners.clone(), rows[0].ufid), (1, vec![0, 7], Ufid(1)));
    other.update(world.now, &second, output(4), 6);
    world.settle();
    assert_eq!(world.device_actions(), [output(4)]);
    world.agent.release(world.now, &first);
    world.settle();
    assert_eq!(first.standing(), Standing::Gone);
    assert_eq!(world.operations(), ["replace"]);
    other.release(world.now, &second);
    world.settle();
    assert_eq!(world.operations(), ["delete"]);
}

#[test]
fn equal_values_under_different_masks_are_two_rules() {
    let mut world = World::new(|_, _| {});
    let (mut key, mut eight, mut sixteen) = (Key::ZERO, Mask::EMPTY, Mask::EMPTY);
    key.set(Field::InPort, 1u32);
    key.set(Field::Ipv4Src, 0x0a00_0000u32);
    for (mask, bits) in [(&mut eight, 0xff00_0000), (&mut sixteen, 0xffff_0000)] {
        mask.add_field(Field::InPort);
        mask.add(Field::Ipv4Src, bits);
    }
    for (i, mask) in [eight, sixteen].iter().enumerate() {
        let slot = FlowSlot { index: i as u32, generation: 0 };
        world.agent.adopt(world.now, slot, Ufid(0), Match::new(&key, mask), output(1), 1);
    }
    world.settle();
    assert_eq!(world.offload.snapshot().rules, 2);
}

#[test]
fn what_a_rule_counted_before_it_had_another_level_is_the_flows_only_if_it_forwarded() {
    let mut world = World::new(|script, _| script.short = Some(Unsupported::Port(PortNo(9))));
    let counts = |packets| FlowStats { packets, bytes: 100 * packets, used_ns: 1 };
    let cell = world.adopt(1);
    world.settle();
    assert_eq!(cell.standing(), Standing::Offloaded(Level::Mark));
    // What is counted in one level is first told when the level changes.
    let steps = [(2, 10, None, Level::Full, 0), (3, 13, Some(Unsupported::Port(PortNo(9))), Level::Mark, 3)];
    for (decision, counted, short, level, forwarded) in steps {
        {
            let mut script = world.script.lock().unwrap();
            (script.short, script.counts) = (short, counts(counted));
        }
        world.agent.update(world.now, &cell, output(decision), decision.into());
        world.settle();
        assert_eq!((cell.standing(), cell.device_stats().packets), (Standing::Offloaded(level), forwarded));
    }
    world.script.lock().unwrap().counts = counts(20);
    world.pass(Duration::from_secs(3));
    assert_eq!(cell.device_stats().packets, 3);
    assert_eq!(world.operations(), ["put", "replace", "replace"]);
}

#[test]
fn a_rule_that_cannot_be_replaced_is_unbound_while_it_is_deleted_and_put() {
    let mut world = World::new(|script, _| script.caps.replace_in_place = false);
    let cell = world.adopt(1);
    world.settle();
    assert_eq!(world.drained(), [(1, Some(1))]);
    world.agent.update(world.now, &cell, output(2), 2);
    let unbound = Arc::new(Mutex::new(None));
    let (seen, watched) = (Arc::clone(&unbound), crate::sync::Arc::clone(&cell));
    let watch = move || *seen.lock().unwrap() = Some(watched.mark().is_none());
    world.script.lock().unwrap().meanwhile = Some(Box::new(watch));
    world.settle();
    assert_eq!(world.operations(), ["put", "delete", "put"]);
    assert_eq!(*unbound.lock().unwrap(), Some(true));
    assert_eq!(world.drained(), [(1, Some(2))], "two changes, one visit, the newest mark");
}
