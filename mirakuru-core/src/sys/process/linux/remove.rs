//! Removes a service's private directory when the test process is not there any more to do it. Runs
//! in the supervisor, after a fork: nothing here allocates, locks or panics.

use std::ffi::{CStr, c_char};
use std::mem;

/// How deep directories are followed. What lies deeper stays, and the next run sweeps it.
const DEPTH: u32 = 24;

/// Removes a directory and all in it; symbolic links are removed, not followed. With a file `kept`
/// in it, only the subdirectory `d` goes, and the lock that marks it as in use.
///
/// # Safety
///
/// The path must be a string that ends in a zero byte.
pub(super) unsafe fn private_dir(path: *const c_char) {
    // SAFETY: plain system calls; descriptors are closed again.
    unsafe {
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        let dir = libc::open(path, flags);
        if dir < 0 {
            return;
        }
        if libc::faccessat(dir, c"kept".as_ptr(), libc::F_OK, 0) == 0 {
            remove_entry(dir, c"d", DEPTH);
            libc::unlinkat(dir, c"lock".as_ptr(), 0);
        } else {
            // The lock last: as long as it is there, a later run will finish what is interrupted
            // here.
            empty(dir, DEPTH, Some(c"lock"));
            libc::unlinkat(dir, c"lock".as_ptr(), 0);
            libc::rmdir(path);
        }
        libc::close(dir);
    }
}

/// Removes what is in a directory, but for one name.
unsafe fn empty(dir: i32, depth: u32, spare: Option<&CStr>) {
    // SAFETY: the kernel fills the buffer with whole records of `linux_dirent64`: u64 inode, i64
    // offset, u16 length, u8 type, and the name with its final zero.
    unsafe {
        let mut buffer = [0_u64; 128];
        // Removing while reading may skip entries: read again until a pass removes nothing.
        loop {
            let mut removed = false;
            libc::lseek(dir, 0, libc::SEEK_SET);
            loop {
                let size = mem::size_of_val(&buffer);
                let got = libc::syscall(libc::SYS_getdents64, dir, buffer.as_mut_ptr(), size);
                if got <= 0 {
                    break;
                }
                let start = buffer.as_ptr().cast::<u8>();
                let mut at = 0_usize;
                while at < got as usize {
                    let record = start.add(at);
                    let length = usize::from(record.add(16).cast::<u16>().read_unaligned());
                    let name = CStr::from_ptr(record.add(19).cast());
                    if name != c"." && name != c".." && Some(name) != spare {
                        removed |= remove_entry(dir, name, depth);
                    }
                    if length == 0 {
                        break;
                    }
                    at = at.wrapping_add(length);
                }
            }
            if !removed {
                return;
            }
        }
    }
}

unsafe fn remove_entry(dir: i32, name: &CStr, depth: u32) -> bool {
    // SAFETY: as above.
    unsafe {
        if libc::unlinkat(dir, name.as_ptr(), 0) == 0 {
            return true;
        }
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        let mut inner = libc::openat(dir, name.as_ptr(), flags);
        if inner < 0 && libc::fchmodat(dir, name.as_ptr(), 0o700, libc::AT_SYMLINK_NOFOLLOW) == 0 {
            inner = libc::openat(dir, name.as_ptr(), flags);
        }
        if inner < 0 {
            return false;
        }
        if depth > 0 {
            // A service may have left a directory that its owner cannot write to.
            libc::fchmod(inner, 0o700);
            empty(inner, depth.wrapping_sub(1), None);
        }
        libc::close(inner);
        libc::unlinkat(dir, name.as_ptr(), libc::AT_REMOVEDIR) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CString;
    use std::fs;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::{Path, PathBuf};

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("mirakuru-unit-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join("home/d/deep/deeper")).expect("the temp directory is writable");
        for file in [
            "home/log",
            "home/lock",
            "home/owner",
            "home/d/deep/data",
            "outside",
        ] {
            fs::write(dir.join(file), "x").expect("the temp directory is writable");
        }
        for number in 0..500 {
            fs::write(dir.join(format!("home/d/deep/deeper/{number}")), "").expect("as above");
        }
        symlink(dir.join("outside"), dir.join("home/d/link")).expect("as above");
        symlink(&dir, dir.join("home/d/up")).expect("as above");
        dir
    }

    fn remove(path: &Path) {
        let path = CString::new(path.as_os_str().as_bytes()).expect("no zero byte");
        // SAFETY: a path of this test's own.
        unsafe { private_dir(path.as_ptr()) };
    }

    #[test]
    fn removes_everything_and_follows_no_link() {
        let dir = scratch("remove");
        let read_only = fs::Permissions::from_mode(0o500);
        fs::set_permissions(dir.join("home/d/deep/deeper"), read_only).expect("it is ours");
        remove(&dir.join("home"));
        assert!(!dir.join("home").exists());
        assert!(dir.join("outside").exists());
        fs::remove_dir_all(dir).expect("it is ours");
    }

    #[test]
    fn a_kept_log_stays() {
        let dir = scratch("kept");
        fs::write(dir.join("home/kept"), "").expect("it is ours");
        remove(&dir.join("home"));
        assert!(dir.join("home/log").exists());
        assert!(!dir.join("home/d").exists() && !dir.join("home/lock").exists());
        fs::remove_dir_all(dir).expect("it is ours");
    }
}
