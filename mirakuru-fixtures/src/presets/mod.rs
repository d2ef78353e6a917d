//! Ready-made servers: a recipe for each, a handle that speaks the server's language, and a way for
//! tests that share one to keep out of each other's way.
//!
//! ```no_run
//! # use mirakuru_fixtures as mirakuru;
//! use mirakuru::{Recipe, presets};
//!
//! // With the attribute it is `#[mirakuru::fixture(presets::redis())]`.
//! let redis = presets::redis().start()?;
//! // For one test alone; emptied and given back when it is dropped.
//! let database = redis.database();
//! println!("{}", database.url()); // redis://127.0.0.1:41873/1
//! # Ok::<(), mirakuru_core::Error>(())
//! ```
//!
//! | recipe | handle | for one test alone |
//! | --- | --- | --- |
//! | [`postgres()`] | [`Postgres`] | [`database()`](Postgres::database), with what [`load_sql`](PostgresRecipe::load_sql) has loaded |
//! | [`mariadb()`], [`mysql()`] | [`Mariadb`] | [`database()`](Mariadb::database), the same |
//! | [`redis()`] | [`Redis`] | [`database()`](Redis::database) |
//! | [`memcached()`] | [`Memcached`] | [`key_prefix()`](Memcached::key_prefix) |
//! | [`rabbitmq()`] | [`Rabbitmq`] | [`vhost()`](Rabbitmq::vhost) |
//! | [`nats()`] | [`Nats`] | [`account()`](Nats::account) |
//! | [`mosquitto()`] | [`Mosquitto`] | [`topic_prefix()`](Mosquitto::topic_prefix) |
//! | [`etcd()`] | [`Etcd`] | [`key_prefix()`](Etcd::key_prefix) |
//! | [`nginx(text)`](nginx()) | [`Nginx`] | nothing: tests only read |
//!
//! What all of them have in common:
//!
//! - The server is found on `PATH` and in the usual places of the distribution; a missing one is an
//!   error that names the package. It is a plain program of this machine: nothing is downloaded,
//!   and no container is involved.
//! - It listens on 127.0.0.1, on a free port unless `port(..)` says otherwise, and its data is in a
//!   private directory that goes with it.
//! - What makes a server slow in order to survive a power failure is turned off, unless
//!   `durable(true)` asks for it.
//! - It is ready when its own protocol answers, not when its port is open.
//! - Where the tests run as root, the server runs as an unprivileged user. (nginx excepted: it is
//!   to read what the tests have written.)
//! - The handle dereferences to its [`Executor`], which has the logs, the pid, and the verbs.
//!
//! There is none for a store that speaks S3, because Debian has no package of one (MinIO is
//! downloaded), and none for ZooKeeper, whose Java takes a second to start.
//!
//! # One of your own
//!
//! A preset is made of public parts; [`Recipe`](crate::Recipe) shows how. The smallest is a
//! function that returns an [`ExecutorBuilder`]:
//!
//! ```
//! # use mirakuru_core as mirakuru;
//! use mirakuru::{Executor, ExecutorBuilder, Tcp};
//!
//! fn beanstalkd() -> ExecutorBuilder<Tcp> {
//!     Executor::builder("beanstalkd -l 127.0.0.1 -p {port}")
//!         .unprivileged(["beanstalkd", "nobody"])
//!         .wait_for(Tcp::addr("127.0.0.1:{port}"))
//! }
//! ```

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mirakuru_core::__private::{find_program, random_id};
use mirakuru_core::{And, Check, Error, Executor, ExecutorBuilder, NoWait, Probe, Readiness, Tcp};

mod cache;
mod etcd;
mod mariadb;
mod memcached;
mod mosquitto;
mod nats;
mod nginx;
mod postgres;
mod prefix;
mod rabbitmq;
mod redis;

pub use etcd::{Etcd, EtcdRecipe, etcd};
pub use mariadb::{Mariadb, MariadbDatabase, MariadbRecipe, mariadb, mysql};
pub use memcached::{Memcached, MemcachedRecipe, memcached};
pub use mosquitto::{Mosquitto, MosquittoRecipe, mosquitto};
pub use nats::{Nats, NatsAccount, NatsRecipe, nats};
pub use nginx::{Nginx, NginxRecipe, nginx};
pub use postgres::{Postgres, PostgresDatabase, PostgresRecipe, postgres};
pub use prefix::Prefix;
pub use rabbitmq::{Rabbitmq, RabbitmqRecipe, RabbitmqVhost, rabbitmq};
pub use redis::{Redis, RedisDatabase, RedisRecipe, redis};

/// When a preset's server is ready: its port is open, by its own process, and it answers in its own
/// protocol.
pub type Answers = And<Tcp, Check>;

/// What every preset can be told.
#[derive(Clone, Debug, Default)]
struct Options {
    program: Option<PathBuf>,
    port: Option<u16>,
    args: Vec<String>,
    timeout: Option<Duration>,
    durable: bool,
}

impl Options {
    /// The beginning of a recipe: the program at the path that was given, or the first of these
    /// that is found. If none is, the first one's start fails, with an error that names the
    /// package.
    fn executor(&self, programs: &[&str]) -> ExecutorBuilder<NoWait> {
        let found = self
            .program
            .clone()
            .or_else(|| programs.iter().find_map(|program| find_program(program)));
        let program = found.unwrap_or_else(|| programs.first().copied().unwrap_or_default().into());
        let recipe = Executor::builder([program.as_os_str()]);
        match self.timeout {
            Some(timeout) => recipe.timeout(timeout),
            None => recipe,
        }
    }

    /// The port as it stands in commands and files.
    fn port(&self) -> String {
        self.port
            .map_or_else(|| "{port}".to_owned(), |port| port.to_string())
    }

    /// Ready when the port is open and `ask` gets the right answer there.
    fn answers(
        &self,
        sentence: &str,
        ask: impl Fn(Connection) -> io::Result<bool> + Send + Sync + 'static,
    ) -> Answers {
        self.answers_in(sentence, move |connection, _| ask(connection))
    }

    /// The same, where the question needs something of the private directory: a password that
    /// `prepare` has made up.
    fn answers_in(
        &self,
        sentence: &str,
        ask: impl Fn(Connection, &Path) -> io::Result<bool> + Send + Sync + 'static,
    ) -> Answers {
        let fixed = self.port;
        let check = Check::new(sentence, move |cx: &Probe<'_>| {
            let port = fixed.or_else(|| cx.port()).ok_or(io::ErrorKind::InvalidInput)?;
            ask(Connection::open(loopback(port), cx.remaining())?, cx.dir())
        });
        Tcp::addr(format!("127.0.0.1:{}", self.port())).and(check)
    }
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// How long a server may take to answer one question.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// A connection to a server that is asked something. No question waits for ever.
struct Connection(BufReader<TcpStream>);

impl Connection {
    fn open(addr: SocketAddr, within: Duration) -> io::Result<Connection> {
        let within = within.clamp(Duration::from_millis(10), ANSWER_WITHIN);
        let stream = TcpStream::connect_timeout(&addr, within)?;
        stream.set_read_timeout(Some(within))?;
        stream.set_write_timeout(Some(within))?;
        stream.set_nodelay(true)?;
        Ok(Connection(BufReader::new(stream)))
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.get_mut().write_all(bytes)
    }

    /// The next line, without its end.
    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.0.read_line(&mut line)? == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the server closed the connection without an answer",
            ));
        }
        line.truncate(line.trim_end_matches(['\r', '\n']).len());
        Ok(line)
    }
}

/// The setters that all presets share. (Without `durable`, for servers that keep nothing on a
/// disk.)
macro_rules! options {
    ($recipe:ident) => {
        impl $recipe {
            /// Uses the program at this path, instead of the one that is found.
            pub fn program(mut self, path: impl Into<::std::path::PathBuf>) -> Self {
                self.options.program = Some(path.into());
                self
            }

            /// Listens on this port, instead of a free one. Fixtures that want the same port take
            /// turns.
            pub fn port(mut self, port: u16) -> Self {
                self.options.port = Some(port);
                self
            }

            /// Adds an argument to the server's command, after those that the preset gives it.
            pub fn arg(mut self, arg: impl Into<String>) -> Self {
                self.options.args.push(arg.into());
                self
            }

            /// Sets how long the start may take until the server answers. The default is 60 s.
            pub fn timeout(mut self, timeout: ::std::time::Duration) -> Self {
                self.options.timeout = Some(timeout);
                self
            }
        }
    };
    ($recipe:ident, durable) => {
        options!($recipe);

        impl $recipe {
            /// Keeps what makes data survive a power failure, and a start, a write or a stop
            /// slower. The default is `false`: what a test writes need not outlive it.
            pub fn durable(mut self, durable: bool) -> Self {
                self.options.durable = durable;
                self
            }
        }
    };
}
use options;

/// What all handles have: the executor behind them, a host, and a `Debug` without secrets.
macro_rules! handle {
    ($handle:ident) => {
        impl $handle {
            /// The host at which the server is reached: `127.0.0.1`.
            #[must_use]
            pub fn host(&self) -> &'static str {
                "127.0.0.1"
            }
        }

        impl ::std::ops::Deref for $handle {
            type Target = ::mirakuru_core::Executor<$crate::presets::Answers>;
            fn deref(&self) -> &Self::Target {
                &self.executor
            }
        }

        impl ::std::ops::DerefMut for $handle {
            fn deref_mut(&mut self) -> &mut Self::Target {
                &mut self.executor
            }
        }

        impl ::std::fmt::Debug for $handle {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.debug_tuple(stringify!($handle))
                    .field(&self.executor)
                    .finish()
            }
        }
    };
}
use handle;

/// What could not be done, of something that is given to a test without a `Result`.
#[track_caller]
fn expect<T>(result: Result<T, Error>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{error}"),
    }
}

/// The end of what a program has printed that failed: the reason, as a rule.
fn last_lines<R>(executor: &Executor<R>) -> String
where
    R: Readiness,
{
    const TAIL: usize = 20;
    let logs = executor.logs();
    // What went wrong is there, and on the other one what else could be said.
    let text = match logs.stderr().trim() {
        "" => logs.to_string(),
        text => text.to_owned(),
    };
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(TAIL)..].join("\n")
}

/// An error of a server that was asked for something.
fn failed(attempt: impl fmt::Display, source: io::Error) -> Error {
    Error::other(attempt.to_string(), source)
}

/// A name that nobody else has, of 13 lower-case letters and digits, the first of them a letter.
fn unique_name() -> Result<String, Error> {
    let id = random_id().map_err(|source| failed("make a unique name", source))?;
    Ok(format!("t{id}"))
}

/// Writes a file that nobody but its owner can read into the private directory, for `prepare`: with
/// a secret, which has no place in the recipe.
fn write_secret(dir: &Path, name: &str, text: &str) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(dir.join(name))?;
    file.write_all(text.as_bytes())
}

/// A text as a part of a URL: all but letters, digits and `-._~` as `%XX`.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_something_in_a_url_is_encoded() {
        assert_eq!(percent_encoded("aZ9-._~"), "aZ9-._~");
        assert_eq!(percent_encoded("p@ss/w:rd é"), "p%40ss%2Fw%3Ard%20%C3%A9");
    }
}
