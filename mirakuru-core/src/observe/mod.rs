//! Shows a run while it is in progress.

pub(crate) mod progress;
pub(crate) mod trace;
