//! Each mistake in a use of the attribute causes one error, at the token that is wrong, with the
//! remedy.
//!
//! Each file contains one mistake, and is named after it. The output depends on rustc's version;
//! the expected output is that of the version in CI.
//!
//! This test is a separate package, because trybuild rebuilds all dependencies of its package with
//! the test's features. This package has the default features, without TLS.

#[test]
fn each_mistake_is_one_error() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}

/// trybuild compares the expected output, but does not count the errors in it.
#[test]
fn the_expected_output_has_one_error_each() {
    let mut looked_at = 0;
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/ui")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            let output = std::fs::read_to_string(path.with_extension("stderr")).unwrap();
            let errors = output.lines().filter(|line| line.starts_with("error")).count();
            let warnings = output.lines().filter(|line| line.starts_with("warning")).count();
            assert_eq!((errors, warnings), (1, 0), "{}:\n{output}", path.display());
            looked_at += 1;
        }
    }
    assert!(looked_at > 0);
}
