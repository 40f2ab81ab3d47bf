//! A simulated NIC that truly matches packets: the witness.
//!
//! It shares neither code nor state with the datapath's lookup. It walks the headers its own way (`parse`), keeps a
//! wildcarded table of its own (`table`), and stamps what it finds on the packets that pass (`queue`), or executes the
//! rule's actions by itself (`egress`). If the datapath's idea of a flow and the NIC's differ, packets come out
//! wrong, and tests see it.
//!
//! Operations take as long as a preset says; the time is spent by the worker, outside every lock.

mod egress;
mod nic;
mod options;
mod parse;
mod queue;
mod table;

use std::sync::{Arc, RwLockWriteGuard};
use std::time::Instant;

use super::pace::spend;
use super::{
    Backend, BackendCaps, DeleteError, Device, Done, Fence, FlushError, Generation, Handle, Install, PortCounts,
    PutError, StatsError, Unsupported,
};
use crate::flow::PortNo;
use crate::offload::mark::Mark;
use crate::offload::state::{FlowStats, Level};
use crate::packet::BATCH;
use crate::port::{Hook, PortInfo, RxQueue, TxQueue};
use egress::Wires;
use nic::State;

pub use super::pace::Pace;
pub use nic::Nic;
pub use options::Options;

/// A simulated NIC.
pub fn open(options: Options, epoch: Instant) -> Arc<dyn Device> {
    Arc::new(Sim::new(Nic::new(epoch), options))
}

/// A simulated NIC as the daemon holds it.
pub struct Sim {
    nic: Arc<Nic>,
    options: Arc<Options>,
    pace: Pace,
}

impl Sim {
    pub fn new(nic: Arc<Nic>, options: Options) -> Sim {
        Sim { nic, options: Arc::new(options), pace: spend }
    }

    /// With another way to let time pass.
    pub fn with_pace(self, pace: Pace) -> Sim {
        Sim { pace, ..self }
    }
}

impl Device for Sim {
    fn capabilities(&self) -> BackendCaps {
        self.options.capabilities()
    }

    fn channel(&self) -> Box<dyn Backend> {
        Box::new(Channel {
            nic: Arc::clone(&self.nic),
            caps: self.options.capabilities(),
            options: Arc::clone(&self.options),
            pace: self.pace,
            life: self.nic.look().life,
        })
    }

    fn fence(&self) -> Fence {
        self.nic.fence().clone()
    }

    fn restart(&self) -> Result<(), FlushError> {
        self.nic.restart();
        Ok(())
    }

    fn reset(&self) -> bool {
        self.nic.reset();
        true
    }

    fn connect(&self, port: &PortInfo, mtu: usize, wire: Option<Box<dyn TxQueue>>, _hook: Option<Arc<Hook>>) {
        self.nic.connect(port, mtu, wire);
    }

    fn set_mtu(&self, port: PortNo, mtu: usize) -> bool {
        self.nic.set_mtu(port, mtu);
        // A packet that is too long for the port is left to the poller one by one, whatever its rule.
        false
    }

    fn disconnect(&self, port: PortNo) {
        self.nic.disconnect(port);
    }

    fn wrap_rx(&self, port: &PortInfo, queue: Box<dyn RxQueue>) -> Box<dyn RxQueue> {
        self.nic.wrap(port, queue, self.options.ring)
    }

    fn ring(&self, ring: u64) -> u64 {
        // Besides the ring's own frames a batch, which waits where another kind of frame ends the one that is handed out.
        ring + if self.options.ring > 0 { (self.options.ring + BATCH) as u64 } else { 0 }
    }

    fn port_counts(&self, port: PortNo) -> Option<PortCounts> {
        self.nic.port_counts(port)
    }

    fn forgotten(&self) -> Option<u64> {
        Some(self.nic.look().table.forgotten())
    }

    fn marks(&self) -> Option<Vec<Mark>> {
        Some(self.nic.look().table.marks().collect())
    }
}

/// A worker's end of a simulated NIC.
pub struct Channel {
    nic: Arc<Nic>,
    options: Arc<Options>,
    caps: BackendCaps,
    pace: Pace,
    /// The life of the NIC that it belongs to.
    life: u64,
}

/// The NIC was restarted since the channel was given.
#[derive(Debug, thiserror::Error)]
#[error("it was restarted")]
struct Powerless;

impl Channel {
    /// Takes an operation's time; then the state, unless the NIC was restarted meanwhile.
    fn operate(&self) -> Result<RwLockWriteGuard<'_, State>, Powerless> {
        if !self.options.operation.is_zero() {
            (self.pace)(self.options.operation);
        }
        let state = self.nic.change();
        if state.life == self.life { Ok(state) } else { Err(Powerless) }
    }

    /// What the NIC does for a rule.
    fn grade(&self, flow: &Install<'_>, wires: &Wires) -> Result<Done, PutError> {
        let most = self.caps.check(flow.matching, flow.actions).map_err(PutError::Unsupported)?;
        if flow.level == Level::Mark || most.level == Level::Mark {
            return Ok(Done { level: Level::Mark, short: most.short.filter(|_| flow.level == Level::Full) });
        }
        let short = flow.actions.outputs().find(|port| wires.get(*port).is_none()).map(Unsupported::Port);
        Ok(Done { level: if short.is_none() { Level::Full } else { Level::Mark }, short })
    }
}

impl Backend for Channel {
    fn put(&mut self, flow: Install<'_>) -> Result<(Handle, Done), PutError> {
        let mut state = self.operate()?;
        let done = self.grade(&flow, &state.wires)?;
        if state.table.len() >= self.options.capacity {
            return Err(PutError::NoRoom);
        }
        match state.table.insert(flow.matching, flow.mark, done.level, flow.actions) {
            Some(handle) => Ok((handle, done)),
            None => Err(PutError::Device("a rule with the same match is there already".to_owned())),
        }
    }

    fn replace(&mut self, handle: Handle, flow: Install<'_>) -> Result<(Done, FlowStats), PutError> {
        let mut state = self.operate()?;
        let done = self.grade(&flow, &state.wires)?;
        match state.table.replace(handle, flow.mark, done.level, flow.actions) {
            Some(stats) => Ok((done, stats)),
            None => Err(PutError::Device("no such rule".to_owned())),
        }
    }

    fn delete(&mut self, handle: Handle) -> Result<FlowStats, DeleteError> {
        // Packets are stamped under the same lock, so none is after this.
        Ok(self.operate()?.table.remove(handle).unwrap_or_default())
    }

    fn stats(&mut self, handles: &[Handle], into: &mut Vec<FlowStats>) -> Result<(), StatsError> {
        let state = self.nic.look();
        if state.life != self.life {
            return Err(StatsError(Powerless.to_string()));
        }
        into.extend(handles.iter().map(|&handle| state.table.stats(handle).unwrap_or_default()));
        Ok(())
    }

    fn generation(&mut self) -> Generation {
        Generation(self.nic.resets())
    }

    fn flush(&mut self, handles: &[Handle]) -> Result<(), FlushError> {
        let mut state = self.operate()?;
        handles.iter().for_each(|&handle| state.table.discard(handle));
        Ok(())
    }
}

impl From<Powerless> for PutError {
    fn from(why: Powerless) -> PutError {
        PutError::Device(why.to_string())
    }
}

impl From<Powerless> for DeleteError {
    fn from(why: Powerless) -> DeleteError {
        DeleteError(why.to_string())
    }
}

impl From<Powerless> for FlushError {
    fn from(why: Powerless) -> FlushError {
        FlushError(why.to_string())
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
