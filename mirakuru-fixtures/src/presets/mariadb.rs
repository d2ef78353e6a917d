//! MariaDB, and MySQL, which is the same to most of those who use it.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use mirakuru_core::__private::{find_program, not_found, random_id};
use mirakuru_core::{Error, Executor, ExecutorBuilder};

use super::cache::{cached, copy_tree};
use super::{
    Answers, Connection, Options, expect, failed, handle, last_lines, options, unique_name, write_secret,
};
use crate::Recipe;

/// How long the installation of a data directory may take, on a slow disk of a busy machine.
const INSTALLED_WITHIN: Duration = Duration::from_secs(300);
/// The database that is there from the start, everybody's.
const SHARED: &str = "test";

/// A MariaDB, or a MySQL where there is no MariaDB: see [`Mariadb`].
pub fn mariadb() -> MariadbRecipe {
    MariadbRecipe {
        options: Options::default(),
        mysql: false,
        config: Vec::new(),
        load: Vec::new(),
    }
}

/// A MySQL, or a MariaDB where there is no MySQL: see [`Mariadb`].
///
/// A `mysqld` that is another name of MariaDB's server, as Debian has it, counts as MariaDB.
/// Ubuntu's AppArmor profile keeps the `mysqld` of its package out of every data directory but its
/// own; there, take MariaDB.
pub fn mysql() -> MariadbRecipe {
    MariadbRecipe {
        mysql: true,
        ..mariadb()
    }
}

/// How to start a MariaDB or a MySQL: made by [`mariadb()`] and [`mysql()`].
#[derive(Clone, Debug)]
#[must_use = "a recipe does nothing until it is started"]
pub struct MariadbRecipe {
    options: Options,
    mysql: bool,
    config: Vec<(String, String)>,
    load: Vec<String>,
}

options!(MariadbRecipe, durable);

impl MariadbRecipe {
    /// Sets a variable of the server, over those that the preset sets:
    /// `config("max-connections", "20")`.
    pub fn config(mut self, variable: impl Into<String>, value: impl Into<String>) -> Self {
        self.config.push((variable.into(), value.into()));
        self
    }

    /// Loads SQL into each new [`database`](Mariadb::database), after what was added before: a
    /// schema, some data. Each time, because neither MariaDB nor MySQL can copy a database.
    ///
    /// The argument is the path of a file, or SQL as it is: what no file has as its name, and what
    /// has a space or a semicolon in it, is SQL. A relative path counts from the working directory,
    /// which under `cargo test` is the package's. It goes through the server's own command line
    /// client, which knows `DELIMITER` and `source`.
    pub fn load_sql(mut self, sql: impl Into<String>) -> Self {
        self.load.push(sql.into());
        self
    }

    /// The server: what was given, or else what is found.
    fn server(&self) -> Option<PathBuf> {
        if self.options.program.is_some() {
            return self.options.program.clone();
        }
        let mariadb = find_program("mariadbd");
        let mysql = find_program("mysqld");
        if self.mysql {
            // Not a link to the other one.
            mysql
                .filter(|path| fs::canonicalize(path).is_ok_and(|real| real.ends_with("mysqld")))
                .or(mariadb)
        } else {
            mariadb.or(mysql)
        }
    }
}

// Not in the list of recipes that an error gives: it is long enough.
#[diagnostic::do_not_recommend]
impl Recipe for MariadbRecipe {
    type Readiness = Answers;
    type Handle = Mariadb;

    fn executor(&self) -> Result<ExecutorBuilder<Answers>, Error> {
        let options = Options {
            program: self.server(),
            ..self.options.clone()
        };
        // What only one of the two knows begins with `loose-`: to the other it is a warning.
        let mut settings = vec![
            ("port", options.port()),
            ("bind-address", "127.0.0.1".to_owned()),
            ("socket", "{dir}/socket".to_owned()),
            ("pid-file", "{dir}/pid".to_owned()),
            ("datadir", "{dir}/data".to_owned()),
            ("tmpdir", "{dir}/tmp".to_owned()),
            // Read before the first connection is accepted.
            ("init-file", "{dir}/init.sql".to_owned()),
            // `root@localhost` is whoever comes by the socket, `root@%` whoever comes by the port.
            ("skip-name-resolve", "1".to_owned()),
            ("character-set-server", "utf8mb4".to_owned()),
            // MySQL's second port.
            ("loose-mysqlx", "0".to_owned()),
            ("loose-performance-schema", "0".to_owned()),
            ("innodb-buffer-pool-size", "64M".to_owned()),
            ("innodb-buffer-pool-load-at-startup", "0".to_owned()),
            ("innodb-buffer-pool-dump-at-shutdown", "0".to_owned()),
        ];
        settings.extend(INSTALLED.map(|(name, value)| (name, value.to_owned())));
        if !options.durable {
            settings.extend(FAST.map(|(name, value)| (name, value.to_owned())));
        }
        let given = self
            .config
            .iter()
            .map(|(name, value)| (name.as_str(), value.clone()));
        let first = if self.mysql { "mysqld" } else { "mariadbd" };
        // Not what this machine's own server is configured with. It must be the first argument.
        let mut recipe = options.executor(&[first]).arg("--no-defaults");
        for (name, value) in settings.into_iter().chain(given) {
            recipe = recipe.arg(format!("--{name}={value}"));
        }
        Ok(recipe
            .args(&options.args)
            .unprivileged(["mysql", "nobody"])
            .wait_for(options.answers("sent its greeting", is_greeted)))
    }

    fn prepare(&self, executor: &mut Executor<Answers>) -> Result<(), Error> {
        let dir = executor.dir();
        let secret = random_id().map_err(|source| failed("make a password", source))?;
        // Read again at each start.
        let init = format!(
            "CREATE USER IF NOT EXISTS 'root'@'%' IDENTIFIED BY '{secret}';\n\
             ALTER USER 'root'@'localhost' IDENTIFIED BY '{secret}', 'root'@'%' IDENTIFIED BY '{secret}';\n\
             GRANT ALL PRIVILEGES ON *.* TO 'root'@'%' WITH GRANT OPTION;\n\
             CREATE DATABASE IF NOT EXISTS {SHARED};\n"
        );
        let client = format!(
            "[client]\nuser=root\npassword={secret}\nsocket=\"{}\"\ndefault-character-set=utf8mb4\n",
            dir.join("socket").display()
        );
        for (name, text) in [
            ("password", &secret),
            ("init.sql", &init),
            ("client.cnf", &client),
        ] {
            write_secret(&dir, name, text)
                .map_err(|source| failed(format!("write {}", dir.join(name).display()), source))?;
        }
        for name in ["data", "tmp"] {
            let path = dir.join(name);
            fs::create_dir(&path).map_err(|source| failed(format!("make {}", path.display()), source))?;
        }
        match self.server() {
            Some(program) => install(&program, &dir.join("data")),
            // The start has the better error.
            None => Ok(()),
        }
    }

    fn handle(self, executor: Executor<Answers>) -> Result<Mariadb, Error> {
        let path = executor.dir().join("password");
        let password =
            fs::read_to_string(&path).map_err(|source| failed(format!("read {}", path.display()), source))?;
        Ok(Mariadb {
            client: beside(
                &self.server().unwrap_or_default(),
                if self.mysql {
                    &["mysql", "mariadb"]
                } else {
                    &["mariadb", "mysql"]
                },
            ),
            executor,
            password,
            load: self.load,
        })
    }
}

/// What the data directory is made with, and so what the server must be started with.
const INSTALLED: [(&str, &str); 2] = [
    // Half a dozen times as large by default, each of which is copied.
    ("innodb-log-file-size", "16M"),
    ("skip-log-bin", "1"),
];

/// What makes it fast, and a power failure fatal.
const FAST: [(&str, &str); 5] = [
    ("innodb-flush-log-at-trx-commit", "0"),
    ("innodb-flush-method", "nosync"),
    ("innodb-doublewrite", "0"),
    ("loose-debug-no-sync", "1"),
    ("sync-binlog", "0"),
];

/// The server's first packet is its greeting, or an error. It sends none before it has read the
/// init file.
fn is_greeted(mut connection: Connection) -> io::Result<bool> {
    const PROTOCOL: u8 = 10;
    const ERROR: u8 = 0xff;
    // Three bytes of length, and a number.
    let mut head = [0; 4];
    connection.0.read_exact(&mut head)?;
    let length = u32::from_le_bytes([head[0], head[1], head[2], 0]);
    let mut packet = Vec::new();
    (&mut connection.0)
        .take(u64::from(length))
        .read_to_end(&mut packet)?;
    match packet.first() {
        Some(&PROTOCOL) => Ok(true),
        // A number, then a text.
        Some(&ERROR) => Err(io::Error::other(
            String::from_utf8_lossy(packet.get(3..).unwrap_or_default()).into_owned(),
        )),
        _ => Ok(false),
    }
}

// ---- the data directory -------------------------------------------------------------------------

/// Fills an empty data directory: from the cache, which the first to need it fills.
fn install(program: &Path, data: &Path) -> Result<(), Error> {
    let service = data.parent().unwrap_or(data);
    // A program that is not there: the start has the better error.
    let Ok(metadata) = fs::metadata(program) else {
        return Ok(());
    };
    // Its size and time stand for its version: asking it takes a tenth of a start.
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    let key = format!(
        "{name}-{}-{}-{}",
        metadata.size(),
        metadata.mtime(),
        metadata.ino()
    );
    let template = cached(service, &key, |template| {
        let version = Command::new(program)
            .args(["--no-defaults", "--version"])
            .output();
        let version = version.map_err(|source| failed(format!("run {}", program.display()), source))?;
        let is_mariadb = String::from_utf8_lossy(&version.stdout).contains("MariaDB");
        // Programs of these that run as root want to be told that they may.
        let is_root = template.metadata().is_ok_and(|metadata| metadata.uid() == 0);
        // A service like any other, so that it does not go on alone when this process is killed.
        let mut install = if is_mariadb {
            let install = Executor::builder([beside(program, &["mariadb-install-db", "mysql_install_db"])])
                .args(["--no-defaults", "--skip-test-db", "--skip-name-resolve"])
                // Not the files of the machine's own server, which it would give to the user that
                // is named.
                .arg("--rpm")
                .args(FAST.map(|(name, value)| format!("--{name}={value}")));
            match base_of(program) {
                Some(base) => install.arg(format!("--basedir={}", base.display())),
                None => install,
            }
        } else {
            Executor::builder([program]).args(["--no-defaults", "--initialize-insecure"])
        };
        install = install
            .args(INSTALLED.map(|(name, value)| format!("--{name}={value}")))
            .arg(format!("--datadir={}", template.display()));
        if is_root {
            install = install.arg("--user=root");
        }
        let mut install = install.start()?;
        if install.wait(INSTALLED_WITHIN)?.success() {
            return Ok(());
        }
        Err(Error::other(
            format!("make a data directory with `{}`", install.command()),
            last_lines(&install),
        ))
    })?;
    copy_tree(&template, data).map_err(|source| {
        failed(
            format!("copy {} to {}", template.display(), data.display()),
            source,
        )
    })
}

/// Where a server was unpacked by hand: what its `bin` or `sbin` is in.
fn base_of(program: &Path) -> Option<PathBuf> {
    let real = fs::canonicalize(program).ok()?;
    let base = real.ancestors().nth(2)?;
    let is_system = ["/", "/usr", "/usr/local"]
        .iter()
        .any(|dir| base == Path::new(dir));
    (!is_system).then(|| base.to_owned())
}

/// The first of these programs in the places that belong to the server, or else anywhere.
fn beside(server: &Path, programs: &[&str]) -> PathBuf {
    let mut own = base_of(server).into_iter().flat_map(|base| {
        let dirs = ["bin", "scripts", "sbin"].map(|dir| base.join(dir));
        dirs.into_iter()
            .flat_map(|dir| programs.iter().map(move |program| dir.join(program)))
    });
    own.find(|path| path.is_file())
        .or_else(|| programs.iter().find_map(|program| find_program(program)))
        .unwrap_or_else(|| programs.first().copied().unwrap_or_default().into())
}

// ---- the handle ---------------------------------------------------------------------------------

/// A running MariaDB or MySQL.
///
/// [`database`](Mariadb::database) gives each test a database of its own. What all of them share is
/// what belongs to no database: accounts and their rights, global variables (`SET GLOBAL`),
/// `FLUSH`, the locks of `GET_LOCK`, and the names of the databases themselves.
///
/// ```no_run
/// # use mirakuru_fixtures as mirakuru;
/// use mirakuru::{Recipe, presets};
///
/// let server = presets::mariadb().config("max-connections", "20").start()?;
/// let database = server.database();
/// // mysql://root:e5bq7kdw3xta@127.0.0.1:41873/tm2vay7kq4zbo
/// println!("{}", database.url());
/// # Ok::<(), mirakuru_core::Error>(())
/// ```
pub struct Mariadb {
    executor: Executor<Answers>,
    client: PathBuf,
    password: String,
    load: Vec<String>,
}

handle!(Mariadb);

impl Mariadb {
    /// The URL of the database that is there from the start, everybody's:
    /// `mysql://root:PASSWORD@127.0.0.1:PORT/test`.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_of(SHARED)
    }

    /// The user, who may do everything: `root`.
    #[must_use]
    pub fn user(&self) -> &'static str {
        "root"
    }

    /// The user's password: another one for each server.
    #[must_use]
    pub fn password(&self) -> &str {
        &self.password
    }

    /// Its Unix socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.executor.dir().join("socket")
    }

    /// A database for one test alone, with what the recipe [loads](MariadbRecipe::load_sql), until
    /// it is dropped. Where the test process is killed, it goes with the server.
    ///
    /// # Panics
    ///
    /// When it cannot be made: see [`try_database`](Mariadb::try_database).
    #[must_use]
    #[track_caller]
    pub fn database(&self) -> MariadbDatabase {
        expect(self.try_database())
    }

    /// The same, for those who want the error.
    ///
    /// # Errors
    ///
    /// [`Error::System`] when the server's command line client, `mariadb` or `mysql`, is missing,
    /// the server does not answer, or it refuses what the recipe loads.
    pub fn try_database(&self) -> Result<MariadbDatabase, Error> {
        let attempt = "make a database";
        let name = unique_name()?;
        let client = Client {
            program: self.client.clone(),
            config: self.executor.dir().join("client.cnf"),
        };
        client
            .run(None, format!("CREATE DATABASE {name};").as_bytes())
            .map_err(|source| failed(attempt, source))?;
        let database = MariadbDatabase {
            url: self.url_of(&name),
            name,
            client,
        };
        for sql in &self.load {
            database.load(sql)?;
        }
        Ok(database)
    }

    fn url_of(&self, database: &str) -> String {
        let Self {
            executor, password, ..
        } = self;
        format!("mysql://root:{password}@127.0.0.1:{}/{database}", executor.port())
    }
}

/// One database of a [`Mariadb`], made for a test. Dropped with all that is in it when this is.
#[derive(Debug)]
pub struct MariadbDatabase {
    name: String,
    url: String,
    client: Client,
}

impl MariadbDatabase {
    /// Its URL: `mysql://root:PASSWORD@127.0.0.1:PORT/NAME`.
    #[must_use]
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// Its name, which no other database of the server has.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path, or SQL.
    fn load(&self, given: &str) -> Result<(), Error> {
        let run = |sql: &[u8]| self.client.run(Some(&self.name), sql);
        let path = Path::new(given);
        if given.contains([';', ' ', '\n']) && !path.exists() {
            return run(given.as_bytes()).map_err(|source| failed("load the recipe's SQL", source));
        }
        fs::read(path).and_then(|sql| run(&sql)).map_err(|source| {
            let dir = std::env::current_dir().unwrap_or_default();
            failed(
                format!("load the SQL in {} (from {})", path.display(), dir.display()),
                source,
            )
        })
    }
}

impl Drop for MariadbDatabase {
    fn drop(&mut self) {
        // A server that is gone has nothing left.
        let statement = format!("DROP DATABASE IF EXISTS {};", self.name);
        let _ = self.client.run(None, statement.as_bytes());
    }
}

/// The server's own client, by its Unix socket.
#[derive(Clone, Debug)]
struct Client {
    program: PathBuf,
    /// With the password.
    config: PathBuf,
}

impl Client {
    fn run(&self, database: Option<&str>, statements: &[u8]) -> io::Result<()> {
        let mut config = std::ffi::OsString::from("--defaults-file=");
        config.push(&self.config);
        let mut command = Command::new(&self.program);
        command.arg(config).arg("--batch").args(database);
        run(&mut command, statements).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => io::Error::new(e.kind(), not_found("mariadb", &[])),
            _ => e,
        })
    }
}

/// Runs a program to its end. The error of one that fails is what it has printed.
fn run(command: &mut Command, input: &[u8]) -> io::Result<()> {
    /// How many lines of it.
    const TAIL: usize = 20;
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let stdin = child.stdin.take();
    let output = thread::scope(|scope| {
        // Beside the reading, so that neither fills a pipe.
        scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input)));
        child.wait_with_output()
    })?;
    if output.status.success() {
        return Ok(());
    }
    // What went wrong is there, and on the other one what else could be said.
    let printed = [output.stderr, output.stdout]
        .into_iter()
        .find(|text| !text.is_empty());
    let printed = printed.unwrap_or_default();
    let printed = String::from_utf8_lossy(&printed);
    let lines: Vec<&str> = printed.lines().filter(|line| !line.trim().is_empty()).collect();
    let tail = lines[lines.len().saturating_sub(TAIL)..].join("\n");
    Err(io::Error::other(if tail.is_empty() {
        format!("it ended with {}", output.status)
    } else {
        tail
    }))
}
