//! [`Mark`]: a place in everything that a service logs.

use std::path::PathBuf;

use crate::output::log_file::Place;
use crate::output::reader::{Cursor, OutputReader};

/// A place in the output and the log files of a service: the moment at which
/// [`Executor::mark`](crate::executor::Executor::mark) was called.
///
/// It stays valid over restarts of the service and after its end. The default is the beginning of
/// everything. The usual variable name is `mark`.
#[derive(Clone, Debug, Default)]
pub struct Mark {
    pub(crate) output: Cursor,
    /// In the order of the recipe's log files.
    pub(crate) files: Vec<Place>,
}

impl Mark {
    /// The end of everything that has been logged so far.
    pub(crate) fn now(output: &OutputReader, files: &[PathBuf]) -> Mark {
        Mark {
            output: output.end(),
            files: files.iter().map(|path| Place::end_of(path)).collect(),
        }
    }

    /// The beginning of everything.
    pub(crate) const START: Mark = Mark {
        output: Cursor::START,
        files: Vec::new(),
    };

    /// The place in the log file with this number.
    pub(crate) fn file(&self, number: usize) -> Place {
        self.files.get(number).copied().unwrap_or_default()
    }
}
