//! Records how a run spends its time, and draws a page from that.

pub(crate) mod events;
pub(crate) mod model;
pub(crate) mod render;
