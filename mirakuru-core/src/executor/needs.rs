//! Finds the services that a service needs. These are services of this process whose port or
//! directory appears in its command, its environment or its files. When the process or the run
//! ends, they end after it.
//!
//! For example, an application with the address of its database stops before the database, however
//! they end. A wrong guess only makes one end wait for another.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// A service that has been ready, or to which this process has attached.
struct Known {
    /// The service's private directory, the parent of `{dir}`.
    private: PathBuf,
    ports: Vec<u16>,
    /// The service's `{dir}`, and its socket or file outside the private directory.
    paths: Vec<PathBuf>,
}

/// Number of services at which the list drops those that are gone.
const MANY: usize = 64;

static KNOWN: Mutex<Vec<Known>> = Mutex::new(Vec::new());

/// Notes a service on which later ones may depend.
pub(super) fn note(private: &Path, ports: Vec<u16>, paths: Vec<PathBuf>) {
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if known.len() >= MANY {
        known.retain(|known| is_there(&known.private));
    }
    known.retain(|known| known.private != private);
    known.push(Known {
        private: private.to_owned(),
        ports,
        paths,
    });
}

/// Finds the private directories of the services in these texts, except for `own`.
pub(super) fn named_in<'a>(texts: impl Iterator<Item = &'a [u8]>, own: &Path) -> Vec<PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    let texts: Vec<&[u8]> = texts.collect();
    let known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let is_named = |known: &&Known| {
        let ports = || known.ports.iter().map(u16::to_string);
        texts.iter().any(|text| {
            ports().any(|port| has_number(text, port.as_bytes()))
                || known
                    .paths
                    .iter()
                    .any(|path| contains(text, path.as_os_str().as_bytes()))
        })
    };
    known
        .iter()
        .filter(|known| known.private != own)
        .filter(is_named)
        .filter(|known| is_there(&known.private))
        .map(|known| known.private.clone())
        .collect()
}

/// Whether a service still has its `lock`, which is removed last.
fn is_there(private: &Path) -> bool {
    private.join("lock").exists()
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    !part.is_empty() && text.windows(part.len()).any(|window| window == part)
}

/// Whether a text has these digits as a whole number.
fn has_number(text: &[u8], digits: &[u8]) -> bool {
    let is_digit = |at: Option<usize>| at.and_then(|at| text.get(at)).is_some_and(u8::is_ascii_digit);
    text.windows(digits.len()).enumerate().any(|(at, window)| {
        window == digits && !is_digit(at.checked_sub(1)) && !is_digit(at.checked_add(digits.len()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_found_whole() {
        assert!(has_number(b"redis://127.0.0.1:6379/0", b"6379"));
        assert!(has_number(b"6379", b"6379"));
        assert!(!has_number(b"16379 63791", b"6379"));
        assert!(!has_number(b"637", b"6379"));
    }

    #[test]
    fn a_service_is_named_by_its_port_or_its_directory_while_it_is_there() {
        let dir = crate::sys::tests::TestDir::new();
        let private = dir.path().join("db");
        std::fs::create_dir(&private).unwrap();
        std::fs::write(private.join("lock"), "").unwrap();
        note(&private, vec![54_321], vec![private.join("d")]);
        let needs = |text: &str, own: &str| named_in([text.as_bytes()].into_iter(), Path::new(own));
        let socket = format!("--socket={}/s", private.join("d").display());
        assert_eq!(
            needs("tcp://localhost:54321", "/app"),
            std::slice::from_ref(&private)
        );
        assert_eq!(needs(&socket, "/app"), std::slice::from_ref(&private));
        assert!(needs("tcp://localhost:54320", "/app").is_empty());
        assert!(needs(&socket, private.to_str().unwrap()).is_empty(), "itself");
        std::fs::remove_file(private.join("lock")).unwrap();
        assert!(needs(&socket, "/app").is_empty());
    }
}
