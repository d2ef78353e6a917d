//! The base directory of all files that mirakuru writes. It is private, and its path is short.

use std::fs::{DirBuilder, File, Metadata, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::sys;

/// The temporary directory to use if `TMPDIR` is unsuitable.
pub(crate) const FALLBACK: &str = "/tmp";
/// Maximum length of the path in a socket address, without the terminating NUL.
const SOCKET_PATH_MAX: usize = if cfg!(any(target_os = "linux", target_os = "android")) {
    107
} else {
    103
};
/// Number of bytes of a socket path that come after the base: the id, `d`, and 44 bytes for a name
/// that the user chooses.
pub(super) const ROOM_BELOW_BASE: usize = 60;

/// The base directory in this temporary directory, or in `/tmp` if `TMPDIR` is empty or socket
/// paths in it would be too long.
pub(crate) fn base_in(temp: &Path) -> PathBuf {
    let name = format!("mirakuru-{}", sys::files::euid());
    match std::path::absolute(temp).map(|temp| temp.join(&name)) {
        Ok(base) if base.as_os_str().as_bytes().len() + ROOM_BELOW_BASE <= SOCKET_PATH_MAX => base,
        _ => Path::new(FALLBACK).join(name),
    }
}

/// Whether this user and group may enter every directory above this path. For example, others may
/// not enter a temporary directory that `libpam-tmpdir` has created for root.
pub(crate) fn may_reach(path: &Path, (uid, gid): (u32, u32)) -> bool {
    let may_enter = |dir: &Path| {
        // A missing directory counts as reachable, because its first use reports the error.
        dir.metadata().map_or(true, |dir| {
            let shift = match (dir.uid() == uid, dir.gid() == gid) {
                (true, _) => 6,
                (_, true) => 3,
                _ => 0,
            };
            dir.mode() & (0o1 << shift) != 0
        })
    };
    path.ancestors().skip(1).all(may_enter)
}

/// Creates a directory that only this user can write to, or checks an existing one. With `loose`,
/// other users can pass through it (mode 0711) if they know the name of an entry.
pub(crate) fn private_dir(path: &Path, loose: bool) -> io::Result<()> {
    let make = |_| match DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            let remedy = "create that directory, or set TMPDIR to one that you can write to";
            Err(io::Error::new(e.kind(), format!("{e}; {remedy}")))
        }
        _ => path.symlink_metadata(),
    };
    check(&path.symlink_metadata().or_else(make)?)?;
    if loose {
        // The mode is set through a descriptor that was opened without following a link. It is
        // never made stricter again, because another executor may rely on it.
        let dir = sys::files::open_dir(path)?;
        let mode = dir.metadata()?.mode();
        if mode & 0o011 != 0o011 {
            dir.set_permissions(Permissions::from_mode((mode & 0o777) | 0o711))?;
        }
    }
    Ok(())
}

/// Checks an existing directory without following a link. It must belong to this user, and only
/// this user may write to it.
pub(crate) fn check_private(path: &Path) -> io::Result<()> {
    check(&path.symlink_metadata()?)
}

fn check(metadata: &Metadata) -> io::Result<()> {
    let refuse = |problem: String| {
        // With a longer `TMPDIR`, `base_in` would choose the fallback again.
        let longest = SOCKET_PATH_MAX - ROOM_BELOW_BASE - "/mirakuru-4294967295".len();
        Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("{problem}; remove it, or set TMPDIR to another path of at most {longest} bytes"),
        ))
    };
    if metadata.is_symlink() {
        return refuse("it is a symbolic link, which another user may have put there".to_owned());
    }
    if !metadata.is_dir() {
        return refuse("it is not a directory".to_owned());
    }
    let (owner, us) = (metadata.uid(), sys::files::euid());
    if owner != us {
        return refuse(format!(
            "it belongs to user {owner}, and the tests run as user {us}"
        ));
    }
    let mode = metadata.mode() & 0o777;
    if mode & 0o022 != 0 {
        return refuse(format!("other users may write to it (mode {mode:04o})"));
    }
    Ok(())
}

/// Whether this path still refers to this open file.
pub(crate) fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match path.symlink_metadata() {
        Ok(theirs) => Ok((theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}
