//! The internal state of a service, whether it belongs to this process or is attached.
//!
//! This process starts and stops its [own](Own) services, each through a supervisor. An
//! [attached](Attached) service belongs to the test run. [`Core`] holds the data of both kinds.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::error::Error;
use crate::error::secrets::{Unmasked, is_secret_name, mask_urls};
use crate::executor::attach::Attached;
use crate::executor::needs;
use crate::executor::start::{Failing, Starting};
use crate::executor::wait::{Pause, UNTOLD_PAUSE};
use crate::outcome::shared_use::HowItEnded;
use crate::output::live;
use crate::output::mark::Mark;
use crate::output::reader::OutputReader;
use crate::ports::activation::Listen;
use crate::ports::identity::Identity;
use crate::ports::lock::EndpointLock;
use crate::ports::reserve::Range;
use crate::ports::values::Values;
use crate::readiness::Readiness;
use crate::readiness::context::{Notes, Prepare};
use crate::readiness::line_watch::{LineWatch, expand_pattern};
use crate::recipe::builder::Spec;
use crate::recipe::program::environment;
use crate::service_dir::{self, ServiceDir};
use crate::sys::{self, Exit, RunPlan, Service, TreeSignal};
use crate::util::wakeup::Wakeup;

/// The data that both kinds of service have.
pub(super) struct Core {
    pub(super) spec: Spec,
    pub(super) service_dir: ServiceDir,
    pub(super) values: Values,
    pub(super) argv: Vec<OsString>,
    /// The command, as a person would type it.
    pub(super) command: String,
    /// The recipe's `on_end` command, with placeholders filled in.
    pub(super) on_end: Option<Vec<OsString>>,
    /// The recipe's changes to the environment, with placeholders filled in.
    pub(super) env: Vec<(OsString, Option<OsString>)>,
    /// The environment variables that the readiness condition adds.
    pub(super) readiness_env: Vec<(String, String)>,
    pub(super) current_dir: Option<PathBuf>,
    pub(super) output: Arc<OutputReader>,
    /// Files that the service logs to, with placeholders filled in.
    pub(super) log_files: Vec<PathBuf>,
    /// The position in the logs at which the output of the last start begins.
    pub(super) since: Mark,
    /// Data that readiness conditions have recorded since the last start.
    pub(super) notes: Mutex<Notes>,
    /// The named groups in the lines that a [`Banner`](crate::Banner) waited for.
    pub(super) captured: Vec<(String, String)>,
    pub(super) pid: u32,
    /// The id of the test with which the service ends. 0 if there is no such test.
    pub(super) test: u64,
    /// Whether the service is a node of a cluster.
    pub(super) is_node: bool,
}

/// The two kinds of service: one that this process starts and stops, and one to which it has
/// attached.
pub(super) enum Process {
    Own(Box<Own>),
    Attached(Box<Attached>),
}

/// A service that this process starts and stops.
#[derive(Default)]
pub(super) struct Own {
    /// The failure patterns as given, each with a matcher that every start clones.
    pub(super) fail_on: Vec<(String, LineWatch)>,
    /// The sockets that the service inherits.
    pub(super) listen: Listen,
    /// Files to create in the private directory, and their content with placeholders filled in.
    pub(super) files: Vec<(PathBuf, Vec<u8>)>,
    /// Fixed endpoints that the service needs exclusively.
    pub(super) addrs: Vec<SocketAddr>,
    pub(super) udp_addrs: Vec<SocketAddr>,
    pub(super) paths: Vec<PathBuf>,
    /// The lock on the endpoints, held while the service runs. Fixtures of one test may share it.
    pub(super) endpoint_lock: Option<Arc<Mutex<EndpointLock>>>,
    pub(super) stdin: Option<File>,
    /// The time of the last start on CLOCK_MONOTONIC.
    pub(super) started_ns: u64,
    pub(super) last_exit: Option<Exit>,
    pub(super) paused: bool,
    /// Whether the service has ever been ready. From then on clients know its ports.
    pub(super) was_ready: bool,
    pub(super) starting: Option<Starting>,
    /// A failed start whose service is still ending.
    pub(super) failing: Option<Failing>,
    /// `Some` from the request to stop until a method has waited for the service to end. The value
    /// tells whether the service had already ended by itself.
    pub(super) asked_to_end: Option<bool>,
    /// Private directories of the services that this one needs.
    pub(super) needs: Vec<PathBuf>,
    /// The plan for handing the service over to the run. `None` if this process keeps the service.
    pub(super) run: Option<RunPlan>,
    /// The supervised service, in a mutex because test reports read it as well.
    service: Arc<Mutex<Option<Service>>>,
}

/// Access to a service of this process. This type has the methods that change the service.
pub(super) struct Owned<'a> {
    pub(super) core: &'a mut Core,
    pub(super) own: &'a mut Own,
}

/// The methods that waiting for a service needs, for both kinds of service.
pub(super) trait Observed {
    /// Process id of the root of the service's tree, or 0 if it has none.
    fn supervisor(&self) -> u32;

    /// Whether the main process is running. A daemonized service counts as running while any of its
    /// processes is left.
    fn is_running(&self) -> bool;

    /// `None` while the service is running, even as a daemon. Otherwise the exit of the main
    /// process, if known.
    fn ended(&self) -> Option<Option<Exit>>;

    /// The exit of the main process, if it has ended.
    fn exit(&self) -> Option<Exit>;

    /// Requests an event for the next output.
    fn arm_output(&mut self);

    /// Discards a pending output event, so that it does not end a wait.
    fn forget_output(&mut self);

    /// Waits until all output that the service has written is in the log.
    fn sync_output(&self);

    /// Waits until the service has an event, one of the pause's descriptors is ready, or the pause
    /// is over.
    fn wait_event(&mut self, pause: &Pause);

    /// [`wait_event`](Observed::wait_event) as a future.
    fn wakeup(&self, pause: Pause) -> Wakeup;

    /// Fixed endpoints that the service needs exclusively.
    fn addrs(&self) -> &[SocketAddr];

    /// The time of the last start on CLOCK_MONOTONIC, if this process started the service.
    fn started_ns(&self) -> Option<u64>;
}

impl Process {
    pub(super) fn observed(&self) -> &dyn Observed {
        match self {
            Process::Own(own) => &**own,
            Process::Attached(attached) => &**attached,
        }
    }

    pub(super) fn observed_mut(&mut self) -> &mut dyn Observed {
        match self {
            Process::Own(own) => &mut **own,
            Process::Attached(attached) => &mut **attached,
        }
    }

    pub(super) fn own(&self) -> Option<&Own> {
        match self {
            Process::Own(own) => Some(own),
            Process::Attached(_) => None,
        }
    }

    pub(super) fn attached(&self) -> Option<&Attached> {
        match self {
            Process::Own(_) => None,
            Process::Attached(attached) => Some(attached),
        }
    }

    /// Gives access to this process's own service.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if the service belongs to the run: a single test must not change it.
    pub(super) fn owned<'a>(&'a mut self, core: &'a mut Core, action: &str) -> Result<Owned<'a>, Unmasked> {
        match self {
            Process::Own(own) => Ok(Owned { core, own }),
            Process::Attached(_) => Err(Error::system(
                format!("{action} `{}`", core.command),
                io::Error::other("the whole run shares the service; give the test a service of its own"),
            )
            .into()),
        }
    }

    /// Gives access to the service for a method that a test calls.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if the service belongs to the run, or stands in for an external server.
    pub(super) fn ours<'a>(&'a mut self, core: &'a mut Core, action: &str) -> Result<Owned<'a>, Unmasked> {
        match action {
            // The stand-in for an external server can be started like any service.
            "start" => {}
            _ => core.refuse_external(action, "")?,
        }
        self.owned(core, action)
    }

    pub(super) fn addr(&self, core: &Core, readiness: &dyn Readiness) -> Option<SocketAddr> {
        let published = self.attached().and_then(Attached::addr);
        let inherited = || self.own().and_then(|own| own.listen.addrs().next());
        let chosen = || {
            let port = core.values.port("");
            port.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
        };
        published
            .or_else(|| readiness.addr())
            .or_else(inherited)
            .or_else(chosen)
    }
}

impl Observed for Own {
    fn supervisor(&self) -> u32 {
        self.lock().as_ref().map_or(0, Service::supervisor)
    }

    fn is_running(&self) -> bool {
        let mut service = self.lock();
        let Some(service) = service.as_mut() else {
            return false;
        };
        match service.exit() {
            None => !service.is_gone(),
            Some(exit) => exit.is_daemonised() && !service.is_gone(),
        }
    }

    fn ended(&self) -> Option<Option<Exit>> {
        let mut service = self.lock();
        let Some(service) = service.as_mut() else {
            // The service has been stopped, or was never executed.
            return Some(self.last_exit);
        };
        // The order matters. The supervisor first reports the exit, and then that no process is
        // left. If `exit` were called first, both reports could arrive between the two calls, and
        // the exit would be missed.
        let is_gone = service.is_gone();
        match service.exit() {
            Some(exit) if exit.is_daemonised() && !is_gone => None,
            Some(exit) => Some(Some(exit)),
            None => is_gone.then_some(None),
        }
    }

    fn exit(&self) -> Option<Exit> {
        self.lock().as_mut().and_then(Service::exit).or(self.last_exit)
    }

    fn arm_output(&mut self) {
        self.lock().as_mut().map(Service::arm_output);
    }

    fn forget_output(&mut self) {
        self.lock().as_mut().map(Service::forget_output);
    }

    fn sync_output(&self) {
        self.lock().as_mut().map(Service::sync_output);
    }

    fn wait_event(&mut self, pause: &Pause) {
        match self.lock().as_mut() {
            Some(service) => service.wait_event(&pause.events, pause.time),
            // No process is left that could cause an event.
            None => crate::sys::wait_readable(&pause.events, pause.time.min(UNTOLD_PAUSE)),
        }
    }

    fn wakeup(&self, mut pause: Pause) -> Wakeup {
        match self.lock().as_ref().map(Service::events) {
            Some(Some(fd)) => pause.events.push(fd),
            // An event of the service is pending. The descriptor of a dead supervisor stays
            // readable, so the pause must not be zero.
            Some(None) => pause.time = pause.time.min(Duration::from_millis(1)),
            None => pause.time = pause.time.min(UNTOLD_PAUSE),
        }
        Wakeup::new(pause.time, pause.events)
    }

    fn addrs(&self) -> &[SocketAddr] {
        &self.addrs
    }

    fn started_ns(&self) -> Option<u64> {
        Some(self.started_ns)
    }
}

impl Own {
    pub(super) fn lock(&self) -> MutexGuard<'_, Option<Service>> {
        // The service is intact even if another thread panicked while it held the lock.
        self.service.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn signal_tree(&mut self, signal: TreeSignal) {
        if let Some(service) = self.lock().as_mut() {
            service.signal_tree(signal);
        }
    }

    /// Returns a function that, when called later, tells how the service's main process ended.
    pub(super) fn how_it_ended(&self) -> HowItEnded {
        let service = Arc::clone(&self.service);
        Box::new(move || {
            // If another thread holds the lock, that thread reports the exit.
            service.try_lock().ok()?.as_mut().and_then(Service::exit)
        })
    }

    pub(super) fn has_ended(&self) -> bool {
        let mut service = self.lock();
        service.as_mut().is_some_and(|service| service.exit().is_some())
    }
}

impl Core {
    /// Creates the data for a service that this process will start.
    pub(super) fn new(
        spec: Spec,
        readiness: &dyn Readiness,
        identity: Option<&Identity>,
    ) -> Result<Core, Error> {
        let (service_dir, mut values) = match identity {
            None => {
                let service_dir = ServiceDir::create(spec.owner())?;
                let values = Values::new(name(&spec), service_dir.dir().to_owned());
                (service_dir, values)
            }
            Some(identity) => {
                let name = spec.name.clone().unwrap_or_else(|| identity.name().to_owned());
                let service_dir = identity.take_dir(spec.owner())?;
                let values = Values::given(name, service_dir.dir().to_owned(), identity.take_ports());
                (service_dir, values)
            }
        };
        if spec.low_ports || readiness.wants_low_ports() || identity.is_some() {
            values.set_range(Range::Low);
        }
        let output = open_log(&service_dir)?;
        Ok(Core {
            command: mask_urls(&spec.command.display()).into_owned(),
            since: Mark::now(&output, &[]),
            is_node: identity.is_some(),
            ..Core::with(spec, service_dir, values, output)
        })
    }

    /// Fails if the service stands in for an external server, which mirakuru does not control.
    ///
    /// # Errors
    ///
    /// [`Error::System`], which names the environment variable that selects that server.
    pub(super) fn refuse_external(&self, action: &str, why: &str) -> Result<(), Unmasked> {
        let Some(variable) = &self.spec.not_ours else {
            return Ok(());
        };
        let reason = format!(
            "the server is the external one at {variable}{why}; unset the variable to give the test a \
                server of its own"
        );
        let attempt = format!("{action} `{}`", self.values.name());
        Err(Error::system(attempt, io::Error::other(reason)).into())
    }

    pub(super) fn with(
        spec: Spec,
        service_dir: ServiceDir,
        mut values: Values,
        output: OutputReader,
    ) -> Core {
        values.hide_secrets_of(&spec.env);
        Core {
            spec,
            service_dir,
            values,
            argv: Vec::new(),
            on_end: None,
            command: String::new(),
            env: Vec::new(),
            readiness_env: Vec::new(),
            current_dir: None,
            output: Arc::new(output),
            log_files: Vec::new(),
            since: Mark::START,
            notes: Mutex::default(),
            captured: Vec::new(),
            pid: 0,
            test: 0,
            is_node: false,
        }
    }

    pub(super) fn resolve_command(&mut self) -> Result<(), Unmasked> {
        let written = self.spec.command.display();
        self.argv = {
            let values = &mut self.values;
            // The first word after `sh -c` is the script.
            let mut is_script = self.spec.shell;
            let mut expand = |word: &OsStr| match std::mem::take(&mut is_script) {
                true => values.expand_script(word),
                false => values.expand_os(word),
            };
            self.spec.command.resolve(&mut expand, self.spec.shell)?
        };
        self.env = Vec::with_capacity(self.spec.env.len());
        for (key, value) in &self.spec.env {
            let value = value.as_deref().map(|value| self.values.expand_os(value));
            let value = value.transpose().map_err(|e| e.in_command(&written))?;
            if let Some(value) = value
                .as_deref()
                .filter(|_| is_secret_name(&key.to_string_lossy()))
            {
                self.values.hide(value);
            }
            self.env.push((key.clone(), value));
        }
        let on_end = self.spec.on_end.as_ref();
        let on_end = on_end.map(|command| command.resolve(&mut |word| self.values.expand_os(word), false));
        self.on_end = on_end.transpose()?;
        self.command = self.shown_command()?;
        let mut expand = |path: &PathBuf| match self.values.expand_os(path.as_os_str()) {
            Ok(path) => Ok(PathBuf::from(path)),
            Err(error) => Err(error.in_command(&written)),
        };
        self.current_dir = self.spec.current_dir.as_ref().map(&mut expand).transpose()?;
        self.log_files.clear();
        for path in &self.spec.log_files {
            self.log_files.push(expand(path)?);
        }
        Ok(())
    }

    /// Adds the service to the list in which other services search for their needs.
    pub(super) fn note_for_others(&self, addr: Option<SocketAddr>, path: Option<&Path>) {
        let mut ports = self.values.port_numbers();
        if let Some(addr) = addr {
            ports.push(addr.port());
        }
        let mut paths = vec![self.service_dir.dir().to_owned()];
        if let Some(path) = path {
            paths.push(path.to_owned());
        }
        needs::note(self.service_dir.path(), ports, paths);
    }

    /// The command as a person would type it, without secrets.
    fn shown_command(&mut self) -> Result<String, Unmasked> {
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

    /// Copies the output to the terminal while the service runs, if the environment requests it.
    pub(super) fn show_live(&self, all: bool) {
        let dir = &self.service_dir;
        let label = self.spec.label.as_deref().filter(|_| self.spec.name.is_none());
        let name = label.unwrap_or_else(|| self.values.name());
        live::follow(name, &dir.log(), &dir.index(), all);
    }

    /// Removes the secrets from the error of a public method.
    pub(super) fn masked<T>(&self, done: Result<T, Unmasked>) -> Result<T, Error> {
        done.map_err(|error| self.values.mask_error(error))
    }

    pub(super) fn prepare(&mut self, readiness: &mut dyn Readiness) -> Result<Prepare<'_>, Unmasked> {
        let mut cx = Prepare::new(&mut self.values);
        readiness.prepare(&mut cx)?;
        Ok(cx)
    }

    /// All changes that the recipe and its readiness condition make to the environment.
    pub(super) fn changes(&self) -> Vec<(OsString, Option<OsString>)> {
        let mut changes = self.env.clone();
        for (key, value) in &self.readiness_env {
            changes.push((key.into(), Some(value.into())));
        }
        changes
    }

    pub(super) fn program(&self) -> String {
        let program = self.argv.first().map(|program| program.to_string_lossy());
        program.unwrap_or_default().into_owned()
    }

    /// Makes this process's user the owner of the service's directory, and denies the service's
    /// user access to it.
    pub(super) fn take_back(&self) -> Result<(), Error> {
        self.service_dir.take_back().map_err(|source| {
            Error::system(
                format!("take the directory `{}` back", self.service_dir.dir().display()),
                source,
            )
        })
    }

    /// Makes the service's user and group the owner of its directory and everything in it.
    pub(super) fn hand_over(&self, owner: Option<(u32, u32)>) -> Result<(), Error> {
        let owner = owner.unwrap_or_else(|| (sys::euid(), sys::egid()));
        self.service_dir.hand_over(owner).map_err(|source| {
            Error::system(
                format!("hand the directory over to user {}, group {}", owner.0, owner.1),
                source,
            )
        })
    }

    /// The error of a method that needs a running service.
    pub(super) fn not_running(&self, action: &str) -> Unmasked {
        let (command, action) = (self.command.clone(), action.to_owned());
        Error::NotRunning { command, action }.into()
    }
}

impl Owned<'_> {
    /// Fills in the placeholders, beginning with the command, so that its `{port}` gets the first
    /// port.
    pub(super) fn resolve(&mut self, readiness: &mut dyn Readiness) -> Result<(), Unmasked> {
        let Owned { core, own } = self;
        core.resolve_command()?;
        own.listen = Listen::of(&core.spec.listen, &mut core.values, &core.command)?;
        own.files.clear();
        for (path, text) in &core.spec.files {
            let written = core.spec.command.display();
            let path: PathBuf = core
                .values
                .expand_os(path.as_os_str())
                .map_err(|e| e.in_command(&written))?
                .into();
            service_dir::check_within(&path).map_err(|reason| Error::InvalidCommand {
                command: written.clone(),
                reason,
                system: Vec::new(),
            })?;
            let text = core
                .values
                .expand_os(OsStr::new(text))
                .map_err(|e| e.in_command(&written))?;
            own.files.push((path, text.into_vec()));
        }
        own.fail_on.clear();
        for given in &core.spec.fail_on {
            let pattern = expand_pattern(given, |text| {
                core.values.expand(text).map_err(|e| e.in_readiness(given))
            })?;
            let watch = LineWatch::new(&pattern, None).map_err(|reason| Error::InvalidReadiness {
                readiness: given.clone(),
                reason,
                system: Vec::new(),
            })?;
            own.fail_on.push((given.clone(), watch));
        }
        let prepared = core.prepare(readiness)?;
        own.addrs = prepared.addrs;
        own.udp_addrs = prepared.udp_addrs;
        own.paths = prepared.paths;
        core.readiness_env = prepared.env;
        let chosen = core.values.port_numbers();
        for addr in own.listen.addrs() {
            if !chosen.contains(&addr.port()) {
                own.addrs.push(addr);
            }
        }
        core.values.take_given();
        core.note_for_others(readiness.addr(), readiness.path());
        Ok(())
    }

    /// Finds and records the services that this one needs. Returns their private directories.
    pub(super) fn find_needs(&self) -> Vec<PathBuf> {
        // Applies the changes first, because a later change of a variable replaces an earlier one.
        let environment = environment(BTreeMap::new(), &self.core.env, "");
        let mut texts: Vec<&[u8]> = Vec::new();
        for word in self.core.argv.iter().chain(environment.values()) {
            texts.push(word.as_bytes());
        }
        for (_, text) in &self.own.files {
            texts.push(text);
        }
        needs::find(self.core.service_dir.path(), &self.own.needs, &texts)
    }
}

/// The service's name: the one in the recipe, or otherwise the program's file name.
pub(super) fn name(spec: &Spec) -> String {
    let name = spec.name.clone();
    name.unwrap_or_else(|| spec.command.program_name(spec.shell))
}

/// Creates the log and its index, which only this user can read.
fn open_log(service_dir: &ServiceDir) -> Result<OutputReader, Error> {
    let (log, index) = (service_dir.log(), service_dir.index());
    let open = OutputReader::open_with(&log, &index, append);
    open.map_err(|source| Error::system(format!("make the log `{}`", log.display()), source))
}

pub(super) fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .read(true)
        .append(true)
        .mode(0o600)
        .open(path)
}
