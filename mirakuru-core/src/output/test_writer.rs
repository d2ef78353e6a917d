//! Writes the two files of a log for tests, as the supervisor does.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::output::reader::{Cursor, OutputReader, Piece, Stream};
use crate::sys::log_record::Record;

pub(crate) struct LogWriter {
    pub(crate) log: File,
    pub(crate) index: File,
    paths: [PathBuf; 2],
    time: u64,
}

impl OutputReader {
    /// Passes only the output to `each`. Returns whether there was any.
    pub(crate) fn read(
        &self,
        cursor: &mut Cursor,
        mut each: impl FnMut(Stream, &[u8], u64),
    ) -> io::Result<bool> {
        let mut any = false;
        self.read_pieces(cursor, |piece, time| {
            if let Piece::Output(stream, bytes) = piece {
                any = true;
                each(stream, bytes, time);
            }
        })?;
        Ok(any)
    }
}

impl LogWriter {
    pub(crate) fn create(dir: &Path) -> LogWriter {
        let paths = [dir.join("log"), dir.join("log.index")];
        let open = |path| {
            OpenOptions::new()
                .append(true)
                .create_new(true)
                .open(path)
                .expect("the test's directory is writable")
        };
        LogWriter {
            log: open(&paths[0]),
            index: open(&paths[1]),
            paths,
            time: 1_000,
        }
    }

    pub(crate) fn reader(&self) -> OutputReader {
        OutputReader::open(&self.paths[0], &self.paths[1]).expect("both files were made")
    }

    /// Writes one record, with a time one nanosecond after the previous record's.
    pub(crate) fn record(&mut self, record: impl FnOnce(u64) -> Record) {
        self.time += 1;
        let record = record(self.time).encode();
        self.index.write_all(&record).expect("the index is writable");
    }

    /// Writes a record of output, without its bytes.
    pub(crate) fn output(&mut self, stream: Stream, length: usize) {
        let length = u32::try_from(length).expect("a short record");
        self.record(|time| Record::output(stream as usize, length, time));
    }

    pub(crate) fn write(&mut self, stream: Stream, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref();
        self.log.write_all(bytes).expect("the log is writable");
        self.output(stream, bytes.len());
    }

    pub(crate) fn stdout(&mut self, bytes: impl AsRef<[u8]>) {
        self.write(Stream::Stdout, bytes);
    }

    pub(crate) fn stderr(&mut self, bytes: impl AsRef<[u8]>) {
        self.write(Stream::Stderr, bytes);
    }

    pub(crate) fn start(&mut self) {
        self.record(Record::start);
    }

    pub(crate) fn lost(&mut self, stream: Stream, length: usize) {
        let length = u32::try_from(length).expect("a short record");
        self.record(|time| Record::lost(stream as usize, length, time));
    }
}
