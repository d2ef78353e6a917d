//! [`Check`]: a condition given as a closure.

use crate::util::hash;
use std::fmt;
use std::hash::Hasher;
use std::io;
use std::sync::Arc;

use super::{Probe, Readiness};

type Look = dyn Fn(&Probe<'_>) -> io::Result<bool> + Send + Sync;

/// Ready when a closure says so: for what the other conditions do not cover, where a type of one's
/// own that implements [`Readiness`] would be too much.
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
/// The closure gets a [`Probe`], which knows the service's ports, its directory, its output and the
/// time that is left. `Ok(false)` and an error both mean "not yet"; the last error is in the report
/// when the service does not become ready, and one of kind [`io::ErrorKind::InvalidInput`] ends the
/// wait. It is called again and again, ever more seldom, and must not block for long: the exit of
/// the service is not noticed meanwhile.
#[derive(Clone)]
pub struct Check {
    sentence: String,
    poll: Arc<Look>,
}

impl Check {
    /// A condition: what it is, in the past tense, as the end of a sentence that begins with
    /// "before", and one look at it.
    pub fn new(
        sentence: impl Into<String>,
        poll: impl Fn(&Probe<'_>) -> io::Result<bool> + Send + Sync + 'static,
    ) -> Check {
        Check {
            sentence: sentence.into(),
            poll: Arc::new(poll),
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
        // The closure is known by the sentence alone.
        let Check { sentence, poll: _ } = self;
        hash::text(hasher, sentence);
    }
    fn probe(&mut self, cx: &Probe<'_>) -> io::Result<bool> {
        (self.poll)(cx)
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
        assert!(!harness.probe(&mut check).unwrap());
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
