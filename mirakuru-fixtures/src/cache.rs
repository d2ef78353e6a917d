//! A cache of directories that are slow to create and the same each time, such as the data
//! directory of a database. Each directory is created once for each machine, version and user, and
//! then copied. Presets use the cache. Users' recipes use it through [`prepare_once`] and
//! [`Recipe::seed_key`](crate::Recipe::seed_key).
//!
//! ```text
//! <temp dir>/mirakuru-<euid>/cache/     0700
//!     KEY.BOOT.PERIOD/                  complete: it gets its name by `rename`
//!     KEY.BOOT.PERIOD.new/              being made, by the process that has the lock
//!     KEY.lock/                         the lock, which goes with its holder
//! ```
//!
//! A directory that is older than a few days is not used, because programs that clean temporary
//! directories (usually after ten days) may have removed half of it. A directory from before the
//! last boot of the machine is not used either, because it may not have been flushed to disk.

use std::any::type_name;
use std::error::Error as StdError;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mirakuru_core::__private::{Lease, hash, recipe_key};
use mirakuru_core::{Error, Executor, Readiness};

use crate::recipe::Recipe;

/// The length of a period in seconds. A directory is used only during the period in which it was
/// created.
const PERIOD: u64 = 4 * 24 * 60 * 60;
/// How long to wait while another process creates the same directory, which may include running a
/// user's migrations. If that process is killed, its lock is released immediately.
const PATIENCE: Duration = Duration::from_secs(900);
/// The maximum number of directories, and their maximum total size in bytes. The least recently
/// used directories are removed.
const MOST: usize = 24;
const MOST_BYTES: u64 = 2 << 30;
/// A directory that was used within this time is not removed, because a process may be copying it.
const IN_USE: Duration = Duration::from_secs(600);

/// Fills the private directory of a service with data that is slow to create and the same each
/// time. `make` runs once for each key, and later runs use its result as well. Call `prepare_once`
/// in [`Recipe::prepare`], as PostgreSQL's preset does for `initdb`. For data that must be loaded
/// into the running service, see [`Recipe::seed_key`].
///
/// `make` gets an empty directory of mode 0700. The content of that directory is then copied into
/// [`Executor::dir`], where it replaces files with the same names. If the result of `make` would
/// change, use another key: include the version of a program in it, or a hash of the files that
/// `make` reads (`presets::hash_of_dir`). Each user of the machine has a separate cache. If two
/// processes need the same directory, one creates it while the other waits, for at most 15 minutes.
///
/// The cache is `mirakuru-UID/cache` in the temporary directory. It keeps the most recently used
/// directories: at most 24, with a total size of at most 2 GiB. A directory is created again every
/// four days, and after each boot of the machine.
///
/// ```
/// # mod mirakuru { pub use mirakuru_core::*; pub use mirakuru_fixtures::*; }
/// # use std::path::Path;
/// # fn build_index(file: &Path) -> std::io::Result<()> { std::fs::write(file, "") }
/// use mirakuru::{Error, Executor, ExecutorBuilder, NoWait, Recipe};
///
/// struct Search;
///
/// impl Recipe for Search {
///     type Readiness = NoWait;
///     type Handle = Executor<NoWait>;
///
///     fn executor(&self) -> Result<ExecutorBuilder<NoWait>, Error> {
///         Ok(Executor::builder("tail -f {dir}/index"))
///     }
///
///     fn prepare(&self, executor: &mut Executor<NoWait>) -> Result<(), Error> {
///         mirakuru::prepare_once(executor, "search-index-v3", |dir| build_index(&dir.join("index")))
///     }
///
///     fn handle(self, executor: Executor<NoWait>) -> Result<Executor<NoWait>, Error> {
///         Ok(executor)
///     }
/// }
///
/// let search = Search.start()?;
/// assert!(search.dir().join("index").is_file());
/// # Ok::<(), Error>(())
/// ```
///
/// # Errors
///
/// If `make` or a file operation fails. The error of `make` is reported with the key, and nothing
/// is kept.
pub fn prepare_once<R: Readiness, E>(
    executor: &Executor<R>,
    key: &str,
    make: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), Error>
where
    E: Into<Box<dyn StdError + Send + Sync>>,
{
    fill(&executor.dir(), key, |dir| {
        make(dir).map_err(|source| Error::other(format!("make `{key}`"), source))
    })
}

type Make<'a> = Box<dyn FnOnce(&Path) -> Result<(), Error> + 'a>;

/// Prepares and sets up a service that is not running, and keeps the content of its directory under
/// a key. Later starts copy that content instead.
pub(crate) fn seed<R: Recipe>(
    recipe: &R,
    key: &str,
    executor: &mut Executor<R::Readiness>,
) -> Result<(), Error> {
    let name = format!("seed-{}", recipe_key(key, type_name::<R>(), &recipe.executor()?));
    let (dir, mut is_made) = (executor.dir(), false);
    let make = |kept: &Path| {
        executor.__prepare(&mut |executor| recipe.prepare(executor))?;
        executor.start()?;
        if let Err(error) = recipe.set_up(executor) {
            return Err(seed_failed("run the", key, error.into()));
        }
        // The service is stopped first, because no process may write to the directory during the
        // copy.
        executor.stop()?;
        is_made = true;
        copy_tree(&dir, kept).map_err(|error| seed_failed("keep the result of the", key, error.into()))
    };
    let kept = cached(&dir, &name, Box::new(make))?;
    match is_made {
        true => Ok(()),
        false => executor.__prepare(&mut |_| copy(&kept, &dir)),
    }
}

fn seed_failed(attempt: &str, key: &str, source: Box<dyn StdError + Send + Sync>) -> Error {
    Error::other(format!("{attempt} seed `{key}`"), source)
}

/// Fills the private directory of a service from the cache. If the cache lacks the key, `make` runs
/// first. The key must reflect all data that `make` depends on, in particular versions.
pub(crate) fn fill(
    dir: &Path,
    key: &str,
    make: impl FnOnce(&Path) -> Result<(), Error>,
) -> Result<(), Error> {
    copy(&cached(dir, key, Box::new(make))?, dir)
}

/// Returns the cached directory for a key, and creates it if necessary. `service` is the private
/// directory of the service that needs it.
fn cached(service: &Path, key: &str, make: Make<'_>) -> Result<PathBuf, Error> {
    let failed = |source: io::Error| Error::other(format!("use the cache for {key}"), source);
    // `service` is `<base>/<id>/d`. Only this user can write to `<base>`.
    let base = service
        .ancestors()
        .nth(2)
        .ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    let cache = base.join("cache");
    private_dir(&cache).map_err(failed)?;
    let key = file_name(key);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let age = Age {
        boot: boot(),
        period: now.as_secs() / PERIOD,
    };
    let name = format!("{key}.{}.{}", age.boot, age.period);
    let ready = cache.join(&name);
    if ready.is_dir() {
        note_use(&ready);
        return Ok(ready);
    }
    let _lock = lock(&cache.join(format!("{key}.lock"))).map_err(failed)?;
    if ready.is_dir() {
        note_use(&ready);
        return Ok(ready);
    }
    // A process that was killed while filling this directory may have left it behind.
    let unfinished = cache.join(format!("{name}.new"));
    let _ = fs::remove_dir_all(&unfinished);
    private_dir(&unfinished).map_err(failed)?;
    let made = make(&unfinished).and_then(|()| fs::rename(&unfinished, &ready).map_err(failed));
    if let Err(error) = made {
        let _ = fs::remove_dir_all(&unfinished);
        return Err(error);
    }
    remove_old(&cache, &age);
    bound(&cache);
    Ok(ready)
}

/// Returns a file name for a key. Different keys have different names.
fn file_name(key: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if key.len() <= 64 && key.chars().all(is_plain) {
        return key.to_owned();
    }
    let mut start = key.replace(|c| !is_plain(c), "");
    start.truncate(40);
    format!("{start}-{:016x}", hash(0, key))
}

fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    copy_tree(from, to)
        .map_err(|source| Error::other(format!("copy {} to {}", from.display(), to.display()), source))
}

/// Copies the content of one directory into another. Files keep their permissions, and symbolic
/// links stay links. Sockets and pipes are skipped, because they belong to processes. The target
/// may already contain subdirectories and files.
pub(crate) fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    copy_files(from, to, limit("Max file size").unwrap_or(u64::MAX))
}

/// Returns this process's hard limit for a resource, as named in `/proc/self/limits`. `None` if the
/// resource is unlimited, or if the limit is unknown.
pub(crate) fn limit(name: &str) -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    // The line contains the soft limit, and then the hard limit.
    line.split_whitespace().nth(1)?.parse().ok()
}

fn copy_files(from: &Path, to: &Path, limit: u64) -> io::Result<()> {
    private_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let metadata = entry.metadata()?;
        if metadata.is_dir() {
            copy_files(&entry.path(), &target, limit)?;
        } else if metadata.is_symlink() {
            match fs::remove_file(&target) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => symlink(fs::read_link(entry.path())?, &target)?,
            }
        } else if !metadata.is_file() {
            continue;
        } else if metadata.len() > limit {
            // A write beyond the limit would kill the process.
            let (name, length) = (entry.path(), metadata.len());
            return Err(io::Error::other(format!(
                "{} has {length} bytes, but this process may write only {limit} to a file: raise `ulimit -f`",
                name.display()
            )));
        } else {
            // On some file systems, `fs::copy` shares the blocks instead of copying them.
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

/// Creates a directory of mode 0700, regardless of the umask, unless it exists.
pub(crate) fn private_dir(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => fs::set_permissions(path, Permissions::from_mode(0o700)),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e),
    }
}

fn lock(path: &Path) -> io::Result<Lease> {
    Lease::wait(path, PATIENCE)?.ok_or_else(|| {
        let seconds = PATIENCE.as_secs();
        let problem = format!("another process has been creating its directory for {seconds} s");
        io::Error::new(io::ErrorKind::TimedOut, problem)
    })
}

/// The boot and the period in which a directory was created.
struct Age {
    boot: String,
    period: u64,
}

/// An id of the current boot of the machine. Empty if it is unknown.
fn boot() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let mut short = id.replace(|c: char| !c.is_ascii_alphanumeric(), "");
    short.truncate(12);
    short
}

/// Removes the directories of earlier boots and of all periods before the previous one. Also
/// removes locks that no process has taken for two periods.
fn remove_old(cache: &Path, now: &Age) {
    for path in paths(cache) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let mut parts = name.strip_suffix(".new").unwrap_or(&name).rsplitn(3, '.');
        let period = parts.next().and_then(|period| period.parse::<u64>().ok());
        if let (Some(period), Some(boot)) = (period, parts.next()) {
            if boot != now.boot || period + 1 < now.period {
                let _ = fs::remove_dir_all(&path);
            }
        }
        let taken = || path.join("next").metadata()?.modified();
        if path.extension().is_some_and(|end| end == "lock")
            && taken().is_ok_and(|taken| taken.elapsed().is_ok_and(|idle| idle.as_secs() > 2 * PERIOD))
        {
            // A process that has already opened the lock notices the removal, and creates a new
            // lock.
            if let Ok(Some(_held)) = Lease::take(&path, 1) {
                let _ = fs::remove_dir_all(&path);
            }
        }
    }
}

/// Records that a directory is used, by setting its modification time.
fn note_use(dir: &Path) {
    let _ = fs::File::open(dir).and_then(|dir| dir.set_modified(SystemTime::now()));
}

/// Removes the least recently used directories until the rest is within the limits.
fn bound(cache: &Path) {
    let (mut count, mut bytes) = (0, 0);
    let mut idle: Vec<(Duration, u64, PathBuf)> = Vec::new();
    for path in paths(cache) {
        let unused = path.metadata().and_then(|dir| dir.modified());
        let Ok(unused) = unused.map(|used| used.elapsed().unwrap_or_default()) else {
            continue;
        };
        let is_complete = path.extension().is_none_or(|end| end != "new" && end != "lock");
        if is_complete && path.is_dir() {
            let size = size(&path);
            (count, bytes) = (count + 1, bytes + size);
            if unused > IN_USE {
                let at = idle.partition_point(|(known, ..)| *known > unused);
                idle.insert(at, (unused, size, path));
            }
        }
    }
    for (_, size, path) in idle {
        if count <= MOST && bytes <= MOST_BYTES {
            break;
        }
        // The directory is renamed before it is removed, so that no process finds it half removed.
        // If this process is killed, `remove_old` recognises the name and removes the rest.
        let mut going = path.clone().into_os_string();
        going.push(format!(".{}.new", std::process::id()));
        if fs::rename(&path, &going).is_ok() {
            let _ = fs::remove_dir_all(&going);
            (count, bytes) = (count - 1, bytes - size);
        }
    }
}

/// The paths in a directory. Entries that cannot be read are skipped.
fn paths(dir: &Path) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        paths.push(entry.path());
    }
    paths
}

/// The total size in bytes of all files below a directory.
fn size(dir: &Path) -> u64 {
    let mut sum = 0;
    for path in paths(dir) {
        sum += match path.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => size(&path),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        };
    }
    sum
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn it_is_made_once_and_again_after_a_failure() {
        let base = std::env::temp_dir().join(format!("mirakuru-unit-{}-cache", std::process::id()));
        let _ = fs::remove_dir_all(&base);
        let service = base.join("id/d");
        fs::create_dir_all(&service).unwrap();
        let failure = cached(
            &service,
            "a/1",
            Box::new(|dir| {
                fs::write(dir.join("half"), "").unwrap();
                Err(Error::other("make it", "no"))
            }),
        );
        assert!(failure.is_err());
        let count = AtomicU32::new(0);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let make = |dir: &Path| {
                        count.fetch_add(1, Ordering::Relaxed);
                        assert!(!dir.join("half").exists());
                        fs::create_dir(dir.join("sub")).unwrap();
                        thread::sleep(Duration::from_millis(20));
                        fs::write(dir.join("sub/file"), "text").unwrap();
                        Ok(())
                    };
                    let found = cached(&service, "a/1", Box::new(make));
                    assert!(found.unwrap().join("sub/file").exists());
                });
            }
        });
        assert_eq!(count.into_inner(), 1);
        let copy = base.join("copy");
        fs::create_dir(&copy).unwrap();
        copy_tree(
            &cached(&service, "a/1", Box::new(|_| unreachable!())).unwrap(),
            &copy,
        )
        .unwrap();
        assert_eq!(fs::read_to_string(copy.join("sub/file")).unwrap(), "text");
        fs::remove_dir_all(&base).unwrap();
    }

    #[test]
    fn a_copy_has_links_as_links_and_neither_sockets_nor_pipes() {
        let base = std::env::temp_dir().join(format!("mirakuru-unit-{}-copy", std::process::id()));
        let _ = fs::remove_dir_all(&base);
        let (from, to) = (base.join("from"), base.join("to"));
        fs::create_dir_all(&from).unwrap();
        fs::create_dir_all(&to).unwrap();
        fs::write(from.join("file"), "text").unwrap();
        symlink("file", from.join("link")).unwrap();
        symlink("nowhere", from.join("dangling")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(from.join("socket")).unwrap();
        let pipe = std::process::Command::new("mkfifo")
            .arg(from.join("pipe"))
            .status();
        assert!(pipe.unwrap().success());
        // The second copy replaces the files and links of the first.
        for _ in 0..2 {
            copy_tree(&from, &to).unwrap();
        }
        let mut names: Vec<_> = fs::read_dir(&to)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["dangling", "file", "link"]);
        assert_eq!(fs::read_link(to.join("dangling")).unwrap(), Path::new("nowhere"));
        assert_eq!(fs::read_to_string(to.join("link")).unwrap(), "text");
        fs::remove_dir_all(&base).unwrap();
    }

    #[test]
    fn keys_that_differ_are_other_files() {
        let long = "x".repeat(300);
        let keys = ["a/b", "a_b", "a b", "a-b", "", &long, &format!("{long}y")];
        let names: std::collections::BTreeSet<String> = keys.iter().map(|key| file_name(key)).collect();
        assert_eq!(names.len(), keys.len(), "{names:?}");
        assert!(names.iter().all(|name| name.len() < 80 && !name.contains('/')));
        assert_eq!(file_name("postgres-3-0f"), "postgres-3-0f");
    }

    #[test]
    fn what_is_old_goes_when_something_new_is_made() {
        let base = std::env::temp_dir().join(format!("mirakuru-unit-{}-old", std::process::id()));
        let _ = fs::remove_dir_all(&base);
        let cache = base.join("cache");
        let boot = boot();
        let old = [
            format!("k.{boot}.3"),
            format!("k.{boot}.9.new"),
            "k.x.99999999".into(),
            format!("other.{boot}.3"),
        ];
        let others = [format!("k.{boot}.99999999"), format!("other.{boot}.99999999")];
        for name in old.iter().chain(&others) {
            fs::create_dir_all(cache.join(name)).unwrap();
        }
        let locks = ["old.lock", "new.lock"].map(|name| cache.join(name));
        for (lock, days) in locks.iter().zip([9, 7]) {
            drop(Lease::take(lock, 1).unwrap());
            let taken = SystemTime::now() - Duration::from_secs(days * 24 * 60 * 60);
            let next = fs::File::options().write(true).open(lock.join("next")).unwrap();
            next.set_modified(taken).unwrap();
        }
        cached(&base.join("id/d"), "k", Box::new(|_| Ok(()))).unwrap();
        assert!(old.iter().all(|name| !cache.join(name).exists()));
        assert!(others.iter().all(|name| cache.join(name).exists()));
        assert_eq!(locks.map(|lock| lock.exists()), [false, true]);
        fs::remove_dir_all(&base).unwrap();
    }

    #[test]
    fn directories_that_nobody_uses_go_when_there_are_many() {
        let base = std::env::temp_dir().join(format!("mirakuru-unit-{}-bound", std::process::id()));
        let _ = fs::remove_dir_all(&base);
        let cache = base.join("cache");
        let (boot, now) = (boot(), SystemTime::now());
        let name = |number: u32| cache.join(format!("k{number}.{boot}.99999999"));
        for number in 0..MOST as u32 + 5 {
            fs::create_dir_all(name(number)).unwrap();
            // A lower number means a more recent use.
            let used = now - IN_USE - Duration::from_secs(60 * u64::from(number + 1));
            fs::File::open(name(number)).unwrap().set_modified(used).unwrap();
        }
        // Without this use, directory 28 would be the least recently used one.
        note_use(&name(28));
        bound(&cache);
        let left: Vec<u32> = (0..MOST as u32 + 5)
            .filter(|number| name(*number).exists())
            .collect();
        assert_eq!(left.len(), MOST);
        assert!(left.contains(&28) && left.contains(&0), "{left:?}");
        assert!(!left.contains(&27), "{left:?}");
        fs::remove_dir_all(&base).unwrap();
    }
}
