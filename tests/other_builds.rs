//! Test processes with foreign code in them, which also runs in the supervisor: AddressSanitizer,
//! lazy binding, valgrind, or a preloaded library. Ten tests run in each.
//!
//! This is a separate binary, because it runs cargo and must not run twice at the same time.

// These tests check how the supervisor is forked on Linux.
#![cfg(target_os = "linux")]

mod common;
#[path = "common/fresh.rs"]
mod fresh;
#[path = "common/proof.rs"]
mod proof;

use std::path::PathBuf;
use std::process::Command;

use common::{ODD, Scratch, require};

const TEN_TESTS: &str = r#"
use std::time::Duration;

use mirakuru::{Banner, Error, Exec, Executor, ExecutorBuilder, NoWait, PidFile, Tcp, UnixSocket};

fn odd<const N: usize>(args: [&str; N]) -> ExecutorBuilder<NoWait> {
    Executor::builder([std::env::var("ODD").unwrap()]).args(args).stop_timeout(Duration::from_millis(500))
}

const LISTENS: [&str; 2] = ["--listen", "127.0.0.1:{port}"];

fn connects(addr: std::net::SocketAddr) -> bool {
    std::net::TcpStream::connect(addr).is_ok()
}

#[test]
fn executed() {
    let mut service = odd([]).start().unwrap();
    assert!(service.is_running());
    service.stop().unwrap();
    assert!(!service.is_running());
}

#[test]
fn tcp() {
    let mut service = odd(LISTENS).wait_for(Tcp::addr("127.0.0.1:{port}")).start().unwrap();
    assert!(connects(service.addr()));
    service.stop().unwrap();
    assert!(!connects(service.addr()));
}

#[test]
fn unix() {
    let recipe = odd(["--unix", "{dir}/s"]).wait_for(UnixSocket::path("{dir}/s"));
    let service = recipe.start().unwrap();
    std::os::unix::net::UnixStream::connect(service.path()).unwrap();
}

#[test]
fn banner() {
    let recipe = odd(["--ready-line", "it is ready"]).wait_for(Banner::matching("is ready"));
    let service = recipe.start().unwrap();
    assert_eq!(service.logs().stdout(), "it is ready\n");
}

#[test]
fn exec() {
    let recipe = odd(["--pid-file", "{dir}/p"]).wait_for(Exec::succeeds("test -e {dir}/p"));
    recipe.start().unwrap().stop().unwrap();
}

#[test]
fn pid_file() {
    let service = odd(["--pid-file", "{dir}/p"]).wait_for(PidFile::path("{dir}/p")).start().unwrap();
    assert!(service.is_running());
}

#[test]
fn restart() {
    let mut service = odd(LISTENS).wait_for(Tcp::addr("127.0.0.1:{port}")).start().unwrap();
    let (addr, pid) = (service.addr(), service.pid());
    service.restart().unwrap();
    assert!(service.addr() == addr && service.pid() != pid && connects(addr));
}

#[test]
fn kill_of_what_is_deaf() {
    let mut service = odd(["--deaf-daemons", "2", "--ready-line", "up"])
        .wait_for(Banner::matching("up"))
        .start()
        .unwrap();
    service.kill().unwrap();
}

#[test]
fn panic() {
    let panicked = std::panic::catch_unwind(|| {
        let _service = odd(["--deaf-daemons", "1", "--ready-line", "up"])
            .wait_for(Banner::matching("up"))
            .start()
            .unwrap();
        panic!("with a service");
    });
    assert!(panicked.is_err());
}

#[test]
fn failures() {
    assert!(matches!(Executor::builder("no-such-program-7").start(), Err(Error::Spawn { .. })));
    let ends = odd(["--exit-before-ready", "3"]).wait_for(Banner::matching("never")).start();
    assert!(matches!(ends, Err(Error::Exited { .. })), "{ends:?}");
}
"#;

/// Builds the ten tests as a user does, or with these flags, and returns the program. Flags rebuild
/// all dependencies, so the default features are off then.
fn build(flags: Option<&str>) -> PathBuf {
    let (name, features) = match flags {
        Some(_) => ("ten-tests-with-flags", ", default-features = false"),
        None => ("ten-tests", ""),
    };
    let dir = fresh::package(
        name,
        &format!("[dependencies]\nmirakuru = {{ path = \"{{root}}\"{features} }}\n"),
        &[("src/lib.rs", ""), ("tests/ten.rs", TEN_TESTS)],
    );
    let mut cargo = fresh::cargo(&dir);
    cargo.args(["test", "--no-run", "--message-format=json", "--test", "ten"]);
    if let Some(flags) = flags {
        // With an explicit target, the flags do not apply to build scripts and macros, so these are
        // built only once.
        cargo
            .args(["--target", &host()])
            .env("CARGO_TARGET_DIR", concat!(env!("CARGO_TARGET_TMPDIR"), "/flags"))
            .env("RUSTC_BOOTSTRAP", "1")
            .env("RUSTFLAGS", flags);
    }
    let output = fresh::succeed(&mut cargo);
    let program = output.split("\"executable\":\"").nth(1).expect("a program");
    program.split('"').next().map(PathBuf::from).unwrap()
}

fn host() -> String {
    let version = fresh::succeed(Command::new("rustc").arg("-vV"));
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.expect("rustc says it").to_owned()
}

/// Runs the ten tests. All must pass, and no process may be left. Returns the output.
#[track_caller]
fn run(command: &mut Command) -> String {
    let scratch = Scratch::new();
    command
        .env("ODD", ODD)
        .env("TMPDIR", scratch.path())
        .env("MIRAKURU_TIMEOUT_SCALE", "4")
        .env_remove("NEXTEST_RUN_ID");
    let text = fresh::succeed(command);
    assert!(text.contains("10 passed; 0 failed"), "{text}");
    assert!(proof::marked(scratch.path()).is_empty(), "{text}");
    text
}

#[test]
fn with_address_sanitizer() {
    run(&mut Command::new(build(Some("-Zsanitizer=address"))));
}

#[test]
fn bound_lazily() {
    let flags = "-Crelro-level=partial -Clink-arg=-Wl,-z,lazy";
    run(&mut Command::new(build(Some(flags))));
}

/// Errors that valgrind finds in the supervisor count as well.
#[test]
fn under_valgrind() {
    let Some(valgrind) = require("valgrind") else {
        return;
    };
    let mut command = Command::new(valgrind);
    command
        .args(["-q", "--error-exitcode=9"])
        .arg(build(None))
        .args(["--test-threads", "4"]);
    let text = run(&mut command);
    assert!(!text.contains("Invalid "), "{text}");
}

#[test]
fn under_preloaded_libraries() {
    for (package, args) in [("eatmydata", &[][..]), ("faketime", &["-f", "-1d"])] {
        if let Some(program) = require(package) {
            run(Command::new(program).args(args).arg(build(None)));
        }
    }
}
