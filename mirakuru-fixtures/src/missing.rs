//! Decides whether a test whose service is missing fails or is skipped, and reports skipped tests.
//!
//! If nobody notices that a test is skipped, it may not run for months. So each skip is reported in
//! three places: in the output of the test, in a summary at the end, and in a file that programs
//! can read.
//!
//! ```text
//! cargo test            the summary is written when the test binary ends, after "test result"
//! cargo nextest run     each test is a process of its own, whose output is captured. A service of
//!                       the run, the *writer*, holds the runner's standard error, and writes the
//!                       summary there when the runner ends
//! <run's directory>/skipped          the skipped tests, one a line
//! <run's directory>/summary          the summary that the writer prints
//! <build directory>/mirakuru/skipped.tsv   the same list, for programs
//! ```

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use mirakuru_core::__private::{
    MISSING, Run, append_to_stderr_of, at_exit, locked, make_run_dir, skipped_list,
};
use mirakuru_core::{Banner, Error, Executor, Missing, OutputExecutor};
use once_cell::sync::OnceCell;

use crate::start::{Scope, start_shared};

/// The script of the writer, a process that gets SIGTERM when the run ends, and then prints the
/// summary. The writer opens the summary's file when it starts, because another process may remove
/// the file later. The shell's messages about its own child are discarded.
const WRITER: &str = r#"exec 3<"$1" 4>&2 2>/dev/null
trap 'cat <&3 >&4; exit 0' TERM
echo kept
while :; do sleep 3600 & wait $!; done"#;

/// If the test is skipped because of this error, returns the missing program or feature.
pub(crate) fn skips(error: &Error) -> Option<&Missing> {
    let missing = error.missing()?;
    decide(missing).is_ok().then_some(missing)
}

/// If a skip was requested but the test fails, returns a note with the reason, for the end of the
/// report.
pub(crate) fn why_not_skipped(error: &Error) -> String {
    let reason = error
        .missing()
        .and_then(|missing| decide(missing).err().flatten());
    reason.map_or_else(String::new, |reason| {
        format!("\n  (it is not skipped, because {reason})")
    })
}

/// Returns `Ok` if the test is skipped. Otherwise returns the reason why a requested skip is
/// refused, or `None` if no skip was requested.
fn decide(missing: &Missing) -> Result<(), Option<String>> {
    let variable = |name| std::env::var(name).unwrap_or_default();
    let (given, ci) = (variable(MISSING), variable("CI"));
    let optional = missing.__is_optional();
    match &*given {
        "" if !optional => return Err(None),
        "" | "skip" => {}
        "fail" => return Err(optional.then(|| format!("{MISSING} is `fail`"))),
        _ => {
            let reason = format!("{MISSING} is `{given}`, which is not known: write `skip` or `fail`");
            return Err(Some(reason));
        }
    }
    match &*ci {
        "" | "0" | "false" => Ok(()),
        _ => Err(Some(format!("CI is `{ci}`"))),
    }
}

#[derive(Debug, PartialEq)]
struct Skipped {
    test: String,
    what: String,
    install: String,
}

impl Skipped {
    fn of(missing: &Missing) -> Skipped {
        // Nextest runs the test on the main thread, and passes its name in a variable.
        let by_nextest = std::env::var("NEXTEST_TEST_NAME").ok();
        let test = by_nextest.or_else(|| thread::current().name().map(str::to_owned));
        Skipped {
            test: format!("{} {}", binary(), test.unwrap_or_default()),
            what: missing.what.clone(),
            install: missing.install.clone().unwrap_or_default(),
        }
    }

    fn line(&self) -> String {
        let line = |field: &str| field.replace(['\t', '\n'], " ");
        let (test, what, install) = (line(&self.test), line(&self.what), line(&self.install));
        format!("{test}\t{what}\t{install}\n")
    }

    fn parse(line: &str) -> Option<Skipped> {
        let mut fields = line.split('\t').map(str::to_owned);
        Some(Skipped {
            test: fields.next()?,
            what: fields.next()?,
            install: fields.next()?,
        })
    }
}

/// The name of this test binary, without cargo's hash.
fn binary() -> String {
    let exe = std::env::current_exe().ok();
    let name = exe.as_deref().and_then(Path::file_stem).unwrap_or_default();
    let name = name.to_string_lossy().into_owned();
    match name.rsplit_once('-') {
        Some((name, hash)) if hash.len() == 16 => name.to_owned(),
        _ => name,
    }
}

/// Adds this skipped test to the summary and to the machine-readable list. Returns the text for the
/// test's output.
pub(crate) fn skip(missing: &Missing) -> String {
    let install = missing
        .install
        .as_ref()
        .map(|install| format!("; install it with `{install}`"));
    let text = format!(
        "mirakuru: this test is skipped, because {} is not on this machine{}",
        missing.what,
        install.unwrap_or_default()
    );
    let skipped = Skipped::of(missing);
    let list = skipped_list();
    // A failed write is ignored, because the test's output also reports the skip.
    if let Some((path, head)) = &list {
        let _ = for_programs(path, head, &skipped);
    }
    let kept = std::env::var_os("NEXTEST").is_some()
        && Run::current().is_some_and(|run| keep(run, &skipped).is_ok());
    if !kept {
        at_end_of_process(skipped);
    }
    text
}

/// Adds a line to the machine-readable list. If the list is from an earlier run, replaces it.
fn for_programs(path: &Path, head: &str, skipped: &Skipped) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let file = options.read(true).append(true).create(true).open(path)?;
    locked(&file, || {
        let mut text = String::new();
        (&file).read_to_string(&mut text)?;
        let mut new = String::new();
        if text.lines().next() != Some(head) {
            file.set_len(0)?;
            new = format!("{head}\n");
        }
        (&file).write_all((new + &skipped.line()).as_bytes())
    })
}

/// Passes a skipped test to the writer, which is started if necessary.
fn keep(run: &'static Run, skipped: &Skipped) -> Result<(), Error> {
    static HELD: OnceCell<OutputExecutor> = OnceCell::new();
    let failed = |e: io::Error| Error::other("record that a test was skipped", e);
    let (dir, runner) = make_run_dir(run).map_err(failed)?;
    let summary = dir.join("summary");
    let note = || -> io::Result<()> {
        let mut options = OpenOptions::new();
        let list = options
            .read(true)
            .append(true)
            .create(true)
            .open(dir.join("skipped"))?;
        locked(&list, || {
            let mut text = String::new();
            (&list).read_to_string(&mut text)?;
            (&list).write_all(skipped.line().as_bytes())?;
            text += &skipped.line();
            let mut all = Vec::new();
            let mut seen = HashSet::new();
            for line in text.lines() {
                if seen.insert(line.to_owned()) {
                    all.extend(Skipped::parse(line));
                }
            }
            // The file is overwritten in place, because the writer has it open and would never read
            // a new one.
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(false).open(&summary)?;
            let text = format!("\n{}", self::summary(&all));
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(text.as_bytes())
        })
    };
    note().map_err(failed)?;
    HELD.get_or_try_init(|| {
        let stderr: File = append_to_stderr_of(runner).map_err(failed)?;
        let writer = Executor::builder(WRITER)
            .shell(true)
            .arg(&summary)
            .name("mirakuru-skipped")
            .current_dir("/")
            .stderr(stderr)
            .wait_for(Banner::matching("^kept$").stdout());
        start_shared(Scope::Run, |system| {
            let slot = system.service("", true, writer);
            move || slot.take()
        })
    })?;
    Ok(())
}

/// The skipped tests of this process.
static SKIPPED: Mutex<Vec<Skipped>> = Mutex::new(Vec::new());

fn at_end_of_process(skipped: Skipped) {
    static ASKED: AtomicBool = AtomicBool::new(false);
    extern "C" fn tell() {
        // `try_lock`, because the thread that holds the lock may never release it.
        if let Ok(skipped) = SKIPPED.try_lock() {
            let _ = io::stderr().write_all(summary(&skipped).as_bytes());
        }
    }
    let mut all = SKIPPED.lock().unwrap_or_else(PoisonError::into_inner);
    if !all.contains(&skipped) {
        all.push(skipped);
    }
    drop(all);
    if !ASKED.swap(true, Ordering::SeqCst) {
        at_exit(tell);
    }
}

/// Returns the summary. The skips are grouped by the missing program or feature, the largest group
/// first.
fn summary(all: &[Skipped]) -> String {
    let mut tests = HashSet::new();
    let mut by_cause: Vec<(String, usize)> = Vec::new();
    for Skipped { test, what, install } in all {
        tests.insert(test.clone());
        let cause = match &**install {
            "" => what.clone(),
            _ => format!("{what}\0{install}"),
        };
        match by_cause.binary_search_by(|(known, _)| known.cmp(&cause)) {
            Ok(at) => by_cause[at].1 += 1,
            Err(at) => by_cause.insert(at, (cause, 1)),
        }
    }
    let (count, were) = match tests.len() {
        1 => ("1 test".to_owned(), "was"),
        n => (format!("{n} tests"), "were"),
    };
    let mut text = format!("mirakuru: {count} {were} skipped, because something is not on this machine:\n");
    for often in (1..=all.len()).rev() {
        for (cause, count) in &by_cause {
            if *count == often {
                let _ = writeln!(text, "  {count} for {}", cause.replace('\0', ": "));
            }
        }
    }
    if let Some((path, _)) = skipped_list().filter(|(path, _)| fs::exists(path).unwrap_or(false)) {
        let _ = writeln!(text, "  (the list is in {})", path.display());
    }
    text
}

/// Provides the return value of a skipped test.
pub struct Skip<T>(pub std::marker::PhantomData<fn() -> T>);

impl Skip<()> {
    /// Returns the value of a passing test.
    pub fn value(self) {}
}

impl<T: Default, E> Skip<Result<T, E>> {
    /// Returns the value of a passing test.
    ///
    /// # Errors
    ///
    /// Never fails.
    pub fn value(self) -> Result<T, E> {
        Ok(T::default())
    }
}

impl Skip<std::process::ExitCode> {
    /// Returns the value of a passing test.
    #[must_use]
    pub fn value(self) -> std::process::ExitCode {
        std::process::ExitCode::SUCCESS
    }
}

/// Provides `value` for a [`Skip`] with any other return type.
pub trait AnySkip<T> {
    /// Panics, because there is no known value of this type that means success.
    fn value(self) -> T;
}

impl<T> AnySkip<T> for Skip<T> {
    #[track_caller]
    fn value(self) -> T {
        panic!(
            "this test cannot be skipped, because mirakuru cannot create a value of `{}`; let the test \
             return nothing, a `Result` or an `ExitCode`",
            std::any::type_name::<T>()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skipped(test: &str, what: &str, install: &str) -> Skipped {
        Skipped {
            test: test.to_owned(),
            what: what.to_owned(),
            install: install.to_owned(),
        }
    }

    #[test]
    fn the_summary_counts_tests_and_causes() {
        let all = [
            skipped("a", "mariadbd", "apt-get install mariadb-server"),
            skipped("b", "own-server", ""),
            skipped("c", "own-server", ""),
        ];
        let text = summary(&all);
        let lines: Vec<&str> = text.lines().take(3).collect();
        assert_eq!(
            lines,
            [
                "mirakuru: 3 tests were skipped, because something is not on this machine:",
                "  2 for own-server",
                "  1 for mariadbd: apt-get install mariadb-server",
            ]
        );
        let tied = [
            skipped("a", "redis", "apt-get install redis"),
            skipped("b", "redis 9", ""),
            skipped("c", "redis: apt-get install redis", ""),
        ];
        let text = summary(&tied);
        let causes = text.lines().skip(1).take(3);
        let expected = [
            "redis: apt-get install redis",
            "redis 9",
            "redis: apt-get install redis",
        ];
        assert!(
            causes.eq(expected.map(|cause| format!("  1 for {cause}"))),
            "in the order of the programs, each cause by itself: {text}"
        );
        let one = [skipped("a", "mariadbd", "")];
        assert!(summary(&one).starts_with("mirakuru: 1 test was skipped,"));
    }

    #[test]
    fn a_line_of_the_list_is_read_as_it_was_written() {
        let one = skipped("suite tests::a", "PostgreSQL 17", "");
        assert_eq!(Skipped::parse(one.line().trim_end_matches('\n')), Some(one));
    }

    #[test]
    fn a_skipped_test_returns_what_passes() {
        Skip::<()>(Default::default()).value();
        let result = Skip::<Result<u8, Error>>(Default::default()).value();
        assert!(matches!(result, Ok(0)));
        let other: Result<String, _> =
            std::panic::catch_unwind(|| Skip::<String>(Default::default()).value());
        assert!(other.is_err());
    }
}
