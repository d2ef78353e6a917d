//! MD5, SHA-1, SHA-256 and base64 of short strings. With a hash, a login proves that it knows a
//! password without sending it.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

/// Pads a message, and splits it into 64-byte blocks of 32-bit words.
fn blocks(message: &[u8], word: fn([u8; 4]) -> u32, length: [u8; 8]) -> Vec<[u32; 16]> {
    let mut bytes = message.to_vec();
    bytes.push(0x80);
    bytes.resize(bytes.len().next_multiple_of(64), 0);
    if bytes.len() - message.len() < 9 {
        bytes.resize(bytes.len() + 64, 0);
    }
    let end = bytes.len() - 8;
    bytes[end..].copy_from_slice(&length);
    let mut blocks = vec![[0; 16]; bytes.len() / 64];
    for (at, part) in bytes.chunks(4).enumerate() {
        blocks[at / 16][at % 16] = word([part[0], part[1], part[2], part[3]]);
    }
    blocks
}

fn bits(message: &[u8]) -> u64 {
    message.len() as u64 * 8
}

fn joined<const N: usize>(state: &[u32], bytes: fn(u32) -> [u8; 4]) -> [u8; N] {
    let mut all = [0; N];
    for (place, word) in all.chunks_mut(4).zip(state) {
        place.copy_from_slice(&bytes(*word));
    }
    all
}

fn add(state: &mut [u32], more: &[u32]) {
    for (word, more) in state.iter_mut().zip(more) {
        *word = word.wrapping_add(*more);
    }
}

pub(super) fn md5(message: &[u8]) -> [u8; 16] {
    const SHIFTS: [[u32; 4]; 4] = [[7, 12, 17, 22], [5, 9, 14, 20], [4, 11, 16, 23], [6, 10, 15, 21]];
    let mut state: [u32; 4] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];
    for block in blocks(message, u32::from_le_bytes, bits(message).to_le_bytes()) {
        let [mut a, mut b, mut c, mut d] = state;
        for step in 0..64 {
            let (mixed, at) = match step / 16 {
                0 => ((b & c) | (!b & d), step),
                1 => ((d & b) | (!d & c), 5 * step + 1),
                2 => (b ^ c ^ d, 3 * step + 5),
                _ => (c ^ (b | !d), 7 * step),
            };
            let constant = ((step as f64 + 1.0).sin().abs() * 4_294_967_296.0) as u32;
            let sum = a
                .wrapping_add(mixed)
                .wrapping_add(constant)
                .wrapping_add(block[at % 16]);
            (a, d, c) = (d, c, b);
            b = b.wrapping_add(sum.rotate_left(SHIFTS[step / 16][step % 4]));
        }
        add(&mut state, &[a, b, c, d]);
    }
    joined(&state, u32::to_le_bytes)
}

pub(super) fn sha1(message: &[u8]) -> [u8; 20] {
    let mut state: [u32; 5] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];
    for block in blocks(message, u32::from_be_bytes, bits(message).to_be_bytes()) {
        let mut words = block.to_vec();
        for at in 16..80 {
            let word = words[at - 3] ^ words[at - 8] ^ words[at - 14] ^ words[at - 16];
            words.push(word.rotate_left(1));
        }
        let [mut a, mut b, mut c, mut d, mut e] = state;
        for (step, word) in words.iter().enumerate() {
            let (mixed, constant) = match step / 20 {
                0 => ((b & c) | (!b & d), 0x5a82_7999),
                1 => (b ^ c ^ d, 0x6ed9_eba1),
                2 => ((b & c) | (b & d) | (c & d), 0x8f1b_bcdc),
                _ => (b ^ c ^ d, 0xca62_c1d6_u32),
            };
            let sum = a.rotate_left(5).wrapping_add(mixed).wrapping_add(e);
            (e, d, c, b) = (d, c, b.rotate_left(30), a);
            a = sum.wrapping_add(constant).wrapping_add(*word);
        }
        add(&mut state, &[a, b, c, d, e]);
    }
    joined(&state, u32::to_be_bytes)
}

/// Computes the roots of the first `count` primes, and returns the first 32 bits of their
/// fractional parts.
fn roots(count: usize, root: fn(f64) -> f64) -> Vec<u32> {
    let (mut roots, mut primes) = (Vec::new(), Vec::new());
    let mut number: u32 = 2;
    while roots.len() < count {
        if primes.iter().all(|prime| number % prime != 0) {
            primes.push(number);
            roots.push((root(f64::from(number)).fract() * 4_294_967_296.0) as u32);
        }
        number += 1;
    }
    roots
}

/// Computes SHA-256. The constants are computed once, because a single login hashes thousands of
/// times.
pub(super) struct Sha256 {
    start: Vec<u32>,
    constants: Vec<u32>,
}

impl Sha256 {
    pub(crate) fn new() -> Sha256 {
        Sha256 {
            start: roots(8, f64::sqrt),
            constants: roots(64, f64::cbrt),
        }
    }

    pub(crate) fn of(&self, message: &[u8]) -> [u8; 32] {
        let mut state = self.start.clone();
        for block in blocks(message, u32::from_be_bytes, bits(message).to_be_bytes()) {
            let mut words = [0; 64];
            words[..16].copy_from_slice(&block);
            for at in 16..64 {
                let (low, high): (u32, u32) = (words[at - 15], words[at - 2]);
                let low = low.rotate_right(7) ^ low.rotate_right(18) ^ (low >> 3);
                let high = high.rotate_right(17) ^ high.rotate_right(19) ^ (high >> 10);
                words[at] = low
                    .wrapping_add(high)
                    .wrapping_add(words[at - 16])
                    .wrapping_add(words[at - 7]);
            }
            let mut s = [0_u32; 8];
            s.copy_from_slice(&state);
            for (word, constant) in words.iter().zip(&self.constants) {
                let [a, b, c, d, e, f, g, h] = s;
                let choice = (e & f) ^ (!e & g);
                let high = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
                let first = h
                    .wrapping_add(high)
                    .wrapping_add(choice)
                    .wrapping_add(*constant)
                    .wrapping_add(*word);
                let majority = (a & b) ^ (a & c) ^ (b & c);
                let low = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
                let second = low.wrapping_add(majority);
                s = [
                    first.wrapping_add(second),
                    a,
                    b,
                    c,
                    d.wrapping_add(first),
                    e,
                    f,
                    g,
                ];
            }
            add(&mut state, &s);
        }
        joined(&state, u32::to_be_bytes)
    }

    pub(crate) fn hmac(&self, key: &[u8], message: &[u8]) -> [u8; 32] {
        let mut block = [0; 64];
        match key.len() > 64 {
            true => block[..32].copy_from_slice(&self.of(key)),
            false => block[..key.len()].copy_from_slice(key),
        }
        let inner = self.of(&[&xor(block, [0x36; 64]), message].concat());
        self.of(&[&xor(block, [0x5c; 64])[..], &inner].concat())
    }

    /// Computes one block of PBKDF2 with HMAC-SHA-256.
    pub(crate) fn stretched(&self, password: &[u8], salt: &[u8], rounds: u32) -> [u8; 32] {
        let mut last = self.hmac(password, &[salt, &[0, 0, 0, 1]].concat());
        let mut sum = last;
        for _ in 1..rounds {
            last = self.hmac(password, &last);
            sum = xor(sum, last);
        }
        sum
    }
}

pub(super) fn xor<const N: usize>(mut one: [u8; N], other: [u8; N]) -> [u8; N] {
    for (byte, other) in one.iter_mut().zip(&other) {
        *byte ^= other;
    }
    one
}

pub(super) fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

pub(super) fn to_base64(bytes: impl AsRef<[u8]>) -> String {
    BASE64_STANDARD.encode(bytes)
}

/// Decodes base64; `None` if the text is invalid.
pub(super) fn from_base64(text: &str) -> Option<Vec<u8>> {
    BASE64_STANDARD.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_their_standards() {
        let sha256 = Sha256::new();
        for (text, of_md5, of_sha1, of_sha256) in [
            (
                "abc",
                "900150983cd24fb0d6963f7d28e17f72",
                "a9993e364706816aba3e25717850c26c9cd0d89d",
                "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            ),
            (
                "",
                "d41d8cd98f00b204e9800998ecf8427e",
                "da39a3ee5e6b4b0d3255bfef95601890afd80709",
                "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            ),
            (
                // An input of this length needs an extra block for its padding.
                "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
                "8215ef0796a20bcaaae116d3876c664a",
                "84983e441c3bd26ebaae4aa1f95129e5e54670f1",
                "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
            ),
        ] {
            assert_eq!(hex(&md5(text.as_bytes())), of_md5);
            assert_eq!(hex(&sha1(text.as_bytes())), of_sha1);
            assert_eq!(hex(&sha256.of(text.as_bytes())), of_sha256);
        }
        let sum = sha256.hmac(b"key", b"The quick brown fox jumps over the lazy dog");
        assert_eq!(
            hex(&sum),
            "f7bc83f430538424b13298e6aa6fb143ef4d59a14946175997479dbc2d1a3cd8"
        );
        let stretched = sha256.stretched(b"password", b"salt", 2);
        assert_eq!(
            hex(&stretched),
            "ae4d0c95af6b46d32d0adff928f06dd02a303f8ef3c251dfd6e2d85a95474c43"
        );
    }

    #[test]
    fn base64_is_read_as_it_was_written() {
        for (text, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
        ] {
            assert_eq!(to_base64(text), coded);
            assert_eq!(from_base64(coded).as_deref(), Some(text.as_bytes()));
        }
        assert_eq!(from_base64("a b"), None);
    }
}
