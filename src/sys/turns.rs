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
    let mut attributes = attributes()?;
    if !matches!(attributes.sched_policy as i32, libc::SCHED_OTHER | libc::SCHED_BATCH) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    attributes.sched_runtime = SHORTEST;
    let (own, no_flags) = (0, 0);
    // SAFETY: of this thread; the kernel reads as many bytes as the member `size` says, which it has set to no more than there are.
    checked(unsafe { libc::syscall(libc::SYS_sched_setattr, own, &raw mut attributes, no_flags) } as i32).map(drop)
}

/// How the calling thread is scheduled.
fn attributes() -> io::Result<sched_attr> {
    let size = size_of::<sched_attr>() as u32;
    // SAFETY: integers, of which all zero bits are a value.
    let mut attributes: sched_attr = unsafe { std::mem::zeroed() };
    let (own, no_flags) = (0, 0);
    // SAFETY: of this thread; the kernel writes at most `size` bytes, integers, into `attributes`, which is that long.
    checked(unsafe { libc::syscall(libc::SYS_sched_getattr, own, &raw mut attributes, size, no_flags) } as i32)?;
    Ok(attributes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_asks_has_short_turns_and_no_other() {
        let turn = || attributes().unwrap().sched_runtime;
        let before = turn();
        let after = std::thread::spawn(move || {
            take_short_turns().unwrap();
            turn()
        });
        // An older kernel tells of none.
        assert_eq!(after.join().unwrap(), if before == 0 { 0 } else { SHORTEST });
        assert_eq!(turn(), before);
    }
}
