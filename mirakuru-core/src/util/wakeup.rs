//! [`Wakeup`]: a future that waits until a descriptor is readable or a time has passed, in any
//! async runtime.
//!
//! One thread serves all waits. The first wait starts the thread, which exits when there have been
//! no waits for a while.

use std::fs::File;
use std::future::Future;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::sys;
use crate::util::thread;

/// The thread exits when there have been no waits for this long.
const LINGERS: Duration = Duration::from_millis(200);
/// The maximum length of one wait, so that its end is always a valid `Instant`. After it, the
/// caller waits again.
const LONGEST: Duration = Duration::from_secs(60);

/// A future that completes when one of the descriptors is readable, or when the time has passed.
/// The descriptors must stay open while the future exists. The future may complete early, so the
/// caller must check its condition, and wait again if necessary.
#[derive(Debug)]
#[must_use = "a future does nothing until it is awaited"]
pub struct Wakeup {
    until: Instant,
    fds: Vec<RawFd>,
    /// The id of this wait in [`Waits`]. `None` before the first poll.
    id: Option<u64>,
}

impl Wakeup {
    pub(crate) fn new(time: Duration, fds: Vec<RawFd>) -> Wakeup {
        Wakeup {
            until: Instant::now() + time.min(LONGEST),
            fds,
            id: None,
        }
    }
}

impl Future for Wakeup {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut waits = WAITS.lock();
        if let Some(id) = self.id {
            let Some(entry) = waits.entries.iter_mut().find(|entry| entry.id == id) else {
                return Poll::Ready(());
            };
            entry.waker.clone_from(cx.waker());
            return Poll::Pending;
        }
        if !waits.has_thread() {
            // If there is no thread or no pipe, the caller checks again every millisecond.
            drop(waits);
            std::thread::sleep(Duration::from_millis(1));
            return Poll::Ready(());
        }
        let id = waits.next;
        waits.next += 1;
        waits.entries.push(Entry {
            id,
            until: self.until,
            fds: self.fds.clone(),
            waker: cx.waker().clone(),
        });
        waits.interrupt();
        self.id = Some(id);
        Poll::Pending
    }
}

impl Drop for Wakeup {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            let mut waits = WAITS.lock();
            waits.entries.retain(|entry| entry.id != id);
        }
    }
}

struct Entry {
    id: u64,
    until: Instant,
    fds: Vec<RawFd>,
    waker: Waker,
}

/// All waits, and the thread that serves them.
struct Waits {
    entries: Vec<Entry>,
    next: u64,
    /// The id of the process in which the thread runs. A forked child has no such thread.
    runs_in: u32,
    /// A byte in this pipe interrupts the thread's wait.
    pipe: Option<(File, File)>,
    /// Whether the pipe contains a byte.
    is_interrupted: bool,
}

struct Locked(Mutex<Waits>);

static WAITS: Locked = Locked(Mutex::new(Waits {
    entries: Vec::new(),
    next: 0,
    runs_in: 0,
    pipe: None,
    is_interrupted: false,
}));

impl Locked {
    fn lock(&self) -> MutexGuard<'_, Waits> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waits {
    /// Starts the thread if it is not running. Returns whether it is running now.
    fn has_thread(&mut self) -> bool {
        let me = std::process::id();
        if self.runs_in == me {
            return true;
        }
        let Ok((reader, writer)) = sys::pipe() else {
            return false;
        };
        (self.pipe, self.is_interrupted) = (Some((reader.into(), writer.into())), false);
        let begun = thread::spawn("mirakuru-wakeup", Box::new(run));
        if begun.is_ok() {
            self.runs_in = me;
        }
        begun.is_ok()
    }

    fn interrupt(&mut self) {
        if let Some((_, writer)) = self.pipe.as_mut().filter(|_| !self.is_interrupted) {
            self.is_interrupted = writer.write_all(&[1]).is_ok();
        }
    }

    fn end_interruption(&mut self) {
        if let Some((reader, _)) = self.pipe.as_mut().filter(|_| self.is_interrupted) {
            let _ = reader.read_exact(&mut [0]);
        }
        self.is_interrupted = false;
    }
}

/// Runs on the thread. Returns when there have been no waits for a while.
fn run() {
    let mut idle_since = Instant::now();
    loop {
        let mut waits = WAITS.lock();
        waits.end_interruption();
        let now = Instant::now();
        if !waits.entries.is_empty() {
            idle_since = now;
        } else if now.duration_since(idle_since) >= LINGERS {
            (waits.runs_in, waits.pipe) = (0, None);
            return;
        }
        let until = waits.entries.iter().map(|entry| entry.until).min();
        let until = until.unwrap_or(idle_since + LINGERS);
        let mut fds = Vec::new();
        if let Some((reader, _)) = &waits.pipe {
            fds.push(reader.as_raw_fd());
        }
        for entry in &waits.entries {
            fds.extend_from_slice(&entry.fds);
        }
        drop(waits);

        let told = sys::readable(&fds, until.saturating_duration_since(now));

        let mut waits = WAITS.lock();
        let now = Instant::now();
        let mut over = Vec::new();
        for entry in std::mem::take(&mut waits.entries) {
            if entry.until <= now || entry.fds.iter().any(|fd| told.contains(fd)) {
                over.push(entry);
            } else {
                waits.entries.push(entry);
            }
        }
        drop(waits);
        for entry in over {
            entry.waker.wake();
        }
    }
}
