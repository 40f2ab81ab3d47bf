//! [`Shared`]: the program's maps and their memory, as the device sees them.

use std::io;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use super::layout::{self, Words};
use crate::offload::backend::PortCounts;
use crate::offload::state::FlowStats;
use crate::sys::bpf::{Map, Memory};
use crate::xdp::object::{LoadError, Object};

/// The longest that a processor is believed to be in the program. It takes a microsecond.
const LONGEST_TURN: Duration = Duration::from_millis(100);

/// The loaded program with its maps.
///
/// # Thread-safety
/// Any thread may read. What writes says whose it is.
pub struct Shared {
    pub object: Object,
    pub rules: Map,
    pub ports: Map,
    pub sockets: Map,
    pub wires: Map,
    counts: Memory,
    cpus: Memory,
    control: Memory,
    tables: Memory,
    processors: usize,
    /// Places for counts: one more than rules, so that one that is replaced counts apart.
    slots: usize,
    /// When the device's time begins, in nanoseconds of the kernel's monotonic clock.
    epoch_ns: u64,
}

impl Shared {
    /// Loads the program. `epoch`: what counts' nanoseconds are told from.
    pub fn load(rules: usize, epoch: Instant) -> Result<Shared, LoadError> {
        let processors = processors();
        let slots = rules + 1;
        let object = Object::offload(slots as u32, processors as u32)?;
        let io = |error: io::Error| LoadError::Other(format!("its maps: {error}"));
        let map = |name: &str, len: usize| {
            let map = object.map(name)?;
            match map.value_len() == len {
                true => Ok(map),
                false => Err(io::Error::other(format!("{name} has values of {} bytes, not {len}", map.value_len()))),
            }
        };
        let memory = |name: &str, len: usize| map(name, len)?.memory();
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let now_ns = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64;
        Ok(Shared {
            rules: map("rules", layout::RULE).map_err(io)?,
            ports: map("ports", layout::PORT).map_err(io)?,
            sockets: map("sockets", 4).map_err(io)?,
            wires: map("wires", layout::WIRE).map_err(io)?,
            counts: memory("counts", layout::COUNT).map_err(io)?,
            cpus: memory("cpus", layout::CPU).map_err(io)?,
            control: memory("control", layout::CONTROL).map_err(io)?,
            tables: memory("tables", layout::TABLE).map_err(io)?,
            object,
            processors,
            slots,
            epoch_ns: now_ns.saturating_sub(epoch.elapsed().as_nanos() as u64),
        })
    }

    /// From when this returns no packet is marked or kept, or they are again.
    pub fn set_fenced(&self, fenced: bool) {
        self.control.u32(layout::FENCED).store(fenced.into(), Ordering::SeqCst);
        // Should a processor be stuck in the program, nobody waits for it here.
        let _ = self.settle();
    }

    /// Waits until every processor that is in the program has left it. What was changed before is what packets find that come after, and
    /// what they had found before is used by none of them.
    ///
    /// # Errors
    /// One does not leave it.
    pub fn settle(&self) -> io::Result<()> {
        fence(Ordering::SeqCst);
        for processor in 0..self.processors {
            let turn = self.cpus.u64(processor * layout::CPU + layout::TURN);
            let begun = turn.load(Ordering::Acquire);
            if begun.is_multiple_of(2) {
                continue;
            }
            let since = Instant::now();
            while turn.load(Ordering::Acquire) == begun {
                if since.elapsed() > LONGEST_TURN {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "a processor does not leave the XDP program"));
                }
                std::thread::yield_now();
            }
        }
        Ok(())
    }

    /// Makes a processor that does not exist be in the program, or leave it.
    #[cfg(test)]
    pub fn pretend_to_be_busy(&self, busy: bool) {
        let last = (self.processors - 1) * layout::CPU + layout::TURN;
        self.cpus.u64(last).fetch_add(1, Ordering::SeqCst);
        assert_eq!(self.cpus.u64(last).load(Ordering::SeqCst) % 2 == 1, busy);
    }

    /// What a slot has counted.
    pub fn counted(&self, slot: u32) -> FlowStats {
        let mut sum = FlowStats::default();
        for processor in 0..self.processors {
            let at = (processor * self.slots + slot as usize) * layout::COUNT;
            let read = |place: usize| self.counts.u64(at + place).load(Ordering::Relaxed);
            let packets = read(0);
            if packets > 0 {
                sum.packets += packets;
                sum.bytes += read(8);
                sum.used_ns = sum.used_ns.max(read(16).saturating_sub(self.epoch_ns).max(1));
            }
        }
        sum
    }

    /// Makes a slot count from zero. No rule has it, and none had since the last [`Shared::settle`].
    pub fn clear(&self, slot: u32) {
        for processor in 0..self.processors {
            let at = (processor * self.slots + slot as usize) * layout::COUNT;
            [0, 8, 16].into_iter().for_each(|place| self.counts.u64(at + place).store(0, Ordering::Relaxed));
        }
    }

    /// How often the mask of this slot was hit.
    pub fn mask_hits(&self, slot: usize) -> u64 {
        let place = |processor: usize| processor * layout::CPU + layout::MASK_HITS + slot * 8;
        (0..self.processors).map(|processor| self.cpus.u64(place(processor)).load(Ordering::Relaxed)).sum()
    }

    /// What became of the packets of the port of this slot, and those that had no socket to go to.
    pub fn port_counts(&self, slot: usize) -> (PortCounts, u64) {
        let sum = |place: usize| {
            let at = |processor: usize| {
                processor * layout::CPU + layout::PORT_COUNTS_AT + slot * layout::PORT_COUNTS + place * 8
            };
            (0..self.processors).map(|processor| self.cpus.u64(at(processor)).load(Ordering::Relaxed)).sum()
        };
        let counts = PortCounts {
            hits: sum(0),
            full: sum(1),
            full_bytes: sum(2),
            aborted: sum(3),
            misses: sum(4),
            sent: sum(5),
            busy: 0,
            lost: 0,
        };
        (counts, sum(6))
    }

    /// The counts of the port of this slot begin at zero. No port has it.
    pub fn clear_port(&self, slot: usize) {
        for processor in 0..self.processors {
            let at = processor * layout::CPU + layout::PORT_COUNTS_AT + slot * layout::PORT_COUNTS;
            (0..8).for_each(|place| self.cpus.u64(at + place * 8).store(0, Ordering::Relaxed));
        }
    }

    /// Makes these the masks, tried in this order: each with its number, its slot, and itself. One thread at a time, and at most
    /// [`layout::MASKS`] of them.
    ///
    /// # Errors
    /// As of [`Shared::settle`]; then nothing has changed.
    pub fn publish(&self, masks: &[(u32, usize, Words)]) -> io::Result<()> {
        let current = self.control.u32(layout::CURRENT);
        let next = (current.load(Ordering::Relaxed) ^ 1) & 1;
        // Whoever began when it was current has gone.
        self.settle()?;
        let table = next as usize * layout::TABLE.next_multiple_of(8);
        for (i, (number, slot, words)) in masks.iter().enumerate() {
            self.tables.u32(table + layout::TABLE_NUMBERS + 4 * i).store(*number, Ordering::Relaxed);
            self.tables.u32(table + layout::TABLE_SLOTS + 4 * i).store(*slot as u32, Ordering::Relaxed);
            for (k, word) in words.iter().enumerate() {
                let at = table + layout::TABLE_MASKS + i * layout::KEY + k * 8;
                self.tables.u64(at).store(*word, Ordering::Relaxed);
            }
        }
        self.tables.u32(table + layout::TABLE_COUNT).store(masks.len() as u32, Ordering::Relaxed);
        current.store(next, Ordering::Release);
        Ok(())
    }
}

/// How many processors there may ever be.
fn processors() -> usize {
    let possible = std::fs::read_to_string("/sys/devices/system/cpu/possible").unwrap_or_default();
    // `0-7`, or with gaps `0-3,8-11`: the last number counts.
    let last = possible.trim().rsplit(['-', ',']).next().and_then(|last| last.parse::<usize>().ok());
    last.map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), |last| last + 1)
}
