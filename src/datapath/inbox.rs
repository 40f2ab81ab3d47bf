//! What the control thread asks of a poller: [`Message`]s, which lie in its [`Inbox`] and are taken between batches.
//!
//! Short requests are answered at once. Those that concern many flows are [`Job`]s: a slice between two batches, so
//! that no packet waits for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::{Duration, Instant};

use crossbeam_queue::SegQueue;
use futures_channel::oneshot;
use rustix::thread::CpuSet;

use super::emc::Emc;
use super::flows::Flow;
use super::output::Output;
use super::pipeline::Pipeline;
use super::poller::Receiver;
use super::table::Maker;
use crate::flow::{Actions, Field, Match, PortNo, Ufid};
use crate::offload::mark::Mark;
use crate::offload::{Agent, FlowStats, Standing, Trouble};

/// Flows that a job looks at between two batches.
pub const SLICE: u32 = 128;

/// Flows that a job adds between two batches.
const ADD_SLICE: usize = 32;

/// The most flows in a page of a dump.
pub const PAGE: u32 = 64;

/// Flows that a dump looks at between two batches.
const LOOK_SLICE: u32 = 1;

/// Where a poller's messages wait, in the order in which they were sent.
///
/// # Thread-safety
/// Anybody sends, its poller takes. A message that is sent while the poller ends is dropped by whichever of the two comes
/// second, and so is the answer that somebody waits for: nobody waits for ever.
#[derive(Default)]
pub struct Inbox {
    messages: SegQueue<Message>,
    closed: AtomicBool,
}

impl Inbox {
    /// The caller rings the poller's doorbell afterwards.
    pub fn send(&self, message: Message) {
        self.messages.push(message);
        // With the fence in `close`: we see that it is closed, or it sees the message.
        fence(Ordering::SeqCst);
        if self.closed.load(Ordering::Relaxed) {
            self.empty();
        }
    }

    pub fn take(&self) -> Option<Message> {
        self.messages.pop()
    }

    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// The poller takes no message any more.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.empty();
    }

    fn empty(&self) {
        while self.messages.pop().is_some() {}
    }
}

/// A request. An answer that nobody waits for any more is dropped.
pub enum Message {
    AddRx(Box<Receiver>),
    /// Gives up a receive queue, or all of them, after the batch under way has left; those that were there.
    TakeRx(Option<(PortNo, usize)>, oneshot::Sender<Vec<Receiver>>),
    /// Sends what other pollers have handed over so far.
    Pump(oneshot::Sender<()>),
    /// Closes every way out, after what other pollers have handed over was sent. They must not hand over any more.
    CloseOutputs(oneshot::Sender<()>),
    /// The one processor to run on; without one, those that it may run on.
    RunOn(Option<usize>, CpuSet),
    /// Opens a way out; answers when packets may take it.
    AddOutput(PortNo, Box<Output>, oneshot::Sender<()>),
    /// Closes the port's queues and deletes the flows of packets from it; answers with the flows deleted.
    RemovePort(PortNo, oneshot::Sender<usize>),
    Add(Box<NewFlow>, oneshot::Sender<Result<(), FlowError>>),
    /// Adds all of these or, if one of them is there already, none; calls the function with how many came to it since the last time.
    AddMany(Arc<Many>, Option<Arc<dyn Fn(u64) + Send + Sync>>, oneshot::Sender<Result<(), Taken>>),
    /// Replaces the exact-match cache.
    SetEmc(Box<Emc>, oneshot::Sender<()>),
    /// Replaces the actions of one flow, which from then on counts as added by hand; answers with its counts until then.
    Modify(Which, Change, oneshot::Sender<Option<FlowView>>),
    Delete(Which, oneshot::Sender<Option<FlowView>>),
    Get(Which, oneshot::Sender<Option<FlowView>>),
    /// Deletes the flows that are there now, all of them or those from one port; answers with how many.
    Flush(Option<PortNo>, oneshot::Sender<usize>),
    /// Deletes the flows that rules made; answers with how many.
    Purge(oneshot::Sender<usize>),
    /// One page of flows, from a flow number on.
    Dump(u32, oneshot::Sender<Page>),
    /// Answers when a whole sweep that began after this message is over; not at all while sweeps are paused.
    Sweep(oneshot::Sender<()>),
    /// Nothing but an answer: how many flows there are, and how long the last sweep took.
    Look(oneshot::Sender<Look>),
    /// The device was restarted: from now on this is the way to it.
    NewAgent(Box<Agent>, oneshot::Sender<()>),
    /// Ends the poller; it says nothing more.
    Stop,
}

/// A flow to be added.
#[derive(Clone, Debug)]
pub struct NewFlow {
    /// `None`: named after its match.
    pub ufid: Option<Ufid>,
    pub matching: Match,
    pub actions: Actions,
    /// From [`Shared::decision_number`](super::shared::Shared::decision_number); one for all pollers when added by hand.
    pub number: u64,
}

/// What to change a flow to.
#[derive(Clone, Debug)]
pub struct Change {
    pub actions: Actions,
    /// Start its counts from 0 again.
    pub clear: bool,
    /// As [`NewFlow::number`].
    pub number: u64,
}

/// How a request names a flow.
#[derive(Clone, Debug)]
pub enum Which {
    Ufid(Ufid),
    /// Exactly this match.
    Match(Box<Match>),
}

/// Why a flow was not added.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FlowError {
    #[error("updating flow table (File exists)")]
    Exists,
}

/// A flow to be added by hand.
#[derive(Clone, Debug)]
pub struct AddFlow {
    /// `None`: named after its match.
    pub ufid: Option<Ufid>,
    pub matching: Match,
    pub actions: Actions,
}

/// Many of them, under one number: they are different megaflows.
#[derive(Debug)]
pub struct Many {
    pub flows: Vec<AddFlow>,
    /// As [`NewFlow::number`].
    pub number: u64,
}

/// Why none of many flows was added.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Taken {
    /// Of the first that cannot be added.
    pub index: usize,
    pub error: FlowError,
}

/// A flow as dumps show it.
#[derive(Clone, Debug)]
pub struct FlowView {
    pub ufid: Ufid,
    pub matching: Match,
    pub actions: Actions,
    /// The device's included.
    pub stats: FlowStats,
    pub tcp_flags: u16,
    pub by_hand: bool,
    /// `None` when there is no device.
    pub standing: Option<Standing>,
    /// Why it is not as far in the device as it could be.
    pub trouble: Option<Arc<Trouble>>,
    /// The device has been seen to match a packet of it since it was last put.
    pub confirmed: bool,
    /// When the device's counts were read, in nanoseconds on the datapath's clock; 0 = not since it was last put.
    pub read_ns: u64,
    pub mark: Option<Mark>,
}

/// What a poller knows of itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Look {
    pub flows: usize,
    pub sweep: Duration,
}

/// Some of a poller's flows.
#[derive(Debug, Default)]
pub struct Page {
    pub flows: Vec<FlowView>,
    /// Where the next page begins; `None` after the last.
    pub next: Option<u32>,
}

/// A request that concerns many flows.
pub enum Job {
    Delete(DeleteJob),
    Add(AddJob),
    Dump(DumpJob),
}

impl Job {
    /// Deletes the flows there are now; with a port, those of packets from it.
    pub fn delete(pipeline: &Pipeline, from_port: Option<PortNo>, done: oneshot::Sender<usize>) -> Job {
        let (end, births) = (pipeline.table.flows.slots(), pipeline.table.births());
        Job::Delete(DeleteJob { next: 0, end, births, from_port, by_hand: true, deleted: 0, done })
    }

    /// Deletes the flows there are now that rules made.
    pub fn purge(pipeline: &Pipeline, done: oneshot::Sender<usize>) -> Job {
        let (end, births) = (pipeline.table.flows.slots(), pipeline.table.births());
        Job::Delete(DeleteJob { next: 0, end, births, from_port: None, by_hand: false, deleted: 0, done })
    }

    /// Adds flows.
    pub fn add(
        many: Arc<Many>,
        progress: Option<Arc<dyn Fn(u64) + Send + Sync>>,
        done: oneshot::Sender<Result<(), Taken>>,
    ) -> Job {
        Job::Add(AddJob { many, checked: 0, added: 0, progress, done })
    }

    /// Goes on by a slice; gives itself back until it is done and has answered.
    pub fn slice(self, now: Instant, pipeline: &mut Pipeline) -> Option<Job> {
        match self {
            Job::Delete(job) => job.slice(now, pipeline).map(Job::Delete),
            Job::Add(job) => job.slice(now, pipeline).map(Job::Add),
            Job::Dump(job) => job.slice(pipeline).map(Job::Dump),
        }
    }

    /// Whether it only looks: nobody's packets depend on when it is done.
    pub fn can_wait(&self) -> bool {
        matches!(self, Job::Dump(_))
    }

    /// Looks at a page of flows, from number `from` on.
    pub fn dump(from: u32, done: oneshot::Sender<Page>) -> Job {
        Job::Dump(DumpJob { from, next: from, flows: Vec::with_capacity(PAGE as usize), done })
    }
}

/// Looks at a page of flows, a few at a time: each look may miss the caches, and a packet may wait behind it.
pub struct DumpJob {
    from: u32,
    next: u32,
    flows: Vec<FlowView>,
    done: oneshot::Sender<Page>,
}

impl DumpJob {
    pub(super) fn slice(mut self, pipeline: &Pipeline) -> Option<DumpJob> {
        let slots = pipeline.table.flows.slots();
        let end = slots.min(self.from.saturating_add(PAGE));
        let to = end.min(self.next.saturating_add(LOOK_SLICE));
        self.flows.extend((self.next..to).filter_map(|index| pipeline.view(index)));
        self.next = to;
        if to < end {
            return Some(self);
        }
        // Whoever asked may have given up waiting.
        let _ = self.done.send(Page { flows: self.flows, next: (to < slots).then_some(to) });
        None
    }
}

/// Adds flows: looks first whether each can be added. Nobody else adds flows by hand meanwhile.
pub struct AddJob {
    many: Arc<Many>,
    checked: usize,
    added: usize,
    progress: Option<Arc<dyn Fn(u64) + Send + Sync>>,
    done: oneshot::Sender<Result<(), Taken>>,
}

impl AddJob {
    fn slice(mut self, now: Instant, pipeline: &mut Pipeline) -> Option<AddJob> {
        let Many { flows, number } = &*self.many;
        let count = flows.len();
        if self.checked < count {
            let to = count.min(self.checked + SLICE as usize);
            if let Some(at) = flows[self.checked..to].iter().position(|flow| pipeline.has_by_hand(flow)) {
                // Whoever asked may have given up waiting, here and below.
                let _ = self.done.send(Err(Taken { index: self.checked + at, error: FlowError::Exists }));
                return None;
            }
            self.checked = to;
            return Some(self);
        }
        let to = count.min(self.added + ADD_SLICE);
        for AddFlow { ufid, matching, actions } in &flows[self.added..to] {
            let flow = NewFlow { ufid: *ufid, matching: *matching, actions: actions.clone(), number: *number };
            // It is not there, as was seen above.
            let _ = pipeline.add_flow(now, flow);
        }
        if let Some(progress) = &self.progress {
            progress((to - self.added) as u64);
        }
        self.added = to;
        if to < count {
            return Some(self);
        }
        let _ = self.done.send(Ok(()));
        None
    }
}

/// Deletes flows.
pub struct DeleteJob {
    next: u32,
    end: u32,
    /// Flows born from here on came after the request.
    births: u64,
    from_port: Option<PortNo>,
    /// Those by hand, too.
    by_hand: bool,
    deleted: usize,
    done: oneshot::Sender<usize>,
}

impl DeleteJob {
    fn slice(mut self, now: Instant, pipeline: &mut Pipeline) -> Option<DeleteJob> {
        let to = self.end.min(self.next.saturating_add(SLICE));
        for index in self.next..to {
            let Some(flow) = pipeline.table.flows.get(index) else { continue };
            let wanted = self.by_hand || !flow.is_by_hand();
            if wanted && flow.born < self.births && self.from_port.is_none_or(|port| is_from(flow, port)) {
                pipeline.delete(now, index);
                self.deleted += 1;
            }
        }
        self.next = to;
        if to < self.end {
            return Some(self);
        }
        // Whoever asked may have given up waiting.
        let _ = self.done.send(self.deleted);
        None
    }
}

fn is_from(flow: &Flow, port: PortNo) -> bool {
    flow.matching.mask().is_exact(Field::InPort) && flow.matching.key().in_port() == port
}

impl Pipeline {
    /// The flow of this ufid or match.
    fn same(&self, ufid: Option<Ufid>, matching: &Match) -> Option<u32> {
        let named = ufid.and_then(|ufid| self.table.named(ufid));
        named.or_else(|| self.table.find(matching))
    }

    fn is_by_hand(&self, index: u32) -> bool {
        self.table.flows.get(index).is_some_and(Flow::is_by_hand)
    }

    /// Whether one by hand stands in its way.
    fn has_by_hand(&self, flow: &AddFlow) -> bool {
        self.same(flow.ufid, &flow.matching).is_some_and(|index| self.is_by_hand(index))
    }

    pub fn add_flow(&mut self, now: Instant, flow: NewFlow) -> Result<(), FlowError> {
        match self.same(flow.ufid, &flow.matching) {
            Some(index) if self.is_by_hand(index) => return Err(FlowError::Exists),
            // What the rules decided gives way to what people say.
            Some(index) => drop(self.delete(now, index)),
            None => {}
        }
        self.table.insert(now, flow, Maker::Hand);
        self.shared.add_by_hand();
        Ok(())
    }

    pub fn modify_flow(&mut self, now: Instant, which: &Which, change: Change) -> Option<FlowView> {
        let index = self.which(which)?;
        let before = self.view(index)?;
        let by_hand = before.by_hand;
        let index = if by_hand {
            self.table.modify(now, index, change.actions, change.number);
            index
        } else {
            let counts = self.delete(now, index)?;
            let flow = NewFlow {
                ufid: Some(before.ufid),
                matching: before.matching,
                actions: change.actions,
                number: change.number,
            };
            self.add_flow(now, flow).ok()?;
            let index = self.table.find(&before.matching)?;
            let hot = self.table.flows.hot_mut(index);
            (hot.packets, hot.bytes, hot.used_ns, hot.tcp_flags) =
                (counts.packets, counts.bytes, counts.used_ns, before.tcp_flags);
            index
        };
        if change.clear {
            self.table.clear_counts(index);
        }
        Some(before)
    }

    pub fn delete_flow(&mut self, now: Instant, which: &Which) -> Option<FlowView> {
        let index = self.which(which)?;
        let view = self.view(index)?;
        self.delete(now, index);
        Some(view)
    }

    pub fn get_flow(&self, which: &Which) -> Option<FlowView> {
        self.view(self.which(which)?)
    }

    fn which(&self, which: &Which) -> Option<u32> {
        match which {
            Which::Ufid(ufid) => self.table.named(*ufid),
            Which::Match(matching) => self.table.find(matching),
        }
    }

    fn view(&self, index: u32) -> Option<FlowView> {
        let flow = self.table.flows.get(index)?;
        let hot = self.table.flows.hot(index);
        Some(FlowView {
            ufid: flow.ufid,
            matching: flow.matching,
            actions: hot.actions().clone(),
            stats: self.table.flows.stats(index),
            tcp_flags: hot.tcp_flags,
            by_hand: flow.is_by_hand(),
            standing: self.table.standing(flow),
            trouble: self.table.trouble(flow),
            confirmed: flow.cell.as_ref().is_some_and(|cell| cell.is_confirmed()),
            read_ns: flow.cell.as_ref().map_or(0, |cell| cell.read_ns()),
            mark: flow.bound,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_for_the_answer_of_a_poller_that_has_ended() {
        let inbox = Inbox::default();
        let ask = || {
            let (reply, answer) = oneshot::channel();
            inbox.send(Message::Pump(reply));
            answer
        };
        let (mut before, mut taken) = (ask(), ask());
        assert!(inbox.take().is_some() && before.try_recv().is_err(), "it was dropped unanswered");
        assert_eq!(taken.try_recv(), Ok(None), "it still lies there");
        inbox.close();
        assert!(taken.try_recv().is_err());
        assert!(ask().try_recv().is_err() && inbox.is_empty());
    }
}
