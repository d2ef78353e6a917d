//! The way of a service's output into its log, in the supervisors of both back ends.
//!
//! Runs after a fork: see the head of `spawn.rs`.

use super::arena::{Arena, BUFFER};
use super::message::{OUTPUT, send};
use super::tools::{errno, now_ms, now_ns};
use crate::sys::log_record::Record;

/// How much one turn of a supervisor's loop takes from each stream. A flood, or a slow disk, then
/// does not keep the supervisor from its other duties.
const TURN: Bound = Bound { reads: 8, ms: 20 };
/// How much is taken once no more will come: more than a pipe holds. The time keeps a flood on a
/// slow disk from holding up the end of the service.
const REST: Bound = Bound { reads: 64, ms: 250 };

#[derive(Clone, Copy)]
struct Bound {
    /// Buffers full.
    reads: usize,
    ms: i64,
}

pub(super) struct Output {
    /// Readable ends of the pipes that are the service's standard output and error, or -1.
    pub(super) pipes: [i32; 2],
    control: i32,
    log: i32,
    index: i32,
    /// Index bytes written; always a multiple of a record's length.
    index_len: i64,
    /// Output that could not be written, by stream, and has no record yet.
    lost: [u32; 2],
    /// The test process wants to know of new output.
    armed: bool,
    /// There has been output since the test process was told of any. It may have read that already.
    news: bool,
}

impl Output {
    pub(super) unsafe fn new(a: &Arena, pipes: [i32; 2]) -> Output {
        Output {
            pipes,
            control: a.control,
            log: a.log,
            index: a.index,
            // SAFETY: plain system call.
            index_len: unsafe { libc::lseek(a.index, 0, libc::SEEK_END) }.max(0),
            lost: [0; 2],
            armed: false,
            news: false,
        }
    }

    /// The test process asks to be told of new output, once.
    pub(super) fn arm(&mut self) {
        self.armed = true;
        self.tell_news();
    }

    fn tell_news(&mut self) {
        if self.armed && self.news {
            (self.armed, self.news) = (false, false);
            send(self.control, [OUTPUT, 0, 0, 0, 0, 0, 0, 0]);
        }
    }

    /// Moves a part of the output into the log.
    pub(super) unsafe fn take_turn(&mut self, buffer: &mut [u8; BUFFER], stream: usize) {
        // SAFETY: as `relay`.
        unsafe { self.relay(buffer, stream, TURN) };
    }

    /// Moves all that the pipes hold now into the log.
    pub(super) unsafe fn take_rest(&mut self, buffer: &mut [u8; BUFFER]) {
        // SAFETY: as `relay`.
        unsafe {
            self.relay(buffer, 0, REST);
            self.relay(buffer, 1, REST);
        }
    }

    /// The same, when nobody is left to print more. Output that has no place in the log is counted.
    pub(super) unsafe fn finish(&mut self, buffer: &mut [u8; BUFFER]) {
        // SAFETY: as `relay`.
        unsafe {
            self.take_rest(buffer);
            self.record_loss(0);
            self.record_loss(1);
        }
    }

    unsafe fn relay(&mut self, buffer: &mut [u8; BUFFER], stream: usize, bound: Bound) {
        let Some(pipe) = self.pipes.get(stream).copied().filter(|fd| *fd >= 0) else {
            return;
        };
        let until = now_ms().wrapping_add(bound.ms);
        // SAFETY: reads into the buffer, and never more than it holds.
        unsafe {
            for _ in 0..bound.reads {
                let got = libc::read(pipe, buffer.as_mut_ptr().cast(), buffer.len());
                if got < 0 && errno() == libc::EINTR {
                    continue;
                }
                if got < 0 {
                    break; // nothing there now
                }
                if got == 0 {
                    // All writers are gone.
                    libc::close(pipe);
                    if let Some(slot) = self.pipes.get_mut(stream) {
                        *slot = -1;
                    }
                    break;
                }
                self.write(buffer, stream, got as usize);
                self.news = true;
                if now_ms() >= until {
                    break;
                }
            }
        }
        self.tell_news();
    }

    /// Writes the first `len` bytes of the buffer into the log, and then their record into the
    /// index: a reader that finds a record finds its bytes. Bytes for which the disk has no room
    /// are counted as lost; the service never waits for room.
    pub(super) unsafe fn write(&mut self, buffer: &[u8], stream: usize, len: usize) {
        // SAFETY: writes from the buffer, and never more than it holds.
        unsafe {
            let len = len.min(buffer.len());
            let mut written = 0_usize;
            while written < len {
                let rest = buffer.as_ptr().add(written).cast();
                let got = libc::write(self.log, rest, len.wrapping_sub(written));
                if got > 0 {
                    written = written.wrapping_add(got as usize);
                } else if errno() != libc::EINTR {
                    break;
                }
            }
            if written > 0 {
                self.record_loss(stream);
                self.record(Record::output(stream, written as u32, now_ns() as u64));
            }
            if written < len {
                if let Some(lost) = self.lost.get_mut(stream) {
                    *lost = lost.saturating_add(len.wrapping_sub(written) as u32);
                }
                // At once, so that a report tells of it. The index is short, and may find room
                // where the log does not.
                self.record_loss(stream);
            }
        }
    }

    unsafe fn record_loss(&mut self, stream: usize) {
        let Some(lost) = self.lost.get(stream).copied().filter(|lost| *lost > 0) else {
            return;
        };
        // SAFETY: as `record`.
        if unsafe { self.record(Record::lost(stream, lost, now_ns() as u64)) } {
            if let Some(lost) = self.lost.get_mut(stream) {
                *lost = 0;
            }
        }
    }

    unsafe fn record(&mut self, record: Record) -> bool {
        let record = record.encode();
        let size = record.len();
        // SAFETY: a plain array.
        unsafe {
            if libc::write(self.index, record.as_ptr().cast(), size) == size as isize {
                self.index_len = self.index_len.wrapping_add(size as i64);
                return true;
            }
            // Half a record would put all later ones out of step.
            libc::ftruncate(self.index, self.index_len);
            false
        }
    }
}
