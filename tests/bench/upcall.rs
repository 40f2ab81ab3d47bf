//! A new flow per packet: decided by the rules, installed, its packet sent.

use std::sync::Arc;
use std::time::Instant;

use criterion::{Criterion, Throughput};
use offloadd::offload::backend::sim;
use offloadd::offload::{Offload, OffloadConfig};

use crate::rig::Rig;

/// Flows in turn: as many as one measurement takes, so that each packet's is unknown.
const FLOWS: u32 = 256;

pub fn bench(c: &mut Criterion) {
    let mut g = c.benchmark_group("upcall and install");
    g.throughput(Throughput::Elements(1));
    // The worker takes no turn, so it is never woken; it is measured by itself.
    let (offload, _worker) = Offload::assemble(
        sim::open(sim::Options::default(), Instant::now()),
        Instant::now(),
        &OffloadConfig::default(),
    );
    for (name, agent) in [("without a device", None), ("and offload asked for", offload.agent(0, Box::new(|| {})))] {
        let mut rig = Rig::new(agent);
        rig.traffic(FLOWS);
        // A rule for each, so that each gets a megaflow of its own.
        let rules: Vec<String> =
            (0..FLOWS).map(|n| format!("priority=1,ip,nw_src=10.0.0.{n},actions=output:2")).collect();
        let slowpath = Arc::clone(&rig.pipeline.shared.slowpath);
        slowpath.add_rules(rules.iter().map(String::as_str), &(), rig.now).expect("the rules are right");
        g.bench_function(name, |b| {
            b.iter_custom(|packets| {
                let counters = Arc::clone(&rig.pipeline.counters);
                let before = counters.lookup.upcall_installed.get();
                let (time, done) = rig.measure(packets, |_| {}, Rig::forget);
                assert_eq!(counters.lookup.upcall_installed.get() - before, done, "each packet installs a megaflow");
                time.mul_f64(packets as f64 / done as f64)
            });
        });
    }
    g.finish();
}
