//! Locks on fixed ports and socket paths. They ensure that services on the same port or path run
//! one after another, whether in one test binary or in several.
//!
//! A lock consists of `flock`s, one for each endpoint, on files in `/tmp/mirakuru-<euid>/locks/`.
//! The directory does not depend on TMPDIR, so runs with different temporary directories exclude
//! each other. If `/tmp` cannot be used, the files are in the base of
//! [`service_dir`](crate::service_dir). Each user has separate locks. If another user's service
//! uses the port, the start fails with an error that names that service.
//!
//! # Holder and end of a lock
//!
//! A `flock` belongs to the open file description, which the supervisor inherits from the test
//! process. The test process then closes its own descriptor ([`EndpointLock::hand_over`]). From
//! then on, the endpoint is free once the supervisor and the service's processes are gone, even if
//! any of them is killed with SIGKILL. The descriptors are close-on-exec, so the service does not
//! inherit them.
//!
//! # No deadlock between processes
//!
//! An [`EndpointLock`] locks its endpoints in sorted order, and keeps each lock while it waits for
//! the next. A test that needs several fixtures must take all their locks together. Otherwise two
//! tests could take locks in different orders and deadlock.
//!
//! # No waiting for oneself
//!
//! A test with two fixtures on the same fixed port would wait for itself. To prevent that, a
//! registry records which thread holds which lock. A thread that tries to take its own lock again
//! gets an error immediately.
//!
//! A thread represents a test, because libtest runs each test on its own thread. Thread ids are
//! never reused within a process. If an executor moves to another thread, its lock still counts as
//! held by the first thread. If that thread needs the endpoint again, it gets an error, although it
//! could have waited.
//!
//! A service in a `static` lives as long as the process and belongs to no thread
//! ([`EndpointLock::for_process`]). A wait for it would never end, so every thread gets the error.
//! If a service lives as long as the test run ([`EndpointLock::for_run`]), a note in the lock file
//! says so, and the run's other processes get the error as well.
//!
//! # The files stay
//!
//! mirakuru never removes lock files. Otherwise one process could lock a removed file while another
//! locks a new file of the same name. The files are small, and there is one for each endpoint.
//! Programs that clean `/tmp` may still remove a file. After locking a file, a process therefore
//! checks that the path still leads to this file.

use std::fmt;
use std::fs::{self, File};
use std::hash::Hasher;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use crate::error::secrets::Secrets;
use crate::observe::progress::Progress;
use crate::run::Run;
use crate::service_dir;
use crate::sys;
use crate::util::backoff::Pauses;
use crate::util::hash::Fnv1a;
use crate::util::insert_sorted;

/// How long [`EndpointLock::try_take`] waits for a lock that looks taken.
const JUST_FORKED: Duration = Duration::from_millis(20);
/// How long to wait for a lock that this process has released. On a busy machine, a process that
/// another thread has forked may need that long until it executes its program.
const COPIES_CLOSE_WITHIN: Duration = Duration::from_secs(5);

/// An endpoint that only one service can use at a time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Endpoint {
    /// Name of the lock file. Locks are taken in the order of these names.
    file: String,
    /// The endpoint's name in error messages.
    endpoint: String,
}

impl From<SocketAddr> for Endpoint {
    /// Only the port counts, because services on 127.0.0.1 and on 0.0.0.0 exclude each other.
    fn from(addr: SocketAddr) -> Endpoint {
        let port = addr.port();
        Endpoint {
            file: format!("tcp-{port}"),
            endpoint: format!("port {port}"),
        }
    }
}

impl From<&Path> for Endpoint {
    fn from(path: &Path) -> Endpoint {
        // The socket may not exist yet, so symbolic links are resolved only in its directory.
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let canonical = match (absolute.parent(), absolute.file_name()) {
            (Some(dir), Some(name)) => dir.canonicalize().unwrap_or_else(|_| dir.to_owned()).join(name),
            _ => absolute,
        };
        let mut hash = Fnv1a(0xcbf2_9ce4_8422_2325);
        hash.write(canonical.as_os_str().as_bytes());
        Endpoint {
            file: format!("unix-{:016x}", hash.finish()),
            endpoint: format!("socket {}", path.display()),
        }
    }
}

impl Endpoint {
    /// Removes the secrets from the endpoint's name in messages.
    pub(crate) fn masked(mut self, secrets: &Secrets) -> Endpoint {
        self.endpoint = secrets.mask(&self.endpoint);
        self
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.endpoint)
    }
}

/// The exclusive right to a set of endpoints while the service runs. Dropping it releases the locks
/// that have not been [handed over](EndpointLock::hand_over), and removes all its locks from the
/// registry.
#[derive(Debug)]
pub(crate) struct EndpointLock {
    locks: Vec<File>,
    id: u64,
    service: String,
}

impl EndpointLock {
    /// Takes all endpoints if all are free, otherwise none. Error messages of other processes show
    /// `service`.
    ///
    /// Retries for a few milliseconds, because a process that another thread has just forked has
    /// copies of all locks until it executes its program. If this process was the last holder and
    /// has released the lock, only such copies can be left, so retries for up to 5 s.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::Deadlock`] if an endpoint is held by this thread, or by a service that
    /// lives as long as this process or test run. Another kind if a lock file cannot be used.
    pub(crate) fn try_take(endpoints: &[Endpoint], service: &str) -> io::Result<Option<EndpointLock>> {
        EndpointLock::take(endpoints, service, JUST_FORKED)
    }

    /// Waits until all endpoints are free, and takes them. Returns `None` if that would take longer
    /// than `limit`.
    ///
    /// # Errors
    ///
    /// The same errors as [`try_take`](EndpointLock::try_take).
    pub(crate) fn take(
        endpoints: &[Endpoint],
        service: &str,
        limit: Duration,
    ) -> io::Result<Option<EndpointLock>> {
        if endpoints.is_empty() {
            return Ok(Some(EndpointLock::register(service, &[], Vec::new())));
        }
        EndpointLock::take_in(&locks_dir()?, endpoints, service, limit)
    }

    fn take_in(
        dir: &Path,
        endpoints: &[Endpoint],
        service: &str,
        limit: Duration,
    ) -> io::Result<Option<EndpointLock>> {
        let began = Instant::now();
        let mut progress = Progress::new();
        let mut sorted = Vec::new();
        for endpoint in endpoints {
            insert_sorted(&mut sorted, endpoint);
        }
        let (mut paths, mut locks) = (Vec::new(), Vec::new());
        let note = note(service, None);
        for endpoint in sorted {
            let path = &dir.join(&endpoint.file);
            if paths.contains(path) {
                continue;
            }
            let mut pauses = Pauses::new();
            loop {
                // This is checked in every round, because another thread may call `for_process` in
                // the meantime.
                if is_own(path) {
                    return Err(io::Error::new(io::ErrorKind::Deadlock, wanted_twice(endpoint)));
                }
                if let Some(lock) = try_lock(path)? {
                    // If the note cannot be written, other processes cannot name the holder in
                    // errors.
                    let _ = lock.write_all_at(&note, 0);
                    locks.push(lock);
                    paths.push(path.clone());
                    break;
                }
                // The first rounds skip this check, because a new holder may not have written its
                // note yet.
                if pauses.are_long() && is_of_this_run(path) {
                    return Err(io::Error::new(
                        io::ErrorKind::Deadlock,
                        format!(
                            "{endpoint} belongs to a service that the whole test run shares, so waiting for \
                             it would never end"
                        ),
                    ));
                }
                let limit = match has_released(path) {
                    true => limit.max(COPIES_CLOSE_WITHIN),
                    false => limit,
                };
                let left = limit.saturating_sub(began.elapsed());
                if left.is_zero() {
                    return Ok(None);
                }
                progress.tell(&|elapsed| {
                    let holder = holder_in(dir, endpoint);
                    let holder = holder.map_or(String::new(), |holder| format!("; it is held by {holder}"));
                    format!("{service} has been waiting for {endpoint} for {elapsed}{holder}")
                });
                pauses.sleep(left);
            }
        }
        Ok(Some(EndpointLock::register(service, &paths, locks)))
    }

    fn register(service: &str, paths: &[PathBuf], locks: Vec<File>) -> EndpointLock {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let thread = thread::current();
        let mut registry = registry();
        for path in paths {
            registry.push(Held {
                path: path.clone(),
                thread: Some(thread.id()),
                thread_name: thread.name().map(str::to_owned),
                life: life_of_thread(),
                endpoint_lock: id,
            });
        }
        EndpointLock {
            locks,
            id,
            service: service.to_owned(),
        }
    }

    /// The descriptors that the supervisor inherits and keeps open until the service's processes
    /// are gone.
    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.locks.iter().map(AsFd::as_fd)
    }

    /// Closes the descriptors in this process, after the supervisor has inherited them. The
    /// registry still lists the locks.
    pub(crate) fn hand_over(&mut self) {
        self.locks.clear();
    }

    /// Marks the locks as held until this process ends, so that none of its threads waits for them.
    pub(crate) fn for_process(&mut self) {
        for held in registry().iter_mut() {
            if held.endpoint_lock == self.id {
                held.thread = None;
            }
        }
    }

    /// Marks the locks as held until the test run ends, so that none of its processes waits for
    /// them.
    pub(crate) fn for_run(&mut self) {
        self.for_process();
        let Some(run) = Run::current() else { return };
        let note = note(&self.service, Some(run.runner()));
        for held in registry().iter() {
            if held.endpoint_lock == self.id {
                // The file is opened again, because the lock may have been handed over. If the note
                // cannot be written, other processes wait until their time limit.
                let lock = sys::files::open_lock(&held.path, false);
                let _ = lock.and_then(|lock| lock.write_all_at(&note, 0));
            }
        }
    }
}

impl Drop for EndpointLock {
    fn drop(&mut self) {
        registry().retain(|held| held.endpoint_lock != self.id);
    }
}

/// The error text for two services of one test or process that need the same endpoint.
pub(crate) fn wanted_twice(endpoint: &Endpoint) -> String {
    format!("two services of this test or test process need {endpoint}, so waiting for it would never end")
}

/// Describes the last holder of the lock on this endpoint, for example `redis-server of test
/// process tests-1f3a (pid 812)`. For errors after [`EndpointLock::try_take`] has returned `None`.
pub(crate) fn holder(endpoint: &Endpoint) -> Option<String> {
    holder_in(&locks_dir().ok()?, endpoint)
}

fn holder_in(dir: &Path, endpoint: &Endpoint) -> Option<String> {
    let note = fs::read(dir.join(&endpoint.file)).ok()?;
    let note = String::from_utf8_lossy(&note);
    let mut lines = note.lines();
    let mut numbers = lines.next()?.split(' ').map(str::parse::<u64>);
    let (pid, started) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    let (test, service) = (lines.next()?, lines.next()?);
    // The test process may have ended although its supervisor still holds the lock.
    let ended = if service_dir::is_alive(pid as u32, started) {
        ""
    } else {
        ", which has ended"
    };
    let starter = match pid == u64::from(std::process::id()) {
        true => starter(&dir.join(&endpoint.file)).unwrap_or_default(),
        false => String::new(),
    };
    Some(format!(
        "{service} of test process {test} (pid {pid}{ended}){starter}"
    ))
}

/// Describes the thread of this process that took the lock on this file. libtest names a thread
/// after its test.
fn starter(path: &Path) -> Option<String> {
    let registry = registry();
    let held = registry.iter().find(|held| held.path == path)?;
    held.thread?;
    let has_ended = held.life.strong_count() == 0;
    Some(match (&held.thread_name, has_ended) {
        (Some(name), false) => format!(", started by `{name}`"),
        (Some(name), true) => {
            format!(", started by `{name}`, which has ended; one of its threads still has the service")
        }
        (None, _) => {
            ", started by a thread without a name, perhaps of a test that `#[timeout]` has ended".to_owned()
        }
    })
}

/// Length of every note. A new note overwrites the old one in place. If the file were truncated
/// instead, some file systems would write to the disk immediately.
const NOTE_LENGTH: usize = 512;

/// Builds a note of four lines, padded with spaces: the holder's pid and start time, its test
/// binary, the service, and the run. If the whole run shares the service, the last line contains
/// the runner's pid and start time. Otherwise it is empty.
fn note(service: &str, runner: Option<(u32, u64)>) -> [u8; NOTE_LENGTH] {
    let test = std::env::current_exe().ok();
    let test = test
        .as_deref()
        .and_then(Path::file_name)
        .unwrap_or_default()
        .to_string_lossy();
    let (pid, started) = service_dir::this_process();
    let short = |text: &str| {
        let visible = |c: char| if c.is_control() { ' ' } else { c };
        text.chars().take(50).map(visible).collect::<String>()
    };
    let runner = runner.map_or(String::new(), |(pid, started)| format!("{pid} {started}"));
    let text = format!(
        "{pid} {started}\n{}\n{}\n{runner}\n",
        short(&test),
        short(service)
    );
    let mut note = [b' '; NOTE_LENGTH];
    let length = text.len().min(NOTE_LENGTH);
    note[..length].copy_from_slice(&text.as_bytes()[..length]);
    note
}

/// Whether the lock is held by a service shared by all processes of this test run.
fn is_of_this_run(path: &Path) -> bool {
    let Some(run) = Run::current() else { return false };
    let (pid, started) = run.runner();
    let wanted = format!("{pid} {started}");
    fs::read(path).is_ok_and(|note| String::from_utf8_lossy(&note).lines().nth(3) == Some(wanted.as_str()))
}

fn try_lock(path: &Path) -> io::Result<Option<File>> {
    loop {
        let lock = sys::files::open_lock(path, true)?;
        if !sys::files::try_flock(lock.as_fd())? {
            return Ok(None);
        }
        // Between `open` and `flock`, another program may have removed the file, and another
        // process may have locked a new file of this name.
        if service_dir::base::is_at(&lock, path)? {
            return Ok(Some(lock));
        }
    }
}

fn locks_dir() -> io::Result<PathBuf> {
    let euid = sys::files::euid();
    let make = |temp: &Path| -> io::Result<PathBuf> {
        let base = service_dir::base::base_in(temp);
        service_dir::base::private_dir(&base, false)?;
        let dir = base.join("locks");
        service_dir::base::private_dir(&dir, false)?;
        Ok(dir)
    };
    make(Path::new("/tmp"))
        .or_else(|_| make(&std::env::temp_dir()))
        .map_err(|e| {
            io::Error::new(
                e.kind(),
                format!("no directory for locks at `/tmp/mirakuru-{euid}/locks`: {e}"),
            )
        })
}

struct Held {
    path: PathBuf,
    /// The thread that took the lock. `None` if the lock belongs to the whole process.
    thread: Option<ThreadId>,
    thread_name: Option<String>,
    /// A weak reference that is dead once the thread that took the lock has ended.
    life: Weak<()>,
    endpoint_lock: u64,
}

/// A weak reference that is dead once the current thread has ended.
fn life_of_thread() -> Weak<()> {
    thread_local! {
        static LIFE: Arc<()> = Arc::new(());
    }
    LIFE.try_with(Arc::downgrade).unwrap_or_default()
}

fn registry() -> MutexGuard<'static, Vec<Held>> {
    static REGISTRY: Mutex<Vec<Held>> = Mutex::new(Vec::new());
    // The list is valid even after a panic.
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether this process was the last to take the lock on this file, and has released it.
fn has_released(path: &Path) -> bool {
    let (pid, started) = service_dir::this_process();
    let ours = format!("{pid} {started}");
    fs::read(path).is_ok_and(|note| String::from_utf8_lossy(&note).lines().next() == Some(ours.as_str()))
        && !registry().iter().any(|held| held.path == path)
}

fn is_own(path: &Path) -> bool {
    let this = thread::current().id();
    let is_own = |held: &Held| held.path == path && held.thread.is_none_or(|thread| thread == this);
    registry().iter().any(is_own)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::sync::atomic::AtomicBool;
    use std::sync::mpsc;

    use super::*;
    use crate::sys::tests::in_time;
    use crate::util::own_process::{process_of, test_name};

    /// Time limit for waits that must succeed. None of these tests takes as long.
    const LONG: Duration = Duration::from_secs(30);

    struct Temp(PathBuf);

    impl Temp {
        fn new() -> Temp {
            static NEXT: AtomicU64 = AtomicU64::new(0);
            let unique = format!(
                "mirakuru-locks-{}-{}",
                std::process::id(),
                NEXT.fetch_add(1, Ordering::Relaxed)
            );
            let path = std::env::temp_dir().join(unique);
            let _ = fs::remove_dir_all(&path);
            fs::create_dir(&path).unwrap();
            Temp(path)
        }
        fn take(&self, ports: &[u16], limit: Duration) -> io::Result<Option<EndpointLock>> {
            EndpointLock::take_in(
                &self.0,
                &ports.iter().map(|port| endpoint(*port)).collect::<Vec<_>>(),
                "redis",
                limit,
            )
        }
        /// Takes the lock on another thread, which counts as another test.
        fn other_takes(&self, port: u16, limit: Duration) -> Option<EndpointLock> {
            thread::scope(|s| s.spawn(|| self.take(&[port], limit).unwrap()).join().unwrap())
        }
        /// Retries, because a process that another test has just forked may have copies of all
        /// locks.
        fn becomes_free(&self, port: u16) -> bool {
            self.other_takes(port, LONG).is_some()
        }
        fn is_held(&self, port: u16) -> bool {
            self.other_takes(port, Duration::ZERO).is_none()
        }
    }

    impl Drop for Temp {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn endpoint(port: u16) -> Endpoint {
        Endpoint::from(SocketAddr::from(([127, 0, 0, 1], port)))
    }

    #[test]
    fn an_endpoint_is_the_same_however_it_is_named() {
        assert_eq!(
            endpoint(6379),
            Endpoint::from("[::1]:6379".parse::<SocketAddr>().unwrap())
        );
        assert_ne!(endpoint(6379), endpoint(6380));
        assert_eq!(endpoint(6379).to_string(), "port 6379");
        let temp = Temp::new();
        let link = temp.0.join("link");
        std::os::unix::fs::symlink(&temp.0, &link).unwrap();
        let direct = Endpoint::from(temp.0.join("s").as_path());
        assert_eq!(direct.file, Endpoint::from(link.join("s").as_path()).file);
        assert_ne!(direct.file, Endpoint::from(temp.0.join("t").as_path()).file);
        assert_eq!(
            direct.to_string(),
            format!("socket {}", temp.0.join("s").display())
        );
    }

    #[test]
    fn a_lock_excludes_others_until_it_is_dropped() {
        let temp = Temp::new();
        let endpoint_lock = temp.take(&[1, 2], Duration::ZERO).unwrap().unwrap();
        assert!(temp.is_held(1) && temp.is_held(2) && temp.becomes_free(3));
        drop(endpoint_lock);
        assert!(temp.becomes_free(1) && temp.becomes_free(2));
    }

    #[test]
    fn what_was_handed_over_is_held_by_the_heir_alone() {
        let temp = Temp::new();
        let mut endpoint_lock = temp.take(&[1], Duration::ZERO).unwrap().unwrap();
        let heir: Vec<_> = endpoint_lock
            .fds()
            .map(|fd| fd.try_clone_to_owned().unwrap())
            .collect();
        assert_eq!(heir.len(), 1);
        endpoint_lock.hand_over();
        assert_eq!(endpoint_lock.fds().count(), 0);
        assert!(temp.is_held(1));
        // The supervisor ends while the executor still exists.
        drop(heir);
        assert!(temp.becomes_free(1));
    }

    #[test]
    fn a_released_lock_is_waited_for_until_the_copies_in_forks_are_closed() {
        let temp = Temp::new();
        let endpoint_lock = temp.take(&[1], Duration::ZERO).unwrap().unwrap();
        let copy = endpoint_lock.fds().next().unwrap().try_clone_to_owned().unwrap();
        assert!(temp.is_held(1));
        drop(endpoint_lock);
        thread::scope(|s| {
            s.spawn(|| {
                // The copy stays open for longer than the limit below.
                thread::sleep(Duration::from_millis(100));
                drop(copy);
            });
            assert!(temp.take(&[1], JUST_FORKED).unwrap().is_some());
        });
    }

    #[test]
    fn one_that_is_not_to_be_had_leaves_none_taken() {
        let temp = Temp::new();
        let other = temp.other_takes(2, Duration::ZERO).unwrap();
        assert!(temp.take(&[1, 2], Duration::from_millis(20)).unwrap().is_none());
        assert!(temp.becomes_free(1));
        drop(other);
        temp.take(&[2, 1, 2], LONG).unwrap().unwrap();
    }

    #[test]
    fn a_thread_does_not_wait_for_itself() {
        let temp = Temp::new();
        let mut endpoint_lock = temp.take(&[1], Duration::ZERO).unwrap().unwrap();
        let error = temp.take(&[1], LONG).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Deadlock);
        assert!(
            error
                .to_string()
                .contains("two services of this test or test process need port 1,"),
            "{error}"
        );
        // The error is the same after the supervisor has taken over the lock.
        endpoint_lock.hand_over();
        assert_eq!(
            temp.take(&[3, 1], LONG).unwrap_err().kind(),
            io::ErrorKind::Deadlock
        );
        drop(endpoint_lock);
        temp.take(&[1], LONG).unwrap().unwrap();
    }

    #[test]
    fn no_thread_waits_for_a_service_of_the_process() {
        let temp = Temp::new();
        let mut endpoint_lock = temp.take(&[1], Duration::ZERO).unwrap().unwrap();
        let (waits, waiting) = mpsc::channel();
        thread::scope(|s| {
            let waiter = s.spawn(|| {
                waits.send(()).unwrap();
                temp.take(&[1], LONG)
            });
            waiting.recv().unwrap();
            endpoint_lock.for_process();
            assert_eq!(
                waiter.join().unwrap().unwrap_err().kind(),
                io::ErrorKind::Deadlock
            );
        });
    }

    #[test]
    fn others_are_told_who_holds_it() {
        let temp = Temp::new();
        assert_eq!(holder_in(&temp.0, &endpoint(1)), None);
        let _lock = EndpointLock::take_in(&temp.0, &[endpoint(1)], "re\ndis", Duration::ZERO)
            .unwrap()
            .unwrap();
        let holder = holder_in(&temp.0, &endpoint(1)).unwrap();
        assert!(holder.starts_with("re dis of test process "), "{holder}");
        let started = "started by `ports::lock::tests::others_are_told_who_holds_it`";
        assert!(
            holder.ends_with(&format!("(pid {}), {started}", std::process::id())),
            "{holder}"
        );
        let long = "s".repeat(300);
        let _other = EndpointLock::take_in(&temp.0, &[endpoint(2)], &long, Duration::ZERO)
            .unwrap()
            .unwrap();
        let name = holder_in(&temp.0, &endpoint(2)).unwrap();
        assert!(name.starts_with("sss") && !name.starts_with(&long), "{name}");
        fs::write(temp.0.join("tcp-1"), "4194305 1\nsome-tests\nredis\n   ").unwrap();
        let holder = holder_in(&temp.0, &endpoint(1)).unwrap();
        assert_eq!(
            holder,
            "redis of test process some-tests (pid 4194305, which has ended)"
        );
    }

    /// A test can end while one of its threads still has the service.
    #[test]
    fn a_holder_whose_test_is_over_is_told_as_such() {
        let temp = Temp::new();
        let take = |port: u16, name: Option<&str>| {
            let mut builder = thread::Builder::new();
            if let Some(name) = name {
                builder = builder.name(name.to_owned());
            }
            thread::scope(|s| {
                let taker = builder.spawn_scoped(s, || temp.take(&[port], LONG).unwrap().unwrap());
                taker.unwrap().join().unwrap()
            })
        };
        let _of_test = take(1, Some("shop::opens"));
        in_time(|| {
            let holder = holder_in(&temp.0, &endpoint(1)).unwrap();
            holder.ends_with(
                "started by `shop::opens`, which has ended; one of its threads still has \
                the service",
            )
        });
        let _of_body = take(2, None);
        let holder = holder_in(&temp.0, &endpoint(2)).unwrap();
        assert!(holder.contains("a thread without a name"), "{holder}");
        // The test of this holder is still running.
        let (ends, end) = mpsc::channel::<()>();
        thread::scope(|s| {
            let (has, had) = mpsc::channel();
            let temp = &temp;
            let living = thread::Builder::new().name("shop::closes".to_owned());
            let living = living.spawn_scoped(s, move || {
                has.send(temp.take(&[3], LONG).unwrap().unwrap()).unwrap();
                let _ = end.recv();
            });
            let _lock = had.recv().unwrap();
            let holder = holder_in(&temp.0, &endpoint(3)).unwrap();
            assert!(holder.ends_with(", started by `shop::closes`"), "{holder}");
            drop(ends);
            living.unwrap().join().unwrap();
        });
    }

    #[test]
    fn a_lock_file_that_was_removed_and_made_anew_is_not_locked_twice() {
        let temp = Temp::new();
        let _lock = temp.take(&[1], Duration::ZERO).unwrap().unwrap();
        // If another program removes the file, later processes ignore the lock on it and use a new
        // file.
        fs::remove_file(temp.0.join("tcp-1")).unwrap();
        let second = temp.other_takes(1, Duration::ZERO);
        assert!(second.is_some());
        assert!(temp.is_held(1));
    }

    #[test]
    fn the_lock_files_are_in_one_place_for_all_temp_dirs() {
        let dir = locks_dir().unwrap();
        assert!(dir.starts_with("/tmp"), "{}", dir.display());
        assert_eq!(dir.metadata().unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn locks_in_different_orders_never_deadlock_and_never_overlap() {
        let temp = Temp::new();
        let busy: Arc<[AtomicBool; 3]> = Arc::default();
        thread::scope(|s| {
            for n in 0..24_usize {
                let (temp, busy) = (&temp, Arc::clone(&busy));
                s.spawn(move || {
                    for round in 0..5 {
                        let (a, b) = ((n + round) % 3, (n * 2 + round + 1) % 3);
                        let wanted = [a as u16, b as u16];
                        let endpoint_lock = temp.take(&wanted, LONG).unwrap().expect("nobody waits for ever");
                        let mut held = vec![a, b];
                        held.dedup();
                        for port in &held {
                            assert!(!busy[*port].swap(true, Ordering::SeqCst), "two at once");
                        }
                        thread::yield_now();
                        for port in &held {
                            busy[*port].store(false, Ordering::SeqCst);
                        }
                        drop(endpoint_lock);
                    }
                });
            }
        });
    }

    /// Runs in a process started by the next test: takes the lock, reports that, and waits to be
    /// killed.
    #[test]
    #[ignore = "a part of another test"]
    fn victim() {
        let dir = PathBuf::from(std::env::var_os("MIRAKURU_TEST_LOCKS").unwrap());
        let _lock = EndpointLock::take_in(&dir, &[endpoint(1)], "redis", LONG)
            .unwrap()
            .unwrap();
        println!("\ntaken");
        let _ = io::stdin().read_line(&mut String::new());
    }

    #[test]
    fn a_killed_process_holds_no_lock() {
        use std::io::{BufRead, BufReader};
        use std::process::Stdio;
        let temp = Temp::new();
        let mut victim = process_of(test_name!(victim))
            .env("MIRAKURU_TEST_LOCKS", &temp.0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(victim.stdout.take().unwrap())
            .lines()
            .map_while(Result::ok);
        assert!(lines.any(|line| line == "taken"));
        assert!(temp.take(&[1], Duration::ZERO).unwrap().is_none());
        assert!(
            holder_in(&temp.0, &endpoint(1))
                .unwrap()
                .contains(&format!("(pid {})", victim.id()))
        );
        victim.kill().unwrap();
        assert!(temp.take(&[1], LONG).unwrap().is_some());
        victim.wait().unwrap();
    }
}
