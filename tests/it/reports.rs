//! Compares an error's report with the expected text, without the parts that differ from run to
//! run.

use std::time::Duration;

use crate::common::error_of;
use mirakuru::{Error, ExecutorBuilder, Readiness};

/// The timeout error of a start. The report must contain a line with `printed`, which the service
/// prints last. If it does not, a busy machine was too slow, and the next start has more time.
#[track_caller]
pub(crate) fn timed_out<R: Readiness + Clone>(recipe: &ExecutorBuilder<R>, printed: &str) -> Error {
    let has_printed = |error: &Error| match error {
        Error::Timeout { evidence, .. } => evidence.tail.iter().any(|line| line.contains(printed)),
        _ => false,
    };
    timed_out_when(recipe, has_printed)
}

/// Starts the service with increasing timeouts until `done` returns `true` for the timeout error.
/// Returns that error.
#[track_caller]
pub(crate) fn timed_out_when<R: Readiness + Clone>(
    recipe: &ExecutorBuilder<R>,
    done: impl Fn(&Error) -> bool,
) -> Error {
    let mut times = [500, 2_500, 20_000].map(Duration::from_millis).into_iter();
    loop {
        let time = times.next().expect("it has never come so far");
        let error = start(recipe.clone().timeout(time));
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
        if done(&error) {
            return error;
        }
    }
}

/// An error's report, with times replaced by `[time]` and the log's path by `[log]`.
pub(crate) fn report(error: &Error) -> String {
    let text = error.to_string();
    println!("{text}\n");
    assert_eq!(format!("{error:?}"), text, "`unwrap` shows the same");
    assert!(text.lines().all(|line| line.trim_end() == line), "{text:?}");
    normal(&text)
}

pub(crate) fn normal(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(normal_line).collect();
    lines.join("\n")
}

pub(crate) fn normal_line(line: &str) -> String {
    let mut words: Vec<String> = line.split(' ').map(str::to_owned).collect();
    for at in 0..words.len() {
        let unit = words.get(at + 1).cloned().unwrap_or_default();
        let unit = unit.trim_end_matches([',', ':', ';', ')']);
        if words[at].parse::<f64>().is_ok() && ["µs", "ms", "s", "min", "h"].contains(&unit) {
            let rest = words[at + 1][unit.len()..].to_owned();
            words[at] = format!("[time]{rest}");
            words[at + 1] = "\0".to_owned();
        } else if words[at].starts_with('/')
            && words[at].contains("/mirakuru-")
            && words[at].ends_with("/log")
        {
            words[at] = "[log]".to_owned();
        }
    }
    words.retain(|word| word != "\0");
    words.join(" ")
}

/// Compares a report with the expected text, in which a line `..` stands for any number of lines.
#[track_caller]
pub(crate) fn reads(error: &Error, expected: &str) {
    let text = report(error);
    let mut lines = text.lines();
    let mut gap = false;
    for wanted in expected.lines() {
        if wanted.trim() == ".." {
            gap = true;
            continue;
        }
        let found = if gap {
            lines.any(|line| line == wanted)
        } else {
            lines.next() == Some(wanted)
        };
        assert!(
            found,
            "no line `{wanted}` where it is to be in\n{text}\nwhich is to read\n{expected}"
        );
        gap = false;
    }
    assert!(gap || lines.next().is_none(), "more than\n{expected}\nin\n{text}");
}

pub(crate) fn start<R: Readiness>(recipe: ExecutorBuilder<R>) -> Error {
    error_of(recipe.start())
}
