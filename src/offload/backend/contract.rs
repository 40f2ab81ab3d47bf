//! The contract that every backend keeps, as one function that runs over any of them.

use std::sync::Arc;

use super::{Backend, Device, Done, Handle, Install, PutError};
use crate::flow::{Actions, Field, Key, Mask, Match, PortNo};
use crate::offload::mark::Mark;
use crate::offload::state::{FlowStats, Level};

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

/// Checks everything that [`Device`] and [`Backend`] promise. `make` opens an empty device with room for [`CAPACITY`] rules.
pub fn check(make: impl Fn() -> Arc<dyn Device>) {
    rules_fit_up_to_the_capacity_and_room_comes_back(&*make());
    a_deleted_rule_is_gone_however_often_it_is_deleted(&mut *make().channel());
    a_replaced_rule_keeps_its_handle(&*make());
    counts_come_in_the_order_asked_for(&mut *make().channel());
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
