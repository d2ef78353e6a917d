//! Records where the time of a run goes, and draws the page that shows it.

pub(crate) mod events;
pub(crate) mod model;
pub(crate) mod render;
