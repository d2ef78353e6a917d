//! Where the time of a run went: its processes record it, and a page shows it.

pub(crate) mod events;
pub(crate) mod model;
pub(crate) mod render;
