//! Shared fixtures, scopes and rstest support of [mirakuru](https://docs.rs/mirakuru).
//!
//! Use the facade crate `mirakuru`; this crate is one of its parts.
//!
//! # One service for a whole run
//!
//! A shared fixture (a `static`, or a function that returns `&'static T`) has the scope `run`,
//! unless it says `scope = "process"` or `scope = "users"`. All test processes of one `cargo test`
//! or `cargo nextest run` use one service, however many there are. This needs no daemon, no
//! configuration file and no setting of the runner.
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
//! **Tests that share a service must not rely on its being empty.** Others have used it before
//! them, and use it at the same time. Give each test its own part of it (a database, a key prefix,
//! a topic; presets hand out a database for each test). If a test needs the whole service, put the
//! attribute on the test, which then has its own.
//!
//! - *Start:* the first test that needs the service starts it, once. If that fails, every test that
//!   needs it fails at once, with the same report. If the process that starts it is killed, the
//!   next one starts it.
//! - *End:* the service ends when the runner ends, however that happens, and not before, even if it
//!   is unused for a while. Each run has its own service, even beside another run.
//! - *Death:* if the service dies during a run, tests that attach later fail with its exit status
//!   and the end of its log. It is not started again, because tests may have used the first one.
//! - *Identity:* the same recipe under the same name is the same service, in whatever test binary.
//!   The fixture in `tests/common/mod.rs` is one service. The working directory is a part of the
//!   recipe, so each package of a workspace has its own.
//! - *The run* is known by the environment variable `MIRAKURU_SESSION_ID`, otherwise by nextest's
//!   `NEXTEST_RUN_ID`. The runner is the nearest ancestor without that variable. Without both, it
//!   is the nearest `cargo`. A binary that is run by hand or by an IDE has no runner: there the
//!   service belongs to the process. So does a service that needs a stream of its process: `stdin =
//!   Stdio::piped()`, or anything inherited.
//! - *Set-up* that is done once in a run belongs in [`Recipe::set_up`]. The body of a fixture
//!   function is called in each process.

// docs.rs shows the feature that an item needs.
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

/// The rstest for fixture functions.
#[cfg(feature = "rstest")]
pub use rstest;

pub use cache::prepare_once;
pub use cluster::{Cluster, ClusterRecipe, Node, cluster};
pub use recipe::Recipe;
pub use shared::Shared;
pub use together::{StartAll, StopAll, start_all, stop_all};

/// Functions for the attribute's expansion. Not a part of the public interface: they change without
/// notice.
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
