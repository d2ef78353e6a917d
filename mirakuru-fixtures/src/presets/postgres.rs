//! PostgreSQL.
//!
//! What makes it fast enough for a test is prepared in three layers, each a copy of the one before:
//!
//! ```text
//! initdb, once for each machine ──▶ the cluster in `{dir}/data` ──▶ a template with the recipe's SQL ──▶ a database for each test
//!                   copied as files           started, once a run       CREATE DATABASE .. TEMPLATE
//! ```

use std::fs::{self, DirBuilder};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mirakuru_core::__private::{find_program, hash, random_id, release_segment, spread};
use mirakuru_core::{Check, Error, Executor, ExecutorBuilder, NoWait, Probe, Readiness, Signal, Stdio, Tcp};

use super::cache::{cached, copy_tree};
use super::{
    Answers, Connection, Options, expect, failed, handle, last_lines, loopback, options, percent_encoded,
    unique_name, write_secret,
};
use crate::Recipe;

/// The user, who may do everything.
const USER: &str = "postgres";
/// The database that is there from the start.
const SHARED: &str = "postgres";
/// The database that has what the recipe loads. Nobody can connect to it: it could not be copied
/// then.
const TEMPLATE: &str = "mirakuru_template";
/// Who runs it where the tests are root.
const USERS: [&str; 2] = ["postgres", "nobody"];
/// How long a statement may take.
const STATEMENT_WITHIN: Duration = Duration::from_secs(120);
/// How long `initdb` may take, on a slow disk of a busy machine.
const INITDB_WITHIN: Duration = Duration::from_secs(300);
/// How long a part of what the recipe loads may take.
const LOAD_WITHIN: Duration = Duration::from_secs(900);

/// A PostgreSQL: see [`Postgres`].
pub fn postgres() -> PostgresRecipe {
    PostgresRecipe {
        options: Options::default(),
        version: None,
        config: Vec::new(),
        load: Vec::new(),
    }
}

/// How to start a PostgreSQL: made by [`postgres()`].
#[derive(Clone, Debug)]
#[must_use = "a recipe does nothing until it is started"]
pub struct PostgresRecipe {
    options: Options,
    version: Option<u32>,
    config: Vec<(String, String)>,
    load: Vec<Load>,
}

options!(PostgresRecipe, durable);

impl PostgresRecipe {
    /// Takes this major version: `version(15)`. The default is what is on `PATH`, else the newest
    /// that is installed.
    pub fn version(mut self, major: u32) -> Self {
        self.version = Some(major);
        self
    }

    /// Sets a parameter of its configuration, over those that the preset sets:
    /// `config("log_statement", "all")`.
    pub fn config(mut self, parameter: impl Into<String>, value: impl Into<String>) -> Self {
        self.config.push((parameter.into(), value.into()));
        self
    }

    /// Loads SQL, after what was added before, into a template of which each
    /// [`database`](Postgres::database) is a copy: a schema, some data. It is loaded once for each
    /// server.
    ///
    /// The argument is a path, or SQL as it is: what no file or directory has as its name, and what
    /// has a space or a semicolon in it, is SQL. A relative path counts from the working directory,
    /// which under `cargo test` is the package's.
    ///
    /// Of a directory, all files are loaded whose name ends with `.sql`, those of its
    /// subdirectories too, in the order of their names. Numbers in names count as numbers (`9_x` is
    /// before `10_x`), and `down.sql` and `*.down.sql`, which undo a migration, are left out.
    ///
    /// It goes through `psql` where that is installed beside the server or on `PATH`, statement by
    /// statement: `CREATE INDEX CONCURRENTLY`, `COPY .. FROM stdin`, `\i` and the dumps of
    /// `pg_dump` are fine. Without `psql`, each file is sent as one query, in which those are
    /// errors.
    pub fn load_sql(mut self, sql: impl Into<String>) -> Self {
        self.load.push(Load::Sql(sql.into()));
        self
    }

    /// Creates an extension, and those that it needs, in the template of all databases:
    /// `extension("pg_trgm")`. It must be installed; many come with Debian's `postgresql-contrib`.
    pub fn extension(mut self, name: impl Into<String>) -> Self {
        self.load.push(Load::Extension(name.into()));
        self
    }

    /// The server, in the directory that it really is in, where `initdb` of the same version is as
    /// well.
    fn server(&self) -> Result<Option<PathBuf>, Error> {
        let found = match (&self.options.program, self.version) {
            (Some(program), _) => Some(program.clone()),
            (None, Some(major)) => Some(of_version(major)?),
            (None, None) => find_program("postgres"),
        };
        Ok(found.map(|path| fs::canonicalize(&path).unwrap_or(path)))
    }

    /// All that is to be loaded, read.
    fn scripts(&self) -> Result<Vec<Script>, Error> {
        let mut scripts = Vec::new();
        for load in &self.load {
            load.read(&mut scripts)?;
        }
        Ok(scripts)
    }

    fn configuration(&self) -> String {
        let port = self.options.port();
        let mut settings = vec![
            ("port", port.as_str()),
            ("listen_addresses", "127.0.0.1"),
            // The private directory: relative to `data`.
            ("unix_socket_directories", ".."),
            ("max_connections", "300"),
            ("shared_buffers", "64MB"),
            // With the data, and not in `/dev/shm`, where nobody would remove it when the server is
            // killed.
            ("dynamic_shared_memory_type", "mmap"),
            ("timezone", "UTC"),
            ("log_timezone", "UTC"),
            ("lc_messages", "C"),
            ("default_text_search_config", "pg_catalog.english"),
            // There are two for each database that is made.
            ("log_checkpoints", "off"),
            // A little more than what is made at once.
            ("max_wal_size", "256MB"),
            ("min_wal_size", "32MB"),
        ];
        if !self.options.durable {
            settings.extend([
                ("fsync", "off"),
                ("synchronous_commit", "off"),
                ("full_page_writes", "off"),
                ("wal_level", "minimal"),
                ("max_wal_senders", "0"),
            ]);
        }
        let given = self
            .config
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        // Of two settings of the same parameter the last one counts.
        let lines = settings
            .into_iter()
            .chain(given)
            .map(|(name, value)| format!("{name} = '{}'\n", value.replace('\\', "\\\\").replace('\'', "''")));
        lines.collect()
    }
}

// Not in the list of recipes that an error gives: it is long enough.
#[diagnostic::do_not_recommend]
impl Recipe for PostgresRecipe {
    type Readiness = Answers;
    type Handle = Postgres;

    fn executor(&self) -> Result<ExecutorBuilder<Answers>, Error> {
        let options = Options {
            program: self.server()?,
            ..self.options.clone()
        };
        let mut recipe = options
            .executor(&["postgres"])
            .args(["-D", "{dir}/data"])
            .args(&options.args)
            .current_dir("{dir}")
            .file("data/postgresql.conf", self.configuration())
            // The socket is in a directory that nobody else can enter. Of passwords see
            // `Postgres::password`.
            .file(
                "data/pg_hba.conf",
                "local all all trust\nhost all all 127.0.0.1/32 password\n",
            )
            .unprivileged(USERS)
            // Its fast shutdown: not for all clients to leave, which is what SIGTERM waits for.
            .stop_signal(Signal::Int);
        let scripts = self.scripts()?;
        if !scripts.is_empty() {
            // So that servers with other contents are other servers.
            let text = format!("{scripts:?}");
            let digest = format!("{:016x}{:016x}", hash(0, &text), hash(1, &text));
            recipe = recipe.env("MIRAKURU_SQL", digest);
        }
        let fixed = options.port;
        let check = Check::new("it took a client", move |cx: &Probe<'_>| {
            let port = fixed.or_else(|| cx.port()).ok_or(io::ErrorKind::InvalidInput)?;
            let taken = takes_clients(Connection::open(loopback(port), cx.remaining())?)?;
            if taken {
                release_memory(cx.dir());
            }
            Ok(taken)
        });
        Ok(recipe.wait_for(Tcp::addr(format!("127.0.0.1:{}", options.port())).and(check)))
    }

    fn prepare(&self, executor: &mut Executor<Answers>) -> Result<(), Error> {
        let dir = executor.dir();
        let password = || Ok::<_, io::Error>(format!("{}{}", random_id()?, random_id()?));
        password()
            .and_then(|secret| write_secret(&dir, "password", &secret))
            .map_err(|source| failed(format!("write {}", dir.join("password").display()), source))?;
        match self.server()? {
            Some(program) if program.is_file() => install(&program, &dir),
            // The start has the better error.
            _ => Ok(()),
        }
    }

    fn set_up(&self, executor: &mut Executor<Answers>) -> Result<(), Error> {
        let address = Address::of(executor);
        let attempt = "set PostgreSQL up";
        let mut client = address
            .connect(SHARED)
            .map_err(|source| failed(attempt, source))?;
        let password = read_password(executor)?;
        // The server checks a password by computing what it has stored of it: by default 4096
        // rounds, 5 to 15 ms for each connection. This one is random, and guessing it takes no
        // fewer attempts for being quick to check.
        let cheap = match client.version {
            160_000.. => "SET scram_iterations = 1",
            _ => "SET password_encryption = md5",
        };
        // Where cryptography is restricted, MD5 is an error.
        let _ = client.query(cheap);
        client
            .query(&format!("ALTER ROLE {USER} PASSWORD '{password}'"))
            .map_err(|source| failed(attempt, source))?;
        // A database's directory is called by its number, and the file system puts it where its
        // name leads it: let the numbers of one server's not be those of all others.
        let some = random_id().map_or(0, |id| hash(0, &id) % 1000);
        let skip = format!(
            "SELECT count(pg_nextoid('pg_database', 'oid', 'pg_database_oid_index')) FROM generate_series(1, {some})"
        );
        // A matter of speed alone.
        let _ = client.query(&skip);
        let scripts = self.scripts()?;
        if scripts.is_empty() {
            return Ok(());
        }
        client
            .query(&create_database(TEMPLATE, "template0", client.version))
            .map_err(|source| failed(attempt, source))?;
        let psql = self.server()?.and_then(|server| psql_of(&server));
        load(&scripts, psql.as_deref(), &address)?;
        client
            .query(&format!(
                "ALTER DATABASE {TEMPLATE} WITH IS_TEMPLATE true ALLOW_CONNECTIONS false"
            ))
            .map_err(|source| failed(attempt, source))
    }

    fn handle(self, executor: Executor<Answers>) -> Result<Postgres, Error> {
        let template = match self.load.is_empty() {
            true => "template0",
            false => TEMPLATE,
        };
        Ok(Postgres {
            password: read_password(&executor)?,
            executor,
            template,
        })
    }
}

// ---- the programs -------------------------------------------------------------------------------

/// Where systems keep the versions of PostgreSQL apart, before and after the number: Debian, Red
/// Hat, Homebrew twice, Alpine.
const PLACES: [(&str, &str); 5] = [
    ("/usr/lib/postgresql/", "/bin"),
    ("/usr/pgsql-", "/bin"),
    ("/opt/homebrew/opt/postgresql@", "/bin"),
    ("/usr/local/opt/postgresql@", "/bin"),
    ("/usr/libexec/postgresql", ""),
];

fn of_version(major: u32) -> Result<PathBuf, Error> {
    let mut places = PLACES
        .iter()
        .map(|(before, after)| PathBuf::from(format!("{before}{major}{after}/postgres")));
    if let Some(found) = places.find(|path| path.is_file()) {
        return Ok(found);
    }
    // `postgres` on PATH, if that is it: what is beside it was made for its version.
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
        let mut reason =
            format!("it is not installed; on Debian it comes with `apt-get install postgresql-{major}`");
        if !installed.is_empty() {
            reason = format!("{reason}; what is installed: {}", installed.join(", "));
        }
        Error::other(format!("find PostgreSQL {major}"), reason)
    })
}

/// Not a wrapper that looks for the machine's own clusters, where there is a choice.
fn psql_of(server: &Path) -> Option<PathBuf> {
    let beside = server.with_file_name("psql");
    if beside.is_file() {
        Some(beside)
    } else {
        find_program("psql")
    }
}

// ---- the data directory -------------------------------------------------------------------------

/// Fills `{dir}/data`: from the cache, which the first to need it fills.
fn install(server: &Path, dir: &Path) -> Result<(), Error> {
    let initdb = server.with_file_name("initdb");
    let key = key(server, &initdb)?;
    let template = cached(dir, &key, |template| {
        let cluster = initialize(&initdb)?;
        let made = cluster.dir().join("data");
        let copied = slim(&made).and_then(|()| copy_tree(&made, template));
        copied.map_err(|source| failed("keep what `initdb` has made", source))
    })?;
    let data = dir.join("data");
    let copied = lay_out(dir, &template).and_then(|()| copy_tree(&template, &data));
    copied.map_err(|source| {
        failed(
            format!("copy {} to {}", template.display(), data.display()),
            source,
        )
    })
}

/// Makes the directories that have many files in them, so that the file system keeps them apart:
/// each database has some 300, and databases come and go.
fn lay_out(dir: &Path, template: &Path) -> io::Result<()> {
    let base = dir.join("data/base");
    let make = |path: &Path| DirBuilder::new().mode(0o700).create(path);
    spread(dir);
    make(&dir.join("data"))?;
    make(&base)?;
    spread(&base);
    for database in fs::read_dir(template.join("base"))? {
        // Where it is put depends on the name that it is made with; by its own it would be the same
        // place for each server.
        let unique = base.join(random_id()?);
        make(&unique)?;
        fs::rename(&unique, base.join(database?.file_name()))?;
    }
    Ok(())
}

/// What a cluster that `initdb` makes depends on. Not by asking for the version, which takes longer
/// than the copy: another version is another file.
fn key(server: &Path, initdb: &Path) -> Result<String, Error> {
    const FORMAT: u32 = 1;
    let mut text = String::new();
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

/// Runs a program out of the reach of the signal that asks it to end, so that the second that it
/// takes is always had: the servers inside of an `initdb` that is ended leave System V shared
/// memory behind, which nobody knows of any more.
const LET_IT_FINISH: &str = r#"trap '' TERM
if command -v setsid >/dev/null; then setsid --wait "$@"; else "$@"; fi"#;

/// Makes a new cluster, in the private directory of the executor that is returned.
fn initialize(initdb: &Path) -> Result<Executor<NoWait>, Error> {
    let run = |locale: &str| -> Result<(Executor<NoWait>, bool), Error> {
        let mut executor = Executor::builder(["sh", "-c", LET_IT_FINISH, "sh"])
            .arg(initdb)
            .args([
                "-D",
                "{dir}/data",
                "--username",
                USER,
                "--auth",
                "trust",
                "--encoding",
                "UTF8",
            ])
            .args(["--no-sync", "--no-instructions", "--wal-segsize", "1"])
            .args(["--locale", locale])
            // It looks for the machine's own for a while.
            .env("TZ", "UTC")
            .name("initdb")
            .current_dir("{dir}")
            .stop_timeout(INITDB_WITHIN)
            .unprivileged(USERS)
            .start()?;
        // What others have left that were killed at this; and this one, should it fail.
        release_orphans(&executor);
        let status = executor.wait(INITDB_WITHIN)?;
        if !status.success() {
            release_orphans(&executor);
        }
        Ok((executor, status.success()))
    };
    let (executor, done) = run("C.UTF-8")?;
    if done {
        return Ok(executor);
    }
    let (executor, done) = match executor.logs().to_string().contains("invalid locale") {
        true => run("C")?,
        false => (executor, false),
    };
    match done {
        true => Ok(executor),
        false => Err(Error::other(
            format!("make a database cluster with `{}`", initdb.display()),
            last_lines(&executor),
        )),
    }
}

/// Removes a quarter of a new cluster's files: the maps of free space and of visibility, which are
/// hints, and are made again where they are needed.
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

/// Lets go of the server's one segment of System V shared memory, the lock of its data directory,
/// with the last of its processes. Otherwise it would stay for good when the server is killed. (The
/// server says at its end that it is not there.)
fn release_memory(dir: &Path) {
    let file = fs::read_to_string(dir.join("data/postmaster.pid")).unwrap_or_default();
    // The seventh line: a key and a number.
    let number = file
        .lines()
        .nth(6)
        .and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    if let Some(number) = number {
        // Where it is not ours to let go, the server has it as ever.
        let _ = release_segment(number);
    }
}

/// Lets go of the segments that the servers inside of an `initdb` leave behind when they are
/// killed, whose number nobody knows any more. Nobody is attached to them, and who has made them is
/// gone: whatever PostgreSQL they were of, it would do the same.
fn release_orphans(initdb: &Executor<NoWait>) {
    /// What such a segment takes: a header of this size on every machine of 64 bits.
    const SIZE: &str = "56";
    let Ok(user) = fs::metadata(initdb.dir()).map(|dir| dir.uid().to_string()) else {
        return;
    };
    let segments = fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
    for line in segments.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, number, _, size, creator, _, attached, owner, ..] = fields[..] else {
            continue;
        };
        let is_alive = Path::new("/proc").join(creator).exists();
        if size == SIZE && attached == "0" && owner == user && !is_alive {
            if let Ok(number) = number.parse() {
                let _ = release_segment(number);
            }
        }
    }
}

// ---- what is loaded -----------------------------------------------------------------------------

#[derive(Clone, Debug)]
enum Load {
    /// Or a path.
    Sql(String),
    Extension(String),
}

/// Something to be loaded, as it was when it was read.
#[derive(Debug)]
struct Script {
    path: Option<PathBuf>,
    text: String,
}

impl Load {
    fn read(&self, scripts: &mut Vec<Script>) -> Result<(), Error> {
        let text = match self {
            Load::Extension(name) => {
                let name = name.replace('"', "\"\"");
                format!("CREATE EXTENSION IF NOT EXISTS \"{name}\" CASCADE;")
            }
            Load::Sql(given) => {
                let path = Path::new(given);
                if path.is_dir() {
                    let found = scripts.len();
                    read_dir(path, scripts)?;
                    if scripts.len() == found {
                        let reason = "no file in it has a name that ends with `.sql`";
                        return Err(Error::other(
                            format!("load the SQL in {}", path.display()),
                            reason,
                        ));
                    }
                    return Ok(());
                }
                let is_sql = given.contains([';', ' ', '\n']);
                if path.exists() || !is_sql {
                    return read_file(path, scripts);
                }
                given.clone()
            }
        };
        scripts.push(Script { path: None, text });
        Ok(())
    }
}

fn read_file(path: &Path, scripts: &mut Vec<Script>) -> Result<(), Error> {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let text = fs::read(path).map_err(|source| {
        let dir = std::env::current_dir().unwrap_or_default();
        failed(
            format!("load the SQL in {} (from {})", path.display(), dir.display()),
            source,
        )
    })?;
    scripts.push(Script {
        path: Some(absolute),
        text: String::from_utf8_lossy(&text).into_owned(),
    });
    Ok(())
}

fn read_dir(dir: &Path, scripts: &mut Vec<Script>) -> Result<(), Error> {
    let failed = |source| failed(format!("load the SQL in {}", dir.display()), source);
    let mut entries = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        entries.push((in_order(&name), name, path));
    }
    entries.sort();
    for (_, name, path) in entries {
        let undoes = name == "down.sql" || name.ends_with(".down.sql");
        if name.starts_with('.') || undoes {
            continue;
        }
        if path.is_dir() {
            read_dir(&path, scripts)?;
        } else if name.ends_with(".sql") {
            read_file(&path, scripts)?;
        }
    }
    Ok(())
}

/// A name so that numbers in it are in their order: each with its length in front.
fn in_order(name: &str) -> String {
    let mut key = String::new();
    let mut rest = name;
    while let Some(first) = rest.chars().next() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        if digits == 0 {
            key.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            let number = rest[..digits].trim_start_matches('0');
            key.push_str(&format!("{:03}{number}", number.len()));
            rest = &rest[digits..];
        }
    }
    key
}

fn load(scripts: &[Script], psql: Option<&Path>, address: &Address) -> Result<(), Error> {
    for script in scripts {
        let name = match &script.path {
            Some(path) => format!("load {}", path.display()),
            None => "load the recipe's SQL".to_owned(),
        };
        match psql {
            Some(psql) => run_psql(psql, script, address).map_err(|error| match error {
                Failure::Sql(text) => Error::other(name, text),
                Failure::Start(error) => error,
            })?,
            None => {
                let run = || -> io::Result<()> {
                    let mut client = address.connect(TEMPLATE)?;
                    client.within(LOAD_WITHIN)?;
                    client.query(&script.text)
                };
                run().map_err(|source| failed(name, source))?;
            }
        }
    }
    Ok(())
}

enum Failure {
    Sql(String),
    Start(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Start(error)
    }
}

fn run_psql(psql: &Path, script: &Script, address: &Address) -> Result<(), Failure> {
    let mut recipe = Executor::builder([psql])
        .args([
            "--no-psqlrc",
            "--quiet",
            "--no-password",
            "--set",
            "ON_ERROR_STOP=1",
        ])
        .arg("--host")
        .arg(&address.dir)
        .args([
            "--port",
            &address.port.to_string(),
            "--username",
            USER,
            "--dbname",
            TEMPLATE,
        ])
        .arg("--file");
    recipe = match &script.path {
        // By its name, for messages, and for what it includes.
        Some(path) => recipe.arg(path),
        None => recipe.arg("-"),
    };
    // What it is told by the environment is meant for another server.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            recipe = recipe.env_remove(name);
        }
    }
    recipe = recipe
        .env("PGCLIENTENCODING", "UTF8")
        .env("PGOPTIONS", "-c client_min_messages=warning");
    let mut executor = match script.path {
        Some(_) => recipe.start()?,
        None => {
            let mut executor = recipe.stdin(Stdio::piped()).start()?;
            if let Some(mut stdin) = executor.take_stdin() {
                // One that has ended says why in its output.
                let _ = stdin.write_all(script.text.as_bytes());
            }
            executor
        }
    };
    if executor.wait(LOAD_WITHIN)?.success() {
        return Ok(());
    }
    Err(Failure::Sql(last_lines(&executor)))
}

// ---- the handle ---------------------------------------------------------------------------------

/// A running PostgreSQL, 13 or later.
///
/// [`database`](Postgres::database) gives each test a database of its own, a copy of a template
/// that has what the recipe [loads](PostgresRecipe::load_sql). What all of them share is what
/// belongs to no database: roles, tablespaces, the configuration that `ALTER SYSTEM` writes, the
/// 300 connections, and the names of the databases themselves.
///
/// ```no_run
/// # use mirakuru_fixtures as mirakuru;
/// use mirakuru::{Recipe, presets};
///
/// let server = presets::postgres().load_sql("CREATE TABLE visits (who TEXT)").start()?;
/// let database = server.database();
/// // postgresql://postgres:e5bq7kdw..@127.0.0.1:41873/tm2vay7kq4zbo
/// println!("{}", database.url());
/// # Ok::<(), mirakuru_core::Error>(())
/// ```
///
/// `initdb` runs once for each machine and version, and what it made is copied from then on. So all
/// clusters have the same system identifier, and the locale `C.UTF-8`, the encoding UTF-8 and the
/// time zone UTC. Unless it is to be [`durable`](PostgresRecipe::durable), `wal_level` is
/// `minimal`; for replication, set it and `max_wal_senders` with
/// [`config`](PostgresRecipe::config).
pub struct Postgres {
    executor: Executor<Answers>,
    password: String,
    template: &'static str,
}

handle!(Postgres);

impl Postgres {
    /// The URL of the database that is there from the start, everybody's, into which nothing is
    /// loaded: `postgresql://postgres:PASSWORD@127.0.0.1:PORT/postgres`.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_of(SHARED)
    }

    /// The user, who may do everything: `postgres`.
    #[must_use]
    pub fn user(&self) -> &'static str {
        USER
    }

    /// The user's password: another one for each server. It is asked for in clear text (`password`
    /// in `pg_hba.conf`), which does not leave this machine, and costs a client in a debug build
    /// nothing.
    #[must_use]
    pub fn password(&self) -> &str {
        &self.password
    }

    /// The directory of its Unix socket, for clients that take one as `host`. Nobody but the
    /// server's user and root can enter it, and whoever can needs no password.
    #[must_use]
    pub fn socket_dir(&self) -> PathBuf {
        self.executor.dir()
    }

    /// A database for one test alone, with what the recipe [loads](PostgresRecipe::load_sql), until
    /// it is dropped. Where the test process is killed, it goes with the server.
    ///
    /// # Panics
    ///
    /// When it cannot be made: see [`try_database`](Postgres::try_database).
    #[must_use]
    #[track_caller]
    pub fn database(&self) -> PostgresDatabase {
        expect(self.try_database())
    }

    /// The same, for those who want the error.
    ///
    /// # Errors
    ///
    /// [`Error::System`] when the server does not answer, or has no connection left.
    pub fn try_database(&self) -> Result<PostgresDatabase, Error> {
        let name = unique_name()?;
        let address = Address::of(&self.executor);
        let create = || -> io::Result<()> {
            let mut client = address.connect(SHARED)?;
            client.query(&create_database(&name, self.template, client.version))
        };
        create().map_err(|source| failed("make a database", source))?;
        Ok(PostgresDatabase {
            url: self.url_of(&name),
            name,
            address,
        })
    }

    fn url_of(&self, database: &str) -> String {
        let (password, port) = (percent_encoded(&self.password), self.executor.port());
        format!("postgresql://{USER}:{password}@127.0.0.1:{port}/{database}")
    }
}

/// One database of a [`Postgres`], made for a test. Dropped with all that is in it when this is,
/// also when there are connections to it still: those are closed.
#[derive(Debug)]
pub struct PostgresDatabase {
    name: String,
    url: String,
    address: Address,
}

impl PostgresDatabase {
    /// Its URL: `postgresql://postgres:PASSWORD@127.0.0.1:PORT/NAME`.
    #[must_use]
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// Its name, which no other database of the server has.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for PostgresDatabase {
    fn drop(&mut self) {
        // A server that is gone has nothing left.
        let statement = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        let _ = self
            .address
            .connect(SHARED)
            .and_then(|mut client| client.query(&statement));
    }
}

fn create_database(name: &str, template: &str, version: u32) -> String {
    // Its files as they are, and not page by page through the log: a quarter of the time. Older
    // ones know nothing else.
    let strategy = match version {
        150_000.. => " STRATEGY file_copy",
        _ => "",
    };
    format!("CREATE DATABASE {name} TEMPLATE {template}{strategy}")
}

fn read_password(executor: &Executor<Answers>) -> Result<String, Error> {
    let path = executor.dir().join("password");
    fs::read_to_string(&path).map_err(|source| failed(format!("read {}", path.display()), source))
}

// ---- the protocol, version 3 --------------------------------------------------------------------

/// Where the server is for us: its Unix socket, at which it asks for no password.
#[derive(Clone, Debug)]
struct Address {
    dir: PathBuf,
    port: u16,
}

impl Address {
    fn of(executor: &Executor<Answers>) -> Address {
        Address {
            dir: executor.dir(),
            port: executor.port(),
        }
    }

    fn connect(&self, database: &str) -> io::Result<Client> {
        let stream = UnixStream::connect(self.dir.join(format!(".s.PGSQL.{}", self.port)))?;
        let mut client = Client { stream, version: 0 };
        client.within(STATEMENT_WITHIN)?;
        client.stream.write_all(&startup(database))?;
        client.until_ready("")?;
        Ok(client)
    }
}

/// A connection of ours.
struct Client {
    stream: UnixStream,
    /// As 150018.
    version: u32,
}

impl Client {
    fn within(&self, limit: Duration) -> io::Result<()> {
        self.stream.set_read_timeout(Some(limit))?;
        self.stream.set_write_timeout(Some(limit))
    }

    /// Runs statements, whose results are not looked at. Several are one transaction.
    fn query(&mut self, sql: &str) -> io::Result<()> {
        self.send(b'Q', sql.as_bytes())?;
        self.until_ready(sql)
    }

    fn send(&mut self, kind: u8, text: &[u8]) -> io::Result<()> {
        let mut message = vec![kind];
        message.extend_from_slice(&length(text.len() + 5)?);
        message.extend_from_slice(text);
        message.push(0);
        self.stream.write_all(&message)
    }

    /// Reads until the server waits for the next query, and gives the first error that it reports.
    fn until_ready(&mut self, sql: &str) -> io::Result<()> {
        let mut result = Ok(());
        loop {
            let (kind, body) = read_message(&mut self.stream)?;
            match kind {
                b'Z' => return result,
                b'E' => {
                    let fields = Fields(&body);
                    let error = io::Error::other(fields.report(sql));
                    // After it the server hangs up.
                    if matches!(
                        fields.get(b'V').or(fields.get(b'S')).as_deref(),
                        Some("FATAL" | "PANIC")
                    ) {
                        return Err(error);
                    }
                    result = result.and(Err(error));
                }
                b'S' => {
                    let mut words = body.split(|byte| *byte == 0);
                    if words.next() == Some(b"server_version_num") || body.starts_with(b"server_version\0") {
                        self.version =
                            version_number(&String::from_utf8_lossy(words.next().unwrap_or_default()));
                    }
                }
                // It waits for the data of a `COPY .. FROM stdin`.
                b'G' => self.send(b'f', b"that takes `psql`, which is not installed")?,
                // Authenticated; anything else is a question that is not asked here.
                b'R' if body.as_slice() != [0; 4] => {
                    return Err(io::Error::other(
                        "the server asks for a password at its Unix socket",
                    ));
                }
                _ => {}
            }
        }
    }
}

/// "15.18 (Debian 15.18-0+deb12u1)" and "18beta1" as 150000 and 180000. That is all that is asked
/// for here.
fn version_number(text: &str) -> u32 {
    let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
    digits.parse::<u32>().unwrap_or(0).saturating_mul(10_000)
}

/// The first message of a connection.
fn startup(database: &str) -> Vec<u8> {
    const VERSION_3: u32 = 3 << 16;
    let parameters = format!("user\0{USER}\0database\0{database}\0application_name\0mirakuru\0\0");
    let size = (parameters.len() + 8) as u32;
    let mut message = size.to_be_bytes().to_vec();
    message.extend_from_slice(&VERSION_3.to_be_bytes());
    message.extend_from_slice(parameters.as_bytes());
    message
}

fn length(size: usize) -> io::Result<[u8; 4]> {
    match i32::try_from(size) {
        Ok(size) => Ok(size.to_be_bytes()),
        Err(_) => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "more than 2 GiB of SQL",
        )),
    }
}

fn read_message(stream: &mut impl Read) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 5];
    stream.read_exact(&mut head)?;
    let size = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    let mut body = Vec::new();
    let expected = u64::from(size.saturating_sub(4));
    // No more than what really comes.
    if stream.take(expected).read_to_end(&mut body)? as u64 != expected {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok((head[0], body))
}

/// Whether the server has begun to ask who we are. While it starts up it accepts, and refuses.
fn takes_clients(mut connection: Connection) -> io::Result<bool> {
    connection.send(&startup(SHARED))?;
    match read_message(&mut connection.0)? {
        (b'R', _) => Ok(true),
        (b'E', body) => Err(io::Error::other(Fields(&body).report(""))),
        _ => Ok(false),
    }
}

/// The fields of an error: a letter, a text and a zero each.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn get(&self, letter: u8) -> Option<String> {
        let mut fields = self.0.split(|byte| *byte == 0);
        let found = fields.find(|field| field.first() == Some(&letter))?;
        Some(String::from_utf8_lossy(&found[1..]).into_owned())
    }

    /// All that is of use, and where in the query it is.
    fn report(&self, sql: &str) -> String {
        let severity = self.get(b'S').unwrap_or_else(|| "ERROR".to_owned());
        let mut text = format!("{severity}: {}", self.get(b'M').unwrap_or_default());
        let position = self.get(b'P').and_then(|position| position.parse::<usize>().ok());
        if let Some(position) = position.filter(|_| sql.contains('\n')) {
            let before = sql.chars().take(position.saturating_sub(1));
            text = format!("line {}: {text}", before.filter(|c| *c == '\n').count() + 1);
        }
        for (letter, name) in [(b'D', "DETAIL"), (b'H', "HINT"), (b'W', "CONTEXT")] {
            if let Some(value) = self.get(letter) {
                text.push_str(&format!("\n{name}: {value}"));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_are_in_their_order() {
        let mut names = ["V10__c.sql", "V9__b.sql", "V09__a.sql", "Va.sql", "V100__d.sql"];
        names.sort_by_key(|name| (in_order(name), *name));
        assert_eq!(
            names,
            ["V09__a.sql", "V9__b.sql", "V10__c.sql", "V100__d.sql", "Va.sql"]
        );
    }

    #[test]
    fn an_error_says_where_it_is() {
        let body = b"SERROR\0VERROR\0C42601\0Msyntax error\0P16\0Htry again\0\0";
        let report = Fields(body).report("SELECT 1;\n\nCRAETE;");
        assert_eq!(report, "line 3: ERROR: syntax error\nHINT: try again");
    }

    #[test]
    fn versions_are_compared_by_their_first_number() {
        assert_eq!(version_number("15.18 (Debian 15.18-0+deb12u1)"), 150_000);
        assert_eq!(version_number("18beta1"), 180_000);
    }

    #[test]
    fn a_directory_is_read_in_order_and_without_what_undoes() {
        let dir = std::env::temp_dir().join(format!("mirakuru-unit-{}-sql", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        for name in ["2_b", "10_c"] {
            fs::create_dir_all(dir.join(name)).unwrap();
            fs::write(dir.join(name).join("up.sql"), name).unwrap();
            fs::write(dir.join(name).join("down.sql"), "no").unwrap();
        }
        for name in ["1_a.up.sql", "1_a.down.sql", ".hidden.sql", "README.md"] {
            fs::write(dir.join(name), name).unwrap();
        }
        let mut scripts = Vec::new();
        Load::Sql(dir.to_str().unwrap().to_owned())
            .read(&mut scripts)
            .unwrap();
        let texts: Vec<&str> = scripts.iter().map(|script| script.text.as_str()).collect();
        assert_eq!(texts, ["1_a.up.sql", "2_b", "10_c"]);
        fs::remove_dir_all(&dir).unwrap();
        let error = Load::Sql("no/such/dir".to_owned())
            .read(&mut scripts)
            .unwrap_err();
        assert!(error.to_string().contains("no/such/dir"), "{error}");
        Load::Sql("SELECT 1".to_owned()).read(&mut scripts).unwrap();
        assert_eq!(scripts.last().unwrap().text, "SELECT 1");
    }

    #[test]
    fn without_psql_a_script_is_one_query() {
        if find_program("postgres").is_none() {
            eprintln!("SKIPPED: PostgreSQL is not installed");
            return;
        }
        let server = postgres().load_sql("CREATE TABLE a (b INT)").start().unwrap();
        let address = Address::of(&server.executor);
        let mut client = address.connect(SHARED).unwrap();
        assert!(client.version >= 130_000, "{}", client.version);
        client
            .query(&format!("ALTER DATABASE {TEMPLATE} WITH ALLOW_CONNECTIONS true"))
            .unwrap();
        let run = |text: &str| {
            let script = Script {
                path: None,
                text: text.to_owned(),
            };
            load(&[script], None, &address).map_err(|error| error.to_string())
        };
        run("INSERT INTO a VALUES (1);\nINSERT INTO a VALUES (2);").unwrap();
        let error = run("SELECT 1;\nSELECT c FROM a;").unwrap_err();
        assert!(
            error.contains("line 2: ERROR: column \"c\" does not exist"),
            "{error}"
        );
        let error = run("COPY a FROM stdin;").unwrap_err();
        assert!(error.contains("takes `psql`"), "{error}");
        assert!(address.connect("no_such").is_err());
    }
}
