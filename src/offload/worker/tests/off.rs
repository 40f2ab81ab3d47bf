//! A device that is switched off, hangs, or comes back.

use std::sync::mpsc;

use super::*;
use crate::offload::Wanted;

#[test]
fn switched_off_the_device_is_emptied_and_switched_on_it_is_filled_with_what_lives() {
    let mut world = World::new(|_, _| {});
    let cells: Vec<_> = (0..10).map(|i| world.adopt(i)).collect();
    world.settle();
    world.offload.set(&Wanted { enabled: false, ..Wanted::default() });
    world.settle();
    assert_eq!(world.device_actions(), []);
    assert!(cells.iter().all(|cell| cell.mark().is_none()));
    assert_eq!(world.offload.snapshot().refused, [(Reason::Disabled, 10)]);
    // A flow that is born meanwhile is turned away by its poller, and considered again by it.
    let late = world.adopt(10);
    assert_eq!(late.standing(), Standing::Refused(Reason::Disabled));
    assert_eq!(world.offload.queue().depth, 0);
    world.agent.release(world.now, &cells[0]);
    world.settle();
    assert_eq!(world.offload.snapshot().refused, [(Reason::Disabled, 10)], "nine that were in, and the late one");
    world.offload.set(&Wanted::default());
    world.agent.consider(world.now, &late, &crate::offload::Record::NEW);
    world.settle();
    assert_eq!(world.device_actions().len(), 10);
    assert_eq!(world.offload.snapshot().refused, []);
}

/// A device whose first channel holds each put until it is let go, and then is powerless.
fn hanging(
    script: &Arc<Mutex<Script>>,
) -> (Of<impl Fn() -> Box<dyn Backend> + Send + Sync + use<>>, Fence, mpsc::Sender<()>) {
    struct Hanging(Scripted, Option<mpsc::Receiver<()>>);
    impl Backend for Hanging {
        fn put(&mut self, flow: Install<'_>) -> Result<(Handle, Done), PutError> {
            match &self.1 {
                Some(held) => {
                    Err(PutError::Device(held.recv().map_or_else(|gone| gone.to_string(), |()| unreachable!())))
                }
                None => self.0.put(flow),
            }
        }
        fn replace(&mut self, handle: Handle, flow: Install<'_>) -> Result<(Done, FlowStats), PutError> {
            self.0.replace(handle, flow)
        }
        fn delete(&mut self, handle: Handle) -> Result<FlowStats, DeleteError> {
            self.0.delete(handle)
        }
        fn stats(&mut self, handles: &[Handle], into: &mut Vec<FlowStats>) -> Result<(), StatsError> {
            self.0.stats(handles, into)
        }
        fn generation(&mut self) -> Generation {
            self.0.generation()
        }
        fn flush(&mut self, handles: &[Handle]) -> Result<(), FlushError> {
            self.0.flush(handles)
        }
    }
    let (let_go, held) = mpsc::channel();
    let (script, held, fence) = (Arc::clone(script), Mutex::new(Some(held)), Fence::default());
    let caps = script.lock().unwrap().caps.clone();
    let channel =
        move || Box::new(Hanging(Scripted(Arc::clone(&script)), held.lock().unwrap().take())) as Box<dyn Backend>;
    (Of(caps, fence.clone(), channel), fence, let_go)
}

#[test]
fn a_hanging_device_holds_up_neither_snapshots_nor_the_stop() {
    let world = World::new(|_, _| {});
    let (device, _, let_go) = hanging(&world.script);
    let offload = Offload::start(Arc::new(device), Instant::now(), OffloadConfig::default()).unwrap();
    offload.port_added(port(1), vec![]);
    let agent = offload.agent(0, Box::new(|| {})).unwrap();
    let cell = world.adopt_for(&agent, 1, output(1), 1);
    await_that("the put hangs", || cell.standing() == Standing::Installing);
    assert_eq!(offload.snapshot().queue.depth, 0);
    agent.release(world.now, &cell);
    let begin = Instant::now();
    let mut asked_before = offload.flush();
    offload.stop(begin + Duration::from_millis(20));
    assert!(begin.elapsed() < Duration::from_secs(10));
    let marks = poll(&mut pin!(offload.marks(0, 1)));
    assert!(asked_before.try_recv().is_err() && marks == Some(Err(oneshot::Canceled)), "nobody waits for it");
    drop(let_go);
    // It ends by itself once the device lets it.
    await_that("it ends", || world.script.lock().unwrap().operations.last() == Some(&"flush"));
}

#[test]
fn a_device_that_hangs_is_fenced_and_one_that_is_restarted_is_used_once_old_marks_have_left_the_rings() {
    let world = World::new(|_, _| {});
    let (device, fence, let_go) = hanging(&world.script);
    let offload = Offload::start(Arc::new(device), Instant::now(), OffloadConfig::default()).unwrap();
    let ring = Arc::new(RxProgress::new(64));
    offload.port_added(port(1), vec![Arc::clone(&ring)]);
    let agent = offload.agent(0, Box::new(|| {})).unwrap();
    let cell = world.adopt_for(&agent, 1, output(1), 1);
    await_that("the put hangs", || cell.standing() == Standing::Installing);
    offload.watch(Instant::now() + Duration::from_secs(4));
    assert!(!fence.is_raised() && offload.off().is_none(), "four seconds are within its patience");
    offload.watch(Instant::now() + Duration::from_secs(6));
    assert!(fence.is_raised());
    let why = offload.off().unwrap();
    assert!(why.contains("has not answered worker 0"), "{why}");
    assert_eq!(agent.standing(&cell), Standing::Refused(Reason::Off));
    assert_eq!(agent.trouble(&cell).unwrap().text.as_ref(), why);
    let late = world.adopt_for(&agent, 2, output(1), 1);
    assert_eq!(late.standing(), Standing::Refused(Reason::Off), "nothing is asked of it any more");

    assert!(offload.resume().unwrap());
    drop(let_go);
    let renewed = offload.agent(0, Box::new(|| {})).unwrap();
    renewed.release(world.now, &cell);
    assert_eq!(cell.standing(), Standing::Gone, "a flow of the old life is nobody's");
    drop(agent);
    offload.set(&Wanted { min_packets: 3, ..Wanted::default() });
    renewed.consider(world.now, &late, &crate::offload::Record::NEW);
    assert_eq!(offload.snapshot().refused, [], "nor is it counted, for nobody would take it out again");
    offload.set(&Wanted::default());
    let again = world.adopt_for(&renewed, 1, output(1), 1);
    assert!(fence.is_raised() && again.mark().is_none(), "old marks may wait in the ring");
    // The ring turns over, and the worker looks: another poller may still have the old marks in its table.
    for _ in 0..3 {
        ring.took(0);
        ring.took(0);
        let mut looked = offload.flush();
        await_that("the worker looks", || looked.try_recv().unwrap().is_some());
    }
    assert!(fence.is_raised() && again.mark().is_none(), "not every poller has forgotten the old marks");
    offload.renewed();
    await_that("the flow is put", || {
        ring.took(0);
        again.standing() == Standing::Offloaded(Level::Full)
    });
    assert!(!fence.is_raised() && offload.off().is_none());
    assert!(!offload.resume().unwrap(), "it is not off");
    let stopped = offload.stop(Instant::now() + Duration::from_secs(60));
    assert_eq!(stopped.left, 0);
}

#[test]
fn who_comes_back_from_a_former_life_of_the_device_has_no_say_about_the_present_one() {
    let world = World::new(|_, _| {});
    let crew = StdArc::clone(&world.worker.crew);
    assert!(crew.fail("it hangs".to_owned()));
    assert!(world.fence.is_raised());
    world.fence.lower();
    assert!(!crew.fail("and panics at last".to_owned()));
    assert!(!world.fence.is_raised());
    // Nor is a device trusted that has failed.
    crew.trust();
    assert!(world.fence.is_raised());
}
