//! Several workers, and shards that move between them.

use super::*;

/// Workers that are stepped in turn.
fn crew_of(threads: usize) -> World {
    World::new(|script, config| {
        config.threads = threads;
        script.caps.mark_bits = 16;
    })
}

fn rules_of(world: &World) -> Vec<usize> {
    world.offload.snapshot().workers.iter().map(|worker| worker.rules).collect()
}

#[test]
fn a_megaflow_has_one_worker_for_all_pollers_and_megaflows_are_spread() {
    let mut world = crew_of(4);
    let other = world.offload.agent(1, Box::new(|| {})).unwrap();
    let first: Vec<_> = (0..200).map(|i| world.adopt(i)).collect();
    let second: Vec<_> = (0..200).map(|i| world.adopt_for(&other, i, output(1), 2)).collect();
    world.settle();
    assert_eq!(world.device_actions().len(), 200, "one rule a megaflow, whoever asked");
    assert!(first.iter().zip(&second).all(|(a, b)| a.mark() == b.mark() && a.mark().is_some()));
    let rules = rules_of(&world);
    assert_eq!(rules.iter().sum::<usize>(), 200);
    assert!(rules.iter().all(|rules| *rules > 10), "{rules:?}");
}

#[test]
fn workers_come_and_go_without_a_word_to_the_device() {
    let mut world = crew_of(4);
    let cells: Vec<_> = (0..200).map(|i| world.adopt(i)).collect();
    world.settle();
    world.operations();
    for threads in [1, 3, 2, 4] {
        world.offload.set_threads(threads).unwrap();
        world.settle();
        let rules = rules_of(&world);
        assert_eq!(rules.iter().sum::<usize>(), 200);
        assert!(rules[threads..].iter().all(|rules| *rules == 0), "{threads}: {rules:?}");
        assert!(rules[..threads].iter().all(|rules| *rules > 0), "{threads}: {rules:?}");
        assert_eq!(world.operations(), [""; 0]);
    }
    world.agent.update(world.now, &cells[7], output(9), 2);
    world.settle();
    assert_eq!(world.operations(), ["replace"], "whoever has the rule now knows it");
    cells.iter().for_each(|cell| world.agent.release(world.now, cell));
    world.settle();
    world.turn_ring_over();
    world.pass(Duration::from_millis(50));
    let snapshot = world.offload.snapshot();
    assert_eq!((snapshot.rules, snapshot.megaflows), (0, 0));
    assert_eq!((snapshot.marks.in_use, snapshot.marks.quarantined), (0, 0));
}

#[test]
fn a_flow_that_comes_before_or_after_its_shard_moved_is_put_once_and_is_not_lost() {
    let mut world = crew_of(2);
    let early: Vec<_> = (0..100).map(|i| world.adopt(i)).collect();
    world.settle();
    world.offload.set_threads(1).unwrap();
    // The second worker gives its shards away; the first has not looked yet.
    let now = world.now;
    world.others[0].turn(now);
    for cell in &early {
        world.worker.visit(cell, now);
    }
    assert!(!world.worker.held.is_empty(), "flows are kept until their shard has come");
    world.settle();
    assert!(world.worker.held.is_empty());
    // A poller that read the old route leaves its flow with the worker that has nothing to do with it any more.
    let late: Vec<_> = (100..120).map(|i| world.adopt(i)).collect();
    while let Some(cell) = world.worker.consumer.next_put() {
        world.worker.crew.lanes[1].put(0, &cell, true);
    }
    world.settle();
    assert!(late.iter().all(|cell| cell.mark().is_some()));
    assert_eq!(world.device_actions().len(), 120);
    assert_eq!(world.operations().len(), 120, "each was put once");
    assert_eq!(rules_of(&world), [120, 0]);
}

#[test]
fn troubles_move_with_their_shards() {
    let mut world = World::new(|script, config| {
        (config.threads, script.capacity) = (2, 10);
        script.put_answers = (0..5).map(|_| PutError::Device("busy".to_owned())).collect();
    });
    let cells: Vec<_> = (0..40).map(|i| world.adopt(i)).collect();
    world.settle();
    let refused = |world: &World| world.offload.snapshot().refused;
    let before = refused(&world);
    assert_eq!(before, [(Reason::NoRoom, 25), (Reason::Device, 5)]);
    world.offload.set_threads(1).unwrap();
    world.settle();
    assert_eq!(refused(&world), before);
    // Room appears for all: those that wait are put, and those that the device failed come back by themselves.
    world.script.lock().unwrap().capacity = usize::MAX;
    world.agent.release(world.now, &cells[0]);
    world.pass(Duration::from_secs(40));
    assert_eq!(refused(&world), []);
    assert_eq!(world.device_actions().len(), 39);
}

#[test]
fn rules_on_their_way_when_a_port_was_connected_are_put_anew_and_others_once() {
    for (in_transit, puts) in [(true, true), (false, false)] {
        let mut world = crew_of(2);
        let cells: Vec<_> = (0..40).map(|i| world.adopt(i)).collect();
        world.settle();
        let moved = rules_of(&world)[1];
        assert!(moved > 0 && moved < 40);
        if !in_transit {
            world.offload.port_connected(PortNo(1));
            world.settle();
        }
        world.operations();
        world.offload.set_threads(1).unwrap();
        let now = world.now;
        // One has given them away, and the other hears of the port before it has them.
        world.others[0].turn(now);
        let parcels = world.worker.consumer.take_messages().unwrap();
        if in_transit {
            world.offload.port_connected(PortNo(1));
            world.settle();
            assert_eq!(world.operations().len(), 40 - moved);
        }
        parcels.into_iter().for_each(|parcel| world.worker.obey(parcel, now));
        world.settle();
        let expected = if puts { moved } else { 0 };
        assert_eq!(world.operations(), vec!["replace"; expected], "{in_transit}");
        drop(cells);
    }
}

#[test]
fn rules_on_their_way_know_of_no_change_that_their_giver_had_yet_to_hear_of() {
    let mut world = crew_of(2);
    let cells: Vec<_> = (0..40).map(|i| world.adopt(i)).collect();
    world.settle();
    // Both hear of another port first, and one gives its rules away before it hears of theirs.
    world.offload.port_connected(PortNo(2));
    world.offload.set_threads(1).unwrap();
    world.offload.port_connected(PortNo(1));
    world.operations();
    let now = world.now;
    world.others[0].turn(now);
    world.settle();
    assert_eq!(world.operations(), ["replace"; 40]);
    drop(cells);
}

#[test]
fn a_shard_given_away_while_the_workers_are_stopped_is_not_forgotten() {
    for round in 0..200 {
        let world = World::new(|_, _| {});
        let device = scripted(&world.script, &Fence::default());
        let config = OffloadConfig { threads: 2, ..OffloadConfig::default() };
        let offload = Offload::start(Arc::new(device), Instant::now(), config).unwrap();
        offload.port_added(port(1), vec![]);
        let agent = offload.agent(0, Box::new(|| {})).unwrap();
        let cells: Vec<_> = (1..=64).map(|i| world.adopt_for(&agent, i, output(1), 1)).collect();
        await_that("all are put", || cells.iter().all(|cell| cell.mark().is_some()));
        offload.set_threads(1 + round % 2).unwrap();
        let stopped = offload.stop(Instant::now() + Duration::from_secs(60));
        assert_eq!(stopped, Stopped { removed: 64, left: 0 }, "round {round}");
        assert_eq!(world.device_actions().len(), 0);
    }
}

#[test]
fn a_flush_waits_for_the_rules_of_shards_that_are_on_their_way() {
    let mut world = crew_of(2);
    let cells: Vec<_> = (0..100).map(|i| world.adopt(i)).collect();
    world.settle();
    let moved = rules_of(&world)[1];
    world.offload.set_threads(1).unwrap();
    let now = world.now;
    world.others[0].turn(now);
    // The first worker reads of the flush before it reads of the shards.
    let parcels = world.worker.consumer.take_messages().unwrap();
    let mut flushed = world.offload.flush();
    world.script.lock().unwrap().delete_failures = 0;
    for _ in 0..20 {
        world.worker.turn(now);
        world.others[0].turn(now);
    }
    assert_eq!(flushed.try_recv(), Ok(None), "{moved} rules are still on their way");
    parcels.into_iter().for_each(|parcel| world.worker.obey(parcel, now));
    world.settle();
    assert_eq!(flushed.try_recv(), Ok(Some(Flushed { removed: 100, trouble: None })));
    assert_eq!(world.device_actions().len(), 100, "they are wanted, so they are put again");
    drop(cells);
}

#[test]
fn a_worker_that_counts_for_a_flush_keeps_its_shards_until_it_is_through() {
    let mut world = crew_of(2);
    let cells: Vec<_> = (0..100).map(|i| world.adopt(i)).collect();
    world.settle();
    world.script.lock().unwrap().delete_failures = 1;
    let mut flushed = world.offload.flush();
    world.settle();
    assert_eq!(flushed.try_recv(), Ok(None), "one removal failed");
    world.offload.set_threads(1).unwrap();
    world.pass(Duration::from_millis(50));
    assert_eq!(flushed.try_recv(), Ok(Some(Flushed { removed: 100, trouble: None })));
    world.settle();
    assert_eq!(rules_of(&world), [100, 0]);
    drop(cells);
}

#[test]
fn room_that_one_worker_gives_back_is_taken_by_another_that_waits() {
    let mut world = World::new(|script, config| (config.threads, script.capacity) = (2, 50));
    let cells: Vec<_> = (0..100).map(|i| world.adopt(i)).collect();
    world.settle();
    assert_eq!(world.device_actions().len(), 50);
    // The first fifty die; among those that wait are flows of both workers.
    cells[..50].iter().for_each(|cell| world.agent.release(world.now, cell));
    world.settle();
    assert_eq!(world.device_actions().len(), 50);
    assert_eq!(world.offload.snapshot().refused, []);
}

#[test]
fn a_full_device_is_shared_by_those_that_want_it() {
    let mut world = World::new(|script, config| {
        (config.threads, script.capacity, script.caps.mark_bits) = (2, 40, 16);
    });
    // All that the device holds is one worker's.
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for i in 0..400 {
        let cell = world.adopt(i);
        let mine = if world.worker.crew.route(crate::offload::crew::shard_of(cell.hash())) == 0 {
            &mut first
        } else {
            &mut second
        };
        mine.push(cell);
        if first.len() < 40 {
            world.worker.turn(world.now);
        }
    }
    world.settle();
    assert_eq!(rules_of(&world), [40, 0]);
    world.pass(Duration::from_secs(20));
    let rules = rules_of(&world);
    assert_eq!(rules.iter().sum::<usize>(), 40);
    assert!(rules[1] >= 15, "{rules:?}");
}

#[test]
fn rules_that_move_after_a_reset_are_put_again_whoever_heard_of_it_first() {
    for giver_knows in [true, false] {
        let mut world = crew_of(2);
        let cells: Vec<_> = (0..100).map(|i| world.adopt(i)).collect();
        world.settle();
        {
            let mut script = world.script.lock().unwrap();
            script.rules.clear();
            script.generation += 1;
        }
        let now = world.now + Duration::from_secs(1);
        let knows = if giver_knows { &mut world.others[0] } else { &mut world.worker };
        knows.turn(now);
        knows.turn(now);
        world.offload.set_threads(1).unwrap();
        world.pass(Duration::from_secs(3));
        assert_eq!(rules_of(&world), [100, 0]);
        assert_eq!(world.device_actions().len(), 100, "what is believed to be in the device is");
        drop(cells);
    }
}

#[test]
fn a_port_that_was_removed_is_let_go_by_a_worker_that_gives_its_last_rules_away() {
    let mut world = crew_of(2);
    world.offload.set_threads(1).unwrap();
    let (stay, go): (Vec<_>, Vec<_>) =
        (0..50).map(|i| world.adopt(i)).partition(|cell| crate::offload::crew::shard_of(cell.hash()).is_multiple_of(2));
    stay.iter().for_each(|cell| world.agent.release(world.now, cell));
    world.settle();
    world.script.lock().unwrap().delete_failures = u32::MAX;
    world.offload.port_removed(PortNo(1));
    world.settle();
    assert_eq!(rules_of(&world), [go.len(), 0], "the device does not let go of them");
    world.offload.set_threads(2).unwrap();
    world.settle();
    assert_eq!(rules_of(&world), [0, go.len()]);
    assert_eq!(world.offload.snapshot().ports, []);
}

#[test]
fn whoever_hires_a_worker_asks_the_device_nothing_since_it_may_hang() {
    let mut world = crew_of(1);
    let (asked, asks) = std::sync::mpsc::channel();
    world.script.lock().unwrap().meanwhile_generation = Some(Box::new(move || asked.send(()).unwrap()));
    world.offload.set_threads(2).unwrap();
    assert!(asks.try_recv().is_err());
    let cells: Vec<_> = (0..100).map(|i| world.adopt(i)).collect();
    await_that("the two of them put all", || {
        world.settle();
        cells.iter().all(|cell| cell.mark().is_some())
    });
    assert_eq!(asks.try_recv(), Ok(()), "before the first rule");
}

#[test]
fn a_flush_ends_though_the_shards_it_waited_for_stay_where_they_are() {
    let mut world = crew_of(2);
    world.offload.set_threads(1).unwrap();
    world.settle();
    let cells: Vec<_> = (0..100).map(|i| world.adopt(i)).collect();
    world.settle();
    // The second worker hears that shards are to come, of the flush, and that they do not come after all.
    world.offload.set_threads(2).unwrap();
    let mut flushed = world.offload.flush();
    world.others[0].turn(world.now);
    world.offload.set_threads(1).unwrap();
    world.settle();
    assert_eq!(flushed.try_recv(), Ok(Some(Flushed { removed: 100, trouble: None })));
    drop(cells);
}

#[test]
fn a_plan_that_changes_to_and_fro_leaves_every_rule_with_the_one_worker_that_has_its_shard() {
    let mut world = crew_of(4);
    let cells: Vec<_> = (0..300).map(|i| world.adopt(i)).collect();
    world.settle();
    for (step, cell) in cells.iter().enumerate().take(200) {
        world.offload.set_threads(1 + step * 7 % 4).unwrap();
        // Whoever's turn it is looks, the others do not.
        let now = world.now;
        match step % 5 {
            0 => world.worker.turn(now),
            other if other < 4 => world.others[other - 1].turn(now),
            _ => {}
        }
        world.agent.update(now, cell, output(5), step as u64 + 2);
    }
    world.settle();
    assert_eq!(rules_of(&world).iter().sum::<usize>(), 300);
    assert_eq!(world.device_actions().len(), 300);
    assert!(cells[..200].iter().all(|cell| cell.actions() == output(5)));
    assert_eq!(world.device_actions().iter().filter(|actions| **actions == output(5)).count(), 200);
    assert!(world.worker.held.is_empty() && world.others.iter().all(|worker| worker.held.is_empty()));
}

#[test]
fn rules_of_a_worker_that_was_hired_after_a_flush_are_not_taken_for_older_than_it() {
    let world = World::new(|script, _| script.caps.mark_bits = 16);
    let device = scripted(&world.script, &Fence::default());
    let offload = Offload::start(Arc::new(device), Instant::now(), OffloadConfig::default()).unwrap();
    offload.port_added(port(1), vec![]);
    let flush = || {
        let mut flushed = offload.flush();
        await_that("the flush ends", || flushed.try_recv().unwrap().is_some());
    };
    flush();
    offload.set_threads(2).unwrap();
    let agent = offload.agent(0, Box::new(|| {})).unwrap();
    let cells: Vec<_> = (1..=50).map(|i| world.adopt_for(&agent, i, output(1), 1)).collect();
    let rules = || -> Vec<usize> { offload.snapshot().workers.iter().map(|worker| worker.rules).collect() };
    await_that("both have put theirs", || rules().iter().sum::<usize>() == 50 && rules()[1] > 0);
    offload.set_threads(1).unwrap();
    await_that("the first has all", || rules() == [50, 0]);
    // Whatever it was told before has been looked at when it says what marks there are.
    let mut marks = pin!(offload.marks(0, 1));
    await_that("it answers", || poll(&mut marks).is_some());
    assert!(!world.operations().contains(&"delete"), "nothing is put anew");
    assert!(cells.iter().all(|cell| cell.mark().is_some()));
    offload.stop(Instant::now() + Duration::from_secs(60));
}

#[test]
fn workers_that_exchange_shards_amid_a_flush_end_both() {
    let mut world = crew_of(3);
    world.offload.set_threads(2).unwrap();
    world.settle();
    let cells: Vec<_> = (0..300).map(|i| world.adopt(i)).collect();
    world.settle();
    let mut flush = world.offload.flush();
    world.offload.set_threads(3).unwrap();
    world.settle();
    assert_eq!(flush.try_recv(), Ok(Some(Flushed { removed: 300, trouble: None })));
    assert!(rules_of(&world).iter().all(|rules| *rules > 50), "{:?}", rules_of(&world));
    assert!(cells.iter().all(|cell| cell.standing() == Standing::Offloaded(Level::Full)), "they are wanted again");
}
