//! Private directories: one for each executor, with its log, its locks, and what `{dir}` stands
//! for.
//!
//! ```text
//! <temp dir>/mirakuru-<euid>/       0700; the base. 0711 once a service runs as another user
//!     k3v7q2mxw5ha/                 0700 (0711 as above); one executor's service directory, named by its id
//!         lock                      flocked while its process or the service's supervisor lives
//!         log, log.index            made by the log's own code, 0600
//!         kept                      there when the log is to outlive its executor
//!         d/                        0700, the service's: `{dir}`
//!     new-812-99120-4026531836-k3v7q2mxw5ha/
//!                               a service directory that is being made: by which process, and in
//!                               which pid namespace
//!     locks/                        locks of ports and paths: `ports/lock.rs`
//! ```
//!
//! A test process that is killed leaves its service directories behind. The next one sweeps them: a
//! service directory is left over when no process holds `lock`. A process id would not do, because
//! a supervisor outlives the test process, and because two containers that share a temp dir do not
//! see each other's processes; both see a flock.
//!
//! Sweeps, creations and removals run side by side in many processes without a common lock:
//!
//! - A service directory gets its name by `rename` when the locked `lock` is in it. Nobody ever
//!   sees it without.
//! - An id is random and never used twice, so a directory that was found left over stays so.
//! - A sweeper works on a left-over directory only while it holds its lock. Other sweepers skip it.
//! - `lock` is removed last. A lock on a file that has been unlinked counts for nothing. A
//!   directory without `lock` is left over and may be deleted, or holds a kept log.

pub(crate) mod base;
pub(crate) mod remove;
#[cfg(test)]
pub(crate) mod tests;

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown, fchown, lchown};
use std::path::{Component, Path, PathBuf};
use std::process;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::Error;
use crate::service_dir::base::{FALLBACK, base_in, may_reach, private_dir};
use crate::service_dir::remove::{clear, remove_tree};
use crate::sys;

/// The private directory of one executor. Dropping it removes the directory with everything in it;
/// after [`keep`](ServiceDir::keep), with everything but the log.
///
/// A copy that a fork made of it does nothing when dropped: the directory is its creator's.
#[derive(Debug)]
pub(crate) struct ServiceDir {
    id: String,
    path: PathBuf,
    dir: PathBuf,
    /// Until the service directory is somebody else's to see to.
    lock: Option<File>,
    kept: AtomicBool,
    creator: u32,
}

impl ServiceDir {
    /// Makes a service directory. `owner` is the user and group that the service runs as, if they
    /// are not the test's own.
    ///
    /// # Errors
    ///
    /// [`Error::System`] when the base directory is not safe to use or not to be had.
    pub(crate) fn create(owner: Option<(u32, u32)>) -> Result<ServiceDir, Error> {
        let mut base = base_in(&std::env::temp_dir());
        let other = owner.filter(|(uid, _)| *uid != sys::files::euid());
        if other.is_some_and(|other| !may_reach(&base, other)) {
            base = base_in(Path::new(FALLBACK));
        }
        ServiceDir::create_in(&base, owner)
    }

    pub(crate) fn create_in(base: &Path, owner: Option<(u32, u32)>) -> Result<ServiceDir, Error> {
        let foreign = owner.filter(|owner| *owner != (sys::files::euid(), sys::files::egid()));
        let loose = foreign.is_some_and(|(uid, _)| uid != sys::files::euid());
        private_dir(base, loose).map_err(|source| Error::System {
            attempt: format!("use the directory `{}` for private files", base.display()),
            source,
        })?;
        // Once more where a sweeper of another pid namespace took the unfinished service directory
        // for debris, or all ids ever met.
        let mut attempts = 0;
        loop {
            attempts += 1;
            match ServiceDir::try_create(base, foreign, loose) {
                Ok(service_dir) => return Ok(service_dir),
                Err(e) if attempts < 5 && is_retryable(&e) => {}
                Err(source) => {
                    let attempt = match foreign {
                        Some((uid, gid)) => {
                            format!(
                                "make a directory in `{}` for user {uid}, group {gid}",
                                base.display()
                            )
                        }
                        None => format!("make a directory in `{}`", base.display()),
                    };
                    return Err(Error::System { attempt, source });
                }
            }
        }
    }

    fn try_create(base: &Path, foreign: Option<(u32, u32)>, loose: bool) -> io::Result<ServiceDir> {
        let id = random_id()?;
        let (pid, started, namespace) = this_process_here();
        let unfinished = base.join(format!("new-{pid}-{started}-{namespace}-{id}"));
        DirBuilder::new().mode(0o700).create(&unfinished)?;
        let service_dir = furnish(&unfinished, foreign, loose).and_then(|lock| {
            let path = base.join(&id);
            // Never replaces a directory that has something in it, and every service directory has.
            fs::rename(&unfinished, &path)?;
            Ok(ServiceDir {
                dir: path.join("d"),
                path,
                id,
                lock: Some(lock),
                kept: AtomicBool::new(false),
                creator: pid,
            })
        });
        if service_dir.is_err() {
            remove_tree(&unfinished);
        }
        service_dir
    }

    /// The service directory of a service that somebody else sees to: dropping this leaves it
    /// alone.
    pub(crate) fn attach(path: PathBuf) -> ServiceDir {
        let id = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default()
            .to_owned();
        ServiceDir {
            dir: path.join("d"),
            path,
            id,
            lock: None,
            kept: AtomicBool::new(false),
            creator: 0,
        }
    }

    /// The directory itself.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// From now on somebody else sees to it: the supervisor, which has the lock.
    pub(crate) fn give_away(&mut self) {
        self.creator = 0;
        self.lock = None;
    }

    /// Whether the supervisor that works in this service directory is still there: it keeps the
    /// lock until the service's tree is gone.
    pub(crate) fn is_supervised(path: &Path) -> bool {
        sys::files::open_lock(&path.join("lock"), false)
            .is_ok_and(|lock| matches!(sys::files::is_locked(lock.as_fd()), Ok(true)))
    }

    /// Short, unique across processes, and made of lower-case letters and digits alone: safe in a
    /// file name or an environment variable.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// The service's own directory: `{dir}`.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the log goes. Nothing is there yet: make it with mode 0600.
    pub(crate) fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// Where the index of the log goes. Nothing is there yet: make it with mode 0600.
    pub(crate) fn index(&self) -> PathBuf {
        self.path.join("log.index")
    }

    /// A descriptor that keeps this service directory from being swept, for the supervisor to keep
    /// until the service's tree is gone. Closed on exec.
    pub(crate) fn lock_fd(&self) -> io::Result<OwnedFd> {
        match &self.lock {
            Some(lock) => Ok(lock.try_clone()?.into()),
            None => Err(io::Error::other("this directory is another process's")),
        }
    }

    /// Writes a file into the service's directory, for this user and group or for our own.
    pub(crate) fn write(&self, path: &Path, contents: &[u8], owner: Option<(u32, u32)>) -> io::Result<()> {
        let mut dir = self.dir.clone();
        for part in path.parent().into_iter().flat_map(Path::components) {
            dir.push(part);
            match DirBuilder::new().mode(0o700).create(&dir) {
                Ok(()) => give(&dir, owner)?,
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
            }
        }
        let path = self.dir.join(path);
        // A new one: whoever has the old one open, or has put a link in its place, keeps that.
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        file.write_all(contents)?;
        if let Some((uid, gid)) = owner {
            fchown(&file, Some(uid), Some(gid))?;
        }
        Ok(())
    }

    /// Makes the service's directory our own, and closed to its user.
    pub(crate) fn take_back(&self) -> io::Result<()> {
        give(&self.dir, Some((sys::files::euid(), sys::files::egid())))
    }

    /// Gives the service's directory with all that is in it to its user: the directory itself last,
    /// so that nobody can change anything under our hands.
    pub(crate) fn hand_over(&self, owner: (u32, u32)) -> io::Result<()> {
        fn all(dir: &Path, owner: (u32, u32)) -> io::Result<()> {
            for entry in fs::read_dir(dir)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    all(&entry.path(), owner)?;
                }
                give(&entry.path(), Some(owner))?;
            }
            Ok(())
        }
        all(&self.dir, owner)?;
        give(&self.dir, Some(owner))
    }

    /// Gives the directory of a service that is known by now to its user.
    pub(crate) fn give_to(&self, owner: (u32, u32)) -> Result<(), Error> {
        if owner == (sys::files::euid(), sys::files::egid()) {
            return Ok(());
        }
        let loose = |dir: &Path| fs::set_permissions(dir, Permissions::from_mode(0o711));
        let is_other_user = owner.0 != sys::files::euid();
        let given = match self.path.parent() {
            Some(base) if is_other_user => loose(base).and_then(|()| loose(&self.path)),
            _ => Ok(()),
        };
        given
            .and_then(|()| self.hand_over(owner))
            .map_err(|source| Error::System {
                attempt: format!("hand the directory over to user {}, group {}", owner.0, owner.1),
                source,
            })
    }

    /// Whether dropping this removes the directory: this process made it, and has not given it
    /// away.
    pub(crate) fn is_ours(&self) -> bool {
        self.creator != 0
    }

    /// From now on the log (and its index) outlives this executor, for a day.
    pub(crate) fn keep(&self) {
        // At once, so that it holds when the test process is killed as well.
        if File::create(self.path.join("kept")).is_ok() {
            self.kept.store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for ServiceDir {
    fn drop(&mut self) {
        if self.creator == process::id() {
            clear(&self.path, *self.kept.get_mut());
        }
    }
}

/// Gives a file, a directory or a link to this user and group.
fn give(path: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    match owner {
        Some((uid, gid)) => lchown(path, Some(uid), Some(gid)),
        None => Ok(()),
    }
}

/// Whether a path stays in the directory that it is relative to; if not, why.
pub(crate) fn check_within(path: &Path) -> Result<(), String> {
    let plain = |part| matches!(part, Component::Normal(_));
    if path.file_name().is_some() && path.components().all(plain) {
        return Ok(());
    }
    Err(format!(
        "the file `{}` is to be in the private directory: its path must be relative to that, without `..`",
        path.display()
    ))
}

/// Fills a new service directory: everything but the name.
fn furnish(path: &Path, foreign: Option<(u32, u32)>, loose: bool) -> io::Result<File> {
    let lock = sys::files::open_lock(&path.join("lock"), true)?;
    if !sys::files::try_flock(lock.as_fd())? {
        return Err(io::Error::other(
            "somebody else has locked a file that was just made",
        ));
    }
    let dir = path.join("d");
    DirBuilder::new().mode(0o700).create(&dir)?;
    if let Some((uid, gid)) = foreign {
        // Whatever the umask has left of it: unlike root, this user needs it.
        fs::set_permissions(&dir, Permissions::from_mode(0o700))?;
        match chown(&dir, Some(uid), Some(gid)) {
            // A process that may not give files away may not become that user either. The start
            // fails at that, and says that it takes root.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            given => given?,
        }
    }
    if loose {
        fs::set_permissions(path, Permissions::from_mode(0o711))?;
    }
    Ok(lock)
}

fn is_retryable(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty
    )
}

pub(crate) fn is_id(name: &str) -> bool {
    name.len() == ID_LENGTH && name.bytes().all(|b| ID_ALPHABET.contains(&b))
}

const ID_LENGTH: usize = 12;
const ID_ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// 60 random bits, as a name.
///
/// # Errors
///
/// When the system gives no randomness.
pub fn random_id() -> io::Result<String> {
    let mut random = [0; ID_LENGTH];
    sys::files::random(&mut random)?;
    Ok(random
        .iter()
        .map(|byte| char::from(ID_ALPHABET[usize::from(byte % 32)]))
        .collect())
}

/// This process's id and start time.
pub(crate) fn this_process() -> (u32, u64) {
    let (pid, started, _) = this_process_here();
    (pid, started)
}

/// The same with its pid namespace.
fn this_process_here() -> (u32, u64, u64) {
    // By pid, because a fork inherits what its parent has cached.
    static CACHE: Mutex<(u32, u64, u64)> = Mutex::new((0, 0, 0));
    let pid = process::id();
    let mut cache = CACHE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if cache.0 != pid {
        let started = sys::procfs::start_time(pid).unwrap_or(0);
        *cache = (pid, started, sys::procfs::pid_namespace());
    }
    *cache
}

/// Whether the process that had this id and began at this time still runs.
pub(crate) fn is_alive(pid: u32, started: u64) -> bool {
    sys::procfs::start_time(pid) == Some(started)
}
