//! The `pcap` port: a capture file comes in, what is sent goes to another.
//!
//! | option | meaning |
//! | --- | --- |
//! | `rx=FILE` | frames that arrive; none without it |
//! | `pace=recorded\|asap\|PPS` | as they were captured (default), as fast as the poller asks, or so many a second |
//! | `rate=PPS` | the same as `pace=PPS` |
//! | `loop=no\|yes\|N` | once (default), for ever, or N times, from memory |
//! | `rx-limit=MIB` | the largest file that is taken into memory; 512 by default |
//! | `tx=FILE` | frames that leave; counted only without it |
//!
//! The file that is written is complete after each list of frames. There is one transmit queue, so that frames lie in it
//! in the order in which one poller sent them.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::capture::{Capture, Recorder};
use super::pace::Rate;
use super::{Kind, OpenError, Port, PortInfo, PortSpec, RxQueue, Sent, TxQueue};
use crate::flow::PortNo;
use crate::packet::{BATCH, MAX_FRAME, Packet, Pool};

/// What `type=pcap` takes.
pub const OPTIONS: &[&str] = &["rx", "pace", "rate", "loop", "rx-limit", "tx"];

struct PcapPort {
    info: PortInfo,
    rx: Option<Box<dyn RxQueue>>,
    recorder: Option<Recorder>,
    /// Held by the one transmit queue while it lives.
    tx_taken: Arc<()>,
    frames: usize,
}

pub fn open(spec: &PortSpec, number: PortNo) -> Result<Box<dyn Port>, OpenError> {
    let replay = Replay {
        pace: pace(spec)?,
        rounds: rounds(spec)?,
        capture: match spec.text("rx") {
            Some(file) => {
                let limit = spec.number_in("rx-limit", 1..=1 << 20, 512)? << 20;
                Capture::load(Path::new(file), limit).map_err(|error| spec.wrong(format!("rx={file}: {error}")))?
            }
            None => Capture::default(),
        },
        number,
        round: 0,
        next: 0,
        opened: Instant::now(),
        start: None,
        due_ns: 0,
    };
    let recorder = match spec.text("tx") {
        Some(file) => {
            Some(Recorder::create(Path::new(file)).map_err(|error| spec.failed(format!("tx={file}"), error))?)
        }
        None => None,
    };
    let info = PortInfo {
        name: spec.name.clone(),
        number,
        kind: Kind::Pcap,
        ifindex: None,
        rx_queues: 1,
        tx_checksum: false,
        tx_segment: false,
        // Frames are taken from the file when they are asked for.
        ring: 0,
    };
    let frames = replay.capture.len();
    Ok(Box::new(PcapPort { info, rx: Some(Box::new(replay)), recorder, tx_taken: Arc::new(()), frames }))
}

fn pace(spec: &PortSpec) -> Result<Pace, OpenError> {
    let rate = spec.rate("rate")?;
    match spec.text("pace") {
        Some(_) if rate.is_some() => Err(spec.refused("pace", "either pace or rate can be given".to_owned())),
        None => Ok(rate.map_or(Pace::Recorded, |pps| Pace::Rate(Rate::new(pps)))),
        Some("recorded") => Ok(Pace::Recorded),
        Some("asap") => Ok(Pace::Asap),
        Some(text) => match text.parse() {
            Ok(pps) => Ok(Pace::Rate(Rate::new(pps))),
            Err(_) => Err(spec.refused("pace", "recorded, asap or packets per second are needed".to_owned())),
        },
    }
}

fn rounds(spec: &PortSpec) -> Result<u64, OpenError> {
    match spec.text("loop") {
        None | Some("no") => Ok(1),
        Some("yes") => Ok(u64::MAX),
        Some(text) => match text.parse() {
            Ok(n) if n > 0 => Ok(n),
            _ => Err(spec.refused("loop", "yes, no or a number of rounds is needed".to_owned())),
        },
    }
}

impl Port for PcapPort {
    fn info(&self) -> &PortInfo {
        &self.info
    }

    /// A file takes frames of any length.
    fn mtu(&self) -> usize {
        MAX_FRAME - 14 - 8
    }

    fn take_rx(&mut self) -> Vec<Box<dyn RxQueue>> {
        self.rx.take().into_iter().collect()
    }

    fn open_tx(&mut self) -> io::Result<Option<Box<dyn TxQueue>>> {
        if Arc::strong_count(&self.tx_taken) > 1 {
            return Ok(None);
        }
        Ok(Some(Box::new(FileTx { recorder: self.recorder.clone(), _taken: self.tx_taken.clone() })))
    }

    fn open_wire(&mut self) -> io::Result<Option<Box<dyn TxQueue>>> {
        Ok(Some(Box::new(FileTx { recorder: self.recorder.clone(), _taken: Arc::default() })))
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        vec![("rx_frames", self.frames.to_string())]
    }
}

/// The file's frames, as they fall due.
struct Replay {
    capture: Capture,
    number: PortNo,
    pace: Pace,
    rounds: u64,
    /// Rounds done.
    round: u64,
    /// The next frame of this round.
    next: usize,
    opened: Instant,
    /// When the first frame was asked for.
    start: Option<Instant>,
    /// When the next frame falls due after the start, at recorded pace.
    due_ns: u64,
}

enum Pace {
    Recorded,
    Asap,
    Rate(Rate),
}

impl Replay {
    fn is_over(&self) -> bool {
        self.round >= self.rounds || self.capture.is_empty()
    }

    /// Frames that may be taken at `now`.
    fn due(&mut self, now: Instant) -> u64 {
        let start = *self.start.get_or_insert(now);
        match &mut self.pace {
            Pace::Asap => u64::MAX,
            Pace::Rate(rate) => rate.due(now),
            Pace::Recorded => u64::from(u128::from(self.due_ns) <= now.saturating_duration_since(start).as_nanos()),
        }
    }

    /// Goes on to the frame behind this one.
    fn advance(&mut self) {
        let gap = |i: usize| self.capture.captured_ns(i).saturating_sub(self.capture.captured_ns(i - 1));
        let last = self.capture.len() - 1;
        let wait = match self.next {
            // Between rounds as long as between the last two frames; a clock that went back makes no wait.
            i if i < last => gap(i + 1),
            _ if last > 0 => gap(last),
            // A lone frame has no pace of its own.
            _ => 1_000_000,
        };
        self.due_ns = self.due_ns.saturating_add(wait);
        self.next += 1;
        if self.next > last {
            self.next = 0;
            self.round = self.round.saturating_add(1);
        }
        if let Pace::Rate(rate) = &mut self.pace {
            rate.take(1);
        }
    }
}

impl RxQueue for Replay {
    fn receive(&mut self, now: Instant, pool: &mut Pool, into: &mut Vec<Packet>) -> io::Result<usize> {
        while into.len() < BATCH && !self.is_over() && self.due(now) > 0 {
            let frame = self.capture.frame(self.next);
            // Loading refused longer frames than any buffer holds.
            if let Some(mut packet) = pool.take_for(frame.len()) {
                packet.set_len(frame.len());
                packet.bytes_mut().copy_from_slice(frame);
                packet.meta.in_port = self.number;
                packet.meta.captured_ns = self.capture.captured_ns(self.next);
                into.push(packet);
            }
            self.advance();
        }
        Ok(into.len())
    }

    fn readable(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn next_due(&self) -> Option<Instant> {
        if self.is_over() {
            return None;
        }
        let Some(start) = self.start else { return Some(self.opened) };
        match &self.pace {
            Pace::Asap => Some(start),
            Pace::Rate(rate) => rate.next_due(),
            Pace::Recorded => start.checked_add(Duration::from_nanos(self.due_ns)),
        }
    }
}

struct FileTx {
    recorder: Option<Recorder>,
    _taken: Arc<()>,
}

impl TxQueue for FileTx {
    fn transmit(&mut self, now: Instant, pool: &mut Pool, packets: &mut Vec<Packet>) -> Sent {
        let sent = record(self.recorder.as_ref(), now, packets);
        pool.give_all(packets);
        sent
    }
}

/// Records `packets`, if there is a recorder, and counts them.
pub(super) fn record(recorder: Option<&Recorder>, now: Instant, packets: &[Packet]) -> Sent {
    let n = packets.len() as u64;
    if n > 0 && recorder.is_some_and(|recorder| !recorder.record(now, packets)) {
        return Sent { failed: n, ..Sent::default() };
    }
    Sent { packets: n, bytes: packets.iter().map(|packet| packet.len() as u64).sum(), ..Sent::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A capture of `n` frames, one each 10 ms, and the directory it lies in.
    fn capture(n: u8) -> (tempfile::TempDir, String) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("in.pcap");
        let packets: Vec<Packet> = (0..n)
            .map(|i| {
                let mut packet = Packet::from_bytes(&[i; 60]);
                packet.meta.captured_ns = 1_700_000_000_000_000_000 + u64::from(i) * 10_000_000;
                packet
            })
            .collect();
        Recorder::create(&path).unwrap().record(Instant::now(), &packets);
        let path = path.display().to_string();
        (directory, path)
    }

    fn port(options: &str) -> Result<Box<dyn Port>, OpenError> {
        open(&format!("p,type=pcap,{options}").parse().unwrap(), PortNo(3))
    }

    fn receive(rx: &mut dyn RxQueue, now: Instant) -> Vec<u8> {
        let mut packets = Vec::new();
        rx.receive(now, &mut Pool::new(), &mut packets).unwrap();
        assert!(packets.iter().all(|p| p.meta.in_port == PortNo(3) && p.meta.captured_ns > 0));
        packets.iter().map(|packet| packet.bytes()[0]).collect()
    }

    #[test]
    fn a_file_is_replayed_once_as_fast_as_asked_in_whole_batches() {
        let (_directory, path) = capture(40);
        let mut rx = port(&format!("rx={path},pace=asap")).unwrap().take_rx().remove(0);
        let now = Instant::now();
        assert_eq!(receive(&mut *rx, now), (0..32).collect::<Vec<u8>>());
        assert_eq!(rx.next_due(), Some(now), "the rest is due already");
        assert_eq!(receive(&mut *rx, now), (32..40).collect::<Vec<u8>>());
        assert_eq!(receive(&mut *rx, now), [0u8; 0]);
        assert_eq!(rx.next_due(), None);
    }

    #[test]
    fn recorded_pace_gives_each_frame_when_it_came() {
        let (_directory, path) = capture(4);
        let mut rx = port(&format!("rx={path},loop=2")).unwrap().take_rx().remove(0);
        assert!(rx.next_due().unwrap() <= Instant::now(), "a sleeping poller is to begin");
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        assert_eq!(receive(&mut *rx, start), [0]);
        assert_eq!(rx.next_due(), Some(at(10)));
        assert_eq!(receive(&mut *rx, at(9)), [0u8; 0]);
        assert_eq!(receive(&mut *rx, at(25)), [1, 2]);
        assert_eq!(receive(&mut *rx, at(50)), [3, 0, 1]);
        assert_eq!(receive(&mut *rx, at(1_000)), [2, 3]);
        assert_eq!(rx.next_due(), None);
    }

    #[test]
    fn a_rate_replays_so_many_a_second_and_a_loop_never_ends() {
        let (_directory, path) = capture(3);
        for options in ["rate=1000", "pace=1000"] {
            let mut rx = port(&format!("rx={path},{options},loop=yes")).unwrap().take_rx().remove(0);
            let start = Instant::now();
            assert_eq!(receive(&mut *rx, start), [0]);
            assert_eq!(receive(&mut *rx, start + Duration::from_millis(4)), [1, 2, 0, 1]);
            assert_eq!(rx.next_due(), Some(start + Duration::from_millis(5)));
        }
    }

    #[test]
    fn what_is_sent_is_in_the_file_before_the_port_is_closed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out.pcap");
        let mut port = port(&format!("tx={}", path.display())).unwrap();
        let mut tx = port.open_tx().unwrap().unwrap();
        assert!(port.open_tx().unwrap().is_none(), "one queue only");
        let mut packets = vec![Packet::from_bytes(&[1; 60]), Packet::from_bytes(&[2; 61])];
        let sent = tx.transmit(Instant::now(), &mut Pool::new(), &mut packets);
        assert_eq!(sent, Sent { packets: 2, bytes: 121, ..Sent::default() });
        assert!(packets.is_empty());
        let capture = Capture::load(&path, 1 << 20).unwrap();
        assert_eq!((capture.frame(0), capture.frame(1)), (&[1; 60][..], &[2; 61][..]));
        drop(tx);
        assert!(port.open_tx().unwrap().is_some(), "free again");
    }

    #[test]
    fn what_cannot_be_replayed_is_one_line_that_says_why() {
        let (directory, path) = capture(1);
        let text = |options: &str| port(options).err().unwrap().to_string();
        assert!(text("rx=/nowhere").starts_with("port p: rx=/nowhere: No such file"));
        assert_eq!(text("pace=slow"), "port p: option pace=slow: recorded, asap or packets per second are needed");
        assert_eq!(text("loop=0"), "port p: option loop=0: yes, no or a number of rounds is needed");
        assert!(text(&format!("rx={path},pace=asap,rate=3")).contains("either pace or rate"));
        std::fs::write(directory.path().join("odd"), "text").unwrap();
        assert!(text(&format!("rx={}/odd", directory.path().display())).ends_with("neither a pcap nor a pcapng file"));
        assert!(text("tx=/nowhere/x").starts_with("port p: tx=/nowhere/x: No such file"));
    }
}
