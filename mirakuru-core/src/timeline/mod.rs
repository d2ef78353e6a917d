//! The page that shows where the time of a run went.

pub(crate) mod model;
pub(crate) mod render;
