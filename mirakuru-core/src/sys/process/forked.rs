//! What the supervisors of both back ends do in the same way.
//!
//! All of this runs after a fork of a process that may have many threads. So: system calls only, no
//! allocation, no lock, no panic (no indexing, no arithmetic that may overflow, no `unwrap`), no
//! thread-local value but `errno`. Memory that is not in the arena, on a stack, or in a file's
//! mapping *may not be there*.

use std::ffi::{c_char, c_int};
use std::mem;
use std::ptr;

use super::arena::{Arena, BUFFER};
use super::back_end::os;
use super::message::{
    FAILED, STAGE_CURRENT_DIR, STAGE_EXEC, STAGE_GID, STAGE_GROUPS, STAGE_SUPERVISOR, STAGE_UID, send,
};
use crate::sys::log_record::Record;

pub(super) fn errno() -> i32 {
    nix::errno::errno()
}

pub(super) fn fail(control: i32, stage: i32, errno: i32) {
    send(control, [FAILED, stage, errno, 0, 0, 0, 0, 0]);
}

// --------------------------------------------------------------------------------------------------------- output

/// What the service prints, on its way into the log.
pub(super) struct Output {
    /// Readable ends of the pipes that are the service's standard output and error, or -1.
    pub(super) pipes: [i32; 2],
    log: i32,
    index: i32,
    /// Index bytes written; always a multiple of a record's length.
    index_len: i64,
    /// Output that could not be written, by stream, and has no record yet.
    lost: [u32; 2],
}

impl Output {
    pub(super) unsafe fn new(a: &Arena, pipes: [i32; 2]) -> Output {
        Output {
            pipes,
            log: a.log,
            index: a.index,
            // SAFETY: plain system call.
            index_len: unsafe { libc::lseek(a.index, 0, libc::SEEK_END) }.max(0),
            lost: [0; 2],
        }
    }

    /// Moves output from a pipe into the log: what is there now, at most `reads` buffers full. Says
    /// whether there was any.
    pub(super) unsafe fn relay(&mut self, buffer: &mut [u8; BUFFER], stream: usize, reads: usize) -> bool {
        let Some(pipe) = self.pipes.get(stream).copied().filter(|fd| *fd >= 0) else {
            return false;
        };
        let mut seen = false;
        // SAFETY: reads into the buffer, and never more than it holds.
        unsafe {
            for _ in 0..reads {
                let got = libc::read(pipe, buffer.as_mut_ptr().cast(), buffer.len());
                if got < 0 && errno() == libc::EINTR {
                    continue;
                }
                if got < 0 {
                    break; // nothing there now
                }
                if got == 0 {
                    // All writers are gone.
                    libc::close(pipe);
                    if let Some(slot) = self.pipes.get_mut(stream) {
                        *slot = -1;
                    }
                    break;
                }
                self.log(buffer, stream, got as usize);
                seen = true;
            }
        }
        seen
    }

    /// Writes the first `len` bytes of the buffer into the log, and then their record into the
    /// index: a reader that finds a record finds its bytes. What a full disk does not take is
    /// counted as lost; the service is never held up.
    unsafe fn log(&mut self, buffer: &[u8; BUFFER], stream: usize, len: usize) {
        // SAFETY: writes from the buffer, and never more than it holds.
        unsafe {
            let mut written = 0_usize;
            while written < len {
                let rest = buffer.as_ptr().add(written).cast();
                let got = libc::write(self.log, rest, len.wrapping_sub(written));
                if got > 0 {
                    written = written.wrapping_add(got as usize);
                } else if errno() != libc::EINTR {
                    break;
                }
            }
            if written > 0 {
                self.record_loss(stream);
                self.record(Record::output(stream, written as u32, now_ns() as u64));
            }
            if written < len {
                if let Some(lost) = self.lost.get_mut(stream) {
                    *lost = lost.saturating_add(len.wrapping_sub(written) as u32);
                }
                // At once, so that a report tells of it. The index is short, and may still find
                // room where the log does not.
                self.record_loss(stream);
            }
        }
    }

    pub(super) unsafe fn record_loss(&mut self, stream: usize) {
        let Some(lost) = self.lost.get(stream).copied().filter(|lost| *lost > 0) else {
            return;
        };
        // SAFETY: as `record`.
        if unsafe { self.record(Record::lost(stream, lost, now_ns() as u64)) } {
            if let Some(lost) = self.lost.get_mut(stream) {
                *lost = 0;
            }
        }
    }

    unsafe fn record(&mut self, record: Record) -> bool {
        let record = record.encode();
        let size = record.len();
        // SAFETY: a plain array.
        unsafe {
            if libc::write(self.index, record.as_ptr().cast(), size) == size as isize {
                self.index_len = self.index_len.wrapping_add(size as i64);
                return true;
            }
            // Half a record would put all later ones out of step.
            libc::ftruncate(self.index, self.index_len);
            false
        }
    }
}

// -------------------------------------------------------------------------------------------------------- service

/// Becomes the service. Returns only where that fails: how far it came, a `STAGE_*`, and the error
/// number.
pub(super) unsafe fn become_service(a: &Arena) -> (i32, i32) {
    // SAFETY: the arena's strings, lists and descriptors are what it says they are.
    unsafe {
        libc::setpgid(0, 0);
        if a.umask >= 0 {
            libc::umask(a.umask as libc::mode_t);
        }
        // Groups first, the user last: each step may take away the privilege that the one before
        // needs.
        if a.group_count >= 0 && os::set_groups(a.group_count as usize, a.groups) != 0 {
            return (STAGE_GROUPS, errno());
        }
        if a.gid >= 0 && os::set_gid(a.gid as libc::gid_t) != 0 {
            return (STAGE_GID, errno());
        }
        if a.uid >= 0 && os::set_uid(a.uid as libc::uid_t) != 0 {
            return (STAGE_UID, errno());
        }
        // After the change of user, which clears it; and with a look at the parent, which may have
        // died before.
        os::tie_to_parent();
        if libc::getppid() != a.worker {
            libc::_exit(127);
        }
        if !a.current_dir.is_null() && libc::chdir(a.current_dir) != 0 {
            return (STAGE_CURRENT_DIR, errno());
        }
        // All three lie above 2 (`open_streams`), so that none is overwritten before its turn.
        for (target, fd) in a.stdio.iter().enumerate() {
            if libc::dup2(*fd, target as c_int) < 0 {
                return (STAGE_SUPERVISOR, errno());
            }
        }
        // All of these lie above the places that they go to (`lift_listeners`). The copies stay
        // open when the program is executed.
        for at in 0..a.listen_count {
            if libc::dup2(*a.listen.add(at), 3_i32.wrapping_add(at as c_int)) < 0 {
                return (STAGE_SUPERVISOR, errno());
            }
        }
        os::close_at_exec(a);
        if !a.listen_pid.is_null() {
            write_digits(a.listen_pid, libc::getpid());
        }
        let mut nothing: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&mut nothing);
        libc::sigprocmask(libc::SIG_SETMASK, &nothing, ptr::null_mut());

        // As execvp: the first directory that has it wins, and "permission denied" is remembered in
        // case none has.
        let mut denied = false;
        let mut error = libc::ENOENT;
        let mut candidate = a.candidates;
        while !(*candidate).is_null() {
            let mut tries = 0;
            loop {
                libc::execve(*candidate, a.argv, a.envp);
                error = errno();
                // A file that was only just written may still be open for writing in another
                // process that has forked and not yet executed: that passes in a moment.
                if error != libc::ETXTBSY || tries >= 20 {
                    break;
                }
                tries += 1;
                libc::poll(ptr::null_mut(), 0, 5);
            }
            match error {
                libc::EACCES => denied = true,
                libc::ENOENT | libc::ENOTDIR => {}
                _ => return (STAGE_EXEC, error),
            }
            candidate = candidate.add(1);
        }
        (STAGE_EXEC, if denied { libc::EACCES } else { error })
    }
}

/// Makes the service's standard streams, all above 2: pipes for what goes into the log, `/dev/null`
/// for what has nothing else.
pub(super) unsafe fn open_streams(a: &mut Arena, pipes: &mut [i32; 2]) -> bool {
    // SAFETY: plain system calls; the descriptors end with this process, or are handed to the
    // service.
    unsafe {
        let streams = a.stdio.iter_mut().zip([None, Some(0_usize), Some(1)]);
        for (fd, output) in streams {
            if *fd >= 0 {
                continue; // handed down by the test process, and above 2 (`Service::fork`)
            } else if let Some(relay) = output.filter(|at| a.relay.get(*at) == Some(&true)) {
                let mut ends = [-1; 2];
                if os::pipe(&mut ends) != 0 {
                    return false;
                }
                libc::fcntl(ends[0], libc::F_SETFL, libc::O_NONBLOCK);
                if let Some(slot) = pipes.get_mut(relay) {
                    *slot = ends[0];
                }
                *fd = ends[1];
            } else {
                *fd = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
            }
            if *fd < 0 {
                return false;
            }
        }
        true
    }
}

pub(super) unsafe fn close_streams(a: &Arena) {
    for fd in a.stdio {
        if fd > 2 {
            // SAFETY: nothing in this process uses them any more.
            unsafe { libc::close(fd) };
        }
    }
}

/// Moves the sockets that the service is to inherit above all places where it is to find them, so
/// that putting one into its place never overwrites another.
pub(super) unsafe fn lift_listeners(a: &mut Arena) -> bool {
    // SAFETY: `listen` has `listen_count` entries; the descriptors are this process's own copies.
    unsafe {
        let above = 3_i32.wrapping_add(a.listen_count as c_int);
        for at in 0..a.listen_count {
            let slot = a.listen.add(at);
            let lifted = libc::fcntl(*slot, libc::F_DUPFD_CLOEXEC, above);
            if lifted < 0 {
                return false;
            }
            libc::close(*slot);
            *slot = lifted;
        }
        true
    }
}

pub(super) unsafe fn close_listeners(a: &Arena) {
    // SAFETY: `listen` has `listen_count` entries; nothing in this process uses them any more.
    unsafe {
        for at in 0..a.listen_count {
            libc::close(*a.listen.add(at));
        }
    }
}

/// Writes a number and a zero byte, over a value that has more bytes than any process id has
/// digits.
unsafe fn write_digits(to: *mut c_char, number: i32) {
    let mut divisor = 1_000_000_000_i32;
    let mut to = to;
    let mut begun = false;
    // SAFETY: at most ten digits, and the byte that ended the longer value before.
    unsafe {
        while divisor > 0 {
            let digit = number.wrapping_div(divisor).wrapping_rem(10);
            begun |= digit != 0 || divisor == 1;
            if begun {
                *to = (b'0' as c_char).wrapping_add(digit as c_char);
                to = to.add(1);
            }
            divisor = divisor.wrapping_div(10);
        }
        *to = 0;
    }
}

// ---------------------------------------------------------------------------------------------------------- tools

/// Every signal back to its default: the service must not inherit what the test process, a shell's
/// background job or Rust's runtime (SIGPIPE) ignore, and waiting for children needs SIGCHLD not to
/// be ignored.
pub(super) unsafe fn reset_signals() {
    for signal in 1..=64 {
        // SAFETY: the default action has no handler. libc refuses its own two signals and SIGKILL
        // and SIGSTOP: fine.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Puts `/dev/null` on 0, 1 and 2, where something of the test process's may still be: a runner
/// that reads the test's output would wait for it. Descriptors that the service is to get are kept
/// elsewhere (`Mapping::set_descriptors`).
pub(super) unsafe fn null_standard_streams() {
    // SAFETY: plain system calls.
    unsafe {
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
        if null < 0 {
            return;
        }
        for fd in 0..3 {
            if fd != null {
                libc::dup2(null, fd);
            }
        }
        if null > 2 {
            libc::close(null);
        }
    }
}

pub(super) fn now_ns() -> i64 {
    crate::sys::clock_ns() as i64
}

pub(super) fn now_ms() -> i64 {
    now_ns() / 1_000_000
}
