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
    macro_rules! name {
        ($($name:ident)*) => {
            match signal {
                $(libc::$name => Some(stringify!($name)),)*
                _ => None,
            }
        };
    }
    let name = name!(
        SIGHUP SIGINT SIGQUIT SIGILL SIGTRAP SIGABRT SIGBUS SIGFPE SIGKILL SIGUSR1 SIGSEGV SIGUSR2 SIGPIPE
        SIGALRM SIGTERM SIGCHLD SIGCONT SIGSTOP SIGTSTP SIGTTIN SIGTTOU SIGURG SIGXCPU SIGXFSZ SIGVTALRM
        SIGPROF SIGWINCH SIGIO SIGSYS
    );
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let name = name.or(name!(SIGPWR));
    name
}

/// Whether this signal ended the process.
pub(crate) fn is_death_by(status: ExitStatus, signal: i32) -> bool {
    status.signal() == Some(signal)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The standard library knows them, too.
    #[test]
    fn a_signal_has_the_name_that_the_system_gives_it() {
        for signal in 1..=31 {
            let status = ExitStatus::from_raw(signal).to_string();
            let Some(name) = name(signal) else { continue };
            assert!(status.contains(&format!("({name})")), "{name}: {status}");
        }
        assert_eq!(name(KILL), Some("SIGKILL"));
        assert_eq!(name(64), None);
    }
}
