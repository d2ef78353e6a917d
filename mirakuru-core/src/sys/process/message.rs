//! Defines the messages that the test process and a supervisor exchange over the control socket, in
//! both back ends.
//!
//! The supervisor's half runs after a fork: nothing here allocates, locks or panics.

use std::mem;
use std::os::fd::RawFd;
use std::time::Duration;

use nix::errno::Errno;

use super::plan::StopPolicy;

// A message is eight 32-bit numbers. The first is its kind, for example `STARTED`.
pub(super) const MESSAGE: usize = 8;
pub(super) type Message = [i32; MESSAGE];

/// To the test process: the program was executed. Carries the process ids of the service and of the
/// worker.
pub(super) const STARTED: i32 = 1;
/// To the test process: the start failed. Carries a `STAGE_*`, the error number and, for
/// `STAGE_SUPERVISOR`, the `Call`.
pub(super) const FAILED: i32 = 2;
/// To the test process, once for each [`ARM`]: the log has new output.
pub(super) const OUTPUT: i32 = 3;
/// To the test process: the main process has ended. Carries its wait status, 1 if it left
/// descendants (otherwise 0), and the time on CLOCK_MONOTONIC in two halves.
pub(super) const EXITED: i32 = 4;
/// To the test process, as the last message: no process of the service is left.
pub(super) const EMPTY: i32 = 5;
/// To the test process, in answer to [`PUBLISH`]. Carries 0 or the error number.
pub(super) const PUBLISHED: i32 = 6;
/// To the test process, in answer to [`SYNC`]: the log contains all bytes that were in the pipes.
pub(super) const SYNCED: i32 = 7;
/// To the worker: send [`OUTPUT`] when there is new output.
pub(super) const ARM: i32 = 10;
/// To the worker: stop the service. Carries the signal, the grace in ms, the kill signal, and a
/// flag. The flag is nonzero if the service is stopped because the test process ends. In that case
/// the supervisor waits for dependent services and removes the private directory.
pub(super) const STOP: i32 = 11;
/// The flag of a [`STOP`] if the test process ends in the middle of a test. In that case the
/// supervisor keeps the log.
pub(super) const STOP_IN_A_TEST: i32 = 2;
/// To the worker: send the carried signal to the service.
pub(super) const SIGNAL: i32 = 12;
/// To the worker: hand the service over to the run, then answer with [`PUBLISHED`].
pub(super) const PUBLISH: i32 = 13;
/// To the worker: move all output so far into the log, then answer with [`SYNCED`].
pub(super) const SYNC: i32 = 14;

pub(super) const STAGE_SUPERVISOR: i32 = 0;
pub(super) const STAGE_GROUPS: i32 = 1;
pub(super) const STAGE_GID: i32 = 2;
pub(super) const STAGE_UID: i32 = 3;
pub(super) const STAGE_CURRENT_DIR: i32 = 4;
pub(super) const STAGE_EXEC: i32 = 5;

const SIZE: usize = mem::size_of::<Message>();

/// Keeps `send` from raising SIGPIPE. Some of Apple's systems lack this flag, so `raw_socket::pair`
/// sets a socket option there.
#[cfg(not(target_vendor = "apple"))]
const NO_SIGNAL: i32 = libc::MSG_NOSIGNAL;
#[cfg(target_vendor = "apple")]
const NO_SIGNAL: i32 = 0;

/// Maximum number of attempts to send a message.
const TRIES: u32 = 50;

/// Sends a message, and returns whether the kernel accepted it.
///
/// Gives up after half a second at the latest, because a test process that does not read must not
/// block the supervisor. The socket's buffer has room for many more messages than are ever sent.
///
/// A stream socket may accept only a part of the message; the next attempt sends the rest.
pub(super) fn send(control: RawFd, message: Message) -> bool {
    let flags = libc::MSG_DONTWAIT | NO_SIGNAL;
    let mut sent = 0_usize;
    for _ in 0..TRIES {
        // SAFETY: the call reads only the rest of the array.
        let got = unsafe {
            let rest = message.as_ptr().cast::<u8>().add(sent).cast();
            libc::send(control, rest, SIZE.wrapping_sub(sent), flags)
        };
        match usize::try_from(got) {
            Ok(got) => sent = sent.wrapping_add(got),
            Err(_) => match Errno::last() {
                Errno::EINTR => continue,
                Errno::EAGAIN | Errno::ENOMEM | Errno::ENOBUFS => {}
                // The other side is gone, or a sandbox forbids the call.
                _ => return false,
            },
        }
        if sent >= SIZE {
            return true;
        }
        // SAFETY: the pointer is to one `pollfd`, a local variable.
        unsafe {
            let mut room = libc::pollfd {
                fd: control,
                events: libc::POLLOUT,
                revents: 0,
            };
            libc::poll(&mut room, 1, 10);
            if room.revents != 0 {
                // The socket has room, so the kernel lacks memory.
                libc::usleep(1000);
            }
        }
    }
    false
}

/// The [`EXITED`] message. `left` says whether the main process left descendants.
pub(super) fn exited(status: i32, left: bool, at: i64) -> Message {
    let [high, low] = [(at >> 32) as i32, at as i32];
    [EXITED, status, i32::from(left), high, low, 0, 0, 0]
}

/// The result of [`Inbox::receive`].
pub(super) enum Received {
    Message(Message),
    /// No message has arrived yet.
    Nothing,
    /// The other side has closed its end.
    Closed,
}

/// Assembles messages. A packet socket delivers each message whole; a stream socket may deliver it
/// in parts.
#[derive(Default)]
pub(super) struct Inbox {
    message: Message,
    filled: usize,
    /// Number of times in a row that the kernel had no memory for a message.
    starved: u32,
}

/// Limit for `starved`. Each failure waits 1 ms, so the limit is reached after about two seconds.
const STARVED: u32 = 2000;

/// Limit on the retries of an interrupted call. It ends the loop if a sandbox makes every call fail
/// with EINTR.
pub(super) const INTERRUPTED: u32 = 1000;

impl Inbox {
    /// Returns the next message. Waits for a message only if `wait` is set.
    pub(super) fn receive(&mut self, control: RawFd, wait: bool) -> Received {
        let flags = if wait { 0 } else { libc::MSG_DONTWAIT };
        let mut resets = 0_u32;
        let mut interrupted = 0_u32;
        loop {
            // SAFETY: the call writes only into the rest of the array.
            let got = unsafe {
                let rest = self.message.as_mut_ptr().cast::<u8>().add(self.filled).cast();
                libc::recv(control, rest, SIZE.wrapping_sub(self.filled), flags)
            };
            match usize::try_from(got) {
                Ok(0) => return Received::Closed,
                Ok(got) => {
                    self.starved = 0;
                    self.filled = self.filled.wrapping_add(got);
                    if self.filled >= SIZE {
                        self.filled = 0;
                        return Received::Message(self.message);
                    }
                }
                Err(_) => match Errno::last() {
                    Errno::EINTR if interrupted < INTERRUPTED => interrupted = interrupted.wrapping_add(1),
                    // The other side has closed its end before it read all our messages. Linux
                    // reports that once, before it delivers the other side's messages. The limit
                    // guards against a system that keeps reporting it.
                    Errno::ECONNRESET if resets < 3 => resets = resets.wrapping_add(1),
                    Errno::EAGAIN | Errno::EINTR => return Received::Nothing,
                    // The kernel is out of memory at the moment. Only a lasting shortage counts as
                    // a closed socket.
                    Errno::ENOMEM | Errno::ENOBUFS if self.starved < STARVED => {
                        self.starved = self.starved.wrapping_add(1);
                        // SAFETY: the call takes only numbers.
                        unsafe { libc::usleep(1000) };
                        return Received::Nothing;
                    }
                    _ => return Received::Closed,
                },
            }
        }
    }
}

pub(super) fn stop_message(policy: StopPolicy, clean_up: bool) -> Message {
    let grace = milliseconds(policy.grace);
    [
        STOP,
        policy.signal,
        grace,
        policy.kill_signal,
        i32::from(clean_up),
        0,
        0,
        0,
    ]
}

/// The grace in milliseconds, at most `i32::MAX`.
pub(super) fn milliseconds(grace: Duration) -> i32 {
    i32::try_from(grace.as_millis()).unwrap_or(i32::MAX)
}
