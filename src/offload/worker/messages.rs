//! What is rare: ports that come and go, flushes, questions, other settings, the end.

use std::sync::{Arc as StdArc, Mutex as StdMutex, PoisonError};
use std::time::Instant;

use futures_channel::oneshot;

use super::{Attached, Flushing, Message, Retired, Worker};
use crate::flow::PortNo;
use crate::offload::backend::Unsupported;
use crate::offload::report::{MarkPage, MarkRow};
use crate::offload::table::Rule;
use crate::offload::{Flushed, Stopped};
use crate::port::{PortInfo, RxProgress};

/// Answers of several workers to one question, until the last of them is there. Should one be lost, the asker hears that
/// there will be no answer.
pub struct Gathering {
    open: StdMutex<Open>,
}

struct Open {
    missing: usize,
    removed: usize,
    trouble: Option<String>,
    reply: Option<oneshot::Sender<Flushed>>,
}

impl Gathering {
    pub fn new(workers: usize, reply: oneshot::Sender<Flushed>) -> Gathering {
        let gathering = Gathering {
            open: StdMutex::new(Open { missing: workers + 1, removed: 0, trouble: None, reply: Some(reply) }),
        };
        // One for the asker, so that without workers there is an answer, too.
        gathering.answer(0, None);
        gathering
    }

    /// One worker is through.
    fn answer(&self, removed: usize, trouble: Option<String>) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.missing -= 1;
        open.removed += removed;
        open.trouble = open.trouble.take().or(trouble);
        if open.missing == 0
            && let Some(reply) = open.reply.take()
        {
            // Whoever asked may have gone.
            let _ = reply.send(Flushed { removed: open.removed, trouble: open.trouble.take() });
        }
    }
}

impl Worker {
    pub(super) fn obey(&mut self, message: Message, now: Instant) {
        match message {
            Message::AgentAdded(mailbox) => self.mailboxes.push(mailbox),
            Message::PortAdded(info, queues) => self.attach(info, queues),
            Message::PortChanged(number, way) => self.try_anew(number, way),
            Message::PortConnected(number, way) => {
                self.try_anew(number, way);
                self.look_at_port(number);
            }
            Message::PortRemoved(number) => {
                if let Some(attached) = self.ports.get_mut(&number) {
                    attached.leaving = true;
                    self.look_at_port(number);
                    self.detach(number);
                }
            }
            Message::Flush { number, gathering } => {
                self.flush = self.flush.max(number);
                let mut ids = self.rules.all_in_device();
                // Rules that came from another worker may have been put after the flush was asked for.
                ids.retain(|&id| {
                    self.rules.get(id).and_then(|rule| rule.has.as_ref()).is_some_and(|has| has.flush < number)
                });
                self.flushes.push(Flushing { number, left: ids.len(), removed: 0, gathering });
                self.todo.extend(ids);
                self.end_flushes();
            }
            Message::Marks { after, limit, reply } => {
                // Nobody waits for the answer any more: nothing to do about it.
                let _ = reply.send(self.mark_page(after, limit));
            }
            Message::Look => self.look(),
            Message::Adopt(parcel) => self.adopt(*parcel),
            // The crew is stopping, as whoever asks has said before: there is nothing to remember.
            Message::Halt(reply) => {
                let _ = reply.send(());
            }
            Message::Stop { deadline, reply } => {
                let stopped = self.stop(deadline, now);
                let _ = reply.send(stopped);
            }
        }
    }

    /// Something that all workers share has changed.
    fn look(&mut self) {
        let enabled = self.crew.settings.is_enabled();
        if std::mem::replace(&mut self.enabled, enabled) != enabled {
            self.todo.extend(self.rules.iter().map(|(id, _)| id));
        }
        self.give_away();
        self.end_flushes();
    }

    fn attach(&mut self, info: PortInfo, mut queues: Vec<StdArc<RxProgress>>) {
        let number = info.number;
        let mut rules = 0;
        // The port may have received before it was told of, and a rule that is gone since may have stamped its frames.
        for leaving in self.quarantine.iter_mut().filter(|leaving| leaving.port.is_none_or(|port| port == number)) {
            if let Retired::Waiting(mark) = &mut leaving.mark {
                mark.wait_for(&queues);
            }
        }
        if self.convalescent {
            // Frames of the device's former life may wait there.
            self.recovery.extend(queues.iter().map(|queue| (StdArc::clone(queue), queue.mark_point())));
        }
        if let Some(before) = self.ports.remove(&number) {
            // It came back before the last of its rules had gone; old marks may wait in the old queues too.
            queues.extend(before.queues);
            rules = before.rules;
        }
        self.ports.insert(number, Attached { info, queues, rules, leaving: false });
        self.look_at_port(number);
    }

    /// Every rule that concerns a port is looked at again; where it was in the way of more, more is tried.
    fn look_at_port(&mut self, port: PortNo) {
        let sends_there = |rule: &Rule| {
            rule.has.as_ref().is_some_and(|has| matches!(has.short, Some(Unsupported::Port(short)) if short == port))
        };
        let concerned = self
            .rules
            .iter()
            .filter(|(_, rule)| rule.in_port().is_none_or(|p| p == port) || sends_there(rule))
            .map(|(id, rule)| (id, sends_there(rule)))
            .collect::<Vec<_>>();
        for (id, retry) in concerned {
            if let Some(rule) = self.rules.get_mut(id) {
                rule.retry |= retry;
            }
            self.todo.push_back(id);
        }
    }

    /// Every rule in the device that sends to the port, or would, is put anew as far as it goes now.
    fn try_anew(&mut self, port: PortNo, way: u64) {
        self.ways_known = self.ways_known.max(way);
        let sends = |rule: &Rule| rule.sends_by(|out| out == port);
        let concerned: Vec<_> = self.rules.iter().filter(|(_, rule)| sends(rule)).map(|(id, _)| id).collect();
        for id in concerned {
            if let Some(rule) = self.rules.get_mut(id) {
                rule.retry = true;
            }
            self.todo.push_back(id);
        }
    }

    /// Lets a leaving port go when the device has no rule of it any more.
    pub(super) fn detach(&mut self, port: PortNo) {
        if self.ports.get(&port).is_some_and(|attached| attached.leaving && attached.rules == 0) {
            self.ports.remove(&port);
        }
    }

    /// The same of every port, when rules have gone to another worker.
    pub(super) fn detach_all(&mut self) {
        self.ports.retain(|_, attached| !attached.leaving || attached.rules > 0);
    }

    pub(super) fn end_flushes(&mut self) {
        if self.flushes.iter().all(|flush| flush.left > 0) {
            return;
        }
        // Rules of shards that are on their way here may be older than the flush, too. Whoever has them may wait for some of ours.
        if self.awaits_shards() && self.crew.off().is_none() {
            return self.give_away();
        }
        // Whoever asked may read the counts at once.
        self.publish();
        let trouble = self.crew.off().map(str::to_owned);
        for flush in self.flushes.extract_if(.., |flush| flush.left == 0) {
            flush.gathering.answer(flush.removed, trouble.clone());
        }
        self.give_away();
    }

    pub(super) fn mark_page(&self, after: u32, limit: usize) -> MarkPage {
        let mut found: Vec<_> = self
            .rules
            .iter()
            .filter_map(|(_, rule)| Some((rule.has.as_ref()?.lease.mark().0.get(), rule)))
            .filter(|(mark, _)| *mark > after)
            .collect();
        let more = found.len() > limit;
        if more {
            found.select_nth_unstable_by_key(limit, |(mark, _)| *mark);
            found.truncate(limit);
        }
        found.sort_unstable_by_key(|(mark, _)| *mark);
        let row = |(mark, rule): &(u32, &Rule)| {
            let has = rule.has.as_ref()?;
            let mut owners: Vec<u32> = rule.living().map(|owner| owner.poller()).collect();
            owners.sort_unstable();
            Some(MarkRow {
                mark: *mark,
                ufid: rule.ufid,
                matching: rule.matching,
                level: has.level,
                owners,
                hits: has.stats.packets,
            })
        };
        let rows: Vec<_> = found.iter().filter_map(row).collect();
        let next = rows.last().filter(|_| more).map(|row| row.mark);
        MarkPage { rows, next }
    }

    /// Removes every rule: all at once, or where the device cannot, one by one until `deadline`.
    pub(super) fn stop(&mut self, deadline: Instant, now: Instant) -> Stopped {
        let ids = self.rules.all_in_device();
        let before = ids.len();
        // The last reading, so that nothing that was counted is lost.
        self.read(&ids);
        if self.device.flush(&self.rules.handles()) {
            self.forget_all();
        } else {
            for id in ids {
                if Instant::now() >= deadline {
                    break;
                }
                self.remove(id, now);
            }
        }
        self.stopped = true;
        let left = self.rules.in_device();
        self.crew.set_waiting(self.id, 0);
        Stopped { removed: before - left, left }
    }
}
