//! rstest's `#[timeout]` ends a test while the thread of its body continues. The test's services
//! must end.
//!
//! The tests run several victims below in one process of this binary.
#![cfg(feature = "rstest")]

use std::cell::Cell;
use std::env;
use std::fs;
use std::process::Output;
use std::thread;
use std::time::Duration;

use mirakuru::{Executor, ExecutorBuilder, Shared, SimpleExecutor, Tcp, TcpExecutor};
use rstest::rstest;

use crate::common::{
    LONG, ODD, Scratch, alive, fixed_port, numbers, test_name, victim_dir, victims, wait_until,
};
use crate::proof;

/// A service that records its pid in a file. It has the same port in all victims of one process.
fn on_the_port() -> ExecutorBuilder<Tcp> {
    let addr = format!("127.0.0.1:{}", env::var("PORT").unwrap_or_default());
    let pids = victim_dir().unwrap_or_default().join("pids");
    Executor::builder([ODD, "--line", "the only clue", "--listen", &addr, "--pids"])
        .arg(pids)
        .wait_for(Tcp::addr(addr))
        .timeout(LONG)
}

/// Runs victims one after the other in one process. The first victim must have its service before
/// its time is over. If a busy machine is too slow, the next attempt has more time.
fn run(names: &[&str]) -> (Scratch, Duration, String) {
    for time in [1500, 6_000, 20_000].map(Duration::from_millis) {
        let scratch = Scratch::new();
        let output = victims(names, scratch.path())
            .args(["--test-threads=1"])
            .env("PORT", fixed_port().to_string())
            .env("TIME_MS", time.as_millis().to_string())
            .output()
            .unwrap();
        if scratch.path().join("began").exists() {
            return (scratch, time, text(&output));
        }
    }
    panic!("no service has started in time");
}

/// The time limit of a test: see [`run`].
fn time() -> Duration {
    Duration::from_millis(env::var("TIME_MS").map_or(1500, |ms| ms.parse().unwrap()))
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&*output.stdout, &output.stderr].concat()).into_owned()
}

/// A body that continues while later tests run.
fn goes_on() {
    tell("began");
    let next_is_there = victim_dir().unwrap().join("next");
    if !wait_until(|| next_is_there.exists(), LONG) {
        tell("gave up");
    }
    // The body is still running when the next test runs.
    thread::sleep(LONG);
}

#[mirakuru::fixture(on_the_port())]
#[rstest]
#[timeout(time())]
#[ignore = "a victim"]
fn a_hangs(service: &TcpExecutor) {
    assert!(service.is_running());
    goes_on();
}

#[mirakuru::fixture(on_the_port())]
#[test]
#[ignore = "a victim"]
fn b_wants_the_port(service: &TcpExecutor) {
    tell("next");
    assert!(service.is_running());
    let gave_up = victim_dir().unwrap().join("gave up").exists();
    assert!(!gave_up, "it waited for the port of the test whose time was over");
}

#[test]
fn the_services_of_a_test_end_with_its_timeout() {
    let (scratch, time, text) = run(&[test_name!(a_hangs), test_name!(b_wants_the_port)]);
    assert!(text.contains("1 passed; 1 failed"), "{text}");
    assert!(text.contains(&format!("Timeout {time:?} expired")), "{text}");
    let pids = numbers(&scratch.file("pids"));
    assert_eq!(pids.len(), 2, "{text}");
    assert!(pids.iter().all(|pid| !alive(*pid)));
    // Only the log is kept, and the report shows it.
    assert!(text.contains("| the only clue"), "{text}");
    assert!(wait_until(
        || proof::service_dirs(scratch.path()).is_empty(),
        LONG
    ));
    assert_eq!(proof::kept_logs(scratch.path()).len(), 1);
}

#[mirakuru::fixture(on_the_port())]
fn injected() -> TcpExecutor;

#[rstest]
#[timeout(time())]
#[ignore = "a victim"]
fn a_hangs_with_a_fixture(injected: TcpExecutor) {
    assert!(injected.is_running());
    goes_on();
}

#[test]
fn the_services_of_a_fixture_function_end_with_the_timeout() {
    let names = [test_name!(a_hangs_with_a_fixture), test_name!(b_wants_the_port)];
    let (scratch, _, text) = run(&names);
    assert!(text.contains("1 passed; 1 failed"), "{text}");
    assert_eq!(numbers(&scratch.file("pids")).len(), 2);
}

#[mirakuru::fixture(on_the_port())]
#[rstest]
#[timeout(time())]
#[ignore = "a victim"]
fn a_restarts(mut service: TcpExecutor) {
    service.restart().unwrap();
    goes_on();
}

#[test]
fn a_service_that_was_restarted_ends_with_the_timeout() {
    let (_, _, text) = run(&[test_name!(a_restarts), test_name!(b_wants_the_port)]);
    assert!(text.contains("1 passed; 1 failed"), "{text}");
}

/// Waits until another victim has created this file.
fn wait_for(file: &str) {
    let file = victim_dir().unwrap_or_default().join(file);
    assert!(wait_until(|| file.exists(), LONG));
}

fn tell(file: &str) {
    fs::write(victim_dir().unwrap().join(file), "").unwrap();
}

/// Creates a file when its thread ends.
struct Tells(&'static str);

impl Drop for Tells {
    fn drop(&mut self) {
        tell(self.0);
    }
}

thread_local! {
    static AT_END: Cell<Option<Tells>> = const { Cell::new(None) };
}

/// Returns a time limit. The calling thread creates the file `timed out` when it ends.
fn told_time() -> Duration {
    AT_END.set(Some(Tells("timed out")));
    Duration::from_millis(1500)
}

#[mirakuru::fixture(on_the_port())]
#[test]
#[ignore = "a victim"]
fn holds_the_port(_service: &TcpExecutor) {
    tell("held");
    wait_for("over");
}

/// Returns the recipe once another test holds the port.
fn when_it_is_held() -> ExecutorBuilder<Tcp> {
    AT_END.set(Some(Tells("given up")));
    wait_for("held");
    on_the_port()
}

#[mirakuru::fixture(when_it_is_held())]
#[rstest]
#[timeout(told_time())]
#[ignore = "a victim"]
fn waits_in_vain(_service: &TcpExecutor) {
    unreachable!("its time is over");
}

#[test]
#[ignore = "a victim"]
fn looks_on() {
    wait_for("timed out");
    tell("over");
    // The thread of the test that timed out could get the port now, but must give up instead.
    wait_for("given up");
}

#[test]
fn a_test_whose_time_is_over_starts_nothing_more() {
    let scratch = Scratch::new();
    let names = [
        test_name!(holds_the_port),
        test_name!(waits_in_vain),
        test_name!(looks_on),
    ];
    let output = victims(&names, scratch.path())
        .args(["--test-threads=3"])
        .env("PORT", fixed_port().to_string())
        .output()
        .unwrap();
    let text = text(&output);
    assert!(text.contains("2 passed; 1 failed"), "{text}");
    assert_eq!(numbers(&scratch.file("pids")).len(), 1, "{text}");
}

/// Returns the recipe only after the test's time is over.
fn when_it_is_late() -> ExecutorBuilder<Tcp> {
    AT_END.set(Some(Tells("given up")));
    wait_for("timed out");
    on_the_port()
}

#[mirakuru::fixture(when_it_is_late())]
#[rstest]
#[timeout(told_time())]
#[ignore = "a victim"]
fn a_makes_its_recipe(_service: &TcpExecutor) {
    unreachable!("its time is over");
}

#[test]
#[ignore = "a victim"]
fn b_waits_for_the_thread() {
    wait_for("given up");
}

#[test]
fn a_test_whose_time_is_over_before_its_recipe_is_made_starts_nothing() {
    let scratch = Scratch::new();
    let names = [test_name!(a_makes_its_recipe), test_name!(b_waits_for_the_thread)];
    let output = victims(&names, scratch.path())
        .args(["--test-threads=1"])
        .env("PORT", fixed_port().to_string())
        .output()
        .unwrap();
    let text = text(&output);
    assert!(text.contains("1 passed; 1 failed"), "{text}");
    assert!(!scratch.path().join("pids").exists(), "{text}");
}

#[mirakuru::fixture(cmd = [ODD, "--listen", "127.0.0.1:{port}"], tcp = "127.0.0.1:{port}", scope = "process")]
static SHARED: TcpExecutor;

/// A service in a hand-written static, from a recipe that an attribute could also use.
static BY_HAND: Shared<SimpleExecutor> = Shared::new(|| Executor::builder("sleep 100").start());

/// A service that all tests of the process share through rstest's `#[once]`.
#[mirakuru::fixture(cmd = "sleep 100")]
#[rstest::fixture]
#[once]
fn once() -> SimpleExecutor;

#[rstest]
#[timeout(time())]
#[ignore = "a victim"]
fn a_starts_what_is_shared(once: &SimpleExecutor) {
    let pids = [SHARED.pid(), BY_HAND.pid(), once.pid()].map(|pid| pid.to_string());
    fs::write(victim_dir().unwrap().join("shared"), pids.join("\n")).unwrap();
    goes_on();
}

#[rstest]
#[ignore = "a victim"]
fn b_uses_what_is_shared(once: &SimpleExecutor) {
    let pids = numbers(&victim_dir().unwrap().join("shared").display().to_string());
    assert_eq!(pids, [SHARED.pid(), BY_HAND.pid(), once.pid()]);
    assert!(SHARED.is_running() && BY_HAND.is_running() && once.is_running());
}

#[test]
fn what_tests_share_does_not_end_with_a_timeout() {
    let names = [
        test_name!(a_starts_what_is_shared),
        test_name!(b_uses_what_is_shared),
    ];
    let (scratch, _, text) = run(&names);
    assert!(text.contains("1 passed; 1 failed"), "{text}");
    let pids = numbers(&scratch.file("shared"));
    assert!(wait_until(|| pids.iter().all(|pid| !alive(*pid)), LONG));
}
