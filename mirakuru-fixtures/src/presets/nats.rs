//! NATS, optionally with JetStream.

use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mirakuru_core::__private::Lease;
use mirakuru_core::{Check, Error, Executor, ExecutorBuilder, Probe, Signal};

use super::connection::{ANSWER_WITHIN, Connection, TIDY_WITHIN, tidied};
use super::external::External;
use super::prefix::prefix;
use super::server::{AsRoot, Options, Server, handle, new_password, options, write_secret};
use super::{Answers, expect, failed};
use crate::Recipe;
use crate::cluster::{ClusterRecipe, Node, cluster};
use crate::lease;

mod external;

pub(super) const SERVER: Server = Server {
    name: "NATS",
    programs: &["nats-server"],
    users: &["nats", "nobody"],
    as_root: AsRoot::With(&[]),
    needs: &[],
    external: Some(&external::PROTOCOL),
};

/// The user of the account that all tests share.
const EVERYBODY: &str = "everybody";

/// File in which `prepare` stores the password and the number of accounts for `handle`.
const CREDENTIALS: &str = "credentials";

/// A NATS server: see [`Nats`].
pub fn nats() -> NatsRecipe {
    NatsRecipe {
        options: Options::default(),
        jetstream: None,
        accounts: None,
        node: None,
    }
}

/// A recipe for a NATS server, created by [`nats()`].
#[derive(Clone, Debug)]
#[must_use = "a recipe does nothing until it is started"]
pub struct NatsRecipe {
    options: Options,
    jetstream: Option<bool>,
    accounts: Option<u32>,
    /// For a cluster: this server's node, and the route ports of all nodes.
    node: Option<(Node, Vec<u16>)>,
}

options!(NatsRecipe);

impl NatsRecipe {
    /// Enables JetStream in all accounts. The default is `false`, but `true` in a
    /// [cluster](NatsRecipe::cluster). Streams survive a restart.
    pub fn jetstream(mut self, jetstream: bool) -> Self {
        self.jetstream = Some(jetstream);
        self
    }

    /// Sets the number of accounts that tests can lease at a time. The default is twice the number
    /// of processors, and at least 16. With JetStream, each account adds about 2 ms to the start.
    pub fn accounts(mut self, accounts: u32) -> Self {
        self.accounts = Some(accounts);
        self
    }

    /// Sets a value of the configuration, in the syntax of its file. It overrides the preset's
    /// value: `config("max_payload", "8MB")`. The keys `accounts` and `authorization` are reserved
    /// for the preset.
    pub fn config(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.options.config.push((key.into(), value.into()));
        self
    }

    /// A cluster of `nodes` nodes. JetStream is on, unless
    /// [`jetstream(false)`](NatsRecipe::jetstream) turns it off. The cluster is ready when every
    /// node knows all nodes, JetStream answers on every node, and a stream can have a replica on
    /// each node. With more than five nodes, five replicas are enough. To find out, mirakuru
    /// creates and deletes a stream, which takes about half a second.
    ///
    /// All nodes have the same accounts and the same password. Their handles lease accounts from
    /// one list, so no two nodes lease the same [`account`](Nats::account) at a time. A restarted
    /// node is ready as soon as it answers.
    ///
    /// ```no_run
    /// # use mirakuru_fixtures as mirakuru;
    /// use mirakuru::{Recipe, presets};
    ///
    /// let mut nodes = presets::nats().cluster(3).start()?;
    /// let account = nodes[1].account();
    /// nodes[0].kill()?; // The two others go on.
    /// println!("{}", account.url());
    /// # Ok::<(), mirakuru_core::Error>(())
    /// ```
    pub fn cluster(
        mut self,
        nodes: usize,
    ) -> ClusterRecipe<NatsRecipe, impl Fn(&Node) -> NatsRecipe + Clone> {
        let jetstream = *self.jetstream.get_or_insert(true);
        let sentence = match jetstream {
            true => "knew all nodes, and JetStream answered",
            false => "knew all nodes",
        };
        let formed = Check::new(sentence, move |probe| knows_all(probe, nodes, jetstream));
        let placed = Check::new("JetStream placed a stream on all nodes", move |probe| {
            places_a_stream(probe, nodes)
        });
        self.options.is_member = true;
        let cluster = cluster(nodes, move |node| NatsRecipe {
            node: Some((
                node.clone(),
                node.nodes().map(|node| node.port_named("route")).collect(),
            )),
            ..self.clone()
        })
        .ready_when(formed);
        match jetstream && nodes > 1 {
            true => cluster.ready_when(placed),
            false => cluster,
        }
    }

    /// The first node of the cluster. Its directory holds the leases of all nodes.
    fn first(&self) -> Option<Node> {
        self.node.as_ref().and_then(|(node, _)| node.nodes().next())
    }

    fn has_jetstream(&self) -> bool {
        self.jetstream.unwrap_or_default()
    }

    fn text(&self) -> String {
        let mut text = format!("listen: \"127.0.0.1:{}\"\n", self.options.port());
        if self.has_jetstream() {
            text.push_str("jetstream: enabled\n");
        }
        if let Some(accounts) = self.accounts {
            // The configuration identifies a shared service, so it must contain the number of
            // accounts.
            text.push_str(&format!("# {accounts} accounts\n"));
        }
        text.push_str("include accounts.conf\n");
        if let Some((node, _)) = &self.node {
            // The configuration identifies a shared service, so it must contain the number of
            // nodes.
            text.push_str(&format!(
                "server_name: {} # of {}\n",
                node.name(),
                node.nodes().count()
            ));
            // A single node gets no `cluster` block, because its JetStream would then wait for a
            // route.
            if node.peers().next().is_some() {
                text.push_str("cluster {\n  name: mirakuru\n  listen: \"127.0.0.1:{port:route}\"\n");
                text.push_str("  include routes.conf\n}\n");
            }
        }
        for (key, value) in &self.options.config {
            text.push_str(&format!("{key}: {value}\n"));
        }
        text
    }

    /// The `accounts` block: the accounts that tests lease, and the shared account. All have the
    /// same random password.
    fn accounts_text(&self, accounts: u32, password: &str) -> String {
        let jetstream = if self.has_jetstream() {
            ", jetstream: enabled"
        } else {
            ""
        };
        let account = |user: &str| {
            format!("  {user} {{ users: [{{ user: {user}, password: \"{password}\" }}]{jetstream} }}\n")
        };
        let mut text = "accounts {\n".to_owned();
        for number in 0..accounts {
            text.push_str(&account(&user(number)));
        }
        text + &account(EVERYBODY) + "}\n"
    }
}

/// The routes to all nodes. If a node of another cluster reaches one of these ports, the password
/// keeps it out.
fn routes_text(ports: &[u16], password: &str) -> String {
    let mut text = format!("authorization {{ user: route, password: \"{password}\" }}\nroutes: [\n");
    for port in ports {
        text.push_str(&format!("  \"nats://route:{password}@127.0.0.1:{port}\"\n"));
    }
    text.push_str("]\n");
    text
}

fn user(number: u32) -> String {
    format!("test{number}")
}

// Keeps this type out of the list of implementors in compiler errors about `Recipe`.
#[diagnostic::do_not_recommend]
impl Recipe for NatsRecipe {
    type Readiness = Answers;
    type Handle = Nats;

    fn executor(&self) -> Result<ExecutorBuilder<Answers>, Error> {
        if let Some(external) = self.options.external(&SERVER)? {
            return external.executor(&self.options);
        }
        let mut args = vec!["--config", "{dir}/nats.conf"];
        if self.has_jetstream() {
            // The path is an argument, because special characters in the configuration file would
            // need escapes.
            args.extend(["--store_dir", "{dir}/jetstream"]);
        }
        Ok(self
            .options
            .recipe(&SERVER, &args)?
            .file("nats.conf", self.text())
            // SIGINT and SIGTERM both shut the server down cleanly, but after SIGTERM it exits with
            // status 1.
            .stop_signal(Signal::Int)
            .wait_for(self.options.answers_in(
                "answered PING",
                Box::new(|question| {
                    let (password, _) = credentials(question.dir)?;
                    log_in(&mut question.connect()?, EVERYBODY, &password).map(|_| true)
                }),
            )))
    }

    fn prepare(&self, executor: &mut Executor<Answers>) -> Result<(), Error> {
        if let Some(external) = self.options.external(&SERVER)? {
            if self.has_jetstream() {
                external::check_jetstream(&external).map_err(|source| external.failed(source))?;
            }
            return external.prepare();
        }
        let first = self.first();
        let (password, accounts) = match first.filter(|first| first.dir() != executor.dir()) {
            // The first node has already created the credentials.
            Some(first) => credentials(&first.dir()).map_err(no_password)?,
            None => (new_password()?, self.accounts.unwrap_or_else(default_accounts)),
        };
        let dir = executor.dir();
        let mut files = vec![
            ("accounts.conf", self.accounts_text(accounts, &password)),
            (CREDENTIALS, format!("{password} {accounts}")),
        ];
        if let Some((_, ports)) = &self.node {
            files.push(("routes.conf", routes_text(ports, &password)));
        }
        for (name, text) in files {
            write_secret(&dir, name, &text)?;
        }
        Ok(())
    }

    fn handle(self, executor: Executor<Answers>) -> Result<Nats, Error> {
        let external = self.options.external(&SERVER)?;
        let (password, accounts) = match &external {
            Some(external) => (external.password.clone().unwrap_or_default(), 0),
            None => credentials(&executor.dir()).map_err(no_password)?,
        };
        let first = self.first();
        Ok(Nats {
            leases: first
                .map_or_else(|| executor.dir(), |first| first.dir())
                .join("leases"),
            executor,
            external,
            password,
            accounts,
            jetstream: self.has_jetstream(),
        })
    }
}

fn default_accounts() -> u32 {
    let processors = std::thread::available_parallelism().map_or(1, |n| n.get());
    u32::try_from(2 * processors).unwrap_or(u32::MAX).max(16)
}

fn no_password(source: io::Error) -> Error {
    failed("read the password of NATS", source)
}

/// Whether a node has routes to all nodes, and its JetStream has a leader.
fn knows_all(probe: &Probe<'_>, nodes: usize, jetstream: bool) -> io::Result<bool> {
    // Without a leader, JetStream does not answer at all.
    const POLL: Duration = Duration::from_millis(20);
    let (mut connection, greeting) = enter(probe, POLL)?;
    // The greeting of a single node lists no addresses.
    if nodes > 1 && addresses(&greeting) < nodes {
        return Ok(false);
    }
    if !jetstream {
        return Ok(true);
    }
    connection.send(format!("SUB {INBOX} 1\r\n").as_bytes())?;
    Ok(!request(&mut connection, "INFO", "")?.contains("\"error\":"))
}

/// Creates a stream with a replica on each node, and deletes it again. JetStream refuses the stream
/// until its leader has received the statistics of all nodes.
fn places_a_stream(probe: &Probe<'_>, nodes: usize) -> io::Result<bool> {
    const NAME: &str = "mirakuru-placement";
    const MOST_REPLICAS: usize = 5;
    // JetStream answers once the stream has a leader, which takes up to a second.
    const ELECTION: Duration = Duration::from_secs(2);
    let (mut connection, greeting) = enter(probe, ELECTION)?;
    // The leader of JetStream places all streams, so a stream created through one node is enough.
    if !greeting.contains("\"server_name\":\"node-0\"") {
        return Ok(true);
    }
    connection.send(format!("SUB {INBOX} 1\r\n").as_bytes())?;
    let replicas = nodes.min(MOST_REPLICAS);
    let stream = format!("{{\"name\":\"{NAME}\",\"storage\":\"memory\",\"num_replicas\":{replicas}}}");
    // If an earlier check created this stream but missed the answer, creating it again succeeds.
    let created = request(&mut connection, &format!("STREAM.CREATE.{NAME}"), &stream)?;
    if !created.contains("\"config\":") {
        return Err(io::Error::other(created));
    }
    let deleted = request(&mut connection, &format!("STREAM.DELETE.{NAME}"), "")?;
    Ok(deleted.contains("\"success\":true"))
}

/// Logs in to the shared account of a node, and returns the connection and the greeting. The time
/// limit for each answer is the probe's remaining time, but not less than `at_least`.
fn enter(probe: &Probe<'_>, at_least: Duration) -> io::Result<(Connection, String)> {
    let port = probe.port().ok_or(io::ErrorKind::InvalidInput)?;
    let (password, _) = credentials(probe.dir())?;
    let mut connection = Connection::open(([127, 0, 0, 1], port).into(), at_least.max(probe.remaining()))?;
    let greeting = log_in(&mut connection, EVERYBODY, &password)?;
    Ok((connection, greeting))
}

/// Number of nodes in a greeting: `INFO {.., "connect_urls":["127.0.0.1:4222", ..]}`.
fn addresses(greeting: &str) -> usize {
    let list = greeting.split_once("\"connect_urls\":[").map(|(_, rest)| rest);
    let list = list.and_then(|rest| rest.split(']').next()).unwrap_or_default();
    list.split(',').filter(|address| !address.is_empty()).count()
}

fn credentials(dir: &Path) -> io::Result<(String, u32)> {
    let text = fs::read_to_string(dir.join(CREDENTIALS))?;
    let parts = text
        .split_once(' ')
        .and_then(|(password, accounts)| Some((password.to_owned(), accounts.parse().ok()?)));
    parts.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// A running NATS server.
///
/// [`account`](Nats::account) gives each test its own account. An account has its own subjects and,
/// with JetStream, its own streams, key-value buckets and consumers, which no other account can
/// reach. The accounts are in the configuration from the start, so a lease costs only a file lock
/// and, with JetStream, one request. Tests share the server's connections, memory and disk.
///
/// Each server has a new password, and every client must log in. The crate `async-nats` ignores the
/// user and the password of a URL: use
/// `ConnectOptions::with_user_and_password(account.user().into(), account.password().into())`. The
/// server refuses a client without a login, so no client ends up in the wrong account. The system
/// account, `$SYS`, has no user.
///
/// ```no_run
/// # use mirakuru_fixtures as mirakuru;
/// use mirakuru::{Recipe, presets};
///
/// let nats = presets::nats().jetstream(true).start()?;
/// let account = nats.account();
/// println!("{}", account.url()); // nats://test0:SECRET@127.0.0.1:41873
/// # Ok::<(), mirakuru_core::Error>(())
/// ```
pub struct Nats {
    executor: Executor<Answers>,
    external: Option<External>,
    password: String,
    accounts: u32,
    jetstream: bool,
    /// Directory with the leases.
    leases: PathBuf,
}

handle!(Nats, external);

impl Nats {
    /// The URL of the account that all tests share: `nats://everybody:SECRET@127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        match &self.external {
            Some(external) => external.shared_url(),
            None => url(self.executor.addr(), EVERYBODY, &self.password),
        }
    }

    /// The user of the shared account: `everybody`, or the user in `MIRAKURU_NATS_URL`.
    #[must_use]
    pub fn user(&self) -> &str {
        match &self.external {
            Some(external) => external.user.as_deref().unwrap_or_default(),
            None => EVERYBODY,
        }
    }

    /// The password, which is the same for all accounts.
    #[must_use]
    pub fn password(&self) -> &str {
        &self.password
    }

    /// Leases an empty account for one test. No other test gets the same account at the same time,
    /// in any process that shares the server. Dropping the value ends the lease, and so does the
    /// end of the process.
    ///
    /// # Panics
    ///
    /// Panics if all accounts are leased, or if the server does not answer: see
    /// [`try_account`](Nats::try_account).
    #[must_use]
    #[track_caller]
    pub fn account(&self) -> NatsAccount {
        expect(self.try_account())
    }

    /// Like [`account`](Nats::account), but returns an error instead of panicking.
    ///
    /// # Errors
    ///
    /// Returns [`Error::System`] if all accounts are leased, or if the server does not answer.
    /// Always returns this error for a server at `MIRAKURU_NATS_URL`.
    pub fn try_account(&self) -> Result<NatsAccount, Error> {
        lease::taken();
        let attempt = "lease an account of NATS";
        if let Some(external) = &self.external {
            let reason = format!(
                "mirakuru did not start {external}, whose configuration holds the accounts; give each test \
                    subjects of its own with `subject_prefix()`, or unset the variable"
            );
            return Err(Error::other(attempt, reason));
        }
        let lease = Lease::take(&self.leases, self.accounts).map_err(|source| failed(attempt, source))?;
        let lease = lease.ok_or_else(|| {
            let reason = format!(
                "all {} are leased: drop those that are not needed, or raise `accounts(..)`",
                self.accounts
            );
            Error::other(attempt, reason)
        })?;
        let account = NatsAccount {
            addr: self.executor.addr(),
            user: user(lease.number()),
            password: self.password.clone(),
            jetstream: self.jetstream,
            _lease: lease,
        };
        // If the previous holder of the lease was killed, its streams are still in the account.
        account
            .empty(ANSWER_WITHIN)
            .map_err(|source| failed(attempt, source))?;
        Ok(account)
    }
}

prefix!(
    Nats,
    "",
    '.',
    /// A prefix for the subjects of one test, such as `tk4x2m7qzja5w.`, in the account that all
    /// tests share. The prefix without its last dot can be the name of a stream or bucket.
    ///
    /// On a server at `MIRAKURU_NATS_URL`, streams and buckets whose names begin with the prefix
    /// are deleted when the run ends.
    subject_prefix,
    try_subject_prefix
);

/// An account of a [`Nats`], leased to one test. Its streams are deleted when the value is dropped,
/// and again before the next lease.
///
/// Drop the account's clients before this value. mirakuru cannot disconnect a client, and another
/// test may lease the same account later.
pub struct NatsAccount {
    addr: SocketAddr,
    user: String,
    password: String,
    jetstream: bool,
    // This field must stay last: fields are dropped in order, and the lease must be dropped after
    // the others.
    _lease: Lease,
}

impl fmt::Debug for NatsAccount {
    /// Shows the user, but not the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsAccount")
            .field("addr", &self.addr)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

impl NatsAccount {
    /// The URL: `nats://USER:SECRET@127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        url(self.addr, &self.user, &self.password)
    }

    /// The user of the account.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The password of the account.
    #[must_use]
    pub fn password(&self) -> &str {
        &self.password
    }

    /// Deletes all streams, and with them all data of the account. Buckets are streams as well, and
    /// each consumer belongs to a stream.
    fn empty(&self, within: Duration) -> io::Result<()> {
        if !self.jetstream {
            return Ok(());
        }
        let mut connection = Connection::open(self.addr, within)?;
        log_in(&mut connection, &self.user, &self.password)?;
        connection.send(format!("SUB {INBOX} 1\r\n").as_bytes())?;
        loop {
            let names = stream_names(&request(&mut connection, "STREAM.NAMES", "")?)?;
            if names.is_empty() {
                return Ok(());
            }
            for name in names {
                let answer = request(&mut connection, &format!("STREAM.DELETE.{name}"), "")?;
                if !answer.contains("\"success\":true") {
                    return Err(io::Error::other(format!("stream {name}: {answer}")));
                }
            }
        }
    }
}

impl Drop for NatsAccount {
    fn drop(&mut self) {
        // If this fails, the next holder of the lease empties the account.
        tidied(
            &format!("empty the account {} of NATS", self.user),
            self.empty(TIDY_WITHIN),
        );
    }
}

fn url(addr: SocketAddr, user: &str, password: &str) -> String {
    format!("nats://{user}:{password}@{addr}")
}

/// The subject for answers to requests. Only one test at a time uses a leased account, so the
/// subject need not be unique.
const INBOX: &str = "_INBOX.mirakuru";

/// Reads the server's greeting, logs in, and returns the greeting.
fn log_in(connection: &mut Connection, user: &str, password: &str) -> io::Result<String> {
    let greeting = connection.line()?;
    if !greeting.starts_with("INFO ") {
        return Err(io::Error::other(format!("it does not speak NATS: {greeting}")));
    }
    let hello = format!(
        "CONNECT \
            {{\"verbose\":false,\"pedantic\":false,\"user\":\"{user}\",\"pass\":\"{password}\"}}\r\nPING\r\n"
    );
    connection.send(hello.as_bytes())?;
    until(connection, "PONG").map(|_| greeting)
}

/// Returns the next line that begins with `word`. Skips other lines, such as `PING`, which a
/// short-lived client may ignore.
fn until(connection: &mut Connection, word: &str) -> io::Result<String> {
    loop {
        let line = connection.line()?;
        if let Some(error) = line.strip_prefix("-ERR ") {
            return Err(io::Error::other(error.to_owned()));
        }
        if line.split(' ').next() == Some(word) {
            return Ok(line);
        }
    }
}

/// Sends a request to JetStream, and returns the JSON answer. Most requests have an empty body.
fn request(connection: &mut Connection, subject: &str, body: &str) -> io::Result<String> {
    let length = body.len();
    connection.send(format!("PUB $JS.API.{subject} {INBOX} {length}\r\n{body}\r\n").as_bytes())?;
    // The format is `MSG <subject> <subscription> <bytes>`.
    let head = until(connection, "MSG")?;
    let length = head.rsplit(' ').next().and_then(|length| length.parse().ok());
    let length: usize = length.ok_or(io::ErrorKind::InvalidData)?;
    let mut text = vec![0; length + "\r\n".len()];
    connection.0.read_exact(&mut text)?;
    text.truncate(length);
    String::from_utf8(text).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// The stream names in an answer such as `{"type":"..","streams":["A","B"]}`. If there are no
/// streams, the answer has `"streams":null`.
fn stream_names(answer: &str) -> io::Result<Vec<String>> {
    let unclear = || io::Error::other(format!("the stream names in its answer cannot be read: {answer}"));
    let (_, list) = answer.split_once("\"streams\":").ok_or_else(unclear)?;
    if list.starts_with("null") {
        return Ok(Vec::new());
    }
    let mut rest = list.strip_prefix('[').ok_or_else(unclear)?.chars();
    let mut names = Vec::new();
    loop {
        match rest.next() {
            Some(']') => return Ok(names),
            Some(',') => {}
            Some('"') => names.push(json_string(&mut rest).ok_or_else(unclear)?),
            _ => return Err(unclear()),
        }
    }
}

/// Decodes a JSON string whose opening quote has already been read.
fn json_string(rest: &mut std::str::Chars<'_>) -> Option<String> {
    let mut text = String::new();
    loop {
        match rest.next()? {
            '"' => return Some(text),
            '\\' => match rest.next()? {
                // Go encodes `&` and `<` as `\u` escapes.
                'u' => {
                    let mut code = 0;
                    for _ in 0..4 {
                        code = code * 16 + rest.next()?.to_digit(16)?;
                    }
                    text.push(char::from_u32(code)?);
                }
                plain @ ('"' | '\\' | '/') => text.push(plain),
                _ => return None,
            },
            plain => text.push(plain),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_in_a_greeting_are_counted() {
        assert_eq!(addresses("INFO {\"port\":1}"), 0);
        assert_eq!(addresses("INFO {\"connect_urls\":[],\"a\":[1,2]}"), 0);
        assert_eq!(
            addresses("INFO {\"connect_urls\":[\"h:1\",\"h:2\"],\"a\":[1,2]}"),
            2
        );
    }

    #[test]
    fn names_of_streams_are_read() {
        let names = |list: &str| stream_names(&format!("{{\"total\":2,\"streams\":{list}}}"));
        assert_eq!(names("[\"A\",\"B-2\"]").unwrap(), ["A", "B-2"]);
        assert_eq!(names(r#"["a\u0026b","\"x\\"]"#).unwrap(), ["a&b", "\"x\\"]);
        assert_eq!(names("[\"é\"]").unwrap(), ["é"]);
        assert!(names("[]").unwrap().is_empty());
        assert!(names("null").unwrap().is_empty());
        for bad in ["[\"A\"", "[A]", "{}", "[\"\\", "[\"\\u12"] {
            assert!(names(bad).is_err(), "{bad}");
        }
        let error = stream_names("{\"error\":{\"code\":503}}").unwrap_err();
        assert!(error.to_string().contains("503"), "{error}");
    }
}
