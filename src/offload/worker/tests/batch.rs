//! A device that takes many puts at once.

use super::*;

fn world(batch: usize, adjust: impl FnOnce(&mut Script)) -> World {
    World::new(|script, _| {
        script.caps.batch = batch;
        adjust(script);
    })
}

#[test]
fn what_waits_is_put_together_and_bound() {
    let mut world = world(4, |_| {});
    let cells: Vec<_> = (1..=6).map(|i| world.adopt(i)).collect();
    world.settle();
    assert_eq!(world.operations(), ["put_all", "put_all"]);
    assert!(cells.iter().all(|cell| cell.standing() == Standing::Offloaded(Level::Full) && cell.mark().is_some()));
    assert_marks_are_their_rules_own(&world);
    let snapshot = world.offload.snapshot();
    assert_eq!((snapshot.operations.put.done, snapshot.device_time.count), (6, 6));
    assert_eq!(world.drained().len(), 6);
}

#[test]
fn a_flow_that_dies_while_its_batch_is_asked_is_taken_out_again() {
    let mut world = world(4, |_| {});
    let cells: Vec<_> = (1..=2).map(|i| world.adopt(i)).collect();
    let (agent, cell, now) = (Arc::clone(&world.agent), crate::sync::Arc::clone(&cells[0]), world.now);
    world.script.lock().unwrap().meanwhile = Some(Box::new(move || agent.release(now, &cell)));
    world.settle();
    assert_eq!(world.operations(), ["put_all", "delete"]);
    assert_eq!(cells[0].standing(), Standing::Gone);
    assert_eq!(cells[1].standing(), Standing::Offloaded(Level::Full));
}

#[test]
fn a_flow_that_changes_while_its_batch_is_asked_ends_with_its_newest_actions() {
    let mut world = world(4, |_| {});
    let cell = world.adopt(1);
    let (agent, changed, now) = (Arc::clone(&world.agent), crate::sync::Arc::clone(&cell), world.now);
    world.script.lock().unwrap().meanwhile = Some(Box::new(move || agent.update(now, &changed, output(2), 2)));
    world.settle();
    assert_eq!(world.operations(), ["put_all", "replace"]);
    assert_eq!(world.device_actions(), [output(2)]);
}

#[test]
fn the_owners_of_one_megaflow_share_a_place_in_the_batch() {
    let mut world = world(4, |_| {});
    let other = world.offload.agent(1, Box::new(|| {})).unwrap();
    let cells = [world.adopt(1), world.adopt_for(&other, 1, output(1), 1)];
    world.settle();
    assert_eq!(world.operations(), ["put_all"]);
    assert!(cells.iter().all(|cell| cell.standing() == Standing::Offloaded(Level::Full)));
    assert_eq!((mark_of(&cells[0]), mark_of(&cells[1])), (Some(1), Some(1)));
}

#[test]
fn an_owner_that_wants_something_newer_is_heard_though_the_put_it_waited_for_fails() {
    let unsupported = PutError::Unsupported(Unsupported::Outputs);
    let mut world = world(4, |script| script.put_answers.push_back(unsupported));
    let other = world.offload.agent(1, Box::new(|| {})).unwrap();
    let cells = [world.adopt(1), world.adopt_for(&other, 1, output(2), 2)];
    world.settle();
    assert_eq!(world.operations(), ["put_all", "put"]);
    assert_eq!(world.device_actions(), [output(2)]);
    assert!(cells.iter().all(|cell| cell.standing() == Standing::Offloaded(Level::Full)));
}

#[test]
fn each_put_of_a_batch_fails_for_itself() {
    let mut world = world(4, |script| {
        script.capacity = 2;
        script.put_answers.push_back(PutError::Device("no".to_owned()));
    });
    let cells: Vec<_> = (1..=4).map(|i| world.adopt(i)).collect();
    world.settle();
    let standings: Vec<_> = cells.iter().map(|cell| cell.standing()).collect();
    let in_device = Standing::Offloaded(Level::Full);
    let (failed, full) = (Standing::Refused(Reason::Device), Standing::Refused(Reason::NoRoom));
    assert_eq!(standings, [failed, in_device, in_device, full]);
    assert_marks_are_their_rules_own(&world);
    world.agent.release(world.now, &cells[1]);
    world.settle();
    assert_eq!(cells[3].standing(), in_device, "there is room now");
}

#[test]
fn a_device_that_panics_in_a_batch_is_off_for_all_of_it() {
    let mut world = world(4, |script| script.panic_at = Some("put_all"));
    let cells: Vec<_> = (1..=3).map(|i| world.adopt(i)).collect();
    world.settle();
    assert!(world.fence.is_raised());
    assert!(cells.iter().all(|cell| cell.standing() == Standing::Refused(Reason::Off) && cell.mark().is_none()));
}

#[test]
fn a_batch_is_no_way_around_the_limit_of_operations() {
    let mut world = World::new(|script, config| {
        script.caps.batch = 64;
        config.wanted.operation_rate = 100;
    });
    (1..=50).for_each(|i| drop(world.adopt(i)));
    world.settle();
    assert_eq!(world.offload.snapshot().operations.put.done, 10, "a tenth of a second's at once");
    world.pass(Duration::from_millis(200));
    assert_eq!(world.offload.snapshot().operations.put.done, 30);
}

#[test]
fn a_shard_does_not_go_while_a_rule_of_it_waits_for_its_batch() {
    let mut world = World::new(|script, config| {
        config.threads = 2;
        (script.caps.batch, script.caps.mark_bits) = (64, 16);
    });
    world.offload.set_threads(1).unwrap();
    world.settle();
    // One more than a turn looks at: the flush of the last ends amid the puts, and then what it held back is given away.
    let mut cells: Vec<_> = (0..=BATCH as u32).map(|i| world.adopt(i)).collect();
    world.settle();
    let last = *world.worker.rules.all_in_device().last().unwrap();
    let last = world.worker.rules.get(last).unwrap().owners[0].slot().index;
    let _flush = world.offload.flush();
    world.offload.set_threads(2).unwrap();
    cells.extend((1_000..1_020).map(|i| world.adopt(i)));
    // Another owner of that one, so that it is looked at between them.
    let owner = world.adopt(last);
    cells.extend((2_000..2_020).map(|i| world.adopt(i)));
    world.worker.turn(world.now);
    assert!(world.worker.flushes.is_empty(), "it has ended in this turn");
    world.settle();
    assert!(cells.iter().chain([&owner]).all(|cell| cell.standing() == Standing::Offloaded(Level::Full)));
    assert_eq!((world.device_actions().len(), world.offload.snapshot().rules), (cells.len(), cells.len()));
    assert!(world.offload.snapshot().workers.iter().all(|worker| worker.rules > 50), "and the shards have gone");
    cells.iter().chain([&owner]).for_each(|cell| world.agent.release(world.now, cell));
    world.settle();
    assert_eq!((world.device_actions().len(), world.offload.snapshot().rules), (0, 0));
}
