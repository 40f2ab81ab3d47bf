//! [`Switch`]: the datapath as the control thread sees it: its pollers, its ports, its flows.
//!
//! # Thread-safety
//! Every method may be called from any thread; none is called by a poller. Methods that must hear from every poller are
//! `async`, and their futures hold no lock while they wait. Those that change which pollers, ports or flows by hand there are
//! go one after the other: they hold the [`Baton`].

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use futures_channel::oneshot;
use rustix::thread::{CpuSet, sched_getaffinity};

use super::baton::Baton;
use super::counters::{PollerCounters, PortCounters, RxCounters};
use super::crew::{Crew, Kit};
use super::emc::Emc;
use super::inbox::{AddFlow, Change, FlowError, FlowView, Look, Many, Message, NewFlow, Page, Taken, Which};
use super::output::{Output, PortLimits, Tx};
use super::poller::{Receiver, Reports};
use super::shared::Shared;
use super::table::Namer;
use super::window::Window;
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
    pub(super) crew: ArcSwap<Crew>,
    pub(super) kit: Kit,
    ports: Mutex<Ports>,
    /// Held by whoever changes which pollers, ports or flows by hand there are.
    pub(super) baton: Baton,
    /// Receive queues that wait for [`Switch::begin`]; `None` afterwards.
    waiting: Mutex<Option<Vec<Receiver>>>,
    pub(super) stopping: AtomicBool,
}

/// The ports there are, and those on their way.
#[derive(Default)]
pub(super) struct Ports {
    pub open: BTreeMap<PortNo, OpenPort>,
    /// Names and numbers of ports that are being opened or closed: nobody else may have them meanwhile.
    reserved: BTreeMap<PortNo, String>,
}

pub(super) struct OpenPort {
    /// What it was opened as.
    spec: PortSpec,
    pub port: Box<dyn Port>,
    limits: Arc<PortLimits>,
    /// One a poller.
    pub counters: Vec<Arc<PortCounters>>,
    /// The counts of pollers that have ended.
    ended: PortCounters,
    /// Its receive queues.
    pub queues: Vec<RxPlace>,
}

/// Where a receive queue is polled, and how much it brings.
pub(super) struct RxPlace {
    pub poller: usize,
    pub counters: Arc<RxCounters>,
    pub window: Window,
}

/// A port that pollers do not know yet.
struct Opened {
    /// One a poller.
    outputs: Vec<Output>,
    receivers: Vec<Receiver>,
}

/// The most pollers.
pub const MAX_POLLERS: usize = 256;

/// How long whoever waits for a page keeps looking for it before he wants to be told.
const LOOKING_OUT: Duration = Duration::from_millis(2);

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
    /// Sums over the pollers that there are and were.
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
        // Fails only for a process that does not exist.
        let anywhere = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
        let switch = Switch {
            shared,
            offload,
            device,
            crew: ArcSwap::default(),
            kit: Kit { namer: Namer::random(), reports, anywhere },
            ports: Mutex::default(),
            baton: Baton::default(),
            waiting: Mutex::new(Some(Vec::new())),
            stopping: AtomicBool::new(false),
        };
        let pollers = switch.start_pollers(0..config.count.clamp(1, MAX_POLLERS), &config.cpus)?;
        switch.crew.store(Arc::new(Crew { pollers, cpus: config.cpus.clone(), ..Crew::default() }));
        Ok(switch)
    }

    /// Opens a port and lets packets in and out. To be run to its end: a future dropped before leaves a port half open.
    ///
    /// # Errors
    /// Name or number taken, or the device cannot be opened; then nothing has changed.
    pub async fn add_port(&self, spec: &PortSpec) -> Result<PortNo, AddPortError> {
        let reserved = self.ports().reserve(spec);
        let number = match reserved {
            // The port of that name or number may be on its way out: whoever takes it there has the baton until it is.
            Err(_) => {
                drop(self.baton.take().await);
                self.ports().reserve(spec)?
            }
            Ok(number) => number,
        };
        // Neither the table of ports nor the other changes wait for a device that opens slowly.
        let port = port::open(spec, number).inspect_err(|_| self.forget(number))?;
        let _baton = self.baton.take().await;
        let crew = self.crew();
        let (open, Opened { outputs, receivers }) =
            self.open_queues(spec, port, &crew).inspect_err(|_| self.forget(number))?;
        self.ports().open.insert(number, open);
        self.add_outputs(&crew, number, outputs).await?;
        self.publish_ports();
        match &mut *self.waiting() {
            Some(waiting) => waiting.extend(receivers),
            None => self.receive_from(receivers),
        }
        self.forget(number);
        log::info!(target: "port", "{}: added as port {number} ({})", spec.name, spec.kind);
        Ok(number)
    }

    /// Gives the pollers a way out each, and waits until packets may take it.
    ///
    /// # Errors
    /// A poller has ended.
    pub(super) async fn add_outputs(
        &self,
        crew: &Crew,
        number: PortNo,
        outputs: Vec<Output>,
    ) -> Result<(), AddPortError> {
        let opened: Vec<_> = crew
            .pollers
            .iter()
            .zip(outputs)
            .map(|(poller, output)| poller.ask(|done| Message::AddOutput(number, Box::new(output), done)))
            .collect();
        for answer in opened {
            answer.await.map_err(|_| AddPortError::Stopping)?;
        }
        Ok(())
    }

    /// The port's name and number are free for others.
    fn forget(&self, number: PortNo) {
        self.ports().reserved.remove(&number);
    }

    /// Lets packets in, at the ports there are and at those that come. Until then no packet is received, so that none
    /// meets a half-made set of rules. To be called once, when nobody else changes the datapath.
    pub fn begin(&self) {
        let waiting = self.waiting().take();
        self.receive_from(waiting.unwrap_or_default());
    }

    pub(super) fn waiting(&self) -> MutexGuard<'_, Option<Vec<Receiver>>> {
        // A list, whole at any moment.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a port's queues for the pollers of `crew`.
    fn open_queues(
        &self,
        spec: &PortSpec,
        mut port: Box<dyn Port>,
        crew: &Crew,
    ) -> Result<(OpenPort, Opened), AddPortError> {
        let info = port.info().clone();
        let queues = port.take_rx();
        let now = Instant::now();
        let place = |poller| RxPlace { poller, counters: Arc::default(), window: Window::new(now) };
        let mut open = OpenPort {
            spec: spec.clone(),
            limits: Arc::new(PortLimits { mtu: AtomicU32::new(port.mtu() as u32) }),
            counters: crew.pollers.iter().map(|_| Arc::default()).collect(),
            ended: PortCounters::default(),
            queues: self.spread(queues.len(), crew).into_iter().map(place).collect(),
            port,
        };
        let ring = self.device.as_ref().map_or(info.ring, |device| device.ring(info.ring));
        let progress: Vec<Arc<RxProgress>> = queues.iter().map(|_| Arc::new(RxProgress::new(ring))).collect();
        // Before the device sees a packet of it: a rule that was the number's before may mark one, and its mark then waits for these queues.
        self.offload.port_added(info.clone(), progress.clone());
        let outputs = self.open_ways(&mut open, crew, MAX_POLLERS).map_err(|source| {
            self.offload.port_removed(info.number);
            AddPortError::Transmit { name: info.name.clone(), source }
        })?;
        let receiver = |(number, (queue, progress))| {
            let queue = match &self.device {
                Some(device) => device.wrap_rx(&info, queue),
                None => queue,
            };
            let place: &RxPlace = &open.queues[number];
            let counters = Arc::clone(&open.counters[place.poller]);
            Receiver::new((info.number, number), queue, progress, counters, Arc::clone(&place.counters))
        };
        let receivers = queues.into_iter().zip(progress).enumerate().map(receiver).collect();
        Ok((open, Opened { outputs, receivers }))
    }

    /// Chooses a poller for each of `n` receive queues: whoever has the fewest.
    fn spread(&self, n: usize, crew: &Crew) -> Vec<usize> {
        let mut load = vec![0usize; crew.pollers.len()];
        for poller in self.ports().open.values().flat_map(OpenPort::owners) {
            load[poller] += 1;
        }
        (0..n)
            .map(|_| {
                let least = (0..load.len()).min_by_key(|poller| load[*poller]).unwrap_or(0);
                load[least] += 1;
                least
            })
            .collect()
    }

    /// Opens a port's ways out, one a poller, with at most `most` transmit queues, and the device's own.
    ///
    /// # Errors
    /// A queue cannot be opened; then the port has no way out.
    pub(super) fn open_ways(&self, open: &mut OpenPort, crew: &Crew, most: usize) -> io::Result<Vec<Output>> {
        let owner = open.owners().next().unwrap_or(0);
        let ways = open_ways_out(open.port.as_mut(), crew, owner, most)?;
        if let Some(device) = &self.device {
            // Where all pollers have a queue of their own, frames that the device sends by itself keep in order with theirs.
            let wire = match ways.iter().all(|tx| matches!(tx, Tx::Own(_))) {
                true => open.port.open_wire()?,
                false => None,
            };
            device.connect(open.port.info(), open.port.mtu(), wire, open.port.hook());
            self.offload.port_connected(open.port.info().number);
        }
        let info = open.port.info();
        let output = |(tx, counters): (Tx, &Arc<PortCounters>)| {
            Output::new(tx, info.tx_checksum, info.tx_segment, Arc::clone(&open.limits), Arc::clone(counters))
        };
        Ok(ways.into_iter().zip(&open.counters).map(output).collect())
    }

    /// Closes a port and deletes the flows of packets from it. To be run to its end, as [`Switch::add_port`]. Answers with its name; `None` when there is no such port.
    pub async fn remove_port(&self, number: PortNo) -> Option<String> {
        let _baton = self.baton.take().await;
        self.close_port(number).await
    }

    /// The caller holds the baton.
    pub(super) async fn close_port(&self, number: PortNo) -> Option<String> {
        let (open, name) = {
            let mut ports = self.ports();
            let open = ports.open.remove(&number)?;
            let name = open.port.info().name.clone();
            ports.reserved.insert(number, name.clone());
            (open, name)
        };
        // Rules first: from now on nothing is sent there.
        self.publish_ports();
        // A poller that has stopped holds no queue.
        self.crew().ask(|done| Message::RemovePort(number, done)).await;
        self.offload.port_removed(number);
        if let Some(device) = &self.device {
            device.disconnect(number);
        }
        drop(open);
        self.forget(number);
        log::info!(target: "port", "{name}: removed");
        Some(name)
    }

    /// Tells rules and stations which ports there are. Under the lock, so that the last to tell is the last to have looked.
    fn publish_ports(&self) {
        let ports = self.ports();
        let list = ports.open.iter().map(|(number, open)| (*number, open.port.info().name.clone())).collect();
        self.shared.slowpath.set_ports(list);
    }

    /// Reads what may have changed behind our back, each port's MTU, and how far each receive queue's counts have come. Call
    /// about once a second. Answers with the ports that should be opened anew.
    pub fn refresh_ports(&self, now: Instant) -> Vec<PortNo> {
        let mut outdated = Vec::new();
        for (number, open) in &mut self.ports().open {
            if !open.port.look_after() {
                outdated.push(*number);
            }
            let mtu = open.port.mtu();
            open.limits.mtu.store(mtu as u32, Ordering::Relaxed);
            if self.device.as_ref().is_some_and(|device| device.set_mtu(*number, mtu)) {
                self.offload.port_changed(*number);
            }
            open.queues.iter_mut().for_each(|place| place.window.sample(now, &place.counters));
        }
        outdated
    }

    pub fn port_views(&self) -> Vec<PortView> {
        let sum = |open: &OpenPort| {
            let total = PortCounters::default();
            open.counters.iter().map(Arc::as_ref).chain([&open.ended]).for_each(|counters| total.add(counters));
            total.list().into_iter().collect()
        };
        let view = |open: &OpenPort| PortView {
            info: open.port.info().clone(),
            mtu: open.port.mtu(),
            pollers: open.owners().collect(),
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

    /// Plugs the wire of a port in memory in or out, or of all of them; how many there were.
    pub fn set_up(&self, name: Option<&str>, up: bool) -> usize {
        let ports = self.ports();
        let wanted = ports.open.values().filter(|open| name.is_none_or(|name| open.port.info().name == name));
        wanted.filter(|open| open.port.set_up(up)).count()
    }

    /// What a port was opened as.
    pub fn port_spec(&self, port: PortNo) -> Option<PortSpec> {
        self.ports().open.get(&port).map(|open| open.spec.clone())
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

    /// How many pollers there are now.
    pub fn pollers(&self) -> usize {
        self.crew().pollers.len()
    }

    /// The pollers as they are now.
    pub fn crew(&self) -> Arc<Crew> {
        self.crew.load_full()
    }

    /// One poller's counts since it started; all 0 of one that there is not (any more).
    pub fn counters(&self, poller: usize) -> Arc<PollerCounters> {
        self.crew().pollers.get(poller).map(|poller| Arc::clone(&poller.counters)).unwrap_or_default()
    }

    /// The counts of all pollers that there are and were.
    pub fn totals(&self) -> PollerCounters {
        self.crew().totals()
    }

    /// From now on, [`Crew`] shows only what comes as counted since the clearing.
    pub async fn clear_counters(&self, now: Instant) {
        let _baton = self.baton.take().await;
        self.crew().clear(now);
    }

    /// Adds a flow in every poller.
    ///
    /// # Errors
    /// There is one by hand with this match or ufid; then it is as it was.
    pub async fn add_flow(&self, ufid: Option<Ufid>, matching: Match, actions: Actions) -> Result<(), FlowError> {
        let _baton = self.baton.take().await;
        let flow = NewFlow { ufid, matching, actions, number: self.shared.decision_number() };
        let answers = self.crew().ask(|reply| Message::Add(Box::new(flow.clone()), reply)).await;
        // Flows by hand are in every poller or in none, so all answers are equal.
        answers.into_iter().flatten().collect()
    }

    /// Adds flows in every poller, all or none. `progress` is called with how many came to it since the last time, by one poller.
    ///
    /// # Errors
    /// There is one by hand with the match or ufid of one of them.
    pub async fn add_flows(
        &self,
        flows: Vec<AddFlow>,
        progress: impl Fn(u64) + Send + Sync + 'static,
    ) -> Result<(), Taken> {
        let _baton = self.baton.take().await;
        let many = Arc::new(Many { flows, number: self.shared.decision_number() });
        let progress = Mutex::new(Some(Arc::new(progress) as Arc<dyn Fn(u64) + Send + Sync>));
        let first = || progress.lock().unwrap_or_else(PoisonError::into_inner).take();
        let answers = self.crew().ask(|reply| Message::AddMany(Arc::clone(&many), first(), reply)).await;
        // Flows by hand are in every poller or in none, so all answers are equal.
        answers.into_iter().flatten().collect()
    }

    /// Entries in the exact-match cache of each poller.
    pub fn emc_entries(&self) -> usize {
        self.shared.emc_entries()
    }

    /// Gives each poller an empty exact-match cache.
    pub async fn set_emc_entries(&self, entries: usize) {
        let _baton = self.baton.take().await;
        self.shared.set_emc_entries(entries);
        self.crew().ask(|done| Message::SetEmc(Box::new(Emc::with_entries(entries)), done)).await;
    }

    /// Replaces a flow's actions; answers with what it was, counts summed, or `None` when no poller has it. From then on it
    /// is a flow added by hand, so pollers that did not have it get it.
    pub async fn modify_flow(&self, which: Which, actions: Actions, clear: bool) -> Option<FlowView> {
        let _baton = self.baton.take().await;
        let crew = self.crew();
        let number = self.shared.decision_number();
        let change = Change { actions: actions.clone(), clear, number };
        let answers = views(&crew, |reply| Message::Modify(which.clone(), change.clone(), reply)).await;
        let total = sum(answers.iter().flatten().cloned())?;
        let flow = NewFlow { ufid: Some(total.ufid), matching: total.matching, actions, number };
        for (poller, _) in crew.pollers.iter().zip(&answers).filter(|(_, answer)| answer.is_none()) {
            // A poller that has it by now has it from somebody else, whose word is newer.
            let _ = poller.ask(|reply| Message::Add(Box::new(flow.clone()), reply)).await;
        }
        Some(total)
    }

    /// Deletes a flow in every poller that has it; answers with what it was, counts summed, or `None`.
    pub async fn delete_flow(&self, which: Which) -> Option<FlowView> {
        let _baton = self.baton.take().await;
        self.ask_for_flow(|reply| Message::Delete(which.clone(), reply)).await
    }

    /// The flow, counts summed over the pollers that have it.
    pub async fn get_flow(&self, which: Which) -> Option<FlowView> {
        self.ask_for_flow(|reply| Message::Get(which.clone(), reply)).await
    }

    async fn ask_for_flow(&self, message: impl Fn(oneshot::Sender<Option<FlowView>>) -> Message) -> Option<FlowView> {
        sum(views(&self.crew(), message).await.into_iter().flatten())
    }

    /// Deletes all flows of every poller, or those of packets from one port. Answers with how many.
    pub async fn flush(&self, from: Option<PortNo>) -> usize {
        let _baton = self.baton.take().await;
        self.crew().ask(|done| Message::Flush(from, done)).await.into_iter().flatten().sum()
    }

    /// Waits until every poller has looked at each of its flows, in a sweep that began after this call; `false` if sweeps are paused.
    pub async fn sweep(&self) -> bool {
        let swept = self.crew().ask(Message::Sweep).await;
        swept.iter().all(Option::is_some)
    }

    /// Stops sweeps, or lets them go on.
    pub fn pause_sweep(&self, paused: bool) {
        self.shared.pause_sweep(paused);
        self.ring();
    }

    /// Wakes every poller: something that they look at by themselves has changed.
    pub fn ring(&self) {
        self.crew().pollers.iter().for_each(|poller| poller.doorbell.ring());
    }

    /// What each poller knows of itself.
    pub async fn looks(&self) -> Vec<Look> {
        self.crew().ask(Message::Look).await.into_iter().map(Option::unwrap_or_default).collect()
    }

    /// Deletes the flows that rules made. Answers with how many.
    pub async fn purge(&self) -> usize {
        let _baton = self.baton.take().await;
        self.crew().ask(Message::Purge).await.into_iter().flatten().sum()
    }

    /// Gives every poller a new way to the device, which was restarted and knows nothing: all flows ask anew.
    pub async fn renew_agents(&self) {
        let _baton = self.baton.take().await;
        let crew = self.crew();
        let answers: Vec<_> = (0..)
            .zip(&crew.pollers)
            .filter_map(|(id, poller)| {
                let agent = self.offload.agent(id, poller.bell())?;
                Some(poller.ask(|done| Message::NewAgent(Box::new(agent), done)))
            })
            .collect();
        for answer in answers {
            // A poller that has stopped has no flows.
            let _ = answer.await;
        }
        self.offload.renewed();
    }

    /// A page of one poller's flows, from number `from` on; empty from a poller that there is not (any more).
    pub async fn page(&self, poller: usize, from: u32) -> Page {
        let Some(poller) = self.crew().pollers.get(poller).cloned() else { return Page::default() };
        let mut page = poller.ask(|reply| Message::Dump(from, reply));
        let asked = Instant::now();
        poll_fn(|context| {
            if asked.elapsed() > LOOKING_OUT {
                return Pin::new(&mut page).poll(context).map(Result::unwrap_or_default);
            }
            // Nobody is to be woken: a poller that wakes others for each page makes a system call that its packets wait for.
            match page.try_recv() {
                Ok(Some(page)) => Poll::Ready(page),
                Ok(None) => {
                    context.waker().wake_by_ref();
                    Poll::Pending
                }
                Err(_) => Poll::Ready(Page::default()),
            }
        })
        .await
    }

    /// Ends the pollers and waits for them: each is through with its batch in well under a millisecond. Changes that are under
    /// way end without success.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        let crew = self.crew();
        let all = || crew.pollers.iter().chain(&crew.leaving);
        all().for_each(|poller| poller.dismiss());
        all().for_each(|poller| poller.join());
        self.ports().open.clear();
    }

    /// Whether a poller ended without being told to.
    pub fn poller_died(&self) -> bool {
        self.crew().pollers.iter().any(|poller| poller.has_died())
    }

    pub(super) fn ports(&self) -> MutexGuard<'_, Ports> {
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

impl OpenPort {
    /// The poller of each receive queue.
    pub fn owners(&self) -> impl Iterator<Item = usize> {
        self.queues.iter().map(|place| place.poller)
    }

    /// Counts for so many pollers; those of pollers that have ended stay in the sums. They have no queue of the port any more.
    pub fn recount(&mut self, pollers: usize) {
        let ended = self.counters.drain(pollers.min(self.counters.len())..);
        ended.for_each(|counters| self.ended.add(&counters));
        self.counters.resize_with(pollers, Arc::default);
    }
}

/// A way out for each poller, by at most `most` transmit queues. Where there are fewer than pollers, `owner` serves its own for
/// all without.
fn open_ways_out(port: &mut dyn Port, crew: &Crew, owner: usize, most: usize) -> io::Result<Vec<Tx>> {
    let mut queues: Vec<Option<Box<dyn TxQueue>>> = crew.pollers.iter().map(|_| None).collect();
    // The owner first: it must have one.
    let order = std::iter::once(owner).chain((0..crew.pollers.len()).filter(|poller| *poller != owner));
    for poller in order.take(most) {
        queues[poller] = port.open_tx()?;
        if queues[poller].is_none() {
            break;
        }
    }
    if queues[owner].is_none() {
        return Err(io::Error::other("the device has no transmit queue"));
    }
    let doorbell = Arc::clone(&crew.pollers[owner].doorbell);
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

/// Each poller's answer about a flow; `None` also of one that has ended.
async fn views(crew: &Crew, message: impl Fn(oneshot::Sender<Option<FlowView>>) -> Message) -> Vec<Option<FlowView>> {
    crew.ask(message).await.into_iter().map(Option::flatten).collect()
}

/// One flow of several pollers: their counts together.
fn sum(views: impl Iterator<Item = FlowView>) -> Option<FlowView> {
    views.reduce(|mut sum, view| {
        sum.stats.packets = sum.stats.packets.saturating_add(view.stats.packets);
        sum.stats.bytes = sum.stats.bytes.saturating_add(view.stats.bytes);
        sum.stats.used_ns = sum.stats.used_ns.max(view.stats.used_ns);
        sum.tcp_flags |= view.tcp_flags;
        sum.mark = sum.mark.or(view.mark);
        sum
    })
}

/// Names and numbers of ports at one moment.
#[derive(Clone, Debug, Default)]
pub struct Names(BTreeMap<PortNo, String>);

impl Names {
    /// How many ports there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl PortNames for Names {
    fn number(&self, name: &str) -> Option<PortNo> {
        self.0.iter().find(|(_, known)| *known == name).map(|(number, _)| *number)
    }

    fn name(&self, number: PortNo) -> Option<String> {
        self.0.get(&number).cloned()
    }
}
