//! Helpers of the benchmarks.

// Each benchmark uses only a part of this file.
#![allow(dead_code)]

pub(crate) mod by_hand;
pub(crate) mod cycles;
pub(crate) mod table;

use std::env;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::processes::rss_kb;

/// The median of the samples. A sample may be negative: a tool may notice readiness before the
/// helper has taken its time stamp.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    assert!(!values.is_empty(), "nothing was measured");
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        values[middle]
    } else {
        (values[middle - 1] + values[middle]) / 2.0
    }
}

/// A time in milliseconds.
pub(crate) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Returns how much later the first time is than the second, in milliseconds.
pub(crate) fn lag(later: Duration, earlier: Duration) -> f64 {
    ms(later) - ms(earlier)
}

/// Whether to measure. `cargo bench` passes this argument; `cargo test --benches` does not.
pub(crate) fn is_asked_for() -> bool {
    env::args().any(|arg| arg == "--bench")
}

// ---- processes of their own ---------------------------------------------------------------------

/// The environment variable that tells a process its role. Some figures need a process of their
/// own, which runs this binary again.
const ROLE: &str = "MIRAKURU_BENCH_ROLE";

/// The role of this process and its argument. `None` in the process that `cargo bench` starts.
pub(crate) fn own_role() -> Option<(String, String)> {
    let role = env::var(ROLE).ok()?;
    let (name, argument) = role.split_once(' ').unwrap_or((&role, ""));
    Some((name.to_owned(), argument.to_owned()))
}

/// Creates a command that runs this binary in another role.
pub(crate) fn role(role: &str) -> Command {
    let mut command = Command::new(env::current_exe().expect("this binary"));
    command.env(ROLE, role).stderr(Stdio::inherit());
    command
}

/// Runs this binary in another role. Returns the numbers that it prints, one on each line.
pub(crate) fn ask(what: &str) -> Vec<f64> {
    let output = role(what).output().expect("this binary");
    assert!(output.status.success(), "{what}: {}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(|line| line.parse().expect("a number")).collect()
}

/// Allocates the memory that this process lacks to reach this size.
pub(crate) fn ballast(megabytes: u64) -> Vec<u8> {
    let missing = (megabytes << 20).saturating_sub(rss_kb() << 10);
    vec![1; missing as usize]
}
