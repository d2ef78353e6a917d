//! Ready-made servers. Each has a recipe and a handle with the server's addresses. Tests that share
//! a server each get their own database, keys or topics.
//!
//! ```no_run
//! # use mirakuru_fixtures as mirakuru;
//! use mirakuru::{Recipe, presets};
//!
//! // With the attribute it is `#[mirakuru::fixture(presets::redis())]`.
//! let redis = presets::redis().start()?;
//! // Leased to one test, and emptied when it is dropped.
//! let database = redis.database();
//! println!("{}", database.url()); // redis://127.0.0.1:41873/1
//! # Ok::<(), mirakuru_core::Error>(())
//! ```
//!
//! | recipe | handle | for one test |
//! | --- | --- | --- |
//! | [`postgres()`] | [`Postgres`] | [`database()`](Postgres::database), with the SQL of [`load_sql`](PostgresRecipe::load_sql) |
//! | [`mariadb()`], [`mysql()`] | [`Mariadb`] | [`database()`](Mariadb::database), with the SQL of [`load_sql`](MariadbRecipe::load_sql) |
//! | [`redis()`] | [`Redis`] | [`database()`](Redis::database) |
//! | [`memcached()`] | [`Memcached`] | [`key_prefix()`](Memcached::key_prefix) |
//! | [`rabbitmq()`] | [`Rabbitmq`] | [`vhost()`](Rabbitmq::vhost) |
//! | [`nats()`] | [`Nats`] | [`account()`](Nats::account) |
//! | [`mosquitto()`] | [`Mosquitto`] | [`topic_prefix()`](Mosquitto::topic_prefix) |
//! | [`etcd()`] | [`Etcd`] | [`key_prefix()`](Etcd::key_prefix) |
//! | [`nginx(text)`](nginx()) | [`Nginx`] | nothing: tests only read |
//!
//! The servers of all presets have these properties:
//!
//! - The program is found on `PATH` or in the usual directories of the distribution. If it is
//!   missing, the error names the package to install. mirakuru downloads nothing and uses no
//!   containers. A version manager (asdf, mise) chooses the version as it does for the tests.
//! - The server listens on 127.0.0.1, on a free port unless `port(..)` sets one. Its data is in its
//!   private directory, and is removed with that directory.
//! - The server ignores the developer's settings: variables such as `PGHOST`, `MYSQL_HOST`,
//!   `ETCD_WAL_DIR`, `LANG` and `TZ` are removed. Tests can rely on UTC, UTF-8 and ISO dates.
//! - Protection against power failures is off, unless `durable(true)` turns it on. Committed data
//!   survives `kill` and `start`, as it does with the server's own defaults.
//! - The server counts as ready when it answers in its own protocol. An open port is not enough.
//! - If the tests run as root, the server runs as an unprivileged user, and `file(..)` gives it
//!   keys and other files. nginx stays root, so that it can read the tests' files. If root may not
//!   become another user, servers run as root, except for PostgreSQL, which refuses to.
//! - Two tests never lease the same database or account at the same time, and each is reused as
//!   late as possible. Clean-up takes at most a second. If mirakuru cannot remove something in that
//!   time, it says so, and the remains are removed with the server.
//! - The handle dereferences to its [`Executor`](mirakuru_core::Executor), which has the logs, the
//!   pid, and methods such as `stop`.
//!
//! These recipes start several servers as a [`Cluster`](crate::Cluster):
//!
//! | recipe | ready when |
//! | --- | --- |
//! | [`etcd().cluster(3)`](EtcdRecipe::cluster) | there is a leader |
//! | [`nats().cluster(3)`](NatsRecipe::cluster) | all know each other, and JetStream has a leader |
//! | [`redis().cluster(3)`](RedisRecipe::cluster) | all say `cluster_state:ok`, with all slots and nodes |
//! | [`redis().cluster_with_replicas(3, 1)`](RedisRecipe::cluster_with_replicas) | the same, and the replicas have the data |
//! | [`redis().replicas(1)`](RedisRecipe::replicas) | the replica follows the master |
//! | [`postgres().replicas(1)`](PostgresRecipe::replicas) | the replica streams from the primary |
//!
//! There is no preset for an S3 store, because Debian packages none. There is none for ZooKeeper,
//! because Java takes a second to start.
//!
//! # Your own preset
//!
//! You can write a preset with the public API: [`Recipe`](crate::Recipe) shows how. The smallest
//! preset is a function that returns an [`ExecutorBuilder`](mirakuru_core::ExecutorBuilder):
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
use std::io;

use mirakuru_core::{And, Check, Error, Tcp};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

mod connection;
mod digest;
mod etcd;
mod external;
mod http;
mod kinds;
mod mariadb;
mod memcached;
mod mosquitto;
mod nats;
mod nginx;
mod postgres;
mod prefix;
mod rabbitmq;
mod redis;
mod seed;
mod server;
mod sql;

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
pub use seed::hash_of_dir;

/// The readiness condition of a preset: the server's process listens on the port, and answers in
/// the server's protocol.
pub type Answers = And<Tcp, Check>;

/// Returns the value, or panics with the error's message.
#[track_caller]
fn expect<T>(result: Result<T, Error>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{error}"),
    }
}

/// Creates the error for an `attempt` that failed because of `source`.
fn failed(attempt: impl fmt::Display, source: io::Error) -> Error {
    Error::other(attempt.to_string(), source)
}

/// Inserts a string into a sorted list.
fn insert(list: &mut Vec<String>, text: String) {
    let at = list.partition_point(|known| *known < text);
    list.insert(at, text);
}

/// Percent-encodes a string for a URL: everything except letters, digits and `-._~`.
fn percent_encoded(text: &str) -> String {
    const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
        .remove(b'-')
        .remove(b'.')
        .remove(b'_')
        .remove(b'~');
    utf8_percent_encode(text, RESERVED).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_mean_something_in_a_url_are_encoded() {
        assert_eq!(percent_encoded("aZ9-._~"), "aZ9-._~");
        assert_eq!(percent_encoded("p@ss/w:rd é"), "p%40ss%2Fw%3Ard%20%C3%A9");
    }
}
