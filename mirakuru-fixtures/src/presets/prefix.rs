//! [`Prefix`] keeps tests apart on a server with one space of names.

use std::fmt;
use std::ops::Deref;

use mirakuru_core::Error;

use super::server::unique_name;

/// A prefix for names of one test: 60 random bits and the server's own separator, such as
/// `tk4x2m7qzja5w/`. It has 14 bytes: letters, digits and that separator. On a server in a
/// `MIRAKURU_*_URL` it has up to 70 bytes, which may include `_` and `/`.
///
/// Use it as a text: `format!("{prefix}visits")`, `&*prefix`. It need not be given back: the names
/// disappear with the server, and no other test gets the same prefix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix(String);

impl Prefix {
    pub(super) fn new(separator: char) -> Result<Prefix, Error> {
        Ok(Prefix(format!("{}{separator}", unique_name()?)))
    }

    /// Makes a prefix from a unique text.
    pub(super) fn of(text: String) -> Prefix {
        Prefix(text)
    }

    /// The prefix as a text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A whole key or topic: the prefix with this name after it.
    #[must_use]
    pub fn join(&self, name: &str) -> String {
        format!("{}{name}", self.0)
    }
}

/// Makes the two methods of a handle that return a [`Prefix`]. On an external server the prefix
/// begins with this text; it ends with this separator.
macro_rules! prefix {
    ($handle:ident, $begin:expr, $separator:literal, $(#[$doc:meta])+ $get:ident, $try_get:ident) => {
        impl $handle {
            $(#[$doc])+
            ///
            /// # Panics
            ///
            /// If the system gives no randomness.
            #[must_use]
            #[track_caller]
            pub fn $get(&self) -> $crate::presets::Prefix {
                $crate::presets::expect(self.$try_get())
            }

            /// Makes the prefix as the method above, but returns the error.
            ///
            /// # Errors
            ///
            /// [`Error::System`] if the system gives no randomness, or if an external server is not
            /// there.
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
