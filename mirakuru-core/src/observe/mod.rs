//! How a run is seen while it goes on.

pub(crate) mod progress;
pub(crate) mod trace;
