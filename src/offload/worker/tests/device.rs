//! A device that fails, forgets, panics, and counts.

use super::*;

#[test]
fn a_failed_replace_keeps_the_mark_until_the_device_has_forgotten_the_rule() {
    let mut world = World::new(|script, _| {
        script.replace_answers.push_back(PutError::Device("no".to_owned()));
        script.delete_failures = 1;
    });
    let cell = world.adopt(1);
    world.settle();
    world.agent.update(world.now, &cell, output(2), 2);
    world.settle();
    assert_eq!(world.operations(), ["put", "replace", "delete"]);
    assert_eq!(cell.mark(), None, "a rule with actions that nobody wants is not bound");
    world.adopt(2);
    world.settle();
    let marks = |world: &World| world.script.lock().unwrap().rules.values().map(|rule| rule.1).collect::<Vec<_>>();
    assert_eq!(marks(&world), [1, 2], "mark 1 is still in the device, so nobody else has it");
    world.pass(Duration::from_millis(200));
    assert_eq!(world.device_actions(), [output(1), output(2)]);
    assert_eq!(marks(&world), [2, 3], "mark 1 is in quarantine");
    assert_eq!(mark_of(&cell), Some(3));
}

#[test]
fn a_failed_put_is_tried_again_later_and_later() {
    let mut world = World::new(|script, _| script.put_answers = vec![PutError::Device("busy".to_owned()); 3].into());
    let cell = world.adopt(1);
    world.settle();
    assert_eq!(cell.standing(), Standing::Refused(Reason::Device));
    world.agent.ask_again(world.now, &cell);
    world.settle();
    assert_eq!(world.operations(), ["put"], "asking does not hurry the device");
    let mut waits = Vec::new();
    while cell.standing() != Standing::Offloaded(Level::Full) {
        let began = world.now;
        while world.operations().is_empty() {
            world.now += Duration::from_millis(1);
            world.settle();
        }
        waits.push(world.now - began);
    }
    assert_eq!(waits.len(), 3);
    assert!(waits.is_sorted() && waits[2] > waits[0] * 2, "{waits:?}");
}

#[test]
fn a_delete_is_tried_until_the_device_has_forgotten() {
    let mut world = World::new(|script, _| script.delete_failures = 5);
    let cell = world.adopt(1);
    world.settle();
    world.agent.release(world.now, &cell);
    world.pass(Duration::from_secs(2));
    assert_eq!(world.operations(), ["put", "delete", "delete", "delete", "delete", "delete", "delete"]);
    assert_eq!(cell.standing(), Standing::Gone);
    assert_eq!(
        world.offload.snapshot().operations.delete,
        crate::offload::report::Outcomes { done: 1, device: 5, ..Default::default() }
    );
}

#[test]
fn what_the_device_cannot_match_is_refused_at_once() {
    let mut world = World::new(|script, _| {
        let mut fields = Mask::EXACT;
        Field::Ipv4Dst.set(fields.words_mut(), 0);
        script.caps.fields = fields;
    });
    let cell = world.adopt(1);
    assert_eq!(cell.standing(), Standing::Refused(Reason::Match));
    world.settle();
    assert_eq!(world.operations(), [""; 0]);
    let why = world.script.lock().unwrap().caps.check(&flow(1), &output(1));
    assert_eq!(why, Err(Unsupported::Field(Field::Ipv4Dst)));
    world.agent.release(world.now, &cell);
    assert_eq!(cell.standing(), Standing::Gone);
}

#[test]
fn a_device_that_forgot_its_rules_is_filled_again() {
    let mut world = World::new(|_, _| {});
    let cells: Vec<_> = (1..=3).map(|i| world.adopt(i)).collect();
    world.settle();
    let mut script = world.script.lock().unwrap();
    script.rules.clear();
    script.generation += 1;
    drop(script);
    world.pass(Duration::from_secs(2));
    assert_eq!(world.script.lock().unwrap().rules.len(), 3);
    assert!(cells.iter().all(|cell| cell.standing() == Standing::Offloaded(Level::Full)));
    assert_eq!(world.offload.snapshot().resets, 1);
}

#[test]
fn rules_put_between_a_reset_and_its_detection_leave_the_device_before_their_marks_are_used_again() {
    for flush_fails in [false, true] {
        let mut world = World::new(|script, _| script.flush_fails = flush_fails);
        let before = world.adopt(1);
        world.settle();
        let mut script = world.script.lock().unwrap();
        script.rules.clear();
        script.generation += 1;
        script.delete_failures = 3;
        drop(script);
        let after = world.adopt(2);
        world.settle();
        assert_eq!(mark_of(&after), Some(2), "nobody knows of the reset yet");
        for i in 3..9 {
            world.pass(Duration::from_millis(500));
            world.drained();
            world.turn_ring_over();
            world.adopt(i);
            world.settle();
            let script = world.script.lock().unwrap();
            let marks: std::collections::BTreeSet<_> = script.rules.values().map(|rule| rule.1).collect();
            assert_eq!(marks.len(), script.rules.len(), "no mark is stamped for two flows");
        }
        world.pass(Duration::from_secs(1));
        assert_marks_are_their_rules_own(&world);
        assert!([before, after].iter().all(|cell| cell.standing() == Standing::Offloaded(Level::Full)));
        assert_eq!(world.offload.snapshot().resets, 1);
    }
}

#[test]
fn a_reset_of_an_empty_device_costs_nothing() {
    let mut world = World::new(|_, _| {});
    world.script.lock().unwrap().generation += 1;
    let cell = world.adopt(1);
    world.pass(Duration::from_secs(3));
    assert_eq!((world.operations(), mark_of(&cell)), (vec!["put"], Some(1)));
    assert_eq!(world.offload.snapshot().resets, 0);
}

#[test]
fn a_device_that_panics_is_left_alone_and_its_marks_are_ignored() {
    let mut world = World::new(|_, _| {});
    let cell = world.adopt(1);
    world.settle();
    world.script.lock().unwrap().panic_at = Some("put");
    let second = world.adopt(2);
    world.settle();
    assert!(world.fence.is_raised());
    for cell in [&cell, &second] {
        assert_eq!((cell.standing(), cell.mark()), (Standing::Refused(Reason::Off), None));
    }
    let snapshot = world.offload.snapshot();
    assert_eq!(snapshot.off.as_deref(), Some("the scripted device panicked: as the script says"));
    assert_eq!(snapshot.rules, 0);
    world.operations();
    world.agent.release(world.now, &cell);
    let mut flush = world.offload.flush();
    world.settle();
    assert_eq!(cell.standing(), Standing::Gone);
    assert!(flush.try_recv().unwrap().unwrap().trouble.is_some());
    assert_eq!(world.operations(), [""; 0]);
}

#[test]
fn what_the_device_counted_is_the_flows_and_the_last_reading_is_not_lost() {
    let mut world = World::new(|_, _| {});
    let cell = world.adopt(1);
    world.settle();
    let counts = |packets, bytes, used_ns| FlowStats { packets, bytes, used_ns };
    world.script.lock().unwrap().counts = counts(10, 1_000, 5);
    world.pass(Duration::from_secs(2));
    assert_eq!(cell.device_stats(), counts(10, 1_000, 5));
    world.script.lock().unwrap().counts = counts(13, 1_300, 7);
    world.agent.release(world.now, &cell);
    world.settle();
    assert_eq!(cell.device_stats(), counts(13, 1_300, 7));
}

#[test]
fn counts_that_cannot_be_true_stay_numbers_that_can_be_added_to() {
    let mut world = World::new(|_, _| {});
    let cell = world.adopt(1);
    world.settle();
    world.script.lock().unwrap().counts = FlowStats { packets: u64::MAX, bytes: u64::MAX, used_ns: u64::MAX };
    world.pass(Duration::from_secs(3));
    let FlowStats { packets, bytes, .. } = cell.device_stats();
    assert_eq!((packets, bytes), (FlowStats::MOST, FlowStats::MOST));
    assert!(packets.checked_mul(3).is_some(), "with what was kept of an earlier life, and what a poller counts");
}

#[test]
fn one_reading_counts_every_rule_however_many_there_are() {
    let mut world = World::new(|script, _| script.caps.mark_bits = 16);
    let cells: Vec<_> = (1..=3 * BATCH as u32).map(|i| world.adopt(i)).collect();
    world.settle();
    world.script.lock().unwrap().counts = FlowStats { packets: 7, bytes: 700, used_ns: 9 };
    world.now += Duration::from_secs(1);
    world.settle();
    assert!(cells.iter().all(|cell| cell.device_stats().packets == 7));
}
