//! [`Prefix`] keeps tests apart on a server with a single namespace.

use std::fmt;
use std::ops::Deref;

use mirakuru_core::Error;

use super::server::unique_name;

/// A prefix for the names of one test, such as `tk4x2m7qzja5w/`: 60 random bits and the server's
/// separator. It has 14 bytes: letters, digits and the separator. On an external server
/// (`MIRAKURU_*_URL`) it has up to 70 bytes, and may contain `_` and `/`.
///
/// Use it as a string: `format!("{prefix}visits")` or `&*prefix`. It needs no clean-up: the names
/// are removed with the server, and no other test gets the same prefix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix(String);

impl Prefix {
    pub(super) fn new(separator: char) -> Result<Prefix, Error> {
        Ok(Prefix(format!("{}{separator}", unique_name()?)))
    }

    pub(super) fn of(text: String) -> Prefix {
        Prefix(text)
    }

    /// The prefix as a string.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns a full key or topic: the prefix followed by `name`.
    #[must_use]
    pub fn join(&self, name: &str) -> String {
        format!("{}{name}", self.0)
    }
}

/// Defines the two methods of a handle that return a [`Prefix`]. The prefix ends with `$separator`,
/// and on an external server it begins with `$begin`.
macro_rules! prefix {
    ($handle:ident, $begin:expr, $separator:literal, $(#[$doc:meta])+ $get:ident, $try_get:ident) => {
        impl $handle {
            $(#[$doc])+
            ///
            /// # Panics
            ///
            /// Panics if the prefix cannot be created.
            #[must_use]
            #[track_caller]
            pub fn $get(&self) -> $crate::presets::Prefix {
                $crate::presets::expect(self.$try_get())
            }

            /// Like the method without `try_`, but returns an error instead of panicking.
            ///
            /// # Errors
            ///
            /// Returns [`Error::System`] if the system cannot provide random bytes, or, for an
            /// external server, if the handle's private directory is gone.
            pub fn $try_get(&self) -> Result<$crate::presets::Prefix, Error> {
                match &self.external {
                    Some(external) => external.prefix(&self.executor.dir(), $begin, $separator),
                    None => $crate::presets::Prefix::new($separator),
                }
            }
        }
    };
}
pub(super) use prefix;

impl Deref for Prefix {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Prefix {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> String {
        prefix.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_another_and_is_a_text() {
        let prefix = Prefix::new('/').unwrap();
        assert_ne!(prefix, Prefix::new('/').unwrap());
        assert_eq!(prefix.len(), 14);
        assert!(prefix.starts_with('t') && prefix.ends_with('/'));
        assert_eq!(prefix.join("x"), format!("{prefix}x"));
    }
}
