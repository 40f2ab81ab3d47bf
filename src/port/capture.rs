//! Capture files: [`Capture`] reads pcap (micro- and nanoseconds, either byte order) and pcapng; [`Recorder`] writes pcap with
//! nanoseconds.
//!
//! A capture is held in memory whole, under a limit, and checked to its last byte before it is used, so that replaying
//! cannot fail. Only Ethernet frames are taken. A frame that was cut when captured is replayed as it was cut.
//!
//! Formats: draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use pcap_file::pcap::PcapParser;
use pcap_file::pcapng::PcapNgParser;
use pcap_file::pcapng::blocks::interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption};
use pcap_file::{DataLink, Endianness, PcapError, TsResolution};

use crate::packet::{MAX_FRAME, Packet};

/// A capture file, in memory.
#[derive(Debug, Default)]
pub struct Capture {
    file: Vec<u8>,
    frames: Vec<Place>,
}

/// Where a frame lies in the file.
#[derive(Clone, Copy, Debug)]
struct Place {
    start: usize,
    len: usize,
    captured_ns: u64,
}

/// Why a capture cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("not a regular file")]
    NotAFile,
    #[error("the file is larger than {limit} bytes, the limit")]
    TooLarge { limit: u64 },
    #[error("neither a pcap nor a pcapng file")]
    Format,
    #[error("link type {found} is not Ethernet (1)")]
    LinkType { found: u32 },
    #[error("the file ends in the middle of a record, after frame {frames}")]
    Short { frames: usize },
    #[error("after frame {frames}: {what}")]
    Malformed { frames: usize, what: String },
    #[error("frame {frame} has {len} bytes; at most {MAX_FRAME} can be replayed")]
    TooLong { frame: usize, len: usize },
}

impl Capture {
    /// Reads the file at `path`, of at most `limit` bytes.
    pub fn load(path: &Path, limit: u64) -> Result<Capture, CaptureError> {
        // Asked before opening: opening a FIFO would wait for its writer.
        let about = std::fs::metadata(path)?;
        if !about.is_file() {
            return Err(CaptureError::NotAFile);
        }
        if about.len() > limit {
            return Err(CaptureError::TooLarge { limit });
        }
        let mut file = Vec::new();
        File::open(path)?.take(limit.saturating_add(1)).read_to_end(&mut file)?;
        if file.len() as u64 > limit {
            return Err(CaptureError::TooLarge { limit });
        }
        Capture::parse(file)
    }

    /// Reads a file's bytes.
    pub fn parse(file: Vec<u8>) -> Result<Capture, CaptureError> {
        let frames = match file.first_chunk() {
            Some([0x0a, 0x0d, 0x0d, 0x0a]) => pcapng_frames(&file)?,
            Some(
                [0xa1, 0xb2, 0xc3, 0xd4]
                | [0xd4, 0xc3, 0xb2, 0xa1]
                | [0xa1, 0xb2, 0x3c, 0x4d]
                | [0x4d, 0x3c, 0xb2, 0xa1],
            ) => pcap_frames(&file)?,
            _ => return Err(CaptureError::Format),
        };
        match frames.iter().position(|frame| frame.len > MAX_FRAME) {
            Some(i) => Err(CaptureError::TooLong { frame: i + 1, len: frames[i].len }),
            None => Ok(Capture { file, frames }),
        }
    }

    /// Frames in it.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// The `i`th frame from 0, below [`Capture::len`].
    pub fn frame(&self, i: usize) -> &[u8] {
        let Place { start, len, .. } = self.frames[i];
        &self.file[start..start + len]
    }

    /// When the `i`th frame was captured, in nanoseconds since the Unix epoch; 0 when the file does not say.
    pub fn captured_ns(&self, i: usize) -> u64 {
        self.frames[i].captured_ns
    }
}

fn failed(error: PcapError, frames: usize) -> CaptureError {
    match error {
        PcapError::IncompleteBuffer => CaptureError::Short { frames },
        PcapError::IoError(error) => CaptureError::Io(error),
        other => CaptureError::Malformed { frames, what: other.to_string() },
    }
}

fn ethernet(link: DataLink) -> Result<(), CaptureError> {
    match link {
        DataLink::ETHERNET => Ok(()),
        other => Err(CaptureError::LinkType { found: other.into() }),
    }
}

fn pcap_frames(file: &[u8]) -> Result<Vec<Place>, CaptureError> {
    const RECORD_HEADER: usize = 16;
    let mut frames = Vec::new();
    let (mut rest, parser) = PcapParser::new(file).map_err(|error| failed(error, 0))?;
    ethernet(parser.header().datalink)?;
    let unit = match parser.header().ts_resolution {
        TsResolution::MicroSecond => 1_000,
        TsResolution::NanoSecond => 1,
    };
    while !rest.is_empty() {
        let start = file.len() - rest.len() + RECORD_HEADER;
        // Raw, because the cooked reader refuses a frame that was longer on the wire than the file's snapshot length.
        let (behind, record) = parser.next_raw_packet(rest).map_err(|error| failed(error, frames.len()))?;
        let captured_ns = u64::from(record.ts_sec) * 1_000_000_000 + u64::from(record.ts_frac) * unit;
        frames.push(Place { start, len: record.data.len(), captured_ns });
        rest = behind;
    }
    Ok(frames)
}

fn pcapng_frames(file: &[u8]) -> Result<Vec<Place>, CaptureError> {
    const OBSOLETE_PACKET: u32 = 2;
    const SIMPLE_PACKET: u32 = 3;
    const ENHANCED_PACKET: u32 = 6;
    const BLOCK_HEADER: usize = 8;
    let mut frames = Vec::new();
    let (mut rest, mut parser) = PcapNgParser::new(file).map_err(|error| failed(error, 0))?;
    while !rest.is_empty() {
        let body_start = file.len() - rest.len() + BLOCK_HEADER;
        // Raw, because the cooked reader panics on some name resolution blocks; the library reads sections and interfaces, we the packets.
        let (behind, block) = parser.next_raw_block(rest).map_err(|error| failed(error, frames.len()))?;
        rest = behind;
        let body = &block.body[..];
        let big = parser.section().endianness == Endianness::Big;
        let malformed = |what: &str| CaptureError::Malformed { frames: frames.len(), what: what.to_owned() };
        let word = |at: usize| match body.get(at..at + 4) {
            Some(&[a, b, c, d]) if big => Ok(u32::from_be_bytes([a, b, c, d])),
            Some(&[a, b, c, d]) => Ok(u32::from_le_bytes([a, b, c, d])),
            _ => Err(malformed("a packet block is too short for its fields")),
        };
        let (interface, time, header, len) = match block.type_ {
            ENHANCED_PACKET => (word(0)?, Some((word(4)?, word(8)?)), 20, word(12)? as usize),
            OBSOLETE_PACKET => {
                let both = word(0)?;
                let interface = if big { both >> 16 } else { both & 0xffff };
                (interface, Some((word(4)?, word(8)?)), 20, word(12)? as usize)
            }
            SIMPLE_PACKET => {
                let snap = parser.interfaces().first().map_or(0, |interface| interface.snaplen);
                let limit = if snap == 0 { u32::MAX } else { snap };
                (0, None, 4, (word(0)?.min(limit) as usize).min(body.len() - 4))
            }
            _ => continue,
        };
        let interface = parser
            .interfaces()
            .get(interface as usize)
            .ok_or_else(|| malformed(&format!("a packet of interface {interface}, which is not described")))?;
        ethernet(interface.linktype)?;
        if body.len().checked_sub(header).is_none_or(|room| room < len) {
            return Err(malformed("a packet is longer than its block"));
        }
        let captured_ns = time.map_or(0, |(high, low)| nanoseconds(u64::from(high) << 32 | u64::from(low), interface));
        frames.push(Place { start: body_start + header, len, captured_ns });
    }
    Ok(frames)
}

/// A timestamp in the unit that its interface states (microseconds, if none), as nanoseconds; capped at what fits.
fn nanoseconds(stamp: u64, interface: &InterfaceDescriptionBlock<'_>) -> u64 {
    let (mut resolution, mut offset_s) = (6, 0);
    for option in &interface.options {
        match option {
            InterfaceDescriptionOption::IfTsResol(value) => resolution = *value,
            InterfaceDescriptionOption::IfTsOffset(value) => offset_s = *value,
            _ => {}
        }
    }
    let stamp = u128::from(stamp);
    let nanos = match resolution {
        binary @ 0x80.. => (stamp * 1_000_000_000) >> (binary & 0x7f),
        decimal @ ..=9 => stamp * 10u128.pow(9 - u32::from(decimal)),
        decimal => 10u128.checked_pow(u32::from(decimal) - 9).map_or(0, |unit| stamp / unit),
    };
    u64::try_from(nanos.saturating_add(u128::from(offset_s) * 1_000_000_000)).unwrap_or(u64::MAX)
}

/// Writes frames to a pcap file with nanoseconds. Clones write to the same file.
///
/// # Thread-safety
/// A lock is taken once for a list of frames: recording is for tests and for looking closely, not for speed.
#[derive(Clone)]
pub struct Recorder(Arc<Mutex<Recording>>);

struct Recording {
    file: File,
    path: String,
    /// One moment on both clocks, to turn an [`Instant`] into a date.
    anchor: (Instant, SystemTime),
    /// A list of frames on its way to the file; kept for its memory.
    buffer: Vec<u8>,
    /// Writing failed: the file may end in the middle of a record, and nothing may follow.
    broken: bool,
}

impl Recorder {
    /// Creates or overwrites the file at `path`.
    pub fn create(path: &Path) -> io::Result<Recorder> {
        const SNAPLEN: u32 = 1 << 18;
        const ETHERNET: u32 = 1;
        let mut file = File::create(path)?;
        let mut header = Vec::with_capacity(24);
        header.extend(0xa1b2_3c4du32.to_le_bytes());
        header.extend(2u16.to_le_bytes());
        header.extend(4u16.to_le_bytes());
        header.extend([0; 8]);
        header.extend(SNAPLEN.to_le_bytes());
        header.extend(ETHERNET.to_le_bytes());
        file.write_all(&header)?;
        let anchor = (Instant::now(), SystemTime::now());
        let path = path.display().to_string();
        Ok(Recorder(Arc::new(Mutex::new(Recording { file, path, anchor, buffer: Vec::new(), broken: false }))))
    }

    /// Writes `packets` to the file before it returns, stamped with the time of their capture if that is known, else with `now`.
    /// `false`: writing failed, now or before, and none of them counts as recorded. The first failure is logged.
    pub fn record(&self, now: Instant, packets: &[Packet]) -> bool {
        let mut recording = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let recording = &mut *recording;
        if recording.broken {
            return false;
        }
        let (instant, date) = recording.anchor;
        let passed = now.saturating_duration_since(instant);
        let now_ns = date.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().saturating_add(passed).as_nanos();
        recording.buffer.clear();
        for packet in packets {
            let ns = match packet.meta.captured_ns {
                0 => u64::try_from(now_ns).unwrap_or(u64::MAX),
                ns => ns,
            };
            let seconds = u32::try_from(ns / 1_000_000_000).unwrap_or(u32::MAX);
            let fraction = (ns % 1_000_000_000) as u32;
            for field in [seconds, fraction, packet.len() as u32, packet.len() as u32] {
                recording.buffer.extend(field.to_le_bytes());
            }
            recording.buffer.extend(packet.bytes());
        }
        if let Err(error) = recording.file.write_all(&recording.buffer) {
            log::warn!("{}: recording ends here: {error}", recording.path);
            recording.broken = true;
        }
        !recording.broken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frames() -> Vec<Vec<u8>> {
        [60, 61, 1_514, 0, 14, 65_549].iter().map(|&len| (0..len).map(|i| (i * 7 + len) as u8).collect()).collect()
    }

    /// A pcap file of [`frames`], one a millisecond from second 1.
    fn pcap(big: bool, nanos: bool) -> Vec<u8> {
        let word = |value: u32| if big { value.to_be_bytes() } else { value.to_le_bytes() };
        let half = |value: u16| if big { value.to_be_bytes() } else { value.to_le_bytes() };
        let mut file = word(if nanos { 0xa1b2_3c4d } else { 0xa1b2_c3d4 }).to_vec();
        file.extend([half(2), half(4)].concat());
        file.extend([word(0), word(0), word(1_000), word(1)].concat());
        for (i, frame) in frames().iter().enumerate() {
            let fraction = i as u32 * if nanos { 1_000_000 } else { 1_000 };
            file.extend([word(1), word(fraction), word(frame.len() as u32), word(frame.len() as u32 + 9)].concat());
            file.extend(frame);
        }
        file
    }

    /// A pcapng file of [`frames`], with blocks of other kinds among them.
    fn pcapng(big: bool, resolution: u8, unit_ns: u64) -> Vec<u8> {
        let word = |value: u32| if big { value.to_be_bytes() } else { value.to_le_bytes() };
        let half = |value: u16| if big { value.to_be_bytes() } else { value.to_le_bytes() };
        let block = |kind: u32, mut body: Vec<u8>| {
            body.resize(body.len().next_multiple_of(4), 0);
            let len = word(body.len() as u32 + 12);
            [&word(kind)[..], &len, &body, &len].concat()
        };
        let mut file = block(0x0a0d_0d0a, [&word(0x1a2b_3c4d)[..], &half(1), &half(0), &[0xff; 8]].concat());
        let option = [&half(9)[..], &half(1), &[resolution, 0, 0, 0], &word(0)].concat();
        file.extend(block(1, [&half(1)[..], &half(0), &word(0), &option].concat()));
        file.extend(block(0xbad, vec![1, 2, 3]));
        for (i, frame) in frames().iter().enumerate() {
            let stamp = (1_000_000_000 + i as u64 * 1_000_000) / unit_ns;
            let len = word(frame.len() as u32);
            let head = [word(0), word((stamp >> 32) as u32), word(stamp as u32), len, len].concat();
            file.extend(block(6, [head, frame.clone()].concat()));
        }
        file
    }

    fn is_the_sample(capture: &Capture) {
        assert_eq!((0..capture.len()).map(|i| capture.frame(i).to_vec()).collect::<Vec<_>>(), frames());
        for i in 0..capture.len() {
            assert_eq!(capture.captured_ns(i), 1_000_000_000 + i as u64 * 1_000_000);
        }
    }

    #[test]
    fn every_variant_of_pcap_is_read() {
        for (big, nanos) in [(false, false), (false, true), (true, false), (true, true)] {
            is_the_sample(&Capture::parse(pcap(big, nanos)).unwrap());
        }
    }

    #[test]
    fn pcapng_is_read_in_either_byte_order_and_any_unit_of_time() {
        for big in [false, true] {
            is_the_sample(&Capture::parse(pcapng(big, 6, 1_000)).unwrap());
            is_the_sample(&Capture::parse(pcapng(big, 9, 1)).unwrap());
        }
    }

    #[test]
    fn simple_packet_blocks_are_as_long_as_they_were_not_padded() {
        let mut file = pcapng(false, 9, 1);
        file.extend([3u32, 20, 5].map(u32::to_le_bytes).concat());
        file.extend([1, 2, 3, 4]);
        file.extend(20u32.to_le_bytes());
        // 5 bytes need 8: this block is short by 4, so the frame is what there is.
        let capture = Capture::parse(file).unwrap();
        assert_eq!(capture.frame(capture.len() - 1), [1, 2, 3, 4]);
    }

    #[test]
    fn a_capture_of_anything_but_ethernet_is_refused() {
        let mut file = pcap(false, false);
        file[20] = 101;
        assert_eq!(Capture::parse(file).unwrap_err().to_string(), "link type 101 is not Ethernet (1)");
        assert_eq!(
            Capture::parse(b"\x1f\x8b\x08\x00 gzip".to_vec()).unwrap_err().to_string(),
            "neither a pcap nor a pcapng file"
        );
        assert!(matches!(Capture::parse(Vec::new()), Err(CaptureError::Format)));
    }

    #[test]
    fn a_file_cut_anywhere_is_read_to_a_frames_end_or_refused() {
        for file in [pcap(false, false), pcapng(true, 6, 1_000)] {
            for cut in (0..2_000).chain((2_000..file.len()).step_by(997)) {
                match Capture::parse(file[..cut].to_vec()) {
                    Ok(capture) => assert!(capture.len() < frames().len()),
                    Err(CaptureError::Short { .. } | CaptureError::Format | CaptureError::Malformed { .. }) => {}
                    Err(other) => panic!("cut at {cut}: {other}"),
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_a_capture_is_named() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(Capture::load(directory.path(), 1 << 20), Err(CaptureError::NotAFile)));
        assert!(matches!(Capture::load(Path::new("/dev/zero"), 1 << 20), Err(CaptureError::NotAFile)));
        let path = directory.path().join("large.pcap");
        std::fs::write(&path, pcap(false, false)).unwrap();
        assert!(matches!(Capture::load(&path, 1_000), Err(CaptureError::TooLarge { limit: 1_000 })));
        assert!(Capture::load(&path, 1 << 20).is_ok());
        assert!(matches!(Capture::load(&directory.path().join("none"), 1), Err(CaptureError::Io(_))));
    }

    #[test]
    fn what_was_recorded_is_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out.pcap");
        let recorder = Recorder::create(&path).unwrap();
        let packets: Vec<Packet> = frames()
            .iter()
            .enumerate()
            .map(|(i, frame)| {
                let mut packet = Packet::from_bytes(frame);
                packet.meta.captured_ns = 1_000_000_000 + i as u64 * 1_000_000;
                packet
            })
            .collect();
        assert!(recorder.record(Instant::now(), &packets[..2]));
        // On the disk after each list, while the recorder lives.
        assert_eq!(Capture::load(&path, 1 << 20).unwrap().len(), 2);
        assert!(recorder.clone().record(Instant::now(), &packets[2..]));
        is_the_sample(&Capture::load(&path, 1 << 20).unwrap());
    }

    #[test]
    fn a_full_disk_is_told_and_ends_the_recording() {
        let recorder = Recorder::create(Path::new("/dev/full"));
        // Either the header cannot be written, or the first frame cannot.
        assert!(recorder.is_err() || !recorder.unwrap().record(Instant::now(), &[Packet::from_bytes(&[0; 60])]));
    }

    proptest! {
        #[test]
        fn a_damaged_file_never_makes_reading_panic(
            which in 0usize..3, damage in proptest::collection::vec((0usize..400, any::<u8>()), 1..12),
        ) {
            let mut file = match which {
                0 => pcap(false, false),
                1 => pcapng(false, 6, 1_000),
                _ => pcapng(true, 0x80 | 30, 1),
            };
            for (at, value) in damage {
                file[at] = value;
            }
            if let Ok(capture) = Capture::parse(file) {
                for i in 0..capture.len() {
                    prop_assert!(capture.frame(i).len() <= MAX_FRAME);
                }
            }
        }
    }
}
