//! What a packet costs, by where its flow is found: `cargo bench --bench cost`. Times are of one packet, but of a batch
//! of 32 in *key extraction* and *simulated NIC stamping*, and of one flow in *offload adopt*.
//!
//! Everything runs on one thread without devices: the receive side is left out, and what is sent goes to a queue that
//! only gives the buffers back. `cargo bench --bench cost -- --test` runs each once, to see that it still can.

mod lookup;
mod offload;
mod packet;
mod rig;
mod upcall;

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .without_plots();
    targets = packet::bench, lookup::bench, upcall::bench, offload::bench
}
criterion_main!(benches);
