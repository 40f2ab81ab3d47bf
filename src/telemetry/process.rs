//! What the kernel tells of this process: proc(5).

use std::fs;

/// Bytes of the process that are in memory; 0 where the kernel does not tell.
pub fn resident_bytes() -> usize {
    let pages = fs::read_to_string("/proc/self/statm").ok().and_then(|text| text.split(' ').nth(1)?.parse().ok());
    pages.unwrap_or(0usize) * rustix::param::page_size()
}
