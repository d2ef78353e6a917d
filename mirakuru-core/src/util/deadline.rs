//! The deadline of a whole start. It is created once, passed on, and shared by all waits.

use std::time::{Duration, Instant};

use once_cell::sync::Lazy;

use crate::util::say::say;

/// The time limit of a start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    started: Instant,
    timeout: Duration,
}

impl Deadline {
    /// Returns a deadline that is `timeout` from now, scaled by `MIRAKURU_TIMEOUT_SCALE`.
    pub(crate) fn after(timeout: Duration) -> Deadline {
        Deadline {
            started: Instant::now(),
            timeout: scaled(timeout),
        }
    }

    /// Like [`after`](Deadline::after), for a `timeout` that is already scaled.
    pub(crate) fn after_scaled(timeout: Duration) -> Deadline {
        Deadline {
            started: Instant::now(),
            timeout,
        }
    }

    /// Extends the total time to at least `timeout`, for a service that has asked for more time.
    pub(crate) fn at_least(self, timeout: Option<Duration>) -> Deadline {
        let timeout = timeout.map_or(self.timeout, |timeout| self.timeout.max(timeout));
        Deadline { timeout, ..self }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    pub(crate) fn remaining(&self) -> Duration {
        self.timeout.saturating_sub(self.elapsed())
    }

    pub(crate) fn is_over(&self) -> bool {
        self.remaining().is_zero()
    }
}

const VARIABLE: &str = "MIRAKURU_TIMEOUT_SCALE";

/// Multiplies a timeout by the environment variable `MIRAKURU_TIMEOUT_SCALE`, a positive number for
/// slow machines. The default is 1.
pub fn scaled(timeout: Duration) -> Duration {
    static SCALE: Lazy<f64> = Lazy::new(|| {
        let text = std::env::var_os(VARIABLE).map(|text| text.to_string_lossy().into_owned());
        scale(text.as_deref()).unwrap_or_else(|| {
            say(&format!(
                "{VARIABLE} is `{}`, which is not a positive number: timeouts stay as they are",
                text.unwrap_or_default()
            ));
            1.0
        })
    });
    Duration::try_from_secs_f64(timeout.as_secs_f64() * *SCALE).unwrap_or(Duration::MAX)
}

/// Parses the scale. Returns 1 if the variable is unset or empty, and `None` if it is not a
/// positive number.
fn scale(text: Option<&str>) -> Option<f64> {
    let text = match text.map(str::trim) {
        None | Some("") => return Some(1.0),
        Some(text) => text,
    };
    let number = text.parse::<f64>().ok();
    number.filter(|number| number.is_finite() && *number > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_is_a_positive_number_or_one() {
        assert_eq!(scale(Some("2.5")), Some(2.5));
        assert_eq!(scale(Some(" 3 ")), Some(3.0));
        assert_eq!(scale(Some("")), Some(1.0));
        assert_eq!(scale(None), Some(1.0));
        for nonsense in [Some("fast"), Some("-1"), Some("0"), Some("inf"), Some("NaN")] {
            assert_eq!(scale(nonsense), None, "{nonsense:?}");
        }
    }

    #[test]
    fn nothing_remains_of_a_deadline_of_zero() {
        let deadline = Deadline::after(Duration::ZERO);
        assert!(deadline.is_over());
        assert_eq!(deadline.remaining(), Duration::ZERO);
    }
}
