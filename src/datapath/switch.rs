//! [`Switch`]: the datapath as the control thread sees it: its pollers, its ports, its flows.
//!
//! # Thread-safety
//! Every method may be called from any thread; none is called by a poller. Methods that must hear from every poller are
//! `async`, and their futures hold no lock while they wait.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam_queue::SegQueue;
use futures_channel::oneshot;

use super::counters::{PollerCounters, PortCounters};
use super::doorbell::Doorbell;
use super::hash::Seeds;
use super::inbox::{Change, FlowError, FlowView, Message, NewFlow, Page, Which};
use super::output::{Output, PortLimits, Tx};
use super::pipeline::Pipeline;
use super::poller::{Poller, Receiver, Reports};
use super::shared::Shared;
use super::table::{FlowTable, Namer};
use crate::flow::text::PortNames;
use crate::flow::{Actions, Match, PortNo, Ufid};
use crate::offload::Offload;
use crate::offload::backend::{Device, PortCounts};
use crate::port::handoff::{self, HandoffTx, OwnerTx};
use crate::port::{self, InjectError, OpenError, Port, PortInfo, PortSpec, RxProgress, TxQueue};

/// The datapath.
pub struct Switch {
    pub shared: Arc<Shared>,
    pub offload: Offload,
    /// `None` without a device.
    device: Option<Arc<dyn Device>>,
    pollers: Vec<PollerHandle>,
    ports: Mutex<Ports>,
    /// Receive queues that wait for [`Switch::begin`]; `None` afterwards.
    waiting: Mutex<Option<Vec<(usize, Receiver)>>>,
}

/// What the control thread keeps of a poller.
struct PollerHandle {
    inbox: Arc<SegQueue<Message>>,
    doorbell: Arc<Doorbell>,
    counters: Arc<PollerCounters>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// The ports there are, and those on their way.
#[derive(Default)]
struct Ports {
    open: BTreeMap<PortNo, OpenPort>,
    /// Names and numbers of ports that are being opened or closed: nobody else may have them meanwhile.
    reserved: BTreeMap<PortNo, String>,
}

struct OpenPort {
    port: Box<dyn Port>,
    limits: Arc<PortLimits>,
    /// One a poller.
    counters: Vec<Arc<PortCounters>>,
    /// The poller of each receive queue.
    queues: Vec<usize>,
}

/// A port that pollers do not know yet.
struct Opened {
    number: PortNo,
    /// One a poller.
    outputs: Vec<Output>,
    /// Each with its poller.
    receivers: Vec<(usize, Receiver)>,
}

/// How many pollers there are and where they run.
#[derive(Clone, Debug, Default)]
pub struct PollerConfig {
    pub count: usize,
    /// The processor of each poller, as far as there are any.
    pub cpus: Vec<usize>,
}

/// A port as `dpctl/show` shows it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct PortView {
    #[serde(flatten)]
    pub info: PortInfo,
    pub mtu: usize,
    /// The poller of each receive queue.
    pub pollers: Vec<usize>,
    pub details: BTreeMap<&'static str, String>,
    /// Sums over the pollers.
    pub counters: BTreeMap<&'static str, u64>,
}

/// Why a port was not added.
#[derive(Debug, thiserror::Error)]
pub enum AddPortError {
    #[error("port {0} exists already")]
    Name(String),
    #[error("port {name}: number {number} is taken by {by}")]
    Number { name: String, number: PortNo, by: String },
    #[error("port {0}: all {max} port numbers are taken", max = PortNo::MAX)]
    Full(String),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("port {name}: cannot open a transmit queue: {source}")]
    Transmit { name: String, source: io::Error },
    #[error("the datapath is stopping")]
    Stopping,
}

impl Switch {
    /// Starts the pollers.
    ///
    /// # Errors
    /// No thread or file descriptor left.
    pub fn start(
        shared: Arc<Shared>,
        offload: Offload,
        device: Option<Arc<dyn Device>>,
        config: &PollerConfig,
        reports: Reports,
    ) -> io::Result<Switch> {
        let namer = Namer::random();
        let mut pollers = Vec::new();
        for id in 0..config.count.max(1) {
            let doorbell = Arc::new(Doorbell::new()?);
            let inbox = Arc::new(SegQueue::new());
            let counters = Arc::new(PollerCounters::default());
            let seeds = Seeds::random();
            let ring = Arc::clone(&doorbell);
            let agent = offload.agent(id as u32, Box::new(move || ring.ring()));
            let table = FlowTable::new(seeds.clone(), namer.clone(), agent);
            let pipeline = Pipeline::new(Arc::clone(&shared), Arc::clone(&counters), table, seeds);
            let poller =
                Poller::new(Instant::now(), pipeline, Arc::clone(&inbox), Arc::clone(&doorbell), reports.clone());
            let cpu = config.cpus.get(id).copied();
            let thread = std::thread::Builder::new().name(format!("poller{id}")).spawn(move || {
                if let Some(cpu) = cpu {
                    pin(cpu);
                }
                poller.run();
            })?;
            pollers.push(PollerHandle { inbox, doorbell, counters, thread: Mutex::new(Some(thread)) });
        }
        let waiting = Mutex::new(Some(Vec::new()));
        Ok(Switch { shared, offload, device, pollers, ports: Mutex::default(), waiting })
    }

    /// Opens a port and lets packets in and out. To be run to its end: a future dropped before leaves a port half open.
    ///
    /// # Errors
    /// Name or number taken, or the device cannot be opened; then nothing has changed.
    pub async fn add_port(&self, spec: &PortSpec) -> Result<PortNo, AddPortError> {
        let Opened { number, outputs, receivers } = self.open_port(spec)?;
        let opened: Vec<_> = self
            .pollers
            .iter()
            .zip(outputs)
            .map(|(poller, output)| poller.ask(|done| Message::AddOutput(number, Box::new(output), done)))
            .collect();
        for answer in opened {
            answer.await.map_err(|_| AddPortError::Stopping)?;
        }
        self.publish_ports();
        match &mut *self.waiting() {
            Some(waiting) => waiting.extend(receivers),
            None => self.receive_from(receivers),
        }
        self.ports().reserved.remove(&number);
        log::info!(target: "port", "{}: added as port {number} ({})", spec.name, spec.kind);
        Ok(number)
    }

    /// Lets packets in, at the ports there are and at those that come. Until then no packet is received, so that none
    /// meets a half-made set of rules.
    pub fn begin(&self) {
        let waiting = self.waiting().take();
        self.receive_from(waiting.unwrap_or_default());
    }

    fn receive_from(&self, receivers: Vec<(usize, Receiver)>) {
        for (poller, receiver) in receivers {
            self.pollers[poller].send(Message::AddRx(Box::new(receiver)));
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Option<Vec<(usize, Receiver)>>> {
        // A list, whole at any moment.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the device and enters it in the table of ports. The table is not locked while the device opens.
    fn open_port(&self, spec: &PortSpec) -> Result<Opened, AddPortError> {
        let number = self.ports().reserve(spec)?;
        let opened = self.open_device(spec, number);
        let mut ports = self.ports();
        let (open, opened) = opened.inspect_err(|_| drop(ports.reserved.remove(&number)))?;
        ports.open.insert(number, open);
        Ok(opened)
    }

    fn open_device(&self, spec: &PortSpec, number: PortNo) -> Result<(OpenPort, Opened), AddPortError> {
        let mut port = port::open(spec, number)?;
        let info = port.info().clone();
        let limits = Arc::new(PortLimits { mtu: AtomicU32::new(port.mtu() as u32) });
        let counters: Vec<Arc<PortCounters>> = self.pollers.iter().map(|_| Arc::default()).collect();
        let queues = port.take_rx();
        let owners = self.spread(queues.len());
        let ways = self
            .open_ways_out(port.as_mut(), owners.first().copied().unwrap_or(0))
            .map_err(|source| AddPortError::Transmit { name: spec.name.clone(), source })?;
        // Where all pollers have a queue of their own, frames that the device sends by itself keep in order with theirs.
        let wire = match ways.iter().all(|tx| matches!(tx, Tx::Own(_))) {
            true if self.device.is_some() => port.open_wire(),
            _ => Ok(None),
        };
        let wire = wire.map_err(|source| AddPortError::Transmit { name: spec.name.clone(), source })?;
        let ring = match &self.device {
            Some(device) => {
                device.connect(&info, port.mtu(), wire);
                device.ring(info.ring)
            }
            None => info.ring,
        };
        let outputs = ways
            .into_iter()
            .zip(&counters)
            .map(|(tx, counters)| {
                Output::new(tx, info.tx_checksum, info.tx_segment, Arc::clone(&limits), Arc::clone(counters))
            })
            .collect();
        let progress: Vec<Arc<RxProgress>> = queues.iter().map(|_| Arc::new(RxProgress::new(ring))).collect();
        self.offload.port_added(info.clone(), progress.clone());
        let receivers = queues
            .into_iter()
            .zip(progress)
            .zip(&owners)
            .map(|((queue, progress), &poller)| {
                let queue = match &self.device {
                    Some(device) => device.wrap_rx(&info, queue),
                    None => queue,
                };
                let counters = Arc::clone(&counters[poller]);
                (poller, Receiver { port: number, queue, progress, counters })
            })
            .collect();
        let open = OpenPort { port, limits, counters, queues: owners };
        Ok((open, Opened { number, outputs, receivers }))
    }

    /// Chooses a poller for each of `n` receive queues: whoever has the fewest.
    fn spread(&self, n: usize) -> Vec<usize> {
        let mut load = vec![0usize; self.pollers.len()];
        for poller in self.ports().open.values().flat_map(|open| &open.queues) {
            load[*poller] += 1;
        }
        (0..n)
            .map(|_| {
                let least = (0..load.len()).min_by_key(|poller| load[*poller]).unwrap_or(0);
                load[least] += 1;
                least
            })
            .collect()
    }

    /// A transmit queue for each poller. Where the device has fewer, `owner` serves the last for all without.
    fn open_ways_out(&self, port: &mut dyn Port, owner: usize) -> io::Result<Vec<Tx>> {
        let mut queues: Vec<Option<Box<dyn TxQueue>>> = self.pollers.iter().map(|_| None).collect();
        // The owner first: it must have one.
        let order = std::iter::once(owner).chain((0..self.pollers.len()).filter(|poller| *poller != owner));
        for poller in order {
            queues[poller] = port.open_tx()?;
            if queues[poller].is_none() {
                break;
            }
        }
        if queues[owner].is_none() {
            return Err(io::Error::other("the device has no transmit queue"));
        }
        let doorbell = Arc::clone(&self.pollers[owner].doorbell);
        let shared = handoff::Shared::new(move || doorbell.ring());
        let someone_lacks = queues.iter().any(Option::is_none);
        Ok(queues
            .into_iter()
            .enumerate()
            .map(|(poller, queue)| match queue {
                Some(queue) if poller == owner && someone_lacks => Tx::Served(OwnerTx::new(Arc::clone(&shared), queue)),
                Some(queue) => Tx::Own(queue),
                None => Tx::Own(Box::new(HandoffTx::new(Arc::clone(&shared)))),
            })
            .collect())
    }

    /// Closes a port and deletes the flows of packets from it. To be run to its end, as [`Switch::add_port`]. Answers with its name; `None` when there is no such port.
    pub async fn remove_port(&self, number: PortNo) -> Option<String> {
        let (open, name) = {
            let mut ports = self.ports();
            if ports.reserved.contains_key(&number) {
                return None; // still being opened
            }
            let open = ports.open.remove(&number)?;
            let name = open.port.info().name.clone();
            ports.reserved.insert(number, name.clone());
            (open, name)
        };
        // Rules first: from now on nothing is sent there.
        self.publish_ports();
        let closed: Vec<_> =
            self.pollers.iter().map(|poller| poller.ask(|done| Message::RemovePort(number, done))).collect();
        for answer in closed {
            // A poller that has stopped holds no queue.
            let _ = answer.await;
        }
        self.offload.port_removed(number);
        if let Some(device) = &self.device {
            device.disconnect(number);
        }
        drop(open);
        self.ports().reserved.remove(&number);
        log::info!(target: "port", "{name}: removed");
        Some(name)
    }

    /// Tells rules and stations which ports there are. Under the lock, so that the last to tell is the last to have looked.
    fn publish_ports(&self) {
        let ports = self.ports();
        let list = ports.open.iter().map(|(number, open)| (*number, open.port.info().name.clone())).collect();
        self.shared.slowpath.set_ports(list);
    }

    /// Reads what may have changed behind our back: each port's MTU. Call about once a second.
    pub fn refresh_ports(&self) {
        for (number, open) in &self.ports().open {
            let mtu = open.port.mtu();
            open.limits.mtu.store(mtu as u32, Ordering::Relaxed);
            if let Some(device) = &self.device {
                device.set_mtu(*number, mtu);
            }
        }
    }

    pub fn port_views(&self) -> Vec<PortView> {
        let sum = |open: &OpenPort| {
            let mut total = BTreeMap::new();
            for (name, count) in open.counters.iter().flat_map(|counters| counters.list()) {
                *total.entry(name).or_insert(0) += count;
            }
            total
        };
        let view = |open: &OpenPort| PortView {
            info: open.port.info().clone(),
            mtu: open.port.mtu(),
            pollers: open.queues.clone(),
            details: open.port.details().into_iter().collect(),
            counters: sum(open),
        };
        self.ports().open.values().map(view).collect()
    }

    /// The device, if there is one.
    pub fn device(&self) -> Option<&dyn Device> {
        self.device.as_deref()
    }

    /// What the device did with a port's packets; `None` where it does not serve the port, or does not tell.
    pub fn device_counts(&self, port: PortNo) -> Option<PortCounts> {
        self.device.as_ref()?.port_counts(port)
    }

    /// The port with this name or number.
    pub fn port_number(&self, text: &str) -> Option<PortNo> {
        let ports = self.ports();
        let by_name = ports.open.iter().find(|(_, open)| open.port.info().name == text).map(|(number, _)| *number);
        by_name.or_else(|| text.parse().ok().map(PortNo).filter(|number| ports.open.contains_key(number)))
    }

    /// Makes `frame` arrive at a port in memory.
    pub fn inject(&self, name: &str, queue: usize, frame: &[u8]) -> Result<(), InjectError> {
        let ports = self.ports();
        let open = ports.open.values().find(|open| open.port.info().name == name).ok_or(InjectError::Unsupported)?;
        open.port.inject(queue, frame)
    }

    /// Names and numbers of ports, as they are now.
    pub fn names(&self) -> Names {
        Names(self.ports().open.iter().map(|(number, open)| (*number, open.port.info().name.clone())).collect())
    }

    pub fn pollers(&self) -> usize {
        self.pollers.len()
    }

    pub fn counters(&self, poller: usize) -> &PollerCounters {
        &self.pollers[poller].counters
    }

    /// Adds a flow in every poller.
    ///
    /// # Errors
    /// There is one by hand with this match or ufid; then it is as it was.
    pub async fn add_flow(&self, ufid: Option<Ufid>, matching: Match, actions: Actions) -> Result<(), FlowError> {
        let flow = NewFlow { ufid, matching, actions, number: self.shared.decision_number() };
        let answers: Vec<_> =
            self.pollers.iter().map(|poller| poller.ask(|reply| Message::Add(Box::new(flow.clone()), reply))).collect();
        // Flows by hand are in every poller or in none, so all answers are equal.
        let mut result = Ok(());
        for answer in answers {
            result = answer.await.unwrap_or(Ok(())).and(result);
        }
        result
    }

    /// Replaces a flow's actions; answers with what it was, counts summed, or `None` when no poller has it. From then on it
    /// is a flow added by hand, so pollers that did not have it get it.
    pub async fn modify_flow(&self, which: Which, actions: Actions, clear: bool) -> Option<FlowView> {
        let number = self.shared.decision_number();
        let change = Change { actions: actions.clone(), clear, number };
        let answers = self.ask_each(|reply| Message::Modify(which.clone(), change.clone(), reply)).await;
        let total = sum(answers.iter().flatten().cloned())?;
        let flow = NewFlow { ufid: Some(total.ufid), matching: total.matching, actions, number };
        for (poller, _) in self.pollers.iter().zip(&answers).filter(|(_, answer)| answer.is_none()) {
            // A poller that has it by now has it from somebody else, whose word is newer.
            let _ = poller.ask(|reply| Message::Add(Box::new(flow.clone()), reply)).await;
        }
        Some(total)
    }

    /// Deletes a flow in every poller that has it; answers with what it was, counts summed, or `None`.
    pub async fn delete_flow(&self, which: Which) -> Option<FlowView> {
        self.ask_for_flow(|reply| Message::Delete(which.clone(), reply)).await
    }

    /// The flow, counts summed over the pollers that have it.
    pub async fn get_flow(&self, which: Which) -> Option<FlowView> {
        self.ask_for_flow(|reply| Message::Get(which.clone(), reply)).await
    }

    async fn ask_for_flow(&self, message: impl Fn(oneshot::Sender<Option<FlowView>>) -> Message) -> Option<FlowView> {
        sum(self.ask_each(message).await.into_iter().flatten())
    }

    /// Each poller's answer; `None` of one that has stopped.
    async fn ask_each(&self, message: impl Fn(oneshot::Sender<Option<FlowView>>) -> Message) -> Vec<Option<FlowView>> {
        let answers: Vec<_> = self.pollers.iter().map(|poller| poller.ask(&message)).collect();
        let mut views = Vec::with_capacity(answers.len());
        for answer in answers {
            views.push(answer.await.ok().flatten());
        }
        views
    }

    /// Deletes all flows of every poller, or those of packets from one port. Answers with how many.
    pub async fn flush(&self, from: Option<PortNo>) -> usize {
        let answers: Vec<_> = self.pollers.iter().map(|poller| poller.ask(|done| Message::Flush(from, done))).collect();
        let mut deleted = 0;
        for answer in answers {
            deleted += answer.await.unwrap_or(0);
        }
        deleted
    }

    /// Gives every poller a new way to the device, which was restarted and knows nothing: all flows ask anew.
    pub async fn renew_agents(&self) {
        let answers: Vec<_> = (0..self.pollers.len())
            .filter_map(|id| {
                let doorbell = Arc::clone(&self.pollers[id].doorbell);
                let agent = self.offload.agent(id as u32, Box::new(move || doorbell.ring()))?;
                Some(self.pollers[id].ask(|done| Message::NewAgent(Box::new(agent), done)))
            })
            .collect();
        for answer in answers {
            // A poller that has stopped has no flows.
            let _ = answer.await;
        }
    }

    /// A page of one poller's flows, from number `from` on.
    pub async fn page(&self, poller: usize, from: u32) -> Page {
        self.pollers[poller].ask(|reply| Message::Dump(from, reply)).await.unwrap_or_default()
    }

    /// Ends the pollers and waits for them: each is through with its batch in well under a millisecond.
    pub fn stop(&self) {
        for poller in &self.pollers {
            poller.send(Message::Stop);
        }
        for poller in &self.pollers {
            let thread = poller.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
            if thread.is_some_and(|thread| thread.join().is_err()) {
                log::error!(target: "poller", "a poller panicked");
            }
        }
        self.ports().open.clear();
    }

    /// Whether a poller ended without being told to.
    pub fn poller_died(&self) -> bool {
        self.pollers.iter().any(|poller| {
            let thread = poller.thread.lock().unwrap_or_else(PoisonError::into_inner);
            thread.as_ref().is_some_and(JoinHandle::is_finished)
        })
    }

    fn ports(&self) -> MutexGuard<'_, Ports> {
        // Each change under this lock is one insert or remove, so a panic leaves no half of one behind.
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ports {
    /// Sets a name and a number aside for a port that is about to be opened.
    fn reserve(&mut self, spec: &PortSpec) -> Result<PortNo, AddPortError> {
        let name = &spec.name;
        let open = self.open.iter().map(|(number, open)| (*number, open.port.info().name.as_str()));
        let taken: BTreeMap<PortNo, &str> =
            open.chain(self.reserved.iter().map(|(number, name)| (*number, name.as_str()))).collect();
        if taken.values().any(|other| other == name) {
            return Err(AddPortError::Name(name.clone()));
        }
        let mut numbers = (1..=PortNo::MAX.0).map(PortNo);
        let number = match spec.number {
            Some(number) => number,
            None => numbers.find(|n| !taken.contains_key(n)).ok_or_else(|| AddPortError::Full(name.clone()))?,
        };
        if let Some(by) = taken.get(&number) {
            return Err(AddPortError::Number { name: name.clone(), number, by: (*by).to_owned() });
        }
        self.reserved.insert(number, name.clone());
        Ok(number)
    }
}

impl PollerHandle {
    fn send(&self, message: Message) {
        self.inbox.push(message);
        self.doorbell.ring();
    }

    fn ask<T>(&self, message: impl FnOnce(oneshot::Sender<T>) -> Message) -> oneshot::Receiver<T> {
        let (reply, answer) = oneshot::channel();
        self.send(message(reply));
        answer
    }
}

/// One flow of several pollers: their counts together.
fn sum(views: impl Iterator<Item = FlowView>) -> Option<FlowView> {
    views.reduce(|mut sum, view| {
        sum.stats.packets += view.stats.packets;
        sum.stats.bytes += view.stats.bytes;
        sum.stats.used_ns = sum.stats.used_ns.max(view.stats.used_ns);
        sum.tcp_flags |= view.tcp_flags;
        sum.mark = sum.mark.or(view.mark);
        sum
    })
}

/// Names and numbers of ports at one moment.
#[derive(Clone, Debug, Default)]
pub struct Names(BTreeMap<PortNo, String>);

impl PortNames for Names {
    fn number(&self, name: &str) -> Option<PortNo> {
        self.0.iter().find(|(_, known)| *known == name).map(|(number, _)| *number)
    }

    fn name(&self, number: PortNo) -> Option<String> {
        self.0.get(&number).cloned()
    }
}

/// Keeps this thread on one processor; says so in the log when it cannot.
fn pin(cpu: usize) {
    let mut set = rustix::thread::CpuSet::new();
    if cpu < rustix::thread::CpuSet::MAX_CPU {
        set.set(cpu);
    }
    if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
        log::warn!(target: "poller", "cannot run on processor {cpu} alone: {error}");
    }
}
