//! Reads a service's log and the index beside it while the supervisor writes them.
//!
//! Both files are append only, and the supervisor alone writes them. `log` has the plain bytes of
//! standard output and standard error as they came. `log.index` has one [`Record`] for each write,
//! which says which stream it was.
//!
//! The supervisor writes the bytes before their record. A reader may therefore find bytes without a
//! record: for the moment between two system calls, or for good if the index could not be written.
//! Time tells them apart: bytes that stay without a record count as standard output. If their
//! record comes after all, nothing is given out twice.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::sys::log_record::{self, Record};

/// How much of either file is read at a time.
const BUFFER: usize = 64 * 1024;
/// How long bytes may be without a record before they count as standard output.
pub(super) const ORPHANED: Duration = Duration::from_millis(100);

/// Which of its standard streams a service printed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// One thing that the index tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    /// Bytes that were printed.
    Output(Stream, &'a [u8]),
    /// So many bytes that were printed, and could not be kept.
    Lost(Stream, u32),
    /// The service was started, or started again.
    Start,
}

/// A place in the log. Cheap to copy, and good for as long as the log is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cursor {
    /// Offset in the index: everything before has been read.
    index: u64,
    /// Offset in the log up to which those records speak.
    covered: u64,
    /// Offset in the log up to which bytes were given out. Beyond `covered` only for bytes without
    /// a record.
    pub(super) given: u64,
    /// Bytes that were seen without a record.
    orphans: Option<Orphans>,
}

/// Bytes that may be without a record for good.
#[derive(Clone, Copy, Debug)]
struct Orphans {
    /// The value of the cursor's `index` at which they were seen.
    index: u64,
    /// The offset in the log at which they end. Later bytes have a time of their own.
    end: u64,
    since: Instant,
}

impl Cursor {
    /// The beginning of the log.
    pub(crate) const START: Cursor = Cursor {
        index: 0,
        covered: 0,
        given: 0,
        orphans: None,
    };
}

/// Reads the log of one service while it grows, in bounded memory.
#[derive(Debug)]
pub(crate) struct OutputReader {
    pub(super) path: PathBuf,
    log: File,
    index: File,
    /// How far the index has been summed up: so that finding the end of a long log is quick the
    /// second time.
    summed: Mutex<(u64, u64)>,
}

impl OutputReader {
    /// Opens both files, which must exist, and keeps them open.
    pub(crate) fn open(log: &Path, index: &Path) -> io::Result<OutputReader> {
        Ok(OutputReader {
            path: log.to_owned(),
            log: File::open(log)?,
            index: File::open(index)?,
            summed: Mutex::new((0, 0)),
        })
    }

    /// The end of the output so far. If the file cannot be read, the end that was known last.
    pub(crate) fn end(&self) -> Cursor {
        // Bytes wait for their record for a moment only. After a few reads, bytes without a record
        // count as orphans.
        let mut end = self.sum();
        for _ in 0..10 {
            if end.given == end.covered {
                break;
            }
            thread::sleep(Duration::from_micros(100));
            end = self.sum();
        }
        end
    }

    /// Adds up the index from where that was left off.
    fn sum(&self) -> Cursor {
        // The lock guards two numbers that are only ever written together: a panic elsewhere cannot
        // spoil them.
        let mut summed = self.summed.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut index, mut covered) = *summed;
        let mut block = Vec::new();
        // Read before the index: the supervisor may write much more, and its records, in between.
        let length = self.log.metadata().map_or(covered, |m| m.len());
        // An error keeps the known state.
        while let Ok(records) = self.records(&mut block, index, u64::MAX) {
            if records.is_empty() {
                break;
            }
            for record in decoded(records) {
                covered += record.in_log();
            }
            index += records.len() as u64;
        }
        *summed = (index, covered);
        Cursor {
            index,
            covered,
            given: length.max(covered),
            orphans: None,
        }
    }

    /// The whole records from `from` on and before `until`, a block at most. A torn last one is
    /// left alone.
    fn records<'a>(&self, block: &'a mut Vec<u8>, from: u64, until: u64) -> io::Result<&'a [u8]> {
        let wanted = usize::try_from(until.saturating_sub(from)).map_or(BUFFER, |n| n.min(BUFFER));
        block.resize(wanted, 0);
        let got = read_full_at(&self.index, block, from)?;
        Ok(&block[..got - got % log_record::SIZE])
    }

    /// Returns the output since the cursor, and the other records of the index, and moves the
    /// cursor on.
    ///
    /// Output that comes during the call is left for the next one, so that the call ends however
    /// fast the service is.
    pub(crate) fn read_pieces(
        &self,
        cursor: &mut Cursor,
        mut each: impl FnMut(Piece<'_>, u64),
    ) -> io::Result<()> {
        self.walk(cursor, None, &mut each)
    }

    pub(super) fn walk(
        &self,
        cursor: &mut Cursor,
        until: Option<Cursor>,
        each: &mut dyn FnMut(Piece<'_>, u64),
    ) -> io::Result<()> {
        // Before the lengths: bytes whose record was not there at this time are orphans, if they
        // were old enough then. This process may be held up between any two lines.
        let now = Instant::now();
        // Both lengths are read once, the index's first: the bytes of its records are surely in the
        // log then.
        let stop = match until {
            Some(end) => end.index,
            None => self.index.metadata()?.len() / log_record::SIZE as u64 * log_record::SIZE as u64,
        };
        let length = match until {
            Some(end) => end.given,
            None => self.log.metadata()?.len(),
        };
        if cursor.index >= stop && cursor.given >= length {
            return Ok(());
        }

        let mut window = Window::new(&self.log);
        let mut block = Vec::new();
        while cursor.index < stop {
            let records = self.records(&mut block, cursor.index, stop)?;
            if records.is_empty() {
                break;
            }
            for record in decoded(records) {
                cursor.index += log_record::SIZE as u64;
                cursor.orphans = None;
                match record.piece() {
                    Piece::Output(stream, _) => {
                        let end = cursor.covered + record.in_log();
                        // What was given out as an orphan is not given out again.
                        let from = cursor.covered.max(cursor.given);
                        window.each(from, end, &mut |bytes| {
                            each(Piece::Output(stream, bytes), record.time);
                        })?;
                        cursor.covered = end;
                        cursor.given = cursor.given.max(end);
                    }
                    other => each(other, record.time),
                }
            }
        }

        if length > cursor.given {
            let orphans = cursor.orphans.filter(|orphans| orphans.index == cursor.index);
            let end = match orphans {
                _ if until.is_some() => length,
                Some(Orphans { end, since, .. }) if now.duration_since(since) >= ORPHANED => end,
                _ => cursor.given,
            };
            window.each(cursor.given, end, &mut |bytes| {
                each(Piece::Output(Stream::Stdout, bytes), 0);
            })?;
            let begins_anew = end > cursor.given || orphans.is_none();
            cursor.given = end;
            if begins_anew {
                cursor.orphans = Some(Orphans {
                    index: cursor.index,
                    end: length,
                    since: Instant::now(),
                });
            }
        }
        Ok(())
    }

    /// How many bytes that were printed since could not be kept.
    pub(crate) fn lost(&self, since: Cursor) -> u64 {
        let mut at = since.index;
        let mut lost = 0;
        let mut block = Vec::new();
        while let Ok(records) = self.records(&mut block, at, u64::MAX) {
            if records.is_empty() {
                break;
            }
            let records_lost = decoded(records)
                .filter(|record| record.is_lost())
                .map(|record| u64::from(record.length));
            lost += records_lost.sum::<u64>();
            at += records.len() as u64;
        }
        lost
    }

    /// The place in the log from which all output came at or after a time, in nanoseconds of the
    /// monotonic clock.
    pub(crate) fn since_time(&self, time: u64) -> Cursor {
        let end = self.end();
        let (mut index, mut covered) = (end.index, end.covered);
        let mut block = Vec::new();
        // Searches backwards, since the answer is near the end.
        'blocks: while index > 0 {
            let from = index.saturating_sub(BUFFER as u64);
            let Ok(records) = self.records(&mut block, from, index) else {
                break;
            };
            for record in decoded(records).rev() {
                if record.time < time {
                    break 'blocks;
                }
                index -= log_record::SIZE as u64;
                covered -= record.in_log().min(covered);
            }
            if records.is_empty() {
                break;
            }
        }
        Cursor {
            index,
            covered,
            given: covered,
            orphans: None,
        }
    }

    /// The time of the first output since, in nanoseconds of the monotonic clock, if it is known.
    pub(crate) fn first_output(&self, since: Cursor) -> Option<u64> {
        let mut at = since.index;
        let mut block = Vec::new();
        loop {
            let records = self.records(&mut block, at, u64::MAX).ok()?;
            if records.is_empty() {
                return None;
            }
            let first = decoded(records).find(|record| record.length > 0 && !record.is_start());
            if let Some(record) = first {
                return Some(record.time);
            }
            at += records.len() as u64;
        }
    }

    /// The place in the log that has at most `limit` bytes between it and the end, and is not
    /// before `since`.
    pub(super) fn back_from(&self, end: Cursor, since: Cursor, limit: u64) -> io::Result<Cursor> {
        let first = end.given.saturating_sub(limit);
        if first <= since.given {
            return Ok(since);
        }
        let mut index = end.index;
        let mut covered = end.covered;
        let mut block = Vec::new();
        while index > since.index && covered > first {
            let from = index.saturating_sub(BUFFER as u64).max(since.index);
            let records = self.records(&mut block, from, index)?;
            if (records.len() as u64) < index - from {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            for record in decoded(records).rev() {
                index -= log_record::SIZE as u64;
                covered -= record.in_log().min(covered);
                if covered <= first {
                    break;
                }
            }
        }
        Ok(Cursor {
            index,
            covered,
            given: first,
            orphans: None,
        })
    }
}

impl Record {
    /// How many bytes of the log it speaks of.
    fn in_log(self) -> u64 {
        if self.is_lost() || self.is_start() {
            0
        } else {
            u64::from(self.length)
        }
    }

    /// Its content, without the bytes.
    fn piece(self) -> Piece<'static> {
        if self.is_start() {
            return Piece::Start;
        }
        let stream = match self.is_stderr() {
            true => Stream::Stderr,
            false => Stream::Stdout,
        };
        match self.is_lost() {
            true => Piece::Lost(stream, self.length),
            false => Piece::Output(stream, &[]),
        }
    }
}

/// The records in a part of the index whose length is a multiple of a record's.
fn decoded(records: &[u8]) -> impl DoubleEndedIterator<Item = Record> {
    records.chunks_exact(log_record::SIZE).map(Record::decode)
}

/// A part of the log in memory: many short records are then one read.
struct Window<'a> {
    file: &'a File,
    start: u64,
    filled: usize,
    buffer: Vec<u8>,
}

impl<'a> Window<'a> {
    fn new(file: &'a File) -> Window<'a> {
        Window {
            file,
            start: 0,
            filled: 0,
            buffer: Vec::new(),
        }
    }

    /// Returns the bytes between two offsets, in parts. If the file is shorter than its index says,
    /// only the bytes that it has.
    fn each(&mut self, mut from: u64, end: u64, give: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        while from < end {
            let within = from
                .checked_sub(self.start)
                .and_then(|n| usize::try_from(n).ok())
                .filter(|&n| n < self.filled);
            let Some(offset) = within else {
                self.buffer.resize(BUFFER, 0);
                self.filled = read_full_at(self.file, &mut self.buffer, from)?;
                self.start = from;
                if self.filled == 0 {
                    break;
                }
                continue;
            };
            let there = self.filled - offset;
            let count = usize::try_from(end - from).map_or(there, |n| n.min(there));
            give(&self.buffer[offset..offset + count]);
            from += count as u64;
        }
        Ok(())
    }
}

/// Reads until the buffer is full or the file at its end.
fn read_full_at(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}
