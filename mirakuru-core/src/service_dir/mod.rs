//! Private directories. Each executor has one, which contains its log, its locks, and the directory
//! for `{dir}`.
//!
//! ```text
//! <temp dir>/mirakuru-<euid>/       0700; the base. 0711 once a service runs as another user
//!     k3v7q2mxw5ha/                 0700 (0711 as above); one executor's service directory, named by its id
//!         lock                      flocked while its process or the service's supervisor lives
//!         log, log.index            0600; created by the caller of `ServiceDir::log`
//!         kept                      marks a log that outlives its executor
//!         d/                        0700; `{dir}`, which belongs to the service
//!     new-812-99120-4026531836-k3v7q2mxw5ha/
//!                               an unfinished service directory, named by its creator's pid, start
//!                               time and pid namespace
//!     locks/                        locks of ports and paths: `ports/lock.rs`
//! ```
//!
//! A killed test process leaves its service directories behind. The next process sweeps them: it
//! removes each service directory whose `lock` no process holds. A process id would not be enough,
//! because a supervisor outlives the test process. Also, two containers that share a temporary
//! directory see each other's flocks, but not each other's processes.
//!
//! Many processes sweep, create and remove side by side, without a common lock:
//!
//! - A service directory gets its name by `rename`, when it already contains the locked `lock`. So
//!   no process ever sees it without the lock.
//! - An id is random and never used twice, so a left-over directory is never used again.
//! - A sweeper works on a left-over directory only while it holds the directory's lock. Other
//!   sweepers skip it.
//! - `lock` is removed last. A lock on a file that has been unlinked does not count. A directory
//!   without `lock` is left over and may be deleted, or holds a kept log.

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

/// The private directory of one executor. Dropping this value removes the directory with all its
/// contents, but not the log after [`keep`](ServiceDir::keep).
///
/// In a forked child, dropping the copy does nothing, because the directory belongs to the process
/// that created it.
#[derive(Debug)]
pub(crate) struct ServiceDir {
    id: String,
    path: PathBuf,
    dir: PathBuf,
    /// The lock. `None` if another process must remove the directory.
    lock: Option<File>,
    kept: AtomicBool,
    creator: u32,
}

impl ServiceDir {
    /// Creates a service directory. `owner` is the service's user and group, if they differ from
    /// the test's.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if the base directory is not safe to use, or cannot be created.
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
        private_dir(base, loose).map_err(|source| {
            Error::system(
                format!("use the directory `{}` for private files", base.display()),
                source,
            )
        })?;
        // A sweeper in another pid namespace may remove the unfinished service directory. This loop
        // then tries again, as it does after a clash of ids.
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
                    return Err(Error::system(attempt, source));
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
            // `rename` fails if `path` exists, because no service directory is empty.
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

    /// Refers to another process's service directory. Dropping this value does not remove it.
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

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves the directory to the supervisor, which holds the lock and removes the directory.
    /// Dropping this value no longer removes it.
    pub(crate) fn give_away(&mut self) {
        self.creator = 0;
        self.lock = None;
    }

    /// Whether this service directory has a live supervisor, which holds the lock until the
    /// service's tree is gone.
    pub(crate) fn is_supervised(path: &Path) -> bool {
        sys::files::open_lock(&path.join("lock"), false)
            .is_ok_and(|lock| matches!(sys::files::is_locked(lock.as_fd()), Ok(true)))
    }

    /// A short name, unique across processes. It contains only lower-case letters and digits, so it
    /// is safe in a file name or an environment variable.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// The directory for the service: `{dir}`.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The path of the log. The caller creates the file, with mode 0600.
    pub(crate) fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// The path of the log's index. The caller creates the file, with mode 0600.
    pub(crate) fn index(&self) -> PathBuf {
        self.path.join("log.index")
    }

    /// A copy of the lock's descriptor, which protects this service directory from a sweep. The
    /// supervisor keeps it open until the service's tree is gone. It is close-on-exec.
    pub(crate) fn lock_fd(&self) -> io::Result<OwnedFd> {
        match &self.lock {
            Some(lock) => Ok(lock.try_clone()?.into()),
            None => Err(io::Error::other("this directory is another process's")),
        }
    }

    /// Writes a file into `{dir}`. The file belongs to `owner`, if given, and otherwise to this
    /// process's user.
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
        // The file is always created anew, because a process may have the old one open, or may have
        // put a link in its place.
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

    /// Makes this process's user the owner of `{dir}`. The service's user can no longer enter it.
    pub(crate) fn take_back(&self) -> io::Result<()> {
        give(&self.dir, Some((sys::files::euid(), sys::files::egid())))
    }

    /// Makes the service's user the owner of `{dir}` and its contents. The directory itself changes
    /// owner last, so that the user cannot enter it while its contents are being changed.
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

    /// Makes the service's user the owner of `{dir}` and its contents, and lets that user pass
    /// through the directories above it.
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
        given.and_then(|()| self.hand_over(owner)).map_err(|source| {
            Error::system(
                format!("hand the directory over to user {}, group {}", owner.0, owner.1),
                source,
            )
        })
    }

    /// Whether dropping this value removes the directory: this process created it and has not given
    /// it away.
    pub(crate) fn is_ours(&self) -> bool {
        self.creator != 0
    }

    /// Keeps the log and its index for a day, even after this executor is gone.
    pub(crate) fn keep(&self) {
        // The mark is created immediately, so that it counts even if the test process is killed.
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

/// Makes this user and group the owner of a file, a directory or a link.
fn give(path: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    match owner {
        Some((uid, gid)) => lchown(path, Some(uid), Some(gid)),
        None => Ok(()),
    }
}

/// Checks that a relative path stays inside its directory. The error explains the refusal.
pub(crate) fn check_within(path: &Path) -> Result<(), String> {
    let plain = |part| matches!(part, Component::Normal(_));
    if path.file_name().is_some() && path.components().all(plain) {
        return Ok(());
    }
    Err(format!(
        "the file `{}` must be in the private directory: give its path relative to that, without `..`",
        path.display()
    ))
}

/// Creates the contents of a new service directory, before it gets its final name.
fn furnish(path: &Path, foreign: Option<(u32, u32)>, loose: bool) -> io::Result<File> {
    let lock = sys::files::open_lock(&path.join("lock"), true)?;
    if !sys::files::try_flock(lock.as_fd())? {
        return Err(io::Error::other(
            "another process has locked a file that was just made",
        ));
    }
    let dir = path.join("d");
    DirBuilder::new().mode(0o700).create(&dir)?;
    if let Some((uid, gid)) = foreign {
        // Undoes the umask, because the service's user needs all rights of an owner.
        fs::set_permissions(&dir, Permissions::from_mode(0o700))?;
        match chown(&dir, Some(uid), Some(gid)) {
            // A process without the right to `chown` cannot become that user either. The start then
            // fails when it tries to change the user, and reports that only root can do this.
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

/// Creates a name from 60 random bits.
///
/// # Errors
///
/// If the system cannot provide random bytes.
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

/// This process's id, start time and pid namespace.
fn this_process_here() -> (u32, u64, u64) {
    // The cache includes the pid, because a forked process inherits its parent's value.
    static CACHE: Mutex<(u32, u64, u64)> = Mutex::new((0, 0, 0));
    let pid = process::id();
    let mut cache = CACHE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if cache.0 != pid {
        let started = sys::procfs::start_time(pid).unwrap_or(0);
        *cache = (pid, started, sys::procfs::pid_namespace());
    }
    *cache
}

/// Whether the process with this id and start time is still running.
pub(crate) fn is_alive(pid: u32, started: u64) -> bool {
    sys::procfs::start_time(pid) == Some(started)
}
