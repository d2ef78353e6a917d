//! Files, locks, terminals, and waiting for descriptors.

pub(crate) mod file_watch;
pub(crate) mod files;
pub(crate) mod log_record;
pub(crate) mod pipe;
pub(crate) mod remove;
pub(crate) mod terminal;
pub(crate) mod wait;
