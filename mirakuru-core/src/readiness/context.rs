//! The arguments of a readiness condition's methods: [`Prepare`] before the start, [`Probe`] at
//! each poll, and [`Wake`] between two polls.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use crate::error::Error;
use crate::output::logs::Logs;
use crate::output::mark::Mark;
use crate::output::reader::{OutputReader, Stream};
use crate::ports::address::{self, Place};
use crate::ports::owner::{self, Listeners, listeners_of_tree, owned_by_tree};
use crate::ports::values::Values;
use crate::recipe::command::Command;
use crate::sys::{Protocol, procfs};
#[cfg(feature = "http")]
use crate::util::backoff::FIRST_POLL;
use crate::util::backoff::{fallback_poll_pause, poll_pause};
use crate::util::insert_sorted;

/// Tolerance for file times, which lag behind the clock by one tick of up to 10 ms.
pub(super) const TICK: Duration = Duration::from_millis(50);

/// The argument of [`Readiness::prepare`](crate::readiness::Readiness::prepare). It fills in
/// placeholders, and collects the endpoints that mirakuru locks for the service.
pub struct Prepare<'a> {
    pub(crate) values: &'a mut Values,
    pub(crate) addrs: Vec<SocketAddr>,
    pub(crate) udp_addrs: Vec<SocketAddr>,
    pub(crate) paths: Vec<PathBuf>,
    pub(crate) env: Vec<(String, String)>,
    /// Descriptors that the supervisor keeps open until the service's last process has ended.
    pub(crate) keep: Vec<OwnedFd>,
}

impl fmt::Debug for Prepare<'_> {
    /// Omits the environment and the values of placeholders, because some are secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prepare")
            .field("dir", &self.dir())
            .field("addrs", &self.addrs)
            .field("paths", &self.paths)
            .finish_non_exhaustive()
    }
}

impl<'a> Prepare<'a> {
    pub(crate) fn new(values: &'a mut Values) -> Prepare<'a> {
        Prepare {
            values,
            addrs: Vec::new(),
            udp_addrs: Vec::new(),
            paths: Vec::new(),
            env: Vec::new(),
            keep: Vec::new(),
        }
    }
}

impl Prepare<'_> {
    /// Fills in the placeholders in a string of a readiness condition.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidReadiness`] if the string contains an unknown placeholder; [`Error::System`]
    /// if no port is free.
    pub fn expand(&mut self, text: &str) -> Result<String, Error> {
        self.values.expand(text).map_err(|e| e.in_readiness(text))
    }

    /// Creates an [`Error::InvalidReadiness`]. `reason` should name the mistake in the condition
    /// and its remedy.
    #[must_use]
    pub fn invalid(&self, readiness: impl Into<String>, reason: impl Into<String>) -> Error {
        self.refusal(&readiness.into(), &reason.into())
    }

    fn refusal(&self, readiness: &str, reason: &str) -> Error {
        Error::InvalidReadiness {
            readiness: self.values.mask(readiness),
            reason: self.values.mask(reason),
            system: Vec::new(),
        }
    }

    /// Requests a lock on a local TCP address on which the service will listen. Before the start,
    /// mirakuru checks that the address is free. Services that lock the same address run one after
    /// another.
    pub fn lock_addr(&mut self, addr: SocketAddr) {
        self.addrs.push(addr);
    }

    /// Requests a lock on a path at which the service will create a socket. If another process
    /// accepts connections there, the start fails. Services that lock the same path run one after
    /// another.
    pub fn lock_path(&mut self, path: impl Into<PathBuf>) {
        self.paths.push(path.into());
    }

    /// Converts a condition's addresses to those that clients use. Requests a lock on each local
    /// address, unless its port was chosen for the service.
    pub(crate) fn places(&mut self, protocol: Protocol, addrs: &[SocketAddr]) -> Vec<Place> {
        for addr in addrs {
            if address::is_local(addr.ip()) && !self.is_chosen(addr.port()) {
                // The address is locked as given: a server on `0.0.0.0` conflicts with more servers
                // than one on loopback.
                match protocol {
                    Protocol::Tcp => self.addrs.push(*addr),
                    Protocol::Udp => self.udp_addrs.push(*addr),
                }
            }
        }
        Place::all(addrs)
    }

    /// Whether the port was chosen for this service with `{port}` or `{port:NAME}`. Such a port is
    /// already reserved and needs no lock.
    fn is_chosen(&self, port: u16) -> bool {
        self.values.port_numbers().contains(&port)
    }

    /// Sets an environment variable of the service.
    pub fn env(&mut self, key: impl Into<String>, value: impl Into<String>) {
        self.env.push((key.into(), value.into()));
    }

    /// The service's private directory, which is the value of `{dir}`.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.values.dir()
    }

    /// The words of a condition's command, with the placeholders filled in.
    pub(crate) fn resolve(&mut self, command: &Command) -> Result<Vec<OsString>, Error> {
        command.resolve(&mut |word| self.values.expand_os(word), false)
    }
}

/// The argument of [`Readiness::probe`](crate::readiness::Readiness::probe), which gives access to
/// the service.
pub struct Probe<'a> {
    pub(crate) values: &'a Values,
    pub(crate) pid: u32,
    /// Process id of the root of the service's tree.
    pub(crate) supervisor: u32,
    /// The time of day just before `elapsed` was measured. If it were taken later, a delay in
    /// between would make the service seem to have started later than it did.
    pub(crate) now: SystemTime,
    pub(crate) elapsed: Duration,
    pub(crate) remaining: Duration,
    pub(crate) output: &'a OutputReader,
    /// The end of the log when the service was started.
    pub(crate) since: &'a Mark,
    pub(crate) log_files: &'a [PathBuf],
    /// Whether the service has ended. If so, the log already contains all of its output.
    pub(crate) is_over: bool,
    pub(crate) notes: &'a Mutex<Notes>,
}

/// Results that conditions share during one start of a service.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    /// For each pattern and stream, the number of lines that have satisfied a wait.
    found: Vec<(LineKey, usize)>,
    /// The named groups in lines that satisfied a wait.
    pub(crate) captured: Vec<(String, String)>,
}

/// A pattern, and the stream if only one is searched.
pub(crate) type LineKey = (String, Option<Stream>);

impl fmt::Debug for Probe<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probe")
            .field("pid", &self.pid)
            .field("dir", &self.dir())
            .field("elapsed", &self.elapsed)
            .field("remaining", &self.remaining)
            .finish_non_exhaustive()
    }
}

impl Probe<'_> {
    /// The service's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The value of `{port}`, if the recipe has one.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.values.port("")
    }

    /// The value of `{port:NAME}`, if the recipe has one.
    #[must_use]
    pub fn port_named(&self, name: &str) -> Option<u16> {
        self.values.port(name)
    }

    /// The service's private directory, which is the value of `{dir}`.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.values.dir()
    }

    /// Time since the service was started.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }

    /// The time left until the recipe's timeout. A probe that may block must return within this
    /// time.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.remaining
    }

    /// The service's output since its start, limited to the last 16 MiB.
    #[must_use]
    pub fn logs(&self) -> Logs {
        Logs::since(self.output, self.log_files, self.since)
    }

    /// Number of matching lines that earlier waits have consumed since the service started.
    pub(crate) fn lines_found(&self, key: &LineKey) -> usize {
        let notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        let found = notes.found.iter().find(|(known, _)| known == key);
        found.map_or(0, |(_, count)| *count)
    }

    /// Records that `count` lines have satisfied a wait, and stores the groups of the last one.
    pub(crate) fn found(&self, key: LineKey, count: usize, groups: &[(String, String)]) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        notes.found.retain(|(known, _)| *known != key);
        notes.found.push((key, count));
        for (name, text) in groups {
            notes.captured.retain(|(known, _)| known != name);
            notes.captured.push((name.clone(), text.clone()));
        }
    }

    /// Whether the service's own processes listen on this local address.
    ///
    /// # Errors
    ///
    /// An error of kind [`io::ErrorKind::AddrInUse`] if another process listens there; its message
    /// names the process. An error of another kind if the owner of the socket cannot be found.
    pub fn listens_on(&self, addr: SocketAddr) -> io::Result<bool> {
        owned_by_tree(Protocol::Tcp, addr, self.supervisor)
    }

    /// Like [`listens_on`](Probe::listens_on), but returns the sockets. `None` if no process
    /// listens.
    pub(crate) fn listeners_on(&self, addr: SocketAddr) -> io::Result<Option<Listeners>> {
        listeners_of_tree(Protocol::Tcp, addr, self.supervisor)
    }

    /// If the service listens on addresses other than the awaited one, names them and a remedy.
    pub(crate) fn listens_elsewhere(&self, awaited: SocketAddr) -> Option<String> {
        let mut found = Vec::new();
        for addr in owner::addresses_of_tree(self.supervisor) {
            insert_sorted(&mut found, addr);
        }
        let serves = |addr: &SocketAddr| {
            addr.port() == awaited.port() && (addr.ip() == awaited.ip() || addr.ip().is_unspecified())
        };
        if found.is_empty() || found.iter().any(serves) {
            return None;
        }
        let is_localhost = |ip: IpAddr| ip == Ipv4Addr::LOCALHOST || ip == Ipv6Addr::LOCALHOST;
        // `localhost` is suggested only if it resolves to this address, because a hosts file may
        // give it only one of the loopback addresses.
        let is_meant = |addr: &SocketAddr| {
            let meant = address::resolve(&format!("localhost:{}", addr.port()));
            meant.is_ok_and(|addrs| addrs.contains(addr))
        };
        let remedy = match found.iter().find(|addr| addr.port() == awaited.port()) {
            Some(addr) if is_localhost(addr.ip()) && is_localhost(awaited.ip()) && is_meant(addr) => format!(
                "await `localhost:{}`, or let it bind {}",
                awaited.port(),
                awaited.ip()
            ),
            Some(addr) => format!("await `{addr}`, or let it bind {}", awaited.ip()),
            None => "tell it the port in its command".to_owned(),
        };
        let found: Vec<String> = found.iter().take(5).map(SocketAddr::to_string).collect();
        Some(format!(
            "it listens on {}, and not on {awaited}: {remedy}",
            found.join(", ")
        ))
    }

    /// Whether a file with this change time may have changed since the start of the service. The
    /// time is in seconds and nanoseconds since 1970.
    pub(crate) fn is_since_start(&self, changed: (i64, i64)) -> bool {
        let (Ok(seconds), Ok(nanos)) = (u64::try_from(changed.0), u32::try_from(changed.1)) else {
            return false;
        };
        let changed = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos);
        let start = self.now.checked_sub(self.elapsed + TICK);
        start.is_none_or(|start| changed >= start)
    }

    /// Finds a file that the service may have created instead of the awaited one, and for which
    /// `is_kind` returns true. Searches the awaited file's directory, the private directory and the
    /// service's working directory.
    pub(crate) fn made_elsewhere(&self, awaited: &Path, is_kind: &dyn Fn(&Path) -> bool) -> Option<PathBuf> {
        let is_new = |path: &Path| {
            let metadata = path.symlink_metadata();
            metadata.is_ok_and(|file| self.is_since_start((file.ctime(), file.ctime_nsec())))
        };
        let parent = awaited.parent().map(Path::to_owned);
        let dirs = [parent, Some(self.dir().to_owned()), procfs::current_dir(self.pid)];
        for dir in dirs.into_iter().flatten() {
            let Ok(entries) = std::fs::read_dir(dir) else {
                continue;
            };
            // The number of entries is limited, because a directory such as `/tmp` may contain
            // thousands.
            for entry in entries.take(1000).flatten() {
                let path = entry.path();
                if path != awaited && is_new(&path) && is_kind(&path) {
                    return Some(path);
                }
            }
        }
        None
    }

    /// Whether the service's own processes have bound this local UDP address.
    ///
    /// # Errors
    ///
    /// The same errors as [`listens_on`](Probe::listens_on).
    pub fn binds_udp(&self, addr: SocketAddr) -> io::Result<bool> {
        owned_by_tree(Protocol::Udp, addr, self.supervisor)
    }
}

/// Collects the times and events at which a condition is polled again. The earliest one counts.
///
/// This type cannot be named outside the crate, and the only method that uses it,
/// [`Readiness::wakes`](crate::readiness::Readiness::wakes), is hidden.
#[derive(Debug)]
pub struct Wake {
    /// Time since the service was started.
    elapsed: Duration,
    /// Whether new output ends the pause.
    pub(crate) output: bool,
    /// Descriptors that end the pause when they become readable.
    pub(crate) events: Vec<RawFd>,
    /// Time after which the condition is polled again even if no event occurs.
    pub(crate) pause: Duration,
}

impl Wake {
    pub(crate) fn new(elapsed: Duration) -> Wake {
        Wake {
            elapsed,
            output: false,
            events: Vec::new(),
            pause: Duration::MAX,
        }
    }

    /// Polls again when there is new output.
    pub(crate) fn on_output(&mut self) {
        self.output = true;
    }

    /// Polls again when this descriptor is readable. It must stay open until the next poll, which
    /// must read from it. Otherwise the next pause would end immediately.
    pub(crate) fn on(&mut self, event: BorrowedFd<'_>) {
        self.events.push(event.as_raw_fd());
    }

    /// Polls again after a pause that is proportional to the time already waited. For conditions
    /// without events.
    pub(crate) fn with_back_off(&mut self) {
        self.within(poll_pause(self.elapsed));
    }

    /// Like [`with_back_off`](Wake::with_back_off), but polls earlier by `sooner`, the time that a
    /// successful poll takes.
    #[cfg(feature = "http")]
    pub(crate) fn with_back_off_but(&mut self, sooner: Duration) {
        let pause = poll_pause(self.elapsed).saturating_sub(sooner).max(FIRST_POLL);
        self.within(pause);
    }

    /// Also polls now and then, in case an event was missed.
    pub(crate) fn fallback_poll(&mut self) {
        self.within(fallback_poll_pause(self.elapsed));
    }

    /// Polls again when this much time has passed since the service was started.
    pub(crate) fn at(&mut self, time: Duration) {
        self.within(time.saturating_sub(self.elapsed));
    }

    /// Polls again after this pause at the latest.
    pub(crate) fn within(&mut self, pause: Duration) {
        self.pause = self.pause.min(pause);
    }
}
