//! Empty: this package has only a test.
