//! All code that talks to the operating system directly. This is the only place for `unsafe`,
//! `libc` and `nix`.
//!
//! | folder | what it does |
//! | --- | --- |
//! | `process/` | supervises services: starts and stops them, and proves that nothing is left |
//! | `net/` | asks the kernel about sockets, and creates those that `std` cannot |
//! | `proc/` | reads `/proc` |
//! | `io/` | files, locks and waiting |
//!
//! Nothing here imports from a folder above `sys/`. Those folders use only names that this file
//! exports.
//!
//! `RUSTFLAGS="--cfg mirakuru_portable"` selects the portable back end on Linux, so that it can be
//! tested there. The flag also disables the Linux-only interfaces that mirakuru can do without
//! (`/proc`, netlink).

#[cfg(not(unix))]
compile_error!("mirakuru supervises services on Unix only");

mod io;
mod net;
pub(crate) mod proc;
mod process;

pub(crate) use io::file_watch;
pub(crate) use io::files::{self, egid, euid};
pub(crate) use io::log_record;
pub(crate) use io::pipe::{is_readable, pipe};
pub(crate) use io::remove::{remove_service_dir, remove_tree};
pub(crate) use io::terminal::columns;
pub(crate) use io::wait::{readable, wait_readable};
pub(crate) use net::listen::listen_tcp;
pub(crate) use net::ports;
#[cfg(all(target_os = "linux", not(mirakuru_portable)))]
pub(crate) use net::sock_diag;
pub(crate) use net::sockets;
pub(crate) use net::time_wait;
pub(crate) use net::{Protocol, Socket};
pub(crate) use proc as procfs;
pub(crate) use process::exit::{at_exit, end_of_test, exit_began};
pub(crate) use process::origin;
pub(crate) use process::plan::{
    CommandPlan, LogPart, PID_DIGITS, Plan, RunPlan, SpawnFailure, Stage, StopPolicy, Stream,
};
pub(crate) use process::service::{Exit, Service, TreeSignal};
pub(crate) use process::signals;
pub(crate) use process::users::User;
pub(crate) use process::{LOSES_DAEMONS, forks_whole_because, kill_marked, pidfd, pidfds_are_missing};

/// The time on CLOCK_MONOTONIC in nanoseconds, as in the supervisor's time stamps.
pub(crate) fn clock_ns() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the call writes into a local variable.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    // The supervisor calls this after a fork, where nothing may panic.
    (time.tv_sec as u64)
        .wrapping_mul(1_000_000_000)
        .wrapping_add(time.tv_nsec as u64)
}

/// The error number of the last call that failed.
fn errno() -> i32 {
    nix::errno::errno()
}

/// The error number if this user may not execute a file.
pub(crate) const EACCES: i32 = libc::EACCES;
/// The error number if the kernel cannot execute a file because of its format.
pub(crate) const ENOEXEC: i32 = libc::ENOEXEC;

/// Whether an error number means that this process, or the machine, has run out of descriptors.
pub(crate) fn is_out_of_descriptors(errno: i32) -> bool {
    matches!(errno, libc::EMFILE | libc::ENFILE)
}

#[cfg(test)]
pub(crate) mod tests {
    //! Helpers for the tests of other files.

    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::{Duration, Instant};

    #[cfg(all(target_os = "linux", not(mirakuru_portable)))]
    pub(crate) use forks::fork_with;

    /// A directory that is removed when this value is dropped.
    pub(crate) struct TestDir(PathBuf);

    impl TestDir {
        pub(crate) fn new() -> TestDir {
            static NEXT: AtomicU64 = AtomicU64::new(0);
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("mirakuru-unit-{}-{number}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            std::fs::create_dir(&path).expect("the temporary directory is writable");
            TestDir(path)
        }

        pub(crate) fn path(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for TestDir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    /// Waits until a condition that depends on a closed descriptor is true. For a moment after the
    /// close, a process that another test has just forked may still hold a copy.
    #[track_caller]
    pub(crate) fn in_time(mut condition: impl FnMut() -> bool) {
        in_time_some(|| condition().then_some(()));
    }

    /// Like [`in_time`], but waits until `value` returns `Some`, and returns the value inside.
    #[track_caller]
    pub(crate) fn in_time_some<T>(mut value: impl FnMut() -> Option<T>) -> T {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            match value() {
                Some(value) => return value,
                None => assert!(Instant::now() < end, "not within 20 s"),
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[cfg(all(target_os = "linux", not(mirakuru_portable)))]
    mod forks {
        use std::os::fd::AsRawFd;
        use std::time::Duration;

        use nix::sys::wait::waitpid;
        use nix::unistd::Pid;

        /// A forked child that executes no program. Dropping this value reaps it.
        pub(crate) struct Fork(Pid);

        impl Fork {
            pub(crate) fn pid(&self) -> u32 {
                self.0.as_raw() as u32
            }
        }

        impl Drop for Fork {
            fn drop(&mut self) {
                let _ = waitpid(self.0, None);
            }
        }

        /// Forks this process. The child keeps only this descriptor open, and exits after `time`.
        pub(crate) fn fork_with(fd: &impl AsRawFd, time: Duration) -> Fork {
            let fd = fd.as_raw_fd();
            let millis = i32::try_from(time.as_millis()).expect("a short time");
            // SAFETY: the child makes only system calls.
            unsafe {
                let pid = libc::fork();
                if pid == 0 {
                    for other in (3..4096).filter(|other| *other != fd) {
                        libc::close(other);
                    }
                    libc::poll(std::ptr::null_mut(), 0, millis);
                    libc::_exit(0);
                }
                assert!(pid > 0, "a fork");
                Fork(Pid::from_raw(pid))
            }
        }
    }
}
