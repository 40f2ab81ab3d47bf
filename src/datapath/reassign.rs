//! Pollers that come and go, and receive queues that move between them, while packets flow.
//!
//! ```text
//!   new pollers start, and learn the flows added by hand
//!   receive queues are taken from all pollers       packets wait in their rings from here …
//!   ways out are closed; what was handed over to another poller is sent before
//!   ways out are opened for the pollers that stay and the new ones
//!   receive queues are given to their pollers       … to here
//!   pollers that leave release their flows and end
//! ```
//!
//! *Order.* A receive queue leaves a poller between two batches, and reaches the next poller after what the old one sent, or
//! handed over to be sent, has been given to the device. Where pollers have transmit queues of their own, it is the
//! device that chooses between them: it may send frames of the new poller before the last of the old one.
//!
//! *Marks.* A mark is bound to a flow in the pollers that have the flow. One that finds a packet with another mark looks
//! it up like any other.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::balance::{self, Load, Move};
use super::crew::{Crew, Ended, PollerHandle, ask_all};
use super::inbox::{Message, NewFlow};
use super::poller::Receiver;
use super::switch::{MAX_POLLERS, OpenPort, PollerConfig, Switch};
use super::window::{LENGTH, Recent};
use crate::flow::PortNo;

/// Why pollers were not changed.
#[derive(Debug, thiserror::Error)]
pub enum SetPollersError {
    #[error("cannot start a poller: {0}")]
    Start(#[from] io::Error),
    #[error("the datapath is stopping")]
    Stopping,
}

/// Why a receive queue was not moved.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MoveRxError {
    #[error("there is no port {0}")]
    Port(PortNo),
    #[error("port {port} has no receive queue {queue}; it has {queues}")]
    Queue { port: PortNo, queue: usize, queues: usize },
    #[error("there is no poller {poller}; there are {pollers}")]
    Poller { poller: usize, pollers: usize },
    /// It broke, or its poller has ended.
    #[error("receive queue {queue} of port {port} is not polled any more")]
    Gone { port: PortNo, queue: usize },
}

/// A receive queue, its poller and its load.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RxView {
    pub port: PortNo,
    pub name: String,
    pub queue: usize,
    pub poller: usize,
    /// In the last minute, or since it was opened.
    pub recent: Recent,
}

impl Switch {
    /// Changes the number of pollers, 1 to 256, and their processors. No packet is lost but those that a receive ring has no room
    /// for meanwhile. Pollers that stay keep their flows, and their receive queues as far as that is fair. To be run to its
    /// end: a future dropped before leaves receive queues without a poller.
    ///
    /// # Errors
    /// No thread or file descriptor left; then nothing has changed. A port whose ways out cannot be opened again is removed.
    pub async fn set_pollers(&self, config: &PollerConfig) -> Result<(), SetPollersError> {
        let _baton = self.baton.take().await;
        let before = self.crew();
        let count = config.count.clamp(1, MAX_POLLERS);
        let stay = count.min(before.pollers.len());
        let new = self.start_pollers(stay..count, &config.cpus)?;
        teach(&before, &new, || self.shared.decision_number()).await;
        let (staying, leaving) = before.pollers.split_at(stay);
        for (id, poller) in staying.iter().enumerate() {
            let (was, is) = (before.cpus.get(id), config.cpus.get(id));
            if was != is {
                poller.send(Message::RunOn(is.copied(), self.kit.anywhere));
            }
        }
        let after = Arc::new(Crew {
            pollers: staying.iter().chain(&new).cloned().collect(),
            leaving: leaving.to_vec(),
            ended: Arc::clone(&before.ended),
            cpus: config.cpus.clone(),
        });
        if stay == before.pollers.len() && new.is_empty() {
            self.crew.store(after);
            return Ok(());
        }
        let begun = Instant::now();
        let receivers = before.take_rx().await;
        before.ask(Message::CloseOutputs).await;
        self.crew.store(Arc::clone(&after));
        if self.stopping.load(Ordering::SeqCst) {
            // Whoever stops the switch saw the old pollers or the new ones; told twice, a poller ends once.
            after.pollers.iter().for_each(|poller| poller.dismiss());
            return Err(SetPollersError::Stopping);
        }
        let broken = self.reopen(&after).await;
        self.receive_from(receivers);
        let pause = begun.elapsed();
        log::info!(
            target: "poller",
            "{count} pollers, {} before; packets waited for {} us",
            before.pollers.len(),
            pause.as_micros()
        );
        self.dismiss(&after).await;
        for port in broken {
            self.close_port(port).await;
        }
        Ok(())
    }

    /// Moves one receive queue to another poller, between two batches. No packet is lost, and packets of a flow keep their
    /// order as the module says. To be run to its end, as [`Switch::set_pollers`].
    ///
    /// # Errors
    /// There is no such port, queue or poller (any more); then nothing has changed.
    pub async fn move_rx(&self, port: PortNo, queue: usize, poller: usize) -> Result<(), MoveRxError> {
        let _baton = self.baton.take().await;
        let crew = self.crew();
        let from = {
            let ports = self.ports();
            let open = ports.open.get(&port).ok_or(MoveRxError::Port(port))?;
            let queues = open.queues.len();
            open.queues.get(queue).ok_or(MoveRxError::Queue { port, queue, queues })?.poller
        };
        if poller >= crew.pollers.len() {
            return Err(MoveRxError::Poller { poller, pollers: crew.pollers.len() });
        }
        if from == poller {
            return Ok(());
        }
        let waits = self.waiting().as_ref().is_some_and(|waiting| waiting.iter().any(|rx| rx.is(port, queue)));
        let taken = match waits {
            true => Vec::new(),
            false => {
                let asked = crew.pollers[from].ask(|reply| Message::TakeRx(Some((port, queue)), reply));
                let taken = asked.await.unwrap_or_default();
                if taken.is_empty() {
                    return Err(MoveRxError::Gone { port, queue });
                }
                // What the old poller handed over must not be overtaken by what the new one sends.
                crew.ask(Message::Pump).await;
                taken
            }
        };
        if let Some(open) = self.ports().open.get_mut(&port) {
            open.queues[queue].poller = poller;
        }
        self.receive_from(taken);
        Ok(())
    }

    /// Moves receive queues so that every poller has about as many packets to take, going by the last minute. Answers with what was
    /// moved. To be run to its end, as [`Switch::set_pollers`].
    pub async fn rebalance(&self, now: Instant) -> Vec<Move> {
        let load = |view: RxView| Load {
            port: view.port,
            queue: view.queue,
            poller: view.poller,
            packets: view.recent.packets,
        };
        let loads: Vec<Load> = self.rx_views(now, LENGTH).into_iter().map(load).collect();
        let mut moved = Vec::new();
        for wanted in balance::plan(&loads, self.pollers()) {
            match self.move_rx(wanted.port, wanted.queue, wanted.to).await {
                Ok(()) => moved.push(wanted),
                Err(error) => log::warn!(target: "poller", "not moved: {error}"),
            }
        }
        moved
    }

    /// Every receive queue, by port and number.
    pub fn rx_views(&self, now: Instant, over: Duration) -> Vec<RxView> {
        let ports = self.ports();
        let views = ports.open.iter().flat_map(|(number, open)| {
            open.queues.iter().enumerate().map(|(queue, place)| RxView {
                port: *number,
                name: open.port.info().name.clone(),
                queue,
                poller: place.poller,
                recent: place.window.recent(now, over, &place.counters),
            })
        });
        views.collect()
    }

    /// Gives receive queues to the pollers that they belong to; those of ports that have gone meanwhile end here.
    pub(super) fn receive_from(&self, receivers: Vec<Receiver>) {
        let crew = self.crew();
        let ports = self.ports();
        for mut receiver in receivers {
            let Some(open) = ports.open.get(&receiver.port) else { continue };
            let Some(place) = open.queues.get(receiver.number) else { continue };
            receiver.counters = Arc::clone(&open.counters[place.poller]);
            crew.pollers[place.poller].send(Message::AddRx(Box::new(receiver)));
        }
    }

    /// Starts pollers.
    ///
    /// # Errors
    /// No thread or file descriptor left; none is started then.
    pub(super) fn start_pollers(
        &self,
        ids: std::ops::Range<usize>,
        cpus: &[usize],
    ) -> io::Result<Vec<Arc<PollerHandle>>> {
        let mut started: Vec<Arc<PollerHandle>> = Vec::new();
        for id in ids {
            match self.kit.start(id, cpus.get(id).copied(), &self.shared, &self.offload) {
                Ok(poller) => started.push(Arc::new(poller)),
                Err(error) => {
                    end(&started);
                    return Err(error);
                }
            }
        }
        Ok(started)
    }

    /// Opens every port's ways out anew, and assigns its receive queues; answers with the ports that have no way out any more.
    async fn reopen(&self, crew: &Crew) -> Vec<PortNo> {
        let (numbers, owners): (Vec<PortNo>, Vec<usize>) = {
            let ports = self.ports();
            let numbers = ports.open.keys().copied().collect();
            (numbers, ports.open.values().flat_map(OpenPort::owners).collect())
        };
        let mut owners = share(&owners, crew.pollers.len()).into_iter();
        let mut broken = Vec::new();
        for number in numbers {
            // Locked for one port at a time: opening queues takes system calls, and others want to see the ports meanwhile.
            let outputs = {
                let mut ports = self.ports();
                let Some(open) = ports.open.get_mut(&number) else { continue };
                for (place, owner) in open.queues.iter_mut().zip(&mut owners) {
                    place.poller = owner;
                }
                open.recount(crew.pollers.len());
                self.open_ways(open, crew, MAX_POLLERS).or_else(|error| {
                    let name = &open.port.info().name;
                    log::warn!(target: "port", "{name}: {error}; pollers share one transmit queue");
                    self.open_ways(open, crew, 1)
                })
            };
            match outputs {
                Ok(outputs) => drop(self.add_outputs(crew, number, outputs).await),
                Err(error) => {
                    log::error!(target: "port", "port {number}: {error}; removing it");
                    broken.push(number);
                }
            }
        }
        broken
    }

    /// Has the pollers that leave release their flows, ends them, and keeps their counts.
    async fn dismiss(&self, crew: &Crew) {
        ask_all(&crew.leaving, |done| Message::Flush(None, done)).await;
        end(&crew.leaving);
        self.crew.store(Arc::new(Crew {
            pollers: crew.pollers.clone(),
            leaving: Vec::new(),
            ended: Arc::new(Ended::with(&crew.ended, &crew.leaving)),
            cpus: crew.cpus.clone(),
        }));
    }
}

impl Receiver {
    fn is(&self, port: PortNo, number: usize) -> bool {
        (self.port, self.number) == (port, number)
    }
}

/// Gives new pollers the flows that were added by hand: those are in every poller.
async fn teach(crew: &Crew, new: &[Arc<PollerHandle>], number: impl Fn() -> u64) {
    let Some(teacher) = crew.pollers.first().filter(|_| !new.is_empty()) else { return };
    let mut from = Some(0);
    while let Some(next) = from {
        // One that has ended teaches nothing; the daemon finds that out soon.
        let page = teacher.ask(|reply| Message::Dump(next, reply)).await.unwrap_or_default();
        for flow in page.flows.into_iter().filter(|flow| flow.by_hand) {
            let flow =
                NewFlow { ufid: Some(flow.ufid), matching: flow.matching, actions: flow.actions, number: number() };
            ask_all(new, |reply| Message::Add(Box::new(flow.clone()), reply)).await;
        }
        from = page.next;
    }
}

fn end(pollers: &[Arc<PollerHandle>]) {
    pollers.iter().for_each(|poller| poller.dismiss());
    pollers.iter().for_each(|poller| poller.join());
}

/// Shares receive queues among pollers so that none has two more than another. A queue stays where it is if its poller stays
/// and has not more than its share.
fn share(owners: &[usize], pollers: usize) -> Vec<usize> {
    let (fair, mut more) = (owners.len() / pollers, owners.len() % pollers);
    let mut load = vec![0; pollers];
    let mut keep = |owner: usize| {
        let has = load.get_mut(owner)?;
        let extra = *has == fair && more > 0;
        if *has > fair || (*has == fair && !extra) {
            return None;
        }
        more -= usize::from(extra);
        *has += 1;
        Some(owner)
    };
    let kept: Vec<Option<usize>> = owners.iter().map(|owner| keep(*owner)).collect();
    let place = |kept: Option<usize>| {
        kept.unwrap_or_else(|| {
            let least = (0..pollers).min_by_key(|poller| load[*poller]).unwrap_or(0);
            load[least] += 1;
            least
        })
    };
    kept.into_iter().map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_are_shared_evenly_and_stay_where_that_is_fair() {
        assert_eq!(share(&[0, 0, 0, 0], 1), [0; 4]);
        assert_eq!(share(&[0, 0, 0, 0], 4), [0, 1, 2, 3]);
        assert_eq!(share(&[0, 0, 1, 1], 3), [0, 0, 1, 2]);
        assert_eq!(share(&[0, 1, 2, 3], 2), [0, 1, 0, 1]);
        assert_eq!(share(&[1, 0], 5), [1, 0]);
        assert_eq!(share(&[], 3), [0; 0]);
        for pollers in 1..9 {
            for queues in 0..20 {
                let owners: Vec<usize> = (0..queues).map(|queue| queue * queue % 7).collect();
                let mut load = vec![0; pollers];
                share(&owners, pollers).into_iter().for_each(|owner| load[owner] += 1);
                let (least, most) = (load.iter().min().unwrap(), load.iter().max().unwrap());
                assert!(most - least <= 1, "{queues} queues on {pollers} pollers: {load:?}");
            }
        }
    }
}
