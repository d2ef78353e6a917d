//! The one back-off for waits on another process.

use std::thread;
use std::time::{Duration, Instant};

/// The pauses between looks at what another process holds: short at first, and in proportion to the time already waited in the end, so that the
/// mean loss is 1 %. Forty that wait for one must not keep it from the processors.
pub(crate) struct Pauses {
    began: Instant,
    next: Duration,
}

impl Pauses {
    const FIRST: Duration = Duration::from_micros(200);
    /// Each pause is twice the one before it, up to this or to such a part of the time already waited.
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

    /// Whether there have been some already.
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
}
