//! Ready-made servers. Each has a recipe, a handle that knows the server's addresses, and a way to
//! keep tests that share it apart.
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
//! | [`postgres()`] | [`Postgres`] | [`database()`](Postgres::database), with the SQL of [`load_sql`](PostgresRecipe::load_sql) |
//! | [`mariadb()`], [`mysql()`] | [`Mariadb`] | [`database()`](Mariadb::database), the same |
//! | [`redis()`] | [`Redis`] | [`database()`](Redis::database) |
//! | [`memcached()`] | [`Memcached`] | [`key_prefix()`](Memcached::key_prefix) |
//! | [`rabbitmq()`] | [`Rabbitmq`] | [`vhost()`](Rabbitmq::vhost) |
//! | [`nats()`] | [`Nats`] | [`account()`](Nats::account) |
//! | [`mosquitto()`] | [`Mosquitto`] | [`topic_prefix()`](Mosquitto::topic_prefix) |
//! | [`etcd()`] | [`Etcd`] | [`key_prefix()`](Etcd::key_prefix) |
//! | [`nginx(text)`](nginx()) | [`Nginx`] | nothing: tests only read |
//!
//! All presets have these properties:
//!
//! - The server is found on `PATH` and in the usual places of the distribution; if it is missing,
//!   the error names the package. It is an ordinary program of this machine: nothing is downloaded,
//!   and no container is involved. A version manager (asdf, mise) chooses by the directory of the
//!   tests.
//! - It listens on 127.0.0.1, on a free port unless `port(..)` sets one. Its data is in its private
//!   directory and is removed with it.
//! - It does not see the developer's settings: variables such as `PGHOST`, `MYSQL_HOST`,
//!   `ETCD_WAL_DIR`, `LANG` and `TZ` are removed. Tests can rely on UTC, UTF-8 and ISO dates.
//! - Settings that help only after a power failure are off, unless `durable(true)` asks for them.
//!   Committed data survives `kill` and `start`, as it does with the server's own defaults.
//! - It is ready when its own protocol answers, not when its port is open.
//! - If the tests run as root, the server runs as an unprivileged user; `file(..)` gives it keys
//!   and other files. (nginx runs as root in that case, so that it can read the files of the
//!   tests.) If root may not become another user, the server runs as root, except for PostgreSQL,
//!   which refuses to.
//! - The parts that tests lease are separate: a number is used again as late as possible. Clean-up
//!   takes at most a second. A part that could not be removed by then is reported, and stays until
//!   the server ends.
//! - The handle dereferences to its [`Executor`](mirakuru_core::Executor), which has the logs, the
//!   pid, and the methods.
//!
//! Several servers at once are a [`Cluster`](crate::Cluster):
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
//! There is no preset for a store that speaks S3, because Debian has no package of one (MinIO must
//! be downloaded). ZooKeeper has none either, because its Java takes a second to start.
//!
//! # One of your own
//!
//! Presets consist of public parts; [`Recipe`](crate::Recipe) shows how. The smallest is a function
//! that returns an [`ExecutorBuilder`](mirakuru_core::ExecutorBuilder):
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

/// The condition of a preset's server: its own process listens on the port, and answers in the
/// server's own protocol.
pub type Answers = And<Tcp, Check>;

/// Returns the value, for a test that wants no `Result`. Panics on an error.
#[track_caller]
fn expect<T>(result: Result<T, Error>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{error}"),
    }
}

/// Makes the error of an attempt.
fn failed(attempt: impl fmt::Display, source: io::Error) -> Error {
    Error::other(attempt.to_string(), source)
}

/// Encodes a text for a URL: everything except for letters, digits and `-._~` becomes `%XX`.
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
