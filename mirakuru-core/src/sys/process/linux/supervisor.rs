//! Runs the supervisor, which consists of a guard and its worker.
//!
//! This code runs after a fork of a process that may have many threads, so it makes only system
//! calls. It must not allocate, lock, or use a thread-local value other than `errno`. It must not
//! panic, so it avoids indexing, `unwrap`, and arithmetic that may overflow. The process has
//! inherited only the arena, its stacks and the file mappings.
//!
//! The order of events guarantees that the service is stopped:
//!
//! 1. The guard becomes a session leader and a subreaper *before* it starts the worker. The worker
//!    becomes both *before* it starts the service. So each orphaned descendant becomes a child of
//!    one of the two. The runner's signals to its process group and terminal do not reach the
//!    guard. Guard, worker and service each have their own session, so that no signal to a process
//!    group reaches two of them.
//! 2. The worker watches the test process through a pidfd that was opened before the fork, so it
//!    always notices when the test process ends. The end of file of the socket is not enough:
//!    another child of the test process may hold a copy of the socket.
//! 3. The service asks for SIGKILL at its parent's death, and only then checks that its parent is
//!    alive. So it notices an earlier death as well.
//! 4. A stop goes through the phases of `ending.rs`, then kills until nothing is left. After that
//!    the supervisor moves the last output into the log, and runs the recipe's `on_end` command.
//!    Finally it sends the last message to the test process, and exits.
//! 5. The supervisor checks or tries each call that the guarantee needs (`calls.rs`) before it
//!    starts the service. If a call fails, the start fails.
//!
//! Guard and worker watch each other. The worker polls a pidfd of the guard. The guard waits for
//! the worker, and resumes it if a signal has stopped it. If one dies, the other kills the tree.
//!
//! Guard and worker share one address space (`CLONE_VM`) if the system supports it. A second copy
//! would cost as much time and memory as the first. Sharing has three consequences:
//!
//! * A SIGKILL kills only one of the two. The exception is the kernel's OOM killer, which kills
//!   every process that shares the victim's memory. It prefers large processes, and the supervisor
//!   is small. If it kills both nevertheless, `sweep` finds the service's processes by their mark.
//! * While the worker lives, only the worker writes to this memory. Meanwhile the guard uses its
//!   own stack and reads only the list of locks, which never changes. The guard makes no call that
//!   fails in that time, because the two share one `errno`.
//! * Guard and worker share one command line, but each has its own process name (`comm`).
//!
//! The file is long because its guarantees depend on the order of the steps of guard and worker,
//! which is easiest to check in one place.

use std::ffi::{c_char, c_int, c_void};
use std::mem;
use std::ptr;

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
use super::super::tools::{digits, errno, fail, fail_call, now_ns, to_read};
use super::{handle, os, tree};
use crate::sys::io::remove::{keep_log, remove_private_dir};

// ------------------------------------------------------------------------------------------- guard

/// The main function of the guard. All signals are blocked.
pub(super) extern "C" fn guard(argument: *mut c_void) -> c_int {
    // SAFETY: the arena is mapped in this process, and no other code uses it.
    unsafe {
        let a = &mut *argument.cast::<Arena>();
        // The descriptors are closed first, because this process has copies of listeners and locks
        // that a test may be about to close.
        let can_share = os::close_all_but(a.keep, a.keep_count) && a.may_share;
        if let Err(call) = prepare_guard(a) {
            fail_call(a.control, call, errno());
            return 1;
        }
        let Arena {
            control,
            worker_stack,
            locks,
            lock_count,
            ..
        } = *a;
        let mut worker = -1;
        if can_share {
            worker = libc::clone(
                self::worker,
                worker_stack,
                libc::CLONE_VM | libc::SIGCHLD,
                argument,
            );
        }
        if worker < 0 {
            // An emulator of Linux may not support two processes in one address space.
            worker = libc::clone(self::worker, worker_stack, libc::SIGCHLD, argument);
        }
        if worker < 0 {
            fail_call(control, Call::Clone, errno());
            return 1;
        }
        // Only the worker may hold the socket, because its end of file tells the test process that
        // the worker is gone. The guard keeps the locks, so they are released only when both are
        // gone.
        os::close_all_but(locks, lock_count);
        let clean = guard_looks_after(worker);
        // The worker is gone, so this process alone uses the memory.
        let a = &mut *argument.cast::<Arena>();
        let mut proved = tree::kill_all(0, &mut a.pids);
        if !clean && a.service != 0 {
            a.control = -1;
            let mut output = Output::new(a, [-1; 2]);
            run_on_end(a, &mut output, kill_children);
            proved = tree::kill_all(0, &mut a.pids);
        }
        match (proved, clean) {
            (true, true) => 0,
            (true, false) => 1,
            (false, _) => os::UNPROVED,
        }
    }
}

/// Makes the calls that must succeed before the worker starts.
unsafe fn prepare_guard(a: &mut Arena) -> Result<(), Call> {
    // SAFETY: the calls use only the arena and this process's own descriptors.
    unsafe {
        check(libc::setsid(), Call::Session)?;
        check(
            libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0),
            Call::Subreaper,
        )?;
        reset_signals();
        null_standard_streams()?;
        name(a, c"mirakuru-guard");
        a.guard = libc::getpid();
        // The guard opens a pidfd of itself, and the worker inherits it. The pidfd cannot refer to
        // another process, because the guard's id is not reused while the guard runs.
        a.guard_pidfd = -1;
        if !handle::pidfds_are_missing() {
            a.guard_pidfd = libc::syscall(libc::SYS_pidfd_open, a.guard, 0) as i32;
            check(a.guard_pidfd, Call::PidfdOpen)?;
        }
        // The guard needs `wait4` and `waitid` only after the worker has started. By then a failure
        // could no longer abort the start, so the guard tries both calls now.
        let nobody = tree::has_children();
        check(if nobody == Some(false) { 0 } else { -1 }, Call::Wait)?;
        let not_mine = !tree::is_my_child(a.guard) && errno() == libc::ECHILD;
        check(if not_mine { 0 } else { -1 }, Call::WaitId)
    }
}

fn check(result: c_int, call: Call) -> Result<(), Call> {
    match result {
        0.. => Ok(()),
        _ => Err(call),
    }
}

unsafe fn kill_children(a: &mut Arena) {
    // SAFETY: all children of this process belong to the service.
    unsafe { tree::kill_all(0, &mut a.pids) };
}

/// Sleeps until the worker ends, and resumes it whenever a signal has stopped it. Returns whether
/// the worker finished its work.
unsafe fn guard_looks_after(worker: i32) -> bool {
    let mut errors = 0_u32;
    // SAFETY: the calls write statuses into local variables.
    unsafe {
        loop {
            let mut info: libc::siginfo_t = mem::zeroed();
            let flags = libc::WEXITED | libc::WSTOPPED | libc::__WALL;
            if libc::waitid(libc::P_PID, worker as libc::id_t, &mut info, flags) != 0 {
                // Only EINTR is expected, because no other code waits for this child.
                if errno() == libc::EINTR {
                    continue;
                }
                errors = errors.saturating_add(1);
                if errno() == libc::ECHILD || errors > 100 {
                    return false;
                }
                libc::poll(ptr::null_mut(), 0, 1);
                continue;
            }
            match info.si_code {
                libc::CLD_STOPPED | libc::CLD_TRAPPED => {
                    libc::kill(worker, libc::SIGCONT);
                }
                libc::CLD_EXITED => return info.si_status() == 0,
                _ => return false,
            }
        }
    }
}

// ------------------------------------------------------------------------------------------ worker

/// The worker's data about the service.
struct Worker<'a> {
    a: &'a mut Arena,
    inbox: Inbox,
    output: Output,
    ending: Ending,
    /// The time at which the stop signal was sent, in clock ticks since boot.
    asked_at: i64,
    /// Whether the service's process group has received the stop signal.
    group_was_asked: bool,
    /// Whether the main process has not been reaped yet.
    main_alive: bool,
    /// Whether the service belongs to the run, and no longer to the test process.
    published: bool,
    /// Wait status of the main process, and the time of its exit. The status is "killed" until the
    /// process is reaped.
    status: i32,
    ended_at: i64,
}

/// The main function of the worker. Exit status 0 tells the guard that the tree is empty.
extern "C" fn worker(argument: *mut c_void) -> c_int {
    // SAFETY: the arena is mapped in this process, and no other code uses it.
    unsafe {
        let a = &mut *argument.cast::<Arena>();
        let mut pipes = [-1; 2];
        let events = match prepare_worker(a, &mut pipes) {
            Ok(events) => events,
            Err(call) => {
                fail_call(a.control, call, errno());
                return 1;
            }
        };
        let pid = os::spawn(service, a);
        if pid < 0 {
            fail_call(a.control, Call::Clone, errno());
            return 0;
        }
        close_streams(a);
        // Only the service may hold the sockets, so that they close when it is gone.
        close_listeners(a);
        // If the start failed, `service` has written the stage here, or `os::spawn` has copied it
        // here.
        if ptr::read_volatile(&raw const a.failed_stage) >= 0 {
            a.service = 0;
            tree::kill_all(0, &mut a.pids);
            fail(a.control, a.failed_stage, a.failed_errno);
            return 0;
        }
        a.service = pid;
        // If the message is lost, the test process cannot stop the service, so the worker stops it
        // now.
        let told = send(a.control, [STARTED, pid, a.worker, 0, 0, 0, 0, 0]);

        let output = Output::new(a, pipes);
        let mut worker = Worker {
            a,
            inbox: Inbox::default(),
            output,
            ending: Ending::new(),
            asked_at: 0,
            group_was_asked: false,
            main_alive: true,
            published: false,
            status: libc::SIGKILL,
            ended_at: 0,
        };
        match if told {
            worker.run(events)
        } else {
            worker.conclude(-1)
        } {
            true => 0,
            false => os::UNPROVED,
        }
    }
}

/// Makes the calls that must succeed before the service starts. Returns a descriptor that reports
/// ended children.
unsafe fn prepare_worker(a: &mut Arena, pipes: &mut [i32; 2]) -> Result<i32, Call> {
    // SAFETY: the calls use only the arena, the array, and a name that ends in a zero byte.
    unsafe {
        check(libc::setsid(), Call::Session)?;
        check(
            libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0),
            Call::Subreaper,
        )?;
        // Sets only the name. The guard has already written the command line, which the worker
        // shares or has a copy of.
        libc::prctl(libc::PR_SET_NAME, c"mirakuru-worker".as_ptr(), 0, 0, 0);
        a.worker = libc::getpid();
        let events = signalfd();
        check(events, Call::Signalfd)?;
        // The worker needs `pidfd_send_signal` and `kill` only later, to signal processes. By then
        // a failure could no longer abort the start, so the worker tries both calls now. Signal 0
        // has no effect.
        if a.guard_pidfd >= 0 {
            check(handle::send(a.guard_pidfd, 0), Call::PidfdSend)?;
        } else {
            // When the guard dies, this signal wakes the worker through `events`, and the worker
            // checks its parent.
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGCHLD, 0, 0, 0);
        }
        check(libc::kill(a.guard, 0), Call::Kill)?;
        open_streams(a, pipes)?;
        lift_listeners(a)?;
        Ok(events)
    }
}

impl Worker<'_> {
    /// Runs until no process of the service is left. Returns whether the tree is proved empty.
    unsafe fn run(&mut self, events: i32) -> bool {
        // SAFETY: the calls use only this value, local variables, and descriptors of this process.
        unsafe {
            let [mut control, mut test] = [self.a.control, self.a.test_pidfd];
            let guard = self.a.guard_pidfd;
            let mut runner = self.a.runner_pidfd;
            let mut errors = 0_u32;
            loop {
                let mut fds = [
                    events,
                    control,
                    test,
                    guard,
                    self.output.pipes[0],
                    self.output.pipes[1],
                    if self.published { runner } else { -1 },
                    self.ending.needed,
                ]
                .map(to_read);
                let polled = libc::poll(fds.as_mut_ptr(), 8, self.ending.patience());
                let [
                    mut events_seen,
                    mut control_seen,
                    test_seen,
                    mut guard_seen,
                    mut out_seen,
                    mut err_seen,
                    runner_seen,
                    _,
                ] = fds.map(|fd| fd.revents != 0);
                if polled >= 0 {
                    errors = 0;
                } else {
                    // `poll` failed, and a system call filter may make it fail every time. So the
                    // worker tries all reads every millisecond. After a second it stops the
                    // service.
                    errors = errors.saturating_add(1);
                    guard_seen = errors > 1000 || libc::getppid() != self.a.guard;
                    [events_seen, control_seen, out_seen, err_seen] = [true; 4];
                    libc::usleep(1000);
                }
                guard_seen |= guard < 0 && libc::getppid() != self.a.guard;

                if out_seen {
                    self.output.take_turn(&mut self.a.buffer, 0);
                }
                if err_seen {
                    self.output.take_turn(&mut self.a.buffer, 1);
                }
                if guard_seen {
                    // The guard is gone. The worker kills the service immediately, because nothing
                    // would stop the service if the worker died as well.
                    return self.conclude(runner);
                }
                let mut owner_is_gone = false;
                if control >= 0 && control_seen && !self.listen() {
                    control = -1;
                    owner_is_gone |= !self.published;
                }
                if test_seen {
                    test = -1;
                    // The test process may have published the service just before it died.
                    if control >= 0 {
                        self.listen();
                    }
                    owner_is_gone |= !self.published;
                }
                if runner_seen && self.is_over(runner) {
                    runner = -1;
                    owner_is_gone = true;
                }
                if owner_is_gone {
                    let step = self.ending.lost_owner(self.a, !self.published);
                    self.take(step);
                }
                if events_seen {
                    drain_signalfd(events);
                }
                if self.reap() {
                    return self.conclude(runner);
                }
                let step = self.ending.step(self.a);
                if !self.take(step) {
                    return self.conclude(runner);
                }
            }
        }
    }

    /// Whether a published service must be stopped, after its runner or its last user has gone. A
    /// service that ends with its last user is first hidden from new users, and then the FIFO is
    /// checked again. A new user opens the FIFO before it looks for the service. So either this
    /// check sees the user, or the user does not find the service.
    unsafe fn is_over(&self, users: i32) -> bool {
        // SAFETY: the paths are strings in the arena, and `poll` uses a local variable.
        unsafe {
            let (published, hidden) = (self.a.published, self.a.staged);
            if !self.a.ends_with_users || libc::rename(published, hidden) != 0 {
                return true;
            }
            let mut poll = to_read(users);
            // If `poll` fails, the service is stopped, because it is hidden already.
            libc::poll(&mut poll, 1, 0) != 0 || libc::rename(hidden, published) != 0
        }
    }

    /// Carries out a step of the stop. Returns `false` when the rest of the tree must be killed.
    unsafe fn take(&mut self, step: Step) -> bool {
        // SAFETY: the calls signal only processes of the tree.
        unsafe {
            match step {
                Step::Nothing => {}
                Step::Ask(signal) => {
                    self.asked_at = tree::now_ticks();
                    self.signal_group(signal);
                }
                Step::AskRest(signal) => self.tell_descendants(signal, true),
                Step::Kill(signal) => {
                    self.signal_group(signal);
                    self.tell_descendants(signal, false);
                }
                Step::Conclude => return false,
            }
        }
        true
    }

    /// Handles the test process's messages. Returns `false` when that process has closed its end.
    unsafe fn listen(&mut self) -> bool {
        // SAFETY: the calls signal only processes of the tree.
        unsafe {
            loop {
                let message = match self.inbox.receive(self.a.control, false) {
                    Received::Message(message) => message,
                    Received::Nothing => return true,
                    Received::Closed => return false,
                };
                match message[0] {
                    ARM => self.output.arm(),
                    // A published service outlives the test process.
                    STOP if !self.published => {
                        let step = self.ending.obey(self.a, message);
                        self.take(step);
                    }
                    PUBLISH => self.publish(),
                    SYNC => {
                        self.output.take_rest(&mut self.a.buffer);
                        send(self.a.control, [SYNCED, 0, 0, 0, 0, 0, 0, 0]);
                    }
                    SIGNAL if self.main_alive => {
                        libc::kill(-self.a.service, message[1]);
                    }
                    SIGNAL => self.tell_descendants(message[1], false),
                    _ => {}
                }
            }
        }
    }

    /// Publishes the service with a single rename of the state file. From then on the service no
    /// longer ends with the test process.
    unsafe fn publish(&mut self) {
        // SAFETY: the paths are strings in the arena.
        unsafe {
            let mut error = libc::EINVAL;
            // If the service has ended by now, the test process reports a failed start.
            let is_gone = self.reap() || (!self.main_alive && self.status != 0);
            if is_gone {
                error = libc::ESRCH;
            } else if !self.a.staged.is_null() && self.a.runner_pidfd >= 0 && !self.ending.has_begun() {
                if !self.main_alive {
                    // The main process has exited and left a daemon.
                    self.record_exit(self.a.staged, true);
                }
                error = match libc::rename(self.a.staged, self.a.published) {
                    0 => 0,
                    _ => errno(),
                };
            }
            self.published = error == 0;
            send(self.a.control, [PUBLISHED, error, 0, 0, 0, 0, 0, 0]);
        }
    }

    /// Appends the exit of the main process to a state file: `exit=STATUS,LEFT,NS` and a zero byte.
    /// The last such entry counts.
    unsafe fn record_exit(&self, path: *const c_char, left: bool) {
        // SAFETY: the path is a string in the arena; the line is a local variable.
        unsafe {
            let fd = libc::open(
                path,
                libc::O_WRONLY | libc::O_APPEND | libc::O_CLOEXEC | libc::O_NOFOLLOW,
            );
            if fd < 0 {
                return;
            }
            let mut line = Line {
                text: [0; 80],
                len: 0,
            };
            line.push(b"exit=");
            line.number(i64::from(self.status));
            line.push(if left { b",1," } else { b",0," });
            line.number(self.ended_at);
            line.push(b"\0");
            libc::write(fd, line.text.as_ptr().cast(), line.len);
            libc::close(fd);
        }
    }

    /// Kills the tree and removes the service's files. If a service of the run ends before its
    /// runner, its state and its log are kept for later processes until the runner ends. Returns
    /// whether the tree is proved empty.
    unsafe fn conclude(&mut self, runner: i32) -> bool {
        // SAFETY: this process is a subreaper, and all its children belong to the service. The
        // arena's strings are valid.
        unsafe {
            let mut proved = self.end();
            if proved {
                run_on_end(self.a, &mut self.output, kill_children);
                proved = tree::kill_all(0, &mut self.a.pids);
            }
            if self.published && !self.ending.clean_up {
                // Records that no process is left. If the service was a daemon, an earlier record
                // says the opposite. If the main process was killed just now, there is no record
                // yet.
                self.record_exit(self.a.published, false);
                let mut poll = to_read(runner);
                while libc::poll(&mut poll, 1, -1) <= 0 {
                    if errno() != libc::EINTR {
                        libc::usleep(10_000);
                    }
                }
                self.ending.clean_up = true;
            }
            if self.ending.clean_up {
                if self.published {
                    // Either the runner has ended, or the service has its own directory and its
                    // last user is gone. Without the runner no process starts a service of the run
                    // or attaches to one, and a new run has another directory. So the first worker
                    // that gets here removes the files of all services of the run.
                    remove_private_dir(self.a.run_dir);
                }
                if !self.a.private_dir.is_null() {
                    if self.ending.keep_log {
                        keep_log(self.a.private_dir);
                    }
                    remove_private_dir(self.a.private_dir);
                }
            }
            // Resumes the guard with SIGCONT. A guard that was stopped by a signal would hold its
            // locks for ever.
            if self.a.guard_pidfd >= 0 {
                handle::send(self.a.guard_pidfd, libc::SIGCONT);
            } else if libc::getppid() == self.a.guard {
                libc::kill(self.a.guard, libc::SIGCONT);
            }
            if proved {
                send(self.a.control, [EMPTY, 0, 0, 0, 0, 0, 0, 0]);
            }
            proved
        }
    }

    /// Sends the signal to the service's group, followed by SIGCONT so that stopped processes react
    /// too. Once the main process has been reaped, another group could have the same id, so each
    /// child is signalled instead.
    unsafe fn signal_group(&mut self, signal: i32) {
        // SAFETY: the group exists, and is the service's, as long as its leader has not been
        // reaped.
        unsafe {
            if self.main_alive {
                self.group_was_asked = true;
                libc::kill(-self.a.service, signal);
                libc::kill(-self.a.service, libc::SIGCONT);
            } else {
                self.tell_orphans(signal);
            }
        }
    }

    /// Signals each adopted child once, except for members of the service's group if the group has
    /// been signalled.
    unsafe fn tell_orphans(&mut self, signal: i32) {
        // SAFETY: `signal_child` signals only children of this process.
        unsafe {
            let count = tree::children(&mut self.a.pids, false);
            for at in 0..count {
                let Some(pid) = self.a.pids.get(at).copied() else {
                    break;
                };
                if self.note_told(pid)
                    && !self.was_asked_with_its_group(pid)
                    && tree::signal_child(pid, signal, false)
                {
                    tree::signal_child(pid, libc::SIGCONT, false);
                }
            }
        }
    }

    /// Signals the descendants. With `ask`, signals each of them only once, followed by SIGCONT so
    /// that stopped processes react too.
    ///
    /// With `ask`, also skips members of the signalled group, and processes that started after the
    /// stop signal. A process that started so late may be cleaning up after the service; podman
    /// starts such a process.
    unsafe fn tell_descendants(&mut self, signal: i32, ask: bool) {
        // SAFETY: `signal_descendant` signals only descendants of this process.
        unsafe {
            let count = tree::descendants(&mut self.a.pids);
            for at in 0..count {
                let Some(pid) = self.a.pids.get(at).copied() else {
                    break;
                };
                let is_spared = self.was_asked_with_its_group(pid) || tree::is_younger(pid, self.asked_at);
                if ask && (is_spared || !self.note_told(pid)) {
                    continue;
                }
                tree::signal_descendant(pid, signal);
                if ask {
                    tree::signal_descendant(pid, libc::SIGCONT);
                }
            }
        }
    }

    /// Whether a process has received the stop signal as a member of the service's group. `false`
    /// if the main process was gone before the stop.
    fn was_asked_with_its_group(&self, pid: i32) -> bool {
        // SAFETY: the call takes only numbers.
        self.group_was_asked && unsafe { libc::getpgid(pid) } == self.a.service
    }

    /// Records a process that is about to get the stop signal. Returns `false` if it is already
    /// recorded, or if the list is full.
    fn note_told(&mut self, pid: i32) -> bool {
        let told = self.a.told.get(..self.a.told_count).unwrap_or(&[]);
        if told.contains(&pid) {
            return false;
        }
        let Some(slot) = self.a.told.get_mut(self.a.told_count) else {
            return false;
        };
        *slot = pid;
        self.a.told_count = self.a.told_count.wrapping_add(1);
        true
    }

    /// Reaps dead children. Returns `true` when no child is left.
    unsafe fn reap(&mut self) -> bool {
        // SAFETY: the calls write statuses into local variables.
        unsafe {
            let mut has_ended = false;
            let empty = loop {
                let mut status = 0;
                match libc::waitpid(-1, &mut status, libc::WNOHANG | libc::__WALL) {
                    -1 if errno() == libc::EINTR => {}
                    -1 => break errno() == libc::ECHILD,
                    0 => break false,
                    pid if pid == self.a.service && self.main_alive => {
                        self.main_alive = false;
                        (self.status, self.ended_at) = (status, now_ns());
                        has_ended = true;
                    }
                    _ => {}
                }
            };
            if has_ended {
                // The log gets the last output before the test process learns of the exit.
                self.output.take_rest(&mut self.a.buffer);
                self.tell_exit(!empty);
                if self.published && !self.ending.clean_up {
                    self.record_exit(self.a.published, !empty);
                }
            }
            if !self.main_alive && !empty {
                if let Some(signal) = self.ending.signal() {
                    self.tell_orphans(signal);
                }
            }
            empty
        }
    }

    /// Kills all processes that are left, then moves the rest of their output into the log. Returns
    /// whether the tree is proved empty.
    unsafe fn end(&mut self) -> bool {
        // SAFETY: this process is a subreaper, and all its children belong to the service.
        unsafe {
            if self.main_alive {
                libc::kill(-self.a.service, libc::SIGKILL);
                // The status is fetched before `kill_all` makes the kernel discard statuses. A
                // killed process usually ends in well under a millisecond.
                for _ in 0..50 {
                    let mut status = 0;
                    if libc::waitpid(self.a.service, &mut status, libc::WNOHANG | libc::__WALL)
                        == self.a.service
                    {
                        self.main_alive = false;
                        (self.status, self.ended_at) = (status, now_ns());
                        self.output.take_rest(&mut self.a.buffer);
                        self.tell_exit(true);
                        break;
                    }
                    let mut short = libc::timespec {
                        tv_sec: 0,
                        tv_nsec: 20_000,
                    };
                    libc::nanosleep(&short, &mut short);
                }
            }
            let group = if self.main_alive { self.a.service } else { 0 };
            let proved = tree::kill_all(group, &mut self.a.pids);
            if self.main_alive {
                // The process took longer to die, so the kernel has discarded its status. It died
                // of SIGKILL.
                self.main_alive = false;
                (self.status, self.ended_at) = (libc::SIGKILL, now_ns());
                self.tell_exit(true);
            }
            self.output.finish(&mut self.a.buffer);
            proved
        }
    }

    /// Reports the exit of the main process.
    fn tell_exit(&self, left: bool) {
        send(self.a.control, exited(self.status, left, self.ended_at));
    }
}

// ----------------------------------------------------------------------------------------- service

/// Becomes the service. If this process shares the worker's memory, the worker sleeps until the
/// exec.
unsafe extern "C" fn service(argument: *mut c_void) -> c_int {
    // SAFETY: the arena is mapped, and its other user sleeps until this process executes a program
    // or exits.
    unsafe {
        let a = &mut *argument.cast::<Arena>();
        // If the worker is killed now, a guard that shares this memory finds the service through
        // this field.
        a.service = libc::getpid();
        (a.failed_stage, a.failed_errno) = become_service(a);
        os::report_failure(a);
        127
    }
}

// ------------------------------------------------------------------------------------------- tools

/// Gives this process its own name, so that a `pkill` meant for the test does not hit the
/// supervisor. Sets `comm` and overwrites the inherited command line.
unsafe fn name(a: &Arena, comm: &std::ffi::CStr) {
    // SAFETY: `args` points to `args_len` bytes of this process's own stack, where the kernel put
    // the arguments.
    unsafe {
        libc::prctl(libc::PR_SET_NAME, comm.as_ptr(), 0, 0, 0);
        if a.args_len > 0 {
            let len = a.title_len.min(a.args_len.wrapping_sub(1));
            ptr::write_bytes(a.args, 0, a.args_len);
            ptr::copy_nonoverlapping::<c_char>(a.title, a.args, len);
        }
    }
}

/// A descriptor that reports SIGCHLD to `poll`. The signal itself is blocked, as all signals are.
unsafe fn signalfd() -> i32 {
    // SAFETY: the set is a local variable.
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        libc::signalfd(-1, &set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC)
    }
}

unsafe fn drain_signalfd(fd: i32) {
    // SAFETY: the call reads into a local buffer.
    unsafe {
        let mut buffer = [0_u64; 16 * 16];
        while libc::read(fd, buffer.as_mut_ptr().cast(), mem::size_of_val(&buffer)) > 0 {}
    }
}

/// A short text, built without allocation. Text that does not fit is dropped.
struct Line {
    text: [u8; 80],
    len: usize,
}

impl Line {
    fn push(&mut self, text: &[u8]) {
        for byte in text {
            if let Some(slot) = self.text.get_mut(self.len) {
                *slot = *byte;
                self.len = self.len.wrapping_add(1);
            }
        }
    }

    fn number(&mut self, number: i64) {
        if number < 0 {
            self.push(b"-");
        }
        self.push(digits(number.unsigned_abs(), &mut [0; 20]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_in_decimal() {
        for number in [0, 7, -9, 10, 65_280, i64::MAX, i64::MIN + 1] {
            let mut line = Line {
                text: [0; 80],
                len: 0,
            };
            line.number(number);
            assert_eq!(&line.text[..line.len], number.to_string().as_bytes());
        }
    }

    #[test]
    fn a_line_takes_no_more_than_it_holds() {
        let mut line = Line {
            text: [0; 80],
            len: 0,
        };
        line.push(&[b'x'; 200]);
        assert_eq!(line.len, 80);
    }
}
