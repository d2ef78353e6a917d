//! [`Exec`]: a command that says whether the service is ready.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::{Prepare, Probe, Readiness};
use crate::command::{self, IntoCommand};
use crate::deadline::scaled;
use crate::logs::printable;
use crate::sys::probe_command as sys;
use crate::{Error, Signal};

/// How long a run may take at first. Doubles each time that is not enough.
const FIRST_LIMIT: Duration = Duration::from_secs(5);
/// The least time between two runs, and the part of the time already waited: a fiftieth, as with other looks.
const PAUSE: Duration = Duration::from_millis(5);
const PAUSE_PART: u32 = 50;
/// A command that takes long is not run again at once: the pause is as long as the run was, up to this part of the time already
/// waited.
const LONG_PAUSE_PART: u32 = 10;
/// How much of a run's output is kept: the last of it.
const KEPT: usize = 4096;
/// How often the service's own exit is looked for while a run lasts.
const LOOK: Duration = Duration::from_millis(5);

/// Ready when a command exits with status 0.
///
/// The command is given as [`Executor::builder`](crate::Executor::builder) takes it: one string, split into words as a
/// shell would but run without one, or a list. Placeholders are filled in. It runs in the test process's own
/// environment and working directory, with nothing on its standard input.
///
/// ```
/// # use mirakuru_core as mirakuru;
/// use mirakuru::{Exec, Executor};
///
/// let mut service = Executor::builder("touch open; exec sleep 60")
///     .shell(true)
///     .current_dir("{dir}")
///     .wait_for(Exec::succeeds("test -e {dir}/open"))
///     .start()?;
/// service.stop()?;
/// # Ok::<(), mirakuru_core::Error>(())
/// ```
///
/// Servers often bring such a command: `Exec::succeeds("pg_isready -h 127.0.0.1 -p {port}")`.
///
/// It is run again and again until it succeeds, with a pause of a fiftieth of the time already waited, 5 ms at
/// least, and longer when a run takes long. Each run has 5 s, is then killed with everything in its process group, and the next has twice the time. The
/// last line that it printed and its exit status are in the error when the service does not become ready. A program that is
/// not found ends the wait.
#[derive(Clone, Debug)]
pub struct Exec {
    command: command::Command,
    words: Vec<OsString>,
    limit: Duration,
    next_at: Duration,
    last_error: Option<String>,
}

impl Exec {
    /// Ready when this command exits with status 0.
    pub fn succeeds(command: impl IntoCommand) -> Exec {
        Exec {
            command: command.into_command(),
            words: Vec::new(),
            limit: FIRST_LIMIT,
            next_at: Duration::ZERO,
            last_error: None,
        }
    }

    /// The command, as a person would type it.
    fn shown(&self) -> String {
        let words: Vec<_> = if self.words.is_empty() {
            match &self.command.words {
                command::Words::Line(line) => return line.clone(),
                command::Words::List(list) => list.iter().map(|w| w.to_string_lossy()).collect(),
            }
        } else {
            self.words.iter().map(|w| w.to_string_lossy()).collect()
        };
        printable(&shell_words::join(words), 400)
    }

    fn run(&mut self, cx: &Probe<'_>) -> io::Result<bool> {
        let (program, args) = self
            .words
            .split_first()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the command is empty"))?;
        let limit = self.limit.min(cx.remaining());
        let deadline = Instant::now() + limit;

        let (output, output_end) = sys::pipe()?;
        let mut command = Command::new(program);
        command
            .args(args)
            .stdin(Stdio::null())
            .stdout(output_end.try_clone()?)
            .stderr(output_end);
        sys::tie_to_this_thread(&mut command);
        let spawned = command.spawn();
        // It holds the writing end of the pipe, which would never be at its end.
        drop(command);
        let child = spawned.map_err(|e| self.not_executed(&e))?;

        let mut run = Run {
            event: sys::exit_event(child.id()),
            child,
            output: Some(File::from(output)),
            kept: Vec::new(),
            ended: false,
        };
        let ended = run.wait(deadline, &|| cx.service_exited());
        let last_line = run.last_line();
        match ended? {
            Ended::Status(status) if status.success() => Ok(true),
            Ended::Status(status) => {
                let mut text = format!("`{}` {}", self.shown(), how(status));
                if let Some(line) = last_line {
                    text = format!("{text}: {line}");
                }
                Err(io::Error::other(text))
            }
            // Cut short by the end of the wait: what the one before told says more.
            Ended::OverTime if limit < self.limit && self.last_error.is_some() => {
                Err(io::Error::other(self.last_error.clone().unwrap_or_default()))
            }
            Ended::OverTime => {
                self.limit = self.limit.saturating_mul(2);
                let mut text = format!("`{}` did not end within {limit:.0?} and was killed", self.shown());
                if let Some(line) = last_line {
                    text = format!("{text}: {line}");
                }
                Err(io::Error::new(io::ErrorKind::TimedOut, text))
            }
            Ended::ServiceExited => Ok(false),
        }
    }

    fn not_executed(&self, error: &io::Error) -> io::Error {
        let program = self.words[0].to_string_lossy();
        let text = format!("cannot execute `{}`: {error}", printable(&program, 400));
        // A path may come to exist, the service may make it. A name that is not on PATH will not.
        if error.kind() == io::ErrorKind::NotFound && !program.contains('/') {
            let text = format!("{text}; is it installed, and on PATH?");
            io::Error::new(io::ErrorKind::InvalidInput, text)
        } else {
            io::Error::other(text)
        }
    }
}

impl Readiness for Exec {
    fn describe(&self) -> String {
        format!("`{}` succeeded", self.shown())
    }

    fn prepare(&mut self, cx: &mut Prepare<'_>) -> Result<(), Error> {
        self.words = cx.resolve(&self.command).map_err(|e| match e {
            Error::InvalidCommand { command, reason } => Error::InvalidReadiness {
                readiness: command,
                reason,
            },
            other => other,
        })?;
        self.limit = scaled(FIRST_LIMIT);
        self.next_at = Duration::ZERO;
        self.last_error = None;
        Ok(())
    }

    fn probe(&mut self, cx: &Probe<'_>) -> io::Result<bool> {
        if cx.elapsed() < self.next_at {
            return match &self.last_error {
                Some(text) => Err(io::Error::other(text.clone())),
                None => Ok(false),
            };
        }
        let begun = Instant::now();
        let result = self.run(cx);
        let took = begun.elapsed();
        let elapsed = cx.elapsed() + took;
        let as_long = took.min(elapsed / LONG_PAUSE_PART);
        self.next_at = elapsed + PAUSE.max(as_long).max(elapsed / PAUSE_PART);
        self.last_error = result.as_ref().err().map(io::Error::to_string);
        result
    }
}

/// How a run ended.
enum Ended {
    Status(ExitStatus),
    OverTime,
    ServiceExited,
}

/// A run of the command. It is dead and waited for once this is dropped, whatever happens.
struct Run {
    child: Child,
    /// Readable once the child has ended.
    event: Option<std::os::fd::OwnedFd>,
    output: Option<File>,
    /// The last of its output.
    kept: Vec<u8>,
    /// Whether it has been waited for. Its process id may then be somebody else's.
    ended: bool,
}

impl Run {
    fn wait(&mut self, deadline: Instant, service_exited: &dyn Fn() -> bool) -> io::Result<Ended> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let fds = [
                self.output.as_ref().map(AsFd::as_fd),
                self.event.as_ref().map(AsFd::as_fd),
            ];
            let [printed, ended] = sys::wait_readable(fds, left.min(LOOK))?;
            if printed {
                self.read_output();
            }
            if ended || self.event.is_none() {
                if let Some(status) = self.reap(ended)? {
                    // What it printed last is in the pipe by now.
                    self.drain_output();
                    return Ok(Ended::Status(status));
                }
            }
            if service_exited() {
                return Ok(Ended::ServiceExited);
            }
            if left.is_zero() {
                return Ok(Ended::OverTime);
            }
        }
    }

    /// Its status, if it has ended.
    fn reap(&mut self, ended: bool) -> io::Result<Option<ExitStatus>> {
        if ended {
            // It has ended and is not yet waited for, so the group's number is still its own: the moment to
            // end what it may have left in the background.
            sys::kill_group(self.child.id());
        }
        let status = self.child.try_wait()?;
        self.ended = status.is_some();
        Ok(status)
    }

    /// Reads once. The pipe must be readable or at its end.
    fn read_output(&mut self) {
        let mut buffer = [0; KEPT];
        let read = match &mut self.output {
            Some(output) => output.read(&mut buffer),
            None => return,
        };
        match read {
            Ok(n) if n > 0 => {
                self.kept.extend_from_slice(&buffer[..n]);
                let surplus = self.kept.len().saturating_sub(KEPT);
                self.kept.drain(..surplus);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            _ => self.output = None,
        }
    }

    /// Reads what is in the pipe now. Bounded: a process that has left the group may still be writing.
    fn drain_output(&mut self) {
        for _ in 0..64 {
            let fd = self.output.as_ref().map(AsFd::as_fd);
            if fd.is_none() || !matches!(sys::wait_readable([fd], Duration::ZERO), Ok([true])) {
                break;
            }
            self.read_output();
        }
    }

    fn last_line(&self) -> Option<String> {
        let text = String::from_utf8_lossy(&self.kept);
        text.lines()
            .rev()
            .map(|line| printable(line, 200))
            .find(|line| !line.trim().is_empty())
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if !self.ended {
            sys::kill_group(self.child.id());
            // For the case that it has made itself a group of its own.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The exit status in words.
fn how(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with status {code}"),
        (None, Some(number)) => {
            let known = [
                (1, Signal::Hup),
                (2, Signal::Int),
                (3, Signal::Quit),
                (9, Signal::Kill),
                (15, Signal::Term),
            ];
            match known.iter().find(|(n, _)| *n == number) {
                Some((_, signal)) => format!("was killed by {signal}"),
                None => format!("was killed by signal {number}"),
            }
        }
        (None, None) => status.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;
    use std::thread;

    use super::super::harness::{Harness, is_alone, run_alone};
    use super::*;

    fn sh(script: &str) -> Exec {
        Exec::succeeds(["sh", "-c", script])
    }

    fn prepared(harness: &Harness, mut exec: Exec) -> Exec {
        harness.prepare(&mut exec).unwrap();
        exec
    }

    /// Waits until the process is gone or a zombie.
    fn gone(pid: &str) -> bool {
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
                Err(_) => return true,
                Ok(stat) if stat.rsplit(')').next().is_some_and(|s| s.starts_with(" Z")) => return true,
                Ok(_) => thread::sleep(Duration::from_millis(5)),
            }
        }
        false
    }

    #[test]
    fn status_zero_is_ready() {
        let harness = Harness::new();
        let mut exec = prepared(&harness, Exec::succeeds("sh -c 'exit 0'"));
        assert_eq!(exec.describe(), "`sh -c 'exit 0'` succeeded");
        assert!(harness.probe(&mut exec).unwrap());
    }

    #[test]
    fn any_other_status_is_an_error_with_the_last_line() {
        let harness = Harness::new();
        let mut exec = prepared(&harness, sh("echo first; echo 'no \u{1b}[31mluck' >&2; exit 3"));
        let error = harness.probe(&mut exec).unwrap_err().to_string();
        assert!(error.ends_with("exited with status 3: no luck"), "{error}");
        let mut exec = prepared(&harness, sh("kill -9 $$"));
        let error = harness.probe(&mut exec).unwrap_err().to_string();
        assert!(error.ends_with("was killed by SIGKILL"), "{error}");
    }

    #[test]
    fn runs_are_not_one_upon_the_other() {
        let harness = Harness::new();
        let marks = harness.dir().join("marks");
        let mut exec = prepared(&harness, sh(&format!("echo x >> '{}'; exit 1", marks.display())));
        harness.elapsed(Duration::from_secs(10));
        let first = harness.probe(&mut exec).unwrap_err().to_string();
        // Less than a fiftieth of the time later there is the same answer, without a run.
        harness.elapsed(Duration::from_millis(10_150));
        let second = harness.probe(&mut exec).unwrap_err().to_string();
        assert_eq!(first, second);
        assert_eq!(std::fs::read_to_string(&marks).unwrap(), "x\n");
        harness.elapsed(Duration::from_secs(30));
        harness.probe(&mut exec).unwrap_err();
        assert_eq!(std::fs::read_to_string(&marks).unwrap(), "x\nx\n");
    }

    #[test]
    fn one_that_takes_too_long_is_killed_with_its_children() {
        let harness = Harness::new();
        let pids = harness.dir().join("pids");
        let script = format!("sleep 300 & echo $! > '{}'; echo waiting; wait", pids.display());
        let mut exec = prepared(&harness, sh(&script));
        harness.remaining(Duration::from_millis(500));
        let error = harness.probe(&mut exec).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let error = error.to_string();
        assert!(
            error.ends_with("did not end within 500ms and was killed: waiting"),
            "{error}"
        );
        assert_eq!(exec.limit, FIRST_LIMIT * 2);
        assert!(gone(std::fs::read_to_string(&pids).unwrap().trim()));
    }

    #[test]
    fn one_that_succeeds_leaves_nothing_behind() {
        let harness = Harness::new();
        let pids = harness.dir().join("pids");
        let mut exec = prepared(
            &harness,
            sh(&format!("sleep 300 & echo $! > '{}'", pids.display())),
        );
        // The background process keeps the output open: that must not be waited for.
        assert!(harness.probe(&mut exec).unwrap());
        assert!(gone(std::fs::read_to_string(&pids).unwrap().trim()));
    }

    #[test]
    fn the_exit_of_the_service_ends_the_run() {
        let harness = Harness::new();
        let mut exec = prepared(&harness, sh("sleep 300"));
        let begun = Instant::now();
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(50));
                harness.exited.store(true, Ordering::SeqCst);
            });
            assert!(!harness.probe(&mut exec).unwrap());
        });
        assert!(begun.elapsed() < Duration::from_secs(4));
    }

    #[test]
    fn much_output_neither_blocks_nor_is_kept() {
        let harness = Harness::new();
        let mut exec = prepared(
            &harness,
            sh("head -c 3000000 /dev/zero | tr '\\0' x; echo; echo end; exit 1"),
        );
        let error = harness.probe(&mut exec).unwrap_err().to_string();
        assert!(error.ends_with("status 1: end"), "{error}");
    }

    #[test]
    fn a_program_that_is_not_there_ends_the_wait() {
        let harness = Harness::new();
        let mut exec = prepared(&harness, Exec::succeeds("mirakuru-no-such-program --now"));
        let error = harness.probe(&mut exec).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        let text = error.to_string();
        assert!(
            text.starts_with("cannot execute `mirakuru-no-such-program`: "),
            "{text}"
        );
        // One that the service may yet make does not.
        let mut exec = prepared(&harness, Exec::succeeds("./no/such/program"));
        assert_eq!(harness.probe(&mut exec).unwrap_err().kind(), io::ErrorKind::Other);
    }

    #[test]
    fn no_descriptor_and_no_zombie_is_left() {
        if !is_alone() {
            return run_alone("readiness::exec::tests::no_descriptor_and_no_zombie_is_left", &[]);
        }
        let harness = Harness::new();
        let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let before = descriptors();
        let mut failing = prepared(&harness, sh("exit 1"));
        let mut hanging = prepared(&harness, sh("sleep 300"));
        for round in 0..10 {
            harness.elapsed(Duration::from_secs(1 << round));
            harness.remaining(Duration::from_secs(60));
            harness.probe(&mut failing).unwrap_err();
            harness.remaining(Duration::from_millis(10));
            harness.probe(&mut hanging).unwrap_err();
        }
        assert_eq!(descriptors(), before);
        let me = std::process::id().to_string();
        let children = std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| std::fs::read_to_string(entry.ok()?.path().join("stat")).ok())
            .filter(|stat| {
                let fields = stat.rsplit(')').next().unwrap_or_default();
                fields.split_whitespace().nth(1) == Some(&me)
            })
            .count();
        assert_eq!(children, 0, "children, zombies included");
    }
}
