//! What the control thread asks for: ports, flushes, questions, the end.

use super::*;

#[test]
fn a_message_waits_for_one_step_of_each_kind_at_most() {
    let mut world = World::new(|_, _| {});
    let mut cells: Vec<_> = (1..=100).map(|i| world.adopt(i)).collect();
    world.settle();
    world.operations();
    // Something of each kind: removals by death and by flush, puts.
    cells.drain(..50).for_each(|cell| world.agent.release(world.now, &cell));
    let _flush = world.offload.flush();
    (101..=150).for_each(|i| drop(world.adopt(i)));
    let queue = crate::sync::Arc::clone(&world.worker.crew.lanes[0]);
    world.script.lock().unwrap().meanwhile = Some(Box::new(move || queue.send(Message::PortRemoved(PortNo(9)))));
    world.worker.turn(world.now);
    let operations = world.operations().len();
    assert!((1..=5).contains(&operations), "{operations}");
    world.settle();
    assert_eq!(world.offload.snapshot().rules, 100);
}

#[test]
fn a_full_queue_costs_speed_and_the_flow_may_ask_again() {
    let mut world = World::new(|_, config| config.queue_limit = 2);
    let cells: Vec<_> = (1..=3).map(|i| world.adopt(i)).collect();
    assert_eq!(cells[2].standing(), Standing::Refused(Reason::QueueFull));
    assert_eq!(world.offload.queue().refused, 1);
    world.settle();
    world.agent.ask_again(world.now, &cells[2]);
    assert_eq!(cells[2].standing(), Standing::Queued);
    world.settle();
    assert_eq!(cells[2].standing(), Standing::Offloaded(Level::Full));
}

#[test]
fn a_flush_ends_when_the_device_has_forgotten_every_older_rule() {
    let mut world = World::new(|script, _| script.delete_failures = 1);
    let cells: Vec<_> = (1..=3).map(|i| world.adopt(i)).collect();
    world.settle();
    world.operations();
    let mut flush = world.offload.flush();
    world.settle();
    assert_eq!(flush.try_recv(), Ok(None), "one removal failed");
    world.pass(Duration::from_millis(100));
    assert_eq!(flush.try_recv(), Ok(Some(Flushed { removed: 3, trouble: None })));
    assert!(cells.iter().all(|cell| cell.standing() == Standing::Offloaded(Level::Full)), "they are wanted again");
    let deletes = world.operations().iter().filter(|name| **name == "delete").count();
    assert_eq!(deletes, 4);
    let mut empty = world.offload.flush();
    cells.iter().for_each(|cell| world.agent.release(world.now, cell));
    world.settle();
    assert_eq!(empty.try_recv(), Ok(Some(Flushed { removed: 3, trouble: None })));
    assert!(world.worker.rules.is_empty());
}

#[test]
fn a_removed_port_takes_its_rules_along_and_gets_them_back_when_it_returns() {
    let mut world = World::new(|_, _| {});
    world.offload.port_added(port(2), vec![]);
    let other =
        world.agent.adopt(world.now, FlowSlot { index: 9, generation: 0 }, Ufid(9), flow_of(2, 9), output(1), 1);
    let cell = world.adopt(1);
    world.settle();
    world.offload.port_removed(PortNo(1));
    world.settle();
    assert_eq!(cell.standing(), Standing::Refused(Reason::Port));
    assert_eq!(other.standing(), Standing::Offloaded(Level::Full));
    let ports: Vec<_> = world.offload.snapshot().ports.iter().map(|row| row.number.0).collect();
    assert_eq!(ports, [2]);
    assert_eq!(world.operations(), ["put", "put", "delete"]);
    world.offload.port_added(port(1), vec![]);
    world.settle();
    assert_eq!(cell.standing(), Standing::Offloaded(Level::Full));
}

#[test]
fn pages_of_marks_come_in_order_and_end() {
    let mut world = World::new(|_, _| {});
    let cells: Vec<_> = (1..=5).map(|i| world.adopt(i)).collect();
    world.settle();
    let (mut after, mut pages) = (Some(0), Vec::new());
    while let Some(mark) = after {
        let page = world.marks(mark, 2);
        pages.push(page.rows.iter().map(|row| row.mark).collect::<Vec<_>>());
        after = page.next;
    }
    assert_eq!(pages, [vec![1, 2], vec![3, 4], vec![5]]);
    drop(cells);
}

#[test]
fn stopping_removes_every_rule_even_where_the_device_cannot_flush() {
    for flush_fails in [false, true] {
        let mut world = World::new(|script, _| script.flush_fails = flush_fails);
        let cells: Vec<_> = (1..=3).map(|i| world.adopt(i)).collect();
        world.settle();
        let (reply, receiver) = std::sync::mpsc::channel();
        let deadline = Instant::now() + Duration::from_secs(60);
        world.worker.crew.lanes[0].send(Message::Stop { deadline, reply: reply.clone() });
        world.worker.turn(world.now);
        assert_eq!(receiver.try_recv(), Ok(Stopped { removed: 3, left: 0 }));
        assert_eq!(world.device_actions(), []);
        assert!(cells.iter().all(|cell| cell.mark().is_none()));
    }
}

#[test]
fn a_port_that_comes_and_goes_while_the_worker_does_not_look_leaves_no_messages() {
    let mut world = World::new(|_, _| {});
    let cell = world.adopt(1);
    world.settle();
    for _ in 0..1_000 {
        world.offload.port_removed(PortNo(1));
        world.offload.port_added(port(1), vec![]);
        world.offload.port_added(port(2), vec![]);
        world.offload.port_removed(PortNo(2));
    }
    assert_eq!(world.worker.consumer.take_messages().map(|messages| messages.len()), Some(2));
    world.offload.port_removed(PortNo(1));
    world.settle();
    assert_eq!(cell.standing(), Standing::Refused(Reason::Port));
}

#[test]
fn questions_to_a_worker_that_is_gone_are_cancelled() {
    let World { offload, worker, .. } = World::new(|_, _| {});
    let mut before = offload.flush();
    drop(worker);
    assert!(before.try_recv().is_err() && offload.flush().try_recv().is_err());
}

#[test]
fn a_worker_thread_offloads_and_stops_clean() {
    let world = World::new(|_, _| {});
    let device = scripted(&world.script, &Fence::default());
    let offload = Offload::start(Arc::new(device), Instant::now(), OffloadConfig::default()).unwrap();
    offload.port_added(port(1), vec![]);
    let agent = offload.agent(0, Box::new(|| {})).unwrap();
    let cells: Vec<_> = (1..=100).map(|i| world.adopt_for(&agent, i, output(1), 1)).collect();
    await_that("all are put", || cells.iter().all(|cell| cell.standing() == Standing::Offloaded(Level::Full)));
    let stopped = offload.stop(Instant::now() + Duration::from_secs(60));
    assert_eq!(stopped, Stopped { removed: 100, left: 0 });
}

#[test]
fn without_a_device_there_is_nobody_to_ask_and_nothing_to_flush() {
    let offload = Offload::none();
    assert!(offload.agent(0, Box::new(|| {})).is_none());
    assert_eq!(offload.flush().try_recv(), Ok(Some(Flushed { removed: 0, trouble: None })));
    assert_eq!(offload.snapshot().workers.len(), 0);
    assert!(matches!(offload.resume(), Err(crate::offload::ResumeError::NoDevice)));
}

#[test]
fn rules_that_send_to_a_port_are_put_anew_when_the_device_serves_it_and_its_queues_are_remembered() {
    let mut world = World::new(|_, config| config.threads = 2);
    let cell = world.adopt(1);
    world.settle();
    world.operations();
    world.offload.port_connected(PortNo(1));
    world.offload.port_connected(PortNo(1));
    world.settle();
    assert_eq!(world.operations(), ["replace"], "it may have another place in the device");
    assert_eq!(cell.standing(), Standing::Offloaded(Level::Full));
    let workers = std::iter::once(&world.worker).chain(&world.others);
    assert!(workers.flat_map(|worker| worker.ports.values()).all(|attached| attached.queues.len() == 1));
}
