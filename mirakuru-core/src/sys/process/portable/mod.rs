//! The supervisor on Unix systems other than Linux. It uses only POSIX calls. It compiles for macOS
//! and FreeBSD, but has been run only on Linux, with `--cfg mirakuru_portable`.
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
//! POSIX lacks these features of Linux:
//!
//! * No subreaper. A process that leaves the process group (`setsid`, `setpgid`: every proper
//!   daemon) is neither found nor stopped. Only the group is proved empty, when `kill` fails with
//!   ESRCH.
//! * No PDEATHSIG, and no second supervisor that notices the death of the first. If the supervisor
//!   is killed while the test process is alive, the test process kills the group.
//! * No pidfd. Processes are identified by their ids. A group's id is not reused while the group
//!   has a member: see `Worker::group_lives`.
//! * No `/proc` and no netlink. mirakuru cannot name the owner of a socket or the holder of a port,
//!   and recognises no test runner. So a service can be shared only within a single process.
//! * No flag to leave memory out of a fork. The supervisor shares the test process's memory,
//!   copy-on-write, and each start makes two forks. The larger the test process, the longer the
//!   forks take.
//! * The supervisor is an ordinary child of the test process, with the same name and command line.
//!   A `waitpid(-1)` of the test can reap it, which does no harm.

pub(super) mod os;
mod remove;
mod supervisor;
