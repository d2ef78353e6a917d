//! The result of a test function: an error is reported to the services that it used, before they
//! end.

use std::process::ExitCode;

use mirakuru_core::__private::test_returns_err;

/// The result of a test. If the type can say that a test failed, `tell` is its own method, else the
/// trait's: own methods come first.
pub struct Outcome<'a, T>(pub &'a T);

impl<T, E> Outcome<'_, Result<T, E>> {
    /// Says so if the test has failed.
    pub fn tell(&self) {
        if self.0.is_err() {
            test_returns_err();
        }
    }
}

impl Outcome<'_, ExitCode> {
    /// Says so if the test has failed.
    pub fn tell(&self) {
        if *self.0 != ExitCode::SUCCESS {
            test_returns_err();
        }
    }
}

/// Every other type.
pub trait AnyOutcome {
    /// Nothing is known of it.
    fn tell(&self) {}
}

impl<T> AnyOutcome for Outcome<'_, T> {}

#[cfg(test)]
mod tests {
    use mirakuru_core::__private::{test_begins, test_has_failed};

    use super::*;

    #[test]
    fn errors_and_bad_codes_are_told() {
        test_begins();
        Outcome(&Ok::<(), ()>(())).tell();
        Outcome(&ExitCode::SUCCESS).tell();
        Outcome(&7).tell();
        assert!(!test_has_failed());
        Outcome(&Err::<(), ()>(())).tell();
        assert!(test_has_failed());
        test_begins();
        Outcome(&ExitCode::FAILURE).tell();
        assert!(test_has_failed());
    }
}
