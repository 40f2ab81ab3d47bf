//! [`plan`]: which receive queues to move so that every poller has about as much to do.

use crate::flow::PortNo;

/// Moves that even out less than this share of the busiest poller's load are not worth the caches they cost.
const WORTHWHILE: u64 = 20;

/// A receive queue and what it brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Load {
    pub port: PortNo,
    pub queue: usize,
    pub poller: usize,
    /// Packets over some time that is the same for all.
    pub packets: u64,
}

/// A receive queue that goes to another poller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    pub port: PortNo,
    pub queue: usize,
    pub from: usize,
    pub to: usize,
    pub packets: u64,
}

/// The moves, each queue at most once in the end, that bring the busiest of `pollers` pollers down as far as single moves
/// can. Few moves rather than the best of all places: each costs its flows their places in a poller's caches.
pub fn plan(loads: &[Load], pollers: usize) -> Vec<Move> {
    let mut places: Vec<usize> = loads.iter().map(|load| load.poller).collect();
    // Every round lowers the sum of squares of the pollers' loads, so they end; the bound only says so.
    for _ in 0..loads.len() * pollers.max(1) {
        let Some((index, to)) = best_move(loads, &places, pollers) else { break };
        places[index] = to;
    }
    let moved = loads.iter().zip(&places).filter(|(load, place)| load.poller != **place);
    let to_move = |(load, place): (&Load, &usize)| Move {
        port: load.port,
        queue: load.queue,
        from: load.poller,
        to: *place,
        packets: load.packets,
    };
    moved.map(to_move).collect()
}

/// The queue of the busiest poller that makes the busier of two the least busy when it goes to the idlest.
fn best_move(loads: &[Load], places: &[usize], pollers: usize) -> Option<(usize, usize)> {
    let mut busy = vec![0u64; pollers];
    for (load, place) in loads.iter().zip(places) {
        *busy.get_mut(*place)? += load.packets;
    }
    let busiest = (0..pollers).max_by_key(|poller| busy[*poller])?;
    let idlest = (0..pollers).min_by_key(|poller| busy[*poller])?;
    let after = |index: usize| (busy[busiest] - loads[index].packets).max(busy[idlest] + loads[index].packets);
    let index = (0..loads.len()).filter(|index| places[*index] == busiest).min_by_key(|index| after(*index))?;
    let gain = busy[busiest].saturating_sub(after(index));
    (gain > busy[busiest] / WORTHWHILE).then_some((index, idlest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loads(queues: &[(usize, u64)]) -> Vec<Load> {
        let load = |(queue, &(poller, packets))| Load { port: PortNo(1), queue, poller, packets };
        queues.iter().enumerate().map(load).collect()
    }

    fn after(loads: &[Load], pollers: usize) -> Vec<u64> {
        let moves = plan(loads, pollers);
        let mut busy = vec![0; pollers];
        for load in loads {
            let place = moves.iter().find(|moved| moved.queue == load.queue).map_or(load.poller, |moved| moved.to);
            busy[place] += load.packets;
        }
        busy
    }

    #[test]
    fn what_one_poller_has_alone_is_shared_by_all() {
        assert_eq!(after(&loads(&[(0, 10), (0, 10), (0, 10), (0, 10)]), 4), [10; 4]);
        let mut busy = after(&loads(&[(0, 50), (0, 30), (0, 20), (0, 10)]), 2);
        busy.sort_unstable();
        assert!(busy[1] <= 60, "{busy:?}");
    }

    #[test]
    fn what_is_even_stays_where_it_is() {
        for queues in [
            loads(&[(0, 100), (1, 100)]),
            loads(&[(0, 100), (1, 97), (0, 2)]),
            loads(&[(0, 0), (0, 0)]),
            loads(&[(0, 100)]),
            Vec::new(),
        ] {
            assert_eq!(plan(&queues, 2), []);
        }
    }

    #[test]
    fn one_queue_that_is_most_of_the_load_keeps_a_poller_to_itself() {
        let moves = plan(&loads(&[(0, 900), (0, 50), (0, 50)]), 2);
        // Either the two small ones go, or the great one does.
        let busy = after(&loads(&[(0, 900), (0, 50), (0, 50)]), 2);
        assert_eq!((busy.iter().max(), moves.is_empty()), (Some(&900), false), "{moves:?}");
        assert_eq!(plan(&loads(&[(0, 900), (1, 50), (1, 50)]), 2), []);
    }
}
