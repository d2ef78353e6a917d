//! Removes service directories, whatever their services have made of them.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::sys;

/// Removes a service directory, or all of it but the kept log. `lock` goes last: as long as it is
/// there, somebody will finish this.
pub(crate) fn clear(path: &Path, kept: bool) {
    if kept {
        remove_tree(&path.join("d"));
        let _ = fs::remove_file(path.join("lock"));
        return;
    }
    remove_tree(&path.join("d"));
    for file in ["log", "log.index", "kept", "owner", "lock"] {
        let _ = fs::remove_file(path.join(file));
    }
    if fs::remove_dir(path).is_err() {
        remove_tree(path);
    }
}

/// Removes what can be removed. Symbolic links are removed, never followed.
pub(crate) fn remove_tree(path: &Path) {
    match fs::remove_dir_all(path) {
        Ok(()) => return,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return,
        Err(_) => {}
    }
    // A service may have left directories that their owner cannot write to; to root that is no
    // hindrance. Setting a mode follows symbolic links, and somebody could put one in the place of
    // what was a directory a moment ago: as root that would be a hole, otherwise it reaches only
    // what is ours anyway.
    if sys::files::euid() != 0 {
        make_writable(path);
    }
    remove_what_can_be(path);
}

fn make_writable(dir: &Path) {
    if !dir.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
        return;
    }
    let _ = fs::set_permissions(dir, Permissions::from_mode(0o700));
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        make_writable(&entry.path());
    }
}

/// [`fs::remove_dir_all`] stops at the first thing that it cannot remove. This goes on with the
/// rest.
fn remove_what_can_be(dir: &Path) {
    if fs::remove_dir_all(dir).is_ok() {
        return;
    }
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        // The entry's own type: a symbolic link to a directory is no directory.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_what_can_be(&entry.path());
        } else {
            let _ = fs::remove_file(entry.path());
        }
    }
    let _ = fs::remove_dir(dir);
}
