//! Lines that a service logs while a test runs. The first twelve tests are the rows of the table in
//! `docs/guide/logs.md`.

use std::fs;
use std::time::{Duration, Instant};

use crate::common::LONG;
use mirakuru::{
    Banner, Error, Executor, ExecutorBuilder, Mark, OutputExecutor, Shared, Signal, SimpleExecutor,
};

/// A service that runs a shell script, and is ready when the script prints `up`.
fn script(text: &str) -> OutputExecutor {
    recipe(text).start().unwrap()
}

fn recipe(text: &str) -> ExecutorBuilder<Banner> {
    Executor::builder(text)
        .shell(true)
        .wait_for(Banner::matching("^up$"))
}

/// A script that prints a line to stdout and a line to stderr at each SIGHUP.
const SAYS: &str = "trap 'n=$((n+1)); echo \"job $n done\"; echo \"warn $n\" >&2' HUP; echo up; \
                    while :; do sleep 0.01; done";

#[test]
fn waits_for_a_line() {
    let mut service = recipe("echo up; sleep 0.05; echo 'user 7 logs in'; exec sleep 60")
        .build()
        .unwrap();
    let mark = service.mark();
    service.start().unwrap();
    let line = service.wait_for_line(&mark, "logs in", LONG).unwrap();
    assert_eq!(line, "user 7 logs in");
}

#[test]
fn sees_the_lines_since_now_alone() {
    let mut service = script(SAYS);
    let mark = service.mark();
    service.signal(Signal::Hup).unwrap();
    service.wait_for_line(&mark, "job 1 done", LONG).unwrap();
    let mark = service.mark();
    service.signal(Signal::Hup).unwrap();
    let line = service.wait_for_line(&mark, r"job \d done", LONG).unwrap();
    assert_eq!(line, "job 2 done", "the first one is older than the mark");
    assert!(!service.logs_since(&mark).stdout().contains("job 1"));
}

#[test]
fn waits_for_the_nth_line() {
    let mut service = script(SAYS);
    let mark = service.mark();
    for number in 1..=3 {
        service.signal(Signal::Hup).unwrap();
        service
            .wait_for_line(&mark, format!("job {number}"), LONG)
            .unwrap();
    }
    let third = Banner::matching(r"job \d").times(3);
    assert_eq!(service.wait_for_line(&mark, third, LONG).unwrap(), "job 3 done");
}

#[test]
fn a_line_is_absent() {
    let service = script("echo up; echo 'ERROR: it broke'; exec sleep 60");
    let mark = service.mark();
    service.logs_since(&mark).matching("PANIC").assert_none();
    service.wait_for_line(&Mark::default(), "ERROR", LONG).unwrap();
    let text = panic_of(|| service.logs().matching("^ERROR").assert_none());
    assert_eq!(text, "a line matches `^ERROR`:\n  | ERROR: it broke");
}

#[test]
fn a_line_is_absent_with_exceptions() {
    let service =
        script("echo 'ERROR: client gone'; echo 'ERROR: disk'; echo 'ERROR: fan'; echo up; exec sleep 60");
    let errors = service.logs().matching("ERROR").except("client gone");
    let text = panic_of(|| errors.assert_none());
    assert_eq!(text, "2 lines match `ERROR`:\n  | ERROR: disk\n  | ERROR: fan");
    errors.except("disk|fan").assert_none();
}

#[test]
fn captures_a_value() {
    let service =
        Executor::builder("echo 'at 127.0.0.1:80, key k3y'; sleep 0.05; echo 'token t0'; exec sleep 60")
            .shell(true)
            .wait_for(Banner::matching(r"at (?<where>\S+), key (?<key>\w+)"))
            .start()
            .unwrap();
    assert_eq!(service.captured("key"), Some("k3y"));
    assert_eq!(service.captured("where"), Some("127.0.0.1:80"));
    assert_eq!(service.captured("other"), None);
    let line = service
        .wait_for_line(&Mark::default(), r"token (?<token>\w+)", LONG)
        .unwrap();
    assert_eq!(line.get("token"), Some("t0"));
    assert_eq!(line.get("key"), None);
}

#[test]
fn one_stream_only() {
    let service = script("echo 'same line'; echo 'same line' >&2; echo up; exec sleep 60");
    let mark = Mark::default();
    let wait = |banner: Banner| service.wait_for_line(&mark, banner, LONG).unwrap();
    assert_eq!(wait(Banner::matching("same").stderr()), "same line");
    assert_eq!(wait(Banner::matching("same").stdout()), "same line");
    let only_out = Banner::matching("up").stderr();
    let error = service
        .wait_for_line(&mark, only_out, Duration::from_millis(100))
        .unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
}

#[test]
fn a_log_file_is_a_source() {
    let service = Executor::builder(
        "echo 'in the file' > {dir}/app.log; echo up; \
         until [ -e {dir}/go ]; do sleep 0.01; done; mv {dir}/app.log {dir}/app.log.1; \
         echo 'in the next file, key k' > {dir}/app.log; exec sleep 60",
    )
    .shell(true)
    .log_file("{dir}/app.log")
    .wait_for(Banner::matching("in the file"))
    .start()
    .unwrap();
    fs::write(service.dir().join("go"), "").unwrap();
    let line = service
        .wait_for_line(&Mark::default(), r"next file, key (?<key>\w)", LONG)
        .unwrap();
    assert_eq!(line.get("key"), Some("k"));
    assert_eq!(service.logs().file("app.log"), "in the next file, key k\n");
    assert_eq!(service.logs().matching("in the next file").len(), 1);
    assert_eq!(service.logs().stdout(), "up\n");
}

#[test]
fn a_timeout_reports_the_pattern_and_the_output() {
    let service = script("echo 'last words'; echo up; exec sleep 60");
    let mark = service.mark();
    let error = service
        .wait_for_line(&mark, "never", Duration::from_millis(50))
        .unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::Timeout { .. }), "{text}");
    assert!(
        text.contains("before it printed a line that matches `never`"),
        "{text}"
    );
    assert!(text.contains("| last words"), "{text}");
}

#[test]
fn a_shared_service_has_lines() {
    static SHARED: Shared<OutputExecutor> =
        Shared::new(|| recipe("echo up; sleep 0.05; echo more; exec sleep 60").start());
    let service: &OutputExecutor = Shared::get(&SHARED);
    let mark = Mark::default();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| service.wait_for_line(&mark, "more", LONG).unwrap());
        }
    });
}

#[test]
fn a_mark_holds_over_a_restart() {
    let mut service = script("echo start; echo up; exec sleep 60");
    let mark = service.mark();
    service.restart().unwrap();
    service.wait_for_line(&mark, "^start$", LONG).unwrap();
    assert_eq!(service.logs_since(&mark).matching("^start$").len(), 1);
    assert_eq!(service.logs().matching("^start$").len(), 2);
}

#[test]
fn a_dead_service_has_said_it() {
    let mut service = script("echo up; echo 'last words'; exit 3");
    let mark = Mark::default();
    service.wait(LONG).unwrap();
    assert_eq!(service.wait_for_line(&mark, "last", LONG).unwrap(), "last words");
    let began = Instant::now();
    match service.wait_for_line(&mark, "never", LONG) {
        Err(Error::Exited { status, .. }) => assert_eq!(status.code(), Some(3)),
        other => panic!("{other:?}"),
    }
    assert!(began.elapsed() < LONG / 2, "nobody waits for a dead service");
    service.stop().unwrap_err();
    assert_eq!(service.wait_for_line(&mark, "last", LONG).unwrap(), "last words");
    assert!(matches!(
        service.wait_for_line(&mark, "never", LONG),
        Err(Error::Exited { .. })
    ));
    let never_started = recipe("echo up").build().unwrap();
    assert!(matches!(
        never_started.wait_for_line(&mark, "never", LONG),
        Err(Error::NotRunning { .. })
    ));
}

// -------------------------------------------------------------------------------------------------

fn panic_of(closure: impl FnOnce()) -> String {
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(closure)).unwrap_err();
    panic.downcast_ref::<String>().cloned().unwrap_or_default()
}

/// Waits `rounds` times for the last line of a service that ends right after printing it.
fn last_words(rounds: u32, text: &str) {
    for round in 0..rounds {
        let mut service: SimpleExecutor = Executor::builder(text).shell(true).build().unwrap();
        let mark = service.mark();
        service.start().unwrap();
        let line = service.wait_for_line(&mark, "last words$", LONG);
        let line = line.unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert_eq!(line, "these are the last words");
    }
}

#[test]
fn the_last_words_of_a_service_that_ends_are_not_missed() {
    last_words(100, "echo these are the last words");
    last_words(100, "printf 'these are the last words'; exit 1");
}

#[test]
#[ignore = "long: ten thousand services"]
fn the_last_words_of_ten_thousand_services_are_not_missed() {
    last_words(5_000, "echo these are the last words");
    last_words(5_000, "printf 'these are the last words'; exit 1");
}

#[test]
fn a_wait_is_not_satisfied_by_a_line_that_an_earlier_wait_has_found() {
    let mut service = script("trap 'sleep 0.05; echo reloaded' HUP; echo up; while :; do sleep 0.01; done");
    for number in 1..=3 {
        service.signal(Signal::Hup).unwrap();
        service.wait_until(Banner::matching("^reloaded$"), LONG).unwrap();
        let seen = service.logs().stdout().matches("reloaded").count();
        assert_eq!(seen, number, "an older line satisfied the wait");
    }
}

#[test]
fn a_banner_counts_lines_from_its_mark_on() {
    let mut service = script("trap 'echo reloaded' HUP; echo up; while :; do sleep 0.01; done");
    let first = service.mark();
    service.signal(Signal::Hup).unwrap();
    service
        .wait_until(Banner::matching("reloaded").since(&first), LONG)
        .unwrap();
    // The mark has not moved, so the same line counts again.
    service
        .wait_until(Banner::matching("reloaded").since(&first), LONG)
        .unwrap();
    let later = Banner::matching("reloaded").since(&service.mark());
    let error = service.wait_until(later, Duration::from_millis(50)).unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
}

#[test]
fn a_pattern_that_makes_no_sense_is_refused_at_once() {
    let service = script("echo up; exec sleep 60");
    let error = service.wait_for_line(&service.mark(), "(open", LONG).unwrap_err();
    assert!(matches!(error, Error::InvalidReadiness { .. }), "{error}");
    let text = panic_of(|| drop(service.logs().matching("(open")));
    assert!(text.starts_with("invalid pattern `(open`: "), "{text}");
}

#[test]
fn a_line_of_a_log_file_makes_a_service_ready() {
    let service = Executor::builder("sleep 0.05; echo 'ready, key k' >> {dir}/app.log; exec sleep 60")
        .shell(true)
        .log_file("{dir}/app.log")
        .wait_for(Banner::matching(r"ready, key (?<key>\w)"))
        .start()
        .unwrap();
    assert_eq!(service.captured("key"), Some("k"));
    let path = service.dir().join("app.log");
    assert_eq!(fs::read_to_string(path).unwrap(), "ready, key k\n");
}

#[test]
fn a_mark_of_another_service_is_refused() {
    let (mut service, other) = (script(SAYS), script("echo up; exec sleep 60"));
    let mark = other.mark();
    let reason = "the mark belongs to another service: use one from `mark()` of this service";
    let banner = || Banner::matching("up");
    for error in [
        service.wait_for_line(&mark, "up", LONG).unwrap_err(),
        service.wait_until(banner().since(&mark), LONG).unwrap_err(),
    ] {
        let is_it = matches!(&error, Error::InvalidReadiness { reason: it, .. } if it == reason);
        assert!(is_it, "{error}");
    }
    let panics = std::panic::AssertUnwindSafe(|| service.logs_since(&mark));
    let panic = std::panic::catch_unwind(panics).expect_err("it panics");
    assert!(panic.downcast_ref::<String>().unwrap().ends_with(reason));
    // The default mark is the beginning of the log, and is valid for every service. A mark stays
    // valid after a restart.
    let mark = service.mark();
    service.restart().unwrap();
    service.wait_for_line(&mark, "up", LONG).unwrap();
    service.wait_for_line(&Mark::default(), "up", LONG).unwrap();
}
