//! A cache of directories that are slow to make and the same each time, such as the data directory
//! of a database. Each is made once for each machine, version and user, and copied from there.
//!
//! ```text
//! <temp dir>/mirakuru-<euid>/cache/     0700
//!     KEY.BOOT.PERIOD/                  complete: it gets its name by `rename`
//!     KEY.BOOT.PERIOD.new/              being made, by the process that has the lock
//!     KEY.lock/                         the lock, which goes with its holder
//! ```
//!
//! A directory that is older than a few days is not taken, because programs that clean temporary
//! directories (after ten days, as a rule) may have removed half of it. A directory that was made
//! before the machine went down is not taken either, because nothing flushed it to the disk.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mirakuru_core::__private::Lease;
use mirakuru_core::Error;

use super::failed;
use super::server::limit;

/// How long a directory is used, in seconds.
const PERIOD: u64 = 4 * 24 * 60 * 60;
/// How long to wait for another process that makes the same. It may run a user's migrations; its
/// lock goes with it.
const PATIENCE: Duration = Duration::from_secs(900);
/// The most directories, and the most bytes in them, that stay. Those that were used last stay.
const MOST: usize = 24;
const MOST_BYTES: u64 = 2 << 30;
/// A directory that was used this recently stays in any case: somebody may be copying it.
const IN_USE: Duration = Duration::from_secs(600);

/// The directory that `make` fills, or has filled before. `service` is the private directory of the
/// service that it is for. Everything that `make` depends on, versions above all, must show in
/// `key`.
pub(super) fn cached(
    service: &Path,
    key: &str,
    make: impl FnOnce(&Path) -> Result<(), Error>,
) -> Result<PathBuf, Error> {
    let failed = |source| failed(format!("use the cache for {key}"), source);
    // `<base>/<id>/d`: the base has been found to be ours alone.
    let base = service
        .ancestors()
        .nth(2)
        .ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    let cache = base.join("cache");
    private_dir(&cache).map_err(failed)?;
    let key: String = key
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '-' {
                c
            } else {
                '_'
            }
        })
        .collect();
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
    // Left by a process that was killed at it.
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

/// Copies the content of one directory into another, with its permissions. Subdirectories may be
/// there already.
pub(super) fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    copy_files(from, to, limit("Max file size").unwrap_or(u64::MAX))
}

fn copy_files(from: &Path, to: &Path, limit: u64) -> io::Result<()> {
    private_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let metadata = entry.metadata()?;
        if metadata.is_dir() {
            copy_files(&entry.path(), &target, limit)?;
        } else if metadata.len() > limit {
            // A write past the limit would be the end of this process.
            let (name, length) = (entry.path(), metadata.len());
            return Err(io::Error::other(format!(
                "{} has {length} bytes, and this process may write {limit} into a file: raise `ulimit -f`",
                name.display()
            )));
        } else {
            // Shares the blocks where the file system can.
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

/// Makes a directory of mode 0700, whatever the process's umask is.
pub(super) fn private_dir(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => fs::set_permissions(path, Permissions::from_mode(0o700)),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e),
    }
}

fn lock(path: &Path) -> io::Result<Lease> {
    let mut waited = Duration::ZERO;
    loop {
        if let Some(lease) = Lease::take(path, 1)? {
            return Ok(lease);
        }
        if waited > PATIENCE {
            let problem = format!("another process has been making it for {} s", waited.as_secs());
            return Err(io::Error::new(io::ErrorKind::TimedOut, problem));
        }
        let pause = Duration::from_millis(5);
        thread::sleep(pause);
        waited += pause;
    }
}

/// The time at which a directory was made.
struct Age {
    boot: String,
    period: u64,
}

/// A text that tells this run of the machine from those before it, where that can be known.
fn boot() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.chars().filter(char::is_ascii_alphanumeric).take(12).collect()
}

/// Removes the directories that no process has made since the period before this one.
fn remove_old(cache: &Path, now: &Age) {
    for entry in fs::read_dir(cache).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let age = name.to_str().and_then(|name| {
            let mut parts = name.trim_end_matches(".new").rsplitn(3, '.');
            let period = parts.next()?.parse::<u64>().ok()?;
            Some((parts.next()?.to_owned(), period))
        });
        if age.is_some_and(|(boot, period)| boot != now.boot || period + 1 < now.period) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Says that a directory is in use: its time of change is the time of its last use.
fn note_use(dir: &Path) {
    let _ = fs::File::open(dir).and_then(|dir| dir.set_modified(SystemTime::now()));
}

/// Removes the directories that were not used for the longest time, until the rest is within the
/// bounds.
fn bound(cache: &Path) {
    let mut dirs: Vec<(SystemTime, u64, PathBuf)> = fs::read_dir(cache)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir() && path.extension().is_none_or(|end| end != "new" && end != "lock"))
        .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, size(&path), path)))
        .collect();
    dirs.sort();
    let mut bytes: u64 = dirs.iter().map(|(_, size, _)| size).sum();
    let mut count = dirs.len();
    for (used, size, path) in dirs {
        let is_idle = used.elapsed().is_ok_and(|idle| idle > IN_USE);
        if (count > MOST || bytes > MOST_BYTES) && is_idle {
            // Under another name first: nobody finds half of it.
            let going = path.with_extension("new");
            if fs::rename(&path, &going).is_ok() {
                let _ = fs::remove_dir_all(&going);
                count -= 1;
                bytes -= size;
            }
        }
    }
}

/// The bytes of all files below a directory.
fn size(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| Some((entry.metadata().ok()?, entry.path())))
        .map(|(metadata, path)| match metadata.is_dir() {
            true => size(&path),
            false => metadata.len(),
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn it_is_made_once_and_again_after_a_failure() {
        let base = std::env::temp_dir().join(format!("mirakuru-unit-{}-cache", std::process::id()));
        let _ = fs::remove_dir_all(&base);
        let service = base.join("id/d");
        fs::create_dir_all(&service).unwrap();
        let failure = cached(&service, "a/1", |dir| {
            fs::write(dir.join("half"), "").unwrap();
            Err(Error::other("make it", "no"))
        });
        assert!(failure.is_err());
        let count = AtomicU32::new(0);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let found = cached(&service, "a/1", |dir| {
                        count.fetch_add(1, Ordering::Relaxed);
                        assert!(!dir.join("half").exists());
                        fs::create_dir(dir.join("sub")).unwrap();
                        thread::sleep(Duration::from_millis(20));
                        fs::write(dir.join("sub/file"), "text").unwrap();
                        Ok(())
                    });
                    assert!(found.unwrap().join("sub/file").exists());
                });
            }
        });
        assert_eq!(count.into_inner(), 1);
        let copy = base.join("copy");
        fs::create_dir(&copy).unwrap();
        copy_tree(&cached(&service, "a/1", |_| unreachable!()).unwrap(), &copy).unwrap();
        assert_eq!(fs::read_to_string(copy.join("sub/file")).unwrap(), "text");
        fs::remove_dir_all(&base).unwrap();
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
        cached(&base.join("id/d"), "k", |_| Ok(())).unwrap();
        assert!(old.iter().all(|name| !cache.join(name).exists()));
        assert!(others.iter().all(|name| cache.join(name).exists()));
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
            // The first ones were used last.
            let used = now - IN_USE - Duration::from_secs(60 * u64::from(number + 1));
            fs::File::open(name(number)).unwrap().set_modified(used).unwrap();
        }
        // Was idle for long, and is used now.
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
