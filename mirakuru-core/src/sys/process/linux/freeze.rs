//! Stops and continues whole trees. Runs in the test process, as ordinary code.
//!
//! The service's process group is not enough: what made a session of its own is in another. So the
//! tree is walked, from the supervisor's worker down, and each process is signalled through a pidfd
//! after a second check of whose descendant it is. A process may fork between the check and the
//! signal; so it is looked again until nobody new is found.

use std::collections::BTreeSet;

use nix::errno::Errno;

use crate::sys::proc as procfs;

/// Signals every descendant of this process.
pub(super) fn signal_tree(root: u32, signal: i32) {
    let mut done = BTreeSet::new();
    // A tree that forks faster than it is walked is not chased for ever.
    for _ in 0..100 {
        let new: Vec<u32> = procfs::tree(root)
            .into_iter()
            .filter(|pid| *pid != root && !done.contains(pid))
            .collect();
        if new.is_empty() {
            return;
        }
        for pid in new {
            signal_descendant(pid, root, signal);
            done.insert(pid);
        }
    }
}

fn signal_descendant(pid: u32, root: u32, signal: i32) {
    // SAFETY: plain system calls; the pidfd is closed again. It names one process for ever, so that
    // what is asked of the process id after it was opened holds for what is signalled.
    unsafe {
        let Ok(fd) = Errno::result(libc::syscall(libc::SYS_pidfd_open, pid, 0)) else {
            return;
        };
        if procfs::descends(pid, root) {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                fd,
                signal,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            );
        }
        libc::close(fd as libc::c_int);
    }
}
