//! [`Exec`]: a command whose success means that the service is ready.
//!
//! Like a service, each run has its own supervisor. When the run is over, the supervisor ends all
//! of its processes, even those in a session of their own.

use crate::util::hash;
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::hash::Hasher;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use super::{Prepare, Probe, Readiness, Wake};
use crate::error::{Error, text};
use crate::recipe::command::{self, IntoCommand};
use crate::recipe::program;
use crate::recipe::signal::Signal;
use crate::service_dir::random_id;
use crate::sys;
use crate::util::backoff::unbounded_poll_pause;
use crate::util::deadline::scaled;
use crate::util::text::printable;

/// Time limit of the first run. If a run exceeds its limit, the next run gets twice the time.
const FIRST_LIMIT: Duration = Duration::from_secs(5);
/// The pause after a slow run is as long as the run, less [`UNAVOIDABLE`]. It never exceeds the
/// time already waited divided by this number.
const LONG_PAUSE_PART: u32 = 10;
/// The time that even the shortest run takes.
const UNAVOIDABLE: Duration = Duration::from_millis(1);
const SHELL: &str = "/bin/sh";
/// Number of bytes kept from the end of a run's output.
const KEPT: usize = 4096;

/// Ready when a command exits with status 0.
///
/// The command is one string or a list, as for
/// [`Executor::builder`](crate::executor::Executor::builder). A string is split into words as a
/// shell would split it, but no shell runs it. Placeholders are filled in. The command runs with
/// the environment and the working directory of the test process, and with empty standard input.
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
/// Many servers come with such a command: `Exec::succeeds("pg_isready -h 127.0.0.1 -p {port}")`.
///
/// The command is repeated until it succeeds, one run at a time. The pause between runs is about a
/// fiftieth of the time already waited, at least 0.1 ms, and longer after a slow run. The start
/// returns about one run after the service is ready; a run of a small program takes about 2 ms. A
/// run is killed after 5 s, and the next one gets twice the time.
///
/// No process that a run has started outlives the run or the test process, even if it has a session
/// of its own.
///
/// If the service does not become ready, the error shows the exit status of the last run and the
/// last line that it printed. If the program is not found on PATH, the wait ends immediately.
#[derive(Clone, Debug)]
pub struct Exec {
    command: command::Command,
    words: Vec<OsString>,
    limit: Duration,
    /// The run in progress.
    run: Running,
    /// When the next run begins, as the time since the start of the service.
    next: Duration,
    last_error: Option<String>,
}

impl Exec {
    /// Waits until this command exits with status 0.
    pub fn succeeds(command: impl IntoCommand) -> Exec {
        Exec {
            command: command.into_command(),
            words: Vec::new(),
            limit: FIRST_LIMIT,
            run: Running(None),
            next: Duration::ZERO,
            last_error: None,
        }
    }

    /// The command as it would be typed into a shell.
    fn shown(&self) -> String {
        let words = match &self.command.words {
            _ if !self.words.is_empty() => &self.words,
            command::Words::Line(line) => return line.clone(),
            command::Words::List(list) => list,
            command::Words::Program(program) => &vec![program.name().into()],
        };
        let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
        printable(&shell_words::join(words), 400)
    }

    /// Starts a run of the command.
    fn begin(&self, cx: &Probe<'_>) -> io::Result<Run> {
        let limit = self.limit.min(cx.remaining());
        let begun = Instant::now();
        let id = random_id()?;
        let environment = program::environment(program::inherited(false), &[], &id);
        let invalid = |error: Error| io::Error::new(io::ErrorKind::InvalidInput, error.to_string());
        let program = self
            .words
            .first()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the command is empty"))?;
        let shown = self.shown();
        let candidates = program::candidates(program, &environment);
        let candidates = program::c_strings(&candidates, &shown).map_err(invalid)?;
        let argv = program::c_strings(&self.words, &shown).map_err(invalid)?;
        let envp = program::c_environment(&environment, &shown).map_err(invalid)?;
        // The command and its children hold the only write ends, so the pipe reaches its end when
        // all of them have exited or closed it.
        let (output, write) = sys::pipe()?;
        let null = || {
            fs::OpenOptions::new()
                .write(true)
                .open("/dev/null")
                .map(OwnedFd::from)
        };
        let plan = sys::Plan {
            program: sys::CommandPlan { candidates, argv },
            on_end: None,
            on_end_hint: None,
            needs: Vec::new(),
            envp,
            current_dir: None,
            stdin: sys::Stream::Null,
            stdout: sys::Stream::Fd(write.try_clone()?),
            stderr: sys::Stream::Fd(write),
            uid: None,
            gid: None,
            groups: None,
            umask: None,
            stop: sys::StopPolicy {
                signal: Signal::Kill.number(),
                grace: Duration::ZERO,
                kill_signal: Signal::Kill.number(),
            },
            log: null()?,
            index: null()?,
            log_part: u64::MAX,
            log_at: sys::LogPart::default(),
            keep: Vec::new(),
            listen: Vec::new(),
            id,
            private_dir: None,
            run: None,
            test: 0,
        };
        let service = sys::Service::launch(vec![plan])
            .pop()
            .ok_or(io::ErrorKind::Other)?;
        Ok(Run {
            service: service.map_err(|failure| self.not_executed(&failure.source))?,
            output: Some(File::from(output)),
            kept: Vec::new(),
            begun,
            limit,
        })
    }

    /// Returns whether a finished run succeeded. If it failed, the error gives the reason.
    fn judge(&mut self, run: &Run, ended: Ended) -> io::Result<bool> {
        let limit = run.limit;
        let last_line = run
            .last_line()
            .map_or_else(String::new, |line| format!(": {line}"));
        match ended {
            Ended::NotExecuted(error) => match self.script(&error) {
                // The next run lets a shell execute the script, as `execvp` does.
                Some(script) => {
                    self.words[0] = script.into();
                    self.words.insert(0, SHELL.into());
                    self.last_answer()
                }
                None => Err(self.not_executed(&error)),
            },
            Ended::Status(status) if status.success() => Ok(true),
            Ended::Status(status) => {
                let text = format!("`{}` {}{last_line}", self.shown(), text::Ended(status));
                Err(io::Error::other(text))
            }
            // The end of the wait cut this run short, so the error of the previous run is more
            // helpful.
            Ended::OverTime if limit < self.limit && self.last_error.is_some() => self.last_answer(),
            Ended::OverTime => {
                self.limit = self.limit.saturating_mul(2);
                let text = format!(
                    "`{}` did not end within {limit:.0?} and was killed{last_line}",
                    self.shown()
                );
                Err(io::Error::new(io::ErrorKind::TimedOut, text))
            }
        }
    }

    /// The result of the previous run.
    fn last_answer(&self) -> io::Result<bool> {
        match &self.last_error {
            Some(text) => Err(io::Error::other(text.clone())),
            None => Ok(false),
        }
    }

    /// Schedules the next run, after a pause.
    fn pause(&mut self, now: Duration, took: Duration) {
        let beyond = took.saturating_sub(UNAVOIDABLE).min(now / LONG_PAUSE_PART);
        self.next = now + unbounded_poll_pause(now).max(beyond);
    }

    /// If the kernel refused the program because it is a script without a `#!` line, returns its
    /// path.
    fn script(&self, error: &io::Error) -> Option<PathBuf> {
        let program = self.words.first().filter(|program| *program != SHELL)?;
        if error.raw_os_error() != Some(sys::ENOEXEC) {
            return None;
        }
        let candidates = program::candidates(program, &program::inherited(false));
        candidates.into_iter().find(|path| path.is_file())
    }

    fn not_executed(&self, error: &io::Error) -> io::Error {
        let program = self.words[0].to_string_lossy();
        let text = format!("cannot execute `{}`: {error}", printable(&program, 400));
        // The service may still create a program at a given path, but is unlikely to add one to
        // PATH.
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

    fn fingerprint(&self, hasher: &mut dyn Hasher) {
        let Exec {
            command,
            limit,
            words: _,
            run: _,
            next: _,
            last_error: _,
        } = self;
        command.fingerprint(hasher);
        // A relative path is hashed together with the test's working directory.
        if let Some(program) = command
            .program()
            .filter(|program| program.to_string_lossy().contains('/'))
        {
            hash::path(hasher, std::path::Path::new(&program));
        }
        hash::number(hasher, limit.as_nanos() as u64);
    }

    fn prepare(&mut self, cx: &mut Prepare<'_>) -> Result<(), Error> {
        self.words = cx.resolve(&self.command).map_err(|e| match e {
            Error::InvalidCommand { command, reason, .. } => Error::InvalidReadiness {
                readiness: command,
                reason,
                system: Vec::new(),
            },
            other => other,
        })?;
        self.limit = scaled(FIRST_LIMIT);
        self.run.0 = None;
        self.next = Duration::ZERO;
        self.last_error = None;
        Ok(())
    }

    /// Does not wait for a run. The run continues between polls, and when it ends, the condition is
    /// polled again.
    fn probe(&mut self, cx: &Probe<'_>) -> io::Result<bool> {
        let Some(run) = &mut self.run.0 else {
            if cx.elapsed() < self.next {
                // It is too early for the next run. An event of another condition caused this poll.
                return self.last_answer();
            }
            return match self.begin(cx) {
                Ok(run) => {
                    self.run.0 = Some(run);
                    self.last_answer()
                }
                Err(error) => {
                    self.pause(cx.elapsed(), Duration::ZERO);
                    self.last_error = Some(error.to_string());
                    Err(error)
                }
            };
        };
        let Some(ended) = run.poll(cx.remaining().is_zero()) else {
            return self.last_answer();
        };
        let Some(run) = self.run.0.take() else {
            return Ok(false);
        };
        let result = self.judge(&run, ended);
        self.pause(cx.elapsed(), run.begun.elapsed());
        self.last_error = result.as_ref().err().map(io::Error::to_string);
        result
    }

    fn wakes(&self, wake: &mut Wake) {
        let Some(run) = &self.run.0 else {
            return wake.at(self.next);
        };
        let time = run.begun.elapsed();
        wake.within(run.limit.saturating_sub(time));
        if let Some(output) = &run.output {
            wake.on(output.as_fd());
        }
        match run.service.events() {
            Some(event) => wake.events.push(event),
            None => wake.within(Duration::ZERO),
        }
    }

    fn wait_is_over(&mut self) {
        self.run.0 = None;
    }
}

/// The result of a run.
enum Ended {
    NotExecuted(io::Error),
    Status(ExitStatus),
    OverTime,
}

/// The run in progress. A clone of the condition does not share it.
#[derive(Default)]
struct Running(Option<Run>);

impl Clone for Running {
    fn clone(&self) -> Running {
        Running(None)
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() {
            "running"
        } else {
            "not running"
        })
    }
}

/// A run of the command. The supervisor ends all processes of the run when the command exits, when
/// this value is dropped, or when the test process ends.
struct Run {
    service: sys::Service,
    output: Option<File>,
    /// The last bytes of the run's output.
    kept: Vec<u8>,
    begun: Instant,
    limit: Duration,
}

impl Run {
    /// Returns the result if the run has ended or has no time left. `is_last` means that the whole
    /// wait is over. A run that has no time left is killed when it is dropped.
    fn poll(&mut self, is_last: bool) -> Option<Ended> {
        self.drain_output();
        match self.service.has_started() {
            Err(failure) => return Some(Ended::NotExecuted(failure.source)),
            Ok(true) => {
                if let Some(exit) = self.service.exit() {
                    // All output of the command is now in the pipe.
                    self.drain_output();
                    return Some(Ended::Status(exit.status));
                }
                if self.service.is_gone() {
                    return Some(Ended::NotExecuted(io::Error::other("its supervisor was killed")));
                }
            }
            Ok(false) => {}
        }
        let is_over_time = is_last || self.begun.elapsed() >= self.limit;
        is_over_time.then_some(Ended::OverTime)
    }

    /// Reads from the pipe once. The pipe must be readable or at its end.
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

    /// Reads the data that is in the pipe. Stops after a number of reads, because a child of the
    /// command may keep writing for ever.
    fn drain_output(&mut self) {
        for _ in 0..64 {
            match &self.output {
                Some(output) if sys::is_readable(output.as_fd()) => self.read_output(),
                _ => break,
            }
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

#[cfg(test)]
mod tests {
    use std::thread;

    use super::super::harness::Harness;
    use super::*;
    use crate::util::own_process::{is_alone, run_alone, test_name};

    fn sh(script: &str) -> Exec {
        Exec::succeeds(["sh", "-c", script])
    }

    fn prepared(harness: &Harness, mut exec: Exec) -> Exec {
        harness.prepare(&mut exec).unwrap();
        exec
    }

    /// Polls as an executor does until a run has ended, and returns its result.
    fn run(harness: &Harness, exec: &mut Exec) -> io::Result<bool> {
        loop {
            let answer = harness.probe(exec);
            if exec.run.0.is_none() {
                return answer;
            }
            let mut wake = Wake::new(Duration::ZERO);
            exec.wakes(&mut wake);
            crate::sys::wait_readable(&wake.events, wake.pause);
        }
    }

    /// Waits up to ten seconds until the process has gone or is a zombie.
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
        assert!(run(&harness, &mut exec).unwrap());
    }

    #[test]
    fn any_other_status_is_an_error_with_the_last_line() {
        let harness = Harness::new();
        let mut exec = prepared(&harness, sh("echo first; echo 'no \u{1b}[31mluck' >&2; exit 3"));
        let error = run(&harness, &mut exec).unwrap_err().to_string();
        assert!(error.ends_with("exited with status 3: no luck"), "{error}");
        let mut exec = prepared(&harness, sh("kill -9 $$"));
        let error = run(&harness, &mut exec).unwrap_err().to_string();
        assert!(error.ends_with("was killed by SIGKILL"), "{error}");
    }

    #[test]
    fn runs_are_not_one_upon_the_other() {
        let harness = Harness::new();
        let marks = harness.dir().join("marks");
        let mut exec = prepared(&harness, sh(&format!("echo x >> '{}'; exit 1", marks.display())));
        harness.elapsed(Duration::from_secs(10));
        let first = run(&harness, &mut exec).unwrap_err().to_string();
        // The pause is not over, so the result is the same, and no run begins.
        harness.elapsed(Duration::from_millis(10_150));
        let second = run(&harness, &mut exec).unwrap_err().to_string();
        assert_eq!(first, second);
        assert_eq!(std::fs::read_to_string(&marks).unwrap(), "x\n");
        harness.elapsed(Duration::from_secs(30));
        run(&harness, &mut exec).unwrap_err();
        assert_eq!(std::fs::read_to_string(&marks).unwrap(), "x\nx\n");
    }

    #[test]
    fn one_that_takes_too_long_is_killed_with_its_children() {
        let harness = Harness::new();
        let pids = harness.dir().join("pids");
        let script = format!("sleep 300 & echo $! > '{}'; echo waiting; wait", pids.display());
        let mut exec = prepared(&harness, sh(&script));
        harness.remaining(Duration::from_millis(500));
        let error = run(&harness, &mut exec).unwrap_err();
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
        // The portable back end does not find processes that leave their process group.
        let setsid = if cfg!(mirakuru_portable) { "" } else { "setsid " };
        let mut exec = prepared(
            &harness,
            sh(&format!("{setsid}sleep 300 & echo $! > '{}'", pids.display())),
        );
        // The background process keeps the output open, but the run must not wait for that process.
        assert!(run(&harness, &mut exec).unwrap());
        assert!(gone(std::fs::read_to_string(&pids).unwrap().trim()));
    }

    #[test]
    fn a_poll_does_not_wait_for_the_run_and_the_end_of_the_wait_is_its_end() {
        let harness = Harness::new();
        let mut exec = prepared(&harness, sh("sleep 300"));
        // If a poll waited for its run, this loop would take hours.
        for _ in 0..1000 {
            assert!(!harness.probe(&mut exec).unwrap());
        }
        let pid = exec.run.0.as_ref().unwrap().service.supervisor().to_string();
        assert!(exec.clone().run.0.is_none(), "it is the original's");
        exec.wait_is_over();
        assert!(
            !std::path::Path::new("/proc").join(pid).exists(),
            "not even a zombie"
        );
    }

    #[test]
    fn it_is_executed_as_by_a_shell() {
        let harness = Harness::new();
        // The command must not inherit blocked or ignored signals. Rust ignores SIGPIPE.
        let signals = [
            ("PIPE", "was killed by SIGPIPE"),
            ("TERM", "was killed by SIGTERM"),
        ];
        for (signal, end) in signals {
            let mut exec = prepared(&harness, sh(&format!("kill -{signal} $$; sleep 20")));
            let error = run(&harness, &mut exec).unwrap_err().to_string();
            assert!(error.ends_with(end), "{error}");
        }
        // Checks that the command leads its process group and that its input is empty.
        let script = "test \"$(cut -d' ' -f5 /proc/self/stat)\" = $$ || exit 6; read line || exit 5";
        let error = run(&harness, &mut prepared(&harness, sh(script))).unwrap_err();
        assert!(error.to_string().ends_with("exited with status 5"), "{error}");
        // This script has no `#!` line.
        let path = harness.dir().join("script");
        std::fs::write(&path, "echo \"$1 $0\"; exit 7").unwrap();
        let command = [path.as_os_str(), "word".as_ref()];
        let error = run(&harness, &mut prepared(&harness, Exec::succeeds(command))).unwrap_err();
        assert!(error.to_string().contains("Permission denied"), "{error}");
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&path, permissions).unwrap();
        let mut exec = prepared(&harness, Exec::succeeds(command));
        // The kernel refuses the script, so the next run uses a shell.
        assert!(!run(&harness, &mut exec).unwrap());
        harness.elapsed(Duration::from_secs(1));
        let error = run(&harness, &mut exec).unwrap_err();
        let expected = format!("status 7: word {}", path.display());
        assert!(error.to_string().ends_with(&expected), "{error}");
    }

    #[test]
    fn much_output_neither_blocks_nor_is_kept() {
        let harness = Harness::new();
        let mut exec = prepared(
            &harness,
            sh("head -c 3000000 /dev/zero | tr '\\0' x; echo; echo end; exit 1"),
        );
        let error = run(&harness, &mut exec).unwrap_err().to_string();
        assert!(error.ends_with("status 1: end"), "{error}");
    }

    #[test]
    fn a_program_that_is_not_there_ends_the_wait() {
        let harness = Harness::new();
        let mut exec = prepared(&harness, Exec::succeeds("mirakuru-no-such-program --now"));
        let error = run(&harness, &mut exec).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        let text = error.to_string();
        assert!(
            text.starts_with("cannot execute `mirakuru-no-such-program`: "),
            "{text}"
        );
        // The service may still create a program at this path, so the wait continues.
        let mut exec = prepared(&harness, Exec::succeeds("./no/such/program"));
        assert_eq!(run(&harness, &mut exec).unwrap_err().kind(), io::ErrorKind::Other);
    }

    #[test]
    fn no_descriptor_and_no_zombie_is_left() {
        if !is_alone() {
            return run_alone(test_name!(no_descriptor_and_no_zombie_is_left), &[]);
        }
        let harness = Harness::new();
        let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let before = descriptors();
        let mut failing = prepared(&harness, sh("exit 1"));
        let mut hanging = prepared(&harness, sh("sleep 300"));
        for round in 0..10 {
            harness.elapsed(Duration::from_secs(1 << round));
            harness.remaining(Duration::from_secs(60));
            run(&harness, &mut failing).unwrap_err();
            harness.remaining(Duration::from_millis(10));
            run(&harness, &mut hanging).unwrap_err();
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
