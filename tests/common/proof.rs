//! Two ways to prove that a tree of processes is gone, without searching for processes.
//!
//! - A [`Lifeline`] is a FIFO that every process of a tree holds open for writing, because each
//!   inherits its standard input from the first. A reader of the FIFO sees end of file exactly when
//!   all of them are gone, including daemons, orphans, and chains that fork faster than a search.
//! - A [`Process`] is a process id *and* its start time. So a later process with the same id does
//!   not count as a survivor. Neither does a zombie, which holds no files.
//!
//! Supervisors neither hold the lifeline nor record their ids. [`marked`] finds them by their
//! environment.

// Each test binary uses only a part of this file.
#![allow(dead_code)]

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::raw::{c_char, c_int, c_uint};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::common::{alive, all_pids, wait_until};

#[cfg(target_os = "linux")]
const O_NONBLOCK: c_int = 0o4000;
#[cfg(not(target_os = "linux"))]
const O_NONBLOCK: c_int = 4;

unsafe extern "C" {
    fn mkfifo(path: *const c_char, mode: c_uint) -> c_int;
}

/// The read end of a FIFO.
pub(crate) struct Lifeline(File);

impl Lifeline {
    /// Creates a FIFO. Processes open it for writing with [`hold`].
    pub(crate) fn new(path: &str) -> Lifeline {
        let name = CString::new(path).expect("no zero byte");
        // SAFETY: the path is a live C string.
        assert_eq!(unsafe { mkfifo(name.as_ptr(), 0o600) }, 0, "no FIFO at {path}");
        let mut options = OpenOptions::new();
        // Without this flag, the open would wait for the first writer.
        let file = options.read(true).custom_flags(O_NONBLOCK).open(path);
        Lifeline(file.expect("the FIFO that was just made"))
    }

    /// Whether any process holds the FIFO.
    pub(crate) fn is_held(&self) -> bool {
        match (&self.0).read(&mut [0]) {
            Ok(0) => false,
            Ok(_) => panic!("somebody writes to it"),
            Err(e) if e.kind() == ErrorKind::WouldBlock => true,
            Err(e) => panic!("{e}"),
        }
    }

    /// Waits until no process holds the FIFO.
    #[must_use]
    pub(crate) fn is_released_within(&self, bound: Duration) -> bool {
        wait_until(|| !self.is_held(), bound)
    }
}

/// Opens a lifeline for writing. A process holds it as long as the file is open.
pub(crate) fn hold(path: &Path) -> File {
    // Opening the FIFO for reading as well avoids a wait for a reader.
    let file = OpenOptions::new().read(true).write(true).open(path);
    file.unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// One process. A later process with the same id is a different one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    started: u64,
    name: String,
}

impl Process {
    /// Finds a process. `None` if there is none, or only a zombie.
    pub(crate) fn of(pid: u32) -> Option<Process> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name may contain any character, so it ends with the last parenthesis.
        let (name, rest) = text.rsplit_once(')')?;
        let (_, name) = name.split_once('(')?;
        let mut fields = rest.split_whitespace();
        if matches!(fields.next()?, "Z" | "X") {
            return None;
        }
        Some(Process {
            pid,
            // The start time is field 22 of the line, and the state above is field 3.
            started: fields.nth(18)?.parse().ok()?,
            name: name.to_owned(),
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn is_alive(&self) -> bool {
        Process::of(self.pid).is_some_and(|now| now.started == self.started)
    }
}

/// Gives the signals that end a process their default action in the command's process. If these
/// tests run as a background job of a shell, they ignore SIGINT and SIGQUIT, and their children
/// inherit that.
pub(crate) fn obeys_signals(command: &mut Command) {
    unsafe extern "C" {
        fn signal(signal: c_int, handler: usize) -> usize;
    }
    const SIG_DFL: usize = 0;
    let to_default = || {
        for number in [1, 2, 3, 15] {
            // SAFETY: `signal` is async-signal-safe, and SIG_DFL installs no handler.
            unsafe { signal(number, SIG_DFL) };
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure only makes system calls.
    unsafe { command.pre_exec(to_default) };
}

/// The state and the signal masks of a process that should have ended.
pub(crate) fn why_alive(pid: u32) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let wanted = [
        "State", "Threads", "SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt",
    ];
    let lines = status
        .lines()
        .filter(|line| wanted.iter().any(|key| line.starts_with(key)));
    lines.collect::<Vec<_>>().join("\n")
}

/// The living processes with this directory, or a path in it, in their initial environment. A
/// supervisor has the environment of the test process, from which it was forked.
pub(crate) fn marked(dir: &Path) -> Vec<u32> {
    let me = std::process::id();
    let dir = dir.as_os_str().as_bytes();
    let mut pids = all_pids();
    pids.retain(|&pid| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        // A longer name does not match: `/tmp/mkt-7-1` is not `/tmp/mkt-7-12`.
        let found = environment.split(|byte| *byte == 0).any(|entry| {
            let at = entry.windows(dir.len()).position(|part| part == dir);
            at.is_some_and(|at| matches!(entry.get(at + dir.len()), None | Some(b'/' | b' ')))
        });
        found && pid != me && alive(pid)
    });
    pids
}

/// All files and directories of mirakuru under this directory, except for kept logs and for the
/// locks of ports and paths.
pub(crate) fn service_dirs(temp: &Path) -> Vec<String> {
    in_the_base(temp, false)
}

/// The service directories that hold nothing but a log.
pub(crate) fn kept_logs(temp: &Path) -> Vec<String> {
    in_the_base(temp, true)
}

fn in_the_base(temp: &Path, kept: bool) -> Vec<String> {
    let mut found = Vec::new();
    for base in fs::read_dir(temp).into_iter().flatten().flatten() {
        if !base.file_name().to_string_lossy().starts_with("mirakuru-") {
            continue;
        }
        for entry in fs::read_dir(base.path()).into_iter().flatten().flatten() {
            // `locks` and `kept-logs` belong to mirakuru, not to a service.
            let is_own = entry.file_name() == "locks" || entry.file_name() == "kept-logs";
            if !is_own && is_kept_log(&entry.path()) == kept {
                found.push(entry.path().display().to_string());
            }
        }
    }
    found
}

/// Whether a service's directory holds a kept log and nothing else.
pub(crate) fn is_kept_log(dir: &Path) -> bool {
    let entries: Vec<_> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    let is_log = |name: &std::ffi::OsString| {
        let name = name.to_string_lossy();
        ["kept", "log"].contains(&&*name) || name.starts_with("log.")
    };
    entries.iter().any(|name| name == "kept") && entries.iter().all(is_log)
}
