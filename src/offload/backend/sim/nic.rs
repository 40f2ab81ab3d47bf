//! [`Nic`]: what the simulated NIC's channels and receive queues share: its rules, its wires, its counts.
//!
//! # Thread-safety
//! Pollers look at rules and wires under a read lock that they only ever *try* to take, a bounded number of times: while
//! the worker changes the table, their batch passes unmarked and is counted as busy. A packet never waits for a change.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError, Weak};
use std::time::Instant;

use super::egress::Wires;
use super::queue::Queue;
use super::table::Table;
use crate::flow::PortNo;
use crate::offload::backend::{Fence, PortCounts};
use crate::port::{PortInfo, RxQueue, TxQueue};

/// How often a batch tries to look at the table before it passes unmarked: about a microsecond in all.
const TRIES: u32 = 64;

/// A simulated NIC: a table of rules, the queues that packets pass through it by, and the wires that they leave by.
pub struct Nic {
    state: RwLock<State>,
    /// The counts of each port, kept by its receive queues: they begin and end with them.
    ports: Mutex<BTreeMap<PortNo, Weak<Counters>>>,
    fence: Fence,
    resets: AtomicU64,
    epoch: Instant,
    me: Weak<Nic>,
}

/// What packets are compared with and where they leave.
#[derive(Default)]
pub(super) struct State {
    pub(super) table: Table,
    pub(super) wires: Wires,
    /// Restarts so far: channels of earlier ones are powerless.
    pub(super) life: u64,
}

/// What became of a port's packets. One writer a receive queue, so counts are added.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) hits: AtomicU64,
    pub(super) full: AtomicU64,
    pub(super) full_bytes: AtomicU64,
    pub(super) aborted: AtomicU64,
    pub(super) misses: AtomicU64,
    pub(super) busy: AtomicU64,
}

impl Nic {
    /// `epoch`: what the nanoseconds of its counts begin at.
    pub fn new(epoch: Instant) -> Arc<Nic> {
        Arc::new_cyclic(|me| Nic {
            state: RwLock::default(),
            ports: Mutex::default(),
            fence: Fence::default(),
            resets: AtomicU64::new(0),
            epoch,
            me: Weak::clone(me),
        })
    }

    /// Rules in the table.
    pub fn rules(&self) -> usize {
        self.look().table.len()
    }

    /// Makes the NIC wrong: the two oldest rules exchange their marks. For tests that show that the witness is heard.
    /// `false` with fewer than two rules.
    pub fn corrupt(&self) -> bool {
        self.change().table.swap_two_marks()
    }

    /// Makes the NIC forget every rule by itself, as a reset does.
    pub fn reset(&self) {
        let mut state = self.change();
        state.table.clear();
        self.resets.fetch_add(1, Ordering::Release);
    }

    /// Forgets every rule because it was told to, and leaves no power to the channels there are.
    pub fn restart(&self) {
        let mut state = self.change();
        state.table.clear();
        state.life += 1;
    }

    /// A port, and the wire to it if there is one, in place of the one there was.
    pub fn connect(&self, port: &PortInfo, mtu: usize, wire: Option<Box<dyn TxQueue>>) {
        let before = self.change().wires.unplug(port.number);
        if let Some(before) = before {
            before.cut();
        }
        if let Some(wire) = wire {
            self.change().wires.connect(port, mtu, wire);
        }
    }

    /// Cuts the wire to `port`: nothing is sent there when this returns.
    pub fn disconnect(&self, port: PortNo) {
        let wire = self.change().wires.disconnect(port);
        if let Some(wire) = wire {
            wire.cut();
        }
    }

    pub fn set_mtu(&self, port: PortNo, mtu: usize) {
        if let Some(wire) = self.look().wires.get(port) {
            wire.set_mtu(mtu);
        }
    }

    /// `queue` as seen behind the NIC, without a ring of the NIC's own.
    pub fn wrap_rx(&self, port: &PortInfo, queue: Box<dyn RxQueue>) -> Box<dyn RxQueue> {
        self.wrap(port, queue, 0)
    }

    /// `queue` as seen behind the NIC, and behind a ring in which up to `ring` frames wait.
    pub fn wrap(&self, port: &PortInfo, queue: Box<dyn RxQueue>, ring: usize) -> Box<dyn RxQueue> {
        // The queue keeps the NIC, and with it the table, for as long as it is polled.
        let Some(nic) = self.me.upgrade() else { return queue };
        Box::new(Queue::new(queue, nic, self.counters(port.number), ring))
    }

    pub fn port_counts(&self, port: PortNo) -> Option<PortCounts> {
        let counters = {
            let ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
            ports.get(&port)?.upgrade()?
        };
        let (sent, lost) = self.look().wires.counts(port);
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Some(PortCounts {
            hits: read(&counters.hits),
            full: read(&counters.full),
            full_bytes: read(&counters.full_bytes),
            aborted: read(&counters.aborted),
            misses: read(&counters.misses),
            busy: read(&counters.busy),
            sent,
            lost,
        })
    }

    /// The state, for whoever changes it: packets pass unmarked while it is held.
    pub(super) fn change(&self) -> RwLockWriteGuard<'_, State> {
        // Whoever panicked left a table that is at worst missing a rule.
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn look(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, for packets: `None` where they would have to wait.
    #[inline]
    pub(super) fn try_look(&self) -> Option<RwLockReadGuard<'_, State>> {
        for _ in 0..TRIES {
            match self.state.try_read() {
                Ok(state) => return Some(state),
                Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) => std::hint::spin_loop(),
            }
        }
        None
    }

    /// `now` as the nanoseconds of counts.
    pub(super) fn nanoseconds(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.epoch).as_nanos() as u64
    }

    pub(super) fn resets(&self) -> u64 {
        self.resets.load(Ordering::Acquire)
    }

    pub(super) fn fence(&self) -> &Fence {
        &self.fence
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
}
