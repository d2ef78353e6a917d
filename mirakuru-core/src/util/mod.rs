//! Small things that many folders need.

pub(crate) mod deadline;
