//! Ends process trees. Runs in the supervisor, after a fork: nothing here allocates, locks or
//! panics.
//!
//! The obvious loop ("kill the children, sleep, look again") fails: chains of processes that fork
//! and exit at full speed outrun it, and their zombies fill the machine's table of processes. What
//! holds:
//!
//! * `SA_NOCLDWAIT` for SIGCHLD, so that the kernel reaps what dies (from the moment of the kill
//!   only: exit statuses are lost);
//! * no sleep between looks, as long as there is something new;
//! * the group of each child as well as the child;
//! * for each child a pidfd, and then the question "is it mine?" to the kernel, so that no recycled
//!   process id is ever hit.
//!
//! The list of children is a hint. The proof that nothing is left is `waitpid` saying ECHILD.

use std::ffi::CStr;
use std::mem;
use std::ptr;

use super::super::arena::PIDS;
use super::super::forked::errno;

/// Kills every descendant and returns when there is none: when this process, a subreaper, has no
/// child left.
///
/// # Safety
///
/// Only for a single-threaded process that is a child subreaper and whose children may all die.
pub(super) unsafe fn kill_all(group: i32, pids: &mut [i32; PIDS]) {
    // SAFETY: plain system calls on values of our own.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = libc::SIG_DFL;
        action.sa_flags = libc::SA_NOCLDWAIT;
        libc::sigaction(libc::SIGCHLD, &action, ptr::null_mut());
        if group > 1 {
            libc::kill(-group, libc::SIGKILL);
        }
        let mut quiet_looks = 0_u32;
        let mut last = (0, 0);
        while has_children() {
            let count = children(pids);
            for pid in pids.iter().take(count) {
                signal_child(*pid, libc::SIGKILL, true);
            }
            // Spin while the picture changes. A tree that only waits for the kernel to take it down
            // (or for a disk) gets a sleep.
            let now = (count, pids.first().copied().unwrap_or(0));
            quiet_looks = if now == last {
                quiet_looks.saturating_add(1)
            } else {
                0
            };
            last = now;
            if quiet_looks > 200 {
                libc::poll(ptr::null_mut(), 0, 1);
            } else {
                libc::sched_yield();
            }
        }
    }
}

/// Whether this process has children, dead ones included. Reaps one dead one.
pub(super) fn has_children() -> bool {
    // SAFETY: no status is asked for.
    unsafe {
        libc::waitpid(-1, ptr::null_mut(), libc::WNOHANG | libc::__WALL) != -1 || errno() != libc::ECHILD
    }
}

/// Signals a process if it is a child of this one, and with `group` its process group, too.
///
/// # Safety
///
/// As [`kill_all`].
pub(super) unsafe fn signal_child(pid: i32, signal: i32, group: bool) -> bool {
    // SAFETY: plain system calls; the pidfd is closed again.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid, 0) as i32;
        if fd < 0 {
            return false;
        }
        let mine = is_my_child(fd);
        if mine {
            if group {
                // Asked while the child is known to be ours, and used only if it still is.
                let group = libc::getpgid(pid);
                if group > 1 && group != libc::getpgid(0) && is_my_child(fd) {
                    libc::kill(-group, signal);
                }
            }
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                fd,
                signal,
                ptr::null::<libc::siginfo_t>(),
                0,
            );
        }
        libc::close(fd);
        mine
    }
}

/// Only a parent may wait for a process: the kernel's answer cannot be wrong about a recycled
/// process id.
unsafe fn is_my_child(pidfd: i32) -> bool {
    // SAFETY: the status goes into a local variable, and WNOWAIT leaves it with the kernel.
    unsafe {
        let mut info: libc::siginfo_t = mem::zeroed();
        let flags = libc::WNOHANG | libc::WNOWAIT | libc::WEXITED | libc::__WALL;
        libc::waitid(libc::P_PIDFD, pidfd as libc::id_t, &mut info, flags) == 0
    }
}

/// Fills `pids` with the children of this process, as many as fit, and says how many.
pub(super) fn children(pids: &mut [i32]) -> usize {
    // "thread-self" has the calling thread's children only; the supervisor has one thread.
    match children_file(c"/proc/thread-self/children", pids) {
        Some(count) => count,
        // A kernel without that file: everybody is a candidate, since `signal_child` asks whose
        // child it is.
        None => all_processes(pids),
    }
}

/// Reads a `children` file: decimal numbers with spaces between.
fn children_file(path: &CStr, pids: &mut [i32]) -> Option<usize> {
    // SAFETY: the buffer is a local variable; the descriptor is closed again.
    unsafe {
        let fd = libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        if fd < 0 {
            return None;
        }
        let mut numbers = Numbers {
            pids,
            count: 0,
            current: 0,
        };
        let mut buffer = [0_u8; 1024];
        loop {
            let got = libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len());
            if got <= 0 {
                break;
            }
            numbers.feed(buffer.get(..got as usize).unwrap_or(&[]));
        }
        libc::close(fd);
        numbers.end();
        Some(numbers.count)
    }
}

struct Numbers<'a> {
    pids: &'a mut [i32],
    count: usize,
    current: i32,
}

impl Numbers<'_> {
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
            if let Some(slot) = self.pids.get_mut(self.count) {
                *slot = self.current;
                self.count = self.count.wrapping_add(1);
            }
        }
        self.current = 0;
    }
}

/// All processes of the machine.
fn all_processes(pids: &mut [i32]) -> usize {
    // SAFETY: the kernel fills the buffer with whole records of `linux_dirent64`: u64 inode, i64
    // offset, u16 length, u8 type, and the name with its final zero.
    unsafe {
        let fd = libc::open(
            c"/proc".as_ptr(),
            libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC,
        );
        if fd < 0 {
            return 0;
        }
        let mut numbers = Numbers {
            pids,
            count: 0,
            current: 0,
        };
        let mut buffer = [0_u64; 512];
        loop {
            let got = libc::syscall(
                libc::SYS_getdents64,
                fd,
                buffer.as_mut_ptr(),
                mem::size_of_val(&buffer),
            );
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
                    numbers.feed(name);
                    numbers.end();
                }
                if length == 0 {
                    break;
                }
                at = at.wrapping_add(length);
            }
        }
        libc::close(fd);
        numbers.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn with_child(test: impl FnOnce(i32)) {
        let mut child = Command::new("sleep")
            .arg("30")
            .stdin(Stdio::null())
            .spawn()
            .expect("sleep starts");
        test(child.id() as i32);
        child.kill().expect("it is still there");
        child.wait().expect("it is ours");
    }

    #[test]
    fn finds_a_child_in_either_way() {
        with_child(|child| {
            let mut pids = [0; PIDS];
            let count = children(&mut pids);
            assert!(pids[..count].contains(&child), "{:?}", &pids[..count]);
            let mut many = [0; 1 << 16];
            let count = all_processes(&mut many);
            assert!(many[..count].contains(&child));
            assert!(many[..count].contains(&(std::process::id() as i32)));
        });
    }

    #[test]
    fn signals_its_own_children_only() {
        with_child(|child| {
            // SAFETY: signal 0 does nothing but ask.
            unsafe {
                assert!(signal_child(child, 0, false));
                assert!(!signal_child(1, 0, false));
            }
        });
    }
}
