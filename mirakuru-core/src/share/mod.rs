//! One service for a whole test run, across all its processes.
//!
//! `cargo nextest run` starts a process for each test, and `cargo test` one for each test binary.
//! The first process that needs a service with the scope `run` starts it, and the others attach.
//! The service ends when the *runner* ends, however that happens.
//!
//! ```text
//!   cargo nextest run ◀─────────────── pidfd ───────────────┐
//!     ├─ test A ──▶ guard ──▶ worker ──▶ redis-server       │
//!     │     (A is gone by now; guard and worker are nobody's children, and the worker watches the runner)
//!     ├─ test B ─── reads KEY.state ── connects ──▶ redis-server
//!     └─ test C ─── reads KEY.state ── connects ──▶ redis-server
//!
//!   /tmp/mirakuru-UID/run-PID-START-HASH/     of the runner, 0700; in XDG_RUNTIME_DIR if there is one
//!       KEY.lock     held (flock) by the one process that is starting the service, and by guard and worker
//!       KEY.state    how to reach it; renamed into place by the worker, which appends how it ended
//!   /tmp/mirakuru-UID/ID/                     of the service
//!       lock         held (flock) by guard and worker, as long as one of them lives
//! ```
//!
//! # If a process dies
//!
//! * If the process that starts the service dies before publication, the service ends with it.
//!   `KEY.lock` is free once its last holder, the supervisor, is gone; then the next process starts
//!   another service. The test process must not be the only holder of the lock. Otherwise the lock
//!   could become free while the supervisor still has a request to publish.
//! * If that process dies during publication, other processes see either no service or one that
//!   stays. Publication is one message to the worker, which renames the state into place *and*
//!   stops watching the test process.
//! * If the service dies after publication, the worker appends its exit to the state. A process
//!   that attaches later gets an error that shows the last lines of the log. No process starts
//!   another service, because tests may have used the first one.
//! * If the runner dies, the worker stops the service, and removes the state and the directories.
//!   Test processes that a killed runner has left behind get an error, and start nothing.
//! * If the guard or the worker dies, the other of the two stops the service, and the lock becomes
//!   free. A worker without its guard waits until the run is over, and then cleans up. If the
//!   worker is gone, the next run cleans up.

pub(crate) mod key;
pub(crate) mod slot;
