//! Stops the services of a test that rstest's `#[timeout]` has ended.
//!
//! rstest runs the body on another thread. When the time is up, the test's thread panics, but the
//! body continues. A thread cannot be stopped from outside, but its services can. The panic hook
//! stops them on the test's thread, before the test counts as failed, so the next test does not
//! wait for their ports.
//!
//! Both threads are named after the test. The source file and the text of the panic identify a
//! time-out.

use std::panic::PanicHookInfo;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use crate::error::Error;
use crate::error::report::{HEAD_LINES, TAIL_LINES, Tail, print, shown};
use crate::outcome::shared_use;
use crate::output::reader::{Cursor, OutputReader};
use crate::run::hash;
use crate::sys;
use crate::util::settings::{KEEP, is_on};

/// A service of a test. Its output is shown if the test times out.
struct Started {
    test: u64,
    command: String,
    output: Arc<OutputReader>,
}

static STARTED: Mutex<Vec<Started>> = Mutex::new(Vec::new());
/// Ids of the tests that have timed out.
static OVER: Mutex<Vec<u64>> = Mutex::new(Vec::new());

/// The id of the test on this thread. If rstest runs the body on another thread, that thread has
/// the same id. 0 if no test is known, or if the thread is setting up a shared fixture.
pub(crate) fn this_test() -> u64 {
    let thread = thread::current();
    match thread.name() {
        // The threads of mirakuru run the code of a seed, for example.
        Some(name) if name != "main" && !name.starts_with("mirakuru-") && !shared_use::is_making() => {
            shared_use::install_hook();
            hash(0, name) | 1
        }
        _ => 0,
    }
}

/// Returns an error if the test has timed out, so that it starts no more services.
///
/// # Errors
///
/// [`Error::System`] if the test has timed out.
pub(crate) fn check(test: u64) -> Result<(), Error> {
    if test != 0 && lock(&OVER).contains(&test) {
        return Err(Error::other(
            "start a service of a test",
            "the test is over: rstest's `#[timeout]` has ended it, and its body goes on without services",
        ));
    }
    Ok(())
}

/// Records a service that was started for a test.
pub(crate) fn started(test: u64, command: &str, output: &Arc<OutputReader>) {
    let mut all = lock(&STARTED);
    // A restarted service is already in the list.
    if test == 0 || all.iter().any(|started| started.output.path == output.path) {
        return;
    }
    all.push(Started {
        test,
        command: command.to_owned(),
        output: Arc::clone(output),
    });
}

/// Removes a service whose executor has been dropped.
pub(crate) fn forget(test: u64, log: &Path) {
    if test != 0 {
        lock(&STARTED).retain(|started| started.output.path != log);
    }
}

/// If rstest's time-out caused this panic, prevents the test from starting more services, and
/// returns the test's id.
pub(super) fn note(info: &PanicHookInfo<'_>) -> Option<u64> {
    // With `MIRAKURU_KEEP`, the user wants to inspect the services of a failed test.
    if !is_timeout(info) || is_on(KEEP) {
        return None;
    }
    let test = Some(this_test()).filter(|test| *test != 0)?;
    lock(&OVER).push(test);
    Some(test)
}

/// Stops the services of a test that has timed out, and shows their output.
pub(super) fn end(test: u64) {
    sys::end_of_test(test);
    let services: Vec<Started> = {
        let mut all = lock(&STARTED);
        let (ours, others) = all.drain(..).partition(|started| started.test == test);
        *all = others;
        ours
    };
    for service in &services {
        let printed = service.output.excerpt(Cursor::START, HEAD_LINES, TAIL_LINES);
        if !printed.tail.is_empty() {
            print(shown(&Tail {
                command: &service.command,
                printed: printed.printed(&service.output.path),
                of_test: false,
            }));
        }
    }
}

fn is_timeout(info: &PanicHookInfo<'_>) -> bool {
    let file = info.location().map_or("", |location| location.file());
    let text = info.payload().downcast_ref::<String>().map_or("", String::as_str);
    file.contains("rstest")
        && file.ends_with("timeout.rs")
        && text.starts_with("Timeout ")
        && text.ends_with(" expired")
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_of_mirakuru_is_no_test() {
        assert_ne!(this_test(), 0, "the harness names this thread after the test");
        let check = || assert_eq!(this_test(), 0);
        let seed = crate::util::thread::spawn("mirakuru-seed", Box::new(check));
        seed.unwrap().join().unwrap();
    }
}
