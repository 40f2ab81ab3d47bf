//! The contract that every backend keeps, as one function that runs over any of them.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use super::{Backend, Device, Done, Handle, Install, PutError};
use crate::flow::{Action, Actions, Field, Key, Mask, Match, PortNo};
use crate::offload::mark::Mark;
use crate::offload::state::{FlowStats, Level};
use crate::packet::compose::compose;
use crate::packet::{Packet, Pool};
use crate::port::{Kind, PortInfo, RxQueue};

/// Rules that the backends under test hold.
pub const CAPACITY: usize = 4;

/// A megaflow of port 1.
pub fn megaflow(i: u32) -> Match {
    let (mut key, mut mask) = (Key::ZERO, Mask::EMPTY);
    for (field, value) in [(Field::InPort, 1), (Field::EthType, 0x0800), (Field::Ipv4Dst, i)] {
        key.set(field, value);
        mask.add_field(field);
    }
    Match::new(&key, &mask)
}

/// Puts [`megaflow`] `i` with mark `i`.
pub fn put(backend: &mut dyn Backend, i: u32) -> Result<(Handle, Done), PutError> {
    let (matching, actions) = (megaflow(i), Actions::drop());
    let (mark, level) = (Mark::new(i).unwrap(), Level::Full);
    backend.put(Install { matching: &matching, actions: &actions, mark, level, in_port: Some(PortNo(1)) })
}

/// Lets a packet of each of these megaflows arrive at port 1; the marks of those that the device does not keep.
pub fn pass(device: &dyn Device, megaflows: &[u32]) -> Vec<Option<u32>> {
    let mut queue = device.wrap_rx(&port(), Box::new(Given(megaflows.to_vec())));
    let (mut pool, mut all) = (Pool::new(), Vec::new());
    loop {
        let mut packets = Vec::new();
        if queue.receive(Instant::now(), &mut pool, &mut packets).unwrap() == 0 {
            return all;
        }
        all.extend(packets.iter().map(|packet| packet.meta.mark.map(|mark| mark.0.get())));
    }
}

/// A receive queue with a packet of each of these megaflows.
struct Given(Vec<u32>);

impl RxQueue for Given {
    fn receive(&mut self, _: Instant, _: &mut Pool, into: &mut Vec<Packet>) -> io::Result<usize> {
        into.extend(self.0.drain(..).map(|i| {
            let mut packet = Packet::from_bytes(&compose(megaflow(i).key(), 0));
            packet.meta.in_port = PortNo(1);
            packet
        }));
        Ok(into.len())
    }

    fn readable(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

fn port() -> PortInfo {
    PortInfo {
        name: "p1".to_owned(),
        number: PortNo(1),
        kind: Kind::Sim,
        ifindex: None,
        rx_queues: 1,
        tx_checksum: false,
        tx_segment: false,
        ring: 64,
    }
}

/// Checks everything that [`Device`] and [`Backend`] promise. `make` opens an empty device with room for [`CAPACITY`] rules.
pub fn check(make: impl Fn() -> Arc<dyn Device>) {
    rules_fit_up_to_the_capacity_and_room_comes_back(&*make());
    a_deleted_rule_is_gone_however_often_it_is_deleted(&mut *make().channel());
    a_replaced_rule_keeps_its_handle(&*make());
    a_replaced_rule_keeps_its_counts_and_has_its_new_mark(&*make());
    the_level_answered_is_at_most_the_level_asked_for_and_what_is_short_is_said(&*make());
    counts_are_those_of_the_packets_that_passed_in_the_order_asked_for(&*make());
    behind_a_raised_fence_no_packet_is_marked_or_kept(&*make());
    counts_come_in_the_order_asked_for(&mut *make().channel());
    puts_of_a_batch_are_answered_each_and_in_order(&*make());
    a_flush_leaves_nothing_of_what_it_was_given_and_is_no_reset(&mut *make().channel());
    a_handle_is_good_in_every_channel(&*make());
    a_restarted_device_is_empty_and_its_old_channels_are_powerless(&*make());
}

fn rules_fit_up_to_the_capacity_and_room_comes_back(device: &dyn Device) {
    let backend = &mut *device.channel();
    let handles: Vec<_> = (1..=CAPACITY as u32).map(|i| put(backend, i).unwrap().0).collect();
    assert_eq!(put(backend, 99), Err(PutError::NoRoom));
    backend.delete(handles[0]).unwrap();
    let (handle, done) = put(backend, 99).unwrap();
    assert!(done.level <= device.capabilities().level);
    assert!(!handles[1..].contains(&handle));
}

fn a_deleted_rule_is_gone_however_often_it_is_deleted(backend: &mut dyn Backend) {
    let (handle, _) = put(backend, 1).unwrap();
    backend.delete(handle).unwrap();
    assert_eq!(backend.delete(handle), Ok(FlowStats::default()));
    put(backend, 1).expect("the same match can be put again");
}

fn a_replaced_rule_keeps_its_handle(device: &dyn Device) {
    if !device.capabilities().replace_in_place {
        return;
    }
    let backend = &mut *device.channel();
    let (handle, _) = put(backend, 1).unwrap();
    let (matching, actions, mark) = (megaflow(1), Actions::drop(), Mark::new(77).unwrap());
    let install = Install { matching: &matching, actions: &actions, mark, level: Level::Mark, in_port: None };
    backend.replace(handle, install).unwrap();
    backend.delete(handle).unwrap();
    assert!(matches!(backend.replace(handle, install), Err(PutError::Device(_))));
}

fn a_replaced_rule_keeps_its_counts_and_has_its_new_mark(device: &dyn Device) {
    if !device.capabilities().replace_in_place {
        return;
    }
    let backend = &mut *device.channel();
    let (handle, done) = put(backend, 1).unwrap();
    assert_eq!(pass(device, &[1, 1]).len(), if done.level == Level::Full { 0 } else { 2 });
    let (matching, actions, mark) = (megaflow(1), Actions::drop(), Mark::new(77).unwrap());
    let install = Install { matching: &matching, actions: &actions, mark, level: Level::Mark, in_port: None };
    let replaced = backend.replace(handle, install).map(|(done, counts)| (done.level, counts.packets));
    assert_eq!(replaced, Ok((Level::Mark, 2)), "with what it had counted until then");
    assert_eq!(pass(device, &[1]), [Some(77)]);
    assert_eq!(backend.delete(handle).map(|counts| counts.packets), Ok(3));
}

fn the_level_answered_is_at_most_the_level_asked_for_and_what_is_short_is_said(device: &dyn Device) {
    let (backend, most) = (&mut *device.channel(), device.capabilities().level);
    let nowhere = Actions::new(vec![Action::Output(PortNo(60_000))]);
    for (i, level, actions) in
        [(1, Level::Mark, Actions::drop()), (2, Level::Full, Actions::drop()), (3, Level::Full, nowhere)]
    {
        let (matching, mark) = (megaflow(i), Mark::new(i).unwrap());
        let install = Install { matching: &matching, actions: &actions, mark, level, in_port: None };
        let (_, done) = backend.put(install).unwrap();
        assert!(done.level <= level.min(most));
        let kept = pass(device, &[i]).is_empty();
        assert_eq!(kept, done.level == Level::Full, "what it says is what it does");
        assert!(done.short.is_none() || done.level < level);
        assert!(done.short.is_some() || done.level == level.min(most), "{done:?} of {level}");
    }
}

fn counts_are_those_of_the_packets_that_passed_in_the_order_asked_for(device: &dyn Device) {
    let backend = &mut *device.channel();
    let handles: Vec<_> = (1..=3).map(|i| put(backend, i).unwrap().0).collect();
    pass(device, &[1, 3, 3, 2, 9, 3]);
    let mut counts = Vec::new();
    backend.stats(&[handles[2], handles[0], handles[1]], &mut counts).unwrap();
    assert_eq!(counts.iter().map(|counts| counts.packets).collect::<Vec<_>>(), [3, 1, 1]);
    assert!(counts.iter().all(|counts| counts.bytes >= 34 * counts.packets && counts.used_ns > 0));
    pass(device, &[3]);
    assert_eq!(backend.delete(handles[2]).map(|counts| counts.packets), Ok(4));
}

fn puts_of_a_batch_are_answered_each_and_in_order(device: &dyn Device) {
    let backend = &mut *device.channel();
    let matches: Vec<_> = (1..=CAPACITY as u32 + 2).map(megaflow).collect();
    let actions = Actions::drop();
    let install = |(i, matching)| {
        let mark = Mark::new(i as u32 + 1).unwrap();
        Install { matching, actions: &actions, mark, level: Level::Full, in_port: Some(PortNo(1)) }
    };
    let flows: Vec<_> = matches.iter().enumerate().map(install).collect();
    let mut results = vec![Err(PutError::NoRoom)];
    backend.put_all(&flows[..1], &mut results);
    backend.put_all(&flows[1..=CAPACITY], &mut results);
    assert_eq!(results.len(), 1 + CAPACITY + 1, "appended, one for each");
    assert_eq!(results[1 + CAPACITY], Err(PutError::NoRoom));
    let handles: Vec<_> = results[1..=CAPACITY].iter().map(|result| result.as_ref().unwrap().0).collect();
    assert!(handles.iter().all(|handle| handles.iter().filter(|other| *other == handle).count() == 1));
    pass(device, &[3, 1, 3]);
    let mut counts = Vec::new();
    backend.stats(&handles, &mut counts).unwrap();
    assert_eq!(counts.iter().map(|counts| counts.packets).collect::<Vec<_>>(), [1, 0, 2, 0]);
    backend.delete(handles[1]).unwrap();
    results.clear();
    backend.put_all(&flows[CAPACITY..], &mut results);
    assert!(matches!(results[..], [Ok(_), Err(PutError::NoRoom)]), "{results:?}");
}

fn behind_a_raised_fence_no_packet_is_marked_or_kept(device: &dyn Device) {
    put(&mut *device.channel(), 1).unwrap();
    device.fence().raise();
    assert_eq!(pass(device, &[1]), [None]);
    device.fence().lower();
    assert_ne!(pass(device, &[1]), [None]);
}

fn counts_come_in_the_order_asked_for(backend: &mut dyn Backend) {
    let (handle, _) = put(backend, 1).unwrap();
    let mut counts = vec![FlowStats { packets: 5, ..FlowStats::default() }];
    backend.stats(&[handle, Handle(u64::MAX)], &mut counts).unwrap();
    assert_eq!(counts.len(), 3, "appended, one for each");
    assert_eq!(counts[1..], [FlowStats::default(); 2]);
}

fn a_flush_leaves_nothing_of_what_it_was_given_and_is_no_reset(backend: &mut dyn Backend) {
    let before = backend.generation();
    let fill =
        |backend: &mut dyn Backend| -> Vec<_> { (1..=CAPACITY as u32).map(|i| put(backend, i).unwrap().0).collect() };
    let handles = fill(backend);
    backend.flush(&handles).unwrap();
    let again = fill(backend);
    assert!(again.iter().all(|handle| !handles.contains(handle)), "no handle names two rules");
    backend.flush(&again[1..]).unwrap();
    backend.flush(&again[1..]).expect("rules that are not there are removed already");
    assert!(put(backend, 1).is_err(), "the first is still there");
    assert_eq!(backend.generation(), before);
}

fn a_handle_is_good_in_every_channel(device: &dyn Device) {
    let (mut one, mut other) = (device.channel(), device.channel());
    let (handle, _) = put(&mut *one, 1).unwrap();
    let (second, _) = put(&mut *other, 2).unwrap();
    assert_ne!(handle, second);
    other.delete(handle).unwrap();
    put(&mut *one, 1).expect("it is gone in both");
}

fn a_restarted_device_is_empty_and_its_old_channels_are_powerless(device: &dyn Device) {
    let mut old = device.channel();
    let (handle, _) = put(&mut *old, 1).unwrap();
    device.restart().unwrap();
    let mut new = device.channel();
    let (again, _) = put(&mut *new, 1).expect("it is empty");
    assert_ne!(handle, again);
    assert!(matches!(put(&mut *old, 2), Err(PutError::Device(_))));
    // Whatever it says to this, the rule stays.
    drop((old.delete(again), old.flush(&[again])));
    assert!(put(&mut *new, 1).is_err());
}
