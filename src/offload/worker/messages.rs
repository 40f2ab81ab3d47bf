//! What is rare: ports that come and go, flushes, questions, the end.

use std::sync::Arc as StdArc;
use std::time::Instant;

use super::{Attached, Flushing, Message, Worker};
use crate::flow::PortNo;
use crate::offload::report::{MarkPage, MarkRow};
use crate::offload::table::Rule;
use crate::offload::{Flushed, Stopped};
use crate::port::{PortInfo, RxProgress};

impl Worker {
    pub(super) fn obey(&mut self, message: Message, now: Instant) {
        match message {
            Message::AgentAdded(mailbox) => self.mailboxes.push(mailbox),
            Message::PortAdded(info, queues) => self.attach(info, queues),
            Message::PortRemoved(number) => {
                if let Some(attached) = self.ports.get_mut(&number) {
                    attached.leaving = true;
                    self.look_at_port(number);
                    self.detach(number);
                }
            }
            Message::Flush(reply) => {
                self.flush += 1;
                let (ids, _) = self.rules.slice(0, usize::MAX);
                self.flushes.push(Flushing { number: self.flush, left: ids.len(), removed: 0, reply });
                self.todo.extend(ids);
                self.end_flushes();
            }
            Message::Marks { after, limit, reply } => {
                // Nobody waits for the answer any more: nothing to do about it.
                let _ = reply.send(self.mark_page(after, limit));
            }
            Message::Stop { deadline, reply } => {
                let stopped = self.stop(deadline, now);
                let _ = reply.send(stopped);
            }
        }
    }

    pub(super) fn attach(&mut self, info: PortInfo, mut queues: Vec<StdArc<RxProgress>>) {
        let number = info.number;
        let mut rules = 0;
        // The port may have received before it was told of, and a rule that is gone since may have stamped its frames.
        for leaving in self.quarantine.iter_mut().filter(|leaving| leaving.port.is_none_or(|port| port == number)) {
            leaving.mark.wait_for(&queues);
        }
        if let Some(before) = self.ports.remove(&number) {
            // It came back before the last of its rules had gone; old marks may wait in the old queues too.
            queues.extend(before.queues);
            rules = before.rules;
        }
        self.ports.insert(number, Attached { info, queues, rules, leaving: false });
        self.look_at_port(number);
    }

    /// Every rule that concerns a port is looked at again.
    pub(super) fn look_at_port(&mut self, port: PortNo) {
        let concerned = self.rules.iter().filter(|(_, rule)| rule.in_port().is_none_or(|p| p == port));
        self.todo.extend(concerned.map(|(id, _)| id));
    }

    /// Lets a leaving port go when the device has no rule of it any more.
    pub(super) fn detach(&mut self, port: PortNo) {
        if !self.ports.get(&port).is_some_and(|attached| attached.leaving && attached.rules == 0) {
            return;
        }
        self.ports.remove(&port);
    }

    pub(super) fn end_flushes(&mut self) {
        if self.flushes.iter().all(|flush| flush.left > 0) {
            return;
        }
        // Whoever asked may read the counts at once.
        self.publish();
        let trouble = self.device.off.clone();
        for flush in self.flushes.extract_if(.., |flush| flush.left == 0) {
            // As above: the one who asked may have gone.
            let _ = flush.reply.send(Flushed { removed: flush.removed, trouble: trouble.clone() });
        }
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
        let before = self.rules.in_device();
        if self.device.flush(&self.rules.handles()) {
            self.forget_all();
        } else {
            let (ids, _) = self.rules.slice(0, usize::MAX);
            for id in ids {
                if Instant::now() >= deadline {
                    break;
                }
                self.remove(id, now);
            }
        }
        self.stopped = true;
        let left = self.rules.in_device();
        Stopped { removed: before - left, left }
    }
}
