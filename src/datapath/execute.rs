//! Doing what a flow's actions say, to all packets of a batch that belong to it.

use super::counters::Fate;
use super::output::Outputs;
use crate::flow::{Action, Actions, PortNo};
use crate::packet::edit::{self, EditError};
use crate::packet::{Packet, Pool};
use crate::slowpath::DropReason;

/// Actions in short: the two usual kinds are told without a look at the list, which lies in memory of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// No packet leaves, and why.
    Drop(DropReason),
    /// Packets leave by one port as they are.
    Output(PortNo),
    /// Anything else: as the list says.
    List,
}

impl Way {
    /// `dropped`: why nothing leaves, where a decision says so; else the actions themselves are the reason.
    pub fn of(actions: &Actions, dropped: Option<DropReason>) -> Way {
        match **actions {
            [Action::Output(port)] => Way::Output(port),
            _ if actions.is_drop() => Way::Drop(dropped.unwrap_or(DropReason::Rule)),
            _ => Way::List,
        }
    }
}

/// Executes `actions`, which `way` tells in short, on `packets` in order and leaves the list empty: each packet is gathered for its
/// ports, or dropped and counted.
#[inline]
pub fn execute(
    way: Way,
    actions: &Actions,
    packets: &mut Vec<Packet>,
    outputs: &mut Outputs,
    pool: &mut Pool,
    fate: &Fate,
) {
    match way {
        Way::Output(port) => outputs.gather_all(port, packets, pool, fate),
        Way::Drop(why) => {
            let count = match why {
                DropReason::NoRule => &fate.dropped_no_rule,
                DropReason::Rule => &fate.dropped_by_action,
                DropReason::Ttl => &fate.dropped_ttl,
                DropReason::TooDeep => &fate.dropped_too_deep,
                DropReason::NoPort => &fate.dropped_no_port,
            };
            count.add(packets.len() as u64);
            pool.give_all(packets);
        }
        Way::List => execute_list(actions, packets, outputs, pool, fate),
    }
}

fn execute_list(actions: &Actions, packets: &mut Vec<Packet>, outputs: &mut Outputs, pool: &mut Pool, fate: &Fate) {
    let Some(last) = actions.iter().rposition(|action| matches!(action, Action::Output(_))) else { return };
    for action in &actions[..last] {
        match action {
            Action::Output(port) => {
                for packet in packets.iter() {
                    let copy = pool.copy(packet);
                    outputs.gather(*port, copy, pool, fate);
                }
            }
            Action::PushVlan { tpid, tci } => {
                each(packets, pool, fate, |packet| edit::push_vlan(packet, *tpid, *tci));
            }
            Action::PopVlan => each(packets, pool, fate, edit::pop_vlan),
            Action::Set(set) => each(packets, pool, fate, |packet| edit::set(packet, set)),
        }
    }
    if let Action::Output(port) = actions[last] {
        outputs.gather_all(port, packets, pool, fate);
    }
}

/// Edits every packet; one that has no room for the edit is dropped, one that lacks the header stays as it is.
fn each(
    packets: &mut Vec<Packet>,
    pool: &mut Pool,
    fate: &Fate,
    mut edit: impl FnMut(&mut Packet) -> Result<(), EditError>,
) {
    let mut i = 0;
    while i < packets.len() {
        match edit(&mut packets[i]) {
            Ok(()) | Err(EditError::Absent) => i += 1,
            Err(EditError::NoHeadroom) => {
                fate.dropped_no_headroom.add(1);
                pool.give(packets.remove(i));
            }
        }
    }
}
