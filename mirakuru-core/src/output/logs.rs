//! What a service printed: the log file, its index, and snapshots of both.
//!
//! Two files, both append only, both written by the supervisor alone. `log` has the plain bytes of standard output and
//! standard error as they came. `log.index` says which is which: records of 16 bytes, little endian, `u32` length,
//! `u32` kind, `u64` nanoseconds of the monotonic clock. Kind 1 is standard output, 2 standard error, 3 a mark
//! without bytes that says that the service was (re)started here. Bit 31 of the kind says that the bytes were lost
//! (the disk was full): they are not in `log`.
//!
//! The bytes are always written before their record. So whoever reads beside the writer may find bytes that no record
//! speaks of yet, for the moment between two system calls, or for good when the index could not be written. They are
//! told apart by time: bytes that stay without a record count as standard output, and should their record come after
//! all, nothing is given out twice.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

const RECORD: usize = 16;
const KIND_STDERR: u32 = 2;
const KIND_START: u32 = 3;
const LOST: u32 = 1 << 31;

use crate::util::text::printable;

/// How much is read at a time, of either file.
const BUFFER: usize = 64 * 1024;
/// How much of the log a snapshot holds at most: the last 16 MiB.
const SNAPSHOT: u64 = 16 * 1024 * 1024;
/// How much of the log is looked at for the last lines.
const TAIL: u64 = 64 * 1024;
/// The length at which a line of the tail is cut, in characters.
const TAIL_LINE: usize = 400;
/// How long bytes may be without a record before they count as standard output.
const ORPHANED: Duration = Duration::from_millis(100);

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
    /// Offset in the log up to which bytes were given out. Beyond `covered` only for bytes without a record.
    given: u64,
    /// Since when there are bytes without a record, and the value of `index` at which they were seen.
    orphans: Option<(u64, Instant)>,
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
    path: PathBuf,
    log: File,
    index: File,
    /// How far the index has been summed up: so that finding the end of a long log is quick the second time.
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

    /// The place after everything that has been printed so far. Of a file that cannot be read, the place that was
    /// known last.
    pub(crate) fn end(&self) -> Cursor {
        // Bytes that wait for their record wait for a moment only. A few looks, and what is then still without one
        // is taken for what it seems to be.
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
        // The lock guards two numbers that are only ever written together: a panic elsewhere cannot spoil them.
        let mut summed = self.summed.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut index, mut covered) = *summed;
        let mut block = Vec::new();
        // An error is no reason to lose what is known.
        while let Ok(records) = self.records(&mut block, index, u64::MAX) {
            if records.is_empty() {
                break;
            }
            for record in records.chunks_exact(RECORD).map(Record::decode) {
                covered += record.in_log();
            }
            index += records.len() as u64;
        }
        *summed = (index, covered);
        let length = self.log.metadata().map_or(covered, |m| m.len());
        Cursor {
            index,
            covered,
            given: length.max(covered),
            orphans: None,
        }
    }

    /// The whole records from `from` on and before `until`, a block at most. A torn last one is left alone.
    fn records<'a>(&self, block: &'a mut Vec<u8>, from: u64, until: u64) -> io::Result<&'a [u8]> {
        let wanted = usize::try_from(until.saturating_sub(from)).map_or(BUFFER, |n| n.min(BUFFER));
        block.resize(wanted, 0);
        let got = read_full_at(&self.index, block, from)?;
        Ok(&block[..got - got % RECORD])
    }

    /// Gives out what was printed since the cursor, and whatever else the index tells, and moves the cursor on.
    ///
    /// What is printed while this reads is left for the next time, so that it ends however fast the service is.
    pub(crate) fn read_pieces(
        &self,
        cursor: &mut Cursor,
        mut each: impl FnMut(Piece<'_>, u64),
    ) -> io::Result<()> {
        self.walk(cursor, None, &mut each)
    }

    fn walk(
        &self,
        cursor: &mut Cursor,
        until: Option<Cursor>,
        each: &mut dyn FnMut(Piece<'_>, u64),
    ) -> io::Result<()> {
        // Both lengths are taken once, the index's first: what its records speak of is then surely in the log.
        let stop = match until {
            Some(end) => end.index,
            None => self.index.metadata()?.len() / RECORD as u64 * RECORD as u64,
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
            for record in records.chunks_exact(RECORD).map(Record::decode) {
                cursor.index += RECORD as u64;
                cursor.orphans = None;
                match record.what() {
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
            let since = match cursor.orphans {
                Some((index, since)) if index == cursor.index => since,
                _ => {
                    let now = Instant::now();
                    cursor.orphans = Some((cursor.index, now));
                    now
                }
            };
            if until.is_some() || since.elapsed() >= ORPHANED {
                window.each(cursor.given, length, &mut |bytes| {
                    each(Piece::Output(Stream::Stdout, bytes), 0);
                })?;
                cursor.given = length;
            }
        }
        Ok(())
    }

    /// Everything that was printed so far, or the last 16 MiB of it.
    pub(crate) fn snapshot(&self) -> Logs {
        self.snapshot_since(Cursor::START)
    }

    /// Everything that was printed since, or the last 16 MiB of it.
    pub(crate) fn snapshot_since(&self, since: Cursor) -> Logs {
        self.collect(since, SNAPSHOT)
    }

    /// The last lines that were printed since, fit to be shown: at most so many, of the last 64 KiB, each cut at
    /// 400 characters, and without anything that a terminal would obey.
    pub(crate) fn tail(&self, lines: usize, since: Cursor) -> Vec<String> {
        let logs = self.collect(since, TAIL);
        let count = logs.lines().count();
        let skip = count.saturating_sub(lines);
        logs.lines()
            .enumerate()
            .skip(skip)
            .map(|(number, line)| {
                let line = printable(line, TAIL_LINE);
                // The very first line begins somewhere in its middle.
                if number == 0 && logs.truncated {
                    format!("\u{2026}{line}")
                } else {
                    line
                }
            })
            .collect()
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
            let records_lost = records
                .chunks_exact(RECORD)
                .map(Record::decode)
                .filter(|record| record.kind & LOST != 0)
                .map(|record| u64::from(record.length));
            lost += records_lost.sum::<u64>();
            at += records.len() as u64;
        }
        lost
    }

    /// The place in the log from which on everything was printed at or after a time, in nanoseconds of the monotonic clock.
    pub(crate) fn since_time(&self, time: u64) -> Cursor {
        let end = self.end();
        let (mut index, mut covered) = (end.index, end.covered);
        let mut block = Vec::new();
        // Backwards, since it is about what was printed last.
        'blocks: while index > 0 {
            let from = index.saturating_sub(BUFFER as u64);
            let Ok(records) = self.records(&mut block, from, index) else {
                break;
            };
            for record in records.chunks_exact(RECORD).rev().map(Record::decode) {
                if record.time < time {
                    break 'blocks;
                }
                index -= RECORD as u64;
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

    /// When the first output since was printed, in nanoseconds of the monotonic clock, if there is any whose time is
    /// known.
    pub(crate) fn first_output(&self, since: Cursor) -> Option<u64> {
        let mut at = since.index;
        let mut block = Vec::new();
        loop {
            let records = self.records(&mut block, at, u64::MAX).ok()?;
            if records.is_empty() {
                return None;
            }
            let first = records
                .chunks_exact(RECORD)
                .map(Record::decode)
                .find(|record| record.length > 0 && record.kind & !LOST != KIND_START);
            if let Some(record) = first {
                return Some(record.time);
            }
            at += records.len() as u64;
        }
    }

    fn collect(&self, since: Cursor, limit: u64) -> Logs {
        let end = self.end();
        let mut assembly = Assembly::default();
        let start = self.back_from(end, since, limit).unwrap_or(since);
        let mut cursor = start;
        // A log that cannot be read is as good as what could be read of it.
        let _ = self.walk(&mut cursor, Some(end), &mut |piece, _| assembly.add(piece));
        assembly.finish(self.path.clone(), start.given > since.given)
    }

    /// The place in the log that has at most `limit` bytes between it and the end, and is not before `since`.
    fn back_from(&self, end: Cursor, since: Cursor, limit: u64) -> io::Result<Cursor> {
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
            for record in records.chunks_exact(RECORD).rev().map(Record::decode) {
                index -= RECORD as u64;
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

/// One record of the index.
#[derive(Clone, Copy)]
struct Record {
    length: u32,
    kind: u32,
    time: u64,
}

impl Record {
    fn decode(bytes: &[u8]) -> Record {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Record {
            length: word(0),
            kind: word(4),
            time: u64::from(word(8)) | u64::from(word(12)) << 32,
        }
    }

    /// How many bytes of the log it speaks of.
    fn in_log(self) -> u64 {
        if self.kind & LOST != 0 || self.kind == KIND_START {
            0
        } else {
            u64::from(self.length)
        }
    }

    /// What it tells, without the bytes.
    fn what(self) -> Piece<'static> {
        let stream = match self.kind & !LOST {
            KIND_START => return Piece::Start,
            KIND_STDERR => Stream::Stderr,
            _ => Stream::Stdout,
        };
        if self.kind & LOST != 0 {
            Piece::Lost(stream, self.length)
        } else {
            Piece::Output(stream, &[])
        }
    }
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

    /// Gives out the bytes between two offsets, in parts. A file that is shorter than its index says gives what it has.
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

/// A snapshot of what a service has printed so far: made by [`Executor::logs`](crate::executor::Executor::logs), owned, and
/// not changed by what is printed afterwards.
///
/// It holds at most the last 16 MiB; [`truncated`](Logs::truncated) says whether that cut anything off, and the
/// [file](Logs::path) has all of it. Bytes that are not UTF-8 are replaced by U+FFFD, as
/// [`String::from_utf8_lossy`] does; a character whose bytes were torn by the other stream is whole in
/// [`stdout`](Logs::stdout) and [`stderr`](Logs::stderr).
///
/// `Display` gives both streams as they are in the file.
///
/// ```
/// # use mirakuru_core as mirakuru;
/// use mirakuru::{Banner, Executor};
///
/// let service = Executor::builder("echo careful >&2; echo ready; exec sleep 60")
///     .shell(true)
///     .wait_for(Banner::matching("ready"))
///     .start()?;
/// let logs = service.logs();
/// assert_eq!(logs.stdout(), "ready\n");
/// assert!(logs.lines().any(|line| line == "careful"));
/// # Ok::<(), mirakuru_core::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Logs {
    all: String,
    texts: [Text; 2],
    /// For each line that was completed, in that order: whether it is standard error's.
    order: Vec<bool>,
    path: PathBuf,
    lost: u64,
    truncated: bool,
}

/// What one stream printed.
#[derive(Clone, Debug, Default)]
struct Text {
    text: String,
    /// Where a line ends without a line feed, because the service was started again there, or what followed was
    /// lost.
    breaks: Vec<usize>,
}

impl Logs {
    /// What it printed to standard output.
    #[must_use]
    pub fn stdout(&self) -> &str {
        &self.texts[0].text
    }

    /// What it printed to standard error.
    #[must_use]
    pub fn stderr(&self) -> &str {
        &self.texts[1].text
    }

    /// The lines of both streams, in the order in which they were completed, without their line ends. A line is never
    /// torn by the other stream, as it may be in the file. Unfinished lines come last.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        let mut streams = self.texts.each_ref().map(TextLines::new);
        self.order
            .iter()
            .filter_map(move |&stderr| streams[usize::from(stderr)].next())
    }

    /// The file that has everything that the service printed since its executor was made, over all its starts. It is
    /// removed with the service's private directory, except after a failure.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether nothing has been printed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether more than 16 MiB were printed, so that the beginning is missing here.
    #[must_use]
    pub fn truncated(&self) -> bool {
        self.truncated
    }

    /// How many bytes of the output are missing, here and in the file, because they could not be written: the disk was
    /// full.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }
}

impl fmt::Display for Logs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.all)
    }
}

/// The lines of one stream.
struct TextLines<'a> {
    text: &'a str,
    breaks: &'a [usize],
    at: usize,
}

impl<'a> TextLines<'a> {
    fn new(text: &'a Text) -> TextLines<'a> {
        TextLines {
            text: &text.text,
            breaks: &text.breaks,
            at: 0,
        }
    }

    fn next(&mut self) -> Option<&'a str> {
        let rest = &self.text[self.at..];
        let feed = rest.find('\n');
        let stop = self.breaks.first().map(|at| at - self.at);
        match (feed, stop) {
            (feed, Some(stop)) if feed.is_none_or(|feed| stop <= feed) => {
                self.breaks = &self.breaks[1..];
                self.at += stop;
                Some(&rest[..stop])
            }
            (Some(feed), _) => {
                self.at += feed + 1;
                let line = &rest[..feed];
                Some(line.strip_suffix('\r').unwrap_or(line))
            }
            _ if rest.is_empty() => None,
            _ => {
                self.at = self.text.len();
                Some(rest)
            }
        }
    }
}

/// Puts a snapshot together, piece by piece.
#[derive(Default)]
struct Assembly {
    all: Vec<u8>,
    streams: [Open; 2],
    order: Vec<bool>,
    lost: u64,
    pieces: u64,
}

#[derive(Default)]
struct Open {
    done: Text,
    /// What is not text yet, because its last character may not be complete.
    bytes: Vec<u8>,
    /// Whether there is an unfinished line.
    line: bool,
    /// When it was last added to, counted in pieces.
    touched: u64,
}

impl Open {
    fn settle(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let text = String::from_utf8(bytes)
            .unwrap_or_else(|bad| String::from_utf8_lossy(bad.as_bytes()).into_owned());
        if self.done.text.is_empty() {
            self.done.text = text;
        } else {
            self.done.text.push_str(&text);
        }
    }
}

impl Assembly {
    fn add(&mut self, piece: Piece<'_>) {
        self.pieces += 1;
        match piece {
            Piece::Output(stream, bytes) => {
                let stderr = stream == Stream::Stderr;
                self.all.extend_from_slice(bytes);
                let open = &mut self.streams[usize::from(stderr)];
                open.bytes.extend_from_slice(bytes);
                open.touched = self.pieces;
                let feeds = bytes.iter().filter(|&&b| b == b'\n').count();
                self.order.extend(std::iter::repeat_n(stderr, feeds));
                open.line = match bytes.last() {
                    Some(last) => *last != b'\n',
                    None => open.line,
                };
            }
            Piece::Lost(stream, count) => {
                self.lost += u64::from(count);
                self.cut(stream == Stream::Stderr);
            }
            Piece::Start => self.cut_both(),
        }
    }

    /// Ends both unfinished lines, the one first that was added to first.
    fn cut_both(&mut self) {
        let stderr_first = self.streams[1].touched < self.streams[0].touched;
        self.cut(stderr_first);
        self.cut(!stderr_first);
    }

    fn cut(&mut self, stderr: bool) {
        let open = &mut self.streams[usize::from(stderr)];
        if open.line {
            open.settle();
            open.done.breaks.push(open.done.text.len());
            open.line = false;
            self.order.push(stderr);
        }
    }

    fn finish(mut self, path: PathBuf, truncated: bool) -> Logs {
        self.cut_both();
        let all = String::from_utf8(self.all)
            .unwrap_or_else(|bad| String::from_utf8_lossy(bad.as_bytes()).into_owned());
        let texts = self.streams.map(|mut open| {
            open.settle();
            open.done
        });
        Logs {
            all,
            texts,
            order: self.order,
            path,
            lost: self.lost,
            truncated,
        }
    }
}

/// A writer of the two files for tests, as the supervisor writes them.
#[cfg(test)]
pub(crate) mod test_writer {
    use std::fs::{File, OpenOptions};
    use std::io::{self, Write};
    use std::path::{Path, PathBuf};

    use super::{Cursor, KIND_START, KIND_STDERR, LOST, OutputReader, Piece, Stream};

    pub(crate) struct LogWriter {
        pub(crate) log: File,
        pub(crate) index: File,
        paths: [PathBuf; 2],
        time: u64,
    }

    impl OutputReader {
        /// The output alone. Says whether there was any.
        pub(crate) fn read(
            &self,
            cursor: &mut Cursor,
            mut each: impl FnMut(Stream, &[u8], u64),
        ) -> io::Result<bool> {
            let mut any = false;
            self.read_pieces(cursor, |piece, time| {
                if let Piece::Output(stream, bytes) = piece {
                    any = true;
                    each(stream, bytes, time);
                }
            })?;
            Ok(any)
        }
    }

    impl LogWriter {
        pub(crate) fn create(dir: &Path) -> LogWriter {
            let paths = [dir.join("log"), dir.join("log.index")];
            let open = |path| {
                OpenOptions::new()
                    .append(true)
                    .create_new(true)
                    .open(path)
                    .expect("the test's directory is writable")
            };
            LogWriter {
                log: open(&paths[0]),
                index: open(&paths[1]),
                paths,
                time: 1_000,
            }
        }

        pub(crate) fn reader(&self) -> OutputReader {
            OutputReader::open(&self.paths[0], &self.paths[1]).expect("both files were made")
        }

        pub(crate) fn record(&mut self, length: usize, kind: u32) {
            self.time += 1;
            let mut record = [0; 16];
            record[..4].copy_from_slice(&u32::try_from(length).expect("a short record").to_le_bytes());
            record[4..8].copy_from_slice(&kind.to_le_bytes());
            record[8..].copy_from_slice(&self.time.to_le_bytes());
            self.index.write_all(&record).expect("the index is writable");
        }

        pub(crate) fn write(&mut self, stream: Stream, bytes: impl AsRef<[u8]>) {
            let bytes = bytes.as_ref();
            self.log.write_all(bytes).expect("the log is writable");
            self.record(bytes.len(), kind(stream));
        }

        pub(crate) fn stdout(&mut self, bytes: impl AsRef<[u8]>) {
            self.write(Stream::Stdout, bytes);
        }

        pub(crate) fn stderr(&mut self, bytes: impl AsRef<[u8]>) {
            self.write(Stream::Stderr, bytes);
        }

        pub(crate) fn start(&mut self) {
            self.record(0, KIND_START);
        }

        pub(crate) fn lost(&mut self, stream: Stream, length: usize) {
            self.record(length, kind(stream) | LOST);
        }
    }

    fn kind(stream: Stream) -> u32 {
        match stream {
            Stream::Stdout => 1,
            Stream::Stderr => KIND_STDERR,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::test_writer::LogWriter;
    use super::*;
    use crate::readiness::harness::{TestDir, is_alone, run_alone};

    fn pair(reader: &OutputReader, cursor: &mut Cursor) -> [Vec<u8>; 2] {
        let mut streams = [Vec::new(), Vec::new()];
        reader
            .read(cursor, |stream, bytes, _| {
                assert!(!bytes.is_empty());
                streams[stream as usize].extend_from_slice(bytes);
            })
            .unwrap();
        streams
    }

    fn lines(logs: &Logs) -> Vec<&str> {
        logs.lines().collect()
    }

    #[test]
    fn nothing_yet() {
        let dir = TestDir::new();
        let log = LogWriter::create(dir.path());
        let reader = log.reader();
        let mut cursor = reader.end();
        assert!(!reader.read(&mut cursor, |_, _, _| ()).unwrap());
        let logs = reader.snapshot();
        assert!(logs.is_empty() && !logs.truncated() && logs.lines().next().is_none());
        assert_eq!(logs.path(), dir.path().join("log"));
        assert!(reader.tail(10, Cursor::START).is_empty());
        assert_eq!(reader.first_output(Cursor::START), None);
        assert!(OutputReader::open(&dir.path().join("none"), &dir.path().join("log.index")).is_err());
        assert!(!dir.path().join("none").exists());
    }

    #[test]
    fn streams_and_lines_are_put_together() {
        let dir = TestDir::new();
        let mut log = LogWriter::create(dir.path());
        log.stdout("one\ntw");
        log.stderr("ERR");
        log.stdout("o\r\nthree");
        log.stderr("OR\n");
        log.stderr("last");
        let logs = log.reader().snapshot();
        assert_eq!(logs.to_string(), "one\ntwERRo\r\nthreeOR\nlast");
        assert_eq!(logs.stdout(), "one\ntwo\r\nthree");
        assert_eq!(logs.stderr(), "ERROR\nlast");
        assert_eq!(lines(&logs), ["one", "two", "ERROR", "three", "last"]);
    }

    #[test]
    fn a_snapshot_since_begins_there_and_stays_as_it_is() {
        let dir = TestDir::new();
        let mut log = LogWriter::create(dir.path());
        let reader = log.reader();
        log.stdout("before\n");
        let since = reader.end();
        assert!(reader.snapshot_since(since).is_empty());
        assert_eq!(reader.first_output(since), None);
        log.start();
        assert_eq!(reader.first_output(since), None);
        log.stderr("after\n");
        let logs = reader.snapshot_since(since);
        log.stderr("later\n");
        assert_eq!(logs.to_string(), "after\n");
        assert!(!logs.truncated());
        // The first record got 1001, the mark 1002.
        assert_eq!(reader.first_output(since), Some(1003));
        assert_eq!(reader.first_output(Cursor::START), Some(1001));
        assert_eq!(reader.tail(5, since), ["after", "later"]);
    }

    #[test]
    fn a_start_and_a_loss_end_a_line() {
        let dir = TestDir::new();
        let mut log = LogWriter::create(dir.path());
        log.stdout("half");
        log.stderr("a");
        log.stdout("!");
        log.start();
        log.stdout("\nnew");
        log.lost(Stream::Stdout, 7);
        log.stderr("b\n");
        log.stdout("rest\n");
        let logs = log.reader().snapshot();
        assert_eq!(lines(&logs), ["a", "half!", "", "new", "b", "rest"]);
        assert_eq!(logs.stdout(), "half!\nnewrest\n");
        assert_eq!(logs.lost(), 7);
    }

    #[test]
    fn a_torn_record_is_left_alone_until_it_is_whole() {
        let dir = TestDir::new();
        let mut log = LogWriter::create(dir.path());
        let reader = log.reader();
        log.log.write_all(b"err").unwrap();
        let record = [3, 0, 0, 0, 2, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0];
        log.index.write_all(&record[..11]).unwrap();
        let mut cursor = Cursor::START;
        assert!(!reader.read(&mut cursor, |_, _, _| ()).unwrap());
        log.index.write_all(&record[11..]).unwrap();
        assert_eq!(pair(&reader, &mut cursor), [b"".to_vec(), b"err".to_vec()]);
    }

    #[test]
    fn bytes_without_a_record_count_as_stdout_and_are_given_once() {
        let dir = TestDir::new();
        let mut log = LogWriter::create(dir.path());
        let reader = log.reader();
        log.stderr("known ");
        log.log.write_all(b"orphan").unwrap();
        let logs = reader.snapshot();
        assert_eq!((logs.stdout(), logs.stderr()), ("orphan", "known "));
        let end = reader.end();
        let mut cursor = Cursor::START;
        // Its record may be on its way.
        assert_eq!(pair(&reader, &mut cursor), [b"".to_vec(), b"known ".to_vec()]);
        assert_eq!(pair(&reader, &mut cursor)[0], b"");
        thread::sleep(ORPHANED);
        assert_eq!(pair(&reader, &mut cursor), [b"orphan".to_vec(), b"".to_vec()]);
        assert_eq!(pair(&reader, &mut cursor)[0], b"");
        // It comes after all, and speaks of more.
        log.log.write_all(b" and more").unwrap();
        log.record(15, 2);
        assert_eq!(pair(&reader, &mut cursor), [b"".to_vec(), b" and more".to_vec()]);
        let mut cursor = end;
        assert_eq!(pair(&reader, &mut cursor), [b"".to_vec(), b" and more".to_vec()]);
        assert_eq!(reader.snapshot().stderr(), "known orphan and more");
    }

    #[test]
    fn a_file_shorter_than_its_index_ends_nothing_in_a_loop() {
        let dir = TestDir::new();
        let mut log = LogWriter::create(dir.path());
        let reader = log.reader();
        log.stdout("four");
        log.record(1_000_000, 1);
        let mut cursor = Cursor::START;
        assert_eq!(pair(&reader, &mut cursor)[0], b"four");
        assert_eq!(reader.snapshot().stdout(), "four");
    }

    #[test]
    fn the_tail_is_short_and_harmless() {
        let dir = TestDir::new();
        let mut log = LogWriter::create(dir.path());
        let reader = log.reader();
        log.stdout("x".repeat(100_000));
        log.stdout("\n");
        for number in 0..100 {
            log.stdout(format!("line {number}\n"));
        }
        log.stderr("\u{1b}[31mred\u{1b}[0m \u{1b}]0;title\u{7}and\tbell\u{7}");
        let tail = reader.tail(3, Cursor::START);
        assert_eq!(tail, ["line 98", "line 99", "red and bell\u{fffd}"]);
        let tail = reader.tail(1000, Cursor::START);
        assert_eq!(tail.len(), 102);
        assert_eq!(tail[0].chars().count(), TAIL_LINE + 2);
        assert!(tail[0].starts_with("\u{2026}xxx") && tail[0].ends_with("x\u{2026}"));
        assert!(reader.tail(0, Cursor::START).is_empty());
    }

    #[test]
    fn a_snapshot_is_the_last_16_mib() {
        let dir = TestDir::new();
        let mut log = LogWriter::create(dir.path());
        let reader = log.reader();
        let block = format!("{}\n", "x".repeat(999));
        for _ in 0..17_000 {
            log.stdout(&block);
        }
        log.stderr("end\n");
        let logs = reader.snapshot();
        assert!(logs.truncated());
        assert_eq!(logs.to_string().len() as u64, SNAPSHOT);
        assert_eq!(logs.stderr(), "end\n");
        // One that begins within is whole.
        let mut cursor = Cursor::START;
        reader.read(&mut cursor, |_, _, _| ()).unwrap();
        log.stdout("more");
        let logs = reader.snapshot_since(cursor);
        assert!(!logs.truncated());
        assert_eq!(logs.to_string(), "more");
    }

    #[test]
    fn a_writer_at_work_is_read_without_loss() {
        let dir = TestDir::new();
        let mut log = LogWriter::create(dir.path());
        let reader = log.reader();
        thread::scope(|scope| {
            scope.spawn(move || {
                for number in 0..5_000_u32 {
                    log.stdout(format!("{number}\n"));
                    log.stderr(format!("-{number}\n"));
                }
            });
            let mut cursor = Cursor::START;
            let mut streams = [Vec::new(), Vec::new()];
            // On a busy disk it takes its time; but not without anything to read.
            let mut heard = Instant::now();
            while !streams[1].ends_with(b"-4999\n") && heard.elapsed() < Duration::from_secs(60) {
                let [out, err] = pair(&reader, &mut cursor);
                if !(out.is_empty() && err.is_empty()) {
                    heard = Instant::now();
                }
                streams[0].extend(out);
                streams[1].extend(err);
            }
            let wanted: String = (0..5_000).map(|n| format!("{n}\n")).collect();
            assert_eq!(String::from_utf8(streams[0].clone()).unwrap(), wanted);
            let wanted: String = (0..5_000).map(|n| format!("-{n}\n")).collect();
            assert_eq!(String::from_utf8(streams[1].clone()).unwrap(), wanted);
        });
    }

    /// Streams memory by the hundred megabytes through one reader.
    #[test]
    #[cfg(target_os = "linux")]
    fn memory_stays_flat() {
        fn resident() -> usize {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        }
        // In a process of its own: other tests' memory would be counted otherwise.
        if !is_alone() {
            return run_alone("output::logs::tests::memory_stays_flat", &[]);
        }
        let dir = TestDir::new();
        let mut log = LogWriter::create(dir.path());
        let reader = log.reader();
        let block = vec![b'x'; 60_000];
        // 100 MB, sparse but for the blocks at its ends: what counts is how it is read.
        log.stdout(&block);
        log.log.set_len(100_000_000).unwrap();
        for _ in 0..1_000 {
            log.record(99_940, 1);
        }
        let before = resident();
        let mut cursor = Cursor::START;
        let mut total = 0;
        let mut most = 0;
        let read = |_, bytes: &[u8], _| {
            total += bytes.len();
            if total % 7 == 0 {
                most = most.max(resident());
            }
        };
        assert!(reader.read(&mut cursor, read).unwrap());
        assert_eq!(total, 100_000_000);
        let _ = reader.tail(10, Cursor::START);
        let grown = most.max(resident()).saturating_sub(before);
        assert!(grown < 1024, "grew by {grown} KiB");
    }

    #[derive(Clone, Debug)]
    enum Write1 {
        Out(Stream, Vec<u8>),
        Lost(Stream, u16),
        Start,
    }

    fn stream() -> impl Strategy<Value = Stream> {
        prop_oneof![Just(Stream::Stdout), Just(Stream::Stderr)]
    }

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        // Many line feeds and parts of characters.
        let byte = prop_oneof![
            3 => Just(b'\n'),
            6 => b'a'..=b'e',
            1 => Just(b'\r'),
            2 => prop_oneof![Just(0xc3), Just(0xa9), Just(0xff)],
        ];
        vec(byte, 0..40)
    }

    proptest! {
        #[test]
        fn any_split_gives_back_each_stream(
            writes in vec((stream(), bytes()), 0..40),
            stops in vec(any::<bool>(), 40),
        ) {
            let dir = TestDir::new();
            let mut log = LogWriter::create(dir.path());
            let reader = log.reader();
            let mut wanted = [Vec::new(), Vec::new()];
            let mut got = [Vec::new(), Vec::new()];
            let mut all = Vec::new();
            let mut cursor = Cursor::START;
            for ((stream, bytes), stop) in writes.iter().zip(stops) {
                log.write(*stream, bytes);
                wanted[*stream as usize].extend_from_slice(bytes);
                all.extend_from_slice(bytes);
                if stop {
                    let [out, err] = pair(&reader, &mut cursor);
                    got[0].extend(out);
                    got[1].extend(err);
                }
            }
            let [out, err] = pair(&reader, &mut cursor);
            got[0].extend(out);
            got[1].extend(err);
            prop_assert_eq!(&got, &wanted);
            let logs = reader.snapshot();
            prop_assert_eq!(logs.stdout(), String::from_utf8_lossy(&wanted[0]));
            prop_assert_eq!(logs.stderr(), String::from_utf8_lossy(&wanted[1]));
            prop_assert_eq!(logs.to_string(), String::from_utf8_lossy(&all));
        }

        #[test]
        fn lines_are_whole_and_in_order(
            writes in vec(
                prop_oneof![
                    10 => (stream(), bytes()).prop_map(|(s, b)| Write1::Out(s, b)),
                    1 => (stream(), any::<u16>()).prop_map(|(s, n)| Write1::Lost(s, n)),
                    1 => Just(Write1::Start),
                ],
                0..40,
            ),
        ) {
            let dir = TestDir::new();
            let mut log = LogWriter::create(dir.path());
            // The plain way: a line is done at its line feed, or where it is cut off.
            let mut wanted: Vec<Vec<u8>> = Vec::new();
            let mut open: [Option<(usize, Vec<u8>)>; 2] = [None, None];
            let cut = |open: &mut Option<(usize, Vec<u8>)>, wanted: &mut Vec<Vec<u8>>| {
                if let Some((_, line)) = open.take() {
                    wanted.push(line);
                }
            };
            let cut_both = |open: &mut [Option<(usize, Vec<u8>)>; 2], wanted: &mut Vec<Vec<u8>>| {
                let mut both: Vec<_> = open.iter_mut().filter_map(Option::take).collect();
                both.sort();
                wanted.extend(both.into_iter().map(|(_, line)| line));
            };
            for (number, write) in writes.iter().enumerate() {
                match write {
                    Write1::Out(stream, bytes) => {
                        log.write(*stream, bytes);
                        for &byte in bytes {
                            let line = open[*stream as usize].get_or_insert((number, Vec::new()));
                            line.0 = number;
                            if byte == b'\n' {
                                let line = std::mem::take(&mut line.1);
                                wanted.push(line.strip_suffix(b"\r").map(<[u8]>::to_vec).unwrap_or(line));
                                open[*stream as usize] = None;
                            } else {
                                line.1.push(byte);
                            }
                        }
                    }
                    Write1::Lost(stream, count) => {
                        log.lost(*stream, (*count).into());
                        cut(&mut open[*stream as usize], &mut wanted);
                    }
                    Write1::Start => {
                        log.start();
                        cut_both(&mut open, &mut wanted);
                    }
                }
            }
            cut_both(&mut open, &mut wanted);
            let logs = log.reader().snapshot();
            let wanted: Vec<_> = wanted.iter().map(|line| String::from_utf8_lossy(line)).collect();
            prop_assert_eq!(lines(&logs), wanted);
        }

        #[test]
        fn what_is_shown_is_harmless(text in "(\u{1b}|\\[|\\]|[0-9;]|m|\r|\t|.|\\PC)*", limit in 1_usize..50) {
            let shown = printable(&text, limit);
            prop_assert!(shown.chars().count() <= limit + 1);
            prop_assert!(!shown.chars().any(char::is_control));
        }
    }
}
