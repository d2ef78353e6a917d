//! Describes how to start a service, as plain data.

pub(crate) mod builder;
pub(crate) mod command;
pub(crate) mod placeholder;
pub(crate) mod program;
pub(crate) mod signal;
