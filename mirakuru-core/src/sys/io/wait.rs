//! Waits until one of several descriptors is readable.

use std::os::fd::RawFd;
use std::time::Duration;

/// Waits until one of the descriptors is readable or at its end of file, but no longer than
/// `timeout`.
pub(crate) fn wait_readable(fds: &[RawFd], timeout: Duration) {
    poll(fds, timeout);
}

/// Like [`wait_readable`], but returns the descriptors that are readable or at their end of file.
pub(crate) fn readable(fds: &[RawFd], timeout: Duration) -> Vec<RawFd> {
    let mut readable = Vec::new();
    for polled in poll(fds, timeout) {
        if polled.revents != 0 {
            readable.push(polled.fd);
        }
    }
    readable
}

/// An entry for `poll` that waits until there is something to read. The supervisor may call this
/// after a fork.
pub(in crate::sys) fn to_read(fd: RawFd) -> libc::pollfd {
    libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    }
}

fn poll(fds: &[RawFd], timeout: Duration) -> Vec<libc::pollfd> {
    let mut polled: Vec<libc::pollfd> = fds.iter().map(|fd| to_read(*fd)).collect();
    let count = polled.len() as libc::nfds_t;
    #[cfg(target_os = "linux")]
    let result = {
        let time = libc::timespec {
            // `try_into` infers the type, because `libc` has deprecated the name `time_t` on musl.
            tv_sec: timeout.as_secs().try_into().unwrap_or(i32::MAX.into()),
            tv_nsec: timeout.subsec_nanos() as _,
        };
        // SAFETY: the pointers are to a list of the given length and to a `timespec`.
        unsafe { libc::ppoll(polled.as_mut_ptr(), count, &time, std::ptr::null()) }
    };
    #[cfg(not(target_os = "linux"))]
    let result = {
        // Rounds up, so that the caller does not spin during the last millisecond.
        let millis = i32::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
        // SAFETY: the pointer is to a list of the given length.
        unsafe { libc::poll(polled.as_mut_ptr(), count, millis) }
    };
    if result <= 0 {
        // After an error, `revents` is not valid in any entry.
        polled.clear();
    }
    polled
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::time::Instant;

    use super::*;

    #[test]
    fn one_of_several_ends_the_wait() {
        let (quiet, _kept) = std::os::unix::net::UnixStream::pair().unwrap();
        let (loud, mut other) = std::os::unix::net::UnixStream::pair().unwrap();
        let fds = [quiet.as_raw_fd(), loud.as_raw_fd()];
        let began = Instant::now();
        wait_readable(&fds, Duration::from_millis(20));
        assert!(began.elapsed() >= Duration::from_millis(20));
        other.write_all(b"x").unwrap();
        wait_readable(&fds, Duration::from_secs(600));
    }
}
