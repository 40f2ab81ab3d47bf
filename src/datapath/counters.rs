//! What a poller counts. The groups below are partitions: each packet received is in exactly one count of *lookup*,
//! each packet that leaves or dies in exactly one of *fate*.

use crossbeam_utils::CachePadded;

use crate::telemetry::{Counter, Histogram};

/// Declares counters with the names that operators see.
macro_rules! counters {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident,)* }) => {
        $(#[$doc])*
        #[derive(Default, Debug)]
        pub struct $name { $($(#[$field_doc])* pub $field: Counter,)* }

        impl $name {
            /// Every count with its name, in the order of declaration.
            pub fn list(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($field), self.$field.get()),)*]
            }

            /// The count of this name; 0 for a name that there is not.
            pub fn get(&self, name: &str) -> u64 {
                self.list().into_iter().find(|(known, _)| *known == name).map_or(0, |(_, n)| n)
            }

            /// Raises every count by what `other` has counted.
            pub fn add(&self, other: &$name) {
                $(self.$field.add(other.$field.get());)*
            }

            /// What was counted since `earlier`, a reading of these counts.
            pub fn since(&self, earlier: &$name) -> $name {
                let since = $name::default();
                $(since.$field.set(self.$field.get().saturating_sub(earlier.$field.get()));)*
                since
            }
        }
    };
}

counters! {
    /// How a packet's flow was found: the sum is the packets received.
    Lookup {
        /// By the mark that the device stamped on it.
        mark_hit,
        /// In the exact-match cache.
        emc_hit,
        /// In the classifier.
        megaflow_hit,
        /// Not at all; decided, and the megaflow installed.
        upcall_installed,
        /// Not at all; decided, and not installed because there are as many flows as there may be.
        upcall_flow_limit,
        /// Shorter than an Ethernet header: dropped without a lookup.
        runt,
    }
}

impl Lookup {
    /// Packets whose flow was found, and those that had to be decided.
    pub fn hits_and_misses(&self) -> (u64, u64) {
        let hits = self.mark_hit.get() + self.emc_hit.get() + self.megaflow_hit.get();
        (hits, self.upcall_installed.get() + self.upcall_flow_limit.get())
    }
}

counters! {
    /// What became of packets and their copies. A packet that goes to three ports is in three counts.
    Fate {
        /// Handed to an output port's queue.
        sent,
        /// Its actions end without an output.
        dropped_by_action,
        /// No rule of table 0 matches it.
        dropped_no_rule,
        /// Its rules lead through too many tables.
        dropped_too_deep,
        /// `dec_ttl` found a TTL of 1 or 0 before any output.
        dropped_ttl,
        /// Its output port is gone.
        dropped_no_port,
        /// Longer than its output port's MTU allows.
        dropped_too_long,
        /// No room in front of it for another VLAN tag.
        dropped_no_headroom,
        /// The sender's kernel left work that cannot be finished.
        dropped_malformed_offload,
        /// The output port had no room.
        dropped_port_full,
        /// The output port refused it.
        dropped_port_failed,
    }
}

counters! {
    /// The poller's own doings.
    Doings {
        /// Turns of the loop.
        iterations,
        /// Turns that received a packet.
        busy_iterations,
        /// Times that it slept on its ports.
        sleeps,
        /// Nanoseconds slept.
        slept_ns,
        /// Nanoseconds of busy turns.
        busy_ns,
        /// Nanoseconds in upcalls.
        upcall_ns,
        /// Subtables asked for the packets that the classifier found.
        subtable_probes,
        /// Batches with packets that were received.
        batches,
        /// Batches handed to output ports.
        tx_batches,
        /// Flows that a changed rule, port or station had decided anew.
        revalidated,
        /// …and whose actions changed.
        modified,
        /// Flows deleted because their decision now looks at more than they say.
        deleted_stale,
        /// Flows deleted because no packet came.
        deleted_idle,
        /// Flows asked for with a mark that no flow is bound to.
        mark_unbound,
    }
}

/// The counts of one poller.
///
/// # Thread-safety
/// The poller writes; anybody reads.
#[derive(Default, Debug)]
pub struct PollerCounters {
    pub lookup: CachePadded<Lookup>,
    pub fate: CachePadded<Fate>,
    pub doings: CachePadded<Doings>,
    /// Nanoseconds of each busy turn.
    pub turns: Histogram,
}

impl PollerCounters {
    /// Raises every count by what `other` has counted.
    pub fn add(&self, other: &PollerCounters) {
        self.lookup.add(&other.lookup);
        self.fate.add(&other.fate);
        self.doings.add(&other.doings);
        self.turns.add(&other.turns);
    }

    /// What was counted since `earlier`, a reading of these counts.
    pub fn since(&self, earlier: &PollerCounters) -> PollerCounters {
        PollerCounters {
            lookup: self.lookup.since(&earlier.lookup).into(),
            fate: self.fate.since(&earlier.fate).into(),
            doings: self.doings.since(&earlier.doings).into(),
            turns: self.turns.since(&earlier.turns),
        }
    }

    /// The counts as they are now.
    pub fn read(&self) -> PollerCounters {
        self.since(&PollerCounters::default())
    }
}

counters! {
    /// What one poller received from and sent to one port.
    PortCounters {
        rx_packets,
        rx_bytes,
        /// Frames that the device dropped before we took them.
        rx_missed,
        tx_packets,
        tx_bytes,
        /// The device had no room.
        tx_full,
        /// The device refused the frame.
        tx_failed,
        /// Longer than the MTU allows.
        tx_too_long,
    }
}

counters! {
    /// What one receive queue brought, whichever poller had it.
    RxCounters {
        /// Packets taken out of it, those included that the device dealt with by itself.
        packets,
        /// Nanoseconds that pollers were busy with it: of each busy turn, the share that its packets had in it.
        busy_ns,
    }
}
