//! The layout of a report: a first line with the whole message, then the evidence, each item under
//! its label, then the hint.
//!
//! ```text
//! redis-server --prot 6379: exited with status 1 after 12 ms, before it accepted connections on …
//!   last probe: nobody listens on 127.0.0.1:6379
//!   timeline:   spawned, first output after 3 ms, exited with status 1 after 12 ms
//!   output:     4 lines, in /tmp/mirakuru-1000/k3v7q2mxw5ha/log
//!     | *** FATAL CONFIG FILE ERROR (Redis 7.0.15) ***
//!     | Reading the configuration file, at line 2
//!     | >>> 'prot "6379"'
//!     | Bad directive or wrong number of arguments
//!   hint:       it does not know one of its arguments: see `redis-server --help`
//! ```
//!
//! A [`Report`] is a list of lines of several kinds. `Display` prints them as plain text. [`shown`]
//! adds colours on a terminal, and the lines that a CI server recognises.

use std::fmt;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use once_cell::sync::Lazy;

use crate::error::text::Bytes;
use crate::util::thread;

/// Maximum number of lines that a report shows from the end of the output.
pub(crate) const TAIL_LINES: usize = 20;
/// Maximum number of lines that a report shows from the beginning of the output. A line that is
/// also among the last ones is shown only there.
pub(crate) const HEAD_LINES: usize = 5;
/// The column at which the text after a label begins.
const COLUMN: usize = 12;

/// The lines of a report, before they are printed.
#[derive(Debug, Default)]
pub struct Report {
    lines: Vec<Line>,
    log: Option<PathBuf>,
}

#[derive(Debug)]
enum Line {
    Headline(String),
    /// A label and its text. The label is empty for further lines of the same entry.
    Entry(&'static str, String),
    /// A line that the service printed.
    Output(String),
    /// A note that replaces lines that are not shown.
    Gap(String),
    /// A later line of a headline that has several, such as that of a report from another process.
    Other(String),
}

/// A value that can be shown as a report.
pub trait Reported {
    fn report(&self) -> Report;
}

/// The part of a service's output that a report shows.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Printed<'a> {
    /// The first lines, unless they are among the last.
    pub(crate) head: &'a [String],
    /// Number of lines left out between `head` and `tail`.
    pub(crate) left_out: u64,
    /// Number of bytes that are not in the log, because it has reached its limit.
    pub(crate) dropped: u64,
    pub(crate) tail: &'a [String],
    /// The log file.
    pub(crate) log: Option<&'a Path>,
}

impl Report {
    pub(super) fn headline(&mut self, text: &str) {
        for (number, line) in text.lines().enumerate() {
            self.lines.push(match number {
                0 => Line::Headline(line.to_owned()),
                _ => Line::Other(line.to_owned()),
            });
        }
    }

    /// Adds a label and its text. Further lines of the text are placed below the first.
    pub(super) fn entry(&mut self, label: &'static str, text: &str) {
        for (number, line) in text.lines().enumerate() {
            let label = if number == 0 { label } else { "" };
            self.lines.push(Line::Entry(label, line.to_owned()));
        }
    }

    /// Adds the first and the last lines that a service printed, and the path of its log.
    pub(super) fn output(&mut self, printed: Printed<'_>) {
        self.log = printed.log.map(Path::to_owned);
        let (head, tail) = match printed.head {
            [] => (printed.head, without_empty(printed.tail)),
            head => (without_empty(head), printed.tail),
        };
        let lines = match (head.len(), tail.len()) {
            (0, 0) if printed.log.is_none() => return,
            (0, 0) => "none".to_owned(),
            (0, 1) => "1 line".to_owned(),
            (0, n) if n < TAIL_LINES => format!("{n} lines"),
            (0, n) => format!("the last {n} lines"),
            (first, last) => format!("the first {first} and the last {last} lines"),
        };
        match printed.log {
            Some(log) if !(head.is_empty() && tail.is_empty()) => {
                self.entry("output", &format!("{lines}, in {}", log.display()));
            }
            _ => self.entry("output", &lines),
        }
        let output = |line: &String| Line::Output(line.clone());
        self.lines.extend(head.iter().map(output));
        if !head.is_empty() && printed.left_out > 0 {
            self.lines
                .push(Line::Gap(format!("{} lines are not shown", printed.left_out)));
        }
        if printed.dropped > 0 {
            self.lines.push(Line::Gap(format!(
                "{} are not in the log, which reached its `log_limit`",
                Bytes(printed.dropped)
            )));
        }
        self.lines.extend(tail.iter().map(output));
    }

    fn render(&self, f: &mut fmt::Formatter<'_>, paint: Paint) -> fmt::Result {
        let Paint {
            bold,
            dim,
            green,
            off,
        } = paint;
        for (number, line) in self.lines.iter().enumerate() {
            if number > 0 {
                f.write_str("\n")?;
            }
            match line {
                Line::Headline(text) => write!(f, "{bold}{text}{off}")?,
                Line::Entry("", text) => write!(f, "  {:COLUMN$}{text}", "")?,
                Line::Entry(label, text) => {
                    let colour = if *label == "hint" { green } else { dim };
                    let space = COLUMN.saturating_sub(label.len() + 1);
                    write!(f, "{colour}  {label}:{off}{:space$}{text}", "")?;
                }
                Line::Output(text) if text.trim_end().is_empty() => write!(f, "    {dim}|{off}")?,
                Line::Output(text) => write!(f, "    {dim}|{off} {}", text.trim_end())?,
                Line::Gap(text) => write!(f, "    {dim}\u{2026} {text}{off}")?,
                Line::Other(text) => f.write_str(text)?,
            }
        }
        Ok(())
    }

    /// The text of the first line.
    fn first(&self) -> &str {
        match self.lines.first() {
            Some(Line::Headline(text) | Line::Entry(_, text) | Line::Output(text)) => text,
            _ => "",
        }
    }
}

/// Skips empty lines at the beginning, which many banners have.
fn without_empty(lines: &[String]) -> &[String] {
    let first = lines.iter().position(|line| !line.trim().is_empty());
    lines.get(first.unwrap_or(lines.len())..).unwrap_or_default()
}

/// The escape sequences that turn colours on and off.
#[derive(Clone, Copy, Default)]
struct Paint {
    bold: &'static str,
    dim: &'static str,
    green: &'static str,
    off: &'static str,
}

const COLOURS: Paint = Paint {
    bold: "\u{1b}[1m",
    dim: "\u{1b}[2m",
    green: "\u{1b}[32m",
    off: "\u{1b}[0m",
};

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.render(f, Paint::default())
    }
}

struct Coloured<'a>(&'a Report);

impl fmt::Display for Coloured<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.render(f, COLOURS)
    }
}

/// An excerpt of a service's output, for the report of a test that failed.
pub(crate) struct Tail<'a> {
    pub(crate) command: &'a str,
    pub(crate) printed: Printed<'a>,
    /// Whether the excerpt contains only lines that were printed during this test.
    pub(crate) of_test: bool,
}

impl Reported for Tail<'_> {
    fn report(&self) -> Report {
        let when = match self.of_test {
            true => "printed during this test",
            false => "printed",
        };
        let mut report = Report::default();
        report.headline(&format!("what `{}` {when}:", self.command));
        report.output(self.printed);
        report
    }
}

pub(crate) fn is_set(name: &str) -> bool {
    std::env::var_os(name).is_some_and(|value| !value.is_empty())
}

/// Whether this process writes to a terminal that shows colours. Any text in `NO_COLOR` turns them
/// off.
pub(crate) fn has_colours() -> bool {
    static COLOURS: Lazy<bool> = Lazy::new(|| {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        // Both streams must be terminals, because the harness prints a test's captured standard
        // error to standard output.
        !is_set("NO_COLOR") && !dumb && std::io::stderr().is_terminal() && std::io::stdout().is_terminal()
    });
    *COLOURS
}

/// The text of a report as mirakuru prints it: in colours on a terminal, and with the lines that a
/// CI server recognises.
pub fn shown(reported: &dyn Reported) -> String {
    let report = reported.report();
    let text = match has_colours() {
        true => Coloured(&report).to_string(),
        false => report.to_string(),
    };
    text + &for_ci(&report, |name| std::env::var(name).unwrap_or_default())
}

/// The lines for a CI server that follow a report. GitLab and Jenkins attach the log that
/// `[[ATTACHMENT|path]]` names; GitHub shows `::error` beside the change.
fn for_ci(report: &Report, variable: impl Fn(&str) -> String) -> String {
    let set = |name| !variable(name).is_empty();
    let mut lines = String::new();
    if let Some(log) = report
        .log
        .as_ref()
        .filter(|_| set("JUNIT_ATTACHMENTS") || set("GITLAB_CI"))
    {
        // The path must be alone on its line.
        lines.push_str(&format!("\n[[ATTACHMENT|{}]]", log.display()));
    }
    if variable("GITHUB_ACTIONS") == "true" {
        let message = escape_command(&report.to_string());
        let title = escape_command(report.first())
            .replace(":", "%3A")
            .replace(",", "%2C");
        lines.push_str(&format!("\n::error title={title}::{message}"));
    }
    lines
}

/// Escapes a string for a GitHub workflow command, which must be a single line.
fn escape_command(text: &str) -> String {
    text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
}

/// Prints to the output of the test on this thread. Unlike `eprintln!`, does not panic if the
/// output is closed: a second panic during a panic would abort the process.
pub(crate) fn print(text: String) {
    // A new thread prints to the same captured output. If it panics, that is not a second panic on
    // this thread.
    if let Ok(printer) = thread::spawn("mirakuru-print", Box::new(move || eprintln!("{text}"))) {
        let _ = printer.join();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut report = Report::default();
        report.headline("it: failed");
        report.entry("last probe", "one\ntwo");
        report.output(Printed {
            tail: &["  a: b".to_owned()],
            log: Some(Path::new("/log")),
            ..Printed::default()
        });
        report.entry("hint", "do it");
        report
    }

    #[test]
    fn labels_have_a_column() {
        let expected = "it: failed\n  last probe: one\n              two\n  output:     1 line, in /log\n    \
            |   a: b\n  \
                        hint:       do it";
        assert_eq!(report().to_string(), expected);
    }

    #[test]
    fn silence_is_told() {
        let silent = |log: Option<&'static str>| {
            let mut report = Report::default();
            report.output(Printed {
                log: log.map(Path::new),
                ..Printed::default()
            });
            report.to_string()
        };
        assert_eq!(silent(Some("/log")), "  output:     none");
        assert_eq!(silent(None), "");
    }

    #[test]
    fn the_first_lines_stand_above_the_last() {
        let lines = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let mut report = Report::default();
        report.output(Printed {
            head: &lines("1 2"),
            left_out: 7,
            dropped: 0,
            tail: &lines("10 11"),
            log: Some(Path::new("/log")),
        });
        assert_eq!(
            report.to_string(),
            "  output:     the first 2 and the last 2 lines, in /log\n    | 1\n    | 2\n    … 7 lines are \
                not shown\n    \
             | 10\n    | 11"
        );
    }

    #[test]
    fn colours_change_no_letter() {
        let coloured = Coloured(&report()).to_string();
        let mut plain = coloured.clone();
        for code in ["1", "2", "32", "0"] {
            plain = plain.replace(&format!("\u{1b}[{code}m"), "");
        }
        assert_eq!(plain, report().to_string());
        assert!(
            coloured.starts_with("\u{1b}[1mit: failed\u{1b}[0m\n"),
            "{coloured:?}"
        );
        assert!(coloured.contains("\u{1b}[2m|\u{1b}[0m   a: b"), "{coloured:?}");
        assert!(coloured.contains("\u{1b}[32m  hint:"), "{coloured:?}");
    }

    #[test]
    fn ci_servers_get_their_lines() {
        let lines = |set: &'static str, value: &'static str| {
            for_ci(&report(), move |name| {
                if name == set {
                    value.to_owned()
                } else {
                    String::new()
                }
            })
        };
        assert_eq!(lines("NONE", "1"), "");
        assert_eq!(lines("GITLAB_CI", "true"), "\n[[ATTACHMENT|/log]]");
        assert_eq!(lines("JUNIT_ATTACHMENTS", "1"), "\n[[ATTACHMENT|/log]]");
        let github = lines("GITHUB_ACTIONS", "true");
        assert!(
            github.starts_with("\n::error title=it%3A failed::it: failed%0A  last probe: one%0A"),
            "{github:?}"
        );
        assert_eq!(github.lines().count(), 2);
    }
}
