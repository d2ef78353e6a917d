//! A line for the person who runs the tests, past the capture of the test harness.

use std::io::{self, Write};

use once_cell::sync::Lazy;

const QUIET: &str = "MIRAKURU_QUIET";

/// Prints a line past the capture of the test harness, unless `MIRAKURU_QUIET` is set.
pub(crate) fn say(text: &str) {
    if !is_quiet() {
        let _ = writeln!(io::stderr(), "mirakuru: {text}");
    }
}

/// Whether `MIRAKURU_QUIET` is set, and is not `0`.
pub(crate) fn is_quiet() -> bool {
    static QUIETLY: Lazy<bool> = Lazy::new(|| is_set(QUIET));
    *QUIETLY
}

/// Whether a variable of the environment is set, and is neither empty nor `0`.
pub(crate) fn is_set(name: &str) -> bool {
    std::env::var_os(name).is_some_and(|value| !value.is_empty() && value != "0")
}
