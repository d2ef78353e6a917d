//! [`Mark`]: a position in the logs of a service.

use std::hash::Hasher;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::output::log_file::Place;
use crate::output::reader::{Cursor, OutputReader};
use crate::util::hash::Fnv1a;

/// A position in the output and the log files of a service, returned by
/// [`Executor::mark`](crate::executor::Executor::mark).
///
/// A mark stays valid when the service restarts or ends. The default mark is the beginning of all
/// output. Variables of this type are usually named `mark`.
///
/// A mark is valid only for the service that created it. Other services refuse it.
#[derive(Clone, Debug, Default)]
pub struct Mark {
    /// Hash of the path of the service's log. 0 for the default mark, which is valid for every
    /// service.
    service: u64,
    pub(crate) output: Cursor,
    /// Positions in the log files, in the order of the recipe.
    pub(crate) files: Vec<Place>,
}

impl Mark {
    /// A mark at the current end of the logs.
    pub(crate) fn now(output: &OutputReader, files: &[PathBuf]) -> Mark {
        Mark {
            service: service(output),
            output: output.end(),
            files: files.iter().map(|path| Place::end_of(path)).collect(),
        }
    }

    /// The beginning of all output.
    pub(crate) const START: Mark = Mark {
        service: 0,
        output: Cursor::START,
        files: Vec::new(),
    };

    /// If the mark belongs to another service, returns the reason to refuse it.
    pub(crate) fn refusal(&self, output: &OutputReader) -> Option<&'static str> {
        let is_another = self.service != 0 && self.service != service(output);
        is_another.then_some("the mark belongs to another service: use one from `mark()` of this service")
    }

    /// The position in the log file with this number.
    pub(crate) fn file(&self, number: usize) -> Place {
        self.files.get(number).copied().unwrap_or_default()
    }
}

/// Hash that identifies a service, made from the path of its log.
fn service(output: &OutputReader) -> u64 {
    let mut hash = Fnv1a(0);
    hash.write(output.path.as_os_str().as_bytes());
    hash.finish()
}
