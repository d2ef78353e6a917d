//! The engine of [mirakuru](https://docs.rs/mirakuru): recipes, executors, readiness and the supervisor.
//!
//! Use the facade crate `mirakuru`; this crate is one of its parts.

// Which feature an item needs, on docs.rs.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod builder;
mod command;
mod context;
mod deadline;
mod error;
mod executor;
mod hint;
mod holder;
mod home;
mod launch;
mod lease;
mod line_watch;
mod listen;
mod listener;
mod logs;
mod placeholder;
mod ports;
mod progress;
mod readiness;
mod report;
mod run;
mod secrets;
mod signal;
mod sys;
mod timeline;
mod trace;
mod turns;
mod verdict;
mod watched;

pub use builder::{ExecutorBuilder, Stdio};
pub use command::IntoCommand;
pub use error::{Error, Evidence};
pub use executor::{Executor, StdinPipe};
pub use logs::Logs;
pub use readiness::{
    And, Banner, Check, Exec, NoWait, Or, PidFile, Prepare, Probe, Readiness, SdNotify, Tcp, UnixSocket,
};
#[cfg(feature = "http")]
pub use readiness::{Http, IntoStatus};
pub use signal::Signal;

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

/// What the other crates of mirakuru use. No part of the public interface.
#[doc(hidden)]
pub mod __private {
    pub use crate::executor::{Claims, SharedTurn, Startable, start_together, stop_together};
    pub use crate::hint::{find_program, not_found};
    pub use crate::home::{random_id, spread};
    pub use crate::lease::Lease;
    pub use crate::report::painted;
    pub use crate::run::{Berth, Occupied, Run, Vacancy, hash};
    pub use crate::sys::files::release_segment;
    pub use crate::timeline::timeline_now;

    /// Whether this process is root's.
    #[must_use]
    pub fn is_root() -> bool {
        crate::sys::euid() == 0
    }
    pub use crate::verdict::{test_begins, test_has_failed, test_returns_err};
    pub use crate::watched::Watched;
}
