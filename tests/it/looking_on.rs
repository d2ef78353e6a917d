//! Options for watching services while tests run: `MIRAKURU_LIVE` and `MIRAKURU_KEEP`.

use std::env;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

use crate::common::{LONG, Scratch, alive, test_name, wait_until};
use mirakuru::{Banner, Executor, ExecutorBuilder, OutputExecutor};

#[test]
#[ignore = "a part of another test"]
fn two_services_talk() {
    let talk = |name: &str, script: &str| {
        Executor::builder(script)
            .shell(true)
            .name(name)
            .wait_for(Banner::matching("^up$"))
            .start()
            .unwrap()
    };
    let _one = talk("one", "echo first; echo up; exec sleep 60");
    let _two = talk(
        "two",
        "echo 'to stderr' >&2; printf unfinished >&2; echo up; exec sleep 60",
    );
}

/// The harness captures the output of a test, but not the output that `MIRAKURU_LIVE` shows.
#[test]
fn what_services_print_is_shown_as_it_comes() {
    let run = |live: &str| shown(test_name!(two_services_talk), live);
    let text = run("1");
    for line in [
        "one | first",
        "one | up",
        "two | to stderr",
        "two | up",
        "two | unfinished",
    ] {
        assert_eq!(
            text.lines().filter(|shown| *shown == line).count(),
            1,
            "{line} in {text}"
        );
    }
    assert!(!run("0").contains(" | "));
}

/// The standard error of a test with `MIRAKURU_LIVE` set to `live`.
fn shown(test: &str, live: &str) -> String {
    let scratch = Scratch::new();
    let output = Command::new(env::current_exe().unwrap())
        .args(["--ignored", "--exact", test])
        .env("TMPDIR", scratch.path())
        .env("MIRAKURU_LIVE", live)
        .env_remove("NEXTEST")
        .output()
        .unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

/// A service that prints a word and then `up`.
fn says(word: &str) -> ExecutorBuilder<Banner> {
    Executor::builder(format!("echo {word}; echo up; exec sleep 60"))
        .shell(true)
        .wait_for(Banner::matching("^up$"))
}

#[mirakuru::fixture]
struct Talkers {
    #[fixture(says("field"))]
    first: OutputExecutor,
    #[fixture(says("with-a-name").name("own"))]
    second: OutputExecutor,
    #[fixture(mirakuru::cluster(2, |node| says(&format!("of-{}", node.index()))))]
    nodes: mirakuru::Cluster<OutputExecutor>,
}

#[mirakuru::fixture(says("static"), scope = "process")]
static SAYS: OutputExecutor;

#[mirakuru::fixture(says("parameter"))]
#[mirakuru::fixture(Talkers)]
#[test]
#[ignore = "a part of another test"]
fn services_with_names_talk(talks: &OutputExecutor, talkers: &Talkers) {
    assert!(SAYS.is_running() && talks.is_running());
    assert!(talkers.first.is_running() && talkers.second.is_running() && talkers.nodes.len() == 2);
}

#[test]
fn a_shown_line_names_the_field_or_parameter_or_node() {
    let text = shown(test_name!(services_with_names_talk), "1");
    for line in [
        "talks | parameter",
        "talkers.first | field",
        "own | with-a-name",
        "talkers.nodes[1] | of-1",
        "SAYS | static",
    ] {
        assert!(text.lines().any(|shown| shown == line), "{line} in {text}");
    }
}

#[mirakuru::fixture(cmd = "echo up; exec sleep 6001", shell = true, banner = "^up$")]
static SHARED: OutputExecutor;

#[test]
#[ignore = "fails, for another test"]
fn fails_beside_a_shared_service() {
    assert!(!SHARED.is_running(), "as it should");
}

#[test]
#[ignore = "fails, for another test"]
fn fails_beside_a_service() {
    let _service = Executor::builder("echo up; exec sleep 6000")
        .shell(true)
        .env("PORT", "{port}")
        .wait_for(Banner::matching("^up$"))
        .start()
        .unwrap();
    panic!("as it should");
}

#[test]
fn services_of_a_failed_test_stay_until_the_runner_ends() {
    assert_stays(
        test_name!(fails_beside_a_service),
        "the test has failed; its service keeps running until the runner ends",
    );
}

#[test]
fn a_shared_service_of_a_failed_test_is_named_as_well() {
    assert_stays(
        test_name!(fails_beside_a_shared_service),
        "the test has failed; its shared service keeps running until the runner ends",
    );
}

/// Runs a failing test with a shell as its runner. The test's services must keep running until the
/// shell exits, after it has read a line.
#[track_caller]
fn assert_stays(test: &str, said: &str) {
    let scratch = Scratch::new();
    let script =
        "MIRAKURU_SESSION_ID=keep MIRAKURU_KEEP=1 \"$@\"; echo \"the test has ended\" >&2; read line";
    let mut runner = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(env::current_exe().unwrap())
        .args(["--ignored", "--exact", test])
        .env("TMPDIR", scratch.path())
        .env_remove("MIRAKURU_SESSION_ID")
        .env_remove("NEXTEST")
        .env_remove("NEXTEST_RUN_ID")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(runner.stderr.take().unwrap());
    let mut text = String::new();
    while !text.ends_with("the test has ended\n") {
        assert_ne!(stderr.read_line(&mut text).unwrap(), 0, "{text}");
    }
    let field = |label: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(label));
        line.unwrap_or_else(|| panic!("no {label} in {text}"))
            .trim()
            .to_owned()
    };
    let pid: u32 = field("debugger:").rsplit(' ').next().unwrap().parse().unwrap();
    let has_port = !test.contains("shared");
    assert!(
        !has_port || field("addresses:").starts_with("127.0.0.1:"),
        "{text}"
    );
    assert!(std::path::Path::new(&field("directory:")).is_dir(), "{text}");
    assert_eq!(text.matches(said).count(), 1, "{text}");
    assert!(alive(pid), "{text}");
    runner.stdin.take().unwrap().write_all(b"\n").unwrap();
    runner.wait().unwrap();
    assert!(
        wait_until(|| !alive(pid), LONG),
        "the service has outlived its runner"
    );
    stderr.read_to_string(&mut text).unwrap();
}
