//! The supervisor on Unixes other than Linux, by POSIX calls alone. It compiles for macOS and
//! FreeBSD, and was never run on either. It was run on Linux, with `--cfg mirakuru_portable`.
//!
//! ```text
//! test process ──fork──▶ supervisor ──fork──▶ service, the leader of a process group ──▶ whatever it forks
//!      │                     │
//!      │                     ├─ holds the other end of the control socket: end of file there, or a new
//!      │                     │  parent, means that the test process is gone
//!      │                     └─ drains the service's output into the log
//!      └─ watches the control socket: end of file there means that the supervisor is gone
//! ```
//!
//! The features of Linux that POSIX lacks, and the consequences:
//!
//! * No subreaper. A process that leaves the process group (`setsid`, `setpgid`: every proper
//!   daemon) is not found, and not ended. The proof that nothing is left covers the group alone:
//!   `kill` says ESRCH.
//! * No PDEATHSIG, and no second supervisor that would notice the death of the first one in time.
//!   If the supervisor is killed while the test process lives, the test process ends the group.
//! * No pidfd. Processes are known by their numbers. The number of a group cannot be given to
//!   another while the group has a member; see `Worker::group_lives`.
//! * No `/proc`, no netlink: the owner of a socket is not known, the holder of a port is not named,
//!   and no runner of tests is recognised (a shared service is its process's own).
//! * No flag to leave memory out of a fork: the supervisor shares the test process's memory,
//!   copy-on-write, and the forks (two for each start) take time in proportion to it.
//! * The supervisor is an ordinary child of the test process, with its name and command line. A
//!   `waitpid(-1)` of the test can reap it, which does no harm.

pub(super) mod os;
mod remove;
mod supervisor;
