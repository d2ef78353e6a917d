//! Encodes and decodes the records of a log's index. The supervisor writes records, and `output/`
//! reads them.
//!
//! A record is 16 bytes, little endian: `u32` length, `u32` kind, `u64` nanoseconds of the
//! monotonic clock.
//!
//! A log that reaches its limit continues in parts, each with its own index. The first part and the
//! last two parts are kept. A finished index ends with a record that names the next part. The index
//! of a later part begins with two records: the position of the part in the whole log, and its
//! position in the whole index.

use std::ffi::CStr;

/// The file names of a later part of the log and of its index. Each name is used again three parts
/// later.
pub(crate) const fn part(number: u32) -> [&'static CStr; 2] {
    match number % 3 {
        1 => [c"log.1", c"log.1.index"],
        2 => [c"log.2", c"log.2.index"],
        _ => [c"log.3", c"log.3.index"],
    }
}

/// The length of a record in bytes.
pub(crate) const SIZE: usize = 16;

const STDERR: u32 = 2;
const START: u32 = 3;
const NEXT: u32 = 4;
const PART: u32 = 5;
const PART_INDEX: u32 = 6;
/// Bit of `kind` for bytes that could not be written into the log.
const LOST: u32 = 1 << 31;

/// One record of the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// Number of bytes printed.
    pub(crate) length: u32,
    kind: u32,
    /// The time, in nanoseconds of the monotonic clock.
    pub(crate) time: u64,
}

impl Record {
    /// A record of bytes that are in the log. Stream 0 is standard output, and stream 1 is standard
    /// error.
    pub(crate) const fn output(stream: usize, length: u32, time: u64) -> Record {
        Record {
            length,
            kind: (stream as u32).wrapping_add(1),
            time,
        }
    }

    /// A record of bytes that could not be kept because the disk was full.
    pub(crate) const fn lost(stream: usize, length: u32, time: u64) -> Record {
        let output = Record::output(stream, length, time);
        Record {
            kind: output.kind | LOST,
            ..output
        }
    }

    /// A record of a start or a restart of the service.
    pub(crate) const fn start(time: u64) -> Record {
        Record {
            length: 0,
            kind: START,
            time,
        }
    }

    /// The record that ends a part of the log after `bytes` bytes. The log continues in part
    /// `number`.
    pub(crate) const fn next(number: u32, bytes: u64) -> Record {
        Record {
            length: number,
            kind: NEXT,
            time: bytes,
        }
    }

    /// The first two records of a later part: its number, and the number of bytes of the log and of
    /// the index that come before it.
    pub(crate) const fn head(number: u32, log: u64, index: u64) -> [Record; 2] {
        [
            Record {
                length: number,
                kind: PART,
                time: log,
            },
            Record {
                length: number,
                kind: PART_INDEX,
                time: index,
            },
        ]
    }

    /// The number of the next part, if this is the last record of a finished part.
    pub(crate) fn as_next(self) -> Option<u32> {
        (self.kind == NEXT).then_some(self.length)
    }

    /// Number of log bytes before this part, if this is the first record of a later part.
    pub(crate) fn as_part(self) -> Option<u64> {
        (self.kind == PART).then_some(self.time)
    }

    /// Whether this is a record of output, either kept or lost.
    pub(crate) const fn is_output(self) -> bool {
        self.kind & !LOST < START
    }

    /// Encodes the record. Must not allocate or panic, because the supervisor calls this after a
    /// fork.
    pub(crate) const fn encode(self) -> [u8; SIZE] {
        (self.length as u128 | (self.kind as u128) << 32 | (self.time as u128) << 64).to_le_bytes()
    }

    /// Decodes a record. Returns a record of zeros if there are fewer than 16 bytes.
    pub(crate) fn decode(bytes: &[u8]) -> Record {
        let bytes = bytes.first_chunk().copied().unwrap_or_default();
        let word = u128::from_le_bytes(bytes);
        Record {
            length: word as u32,
            kind: (word >> 32) as u32,
            time: (word >> 64) as u64,
        }
    }

    pub(crate) const fn is_start(self) -> bool {
        self.kind & !LOST == START
    }

    pub(crate) const fn is_stderr(self) -> bool {
        self.kind & !LOST == STDERR
    }

    pub(crate) const fn is_lost(self) -> bool {
        self.kind & LOST != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let record = Record::lost(1, 0x0102_0304, 0x0506_0708_090a_0b0c);
        assert_eq!(
            record.encode(),
            [4, 3, 2, 1, 2, 0, 0, 0x80, 12, 11, 10, 9, 8, 7, 6, 5]
        );
        assert_eq!(Record::decode(&record.encode()), record);
        assert!(record.is_lost() && record.is_stderr() && !record.is_start());
        assert!(Record::start(1).is_start());
        assert!(!Record::output(0, 1, 1).is_stderr());
    }
}
