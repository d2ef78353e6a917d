//! Sets up the standard streams of a program, and explains why a program could not be executed.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::error::missing::Missing;
use crate::error::secrets::Unmasked;
use crate::recipe::builder::{Spec, Stdio, StdioKind};
use crate::sys::{SpawnFailure, Stage, Stream};
use crate::util::insert_sorted;
use crate::util::text::distance;

/// Converts a standard stream of the recipe into the form that the supervisor needs. For a piped
/// input, also returns the writing end, which the test keeps.
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

/// Creates the error for a failed launch. The kernel reports only an error number, so this function
/// examines the program, its interpreter and the directories.
pub(crate) fn explain(
    failure: SpawnFailure,
    command: &str,
    spec: &Spec,
    argv: &[OsString],
    tried: &[PathBuf],
    dir: Option<&Path>,
) -> Unmasked {
    let program = argv
        .first()
        .map(|program| program.to_string_lossy().into_owned())
        .unwrap_or_default();
    let SpawnFailure { stage, call, source } = failure;
    let mut missing = None;
    let (attempt, hint) = match stage {
        Stage::Supervisor => match call {
            Some(call) => {
                if call.is_absent(&source) {
                    missing = Some(Box::new(Missing::feature(call.feature()).optional(spec.optional)));
                }
                (
                    format!("start the supervisor: {}", call.attempt()),
                    call.remedy(&source),
                )
            }
            None => ("start the supervisor".to_owned(), None),
        },
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
        Stage::Exec => {
            let syntax = spec.shell_syntax().filter(|hint| hint.contains(&program));
            // A relative path names a file in the project, which no package provides.
            let is_of_project = program.contains('/') && !program.starts_with('/');
            if source.kind() == io::ErrorKind::NotFound
                && existing(tried, dir).is_none()
                && !is_of_project
                && !spec.shell
                && syntax.is_none()
                && spec.program_variable.is_none()
            {
                missing = Some(Box::new(Missing::of(&program, &program).optional(spec.optional)));
            }
            let named = spec.program_variable.as_ref();
            let named = named.map(|variable| format!(", which {variable} names"));
            (
                format!("execute `{program}`{}", named.unwrap_or_default()),
                syntax.or_else(|| exec_hint(&source, &program, tried, dir)),
            )
        }
    };
    Error::Spawn {
        command: command.to_owned(),
        attempt,
        source,
        hint,
        missing,
        system: Vec::new(),
    }
    .into()
}

/// Checks that the program's file and working directory exist, without starting the program.
/// Accepts every path in `service_dir`, because a start creates files there.
pub(crate) fn check(
    command: &str,
    spec: &Spec,
    argv: &[OsString],
    tried: &[PathBuf],
    dir: Option<&Path>,
    service_dir: &Path,
) -> Result<(), Unmasked> {
    let absent = |error: &io::Error| {
        use io::ErrorKind::{NotADirectory, NotFound};
        matches!(error.kind(), NotFound | NotADirectory)
    };
    let failed = |stage, source| {
        let failure = SpawnFailure {
            stage,
            call: None,
            source,
        };
        Err(explain(failure, command, spec, argv, tried, dir))
    };
    if let Some(dir) = dir.filter(|dir| !dir.starts_with(service_dir)) {
        match std::fs::read_dir(dir) {
            Err(error) if absent(&error) => return failed(Stage::CurrentDir, error),
            _ => {}
        }
    }
    let mut found = None;
    for path in from(tried, dir) {
        if path.starts_with(service_dir) {
            return Ok(());
        }
        match path.metadata() {
            Ok(file) if file.is_file() && file.permissions().mode() & 0o111 != 0 => return Ok(()),
            Ok(_) => found = Some(io::Error::from_raw_os_error(crate::sys::EACCES)),
            Err(error) if absent(&error) => found = found.or(Some(error)),
            Err(_) => return Ok(()),
        }
    }
    found.map_or(Ok(()), |error| failed(Stage::Exec, error))
}

/// The paths in `tried`, with relative ones resolved against the working directory.
fn from(tried: &[PathBuf], dir: Option<&Path>) -> impl Iterator<Item = PathBuf> {
    let from = move |path: &PathBuf| dir.map_or_else(|| path.clone(), |dir| dir.join(path));
    tried.iter().map(from)
}

fn privilege() -> String {
    "`uid`, `gid` and `groups` need root: run the tests as root, or leave them out".to_owned()
}

fn directory_hint(source: &io::Error) -> Option<String> {
    (source.kind() == io::ErrorKind::NotFound).then(|| {
        "create the directory before the service starts, or use \"{dir}\", which mirakuru creates".to_owned()
    })
}

/// The first path in `tried` that exists.
fn existing(tried: &[PathBuf], dir: Option<&Path>) -> Option<PathBuf> {
    from(tried, dir).find(|path| path.exists())
}

fn exec_hint(source: &io::Error, program: &str, tried: &[PathBuf], dir: Option<&Path>) -> Option<String> {
    match (source.kind(), existing(tried, dir)) {
        (io::ErrorKind::NotFound, Some(path)) => Some(format!(
            "install the interpreter or the dynamic loader of `{}`: the file exists, but one of these does \
                not",
            path.display()
        )),
        (io::ErrorKind::NotFound, None) if program.contains('/') => Some(
            "check the path: there is no such file (a relative path starts at the service's working \
                directory)"
                .to_owned(),
        ),
        (io::ErrorKind::NotFound, None) => Some(crate::error::programs::not_found(
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
                format!("it is not executable: run `chmod +x {}`", path.display())
            } else {
                format!(
                    "let the service's user execute `{}` and enter each directory above it",
                    path.display()
                )
            })
        }
        _ => (source.raw_os_error() == Some(crate::sys::ENOEXEC)).then(|| {
            "it is neither a program for this machine nor a script with a first line such as `#!/bin/sh`: \
                add that line, or run it with `.shell(true)`"
                .to_owned()
        }),
    }
}

/// Finds up to three programs with similar names in the directories of `tried`. A similar name
/// differs in a few letters, or begins with `program`.
fn similar_programs(program: &str, tried: &[PathBuf]) -> Vec<String> {
    let mut near = Vec::new();
    for dir in tried.iter().filter_map(|path| path.parent()) {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let distance = distance(program, &name);
            let goes_on = program.len() >= 4 && name.starts_with(program);
            if distance <= 1 + program.len() / 6 || goes_on {
                insert_sorted(&mut near, (distance, name));
                near.truncate(3);
            }
        }
    }
    near.iter().map(|(_, name)| format!("`{name}`")).collect()
}
