//! Lays out the memory of the supervisor: one private mapping with its stacks, its buffers and the
//! plan.
//!
//! This happens before the fork, in ordinary code, so the supervisor never has to allocate. Pages
//! that are never touched cost nothing.

use std::ffi::{CString, c_char, c_void};
use std::io;
use std::ops::Range;
use std::ptr;

use super::back_end::os;
use super::ending::NEEDED;
use super::message::milliseconds;
use super::plan::{CommandPlan, LogPart, PID_DIGITS, Plan, Stream};

const STACK: usize = 64 * 1024;
/// Largest number of bytes that one read of the service's output can return.
pub(super) const BUFFER: usize = 32 * 1024;
/// Reserves no swap space for untouched pages.
#[cfg(target_os = "linux")]
const NO_RESERVE: i32 = libc::MAP_NORESERVE;
#[cfg(not(target_os = "linux"))]
const NO_RESERVE: i32 = 0;
/// Maximum number of children that one walk of a process tree records. The next walk finds the
/// others.
pub(super) const PIDS: usize = 1024;
/// Maximum number of descendants that are recorded as signalled, so that each gets the stop signal
/// only once.
pub(super) const TOLD: usize = 256;

/// A program to execute. Each list ends with a null pointer.
#[repr(C)]
pub(super) struct Words {
    /// Paths of the files to try, in order.
    pub(super) candidates: *const *const c_char,
    pub(super) argv: *const *const c_char,
}

/// The supervisor's data. All pointers point into the same mapping.
///
/// Numbers such as `uid` are `i64`, so that -1 can mean "not set" while every `u32` still fits.
#[repr(C)]
// The portable supervisor does not use all of these fields.
#[cfg_attr(any(not(target_os = "linux"), mirakuru_portable), allow(dead_code))]
pub(super) struct Arena {
    pub(super) program: Words,
    /// The recipe's `on_end` command. If there is none, its candidates are null.
    pub(super) on_end: Words,
    /// A line with a hint, logged if `on_end` fails; may be null.
    pub(super) on_end_hint: *const c_char,
    pub(super) envp: *const *const c_char,
    pub(super) current_dir: *const c_char,
    pub(super) groups: *const u32,
    pub(super) group_count: i64,
    pub(super) uid: i64,
    pub(super) gid: i64,
    pub(super) umask: i64,
    /// Descriptors of the standard streams. -1 means a pipe into the log (see `relay`) or
    /// `/dev/null`.
    pub(super) stdio: [i32; 3],
    /// Whether standard output and standard error go through a pipe into the log.
    pub(super) relay: [bool; 2],
    pub(super) control: i32,
    pub(super) test_pidfd: i32,
    pub(super) log: i32,
    pub(super) index: i32,
    /// Size of one part of the log, in bytes.
    pub(super) log_part: i64,
    /// The part of the log that is open now.
    pub(super) log_at: LogPart,
    /// All descriptors that stay open after the fork, in ascending order.
    pub(super) keep: *const i32,
    pub(super) keep_count: usize,
    /// The descriptors of `keep` that the guard keeps open, in ascending order.
    pub(super) locks: *const i32,
    pub(super) lock_count: usize,
    /// The sockets for the service, in the order of its descriptors 3, 4 and so on.
    pub(super) listen: *mut i32,
    pub(super) listen_count: usize,
    /// The highest descriptor that was open just before the fork. Only systems that cannot close
    /// all descriptors in one call use it.
    pub(super) last_fd: i32,
    /// The address of the placeholder in `LISTEN_PID`, which the process id replaces; null if there
    /// is none.
    pub(super) listen_pid: *mut c_char,
    pub(super) stop_signal: i32,
    pub(super) grace_ms: i64,
    pub(super) kill_signal: i32,
    pub(super) title: *const c_char,
    pub(super) title_len: usize,
    /// The memory from which the kernel reads this process's command line.
    pub(super) args: *mut c_char,
    pub(super) args_len: usize,
    pub(super) private_dir: *const c_char,
    /// Path of the FIFO that dependent services hold open; see `ending.rs`.
    pub(super) needed: *const c_char,
    /// Descriptors of the needed services' FIFOs.
    pub(super) needs: *const i32,
    pub(super) needs_count: usize,
    /// The fields of the plan's `RunPlan`. Without a `RunPlan`, `runner_pidfd` is -1 and the paths
    /// are null.
    pub(super) runner_pidfd: i32,
    pub(super) ends_with_users: bool,
    pub(super) staged: *const c_char,
    pub(super) published: *const c_char,
    pub(super) run_dir: *const c_char,
    /// Whether guard and worker may share one address space.
    pub(super) may_share: bool,
    pub(super) worker_stack: *mut c_void,
    pub(super) service_stack: *mut c_void,

    // The supervisor writes the fields from here on.
    pub(super) guard: i32,
    pub(super) guard_pidfd: i32,
    pub(super) worker: i32,
    pub(super) service: i32,
    /// The stage (a `STAGE_*`) and the error number of a failed launch.
    pub(super) failed_stage: i32,
    pub(super) failed_errno: i32,
    /// Write end of the pipe for `failed_stage` and `failed_errno`, if worker and service share no
    /// memory; otherwise -1.
    pub(super) report: i32,
    /// Write end of the pipe for the output of the `on_end` command.
    pub(super) on_end_output: i32,
    pub(super) buffer: [u8; BUFFER],
    pub(super) pids: [i32; PIDS],
    pub(super) told: [i32; TOLD],
    pub(super) told_count: usize,
}

/// Owns the mapping in the test process until the supervisor is forked.
pub(super) struct Mapping {
    base: *mut u8,
    len: usize,
    arena: *mut Arena,
}

impl Mapping {
    /// Maps the memory and copies the plan into it.
    pub(super) fn new(plan: &Plan, args: Range<usize>) -> io::Result<Mapping> {
        let title = CString::new(format!("mirakuru-supervisor {}", plan.id)).unwrap_or_default();
        let mut size = Bump {
            base: ptr::null_mut(),
            used: 3 * STACK,
        };
        Mapping::fill(&mut size, plan, &title, &args);
        let len = size.used.next_multiple_of(page_size());
        // SAFETY: the mapping is fresh and private.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANON | NO_RESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = base.cast::<u8>();
        let mut bump = Bump {
            base,
            used: 3 * STACK,
        };
        let arena = Mapping::fill(&mut bump, plan, &title, &args);
        Ok(Mapping { base, len, arena })
    }

    /// Copies the plan to `bump`. If `bump.base` is null, only counts the bytes.
    fn fill(bump: &mut Bump, plan: &Plan, title: &CString, args: &Range<usize>) -> *mut Arena {
        let program = bump.words(&plan.program);
        let on_end = plan.on_end.as_ref().map(|command| bump.words(command));
        let on_end_hint = bump.optional(plan.on_end_hint.as_ref());
        let envp = bump.strings(&plan.envp);
        let current_dir = bump.optional(plan.current_dir.as_ref());
        let private_dir = bump.optional(plan.private_dir.as_ref());
        let needed = plan.private_dir.as_ref().map(|dir| {
            let path = [dir.as_bytes(), b"/", NEEDED.as_bytes()].concat();
            CString::new(path).unwrap_or_default()
        });
        let needed = bump.optional(needed.as_ref());
        let run = plan.run.as_ref();
        let staged = bump.optional(run.map(|run| &run.staged));
        let published = bump.optional(run.map(|run| &run.published));
        let run_dir = bump.optional(run.map(|run| &run.dir));
        let groups = bump.slice(plan.groups.as_deref().unwrap_or_default());
        let title_text = bump.string(title).cast();
        let arena = bump.place::<Arena>(1);
        // Leaves room for the descriptors, which `set_descriptors` writes later.
        let keep = bump.place::<i32>(plan.keep.len() + plan.needs.len() + plan.listen.len() + 16);
        let locks = bump.place::<i32>(plan.keep.len() + plan.needs.len() + 2);
        let needs = bump.place::<i32>(plan.needs.len());
        let listen = bump.place::<i32>(plan.listen.len());
        if bump.base.is_null() {
            return arena;
        }
        // SAFETY: all targets lie in the fresh, zeroed mapping, and all-zero bytes are a valid
        // `Arena`. The addresses of stacks are their upper ends, inside the mapping.
        unsafe {
            let a = &mut *arena;
            a.program = program;
            if let Some(on_end) = on_end {
                a.on_end = on_end;
            }
            a.on_end_hint = on_end_hint;
            a.envp = envp;
            a.current_dir = current_dir;
            a.private_dir = private_dir;
            a.needed = needed;
            a.needs = needs;
            a.staged = staged;
            a.published = published;
            a.run_dir = run_dir;
            a.ends_with_users = run.is_some_and(|run| run.ends_with_users);
            a.groups = groups;
            a.group_count = plan.groups.as_ref().map_or(-1, |groups| groups.len() as i64);
            a.uid = plan.uid.map_or(-1, i64::from);
            a.gid = plan.gid.map_or(-1, i64::from);
            a.umask = plan.umask.map_or(-1, i64::from);
            a.keep = keep;
            a.locks = locks;
            a.listen = listen;
            a.listen_count = plan.listen.len();
            a.listen_pid = match listen_pid(&plan.envp) {
                Some(at) if !plan.listen.is_empty() => (*envp.add(at)).cast_mut().add(LISTEN_PID.len()),
                _ => ptr::null_mut(),
            };
            a.relay = [
                matches!(plan.stdout, Stream::Log),
                matches!(plan.stderr, Stream::Log),
            ];
            a.stop_signal = plan.stop.signal;
            a.grace_ms = i64::from(milliseconds(plan.stop.grace));
            a.kill_signal = plan.stop.kill_signal;
            a.log_part = i64::try_from(plan.log_part).unwrap_or(i64::MAX);
            a.log_at = plan.log_at;
            a.title = title_text;
            a.title_len = title.as_bytes().len();
            a.args = args.start as *mut c_char;
            a.args_len = args.len();
            a.failed_stage = -1;
            a.report = -1;
            a.may_share = os::may_share();
            a.worker_stack = bump.base.add(2 * STACK).cast();
            a.service_stack = bump.base.add(3 * STACK).cast();
        }
        arena
    }

    /// Sets the descriptors that the supervisor keeps.
    pub(super) fn set_descriptors(&mut self, descriptors: &Descriptors, lists: &Lists) {
        let Lists { locks, needs, listen } = lists;
        fn insert(list: &mut Vec<i32>, fd: i32) {
            if let Err(at) = list.binary_search(&fd) {
                list.insert(at, fd);
            }
        }
        let mut keep = Vec::new();
        for fd in [&descriptors.all(), &locks[..], needs, listen].concat() {
            if fd >= 0 {
                insert(&mut keep, fd);
            }
        }
        let mut of_guard = [&locks[..], needs].concat();
        // SAFETY: no other process uses the arena yet.
        if unsafe { !(*self.arena).on_end.candidates.is_null() } {
            // The guard may have to run the `on_end` command, and then writes the command's output
            // into the log.
            of_guard.extend([descriptors.log, descriptors.index]);
        }
        let mut locks = Vec::new();
        for fd in of_guard {
            insert(&mut locks, fd);
        }
        // SAFETY: `fill` left room for all of the lists, for 16 more entries in `keep` and for 2
        // more in `locks`. At most eight descriptors are not in a list.
        unsafe {
            let a = &mut *self.arena;
            a.stdio = descriptors.stdio;
            a.control = descriptors.control;
            a.test_pidfd = descriptors.test_pidfd;
            a.log = descriptors.log;
            a.index = descriptors.index;
            a.runner_pidfd = descriptors.runner_pidfd;
            ptr::copy_nonoverlapping(keep.as_ptr(), a.keep.cast_mut(), keep.len());
            a.keep_count = keep.len();
            ptr::copy_nonoverlapping(locks.as_ptr(), a.locks.cast_mut(), locks.len());
            a.lock_count = locks.len();
            ptr::copy_nonoverlapping(needs.as_ptr(), a.needs.cast_mut(), needs.len());
            a.needs_count = needs.len();
            let count = listen.len().min(a.listen_count);
            ptr::copy_nonoverlapping(listen.as_ptr(), a.listen, count);
            a.listen_count = count;
        }
    }

    pub(super) fn arena(&self) -> *mut Arena {
        self.arena
    }

    #[cfg(all(target_os = "linux", not(mirakuru_portable)))]
    pub(super) fn guard_stack(&self) -> *mut c_void {
        // SAFETY: the address is the upper end of the first stack, inside the mapping.
        unsafe { self.base.add(STACK).cast() }
    }

    #[cfg(all(target_os = "linux", not(mirakuru_portable)))]
    pub(super) fn range(&self) -> Range<usize> {
        self.base as usize..self.base as usize + self.len
    }
}

impl Drop for Mapping {
    /// Unmaps the memory in this process. The supervisor has its own copy.
    fn drop(&mut self) {
        // SAFETY: `new` has mapped the memory, and nothing else in this process points into it.
        unsafe { libc::munmap(self.base.cast(), self.len) };
    }
}

const LISTEN_PID: &[u8] = b"LISTEN_PID=";

/// The index of the `LISTEN_PID` entry in the environment, if its value has room for a process id.
fn listen_pid(envp: &[CString]) -> Option<usize> {
    let has_room = |value: &[u8]| value.len() == PID_DIGITS;
    envp.iter()
        .position(|entry| entry.as_bytes().strip_prefix(LISTEN_PID).is_some_and(has_room))
}

pub(super) fn page_size() -> usize {
    // SAFETY: the call only returns a number.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// The plan's lists of descriptors.
pub(super) struct Lists {
    pub(super) locks: Vec<i32>,
    pub(super) needs: Vec<i32>,
    pub(super) listen: Vec<i32>,
}

/// The descriptors that are not part of [`Lists`].
pub(super) struct Descriptors {
    pub(super) stdio: [i32; 3],
    pub(super) control: i32,
    pub(super) test_pidfd: i32,
    pub(super) log: i32,
    pub(super) index: i32,
    pub(super) runner_pidfd: i32,
}

impl Descriptors {
    fn all(&self) -> [i32; 8] {
        let [stdin, stdout, stderr] = self.stdio;
        [
            stdin,
            stdout,
            stderr,
            self.control,
            self.test_pidfd,
            self.log,
            self.index,
            self.runner_pidfd,
        ]
    }
}

/// Allocates from the low end of the mapping. If `base` is null, only counts the bytes.
struct Bump {
    base: *mut u8,
    used: usize,
}

impl Bump {
    fn place<T>(&mut self, count: usize) -> *mut T {
        self.used = self.used.next_multiple_of(align_of::<T>());
        let at = self.base.wrapping_add(self.used).cast::<T>();
        self.used += count * size_of::<T>();
        at
    }

    fn slice<T: Copy>(&mut self, items: &[T]) -> *const T {
        let at = self.place::<T>(items.len());
        if !self.base.is_null() {
            // SAFETY: the target was just placed, with room for all items.
            unsafe { ptr::copy_nonoverlapping(items.as_ptr(), at, items.len()) };
        }
        at
    }

    fn string(&mut self, text: &CString) -> *const c_char {
        self.slice(text.as_bytes_with_nul()).cast()
    }

    fn optional(&mut self, text: Option<&CString>) -> *const c_char {
        text.map_or(ptr::null(), |text| self.string(text))
    }

    fn words(&mut self, command: &CommandPlan) -> Words {
        Words {
            candidates: self.strings(&command.candidates),
            argv: self.strings(&command.argv),
        }
    }

    /// A null-terminated list of strings.
    fn strings(&mut self, texts: &[CString]) -> *const *const c_char {
        let mut pointers: Vec<*const c_char> = texts.iter().map(|text| self.string(text)).collect();
        pointers.push(ptr::null());
        self.slice(&pointers)
    }
}
