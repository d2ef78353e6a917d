//! Lines of a log that match a pattern: [`Line`] and [`Lines`].

use std::fmt;
use std::ops::Deref;

use crate::output::logs::Logs;
use crate::readiness::line_watch::{Found, LineWatch};

/// A logged line that matches a pattern, without its line end and without escape sequences.
///
/// A `Line` dereferences to its text. [`get`](Line::get) returns the text of a named group of the
/// pattern.
///
/// ```
/// # use mirakuru_core as mirakuru;
/// use std::time::Duration;
/// use mirakuru::Executor;
///
/// let service = Executor::builder("echo 'listening on :8080, key k3y'; exec sleep 60").shell(true).build()?;
/// let mark = service.mark();
/// # let mut service = service;
/// service.start()?;
/// let line = service.wait_for_line(&mark, r"key (?<key>\w+)", Duration::from_secs(5))?;
/// assert_eq!(line.get("key"), Some("k3y"));
/// assert!(line.starts_with("listening"));
/// # Ok::<(), mirakuru_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    text: String,
    groups: Vec<(String, String)>,
}

impl Line {
    pub(super) fn new(found: &Found<'_>, names: &[String]) -> Line {
        let group = |name: &String| Some((name.clone(), found.group(name)?.to_owned()));
        Line {
            text: found.text(),
            groups: names.iter().filter_map(group).collect(),
        }
    }

    /// The text of the pattern's group `(?<name>..)`. `None` if the pattern has no such group, or
    /// if the group did not take part in the match.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        let group = self.groups.iter().find(|(known, _)| known == name);
        group.map(|(_, text)| text.as_str())
    }

    /// The whole line.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn groups(&self) -> &[(String, String)] {
        &self.groups
    }
}

impl Deref for Line {
    type Target = str;

    fn deref(&self) -> &str {
        &self.text
    }
}

impl AsRef<str> for Line {
    fn as_ref(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl PartialEq<str> for Line {
    fn eq(&self, other: &str) -> bool {
        self.text == other
    }
}

impl PartialEq<&str> for Line {
    fn eq(&self, other: &&str) -> bool {
        self.text == *other
    }
}

/// The lines of a log that match a pattern, in order. Returned by [`Logs::matching`]. This type
/// dereferences to a slice of [`Line`]s.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lines {
    pattern: String,
    lines: Vec<Line>,
}

impl Lines {
    /// Removes the lines that also match another pattern.
    ///
    /// # Panics
    ///
    /// If the pattern is not a valid regular expression.
    #[track_caller]
    pub fn except(mut self, pattern: impl AsRef<str>) -> Lines {
        let watch = watch(pattern.as_ref());
        self.lines
            .retain(|line| !watch.matches(line.as_bytes(), &mut |_| ()));
        self
    }

    /// Asserts that no line matches.
    ///
    /// ```
    /// # use mirakuru_core as mirakuru;
    /// # use mirakuru::{Banner, Executor};
    /// # let service = Executor::builder("echo 'ERROR: client gone'; echo up; exec sleep 60")
    /// #     .shell(true).wait_for(Banner::matching("up")).start()?;
    /// # let mark = service.mark();
    /// service.logs_since(&mark).matching("ERROR").except("client gone").assert_none();
    /// # service.logs().matching("ERROR").except("client gone").assert_none();
    /// # Ok::<(), mirakuru_core::Error>(())
    /// ```
    ///
    /// # Panics
    ///
    /// If any line matches. The panic message shows all matching lines.
    #[track_caller]
    pub fn assert_none(&self) {
        let count = match self.lines.len() {
            0 => return,
            1 => "a line matches".to_owned(),
            count => format!("{count} lines match"),
        };
        let lines: Vec<String> = self.lines.iter().map(|line| format!("\n  | {line}")).collect();
        panic!("{count} `{}`:{}", self.pattern, lines.concat());
    }
}

impl Deref for Lines {
    type Target = [Line];

    fn deref(&self) -> &[Line] {
        &self.lines
    }
}

impl IntoIterator for Lines {
    type Item = Line;
    type IntoIter = std::vec::IntoIter<Line>;

    fn into_iter(self) -> Self::IntoIter {
        self.lines.into_iter()
    }
}

impl<'a> IntoIterator for &'a Lines {
    type Item = &'a Line;
    type IntoIter = std::slice::Iter<'a, Line>;

    fn into_iter(self) -> Self::IntoIter {
        self.lines.iter()
    }
}

impl Logs {
    /// The [lines](Logs::lines) that match a regular expression. The rules are the same as for
    /// [`Banner`](crate::Banner).
    ///
    /// ```
    /// # use mirakuru_core as mirakuru;
    /// # use mirakuru::{Banner, Executor};
    /// let service = Executor::builder("echo job 1; echo rest; echo job 2; echo up; exec sleep 60")
    ///     .shell(true)
    ///     .wait_for(Banner::matching("up"))
    ///     .start()?;
    /// let jobs = service.logs().matching(r"job (?<number>\d+)");
    /// assert_eq!(jobs.len(), 2);
    /// assert_eq!(jobs[1].get("number"), Some("2"));
    /// # Ok::<(), mirakuru_core::Error>(())
    /// ```
    ///
    /// # Panics
    ///
    /// If the pattern is not a valid regular expression.
    #[must_use]
    #[track_caller]
    pub fn matching(&self, pattern: impl AsRef<str>) -> Lines {
        let pattern = pattern.as_ref();
        let watch = watch(pattern);
        let names = watch.names();
        let mut lines = Vec::new();
        for line in self.lines() {
            watch.matches(line.as_bytes(), &mut |found| lines.push(Line::new(found, &names)));
        }
        Lines {
            pattern: pattern.to_owned(),
            lines,
        }
    }
}

#[track_caller]
fn watch(pattern: &str) -> LineWatch {
    LineWatch::new(pattern, None).unwrap_or_else(|why| panic!("invalid pattern `{pattern}`: {why}"))
}
