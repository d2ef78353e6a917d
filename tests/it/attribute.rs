//! `#[mirakuru::fixture(..)]` on test functions: every form of parameter, test attribute and return
//! type.
//!
//! A test that checks the state after another test calls that test as an ordinary function.
#![deny(warnings, clippy::pedantic)]
#![forbid(unsafe_code)]
#![allow(unnameable_test_items)]

use std::cell::{Cell, RefCell};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use mirakuru::{
    And, Error, Exec, Executor, ExecutorBuilder, NoWait, Readiness, Recipe, SimpleExecutor, Tcp, TcpExecutor,
};

/// A service that only listens on a free port.
const LISTENER: &str = "python3 -m http.server --bind 127.0.0.1 --directory {dir} {port}";

fn connects(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, Duration::from_secs(5)).is_ok()
}

/// Whether a process is alive, and not a zombie.
fn alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit(')')
            .next()
            .unwrap_or("")
            .trim_start()
            .starts_with(['Z', 'X'])
    })
}

// ---- parameters ---------------------------------------------------------------------------------

#[mirakuru::fixture(tcp = "127.0.0.1:{port}", cmd = LISTENER)]
#[test]
fn a_shared_reference(server: &TcpExecutor) {
    assert!(server.is_running());
    assert!(connects(server.addr()));
}

#[mirakuru::fixture(tcp = "127.0.0.1:{port}", cmd = LISTENER)]
#[test]
fn a_mutable_reference(server: &mut TcpExecutor) {
    let address = server.addr();
    server.stopped(|| assert!(!connects(address))).unwrap();
    assert!(connects(address));
}

#[mirakuru::fixture(tcp = "127.0.0.1:{port}", cmd = LISTENER)]
#[test]
fn a_value(server: TcpExecutor) {
    let address = server.addr();
    drop(server);
    assert!(!connects(address));
}

#[mirakuru::fixture(cmd = "sleep 60")]
#[test]
fn a_mutable_value(mut sleeper: SimpleExecutor) {
    sleeper.stop().unwrap();
    assert!(!sleeper.is_running());
}

#[mirakuru::fixture(cmd = "sleep 60")]
#[test]
fn a_generic_type(sleeper: &Executor<NoWait>) {
    assert!(sleeper.is_running());
}

/// The parameter is a pattern, not a name.
#[mirakuru::fixture(Noted("only"))]
#[test]
fn a_pattern(Note { name, executor: _ }: &Note) {
    assert_eq!(*name, "only");
}

#[mirakuru::fixture(cmd = ["sleep", "60"])]
#[test]
fn a_lint_attribute_is_no_attribute_of_its_own(#[allow(unused_variables)] sleeper: &SimpleExecutor) {}

const MARK: &str = "marked";

#[mirakuru::fixture(cmd = "touch there && exec sleep \
    60", shell = true, current_dir = "{dir}", wait_for = Exec::succeeds("test -e {dir}/there"))]
#[test]
fn no_parameter() {
    assert_eq!(MARK, "marked");
}

// The attribute cannot see a test attribute above it.
#[test]
#[mirakuru::fixture(cmd = "sleep 60")]
fn below_the_test_attribute() {}

#[test]
#[mirakuru::fixture(cmd = "sleep 60")]
fn below_the_test_attribute_with_a_result() -> Result<(), Error> {
    Ok(())
}

// ---- keys ---------------------------------------------------------------------------------------

#[cfg(feature = "http")]
#[mirakuru::fixture(
    cmd = ["sh", "-c"],
    args = ["test \"$A$B$C\" = 123 && exec python3 -m http.server --bind 127.0.0.1 --directory \"$0\" \
        \"$1\""],
    arg = "{dir}",
    arg = "{port:web}",
    env_clear,
    env = ("A", "1"),
    env = ("B", "2"),
    envs = [("C", "3"), ("PATH", "{env:PATH}")],
    env_remove = "D",
    http = "http://127.0.0.1:{port:web}/",
    name = "web",
    name = server,
    timeout = Duration::from_secs(30),
    stop_signal = mirakuru::Signal::Int,
    stop_timeout = Duration::from_secs(5),
    queue = false,
)]
#[test]
fn many_keys(server: &mirakuru::HttpExecutor) {
    use std::io::{Read, Write};

    assert_eq!(server.name(), "web");
    let mut answer = String::new();
    let mut stream = TcpStream::connect(server.addr()).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
}

#[mirakuru::fixture(
    cmd = "redis-server --port 0 --save '' --unixsocket {dir}/redis.sock",
    unix = "{dir}/redis.sock"
)]
#[test]
fn the_key_unix(redis: &mirakuru::UnixSocketExecutor) {
    assert!(redis.path().ends_with("redis.sock"));
}

#[mirakuru::fixture(
    cmd = "echo $$ > {dir}/new && mv {dir}/new {dir}/pid && exec sleep 60",
    shell = true,
    pid_file = "{dir}/pid"
)]
#[test]
fn the_key_pid_file(sleeper: &mirakuru::PidExecutor) {
    let pid = std::fs::read_to_string(sleeper.path()).unwrap();
    assert_eq!(pid.trim(), sleeper.pid().to_string());
}

#[mirakuru::fixture(
    cmd = "redis-server --port {port} --save ''",
    banner = "Ready to accept connections"
)]
#[test]
fn the_key_banner(redis: &mirakuru::OutputExecutor) {
    assert!(redis.logs().stdout().contains("Ready to accept connections"));
}

#[mirakuru::fixture(cmd = LISTENER, exec = "python3 -c 'import socket; \
    socket.create_connection((\"127.0.0.1\", {port}))'")]
#[test]
fn the_key_exec(server: &Executor<Exec>) {
    assert!(server.is_running());
}

#[mirakuru::fixture(cmd = format!("sleep {}", 60))]
#[test]
fn a_command_that_is_computed() {}

fn address() -> String {
    "127.0.0.1:{port}".to_owned()
}

#[mirakuru::fixture(cmd = LISTENER, tcp = address())]
#[test]
fn an_address_that_is_computed(server: &TcpExecutor) {
    assert!(connects(server.addr()));
}

// ---- test attributes and return types -----------------------------------------------------------

#[mirakuru::fixture(cmd = "sleep 60")]
#[test]
fn a_result(sleeper: &SimpleExecutor) -> Result<(), Box<dyn std::error::Error>> {
    if sleeper.is_running() {
        return Ok(());
    }
    Err("not running")?;
    Ok(())
}

#[mirakuru::fixture(cmd = "sleep 60")]
#[test]
fn an_exit_code(sleeper: &SimpleExecutor) -> std::process::ExitCode {
    u8::from(!sleeper.is_running()).into()
}

#[mirakuru::fixture(cmd = "sleep 60")]
#[test]
fn an_opaque_type(sleeper: &SimpleExecutor) -> impl std::process::Termination + use<> {
    assert!(sleeper.is_running());
}

#[mirakuru::fixture(cmd = "sleep 60")]
#[test]
#[should_panic(expected = "as it should")]
fn a_panic(sleeper: &SimpleExecutor) {
    assert!(!sleeper.is_running(), "as it should");
}

#[mirakuru::fixture(cmd = "sleep 60")]
#[test]
#[ignore = "shows that the attribute passes through"]
fn ignored(_sleeper: &SimpleExecutor) {
    unreachable!();
}

#[mirakuru::fixture(cmd = "sleep 60")]
#[tokio::test]
async fn an_async_test(sleeper: &mut SimpleExecutor) {
    // This needs a runtime with a timer.
    tokio::time::sleep(Duration::from_millis(1)).await;
    sleeper.stop().unwrap();
}

#[mirakuru::fixture(cmd = "sleep 60")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_async_test_with_a_result(sleeper: SimpleExecutor) -> Result<(), Box<dyn std::error::Error>> {
    let pid = tokio::spawn(async move { sleeper.pid() }).await?;
    assert!(!alive(pid));
    Ok(())
}

#[tokio::test]
#[mirakuru::fixture(cmd = "sleep 60")]
async fn below_an_async_test_attribute() {
    // This needs a runtime with a timer.
    tokio::time::sleep(Duration::from_millis(1)).await;
}

#[mirakuru::fixture(cmd = "sleep 60")]
#[test]
fn an_inner_attribute(sleeper: &SimpleExecutor) {
    #![allow(unused_variables)]
    let nothing = sleeper;
}

/// The body's last expression borrows from a variable that the attribute defines.
#[mirakuru::fixture(cmd = "sleep 60")]
#[test]
fn temporaries_end_before_the_service(sleeper: &SimpleExecutor) -> Result<(), String> {
    match sleeper.logs().lines().next() {
        None => Ok(()),
        Some(line) => Err(line.to_owned()),
    }
}

// ---- names that the attribute's expansion uses as well ------------------------------------------

#[allow(dead_code)]
mod names {
    pub(super) mod core {}
    pub(super) mod std {}
    pub(super) mod mirakuru {}
    pub(super) fn start() {}
    pub(super) struct Result;
    pub(super) struct Ok;
    pub(super) struct Option;
    pub(super) struct Some;
    pub(super) struct Executor;
    pub(super) struct Tcp;

    #[::mirakuru::fixture(cmd = "sleep 60")]
    #[test]
    #[should_panic(expected = "x")]
    fn hidden_by_the_users_own(_sleeper: &::mirakuru::SimpleExecutor) {
        panic!("x");
    }

    #[::mirakuru::fixture(cmd = "sleep 60")]
    static SLEEPER: ::mirakuru::SimpleExecutor;
}

// ---- several fixtures ---------------------------------------------------------------------------

#[mirakuru::fixture(cmd = "sleep 60")]
#[mirakuru::fixture(tcp = "127.0.0.1:{port}", cmd = LISTENER)]
#[test]
fn each_takes_the_next_parameter(sleeper: &SimpleExecutor, server: &TcpExecutor) {
    assert!(sleeper.is_running() && server.is_running());
}

#[mirakuru::fixture(cmd = "sleep 60")]
#[mirakuru::fixture(tcp = "127.0.0.1:{port}", cmd = LISTENER, name = server)]
#[mirakuru::fixture(Noted("third"), name = _)]
#[mirakuru::fixture(Noted("fourth"))]
#[test]
fn some_name_theirs(server: TcpExecutor, sleeper: &SimpleExecutor, fourth: Note) {
    assert!(sleeper.is_running() && server.is_running());
    assert_eq!(fourth.name, "fourth");
}

#[mirakuru::fixture(cmd = "sleep 60")]
#[test]
#[mirakuru::fixture(tcp = "127.0.0.1:{port}", cmd = LISTENER)]
fn around_the_test_attribute(sleeper: &SimpleExecutor, server: &TcpExecutor) {
    assert!(sleeper.is_running() && server.is_running());
}

/// If the attribute is imported under another name, stacked attributes do not recognise each other,
/// and each expands by itself.
mod nested {
    use mirakuru::fixture as service;
    use mirakuru::{SimpleExecutor, TcpExecutor};

    #[service(cmd = "sleep 60", name = sleeper)]
    #[service(tcp = "127.0.0.1:{port}", cmd = super::LISTENER)]
    #[test]
    fn separately(server: &TcpExecutor, sleeper: &mut SimpleExecutor) {
        assert!(sleeper.is_running() && server.is_running());
    }
}

// ---- recipes of users ---------------------------------------------------------------------------

fn recipe(seconds: u32) -> ExecutorBuilder {
    Executor::builder("sleep").arg(seconds.to_string())
}

#[mirakuru::fixture(scope = "process", cmd = "sleep 60")]
static SLEEPER: SimpleExecutor;

/// Defines two tests. The compiler puts each fragment into invisible parentheses.
macro_rules! written_by_a_macro {
    ($name:ident, $sleeper:ident: $ty:ty, $recipe:expr, $env:expr, $body:block) => {
        mod $name {
            use super::*;

            #[mirakuru::fixture($recipe)]
            #[test]
            fn an_expression($sleeper: $ty) $body

            #[mirakuru::fixture(cmd = "sleep 60", env = $env)]
            #[test]
            fn keys($sleeper: $ty) $body
        }
    };
}

written_by_a_macro!(borrowed_in_a_macro, sleeper: &SimpleExecutor, SLEEPER, ("NAME", "value"), {
    assert!(sleeper.is_running());
});

written_by_a_macro!(changed_in_a_macro, sleeper: &mut SimpleExecutor, recipe(60), ("NAME", "value"), {
    sleeper.stop().unwrap();
});

#[mirakuru::fixture(recipe(60))]
#[test]
fn an_expression(sleeper: &SimpleExecutor) {
    assert!(sleeper.is_running());
}

#[mirakuru::fixture(
    Executor::builder(LISTENER).wait_for(Tcp::addr("127.0.0.1:{port}").and(Exec::succeeds("true"))),
    name = server
)]
#[test]
fn a_chain_and_a_name(server: &Executor<And<Tcp, Exec>>) {
    assert!(server.is_running());
}

thread_local! {
    static DROPPED: RefCell<Vec<&'static str>> = const { RefCell::new(Vec::new()) };
    static FAILED: Cell<bool> = const { Cell::new(false) };
}

/// A recipe whose handle records its drop, and whether the test had failed by then.
struct Noted(&'static str);

struct Note {
    name: &'static str,
    executor: SimpleExecutor,
}

impl Recipe for Noted {
    type Readiness = NoWait;
    type Handle = Note;

    fn executor(&self) -> Result<ExecutorBuilder, Error> {
        Ok(recipe(60).name(self.0))
    }

    fn set_up(&self, executor: &mut SimpleExecutor) -> Result<(), Error> {
        assert!(executor.is_running(), "it is set up once it is ready");
        match self.0 {
            "broken" => Err(Error::other("set the service up", "it is broken")),
            _ => Ok(()),
        }
    }

    fn handle(self, executor: SimpleExecutor) -> Result<Note, Error> {
        Ok(Note {
            name: self.0,
            executor,
        })
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        assert!(self.executor.is_running(), "the handle goes before the service");
        DROPPED.with_borrow_mut(|dropped| dropped.push(self.name));
        FAILED.set(mirakuru::__private::test_has_failed());
    }
}

#[test]
fn the_last_started_ends_first() {
    #[mirakuru::fixture(Noted("a"))]
    #[mirakuru::fixture(Noted("b"))]
    #[mirakuru::fixture(Noted("c"), name = _)]
    #[mirakuru::fixture(Noted("d"))]
    #[mirakuru::fixture(Noted("e"))]
    #[test]
    fn test(_a: Note, _b: &Note, _d: &mut Note, _e: Note) {}

    test();
    assert_eq!(DROPPED.take(), ["e", "d", "c", "b", "a"]);
}

#[test]
fn the_services_end_with_the_test() {
    thread_local!(static PID: Cell<u32> = const { Cell::new(0) });

    #[mirakuru::fixture(cmd = "sleep 60")]
    #[test]
    fn test(sleeper: &SimpleExecutor) {
        PID.set(sleeper.pid());
        assert!(alive(sleeper.pid()));
    }

    test();
    assert!(!alive(PID.get()));
}

#[test]
fn an_error_that_is_returned_is_told_to_the_services() {
    #[mirakuru::fixture(Noted("a"))]
    #[test]
    fn succeeds(_a: &Note) -> Result<(), String> {
        Ok(())
    }

    #[mirakuru::fixture(Noted("a"))]
    #[test]
    fn fails(_a: &Note) -> Result<(), String> {
        let error: Result<(), String> = Err("early".to_owned());
        error?;
        unreachable!();
    }

    #[mirakuru::fixture(Noted("a"))]
    #[tokio::test]
    async fn fails_later(_a: &Note) -> Result<(), String> {
        tokio::task::yield_now().await;
        Err("late".to_owned())?;
        unreachable!();
    }

    succeeds().unwrap();
    assert!(!FAILED.get());
    fails().unwrap_err();
    assert!(FAILED.get());
    succeeds().unwrap();
    assert!(!FAILED.get());
    fails_later().unwrap_err();
    assert!(FAILED.get());
}

#[test]
fn a_start_that_fails_panics_with_the_name_and_the_report() {
    #[mirakuru::fixture(Noted("a"))]
    #[mirakuru::fixture(Noted(if first.name == "a" { "broken" } else { "c" }))]
    #[test]
    fn test(first: &Note, second: &Note) {
        let _ = first;
        unreachable!("{}", second.name);
    }

    let payload = std::panic::catch_unwind(test).unwrap_err();
    let message = payload.downcast_ref::<String>().unwrap();
    assert!(
        message.starts_with("the fixture `second` could not be started"),
        "{message}"
    );
    assert_eq!(DROPPED.take(), ["a"], "what was started before it ends");
}

#[test]
fn a_start_that_fails_is_not_the_panic_that_should_be() {
    #[mirakuru::fixture(cmd = "/no/such/program", tcp = "127.0.0.1:{port}")]
    #[should_panic(expected = "")]
    #[test]
    fn test(_server: &TcpExecutor) {
        unreachable!();
    }

    test(); // `test` returns, so a test runner reports that the expected panic is missing.
}

/// A readiness condition of the user's own.
#[derive(Clone)]
struct Exists(&'static str);

impl Readiness for Exists {
    fn describe(&self) -> String {
        format!("{} exists", self.0)
    }

    fn probe(&mut self, _: &mirakuru::Probe<'_>) -> std::io::Result<bool> {
        Path::new(self.0).try_exists()
    }
}

#[mirakuru::fixture(cmd = "sleep 60", wait_for = Exists("/"))]
#[test]
fn a_condition_of_the_users(sleeper: &Executor<Exists>) {
    assert!(sleeper.is_running());
}
