//! From a recipe to a running process: resolves the program and the environment as `execvp` would, before the fork, and
//! says what was wrong when the program could not be executed.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::recipe::builder::{Spec, Stdio, StdioKind};
use crate::sys::{SpawnFailure, Stage, Stream};

/// Where programs are looked for when the service has no `PATH`: what `execvp` of glibc does.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// What the service's environment is: what it inherits, what the recipe changes, what its readiness needs, the mark.
pub(crate) fn environment(
    inherit: bool,
    changes: &[(OsString, Option<OsString>)],
    id: &str,
) -> BTreeMap<OsString, OsString> {
    let mut environment: BTreeMap<OsString, OsString> = if inherit {
        std::env::vars_os().collect()
    } else {
        BTreeMap::new()
    };
    for (key, value) in changes {
        match value {
            Some(value) => environment.insert(key.clone(), value.clone()),
            None => environment.remove(key),
        };
    }
    environment.insert("MIRAKURU_ID".into(), id.into());
    environment
}

/// The files to try, in order, to execute this program.
pub(crate) fn candidates(program: &OsStr, environment: &BTreeMap<OsString, OsString>) -> Vec<PathBuf> {
    if program.as_bytes().contains(&b'/') {
        return vec![program.into()];
    }
    let path = environment
        .get(OsStr::new("PATH"))
        .map_or(OsStr::new(DEFAULT_PATH), OsString::as_os_str);
    std::env::split_paths(path).map(|dir| dir.join(program)).collect()
}

/// A text as the kernel takes it.
pub(crate) fn c_string(text: &OsStr, command: &str) -> Result<CString, Error> {
    CString::new(text.as_bytes()).map_err(|_| Error::InvalidCommand {
        command: command.replace('\0', "\\0"),
        reason: "it has a zero byte in an argument or an environment variable, which no program can get"
            .to_owned(),
    })
}

pub(crate) fn c_environment(
    environment: &BTreeMap<OsString, OsString>,
    command: &str,
) -> Result<Vec<CString>, Error> {
    let entry = |(key, value): (&OsString, &OsString)| {
        if key.is_empty() || key.as_bytes().contains(&b'=') {
            return Err(Error::InvalidCommand {
                command: command.to_owned(),
                reason: format!(
                    "`{}` cannot be the name of an environment variable: it is empty or has a `=` in it",
                    key.to_string_lossy()
                ),
            });
        }
        let mut entry = key.clone().into_vec();
        entry.push(b'=');
        entry.extend_from_slice(value.as_bytes());
        c_string(OsStr::from_bytes(&entry), command)
    };
    environment.iter().map(entry).collect()
}

/// A standard stream of the recipe as the supervisor takes it; for a piped input also the end that the test writes to.
pub(crate) fn stream(stdio: &Stdio, number: i32) -> io::Result<(Stream, Option<OwnedFd>)> {
    Ok(match &stdio.0 {
        StdioKind::Null => (Stream::Null, None),
        StdioKind::Inherit => (Stream::Inherit(number), None),
        StdioKind::File(file) => (Stream::Fd(file.try_clone()?.into()), None),
        StdioKind::Piped if number == 0 => {
            let (read, write) = crate::sys::pipe()?;
            (Stream::Fd(read), Some(write))
        }
        StdioKind::Piped => (Stream::Log, None),
    })
}

/// Turns the kernel's short word into what a person needs: which of program, interpreter and directory it is about.
pub(crate) fn explain(
    failure: SpawnFailure,
    command: &str,
    spec: &Spec,
    argv: &[OsString],
    tried: &[PathBuf],
    dir: Option<&Path>,
) -> Error {
    let program = argv
        .first()
        .map(|program| program.to_string_lossy().into_owned())
        .unwrap_or_default();
    let SpawnFailure { stage, source } = failure;
    let (attempt, hint) = match stage {
        Stage::Supervisor => ("start the supervisor".to_owned(), None),
        Stage::Groups => ("set the supplementary groups".to_owned(), Some(privilege())),
        Stage::Gid => (
            format!("become group {}", spec.gid.unwrap_or_default()),
            Some(privilege()),
        ),
        Stage::Uid => (
            format!("become user {}", spec.uid.unwrap_or_default()),
            Some(privilege()),
        ),
        Stage::CurrentDir => {
            let dir = dir.unwrap_or(Path::new("")).display();
            (
                format!("change to the working directory `{dir}`"),
                directory_hint(&source),
            )
        }
        Stage::Exec => (
            format!("execute `{program}`"),
            exec_hint(&source, &program, tried, dir),
        ),
    };
    Error::Spawn {
        command: command.to_owned(),
        attempt,
        source,
        hint,
    }
}

fn privilege() -> String {
    "this takes root's privileges: run the tests as root, or leave `uid`, `gid` and `groups` out".to_owned()
}

fn directory_hint(source: &io::Error) -> Option<String> {
    (source.kind() == io::ErrorKind::NotFound)
        .then(|| "make it before the service is started, or use \"{dir}\", which is made for it".to_owned())
}

fn exec_hint(source: &io::Error, program: &str, tried: &[PathBuf], dir: Option<&Path>) -> Option<String> {
    let from = |path: &PathBuf| dir.map_or_else(|| path.clone(), |dir| dir.join(path));
    let existing = tried.iter().map(from).find(|path| path.exists());
    match (source.kind(), existing) {
        (io::ErrorKind::NotFound, Some(path)) => Some(format!(
            "`{}` is there, but what it needs to run is not: the interpreter of its first line, or its dynamic loader",
            path.display()
        )),
        (io::ErrorKind::NotFound, None) if program.contains('/') => Some(
            "there is no such file; a relative path counts from the service's working directory".to_owned(),
        ),
        (io::ErrorKind::NotFound, None) => Some(crate::error::hint::not_found(
            program,
            &similar_programs(program, tried),
        )),
        (io::ErrorKind::PermissionDenied, Some(path)) => {
            let mode = path
                .metadata()
                .map(|metadata| metadata.permissions().mode() & 0o111);
            Some(if path.is_dir() {
                format!("`{}` is a directory", path.display())
            } else if mode.is_ok_and(|mode| mode == 0) {
                format!("it is not executable: `chmod +x {}`", path.display())
            } else {
                format!(
                    "the service's user may not execute `{}`, or not enter one of its directories",
                    path.display()
                )
            })
        }
        _ => (source.raw_os_error() == Some(crate::sys::ENOEXEC)).then(|| {
            "it is neither a program for this machine nor a script with a first line such as `#!/bin/sh`; \
             a script without one runs with `.shell(true)`"
                .to_owned()
        }),
    }
}

/// Names in the same directories that differ by a letter or two, or only go on: at most three.
fn similar_programs(program: &str, tried: &[PathBuf]) -> Vec<String> {
    let dirs = tried.iter().filter_map(|path| path.parent());
    let names = dirs.flat_map(|dir| std::fs::read_dir(dir).into_iter().flatten().flatten());
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let mut near: Vec<(usize, String)> = names
        .filter_map(|name| {
            let distance = distance(program, &name);
            let goes_on = program.len() >= 4 && name.starts_with(program);
            (distance <= 1 + program.len() / 6 || goes_on).then_some((distance, name))
        })
        .collect();
    near.sort();
    near.dedup();
    near.into_iter()
        .take(3)
        .map(|(_, name)| format!("`{name}`"))
        .collect()
}

/// How many letters must be added, removed or replaced to make one of the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, other) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *other);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
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
        ];
        let environment = environment(false, &changes, "id7");
        let entries: Vec<_> = environment
            .iter()
            .map(|(key, value)| (key.to_str(), value.to_str()))
            .collect();
        assert_eq!(
            entries,
            [(Some("B"), Some("2")), (Some("MIRAKURU_ID"), Some("id7"))]
        );
    }

    #[test]
    fn the_services_own_path_counts() {
        let environment = environment(false, &[("PATH".into(), Some("/a:/b".into()))], "");
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

    #[test]
    fn counts_letters() {
        assert_eq!(distance("redis-server", "redis-server"), 0);
        assert_eq!(distance("redis-sever", "redis-server"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
