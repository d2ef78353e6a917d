//! For a failed test, shows the output of the services that it shares with other tests.
//!
//! An executor that belongs to a failing test shows the last lines of its log when it is dropped.
//! An executor in a `static` is never dropped. So each thread records which shared services it
//! uses, and since when. If the thread panics, a panic hook shows the output of these services
//! since their first use. The hook is installed together with the first shared service, and first
//! calls the previous hook.
//!
//! Each test has its own thread (libtest) or process (nextest). The hook runs on the thread that
//! panics, and the test harness captures the output of that thread. If a task on another thread
//! panics, the hook shows only the services that this other thread has used. A test that returns
//! `Err` does not panic: the attribute reports the error, and without the attribute nothing is
//! shown. If a test installs its own hook later, that hook replaces this one.

use std::cell::{Cell, RefCell};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::report::{HEAD_LINES, TAIL_LINES, Tail, print, shown};
use crate::error::{Error, Evidence};
use crate::outcome::timed_out;
use crate::output::live;
use crate::output::reader::{Cursor, OutputReader};
use crate::run;
use crate::service_dir;
use crate::sys::{self, Exit};
use crate::timeline::events as timeline;

/// How long a supervisor on a busy machine may take to report that its service has ended.
const TOLD_WITHIN: Duration = Duration::from_secs(1);

/// The services of a shared fixture. Cheap to clone.
#[derive(Clone)]
pub struct SharedServices(Arc<Inner>);

struct Inner {
    /// The id of these services, never 0.
    id: u64,
    services: Vec<Service>,
}

struct Service {
    command: String,
    /// The reader of the log. The executor shares it, and may be dropped first.
    output: Arc<OutputReader>,
    /// The path of a marker file. If it exists, the log is kept after its executor is dropped.
    kept: PathBuf,
    /// Process id and start time of the main process. `None` for a daemon, and for a job that had
    /// finished when the fixture was ready.
    main: Option<(u32, u64)>,
    how_it_ended: Mutex<HowItEnded>,
    /// Tells the user how to inspect the service after a failed test. `None` once it has been
    /// shown.
    description: Mutex<Option<String>>,
    /// Describes the event that ends the service if it is kept running.
    stays_until: &'static str,
}

/// Returns the exit of a service's main process, if known.
pub(crate) type HowItEnded = Box<dyn Fn() -> Option<Exit> + Send>;

thread_local! {
    /// The services that this thread has started for the shared fixture that it is setting up.
    /// `None` if it is setting up none.
    static MAKING: RefCell<Option<Vec<Service>>> = const { RefCell::new(None) };
    /// The services that the test on this thread has used, each with the time of its first use.
    static USED: RefCell<Vec<(SharedServices, u64)>> = const { RefCell::new(Vec::new()) };
    /// The `kept` paths of the ended services that an error has reported to the test on this
    /// thread. The report of a failed test leaves these services out.
    static TOLD: RefCell<Vec<PathBuf>> = const { RefCell::new(Vec::new()) };
    /// Id of the [`SharedServices`] that this thread used last. The next use almost always has the
    /// same id.
    static LATEST: Cell<u64> = const { Cell::new(0) };
}

impl SharedServices {
    /// Sets up a shared fixture, and records the services that this thread starts for it.
    pub fn make<T>(make: impl FnOnce() -> T) -> (T, SharedServices) {
        struct Restore(Option<Vec<Service>>);
        impl Drop for Restore {
            fn drop(&mut self) {
                MAKING.set(self.0.take());
            }
        }
        let began = sys::clock_ns();
        // Setting up this fixture may set up another one, so each has its own list.
        let mut restore = Restore(MAKING.replace(Some(Vec::new())));
        let made = make();
        let mut services = MAKING.replace(restore.0.take()).unwrap_or_default();
        // A program, such as a client that loads a schema, may have exited by now. That is not a
        // crash.
        for service in &mut services {
            service.main = service
                .main
                .filter(|(pid, started)| service_dir::is_alive(*pid, *started));
        }
        std::mem::forget(restore);
        if !services.is_empty() {
            install_hook();
        }
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let services = SharedServices(Arc::new(Inner { id, services }));
        // Setting up the fixture counts as a use, so that a failure of this test shows the output
        // of the start.
        services.used_since(began);
        (made, services)
    }

    /// Records that the test on this thread uses the fixture. Takes only a few nanoseconds.
    ///
    /// # Errors
    ///
    /// [`Error::Died`] at the first use in this test, if one of the services has already ended.
    /// Without this error, the test would see only its client's "connection refused".
    pub fn used(&self) -> Result<(), Error> {
        // If the thread-local has been destroyed, the thread is about to exit and runs no test.
        let known = LATEST.try_with(|latest| latest.replace(self.0.id) == self.0.id);
        let is_first = !known.unwrap_or(true) && self.used_since(sys::clock_ns());
        // During a panic no error is returned, because a second panic would abort the process.
        if !is_first || thread::panicking() {
            return Ok(());
        }
        match self.0.services.iter().find(|service| service.has_died()) {
            Some(service) => {
                service.tell();
                service.keep();
                Err(service.died())
            }
            None => Ok(()),
        }
    }

    /// Records that the test on this thread has waited for another test to set up the fixture. The
    /// wait began at `since`.
    pub fn waited_since(&self, since: u64) {
        for service in &self.0.services {
            timeline::waited(since, service.id());
        }
    }

    /// Records a use of the fixture that began at `since`. Returns whether it is the first in this
    /// test.
    fn used_since(&self, since: u64) -> bool {
        if self.0.services.is_empty() {
            return false;
        }
        let is_first = USED.try_with(|used| {
            // The borrow fails only while this thread reports a panic.
            if let Ok(mut used) = used.try_borrow_mut() {
                if !used.iter().any(|(known, _)| known.0.id == self.0.id) {
                    used.push((self.clone(), since));
                    self.0
                        .services
                        .iter()
                        .for_each(|service| timeline::used(since, service.id()));
                    return true;
                }
            }
            false
        });
        is_first.unwrap_or(false)
    }
}

/// Whether this thread is setting up a shared fixture.
pub(super) fn is_making() -> bool {
    MAKING
        .try_with(|making| making.borrow().is_some())
        .unwrap_or(false)
}

/// If this thread is setting up a shared fixture, records a service that was started for it.
pub(crate) fn started(
    command: &str,
    pid: u32,
    output: &Arc<OutputReader>,
    how_it_ended: HowItEnded,
    description: Option<String>,
) {
    let _ = MAKING.try_with(|making| {
        let Some(services) = &mut *making.borrow_mut() else {
            return;
        };
        // A restarted service is already in the list.
        if services.iter().any(|service| service.output.path == output.path) {
            return;
        }
        services.push(Service {
            command: command.to_owned(),
            kept: output.path.with_file_name("kept"),
            output: Arc::clone(output),
            main: sys::procfs::start_time(pid).map(|started| (pid, started)),
            how_it_ended: Mutex::new(how_it_ended),
            description: Mutex::new(description),
            stays_until: "this test process ends",
        });
    });
}

/// Records that a service of this thread now belongs to the run.
pub(crate) fn published(log: &Path, how_it_ended: HowItEnded, ends_with_users: bool) {
    let _ = MAKING.try_with(|making| {
        let mut making = making.borrow_mut();
        let Some(services) = making.as_mut() else { return };
        if let Some(service) = services.iter_mut().find(|service| service.output.path == log) {
            service.how_it_ended = Mutex::new(how_it_ended);
            service.stays_until = match ends_with_users {
                true => "its last user ends",
                false => "the runner ends",
            };
        }
    });
}

/// Shows the output of the failed test's shared services since their first use, or since the last
/// call of this function.
pub(crate) fn test_has_failed() {
    let now = sys::clock_ns();
    let (mut texts, mut descriptions) = (Vec::new(), Vec::new());
    let _ = USED.try_with(|used| {
        let Ok(mut used) = used.try_borrow_mut() else {
            return;
        };
        for (services, since) in &mut *used {
            for service in &services.0.services {
                texts.extend(service.tail(*since));
                if !service.has_died() {
                    descriptions.extend(service.description());
                }
            }
            // The test may catch this panic and fail again. The next report then begins here.
            *since = now;
        }
    });
    for text in texts {
        print(text);
    }
    for description in descriptions {
        live::print(&description);
    }
}

impl Service {
    /// The service's id, which is also the name of the directory that contains its log.
    fn id(&self) -> &str {
        let dir = self.output.path.parent().and_then(Path::file_name);
        dir.and_then(OsStr::to_str).unwrap_or_default()
    }

    /// Whether the service has ended too early. A job that exited with status 0 does not count.
    fn has_died(&self) -> bool {
        let has_ended = self
            .main
            .is_some_and(|(pid, started)| !service_dir::is_alive(pid, started));
        has_ended && self.exit().is_none_or(|exit| !exit.status.success())
    }

    /// Returns the exit of the service. Waits for up to [`TOLD_WITHIN`], because the supervisor
    /// reports the exit a moment after the process has ended. Does not wait once the run is over,
    /// because the supervisor then removes the published state.
    fn exit(&self) -> Option<Exit> {
        let how_it_ended = self.how_it_ended.lock().unwrap_or_else(PoisonError::into_inner);
        let began = Instant::now();
        loop {
            let exit = how_it_ended();
            if exit.is_some() || began.elapsed() > TOLD_WITHIN || run::is_over() {
                return exit;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// The error for a test that first uses the service after it has ended.
    fn died(&self) -> Error {
        let tail = self.output.tail(TAIL_LINES, Cursor::START);
        Error::Died {
            command: self.command.clone(),
            status: self.exit().map(|exit| exit.status),
            evidence: Box::new(Evidence {
                tail,
                log: Some(self.output.path.clone()),
                ..Evidence::default()
            }),
        }
    }

    /// Records that an error has told this test that the service has ended.
    fn tell(&self) {
        let _ = TOLD.try_with(|told| told.borrow_mut().push(self.kept.clone()));
    }

    /// Whether an error has told this test, since the last call, that the service has ended.
    fn was_told(&self) -> bool {
        let told = TOLD.try_with(|told| {
            let mut told = told.borrow_mut();
            let before = told.len();
            told.retain(|kept| *kept != self.kept);
            told.len() < before
        });
        told.unwrap_or(false)
    }

    /// The message that tells the user how to inspect the service. Returned only once.
    fn description(&self) -> Option<String> {
        let description = self
            .description
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()?;
        let until = self.stays_until;
        Some(format!(
            "mirakuru: the test has failed; its shared service keeps running until {until}\n{description}"
        ))
    }

    fn tail(&self, since: u64) -> Option<String> {
        if self.has_died() {
            if self.was_told() {
                return None;
            }
            // The error names the log, so the log must be kept.
            self.keep();
            return Some(shown(&self.died()));
        }
        let since: Cursor = self.output.since_time(since);
        let printed = self.output.excerpt(since, HEAD_LINES, TAIL_LINES);
        if printed.tail.is_empty() {
            return None;
        }
        self.keep();
        Some(shown(&Tail {
            command: &self.command,
            printed: printed.printed(&self.output.path),
            of_test: true,
        }))
    }
}

impl Service {
    /// Keeps the log for later inspection. Does nothing once the run is over and its files are
    /// removed.
    fn keep(&self) {
        if !run::is_over() {
            let _ = std::fs::File::create(&self.kept);
        }
    }
}

pub(super) fn install_hook() {
    static INSTALLED: Once = Once::new();
    // A panicking thread cannot change the hook, so a later call installs it.
    if thread::panicking() {
        return;
    }
    INSTALLED.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            // The time-out is recorded first, because `before` may take a second for its backtrace.
            let over = timed_out::note(info);
            before(info);
            if let Some(test) = over {
                timed_out::end(test);
            }
            test_has_failed();
        }));
    });
}
