//! Finds PostgreSQL's programs, and creates its data directory. `initdb` runs once for each machine
//! and version; later starts copy its result.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mirakuru_core::__private::{System, find_program, hash, literal, release_segment, system};
use mirakuru_core::{Error, Executor, NoWait, Signal};

use super::{SERVER, USER};
use crate::cache::{copy_tree, fill};
use crate::presets::server::{clean_program, is_shim, last_lines};
use crate::presets::{failed, insert};

/// Time limit for `initdb`, enough for a slow disk and a busy machine.
const INITDB_WITHIN: Duration = Duration::from_secs(300);

/// Directories with several versions of PostgreSQL: the path before and after the version's number.
/// In order: Debian, Red Hat, Homebrew (two), Alpine.
const PLACES: [(&str, &str); 5] = [
    ("/usr/lib/postgresql/", "/bin"),
    ("/usr/pgsql-", "/bin"),
    ("/opt/homebrew/opt/postgresql@", "/bin"),
    ("/usr/local/opt/postgresql@", "/bin"),
    ("/usr/libexec/postgresql", ""),
];

/// Finds the server of this major version.
pub(super) fn of_version(major: u32) -> Result<PathBuf, Error> {
    for (before, after) in PLACES {
        let path = PathBuf::from(format!("{before}{major}{after}/postgres"));
        if path.is_file() {
            return Ok(path);
        }
    }
    // Checking `postgres` is enough, because the programs beside it have the same version.
    let on_path = find_program("postgres").filter(|path| {
        let output = std::process::Command::new(path).arg("--version").output();
        // The output is for example "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)" or
        // "postgres (PostgreSQL) 18beta1".
        let text = output.map_or_else(|_| Vec::new(), |output| output.stdout);
        let text = String::from_utf8_lossy(&text);
        let number = text.trim_start_matches(|c: char| !c.is_ascii_digit());
        let end = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
        number[..end].parse() == Ok(major)
    });
    on_path.ok_or_else(|| {
        let mut installed = Vec::new();
        for entry in fs::read_dir("/usr/lib/postgresql")
            .into_iter()
            .flatten()
            .flatten()
        {
            insert(&mut installed, entry.file_name().to_string_lossy().into_owned());
        }
        let reason = match installed.is_empty() {
            true => "it is not installed".to_owned(),
            false => format!(
                "it is not installed; the installed ones are {}",
                installed.join(", ")
            ),
        };
        let install = match system() {
            System::Debian => Some(format!("postgresql-{major}")),
            System::Homebrew => Some(format!("postgresql@{major}")),
            // These systems package only one version.
            System::Fedora | System::Arch | System::Alpine => None,
        };
        let install = install.map(|package| system().install(&package));
        Error::__version_is_missing(&format!("PostgreSQL {major}"), install, reason)
    })
}

/// Follows links to the server's real directory, which also has the `initdb` of the same version.
/// Does not follow the shim of a version manager.
pub(super) fn real_path(program: PathBuf) -> PathBuf {
    if is_shim(&program) {
        return program;
    }
    fs::canonicalize(&program).unwrap_or(program)
}

/// Finds `psql`, beside the server if possible. The `psql` on `PATH` may be a wrapper that searches
/// for the machine's own clusters.
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
        copied.map_err(|source| failed("keep the cluster that `initdb` has created", source))
    })
}

/// The cache key of the empty cluster that this server's `initdb` creates.
pub(super) fn key_of(server: &Path, args: &[String]) -> Result<String, Error> {
    key(server, &server.with_file_name("initdb"), args)
}

/// Hashes everything that the result of `initdb` depends on. The size and modification time of the
/// programs stand for their version, because running `--version` takes longer than copying the
/// cluster.
fn key(server: &Path, initdb: &Path, args: &[String]) -> Result<String, Error> {
    const FORMAT: u32 = 3;
    let mut text = format!("{args:?}\n");
    if is_shim(server) {
        // A version manager's shim is the same file for all versions, and chooses a version by the
        // working directory.
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

/// Makes `initdb` ignore SIGUSR1, its stop signal here. An interrupted `initdb` would never remove
/// its System V shared memory. Waiting for `initdb` takes only about a second.
const LET_IT_FINISH: &str = r#"trap '' USR1; exec "$@""#;

/// Creates a new cluster in the private directory of the returned executor.
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
        format!("create a database cluster with `{}`", initdb.display()),
        reason,
    ))
}

/// Removes the free space maps and visibility maps, which are a quarter of a new cluster's files.
/// The server recreates them when it needs them.
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

/// Marks the server's segment of System V shared memory for removal. The kernel then removes the
/// segment after the server's last process, even if the server is killed. When the server ends, it
/// then logs that the segment does not exist.
pub(super) fn release_memory(dir: &Path) {
    // The seventh line of `postmaster.pid` contains the segment's key and id.
    let line = postmaster_line(dir, 6);
    let number = line
        .split_whitespace()
        .nth(1)
        .and_then(|number| number.parse().ok());
    if let Some(number) = number {
        // If this process lacks the right to mark the segment, leave the segment as it is.
        let _ = release_segment(number);
    }
}

/// Whether the server's pid file says that the server accepts clients.
pub(super) fn is_ready(dir: &Path) -> bool {
    matches!(postmaster_line(dir, 7).trim(), "ready" | "standby")
}

/// Line `number` of the server's pid file, counted from 0.
fn postmaster_line(dir: &Path, number: usize) -> String {
    let file = fs::read_to_string(dir.join("data/postmaster.pid")).unwrap_or_default();
    file.lines().nth(number).unwrap_or_default().to_owned()
}
