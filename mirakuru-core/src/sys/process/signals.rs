//! The numbers and names of signals.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

pub(crate) const TERM: i32 = libc::SIGTERM;
pub(crate) const INT: i32 = libc::SIGINT;
pub(crate) const QUIT: i32 = libc::SIGQUIT;
pub(crate) const HUP: i32 = libc::SIGHUP;
pub(crate) const KILL: i32 = libc::SIGKILL;
pub(crate) const USR1: i32 = libc::SIGUSR1;
pub(crate) const USR2: i32 = libc::SIGUSR2;

/// The name of a signal, for example `SIGSEGV`.
pub(crate) fn name(signal: i32) -> Option<&'static str> {
    nix::sys::signal::Signal::try_from(signal)
        .ok()
        .map(nix::sys::signal::Signal::as_str)
}

/// Whether this signal killed the process.
pub(crate) fn is_death_by(status: ExitStatus, signal: i32) -> bool {
    status.signal() == Some(signal)
}
