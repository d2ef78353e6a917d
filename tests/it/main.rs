//! The integration tests, with one module for each topic. They are one binary because linking a
//! binary takes time.
//!
//! Tests that need a process, a directory or an environment of their own are separate binaries; the
//! head of each says why. `cargo test --test it ports::` runs one topic.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/fresh.rs"]
mod fresh;
#[path = "../common/proof.rs"]
mod proof;
mod reports;

mod api;
mod asynchronous;
mod at_the_end;
mod attackers;
mod attribute;
mod containers;
mod diagnostics;
mod executors;
mod failing_tests;
mod flush;
mod full_disk;
mod hints;
mod https;
mod inherited_sockets;
mod lifecycle;
mod lines;
mod long_logs;
mod looking_on;
mod portable;
mod ports;
mod progress;
mod readiness;
mod rstest_fixtures;
mod run_scope;
mod secrets;
mod seeds;
mod servers;
// Public, so that `missing_docs` checks the code that the attribute generates for a public
// `static`.
pub mod shared;
mod systems;
mod teardown;
mod timed_out;
mod timeline;
mod timeout_scale;
mod traps;
mod wrong_listener;
