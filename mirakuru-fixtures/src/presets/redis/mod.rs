//! Redis, and Valkey, which looks the same to clients.

use std::io::{self, Read};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use mirakuru_core::__private::{Lease, literal};
use mirakuru_core::{Error, Executor, ExecutorBuilder};

use super::connection::{ANSWER_WITHIN, Connection, TIDY_WITHIN, tidied};
use super::external::External;
use super::server::{AsRoot, Options, Server, handle, options, write_secret};
use super::{Answers, expect, failed};
use crate::Recipe;
use crate::cluster::{ClusterRecipe, Node, cluster};
use crate::lease;

mod cluster;
mod external;

use self::cluster::Place;

pub(super) const SERVER: Server = Server {
    name: "Redis",
    programs: &["redis-server", "valkey-server"],
    users: &["redis", "valkey", "nobody"],
    as_root: AsRoot::With(&[]),
    needs: &[],
    external: Some(&external::PROTOCOL),
};

/// The number of databases, unless `config("databases", ..)` sets another one. An empty database
/// costs the server a few hundred bytes.
const DATABASES: u32 = 1024;

/// A Redis server, or a Valkey server if Redis is not installed: see [`Redis`].
pub fn redis() -> RedisRecipe {
    RedisRecipe {
        options: Options::default(),
        place: None,
        master: None,
    }
}

/// A recipe for a Redis server, created by [`redis()`].
#[derive(Clone, Debug)]
#[must_use = "a recipe does nothing until it is started"]
pub struct RedisRecipe {
    options: Options,
    /// The node's place in a cluster.
    place: Option<Place>,
    /// The port of the master, for a replica.
    master: Option<u16>,
}

options!(RedisRecipe, durable);

impl RedisRecipe {
    /// Sets a configuration directive, overriding the preset's value: `config("maxmemory",
    /// "16mb")`.
    ///
    /// The value has the syntax of `redis.conf`. It may have several arguments, as in
    /// `config("save", "900 1")`, and quotes keep an argument with spaces together. Placeholders
    /// are replaced, except in the secrets `requirepass`, `masterauth` and `user`. The values of
    /// `requirepass` and `masterauth` need no quotes.
    ///
    /// With `config("cluster-enabled", "yes")`, the cluster bus listens on a free port. This needs
    /// Redis 7 or later.
    pub fn config(mut self, directive: impl Into<String>, value: impl Into<String>) -> Self {
        self.options.config.push((directive.into(), value.into()));
        self
    }

    /// A master with `replicas` replicas. The first node is the master. The cluster is ready when
    /// each replica has the master's data and follows the master.
    ///
    /// ```no_run
    /// # use mirakuru_fixtures as mirakuru;
    /// use mirakuru::{Recipe, presets};
    ///
    /// let nodes = presets::redis().replicas(1).start()?;
    /// let (master, replica) = (&nodes[0], &nodes[1]);
    /// println!("write to {}, read from {}", master.url(), replica.url());
    /// # Ok::<(), mirakuru_core::Error>(())
    /// ```
    pub fn replicas(
        self,
        replicas: usize,
    ) -> ClusterRecipe<RedisRecipe, impl Fn(&Node) -> RedisRecipe + Clone> {
        // By default, the master waits five seconds for further replicas before it sends its data.
        let node = self.member().config("repl-diskless-sync-delay", "0");
        cluster(1 + replicas, move |place| {
            let Some(master) = place.nodes().next().filter(|_| place.index() > 0) else {
                return node.clone();
            };
            RedisRecipe {
                master: Some(master.port()),
                ..node.clone().authenticated()
            }
        })
    }

    /// A Redis cluster of `masters` masters, which needs Redis 7 or later. The cluster is ready
    /// when every node reports `cluster_state:ok`, sees all 16384 slots served, and knows all
    /// nodes.
    ///
    /// A node considers another node dead after two seconds without an answer.
    /// `config("cluster-node-timeout", ..)` sets this time in milliseconds. A restarted node
    /// becomes ready two seconds later, and only if the other masters are running.
    ///
    /// ```no_run
    /// # use mirakuru_fixtures as mirakuru;
    /// use mirakuru::{Recipe, presets};
    ///
    /// let nodes = presets::redis().cluster(3).start()?;
    /// let urls: Vec<String> = nodes.iter().map(|node| node.url()).collect();
    /// println!("a client that knows clusters takes {urls:?}");
    /// # Ok::<(), mirakuru_core::Error>(())
    /// ```
    ///
    /// # Panics
    ///
    /// Panics if the system has no free port.
    pub fn cluster(
        self,
        masters: usize,
    ) -> ClusterRecipe<RedisRecipe, impl Fn(&Node) -> RedisRecipe + Clone> {
        self.cluster_with_replicas(masters, 0)
    }

    /// Like [`cluster`](RedisRecipe::cluster), with `replicas` replicas of each master. The masters
    /// are the first nodes. After them come the first replicas of all masters, in the order of the
    /// masters, then the second replicas, and so on. To be ready, the cluster also needs each
    /// replica to have its master's data.
    ///
    /// A replica takes over from a dead master after `cluster-node-timeout`.
    ///
    /// ```no_run
    /// # use mirakuru_fixtures as mirakuru;
    /// use mirakuru::{Recipe, presets};
    ///
    /// let mut nodes = presets::redis().cluster_with_replicas(3, 1).start()?;
    /// nodes[0].kill()?; // nodes[3] takes over from it.
    /// # Ok::<(), mirakuru_core::Error>(())
    /// ```
    ///
    /// # Panics
    ///
    /// Panics if the system has no free port.
    pub fn cluster_with_replicas(
        self,
        masters: usize,
        replicas: usize,
    ) -> ClusterRecipe<RedisRecipe, impl Fn(&Node) -> RedisRecipe + Clone> {
        let nodes = masters * (1 + replicas);
        let steps = cluster::ready(masters, nodes, self.options.setting("requirepass"));
        let mut recipe = self.member().authenticated().config("cluster-enabled", "yes");
        recipe.options.set_first(&[
            ("cluster-node-timeout", "2000"),
            ("repl-diskless-sync-delay", "0"),
        ]);
        let mut cluster = cluster(nodes, move |node| RedisRecipe {
            place: Some(Place::new(node, masters)),
            ..recipe.clone()
        });
        for step in steps {
            cluster = cluster.ready_when(step);
        }
        cluster
    }

    fn member(mut self) -> RedisRecipe {
        self.options.is_member = true;
        self
    }

    /// Makes a replica log in to its master with the password that clients use.
    fn authenticated(self) -> RedisRecipe {
        match self.options.setting("requirepass").map(str::to_owned) {
            Some(password) => self.config("masterauth", password),
            None => self,
        }
    }

    fn is_cluster(&self) -> bool {
        self.options
            .setting("cluster-enabled")
            .is_some_and(|value| value.eq_ignore_ascii_case("yes"))
    }

    fn configuration(&self) -> String {
        let (port, databases) = (self.options.port(), DATABASES.to_string());
        let mut settings = vec![
            ("port", &*port),
            ("bind", "127.0.0.1"),
            ("unixsocketperm", "700"),
            // Redis checks for SIGTERM on a timer. With this setting, it exits within 2 ms instead
            // of 100 ms.
            ("hz", "500"),
        ];
        if self.is_cluster() {
            // By default, the bus uses the port plus 10000, which may be taken or too large.
            settings.push(("cluster-port", "{port:bus}"));
        } else {
            settings.push(("databases", &databases));
        }
        settings.push(match self.options.durable {
            true => ("appendonly", "yes"),
            false => ("save", ""),
        });
        let mut text = String::new();
        for (name, value) in self.options.settings(settings) {
            text.push_str(&line(name, value));
        }
        if let Some(master) = self.master {
            // mirakuru finds the master's port in this line, and therefore stops the replica before
            // the master.
            text.push_str(&format!("# follows 127.0.0.1:{master}\n"));
        }
        if let Some(place) = &self.place {
            // The configuration identifies a shared service, so it must contain the number of
            // masters.
            text.push_str(&format!("# {} masters\n", place.masters));
        }
        text
    }
}

/// Formats a line of `redis.conf`.
fn line(directive: &str, value: &str) -> String {
    let value = match directive.to_ascii_lowercase().as_str() {
        _ if value.is_empty() => "\"\"".to_owned(),
        "requirepass" | "masterauth" => {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"");
            format!("\"{}\"", literal(value).to_string_lossy())
        }
        "user" => literal(value).to_string_lossy().into_owned(),
        _ => value.to_owned(),
    };
    format!("{directive} {value}\n")
}

// Keeps this type out of the list of implementors in compiler errors about `Recipe`.
#[diagnostic::do_not_recommend]
impl Recipe for RedisRecipe {
    type Readiness = Answers;
    type Handle = Redis;

    fn executor(&self) -> Result<ExecutorBuilder<Answers>, Error> {
        if let Some(external) = self.options.external(&SERVER)? {
            return external.executor(&self.options);
        }
        let mut args = vec!["{dir}/redis.conf"];
        // The paths are arguments, because special characters in the configuration file would need
        // escapes.
        for (option, path) in [("--dir", "{dir}"), ("--unixsocket", "{dir}/socket")] {
            if self.options.setting(&option[2..]).is_none() {
                args.push(option);
                args.push(path);
            }
        }
        let password = self.options.setting("requirepass").map(str::to_owned);
        let follows = self.options.setting("replicaof").is_some();
        let (is_member, master) = (self.place.is_some(), self.master);
        let sentence = match is_member {
            true => "reported `cluster_state:ok`",
            false => "answered PING",
        };
        Ok(self
            .options
            .recipe(&SERVER, &args)?
            .file("redis.conf", self.configuration())
            .wait_for(self.options.answers(sentence, move |mut connection| {
                authenticate(&mut connection, None, password.as_deref())?;
                if is_member {
                    return cluster::is_up(&mut connection);
                }
                if follows || master.is_some() {
                    let state = bulk(&mut connection, &["INFO", "replication"])?;
                    if let Some(master) = master.filter(|_| state.contains("role:master")) {
                        // A replica that cannot reach its master retries only after a second. So
                        // tell it the master's address only once the master accepts connections.
                        TcpStream::connect(("127.0.0.1", master))?;
                        ask(&mut connection, &["REPLICAOF", "127.0.0.1", &master.to_string()])?;
                        return Ok(false);
                    }
                    return Ok(state.contains("master_link_status:up"));
                }
                match ask(&mut connection, &["PING"]) {
                    Ok(answer) => Ok(answer == "+PONG"),
                    // `config("user", "default off")` disables the default user, so `NOAUTH` counts
                    // as an answer too.
                    Err(e) if e.to_string().starts_with("NOAUTH") => Ok(true),
                    Err(e) => Err(e),
                }
            })))
    }

    fn prepare(&self, executor: &mut Executor<Answers>) -> Result<(), Error> {
        if let Some(external) = self.options.external(&SERVER)? {
            return external.prepare();
        }
        match &self.place {
            Some(place) => write_secret(&executor.dir(), "nodes.conf", &place.nodes_conf()),
            None => Ok(()),
        }
    }

    fn handle(self, executor: Executor<Answers>) -> Result<Redis, Error> {
        let databases = self.options.setting("databases");
        let external = self.options.external(&SERVER)?;
        let password = match &external {
            Some(external) => external.password.clone(),
            None => self.options.setting("requirepass").map(str::to_owned),
        };
        Ok(Redis {
            executor,
            password,
            databases: match self.is_cluster() {
                true => 1,
                false => databases
                    .and_then(|number| number.trim().parse().ok())
                    .unwrap_or(DATABASES),
            },
            external,
        })
    }
}

/// A running Redis server.
///
/// [`database`](Redis::database) gives each test its own database. Tests share everything else: the
/// configuration, scripts, functions, and the channels of `PUBLISH` and `SUBSCRIBE`. `FLUSHALL`
/// empties the databases of all tests.
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
    external: Option<External>,
}

handle!(Redis, external);

impl Redis {
    /// The URL of the database that all tests share: `redis://127.0.0.1:PORT/0`.
    #[must_use]
    pub fn url(&self) -> String {
        let external = self.external.as_ref();
        let number = external.map_or(0, external::own_number);
        self.access().url(number)
    }

    fn access(&self) -> Access {
        Access {
            addr: self.executor.addr(),
            password: self.password.clone(),
            external: self.external.clone(),
        }
    }

    /// The password, if `config("requirepass", ..)` or `MIRAKURU_REDIS_URL` sets one.
    #[must_use]
    pub fn password(&self) -> Option<&str> {
        self.password.as_deref()
    }

    /// Path of the Unix socket.
    ///
    /// # Panics
    ///
    /// Panics if the server is at `MIRAKURU_REDIS_URL`.
    #[must_use]
    #[track_caller]
    pub fn socket(&self) -> PathBuf {
        if let Some(external) = &self.external {
            external.has_no("socket");
        }
        self.executor.dir().join("socket")
    }

    /// Leases an empty database for one test. No other test gets the same database at the same
    /// time, in any process that shares the server. Dropping the value ends the lease, and so does
    /// the end of the process.
    ///
    /// # Panics
    ///
    /// Panics if all databases are leased, or if the server does not answer: see
    /// [`try_database`](Redis::try_database).
    #[must_use]
    #[track_caller]
    pub fn database(&self) -> RedisDatabase {
        expect(self.try_database())
    }

    /// Like [`database`](Redis::database), but returns an error instead of panicking.
    ///
    /// # Errors
    ///
    /// Returns [`Error::System`] if all databases are leased, if the server does not answer, or if
    /// it belongs to a cluster, which has one database.
    pub fn try_database(&self) -> Result<RedisDatabase, Error> {
        lease::taken();
        let attempt = "lease a database of Redis";
        if let Some(external) = &self.external {
            let owner = external.owner(&self.executor.dir())?;
            let (number, token) =
                external::lease(external, &owner).map_err(|source| failed(attempt, source))?;
            return Ok(RedisDatabase {
                access: self.access(),
                number,
                lease: Leased::OnServer(token),
            });
        }
        // Database 0 is not leased, because all tests share it.
        let limit = self.databases.saturating_sub(1);
        if limit == 0 {
            let reason = "it has only database 0, because it belongs to a cluster or the recipe sets \
                `config(\"databases\", \"1\")`; give each test keys with a prefix of its own";
            return Err(Error::other(attempt, reason));
        }
        let lease = Lease::take(&self.executor.dir().join("leases"), limit)
            .map_err(|source| failed(attempt, source))?;
        let lease = lease.ok_or_else(|| {
            let reason = format!(
                "all {limit} are leased: drop those that are not needed, or raise `config(\"databases\", ..)`"
            );
            Error::other(attempt, reason)
        })?;
        let database = RedisDatabase {
            access: self.access(),
            number: lease.number() + 1,
            lease: Leased::Here(lease),
        };
        // If the previous holder of the lease was killed, its keys are still in the database.
        database
            .empty(ANSWER_WITHIN)
            .map_err(|source| failed(attempt, source))?;
        Ok(database)
    }
}

/// A database of a [`Redis`], leased to one test. Its clients are disconnected and its keys deleted
/// when the value is dropped, and again before the next lease.
///
/// A database is leased again only after all other databases have been leased. Until then, a client
/// that reconnects after its test, such as a pool in a `static`, disturbs no other test.
#[derive(Debug)]
pub struct RedisDatabase {
    access: Access,
    number: u32,
    // This field must stay last: fields are dropped in order, and the lease must be dropped after
    // the others.
    lease: Leased,
}

#[derive(Debug)]
enum Leased {
    /// A lease on a server that mirakuru started: a lock on a file.
    Here(#[allow(dead_code, reason = "dropping the lease ends it")] Lease),
    /// A lease on an external server, with its token.
    OnServer(String),
}

/// A server's address, and the login for it.
#[derive(Debug)]
struct Access {
    addr: SocketAddr,
    password: Option<String>,
    external: Option<External>,
}

impl Access {
    fn connect(&self, within: Duration) -> io::Result<Connection> {
        if let Some(external) = &self.external {
            return external::connect(external, within);
        }
        let mut connection = Connection::open(self.addr, within)?;
        authenticate(&mut connection, None, self.password.as_deref())?;
        Ok(connection)
    }

    fn url(&self, database: u32) -> String {
        match (&self.external, &self.password) {
            (Some(external), _) => external.url(&database.to_string()),
            (None, Some(password)) => {
                format!(
                    "redis://:{}@{}/{database}",
                    super::percent_encoded(password),
                    self.addr
                )
            }
            (None, None) => format!("redis://{}/{database}", self.addr),
        }
    }
}

impl RedisDatabase {
    /// The URL: `redis://127.0.0.1:PORT/NUMBER`.
    #[must_use]
    pub fn url(&self) -> String {
        self.access.url(self.number)
    }

    /// The database's number, for `SELECT`.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Disconnects the database's clients, then removes its keys.
    fn empty(&self, within: Duration) -> io::Result<()> {
        let mut connection = self.access.connect(within)?;
        disconnect_clients(&mut connection, self.number)?;
        match &self.lease {
            Leased::Here(_) => {
                ask(&mut connection, &["SELECT", &self.number.to_string()])?;
                ask(&mut connection, &["FLUSHDB"]).map(drop)
            }
            Leased::OnServer(token) => external::give_back(&mut connection, token),
        }
    }
}

fn disconnect_clients(connection: &mut Connection, number: u32) -> io::Result<()> {
    for id in clients(connection, number)? {
        // `CLIENT KILL` fails if the client has disconnected by itself.
        let _ = ask(connection, &["CLIENT", "KILL", "ID", &id]);
    }
    Ok(())
}

/// Ids of the clients that use a database. `CLIENT LIST` returns lines like `id=7
/// addr=127.0.0.1:40000 .. db=3`.
fn clients(connection: &mut Connection, number: u32) -> io::Result<Vec<String>> {
    let text = match bulk(connection, &["CLIENT", "LIST"]) {
        Ok(text) => text,
        // A `rename-command` setting may have removed the command.
        Err(e) if e.kind() == io::ErrorKind::Other => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let db = format!("db={number}");
    let mut ids = Vec::new();
    for line in text.lines() {
        let id = line.split(' ').next().and_then(|first| first.strip_prefix("id="));
        if let Some(id) = id.filter(|_| line.split(' ').any(|word| word == db)) {
            ids.push(id.to_owned());
        }
    }
    Ok(ids)
}

impl Drop for RedisDatabase {
    fn drop(&mut self) {
        // If this fails, the next holder of the lease empties the database.
        tidied(
            &format!("empty the database {} of Redis", self.number),
            self.empty(TIDY_WITHIN),
        );
    }
}

fn authenticate(connection: &mut Connection, user: Option<&str>, password: Option<&str>) -> io::Result<()> {
    match (user, password) {
        (_, None) => Ok(()),
        (None, Some(password)) => ask(connection, &["AUTH", password]).map(drop),
        (Some(user), Some(password)) => ask(connection, &["AUTH", user, password]).map(drop),
    }
}

/// Sends a command in Redis's protocol (RESP), and returns the first line of the reply. A line that
/// begins with `-` is an error.
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

/// Sends a command whose reply is a bulk string.
fn bulk(connection: &mut Connection, words: &[&str]) -> io::Result<String> {
    let answer = ask(connection, words)?;
    text(connection, &answer)
}

/// Sends a command whose reply is an array of bulk strings.
fn texts(connection: &mut Connection, words: &[&str]) -> io::Result<Vec<String>> {
    let answer = ask(connection, words)?;
    let count = answer
        .strip_prefix('*')
        .and_then(|count| count.parse::<usize>().ok());
    let mut texts = Vec::new();
    for _ in 0..count.ok_or(io::ErrorKind::InvalidData)? {
        let length = connection.line()?;
        texts.push(text(connection, &length)?.trim_end().to_owned());
    }
    Ok(texts)
}

/// Reads the bulk string that follows its length line, such as `$5`.
fn text(connection: &mut Connection, length: &str) -> io::Result<String> {
    let length = length
        .strip_prefix('$')
        .and_then(|length| length.parse::<usize>().ok());
    let mut text = vec![0; length.ok_or(io::ErrorKind::InvalidData)? + "\r\n".len()];
    connection.0.read_exact(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_are_lines_and_passwords_are_one_argument() {
        assert_eq!(line("save", ""), "save \"\"\n");
        assert_eq!(line("save", "900 1"), "save 900 1\n");
        assert_eq!(
            line("rename-command", "CONFIG \"\""),
            "rename-command CONFIG \"\"\n"
        );
        assert_eq!(
            line("requirepass", "a \"{port}"),
            "requirepass \"a \\\"{{port}}\"\n"
        );
        assert_eq!(line("user", "u on >{dir} ~*"), "user u on >{{dir}} ~*\n");
    }
}
