//! [`Owner`]: the process that created an object on an external server.
//!
//! The name of each object begins with an encoded [`Owner`], so that the next run can find and
//! remove the objects of a dead run.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process;
use std::time::{Duration, SystemTime};

use crate::run::hash;
use crate::service_dir::is_alive;
use crate::sys;

/// Identifies a process in the names of objects on a server. `Display` writes the prefix of such a
/// name: `mk5f3a91c2p1a2fs3b9ac9t69268f10`. It has at most 41 characters, all of them lower-case
/// letters and digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Hash of the machine's boot id and the pid namespace.
    host: u32,
    pid: u32,
    /// Start time of the process, in ticks since boot.
    start: u64,
    /// When the name was created, in seconds since 1970.
    made: u64,
}

impl Owner {
    /// The owner that represents this process.
    #[must_use]
    pub fn this_process() -> Owner {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        Owner {
            host: this_host(),
            pid: process::id(),
            start: sys::procfs::start_time(process::id()).unwrap_or(0),
            made: now.as_secs(),
        }
    }

    /// Parses a prefix that `Display` has written.
    #[must_use]
    pub fn parse(text: &str) -> Option<Owner> {
        let (host, rest) = text.strip_prefix("mk")?.split_once('p')?;
        let (pid, rest) = rest.split_once('s')?;
        let (start, made) = rest.split_once('t')?;
        let owner = Owner {
            host: u32::from_str_radix(host, 16).ok()?,
            pid: u32::from_str_radix(pid, 16).ok()?,
            start: u64::from_str_radix(start, 16).ok()?,
            made: u64::from_str_radix(made, 16).ok()?,
        };
        // Reject other spellings of the same numbers, such as leading zeros or capital letters.
        (owner.to_string() == text).then_some(owner)
    }

    /// Whether the process has ended. `None` if that cannot be determined, because it ran on
    /// another machine or in another container.
    #[must_use]
    pub fn has_ended(&self) -> Option<bool> {
        (self.host == this_host()).then(|| {
            let is_seen = Path::new("/proc").join(self.pid.to_string()).exists();
            // `/proc` may hide the processes of other users.
            let is_hidden = !is_seen && sys::files::process_exists(self.pid);
            !is_alive(self.pid, self.start) && !is_hidden
        })
    }

    /// The time since the name was created.
    #[must_use]
    pub fn age(&self) -> Duration {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        now.saturating_sub(Duration::from_secs(self.made))
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Owner {
            host,
            pid,
            start,
            made,
        } = self;
        write!(f, "mk{host:x}p{pid:x}s{start:x}t{made:x}")
    }
}

fn this_host() -> u32 {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    hash(0, &format!("{boot} {}", sys::procfs::pid_namespace())) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_read_as_it_was_written_and_nothing_else_is() {
        let us = Owner::this_process();
        assert_eq!(Owner::parse(&us.to_string()), Some(us));
        let most = Owner {
            host: u32::MAX,
            pid: u32::MAX,
            start: u64::MAX >> 16,
            made: u64::from(u32::MAX),
        };
        assert!(most.to_string().len() <= 41, "{most}");
        for text in [
            "",
            "mk",
            "mk1p2s3",
            "mk1p2s3t",
            "mk01p2s3t4",
            "mk1p2s3t4_x",
            "MK1p2s3t4",
            "mk1p+2s3t4",
        ] {
            assert_eq!(Owner::parse(text), None, "{text}");
        }
    }

    #[test]
    fn it_has_ended_when_its_process_has() {
        let us = Owner::this_process();
        assert_eq!(us.has_ended(), Some(false));
        assert!(us.age() < Duration::from_secs(60));
        let before = Owner {
            start: us.start + 1,
            ..us
        };
        assert_eq!(before.has_ended(), Some(true));
        let elsewhere = Owner {
            host: us.host ^ 1,
            ..us
        };
        assert_eq!(elsewhere.has_ended(), None);
    }
}
