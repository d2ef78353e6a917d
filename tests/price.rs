//! Limits what this crate costs its users: the number of packages in the Cargo.lock of a crate that
//! depends only on this one. Everything counts, including this crate itself and the dependencies of
//! build scripts.
//!
//! The versions are those of this repository's Cargo.lock. So the figure changes only with a change
//! here, and the test needs no network.
//!
//! This is a separate binary, because it runs cargo.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The limit with default features. `benches/price/results.md` lists the figures of other crates.
const DEFAULT: usize = 36;
/// The limit with `default-features = false`, that is without `Http` and rstest fixtures.
const MINIMAL: usize = 20;

#[test]
fn default_features_cost_no_more_packages_than_stated() {
    stays_within(DEFAULT, "default", "");
}

#[test]
fn without_default_features_they_are_far_fewer() {
    stays_within(MINIMAL, "minimal", ", default-features = false");
}

fn stays_within(limit: usize, name: &str, features: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("this package is a folder of it");
    let packages = packages_of_a_user(root, name, features);
    assert!(
        packages.iter().any(|package| package == "mirakuru-core"),
        "this is no user of mirakuru: {packages:?}"
    );
    assert!(
        packages.len() <= limit,
        "a crate that depends on mirakuru alone ({name} features) has {} packages in its Cargo.lock, and \
            {limit} are \
         promised. `cargo tree -e normal,build -i PACKAGE` says who brings one in; turn a feature off, or do \
         without. \
         The packages: {}",
        packages.len(),
        packages.join(" ")
    );
}

/// The packages in the Cargo.lock of a crate whose only dependency is this one.
fn packages_of_a_user(root: &Path, name: &str, features: &str) -> Vec<String> {
    let user = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("price-{name}"));
    fs::create_dir_all(user.join("src")).unwrap();
    fs::write(user.join("src/lib.rs"), "").unwrap();
    let path = root.to_str().expect("a path that is UTF-8").replace('\\', "\\\\");
    let manifest = format!(
        "[package]\nname = \"a-user\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n\
         [dev-dependencies]\nmirakuru = {{ path = \"{path}\"{features} }}\n\n[workspace]\n"
    );
    fs::write(user.join("Cargo.toml"), manifest).unwrap();
    let lock = user.join("Cargo.lock");
    // Cargo keeps the versions in the file, and removes packages that are not needed.
    fs::copy(root.join("Cargo.lock"), &lock).unwrap();

    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--offline", "--format-version=1", "--quiet"])
        .current_dir(&user)
        .output()
        .expect("cargo");
    assert!(
        output.status.success(),
        "cargo cannot resolve a crate that depends on this one without network; \
         run `cargo fetch` in {} once, and see that its Cargo.lock is up to date. Cargo says:\n{}",
        root.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    let text = fs::read_to_string(&lock).unwrap();
    text.lines()
        .filter_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'))
        .map(str::to_owned)
        .collect()
}
