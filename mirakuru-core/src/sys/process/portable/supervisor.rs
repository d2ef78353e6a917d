//! Runs the supervisor. This code runs after a fork, so it makes only system calls, and must not
//! allocate, lock or panic: see the head of `spawn.rs`.
//!
//! The order of events guarantees that the service's process group is stopped:
//!
//! 1. Before it starts the service, the supervisor becomes a session leader, with all signals
//!    blocked. So the runner's signals to its process group and terminal do not reach the
//!    supervisor.
//! 2. The end of file of the socket immediately tells the supervisor that the test process has
//!    died. Another child of the test process may hold a copy of the other end. So the supervisor
//!    also checks from time to time whether its parent has changed.
//! 3. Supervisor and service both call `setpgid`. So the service has its own group before the test
//!    process learns of it.
//! 4. A stop sends the stop signal and SIGCONT to the group. After the grace, it sends SIGKILL
//!    until the group is empty. Then the supervisor moves the last output into the log, sends the
//!    last message to the test process, and exits.

use std::ffi::c_int;
use std::mem;
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

use super::super::arena::Arena;
use super::super::calls::Call;
use super::super::ending::{Ending, Step};
use super::super::message::{
    ARM, EMPTY, Inbox, PUBLISH, PUBLISHED, Received, SIGNAL, STARTED, STOP, SYNC, SYNCED, exited, send,
};
use super::super::output::Output;
use super::super::spawn::{
    become_service, close_listeners, close_streams, lift_listeners, null_standard_streams, open_streams,
    reset_signals, run_on_end,
};
use super::super::tools::{errno, fail, fail_call, now_ms, now_ns, to_read};
use super::{os, remove};

/// Pause between two checks of the parent.
const POLL_MS: c_int = 250;
/// Pause between two checks of a group that has lost its leader. No event reports that its members
/// have ended.
const ORPHANS_MS: c_int = 20;
/// Pause between two checks of the dependent services.
const WAIT_MS: c_int = 2;
/// Time that members of a group without a leader may remain after SIGKILL. A member that remains
/// longer is probably a zombie, or waits for a disk. In a container, the first process may never
/// reap such a zombie.
const ZOMBIES_MS: i64 = 1000;
/// Write end of a pipe. The handler of SIGCHLD writes a byte to it, which wakes `poll`.
///
/// The handler runs only within `Worker::poll`, where no code needs `errno`; elsewhere the signal
/// is blocked.
static WAKE: AtomicI32 = AtomicI32::new(-1);

extern "C" fn child_has_changed(_: c_int) {
    // SAFETY: the call writes one byte from an array. A full pipe already holds a byte.
    unsafe { libc::write(WAKE.load(Ordering::SeqCst), [0_u8].as_ptr().cast(), 1) };
}

struct Worker<'a> {
    a: &'a mut Arena,
    /// The process id of the parent at the start.
    parent: i32,
    inbox: Inbox,
    output: Output,
    ending: Ending,
    /// Whether the main process has not been reaped yet.
    main_alive: bool,
    /// Whether the group has been found empty. After that, another group may have its id.
    group_is_empty: bool,
}

/// The main function of the supervisor. All signals are blocked.
pub(super) unsafe fn run(a: &mut Arena) -> c_int {
    // SAFETY: the calls use only the arena, local variables, and this process's own descriptors.
    unsafe {
        let parent = libc::getppid();
        libc::setsid();
        reset_signals();
        os::close_all_but_kept(a);
        a.worker = libc::getpid();
        let mut wake = [-1; 2];
        let mut pipes = [-1; 2];
        let above = 3_i32.wrapping_add(a.listen_count as c_int);
        if let Err(call) = prepare(a, &mut wake, &mut pipes) {
            fail_call(a.control, call, errno());
            return 1;
        }

        // The child reports through this pipe why it could not execute the program. An exec closes
        // the pipe. The pipe must be above the target descriptors of the service's sockets.
        let mut report = [-1; 2];
        if os::pipe(&mut report) != 0 {
            fail_call(a.control, Call::Pipe, errno());
            return 1;
        }
        let lifted = libc::fcntl(report[1], libc::F_DUPFD_CLOEXEC, above);
        let failed = errno();
        libc::close(report[1]);
        let pid = if lifted < 0 { -1 } else { libc::fork() };
        if pid == 0 {
            let (stage, error) = become_service(a);
            let reason = [stage, error];
            libc::write(lifted, reason.as_ptr().cast(), mem::size_of_val(&reason));
            libc::_exit(127);
        }
        if pid < 0 {
            match lifted {
                0.. => fail_call(a.control, Call::Clone, errno()),
                _ => fail_call(a.control, Call::Duplicate, failed),
            }
            return 1;
        }
        // The group must exist before any signal is sent to it. If the program has been executed
        // already, this call fails, but then the child has created the group itself.
        libc::setpgid(pid, pid);
        libc::close(lifted);
        close_streams(a);
        // Only the service may hold the sockets, so that they close when it is gone.
        close_listeners(a);
        if let Some([stage, error]) = read_reason(report[0]) {
            while libc::waitpid(pid, ptr::null_mut(), 0) < 0 && errno() == libc::EINTR {}
            fail(a.control, stage, error);
            return 0;
        }
        libc::close(report[0]);
        a.service = pid;
        // If the message is lost, the test process cannot stop the service, so the supervisor stops
        // it now.
        let told = send(a.control, [STARTED, pid, a.worker, 0, 0, 0, 0, 0]);

        let output = Output::new(a, pipes);
        let mut worker = Worker {
            a,
            parent,
            inbox: Inbox::default(),
            output,
            ending: Ending::new(),
            main_alive: true,
            group_is_empty: false,
        };
        if told {
            worker.run(wake[0]);
        } else {
            worker.conclude(wake[0]);
        }
        0
    }
}

/// Makes the calls that must succeed before the service starts.
unsafe fn prepare(a: &mut Arena, wake: &mut [i32; 2], pipes: &mut [i32; 2]) -> Result<(), Call> {
    // SAFETY: the calls use only the arrays and this process's own descriptors.
    unsafe {
        // Puts `/dev/null` on descriptors 0 to 2 before any pipe is opened, so that it replaces no
        // pipe.
        null_standard_streams()?;
        if os::pipe(wake) != 0 {
            return Err(Call::Pipe);
        }
        if libc::fcntl(wake[0], libc::F_SETFL, libc::O_NONBLOCK) != 0 {
            return Err(Call::Nonblock);
        }
        if !watch_children(wake[1]) {
            return Err(Call::Handler);
        }
        // The supervisor needs `waitpid` only after the service has started. By then a failure
        // could no longer abort the start, so the supervisor tries the call now.
        if libc::waitpid(-1, ptr::null_mut(), libc::WNOHANG) != -1 || errno() != libc::ECHILD {
            return Err(Call::Wait);
        }
        open_streams(a, pipes)?;
        lift_listeners(a)
    }
}

/// Installs a handler of SIGCHLD that writes to this end of a pipe.
unsafe fn watch_children(wake: i32) -> bool {
    // SAFETY: the handler calls only `write`, which a signal handler may call.
    unsafe {
        libc::fcntl(wake, libc::F_SETFL, libc::O_NONBLOCK);
        WAKE.store(wake, Ordering::SeqCst);
        let mut action: libc::sigaction = mem::zeroed();
        let handler: extern "C" fn(c_int) = child_has_changed;
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = libc::SA_RESTART | libc::SA_NOCLDSTOP;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(libc::SIGCHLD, &action, ptr::null_mut()) == 0
    }
}

/// Reads the stage and the error number of a failed execution. `None` if it succeeded.
unsafe fn read_reason(report: i32) -> Option<[i32; 2]> {
    let mut reason = [0_i32; 2];
    let size = mem::size_of_val(&reason);
    loop {
        // SAFETY: the call reads into a local variable. A pipe delivers so few bytes in one piece.
        let got = unsafe { libc::read(report, reason.as_mut_ptr().cast(), size) };
        if got < 0 && errno() == libc::EINTR {
            continue;
        }
        return (got == size as isize).then_some(reason);
    }
}

impl Worker<'_> {
    /// Runs until the group is empty.
    unsafe fn run(&mut self, wake: i32) {
        // SAFETY: the calls use only this value, local variables, and descriptors of this process.
        unsafe {
            let mut control = self.a.control;
            let mut owner_is_gone = false;
            loop {
                self.sleep(wake, control);
                self.output.take_turn(&mut self.a.buffer, 0);
                self.output.take_turn(&mut self.a.buffer, 1);
                if control >= 0 && !self.listen() {
                    control = -1;
                    owner_is_gone = true;
                }
                owner_is_gone |= libc::getppid() != self.parent;
                if owner_is_gone {
                    let step = self.ending.lost_owner(self.a, true);
                    self.take(step);
                }
                self.reap();
                let step = self.ending.step(self.a);
                if (!self.main_alive && !self.group_lives()) || !self.take(step) {
                    break;
                }
            }
            self.conclude(wake);
        }
    }

    /// Carries out a step of the stop. Returns `false` when the rest of the group must be killed.
    unsafe fn take(&mut self, step: Step) -> bool {
        // SAFETY: the calls signal only the service's own group.
        unsafe {
            match step {
                // This back end cannot find descendants outside the group.
                Step::Nothing | Step::AskRest(_) => {}
                Step::Ask(signal) | Step::Kill(signal) => {
                    self.signal_group(signal);
                    self.signal_group(libc::SIGCONT);
                }
                Step::Conclude => return false,
            }
        }
        true
    }

    /// Kills the group and removes the service's files.
    unsafe fn conclude(&mut self, wake: i32) {
        // SAFETY: the arena's strings and descriptors are valid.
        unsafe {
            self.kill(wake);
            self.output.finish(&mut self.a.buffer);
            run_on_end(self.a, &mut self.output, kill_nobody);
            if self.ending.clean_up && !self.a.private_dir.is_null() {
                remove::private_dir(self.a.private_dir, self.ending.keep_log);
            }
            send(self.a.control, [EMPTY, 0, 0, 0, 0, 0, 0, 0]);
        }
    }

    /// Sleeps until an event, or until the next check of a state that no event reports.
    unsafe fn sleep(&self, wake: i32, control: i32) {
        let mut patience = if self.main_alive { POLL_MS } else { ORPHANS_MS };
        if let ms @ 0.. = self.ending.patience() {
            // During a stop, a group without its leader is checked every millisecond, because no
            // event reports its end.
            let limit = if self.main_alive { patience } else { 1 };
            patience = limit.min(ms);
        }
        if self.ending.needed >= 0 {
            patience = patience.min(WAIT_MS);
        }
        // SAFETY: `poll` uses only descriptors of this process.
        unsafe { self.poll(wake, control, patience) };
    }

    unsafe fn poll(&self, wake: i32, control: i32, ms: c_int) {
        // SAFETY: `poll` gets the number of entries in `fds`, and `read` writes into a local
        // buffer.
        unsafe {
            let mut fds = [wake, control, self.output.pipes[0], self.output.pipes[1]].map(to_read);
            let mut child: libc::sigset_t = mem::zeroed();
            libc::sigemptyset(&mut child);
            libc::sigaddset(&mut child, libc::SIGCHLD);
            // A signal that is already pending is delivered now, and its handler's byte wakes
            // `poll`.
            libc::sigprocmask(libc::SIG_UNBLOCK, &child, ptr::null_mut());
            libc::poll(fds.as_mut_ptr(), 4, ms);
            libc::sigprocmask(libc::SIG_BLOCK, &child, ptr::null_mut());
            let mut bytes = [0_u8; 64];
            while libc::read(wake, bytes.as_mut_ptr().cast(), bytes.len()) > 0 {}
        }
    }

    /// Handles the test process's messages. Returns `false` when that process has closed its end.
    unsafe fn listen(&mut self) -> bool {
        loop {
            let message = match self.inbox.receive(self.a.control, false) {
                Received::Message(message) => message,
                Received::Nothing => return true,
                Received::Closed => return false,
            };
            match message[0] {
                ARM => self.output.arm(),
                // SAFETY: the calls signal only the service's own group.
                STOP => unsafe {
                    let step = self.ending.obey(self.a, message);
                    self.take(step);
                },
                // SAFETY: `take_rest` uses only the log and the arena's buffer.
                SYNC => unsafe {
                    self.output.take_rest(&mut self.a.buffer);
                    send(self.a.control, [SYNCED, 0, 0, 0, 0, 0, 0, 0]);
                },
                // SAFETY: `signal_group` signals only the service's own group.
                SIGNAL => unsafe { self.signal_group(message[1]) },
                // This back end cannot publish, because no process would stop the service when the
                // run ends.
                PUBLISH => {
                    send(self.a.control, [PUBLISHED, libc::ENOTSUP, 0, 0, 0, 0, 0, 0]);
                }
                _ => {}
            }
        }
    }

    unsafe fn signal_group(&mut self, signal: i32) {
        if self.group_lives() {
            // SAFETY: the id belongs to the service's group.
            unsafe { libc::kill(-self.a.service, signal) };
        }
    }

    /// Whether the group still has a member.
    ///
    /// The group keeps its id while it has a member, and the leader is a member until it is reaped.
    /// After that, the group is checked until it is empty. If a *process* with the same id exists,
    /// the group was empty in the meantime, and its id has been reused.
    fn group_lives(&mut self) -> bool {
        if self.main_alive {
            return true;
        }
        let exists = |pid| {
            // SAFETY: signal 0 only asks whether the group exists.
            let result = unsafe { libc::kill(pid, 0) };
            // EPERM means that the group exists, but belongs to another user.
            result == 0 || errno() == libc::EPERM
        };
        let service = self.a.service;
        self.group_is_empty = self.group_is_empty || exists(service) || !exists(-service);
        !self.group_is_empty
    }

    /// If the main process has ended, reaps it and reports its exit.
    unsafe fn reap(&mut self) {
        if !self.main_alive {
            return;
        }
        let mut status = 0;
        // SAFETY: the status goes into a local variable.
        let reaped = unsafe { libc::waitpid(self.a.service, &mut status, libc::WNOHANG) };
        if reaped != self.a.service {
            return;
        }
        let at = now_ns();
        self.main_alive = false;
        // SAFETY: `take_rest` uses only the log and the arena's buffer.
        unsafe {
            // The log gets the last output before the test process learns of the exit.
            self.output.take_rest(&mut self.a.buffer);
        }
        let left = self.group_lives();
        send(self.a.control, exited(status, left, at));
    }

    /// Sends SIGKILL repeatedly until the group is empty, because a single signal may miss a
    /// process that forks at that moment.
    unsafe fn kill(&mut self, wake: i32) {
        let begin = now_ms();
        let mut alone_since = begin;
        // SAFETY: the calls signal only the service's own group, and poll descriptors of this
        // process.
        unsafe {
            while self.group_lives() {
                self.signal_group(libc::SIGKILL);
                // The wait is short, because most processes die within microseconds.
                self.poll(wake, -1, 1);
                self.output.take_turn(&mut self.a.buffer, 0);
                self.output.take_turn(&mut self.a.buffer, 1);
                self.reap();
                if self.main_alive {
                    alone_since = now_ms();
                } else if now_ms().wrapping_sub(alone_since) > ZOMBIES_MS {
                    return;
                }
            }
        }
    }
}

/// Does nothing, because this back end cannot find the processes that the `on_end` command leaves
/// behind.
unsafe fn kill_nobody(_: &mut Arena) {}
