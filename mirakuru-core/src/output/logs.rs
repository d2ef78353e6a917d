//! A snapshot of a service's output: the public [`Logs`].

use std::fmt;
use std::path::{Path, PathBuf};

use crate::error::report::Printed;
use crate::error::text::Bytes;
use crate::output::log_file::LogFile;
use crate::output::mark::Mark;
use crate::output::reader::{Cursor, OutputReader, Piece, Stream};
use crate::util::text::printable;

/// Maximum size of a snapshot, in bytes. A snapshot of a longer log contains only the end of the
/// log.
pub(super) const SNAPSHOT: u64 = 16 * 1024 * 1024;
/// Number of bytes that [`tail`](OutputReader::tail) reads from the end of the log.
const TAIL: u64 = 64 * 1024;
/// Number of bytes that [`excerpt`](OutputReader::excerpt) reads from the end of the log.
const EXCERPT: u64 = 1024 * 1024;
/// Maximum length of a line of the tail, in characters. Longer lines are cut.
pub(super) const TAIL_LINE: usize = 400;

/// A snapshot of a service's output so far, made by
/// [`Executor::logs`](crate::executor::Executor::logs). It owns its text, and later output does not
/// change it.
///
/// A snapshot contains at most the last 16 MiB of the output; [`truncated`](Logs::truncated) tells
/// whether the beginning is missing. The [file](Logs::path) contains all output, up to a limit.
/// U+FFFD replaces bytes that are not UTF-8, as in [`String::from_utf8_lossy`].
/// [`stdout`](Logs::stdout) and [`stderr`](Logs::stderr) contain only whole characters, even if
/// output of the other stream splits a character in the file.
///
/// `Display` writes the output of both streams as it is in the file. An extra line shows where
/// output was left out.
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
    /// For each finished line, in order, whether it came from standard error.
    order: Vec<bool>,
    /// The log files of the recipe, each with its text.
    files: Vec<(PathBuf, String)>,
    path: PathBuf,
    lost: u64,
    dropped: u64,
    truncated: bool,
}

/// The output of one stream.
#[derive(Clone, Debug, Default)]
struct Text {
    text: String,
    /// Offsets at which a line ends without a line feed, because the service was restarted or
    /// output was lost.
    breaks: Vec<usize>,
}

impl Logs {
    /// The service's standard output.
    #[must_use]
    pub fn stdout(&self) -> &str {
        &self.texts[0].text
    }

    /// The service's standard error.
    #[must_use]
    pub fn stderr(&self) -> &str {
        &self.texts[1].text
    }

    /// The lines of both streams, without line ends, in the order in which they were completed. A
    /// line is whole even if output of the other stream splits it in the file. Unfinished lines
    /// follow the finished ones, and the lines of log files are last.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        let mut streams = self.texts.each_ref().map(TextLines::new);
        let mut lines = Vec::new();
        for &stderr in &self.order {
            lines.extend(streams[usize::from(stderr)].next());
        }
        for (_, text) in &self.files {
            lines.extend(text.lines());
        }
        lines.into_iter()
    }

    /// The text of one of the recipe's [log
    /// files](crate::recipe::builder::ExecutorBuilder::log_file), by path or file name. Empty if
    /// the service has not written to the file.
    #[must_use]
    pub fn file(&self, name: impl AsRef<Path>) -> &str {
        let name = name.as_ref();
        let file = self.files.iter().find(|(path, _)| path.ends_with(name));
        file.map_or("", |(_, text)| text)
    }

    /// Takes a snapshot of the output and the log files since the mark.
    pub(crate) fn since(output: &OutputReader, files: &[PathBuf], mark: &Mark) -> Logs {
        let mut logs = output.snapshot_since(mark.output);
        for (number, path) in files.iter().enumerate() {
            let mut bytes = Vec::new();
            // If reading fails, keep the part read so far.
            let _ = LogFile::new(path, mark.file(number)).read(&mut |part| {
                bytes.extend_from_slice(part);
                let surplus = bytes.len().saturating_sub(2 * SNAPSHOT as usize);
                bytes.drain(..surplus);
            });
            let surplus = bytes.len().saturating_sub(SNAPSHOT as usize);
            logs.truncated |= surplus > 0;
            let text = String::from_utf8_lossy(&bytes[surplus..]).into_owned();
            logs.files.push((path.clone(), text));
        }
        logs
    }

    /// The path of the log file, which contains all output of the service, including that of
    /// earlier starts. The file is removed with the service's private directory, except after a
    /// failure.
    ///
    /// Once the output exceeds half of its
    /// [`log_limit`](crate::recipe::builder::ExecutorBuilder::log_limit), this file no longer
    /// grows. The files `log.1`, `log.2` and `log.3` beside it contain the latest output.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the service's output and all log files are empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty() && self.files.iter().all(|(_, text)| text.is_empty())
    }

    /// Whether the beginning is missing because the snapshot would exceed 16 MiB.
    #[must_use]
    pub fn truncated(&self) -> bool {
        self.truncated
    }

    /// Number of bytes that are missing from the snapshot and the files because the log reached its
    /// [limit](crate::recipe::builder::ExecutorBuilder::log_limit).
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Number of bytes that are missing from the snapshot and the file because the disk was full.
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

impl OutputReader {
    /// Takes a snapshot of the output so far, at most the last 16 MiB.
    #[cfg(test)]
    pub(crate) fn snapshot(&self) -> Logs {
        self.snapshot_since(Cursor::START)
    }

    /// Takes a snapshot of the output since the cursor, at most the last 16 MiB.
    pub(crate) fn snapshot_since(&self, since: Cursor) -> Logs {
        self.collect(since, SNAPSHOT)
    }

    /// The last `lines` lines since the cursor, safe to print. Reads the last 64 KiB, cuts each
    /// line at 400 characters, and removes terminal control sequences.
    pub(crate) fn tail(&self, lines: usize, since: Cursor) -> Vec<String> {
        let logs = self.collect(since, TAIL);
        let count = logs.lines().count();
        let skip = count.saturating_sub(lines);
        logs.lines()
            .enumerate()
            .skip(skip)
            .map(|(number, line)| {
                let line = printable(line, TAIL_LINE);
                // The snapshot begins in the middle of a line.
                if number == 0 && logs.truncated {
                    format!("\u{2026}{line}")
                } else {
                    line
                }
            })
            .collect()
    }

    /// The first and the last lines since the cursor, safe to print. Successive lines that differ
    /// only in times and process ids are folded, so that repeated messages do not hide other lines.
    pub(crate) fn excerpt(&self, since: Cursor, first: usize, last: usize) -> Excerpt {
        let end = self.end();
        let logs = self.collect(since, EXCERPT);
        let texts = |lines: Vec<(String, u64)>| lines.into_iter().map(|(line, _)| line).collect();
        let mut folded = fold(&logs);
        if logs.truncated {
            if let Some((line, _)) = folded.first_mut() {
                // The snapshot begins in the middle of a line.
                line.insert(0, '\u{2026}');
            }
        } else if folded.len() <= last {
            return Excerpt {
                dropped: logs.dropped,
                head: Vec::new(),
                left_out: 0,
                tail: texts(folded),
            };
        }
        let at = folded.len().saturating_sub(last);
        let tail = folded.split_off(at);
        let (total, mut head) = match logs.truncated {
            false => (logs.order.len() as u64, folded),
            true => (self.count_lines(since, end), fold(&self.beginning(since, end))),
        };
        head.truncate(first);
        let mut shown = 0;
        for (_, count) in head.iter().chain(&tail) {
            shown += count;
        }
        Excerpt {
            left_out: total.saturating_sub(shown),
            dropped: logs.dropped,
            head: texts(head),
            tail: texts(tail),
        }
    }

    /// The first lines of the output since the cursor, for a log that is too long to be read as a
    /// whole.
    fn beginning(&self, since: Cursor, end: Cursor) -> Logs {
        let mut assembly = Assembly::default();
        let mut cursor = since;
        let mut length = 0;
        let _ = self.walk(&mut cursor, Some(end), &mut |piece, _| {
            if length < TAIL_LINE * 20 {
                if let Piece::Output(_, bytes) = piece {
                    length += bytes.len();
                }
                assembly.add(piece);
            }
        });
        assembly.finish(self.path.clone(), false)
    }

    fn count_lines(&self, since: Cursor, end: Cursor) -> u64 {
        let mut count = 0;
        let mut cursor = since;
        let _ = self.walk(&mut cursor, Some(end), &mut |piece, _| {
            if let Piece::Output(_, bytes) = piece {
                count += bytes.iter().filter(|&&byte| byte == b'\n').count() as u64;
            }
        });
        count
    }

    fn collect(&self, since: Cursor, limit: u64) -> Logs {
        let end = self.end();
        let mut assembly = Assembly::default();
        let start = self.back_from(end, since, limit).unwrap_or(since);
        let mut cursor = start;
        // If reading fails, keep the part read so far.
        let _ = self.walk(&mut cursor, Some(end), &mut |piece, _| assembly.add(piece));
        let mut logs = assembly.finish(self.path.clone(), start.given > since.given);
        logs.dropped = self.dropped(since);
        logs
    }
}

/// The part of a log that a report shows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Excerpt {
    /// The first lines of the output. Empty if `tail` contains all lines.
    pub(crate) head: Vec<String>,
    /// Number of lines between `head` and `tail`.
    pub(crate) left_out: u64,
    /// Number of bytes that are not in the log, because it reached its limit.
    pub(crate) dropped: u64,
    pub(crate) tail: Vec<String>,
}

impl Excerpt {
    /// Converts the excerpt to the form that a report prints, with the path of the whole log.
    pub(crate) fn printed<'a>(&'a self, log: &'a Path) -> Printed<'a> {
        Printed {
            head: &self.head,
            left_out: self.left_out,
            dropped: self.dropped,
            tail: &self.tail,
            log: Some(log),
        }
    }
}

/// Folds groups of four or more successive lines that differ only in times and process ids. The
/// first and the last line of a group are kept; a line between them tells how many were left out.
/// Returns each line with the number of input lines it represents.
fn fold(logs: &Logs) -> Vec<(String, u64)> {
    let mut folded: Vec<(String, u64)> = Vec::new();
    let mut pattern = String::new();
    // Number of successive lines with the same pattern.
    let mut alike = 0;
    for line in logs.lines() {
        let line = printable(line, TAIL_LINE);
        let same = without_time(&line);
        if same == pattern && !pattern.is_empty() {
            alike += 1;
        } else {
            pattern = same;
            alike = 1;
        }
        if alike < 4 {
            folded.push((line, 1));
            continue;
        }
        let at = folded.len();
        folded[at - 1] = (line, 1);
        folded[at - 2] = (format!("({} more lines like this)", alike - 2), alike - 2);
    }
    folded
}

/// Removes digits from times, dates and process ids, so that repeated messages compare equal.
fn without_time(line: &str) -> String {
    let mut words = Vec::new();
    for word in line.split_whitespace() {
        let count = |c| word.matches(c).count();
        let number = word.trim_matches(['[', ']', '(', ')', ':', ',']);
        let is_id = number.len() < word.len() && number.bytes().all(|byte| byte.is_ascii_digit());
        words.push(
            match is_id || count(':') >= 2 || count('-') >= 2 || count('/') >= 2 {
                true => word.chars().filter(|c| !c.is_ascii_digit()).collect(),
                false => word.to_owned(),
            },
        );
    }
    words.join(" ")
}

/// The line that replaces left-out output.
pub(super) fn left_out(bytes: u64) -> String {
    format!(
        "[mirakuru: {} are left out here: the log has reached its limit]",
        Bytes(bytes)
    )
}

/// Builds a snapshot, piece by piece.
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
    /// Bytes not yet decoded, because the last character may be incomplete.
    bytes: Vec<u8>,
    /// Whether the last line is unfinished.
    line: bool,
    /// Sequence number of the latest piece of this stream's output.
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
            Piece::LeftOut(count) => {
                self.cut_both();
                if self.all.last().is_some_and(|last| *last != b'\n') {
                    self.all.push(b'\n');
                }
                self.all.extend_from_slice(left_out(count).as_bytes());
                self.all.push(b'\n');
            }
            Piece::Start => self.cut_both(),
        }
    }

    /// Ends both unfinished lines. Begins with the line whose last piece is older.
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
            files: Vec::new(),
            path,
            lost: self.lost,
            dropped: 0,
            truncated,
        }
    }
}
