//! The one hash for names that several processes must agree on.

use std::hash::Hasher;

/// The standard library's hashes may differ from one Rust release to the next, and test binaries of
/// two must agree. When two paths collide, their services take turns for nothing.
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
