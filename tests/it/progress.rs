//! A slow start, or a long wait for a port, reports its progress.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::thread;

use crate::common::{
    Scratch, VICTIM, captured_victim, fixed_port, odd, require, test_name, victim, victim_dir,
};
use mirakuru::{Banner, Tcp};

#[test]
#[ignore = "a part of another test"]
fn takes_long() {
    if victim_dir().is_none() {
        return;
    }
    let mut service = odd([
        "--line",
        "loading the data",
        "--delay",
        "3500",
        "--ready-line",
        "up",
    ])
    .name("slow")
    .wait_for(Banner::matching("^up$"))
    .start()
    .unwrap();
    service.stop().unwrap();
}

#[test]
fn a_long_start_says_so() {
    let scratch = Scratch::new();
    // The harness captures the test's output, but the progress report is still shown.
    let run = |quiet: &str| {
        let output = captured_victim(test_name!(takes_long), scratch.path())
            .env("MIRAKURU_QUIET", quiet)
            .output()
            .unwrap();
        assert!(output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let (told, quiet) = thread::scope(|scope| {
        let told = scope.spawn(|| run("0"));
        (run("1"), told.join().unwrap())
    });
    let (quiet, told) = (told, quiet);
    println!("{told}");
    let lines: Vec<&str> = told
        .lines()
        .filter(|line| line.starts_with("mirakuru: "))
        .collect();
    let [line] = lines.as_slice() else {
        panic!("once, and then rarely: {told}");
    };
    assert!(line.starts_with("mirakuru: slow is not ready after "), "{line}");
    assert!(
        line.ends_with(" s; awaited: it printed a line that matches `^up$`; its last line: loading the data"),
        "{line}"
    );
    assert!(!quiet.contains("mirakuru: "), "{quiet}");
}

/// On a terminal the progress report is one line, which is overwritten and removed at the end.
#[test]
fn on_a_terminal_progress_is_one_line() {
    let Some(script) = require("script") else {
        return;
    };
    let scratch = Scratch::new();
    let exe = env::current_exe().unwrap();
    let output = Command::new(script)
        .args([
            "-qec",
            &format!("{} --exact {} --ignored", exe.display(), test_name!(takes_long)),
            "/dev/null",
        ])
        .env(VICTIM, scratch.path())
        .env("TERM", "xterm")
        .env_remove("MIRAKURU_QUIET")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let drawn: Vec<&str> = text.split("\r\u{1b}[2K").collect();
    assert!(drawn.len() >= 3, "drawn, and taken away: {text:?}");
    // The first report comes after 2 s, or later on a busy machine.
    let after = drawn[1].strip_prefix("mirakuru: slow is not ready after ");
    let seconds: Option<u32> = after.and_then(|after| after.split_once(" s; awaited: ")?.0.parse().ok());
    assert!(seconds.is_some_and(|seconds| seconds >= 2), "{text:?}");
    assert!(
        drawn[1].chars().count() < 200 && !drawn[1].contains('\n'),
        "{text:?}"
    );
    assert!(
        !drawn[drawn.len() - 1].starts_with("mirakuru: "),
        "taken away: {text:?}"
    );
}

#[test]
#[ignore = "a part of another test"]
fn waits_for_its_port() {
    let Some(dir) = victim_dir() else {
        return;
    };
    let addr = fs::read_to_string(dir.join("addr")).unwrap();
    let mut service = odd(["--listen", &addr])
        .name("second")
        .queue(true)
        .wait_for(Tcp::addr(&addr))
        .start()
        .unwrap();
    service.stop().unwrap();
}

#[test]
fn a_long_wait_for_a_port_says_so() {
    let scratch = Scratch::new();
    let addr = format!("127.0.0.1:{}", fixed_port());
    fs::write(scratch.file("addr"), &addr).unwrap();
    let first = odd(["--listen", &addr])
        .name("first")
        .wait_for(Tcp::addr(&addr))
        .start()
        .unwrap();
    let mut other = victim(test_name!(waits_for_its_port), scratch.path())
        .env_remove("MIRAKURU_QUIET")
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(other.stderr.take().unwrap())
        .lines()
        .map_while(Result::ok);
    let line = lines
        .find(|line| line.starts_with("mirakuru: "))
        .expect("it says that it waits");
    drop(first);
    assert!(other.wait().unwrap().success());
    let port = addr.rsplit(':').next().unwrap();
    assert!(
        line.starts_with(&format!("mirakuru: second has been waiting for port {port} for ")),
        "{line}"
    );
    assert!(
        line.contains("; it is held by first of test process it-"),
        "{line}"
    );
}
