use std::io;
use std::thread::{Builder, JoinHandle};

/// Spawns a thread with this name. `work` is boxed, so that the compiler generates this code only
/// once.
pub fn spawn(name: &str, work: Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>> {
    Builder::new().name(name.to_owned()).spawn(work)
}
