//! External servers, which mirakuru did not start. Variables such as `MIRAKURU_REDIS_URL` name
//! them.
//!
//! The handle has the same type as for a server that mirakuru starts. Its executor runs a
//! *stand-in* instead of a server: a second process of the test binary. In that process, this
//! module takes over before `main`.
//!
//! | step | effect |
//! | --- | --- |
//! | [`External::prepare`] | connects, checks version and rights, removes the leftovers of runs that have ended |
//! | the stand-in | is the [owner](Owner) of everything that the tests make on the server, and lives as long as a started server would |
//! | the clean-up command | runs the test binary again to remove everything that the owner made; the supervisor starts it after any end of the stand-in |
//!
//! To add external servers to a preset:
//!
//! 1. Write its [`Protocol`], name it in its `Server`, and add the `Server` to [`SERVERS`].
//! 2. Begin `executor`, `prepare`, `set_up` and `handle` with `self.options.external(&SERVER)?`.
//! 3. Begin the name of each object on the server with [`External::owner`] or
//!    [`External::unique_name`].
//! 4. Set [`Options::is_member`] in the recipes of a cluster, so that they ignore the variable.

use std::env;
use std::fmt;
use std::fs;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use mirakuru_core::__private::{Owner, before_main, literal, spawn};
use mirakuru_core::{Check, Error, Executor, ExecutorBuilder, Readiness, Tcp};
use percent_encoding::percent_decode_str;

use super::connection::{ANSWER_WITHIN, Connection, Stream};
use super::kinds;
use super::server::{Options, Server, unique_name};
use super::{Answers, Prefix, etcd, failed, mariadb, memcached, mosquitto, nats};
use super::{percent_encoded, postgres, rabbitmq, redis};

/// The presets that can use an external server.
const SERVERS: [&Server; 8] = [
    &postgres::SERVER,
    &mariadb::SERVER,
    &redis::SERVER,
    &rabbitmq::SERVER,
    &nats::SERVER,
    &etcd::SERVER,
    &memcached::SERVER,
    &mosquitto::SERVER,
];

/// How long a server may refuse connections while it starts.
const STARTS_WITHIN: Duration = Duration::from_secs(5);
/// If the check takes longer, mirakuru tests whether the server is of another kind.
const USUALLY_ANSWERS_WITHIN: Duration = Duration::from_secs(2);
/// Interval at which the stand-in renews its registration with the server.
const RENEWED_EVERY: Duration = Duration::from_secs(60);
/// If an owner is on another machine, its objects count as left behind at this age.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// The URL parameter for the port of RabbitMQ's management plugin. It is left out of the URLs for
/// clients.
pub(super) const MANAGEMENT_PORT: &str = "management_port";

/// The variable that marks a process of the test binary as a stand-in.
const STAND_IN: &str = "MIRAKURU_STAND_IN";
const CLEAN_UP: &str = "clean up";
/// Files in the private directory: the owner, and a mark that the stand-in is registered.
const OWNER: &str = "owner";
const READY: &str = "ready";

/// The operations of a preset on an external server.
pub(super) struct Protocol {
    /// URL schemes of the server, such as `redis`.
    pub(crate) schemes: &'static [&'static str],
    /// The default port.
    pub(crate) port: u16,
    /// Checks the server. Fails if it is too old, or denies rights that the preset needs.
    pub(crate) check: fn(&External) -> io::Result<()>,
    /// Lists the owners that the names of objects on the server contain. The list may include
    /// strings from names that mirakuru did not create.
    pub(crate) owners: fn(&External) -> io::Result<Vec<String>>,
    /// Registers the owner again. Only servers whose objects cannot carry the owner's name need
    /// this.
    pub(crate) renew: fn(&External, &str) -> io::Result<()>,
    /// Removes all objects of the owner. May be called again when no object is left.
    pub(crate) remove: fn(&External, &str) -> io::Result<()>,
}

impl Protocol {
    /// The [`Protocol::renew`] of servers that need no registration.
    pub(crate) const NO_RENEWAL: fn(&External, &str) -> io::Result<()> = |_, _| Ok(());
}

/// The parts of an external server's URL.
#[derive(Clone)]
pub(super) struct External {
    /// Name of the preset's variable, such as `MIRAKURU_REDIS_URL`.
    variable: String,
    /// Name of the server, such as `Redis`.
    name: &'static str,
    protocol: &'static Protocol,
    /// The whole URL.
    given: String,
    scheme: String,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<String>,
    /// Name or address of the host, without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// The path without its first `/`. `None` if it is empty.
    pub(crate) path: Option<String>,
    /// The query and the fragment of the URL, with the `?` or `#`.
    query: String,
}

impl fmt::Debug for External {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("External").field(&self.to_string()).finish()
    }
}

/// Names the server in messages, without the user and the password.
impl fmt::Display for External {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the {} at {} ({}:{})",
            self.name, self.variable, self.host, self.port
        )
    }
}

impl Options {
    /// The external server at the URL in the preset's variable. `None` if the variable is not set.
    ///
    /// # Errors
    ///
    /// Fails if the URL does not fit the preset, or if the recipe has a setting that cannot apply
    /// to an external server.
    pub(crate) fn external(&self, server: &Server) -> Result<Option<External>, Error> {
        let variable = server.variable("URL");
        let (Some(url), Some(protocol)) = (env::var_os(&variable), server.external) else {
            return Ok(None);
        };
        if url.is_empty() || self.is_member {
            return Ok(None);
        }
        let attempt = format!("use the {} at {variable}", server.name);
        let url = url.into_string();
        let url = url.map_err(|_| Error::other(&attempt, "the URL is not UTF-8"))?;
        let external = External::parse(&url, variable, server.name, protocol);
        let external = external.map_err(|reason| Error::other(&attempt, reason))?;
        let setters = [
            ("program", self.program.is_some()),
            ("port", self.port.is_some()),
            ("arg", !self.args.is_empty()),
            ("file", !self.files.is_empty()),
            ("config", !self.config.is_empty()),
        ];
        for (name, is_used) in setters {
            external.refuse(name, is_used)?;
        }
        Ok(Some(external))
    }
}

impl External {
    fn parse(
        url: &str,
        variable: String,
        name: &'static str,
        protocol: &'static Protocol,
    ) -> Result<External, String> {
        let wanted = || {
            format!(
                "the URL must begin with `{}://`",
                protocol.schemes.join("://` or `")
            )
        };
        let (scheme, rest) = url.split_once("://").ok_or_else(wanted)?;
        if !protocol.schemes.contains(&scheme) {
            return Err(wanted());
        }
        let (rest, query) = rest.split_at(rest.find(['?', '#']).unwrap_or(rest.len()));
        let (authority, path) = match rest.split_once('/') {
            Some((authority, path)) => (authority, Some(path)),
            None => (rest, None),
        };
        let (login, address) = match authority.rsplit_once('@') {
            Some((login, address)) => (login, address),
            None => ("", authority),
        };
        let (user, password) = match login.split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (login, None),
        };
        let (host, port) = match address.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, port)) => (host, port.strip_prefix(':')),
            None => match address.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (address, None),
            },
        };
        let port = match port {
            None => protocol.port,
            Some(port) => port
                .parse()
                .map_err(|_| "the URL's port must be a number up to 65535".to_owned())?,
        };
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let some = |text: &str| (!text.is_empty()).then(|| decoded(text));
        Ok(External {
            variable,
            name,
            protocol,
            given: url.to_owned(),
            scheme: scheme.to_owned(),
            user: some(user),
            password: password.and_then(some),
            host: some(host).ok_or("the URL has no host")?,
            port,
            path: path.and_then(some),
            query: query.to_owned(),
        })
    }

    /// Builds a URL with the given path, and with the parameters of the user's URL.
    pub(crate) fn url(&self, path: &str) -> String {
        let user = self.user.as_deref().map_or_else(String::new, percent_encoded);
        let password = self.password.as_ref();
        let password = password.map_or_else(String::new, |word| format!(":{}", percent_encoded(word)));
        let at = if user.len() + password.len() > 0 { "@" } else { "" };
        let mut query = String::new();
        for parameter in self.query.trim_start_matches('?').split('&') {
            if !parameter.is_empty() && !parameter.starts_with(MANAGEMENT_PORT) {
                query.push(if query.is_empty() { '?' } else { '&' });
                query.push_str(parameter);
            }
        }
        let scheme = &self.scheme;
        format!(
            "{scheme}://{user}{password}{at}{}/{path}{query}",
            self.authority()
        )
    }

    /// The user's URL without a final `/`, because tests append paths to it.
    pub(crate) fn shared_url(&self) -> String {
        let url = self.url(self.path.as_deref().unwrap_or_default());
        url.strip_suffix('/').map(str::to_owned).unwrap_or(url)
    }

    /// `HOST:PORT`, with brackets around an IPv6 address.
    fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    /// The value of this parameter in the URL's query.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        let query = self.query.trim_start_matches('?');
        let mut parameters = query.split('&').filter_map(|parameter| parameter.split_once('='));
        parameters
            .find(|(known, _)| *known == name)
            .map(|(_, value)| value)
    }

    pub(crate) fn failed(&self, source: io::Error) -> Error {
        // When a read times out, the system's own error is "resource temporarily unavailable".
        let source = match source.kind() {
            io::ErrorKind::WouldBlock => {
                io::Error::other(format!("it gave no answer within {} s", ANSWER_WITHIN.as_secs()))
            }
            _ => source,
        };
        failed(format!("use {self}"), source)
    }

    /// Fails if the recipe has used a setter that has no effect on an external server.
    pub(crate) fn refuse(&self, setter: &str, is_used: bool) -> Result<(), Error> {
        let variable = &self.variable;
        let reason = format!(
            "the recipe says `{setter}(..)`, and the server is the external one at {variable}; unset the \
                variable to give the test a server of its own"
        );
        match is_used {
            true => Err(Error::other(format!("use {self}"), reason)),
            false => Ok(()),
        }
    }

    /// Panics, because mirakuru knows `thing` only for servers that it started itself.
    #[track_caller]
    pub(crate) fn has_no(&self, thing: &str) -> ! {
        panic!("{self} was not started by mirakuru, so its {thing} is not known")
    }

    fn addrs(&self, port: u16) -> io::Result<impl Iterator<Item = SocketAddr>> {
        (&*self.host, port).to_socket_addrs()
    }

    /// Connects to the first of the host's addresses that accepts a connection.
    pub(crate) fn connect(&self, within: Duration) -> io::Result<Connection> {
        self.connect_to(self.port, within)
    }

    /// Connects to the given port of the host.
    pub(crate) fn connect_to(&self, port: u16, within: Duration) -> io::Result<Connection> {
        let mut result = Err(io::ErrorKind::NotFound.into());
        for addr in self.addrs(port)? {
            result = Connection::open(addr, within);
            if result.is_ok() {
                break;
            }
        }
        result
    }

    /// Connects, and returns the stream without a read buffer.
    pub(crate) fn stream(&self, within: Duration) -> io::Result<Stream> {
        Ok(Stream::Tcp(self.connect(within)?.0.into_inner()))
    }

    /// The recipe of the stand-in.
    ///
    /// # Errors
    ///
    /// Fails if the host's name cannot be resolved.
    pub(crate) fn executor(&self, options: &Options) -> Result<ExecutorBuilder<Answers>, Error> {
        self.addrs(self.port)
            .map(drop)
            .map_err(|source| self.failed(source))?;
        // The supervisor is a fork of this process, so `/proc/self/exe` leads it to the same
        // program, even if the file has been deleted. This path is also the same in all processes
        // of the run, so their recipes are equal.
        let magic = Path::new("/proc/self/exe");
        let program = match magic.exists() {
            true => magic.to_owned(),
            false => env::current_exe().map_or_else(|_| PathBuf::new(), |path| literal(&path).into()),
        };
        let text = format!("stand in for {self}");
        let mut recipe = Executor::builder([program.as_os_str(), literal(&text).as_os_str()])
            .name(format!("{} at {}", self.name, self.variable))
            .__not_ours(&self.variable)
            .current_dir("{dir}")
            .env(STAND_IN, self.name)
            // This tells the stand-in the URL, and makes the recipes for different URLs differ.
            .env(&self.variable, literal(&self.given))
            .on_end([program.as_os_str(), CLEAN_UP.as_ref()]);
        if let Some(timeout) = options.timeout {
            recipe = recipe.timeout(timeout);
        }
        let is_there = Check::new("its stand-in was there", |cx| Ok(cx.dir().join(READY).is_file()));
        Ok(recipe.wait_for(Tcp::__external(self.authority()).and(is_there)))
    }

    /// Connects, checks the server, and removes the leftovers of runs that have ended.
    ///
    /// # Errors
    ///
    /// Fails if the server cannot be used.
    pub(crate) fn prepare(&self) -> Result<(), Error> {
        use io::ErrorKind::{ConnectionRefused, ConnectionReset, ResourceBusy, UnexpectedEof};
        let begun = Instant::now();
        let starts = |e: &io::Error| {
            matches!(
                e.kind(),
                ConnectionRefused | ConnectionReset | ResourceBusy | UnexpectedEof
            ) && begun.elapsed() < STARTS_WITHIN
        };
        let mut checked = self.first_check();
        while checked.as_ref().is_err_and(starts) {
            thread::sleep(Duration::from_millis(50));
            checked = (self.protocol.check)(self);
        }
        let owners = checked.and_then(|()| (self.protocol.owners)(self));
        for owner in owners.map_err(|source| self.failed(source))? {
            if is_forgotten(&owner) {
                // Another run may be removing the same objects, so ignore errors.
                let _ = (self.protocol.remove)(self, &owner);
            }
        }
        Ok(())
    }

    /// Runs the check. If it fails or takes long, tests whether a server of another kind listens
    /// there. Such a server may never answer the check.
    fn first_check(&self) -> io::Result<()> {
        use io::ErrorKind::{ConnectionRefused, InvalidData, UnexpectedEof};
        let result = Arc::new(OnceLock::new());
        let (external, checked) = (self.clone(), Arc::clone(&result));
        let check = move || drop(checked.set((external.protocol.check)(&external)));
        // A server of another kind may block the check for a long time, so the check has its own
        // thread.
        let thread = spawn("mirakuru-check", Box::new(check))?;
        let begun = Instant::now();
        while !thread.is_finished() && begun.elapsed() < USUALLY_ANSWERS_WITHIN {
            thread::sleep(Duration::from_millis(1));
        }
        let checked = result.get();
        let problem = checked.map(|checked| checked.as_ref().map_err(io::Error::kind));
        let may_be_another = !matches!(problem, Some(Ok(()) | Err(ConnectionRefused)));
        // The errors for these results would not name the cause. An excerpt from the server's
        // answer says more, even if the kind of server is unknown.
        let says_little = matches!(problem, None | Some(Err(InvalidData | UnexpectedEof)));
        let kind = may_be_another
            .then(|| self.addrs(self.port).ok()?.find_map(kinds::of))
            .flatten();
        if let Some(kind) = kind.filter(|kind| !kind.is(self.name) && (kind.is_known() || says_little)) {
            return Err(io::Error::new(
                InvalidData,
                format!("another kind of server listens there: {kind}"),
            ));
        }
        let _ = thread.join();
        let checked = Arc::into_inner(result).and_then(OnceLock::into_inner);
        checked.unwrap_or_else(|| Err(io::Error::other("the check of the server panicked")))
    }

    /// The owner of everything that tests create through this executor.
    ///
    /// # Errors
    ///
    /// Fails if the file that the stand-in writes cannot be read.
    pub(crate) fn owner(&self, dir: &Path) -> Result<String, Error> {
        fs::read_to_string(dir.join(OWNER)).map_err(|source| self.failed(source))
    }

    /// A unique name that begins with the owner: at most 56 lower-case letters, digits and `_`.
    pub(crate) fn unique_name(&self, dir: &Path) -> Result<String, Error> {
        Ok(format!("{}_{}", self.owner(dir)?, unique_name()?))
    }

    /// A prefix for names: `begin`, a unique name, and the separator.
    pub(crate) fn prefix(&self, dir: &Path, begin: &str, separator: char) -> Result<Prefix, Error> {
        Ok(Prefix::of(format!(
            "{begin}{}{separator}",
            self.unique_name(dir)?
        )))
    }
}

/// Returns the part of each name before its first `_`, without duplicates. In names that mirakuru
/// generated, this part identifies the owner.
pub(super) fn owners_of(names: &[String]) -> Vec<String> {
    let mut owners = Vec::new();
    for name in names {
        let owner = name.split_once('_').map(|(owner, _)| owner.to_owned());
        owners.extend(owner.filter(|owner| !owners.contains(owner)));
    }
    owners
}

/// Whether the owner's process has ended. If the owner is on another machine, only its age counts.
/// Returns `false` if the string does not name an owner.
fn is_forgotten(owner: &str) -> bool {
    let Some(owner) = Owner::parse(owner) else {
        return false;
    };
    owner.has_ended().unwrap_or_else(|| owner.age() > FORGOTTEN_AFTER)
}

// ---- the stand-in -------------------------------------------------------------------------------

before_main!(stand_in);

/// Runs the stand-in instead of `main`, if this process was started as one.
fn stand_in() {
    let Some(name) = env::var_os(STAND_IN) else { return };
    let server = SERVERS.into_iter().find(|server| name == server.name);
    let external = server.map(|server| Options::default().external(server));
    let result = match external {
        Some(Ok(Some(external))) => run(&external),
        Some(Err(error)) => Err(error),
        _ => Err(Error::other("stand in for a server", "its preset is not known")),
    };
    if let Err(error) = result {
        eprintln!("{error}");
        process::exit(1);
    }
    process::exit(0);
}

fn run(external: &External) -> Result<(), Error> {
    let protocol = external.protocol;
    let dir = env::current_dir().map_err(|source| external.failed(source))?;
    if second_argument() == CLEAN_UP.as_bytes() {
        // Remove the mark, or a restarted stand-in would count as ready immediately.
        let _ = fs::remove_file(dir.join(READY));
        return match external.owner(&dir) {
            Ok(owner) => (protocol.remove)(external, &owner).map_err(|source| external.failed(source)),
            // If there is no owner, the tests have created nothing on the server.
            Err(_) => Ok(()),
        };
    }
    let owner = Owner::this_process().to_string();
    let begin = || -> io::Result<()> {
        fs::write(dir.join(OWNER), &owner)?;
        (protocol.renew)(external, &owner)?;
        println!("mirakuru uses {external} but did not start it, so its output is not here");
        fs::write(dir.join(READY), "")
    };
    begin().map_err(|source| external.failed(source))?;
    loop {
        thread::sleep(RENEWED_EVERY);
        if let Err(error) = (protocol.renew)(external, &owner) {
            eprintln!("{}", external.failed(error));
        }
    }
}

/// Reads `/proc`, because with some C libraries `env::args` is empty before `main`.
fn second_argument() -> Vec<u8> {
    let line = fs::read("/proc/self/cmdline").unwrap_or_default();
    match line.split(|byte| *byte == 0).nth(1) {
        Some(argument) => argument.to_owned(),
        None => env::args().nth(1).unwrap_or_default().into_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROTOCOL: Protocol = Protocol {
        schemes: &["redis", "valkey"],
        port: 6379,
        check: |_| Ok(()),
        owners: |_| Ok(Vec::new()),
        renew: Protocol::NO_RENEWAL,
        remove: Protocol::NO_RENEWAL,
    };

    fn parse(url: &str) -> Result<External, String> {
        External::parse(url, "MIRAKURU_X_URL".to_owned(), "X", &PROTOCOL)
    }

    #[test]
    fn a_url_is_taken_apart_and_made_again() {
        let whole = parse("redis://us%40er:p%2Fw@db.example:1/7?a=b&c=d").unwrap();
        assert_eq!(whole.user.as_deref(), Some("us@er"));
        assert_eq!(whole.password.as_deref(), Some("p/w"));
        assert_eq!((&*whole.host, whole.port), ("db.example", 1));
        assert_eq!(whole.path.as_deref(), Some("7"));
        assert_eq!(whole.parameter("c"), Some("d"));
        assert_eq!(whole.url("x"), "redis://us%40er:p%2Fw@db.example:1/x?a=b&c=d");
        assert_eq!(whole.to_string(), "the X at MIRAKURU_X_URL (db.example:1)");
        let managed = parse("redis://h/x?management_port=5&a=b").unwrap();
        assert_eq!(managed.url("y"), "redis://h:6379/y?a=b");
        assert_eq!(managed.parameter(MANAGEMENT_PORT), Some("5"));
        let six = parse("valkey://[::1]").unwrap();
        assert_eq!((&*six.host, six.port, six.path.as_deref()), ("::1", 6379, None));
        assert_eq!(six.url(""), "valkey://[::1]:6379/");
        assert_eq!(six.shared_url(), "valkey://[::1]:6379");
        assert_eq!(parse("redis://h/").unwrap().shared_url(), "redis://h:6379");
        assert_eq!(managed.shared_url(), "redis://h:6379/x?a=b");
        assert_eq!(
            parse("redis://:a:b@h/").unwrap().url(""),
            "redis://:a%3Ab@h:6379/"
        );
    }

    #[test]
    fn a_wrong_url_is_an_error_that_does_not_show_it() {
        for (url, part) in [
            ("localhost:6379", "must begin with `redis://` or `valkey://`"),
            ("postgres://u:secret@h/", "must begin with"),
            ("redis://u:secret@h:x/", "port"),
            ("redis://u:secret@/", "has no host"),
        ] {
            let reason = parse(url).unwrap_err();
            assert!(reason.contains(part) && !reason.contains("secret"), "{reason}");
        }
    }

    #[test]
    fn a_server_that_is_silent_gave_no_answer() {
        let silent = parse("redis://h/").unwrap();
        let error = silent.failed(io::ErrorKind::WouldBlock.into()).to_string();
        assert!(error.contains("it gave no answer within 30 s"), "{error}");
    }

    #[test]
    fn only_what_an_owner_that_has_ended_made_is_left_over() {
        let us = Owner::this_process().to_string();
        assert!(!is_forgotten(&us));
        assert!(!is_forgotten("orders"));
        // Owners on another machine: a new one, and one from 1970.
        let (_, rest) = us.split_once('p').unwrap();
        let (_, made) = us.split_once('t').unwrap();
        assert!(!is_forgotten(&format!("mk0p{rest}")));
        assert!(is_forgotten("mk0p1s1t1"));
        assert!(!is_forgotten(&format!("mk0p1s1t{made}")));
    }
}
