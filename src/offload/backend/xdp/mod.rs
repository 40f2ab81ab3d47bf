//! [`XdpDevice`]: flows offloaded to an XDP program in the kernel, at the interfaces of `xsk` ports. On any machine, there is no NIC to buy.
//!
//! ```text
//!   worker ─► Channel ─► Table ──► maps ◄── the program (src/xdp/bpf) ◄── frames
//!   control ─► XdpDevice ─► Ports ──┘            └─► socket, marked · wire · nowhere
//! ```
//!
//! - `table`: the rules and their masks · `ports`: the interfaces · `rewrite`: actions as the one step that the program does
//! - `shared`: the maps and their memory · `layout`: how they are laid out · `grace`: when packets under way have arrived
//!
//! What the program counts stands in memory that it shares with us, so that reading counts asks the kernel nothing.

mod grace;
mod layout;
mod options;
mod ports;
mod rewrite;
mod shared;
mod table;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use grace::Graces;
use ports::Ports;
use rewrite::Rewrite;
use shared::Shared;
use table::{New, Table};

use super::{
    ActionSet, Backend, BackendCaps, DeleteError, Device, Done, Fence, FlushError, Generation, Grace, Handle, Install,
    OpenError, PortCounts, PutError, StatsError, Unsupported,
};
use crate::flow::{Actions, PortNo};
use crate::offload::mark::Mark;
use crate::offload::state::{FlowStats, Level};
use crate::packet::{Packet, Pool};
use crate::port::{PortInfo, RxQueue, TxQueue};
use crate::xdp::Hook;

pub use options::Options;

/// How often the masks are put in the order of their hits.
const REORDER: Duration = Duration::from_secs(1);

/// Rules that are put by one call of the kernel, at most: their gain hardly grows beyond, and the first waits 50 microseconds for the last.
const BATCH: usize = 64;

/// The XDP device.
pub struct XdpDevice {
    options: Options,
    nic: Arc<Nic>,
    graces: Graces,
    fence: Fence,
}

/// What channels share.
struct Nic {
    shared: Arc<Shared>,
    state: Mutex<State>,
}

struct State {
    table: Table,
    ports: Ports,
    /// How often it was restarted: older channels are powerless.
    life: u64,
    next_reorder: Instant,
}

impl Nic {
    fn state(&self) -> MutexGuard<'_, State> {
        // Whatever panicked between two changes of it left each of them whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens the device. `epoch`: what the nanoseconds of its [`FlowStats`] count from.
///
/// # Errors
/// The kernel or a privilege does not allow it.
pub fn open(options: Options, epoch: Instant) -> Result<Arc<dyn Device>, OpenError> {
    Ok(Arc::new(XdpDevice::new(options, epoch)?))
}

impl XdpDevice {
    fn new(options: Options, epoch: Instant) -> Result<XdpDevice, OpenError> {
        let failed = |text: String| OpenError::Device { kind: "xdp", text };
        let shared = Arc::new(Shared::load(options.rules, epoch).map_err(|error| failed(error.to_string()))?);
        let graces = Graces::start().map_err(|error| failed(error.to_string()))?;
        let state = State {
            table: Table::new(Arc::clone(&shared), options.rules),
            ports: Ports::new(Arc::clone(&shared)),
            life: 0,
            next_reorder: Instant::now(),
        };
        let fenced = Arc::clone(&shared);
        let fence = Fence::telling(move |raised| fenced.set_fenced(raised));
        Ok(XdpDevice { options, nic: Arc::new(Nic { shared, state: Mutex::new(state) }), graces, fence })
    }
}

impl Device for XdpDevice {
    fn capabilities(&self) -> BackendCaps {
        BackendCaps {
            name: "xdp",
            fields: layout::fields(),
            level: if self.options.full { Level::Full } else { Level::Mark },
            actions: match self.options.full {
                // A CRC does not follow a change by the difference alone.
                true => ActionSet::ALL.without("set(sctp)").unwrap_or_default(),
                false => ActionSet::NONE,
            },
            capacity: Some(self.options.rules),
            mark_bits: 32,
            replace_in_place: true,
            batch: BATCH,
        }
    }

    fn channel(&self) -> Box<dyn Backend> {
        let life = self.nic.state().life;
        Box::new(Channel { nic: Arc::clone(&self.nic), caps: self.capabilities(), life })
    }

    fn fence(&self) -> Fence {
        self.fence.clone()
    }

    fn restart(&self) -> Result<(), FlushError> {
        let state = &mut *self.nic.state();
        state.life += 1;
        let all = state.table.handles();
        state.table.flush(&all).map_err(|DeleteError(text)| FlushError(text))?;
        // Frames that were marked before may be on their way to a receive queue yet.
        state.ports.disbelieve().map_err(|error| FlushError(error.to_string()))
    }

    fn connect(&self, port: &PortInfo, _mtu: usize, _wire: Option<Box<dyn TxQueue>>, hook: Option<Arc<Hook>>) {
        // Other kinds of ports have no program; their flows are refused.
        let Some(hook) = hook else { return };
        let State { table, ports, .. } = &mut *self.nic.state();
        if let Err(error) = ports.connect(port.number, &hook, |slot| table.sends_to(slot)) {
            log::warn!(target: "xdp", "{}: its packets are not offloaded: {error}", port.name);
        }
    }

    fn set_mtu(&self, port: PortNo, _mtu: usize) -> bool {
        // Asked now and then, by a thread that must not wait: where the kernel keeps another for long, it is asked the next time.
        self.nic.state.try_lock().is_ok_and(|mut state| state.ports.look_again(port))
    }

    fn disconnect(&self, port: PortNo) {
        self.nic.state().ports.disconnect(port);
    }

    fn wrap_rx(&self, _port: &PortInfo, queue: Box<dyn RxQueue>) -> Box<dyn RxQueue> {
        Box::new(Fenced { queue, fence: self.fence.clone() })
    }

    fn grace(&self) -> Option<Grace> {
        Some(self.graces.ask())
    }

    fn port_counts(&self, port: PortNo) -> Option<PortCounts> {
        let slot = self.nic.state().ports.slot(port)?;
        Some(self.nic.shared.port_counts(slot).0)
    }

    fn marks(&self) -> Option<Vec<Mark>> {
        Some(self.nic.state().table.marks())
    }
}

/// A receive queue whose frames lose their marks while the fence is raised: those that were marked before.
struct Fenced {
    queue: Box<dyn RxQueue>,
    fence: Fence,
}

impl RxQueue for Fenced {
    fn receive(&mut self, now: Instant, pool: &mut Pool, into: &mut Vec<Packet>) -> io::Result<usize> {
        let taken = self.queue.receive(now, pool, into)?;
        if self.fence.is_raised() {
            into.iter_mut().for_each(|packet| packet.meta.mark = None);
        }
        Ok(taken)
    }

    fn readable(&self) -> Option<BorrowedFd<'_>> {
        self.queue.readable()
    }

    fn next_due(&self) -> Option<Instant> {
        self.queue.next_due()
    }

    fn missed(&mut self) -> u64 {
        self.queue.missed()
    }
}

/// A worker's end of the device.
struct Channel {
    nic: Arc<Nic>,
    caps: BackendCaps,
    /// The life of the device that it belongs to.
    life: u64,
}

impl Channel {
    /// `None` when the device was restarted since.
    fn state(&self) -> Option<MutexGuard<'_, State>> {
        Some(self.nic.state()).filter(|state| state.life == self.life)
    }
}

/// What a channel of a former life is told.
const POWERLESS: &str = "the device was restarted";

/// How far `flow` can be taken: what is done, and the rewrite with the port's slot.
fn plan(caps: &BackendCaps, ports: &Ports, flow: &Install<'_>) -> Result<(Done, Rewrite, Option<u32>), PutError> {
    let able = caps.check(flow.matching, flow.actions).map_err(PutError::Unsupported)?;
    layout::check(flow.matching).map_err(PutError::Unsupported)?;
    if let Some(port) = flow.in_port.filter(|port| ports.slot(*port).is_none()) {
        return Err(PutError::Unsupported(Unsupported::Sight(port)));
    }
    let mark = |short| (Done { level: Level::Mark, short }, Rewrite::MARK, None);
    if flow.level == Level::Mark || able.level == Level::Mark {
        let short = able.short.filter(|_| flow.level == Level::Full);
        return Ok(mark(short));
    }
    Ok(match full(ports, flow.actions) {
        Ok((rewrite, out)) => (Done::at(Level::Full), rewrite, out),
        Err(short) => mark(Some(short)),
    })
}

fn full(ports: &Ports, actions: &Actions) -> Result<(Rewrite, Option<u32>), Unsupported> {
    let rewrite = Rewrite::of(actions)?;
    let out = rewrite.output.map(|port| ports.way_out(port).ok_or(Unsupported::Port(port))).transpose()?;
    Ok((rewrite, out))
}

impl Backend for Channel {
    fn put(&mut self, flow: Install<'_>) -> Result<(Handle, Done), PutError> {
        let mut state = self.state().ok_or_else(|| PutError::Device(POWERLESS.to_owned()))?;
        let (done, rewrite, out) = plan(&self.caps, &state.ports, &flow)?;
        let handle = state.table.put(&New { matching: flow.matching, mark: flow.mark, rewrite, out })?;
        Ok((handle, done))
    }

    fn put_all(&mut self, flows: &[Install<'_>], into: &mut Vec<Result<(Handle, Done), PutError>>) {
        let Some(mut state) = self.state() else {
            return into.extend(flows.iter().map(|_| Err(PutError::Device(POWERLESS.to_owned()))));
        };
        let mut able = Vec::with_capacity(flows.len());
        let mut planned = Vec::with_capacity(flows.len());
        for flow in flows {
            planned.push(plan(&self.caps, &state.ports, flow).map(|(done, rewrite, out)| {
                able.push(New { matching: flow.matching, mark: flow.mark, rewrite, out });
                done
            }));
        }
        let mut put = state.table.put_all(&able).into_iter();
        into.extend(planned.into_iter().map(|planned| {
            // There is one for each that was able.
            let done = planned?;
            put.next().unwrap_or(Err(PutError::NoRoom)).map(|handle| (handle, done))
        }));
    }

    fn replace(&mut self, handle: Handle, flow: Install<'_>) -> Result<(Done, FlowStats), PutError> {
        let mut state = self.state().ok_or_else(|| PutError::Device(POWERLESS.to_owned()))?;
        let (done, rewrite, out) = plan(&self.caps, &state.ports, &flow)?;
        let counted = state.table.replace(handle, flow.mark, &rewrite, out)?;
        Ok((done, counted))
    }

    fn delete(&mut self, handle: Handle) -> Result<FlowStats, DeleteError> {
        self.state().ok_or_else(|| DeleteError(POWERLESS.to_owned()))?.table.delete(handle)
    }

    fn stats(&mut self, handles: &[Handle], into: &mut Vec<FlowStats>) -> Result<(), StatsError> {
        let mut state = self.state().ok_or_else(|| StatsError(POWERLESS.to_owned()))?;
        into.extend(handles.iter().map(|handle| state.table.counted(*handle)));
        let now = Instant::now();
        if now >= state.next_reorder {
            state.next_reorder = now + REORDER;
            state.table.reorder();
        }
        Ok(())
    }

    fn generation(&mut self) -> Generation {
        // It forgets nothing by itself.
        Generation(0)
    }

    fn flush(&mut self, handles: &[Handle]) -> Result<(), FlushError> {
        let mut state = self.state().ok_or_else(|| FlushError(POWERLESS.to_owned()))?;
        state.table.flush(handles).map_err(|DeleteError(text)| FlushError(text))
    }
}
