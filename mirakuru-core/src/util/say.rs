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
    static QUIETLY: Lazy<bool> =
        Lazy::new(|| std::env::var_os(QUIET).is_some_and(|value| !value.is_empty() && value != "0"));
    *QUIETLY
}
