//! Runs a unit test in a process of its own.

use std::process::Command;

/// Expands to the full name of a test, as the harness knows it. Does not compile if this module has
/// no such test.
macro_rules! test_name {
    ($test:ident) => {{
        let _ = &$test;
        // The harness omits the name of the crate.
        let path = concat!(module_path!(), "::", stringify!($test));
        path.split_once("::").map_or(path, |(_, name)| name)
    }};
}
pub(crate) use test_name;

/// Creates a command that runs the test with this name, even if it is ignored, and shows its
/// output.
pub(crate) fn process_of(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this binary has a path"));
    command.args(["--exact", test, "--include-ignored", "--nocapture"]);
    command
}

/// Runs a test in a process of its own, where no other test can open files, allocate memory or
/// fork.
pub(crate) fn run_alone(test: &str, env: &[(&str, &str)]) {
    let output = process_of(test)
        .envs(env.iter().copied())
        .env(ALONE, "1")
        .output()
        .expect("this binary can be executed");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

/// Whether this process was started by [`run_alone`].
pub(crate) fn is_alone() -> bool {
    std::env::var_os(ALONE).is_some()
}

const ALONE: &str = "MIRAKURU_UNIT_TEST_ALONE";
