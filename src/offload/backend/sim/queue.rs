//! [`Queue`]: a receive queue as the poller sees it behind the simulated NIC.
//!
//! ```text
//!                         ┌─ full, nothing waits ──────────► executed, leaves by a wire
//!   inner queue ─► match ─┼─ full ──────────────► ring ─► match again, when its turn has come
//!                         └─ stamped, or not ───► ring ─► poller
//! ```
//!
//! Frames are matched when they enter the ring, so those in it carry the marks of that moment, as behind a real NIC. Unlike
//! some of those, this one lets no frame overtake an earlier one of its flow: those in the ring may have come before the
//! rule did. So what could be forwarded waits for its turn while anything is in the ring.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, RwLockReadGuard};
use std::time::Instant;

use super::egress::Egress;
use super::nic::{Counters, Nic, State};
use super::parse;
use super::table::{Columns, Rule};
use crate::offload::state::Level;
use crate::packet::{BATCH, Packet, Pool};
use crate::port::RxQueue;

/// The shortest frame that the NIC forwards by itself: an Ethernet header.
const SHORTEST: usize = 14;

/// A receive queue behind the NIC.
pub(super) struct Queue {
    inner: Box<dyn RxQueue>,
    nic: Arc<Nic>,
    counters: Arc<Counters>,
    ring: VecDeque<Waiting>,
    /// Frames in `ring` above which none are fetched; 0: there is no ring.
    limit: usize,
    /// The inner queue broke; told when the ring is empty.
    broken: Option<io::Error>,
    /// When the poller last looked.
    looked: Option<Instant>,
    egress: Egress,
    arrivals: Vec<Packet>,
    matched: Vec<Packet>,
    scratch: Vec<u128>,
}

/// A frame in the ring.
enum Waiting {
    /// For the poller, stamped or not.
    Up(Packet),
    /// For a rule that handles it wholly, should there still be one when it is its turn. Not counted until then.
    Out(Packet),
}

/// What became of the packets of one batch.
#[derive(Default)]
struct Tally {
    hits: u64,
    full: u64,
    full_bytes: u64,
    aborted: u64,
    misses: u64,
}

impl Queue {
    pub(super) fn new(inner: Box<dyn RxQueue>, nic: Arc<Nic>, counters: Arc<Counters>, limit: usize) -> Queue {
        let room = if limit > 0 { limit + BATCH } else { 0 };
        Queue {
            inner,
            nic,
            counters,
            ring: VecDeque::with_capacity(room),
            limit,
            broken: None,
            looked: None,
            egress: Egress::default(),
            arrivals: Vec::with_capacity(BATCH),
            matched: Vec::with_capacity(BATCH),
            scratch: Vec::new(),
        }
    }

    /// Takes frames from the inner queue until it is empty, or the ring holds more than its limit. Answers with how many the
    /// NIC dealt with while none waited before them: those count as taken out. (The others do not, which makes turns of
    /// [`RxProgress`](crate::port::RxProgress) longer and never too short.)
    fn fill(&mut self, now: Instant, pool: &mut Pool) -> usize {
        let mut passed = 0;
        // Frames that the NIC deals with take no room, so room alone would not end this.
        for _ in 0..=self.limit.div_ceil(BATCH) {
            if self.ring.len() > self.limit || self.broken.is_some() {
                break;
            }
            let mut arrivals = std::mem::take(&mut self.arrivals);
            let taken = self.inner.receive(now, pool, &mut arrivals).unwrap_or_else(|error| {
                self.broken = Some(error);
                arrivals.len()
            });
            if self.ring.is_empty() {
                self.admit(now, pool, &mut arrivals);
                passed += if arrivals.is_empty() { taken } else { 0 };
                self.ring.extend(arrivals.drain(..).map(Waiting::Up));
            } else {
                self.line_up(now, &mut arrivals);
            }
            self.arrivals = arrivals;
            if taken == 0 {
                break;
            }
        }
        passed
    }

    /// Puts `packets` behind those that wait in the ring.
    fn line_up(&mut self, now: Instant, packets: &mut Vec<Packet>) {
        let nic = Arc::clone(&self.nic);
        let Some(state) = self.look(&nic, packets) else {
            return self.ring.extend(packets.drain(..).map(Waiting::Up));
        };
        let now_ns = nic.nanoseconds(now);
        let mut tally = Tally::default();
        for mut packet in packets.drain(..) {
            match state.table.find(&columns(&packet), &mut self.scratch) {
                Some(rule) if may_handle(rule, &packet) => {
                    self.ring.push_back(Waiting::Out(packet));
                    continue;
                }
                Some(rule) => stamp(rule, &mut packet, now_ns, &mut tally),
                None => tally.misses += 1,
            }
            self.ring.push_back(Waiting::Up(packet));
        }
        tally.add_to(&self.counters);
    }

    /// Handles the frames whose turn it is without the poller, as far as there still are rules for them; the others are its
    /// own. Answers with how many were taken out of the ring.
    fn forward(&mut self, now: Instant, pool: &mut Pool, into: &mut Vec<Packet>) -> usize {
        let mut taken = 0;
        while into.is_empty() && matches!(self.ring.front(), Some(Waiting::Out(_))) {
            while into.len() < BATCH
                && let Some(Waiting::Out(packet)) = self.ring.pop_front_if(|next| matches!(next, Waiting::Out(_)))
            {
                into.push(packet);
            }
            taken += into.len();
            self.admit(now, pool, into);
        }
        taken
    }

    /// The state to match `packets` with; `None` if they pass unmatched, which is counted.
    fn look<'a>(&self, nic: &'a Nic, packets: &mut [Packet]) -> Option<RwLockReadGuard<'a, State>> {
        packets.iter_mut().for_each(|packet| packet.meta.mark = None);
        let state = if nic.fence().is_raised() {
            Err(&self.counters.misses)
        } else {
            nic.try_look().ok_or(&self.counters.busy)
        };
        state.map_err(|unmatched| unmatched.fetch_add(packets.len() as u64, Ordering::Relaxed)).ok()
    }

    /// Matches `packets`, stamps them, and takes out those that the NIC handles wholly. Each is counted once.
    fn admit(&mut self, now: Instant, pool: &mut Pool, packets: &mut Vec<Packet>) {
        if packets.is_empty() {
            return;
        }
        let nic = Arc::clone(&self.nic);
        let Some(state) = self.look(&nic, packets) else { return };
        let now_ns = nic.nanoseconds(now);
        let mut tally = Tally::default();
        if state.table.handles_any() {
            self.handle(&state, now_ns, pool, packets, &mut tally);
        } else if state.table.len() > 0 {
            for packet in packets {
                match state.table.find(&columns(packet), &mut self.scratch) {
                    Some(rule) => stamp(rule, packet, now_ns, &mut tally),
                    None => tally.misses += 1,
                }
            }
        } else {
            tally.misses = packets.len() as u64;
        }
        drop(state);
        self.egress.flush(now, pool);
        tally.add_to(&self.counters);
    }

    /// As [`Queue::admit`], where rules may handle packets wholly.
    fn handle(&mut self, state: &State, now_ns: u64, pool: &mut Pool, packets: &mut Vec<Packet>, tally: &mut Tally) {
        std::mem::swap(packets, &mut self.matched);
        for mut packet in self.matched.drain(..) {
            let rule = state.table.find(&columns(&packet), &mut self.scratch);
            match rule {
                None => tally.misses += 1,
                Some(rule) if may_handle(rule, &packet) => {
                    let bytes = packet.len();
                    match self.egress.execute(packet, &rule.actions, &state.wires, pool) {
                        Ok(()) => {
                            rule.count_full(bytes, now_ns);
                            tally.full += 1;
                            tally.full_bytes += bytes as u64;
                            continue;
                        }
                        Err(unfinished) => packet = unfinished,
                    }
                    tally.aborted += 1;
                    stamp(rule, &mut packet, now_ns, tally);
                }
                Some(rule) => stamp(rule, &mut packet, now_ns, tally),
            }
            packets.push(packet);
        }
    }
}

impl RxQueue for Queue {
    fn receive(&mut self, now: Instant, pool: &mut Pool, into: &mut Vec<Packet>) -> io::Result<usize> {
        if self.limit == 0 {
            let taken = self.inner.receive(now, pool, into);
            self.admit(now, pool, into);
            return taken;
        }
        self.looked = Some(now);
        let passed = self.fill(now, pool);
        let mut out = self.forward(now, pool, into);
        while into.len() < BATCH
            && let Some(Waiting::Up(packet)) = self.ring.pop_front_if(|next| matches!(next, Waiting::Up(_)))
        {
            into.push(packet);
            out += 1;
        }
        if self.nic.fence().is_raised() {
            into.iter_mut().for_each(|packet| packet.meta.mark = None);
        }
        match self.broken.take_if(|_| into.is_empty()) {
            Some(error) => Err(error),
            None => Ok(passed + out),
        }
    }

    fn readable(&self) -> Option<BorrowedFd<'_>> {
        self.inner.readable()
    }

    fn next_due(&self) -> Option<Instant> {
        // What is in the ring is due already.
        let waits = !self.ring.is_empty() || self.broken.is_some();
        self.looked.filter(|_| waits).or_else(|| self.inner.next_due())
    }

    fn missed(&mut self) -> u64 {
        self.inner.missed()
    }
}

impl Tally {
    fn add_to(&self, counters: &Counters) {
        let Tally { hits, full, full_bytes, aborted, misses } = *self;
        let counts = [
            (&counters.hits, hits),
            (&counters.full, full),
            (&counters.full_bytes, full_bytes),
            (&counters.aborted, aborted),
            (&counters.misses, misses),
        ];
        for (count, n) in counts.into_iter().filter(|(_, n)| *n > 0) {
            count.fetch_add(n, Ordering::Relaxed);
        }
    }
}

fn columns(packet: &Packet) -> Columns {
    parse::columns(packet.bytes(), packet.meta.in_port, packet.meta.offload.segment.is_some())
}

/// Whether the NIC may forward a packet of `rule` by itself.
fn may_handle(rule: &Rule, packet: &Packet) -> bool {
    rule.level == Level::Full && packet.len() >= SHORTEST
}

/// Hands a packet up with its rule's mark. Whoever finds it by the mark of a full rule counts it himself.
fn stamp(rule: &Rule, packet: &mut Packet, now_ns: u64, tally: &mut Tally) {
    packet.meta.mark = Some(rule.mark);
    tally.hits += 1;
    if rule.level == Level::Mark {
        rule.count_marked(packet.len(), now_ns);
    }
}
