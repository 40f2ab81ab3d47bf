//! The action `normal`: a learning switch in two questions, where the sender is and where the receiver is.
//!
//! A packet's VLAN is the vid of its outermost tag, 802.1Q or 802.1ad, and 0 without a tag; every port carries every VLAN.

use super::decide::{Stop, Trip};
use super::learn::{Station, is_multicast};
use crate::flow::Field;

/// Addresses that a bridge keeps to itself (IEEE 802.1Q table 8-1), but for the last four bits.
const RESERVED: u64 = 0x0180_c200_0000;

impl Trip<'_> {
    /// Learns the sender; sends to the receiver's port, or everywhere when that is unknown or a group. Drops what is for
    /// bridges only, and what came from where its receiver is.
    pub(super) fn normal(&mut self) -> Result<(), Stop> {
        let receiver = self.look(Field::EthDst) as u64;
        if receiver & !0xf == RESERVED {
            return Ok(());
        }
        // Of a packet without a tag it is 0, and known: no bit of such a packet counts as looked at.
        let vlan = self.look(Field::Vlan0Vid) as u16;
        let sender = self.look(Field::EthSrc) as u64;
        if !is_multicast(sender) && self.world.ports.contains(self.ingress) {
            let station = Station { vlan, mac: sender, port: self.ingress };
            self.learned = Some(station);
            if self.learn {
                self.stations.learn(station, self.now);
            }
        }
        if is_multicast(receiver) {
            return self.flood();
        }
        let lookup = self.stations.lookup(vlan, receiver);
        self.lookups.push(lookup);
        // A poller that still saw a port may have learned a station there after the port's stations were forgotten.
        match lookup.found.filter(|port| self.world.ports.contains(*port)) {
            Some(port) if port == self.ingress => Ok(()),
            Some(port) => self.output(port),
            None => self.flood(),
        }
    }
}
