//! [`NoWait`]: a start without a condition.

use std::io;

use super::{Probe, Readiness};
pub use crate::recipe::builder::NoWait;

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
