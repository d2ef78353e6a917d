//! Marks a test as failed if it returns an error, so that its services show their output.

use std::process::ExitCode;

use mirakuru_core::__private::test_returns_err;

/// The result of a test. For `tell`, rustc prefers an inherent method, then a trait method that
/// takes `self`, and then one that takes `&self`.
///
/// Only one `tell` is inherent, because with more of them rustc would report an unknown return type
/// twice.
pub struct Outcome<'a, T>(pub &'a T);

impl<T, E> Outcome<'_, Result<T, E>> {
    /// Marks the test as failed if the result is an error.
    pub fn tell(self) {
        if self.0.is_err() {
            test_returns_err();
        }
    }
}

/// Provides `tell` for an [`ExitCode`].
pub trait ExitOutcome {
    /// Marks the test as failed unless the code means success.
    fn tell(self);
}

impl ExitOutcome for Outcome<'_, ExitCode> {
    fn tell(self) {
        if *self.0 != ExitCode::SUCCESS {
            test_returns_err();
        }
    }
}

/// Provides `tell` for every other type.
pub trait AnyOutcome {
    /// Does nothing, because a value of this type cannot be an error.
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
