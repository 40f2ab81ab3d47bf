//! Batches through the real pipeline, by the level that finds their flows.

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput};
use offloadd::flow::Actions;

use crate::rig::{Rig, output, tuple_mask, tuple_masks, wide_mask};

const COUNTS: [(u32, &str); 4] = [(1, "1"), (1_000, "1k"), (10_000, "10k"), (100_000, "100k")];

pub fn bench(c: &mut Criterion) {
    let tuple = [tuple_mask(32)];
    marks(&mut group(c, "mark hit, output"), &tuple);

    let mut g = group(c, "EMC hit, drop");
    for (flows, name) in &COUNTS[..2] {
        case(&mut g, &format!("{name} flows"), Rig::exact(*flows, &tuple_masks(10), &Actions::drop()).cached(), keep);
    }
    g.finish();

    let mut g = group(c, "megaflow hit, drop");
    case(&mut g, "1 flow, 1 wide megaflow", Rig::wide(1, &wide_mask(), &Actions::drop()), Rig::pass_by_emc);
    case(&mut g, "10k flows, 1 wide megaflow", Rig::wide(10_000, &wide_mask(), &Actions::drop()), Rig::pass_by_emc);
    for (flows, name) in COUNTS {
        let rig = Rig::exact(flows, &tuple, &Actions::drop());
        case(&mut g, &format!("{name} exact flows"), rig, Rig::pass_by_emc);
    }
    for (masks, flows, name) in [(10, 10, "10"), (50, 50, "50"), (10, 10_000, "10k"), (50, 10_000, "10k")] {
        let rig = Rig::exact(flows, &tuple_masks(masks), &Actions::drop());
        case(&mut g, &format!("{name} exact flows in {masks} subtables"), rig, Rig::pass_by_emc);
    }
    g.finish();

    let mut g = group(c, "megaflow hit, output");
    for (flows, name) in COUNTS {
        case(&mut g, &format!("{name} exact flows"), Rig::exact(flows, &tuple, &output()), Rig::pass_by_emc);
    }
    g.finish();

    // The cache decides by itself what it keeps and whether it rests.
    let mut g = group(c, "EMC and megaflow, drop");
    for (masks, flows, name) in [
        (1, 1, "1"),
        (1, 1_000, "1k"),
        (1, 10_000, "10k"),
        (1, 100_000, "100k"),
        (10, 1_000, "1k"),
        (10, 10_000, "10k"),
        (50, 1_000, "1k"),
        (50, 10_000, "10k"),
    ] {
        let mut rig = Rig::exact(flows, &tuple_masks(masks), &Actions::drop());
        // Until every flow has been drawn for the cache.
        rig.measure(2_000_000, keep, keep);
        case(&mut g, &format!("{name} exact flows in {masks} subtables"), rig, keep);
    }
    g.finish();
}

fn marks(g: &mut BenchmarkGroup<'_, WallTime>, tuple: &[offloadd::flow::Mask]) {
    for (flows, name) in COUNTS {
        case(g, &format!("{name} flows"), Rig::exact(flows, tuple, &output()).marked(), keep);
    }
}

fn group<'c>(c: &'c mut Criterion, name: &str) -> BenchmarkGroup<'c, WallTime> {
    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::Elements(1));
    group
}

fn keep(_: &mut Rig) {}

fn case(g: &mut BenchmarkGroup<'_, WallTime>, name: &str, mut rig: Rig, before: fn(&mut Rig)) {
    g.bench_function(name, |b| {
        b.iter_custom(|packets| {
            let (time, done) = rig.measure(packets, before, keep);
            time.mul_f64(packets as f64 / done as f64)
        });
    });
}
