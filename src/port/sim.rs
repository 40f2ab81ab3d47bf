//! The `sim` port: in memory, for tests, benchmarks and the demo.
//!
//! Frames arrive because somebody injects them or because a traffic generator makes them; frames sent are counted, and
//! recorded if asked.
//!
//! | option | meaning |
//! | --- | --- |
//! | `queues=N` (`n_rxq`) | receive queues, 1 by default |
//! | `ring=N` | frames that wait in each, 1,024 by default |
//! | `mtu=N` | 1,500 by default |
//! | `flows=N` | makes traffic of so many flows ([`generator`](super::generator)) |
//! | `rate=PPS` | so many frames a second in all; absent or 0: as fast as the pollers ask |
//! | `count=N` | stops after N frames |
//! | `size=BYTES` | length of a frame without check sequence, 64 by default |
//! | `proto=udp\|tcp\|both` | `udp` by default; `both` alternates from flow to flow |
//! | `src=MAC`, `dst=MAC` | `02:00:00:00:NN:NN` of the port's number, and `02:00:00:00:ff:fe` |
//! | `tx=FILE` (`tx_pcap`) | frames sent are recorded |
//! | `pcap=FILE` | frames of both directions are recorded |

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crossbeam_queue::ArrayQueue;
use rustix::event::{EventfdFlags, eventfd};

use super::capture::Recorder;
use super::generator::{Generator, MAX_FLOWS, MAX_SIZE, MIN_SIZE, Protocol, Traffic};
use super::pace::Rate;
use super::pcap::record;
use super::{InjectError, Kind, OpenError, Port, PortInfo, PortSpec, RxQueue, Sent, TxQueue};
use crate::flow::PortNo;
use crate::packet::pool::SMALL;
use crate::packet::{BATCH, HEADROOM, MAX_FRAME, Packet, Pool};

/// What `type=sim` takes.
pub const OPTIONS: &[&str] =
    &["queues", "ring", "mtu", "flows", "rate", "count", "size", "proto", "src", "dst", "tx", "pcap"];

/// What only a generator needs.
const TRAFFIC_OPTIONS: &[&str] = &["rate", "count", "size", "proto", "src", "dst"];

struct SimPort {
    info: PortInfo,
    mtu: usize,
    rings: Vec<Arc<Ring>>,
    rx: Vec<Box<dyn RxQueue>>,
    up: Arc<AtomicBool>,
    recorder: Option<Recorder>,
}

pub fn open(spec: &PortSpec, number: PortNo) -> Result<Box<dyn Port>, OpenError> {
    let queues = spec.number_in("queues", 1..=64, 1)? as u32;
    let ring = spec.number_in("ring", 1..=65_536, 1_024)?;
    let mtu = spec.number_in("mtu", 68..=65_535, 1_500)? as usize;
    let traffic = traffic(spec, number)?;
    let rate = spec.rate("rate")?;
    let create = |option: &str| match spec.text(option) {
        Some(file) => {
            Recorder::create(Path::new(file)).map(Some).map_err(|error| spec.failed(format!("{option}={file}"), error))
        }
        None => Ok(None),
    };
    if spec.text("tx").is_some() && spec.text("pcap").is_some() {
        return Err(spec.refused("pcap", "either tx or pcap can be given".to_owned()));
    }
    let (sent, both) = (create("tx")?, create("pcap")?);
    let up = Arc::new(AtomicBool::new(true));
    let mut rings = Vec::new();
    let mut rx: Vec<Box<dyn RxQueue>> = Vec::new();
    for queue in 0..queues {
        let wakeup = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC);
        let wakeup = wakeup.map_err(|error| spec.failed("eventfd", error))?;
        let shared = Arc::new(Ring { frames: ArrayQueue::new(ring as usize), wakeup, rung: AtomicBool::new(false) });
        let generator = traffic.as_ref().map(|traffic| {
            // The first queues take what the division leaves over; a queue with no frame at all would stop.
            let share = rate.map(|all| {
                let all = all.get();
                let own = all / u64::from(queues) + u64::from(u64::from(queue) < all % u64::from(queues));
                Rate::new(own.try_into().unwrap_or(std::num::NonZeroU64::MIN))
            });
            Generator::new(number, traffic, queue, queues, share, ring)
        });
        let recorder = both.clone();
        rings.push(shared.clone());
        rx.push(Box::new(SimRx { ring: shared, generator, number, up: up.clone(), missed: 0, recorder }));
    }
    let info = PortInfo {
        name: spec.name.clone(),
        number,
        kind: Kind::Sim,
        ifindex: None,
        rx_queues: queues as usize,
        tx_checksum: false,
        tx_segment: false,
        ring,
    };
    Ok(Box::new(SimPort { info, mtu, rings, rx, up, recorder: sent.or(both) }))
}

/// The traffic that `spec` asks for, if any.
fn traffic(spec: &PortSpec, number: PortNo) -> Result<Option<Traffic>, OpenError> {
    let [high, low] = (number.0 as u16).to_be_bytes();
    let mac = |option: &str, default: [u8; 6]| match spec.text(option) {
        None => Ok(default),
        Some(text) => parse_mac(text).ok_or_else(|| spec.refused(option, "a MAC address is needed".to_owned())),
    };
    if spec.text("flows").is_none() {
        return match TRAFFIC_OPTIONS.iter().find(|option| spec.text(option).is_some()) {
            Some(option) => Err(spec.refused(option, "flows=N is needed with it".to_owned())),
            None => Ok(None),
        };
    }
    Ok(Some(Traffic {
        source_mac: mac("src", [2, 0, 0, 0, high, low])?,
        destination_mac: mac("dst", [2, 0, 0, 0, 0xff, 0xfe])?,
        protocols: match spec.text("proto") {
            None | Some("udp") => vec![Protocol::Udp],
            Some("tcp") => vec![Protocol::Tcp],
            Some("both") => vec![Protocol::Udp, Protocol::Tcp],
            Some(_) => return Err(spec.refused("proto", "udp, tcp or both is needed".to_owned())),
        },
        flows: spec.number_in("flows", 1..=u64::from(MAX_FLOWS), 1)? as u32,
        size: spec.number_in("size", MIN_SIZE as u64..=MAX_SIZE as u64, 64)? as usize,
        count: match spec.text("count") {
            Some(_) => Some(spec.number_in("count", 1..=u64::MAX, 1)?),
            None => None,
        },
    }))
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = parts.next().filter(|part| part.len() <= 2).and_then(|part| u8::from_str_radix(part, 16).ok())?;
    }
    parts.next().is_none().then_some(mac)
}

impl Port for SimPort {
    fn info(&self) -> &PortInfo {
        &self.info
    }

    fn mtu(&self) -> usize {
        self.mtu
    }

    fn take_rx(&mut self) -> Vec<Box<dyn RxQueue>> {
        std::mem::take(&mut self.rx)
    }

    fn open_tx(&mut self) -> io::Result<Option<Box<dyn TxQueue>>> {
        Ok(Some(Box::new(SimTx { up: self.up.clone(), recorder: self.recorder.clone() })))
    }

    fn inject(&self, queue: usize, frame: &[u8]) -> Result<(), InjectError> {
        let ring = self.rings.get(queue).ok_or(InjectError::Queue)?;
        if !self.up.load(Ordering::Relaxed) {
            return Err(InjectError::Down);
        }
        // Of a size that the poller's pool keeps.
        let len = match frame.len() {
            len if len > MAX_FRAME => return Err(InjectError::TooLong),
            len => (HEADROOM + len).max(SMALL),
        };
        let mut packet = Packet::new(vec![0; len].into_boxed_slice());
        packet.set_len(frame.len());
        packet.bytes_mut().copy_from_slice(frame);
        packet.meta.in_port = self.info.number;
        ring.push(packet)
    }

    fn set_up(&self, up: bool) -> bool {
        self.up.store(up, Ordering::Relaxed);
        true
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let state = if self.up.load(Ordering::Relaxed) { "up" } else { "down" };
        vec![("admin_state", state.to_owned())]
    }
}

/// Frames injected and not yet received.
///
/// # Thread-safety
/// Any number may push; one receives. `rung` is true from a push until the receiver has emptied the event counter and looked
/// again: so that a busy ring costs no system call, and no frame waits unannounced. A wake-up too many is harmless, one
/// too few is not.
struct Ring {
    frames: ArrayQueue<Packet>,
    wakeup: OwnedFd,
    rung: AtomicBool,
}

impl Ring {
    fn push(&self, packet: Packet) -> Result<(), InjectError> {
        self.frames.push(packet).map_err(|_| InjectError::Full)?;
        // AcqRel pairs with the swap in `pop`: either it sees this push in the ring, or we see it cleared here and ring again.
        if !self.rung.swap(true, Ordering::AcqRel) {
            // The counter cannot overflow, being at most 1.
            let _ = rustix::io::write(&self.wakeup, &1u64.to_ne_bytes());
        }
        Ok(())
    }

    fn pop(&self, into: &mut Vec<Packet>) {
        self.take(into);
        // While the announcement is still on its way (the read finds nothing), it stays to be taken next time.
        if into.len() < BATCH
            && self.rung.load(Ordering::Acquire)
            && rustix::io::read(&self.wakeup, &mut [0; 8]).is_ok()
        {
            self.rung.swap(false, Ordering::AcqRel);
            self.take(into);
        }
    }

    fn take(&self, into: &mut Vec<Packet>) {
        let room = BATCH.saturating_sub(into.len());
        into.extend(std::iter::from_fn(|| self.frames.pop()).take(room));
    }
}

struct SimRx {
    ring: Arc<Ring>,
    generator: Option<Generator>,
    number: PortNo,
    up: Arc<AtomicBool>,
    missed: u64,
    recorder: Option<Recorder>,
}

impl RxQueue for SimRx {
    fn receive(&mut self, now: Instant, pool: &mut Pool, into: &mut Vec<Packet>) -> io::Result<usize> {
        self.ring.pop(into);
        if let Some(generator) = &mut self.generator
            && self.up.load(Ordering::Relaxed)
        {
            self.missed += generator.make(now, pool, into);
        }
        debug_assert!(into.iter().all(|packet| packet.meta.in_port == self.number));
        record(self.recorder.as_ref(), now, into);
        Ok(into.len())
    }

    fn readable(&self) -> Option<BorrowedFd<'_>> {
        Some(self.ring.wakeup.as_fd())
    }

    fn next_due(&self) -> Option<Instant> {
        self.generator.as_ref().filter(|_| self.up.load(Ordering::Relaxed))?.next_due()
    }

    fn missed(&mut self) -> u64 {
        self.missed
    }
}

struct SimTx {
    up: Arc<AtomicBool>,
    recorder: Option<Recorder>,
}

impl TxQueue for SimTx {
    fn transmit(&mut self, now: Instant, pool: &mut Pool, packets: &mut Vec<Packet>) -> Sent {
        let sent = if self.up.load(Ordering::Relaxed) {
            record(self.recorder.as_ref(), now, packets)
        } else {
            Sent { failed: packets.len() as u64, ..Sent::default() }
        };
        pool.give_all(packets);
        sent
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::capture::Capture;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use std::time::Duration;

    fn port(options: &str) -> Result<Box<dyn Port>, OpenError> {
        open(&format!("p,type=sim{options}").parse().unwrap(), PortNo(9))
    }

    fn receive(rx: &mut dyn RxQueue) -> Vec<Packet> {
        let mut packets = Vec::new();
        rx.receive(Instant::now(), &mut Pool::new(), &mut packets).unwrap();
        packets
    }

    fn is_readable(rx: &dyn RxQueue) -> bool {
        let fd = rx.readable().unwrap();
        poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&Timespec::default())).unwrap() == 1
    }

    #[test]
    fn injected_frames_arrive_in_order_at_their_queue() {
        let mut port = port(",n_rxq=2").unwrap();
        let mut rx = port.take_rx();
        assert!(port.take_rx().is_empty());
        for i in 0..40 {
            port.inject(1, &[i; 60]).unwrap();
        }
        assert!(receive(&mut *rx[0]).is_empty());
        let first = receive(&mut *rx[1]);
        assert_eq!(first.len(), BATCH);
        assert!(first.iter().enumerate().all(|(i, p)| p.bytes() == [i as u8; 60] && p.meta.in_port == PortNo(9)));
        assert_eq!(receive(&mut *rx[1]).len(), 8);
    }

    #[test]
    fn the_descriptor_is_readable_exactly_while_frames_wait() {
        let mut port = port("").unwrap();
        let mut rx = port.take_rx().remove(0);
        assert!(!is_readable(&*rx));
        for _ in 0..3 {
            for _ in 0..BATCH + 1 {
                port.inject(0, &[0; 60]).unwrap();
            }
            assert!(is_readable(&*rx));
            receive(&mut *rx);
            assert!(is_readable(&*rx), "one frame is left");
            receive(&mut *rx);
            assert!(!is_readable(&*rx));
        }
    }

    #[test]
    fn no_frame_is_left_unannounced_when_pushes_race_with_the_receiver() {
        let mut port = port("").unwrap();
        let mut rx = port.take_rx().remove(0);
        const FRAMES: usize = 20_000;
        let sender = std::thread::spawn(move || {
            let mut sent = 0;
            while sent < FRAMES {
                match port.inject(0, &[0; 60]) {
                    Ok(()) => sent += 1,
                    Err(_) => std::thread::yield_now(),
                }
            }
        });
        let mut received = 0;
        while received < FRAMES {
            let n = receive(&mut *rx).len();
            received += n;
            if n == 0 {
                // A lost announcement would leave us here although a frame waits.
                let fd = rx.readable().unwrap();
                let limit = Timespec { tv_sec: 10, tv_nsec: 0 };
                assert_eq!(poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit)).unwrap(), 1, "after {received}");
            }
        }
        sender.join().unwrap();
    }

    #[test]
    fn what_cannot_be_injected_is_refused_by_name() {
        let port = port(",ring=2").unwrap();
        assert_eq!(port.inject(1, &[]), Err(InjectError::Queue));
        assert_eq!(port.inject(0, &vec![0; MAX_FRAME + 1]), Err(InjectError::TooLong));
        assert_eq!(port.inject(0, &vec![0; MAX_FRAME]), Ok(()));
        assert_eq!(port.inject(0, &[]), Ok(()));
        assert_eq!(port.inject(0, &[0; 60]), Err(InjectError::Full));
        assert!(port.set_up(false));
        assert_eq!(port.inject(0, &[0; 60]), Err(InjectError::Down));
    }

    #[test]
    fn what_is_sent_is_counted_and_recorded_by_every_queue() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tx.pcap");
        let mut port = port(&format!(",tx_pcap={}", path.display())).unwrap();
        let (mut a, mut b) = (port.open_tx().unwrap().unwrap(), port.open_tx().unwrap().unwrap());
        let now = Instant::now();
        let mut pool = Pool::new();
        assert_eq!(a.transmit(now, &mut pool, &mut vec![Packet::from_bytes(&[1; 60])]).packets, 1);
        assert_eq!(b.transmit(now, &mut pool, &mut vec![Packet::from_bytes(&[2; 60])]).bytes, 60);
        port.set_up(false);
        assert_eq!(a.transmit(now, &mut pool, &mut vec![Packet::from_bytes(&[3; 60])]).failed, 1);
        let capture = Capture::load(&path, 1 << 20).unwrap();
        assert_eq!((capture.len(), capture.frame(0)[0], capture.frame(1)[0]), (2, 1, 2));
    }

    #[test]
    fn both_directions_are_recorded_where_asked() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("both.pcap");
        let mut port = port(&format!(",pcap={}", path.display())).unwrap();
        port.inject(0, &[1; 60]).unwrap();
        receive(&mut *port.take_rx()[0]);
        let mut tx = port.open_tx().unwrap().unwrap();
        tx.transmit(Instant::now(), &mut Pool::new(), &mut vec![Packet::from_bytes(&[2; 60])]);
        assert_eq!(Capture::load(&path, 1 << 20).unwrap().len(), 2);
    }

    #[test]
    fn generated_traffic_stops_with_the_wire_and_goes_on_at_its_rate() {
        let mut port = port(",flows=3,rate=1000,proto=both,queues=2").unwrap();
        let mut rx = port.take_rx();
        let (start, mut pool, mut packets) = (Instant::now(), Pool::new(), Vec::new());
        assert!(rx[0].next_due().unwrap() <= start);
        for queue in &mut rx {
            queue.receive(start, &mut pool, &mut packets).unwrap();
        }
        assert_eq!(packets.len(), 2);
        assert_eq!(rx[0].next_due(), Some(start + Duration::from_millis(2)));
        port.set_up(false);
        assert_eq!(rx[0].next_due(), None);
        rx[0].receive(start + Duration::from_secs(1), &mut pool, &mut packets).unwrap();
        assert_eq!(packets.len(), 2);
    }

    #[test]
    fn a_wrong_option_is_refused_with_what_would_do() {
        let text = |options: &str| port(options).err().unwrap().to_string();
        assert_eq!(text(",n_rxq=0"), "port p: option queues=0: a number from 1 to 64 is needed");
        assert_eq!(text(",rate=5"), "port p: option rate=5: flows=N is needed with it");
        assert_eq!(text(",flows=1,size=59"), "port p: option size=59: a number from 60 to 65549 is needed");
        assert_eq!(text(",flows=1,src=1:2:3"), "port p: option src=1:2:3: a MAC address is needed");
        assert_eq!(text(",flows=1,proto=x"), "port p: option proto=x: udp, tcp or both is needed");
        assert!(text(",tx=/nowhere/x").starts_with("port p: tx=/nowhere/x: No such file"));
    }
}
