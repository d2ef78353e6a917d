//! A line for the person who runs the tests, past the capture of the test harness.

use std::io::{self, Write};

use once_cell::sync::Lazy;

use crate::util::settings::is_on;

const QUIET: &str = "MIRAKURU_QUIET";

/// Prints a line past the capture of the test harness, unless `MIRAKURU_QUIET` is set.
pub(crate) fn say(text: &str) {
    if !is_quiet() {
        let _ = writeln!(io::stderr(), "mirakuru: {text}");
    }
}

/// Whether `MIRAKURU_QUIET` is on.
pub(crate) fn is_quiet() -> bool {
    static QUIETLY: Lazy<bool> = Lazy::new(|| is_on(QUIET));
    *QUIETLY
}
