//! [`Missing`]: a program or feature that this machine lacks.

use crate::error::programs;

/// A program or feature that a service needs and that this machine lacks. See
/// [`Error::missing`](crate::error::Error::missing).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Missing {
    /// The program or feature, for example `redis-server`, `PostgreSQL 17` or `IPv6`.
    pub what: String,
    /// The command that installs the program on this machine, if known.
    pub install: Option<String>,
    /// Whether the recipe allows the test to be skipped.
    pub(super) optional: bool,
}

impl Missing {
    /// A missing program or feature that the package of `program` provides.
    pub(crate) fn of(what: impl Into<String>, program: &str) -> Missing {
        Missing {
            what: what.into(),
            install: programs::install(program),
            optional: false,
        }
    }

    /// A missing feature of the kernel, which no package installs.
    pub(crate) fn feature(what: impl Into<String>) -> Missing {
        Missing {
            what: what.into(),
            install: None,
            optional: false,
        }
    }

    /// Sets whether the recipe allows the test to be skipped.
    pub(crate) fn optional(self, optional: bool) -> Missing {
        Missing { optional, ..self }
    }

    /// Whether the recipe allows the test to be skipped.
    #[doc(hidden)]
    #[must_use]
    pub fn __is_optional(&self) -> bool {
        self.optional
    }
}
