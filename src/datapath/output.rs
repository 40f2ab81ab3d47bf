//! [`Outputs`]: where a poller's packets leave. Packets gather per port while a batch is worked on, and leave together.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use super::counters::{Fate, PortCounters};
use crate::flow::PortNo;
use crate::packet::{Packet, Pool, segment};
use crate::port::handoff::OwnerTx;
use crate::port::{Sent, TxQueue};

/// What the control thread tells pollers about a port while it is open.
#[derive(Debug)]
pub struct PortLimits {
    /// [`Port::mtu`](crate::port::Port::mtu) when last read.
    pub mtu: AtomicU32,
}

/// One port's way out.
pub struct Output {
    pub tx: Tx,
    /// Finishes partial checksums itself.
    pub checksum: bool,
    /// Cuts frames into segments itself.
    pub segment: bool,
    pub limits: Arc<PortLimits>,
    pub counters: Arc<PortCounters>,
    gathered: Vec<Packet>,
}

/// A transmit queue of this poller's own, or one that it also serves for the others.
pub enum Tx {
    Own(Box<dyn TxQueue>),
    Served(OwnerTx),
}

/// The ways out of one poller.
#[derive(Default)]
pub struct Outputs {
    /// By port number.
    ports: Vec<Option<Output>>,
    /// Ports with something gathered.
    pending: Vec<PortNo>,
    finished: Vec<Packet>,
}

impl Output {
    pub fn new(tx: Tx, checksum: bool, segment: bool, limits: Arc<PortLimits>, counters: Arc<PortCounters>) -> Output {
        Output { tx, checksum, segment, limits, counters, gathered: Vec::with_capacity(2 * crate::packet::BATCH) }
    }
}

impl Outputs {
    pub fn new() -> Outputs {
        Outputs::default()
    }

    pub fn add(&mut self, port: PortNo, output: Output) {
        let place = port.0 as usize;
        if place >= self.ports.len() {
            self.ports.resize_with(place + 1, || None);
        }
        self.ports[place] = Some(output);
    }

    /// Closes the way out; only between batches, when nothing is gathered.
    pub fn remove(&mut self, port: PortNo, pool: &mut Pool, fate: &Fate) {
        let removed = self.ports.get_mut(port.0 as usize).and_then(Option::take);
        if let Some(mut output) = removed
            && let Tx::Served(owner) = &mut output.tx
        {
            let left = owner.close(pool);
            output.count(left, fate);
        }
    }

    /// Closes every way out, only between batches. What other pollers handed over is sent before; the caller has seen to it
    /// that they hand over no more.
    pub fn close(&mut self, now: Instant, pool: &mut Pool, fate: &Fate) {
        self.pump(now, pool, fate);
        for port in 0..self.ports.len() as u32 {
            self.remove(PortNo(port), pool, fate);
        }
    }

    /// Gathers every packet of `packets` for `port` and leaves the list empty.
    #[inline]
    pub fn gather_all(&mut self, port: PortNo, packets: &mut Vec<Packet>, pool: &mut Pool, fate: &Fate) {
        match self.ports.get_mut(port.0 as usize) {
            Some(Some(output)) => {
                if output.gathered.is_empty() {
                    self.pending.push(port);
                    // Packets are not moved one by one when the list can be: it is empty, and so is what the caller gets.
                    std::mem::swap(&mut output.gathered, packets);
                } else {
                    output.gathered.append(packets);
                }
            }
            _ => {
                fate.dropped_no_port.add(packets.len() as u64);
                pool.give_all(packets);
            }
        }
    }

    /// Gathers one packet for `port`.
    #[inline]
    pub fn gather(&mut self, port: PortNo, packet: Packet, pool: &mut Pool, fate: &Fate) {
        match self.ports.get_mut(port.0 as usize) {
            Some(Some(output)) => {
                if output.gathered.is_empty() {
                    self.pending.push(port);
                }
                output.gathered.push(packet);
            }
            _ => {
                fate.dropped_no_port.add(1);
                pool.give(packet);
            }
        }
    }

    /// Sends what was gathered. Answers with the number of batches handed over.
    #[inline]
    pub fn flush(&mut self, now: Instant, pool: &mut Pool, fate: &Fate) -> u64 {
        let batches = self.pending.len() as u64;
        while let Some(port) = self.pending.pop() {
            if let Some(Some(output)) = self.ports.get_mut(port.0 as usize) {
                output.send(now, pool, fate, &mut self.finished);
            }
        }
        batches
    }

    /// Whether another poller handed packets over since the last [`Outputs::pump`].
    pub fn has_handed_over(&self) -> bool {
        self.ports.iter().flatten().any(|output| matches!(&output.tx, Tx::Served(owner) if owner.has_waiting()))
    }

    /// Sends what other pollers handed over until now to the queues that this one serves. One load a port when there is nothing.
    pub fn pump(&mut self, now: Instant, pool: &mut Pool, fate: &Fate) {
        for output in self.ports.iter_mut().flatten() {
            if let Tx::Served(owner) = &mut output.tx {
                let sent = owner.pump(now, pool);
                output.count(sent, fate);
            }
        }
    }
}

impl Output {
    fn send(&mut self, now: Instant, pool: &mut Pool, fate: &Fate, finished: &mut Vec<Packet>) {
        let mtu = self.limits.mtu.load(Ordering::Relaxed) as usize;
        let ready =
            |packet: &Packet| segment::fits(packet, mtu) && segment::is_finished(packet, self.checksum, self.segment);
        if !self.gathered.iter().all(ready) {
            self.fit(mtu, pool, fate, finished);
        }
        let sent = match &mut self.tx {
            Tx::Own(queue) => queue.transmit(now, pool, &mut self.gathered),
            Tx::Served(owner) => owner.transmit(now, pool, &mut self.gathered),
        };
        self.count(sent, fate);
    }

    fn count(&self, sent: Sent, fate: &Fate) {
        fate.sent.add(sent.packets);
        fate.dropped_port_full.add(sent.full);
        fate.dropped_port_failed.add(sent.failed);
        self.counters.tx_packets.add(sent.packets);
        self.counters.tx_bytes.add(sent.bytes);
        self.counters.tx_full.add(sent.full);
        self.counters.tx_failed.add(sent.failed);
    }

    /// Drops what is too long for the port, and finishes what the port cannot finish itself.
    #[cold]
    fn fit(&mut self, mtu: usize, pool: &mut Pool, fate: &Fate, finished: &mut Vec<Packet>) {
        for packet in self.gathered.drain(..) {
            if !segment::fits(&packet, mtu) {
                fate.dropped_too_long.add(1);
                self.counters.tx_too_long.add(1);
                pool.give(packet);
            } else if segment::is_finished(&packet, self.checksum, self.segment) {
                finished.push(packet);
            } else if segment::finish(packet, pool, !self.checksum, finished).is_err() {
                fate.dropped_malformed_offload.add(1);
            }
        }
        self.gathered.append(finished);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::handoff::{HandoffTx, Shared};
    use std::sync::mpsc;

    /// Remembers the length of each frame.
    struct Wire(mpsc::Sender<usize>);

    impl TxQueue for Wire {
        fn transmit(&mut self, _now: Instant, pool: &mut Pool, packets: &mut Vec<Packet>) -> Sent {
            let sent = Sent { packets: packets.len() as u64, ..Sent::default() };
            packets.iter().for_each(|packet| self.0.send(packet.len()).unwrap());
            pool.give_all(packets);
            sent
        }
    }

    #[test]
    fn what_another_poller_handed_over_is_sent_before_the_ways_out_close() {
        let (now, mut pool, fate) = (Instant::now(), Pool::new(), Fate::default());
        let (wire, out) = mpsc::channel();
        let shared = Shared::new(|| ());
        let mut outputs = Outputs::new();
        let tx = Tx::Served(OwnerTx::new(Arc::clone(&shared), Box::new(Wire(wire))));
        let (limits, counters) = (Arc::new(PortLimits { mtu: AtomicU32::new(1_500) }), Arc::<PortCounters>::default());
        outputs.add(PortNo(2), Output::new(tx, false, false, limits, Arc::clone(&counters)));
        let mut packets: Vec<Packet> = (60..160).map(|len| Packet::from_bytes(&vec![0; len])).collect();
        HandoffTx::new(shared).transmit(now, &mut pool, &mut packets);

        outputs.close(now, &mut pool, &fate);
        assert_eq!(out.try_iter().collect::<Vec<_>>(), (60..160).collect::<Vec<_>>());
        assert_eq!((fate.sent.get(), counters.tx_packets.get(), counters.tx_failed.get()), (100, 100, 0));
        outputs.gather(PortNo(2), Packet::from_bytes(&[0; 60]), &mut pool, &fate);
        assert_eq!(fate.dropped_no_port.get(), 1);
    }
}
