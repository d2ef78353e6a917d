//! `#[mirakuru::fixture(..)]` on a `static`: one service for all tests of this binary.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use mirakuru::{Error, Executor, ExecutorBuilder, NoWait, Recipe, Shared, SimpleExecutor, TcpExecutor};

#[mirakuru::fixture(tcp = "127.0.0.1:{port}", cmd = "redis-server --port {port} --save ''")]
static REDIS: TcpExecutor;

/// Users keep their statics in a module `common` (`tests/common/mod.rs`).
pub mod common {
    use mirakuru::SimpleExecutor;

    /// The attribute keeps visibility, documentation and other attributes.
    #[mirakuru::fixture(cmd = "sleep 60", name = "sleeper", scope = "process")]
    #[allow(dead_code)]
    pub static SLEEPER: SimpleExecutor;

    /// No test uses this service, so it never starts.
    #[mirakuru::fixture(cmd = "/no/such/program")]
    #[allow(dead_code)]
    pub(crate) static UNUSED: SimpleExecutor;
}

#[test]
fn it_is_started_at_first_use_and_dereferences() {
    let port = REDIS.port();
    assert_ne!(port, 0);
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    assert!(REDIS.is_running());
}

#[test]
fn every_thread_has_the_same_one() {
    let pids: Vec<u32> = thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| REDIS.pid())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(pids.iter().all(|pid| *pid == REDIS.pid()));
}

#[test]
fn it_survives_the_thread_that_started_it() {
    let pid = thread::spawn(|| common::SLEEPER.pid()).join().unwrap();
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    assert!(!state.rsplit(')').next().unwrap().trim_start().starts_with('Z'));
    assert_eq!(common::SLEEPER.name(), "sleeper");
}

#[mirakuru::fixture(cmd = "sleep 61", scope = "process")]
static KILLED: SimpleExecutor;

#[mirakuru::fixture(cmd = "sleep 62")]
static KILLED_OF_THE_RUN: SimpleExecutor;

#[test]
fn tests_that_begin_to_use_a_killed_service_are_told_how_it_ended() {
    for shared in [&KILLED, &KILLED_OF_THE_RUN] {
        // A first use in a new thread, because each test has its own thread.
        let first_use = || thread::spawn(|| Shared::try_get(shared).map_err(ToString::to_string));
        let pid = first_use().join().unwrap().unwrap().pid();
        crate::common::send(pid, crate::common::SIGKILL);
        assert!(crate::common::wait_until(
            || !crate::common::alive(pid),
            crate::common::LONG
        ));
        let error = first_use().join().unwrap().unwrap_err();
        assert!(error.contains("SIGKILL") && error.contains("sleep 6"), "{error}");
    }
}

#[test]
#[ignore = "fails, for another test"]
fn uses_a_killed_service() {
    let pid = thread::spawn(|| KILLED.pid()).join().unwrap();
    crate::common::send(pid, crate::common::SIGKILL);
    assert!(crate::common::wait_until(
        || !crate::common::alive(pid),
        crate::common::LONG
    ));
    println!("{}", KILLED.pid());
}

#[test]
fn a_report_tells_the_end_of_a_shared_service_once() {
    let scratch = crate::common::Scratch::new();
    let test = crate::common::test_name!(uses_a_killed_service);
    let output = crate::common::victim(test, scratch.path()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(text.matches("sleep 61").count(), 1, "{text}");
    assert!(text.contains("SIGKILL"), "{text}");
}

/// A tracer waits until every process that it traces has ended, and a service of the run waits for
/// the end of its runner. To avoid a deadlock, the service ends with its process.
#[test]
#[cfg_attr(mirakuru_portable, ignore = "the portable back end recognises no run")]
fn under_a_tracer_a_service_of_the_run_ends_with_its_process() {
    use std::process::{Command, Stdio};
    let test = crate::common::test_name!(it_is_started_at_first_use_and_dereferences);
    let Ok(child) = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("NEXTEST_RUN_ID", format!("traced-{}", std::process::id()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
    else {
        eprintln!("skipped: there is no strace");
        return;
    };
    let pid = child.id();
    let ended = thread::spawn(move || child.wait_with_output().unwrap());
    if !crate::common::wait_until(|| ended.is_finished(), crate::common::LONG) {
        crate::common::send(pid, crate::common::SIGKILL);
        panic!("the tracer waits for ever");
    }
    let output = ended.join().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("traces this test process"), "{text}");
}

#[test]
fn it_can_be_borrowed_for_ever_and_handed_to_threads() {
    let redis: &'static TcpExecutor = Shared::get(&REDIS);
    thread::spawn(move || assert!(redis.is_running())).join().unwrap();
}

#[test]
fn it_need_not_be_at_the_top_level() {
    #[mirakuru::fixture(cmd = ["sleep", "60"])]
    static LOCAL: SimpleExecutor;

    assert!(LOCAL.is_running());
}

/// A static may have the name of the crate. It hides nothing, because the attribute defines no
/// other item.
mod names {
    #[allow(non_upper_case_globals)]
    #[mirakuru::fixture(cmd = "sleep 60")]
    static mirakuru: mirakuru::SimpleExecutor;

    #[test]
    fn a_static_named_like_a_crate_does_not_hide_it() {
        let executor: &mirakuru::SimpleExecutor = &mirakuru;
        assert!(executor.is_running());
    }
}

static STARTS: AtomicU32 = AtomicU32::new(0);
static SET_UPS: AtomicU32 = AtomicU32::new(0);

struct Counted;

struct Handle {
    executor: SimpleExecutor,
    set_ups: u32,
}

impl Recipe for Counted {
    type Readiness = NoWait;
    type Handle = Handle;

    fn executor(&self) -> Result<ExecutorBuilder, Error> {
        STARTS.fetch_add(1, Ordering::SeqCst);
        Ok(Executor::builder("sleep 60"))
    }

    fn set_up(&self, executor: &mut SimpleExecutor) -> Result<(), Error> {
        assert!(executor.is_running());
        SET_UPS.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn handle(self, executor: SimpleExecutor) -> Result<Handle, Error> {
        Ok(Handle {
            executor,
            set_ups: SET_UPS.load(Ordering::SeqCst),
        })
    }
}

#[mirakuru::fixture(Counted)]
static COUNTED: Handle;

#[test]
fn it_is_started_and_set_up_once() {
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| assert!(COUNTED.executor.is_running()));
        }
    });
    assert_eq!(COUNTED.set_ups, 1);
    assert_eq!(STARTS.load(Ordering::SeqCst), 1);
    assert_eq!(SET_UPS.load(Ordering::SeqCst), 1);
}

#[mirakuru::fixture(cmd = "/no/such/program", tcp = "127.0.0.1:{port}")]
static BROKEN: TcpExecutor;

#[test]
fn a_failed_start_is_remembered() {
    let first: *const Error = Shared::try_get(&BROKEN).map(|_| ()).unwrap_err();
    let second: *const Error = Shared::try_get(&BROKEN).map(|_| ()).unwrap_err();
    assert_eq!(first, second);
    for _ in 0..2 {
        let payload = catch_unwind(AssertUnwindSafe(|| BROKEN.port())).unwrap_err();
        let message = payload.downcast_ref::<String>().unwrap();
        assert!(
            message.starts_with("the shared fixture `BROKEN` could not be started"),
            "{message}"
        );
    }
}

#[test]
fn without_the_attribute() {
    static BY_HAND: Shared<SimpleExecutor> = Shared::new(|| Executor::builder("sleep 60").start());
    assert!(Shared::get(&BY_HAND).is_running());
}
