//! [`And`] and [`Or`]: two conditions as one.

use std::hash::Hasher;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use super::{Prepare, Probe, Readiness, Wake};
use crate::error::Error;

/// Requires that both conditions hold. Created by [`Readiness::and`].
///
/// The second condition is polled after the first has held. A condition that has held is not polled
/// again, so the two need not hold at the same moment.
///
/// For each of the executor's address, URL and path, the first condition that has a value provides
/// it.
#[derive(Clone, Debug)]
pub struct And<A, B> {
    first: A,
    second: B,
    first_held: bool,
    second_held: bool,
}

impl<A, B> And<A, B> {
    pub(super) fn new(first: A, second: B) -> And<A, B> {
        And {
            first,
            second,
            first_held: false,
            second_held: false,
        }
    }
}

impl<A: Readiness, B: Readiness> Readiness for And<A, B> {
    /// Describes only the second condition once the first has held, otherwise both.
    fn describe(&self) -> String {
        if self.first_held && !self.second_held {
            self.second.describe()
        } else {
            join(&self.first.describe(), "and", &self.second.describe())
        }
    }

    fn fingerprint(&self, hasher: &mut dyn Hasher) {
        let And {
            first,
            second,
            first_held: _,
            second_held: _,
        } = self;
        first.fingerprint(hasher);
        second.fingerprint(hasher);
    }

    fn prepare(&mut self, cx: &mut Prepare<'_>) -> Result<(), Error> {
        self.first_held = false;
        self.second_held = false;
        self.first.prepare(cx)?;
        self.second.prepare(cx)
    }

    fn probe(&mut self, cx: &Probe<'_>) -> io::Result<bool> {
        if !self.first_held {
            self.first_held = self.first.probe(cx)?;
        }
        if self.first_held && !self.second_held {
            self.second_held = self.second.probe(cx)?;
        }
        Ok(self.first_held && self.second_held)
    }

    /// Until the first condition holds, this is true only if both wait for output. Otherwise the
    /// wait would sleep through an event that makes the second hold.
    fn waits_for_output(&self) -> bool {
        (self.first_held || self.first.waits_for_output()) && self.second.waits_for_output()
    }

    /// Only the condition that is polled next can end the pause.
    fn wakes(&self, wake: &mut Wake) {
        if self.first_held {
            self.second.wakes(wake);
        } else {
            self.first.wakes(wake);
        }
    }

    fn hint(&self, cx: &Probe<'_>) -> Option<String> {
        let first = (!self.first_held).then(|| self.first.hint(cx)).flatten();
        first.or_else(|| (!self.second_held).then(|| self.second.hint(cx)).flatten())
    }

    fn wants_low_ports(&self) -> bool {
        self.first.wants_low_ports() || self.second.wants_low_ports()
    }

    fn wait_is_over(&mut self) {
        self.first.wait_is_over();
        self.second.wait_is_over();
    }

    fn addr(&self) -> Option<SocketAddr> {
        self.first.addr().or_else(|| self.second.addr())
    }

    fn url(&self) -> Option<&str> {
        self.first.url().or_else(|| self.second.url())
    }

    fn path(&self) -> Option<&Path> {
        self.first.path().or_else(|| self.second.path())
    }

    fn extended(&self) -> Option<Duration> {
        self.first.extended().max(self.second.extended())
    }
}

/// Requires that one of two conditions holds. Created by [`Readiness::or`].
///
/// The address, URL and path of the executor come from the condition that held. If it has none,
/// they come from the other condition.
#[derive(Clone, Debug)]
pub struct Or<A, B> {
    first: A,
    second: B,
    second_held: bool,
}

impl<A, B> Or<A, B> {
    pub(super) fn new(first: A, second: B) -> Or<A, B> {
        Or {
            first,
            second,
            second_held: false,
        }
    }
}

impl<A: Readiness, B: Readiness> Or<A, B> {
    /// Returns a value that either condition may provide. Prefers the condition that held.
    fn know<'a, T>(
        &'a self,
        first: impl FnOnce(&'a A) -> Option<T>,
        second: impl FnOnce(&'a B) -> Option<T>,
    ) -> Option<T> {
        if self.second_held {
            second(&self.second).or_else(|| first(&self.first))
        } else {
            first(&self.first).or_else(|| second(&self.second))
        }
    }
}

impl<A: Readiness, B: Readiness> Readiness for Or<A, B> {
    fn describe(&self) -> String {
        join(&self.first.describe(), "or", &self.second.describe())
    }

    fn fingerprint(&self, hasher: &mut dyn Hasher) {
        let Or {
            first,
            second,
            second_held: _,
        } = self;
        first.fingerprint(hasher);
        second.fingerprint(hasher);
    }

    fn prepare(&mut self, cx: &mut Prepare<'_>) -> Result<(), Error> {
        self.second_held = false;
        self.first.prepare(cx)?;
        self.second.prepare(cx)
    }

    fn probe(&mut self, cx: &Probe<'_>) -> io::Result<bool> {
        let first = self.first.probe(cx);
        if matches!(first, Ok(true)) {
            return Ok(true);
        }
        let second = self.second.probe(cx);
        self.second_held = matches!(second, Ok(true));
        match (first, second) {
            (_, Ok(true)) => Ok(true),
            (Ok(_), Ok(_)) => Ok(false),
            // The kind of the error is replaced, because it could end the wait although the other
            // condition may still hold later.
            (Err(e), Ok(_)) | (Ok(_), Err(e)) => Err(io::Error::other(e.to_string())),
            (Err(a), Err(b)) => {
                let kind = if a.kind() == b.kind() {
                    a.kind()
                } else {
                    io::ErrorKind::Other
                };
                let (a, b) = (a.to_string(), b.to_string());
                let text = if a == b { a } else { format!("{a}; {b}") };
                Err(io::Error::new(kind, text))
            }
        }
    }

    fn waits_for_output(&self) -> bool {
        self.first.waits_for_output() && self.second.waits_for_output()
    }

    fn wakes(&self, wake: &mut Wake) {
        self.first.wakes(wake);
        self.second.wakes(wake);
    }

    fn hint(&self, cx: &Probe<'_>) -> Option<String> {
        self.first.hint(cx).or_else(|| self.second.hint(cx))
    }

    fn wants_low_ports(&self) -> bool {
        self.first.wants_low_ports() || self.second.wants_low_ports()
    }

    fn wait_is_over(&mut self) {
        self.first.wait_is_over();
        self.second.wait_is_over();
    }

    fn addr(&self) -> Option<SocketAddr> {
        self.know(A::addr, B::addr)
    }

    fn url(&self) -> Option<&str> {
        self.know(A::url, B::url)
    }

    fn path(&self) -> Option<&Path> {
        self.know(A::path, B::path)
    }

    fn extended(&self) -> Option<Duration> {
        self.first.extended().max(self.second.extended())
    }
}

/// Joins two descriptions. Does not repeat identical text, or the subject "it".
fn join(first: &str, word: &str, second: &str) -> String {
    if first == second {
        return first.to_owned();
    }
    match second.strip_prefix("it ") {
        Some(rest) if first.starts_with("it ") => format!("{first} {word} {rest}"),
        _ => format!("{first} {word} {second}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::harness::{Fake, Harness};
    use super::*;
    use crate::readiness::no_wait::NoWait;
    use crate::readiness::sd_notify::SdNotify;

    #[test]
    fn and_needs_both_and_does_not_poll_again_what_held() {
        let harness = Harness::new();
        let (a, a_polls) = Fake::new("it was here", [Ok(false), Ok(true)]);
        let (b, b_polls) = Fake::new("it was there", [Ok(false), Ok(false), Ok(true)]);
        let mut both = a.and(b);
        harness.prepare(&mut both).unwrap();
        assert_eq!(both.describe(), "it was here and was there");
        assert!(!harness.probe(&mut both).unwrap());
        assert_eq!((a_polls.count(), b_polls.count()), (1, 0));
        assert!(!harness.probe(&mut both).unwrap());
        assert_eq!(both.describe(), "it was there");
        assert!(!harness.probe(&mut both).unwrap());
        assert!(harness.probe(&mut both).unwrap());
        assert_eq!((a_polls.count(), b_polls.count()), (2, 3));
        assert_eq!(both.describe(), "it was here and was there");
        // `prepare` resets the state for another start.
        harness.prepare(&mut both).unwrap();
        assert_eq!(both.describe(), "it was here and was there");
        let _ = harness.probe(&mut both);
        assert_eq!(a_polls.count(), 3);
    }

    #[test]
    fn and_gives_the_error_of_the_half_that_is_awaited() {
        let harness = Harness::new();
        let (a, _) = Fake::new("a", [Ok(true)]);
        let (b, _) = Fake::new("b", [Err(io::ErrorKind::InvalidInput)]);
        let error = harness.probe(&mut a.and(b)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn and_waits_for_output_only_while_nothing_else_can_help() {
        let harness = Harness::new();
        let (a, _) = Fake::new("a", [Ok(true)]);
        let (b, _) = Fake::new("b", [Ok(false)]);
        let mut both = a.and(b.waiting_for_output());
        assert!(!both.waits_for_output());
        assert!(!harness.probe(&mut both).unwrap());
        assert!(both.waits_for_output());
    }

    fn woken(readiness: &dyn Readiness) -> Wake {
        let mut wake = Wake::new(Duration::from_secs(1));
        readiness.wakes(&mut wake);
        wake
    }

    #[test]
    fn and_is_woken_by_the_half_that_is_awaited() {
        let harness = Harness::new();
        let (a, _) = Fake::new("a", [Ok(false), Ok(true)]);
        let mut both = a.and(SdNotify::new());
        harness.prepare(&mut both).unwrap();
        assert!(!harness.probe(&mut both).unwrap());
        let wake = woken(&both);
        assert!(
            wake.events.is_empty() && wake.pause < Duration::from_secs(1),
            "{wake:?}"
        );
        assert!(!harness.probe(&mut both).unwrap());
        let wake = woken(&both);
        assert!(wake.events.len() == 1 && wake.pause == Duration::MAX, "{wake:?}");
    }

    #[test]
    fn or_is_woken_by_either_half() {
        let harness = Harness::new();
        let (a, _) = Fake::new("a", [Ok(false)]);
        let mut either = a.waiting_for_output().or(SdNotify::new());
        harness.prepare(&mut either).unwrap();
        assert!(!harness.probe(&mut either).unwrap());
        let wake = woken(&either);
        assert!(wake.output && wake.events.len() == 1, "{wake:?}");
        assert_eq!(wake.pause, Duration::MAX, "nothing polls");
        let (b, _) = Fake::new("b", []);
        assert!(woken(&either.or(b)).pause < Duration::from_secs(1));
    }

    #[test]
    fn or_needs_one_and_knows_which() {
        let harness = Harness::new();
        let (a, _) = Fake::new("it was here", [Ok(false), Ok(false)]);
        let (b, _) = Fake::new("it was there", [Ok(false), Ok(true)]);
        let mut either = a.at(([127, 0, 0, 1], 1)).or(b.at(([127, 0, 0, 1], 2)));
        assert_eq!(either.describe(), "it was here or was there");
        assert!(!harness.probe(&mut either).unwrap());
        assert_eq!(either.addr().unwrap().port(), 1);
        assert!(harness.probe(&mut either).unwrap());
        assert_eq!(either.addr().unwrap().port(), 2);
    }

    #[test]
    fn or_does_not_end_the_wait_while_one_half_can_hold() {
        let harness = Harness::new();
        let (a, _) = Fake::new(
            "a",
            [Err(io::ErrorKind::InvalidInput), Err(io::ErrorKind::InvalidInput)],
        );
        let (b, _) = Fake::new("b", [Ok(false), Err(io::ErrorKind::InvalidInput)]);
        let mut either = a.or(b);
        assert_eq!(
            harness.probe(&mut either).unwrap_err().kind(),
            io::ErrorKind::Other
        );
        assert_eq!(
            harness.probe(&mut either).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
    }

    #[test]
    fn the_same_thing_is_said_once() {
        assert_eq!(NoWait.and(NoWait).describe(), "it was executed");
        assert_eq!(
            join("the lamp was lit", "or", "it rang"),
            "the lamp was lit or it rang"
        );
    }

    #[test]
    fn more_time_is_the_longest_that_was_asked_for() {
        let (a, _) = Fake::new("a", []);
        let (b, _) = Fake::new("b", []);
        let (a, b) = (a.extended_to(3), b.extended_to(5));
        assert_eq!(a.clone().and(b.clone()).extended(), Some(Duration::from_secs(5)));
        assert_eq!(b.or(a).extended(), Some(Duration::from_secs(5)));
    }
}
