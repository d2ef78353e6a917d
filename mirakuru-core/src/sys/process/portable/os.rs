//! The POSIX versions of the functions that the shared code (`spawn.rs`, `service.rs`) calls. The
//! first section runs after a fork, so it must not allocate, lock or panic.

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

// libc's functions may be called here, because the process was forked by libc itself, and has one
// thread.

pub(in crate::sys::process) unsafe fn set_groups(count: usize, groups: *const u32) -> i32 {
    // SAFETY: the caller gives a list of `count` groups. (The type of `count` differs between
    // systems.)
    unsafe { libc::setgroups(count as _, groups) }
}

pub(in crate::sys::process) unsafe fn set_gid(gid: libc::gid_t) -> i32 {
    // SAFETY: the call takes only numbers.
    unsafe { libc::setgid(gid) }
}

pub(in crate::sys::process) unsafe fn set_uid(uid: libc::uid_t) -> i32 {
    // SAFETY: the call takes only numbers.
    unsafe { libc::setuid(uid) }
}

/// Gives the service its own process group. The group stays in the supervisor's session, so that
/// `last_resort` recognises the group.
pub(in crate::sys::process) unsafe fn own_group() {
    // SAFETY: the call takes only numbers.
    unsafe { libc::setpgid(0, 0) };
}

/// Always `false`: this back end uses no pidfds.
pub(crate) fn pidfds_are_missing() -> bool {
    false
}

/// Does nothing: POSIX cannot signal a process when its parent dies.
pub(in crate::sys::process) unsafe fn tie_to_parent() {}

/// Only the supervisor calls this. The supervisor has one thread, so no fork can happen between
/// `pipe` and `fcntl`.
pub(in crate::sys::process) unsafe fn pipe(ends: &mut [i32; 2]) -> i32 {
    // SAFETY: the call writes two descriptors into the array.
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
    // SAFETY: the call takes only numbers.
    unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
}

/// Closes all descriptors except for those in the arena's `keep`, which get the close-on-exec flag.
pub(super) unsafe fn close_all_but_kept(a: &Arena) {
    // SAFETY: `keep` has `keep_count` entries, in ascending order, and this process uses only the
    // descriptors in `keep`.
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
        // Other threads may have opened descriptors between `last_fd` and the fork. The kernel
        // always assigns the lowest free number, so the new ones are close to the others.
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

/// Number of unused descriptors in a row after which the search ends.
const MANY_IN_A_ROW: i32 = 1024;

/// Does nothing, because all descriptors of the supervisor already have the close-on-exec flag.
pub(in crate::sys::process) unsafe fn close_at_exec(_: i32) {}

/// Creates a child that runs this function with the arena, and exits with the function's result.
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

/// The type of the control socket. A stream socket, because on some systems a Unix packet socket
/// reports no end of file.
pub(in crate::sys::process) const CONTROL: i32 = libc::SOCK_STREAM;

/// Whether a daemon of the service can outlive the service. Here it can, by leaving the process
/// group.
pub(crate) const LOSES_DAEMONS: bool = true;

/// The exit status of a supervisor that could not prove the group empty.
pub(in crate::sys::process) const UNPROVED: i32 = 2;

/// The flags for `waitpid`.
pub(in crate::sys::process) const WAIT: WaitPidFlag = WaitPidFlag::empty();

/// Always `None`: the supervisor checks its parent from time to time instead.
pub(in crate::sys::process) fn this_process() -> io::Result<Option<OwnedFd>> {
    Ok(None)
}

/// Always fails: POSIX has no pidfd.
pub(crate) fn pidfd(_: u32) -> io::Result<OwnedFd> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Always `false`: only the supervisor, as the leader's parent, can be sure that the group still
/// has this id.
pub(in crate::sys::process) fn signal_tree(_: u32, _: i32) -> bool {
    false
}

/// Does nothing, because this back end cannot read the environment of other processes.
pub(crate) fn kill_marked(_: &[&str]) {}

/// Forks a supervisor for each mapping. The caller has blocked all signals.
pub(in crate::sys::process) fn fork(mappings: &mut [&mut Mapping]) -> Vec<nix::Result<Pid>> {
    let fork_one = |mapping: &mut &mut Mapping| {
        let arena = mapping.arena();
        // SAFETY: until the fork only this process has the mapping, and afterwards its child has
        // its own copy. `supervisor` does only the things that are allowed after a fork, and never
        // returns to other code.
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

/// Always `false`: supervisors get a copy of all of this process's memory.
pub(in crate::sys::process) fn forks_are_lean() -> bool {
    false
}

/// Always `false`: the supervisor is a single process here.
pub(in crate::sys::process) fn may_share() -> bool {
    false
}

pub(in crate::sys::process) fn fork_whole(_: &'static str) {}

pub(crate) fn forks_whole_because() -> Option<&'static str> {
    None
}

/// Maximum number of descriptors to try if the system does not list the open ones.
const MANY: u64 = 65_536;

/// The highest descriptor that is open now, or an upper bound. `known` is any open descriptor. The
/// system's limit may be a million, which is too many to close one by one.
fn last_fd(known: RawFd) -> i32 {
    let listed = std::fs::read_dir("/dev/fd").into_iter().flatten().flatten();
    let open: Vec<i32> = listed
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    // On some systems this directory lists only the standard streams.
    if open.contains(&known) {
        return open.iter().copied().max().unwrap_or(0);
    }
    // SAFETY: zeros are a valid `rlimit`, which the call fills in.
    let limit = unsafe {
        let mut limit: libc::rlimit = mem::zeroed();
        match libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) {
            0 => limit.rlim_cur as u64,
            _ => MANY,
        }
    };
    i32::try_from(limit.min(MANY)).unwrap_or(i32::MAX)
}

/// Always empty: only Linux reports where the arguments are.
pub(in crate::sys::process) fn arguments() -> Range<usize> {
    0..0
}

/// Sleeps until there is something to read, but no longer than `timeout`.
pub(in crate::sys::process) fn wait_readable(fd: RawFd, timeout: Option<Duration>) {
    match timeout {
        // The timeout of `poll` is in milliseconds, which is too coarse for so short a wait.
        // `pselect` accepts only descriptors below `FD_SETSIZE`.
        Some(timeout) if timeout < Duration::from_millis(10) && (fd as usize) < libc::FD_SETSIZE => {
            let time = libc::timespec {
                tv_sec: 0,
                tv_nsec: timeout.subsec_nanos() as _,
            };
            // SAFETY: the set is a local variable with room for this descriptor, as just checked,
            // and a null pointer means an empty set.
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
            // Rounds up, so that the caller does not spin during the last millisecond.
            let ms = timeout.map_or(-1, |timeout| {
                i32::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(i32::MAX)
            });
            let mut poll = to_read(fd);
            // SAFETY: the pointer is to one `pollfd`, a local variable.
            unsafe { libc::poll(&mut poll, 1, ms) };
        }
    }
}

/// Does nothing, because only the supervisor has the id of the child that would become the service.
pub(in crate::sys::process) fn abort_start(_: i32) {}

/// Kills the service's group if the supervisor was killed. Does not find processes that have left
/// the group.
pub(in crate::sys::process) fn last_resort(_: &str, supervisor: i32, service: i32) {
    if service <= 1 {
        return;
    }
    // SAFETY: the calls take only numbers.
    unsafe {
        // The id belongs to the group as long as one member is alive. If the leader is alive, its
        // session tells whether the group is ours, because each supervisor has its own session. If
        // the leader is gone, this assumes that the id was not reused since the supervisor's death.
        let session = libc::getsid(service);
        if session == supervisor || session < 0 {
            libc::kill(-service, libc::SIGKILL);
        }
    }
}
