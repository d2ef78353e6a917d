//! [`Check`]: a condition given as a closure.

use crate::util::hash;
use std::fmt;
use std::hash::Hasher;
use std::io;
use std::sync::Arc;

use super::{Prepare, Probe, Readiness};
use crate::error::Error;

type Closure = dyn Fn(&Probe<'_>) -> io::Result<bool> + Send + Sync;

/// Ready when a closure returns `Ok(true)`. Use it if no other condition fits. For a
/// reusable condition, implement [`Readiness`] instead.
///
/// ```
/// # use mirakuru_core as mirakuru;
/// use mirakuru::{Check, Executor};
///
/// let mut service = Executor::builder("echo 1 > state; echo 2 >> state; exec sleep 60")
///     .shell(true)
///     .current_dir("{dir}")
///     .wait_for(Check::new("it wrote two lines of state", |cx| {
///         let state = std::fs::read_to_string(cx.dir().join("state"))?;
///         Ok(state.lines().count() == 2)
///     }))
///     .start()?;
/// service.stop()?;
/// # Ok::<(), mirakuru_core::Error>(())
/// ```
///
/// The closure gets a [`Probe`] with the service's ports, its directory, its output and the time
/// that is left. `Ok(false)` and an error both mean "not yet". An error can give a reason:
/// `Err(io::Error::other("2 of 3 nodes have joined"))`. If the service does not become ready, the
/// report shows the last reason, or how often the closure returned false. An error of kind
/// [`io::ErrorKind::InvalidInput`] ends the wait.
///
/// The closure is called repeatedly, with growing pauses. It must not block for long, because
/// mirakuru cannot notice in the meantime that the service has exited.
#[derive(Clone)]
pub struct Check {
    sentence: String,
    poll: Arc<Closure>,
    /// How often the closure has returned false since the start.
    refusals: u32,
}

impl Check {
    /// Creates a condition from a sentence and a closure. The sentence is in the past tense and
    /// follows the word "before" in errors, for example "it wrote two lines of state".
    pub fn new(
        sentence: impl Into<String>,
        poll: impl Fn(&Probe<'_>) -> io::Result<bool> + Send + Sync + 'static,
    ) -> Check {
        Check {
            sentence: sentence.into(),
            poll: Arc::new(poll),
            refusals: 0,
        }
    }
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Check").field(&self.sentence).finish()
    }
}

impl Readiness for Check {
    fn describe(&self) -> String {
        self.sentence.clone()
    }

    fn fingerprint(&self, hasher: &mut dyn Hasher) {
        // Closures cannot be compared, so only the sentence is hashed.
        let Check {
            sentence,
            poll: _,
            refusals: _,
        } = self;
        hash::text(hasher, sentence.as_ref());
    }

    fn prepare(&mut self, _: &mut Prepare<'_>) -> Result<(), Error> {
        self.refusals = 0;
        Ok(())
    }

    fn probe(&mut self, cx: &Probe<'_>) -> io::Result<bool> {
        if (self.poll)(cx)? {
            return Ok(true);
        }
        self.refusals += 1;
        Err(io::Error::other(match self.refusals {
            1 => "the check returned false".to_owned(),
            times => format!("the check returned false, {times} times"),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::harness::Harness;
    use super::*;

    #[test]
    fn the_closure_decides_and_sees_the_service() {
        let harness = Harness::new();
        harness.log.lock().unwrap().stdout("of an earlier start\n");
        let mut check = Check::new("it said so", |cx| {
            assert_eq!(cx.dir().join("x").file_name().unwrap(), "x");
            Ok(cx.logs().stdout() == "so\n")
        });
        harness.prepare(&mut check).unwrap();
        assert_eq!(check.describe(), "it said so");
        let refusal = harness.probe(&mut check).unwrap_err().to_string();
        assert_eq!(refusal, "the check returned false");
        let refusal = harness.probe(&mut check).unwrap_err().to_string();
        assert_eq!(refusal, "the check returned false, 2 times");
        harness.log.lock().unwrap().stdout("so\n");
        assert!(harness.probe(&mut check).unwrap());
    }

    #[test]
    fn an_error_stays_what_it_is() {
        let harness = Harness::new();
        let mut check = Check::new("x", |_| Err(io::ErrorKind::InvalidInput.into()));
        assert_eq!(
            harness.probe(&mut check).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
    }
}
