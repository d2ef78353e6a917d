//! The executor: a service under the control of a test.
//!
//! [`Executor<R>`] is a thin generic wrapper that provides the public methods. [`Core`], [`Own`]
//! and [`Attached`] do the work, and see the readiness condition only as a trait object.

mod asynchronous;
mod attach;
mod build;
mod endpoints;
mod hint;
mod keep;
mod launch;
mod lines;
mod many;
mod needs;
mod process;
mod start;
mod stop;
mod wait;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use crate::error::Error;
use crate::error::secrets::Unmasked;
use crate::error::text::Ended;
use crate::executor::attach::Attached;
use crate::executor::process::{Core, Observed, Own, Owned, Process};
use crate::output::logs::Logs;
use crate::output::mark::Mark;
use crate::readiness::Readiness;
use crate::readiness::no_wait::NoWait;
use crate::recipe::builder::ExecutorBuilder;
use crate::recipe::program::environment;
use crate::recipe::signal::Signal;
use crate::sys::procfs::ID_VARIABLE;
use crate::sys::{self, StopPolicy};
use crate::util::deadline::Deadline;

pub use crate::executor::endpoints::{Endpoints, SharedLock};
pub use crate::executor::many::{Polled, Startable, launch_together, poll_together, stop_together};

/// A service that a test can start, stop and start again. [`Executor::builder`] creates one.
///
/// An executor controls more than one process. A service is a process *and everything that it
/// forks*, and each method applies to all of them. Name the variable after the service, for example
/// `redis`.
///
/// The methods that change a service take `&mut self`. A shared fixture hands out `&`, so no test
/// can stop a service that another test uses.
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
/// Dropping an executor stops its service as [`stop`](Executor::stop) does, and returns when none
/// of its processes is left. Errors of `stop` are ignored. If the test panics, its output shows the
/// last lines of the service's log and the path of the log file, which is kept.
///
/// If the test process ends without dropping the executor (a signal, `abort`, `process::exit`,
/// SIGKILL), the supervisor stops the service.
#[must_use = "the service is stopped when its executor is dropped"]
pub struct Executor<R = NoWait> {
    core: Core,
    process: Process,
    readiness: R,
}

impl<R: Readiness> Executor<R> {
    /// Starts the service, and returns when it is ready. Does nothing if it is already running.
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
    /// * [`Error::AlreadyRunning`]: another process uses the port or the socket.
    /// * [`Error::Spawn`]: the program could not be executed.
    /// * [`Error::Exited`], [`Error::Timeout`], [`Error::FailureLine`], [`Error::WrongListener`]:
    ///   the program was executed, but the service did not become ready.
    /// * [`Error::System`]: the operating system refused something that mirakuru itself needs.
    ///
    /// After an error, no process of the service is left, and `start` may be called again.
    pub fn start(&mut self) -> Result<(), Error> {
        if self.runs_on() {
            return Ok(());
        }
        self.verb("start", |mut owned, readiness| owned.start(readiness))
    }

    /// Stops the service, and returns when none of its processes is left. Sends the stop signal to
    /// its process group, waits until all processes have ended or the
    /// [grace](ExecutorBuilder::stop_timeout) has expired, then kills those that are left. Does
    /// nothing if the service is not running.
    ///
    /// Dropping the executor also stops the service, but ignores errors. This method returns them.
    ///
    /// ```
    /// # use mirakuru_core as mirakuru;
    /// use mirakuru::{Banner, Error, Executor};
    ///
    /// let mut service = Executor::builder("sleep 60").start()?;
    /// service.stop()?;
    /// assert!(!service.is_running());
    ///
    /// // The error says that the service did not end well.
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
    /// [`Error::BadExit`] if the service crashed before this call, had to be killed, or ended with
    /// a status that is not accepted. Exit code 0, death by the stop signal, and 128 plus that
    /// signal's number are accepted. (A JVM or a shell that handles SIGTERM exits with 143.)
    /// [`expected_exit`](ExecutorBuilder::expected_exit) adds another code. Even after this error,
    /// the service is no longer running.
    pub fn stop(&mut self) -> Result<(), Error> {
        self.verb("stop", |mut owned, _| owned.stop())
    }

    /// Immediately kills the service with the recipe's kill signal, and returns when none of its
    /// processes is left. Every exit status is accepted.
    ///
    /// ```
    /// # use mirakuru_core as mirakuru;
    /// use std::time::Duration;
    /// use mirakuru::Executor;
    ///
    /// // `kill` does not wait for the grace.
    /// let recipe = Executor::builder("sleep 60").stop_timeout(Duration::from_secs(3600));
    /// let mut service = recipe.start()?;
    /// service.kill()?;
    /// assert!(!service.is_running());
    /// # Ok::<(), mirakuru_core::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::System`] if the supervisor could not stop the service.
    pub fn kill(&mut self) -> Result<(), Error> {
        self.verb("kill", |mut owned, _| {
            let signal = owned.core.spec.kill_signal.number();
            owned.end(StopPolicy {
                signal,
                grace: Duration::ZERO,
                kill_signal: signal,
            })?;
            Ok(())
        })
    }

    /// [Stops](Executor::stop) the service and [starts](Executor::start) it again on the same ports
    /// and in the same directory.
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
    /// The errors of `stop` and `start`. Once the service has been ready, its ports never change:
    /// if another process has taken one, the error is [`Error::AlreadyRunning`] and names that
    /// process. If the stop fails with [`Error::BadExit`], the service is started again before the
    /// error is returned.
    pub fn restart(&mut self) -> Result<(), Error> {
        let stopped = self.stop();
        self.start()?;
        stopped
    }

    /// [Restarts](Executor::restart) the service with a changed recipe: another program, or other
    /// settings, on the same ports and with the same directory. Use it to test an upgrade.
    ///
    /// ```
    /// # use mirakuru_core as mirakuru;
    /// use mirakuru::{Executor, Tcp};
    ///
    /// let mut server = Executor::builder("python3 -m http.server {port} -b 127.0.0.1")
    ///     .wait_for(Tcp::addr("127.0.0.1:{port}"))
    ///     .start()?;
    /// let address = server.addr();
    /// server.restart_with(|recipe| recipe.args(["--protocol", "HTTP/1.1"]).env("VERSION", "2"))?;
    /// assert_eq!(server.addr(), address);
    /// # Ok::<(), mirakuru_core::Error>(())
    /// ```
    ///
    /// The closure gets the current recipe. This start and later ones use the recipe that it
    /// returns. The service keeps its name.
    ///
    /// # Errors
    ///
    /// The errors of [`restart`](Executor::restart). If the changed recipe is invalid
    /// ([`Error::InvalidCommand`], [`Error::InvalidReadiness`]), or its program or working
    /// directory does not exist ([`Error::Spawn`]), the service keeps running unchanged, and the
    /// error says so.
    pub fn restart_with(
        &mut self,
        change: impl FnOnce(ExecutorBuilder<R>) -> ExecutorBuilder<R>,
    ) -> Result<(), Error>
    where
        R: Clone,
    {
        let old_owner = self.core.spec.owner();
        self.verb("change", |mut owned, readiness| {
            let changed = change(ExecutorBuilder {
                spec: owned.core.spec.clone(),
                readiness: readiness.clone(),
            });
            let before = ExecutorBuilder {
                spec: std::mem::replace(&mut owned.core.spec, changed.spec),
                readiness: std::mem::replace(readiness, changed.readiness),
            };
            let checked = owned.resolve(readiness).and_then(|()| owned.check_command());
            if checked.is_err() {
                owned.core.spec = before.spec;
                *readiness = before.readiness;
                owned.resolve(readiness)?;
            }
            checked.map_err(|error| match owned.own.is_running() {
                true => error.before_a_stop(),
                false => error,
            })
        })?;
        let stopped = self.stop();
        let owner = self.core.spec.owner();
        if owner != old_owner {
            self.core.hand_over(owner)?;
        }
        self.start()?;
        stopped
    }

    /// Stops the service, runs the closure, and starts the service again. Use it to test how other
    /// code copes with an outage.
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
    /// If the closure panics, the service is started again before the panic continues. If that
    /// start fails, the failure is only printed, because a panic cannot carry a second error.
    ///
    /// # Errors
    ///
    /// The errors of [`stop`](Executor::stop) and [`start`](Executor::start). After
    /// [`Error::BadExit`], the service is down as well: the closure runs, the service is started
    /// again, and then the error is returned.
    pub fn stopped<T>(&mut self, closure: impl FnOnce() -> T) -> Result<T, Error> {
        let stopped = match self.stop() {
            // The service has stopped, so the closure runs in spite of the bad exit status.
            Err(error @ Error::BadExit { .. }) => Err(error),
            Err(error) => {
                self.start()?;
                return Err(error);
            }
            Ok(()) => Ok(()),
        };
        match catch_unwind(AssertUnwindSafe(closure)) {
            Ok(value) => {
                self.start()?;
                stopped.map(|()| value)
            }
            Err(panic) => {
                if let Err(error) = self.start() {
                    eprintln!("the service could not be started again after a panic:\n{error}");
                }
                resume_unwind(panic)
            }
        }
    }

    /// Pauses every process of the service with SIGSTOP. The service keeps its connections open,
    /// but answers nothing.
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
    /// [`Error::NotRunning`] if the service is not running.
    pub fn pause(&mut self) -> Result<(), Error> {
        self.verb_of_running("pause", |own| {
            own.paused = true;
            own.signal_tree(sys::TreeSignal::Stop);
        })
    }

    /// Resumes a [paused](Executor::pause) service.
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`] if the service is not running.
    pub fn resume(&mut self) -> Result<(), Error> {
        self.verb_of_running("resume", |own| {
            own.paused = false;
            own.signal_tree(sys::TreeSignal::Continue);
        })
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
    /// [`Error::NotRunning`] if the service is not running.
    pub fn signal(&mut self, signal: Signal) -> Result<(), Error> {
        self.verb_of_running("signal", |own| {
            if let Some(service) = own.lock().as_mut() {
                service.signal(signal.number());
            }
        })
    }

    /// Waits until another condition holds. A condition on output searches all lines since the
    /// service's last start.
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
    /// * [`Error::NotRunning`]: the service was never started.
    /// * [`Error::Timeout`]: the condition does not hold in time.
    /// * [`Error::Exited`]: the service has ended, or ends during the wait.
    /// * [`Error::InvalidReadiness`]: the condition is invalid.
    ///
    /// An error leaves the service unchanged.
    ///
    /// Output is searched first, so a printed line counts even if the service has ended since.
    pub fn wait_until(&mut self, mut readiness: impl Readiness, timeout: Duration) -> Result<(), Error> {
        let core = &mut self.core;
        let held = match core.pid {
            0 => Err(core.not_running("wait for a condition")),
            _ => core.prepare(&mut readiness).map(drop).and_then(|()| {
                let deadline = Deadline::after(timeout);
                core.await_ready(self.process.observed_mut(), &mut readiness, deadline)
            }),
        };
        core.masked(held)
    }

    /// Records that this service needs the one whose [`dir`](Executor::dir) is `dir`. From the next
    /// start on, the needed service ends after this one, regardless of how the test process or the
    /// run ends.
    #[doc(hidden)]
    pub fn __needs(&mut self, dir: &Path) {
        if let (Process::Own(own), Some(private)) = (&mut self.process, dir.parent()) {
            own.needs.push(private.to_owned());
        }
    }

    /// Waits until the main process exits by itself, and returns its exit status.
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
    /// [`Error::Timeout`] if the process does not exit in time; [`Error::NotRunning`] if the
    /// service was never started.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus, Error> {
        self.verb("wait for the end of", |mut owned, _| {
            owned.wait(Deadline::after(timeout))
        })
    }

    /// Whether the service's main process is running. A daemonized service counts as running while
    /// any of its processes is left.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.process.observed().is_running()
    }

    /// Describes how the service has ended. `None` while it is running.
    #[doc(hidden)]
    #[must_use]
    pub fn __ended(&self) -> Option<String> {
        let exit = self.process.observed().ended()?;
        Some(exit.map_or_else(|| "has ended".to_owned(), |exit| Ended(exit.status).to_string()))
    }

    /// Whether the service is running and has not been asked to stop.
    fn runs_on(&self) -> bool {
        let own = self.process.own();
        self.is_running() && own.is_none_or(|own| own.asked_to_end.is_none())
    }

    /// Calls `act` if the service belongs to this process.
    fn verb<T>(
        &mut self,
        action: &str,
        act: impl FnOnce(Owned<'_>, &mut R) -> Result<T, Unmasked>,
    ) -> Result<T, Error> {
        let owned = self.process.ours(&mut self.core, action);
        let done = owned.and_then(|owned| act(owned, &mut self.readiness));
        self.core.masked(done)
    }

    /// Calls `act` if the service belongs to this process and is running.
    fn verb_of_running(&mut self, action: &str, act: impl FnOnce(&mut Own)) -> Result<(), Error> {
        self.verb(action, |Owned { core, own }, _| match own.is_running() {
            true => {
                act(own);
                Ok(())
            }
            false => Err(core.not_running(&format!("{action} it"))),
        })
    }

    /// The process id of the service's main process. It stays available after that process has
    /// exited.
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

    /// The address at which clients reach the service: the readiness condition's address, or
    /// otherwise 127.0.0.1 with the port chosen for `{port}`.
    ///
    /// # Panics
    ///
    /// If the condition has no address and the recipe has no `{port}`.
    #[must_use]
    #[track_caller]
    pub fn addr(&self) -> SocketAddr {
        match self.process.addr(&self.core, &self.readiness) {
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
    /// If [`addr`](Executor::addr) panics.
    #[must_use]
    #[track_caller]
    pub fn port(&self) -> u16 {
        match self.process.addr(&self.core, &self.readiness) {
            Some(addr) => addr.port(),
            None => self.no(
                "port",
                "wait for `Tcp` or `Http`, or use the placeholder `{port}`",
            ),
        }
    }

    /// The port chosen for `{port:NAME}`.
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
    /// If the recipe has no `{port:NAME}` of this name.
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

    /// All chosen ports with their names. The name of `{port}` is empty.
    #[doc(hidden)]
    #[must_use]
    pub fn __ports(&self) -> Vec<(String, u16)> {
        self.core.values.owned_ports()
    }

    /// The URL at which clients reach the service.
    ///
    /// # Panics
    ///
    /// If the readiness condition has no URL. Only `Http` has one.
    #[must_use]
    #[track_caller]
    pub fn url(&self) -> String {
        let attached = self.process.attached().and_then(Attached::url);
        match attached.or(self.readiness.url()) {
            Some(url) => url.to_owned(),
            None => self.no("URL", "wait for `Http`"),
        }
    }

    /// The URL of the service's root: [`url`](Executor::url) without its path, query and fragment,
    /// and without a trailing `/`.
    ///
    /// ```
    /// # use mirakuru_core as mirakuru;
    /// # #[cfg(feature = "http")] {
    /// use mirakuru::{Executor, Http};
    ///
    /// let server = Executor::builder("python3 -m http.server {port} --bind 127.0.0.1")
    ///     .wait_for(Http::get("http://127.0.0.1:{port}/?ready=1"))
    ///     .build()?;
    /// assert_eq!(server.base_url(), format!("http://127.0.0.1:{}", server.port()));
    /// # }
    /// # Ok::<(), mirakuru_core::Error>(())
    /// ```
    ///
    /// # Panics
    ///
    /// If the readiness condition has no URL. Only `Http` has one.
    #[must_use]
    #[track_caller]
    pub fn base_url(&self) -> String {
        let mut url = self.url();
        let host = url.find("://").map_or(0, |scheme| scheme + "://".len());
        let end = url[host..].find(['/', '?', '#']).map(|length| host + length);
        url.truncate(end.unwrap_or(url.len()));
        url
    }

    /// The path of the socket or the file that the readiness condition waits for.
    ///
    /// # Panics
    ///
    /// If the condition has no path. Only `UnixSocket` and `PidFile` have one.
    #[must_use]
    #[track_caller]
    pub fn path(&self) -> PathBuf {
        let attached = self.process.attached().and_then(Attached::path);
        match attached.or(self.readiness.path()) {
            Some(path) => path.to_owned(),
            None => self.no("path", "wait for `UnixSocket` or `PidFile`"),
        }
    }

    #[track_caller]
    fn no(&self, what: &str, remedy: &str) -> ! {
        panic!("`{}` has no {what}: {remedy}", self.core.values.name())
    }

    /// A snapshot of the service's output from all of its starts. If another test process has
    /// started the service, the newest output may be missing.
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
        self.logs_since(&Mark::START)
    }

    /// The environment variables that the recipe sets, with placeholders filled in. The variables
    /// that the service inherits are not included.
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
        let set = environment(BTreeMap::new(), &self.core.changes(), self.core.service_dir.id());
        set.into_iter().filter(|(key, _)| key != ID_VARIABLE).collect()
    }

    /// The command with placeholders filled in, as errors show it. `{env:VAR}` is left as it is,
    /// and passwords in URLs are shown as `***`.
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

    /// The service's name: the one in the recipe, or otherwise the program's file name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.core.values.name()
    }

    /// The service's private directory, which is the value of `{dir}`. Dropping the executor
    /// removes it.
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

    /// Lets a recipe fill the private directory before the first start. Afterwards the service's
    /// user owns all files in the directory.
    #[doc(hidden)]
    pub fn __prepare(
        &mut self,
        fill: &mut dyn FnMut(&mut Executor<R>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let owner = self.core.spec.owner();
        if owner.is_none() {
            return fill(self);
        }
        // While the recipe fills the directory, the service's user must not be able to put a link
        // into it.
        self.core.take_back()?;
        fill(self)?;
        self.core.hand_over(owner)
    }

    /// Takes the writer for the service's standard input, if the recipe sets
    /// [`Stdio::piped`](crate::recipe::builder::Stdio::piped). Each start creates a new writer.
    /// Dropping the writer closes the input.
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
        match &mut self.process {
            Process::Own(own) => own.stdin.take().map(StdinPipe),
            Process::Attached(_) => None,
        }
    }
}

impl<R> std::fmt::Debug for Executor<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Executor")
            .field("command", &self.core.command)
            .field("pid", &self.core.pid)
            .field("running", &self.process.observed().is_running())
            .finish_non_exhaustive()
    }
}

/// The writing end of a service's standard input: see [`Executor::take_stdin`].
///
/// Like the standard library's [`ChildStdin`](std::process::ChildStdin), it implements [`Write`],
/// and its descriptor can be borrowed, or taken for use with an async runtime.
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
