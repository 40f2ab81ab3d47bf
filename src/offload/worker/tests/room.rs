//! Who is worth it: room for the busiest, limits, shortfalls, and what counts tell.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::offload::{FlowStats, Heir, Kind, Wanted};

/// A second of traffic: each cell's poller has counted `rate` more, and said so.
fn carry(world: &mut World, flows: &[(&crate::sync::Arc<OffloadCell>, u64)], seconds: u64) {
    for _ in 0..seconds {
        for (cell, rate) in flows {
            let before = cell.seen() - cell.device_stats().packets;
            cell.publish_software(before + rate);
        }
        world.pass(Duration::from_secs(1));
        world.turn_ring_over();
    }
}

/// Marks only, so that all packets are counted by the pollers, as here.
fn small(capacity: usize) -> World {
    World::new(|script, _| (script.capacity, script.caps.level) = (capacity, Level::Mark))
}

#[test]
fn the_busiest_flows_are_in_a_full_device() {
    let mut world = small(3);
    let cells: Vec<_> = (0..8).map(|i| world.adopt(i)).collect();
    world.settle();
    assert!(cells[..3].iter().all(|cell| cell.mark().is_some()), "first come, first served at first");
    // The later they came, the busier.
    let flows: Vec<_> = cells.iter().zip((0..8).map(|i| 10 + 100 * i)).collect();
    carry(&mut world, &flows, 8);
    let inside: Vec<bool> = cells.iter().map(|cell| cell.mark().is_some()).collect();
    assert_eq!(inside, [false, false, false, false, false, true, true, true]);
    assert_eq!(cells[0].standing(), Standing::Refused(Reason::Evicted));
    let trouble = cells[0].trouble().unwrap();
    assert_eq!((trouble.why.kind(), trouble.text.as_ref()), (Kind::Resource, "at 10 packets a second"));
    assert_eq!(cells[4].standing(), Standing::Refused(Reason::NoRoom));
    assert_eq!(world.offload.snapshot().evictions, 3);
    let operations = world.operations().len();
    carry(&mut world, &flows, 10);
    assert_eq!(world.offload.snapshot().evictions, 3, "what is right stays");
    assert!(world.operations().len() < 20, "{operations} before; probes of a full device at most");
}

#[test]
fn flows_about_as_busy_as_each_other_do_not_change_places() {
    let mut world = small(2);
    let cells: Vec<_> = (0..4).map(|i| world.adopt(i)).collect();
    world.settle();
    let flows: Vec<_> = cells.iter().zip([1_000, 1_000, 1_200, 1_240]).collect();
    carry(&mut world, &flows, 10);
    assert_eq!(world.offload.snapshot().evictions, 0);
    let flows: Vec<_> = cells.iter().zip([1_000, 1_000, 1_200, 1_300]).collect();
    carry(&mut world, &flows, 10);
    assert_eq!(world.offload.snapshot().evictions, 1);
    assert!(cells[3].mark().is_some());
}

#[test]
fn marks_go_to_the_busiest_where_those_are_scarce() {
    let mut world = World::new(|script, _| script.caps.level = Level::Mark);
    let cells: Vec<_> = (0..300).map(|i| world.adopt(i)).collect();
    world.settle();
    assert_eq!(world.offload.snapshot().marks.in_use, 255);
    assert_eq!(cells[299].standing(), Standing::Refused(Reason::NoMark));
    assert_eq!(cells[299].trouble().unwrap().text.as_ref(), "all 255 marks are in use");
    let flows: Vec<_> = cells.iter().zip((0..300).map(|i| if i < 255 { 5 } else { 500 })).collect();
    carry(&mut world, &flows, 8);
    // Pollers unbind what they are told to.
    for _ in 0..4 {
        world.drained();
        carry(&mut world, &flows, 1);
    }
    assert!(cells[255..].iter().all(|cell| cell.mark().is_some()));
}

#[test]
fn narrow_marks_last_under_churn() {
    let mut world = World::new(|_, _| {});
    let mut alive: VecDeque<_> = (0..255).map(|i| world.adopt(i)).collect();
    for i in 255..5_000 {
        let old = alive.pop_front().unwrap();
        world.agent.release(world.now, &old);
        alive.push_back(world.adopt(i));
        if i % 16 == 0 {
            world.settle();
            world.drained();
            world.turn_ring_over();
            world.pass(Duration::from_millis(20));
        }
    }
    world.settle();
    world.drained();
    world.turn_ring_over();
    world.pass(Duration::from_secs(2));
    assert!(alive.iter().all(|cell| cell.mark().is_some()));
    assert_marks_are_their_rules_own(&world);
    let marks = world.offload.snapshot().marks;
    assert_eq!((marks.in_use, marks.quarantined), (255, 0));
}

#[test]
fn an_evicted_flow_loses_no_count() {
    let mut world = World::new(|script, _| script.capacity = 1);
    let idle = world.adopt(1);
    world.settle();
    let busy = world.adopt(2);
    world.settle();
    let mark = mark_of(&idle).unwrap();
    let counted = |packets| FlowStats { packets, bytes: 60 * packets, used_ns: 1 };
    for second in 1..=8 {
        world.script.lock().unwrap().counts_of.insert(mark, counted(3 * second));
        carry(&mut world, &[(&busy, 500)], 1);
        if idle.mark().is_none() {
            break;
        }
    }
    assert_eq!(idle.standing(), Standing::Refused(Reason::Evicted));
    // All that the device had counted when the rule was removed, though it was counted after the last reading.
    let last = world.script.lock().unwrap().counts_of[&mark];
    assert_eq!((idle.device_stats().packets, idle.device_stats().bytes), (last.packets, last.bytes));
    assert!(busy.mark().is_some());
}

#[test]
fn a_flow_is_asked_for_when_it_is_worth_it_and_its_poller_says_why_not_before() {
    let mut world = World::new(|_, config| config.wanted.min_packets = 10);
    let cell = world.adopt(1);
    assert_eq!(cell.standing(), Standing::Refused(Reason::Policy));
    assert_eq!(cell.trouble().unwrap().text.as_ref(), "fewer than 10 packets");
    assert_eq!(world.offload.snapshot().refused, [(Reason::Policy, 1)]);
    world.agent.update(world.now, &cell, output(2), 2);
    let record = crate::offload::Record { packets: 9, age: Duration::ZERO, rate: None };
    world.agent.consider(world.now, &cell, &record);
    world.settle();
    assert_eq!(world.operations(), [""; 0]);
    world.agent.consider(world.now, &cell, &crate::offload::Record { packets: 10, ..record });
    world.settle();
    assert_eq!(world.device_actions(), [output(2)]);
    assert_eq!((world.offload.snapshot().refused, cell.trouble()), (vec![], None));
    let short_lived = world.adopt(2);
    world.agent.release(world.now, &short_lived);
    assert_eq!(world.offload.snapshot().refused, [], "a dead flow is not counted");
    assert_eq!(world.offload.queue().enqueued, 1);
}

#[test]
fn so_many_operations_a_second_are_asked_and_removals_are_not_held_back() {
    let mut world = World::new(|script, config| {
        config.wanted.operation_rate = 100;
        script.caps.mark_bits = 16;
    });
    let cells: Vec<_> = (0..1_000).map(|i| world.adopt(i)).collect();
    let start = world.now;
    while world.now < start + Duration::from_secs(2) {
        world.pass(Duration::from_millis(100));
    }
    let puts = world.operations().len();
    assert!((190..=215).contains(&puts), "{puts} in two seconds");
    assert!(cells.iter().skip(puts).all(|cell| cell.standing() == Standing::Queued));
    cells.iter().for_each(|cell| world.agent.release(world.now, cell));
    world.settle();
    assert_eq!(world.operations().iter().filter(|operation| **operation == "delete").count(), puts);
    assert_eq!(world.device_actions(), []);
    // Rules that something else than a new flow concerns wait their turn, too.
    let wanted = world.offload.settings().get();
    let cells: Vec<_> = (0..50).map(|i| world.adopt(i)).collect();
    world.pass(Duration::from_secs(10));
    world.offload.set(&Wanted { enabled: false, ..wanted });
    world.settle();
    world.operations();
    world.offload.set(&Wanted { enabled: true, operation_rate: 10, ..wanted });
    world.pass(Duration::from_secs(1));
    assert!(world.operations().len() <= 12);
    world.offload.set(&Wanted { enabled: true, operation_rate: 0, ..wanted });
    world.pass(Duration::from_secs(1));
    assert!(cells.iter().all(|cell| cell.mark().is_some()));
}

#[test]
fn what_the_device_cannot_execute_is_marked_and_the_action_is_named() {
    let mut world = World::new(|script, _| script.caps.actions = ActionSet::ALL.without("pop_vlan").unwrap());
    let popping = || Actions::new(vec![Action::PopVlan, Action::Output(PortNo(1))]);
    let cell = world.adopt_for(&world.agent, 1, popping(), 1);
    world.settle();
    assert_eq!(cell.standing(), Standing::Offloaded(Level::Mark));
    let trouble = cell.trouble().unwrap();
    assert_eq!((trouble.why, trouble.text.as_ref()), (Reason::Action, "cannot execute pop_vlan"));
    assert_eq!((world.offload.snapshot().refused, world.offload.snapshot().short), (vec![], vec![(Reason::Action, 1)]));
    let mark = cell.mark();
    world.agent.update(world.now, &cell, output(2), 2);
    world.settle();
    assert_eq!(cell.standing(), Standing::Offloaded(Level::Full));
    assert_eq!((cell.trouble(), cell.mark(), world.offload.snapshot().short), (None, mark, vec![]));
    world.agent.update(world.now, &cell, popping(), 3);
    world.settle();
    assert_eq!(cell.standing(), Standing::Offloaded(Level::Mark), "back again, and never with old actions");
    assert_eq!(world.operations(), ["put", "replace", "replace"]);
    world.agent.release(world.now, &cell);
    world.settle();
    assert_eq!(world.offload.snapshot().short, []);
}

#[test]
fn a_rule_goes_further_when_the_port_that_was_in_the_way_is_there() {
    let mut world = World::new(|script, _| script.short = Some(Unsupported::Port(PortNo(2))));
    let cell = world.adopt_for(&world.agent, 1, output(2), 1);
    world.settle();
    assert_eq!(cell.trouble().unwrap().text.as_ref(), "cannot send to port 2");
    world.offload.port_added(port(3), vec![]);
    world.settle();
    assert_eq!(world.operations(), ["put"]);
    world.script.lock().unwrap().short = None;
    world.offload.port_added(port(2), vec![]);
    world.settle();
    assert_eq!((world.operations(), cell.standing()), (vec!["replace"], Standing::Offloaded(Level::Full)));
}

#[test]
fn what_the_device_counted_after_a_flows_death_is_its_heirs() {
    struct Rule(AtomicU64, u64);
    impl Heir for Rule {
        fn inherit(&self, stats: FlowStats) {
            self.0.fetch_add(stats.packets - self.1, Ordering::Relaxed);
        }
    }
    let mut world = World::new(|script, _| script.counts = FlowStats { packets: 7, bytes: 700, used_ns: 1 });
    let cell = world.adopt(1);
    world.settle();
    world.pass(Duration::from_secs(2));
    assert_eq!(cell.device_stats().packets, 7);
    let rule = Arc::new(Rule(AtomicU64::new(0), 7));
    cell.leave_to(rule.clone());
    world.agent.release(world.now, &cell);
    world.script.lock().unwrap().counts.packets = 12;
    world.settle();
    assert_eq!(rule.0.load(Ordering::Relaxed), 5);
}

#[test]
fn installed_and_confirmed_by_hits_are_told_apart() {
    let mut world = World::new(|_, _| {});
    let cell = world.adopt(1);
    world.settle();
    world.pass(Duration::from_secs(2));
    assert!(!cell.is_confirmed() && cell.read_ns() > 0);
    assert_eq!((world.offload.snapshot().rules_full, world.offload.snapshot().rules_confirmed), (1, 0));
    world.script.lock().unwrap().counts.packets = 1;
    world.pass(Duration::from_secs(2));
    assert!(cell.is_confirmed());
    assert_eq!(world.offload.snapshot().rules_confirmed, 1);
    world.script.lock().unwrap().delete_failures = 0;
    world.offload.port_removed(PortNo(1));
    world.settle();
    assert_eq!((world.offload.snapshot().rules_full, world.offload.snapshot().rules_confirmed), (0, 0));
}

#[test]
fn counts_never_go_back_and_lie_in_no_future_whatever_the_device_says() {
    let mut world = World::new(|_, _| {});
    let cell = world.adopt(1);
    world.settle();
    let mut before = cell.device_stats();
    for packets in [5, 3, 0, 9, u64::MAX, 1, u64::MAX] {
        world.script.lock().unwrap().counts = FlowStats { packets, bytes: packets, used_ns: u64::MAX };
        world.pass(Duration::from_secs(2));
        let now = cell.device_stats();
        assert!(now.packets >= before.packets && now.bytes >= before.bytes);
        assert!(Duration::from_nanos(now.used_ns) < Duration::from_secs(3_600));
        before = now;
        if packets == 9 {
            assert_eq!(now.packets, 9, "what went back and came again is not counted twice");
        }
    }
}

#[test]
fn a_flow_that_stands_in_both_lanes_is_inherited_once() {
    struct Once(AtomicU64);
    impl Heir for Once {
        fn inherit(&self, _: FlowStats) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let mut world = World::new(|_, _| {});
    let cell = world.adopt(1);
    let heir = Arc::new(Once(AtomicU64::new(0)));
    cell.leave_to(heir.clone());
    // Born and dead between two looks: it waits to be put, and to be deleted.
    world.agent.release(world.now, &cell);
    assert_eq!((world.offload.queue().depth, world.offload.queue().deletes), (1, 1));
    world.settle();
    assert_eq!((heir.0.load(Ordering::Relaxed), world.offload.queue().depth), (1, 0));
}

#[test]
fn outdated_actions_do_not_stay_in_the_device_for_want_of_operations() {
    let mut world = World::new(|_, config| config.wanted.operation_rate = 10);
    let cells: Vec<_> = (0..10).map(|i| world.adopt(i)).collect();
    world.pass(Duration::from_secs(3));
    assert_eq!(world.device_actions().len(), 10);
    for cell in &cells {
        world.agent.update(world.now, cell, output(9), 2);
    }
    world.settle();
    assert!(world.device_actions().iter().all(|actions| *actions == output(9)), "the rest is in software");
    world.pass(Duration::from_secs(5));
    assert_eq!(world.device_actions().len(), 10);
}

#[test]
fn counts_that_are_cleared_begin_anew_and_what_there_is_stays() {
    let mut world = World::new(|_, _| {});
    let cell = world.adopt(1);
    world.settle();
    world.agent.update(world.now, &cell, output(2), 2);
    world.agent.update(world.now, &cell, output(3), 3);
    world.settle();
    world.offload.clear_counts();
    let snapshot = world.offload.snapshot();
    assert_eq!((snapshot.operations.total(), snapshot.latency.all.count, snapshot.device_time.count), (0, 0, 0));
    assert_eq!((snapshot.queue.enqueued, snapshot.queue.coalesced), (0, 0));
    assert_eq!((snapshot.rules, snapshot.megaflows, snapshot.marks.in_use), (1, 1, 1));
    world.agent.update(world.now, &cell, output(4), 4);
    world.settle();
    let snapshot = world.offload.snapshot();
    assert_eq!((snapshot.operations.modify.done, snapshot.queue.enqueued, snapshot.latency.modify.count), (1, 1, 1));
}
