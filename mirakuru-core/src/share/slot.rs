//! The slot of a service in a run: empty, being filled, or published.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::Error;
use crate::executor::Executor;
use crate::ports::identity::Identity;
use crate::readiness::Readiness;
use crate::recipe::builder::{ExecutorBuilder, Spec};
use crate::run::state::State;
use crate::run::{Run, make_dir, this_process};
use crate::service_dir;
use crate::share::key::recipe_key;
use crate::sys::{self, User};
use crate::timeline::events::timeline_now;
use crate::util::backoff::Pauses;
use crate::util::deadline::scaled;

/// How long to wait for another process that is starting the service, in addition to the recipe's
/// own limits. Setting up a service may take minutes.
const PATIENCE: Duration = Duration::from_secs(900);

impl Run {
    /// The slot in this run for a service, which is identified by its recipe, the recipe's type and
    /// the fixture's name.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if the run's directory cannot be created, or if the runner has ended. A
    /// process that outlives its runner must not start a service.
    pub fn slot<R: Readiness>(
        &self,
        name: &str,
        kind: &str,
        recipe: &ExecutorBuilder<R>,
    ) -> Result<RunSlot, Error> {
        recipe.spec.command.find_program()?;
        self.slot_of(&recipe_key(name, kind, recipe), &recipe.spec)
    }

    fn slot_of(&self, key: &str, spec: &Spec) -> Result<RunSlot, Error> {
        // A service that ends with its last user has its own directory, which is removed with the
        // service.
        let (dir, prefix) = match self.with_users {
            true => (with_suffix(&self.dir, key), String::new()),
            false => (self.dir.clone(), format!("{key}.")),
        };
        let slot = RunSlot {
            published: dir.join(format!("{prefix}state")),
            lock: dir.join(format!("{prefix}lock")),
            users: self.with_users.then(|| dir.join("users")),
            dir,
            runner: self.runner,
            runner_started: self.started,
            grace: scaled(spec.stop_timeout),
            patience: PATIENCE.saturating_add(scaled(spec.timeout.saturating_add(spec.stop_timeout))),
        };
        slot.check_runner().map_err(|source| slot.error(source))?;
        slot.make_dir().map_err(|source| slot.error(source))?;
        Ok(slot)
    }
}

/// The path of `dir`, with a suffix. Both directories belong to the same run.
fn with_suffix(dir: &Path, suffix: &str) -> PathBuf {
    let mut name = dir.as_os_str().to_owned();
    name.push("-");
    name.push(suffix);
    name.into()
}

/// The slot of a service in a run.
#[doc(hidden)]
#[derive(Debug)]
pub struct RunSlot {
    dir: PathBuf,
    published: PathBuf,
    lock: PathBuf,
    runner: u32,
    runner_started: u64,
    /// The FIFO of the service's users. `None` if the service ends with the run.
    users: Option<PathBuf>,
    /// The longest time that the service may take to end.
    grace: Duration,
    /// The longest time to wait for another process that is starting the service.
    patience: Duration,
}

/// The state of a run slot.
#[doc(hidden)]
#[derive(Debug)]
pub enum SlotState {
    /// The service is running, or has ended since it was published.
    Running(PublishedService),
    /// The slot is empty, so the caller gets the permit to start the service.
    Empty(StartPermit),
}

/// A service that another process has started for the run.
#[doc(hidden)]
#[derive(Debug)]
pub struct PublishedService {
    slot: RunSlot,
    state: Box<State>,
    user: Option<User>,
    /// When this process asked for the service. `None` if no timeline is recorded.
    asked: Option<u64>,
}

/// Permission to start the service of a run slot. Dropping it lets another process start the
/// service.
#[doc(hidden)]
#[derive(Debug)]
pub struct StartPermit {
    slot: RunSlot,
    lock: File,
    user: Option<User>,
}

impl RunSlot {
    /// Finds the service, or returns the permit to start it. Waits if another process is starting
    /// it.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if the run's files cannot be used, or the runner has ended.
    pub fn enter(self) -> Result<SlotState, Error> {
        let asked = timeline_now();
        let mut pauses = Pauses::new();
        loop {
            let mut published = State::read(&self.published).map_err(|e| self.error(e))?;
            let mut user = None;
            if published.is_some() && self.users.is_some() {
                // Become a user before reading the state again: the service does not end while it
                // has a user.
                user = self.join().map_err(|e| self.error(e))?;
                published = State::read(&self.published).map_err(|e| self.error(e))?;
            }
            if let Some(state) = published {
                if user.is_some() || self.users.is_none() {
                    return Ok(self.published(state, user, asked));
                }
                // The old service has ended and a new one has been published: try again.
                continue;
            }
            drop(user);
            if let Some(lock) = self.try_lock().map_err(|e| self.error(e))? {
                let permit = StartPermit {
                    slot: self,
                    lock,
                    user: None,
                };
                return permit.check(asked);
            }
            // Processes that a killed runner has left behind must not wait for each other.
            self.check_runner().map_err(|e| self.error(e))?;
            if pauses.elapsed() > self.patience {
                return Err(self.error(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!(
                        "another process has been starting it for {} s",
                        self.patience.as_secs()
                    ),
                )));
            }
            pauses.sleep(Duration::MAX);
        }
    }

    /// Makes this process a user of a service that ends with its users. Returns `None` if the
    /// service ends with the run instead, or has just ended.
    fn join(&self) -> io::Result<Option<User>> {
        let Some(users) = &self.users else {
            return Ok(None);
        };
        match User::join(users, &self.lock, self.grace) {
            Ok(user) => Ok(Some(user)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn published(self, state: State, user: Option<User>, asked: Option<u64>) -> SlotState {
        SlotState::Running(PublishedService {
            slot: self,
            state: Box::new(state),
            user,
            asked,
        })
    }

    fn error(&self, source: io::Error) -> Error {
        Error::system("use a service of this test run", source)
    }

    /// Fails if the runner has ended. Its services are then stopped as well, and a late process
    /// must not start them again.
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
        let mut tries = if self.users.is_some() { 20 } else { 0 };
        loop {
            match make_dir(&self.dir) {
                // The service has just ended with its last user, and its directory has been
                // removed: try again.
                Err(e) if e.kind() == io::ErrorKind::NotFound && tries > 0 => {
                    tries -= 1;
                    std::thread::sleep(Duration::from_millis(1));
                }
                made => return made,
            }
        }
    }

    fn try_lock(&self) -> io::Result<Option<File>> {
        let lock = match sys::files::open_lock(&self.lock, true) {
            // The directory has been removed. If the runner has ended, the check after the lock
            // reports that.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.make_dir()?;
                match sys::files::open_lock(&self.lock, true) {
                    Err(e) if e.kind() == io::ErrorKind::NotFound && self.users.is_some() => return Ok(None),
                    opened => opened,
                }
            }
            opened => opened,
        };
        let lock = lock.map_err(|e| io::Error::new(e.kind(), format!("`{}`: {e}", self.lock.display())))?;
        if !sys::files::try_flock(lock.as_fd())? {
            return Ok(None);
        }
        // The locked file may have been removed in the meantime, so that other processes lock a new
        // file.
        let is_it = service_dir::base::is_at(&lock, &self.lock)?;
        Ok(is_it.then_some(lock))
    }

    fn staged(&self) -> PathBuf {
        let (pid, started) = service_dir::this_process();
        self.published.with_extension(format!("new-{pid}-{started}"))
    }
}

impl PublishedService {
    /// Attaches to the service.
    ///
    /// # Errors
    ///
    /// [`Error::FailedBefore`] if the start has failed in this run; [`Error::Died`] if the service
    /// has ended; [`Error::System`] if the runner has ended.
    pub fn attach<R: Readiness>(self, recipe: ExecutorBuilder<R>) -> Result<Executor<R>, Error> {
        let slot = self.slot;
        Executor::attach(recipe, *self.state, slot.published.clone(), self.user, self.asked)
            // If the runner has ended, the error says so, because the service has ended with it.
            .map_err(|error| slot.check_runner().map_or_else(|e| slot.error(e), |()| error))
    }
}

impl StartPermit {
    /// Checks that the slot is still empty, now that this process holds the lock.
    fn check(mut self, asked: Option<u64>) -> Result<SlotState, Error> {
        if let Err(error) = self.slot.check_runner() {
            // The process that should have removed this file is gone.
            let _ = fs::remove_file(&self.slot.lock);
            let _ = fs::remove_dir(&self.slot.dir);
            return Err(self.slot.error(error));
        }
        // The service may have been published between the check and the lock.
        match State::read(&self.slot.published).map_err(|e| self.slot.error(e))? {
            None => {
                self.user = self.slot.join().map_err(|e| self.slot.error(e))?;
                Ok(SlotState::Empty(self))
            }
            Some(state) => {
                let user = self.slot.join().map_err(|e| self.slot.error(e))?;
                Ok(self.slot.published(state, user, asked))
            }
        }
    }

    /// The supervisor's plan for handing the service over to the run.
    fn plan(&self) -> io::Result<sys::RunPlan> {
        let slot = &self.slot;
        let runner = match &self.user {
            Some(user) => user.reader(),
            None => sys::pidfd(slot.runner),
        };
        // Checked after the descriptor was opened: if the runner is still alive, the descriptor
        // refers to it, and not to a later process with the same id.
        slot.check_runner()?;
        let c_string = |path: &Path| Ok::<_, io::Error>(CString::new(path.as_os_str().as_bytes())?);
        Ok(sys::RunPlan {
            runner: runner?,
            ends_with_users: self.user.is_some(),
            start_lock: self.lock.try_clone()?.into(),
            staged: c_string(&slot.staged())?,
            published: c_string(&slot.published)?,
            dir: c_string(&slot.dir)?,
        })
    }

    /// Builds the executor of the service, which belongs to this process until it is
    /// [published](StartPermit::publish). Other services may already know the directory and the
    /// ports of `identity`.
    ///
    /// # Errors
    ///
    /// The errors of [`ExecutorBuilder::build`]; [`Error::System`] if the runner has ended.
    pub fn build<R: Readiness>(
        &self,
        recipe: ExecutorBuilder<R>,
        identity: Option<&Identity>,
    ) -> Result<Executor<R>, Error> {
        let plan = self.plan().map_err(|source| self.slot.error(source))?;
        recipe.build_as(identity, Some(plan))
    }

    /// Hands a service over to the run after it has been started and set up.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if the service cannot be published, [`Error::Exited`] if it has ended in
    /// the meantime. In both cases it still belongs to the caller.
    pub fn publish<R: Readiness>(&mut self, executor: &mut Executor<R>) -> Result<(), Error> {
        let state = executor.state();
        let staged = self.slot.staged();
        let result = match state.write(&staged) {
            Ok(()) => executor.publish(state, self.slot.published.clone(), &mut self.user),
            Err(source) => Err(self.slot.error(source)),
        };
        if result.is_err() {
            let _ = fs::remove_file(&staged);
        }
        result
    }

    /// Tells all other processes that the service cannot be started, so that they fail immediately.
    pub fn failed(self, error: &Error) {
        // If the runner has ended, the service did not fail, and no process would remove the
        // report.
        if self.slot.check_runner().is_err() {
            return;
        }
        let state = State {
            failed: Some(error.to_string()),
            process: this_process(),
            ..State::default()
        };
        let staged = self.slot.staged();
        // If the write or the rename fails, other processes also try to start the service.
        let _ = state
            .write(&staged)
            .and_then(|()| fs::rename(&staged, &self.slot.published));
    }
}
