//! Sends signals through pidfds, so that a process that reuses an id is never hit.

use std::io;
use std::os::fd::OwnedFd;
use std::ptr;

use once_cell::sync::Lazy;

use super::{memory, os};

/// Whether pidfds are unavailable, as they are under valgrind 3.19. Without pidfds, processes are
/// identified by their ids alone. The test process checks this before it forks a supervisor, which
/// inherits the answer.
pub(crate) fn pidfds_are_missing() -> bool {
    static MISSING: Lazy<bool> = Lazy::new(|| {
        let unknown = |e: io::Error| e.raw_os_error() == Some(libc::ENOSYS);
        memory::is_under_valgrind() && os::pidfd(std::process::id()).is_err_and(unknown)
    });
    *MISSING
}

/// A pidfd of this process, if the system has pidfds.
pub(super) fn of_this_process() -> io::Result<Option<OwnedFd>> {
    match pidfds_are_missing() {
        true => Ok(None),
        false => os::pidfd(std::process::id()).map(Some),
    }
}

/// Signals a process if `is_ours` returns `true`. Returns `false` if there is no such process, or
/// if it is not ours.
///
/// The pidfd is opened before the check, so the signal goes to the process that was checked.
/// Without pidfds, the id could be reused in between, but only after the system has used all other
/// ids.
///
/// # Safety
///
/// Any arguments are sound: the system calls take only numbers.
pub(super) unsafe fn signal_if(pid: i32, signal: i32, is_ours: impl FnOnce() -> bool) -> bool {
    // SAFETY: the calls take only numbers. The pidfd is closed again.
    unsafe {
        if pidfds_are_missing() {
            return is_ours() && libc::kill(pid, signal) == 0;
        }
        let fd = libc::syscall(libc::SYS_pidfd_open, pid, 0) as i32;
        if fd < 0 {
            return false;
        }
        let ours = is_ours();
        if ours {
            send(fd, signal);
        }
        libc::close(fd);
        ours
    }
}

/// Signals through a pidfd.
///
/// # Safety
///
/// Any arguments are sound: the system call takes only numbers and a null pointer.
pub(super) unsafe fn send(pidfd: i32, signal: i32) -> i32 {
    // SAFETY: the call takes only numbers and a null pointer.
    unsafe {
        let no_info = ptr::null::<libc::siginfo_t>();
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd, signal, no_info, 0) as i32
    }
}
