//! Leases a number to one test at a time, for example the number of a database in a shared Redis. A
//! lease is a lock on a file in a directory that is known to all test processes.
//!
//! The kernel frees the lock when its holder exits, however that happens, so a number is never
//! lost.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process;
use std::time::Duration;

use crate::service_dir::base::is_at;
use crate::sys::files::{open_lock, try_flock, unlock};
use crate::util::backoff::Pauses;

/// A number that this process has leased. No other process can lease it until this value is
/// dropped.
#[derive(Debug)]
pub struct Lease {
    number: u32,
    lock: File,
    /// Id of the process that took the lease. A forked child has a copy of this value, and must not
    /// release the lease when it drops the copy.
    holder: u32,
}

impl Lease {
    /// Leases a free number below `limit`. Returns `None` if all are taken. Creates the directory
    /// if it is missing.
    ///
    /// The numbers rotate: the search begins after the number that was leased last. So if a client
    /// outlives its lease, its number stays unused for as long as possible.
    ///
    /// # Errors
    ///
    /// If the directory or the files in it cannot be used.
    pub fn take(dir: &Path, limit: u32) -> io::Result<Option<Lease>> {
        match DirBuilder::new().mode(0o700).create(dir) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        let next = dir.join("next");
        // The file is only a hint: two processes that read the same number still get different
        // locks.
        let first = fs::read_to_string(&next)
            .ok()
            .and_then(|text| text.parse().ok())
            .filter(|first| *first < limit)
            .unwrap_or(0);
        for number in (first..limit).chain(0..first) {
            let path = dir.join(number.to_string());
            let lock = open_lock(&path, true)?;
            if try_flock(lock.as_fd())? && is_at(&lock, &path)? {
                let _ = fs::write(&next, (number + 1).to_string());
                return Ok(Some(Lease {
                    number,
                    lock,
                    holder: process::id(),
                }));
            }
        }
        Ok(None)
    }

    /// Uses the directory as an exclusive lock, by leasing its only number. Waits for up to
    /// `patience`, then returns `None`.
    ///
    /// # Errors
    ///
    /// If the directory or the files in it cannot be used.
    pub fn wait(dir: &Path, patience: Duration) -> io::Result<Option<Lease>> {
        let mut pauses = Pauses::new();
        loop {
            let lease = Lease::take(dir, 1)?;
            if lease.is_some() || pauses.elapsed() > patience {
                return Ok(lease);
            }
            pauses.sleep(patience);
        }
    }

    /// The leased number.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.holder == process::id() {
            unlock(self.lock.as_fd());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_own_and_gives_it_back() {
        let dir = std::env::temp_dir().join(format!("mirakuru-unit-{}-lease", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let take = || Lease::take(&dir, 3).expect("a writable directory");
        let number = |lease: &Option<Lease>| lease.as_ref().map(Lease::number);
        let (one, two, three) = (take(), take(), take());
        assert_eq!(
            [number(&one), number(&two), number(&three)],
            [Some(0), Some(1), Some(2)]
        );
        assert_eq!(number(&take()), None);
        // Simulates the copy in a process that another thread has just forked.
        let copy = two.as_ref().map(|lease| lease.lock.try_clone().expect("a copy"));
        drop(two);
        let again = take();
        drop(copy);
        assert_eq!(number(&again), Some(1));
        // The numbers rotate: 2 comes next, although 1 has been returned as well.
        drop((again, three));
        assert_eq!(number(&take()), Some(2));
        std::fs::remove_dir_all(dir).expect("it is ours");
    }
}
