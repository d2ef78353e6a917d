//! Pauses and resumes whole trees. Runs in the test process, as ordinary code.
//!
//! A signal to the service's process group would miss a process with its own session. So this code
//! walks the tree. It signals each process through a pidfd, after checking again that the process
//! is a descendant. A process may fork between the check and the signal, so the walk repeats until
//! it finds no new process.

use super::handle;
use crate::sys::proc as procfs;

/// Signals every descendant of `root`.
pub(super) fn signal_tree(root: u32, signal: i32) {
    let mut done = Vec::new();
    // The limit ends the loop for a tree that forks faster than it can be walked.
    for _ in 0..100 {
        let mut new = procfs::tree(root);
        new.retain(|pid| *pid != root && !done.contains(pid));
        if new.is_empty() {
            return;
        }
        for pid in new {
            signal_descendant(pid, root, signal);
            done.push(pid);
        }
    }
}

fn signal_descendant(pid: u32, root: u32, signal: i32) {
    // SAFETY: `signal_if` is sound with any arguments.
    unsafe { handle::signal_if(pid as i32, signal, || procfs::descends(pid, root)) };
}
