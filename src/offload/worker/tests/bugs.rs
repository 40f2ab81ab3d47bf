//! Mistakes that others made on the same road, each with the tests that would have caught it here.
//!
//! Those with a bare number were made by the patch for Open vSwitch of 2017 that this offload path goes back to; those with
//! an n (for now) are made by the Open vSwitch of July 2026. A test sees to it that every test named here exists.
//!
//! - **1**: A thread that woke for nothing took the head of an empty list for an item.
//!   - `a_worker_that_wakes_for_nothing_does_nothing`
//!   - `a_worker_with_work_does_not_sleep_and_a_producer_wakes_one_that_sleeps`
//! - **2**: Without a free mark the flow was put all the same, with an invalid one.
//!   - `without_a_free_mark_a_flow_waits_and_is_put_when_one_is_released`
//! - **3**: A failed change freed the mark that rule and tables went on using.
//!   - `a_failed_replace_keeps_the_mark_until_the_device_has_forgotten_the_rule`
//! - **4**: The poller chose between adding and changing by what the worker would write later, so that the second
//!   of two quick requests was lost.
//!   - `two_quick_requests_are_one_put_with_the_newest_actions`
//!   - `a_flow_that_changes_while_installing_ends_with_its_newest_actions`
//!   - `a_flow_that_changes_at_any_moment_ends_with_its_newest_actions_in_the_device`
//! - **5**: A change that waited behind a put that failed used the mark which that had freed.
//!   - `a_change_asked_for_while_its_put_fails_has_a_mark_of_its_own`
//! - **6**: A flow removed before its put was through left rule, mark and reference for ever.
//!   - `a_flow_that_dies_at_any_step_leaves_neither_rule_nor_mark_nor_reference`
//!   - `a_flow_that_dies_while_installing_is_removed_after_and_never_bound`
//!   - `a_flow_that_dies_at_any_moment_ends_with_nothing_in_the_device`
//! - **7**: Nobody asked whether a flow was dead before it was put.
//!   - `a_flow_that_dies_while_queued_is_never_installed`
//! - **8**: A port was used that might be closed meanwhile.
//!   - `a_port_that_goes_in_the_midst_of_a_put_keeps_no_rule`
//!   - `nothing_is_sent_to_a_port_that_is_gone_and_its_packets_come_up_marked`
//! - **9**: A removal that failed, or whose port was gone, gave the mark back while the device went on stamping it.
//!   - `a_port_that_is_gone_keeps_its_marks_until_the_device_has_forgotten_its_rules`
//!   - `a_delete_is_tried_until_the_device_has_forgotten`
//! - **10**: One flow was removed twice, and its reference given back twice.
//!   - `a_flow_that_many_want_gone_is_deleted_once`
//! - **11**: A reference that could not be taken was given back all the same.
//!   - `a_flow_that_dies_at_any_step_leaves_neither_rule_nor_mark_nor_reference`
//!   - `a_number_used_again_is_not_mistaken_for_the_flow_it_was`
//! - **12**: A flow made again while its old removal waited took the old rule for its own, and lost it to that
//!   removal.
//!   - `a_flow_made_again_in_the_midst_of_its_old_rules_removal_is_installed_once`
//!   - `a_flow_made_again_while_its_old_rule_is_being_removed_ends_installed_once`
//!   - `a_flow_made_again_before_its_death_was_seen_ends_installed_once`
//! - **13**: Tables were walked by a thread that had said that it did not look at them.
//!   - `a_poller_that_leaves_while_its_flows_are_bound_leaves_nothing_behind`
//!   - `the_worker_sees_what_was_wanted_last`
//! - **14**: The thread could not be stopped, and what waited kept its flows alive.
//!   - `stopping_removes_every_rule_even_where_the_device_cannot_flush`
//!   - `a_worker_thread_offloads_and_stops_clean`
//!   - `a_closed_queue_wakes_the_worker_and_keeps_nothing`
//!   - `however_it_is_ended_nothing_is_left_of_it`
//! - **15**: The queue had no bound, and kept each of many requests for one flow.
//!   - `a_full_queue_refuses_new_flows_but_neither_deletes_nor_flows_that_were_let_in`
//!   - `new_flows_are_refused_by_their_bytes_and_each_leaves_as_heavy_as_it_entered`
//!   - `many_changes_between_two_looks_cost_one_operation`
//! - **16**: All pollers shared one lock, and each request woke the thread by a system call.
//!   - `a_poller_waits_for_no_lock_of_the_offload_path`
//!   - `a_worker_that_is_awake_is_not_woken`
//! - **17**: Of what the device is told of a flow, only the mark was filled in.
//!   - `all_that_the_device_is_told_of_a_flow_is_the_flows`
//! - **18**: Empty actions were copied from nowhere.
//!   - `a_flow_without_actions_is_offloaded_and_changed_like_any_other`
//! - **19**: Two pollers with one megaflow and different actions: the second merely joined the first.
//!   - `two_pollers_that_decide_differently_in_the_midst_of_a_put_end_with_the_newest_decision`
//!   - `pollers_share_a_megaflows_rule_until_the_last_leaves_and_the_newest_decision_wins`
//! - **20**: A line was logged for each operation, and removals asked nobody whether offload was on.
//!   - `offloading_a_thousand_flows_is_not_a_line_in_the_log_each`
//!   - `switched_off_the_device_is_emptied_and_switched_on_it_is_filled_with_what_lives`
//! - **21**: The name of a megaflow did not depend on its mask.
//!   - `the_name_of_a_megaflow_covers_its_mask`
//!   - `equal_values_under_different_masks_are_two_rules`
//! - **n1**: Pools of marks belonged to devices but were made once a process, so that a second device crashed.
//!   - `two_devices_have_marks_of_their_own`
//! - **n2**: In a dump, flows stood under the title of another thread than theirs.
//!   - `each_flow_of_a_dump_stands_under_the_title_of_its_own_poller`
//! - **n3**: A change narrowed the rule's match to the caller's.
//!   - `a_change_leaves_the_match_of_a_rule_as_it_was`
//! - **n4**: A port that was removed took its flows along, but not their marks.
//!   - `the_marks_of_a_port_that_goes_come_back`
//! - **n5**: Each request of a poller looked the device up under a lock of the whole process.
//!   - `a_poller_waits_for_no_lock_of_the_offload_path`
//! - **n6**: A rule that could not be removed was joined by the next put of its megaflow, which was called a
//!   success; and the queue's depth could be read below zero.
//!   - `a_put_does_not_join_a_rule_that_could_not_be_removed`
//!   - `the_depth_of_a_queue_is_never_below_zero`
//!
//! The four races of a flow's death are under 7 (while queued), 6 (while installing), 12 (made again while being removed) and
//! 19 (two pollers).

use std::collections::BTreeSet;
use std::path::Path;
use std::thread;

use super::*;

/// Has something done in the midst of the next operation: the device is held still meanwhile.
fn amid(world: &World, what: impl FnOnce() + Send + 'static) {
    let before = world.script.lock().unwrap().meanwhile.replace(Box::new(what));
    assert!(before.is_none());
}

/// What a closure needs to do something to a flow.
fn at_hand(
    world: &World,
    cell: &crate::sync::Arc<OffloadCell>,
) -> (Arc<Agent>, crate::sync::Arc<OffloadCell>, Instant) {
    (Arc::clone(&world.agent), crate::sync::Arc::clone(cell), world.now)
}

/// The marks that the device stamps.
fn stamped(world: &World) -> Vec<u32> {
    world.script.lock().unwrap().rules.values().map(|rule| rule.1).collect()
}

/// Marks in use and in quarantine, once whatever may turn over has, and whatever is tried again has been.
fn marks_left(world: &mut World) -> (u64, u64) {
    for _ in 0..10 {
        world.pass(Duration::from_millis(100));
        world.drained();
        world.turn_ring_over();
    }
    world.pass(Duration::from_millis(100));
    let marks = world.offload.snapshot().marks;
    (marks.in_use, marks.quarantined)
}

#[test]
fn a_worker_that_wakes_for_nothing_does_nothing() {
    let mut world = World::new(|_, _| {});
    let before = world.offload.snapshot();
    for _ in 0..3 {
        world.worker.consumer.sleep(Some(Duration::ZERO));
        assert!(world.worker.consumer.next_put().is_none() && world.worker.consumer.next_delete().is_none());
        world.worker.turn(world.now);
        // A message that says nothing new wakes it, too.
        world.worker.crew.lanes[0].send(Message::Look);
        world.worker.turn(world.now);
    }
    let after = world.offload.snapshot();
    assert_eq!(world.operations(), [""; 0]);
    assert_eq!((after.queue.depth, after.queue.deletes, after.megaflows), (0, 0, 0));
    assert_eq!(before.operations, after.operations);
}

#[test]
fn two_quick_requests_are_one_put_with_the_newest_actions() {
    let mut world = World::new(|_, _| {});
    let cell = world.adopt(1);
    world.agent.update(world.now, &cell, output(2), 2);
    world.settle();
    assert_eq!(world.operations(), ["put"]);
    assert_eq!(world.device_actions(), [output(2)]);
}

#[test]
fn a_change_asked_for_while_its_put_fails_has_a_mark_of_its_own() {
    let mut world = World::new(|script, _| script.put_answers.push_back(PutError::Device("no".to_owned())));
    let cell = world.adopt(1);
    let (agent, changing, now) = at_hand(&world, &cell);
    amid(&world, move || agent.update(now, &changing, output(2), 2));
    world.settle();
    assert_eq!(world.operations(), ["put", "put"], "a newer decision is tried at once");
    assert_eq!(world.device_actions(), [output(2)]);
    assert_eq!(stamped(&world), [2], "the device may stamp mark 1 still, so it rests");
    let other = world.adopt(2);
    world.settle();
    assert_eq!((mark_of(&cell), mark_of(&other)), (Some(2), Some(3)));
}

#[test]
fn a_flow_that_dies_at_any_step_leaves_neither_rule_nor_mark_nor_reference() {
    type Adjust = fn(&mut Script);
    type Die = fn(&mut World, &crate::sync::Arc<OffloadCell>);
    let fine: Adjust = |_| {};
    let amid_put: Die = |world, cell| {
        let (agent, dying, now) = at_hand(world, cell);
        amid(world, move || agent.release(now, &dying));
    };
    let amid_change: Die = |world, cell| {
        world.settle();
        world.agent.update(world.now, cell, output(2), 2);
        let (agent, dying, now) = at_hand(world, cell);
        amid(world, move || agent.release(now, &dying));
    };
    let installed: Die = |world, cell| {
        world.settle();
        world.agent.release(world.now, cell);
    };
    let steps: [(&str, Adjust, Die); 6] = [
        ("queued", fine, |world, cell| world.agent.release(world.now, cell)),
        ("in a put", fine, amid_put),
        ("in a put that fails", |script| script.put_answers.push_back(PutError::Device("no".to_owned())), amid_put),
        ("in a change", fine, amid_change),
        (
            "in a change that fails",
            |script| script.replace_answers.push_back(PutError::Device("no".to_owned())),
            amid_change,
        ),
        ("installed, and the device does not let go", |script| script.delete_failures = 3, installed),
    ];
    for (step, adjust, die) in steps {
        let mut world = World::new(|script, _| adjust(script));
        let cell = world.adopt(1);
        die(&mut world, &cell);
        world.settle();
        assert_eq!(marks_left(&mut world), (0, 0), "{step}");
        assert_eq!(world.device_actions(), [], "{step}");
        assert!(world.worker.rules.is_empty(), "{step}");
        assert_eq!((cell.standing(), cell.mark()), (Standing::Gone, None), "{step}");
        assert_eq!(crate::sync::Arc::strong_count(&cell), 1, "{step}: nobody keeps a dead flow");
    }
}

#[test]
fn a_port_that_goes_in_the_midst_of_a_put_keeps_no_rule() {
    let mut world = World::new(|_, _| {});
    let cell = world.adopt(1);
    let offload = Arc::clone(&world.offload);
    amid(&world, move || offload.port_removed(PortNo(1)));
    world.settle();
    assert_eq!(world.operations(), ["put", "delete"]);
    assert_eq!((cell.standing(), cell.mark()), (Standing::Refused(Reason::Port), None));
    assert!(world.offload.snapshot().ports.is_empty());
    world.agent.release(world.now, &cell);
    world.settle();
    assert_eq!(marks_left(&mut world), (0, 0));
}

#[test]
fn a_port_that_is_gone_keeps_its_marks_until_the_device_has_forgotten_its_rules() {
    let mut world = World::new(|script, _| script.delete_failures = 4);
    let cell = world.adopt(1);
    world.settle();
    world.offload.port_removed(PortNo(1));
    world.agent.release(world.now, &cell);
    world.offload.port_added(port(2), vec![]);
    world.settle();
    world.turn_ring_over();
    let other =
        world.agent.adopt(world.now, FlowSlot { index: 2, generation: 0 }, Ufid(2), flow_of(2, 2), output(1), 1);
    world.settle();
    assert_eq!(stamped(&world), [1, 2], "mark 1 is stamped still, so nobody else has it");
    assert_eq!(world.offload.snapshot().marks.in_use, 2);
    assert_eq!(marks_left(&mut world), (1, 0));
    assert_eq!((stamped(&world), mark_of(&other)), (vec![2], Some(2)));
    assert_eq!(world.offload.snapshot().ports.len(), 1, "the port goes with the last of its rules");
}

#[test]
fn a_flow_that_many_want_gone_is_deleted_once() {
    let mut world = World::new(|_, _| {});
    let cell = world.adopt(1);
    world.settle();
    world.operations();
    // All before the worker looks: a flush, its port's removal, the switch turned off, its death; and once more amid its removal.
    let mut flush = world.offload.flush();
    world.offload.port_removed(PortNo(1));
    world.offload.set(&crate::offload::Wanted { enabled: false, ..Default::default() });
    world.agent.release(world.now, &cell);
    let offload = Arc::clone(&world.offload);
    amid(&world, move || drop(offload.flush()));
    world.settle();
    assert_eq!(world.operations(), ["delete"]);
    assert_eq!(flush.try_recv(), Ok(Some(Flushed { removed: 1, trouble: None })));
    assert_eq!(marks_left(&mut world), (0, 0));
    assert_eq!(crate::sync::Arc::strong_count(&cell), 1);
}

#[test]
fn a_flow_made_again_in_the_midst_of_its_old_rules_removal_is_installed_once() {
    let mut world = World::new(|_, _| {});
    let old = world.adopt(1);
    world.settle();
    world.agent.release(world.now, &old);
    let made = Arc::new(Mutex::new(None));
    let (agent, again, now) = (Arc::clone(&world.agent), Arc::clone(&made), world.now);
    amid(&world, move || {
        let slot = FlowSlot { index: 1, generation: 1 };
        *again.lock().unwrap() = Some(agent.adopt(now, slot, Ufid(1), flow(1), output(2), 2));
    });
    world.settle();
    let new = made.lock().unwrap().take().unwrap();
    assert_eq!(world.operations(), ["put", "delete", "put"]);
    assert_eq!(world.device_actions(), [output(2)]);
    assert_eq!((old.standing(), new.standing()), (Standing::Gone, Standing::Offloaded(Level::Full)));
    assert_eq!(mark_of(&new), Some(2), "mark 1 rests");
    world.agent.release(world.now, &new);
    world.settle();
    assert_eq!(world.device_actions(), []);
}

#[test]
fn a_worker_that_is_awake_is_not_woken() {
    let mut world = World::new(|_, _| {});
    let before = world.offload.queue().wakeups;
    let cells: Vec<_> = (1..=200).map(|i| world.adopt(i)).collect();
    cells.iter().for_each(|cell| world.agent.update(world.now, cell, output(2), 2));
    cells.iter().for_each(|cell| world.agent.release(world.now, cell));
    world.settle();
    let queue = world.offload.queue();
    assert_eq!(queue.wakeups, before);
    assert_eq!((queue.enqueued, queue.coalesced), (400, 200), "two lanes, and a change that waited already");
}

#[test]
fn a_poller_waits_for_no_lock_of_the_offload_path() {
    let mut world = World::new(|_, _| {});
    let first = world.adopt(1);
    world.settle();
    let (agent, now) = (Arc::clone(&world.agent), world.now);
    let crew = StdArc::clone(&world.worker.crew);
    // Everything that the workers, the control thread and the device lock.
    let staff = world.offload.path.as_ref().unwrap().staff();
    let script = world.script.lock().unwrap();
    let report = crew.posts[0].report();
    let marks = crew.marks();
    let visited = thread::spawn(move || {
        let slot = FlowSlot { index: 2, generation: 0 };
        let cell = agent.adopt(now, slot, Ufid(2), flow(2), output(1), 1);
        agent.update(now, &cell, output(2), 2);
        agent.ask_again(now, &cell);
        agent.release(now, &cell);
        let mut visited = 0;
        agent.drain(|_| visited += 1);
        assert_eq!(agent.standing(&first), Standing::Offloaded(Level::Full));
        assert!(agent.trouble(&first).is_none() && !agent.is_off() && agent.has_room(&first));
        visited
    });
    await_that("the poller is through", || visited.is_finished());
    drop((staff, script, report, marks));
    assert_eq!(visited.join().unwrap(), 1);
}

#[test]
fn all_that_the_device_is_told_of_a_flow_is_the_flows() {
    let mut world = World::new(|_, _| {});
    let cell = world.adopt(7);
    world.settle();
    let (mut key, mut mask) = (Key::ZERO, Mask::EMPTY);
    key.set(Field::Ipv4Dst, 9u32);
    mask.add_field(Field::Ipv4Dst);
    let anywhere = Match::new(&key, &mask);
    let slot = FlowSlot { index: 8, generation: 0 };
    let portless = world.agent.adopt(world.now, slot, Ufid(8), anywhere, output(3), 1);
    world.settle();
    world.agent.update(world.now, &cell, output(2), 2);
    world.settle();
    let told = std::mem::take(&mut world.script.lock().unwrap().told);
    let full =
        |matching, actions, cell, in_port| Told { matching, actions, mark: mark_of(cell), level: Level::Full, in_port };
    let expected = [
        full(flow(7), output(1), &cell, Some(PortNo(1))),
        full(anywhere, output(3), &portless, None),
        full(flow(7), output(2), &cell, Some(PortNo(1))),
    ];
    assert!(cell.mark().is_some() && portless.mark().is_some());
    assert_eq!(told, expected);
}

#[test]
fn a_flow_without_actions_is_offloaded_and_changed_like_any_other() {
    let mut world = World::new(|_, _| {});
    let cell = world.adopt_for(&world.agent, 1, Actions::drop(), 1);
    world.settle();
    assert_eq!((cell.standing(), world.device_actions()), (Standing::Offloaded(Level::Full), vec![Actions::drop()]));
    for (decision, actions) in [(2, output(2)), (3, Actions::drop())] {
        world.agent.update(world.now, &cell, actions.clone(), decision);
        world.settle();
        assert_eq!(world.device_actions(), [actions]);
    }
    assert_eq!(world.operations(), ["put", "replace", "replace"]);
}

#[test]
fn two_pollers_that_decide_differently_in_the_midst_of_a_put_end_with_the_newest_decision() {
    for newest_first in [false, true] {
        let mut world = World::new(|_, _| {});
        let other = world.offload.agent(7, Box::new(|| {})).unwrap();
        let (ours, theirs) = if newest_first { (6, 5) } else { (5, 6) };
        let first = world.adopt_for(&world.agent, 1, output(2), ours);
        let made = Arc::new(Mutex::new(None));
        let (shown, now) = (Arc::clone(&made), world.now);
        amid(&world, move || {
            let slot = FlowSlot { index: 1, generation: 0 };
            let cell = other.adopt(now, slot, Ufid(1), flow(1), output(3), theirs);
            *shown.lock().unwrap() = Some((other, cell));
        });
        world.settle();
        let (_other, second) = made.lock().unwrap().take().unwrap();
        let (actions, operations) =
            if newest_first { (output(2), vec!["put"]) } else { (output(3), vec!["put", "replace"]) };
        assert_eq!((world.device_actions(), world.operations()), (vec![actions], operations));
        assert_eq!((mark_of(&first), mark_of(&second)), (Some(1), Some(1)));
    }
}

#[test]
fn two_devices_have_marks_of_their_own() {
    let (mut one, mut other) = (World::new(|_, _| {}), World::new(|script, _| script.caps.mark_bits = 16));
    let (first, second) = (one.adopt(1), other.adopt(1));
    one.settle();
    other.settle();
    assert_eq!((mark_of(&first), mark_of(&second)), (Some(1), Some(1)));
    let capacities = [&one, &other].map(|world| world.offload.snapshot().marks.capacity);
    assert_eq!(capacities, [255, 65_535]);
    one.agent.release(one.now, &first);
    one.settle();
    assert_eq!((marks_left(&mut one), marks_left(&mut other)), ((0, 0), (1, 0)));
}

#[test]
fn a_change_leaves_the_match_of_a_rule_as_it_was() {
    let mut world = World::new(|_, _| {});
    let (mut key, mut mask) = (Key::ZERO, Mask::EMPTY);
    key.set(Field::InPort, 1u32);
    mask.add_field(Field::InPort);
    mask.add(Field::Vlan0Vid, 0x0ff);
    let wide = Match::new(&key, &mask);
    let cell = world.agent.adopt(world.now, FlowSlot { index: 1, generation: 0 }, Ufid(1), wide, output(1), 1);
    world.settle();
    world.agent.update(world.now, &cell, output(2), 2);
    world.settle();
    let told: Vec<Match> = world.script.lock().unwrap().told.iter().map(|told| told.matching).collect();
    assert_eq!(world.operations(), ["put", "replace"]);
    assert_eq!(told, [wide, wide]);
}

#[test]
fn the_marks_of_a_port_that_goes_come_back() {
    let mut world = World::new(|_, _| {});
    for round in 0..3 {
        let cells: Vec<_> = (1..=255).map(|i| world.adopt(i)).collect();
        world.settle();
        let marks: BTreeSet<_> = cells.iter().filter_map(|cell| mark_of(cell)).collect();
        assert_eq!(marks.len(), 255, "round {round}");
        world.drained();
        world.offload.port_removed(PortNo(1));
        cells.iter().for_each(|cell| world.agent.release(world.now, cell));
        world.settle();
        assert_eq!(marks_left(&mut world), (0, 0), "round {round}");
        world.offload.port_added(port(1), vec![Arc::clone(&world.ring)]);
        world.settle();
    }
}

#[test]
fn a_put_does_not_join_a_rule_that_could_not_be_removed() {
    let mut world = World::new(|script, _| script.delete_failures = 3);
    let old = world.adopt(1);
    world.settle();
    world.agent.release(world.now, &old);
    world.settle();
    let new = world.adopt_for(&world.agent, 1, output(2), 2);
    world.settle();
    assert_eq!(world.device_actions(), [output(1)], "the old rule stands");
    assert_eq!((new.mark(), mark_of(&old)), (None, None), "and is nobody's");
    assert!(!matches!(new.standing(), Standing::Offloaded(_)), "{:?}", new.standing());
    world.pass(Duration::from_secs(1));
    assert_eq!((new.standing(), world.device_actions()), (Standing::Offloaded(Level::Full), vec![output(2)]));
}

#[test]
fn the_depth_of_a_queue_is_never_below_zero() {
    let mut world = World::new(|_, _| {});
    let lanes = crate::sync::Arc::clone(&world.worker.crew.lanes[0]);
    let (agent, now) = (Arc::clone(&world.agent), world.now);
    let producer = thread::spawn(move || {
        for i in 1..=5_000 {
            let slot = FlowSlot { index: i, generation: 0 };
            let cell = agent.adopt(now, slot, Ufid(i.into()), flow(i), output(1), 1);
            agent.release(now, &cell);
        }
    });
    let mut looks = 0u64;
    while !producer.is_finished() || world.worker.consumer.has_work() {
        world.worker.turn(now);
        let counts = lanes.counts();
        assert!(counts.depth <= 5_000 && counts.deletes <= 5_000, "{counts:?}");
        looks += 1;
    }
    producer.join().unwrap();
    let counts = lanes.counts();
    assert!(looks > 0);
    assert_eq!((counts.depth, counts.deletes), (0, 0));
}

/// Names of the functions that are marked as tests in the Rust files under `dir`.
fn tests_under(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tests_under(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let marked = text.split("#[test]").skip(1);
            let names = marked.filter_map(|after| after.trim_start().strip_prefix("fn ")?.split_once('('));
            found.extend(names.map(|(name, _)| name.to_owned()));
        }
    }
}

#[test]
fn every_mistake_in_the_table_has_tests_that_exist() {
    let mut tests = BTreeSet::new();
    for dir in ["src", "tests"] {
        tests_under(&Path::new(env!("CARGO_MANIFEST_DIR")).join(dir), &mut tests);
    }
    let head =
        include_str!("bugs.rs").lines().map_while(|line| line.strip_prefix("//!")).collect::<Vec<_>>().join("\n");
    let rows: Vec<(&str, &str)> = head.split("\n - **").skip(1).map(|row| row.split_once("**").unwrap()).collect();
    let numbers: Vec<&str> = rows.iter().map(|(number, _)| *number).collect();
    let expected: Vec<String> = (1..=21).map(|n| n.to_string()).chain((1..=6).map(|n| format!("n{n}"))).collect();
    assert_eq!(numbers, expected);
    for (number, row) in rows {
        let names: Vec<&str> = row.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "no test for {number}");
        let missing: Vec<_> = names.iter().filter(|name| !tests.contains(**name)).collect();
        assert!(missing.is_empty(), "no such tests: {missing:?}");
    }
}
