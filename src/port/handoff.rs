//! One transmit queue for all pollers, where a device has no more.
//!
//! One poller owns the device's queue and drains into it what the others leave in a bounded ring:
//!
//! ```text
//!  poller 0 ── HandoffTx ──► ┐                    ┌──► OwnerTx::pump ──► the device's TxQueue
//!  poller 2 ── HandoffTx ──► ┴─ ring of 1,024 ────┘        │            ▲
//!        ▲                                                 │            │
//!        └───────────── spent buffers ◄────────────────────┘   poller 1 ┴ OwnerTx::transmit
//! ```
//!
//! A queue's `pop` may spin for the moment in which another thread is between claiming a slot and filling it.
//!
//! Frames of one poller keep their order; between pollers there is none to keep, unless a receive queue goes from one to
//! another: then the owner pumps in between. Nobody waits: a full ring drops, and the drop
//! is counted by the poller that met it. Frames handed over are counted when the owner sends them, so that each is counted once.
//!
//! # Thread-safety
//! [`Shared`] is lock-free, for many producers and one consumer. [`HandoffTx`] and [`OwnerTx`] have one owner each.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crossbeam_queue::ArrayQueue;

use super::{Sent, TxQueue};
use crate::packet::pool::SMALL;
use crate::packet::{BATCH, Packet, Pool};

/// Frames that can wait for the owner.
pub const WAITING: usize = 1_024;

/// What the owner and the others meet at.
pub struct Shared {
    waiting: ArrayQueue<Packet>,
    /// The owner has closed the port: nobody will fetch what is left.
    closed: AtomicBool,
    /// Buffers on their way back to the pollers whose pools they came from, so that those need not allocate.
    spent: ArrayQueue<Packet>,
    /// Wakes the owner if it sleeps; called once for a list of packets.
    doorbell: Box<dyn Fn() + Send + Sync>,
}

/// The side of a poller that does not own the queue.
pub struct HandoffTx {
    shared: Arc<Shared>,
}

/// The side of the poller that owns the queue.
pub struct OwnerTx {
    shared: Arc<Shared>,
    device: Box<dyn TxQueue>,
    /// Empty between calls; kept for its memory.
    list: Vec<Packet>,
}

impl Shared {
    /// `doorbell` is called after packets were left; it must be cheap while the owner is awake.
    pub fn new(doorbell: impl Fn() + Send + Sync + 'static) -> Arc<Shared> {
        Arc::new(Shared {
            waiting: ArrayQueue::new(WAITING),
            closed: AtomicBool::new(false),
            spent: ArrayQueue::new(WAITING),
            doorbell: Box::new(doorbell),
        })
    }
}

impl HandoffTx {
    pub fn new(shared: Arc<Shared>) -> HandoffTx {
        HandoffTx { shared }
    }
}

impl TxQueue for HandoffTx {
    /// The answer counts only what was dropped because the ring is full or the port closed; the owner counts the rest.
    fn transmit(&mut self, _now: Instant, pool: &mut Pool, packets: &mut Vec<Packet>) -> Sent {
        let mut sent = Sent::default();
        if self.shared.closed.load(Ordering::Acquire) {
            sent.failed = packets.len() as u64;
            pool.give_all(packets);
            return sent;
        }
        let any = !packets.is_empty();
        for packet in packets.drain(..) {
            match self.shared.waiting.push(packet) {
                Ok(()) => {
                    if let Some(spent) = self.shared.spent.pop() {
                        pool.give(spent);
                    }
                }
                Err(packet) => {
                    sent.full += 1;
                    pool.give(packet);
                }
            }
        }
        if any {
            (self.shared.doorbell)();
        }
        sent
    }
}

impl OwnerTx {
    pub fn new(shared: Arc<Shared>, device: Box<dyn TxQueue>) -> OwnerTx {
        OwnerTx { shared, device, list: Vec::with_capacity(BATCH) }
    }

    /// Closes the port for all. Answers with the frames that the others had left and that are dropped, as failed; one that
    /// is just being left in this moment goes uncounted.
    pub fn close(&mut self, pool: &mut Pool) -> Sent {
        self.shared.closed.store(true, Ordering::Release);
        let mut sent = Sent::default();
        while let Some(packet) = self.shared.waiting.pop() {
            sent.failed += 1;
            pool.give(packet);
        }
        sent
    }

    /// Whether the others left anything since the last [`OwnerTx::pump`].
    pub fn has_waiting(&self) -> bool {
        !self.shared.waiting.is_empty()
    }

    /// Sends what the others left, at most what the ring holds: so all that they had left when it began. To be called in every
    /// round of the poller. One load when there is nothing.
    #[inline]
    pub fn pump(&mut self, now: Instant, pool: &mut Pool) -> Sent {
        let mut sent = Sent::default();
        if self.shared.waiting.is_empty() {
            return sent;
        }
        // Bounded, so that others who leave frames as fast as they are sent cannot keep the owner from its own queues.
        for _ in 0..WAITING / BATCH {
            self.list.extend(std::iter::from_fn(|| self.shared.waiting.pop()).take(BATCH));
            let small = self.list.iter().filter(|packet| packet.headroom() + packet.capacity() == SMALL).count();
            if self.list.is_empty() {
                break;
            }
            sent.add(self.device.transmit(now, pool, &mut self.list));
            for _ in 0..small {
                if let Err(packet) = self.shared.spent.push(pool.take()) {
                    pool.give(packet);
                    break;
                }
            }
        }
        sent
    }
}

impl TxQueue for OwnerTx {
    fn transmit(&mut self, now: Instant, pool: &mut Pool, packets: &mut Vec<Packet>) -> Sent {
        self.device.transmit(now, pool, packets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::mpsc;

    /// Remembers the first byte of each frame.
    struct Wire(mpsc::Sender<u8>);

    impl TxQueue for Wire {
        fn transmit(&mut self, _now: Instant, pool: &mut Pool, packets: &mut Vec<Packet>) -> Sent {
            let sent = Sent { packets: packets.len() as u64, ..Sent::default() };
            packets.iter().for_each(|p| self.0.send(p.bytes()[0]).unwrap());
            pool.give_all(packets);
            sent
        }
    }

    fn frame(pool: &mut Pool, first: u8) -> Packet {
        let mut packet = pool.take();
        packet.set_len(60);
        packet.bytes_mut()[0] = first;
        packet
    }

    #[test]
    fn frames_handed_over_leave_in_order_and_are_counted_once() {
        let (now, mut pool, rings) = (Instant::now(), Pool::new(), Arc::new(AtomicU64::new(0)));
        let (wire, out) = mpsc::channel();
        let counted = rings.clone();
        let shared = Shared::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        let mut other = HandoffTx::new(shared.clone());
        let mut owner = OwnerTx::new(shared, Box::new(Wire(wire)));

        assert_eq!(owner.pump(now, &mut pool), Sent::default());
        let mut packets: Vec<Packet> = (0..100).map(|i| frame(&mut pool, i)).collect();
        assert_eq!(other.transmit(now, &mut pool, &mut packets), Sent::default());
        assert!(packets.is_empty());
        assert_eq!(rings.load(Ordering::Relaxed), 1);
        assert_eq!(owner.pump(now, &mut pool).packets, 100);
        assert_eq!(out.try_iter().collect::<Vec<u8>>(), (0..100).collect::<Vec<u8>>());
    }

    #[test]
    fn a_full_ring_drops_and_says_so() {
        let (now, mut pool) = (Instant::now(), Pool::new());
        let (wire, out) = mpsc::channel();
        let shared = Shared::new(|| ());
        let mut other = HandoffTx::new(shared.clone());
        let mut owner = OwnerTx::new(shared, Box::new(Wire(wire)));
        let mut packets: Vec<Packet> = (0..WAITING + 5).map(|_| frame(&mut pool, 1)).collect();
        assert_eq!(other.transmit(now, &mut pool, &mut packets).full, 5);
        assert_eq!(owner.pump(now, &mut pool).packets, WAITING as u64);
        assert_eq!(out.try_iter().count(), WAITING);
    }

    #[test]
    fn frames_left_at_a_closed_port_are_counted_as_failed() {
        let (now, mut pool) = (Instant::now(), Pool::new());
        let (wire, out) = mpsc::channel();
        let shared = Shared::new(|| ());
        let mut other = HandoffTx::new(shared.clone());
        let mut owner = OwnerTx::new(shared, Box::new(Wire(wire)));
        let mut packets = vec![frame(&mut pool, 1), frame(&mut pool, 2)];
        other.transmit(now, &mut pool, &mut packets);
        assert_eq!(owner.close(&mut pool).failed, 2);
        packets.push(frame(&mut pool, 3));
        assert_eq!(other.transmit(now, &mut pool, &mut packets).failed, 1);
        assert!(packets.is_empty() && out.try_iter().count() == 0);
    }

    #[test]
    fn spent_buffers_come_back_to_the_poller_that_handed_them_over() {
        let (now, mut theirs, mut owners) = (Instant::now(), Pool::new(), Pool::new());
        let (wire, _out) = mpsc::channel();
        let shared = Shared::new(|| ());
        let mut other = HandoffTx::new(shared.clone());
        let mut owner = OwnerTx::new(shared, Box::new(Wire(wire)));
        let mut packets = vec![frame(&mut theirs, 1)];
        let buffer = packets[0].bytes().as_ptr();
        other.transmit(now, &mut theirs, &mut packets);
        owner.pump(now, &mut owners);
        packets.push(frame(&mut theirs, 2));
        other.transmit(now, &mut theirs, &mut packets);
        assert_eq!(frame(&mut theirs, 3).bytes().as_ptr(), buffer);
    }
}
