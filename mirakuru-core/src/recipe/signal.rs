//! Signals that a recipe or a test can send to a service.

use std::fmt;

use crate::sys::signals;

/// A signal to send to a service.
///
/// This is not `nix`'s `Signal`, so that the public API contains no foreign types.
///
/// ```
/// # use mirakuru_core as mirakuru;
/// use mirakuru::Signal;
/// assert_eq!(Signal::Term.to_string(), "SIGTERM");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Signal {
    /// `SIGTERM`, which asks a program to terminate: the default stop signal.
    Term,
    /// `SIGINT`, which Ctrl-C sends. For PostgreSQL it means "fast shutdown".
    Int,
    /// `SIGQUIT`. For nginx it means "finish the current requests, then exit".
    Quit,
    /// `SIGHUP`, to which many servers respond by reading their configuration again.
    Hup,
    /// `SIGKILL`, which no process can catch: the default kill signal.
    Kill,
    /// `SIGUSR1`. Its meaning depends on the service.
    Usr1,
    /// `SIGUSR2`. Its meaning depends on the service.
    Usr2,
}

impl Signal {
    /// The signal's number on this system.
    pub(crate) fn number(self) -> i32 {
        match self {
            Signal::Term => signals::TERM,
            Signal::Int => signals::INT,
            Signal::Quit => signals::QUIT,
            Signal::Hup => signals::HUP,
            Signal::Kill => signals::KILL,
            Signal::Usr1 => signals::USR1,
            Signal::Usr2 => signals::USR2,
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Signal::Term => "SIGTERM",
            Signal::Int => "SIGINT",
            Signal::Quit => "SIGQUIT",
            Signal::Hup => "SIGHUP",
            Signal::Kill => "SIGKILL",
            Signal::Usr1 => "SIGUSR1",
            Signal::Usr2 => "SIGUSR2",
        })
    }
}
