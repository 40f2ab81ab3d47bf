//! Where stations are: [`MacTable`], what `normal` learns from senders and asks for receivers.
//!
//! # Thread-safety
//! Shared by all pollers, a lock per shard. Only upcalls and sweeps come here, never a hit. The epoch rises after a change can be
//! seen, so whoever finds the epoch unmoved since before a look-up may keep what it found.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use std::hash::BuildHasher;

use crate::flow::PortNo;

/// A question that a decision asked, and its answer then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// 0 for packets without a tag.
    pub vlan: u16,
    pub mac: u64,
    pub found: Option<PortNo>,
}

/// Somebody who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Station {
    /// 0 for packets without a tag.
    pub vlan: u16,
    pub mac: u64,
    pub port: PortNo,
}

/// What learning a station changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    New,
    Moved,
    /// Nothing but its age.
    Refreshed,
    /// Nothing: no station has a group address, or somebody saw it elsewhere since.
    Not,
}

/// The stations known, by VLAN and address.
///
/// Bounded: each of the shards holds its part of the limit. When a new station finds its shard full, the port with the
/// most stations in that shard loses its oldest one; so a port that floods the table pushes out its own.
pub struct MacTable {
    shards: Vec<Mutex<Shard>>,
    per_shard: usize,
    ageing: Duration,
    hasher: RandomState,
    epoch: AtomicU64,
    events: Events,
}

/// What happened to stations so far.
#[derive(Default)]
struct Events {
    learned: AtomicU64,
    moved: AtomicU64,
    expired: AtomicU64,
    evicted: AtomicU64,
}

/// What happened to stations so far, and what there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct MacCounts {
    pub stations: usize,
    pub limit: usize,
    /// Of the stations, those put there by hand.
    pub fixed: usize,
    pub learned: u64,
    pub expired: u64,
    /// Pushed out by others.
    pub evicted: u64,
    pub moved: u64,
}

/// A station as dumps show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StationView {
    pub station: Station,
    /// Since it was last heard of; `None`: put there by hand.
    pub age: Option<Duration>,
}

type Shard = HashMap<(u16, u64), Entry, RandomState>;

#[derive(Clone, Copy)]
struct Entry {
    port: PortNo,
    used: Instant,
    /// Put there by hand: it neither ages nor moves.
    fixed: bool,
}

/// The group bit of an Ethernet address.
pub(super) fn is_multicast(mac: u64) -> bool {
    mac & (1 << 40) != 0
}

impl MacTable {
    /// For at most `limit` stations (at least one), forgotten after `ageing` without a packet.
    pub fn new(limit: usize, ageing: Duration) -> MacTable {
        let shards = (limit / 64).clamp(1, 16);
        MacTable {
            shards: (0..shards).map(|_| Mutex::new(Shard::default())).collect(),
            per_shard: (limit / shards).max(1),
            ageing,
            hasher: RandomState::default(),
            epoch: AtomicU64::new(0),
            events: Events::default(),
        }
    }

    /// Rises whenever a station appears, moves or goes.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// A packet from `station` came just now.
    pub fn learn(&self, station: Station, now: Instant) -> Learned {
        self.note(station, now, true)
    }

    /// A megaflow carried packets from `station`, the last of them at `used`: keeps it fresh, or learns it again.
    /// When it was seen at another port since, that stands.
    pub fn refresh(&self, station: &Station, used: Instant) -> Learned {
        self.note(*station, used, false)
    }

    fn note(&self, station: Station, used: Instant, surely: bool) -> Learned {
        if is_multicast(station.mac) {
            return Learned::Not;
        }
        let id = (station.vlan, station.mac);
        let mut shard = self.shard(id);
        let learned = match shard.get_mut(&id) {
            Some(entry) if entry.fixed => match entry.port == station.port {
                true => Learned::Refreshed,
                false => Learned::Not,
            },
            Some(entry) if entry.port == station.port => {
                entry.used = entry.used.max(used);
                Learned::Refreshed
            }
            Some(entry) if surely || used > entry.used => {
                *entry = Entry { port: station.port, used, fixed: false };
                self.events.moved.fetch_add(1, Ordering::Relaxed);
                Learned::Moved
            }
            Some(_) => Learned::Not,
            None => {
                if shard.len() >= self.per_shard {
                    if !make_room(&mut shard) {
                        return Learned::Not;
                    }
                    self.events.evicted.fetch_add(1, Ordering::Relaxed);
                }
                shard.insert(id, Entry { port: station.port, used, fixed: false });
                self.events.learned.fetch_add(1, Ordering::Relaxed);
                Learned::New
            }
        };
        drop(shard);
        if matches!(learned, Learned::New | Learned::Moved) {
            self.raise_epoch();
        }
        learned
    }

    pub fn lookup(&self, vlan: u16, mac: u64) -> Lookup {
        let found = self.shard((vlan, mac)).get(&(vlan, mac)).map(|e| e.port);
        Lookup { vlan, mac, found }
    }

    /// Whether asking again would give the same answer.
    pub fn still_true(&self, lookup: &Lookup) -> bool {
        self.lookup(lookup.vlan, lookup.mac) == *lookup
    }

    /// Puts a station where it is to stay, whatever is heard of it elsewhere. `false`: there is no room left that is not taken by hand.
    pub fn fix(&self, station: Station, now: Instant) -> bool {
        let id = (station.vlan, station.mac);
        let mut shard = self.shard(id);
        if !shard.contains_key(&id) && shard.len() >= self.per_shard && !make_room(&mut shard) {
            return false;
        }
        shard.insert(id, Entry { port: station.port, used: now, fixed: true });
        drop(shard);
        self.raise_epoch();
        true
    }

    /// Forgets a station; whether it was known.
    pub fn forget(&self, vlan: u16, mac: u64) -> bool {
        let known = self.shard((vlan, mac)).remove(&(vlan, mac)).is_some();
        if known {
            self.raise_epoch();
        }
        known
    }

    /// Forgets every station without a packet for the ageing time; how many those were.
    pub fn expire(&self, now: Instant) -> usize {
        let expired = self.retain(|entry| entry.fixed || now.saturating_duration_since(entry.used) < self.ageing);
        self.events.expired.fetch_add(expired as u64, Ordering::Relaxed);
        expired
    }

    /// Forgets every station at `port`, or with `None` every station that was learned; how many those were.
    pub fn flush(&self, port: Option<PortNo>) -> usize {
        self.retain(|entry| match port {
            Some(port) => port != entry.port,
            None => entry.fixed,
        })
    }

    /// What there is, and what happened so far.
    pub fn counts(&self) -> MacCounts {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let mut counts = MacCounts {
            limit: self.per_shard * self.shards.len(),
            learned: read(&self.events.learned),
            expired: read(&self.events.expired),
            evicted: read(&self.events.evicted),
            moved: read(&self.events.moved),
            ..MacCounts::default()
        };
        for shard in &self.shards {
            let shard = lock(shard);
            counts.stations += shard.len();
            counts.fixed += shard.values().filter(|entry| entry.fixed).count();
        }
        counts
    }

    fn retain(&self, keep: impl Fn(&Entry) -> bool) -> usize {
        let mut gone = 0;
        for shard in &self.shards {
            let mut shard = lock(shard);
            let before = shard.len();
            shard.retain(|_, entry| keep(entry));
            gone += before - shard.len();
        }
        if gone > 0 {
            self.raise_epoch();
        }
        gone
    }

    /// Every station, by port, VLAN and address.
    pub fn dump(&self, now: Instant) -> Vec<StationView> {
        let mut all = Vec::new();
        for shard in &self.shards {
            for (&(vlan, mac), entry) in lock(shard).iter() {
                let station = Station { vlan, mac, port: entry.port };
                let age = (!entry.fixed).then(|| now.saturating_duration_since(entry.used));
                all.push(StationView { station, age });
            }
        }
        all.sort_by_key(|view| (view.station.port, view.station.vlan, view.station.mac));
        all
    }

    fn shard(&self, id: (u16, u64)) -> MutexGuard<'_, Shard> {
        lock(&self.shards[self.hasher.hash_one(id) as usize % self.shards.len()])
    }

    fn raise_epoch(&self) {
        self.epoch.fetch_add(1, Ordering::Release);
    }
}

/// Every change of a shard is one call that leaves it whole, so a poisoned one is as good as any.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Forgets the oldest station of the port that has learned the most; `false` if all are there by hand.
fn make_room(shard: &mut Shard) -> bool {
    let mut ports: HashMap<PortNo, usize, RandomState> = HashMap::default();
    for entry in shard.values().filter(|entry| !entry.fixed) {
        *ports.entry(entry.port).or_default() += 1;
    }
    let fullest = ports.iter().max_by_key(|(port, count)| (**count, **port)).map(|(port, _)| *port);
    let learned = shard.iter().filter(|(_, e)| !e.fixed && Some(e.port) == fullest);
    let oldest = learned.min_by_key(|(id, e)| (e.used, **id)).map(|(id, _)| *id);
    oldest.is_some_and(|id| shard.remove(&id).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGEING: Duration = Duration::from_secs(300);

    fn station(mac: u64, port: u32) -> Station {
        Station { vlan: 0, mac, port: PortNo(port) }
    }

    #[test]
    fn a_station_is_found_where_it_sent_last_and_only_in_its_vlan() {
        let (table, now) = (MacTable::new(8192, AGEING), Instant::now());
        assert_eq!(table.learn(station(2, 1), now), Learned::New);
        assert_eq!(table.learn(station(2, 1), now), Learned::Refreshed);
        assert_eq!(table.lookup(0, 2).found, Some(PortNo(1)));
        assert_eq!(table.lookup(7, 2).found, None);
        let before = table.lookup(0, 2);
        assert!(table.still_true(&before));
        assert_eq!(table.learn(station(2, 3), now), Learned::Moved);
        assert!(!table.still_true(&before));
    }

    #[test]
    fn the_epoch_rises_with_what_is_found_and_not_with_ages() {
        let (table, now) = (MacTable::new(8192, AGEING), Instant::now());
        let mut epochs = vec![table.epoch()];
        table.learn(station(2, 1), now);
        epochs.push(table.epoch());
        table.learn(station(2, 2), now);
        epochs.push(table.epoch());
        table.learn(station(2, 2), now + AGEING);
        table.refresh(&station(2, 2), now + AGEING);
        assert_eq!(table.epoch(), epochs[2]);
        assert_eq!(table.expire(now + AGEING), 0);
        assert_eq!(table.epoch(), epochs[2]);
        assert_eq!(table.expire(now + 2 * AGEING), 1);
        epochs.push(table.epoch());
        table.learn(station(2, 2), now);
        epochs.push(table.epoch());
        assert_eq!(table.flush(Some(PortNo(1))), 0);
        assert_eq!(table.flush(Some(PortNo(2))), 1);
        epochs.push(table.epoch());
        assert!(epochs.is_sorted_by(|a, b| a < b), "{epochs:?}");
    }

    #[test]
    fn a_group_address_is_never_learned() {
        let table = MacTable::new(8192, AGEING);
        assert_eq!(table.learn(station(0x0100_5e00_0001, 1), Instant::now()), Learned::Not);
        assert!(table.dump(Instant::now()).is_empty());
    }

    #[test]
    fn an_old_megaflow_does_not_move_a_station_back() {
        let (table, now) = (MacTable::new(8192, AGEING), Instant::now());
        let later = now + Duration::from_secs(1);
        table.learn(station(2, 2), later);
        assert_eq!(table.refresh(&station(2, 1), now), Learned::Not);
        assert_eq!(table.refresh(&station(2, 1), later + Duration::from_secs(1)), Learned::Moved);
    }

    #[test]
    fn a_port_that_floods_a_full_table_pushes_out_its_own_stations() {
        let (table, start) = (MacTable::new(10, AGEING), Instant::now());
        table.learn(station(2, 1), start);
        for i in 0..1000 {
            table.learn(station(0x1000 + i, 2), start + Duration::from_secs(1 + i));
        }
        let dump = table.dump(start);
        assert_eq!(dump.len(), 10);
        assert_eq!(table.lookup(0, 2).found, Some(PortNo(1)));
        assert_eq!(table.lookup(0, 0x1000 + 999).found, Some(PortNo(2)));
        assert_eq!(table.lookup(0, 0x1000).found, None);
    }
}
