//! Follows a log file that the service writes itself. The file is found by name, so it can be
//! rotated or truncated.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Number of bytes read at a time.
const BLOCK: usize = 64 * 1024;

/// A position in a log file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    /// Device and inode of the file. If `None`, reading starts at the beginning.
    file: Option<(u64, u64)>,
    offset: u64,
}

impl Place {
    /// The current end of the file.
    pub(crate) fn end_of(path: &Path) -> Place {
        path.metadata().map_or_else(
            |_| Place::default(),
            |metadata| Place {
                file: Some(identity(&metadata)),
                offset: metadata.len(),
            },
        )
    }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Reads a log file while it grows.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    at: Place,
    open: Option<File>,
    /// Whether the next byte begins a line.
    at_line_start: bool,
}

/// A clone continues at the same position, with its own descriptor.
impl Clone for LogFile {
    fn clone(&self) -> LogFile {
        LogFile::new(&self.path, self.at)
    }
}

impl LogFile {
    pub(crate) fn new(path: &Path, from: Place) -> LogFile {
        LogFile {
            path: path.to_owned(),
            at: from,
            open: None,
            at_line_start: true,
        }
    }

    /// Reads everything that was written since the last call. A missing file counts as empty. If
    /// the file was replaced, first reads the rest of the old file.
    pub(crate) fn read(&mut self, each: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        loop {
            if self.open.is_none() {
                let file = match File::open(&self.path) {
                    Ok(file) => file,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                    Err(error) => return Err(error),
                };
                let metadata = file.metadata()?;
                if self.at.file != Some(identity(&metadata)) {
                    self.at = Place {
                        file: Some(identity(&metadata)),
                        offset: 0,
                    };
                }
                self.open = Some(file);
            }
            // Check the path before reading the rest. If it already leads to a new file, the
            // service no longer writes to the old one.
            let named = self.path.metadata().ok().map(|metadata| identity(&metadata));
            self.read_rest(each)?;
            if named == self.at.file || named.is_none() {
                return Ok(());
            }
            self.open = None;
            self.end_line(each);
        }
    }

    fn read_rest(&mut self, each: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        let Some(file) = &self.open else {
            return Ok(());
        };
        let length = file.metadata()?.len();
        if length < self.at.offset {
            // The file was truncated.
            self.at.offset = 0;
            if !self.at_line_start {
                self.at_line_start = true;
                each(b"\n");
            }
        }
        let mut block = vec![0; BLOCK];
        // Stop at `length`, so that a fast writer cannot keep this loop running.
        while self.at.offset < length {
            let wanted = usize::try_from(length - self.at.offset).map_or(BLOCK, |rest| rest.min(BLOCK));
            match file.read_at(&mut block[..wanted], self.at.offset) {
                Ok(0) => break,
                Ok(got) => {
                    each(&block[..got]);
                    self.at.offset += got as u64;
                    self.at_line_start = block[got - 1] == b'\n';
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Passes a line feed to `each` if the last line is unfinished, because the next file does not
    /// continue that line.
    fn end_line(&mut self, each: &mut dyn FnMut(&[u8])) {
        if !std::mem::replace(&mut self.at_line_start, true) {
            each(b"\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;
    use crate::readiness::harness::TestDir;

    fn read(file: &mut LogFile) -> String {
        let mut bytes = Vec::new();
        file.read(&mut |part| bytes.extend_from_slice(part)).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_file_is_followed_by_its_name() {
        let dir = TestDir::new();
        let path = dir.path().join("app.log");
        let mut follower = LogFile::new(&path, Place::default());
        assert_eq!(read(&mut follower), "");
        let mut file = File::create(&path).unwrap();
        file.write_all(b"one\ntw").unwrap();
        assert_eq!(read(&mut follower), "one\ntw");
        file.write_all(b"o\n").unwrap();
        let end = Place::end_of(&path);
        assert_eq!(read(&mut follower), "o\n");
        // Rename the file while its end is still unread, and create a new one.
        file.write_all(b"the old fil").unwrap();
        fs::rename(&path, dir.path().join("app.log.1")).unwrap();
        let mut file = File::create(&path).unwrap();
        file.write_all(b"the new file\n").unwrap();
        assert_eq!(read(&mut follower), "the old fil\nthe new file\n");
        assert_eq!(read(&mut follower), "");
        // Truncate the file, like logrotate's `copytruncate`.
        file.set_len(0).unwrap();
        file.write_at(b"short\n", 0).unwrap();
        assert_eq!(read(&mut follower), "short\n");
        // `end` is a position in the first file, so the current file is read from its beginning.
        assert_eq!(read(&mut LogFile::new(&path, end)), "short\n");
        fs::remove_file(&path).unwrap();
        assert_eq!(read(&mut follower), "");
    }

    #[test]
    fn a_copy_and_a_place_go_on_where_they_were_made() {
        let dir = TestDir::new();
        let path = dir.path().join("app.log");
        fs::write(&path, "before\n").unwrap();
        let mut first = LogFile::new(&path, Place::end_of(&path));
        let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"after\n").unwrap();
        let mut copy = first.clone();
        assert_eq!(read(&mut first), "after\n");
        assert_eq!(read(&mut copy), "after\n");
    }
}
