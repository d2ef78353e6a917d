//! The supervisor on Linux.
//!
//! The processes and their forks:
//!
//! ```text
//! test process ──clone──▶ guard ──clone──▶ worker ──vfork──▶ service ──▶ whatever it forks
//!      │                    │                 │
//!      │                    │                 ├─ holds the other end of the control socket
//!      │                    │                 ├─ watches the test process, the guard and the service
//!      │                    │                 └─ drains the service's output into the log
//!      │                    └─ watches the worker, and finishes its work if it dies
//!      └─ watches the control socket: its end of file is the end of the service
//! ```
//!
//! Guard and worker are both child subreapers. A descendant may hide in a session of its own,
//! behind a double fork, or with a cleared environment: when its parent dies, it becomes a child of
//! the worker, or of the guard if the worker is gone. A subreaper whose `waitpid` says ECHILD has
//! proved that nothing is left; no search by name or mark can prove that. If one of the two is
//! killed, the other finishes its work; if both are killed at once, the mark in the service's
//! environment leads to its processes (`sweep`).
//!
//! The files: [`memory`] makes the fork cheap; [`supervisor`] is the code that runs after it, and
//! so must neither allocate nor lock; [`tree`] ends process trees; [`os`] has the functions that
//! shared code calls on this system. The shared code is in the folder above: the test process's
//! side, the supervisor's memory, and the code that moves the output into the log.

pub(super) mod freeze;
mod handle;
mod memory;
pub(super) mod os;
mod supervisor;
pub(super) mod sweep;
mod tree;
