//! Shows a run while it goes on.

pub(crate) mod progress;
pub(crate) mod trace;
