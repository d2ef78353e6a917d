//! Where the time of a run went: what its processes record, and the page that is drawn of it.

pub(crate) mod events;
pub(crate) mod model;
pub(crate) mod render;
