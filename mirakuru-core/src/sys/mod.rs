//! Everything that talks to the operating system directly: the only place for `unsafe`, `libc` and `nix`.
//!
//! A back end supervises services: `linux`, which can prove that nothing is left of one, and `portable`, which does what POSIX
//! allows, for every other Unix. What they share is beside them. Nothing outside this folder knows how a service is supervised.
//!
//! `RUSTFLAGS="--cfg mirakuru_portable"` takes the portable one on Linux as well, so that it can be tested there. What is
//! Linux's own and can be done without (`/proc`, netlink) is then left out, too.

#[cfg(not(unix))]
compile_error!("mirakuru supervises services on Unix only");

mod arena;
mod exit;
pub(crate) mod file_watch;
pub(crate) mod files;
mod forked;
#[cfg(all(target_os = "linux", not(mirakuru_portable)))]
mod linux;
mod listen;
mod message;
#[cfg(all(target_os = "linux", not(mirakuru_portable)))]
pub(crate) mod netlink;
pub(crate) mod origin;
#[cfg(any(not(target_os = "linux"), mirakuru_portable))]
mod portable;
pub(crate) mod ports;
pub(crate) mod probe_command;
pub(crate) mod procfs;
mod raw_socket;
mod service;
pub(crate) mod sockets;
mod terminal;
mod wait;

#[cfg(all(target_os = "linux", not(mirakuru_portable)))]
use linux as back_end;
#[cfg(any(not(target_os = "linux"), mirakuru_portable))]
use portable as back_end;

pub(crate) use back_end::os::{LOSES_DAEMONS, kill_marked, pidfd};
pub(crate) use exit::{at_exit, exit_began};
pub(crate) use files::{egid, euid};
pub(crate) use listen::listen_tcp;
pub(crate) use probe_command::pipe;
pub(crate) use service::{Exit, Service, TreeSignal};
pub(crate) use terminal::columns;
pub(crate) use wait::wait_readable;

use std::ffi::CString;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use crate::recipe::signal::Signal;

/// All that is needed to start a service, made ready by ordinary code before the fork.
pub(crate) struct Plan {
    /// The files to try to execute, in order: one for each directory of `PATH`, or just the program.
    pub(crate) candidates: Vec<CString>,
    pub(crate) argv: Vec<CString>,
    pub(crate) envp: Vec<CString>,
    pub(crate) current_dir: Option<CString>,
    pub(crate) stdin: Stream,
    pub(crate) stdout: Stream,
    pub(crate) stderr: Stream,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) groups: Option<Vec<u32>>,
    pub(crate) umask: Option<u32>,
    /// How to end the service when the test process is gone.
    pub(crate) stop: StopPolicy,
    /// The log and its index, both opened for appending.
    pub(crate) log: OwnedFd,
    pub(crate) index: OwnedFd,
    /// Descriptors that the supervisor keeps until the tree is gone: locks.
    pub(crate) keep: Vec<OwnedFd>,
    /// Sockets that the service gets as its descriptors 3, 4 and so on. The value of its variable `LISTEN_PID`, if it has that, is
    /// written over with its process id: it must have [`PID_DIGITS`] bytes.
    pub(crate) listen: Vec<OwnedFd>,
    /// What the supervisor's command line ends in.
    pub(crate) id: String,
    /// What to remove once the tree is gone, if the test process is gone as well.
    pub(crate) private_dir: Option<CString>,
    /// For a service of a whole run.
    pub(crate) run: Option<RunPlan>,
}

/// What lets a service outlive the test process that starts it. It does so from [`Service::publish`] on, and until then it is
/// that process's alone.
pub(crate) struct RunPlan {
    /// A pidfd of the runner, at whose end the service is to end.
    pub(crate) runner: OwnedFd,
    /// The right to start the service. The supervisor keeps it as well, so that nobody starts another before this one is
    /// published or gone.
    pub(crate) start_lock: OwnedFd,
    /// The file with the service's state, and the name under which others look for it.
    pub(crate) staged: CString,
    pub(crate) published: CString,
    /// The run's directory, removed with everything in it when the runner is gone.
    pub(crate) dir: CString,
}

/// How many bytes the value of `LISTEN_PID` has before the process id is known.
pub(crate) const PID_DIGITS: usize = 10;

impl RunPlan {
    /// For one start: there may be several before one succeeds.
    pub(crate) fn try_clone(&self) -> std::io::Result<RunPlan> {
        Ok(RunPlan {
            runner: self.runner.try_clone()?,
            start_lock: self.start_lock.try_clone()?,
            staged: self.staged.clone(),
            published: self.published.clone(),
            dir: self.dir.clone(),
        })
    }
}

/// Where a standard stream of the service leads.
pub(crate) enum Stream {
    Null,
    /// For output: through the supervisor into the log.
    Log,
    Fd(OwnedFd),
    /// The test process's own descriptor.
    Inherit(RawFd),
}

/// How to end a service.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StopPolicy {
    pub(crate) signal: Signal,
    pub(crate) grace: Duration,
    pub(crate) kill_signal: Signal,
}

/// How far a start came before it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Sockets, pipes, memory and processes of the supervisor itself.
    Supervisor,
    Groups,
    Gid,
    Uid,
    CurrentDir,
    Exec,
}

/// Why a service was not executed.
#[derive(Debug)]
pub(crate) struct SpawnFailure {
    pub(crate) stage: Stage,
    pub(crate) source: std::io::Error,
}

/// The name of a signal, for example `SIGSEGV`.
pub(crate) fn signal_name(signal: i32) -> Option<&'static str> {
    nix::sys::signal::Signal::try_from(signal)
        .ok()
        .map(nix::sys::signal::Signal::as_str)
}

/// CLOCK_MONOTONIC in nanoseconds: the clock of the supervisor's time stamps.
pub(crate) fn clock_ns() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes into a local variable.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    (time.tv_sec as u64) * 1_000_000_000 + time.tv_nsec as u64
}

/// The error number of a file that is in no format that the kernel executes.
pub(crate) const ENOEXEC: i32 = libc::ENOEXEC;

/// Whether an error number says that this process, or the machine, has no more descriptors to give.
pub(crate) fn is_out_of_descriptors(errno: i32) -> bool {
    matches!(errno, libc::EMFILE | libc::ENFILE)
}

/// Whether a process was ended by this signal.
pub(crate) fn is_death_by(status: ExitStatus, signal: Signal) -> bool {
    status.signal() == Some(message::number(signal))
}

#[cfg(test)]
pub(crate) mod tests {
    //! What tests of other files need.

    use std::time::{Duration, Instant};

    #[cfg(all(target_os = "linux", not(mirakuru_portable)))]
    pub(crate) use forks::fork_with;

    /// Waits for what holds a moment after a descriptor was closed at the latest: a process that another test makes in that moment
    /// has the descriptor open until it executes its program.
    #[track_caller]
    pub(crate) fn in_time(mut condition: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !condition() {
            assert!(Instant::now() < end, "not within 20 s");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[cfg(all(target_os = "linux", not(mirakuru_portable)))]
    mod forks {
        use std::os::fd::AsRawFd;
        use std::time::Duration;

        use nix::sys::wait::waitpid;
        use nix::unistd::Pid;

        /// A child that executes nothing, reaped when it is dropped.
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

        /// A fork of this process that keeps one descriptor open for a while, and nothing else.
        pub(crate) fn fork_with(fd: &impl AsRawFd, time: Duration) -> Fork {
            let fd = fd.as_raw_fd();
            let millis = i32::try_from(time.as_millis()).expect("a short time");
            // SAFETY: the child makes system calls only.
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
