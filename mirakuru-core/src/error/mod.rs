//! Errors whose text contains all the facts needed to find the cause.
//!
//! Every variant displays as one line with the whole message, followed by indented evidence: the
//! last probe's own error, a timeline, the last lines of the service's log and its path, and the
//! remedy. `Debug` prints the same as `Display`, because `unwrap()` and `fn main() -> Result` show
//! `Debug`. The layout is in [`report`](crate::error::report).

pub(crate) mod missing;
pub(crate) mod programs;
pub(crate) mod report;
pub(crate) mod secrets;
pub(crate) mod text;

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use crate::error::missing::Missing;
use crate::error::report::{Printed, Report, Reported};
use crate::error::secrets::mask_urls;
use crate::error::text::{Bytes, Cause, Ended, Span, of_system, one_line};

/// The reason why a service could not be started, used or stopped.
///
/// `Display` and `Debug` print the same multi-line report, so that `unwrap()` and a test that
/// returns a `Result` show it as well. Its first line contains the whole message. Programs can
/// match on the variant and its fields:
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
    /// The program could not be executed. For example, it is not found or not executable, its
    /// working directory is missing, or the test lacks the privilege to run it as another user.
    #[non_exhaustive]
    Spawn {
        /// The command, as a person would type it.
        command: String,
        /// The step that failed, for example ``execute `redis-server` ``.
        attempt: String,
        /// The error of the operating system.
        source: io::Error,
        /// The remedy, if known.
        hint: Option<String>,
        /// The program or feature that this machine lacks, if that is the cause.
        missing: Option<Box<Missing>>,
        /// The progress of the other services, if several were started together.
        system: Vec<String>,
    },
    /// Another process already uses the port, the socket path or the pid file that the service
    /// needs.
    #[non_exhaustive]
    AlreadyRunning {
        /// The command, as a person would type it.
        command: String,
        /// The endpoint that is taken, for example `port 6379`.
        endpoint: String,
        /// The process that uses the endpoint, for example `redis-server (pid 812)`, if it is
        /// visible.
        holder: Option<String>,
        /// Further facts about the holder.
        evidence: Box<Evidence>,
    },
    /// The service ended before it was ready.
    #[non_exhaustive]
    Exited {
        /// The command, as a person would type it.
        command: String,
        /// The awaited condition, worded to follow "before".
        awaited: String,
        /// Time from the start of the service until its exit.
        elapsed: Duration,
        /// The exit status of the service's main process.
        status: ExitStatus,
        /// Further facts about the service.
        evidence: Box<Evidence>,
    },
    /// The service was not ready in time.
    #[non_exhaustive]
    Timeout {
        /// The command, as a person would type it.
        command: String,
        /// The awaited condition, worded to follow "before".
        awaited: String,
        /// How long the start waited for the condition.
        elapsed: Duration,
        /// Further facts about the service.
        evidence: Box<Evidence>,
    },
    /// The service printed a line that matches a `fail_on` pattern of the recipe.
    #[non_exhaustive]
    FailureLine {
        /// The command, as a person would type it.
        command: String,
        /// The line that the service printed.
        line: String,
        /// The pattern that the line matches.
        pattern: String,
        /// Time from the start of the service until the line was seen.
        elapsed: Duration,
        /// Further facts about the service.
        evidence: Box<Evidence>,
    },
    /// Another process answers at the address or path of the service.
    #[non_exhaustive]
    WrongListener {
        /// The command, as a person would type it.
        command: String,
        /// The address or path, for example `127.0.0.1:6379`.
        endpoint: String,
        /// The process that answers, for example `redis-server (pid 812)`.
        holder: String,
        /// Further facts about the service and the process.
        evidence: Box<Evidence>,
    },
    /// The service was stopped, and its exit status is not an accepted one: 0, death by the stop
    /// signal, 128 plus that signal's number, or the recipe's
    /// [`expected_exit`](crate::recipe::builder::ExecutorBuilder::expected_exit).
    #[non_exhaustive]
    BadExit {
        /// The command, as a person would type it.
        command: String,
        /// The exit status of the service's main process.
        status: ExitStatus,
        /// The accepted exit statuses, as text.
        expected: String,
        /// Further facts about the service.
        evidence: Box<Evidence>,
    },
    /// The command is invalid. For example, it is empty, its quotes are unbalanced, or it contains
    /// an unknown placeholder.
    #[non_exhaustive]
    InvalidCommand {
        /// The recipe's command.
        command: String,
        /// The mistake and its remedy.
        reason: String,
        /// The progress of the other services, if several were started together.
        system: Vec<String>,
    },
    /// The readiness condition is invalid: a bad address, URL, pattern or path.
    #[non_exhaustive]
    InvalidReadiness {
        /// The recipe's readiness condition.
        readiness: String,
        /// The mistake and its remedy.
        reason: String,
        /// The progress of the other services, if several were started together.
        system: Vec<String>,
    },
    /// A service that the whole run shares has ended. mirakuru does not start it again, because the
    /// new service would lack the data of the old one, and tests would not notice.
    #[non_exhaustive]
    Died {
        /// The command, as a person would type it.
        command: String,
        /// The exit status of the service's main process, if it is known.
        status: Option<ExitStatus>,
        /// Further facts about the service.
        evidence: Box<Evidence>,
    },
    /// The test process that first tried to start a service shared by the whole run has failed to
    /// do so. No other process tries again.
    #[non_exhaustive]
    FailedBefore {
        /// The report of the failed start.
        report: String,
        /// The test process that tried the start, for example `tests-1f3a (pid 812)`.
        process: String,
    },
    /// The service is not running, and the called method needs a running service.
    #[non_exhaustive]
    NotRunning {
        /// The command, as a person would type it.
        command: String,
        /// The action that failed, worded to follow "failed to".
        action: String,
    },
    /// The operating system refused something that mirakuru itself needs, such as a directory, a
    /// socket or a process.
    #[non_exhaustive]
    System {
        /// The step that failed.
        attempt: String,
        /// The error of the operating system.
        source: io::Error,
        /// The progress of the other services, if several were started together.
        system: Vec<String>,
    },
}

impl Error {
    /// Creates the error of a [recipe](https://docs.rs/mirakuru/latest/mirakuru/trait.Recipe.html)
    /// itself, for example from the statements that set up a database. The error names the step
    /// that failed, as in "apply the migrations", and the reason.
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
        // An error of the operating system is kept as it is, because `of_system` may know its
        // remedy.
        let source = match source.into().downcast::<io::Error>() {
            Ok(error) => *error,
            Err(error) => io::Error::other(error),
        };
        Error::system(mask_urls(&attempt.into()), source)
    }

    /// Creates an [`Error::System`], without masking secrets in it.
    pub(crate) fn system(attempt: impl Into<String>, source: io::Error) -> Error {
        let attempt = attempt.into();
        Error::System {
            attempt,
            source,
            system: Vec::new(),
        }
    }
}

impl Error {
    /// The program or feature that this machine lacks, if that is the cause of the error. It can
    /// also be a version that a preset needs, or a feature of the kernel (IPv6, or a system call
    /// that the supervisor needs).
    ///
    /// ```
    /// # use mirakuru_core as mirakuru;
    /// let error = mirakuru::Executor::builder("memcashed -p {port}").start().unwrap_err();
    /// assert_eq!(error.missing().unwrap().what, "memcashed");
    /// ```
    #[must_use]
    pub fn missing(&self) -> Option<&Missing> {
        match self {
            Error::Spawn { missing, .. } => missing.as_deref(),
            _ => None,
        }
    }

    /// The error of a preset that cannot use the installed version of its program.
    #[doc(hidden)]
    #[must_use]
    pub fn __version_is_missing(what: &str, install: Option<String>, reason: String) -> Error {
        Error::Spawn {
            command: what.to_owned(),
            attempt: format!("find {what}"),
            source: io::Error::new(io::ErrorKind::NotFound, reason),
            hint: install
                .as_ref()
                .map(|install| format!("install it with `{install}`")),
            missing: Some(Box::new(Missing {
                what: what.to_owned(),
                install,
                optional: false,
            })),
            system: Vec::new(),
        }
    }

    /// If something is missing and the recipe is `optional`, allows the test to be skipped.
    #[doc(hidden)]
    #[must_use]
    pub fn __optional(mut self, is_optional: bool) -> Error {
        if let Error::Spawn {
            missing: Some(missing),
            ..
        } = &mut self
        {
            missing.optional |= is_optional;
        }
        self
    }

    /// A copy of this error for another test. `None` unless the machine lacks a program or feature.
    #[doc(hidden)]
    #[must_use]
    pub fn __missing_again(&self) -> Option<Error> {
        let Error::Spawn {
            command,
            attempt,
            source,
            hint,
            missing: missing @ Some(_),
            system,
        } = self
        else {
            return None;
        };
        Some(Error::Spawn {
            command: command.clone(),
            attempt: attempt.clone(),
            source: io::Error::new(source.kind(), source.to_string()),
            hint: hint.clone(),
            missing: missing.clone(),
            system: system.clone(),
        })
    }
}

/// The facts about a service at the time of an error.
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
    /// Events and their times since the start of the service.
    pub timeline: Vec<(Duration, String)>,
    /// The first lines that the service printed, at most 5, unless they are in `tail`.
    pub head: Vec<String>,
    /// Number of lines that the service printed between `head` and `tail`.
    pub left_out: u64,
    /// Number of output bytes that are not in the log, because it has reached its
    /// [limit](crate::recipe::builder::ExecutorBuilder::log_limit).
    pub dropped: u64,
    /// The last lines that the service printed, at most 20. If four or more successive lines differ
    /// only in times and process ids, only the first and the last of them are included. A line
    /// between them states the number of the others.
    pub tail: Vec<String>,
    /// The log file with the whole output, which is kept after a failure.
    pub log: Option<PathBuf>,
    /// Number of output bytes that are not in the log file, because the disk was full.
    pub lost: u64,
    /// Facts about another process that caused the error, for example `started 3 min ago by user
    /// redis`.
    pub about: Option<String>,
    /// The progress of the other services, if several were started together. An entry is, for
    /// example, `` `node-0` was ready ``.
    pub system: Vec<String>,
    /// The remedy, if the cause is known.
    pub hint: Option<String>,
}

/// The evidence of an error, borrowed in the same way as `$error`. `None` if the variant has no
/// evidence.
macro_rules! evidence {
    ($error:expr) => {
        match $error {
            Error::AlreadyRunning { evidence, .. }
            | Error::Exited { evidence, .. }
            | Error::Timeout { evidence, .. }
            | Error::FailureLine { evidence, .. }
            | Error::WrongListener { evidence, .. }
            | Error::BadExit { evidence, .. }
            | Error::Died { evidence, .. } => Some(evidence),
            _ => None,
        }
    };
}

impl Error {
    /// Applies `shown` to each string in the error, except for the service's output.
    pub(crate) fn map_texts(mut self, shown: &dyn Fn(&str) -> String) -> Error {
        let texts: Vec<&mut String> = match &mut self {
            Error::Spawn {
                command,
                attempt,
                hint,
                ..
            } => match hint {
                Some(hint) => vec![command, attempt, hint],
                None => vec![command, attempt],
            },
            Error::AlreadyRunning {
                command, endpoint, ..
            } => vec![command, endpoint],
            Error::Exited { command, awaited, .. } | Error::Timeout { command, awaited, .. } => {
                vec![command, awaited]
            }
            Error::FailureLine { command, .. }
            | Error::BadExit { command, .. }
            | Error::Died { command, .. } => vec![command],
            // The process that created the report has already masked it.
            Error::FailedBefore { .. } => Vec::new(),
            Error::WrongListener {
                command, endpoint, ..
            } => vec![command, endpoint],
            Error::InvalidCommand { command, reason, .. } => vec![command, reason],
            Error::InvalidReadiness {
                readiness, reason, ..
            } => vec![readiness, reason],
            Error::NotRunning { command, .. } => vec![command],
            Error::System { attempt, .. } => vec![attempt],
        };
        for text in texts {
            *text = shown(text);
        }
        // Without `..` in the pattern, a new field does not compile until its author decides
        // whether to mask it. `head` and `tail` are output, which is not masked. `timeline` and
        // `system` are masked already.
        if let Some(Evidence {
            last_probe,
            hint,
            timeline: _,
            head: _,
            left_out: _,
            dropped: _,
            tail: _,
            log: _,
            lost: _,
            about,
            system: _,
        }) = self.evidence_mut()
        {
            for text in [last_probe, hint, about] {
                *text = text.as_deref().map(shown);
            }
        }
        self
    }

    /// Adds a line about each of the other services that were starting together.
    #[doc(hidden)]
    #[must_use]
    pub fn __in_system(mut self, services: Vec<String>) -> Error {
        match &mut self {
            Error::Spawn { system, .. }
            | Error::InvalidCommand { system, .. }
            | Error::InvalidReadiness { system, .. }
            | Error::System { system, .. } => *system = services,
            error => {
                if let Some(evidence) = error.evidence_mut() {
                    evidence.system = services;
                }
            }
        }
        self
    }

    /// Records which node of a cluster the last probe queried.
    #[doc(hidden)]
    #[must_use]
    pub fn __at_node(mut self, node: &str) -> Error {
        if let Some(evidence) = self.evidence_mut() {
            let probe = evidence.last_probe.take();
            let probe = probe.map_or_else(String::new, |probe| format!(": {probe}"));
            evidence.last_probe = Some(format!("of `{node}`{probe}"));
        }
        self
    }

    /// Sets the duration of the whole wait. The error was created with that of the last part only.
    #[doc(hidden)]
    #[must_use]
    pub fn __after(mut self, waited: Duration) -> Error {
        if let Error::Timeout { elapsed, .. } = &mut self {
            *elapsed = waited;
        }
        self
    }

    pub(crate) fn evidence_mut(&mut self) -> Option<&mut Evidence> {
        evidence!(self)
    }

    fn evidence(&self) -> Option<&Evidence> {
        evidence!(self)
    }

    fn hint(&self) -> Option<&str> {
        match self {
            Error::Spawn { hint, .. } => hint.as_deref(),
            Error::System { source, .. } => of_system(source),
            _ => self.evidence().and_then(|evidence| evidence.hint.as_deref()),
        }
    }

    /// The first line, which contains the whole message.
    fn headline(&self) -> String {
        let (command, text) = match self {
            Error::Spawn { attempt, source, .. } | Error::System { attempt, source, .. } => {
                return format!("failed to {attempt}: {}", Cause(source));
            }
            Error::AlreadyRunning {
                command,
                endpoint,
                holder,
                ..
            } => {
                let by = holder.as_ref().map(|holder| format!(" by {holder}"));
                let by = by.unwrap_or_default();
                (command, format!("{endpoint} is already in use{by}"))
            }
            Error::Exited {
                command,
                awaited,
                elapsed,
                status,
                ..
            } => {
                let (ended, elapsed) = (Ended(*status), Span(*elapsed));
                (command, format!("{ended} after {elapsed}, before {awaited}"))
            }
            Error::Timeout {
                command,
                awaited,
                elapsed,
                ..
            } => (
                command,
                format!("timed out after {}, before {awaited}", Span(*elapsed)),
            ),
            Error::FailureLine {
                command,
                line,
                pattern,
                elapsed,
                ..
            } => {
                let (elapsed, printed) = (Span(*elapsed), format!("it printed `{line}`"));
                let text = format!("start-up failed after {elapsed}: {printed}, which matches `{pattern}`");
                (command, text)
            }
            Error::WrongListener {
                command,
                endpoint,
                holder,
                ..
            } => (
                command,
                format!("{endpoint} is answered by {holder}, which is not this service"),
            ),
            Error::BadExit {
                command,
                status,
                expected,
                ..
            } => (
                command,
                format!("{} when it was stopped, expected {expected}", Ended(*status)),
            ),
            Error::Died { command, status, .. } => {
                let how = match status {
                    Some(status) => Ended(*status).to_string(),
                    None => "ended with an unknown exit status".to_owned(),
                };
                let text =
                    format!("the shared service {how} while tests were using it, and is not started again");
                (command, text)
            }
            Error::FailedBefore { report, process } => {
                return format!(
                    "{report}\n  (this happened in {process}; a run starts each service only once)"
                );
            }
            Error::InvalidCommand { command, reason, .. } => {
                return format!("invalid command `{}`: {reason}", one_line(command));
            }
            Error::InvalidReadiness {
                readiness, reason, ..
            } => {
                return format!("invalid readiness `{readiness}`: {reason}");
            }
            Error::NotRunning { command, action } => (
                command,
                format!("failed to {action}: the service is not running; start it first"),
            ),
        };
        format!("{}: {text}", one_line(command))
    }
}

impl Reported for Error {
    fn report(&self) -> Report {
        let mut report = Report::default();
        report.headline(&self.headline());
        if let Error::Spawn { command, attempt, .. } = self {
            // If the first line does not contain the whole command, show the command on its own
            // line.
            if !attempt.contains(command.as_str()) {
                report.entry("command", &one_line(command));
            }
        }
        if let Error::Spawn { system, .. }
        | Error::InvalidCommand { system, .. }
        | Error::InvalidReadiness { system, .. }
        | Error::System { system, .. } = self
        {
            system.iter().for_each(|service| report.entry("system", service));
        }
        if let Some(evidence) = self.evidence() {
            evidence.lay_out(&mut report);
        }
        if let Some(hint) = self.hint() {
            report.entry("hint", hint);
        }
        report
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.report().fmt(f)
    }
}

impl Evidence {
    fn lay_out(&self, report: &mut Report) {
        if let Some(about) = &self.about {
            report.entry("holder", about);
        }
        if let Some(probe) = &self.last_probe {
            report.entry("last probe", probe);
        }
        if !self.timeline.is_empty() {
            let events = self.timeline.iter().map(|(when, what)| match when.is_zero() {
                true => what.clone(),
                false => format!("{what} after {}", Span(*when)),
            });
            report.entry("timeline", &events.collect::<Vec<_>>().join(", "));
        }
        for service in &self.system {
            report.entry("system", service);
        }
        report.output(Printed {
            head: &self.head,
            left_out: self.left_out,
            dropped: self.dropped,
            tail: &self.tail,
            log: self.log.as_deref(),
        });
        if self.lost > 0 {
            let lost = format!(
                "{} of its output could not be written to the log, and are missing: is the disk full?",
                Bytes(self.lost)
            );
            report.entry("lost", &lost);
        }
    }
}

impl fmt::Display for Evidence {
    /// Writes the text below the first line of an error.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut report = Report::default();
        self.lay_out(&mut report);
        if let Some(hint) = &self.hint {
            report.entry("hint", hint);
        }
        report.fmt(f)
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

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

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
                head: Vec::new(),
                left_out: 0,
                dropped: 0,
                tail: vec!["bind: address in use".to_owned()],
                log: Some(PathBuf::from("/tmp/x/log")),
                lost: 40_000,
                about: None,
                system: Vec::new(),
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
        let text = error.map_texts(&|text| text.replace('x', "***")).to_string();
        assert_eq!(
            text,
            "a ***: timed out after 1 s, before it ***\n  last probe: *** failed\n  output:     1 line\n    \
                | x"
        );
    }

    #[test]
    fn errors_travel_between_threads() {
        fn check<T: Send + Sync + 'static>() {}
        check::<Error>();
    }
}
