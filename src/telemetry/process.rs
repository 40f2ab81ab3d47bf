//! What the kernel tells of this process: proc(5).

use std::fs;

/// Bytes of the process that are in memory; 0 where the kernel does not tell.
pub fn resident_bytes() -> usize {
    let pages = fs::read_to_string("/proc/self/statm").ok().and_then(|text| text.split(' ').nth(1)?.parse().ok());
    pages.unwrap_or(0usize) * rustix::param::page_size()
}

/// Processor time of all threads, in seconds.
pub fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
