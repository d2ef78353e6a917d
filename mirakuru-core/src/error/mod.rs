//! What can go wrong, told so that the reader need not investigate further.
//!
//! Every variant displays as one line that says it all, followed by indented evidence: the last
//! probe's own error, a timeline, the end of the service's log and where the whole of it is, and
//! what to do about it. `Debug` prints the same as `Display`, because `unwrap()` and
//! `fn main() -> Result` show `Debug`. How it is laid out is in [`report`](crate::error::report).

pub(crate) mod programs;
pub(crate) mod report;
pub(crate) mod secrets;

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use crate::error::report::Layout;
use crate::error::secrets::mask_urls;

/// Why a service could not be started, or did not end as it should.
///
/// `Display` and `Debug` print the same multi-line report, so that `unwrap()` and a test that
/// returns a `Result` show it as well. Its first line says it all. Programs look at the variant and
/// its fields:
///
/// ```
/// # use mirakuru_core as mirakuru;
/// use std::io::ErrorKind;
/// use mirakuru::{Error, Executor};
///
/// match Executor::builder("no-such-program --port {port}").start() {
///     Err(Error::Spawn { source, .. }) => assert_eq!(source.kind(), ErrorKind::NotFound),
///     Err(other) => return Err(other),
///     Ok(_) => unreachable!("there is no such program"),
/// }
/// # Ok::<(), mirakuru_core::Error>(())
/// ```
#[non_exhaustive]
pub enum Error {
    /// The program could not be executed at all: it was not found, is not executable, its working
    /// directory is missing, its user may not be taken on.
    #[non_exhaustive]
    Spawn {
        /// The command, as a person would type it.
        command: String,
        /// What was being attempted, for example ``execute `redis-server` ``.
        attempt: String,
        /// What the operating system said.
        source: io::Error,
        /// What to do about it, where that is known.
        hint: Option<String>,
    },
    /// Something else already has the port, the socket path or the process id file that the service
    /// needs.
    #[non_exhaustive]
    AlreadyRunning {
        /// The command, as a person would type it.
        command: String,
        /// What is taken, for example `port 6379`.
        endpoint: String,
        /// Who has it, for example `redis-server (pid 812)`, where that can be seen.
        holder: Option<String>,
        /// What else is known of the holder.
        evidence: Box<Evidence>,
    },
    /// The service ended before it was ready.
    #[non_exhaustive]
    Exited {
        /// The command, as a person would type it.
        command: String,
        /// What was awaited, as the end of "before ...".
        awaited: String,
        /// Time from the start of the service until its exit.
        elapsed: Duration,
        /// How it ended.
        status: ExitStatus,
        /// Everything else that was seen.
        evidence: Box<Evidence>,
    },
    /// The service was not ready in time.
    #[non_exhaustive]
    Timeout {
        /// The command, as a person would type it.
        command: String,
        /// What was awaited, as the end of "before ...".
        awaited: String,
        /// How long it was waited for.
        elapsed: Duration,
        /// Everything else that was seen.
        evidence: Box<Evidence>,
    },
    /// The service printed a line that the recipe's `fail_on` knows as a failure.
    #[non_exhaustive]
    FailureLine {
        /// The command, as a person would type it.
        command: String,
        /// The line that was printed.
        line: String,
        /// The pattern that it matches.
        pattern: String,
        /// Time from the start of the service until the line was seen.
        elapsed: Duration,
        /// Everything else that was seen.
        evidence: Box<Evidence>,
    },
    /// Somebody else answers where the service should.
    #[non_exhaustive]
    WrongListener {
        /// The command, as a person would type it.
        command: String,
        /// Where, for example `127.0.0.1:6379`.
        endpoint: String,
        /// Who, for example `redis-server (pid 812)`.
        holder: String,
        /// Everything else that was seen.
        evidence: Box<Evidence>,
    },
    /// The service was stopped, and its exit status is neither 0, nor death by the stop signal, nor
    /// what the recipe expects.
    #[non_exhaustive]
    BadExit {
        /// The command, as a person would type it.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What would have been fine, in words.
        expected: String,
        /// Everything else that was seen.
        evidence: Box<Evidence>,
    },
    /// The command cannot be understood: unbalanced quotes, nothing at all, a placeholder that does
    /// not exist.
    #[non_exhaustive]
    InvalidCommand {
        /// The command as it was given.
        command: String,
        /// What is wrong with it, and what would be right.
        reason: String,
    },
    /// The readiness condition cannot be understood: a bad address, URL, pattern or path.
    #[non_exhaustive]
    InvalidReadiness {
        /// The condition as it was given.
        readiness: String,
        /// What is wrong with it, and what would be right.
        reason: String,
    },
    /// A service that the whole run shares has ended. It is not started again, so that nobody
    /// mistakes the new one, which knows nothing of what was done before, for the old one.
    #[non_exhaustive]
    Died {
        /// The command, as a person would type it.
        command: String,
        /// How it ended, if that is known.
        status: Option<ExitStatus>,
        /// Everything else that was seen.
        evidence: Box<Evidence>,
    },
    /// A service that the whole run shares could not be started by the test process that tried
    /// first, and is not tried again.
    #[non_exhaustive]
    FailedBefore {
        /// The report of that start.
        report: String,
        /// The test process that tried, as `tests-1f3a (pid 812)`.
        process: String,
    },
    /// The service is not running, and what was asked needs it to be.
    #[non_exhaustive]
    NotRunning {
        /// The command, as a person would type it.
        command: String,
        /// What was asked.
        action: String,
    },
    /// What mirakuru itself needs (a directory, a socket, a process) was not to be had.
    #[non_exhaustive]
    System {
        /// What was being attempted.
        attempt: String,
        /// What the operating system said.
        source: io::Error,
    },
}

impl Error {
    /// An error of a [recipe](https://docs.rs/mirakuru/latest/mirakuru/trait.Recipe.html)'s own,
    /// for example of the statements that set a database up: what was being attempted, as in "apply
    /// the migrations", and why it failed.
    ///
    /// ```
    /// # use mirakuru_core::Error;
    /// let error = Error::other("apply the migrations", "relation \"users\" does not exist");
    /// assert_eq!(error.to_string(), "failed to apply the migrations: relation \"users\" does not exist");
    /// ```
    #[must_use]
    pub fn other(
        attempt: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync + 'static>>,
    ) -> Error {
        // One of the operating system stays what it is: there may be a remedy for it.
        let source = match source.into().downcast::<io::Error>() {
            Ok(error) => *error,
            Err(error) => io::Error::other(error),
        };
        Error::System {
            attempt: attempt.into(),
            source,
        }
    }
}

/// What was seen of a service up to an error.
///
/// ```
/// # use mirakuru_core as mirakuru;
/// use mirakuru::{Error, Executor, Tcp};
///
/// let error = Executor::builder("echo no such option; exit 1")
///     .shell(true)
///     .wait_for(Tcp::addr("127.0.0.1:{port}"))
///     .start()
///     .unwrap_err();
/// let Error::Exited { status, evidence, .. } = error else { panic!("{error}") };
/// assert_eq!(status.code(), Some(1));
/// assert_eq!(evidence.tail, ["no such option"]);
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Evidence {
    /// The last probe's own error.
    pub last_probe: Option<String>,
    /// What happened when, counted from the start of the service.
    pub timeline: Vec<(Duration, String)>,
    /// The last lines that the service printed.
    pub tail: Vec<String>,
    /// The file that has everything it printed. Kept after a failure.
    pub log: Option<PathBuf>,
    /// How many bytes of its output are missing there, because they could not be written: the disk
    /// was full.
    pub lost: u64,
    /// Of somebody else that is in the way, what is known of it, for example
    /// `started 3 min ago by user redis`.
    pub about: Option<String>,
    /// What to do about it, where the cause is known.
    pub hint: Option<String>,
}

impl Error {
    /// The same error with its own texts shown as the function gives them. What the service printed
    /// stays as it is.
    pub(crate) fn map_texts(mut self, shown: impl Fn(&str) -> String) -> Error {
        let texts: Vec<&mut String> = match &mut self {
            Error::Spawn {
                command,
                attempt,
                hint,
                ..
            } => [Some(command), Some(attempt), hint.as_mut()]
                .into_iter()
                .flatten()
                .collect(),
            Error::AlreadyRunning {
                command, endpoint, ..
            } => vec![command, endpoint],
            Error::Exited { command, awaited, .. } | Error::Timeout { command, awaited, .. } => {
                vec![command, awaited]
            }
            Error::FailureLine { command, .. }
            | Error::BadExit { command, .. }
            | Error::Died { command, .. } => vec![command],
            // Shown by the process whose report it is.
            Error::FailedBefore { .. } => Vec::new(),
            Error::WrongListener {
                command, endpoint, ..
            } => vec![command, endpoint],
            Error::InvalidCommand { command, reason } => vec![command, reason],
            Error::InvalidReadiness { readiness, reason } => vec![readiness, reason],
            Error::NotRunning { command, .. } => vec![command],
            Error::System { attempt, .. } => vec![attempt],
        };
        for text in texts {
            *text = shown(text);
        }
        if let Some(probe) = self
            .evidence_mut()
            .and_then(|evidence| evidence.last_probe.as_mut())
        {
            *probe = shown(probe);
        }
        self
    }

    fn evidence_mut(&mut self) -> Option<&mut Evidence> {
        match self {
            Error::AlreadyRunning { evidence, .. }
            | Error::Exited { evidence, .. }
            | Error::Timeout { evidence, .. }
            | Error::FailureLine { evidence, .. }
            | Error::WrongListener { evidence, .. }
            | Error::BadExit { evidence, .. }
            | Error::Died { evidence, .. } => Some(evidence),
            _ => None,
        }
    }

    /// The evidence, where a variant has it.
    fn evidence(&self) -> Option<&Evidence> {
        match self {
            Error::AlreadyRunning { evidence, .. }
            | Error::Exited { evidence, .. }
            | Error::Timeout { evidence, .. }
            | Error::FailureLine { evidence, .. }
            | Error::WrongListener { evidence, .. }
            | Error::BadExit { evidence, .. }
            | Error::Died { evidence, .. } => Some(evidence),
            _ => None,
        }
    }

    fn hint(&self) -> Option<&str> {
        match self {
            Error::Spawn { hint, .. } => hint.as_deref(),
            Error::System { source, .. } => of_system(source),
            _ => self.evidence().and_then(|evidence| evidence.hint.as_deref()),
        }
    }

    /// The command, where a variant has it.
    fn command(&self) -> Option<&str> {
        match self {
            Error::Spawn { command, .. }
            | Error::AlreadyRunning { command, .. }
            | Error::Exited { command, .. }
            | Error::Timeout { command, .. }
            | Error::FailureLine { command, .. }
            | Error::WrongListener { command, .. }
            | Error::BadExit { command, .. }
            | Error::Died { command, .. }
            | Error::InvalidCommand { command, .. }
            | Error::NotRunning { command, .. } => Some(command),
            Error::InvalidReadiness { .. } | Error::FailedBefore { .. } | Error::System { .. } => None,
        }
    }

    /// The first line, which says it all.
    fn headline(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Spawn {
                command,
                attempt,
                source,
                ..
            } => {
                write!(f, "{command}: failed to {attempt}: {}", Cause(source))
            }
            Error::AlreadyRunning {
                command,
                endpoint,
                holder,
                ..
            } => {
                write!(f, "{command}: {endpoint} is already in use")?;
                match holder {
                    Some(holder) => write!(f, " by {holder}"),
                    None => Ok(()),
                }
            }
            Error::Exited {
                command,
                awaited,
                elapsed,
                status,
                ..
            } => {
                write!(
                    f,
                    "{command}: {} after {}, before {awaited}",
                    Ended(*status),
                    Span(*elapsed)
                )
            }
            Error::Timeout {
                command,
                awaited,
                elapsed,
                ..
            } => {
                write!(
                    f,
                    "{command}: timed out after {}, before {awaited}",
                    Span(*elapsed)
                )
            }
            Error::FailureLine {
                command,
                line,
                pattern,
                elapsed,
                ..
            } => {
                write!(
                    f,
                    "{command}: start-up failed after {}: it printed `{line}`, which matches `{pattern}`",
                    Span(*elapsed)
                )
            }
            Error::WrongListener {
                command,
                endpoint,
                holder,
                ..
            } => {
                write!(
                    f,
                    "{command}: {endpoint} is answered by {holder}, which is not this service"
                )
            }
            Error::BadExit {
                command,
                status,
                expected,
                ..
            } => {
                write!(
                    f,
                    "{command}: {} when it was stopped, expected {expected}",
                    Ended(*status)
                )
            }
            Error::Died { command, status, .. } => {
                write!(f, "{command}: the service of this run ")?;
                match status {
                    Some(status) => write!(f, "{}", Ended(*status))?,
                    None => f.write_str("was killed together with its supervisor")?,
                }
                f.write_str(" while tests were using it, and is not started again")
            }
            Error::FailedBefore { report, process } => {
                write!(
                    f,
                    "{report}\n  (so it went in {process}; one start is tried in a run)"
                )
            }
            Error::InvalidCommand { command, reason } => write!(f, "invalid command `{command}`: {reason}"),
            Error::InvalidReadiness { readiness, reason } => {
                write!(f, "invalid readiness `{readiness}`: {reason}")
            }
            Error::NotRunning { command, action } => {
                write!(
                    f,
                    "{command}: failed to {action}: the service is not running, start it first"
                )
            }
            Error::System { attempt, source } => write!(f, "failed to {attempt}: {}", Cause(source)),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Headline<'a>(&'a Error);
        impl fmt::Display for Headline<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.headline(f)
            }
        }
        let mut layout = Layout::new(f);
        let mut headline = Headline(self).to_string();
        if let Some(command) = self.command() {
            headline = headline.replacen(command, &one_line(command), 1);
        }
        match self {
            // What the service printed is shown as it is.
            Error::FailureLine { .. } => layout.headline(&headline)?,
            // Errors of other libraries like to show the URL that they could not connect to.
            _ => layout.headline(&mask_urls(&headline))?,
        }
        if let Some(evidence) = self.evidence() {
            evidence.lay_out(&mut layout)?;
        }
        match self.hint() {
            Some(hint) => layout.entry("hint", hint),
            None => Ok(()),
        }
    }
}

impl Evidence {
    fn lay_out(&self, layout: &mut Layout<'_, '_>) -> fmt::Result {
        if let Some(about) = &self.about {
            layout.entry("holder", about)?;
        }
        if let Some(probe) = &self.last_probe {
            layout.entry("last probe", &mask_urls(probe))?;
        }
        if !self.timeline.is_empty() {
            let events = self.timeline.iter().map(|(when, what)| match when.is_zero() {
                true => what.clone(),
                false => format!("{what} after {}", Span(*when)),
            });
            layout.entry("timeline", &events.collect::<Vec<_>>().join(", "))?;
        }
        layout.output(&self.tail, self.log.as_deref())?;
        if self.lost > 0 {
            let lost = format!(
                "{} of its output could not be written to the log, and are missing: is the disk full?",
                Bytes(self.lost)
            );
            layout.entry("lost", &lost)?;
        }
        Ok(())
    }
}

impl fmt::Display for Evidence {
    /// As it stands below the first line of an error.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut layout = Layout::new(f);
        self.lay_out(&mut layout)?;
        match &self.hint {
            Some(hint) => layout.entry("hint", hint),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Error::Spawn { source, .. } | Error::System { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// A command on one line, and of a script or a long list of arguments the beginning and the end.
fn one_line(command: &str) -> String {
    const LONGEST: usize = 200;
    let line = if command.contains(char::is_control) {
        let lines = command
            .split(char::is_control)
            .map(str::trim)
            .filter(|line| !line.is_empty());
        lines.collect::<Vec<_>>().join(" ⏎ ")
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

/// An operating system's error without Rust's "(os error 2)", and in lower case as the rest of the
/// line.
struct Cause<'a>(&'a io::Error);

impl fmt::Display for Cause<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string();
        let text = text
            .rsplit_once(" (os error")
            .map_or(text.as_str(), |(before, _)| before);
        let mut letters = text.chars();
        match letters.next() {
            Some(first) if letters.clone().next().is_some_and(char::is_lowercase) => {
                write!(f, "{}{}", first.to_lowercase(), letters.as_str())
            }
            _ => f.write_str(text),
        }
    }
}

/// What to do about an error of the operating system.
fn of_system(source: &io::Error) -> Option<&'static str> {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Some(
            "free some space (`df -h` shows where it is gone), or set TMPDIR to a directory on another disk",
        ),
        io::ErrorKind::ReadOnlyFilesystem => Some("set TMPDIR to a directory that can be written to"),
        _ => match source.raw_os_error().map(crate::sys::is_out_of_descriptors) {
            Some(true) => Some("this process may not open more files: raise the limit, `ulimit -n`"),
            _ => None,
        },
    }
}

/// How a process ended, in words: `exited with status 1`, `was killed by SIGSEGV (core dumped)`.
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

/// A number of bytes as a person would say it: `312 bytes`, `40 kB`, `1.2 MB`.
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

/// A duration as a person would say it: `850 µs`, `12 ms`, `1.5 s`.
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
    fn the_report_has_a_headline_and_then_the_evidence() {
        let error = Error::Exited {
            command: "redis-server --port 6379".to_owned(),
            awaited: "it accepted connections on 127.0.0.1:6379".to_owned(),
            elapsed: Duration::from_millis(12),
            status: ExitStatus::from_raw(1 << 8),
            evidence: Box::new(Evidence {
                last_probe: Some("connection refused".to_owned()),
                timeline: vec![
                    (Duration::ZERO, "spawned".to_owned()),
                    (Duration::from_millis(12), "exited".to_owned()),
                ],
                tail: vec!["bind: address in use".to_owned()],
                log: Some(PathBuf::from("/tmp/x/log")),
                lost: 40_000,
                about: None,
                hint: Some("stop it".to_owned()),
            }),
        };
        let expected = "\
redis-server --port 6379: exited with status 1 after 12 ms, before it accepted connections on 127.0.0.1:6379
  last probe: connection refused
  timeline:   spawned, exited after 12 ms
  output:     1 line, in /tmp/x/log
    | bind: address in use
  lost:       40 kB of its output could not be written to the log, and are missing: is the disk full?
  hint:       stop it";
        assert_eq!(error.to_string(), expected);
        assert_eq!(format!("{error:?}"), expected);
    }

    #[test]
    fn system_errors_fit_into_a_sentence() {
        let said = |number| Cause(&io::Error::from_raw_os_error(number)).to_string();
        assert_eq!(said(2), "no such file or directory");
        // As glibc has it, and musl.
        assert!(
            ["input/output error", "I/O error"].contains(&&*said(5)),
            "{}",
            said(5)
        );
        assert_eq!(Cause(&io::Error::other("EOF seen")).to_string(), "EOF seen");
    }

    #[test]
    fn no_report_shows_the_password_of_a_url() {
        let error = Error::other("connect to x://me:secret@h", "x://me:secret@h/db refused");
        assert_eq!(
            error.to_string(),
            "failed to connect to x://me:***@h: x://me:***@h/db refused"
        );
    }

    #[test]
    fn texts_are_mapped_and_output_is_not() {
        let error = Error::Timeout {
            command: "a x".to_owned(),
            awaited: "it x".to_owned(),
            elapsed: Duration::from_secs(1),
            evidence: Box::new(Evidence {
                last_probe: Some("x failed".to_owned()),
                tail: vec!["x".to_owned()],
                ..Evidence::default()
            }),
        };
        let text = error.map_texts(|text| text.replace('x', "***")).to_string();
        assert_eq!(
            text,
            "a ***: timed out after 1 s, before it ***\n  last probe: *** failed\n  output:     1 line\n    | x"
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

    #[test]
    fn errors_travel_between_threads() {
        fn check<T: Send + Sync + 'static>() {}
        check::<Error>();
    }
}
