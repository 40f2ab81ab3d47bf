//! [`Nic`]: the packet side of the simulated NIC.
//!
//! # Thread-safety
//! Pollers look at the table under a read lock that they only ever *try* to take, a bounded number of times: while the
//! worker changes the table, their batch passes unmarked and is counted as busy. A packet never waits.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError, Weak};
use std::time::Instant;

use super::parse;
use super::table::Table;
use crate::flow::PortNo;
use crate::offload::backend::{Fence, PortCounts};
use crate::packet::{Packet, Pool};
use crate::port::{PortInfo, RxQueue};

/// How often a batch tries to look at the table before it passes unmarked: about a microsecond in all.
const TRIES: u32 = 64;

/// A simulated NIC: a table of rules, and the queues that packets pass through it by.
pub struct Nic {
    table: RwLock<Table>,
    /// The counts of each port, kept by its receive queues: they begin and end with them.
    ports: Mutex<BTreeMap<PortNo, Weak<Counters>>>,
    fence: Fence,
    resets: AtomicU64,
    epoch: Instant,
    me: Weak<Nic>,
}

/// One writer a receive queue, so counts are added.
#[derive(Default)]
struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    busy: AtomicU64,
}

impl Nic {
    /// `epoch`: what the nanoseconds of its counts begin at.
    pub fn new(epoch: Instant) -> Arc<Nic> {
        Arc::new_cyclic(|me| Nic {
            table: RwLock::default(),
            ports: Mutex::default(),
            fence: Fence::default(),
            resets: AtomicU64::new(0),
            epoch,
            me: Weak::clone(me),
        })
    }

    /// Rules in the table.
    pub fn rules(&self) -> usize {
        self.look().len()
    }

    /// Makes the NIC wrong: the two oldest rules exchange their marks. For tests that show that the witness is heard.
    /// `false` with fewer than two rules.
    pub fn corrupt(&self) -> bool {
        self.change().swap_two_marks()
    }

    /// Makes the NIC forget every rule by itself, as a reset does.
    pub fn reset(&self) {
        let mut table = self.change();
        table.clear();
        self.resets.fetch_add(1, Ordering::Release);
    }

    /// The table, for the worker: packets pass unmarked while it is held.
    pub(super) fn change(&self) -> RwLockWriteGuard<'_, Table> {
        // Whoever panicked left a table that is at worst missing a rule.
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn look(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn resets(&self) -> u64 {
        self.resets.load(Ordering::Acquire)
    }

    pub(super) fn fence(&self) -> Fence {
        self.fence.clone()
    }

    /// The counts that the open queues of `port` share.
    fn counters(&self, port: PortNo) -> Arc<Counters> {
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(counters) = ports.get(&port).and_then(Weak::upgrade) {
            return counters;
        }
        ports.retain(|_, counters| counters.strong_count() > 0);
        let counters = Arc::default();
        ports.insert(port, Arc::downgrade(&counters));
        counters
    }

    pub fn wrap_rx(&self, port: &PortInfo, queue: Box<dyn RxQueue>) -> Box<dyn RxQueue> {
        // The queue keeps the NIC, and with it the table, for as long as it is polled.
        let Some(nic) = self.me.upgrade() else { return queue };
        Box::new(Wrapped { queue, counters: self.counters(port.number), nic, scratch: Vec::new() })
    }

    pub fn port_counts(&self, port: PortNo) -> Option<PortCounts> {
        let ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        let counters = ports.get(&port)?.upgrade()?;
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Some(PortCounts {
            hits: read(&counters.hits),
            misses: read(&counters.misses),
            busy: read(&counters.busy),
            ..PortCounts::default()
        })
    }

    fn try_look(&self) -> Option<RwLockReadGuard<'_, Table>> {
        for _ in 0..TRIES {
            match self.table.try_read() {
                Ok(table) => return Some(table),
                Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) => std::hint::spin_loop(),
            }
        }
        None
    }
}

/// A receive queue behind the NIC.
struct Wrapped {
    queue: Box<dyn RxQueue>,
    nic: Arc<Nic>,
    counters: Arc<Counters>,
    scratch: Vec<u128>,
}

impl RxQueue for Wrapped {
    fn receive(&mut self, now: Instant, pool: &mut Pool, into: &mut Vec<Packet>) -> io::Result<usize> {
        let taken = self.queue.receive(now, pool, into)?;
        if into.is_empty() {
            return Ok(taken);
        }
        if self.nic.fence.is_raised() {
            into.iter_mut().for_each(|packet| packet.meta.mark = None);
            return Ok(taken);
        }
        let all = into.len() as u64;
        let Some(table) = self.nic.try_look() else {
            self.counters.busy.fetch_add(all, Ordering::Relaxed);
            return Ok(taken);
        };
        let now_ns = now.saturating_duration_since(self.nic.epoch).as_nanos() as u64;
        let mut hits = 0;
        if table.len() > 0 {
            for packet in into {
                let unsegmented = packet.meta.offload.segment.is_some();
                let seen = parse::columns(packet.bytes(), packet.meta.in_port, unsegmented);
                packet.meta.mark = table.hit(&seen, packet.len(), now_ns, &mut self.scratch);
                hits += u64::from(packet.meta.mark.is_some());
            }
        }
        drop(table);
        self.counters.hits.fetch_add(hits, Ordering::Relaxed);
        self.counters.misses.fetch_add(all - hits, Ordering::Relaxed);
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

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::flow::{Actions, Field, Key, Mask, Match};
    use crate::offload::backend::sim::{Options, Sim};
    use crate::offload::backend::{Backend, Device, Handle, Install};
    use crate::offload::mark::Mark;
    use crate::offload::state::{FlowStats, Level};
    use crate::port::Kind;

    /// Gives the same frames again and again.
    struct Wire(Vec<Vec<u8>>);

    impl RxQueue for Wire {
        fn receive(&mut self, _: Instant, _: &mut Pool, into: &mut Vec<Packet>) -> io::Result<usize> {
            into.extend(self.0.iter().map(|frame| Packet::from_bytes(frame)));
            into.iter_mut().for_each(|packet| packet.meta.in_port = PortNo(1));
            Ok(into.len())
        }

        fn readable(&self) -> Option<BorrowedFd<'_>> {
            None
        }
    }

    fn frame(last: u8) -> Vec<u8> {
        let mut frame = vec![2; 60];
        frame[5] = last;
        frame
    }

    fn to(last: u8) -> Match {
        let (mut key, mut mask) = (Key::ZERO, Mask::EMPTY);
        key.set(Field::EthDst, 0x0202_0202_0200_u64 | u64::from(last));
        mask.add_field(Field::EthDst);
        Match::new(&key, &mask)
    }

    fn put(device: &mut Box<dyn Backend>, matching: &Match, mark: u32) -> Handle {
        let (actions, mark) = (Actions::drop(), Mark::new(mark).unwrap());
        device.put(Install { matching, actions: &actions, mark, level: Level::Mark, in_port: None }).unwrap().0
    }

    fn info() -> PortInfo {
        PortInfo {
            name: "p1".to_owned(),
            number: PortNo(1),
            kind: Kind::Sim,
            ifindex: None,
            rx_queues: 1,
            tx_checksum: false,
            tx_segment: false,
            ring: 64,
        }
    }

    fn wired(frames: Vec<Vec<u8>>) -> (Arc<Nic>, Box<dyn Backend>, impl FnMut() -> Vec<Option<u32>>) {
        let nic = Nic::new(Instant::now());
        let device = Sim::new(Arc::clone(&nic), Options::default()).channel();
        let mut queue = nic.wrap_rx(&info(), Box::new(Wire(frames)));
        let receive = move || {
            let mut packets = Vec::new();
            queue.receive(Instant::now(), &mut Pool::new(), &mut packets).unwrap();
            packets.iter().map(|packet| packet.meta.mark.map(|mark| mark.0.get())).collect()
        };
        (nic, device, receive)
    }

    #[test]
    fn packets_that_a_rule_matches_carry_its_mark_and_are_counted() {
        let (nic, mut device, mut receive) = wired(vec![frame(1), frame(2), frame(1)]);
        assert_eq!(receive(), [None; 3]);
        let handle = put(&mut device, &to(1), 7);
        assert_eq!(receive(), [Some(7), None, Some(7)]);
        let mut counts = Vec::new();
        device.stats(&[handle], &mut counts).unwrap();
        assert_eq!((counts[0].packets, counts[0].bytes), (2, 120));
        assert_eq!(nic.port_counts(PortNo(1)), Some(PortCounts { hits: 2, misses: 4, ..PortCounts::default() }));
        assert_eq!(device.delete(handle).map(|counts| counts.packets), Ok(2));
        assert_eq!(device.delete(handle), Ok(FlowStats::default()));
        assert_eq!(receive(), [None; 3]);
    }

    #[test]
    fn a_port_that_is_added_again_counts_anew_whatever_the_worker_has_heard_of_it() {
        let (nic, _device, mut receive) = wired(vec![frame(1)]);
        receive();
        assert_eq!(nic.port_counts(PortNo(1)).map(|counts| counts.misses), Some(1));
        drop(receive);
        assert_eq!(nic.port_counts(PortNo(1)), None);
        let mut again = nic.wrap_rx(&info(), Box::new(Wire(vec![frame(1)])));
        again.receive(Instant::now(), &mut Pool::new(), &mut Vec::new()).unwrap();
        assert_eq!(nic.port_counts(PortNo(1)).map(|counts| counts.misses), Some(1));
    }

    #[test]
    fn a_packet_never_waits_for_a_change_of_the_table() {
        let (nic, mut device, mut receive) = wired(vec![frame(1)]);
        put(&mut device, &to(1), 7);
        let changing = nic.change();
        assert_eq!(receive(), [None]);
        drop(changing);
        assert_eq!(receive(), [Some(7)]);
        assert_eq!(nic.port_counts(PortNo(1)), Some(PortCounts { hits: 1, busy: 1, ..PortCounts::default() }));
    }

    #[test]
    fn behind_a_raised_fence_no_packet_carries_a_mark() {
        let (nic, mut device, mut receive) = wired(vec![frame(1)]);
        put(&mut device, &to(1), 7);
        nic.fence().raise();
        assert_eq!(receive(), [None]);
    }

    #[test]
    fn a_corrupted_nic_stamps_the_wrong_marks_and_a_reset_one_none() {
        let (nic, mut device, mut receive) = wired(vec![frame(1), frame(2)]);
        put(&mut device, &to(1), 7);
        assert!(!nic.corrupt());
        put(&mut device, &to(2), 8);
        assert!(nic.corrupt());
        assert_eq!(receive(), [Some(8), Some(7)]);
        let before = device.generation();
        nic.reset();
        assert_eq!(receive(), [None, None]);
        assert_ne!(device.generation(), before);
    }
}
