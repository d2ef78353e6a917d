//! Starts a service: plans, launches, and waits until it is ready. If a chosen port has been taken,
//! tries again with another port.

use std::collections::BTreeMap;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::error::missing::Missing;
use crate::error::secrets::Unmasked;
use crate::executor::endpoints::Endpoints;
use crate::executor::hint;
use crate::executor::launch;
use crate::executor::needs;
use crate::executor::process::{Observed, Owned, append};
use crate::executor::wait::{Pause, Wait};
use crate::observe::trace;
use crate::outcome::timed_out;
use crate::ports::free;
use crate::ports::time_wait;
use crate::readiness::Readiness;
use crate::readiness::context::Prepare;
use crate::readiness::no_wait::NoWait;
use crate::recipe::program::{c_environment, c_string, c_strings, candidates, environment, inherited};
use crate::sys::log_record::Record;
use crate::sys::{self, CommandPlan, Plan, RunPlan, Service, SpawnFailure};
use crate::timeline::events as timeline;
use crate::util::deadline::Deadline;
use crate::util::settings;

/// How many times a start is retried after a port was taken.
const PORT_RETRIES: u32 = 5;
/// The smallest `log_limit`.
const LEAST_LOG: u64 = 64 * 1024;
/// The program always has at least this much time to be executed, even if the time-out is shorter.
const LEAST_EXEC_TIMEOUT: Duration = Duration::from_secs(1);

impl Owned<'_> {
    pub(super) fn start(&mut self, readiness: &mut dyn Readiness) -> Result<(), Unmasked> {
        let plan = self.plan_start(readiness)?;
        self.launch(plan);
        while let Some(pause) = self.step_start(readiness)? {
            match self.own.failing {
                // New output must not end this wait.
                Some(_) => sys::wait_readable(&pause.events, pause.time),
                None => self.own.wait_event(&pause),
            }
        }
        Ok(())
    }

    /// The first step of a start: everything before the fork.
    pub(super) fn plan_start(&mut self, readiness: &mut dyn Readiness) -> Result<Plan, Unmasked> {
        (self.own.starting, self.own.failing) = (None, None);
        if self.own.lock().is_some() {
            // A crashed service may have left processes behind.
            let _ = self.end(self.policy());
        }
        if let Some((variable, reason)) = settings::unknown() {
            return Err(Error::other(format!("use {variable}"), reason.as_str()).into());
        }
        let _span = trace::start(self.core.values.name(), &self.core.command);
        timeline::begins(
            self.core.service_dir.id(),
            self.core.values.name(),
            &self.core.command,
            || {
                let mut endpoints = Vec::new();
                for addr in &self.own.addrs {
                    endpoints.push(format!("port-{}", addr.port()));
                }
                for path in &self.own.paths {
                    endpoints.push(path.display().to_string());
                }
                endpoints
            },
        );
        self.prepare_to_keep();
        self.try_to_plan(readiness, PORT_RETRIES)
    }

    /// The second step of a start, for a service that is started on its own.
    fn launch(&mut self, plan: Plan) {
        for launched in Service::launch(vec![plan]) {
            self.launched(launched);
        }
    }

    /// Completes the second step: stores the new supervisor, or the error.
    pub(super) fn launched(&mut self, launched: Result<Service, SpawnFailure>) {
        match launched {
            Ok(service) => {
                if let Some(endpoint_lock) = &self.own.endpoint_lock {
                    // The supervisor now holds the locks, and frees them when the tree is gone. If
                    // several fixtures share the locks, this process keeps them until all have
                    // started.
                    if Arc::strong_count(endpoint_lock) == 1 {
                        endpoint_lock
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .hand_over();
                    }
                }
                *self.own.lock() = Some(service);
            }
            Err(failure) => {
                if let Some(starting) = &mut self.own.starting {
                    starting.failure = Some(failure);
                }
            }
        }
    }

    /// Checks once whether the start has completed. Returns `None` if the service is ready,
    /// otherwise the pause before the next check. After an error, no process of the service is
    /// left.
    pub(super) fn step_start(&mut self, readiness: &mut dyn Readiness) -> Result<Option<Pause>, Unmasked> {
        if let Some(failing) = self.own.failing.take() {
            if let Some(pause) = self.pause_of_end(&failing.limit) {
                self.own.failing = Some(failing);
                return Ok(Some(pause));
            }
            let retries = self.after_failure(failing.error, failing.retries, readiness)?;
            let plan = self.try_to_plan(readiness, retries)?;
            self.launch(plan);
            return Ok(Some(Pause::default()));
        }
        let Some(mut starting) = self.own.starting.take() else {
            return Ok(None);
        };
        let in_time = timed_out::check(self.core.test).map_err(Unmasked::from);
        let polled = match in_time.and_then(|()| self.has_been_executed(&mut starting)) {
            Ok(true) => self.core.poll(self.own, readiness, &mut starting.wait),
            Ok(false) => self.await_execution(&starting),
            Err(error) => Err(error),
        };
        if !matches!(polled, Ok(Some(_))) {
            readiness.wait_is_over();
        }
        match polled {
            Ok(Some(pause)) => {
                self.own.starting = Some(starting);
                Ok(Some(pause))
            }
            Ok(None) => {
                self.own.was_ready = true;
                trace::ready(self.core.pid, starting.wait.deadline.elapsed());
                timeline::ready(self.core.service_dir.id());
                let description = self.core.description_if_kept(&self.own.addrs, &self.own.paths);
                self.core.note_start(self.own.how_it_ended(), description);
                Ok(None)
            }
            Err(error) => {
                // Do not wait until the service has ended, because other services may start in the
                // meantime.
                let policy = self.policy();
                self.begin_end(policy);
                self.own.failing = Some(Failing {
                    error,
                    retries: starting.retries,
                    limit: Deadline::after_scaled(policy.grace),
                });
                Ok(Some(Pause::default()))
            }
        }
    }

    /// Returns the pause before the program's execution is checked again, or an error if the
    /// execution takes too long. The wait counts towards the time-out.
    fn await_execution(&self, starting: &Starting) -> Result<Option<Pause>, Unmasked> {
        let deadline = starting.wait.deadline.at_least(Some(LEAST_EXEC_TIMEOUT));
        if !deadline.is_over() {
            return Ok(Some(Pause::of(deadline.remaining())));
        }
        let mut evidence = self.core.evidence(self.own, None);
        evidence.hint = Some(
            "check that the file system of the program answers, and that no process traces or stops the \
                supervisor"
                .to_owned(),
        );
        Err(Error::Timeout {
            command: self.core.command.clone(),
            awaited: NoWait.describe(),
            elapsed: deadline.elapsed(),
            evidence,
        }
        .into())
    }

    /// Whether the program has been executed. Returns an error if the execution failed.
    fn has_been_executed(&mut self, starting: &mut Starting) -> Result<bool, Unmasked> {
        let Some(launch) = &mut starting.launch else {
            return Ok(true);
        };
        let has_started = self.own.lock().as_mut().map(Service::has_started);
        let failure = match starting.failure.take() {
            Some(failure) => failure,
            None => match has_started {
                Some(Ok(false)) | None => return Ok(false),
                Some(Ok(true)) => {
                    self.own.stdin = launch.stdin.take();
                    self.core.pid = self.own.lock().as_ref().map_or(0, Service::pid);
                    starting.launch = None;
                    trace::spawned(self.core.pid, sys::forks_whole_because());
                    timeline::spawned(self.core.service_dir.id(), self.core.pid);
                    self.core.show_live(true);
                    return Ok(true);
                }
                Some(Err(failure)) => failure,
            },
        };
        // The program was not executed, so there is no service to stop.
        *self.own.lock() = None;
        Err(launch::explain(
            failure,
            &self.core.command,
            &self.core.spec,
            &self.core.argv,
            &launch.tried,
            self.core.current_dir.as_deref(),
        ))
    }

    /// Prepares the launch. If a chosen port has been taken, picks new ports and tries again, up to
    /// `retries` times.
    fn try_to_plan(&mut self, readiness: &mut dyn Readiness, mut retries: u32) -> Result<Plan, Unmasked> {
        loop {
            match self.plan_once(readiness) {
                Ok((plan, launch, wait)) => {
                    self.own.starting = Some(Starting {
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

    /// Stops the service after a failure. Returns the number of remaining retries, or the error if
    /// a retry would not help.
    fn after_failure(
        &mut self,
        error: Unmasked,
        retries: u32,
        readiness: &mut dyn Readiness,
    ) -> Result<u32, Unmasked> {
        let error = self.core.values.mask_error(error);
        let _ = self.end(self.policy());
        let other_try = match retries {
            0 => None,
            _ => self.other_try(&error),
        };
        let Some(other_try) = other_try else {
            if self.core.pid != 0 {
                self.core.service_dir.keep();
            }
            trace::failed(&error);
            timeline::failed(self.core.service_dir.id(), || error.to_string());
            return Err(error.into());
        };
        trace::other_port(&error);
        if let OtherTry::NewPorts = other_try {
            self.core.values.new_ports();
            self.resolve(readiness)?;
        }
        Ok(retries - 1)
    }

    /// Decides whether and how to retry after this error. Asks the kernel about the ports, and uses
    /// the service's output only for facts that the kernel does not report.
    fn other_try(&mut self, error: &Error) -> Option<OtherTry> {
        let (may_be_about_port, tail) = match error {
            Error::Exited { evidence, .. } | Error::FailureLine { evidence, .. } => {
                (true, &evidence.tail[..])
            }
            // `AlreadyRunning` may mean that a socket for the service to inherit could not be
            // opened.
            Error::WrongListener { .. } | Error::AlreadyRunning { .. } => (true, &[][..]),
            _ => (false, &[][..]),
        };
        if !may_be_about_port {
            return None;
        }
        if free::check_free(&self.chosen()).is_err() {
            // These ports can no longer change: clients know the ports of a service that has been
            // ready, and the nodes of a cluster know each other's ports.
            let are_known = self.own.was_ready || self.core.values.are_known();
            return (!are_known).then_some(OtherTry::NewPorts);
        }
        // Only this process holds the ports. A service that does not set SO_REUSEADDR cannot bind
        // to a held port, and only its output reveals that.
        let cannot_bind = tail.iter().any(|line| hint::says_in_use(line));
        (cannot_bind && self.core.values.loosen()).then_some(OtherTry::LooserHold)
    }

    /// The loopback addresses with the chosen ports.
    fn chosen(&self) -> Vec<SocketAddr> {
        let mut addrs = Vec::new();
        for (_, port) in self.core.values.ports() {
            addrs.push(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        }
        addrs
    }

    /// Removes closed connections that block ports, and checks that the ports are free. This covers
    /// the ports that cannot be replaced: fixed ones, and chosen ones that clients already know.
    fn make_free(&self) -> Result<(), Unmasked> {
        let mut addrs = self.own.addrs.clone();
        if self.own.was_ready {
            addrs.extend(self.chosen());
        }
        let Err(busy) = time_wait::make_free(&addrs) else {
            return Ok(());
        };
        let hint = {
            let is_it = |addr: &SocketAddr| busy.endpoint == format!("port {}", addr.port());
            let hint = addrs.iter().copied().filter(is_it).find_map(time_wait::hint);
            hint.or_else(|| {
                let is_kept = self.chosen().iter().any(is_it);
                is_kept
                    .then(|| "end that process: a restart keeps the port, because clients know it".to_owned())
            })
        };
        Err(busy.into_error(&self.core.command).change(|error| {
            if let (Some(hint), Some(evidence)) = (hint, error.evidence_mut()) {
                evidence.hint = Some(hint);
            }
        }))
    }

    fn plan_once(&mut self, readiness: &mut dyn Readiness) -> Result<(Plan, Launch, Wait), Unmasked> {
        self.lock_endpoints()?;
        // `prepare` resets the condition's state from the previous start.
        let Prepare { env, keep, .. } = self.core.prepare(readiness)?;
        self.core.readiness_env = env;
        self.check_ipv6(readiness)?;
        for path in &self.own.paths {
            free::check_path_free(path).map_err(|busy| busy.into_error(&self.core.command))?;
            // A killed service leaves its socket file behind, and most servers refuse to start if
            // the file exists.
            let _ = free::remove_stale_socket(path);
        }
        self.make_free()?;
        free::check_udp_free(&self.own.udp_addrs).map_err(|busy| busy.into_error(&self.core.command))?;
        for (path, text) in &self.own.files {
            self.core
                .service_dir
                .write(path, text, self.core.spec.owner())
                .map_err(|source| {
                    Error::system(
                        format!(
                            "write the service's file `{}`",
                            self.core.service_dir.dir().join(path).display()
                        ),
                        source,
                    )
                })?;
        }
        let deadline = Deadline::after(self.core.spec.timeout);
        let (mut plan, launch) = self.plan()?;
        plan.keep.extend(keep);
        Ok((plan, launch, Wait::new(deadline, self.own.fail_on.clone())))
    }

    /// Rejects a service on IPv6 loopback if the kernel has no IPv6, because no server could start
    /// there.
    fn check_ipv6(&self, readiness: &dyn Readiness) -> Result<(), Unmasked> {
        let is_loopback = |addr: SocketAddr| addr.ip() == Ipv6Addr::LOCALHOST;
        // A host name such as `localhost` may have addresses of both families, so only a literal
        // `[::1]` requires IPv6.
        if !readiness.addr().is_some_and(is_loopback) || !readiness.describe().contains("[::1]") {
            return Ok(());
        }
        let Some(source) = sys::ports::ipv6_is_absent() else {
            return Ok(());
        };
        let missing = Missing::feature("IPv6").optional(self.core.spec.optional);
        Err(Error::Spawn {
            command: self.core.command.clone(),
            attempt: "use an IPv6 address".to_owned(),
            source,
            hint: Some("enable IPv6 on this machine, or let the service use 127.0.0.1".to_owned()),
            missing: Some(Box::new(missing)),
            system: Vec::new(),
        }
        .into())
    }

    fn lock_endpoints(&mut self) -> Result<(), Unmasked> {
        if self.own.endpoint_lock.is_none() {
            let began = Instant::now();
            self.own.endpoint_lock =
                Some(Endpoints::of(self.core, self.own).lock_endpoints(self.core.spec.queue)?);
            trace::endpoints_locked(began.elapsed());
        }
        Ok(())
    }

    fn environment(&self) -> BTreeMap<OsString, OsString> {
        environment(
            inherited(self.core.spec.env_clear),
            &self.core.changes(),
            self.core.service_dir.id(),
        )
    }

    /// Checks the command for mistakes that can be found before a start.
    pub(super) fn check_command(&self) -> Result<(), Unmasked> {
        let (core, environment) = (&self.core, self.environment());
        c_environment(&environment, &core.command)?;
        let tried = core.argv.first().map(|program| candidates(program, &environment));
        launch::check(
            &core.command,
            &core.spec,
            &core.argv,
            &tried.unwrap_or_default(),
            core.current_dir.as_deref(),
            core.service_dir.dir(),
        )
    }

    fn plan(&mut self) -> Result<(Plan, Launch), Unmasked> {
        timed_out::check(self.core.test)?;
        let system = |attempt: &'static str| move |source| Error::system(attempt, source);
        let not_handed_on = system("hand a lock to the supervisor");
        let mut environment = self.environment();
        self.own.listen.announce(&mut environment);
        let tried = |argv: &[OsString]| {
            let program = argv.first().map(|program| candidates(program, &environment));
            program.unwrap_or_default()
        };
        let command = |argv: &[OsString], tried: &[PathBuf]| -> Result<CommandPlan, Error> {
            Ok(CommandPlan {
                candidates: c_strings(tried, &self.core.command)?,
                argv: c_strings(argv, &self.core.command)?,
            })
        };
        let candidates = tried(&self.core.argv);
        let stdin = launch::stream(&self.core.spec.stdin, 0).map_err(system("set up standard input"))?;
        let stdout = launch::stream(&self.core.spec.stdout, 1).map_err(system("set up standard output"))?;
        let stderr = launch::stream(&self.core.spec.stderr, 2).map_err(system("set up standard error"))?;
        let lock = self.core.service_dir.lock_fd();
        let mut keep = vec![lock.map_err(system("lock the private directory"))?];
        if let Some(endpoint_lock) = &self.own.endpoint_lock {
            let endpoint_lock = endpoint_lock.lock().unwrap_or_else(PoisonError::into_inner);
            for fd in endpoint_lock.fds() {
                keep.push(fd.try_clone_to_owned().map_err(not_handed_on)?);
            }
        }
        let run = self.own.run.as_ref().map(RunPlan::try_clone);
        let run = run.transpose().map_err(not_handed_on)?;
        if let Some(run) = &run {
            keep.push(run.start_lock.try_clone().map_err(not_handed_on)?);
        }
        let mut needs = self.find_needs();
        needs.retain(|private| needs::is_there(private));
        let groups = match (&self.core.spec.groups, self.core.spec.uid) {
            (Some(groups), _) => Some(groups.clone()),
            // Another user must not get root's supplementary groups.
            (None, Some(_)) => Some(Vec::new()),
            (None, None) => None,
        };
        let newest = self.core.output.newest_part(append);
        let ([log, index], log_at) = newest.map_err(system("open the log"))?;
        let mut plan = Plan {
            program: command(&self.core.argv, &candidates)?,
            on_end: self
                .core
                .on_end
                .as_ref()
                .map(|argv| command(argv, &tried(argv)))
                .transpose()?,
            on_end_hint: self
                .core
                .spec
                .shell_syntax_at_end()
                .and_then(|hint| CString::new(format!("mirakuru: {hint}\n")).ok()),
            needs,
            envp: c_environment(&environment, &self.core.command)?,
            current_dir: self
                .core
                .current_dir
                .as_ref()
                .map(|dir| c_string(dir.as_os_str(), &self.core.command))
                .transpose()?,
            stdin: stdin.0,
            stdout: stdout.0,
            stderr: stderr.0,
            uid: self.core.spec.uid,
            gid: self.core.spec.gid,
            groups,
            umask: self.core.spec.umask,
            stop: self.policy(),
            log: log.into(),
            index: index.into(),
            log_part: self.core.spec.log_limit.max(LEAST_LOG) / 4,
            log_at,
            keep,
            listen: self.own.listen.open(&self.core.command)?,
            id: self.core.service_dir.id().to_owned(),
            run,
            test: self.core.test,
            private_dir: self
                .core
                .service_dir
                .dir()
                .parent()
                .and_then(|dir| CString::new(dir.as_os_str().as_bytes()).ok()),
        };
        self.core.since = self.core.mark();
        self.core.notes = Default::default();
        self.own.last_exit = None;
        self.own.started_ns = sys::clock_ns();
        let index = mark_start(plan.index, self.own.started_ns);
        plan.index = index.map_err(system("write to the log's index"))?;
        let stdin = stdin.1.map(File::from);
        let tried = candidates;
        Ok((plan, Launch { tried, stdin }))
    }
}

/// How to retry a start.
enum OtherTry {
    /// With the same ports, held less strictly.
    LooserHold,
    NewPorts,
}

pub(super) struct Starting {
    /// Number of retries left.
    retries: u32,
    /// `None` once the program has been executed.
    launch: Option<Launch>,
    /// The error, if the supervisor could not be started.
    failure: Option<SpawnFailure>,
    wait: Wait,
}

/// A failed start whose service is still ending.
pub(super) struct Failing {
    error: Unmasked,
    /// Number of retries left.
    retries: u32,
    /// When the grace expires.
    limit: Deadline,
}

/// Data of a start that is needed only until the program has been executed.
pub(super) struct Launch {
    /// The paths at which to look for the program.
    tried: Vec<PathBuf>,
    /// The writing end of a piped standard input.
    stdin: Option<File>,
}

/// Marks the beginning of a start in the log's index, to separate its output from that of earlier
/// starts. Returns the index.
fn mark_start(index: OwnedFd, now: u64) -> io::Result<OwnedFd> {
    let mut index = File::from(index);
    index.write_all(&Record::start(now).encode())?;
    Ok(index.into())
}
