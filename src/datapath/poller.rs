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

use crossbeam_queue::SegQueue;
use rustix::event::{PollFd, PollFlags, Timespec};
use smallvec::SmallVec;

use super::counters::PortCounters;
use super::doorbell::Doorbell;
use super::inbox::{Job, Message};
use super::pipeline::Pipeline;
use super::sweep::Sweep;
use crate::flow::PortNo;
use crate::packet::{BATCH, Packet};
use crate::port::{RxProgress, RxQueue};

/// How long a poller without packets looks again before it sleeps. Below the cost of the sleep and wake that it may save.
const SPIN: Duration = Duration::from_micros(50);

/// Messages taken between two rounds of batches.
const MESSAGES: usize = 16;

/// One receive queue of a poller, with what the others may know of it.
pub struct Receiver {
    pub port: PortNo,
    pub queue: Box<dyn RxQueue>,
    pub progress: Arc<RxProgress>,
    pub counters: Arc<PortCounters>,
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
    inbox: Arc<SegQueue<Message>>,
    doorbell: Arc<Doorbell>,
    reports: Reports,
    sweep: Sweep,
    jobs: VecDeque<Job>,
    batch: Vec<Packet>,
    /// Of rules and of stations, when the sweep was last hastened for them.
    epochs: (u64, u64),
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.progress.close();
    }
}

impl Poller {
    pub fn new(
        now: Instant,
        pipeline: Pipeline,
        inbox: Arc<SegQueue<Message>>,
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
            epochs: (0, 0),
        }
    }

    /// Runs until [`Message::Stop`].
    pub fn run(mut self) {
        let mut busy_at = Instant::now();
        loop {
            let now = Instant::now();
            let packets = self.turn(now);
            if self.chores(now).is_break() {
                return;
            }
            let counters = &self.pipeline.counters.doings;
            counters.iterations.add(1);
            if packets > 0 {
                busy_at = Instant::now();
                counters.busy_iterations.add(1);
                counters.busy_ns.add((busy_at - now).as_nanos() as u64);
            } else if now.saturating_duration_since(busy_at) > SPIN
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
        total
    }

    /// What is done between batches, a little at a time.
    pub fn chores(&mut self, now: Instant) -> ControlFlow<()> {
        self.pipeline.table.take_events();
        self.pipeline.table.chores(now);
        for _ in 0..MESSAGES {
            match self.inbox.pop() {
                Some(message) => self.obey(now, message)?,
                None => break,
            }
        }
        if let Some(job) = self.jobs.pop_front()
            && let Some(rest) = job.slice(now, &mut self.pipeline)
        {
            self.jobs.push_back(rest);
        }
        let slowpath = &self.pipeline.shared.slowpath;
        let epochs = (self.pipeline.epoch(), slowpath.stations_epoch());
        if self.epochs != epochs {
            self.epochs = epochs;
            self.sweep.hasten(now);
        }
        if self.sweep.slice(now, &mut self.pipeline) {
            for receiver in &mut self.receivers {
                receiver.counters.rx_missed.set(receiver.queue.missed());
            }
        }
        ControlFlow::Continue(())
    }

    fn obey(&mut self, now: Instant, message: Message) -> ControlFlow<()> {
        let pipeline = &mut self.pipeline;
        // Whoever asked may have given up waiting: answers that find no reader are dropped.
        match message {
            Message::AddRx(receiver) => self.receivers.push(*receiver),
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
            Message::Modify(which, change, reply) => drop(reply.send(pipeline.modify_flow(now, &which, change))),
            Message::Delete(which, reply) => drop(reply.send(pipeline.delete_flow(now, &which))),
            Message::Get(which, reply) => drop(reply.send(pipeline.get_flow(&which))),
            Message::Flush(port, done) => self.jobs.push_back(Job::delete(pipeline, port, done)),
            Message::Dump(from, reply) => drop(reply.send(pipeline.page(from))),
            Message::NewAgent(agent, done) => {
                pipeline.table.set_agent(*agent);
                let _ = done.send(());
            }
            Message::Stop => return ControlFlow::Break(()),
        }
        ControlFlow::Continue(())
    }

    /// Sleeps until there is something to do. Nothing is slept through: the doorbell is armed before the last look.
    fn sleep(&mut self) {
        if !self.jobs.is_empty() || self.sweep.is_under_way() || self.pipeline.table.has_chores() {
            return;
        }
        self.doorbell.about_to_sleep();
        let begun = Instant::now();
        let pipeline = &self.pipeline;
        if self.inbox.is_empty() && !pipeline.table.has_events() && !pipeline.outputs.has_handed_over() {
            self.wait(begun);
        }
        self.doorbell.awake();
        let counters = &self.pipeline.counters.doings;
        counters.sleeps.add(1);
        counters.slept_ns.add(begun.elapsed().as_nanos() as u64);
    }

    fn wait(&self, now: Instant) {
        let due = self.receivers.iter().filter_map(|r| r.queue.next_due()).fold(self.sweep.due(), Instant::min);
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
