//! The test process's side of a service, in both back ends. It starts the supervisor, exchanges
//! messages with it, and waits until it has ended.
//!
//! The file is long because its tests, which start real services, are a third of it.

use std::fs::OpenOptions;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::arena::{Descriptors, Lists, Mapping};
use super::back_end::os;
use super::calls::Call;
use super::ending::NEEDED;
use super::exit::{self, Registration};
use super::message::{self, INTERRUPTED, Inbox, Message, Received, stop_message};
use super::plan::{Plan, SpawnFailure, Stage, StopPolicy, Stream};
use super::spawn::ON_END_TAKES_MS;
use crate::sys::files::make_fifo;
use crate::sys::net::raw_socket;

/// Time that the supervisor may take beyond the grace. It usually needs milliseconds. A process
/// that is stuck in the kernel, for example on a dead disk, takes longer.
const MARGIN: Duration = Duration::from_secs(30);

/// Number of times that a launch is repeated if the supervisor dies without reporting an error.
const LAUNCH_RETRIES: u32 = 2;

/// Upper limit for the grace (24 days), so that no sum of times overflows.
const LONGEST_GRACE: Duration = Duration::from_millis(i32::MAX as u64);

/// A service under supervision. The supervisor's end of the socket is closed exactly when its
/// worker is gone.
pub(crate) struct Service {
    /// The control socket. `drop` leaves it open if the exit handler (`exit.rs`) is stopping the
    /// service.
    control: ManuallyDrop<OwnedFd>,
    /// The process that started the service. A forked child has a copy of this value, and must not
    /// use it.
    owner: u32,
    guard: Pid,
    id: String,
    worker: u32,
    pid: u32,
    /// The plan for a retry, until the supervisor sends its first message.
    plan: Option<Box<Plan>>,
    /// Number of times that the plan may be launched again.
    launch_retries: u32,
    /// Time that the recipe's `on_end` command may take.
    slow_end: Duration,
    registration: Registration,
    inbox: Inbox,
    state: State,
}

#[derive(Default)]
struct State {
    /// The stage, the error number and the system call of a failed start.
    failed: Option<[i32; 3]>,
    exit: Option<Exit>,
    /// Whether the worker has sent its last message, which says that no process is left.
    empty: bool,
    /// Whether the worker is gone.
    closed: bool,
    output: bool,
    /// Whether nothing is left to do for this process: the guard has been reaped, or the service
    /// was published.
    reaped: bool,
    /// Number of reads without a message.
    silent: u32,
}

impl State {
    /// Returns `true` on every sixteenth call.
    fn is_time_to_poll(&mut self) -> bool {
        self.silent = self.silent.wrapping_add(1);
        self.silent % 16 == 0
    }
}

/// A signal to a whole tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TreeSignal {
    /// SIGSTOP
    Stop,
    /// SIGCONT
    Continue,
}

/// The exit of the main process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    pub(crate) status: ExitStatus,
    /// The time on CLOCK_MONOTONIC, in nanoseconds, at which the supervisor noticed the exit.
    pub(crate) at: u64,
    /// Whether the main process left descendants behind, as it does when the service becomes a
    /// daemon.
    pub(crate) left_descendants: bool,
}

impl Exit {
    /// Whether the service has become a daemon: its main process exited with status 0 and left
    /// descendants.
    pub(crate) fn is_daemonised(&self) -> bool {
        self.left_descendants && self.status.success()
    }
}

impl Service {
    /// Starts a supervisor for each plan. The supervisors are forked together, because preparing
    /// the memory costs more than a fork. Each supervisor executes its service a moment later: see
    /// [`has_started`](Service::has_started).
    pub(crate) fn launch(plans: Vec<Plan>) -> Vec<Result<Service, SpawnFailure>> {
        Service::try_to_launch(plans, LAUNCH_RETRIES)
    }

    fn try_to_launch(plans: Vec<Plan>, retries: u32) -> Vec<Result<Service, SpawnFailure>> {
        let mut launches = Vec::new();
        for plan in &plans {
            launches.push(LaunchResources::new(plan));
        }
        let mut mappings = Vec::new();
        for launch in launches.iter_mut().flatten() {
            mappings.push(&mut launch.mapping);
        }
        // Blocks all signals, so that no signal handler of the test runs in the supervisor.
        let mut before = SigSet::empty();
        let guards = match pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&SigSet::all()), Some(&mut before)) {
            Ok(()) => {
                let guards = os::fork(&mut mappings);
                // The same call has just succeeded, so this one cannot fail.
                let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
                guards
            }
            Err(errno) => vec![Err(errno); mappings.len()],
        };
        let mut guards = guards.into_iter();
        let mut launched = Vec::new();
        for launch in launches {
            launched.push(launch.and_then(|launch| {
                let guard = guards.next().unwrap_or(Err(Errno::EINVAL));
                Ok(launch.leave(guard.map_err(|errno| Call::Clone.failed(errno.into()))?))
            }));
        }
        // Dropping a plan closes this process's copies of the descriptors, so that only the
        // supervisor holds the locks. A plan is kept if its supervisor might die before its first
        // message.
        let may_die = retries > 0 && (os::forks_are_lean() || os::forks_whole_because().is_some());
        for (plan, launched) in plans.into_iter().zip(&mut launched) {
            if let Ok(service) = launched {
                service.plan = may_die.then(|| Box::new(plan));
                service.launch_retries = retries;
            }
        }
        launched
    }

    /// Starts the service again after its supervisor died without a message. A supervisor that was
    /// forked without most of this process's memory may have needed it. A dynamic linker, a
    /// preloaded library or a sanitizer may keep its data anywhere. So this start and all later
    /// ones copy all memory.
    ///
    /// If the dead supervisor had a copy of all memory, the start is simply repeated. Under
    /// AddressSanitizer about one supervisor in 400 dies on a busy machine.
    fn start_whole(&mut self) -> Option<Result<(), SpawnFailure>> {
        let plan = self.plan.take()?;
        if !self.registration.take() {
            return None;
        }
        let _ = self.finish();
        os::fork_whole("a supervisor died after a fork without most of the memory");
        Some(
            match Service::try_to_launch(vec![*plan], self.launch_retries.saturating_sub(1)).pop()? {
                Ok(service) => {
                    *self = service;
                    Ok(())
                }
                Err(failure) => Err(failure),
            },
        )
    }

    /// Starts one service, and returns when its program has been executed.
    #[cfg(test)]
    pub(crate) fn spawn(plan: Plan) -> Result<Service, SpawnFailure> {
        let mut service = Service::launch(vec![plan]).pop().expect("one for each plan")?;
        while !service.has_started()? {
            service.poll(None);
        }
        Ok(service)
    }

    /// Whether the program has been executed, which takes the kernel a moment. After an error, no
    /// process is left.
    pub(crate) fn has_started(&mut self) -> Result<bool, SpawnFailure> {
        self.pump();
        if self.pid != 0 {
            self.plan = None;
            return Ok(true);
        }
        if self.state.closed && self.state.failed.is_none() {
            match self.start_whole() {
                Some(Ok(())) => return Ok(false),
                Some(Err(failure)) => return Err(failure),
                None => {}
            }
        }
        let failure = match self.state.failed {
            Some([stage, errno, call]) => SpawnFailure {
                stage: match stage {
                    message::STAGE_GROUPS => Stage::Groups,
                    message::STAGE_GID => Stage::Gid,
                    message::STAGE_UID => Stage::Uid,
                    message::STAGE_CURRENT_DIR => Stage::CurrentDir,
                    message::STAGE_EXEC => Stage::Exec,
                    _ => Stage::Supervisor,
                },
                call: (stage == message::STAGE_SUPERVISOR)
                    .then(|| Call::of(call))
                    .flatten(),
                source: io::Error::from_raw_os_error(errno),
            },
            None if self.state.closed => SpawnFailure {
                stage: Stage::Supervisor,
                call: None,
                source: io::Error::other("the supervisor was killed before it could start the service"),
            },
            None => return Ok(false),
        };
        if self.registration.take() {
            // The error of the start is more informative than an error of `finish`.
            let _ = self.finish();
        }
        Err(failure)
    }

    /// Whether the exit handler or the end of the test is already stopping the service. In that
    /// case the supervisor removes the directory.
    pub(crate) fn ended_elsewhere(&self) -> bool {
        self.owner == std::process::id() && !self.registration.take()
    }

    /// The service's process id.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// The process id of the supervisor's worker, the root of the service's tree.
    pub(crate) fn supervisor(&self) -> u32 {
        self.worker
    }

    /// The exit of the main process, if it has exited.
    pub(crate) fn exit(&mut self) -> Option<Exit> {
        self.pump();
        self.state.exit
    }

    /// Whether nothing is left of the service.
    pub(crate) fn is_gone(&mut self) -> bool {
        self.pump();
        self.state.empty || self.state.closed
    }

    /// Requests one event for the next output.
    pub(crate) fn arm_output(&mut self) {
        self.state.output = false;
        self.send([message::ARM, 0, 0, 0, 0, 0, 0, 0]);
    }

    /// Discards an output event that an earlier wait has requested.
    pub(crate) fn forget_output(&mut self) {
        self.state.output = false;
    }

    /// Waits until the log contains everything that the service has printed so far, which usually
    /// takes microseconds. Gives up after a second, because the supervisor may be suspended
    /// (SIGSTOP).
    pub(crate) fn sync_output(&mut self) {
        self.send([message::SYNC, 0, 0, 0, 0, 0, 0, 0]);
        let deadline = Instant::now() + Duration::from_secs(1);
        loop {
            match self.receive() {
                Ok(Some([message::SYNCED, ..])) | Err(_) => return,
                Ok(Some(message)) => self.note(message),
                Ok(None) if self.state.closed || Instant::now() > deadline => return,
                Ok(None) => self.poll(Some(Duration::from_millis(100))),
            }
        }
    }

    /// Sleeps until the service has an event or one of these descriptors is readable, but no longer
    /// than `timeout`.
    pub(crate) fn wait_event(&mut self, others: &[RawFd], timeout: Duration) {
        if self.state.output || self.state.closed {
            if self.state.closed {
                std::thread::sleep(timeout.min(Duration::from_millis(1)));
            }
            return;
        }
        if others.is_empty() {
            self.poll(Some(timeout));
        } else {
            let mut all = vec![self.control.as_raw_fd()];
            all.extend_from_slice(others);
            crate::sys::wait_readable(&all, timeout);
        }
        self.pump();
    }

    /// The descriptor that becomes readable at the service's next event. `None` if an event is
    /// already pending.
    pub(crate) fn events(&self) -> Option<RawFd> {
        (!self.state.output && !self.state.closed).then(|| self.control.as_raw_fd())
    }

    /// The descriptor that becomes readable when the supervisor sends a message.
    pub(crate) fn control(&self) -> RawFd {
        self.control.as_raw_fd()
    }

    /// Pauses or resumes the whole tree, as far as it can be found.
    pub(crate) fn signal_tree(&mut self, signal: TreeSignal) {
        let number = match signal {
            TreeSignal::Stop => libc::SIGSTOP,
            TreeSignal::Continue => libc::SIGCONT,
        };
        if !os::signal_tree(self.worker, number) {
            self.send([message::SIGNAL, number, 0, 0, 0, 0, 0, 0]);
            // The supervisor answers after it has sent the signal.
            self.sync_output();
        }
    }

    /// Signals the service's process group.
    pub(crate) fn signal(&mut self, signal: i32) {
        self.send([message::SIGNAL, signal, 0, 0, 0, 0, 0, 0]);
    }

    /// Hands the service over to the run. The supervisor publishes the state file, and from then on
    /// the service ends with the run instead of with this process.
    ///
    /// A single message makes the supervisor take both steps. So if this process dies, the service
    /// either ends with this process or already belongs to the run.
    pub(crate) fn publish(&mut self) -> io::Result<()> {
        // Takes the registration first. If another thread ends this process, the exit handler must
        // neither stop nor wait for a service that the run is about to own.
        if !self.registration.take() {
            return Err(io::Error::other("this process is about to end"));
        }
        self.send([message::PUBLISH, 0, 0, 0, 0, 0, 0, 0]);
        loop {
            self.poll(None);
            match self.receive()? {
                Some([message::PUBLISHED, 0, ..]) => {
                    // This process no longer has to stop the service.
                    self.state.reaped = true;
                    return Ok(());
                }
                Some([message::PUBLISHED, errno, ..]) => return Err(io::Error::from_raw_os_error(errno)),
                Some(message) => self.note(message),
                None if self.state.closed => {
                    return Err(io::Error::other("the service ended before it could be published"));
                }
                None => {}
            }
        }
    }

    /// Asks the supervisor to stop the service, without waiting; [`stop`](Service::stop) waits.
    pub(crate) fn ask_to_stop(&mut self, policy: StopPolicy) {
        if self.owner == std::process::id() && !self.state.reaped && self.registration.take() {
            self.send(stop_message(policy, false));
            wake(self.guard);
        }
    }

    /// Stops the service, and returns when nothing is left of it.
    pub(crate) fn stop(&mut self, policy: StopPolicy) -> io::Result<()> {
        if self.owner != std::process::id() || !self.registration.take() {
            // Either this process is a forked child, or the exit handler is already stopping the
            // service.
            self.state.closed = true;
            self.state.empty = true;
            self.state.reaped = true;
            return Ok(());
        }
        if self.state.reaped {
            return Ok(());
        }
        // A second stop message does no harm, because it can only shorten the grace.
        self.ask_to_stop(policy);
        self.pump();
        if self.pid == 0 && !self.state.closed {
            // Until the kernel has loaded the program, the worker sleeps and reads no message.
            os::abort_start(self.guard.as_raw());
        }
        let deadline = Instant::now() + policy.grace.min(LONGEST_GRACE) + MARGIN + self.slow_end;
        while !self.state.closed {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.takes_too_long());
            }
            self.poll(Some(left));
            self.pump();
        }
        self.finish()
    }

    /// Waits for the guard after the worker has ended. The guard holds the locks as well, and its
    /// exit status tells whether the tree is proved empty. If guard and worker were both killed,
    /// kills the processes with the service's mark.
    fn finish(&mut self) -> io::Result<()> {
        let empty = std::mem::replace(&mut self.state.empty, true);
        self.state.closed = true;
        self.state.reaped = true;
        if !empty {
            // The worker may still be alive, even if its socket is closed or broken. `hang_up`
            // tells the worker to stop the service.
            raw_socket::hang_up(&self.control);
        }
        match self.reap_guard(empty) {
            _ if empty => Ok(()),
            Some(WaitStatus::Exited(_, os::UNPROVED)) => Err(io::Error::other(
                "the kernel refuses to say whether a process of the service is left: `wait4` fails in the \
                    supervisor",
            )),
            Some(WaitStatus::Exited(..)) => Ok(()),
            Some(_) => {
                os::last_resort(&self.id, self.guard.as_raw(), self.pid as i32);
                Ok(())
            }
            None => Err(self.takes_too_long()),
        }
    }

    fn takes_too_long(&self) -> io::Error {
        io::Error::new(
            io::ErrorKind::TimedOut,
            format!(
                "the supervisor (pid {}) has not finished within {MARGIN:?} after the grace",
                self.worker
            ),
        )
    }

    /// Waits until the guard has exited. Returns `None` if it has not exited after [`MARGIN`] plus
    /// `slow_end`. If `soon` is set, the worker has sent its last message, so there is no time
    /// limit.
    fn reap_guard(&mut self, soon: bool) -> Option<WaitStatus> {
        wake(self.guard);
        wait_for(
            self.guard,
            (!soon).then(|| Instant::now() + MARGIN + self.slow_end),
        )
    }

    fn pump(&mut self) {
        while let Ok(Some(message)) = self.receive() {
            self.note(message);
        }
    }

    fn note(&mut self, message: Message) {
        match message {
            [message::STARTED, pid, worker, ..] => {
                self.pid = pid.unsigned_abs();
                self.worker = worker.unsigned_abs();
                self.registration.set_service(pid);
            }
            [message::FAILED, stage, errno, call, ..] => self.state.failed = Some([stage, errno, call]),
            [message::EXITED, status, left, high, low, ..] => {
                let at = (u64::from(high as u32) << 32) | u64::from(low as u32);
                let status = ExitStatus::from_raw(status);
                self.state.exit = Some(Exit {
                    status,
                    at,
                    left_descendants: left != 0,
                });
            }
            [message::OUTPUT, ..] => self.state.output = true,
            [message::EMPTY, ..] => self.state.empty = true,
            _ => {}
        }
    }

    /// Reads a message, if one has arrived. If the connection is closed, records that.
    fn receive(&mut self) -> io::Result<Option<Message>> {
        if self.state.closed {
            return Ok(None);
        }
        match self.inbox.receive(self.control.as_raw_fd(), false) {
            Received::Message(message) => Ok(Some(message)),
            // The guard is checked only now and then, because the check costs a system call.
            Received::Nothing if self.state.is_time_to_poll() && has_exited(self.guard) => {
                // The worker's last messages may have arrived between the two checks.
                match self.inbox.receive(self.control.as_raw_fd(), false) {
                    Received::Message(message) => Ok(Some(message)),
                    _ => self.closed(),
                }
            }
            Received::Nothing => Ok(None),
            Received::Closed => self.closed(),
        }
    }

    fn closed(&mut self) -> io::Result<Option<Message>> {
        self.state.closed = true;
        Ok(None)
    }

    fn send(&mut self, message: Message) {
        // This fails only if the worker is gone, which `receive` notices.
        message::send(self.control.as_raw_fd(), message);
    }

    fn poll(&self, timeout: Option<Duration>) {
        os::wait_readable(self.control.as_raw_fd(), timeout);
    }
}

/// The resources of a launch, which are dropped if it fails.
struct LaunchResources<'a> {
    plan: &'a Plan,
    mapping: Mapping,
    /// Must be dropped before `ours`, whose number it holds.
    registration: Registration,
    /// The test process's end of the socket.
    ours: OwnedFd,
    /// Descriptors that are not in the plan, and of which the supervisor gets copies.
    _theirs: Vec<OwnedFd>,
}

impl LaunchResources<'_> {
    fn new(plan: &Plan) -> Result<LaunchResources<'_>, SpawnFailure> {
        let failed = |call: Call| move |source| call.failed(source);
        let (ours, control) = raw_socket::pair(os::CONTROL).map_err(failed(Call::Socketpair))?;
        let this_process = os::this_process().map_err(failed(Call::PidfdOpen))?;
        let mut theirs = Vec::new();
        // The supervisor puts /dev/null on 0 to 2, so every descriptor that it keeps must be above
        // 2.
        let mut lift = |fd: RawFd| -> Result<RawFd, SpawnFailure> {
            if fd > 2 {
                return Ok(fd);
            }
            // SAFETY: the descriptor is open (borrowed from `plan`, or newly created); `theirs`
            // owns the copy.
            let copy = unsafe {
                let copy = Errno::result(libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3));
                OwnedFd::from_raw_fd(copy.map_err(|errno| Call::Duplicate.failed(errno.into()))?)
            };
            let number = copy.as_raw_fd();
            theirs.push(copy);
            Ok(number)
        };
        let mut stream = |stream: &Stream| match stream {
            Stream::Null | Stream::Log => Ok(-1),
            Stream::Fd(fd) => lift(fd.as_raw_fd()),
            Stream::Inherit(fd) => lift(*fd),
        };
        let stdio = [stream(&plan.stdin)?, stream(&plan.stdout)?, stream(&plan.stderr)?];
        let descriptors = Descriptors {
            stdio,
            control: lift(control.as_raw_fd())?,
            test_pidfd: match &this_process {
                Some(fd) => lift(fd.as_raw_fd())?,
                None => -1,
            },
            log: lift(plan.log.as_raw_fd())?,
            index: lift(plan.index.as_raw_fd())?,
            runner_pidfd: match &plan.run {
                Some(run) => lift(run.runner.as_raw_fd())?,
                None => -1,
            },
        };
        let needs = needs(&plan.needs).map_err(failed(Call::Fifo))?;
        let mut lifted = |fds: &[OwnedFd]| -> Result<Vec<RawFd>, SpawnFailure> {
            let mut lifted = Vec::new();
            for fd in fds {
                lifted.push(lift(fd.as_raw_fd())?);
            }
            Ok(lifted)
        };
        let lists = Lists {
            locks: lifted(&plan.keep)?,
            needs: lifted(&needs)?,
            listen: lifted(&plan.listen)?,
        };

        let mut mapping = Mapping::new(plan, os::arguments()).map_err(failed(Call::Memory))?;
        mapping.set_descriptors(&descriptors, &lists);
        theirs.push(control);
        theirs.extend(this_process);
        theirs.extend(needs);
        Ok(LaunchResources {
            plan,
            mapping,
            // Registers before the fork, so that the exit handler never misses a supervisor.
            registration: exit::register(ours.as_raw_fd(), &plan.id, plan.stop, plan.test),
            ours,
            _theirs: theirs,
        })
    }

    /// Creates the [`Service`] after the guard has been forked.
    fn leave(self, guard: Pid) -> Service {
        self.registration.set_guard(guard.as_raw());
        Service {
            control: ManuallyDrop::new(self.ours),
            owner: std::process::id(),
            guard,
            id: self.plan.id.clone(),
            worker: 0,
            pid: 0,
            plan: None,
            launch_retries: 0,
            slow_end: match self.plan.on_end {
                Some(_) => Duration::from_millis(ON_END_TAKES_MS),
                None => Duration::ZERO,
            },
            registration: self.registration,
            inbox: Inbox::default(),
            state: State::default(),
        }
    }
}

/// Opens the FIFO of each needed service; see `ending.rs`. Creates the FIFO if this is the first
/// dependent of that service.
fn needs(dirs: &[PathBuf]) -> io::Result<Vec<OwnedFd>> {
    let mut fds = Vec::new();
    for dir in dirs {
        let path = dir.join(NEEDED);
        // Opens the FIFO for reading and writing, because opening it only for writing fails without
        // a reader.
        let file = make_fifo(&path).and_then(|()| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW)
                .open(&path)
        });
        match file {
            Ok(file) => fds.push(file.into()),
            // The service is gone, and its directory with it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(fds)
}

impl Drop for Service {
    /// Kills the service immediately if it was not stopped. Normally its executor has already
    /// stopped it, with the grace of the recipe.
    fn drop(&mut self) {
        if !self.state.reaped {
            let policy = StopPolicy {
                signal: libc::SIGKILL,
                grace: Duration::ZERO,
                kill_signal: libc::SIGKILL,
            };
            let _ = self.stop(policy);
        }
        self.registration.take();
        if self.registration.is_ours() || self.owner != std::process::id() {
            // SAFETY: only this line drops the socket, and nothing uses it afterwards.
            unsafe { ManuallyDrop::drop(&mut self.control) };
        }
    }
}

/// Resumes a guard that was stopped by a signal. The guard then resumes a stopped worker. The guard
/// must not have been reaped yet, because afterwards another process could have its id.
fn wake(guard: Pid) {
    let _ = nix::sys::signal::kill(guard, nix::sys::signal::Signal::SIGCONT);
}

/// Whether the guard has exited normally, which it does only when it has no child left. Its exit
/// ends the connection, even if the kernel refuses to deliver the messages.
///
/// Returns `false` if a signal killed the guard, because its worker may still be alive. Also
/// returns `false` after an error, because other code may have reaped the guard.
fn has_exited(guard: Pid) -> bool {
    // SAFETY: the status goes into a local variable, and WNOWAIT leaves it with the kernel.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | os::WAIT.bits();
        let answered = libc::waitid(libc::P_PID, guard.as_raw() as libc::id_t, &mut info, flags) == 0;
        answered && info.si_pid() == guard.as_raw() && info.si_code == libc::CLD_EXITED
    }
}

/// Waits until the guard has ended. Returns `None` at the deadline, and `StillAlive` if other code
/// has reaped the guard or if `waitpid` keeps failing.
fn wait_for(guard: Pid, deadline: Option<Instant>) -> Option<WaitStatus> {
    let flags = match deadline {
        Some(_) => os::WAIT | WaitPidFlag::WNOHANG,
        None => os::WAIT,
    };
    let mut pause = Duration::from_micros(50);
    let mut interrupted = 0_u32;
    loop {
        match waitpid(guard, Some(flags)) {
            Err(Errno::EINTR) if interrupted < INTERRUPTED => interrupted += 1,
            Ok(WaitStatus::StillAlive) if deadline.is_some_and(|deadline| Instant::now() >= deadline) => {
                return None;
            }
            Ok(WaitStatus::StillAlive) => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(10));
            }
            Ok(status) => return Some(status),
            Err(_) => return Some(WaitStatus::StillAlive),
        }
    }
}

/// Waits until the supervisor behind this socket has ended. The exit handler calls this after it
/// has told the supervisor to stop. If guard and worker were both killed, kills the processes with
/// the service's mark.
pub(super) fn await_end(control: RawFd, guard: i32, service: i32, id: &str) {
    if guard > 0 {
        wake(Pid::from_raw(guard));
    }
    let mut empty = false;
    let mut inbox = Inbox::default();
    // If another thread closes the socket, `receive` fails and the loop ends.
    loop {
        match inbox.receive(control, true) {
            Received::Message(message) => empty |= message[0] == message::EMPTY,
            // The kernel lacks memory, or refuses the call.
            Received::Nothing if guard > 0 && has_exited(Pid::from_raw(guard)) => break,
            Received::Nothing => std::thread::sleep(Duration::from_millis(1)),
            Received::Closed => break,
        }
    }
    if guard > 0 {
        let killed = matches!(
            wait_for(Pid::from_raw(guard), None),
            Some(WaitStatus::Signaled(..))
        );
        if killed && !empty {
            os::last_resort(id, guard, service);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::plan::CommandPlan;
    use std::ffi::CString;
    use std::path::{Path, PathBuf};

    pub(crate) fn plan(script: &str, dir: &Path) -> Plan {
        let text = |text: &str| CString::new(text).expect("no zero byte");
        let append = |name: &str| -> OwnedFd {
            let mut options = std::fs::OpenOptions::new();
            options
                .create(true)
                .append(true)
                .open(dir.join(name))
                .expect("the directory is writable")
                .into()
        };
        Plan {
            program: CommandPlan {
                candidates: vec![text("/nonexistent/sh"), text("/bin/sh")],
                argv: vec![text("sh"), text("-c"), text(script)],
            },
            on_end: None,
            on_end_hint: None,
            needs: Vec::new(),
            envp: vec![text("PATH=/usr/bin:/bin"), text("MIRAKURU_ID=unit-test")],
            current_dir: None,
            stdin: Stream::Null,
            stdout: Stream::Log,
            stderr: Stream::Log,
            uid: None,
            gid: None,
            groups: None,
            umask: None,
            stop: StopPolicy {
                signal: libc::SIGTERM,
                grace: Duration::from_millis(300),
                kill_signal: libc::SIGKILL,
            },
            log: append("log"),
            index: append("log.index"),
            log_part: 1 << 20,
            log_at: super::super::plan::LogPart::default(),
            keep: Vec::new(),
            listen: Vec::new(),
            id: "unit-test".to_owned(),
            private_dir: None,
            run: None,
            test: 0,
        }
    }

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("mirakuru-unit-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).expect("the temp directory is writable");
        dir
    }

    /// Whether a process is alive, and not a zombie.
    fn alive(pid: u32) -> bool {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
            !stat
                .rsplit_once(')')
                .is_some_and(|(_, rest)| rest.starts_with(" Z"))
        })
    }

    fn wait_for_exit(service: &mut Service) -> Exit {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(exit) = service.exit() {
                return exit;
            }
            assert!(Instant::now() < deadline, "it does not end");
            service.wait_event(&[], Duration::from_millis(100));
        }
    }

    #[test]
    fn runs_a_program_and_tells_how_it_ended() {
        let dir = scratch("ends");
        let mut service =
            Service::spawn(plan("echo out; echo err >&2; exit 7", &dir)).expect("sh can be executed");
        let exit = wait_for_exit(&mut service);
        assert_eq!(exit.status.code(), Some(7));
        assert!(!exit.left_descendants);
        let log = std::fs::read_to_string(dir.join("log")).expect("the log is there");
        assert!(log.contains("out\n") && log.contains("err\n"), "{log:?}");
        let index = std::fs::read(dir.join("log.index")).expect("the index is there");
        assert_eq!(index.len(), 32);
        let _ = std::fs::remove_dir_all(dir);
    }

    #[test]
    fn threads_that_start_at_once_get_a_service_each() {
        let dir = scratch("threads");
        let all_begin = std::sync::Barrier::new(16);
        let life = &|number: usize| {
            let own = dir.join(number.to_string());
            std::fs::create_dir(&own).expect("the temp directory is writable");
            let plan = plan(&format!("echo {number}"), &own);
            all_begin.wait();
            let mut service = Service::spawn(plan).expect("sh can be executed");
            assert_eq!(wait_for_exit(&mut service).status.code(), Some(0));
            let log = std::fs::read_to_string(own.join("log")).expect("the log is there");
            assert_eq!(log, format!("{number}\n"));
        };
        std::thread::scope(|scope| {
            for number in 0..16 {
                scope.spawn(move || life(number));
            }
        });
        let _ = std::fs::remove_dir_all(dir);
    }

    #[test]
    fn stops_politely() {
        let dir = scratch("polite");
        let script = "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.05; done";
        let mut service = Service::spawn(plan(script, &dir)).expect("sh can be executed");
        service.arm_output();
        while std::fs::read_to_string(dir.join("log"))
            .unwrap_or_default()
            .is_empty()
        {
            service.wait_event(&[], Duration::from_secs(10));
        }
        let policy = StopPolicy {
            signal: libc::SIGTERM,
            grace: Duration::from_secs(10),
            kill_signal: libc::SIGKILL,
        };
        service.stop(policy).expect("it ends");
        assert_eq!(service.exit().and_then(|exit| exit.status.code()), Some(3));
        assert!(service.is_gone());
        let log = std::fs::read_to_string(dir.join("log")).expect("the log is there");
        assert!(log.contains("bye\n"), "{log:?}");
        assert!(!alive(service.pid()) && !alive(service.supervisor()));
        let _ = std::fs::remove_dir_all(dir);
    }

    #[test]
    #[cfg_attr(
        mirakuru_portable,
        ignore = "the portable back end does not find processes that leave the process group"
    )]
    fn a_deaf_daemon_without_marks_is_killed_after_the_grace() {
        let dir = scratch("deaf");
        let script = format!(
            "trap '' TERM INT HUP QUIT; (env -i setsid sh -c 'echo $$ > {}/pid; trap \"\" TERM INT HUP; \
             while :; do sleep 30; done' &) ; while :; do sleep 30; done",
            dir.display()
        );
        let mut service = Service::spawn(plan(&script, &dir)).expect("sh can be executed");
        let pid = loop {
            let read = std::fs::read_to_string(dir.join("pid")).unwrap_or_default();
            if let Ok(pid) = read.trim().parse::<u32>() {
                break pid;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        assert!(alive(pid));
        let policy = StopPolicy {
            signal: libc::SIGTERM,
            grace: Duration::from_millis(100),
            kill_signal: libc::SIGKILL,
        };
        service.stop(policy).expect("it ends");
        assert!(!alive(pid), "the daemon is gone");
        assert_eq!(
            service.exit().and_then(|exit| exit.status.signal()),
            Some(libc::SIGKILL)
        );
        let _ = std::fs::remove_dir_all(dir);
    }

    #[test]
    fn what_cannot_be_executed_is_told_apart() {
        let dir = scratch("exec");
        let mut missing = plan("", &dir);
        missing.program.candidates = vec![CString::new("/nonexistent/program").expect("no zero byte")];
        let failure = Service::spawn(missing).map(|_| ()).expect_err("it is not there");
        assert_eq!(
            (failure.stage, failure.source.raw_os_error()),
            (Stage::Exec, Some(libc::ENOENT))
        );
        let mut denied = plan("", &dir);
        denied.program.candidates = vec![CString::new("/etc/passwd").expect("no zero byte")];
        let failure = Service::spawn(denied)
            .map(|_| ())
            .expect_err("it is not executable");
        assert_eq!(
            (failure.stage, failure.source.raw_os_error()),
            (Stage::Exec, Some(libc::EACCES))
        );
        let mut nowhere = plan("exit 0", &dir);
        nowhere.current_dir = Some(CString::new("/nonexistent").expect("no zero byte"));
        let failure = Service::spawn(nowhere)
            .map(|_| ())
            .expect_err("there is no such directory");
        assert_eq!(
            (failure.stage, failure.source.raw_os_error()),
            (Stage::CurrentDir, Some(libc::ENOENT))
        );
        let _ = std::fs::remove_dir_all(dir);
    }

    #[test]
    #[cfg_attr(
        mirakuru_portable,
        ignore = "the portable back end has one supervisor, which the service outlives"
    )]
    fn either_half_of_the_supervisor_can_be_killed() {
        for kill_guard in [true, false] {
            let dir = scratch(if kill_guard { "guard" } else { "worker" });
            let script = format!(
                "(env -i setsid sh -c 'echo $$ > {}/pid; trap \"\" TERM INT HUP; while :; do sleep 30; done' \
                 &) ; while :; do sleep 30; done",
                dir.display()
            );
            let mut service = Service::spawn(plan(&script, &dir)).expect("sh can be executed");
            let pid = loop {
                let read = std::fs::read_to_string(dir.join("pid")).unwrap_or_default();
                if let Ok(pid) = read.trim().parse::<u32>() {
                    break pid;
                }
                std::thread::sleep(Duration::from_millis(5));
            };
            let victim = if kill_guard {
                service.guard.as_raw()
            } else {
                service.worker as i32
            };
            nix::sys::signal::kill(Pid::from_raw(victim), nix::sys::signal::Signal::SIGKILL)
                .expect("it lives");
            let deadline = Instant::now() + Duration::from_secs(10);
            while alive(pid) || alive(service.pid()) {
                assert!(
                    Instant::now() < deadline,
                    "survivors after the death of {victim} (guard: {kill_guard})"
                );
                std::thread::sleep(Duration::from_millis(2));
            }
            let policy = StopPolicy {
                signal: libc::SIGKILL,
                grace: Duration::ZERO,
                kill_signal: libc::SIGKILL,
            };
            service.stop(policy).expect("there is nothing left to stop");
            let _ = std::fs::remove_dir_all(dir);
        }
    }

    /// Without a subreaper, the test process kills the service's process group after the supervisor
    /// was killed. Processes that have left the group survive.
    #[test]
    #[cfg(mirakuru_portable)]
    fn what_a_killed_supervisor_leaves_is_ended_by_the_test_process() {
        let dir = scratch("killed");
        let script = format!(
            "setsid sh -c 'echo $$ > {0}/daemon.new; mv {0}/daemon.new {0}/daemon; exec sleep 60' & \
             (trap '' TERM; sleep 60 & echo $! > {0}/member.new; mv {0}/member.new {0}/member; wait)",
            dir.display()
        );
        let mut service = Service::spawn(plan(&script, &dir)).expect("sh can be executed");
        let number = |name: &str| -> u32 {
            loop {
                let read = std::fs::read_to_string(dir.join(name)).unwrap_or_default();
                match read.trim().parse() {
                    Ok(pid) => return pid,
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
        };
        let (daemon, member) = (number("daemon"), number("member"));
        let kill = |pid: u32| {
            nix::sys::signal::kill(Pid::from_raw(pid as i32), nix::sys::signal::Signal::SIGKILL)
                .expect("it lives");
        };
        kill(service.supervisor());
        let deadline = Instant::now() + Duration::from_secs(10);
        while !service.is_gone() {
            assert!(Instant::now() < deadline, "it is not noticed");
            service.wait_event(&[], Duration::from_millis(100));
        }
        assert!(
            alive(service.pid()) && alive(member),
            "POSIX has nothing that ends them"
        );
        let policy = StopPolicy {
            signal: libc::SIGTERM,
            grace: Duration::from_secs(10),
            kill_signal: libc::SIGKILL,
        };
        service.stop(policy).expect("there is no supervisor to wait for");
        while alive(service.pid()) || alive(member) {
            assert!(Instant::now() < deadline, "they were not ended");
            std::thread::sleep(Duration::from_millis(2));
        }
        assert!(alive(daemon), "it is known of nowhere");
        kill(daemon);
        let _ = std::fs::remove_dir_all(dir);
    }

    /// Simulates a filter that makes each `recv` fail with EAGAIN.
    #[test]
    fn the_guards_exit_is_noticed_although_no_message_comes() {
        let dir = scratch("silent");
        let mut service = Service::spawn(plan("exec sleep 30", &dir)).expect("sh can be executed");
        // Another socket, which stays open, replaces the supervisor's socket. The supervisor then
        // sees its socket closed, so it stops the service and exits.
        let (silent, _open) = raw_socket::pair(os::CONTROL).expect("there is room for a socket");
        let closed = std::mem::replace(&mut service.control, ManuallyDrop::new(silent));
        drop(ManuallyDrop::into_inner(closed));
        let deadline = Instant::now() + Duration::from_secs(10);
        while !service.is_gone() {
            assert!(Instant::now() < deadline, "the guard's exit is not noticed");
            service.wait_event(&[], Duration::from_millis(10));
        }
        let policy = StopPolicy {
            signal: libc::SIGTERM,
            grace: Duration::from_secs(10),
            kill_signal: libc::SIGKILL,
        };
        service.stop(policy).expect("nothing is left to stop");
        assert!(!alive(service.pid()));
        let _ = std::fs::remove_dir_all(dir);
    }

    #[test]
    fn has_a_name_of_its_own_and_no_descriptor_of_ours() {
        let dir = scratch("name");
        let file = std::fs::File::create(dir.join("ours")).expect("the directory is writable");
        let mut service = Service::spawn(plan("exec sleep 30", &dir)).expect("sh can be executed");
        for (pid, name) in [
            (service.guard.as_raw() as u32, "guard"),
            (service.supervisor(), "worker"),
        ] {
            let read =
                |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
            // The portable supervisor has the command line of the test process.
            if cfg!(not(mirakuru_portable)) {
                assert_eq!(read("comm").trim(), format!("mirakuru-{name}"));
                assert!(
                    read("cmdline").starts_with("mirakuru-supervisor unit-test"),
                    "{:?}",
                    read("cmdline")
                );
            }
            for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))
                .expect("it lives")
                .flatten()
            {
                let target = std::fs::read_link(entry.path()).unwrap_or_default();
                assert_ne!(target, dir.join("ours"), "{name} holds a file of ours");
            }
        }
        drop(file);
        let policy = StopPolicy {
            signal: libc::SIGTERM,
            grace: Duration::from_secs(5),
            kill_signal: libc::SIGKILL,
        };
        service.stop(policy).expect("it ends");
        let _ = std::fs::remove_dir_all(dir);
    }
}
