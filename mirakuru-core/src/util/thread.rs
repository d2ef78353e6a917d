//! Threads.

use std::io;
use std::thread::{Builder, JoinHandle};

/// Starts a thread. The compiler makes the code for that once for each type of `work`, so this is
/// one type.
pub(crate) fn spawn(name: &str, work: Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>> {
    Builder::new().name(name.to_owned()).spawn(work)
}
