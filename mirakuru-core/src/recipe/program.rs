//! Resolves a recipe's program as `execvp` does, and builds its environment.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::error::programs::DEFAULT_PATH;
use crate::sys::procfs::ID_VARIABLE;

/// The variable that tells a program built for coverage where to write its profile. Without it, the
/// profile ends up in the program's working directory, where no tool looks for it.
const PROFILE: &str = "LLVM_PROFILE_FILE";

/// Variables through which a test runner communicates with its service manager. The services of a
/// test must not inherit them.
const SERVICE_MANAGER: [&str; 7] = [
    "NOTIFY_SOCKET",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
];

/// The variables that a child inherits from this process: all of them, or only [`PROFILE`] after
/// `env_clear`. Names that no program could set, such as `=C:`, are left out.
pub(crate) fn inherited(clear: bool) -> BTreeMap<OsString, OsString> {
    let mut environment = BTreeMap::new();
    for (key, value) in std::env::vars_os() {
        let is_inherited = match clear {
            true => key == PROFILE,
            false => is_name(&key) && !SERVICE_MANAGER.iter().any(|name| key == *name),
        };
        if is_inherited {
            environment.insert(key, value);
        }
    }
    environment
}

fn is_name(key: &OsStr) -> bool {
    !key.is_empty() && !key.as_bytes().contains(&b'=')
}

/// The service's environment: the inherited variables, with the changes of the recipe and its
/// readiness condition, and `MIRAKURU_ID`.
pub(crate) fn environment(
    inherited: BTreeMap<OsString, OsString>,
    changes: &[(OsString, Option<OsString>)],
    id: &str,
) -> BTreeMap<OsString, OsString> {
    let mut environment = BTreeMap::new();
    for (name, value) in inherited {
        if !is_removed(&name, changes) {
            environment.insert(name, value);
        }
    }
    for (at, (name, value)) in changes.iter().enumerate() {
        if let Some(value) = value {
            if !is_removed(name, &changes[at..]) {
                environment.insert(name.clone(), value.clone());
            }
        }
    }
    environment.insert(ID_VARIABLE.into(), id.into());
    environment
}

/// Whether one of these changes removes a variable: by its name, or by the beginning of its name
/// and a `*`.
fn is_removed(name: &OsStr, changes: &[(OsString, Option<OsString>)]) -> bool {
    let name = name.as_bytes();
    changes.iter().any(|(key, value)| {
        value.is_none()
            && match key.as_bytes() {
                [prefix @ .., b'*'] => name.starts_with(prefix),
                key => name == key,
            }
    })
}

/// The paths at which to look for this program, in order.
pub(crate) fn candidates(program: &OsStr, environment: &BTreeMap<OsString, OsString>) -> Vec<PathBuf> {
    if program.as_bytes().contains(&b'/') {
        return vec![program.into()];
    }
    let path = environment
        .get(OsStr::new("PATH"))
        .map_or(OsStr::new(DEFAULT_PATH), OsString::as_os_str);
    std::env::split_paths(path).map(|dir| dir.join(program)).collect()
}

/// A string that identifies a file, and changes when the file is replaced.
pub(crate) fn file_identity(path: &Path) -> io::Result<String> {
    let file = path.metadata()?;
    Ok(format!(
        "{} {} {}.{:09} {}",
        file.dev(),
        file.ino(),
        file.mtime(),
        file.mtime_nsec(),
        file.len()
    ))
}

/// Converts `text` to a C string. The error names `command`.
pub(crate) fn c_string(text: &OsStr, command: &str) -> Result<CString, Error> {
    CString::new(text.as_bytes()).map_err(|_| Error::InvalidCommand {
        command: command.replace("\0", "\\0"),
        reason:
            "an argument or environment variable contains a zero byte, which cannot be passed to a program"
                .to_owned(),
        system: Vec::new(),
    })
}

pub(crate) fn c_strings<T: AsRef<OsStr>>(texts: &[T], command: &str) -> Result<Vec<CString>, Error> {
    let mut strings = Vec::new();
    for text in texts {
        strings.push(c_string(text.as_ref(), command)?);
    }
    Ok(strings)
}

pub(crate) fn c_environment(
    environment: &BTreeMap<OsString, OsString>,
    command: &str,
) -> Result<Vec<CString>, Error> {
    let mut entries = Vec::new();
    for (key, value) in environment {
        if !is_name(key) {
            return Err(Error::InvalidCommand {
                command: command.to_owned(),
                reason: format!(
                    "`{}` cannot be the name of an environment variable: it is empty or contains a `=`",
                    key.to_string_lossy()
                ),
                system: Vec::new(),
            });
        }
        let mut entry = key.clone().into_vec();
        entry.push(b'=');
        entry.extend_from_slice(value.as_bytes());
        entries.push(c_string(OsStr::from_bytes(&entry), command)?);
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_apply_in_the_order_they_were_made() {
        let changes = [
            ("A".into(), Some("1".into())),
            ("B".into(), Some("2".into())),
            ("A".into(), None),
            ("C".into(), None),
            ("C".into(), Some("4".into())),
            ("D".into(), None),
        ];
        let inherited = ["B", "C", "D", "E"].map(|name| (name.into(), "0".into()));
        let environment = environment(inherited.into(), &changes, "id7");
        let entries: Vec<_> = environment
            .iter()
            .map(|(key, value)| (key.to_str().unwrap(), value.to_str().unwrap()))
            .collect();
        assert_eq!(
            entries,
            [("B", "2"), ("C", "4"), ("E", "0"), ("MIRAKURU_ID", "id7")]
        );
    }

    #[test]
    fn a_star_removes_every_variable_that_begins_so_and_none_that_is_set_later() {
        let changes = [
            ("PGHOST".into(), Some("far".into())),
            ("APG".into(), Some("2".into())),
            ("PG*".into(), None),
            ("PGDATA".into(), Some("3".into())),
        ];
        let environment = environment(BTreeMap::new(), &changes, "id7");
        let names: Vec<_> = environment.keys().map(|key| key.to_str().unwrap()).collect();
        assert_eq!(names, ["APG", "MIRAKURU_ID", "PGDATA"]);
    }

    #[test]
    fn the_services_own_path_counts() {
        let environment = environment(BTreeMap::new(), &[("PATH".into(), Some("/a:/b".into()))], "");
        assert_eq!(
            candidates("x".as_ref(), &environment),
            [Path::new("/a/x"), Path::new("/b/x")]
        );
        assert_eq!(candidates("./x".as_ref(), &environment), [Path::new("./x")]);
    }

    #[test]
    fn bad_variables_are_refused() {
        for key in ["", "A=B"] {
            let environment = [(key.into(), "x".into())].into();
            let error = c_environment(&environment, "server").expect_err("no such variable can be");
            assert!(error.to_string().contains("environment variable"), "{error}");
        }
        assert!(c_string("a\0b".as_ref(), "server").is_err());
    }
}
