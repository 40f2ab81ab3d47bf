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
use std::time::{Duration, Instant};

use super::{
    Backend, BackendCaps, DeleteError, Fence, FlushError, Generation, Handle, Install, OpenError, Opened, PutError,
    StatsError,
};
use crate::flow::Mask;
use crate::offload::state::{FlowStats, Level};

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

/// A NIC and the worker's end of it.
pub fn open(options: Options) -> Opened {
    let nic = Nic::new();
    Opened { backend: Box::new(Device::new(Arc::clone(&nic), options, Box::new(spend))), front: nic }
}

/// How time passes in a device: called with the time that an operation takes.
pub type Pace = Box<dyn FnMut(Duration) + Send>;

/// The worker's end of a simulated NIC.
pub struct Device {
    nic: Arc<Nic>,
    options: Options,
    pace: Pace,
    next: u64,
}

impl Device {
    pub fn new(nic: Arc<Nic>, options: Options, pace: Pace) -> Device {
        Device { nic, options, pace, next: 1 }
    }

    fn operate(&mut self) {
        if !self.options.operation.is_zero() {
            (self.pace)(self.options.operation);
        }
    }
}

impl Backend for Device {
    fn capabilities(&self) -> BackendCaps {
        BackendCaps {
            name: "sim",
            fields: Mask::EXACT,
            level: Level::Mark,
            capacity: Some(self.options.capacity),
            mark_bits: self.options.mark_bits,
            replace_in_place: self.options.replace,
        }
    }

    fn put(&mut self, flow: Install<'_>) -> Result<(Handle, Level), PutError> {
        self.operate();
        let handle = Handle(self.next);
        self.next += 1;
        let mut table = self.nic.change();
        if table.len() >= self.options.capacity {
            return Err(PutError::NoRoom);
        }
        if !table.insert(handle, flow.matching, flow.mark) {
            return Err(PutError::Device("a rule with the same match is there already".to_owned()));
        }
        Ok((handle, Level::Mark))
    }

    fn replace(&mut self, handle: Handle, flow: Install<'_>) -> Result<Level, PutError> {
        self.operate();
        if self.nic.change().set_mark(handle, flow.mark) {
            Ok(Level::Mark)
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

    fn flush(&mut self) -> Result<(), FlushError> {
        self.operate();
        self.nic.change().clear();
        Ok(())
    }

    fn fence(&self) -> Fence {
        self.nic.fence()
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
            contract::check(|| Box::new(Device::new(Nic::new(), options.clone(), Box::new(spend))));
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
        assert!(matches!(open(&"asic".parse().unwrap()), Err(OpenError::Kind(_))));
    }

    #[test]
    fn an_operation_takes_the_time_of_its_preset() {
        let spent = Arc::new(std::sync::Mutex::new(Duration::ZERO));
        let pace = {
            let spent = Arc::clone(&spent);
            Box::new(move |time| *spent.lock().unwrap() += time)
        };
        let options = Options { operation: Duration::from_micros(200), ..Options::default() };
        let mut device = Device::new(Nic::new(), options, pace);
        for i in 1..=5 {
            contract::put(&mut device, i).unwrap();
        }
        assert_eq!(*spent.lock().unwrap(), Duration::from_millis(1));
    }
}
