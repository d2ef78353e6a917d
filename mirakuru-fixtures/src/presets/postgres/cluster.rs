//! PostgreSQL's programs and its data directory. `initdb` makes the directory once for each machine
//! and version; later it is copied.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mirakuru_core::__private::{System, find_program, hash, literal, release_segment, system};
use mirakuru_core::{Error, Executor, NoWait, Signal};

use super::{SERVER, USER};
use crate::cache::{copy_tree, fill};
use crate::presets::failed;
use crate::presets::server::{clean_program, is_shim, last_lines};

/// Time that `initdb` may take, on a slow disk of a busy machine.
const INITDB_WITHIN: Duration = Duration::from_secs(300);

/// Folders in which systems keep several versions of PostgreSQL, before and after the number:
/// Debian, Red Hat, Homebrew twice, Alpine.
const PLACES: [(&str, &str); 5] = [
    ("/usr/lib/postgresql/", "/bin"),
    ("/usr/pgsql-", "/bin"),
    ("/opt/homebrew/opt/postgresql@", "/bin"),
    ("/usr/local/opt/postgresql@", "/bin"),
    ("/usr/libexec/postgresql", ""),
];

/// Finds the server of this major version.
pub(super) fn of_version(major: u32) -> Result<PathBuf, Error> {
    let mut places = PLACES
        .iter()
        .map(|(before, after)| PathBuf::from(format!("{before}{major}{after}/postgres")));
    if let Some(found) = places.find(|path| path.is_file()) {
        return Ok(found);
    }
    // If `postgres` on PATH has this version, so do the other programs beside it.
    let on_path = find_program("postgres").filter(|path| {
        let output = std::process::Command::new(path).arg("--version").output();
        // "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", "postgres (PostgreSQL) 18beta1"
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        text.ok()
            .and_then(|text| {
                let number = text
                    .split_whitespace()
                    .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
                let digits: String = number.chars().take_while(char::is_ascii_digit).collect();
                digits.parse::<u32>().ok()
            })
            .is_some_and(|found| found == major)
    });
    on_path.ok_or_else(|| {
        let installed = fs::read_dir("/usr/lib/postgresql")
            .into_iter()
            .flatten()
            .flatten();
        let mut installed: Vec<String> = installed
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        installed.sort();
        let reason = match installed.is_empty() {
            true => "it is not installed".to_owned(),
            false => format!("it is not installed; installed are {}", installed.join(", ")),
        };
        let install = match system() {
            System::Debian => Some(format!("postgresql-{major}")),
            System::Homebrew => Some(format!("postgresql@{major}")),
            // These systems have one version.
            System::Fedora | System::Arch | System::Alpine => None,
        };
        let install = install.map(|package| system().install(&package));
        Error::__version_is_missing(&format!("PostgreSQL {major}"), install, reason)
    })
}

/// The server in its real directory, where `initdb` of the same version is as well. A version
/// manager's stand-in keeps its path.
pub(super) fn real_path(program: PathBuf) -> PathBuf {
    if is_shim(&program) {
        return program;
    }
    fs::canonicalize(&program).unwrap_or(program)
}

/// The `psql` beside the server, if there is one: the `psql` on `PATH` may be a wrapper that
/// searches for the machine's own clusters.
pub(super) fn psql_of(server: &Path) -> Option<PathBuf> {
    let beside = server.with_file_name("psql");
    if beside.is_file() {
        Some(beside)
    } else {
        find_program("psql")
    }
}

/// Fills `{dir}/data` from the cache. The first use fills the cache.
pub(super) fn install(server: &Path, args: &[String], dir: &Path) -> Result<(), Error> {
    let initdb = server.with_file_name("initdb");
    let key = key(server, &initdb, args)?;
    fill(dir, &key, |kept| {
        let cluster = initialize(&initdb, args)?;
        let made = cluster.dir().join("data");
        let copied = slim(&made).and_then(|()| copy_tree(&made, &kept.join("data")));
        copied.map_err(|source| failed("keep the cluster that `initdb` has made", source))
    })
}

/// A key with all data that an empty cluster of this server depends on.
pub(super) fn key_of(server: &Path, args: &[String]) -> Result<String, Error> {
    key(server, &server.with_file_name("initdb"), args)
}

/// All data that the result of `initdb` depends on, except for the version: a question for the
/// version takes longer than the copy, and another version is another file.
fn key(server: &Path, initdb: &Path, args: &[String]) -> Result<String, Error> {
    const FORMAT: u32 = 3;
    let mut text = format!("{args:?}\n");
    if is_shim(server) {
        // The same file stands for all versions, and the working directory decides.
        text.push_str(&format!("{:?}\n", std::env::current_dir().ok()));
    }
    for path in [server, initdb] {
        let metadata = fs::metadata(path).map_err(|source| {
            failed(
                format!("use `{}`, which belongs to the server", path.display()),
                source,
            )
        })?;
        let (size, seconds, nanoseconds) = (metadata.size(), metadata.mtime(), metadata.mtime_nsec());
        text.push_str(&format!("{}\n{size} {seconds}.{nanoseconds}\n", path.display()));
    }
    Ok(format!("postgres-{FORMAT}-{:016x}", hash(0, &text)))
}

/// Runs a program in which the stop signal is ignored during the second that it takes. `initdb` and
/// the servers in it end at SIGTERM; their default for SIGUSR1 would also end them. An early end
/// would leave System V shared memory behind for ever.
const LET_IT_FINISH: &str = r#"trap '' USR1; exec "$@""#;

/// Makes a new cluster in the private directory of the returned executor.
fn initialize(initdb: &Path, args: &[String]) -> Result<Executor<NoWait>, Error> {
    let run = |locale: &str| -> Result<(Executor<NoWait>, bool), Error> {
        let mut recipe = clean_program(Path::new("sh"))
            .args(["-c", LET_IT_FINISH, "sh"])
            .arg(literal(initdb))
            .args(["-D", "{dir}/data", "--username", USER, "--auth", "trust"])
            .args(["--encoding", "UTF8", "--locale", locale])
            .args(["--no-sync", "--no-instructions", "--wal-segsize", "1"])
            .args(args)
            .name("initdb")
            .stop_signal(Signal::Usr1)
            .stop_timeout(INITDB_WITHIN);
        if !is_shim(initdb) {
            recipe = recipe.current_dir("{dir}");
        }
        let mut executor = SERVER.unprivileged(recipe)?.start()?;
        let status = executor.wait(INITDB_WITHIN)?;
        Ok((executor, status.success()))
    };
    let (mut executor, mut done) = run("C.UTF-8")?;
    if !done && executor.logs().to_string().contains("invalid locale") {
        (executor, done) = run("C")?;
    }
    if done {
        return Ok(executor);
    }
    let mut reason = last_lines(&executor);
    if reason.contains("could not look up effective user ID") {
        reason.push_str(
            "\ngive this user an entry in /etc/passwd, or run the tests as a user that has one: `initdb` \
                needs it",
        );
    }
    Err(Error::other(
        format!("make a database cluster with `{}`", initdb.display()),
        reason,
    ))
}

/// Removes a quarter of a new cluster's files: the maps of free space and of visibility. These are
/// hints, and the server makes them again when it needs them.
fn slim(data: &Path) -> io::Result<()> {
    let mut dirs = vec![data.join("global")];
    for entry in fs::read_dir(data.join("base"))? {
        dirs.push(entry?.path());
    }
    for dir in dirs {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.ends_with("_fsm") || name.ends_with("_vm") {
                fs::remove_file(entry.path())?;
            }
        }
    }
    Ok(())
}

/// Marks the server's only segment of System V shared memory, the lock of its data directory, so
/// that the kernel removes it with the last of the server's processes. Otherwise it would stay for
/// ever if the server is killed. (At its end the server logs that the segment does not exist.)
pub(super) fn release_memory(dir: &Path) {
    // The seventh line of that file has a key and a number.
    let line = postmaster_line(dir, 6);
    let number = line
        .split_whitespace()
        .nth(1)
        .and_then(|number| number.parse().ok());
    if let Some(number) = number {
        // Without the right to do this, the segment stays as it is.
        let _ = release_segment(number);
    }
}

/// Whether the server's pid file (not its log) says that it accepts clients.
pub(super) fn is_ready(dir: &Path) -> bool {
    matches!(postmaster_line(dir, 7).trim(), "ready" | "standby")
}

/// A line of the server's pid file.
fn postmaster_line(dir: &Path, number: usize) -> String {
    let file = fs::read_to_string(dir.join("data/postmaster.pid")).unwrap_or_default();
    file.lines().nth(number).unwrap_or_default().to_owned()
}
