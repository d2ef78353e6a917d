//! Prints lines that the test harness does not capture.

use std::io::{self, Write};

use once_cell::sync::Lazy;

use crate::util::settings::{QUIET, is_on};

/// Prints a line to standard error, bypassing the output capture of the test harness. Does nothing
/// if `MIRAKURU_QUIET` is on.
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
