//! Shows the output of running services if `MIRAKURU_LIVE=1` is set, even if the test harness or
//! nextest captures the output of tests.
//!
//! One thread reads the logs of all services. If several processes use a shared service, only the
//! process that holds the lock on the service's log prints its output.

use std::fs::File;
use std::hash::Hasher;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use once_cell::sync::Lazy;

use crate::error::report::is_set;
use crate::output::logs::left_out;
use crate::output::reader::{Cursor, OutputReader, Piece};
use crate::sys;
use crate::util::hash::Fnv1a;
use crate::util::settings::{LIVE, is_on};
use crate::util::text::printable;
use crate::util::thread;

/// Pause between two reads of the logs.
const INTERVAL: Duration = Duration::from_millis(20);
/// Maximum length of a printed line, in characters. Longer lines are cut.
const LONGEST: usize = 2_000;
/// ANSI codes of the colours for service names.
const COLOURS: [u8; 6] = [36, 33, 32, 35, 34, 31];

/// A service whose output is shown.
struct Followed {
    name: String,
    log: PathBuf,
    reader: OutputReader,
    cursor: Cursor,
    /// The unfinished lines of standard output and standard error.
    open: [Vec<u8>; 2],
    /// The lock on the log, if this process holds it.
    lock: Option<File>,
}

static FOLLOWED: Mutex<Vec<Followed>> = Mutex::new(Vec::new());

/// Shows the output of a service if `MIRAKURU_LIVE` is set. If `all` is false, skips output from
/// before this call. A second call for the same log does nothing.
pub(crate) fn follow(name: &str, log: &Path, index: &Path, all: bool) {
    static WANTED: Lazy<bool> = Lazy::new(|| is_on(LIVE));
    if !*WANTED {
        return;
    }
    let mut followed = FOLLOWED.lock().unwrap_or_else(PoisonError::into_inner);
    if followed.iter().any(|service| service.log == log) {
        return;
    }
    let Ok(reader) = OutputReader::open(log, index) else {
        return;
    };
    followed.push(Followed {
        name: name.to_owned(),
        log: log.to_owned(),
        cursor: if all { Cursor::START } else { reader.end() },
        reader,
        open: Default::default(),
        lock: None,
    });
    static THREAD: Lazy<bool> = Lazy::new(|| {
        let read = || loop {
            sleep(INTERVAL);
            show(&|_| true);
        };
        thread::spawn("mirakuru-live", Box::new(read)).is_ok()
    });
    let _ = *THREAD;
}

/// Shows the output that has not been shown yet. Called after the service has ended.
pub(crate) fn catch_up(log: &Path) {
    show(&|service| service.log == log);
}

/// Shows the rest of a service's output, and stops following its log. Called before the log is
/// removed.
pub(crate) fn forget(log: &Path) {
    catch_up(log);
    let mut followed = FOLLOWED.lock().unwrap_or_else(PoisonError::into_inner);
    for service in followed.iter_mut().filter(|service| service.log == log) {
        let rest: Vec<u8> = service.open.concat();
        if !rest.is_empty() && service.lock.is_some() {
            print(&service.line(&rest));
        }
    }
    followed.retain(|service| service.log != log);
}

fn show(which: &dyn Fn(&Followed) -> bool) {
    let mut followed = FOLLOWED.lock().unwrap_or_else(PoisonError::into_inner);
    let mut text = String::new();
    for service in followed.iter_mut().filter(|service| which(service)) {
        service.read(&mut text);
    }
    if !text.is_empty() {
        print(text.trim_end_matches('\n'));
    }
}

impl Followed {
    /// Appends the new lines to `text`, or drops them if another process holds the lock on the log.
    fn read(&mut self, text: &mut String) {
        if self.lock.is_none() {
            self.lock = File::open(&self.log)
                .ok()
                .filter(|file| sys::files::try_flock(file.as_fd()).unwrap_or(false));
        }
        let mut lines = Vec::new();
        let open = &mut self.open;
        let _ = self.reader.read_pieces(&mut self.cursor, |piece, _| {
            if let Piece::LeftOut(count) = piece {
                *open = Default::default();
                lines.push(left_out(count).into_bytes());
            }
            if let Piece::Output(stream, bytes) = piece {
                let open = &mut open[stream as usize];
                for part in bytes.split_inclusive(|byte| *byte == b'\n') {
                    open.extend_from_slice(part);
                    if open.last() == Some(&b'\n') {
                        lines.push(std::mem::take(open));
                    }
                }
            }
        });
        if self.lock.is_some() {
            for line in lines {
                text.push_str(&self.line(line.trim_ascii_end()));
                text.push('\n');
            }
        }
    }

    fn line(&self, line: &[u8]) -> String {
        let line = printable(&String::from_utf8_lossy(line), LONGEST);
        match TERMINAL.colours {
            true => {
                let mut hash = Fnv1a(0);
                hash.write(self.name.as_bytes());
                let colour = COLOURS[hash.finish() as usize % COLOURS.len()];
                format!("\u{1b}[{colour}m{} |\u{1b}[0m {line}", self.name)
            }
            false => format!("{} | {line}", self.name),
        }
    }
}

/// The stream to which the output of services is printed.
struct Terminal {
    /// The standard error of nextest, if nextest runs this process.
    runner: Option<File>,
    colours: bool,
}

static TERMINAL: Lazy<Terminal> = Lazy::new(|| {
    let runner = match is_on("NEXTEST") {
        true => sys::proc::stderr_of(std::os::unix::process::parent_id()).ok(),
        false => None,
    };
    let is_terminal = match &runner {
        Some(file) => file.is_terminal(),
        None => io::stderr().is_terminal(),
    };
    Terminal {
        runner,
        colours: is_terminal && !is_set("NO_COLOR"),
    }
});

/// Prints text in a single write, even if the output of tests is captured.
pub(crate) fn print(text: &str) {
    let text = format!("{text}\n");
    let _ = match &TERMINAL.runner {
        Some(file) => { file }.write_all(text.as_bytes()),
        None => io::stderr().lock().write_all(text.as_bytes()),
    };
}
