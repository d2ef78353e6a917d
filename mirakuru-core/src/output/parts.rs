//! The files of a log. When the first file has reached half of the log's limit, the log continues
//! in later parts, of which only the last two are kept. See [`log_record`](crate::sys::log_record).
//!
//! Offsets count from the beginning of the whole log or index, across all parts.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::sys::log_record::{self, Record};

/// A position, as offsets in the index and in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) index: u64,
    pub(crate) log: u64,
}

/// One part of the log. Its two files are kept open, so they stay readable after their removal.
#[derive(Debug)]
struct Part {
    number: u32,
    log: File,
    index: File,
    paths: [PathBuf; 2],
    begin: Place,
}

/// A snapshot of the known parts of a log.
#[derive(Clone, Debug)]
pub(super) struct View {
    /// Each part, with the position at which it ends.
    parts: Vec<(Arc<Part>, Place)>,
    /// The length of the log, measured before the index was read.
    earlier_length: u64,
}

/// The parts of a log that are known so far.
#[derive(Debug)]
pub(super) struct Parts(Mutex<View>);

impl Parts {
    pub(super) fn open(log: &Path, index: &Path, open: fn(&Path) -> io::Result<File>) -> io::Result<Parts> {
        let first = Part {
            number: 0,
            log: open(log)?,
            index: open(index)?,
            paths: [log.to_owned(), index.to_owned()],
            begin: Place::default(),
        };
        Ok(Parts(Mutex::new(View {
            parts: vec![(Arc::new(first), Place::default())],
            earlier_length: 0,
        })))
    }

    /// Looks for new parts, and returns all known ones.
    pub(super) fn view(&self) -> io::Result<View> {
        // A panic elsewhere leaves the list consistent, because a part is added in one step.
        let mut view = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        view.update()?;
        Ok(view.clone())
    }
}

impl View {
    fn update(&mut self) -> io::Result<()> {
        loop {
            let Some((part, end)) = self.parts.last_mut() else {
                return Ok(());
            };
            self.earlier_length = part.begin.log + part.log.metadata()?.len();
            // Measure the index before the log. The supervisor writes bytes before their record, so
            // the log then contains the bytes of every measured record.
            let index = part.index.metadata()?.len() / log_record::SIZE as u64 * log_record::SIZE as u64;
            let mut record = [0; log_record::SIZE];
            let last = index.checked_sub(log_record::SIZE as u64);
            let next = last.filter(|at| part.index.read_exact_at(&mut record, *at).is_ok());
            let record = Record::decode(&record);
            let Some(next) = next.and_then(|_| record.as_next()) else {
                *end = Place {
                    index: part.begin.index + index,
                    log: part.begin.log + part.log.metadata()?.len(),
                };
                return Ok(());
            };
            *end = Place {
                index: part.begin.index + index,
                log: part.begin.log + record.time,
            };
            let dir = self.parts[0].0.paths[0].parent().unwrap_or(Path::new("."));
            // The next part may have been removed already. Take the oldest later part that is left.
            let mut found: Option<Part> = None;
            for name in 1..=3 {
                let limit = found.as_ref().map_or(u32::MAX, |part| part.number);
                if let Some(part) = Part::open(dir, name) {
                    if (next..limit).contains(&part.number) {
                        found = Some(part);
                    }
                }
            }
            let Some(found) = found else {
                // The index announces another part, but that part and all later ones have been
                // removed.
                self.earlier_length = self.end().log;
                return Ok(());
            };
            if found.number > next {
                self.parts.truncate(1);
            }
            self.parts.push((Arc::new(found), Place::default()));
            // Keep at most three parts, as the supervisor does.
            if self.parts.len() > 3 {
                self.parts.remove(1);
            }
        }
    }

    /// The position at which the last part ends.
    pub(super) fn end(&self) -> Place {
        self.parts.last().map_or(Place::default(), |(_, end)| *end)
    }

    /// The length of the log, measured before the index was read. All bytes up to this offset have
    /// a record in the index, except for orphans.
    pub(super) fn earlier_length(&self) -> u64 {
        self.earlier_length
    }

    /// The log and the index of the last part, the number of the part, and its beginning. For the
    /// first part, duplicates the open descriptors, which costs less than `open`.
    pub(super) fn last(&self, open: fn(&Path) -> io::Result<File>) -> io::Result<([File; 2], u32, Place)> {
        let (part, _) = self.parts.last().ok_or(io::ErrorKind::NotFound)?;
        let files = match part.number {
            0 => [part.log.try_clone()?, part.index.try_clone()?],
            _ => [open(&part.paths[0])?, open(&part.paths[1])?],
        };
        Ok((files, part.number, part.begin))
    }

    /// The positions at which the left-out output begins and ends. `None` if nothing was left out.
    pub(super) fn gap(&self) -> Option<[Place; 2]> {
        let [(_, end), (next, _), ..] = self.parts.as_slice() else {
            return None;
        };
        (next.number > 1).then_some([*end, next.begin])
    }

    pub(super) fn read_index(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        self.read(buffer, at, |place| place.index, |part| &part.index)
    }

    pub(super) fn read_log(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        self.read(buffer, at, |place| place.log, |part| &part.log)
    }

    /// Reads until the buffer is full, the log ends, or left-out output begins.
    fn read(
        &self,
        buffer: &mut [u8],
        at: u64,
        offset: fn(Place) -> u64,
        file: fn(&Part) -> &File,
    ) -> io::Result<usize> {
        let mut filled = 0;
        for (part, end) in &self.parts {
            let (begin, end) = (offset(part.begin), offset(*end));
            let from = at + filled as u64;
            if from < begin || from >= end {
                continue;
            }
            let left = buffer.len() - filled;
            let count = usize::try_from(end - from).map_or(left, |n| n.min(left));
            let wanted = &mut buffer[filled..filled + count];
            filled += read_full_at(file(part), wanted, from - begin)?;
        }
        Ok(filled)
    }
}

impl Part {
    /// Opens a later part. Returns `None` if there is no part with this name, or if the part is
    /// being replaced.
    fn open(dir: &Path, name: u32) -> Option<Part> {
        let paths = log_record::part(name).map(|name| dir.join(OsStr::from_bytes(name.to_bytes())));
        let index = File::open(&paths[1]).ok()?;
        let log = File::open(&paths[0]).ok()?;
        let mut head = [0; 2 * log_record::SIZE];
        index.read_exact_at(&mut head, 0).ok()?;
        let first = Record::decode(&head);
        let second = Record::decode(&head[log_record::SIZE..]);
        let begin = Place {
            log: first.as_part()?,
            index: second.time,
        };
        // The supervisor removes the index before the log. If the index is still there, both files
        // belong to the same part.
        let identity = |file: Metadata| (file.dev(), file.ino());
        let still = paths[1].symlink_metadata().ok().map(identity);
        (still == index.metadata().ok().map(identity)).then_some(Part {
            number: first.length,
            log,
            index,
            paths,
            begin,
        })
    }
}

/// Reads until the buffer is full or the file ends.
fn read_full_at(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}
