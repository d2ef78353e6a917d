//! Removes service directories with all their contents.

use std::path::Path;

use crate::sys;
use crate::util::say::is_quiet;

/// Removes a service directory, except for a kept log. `lock` is removed last: as long as it
/// exists, another process can finish an interrupted removal.
pub(crate) fn clear(path: &Path, kept: bool) {
    if !sys::remove_service_dir(path, kept) {
        tell(path);
    }
}

/// Removes a directory with all its contents. Reports a failure to the user.
pub(crate) fn remove_tree(path: &Path) {
    if !sys::remove_tree(path) {
        tell(path);
    }
}

/// Tells the user which directory was left behind.
fn tell(path: &Path) {
    if path.symlink_metadata().is_ok() && !is_quiet() {
        eprintln!(
            "mirakuru: left `{}`: something is mounted in it, or another user may have put it there",
            path.display()
        );
    }
}
