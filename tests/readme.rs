//! Runs the README's first test in a fresh crate that depends on this one, as a newcomer would. All
//! other tests in the README, the guide and `examples/suite` run in one crate.
//!
//! Doctests compile the shown code, but leave out items with `#[test]`, so these tests run here.
//!
//! This is a separate binary, because it runs cargo for minutes, and the README's first test has a
//! fixed port.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use common::{LONG, Scratch, fixed_port, require, root, say, wait_until};

/// The first block of Rust in the README.
fn first_test() -> String {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let (_, rest) = readme.split_once("```rust\n").expect("a block of Rust");
    rest.split_once("```").expect("its end").0.to_owned()
}

/// Creates a crate with one test, and mirakuru as its only dependency. Both crates use one target
/// directory, so they must have different names.
fn fresh_crate(scratch: &Scratch, name: &str, test: &str) -> PathBuf {
    let dir = scratch.path().join("fresh");
    fs::create_dir_all(dir.join("src")).unwrap();
    fs::create_dir_all(dir.join("tests")).unwrap();
    let manifest = format!(
        "[package]\nname = \"{name}\"\nedition = \"2024\"\n\n[dev-dependencies]\nmirakuru = {{ path = {:?} \
            }}\n\n[workspace]\n",
        root()
    );
    fs::write(dir.join("Cargo.toml"), manifest).unwrap();
    fs::write(dir.join("src/lib.rs"), "").unwrap();
    fs::write(dir.join("tests/first.rs"), test).unwrap();
    // Our lock file pins the versions that are tested and downloaded.
    let _ = fs::copy(root().join("Cargo.lock"), dir.join("Cargo.lock"));
    dir
}

fn cargo(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(dir);
    common::build_as_a_user(&mut command);
    // The inner cargo must not see the variables of our own test runner.
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

#[test]
fn the_first_test_of_the_readme_passes_in_a_fresh_crate() {
    if require("redis-server").is_none() {
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

/// The Rust blocks of a page that are compiled. Each entry has the words after the fence, and the
/// code, including lines that rustdoc hides.
fn rust_blocks(page: &str) -> Vec<(String, String)> {
    let mut blocks = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let Some(info) = line.strip_prefix("```").filter(|info| !info.is_empty()) else {
            continue;
        };
        let code = lines.by_ref().take_while(|line| *line != "```").map(|line| {
            let shown = line.strip_prefix("# ").unwrap_or(line);
            shown.to_owned() + "\n"
        });
        let code: String = code.collect();
        if info == "rust" || info.starts_with("rust,") {
            blocks.push((info.to_owned(), code));
        }
    }
    blocks
}

/// A file with all tests of the pages, each block in a module, and the names of the modules whose
/// tests must run.
fn shown_tests(has_postgres: bool) -> (String, Vec<String>) {
    let mut pages = vec![("readme".to_owned(), root().join("README.md"))];
    let guide = fs::read_dir(root().join("docs/guide")).expect("the guide");
    pages.extend(guide.map(|entry| {
        let path = entry.expect("a chapter").path();
        let name = path.file_stem().expect("its name").to_string_lossy();
        (name.into_owned(), path)
    }));
    pages.sort();
    let (mut file, mut modules) = (String::new(), Vec::new());
    for (page, path) in pages {
        let blocks = rust_blocks(&fs::read_to_string(&path).expect("a page"));
        // The README's first test runs separately, on its own port.
        let skipped = usize::from(page == "readme");
        for (number, (info, code)) in blocks.iter().enumerate().skip(skipped) {
            let is_test = ["#[test]", "#[rstest]", "#[tokio::test"]
                .iter()
                .any(|test| code.contains(test));
            let is_missing = !has_postgres && code.contains("presets::postgres");
            if !is_test || is_missing || info.contains("compile_fail") {
                continue;
            }
            // These tests need container images, which are rarely installed. `it/containers.rs`
            // makes its own.
            let code = match page.as_str() {
                "containers" => code.replace("#[test]\n", "#[test]\n#[ignore = \"needs an image\"]\n"),
                _ => code.clone(),
            };
            let module = format!("{page}_{}", number + 1);
            file.push_str(&format!("mod {module} {{\n{code}}}\n\n"));
            if !code.contains("#[ignore") {
                modules.push(module);
            }
        }
    }
    (file, modules)
}

/// Entries of the copied suite that this test or cargo creates.
const MADE: [&str; 4] = ["target", "Cargo.lock", "shown.rs", "examples"];

/// Writes a file unless it already has this content, so that cargo does not build it again.
fn write(path: &Path, text: &str) {
    if fs::read_to_string(path).ok().as_deref() != Some(text) {
        fs::write(path, text).expect("a writable directory");
    }
}

/// Copies a folder of sources. Paths of dependencies to this repository become absolute.
fn copy_sources(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a writable directory");
    // An example that has been removed must not stay in the copy.
    for entry in fs::read_dir(to).expect("a folder") {
        let entry = entry.expect("an entry");
        let is_made = MADE.iter().any(|name| entry.file_name() == *name);
        if !is_made && !from.join(entry.file_name()).exists() {
            let path = entry.path();
            let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
        }
    }
    for entry in fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("its name");
        if MADE.iter().any(|made| name == *made) {
            continue;
        }
        if path.is_dir() {
            copy_sources(&path, &to.join(name));
            continue;
        }
        let mut text = fs::read_to_string(&path).expect("a text");
        for up in ["\"../../..\"", "\"../..\""] {
            text = text.replace(up, &format!("{:?}", root()));
        }
        write(&to.join(name), &text);
    }
}

/// The pids of Redis that the tests of a package have printed.
fn pids<'a>(output: &'a str, package: &str) -> BTreeSet<&'a str> {
    let before = format!("Redis for {package}: pid ");
    output
        .lines()
        .filter_map(|line| line.trim().strip_prefix(before.as_str()))
        .collect()
}

#[test]
fn every_test_that_is_shown_passes() {
    if require("redis-server").is_none() || require("python3").is_none() {
        return;
    }
    // The directory is the same in each run, so that cargo does not rebuild unchanged code.
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("suite");
    copy_sources(&root().join("examples/suite"), &dir);
    fs::copy(root().join("Cargo.lock"), dir.join("Cargo.lock")).unwrap();
    let has_postgres = require("initdb").is_some() && require("psql").is_some();
    if !has_postgres {
        fs::remove_file(dir.join("tests/database.rs")).expect("the example with PostgreSQL");
    }
    let (file, modules) = shown_tests(has_postgres);
    assert!(modules.len() > 10, "where is the guide? {modules:?}");
    write(&dir.join("tests/shown.rs"), &file);

    // Runs `cargo run --example quickstart` in the copy. There the example is built without the
    // dependencies of these tests, as it is for users.
    fs::create_dir_all(dir.join("examples")).unwrap();
    let quickstart = fs::read_to_string(root().join("examples/quickstart.rs")).unwrap();
    write(&dir.join("examples/quickstart.rs"), &quickstart);
    let output = cargo(&dir, &["run", "--quiet", "--example", "quickstart"]);
    assert!(output.status.success(), "{}", text(&output));

    let check = |output: &Output| {
        let text = text(output);
        assert!(output.status.success(), "{text}");
        for module in &modules {
            assert!(
                text.contains(&format!("{module}::")),
                "{module} has not been run:\n{text}"
            );
        }
        for package in ["the shop", "billing"] {
            let servers = pids(&text, package).len();
            // The portable back end recognises no run, so each process starts its own Redis.
            assert!(
                servers == 1 || (cfg!(mirakuru_portable) && servers > 1),
                "one Redis for all tests of {package}, and not {servers}:\n{text}"
            );
        }
        assert!(!text.contains("LEAK"), "{text}");
        // Users who copy an example do not want this file in their package.
        assert!(
            !dir.join("dump.rdb").exists(),
            "a Redis has saved into the package"
        );
    };
    let output = cargo(
        &dir,
        &[
            "test",
            "--workspace",
            "--tests",
            "--no-fail-fast",
            "--",
            "--show-output",
        ],
    );
    check(&output);
    assert!(!text(&output).contains("warning: "), "{}", text(&output));
    if cargo(&dir, &["nextest", "--version"]).status.success() {
        let show = ["--success-output", "immediate", "--no-fail-fast"];
        check(&cargo(
            &dir,
            &[&["nextest", "run", "--workspace"], &show[..]].concat(),
        ));
    } else {
        say("*** the tests that are shown, under nextest: SKIPPED, cargo-nextest is not installed ***");
    }
}

/// A Redis that was started without mirakuru.
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
    ignore = "the portable back end cannot see the owner of a socket"
)]
fn with_another_redis_on_the_port_its_error_names_it() {
    if require("redis-server").is_none() {
        return;
    }
    let scratch = Scratch::new();
    // Uses another port, so that tests on the default port are not disturbed.
    let port = fixed_port();
    let test = first_test();
    assert!(test.contains("{port}"), "{test}");
    let dir = fresh_crate(
        &scratch,
        "newcomer-with-an-error",
        &test.replace("{port}", &port.to_string()),
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
