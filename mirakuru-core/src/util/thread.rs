//! Starts threads.

use std::io;
use std::thread::{Builder, JoinHandle};

/// Starts a thread. `work` has a fixed type, so that the compiler makes this code only once.
pub fn spawn(name: &str, work: Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>> {
    Builder::new().name(name.to_owned()).spawn(work)
}
