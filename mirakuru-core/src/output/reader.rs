//! Reads a service's log and the index beside it while the supervisor writes them.
//!
//! Only the supervisor writes these files, and it only appends. `log` contains the bytes of
//! standard output and standard error in the order in which they arrived. `log.index` contains one
//! [`Record`] for each write, with the stream and the length. A long log has more files: see
//! `parts.rs`.
//!
//! The supervisor writes bytes before their record, so a reader may see bytes without a record. If
//! no record follows, because the index could not be written, the bytes count as standard output.
//! Even if the record follows later, the reader returns each byte only once.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::output::parts::{Parts, Place, View};
use crate::sys::LogPart;
use crate::sys::log_record::{self, Record};

/// Number of bytes read from a file at a time.
const BUFFER: usize = 64 * 1024;
/// Time after which bytes without a record count as standard output.
pub(super) const ORPHANED: Duration = Duration::from_millis(100);

/// A standard stream of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// One event in the log: output, missing output, or a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    /// Bytes that the service printed.
    Output(Stream, &'a [u8]),
    /// Number of printed bytes that could not be written to the log.
    Lost(Stream, u32),
    /// Number of printed bytes left out because the log has reached its limit.
    LeftOut(u64),
    /// A start or a restart of the service.
    Start,
}

/// A position in the log. It is cheap to copy, and valid while the log exists.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cursor {
    /// Offset in the index up to which records have been read.
    index: u64,
    /// Offset in the log at which the bytes of the records before `index` end.
    covered: u64,
    /// Offset in the log up to which bytes were returned. If it is greater than `covered`, the
    /// bytes in between have no record.
    pub(super) given: u64,
    /// The bytes that had no record at the last read, if there were any.
    orphans: Option<Orphans>,
}

/// Bytes in the log that no record in the index covers. After [`ORPHANED`] they count as standard
/// output.
#[derive(Clone, Copy, Debug)]
struct Orphans {
    /// The cursor's `index` when the orphans were seen.
    index: u64,
    /// Offset in the log at which the orphans end. Bytes that arrive later wait for [`ORPHANED`]
    /// themselves.
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
    /// Path of the log.
    pub(crate) path: PathBuf,
    parts: Parts,
    /// The offsets in the index and in the log that [`end`](OutputReader::end) has reached, so that
    /// its next call reads only new records.
    summed: Mutex<(u64, u64)>,
}

impl OutputReader {
    /// Opens both files, which must exist, and keeps them open.
    pub(crate) fn open(log: &Path, index: &Path) -> io::Result<OutputReader> {
        OutputReader::open_with(log, index, |path| File::open(path))
    }

    /// Opens both files with `open`, which opens a file for reading.
    pub(crate) fn open_with(
        log: &Path,
        index: &Path,
        open: fn(&Path) -> io::Result<File>,
    ) -> io::Result<OutputReader> {
        Ok(OutputReader {
            path: log.to_owned(),
            parts: Parts::open(log, index, open)?,
            summed: Mutex::new((0, 0)),
        })
    }

    /// The current end of the output, or the last known end if a file cannot be read.
    pub(crate) fn end(&self) -> Cursor {
        // Usually a record follows its bytes immediately. Bytes that still have no record after a
        // few reads count as orphans.
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

    /// Adds up the new records in the index.
    fn sum(&self) -> Cursor {
        // Both numbers are written together, so a panic elsewhere leaves them consistent.
        let mut summed = self.summed.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut index, mut covered) = *summed;
        let mut block = Vec::new();
        let view = self.parts.view();
        // If the files cannot be read, keep the known offsets.
        if let Ok(view) = &view {
            loop {
                (index, covered) = view.after_gap(index).unwrap_or((index, covered));
                let Ok(records) = view.records(&mut block, index, u64::MAX) else {
                    break;
                };
                if records.is_empty() {
                    break;
                }
                for record in decoded(records) {
                    covered = record.as_part().unwrap_or(covered + record.in_log());
                }
                index += records.len() as u64;
            }
        }
        *summed = (index, covered);
        // This length was measured before the index was read. A length measured now could include
        // bytes whose records were not read.
        let length = view.map_or(covered, |view| view.earlier_length());
        Cursor {
            index,
            covered,
            given: length.max(covered),
            orphans: None,
        }
    }

    /// The newest part of the log and its index, open for appending, and the position of the part.
    /// `open` must open a file for appending. So must the function that was passed to
    /// [`open_with`](OutputReader::open_with), because the descriptors of the first part are
    /// duplicated.
    pub(crate) fn newest_part(
        &self,
        open: fn(&Path) -> io::Result<File>,
    ) -> io::Result<([File; 2], LogPart)> {
        let view = self.parts.view()?;
        let (files, number, begin) = view.last(open)?;
        let part = LogPart {
            number,
            log: begin.log,
            index: begin.index,
        };
        Ok((files, part))
    }

    /// Passes the output and the other records after the cursor to `each`, and advances the cursor.
    ///
    /// Output that arrives during the call is left for the next call, so that this call ends even
    /// if the service prints fast.
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
        // Take the time before the index is read. Otherwise a record could arrive unseen, and its
        // bytes would count as orphans.
        let now = Instant::now();
        let view = self.parts.view()?;
        let stop = match until {
            Some(end) => end.index,
            None => view.end().index,
        };
        let length = match until {
            Some(end) => end.given,
            None => view.end().log,
        };
        if cursor.index >= stop && cursor.given >= length {
            return Ok(());
        }

        let mut window = Window::new(&view);
        let mut block = Vec::new();
        while cursor.index < stop {
            if let Some((index, log)) = view.after_gap(cursor.index) {
                let left_out = log.saturating_sub(cursor.covered.max(cursor.given));
                each(Piece::LeftOut(left_out), 0);
                (cursor.index, cursor.covered) = (index, log);
                cursor.given = cursor.given.max(log);
            }
            let records = view.records(&mut block, cursor.index, stop)?;
            if records.is_empty() {
                break;
            }
            for record in decoded(records) {
                cursor.index += log_record::SIZE as u64;
                cursor.orphans = None;
                if let Some(begin) = record.as_part() {
                    cursor.covered = begin;
                    cursor.given = cursor.given.max(begin);
                }
                match record.piece() {
                    Some(Piece::Output(stream, _)) => {
                        let end = cursor.covered + record.in_log();
                        // Skip bytes that were already returned as orphans.
                        let from = cursor.covered.max(cursor.given);
                        window.each(from, end, &mut |bytes| {
                            each(Piece::Output(stream, bytes), record.time);
                        })?;
                        cursor.covered = end;
                        cursor.given = cursor.given.max(end);
                    }
                    Some(other) => each(other, record.time),
                    None => {}
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

    /// Number of bytes since the cursor that could not be written to the log.
    pub(crate) fn lost(&self, since: Cursor) -> u64 {
        let mut lost = 0;
        let _ = self.find_record(since, &mut |record| {
            lost += if record.is_lost() {
                u64::from(record.length)
            } else {
                0
            };
            false
        });
        lost
    }

    /// Number of bytes since the cursor that were left out because the log reached its limit.
    pub(crate) fn dropped(&self, since: Cursor) -> u64 {
        let gap = self.parts.view().ok().and_then(|view| view.gap());
        gap.map_or(0, |[from, to]| to.log.saturating_sub(from.log.max(since.given)))
    }

    /// Finds the first record after the cursor for which `found` returns true.
    fn find_record(&self, since: Cursor, found: &mut dyn FnMut(&Record) -> bool) -> Option<Record> {
        let view = self.parts.view().ok()?;
        let mut at = since.index;
        let mut block = Vec::new();
        loop {
            at = view.after_gap(at).map_or(at, |(index, _)| index);
            let records = view.records(&mut block, at, u64::MAX).ok()?;
            if records.is_empty() {
                return None;
            }
            if let Some(record) = decoded(records).find(|record| found(record)) {
                return Some(record);
            }
            at += records.len() as u64;
        }
    }

    /// The position at which the output since `time` begins. `time` is in nanoseconds of the
    /// monotonic clock.
    pub(crate) fn since_time(&self, time: u64) -> Cursor {
        let end = self.end();
        let (mut index, mut covered) = (end.index, end.covered);
        let mut block = Vec::new();
        let Ok(view) = self.parts.view() else {
            return end;
        };
        // Search backwards, because the position is usually near the end.
        'blocks: while index > 0 {
            (index, covered) = view.before_gap(index).unwrap_or((index, covered));
            let from = view.block_before(index);
            let Ok(records) = view.records(&mut block, from, index) else {
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

    /// The time of the first output since the cursor, in nanoseconds of the monotonic clock.
    pub(crate) fn first_output(&self, since: Cursor) -> Option<u64> {
        let first = self.find_record(since, &mut |record| record.length > 0 && record.is_output());
        first.map(|record| record.time)
    }

    /// The position `limit` bytes before the end, or `since` if that is later.
    pub(super) fn back_from(&self, end: Cursor, since: Cursor, limit: u64) -> io::Result<Cursor> {
        let first = end.given.saturating_sub(limit);
        if first <= since.given {
            return Ok(since);
        }
        let mut index = end.index;
        let mut covered = end.covered;
        let mut block = Vec::new();
        let view = self.parts.view()?;
        while index > since.index && covered > first {
            if let Some(before) = view.before_gap(index) {
                (index, covered) = before;
                continue;
            }
            let from = view.block_before(index).max(since.index);
            let records = view.records(&mut block, from, index)?;
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

impl View {
    /// Reads the complete records between `from` and `until`, at most `BUFFER` bytes of them.
    fn records<'a>(&self, block: &'a mut Vec<u8>, from: u64, until: u64) -> io::Result<&'a [u8]> {
        let wanted = usize::try_from(until.saturating_sub(from)).map_or(BUFFER, |n| n.min(BUFFER));
        block.resize(wanted, 0);
        let got = self.read_index(block, from)?;
        Ok(&block[..got - got % log_record::SIZE])
    }

    /// The offsets at which the left-out output ends, in the index and in the log. `None` unless
    /// `index` is in the left-out output.
    fn after_gap(&self, index: u64) -> Option<(u64, u64)> {
        let [from, to] = self.gap()?;
        (from.index..to.index)
            .contains(&index)
            .then_some((to.index, to.log))
    }

    /// The offsets at which the left-out output begins, in the index and in the log. `None` unless
    /// `index` is in the left-out output or at its end.
    fn before_gap(&self, index: u64) -> Option<(u64, u64)> {
        let [from, to] = self.gap()?;
        (from.index < index && index <= to.index).then_some((from.index, from.log))
    }

    /// The beginning of the block that ends at `index`. A block does not reach into left-out
    /// output.
    fn block_before(&self, index: u64) -> u64 {
        let from = index.saturating_sub(BUFFER as u64);
        match self.gap() {
            Some([_, Place { index: to, .. }]) if index > to => from.max(to),
            _ => from,
        }
    }
}

impl Record {
    /// Number of bytes in the log that this record describes.
    fn in_log(self) -> u64 {
        match self.is_output() && !self.is_lost() {
            true => u64::from(self.length),
            false => 0,
        }
    }

    /// Converts a record to a piece. A piece of output does not contain its bytes yet.
    fn piece(self) -> Option<Piece<'static>> {
        if !self.is_output() {
            return self.is_start().then_some(Piece::Start);
        }
        let stream = match self.is_stderr() {
            true => Stream::Stderr,
            false => Stream::Stdout,
        };
        Some(match self.is_lost() {
            true => Piece::Lost(stream, self.length),
            false => Piece::Output(stream, &[]),
        })
    }
}

/// Decodes records. The length of the slice must be a multiple of a record's length.
fn decoded(records: &[u8]) -> impl DoubleEndedIterator<Item = Record> {
    records.chunks_exact(log_record::SIZE).map(Record::decode)
}

/// A buffered part of the log, so that one read serves many short records.
struct Window<'a> {
    view: &'a View,
    start: u64,
    filled: usize,
    buffer: Vec<u8>,
}

impl<'a> Window<'a> {
    fn new(view: &'a View) -> Window<'a> {
        Window {
            view,
            start: 0,
            filled: 0,
            buffer: Vec::new(),
        }
    }

    /// Passes the bytes of the log between two offsets to `give`, in pieces. Stops at the end of
    /// the log, even if the index has more records.
    fn each(&mut self, mut from: u64, end: u64, give: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        while from < end {
            let within = from
                .checked_sub(self.start)
                .and_then(|n| usize::try_from(n).ok())
                .filter(|&n| n < self.filled);
            let Some(offset) = within else {
                self.buffer.resize(BUFFER, 0);
                self.filled = self.view.read_log(&mut self.buffer, from)?;
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
