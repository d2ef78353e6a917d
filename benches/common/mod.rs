//! What a benchmark prints and what it compares with.

pub(crate) mod by_hand;
pub(crate) mod table;

use std::time::Duration;

/// The middle of what was measured, in milliseconds. Lags may be negative: the helper takes its time stamp a moment *after* it is ready.
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

/// How much later one time is than another, in milliseconds.
pub(crate) fn lag(later: Duration, earlier: Duration) -> f64 {
    ms(later) - ms(earlier)
}
