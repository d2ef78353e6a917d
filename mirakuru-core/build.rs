//! Bakes in how this crate was built, so that a test can have a program of its workspace built in
//! the same way. The test process itself is not told. (`OUT_DIR` is baked in without a line here.)

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    for name in ["TARGET", "CARGO_ENCODED_RUSTFLAGS"] {
        // Not `rerun-if-env-changed`: cargo sets both itself, and runs this again when they change.
        let value = std::env::var(name).unwrap_or_default();
        println!("cargo:rustc-env=MIRAKURU_BUILT_WITH_{name}={value}");
    }
}
