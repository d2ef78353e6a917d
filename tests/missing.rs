//! Tests of servers that are not installed are skipped with a message, or fail. The end of the run
//! reports how many were skipped.
//!
//! This is a separate binary, because it runs cargo and nextest and must not run twice at the same
//! time.

mod common;
#[path = "common/fresh.rs"]
mod fresh;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};

use common::{FRESH_TARGET, Scratch, require};

/// A crate with thirty tests that need a server. For twenty of them the server is missing. Further
/// tests are `#[ignore]`d, and run one by one.
fn suite() -> (MutexGuard<'static, ()>, PathBuf) {
    // The tests run one at a time, because all of them write the same list of skipped tests.
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let test = |n: usize, attribute: &str, rest: &str| {
        format!("#[mirakuru::fixture({attribute})]\n#[test]\nfn needs_{n}() {rest}\n")
    };
    let mut tests = String::from("use mirakuru::*;\n");
    for n in 0..10 {
        tests += &test(n, "cmd = \"sleep 60\"", "{}");
        tests += &test(
            n + 10,
            "cmd = \"mk-no-such-server --port 1\", optional",
            "{ unreachable!() }",
        );
        let returns = "-> Result<(), String> { Err(\"it has run\".into()) }";
        tests += &test(
            n + 20,
            "presets::memcached().program(\"/mk/no-such-memcached\").optional()",
            returns,
        );
    }
    tests += r#"
#[mirakuru::fixture(cmd = "mk-no-such-server", optional)]
static SERVER: SimpleExecutor;
#[mirakuru::fixture(SERVER)]
#[test]
#[ignore]
fn shared_in_an_attribute() { unreachable!() }
#[test]
#[ignore]
fn shared_in_the_body() { println!("{}", SERVER.pid()); }
#[mirakuru::fixture(cmd = "mk-no-such-server", optional)]
#[test]
#[ignore]
#[should_panic(expected = "out of stock")]
fn should_panic() {}
#[mirakuru::fixture(cmd = "mk-no-such-server", optional)]
#[test]
#[ignore]
#[should_panic]
fn should_panic_anyhow() {}
#[mirakuru::fixture(cmd = "mk-no-such-server")]
#[test]
#[ignore]
fn not_optional() { unreachable!() }
#[mirakuru::fixture(cmd = "./mk-no-such-server", optional)]
#[test]
#[ignore]
fn of_the_project() {}
#[mirakuru::fixture(cmd = ["sh", "-c", "mk-no-such-server; exit 1"], tcp = "127.0.0.1:{port}", optional)]
#[test]
#[ignore]
fn there_and_does_not_start() {}
#[mirakuru::fixture(presets::redis())]
#[test]
#[ignore]
fn chosen(redis: &presets::Redis) { println!("runs {}", redis.command()); }
#[mirakuru::fixture(presets::redis(), optional)]
#[test]
#[ignore]
fn chosen_and_optional() {}
#[mirakuru::fixture(presets::postgres().version(7), optional)]
#[test]
#[ignore]
fn too_old() { unreachable!() }
#[mirakuru::fixture(cmd = "sleep 60", optional)]
#[test]
#[ignore]
fn on_any_kernel() { println!("runs on this kernel"); }
#[mirakuru::fixture(cmd = "{odd} --listen [::1]:{port}", tcp = "[::1]:{port}", optional)]
#[test]
#[ignore]
fn on_ipv6() { println!("runs on IPv6"); }
"#
    .replace("{odd}", common::ODD)
    .as_str();
    let manifest = "[dev-dependencies]\nmirakuru = { path = \"{root}\" }\n";
    let dir = fresh::package(
        "missing",
        manifest,
        &[("src/lib.rs", ""), ("tests/needs.rs", &tests)],
    );
    (alone, dir)
}

/// The arguments that run one ignored test of the suite.
fn ignored(test: &str) -> [&str; 8] {
    let show = "--show-output";
    [
        "test",
        "--test",
        "needs",
        "--",
        "--ignored",
        show,
        "--exact",
        test,
    ]
}

fn cargo(dir: &Path, scratch: &Scratch, args: &[&str]) -> Command {
    let mut command = fresh::cargo(dir);
    command
        .args(args)
        .env_remove("CI")
        .env_remove("XDG_RUNTIME_DIR")
        .env("TMPDIR", scratch.path());
    command
}

/// Runs a command, which must succeed, on a pseudo-terminal. Returns its output.
fn on_a_terminal(command: &Command) -> String {
    let script = "import os, pty, sys\nsys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";
    let mut terminal = Command::new("python3");
    terminal
        .args(["-c", script])
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => terminal.env(name, value),
            None => terminal.env_remove(name),
        };
    }
    terminal.current_dir(command.get_current_dir().expect("the package"));
    let output = terminal.output().expect("python3");
    assert!(output.status.success(), "{}", fresh::text(&output));
    fresh::text(&output)
}

/// Asserts that the output has the expected summary, and only once.
#[track_caller]
fn assert_summary(output: &str) {
    let text = output.replace('\r', "");
    let summary = "mirakuru: 20 tests were skipped, because something is not on this machine:\n";
    assert_eq!(text.matches(summary).count(), 1, "{text}");
    let rest = text.split(summary).nth(1).expect("it is there");
    let causes: Vec<&str> = rest.lines().take(2).collect();
    let expected = ["  10 for /mk/no-such-memcached", "  10 for mk-no-such-server"];
    assert_eq!(causes, expected, "{text}");
    assert!(rest.contains("(the list is in "), "{text}");
    assert!(
        !text.contains("Terminated"),
        "a word of the writer's shell: {text}"
    );
}

#[test]
fn what_is_missing_is_skipped_aloud() {
    let ((_alone, dir), scratch) = (suite(), Scratch::new());
    let with = |args: &[&str], name: &str, value: &str| -> Output {
        let mut command = cargo(&dir, &scratch, &[&["test", "--test", "needs"], args].concat());
        command.env(name, value).output().expect("cargo")
    };
    let text = |output: &Output| fresh::text(output);

    // The summary appears on standard error, although the harness captures output.
    let output = with(&[], "MK", "");
    assert!(output.status.success(), "{}", text(&output));
    assert!(
        text(&output).contains("30 passed; 0 failed; 12 ignored"),
        "{}",
        text(&output)
    );
    assert_summary(&String::from_utf8_lossy(&output.stderr));
    let list = Path::new(FRESH_TARGET).join("mirakuru/skipped.tsv");
    let list = fs::read_to_string(list).expect("the list for programs");
    let lines: Vec<&str> = list.lines().collect();
    assert_eq!(lines.len(), 21, "{list}");
    assert!(lines.contains(&"needs needs_13\tmk-no-such-server\t"), "{list}");

    if require("python3").is_some() {
        assert_summary(&on_a_terminal(&cargo(
            &dir,
            &scratch,
            &["test", "--test", "needs"],
        )));
    }

    // The skip is also in the output of the test itself.
    let output = with(&["--", "--exact", "needs_10", "--show-output"], "MK", "");
    let said = "mirakuru: this test is skipped, because mk-no-such-server is not on this machine";
    assert!(text(&output).contains(said), "{}", text(&output));

    for (name, value) in [("CI", "true"), ("MIRAKURU_MISSING", "fail")] {
        let output = with(&[], name, value);
        assert!(!output.status.success());
        assert!(
            text(&output).contains("10 passed; 20 failed"),
            "{}",
            text(&output)
        );
        assert!(
            !text(&output).contains("skipped, because something"),
            "{}",
            text(&output)
        );
        let why = format!("(it is not skipped, because {name} is `{value}`)");
        assert!(text(&output).contains(&why), "{}", text(&output));
    }
}

#[test]
fn a_variable_picks_another_installation_of_a_preset() {
    let Some(server) = require("redis-server") else {
        return;
    };
    let ((_alone, dir), scratch) = (suite(), Scratch::new());
    let other = scratch.path().join("redis-7");
    fs::create_dir_all(other.join("bin")).expect("a writable directory");
    std::os::unix::fs::symlink(server, other.join("bin/redis-server")).expect("a writable directory");
    let run = |program: &Path| {
        let mut command = cargo(&dir, &scratch, &ignored("chosen"));
        command.env("MIRAKURU_REDIS_PROGRAM", program);
        fresh::text(&command.output().expect("cargo"))
    };
    let program = other.join("bin/redis-server");
    for given in [&other, &program] {
        let output = run(given);
        assert!(
            output.contains(&format!("runs {}", program.display())),
            "{output}"
        );
    }
    let named = "failed to execute `/mk/no-such-directory`, which MIRAKURU_REDIS_PROGRAM names";
    let output = run(Path::new("/mk/no-such-directory"));
    assert!(output.contains(named), "{output}");
    // If the user names a program, it is not optional, even if the recipe says so.
    let mut command = cargo(&dir, &scratch, &ignored("chosen_and_optional"));
    command.envs([
        ("MIRAKURU_REDIS_PROGRAM", "/mk/no-such-directory"),
        ("MIRAKURU_MISSING", "skip"),
    ]);
    let output = fresh::text(&command.output().expect("cargo"));
    assert!(
        output.contains(named) && !output.contains("is skipped"),
        "{output}"
    );
    // `true` can be executed, but is not the expected server.
    let output = run(Path::new("true"));
    assert!(
        output.contains("check MIRAKURU_REDIS_PROGRAM, which names this program"),
        "{output}"
    );
}

#[test]
fn some_are_skipped_and_others_never() {
    let ((_alone, dir), scratch) = (suite(), Scratch::new());
    let run = |missing: &str| {
        let args = [
            "test",
            "--test",
            "needs",
            "--no-fail-fast",
            "--",
            "--ignored",
            "--show-output",
        ];
        let mut command = cargo(&dir, &scratch, &args);
        fresh::text(&command.env("MIRAKURU_MISSING", missing).output().expect("cargo"))
    };
    let output = run("");
    for (test, outcome) in [
        ("shared_in_an_attribute", "ok"),
        ("shared_in_the_body", "FAILED"),
        ("should_panic - should panic", "ok"),
        ("should_panic_anyhow - should panic", "ok"),
        ("not_optional", "FAILED"),
        ("of_the_project", "FAILED"),
        ("there_and_does_not_start", "FAILED"),
        ("too_old", "ok"),
    ] {
        assert!(
            output.contains(&format!("test {test} ... {outcome}")),
            "{test}: {output}"
        );
    }
    assert!(
        output.contains("name it in an attribute on the test, `#[mirakuru::fixture(NAME)]`"),
        "{output}"
    );
    assert!(output.contains("PostgreSQL 7 is not on this machine"), "{output}");
    assert!(
        !output.contains("()"),
        "nothing is expected in that panic: {output}"
    );
    let output = run("skip");
    assert!(output.contains("test not_optional ... ok"), "{output}");
    assert!(
        output.contains("test there_and_does_not_start ... FAILED"),
        "{output}"
    );
}

/// Runs one ignored test under a program that hides a part of the machine.
fn under(dir: &Path, scratch: &Scratch, wrapper: &[&str], test: &str) -> Output {
    let cargo = cargo(dir, scratch, &ignored(test));
    let mut command = Command::new(wrapper[0]);
    command
        .args(&wrapper[1..])
        .arg(cargo.get_program())
        .args(cargo.get_args());
    for (name, value) in cargo.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.current_dir(dir).output().expect("the wrapper")
}

#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end does without that system call"
)]
fn a_kernel_without_a_needed_system_call_is_missing_it() {
    if require("strace").is_none() {
        return;
    }
    let ((_alone, dir), scratch) = (suite(), Scratch::new());
    let trace = [
        "strace",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        "trace=pidfd_open",
        "-e",
    ];
    for (error, outcome) in [("ENOSYS", "ok"), ("EPERM", "ok"), ("EMFILE", "FAILED")] {
        let inject = format!("inject=pidfd_open:error={error}");
        let wrapper = [&trace[..], &[&inject]].concat();
        let output = fresh::text(&under(&dir, &scratch, &wrapper, "on_any_kernel"));
        assert!(
            output.contains(&format!("test on_any_kernel ... {outcome}")),
            "{error}: {output}"
        );
        let said = "this test is skipped, because the kernel's `pidfd_open` is not on this machine";
        assert_eq!(output.contains(said), outcome == "ok", "{error}: {output}");
        assert!(!output.contains("runs on this kernel"), "{error}: {output}");
    }
}

#[test]
fn a_machine_without_ipv6_is_missing_it() {
    let ((_alone, dir), scratch) = (suite(), Scratch::new());
    // In a new network namespace the loopback device is down, so it has no IPv6 address.
    let wrapper = ["unshare", "--map-root-user", "--net"];
    if !Command::new(wrapper[0])
        .args(&wrapper[1..])
        .arg("true")
        .status()
        .is_ok_and(|status| status.success())
    {
        common::say("\n*** a_machine_without_ipv6_is_missing_it: SKIPPED, no network of its own here ***\n");
        return;
    }
    let output = fresh::text(&under(&dir, &scratch, &wrapper, "on_ipv6"));
    let said = "this test is skipped, because IPv6 is not on this machine";
    assert!(
        output.contains("test on_ipv6 ... ok") && output.contains(said),
        "{output}"
    );
    assert!(!output.contains("runs on IPv6"), "{output}");
}

#[test]
#[cfg_attr(mirakuru_portable, ignore = "the portable back end recognises no run")]
fn nextest_says_it_once_after_its_own_summary() {
    if !fresh::nextest("tests whose server is missing") {
        return;
    }
    let ((_alone, dir), scratch) = (suite(), Scratch::new());
    let file = scratch.path().join("output");
    let log = || fs::File::create(&file).expect("a writable directory");
    let args = ["nextest", "run", "--no-fail-fast", "--color=never"];

    let log = log();
    let mut command = cargo(&dir, &scratch, &args);
    command.stdout(log.try_clone().expect("a descriptor")).stderr(log);
    let status = command.status().expect("cargo");
    let read = || fs::read_to_string(&file).unwrap_or_default();
    assert!(
        common::wait_until(|| read().contains("the list is in"), common::LONG),
        "{}",
        read()
    );
    let output = read();
    assert!(status.success(), "{output}");
    assert_summary(&output);
    let (before, _) = output.split_once("mirakuru: 20 tests").expect("it is there");
    assert!(before.contains("30 tests run: 30 passed"), "{output}");
    assert!(!output.contains("LEAK"), "{output}");

    // If the output is a pipe, its reader gets the summary before the end of the output.
    let output = cargo(&dir, &scratch, &args).output().expect("cargo");
    assert_summary(&String::from_utf8_lossy(&output.stderr));

    if require("python3").is_some() {
        assert_summary(&on_a_terminal(&cargo(&dir, &scratch, &args)));
    }

    let mut command = cargo(&dir, &scratch, &args);
    let output = command.env("CI", "true").output().expect("cargo");
    assert!(!output.status.success());
    let output = fresh::text(&output);
    assert!(output.contains("10 passed, 20 failed"), "{output}");
    assert!(!output.contains("were skipped"), "{output}");
}

#[test]
fn an_unknown_value_of_a_variable_is_an_error_that_names_the_known_ones() {
    let ((_alone, dir), scratch) = (suite(), Scratch::new());
    let run = |test, name, value| {
        let mut command = cargo(&dir, &scratch, &ignored(test));
        fresh::text(&command.env(name, value).output().expect("cargo"))
    };
    for (name, value, known) in [
        ("MIRAKURU_MISSING", "skp", "write `skip` or `fail`"),
        ("MIRAKURU_SCOPE", "user", "write `process` or `users` or `run`"),
        ("MIRAKURU_KEEP", "flase", "write `1` or `0`"),
    ] {
        let output = run("on_any_kernel", name, value);
        let said = format!("failed to use {name}: its value `{value}` is not known: {known}");
        assert!(output.contains(&said), "{output}");
    }
    // The preset looks for its version, and reads the variable, before the start.
    let output = run("too_old", "MIRAKURU_MISSING", "skp");
    let said = "MIRAKURU_MISSING is `skp`, which is not known: write `skip` or `fail`";
    assert!(output.contains(said), "{output}");
}
