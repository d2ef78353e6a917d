//! Reports an error in a test's result to the test's services, before they end.

use std::process::ExitCode;

use mirakuru_core::__private::test_returns_err;

/// The result of a test. For `tell`, rustc takes the type's own method before a trait's, and a
/// method by value before one by reference.
///
/// Only one `tell` is the type's own: otherwise rustc would report an unknown return type twice.
pub struct Outcome<'a, T>(pub &'a T);

impl<T, E> Outcome<'_, Result<T, E>> {
    /// Reports a failed test.
    pub fn tell(self) {
        if self.0.is_err() {
            test_returns_err();
        }
    }
}

/// Stands for an [`ExitCode`].
pub trait ExitOutcome {
    /// Reports a failed test.
    fn tell(self);
}

impl ExitOutcome for Outcome<'_, ExitCode> {
    fn tell(self) {
        if *self.0 != ExitCode::SUCCESS {
            test_returns_err();
        }
    }
}

/// Stands for every other type.
pub trait AnyOutcome {
    /// Reports nothing: a result of this type cannot be an error.
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
