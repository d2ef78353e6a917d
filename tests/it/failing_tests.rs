//! A failing test shows the output of its services: under each harness, on a terminal, and for a
//! shared service.

use std::env;
use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{LONG, ODD, Scratch, odd, require, test_name, victim, wait_until};
use crate::reports::normal;
use mirakuru::{Banner, Executor, Shared, SimpleExecutor};

static SHARED: Shared<SimpleExecutor> = Shared::new(|| {
    Executor::builder(
        "echo started; while read line; do echo \"heard $line\"; done < {dir}/in; exec sleep 60",
    )
    .shell(true)
    .build()
    .and_then(|mut service| {
        let fifo = service.dir().join("in");
        assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        service.start()?;
        service.wait_until(Banner::matching("started"), LONG)?;
        Ok(service)
    })
});

/// Makes the shared service print a line, and waits until it is in the log.
fn hears(line: &str) {
    let service = Shared::get(&SHARED);
    use std::sync::Mutex;
    static PIPE: Mutex<Option<fs::File>> = Mutex::new(None);
    let mut pipe = PIPE.lock().unwrap_or_else(|e| e.into_inner());
    let pipe = pipe.get_or_insert_with(|| {
        fs::OpenOptions::new()
            .write(true)
            .open(service.dir().join("in"))
            .unwrap()
    });
    writeln!(pipe, "{line}").unwrap();
    let heard = format!("heard {line}\n");
    assert!(wait_until(|| service.logs().stdout().contains(&heard), LONG));
}

/// Failing tests. The tests below run them in separate processes.
mod failing {
    use super::*;

    fn service() -> SimpleExecutor {
        let mut service = odd(["--line", "the last words", "--ready-line", "up"])
            .start()
            .unwrap();
        service.wait_until(Banner::matching("^up$"), LONG).unwrap();
        service
    }

    #[test]
    #[ignore = "fails, for another test"]
    pub(super) fn a_panic() {
        let _service = service();
        panic!("as it should");
    }

    #[mirakuru::fixture(banner = "^up$", cmd = [ODD, "--line", "the last words", "--ready-line", "up"])]
    #[test]
    #[ignore = "fails, for another test"]
    pub(super) fn an_err(_service: &mirakuru::OutputExecutor) -> Result<(), String> {
        Err("as it should".to_owned())
    }

    #[mirakuru::fixture(banner = "^up$", cmd = [ODD, "--line", "the last words", "--ready-line", "up"])]
    #[tokio::test]
    #[ignore = "fails, for another test"]
    pub(super) async fn an_async_panic(_service: mirakuru::OutputExecutor) {
        // Makes the runtime poll the test again before the panic.
        tokio::time::sleep(Duration::from_millis(10)).await;
        panic!("as it should");
    }

    #[mirakuru::fixture(banner = "^up$", cmd = [ODD, "--line", "the last words", "--ready-line", "up"])]
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "fails, for another test"]
    pub(super) async fn an_async_panic_beside_workers(_service: &mirakuru::OutputExecutor) {
        // Makes the runtime poll the test again before the panic.
        tokio::time::sleep(Duration::from_millis(10)).await;
        panic!("as it should");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "fails, for another test"]
    pub(super) async fn a_panic_in_a_task() {
        let task = tokio::spawn(async {
            let _service = service();
            // Makes the runtime poll the test again before the panic.
            tokio::time::sleep(Duration::from_millis(10)).await;
            panic!("as it should");
        });
        task.await.unwrap();
    }

    #[test]
    #[ignore = "fails, for another test"]
    pub(super) fn shared_1_passes() {
        hears("from the one that passes");
    }

    #[test]
    #[ignore = "fails, for another test"]
    pub(super) fn shared_2_fails() {
        hears("from the one that fails");
        panic!("as it should");
    }

    #[test]
    #[ignore = "fails, for another test"]
    pub(super) fn shared_3_does_not_use_it() {
        panic!("as it should");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "fails, for another test"]
    pub(super) async fn shared_4_fails_in_a_task() {
        let task = tokio::spawn(async {
            hears("from the task");
            panic!("as it should");
        });
        task.await.unwrap();
    }

    #[mirakuru::fixture(cmd = "sleep 60")]
    #[test]
    #[ignore = "fails, for another test"]
    pub(super) fn shared_5_returns_an_err() -> Result<(), String> {
        hears("from the one that returns an error");
        Err("as it should".to_owned())
    }
}

/// Runs failing tests one after the other. The harness captures their output, as it does by
/// default. Returns the standard output and the standard error of the harness.
fn run_failing(filter: &[&str]) -> (String, String) {
    let scratch = Scratch::new();
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args(filter)
        .args(["--ignored", "--test-threads=1"])
        .env("TMPDIR", scratch.path())
        .env_remove("RUST_BACKTRACE");
    let output = command.output().unwrap();
    (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

/// The section of one test in the harness's output.
fn section<'a>(output: &'a str, test: &str) -> &'a str {
    let begin = format!("---- {test} stdout ----");
    let from = output
        .find(&begin)
        .unwrap_or_else(|| panic!("no section of {test} in\n{output}"));
    let rest = &output[from + begin.len()..];
    let end = rest
        .find("\n---- ")
        .or_else(|| rest.find("\nfailures:"))
        .unwrap_or(rest.len());
    &rest[..end]
}

#[test]
#[ignore = "a part of another test"]
fn starts_in_no_tmpdir() {
    println!("{}", Executor::builder("sleep 60").start().unwrap_err());
}

#[test]
fn a_missing_temp_dir_is_reported_with_its_remedy() {
    let output = Command::new(env::current_exe().unwrap())
        .args([
            "--ignored",
            "--exact",
            "--nocapture",
            test_name!(starts_in_no_tmpdir),
        ])
        .env("TMPDIR", "/no/such/dir")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains(
            "no such file or directory; create that directory, or set TMPDIR to one that you can write to"
        ),
        "{text}"
    );
}

/// The output names the log and the error in the forms that GitLab and GitHub recognise.
#[test]
fn a_failing_test_tells_a_ci_server_where_the_log_is() {
    let run = |variable: &str| {
        let scratch = Scratch::new();
        let output = Command::new(env::current_exe().unwrap())
            .args(["--exact", test_name!(failing::a_panic), "--ignored"])
            .env("TMPDIR", scratch.path())
            .env_remove("GITHUB_ACTIONS")
            .env_remove("GITLAB_CI")
            .env(variable, "true")
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let text = run("GITLAB_CI");
    let line = text.lines().find(|line| line.starts_with("[[ATTACHMENT|"));
    let path = line.and_then(|line| line.strip_prefix("[[ATTACHMENT|")?.strip_suffix("]]"));
    assert!(path.is_some_and(|path| path.ends_with("/log")), "{text}");
    assert!(!text.contains("::error"), "{text}");
    let text = run("GITHUB_ACTIONS");
    let error = text.lines().find(|line| line.starts_with("::error title="));
    assert!(
        error.is_some_and(|line| line.contains("the last words")),
        "{text}"
    );
    assert!(!text.contains("[[ATTACHMENT"), "{text}");
}

#[test]
fn a_failing_test_shows_the_end_of_its_services_log() {
    for test in [
        test_name!(failing::a_panic),
        test_name!(failing::an_err),
        test_name!(failing::an_async_panic),
        test_name!(failing::an_async_panic_beside_workers),
        test_name!(failing::a_panic_in_a_task),
    ] {
        let (stdout, stderr) = run_failing(&["--exact", test]);
        let text = normal(section(&stdout, test));
        println!("{text}");
        let expected = format!(
            "what `{ODD} --line 'the last words' --ready-line up` printed:\n  \
               output:     2 lines, in [log]\n    \
                 | the last words\n    \
                 | up"
        );
        assert!(text.contains(&expected), "{test}:\n{text}");
        assert_eq!(
            text.matches("the last words' --ready-line up` printed").count(),
            1,
            "{test}:\n{text}"
        );
        assert!(!stderr.contains("the last words"), "past the capture: {stderr}");
        // The output names the log file, which is kept.
        let path = section(&stdout, test)
            .split("lines, in ")
            .nth(1)
            .unwrap()
            .lines()
            .next()
            .unwrap()
            .to_owned();
        assert!(path.ends_with("/log"), "{path}");
    }
}

#[test]
fn a_failing_test_shows_what_a_shared_service_printed_meanwhile() {
    let (stdout, _) = run_failing(&[
        "--exact",
        test_name!(failing::shared_1_passes),
        test_name!(failing::shared_2_fails),
        test_name!(failing::shared_3_does_not_use_it),
        test_name!(failing::shared_4_fails_in_a_task),
        test_name!(failing::shared_5_returns_an_err),
    ]);
    let printed = "` printed during this test:\n";
    let lines = |text: &str| -> Vec<String> {
        text.lines()
            .filter_map(|line| line.strip_prefix("    | ").map(str::to_owned))
            .collect()
    };
    let fails = section(&stdout, test_name!(failing::shared_2_fails));
    println!("{fails}");
    assert!(fails.contains(printed), "{stdout}");
    assert_eq!(lines(fails), ["heard from the one that fails"]);
    assert!(
        !section(&stdout, test_name!(failing::shared_3_does_not_use_it)).contains("printed"),
        "{stdout}"
    );
    let task = section(&stdout, test_name!(failing::shared_4_fails_in_a_task));
    assert_eq!(lines(task), ["heard from the task"], "{stdout}");
    let err = section(&stdout, test_name!(failing::shared_5_returns_an_err));
    assert_eq!(
        lines(err),
        ["heard from the one that returns an error"],
        "{stdout}"
    );
    assert!(stdout.contains("shared_1_passes ... ok"), "{stdout}");
}

/// nextest runs each test in a process of its own, and captures its output from outside.
#[test]
fn nextest_shows_it_too() {
    let scratch = Scratch::new();
    for test in [test_name!(failing::a_panic), test_name!(failing::shared_2_fails)] {
        // nextest sets this variable for each test, and passes `--nocapture`.
        let output = victim(test, scratch.path()).env("NEXTEST", "1").output().unwrap();
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(!output.status.success());
        assert!(
            text.contains("    | the last words") || text.contains("    | heard from the one that fails"),
            "{text}"
        );
        assert!(!text.contains('\u{1b}'), "no colours in a pipe: {text}");
    }
}

/// A use of a `Shared` should cost less than 1 µs in an optimised build. The bound here allows for
/// a debug build on a busy machine.
#[test]
fn the_use_of_a_shared_service_costs_next_to_nothing() {
    let _ = Shared::get(&SHARED);
    let begin = Instant::now();
    for _ in 0..100_000 {
        let _ = std::hint::black_box(Shared::get(&SHARED));
    }
    let each = begin.elapsed() / 100_000;
    println!("{each:?} a use");
    assert!(each < Duration::from_micros(20), "{each:?}");
}

#[test]
fn colours_are_for_terminals() {
    let Some(script) = require("script") else {
        return;
    };
    let scratch = Scratch::new();
    let exe = env::current_exe().unwrap();
    let run = |no_color: Option<&str>| {
        let mut command = Command::new(&script);
        command
            .args([
                "-qec",
                &format!(
                    "{} --exact {} --ignored",
                    exe.display(),
                    test_name!(failing::a_panic)
                ),
                "/dev/null",
            ])
            .env("TMPDIR", scratch.path())
            .env("TERM", "xterm")
            .env_remove("NO_COLOR")
            .stdin(Stdio::null());
        if let Some(value) = no_color {
            command.env("NO_COLOR", value);
        }
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("the last words"), "{text}");
        text.contains("\u{1b}[1mwhat `")
    };
    assert!(run(None) && run(Some("")));
    assert!(!run(Some("1")));
}
