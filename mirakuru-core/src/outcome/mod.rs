//! Records whether the test on this thread has failed. If it has, the last lines of a service's log
//! are shown when the service is stopped.
//!
//! A failed test panics or returns `Err`. [`std::thread::panicking`] detects a panic. The attribute
//! reports an `Err` here, before the test's services are stopped.

pub(crate) mod shared_use;
pub(crate) mod timed_out;

use std::cell::Cell;

thread_local! {
    static ERR_RETURNED: Cell<bool> = const { Cell::new(false) };
}

/// Records that the test on this thread may start services. If rstest's `#[timeout]` ends the test,
/// its services are stopped, and it can start no others.
pub fn test_may_start() {
    timed_out::this_test();
}

/// Records that a test begins on this thread.
pub fn test_begins() {
    ERR_RETURNED.set(false);
    crate::timeline::events::test_begins();
}

/// Records that the test on this thread returns an error.
pub fn test_returns_err() {
    ERR_RETURNED.set(true);
    crate::outcome::shared_use::test_has_failed();
}

/// Whether the test on this thread has failed.
pub fn test_has_failed() -> bool {
    std::thread::panicking() || ERR_RETURNED.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_counts_until_the_next_test_begins() {
        test_begins();
        assert!(!test_has_failed());
        test_returns_err();
        assert!(test_has_failed());
        assert!(!std::thread::spawn(test_has_failed).join().unwrap());
        test_begins();
        assert!(!test_has_failed());
    }

    #[test]
    fn a_panic_counts() {
        struct Asks<'a>(&'a Cell<bool>);
        impl Drop for Asks<'_> {
            fn drop(&mut self) {
                self.0.set(test_has_failed());
            }
        }
        let seen = Cell::new(false);
        let panics = std::panic::AssertUnwindSafe(|| {
            let _asks = Asks(&seen);
            std::panic::resume_unwind(Box::new(()));
        });
        assert!(std::panic::catch_unwind(panics).is_err());
        assert!(seen.get());
    }
}
