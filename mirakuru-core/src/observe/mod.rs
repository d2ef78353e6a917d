//! Shows what a run is doing while it is in progress.

pub(crate) mod progress;
pub(crate) mod trace;
