//! `MIRAKURU_KEEP=1`: keeps the services of a failed test running, so that they can be inspected.
//!
//! If there is a terminal, mirakuru waits for Enter before it stops the first service. Otherwise
//! the service is handed over to the run, and its supervisor stops it when the runner has ended.

use std::cell::Cell;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, BufRead, IsTerminal, Write};
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::executor::process::{Core, Observed, Owned};
use crate::output::live;
use crate::run::state::State;
use crate::run::{self, Run};
use crate::sys::{self, RunPlan};
use crate::util::settings::{KEEP, is_on};

fn is_wanted() -> bool {
    is_on(KEEP)
}

/// Whether standard input and standard error are terminals, so that the user can press Enter.
fn has_keys() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

thread_local! {
    /// Whether the test on this thread has waited for Enter. A test waits only once, for all of its
    /// services.
    static WAITED: Cell<bool> = const { Cell::new(false) };
}

impl Owned<'_> {
    /// Before a start, prepares the service so that the run can take it over after a failure.
    pub(super) fn prepare_to_keep(&mut self) {
        if self.own.run.is_none() && is_wanted() && !has_keys() {
            // Without a runner, the service cannot be kept.
            self.own.run = Run::current().and_then(|run| self.plan_to_keep(run).ok());
        }
    }

    fn plan_to_keep(&self, run: &Run) -> io::Result<RunPlan> {
        run::make_dir(&run.dir)?;
        let (staged, published) = self.kept_in(&run.dir);
        let c_string = |path: PathBuf| Ok::<_, io::Error>(CString::new(path.as_os_str().as_bytes())?);
        Ok(RunPlan {
            runner: sys::pidfd(run.runner().0)?,
            ends_with_users: false,
            // No other process starts this service, so no lock is needed.
            start_lock: File::open("/dev/null")?.into(),
            staged: c_string(staged)?,
            published: c_string(published)?,
            dir: c_string(run.dir.clone())?,
        })
    }

    /// The paths of the service's state file in the run's directory: before and after publication.
    fn kept_in(&self, dir: &Path) -> (PathBuf, PathBuf) {
        let id = self.core.service_dir.id();
        (dir.join(format!("kept-{id}.new")), dir.join(format!("kept-{id}")))
    }

    /// Keeps a running service of a failed test, if the environment requests it.
    pub(super) fn keep_after_failure(&mut self) {
        if !is_wanted() || !self.own.is_running() {
            return;
        }
        if has_keys() {
            if !WAITED.replace(true) {
                wait_for_key(&self.core.description(&self.own.addrs, &self.own.paths));
            }
            return;
        }
        let description = self.core.description(&self.own.addrs, &self.own.paths);
        let until = match self.make_the_runs() {
            Ok(()) => "its service keeps running until the runner ends".to_owned(),
            Err(error) => format!("its service cannot be kept running: {error}"),
        };
        live::print(&format!("mirakuru: the test has failed; {until}\n{description}"));
    }

    fn make_the_runs(&mut self) -> io::Result<()> {
        let Some(run) = Run::current().filter(|_| self.own.run.is_some()) else {
            return Err(io::Error::other("no runner is known"));
        };
        let (staged, _) = self.kept_in(&run.dir);
        let state = State {
            process: run::this_process(),
            pid: self.core.pid,
            supervisor: self.own.supervisor(),
            service_dir: self.core.service_dir.path().to_owned(),
            ..State::default()
        };
        state.write(&staged)?;
        if let Some(endpoint_lock) = &self.own.endpoint_lock {
            endpoint_lock
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .for_run();
        }
        match self.own.lock().as_mut() {
            Some(service) => service.publish()?,
            None => return Err(io::Error::other("it has ended")),
        }
        *self.own.lock() = None;
        self.core.service_dir.give_away();
        Ok(())
    }
}

impl Core {
    /// A description of the service for the user, if the environment requests that services are
    /// kept.
    pub(super) fn description_if_kept(&self, addrs: &[SocketAddr], paths: &[PathBuf]) -> Option<String> {
        is_wanted().then(|| self.description(addrs, paths))
    }

    /// The facts that are needed to inspect the service by hand.
    fn description(&self, addrs: &[SocketAddr], paths: &[PathBuf]) -> String {
        let core = self;
        let mut addresses = Vec::new();
        for (name, port) in core.values.ports() {
            addresses.push(match name {
                "" => format!("127.0.0.1:{port}"),
                name => format!("127.0.0.1:{port} ({name})"),
            });
        }
        for addr in addrs {
            addresses.push(addr.to_string());
        }
        for path in paths {
            addresses.push(path.display().to_string());
        }
        let mut lines = vec![
            format!("  service:    {} (pid {})", core.command, core.pid),
            format!("  directory:  {}", core.service_dir.dir().display()),
            format!("  log:        {}", core.service_dir.log().display()),
            format!("  debugger:   gdb -p {}", core.pid),
        ];
        if !addresses.is_empty() {
            lines.insert(1, format!("  addresses:  {}", addresses.join(", ")));
        }
        lines.join("\n")
    }
}

/// Shows the service and waits for Enter. If several tests fail, they wait one after another.
fn wait_for_key(description: &str) {
    static ASKING: Mutex<()> = Mutex::new(());
    let _one = ASKING.lock().unwrap_or_else(PoisonError::into_inner);
    live::print(&format!(
        "mirakuru: the test has failed; press Enter to stop its services\n{description}"
    ));
    let _ = io::stderr().flush();
    let _ = io::stdin().lock().read_line(&mut String::new());
}
