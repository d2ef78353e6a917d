//! The output of a service: how it is stored, read and shown.

pub(crate) mod logs;
