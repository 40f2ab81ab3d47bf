//! [`Poller`]: one poll-mode thread, and all that it owns.
//!
//! ```text
//!   every turn:  each receive queue ─► pipeline ─► outputs
//!                marks from the worker ─► mark table
//!                messages, jobs and the sweep, a slice of each
//!   no packets for a while:  sleep until a port, the doorbell, a replay's next frame or the sweep
//! ```

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use futures_channel::oneshot;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::thread::CpuSet;
use smallvec::SmallVec;

use super::counters::{PortCounters, RxCounters};
use super::doorbell::Doorbell;
use super::inbox::{Inbox, Job, Look, Message};
use super::pipeline::Pipeline;
use super::sweep::{PERIOD, Sweep};
use crate::clock;
use crate::flow::PortNo;
use crate::packet::{BATCH, Packet};
use crate::port::{RxProgress, RxQueue};

/// How long a poller without packets looks again before it sleeps. Below the cost of the sleep and wake that it may save.
const SPIN: Duration = Duration::from_micros(50);

/// Slices of jobs that are done in a turn without packets.
const IDLE_SLICES: usize = 4;

/// So many turns with packets, one after the other, a job that only looks waits for one without. Then it goes on all the same.
const BUSY_TURNS: u32 = 64;

/// Messages taken between two rounds of batches.
const MESSAGES: usize = 16;

/// One receive queue of a poller, with what the others may know of it. It may move from poller to poller; where it is
/// dropped, nobody will ask the queue again.
pub struct Receiver {
    pub port: PortNo,
    /// Among the port's receive queues.
    pub number: usize,
    pub queue: Box<dyn RxQueue>,
    pub progress: Arc<RxProgress>,
    /// The poller's counts for the port.
    pub counters: Arc<PortCounters>,
    /// The queue's own counts.
    pub load: Arc<RxCounters>,
    /// Frames that the device dropped, as far as they are counted.
    missed: u64,
    /// Frames taken in the turn under way.
    taken: usize,
}

/// What a poller tells the control thread.
#[derive(Debug)]
pub enum Report {
    /// A receive queue broke and is not asked any more.
    PortFailed { port: PortNo, error: std::io::Error },
}

/// Where a poller's reports go: a channel and what wakes its reader.
#[derive(Clone)]
pub struct Reports {
    pub channel: mpsc::Sender<Report>,
    pub wake: Arc<dyn Fn() + Send + Sync>,
}

/// One poll-mode thread's state.
pub struct Poller {
    pub pipeline: Pipeline,
    receivers: Vec<Receiver>,
    inbox: Arc<Inbox>,
    doorbell: Arc<Doorbell>,
    reports: Reports,
    sweep: Sweep,
    jobs: VecDeque<Job>,
    batch: Vec<Packet>,
    /// Packets that the last turn took.
    received: usize,
    /// Turns with packets since the last without.
    busy_turns: u32,
    /// Of rules and of stations, when the sweep was last hastened for them.
    epochs: (u64, u64),
}

impl Receiver {
    pub fn new(
        (port, number): (PortNo, usize),
        queue: Box<dyn RxQueue>,
        progress: Arc<RxProgress>,
        counters: Arc<PortCounters>,
        load: Arc<RxCounters>,
    ) -> Receiver {
        Receiver { port, number, queue, progress, counters, load, missed: 0, taken: 0 }
    }

    /// Counts what the device dropped since the last time. May cost a system call.
    fn count_missed(&mut self) {
        let missed = self.queue.missed();
        self.counters.rx_missed.add(missed.saturating_sub(self.missed));
        self.missed = missed;
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.progress.close();
    }
}

impl Drop for Poller {
    /// However it ends: who waits for an answer learns that there is none.
    fn drop(&mut self) {
        self.inbox.close();
    }
}

impl Poller {
    pub fn new(
        now: Instant,
        pipeline: Pipeline,
        inbox: Arc<Inbox>,
        doorbell: Arc<Doorbell>,
        reports: Reports,
    ) -> Poller {
        Poller {
            pipeline,
            receivers: Vec::new(),
            inbox,
            doorbell,
            reports,
            sweep: Sweep::new(now),
            jobs: VecDeque::new(),
            batch: Vec::with_capacity(BATCH),
            received: 0,
            busy_turns: 0,
            epochs: (0, 0),
        }
    }

    /// Runs until [`Message::Stop`].
    pub fn run(mut self) {
        let mut busy_at = Instant::now();
        loop {
            let begun = Instant::now();
            let now = clock::at(begun);
            let packets = self.turn(now);
            if self.chores(now).is_break() {
                return;
            }
            let counters = &self.pipeline.counters.doings;
            counters.iterations.add(1);
            if packets > 0 {
                busy_at = Instant::now();
                let nanos = (busy_at - begun).as_nanos() as u64;
                counters.busy_iterations.add(1);
                counters.busy_ns.add(nanos);
                self.pipeline.counters.turns.record(nanos);
                self.charge(nanos, packets);
            } else if begun.saturating_duration_since(busy_at) > SPIN
                && !self.pipeline.shared.busy_poll.load(std::sync::atomic::Ordering::Relaxed)
            {
                self.sleep();
            } else {
                std::hint::spin_loop();
            }
        }
    }

    /// One look at every receive queue. Answers with the number of packets that were taken out of them.
    pub fn turn(&mut self, now: Instant) -> usize {
        let mut total = 0;
        let mut broken = false;
        for receiver in &mut self.receivers {
            let result = receiver.queue.receive(now, &mut self.pipeline.pool, &mut self.batch);
            let taken = result.as_ref().map_or(self.batch.len(), |taken| *taken);
            receiver.progress.took(taken);
            receiver.load.packets.add(taken as u64);
            receiver.taken = taken;
            total += taken;
            if !self.batch.is_empty() {
                receiver.counters.rx_packets.add(self.batch.len() as u64);
                receiver.counters.rx_bytes.add(self.batch.iter().map(|packet| packet.len() as u64).sum());
                self.pipeline.process(now, &mut self.batch);
            }
            if let Err(error) = result {
                broken = true;
                receiver.progress.close();
                // The daemon is stopping when nobody listens.
                let _ = self.reports.channel.send(Report::PortFailed { port: receiver.port, error });
            }
        }
        if broken {
            self.receivers.retain(|receiver| !receiver.progress.is_closed());
            (self.reports.wake)();
        }
        self.pipeline.outputs.pump(now, &mut self.pipeline.pool, &self.pipeline.counters.fate);
        self.received = total;
        self.busy_turns = if total > 0 { self.busy_turns.saturating_add(1) } else { 0 };
        total
    }

    /// Charges each receive queue that is still here with its share of a turn that took `nanos` for `packets` packets.
    #[inline]
    fn charge(&self, nanos: u64, packets: usize) {
        for receiver in self.receivers.iter().filter(|receiver| receiver.taken > 0) {
            // Most turns are one queue's, and need no division.
            let share = match receiver.taken {
                all if all == packets => nanos,
                some => nanos * some as u64 / packets as u64,
            };
            receiver.load.busy_ns.add(share);
        }
    }

    /// What is done between batches, a little at a time.
    pub fn chores(&mut self, now: Instant) -> ControlFlow<()> {
        self.pipeline.table.take_events();
        self.pipeline.table.chores(now);
        for _ in 0..MESSAGES {
            match self.inbox.take() {
                Some(message) => self.obey(now, message)?,
                None => break,
            }
        }
        self.do_jobs(now);
        let slowpath = &self.pipeline.shared.slowpath;
        let epochs = (self.pipeline.epoch(), slowpath.stations_epoch());
        if self.epochs != epochs {
            self.epochs = epochs;
            self.sweep.hasten(now);
        }
        if self.pipeline.shared.is_sweep_paused() {
            self.sweep.give_up_waiting();
        } else if self.sweep.slice(now, &mut self.pipeline) {
            self.receivers.iter_mut().for_each(Receiver::count_missed);
        }
        ControlFlow::Continue(())
    }

    /// A few slices of the jobs, in the order of their coming; only looking comes last.
    fn do_jobs(&mut self, now: Instant) {
        let slices = match self.received {
            // Where no packet came, none waits.
            0 => IDLE_SLICES,
            _ if self.jobs.iter().all(Job::can_wait) && self.busy_turns < BUSY_TURNS => 0,
            _ => 1,
        };
        for _ in 0..slices {
            let urgent = self.jobs.iter().position(|job| !job.can_wait()).unwrap_or(0);
            let Some(job) = self.jobs.remove(urgent) else { break };
            if let Some(rest) = job.slice(now, &mut self.pipeline) {
                self.jobs.insert(urgent, rest);
            }
        }
    }

    fn obey(&mut self, now: Instant, message: Message) -> ControlFlow<()> {
        let pipeline = &mut self.pipeline;
        // Whoever asked may have given up waiting: answers that find no reader are dropped.
        match message {
            Message::AddRx(receiver) => self.receivers.push(*receiver),
            Message::TakeRx(which, reply) => self.give_up(which, reply),
            Message::Pump(done) => {
                pipeline.outputs.pump(now, &mut pipeline.pool, &pipeline.counters.fate);
                let _ = done.send(());
            }
            Message::CloseOutputs(done) => {
                pipeline.outputs.close(now, &mut pipeline.pool, &pipeline.counters.fate);
                let _ = done.send(());
            }
            Message::RunOn(cpu, anywhere) => run_on(cpu, &anywhere),
            Message::AddOutput(port, output, done) => {
                pipeline.outputs.add(port, *output);
                let _ = done.send(());
            }
            Message::RemovePort(port, done) => {
                self.receivers.retain(|receiver| receiver.port != port);
                pipeline.outputs.remove(port, &mut pipeline.pool, &pipeline.counters.fate);
                self.jobs.push_back(Job::delete(pipeline, Some(port), done));
            }
            Message::Add(flow, reply) => drop(reply.send(pipeline.add_flow(now, *flow))),
            Message::AddMany(flows, progress, done) => self.jobs.push_back(Job::add(flows, progress, done)),
            Message::SetEmc(emc, done) => {
                pipeline.table.emc = *emc;
                let _ = done.send(());
            }
            Message::Modify(which, change, reply) => drop(reply.send(pipeline.modify_flow(now, &which, change))),
            Message::Delete(which, reply) => drop(reply.send(pipeline.delete_flow(now, &which))),
            Message::Get(which, reply) => drop(reply.send(pipeline.get_flow(&which))),
            Message::Flush(port, done) => self.jobs.push_back(Job::delete(pipeline, port, done)),
            Message::Purge(done) => self.jobs.push_back(Job::purge(pipeline, done)),
            Message::Dump(from, reply) => self.jobs.push_back(Job::dump(from, reply)),
            Message::Sweep(done) => self.sweep.tell_when_over(now, done),
            Message::Look(reply) => {
                let look = Look { flows: pipeline.table.flows.len(), sweep: self.sweep.took() };
                let _ = reply.send(look);
            }
            Message::NewAgent(agent, done) => {
                pipeline.table.set_agent(*agent);
                let _ = done.send(());
            }
            Message::Stop => return ControlFlow::Break(()),
        }
        ControlFlow::Continue(())
    }

    /// Between batches, so all that was received has left.
    fn give_up(&mut self, which: Option<(PortNo, usize)>, reply: oneshot::Sender<Vec<Receiver>>) {
        let wanted = |receiver: &mut Receiver| which.is_none_or(|which| which == (receiver.port, receiver.number));
        let mut given: Vec<Receiver> = self.receivers.extract_if(.., wanted).collect();
        for receiver in &mut given {
            receiver.count_missed();
            receiver.taken = 0;
        }
        if let Err(given) = reply.send(given) {
            // Nobody waits for them any more: they stay.
            self.receivers.extend(given);
        }
    }

    /// Sleeps until there is something to do. Nothing is slept through: the doorbell is armed before the last look.
    fn sleep(&mut self) {
        let sweeps = self.sweep.is_under_way() && !self.pipeline.shared.is_sweep_paused();
        if !self.jobs.is_empty() || sweeps || self.pipeline.table.has_chores() {
            return;
        }
        self.doorbell.about_to_sleep();
        let begun = Instant::now();
        let pipeline = &self.pipeline;
        if self.inbox.is_empty() && !pipeline.table.has_events() && !pipeline.outputs.has_handed_over() {
            self.wait(clock::at(begun));
        }
        self.doorbell.awake();
        let counters = &self.pipeline.counters.doings;
        counters.sleeps.add(1);
        counters.slept_ns.add(begun.elapsed().as_nanos() as u64);
    }

    fn wait(&self, now: Instant) {
        // A sweep that is paused is not due; whoever resumes it rings.
        let sweep = if self.pipeline.shared.is_sweep_paused() { now + PERIOD } else { self.sweep.due() };
        let due = self.receivers.iter().filter_map(|r| r.queue.next_due()).fold(sweep, Instant::min);
        let timeout = due.saturating_duration_since(now);
        // Seconds and nanoseconds of half a second at most fit.
        let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() };
        let mut fds: SmallVec<[PollFd<'_>; 16]> = SmallVec::new();
        fds.push(PollFd::from_borrowed_fd(self.doorbell.fd(), PollFlags::IN));
        fds.extend(
            self.receivers
                .iter()
                .filter_map(|receiver| receiver.queue.readable())
                .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)),
        );
        // An error (a signal) only ends the sleep early.
        let _ = rustix::event::poll(&mut fds, Some(&timeout));
    }
}

/// Keeps this thread on processor `cpu`, or lets it run `anywhere` that it may; says so in the log when it cannot.
pub fn run_on(cpu: Option<usize>, anywhere: &CpuSet) {
    let mut set = CpuSet::new();
    match cpu {
        Some(cpu) if cpu < CpuSet::MAX_CPU => set.set(cpu),
        // Of no processor: refused below.
        Some(_) => {}
        None => set = *anywhere,
    }
    if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
        match cpu {
            Some(cpu) => log::warn!(target: "poller", "cannot run on processor {cpu} alone: {error}"),
            None => log::warn!(target: "poller", "cannot leave its processor: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::counters::PollerCounters;
    use crate::datapath::hash::Seeds;
    use crate::datapath::output::{Output, PortLimits, Tx};
    use crate::datapath::shared::Shared;
    use crate::datapath::table::{FlowTable, Namer};
    use crate::packet::Pool;
    use crate::port::handoff::{self, HandoffTx, OwnerTx};
    use crate::port::{Sent, TxQueue};
    use crate::slowpath::{Options, Slowpath};
    use std::os::fd::BorrowedFd;
    use std::sync::atomic::AtomicU32;

    const OUT: PortNo = PortNo(2);

    /// Frames that arrive one a look, each told by its last byte.
    struct Source(VecDeque<u8>);

    impl RxQueue for Source {
        fn receive(&mut self, _: Instant, _: &mut Pool, into: &mut Vec<Packet>) -> std::io::Result<usize> {
            let mut frame = [0; 60];
            let Some(last) = self.0.pop_front() else { return Ok(0) };
            frame[59] = last;
            into.push(Packet::from_bytes(&frame));
            into[0].meta.in_port = PortNo(1);
            Ok(1)
        }

        fn readable(&self) -> Option<BorrowedFd<'_>> {
            None
        }

        fn missed(&mut self) -> u64 {
            7
        }
    }

    struct Wire(mpsc::Sender<u8>);

    impl TxQueue for Wire {
        fn transmit(&mut self, _now: Instant, pool: &mut Pool, packets: &mut Vec<Packet>) -> Sent {
            let sent = Sent { packets: packets.len() as u64, ..Sent::default() };
            packets.iter().for_each(|packet| self.0.send(packet.bytes()[59]).unwrap());
            pool.give_all(packets);
            sent
        }
    }

    /// A poller that sends every packet to [`OUT`], and its inbox.
    fn poller(now: Instant, tx: Tx) -> (Poller, Arc<Inbox>) {
        let slowpath = Arc::new(Slowpath::new(Options::default()));
        slowpath.set_ports([(PortNo(1), "p1".to_owned()), (OUT, "p2".to_owned())].into());
        slowpath.load("actions=output:2\n", &(), now).unwrap();
        let shared = Arc::new(Shared::new(slowpath, now, 100, Duration::from_secs(10), false));
        let seeds = Seeds::random();
        let table = FlowTable::new(seeds.clone(), Namer::random(), None);
        let mut pipeline = Pipeline::new(shared, Arc::new(PollerCounters::default()), table, seeds);
        let limits = Arc::new(PortLimits { mtu: AtomicU32::new(1_500) });
        pipeline.outputs.add(OUT, Output::new(tx, false, false, limits, Arc::default()));
        let inbox = Arc::new(Inbox::default());
        let reports = Reports { channel: mpsc::channel().0, wake: Arc::new(|| ()) };
        (Poller::new(now, pipeline, Arc::clone(&inbox), Arc::new(Doorbell::new().unwrap()), reports), inbox)
    }

    fn source(frames: impl Iterator<Item = u8>) -> Receiver {
        let queue = Box::new(Source(frames.collect()));
        Receiver::new((PortNo(1), 0), queue, Arc::new(RxProgress::new(64)), Arc::default(), Arc::default())
    }

    /// Has a poller do what it finds in its inbox, and answers.
    fn ask<T>(
        now: Instant,
        poller: &mut Poller,
        inbox: &Inbox,
        message: impl FnOnce(oneshot::Sender<T>) -> Message,
    ) -> T {
        let (reply, mut answer) = oneshot::channel();
        inbox.send(message(reply));
        assert!(poller.chores(now).is_continue());
        answer.try_recv().unwrap().unwrap()
    }

    #[test]
    fn a_receive_queue_that_moves_to_the_poller_its_packets_were_handed_over_to_overtakes_none_of_them() {
        let (now, (wire, out)) = (Instant::now(), mpsc::channel());
        let shared = handoff::Shared::new(|| ());
        let owners = Tx::Served(OwnerTx::new(Arc::clone(&shared), Box::new(Wire(wire))));
        let (mut owner, to_owner) = poller(now, owners);
        let (mut other, to_other) = poller(now, Tx::Own(Box::new(HandoffTx::new(shared))));
        let receiver = source(0..20);
        let (progress, load) = (Arc::clone(&receiver.progress), Arc::clone(&receiver.load));
        to_other.send(Message::AddRx(Box::new(receiver)));
        assert!(other.chores(now).is_continue());
        (0..10).for_each(|_| assert_eq!(other.turn(now), 1));
        assert_eq!(out.try_iter().count(), 0, "they wait for the owner");

        let wanted = Some((PortNo(1), 0));
        let mut taken = ask(now, &mut other, &to_other, |reply| Message::TakeRx(wanted, reply));
        assert_eq!(other.turn(now), 0);
        ask(now, &mut owner, &to_owner, Message::Pump);
        to_owner.send(Message::AddRx(Box::new(taken.remove(0))));
        assert!(owner.chores(now).is_continue());
        (0..10).for_each(|_| assert_eq!(owner.turn(now), 1));
        assert_eq!(out.try_iter().collect::<Vec<u8>>(), (0..20).collect::<Vec<u8>>());
        assert!(!progress.is_closed(), "it is polled still");
        assert_eq!(load.packets.get(), 20);
        drop(owner);
        assert!(progress.is_closed(), "it went with its poller");
    }

    #[test]
    fn what_a_device_missed_is_counted_once_wherever_its_queue_goes() {
        let (now, (wire, _out)) = (Instant::now(), mpsc::channel());
        let (mut poller, inbox) = poller(now, Tx::Own(Box::new(Wire(wire))));
        let receiver = source(0..0);
        let counters = Arc::clone(&receiver.counters);
        inbox.send(Message::AddRx(Box::new(receiver)));
        let mut taken = ask(now, &mut poller, &inbox, |reply| Message::TakeRx(None, reply));
        assert_eq!(counters.rx_missed.get(), 7);
        inbox.send(Message::AddRx(Box::new(taken.remove(0))));
        ask(now, &mut poller, &inbox, |reply| Message::TakeRx(None, reply));
        assert_eq!(counters.rx_missed.get(), 7);
        assert_eq!(ask(now, &mut poller, &inbox, |reply| Message::TakeRx(None, reply)).len(), 0);
    }

    #[test]
    fn a_receive_queue_that_nobody_waits_for_any_more_stays() {
        let (now, (wire, out)) = (Instant::now(), mpsc::channel());
        let (mut poller, inbox) = poller(now, Tx::Own(Box::new(Wire(wire))));
        inbox.send(Message::AddRx(Box::new(source(0..3))));
        inbox.send(Message::TakeRx(None, oneshot::channel().0));
        assert!(poller.chores(now).is_continue());
        (0..3).for_each(|_| assert_eq!(poller.turn(now), 1));
        assert_eq!(out.try_iter().collect::<Vec<u8>>(), [0, 1, 2]);
    }
}
