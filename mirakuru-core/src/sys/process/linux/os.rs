//! The Linux versions of the functions that the shared code (`spawn.rs`, `service.rs`) calls. The
//! first section runs after a fork, so it must not allocate, lock or panic.

use std::cell::RefCell;
use std::ffi::{c_int, c_void};
use std::fs::File;
use std::io::{self, Read};
use std::mem;
use std::ops::Range;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::wait::WaitPidFlag;
use nix::unistd::Pid;
use once_cell::sync::Lazy;

use super::super::arena::{Arena, Mapping};
use super::super::tools::{errno, to_read};
use super::{freeze, handle, memory, supervisor, sweep};

pub(crate) use super::handle::pidfds_are_missing;
pub(crate) use super::sweep::kill_marked;

// On these two architectures, the calls with the plain names take 16-bit ids.
#[cfg(not(any(target_arch = "x86", target_arch = "arm")))]
use libc::{SYS_setgid as SYS_SETGID, SYS_setgroups as SYS_SETGROUPS, SYS_setuid as SYS_SETUID};
#[cfg(any(target_arch = "x86", target_arch = "arm"))]
use libc::{SYS_setgid32 as SYS_SETGID, SYS_setgroups32 as SYS_SETGROUPS, SYS_setuid32 as SYS_SETUID};

// These are raw system calls. libc's functions would try to change all threads of the *test
// process*, and would crash.

pub(in crate::sys::process) unsafe fn set_groups(count: usize, groups: *const u32) -> i64 {
    // SAFETY: the caller gives a list of `count` groups.
    unsafe { libc::syscall(SYS_SETGROUPS, count, groups) as i64 }
}

pub(in crate::sys::process) unsafe fn set_gid(gid: libc::gid_t) -> i64 {
    // SAFETY: the call takes only numbers.
    unsafe { libc::syscall(SYS_SETGID, gid) as i64 }
}

pub(in crate::sys::process) unsafe fn set_uid(uid: libc::uid_t) -> i64 {
    // SAFETY: the call takes only numbers.
    unsafe { libc::syscall(SYS_SETUID, uid) as i64 }
}

/// Gives the service its own session and process group.
pub(in crate::sys::process) unsafe fn own_group() {
    // SAFETY: the call takes only numbers. It cannot fail, because a newly forked process is never
    // a group leader.
    unsafe { libc::setsid() };
}

/// Requests SIGKILL for this process when its parent dies. The kernel watches only the thread that
/// forked this process, but the parent has no other thread.
pub(in crate::sys::process) unsafe fn tie_to_parent() {
    // SAFETY: the call takes only numbers.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) };
}

pub(in crate::sys::process) unsafe fn pipe(ends: &mut [i32; 2]) -> i32 {
    // SAFETY: the call writes two descriptors into the array.
    unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) }
}

/// Closes every descriptor except for those in `keep`, an ascending list. Returns whether all calls
/// of `close_range` succeeded.
pub(super) unsafe fn close_all_but(keep: *const i32, count: usize) -> bool {
    // SAFETY: `keep` has `count` entries, and this process uses only the descriptors in `keep`.
    unsafe {
        let mut next = 0_i32;
        let mut at_once = true;
        for at in 0..count {
            let fd = *keep.add(at);
            if fd > next {
                at_once &= close_range(next, fd.wrapping_sub(1));
            }
            next = fd.wrapping_add(1);
        }
        at_once & close_range(next, i32::MAX)
    }
}

unsafe fn close_range(first: i32, last: i32) -> bool {
    // SAFETY: the calls take only numbers, and the caller of `close_all_but` no longer uses the
    // descriptors.
    unsafe {
        if libc::syscall(libc::SYS_close_range, first, last, 0) != 0 {
            // Kernels before Linux 5.9 lack `close_range`.
            for fd in first..=last.min(4096) {
                libc::close(fd);
            }
            return false;
        }
        true
    }
}

/// Marks the descriptor `first` and all above it as close-on-exec.
pub(in crate::sys::process) unsafe fn close_at_exec(first: i32) {
    const CLOSE_RANGE_CLOEXEC: i32 = 4;
    // SAFETY: the calls take only numbers.
    unsafe {
        if libc::syscall(libc::SYS_close_range, first, i32::MAX, CLOSE_RANGE_CLOEXEC) != 0 {
            // Kernels before Linux 5.11 do not have this flag.
            for fd in first..4096 {
                libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
            }
        }
    }
}

/// Creates a child that runs this function with the arena, on the service's stack. If possible, the
/// child shares the caller's memory, so that no page tables are copied. The caller sleeps until the
/// child has executed a program or exited.
pub(in crate::sys::process) unsafe fn spawn(
    child: unsafe extern "C" fn(*mut c_void) -> c_int,
    a: &mut Arena,
) -> i32 {
    let flags = match a.may_share {
        true => libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD,
        false => libc::SIGCHLD,
    };
    let mut ends = [-1; 2];
    // SAFETY: the calls take a local array and numbers.
    unsafe {
        if !a.may_share {
            if pipe(&mut ends) != 0 {
                return -1;
            }
            // The pipe needs a descriptor above those that the service's sockets are moved to.
            let above = 3_i32.wrapping_add(a.listen_count as c_int);
            a.report = libc::fcntl(ends[1], libc::F_DUPFD_CLOEXEC, above);
            libc::close(ends[1]);
        }
    }
    // SAFETY: an unsafe `fn` has the same representation as a safe one. No other code uses the
    // stack.
    unsafe {
        let child = mem::transmute::<
            unsafe extern "C" fn(*mut c_void) -> c_int,
            extern "C" fn(*mut c_void) -> c_int,
        >(child);
        let pid = libc::clone(child, a.service_stack, flags, ptr::from_mut(a).cast());
        if !a.may_share {
            libc::close(a.report);
            // The read returns when the program is executed, or when a report arrives.
            let mut failed = [0_i32; 2];
            let size = mem::size_of_val(&failed);
            let mut got = libc::read(ends[0], failed.as_mut_ptr().cast(), size);
            while got < 0 && errno() == libc::EINTR {
                got = libc::read(ends[0], failed.as_mut_ptr().cast(), size);
            }
            if got == size as isize {
                [a.failed_stage, a.failed_errno] = failed;
            }
            libc::close(ends[0]);
        }
        pid
    }
}

/// Reports to the worker why the program was not executed, if this process shares no memory with
/// the worker.
pub(super) unsafe fn report_failure(a: &Arena) {
    let failed = [a.failed_stage, a.failed_errno];
    // SAFETY: the call writes from a local array.
    unsafe { libc::write(a.report, failed.as_ptr().cast(), mem::size_of_val(&failed)) };
}

// ----------------------------------------------------------------------------- in the test process

/// The kind of the control socket: it keeps packets whole, and always reports an end of file.
pub(in crate::sys::process) const CONTROL: i32 = libc::SOCK_SEQPACKET;

/// Whether a daemon of the service can outlive the service. On Linux it cannot, even if it creates
/// a session or a process group of its own.
pub(crate) const LOSES_DAEMONS: bool = false;

/// The exit status of a supervisor that could not prove the tree empty.
pub(in crate::sys::process) const UNPROVED: i32 = 2;

/// Lets `waitpid` return children without an exit signal, which it skips by default.
pub(in crate::sys::process) const WAIT: WaitPidFlag = WaitPidFlag::__WALL;

/// A pidfd of this process, so that a supervisor notices when the process ends, even without the
/// socket.
pub(in crate::sys::process) fn this_process() -> io::Result<Option<OwnedFd>> {
    handle::of_this_process()
}

/// Opens a pidfd of another process.
pub(crate) fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: the descriptor is new, and owned from here on.
    unsafe {
        let fd = Errno::result(libc::syscall(libc::SYS_pidfd_open, pid, 0))?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// Signals the whole tree. Always returns `true`; a back end that cannot do this returns `false`.
pub(in crate::sys::process) fn signal_tree(supervisor: u32, signal: i32) -> bool {
    freeze::signal_tree(supervisor, signal);
    true
}

/// The supervisors that one thread forks together.
struct Batch {
    process: u32,
    mappings: Vec<(Range<usize>, *mut c_void, *mut c_void)>,
    forked: Vec<nix::Result<Pid>>,
    next: *mut Batch,
}

/// The batches of all threads that wait for the lock. The thread that holds it forks the
/// supervisors of all batches, because marking the memory costs more than a fork.
static WAITING: AtomicPtr<Batch> = AtomicPtr::new(ptr::null_mut());

/// Forks a supervisor for each mapping. The caller has blocked all signals.
pub(in crate::sys::process) fn fork(mappings: &mut [&mut Mapping]) -> Vec<nix::Result<Pid>> {
    let process = std::process::id();
    let mut parts = Vec::new();
    for mapping in mappings {
        parts.push((mapping.range(), mapping.guard_stack(), mapping.arena().cast()));
    }
    let mine = Box::into_raw(Box::new(Batch {
        process,
        mappings: parts,
        forked: Vec::new(),
        next: ptr::null_mut(),
    }));
    // SAFETY: no other thread can reach the batch until it is in the list.
    let push = |first| unsafe {
        (*mine).next = first;
        Some(mine)
    };
    let _ = WAITING.fetch_update(Ordering::AcqRel, Ordering::Acquire, push);
    let whole = memory::needs_all();
    let waiting = RefCell::new(Vec::new());
    let take = || {
        // SAFETY: each thread frees its own batch only after its call of `with_memory`, which takes
        // the lock that this thread holds now.
        unsafe {
            let is_done = !(*mine).forked.is_empty();
            let mut next = match is_done {
                true => ptr::null_mut(),
                false => WAITING.swap(ptr::null_mut(), Ordering::AcqRel),
            };
            let mut ranges = Vec::new();
            while let Some(batch) = next.as_mut() {
                next = batch.next;
                // After a fork of the test process, the child's list contains copies of its
                // parent's batches. The child skips them.
                if batch.process == process {
                    for (range, ..) in &batch.mappings {
                        ranges.push(range.clone());
                    }
                    waiting.borrow_mut().push(ptr::from_mut(batch));
                }
            }
            ranges
        }
    };
    memory::with_memory(whole.is_none(), take, |_| {
        let waiting = waiting.borrow();
        // SAFETY: each thread frees its own batch only after its call of `with_memory`, which takes
        // the lock that this thread holds now.
        let mut batches = waiting.iter().map(|batch| unsafe { &mut **batch });
        let batch = batches.find(|batch| batch.forked.len() < batch.mappings.len());
        let Some(batch) = batch else { return };
        let (_, stack, arena) = batch.mappings[batch.forked.len()];
        // SAFETY: the stack and the argument lie in the mapping, and the child has a copy of it.
        // `guard` does only the things that are allowed after a fork.
        let clone = |signal| unsafe { libc::clone(supervisor::guard, stack, signal, arena) };
        // Without an exit signal, the child is invisible to a `waitpid(-1)` of the test and sends
        // no SIGCHLD.
        let mut pid = match whole {
            // valgrind aborts a process that creates any child except by a plain fork.
            Some(memory::VALGRIND) => clone(libc::SIGCHLD),
            _ => clone(0),
        };
        if pid < 0 && Errno::last() == Errno::EINVAL {
            // An emulator of Linux may not support a child without an exit signal.
            pid = clone(libc::SIGCHLD);
        }
        batch.forked.push(Errno::result(pid).map(Pid::from_raw));
    });
    // SAFETY: the thread that forked these supervisors no longer uses the batch.
    unsafe { Box::from_raw(mine) }.forked
}

/// Whether supervisors are forked without most of this process's memory. If such a supervisor dies
/// before its first message, later forks copy all memory.
pub(in crate::sys::process) fn forks_are_lean() -> bool {
    memory::needs_all().is_none()
}

/// Whether guard and worker may share one address space. valgrind aborts a process that creates
/// such a child.
pub(in crate::sys::process) fn may_share() -> bool {
    memory::needs_all() != Some(memory::VALGRIND)
}

/// Makes all later forks copy the whole memory, and records the reason.
pub(in crate::sys::process) fn fork_whole(reason: &'static str) {
    memory::note_need(reason);
}

/// The reason why supervisors get a copy of all memory, if they do.
pub(crate) fn forks_whole_because() -> Option<&'static str> {
    memory::needs_all()
}

/// The memory of this process's command line: fields 48 and 49 of `/proc/self/stat`. Empty if the
/// fields cannot be read, and under valgrind, which reports a write there as an error.
pub(in crate::sys::process) fn arguments() -> Range<usize> {
    if !may_share() {
        return 0..0;
    }
    static ARGUMENTS: Lazy<Range<usize>> = Lazy::new(|| {
        let mut stat = String::new();
        let read = File::open("/proc/self/stat").and_then(|mut file| file.read_to_string(&mut stat));
        // The second field is a name in parentheses that may contain any character.
        let fields = stat
            .rsplit_once(')')
            .filter(|_| read.is_ok())
            .map_or("", |(_, rest)| rest);
        let mut fields = fields
            .split_ascii_whitespace()
            .skip(45)
            .map_while(|field| field.parse::<usize>().ok());
        match (fields.next(), fields.next()) {
            (Some(start), Some(end)) if start != 0 && end > start && end - start < 1 << 20 => start..end,
            _ => 0..0,
        }
    });
    ARGUMENTS.clone()
}

/// Sleeps until there is something to read, but no longer than `timeout`.
pub(in crate::sys::process) fn wait_readable(fd: RawFd, timeout: Option<Duration>) {
    let mut poll = to_read(fd);
    let time = timeout.map(|timeout| libc::timespec {
        tv_sec: timeout.as_secs().try_into().unwrap_or(i32::MAX.into()),
        tv_nsec: timeout.subsec_nanos() as _,
    });
    let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the first pointer is to one `pollfd`, and the second is null or points to a
    // `timespec`.
    unsafe { libc::ppoll(&mut poll, 1, time, std::ptr::null()) };
}

/// Kills the worker, to abort a start that hangs. The guard then kills the child that would have
/// become the service.
pub(in crate::sys::process) fn abort_start(guard: i32) {
    for pid in crate::sys::proc::children(guard.unsigned_abs()) {
        // SAFETY: the call takes only numbers. The worker is the guard's only child, and the guard
        // reaps the worker only just before its own exit.
        unsafe { libc::kill(pid as i32, libc::SIGKILL) };
    }
}

/// Kills every process with the service's mark, in case both the guard and the worker were killed.
pub(in crate::sys::process) fn last_resort(id: &str, _supervisor: i32, _service: i32) {
    sweep::kill_marked(&[id]);
}
