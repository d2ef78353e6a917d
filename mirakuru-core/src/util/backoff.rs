//! Computes the pauses between polls, when waiting for a readiness condition or for another
//! process.

use std::thread;
use std::time::{Duration, Instant};

/// The shortest pause between two polls of a condition. Later pauses grow in proportion to the time
/// already waited.
pub(crate) const FIRST_POLL: Duration = Duration::from_micros(100);
/// The longest pause. Without this limit, the readiness of a service that takes minutes would be
/// noticed seconds late.
const LONGEST_POLL: Duration = Duration::from_millis(100);
/// A pause is one fiftieth of the time already waited, minus `LESS`, so readiness is noticed at
/// most 2 % late, and 1 % on average. `LESS` matters only for a service that starts fast, and
/// shortens a pause by at most half.
const POLL_DIVISOR: u32 = 50;
const LESS: Duration = Duration::from_micros(500);
/// The divisor for fallback polls. Usually an event ends such a wait; the polls only catch an event
/// that was missed.
const FALLBACK_DIVISOR: u32 = 10;
const FIRST_FALLBACK: Duration = Duration::from_millis(1);

/// The pause after an unsuccessful poll, given the time waited so far.
pub(crate) fn poll_pause(waited: Duration) -> Duration {
    unbounded_poll_pause(waited).min(LONGEST_POLL)
}

/// The pause after an expensive poll, without an upper limit.
pub(crate) fn unbounded_poll_pause(waited: Duration) -> Duration {
    let pause = waited / POLL_DIVISOR;
    (pause - LESS.min(pause / 2)).max(FIRST_POLL)
}

/// The pause after a poll that the service notices, and perhaps logs. These polls are less
/// frequent, and notice readiness 2.5 % late on average.
#[cfg(feature = "http")]
pub(crate) fn quiet_poll_pause(waited: Duration) -> Duration {
    const DIVISOR: u32 = 20;
    const FIRST: Duration = Duration::from_millis(1);
    const LONGEST: Duration = Duration::from_millis(250);
    (waited / DIVISOR).clamp(FIRST, LONGEST)
}

/// The pause after a fallback poll, whose result matters only if an event was missed.
pub(crate) fn fallback_poll_pause(waited: Duration) -> Duration {
    (waited / FALLBACK_DIVISOR).clamp(FIRST_FALLBACK, LONGEST_POLL)
}

/// The pauses of a wait for another process: short at first, later in proportion to the time
/// already waited. Even forty waiting processes must leave enough processor time to that process.
pub(crate) struct Pauses {
    began: Instant,
    next: Duration,
}

impl Pauses {
    const FIRST: Duration = Duration::from_micros(200);
    /// Each pause is twice as long as the previous one, up to this limit. After a longer wait, the
    /// limit is a fraction of the time already waited.
    const LONG: Duration = Duration::from_millis(5);
    const DIVISOR: u32 = 50;
    const LONGEST: Duration = Duration::from_millis(50);

    pub(crate) fn new() -> Pauses {
        Pauses {
            began: Instant::now(),
            next: Pauses::FIRST,
        }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Whether the pauses have reached [`LONG`](Pauses::LONG).
    pub(crate) fn are_long(&self) -> bool {
        self.next >= Pauses::LONG
    }

    pub(crate) fn sleep(&mut self, at_most: Duration) {
        thread::sleep(self.next.min(at_most));
        self.next = Pauses::after(self.next, self.elapsed());
    }

    fn after(pause: Duration, waited: Duration) -> Duration {
        let longest = (waited / Pauses::DIVISOR).clamp(Pauses::LONG, Pauses::LONGEST);
        (pause * 2).min(longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_short_at_first_and_a_part_of_the_wait_in_the_end() {
        let mut pause = Pauses::FIRST;
        let mut waited = Duration::ZERO;
        while pause < Pauses::LONG {
            waited += pause;
            pause = Pauses::after(pause, waited);
        }
        assert!(waited < Duration::from_millis(10), "{waited:?}");
        let long = |seconds| Pauses::after(Duration::from_secs(1), Duration::from_secs(seconds));
        assert_eq!(long(0), Duration::from_millis(5));
        assert_eq!(long(1), Duration::from_millis(20));
        assert_eq!(long(600), Duration::from_millis(50));
    }

    #[test]
    fn a_pause_is_a_small_part_of_the_time_waited() {
        assert_eq!(poll_pause(Duration::ZERO), FIRST_POLL);
        let mut before = Duration::ZERO;
        for millis in [1, 5, 10, 20, 50, 100, 200, 1000, 4000, 5000, 60_000] {
            let waited = Duration::from_millis(millis);
            let pause = poll_pause(waited);
            assert!(pause >= before && pause <= LONGEST_POLL, "{waited:?}: {pause:?}");
            assert!(pause <= (waited / 50).max(FIRST_POLL), "{waited:?}: {pause:?}");
            assert!(
                millis > 50 || pause <= (waited / 100).max(FIRST_POLL),
                "{waited:?}"
            );
            before = pause;
        }
        assert_eq!(before, LONGEST_POLL);
        assert!(unbounded_poll_pause(Duration::from_secs(60)) > Duration::from_secs(1));
    }
}
