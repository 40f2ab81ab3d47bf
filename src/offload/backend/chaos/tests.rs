//! What goes wrong on purpose, and what stays right all the same.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::*;
use crate::offload::backend::contract::{self, put};
use crate::offload::backend::sim::{Nic, Options, Sim};
use crate::offload::backend::{open, sim};

/// A NIC that can be looked into, with chaos over it.
fn chaos(faults: &str) -> (Arc<Nic>, Chaos) {
    let nic = Nic::new(Instant::now());
    let options = Options { capacity: contract::CAPACITY, ..Options::default() };
    let chaos = Chaos::new(Arc::new(Sim::new(Arc::clone(&nic), options)), Settings::default());
    set(&chaos, faults);
    (nic, chaos)
}

fn set(chaos: &Chaos, faults: &str) {
    chaos.faults.set(faults.split_whitespace().map(|fault| fault.split_once('=').unwrap())).unwrap();
}

#[test]
fn without_faults_chaos_keeps_the_contract_of_backends() {
    contract::check(|| {
        let options = Options { capacity: contract::CAPACITY, ..Options::default() };
        Arc::new(Chaos::new(sim::open(options, Instant::now()), Settings::default()))
    });
}

#[test]
fn options_are_the_faults_or_the_devices_and_the_name_tells_which_was_asked_for() {
    let open = |text: &str| open(&text.parse().unwrap(), Instant::now());
    let device = open("chaos,over=sim,seed=7,fail=20%,reset=0.1%,capacity=9").unwrap();
    assert_eq!((device.capabilities().name, device.capabilities().capacity), ("chaos", Some(9)));
    let settings = device.faults().unwrap().settings();
    assert_eq!(
        (settings.seed, settings.fail.to_string(), settings.reset.to_string()),
        (7, "20%".into(), "0.1%".into())
    );
    let plain = open("sim").unwrap();
    assert_eq!(plain.capabilities().name, "sim");
    assert_eq!(plain.faults().map(Faults::settings), Some(Settings::default()));
    for (text, wrong) in [
        ("chaos,fail=2", "offload chaos: option fail=2: expected a share like 0.2 or 20%"),
        ("chaos,colour=red", "colour=red: no such option"),
        ("chaos,over=chaos", "\"chaos\" is not a kind of device"),
        ("asic", "\"asic\" is not a kind of device; known: none, sim, chaos"),
    ] {
        let error = open(text).err().expect(text).to_string();
        assert!(error.contains(wrong), "{error}");
    }
}

#[test]
fn a_put_that_fails_leaves_no_rule_and_one_without_room_says_so() {
    let (nic, chaos) = chaos("fail=100%");
    let mut backend = chaos.channel();
    for i in 0..20 {
        assert!(matches!(put(&mut *backend, i + 1), Err(PutError::Device(_))));
    }
    assert_eq!(nic.rules(), 0);
    set(&chaos, "fail=0 full=true");
    assert_eq!(put(&mut *backend, 1), Err(PutError::NoRoom));
    chaos.faults.clear();
    assert!(put(&mut *backend, 1).is_ok());
}

#[test]
fn of_the_deletes_that_fail_half_have_taken_effect_and_all_can_be_repeated() {
    let (nic, chaos) = chaos("seed=7");
    let mut backend = chaos.channel();
    let (mut effective, mut left) = (0, 0);
    for i in 1..=400 {
        let (handle, _) = put(&mut *backend, i).unwrap();
        set(&chaos, "fail=100%");
        assert!(backend.delete(handle).is_err());
        set(&chaos, "fail=0");
        match nic.rules() {
            0 => effective += 1,
            _ => left += 1,
        }
        backend.delete(handle).unwrap();
        assert_eq!(nic.rules(), 0);
    }
    assert!(effective > 150 && left > 150, "{effective} and {left}");
}

#[test]
fn counts_that_cannot_be_read_and_flushes_that_fail_leave_what_was_there() {
    let (nic, chaos) = chaos("");
    let mut backend = chaos.channel();
    let handles: Vec<Handle> = (1..=4).map(|i| put(&mut *backend, i).unwrap().0).collect();
    set(&chaos, "fail=100%");
    let mut counts = Vec::new();
    assert!(backend.stats(&handles, &mut counts).is_err());
    assert_eq!(counts, []);
    for _ in 0..20 {
        assert!(backend.flush(&handles).is_err());
    }
    assert_eq!(nic.rules(), 2, "some of them went all the same");
    chaos.faults.clear();
    backend.flush(&handles).unwrap();
    assert_eq!(nic.rules(), 0);
}

#[test]
fn a_device_that_resets_itself_forgets_its_rules_and_changes_its_generation() {
    let (nic, chaos) = chaos("");
    let mut backend = chaos.channel();
    put(&mut *backend, 1).unwrap();
    let before = backend.generation();
    set(&chaos, "reset=100%");
    put(&mut *backend, 2).unwrap();
    assert_eq!(nic.rules(), 1, "the second, put after the reset");
    assert_ne!(backend.generation(), before);
}

#[test]
fn lies_are_of_every_kind_and_the_same_with_the_same_seed() {
    let told = || {
        let (_, chaos) = chaos("lie=true seed=3");
        let mut backend = chaos.channel();
        let (handle, _) = put(&mut *backend, 1).unwrap();
        let mut counts = Vec::new();
        for _ in 0..50 {
            backend.stats(&[handle], &mut counts).unwrap();
        }
        counts
    };
    let counts = told();
    assert!(counts.iter().any(|stats| stats.packets == u64::MAX));
    assert!(counts.iter().any(|stats| stats.packets > 0 && stats.packets < u64::MAX));
    assert!(counts.windows(2).any(|pair| pair[1].packets < pair[0].packets), "they go back");
    assert_eq!(told(), counts);
}

#[test]
fn a_delay_is_spent_on_every_operation_outside_the_device() {
    use std::sync::atomic::{AtomicU64, Ordering};
    static SPENT: AtomicU64 = AtomicU64::new(0);
    let (_, chaos) = chaos("delay=10ms");
    let chaos = chaos.with_pace(|time| {
        SPENT.fetch_add(time.as_millis() as u64, Ordering::Relaxed);
    });
    let mut backend = chaos.channel();
    let (handle, _) = put(&mut *backend, 1).unwrap();
    backend.stats(&[handle], &mut Vec::new()).unwrap();
    backend.delete(handle).unwrap();
    assert_eq!(SPENT.load(Ordering::Relaxed), 30);
}

/// Begins a put of rule 1 in another thread, which hangs; where its result comes.
fn hang(chaos: &Chaos) -> mpsc::Receiver<Result<Handle, PutError>> {
    set(chaos, "hang=true");
    let mut backend = chaos.channel();
    let (result, receiver) = mpsc::channel();
    thread::spawn(move || result.send(put(&mut *backend, 1).map(|(handle, _)| handle)));
    assert_eq!(receiver.recv_timeout(Duration::from_millis(20)), Err(mpsc::RecvTimeoutError::Timeout));
    receiver
}

#[test]
fn an_operation_that_hangs_goes_on_when_the_fault_is_cleared() {
    let (nic, chaos) = chaos("");
    let result = hang(&chaos);
    assert_eq!(nic.rules(), 0);
    chaos.faults.clear();
    assert!(result.recv().unwrap().is_ok());
    assert_eq!(nic.rules(), 1);
}

#[test]
fn an_operation_that_hangs_across_a_restart_changes_nothing_and_the_hang_is_over() {
    let (nic, chaos) = chaos("");
    let result = hang(&chaos);
    chaos.restart().unwrap();
    assert!(matches!(result.recv().unwrap(), Err(PutError::Device(_))));
    assert_eq!(nic.rules(), 0);
    assert!(!chaos.faults.settings().hang);
    assert!(put(&mut *chaos.channel(), 1).is_ok());
}
