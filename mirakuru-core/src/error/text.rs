//! Describes facts for people: durations, numbers of bytes, how a process ended, why a system call
//! failed.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use crate::error::secrets::mask_urls;

/// Puts a command on one line, and shortens a long script or argument list to its beginning and
/// end.
pub(super) fn one_line(command: &str) -> String {
    const LONGEST: usize = 200;
    let line = if command.contains(char::is_control) {
        let mut lines = Vec::new();
        for line in command.split(char::is_control) {
            if !line.trim().is_empty() {
                lines.push(line.trim());
            }
        }
        lines.join(" ⏎ ")
    } else {
        command.to_owned()
    };
    let letters: Vec<char> = line.chars().collect();
    if letters.len() <= LONGEST {
        return line;
    }
    let (begin, end) = (&letters[..LONGEST - 50], &letters[letters.len() - 40..]);
    format!(
        "{} ... {}",
        begin.iter().collect::<String>(),
        end.iter().collect::<String>()
    )
}

/// Displays an error as the end of a sentence: in lower case, without Rust's "(os error 2)" and
/// without passwords.
pub(super) struct Cause<'a>(pub(super) &'a io::Error);

impl fmt::Display for Cause<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.0.to_string();
        // Some errors say only "db error", while their source contains the details.
        let mut source = self.0.source();
        while let Some(error) = source {
            let more = error.to_string();
            if !text.contains(&more) {
                text = format!("{text}: {more}");
            }
            source = error.source();
        }
        // Some libraries print the URL of a failed connection, including its password.
        let text = without_number(&mask_urls(&text));
        let mut letters = text.chars();
        match letters.next() {
            Some(first) if letters.clone().next().is_some_and(char::is_lowercase) => {
                write!(f, "{}{}", first.to_lowercase(), letters.as_str())
            }
            _ => f.write_str(&text),
        }
    }
}

/// Removes each "(os error 2)", with any number, from a string.
fn without_number(text: &str) -> String {
    const BEGIN: &str = " (os error ";
    let mut shown = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(BEGIN) {
        shown.push_str(before);
        match after.split_once(')') {
            Some((number, after)) if number.bytes().all(|byte| byte.is_ascii_digit()) => rest = after,
            _ => {
                shown.push_str(BEGIN);
                rest = after;
            }
        }
    }
    shown + rest
}

/// The remedy for an error of the operating system.
pub(super) fn of_system(source: &io::Error) -> Option<&'static str> {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Some(
            "free some space (`df -h` shows the full disk), or set TMPDIR to a directory on another disk",
        ),
        io::ErrorKind::ReadOnlyFilesystem => Some("set TMPDIR to a directory that can be written to"),
        _ => match source.raw_os_error().map(crate::sys::is_out_of_descriptors) {
            Some(true) => {
                Some("this process has reached its limit of open files: raise the limit with `ulimit -n`")
            }
            _ => None,
        },
    }
}

/// Describes how a process ended: `exited with status 1`, `was killed by SIGSEGV (core dumped)`.
pub(crate) struct Ended(pub(crate) ExitStatus);

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.code(), self.0.signal()) {
            (Some(code), _) => write!(f, "exited with status {code}"),
            (None, Some(signal)) => {
                match crate::sys::signals::name(signal) {
                    Some(name) => write!(f, "was killed by {name}")?,
                    None => write!(f, "was killed by signal {signal}")?,
                }
                if self.0.core_dumped() {
                    f.write_str(" (core dumped)")
                } else {
                    Ok(())
                }
            }
            (None, None) => write!(f, "ended ({})", self.0),
        }
    }
}

/// A number of bytes, for people: `312 bytes`, `40 kB`, `1.2 MB`.
pub(crate) struct Bytes(pub(crate) u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            1 => f.write_str("1 byte"),
            0..10_000 => write!(f, "{} bytes", self.0),
            10_000..1_000_000 => write!(f, "{} kB", self.0 / 1000),
            _ => write!(f, "{:.1} MB", self.0 as f64 / 1e6),
        }
    }
}

/// A duration, for people: `850 µs`, `12 ms`, `1.5 s`.
pub(crate) struct Span(pub(crate) Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs_f64();
        if seconds < 0.001 {
            write!(f, "{} µs", self.0.as_micros())
        } else if seconds < 1.0 {
            write!(f, "{} ms", self.0.as_millis())
        } else if seconds >= 60.0 {
            write!(f, "{seconds:.0} s")
        } else {
            let text = format!("{seconds:.1}");
            write!(f, "{} s", text.strip_suffix(".0").unwrap_or(&text))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_said_as_a_person_would() {
        let said = |millis: f64| Span(Duration::from_secs_f64(millis / 1000.0)).to_string();
        assert_eq!(said(0.85), "850 µs");
        assert_eq!(said(12.3), "12 ms");
        assert_eq!(said(1500.0), "1.5 s");
        assert_eq!(said(5000.0), "5 s");
        assert_eq!(said(3001.0), "3 s");
        assert_eq!(said(90_400.0), "90 s");
    }

    #[test]
    fn system_errors_fit_into_a_sentence() {
        let said = |number| Cause(&io::Error::from_raw_os_error(number)).to_string();
        assert_eq!(said(2), "no such file or directory");
        // The first text is from glibc, the second from musl.
        assert!(
            ["input/output error", "I/O error"].contains(&&*said(5)),
            "{}",
            said(5)
        );
        assert_eq!(Cause(&io::Error::other("EOF seen")).to_string(), "EOF seen");
    }

    #[test]
    fn the_sources_of_an_error_are_told() {
        #[derive(Debug)]
        struct Outer(io::Error);
        impl fmt::Display for Outer {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("db error")
            }
        }
        impl StdError for Outer {
            fn source(&self) -> Option<&(dyn StdError + 'static)> {
                Some(&self.0)
            }
        }
        let error = io::Error::other(Outer(io::Error::other("no such table")));
        assert_eq!(Cause(&error).to_string(), "db error: no such table");
    }

    #[test]
    fn a_remedy_after_the_number_of_an_error_is_kept() {
        let said = |text: &str| Cause(&io::Error::other(text.to_owned())).to_string();
        assert_eq!(
            said("Permission denied (os error 13): set TMPDIR to a directory of your own"),
            "permission denied: set TMPDIR to a directory of your own"
        );
        assert_eq!(said("a (os error 1), b (os error 2)"), "a, b");
        assert_eq!(
            said("it says (os error x) and (os error 5"),
            "it says (os error x) and (os error 5"
        );
    }

    #[test]
    fn a_script_takes_one_line() {
        assert_eq!(one_line("sh -c 'echo a\n\tsleep 5'"), "sh -c 'echo a ⏎ sleep 5'");
        assert_eq!(one_line("a  b"), "a  b");
        let long = one_line(&format!("start {} end", "x".repeat(5000)));
        assert!(
            long.starts_with("start xx") && long.ends_with("xx end") && long.len() < 220,
            "{long}"
        );
    }
}
