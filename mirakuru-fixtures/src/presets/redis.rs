//! Redis, and Valkey, which is the same to those who use it.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use mirakuru_core::__private::Lease;
use mirakuru_core::{Error, Executor, ExecutorBuilder};

use super::{ANSWER_WITHIN, Answers, Connection, Options, expect, failed, handle, options};
use crate::Recipe;

/// How many numbered databases there are, unless `config("databases", ..)` says otherwise. An empty
/// one costs the server some hundred bytes.
const DATABASES: u32 = 1024;

/// A Redis, or a Valkey where there is no Redis: see [`Redis`].
pub fn redis() -> RedisRecipe {
    RedisRecipe {
        options: Options::default(),
        config: Vec::new(),
    }
}

/// How to start a Redis: made by [`redis()`].
#[derive(Clone, Debug)]
#[must_use = "a recipe does nothing until it is started"]
pub struct RedisRecipe {
    options: Options,
    config: Vec<(String, String)>,
}

options!(RedisRecipe, durable);

impl RedisRecipe {
    /// Sets a directive of its configuration, over those that the preset sets:
    /// `config("maxmemory", "16mb")`.
    pub fn config(mut self, directive: impl Into<String>, value: impl Into<String>) -> Self {
        self.config.push((directive.into(), value.into()));
        self
    }

    /// The last value of a directive that was set.
    fn setting(&self, directive: &str) -> Option<&str> {
        let settings = self.config.iter().rev();
        let mut found = settings.filter(|(name, _)| name.eq_ignore_ascii_case(directive));
        found.next().map(|(_, value)| value.as_str())
    }
}

// Not in the list of recipes that an error gives: it is long enough.
#[diagnostic::do_not_recommend]
impl Recipe for RedisRecipe {
    type Readiness = Answers;
    type Handle = Redis;

    fn executor(&self) -> Result<ExecutorBuilder<Answers>, Error> {
        let databases = DATABASES.to_string();
        let mut settings = vec![
            ("port", self.options.port()),
            ("bind", "127.0.0.1".to_owned()),
            ("unixsocket", "{dir}/socket".to_owned()),
            ("unixsocketperm", "700".to_owned()),
            ("dir", "{dir}".to_owned()),
            ("databases", databases),
            // It looks at SIGTERM from its own timer: two milliseconds until it ends, instead of a
            // hundred.
            ("hz", "500".to_owned()),
        ];
        if self.options.durable {
            settings.push(("appendonly", "yes".to_owned()));
        } else {
            settings.push(("save", String::new()));
        }
        let given = self
            .config
            .iter()
            .map(|(name, value)| (name.as_str(), value.clone()));
        let mut recipe = self.options.executor(&["redis-server", "valkey-server"]);
        for (name, value) in settings.into_iter().chain(given) {
            recipe = recipe.arg(format!("--{name}")).arg(value);
        }
        let password = self.setting("requirepass").map(str::to_owned);
        Ok(recipe
            .args(&self.options.args)
            .unprivileged(["redis", "valkey", "nobody"])
            .wait_for(self.options.answers("answered PING", move |mut connection| {
                authenticate(&mut connection, password.as_deref())?;
                ask(&mut connection, &["PING"]).map(|answer| answer == "+PONG")
            })))
    }

    fn handle(self, executor: Executor<Answers>) -> Result<Redis, Error> {
        let databases = self.setting("databases").and_then(|number| number.parse().ok());
        Ok(Redis {
            executor,
            password: self.setting("requirepass").map(str::to_owned),
            databases: databases.unwrap_or(DATABASES),
        })
    }
}

/// A running Redis.
///
/// [`database`](Redis::database) gives each test a database of its own. What all of them share is
/// what belongs to no database: its configuration, scripts, functions, `FLUSHALL`, and the channels
/// of `PUBLISH` and `SUBSCRIBE`.
///
/// ```no_run
/// # use mirakuru_fixtures as mirakuru;
/// use mirakuru::{Recipe, presets};
///
/// let redis = presets::redis().config("maxmemory", "16mb").start()?;
/// assert_eq!(redis.url(), format!("redis://127.0.0.1:{}/0", redis.port()));
/// # Ok::<(), mirakuru_core::Error>(())
/// ```
pub struct Redis {
    executor: Executor<Answers>,
    password: Option<String>,
    databases: u32,
}

handle!(Redis);

impl Redis {
    /// The URL of its first database: `redis://127.0.0.1:PORT/0`.
    #[must_use]
    pub fn url(&self) -> String {
        url(self.executor.addr(), self.password.as_deref(), 0)
    }

    /// The password, where `config("requirepass", ..)` has set one.
    #[must_use]
    pub fn password(&self) -> Option<&str> {
        self.password.as_deref()
    }

    /// Its Unix socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.executor.dir().join("socket")
    }

    /// A database for one test alone, empty: leased from those of this server, over all processes
    /// that share it, until it is dropped or its process ends.
    ///
    /// # Panics
    ///
    /// When all databases are leased, or the server does not answer: see
    /// [`try_database`](Redis::try_database).
    #[must_use]
    #[track_caller]
    pub fn database(&self) -> RedisDatabase {
        expect(self.try_database())
    }

    /// The same, for those who want the error.
    ///
    /// # Errors
    ///
    /// [`Error::System`] when all databases are leased, or the server does not answer.
    pub fn try_database(&self) -> Result<RedisDatabase, Error> {
        let attempt = "lease a database of Redis";
        // The first one is everybody's.
        let lease = Lease::take(
            &self.executor.dir().join("leases"),
            self.databases.saturating_sub(1),
        )
        .map_err(|source| failed(attempt, source))?;
        let lease = lease.ok_or_else(|| {
            let reason = format!(
                "all {} are leased: drop those that are not needed, or raise `config(\"databases\", ..)`",
                self.databases.saturating_sub(1)
            );
            Error::other(attempt, reason)
        })?;
        let database = RedisDatabase {
            addr: self.executor.addr(),
            password: self.password.clone(),
            number: lease.number() + 1,
            _lease: lease,
        };
        // Whoever had it before may have been killed.
        database.flush().map_err(|source| failed(attempt, source))?;
        Ok(database)
    }
}

/// One numbered database of a [`Redis`], leased for a test. Emptied when it is dropped, and before
/// it is leased again.
#[derive(Debug)]
pub struct RedisDatabase {
    addr: SocketAddr,
    password: Option<String>,
    number: u32,
    // The last field: given back when all is done.
    _lease: Lease,
}

impl RedisDatabase {
    /// Its URL: `redis://127.0.0.1:PORT/NUMBER`.
    #[must_use]
    pub fn url(&self) -> String {
        url(self.addr, self.password.as_deref(), self.number)
    }

    /// Its number, for `SELECT`.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    fn flush(&self) -> io::Result<()> {
        let mut connection = Connection::open(self.addr, ANSWER_WITHIN)?;
        authenticate(&mut connection, self.password.as_deref())?;
        ask(&mut connection, &["SELECT", &self.number.to_string()])?;
        ask(&mut connection, &["FLUSHDB"])?;
        Ok(())
    }
}

impl Drop for RedisDatabase {
    fn drop(&mut self) {
        // A server that is gone has nothing left; and the next one to lease it empties it as well.
        let _ = self.flush();
    }
}

fn url(addr: SocketAddr, password: Option<&str>, database: u32) -> String {
    match password {
        Some(password) => format!("redis://:{}@{addr}/{database}", super::percent_encoded(password)),
        None => format!("redis://{addr}/{database}"),
    }
}

fn authenticate(connection: &mut Connection, password: Option<&str>) -> io::Result<()> {
    if let Some(password) = password {
        ask(connection, &["AUTH", password])?;
    }
    Ok(())
}

/// Sends a command in Redis' own protocol, and takes the first line of the answer. One that begins
/// with `-` is an error.
fn ask(connection: &mut Connection, words: &[&str]) -> io::Result<String> {
    let mut request = format!("*{}\r\n", words.len());
    for word in words {
        request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
    }
    connection.send(request.as_bytes())?;
    let answer = connection.line()?;
    match answer.strip_prefix('-') {
        Some(error) => Err(io::Error::other(error.to_owned())),
        None => Ok(answer),
    }
}
