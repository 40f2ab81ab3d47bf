//! Random churn on a whole switch in this process, and what must hold when it is over.
//!
//! ```text
//!   seed ─► device, workers, pollers ─► churn ─► faults away, offload on, quiet ─► checks ─► flush, ports away ─► nothing left
//! ```
//!
//! One thread draws what to do next from the seed: packets, ports, rules, flows by hand, flushes, workers, pollers, receive
//! queues, policies, and faults of the device, hanging included. So a seed is the same decisions each time; what meets
//! what is the scheduler's.
//!
//! A seed runs for two seconds. The environment variable `OFFLOADD_CHURN` is another time, like `60s`; and
//! `OFFLOADD_CHURN_SEED` a single seed to run. A seed that fails prints itself, its last decisions and all that can be seen.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::fmt::Write as _;
use std::pin::pin;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak, mpsc};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use std::{env, fs, iter, panic, thread};

use futures_channel::oneshot;
use offloadd::datapath::inbox::{FlowView, Which};
use offloadd::datapath::poller::Reports;
use offloadd::datapath::shared::Shared;
use offloadd::datapath::switch::{PollerConfig, Switch};
use offloadd::flow::text::{parse_actions, parse_flow};
use offloadd::flow::{Field, Match, PortNo};
use offloadd::offload::backend::{self, BackendCaps, Device};
use offloadd::offload::{Flushed, Level, MarkRow, Offload, OffloadConfig, Reason, Snapshot, Standing, Wanted};
use offloadd::slowpath::{Options, Slowpath};

use crate::capture::{self, Frame};

const SEEDS: u64 = 10;
/// Seeds at a time: they mostly wait.
const AT_ONCE: usize = 5;
/// How long a seed runs unless the environment says otherwise.
const SHORT: Duration = Duration::from_secs(2);

/// The bound of every wait. The longest that is not a mistake is that of a rule which failed again and again: 12.5 s.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at something awaited.
const LOOK: Duration = Duration::from_millis(5);
/// What a timer does in the daemon is done this often.
const TICK: Duration = Duration::from_millis(20);
/// How long a worker may be in the device: short, so that many hang.
const DEVICE_PATIENCE: Duration = Duration::from_millis(100);
/// While nothing is to expire.
const FOR_EVER: Duration = Duration::from_secs(3_600);

/// Numbers that ports may have.
const PORTS: u64 = 6;
const FRAMES: usize = 3_000;
/// Of those, the frames that are sent most often, each of another flow.
const ELEPHANTS: usize = 40;
/// Decisions that a failure prints.
const REMEMBERED: usize = 60;

/// What devices are made of, in turn: everything, or little room, few marks, and less that they can do.
const DEVICES: [&str; 5] =
    ["", ",capacity=60", ",mark-bits=8", ",capacity=60,replace=false", ",without=set(eth)+vlan_vid"];

#[test]
fn whatever_happens_nothing_is_lost_or_left_behind() {
    let time = env::var("OFFLOADD_CHURN").map_or(SHORT, |text| humantime::parse_duration(&text).unwrap());
    let only = env::var("OFFLOADD_CHURN_SEED").ok().map(|text| text.parse().unwrap());
    let (first, end) = only.map_or((0, SEEDS), |seed: u64| (seed, seed + 1));
    let next = AtomicU64::new(first);
    let run = || {
        iter::from_fn(|| Some(next.fetch_add(1, Ordering::Relaxed)).filter(|seed| *seed < end))
            .map(|seed| panic::catch_unwind(|| round(seed, Length::Time(time))).map_err(|_| seed))
            .collect::<Vec<_>>()
    };
    let rounds: Vec<Result<Seen, u64>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(run)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let failed: Vec<u64> = rounds.iter().filter_map(|round| round.err()).collect();
    assert!(failed.is_empty(), "seeds {failed:?} failed");
    // Nothing was proved if nothing happened.
    let sum = |count: fn(&Seen) -> u64| rounds.iter().flatten().map(count).sum::<u64>();
    let seen = Seen { marked: sum(|s| s.marked), full: sum(|s| s.full), resumed: sum(|s| s.resumed) };
    println!("{seen:?}");
    assert!(seen.marked > 0 && seen.full > 0 && (seen.resumed > 0 || only.is_some()), "{seen:?}");
}

/// Other tests use memory meanwhile, so this one has a process to itself.
#[test]
fn memory_does_not_grow_from_round_to_round() {
    let alone = "churn::rounds_in_a_process_of_their_own";
    let run = Command::new(env::current_exe().unwrap()).args(["--exact", alone, "--ignored", "--nocapture"]).output();
    let run = run.unwrap();
    let said = [run.stdout, run.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).join("\n");
    assert!(run.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
#[ignore = "measures the memory of the whole process; memory_does_not_grow_from_round_to_round runs it"]
fn rounds_in_a_process_of_their_own() {
    /// In KiB. What the allocator keeps levels off after the second round; a leak would not.
    const MOST: u64 = 4 << 10;
    let resident: Vec<u64> = (0..4)
        .map(|_| {
            round(1, Length::Steps(1_000));
            let status = fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
            line.trim().trim_end_matches(" kB").parse().unwrap()
        })
        .collect();
    println!("resident after each round: {resident:?} KiB");
    let grown = resident[3].saturating_sub(resident[1]);
    assert!(grown <= MOST, "{grown} KiB in two rounds: {resident:?}");
}

#[derive(Clone, Copy)]
enum Length {
    Time(Duration),
    Steps(usize),
}

/// What happened in a round.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// Packets found by their mark.
    marked: u64,
    /// Packets that the device handled wholly.
    full: u64,
    /// Times that the device was given up and came back.
    resumed: u64,
}

/// One seed, from an empty switch to nothing.
fn round(seed: u64, length: Length) -> Seen {
    let mut churn = Churn::new(seed);
    churn.churn(length);
    churn.mend();
    churn.settle();
    churn.leave()
}

/// A switch, what was done to it, and what the one who did it knows of it.
struct Churn {
    seed: u64,
    random: Random,
    switch: Switch,
    device: Weak<dyn Device>,
    slowpath: Arc<Slowpath>,
    frames: Vec<Frame>,
    ports: BTreeMap<u32, OpenPort>,
    account: Account,
    pollers: u64,
    /// Times that the device came back.
    resumed: u64,
    /// Flushes asked for, and when nobody waits for them any more.
    flushes: Vec<(Instant, oneshot::Receiver<Flushed>)>,
    /// The last decisions.
    journal: VecDeque<String>,
    next_tick: Instant,
}

struct OpenPort {
    queues: u64,
    /// Frames that it took.
    accepted: u64,
}

/// Packets of ports that are gone.
#[derive(Default)]
struct Account {
    accepted: u64,
    /// Handled wholly by the device.
    full: u64,
    /// Of those accepted, how many may have gone with their port.
    in_flight: u64,
}

impl Churn {
    fn new(seed: u64) -> Churn {
        let mut random = Random(seed);
        let kind = format!("chaos,over=sim,level=full,ring=64,seed={seed}{}", DEVICES[(seed % 5) as usize]);
        let start = Instant::now();
        let opened = backend::open(&kind.parse().unwrap(), start).unwrap();
        let device = Arc::downgrade(&opened);
        let config = OffloadConfig {
            threads: 1 + random.below(4) as usize,
            queue_limit: *random.pick(&[16, 1_000]),
            stats_interval: Duration::from_millis(50),
            patience: DEVICE_PATIENCE,
            ..OffloadConfig::default()
        };
        let offload = Offload::start(Arc::clone(&opened), start, config).unwrap();
        let slowpath = Arc::new(Slowpath::new(Options { stations: 40, ageing: Duration::from_secs(1) }));
        let idle = Duration::from_millis(500);
        let shared = Arc::new(Shared::new(Arc::clone(&slowpath), offload.started(), 500, idle, false));
        let reports = Reports { channel: mpsc::channel().0, wake: Arc::new(|| ()) };
        let pollers = 1 + random.below(3);
        let config = PollerConfig { count: pollers as usize, cpus: Vec::new() };
        let switch = Switch::start(shared, offload, Some(opened), &config, reports).unwrap();
        switch.begin();
        let mut churn = Churn {
            seed,
            random,
            switch,
            device,
            slowpath,
            frames: capture::generate(seed, FRAMES),
            ports: BTreeMap::new(),
            account: Account::default(),
            pollers,
            resumed: 0,
            flushes: Vec::new(),
            journal: VecDeque::new(),
            next_tick: start,
        };
        churn.note(format!("device {kind}, {pollers} pollers"));
        churn.load_rules();
        (0..3).for_each(|_| churn.add_port());
        churn
    }

    fn churn(&mut self, length: Length) {
        let begun = Instant::now();
        for done in 0.. {
            match length {
                Length::Time(time) if begun.elapsed() >= time => return,
                Length::Steps(steps) if done >= steps => return,
                _ => {}
            }
            self.step();
            let now = Instant::now();
            if now >= self.next_tick {
                self.next_tick = now + TICK;
                self.tick(now);
            }
            // A breath for those who act on it; short enough that much happens at once.
            thread::sleep(Duration::from_micros(self.random.below(1_000)));
        }
    }

    /// One thing at random.
    fn step(&mut self) {
        match self.random.below(100) {
            0..60 => self.inject(),
            60..64 => self.add_port(),
            64..67 => self.remove_port(),
            67..69 => self.load_rules(),
            69..73 => self.change_rules(),
            73..76 => self.add_flow(),
            76..79 => self.modify_flow(),
            79..81 => self.delete_flow(),
            81..83 => self.flush_flows(),
            83..84 => self.flush_device(),
            84..85 => self.change_workers(),
            85..87 => self.change_pollers(),
            87..89 => self.move_queue(),
            89..91 => self.change_policy(),
            91..92 => self.change_limits(),
            92..94 => self.set_fault(),
            94..95 => self.hang(),
            95..99 => self.clear_faults(),
            _ => self.look(),
        }
    }

    fn tick(&mut self, now: Instant) {
        self.slowpath.expire(now);
        self.switch.refresh_ports(now);
        self.switch.offload.watch(now);
        self.flushes.retain(|(until, _)| *until > now);
    }

    /// A burst of a flow's frames, or of several flows'.
    fn inject(&mut self) {
        let Some(port) = self.some_port() else { return };
        let queue = self.random.below(self.ports[&port].queues) as usize;
        let (frames, each) = (1 + self.random.below(8), 1 + self.random.below(8));
        for _ in 0..frames {
            // Most are of few flows, so that those are still there when the next frame comes.
            let among = if self.random.chance(4) { self.frames.len() } else { ELEPHANTS };
            let which = self.random.below(among as u64) as usize;
            for _ in 0..each {
                let taken = self.switch.inject(&format!("p{port}"), queue, &self.frames[which].bytes).is_ok();
                self.ports.get_mut(&port).unwrap().accepted += u64::from(taken);
            }
        }
    }

    fn add_port(&mut self) {
        let (port, queues) = (self.any_port(), 1 + self.random.below(3));
        if self.ports.contains_key(&port) {
            return;
        }
        self.note(format!("add port {port}, {queues} queues"));
        let spec = format!("p{port},type=sim,port_no={port},queues={queues},mtu=1600");
        finish(self.switch.add_port(&spec.parse().unwrap())).unwrap();
        self.ports.insert(port, OpenPort { queues, accepted: 0 });
    }

    fn remove_port(&mut self) {
        let drained = self.random.chance(2);
        let Some(port) = self.some_port() else { return };
        self.note(format!("remove port {port}{}", if drained { " when it is empty" } else { "" }));
        self.take_port(port, drained);
    }

    fn take_port(&mut self, port: u32, drained: bool) {
        if drained {
            await_that("the port is empty", || self.in_flight(port) == 0);
        }
        let full = self.switch.device_counts(PortNo(port)).unwrap().full;
        self.account.in_flight += self.in_flight(port);
        self.account.full += full;
        assert_eq!(finish(self.switch.remove_port(PortNo(port))), Some(format!("p{port}")));
        self.account.accepted += self.ports.remove(&port).unwrap().accepted;
    }

    /// Frames of an open port that neither a poller nor the device has dealt with.
    fn in_flight(&self, port: u32) -> u64 {
        let full = self.switch.device_counts(PortNo(port)).unwrap().full;
        self.ports[&port].accepted - full - self.port_count(port, "rx_packets")
    }

    fn port_count(&self, port: u32, count: &str) -> u64 {
        self.switch.port_views().iter().find(|view| view.info.number.0 == port).unwrap().counters[count]
    }

    fn load_rules(&mut self) {
        let rules: Vec<String> = (0..self.random.below(6)).map(|_| self.random.rule()).collect();
        let text = rules.join("\n") + "\npriority=0,actions=normal\n";
        self.note(format!("load {} rules", rules.len() + 1));
        self.slowpath.load(&text, &self.switch.names(), Instant::now()).unwrap();
    }

    fn change_rules(&mut self) {
        let names = self.switch.names();
        if self.random.chance(3) {
            let which = *self.random.pick(&["ip", "udp", "in_port=1", "dl_type=0x0806"]);
            self.note(format!("delete rules of {which}"));
            self.slowpath.delete_rules(which, false, &names).unwrap();
        } else {
            let rule = self.random.rule();
            self.note(format!("add rule {rule}"));
            self.slowpath.add_rules([rule.as_str()], &names, Instant::now()).unwrap();
        }
    }

    fn add_flow(&mut self) {
        let (matching, actions) = self.random.flow();
        self.note(format!("add flow {matching} {actions}"));
        // There may be one already.
        let _ = finish(self.switch.add_flow(None, flow(&matching), parse_actions(&actions, &()).unwrap()));
    }

    fn modify_flow(&mut self) {
        let (matching, actions) = self.random.flow();
        let clear = self.random.chance(2);
        self.note(format!("modify flow {matching} {actions}"));
        let which = Which::Match(Box::new(flow(&matching)));
        finish(self.switch.modify_flow(which, parse_actions(&actions, &()).unwrap(), clear));
    }

    fn delete_flow(&mut self) {
        let (matching, _) = self.random.flow();
        self.note(format!("delete flow {matching}"));
        finish(self.switch.delete_flow(Which::Match(Box::new(flow(&matching)))));
    }

    fn flush_flows(&mut self) {
        let from = self.random.chance(2).then(|| PortNo(self.any_port()));
        self.note(format!("flush flows from {from:?}"));
        finish(self.switch.flush(from));
    }

    fn flush_device(&mut self) {
        let patience = Duration::from_millis(self.random.below(200));
        self.note(format!("flush the device, for {patience:?}"));
        self.flushes.push((Instant::now() + patience, self.switch.offload.flush()));
    }

    fn change_workers(&mut self) {
        let workers = 1 + self.random.below(4) as usize;
        self.note(format!("{workers} workers"));
        self.switch.offload.set_threads(workers).unwrap();
    }

    fn change_pollers(&mut self) {
        self.pollers = 1 + self.random.below(3);
        self.note(format!("{} pollers", self.pollers));
        let config = PollerConfig { count: self.pollers as usize, cpus: Vec::new() };
        finish(self.switch.set_pollers(&config)).unwrap();
    }

    fn move_queue(&mut self) {
        let Some(port) = self.some_port() else { return };
        let queue = self.random.below(self.ports[&port].queues) as usize;
        let poller = self.random.below(self.pollers) as usize;
        self.note(format!("move queue {queue} of port {port} to poller {poller}"));
        finish(self.switch.move_rx(PortNo(port), queue, poller)).unwrap();
    }

    fn change_policy(&mut self) {
        let wanted = Wanted {
            enabled: !self.random.chance(4),
            min_packets: *self.random.pick(&[0, 0, 3]),
            min_age: Duration::from_millis(*self.random.pick(&[0, 0, 100])),
            min_rate: *self.random.pick(&[0, 0, 0, 5]),
            operation_rate: *self.random.pick(&[0, 0, 50, 1_000]),
        };
        self.note(format!("{wanted:?}"));
        self.switch.offload.set(&wanted);
    }

    fn change_limits(&mut self) {
        let (flows, idle) = (*self.random.pick(&[30, 500]), Duration::from_millis(50 + self.random.below(1_000)));
        self.note(format!("at most {flows} flows, idle for {idle:?}"));
        self.switch.shared.set_flow_limit(flows);
        self.switch.shared.set_max_idle(idle);
    }

    fn set_fault(&mut self) {
        let faults = [
            ("fail", "20%"),
            ("fail", "100%"),
            ("delay", "1ms"),
            ("delay", "20ms"),
            ("full", "true"),
            ("reset", "2%"),
            ("lie", "true"),
        ];
        let fault = *self.random.pick(&faults);
        self.note(format!("fault {fault:?}"));
        self.set_faults(fault);
    }

    fn hang(&mut self) {
        self.note("the device hangs");
        self.set_faults(("hang", "true"));
    }

    fn set_faults(&self, fault: (&str, &str)) {
        self.switch.device().unwrap().faults().unwrap().set([fault]).unwrap();
    }

    /// Takes all faults away and brings the device back; or brings it back while they last.
    fn clear_faults(&mut self) {
        let (clear, resume) = (!self.random.chance(4), !self.random.chance(4));
        self.note(format!("clear faults: {clear}, resume: {resume}"));
        if clear {
            self.switch.device().unwrap().faults().unwrap().clear();
        }
        if resume {
            self.resume();
        }
    }

    fn resume(&mut self) {
        if self.switch.offload.resume().unwrap() {
            finish(self.switch.renew_agents());
            self.resumed += 1;
        }
    }

    /// Reads what operators read, which changes nothing.
    fn look(&self) {
        self.switch.offload.snapshot();
        self.dump();
    }

    /// Takes away what is in the way of offloading.
    fn mend(&mut self) {
        self.note("the end of the churn");
        self.switch.device().unwrap().faults().unwrap().clear();
        self.resume();
        self.switch.shared.set_flow_limit(10_000);
        self.switch.shared.set_max_idle(FOR_EVER);
        self.flushes.clear();
    }

    /// Waits until all is quiet and as it must be: first under a policy, then without, at last with one poller.
    fn settle(&mut self) {
        let wanted = Wanted { min_packets: 3, ..Wanted::default() };
        for wanted in [wanted, Wanted::default()] {
            self.switch.offload.set(&wanted);
            self.await_nothing_wrong(&format!("{wanted:?}"), |churn| churn.wrong(&wanted));
        }
        let one = PollerConfig { count: 1, cpus: Vec::new() };
        finish(self.switch.set_pollers(&one)).unwrap();
        self.await_nothing_wrong("one poller", |churn| churn.wrong(&Wanted::default()));
    }

    /// Removes everything and sees that it is gone.
    fn leave(mut self) -> Seen {
        self.note("leave");
        self.slowpath.load("", &self.switch.names(), Instant::now()).unwrap();
        finish(self.switch.flush(None));
        let flushed = finish(self.switch.offload.flush()).unwrap();
        assert_eq!(flushed.trouble, None);
        while let Some(port) = self.some_port() {
            self.take_port(port, true);
        }
        self.await_nothing_wrong("nothing is left", Churn::left);
        let device = Weak::clone(&self.device);
        let marked = self.switch.totals().lookup.mark_hit.get();
        let seen = Seen { marked, full: self.account.full, resumed: self.resumed };
        self.switch.stop();
        let stopped = self.switch.offload.stop(Instant::now() + PATIENCE);
        assert_eq!((stopped.removed, stopped.left), (0, 0));
        drop(self);
        await_that("everybody has let go of the device", || device.strong_count() == 0);
        seen
    }

    fn await_nothing_wrong(&self, what: &str, wrong: impl Fn(&Churn) -> Vec<String>) {
        let begun = Instant::now();
        loop {
            let found = wrong(self);
            if found.is_empty() {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "in vain: {what}:\n  {}", found.join("\n  "));
            thread::sleep(LOOK);
        }
    }

    /// What is not as it must be in a quiet switch whose device is well, and that offloads as `wanted`.
    fn wrong(&self, wanted: &Wanted) -> Vec<String> {
        let mut wrong = Vec::new();
        let snapshot = self.switch.offload.snapshot();
        let dump = self.dump();
        let rows = self.mark_rows();
        self.compare_device(&snapshot, &rows, &mut wrong);
        let rows: HashMap<Match, &MarkRow> = rows.iter().map(|row| (row.matching, row)).collect();
        let caps = self.switch.device().unwrap().capabilities();
        for (poller, view) in &dump {
            if let Err(why) = self.judge(*poller, view, &rows, &snapshot, &caps, wanted) {
                wrong.push(format!("poller {poller}: {why}: {view:?}"));
            }
        }
        let live: HashSet<(u32, Match)> = dump.iter().map(|(poller, view)| (*poller, view.matching)).collect();
        for row in rows.values() {
            let alone = row.owners.is_empty() || row.owners.iter().any(|owner| !live.contains(&(*owner, row.matching)));
            if alone {
                wrong.push(format!("a rule without a flow: {row:?}"));
            }
        }
        compare_gauges(&snapshot, &dump, &mut wrong);
        self.count_flows(&dump, &mut wrong);
        self.count_packets(&mut wrong);
        wrong
    }

    /// The device's table, the workers' idea of it, and the marks.
    fn compare_device(&self, snapshot: &Snapshot, rows: &[MarkRow], wrong: &mut Vec<String>) {
        let Snapshot { marks, queue, .. } = snapshot;
        let mut in_table: Vec<u32> =
            self.switch.device().unwrap().marks().unwrap().iter().map(|mark| mark.0.get()).collect();
        in_table.sort_unstable();
        let believed: Vec<u32> = rows.iter().map(|row| row.mark).collect();
        let mut check = |what: &str, holds: bool| {
            if !holds {
                wrong.push(what.to_owned());
            }
        };
        check("the device is off", snapshot.off.is_none());
        check(&format!("marks in the device {in_table:?}, believed {believed:?}"), in_table == believed);
        check(&format!("{} rules, {} in the device", snapshot.rules, in_table.len()), snapshot.rules == in_table.len());
        check(&format!("{marks:?}, {} rules", snapshot.rules), marks.in_use == snapshot.rules as u64);
        check(&format!("{marks:?}"), marks.quarantined == 0);
        check(&format!("{queue:?}"), (queue.depth, queue.deletes) == (0, 0));
        let served: BTreeSet<u32> = snapshot.ports.iter().map(|row| row.number.0).collect();
        check(&format!("ports served: {served:?}"), served.iter().eq(self.ports.keys()));
    }

    /// Whether a flow has come as far as it can, and says so.
    fn judge(
        &self,
        poller: u32,
        view: &FlowView,
        rows: &HashMap<Match, &MarkRow>,
        snapshot: &Snapshot,
        caps: &BackendCaps,
        wanted: &Wanted,
    ) -> Result<(), String> {
        let row = rows.get(&view.matching);
        let standing = view.standing.ok_or("has no standing")?;
        let trouble = view.trouble.as_ref();
        let ensure = |holds: bool, what: &str| if holds { Ok(()) } else { Err(what.to_owned()) };
        let why = match standing {
            Standing::Offloaded(level) => {
                let row = row.ok_or("offloaded without a rule")?;
                ensure(row.owners.contains(&poller), "not among the owners of its rule")?;
                ensure(view.mark.map(|mark| mark.0.get()) == Some(row.mark), "not bound to its rule's mark")?;
                ensure(row.level == level, "not at its rule's level")?;
                return ensure(level == Level::Full || trouble.is_some(), "marked only, for no reason");
            }
            Standing::Refused(why) => why,
            other => return Err(format!("{other:?} though nothing happens")),
        };
        ensure(trouble.is_some_and(|trouble| trouble.why == why), "refused, and says another reason or none")?;
        ensure(row.is_none() || why == Reason::Policy, "refused, and in the device")?;
        let port = view.matching.mask().is_exact(Field::InPort).then(|| view.matching.key().in_port().0);
        let holds = match why {
            Reason::NoMark => snapshot.marks.in_use == snapshot.marks.capacity,
            Reason::NoRoom | Reason::Evicted => Some(snapshot.rules) == snapshot.capacity,
            Reason::Match | Reason::Action => caps.check(&view.matching, &view.actions).is_err(),
            Reason::Port => port.map_or(self.ports.is_empty(), |port| !self.ports.contains_key(&port)),
            Reason::Policy => wanted.min_packets > view.stats.packets,
            Reason::QueueFull | Reason::Device | Reason::Off | Reason::Disabled => false,
        };
        ensure(holds, "refused for a reason that does not hold")
    }

    fn count_flows(&self, dump: &[(u32, FlowView)], wrong: &mut Vec<String>) {
        let by_hand = dump.iter().filter(|(_, view)| view.by_hand).count();
        let counted = (self.switch.shared.flows(), self.switch.shared.by_hand());
        if counted != (dump.len() - by_hand, by_hand) {
            wrong.push(format!("{counted:?} flows decided and by hand are counted, {by_hand} of {} are", dump.len()));
        }
        let mut pollers: HashMap<Match, u64> = HashMap::new();
        for (_, view) in dump.iter().filter(|(_, view)| view.by_hand) {
            *pollers.entry(view.matching).or_default() += 1;
        }
        let all = self.switch.pollers() as u64;
        wrong.extend(pollers.iter().filter(|(_, n)| **n != all).map(|(flow, n)| format!("by hand in {n}: {flow:?}")));
    }

    /// Every frame that a port took was looked up or handled wholly, but for those that went with their port.
    fn count_packets(&self, wrong: &mut Vec<String>) {
        let Account { mut accepted, mut full, in_flight } = self.account;
        for (number, port) in &self.ports {
            let counts = self.switch.device_counts(PortNo(*number)).unwrap();
            let received = self.port_count(*number, "rx_packets");
            if counts.hits + counts.misses + counts.busy != received || counts.full + received != port.accepted {
                let all = port.accepted;
                wrong.push(format!("port {number} took {all} frames, {received} were received, of {counts:?}"));
            }
            accepted += port.accepted;
            full += counts.full;
        }
        let looked_up: u64 = self.switch.totals().lookup.list().iter().map(|(_, n)| n).sum();
        if !(accepted - in_flight..=accepted).contains(&(looked_up + full)) {
            wrong.push(format!(
                "{accepted} frames, up to {in_flight} lost; {looked_up} looked up, {full} handled wholly"
            ));
        }
    }

    /// What is left though there is no port and no flow.
    fn left(&self) -> Vec<String> {
        let snapshot = self.switch.offload.snapshot();
        let left = [
            ("rules", snapshot.rules),
            ("rules in the device", self.switch.device().unwrap().marks().unwrap().len()),
            ("megaflows", snapshot.megaflows),
            ("marks in use", snapshot.marks.in_use as usize),
            ("marks in quarantine", snapshot.marks.quarantined as usize),
            ("puts", snapshot.queue.depth),
            ("deletes", snapshot.queue.deletes),
            ("reasons", snapshot.refused.len() + snapshot.short.len()),
            ("waiting for room", snapshot.workers.iter().map(|worker| worker.waiting).sum()),
            ("ports", snapshot.ports.len() + self.switch.port_views().len()),
            ("flows", self.switch.shared.flows() + self.switch.shared.by_hand()),
            ("cells", self.switch.offload.cells()),
        ];
        left.iter().filter(|(_, n)| *n > 0).map(|(what, n)| format!("{n} {what}")).collect()
    }

    /// Every flow, with its poller.
    fn dump(&self) -> Vec<(u32, FlowView)> {
        let mut all = Vec::new();
        for poller in 0..self.switch.pollers() {
            let mut next = Some(0);
            while let Some(from) = next {
                let page = finish(self.switch.page(poller, from));
                all.extend(page.flows.into_iter().map(|view| (poller as u32, view)));
                next = page.next;
            }
        }
        all
    }

    /// Every rule that workers believe to be in the device, by mark.
    fn mark_rows(&self) -> Vec<MarkRow> {
        let mut rows = Vec::new();
        let mut next = Some(0);
        while let Some(after) = next {
            let page = finish(self.switch.offload.marks(after, 1_000)).unwrap();
            rows.extend(page.rows);
            next = page.next;
        }
        rows
    }

    fn any_port(&mut self) -> u32 {
        1 + self.random.below(PORTS) as u32
    }

    /// A port that is open.
    fn some_port(&mut self) -> Option<u32> {
        let nth = self.random.below(self.ports.len().max(1) as u64) as usize;
        self.ports.keys().nth(nth).copied()
    }

    fn note(&mut self, what: impl Into<String>) {
        self.journal.push_back(what.into());
        if self.journal.len() > REMEMBERED {
            self.journal.pop_front();
        }
    }
}

impl Drop for Churn {
    /// Prints everything should the seed have failed.
    fn drop(&mut self) {
        if thread::panicking() {
            let mut state = format!("seed {} failed. What was done last:\n", self.seed);
            for what in &self.journal {
                // Writing to a string does not fail.
                let _ = writeln!(state, "  {what}");
            }
            let _ = writeln!(state, "{:#?}", self.switch.offload.snapshot());
            for view in self.switch.port_views() {
                let _ = writeln!(state, "{view:?}");
            }
            eprintln!("{state}{}", self.slowpath.save());
        }
        self.switch.stop();
    }
}

/// What is shown of refused and short megaflows, against the flows that say so. Several pollers' flows of one megaflow are
/// one to the worker, but those that no worker knows are counted one by one; so with one poller, counts are equal.
fn compare_gauges(snapshot: &Snapshot, dump: &[(u32, FlowView)], wrong: &mut Vec<String>) {
    for why in Reason::ALL {
        let gauge = |gauges: &[(Reason, usize)]| gauges.iter().find(|(of, _)| *of == why).map_or(0, |(_, n)| *n);
        let refused: Vec<Match> = dump
            .iter()
            .filter(|(_, view)| view.standing == Some(Standing::Refused(why)))
            .map(|(_, view)| view.matching)
            .collect();
        let megaflows = refused.iter().collect::<HashSet<_>>().len();
        if !(megaflows..=refused.len()).contains(&gauge(&snapshot.refused)) {
            let shown = gauge(&snapshot.refused);
            wrong.push(format!("{shown} refused ({why}); {} flows of {megaflows} megaflows are", refused.len()));
        }
        let is_short = |view: &FlowView| {
            matches!(view.standing, Some(Standing::Offloaded(_)))
                && view.trouble.as_ref().is_some_and(|trouble| trouble.why == why)
        };
        let short = dump.iter().filter(|(_, view)| is_short(view)).map(|(_, view)| view.matching);
        let short = short.collect::<HashSet<_>>().len();
        if gauge(&snapshot.short) != short {
            wrong.push(format!("{} marked only ({why}); {short} are", gauge(&snapshot.short)));
        }
    }
}

fn flow(text: &str) -> Match {
    parse_flow(text, &()).unwrap().matching
}

/// The same numbers for the same seed (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Once in `times`.
    fn chance(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len() as u64) as usize]
    }

    fn port(&mut self) -> u64 {
        1 + self.below(PORTS)
    }

    /// Of the kinds that a packet's actions are: learned, sent, edited, tagged, dropped.
    fn rule(&mut self) -> String {
        let (port, priority) = (self.port(), self.below(50));
        let matching = match self.below(7) {
            0 => "ip".to_owned(),
            1 => "udp".to_owned(),
            2 => format!("in_port={}", self.port()),
            3 => format!("ip,nw_dst=10.{}.0.0/16", self.below(4)),
            4 => format!("tcp,tp_dst={}", self.pick(&[22, 80, 443])),
            5 => format!("dl_vlan={}", 1 + self.below(40)),
            _ => "dl_type=0x0806".to_owned(),
        };
        let actions = match self.below(8) {
            0 => "normal".to_owned(),
            1 | 2 => format!("output:{port}"),
            3 => "drop".to_owned(),
            4 => format!("mod_dl_dst:02:00:00:00:00:{:02x},output:{port}", self.below(32)),
            5 => format!("push_vlan:0x8100,mod_vlan_vid:{},output:{port}", 1 + self.below(40)),
            6 => format!("strip_vlan,output:{port}"),
            _ => "flood".to_owned(),
        };
        let timeout = if self.chance(4) { "hard_timeout=1," } else { "" };
        format!("priority={priority},{timeout}{matching},actions={actions}")
    }

    /// A flow by hand and its actions: few enough that one is often met again.
    fn flow(&mut self) -> (String, String) {
        let (from, to) = (self.port(), self.port());
        let matching = match self.below(5) {
            0 => format!("in_port({from}),eth_type(0x0806)"),
            1 => format!("in_port({from}),eth_type(0x0800),ipv4(dst=10.{}.0.0/255.255.0.0)", self.below(4)),
            2 => "eth_type(0x86dd)".to_owned(),
            3 => format!("in_port({from}),eth_type(0x8100),vlan(vid={})", 1 + self.below(8)),
            _ => format!("eth(src=02:00:00:00:00:{:02x}),eth_type(0x88b5)", self.below(8)),
        };
        let actions = match self.below(5) {
            0 => "drop".to_owned(),
            1 => format!("{to},{from}"),
            2 => format!("push_vlan(vid={},pcp=1),{to}", 1 + self.below(40)),
            3 => format!("set(eth(dst=02:00:00:00:00:{:02x})),{to}", self.below(8)),
            _ => to.to_string(),
        };
        (matching, actions)
    }
}

fn await_that(what: &str, mut cond: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !cond() {
        assert!(begun.elapsed() < PATIENCE, "in vain: {what}");
        thread::sleep(Duration::from_micros(200));
    }
}

fn finish<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut answer = None;
    await_that("an answer", || match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => answer.replace(value).is_none(),
        Poll::Pending => false,
    });
    answer.unwrap()
}
