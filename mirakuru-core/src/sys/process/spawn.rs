//! Executes the two programs that a supervisor starts: the service and its `on_end` command. Both
//! back ends use this code.
//!
//! This code runs after a fork of a process that may have many threads, so it makes only system
//! calls. It must not allocate, lock, panic, or use a thread-local value other than `errno`. The
//! process may have inherited only the arena, the stacks and the file mappings.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem;
use std::ptr;

use super::arena::{Arena, Words};
use super::back_end::os;
use super::calls::Call;
use super::message::{STAGE_CURRENT_DIR, STAGE_EXEC, STAGE_GID, STAGE_GROUPS, STAGE_SUPERVISOR, STAGE_UID};
use super::output::Output;
use super::tools::{digits, errno, now_ms, to_read, write_digits};

// ----------------------------------------------------------------------------------------- service

/// Becomes the service. On failure, returns the stage (a `STAGE_*`) and the error number.
pub(super) unsafe fn become_service(a: &Arena) -> (i32, i32) {
    // SAFETY: the arena's strings, lists and descriptors are valid.
    unsafe {
        os::own_group();
        if a.umask >= 0 {
            libc::umask(a.umask as libc::mode_t);
        }
        // Changing the user may remove the privilege to change the groups, so the user is changed
        // last.
        if a.group_count >= 0 && os::set_groups(a.group_count as usize, a.groups) != 0 {
            return (STAGE_GROUPS, errno());
        }
        if a.gid >= 0 && os::set_gid(a.gid as libc::gid_t) != 0 {
            return (STAGE_GID, errno());
        }
        if a.uid >= 0 && os::set_uid(a.uid as libc::uid_t) != 0 {
            return (STAGE_UID, errno());
        }
        // Changing the user clears the tie to the parent, so it is set only now. If the parent died
        // before that, `getppid` no longer returns the worker.
        os::tie_to_parent();
        if libc::getppid() != a.worker {
            libc::_exit(127);
        }
        if !a.current_dir.is_null() && libc::chdir(a.current_dir) != 0 {
            return (STAGE_CURRENT_DIR, errno());
        }
        // All three descriptors are greater than 2 (see `open_streams`), so no `dup2` overwrites
        // one that is still needed.
        for (target, fd) in a.stdio.iter().enumerate() {
            if libc::dup2(*fd, target as c_int) < 0 {
                return (STAGE_SUPERVISOR, errno());
            }
        }
        // `lift_listeners` moved these sockets above all targets. The copies that `dup2` makes stay
        // open when the program is executed.
        for at in 0..a.listen_count {
            if libc::dup2(*a.listen.add(at), 3_i32.wrapping_add(at as c_int)) < 0 {
                return (STAGE_SUPERVISOR, errno());
            }
        }
        os::close_at_exec(3_i32.wrapping_add(a.listen_count as c_int));
        if !a.listen_pid.is_null() {
            write_digits(a.listen_pid, libc::getpid());
        }
        unblock_signals();
        (STAGE_EXEC, execute(&a.program, a.envp))
    }
}

unsafe fn unblock_signals() {
    // SAFETY: the set is a local variable.
    unsafe {
        let mut nothing: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&mut nothing);
        libc::sigprocmask(libc::SIG_SETMASK, &nothing, ptr::null_mut());
    }
}

/// Tries each candidate in turn, as `execvp` does. If none can be executed, returns the error
/// number. EACCES takes precedence over ENOENT and ENOTDIR, and any other error ends the search.
unsafe fn execute(words: &Words, envp: *const *const c_char) -> i32 {
    // SAFETY: the lists end with null pointers, and the strings with zero bytes.
    unsafe {
        let mut denied = false;
        let mut error = libc::ENOENT;
        let mut candidate = words.candidates;
        while !(*candidate).is_null() {
            let mut tries = 0;
            loop {
                libc::execve(*candidate, words.argv, envp);
                error = errno();
                // If the program was written just now, a forked child of the writer may still have
                // the file open. The child closes it when it executes a program of its own.
                if error != libc::ETXTBSY || tries >= 20 {
                    break;
                }
                tries += 1;
                libc::poll(ptr::null_mut(), 0, 5);
            }
            match error {
                libc::EACCES => denied = true,
                libc::ENOENT | libc::ENOTDIR => {}
                _ => return error,
            }
            candidate = candidate.add(1);
        }
        if denied { libc::EACCES } else { error }
    }
}

/// Opens the service's standard streams, all above 2. A stream for the log gets a pipe, and a
/// stream without a target gets `/dev/null`.
pub(super) unsafe fn open_streams(a: &mut Arena, pipes: &mut [i32; 2]) -> Result<(), Call> {
    // SAFETY: the calls use only numbers and a local array. The descriptors are closed when this
    // process ends, or are passed to the service.
    unsafe {
        let streams = a.stdio.iter_mut().zip([None, Some(0_usize), Some(1)]);
        for (fd, output) in streams {
            if *fd >= 0 {
                // `LaunchResources::new` has put this descriptor of the test process above 2.
                continue;
            } else if let Some(relay) = output.filter(|at| a.relay.get(*at) == Some(&true)) {
                let mut ends = [-1; 2];
                if os::pipe(&mut ends) != 0 {
                    return Err(Call::Pipe);
                }
                // The supervisor must never block when it reads output.
                if libc::fcntl(ends[0], libc::F_SETFL, libc::O_NONBLOCK) != 0 {
                    return Err(Call::Nonblock);
                }
                if let Some(slot) = pipes.get_mut(relay) {
                    *slot = ends[0];
                }
                *fd = ends[1];
            } else {
                // `null_standard_streams` has put `/dev/null` on descriptor 0.
                *fd = libc::fcntl(0, libc::F_DUPFD_CLOEXEC, 3);
                if *fd < 0 {
                    return Err(Call::Duplicate);
                }
            }
        }
        Ok(())
    }
}

pub(super) unsafe fn close_streams(a: &Arena) {
    for fd in a.stdio {
        if fd > 2 {
            // SAFETY: this process no longer uses these descriptors.
            unsafe { libc::close(fd) };
        }
    }
}

/// Moves the service's sockets above all target descriptors, so that no `dup2` overwrites one of
/// them.
pub(super) unsafe fn lift_listeners(a: &mut Arena) -> Result<(), Call> {
    // SAFETY: `listen` has `listen_count` entries; the descriptors are this process's own copies.
    unsafe {
        let above = 3_i32.wrapping_add(a.listen_count as c_int);
        for at in 0..a.listen_count {
            let slot = a.listen.add(at);
            let lifted = libc::fcntl(*slot, libc::F_DUPFD_CLOEXEC, above);
            if lifted < 0 {
                return Err(Call::Duplicate);
            }
            libc::close(*slot);
            *slot = lifted;
        }
        Ok(())
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

// -------------------------------------------------------------------------------------- at the end

/// Time limit for one run of the `on_end` command.
const ON_END_MS: i64 = 10_000;
/// The pause between the two runs.
const ON_END_AGAIN_MS: i64 = 500;
/// Time limit for the whole `on_end` step: both runs, the pause between them, and a margin of 500
/// ms.
pub(super) const ON_END_TAKES_MS: u64 = 2 * ON_END_MS as u64 + ON_END_AGAIN_MS as u64 + 500;

/// Runs the recipe's `on_end` command, if there is one, after the tree has ended and before the
/// directory is removed. The command cleans up things that are not descendants of the service, such
/// as a container that a daemon runs.
///
/// The command runs twice. A daemon may still be handling the last request of a killed client, so
/// the first run may find nothing yet.
///
/// The function resets SIGCHLD, so that the kernel keeps the command's exit status. It calls `kill`
/// to kill the processes that the command leaves behind. Not every system can find them.
pub(super) unsafe fn run_on_end(a: &mut Arena, output: &mut Output, kill: unsafe fn(&mut Arena)) {
    if a.on_end.candidates.is_null() {
        return;
    }
    // SAFETY: the arena's strings and lists are valid, and all children of this process belong to
    // the service.
    unsafe {
        for run in 0..2 {
            if run > 0 {
                libc::poll(ptr::null_mut(), 0, ON_END_AGAIN_MS as c_int);
            }
            libc::signal(libc::SIGCHLD, libc::SIG_DFL);
            if let Some((problem, number)) = run_once(a, output, kill) {
                let mut room = [0; 20];
                let number = number.map_or(&[][..], |number| digits(number, &mut room));
                let text = b"mirakuru: the command at the end ";
                let hint = match a.on_end_hint.is_null() {
                    true => &[][..],
                    false => CStr::from_ptr(a.on_end_hint).to_bytes(),
                };
                for part in [text, problem, number, b"\n", hint] {
                    output.write(part, 1, part.len());
                }
            }
        }
    }
}

/// A failure of the `on_end` command: the text, and a number to append to it.
type Problem = (&'static [u8], Option<u64>);

/// Runs the command once, and returns the failure, if there was one.
unsafe fn run_once(a: &mut Arena, output: &mut Output, kill: unsafe fn(&mut Arena)) -> Option<Problem> {
    // SAFETY: the arena's strings and lists are valid, and all children of this process belong to
    // the service.
    unsafe {
        let mut ends = [-1; 2];
        if os::pipe(&mut ends) != 0 {
            return Some((b"had no pipe for its output", None));
        }
        libc::fcntl(ends[0], libc::F_SETFL, libc::O_NONBLOCK);
        output.pipes = [-1, ends[0]];
        a.on_end_output = ends[1];
        let pid = os::spawn(at_end, a);
        libc::close(ends[1]);
        if pid < 0 {
            libc::close(ends[0]);
            output.pipes = [-1; 2];
            return Some((b"could not be forked", None));
        }
        let until = now_ms().wrapping_add(ON_END_MS);
        let mut status = 0;
        let problem: Option<Problem> = loop {
            let mut fd = to_read(ends[0]);
            // Waits for the command, not for the end of the pipe. A descendant may keep the pipe
            // open, and the command may close it early.
            let pipe_is_open = output.pipes[1] >= 0;
            libc::poll(&mut fd, libc::nfds_t::from(pipe_is_open), 2);
            output.take_turn(&mut a.buffer, 1);
            let got = libc::waitpid(pid, &mut status, libc::WNOHANG);
            if got == pid {
                break match (status, libc::WIFEXITED(status)) {
                    (0, _) => None,
                    (_, true) => Some((
                        b"failed with status ",
                        u64::try_from(libc::WEXITSTATUS(status)).ok(),
                    )),
                    (_, false) => Some((
                        b"was ended by signal ",
                        u64::try_from(libc::WTERMSIG(status)).ok(),
                    )),
                };
            }
            if got < 0 && errno() != libc::EINTR {
                break Some((b"could not be waited for", None));
            }
            if now_ms() >= until {
                libc::kill(-pid, libc::SIGKILL);
                break Some((b"took longer than 10 s and was killed", None));
            }
        };
        kill(a);
        output.finish(&mut a.buffer);
        if output.pipes[1] >= 0 {
            libc::close(output.pipes[1]);
        }
        output.pipes = [-1; 2];
        problem
    }
}

/// Executes the `on_end` command, in the child. If the child shares the supervisor's memory, the
/// supervisor sleeps until the exec.
unsafe extern "C" fn at_end(argument: *mut c_void) -> c_int {
    // SAFETY: the arena's strings and descriptors are valid.
    unsafe {
        let a = &*argument.cast::<Arena>();
        libc::setsid();
        if !a.current_dir.is_null() {
            libc::chdir(a.current_dir);
        }
        libc::dup2(a.on_end_output, 1);
        libc::dup2(a.on_end_output, 2);
        os::close_at_exec(3);
        unblock_signals();
        let reason: &[u8] = match execute(&a.on_end, a.envp) {
            libc::ENOENT => b"there is no such program\n",
            libc::EACCES => b"the program may not be executed\n",
            _ => b"the program could not be executed\n",
        };
        libc::write(2, reason.as_ptr().cast(), reason.len());
        libc::_exit(127)
    }
}

// ------------------------------------------------------------------------------------------- tools

/// Resets every signal to its default action. Otherwise the service would inherit ignored signals,
/// such as SIGPIPE, which Rust's runtime ignores. Also, while a process ignores SIGCHLD, the kernel
/// keeps no exit statuses of its children.
pub(super) unsafe fn reset_signals() {
    for signal in 1..=64 {
        // SAFETY: the default action has no handler. libc refuses this for SIGKILL, SIGSTOP and the
        // signals that it uses itself, which does no harm.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Puts `/dev/null` on descriptors 0 to 2. Otherwise a runner that reads the test's output would
/// wait until the supervisor ends. The descriptors for the service's streams are all above 2.
pub(super) unsafe fn null_standard_streams() -> Result<(), Call> {
    // SAFETY: the path ends in a zero byte, and the other calls take only numbers.
    unsafe {
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
        if null < 0 {
            return Err(Call::Null);
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
    Ok(())
}
