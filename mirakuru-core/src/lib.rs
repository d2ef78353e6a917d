//! The engine of [mirakuru](https://docs.rs/mirakuru): recipes, executors, readiness and the
//! supervisor.
//!
//! Do not depend on this crate directly: use the facade crate `mirakuru`.
//!
//! # Map
//!
//! Each folder has one task, and imports only from the folders above it in this list. So a folder
//! can be read without the rest, and `sys/` can be replaced for another system.
//! `tests/repo_rules.rs` reads this list and checks the imports, except for those of tests.
//!
//! - `sys/` talks to the operating system, and contains all `unsafe` code.
//! - `util/` holds small helpers for many folders, such as back-off, deadlines and hashes.
//! - `error/` defines the errors, lays out their reports, and masks secrets.
//! - `recipe/` describes how to start a service, as plain data.
//! - `service_dir/` creates and removes the private directory of a service.
//! - `run/` identifies the current test run, and keeps the state of its services.
//! - `observe/` reports the progress of a start, to the user and to `tracing`.
//! - `ports/` reserves and locks ports and socket paths, and finds the process that listens there.
//! - `output/` keeps and reads what a service prints.
//! - `readiness/` decides when a service is ready, with a file for each condition.
//! - `timeline/` records how a run spends its time, and renders that as a page.
//! - `outcome/` records whether the test on this thread has failed.
//! - `executor/` implements `Executor`: start, wait, stop, attach, and hints about failures.
//! - `share/` lets many processes use one service.
//! - `workspace/` builds and finds programs of the user's own workspace.

// docs.rs shows the feature that an item needs.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod error;
mod executor;
mod observe;
mod outcome;
mod output;
mod ports;
mod readiness;
mod recipe;
mod run;
mod service_dir;
mod share;
mod sys;
mod timeline;
mod util;
mod workspace;

pub use error::missing::Missing;
pub use error::{Error, Evidence};
pub use executor::{Executor, StdinPipe};
pub use output::logs::Logs;
pub use output::mark::Mark;
pub use ports::port::Port;
pub use readiness::lines::{Line, Lines};
pub use readiness::{
    And, Banner, Check, Exec, NoWait, Or, PidFile, Prepare, Probe, Readiness, SdNotify, Tcp, Udp, UnixSocket,
};
#[cfg(feature = "http")]
pub use readiness::{Http, IntoStatus};
pub use recipe::builder::{ExecutorBuilder, Stdio};
pub use recipe::command::IntoCommand;
pub use recipe::signal::Signal;
pub use workspace::Bin;

/// A service that counts as ready once it has been executed.
pub type SimpleExecutor = Executor<NoWait>;
/// A service that is ready when its output matches a regular expression.
pub type OutputExecutor = Executor<Banner>;
/// A service that is ready when it accepts TCP connections.
pub type TcpExecutor = Executor<Tcp>;
/// A service that is ready when it accepts connections on a Unix socket.
pub type UnixSocketExecutor = Executor<UnixSocket>;
/// A service that is ready when it answers an HTTP request with the right status.
#[cfg(feature = "http")]
pub type HttpExecutor = Executor<Http>;
/// A service that is ready when its process id file exists.
pub type PidExecutor = Executor<PidFile>;

/// Items for the other crates of mirakuru, outside the public interface.
#[doc(hidden)]
pub mod __private {
    pub use crate::error::programs::{System, find_program, not_found, system};
    pub use crate::error::report::shown;
    pub use crate::executor::{
        Endpoints, Polled, SharedLock, Startable, launch_together, poll_together, stop_together,
    };
    pub use crate::ports::identity::Identity;
    pub use crate::recipe::builder::unprivileged_user;
    pub use crate::recipe::placeholder::literal;
    pub use crate::run::lease::Lease;
    pub use crate::run::make_run_dir;
    pub use crate::run::owner::Owner;
    pub use crate::run::{Run, hash};
    pub use crate::service_dir::random_id;
    pub use crate::share::key::recipe_key;
    pub use crate::share::slot::{RunSlot, SlotState, StartPermit};
    pub use crate::sys::files::release_segment;
    pub use crate::sys::files::{append_to_stderr_of, locked};
    pub use crate::timeline::events::timeline_now;
    pub use crate::util::settings::MISSING;
    pub use crate::util::thread::spawn;
    pub use crate::util::wakeup::Wakeup;
    pub use crate::workspace::skipped_list;

    /// Runs a function when this process ends normally. It must neither panic nor wait for a lock.
    pub fn at_exit(function: extern "C" fn()) {
        crate::sys::at_exit(function);
    }

    pub use crate::util::deadline::scaled;

    /// Whether this process runs as root.
    #[must_use]
    pub fn is_root() -> bool {
        crate::sys::euid() == 0
    }
    pub use crate::__before_main as before_main;
    pub use crate::outcome::shared_use::SharedServices;
    pub use crate::outcome::{test_begins, test_has_failed, test_may_start, test_returns_err};
}
