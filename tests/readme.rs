//! The first test of the README, pasted into a fresh crate that depends on this one, as a newcomer does it.

mod common;

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use common::{LONG, Scratch, fixed_port, require, say, wait_until};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The first block of Rust.
fn first_test() -> String {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let (_, rest) = readme.split_once("```rust\n").expect("a block of Rust");
    rest.split_once("```").expect("its end").0.to_owned()
}

/// A crate with one test, and mirakuru as its only dependency. Each has a name of its own: cargo, with one target directory for
/// both, would take them for the same.
fn fresh_crate(scratch: &Scratch, name: &str, test: &str) -> PathBuf {
    let dir = scratch.path().join("fresh");
    fs::create_dir_all(dir.join("src")).unwrap();
    fs::create_dir_all(dir.join("tests")).unwrap();
    let manifest = format!(
        "[package]\nname = \"{name}\"\nedition = \"2024\"\n\n[dev-dependencies]\nmirakuru = {{ path = {:?} }}\n\n[workspace]\n",
        root()
    );
    fs::write(dir.join("Cargo.toml"), manifest).unwrap();
    fs::write(dir.join("src/lib.rs"), "").unwrap();
    fs::write(dir.join("tests/first.rs"), test).unwrap();
    // The versions that are tested, and downloaded.
    let _ = fs::copy(root().join("Cargo.lock"), dir.join("Cargo.lock"));
    dir
}

fn cargo(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::null())
        .env("CARGO_NET_OFFLINE", "true")
        // Kept from one run to the next.
        .env(
            "CARGO_TARGET_DIR",
            concat!(env!("CARGO_TARGET_TMPDIR"), "/readme"),
        );
    // What our own runner has told us is not for the one in there.
    for (key, _) in std::env::vars_os() {
        if key
            .to_str()
            .is_some_and(|key| key.starts_with("NEXTEST") || key.starts_with("CARGO_PKG"))
        {
            command.env_remove(key);
        }
    }
    command.output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn workspace_and_redis() -> bool {
    // A package that was unpacked on its own has its siblings nowhere.
    root().join("mirakuru-core").is_dir() && require("redis-server").is_some()
}

#[test]
fn the_first_test_of_the_readme_passes_in_a_fresh_crate() {
    if !workspace_and_redis() {
        return;
    }
    let scratch = Scratch::new();
    let dir = fresh_crate(&scratch, "newcomer", &first_test());
    let output = cargo(&dir, &["test"]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(
        text(&output).contains("test counts_visits ... ok"),
        "{}",
        text(&output)
    );
    assert!(!text(&output).contains("warning: unused"), "{}", text(&output));

    if !cargo(&dir, &["nextest", "--version"]).status.success() {
        say("*** the first test of the README under nextest: SKIPPED, cargo-nextest is not installed ***");
        return;
    }
    let output = cargo(&dir, &["nextest", "run"]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(!text(&output).contains("LEAK"), "{}", text(&output));
}

/// Redis, started without mirakuru.
struct Other(Child);

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end does not see whose a port or a socket is"
)]
fn with_another_redis_on_the_port_its_error_names_it() {
    if !workspace_and_redis() {
        return;
    }
    let scratch = Scratch::new();
    // On another port, so that nobody else's test on the default one is disturbed.
    let port = fixed_port();
    let test = first_test();
    assert!(test.contains("6379"), "{test}");
    let test = test.replace(
        "redis-server --save",
        &format!("redis-server --port {port} --save"),
    );
    let dir = fresh_crate(
        &scratch,
        "newcomer-in-trouble",
        &test.replace("6379", &port.to_string()),
    );
    let other = Command::new("redis-server")
        .args(["--port", &port.to_string(), "--save", ""])
        .current_dir(scratch.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let other = Other(other);
    assert!(wait_until(
        || TcpStream::connect(("127.0.0.1", port)).is_ok(),
        LONG
    ));
    let output = cargo(&dir, &["test"]);
    assert!(!output.status.success(), "{}", text(&output));
    let wanted = format!(
        "port {port} is already in use by redis-server (pid {})",
        other.0.id()
    );
    assert!(
        text(&output).contains(&wanted),
        "no `{wanted}` in\n{}",
        text(&output)
    );
}
