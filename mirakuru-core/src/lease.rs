//! A number that one test has for itself, of a service that many share: leased by a lock on a file in a directory that all of them know.
//!
//! The kernel gives the lock back when its holder ends, however it ends. So a number is never lost.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use crate::home::is_at;
use crate::sys::files::{open_lock, try_flock};

/// A number below some limit that nobody else has, in this process or another, until this is dropped.
#[derive(Debug)]
pub struct Lease {
    number: u32,
    _lock: File,
}

impl Lease {
    /// The lowest number below `limit` that is free, or `None` when all are taken. The directory is made where it is missing.
    ///
    /// # Errors
    ///
    /// When the directory or the files in it cannot be used.
    pub fn take(dir: &Path, limit: u32) -> io::Result<Option<Lease>> {
        match DirBuilder::new().mode(0o700).create(dir) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        for number in 0..limit {
            let path = dir.join(number.to_string());
            let lock = open_lock(&path, true)?;
            if try_flock(lock.as_fd())? && is_at(&lock, &path)? {
                return Ok(Some(Lease { number, _lock: lock }));
            }
        }
        Ok(None)
    }

    /// The number.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_own_and_gives_it_back() {
        let dir = std::env::temp_dir().join(format!("mirakuru-unit-{}-lease", std::process::id()));
        let take = || Lease::take(&dir, 3).expect("a writable directory");
        let number = |lease: &Option<Lease>| lease.as_ref().map(Lease::number);
        let (one, two, three) = (take(), take(), take());
        assert_eq!(
            [number(&one), number(&two), number(&three)],
            [Some(0), Some(1), Some(2)]
        );
        assert_eq!(number(&take()), None);
        drop(two);
        // Processes that other tests have just forked may hold a copy of it for a moment.
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let mut again = take();
        while again.is_none() && std::time::Instant::now() < until {
            std::thread::sleep(std::time::Duration::from_millis(1));
            again = take();
        }
        assert_eq!(number(&again), Some(1));
        std::fs::remove_dir_all(dir).expect("it is ours");
    }
}
