//! Finds the lines of a growing log that match a regular expression, for `Banner` and `fail_on`.
//!
//! Each stream has its own lines. A line is found even if it was written in several parts, or if
//! output of the other stream interrupts it. A pattern is matched against the line as a report
//! shows it: without escape sequences and without text that carriage returns overwrite.
//!
//! The unfinished last line is matched as well, for servers that print `ready> ` and wait. Such a
//! match counts immediately only if no further output can undo it: `port 80` may become `port
//! 8080`, and `$` needs the end of the line. [`LineWatch::settle`] treats the line as finished.
//!
//! Memory use is bounded, because only the last part of a very long line is kept.

use std::borrow::Cow;
use std::io;

use regex::bytes::{Captures, Regex, RegexBuilder};

use crate::output::reader::{Cursor, OutputReader, Piece, Stream};
use crate::recipe::placeholder::{Token, tokens};
use crate::util::text::{plain, printable};

/// The maximum number of bytes that are kept of an unfinished line. When a line gets longer, only
/// the last half of this length is kept. A match of up to half this length is therefore always
/// found.
const WINDOW: usize = 64 * 1024;

#[derive(Clone, Debug)]
pub(crate) struct LineWatch {
    pattern: Pattern,
    stream: Option<Stream>,
    cursor: Option<Cursor>,
    open: [OpenLine; 2],
}

/// The unfinished line of one stream.
#[derive(Clone, Debug, Default)]
struct OpenLine {
    bytes: Vec<u8>,
    /// Whether the beginning of the line has been dropped. If so, the first byte that is left
    /// serves only as context for `^` and `\b`.
    cut: bool,
    /// Whether the line has already matched. It counts only once.
    found: bool,
    /// The length of the line when it was last searched.
    searched_to: usize,
    /// Whether the line matches now, but may no longer match when it is finished.
    undecided: bool,
}

/// A line that matches.
pub(crate) struct Found<'a> {
    line: &'a [u8],
    captures: Option<Captures<'a>>,
}

impl Found<'_> {
    /// The line, safe to print.
    pub(crate) fn line(&self) -> String {
        printable(&String::from_utf8_lossy(self.line), 400)
    }

    /// The line in the form that was matched.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(self.line).into_owned()
    }

    /// The text of a named group.
    pub(crate) fn group(&self, name: &str) -> Option<&str> {
        let group = self.captures.as_ref()?.name(name)?;
        std::str::from_utf8(group.as_bytes()).ok()
    }
}

impl LineWatch {
    /// Watches one stream, or both if `stream` is `None`. The error explains the mistake in the
    /// pattern.
    pub(crate) fn new(pattern: &str, stream: Option<Stream>) -> Result<LineWatch, String> {
        if wants_line_feed(pattern) {
            return Err(
                "a pattern is matched against one line at a time, without its end; \
                        leave the line feed out, or use `$` for the end of a line"
                    .to_owned(),
            );
        }
        // Patterns match bytes, because a log may not be UTF-8: `.` is any byte, and `\d`, `\w`,
        // `\s` and `\b` know only ASCII. If the pattern is valid only for characters, such as
        // `[äö]`, it matches characters.
        let build = |unicode| RegexBuilder::new(pattern).unicode(unicode).build();
        let regex = build(false)
            .or_else(|error| build(true).map_err(|_| error))
            .map_err(|error| error.to_string())?;
        Ok(LineWatch {
            pattern: Pattern {
                named: regex.capture_names().any(|name| name.is_some()),
                regex,
                raw: false,
            },
            stream,
            cursor: None,
            open: Default::default(),
        })
    }

    /// Sets whether to match a line's raw bytes, including its escape sequences and carriage
    /// returns.
    pub(crate) fn raw(mut self, raw: bool) -> LineWatch {
        self.pattern.raw = raw;
        self
    }

    /// Searches the output that is new since the last call; the first call begins at `since`.
    /// Passes each line that matches to `found`.
    pub(crate) fn scan(
        &mut self,
        reader: &OutputReader,
        since: Cursor,
        found: &mut dyn FnMut(&Found<'_>),
    ) -> io::Result<()> {
        let LineWatch {
            pattern,
            stream: wanted,
            cursor,
            open,
        } = self;
        let result = reader.read_pieces(cursor.get_or_insert(since), |piece, _| match piece {
            Piece::Output(stream, bytes) => {
                if wanted.is_none_or(|wanted| wanted == stream) {
                    open[stream as usize].feed(pattern, bytes, found);
                }
            }
            // Part of the line is lost, so the next bytes do not continue it.
            Piece::Lost(stream, _) => open[stream as usize] = OpenLine::default(),
            Piece::Start | Piece::LeftOut(_) => *open = Default::default(),
        });
        for line in open {
            line.match_unfinished(pattern, found);
        }
        result
    }

    /// The first line that [`scan`](LineWatch::scan) would report, safe to print.
    pub(crate) fn first(&mut self, reader: &OutputReader, since: Cursor) -> io::Result<Option<String>> {
        let mut first = None;
        self.scan(reader, since, &mut |found| {
            first.get_or_insert_with(|| found.line());
        })?;
        Ok(first)
    }

    /// Searches the next bytes of a log file, as if it were one stream.
    pub(crate) fn feed(&mut self, bytes: &[u8], found: &mut dyn FnMut(&Found<'_>)) {
        self.open[0].feed(&self.pattern, bytes, found);
        self.open[0].match_unfinished(&self.pattern, found);
    }

    /// If a finished line matches, passes it to `found` and returns true.
    pub(crate) fn matches(&self, line: &[u8], found: &mut dyn FnMut(&Found<'_>)) -> bool {
        self.pattern.tell(line, 0, found)
    }

    /// The names of the pattern's groups.
    pub(crate) fn names(&self) -> Vec<String> {
        let names = self.pattern.regex.capture_names().flatten();
        names.map(str::to_owned).collect()
    }

    /// Treats matching unfinished lines as finished.
    pub(crate) fn settle(&mut self, found: &mut dyn FnMut(&Found<'_>)) {
        for line in self.open.iter_mut().filter(|line| line.undecided) {
            line.undecided = false;
            line.found = self.pattern.tell(&line.bytes, usize::from(line.cut), found);
        }
    }

    /// The length of an unfinished line that matches now, but may no longer match when it is
    /// finished.
    pub(crate) fn undecided(&self) -> Option<usize> {
        self.open
            .iter()
            .find(|line| line.undecided)
            .map(|line| line.bytes.len())
    }
}

#[derive(Clone, Debug)]
struct Pattern {
    regex: Regex,
    /// Whether the regex has named groups.
    named: bool,
    raw: bool,
}

impl Pattern {
    /// Converts a line into the form against which the pattern is matched.
    fn text<'l>(&self, line: &'l [u8]) -> Cow<'l, [u8]> {
        match self.raw {
            true => Cow::Borrowed(without_return(line)),
            false => plain(line),
        }
    }

    /// If a line matches at or after `start`, passes it to `found` and returns true.
    fn tell(&self, line: &[u8], start: usize, found: &mut dyn FnMut(&Found<'_>)) -> bool {
        let line = &*self.text(line);
        let start = start.min(line.len());
        let captures = if self.named {
            let captures = self.regex.captures_at(line, start);
            if captures.is_none() {
                return false;
            }
            captures
        } else if self.regex.is_match_at(line, start) {
            None
        } else {
            return false;
        };
        found(&Found { line, captures });
        true
    }

    /// Returns whether the match in an unfinished line is final: no further output can undo it.
    /// `None` if the line does not match.
    fn holds(&self, line: &[u8], start: usize) -> Option<bool> {
        let mut line = self.text(line);
        let start = start.min(line.len());
        if !self.regex.is_match_at(&line, start) {
            return None;
        }
        // The assertions `$`, `\b` and `\B` depend on the next byte: whether there is one, and
        // whether it belongs to a word.
        for next in [b'a', b' '] {
            line.to_mut().push(next);
            let still = self.regex.is_match_at(&line, start);
            line.to_mut().pop();
            if !still {
                return Some(false);
            }
        }
        if self.named {
            // A group that reaches the end of the unfinished line may not have all of its text yet.
            let captures = self.regex.captures_at(&line, start)?;
            let names = self.regex.capture_names().flatten();
            let mut groups = names.filter_map(|name| captures.name(name));
            return Some(groups.all(|group| group.end() < line.len()));
        }
        Some(true)
    }
}

impl OpenLine {
    fn feed(&mut self, pattern: &Pattern, bytes: &[u8], found: &mut dyn FnMut(&Found<'_>)) {
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|&b| b == b'\n') {
            let (line, after) = (&rest[..end], &rest[end + 1..]);
            if self.bytes.is_empty() {
                // Usually a whole line arrives at once, so it is searched without a copy.
                pattern.tell(line, 0, found);
            } else {
                self.push(pattern, line, found);
                if !self.found {
                    pattern.tell(&self.bytes, usize::from(self.cut), found);
                }
            }
            *self = OpenLine {
                bytes: std::mem::take(&mut self.bytes),
                ..OpenLine::default()
            };
            self.bytes.clear();
            rest = after;
        }
        if !rest.is_empty() {
            self.push(pattern, rest, found);
        }
    }

    fn push(&mut self, pattern: &Pattern, bytes: &[u8], found: &mut dyn FnMut(&Found<'_>)) {
        self.bytes.extend_from_slice(bytes);
        if self.bytes.len() > WINDOW {
            self.match_unfinished(pattern, found);
            let surplus = self.bytes.len() - WINDOW / 2;
            self.bytes.drain(..surplus);
            self.cut = true;
            self.searched_to = 0;
        }
    }

    fn match_unfinished(&mut self, pattern: &Pattern, found: &mut dyn FnMut(&Found<'_>)) {
        if self.found || self.searched_to == self.bytes.len() {
            return;
        }
        self.searched_to = self.bytes.len();
        let start = usize::from(self.cut);
        self.undecided = false;
        match pattern.holds(&self.bytes, start) {
            Some(true) => self.found = pattern.tell(&self.bytes, start, found),
            Some(false) => self.undecided = true,
            None => {}
        }
    }
}

fn without_return(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// Whether a pattern contains a line feed, as a character or as `\n`. In verbose mode, the
/// character is ignored.
fn wants_line_feed(pattern: &str) -> bool {
    let verbose =
        pattern.starts_with("(?") && pattern[2..].split(')').next().is_some_and(|f| f.contains('x'));
    let mut escaped = false;
    pattern.chars().any(|c| {
        let bad = if escaped { c == 'n' } else { c == '\n' && !verbose };
        escaped = !escaped && c == '\\';
        bad
    })
}

/// Fills in the placeholders of a pattern. Their values are escaped, so a dot in a directory's name
/// matches only a dot. The braces of `a{2,3}` and `\p{Lu}` are not placeholders, and `\p{{greek}}`
/// becomes `\p{greek}`.
pub(crate) fn expand_pattern<E>(
    pattern: &str,
    mut expand: impl FnMut(&str) -> Result<String, E>,
) -> Result<String, E> {
    let mut expanded = String::new();
    for token in tokens(pattern.as_bytes(), true) {
        match token {
            Token::Text(text) => expanded.push_str(&String::from_utf8_lossy(text)),
            Token::Placeholder(found) => {
                let value = expand(&found.to_string())?;
                expanded.push_str(&regex::escape(&value));
            }
        }
    }
    Ok(expanded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::test_writer::LogWriter;
    use crate::readiness::harness::TestDir;

    fn lines(watch: &mut LineWatch, reader: &OutputReader) -> Vec<String> {
        let mut lines = Vec::new();
        watch
            .scan(reader, Cursor::START, &mut |found| lines.push(found.line()))
            .unwrap();
        lines
    }

    fn watch(pattern: &str) -> LineWatch {
        LineWatch::new(pattern, None).unwrap()
    }

    #[test]
    fn a_line_in_pieces_is_found_once() {
        let dir = TestDir::new();
        let mut log = LogWriter::create(dir.path());
        let reader = log.reader();
        let mut ready = watch("server ready");
        log.stdout("x\nthe serv");
        assert!(lines(&mut ready, &reader).is_empty());
        log.stderr("noise\n");
        log.stdout("er rea");
        assert!(lines(&mut ready, &reader).is_empty());
        log.stdout("dy");
        assert_eq!(lines(&mut ready, &reader), ["the server ready"]);
        log.stdout(" now\r\n");
        assert!(lines(&mut ready, &reader).is_empty());
        log.stderr("server ready\r\n");
        assert_eq!(lines(&mut ready, &reader), ["server ready"]);
    }

    #[test]
    fn an_unfinished_line_counts_only_for_what_it_cannot_take_back() {
        let dir = TestDir::new();
        let mut log = LogWriter::create(dir.path());
        let reader = log.reader();
        let mut prompt = watch("^ready> ");
        let mut end = watch("ready> $");
        let mut word = watch(r"\bport 80\b");
        log.stdout("ready> ");
        assert_eq!(lines(&mut prompt, &reader), ["ready> "]);
        assert!(lines(&mut end, &reader).is_empty());
        assert_eq!(end.undecided(), Some(7));
        log.stdout("port 80");
        assert!(lines(&mut end, &reader).is_empty());
        assert_eq!(end.undecided(), None);
        assert!(lines(&mut word, &reader).is_empty());
        log.stdout("80\nport 80\n");
        assert_eq!(lines(&mut word, &reader), ["port 80"]);
    }

    #[test]
    fn a_group_is_not_cut_off() {
        let dir = TestDir::new();
        let mut log = LogWriter::create(dir.path());
        let reader = log.reader();
        let mut watch = watch(r"on .*:(?<port>\d+)");
        let mut ports = Vec::new();
        for piece in ["on 1.2.3.4:54", "32", "\n", "on [::1]:1 "] {
            log.stderr(piece);
            let mut found = |found: &Found<'_>| ports.push(found.group("port").unwrap().to_owned());
            watch.scan(&reader, Cursor::START, &mut found).unwrap();
        }
        assert_eq!(ports, ["5432", "1"]);
    }

    #[test]
    fn a_line_is_matched_as_it_is_shown() {
        let dir = TestDir::new();
        let mut log = LogWriter::create(dir.path());
        log.stdout(
            "\u{1b}[2m12:00\u{1b}[0m \u{1b}[32m INFO\u{1b}[0m app: \
            \u{1b}[3mport\u{1b}[0m\u{1b}[2m=\u{1b}[0m80\n",
        );
        log.stdout("10%\r100%\r\n");
        log.stderr("\u{1b}[1mready> \u{1b}[");
        let matches = |pattern: &str| lines(&mut watch(pattern), &log.reader());
        assert_eq!(
            matches(r"^12:00  INFO app: port=80$"),
            ["12:00  INFO app: port=80"]
        );
        assert_eq!(matches("^100%$"), ["100%"]);
        assert!(matches("10%").is_empty(), "the terminal shows it no more");
        assert_eq!(matches("^ready> "), ["ready> "]);
        let raw = |pattern: &str| lines(&mut watch(pattern).raw(true), &log.reader()).len();
        assert_eq!(
            (raw("port=80"), raw(r"\x1b\[2m=\x1b"), raw(r"10%\r100%")),
            (0, 1, 1)
        );
    }

    #[test]
    fn one_stream_only() {
        let dir = TestDir::new();
        let mut log = LogWriter::create(dir.path());
        let mut watch = LineWatch::new("ready", Some(Stream::Stderr)).unwrap();
        log.stdout("ready out\n");
        log.stderr("ready err\n");
        assert_eq!(lines(&mut watch, &log.reader()), ["ready err"]);
    }

    #[test]
    fn a_line_without_end_takes_bounded_memory() {
        let dir = TestDir::new();
        let mut log = LogWriter::create(dir.path());
        let reader = log.reader();
        let mut found = watch("needle");
        let mut beginning = watch("^hay");
        let mut all = Vec::new();
        let hay = "hay ".repeat(2_500);
        for round in 0..60 {
            log.stdout(&hay);
            if round == 30 {
                log.stdout("nee");
                log.stderr("between\n");
                log.stdout("dle");
            }
            all.extend(lines(&mut found, &reader));
            all.extend(lines(&mut beginning, &reader));
            assert!(found.open[0].bytes.capacity() <= 4 * WINDOW);
        }
        // `^hay` matches only at the beginning of the line, and `needle` counts once.
        assert_eq!(all.len(), 2);
    }

    #[test]
    fn a_restart_or_a_loss_ends_a_line() {
        let dir = TestDir::new();
        let mut log = LogWriter::create(dir.path());
        let reader = log.reader();
        let mut ready = watch("ready");
        log.stdout("rea");
        assert!(lines(&mut ready, &reader).is_empty());
        log.start();
        log.stdout("dy rea");
        log.lost(Stream::Stdout, 100);
        log.stdout("dy\n");
        assert!(lines(&mut ready, &reader).is_empty());
    }

    #[test]
    fn bytes_that_are_no_text_do_no_harm() {
        let dir = TestDir::new();
        let mut log = LogWriter::create(dir.path());
        log.stdout(b"caf\xe9 open: \xff 1\n");
        log.stdout("caf\u{e9} open\n");
        assert_eq!(lines(&mut watch("caf.+ open: . 1"), &log.reader()).len(), 1);
        assert_eq!(lines(&mut watch("café open"), &log.reader()), ["café open"]);
        assert_eq!(lines(&mut watch("caf[éè] open"), &log.reader()), ["café open"]);
    }

    #[test]
    fn a_pattern_over_lines_is_refused() {
        for pattern in ["a\nb", r"a\nb", r"\\\n"] {
            let reason = LineWatch::new(pattern, None).unwrap_err();
            assert!(reason.contains("one line at a time"), "{reason}");
        }
        for pattern in [r"C:\\new", "(?x) a \n b", r"a\\n"] {
            assert!(LineWatch::new(pattern, None).is_ok(), "{pattern}");
        }
        let reason = LineWatch::new("(open", None).unwrap_err();
        assert!(reason.contains("unclosed group"), "{reason}");
    }

    #[test]
    fn placeholders_are_escaped_and_other_braces_left_alone() {
        let expand = |text: &str| match text {
            "{port}" => Ok("80".to_owned()),
            "{port:admin}" => Ok("81".to_owned()),
            "{dir}" => Ok("/tmp/a.b+c".to_owned()),
            other => Err(other.to_owned()),
        };
        for (pattern, wanted) in [
            ("on {port} and {port:admin}", "on 80 and 81"),
            ("in {dir}/x", r"in /tmp/a\.b\+c/x"),
            (r"a{2} b{1,3} c{2,} \p{Lu}", r"a{2} b{1,3} c{2,} \p{Lu}"),
            (r"\p{{greek}} {{port}}", r"\p{greek} {port}"),
            (r"\{port\} \{port} \\{port}", r"\{port\} \{port} \\80"),
            ("${port} {Port} {} {: } é{port}", "${port} {Port} {} {: } é80"),
            (
                "${{port}} {{{port}}} {port: 1} {port:}",
                "${port} {{port}} {port: 1} {port:}",
            ),
            (r"(?<port>\d+)", r"(?<port>\d+)"),
        ] {
            assert_eq!(expand_pattern(pattern, expand).as_deref(), Ok(wanted));
        }
        assert_eq!(expand_pattern(r"\p{greek}", expand), Err("{greek}".to_owned()));
    }
}
