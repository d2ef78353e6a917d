//! Moves a service's output from its pipes into its log. The supervisors of both back ends use this
//! code.
//!
//! Runs after a fork: see the head of `spawn.rs`.

use std::ffi::{CStr, c_char};

use super::arena::{Arena, BUFFER};
use super::message::{OUTPUT, send};
use super::plan::LogPart;
use super::tools::{errno, now_ms, now_ns};
use crate::sys::log_record::{self, Record};

/// Limit for one stream in one pass of the supervisor's loop. It keeps a flood of output or a slow
/// disk from holding up the supervisor's other work.
const PASS: Bound = Bound { reads: 8, ms: 20 };
/// Limit for the last output, with more reads than a full pipe needs. The time limit keeps a flood
/// on a slow disk from delaying the stop of the service.
const REST: Bound = Bound { reads: 64, ms: 250 };

#[derive(Clone, Copy)]
struct Bound {
    /// Number of times that the buffer may be filled.
    reads: usize,
    /// Time in milliseconds after which the pass ends.
    ms: i64,
}

const NOTICE: &[u8] =
    b"\n[mirakuru: the log has reached half of its limit. Its last parts are in the files `log.1`, \
    `log.2` and `log.3` beside this one; the parts between are left out.]\n";

pub(super) struct Output {
    /// Read ends of the pipes for the service's standard output and error, or -1.
    pub(super) pipes: [i32; 2],
    control: i32,
    log: i32,
    index: i32,
    /// The length of the index in bytes, always a multiple of a record's length.
    index_len: i64,
    /// Path of the service directory. If it is null, the log has a single part.
    dir: *const c_char,
    /// Size limits of the current part and of later parts, in bytes of the log and its index
    /// together.
    part_len: i64,
    later_len: i64,
    part: LogPart,
    /// Number of the part that was open at the start. `Output` does not own that part's
    /// descriptors.
    first: u32,
    /// Number of bytes in the current part of the log.
    log_len: i64,
    /// Number of bytes of each stream that could not be written and have no record yet.
    lost: [u32; 2],
    /// Whether the test process has asked for a message about new output.
    armed: bool,
    /// Whether there has been output since the last [`OUTPUT`] message.
    news: bool,
}

impl Output {
    pub(super) unsafe fn new(a: &Arena, pipes: [i32; 2]) -> Output {
        // An earlier worker may have begun a new part. If so, nothing more goes into this part.
        // SAFETY: `has_ended` reads into its own array.
        let is_over = unsafe { has_ended(a.index) };
        Output {
            pipes,
            control: a.control,
            log: if is_over { -1 } else { a.log },
            index: if is_over { -1 } else { a.index },
            // SAFETY: the call takes only numbers.
            index_len: unsafe { libc::lseek(a.index, 0, libc::SEEK_END) }.max(0),
            dir: a.private_dir,
            part_len: match a.log_at.number {
                0 => a.log_part.saturating_mul(2),
                _ => a.log_part,
            },
            later_len: a.log_part,
            part: a.log_at,
            first: a.log_at.number,
            // SAFETY: the call takes only numbers.
            log_len: unsafe { libc::lseek(a.log, 0, libc::SEEK_END) }.max(0),
            lost: [0; 2],
            armed: false,
            news: false,
        }
    }

    /// Records that the test process wants one message about new output.
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

    /// Moves output of one stream into the log, within the limit of one pass.
    pub(super) unsafe fn take_turn(&mut self, buffer: &mut [u8; BUFFER], stream: usize) {
        // SAFETY: `relay` uses only this value and the buffer.
        unsafe { self.relay(buffer, stream, PASS) };
    }

    /// Moves all bytes that are now in the pipes into the log.
    pub(super) unsafe fn take_rest(&mut self, buffer: &mut [u8; BUFFER]) {
        // SAFETY: `relay` uses only this value and the buffer.
        unsafe {
            self.relay(buffer, 0, REST);
            self.relay(buffer, 1, REST);
        }
    }

    /// Moves the rest of the output into the log, once no process is left that could print more.
    /// Records the bytes that could not be written as lost.
    pub(super) unsafe fn finish(&mut self, buffer: &mut [u8; BUFFER]) {
        // SAFETY: `relay` uses only this value and the buffer.
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
        // SAFETY: the call reads into the buffer, and never more than it holds.
        unsafe {
            for _ in 0..bound.reads {
                let got = libc::read(pipe, buffer.as_mut_ptr().cast(), buffer.len());
                if got < 0 && errno() == libc::EINTR {
                    continue;
                }
                if got < 0 {
                    break; // the pipe is empty now
                }
                if got == 0 {
                    // No process can write to this pipe any more.
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

    /// Writes the first `len` bytes of the buffer into the log, then their record into the index.
    /// So a reader that finds a record also finds its bytes. If the disk has no room, counts the
    /// bytes as lost; the service never waits for room.
    pub(super) unsafe fn write(&mut self, buffer: &[u8], stream: usize, len: usize) {
        // SAFETY: the call writes from the buffer, and never more than it holds.
        unsafe {
            let len = len.min(buffer.len());
            let mut done = 0_usize;
            while done < len {
                let room = self
                    .part_len
                    .saturating_sub(self.log_len.wrapping_add(self.index_len));
                if room <= 0 && !self.dir.is_null() {
                    if !self.begin_part() {
                        break;
                    }
                    continue;
                }
                let part = match self.dir.is_null() {
                    true => len.wrapping_sub(done),
                    false => len.wrapping_sub(done).min(room as usize),
                };
                let mut written = 0_usize;
                while written < part {
                    let rest = buffer.as_ptr().add(done).add(written).cast();
                    let got = libc::write(self.log, rest, part.wrapping_sub(written));
                    if got > 0 {
                        written = written.wrapping_add(got as usize);
                    } else if errno() != libc::EINTR {
                        break;
                    }
                }
                if written > 0 {
                    self.log_len = self.log_len.wrapping_add(written as i64);
                    done = done.wrapping_add(written);
                    self.record_loss(stream);
                    self.record(Record::output(stream, written as u32, now_ns() as u64));
                }
                if written < part {
                    break;
                }
            }
            if done < len {
                if let Some(lost) = self.lost.get_mut(stream) {
                    *lost = lost.saturating_add(len.wrapping_sub(done) as u32);
                }
                // The record is written immediately, so that a report can mention the loss. The
                // index is short, so it may have room when the log has none.
                self.record_loss(stream);
            }
        }
    }

    /// Starts a new part of the log, and removes an old part if there are too many. Returns whether
    /// the new part was started. The record that names the new part is added to the old index last,
    /// when the new files are ready.
    unsafe fn begin_part(&mut self) -> bool {
        let number = self.part.number.wrapping_add(1);
        // SAFETY: the strings end in a zero byte. Each descriptor opened here is closed here, or
        // replaces another.
        unsafe {
            let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
            let dir = libc::open(self.dir, flags);
            if dir < 0 {
                return false;
            }
            let [log_name, index_name] = log_record::part(number);
            libc::unlinkat(dir, index_name.as_ptr(), 0);
            libc::unlinkat(dir, log_name.as_ptr(), 0);
            let open = |name: &CStr| {
                let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_APPEND | libc::O_CLOEXEC;
                libc::openat(dir, name.as_ptr(), flags, 0o600)
            };
            let at = LogPart {
                number,
                log: self.part.log.wrapping_add(self.log_len as u64),
                // This counts the record that names the new part, which is written below.
                index: (self.part.index)
                    .wrapping_add(self.index_len as u64)
                    .wrapping_add(log_record::SIZE as u64),
            };
            let [first, second] = Record::head(number, at.log, at.index);
            let new_log = open(log_name);
            let new_index = open(index_name);
            let complete = new_log >= 0
                && new_index >= 0
                && self.is_ours(dir)
                && append(new_index, first)
                && append(new_index, second)
                && self.record(Record::next(number, self.log_len as u64));
            if complete {
                if self.part.number == 0 {
                    // A note for people who read the file. Programs ignore the note, because the
                    // record says that the part ends before it.
                    libc::write(self.log, NOTICE.as_ptr().cast(), NOTICE.len());
                }
                let [log_name, index_name] = log_record::part(number.wrapping_add(1));
                libc::unlinkat(dir, index_name.as_ptr(), 0);
                libc::unlinkat(dir, log_name.as_ptr(), 0);
                if self.part.number > self.first {
                    libc::close(self.log);
                    libc::close(self.index);
                }
                (self.log, self.index, self.part) = (new_log, new_index, at);
                self.part_len = self.later_len;
                self.log_len = 0;
                self.index_len = 2 * log_record::SIZE as i64;
            } else {
                for (fd, name) in [(new_index, index_name), (new_log, log_name)] {
                    if fd >= 0 {
                        libc::close(fd);
                        libc::unlinkat(dir, name.as_ptr(), 0);
                    }
                }
            }
            libc::close(dir);
            complete
        }
    }

    /// Whether this directory still holds the current part of the log. Another process could have
    /// replaced the file or the directory.
    unsafe fn is_ours(&self, dir: i32) -> bool {
        let name = match self.part.number {
            0 => c"log",
            number => {
                let [name, _] = log_record::part(number);
                name
            }
        };
        // SAFETY: an all-zero `stat` is valid.
        unsafe {
            let mut found: libc::stat = std::mem::zeroed();
            let mut open: libc::stat = std::mem::zeroed();
            libc::fstatat(dir, name.as_ptr(), &mut found, libc::AT_SYMLINK_NOFOLLOW) == 0
                && libc::fstat(self.log, &mut open) == 0
                && (found.st_dev, found.st_ino) == (open.st_dev, open.st_ino)
        }
    }

    unsafe fn record_loss(&mut self, stream: usize) {
        let Some(lost) = self.lost.get(stream).copied().filter(|lost| *lost > 0) else {
            return;
        };
        // SAFETY: `record` writes from its own array.
        if unsafe { self.record(Record::lost(stream, lost, now_ns() as u64)) } {
            if let Some(lost) = self.lost.get_mut(stream) {
                *lost = 0;
            }
        }
    }

    unsafe fn record(&mut self, record: Record) -> bool {
        // SAFETY: `append` writes from its own array; the other calls take only numbers.
        unsafe {
            if append(self.index, record) {
                self.index_len = self.index_len.wrapping_add(log_record::SIZE as i64);
                return true;
            }
            // Removes a partial record, because readers would misread all records after it.
            libc::ftruncate(self.index, self.index_len);
            false
        }
    }
}

unsafe fn append(index: i32, record: Record) -> bool {
    let record = record.encode();
    // SAFETY: the call reads only the bytes of the array.
    unsafe { libc::write(index, record.as_ptr().cast(), record.len()) == record.len() as isize }
}

/// Whether the last record in this index names another part.
unsafe fn has_ended(index: i32) -> bool {
    let mut record = [0_u8; log_record::SIZE];
    // SAFETY: the call reads into a local array.
    unsafe {
        let at = libc::lseek(index, 0, libc::SEEK_END).saturating_sub(log_record::SIZE as i64);
        libc::pread(index, record.as_mut_ptr().cast(), record.len(), at.max(0)) == record.len() as isize
            && Record::decode(&record).as_next().is_some()
    }
}
