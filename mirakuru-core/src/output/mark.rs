//! [`Mark`]: a place in everything that a service logs.

use std::path::PathBuf;

use crate::output::log_file::Place;
use crate::output::reader::{Cursor, OutputReader};

/// A place in the output and the log files of a service, at the time of a call of
/// [`Executor::mark`](crate::executor::Executor::mark).
///
/// A mark stays valid over restarts of the service and after its end. The default is the beginning
/// of all output. The usual variable name is `mark`.
#[derive(Clone, Debug, Default)]
pub struct Mark {
    pub(crate) output: Cursor,
    /// Places in the recipe's log files, in their order.
    pub(crate) files: Vec<Place>,
}

impl Mark {
    /// The end of the log so far.
    pub(crate) fn now(output: &OutputReader, files: &[PathBuf]) -> Mark {
        Mark {
            output: output.end(),
            files: files.iter().map(|path| Place::end_of(path)).collect(),
        }
    }

    /// The beginning of all output.
    pub(crate) const START: Mark = Mark {
        output: Cursor::START,
        files: Vec::new(),
    };

    /// The place in the log file with this number.
    pub(crate) fn file(&self, number: usize) -> Place {
        self.files.get(number).copied().unwrap_or_default()
    }
}
