//! Removes a service's private directory after the test process has ended. Runs in the supervisor,
//! after a fork: nothing here allocates, locks or panics.
//!
//! After a fork, POSIX offers no safe way to read a directory, so `rm` removes the subdirectory
//! `d`. If `rm` is missing, the next run removes `d`.

use std::ffi::{CStr, c_char};
use std::ptr;

use super::super::tools::errno;
use crate::sys::io::remove::keep_log_in;
use crate::sys::log_record;

/// Time that the supervisor waits for `rm`. After that, `rm` continues on its own.
const PATIENCE_MS: i32 = 20_000;

/// Removes a private directory, without following symbolic links. With `keep_log`, first creates
/// the file `kept` if the log is not empty. If `kept` exists, removes only the subdirectory `d` and
/// the file `lock`, which marks the directory as in use.
///
/// # Safety
///
/// The path must be a string that ends in a zero byte.
pub(super) unsafe fn private_dir(path: *const c_char, keep_log: bool) {
    // SAFETY: the path ends in a zero byte. The descriptor is closed again.
    unsafe {
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        let dir = libc::open(path, flags);
        if dir < 0 {
            return;
        }
        if keep_log {
            keep_log_in(dir);
        }
        // For most services, `d` is empty.
        if libc::unlinkat(dir, c"d".as_ptr(), libc::AT_REMOVEDIR) != 0 && errno() != libc::ENOENT {
            rm(dir, c"d");
        }
        if libc::faccessat(dir, c"kept".as_ptr(), libc::F_OK, 0) == 0 {
            libc::unlinkat(dir, c"lock".as_ptr(), 0);
        } else {
            // The lock is removed last: while it exists, a later run finishes an interrupted
            // removal.
            for number in 1..=3 {
                let [log, index] = log_record::part(number);
                libc::unlinkat(dir, log.as_ptr(), 0);
                libc::unlinkat(dir, index.as_ptr(), 0);
            }
            for name in [c"log", c"log.index", c"needed", c"lock"] {
                libc::unlinkat(dir, name.as_ptr(), 0);
            }
            libc::rmdir(path);
        }
        libc::close(dir);
    }
}

/// Runs `rm -rf NAME` in this directory.
unsafe fn rm(dir: i32, name: &CStr) {
    // SAFETY: the lists end with a null pointer, and the child exits here.
    unsafe {
        let pid = libc::fork();
        if pid == 0 {
            let argv = [
                c"rm".as_ptr(),
                c"-rf".as_ptr(),
                c"--".as_ptr(),
                name.as_ptr(),
                ptr::null(),
            ];
            let envp: [*const c_char; 1] = [ptr::null()];
            if libc::fchdir(dir) == 0 {
                for program in [c"/bin/rm", c"/usr/bin/rm"] {
                    libc::execve(program.as_ptr(), argv.as_ptr(), envp.as_ptr());
                }
            }
            libc::_exit(127);
        }
        let mut left = PATIENCE_MS;
        while pid > 0 && left > 0 {
            match libc::waitpid(pid, ptr::null_mut(), libc::WNOHANG) {
                0 => {
                    libc::poll(ptr::null_mut(), 0, 1);
                    left = left.wrapping_sub(1);
                }
                -1 if errno() == libc::EINTR => {}
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CString;
    use std::fs;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;
    use std::path::{Path, PathBuf};

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("mirakuru-unit-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join("service/d/deep")).expect("the temp directory is writable");
        for file in ["service/log", "service/lock", "service/d/deep/data", "outside"] {
            fs::write(dir.join(file), "x").expect("the temp directory is writable");
        }
        symlink(dir.join("outside"), dir.join("service/d/link")).expect("as above");
        dir
    }

    fn remove(path: &Path) {
        let path = CString::new(path.as_os_str().as_bytes()).expect("no zero byte");
        // SAFETY: the path is this test's own.
        unsafe { private_dir(path.as_ptr(), false) };
    }

    #[test]
    fn removes_everything_and_follows_no_link() {
        let dir = scratch("remove");
        remove(&dir.join("service"));
        assert!(!dir.join("service").exists());
        assert!(dir.join("outside").exists());
        fs::remove_dir_all(dir).expect("it is ours");
    }

    #[test]
    fn a_kept_log_stays() {
        let dir = scratch("kept");
        fs::write(dir.join("service/kept"), "").expect("it is ours");
        remove(&dir.join("service"));
        assert!(dir.join("service/log").exists());
        assert!(!dir.join("service/d").exists() && !dir.join("service/lock").exists());
        fs::remove_dir_all(dir).expect("it is ours");
    }
}
