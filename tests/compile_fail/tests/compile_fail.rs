//! Each mistake gives one error, on the wrong token, with the remedy.
//!
//! Each file has one mistake and is named after it. rustc's output changes with its version: the
//! expected output is that of the version in CI.
//!
//! This is a package of its own: trybuild builds all of the package's dependencies once more, with
//! the features of the test. Here these are the defaults, without TLS.

#[test]
fn each_mistake_is_one_error() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}

/// The files of expected output, checked as a whole: trybuild compares them, but does not count
/// them.
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
