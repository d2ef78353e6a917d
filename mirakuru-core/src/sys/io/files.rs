//! Functions that the standard library lacks, for directories, lock files and users.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;

use crate::sys::process::calls::Call;

/// A flag for `custom_flags` that makes the open fail on a symbolic link.
pub(crate) const NO_FOLLOW: i32 = libc::O_NOFOLLOW;

/// The effective user id of this process.
pub(crate) fn euid() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// The effective group id of this process.
pub(crate) fn egid() -> u32 {
    nix::unistd::getegid().as_raw()
}

/// The ids of the user with this name and of the user's primary group.
pub(crate) fn user(name: &str) -> Option<(u32, u32)> {
    let user = nix::unistd::User::from_name(name).ok().flatten()?;
    Some((user.uid.as_raw(), user.gid.as_raw()))
}

/// Creates a FIFO that only this user can open, unless the file exists already.
///
/// # Errors
///
/// Fails with the error of the operating system.
pub(in crate::sys) fn make_fifo(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path ends in a zero byte and outlives the call.
    match Errno::result(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }) {
        Ok(_) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Fills a buffer with random bytes.
///
/// # Errors
///
/// Fails if the system cannot provide random bytes.
pub(crate) fn random(buffer: &mut [u8]) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        // SAFETY: the kernel writes into the buffer, and never more than it holds.
        let got = unsafe { libc::getrandom(buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        if usize::try_from(got) == Ok(buffer.len()) {
            return Ok(());
        }
    }
    File::open("/dev/urandom")?.read_exact(buffer)
}

/// Opens a directory. Fails on a symbolic link.
pub(crate) fn open_dir(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
        .open(path)
}

/// Opens a lock file for reading and writing. With `create`, creates a missing file with mode 0600.
/// Never follows a symbolic link.
pub(crate) fn open_lock(path: &Path, create: bool) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(create)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
}

/// Takes the exclusive `flock` of an open file, unless another process holds a lock on it. Returns
/// whether this process now holds the lock.
///
/// The lock belongs to the open file description. Copies of the descriptor, in this process or
/// inherited, hold the same lock. It is released when the last copy is closed, or when [`unlock`]
/// releases it for all of them.
pub(crate) fn try_flock(file: BorrowedFd<'_>) -> io::Result<bool> {
    // SAFETY: flock takes no pointers, and the descriptor is open for as long as it is borrowed.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
        return Ok(true);
    }
    let e = io::Error::last_os_error();
    match e.kind() {
        io::ErrorKind::WouldBlock => Ok(false),
        _ => Err(not_locked(&e)),
    }
}

/// Adds the name of the call and a remedy to an error.
fn not_locked(source: &io::Error) -> io::Error {
    let (attempt, remedy) = (Call::Flock.attempt(), Call::Flock.remedy(source));
    let remedy = remedy.unwrap_or_else(|| "put TMPDIR on a file system that supports locks".to_owned());
    io::Error::new(source.kind(), format!("could not {attempt}: {source}; {remedy}"))
}

/// Releases the `flock` of a file for all copies of the descriptor. Closing the file is not enough:
/// a process that another thread has just forked holds a copy until its exec.
pub(crate) fn unlock(file: BorrowedFd<'_>) {
    // SAFETY: flock takes no pointers, and the descriptor is open.
    unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_UN) };
}

/// Runs a function while this process holds the exclusive `flock` of a file.
///
/// # Errors
///
/// The errors of the function and of the lock.
pub fn locked<T>(file: &File, f: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    // SAFETY: flock takes no pointers, and the descriptor is open.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) } != 0 {
        return Err(not_locked(&io::Error::last_os_error()));
    }
    let done = f();
    unlock(file.as_fd());
    done
}

/// Opens the standard error of another process for appending. Fails for a pipe without a reader,
/// and for a socket.
///
/// # Errors
///
/// Fails with the error of the operating system.
pub fn append_to_stderr_of(pid: u32) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(format!("/proc/{pid}/fd/2"))
}

/// Whether a process holds the exclusive `flock` of a file. Tries to get a shared lock, which
/// several processes can hold at the same time.
pub(crate) fn is_locked(file: BorrowedFd<'_>) -> io::Result<bool> {
    // SAFETY: flock takes no pointers, and the descriptor is open.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_SH | libc::LOCK_NB) } == 0 {
        return Ok(false);
    }
    let e = io::Error::last_os_error();
    match e.kind() {
        io::ErrorKind::WouldBlock => Ok(true),
        _ => Err(not_locked(&e)),
    }
}

/// Whether a process with this id exists and is not a zombie. A process of another user counts,
/// even if `/proc` does not show it.
pub(crate) fn process_lives(pid: u32) -> bool {
    match crate::sys::proc::stat(pid) {
        Some(stat) => stat.is_alive(),
        None => process_exists(pid),
    }
}

/// Whether a process with this id exists, even one that we may not signal.
pub(crate) fn process_exists(pid: u32) -> bool {
    let pid = nix::unistd::Pid::from_raw(pid as i32);
    nix::sys::signal::kill(pid, None) != Err(nix::Error::ESRCH)
}

/// Marks a System V shared memory segment for removal. The kernel removes it as soon as no process
/// is attached to it.
///
/// # Errors
///
/// Fails if the segment does not exist, or belongs to another user.
pub fn release_segment(id: i32) -> io::Result<()> {
    // SAFETY: this command takes no pointer.
    match unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_is_denied_names_the_call_and_the_remedy() {
        let text = |errno| not_locked(&io::Error::from_raw_os_error(errno)).to_string();
        let denied = text(libc::EPERM);
        assert!(
            denied.starts_with("could not mark a file as in use with `flock`: "),
            "{denied}"
        );
        assert!(
            denied.contains("seccomp filter or security module allow `flock`"),
            "{denied}"
        );
        let without_locks = text(libc::ENOLCK);
        assert!(
            without_locks.ends_with("put TMPDIR on a file system that supports locks"),
            "{without_locks}"
        );
    }
}
