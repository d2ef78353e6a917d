//! How a report looks: a first line that says it all, then what is known, each under its label,
//! then what to do.
//!
//! ```text
//! redis-server --prot 6379: exited with status 1 after 12 ms, before it accepted connections on 127.0.0.1:6379
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
//! A report is plain text. Colours come on top ([`coloured`]), where mirakuru prints it itself, and
//! onto a terminal.

use std::fmt;
use std::io::IsTerminal;
use std::path::Path;

use once_cell::sync::Lazy;

/// How many lines of output a report shows.
pub(crate) const TAIL_LINES: usize = 20;
/// Where the text after a label begins.
const COLUMN: usize = 12;

/// Lays out a report, line by line.
pub(crate) struct Layout<'a, 'b> {
    f: &'a mut fmt::Formatter<'b>,
    begun: bool,
}

impl<'a, 'b> Layout<'a, 'b> {
    pub(crate) fn new(f: &'a mut fmt::Formatter<'b>) -> Layout<'a, 'b> {
        Layout { f, begun: false }
    }

    fn next_line(&mut self) -> fmt::Result {
        match std::mem::replace(&mut self.begun, true) {
            true => self.f.write_str("\n"),
            false => Ok(()),
        }
    }

    pub(crate) fn headline(&mut self, headline: &dyn fmt::Display) -> fmt::Result {
        self.next_line()?;
        write!(self.f, "{headline}")
    }

    /// A label and what is known; further lines of it stand below the first.
    pub(crate) fn entry(&mut self, label: &str, text: &str) -> fmt::Result {
        for (number, line) in text.lines().enumerate() {
            self.next_line()?;
            match number {
                0 => write!(self.f, "  {:COLUMN$}{line}", format!("{label}:"))?,
                _ => write!(self.f, "  {:COLUMN$}{line}", "")?,
            }
        }
        Ok(())
    }

    /// The last lines that a service printed, and where all of them are.
    pub(crate) fn output(&mut self, tail: &[String], log: Option<&Path>) -> fmt::Result {
        // Banners like to begin with an empty line, which tells nothing.
        let first = tail.iter().position(|line| !line.trim().is_empty());
        let tail = tail.get(first.unwrap_or(tail.len())..).unwrap_or_default();
        let lines = match tail.len() {
            0 if log.is_none() => return Ok(()),
            0 => return self.entry("output", "none"),
            1 => "1 line".to_owned(),
            n if n < TAIL_LINES => format!("{n} lines"),
            n => format!("the last {n} lines"),
        };
        match log {
            Some(log) => self.entry("output", &format!("{lines}, in {}", log.display()))?,
            None => self.entry("output", &lines)?,
        }
        for line in tail {
            self.next_line()?;
            write!(self.f, "    {}", format!("| {line}").trim_end())?;
        }
        Ok(())
    }
}

/// The end of a service's log, for a test that fails while the service is fine.
pub(crate) struct Tail<'a> {
    pub(crate) command: &'a str,
    pub(crate) lines: &'a [String],
    pub(crate) log: &'a Path,
    /// Whether the lines are only those of one test.
    pub(crate) of_test: bool,
}

impl fmt::Display for Tail<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut layout = Layout::new(f);
        let when = match self.of_test {
            true => "printed during this test",
            false => "printed",
        };
        layout.headline(&format_args!("what `{}` {when}:", self.command))?;
        layout.output(self.lines, Some(self.log))
    }
}

/// Whether what this process prints is seen on a terminal that takes colours. `NO_COLOR` with any
/// text turns them off.
fn has_colours() -> bool {
    static COLOURS: Lazy<bool> = Lazy::new(|| {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        // A test's captured output comes out of standard output, whatever it was printed to.
        !set("NO_COLOR") && !dumb && std::io::stderr().is_terminal() && std::io::stdout().is_terminal()
    });
    *COLOURS
}

/// A report as mirakuru prints it itself: with colours where somebody sees them.
pub fn coloured(report: &dyn fmt::Display) -> String {
    let report = report.to_string();
    if has_colours() { colour(&report) } else { report }
}

/// Prints into the output of the test on this thread, and never panics, as `eprintln!` does when
/// nobody reads any more: that must not happen while a panic is under way, when the process would
/// abort.
pub(crate) fn print(text: String) {
    // A thread inherits where the one that made it prints, and its panic is its own.
    if let Ok(printer) = std::thread::Builder::new().spawn(move || eprintln!("{text}")) {
        let _ = printer.join();
    }
}

fn colour(report: &str) -> String {
    const BOLD: &str = "\u{1b}[1m";
    const DIM: &str = "\u{1b}[2m";
    const GREEN: &str = "\u{1b}[32m";
    const OFF: &str = "\u{1b}[0m";
    let paint_line = |(number, line): (usize, &str)| {
        if number == 0 {
            return format!("{BOLD}{line}{OFF}");
        }
        if let Some(output) = line.strip_prefix("    | ") {
            return format!("    {DIM}|{OFF} {output}");
        }
        match line.split_once(": ") {
            Some((label, text)) if label.starts_with("  ") && label.len() <= COLUMN => {
                let colour = if label.trim() == "hint" { GREEN } else { DIM };
                format!("{colour}{label}:{OFF} {text}")
            }
            _ => line.to_owned(),
        }
    };
    let lines: Vec<String> = report.lines().enumerate().map(paint_line).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Report;

    impl fmt::Display for Report {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let mut layout = Layout::new(f);
            layout.headline(&"it: failed")?;
            layout.entry("last probe", "one\ntwo")?;
            layout.output(&["  a: b".to_owned()], Some(Path::new("/log")))?;
            layout.entry("hint", "do it")
        }
    }

    #[test]
    fn labels_have_a_column() {
        let expected = "it: failed\n  last probe: one\n              two\n  output:     1 line, in /log\n    |   a: b\n  \
                        hint:       do it";
        assert_eq!(Report.to_string(), expected);
    }

    #[test]
    fn silence_is_told() {
        struct Silent(Option<&'static Path>);
        impl fmt::Display for Silent {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                Layout::new(f).output(&[], self.0)
            }
        }
        assert_eq!(Silent(Some(Path::new("/log"))).to_string(), "  output:     none");
        assert_eq!(Silent(None).to_string(), "");
    }

    #[test]
    fn paint_changes_no_letter() {
        let coloured = colour(&Report.to_string());
        let mut plain = coloured.clone();
        for code in ["1", "2", "32", "0"] {
            plain = plain.replace(&format!("\u{1b}[{code}m"), "");
        }
        assert_eq!(plain, Report.to_string());
        assert!(
            coloured.starts_with("\u{1b}[1mit: failed\u{1b}[0m\n"),
            "{coloured:?}"
        );
        assert!(coloured.contains("\u{1b}[2m|\u{1b}[0m   a: b"), "{coloured:?}");
        assert!(coloured.contains("\u{1b}[32m  hint:"), "{coloured:?}");
    }
}
