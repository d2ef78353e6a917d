//! Records how a test run spends its time. With `MIRAKURU_TIMELINE=path.html`, the records become a
//! web page. With `path.json`, they become a trace in Chrome's format, which
//! [Perfetto](https://ui.perfetto.dev) opens.
//!
//! ```text
//!   test A ──┐  one write(2) an event                        read, understood, written beside it
//!   test B ──┼───────────────────────▶ RUN-DIR/timeline-HASH ───────────────────────────────────▶ path.html
//!   test C ──┘  O_APPEND, a line                             and renamed: always whole
//! ```
//!
//! All processes of a run append to one file, which is in the run's private directory and is
//! removed with it. A process that belongs to no run counts as a run of its own. If a process finds
//! that the page is more than a second old, it writes the page again. The last live process also
//! writes the page when it exits, because no other process may follow. If a process is killed, its
//! events of the last second may be missing, unless another process of the run writes the page
//! later.
//!
//! Times are in ns of CLOCK_MONOTONIC, which is the same for all processes. If the variable is not
//! set, each call only reads a static.
//!
//! [`model`](crate::timeline::model) interprets the events, and finds the critical path.

use std::cell::Cell;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use once_cell::sync::{Lazy, OnceCell};

use crate::run::{self, Run};
use crate::service_dir;
use crate::sys::{self, Exit};
use crate::timeline::{model, render};
use crate::util::say::say;

const VARIABLE: &str = "MIRAKURU_TIMELINE";

/// The page is rewritten when it is older than this.
const FRESH: Duration = Duration::from_secs(1);
/// How long the last process waits for another one that is writing the page.
const PATIENCE: Duration = Duration::from_secs(2);
/// Waits for locks are recorded only if they take at least this long, in ns.
const NO_WAIT: u64 = 500_000;
/// The maximum number of bytes in a field, so that a whole line is shorter than PIPE_BUF.
const TEXT: usize = 600;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Page,
    Trace,
}

struct Timeline {
    target: PathBuf,
    format: Format,
    events: PathBuf,
    file: File,
    /// The file on which this process holds a shared lock until it exits: see
    /// [`make_last`](Timeline::make_last).
    alive: Mutex<Option<File>>,
    /// The private directory of a process that belongs to no run.
    own: Option<PathBuf>,
    /// The id of the process that called `introduce`. A forked child has a different id.
    introduced: AtomicU32,
}

static TIMELINE: OnceCell<Option<Timeline>> = OnceCell::new();

/// The timeline, if the user wants one and it could be opened.
fn wanted() -> Option<&'static Timeline> {
    static IS_SET: Lazy<bool> = Lazy::new(|| std::env::var_os(VARIABLE).is_some_and(|path| !path.is_empty()));
    if !*IS_SET {
        return None;
    }
    TIMELINE.get_or_init(Timeline::open).as_ref()
}

/// The current time in ns, if the user wants a timeline.
#[doc(hidden)]
pub fn timeline_now() -> Option<u64> {
    wanted().map(|_| sys::clock_ns())
}

fn format_of(path: &Path) -> Option<Format> {
    match path.extension().and_then(OsStr::to_str) {
        Some("html" | "htm") => Some(Format::Page),
        Some("json") => Some(Format::Trace),
        _ => None,
    }
}

impl Timeline {
    fn open() -> Option<Timeline> {
        let given = PathBuf::from(std::env::var_os(VARIABLE)?);
        let run = Run::current();
        // After the runner has ended, the remaining processes record nothing.
        if run::is_over() {
            return None;
        }
        let (dir, runner) = Run::dir_or_own(run);
        let base = dir.parent().unwrap_or(Path::new("/"));
        let made = service_dir::base::private_dir(base, false)
            .and_then(|()| service_dir::base::private_dir(&dir, false));
        let target = absolute(&given, runner);
        let name = format!("timeline-{:016x}", run::hash(0, &target.to_string_lossy()));
        let refuse = |reason: &str| {
            // Only one process of the run prints this.
            let told = made.is_ok() && File::create_new(dir.join(format!("{name}-refused"))).is_err();
            if !told {
                say(&format!(
                    "no timeline is written, because {VARIABLE} is `{}`: {reason}",
                    given.display()
                ));
            }
            None
        };
        let Some(format) = format_of(&target) else {
            return refuse(
                "its name must end in `.html`, for a page, or in `.json`, for a trace that Perfetto opens",
            );
        };
        match Timeline::open_in(&dir, &name, target, format, run.is_none()) {
            Ok(timeline) => Some(timeline),
            Err(error) => refuse(&error.to_string()),
        }
    }

    fn open_in(dir: &Path, name: &str, target: PathBuf, format: Format, alone: bool) -> io::Result<Timeline> {
        let parent = target.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(parent)
            .map_err(|e| io::Error::new(e.kind(), format!("`{}`: {e}", parent.display())))?;
        let events = dir.join(name);
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(sys::files::NO_FOLLOW)
            .open(&events)?;
        let alive = open_alive(&events)?;
        // `is_locked` takes the shared lock without waiting. It fails if a process that is exiting
        // holds the exclusive lock.
        let _ = sys::files::is_locked(alive.as_fd());
        sys::at_exit(at_exit);
        let timeline = Timeline {
            target,
            format,
            events,
            file,
            alive: Mutex::new(Some(alive)),
            own: alone.then(|| dir.to_owned()),
            introduced: AtomicU32::new(0),
        };
        timeline.introduce();
        Ok(timeline)
    }

    /// Appends an event as one line, with a single write.
    fn put(&self, kind: char, at: u64, thread: u32, fields: &[&str]) {
        let pid = std::process::id();
        if self.introduced.load(Ordering::Relaxed) != pid {
            // This process was forked from the one that called `introduce`.
            self.introduce();
        }
        self.write(&line(kind, pid, at, thread, fields));
    }

    /// Writes the event that describes this process, before any other event of the process.
    fn introduce(&self) {
        let (pid, started) = service_dir::this_process();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let program = std::env::current_exe().ok();
        let program = program.as_deref().and_then(Path::file_name).unwrap_or_default();
        let fields = [
            &*program.to_string_lossy(),
            &started.to_string(),
            &now.as_millis().to_string(),
        ];
        self.write(&line('P', pid, sys::clock_ns(), 0, &fields));
        self.introduced.store(pid, Ordering::Relaxed);
    }

    fn write(&self, line: &str) {
        // A failed write is ignored: if the disk is full, the timeline is incomplete.
        let _ = (&self.file).write_all(line.as_bytes());
    }

    /// Writes the page again if it is too old.
    fn refresh(&self) {
        let written = fs::metadata(&self.target).and_then(|metadata| metadata.modified());
        let age = written
            .ok()
            .and_then(|at| SystemTime::now().duration_since(at).ok());
        if age.is_none_or(|age| age > FRESH) {
            self.make(Duration::ZERO);
        }
    }

    /// Writes the page. Gives up if another process is still writing it after `patience`. Returns
    /// how many bytes of events the page covers.
    fn make(&self, patience: Duration) -> Option<u64> {
        let began = Instant::now();
        let lock = File::open(&self.events).ok()?;
        while !matches!(sys::files::try_flock(lock.as_fd()), Ok(true)) {
            if began.elapsed() >= patience {
                return None;
            }
            thread::sleep(Duration::from_millis(1));
        }
        let events = fs::read(&self.events).ok()?;
        let run = model::Run::of(&String::from_utf8_lossy(&events), service_dir::is_alive);
        let text = match self.format {
            Format::Page => render::page(&run),
            Format::Trace => render::trace(&run),
        };
        let name = self.target.file_name().unwrap_or_default().to_string_lossy();
        let staged = self
            .target
            .with_file_name(format!(".{name}.{}", std::process::id()));
        if fs::write(&staged, text)
            .and_then(|()| fs::rename(&staged, &self.target))
            .is_err()
        {
            let _ = fs::remove_file(&staged);
            return None;
        }
        Some(events.len() as u64)
    }

    fn end(&self) {
        let ended = sys::clock_ns();
        let began = sys::exit_began().unwrap_or(ended);
        self.put('X', began, 0, &[&ended.to_string()]);
        self.make_last();
        if let Some(dir) = &self.own {
            let _ = fs::remove_dir_all(dir);
        }
    }

    /// Writes the page, unless other processes are still alive. Each live process holds a shared
    /// lock, so a process that gets the exclusive lock is the last.
    ///
    /// No event is lost, because each process appends all of its events before it tries to get the
    /// lock:
    ///
    /// - If another process holds a shared lock, that process will call this function later. (If
    ///   two processes try at the same time, each gives up its shared lock, so one succeeds.)
    /// - If another process holds the exclusive lock, it releases the lock, and then checks once
    ///   more for new events.
    fn make_last(&self) {
        // `try_lock` never waits. If another thread holds the mutex, that thread does the work.
        let Some(mut alive) = self.alive.try_lock().ok().and_then(|mut alive| alive.take()) else {
            return;
        };
        let began = Instant::now();
        let is_news = |made| fs::metadata(&self.events).is_ok_and(|events| Some(events.len()) != made);
        let mut made = None;
        while matches!(sys::files::try_flock(alive.as_fd()), Ok(true)) {
            if is_news(made) {
                // The lock is shared again during this write, so that processes that start now can
                // take it as well.
                let _ = sys::files::is_locked(alive.as_fd());
                made = self.make(PATIENCE);
                if made.is_none() || began.elapsed() > PATIENCE {
                    return;
                }
                continue;
            }
            drop(alive);
            match open_alive(&self.events) {
                Ok(again) if is_news(made) => alive = again,
                _ => return,
            }
        }
        self.refresh();
    }
}

/// Opens the file on which all live processes of a run hold a shared lock.
fn open_alive(events: &Path) -> io::Result<File> {
    sys::files::open_lock(&events.with_extension("alive"), true)
}

/// Runs when the process exits normally, after its services have been stopped.
extern "C" fn at_exit() {
    // `get` does not wait, because another thread may be opening the timeline at this moment. A
    // panic must not cross the C boundary.
    let _ = std::panic::catch_unwind(|| {
        let ours = |timeline: &&Timeline| timeline.introduced.load(Ordering::Relaxed) == std::process::id();
        if let Some(timeline) = TIMELINE.get().and_then(Option::as_ref).filter(ours) {
            timeline.end();
        }
    });
}

/// Resolves a relative path against the directory in which the runner was started. Tests themselves
/// run in the directory of their package.
fn absolute(path: &Path, runner: u32) -> PathBuf {
    let dir = match path.is_absolute() {
        true => None,
        false => crate::sys::procfs::current_dir(runner),
    };
    let dir = dir.or_else(|| std::env::current_dir().ok());
    dir.unwrap_or_default().join(path)
}

/// Formats an event as a line: its kind, the process, the time, the thread, and further fields.
fn line(kind: char, pid: u32, at: u64, thread: u32, fields: &[&str]) -> String {
    let mut line = format!("{kind}\t{pid}\t{at}\t{thread}");
    for field in fields {
        line.push('\t');
        let short = match field.len() > TEXT {
            true => field.get(..char_boundary(field)).unwrap_or_default(),
            false => field,
        };
        // Control characters are replaced, because tabs separate fields, and newlines separate
        // events.
        line.extend(short.chars().map(|c| if c.is_control() { ' ' } else { c }));
        if short.len() < field.len() {
            line.push('…');
        }
    }
    line.push('\n');
    line
}

/// The last character boundary within [`TEXT`] bytes.
fn char_boundary(text: &str) -> usize {
    (0..=TEXT)
        .rev()
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(0)
}

// ---- threads ------------------------------------------------------------------------------------

/// A thread that has used a service: usually a test. When the thread ends, the test has ended.
struct Thread {
    number: Cell<u32>,
}

impl Thread {
    /// The number of this thread in this process. The first call also records the thread's name.
    fn number(&self, timeline: &Timeline) -> u32 {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        if self.number.get() == 0 {
            self.number.set(NEXT.fetch_add(1, Ordering::Relaxed));
            let thread = thread::current();
            let name = thread.name().unwrap_or_default();
            timeline.put('T', sys::clock_ns(), self.number.get(), &[name]);
        }
        self.number.get()
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        if let Some(timeline) = TIMELINE.get().and_then(Option::as_ref) {
            if self.number.get() != 0 {
                timeline.put('E', sys::clock_ns(), self.number.get(), &[]);
            }
        }
    }
}

thread_local! {
    static THREAD: Thread = const { Thread { number: Cell::new(0) } };
}

fn put(timeline: &Timeline, kind: char, at: u64, fields: &[&str]) {
    // While a thread is ending, its `THREAD` may already be destroyed.
    let number = THREAD.try_with(|thread| thread.number(timeline)).unwrap_or(0);
    timeline.put(kind, at, number, fields);
}

// ---- what happens -------------------------------------------------------------------------------

/// Records that a test begins on this thread.
pub(crate) fn test_begins() {
    if let Some(timeline) = wanted() {
        put(timeline, 'N', sys::clock_ns(), &[]);
    }
}

/// Records that the services with these ids waited for fixed ports and paths.
pub(crate) fn endpoint_lock(began: Option<u64>, ids: &[String]) {
    let (Some(timeline), Some(began)) = (wanted(), began) else {
        return;
    };
    let now = sys::clock_ns();
    if now.saturating_sub(began) >= NO_WAIT {
        put(timeline, 'W', began, &[&now.to_string(), &ids.join(" ")]);
    }
}

/// Records that a service with these endpoints is about to start.
pub(crate) fn begins(id: &str, name: &str, command: &str, endpoints: impl FnOnce() -> Vec<String>) {
    if let Some(timeline) = wanted() {
        let endpoints = endpoints().join(" ");
        put(timeline, 'B', sys::clock_ns(), &[id, name, command, &endpoints]);
    }
}

/// Records that the service's program was executed.
pub(crate) fn spawned(id: &str, pid: u32) {
    if let Some(timeline) = wanted() {
        put(timeline, 'S', sys::clock_ns(), &[id, &pid.to_string()]);
    }
}

/// Records that the service is ready.
pub(crate) fn ready(id: &str) {
    if let Some(timeline) = wanted() {
        put(timeline, 'R', sys::clock_ns(), &[id]);
        timeline.refresh();
    }
}

/// Records a failed start, with the first line of the error's report.
pub(crate) fn failed(id: &str, error: impl FnOnce() -> String) {
    if let Some(timeline) = wanted() {
        let error = error();
        put(
            timeline,
            'F',
            sys::clock_ns(),
            &[id, error.lines().next().unwrap_or_default()],
        );
        timeline.refresh();
    }
}

/// Records that the service now belongs to the run.
pub(crate) fn published(id: &str) {
    if let Some(timeline) = wanted() {
        put(timeline, 'L', sys::clock_ns(), &[id]);
    }
}

/// Records that this process has waited for a service of the run and attached to it.
pub(crate) fn attached(began: Option<u64>, id: &str, name: &str, command: &str) {
    if let (Some(timeline), Some(began)) = (wanted(), began) {
        put(
            timeline,
            'A',
            began,
            &[&sys::clock_ns().to_string(), id, name, command],
        );
        timeline.refresh();
    }
}

/// Records that this thread has waited for a service that another thread of this process started.
pub(crate) fn waited(began: u64, id: &str) {
    if let Some(timeline) = wanted() {
        put(timeline, 'V', began, &[&sys::clock_ns().to_string(), id]);
    }
}

/// Records that the test on this thread has been using the service since this time.
pub(crate) fn used(since: u64, id: &str) {
    if let Some(timeline) = wanted() {
        put(timeline, 'U', since, &[id]);
        timeline.refresh();
    }
}

/// Records that the service is about to be stopped.
pub(crate) fn stops(id: &str) {
    if let Some(timeline) = wanted() {
        put(timeline, 'K', sys::clock_ns(), &[id]);
    }
}

/// Records that no process of the service is left.
pub(crate) fn gone(id: &str, exit: Option<Exit>) {
    if let Some(timeline) = wanted() {
        let mut at = String::new();
        let mut status = String::new();
        if let Some(exit) = exit {
            let _ = write!(at, "{}", exit.at);
            let _ = write!(status, "{}", crate::error::text::Ended(exit.status));
        }
        put(timeline, 'G', sys::clock_ns(), &[id, &at, &status]);
        timeline.refresh();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_name_says_what_it_is() {
        assert_eq!(format_of(Path::new("/a/b.html")), Some(Format::Page));
        assert_eq!(format_of(Path::new("b.json")), Some(Format::Trace));
        for other in ["b", "b.txt", "html", ".html", "b.html.gz", ""] {
            assert_eq!(format_of(Path::new(other)), None, "{other}");
        }
    }

    #[test]
    fn a_relative_path_is_relative_to_the_runner() {
        let here = std::env::current_dir().unwrap();
        assert_eq!(absolute(Path::new("/x.html"), 0), Path::new("/x.html"));
        assert_eq!(
            absolute(Path::new("x.html"), std::process::id()),
            here.join("x.html")
        );
        assert_eq!(absolute(Path::new("x.html"), 0), here.join("x.html"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn an_event_is_one_short_line_whatever_is_in_it(
            fields in proptest::collection::vec(".*|[\\PC\n\t]{900}", 0..4)
        ) {
            let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
            let line = line('B', u32::MAX, u64::MAX, u32::MAX, &fields);
            prop_assert!(line.len() < 4096);
            prop_assert_eq!(line.matches('\n').count(), 1);
            prop_assert!(line.ends_with('\n'));
            prop_assert_eq!(line.matches('\t').count(), 3 + fields.len());
        }
    }
}
