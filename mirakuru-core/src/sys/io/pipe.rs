//! Creates pipes, which older versions of `std` do not support, and checks whether a descriptor is
//! readable.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::sys::io::wait::to_read;

/// Creates a pipe. Returns the read end and the write end, both close-on-exec.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [-1; 2];
    #[cfg(any(target_os = "linux", target_os = "android"))]
    // SAFETY: the pointer is to two integers, which the call fills in.
    let result = unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) };
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    // SAFETY: the pointer is to two integers, which the call fills in.
    let result = unsafe { libc::pipe(fds.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so both are open descriptors without another owner.
    let pair = unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) };
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    for fd in fds {
        // SAFETY: setting a flag of an open descriptor touches no memory.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    Ok(pair)
}

/// Whether a descriptor is readable now, or at its end of file.
pub(crate) fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let mut polled = to_read(fd.as_raw_fd());
    // SAFETY: the pointer is to one live entry.
    unsafe { libc::poll(&mut polled, 1, 0) > 0 }
}
