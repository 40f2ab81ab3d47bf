//! [`Egress`]: how the NIC executes a rule's actions by itself, and [`Wires`]: where its packets leave.
//!
//! A packet is handled wholly or not at all. What stands in the way, a port without a wire, work that its port does not
//! finish, an MTU, no room for a tag, may show only behind an edit or an output; so nothing is sent before all of the
//! packet's outputs are ready, and whoever is not surely through keeps a copy to go back to.
//!
//! # Thread-safety
//! A wire has one queue, behind a mutex: the simulated NIC's egress scheduler. A receive takes it once a port. Each
//! receive queue has an [`Egress`] of its own.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::flow::{Action, Actions, PortNo};
use crate::packet::edit::{self, EditError};
use crate::packet::{Packet, Pool, segment};
use crate::port::{PortInfo, Sent, TxQueue};

/// What is in front of the payload that an MTU counts.
const LINK: usize = 14;
const TAG: usize = 4;

/// The wires there are, and what was sent to each port that is connected, by whichever wire it had.
#[derive(Default)]
pub struct Wires {
    wires: BTreeMap<PortNo, Arc<Wire>>,
    counts: BTreeMap<PortNo, Arc<Counts>>,
}

/// Where packets leave by one port.
pub struct Wire {
    checksum: bool,
    segment: bool,
    mtu: AtomicU32,
    /// `None` once it was cut.
    queue: Mutex<Option<Box<dyn TxQueue>>>,
    counts: Arc<Counts>,
}

/// What became of the packets that were sent to a port.
#[derive(Default)]
struct Counts {
    sent: AtomicU64,
    lost: AtomicU64,
}

/// What one receive sends, by port, in order.
#[derive(Default)]
pub struct Egress {
    lanes: Vec<Lane>,
    /// Ready outputs of the packet in hand, each with its lane.
    staged: Vec<(usize, Packet)>,
}

struct Lane {
    port: PortNo,
    wire: Arc<Wire>,
    packets: Vec<Packet>,
}

/// The NIC cannot finish a packet by itself.
struct Unable;

impl Wires {
    /// A wire to `port`, which has none. Its counts go on where those of the wire before ended.
    pub fn connect(&mut self, port: &PortInfo, mtu: usize, queue: Box<dyn TxQueue>) {
        let wire = Wire {
            checksum: port.tx_checksum,
            segment: port.tx_segment,
            mtu: AtomicU32::new(mtu as u32),
            queue: Mutex::new(Some(queue)),
            counts: Arc::clone(self.counts.entry(port.number).or_default()),
        };
        self.wires.insert(port.number, Arc::new(wire));
    }

    /// Takes the wire out, which may be replaced; it is to be [cut](Wire::cut).
    pub fn unplug(&mut self, port: PortNo) -> Option<Arc<Wire>> {
        self.wires.remove(&port)
    }

    /// As [`Wires::unplug`], of a port that is gone: its counts end.
    pub fn disconnect(&mut self, port: PortNo) -> Option<Arc<Wire>> {
        self.counts.remove(&port);
        self.unplug(port)
    }

    pub fn get(&self, port: PortNo) -> Option<&Arc<Wire>> {
        self.wires.get(&port)
    }

    /// Packets that were sent to `port`, and those that it did not take.
    pub fn counts(&self, port: PortNo) -> (u64, u64) {
        let read = |counts: &Arc<Counts>| (counts.sent.load(Ordering::Relaxed), counts.lost.load(Ordering::Relaxed));
        self.counts.get(&port).map(read).unwrap_or_default()
    }
}

impl Wire {
    /// Sends nothing any more, from when this returns.
    pub fn cut(&self) {
        drop(self.queue().take());
    }

    pub fn set_mtu(&self, mtu: usize) {
        self.mtu.store(mtu as u32, Ordering::Relaxed);
    }

    fn mtu(&self) -> usize {
        self.mtu.load(Ordering::Relaxed) as usize
    }

    /// Sends `packets` and leaves the list empty.
    fn transmit(&self, now: Instant, pool: &mut Pool, packets: &mut Vec<Packet>) {
        let sent = match &mut *self.queue() {
            Some(queue) => queue.transmit(now, pool, packets),
            None => {
                let failed = packets.len() as u64;
                pool.give_all(packets);
                Sent { failed, ..Sent::default() }
            }
        };
        self.counts.sent.fetch_add(sent.packets, Ordering::Relaxed);
        self.counts.lost.fetch_add(sent.full + sent.failed, Ordering::Relaxed);
    }

    fn queue(&self) -> MutexGuard<'_, Option<Box<dyn TxQueue>>> {
        // A port that panicked is in whatever state it is in; packets are its own.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Egress {
    /// Does with `packet` what `actions` say, as [`crate::datapath::execute`] does.
    ///
    /// # Errors
    /// The NIC cannot do all of it: nothing is sent, and the packet comes back as it was.
    pub fn execute(
        &mut self,
        mut packet: Packet,
        actions: &Actions,
        wires: &Wires,
        pool: &mut Pool,
    ) -> Result<(), Packet> {
        let Some(last) = actions.iter().rposition(|action| matches!(action, Action::Output(_))) else {
            pool.give(packet);
            return Ok(());
        };
        let (edits, Action::Output(port)) = (&actions[..last], &actions[last]) else { return Err(packet) };
        let sure = match foresee(&packet, edits, actions, wires) {
            Ok(sure) => sure,
            Err(Unable) => return Err(packet),
        };
        let spare = (!sure).then(|| pool.copy(&packet));
        let done = self.run(&mut packet, edits, wires, pool).and_then(|()| self.lane(*port, &packet, wires));
        let Ok(lane) = done else {
            self.staged.drain(..).for_each(|(_, copy)| pool.give(copy));
            // Without a spare nothing could go wrong, and nothing has.
            let spare = spare.map(|spare| std::mem::replace(&mut packet, spare));
            spare.into_iter().for_each(|spoiled| pool.give(spoiled));
            return Err(packet);
        };
        self.staged.drain(..).for_each(|(lane, copy)| self.lanes[lane].packets.push(copy));
        self.lanes[lane].packets.push(packet);
        spare.into_iter().for_each(|spare| pool.give(spare));
        Ok(())
    }

    /// Sends what was gathered, once a port.
    pub fn flush(&mut self, now: Instant, pool: &mut Pool) {
        for lane in self.lanes.iter_mut().filter(|lane| !lane.packets.is_empty()) {
            lane.wire.transmit(now, pool, &mut lane.packets);
        }
    }

    /// Edits `packet` and stages copies of it, in order.
    fn run(&mut self, packet: &mut Packet, edits: &[Action], wires: &Wires, pool: &mut Pool) -> Result<(), Unable> {
        for action in edits {
            let edited = match action {
                Action::Output(port) => {
                    let lane = self.lane(*port, packet, wires)?;
                    self.staged.push((lane, pool.copy(packet)));
                    Ok(())
                }
                Action::PushVlan { tpid, tci } => edit::push_vlan(packet, *tpid, *tci),
                Action::PopVlan => edit::pop_vlan(packet),
                Action::Set(set) => edit::set(packet, set),
            };
            match edited {
                // A packet that lacks the header stays as it is.
                Ok(()) | Err(EditError::Absent) => {}
                Err(EditError::NoHeadroom) => return Err(Unable),
            }
        }
        Ok(())
    }

    /// The lane of `packet`, as it is now, to `port`.
    fn lane(&mut self, port: PortNo, packet: &Packet, wires: &Wires) -> Result<usize, Unable> {
        let wire = wires.get(port).filter(|wire| segment::fits(packet, wire.mtu())).ok_or(Unable)?;
        let at = match self.lanes.iter().position(|lane| lane.port == port) {
            Some(at) => at,
            None => {
                self.lanes.push(Lane { port, wire: Arc::clone(wire), packets: Vec::new() });
                return Ok(self.lanes.len() - 1);
            }
        };
        if !Arc::ptr_eq(&self.lanes[at].wire, wire) {
            // Every receive empties its lanes under one look at the wires, so what is gathered is for this wire.
            self.lanes[at].wire = Arc::clone(wire);
        }
        Ok(at)
    }
}

/// Looks ahead. `true`: nothing can stand in the way, whatever the edits make of the packet; `false`: perhaps.
fn foresee(packet: &Packet, edits: &[Action], actions: &Actions, wires: &Wires) -> Result<bool, Unable> {
    let pushes = edits.iter().filter(|action| matches!(action, Action::PushVlan { .. })).count();
    let mut sure = packet.headroom() >= pushes * TAG;
    for port in actions.outputs() {
        let wire = wires.get(port).ok_or(Unable)?;
        // Edits leave what is unfinished as it is.
        if !segment::is_finished(packet, wire.checksum, wire.segment) {
            return Err(Unable);
        }
        sure &= packet.len() + pushes * TAG <= wire.mtu() + LINK;
    }
    Ok(sure)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::flow::text::parse_actions;
    use crate::packet::{PartialChecksum, SegmentKind, Segmentation};
    use crate::port::Kind;

    type Log = Arc<Mutex<Vec<(u32, Vec<u8>)>>>;

    struct Recorder(u32, Log);

    impl TxQueue for Recorder {
        fn transmit(&mut self, _now: Instant, pool: &mut Pool, packets: &mut Vec<Packet>) -> Sent {
            let packets_sent = packets.len() as u64;
            self.1.lock().unwrap().extend(packets.iter().map(|packet| (self.0, packet.bytes().to_vec())));
            pool.give_all(packets);
            Sent { packets: packets_sent, ..Sent::default() }
        }
    }

    /// Port 1 of an MTU of 100, port 2 of one of 101, which finishes everything.
    fn wires(log: &Log) -> Wires {
        let mut wires = Wires::default();
        for number in [1, 2] {
            let info = PortInfo {
                name: format!("p{number}"),
                number: PortNo(number),
                kind: Kind::Sim,
                ifindex: None,
                rx_queues: 1,
                tx_checksum: number == 2,
                tx_segment: number == 2,
                ring: 64,
            };
            wires.connect(&info, 99 + number as usize, Box::new(Recorder(number, Arc::clone(log))));
        }
        wires
    }

    fn frame(len: usize) -> Packet {
        let mut bytes = vec![7; len];
        bytes[12..14].copy_from_slice(&[0x88, 0xb5]);
        Packet::from_bytes(&bytes)
    }

    /// What is sent, or the packet that comes back.
    fn execute(packet: Packet, actions: &str) -> Result<Vec<(u32, usize)>, Packet> {
        let log = Log::default();
        let (wires, mut egress, mut pool) = (wires(&log), Egress::default(), Pool::new());
        let result = egress.execute(packet, &parse_actions(actions, &()).unwrap(), &wires, &mut pool);
        egress.flush(Instant::now(), &mut pool);
        let sent: Vec<_> = log.lock().unwrap().iter().map(|(port, bytes)| (*port, bytes.len())).collect();
        match result {
            Ok(()) => Ok(sent),
            Err(packet) => {
                assert_eq!(sent, [], "handed back, and nothing sent");
                Err(packet)
            }
        }
    }

    #[test]
    fn outputs_leave_with_the_edits_before_them_and_in_order_at_each_port() {
        let sent = execute(frame(60), "1,push_vlan(vid=5,pcp=0),1,2,pop_vlan,1,pop_vlan").unwrap();
        assert_eq!(sent, [(1, 60), (1, 64), (1, 60), (2, 64)]);
        assert_eq!(execute(frame(60), "drop").unwrap(), []);
        assert_eq!(execute(frame(60), "pop_vlan").unwrap(), []);
    }

    #[test]
    fn a_packet_that_cannot_be_finished_comes_back_as_it_was_and_no_copy_is_sent() {
        for (actions, len) in
            [("2,7", 60), ("2,push_vlan(vid=5,pcp=0),1", 115), ("2,set(eth(src=02:00:00:00:00:09)),1", 115)]
        {
            let back = execute(frame(len), actions).expect_err(actions);
            assert_eq!(back.bytes(), frame(len).bytes(), "{actions}");
        }
        let tags = "push_vlan(vid=5,pcp=0),".repeat(crate::packet::HEADROOM / 4 + 1);
        let back = execute(frame(60), &format!("1,{tags}1")).unwrap_err();
        assert_eq!(back.bytes(), frame(60).bytes());
    }

    #[test]
    fn tags_do_not_count_as_payload() {
        assert_eq!(execute(frame(114), "push_vlan(vid=5,pcp=0),1").unwrap(), [(1, 118)]);
        assert!(execute(frame(115), "push_vlan(vid=5,pcp=0),1").is_err());
    }

    #[test]
    fn what_a_kernel_left_undone_leaves_only_by_a_port_that_finishes_it() {
        let unfinished = |len| {
            let mut packet = frame(len);
            packet.meta.offload.checksum = Some(PartialChecksum { start: 34, offset: 6 });
            packet
        };
        assert!(execute(unfinished(60), "1").is_err());
        assert!(execute(unfinished(60), "2,1").is_err());
        assert_eq!(execute(unfinished(60), "2").unwrap(), [(2, 60)]);
        let mut whole = frame(60);
        whole.meta.offload.segment = Some(Segmentation { kind: SegmentKind::Udp, size: 100, ecn: false });
        assert!(execute(whole, "1").is_err());
    }

    #[test]
    fn a_cut_wire_sends_nothing_and_counts_what_was_on_its_way() {
        let log = Log::default();
        let (mut wires, mut egress, mut pool) = (wires(&log), Egress::default(), Pool::new());
        let actions = parse_actions("1", &()).unwrap();
        assert!(egress.execute(frame(60), &actions, &wires, &mut pool).is_ok());
        wires.unplug(PortNo(1)).unwrap().cut();
        egress.flush(Instant::now(), &mut pool);
        assert_eq!((wires.counts(PortNo(1)), log.lock().unwrap().len()), ((0, 1), 0));
        assert!(egress.execute(frame(60), &actions, &wires, &mut pool).is_err());
    }
}
