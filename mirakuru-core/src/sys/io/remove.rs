//! Removes directories that a service could write to, with all their contents.
//!
//! * Every step is relative to an open directory, and no symbolic link is followed. So no process
//!   can redirect the removal by putting a link in the place of a directory.
//! * If other users could rename the directory, nothing is removed, because one of them may have
//!   replaced it.
//! * A directory that is a mount point is left, with everything in it.
//! * There is no recursion. A nested directory is first moved up beside its parent. So a deep tree
//!   needs neither more stack nor more descriptors. The code never follows `..`, which would lead
//!   elsewhere after a process has moved a directory.
//!
//! On Linux the supervisor also calls this code, after a fork. So on Linux [`Place`] and its
//! helpers must not allocate, lock or panic.

use std::ffi::{CStr, CString, c_char};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::sys::errno;
use crate::sys::log_record;

const DIRECTORY: i32 = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;

/// Removes a directory with all its contents. Returns whether all of it is gone.
pub(crate) fn remove_tree(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else {
        return false;
    };
    // SAFETY: the string ends in a zero byte.
    unsafe { Place::find(path.as_ptr()).is_some_and(|place| place.remove(None)) }
}

/// Removes a service directory, except for its log if `kept` is set. `lock` is removed last: while
/// it exists, another process will finish an interrupted removal. Returns whether the removal is
/// complete.
pub(crate) fn remove_service_dir(path: &Path, kept: bool) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else {
        return false;
    };
    // SAFETY: the string ends in a zero byte.
    unsafe { Place::find(path.as_ptr()).is_some_and(|place| place.remove_service(kept)) }
}

/// Removes a service directory in the supervisor. Keeps the log if the directory contains a file
/// `kept`.
///
/// # Safety
///
/// The path must be a string that ends in a zero byte.
#[cfg(all(target_os = "linux", not(mirakuru_portable)))]
pub(in crate::sys) unsafe fn remove_private_dir(path: *const c_char) {
    // SAFETY: the path ends in a zero byte.
    unsafe {
        if let Some(place) = Place::find(path) {
            let kept = libc::faccessat(place.dir, c"kept".as_ptr(), libc::F_OK, 0) == 0;
            place.remove_service(kept);
        }
    }
}

/// Marks a service's log as one to keep, unless the log is empty.
///
/// # Safety
///
/// The path must be a string that ends in a zero byte.
#[cfg(all(target_os = "linux", not(mirakuru_portable)))]
pub(in crate::sys) unsafe fn keep_log(path: *const c_char) {
    // SAFETY: the path ends in a zero byte.
    unsafe {
        if let Some(place) = Place::find(path) {
            keep_log_in(place.dir);
            place.close();
        }
    }
}

/// Marks the log in an open service directory as one to keep, unless the log is empty.
///
/// # Safety
///
/// Any number is sound: the calls read only constant strings and local variables.
pub(in crate::sys) unsafe fn keep_log_in(dir: i32) {
    // SAFETY: an all-zero `stat` is valid, and the calls read strings that end in a zero byte.
    unsafe {
        let mut log: libc::stat = std::mem::zeroed();
        let flags = libc::AT_SYMLINK_NOFOLLOW;
        if libc::fstatat(dir, c"log".as_ptr(), &mut log, flags) == 0 && log.st_size > 0 {
            let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_NOFOLLOW | libc::O_CLOEXEC;
            let kept = libc::openat(dir, c"kept".as_ptr(), flags, 0o600);
            if kept >= 0 {
                libc::close(kept);
            }
        }
    }
}

/// A directory and its parent.
struct Place {
    parent: i32,
    dir: i32,
    name: *const c_char,
}

impl Place {
    /// Finds a directory. `None` if it does not exist, or if another user could have put it there.
    unsafe fn find(path: *const c_char) -> Option<Place> {
        const LONGEST: usize = 4096;
        // SAFETY: the call reads the string to its zero byte; the path of the parent is built in a
        // local buffer.
        unsafe {
            let bytes = CStr::from_ptr(path).to_bytes();
            let slash = bytes.iter().rposition(|byte| *byte == b'/')?;
            let mut parent = [0_u8; LONGEST];
            let before = bytes.get(..slash.max(1))?;
            // The last byte of the buffer is reserved for the terminating zero byte.
            parent
                .get_mut(..LONGEST - 1)?
                .get_mut(..before.len())?
                .copy_from_slice(before);
            let parent = libc::open(parent.as_ptr().cast(), DIRECTORY);
            if parent < 0 {
                return None;
            }
            let name = path.add(slash.saturating_add(1));
            // Other users cannot rename our entry if the parent is closed to them or has the sticky
            // bit.
            let is_safe = status(parent).is_some_and(|status| {
                let is_ours = status.st_uid == libc::geteuid() || status.st_uid == 0;
                is_ours && (status.st_mode & 0o022 == 0 || status.st_mode & 0o1000 != 0)
            });
            let dir = if is_safe { enter(parent, name) } else { -1 };
            if dir < 0 {
                libc::close(parent);
                return None;
            }
            Some(Place { parent, dir, name })
        }
    }

    unsafe fn remove_service(self, kept: bool) -> bool {
        // SAFETY: the names end in a zero byte.
        unsafe {
            if !kept {
                return self.remove(Some(c"lock"));
            }
            let mut names = Names(0);
            let gone =
                remove_entry(self.dir, c"d", true, &mut names) != Entry::Left && empty(self.dir, &is_log);
            libc::unlinkat(self.dir, c"lock".as_ptr(), 0);
            self.close();
            gone
        }
    }

    /// Removes the directory with its contents. `last` names the entry to remove after all others.
    unsafe fn remove(self, last: Option<&CStr>) -> bool {
        // SAFETY: the names end in a zero byte.
        unsafe {
            empty(self.dir, &|name| Some(name) == last);
            if let Some(last) = last {
                libc::unlinkat(self.dir, last.as_ptr(), 0);
            }
            let gone =
                libc::unlinkat(self.parent, self.name, libc::AT_REMOVEDIR) == 0 || errno() == libc::ENOENT;
            self.close();
            gone
        }
    }

    unsafe fn close(self) {
        // SAFETY: this value owns both descriptors.
        unsafe {
            libc::close(self.dir);
            libc::close(self.parent);
        }
    }
}

/// The files that stay in a service directory whose log is kept.
fn is_log(name: &CStr) -> bool {
    [c"log", c"log.index", c"kept", c"lock"].contains(&name)
        || (1..=3).any(|number| log_record::part(number).contains(&name))
}

/// Generates names for directories that are moved up.
struct Names(u32);

impl Names {
    /// Returns `removed-` and seven letters, with a final zero byte.
    fn next(&mut self) -> [u8; 16] {
        let mut name = *b"removed-aaaaaaa\0";
        let mut rest = self.0;
        self.0 = self.0.wrapping_add(1);
        for letter in name.iter_mut().rev().skip(1).take(7) {
            *letter = b'a'.wrapping_add((rest % 16) as u8);
            rest /= 16;
        }
        name
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Entry {
    Gone,
    /// Some of the entry's contents were removed, and the rest is left.
    Less,
    Left,
}

/// Removes all entries of a directory, except those for which `is_spared` returns `true`. Returns
/// whether all others are gone.
unsafe fn empty(top: i32, is_spared: &dyn Fn(&CStr) -> bool) -> bool {
    let mut names = Names(0);
    loop {
        let (mut progress, mut left) = (false, false);
        let mut visit = |name: &CStr, is_dir: bool| {
            if is_spared(name) {
                return;
            }
            // SAFETY: the names end in a zero byte.
            match unsafe { remove_entry(top, name, is_dir, &mut names) } {
                Entry::Gone | Entry::Less => progress = true,
                Entry::Left => left = true,
            }
        };
        // SAFETY: `top` is an open directory, and `visit` keeps no name.
        unsafe { each_entry(top, &mut visit) };
        // A pass may miss entries while others are removed or moved up, so the passes are repeated
        // until nothing changes.
        if !progress {
            return !left;
        }
    }
}

/// Removes an entry of `top`. Moves directories inside the entry up into `top`.
unsafe fn remove_entry(top: i32, name: &CStr, is_dir: bool, names: &mut Names) -> Entry {
    // SAFETY: the names end in a zero byte. The descriptors are closed again.
    unsafe {
        if remove_plain(top, name, is_dir) {
            return Entry::Gone;
        }
        let sub = enter(top, name.as_ptr());
        if sub < 0 {
            return match errno() {
                libc::ENOENT => Entry::Gone,
                _ => Entry::Left,
            };
        }
        // A service may have left a directory that its owner cannot write to.
        libc::fchmod(sub, 0o700);
        let mut result = Entry::Left;
        loop {
            let mut progress = false;
            each_entry(sub, &mut |inner, is_dir| {
                progress |= remove_plain(sub, inner, is_dir) || move_up(sub, inner, top, names);
            });
            if !progress {
                break;
            }
            result = Entry::Less;
        }
        libc::close(sub);
        if libc::unlinkat(top, name.as_ptr(), libc::AT_REMOVEDIR) == 0 {
            result = Entry::Gone;
        }
        result
    }
}

/// Removes a file, a link, or an empty directory, but never a mount point. `is_dir` decides which
/// call comes first.
unsafe fn remove_plain(dir: i32, name: &CStr, is_dir: bool) -> bool {
    let (first, second) = match is_dir {
        true => (libc::AT_REMOVEDIR, 0),
        false => (0, libc::AT_REMOVEDIR),
    };
    // SAFETY: the names end in a zero byte.
    let remove = |flags| unsafe { libc::unlinkat(dir, name.as_ptr(), flags) == 0 };
    remove(first) || remove(second)
}

/// Moves a directory up into `top`. The kernel refuses to move a mount point.
unsafe fn move_up(dir: i32, name: &CStr, top: i32, names: &mut Names) -> bool {
    // SAFETY: the names end in a zero byte.
    unsafe {
        let mut is_writable = false;
        for _ in 0..16 {
            let new = names.next();
            if libc::renameat(dir, name.as_ptr(), top, new.as_ptr().cast()) == 0 {
                return true;
            }
            match errno() {
                // Another process has created an entry with this name.
                libc::ENOTEMPTY | libc::EEXIST | libc::ENOTDIR | libc::EISDIR => {}
                // `fchmodat` follows links, so root, who needs no permission, must not call it.
                // Other users can change only their own files.
                libc::EACCES | libc::EPERM if !is_writable && libc::geteuid() != 0 => {
                    libc::fchmodat(dir, name.as_ptr(), 0o700, 0);
                    is_writable = true;
                }
                _ => return false,
            }
        }
        false
    }
}

/// Opens a directory. Fails on a link and on a mount point.
unsafe fn enter(dir: i32, name: *const c_char) -> i32 {
    // SAFETY: the names end in a zero byte.
    unsafe {
        let mut sub = open_here(dir, name);
        if sub < 0 && errno() == libc::EACCES && libc::geteuid() != 0 {
            // Root must not call `fchmodat`, which follows links: see `move_up`.
            libc::fchmodat(dir, name, 0o700, 0);
            sub = open_here(dir, name);
        }
        sub
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
unsafe fn open_here(dir: i32, name: *const c_char) -> i32 {
    /// `struct open_how` of `linux/openat2.h`.
    #[repr(C)]
    struct How {
        flags: u64,
        mode: u64,
        resolve: u64,
    }
    const NO_MOUNTS_AND_NO_LINKS: u64 = 0x01 | 0x04;
    let how = How {
        flags: DIRECTORY as u64,
        mode: 0,
        resolve: NO_MOUNTS_AND_NO_LINKS,
    };
    // SAFETY: the name ends in a zero byte, and `size` is the size of the struct.
    unsafe {
        let size = std::mem::size_of::<How>();
        let opened = libc::syscall(libc::SYS_openat2, dir, name, &raw const how, size) as i32;
        if opened >= 0 || !matches!(errno(), libc::ENOSYS | libc::EPERM) {
            return opened;
        }
        // Linux before 5.6 lacks `openat2`, and a sandbox may forbid it.
        open_on_same_device(dir, name)
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
unsafe fn open_here(dir: i32, name: *const c_char) -> i32 {
    // SAFETY: the caller gives a name that ends in a zero byte.
    unsafe { open_on_same_device(dir, name) }
}

/// Opens a directory with older calls, which do not detect a mount of the same file system.
unsafe fn open_on_same_device(dir: i32, name: *const c_char) -> i32 {
    // SAFETY: the names end in a zero byte.
    unsafe {
        let sub = libc::openat(dir, name, DIRECTORY);
        if sub < 0 {
            return sub;
        }
        let device = |fd| status(fd).map(|status| status.st_dev);
        if device(sub) == device(dir) {
            return sub;
        }
        libc::close(sub);
        -1
    }
}

unsafe fn status(fd: i32) -> Option<libc::stat> {
    // SAFETY: all bytes are valid in a `stat`, which the call fills in.
    unsafe {
        let mut status: libc::stat = std::mem::zeroed();
        (libc::fstat(fd, &mut status) == 0).then_some(status)
    }
}

/// Calls `visit` with each entry's name and a hint: `true` if the entry seems to be a directory.
/// May miss entries that are created or removed in the meantime.
#[cfg(any(target_os = "linux", target_os = "android"))]
unsafe fn each_entry(dir: i32, visit: &mut dyn FnMut(&CStr, bool)) {
    // SAFETY: the kernel fills the buffer with whole records of `linux_dirent64`: u64 inode, i64
    // offset, u16 length, u8 type, and the name with its final zero.
    unsafe {
        let mut buffer = [0_u64; 256];
        libc::lseek(dir, 0, libc::SEEK_SET);
        loop {
            let size = std::mem::size_of_val(&buffer);
            let got = libc::syscall(libc::SYS_getdents64, dir, buffer.as_mut_ptr(), size);
            if got <= 0 {
                return;
            }
            let start = buffer.as_ptr().cast::<u8>();
            let mut at = 0_usize;
            while at < got as usize {
                let record = start.add(at);
                let length = usize::from(record.add(16).cast::<u16>().read_unaligned());
                let name = CStr::from_ptr(record.add(19).cast());
                if name != c"." && name != c".." {
                    visit(name, *record.add(18) == libc::DT_DIR);
                }
                if length == 0 {
                    return;
                }
                at = at.wrapping_add(length);
            }
        }
    }
}

/// This version allocates, so a supervisor must not call it.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
unsafe fn each_entry(dir: i32, visit: &mut dyn FnMut(&CStr, bool)) {
    // SAFETY: the stream has its own descriptor and is closed again; an entry is valid until the
    // next one is read.
    unsafe {
        let copy = libc::openat(dir, c".".as_ptr(), DIRECTORY);
        let stream = libc::fdopendir(copy);
        if stream.is_null() {
            if copy >= 0 {
                libc::close(copy);
            }
            return;
        }
        loop {
            let entry = libc::readdir(stream);
            if entry.is_null() {
                break;
            }
            let name = CStr::from_ptr((*entry).d_name.as_ptr());
            if name != c"." && name != c".." {
                visit(name, false);
            }
        }
        libc::closedir(stream);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::sys::tests::TestDir;

    /// Creates a service directory in a new directory, which also contains a file `outside`.
    fn scratch() -> TestDir {
        let dir = TestDir::new();
        let path = dir.path();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("it is ours");
        fs::create_dir_all(path.join("service/d/deep/deeper")).expect("the temp directory is writable");
        for file in ["service/log", "service/lock", "service/d/deep/data", "outside"] {
            fs::write(path.join(file), "x").expect("the temp directory is writable");
        }
        for number in 0..500 {
            fs::write(path.join(format!("service/d/deep/deeper/{number}")), "").expect("as above");
        }
        symlink(path.join("outside"), path.join("service/d/link")).expect("as above");
        symlink(path, path.join("service/d/up")).expect("as above");
        dir
    }

    #[test]
    fn removes_everything_and_follows_no_link() {
        let dir = scratch();
        let read_only = fs::Permissions::from_mode(0o500);
        fs::set_permissions(dir.path().join("service/d/deep/deeper"), read_only).expect("it is ours");
        assert!(remove_service_dir(&dir.path().join("service"), false));
        assert!(!dir.path().join("service").exists());
        assert!(dir.path().join("outside").exists());
    }

    #[test]
    fn a_kept_log_stays() {
        let dir = scratch();
        fs::write(dir.path().join("service/kept"), "").expect("it is ours");
        assert!(remove_service_dir(&dir.path().join("service"), true));
        assert!(dir.path().join("service/log").exists());
        assert!(!dir.path().join("service/d").exists() && !dir.path().join("service/lock").exists());
    }

    #[test]
    fn a_directory_that_is_not_there_does_no_harm() {
        let dir = scratch();
        remove_tree(&dir.path().join("nothing"));
        assert!(dir.path().join("service/log").exists());
    }

    #[test]
    fn a_tree_may_be_deeper_than_any_stack() {
        let dir = scratch();
        // Each directory is moved into the next one, so the tree gets deeper than a path can name.
        let data = dir.path().join("service/d");
        fs::create_dir(data.join("0")).expect("it is ours");
        for level in 1..20_000_u32 {
            let (inner, outer) = (data.join((level - 1).to_string()), data.join(level.to_string()));
            fs::create_dir(&outer).expect("it is ours");
            fs::rename(inner, outer.join("in")).expect("it is ours");
        }
        let remove = std::thread::Builder::new().stack_size(256 * 1024).spawn({
            let service_dir = dir.path().join("service");
            move || remove_service_dir(&service_dir, false)
        });
        assert!(remove.expect("a thread").join().expect("no overflow"));
        assert!(!dir.path().join("service").exists());
    }

    #[test]
    fn nothing_is_removed_where_somebody_else_may_have_put_it() {
        let dir = scratch();
        // The parent is a link.
        symlink(dir.path(), dir.path().join("link")).expect("it is ours");
        remove_service_dir(&dir.path().join("link/service"), false);
        assert!(dir.path().join("service/log").exists());
        // The parent is open to other users.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("it is ours");
        remove_service_dir(&dir.path().join("service"), false);
        assert!(dir.path().join("service/log").exists());
    }

    #[test]
    fn each_directory_that_is_moved_gets_a_name_of_its_own() {
        let mut names = Names(0);
        let all: std::collections::HashSet<_> = (0..100).map(|_| names.next()).collect();
        assert_eq!(all.len(), 100);
        assert!(all.iter().all(|name| CStr::from_bytes_with_nul(name).is_ok()));
    }
}
