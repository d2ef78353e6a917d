//! [`NoWait`]: no condition at all.

use std::io;

use super::{Probe, Readiness};

/// Ready as soon as the program has been executed. What a recipe has without
/// [`wait_for`](crate::recipe::builder::ExecutorBuilder::wait_for).
///
/// The program has replaced its starter by then, so that a missing one is an error, but it may not have done anything
/// yet, and may fail at once: use it for programs that need no wait, or to wait by
/// [`Executor::wait_until`](crate::executor::Executor::wait_until) later.
///
/// ```
/// # use mirakuru_core as mirakuru;
/// use mirakuru::{Executor, NoWait, SimpleExecutor};
///
/// let mut sleeper: SimpleExecutor = Executor::builder("sleep 60").wait_for(NoWait).start()?;
/// sleeper.stop()?;
/// # Ok::<(), mirakuru_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct NoWait;

impl Readiness for NoWait {
    fn describe(&self) -> String {
        "it was executed".to_owned()
    }
    fn probe(&mut self, _: &Probe<'_>) -> io::Result<bool> {
        Ok(true)
    }

    fn is_immediate(&self) -> bool {
        true
    }
}
