//! Reports a slow start: the condition it waits for, the time so far, and the last line of the
//! service's output.
//!
//! The first report comes after two seconds. On a terminal, a single line is rewritten every second
//! and removed at the end. Elsewhere, as in CI, each report is a new line, and the pauses between
//! reports grow to 30 seconds. Reports bypass the output capture of the test harness, which would
//! show them only at the end. `MIRAKURU_QUIET=1` turns them off.
//!
//! No thread is needed, because each wait calls this code between its polls. All waits share one
//! line of the terminal, which shows the longest of them.

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use once_cell::sync::Lazy;

use crate::error::text::Span;
use crate::sys;
use crate::util::say::{is_quiet, say};
use crate::util::text::printable;

/// The time from the start of a wait to its first report.
const FIRST: Duration = Duration::from_secs(2);
/// The times of the first reports if standard error is not a terminal. After that, a report is due
/// every 30 seconds.
const PLAIN: [Duration; 3] = [FIRST, Duration::from_secs(10), Duration::from_secs(30)];
/// The pause between two updates of the line on a terminal.
const REWRITTEN: Duration = Duration::from_secs(1);
/// The maximum length of another program's text, in characters.
const TEXT: usize = 120;
/// The width in columns to use if the terminal does not report its own.
const WIDTH: usize = 80;

/// A wait that may take long. Dropping it removes its line from the terminal.
#[derive(Debug)]
pub(crate) struct Progress {
    began: Instant,
    /// The number of reports that have been printed or skipped.
    told: u32,
    /// The key of the wait's text on the [`Board`]. `None` until the first report on a terminal.
    id: Option<u64>,
}

impl Progress {
    pub(crate) fn new() -> Progress {
        Progress {
            began: Instant::now(),
            told: 0,
            id: None,
        }
    }

    /// Time until the next report.
    pub(crate) fn patience(&self) -> Duration {
        if is_quiet() {
            return Duration::MAX;
        }
        next(self.told, terminal().is_some()).saturating_sub(self.began.elapsed())
    }

    /// Prints the state of the wait, if a report is due. `text` gets the time that the wait has
    /// taken, and returns the line without the prefix "mirakuru: ".
    pub(crate) fn tell(&mut self, text: &dyn Fn(&dyn std::fmt::Display) -> String) {
        if !self.patience().is_zero() {
            return;
        }
        let elapsed = self.began.elapsed();
        // Skips overdue reports, for example after the machine has slept.
        while next(self.told, terminal().is_some()) <= elapsed {
            self.told = self.told.saturating_add(1);
        }
        let elapsed = Duration::from_secs(elapsed.as_secs());
        let text = text(&Span(elapsed));
        match terminal() {
            None => say(&text),
            Some(_) => {
                let id = *self.id.get_or_insert_with(new_id);
                board().put(id, text);
            }
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            board().remove(id);
        }
    }
}

/// The time of the next report, counted from the start of the wait, after `told` reports.
fn next(told: u32, rewritten: bool) -> Duration {
    if rewritten {
        return FIRST + REWRITTEN * told;
    }
    let last = PLAIN[PLAIN.len() - 1];
    match PLAIN.get(told as usize) {
        Some(at) => *at,
        None => last * (told + 2 - PLAIN.len() as u32),
    }
}

/// The descriptions of the waits in progress, the longest wait first. The terminal shows the first
/// one.
#[derive(Default)]
struct Board {
    texts: Vec<(u64, String)>,
    shown: bool,
}

impl Board {
    fn put(&mut self, id: u64, text: String) {
        match self.texts.iter_mut().find(|(known, _)| *known == id) {
            Some((_, old)) => *old = text,
            None => self.texts.push((id, text)),
        }
        self.draw();
    }

    fn remove(&mut self, id: u64) {
        self.texts.retain(|(known, _)| *known != id);
        self.draw();
    }

    fn draw(&mut self) {
        let width = terminal().flatten().map_or(WIDTH, usize::from);
        let text = match self.texts.as_slice() {
            [] if !self.shown => return,
            // Moves the cursor to the beginning of the line and erases the line.
            [] => "\r\u{1b}[2K".to_owned(),
            [(_, text), rest @ ..] => format!("\r\u{1b}[2K{}", line(text, rest.len(), width)),
        };
        self.shown = !self.texts.is_empty();
        let mut stderr = io::stderr().lock();
        let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
    }
}

/// Truncates the text to the width of the terminal. If a longer text wrapped, rewriting it would
/// erase only its last line.
fn line(text: &str, others: usize, width: usize) -> String {
    let others = match others {
        0 => String::new(),
        n => format!(" (and {n} more)"),
    };
    let room = width.saturating_sub(others.len() + "mirakuru: ".len() + 1);
    let mut shown: String = text.chars().take(room).collect();
    if shown.len() < text.len() {
        shown.pop();
        shown.push('\u{2026}');
    }
    format!("mirakuru: {shown}{others}")
}

/// Makes the text of another program displayable, and truncates it.
pub(crate) fn short(text: &str) -> String {
    printable(text, TEXT)
}

fn board() -> MutexGuard<'static, Board> {
    static BOARD: Mutex<Board> = Mutex::new(Board {
        texts: Vec::new(),
        shown: false,
    });
    BOARD.lock().unwrap_or_else(PoisonError::into_inner)
}

fn new_id() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// The width of the terminal at standard error, if it reports one. The outer `None` means that
/// standard error is not a terminal.
fn terminal() -> Option<Option<u16>> {
    static TERMINAL: Lazy<bool> = Lazy::new(|| {
        io::stderr().is_terminal() && std::env::var_os("TERM").is_some_and(|term| term != "dumb")
    });
    TERMINAL.then(|| sys::columns(io::stderr()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_lines_become_rare() {
        let seconds: Vec<u64> = (0..6).map(|told| next(told, false).as_secs()).collect();
        assert_eq!(seconds, [2, 10, 30, 60, 90, 120]);
        let seconds: Vec<u64> = (0..4).map(|told| next(told, true).as_secs()).collect();
        assert_eq!(seconds, [2, 3, 4, 5]);
    }

    #[test]
    fn a_line_fits_the_terminal() {
        assert_eq!(line("redis: 2 s", 0, 80), "mirakuru: redis: 2 s");
        assert_eq!(line("redis: 2 s", 3, 80), "mirakuru: redis: 2 s (and 3 more)");
        let cut = line(&"ä".repeat(200), 1, 60);
        assert!(cut.chars().count() < 60, "{cut}");
        assert!(cut.ends_with("ä\u{2026} (and 1 more)"), "{cut}");
    }

    #[test]
    fn nothing_is_said_at_first() {
        let mut progress = Progress::new();
        progress.tell(&|_| panic!("too early"));
        assert!(progress.patience() > Duration::from_secs(1));
    }
}
