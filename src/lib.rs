//! Start real services for your tests, wait until they are ready, and be sure that they are gone
//! afterwards.
//!
//! ```
//! use mirakuru::{TcpExecutor, fixture};
//!
//! #[fixture(tcp = "127.0.0.1:{port}", cmd = "redis-server --port {port} --save ''")]
//! #[test]
//! fn counts_visits(redis: &TcpExecutor) -> std::io::Result<()> {
//!     let client = std::net::TcpStream::connect(redis.addr())?;
//!     // ...
//! #   drop(client);
//!     Ok(())
//! }
//! # // A doctest is no test build: shown here, run in `tests/`.
//! ```
//!
//! When the body of the test begins, the server accepts connections. However the test ends, the
//! server is gone afterwards, and so is every process that it forked. A start takes about 1 ms
//! longer than a bare [`Command::spawn`](std::process::Command::spawn).
//!
//! # Choosing
//!
//! | you have | use |
//! | --- | --- |
//! | a test that needs a service of its own | [`#[fixture(..)]`](macro@fixture) on the test |
//! | many tests that can share one | the same on `static NAME: T;`, which becomes a [`Shared<T>`](Shared) |
//! | tests that use rstest, or a client that many tests need | the same on a function: an rstest fixture |
//! | a PostgreSQL, a Redis, a RabbitMQ, ... | a [preset](presets), at any of these places: `#[fixture(presets::redis())]` |
//! | a program that is no test, or full control | [`Executor::builder`], below |
//! | a service that needs more than a command: a schema, a connection string | a [`Recipe`] of your own |
//!
//! The [guide] has a page for each topic. Begin with [a first test](guide::first_test) and
//! [choosing a readiness condition](guide::readiness). Other pages cover [systems](guide::systems),
//! [sharing](guide::sharing), [programs of the workspace](guide::programs),
//! [nextest](guide::nextest), [async](guide::async_tests), [containers](guide::containers),
//! [CI](guide::ci), [resistance tests](guide::resistance) and [presets of your
//! own](guide::writing_a_preset). If a start hangs, see [debugging](guide::debugging). Two pages
//! are for users [of Python mirakuru](guide::from_python) and [of
//! Testcontainers](guide::from_testcontainers). Another page lists the [limits](guide::limits).
//!
//! # Executors
//!
//! The macro is a shorthand for code like this:
//!
//! ```
//! use std::time::Duration;
//! use mirakuru::{Executor, Tcp, TcpExecutor};
//!
//! let mut server: TcpExecutor = Executor::builder("python3 -m http.server {port} -b 127.0.0.1")
//!     .wait_for(Tcp::addr("127.0.0.1:{port}"))
//!     .timeout(Duration::from_secs(30))
//!     .start()?; // Returns only when it is ready.
//!
//! let address = server.addr(); // With the port that was chosen for it.
//! assert!(server.is_running());
//! server.stopped(|| {
//!     // How does your code take an outage? Afterwards it is there again.
//!     assert!(std::net::TcpStream::connect(address).is_err());
//! })?;
//! server.stop()?; // Checked. Dropping it does the same, silently.
//! # Ok::<(), mirakuru::Error>(())
//! ```
//!
//! A *recipe*, [`ExecutorBuilder`], is plain data that says how to start a service. An *executor*,
//! [`Executor`], is the running (or stopped) service. Its type tells when the service counts as
//! ready:
//!
//! | executor | ready when |
//! | --- | --- |
//! | [`SimpleExecutor`], `Executor<NoWait>` | it has been executed |
//! | [`TcpExecutor`], `Executor<Tcp>` | it accepts connections on host and port |
//! | [`HttpExecutor`](type@HttpExecutor), `Executor<Http>` | it answers an HTTP request with the right status |
//! | [`UnixSocketExecutor`], `Executor<UnixSocket>` | it accepts connections on a path |
//! | `Executor<Udp>` | it has bound a UDP port |
//! | [`OutputExecutor`], `Executor<Banner>` | a regular expression matches what it prints |
//! | [`PidExecutor`], `Executor<PidFile>` | the file exists |
//! | `Executor<SdNotify>` | it sends `READY=1`, as systemd's services do |
//! | `Executor<Exec>` | a command succeeds |
//! | `Executor<Check>` | a closure says so |
//! | `Executor<R>` | your own type says so: implement [`Readiness`] |
//!
//! Conditions can be combined. Commands, paths and addresses can contain placeholders. For example,
//! `{port}` stands for a free port: see [`ExecutorBuilder`].
//!
//! # The guarantee
//!
//! However the test process ends (the end of a test, a panic, [`std::process::exit`], Ctrl-C, an
//! abort, a crash, `SIGKILL`), no process of the service survives: no child, no grandchild, no
//! daemon. Each service has a tiny supervisor process, which outlives the test process just long
//! enough to stop the service.
//!
//! # Limits
//!
//! - The guarantee holds on Linux. Other Unixes have a portable back end, which uses only POSIX
//!   calls. It has been tested on Linux, but never run on a real macOS or BSD.
//! - The portable back end stops the service's process group. It does not find processes that leave
//!   the group, as daemons do. If the supervisor is killed, the service is stopped only if the test
//!   process is still alive.
//! - With the portable back end, a shared service belongs to its test process, not to the run. The
//!   owners of listening sockets are not checked.
//! - A test cannot stop a shared service: stopping takes `&mut`, but a shared fixture provides `&`.
//! - A `#[should_panic]` test never takes a failed start for the expected panic. The report is then
//!   in the test's output.
//!
//! # When something goes wrong
//!
//! An [`Error`] prints a report. Its first line is the whole message. The evidence follows: the
//! last probe's own error, a timeline, the end of the log and the path of its file, the process
//! that uses the port. If the cause is known, the report names a remedy. It never contains values
//! of environment variables or passwords in URLs. Only the service's own output is shown unchanged.
//!
//! When a test panics, its output contains the last lines of its services' logs. A test that
//! returns `Err` shows the logs only if it has the attribute. The log of a shared service is shown
//! from the test's first use. If a task on another thread panics, the output shows the services
//! that the task has used.
//!
//! | environment variable | |
//! | --- | --- |
//! | `MIRAKURU_TIMEOUT_SCALE` | a number by which all timeouts are multiplied, for slow machines |
//! | `MIRAKURU_QUIET` | `1`: says nothing of starts that take more than two seconds |
//! | `MIRAKURU_TIMELINE` | `path.html` or `path.json`: a timeline of the run is written there, see below |
//! | `MIRAKURU_MISSING` | `skip` or `fail`: what becomes of tests whose program is not on this machine, see [CI](guide::ci) |
//! | `MIRAKURU_REDIS_URL`, and so on | a server that a preset uses instead of starting one, see [external servers](guide::external_servers) |
//! | `MIRAKURU_BIN_NAME` | the path of a program of the workspace, see [`Bin`] |
//! | `NO_COLOR` | any text: no colours, which are for terminals anyway |
//!
//! # Where the time goes
//!
//! `MIRAKURU_TIMELINE=timeline.html cargo test` writes a page that shows how the run spent its
//! time. For each service, over all processes of the run, the page shows when the service was
//! started, ready and stopped, and which tests used it. It also shows the critical path: the chain
//! of starts and tests that determined how long the run took. If the file's name ends in `.json`,
//! the file is a trace in Chrome's format, which <https://ui.perfetto.dev> opens. A relative path
//! is resolved against the directory in which the runner was started. The variable also works with
//! `cargo nextest run`. The file is always complete, and can be opened while the run is in
//! progress.
//!
//! On the page, a test begins with its first use of a service, and ends with its thread. When a
//! service of the whole run ends, no process is left to record that, so the page shows the service
//! as running until the end. If a process is killed and no other process of the run follows, its
//! events of the last second are missing.
//!
//! # Features
//!
//! | feature | default | |
//! | --- | --- | --- |
//! | `http` | yes | [`Http`](struct@Http) readiness |
//! | `presets` | yes | [ready-made servers](presets), without further dependencies |
//! | `rstest` | yes | the attribute on fixture functions, and the re-export `mirakuru::rstest` |
//! | `tls` | no | `https://` for `Http`, with rustls: about thirty more crates |
//! | `tracing` | no | spans and events for your own `tracing` subscriber |
//!
//! The spans and events of `tracing` have the target `mirakuru`:
//!
//! | name | what | fields |
//! | --- | --- | --- |
//! | span `start`, info | a start, from its first step to its end | `service`, `command` |
//! | span `stop`, debug | a stop of any kind | `service`, `pid` |
//! | event `lock taken`, debug | fixed ports and paths are this service's now | `waited_ms` |
//! | event `spawned`, debug | the program was executed | `pid` |
//! | event `not ready`, trace | a probe that failed | `probe` |
//! | event `ready`, info | the start is over | `pid`, `elapsed_ms` |
//! | event `other port`, info | a chosen port was taken, and the start is tried again | `error` |
//! | event `failed`, warn | the start has failed | `error`, its first line |
//! | event `owner unseen`, warn | the owner of the listening socket is not visible, and is taken for the service | `addr` |
//! | event `stopped`, debug | no process of the service is left | `status` |

// Shows on docs.rs which feature an item needs.
#![cfg_attr(docsrs, feature(doc_cfg))]
// The examples contain tests, which a doctest compiles but does not run. The tests in `tests/` run
// them.
#![allow(clippy::test_attr_in_doctest)]

pub use mirakuru_core::{
    And, Banner, Bin, Check, Error, Evidence, Exec, Executor, ExecutorBuilder, IntoCommand, Line, Lines,
    Logs, Mark, Missing, NoWait, Or, OutputExecutor, PidExecutor, PidFile, Port, Prepare, Probe, Readiness,
    SdNotify, Signal, SimpleExecutor, StdinPipe, Stdio, Tcp, TcpExecutor, Udp, UnixSocket,
    UnixSocketExecutor,
};
#[cfg(feature = "http")]
pub use mirakuru_core::{Http, HttpExecutor, IntoStatus};
#[cfg(feature = "presets")]
pub use mirakuru_fixtures::presets;
pub use mirakuru_fixtures::{
    Cluster, ClusterRecipe, Node, Recipe, Shared, StartAll, StopAll, cluster, prepare_once, start_all,
    stop_all,
};

/// Creates a fixture: a service for one test, for all tests, or for rstest.
///
/// The meaning of the attribute depends on the item below it. Put the attribute **on top** of all
/// other attributes.
///
/// # On a test
///
/// The service lives as long as the test. A parameter for it is optional: `&T`, `&mut T` or `T`.
///
/// ```
/// # use mirakuru::{SimpleExecutor, TcpExecutor};
/// #[mirakuru::fixture(tcp = "localhost:6379", cmd = "redis-server")]
/// #[test]
/// fn counts_visits(redis: &TcpExecutor) {
///     // ...
/// }
///
/// #[mirakuru::fixture(cmd = "sleep 60", name = sleeper)]
/// #[mirakuru::fixture(tcp = "127.0.0.1:{port}", cmd = "redis-server --port {port}")]
/// #[test]
/// fn two_services(
///     redis: &TcpExecutor,
///     mut sleeper: SimpleExecutor,
/// ) -> Result<(), mirakuru::Error> {
///     sleeper.stop()
/// }
/// ```
///
/// - The test attribute below may be `#[test]`, `#[rstest]` with its cases, or one for async tests,
///   such as `#[tokio::test]`. The test may return a `Result`, and may have `#[should_panic]` or
///   `#[ignore]`.
/// - A test may have several fixture attributes. Each one binds the first free parameter that has
///   no attribute of its own. `name = parameter` selects another parameter, and `name = _` selects
///   none. rstest fills the other parameters.
/// - The attributes below a fixture can use it as `&T`, by the name of its parameter or by
///   `name = ident`: `env = ("DATABASE_URL", db.url())`.
/// - Services start together, so a start takes as long as the slowest service. A service that uses
///   others starts when they are ready. The service of the last attribute is stopped first.
/// - Services that need the same fixed port wait for each other, even across test binaries.
/// - The name of a `static` with the attribute can be used in place of a recipe:
///   `#[mirakuru::fixture(SHOP)]` provides `&'static T`.
/// - If the attribute is below `#[test]`, the test cannot have parameters, because the compiler
///   checks the signature first.
///
/// # On a static
///
/// The service is shared. The first use starts it, while other users wait. The static is a
/// [`Shared<T>`](Shared), which dereferences to `T`.
///
/// The whole run shares the service: all processes of a `cargo nextest run`, or all test binaries
/// of a `cargo test`, until the run ends. So **tests must not expect it to be empty**: other tests
/// have used it before, and use it at the same time. Give each test a database, a key prefix or a
/// topic of its own. With `scope = "users"`, the service ends with the last process that uses it.
/// With `scope = "process"`, each process has its own service.
///
/// ```
/// # use mirakuru::TcpExecutor;
/// #[mirakuru::fixture(tcp = "127.0.0.1:{port}", cmd = "redis-server --port {port}")]
/// static REDIS: TcpExecutor;
///
/// #[test]
/// fn counts_visits() {
///     let port = REDIS.port(); // Started here, or before.
///     // ...
/// }
/// ```
///
/// # On a struct
///
/// The struct is a system: each field is a service, and its attribute says how to start it. The
/// name of the struct can then be used like any other recipe: for a test, a `static`, a fixture
/// function, a field of another system, or [`start_all`].
///
/// ```
/// # mod tests {
/// # use mirakuru::TcpExecutor;
/// #[mirakuru::fixture]
/// pub struct Shop {
///     #[fixture(tcp = "127.0.0.1:{port}", cmd = "redis-server --port {port}")]
///     pub cache: TcpExecutor,
///     #[fixture(tcp = "127.0.0.1:{port}", cmd = "shop-server --listen 127.0.0.1:{port}",
///               env = ("CACHE", cache.addr().to_string()))]
///     pub server: TcpExecutor,
/// }
///
/// #[mirakuru::fixture(Shop)]
/// #[test]
/// fn survives_an_outage(mut shop: Shop) {
///     shop.cache.stopped(|| { /* .. */ }).unwrap();
/// }
///
/// #[mirakuru::fixture(Shop)]
/// static SHOP: Shop; // One for the run.
/// # }
/// ```
///
/// - The attributes below a field can use it by its name, as `&T`. A service starts as soon as the
///   services that it uses are ready. The services are stopped in the reverse order. (Rust drops
///   the first field of a struct first, so the macro reverses the order of the fields.)
/// - If the parameters of a generic struct cannot be inferred, write them:
///   `#[mirakuru::fixture(Farm::<3>)]`. Outside the attribute, its recipe is `Farm::<3>()`.
/// - `#[cfg(..)]` and `#[cfg_attr(..)]` on a field also apply to its service. A field of the type
///   `PhantomData` needs no attribute.
///
/// # On any other function
///
/// The function becomes an rstest fixture (feature `rstest`). Without a body, it returns the
/// executor. With a body, its first parameter receives the ready service, and the body may return
/// any value made from it. Further parameters are rstest's.
///
/// ```
/// # #[cfg(feature = "rstest")] mod tests {
/// # use mirakuru::TcpExecutor;
/// # use mirakuru::rstest::{self, rstest};
/// # struct Client(TcpExecutor);
/// # impl Client { fn connect(server: TcpExecutor) -> Client { Client(server) } }
/// # #[derive(Clone)] struct Schema;
/// # impl Schema { fn create() -> Schema { Schema } }
/// #[mirakuru::fixture(tcp = "127.0.0.1:{port}", cmd = "redis-server --port {port}")]
/// fn redis_server() -> TcpExecutor; // Each test has its own.
///
/// #[mirakuru::fixture(tcp = "127.0.0.1:{port}", cmd = "redis-server --port {port}")]
/// fn client(server: TcpExecutor) -> Client {
///     Client::connect(server)
/// }
///
/// #[mirakuru::fixture(tcp = "127.0.0.1:{port}", cmd = "redis-server --port {port}")]
/// fn shared_client(server: TcpExecutor) -> &'static Client {
///     Client::connect(server) // The body gives the `Client`, once; all tests share it.
/// }
///
/// #[mirakuru::fixture(tcp = "127.0.0.1:{port}", cmd = "redis-server --port {port}")]
/// fn address(server: &'static TcpExecutor) -> std::net::SocketAddr {
///     server.addr() // The service is shared; the body runs for each test.
/// }
///
/// #[rstest]
/// #[case(1)]
/// #[case(2)]
/// fn sets_a_key(client: Client, #[case] key: u32) {
///     // ...
/// }
/// # }
/// ```
///
/// Take `#[rstest]` from your own dependency, or from mirakuru: `use mirakuru::rstest::rstest;`. If
/// you use `#[timeout]`, or cases that rstest parses from strings, write
/// `use mirakuru::rstest::{self, rstest};`. (If another crate of your workspace uses rstest with
/// its default features, `#[rstest]` must come from your own manifest, because rstest's feature
/// `crate-name` looks there.) An `async fn` is an async fixture. A fixture hides a crate with the
/// same name, so prefer `redis_server` to `redis`.
///
/// # Keys
///
/// | key | |
/// | --- | --- |
/// | `cmd` | the command: a string of shell words, or a list |
/// | `bin`, `example` | instead: a program of your workspace, by name, see [`Bin`]; with `args` |
/// | `features`, `profile` | how cargo builds that program: `features = ["metrics"]`, `profile = "release"` |
/// | `tcp` | ready when it accepts connections: `"127.0.0.1:{port}"`, or a port |
/// | `http` | ready when it answers a HEAD request with a 2xx status: a URL |
/// | `unix` | ready when it accepts connections on a Unix socket: a path |
/// | `pid_file` | ready when the file exists: a path |
/// | `banner` | ready when it prints what matches: a regular expression |
/// | `exec` | ready when the command succeeds |
/// | `wait_for` | ready when: any [`Readiness`], for example `Tcp::port(80).and(Exec::succeeds("check"))` |
/// | `optional` | the test is skipped where the program is not on this machine, see [CI](guide::ci); also behind an expression |
/// | `name = parameter` | the parameter that it is given to |
/// | `scope` | for what is shared: `"run"` (the default: one service for a `cargo test` or `cargo nextest run`) or `"process"` |
///
/// One of `cmd`, `bin` and `example` is required. At most one readiness key is allowed. Without
/// one, a service is ready once its program is executed. Every other `key = value` calls the method
/// of [`ExecutorBuilder`] with that name: `timeout = Duration::from_secs(5)`, `args = ["-v"]`,
/// `env = ("NAME", "value")`, `stop_signal = Signal::Int`, `name = "text"`, and `env_clear` alone.
/// These may be repeated: `arg`, `env`, `env_remove`, `fail_on`, `file`, `listen`, `listen_as`,
/// `log_file`.
///
/// Instead of keys, you can write an expression whose value is a recipe: any value that implements
/// [`Recipe`]. Only `name = parameter`, `scope` and `optional` may follow:
///
/// ```
/// use mirakuru::{Executor, ExecutorBuilder, Tcp, TcpExecutor};
///
/// fn redis() -> ExecutorBuilder<Tcp> {
///     Executor::builder("redis-server --port {port}").wait_for(Tcp::addr("127.0.0.1:{port}"))
/// }
///
/// #[mirakuru::fixture(redis())]
/// #[test]
/// fn counts_visits(redis: &TcpExecutor) {
///     // ...
/// }
/// ```
pub use mirakuru_macros::fixture;

/// Re-export of rstest, for crates that do not list it in their own manifest:
/// `use mirakuru::rstest::rstest;`.
#[cfg(feature = "rstest")]
pub use mirakuru_fixtures::rstest;

#[doc(hidden)]
pub use mirakuru_fixtures::__private;
#[doc(hidden)]
pub use mirakuru_macros::__System;

// Pages whose code the doctests compile and run. Not part of the library's interface.
#[cfg(any(doc, doctest))]
pub mod guide;

/// Makes the doctests compile and run the README's Rust code.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
