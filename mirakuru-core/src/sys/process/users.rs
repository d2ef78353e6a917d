//! Tracks the users of a service that is stopped when its last user is gone. A user is a process.
//!
//! Each user holds the write end of a FIFO, and the service's supervisor polls the read end. When
//! the last writer has closed the FIFO or died, the kernel reports a hang-up. The supervisor then
//! hides the service from new users. If there is still no user, it stops the service
//! (`linux/supervisor.rs`).
//!
//! If the last user exits normally, it waits until the service has been stopped. So the service is
//! gone before the runner notices the user's exit.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::Duration;

use nix::errno::Errno;

use super::exit;
use super::slots::{Slot, Slots};
use crate::sys::clock_ns;
use crate::sys::files::make_fifo;
use crate::sys::io::wait::to_read;

/// Time that the supervisor may take beyond the grace.
const MARGIN: Duration = Duration::from_secs(30);

/// While this value exists, this process is a user of one service.
#[derive(Debug)]
pub(crate) struct User {
    slot: &'static Slot<Use>,
}

#[derive(Debug)]
struct Use {
    /// The write end of the FIFO; -1 once this process no longer uses the service.
    writer: AtomicI32,
    /// A read end of the FIFO, opened before the write end so that it sees the hang-up.
    reader: AtomicI32,
    /// The lock that the supervisor holds until nothing is left of the service.
    lock: AtomicI32,
    limit_ns: AtomicU64,
}

static SLOTS: Slots<Use> = Slots::new();

impl User {
    /// Makes this process a user of the service with this FIFO and lock. Creates the FIFO if it is
    /// missing; the lock must exist.
    ///
    /// # Errors
    ///
    /// The error of the operating system; `NotFound` if the directory or the lock is gone.
    pub(crate) fn join(fifo: &Path, lock: &Path, grace: Duration) -> io::Result<User> {
        make_fifo(fifo)?;
        let mut options = OpenOptions::new();
        options.custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW);
        let reader = options.clone().read(true).open(fifo)?;
        let writer = options.clone().write(true).open(fifo)?;
        let lock = options.read(true).open(lock)?;
        exit::install_once();
        let slot = SLOTS.take(|| Use {
            writer: AtomicI32::new(-1),
            reader: AtomicI32::new(-1),
            lock: AtomicI32::new(-1),
            limit_ns: AtomicU64::new(0),
        });
        let limit = grace.saturating_add(MARGIN).as_nanos();
        slot.limit_ns
            .store(u64::try_from(limit).unwrap_or(u64::MAX), Ordering::SeqCst);
        slot.reader.store(reader.into_raw_fd(), Ordering::SeqCst);
        slot.lock.store(lock.into_raw_fd(), Ordering::SeqCst);
        slot.writer.store(writer.into_raw_fd(), Ordering::SeqCst);
        Ok(User { slot })
    }

    /// Duplicates the read end of the FIFO, for the supervisor.
    ///
    /// # Errors
    ///
    /// Fails if this process has run out of descriptors, or has begun to exit.
    pub(crate) fn reader(&self) -> io::Result<OwnedFd> {
        let reader = self.slot.reader.load(Ordering::SeqCst);
        // SAFETY: the call takes numbers; the copy has no other owner.
        unsafe {
            let copy = Errno::result(libc::fcntl(reader, libc::F_DUPFD_CLOEXEC, 3))?;
            Ok(OwnedFd::from_raw_fd(copy))
        }
    }
}

impl Drop for User {
    fn drop(&mut self) {
        // If `leave_all` has taken the writer, `leave_all` also closes the other descriptors.
        if let Some(writer) = owned(&self.slot.writer) {
            drop((writer, owned(&self.slot.reader), owned(&self.slot.lock)));
            self.slot.release();
        }
    }
}

/// Takes the descriptor out of `place`, if it is still there.
fn owned(place: &AtomicI32) -> Option<OwnedFd> {
    let fd = place.swap(-1, Ordering::SeqCst);
    // SAFETY: `join` stored the descriptor here, and the swap has taken it out, so it has no other
    // owner.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Leaves all services when the process exits normally, after its own services have been stopped.
/// If this process was the last user of a service, waits until the service has ended.
pub(super) fn leave_all() {
    SLOTS.iter().for_each(|slot| drop(owned(&slot.writer)));
    for slot in SLOTS.iter() {
        if let (Some(reader), Some(lock)) = (owned(&slot.reader), owned(&slot.lock)) {
            await_end(&reader, &lock, slot.limit_ns.load(Ordering::SeqCst));
        }
    }
}

/// Waits until no process of the service is left, or until the service has another user, but no
/// longer than `limit_ns`.
fn await_end(reader: &OwnedFd, lock: &OwnedFd, limit_ns: u64) {
    let deadline = clock_ns().saturating_add(limit_ns);
    let mut poll = to_read(reader.as_raw_fd());
    // SAFETY: the calls use a local variable and this process's own descriptors.
    unsafe {
        while libc::poll(&mut poll, 1, 0) > 0
            && poll.revents & libc::POLLHUP != 0
            && libc::flock(lock.as_raw_fd(), libc::LOCK_SH | libc::LOCK_NB) != 0
            && clock_ns() < deadline
        {
            libc::poll(ptr::null_mut(), 0, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::tests::TestDir;

    fn is_hung_up(reader: &OwnedFd) -> bool {
        let mut poll = to_read(reader.as_raw_fd());
        // SAFETY: the pointer is to a local variable.
        unsafe { libc::poll(&mut poll, 1, 0) > 0 && poll.revents & libc::POLLHUP != 0 }
    }

    #[test]
    fn the_end_of_the_last_user_is_seen_and_a_new_one_takes_it_back() {
        let dir = TestDir::new();
        let (fifo, lock) = (dir.path().join("users"), dir.path().join("lock"));
        std::fs::write(&lock, "").unwrap();
        let join = || User::join(&fifo, &lock, Duration::ZERO).unwrap();
        let (one, other) = (join(), join());
        let reader = one.reader().unwrap();
        drop(one);
        assert!(!is_hung_up(&reader));
        drop(other);
        // A child that another test forked may hold a copy of the write end for a moment.
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while !is_hung_up(&reader) {
            assert!(std::time::Instant::now() < deadline, "nobody uses it");
            std::thread::sleep(Duration::from_millis(1));
        }
        let again = join();
        assert!(!is_hung_up(&reader));
        drop(again);
    }

    #[test]
    fn a_service_that_has_gone_cannot_be_joined() {
        let dir = TestDir::new();
        let gone = dir.path().join("gone");
        let error = User::join(&gone.join("users"), &gone.join("lock"), Duration::ZERO).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
