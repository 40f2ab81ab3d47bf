//! A simulated NIC that truly matches packets: the witness.
//!
//! It shares neither code nor state with the datapath's lookup. It walks the headers its own way (`parse`), keeps a
//! wildcarded table of its own (`table`), and stamps what it finds on the packets that pass (`nic`). If the
//! datapath's idea of a flow and the NIC's differ, packets come out wrong, and tests see it.
//!
//! Operations take as long as a preset says; the time is spent by the worker, outside every lock.

mod nic;
mod parse;
mod table;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{
    ActionSet, Backend, BackendCaps, DeleteError, Device, Done, Fence, FlushError, Generation, Handle, Install,
    OpenError, PortCounts, PutError, StatsError,
};
use crate::flow::{Mask, PortNo};
use crate::offload::state::{FlowStats, Level};
use crate::port::{PortInfo, RxQueue};

pub use nic::Nic;

/// What can be chosen of a simulated NIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Time of one operation on the table.
    pub operation: Duration,
    /// Rules that fit.
    pub capacity: usize,
    /// Width of the marks, 8 to 32.
    pub mark_bits: u8,
    /// Whether a rule can be changed in place.
    pub replace: bool,
}

/// Insertion rates, in rules per second, as published for kinds of NICs: rules set by firmware, by the kernel's TC
/// flower, by software steering and by hardware steering.
const PRESETS: [(&str, Option<u32>); 5] =
    [("fw", Some(5_000)), ("tc", Some(33_000)), ("sws", Some(300_000)), ("hws", Some(4_500_000)), ("instant", None)];

impl Default for Options {
    /// As fast as the machine, with a million rules and 24-bit marks, as ConnectX NICs have.
    fn default() -> Self {
        Options { operation: Duration::ZERO, capacity: 1 << 20, mark_bits: 24, replace: true }
    }
}

impl Options {
    /// Reads `option=value` pairs.
    ///
    /// # Errors
    /// Names the option that is not understood, and what would be.
    pub fn parse(pairs: &[(String, String)]) -> Result<Options, OpenError> {
        let mut options = Options::default();
        for (option, value) in pairs {
            let refuse = |expected: &str| OpenError::Option {
                kind: "sim",
                option: option.clone(),
                value: value.clone(),
                expected: expected.to_owned(),
            };
            match option.as_str() {
                "preset" => {
                    let preset = PRESETS.iter().find(|(name, _)| name == value);
                    let (_, rate) = preset.ok_or_else(|| refuse("expected fw, tc, sws, hws or instant"))?;
                    options.operation = rate.map_or(Duration::ZERO, |rate| Duration::from_secs(1) / rate);
                }
                "capacity" => {
                    let capacity = value.parse().ok().filter(|n| (1..=16_777_216).contains(n));
                    options.capacity = capacity.ok_or_else(|| refuse("expected a number of rules, 1 to 16777216"))?;
                }
                "mark-bits" => {
                    let bits = value.parse().ok().filter(|n| (8..=32).contains(n));
                    options.mark_bits = bits.ok_or_else(|| refuse("expected 8 to 32"))?;
                }
                "replace" => {
                    options.replace = value.parse().map_err(|_| refuse("expected true or false"))?;
                }
                "level" => match value.as_str() {
                    "mark" => {}
                    "full" => return Err(refuse("not available in this version; expected mark")),
                    _ => return Err(refuse("expected mark")),
                },
                _ => return Err(refuse("no such option; known: preset, capacity, mark-bits, replace, level")),
            }
        }
        Ok(options)
    }
}

/// A simulated NIC.
pub fn open(options: Options, epoch: Instant) -> Arc<dyn Device> {
    Arc::new(Sim::new(Nic::new(epoch), options))
}

/// How time passes in a device: called with the time that an operation takes.
pub type Pace = fn(Duration);

/// A simulated NIC as the daemon holds it.
pub struct Sim {
    nic: Arc<Nic>,
    options: Arc<Options>,
    next: Arc<AtomicU64>,
    pace: Pace,
}

impl Sim {
    pub fn new(nic: Arc<Nic>, options: Options) -> Sim {
        Sim { nic, options: Arc::new(options), next: Arc::new(AtomicU64::new(1)), pace: spend }
    }
}

impl Device for Sim {
    fn capabilities(&self) -> BackendCaps {
        BackendCaps {
            name: "sim",
            fields: Mask::EXACT,
            level: Level::Mark,
            actions: ActionSet::NONE,
            capacity: Some(self.options.capacity),
            mark_bits: self.options.mark_bits,
            replace_in_place: self.options.replace,
        }
    }

    fn channel(&self) -> Box<dyn Backend> {
        Box::new(Channel {
            nic: Arc::clone(&self.nic),
            options: Arc::clone(&self.options),
            next: Arc::clone(&self.next),
            pace: self.pace,
        })
    }

    fn fence(&self) -> Fence {
        self.nic.fence()
    }

    fn restart(&self) -> Result<(), FlushError> {
        self.nic.change().clear();
        Ok(())
    }

    fn wrap_rx(&self, port: &PortInfo, queue: Box<dyn RxQueue>) -> Box<dyn RxQueue> {
        self.nic.wrap_rx(port, queue)
    }

    fn port_counts(&self, port: PortNo) -> Option<PortCounts> {
        self.nic.port_counts(port)
    }
}

/// A worker's end of a simulated NIC.
pub struct Channel {
    nic: Arc<Nic>,
    options: Arc<Options>,
    next: Arc<AtomicU64>,
    pace: Pace,
}

impl Channel {
    fn operate(&mut self) {
        if !self.options.operation.is_zero() {
            (self.pace)(self.options.operation);
        }
    }
}

impl Backend for Channel {
    fn put(&mut self, flow: Install<'_>) -> Result<(Handle, Done), PutError> {
        self.operate();
        let handle = Handle(self.next.fetch_add(1, Ordering::Relaxed));
        let mut table = self.nic.change();
        if table.len() >= self.options.capacity {
            return Err(PutError::NoRoom);
        }
        if !table.insert(handle, flow.matching, flow.mark) {
            return Err(PutError::Device("a rule with the same match is there already".to_owned()));
        }
        Ok((handle, Done::at(Level::Mark)))
    }

    fn replace(&mut self, handle: Handle, flow: Install<'_>) -> Result<Done, PutError> {
        self.operate();
        if self.nic.change().set_mark(handle, flow.mark) {
            Ok(Done::at(Level::Mark))
        } else {
            Err(PutError::Device("no such rule".to_owned()))
        }
    }

    fn delete(&mut self, handle: Handle) -> Result<FlowStats, DeleteError> {
        self.operate();
        // Packets are stamped under the same lock, so none is after this.
        Ok(self.nic.change().remove(handle).unwrap_or_default())
    }

    fn stats(&mut self, handles: &[Handle], into: &mut Vec<FlowStats>) -> Result<(), StatsError> {
        let table = self.nic.look();
        into.extend(handles.iter().map(|&handle| table.stats(handle).unwrap_or_default()));
        Ok(())
    }

    fn generation(&mut self) -> Generation {
        Generation(self.nic.resets())
    }

    fn flush(&mut self, handles: &[Handle]) -> Result<(), FlushError> {
        self.operate();
        let mut table = self.nic.change();
        for handle in handles {
            table.remove(*handle);
        }
        Ok(())
    }
}

/// Lets `time` pass: asleep where that is worth it, spinning where the system would oversleep.
fn spend(time: Duration) {
    const WORTH_SLEEPING: Duration = Duration::from_micros(50);
    if time >= WORTH_SLEEPING {
        std::thread::sleep(time);
        return;
    }
    let end = Instant::now() + time;
    while Instant::now() < end {
        std::hint::spin_loop();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::offload::backend::{BackendSpec, contract, open};

    #[test]
    fn the_simulated_nic_keeps_the_contract_of_backends() {
        for replace in [true, false] {
            let options = Options { capacity: contract::CAPACITY, replace, ..Options::default() };
            contract::check(|| Arc::new(Sim::new(Nic::new(Instant::now()), options.clone())));
        }
    }

    #[test]
    fn options_are_read_and_bad_ones_refused_by_name() {
        let parse = |text: &str| Options::parse(&text.parse::<BackendSpec>().unwrap().options);
        let options = parse("sim,preset=fw,capacity=10000,mark-bits=16,replace=false,level=mark").unwrap();
        let expected =
            Options { operation: Duration::from_micros(200), capacity: 10_000, mark_bits: 16, replace: false };
        assert_eq!(options, expected);
        for (text, wrong) in [
            ("sim,preset=fast", "preset=fast: expected fw, tc, sws, hws or instant"),
            ("sim,capacity=0", "capacity=0: expected"),
            ("sim,mark-bits=7", "mark-bits=7: expected 8 to 32"),
            ("sim,level=full", "level=full: not available"),
            ("sim,colour=red", "colour=red: no such option"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(wrong), "{error}");
        }
        assert!(
            "sim,preset".parse::<BackendSpec>().unwrap_err().to_string().contains("\"preset\" is not option=value")
        );
        assert!(matches!(open(&"asic".parse().unwrap(), Instant::now()), Err(OpenError::Kind(_))));
    }
}
