//! etcd, a key-value store.

use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use mirakuru_core::{Check, Error, Executor, ExecutorBuilder, Signal};

use super::Answers;
use super::connection::Connection;
use super::external::External;
use super::prefix::prefix;
use super::server::{AsRoot, Options, Server, flags, handle, of_executor, options};
use crate::Recipe;
use crate::cluster::{ClusterRecipe, Node, cluster};

mod external;

pub(super) const SERVER: Server = Server {
    name: "etcd",
    programs: &["etcd"],
    users: &["etcd", "nobody"],
    as_root: AsRoot::With(&[]),
    needs: &[
        ("Max open files", 151, "-n"),
        ("Max file size", 64 << 20, "-f"),
        // etcd maps 10 GiB of address space for its database.
        ("Max address space", 11 << 30, "-v"),
    ],
    external: Some(&external::PROTOCOL),
};

/// An etcd server with one member: see [`Etcd`].
pub fn etcd() -> EtcdRecipe {
    EtcdRecipe {
        options: Options::default(),
        member: None,
        peers: Vec::new(),
    }
}

/// A recipe for an etcd server, created by [`etcd()`].
#[derive(Clone, Debug)]
#[must_use = "a recipe does nothing until it is started"]
pub struct EtcdRecipe {
    options: Options,
    /// This member's name, and the names and peer URLs of all members.
    member: Option<(String, String)>,
    /// The peer ports of all members.
    peers: Vec<u16>,
}

options!(EtcdRecipe, durable);

impl EtcdRecipe {
    /// Sets a flag, overriding the preset's value: `config("quota-backend-bytes", "16777216")`.
    pub fn config(mut self, flag: impl Into<String>, value: impl Into<String>) -> Self {
        self.options.config.push((flag.into(), value.into()));
        self
    }

    /// A cluster of `members` members, each with its own ports. It is ready when it has a leader.
    ///
    /// mirakuru stops members with SIGKILL, because after SIGTERM the last members often take more
    /// than five seconds to exit. A killed member keeps every write that it has acknowledged.
    ///
    /// ```no_run
    /// # use mirakuru_fixtures as mirakuru;
    /// use mirakuru::{Recipe, presets};
    ///
    /// let mut members = presets::etcd().cluster(3).start()?;
    /// members[0].kill()?; // The two others go on.
    /// println!("{}", members[1].url());
    /// # Ok::<(), mirakuru_core::Error>(())
    /// ```
    pub fn cluster(self, members: usize) -> ClusterRecipe<EtcdRecipe, impl Fn(&Node) -> EtcdRecipe + Clone> {
        cluster(members, move |node| {
            let url = |node: &Node| format!("{}=http://127.0.0.1:{}", node.name(), node.port_named("peer"));
            let all: Vec<String> = node.nodes().map(|node| url(&node)).collect();
            let mut recipe = self.clone();
            recipe.options.is_member = true;
            recipe.member = Some((node.name().to_owned(), all.join(",")));
            recipe.peers = node.peers().map(|peer| peer.port_named("peer")).collect();
            recipe
        })
        // Launches a member only once the previous member listens. A member that cannot reach any
        // other member would retry only after a second.
        .launched_in_turn(Check::new("its peers could reach it", |member| {
            let port = member.port_named("peer").unwrap_or_default();
            let mut connection =
                Connection::open((Ipv4Addr::LOCALHOST, port).into(), Duration::from_secs(1))?;
            connection.send(b"GET /version HTTP/1.0\r\n\r\n")?;
            Ok(connection.line()?.contains(" 200 "))
        }))
    }
}

// Keeps this type out of the list of implementors in compiler errors about `Recipe`.
#[diagnostic::do_not_recommend]
impl Recipe for EtcdRecipe {
    of_executor!(Etcd);

    fn executor(&self) -> Result<ExecutorBuilder<Answers>, Error> {
        if let Some(external) = self.options.external(&SERVER)? {
            return external.executor(&self.options);
        }
        let client = format!("http://127.0.0.1:{}", self.options.port());
        let peer = "http://127.0.0.1:{port:peer}";
        let own = format!("mirakuru={peer}");
        let (name, members, election) = match &self.member {
            Some((name, members)) => (&**name, &**members, "100"),
            None => ("mirakuru", &*own, "50"),
        };
        let settings = vec![
            ("name", name),
            ("data-dir", "{dir}/data"),
            ("listen-client-urls", &client),
            ("advertise-client-urls", &client),
            ("listen-peer-urls", peer),
            ("initial-advertise-peer-urls", peer),
            ("initial-cluster", members),
            // In milliseconds. A member serves clients only after a leader has been elected, so an
            // election must be quick.
            ("heartbeat-interval", "10"),
            ("election-timeout", election),
        ];
        let args = flags(&self.options.settings(settings));
        let mut recipe = self.options.recipe(&SERVER, &args)?;
        if !self.options.durable && self.options.setting("unsafe-no-fsync").is_none() {
            // Older versions of etcd refuse an unknown flag, so set the variable, which they
            // ignore.
            recipe = recipe.env("ETCD_UNSAFE_NO_FSYNC", "true");
        }
        if self.member.is_some() {
            // After SIGTERM, a leader hands over to another member. If that member has just exited,
            // the leader often waits for more than five seconds.
            recipe = recipe.stop_signal(Signal::Kill);
        }
        let peers = self.peers.clone();
        Ok(recipe.wait_for(
            self.options
                .answers("reported that it is healthy", move |mut connection| {
                    // Without a majority of its members, etcd does not answer `/health`. So first
                    // count the members that accept connections.
                    let is_there = |port: &&u16| TcpStream::connect((Ipv4Addr::LOCALHOST, **port)).is_ok();
                    if peers.iter().filter(is_there).count() < peers.len().div_ceil(2) {
                        return Ok(false);
                    }
                    connection.send(b"GET /health HTTP/1.0\r\n\r\n")?;
                    loop {
                        let line = connection.line()?;
                        if line.contains("\"health\"") {
                            return Ok(line.contains("\"health\":\"true\""));
                        }
                    }
                }),
        ))
    }
}

/// A running etcd server. It serves gRPC and, below `/v3/`, JSON on the same port.
///
/// [`key_prefix`](Etcd::key_prefix) gives each test its own keys. Tests share everything else:
/// revisions, compaction, leases, alarms, the quota, users and roles. If one test enables
/// authentication, it is enabled for all tests.
///
/// A new etcd has no users, and every user of this machine can connect. Data survives a restart.
/// The log reserves 64 MB of disk space from the start, and etcd does not start without it.
///
/// For a faster start, the election timeout of a single member is 50 ms instead of 1 s. This also
/// shortens the minimum lease from 2 s to 1 s. `config("heartbeat-interval", "100")` and
/// `config("election-timeout", "1000")` restore etcd's own defaults.
///
/// ```no_run
/// # use mirakuru_fixtures as mirakuru;
/// use mirakuru::{Recipe, presets};
///
/// let etcd = presets::etcd().config("auto-compaction-retention", "1").start()?;
/// assert_eq!(etcd.url(), format!("http://127.0.0.1:{}", etcd.port()));
/// let prefix = etcd.key_prefix();
/// println!("put {prefix}visits");             // tk4x2m7qzja5w/visits
/// # Ok::<(), mirakuru_core::Error>(())
/// ```
pub struct Etcd {
    executor: Executor<Answers>,
    external: Option<External>,
}

handle!(Etcd, external);

impl Etcd {
    /// The URL for clients: `http://127.0.0.1:PORT`, or the URL in `MIRAKURU_ETCD_URL`.
    #[must_use]
    pub fn url(&self) -> String {
        match &self.external {
            Some(external) => external.shared_url(),
            None => format!("http://{}", self.executor.addr()),
        }
    }
}

prefix!(
    Etcd,
    "",
    '/',
    /// A prefix for the keys of one test: `tk4x2m7qzja5w/`.
    key_prefix,
    try_key_prefix
);
