//! Private directories: one for each executor, with its log, its locks, and what `{dir}` stands for.
//!
//! ```text
//! <temp dir>/mirakuru-<euid>/       0700; the base. 0711 once a service runs as another user
//!     k3v7q2mxw5ha/                 0700 (0711 as above); one executor's service directory, named by its id
//!         owner                     a symbolic link to "PID STARTED": the process that made it
//!         lock                      flocked while that process or the service's supervisor lives
//!         log, log.index            made by the log's own code, 0600
//!         kept                      there when the log is to outlive its executor
//!         d/                        0700, the service's: `{dir}`
//!     new-812-99120-4026531836-k3v7q2mxw5ha/   a service directory that is being made: by whom, and in which pid namespace
//!     turns/                        see `endpoint_locks`
//! ```
//!
//! A test process that is killed leaves its service directories behind. The next one sweeps them: a service directory is stale when the process in `owner`
//! is gone *and* nobody holds `lock`. The first alone would not do, because a supervisor outlives the test
//! process, and because two containers that share a temp dir do not see each other's processes; a flock is seen by both.
//!
//! Sweeps, creations and removals run side by side in many processes without a common lock:
//!
//! - A service directory gets its name by `rename` when `owner` and the locked `lock` are in it. Nobody ever sees it without.
//! - An id is random and never used twice, so what was found to be stale stays stale.
//! - A sweeper works on a stale service directory only while it holds that service directory's lock; the others leave it to it.
//! - `lock` goes when the rest has gone, and a lock on a file that has lost its name counts for nothing. A service directory without it is debris, or a kept log.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{
    DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, fchown, lchown, symlink,
};
use std::path::{Component, Path, PathBuf};
use std::process;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use crate::error::Error;
use crate::sys;

/// The temp dir that is used where the one that `TMPDIR` names will not do.
const FALLBACK: &str = "/tmp";
/// The longest path that a socket address holds on Linux, without the final NUL. (103 on macOS and the BSDs.)
const SOCKET_PATH_MAX: usize = if cfg!(any(target_os = "linux", target_os = "android")) {
    107
} else {
    103
};
/// What a socket path may need after the base: the id, `d`, and 44 for a name of the user's.
const ROOM_BELOW_BASE: usize = 60;
/// How long the log of a service that failed is kept.
const KEPT_FOR: Duration = Duration::from_secs(24 * 60 * 60);
/// And how long where there are more than this of newer ones: each costs every test process two system calls.
const MANY_KEPT: usize = 200;
const MANY_KEPT_FOR: Duration = Duration::from_secs(60 * 60);
/// A service directory takes a fraction of a millisecond to make. One that is this old and unfinished never will be.
const MAKING_TAKES_AT_MOST: Duration = Duration::from_secs(60);

/// The private directory of one executor. Dropping it removes the directory with everything in it; after
/// [`keep`](ServiceDir::keep), with everything but the log.
///
/// A copy that a fork made of it does nothing when dropped: the directory is its creator's.
#[derive(Debug)]
pub(crate) struct ServiceDir {
    id: String,
    path: PathBuf,
    dir: PathBuf,
    /// Until the service directory is somebody else's to see to.
    lock: Option<File>,
    kept: bool,
    creator: u32,
}

impl ServiceDir {
    /// Makes a service directory. `owner` is the user and group that the service runs as, if they are not the test's own.
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

    fn create_in(base: &Path, owner: Option<(u32, u32)>) -> Result<ServiceDir, Error> {
        let foreign = owner.filter(|owner| *owner != (sys::files::euid(), sys::files::egid()));
        let loose = foreign.is_some_and(|(uid, _)| uid != sys::files::euid());
        private_dir(base, loose).map_err(|source| Error::System {
            attempt: format!("use the directory `{}` for private files", base.display()),
            source,
        })?;
        // Once more where a sweeper of another pid namespace took the unfinished service directory for debris, or all ids ever met.
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
        let (pid, started) = this_process();
        let unfinished = base.join(format!(
            "new-{pid}-{started}-{}-{id}",
            sys::procfs::pid_namespace()
        ));
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
                kept: false,
                creator: pid,
            })
        });
        if service_dir.is_err() {
            remove_tree(&unfinished);
        }
        service_dir
    }

    /// The service directory of a service that somebody else sees to: dropping this leaves it alone.
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
            kept: false,
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

    /// Whether the supervisor that works in this service directory is still there: it keeps the lock until the service's tree is gone.
    pub(crate) fn is_supervised(path: &Path) -> bool {
        sys::files::open_lock(&path.join("lock"), false)
            .is_ok_and(|lock| matches!(sys::files::is_locked(lock.as_fd()), Ok(true)))
    }

    /// Short, unique across processes, and made of lower-case letters and digits alone: safe in a file name or an environment variable.
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

    /// A descriptor that keeps this service directory from being swept, for the supervisor to keep until the service's tree is gone. Closed on
    /// exec.
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

    /// Gives the service's directory with all that is in it to its user: the directory itself last, so that nobody can change
    /// anything under our hands.
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

    /// From now on the log (and its index) outlives this executor, for a day. Not that of a service of a run that is over: its
    /// supervisor is removing it.
    pub(crate) fn keep(&mut self) {
        if self.creator == 0 && crate::run::is_over() {
            return;
        }
        // At once, so that it holds when the test process is killed as well.
        self.kept = File::create(self.path.join("kept")).is_ok();
    }
}

impl Drop for ServiceDir {
    fn drop(&mut self) {
        if self.creator == process::id() {
            clear(&self.path, self.kept);
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
    let (pid, started) = this_process();
    // A link's text is kept where the file system has its name. A file would need a block on the disk, and removing that
    // takes milliseconds while others write.
    symlink(format!("{pid} {started}"), path.join("owner"))?;
    let lock = sys::files::open_lock(&path.join("lock"), true)?;
    if !sys::files::try_flock(lock.as_fd())? {
        return Err(io::Error::other(
            "somebody else has locked a file that was just made",
        ));
    }
    let dir = path.join("d");
    DirBuilder::new().mode(0o700).create(&dir)?;
    if let Some((uid, gid)) = foreign {
        chown(&dir, Some(uid), Some(gid)).map_err(|e| {
            io::Error::new(
                e.kind(),
                format!(
                    "{e}; running a service as another user or group takes root, or leave `uid` and `gid` out"
                ),
            )
        })?;
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

/// A service directory whose creator and supervisor are gone. Dropping it removes the service directory.
///
/// Kill the processes that carry its mark first: once it is gone, nobody else will look for them.
#[derive(Debug)]
pub(crate) struct Stale {
    id: String,
    path: PathBuf,
    kept: bool,
    /// Keeps the other sweepers away. Closed after `drop` has removed the service directory.
    _lock: File,
}

impl Stale {
    /// The id that its processes carry as `MIRAKURU_ID`.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }
}

impl Drop for Stale {
    fn drop(&mut self) {
        clear(&self.path, self.kept);
    }
}

/// What killed test processes have left behind. Looked for once in a process; later calls give nothing.
///
/// Removes debris and logs that have been kept for a day on its way.
pub(crate) fn sweep() -> Vec<Stale> {
    static SWEPT: AtomicBool = AtomicBool::new(false);
    if SWEPT.swap(true, Ordering::Relaxed) {
        return Vec::new();
    }
    let base = base_in(&std::env::temp_dir());
    let runs = crate::run::runs_base();
    let mut bases = vec![base, runs];
    if sys::files::euid() == 0 {
        // Services of other users may be there: see `ServiceDir::create`.
        bases.push(base_in(Path::new(FALLBACK)));
    }
    bases.sort();
    bases.dedup();
    bases.iter().flat_map(|base| sweep_in(base)).collect()
}

fn sweep_in(base: &Path) -> Vec<Stale> {
    // Somebody else's base is not ours to clean; `create` will say what is wrong with it.
    let Ok(()) = check_private(base) else {
        return Vec::new();
    };
    let Ok(entries) = fs::read_dir(base) else {
        return Vec::new();
    };
    let mut logs = Vec::new();
    let stale = entries
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let name = entry.file_name();
            let name = name.to_str()?;
            if is_id(name) {
                if let Some(kept_at) = only_the_log_is_left(&entry.path()) {
                    logs.push((kept_at, entry.path()));
                    return None;
                }
                look_at(&entry.path(), name)
            } else {
                if let Some((pid, started)) = crate::run::runner_of(name) {
                    // Its services end with the runner, by themselves, and remove it. Here nobody was left to do that.
                    if !is_alive(pid, started) && !crate::run::is_in_use(&entry.path()) {
                        remove_tree(&entry.path());
                    }
                } else if let Some((pid, started, namespace)) = unfinished_by(name) {
                    // Of another namespace's processes we know nothing.
                    let is_dead = !is_alive(pid, started)
                        && (namespace == sys::procfs::pid_namespace()
                            || is_older(&entry.path(), MAKING_TAKES_AT_MOST));
                    if is_dead {
                        remove_tree(&entry.path());
                    }
                }
                None
            }
        })
        .collect();
    // The oldest first.
    logs.sort();
    let too_many = logs.len().saturating_sub(MANY_KEPT);
    for (at, (kept_at, path)) in logs.iter().enumerate() {
        let limit = if at < too_many { MANY_KEPT_FOR } else { KEPT_FOR };
        if is_past(*kept_at, limit) {
            remove_tree(path);
        }
    }
    stale
}

/// Of a service directory whose executor is gone, and which is there for its log alone: when that was kept. Its `lock` went last.
fn only_the_log_is_left(path: &Path) -> Option<SystemTime> {
    let kept_at = path
        .join("kept")
        .symlink_metadata()
        .and_then(|marker| marker.modified())
        .ok()?;
    let lock = path.join("lock").symlink_metadata();
    lock.is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
        .then_some(kept_at)
}

/// Decides about one service directory. Each look is made *after* the ones that it relies on: a keeper writes `kept` before it
/// removes anything, and a process that we have seen dead writes nothing more.
fn look_at(path: &Path, id: &str) -> Option<Stale> {
    if let Ok((pid, started)) = read_owner(path) {
        if is_alive(pid, started) {
            return None;
        }
    }
    match sys::files::open_lock(&path.join("lock"), false) {
        Ok(lock) => {
            if !matches!(sys::files::try_flock(lock.as_fd()), Ok(true)) {
                return None;
            }
            // Whoever removed the service directory between our opening the file and locking it has finished with it.
            if !matches!(is_at(&lock, &path.join("lock")), Ok(true)) {
                return None;
            }
            let kept = is_kept(path);
            Some(Stale {
                id: id.to_owned(),
                path: path.to_owned(),
                kept,
                _lock: lock,
            })
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            if !is_kept(path) {
                remove_tree(path);
            }
            None
        }
        Err(_) => None,
    }
}

fn is_kept(path: &Path) -> bool {
    let marker = path.join("kept");
    marker.symlink_metadata().is_ok() && !is_older(&marker, KEPT_FOR)
}

/// Whether a file was last written longer ago than this. One from the future was not.
fn is_older(path: &Path, age: Duration) -> bool {
    let written = path.symlink_metadata().and_then(|metadata| metadata.modified());
    written.is_ok_and(|at| is_past(at, age))
}

fn is_past(at: SystemTime, age: Duration) -> bool {
    SystemTime::now()
        .duration_since(at)
        .is_ok_and(|passed| passed > age)
}

/// Removes a service directory, or all of it but the kept log. `lock` goes last: as long as it is there, somebody will finish this.
fn clear(path: &Path, kept: bool) {
    if kept {
        remove_tree(&path.join("d"));
        let _ = fs::remove_file(path.join("lock"));
        return;
    }
    remove_tree(&path.join("d"));
    for file in ["log", "log.index", "kept", "owner", "lock"] {
        let _ = fs::remove_file(path.join(file));
    }
    if fs::remove_dir(path).is_err() {
        remove_tree(path);
    }
}

/// Removes what can be removed. Symbolic links are removed, never followed.
fn remove_tree(path: &Path) {
    match fs::remove_dir_all(path) {
        Ok(()) => return,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return,
        Err(_) => {}
    }
    // A service may have left directories that their owner cannot write to; to root that is no hindrance. Setting a mode follows
    // symbolic links, and somebody could put one in the place of what was a directory a moment ago: as root that
    // would be a hole, otherwise it reaches only what is ours anyway.
    if sys::files::euid() != 0 {
        make_writable(path);
    }
    remove_what_can_be(path);
}

fn make_writable(dir: &Path) {
    if !dir.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
        return;
    }
    let _ = fs::set_permissions(dir, Permissions::from_mode(0o700));
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        make_writable(&entry.path());
    }
}

/// [`fs::remove_dir_all`] stops at the first thing that it cannot remove. This goes on with the rest.
fn remove_what_can_be(dir: &Path) {
    if fs::remove_dir_all(dir).is_ok() {
        return;
    }
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        // The entry's own type: a symbolic link to a directory is no directory.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_what_can_be(&entry.path());
        } else {
            let _ = fs::remove_file(entry.path());
        }
    }
    let _ = fs::remove_dir(dir);
}

/// The base for this temp dir. It is in `/tmp` where `TMPDIR` is empty, and where a socket in the temp
/// dir would get too long a path.
pub(crate) fn base_in(temp: &Path) -> PathBuf {
    let name = format!("mirakuru-{}", sys::files::euid());
    match std::path::absolute(temp).map(|temp| temp.join(&name)) {
        Ok(base) if base.as_os_str().as_bytes().len() + ROOM_BELOW_BASE <= SOCKET_PATH_MAX => base,
        _ => Path::new(FALLBACK).join(name),
    }
}

/// Whether this user and group may enter every directory above this one. (Not so in a temp dir that
/// is root's alone, as `libpam-tmpdir` makes it.)
fn may_reach(path: &Path, (uid, gid): (u32, u32)) -> bool {
    let may_enter = |dir: &Path| {
        // What is missing is reported when it is used.
        dir.metadata().map_or(true, |dir| {
            let shift = match (dir.uid() == uid, dir.gid() == gid) {
                (true, _) => 6,
                (_, true) => 3,
                _ => 0,
            };
            dir.mode() & (0o1 << shift) != 0
        })
    };
    path.ancestors().skip(1).all(may_enter)
}

/// Makes a directory of ours that nobody else can write to, or checks that it is one. `loose` lets other users pass
/// through (0711), which needs a name that they were told.
pub(crate) fn private_dir(path: &Path, loose: bool) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        Err(e) => {
            let remedy = "make that directory, or let TMPDIR name one that you can write to";
            return Err(io::Error::new(e.kind(), format!("{e}; {remedy}")));
        }
    }
    check_private(path)?;
    if loose {
        // Through a descriptor that was not reached by way of a link. It is never made tighter again: another executor
        // may still need it.
        let dir = sys::files::open_dir(path)?;
        let mode = dir.metadata()?.mode();
        if mode & 0o011 != 0o011 {
            dir.set_permissions(Permissions::from_mode((mode & 0o777) | 0o711))?;
        }
    }
    Ok(())
}

/// Looks at what is there, through no link: ours, a directory, writable to us alone.
fn check_private(path: &Path) -> io::Result<()> {
    let metadata = path.symlink_metadata()?;
    let refuse = |problem: String| {
        let remedy = "remove it, or let TMPDIR name another directory";
        Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("{problem}; {remedy}"),
        ))
    };
    if metadata.is_symlink() {
        return refuse("it is a symbolic link, which somebody may have planted".to_owned());
    }
    if !metadata.is_dir() {
        return refuse("it is not a directory".to_owned());
    }
    let (owner, us) = (metadata.uid(), sys::files::euid());
    if owner != us {
        return refuse(format!("it belongs to user {owner} and not to us, user {us}"));
    }
    let mode = metadata.mode() & 0o777;
    if mode & 0o022 != 0 {
        return refuse(format!("other users may write to it (mode {mode:04o})"));
    }
    Ok(())
}

/// Whether this open file is still the one with this name.
pub(crate) fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match path.symlink_metadata() {
        Ok(theirs) => Ok((theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

fn is_id(name: &str) -> bool {
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
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    Ok(random
        .iter()
        .map(|byte| char::from(ID_ALPHABET[usize::from(byte % 32)]))
        .collect())
}

/// Asks the file system to keep what is made in the subdirectories of this one apart: it then makes files faster where many
/// come and go. A request, which not every file system knows.
pub fn spread(dir: &Path) {
    if let Ok(dir) = sys::files::open_dir(dir) {
        sys::files::spread(&dir);
    }
}

fn unfinished_by(name: &str) -> Option<(u32, u64, u64)> {
    let mut parts = name.strip_prefix("new-")?.split('-');
    let mut number = || parts.next()?.parse::<u64>().ok();
    Some((u32::try_from(number()?).ok()?, number()?, number()?))
}

fn read_owner(service_dir: &Path) -> io::Result<(u32, u64)> {
    let text = fs::read_link(service_dir.join("owner"))?;
    let text = text.to_str().unwrap_or_default();
    let mut words = text.split_whitespace();
    let mut number = || words.next().and_then(|word| word.parse::<u64>().ok());
    match (number(), number()) {
        (Some(pid), Some(started)) => Ok((pid as u32, started)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// This process's id and start time.
pub(crate) fn this_process() -> (u32, u64) {
    // By pid, because a fork inherits what its parent has cached.
    static CACHE: Mutex<(u32, u64)> = Mutex::new((0, 0));
    let pid = process::id();
    let mut cache = CACHE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if cache.0 != pid {
        *cache = (pid, sys::procfs::start_time(pid).unwrap_or(0));
    }
    *cache
}

/// Whether the process that had this id and began at this time still runs.
pub(crate) fn is_alive(pid: u32, started: u64) -> bool {
    sys::procfs::start_time(pid) == Some(started)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::os::unix::net::UnixListener;
    use std::process::{Command, Stdio};
    use std::time::Instant;

    use super::*;

    /// A temp dir of the test's own.
    struct Temp(PathBuf);

    impl Temp {
        fn new() -> Temp {
            let path = std::env::temp_dir().join(format!("mirakuru-test-{}", random_id().unwrap()));
            DirBuilder::new().mode(0o700).create(&path).unwrap();
            Temp(path)
        }
        fn base(&self) -> PathBuf {
            self.0.join("base")
        }
        fn service_dir(&self) -> ServiceDir {
            ServiceDir::create_in(&self.base(), None).unwrap()
        }
        fn names(&self) -> Vec<String> {
            let mut names: Vec<String> = fs::read_dir(self.base())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        }
    }

    impl Drop for Temp {
        fn drop(&mut self) {
            remove_tree(&self.0);
        }
    }

    fn mode(path: &Path) -> u32 {
        path.symlink_metadata().unwrap().mode() & 0o7777
    }

    fn set_age(path: &Path, age: Duration) {
        let then = SystemTime::now() - age;
        File::open(path).unwrap().set_modified(then).unwrap();
    }

    /// What `create` says about a base that is not safe.
    fn refused(base: &Path) -> String {
        match ServiceDir::create_in(base, None).unwrap_err() {
            Error::System { source, .. } => source.to_string(),
            _ => panic!("another error"),
        }
    }

    /// Says that a service directory was made by a process that never existed.
    fn disown(service_dir: &Path) {
        fs::remove_file(service_dir.join("owner")).unwrap();
        symlink("4194305 1", service_dir.join("owner")).unwrap();
    }

    /// Makes a service directory look as if its creator had been killed: the process in `owner` never existed, and nobody has the lock.
    fn orphan(service_dir: ServiceDir) -> (String, PathBuf) {
        disown(&service_dir.path);
        let (id, path) = (service_dir.id.clone(), service_dir.path.clone());
        let mut service_dir = std::mem::ManuallyDrop::new(service_dir);
        service_dir.lock = None;
        (id, path)
    }

    /// Sweeps until something is found, because processes that other tests have just forked hold copies of all locks.
    fn sweep_one(temp: &Temp) -> Stale {
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            let mut stale = sweep_in(&temp.base());
            match stale.pop() {
                Some(one) => {
                    assert!(stale.is_empty());
                    return one;
                }
                None => assert!(Instant::now() < until, "nothing to sweep"),
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_home_is_private_and_goes_with_its_executor() {
        let temp = Temp::new();
        let service_dir = temp.service_dir();
        assert!(is_id(service_dir.id()), "{}", service_dir.id());
        for path in [&temp.base(), &service_dir.path, service_dir.dir()] {
            assert_eq!(mode(path), 0o700, "{}", path.display());
        }
        assert_eq!(mode(&service_dir.path.join("lock")), 0o600);
        fs::write(service_dir.log(), "log").unwrap();
        fs::write(service_dir.index(), "index").unwrap();
        assert_eq!(temp.names(), [service_dir.id()]);
        drop(service_dir);
        assert_eq!(temp.names(), [""; 0]);
    }

    #[test]
    fn whatever_a_service_leaves_is_removed_and_links_are_not_followed() {
        let temp = Temp::new();
        let outside = temp.0.join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("precious"), "").unwrap();
        let service_dir = temp.service_dir();
        let dir = service_dir.dir();
        fs::create_dir_all(dir.join("a/b/c")).unwrap();
        fs::write(dir.join("a/b/file"), "").unwrap();
        symlink(&outside, dir.join("a/link")).unwrap();
        symlink("nowhere", dir.join("dangling")).unwrap();
        let _socket = UnixListener::bind(dir.join("s")).unwrap();
        fs::set_permissions(dir.join("a/b"), Permissions::from_mode(0o500)).unwrap();
        fs::set_permissions(dir.join("a"), Permissions::from_mode(0o000)).unwrap();
        drop(service_dir);
        assert_eq!(temp.names(), [""; 0]);
        assert!(outside.join("precious").exists());
    }

    #[test]
    fn a_kept_log_is_all_that_stays() {
        let temp = Temp::new();
        let mut service_dir = temp.service_dir();
        let (log, dir) = (service_dir.log(), service_dir.dir().to_owned());
        fs::write(&log, "why").unwrap();
        service_dir.keep();
        drop(service_dir);
        assert_eq!(fs::read_to_string(&log).unwrap(), "why");
        assert!(!dir.exists());
        assert_eq!(sweep_in(&temp.base()).len(), 0);
        assert!(log.exists(), "a sweep removed it at once");
        set_age(&log.with_file_name("kept"), KEPT_FOR + Duration::from_secs(60));
        assert_eq!(sweep_in(&temp.base()).len(), 0);
        assert_eq!(temp.names(), [""; 0]);
    }

    #[test]
    fn of_many_kept_logs_the_newest_stay() {
        let temp = Temp::new();
        let logs: Vec<PathBuf> = (0..MANY_KEPT + 5)
            .map(|number| {
                let mut service_dir = temp.service_dir();
                let log = service_dir.log();
                fs::write(&log, "why").unwrap();
                service_dir.keep();
                drop(service_dir);
                // The first three are older than an hour.
                let old = MANY_KEPT_FOR + Duration::from_secs(60);
                let age = if number < 3 { old } else { Duration::ZERO };
                set_age(&log.with_file_name("kept"), age);
                log
            })
            .collect();
        assert_eq!(sweep_in(&temp.base()).len(), 0);
        let left: Vec<bool> = logs.iter().map(|log| log.exists()).collect();
        assert_eq!(left.iter().filter(|left| **left).count(), MANY_KEPT + 2);
        assert!(left[..3].iter().all(|left| !left), "the old ones go");
    }

    #[test]
    fn a_base_that_is_not_safe_is_refused() {
        let temp = Temp::new();
        let target = temp.0.join("target");
        fs::create_dir(&target).unwrap();
        let base = temp.base();
        symlink(&target, &base).unwrap();
        assert!(refused(&base).contains("symbolic link"));
        assert_eq!(fs::read_dir(&target).unwrap().count(), 0, "the link was followed");
        assert_eq!(sweep_in(&base).len(), 0);
        fs::remove_file(&base).unwrap();

        fs::write(&base, "").unwrap();
        assert!(refused(&base).contains("not a directory"));
        fs::remove_file(&base).unwrap();

        fs::create_dir(&base).unwrap();
        for unsafe_mode in [0o777, 0o720, 0o702] {
            fs::set_permissions(&base, Permissions::from_mode(unsafe_mode)).unwrap();
            let refusal = refused(&base);
            assert!(refusal.contains(&format!("mode {unsafe_mode:04o}")), "{refusal}");
        }
        fs::set_permissions(&base, Permissions::from_mode(0o711)).unwrap();
        ServiceDir::create_in(&base, None).unwrap();

        assert!(refused(&temp.0.join("missing/base")).contains("TMPDIR"));
        if sys::files::euid() == 0 {
            chown(&base, Some(12345), None).unwrap();
            assert!(refused(&base).contains("user 12345"));
        }
    }

    #[test]
    fn a_service_of_another_user_gets_its_own_directory_and_passage_to_it() {
        if sys::files::euid() != 0 {
            let temp = Temp::new();
            let error = ServiceDir::create_in(&temp.base(), Some((12345, 12345))).unwrap_err();
            assert!(matches!(error, Error::System { .. }));
            assert_eq!(temp.names(), [""; 0]);
            return;
        }
        let temp = Temp::new();
        let service_dir = ServiceDir::create_in(&temp.base(), Some((12345, 12346))).unwrap();
        let metadata = service_dir.dir().metadata().unwrap();
        assert_eq!(
            (metadata.uid(), metadata.gid(), mode(service_dir.dir())),
            (12345, 12346, 0o700)
        );
        assert_eq!((mode(&temp.base()), mode(&service_dir.path)), (0o711, 0o711));
        // A later one for ourselves does not shut the first one in.
        let ours = temp.service_dir();
        assert_eq!((mode(&temp.base()), mode(&ours.path)), (0o711, 0o700));
        drop(service_dir);
        assert_eq!(temp.names(), [ours.id()]);
    }

    #[test]
    fn a_temp_dir_that_only_root_can_enter_is_not_for_others() {
        let temp = Temp::new();
        let inside = temp.0.join("private/mirakuru-0");
        fs::create_dir_all(&inside).unwrap();
        let mode = |mode| fs::set_permissions(temp.0.join("private"), Permissions::from_mode(mode)).unwrap();
        fs::set_permissions(&temp.0, Permissions::from_mode(0o755)).unwrap();
        let (us, stranger) = ((sys::files::euid(), sys::files::egid()), (54_321, 54_321));
        mode(0o700);
        assert!(may_reach(&inside, us));
        assert!(!may_reach(&inside, stranger));
        mode(0o711);
        assert!(may_reach(&inside, stranger));
        mode(0o770);
        assert!(may_reach(&inside, (54_321, us.1)));
    }

    #[test]
    fn socket_paths_stay_short() {
        let name = format!("mirakuru-{}", sys::files::euid());
        assert_eq!(base_in(Path::new("/var/tmp")), Path::new("/var/tmp").join(&name));
        let long = PathBuf::from(format!("/{}", "x".repeat(60)));
        assert_eq!(base_in(&long), Path::new("/tmp").join(&name));
        assert_eq!(
            base_in(Path::new("")),
            Path::new("/tmp").join(&name),
            "TMPDIR is empty"
        );
        let room = ROOM_BELOW_BASE - "/".len() - ID_LENGTH - "/d/".len();
        assert!(room >= 40, "{room}");
    }

    #[test]
    fn a_living_process_s_homes_are_not_swept() {
        let temp = Temp::new();
        let service_dir = temp.service_dir();
        assert_eq!(sweep_in(&temp.base()).len(), 0);
        assert!(service_dir.dir().exists());
    }

    #[test]
    fn a_dead_process_s_home_is_reported_then_removed() {
        let temp = Temp::new();
        let service_dir = temp.service_dir();
        fs::write(service_dir.dir().join("data"), "").unwrap();
        let (id, path) = orphan(service_dir);
        let stale = sweep_one(&temp);
        assert_eq!(stale.id(), id);
        assert!(path.exists(), "it is there until its processes have been killed");
        assert_eq!(sweep_in(&temp.base()).len(), 0, "one sweeper at a time");
        drop(stale);
        assert_eq!(temp.names(), [""; 0]);
    }

    #[test]
    fn a_dead_process_s_home_stays_while_the_supervisor_has_its_lock() {
        let temp = Temp::new();
        let service_dir = temp.service_dir();
        let lock = service_dir.lock_fd().unwrap();
        let (_, path) = orphan(service_dir);
        assert_eq!(sweep_in(&temp.base()).len(), 0);
        assert!(path.exists());
        drop(lock);
        drop(sweep_one(&temp));
        assert!(!path.exists());
    }

    #[test]
    fn a_log_that_was_to_be_kept_survives_the_death_of_its_process() {
        let temp = Temp::new();
        let mut service_dir = temp.service_dir();
        let log = service_dir.log();
        fs::write(&log, "why").unwrap();
        service_dir.keep();
        let (id, path) = orphan(service_dir);
        let stale = sweep_one(&temp);
        assert_eq!(stale.id(), id);
        drop(stale);
        assert!(log.exists());
        assert!(!path.join("d").exists());
        assert_eq!(sweep_in(&temp.base()).len(), 0, "it is reported once");
    }

    #[test]
    fn debris_is_removed_and_what_is_not_ours_is_left() {
        let temp = Temp::new();
        drop(temp.service_dir());
        let make = |name: &str| fs::create_dir(temp.base().join(name)).unwrap();
        let (pid, started) = this_process();
        let alive = format!("new-{pid}-{started}-1-a");
        // Made by processes of another namespace, and one of ours.
        let (dead_new, dead_old) = ("new-4194305-1-1-a", "new-4194305-1-1-b");
        let dead_here = format!("new-4194305-1-{}-c", sys::procfs::pid_namespace());
        let debris = ["abcdefghijkl", dead_old, &dead_here];
        let others = ["ABCDEFGHIJKL", "turns", "new-x", dead_new, alive.as_str()];
        for name in debris.iter().chain(&others) {
            make(name);
        }
        set_age(&temp.base().join(dead_old), MAKING_TAKES_AT_MOST * 2);
        set_age(&temp.base().join(&alive), MAKING_TAKES_AT_MOST * 2);
        assert_eq!(sweep_in(&temp.base()).len(), 0);
        let left: HashSet<String> = temp.names().into_iter().collect();
        assert_eq!(left, others.map(str::to_owned).into());
    }

    #[test]
    fn a_copy_in_a_forked_process_removes_nothing() {
        let temp = Temp::new();
        let mut service_dir = temp.service_dir();
        let (path, us) = (service_dir.path.clone(), service_dir.creator);
        service_dir.creator = us + 1;
        drop(service_dir);
        assert!(path.exists());
    }

    #[test]
    fn a_process_is_known_by_its_start_and_a_zombie_is_dead() {
        let (pid, started) = this_process();
        assert!(is_alive(pid, started));
        if !cfg!(target_os = "linux") {
            return;
        }
        assert!(!is_alive(pid, started + 1));
        let mut child = Command::new("true").spawn().unwrap();
        let until = Instant::now() + Duration::from_secs(10);
        // Not waited for yet: a zombie.
        while sys::procfs::start_time(child.id()).is_some() {
            assert!(Instant::now() < until);
            std::thread::sleep(Duration::from_millis(1));
        }
        child.wait().unwrap();
    }

    const BASE: &str = "MIRAKURU_TEST_BASE";

    /// One process of the race: makes service directories, checks them while others sweep, and sweeps itself. Leaves one service directory with its
    /// creator dead.
    #[test]
    #[ignore = "a part of the race"]
    fn racer() {
        let base = PathBuf::from(std::env::var_os(BASE).unwrap());
        let mut stale = HashSet::new();
        for _ in 0..10 {
            let service_dirs: Vec<ServiceDir> = (0..3)
                .map(|_| ServiceDir::create_in(&base, None).unwrap())
                .collect();
            for service_dir in &service_dirs {
                fs::write(service_dir.log(), service_dir.id()).unwrap();
                fs::write(service_dir.dir().join("x"), service_dir.id()).unwrap();
            }
            stale.extend(sweep_in(&base).iter().map(|stale| stale.id().to_owned()));
            for service_dir in &service_dirs {
                assert_eq!(fs::read_to_string(service_dir.log()).unwrap(), service_dir.id());
                assert_eq!(
                    fs::read_to_string(service_dir.dir().join("x")).unwrap(),
                    service_dir.id()
                );
            }
        }
        let left = ServiceDir::create_in(&base, None).unwrap();
        println!("\nleft {}", left.id());
        for id in stale {
            println!("stale {id}");
        }
        std::mem::forget(left);
    }

    #[test]
    fn processes_that_create_and_sweep_side_by_side_do_each_other_no_harm() {
        const PROCESSES: usize = 80;
        let temp = Temp::new();
        let racers: Vec<_> = (0..PROCESSES)
            .map(|_| {
                Command::new(std::env::current_exe().unwrap())
                    .args(["--exact", "service_dir::tests::racer", "--ignored", "--nocapture"])
                    .env(BASE, temp.base())
                    .stdin(Stdio::null())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped())
                    .spawn()
                    .unwrap()
            })
            .collect();
        let (mut left, mut stale) = (HashSet::new(), Vec::new());
        for racer in racers {
            let output = racer.wait_with_output().unwrap();
            assert!(output.status.success(), "{output:?}");
            for line in String::from_utf8(output.stdout).unwrap().lines() {
                if let Some(id) = line.strip_prefix("left ") {
                    left.insert(id.to_owned());
                } else if let Some(id) = line.strip_prefix("stale ") {
                    stale.push(id.to_owned());
                }
            }
        }
        assert_eq!(left.len(), PROCESSES);
        stale.extend(sweep_in(&temp.base()).iter().map(|stale| stale.id().to_owned()));
        assert_eq!(temp.names(), [""; 0]);
        let reported: HashSet<String> = stale.iter().cloned().collect();
        assert_eq!(
            reported, left,
            "each home that was left is reported, and no other"
        );
        assert_eq!(reported.len(), stale.len(), "and once");
    }
}
