//! One service for a whole run of tests, over all its processes.
//!
//! `cargo nextest run` makes a process of each test, `cargo test` one of each test binary. A service with the scope `run` is
//! started by the first of them that needs it, and the others attach. It ends when the *runner* does, however that ends.
//!
//! ```text
//!   cargo nextest run ◀─────────────── pidfd ───────────────┐
//!     ├─ test A ──▶ guard ──▶ worker ──▶ redis-server       │
//!     │     (A is gone by now; guard and worker are nobody's children, and the worker watches the runner)
//!     ├─ test B ─── reads KEY.state ── connects ──▶ redis-server
//!     └─ test C ─── reads KEY.state ── connects ──▶ redis-server
//!
//!   /tmp/mirakuru-UID/run-PID-START-HASH/     of the runner; mode 0700; in XDG_RUNTIME_DIR where there is one
//!       KEY.lock     held (flock) by the one process that is starting the service, and by guard and worker
//!       KEY.state    how to reach it; renamed into place by the worker, which appends how it ended
//!   /tmp/mirakuru-UID/ID/                     of the service
//!       lock         held (flock) by guard and worker: who cannot get it knows that they live
//! ```
//!
//! # Who may die when
//!
//! * The process that starts it, before it is published: the service is that process's own and goes with it. The lock is
//!   free when the last who has it is gone, and that is the supervisor; then the next process starts another. Were the lock the
//!   test process's alone, the next one could find it free while the supervisor still has the word to publish before it.
//! * While it is published: that is one message to the worker, which renames the state into place *and* stops watching the
//!   test process. There is no moment between the two at which anybody could see a service that is about to go, or
//!   lose one that stays.
//! * The service itself, later: the worker appends to the state how it ended. Whoever attaches then is told, with the end of
//!   the log; nobody starts another behind the back of tests that have used the first.
//! * The runner: the worker ends the service as always, and removes state and directories. Test processes that a killed runner
//!   left behind get an error, and start nothing.
//! * Guard and worker: either ends the service when the other is killed, and the free lock says that it is over. A worker
//!   without a guard waits for the end of the run, to clean up; without a worker the next run does.

pub(crate) mod lease;

use std::ffi::CString;
use std::fs::{self, File};
use std::hash::Hasher;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::thread;
use std::time::{Duration, Instant};

use once_cell::sync::Lazy;

use crate::error::Error;
use crate::executor::Executor;
use crate::observe::events::timeline_now;
use crate::readiness::Readiness;
use crate::recipe::builder::ExecutorBuilder;
use crate::service_dir::{self, ServiceDir};
use crate::sys;
use crate::sys::procfs::{self, Stat};
use crate::util::backoff::Pauses;
use crate::util::deadline::scaled;
use crate::util::hash::Fnv1a;

/// How long one waits for another process to start the service, beyond what the recipe allows for that. It is not known how long
/// the set-up of a service may take.
const PATIENCE: Duration = Duration::from_secs(900);
/// How long it may take a busy machine until the end of a service is recorded: its supervisor is there, and will do it.
const RECORDED_WITHIN: Duration = Duration::from_secs(30);

/// A run of tests: known by the process at whose end it ends.
#[doc(hidden)]
#[derive(Debug)]
pub struct Run {
    dir: PathBuf,
    runner: u32,
    started: u64,
}

impl Run {
    /// The run that this process is a part of; `None` when it is none, and a shared service is this process's own.
    ///
    /// Decided once: when a runner is killed, its test processes live on for a moment as somebody else's children.
    #[must_use]
    pub fn current() -> Option<&'static Run> {
        static RUN: Lazy<Option<Run>> = Lazy::new(|| {
            let chain: Vec<(u32, Stat)> = procfs::ancestors(std::process::id()).collect();
            let variables: Vec<(&str, String)> = [SESSION, NEXTEST]
                .into_iter()
                .filter_map(|name| Some((name, std::env::var(name).ok().filter(|value| !value.is_empty())?)))
                .collect();
            Run::find(&variables, &chain, sys::origin::is_orphan(), carries)
        });
        RUN.as_ref()
    }

    /// The runner is the nearest ancestor that does not carry the variable that it gives to its tests; without such a
    /// variable, the nearest one that is `cargo`. The chain begins with the process itself. Of an orphan it is not the one that
    /// it was started by, and tells nothing.
    fn find(
        variables: &[(&str, String)],
        chain: &[(u32, Stat)],
        was_orphaned: bool,
        carries: impl Fn(u32, &[u8]) -> Option<bool>,
    ) -> Option<Run> {
        // A process is in its parent's session or begins one of its own. One that is in neither has been adopted, by the first
        // process or by another that collects orphans: nothing from there on has to do with it.
        let begun = chain
            .windows(2)
            .take(if was_orphaned { 0 } else { chain.len() })
            .take_while(|pair| {
                let [(pid, child), (_, parent)] = pair else {
                    return false;
                };
                child.session == parent.session || child.session == *pid
            })
            .count();
        let ancestors = chain.get(1..=begun).unwrap_or_default();
        let is_orphan = begun + 1 < chain.len();
        for (name, value) in variables {
            let entry = format!("{name}={value}");
            let giver = ancestors.iter().find(|(pid, stat)| {
                // A `cargo test` that a test under nextest has started is a run of its own.
                let is_inner = *name == NEXTEST && stat.comm == "cargo";
                // Where a wrapper has changed the user, nobody's variables can be read.
                is_inner || !carries(*pid, entry.as_bytes()).unwrap_or_else(|| !is_cargo(stat))
            });
            // The first process of a machine adopts what its parent left behind: it is a runner only where it is the
            // container's own, and then it is cargo.
            let is_real = |(pid, stat): &&(u32, Stat)| *pid != 1 || is_cargo(stat);
            if let Some((pid, stat)) = giver.filter(is_real) {
                return Some(Run::of(*pid, stat.start(), &entry));
            }
            if *name == NEXTEST && (is_orphan || giver.is_some()) {
                return Some(Run::lost());
            }
        }
        // What is below a watcher is started by it again and again, for hours. Each time is a run of its own.
        let (pid, stat) = ancestors
            .iter()
            .take_while(|(_, stat)| stat.comm != "cargo-watch")
            .find(|(_, stat)| is_cargo(stat))?;
        Some(Run::of(*pid, stat.start(), "cargo"))
    }

    fn of(runner: u32, started: u64, id: &str) -> Run {
        Run {
            dir: runs_base().join(format!("run-{runner}-{started}-{:016x}", hash(0, id))),
            runner,
            started,
        }
    }

    /// A run whose runner is gone.
    fn lost() -> Run {
        Run {
            dir: PathBuf::new(),
            runner: 0,
            started: 0,
        }
    }

    /// The directory of this run, and its runner; of a process that belongs to none, one of its own, which is swept as a run's is.
    pub(crate) fn dir_or_own(run: Option<&Run>) -> (PathBuf, u32) {
        match run {
            Some(run) => (run.dir.clone(), run.runner),
            None => {
                let (pid, started) = service_dir::this_process();
                (Run::of(pid, started, "alone").dir, pid)
            }
        }
    }

    /// The runner's process id and start time.
    pub(crate) fn runner(&self) -> (u32, u64) {
        (self.runner, self.started)
    }

    /// The place in this run for a service: known by its recipe, by the type that made the recipe, and by the name of its
    /// fixture.
    ///
    /// # Errors
    ///
    /// [`Error::System`] when the run's directory is not to be had, or the runner has ended: whatever is left of the run then must
    /// not start anything more.
    pub fn slot<R: Readiness>(
        &self,
        name: &str,
        kind: &str,
        recipe: &ExecutorBuilder<R>,
    ) -> Result<RunSlot, Error> {
        let text = key_text(name, kind, recipe);
        let key = format!("{:016x}{:016x}", hash(0, &text), hash(1, &text));
        let slot = RunSlot {
            published: self.dir.join(format!("{key}.state")),
            lock: self.dir.join(format!("{key}.lock")),
            dir: self.dir.clone(),
            runner: self.runner,
            runner_started: self.started,
        };
        slot.check_runner().map_err(|source| slot.error(source))?;
        slot.make_dir().map_err(|source| slot.error(source))?;
        Ok(slot)
    }
}

/// Whether the run that this process is a part of is over: what its services leave behind goes with them.
pub(crate) fn is_over() -> bool {
    Run::current().is_some_and(|run| !service_dir::is_alive(run.runner, run.started))
}

const SESSION: &str = "MIRAKURU_SESSION_ID";
const NEXTEST: &str = "NEXTEST_RUN_ID";

/// `cargo`, and what calls itself like it and runs test binaries without it: `cargo-nextest`, `cargo-tarpaulin`.
fn is_cargo(stat: &Stat) -> bool {
    stat.comm == "cargo" || stat.comm.starts_with("cargo-")
}

/// Where the runs' directories are: where a system has a place for what belongs to a user and to no longer than a session, there;
/// otherwise in the temp dir. (A service's own directory is always in the temp dir: a database may be larger than the
/// memory that the first is made of.)
pub(crate) fn runs_base() -> PathBuf {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let ours = |dir: &PathBuf| {
        let metadata = fs::metadata(dir);
        // After `sudo` it may be another user's.
        dir.is_absolute()
            && metadata.is_ok_and(|m| m.is_dir() && m.uid() == sys::euid() && m.mode() & 0o077 == 0)
    };
    service_dir::base_in(&runtime.filter(ours).unwrap_or_else(std::env::temp_dir))
}

/// The runner in the name of a run's directory: its process id and start time.
pub(crate) fn runner_of(dir: &str) -> Option<(u32, u64)> {
    let mut parts = dir.strip_prefix("run-")?.split('-');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Whether somebody still uses a run's directory although its runner is not to be seen here: in another container, say.
pub(crate) fn is_in_use(dir: &Path) -> bool {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .any(|path| match path.extension() {
            // Kept by those who start a service, and by its supervisor from then on.
            Some(kind) if kind == "lock" => sys::files::open_lock(&path, false)
                .is_ok_and(|lock| matches!(sys::files::is_locked(lock.as_fd()), Ok(true))),
            _ => false,
        })
}

/// This process, for people: `tests-1f3a (pid 812)`.
pub(crate) fn this_process() -> String {
    let path = std::env::current_exe().ok();
    let name = path.as_deref().and_then(Path::file_name).unwrap_or_default();
    format!("{} (pid {})", name.to_string_lossy(), std::process::id())
}

/// Whether a process was given this variable, with this value, when it began; `None` when that is not to be seen.
fn carries(pid: u32, entry: &[u8]) -> Option<bool> {
    let environ = sys::procfs::environment(pid)?;
    Some(environ.split(|b| *b == 0).any(|e| e == entry))
}

/// All that makes two services the same one. Ports and directories that are chosen at the start are still placeholders here.
fn key_text<R: Readiness>(name: &str, kind: &str, recipe: &ExecutorBuilder<R>) -> String {
    let mut text = format!(
        "{name}\n{}\n{}\n{:?}\n{}\n{:?}\n",
        without_paths(kind),
        without_paths(std::any::type_name::<R>()),
        recipe.spec,
        recipe.readiness.describe(),
        std::env::current_dir().ok(),
    );
    // A file is the same one whatever number it has in this process.
    while let Some((before, after)) = text.split_once("File { fd: ") {
        let after = after.trim_start_matches(|c: char| c.is_ascii_digit());
        text = format!("{before}File {{ {after}");
    }
    // What `{env:VAR}` stands for is a part of the recipe.
    let variables: Vec<String> = text
        .split("{env:")
        .skip(1)
        .filter_map(|rest| rest.split_once('}'))
        .map(|(variable, _)| format!("{variable}={:?}\n", std::env::var_os(variable)))
        .collect();
    text.extend(variables);
    text
}

/// The name of a type without those of its modules: what is in a file that many test binaries include is in another crate in each.
fn without_paths(name: &str) -> String {
    let mut short = String::new();
    let mut word = String::new();
    for char in name.chars() {
        match char {
            ':' => word.clear(),
            char if char.is_alphanumeric() || char == '_' => word.push(char),
            char => {
                short.push_str(&word);
                word.clear();
                short.push(char);
            }
        }
    }
    short + &word
}

/// The same in every build, unlike the standard library's hashes.
#[must_use]
pub fn hash(seed: u8, text: &str) -> u64 {
    let mut hash = Fnv1a(0xcbf2_9ce4_8422_2325);
    hash.write(&[seed]);
    hash.write(text.as_bytes());
    hash.finish()
}

/// The place of one service in a run.
#[doc(hidden)]
#[derive(Debug)]
pub struct RunSlot {
    dir: PathBuf,
    published: PathBuf,
    lock: PathBuf,
    runner: u32,
    runner_started: u64,
}

/// What is in a berth.
#[doc(hidden)]
#[derive(Debug)]
pub enum SlotState<R> {
    /// A service that runs.
    Running(Box<Executor<R>>),
    /// Nothing: the caller is the one to start it, by the recipe that it gave.
    Vacant(StartPermit, Box<ExecutorBuilder<R>>),
}

/// The right to start the service of a berth, given up when dropped.
#[doc(hidden)]
#[derive(Debug)]
pub struct StartPermit {
    slot: RunSlot,
    lock: File,
}

impl RunSlot {
    /// Attaches to the service, or gives the right to start it. While another process is starting it, waits.
    ///
    /// # Errors
    ///
    /// [`Error::FailedBefore`] when it could not be started in this run; [`Error::Died`] when it has ended; [`Error::System`]
    /// when the run's files cannot be used, or the runner has ended.
    pub fn enter<R: Readiness>(self, recipe: ExecutorBuilder<R>) -> Result<SlotState<R>, Error> {
        let asked = timeline_now();
        let allowed = recipe.spec.timeout.saturating_add(recipe.spec.stop_timeout);
        let patience = PATIENCE.saturating_add(scaled(allowed));
        let mut pauses = Pauses::new();
        loop {
            if let Some(state) = State::read(&self.published).map_err(|e| self.error(e))? {
                return self.attach(recipe, state, asked);
            }
            if let Some(lock) = self.try_lock().map_err(|e| self.error(e))? {
                let permit = StartPermit { slot: self, lock };
                return permit.endpoint(recipe, asked);
            }
            // Those who are left of a run that was killed are not to wait for each other.
            self.check_runner().map_err(|e| self.error(e))?;
            if pauses.elapsed() > patience {
                return Err(self.error(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!(
                        "another process has been starting it for {} s",
                        patience.as_secs()
                    ),
                )));
            }
            pauses.sleep(Duration::MAX);
        }
    }

    fn attach<R: Readiness>(
        &self,
        recipe: ExecutorBuilder<R>,
        state: State,
        asked: Option<u64>,
    ) -> Result<SlotState<R>, Error> {
        match Executor::attach(recipe, state, self.published.clone()) {
            Ok(executor) => {
                executor.note_attached(asked);
                Ok(SlotState::Running(Box::new(executor)))
            }
            // That it is gone is news only while the run goes on.
            Err(error) => Err(self.check_runner().map_or_else(|e| self.error(e), |()| error)),
        }
    }

    fn error(&self, source: io::Error) -> Error {
        Error::System {
            attempt: "use a service of this run of tests".to_owned(),
            source,
        }
    }

    /// An error when the runner has ended. Its services do as well then, and who comes late must not start them again.
    fn check_runner(&self) -> io::Result<()> {
        if service_dir::is_alive(self.runner, self.runner_started) {
            return Ok(());
        }
        let runner = match self.runner {
            0 => "the runner".to_owned(),
            pid => format!("the runner (pid {pid})"),
        };
        Err(io::Error::other(format!(
            "{runner} has ended, and the services of the run with it"
        )))
    }

    fn make_dir(&self) -> io::Result<()> {
        for dir in [self.dir.parent().unwrap_or(Path::new("/")), &self.dir] {
            service_dir::private_dir(dir, false)
                .map_err(|e| io::Error::new(e.kind(), format!("`{}`: {e}", dir.display())))?;
        }
        Ok(())
    }

    fn try_lock(&self) -> io::Result<Option<File>> {
        let lock = match sys::files::open_lock(&self.lock, true) {
            // Somebody has removed the directory. If the runner has ended, that is told when the lock is ours.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.make_dir()?;
                sys::files::open_lock(&self.lock, true)
            }
            opened => opened,
        };
        let lock = lock.map_err(|e| io::Error::new(e.kind(), format!("`{}`: {e}", self.lock.display())))?;
        if !sys::files::try_flock(lock.as_fd())? {
            return Ok(None);
        }
        // It may be a file that was removed meanwhile: then others lock a new one.
        let is_it = service_dir::is_at(&lock, &self.lock)?;
        Ok(is_it.then_some(lock))
    }

    fn staged(&self) -> PathBuf {
        let (pid, started) = service_dir::this_process();
        self.published.with_extension(format!("new-{pid}-{started}"))
    }
}

impl StartPermit {
    /// With the lock taken: is it really vacant?
    fn endpoint<R: Readiness>(
        self,
        recipe: ExecutorBuilder<R>,
        asked: Option<u64>,
    ) -> Result<SlotState<R>, Error> {
        if let Err(error) = self.slot.check_runner() {
            // Nobody is left who would remove this.
            let _ = fs::remove_file(&self.slot.lock);
            let _ = fs::remove_dir(&self.slot.dir);
            return Err(self.slot.error(error));
        }
        // It may have been published between the look and the lock.
        match State::read(&self.slot.published).map_err(|e| self.slot.error(e))? {
            None => Ok(SlotState::Vacant(self, Box::new(recipe))),
            Some(state) => self.slot.attach(recipe, state, asked),
        }
    }

    /// What the supervisor needs to make the service the run's.
    fn plan(&self) -> io::Result<sys::RunPlan> {
        let slot = &self.slot;
        let runner = sys::pidfd(slot.runner);
        // In this order: what the descriptor refers to is the runner if that is still alive now.
        slot.check_runner()?;
        let c_string = |path: &Path| Ok::<_, io::Error>(CString::new(path.as_os_str().as_bytes())?);
        Ok(sys::RunPlan {
            runner: runner?,
            start_lock: self.lock.try_clone()?.into(),
            staged: c_string(&slot.staged())?,
            published: c_string(&slot.published)?,
            dir: c_string(&slot.dir)?,
        })
    }

    /// Makes the executor that is to be started. Until it is [published](StartPermit::publish) it is this process's own.
    ///
    /// # Errors
    ///
    /// Those of [`ExecutorBuilder::build`]; [`Error::System`] when the runner has ended.
    pub fn build<R: Readiness>(&self, recipe: ExecutorBuilder<R>) -> Result<Executor<R>, Error> {
        let plan = self.plan().map_err(|source| self.slot.error(source))?;
        let mut executor = recipe.build()?;
        executor.for_run(plan);
        Ok(executor)
    }

    /// Makes a service that has been started and set up the run's.
    ///
    /// # Errors
    ///
    /// [`Error::System`] when that fails, [`Error::Exited`] when it has ended meanwhile. It is still the caller's then.
    pub fn publish<R: Readiness>(&self, executor: &mut Executor<R>) -> Result<(), Error> {
        let state = executor.state();
        let staged = self.slot.staged();
        let result = match state.write(&staged) {
            Ok(()) => executor.publish(state, self.slot.published.clone()),
            Err(source) => Err(self.slot.error(source)),
        };
        if result.is_err() {
            let _ = fs::remove_file(&staged);
        }
        result
    }

    /// Lets all others know that the service cannot be started, so that they fail at once.
    pub fn failed(self, error: &Error) {
        // That the runner has ended is no failure of the service, and nobody would remove the report.
        if self.slot.check_runner().is_err() {
            return;
        }
        let state = State {
            failed: Some(error.to_string()),
            process: this_process(),
            ..State::default()
        };
        let staged = self.slot.staged();
        // Not being able to tell means that others try as well.
        let _ = state
            .write(&staged)
            .and_then(|()| fs::rename(&staged, &self.slot.published));
    }
}

/// What is published of a service. In the file: `key=value` entries, each with a zero byte at its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// The report of a start that failed. Then there is nothing else but the process.
    pub(crate) failed: Option<String>,
    /// Who started it, for people.
    pub(crate) process: String,
    pub(crate) pid: u32,
    pub(crate) supervisor: u32,
    pub(crate) service_dir: PathBuf,
    pub(crate) ports: Vec<(String, u16)>,
    pub(crate) addr: Option<SocketAddr>,
    pub(crate) url: Option<String>,
    pub(crate) path: Option<PathBuf>,
    /// What its readiness condition added to its environment.
    pub(crate) env: Vec<(String, String)>,
    /// How its main process ended, and whether it left descendants behind.
    pub(crate) exit: Option<(ExitStatus, bool)>,
}

impl State {
    /// `None` when nothing is published. Half a file cannot be: it is renamed into place, and what is appended later is one
    /// write.
    pub(crate) fn read(path: &Path) -> io::Result<Option<State>> {
        let mut bytes = Vec::new();
        let file = fs::OpenOptions::new()
            .read(true)
            .custom_flags(sys::files::NO_FOLLOW)
            .open(path);
        match file.and_then(|file| file.take(1 << 20).read_to_end(&mut bytes)) {
            Ok(_) => Ok(Some(State::parse(&bytes))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn parse(bytes: &[u8]) -> State {
        let mut state = State::default();
        for entry in bytes.split(|byte| *byte == 0) {
            let Some(at) = entry.iter().position(|byte| *byte == b'=') else {
                continue;
            };
            let (key, value) = (&entry[..at], &entry[at + 1..]);
            let text = String::from_utf8_lossy(value);
            let path = || PathBuf::from(std::ffi::OsString::from_vec(value.to_vec()));
            match key {
                b"failed" => state.failed = Some(text.into_owned()),
                b"process" => state.process = text.into_owned(),
                b"pid" => state.pid = text.parse().unwrap_or(0),
                b"supervisor" => state.supervisor = text.parse().unwrap_or(0),
                b"home" => state.service_dir = path(),
                b"port" => {
                    if let Some((port, name)) = text.split_once(' ') {
                        state
                            .ports
                            .extend(port.parse().ok().map(|port| (name.to_owned(), port)));
                    }
                }
                b"addr" => state.addr = text.parse().ok(),
                b"url" => state.url = Some(text.into_owned()),
                b"path" => state.path = Some(path()),
                b"env" => {
                    if let Some((key, value)) = text.split_once('=') {
                        state.env.push((key.to_owned(), value.to_owned()));
                    }
                }
                // Written by the supervisor: `STATUS,LEFT,NS`.
                b"exit" => {
                    let mut numbers = text.split(',').map(str::parse::<i64>);
                    if let (Some(Ok(status)), Some(Ok(left))) = (numbers.next(), numbers.next()) {
                        state.exit = Some((ExitStatus::from_raw(status as i32), left != 0));
                    }
                }
                _ => {}
            }
        }
        state
    }

    fn format(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut put = |key: &str, value: &[u8]| {
            bytes.extend_from_slice(key.as_bytes());
            bytes.push(b'=');
            bytes.extend(value.iter().copied().filter(|byte| *byte != 0));
            bytes.push(0);
        };
        if let Some(report) = &self.failed {
            put("failed", report.as_bytes());
        }
        put("process", self.process.as_bytes());
        put("pid", self.pid.to_string().as_bytes());
        put("supervisor", self.supervisor.to_string().as_bytes());
        put("home", self.service_dir.as_os_str().as_bytes());
        for (name, port) in &self.ports {
            put("port", format!("{port} {name}").as_bytes());
        }
        if let Some(addr) = self.addr {
            put("addr", addr.to_string().as_bytes());
        }
        if let Some(url) = &self.url {
            put("url", url.as_bytes());
        }
        if let Some(path) = &self.path {
            put("path", path.as_os_str().as_bytes());
        }
        for (key, value) in &self.env {
            put("env", format!("{key}={value}").as_bytes());
        }
        bytes
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        let mut options = fs::OpenOptions::new();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(sys::files::NO_FOLLOW)
            .open(path)?;
        file.write_all(&self.format())
    }

    /// Whether the service is there: its supervisor is, and its main process has not ended (or was not to stay).
    pub(crate) fn is_running(&self) -> bool {
        let main_has_ended = match self.exit {
            // Perhaps not recorded yet.
            None => !sys::files::process_lives(self.pid),
            Some((status, left)) => !(left && status.success()),
        };
        !main_has_ended && ServiceDir::is_supervised(&self.service_dir)
    }

    /// A service that has just ended may not have its end recorded yet: waits for that, a moment. Its supervisor does it within
    /// microseconds, unless it was killed as well.
    pub(crate) fn settle(self, path: &Path) -> State {
        let began = Instant::now();
        let mut state = self;
        while state.failed.is_none()
            && state.exit.is_none()
            && !sys::files::process_lives(state.pid)
            && ServiceDir::is_supervised(&state.service_dir)
            && began.elapsed() < RECORDED_WITHIN
        {
            thread::sleep(Duration::from_micros(200));
            match State::read(path) {
                Ok(Some(now)) => state = now,
                _ => break,
            }
        }
        state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A chain of processes, the test process first: pid, name, session.
    fn chain(chain: &[(u32, &str, u32)]) -> Vec<(u32, Stat)> {
        chain
            .iter()
            .map(|(pid, comm, session)| (*pid, Stat::named(comm, *session, u64::from(*pid) * 100)))
            .collect()
    }

    /// Who is the runner: 0 when it is gone.
    fn runner(
        variables: &[&'static str],
        processes: &[(u32, &str, u32)],
        carriers: &[u32],
        unreadable: &[u32],
    ) -> Option<u32> {
        let variables: Vec<(&str, String)> = variables.iter().map(|name| (*name, "x".to_owned())).collect();
        let carries = |pid: u32, entry: &[u8]| {
            assert!(entry.ends_with(b"=x"));
            (!unreadable.contains(&pid)).then(|| carriers.contains(&pid))
        };
        Run::find(&variables, &chain(processes), false, carries).map(|run| run.runner)
    }

    #[test]
    fn of_an_orphan_the_ancestors_say_nothing() {
        let adopted = chain(&[(40, "tests", 9), (20, "cargo", 9), (10, "bash", 9)]);
        let variable = |name| [(name, "x".to_owned())];
        let find = |variables: &[(&str, String)]| {
            Run::find(variables, &adopted, true, |_, _| Some(false)).map(|run| run.runner)
        };
        assert_eq!(find(&variable(NEXTEST)), Some(0), "its run is over");
        assert_eq!(find(&variable(SESSION)), None);
        assert_eq!(find(&[]), None);
    }

    #[test]
    fn cargo_is_the_runner_whatever_is_between() {
        let cargo = |processes: &[(u32, &str, u32)]| runner(&[], processes, &[], &[]);
        let test = (40, "tests-1f3a", 9);
        assert_eq!(
            cargo(&[test, (30, "cargo", 9), (20, "bash", 9), (1, "init", 1)]),
            Some(30)
        );
        assert_eq!(
            cargo(&[test, (35, "sudo", 9), (30, "cargo", 9), (20, "cargo-llvm-cov", 9)]),
            Some(30)
        );
        assert_eq!(cargo(&[test, (20, "cargo-tarpaulin", 9)]), Some(20));
        assert_eq!(
            cargo(&[
                (40, "tests", 38),
                (38, "sudo", 38),
                (36, "sudo", 9),
                (30, "cargo", 9)
            ]),
            Some(30),
            "sudo gives it a session of its own"
        );
        assert_eq!(
            cargo(&[test, (20, "bash", 9), (1, "init", 1)]),
            None,
            "a binary that is run by itself"
        );
        assert_eq!(
            cargo(&[test, (30, "sh", 9), (20, "cargo-watch", 9), (10, "cargo", 9)]),
            None,
            "one that is run by itself, again and again"
        );
        assert_eq!(cargo(&[test, (30, "cargo", 9), (20, "cargo-watch", 9)]), Some(30));
        assert_eq!(
            cargo(&[(40, "tests", 1), (1, "cargo", 1)]),
            Some(1),
            "a container whose first process is cargo"
        );
        assert_eq!(
            cargo(&[test, (20, "cargo-adopts", 5)]),
            None,
            "an orphan that something in another session has taken in"
        );
    }

    #[test]
    fn whoever_gave_the_variable_is_the_runner() {
        let processes = [
            (50, "tests-1f3a", 9),
            (40, "sh", 9),
            (30, "cargo-nextest", 9),
            (20, "cargo", 9),
            (1, "init", 1),
        ];
        let nextest =
            |processes: &[(u32, &str, u32)], carriers: &[u32]| runner(&[NEXTEST], processes, carriers, &[]);
        assert_eq!(nextest(&processes, &[40]), Some(30), "a wrapper passes it on");
        assert_eq!(
            nextest(
                &[
                    (50, "tests", 9),
                    (45, "cargo", 9),
                    (40, "outer", 9),
                    (30, "cargo-nextest", 9)
                ],
                &[45, 40]
            ),
            Some(45),
            "a test under nextest that runs `cargo test`"
        );
        assert_eq!(
            runner(&[SESSION, NEXTEST], &processes, &[40, 30], &[]),
            Some(20),
            "the session goes first, and has its own giver"
        );
        assert_eq!(
            runner(&[NEXTEST], &processes, &[], &[40, 30, 20]),
            Some(30),
            "tests run as another user, who sees nobody's variables"
        );
        assert_eq!(
            runner(
                &[SESSION],
                &[(50, "tests", 1), (40, "cargo", 1), (1, "sh", 1)],
                &[40, 1],
                &[]
            ),
            Some(40),
            "a container that was given it: nobody can be seen to have, so it is cargo"
        );
    }

    /// Nobody's parents can be seen, so a shared service is its process's own.
    #[test]
    #[cfg(mirakuru_portable)]
    fn there_are_no_runs_without_a_look_at_other_processes() {
        assert!(Run::current().is_none());
    }

    #[test]
    fn an_orphan_is_no_part_of_what_adopted_it() {
        let nextest = |processes: &[(u32, &str, u32)]| runner(&[NEXTEST], processes, &[], &[]);
        let test = (50, "tests", 9);
        assert_eq!(nextest(&[test, (1, "init", 1)]), Some(0));
        assert_eq!(nextest(&[test, (12, "systemd", 12), (1, "systemd", 1)]), Some(0));
        assert_eq!(
            nextest(&[(50, "tests", 1), (1, "bash", 1)]),
            Some(0),
            "in a container the first process may be in the same session"
        );
        assert_eq!(
            nextest(&[(50, "tests", 50), (12, "cargo-nextest", 9)]),
            Some(12),
            "a session of its own"
        );
    }

    #[test]
    fn the_directory_names_the_runner() {
        let run = Run::of(30, 3000, "cargo");
        let name = run
            .dir
            .file_name()
            .and_then(|name| name.to_str())
            .expect("it is text");
        assert_eq!(runner_of(name), Some((30, 3000)));
        assert_eq!(runner_of("abcdefghijkl"), None);
        assert_eq!(runner_of("run-x-1-2"), None);
        assert_ne!(run.dir, Run::of(30, 3000, "NEXTEST_RUN_ID=x").dir);
    }

    #[test]
    fn the_state_survives_the_file() {
        let state = State {
            failed: None,
            process: "tests-1 (pid 8)".to_owned(),
            pid: 9,
            supervisor: 10,
            service_dir: PathBuf::from("/tmp/a b=c"),
            ports: vec![(String::new(), 4000), ("admin port".to_owned(), 4001)],
            addr: "[::1]:4000".parse().ok(),
            url: Some("http://localhost:4000/?a=b".to_owned()),
            path: Some(PathBuf::from("/tmp/x=y")),
            env: vec![("NOTIFY_SOCKET".to_owned(), "/tmp/a=b".to_owned())],
            exit: None,
        };
        assert_eq!(State::parse(&state.format()), state);
        let mut bytes = state.format();
        bytes.extend_from_slice(b"exit=256,0,77\0");
        let exit = State::parse(&bytes).exit.expect("it is there");
        assert_eq!((exit.0.code(), exit.1), (Some(1), false));
        let failed = State {
            failed: Some("a\nb".to_owned()),
            ..State::default()
        };
        assert_eq!(State::parse(&failed.format()), failed);
    }

    #[test]
    fn the_key_is_the_recipe_and_the_name() {
        let key = |name: &str, recipe: &ExecutorBuilder<crate::readiness::no_wait::NoWait>| {
            key_text(name, "", recipe)
        };
        let recipe = || Executor::builder("server --port {port}");
        assert_eq!(key("A", &recipe()), key("A", &recipe()));
        assert_ne!(key("A", &recipe()), key("B", &recipe()));
        assert_ne!(key("A", &recipe()), key("A", &recipe().arg("-v")));
        assert_ne!(key("A", &recipe()), key("A", &recipe().env("X", "1")));
        assert_ne!(key("A", &recipe()), key_text("A", "presets::Server", &recipe()));
        let with_path = key("A", &recipe().arg("{env:PATH}"));
        assert!(with_path.contains("PATH=Some("), "{with_path}");
        let file = || File::open("/dev/null").expect("it is always there");
        let (one, other) = (file(), file());
        assert_eq!(key("A", &recipe().stdin(one)), key("A", &recipe().stdin(other)));
        let other = File::open("/dev/zero").expect("it is always there");
        assert_ne!(
            key("A", &recipe().stdin(file())),
            key("A", &recipe().stdin(other))
        );
    }

    #[test]
    fn types_are_known_without_their_crates() {
        assert_eq!(
            without_paths("core::And<first::common::Ready, core::Tcp>"),
            without_paths("core::And<second::common::Ready, core::Tcp>")
        );
        assert_eq!(without_paths("a::B<(c::D, &[e::F; 3])>"), "B<(D, &[F; 3])>");
        assert_eq!(without_paths("fn(a::b::C) -> u8"), "fn(C) -> u8");
    }
}
