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
//! Guard and worker are both child subreapers. When the parent of a descendant dies, the descendant
//! becomes a child of the worker, or of the guard if the worker is gone. A descendant cannot avoid
//! that with its own session, a double fork or a cleared environment.
//!
//! A `waitpid` that fails with ECHILD in a subreaper proves that no descendant is left. No search
//! by name or mark can prove that. If the guard or the worker is killed, the other one stops the
//! service. If both are killed at the same time, `sweep` finds the service's processes by the mark
//! in their environment.
//!
//! The files:
//!
//! - [`memory`] makes the fork cheap.
//! - [`supervisor`] runs after the fork, so it must neither allocate nor lock.
//! - [`tree`] kills process trees.
//! - [`os`] contains the functions that the shared code in the folder above calls on this system.

pub(super) mod freeze;
mod handle;
mod memory;
pub(super) mod os;
mod supervisor;
pub(super) mod sweep;
mod tree;
