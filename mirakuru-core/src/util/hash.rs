//! The hash for names that several processes must agree on, and the encoding of its input.

use std::ffi::OsStr;
use std::hash::Hasher;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, absolute};

/// A hash function that is the same in every build. The standard library's hasher may differ
/// between Rust releases, but test binaries built with two releases must agree.
pub(crate) struct Fnv1a(pub(crate) u64);

impl Hasher for Fnv1a {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

/// Hashes a number in the same byte order on every machine.
pub(crate) fn number(hasher: &mut dyn Hasher, number: u64) {
    hasher.write(&number.to_le_bytes());
}

/// Hashes bytes with their length, so that "ab" and "c" differ from "a" and "bc".
pub(crate) fn bytes(hasher: &mut dyn Hasher, bytes: &[u8]) {
    number(hasher, bytes.len() as u64);
    hasher.write(bytes);
}

/// Hashes a string with placeholders, and the values of the environment variables that it names.
/// Other placeholders have no value yet, so only their text is hashed.
pub(crate) fn text(hasher: &mut dyn Hasher, text: &OsStr) {
    const BEGIN: &[u8] = b"{env:";
    let mut rest = text.as_bytes();
    bytes(hasher, rest);
    while let Some(at) = rest.windows(BEGIN.len()).position(|window| window == BEGIN) {
        rest = &rest[at + BEGIN.len()..];
        let name = rest.split(|byte| *byte == b'}').next().unwrap_or_default();
        let value = std::env::var_os(OsStr::from_bytes(name)).unwrap_or_default();
        bytes(hasher, value.as_bytes());
    }
}

/// Hashes a path with placeholders. A relative path is hashed together with the working directory.
pub(crate) fn path(hasher: &mut dyn Hasher, path: &Path) {
    match absolute(path) {
        Ok(absolute) if !path.as_os_str().as_bytes().starts_with(b"{") => text(hasher, absolute.as_os_str()),
        _ => text(hasher, path.as_os_str()),
    }
}
