//! The plan of a start: executors hand it to a back end, which launches it.

use std::ffi::CString;
use std::os::fd::{OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::Duration;

use super::calls::Call;

/// A command, ready to be executed.
#[derive(Clone, Debug)]
pub(crate) struct CommandPlan {
    /// The files to try to execute, in order: one for each directory of `PATH`, or only the program
    /// itself.
    pub(crate) candidates: Vec<CString>,
    pub(crate) argv: Vec<CString>,
}

/// Everything that starting a service needs, prepared by ordinary code before the fork.
pub(crate) struct Plan {
    pub(crate) program: CommandPlan,
    /// Runs in the service's environment and working directory when the tree is gone, as this
    /// process's user.
    pub(crate) on_end: Option<CommandPlan>,
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
    /// The limits of a part of the log and of its index in bytes, and the part that is open.
    pub(crate) log_part: u64,
    pub(crate) log_at: LogPart,
    /// The private directories of the services that this one needs. When a process or a run ends,
    /// they end after this one.
    pub(crate) needs: Vec<PathBuf>,
    /// Descriptors that the supervisor keeps until the tree is gone: locks.
    pub(crate) keep: Vec<OwnedFd>,
    /// Sockets that the service gets as its descriptors 3, 4 and so on. If the service has a
    /// variable `LISTEN_PID`, its process id is written over the value, which must have
    /// [`PID_DIGITS`] bytes.
    pub(crate) listen: Vec<OwnedFd>,
    /// The test that the service is for, or 0: see `exit.rs`.
    pub(crate) test: u64,
    /// The last words of the supervisor's command line.
    pub(crate) id: String,
    /// The directory that the supervisor removes when both the tree and the test process are gone.
    pub(crate) private_dir: Option<CString>,
    /// For a service of a whole run.
    pub(crate) run: Option<RunPlan>,
}

/// A part of the log.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LogPart {
    /// 0 for the first.
    pub(crate) number: u32,
    /// How many bytes of the log, and of its index, come before it.
    pub(crate) log: u64,
    pub(crate) index: u64,
}

/// Lets a service outlive the test process that starts it, from
/// [`Service::publish`](super::service::Service::publish) on. Until then it belongs to that
/// process.
pub(crate) struct RunPlan {
    /// A pidfd of the runner, at whose end the service ends; or the FIFO of its users.
    pub(crate) runner: OwnedFd,
    /// Whether it is the FIFO: then the service ends with its last user. A new user may come at
    /// that moment.
    pub(crate) ends_with_users: bool,
    /// The permit to start the service. The supervisor keeps it as well, so that no other process
    /// starts one before this one is published or gone.
    pub(crate) start_lock: OwnedFd,
    /// The file with the service's state, and its published name.
    pub(crate) staged: CString,
    pub(crate) published: CString,
    /// The run's directory, removed with everything in it when the runner is gone; or, for a
    /// service that ends with its users, its own directory.
    pub(crate) dir: CString,
}

/// The length of the value of `LISTEN_PID` before the process id is known.
pub(crate) const PID_DIGITS: usize = 10;

impl RunPlan {
    /// A copy for one start: several may be needed before one succeeds.
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

/// The target of a standard stream of the service.
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
    pub(crate) signal: i32,
    pub(crate) grace: Duration,
    pub(crate) kill_signal: i32,
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
    /// The system call, where it is one that the guarantee rests on.
    pub(crate) call: Option<Call>,
    pub(crate) source: std::io::Error,
}
