//! Shared fixtures, scopes and rstest support of [mirakuru](https://docs.rs/mirakuru).
//!
//! Use the facade crate `mirakuru`; this crate is one of its parts.
//!
//! # One service for a whole run
//!
//! A shared fixture (a `static`, or a function that returns `&'static T`) has the scope `run` by
//! default. Other scopes are `scope = "process"` and `scope = "users"`. All test processes of one
//! `cargo test` or `cargo nextest run` use the same service. This needs no daemon, no configuration
//! file and no runner settings.
//!
//! ```text
//!  cargo nextest run          the runner: forks the tests, and knows nothing of all this
//!   │
//!   ├─▶ test A                the first that needs REDIS: starts it, publishes it, goes on, ends
//!   │    │    ║
//!   │  fork   ║ socket, and a pidfd of test A: until REDIS is published, their end is its end
//!   │    ▼    ║
//!   │  guard  ║               the worker's parent: if one of the two is killed, the other ends the service
//!   │    │    ║
//!   │  fork   ║
//!   │    ▼    ▼
//!   │  worker ═══════════════ a pidfd of the runner: once REDIS is published, *its* end is the service's end
//!   │    │    ▲
//!   │  fork   ║ two pipes: what the service prints, on its way into the log
//!   │  + exec ║
//!   │    ▼    ║
//!   │  redis-server           with all that it ever forks; holds nothing of ours but its ends of the pipes
//!   │       ▲ ▲
//!   ├─▶ test B│   reads KEY.state, connects, ends
//!   └─▶ test C┘   the same; if it attaches after the service has died, it is told how
//!
//!  $XDG_RUNTIME_DIR/mirakuru-UID/run-…/    or in the temp dir; the run's, mode 0700, removed by the worker
//!    KEY.lock     locked by test A while it starts REDIS, and by guard and worker, so that no second one
//!                 is started before the first is published or gone
//!    KEY.state    process ids, ports, paths: written by test A, put in place by the worker, in one step with
//!                 forgetting test A; how it ended is added by the worker
//!  $TMPDIR/mirakuru-UID/k3v7q2mxw5ha/      the service's own: log, `{dir}`, a lock of guard and worker
//! ```
//!
//! **Tests that share a service must not expect it to be empty.** Other tests have used it before,
//! and use it at the same time. Give each test its own database, key prefix or topic. Presets can
//! provide a database for each test. If a test needs a whole service for itself, put the attribute
//! on the test.
//!
//! - *Start:* the first test that needs the service starts it. If the start fails, every test that
//!   needs the service fails immediately, with the same report. If the process that is starting the
//!   service is killed, the next process that needs the service starts it.
//! - *End:* the service ends when the runner exits or is killed, and not before, even if it is
//!   unused for a while. Each run has its own service, even if two runs overlap.
//! - *Death:* if the service dies during a run, tests that attach later fail with its exit status
//!   and the end of its log. It is not started again, because a new service would lack the data of
//!   earlier tests.
//! - *Identity:* a service is identified by its recipe and its name. All test binaries that include
//!   the same `tests/common/mod.rs` share its fixtures. The working directory is part of the
//!   recipe, so each package of a workspace has its own service.
//! - *Run:* the environment variable `MIRAKURU_SESSION_ID` identifies the run, or else nextest's
//!   `NEXTEST_RUN_ID`. The runner is the nearest ancestor process without that variable. If neither
//!   variable is set, the runner is the nearest ancestor process named `cargo`.
//! - *No runner:* if a test binary is run by hand or by an IDE, the service belongs to the process.
//!   A service that uses a stream of its process also belongs to the process:
//!   `stdin = Stdio::piped()`, or anything inherited.
//! - *Set-up:* code that must run once per run belongs in [`Recipe::set_up`]. The body of a fixture
//!   function runs in each process.

// Shows on docs.rs which feature an item needs.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod cache;
mod cluster;
mod lease;
mod missing;
mod once;
mod outcome;
#[cfg(feature = "presets")]
pub mod presets;
mod recipe;
mod shared;
mod start;
mod system;
mod together;

/// Re-export of rstest, which turns functions into fixtures.
#[cfg(feature = "rstest")]
pub use rstest;

pub use cache::prepare_once;
pub use cluster::{Cluster, ClusterRecipe, Node, cluster};
pub use recipe::Recipe;
pub use shared::Shared;
pub use together::{StartAll, StopAll, start_all, stop_all};

/// Functions for the code that the attribute generates. Not part of the public interface: they may
/// change without notice.
#[doc(hidden)]
pub mod __private {
    #[cfg(feature = "rstest")]
    pub use rstest;

    pub use mirakuru_core::__private::test_has_failed;

    pub use crate::missing::{AnySkip, Skip};
    pub use crate::once::Once;
    pub use crate::outcome::{AnyOutcome, ExitOutcome, Outcome};
    pub use crate::shared::{AnyTaken, Taken, recipe_in_static};
    pub use crate::start::tcp::tcp;
    pub use crate::start::{Scope, start_shared};
    pub use crate::system::{Plan, System, recipe};
}
