//! A service shared by a whole test run: one process starts and publishes it, and the others attach
//! to it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::error::Error;
use crate::error::secrets::Unmasked;
use crate::executor::Executor;
use crate::executor::process::{Core, Observed, Owned, Process, name};
use crate::executor::wait::{Pause, UNTOLD_PAUSE};
use crate::outcome::shared_use::{self, HowItEnded};
use crate::output::reader::OutputReader;
use crate::ports::lock::EndpointLock;
use crate::ports::values::Values;
use crate::readiness::Readiness;
use crate::recipe::builder::{ExecutorBuilder, Spec};
use crate::run::state::State;
use crate::service_dir::ServiceDir;
use crate::sys::{self, Exit, User};
use crate::timeline::events as timeline;
use crate::util::wakeup::Wakeup;

/// A service that belongs to the test run. This process cannot stop it.
pub(super) struct Attached {
    state: State,
    published: PathBuf,
    /// Registers this process as a user of a service that ends with its last user. `None` for other
    /// services.
    user: Option<User>,
    /// The lock on the endpoints, if this process started the service. A test of this process that
    /// needs the same endpoints finds this lock and fails, instead of waiting for ever.
    _endpoint_lock: Option<Arc<Mutex<EndpointLock>>>,
}

impl Attached {
    pub(super) fn addr(&self) -> Option<SocketAddr> {
        self.state.addr
    }

    pub(super) fn url(&self) -> Option<&str> {
        self.state.url.as_deref()
    }

    pub(super) fn path(&self) -> Option<&Path> {
        self.state.path.as_deref()
    }

    /// Reads the published state, which changes when the service ends, and disappears when the run
    /// ends.
    fn now(&self) -> Option<State> {
        match self.user {
            Some(_) => self.state.now_for_user(&self.published),
            None => State::read(&self.published).ok().flatten(),
        }
    }
}

impl Observed for Attached {
    fn supervisor(&self) -> u32 {
        self.state.supervisor
    }

    fn is_running(&self) -> bool {
        self.now().is_some_and(|state| state.is_running())
    }

    fn ended(&self) -> Option<Option<Exit>> {
        match self.now() {
            Some(state) if state.is_running() => None,
            Some(state) => Some(state.settle(&self.published).exit),
            None => Some(None),
        }
    }

    fn exit(&self) -> Option<Exit> {
        self.now().and_then(|state| state.exit)
    }

    fn arm_output(&mut self) {}

    fn forget_output(&mut self) {}

    fn sync_output(&self) {}

    fn wait_event(&mut self, pause: &Pause) {
        sys::wait_readable(&pause.events, pause.time.min(UNTOLD_PAUSE));
    }

    fn wakeup(&self, pause: Pause) -> Wakeup {
        Wakeup::new(pause.time.min(UNTOLD_PAUSE), pause.events)
    }

    fn addrs(&self) -> &[SocketAddr] {
        &[]
    }

    fn started_ns(&self) -> Option<u64> {
        None
    }
}

/// Returns a function that, when called later, tells how the service's main process ended.
fn how_it_ended(published: PathBuf) -> HowItEnded {
    Box::new(move || State::read(&published).ok().flatten()?.settle(&published).exit)
}

impl<R: Readiness> Executor<R> {
    /// Attaches to a service of the run that another process has started. `asked` is the time at
    /// which this process began to wait for it, and is used for the timeline.
    ///
    /// # Errors
    ///
    /// [`Error::FailedBefore`] if the service failed to start; [`Error::Died`] if it has ended.
    pub(crate) fn attach(
        recipe: ExecutorBuilder<R>,
        state: State,
        published: PathBuf,
        user: Option<User>,
        asked: Option<u64>,
    ) -> Result<Executor<R>, Error> {
        let ExecutorBuilder { spec, readiness } = recipe;
        let (core, attached) = attach(spec, &readiness, state, published, user)?;
        timeline::attached(asked, core.service_dir.id(), core.values.name(), &core.command);
        Ok(Executor {
            core,
            process: Process::Attached(Box::new(attached)),
            readiness,
        })
    }

    /// The state with which other processes can attach to the service.
    pub(crate) fn state(&self) -> State {
        state(&self.core, &self.process, &self.readiness)
    }

    /// Hands a running service over to the run, and makes this executor an attached one.
    ///
    /// # Errors
    ///
    /// [`Error::Exited`] if the service has ended; [`Error::System`] if it cannot be published. In
    /// both cases the service still belongs to this process.
    pub(crate) fn publish(
        &mut self,
        state: State,
        published: PathBuf,
        user: &mut Option<User>,
    ) -> Result<(), Error> {
        let done = publish(&mut self.core, &mut self.process, state, published, user);
        self.core.masked(done)
    }
}

// These functions are not generic over the readiness, so that they are compiled only once.

fn attach(
    spec: Spec,
    readiness: &dyn Readiness,
    state: State,
    published: PathBuf,
    user: Option<User>,
) -> Result<(Core, Attached), Error> {
    if let Some(report) = state.failed {
        return Err(Error::FailedBefore {
            report,
            process: state.process,
        });
    }
    let (state, is_running) = match state.is_running() {
        true => (state, true),
        false => {
            let state = state.settle(&published);
            let is_running = state.is_running();
            (state, is_running)
        }
    };
    let service_dir = ServiceDir::attach(state.service_dir.clone());
    let mut values = Values::known(name(&spec), service_dir.dir().to_owned(), state.ports.clone());
    values.hide_secrets_of(&spec.env);
    let (log, index) = (service_dir.log(), service_dir.index());
    let output = match OutputReader::open(&log, &index) {
        Ok(output) => output,
        // The supervisor was killed, and another test process has since swept up its directory.
        Err(_) if !is_running => {
            let died = Error::Died {
                command: spec.command.display(),
                status: state.exit.map(|exit| exit.status),
                evidence: Box::default(),
            };
            return Err(values.mask_error(died.into()));
        }
        Err(source) => {
            return Err(Error::system(
                format!("read the log of the run's service `{}`", log.display()),
                source,
            ));
        }
    };
    let mut core = Core::with(spec, service_dir, values, output);
    core.readiness_env = state.env.clone();
    core.captured = state.captured.clone();
    core.pid = state.pid;
    let attached_at = (state.addr, state.path.as_deref());
    let resolved = core.resolve_command();
    core.masked(resolved)?;
    core.note_for_others(attached_at.0, attached_at.1);
    let addrs: Vec<SocketAddr> = state.addr.into_iter().collect();
    let paths: Vec<PathBuf> = state.path.iter().cloned().collect();
    let description = core.description_if_kept(&addrs, &paths);
    core.note_start(how_it_ended(published.clone()), description);
    note_published(&core, &published, user.is_some());
    core.show_live(false);
    let attached = Attached {
        state,
        published,
        user,
        _endpoint_lock: None,
    };
    if !is_running {
        let died = core.exit_error(&attached, readiness, None);
        core.masked(Err(died.unwrap_or_else(|| core.not_running("attach to it"))))?;
    }
    Ok((core, attached))
}

/// If a shared fixture is being set up, records that its service now belongs to the run.
fn note_published(core: &Core, published: &Path, ends_with_users: bool) {
    let how_it_ended = how_it_ended(published.to_owned());
    shared_use::published(&core.service_dir.log(), how_it_ended, ends_with_users);
}

fn state(core: &Core, process: &Process, readiness: &dyn Readiness) -> State {
    State {
        failed: None,
        process: crate::run::this_process(),
        pid: core.pid,
        supervisor: process.observed().supervisor(),
        service_dir: core.service_dir.path().to_owned(),
        ports: core.values.owned_ports(),
        addr: process.addr(core, readiness),
        url: readiness.url().map(str::to_owned),
        path: readiness.path().map(Path::to_owned),
        env: core.readiness_env.clone(),
        captured: core.captured.clone(),
        exit: None,
    }
}

fn publish(
    core: &mut Core,
    process: &mut Process,
    state: State,
    published: PathBuf,
    user: &mut Option<User>,
) -> Result<(), Unmasked> {
    let Owned { core, own } = process.owned(core, "share")?;
    if let Some(endpoint_lock) = &own.endpoint_lock {
        endpoint_lock
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .for_run();
    }
    let published_by = match own.lock().as_mut() {
        Some(service) => service.publish(),
        None => return Err(core.not_running("share it")),
    };
    if let Err(source) = published_by {
        if let Some(Some(exit)) = own.ended() {
            return Err(Error::Exited {
                command: core.command.clone(),
                awaited: "other test processes could attach to it".to_owned(),
                elapsed: Duration::from_nanos(exit.at.saturating_sub(own.started_ns)),
                status: exit.status,
                evidence: core.evidence(own, None),
            }
            .into());
        }
        return Err(Error::system("share the service with the run", source).into());
    }
    timeline::published(core.service_dir.id());
    core.service_dir.give_away();
    note_published(core, &published, user.is_some());
    let _endpoint_lock = own.endpoint_lock.take();
    *process = Process::Attached(Box::new(Attached {
        state,
        published,
        user: user.take(),
        _endpoint_lock,
    }));
    Ok(())
}
