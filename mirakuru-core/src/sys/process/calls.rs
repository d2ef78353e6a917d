//! Lists the system calls that guaranteed teardown needs. For error messages, each call has a
//! purpose, and some failures have a remedy.
//!
//! If a supervisor cannot make one of these calls, the start fails, because the supervisor could
//! not guarantee that it stops the service.

use std::io;

use super::plan::{SpawnFailure, Stage};

macro_rules! calls {
    ($($(#[$doc:meta])* $call:ident = $name:literal, $purpose:literal;)*) => {
        /// A system call, or one particular use of it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(i32)]
        pub(crate) enum Call {
            $($(#[$doc])* $call,)*
        }

        impl Call {
            const ALL: &'static [Call] = &[$(Call::$call,)*];

            /// The name of the call to print in messages.
            fn name(self) -> &'static str {
                match self {
                    $(Call::$call => $name,)*
                }
            }

            fn purpose(self) -> &'static str {
                match self {
                    $(Call::$call => $purpose,)*
                }
            }
        }
    };
}

calls! {
    Socketpair = "socketpair", "talk to the supervisor";
    PidfdOpen = "pidfd_open", "notice when a process ends";
    PidfdSend = "pidfd_send_signal", "signal a process of the service";
    Kill = "kill", "signal the service";
    Wait = "wait4", "prove that no process is left";
    WaitId = "waitid", "find its own children";
    Subreaper = "prctl(PR_SET_CHILD_SUBREAPER)", "adopt each descendant of the service";
    ParentDeath = "prctl(PR_SET_PDEATHSIG)", "tie the service to its supervisor";
    Clone = "clone", "create the supervisor's processes";
    Session = "setsid", "keep signals for the test runner away from the supervisor";
    Signalfd = "signalfd", "notice when a child ends";
    Signals = "rt_sigprocmask", "block signals while the supervisor is created";
    Handler = "rt_sigaction", "notice when a child ends";
    Pipe = "pipe", "read the service's output";
    Null = "open(\"/dev/null\")", "give the service its standard streams";
    Nonblock = "fcntl(O_NONBLOCK)", "read the service's output without waiting for it";
    Duplicate = "fcntl(F_DUPFD)", "pass descriptors on";
    Dup2 = "dup2", "give the service its standard streams";
    Close = "close_range", "close descriptors that the service must not inherit";
    Memory = "mmap", "give the supervisor its memory";
    Flock = "flock", "mark a file as in use";
    Fifo = "mkfifo", "stop dependent services in the right order";
}

impl Call {
    /// Returns the call with this number, as carried by a `FAILED` message.
    pub(super) fn of(number: i32) -> Option<Call> {
        Call::ALL.iter().copied().find(|call| *call as i32 == number)
    }

    pub(crate) fn failed(self, source: io::Error) -> SpawnFailure {
        SpawnFailure {
            stage: Stage::Supervisor,
            call: Some(self),
            source,
        }
    }

    /// Describes the failed step as the end of a sentence that begins with "failed to".
    pub(crate) fn attempt(self) -> String {
        format!("{} with `{}`", self.purpose(), self.name())
    }

    /// Whether this error means that the kernel lacks the call or that a sandbox forbids it. For
    /// some calls the manual lists no EPERM, so there an EPERM comes from a sandbox.
    pub(crate) fn is_absent(self, error: &io::Error) -> bool {
        match error.raw_os_error() {
            Some(libc::ENOSYS) => true,
            Some(libc::EPERM) => matches!(
                self,
                Call::PidfdOpen | Call::Subreaper | Call::ParentDeath | Call::Signalfd | Call::Close
            ),
            _ => false,
        }
    }

    /// Names the kernel feature that is missing, for an error report.
    pub(crate) fn feature(self) -> String {
        format!("the kernel's `{}`", self.name())
    }

    /// Tells the user how to remedy the error, if there is a known remedy.
    pub(crate) fn remedy(self, error: &io::Error) -> Option<String> {
        let name = self.name();
        let since = match self {
            Call::PidfdOpen => Some("5.3"),
            Call::PidfdSend => Some("5.1"),
            _ => None,
        };
        Some(match error.raw_os_error()? {
            libc::ENOSYS => match since {
                Some(version) => format!(
                    "use Linux {version} or later; if this kernel is new enough, let the container's \
                        seccomp filter allow `{name}`"
                ),
                None => format!("let the container's seccomp filter allow `{name}`"),
            },
            libc::EPERM | libc::EACCES => {
                format!("let the container's seccomp filter or security module allow `{name}`")
            }
            libc::EMFILE => {
                "raise the limit of open files (`ulimit -n`), or run fewer services at a time".to_owned()
            }
            libc::ENFILE => "raise the machine's limit of open files (`sysctl fs.file-max`)".to_owned(),
            libc::EAGAIN if self == Call::Clone => {
                "raise the limit of processes (`ulimit -u`, or the container's pids limit)".to_owned()
            }
            libc::ENOMEM => "give the machine or the container more memory".to_owned(),
            _ => return None,
        })
    }
}
