//! Records how a run spends its time, and shows it on a page.

pub(crate) mod events;
pub(crate) mod model;
pub(crate) mod render;
