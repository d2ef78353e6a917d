//! Removes old logs, and the services and directories that killed test processes have left behind.
//!
//! This module is in `run/`, not in `service_dir/`, because it also removes the directories of
//! runs.

use std::cmp::Reverse;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use crate::run::{is_in_use, runner_of, runs_base};
use crate::service_dir::base::{FALLBACK, base_in, check_private, is_at};
use crate::service_dir::remove::{clear, remove_tree};
use crate::service_dir::{is_alive, is_id};
use crate::sys;
use crate::util::sorted;

/// How long the log of a failed service is kept.
const KEPT_FOR: Duration = Duration::from_secs(24 * 60 * 60);
/// If more logs than this are kept, those older than [`MANY_KEPT_FOR`] are removed, because
/// checking a log takes several system calls.
const MANY_KEPT: usize = 200;
const MOST_KEPT: usize = 1_000;
/// The total size that the kept logs may have. Beyond it, the oldest are removed.
const MOST_BYTES: u64 = 1 << 30;
/// How often all kept logs are checked.
const CHECK_EVERY: Duration = Duration::from_secs(10 * 60);
const MANY_KEPT_FOR: Duration = Duration::from_secs(60 * 60);
/// Age at which an unfinished service directory counts as abandoned. Creating one takes a fraction
/// of a millisecond.
const ABANDONED_AFTER: Duration = Duration::from_secs(60);

/// A service directory whose creator and supervisor are gone. Dropping this value removes the
/// directory.
///
/// Before the drop, kill the processes that carry the service's id: once the directory is gone, no
/// later sweep looks for them.
#[derive(Debug)]
pub(crate) struct Stale {
    id: String,
    path: PathBuf,
    kept: bool,
    /// The lock that keeps other sweeps away. It is closed after `drop` has removed the service
    /// directory.
    _lock: File,
}

impl Stale {
    /// The service's id, which its processes carry as `MIRAKURU_ID`.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }
}

impl Drop for Stale {
    fn drop(&mut self) {
        clear(&self.path, self.kept);
    }
}

/// Kills the processes and removes the directories that killed test processes have left behind.
/// Runs only once in each process.
pub(crate) fn sweep() {
    static SWEPT: AtomicBool = AtomicBool::new(false);
    if SWEPT.swap(true, Ordering::Relaxed) {
        return;
    }
    let mut bases = vec![base_in(&std::env::temp_dir()), runs_base()];
    if sys::files::euid() == 0 {
        // `ServiceDir::create` uses this base for a service whose user cannot enter the first one.
        bases.push(base_in(Path::new(FALLBACK)));
    }
    let mut stale = Vec::new();
    for (at, base) in bases.iter().enumerate() {
        if !bases[..at].contains(base) {
            stale.append(&mut sweep_in(base));
        }
    }
    let ids: Vec<&str> = stale.iter().map(Stale::id).collect();
    sys::kill_marked(&ids);
}

fn sweep_in(base: &Path) -> Vec<Stale> {
    let mut stale = Vec::new();
    // Another user's base is left alone; `create` will report it.
    let Ok(()) = check_private(base) else { return stale };
    let Ok(entries) = fs::read_dir(base) else {
        return stale;
    };
    let known = KeptLogs::read(base);
    let mut logs = Vec::new();
    let mut new = String::new();
    for entry in entries.flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        let Some(name) = name.to_str() else { continue };
        if is_id(name) {
            if known.have(name) {
                continue;
            }
            if let Some(kept_at) = only_the_log_is_left(&path) {
                let _ = writeln!(new, "{name}");
                logs.push((Reverse(kept_at), path));
            } else if let Some(found) = examine(&path, name) {
                stale.push(found);
            }
        } else if let Some((pid, started)) = runner_of(name) {
            // The last service of a run removes this directory, unless its supervisor was killed.
            if !is_alive(pid, started) && !is_in_use(&path) {
                remove_tree(&path);
            }
        } else if let Some((pid, started, namespace)) = unfinished_by(name) {
            // A process in another pid namespace is not visible, so the age of the directory
            // decides.
            let is_dead = !is_alive(pid, started)
                && (namespace == sys::procfs::pid_namespace() || is_older(&path, ABANDONED_AFTER));
            if is_dead {
                remove_tree(&path);
            }
        }
    }
    known.update(&sorted(logs), &new);
    stale
}

/// The kept logs of a base. A file lists their names, so most sweeps need not check each log. Now
/// and then a sweep checks all logs, removes old ones and rewrites the file.
struct KeptLogs {
    list: PathBuf,
    /// The names in the file, sorted. Empty if this sweep checks all logs.
    names: Vec<String>,
    is_fresh: bool,
}

impl KeptLogs {
    fn read(base: &Path) -> KeptLogs {
        let list = base.join("kept-logs");
        let is_fresh = list.exists() && !is_older(&list, CHECK_EVERY);
        let text = match is_fresh {
            true => fs::read_to_string(&list).unwrap_or_default(),
            false => String::new(),
        };
        let mut names = Vec::new();
        for name in text.lines() {
            names.push(name.to_owned());
        }
        KeptLogs {
            list,
            names: sorted(names),
            is_fresh,
        }
    }

    fn have(&self, name: &str) -> bool {
        self.names
            .binary_search_by(|known| known.as_str().cmp(name))
            .is_ok()
    }

    /// Adds new logs to the file. If this sweep has checked all logs, removes the excess: logs that
    /// are too old, too many or too large. `logs` begins with the newest one.
    fn update(&self, logs: &[(Reverse<SystemTime>, PathBuf)], new: &str) {
        if self.is_fresh {
            if !new.is_empty() {
                let list = fs::OpenOptions::new().append(true).open(&self.list);
                // If the write fails, a later sweep checks the log again.
                let _ = list.and_then(|mut list| list.write_all(new.as_bytes()));
            }
            return;
        }
        let (mut size, mut names) = (0, String::new());
        for (at, (Reverse(kept_at), path)) in logs.iter().enumerate() {
            for part in ["log", "log.1", "log.2", "log.3"] {
                size += path.join(part).symlink_metadata().map_or(0, |part| part.len());
            }
            let limit = if at < MANY_KEPT { KEPT_FOR } else { MANY_KEPT_FOR };
            if is_past(*kept_at, limit) || at >= MOST_KEPT || (at > 0 && size > MOST_BYTES) {
                remove_tree(path);
            } else if let Some(name) = path.file_name().and_then(|name| name.to_str()) {
                let _ = writeln!(names, "{name}");
            }
        }
        let _ = match names.is_empty() {
            true => fs::remove_file(&self.list),
            false => fs::write(&self.list, names),
        };
    }
}

/// If only the log of a service directory is left, returns when the log was kept. The directory
/// then has no `lock`, because `lock` is removed after everything else.
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

/// Decides whether a service directory is stale. The order of the checks matters: a process that
/// keeps a log writes `kept` before it removes anything or frees the lock.
fn examine(path: &Path, id: &str) -> Option<Stale> {
    match sys::files::open_lock(&path.join("lock"), false) {
        Ok(lock) => {
            if !matches!(sys::files::try_flock(lock.as_fd()), Ok(true)) {
                return None;
            }
            // Another process removed the service directory between the open and the lock.
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

/// Whether a file was last written longer ago than `age`. Always false for a time in the future.
fn is_older(path: &Path, age: Duration) -> bool {
    let written = path.symlink_metadata().and_then(|metadata| metadata.modified());
    written.is_ok_and(|at| is_past(at, age))
}

fn is_past(at: SystemTime, age: Duration) -> bool {
    SystemTime::now()
        .duration_since(at)
        .is_ok_and(|passed| passed > age)
}

fn unfinished_by(name: &str) -> Option<(u32, u64, u64)> {
    let mut parts = name.strip_prefix("new-")?.split('-');
    let mut number = || parts.next()?.parse::<u64>().ok();
    Some((u32::try_from(number()?).ok()?, number()?, number()?))
}

#[cfg(test)]
mod tests;
