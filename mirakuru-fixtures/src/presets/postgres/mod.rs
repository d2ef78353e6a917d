//! PostgreSQL, a relational database.
//!
//! Three layers make it fast to give each test its own database. Each layer is a copy of the one
//! before:
//!
//! ```text
//! initdb, once for each machine ──▶ the cluster in `{dir}/data` ──▶ a template with the recipe's SQL
//!                   copied as files           started, once a run                  │
//!                                                     CREATE DATABASE .. TEMPLATE  ▼
//!                                            a database for all tests, and one for each test
//! ```

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use mirakuru_core::__private::{hash, literal};
use mirakuru_core::{Check, Error, Executor, ExecutorBuilder, Signal};

use self::cluster::{install, is_ready, of_version, psql_of, real_path, release_memory};
pub use self::database::PostgresDatabase;
use self::database::{Template, copy};
use self::load::{create_database, extras, load};
use self::protocol::{Address, Client, takes_clients};
use super::external::External;
use super::seed::{self, Seed};
use super::server::{
    AsRoot, Options, Server, handle, new_password, options, password, unique_name, write_password,
    write_secret,
};
use super::sql::{self, Script};
use super::{Answers, expect, failed, percent_encoded};
use crate::Recipe;
use crate::cache::{copy_tree, fill};
use crate::cluster::{ClusterRecipe, Node};

mod cluster;
mod database;
mod external;
mod load;
mod protocol;

pub(super) const SERVER: Server = Server {
    name: "PostgreSQL",
    programs: &["postgres"],
    users: &["postgres", "nobody"],
    as_root: AsRoot::Never,
    needs: &[
        ("Max file size", 16 << 20, "-f"),
        ("Max stack size", 1 << 20, "-s"),
    ],
    external: Some(&external::PROTOCOL),
};

/// The name of the superuser.
const USER: &str = "postgres";
/// The database that exists from the start. mirakuru's own connections use it.
const SHARED: &str = "postgres";
/// The database of [`Postgres::url`] if the recipe loads any SQL: a copy of the template.
const COMMON: &str = "mirakuru";
/// The database with the recipe's SQL. No client can connect to it, because a connection would
/// prevent copies.
const TEMPLATE: &str = "mirakuru_template";
/// File in the private directory that records the template's owner, and whether the template has
/// settings.
const EXTRAS: &str = "extras";

/// A PostgreSQL server: see [`Postgres`].
pub fn postgres() -> PostgresRecipe {
    PostgresRecipe {
        options: Options::default(),
        version: None,
        initdb: Vec::new(),
        load: Vec::new(),
        seeds: Vec::new(),
        fills_seeds: false,
        primary: None,
    }
}

/// A recipe for a PostgreSQL server, created by [`postgres()`].
#[derive(Clone, Debug)]
#[must_use = "a recipe does nothing until it is started"]
pub struct PostgresRecipe {
    options: Options,
    version: Option<u32>,
    initdb: Vec<String>,
    load: Vec<Load>,
    seeds: Vec<Seed>,
    /// Whether this server runs the seeds to produce the result that other servers copy.
    fills_seeds: bool,
    /// Directory and port of the primary, for a replica.
    primary: Option<(PathBuf, u16)>,
}

#[derive(Clone, Debug)]
enum Load {
    /// SQL, or the path of a file or directory with SQL.
    Sql(String),
    Extension(String),
}

options!(PostgresRecipe, durable);

impl PostgresRecipe {
    /// Selects this major version: `version(15)`. The default is the `postgres` on `PATH`, or else
    /// the newest installed version.
    pub fn version(mut self, major: u32) -> Self {
        self.version = Some(major);
        self
    }

    /// Sets a configuration parameter, overriding the preset's value: `config("log_statement",
    /// "all")`.
    pub fn config(mut self, parameter: impl Into<String>, value: impl Into<String>) -> Self {
        self.options.config.push((parameter.into(), value.into()));
        self
    }

    /// Adds an argument for `initdb`, which creates the data directory:
    /// `initdb_arg("--locale=pl_PL.UTF-8")`, `initdb_arg("--data-checksums")`. The defaults are the
    /// locale `C.UTF-8` and the encoding UTF-8.
    pub fn initdb_arg(mut self, arg: impl Into<String>) -> Self {
        self.initdb.push(arg.into());
        self
    }

    /// Loads SQL, such as a schema, into a template database, once for each server. Several calls
    /// load their SQL in order.
    ///
    /// The database of [`url`](Postgres::url) and each [`database`](Postgres::database) are copies
    /// of the template. They have the template's owner, settings (`ALTER DATABASE .. SET`), grants
    /// and comment.
    ///
    /// The argument is SQL or a path. A string with a semicolon or a line break is SQL. A string
    /// with a space is also SQL, unless it begins like a path or ends with `.sql`. A relative path
    /// is resolved against the working directory, which `cargo test` sets to the package's
    /// directory.
    ///
    /// If the path is a directory, all `.sql` files in it and in its subdirectories are loaded in
    /// the order of their names. Numbers in names count as numbers (`9_x` is before `10_x`).
    /// `down.sql` and `*.down.sql`, which undo a migration, are left out.
    ///
    /// `psql` runs the SQL if it is installed beside the server or on `PATH`. So
    /// `CREATE INDEX CONCURRENTLY`, `COPY .. FROM stdin`, `\i` and the dumps of `pg_dump` work.
    /// Without `psql`, each file is sent as one query, in which these statements fail.
    ///
    /// The start fails if a statement would not take effect in the template, such as `\connect`,
    /// which `pg_dump --create` writes, or a `BEGIN` without a `COMMIT`. The error names the line.
    pub fn load_sql(mut self, sql: impl Into<String>) -> Self {
        self.load.push(Load::Sql(sql.into()));
        self
    }

    /// Creates an extension, and the extensions that it needs, in the template of all databases:
    /// `extension("pg_trgm")`. The extension must be installed; Debian's `postgresql-contrib` has
    /// many.
    pub fn extension(mut self, name: impl Into<String>) -> Self {
        self.load.push(Load::Extension(name.into()));
        self
    }

    /// Runs code, such as the application's migrations, on the template of all databases. The code
    /// runs after all [loaded](PostgresRecipe::load_sql) SQL, and gets the template's URL.
    ///
    /// The code runs once for each key, and later starts copy the result. mirakuru cannot compare
    /// code, so change the key when the code changes. For a directory of migrations,
    /// [`hash_of_dir`](super::hash_of_dir) computes such a key. The code also runs again if the
    /// server's version, another setting of the recipe or the loaded SQL changes.
    ///
    /// The code runs on its own thread, so `block_on` works there. If the code returns an error,
    /// the start fails with that error and the key, and no result is kept.
    ///
    /// ```no_run
    /// # use mirakuru_fixtures as mirakuru;
    /// # fn migrate(url: &str) -> Result<(), std::io::Error> { Ok(()) }
    /// use mirakuru::{Recipe, presets};
    ///
    /// let key = presets::hash_of_dir("migrations")?;
    /// let server = presets::postgres().seed(key, |url| migrate(url)).start()?;
    /// let database = server.database(); // Has been migrated.
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn seed<E>(
        mut self,
        key: impl Into<String>,
        fill: impl Fn(&str) -> Result<(), E> + Send + Sync + 'static,
    ) -> Self
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.seeds.push(Seed::new(key, fill));
        self
    }

    /// Fills `{dir}/data` with a cluster whose template has been seeded. For a new key, starts a
    /// server, runs the seeds, and stops the server.
    fn install_seeded(&self, program: &Path, dir: &Path) -> Result<(), Error> {
        let scripts = self.scripts()?;
        const FORMAT: u32 = 2;
        let recipe = format!(
            "{FORMAT}\n{}\n{}\n{}\n{:?}\n{:?}\n{}",
            cluster::key_of(program, &self.initdb)?,
            sql::digest(&scripts),
            seed::digest(&self.seeds),
            self.options.config,
            self.options.args,
            self.options.durable,
        );
        let key = format!("postgres-seed-{:016x}", hash(0, &recipe));
        fill(dir, &key, |kept| {
            let maker = PostgresRecipe {
                fills_seeds: true,
                options: Options {
                    // The server that needs the seed may have locked its port, so use a free port
                    // here.
                    port: None,
                    ..self.options.clone()
                },
                ..self.clone()
            };
            let mut made = maker.start()?;
            let from = made.executor.dir();
            // No process may write to the cluster during the copy.
            made.executor.stop()?;
            // Keep the cluster, and the file `extras`, which describes its template.
            copy_tree(&from.join("data"), &kept.join("data"))
                .and_then(|()| std::fs::copy(from.join(EXTRAS), kept.join(EXTRAS)))
                .map(drop)
                .map_err(|source| failed("keep the result of a seed", source))
        })
    }

    /// Whether the recipe loads anything into its databases.
    fn loads(&self) -> bool {
        !self.load.is_empty() || !self.seeds.is_empty()
    }

    /// Whether this server starts with the kept result of the seeds.
    fn is_seeded(&self) -> bool {
        !self.seeds.is_empty() && !self.fills_seeds
    }

    /// A primary with `replicas` replicas. The first node is the primary. The cluster is ready when
    /// each replica streams from the primary, and has the database of [`url`](Postgres::url).
    /// Databases are created on the primary and appear on the replicas, which are read-only.
    ///
    /// ```no_run
    /// # use mirakuru_fixtures as mirakuru;
    /// use mirakuru::{Recipe, presets};
    ///
    /// let nodes = presets::postgres().replicas(1).start()?;
    /// let (primary, replica) = (&nodes[0], &nodes[1]);
    /// println!("write to {}, read from {}", primary.url(), replica.url());
    /// # Ok::<(), mirakuru_core::Error>(())
    /// ```
    pub fn replicas(
        self,
        replicas: usize,
    ) -> ClusterRecipe<PostgresRecipe, impl Fn(&Node) -> PostgresRecipe + Clone> {
        let mut recipe = self;
        recipe.options.is_member = true;
        recipe.options.set_first(&[
            ("wal_level", "replica"),
            ("max_wal_senders", "10"),
            ("wal_keep_size", "64MB"),
            // With this setting, a replica that starts before the primary soon retries.
            ("wal_retrieve_retry_interval", "50ms"),
        ]);
        let loads = recipe.loads();
        let nodes = crate::cluster(1 + replicas, move |node| {
            let primary = node.nodes().next().filter(|_| node.index() > 0);
            PostgresRecipe {
                primary: primary.map(|primary| (primary.dir(), primary.port())),
                ..recipe.clone()
            }
        });
        if !loads {
            return nodes;
        }
        nodes.ready_when(Check::new("it had the loaded database", move |node| {
            let port = node.port().ok_or(io::ErrorKind::InvalidInput)?;
            let dir = node.dir().to_owned();
            let mut client = Address::Socket { dir, port }.connect(SHARED)?;
            let found = client.query(&format!("SELECT 1 FROM pg_database WHERE datname = '{COMMON}'"))?;
            Ok(!found.is_empty())
        }))
    }

    fn server(&self) -> Result<Option<PathBuf>, Error> {
        let found = match (&self.options.program, self.version) {
            (Some(program), _) => Some(program.clone()),
            (None, Some(major)) => {
                let found = of_version(major);
                Some(found.map_err(|error| error.__optional(self.options.optional))?)
            }
            (None, None) => SERVER.find(),
        };
        Ok(found.map(real_path))
    }

    fn scripts(&self) -> Result<Vec<Script>, Error> {
        let mut scripts = Vec::new();
        for load in &self.load {
            match load {
                Load::Sql(given) => sql::find(given, &mut scripts)?,
                Load::Extension(name) => {
                    let name = name.replace('"', "\"\"");
                    let statement = format!("CREATE EXTENSION IF NOT EXISTS \"{name}\" CASCADE;");
                    scripts.push(Script::Text(statement));
                }
            }
        }
        Ok(scripts)
    }

    /// Puts digests of the SQL and seeds into the recipe, so that servers with different contents
    /// are not shared.
    fn with_contents<R>(&self, mut recipe: ExecutorBuilder<R>, scripts: &[Script]) -> ExecutorBuilder<R> {
        if !scripts.is_empty() {
            recipe = recipe.env("MIRAKURU_SQL", sql::digest(scripts));
        }
        if !self.seeds.is_empty() {
            recipe = recipe.env(seed::VARIABLE, seed::digest(&self.seeds));
        }
        recipe
    }

    fn address(&self, executor: &Executor<Answers>) -> Result<Address, Error> {
        match self.options.external(&SERVER)? {
            Some(external) => {
                let owner = external.owner(&executor.dir())?;
                Ok(Address::External(Box::new(external), owner))
            }
            None => Ok(Address::of(executor)),
        }
    }

    /// Creates the template with all SQL of the recipe, and the common database.
    fn make_databases(
        &self,
        client: &mut Client,
        address: &Address,
        dir: &Path,
        url: &dyn Fn(&str) -> String,
    ) -> Result<(), Error> {
        let failed = |source| failed("set PostgreSQL up", source);
        let template = match self.loads() {
            true => Some(self.make_template(client, address, dir, url)?),
            false => None,
        };
        if let Some(name) = address.common(template.is_some()) {
            copy(client, address, template.as_ref(), &name).map_err(failed)?;
        }
        Ok(())
    }

    fn make_template(
        &self,
        client: &mut Client,
        address: &Address,
        dir: &Path,
        url: &dyn Fn(&str) -> String,
    ) -> Result<Template, Error> {
        let scripts = self.scripts()?;
        let failed = |source| failed("set PostgreSQL up", source);
        let template = address.template();
        client
            .query(&create_database(
                address,
                &template,
                "template0",
                None,
                client.version,
            ))
            .map_err(failed)?;
        let psql = match address {
            Address::Socket { .. } => self.server()?.and_then(|server| psql_of(&server)),
            Address::External(..) => psql_of(Path::new("")),
        };
        load(&scripts, psql.as_deref(), address, &template)?;
        self.seeds.iter().try_for_each(|seed| seed.run(&url(&template)))?;
        let (owner, has_settings) = extras(client, &template, address.user()).map_err(failed)?;
        if has_settings {
            external::check_copies_settings(address, client).map_err(failed)?;
        }
        let text = format!("{has_settings} {}", owner.unwrap_or_default());
        write_secret(dir, EXTRAS, &text)?;
        let closed = match address {
            Address::Socket { .. } => "IS_TEMPLATE true ALLOW_CONNECTIONS false",
            // Without `IS_TEMPLATE`, the clean-up can drop the template at once. The user owns it,
            // and may therefore still copy it.
            Address::External(..) => "ALLOW_CONNECTIONS false",
        };
        client
            .query(&format!("ALTER DATABASE {template} WITH {closed}"))
            .map_err(failed)?;
        if !self.seeds.is_empty() {
            // A connection that a seed has left open would prevent copies of the template. An
            // autovacuum is no obstacle, because the server cancels it when it copies the template.
            let sessions = format!(
                "FROM pg_stat_activity WHERE datname = '{template}' AND backend_type = 'client backend'"
            );
            client
                .query(&format!("SELECT pg_terminate_backend(pid) {sessions}"))
                .map_err(failed)?;
        }
        Template::read(dir)
    }

    fn configuration(&self) -> String {
        let port = self.options.port();
        let mut settings = vec![
            ("port", &*port),
            ("listen_addresses", "127.0.0.1"),
            // `..` is the private directory, relative to `data`.
            ("unix_socket_directories", ".."),
        ];
        settings.extend_from_slice(&FIXED);
        if !self.options.durable {
            settings.extend_from_slice(&FAST);
        }
        let primary = match &self.primary {
            Some((dir, port)) => {
                let dir = dir.to_string_lossy().replace('\\', "\\\\").replace('\'', "\\'");
                literal(format!("host='{dir}' port={port} user={USER}"))
            }
            None => OsString::new(),
        };
        let primary = primary.to_string_lossy();
        if !primary.is_empty() {
            settings.push(("primary_conninfo", &primary));
        }
        // If a parameter is set twice, PostgreSQL uses the last value.
        let mut text = String::new();
        for (name, value) in self.options.settings(settings) {
            let value = value.replace('\\', "\\\\").replace('\'', "''");
            text.push_str(&format!("{name} = '{value}'\n"));
        }
        text
    }
}

const FIXED: [(&str, &str); 11] = [
    ("max_connections", "300"),
    ("shared_buffers", "64MB"),
    // With `mmap`, shared memory is in a file beside the data. A file in `/dev/shm` would outlive a
    // killed server.
    ("dynamic_shared_memory_type", "mmap"),
    ("timezone", "UTC"),
    ("log_timezone", "UTC"),
    ("datestyle", "ISO, MDY"),
    ("lc_messages", "C"),
    ("default_text_search_config", "pg_catalog.english"),
    // Each new database takes two checkpoints, which would fill the log.
    ("log_checkpoints", "off"),
    // Keeps the write-ahead log small. The default is 1 GB.
    ("max_wal_size", "256MB"),
    ("min_wal_size", "32MB"),
];

/// Settings that skip flushes to disk. A crash of the server loses nothing, because the kernel
/// already has each commit's log record. A crash of the machine may lose everything.
/// `full_page_writes` stays on, because SIGKILL may interrupt the write of a page.
const FAST: [(&str, &str); 3] = [
    ("fsync", "off"),
    ("wal_level", "minimal"),
    ("max_wal_senders", "0"),
];

// Keeps this type out of the list of implementors in compiler errors about `Recipe`.
#[diagnostic::do_not_recommend]
impl Recipe for PostgresRecipe {
    type Readiness = Answers;
    type Handle = Postgres;

    fn executor(&self) -> Result<ExecutorBuilder<Answers>, Error> {
        let scripts = self.scripts()?;
        if let Some(external) = self.options.external(&SERVER)? {
            external.refuse("initdb_arg", !self.initdb.is_empty())?;
            return Ok(self.with_contents(external.executor(&self.options)?, &scripts));
        }
        let options = Options {
            program: self.server()?,
            ..self.options.clone()
        };
        let mut recipe = options
            .recipe(&SERVER, &["-D", "{dir}/data"])?
            .file("data/postgresql.conf", self.configuration())
            // The socket needs no password, because no other user can enter its directory.
            // `Postgres::password` explains the setting for TCP.
            .file(
                "data/pg_hba.conf",
                "local all,replication all trust\nhost all,replication all 127.0.0.1/32 password\n",
            )
            // SIGINT requests a fast shutdown. After SIGTERM, the server would wait for all clients
            // to disconnect.
            .stop_signal(Signal::Int);
        recipe = self.with_contents(recipe, &scripts);
        let follows = self.primary.is_some();
        if follows {
            recipe = recipe.file("data/standby.signal", "");
        }
        if !self.initdb.is_empty() {
            recipe = recipe.env("MIRAKURU_INITDB", self.initdb.join(" "));
        }
        Ok(recipe.wait_for(options.answers_in(
            "it took a client",
            Box::new(move |question| {
                // A client that connects too early leaves an error in the log, so check the pid
                // file first.
                if !is_ready(question.dir) {
                    return Ok(false);
                }
                let taken = takes_clients(question.connect()?)?;
                if taken {
                    release_memory(question.dir);
                }
                if taken && follows {
                    let (dir, port) = (question.dir.to_owned(), question.port);
                    let mut client = Address::Socket { dir, port }.connect(SHARED)?;
                    return Ok(client.query("SELECT status FROM pg_stat_wal_receiver")? == ["streaming"]);
                }
                Ok(taken)
            }),
        )))
    }

    fn prepare(&self, executor: &mut Executor<Answers>) -> Result<(), Error> {
        if let Some(external) = self.options.external(&SERVER)? {
            external.prepare()?;
            return external::check_version(&external, self.version)
                .map_err(|source| external.failed(source));
        }
        let dir = executor.dir();
        write_password(&dir, &new_password()?)?;
        // If the program is missing, continue: the launch reports that with a better error.
        let Some(program) = self.server()?.filter(|program| program.is_file()) else {
            return Ok(());
        };
        let installed = match self.is_seeded() {
            true => self.install_seeded(&program, &dir),
            false => install(&program, &self.initdb, &dir),
        };
        installed.map_err(|error| SERVER.blamed(&program, error))
    }

    fn set_up(&self, executor: &mut Executor<Answers>) -> Result<(), Error> {
        if self.primary.is_some() {
            return Ok(());
        }
        let failed = |source| failed("set PostgreSQL up", source);
        let (address, dir) = (self.address(executor)?, executor.dir());
        let mut client = address.connect(address.shared()).map_err(failed)?;
        if let Address::External(external, _) = &address {
            return self.make_databases(&mut client, &address, &dir, &|name| external.url(name));
        }
        let password = password(None, &dir)?;
        // By default, the server hashes a password 4096 times, which takes 5 to 15 ms for each
        // connection. A random password needs no slow hash.
        let cheap = match client.version {
            160_000.. => "SET scram_iterations = 1",
            _ => "SET password_encryption = md5",
        };
        // If the system refuses MD5, the server keeps the slow default.
        let _ = client.query(cheap);
        client
            .query(&format!("ALTER ROLE {USER} PASSWORD '{password}'"))
            .map_err(failed)?;
        if self.is_seeded() {
            return Ok(());
        }
        let port = executor.port();
        self.make_databases(&mut client, &address, &dir, &|name| {
            format!("postgresql://{USER}:{password}@127.0.0.1:{port}/{name}")
        })
    }

    fn handle(self, executor: Executor<Answers>) -> Result<Postgres, Error> {
        // A replica uses the password and the template of its primary.
        let dir = match &self.primary {
            Some((dir, _)) => dir.clone(),
            None => executor.dir(),
        };
        let template = match self.loads() {
            true => Some(Template::read(&dir)?),
            false => None,
        };
        let (address, external) = (self.address(&executor)?, self.options.external(&SERVER)?);
        Ok(Postgres {
            password: password(external.as_ref(), &dir)?,
            executor,
            template,
            address,
            external,
        })
    }
}

/// A running PostgreSQL server, version 13 or later.
///
/// [`url`](Postgres::url) leads to a database for the application under test.
/// [`database`](Postgres::database) gives each test its own database. Both have the SQL that the
/// recipe [loads](PostgresRecipe::load_sql). Tests share everything else: roles, tablespaces, the
/// configuration that `ALTER SYSTEM` writes, the 300 connections, and the names of databases.
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
/// `initdb` runs once for each machine and version, and later starts copy its result. So all
/// clusters have the same system identifier. The locale is `C.UTF-8`, the encoding UTF-8, the time
/// zone UTC and the date style ISO, whatever the environment of the tests sets.
///
/// Committed data survives [`kill`](Executor::kill) and a later start. To keep it through a crash
/// of the machine, set [`durable(true)`](PostgresRecipe::durable). Without `durable(true)`,
/// `wal_level` is `minimal`. For replication, set `wal_level` and `max_wal_senders` with
/// [`config`](PostgresRecipe::config).
pub struct Postgres {
    executor: Executor<Answers>,
    password: String,
    template: Option<Template>,
    address: Address,
    external: Option<External>,
}

handle!(Postgres, external);

impl Postgres {
    /// The URL of the common database, which all tests on this server share:
    /// `postgresql://postgres:PASSWORD@127.0.0.1:PORT/postgres`. This database is empty. If the
    /// recipe [loads](PostgresRecipe::load_sql) SQL, the database is `mirakuru` instead, a copy of
    /// the template. Data that an application adds survives a restart, and is removed with the
    /// server.
    ///
    /// For a server at `MIRAKURU_POSTGRES_URL`, mirakuru creates a new database, and does not use
    /// the one that the variable names.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_of(
            &self
                .address
                .common(self.template.is_some())
                .unwrap_or_else(|| SHARED.to_owned()),
        )
    }

    /// The superuser: `postgres`, or the user in `MIRAKURU_POSTGRES_URL`.
    #[must_use]
    pub fn user(&self) -> &str {
        self.address.user()
    }

    /// The user's password, which is different for each server. Clients send it in clear text
    /// (`password` in `pg_hba.conf`). It does not leave this machine, and a client in a debug build
    /// spends no time on hashes.
    #[must_use]
    pub fn password(&self) -> &str {
        &self.password
    }

    /// The directory of the Unix socket, for clients that take a directory as `host`. Only the
    /// server's user and root can enter it, and they need no password.
    ///
    /// # Panics
    ///
    /// Panics if the server is at `MIRAKURU_POSTGRES_URL`.
    #[must_use]
    #[track_caller]
    pub fn socket_dir(&self) -> PathBuf {
        if let Some(external) = &self.external {
            external.has_no("socket");
        }
        self.executor.dir()
    }

    /// Creates a database for one test, a copy of the template that the recipe
    /// [loads](PostgresRecipe::load_sql). Dropping the value drops the database. If the test
    /// process is killed, the database is removed with the server.
    ///
    /// # Panics
    ///
    /// Panics if the database cannot be created: see [`try_database`](Postgres::try_database).
    #[must_use]
    #[track_caller]
    pub fn database(&self) -> PostgresDatabase {
        expect(self.try_database())
    }

    /// Like [`database`](Postgres::database), but returns an error instead of panicking. If one of
    /// the server's processes has crashed, waits up to 10 s for the server to recover.
    ///
    /// # Errors
    ///
    /// Returns [`Error::System`] if the server does not answer, has no free connection, or is a
    /// replica.
    pub fn try_database(&self) -> Result<PostgresDatabase, Error> {
        let address = self.address.clone();
        let create = |client: &mut Client| -> io::Result<String> {
            let name = match &self.external {
                Some(external) => external.unique_name(&self.executor.dir()),
                None => unique_name(),
            };
            let name = name.map_err(io::Error::other)?;
            if let Address::Socket { dir, .. } = &address {
                // After a crash, the server has a new segment of shared memory.
                release_memory(dir);
            }
            copy(client, &address, self.template.as_ref(), &name)?;
            Ok(name)
        };
        let name = address
            .retry(create)
            .map_err(|source| failed("create a database", writable(source)))?;
        Ok(PostgresDatabase {
            url: self.url_of(&name),
            name,
            address,
        })
    }

    fn url_of(&self, database: &str) -> String {
        if let Some(external) = &self.external {
            return external.url(database);
        }
        let (password, port) = (percent_encoded(&self.password), self.executor.port());
        format!("postgresql://{USER}:{password}@127.0.0.1:{port}/{database}")
    }
}

/// Adds a hint to the error of a replica, which accepts no changes.
fn writable(source: io::Error) -> io::Error {
    match source.to_string() {
        text if text.contains("read-only transaction") => io::Error::new(
            source.kind(),
            format!("{text}; a replica accepts no changes: use the primary, which is node 0"),
        ),
        _ => source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_psql_a_script_is_one_query() {
        if SERVER.find().is_none() {
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
            let script = Script::Text(text.to_owned());
            load(&[script], None, &address, TEMPLATE).map_err(|error| error.to_string())
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
