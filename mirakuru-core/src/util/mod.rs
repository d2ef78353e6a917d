//! Small things that many folders need.

pub(crate) mod backoff;
pub(crate) mod deadline;
pub(crate) mod hash;
#[cfg(test)]
pub(crate) mod own_process;
pub(crate) mod say;
pub(crate) mod settings;
pub(crate) mod text;
pub(crate) mod thread;
pub(crate) mod wakeup;
