//! The simulated NIC reads packets by code of its own. Here it is held against the datapath's: whatever match is put into
//! it, it must stamp exactly the packets that the datapath says match. So neither can be wrong alone and go unnoticed.

use std::collections::HashSet;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use offloadd::flow::field::FIELDS;
use offloadd::flow::{Actions, Key, Mask, Match, PortNo};
use offloadd::offload::Level;
use offloadd::offload::backend::sim::{Nic, Options, Sim};
use offloadd::offload::backend::{Device, Install};
use offloadd::offload::mark::Mark;
use offloadd::packet::extract::extract;
use offloadd::packet::{BATCH, Packet, Pool};
use offloadd::port::{Kind, PortInfo, RxQueue};

use crate::capture;

/// Matches put at a time.
const RULES: usize = 3;

/// A receive queue that delivers what the test gives it.
struct Given(Vec<Packet>);

impl RxQueue for Given {
    fn receive(&mut self, _now: Instant, _pool: &mut Pool, into: &mut Vec<Packet>) -> io::Result<usize> {
        into.append(&mut self.0);
        Ok(into.len())
    }

    fn readable(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

fn port() -> PortInfo {
    PortInfo {
        name: "p1".into(),
        number: PortNo(1),
        kind: Kind::Sim,
        ifindex: None,
        rx_queues: 1,
        tx_checksum: false,
        tx_segment: false,
        ring: 64,
    }
}

fn packets(frames: &[Vec<u8>]) -> Vec<Packet> {
    frames
        .iter()
        .map(|bytes| {
            let mut packet = Packet::from_bytes(bytes);
            packet.meta.in_port = PortNo(1);
            packet
        })
        .collect()
}

/// The marks that the NIC stamps on `frames` while `matches[i]` is in it with mark i + 1.
fn stamped(nic: &Arc<Nic>, matches: &[Match], frames: &[Vec<u8>], sabotage: bool) -> Vec<Option<usize>> {
    let mut device = Sim::new(Arc::clone(nic), Options::default()).channel();
    let actions = Actions::drop();
    let handles: Vec<_> = matches
        .iter()
        .zip(1..)
        .map(|(matching, mark)| {
            let mark = Mark::new(mark).unwrap();
            let install = Install { matching, actions: &actions, mark, level: Level::Mark, in_port: Some(PortNo(1)) };
            device.put(install).unwrap().0
        })
        .collect();
    if sabotage {
        assert!(nic.corrupt());
    }
    let mut marks = Vec::new();
    for chunk in frames.chunks(BATCH) {
        let mut queue = nic.wrap_rx(&port(), Box::new(Given(packets(chunk))));
        let mut out = Vec::new();
        queue.receive(Instant::now(), &mut Pool::new(), &mut out).unwrap();
        marks.extend(out.iter().map(|packet| packet.meta.mark.map(|mark| mark.index() - 1)));
    }
    for handle in handles {
        device.delete(handle).unwrap();
    }
    marks
}

/// Numbers that look random and are the same every time (Marsaglia's xorshift).
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

/// A match that `key` satisfies: some of its fields, some of those in part.
fn some_match(key: &Key, dice: &mut Dice) -> Match {
    let mut mask = Mask::EMPTY;
    for _ in 0..2 + dice.below(7) {
        let field = FIELDS[dice.below(FIELDS.len())].field;
        match dice.below(3) {
            0 => mask.add(field, (u128::from(dice.0) << 64 | u128::from(dice.0.rotate_left(17))) & field.full()),
            _ => mask.add_field(field),
        }
    }
    Match::new(key, &mask)
}

fn distinct(matches: impl Iterator<Item = Match>) -> Vec<Match> {
    let mut seen = HashSet::new();
    matches.filter(|m| seen.insert(*m)).collect()
}

/// The frames of a capture, and the same with bytes changed or cut off at random.
fn frames() -> Vec<Vec<u8>> {
    let mut dice = Dice(0x5eed);
    let mut frames: Vec<Vec<u8>> = capture::generate(7, 6_000).into_iter().map(|frame| frame.bytes).collect();
    for i in 0..frames.len() {
        let mut bytes = frames[i].clone();
        for _ in 0..1 + dice.below(3) {
            // The headers, where changes matter.
            let at = dice.below(bytes.len().min(80));
            bytes[at] = dice.below(256) as u8;
        }
        if dice.below(4) == 0 {
            bytes.truncate(14 + dice.below(bytes.len() - 13));
        }
        frames.push(bytes);
    }
    frames
}

#[test]
fn the_nic_stamps_exactly_the_packets_that_the_datapath_says_match() {
    let frames = frames();
    let keys: Vec<Key> = packets(&frames).iter().map(extract).collect();
    let nic = Nic::new(Instant::now());
    let mut dice = Dice(0xd1ce);
    let (mut hits, mut misses) = (0, 0);
    for chunk in (0..frames.len()).collect::<Vec<_>>().chunks(4 * BATCH) {
        let matches = distinct((0..RULES).map(|_| some_match(&keys[chunk[dice.below(chunk.len())]], &mut dice)));
        let marks = stamped(&nic, &matches, &frames[chunk[0]..=chunk[chunk.len() - 1]], false);
        for (&i, mark) in chunk.iter().zip(&marks) {
            match mark {
                Some(rule) => assert!(
                    matches[*rule].matches(&keys[i]),
                    "stamped, though {:?} does not match {:?}\nframe {:02x?}",
                    matches[*rule],
                    keys[i],
                    frames[i]
                ),
                None => {
                    let missed = matches.iter().find(|m| m.matches(&keys[i]));
                    assert!(missed.is_none(), "not stamped: {missed:?}\nkey {:?}\nframe {:02x?}", keys[i], frames[i]);
                }
            }
        }
        hits += marks.iter().flatten().count();
        misses += marks.iter().filter(|mark| mark.is_none()).count();
    }
    // Both verdicts were really tried.
    assert!(hits > 2_000 && misses > 2_000, "{hits} hits, {misses} misses");
}

#[test]
fn every_exact_key_is_stamped() {
    let frames = frames();
    let keys: Vec<Key> = packets(&frames).iter().map(extract).collect();
    let nic = Nic::new(Instant::now());
    for (frames, keys) in frames.chunks(BATCH).zip(keys.chunks(BATCH)) {
        let mut exact = Mask::EMPTY;
        FIELDS.iter().for_each(|def| exact.add_field(def.field));
        let matches = distinct(keys.iter().map(|key| Match::new(key, &exact)));
        for (i, mark) in stamped(&nic, &matches, frames, false).into_iter().enumerate() {
            let rule = mark.unwrap_or_else(|| panic!("not stamped: key {:?}\nframe {:02x?}", keys[i], frames[i]));
            assert!(matches[rule].matches(&keys[i]));
        }
    }
}

#[test]
fn a_nic_that_lies_is_noticed() {
    let frames = frames();
    let keys: Vec<Key> = packets(&frames[..64]).iter().map(extract).collect();
    let mut exact = Mask::EMPTY;
    FIELDS.iter().for_each(|def| exact.add_field(def.field));
    let first = Match::new(&keys[0], &exact);
    let other = keys.iter().map(|key| Match::new(key, &exact)).find(|m| *m != first).unwrap();
    let marks = stamped(&Nic::new(Instant::now()), &[first, other], &frames[..1], true);
    let rule = marks[0].expect("the swapped mark is stamped");
    assert!(![first, other][rule].matches(&keys[0]), "the comparison of the other tests would fail");
}
