//! How the scheduler treats a thread (sched(7), sched_setattr(2)).

use std::io;
use std::mem::size_of;

use libc::sched_attr;

use super::netdev::checked;

/// The shortest turn that the kernel gives, in nanoseconds (`__setparam_fair` in its kernel/sched/syscalls.c).
const SHORTEST: u64 = 100_000;

/// Asks for the shortest turns for the calling thread. It gets as much of a processor as before, in more pieces; and when it wakes, it gets the next
/// before a thread that takes longer ones, instead of after that one's turn of some milliseconds. From Linux 6.12 on; before, nothing changes.
/// Needs no privilege.
///
/// # Errors
/// The thread is not scheduled fairly, or a filter of system calls forbids it; it is as before.
pub fn take_short_turns() -> io::Result<()> {
    let size = size_of::<sched_attr>() as u32;
    let mut attributes = sched_attr {
        size,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    let (own, no_flags) = (0, 0);
    // SAFETY: of this thread; the kernel writes at most `size` bytes, integers, into `attributes`, which is that long.
    checked(unsafe { libc::syscall(libc::SYS_sched_getattr, own, &raw mut attributes, size, no_flags) } as i32)?;
    if !matches!(attributes.sched_policy as i32, libc::SCHED_OTHER | libc::SCHED_BATCH) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    attributes.sched_runtime = SHORTEST;
    // SAFETY: of this thread; the kernel reads as many bytes as the member `size` says, which it has just set to no more than there are.
    checked(unsafe { libc::syscall(libc::SYS_sched_setattr, own, &raw mut attributes, no_flags) } as i32).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_may_ask_for_it_without_a_privilege() {
        std::thread::spawn(|| take_short_turns().unwrap()).join().unwrap();
    }
}
