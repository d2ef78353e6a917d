//! The supervisor on Linux.
//!
//! Who forks whom:
//!
//! ```text
//! test process ──clone──▶ guard ──clone──▶ worker ──vfork──▶ service ──▶ whatever it forks
//!      │                    │                 │
//!      │                    │                 ├─ holds the other end of the control socket
//!      │                    │                 ├─ watches the test process, the guard and the service
//!      │                    │                 └─ drains the service's output into the log
//!      │                    └─ watches the worker, and finishes its work should it die
//!      └─ watches the control socket: its end of file is the end of the service
//! ```
//!
//! Guard and worker are both child subreapers: whatever the service forks, and however it hides
//! (own session, double fork, cleared environment), becomes a child of the worker when its parent
//! dies, and a child of the guard should the worker be gone. A subreaper whose `waitpid` says
//! ECHILD has proved that nothing is left; no search by name or mark can prove that. Killed one at
//! a time, either finishes the other's work; for both at once there is the mark in the service's
//! environment (`sweep`).
//!
//! The files: [`memory`] makes the fork cheap; [`supervisor`] is the code that runs after it, and
//! so must neither allocate nor lock; [`tree`] ends process trees; [`os`] is what the code that
//! other systems share asks of this one. That code is in the folder above: the test process's side,
//! the memory that the supervisor works in, the way of the output into the log.

pub(super) mod freeze;
mod handle;
mod memory;
pub(super) mod os;
mod supervisor;
pub(super) mod sweep;
mod tree;
