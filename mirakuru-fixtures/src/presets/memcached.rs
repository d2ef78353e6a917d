//! memcached, an in-memory cache.

use mirakuru_core::{Error, Executor, ExecutorBuilder, Signal};

use super::Answers;
use super::external::External;
use super::prefix::prefix;
use super::server::{AsRoot, Options, Server, handle, of_executor, options};
use crate::Recipe;
use crate::cache::limit;

mod external;

pub(super) const SERVER: Server = Server {
    name: "memcached",
    programs: &["memcached"],
    users: &["memcache", "memcached", "nobody"],
    as_root: AsRoot::With(&["-u", "root"]),
    needs: &[],
    external: Some(&external::PROTOCOL),
};

/// memcached's default limit on connections.
const CONNECTIONS: u64 = 1024;

/// A memcached server: see [`Memcached`].
pub fn memcached() -> MemcachedRecipe {
    MemcachedRecipe {
        options: Options::default(),
    }
}

/// A recipe for a memcached server, created by [`memcached()`].
///
/// memcached has no configuration file. All settings are arguments: `arg("--memory-limit=16")` sets
/// the cache size to 16 MB instead of 64 MB.
#[derive(Clone, Debug)]
#[must_use = "a recipe does nothing until it is started"]
pub struct MemcachedRecipe {
    options: Options,
}

options!(MemcachedRecipe);

// Keeps this type out of the list of implementors in compiler errors about `Recipe`.
#[diagnostic::do_not_recommend]
impl Recipe for MemcachedRecipe {
    of_executor!(Memcached);

    fn executor(&self) -> Result<ExecutorBuilder<Answers>, Error> {
        if let Some(external) = self.options.external(&SERVER)? {
            return external.executor(&self.options);
        }
        let port = self.options.port();
        let mut args = vec!["-l", "127.0.0.1", "-U", "0", "-p", &port];
        // memcached does not start if its limit of open files is below its limit on connections.
        let few = limit("Max open files").filter(|files| *files < CONNECTIONS);
        let few = few.map(|files| files.to_string());
        if let Some(files) = &few {
            args.extend(["-c", files]);
        }
        Ok(self
            .options
            .recipe(&SERVER, &args)?
            // After SIGTERM, memcached waits a second for its threads. SIGKILL loses nothing,
            // because all data is in memory.
            .stop_signal(Signal::Kill)
            .wait_for(self.options.answers("answered `version`", |mut connection| {
                connection.send(b"version\r\n")?;
                // A memcached that requires a password answers `CLIENT_ERROR`. It counts as ready
                // too.
                connection.line().map(|answer| !answer.is_empty())
            })))
    }
}

/// A running memcached server.
///
/// [`key_prefix`](Memcached::key_prefix) gives each test its own keys. Tests share everything else:
/// `flush_all` empties the cache for all tests, and `stats` counts all tests together. If one test
/// fills the memory, other tests lose keys. A test that flushes or fills the cache needs its own
/// server, which starts in about ten milliseconds.
///
/// All data is in memory, so a restart empties the cache. memcached has no user and no password,
/// and every user of this machine can connect.
///
/// ```no_run
/// # use mirakuru_fixtures as mirakuru;
/// use mirakuru::{Recipe, presets};
///
/// let memcached = presets::memcached().arg("--memory-limit=16").start()?;
/// assert_eq!(memcached.url(), format!("memcache://127.0.0.1:{}", memcached.port()));
/// let prefix = memcached.key_prefix();
/// println!("set {prefix}visits");             // tk4x2m7qzja5w:visits
/// # Ok::<(), mirakuru_core::Error>(())
/// ```
pub struct Memcached {
    executor: Executor<Answers>,
    external: Option<External>,
}

handle!(Memcached, external);

impl Memcached {
    /// The URL: `memcache://127.0.0.1:PORT`, or the URL in `MIRAKURU_MEMCACHED_URL`.
    #[must_use]
    pub fn url(&self) -> String {
        match &self.external {
            Some(external) => external.shared_url(),
            None => format!("memcache://{}", self.executor.addr()),
        }
    }
}

prefix!(
    Memcached,
    "",
    ':',
    /// A prefix for the keys of one test: `tk4x2m7qzja5w:`. memcached allows keys of up to 250
    /// bytes.
    key_prefix,
    try_key_prefix
);
