//! One service for a whole run of tests, over all its processes.
//!
//! `cargo nextest run` makes a process of each test, `cargo test` one of each test binary. A
//! service with the scope `run` is started by the first of them that needs it, and the others
//! attach. It ends when the *runner* does, however that ends.
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
//!       lock         held (flock) by guard and worker: who cannot get it knows that they live
//! ```
//!
//! # Who may die when
//!
//! * The process that starts it, before it is published: the service is that process's own and goes
//!   with it. The lock is free when the last who has it is gone, and that is the supervisor; then
//!   the next process starts another. Were the lock the test process's alone, the next one could
//!   find it free while the supervisor still has the word to publish before it.
//! * While it is published: that is one message to the worker, which renames the state into place
//!   *and* stops watching the test process. There is no moment between the two at which anybody
//!   could see a service that is about to go, or lose one that stays.
//! * The service itself, later: the worker appends to the state how it ended. Whoever attaches then
//!   is told, with the end of the log; nobody starts another behind the back of tests that have
//!   used the first.
//! * The runner: the worker ends the service as always, and removes state and directories. Test
//!   processes that a killed runner left behind get an error, and start nothing.
//! * Guard and worker: either ends the service when the other is killed, and the free lock says
//!   that it is over. A worker without a guard waits for the end of the run, to clean up; without a
//!   worker the next run does.

pub(crate) mod key;
pub(crate) mod slot;
