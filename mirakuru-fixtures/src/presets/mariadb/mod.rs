//! MariaDB, and MySQL, which looks the same to most clients.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use mirakuru_core::__private::{find_program, hash, literal, not_found, spawn};
use mirakuru_core::{Error, Executor, ExecutorBuilder};

use self::protocol::{Address, Client, is_greeted};
use super::connection::{ANSWER_WITHIN, TIDY_WITHIN, tidied};
use super::external::External;
use super::seed::{self, Seed};
use super::server::{
    AsRoot, Options, Server, clean, clean_program, find_one, flags, handle, is_shim, last_lines,
    new_password, options, password, reason, unique_name, write_password, write_secret,
};
use super::sql::{self, Dialect, Script};
use super::{Answers, expect, failed};
use crate::Recipe;
use crate::cache::{fill, private_dir};

mod external;
mod protocol;

pub(super) const SERVER: Server = Server {
    name: "MariaDB",
    programs: &["mariadbd", "mysqld"],
    users: &["mysql", "nobody"],
    as_root: AsRoot::With(&["--user=root"]),
    needs: &[("Max file size", 16 << 20, "-f")],
    external: Some(&external::PROTOCOL),
};

/// Time limit for the installation of a data directory, enough for a slow disk and a busy machine.
const INSTALLED_WITHIN: Duration = Duration::from_secs(300);
/// The database of [`Mariadb::url`].
const SHARED: &str = "test";
/// The user for mirakuru's own connections. It has no password, but can only connect through the
/// Unix socket, which is in a directory that other users cannot enter.
const OURS: &str = "mirakuru";
/// File in the private directory: an SQL dump of the seeded database.
const SEED: &str = "seed.sql";
/// File in the private directory: the login for the client programs.
const CLIENT: &str = "client.cnf";
const CHARACTERS: &str = "default-character-set=utf8mb4\n";

/// A MariaDB server, or a MySQL server if MariaDB is not installed: see [`Mariadb`].
pub fn mariadb() -> MariadbRecipe {
    MariadbRecipe {
        options: Options::default(),
        mysql: false,
        load: Vec::new(),
        seeds: Vec::new(),
    }
}

/// A MySQL server, or a MariaDB server if MySQL is not installed: see [`Mariadb`].
///
/// On Debian, `mysqld` is a link to MariaDB's server, and counts as MariaDB. On Ubuntu, use
/// MariaDB: AppArmor allows the packaged `mysqld` only its own data directory.
pub fn mysql() -> MariadbRecipe {
    MariadbRecipe {
        mysql: true,
        ..mariadb()
    }
}

/// A recipe for a MariaDB or MySQL server, created by [`mariadb()`] and [`mysql()`].
#[derive(Clone, Debug)]
#[must_use = "a recipe does nothing until it is started"]
pub struct MariadbRecipe {
    options: Options,
    mysql: bool,
    load: Vec<String>,
    seeds: Vec<Seed>,
}

options!(MariadbRecipe, durable);

impl MariadbRecipe {
    /// Sets a server variable, overriding the preset's value: `config("max-connections", "20")`.
    pub fn config(mut self, variable: impl Into<String>, value: impl Into<String>) -> Self {
        self.options.config.push((variable.into(), value.into()));
        self
    }

    /// Loads SQL, such as a schema, into the database of [`url`](Mariadb::url) and into each new
    /// [`database`](Mariadb::database). Several calls load their SQL in order.
    ///
    /// MariaDB and MySQL cannot copy a database, so each database runs the SQL again. A statement
    /// that changes the whole server must work a second time, for example
    /// `CREATE USER IF NOT EXISTS`.
    ///
    /// The argument is SQL or a path. A string with a semicolon or a line break is SQL. A string
    /// with a space is also SQL, unless it begins like a path or ends with `.sql`. A relative path
    /// is resolved against the working directory, which `cargo test` sets to the package's
    /// directory. If the path is a directory, all of its `.sql` files are loaded, as for
    /// [PostgreSQL](super::PostgresRecipe::load_sql).
    ///
    /// The server's command line client runs the SQL, so `DELIMITER` and `source` work. The start
    /// fails if a statement would not take effect in the database, such as `USE`, which
    /// `mariadb-dump --databases` writes, or a transaction without a commit. The error names the
    /// line.
    pub fn load_sql(mut self, sql: impl Into<String>) -> Self {
        self.load.push(sql.into());
        self
    }

    /// Runs code, such as the application's migrations, on a database with all
    /// [loaded](MariadbRecipe::load_sql) SQL. The code gets the database's URL. The database of
    /// [`url`](Mariadb::url) and each [`database`](Mariadb::database) start with the result.
    ///
    /// As for [PostgreSQL](super::PostgresRecipe::seed), the code runs once for each key, and later
    /// runs use the result. The result is an SQL dump of tables, views, routines and events, but
    /// without accounts and rights. It is loaded into each new database. A seed needs
    /// `mariadb-dump` or `mysqldump`, which comes with the command line client.
    ///
    /// ```no_run
    /// # use mirakuru_fixtures as mirakuru;
    /// # fn migrate(url: &str) -> Result<(), std::io::Error> { Ok(()) }
    /// use mirakuru::{Recipe, presets};
    ///
    /// let key = presets::hash_of_dir("migrations")?;
    /// let server = presets::mariadb().seed(key, |url| migrate(url)).start()?;
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

    /// Puts the result of the seeds into the private directory. For a new key, starts a server,
    /// runs the seeds on its database, and dumps the database.
    fn install_seed(&self, program: &Path, dir: &Path) -> Result<(), Error> {
        let Some(version) = version_of(program).filter(|_| !self.seeds.is_empty()) else {
            return Ok(());
        };
        let recipe = format!(
            "{version}\n{}\n{}\n{:?}\n{:?}",
            sql::digest(&self.scripts()?),
            seed::digest(&self.seeds),
            self.options.config,
            self.options.args,
        );
        let key = format!("mariadb-seed-{:016x}", hash(0, &recipe));
        fill(dir, &key, |kept| {
            let maker = MariadbRecipe {
                seeds: Vec::new(),
                options: Options {
                    // The server that needs the seed may have locked its port, so use a free port
                    // here.
                    port: None,
                    ..self.options.clone()
                },
                ..self.clone()
            };
            let made = maker.start()?;
            let url = made.url();
            self.seeds.iter().try_for_each(|seed| seed.run(&url))?;
            made.access
                .dump(SHARED, program, &kept.join(SEED))
                .map_err(|source| failed("keep the result of a seed", source))
        })
    }

    /// The server program: from the recipe, or else an installed one.
    fn server(&self) -> Option<PathBuf> {
        if self.options.program.is_some() {
            return self.options.program.clone();
        }
        if let Some(chosen) = SERVER.chosen() {
            return Some(chosen);
        }
        let mariadb = find_program("mariadbd");
        let mysql = find_program("mysqld");
        if self.mysql {
            // On Debian, `mysqld` is a link to MariaDB's server, which does not count as MySQL.
            mysql
                .filter(|path| fs::canonicalize(path).is_ok_and(|real| real.ends_with("mysqld")))
                .or(mariadb)
        } else {
            mariadb.or(mysql)
        }
    }

    /// Puts a digest of the SQL and seeds into the recipe, so that servers with different contents
    /// are not shared.
    fn with_contents<R>(&self, recipe: ExecutorBuilder<R>, scripts: &[Script]) -> ExecutorBuilder<R> {
        match self.seeds.is_empty() {
            true => recipe,
            false => {
                let contents = format!("{} {}", sql::digest(scripts), seed::digest(&self.seeds));
                recipe.env(seed::VARIABLE, contents)
            }
        }
    }

    /// The server's address, and the client program for this server.
    fn access(&self, dir: &Path) -> Result<Access, Error> {
        let programs: &[&str] = match self.mysql {
            true => &["mysql", "mariadb"],
            false => &["mariadb", "mysql"],
        };
        let external = self.options.external(&SERVER)?;
        let server = match &external {
            Some(_) => PathBuf::new(),
            None => self.server().unwrap_or_default(),
        };
        Ok(Access {
            client: beside(&server, programs),
            address: match external {
                Some(external) => Address::External(Box::new(external)),
                None => Address::Socket(dir.join("socket")),
            },
            dir: dir.to_owned(),
        })
    }

    /// Creates the common database on an external server. Runs the seeds on this database, and
    /// stores the result as SQL in the private directory.
    fn set_up_external(&self, external: &External, dir: &Path) -> Result<(), Error> {
        let access = self.access(dir)?;
        let name = common(Some(external), dir)?;
        access.create(&name, &self.scripts()?)?;
        if self.seeds.is_empty() {
            return Ok(());
        }
        let url = external.url(&name);
        self.seeds.iter().try_for_each(|seed| seed.run(&url))?;
        access
            .dump(&name, Path::new(""), &dir.join(SEED))
            .map_err(|source| failed("keep the result of a seed", source))
    }

    /// The SQL for each new database. `dir` is the server's private directory.
    fn contents(&self, dir: &Path) -> Result<Vec<Script>, Error> {
        match self.seeds.is_empty() {
            true => self.scripts(),
            false => Ok(vec![Script::File(dir.join(SEED))]),
        }
    }

    fn scripts(&self) -> Result<Vec<Script>, Error> {
        let mut scripts = Vec::new();
        for given in &self.load {
            sql::find(given, &mut scripts)?;
        }
        Ok(scripts)
    }
}

// Keeps this type out of the list of implementors in compiler errors about `Recipe`.
#[diagnostic::do_not_recommend]
impl Recipe for MariadbRecipe {
    type Readiness = Answers;
    type Handle = Mariadb;

    fn executor(&self) -> Result<ExecutorBuilder<Answers>, Error> {
        // If a file is missing, fail at the start, not at the first database.
        let scripts = self.scripts()?;
        if let Some(external) = self.options.external(&SERVER)? {
            return Ok(self.with_contents(external.executor(&self.options)?, &scripts));
        }
        let first = if self.mysql { "mysqld" } else { "mariadbd" };
        let options = Options {
            program: self.server().or_else(|| Some(first.into())),
            ..self.options.clone()
        };
        let port = options.port();
        // A server that does not know a `loose-` setting prints a warning and starts anyway.
        let mut settings = vec![
            ("port", &*port),
            ("bind-address", "127.0.0.1"),
            ("socket", "{dir}/socket"),
            ("pid-file", "{dir}/pid"),
            ("datadir", "{dir}/data"),
            ("tmpdir", "{dir}/tmp"),
            // The server runs this file before it accepts connections.
            ("init-file", "{dir}/init.sql"),
            // Without name resolution, `root@localhost` matches only the socket, and `root@%` the
            // port.
            ("skip-name-resolve", "1"),
            ("character-set-server", "utf8mb4"),
            ("default-time-zone", "+00:00"),
            // Turns off MySQL's X Protocol, which has its own port.
            ("loose-mysqlx", "0"),
            ("loose-performance-schema", "0"),
            ("innodb-buffer-pool-size", "64M"),
            ("innodb-buffer-pool-load-at-startup", "0"),
            ("innodb-buffer-pool-dump-at-shutdown", "0"),
        ];
        settings.extend_from_slice(&INSTALLED);
        if !options.durable {
            settings.extend_from_slice(&FAST);
        }
        // Ignores the configuration of the machine's own server. This option must come first.
        let mut args = flags(&options.settings(settings));
        args.insert(0, "--no-defaults".to_owned());
        let recipe = self.with_contents(options.recipe(&SERVER, &args)?, &scripts);
        Ok(recipe.wait_for(options.answers("sent its greeting", is_greeted)))
    }

    fn prepare(&self, executor: &mut Executor<Answers>) -> Result<(), Error> {
        let dir = executor.dir();
        if let Some(external) = self.options.external(&SERVER)? {
            external.prepare()?;
            return write_secret(&dir, CLIENT, &external::client_file(&external));
        }
        let secret = new_password()?;
        // The server runs these statements at each start, so they must work more than once.
        let init = format!(
            "CREATE USER IF NOT EXISTS 'root'@'%' IDENTIFIED BY '{secret}';\n\
             ALTER USER 'root'@'localhost' IDENTIFIED BY '{secret}', 'root'@'%' IDENTIFIED BY '{secret}';\n\
             GRANT ALL PRIVILEGES ON *.* TO 'root'@'%' WITH GRANT OPTION;\n\
             CREATE USER IF NOT EXISTS '{OURS}'@'localhost';\n\
             GRANT ALL PRIVILEGES ON *.* TO '{OURS}'@'localhost';\n\
             CREATE DATABASE IF NOT EXISTS {SHARED} CHARACTER SET utf8mb4;\n"
        );
        let socket = dir.join("socket");
        let client = format!(
            "[client]\nuser=root\npassword={secret}\nsocket={}\n{CHARACTERS}",
            external::quoted(&socket.to_string_lossy())
        );
        write_password(&dir, &secret)?;
        write_secret(&dir, "init.sql", &init)?;
        write_secret(&dir, CLIENT, &client)?;
        for name in ["data", "tmp"] {
            let path = dir.join(name);
            private_dir(&path).map_err(|source| failed(format!("make {}", path.display()), source))?;
        }
        match self.server() {
            Some(program) => {
                install(&program, &dir).map_err(|error| SERVER.blamed(&program, error))?;
                self.install_seed(&program, &dir)
            }
            // If the program is missing, continue: the launch reports that with a better error.
            None => Ok(()),
        }
    }

    fn set_up(&self, executor: &mut Executor<Answers>) -> Result<(), Error> {
        for script in self.scripts()? {
            script.read(Dialect::Mysql)?;
        }
        let dir = executor.dir();
        match self.options.external(&SERVER)? {
            Some(external) => self.set_up_external(&external, &dir),
            None => self.access(&dir)?.load(&self.contents(&dir)?, SHARED),
        }
    }

    fn handle(self, executor: Executor<Answers>) -> Result<Mariadb, Error> {
        let dir = executor.dir();
        let external = self.options.external(&SERVER)?;
        Ok(Mariadb {
            access: self.access(&dir)?,
            scripts: self.contents(&dir)?,
            common: common(external.as_ref(), &dir)?,
            password: password(external.as_ref(), &dir)?,
            executor,
            external,
        })
    }
}

/// Settings that must be the same when the data directory is installed and at each start.
const INSTALLED: [(&str, &str); 2] = [
    // With MariaDB's default, the log would take 96 MB in each data directory.
    ("innodb-log-file-size", "16M"),
    ("skip-log-bin", "1"),
];

/// Settings that skip flushes to disk. A crash of the server loses nothing, because each commit is
/// written to the log. A crash of the machine may lose everything. The doublewrite buffer stays on,
/// because SIGKILL may interrupt the write of a page.
const FAST: [(&str, &str); 4] = [
    ("innodb-flush-log-at-trx-commit", "2"),
    ("innodb-flush-method", "nosync"),
    ("loose-debug-no-sync", "1"),
    ("sync-binlog", "0"),
];

// ---- the data directory -------------------------------------------------------------------------

/// Fills an empty data directory from the cache. The first use fills the cache.
fn install(program: &Path, dir: &Path) -> Result<(), Error> {
    // If the program is missing, continue: the launch reports that with a better error.
    let Some(version) = version_of(program) else {
        return Ok(());
    };
    const FORMAT: u32 = 4;
    let key = format!("{version}-{FORMAT}");
    fill(dir, &key, |kept| {
        let data = kept.join("data");
        private_dir(&data).map_err(|source| failed(format!("make {}", data.display()), source))?;
        let mut version = Command::new(program);
        clean(&mut version);
        let version = version
            .args(["--no-defaults", "--version"])
            .output()
            .map_err(|source| failed(format!("run {}", program.display()), source))?;
        let is_mariadb = String::from_utf8_lossy(&version.stdout).contains("MariaDB");
        // The installation runs as a service, so that it ends if this process is killed.
        let mut install = if is_mariadb {
            clean_program(&beside(program, &["mariadb-install-db", "mysql_install_db"]))
                .args(["--no-defaults", "--skip-test-db", "--skip-name-resolve"])
                // Without `--rpm`, the script changes the owner of files that belong to the
                // machine's own server.
                .arg("--rpm")
                .args(flags(&FAST))
        } else {
            clean_program(program).args(["--no-defaults", "--initialize-insecure"])
        };
        if let Some(base) = base_of(program).filter(|_| is_mariadb) {
            install = install.arg(path_arg("--basedir=", &base));
        }
        install = install.args(flags(&INSTALLED)).arg(path_arg("--datadir=", &data));
        if !is_shim(program) {
            install = install.current_dir("{dir}");
        }
        // The server refuses to run as root without a user option. The script passes `--loose-user`
        // on to the server. It would handle `--user` itself, and then fail if the data directory's
        // path contains a space.
        if data.metadata().is_ok_and(|metadata| metadata.uid() == 0) {
            install = install.arg("--loose-user=root");
        }
        let mut install = install.start()?;
        if install.wait(INSTALLED_WITHIN)?.success() {
            return Ok(());
        }
        Err(Error::other(
            format!("create a data directory with `{}`", install.command()),
            last_lines(&install),
        ))
    })
}

/// Identifies the server's version by its file: name, size, modification time and inode. Running
/// the server with `--version` would make each start a tenth slower.
fn version_of(program: &Path) -> Option<String> {
    let metadata = fs::metadata(program).ok()?;
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    let (size, time, inode) = (metadata.size(), metadata.mtime(), metadata.ino());
    Some(format!("{name}-{size}-{time}-{inode}"))
}

/// An option with a path. Braces in the path are escaped, because they are not placeholders.
fn path_arg(option: &str, path: &Path) -> OsString {
    let mut arg = OsString::from(option);
    arg.push(literal(path));
    arg
}

/// The directory above the server's `bin` or `sbin`, unless it is `/`, `/usr` or `/usr/local`.
fn base_of(program: &Path) -> Option<PathBuf> {
    let real = fs::canonicalize(program).ok()?;
    let base = real.ancestors().nth(2)?;
    let is_system = ["/", "/usr", "/usr/local"]
        .iter()
        .any(|dir| base == Path::new(dir));
    (!is_system).then(|| base.to_owned())
}

/// The first of these programs that is found beside the server, or else elsewhere on the machine.
fn beside(server: &Path, programs: &[&str]) -> PathBuf {
    if let Some(base) = base_of(server) {
        for dir in ["bin", "scripts", "sbin"] {
            for program in programs {
                let path = base.join(dir).join(program);
                if path.is_file() {
                    return path;
                }
            }
        }
    }
    find_one(programs).unwrap_or_else(|| programs.first().copied().unwrap_or_default().into())
}

// ---- the handle ---------------------------------------------------------------------------------

/// A running MariaDB or MySQL server.
///
/// [`url`](Mariadb::url) leads to a database for the application under test.
/// [`database`](Mariadb::database) gives each test its own database. Tests share everything else:
/// accounts and rights, global variables (`SET GLOBAL`), `FLUSH`, the locks of `GET_LOCK`, and the
/// names of databases.
///
/// The time zone is UTC and the character set is `utf8mb4`, whatever the environment of the tests
/// sets. Committed data survives [`kill`](Executor::kill) and a later start. To keep it through a
/// crash of the machine, set [`durable(true)`](MariadbRecipe::durable).
///
/// ```no_run
/// # use mirakuru_fixtures as mirakuru;
/// use mirakuru::{Recipe, presets};
///
/// let server = presets::mariadb().config("max-connections", "20").start()?;
/// let database = server.database();
/// // mysql://root:e5bq7kdw3xta..@127.0.0.1:41873/tm2vay7kq4zbo
/// println!("{}", database.url());
/// # Ok::<(), mirakuru_core::Error>(())
/// ```
pub struct Mariadb {
    executor: Executor<Answers>,
    access: Access,
    password: String,
    scripts: Vec<Script>,
    /// Name of the database in [`url`](Mariadb::url).
    common: String,
    external: Option<External>,
}

handle!(Mariadb, external);

impl Mariadb {
    /// The URL of the common database: `mysql://root:PASSWORD@127.0.0.1:PORT/test`. The database
    /// exists from the start, with all data that the recipe [loads](MariadbRecipe::load_sql), and
    /// all tests on this server share it. Data that an application adds survives a restart, and is
    /// removed with the server.
    ///
    /// For a server at `MIRAKURU_MARIADB_URL`, mirakuru creates a new database, and does not use
    /// the one that the variable names.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_of(&self.common)
    }

    /// The superuser: `root`, or the user in `MIRAKURU_MARIADB_URL`.
    #[must_use]
    pub fn user(&self) -> &str {
        let external = self.external.as_ref();
        external
            .and_then(|external| external.user.as_deref())
            .unwrap_or("root")
    }

    /// The user's password, which is different for each server.
    #[must_use]
    pub fn password(&self) -> &str {
        &self.password
    }

    /// Path of the Unix socket.
    ///
    /// # Panics
    ///
    /// Panics if the server is at `MIRAKURU_MARIADB_URL`.
    #[must_use]
    #[track_caller]
    pub fn socket(&self) -> PathBuf {
        if let Some(external) = &self.external {
            external.has_no("socket");
        }
        self.executor.dir().join("socket")
    }

    /// Creates a database for one test, with the SQL that the recipe
    /// [loads](MariadbRecipe::load_sql). Dropping the value drops the database. If the test process
    /// is killed, the database is removed with the server.
    ///
    /// # Panics
    ///
    /// Panics if the database cannot be created: see [`try_database`](Mariadb::try_database).
    #[must_use]
    #[track_caller]
    pub fn database(&self) -> MariadbDatabase {
        expect(self.try_database())
    }

    /// Like [`database`](Mariadb::database), but returns an error instead of panicking.
    ///
    /// # Errors
    ///
    /// Returns [`Error::System`] if the server does not answer or refuses the recipe's SQL, or if
    /// the command line client is missing (`mariadb` or `mysql`).
    pub fn try_database(&self) -> Result<MariadbDatabase, Error> {
        let name = match &self.external {
            Some(external) => external.unique_name(&self.executor.dir())?,
            None => unique_name()?,
        };
        // If a later step fails, dropping this value removes the database.
        let database = MariadbDatabase {
            url: self.url_of(&name),
            name,
            address: self.access.address.clone(),
        };
        self.access.create(&database.name, &self.scripts)?;
        Ok(database)
    }

    fn url_of(&self, database: &str) -> String {
        if let Some(external) = &self.external {
            return external.url(database);
        }
        let Self {
            executor, password, ..
        } = self;
        format!("mysql://root:{password}@127.0.0.1:{}/{database}", executor.port())
    }
}

/// Name of the database in [`Mariadb::url`].
fn common(external: Option<&External>, dir: &Path) -> Result<String, Error> {
    match external {
        Some(external) => Ok(format!("{}_common", external.owner(dir)?)),
        None => Ok(SHARED.to_owned()),
    }
}

/// The address of a server, and the client program for it.
struct Access {
    address: Address,
    /// Path of the command line client.
    client: PathBuf,
    /// The server's private directory.
    dir: PathBuf,
}

impl Access {
    fn connect(&self) -> io::Result<Client> {
        Client::connect(&self.address, ANSWER_WITHIN)
    }

    /// Creates a database, and runs these scripts in it.
    fn create(&self, name: &str, scripts: &[Script]) -> Result<(), Error> {
        // An external server may have a different default character set.
        let statement = format!("CREATE DATABASE {name} CHARACTER SET utf8mb4");
        self.connect()
            .and_then(|mut client| client.query(&statement))
            .map_err(|source| failed("create a database", source))?;
        self.load(scripts, name)
    }

    fn load(&self, scripts: &[Script], database: &str) -> Result<(), Error> {
        scripts.iter().try_for_each(|script| {
            self.run(script, database)
                .map_err(|source| failed(script.attempt(), source))
        })
    }

    /// A command that runs `program` with the login in `client.cnf`.
    fn client(&self, program: &Path) -> Command {
        let mut option = OsString::from("--defaults-file=");
        option.push(self.dir.join(CLIENT));
        let mut command = Command::new(program);
        clean(&mut command);
        command.arg(option).stdin(Stdio::null());
        command
    }

    /// Dumps a database into an SQL file that does not name the database.
    fn dump(&self, database: &str, server: &Path, file: &Path) -> io::Result<()> {
        let mut command = self.client(&beside(server, &["mariadb-dump", "mysqldump"]));
        let mut result = OsString::from("--result-file=");
        result.push(file);
        command
            .args([
                "--routines",
                "--events",
                "--hex-blob",
                "--skip-comments",
                "--no-tablespaces",
            ])
            .arg(result)
            .arg(database);
        run(&mut command, "mariadb-dump", None)?;
        // Append the database's default character set and collation, which the dump lacks.
        let defaults = format!(
            "SELECT CONCAT('ALTER DATABASE CHARACTER SET ', default_character_set_name, ' COLLATE ', \
             default_collation_name, ';') FROM information_schema.schemata WHERE schema_name = '{database}'"
        );
        let lines = self.connect()?.query(&defaults)?;
        let mut file = File::options().append(true).open(file)?;
        lines.iter().try_for_each(|line| writeln!(file, "{line}"))
    }

    /// Runs a script in a database with the command line client.
    fn run(&self, script: &Script, database: &str) -> io::Result<()> {
        let mut command = self.client(&self.client);
        command.args(["--batch", database]);
        let input = match script {
            Script::File(path) => {
                command.stdin(File::open(path)?);
                None
            }
            Script::Text(text) => Some(text.clone()),
        };
        run(&mut command, "mariadb", input)
    }
}

/// A database of a [`Mariadb`] for one test. Dropping the value closes the connections to the
/// database and drops the database. If that takes more than a second, mirakuru stops waiting, and
/// the database is removed with the server at the latest.
#[derive(Debug)]
pub struct MariadbDatabase {
    name: String,
    url: String,
    address: Address,
}

impl MariadbDatabase {
    /// The URL: `mysql://root:PASSWORD@127.0.0.1:PORT/NAME`.
    #[must_use]
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// The name, which is unique on the server.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Closes the connections to a database, and drops it.
fn drop_database(address: &Address, name: &str, within: Duration) -> io::Result<()> {
    let mut client = Client::connect(address, within)?;
    // A connection with another default database may hold a lock in this one. Wait at most 1 s for
    // the lock.
    client.query("SET lock_wait_timeout = 1")?;
    let connections = format!("SELECT id FROM information_schema.processlist WHERE db = '{name}'");
    for id in client.query(&connections)? {
        // `KILL` fails if the connection has already closed.
        let _ = client.query(&format!("KILL {id}"));
    }
    client.query(&format!("DROP DATABASE IF EXISTS {name}")).map(drop)
}

impl Drop for MariadbDatabase {
    fn drop(&mut self) {
        let dropped = drop_database(&self.address, &self.name, TIDY_WITHIN);
        tidied(&format!("drop the database {}", self.name), dropped);
    }
}

/// Runs a client program, which reads `input`, and waits for it to end. If it fails, the error
/// quotes its output.
fn run(command: &mut Command, program: &str, input: Option<String>) -> io::Result<()> {
    if input.is_some() {
        command.stdin(Stdio::piped());
    }
    let mut child = match command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(io::Error::new(e.kind(), not_found(program, &[])));
        }
        child => child?,
    };
    let mut writer = None;
    if let Some((mut stdin, input)) = child.stdin.take().zip(input) {
        // A thread writes the input while this one reads the output, so that neither pipe fills up.
        let write = move || drop(stdin.write_all(input.as_bytes()));
        writer = Some(spawn("mirakuru-input", Box::new(write)));
    }
    let output = child.wait_with_output()?;
    writer.transpose()?;
    if output.status.success() {
        return Ok(());
    }
    let (stderr, stdout) = (
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout),
    );
    let reason = reason(&stderr, &stdout);
    Err(io::Error::other(
        reason.unwrap_or_else(|| format!("it ended with {}", output.status)),
    ))
}
