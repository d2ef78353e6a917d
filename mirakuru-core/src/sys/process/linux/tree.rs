//! Finds, signals and kills process trees. Runs in the supervisor, after a fork: nothing here
//! allocates, locks or panics.
//!
//! A simple loop (kill the children, sleep, repeat) is too slow for processes that fork and exit at
//! full speed. Their zombies would fill the machine's process table. So this code follows four
//! rules:
//!
//! * Before the first kill, SIGCHLD gets `SA_NOCLDWAIT`. The kernel then reaps dead processes and
//!   discards their exit statuses.
//! * As long as the walks find something new, there is no sleep between them.
//! * Each child's process group is killed as well as the child.
//! * A pidfd of each child is opened before the kernel is asked whether the child is ours. So no
//!   signal hits a process that reuses an id.
//!
//! The list of children is only a hint. Only a `waitpid` that fails with ECHILD proves that nothing
//! is left.
//!
//! The list comes from `/proc`. If `/proc` is missing or shows another pid namespace, the search
//! tries all process ids: for each one, `waitid` reports whether it is a child.

use std::ffi::CStr;
use std::mem;
use std::ptr;

use super::super::arena::PIDS;
use super::super::tools::{digits, errno};
use super::handle;

/// The largest process id of any 64-bit kernel, plus one.
const PID_LIMIT: i32 = 1 << 22;
/// The search first tries this many process ids, starting at this process's own id.
const NEAR: i32 = 4096;
/// If this many walks in a row find no child in `/proc`, the search tries all process ids.
const BLIND_WALKS: u32 = 50;
/// Number of `waitpid` errors in a row after which `kill_all` gives up.
const TOO_MANY_ERRORS: u32 = 2000;

/// Kills the process group `group`, unless it is 0, and every descendant. Returns `true` once the
/// kernel reports that this process has no child left, or `false` if `waitpid` keeps failing.
///
/// # Safety
///
/// The calling process must be a child subreaper with one thread, and every child that it has or
/// adopts must belong to the tree to kill.
pub(super) unsafe fn kill_all(group: i32, pids: &mut [i32; PIDS]) -> bool {
    // SAFETY: an all-zero `sigaction` is valid, and the other calls use local variables or `pids`.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = libc::SIG_DFL;
        action.sa_flags = libc::SA_NOCLDWAIT;
        libc::sigaction(libc::SIGCHLD, &action, ptr::null_mut());
        if group > 1 {
            libc::kill(-group, libc::SIGKILL);
        }
        let mut quiet_walks = 0_u32;
        let mut blind_walks = 0_u32;
        let mut errors = 0_u32;
        let mut last = (0, 0);
        loop {
            match has_children() {
                Some(false) => return true,
                Some(true) => errors = 0,
                None => errors = errors.saturating_add(1),
            }
            if errors > TOO_MANY_ERRORS {
                return false;
            }
            let count = children(pids, blind_walks > BLIND_WALKS);
            blind_walks = if count == 0 {
                blind_walks.saturating_add(1)
            } else {
                0
            };
            for pid in pids.iter().take(count) {
                signal_child(*pid, libc::SIGKILL, true);
            }
            // Spins while the list changes. Sleeps if the list stays the same, because the kernel
            // is still removing the killed processes.
            let now = (count, pids.first().copied().unwrap_or(0));
            quiet_walks = if now == last {
                quiet_walks.saturating_add(1)
            } else {
                0
            };
            last = now;
            if quiet_walks > 200 || errors > 0 {
                libc::poll(ptr::null_mut(), 0, 1);
            } else {
                libc::sched_yield();
            }
        }
    }
}

/// Whether this process has children, including dead ones. Reaps one dead child. Returns `None` if
/// `waitpid` fails with an unexpected error.
pub(super) fn has_children() -> Option<bool> {
    // SAFETY: the pointer is null, so the call returns no status.
    let result = unsafe { libc::waitpid(-1, ptr::null_mut(), libc::WNOHANG | libc::__WALL) };
    match (result, errno()) {
        (-1, libc::ECHILD) => Some(false),
        (-1, _) => None,
        _ => Some(true),
    }
}

/// Signals a process if it is a child of this process. With `group`, also signals the child's
/// process group, unless that is this process's own group.
///
/// # Safety
///
/// The same as for [`kill_all`].
pub(super) unsafe fn signal_child(pid: i32, signal: i32, group: bool) -> bool {
    let is_mine = || {
        let mine = is_my_child(pid);
        if mine && group {
            // SAFETY: the calls take only numbers. The group is looked up while the child is known
            // to be ours, and used only if the child is still ours.
            unsafe {
                let group = libc::getpgid(pid);
                if group > 1 && group != libc::getpgid(0) && is_my_child(pid) {
                    libc::kill(-group, signal);
                }
            }
        }
        mine
    };
    // SAFETY: `signal_if` is sound with any arguments.
    unsafe { handle::signal_if(pid, signal, is_mine) }
}

/// Whether a process is a child of this one. Only a parent may wait for a process, so `waitid`
/// gives a reliable answer.
///
/// A pidfd that was opened earlier for the same id refers to this child or to a process that has
/// ended. So a signal through the pidfd hits no other process.
pub(super) fn is_my_child(pid: i32) -> bool {
    // SAFETY: the status goes into a local variable, and WNOWAIT leaves it with the kernel.
    unsafe {
        let mut info: libc::siginfo_t = mem::zeroed();
        let flags = libc::WNOHANG | libc::WNOWAIT | libc::WEXITED | libc::__WALL;
        libc::waitid(libc::P_PID, pid as libc::id_t, &mut info, flags) == 0
    }
}

/// Fills `pids` with the children of this process, as many as fit, and returns their number.
///
/// With `thorough`, finds a child if there is one, even if `/proc` shows none. This may take half a
/// second.
pub(super) fn children(pids: &mut [i32], thorough: bool) -> usize {
    let mut found = Numbers::into(pids);
    // `thread-self` lists only the children of the calling thread; the supervisor has one thread.
    let is_shown = found.read_file(libc::AT_FDCWD, c"/proc/thread-self/children")
        // Without the `children` file, every process is a candidate.
        || found.read_dir(libc::AT_FDCWD, c"/proc");
    let count = found.count;
    let mut mine = 0_usize;
    for at in 0..count {
        let Some(pid) = pids.get(at).copied().filter(|pid| is_my_child(*pid)) else {
            continue;
        };
        if let Some(slot) = pids.get_mut(mine) {
            *slot = pid;
            mine = mine.wrapping_add(1);
        }
    }
    // If no listed process is a child, either the children have just ended, or `/proc` shows
    // another pid namespace.
    let is_usable = is_shown && (count == 0 || mine > 0);
    if mine > 0 || (is_usable && !thorough) || has_children() != Some(true) {
        return mine;
    }
    // SAFETY: the call takes only numbers.
    let me = unsafe { libc::getpid() };
    let near = me..me.saturating_add(NEAR);
    let count = ask_about(near.clone(), pids);
    if count > 0 || !thorough {
        return count;
    }
    match ask_about(near.end..PID_LIMIT, pids) {
        0 => ask_about(1..me, pids),
        count => count,
    }
}

/// Fills `pids` with the children in a range of process ids. Returns their number.
fn ask_about(range: std::ops::Range<i32>, pids: &mut [i32]) -> usize {
    let mut found = Numbers::into(pids);
    for pid in range {
        if is_my_child(pid) {
            found.add(pid);
        }
        if found.is_full() {
            break;
        }
    }
    found.count
}

/// Fills `pids` with the descendants of this process that can be found, nearest first.
pub(super) fn descendants(pids: &mut [i32]) -> usize {
    let mut count = children(pids, false);
    let mut at = 0_usize;
    while at < count {
        let Some(pid) = pids.get(at).copied() else {
            break;
        };
        at = at.wrapping_add(1);
        let path = Path::of(pid, b"/task");
        let mut threads = [0; 256];
        let mut tids = Numbers::into(&mut threads);
        // SAFETY: the path ends in a zero byte. The descriptor is closed afterwards.
        unsafe {
            let dir = libc::open(
                path.text.as_ptr().cast(),
                libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC,
            );
            if dir < 0 {
                continue;
            }
            tids.read_open_dir(dir);
            // Each thread has its own children.
            for tid in tids.pids.iter().take(tids.count) {
                let file = Path::relative(*tid, b"/children");
                let mut found = Numbers {
                    pids: &mut *pids,
                    count,
                    current: 0,
                };
                found.read_file(dir, file.as_c_str());
                count = found.count;
            }
            libc::close(dir);
        }
    }
    count
}

/// Signals a process if it descends from this one.
///
/// # Safety
///
/// The same as for [`kill_all`].
pub(super) unsafe fn signal_descendant(pid: i32, signal: i32) {
    // SAFETY: `signal_if` is sound with any arguments.
    unsafe { handle::signal_if(pid, signal, || is_my_child(pid) || descends(pid)) };
}

/// Whether a process descends from this one. The number of steps is limited, because a chain of
/// parents that changes in the meantime could form a loop.
fn descends(pid: i32) -> bool {
    // SAFETY: the call takes only numbers.
    let me = unsafe { libc::getpid() };
    let mut at = pid;
    for _ in 0..100 {
        at = parent(at);
        if at == me {
            return true;
        }
        if at <= 1 {
            return false;
        }
    }
    false
}

/// The parent of a process, or 0 if it is not known.
fn parent(pid: i32) -> i32 {
    stat_field(pid, 1) as i32
}

/// The time since boot in the kernel's ticks, the unit of a process's start time.
pub(super) fn now_ticks() -> i64 {
    // SAFETY: the call writes into a local variable.
    unsafe {
        let mut time: libc::timespec = mem::zeroed();
        libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time);
        let per_second = libc::sysconf(libc::_SC_CLK_TCK).max(1);
        let nanoseconds = 1_000_000_000 / per_second;
        (time.tv_sec as i64)
            .wrapping_mul(per_second)
            .wrapping_add((time.tv_nsec as i64).wrapping_div(nanoseconds.max(1)))
    }
}

/// Whether a process was started after `ticks`, a time that [`now_ticks`] returned.
pub(super) fn is_younger(pid: i32, ticks: i64) -> bool {
    stat_field(pid, 19) > ticks
}

/// A field of `/proc/PID/stat` as a number; 0 if it cannot be read. Field 0 is the state.
fn stat_field(pid: i32, index: usize) -> i64 {
    let path = Path::of(pid, b"/stat");
    let mut text = [0_u8; 512];
    // SAFETY: the call reads into a local buffer; the descriptor is closed again.
    let got = unsafe {
        let fd = libc::open(path.text.as_ptr().cast(), libc::O_RDONLY | libc::O_CLOEXEC);
        if fd < 0 {
            return 0;
        }
        let got = libc::read(fd, text.as_mut_ptr().cast(), text.len());
        libc::close(fd);
        got
    };
    // The file begins with `PID (NAME) STATE PARENT`, and the name may contain any character.
    let text = text.get(..usize::try_from(got).unwrap_or(0)).unwrap_or(&[]);
    let end = text.iter().rposition(|byte| *byte == b')').unwrap_or(0);
    let rest = text.get(end.wrapping_add(2)..).unwrap_or(&[]);
    let digits = rest.split(|byte| *byte == b' ').nth(index).unwrap_or(&[]);
    digits.iter().fold(0_i64, |number, digit| {
        number
            .wrapping_mul(10)
            .wrapping_add(i64::from(digit.wrapping_sub(b'0')))
    })
}

/// A path that contains a number and ends with a zero byte.
struct Path {
    text: [u8; 48],
}

impl Path {
    /// The path `/proc/NUMBER` followed by `end`.
    fn of(number: i32, end: &[u8]) -> Path {
        Path::put_together(b"/proc/", number, end)
    }

    fn relative(number: i32, end: &[u8]) -> Path {
        Path::put_together(b"", number, end)
    }

    fn put_together(start: &[u8], number: i32, end: &[u8]) -> Path {
        let mut room = [0; 20];
        let digits = digits(number.unsigned_abs().into(), &mut room);
        let mut text = [0; 48];
        let mut at = 0_usize;
        for part in [start, digits, end] {
            for byte in part {
                // The last byte stays zero.
                if at < 47 {
                    text[at] = *byte;
                }
                at = at.wrapping_add(1);
            }
        }
        Path { text }
    }

    fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.text).unwrap_or(c"")
    }
}

/// Collects numbers into a slice.
struct Numbers<'a> {
    pids: &'a mut [i32],
    count: usize,
    current: i32,
}

impl Numbers<'_> {
    fn into(pids: &mut [i32]) -> Numbers<'_> {
        Numbers {
            pids,
            count: 0,
            current: 0,
        }
    }

    fn add(&mut self, number: i32) {
        if let Some(slot) = self.pids.get_mut(self.count) {
            *slot = number;
            self.count = self.count.wrapping_add(1);
        }
    }

    fn is_full(&self) -> bool {
        self.count >= self.pids.len()
    }

    fn feed(&mut self, text: &[u8]) {
        for byte in text {
            if byte.is_ascii_digit() {
                self.current = self
                    .current
                    .wrapping_mul(10)
                    .wrapping_add(i32::from(byte.wrapping_sub(b'0')));
            } else {
                self.end();
            }
        }
    }

    fn end(&mut self) {
        if self.current > 0 {
            self.add(self.current);
        }
        self.current = 0;
    }

    /// Adds the decimal numbers in a file. Returns `false` if there is no such file.
    fn read_file(&mut self, dir: i32, path: &CStr) -> bool {
        // SAFETY: the buffer is a local variable; the descriptor is closed again.
        unsafe {
            let fd = libc::openat(dir, path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
            if fd < 0 {
                return false;
            }
            let mut buffer = [0_u8; 1024];
            loop {
                let got = libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len());
                if got <= 0 {
                    break;
                }
                self.feed(buffer.get(..got as usize).unwrap_or(&[]));
            }
            libc::close(fd);
        }
        self.end();
        true
    }

    /// Adds the numeric names in a directory. Returns `false` if it does not exist.
    fn read_dir(&mut self, dir: i32, path: &CStr) -> bool {
        // SAFETY: the path ends in a zero byte. The descriptor is closed afterwards.
        unsafe {
            let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
            let fd = libc::openat(dir, path.as_ptr(), flags);
            if fd >= 0 {
                self.read_open_dir(fd);
                libc::close(fd);
            }
            fd >= 0
        }
    }

    fn read_open_dir(&mut self, fd: i32) {
        // SAFETY: the kernel fills the buffer with whole records of `linux_dirent64`: u64 inode,
        // i64 offset, u16 length, u8 type, and the name with its final zero.
        unsafe {
            let mut buffer = [0_u64; 256];
            loop {
                let size = mem::size_of_val(&buffer);
                let got = libc::syscall(libc::SYS_getdents64, fd, buffer.as_mut_ptr(), size);
                if got <= 0 {
                    break;
                }
                let start = buffer.as_ptr().cast::<u8>();
                let mut at = 0_usize;
                while at < got as usize {
                    let record = start.add(at);
                    let length = usize::from(record.add(16).cast::<u16>().read_unaligned());
                    let name = CStr::from_ptr(record.add(19).cast()).to_bytes();
                    if name.first().is_some_and(u8::is_ascii_digit) {
                        self.feed(name);
                        self.end();
                    }
                    if length == 0 {
                        break;
                    }
                    at = at.wrapping_add(length);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};

    /// A sleeping child that is killed when this value is dropped.
    struct Sleeper(Child);

    impl Sleeper {
        fn new() -> Sleeper {
            let mut command = Command::new("sleep");
            Sleeper(
                command
                    .arg("30")
                    .stdin(Stdio::null())
                    .spawn()
                    .expect("sleep starts"),
            )
        }

        fn pid(&self) -> i32 {
            self.0.id() as i32
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn finds_a_child_in_each_way() {
        let child = Sleeper::new();
        let mut pids = [0; PIDS];
        let count = children(&mut pids, true);
        assert!(pids[..count].contains(&child.pid()), "{:?}", &pids[..count]);
        let mut many = vec![0; 1 << 16];
        let mut all = Numbers::into(&mut many);
        all.read_dir(libc::AT_FDCWD, c"/proc");
        let count = all.count;
        assert!(many[..count].contains(&child.pid()));
        assert!(many[..count].contains(&(std::process::id() as i32)));
        // The search by number works without `/proc`.
        let count = ask_about(1..PID_LIMIT, &mut pids);
        assert!(pids[..count].contains(&child.pid()), "{:?}", &pids[..count]);
    }

    #[test]
    fn finds_the_parent_of_a_process_and_who_descends_from_this_one() {
        let child = Sleeper::new();
        let me = std::process::id() as i32;
        assert_eq!(parent(child.pid()), me);
        assert!(descends(child.pid()));
        assert!(!descends(1) && !descends(me));
        let now = now_ticks();
        assert!(is_younger(child.pid(), now - 100) && !is_younger(child.pid(), now));
        let mut pids = [0; PIDS];
        let count = descendants(&mut pids);
        assert!(pids[..count].contains(&child.pid()), "{:?}", &pids[..count]);
    }

    #[test]
    fn signals_its_own_children_only() {
        let child = Sleeper::new();
        // SAFETY: signal 0 only asks whether the process exists.
        unsafe {
            assert!(signal_child(child.pid(), 0, false));
            assert!(!signal_child(1, 0, false));
        }
    }

    #[test]
    fn a_path_with_a_number_ends_in_a_zero() {
        assert_eq!(Path::of(4_194_303, b"/task").as_c_str(), c"/proc/4194303/task");
        assert_eq!(Path::relative(7, b"/children").as_c_str(), c"7/children");
    }
}
