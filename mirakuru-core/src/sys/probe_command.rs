//! What the standard library lacks for a short-lived command of our own, the one that an `Exec` condition runs: a pipe
//! that can be waited for with a time limit, the death of a whole process group, and an end that cannot be
//! missed when the test process is killed meanwhile.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// A pipe: the end to read from and the end to write to. Neither is handed down to other programs.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [-1; 2];
    #[cfg(any(target_os = "linux", target_os = "android"))]
    // SAFETY: the pointer is to two integers, which is what the call fills in.
    let result = unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) };
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    // SAFETY: the pointer is to two integers, which is what the call fills in.
    let result = unsafe { libc::pipe(fds.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so both are open descriptors that nobody else has.
    let pair = unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) };
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    for fd in fds {
        // SAFETY: setting a flag of an open descriptor touches no memory.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    Ok(pair)
}

/// Puts the command into a process group of its own, and has it killed when this thread ends before it.
///
/// That the kernel ties it to the *thread* that forks, and not to the process, is a trap for a service, which
/// outlives the test's thread. Here it is what is wanted: this thread waits for the command, and does nothing else.
pub(crate) fn tie_to_this_thread(command: &mut Command) {
    command.process_group(0);
    #[cfg(target_os = "linux")]
    {
        let parent = std::process::id();
        // SAFETY: between fork and exec only prctl, getppid and raise are called, which are async-signal-safe, and
        // nothing is allocated.
        unsafe {
            command.pre_exec(move || {
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                    return Err(io::Error::last_os_error());
                }
                // The test process may have ended before the call above.
                if libc::getppid().unsigned_abs() != parent {
                    libc::raise(libc::SIGKILL);
                }
                Ok(())
            });
        }
    }
}

/// Sends SIGKILL to a process group that [`tie_to_this_thread`] made. Its leader must not have been waited for yet, or
/// the number may be somebody else's by now.
pub(crate) fn kill_group(leader: u32) {
    if let Ok(leader) = i32::try_from(leader) {
        // ESRCH is what is wanted anyway.
        let _ = killpg(Pid::from_raw(leader), Signal::SIGKILL);
    }
}

/// A descriptor that becomes readable when the child has ended. `None` where the kernel has none.
pub(crate) fn exit_event(child: u32) -> Option<OwnedFd> {
    #[cfg(target_os = "linux")]
    {
        let pid = libc::pid_t::try_from(child).ok()?;
        // SAFETY: the call takes two integers and touches no memory of ours.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
        // SAFETY: the call succeeded, so this is an open descriptor that nobody else has; it is close-on-exec.
        Some(unsafe { OwnedFd::from_raw_fd(fd) })
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = child;
        None
    }
}

/// Waits until one of the descriptors can be read or is at its end, but not longer than this. Says of each whether it is.
pub(crate) fn wait_readable<const N: usize>(
    fds: [Option<BorrowedFd<'_>>; N],
    timeout: Duration,
) -> io::Result<[bool; N]> {
    let mut polled = fds.map(|fd| libc::pollfd {
        // A negative descriptor is passed over.
        fd: fd.map_or(-1, |fd| fd.as_raw_fd()),
        events: libc::POLLIN,
        revents: 0,
    });
    // Rounded up, or the last millisecond would be spent spinning.
    let millis = i32::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
    // SAFETY: the pointer and the length are those of one array, which lives through the call.
    let result = unsafe { libc::poll(polled.as_mut_ptr(), N as libc::nfds_t, millis) };
    if result < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    Ok(polled.map(|p| p.revents != 0))
}
