//! The executor: a service under the control of a test.
//!
//! [`Executor<R>`] is a thin generic shell; what it does is in [`Core`], which knows readiness only as a trait object.

mod hint;
pub(crate) mod launch;

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::error::Evidence;
use crate::error::report::{TAIL_LINES, Tail, coloured, print};
use crate::error::secrets::{is_secret_name, mask_urls};
use crate::error::{Ended, Span};
use crate::observe::events::{self as timeline, timeline_now};
use crate::observe::progress::{self, Progress};
use crate::observe::trace;
use crate::outcome::shared_use;
use crate::outcome::test_has_failed;
use crate::output::logs::Logs;
use crate::output::reader::{Cursor, OutputReader};
use crate::ports::activation::Listen;
use crate::ports::holder;
use crate::ports::lock::{self, Endpoint, EndpointLock};
use crate::ports::owner::WrongListener;
use crate::ports::values::Values;
use crate::readiness::Readiness;
use crate::readiness::Wake;
use crate::readiness::context::Prepare;
use crate::readiness::context::Probe;
use crate::readiness::line_watch::{LineWatch, expand_pattern};
use crate::readiness::no_wait::NoWait;
use crate::recipe::builder::ExecutorBuilder;
use crate::recipe::builder::Spec;
use crate::recipe::program;
use crate::recipe::signal::Signal;
use crate::run::State;
use crate::service_dir::{self, ServiceDir};
use crate::sys::log_record::Record;
use crate::sys::{self, Exit, Plan, RunPlan, Service, SpawnFailure, StopPolicy};
use crate::util::deadline::{Deadline, scaled};

/// The longest pause where nobody tells what the service does: another process has started it.
const UNTOLD_PAUSE: Duration = Duration::from_millis(10);
/// A probe that has less time than this and does not get an answer in it has not really looked.
const CUT_SHORT: Duration = Duration::from_millis(100);
/// How often a start is tried with other ports when the ones that were chosen turn out to be taken.
const PORT_RETRIES: u32 = 5;
/// How long one waits for one's turn at a fixed port at most.
const LOCK_LIMIT: Duration = Duration::from_secs(600);

/// A service that a test holds: running or stopped, and startable again. Made with [`Executor::builder`].
///
/// What it is not: a process. A service is a process *and everything it ever forks*, and the verbs mean all of it. The usual
/// variable name is the service's, `redis`.
///
/// Lifecycle verbs take `&mut self`: a shared fixture hands out `&`, so that no test can stop a service under another.
///
/// ```
/// # use mirakuru_core as mirakuru;
/// use mirakuru::{Executor, Tcp, TcpExecutor};
///
/// let mut server: TcpExecutor = Executor::builder("python3 -m http.server {port} -b 127.0.0.1")
///     .wait_for(Tcp::addr("127.0.0.1:{port}"))
///     .start()?; // Returns only when it is ready.
/// assert!(std::net::TcpStream::connect(server.addr()).is_ok());
/// server.stop()?; // Checked. A drop does the same, silently.
/// # Ok::<(), mirakuru_core::Error>(())
/// ```
///
/// # Drop
///
/// Dropping an executor ends its service as [`stop`](Executor::stop) does, and returns when nothing of it is left; only
/// what `stop` would report as an error is ignored. When the test panics, the end of the service's log is printed
/// into its output, and the log file is kept and named.
///
/// If the test process ends without dropping it (a signal, `abort`, `process::exit`, SIGKILL), the supervisor does the same
/// from outside.
#[must_use = "the service is stopped when its executor is dropped"]
pub struct Executor<R = NoWait> {
    core: Core,
    readiness: R,
}

impl<R: Readiness> Executor<R> {
    pub(crate) fn new(recipe: ExecutorBuilder<R>) -> Result<Executor<R>, Error> {
        let ExecutorBuilder { spec, mut readiness } = recipe;
        let core = Core::new(spec, &mut readiness)?;
        Ok(Executor { core, readiness })
    }

    /// Starts the service, and returns when it is ready. Does nothing when it is running already.
    ///
    /// ```
    /// # use mirakuru_core as mirakuru;
    /// let mut sleeper = mirakuru::Executor::builder("sleep 60").build()?; // Does not start it.
    /// sleeper.start()?;
    /// assert!(sleeper.is_running());
    /// # Ok::<(), mirakuru_core::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// * [`Error::AlreadyRunning`]: something else has the port or the socket.
    /// * [`Error::Spawn`]: the program could not be executed.
    /// * [`Error::Exited`], [`Error::Timeout`], [`Error::FailureLine`], [`Error::WrongListener`]: it was executed, but did not become
    ///   ready.
    /// * [`Error::System`]: mirakuru itself lacked something.
    ///
    /// After an error nothing of the service is left running, and `start` may be called again.
    pub fn start(&mut self) -> Result<(), Error> {
        let started = self.core.start(&mut self.readiness);
        started.map_err(|error| self.core.masked(error))
    }

    /// Ends the service: sends the stop signal to its process group, waits out the grace, kills what is left, and returns when
    /// nothing of it is. Does nothing when it is not running.
    ///
    /// This is the checked version of dropping the executor.
    ///
    /// ```
    /// # use mirakuru_core as mirakuru;
    /// use mirakuru::{Banner, Error, Executor};
    ///
    /// let mut service = Executor::builder("sleep 60").start()?;
    /// service.stop()?;
    /// assert!(!service.is_running());
    ///
    /// // The checked version is the one that notices a service that does not end well.
    /// let mut service = Executor::builder("trap 'exit 3' TERM; echo up; sleep 60 & wait")
    ///     .shell(true)
    ///     .wait_for(Banner::matching("up"))
    ///     .start()?;
    /// match service.stop() {
    ///     Err(Error::BadExit { status, .. }) => assert_eq!(status.code(), Some(3)),
    ///     other => panic!("{other:?}"),
    /// }
    /// # Ok::<(), mirakuru_core::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::BadExit`] when it ended by something else than exit code 0, the stop signal, or the recipe's
    /// [`expected_exit`](ExecutorBuilder::expected_exit): also when it had crashed before, or had to be killed. It is gone all
    /// the same.
    pub fn stop(&mut self) -> Result<(), Error> {
        self.core.stop()
    }

    /// Kills the service with the recipe's kill signal, without grace, and returns when nothing of it is left. Any exit status
    /// is fine.
    ///
    /// ```
    /// # use mirakuru_core as mirakuru;
    /// use std::time::Duration;
    /// use mirakuru::Executor;
    ///
    /// // The grace does not matter to it.
    /// let recipe = Executor::builder("sleep 60").stop_timeout(Duration::from_secs(3600));
    /// let mut service = recipe.start()?;
    /// service.kill()?;
    /// assert!(!service.is_running());
    /// # Ok::<(), mirakuru_core::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::System`] when the supervisor could not finish.
    pub fn kill(&mut self) -> Result<(), Error> {
        let signal = self.core.spec.kill_signal.number();
        self.core
            .end(StopPolicy {
                signal,
                grace: Duration::ZERO,
                kill_signal: signal,
            })
            .map(|_| ())
    }

    /// [Stops](Executor::stop) the service and [starts](Executor::start) it again: on the same ports, in the same
    /// directory.
    ///
    /// ```
    /// # use mirakuru_core as mirakuru;
    /// let mut service = mirakuru::Executor::builder("sleep 60").start()?;
    /// let first = service.pid();
    /// service.restart()?;
    /// assert_ne!(service.pid(), first);
    /// # Ok::<(), mirakuru_core::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of `stop` and `start`. After a [`Error::BadExit`] it is started all the same, and the error is returned then.
    pub fn restart(&mut self) -> Result<(), Error> {
        let stopped = self.stop();
        self.start()?;
        stopped
    }

    /// Runs the closure while the service is stopped, and starts it again: to test how something bears the loss of it.
    ///
    /// ```
    /// # use mirakuru_core as mirakuru;
    /// use std::net::TcpStream;
    /// use mirakuru::{Executor, Tcp};
    ///
    /// let mut server = Executor::builder("python3 -m http.server {port} -b 127.0.0.1")
    ///     .wait_for(Tcp::addr("127.0.0.1:{port}"))
    ///     .start()?;
    /// let address = server.addr();
    /// server.stopped(|| assert!(TcpStream::connect(address).is_err()))?;
    /// assert!(TcpStream::connect(address).is_ok()); // It is back, on the same port.
    /// # Ok::<(), mirakuru_core::Error>(())
    /// ```
    ///
    /// The service is started again also after a panic in the closure, which then goes on. Should that start fail, the
    /// failure is printed, since a panic can have no second reason.
    ///
    /// # Errors
    ///
    /// Those of [`stop`](Executor::stop) and [`start`](Executor::start). If the service did not stop well, the closure is not
    /// run, and the service is started again.
    pub fn stopped<T>(&mut self, closure: impl FnOnce() -> T) -> Result<T, Error> {
        if let Err(error) = self.stop() {
            self.start()?;
            return Err(error);
        }
        match catch_unwind(AssertUnwindSafe(closure)) {
            Ok(value) => {
                self.start()?;
                Ok(value)
            }
            Err(panic) => {
                if let Err(error) = self.start() {
                    eprintln!("the service could not be started again after a panic:\n{error}");
                }
                resume_unwind(panic)
            }
        }
    }

    /// Stops every process of the service with SIGSTOP, where it stands: it keeps its connections and answers nothing.
    ///
    /// ```
    /// # use mirakuru_core as mirakuru;
    /// let mut service = mirakuru::Executor::builder("sleep 60").start()?;
    /// service.pause()?;
    /// assert!(service.is_running()); // It is there, and does nothing.
    /// service.resume()?;
    /// # Ok::<(), mirakuru_core::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`] when it is not running.
    pub fn pause(&mut self) -> Result<(), Error> {
        self.core.ensure_owned("pause")?;
        self.core.running("pause it")?;
        self.core.paused = true;
        self.core.signal_tree(sys::TreeSignal::Stop);
        Ok(())
    }

    /// Lets a [paused](Executor::pause) service go on.
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`] when it is not running.
    pub fn resume(&mut self) -> Result<(), Error> {
        self.core.ensure_owned("resume")?;
        self.core.running("resume it")?;
        self.core.paused = false;
        self.core.signal_tree(sys::TreeSignal::Continue);
        Ok(())
    }

    /// Sends a signal to the service's process group.
    ///
    /// ```
    /// # use mirakuru_core as mirakuru;
    /// use std::os::unix::process::ExitStatusExt;
    /// use std::time::Duration;
    /// use mirakuru::{Executor, Signal};
    ///
    /// let mut service = Executor::builder("sleep 60").start()?;
    /// service.signal(Signal::Usr1)?;
    /// let status = service.wait(Duration::from_secs(5))?;
    /// assert!(status.signal().is_some());
    /// # Ok::<(), mirakuru_core::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`] when it is not running.
    pub fn signal(&mut self, signal: Signal) -> Result<(), Error> {
        self.core.ensure_owned("signal")?;
        self.core.running("signal it")?;
        if let Some(service) = self.core.lock().as_mut() {
            service.signal(signal.number());
        }
        Ok(())
    }

    /// Waits until a further condition holds, looking at what happens from the service's last start on.
    ///
    /// ```
    /// # use mirakuru_core as mirakuru;
    /// use std::time::Duration;
    /// use mirakuru::{Banner, Executor};
    ///
    /// let mut service = Executor::builder("echo up; sleep 0.1; echo warm; sleep 60")
    ///     .shell(true)
    ///     .wait_for(Banner::matching("up"))
    ///     .start()?;
    /// service.wait_until(Banner::matching("warm"), Duration::from_secs(5))?;
    /// # Ok::<(), mirakuru_core::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`] when the service is not running; [`Error::Timeout`] when the condition does not hold in time;
    /// [`Error::Exited`] when the service ends before; [`Error::InvalidReadiness`] when the condition makes no sense. The
    /// service is left as it is.
    pub fn wait_until(&mut self, mut readiness: impl Readiness, timeout: Duration) -> Result<(), Error> {
        self.core.running("wait for a condition")?;
        self.core.prepare(&mut readiness)?;
        let held = self.core.await_ready(&mut readiness, Deadline::after(timeout));
        held.map_err(|error| self.core.masked(error))
    }

    /// Waits for the main process to end by itself, and says how it did.
    ///
    /// ```
    /// # use mirakuru_core as mirakuru;
    /// let mut job = mirakuru::Executor::builder("sleep 0.1").start()?;
    /// assert!(job.wait(std::time::Duration::from_secs(5))?.success());
    /// # Ok::<(), mirakuru_core::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] when it has not ended in time; [`Error::NotRunning`] when it was never started.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus, Error> {
        self.core.wait(Deadline::after(timeout))
    }

    /// Whether the service is running: its main process, or for a service that made itself a daemon, any of its processes.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.core.is_running()
    }

    /// The process id of its main process, also after that has ended.
    ///
    /// # Panics
    ///
    /// If the service has never been started.
    #[must_use]
    #[track_caller]
    pub fn pid(&self) -> u32 {
        let name = &self.core.values.name();
        assert!(
            self.core.pid != 0,
            "`{name}` has no process id: it has not been started"
        );
        self.core.pid
    }

    /// A service of the run that another process has started.
    pub(crate) fn attach(
        recipe: ExecutorBuilder<R>,
        state: State,
        published: PathBuf,
    ) -> Result<Executor<R>, Error> {
        let ExecutorBuilder { spec, readiness } = recipe;
        Ok(Executor {
            core: Core::attach(spec, state, published)?,
            readiness,
        })
    }

    /// For the timeline: since when it was waited for.
    pub(crate) fn note_attached(&self, asked: Option<u64>) {
        let core = &self.core;
        timeline::attached(asked, core.service_dir.id(), core.values.name(), &core.command);
    }

    /// Lets the service become the run's once it has been started.
    pub(crate) fn for_run(&mut self, plan: RunPlan) {
        self.core.run = Some(plan);
    }

    /// What others need to attach to the service.
    pub(crate) fn state(&self) -> State {
        let core = &self.core;
        State {
            failed: None,
            process: crate::run::this_process(),
            pid: core.pid,
            supervisor: core.supervisor(),
            service_dir: core.service_dir.path().to_owned(),
            ports: core
                .values
                .ports()
                .map(|(name, port)| (name.to_owned(), port))
                .collect(),
            addr: self.readiness.addr(),
            url: self.readiness.url().map(str::to_owned),
            path: self.readiness.path().map(Path::to_owned),
            env: core.readiness_env.clone(),
            exit: None,
        }
    }

    /// Makes a running service the run's, and this executor one that is attached to it.
    pub(crate) fn publish(&mut self, state: State, published: PathBuf) -> Result<(), Error> {
        let core = &mut self.core;
        if let Some(endpoint_lock) = &core.endpoint_lock {
            endpoint_lock
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .for_run();
        }
        let Some(service) = core.service() else {
            return Err(Error::NotRunning {
                command: core.command.clone(),
                action: "share it with the run".to_owned(),
            });
        };
        if let Err(source) = service.publish() {
            if let Some(Some(exit)) = core.ended_before_ready() {
                let elapsed = Duration::from_nanos(exit.at.saturating_sub(core.started_ns));
                core.last_exit = Some(exit);
                return Err(Error::Exited {
                    command: core.command.clone(),
                    awaited: "other test processes could attach to it".to_owned(),
                    elapsed,
                    status: exit.status,
                    evidence: core.evidence(None),
                });
            }
            return Err(Error::System {
                attempt: "share the service with the run".to_owned(),
                source,
            });
        }
        timeline::published(core.service_dir.id());
        *core.lock() = None;
        core.service_dir.give_away();
        core.attached = Some(Attached { state, published });
        Ok(())
    }

    /// The address at which clients reach the service: the one that its readiness condition found it at, else 127.0.0.1 with the
    /// port that was chosen for `{port}`.
    ///
    /// # Panics
    ///
    /// If the recipe has neither.
    #[must_use]
    #[track_caller]
    pub fn addr(&self) -> SocketAddr {
        match self.core.addr(&self.readiness) {
            Some(addr) => addr,
            None => self.no(
                "address",
                "wait for `Tcp` or `Http`, or use the placeholder `{port}`",
            ),
        }
    }

    /// The port of [`addr`](Executor::addr).
    ///
    /// # Panics
    ///
    /// As [`addr`](Executor::addr).
    #[must_use]
    #[track_caller]
    pub fn port(&self) -> u16 {
        match self.core.addr(&self.readiness) {
            Some(addr) => addr.port(),
            None => self.no(
                "port",
                "wait for `Tcp` or `Http`, or use the placeholder `{port}`",
            ),
        }
    }

    /// The port that was chosen for `{port:NAME}`.
    ///
    /// ```
    /// # use mirakuru_core as mirakuru;
    /// let service = mirakuru::Executor::builder("echo {port} {port:ADMIN}").build()?;
    /// assert_ne!(service.port_named("ADMIN"), service.port());
    /// # Ok::<(), mirakuru_core::Error>(())
    /// ```
    ///
    /// # Panics
    ///
    /// If the recipe has no such placeholder.
    #[must_use]
    #[track_caller]
    pub fn port_named(&self, name: &str) -> u16 {
        match self.core.values.port(name) {
            Some(port) => port,
            None => self.no(
                &format!("port `{name}`"),
                &format!("use the placeholder `{{port:{name}}}`"),
            ),
        }
    }

    /// The URL at which clients reach the service.
    ///
    /// # Panics
    ///
    /// If its readiness condition knows none, as only `Http` does.
    #[must_use]
    #[track_caller]
    pub fn url(&self) -> String {
        let attached = self
            .core
            .attached
            .as_ref()
            .and_then(|attached| attached.state.url.as_deref());
        match attached.or(self.readiness.url()) {
            Some(url) => url.to_owned(),
            None => self.no("URL", "wait for `Http`"),
        }
    }

    /// The socket or the file that its readiness condition is about.
    ///
    /// # Panics
    ///
    /// If there is none, as only `UnixSocket` and `PidFile` have one.
    #[must_use]
    #[track_caller]
    pub fn path(&self) -> PathBuf {
        let attached = self
            .core
            .attached
            .as_ref()
            .and_then(|attached| attached.state.path.as_deref());
        match attached.or(self.readiness.path()) {
            Some(path) => path.to_owned(),
            None => self.no("path", "wait for `UnixSocket` or `PidFile`"),
        }
    }

    #[track_caller]
    fn no(&self, what: &str, remedy: &str) -> ! {
        panic!("`{}` has no {what}: {remedy}", self.core.values.name())
    }

    /// A snapshot of what the service has printed so far, over all its starts. (Of a service that another process of the run has
    /// started, what it printed in the last instant may be missing.)
    ///
    /// ```
    /// # use mirakuru_core as mirakuru;
    /// use mirakuru::{Banner, Executor};
    ///
    /// let service = Executor::builder("echo listening; exec sleep 60")
    ///     .shell(true)
    ///     .wait_for(Banner::matching("listening"))
    ///     .start()?;
    /// assert_eq!(service.logs().stdout(), "listening\n");
    /// # Ok::<(), mirakuru_core::Error>(())
    /// ```
    #[must_use]
    pub fn logs(&self) -> Logs {
        if let Some(service) = self.core.lock().as_mut() {
            service.sync_output();
        }
        self.core.output.snapshot()
    }

    /// The environment variables that the recipe sets, with placeholders filled in. Those that the service inherits are not
    /// among them.
    ///
    /// ```
    /// # use mirakuru_core as mirakuru;
    /// let service = mirakuru::Executor::builder("env").env("ADDRESS", "127.0.0.1:{port}").build()?;
    /// let address = format!("127.0.0.1:{}", service.port());
    /// assert_eq!(service.envs()[std::ffi::OsStr::new("ADDRESS")], *address);
    /// # Ok::<(), mirakuru_core::Error>(())
    /// ```
    #[must_use]
    pub fn envs(&self) -> BTreeMap<OsString, OsString> {
        let set = program::environment(false, &self.core.changes(), self.core.service_dir.id());
        set.into_iter().filter(|(key, _)| key != "MIRAKURU_ID").collect()
    }

    /// The command with placeholders filled in, as a person would type it, and as errors show it: `{env:VAR}` is left as it is,
    /// and passwords in URLs are `***`.
    ///
    /// ```
    /// # use mirakuru_core as mirakuru;
    /// let service = mirakuru::Executor::builder("serve --port {port}").build()?;
    /// assert_eq!(service.command(), format!("serve --port {}", service.port()));
    /// # Ok::<(), mirakuru_core::Error>(())
    /// ```
    #[must_use]
    pub fn command(&self) -> &str {
        &self.core.command
    }

    /// The service's name: what the recipe says, or the program's file name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.core.values.name()
    }

    /// The service's private directory, the value of `{dir}`. It is removed when the executor is dropped.
    ///
    /// ```
    /// # use mirakuru_core as mirakuru;
    /// let mut job = mirakuru::Executor::builder("touch {dir}/done").start()?;
    /// assert!(job.wait(std::time::Duration::from_secs(5))?.success());
    /// assert!(job.dir().join("done").exists());
    /// # Ok::<(), mirakuru_core::Error>(())
    /// ```
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.core.service_dir.dir().to_owned()
    }

    /// Lets a recipe fill the private directory before the first start: everything in it is the service's user's afterwards.
    #[doc(hidden)]
    pub fn __prepare(
        &mut self,
        fill: impl FnOnce(&mut Executor<R>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let Some(owner) = self.core.spec.owner() else {
            return fill(self);
        };
        let system = |source| Error::System {
            attempt: format!("hand the directory over to user {}, group {}", owner.0, owner.1),
            source,
        };
        // Ours for the time being, so that that user can put no link into our way.
        self.core.service_dir.take_back().map_err(system)?;
        fill(self)?;
        self.core.service_dir.hand_over(owner).map_err(system)
    }

    /// The writer to the service's standard input, if the recipe says [`Stdio::piped`](crate::recipe::builder::Stdio::piped): once for each
    /// start. Dropping it is the end of the input.
    ///
    /// ```
    /// # use mirakuru_core as mirakuru;
    /// use std::io::Write;
    /// use std::time::Duration;
    /// use mirakuru::{Executor, Stdio};
    ///
    /// let mut cat = Executor::builder("cat").stdin(Stdio::piped()).start()?;
    /// let mut input = cat.take_stdin().expect("the recipe asks for it");
    /// writeln!(input, "hello").unwrap();
    /// drop(input); // The end of the input, at which `cat` ends.
    /// cat.wait(Duration::from_secs(5))?;
    /// assert_eq!(cat.logs().stdout(), "hello\n");
    /// # Ok::<(), mirakuru_core::Error>(())
    /// ```
    #[must_use]
    pub fn take_stdin(&mut self) -> Option<StdinPipe> {
        self.core.stdin.take().map(StdinPipe)
    }
}

impl<R> std::fmt::Debug for Executor<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Executor")
            .field("command", &self.core.command)
            .field("pid", &self.core.pid)
            .field("running", &self.core.is_running())
            .finish_non_exhaustive()
    }
}

/// The end of a pipe that leads to a service's standard input: see [`Executor::take_stdin`].
///
/// Of the standard library's [`ChildStdin`](std::process::ChildStdin) it has what others build on: it is a [`Write`], and its descriptor
/// can be borrowed, or taken out for an async runtime.
#[derive(Debug)]
pub struct StdinPipe(File);

impl AsFd for StdinPipe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<StdinPipe> for OwnedFd {
    fn from(pipe: StdinPipe) -> OwnedFd {
        pipe.0.into()
    }
}

impl Write for StdinPipe {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.0.write(buffer)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// The executor without its readiness.
struct Core {
    spec: Spec,
    service_dir: ServiceDir,
    values: Values,
    argv: Vec<OsString>,
    /// The command as a person would type it.
    command: String,
    /// What the recipe changes in the environment, placeholders filled in.
    env: Vec<(OsString, Option<OsString>)>,
    /// What the readiness condition adds to it.
    readiness_env: Vec<(String, String)>,
    current_dir: Option<PathBuf>,
    /// The patterns as they were given, and what looks for them, always cloned before use.
    fail_on: Vec<(String, LineWatch)>,
    /// The sockets that it inherits.
    listen: Listen,
    /// Files in the private directory, and what is to be in them, placeholders filled in.
    files: Vec<(PathBuf, Vec<u8>)>,
    /// Fixed endpoints that the service needs for itself.
    addrs: Vec<SocketAddr>,
    paths: Vec<PathBuf>,
    /// Kept as long as the service runs. May be shared with the other fixtures of a test.
    endpoint_lock: Option<Arc<Mutex<EndpointLock>>>,
    output: OutputReader,
    /// Where the output of the last start begins.
    since: Cursor,
    stdin: Option<File>,
    pid: u32,
    /// CLOCK_MONOTONIC when the service was executed.
    started_ns: u64,
    last_exit: Option<Exit>,
    paused: bool,
    /// A start that has begun, and has not ended.
    starting: Option<Starting>,
    /// Whether it had ended by itself when it was asked to end, as long as nobody has waited for that end.
    asked_to_end: Option<bool>,
    /// What makes the service the run's, if it is to be.
    run: Option<RunPlan>,
    /// It is the run's: not this process's to stop. Then there is no `service`.
    attached: Option<Attached>,
    /// Behind a lock only so that `is_running` can take `&self`.
    service: Mutex<Option<Service>>,
}

impl Core {
    fn new(spec: Spec, readiness: &mut dyn Readiness) -> Result<Core, Error> {
        sweep_once();
        let written = spec.command.display();
        let service_dir = ServiceDir::create(spec.owner())?;
        let name = spec
            .name
            .clone()
            .unwrap_or_else(|| spec.command.program_name(spec.shell));
        let values = Values::new(name, service_dir.dir().to_owned());
        let output = open_log(&service_dir)?;
        let mut core = Core {
            service_dir,
            values,
            argv: Vec::new(),
            command: mask_urls(&written).into_owned(),
            env: Vec::new(),
            readiness_env: Vec::new(),
            current_dir: None,
            fail_on: Vec::new(),
            listen: Listen::default(),
            files: Vec::new(),
            addrs: Vec::new(),
            paths: Vec::new(),
            endpoint_lock: None,
            since: output.end(),
            output,
            stdin: None,
            pid: 0,
            started_ns: 0,
            last_exit: None,
            paused: false,
            starting: None,
            asked_to_end: None,
            run: None,
            attached: None,
            service: Mutex::new(None),
            spec,
        };
        match core.resolve(readiness) {
            Ok(()) => Ok(core),
            Err(error) => Err(core.masked(error)),
        }
    }

    /// One that another process has started for the run.
    fn attach(spec: Spec, state: State, published: PathBuf) -> Result<Core, Error> {
        if let Some(report) = state.failed {
            return Err(Error::FailedBefore {
                report,
                process: state.process,
            });
        }
        let state = state.settle(&published);
        let service_dir = ServiceDir::attach(state.service_dir.clone());
        let name = spec
            .name
            .clone()
            .unwrap_or_else(|| spec.command.program_name(spec.shell));
        let (log, index) = (service_dir.log(), service_dir.index());
        let output = match OutputReader::open(&log, &index) {
            Ok(output) => output,
            // Its supervisor was killed, and a test process has swept what it left.
            Err(_) if !state.is_running() => {
                return Err(Error::Died {
                    command: spec.command.display(),
                    status: state.exit.map(|(status, _)| status),
                    evidence: Box::default(),
                });
            }
            Err(source) => {
                return Err(Error::System {
                    attempt: format!("read the log of the run's service `{}`", log.display()),
                    source,
                });
            }
        };
        let mut core = Core {
            values: Values::known(name, service_dir.dir().to_owned(), state.ports.clone()),
            service_dir,
            argv: Vec::new(),
            command: String::new(),
            env: Vec::new(),
            readiness_env: state.env.clone(),
            current_dir: None,
            fail_on: Vec::new(),
            addrs: Vec::new(),
            paths: Vec::new(),
            endpoint_lock: None,
            since: Cursor::START,
            output,
            stdin: None,
            pid: state.pid,
            started_ns: 0,
            last_exit: None,
            paused: false,
            starting: None,
            asked_to_end: None,
            run: None,
            attached: None,
            listen: Listen::default(),
            files: Vec::new(),
            service: Mutex::new(None),
            spec,
        };
        core.resolve_command()?;
        let is_running = state.is_running();
        let exit = state.exit;
        core.attached = Some(Attached { state, published });
        shared_use::started(&core.command, core.service_dir.log(), core.service_dir.index());
        if is_running {
            return Ok(core);
        }
        let evidence = core.evidence(None);
        let (command, status) = (core.command.clone(), exit.map(|(status, _)| status));
        Err(core.masked(Error::Died {
            command,
            status,
            evidence,
        }))
    }

    /// Fills in the placeholders, of the command first, so that its `{port}` is the first port.
    fn resolve(&mut self, readiness: &mut dyn Readiness) -> Result<(), Error> {
        self.resolve_command()?;
        self.listen = Listen::of(&self.spec.listen, &mut self.values, &self.command)?;
        self.files.clear();
        for (path, text) in &self.spec.files {
            let written = self.spec.command.display();
            let path: PathBuf = self
                .values
                .expand_os(path.as_os_str())
                .map_err(|e| e.in_command(&written))?
                .into();
            service_dir::check_within(&path).map_err(|reason| Error::InvalidCommand {
                command: written.clone(),
                reason,
            })?;
            let text = self
                .values
                .expand_os(OsStr::new(text))
                .map_err(|e| e.in_command(&written))?;
            self.files.push((path, text.into_vec()));
        }
        self.fail_on.clear();
        for given in &self.spec.fail_on {
            let pattern = expand_pattern(given, |text| {
                self.values.expand(text).map_err(|e| e.in_readiness(given))
            })?;
            let watch = LineWatch::new(&pattern, None).map_err(|reason| Error::InvalidReadiness {
                readiness: given.clone(),
                reason,
            })?;
            self.fail_on.push((given.clone(), watch));
        }
        let prepared = self.prepare(readiness)?;
        self.addrs = prepared.addrs;
        let chosen: Vec<u16> = self.values.ports().map(|(_, port)| port).collect();
        self.addrs
            .extend(self.listen.addrs().filter(|addr| !chosen.contains(&addr.port())));
        self.paths = prepared.paths;
        self.readiness_env = prepared.env;
        Ok(())
    }

    fn resolve_command(&mut self) -> Result<(), Error> {
        let written = self.spec.command.display();
        self.argv = {
            let values = &mut self.values;
            self.spec
                .command
                .resolve(&mut |word| values.expand_os(word), self.spec.shell)?
        };
        self.env = Vec::with_capacity(self.spec.env.len());
        for (key, value) in &self.spec.env {
            let value = match value {
                Some(value) => Some(self.values.expand_os(value).map_err(|e| e.in_command(&written))?),
                None => None,
            };
            if let Some(value) = value
                .as_deref()
                .filter(|_| is_secret_name(&key.to_string_lossy()))
            {
                self.values.hide(value);
            }
            self.env.push((key.clone(), value));
        }
        self.command = self.shown_command()?;
        self.current_dir = match &self.spec.current_dir {
            Some(dir) => {
                let dir = self
                    .values
                    .expand_os(dir.as_os_str())
                    .map_err(|e| e.in_command(&written))?;
                Some(dir.into())
            }
            None => None,
        };
        Ok(())
    }

    /// The command as a person would type it, without what must not be shown.
    fn shown_command(&mut self) -> Result<String, Error> {
        let Core { spec, values, .. } = self;
        let argv = values.for_show(|values| {
            spec.command
                .resolve(&mut |word| values.expand_os(word), spec.shell)
        })?;
        let shown = match argv.get(2) {
            // The script, without the shell that runs it.
            Some(script) if spec.shell => script.to_string_lossy().into_owned(),
            _ => crate::recipe::command::display(&argv),
        };
        Ok(values.mask(&shown))
    }

    /// An error without what must not be shown.
    fn masked(&self, error: Error) -> Error {
        error.map_texts(|text| self.values.mask(text))
    }

    fn prepare(&mut self, readiness: &mut dyn Readiness) -> Result<Prepared, Error> {
        let mut cx = Prepare {
            values: &mut self.values,
            addrs: Vec::new(),
            paths: Vec::new(),
            env: Vec::new(),
        };
        readiness.prepare(&mut cx)?;
        let Prepare {
            addrs, paths, env, ..
        } = cx;
        Ok(Prepared { addrs, paths, env })
    }

    /// All that is changed in the environment.
    fn changes(&self) -> Vec<(OsString, Option<OsString>)> {
        let added = self
            .readiness_env
            .iter()
            .map(|(key, value)| (key.into(), Some(value.into())));
        self.env.iter().cloned().chain(added).collect()
    }

    fn program(&self) -> String {
        let program = self.argv.first().map(|program| program.to_string_lossy());
        program.unwrap_or_default().into_owned()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Service>> {
        // A panic of another thread while it looked does no harm to what is behind the lock.
        self.service.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn service(&mut self) -> Option<&mut Service> {
        self.service
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .as_mut()
    }

    fn signal_tree(&mut self, signal: sys::TreeSignal) {
        if let Some(service) = self.service() {
            service.signal_tree(signal);
        }
    }

    fn supervisor(&self) -> u32 {
        match &self.attached {
            Some(attached) => attached.state.supervisor,
            None => self.lock().as_ref().map_or(0, Service::supervisor),
        }
    }

    fn is_running(&self) -> bool {
        if let Some(attached) = &self.attached {
            return attached.is_running();
        }
        let mut service = self.lock();
        let Some(service) = service.as_mut() else {
            return false;
        };
        match service.exit() {
            None => !service.is_gone(),
            Some(exit) => exit.is_daemonised() && !service.is_gone(),
        }
    }

    fn ensure_owned(&self, action: &str) -> Result<(), Error> {
        if self.attached.is_none() {
            return Ok(());
        }
        Err(Error::System {
            attempt: format!("{action} `{}`", self.command),
            source: io::Error::other("the service is shared by the whole run; use one of the test's own"),
        })
    }

    fn running(&self, action: &str) -> Result<(), Error> {
        if self.is_running() {
            return Ok(());
        }
        Err(Error::NotRunning {
            command: self.command.clone(),
            action: action.to_owned(),
        })
    }

    fn addr(&self, readiness: &dyn Readiness) -> Option<SocketAddr> {
        let attached = self.attached.as_ref().and_then(|attached| attached.state.addr);
        let chosen = || {
            self.values
                .port("")
                .map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
        };
        attached
            .or_else(|| readiness.addr())
            .or_else(|| self.listen.addrs().next())
            .or_else(chosen)
    }

    // ------------------------------------------------------------------------------------------------- start

    fn start(&mut self, readiness: &mut dyn Readiness) -> Result<(), Error> {
        if let Some(plan) = self.plan_start(readiness)? {
            self.launch(plan);
        }
        while let Some(pause) = self.step_start(readiness)? {
            self.wait_event(&pause);
        }
        Ok(())
    }

    /// The first step of a start: all that comes before the fork. `None` when the service runs already, and is left alone.
    fn plan_start(&mut self, readiness: &mut dyn Readiness) -> Result<Option<Plan>, Error> {
        self.starting = None;
        if self.is_running() {
            return Ok(None);
        }
        self.ensure_owned("start")?;
        if self.service().is_some() {
            // What crashed may have left descendants behind.
            let _ = self.end(self.policy());
        }
        let _span = trace::start(self.values.name(), &self.command);
        timeline::begins(self.service_dir.id(), self.values.name(), &self.command, || {
            let addrs = self.addrs.iter().map(|addr| format!("port-{}", addr.port()));
            addrs
                .chain(self.paths.iter().map(|path| path.display().to_string()))
                .collect()
        });
        self.try_to_plan(readiness, PORT_RETRIES).map(Some)
    }

    /// The second step, of one that is started alone.
    fn launch(&mut self, plan: Plan) {
        for launched in Service::launch(vec![plan]) {
            self.launched(launched);
        }
    }

    /// The end of the second step: its supervisor has been forked, or not.
    fn launched(&mut self, launched: Result<Service, SpawnFailure>) {
        match launched {
            Ok(service) => {
                if let Some(endpoint_lock) = &self.endpoint_lock {
                    // The locks are the supervisor's now, so that they are free exactly when the tree is gone. Those of a turn that is
                    // shared stay until all have started (`together`).
                    if Arc::strong_count(endpoint_lock) == 1 {
                        endpoint_lock
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .hand_over();
                    }
                }
                *self.lock() = Some(service);
            }
            Err(failure) => {
                if let Some(starting) = &mut self.starting {
                    starting.failure = Some(failure);
                }
            }
        }
    }

    /// The last step, a look at a time: `None` when the service is ready, else how long to wait for an event until the next look.
    /// After an error nothing of it is left.
    fn step_start(&mut self, readiness: &mut dyn Readiness) -> Result<Option<Pause>, Error> {
        let Some(mut starting) = self.starting.take() else {
            return Ok(None);
        };
        let polled = match self.has_been_executed(&mut starting) {
            Ok(true) => self.poll(readiness, &mut starting.wait),
            Ok(false) => Ok(Some(Pause::until_something_happens())),
            Err(error) => Err(error),
        };
        if !matches!(polled, Ok(Some(_))) {
            readiness.wait_is_over();
        }
        match polled {
            Ok(Some(pause)) => {
                self.starting = Some(starting);
                Ok(Some(pause))
            }
            Ok(None) => {
                trace::ready(self.pid, starting.wait.deadline.elapsed());
                timeline::ready(self.service_dir.id());
                shared_use::started(&self.command, self.service_dir.log(), self.service_dir.index());
                Ok(None)
            }
            Err(error) => {
                let retries = self.after_failure(error, starting.retries, readiness)?;
                let plan = self.try_to_plan(readiness, retries)?;
                self.launch(plan);
                Ok(Some(Pause::default()))
            }
        }
    }

    /// Whether the service has been executed. An error when it could not be.
    fn has_been_executed(&mut self, starting: &mut Starting) -> Result<bool, Error> {
        let Some(launch) = &mut starting.launch else {
            return Ok(true);
        };
        let failure = match starting.failure.take() {
            Some(failure) => failure,
            None => match self.service().map(Service::has_started) {
                Some(Ok(false)) | None => return Ok(false),
                Some(Ok(true)) => {
                    self.stdin = launch.stdin.take();
                    self.pid = self.service().map_or(0, |service| service.pid());
                    starting.launch = None;
                    trace::spawned(self.pid);
                    timeline::spawned(self.service_dir.id(), self.pid);
                    return Ok(true);
                }
                Some(Err(failure)) => failure,
            },
        };
        // There is nothing to be stopped.
        *self.lock() = None;
        Err(launch::explain(
            failure,
            &self.command,
            &self.spec,
            &self.argv,
            &launch.tried,
            self.current_dir.as_deref(),
        ))
    }

    /// Makes all ready, with other ports where those that were chosen turn out to be taken, at most so many times.
    fn try_to_plan(&mut self, readiness: &mut dyn Readiness, mut retries: u32) -> Result<Plan, Error> {
        loop {
            match self.plan_once(readiness) {
                Ok((plan, launch, wait)) => {
                    self.starting = Some(Starting {
                        retries,
                        launch: Some(launch),
                        failure: None,
                        wait,
                    });
                    return Ok(plan);
                }
                Err(error) => retries = self.after_failure(error, retries, readiness)?,
            }
        }
    }

    /// Ends what there is after a failure; says how many tries are left, or gives the error back if another one makes no sense.
    fn after_failure(
        &mut self,
        error: Error,
        retries: u32,
        readiness: &mut dyn Readiness,
    ) -> Result<u32, Error> {
        let _ = self.end(self.policy());
        if retries == 0 || !self.port_was_taken(&error) {
            if self.pid != 0 {
                self.service_dir.keep();
            }
            trace::failed(&error);
            timeline::failed(self.service_dir.id(), || self.values.mask(&error.to_string()));
            return Err(error);
        }
        trace::other_port(&error);
        // First the same port, held more loosely: some services cannot bind over our reservation. Then another one.
        if !self.values.loosen() {
            self.values.new_ports();
            self.resolve(readiness)?;
        }
        Ok(retries - 1)
    }

    fn plan_once(&mut self, readiness: &mut dyn Readiness) -> Result<(Plan, Launch, Wait), Error> {
        self.lock_endpoints()?;
        // Forgets what the last start left behind, and checks the claims again.
        let prepared = self.prepare(readiness)?;
        self.readiness_env = prepared.env;
        for path in &self.paths {
            holder::check_path_free(path).map_err(|busy| busy.into_error(&self.command))?;
            // A killed service leaves its socket behind, and most servers refuse to begin where one is.
            let _ = holder::remove_stale_socket(path);
        }
        holder::check_free(&self.addrs).map_err(|busy| busy.into_error(&self.command))?;
        for (path, text) in &self.files {
            self.service_dir
                .write(path, text, self.spec.owner())
                .map_err(|source| Error::System {
                    attempt: format!(
                        "write the service's file `{}`",
                        self.service_dir.dir().join(path).display()
                    ),
                    source,
                })?;
        }
        let deadline = Deadline::after(self.spec.timeout);
        let (plan, launch) = self.plan()?;
        Ok((plan, launch, Wait::new(deadline, self.fail_on.clone())))
    }

    fn lock_endpoints(&mut self) -> Result<(), Error> {
        if self.endpoint_lock.is_none() {
            let began = Instant::now();
            self.endpoint_lock = Some(Endpoints::of(self).lock_endpoints(self.spec.queue)?);
            trace::endpoints_locked(began.elapsed());
        }
        Ok(())
    }

    fn plan(&mut self) -> Result<(Plan, Launch), Error> {
        let system = |attempt: &str, source| Error::System {
            attempt: attempt.to_owned(),
            source,
        };
        let mut environment =
            program::environment(!self.spec.env_clear, &self.changes(), self.service_dir.id());
        self.listen.announce(&mut environment);
        let tried = match self.argv.first() {
            Some(program) => program::candidates(program, &environment),
            None => Vec::new(),
        };
        let c_string = |text: &OsString| program::c_string(text, &self.command);
        let stdin = launch::stream(&self.spec.stdin, 0).map_err(|e| system("set up standard input", e))?;
        let stdout = launch::stream(&self.spec.stdout, 1).map_err(|e| system("set up standard output", e))?;
        let stderr = launch::stream(&self.spec.stderr, 2).map_err(|e| system("set up standard error", e))?;
        let mut keep = vec![
            self.service_dir
                .lock_fd()
                .map_err(|e| system("lock the private directory", e))?,
        ];
        if let Some(endpoint_lock) = &self.endpoint_lock {
            let endpoint_lock = endpoint_lock.lock().unwrap_or_else(PoisonError::into_inner);
            for fd in endpoint_lock.fds() {
                keep.push(
                    fd.try_clone_to_owned()
                        .map_err(|e| system("hand a lock to the supervisor", e))?,
                );
            }
        }
        let run = match &self.run {
            Some(run) => {
                let run = run
                    .try_clone()
                    .map_err(|e| system("hand a lock to the supervisor", e))?;
                keep.push(
                    run.start_lock
                        .try_clone()
                        .map_err(|e| system("hand a lock to the supervisor", e))?,
                );
                Some(run)
            }
            None => None,
        };
        let groups = match (&self.spec.groups, self.spec.uid) {
            (Some(groups), _) => Some(groups.clone()),
            // Root's groups must not go to somebody else.
            (None, Some(_)) => Some(Vec::new()),
            (None, None) => None,
        };
        let plan = Plan {
            candidates: tried
                .iter()
                .map(|path| c_string(&path.clone().into_os_string()))
                .collect::<Result<_, _>>()?,
            argv: self.argv.iter().map(c_string).collect::<Result<_, _>>()?,
            envp: program::c_environment(&environment, &self.command)?,
            current_dir: match &self.current_dir {
                Some(dir) => Some(c_string(&dir.clone().into_os_string())?),
                None => None,
            },
            stdin: stdin.0,
            stdout: stdout.0,
            stderr: stderr.0,
            uid: self.spec.uid,
            gid: self.spec.gid,
            groups,
            umask: self.spec.umask,
            stop: self.policy(),
            log: append(&self.service_dir.log())
                .map_err(|e| system("open the log", e))?
                .into(),
            index: append(&self.service_dir.index())
                .map_err(|e| system("open the log's index", e))?
                .into(),
            keep,
            listen: self.listen.open(&self.command)?,
            id: self.service_dir.id().to_owned(),
            run,
            private_dir: self
                .service_dir
                .dir()
                .parent()
                .and_then(|dir| CString::new(dir.as_os_str().as_bytes()).ok()),
        };
        self.since = self.output.end();
        self.last_exit = None;
        self.started_ns = sys::clock_ns();
        mark_start(&self.service_dir.index(), self.started_ns)
            .map_err(|e| system("write to the log's index", e))?;
        let stdin = stdin.1.map(File::from);
        Ok((plan, Launch { tried, stdin }))
    }

    /// Looks until the condition holds, the service ends, it prints that it has failed, or the time is over.
    fn await_ready(&mut self, readiness: &mut dyn Readiness, deadline: Deadline) -> Result<(), Error> {
        let mut wait = Wait::new(deadline, Vec::new());
        let held = loop {
            match self.poll(readiness, &mut wait) {
                Ok(None) => break Ok(()),
                Ok(Some(pause)) => self.wait_event(&pause),
                Err(error) => break Err(error),
            }
        };
        readiness.wait_is_over();
        held
    }

    /// Sleeps until something happens to the service, or what the condition waits for, but no longer than the pause.
    fn wait_event(&mut self, pause: &Pause) {
        match self.service() {
            Some(service) => service.wait_event(&pause.events, pause.time),
            None => sys::wait_readable(&pause.events, pause.time.min(UNTOLD_PAUSE)),
        }
    }

    /// One look: `None` when the condition holds, else what to wait for before the next one.
    fn poll(&mut self, readiness: &mut dyn Readiness, wait: &mut Wait) -> Result<Option<Pause>, Error> {
        let supervisor = self.supervisor();
        loop {
            // Before the looks: all that it ever printed is in the log by now, so that what they find is final.
            let ended = self.ended_before_ready().is_some();
            let wants_output = wakes(readiness, Duration::ZERO).output || !wait.fail_on.is_empty();
            if wants_output {
                // Before the look at the output, so that nothing that comes in between is missed.
                if let Some(service) = self.service() {
                    service.arm_output();
                }
            }
            let failed = wait.fail_on.iter_mut().find_map(|(pattern, watch)| {
                let line = watch.first(&self.output, self.since).ok().flatten()?;
                Some((pattern.clone(), line))
            });
            if let Some((pattern, line)) = failed {
                let evidence = self.evidence(wait.last_probe.take());
                let elapsed = wait.deadline.elapsed();
                let command = self.command.clone();
                return Err(Error::FailureLine {
                    command,
                    line,
                    pattern,
                    elapsed,
                    evidence,
                });
            }
            // What was printed was printed while it ran, and stays true; for anything else it is too late now.
            let stays_true = readiness.is_immediate() || readiness.waits_for_output();
            if stays_true || !ended {
                let remaining = wait.deadline.remaining();
                let probe = Probe {
                    values: &self.values,
                    pid: self.pid,
                    supervisor,
                    elapsed: wait.deadline.elapsed(),
                    remaining,
                    output: &self.output,
                    since: self.since,
                };
                match readiness.probe(&probe) {
                    // A look that succeeded because of something else than the service (a file that it left, a
                    // stranger) must not count when the service is gone.
                    Ok(true) if stays_true || self.ended_before_ready().is_none() => {
                        return Ok(None);
                    }
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                        let readiness = readiness.describe();
                        return Err(Error::InvalidReadiness {
                            readiness,
                            reason: error.to_string(),
                        });
                    }
                    Err(error) => {
                        if let Some(wrong_listener) = WrongListener::of(&error) {
                            // Its own exit, which is often the reason, says more.
                            if let Some(error) = self.exit_error(readiness, None) {
                                return Err(error);
                            }
                            let mut evidence = self.evidence(None);
                            evidence.about = wrong_listener.holder.about();
                            evidence.hint = Some(wrong_listener.remedy());
                            return Err(Error::WrongListener {
                                command: self.command.clone(),
                                endpoint: wrong_listener.endpoint.to_string(),
                                holder: wrong_listener.holder.to_string(),
                                evidence,
                            });
                        }
                        let text = error.to_string();
                        trace::not_ready(&text);
                        // Begun when there was hardly any time left, it says less than the one before it.
                        let cut_short = error.kind() == io::ErrorKind::TimedOut && remaining < CUT_SHORT;
                        if !(cut_short && wait.last_probe.is_some()) {
                            wait.last_probe = Some(text);
                        }
                    }
                }
            }
            if ended {
                if let Some(error) = self.exit_error(readiness, wait.last_probe.take()) {
                    return Err(error);
                }
            }
            if self.ended_before_ready().is_some() {
                continue;
            }
            let deadline = wait.deadline.at_least(readiness.extended());
            if deadline.is_over() {
                let mut evidence = self.evidence(wait.last_probe.take());
                let elsewhere = || hint::listens_elsewhere(readiness.addr(), supervisor);
                evidence.hint = evidence.hint.take().or_else(elsewhere);
                return Err(Error::Timeout {
                    command: self.command.clone(),
                    awaited: readiness.describe(),
                    elapsed: deadline.elapsed(),
                    evidence,
                });
            }
            let wake = wakes(readiness, deadline.elapsed());
            if wake.output && !wants_output {
                // Only since this look (the other half of an `And` held in it): nobody was asked to tell of output that came
                // meanwhile, so there may be nothing to be woken by. Once more, from the top.
                continue;
            }
            wait.progress.tell(|elapsed| self.standing(elapsed, readiness));
            let time = wake.pause.min(deadline.remaining());
            return Ok(Some(Pause {
                time: time.min(wait.progress.patience()),
                events: wake.events,
            }));
        }
    }

    /// How a start stands that takes long: what is awaited, and what the service printed last.
    fn standing(&self, elapsed: &dyn std::fmt::Display, readiness: &dyn Readiness) -> String {
        let name = progress::short(self.values.name());
        let awaited = progress::short(&self.values.mask(&readiness.describe()));
        let last = self.output.tail(1, self.since).pop();
        let last = last.map_or("it has printed nothing yet".to_owned(), |line| {
            format!("its last line: {}", progress::short(&line))
        });
        format!("{name} is not ready after {elapsed}; awaited: {awaited}; {last}")
    }

    /// How the service ended, if it did, and did not make itself a daemon.
    fn ended_before_ready(&self) -> Option<Option<Exit>> {
        let mut service = self.lock();
        let service = service.as_mut()?;
        // In this order: the news of its exit comes before the news that nothing is left, so that who has heard the second has
        // the first. Asked the other way round, both may come in between.
        let is_gone = service.is_gone();
        match service.exit() {
            Some(exit) if exit.is_daemonised() && !is_gone => None,
            Some(exit) => Some(Some(exit)),
            None => is_gone.then_some(None),
        }
    }

    fn exit_error(&mut self, readiness: &dyn Readiness, last_probe: Option<String>) -> Option<Error> {
        let exit = self.ended_before_ready()?;
        let Some(exit) = exit else {
            return Some(Error::System {
                attempt: format!("keep `{}` under supervision", self.command),
                source: io::Error::other("its supervisor was killed, and the service with it"),
            });
        };
        self.last_exit = Some(exit);
        let since_start = Duration::from_nanos(exit.at.saturating_sub(self.started_ns));
        Some(Error::Exited {
            command: self.command.clone(),
            awaited: readiness.describe(),
            elapsed: since_start,
            status: exit.status,
            evidence: self.evidence(last_probe),
        })
    }

    /// Whether a start failed because a port that we had chosen was in use.
    fn port_was_taken(&self, error: &Error) -> bool {
        if self.values.ports().next().is_none() {
            return false;
        }
        match error {
            Error::Exited { evidence, .. } | Error::FailureLine { evidence, .. } => {
                evidence.tail.iter().any(|line| hint::says_in_use(line))
            }
            Error::WrongListener { .. } => true,
            // The sockets that it was to inherit could not be opened.
            Error::AlreadyRunning { endpoint, .. } => self
                .values
                .ports()
                .any(|(_, port)| *endpoint == format!("port {port}")),
            _ => false,
        }
    }

    // -------------------------------------------------------------------------------------------------- stop

    fn policy(&self) -> StopPolicy {
        StopPolicy {
            signal: self.spec.stop_signal.number(),
            grace: scaled(self.spec.stop_timeout),
            kill_signal: self.spec.kill_signal.number(),
        }
    }

    fn stop(&mut self) -> Result<(), Error> {
        let had_ended = self.asked_to_end.unwrap_or_else(|| self.has_ended());
        let Some(exit) = self.end(self.policy())? else {
            return Ok(());
        };
        let (signal, expected) = (self.spec.stop_signal, self.spec.expected_exit);
        let fine = exit.status.success()
            || exit.status.code().is_some_and(|code| expected == Some(code))
            || sys::signals::is_death_by(exit.status, signal.number());
        if fine {
            return Ok(());
        }
        let mut evidence = self.evidence(None);
        if had_ended {
            evidence.hint = Some("it had ended by itself before it was asked to".to_owned());
        } else if sys::signals::is_death_by(exit.status, self.spec.kill_signal.number()) {
            evidence.hint = Some(format!(
                "it did not end within {} of {signal}; a longer `stop_timeout` or another `stop_signal` may help",
                Span(scaled(self.spec.stop_timeout)),
            ));
        }
        let code = expected
            .map(|code| format!("status {code}, "))
            .unwrap_or_default();
        let expected = format!("{code}status 0 or death by {signal}");
        Err(Error::BadExit {
            command: self.command.clone(),
            status: exit.status,
            expected,
            evidence,
        })
    }

    fn has_ended(&self) -> bool {
        let mut service = self.lock();
        service.as_mut().is_some_and(|service| service.exit().is_some())
    }

    /// Asks for the end of the service, and leaves it to [`end`](Core::end) to wait for it.
    fn begin_end(&mut self, policy: StopPolicy) {
        let had_ended = self.has_ended();
        if self.attached.is_some() || self.asked_to_end.is_some() || self.service().is_none() {
            return;
        }
        self.asked_to_end = Some(had_ended);
        if std::mem::take(&mut self.paused) {
            // A paused tree cannot hear the stop signal.
            self.signal_tree(sys::TreeSignal::Continue);
        }
        timeline::stops(self.service_dir.id());
        if let Some(service) = self.service() {
            service.ask_to_stop(policy);
        }
    }

    /// Ends what there is of the service, and says how its main process ended if there was one.
    fn end(&mut self, policy: StopPolicy) -> Result<Option<Exit>, Error> {
        self.ensure_owned("stop")?;
        self.stdin = None;
        self.begin_end(policy);
        self.asked_to_end = None;
        let Some(mut service) = self.lock().take() else {
            self.endpoint_lock = None;
            return Ok(None);
        };
        let _span = trace::stop(self.values.name(), self.pid);
        let result = service.stop(policy);
        self.last_exit = service.exit();
        trace::stopped(
            self.last_exit
                .map(|exit| Ended(exit.status))
                .as_ref()
                .map(|e| e as _),
        );
        drop(service);
        timeline::gone(self.service_dir.id(), self.last_exit);
        self.endpoint_lock = None;
        self.values.hold_again();
        result.map_err(|source| Error::System {
            attempt: format!("stop `{}`", self.command),
            source,
        })?;
        Ok(self.last_exit)
    }

    fn wait(&mut self, deadline: Deadline) -> Result<ExitStatus, Error> {
        loop {
            // Before the look at the exit, which is told first: both may come between two looks.
            let is_gone = self.service().is_none_or(|service| service.is_gone());
            let exit = self.lock().as_mut().and_then(Service::exit).or(self.last_exit);
            if let Some(exit) = exit {
                return Ok(exit.status);
            }
            if is_gone {
                return Err(Error::NotRunning {
                    command: self.command.clone(),
                    action: "wait for its end".to_owned(),
                });
            }
            if deadline.is_over() {
                return Err(Error::Timeout {
                    command: self.command.clone(),
                    awaited: "it ended by itself".to_owned(),
                    elapsed: deadline.elapsed(),
                    evidence: self.evidence(None),
                });
            }
            if let Some(service) = self.service() {
                service.wait_event(&[], deadline.remaining());
            }
        }
    }

    // ---------------------------------------------------------------------------------------------- evidence

    fn evidence(&mut self, last_probe: Option<String>) -> Box<Evidence> {
        if let Some(service) = self.service() {
            service.sync_output();
        }
        let at = |ns: u64| Duration::from_nanos(ns.saturating_sub(self.started_ns));
        let mut timeline = vec![(Duration::ZERO, "spawned".to_owned())];
        if let Some(first) = self.output.first_output(self.since) {
            timeline.push((at(first), "first output".to_owned()));
        }
        let exit = self.lock().as_mut().and_then(Service::exit).or(self.last_exit);
        if let Some(exit) = exit {
            timeline.push((at(exit.at), Ended(exit.status).to_string()));
        }
        if self.attached.is_some() {
            // It was started by another process, and a while ago.
            timeline.clear();
        }
        let tail = self.output.tail(TAIL_LINES, self.since);
        let hint = hint::of(&hint::Symptoms {
            tail: &tail,
            exit: exit.map(|exit| exit.status),
            program: &self.values.mask(&self.program()),
            shell: self.spec.shell,
            addrs: &self.addrs,
            root: self.supervisor(),
        });
        self.service_dir.keep();
        Box::new(Evidence {
            last_probe,
            timeline,
            tail,
            log: Some(self.service_dir.log()),
            lost: self.output.lost(self.since),
            about: None,
            hint,
        })
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        if test_has_failed() && self.pid != 0 {
            let lines = self.output.tail(TAIL_LINES, self.since);
            if !lines.is_empty() {
                self.service_dir.keep();
                let tail = Tail {
                    command: &self.command,
                    lines: &lines,
                    log: &self.service_dir.log(),
                    of_test: false,
                };
                print(coloured(&tail));
            }
        }
        let _ = self.end(self.policy());
    }
}

/// A start under way.
struct Starting {
    /// How many more times it is tried with other ports.
    retries: u32,
    /// Until the program has been executed.
    launch: Option<Launch>,
    /// Why there is no supervisor.
    failure: Option<SpawnFailure>,
    wait: Wait,
}

/// What is needed of a start once the program has been executed, or could not be.
struct Launch {
    /// The files that were to be tried.
    tried: Vec<PathBuf>,
    /// This side's end of a piped standard input.
    stdin: Option<File>,
}

/// A wait for a condition.
struct Wait {
    deadline: Deadline,
    /// Patterns as they were given, and what looks for them.
    fail_on: Vec<(String, LineWatch)>,
    last_probe: Option<String>,
    progress: Progress,
}

impl Wait {
    fn new(deadline: Deadline, fail_on: Vec<(String, LineWatch)>) -> Wait {
        Wait {
            deadline,
            fail_on,
            last_probe: None,
            progress: Progress::new(),
        }
    }
}

/// What to wait for before the next look: until one of the descriptors is readable or something happens to the service itself, and no
/// longer than the time. The descriptors are the condition's, and open until it is looked at again.
#[derive(Debug, Default)]
pub struct Pause {
    time: Duration,
    events: Vec<i32>,
}

impl Pause {
    fn until_something_happens() -> Pause {
        Pause {
            time: Duration::MAX,
            events: Vec::new(),
        }
    }
}

/// When a condition wants to be looked at again, so long after the start.
fn wakes(readiness: &dyn Readiness, elapsed: Duration) -> Wake {
    let mut wake = Wake::new(elapsed);
    readiness.wakes(&mut wake);
    wake
}

/// An executor that is started together with others, whatever its readiness.
#[doc(hidden)]
pub trait Startable {
    /// All that comes before its supervisor is forked. `None` when it runs already.
    ///
    /// # Errors
    ///
    /// Those of [`Executor::start`].
    fn plan_start(&mut self) -> Result<Option<Planned>, Error>;

    /// Its supervisor has been forked, or not.
    fn launched(&mut self, launched: Launched);

    /// One look at whether it is ready, and if not, what to wait for before the next one.
    ///
    /// # Errors
    ///
    /// Those of [`Executor::start`].
    fn step_start(&mut self) -> Result<Option<Pause>, Error>;

    /// What becomes readable when something happens to it; `None` when something already has.
    fn events(&self) -> Option<i32>;

    /// Asks it to stop, without waiting for that.
    fn begin_stop(&mut self);

    /// As [`Executor::stop`].
    ///
    /// # Errors
    ///
    /// Those of [`Executor::stop`].
    fn end_stop(&mut self) -> Result<(), Error>;
}

/// A service that is about to be launched.
#[doc(hidden)]
pub struct Planned(Plan);

/// What became of it.
#[doc(hidden)]
pub struct Launched(Result<Service, SpawnFailure>);

impl<R: Readiness> Startable for Executor<R> {
    fn plan_start(&mut self) -> Result<Option<Planned>, Error> {
        let plan = self.core.plan_start(&mut self.readiness);
        plan.map(|plan| plan.map(Planned))
            .map_err(|error| self.core.masked(error))
    }

    fn launched(&mut self, launched: Launched) {
        self.core.launched(launched.0);
    }

    fn step_start(&mut self) -> Result<Option<Pause>, Error> {
        let step = self.core.step_start(&mut self.readiness);
        step.map_err(|error| self.core.masked(error))
    }

    fn events(&self) -> Option<i32> {
        self.core.lock().as_ref().and_then(Service::events)
    }

    fn begin_stop(&mut self) {
        self.core.begin_end(self.core.policy());
    }

    fn end_stop(&mut self) -> Result<(), Error> {
        self.stop()
    }
}

/// Stops several services at once: all are asked to end before any is waited for. No thread is involved.
///
/// # Errors
///
/// Those of [`Executor::stop`], of the first of them that has one. All have been stopped then as well.
#[doc(hidden)]
pub fn stop_together(services: &mut [&mut dyn Startable]) -> Result<(), Error> {
    for service in services.iter_mut() {
        service.begin_stop();
    }
    let mut result = Ok(());
    for service in services {
        result = result.and(service.end_stop());
    }
    result
}

/// So many are launched at one go. More of them would need many descriptors at once, and none would start before all are planned.
const AT_ONE_GO: usize = 8;

/// Starts several services at once: all are launched, in this order, before any is waited for, and what takes longest is all that it
/// takes. No thread is involved.
///
/// # Errors
///
/// Those of [`Executor::start`], of the first that fails, with its place in the list. The others may be running, or starting: the caller
/// drops them.
#[doc(hidden)]
pub fn start_together(services: &mut [&mut dyn Startable]) -> Result<(), (usize, Error)> {
    for (chunk, services) in services.chunks_mut(AT_ONE_GO).enumerate() {
        let (mut planned, mut plans) = (Vec::new(), Vec::new());
        for (at, service) in services.iter_mut().enumerate() {
            let plan = service.plan_start();
            if let Some(plan) = plan.map_err(|error| (chunk * AT_ONE_GO + at, error))? {
                planned.push(at);
                plans.push(plan.0);
            }
        }
        for (at, launched) in planned.into_iter().zip(Service::launch(plans)) {
            services[at].launched(Launched(launched));
        }
    }
    let mut waiting: Vec<usize> = (0..services.len()).collect();
    loop {
        let mut time = Duration::MAX;
        let mut events = Vec::new();
        let mut failure = None;
        waiting.retain(|at| match services[*at].step_start() {
            Ok(None) => false,
            Ok(Some(pause)) => {
                time = time.min(pause.time);
                events.extend(pause.events);
                true
            }
            Err(error) => {
                failure.get_or_insert((*at, error));
                false
            }
        });
        if let Some(failure) = failure {
            return Err(failure);
        }
        if waiting.is_empty() {
            return Ok(());
        }
        let services: Option<Vec<i32>> = waiting.iter().map(|at| services[*at].events()).collect();
        match services {
            Some(services) => {
                events.extend(services);
                sys::wait_readable(&events, time);
            }
            // Something has happened to one of them. At most a millisecond: a supervisor that is gone says so for ever.
            None => std::thread::sleep(time.min(Duration::from_millis(1))),
        }
    }
}

/// A service that is the run's.
struct Attached {
    state: State,
    published: PathBuf,
}

impl Attached {
    fn is_running(&self) -> bool {
        // What is published of it changes when it ends, and goes when the run does.
        State::read(&self.published)
            .ok()
            .flatten()
            .is_some_and(|state| state.is_running())
    }
}

struct Prepared {
    addrs: Vec<SocketAddr>,
    paths: Vec<PathBuf>,
    env: Vec<(String, String)>,
}

/// What a service, or several fixtures of one test, need for themselves.
///
/// Whoever needs several fixtures takes the turn for all of their claims at once: taken one after the other, in whatever order
/// the fixtures stand, two tests could wait for each other for ever.
#[doc(hidden)]
#[derive(Clone, Debug, Default)]
pub struct Endpoints {
    command: String,
    name: String,
    /// Of the services, where there is a timeline.
    ids: Vec<String>,
    addrs: Vec<SocketAddr>,
    paths: Vec<PathBuf>,
}

impl Endpoints {
    fn of(core: &Core) -> Endpoints {
        Endpoints {
            command: core.command.clone(),
            name: core.values.name().to_owned(),
            ids: timeline_now().map_or_else(Vec::new, |_| vec![core.service_dir.id().to_owned()]),
            addrs: core.addrs.clone(),
            paths: core.paths.clone(),
        }
    }

    /// Those of both.
    #[must_use]
    pub fn and(mut self, other: Endpoints) -> Endpoints {
        for (ours, theirs) in [(&mut self.command, other.command), (&mut self.name, other.name)] {
            if !ours.is_empty() {
                ours.push_str(" and ");
            }
            ours.push_str(&theirs);
        }
        self.ids.extend(other.ids);
        self.addrs.extend(other.addrs);
        self.paths.extend(other.paths);
        self
    }

    /// Takes the turn for all, waiting for others to be done with them.
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyRunning`] when that takes more than ten minutes, or would never end.
    pub fn queue(self) -> Result<SharedLock, Error> {
        self.lock_endpoints(true).map(SharedLock)
    }

    fn lock_endpoints(&self, queue: bool) -> Result<Arc<Mutex<EndpointLock>>, Error> {
        let addrs = self.addrs.iter().map(|addr| Endpoint::from(*addr));
        let endpoints: Vec<Endpoint> = addrs
            .chain(self.paths.iter().map(|path| Endpoint::from(path.as_path())))
            .collect();
        let asked = timeline_now();
        let taken = match queue {
            true => EndpointLock::take(&endpoints, &self.name, scaled(LOCK_LIMIT)),
            false => EndpointLock::try_take(&endpoints, &self.name),
        };
        timeline::endpoint_lock(asked, &self.ids);
        match taken {
            Ok(Some(endpoint_lock)) => Ok(Arc::new(Mutex::new(endpoint_lock))),
            Ok(None) => Err(self.busy(endpoints.iter().find_map(lock::holder))),
            Err(error) if error.kind() == io::ErrorKind::Deadlock => Err(self.busy(Some(error.to_string()))),
            Err(source) => Err(Error::System {
                attempt: "take a turn at a fixed port or socket".to_owned(),
                source,
            }),
        }
    }

    /// Names who has it: the process that can be seen there, and what its lock says.
    fn busy(&self, note: Option<String>) -> Error {
        let path_is_busy = self
            .paths
            .iter()
            .find_map(|path| holder::check_path_free(path).err());
        let busy = path_is_busy.or_else(|| holder::check_free(&self.addrs).err());
        match busy.map(|busy| busy.into_error(&self.command)) {
            Some(Error::AlreadyRunning {
                command,
                endpoint,
                holder,
                mut evidence,
            }) => {
                // Where the process can be seen it is the holder, and what the lock says is the rest.
                let (holder, note) = match holder {
                    Some(holder) => (Some(holder), note),
                    None => (note, None),
                };
                evidence.about = match (evidence.about.take(), note) {
                    (Some(about), Some(note)) => Some(format!("{about}\n{note}")),
                    (about, note) => about.or(note),
                };
                Error::AlreadyRunning {
                    command,
                    endpoint,
                    holder,
                    evidence,
                }
            }
            // It has the lock, but does not listen yet, or not any more.
            _ => {
                let addrs = self.addrs.iter().map(|addr| format!("port {}", addr.port()));
                let paths = self.paths.iter().map(|path| format!("socket {}", path.display()));
                let endpoint = addrs.chain(paths).next().unwrap_or_default();
                Error::AlreadyRunning {
                    command: self.command.clone(),
                    endpoint,
                    holder: note,
                    evidence: Box::default(),
                }
            }
        }
    }
}

/// The turn of several fixtures.
#[doc(hidden)]
#[derive(Debug)]
pub struct SharedLock(Arc<Mutex<EndpointLock>>);

impl Drop for SharedLock {
    /// All have started: from now on the locks are the supervisors' alone, and free when they are gone.
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).hand_over();
    }
}

impl<R: Readiness> Executor<R> {
    /// What the service needs for itself.
    #[doc(hidden)]
    #[must_use]
    pub fn __endpoints(&self) -> Endpoints {
        Endpoints::of(&self.core)
    }

    /// Gives it a turn that was taken for several.
    #[doc(hidden)]
    pub fn __give_lock(&mut self, endpoint_lock: &SharedLock) {
        self.core.endpoint_lock = Some(Arc::clone(&endpoint_lock.0));
    }

    /// The service lives as long as the process: waiting here for what it has would never end.
    #[doc(hidden)]
    pub fn __for_process(&mut self) {
        if let Some(endpoint_lock) = &self.core.endpoint_lock {
            endpoint_lock
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .for_process();
        }
    }
}

/// Makes the log and its index, both private.
fn open_log(service_dir: &ServiceDir) -> Result<OutputReader, Error> {
    let (log, index) = (service_dir.log(), service_dir.index());
    let open = append(&log)
        .and_then(|_| append(&index))
        .and_then(|_| OutputReader::open(&log, &index));
    open.map_err(|source| Error::System {
        attempt: format!("make the log `{}`", log.display()),
        source,
    })
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
}

/// Says in the index that from here on it is the output of another start.
fn mark_start(index: &Path, now: u64) -> io::Result<()> {
    append(index)?.write_all(&Record::start(now).encode())
}

/// Ends what killed test processes have left behind, and removes their directories: once in each process.
fn sweep_once() {
    let stale = service_dir::sweep();
    let ids: Vec<&str> = stale.iter().map(service_dir::Stale::id).collect();
    sys::kill_marked(&ids);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executors_travel_between_threads() {
        fn check<T: Send + Sync + 'static>() {}
        check::<Executor<NoWait>>();
        check::<ExecutorBuilder<NoWait>>();
    }
}
