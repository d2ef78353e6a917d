//! Writes crates that depend on this one as a user's crate does. They are built offline in the
//! target directory, with the versions of our lock file. The directory is kept, so only the first
//! run builds the dependencies.

// Each test binary uses only a part of this file.
#![allow(dead_code)]

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::common::{FRESH_TARGET, build_as_a_user, say};

pub(crate) use super::common::root;

/// Writes a package and returns its folder. `manifest` follows the section `[package]`.
pub(crate) fn package(name: &str, manifest: &str, files: &[(&str, &str)]) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fresh").join(name);
    let manifest = format!(
        "[package]\nname = \"{name}\"\nedition = \"2024\"\npublish = false\n\n{}\n[workspace]\n",
        manifest.replace("{root}", root().to_str().expect("a path in UTF-8"))
    );
    write(&dir.join("Cargo.toml"), &manifest);
    for (file, text) in files {
        write(&dir.join(file), text);
    }
    // The package gets a copy of our lock file, which pins versions that are tested and downloaded.
    // cargo removes unneeded versions from it, so a second, unchanged copy shows whether our lock
    // file has changed.
    let ours = fs::read_to_string(root().join("Cargo.lock")).unwrap_or_default();
    let origin = dir.join("Cargo.lock.origin");
    if fs::read_to_string(&origin).ok().as_ref() != Some(&ours) {
        write(&dir.join("Cargo.lock"), &ours);
        write(&origin, &ours);
    }
    dir
}

/// Writes a file unless it already has this content, so that cargo does not build it again. The
/// file appears in one step, because other tests may write it at the same time.
fn write(path: &Path, text: &str) {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return;
    }
    fs::create_dir_all(path.parent().expect("a folder")).expect("the target directory");
    let half = path.with_extension(format!(
        "half-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    ));
    fs::write(&half, text).expect("the target directory");
    fs::rename(&half, path).expect("the target directory");
}

/// A command that runs cargo in a package's folder, as a user would.
pub(crate) fn cargo(dir: &Path) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(dir);
    build_as_a_user(&mut command);
    // These variables of our own runner, or of the person who runs the tests, would affect the
    // inner cargo.
    for (key, _) in env::vars_os() {
        if is_ours(&key) {
            command.env_remove(key);
        }
    }
    command
}

fn is_ours(key: &OsString) -> bool {
    let Some(key) = key.to_str() else { return false };
    let prefixes = ["NEXTEST", "MIRAKURU", "CARGO_PKG", "CARGO_BIN", "CARGO_MANIFEST"];
    prefixes.iter().any(|prefix| key.starts_with(prefix))
}

/// Whether nextest is installed, which is optional. If not, prints which tests are skipped.
pub(crate) fn nextest(what: &str) -> bool {
    let found = cargo(root()).args(["nextest", "--version"]).output();
    let found = found.is_ok_and(|output| output.status.success());
    if !found {
        say(&format!(
            "\n*** {what}: SKIPPED under nextest, `cargo-nextest` is not installed ***\n"
        ));
    }
    found
}

/// The standard output of a command, followed by its standard error.
pub(crate) fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Runs a command that must succeed, and returns its output.
#[track_caller]
pub(crate) fn succeed(command: &mut Command) -> String {
    let output = command.output().expect("it can be executed");
    let text = text(&output);
    assert!(output.status.success(), "{command:?}\n{text}");
    text
}

/// Builds a program with `panic = "abort"`. Depending on its environment, the program acts as a
/// victim of `tests/it/teardown.rs` or of `tests/it/flush.rs`.
pub(crate) fn built_with_abort() -> PathBuf {
    let module = |name: &str, file: &str| {
        format!(
            "#[path = {:?}]\n#[allow(dead_code)]\nmod {name};\n\n",
            root().join(file)
        )
    };
    let main = module("cell", "tests/it/teardown/cell.rs")
        + &module("services", "tests/it/flush/services.rs")
        + r#"fn main() {
    if std::env::var_os(services::KEPT).is_none() {
        return cell::run();
    }
    let database = services::database().start().unwrap();
    let _application = services::application(&database).start().unwrap();
    services::say_and_wait();
    cell::die(&std::env::var(services::DEATH).unwrap());
}
"#;
    let dir = package(
        "aborts",
        "[dependencies]\nmirakuru = { path = \"{root}\" }\n",
        &[("src/main.rs", &main)],
    );
    // Sets the option for this program only. In the profile, the option would rebuild all
    // dependencies.
    succeed(cargo(&dir).args(["rustc", "--bin", "aborts", "--", "-Cpanic=abort"]));
    Path::new(FRESH_TARGET).join("debug/aborts")
}
