//! [`Chaos`]: any device, made to go wrong on purpose.
//!
//! It stands between the worker and a device, and lets operations fail, hang, take longer and tell lies as its
//! [`Faults`] say. What it does is what a device may do: the promises of [`Backend`] hold, whatever goes wrong. Only counts
//! are another matter: a device that lies about them keeps nothing.
//!
//! Packets pass untouched.

use std::sync::Arc;
use std::time::Instant;

use super::faults::{Dice, Failure, Fate};
use super::pace::{Pace, spend};
use super::{
    Backend, BackendCaps, BackendSpec, DeleteError, Device, Done, Fence, FlushError, Generation, Grace, Handle,
    Install, OpenError, PortCounts, PutError, StatsError,
};
use crate::flow::PortNo;
use crate::offload::mark::Mark;
use crate::offload::state::FlowStats;
use crate::port::{Hook, PortInfo, RxQueue, TxQueue};

pub use super::faults::{FaultError, Faults, Settings, Share};

/// Opens `over=KIND` (a simulated NIC, if left out) with the faults among the options; all other options are its own.
///
/// # Errors
/// As [`super::open`]'s.
pub(super) fn open(options: &[(String, String)], epoch: Instant) -> Result<Arc<dyn Device>, OpenError> {
    let mut settings = Settings::default();
    let mut over = BackendSpec { kind: "sim".to_owned(), options: Vec::new() };
    for (name, value) in options {
        let refuse = |expected: String| OpenError::Option {
            kind: "chaos",
            option: name.clone(),
            value: value.clone(),
            expected,
        };
        if name == "over" {
            over.kind.clone_from(value);
        } else if Settings::NAMES.contains(&name.as_str()) {
            settings.set(name, value).map_err(|error| match error {
                FaultError::Value { expected, .. } => refuse(expected.to_owned()),
                kind @ FaultError::Kind(_) => refuse(kind.to_string()),
            })?;
        } else {
            over.options.push((name.clone(), value.clone()));
        }
    }
    let device = super::open_plain(&over, epoch)?;
    Ok(Arc::new(Chaos::new(device, settings).named("chaos")))
}

/// A device that can be made to go wrong.
pub struct Chaos {
    device: Arc<dyn Device>,
    faults: Arc<Faults>,
    name: Option<&'static str>,
    pace: Pace,
}

impl Chaos {
    pub fn new(device: Arc<dyn Device>, settings: Settings) -> Chaos {
        Chaos { device, faults: Arc::new(Faults::new(settings)), name: None, pace: spend }
    }

    /// With a name of its own; else it has the device's.
    pub fn named(self, name: &'static str) -> Chaos {
        Chaos { name: Some(name), ..self }
    }

    /// With another way to let the time of delays pass.
    pub fn with_pace(self, pace: Pace) -> Chaos {
        Chaos { pace, ..self }
    }
}

impl Device for Chaos {
    fn capabilities(&self) -> BackendCaps {
        let caps = self.device.capabilities();
        BackendCaps { name: self.name.unwrap_or(caps.name), ..caps }
    }

    fn channel(&self) -> Box<dyn Backend> {
        Box::new(Channel {
            inner: self.device.channel(),
            device: Arc::clone(&self.device),
            faults: Arc::clone(&self.faults),
            life: self.faults.life(),
            pace: self.pace,
        })
    }

    fn fence(&self) -> Fence {
        self.device.fence()
    }

    /// What hangs is abandoned, and the hang is over.
    fn restart(&self) -> Result<(), FlushError> {
        self.faults.restarted();
        self.device.restart()
    }

    fn reset(&self) -> bool {
        self.device.reset()
    }

    fn connect(&self, port: &PortInfo, mtu: usize, wire: Option<Box<dyn TxQueue>>, hook: Option<Arc<Hook>>) {
        self.device.connect(port, mtu, wire, hook);
    }

    fn set_mtu(&self, port: PortNo, mtu: usize) -> bool {
        self.device.set_mtu(port, mtu)
    }

    fn disconnect(&self, port: PortNo) {
        self.device.disconnect(port);
    }

    fn wrap_rx(&self, port: &PortInfo, queue: Box<dyn RxQueue>) -> Box<dyn RxQueue> {
        self.device.wrap_rx(port, queue)
    }

    fn ring(&self, ring: u64) -> u64 {
        self.device.ring(ring)
    }

    fn grace(&self) -> Option<Grace> {
        self.device.grace()
    }

    fn port_counts(&self, port: PortNo) -> Option<PortCounts> {
        self.device.port_counts(port)
    }

    fn forgotten(&self) -> Option<u64> {
        self.device.forgotten()
    }

    fn marks(&self) -> Option<Vec<Mark>> {
        self.device.marks()
    }

    fn faults(&self) -> Option<&Faults> {
        Some(&self.faults)
    }
}

/// A worker's end of a device that goes wrong.
struct Channel {
    inner: Box<dyn Backend>,
    device: Arc<dyn Device>,
    faults: Arc<Faults>,
    /// The life of the device that it belongs to.
    life: u64,
    pace: Pace,
}

/// What is said of an operation that was made to fail.
const ON_PURPOSE: &str = "it was made to fail";

impl Channel {
    /// What is in store for the operation that begins. The error is what became of one that hung until a restart.
    fn begin(&self) -> Result<Fate, String> {
        let fate = self.faults.meet(self.life).map_err(|abandoned| abandoned.to_string())?;
        if !fate.delay.is_zero() {
            (self.pace)(fate.delay);
        }
        // A channel of an earlier life may have been delayed until now. It has no power.
        if fate.reset && self.faults.life() == self.life {
            self.device.reset();
        }
        Ok(fate)
    }
}

impl Backend for Channel {
    fn put(&mut self, flow: Install<'_>) -> Result<(Handle, Done), PutError> {
        match self.begin().map_err(PutError::Device)? {
            // A put that fails leaves no rule.
            Fate { fail: Some(_), .. } => Err(PutError::Device(ON_PURPOSE.to_owned())),
            Fate { full: true, .. } => Err(PutError::NoRoom),
            _ => self.inner.put(flow),
        }
    }

    fn replace(&mut self, handle: Handle, flow: Install<'_>) -> Result<(Done, FlowStats), PutError> {
        let fate = self.begin().map_err(PutError::Device)?;
        if fate.fail.is_some() {
            return Err(PutError::Device(ON_PURPOSE.to_owned()));
        }
        let (done, truth) = self.inner.replace(handle, flow)?;
        Ok((done, fate.lie.map_or(truth, |mut dice| lie(truth, &mut dice))))
    }

    fn delete(&mut self, handle: Handle) -> Result<FlowStats, DeleteError> {
        let fate = self.begin().map_err(DeleteError)?;
        match fate.fail {
            Some(when) => {
                if when == Failure::After {
                    // Not deleted: its counts are lost, and the device shall know it. What it says is not passed on either.
                    drop(self.inner.flush(&[handle]));
                }
                Err(DeleteError(ON_PURPOSE.to_owned()))
            }
            None => {
                let truth = self.inner.delete(handle)?;
                Ok(fate.lie.map_or(truth, |mut dice| lie(truth, &mut dice)))
            }
        }
    }

    fn stats(&mut self, handles: &[Handle], into: &mut Vec<FlowStats>) -> Result<(), StatsError> {
        let fate = self.begin().map_err(StatsError)?;
        if fate.fail.is_some() {
            return Err(StatsError(ON_PURPOSE.to_owned()));
        }
        let before = into.len();
        self.inner.stats(handles, into)?;
        if let Some(mut dice) = fate.lie {
            into[before..].iter_mut().for_each(|truth| *truth = lie(*truth, &mut dice));
        }
        Ok(())
    }

    fn generation(&mut self) -> Generation {
        // Whoever was abandoned gets the answer, which changes nothing.
        let _ = self.faults.hang(self.life);
        self.inner.generation()
    }

    fn flush(&mut self, handles: &[Handle]) -> Result<(), FlushError> {
        let fail = self.begin().map_err(FlushError)?.fail;
        match fail {
            Some(Failure::Before) => {}
            // Some are left.
            Some(Failure::After) => drop(self.inner.flush(&handles[..handles.len() / 2])),
            None => return self.inner.flush(handles),
        }
        Err(FlushError(ON_PURPOSE.to_owned()))
    }
}

/// Counts that are too high, too low, none (so that they go back), or the highest there are.
fn lie(truth: FlowStats, dice: &mut Dice) -> FlowStats {
    let some = dice.draw() >> 32;
    match some % 4 {
        0 => {
            let (packets, bytes) = (truth.packets.saturating_add(some), truth.bytes.saturating_add(some * 60));
            FlowStats { packets, bytes, ..truth }
        }
        1 => FlowStats { packets: truth.packets / 2, bytes: truth.bytes / 3, ..truth },
        2 => FlowStats::default(),
        _ => FlowStats { packets: u64::MAX, bytes: u64::MAX, used_ns: u64::MAX },
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
