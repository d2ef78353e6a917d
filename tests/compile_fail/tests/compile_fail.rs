//! Each mistake is one error, on the token that is wrong, and says what would be right.
//!
//! One mistake a file, named after the mistake. What rustc prints changes with its version: the
//! expected output is that of the version in CI.
//!
//! A package of its own: trybuild builds all that the package depends on once more, with the
//! features that the test is built with. Here these are the defaults, and no TLS.

#[test]
fn each_mistake_is_one_error() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}

/// The files of expected output, looked at as a whole: trybuild compares them, but does not count.
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
