//! The plan for a start. An executor passes it to a back end, which carries it out.

use std::ffi::CString;
use std::os::fd::{OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::Duration;

use super::calls::Call;

/// A command, ready to be executed.
#[derive(Clone, Debug)]
pub(crate) struct CommandPlan {
    /// Paths at which to try to execute the program, in order: one for each directory of `PATH`, or
    /// only the program itself.
    pub(crate) candidates: Vec<CString>,
    pub(crate) argv: Vec<CString>,
}

/// Everything that is needed to start a service, prepared by ordinary code before the fork.
pub(crate) struct Plan {
    pub(crate) program: CommandPlan,
    /// The command to run after the last process of the service is gone. It runs as this process's
    /// user, in the service's environment and working directory.
    pub(crate) on_end: Option<CommandPlan>,
    /// A line with a hint, logged if `on_end` fails.
    pub(crate) on_end_hint: Option<CString>,
    pub(crate) envp: Vec<CString>,
    pub(crate) current_dir: Option<CString>,
    pub(crate) stdin: Stream,
    pub(crate) stdout: Stream,
    pub(crate) stderr: Stream,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) groups: Option<Vec<u32>>,
    pub(crate) umask: Option<u32>,
    /// The policy for stopping the service after the test process is gone.
    pub(crate) stop: StopPolicy,
    /// The log and its index, both opened for appending.
    pub(crate) log: OwnedFd,
    pub(crate) index: OwnedFd,
    /// Size of one part of the log, in bytes.
    pub(crate) log_part: u64,
    /// The part of the log that is open now.
    pub(crate) log_at: LogPart,
    /// Private directories of the services that this one needs. When the test process or the run
    /// ends, this service is stopped before they are.
    pub(crate) needs: Vec<PathBuf>,
    /// Locks that the supervisor holds until the tree is gone.
    pub(crate) keep: Vec<OwnedFd>,
    /// Sockets that the service inherits as descriptors 3, 4 and so on. If the environment contains
    /// `LISTEN_PID`, the service's process id replaces its value, which must be a placeholder of
    /// [`PID_DIGITS`] bytes.
    pub(crate) listen: Vec<OwnedFd>,
    /// The id of the service's test, or 0 if there is none; see `exit.rs`.
    pub(crate) test: u64,
    /// The service's id, which is also the last word of the supervisor's command line.
    pub(crate) id: String,
    /// The directory that the supervisor removes when both the tree and the test process are gone.
    pub(crate) private_dir: Option<CString>,
    /// Extra settings for a service that outlives this process.
    pub(crate) run: Option<RunPlan>,
}

/// One part of the log.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LogPart {
    /// The part's number, from 0.
    pub(crate) number: u32,
    /// Number of bytes of the log, and of its index, before this part.
    pub(crate) log: u64,
    pub(crate) index: u64,
}

/// Lets a service outlive the test process that starts it. The service belongs to that process
/// until [`Service::publish`](super::service::Service::publish) succeeds.
pub(crate) struct RunPlan {
    /// A pidfd of the test runner, or the FIFO that the service's users hold open. The service is
    /// stopped when the runner, or the last user, is gone.
    pub(crate) runner: OwnedFd,
    /// Whether `runner` is the FIFO. If so, a new user can still keep the service alive.
    pub(crate) ends_with_users: bool,
    /// The permit to start the service. The supervisor holds a copy, so no other process can start
    /// the same service before this one is published or gone.
    pub(crate) start_lock: OwnedFd,
    /// Paths of the state file: `staged` until the service is published, then `published`.
    pub(crate) staged: CString,
    pub(crate) published: CString,
    /// The run's directory, which the supervisor removes when the runner is gone. A service that
    /// ends with its last user has a directory of its own instead.
    pub(crate) dir: CString,
}

/// Number of bytes in the placeholder value of `LISTEN_PID`.
pub(crate) const PID_DIGITS: usize = 10;

impl RunPlan {
    /// Copies the plan, because each attempt to start the service consumes one.
    pub(crate) fn try_clone(&self) -> std::io::Result<RunPlan> {
        Ok(RunPlan {
            runner: self.runner.try_clone()?,
            ends_with_users: self.ends_with_users,
            start_lock: self.start_lock.try_clone()?,
            staged: self.staged.clone(),
            published: self.published.clone(),
            dir: self.dir.clone(),
        })
    }
}

/// The source or target of a standard stream of the service.
pub(crate) enum Stream {
    Null,
    /// The output goes through the supervisor into the log.
    Log,
    Fd(OwnedFd),
    /// A descriptor of the test process.
    Inherit(RawFd),
}

/// The policy for stopping a service: the stop signal, the grace, and the signal to send when the
/// grace is over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StopPolicy {
    pub(crate) signal: i32,
    pub(crate) grace: Duration,
    pub(crate) kill_signal: i32,
}

/// The stage at which a start failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Creating the supervisor's own sockets, pipes, memory and processes.
    Supervisor,
    Groups,
    Gid,
    Uid,
    CurrentDir,
    Exec,
}

/// The reason why a service could not be started.
#[derive(Debug)]
pub(crate) struct SpawnFailure {
    pub(crate) stage: Stage,
    /// The system call that failed, if it is listed in [`Call`].
    pub(crate) call: Option<Call>,
    pub(crate) source: std::io::Error,
}
