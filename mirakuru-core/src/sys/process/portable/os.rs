//! The functions that the code of both back ends (`spawn.rs`, `service.rs`) calls, as POSIX calls.
//! The first part runs after a fork: no allocation, no lock, no panic.

use std::ffi::{c_int, c_void};
use std::io;
use std::mem;
use std::ops::Range;
use std::os::fd::{OwnedFd, RawFd};
use std::ptr;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::wait::WaitPidFlag;
use nix::unistd::Pid;

use super::super::arena::{Arena, Mapping};
use super::super::tools::to_read;
use super::supervisor;

// From libc, which knows of the fork: the child has one thread.

pub(in crate::sys::process) unsafe fn set_groups(count: usize, groups: *const u32) -> i32 {
    // SAFETY: as many groups as the caller says. (`count` is of another type on other systems.)
    unsafe { libc::setgroups(count as _, groups) }
}

pub(in crate::sys::process) unsafe fn set_gid(gid: libc::gid_t) -> i32 {
    // SAFETY: plain system call.
    unsafe { libc::setgid(gid) }
}

pub(in crate::sys::process) unsafe fn set_uid(uid: libc::uid_t) -> i32 {
    // SAFETY: plain system call.
    unsafe { libc::setuid(uid) }
}

/// Gives the service a process group of its own. The group stays in the supervisor's session, by
/// which `last_resort` knows it.
pub(in crate::sys::process) unsafe fn own_group() {
    // SAFETY: plain system call.
    unsafe { libc::setpgid(0, 0) };
}

/// This back end uses no pidfds.
pub(crate) fn pidfds_are_missing() -> bool {
    false
}

/// POSIX has no signal at a parent's death.
pub(in crate::sys::process) unsafe fn tie_to_parent() {}

/// For the supervisor, which has one thread: no other thread can fork between these calls.
pub(in crate::sys::process) unsafe fn pipe(ends: &mut [i32; 2]) -> i32 {
    // SAFETY: writes two descriptors into the array.
    unsafe {
        let result = libc::pipe(ends.as_mut_ptr());
        if result == 0 {
            set_close_at_exec(ends[0]);
            set_close_at_exec(ends[1]);
        }
        result
    }
}

pub(super) unsafe fn set_close_at_exec(fd: i32) {
    // SAFETY: plain system call.
    unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
}

/// Closes every descriptor except for the arena's `keep`, whose descriptors are closed when a
/// program is executed.
pub(super) unsafe fn close_all_but_kept(a: &Arena) {
    // SAFETY: `keep` has `keep_count` entries, in ascending order; nothing in this process uses the
    // others.
    unsafe {
        let mut next = 0_i32;
        for at in 0..a.keep_count {
            let fd = *a.keep.add(at);
            for other in next..fd {
                libc::close(other);
            }
            set_close_at_exec(fd);
            next = fd.wrapping_add(1);
        }
        // Other threads may have opened more descriptors between the check and the fork. The kernel
        // always gives the lowest free number, so these follow the others closely.
        let mut closed_before = 0_i32;
        while next <= a.last_fd || closed_before < MANY_IN_A_ROW {
            closed_before = match libc::close(next) {
                0 => 0,
                _ => closed_before.wrapping_add(1),
            };
            next = next.wrapping_add(1);
        }
    }
}

/// After that many unused numbers there are no more descriptors.
const MANY_IN_A_ROW: i32 = 1024;

/// In the supervisor every open descriptor is marked so already.
pub(in crate::sys::process) unsafe fn close_at_exec(_: i32) {}

/// Makes a child that runs this function with the arena, and ends with the function's result.
pub(in crate::sys::process) unsafe fn spawn(
    child: unsafe extern "C" fn(*mut c_void) -> c_int,
    a: &mut Arena,
) -> i32 {
    // SAFETY: the supervisor has one thread, and the child does only the things that are allowed
    // after a fork.
    unsafe {
        let pid = libc::fork();
        if pid == 0 {
            libc::_exit(child(ptr::from_mut(a).cast()));
        }
        pid
    }
}

// ----------------------------------------------------------------------------- in the test process

/// Some systems have no packets between Unix sockets that also have an end of file.
pub(in crate::sys::process) const CONTROL: i32 = libc::SOCK_STREAM;

/// Processes that leave the process group are lost.
pub(crate) const LOSES_DAEMONS: bool = true;

/// The exit status of a supervisor that has not proved that nothing is left.
pub(in crate::sys::process) const UNPROVED: i32 = 2;

/// For `waitpid`.
pub(in crate::sys::process) const WAIT: WaitPidFlag = WaitPidFlag::empty();

/// There is no such descriptor: the supervisor checks its parent from time to time.
pub(in crate::sys::process) fn this_process() -> io::Result<Option<OwnedFd>> {
    Ok(None)
}

/// POSIX has no pidfd.
pub(crate) fn pidfd(_: u32) -> io::Result<OwnedFd> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Only the supervisor can signal the group: as the leader's parent it knows that the number is
/// still the group's.
pub(in crate::sys::process) fn signal_tree(_: u32, _: i32) -> bool {
    false
}

/// The environment of other processes cannot be read.
pub(crate) fn kill_marked(_: &[&str]) {}

/// Makes the supervisor. All signals are blocked.
pub(in crate::sys::process) fn fork(mappings: &mut [&mut Mapping]) -> Vec<nix::Result<Pid>> {
    let fork_one = |mapping: &mut &mut Mapping| {
        let arena = mapping.arena();
        // SAFETY: the mapping is this process's alone until the fork, and its child's own copy
        // afterwards; `supervisor` does only the things that are allowed after a fork, and does not
        // return into code that does not know of it.
        unsafe {
            (*arena).last_fd = last_fd((*arena).control);
            let pid = Errno::result(libc::fork())?;
            if pid == 0 {
                libc::_exit(supervisor::run(&mut *arena));
            }
            Ok(Pid::from_raw(pid))
        }
    };
    mappings.iter_mut().map(fork_one).collect()
}

/// Supervisors always get all of this process's memory.
pub(in crate::sys::process) fn forks_are_lean() -> bool {
    false
}

/// This back end has one process.
pub(in crate::sys::process) fn may_share() -> bool {
    false
}

pub(in crate::sys::process) fn fork_whole(_: &'static str) {}

pub(crate) fn forks_whole_because() -> Option<&'static str> {
    None
}

/// On a system that does not show its open descriptors, no more numbers than this are tried.
const MANY: u64 = 65_536;

/// The highest descriptor that is open now. There is no portable call that closes all, and their
/// number may be limited to a million. `known` is one that is open.
fn last_fd(known: RawFd) -> i32 {
    let listed = std::fs::read_dir("/dev/fd").into_iter().flatten().flatten();
    let open: Vec<i32> = listed
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    // On some systems this directory lists only the standard streams.
    if open.contains(&known) {
        return open.iter().copied().max().unwrap_or(0);
    }
    // SAFETY: any bytes make a limit, which the call fills in.
    let limit = unsafe {
        let mut limit: libc::rlimit = mem::zeroed();
        match libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) {
            0 => limit.rlim_cur as u64,
            _ => MANY,
        }
    };
    i32::try_from(limit.min(MANY)).unwrap_or(i32::MAX)
}

/// Only Linux tells where the arguments are.
pub(in crate::sys::process) fn arguments() -> Range<usize> {
    0..0
}

/// Sleeps until there is something to read, but no longer than `timeout`.
pub(in crate::sys::process) fn wait_readable(fd: RawFd, timeout: Option<Duration>) {
    match timeout {
        // `poll` counts milliseconds, which is too coarse for a service that is ready sooner.
        // `pselect` takes only low descriptors.
        Some(timeout) if timeout < Duration::from_millis(10) && (fd as usize) < libc::FD_SETSIZE => {
            let time = libc::timespec {
                tv_sec: 0,
                tv_nsec: timeout.subsec_nanos() as _,
            };
            // SAFETY: the set is a local variable that has room for this descriptor, as was just
            // asked; the others are not there.
            unsafe {
                let mut set: libc::fd_set = mem::zeroed();
                libc::FD_SET(fd, &mut set);
                libc::pselect(
                    fd.saturating_add(1),
                    &mut set,
                    ptr::null_mut(),
                    ptr::null_mut(),
                    &time,
                    ptr::null(),
                );
            }
        }
        timeout => {
            // Rounded up: otherwise the last millisecond would be spent spinning.
            let ms = timeout.map_or(-1, |timeout| {
                i32::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(i32::MAX)
            });
            let mut poll = to_read(fd);
            // SAFETY: one descriptor.
            unsafe { libc::poll(&mut poll, 1, ms) };
        }
    }
}

/// No other process knows the child that was going to be the service.
pub(in crate::sys::process) fn abort_start(_: i32) {}

/// The last resort if a supervisor was killed: this process ends the service's group. Processes
/// that have left the group are no longer known.
pub(in crate::sys::process) fn last_resort(_: &str, supervisor: i32, service: i32) {
    if service <= 1 {
        return;
    }
    // SAFETY: plain system calls.
    unsafe {
        // The number belongs to the group as long as one member lives. If the leader lives, its
        // session says whether the group is ours, because each supervisor has a session of its own.
        // The leader may be gone, and another group may have the number. But then, since the
        // supervisor's death, the old group became empty and the new one lost its leader.
        let session = libc::getsid(service);
        if session == supervisor || session < 0 {
            libc::kill(-service, libc::SIGKILL);
        }
    }
}
