//! Looking on while tests run: `MIRAKURU_LIVE` and `MIRAKURU_KEEP`.

use std::env;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

use crate::common::{LONG, Scratch, alive, test_name, wait_until};
use mirakuru::{Banner, Executor};

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

/// The harness captures the output of the test, and not that of the services.
#[test]
fn what_services_print_is_shown_as_it_comes() {
    let run = |live: &str| {
        let scratch = Scratch::new();
        let output = Command::new(env::current_exe().unwrap())
            .args(["--ignored", "--exact", test_name!(two_services_talk)])
            .env("TMPDIR", scratch.path())
            .env("MIRAKURU_LIVE", live)
            .env_remove("NEXTEST")
            .output()
            .unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
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

/// The runner is a shell, which lives until it has read a line.
#[test]
fn services_of_a_failed_test_stay_until_the_runner_ends() {
    let scratch = Scratch::new();
    let script =
        "MIRAKURU_SESSION_ID=keep MIRAKURU_KEEP=1 \"$@\"; echo \"the test has ended\" >&2; read line";
    let mut runner = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(env::current_exe().unwrap())
        .args(["--ignored", "--exact", test_name!(fails_beside_a_service)])
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
    assert!(field("addresses:").starts_with("127.0.0.1:"), "{text}");
    assert!(std::path::Path::new(&field("directory:")).is_dir(), "{text}");
    assert!(text.contains("it stays until the runner ends"), "{text}");
    assert!(alive(pid), "{text}");
    runner.stdin.take().unwrap().write_all(b"\n").unwrap();
    runner.wait().unwrap();
    assert!(
        wait_until(|| !alive(pid), LONG),
        "the service has outlived its runner"
    );
    stderr.read_to_string(&mut text).unwrap();
}
