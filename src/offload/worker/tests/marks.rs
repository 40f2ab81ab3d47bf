//! Marks that come back, and rules that wait for one or for room.

use super::*;

#[test]
fn a_mark_is_not_used_again_before_its_poller_unbound_it_and_the_ring_turned_over() {
    let mut world = World::new(|_, _| {});
    let cell = world.adopt(1);
    world.settle();
    world.drained();
    world.script.lock().unwrap().generation += 1;
    world.script.lock().unwrap().rules.clear();
    // The device has forgotten; the flow lives on and gets another mark.
    world.pass(Duration::from_secs(2));
    assert_eq!(mark_of(&cell), Some(2));
    assert_eq!(world.offload.snapshot().marks.quarantined, 1);
    world.turn_ring_over();
    world.pass(Duration::from_millis(100));
    assert_eq!(world.offload.snapshot().marks.quarantined, 1, "its poller still has mark 1 bound");
    assert_eq!(world.drained(), [(1, Some(2))]);
    world.pass(Duration::from_millis(100));
    assert_eq!(world.offload.snapshot().marks.quarantined, 0);
    let next = world.adopt(2);
    world.settle();
    assert_eq!(mark_of(&next), Some(1));
}

#[test]
fn a_mark_waits_for_the_rings_of_a_port_that_was_added_while_its_rule_was_removed() {
    let mut world = World::new(|_, _| {});
    let cell = world.adopt(1);
    world.settle();
    let ring = Arc::new(RxProgress::new(64));
    let (queue, added) = (crate::sync::Arc::clone(&world.worker.crew.lanes[0]), Arc::clone(&ring));
    let add = move || queue.send(Message::PortAdded(port(1), vec![added]));
    world.script.lock().unwrap().meanwhile = Some(Box::new(add));
    world.agent.release(world.now, &cell);
    // The old ring is at rest, and does not hold the mark back.
    world.ring.close();
    world.settle();
    world.pass(Duration::from_millis(50));
    assert_eq!(world.offload.snapshot().marks.quarantined, 1);
    ring.took(0);
    ring.took(0);
    world.pass(Duration::from_millis(50));
    assert_eq!(world.offload.snapshot().marks.quarantined, 0);
}

#[test]
fn a_sleeping_poller_is_woken_to_look_while_marks_wait_for_it() {
    let mut world = World::new(|_, _| {});
    let rung = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let bell = Arc::clone(&rung);
    let agent = world.offload.agent(
        1,
        Box::new(move || {
            bell.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }),
    );
    let agent = agent.unwrap();
    let cell = world.adopt_for(&agent, 1, output(1), 1);
    world.settle();
    agent.drain(|_| {});
    agent.release(world.now, &cell);
    world.settle();
    let before = rung.load(std::sync::atomic::Ordering::Relaxed);
    world.pass(Duration::from_millis(50));
    assert!(rung.load(std::sync::atomic::Ordering::Relaxed) > before);
    world.turn_ring_over();
    world.pass(Duration::from_millis(50));
    let after = rung.load(std::sync::atomic::Ordering::Relaxed);
    world.pass(Duration::from_millis(50));
    assert_eq!(rung.load(std::sync::atomic::Ordering::Relaxed), after, "and not once they are back");
}

#[test]
fn without_a_free_mark_a_flow_waits_and_is_put_when_one_is_released() {
    let mut world = World::new(|_, _| {});
    let mut cells: Vec<_> = (1..=256).map(|i| world.adopt(i)).collect();
    world.settle();
    assert_eq!(cells[255].standing(), Standing::Refused(Reason::NoMark));
    assert_eq!(world.script.lock().unwrap().rules.len(), 255);
    assert_eq!(world.offload.snapshot().refused, [(Reason::NoMark, 1)]);
    world.agent.release(world.now, &cells.remove(0));
    world.pass(Duration::from_millis(50));
    assert_eq!(cells[254].standing(), Standing::Refused(Reason::NoMark), "the mark is in quarantine");
    world.turn_ring_over();
    world.pass(Duration::from_millis(50));
    assert_eq!(cells[254].standing(), Standing::Offloaded(Level::Full));
    assert_eq!(mark_of(&cells[254]), Some(1));
    assert_eq!(world.offload.snapshot().refused, []);
}

#[test]
fn a_full_table_is_asked_again_only_when_room_appears() {
    let mut world = World::new(|script, _| script.capacity = 2);
    let cells: Vec<_> = (1..=5).map(|i| world.adopt(i)).collect();
    world.settle();
    assert_eq!(world.operations(), ["put", "put", "put"], "once the device said so, it is believed");
    assert_eq!(cells[4].standing(), Standing::Refused(Reason::NoRoom));
    world.pass(Duration::from_millis(500));
    assert_eq!(world.operations(), [""; 0]);
    world.agent.release(world.now, &cells[0]);
    world.settle();
    assert_eq!(world.operations(), ["delete", "put"]);
    assert_eq!(cells[2].standing(), Standing::Offloaded(Level::Full), "the first that waited");
    assert_eq!(cells[3].standing(), Standing::Refused(Reason::NoRoom));
    world.script.lock().unwrap().capacity = 3;
    world.pass(Duration::from_secs(3));
    assert_eq!(cells[3].standing(), Standing::Offloaded(Level::Full), "room that appeared by itself");
}

#[test]
fn flows_that_died_waiting_for_room_leave_nothing_behind_and_take_no_room() {
    let mut world = World::new(|script, _| script.capacity = 1);
    let first = world.adopt(1);
    world.settle();
    for i in 2..1_000 {
        let cell = world.adopt(i);
        world.settle();
        assert_eq!(cell.standing(), Standing::Refused(Reason::NoRoom));
        world.agent.release(world.now, &cell);
        world.settle();
        assert!(world.worker.waiting.is_empty());
    }
    let dying = world.adopt(1_000);
    let living = world.adopt(1_001);
    world.settle();
    let (agent, now) = (Arc::clone(&world.agent), world.now);
    world.agent.release(world.now, &first);
    // One more dies at the very moment in which room appears.
    world.script.lock().unwrap().meanwhile = Some(Box::new(move || agent.release(now, &dying)));
    world.settle();
    assert_eq!(living.standing(), Standing::Offloaded(Level::Full));
    assert!(world.worker.waiting.is_empty());
}
