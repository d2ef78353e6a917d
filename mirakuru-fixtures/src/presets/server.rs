//! Code that all presets share: facts about a server's program ([`Server`]), settings of recipes
//! ([`Options`]), and macros for recipes and handles.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use mirakuru_core::__private::{find_program, is_root, literal, random_id, unprivileged_user};
use mirakuru_core::{Check, Error, Executor, ExecutorBuilder, NoWait, Probe, Readiness, Tcp};

use super::connection::Connection;
use super::external::{External, Protocol};
use super::{Answers, failed};
use crate::cache::limit;
use crate::lease;

/// Facts about a server's program.
pub(super) struct Server {
    /// The server's name in error messages.
    pub(crate) name: &'static str,
    /// Names of the program. The first one that exists is used.
    pub(crate) programs: &'static [&'static str],
    /// If the tests run as root, the server runs as the first of these users that exists. If the
    /// list is empty, the server runs as root.
    pub(crate) users: &'static [&'static str],
    pub(crate) as_root: AsRoot,
    /// Limits that the server needs. With a lower limit, the server fails to start, often without
    /// saying why.
    pub(crate) needs: &'static [Limit],
    /// The protocol for an external server.
    pub(crate) external: Option<&'static Protocol>,
}

/// A resource limit: its name in `/proc/self/limits`, the smallest value with which the server
/// starts, and the option of `ulimit` that sets it.
pub(super) type Limit = (&'static str, u64, &'static str);

/// How a server behaves if the tests run as root, and root may not become another user.
pub(super) enum AsRoot {
    /// The server refuses to run.
    Never,
    /// The server runs with these additional arguments.
    With(&'static [&'static str]),
}

/// Environment variables that presets remove for servers and clients. A trailing `*` matches any
/// suffix. The first group affects any program; the second group configures the servers.
const NOT_INHERITED: [&str; 38] = [
    "LC_*",
    "LANG",
    "LANGUAGE",
    "TZ",
    "TZDIR",
    "TMP",
    "TEMP",
    "TEMPDIR",
    "TMPDIR",
    "UMASK*",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "NOTIFY_SOCKET",
    "LISTEN_*",
    "WATCHDOG_*",
    "JOURNAL_STREAM",
    "ETCD*",
    "MARIADB*",
    "MEMCACHED*",
    "T_MEMD*",
    "MOSQUITTO*",
    "MYSQL*",
    "NATS*",
    "NGINX*",
    "PG*",
    "POSTGRES*",
    "RABBITMQ*",
    "ERL_*",
    "EPMD*",
    "USE_LONGNAME",
    "REDIS*",
    "VALKEY*",
];

impl Server {
    /// The program in the preset's variable, such as `MIRAKURU_REDIS_PROGRAM`, or else an installed
    /// one.
    pub(crate) fn find(&self) -> Option<PathBuf> {
        match self.chosen() {
            Some(chosen) => Some(chosen),
            None => find_one(self.programs),
        }
    }

    /// Whether the server misreads or refuses this character in the path of its directory.
    /// [`char::REPLACEMENT_CHARACTER`] stands for bytes that are not UTF-8.
    fn refuses_in_paths(&self, letter: char) -> bool {
        match (self.name, letter) {
            ("MariaDB" | "RabbitMQ" | "PostgreSQL" | "Mosquitto", char::REPLACEMENT_CHARACTER) => true,
            ("MariaDB", ':' | '\n') | ("RabbitMQ", ':') | ("PostgreSQL", ',') => true,
            ("Redis" | "nginx", '[') => true,
            ("Mosquitto", letter) => letter.is_control(),
            _ => false,
        }
    }

    /// The program that the preset's variable names.
    pub(crate) fn chosen(&self) -> Option<PathBuf> {
        let path = std::env::var_os(self.variable("PROGRAM"))?;
        (!path.is_empty()).then(|| self.program_at(Path::new(&path)))
    }

    /// The preset's variable for the program, if its value is this program.
    fn variable_of(&self, program: &Path) -> Option<String> {
        let is_chosen = self.chosen().is_some_and(|chosen| is_same(&chosen, program));
        is_chosen.then(|| self.variable("PROGRAM"))
    }

    /// If a variable names the program, mentions the variable in the error. Such an error does not
    /// count as a missing program, so `optional` does not skip the test.
    pub(crate) fn blamed(&self, program: &Path, mut error: Error) -> Error {
        let Some(variable) = self.variable_of(program) else {
            return error;
        };
        if let Error::Spawn { missing, .. } = &mut error {
            *missing = None;
        }
        if let Error::System { attempt, .. } | Error::Spawn { attempt, .. } = &mut error {
            attempt.push_str(&format!(" for the server that {variable} names"));
        }
        error
    }

    /// The name of a variable for this preset, such as `MIRAKURU_REDIS_PROGRAM`.
    pub(crate) fn variable(&self, about: &str) -> String {
        let name = match self.name {
            "PostgreSQL" => "POSTGRES".to_owned(),
            name => name.to_ascii_uppercase(),
        };
        format!("MIRAKURU_{name}_{about}")
    }

    /// Finds the program that a variable names: a path, a name on `PATH`, or the directory of an
    /// installation. If there is no program, returns its likely path, and the launch fails with an
    /// error that names this path.
    fn program_at(&self, path: &Path) -> PathBuf {
        if !path.is_dir() {
            let name = path.to_str().filter(|name| !name.contains('/'));
            let found = name.and_then(find_program);
            return found.unwrap_or_else(|| path.to_owned());
        }
        for dir in ["", "bin", "sbin"] {
            for program in self.programs {
                let file = path.join(dir).join(program);
                if file.is_file() {
                    return file;
                }
            }
        }
        path.join(self.programs.first().copied().unwrap_or_default())
    }

    /// Makes a recipe run as a user that the server accepts.
    ///
    /// # Errors
    ///
    /// Fails if the server refuses to run as root, and root may not become another user here.
    pub(crate) fn unprivileged(
        &self,
        recipe: ExecutorBuilder<NoWait>,
    ) -> Result<ExecutorBuilder<NoWait>, Error> {
        match (self.stays_root(), &self.as_root) {
            (None, _) => Ok(recipe.unprivileged(self.users)),
            (Some(_), AsRoot::With(args)) => Ok(recipe.args(*args)),
            (Some(reason), AsRoot::Never) => Err(Error::other(
                format!("run {} as a user other than root", self.name),
                format!(
                    "it refuses to run as root, and {reason}; run the tests as an ordinary user, or let root \
                        become another \
                     user (in a container, `--cap-add SETUID --cap-add SETGID --cap-add CHOWN`)"
                ),
            )),
        }
    }

    /// If the server must stay root and cannot run as one of its users, returns the reason.
    pub(crate) fn stays_root(&self) -> Option<String> {
        match unprivileged_user(self.users) {
            Some(Ok(_)) => None,
            Some(Err(reason)) => Some(reason),
            None if is_root() && !self.users.is_empty() => {
                Some(format!("this machine has no user {}", self.users.join(" or ")))
            }
            None => None,
        }
    }
}

/// The first of these programs that is installed.
pub(super) fn find_one(programs: &[&str]) -> Option<PathBuf> {
    for program in programs {
        if let Some(path) = find_program(program) {
            return Some(path);
        }
    }
    None
}

/// Whether two paths lead to the same file, even through symbolic links.
fn is_same(a: &Path, b: &Path) -> bool {
    a == b || fs::canonicalize(a).is_ok_and(|a| fs::canonicalize(b).is_ok_and(|b| a == b))
}

/// A recipe for a program in a clean environment: UTC, UTF-8, and temporary files in the private
/// directory.
pub(super) fn clean_program(program: &Path) -> ExecutorBuilder<NoWait> {
    let mut recipe = Executor::builder([literal(program)]);
    for name in NOT_INHERITED {
        recipe = recipe.env_remove(name);
    }
    recipe
        .env("TZ", "UTC")
        .env("LC_ALL", "C.UTF-8")
        .env("TMPDIR", "{dir}")
        .umask(0o077)
}

/// Gives a client program a clean environment: UTC and UTF-8.
pub(super) fn clean(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        for known in NOT_INHERITED {
            let is_it = match known.strip_suffix('*') {
                Some(prefix) => text.starts_with(prefix),
                None => text == known,
            };
            if is_it {
                command.env_remove(&name);
            }
        }
    }
    command.env("TZ", "UTC").env("LC_ALL", "C.UTF-8");
}

/// The settings that every preset has.
#[derive(Clone, Debug, Default)]
pub(super) struct Options {
    pub(crate) program: Option<PathBuf>,
    pub(crate) port: Option<u16>,
    pub(crate) args: Vec<String>,
    pub(crate) config: Vec<(String, String)>,
    pub(crate) files: Vec<(PathBuf, String)>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) durable: bool,
    pub(crate) optional: bool,
    /// Whether this server is a node of a cluster, which never uses an external server.
    pub(crate) is_member: bool,
}

impl Options {
    /// Makes a recipe with the preset's arguments, followed by the user's. If the program is
    /// missing, the start fails with an error that names the package.
    pub(crate) fn recipe(
        &self,
        server: &Server,
        args: &[impl AsRef<OsStr>],
    ) -> Result<ExecutorBuilder<NoWait>, Error> {
        let mut list = Vec::new();
        for arg in args {
            list.push(arg.as_ref().to_owned());
        }
        self.recipe_with(server, list)
    }

    fn recipe_with(&self, server: &Server, args: Vec<OsString>) -> Result<ExecutorBuilder<NoWait>, Error> {
        let found = self.program.clone().or_else(|| server.find());
        let program = found.unwrap_or_else(|| server.programs.first().copied().unwrap_or_default().into());
        let is_there = program.is_file();
        let mut recipe = clean_program(&program).args(args);
        // A version manager chooses the version by the working directory, so keep the tests'
        // working directory.
        recipe = match std::env::current_dir() {
            Ok(dir) if is_shim(&program) => recipe.current_dir(literal(&dir)),
            _ => recipe.current_dir("{dir}"),
        };
        for (path, text) in &self.files {
            recipe = recipe.file(path, text);
        }
        if let Some(timeout) = self.timeout {
            recipe = recipe.timeout(timeout);
        }
        let dir = std::env::temp_dir();
        let refused = |letter: &char| server.refuses_in_paths(*letter);
        if let Some(letter) = dir.to_string_lossy().chars().find(refused) {
            let which = match letter {
                char::REPLACEMENT_CHARACTER => "a byte that is not UTF-8".to_owned(),
                letter => format!("a `{}`", letter.escape_debug()),
            };
            return Err(Error::other(
                format!("start {}", server.name),
                format!(
                    "the directory for temporary files, `{}`, has {which} in its name, which the server \
                        misreads; set TMPDIR to another directory",
                    dir.display()
                ),
            ));
        }
        for (name, least, option) in server.needs {
            if let Some(amount) = limit(name).filter(|amount| amount < least) {
                return Err(Error::other(
                    format!("start {}", server.name),
                    format!(
                        "it needs a limit `{}` of at least {least}, and this process has {amount}: raise it \
                            with `ulimit {option}`",
                        name.to_lowercase()
                    ),
                ));
            }
        }
        if let Some(variable) = server.variable_of(&program) {
            recipe = recipe.__program_of(&variable);
        }
        if self.optional {
            recipe = recipe.optional();
        }
        let recipe = recipe.args(&self.args);
        match is_there {
            true => server.unprivileged(recipe),
            // If the program is missing, continue: the launch reports that with a better error.
            false => Ok(recipe),
        }
    }

    /// The settings of the preset, followed by the user's.
    pub(crate) fn settings<'a>(&'a self, mut preset: Vec<(&'a str, &'a str)>) -> Vec<(&'a str, &'a str)> {
        for (name, value) in &self.config {
            preset.push((name, value));
        }
        preset
    }

    /// Inserts settings before the user's, which override them.
    pub(crate) fn set_first(&mut self, settings: &[(&str, &str)]) {
        for (name, value) in settings.iter().rev() {
            let setting = ((*name).to_owned(), (*value).to_owned());
            self.config.insert(0, setting);
        }
    }

    /// The last value that the user has set for this name.
    pub(crate) fn setting(&self, name: &str) -> Option<&str> {
        let mut settings = self.config.iter().rev();
        let found = settings.find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// The port for commands and files: a number, or the placeholder `{port}`.
    pub(crate) fn port(&self) -> String {
        self.port
            .map_or_else(|| "{port}".to_owned(), |port| port.to_string())
    }

    /// A readiness condition: the port is open, and `ask` succeeds on a connection.
    pub(crate) fn answers(
        &self,
        sentence: &str,
        ask: impl Fn(Connection) -> io::Result<bool> + Send + Sync + 'static,
    ) -> Answers {
        self.answers_in(sentence, Box::new(move |question| ask(question.connect()?)))
    }

    /// Like [`answers`](Options::answers), for a check that needs the private directory.
    pub(crate) fn answers_in(
        &self,
        sentence: &str,
        ask: Box<dyn Fn(Question<'_>) -> io::Result<bool> + Send + Sync>,
    ) -> Answers {
        let fixed = self.port;
        let check = Check::new(sentence, move |cx: &Probe<'_>| {
            let port = fixed.or_else(|| cx.port()).ok_or(io::ErrorKind::InvalidInput)?;
            ask(Question {
                port,
                within: cx.remaining(),
                dir: cx.dir(),
            })
        });
        Tcp::addr(format!("127.0.0.1:{}", self.port())).and(check)
    }
}

/// A starting server, as a readiness check sees it.
pub(super) struct Question<'a> {
    pub(crate) port: u16,
    within: Duration,
    /// The private directory.
    pub(crate) dir: &'a Path,
}

impl Question<'_> {
    pub(crate) fn connect(&self) -> io::Result<Connection> {
        Connection::open(([127, 0, 0, 1], self.port).into(), self.within)
    }
}

/// Formats settings as command line options.
pub(super) fn flags(settings: &[(&str, &str)]) -> Vec<String> {
    let mut flags = Vec::new();
    for (name, value) in settings {
        flags.push(format!("--{name}={value}"));
    }
    flags
}

/// Whether a program is the shim of a version manager (asdf, mise, pyenv): a script, or a file in a
/// directory `shims`. A shim chooses the version by the working directory.
pub(super) fn is_shim(program: &Path) -> bool {
    let mut start = [0; 2];
    let is_script =
        File::open(program).is_ok_and(|mut file| file.read_exact(&mut start).is_ok()) && start == *b"#!";
    is_script || program.parent().is_some_and(|dir| dir.ends_with("shims"))
}

/// The last lines of a failed program's output, which usually contain the reason.
pub(super) fn last_lines<R: Readiness>(executor: &Executor<R>) -> String {
    let logs = executor.logs();
    let reason = reason(logs.stderr(), &logs.to_string());
    reason.unwrap_or_else(|| "it printed nothing".to_owned())
}

/// The last lines on standard error, or of all output if standard error is empty.
pub(super) fn reason(stderr: &str, all: &str) -> Option<String> {
    const TAIL: usize = 20;
    let text = if stderr.trim().is_empty() { all } else { stderr };
    let mut lines = Vec::new();
    for line in text.lines() {
        if !line.trim().is_empty() {
            lines.push(line);
        }
    }
    (!lines.is_empty()).then(|| lines[lines.len().saturating_sub(TAIL)..].join("\n"))
}

/// A unique name for one test: 13 lower-case letters and digits, beginning with a letter.
pub(super) fn unique_name() -> Result<String, Error> {
    lease::taken();
    let id = random_id().map_err(|source| failed("make a unique name", source))?;
    Ok(format!("t{id}"))
}

/// A password of 120 random bits.
pub(super) fn new_password() -> Result<String, Error> {
    let random = || random_id().map_err(|source| failed("make a password", source));
    Ok(random()? + &random()?)
}

/// File in the private directory: the server's password.
const PASSWORD: &str = "password";

/// Stores the password for all processes that share the server.
pub(super) fn write_password(dir: &Path, password: &str) -> Result<(), Error> {
    write_secret(dir, PASSWORD, password)
}

/// The server's password: from the URL of an external server, or else from the private directory.
pub(super) fn password(external: Option<&External>, dir: &Path) -> Result<String, Error> {
    match external {
        Some(external) => Ok(external.password.clone().unwrap_or_default()),
        None => read_secret(dir, PASSWORD),
    }
}

/// Reads a file that `prepare` or `set_up` has written.
pub(super) fn read_secret(dir: &Path, name: &str) -> Result<String, Error> {
    let path = dir.join(name);
    fs::read_to_string(&path).map_err(|source| failed(format!("read {}", path.display()), source))
}

/// Writes a file, which only its owner can read, into the private directory. Use it in `prepare`,
/// because a recipe must not contain a secret.
pub(super) fn write_secret(dir: &Path, name: &str, text: &str) -> Result<(), Error> {
    let path = dir.join(name);
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(&path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|source| failed(format!("write {}", path.display()), source))
}

/// The setters that all presets share. Only servers that keep data on disk have `durable`.
macro_rules! options {
    ($recipe:ident) => {
        impl $recipe {
            /// Uses the program at this path.
            pub fn program(mut self, path: impl Into<::std::path::PathBuf>) -> Self {
                self.options.program = Some(path.into());
                self
            }

            /// Listens on this port. The default is a free port. Fixtures on the same port wait for
            /// each other.
            pub fn port(mut self, port: u16) -> Self {
                self.options.port = Some(port);
                self
            }

            /// Adds an argument to the server's command, after the preset's arguments.
            pub fn arg(mut self, arg: impl Into<String>) -> Self {
                self.options.args.push(arg.into());
                self
            }

            /// Puts a file, such as a key or a certificate, into the private directory, `{dir}`.
            /// The path is relative to that directory. The file belongs to the server's user, and
            /// no other user can read it. Placeholders in the text are replaced.
            ///
            /// In [`arg`](Self::arg) and in settings, `"{dir}/PATH"` names the file.
            pub fn file(mut self, path: impl AsRef<::std::path::Path>, text: impl Into<String>) -> Self {
                self.options
                    .files
                    .push((path.as_ref().to_owned(), text.into()));
                self
            }

            /// Allows a test to be skipped if the server is not installed: see
            /// [`ExecutorBuilder::optional`](::mirakuru_core::ExecutorBuilder::optional).
            pub fn optional(mut self) -> Self {
                self.options.optional = true;
                self
            }

            /// Sets the time limit for the start, which ends when the server answers. The default
            /// is 60 s.
            pub fn timeout(mut self, timeout: ::std::time::Duration) -> Self {
                self.options.timeout = Some(timeout);
                self
            }
        }
    };
    ($recipe:ident, durable) => {
        $crate::presets::server::options!($recipe);

        impl $recipe {
            /// Makes committed data survive a power failure. Starts, writes and stops take longer.
            /// The default is `false`: committed data survives a crash of the server, such as
            /// [`kill`](::mirakuru_core::Executor::kill), but not a crash of the machine.
            pub fn durable(mut self, durable: bool) -> Self {
                self.options.durable = durable;
                self
            }
        }
    };
}
pub(super) use options;

/// Implements the common parts of a handle: `host`, access to the executor, and a `Debug` without
/// secrets.
///
/// With `external`, the handle must have a field `external: Option<External>`.
macro_rules! handle {
    ($handle:ident) => {
        $crate::presets::server::handle!($handle, |_| None::<&str>);
    };
    ($handle:ident, external) => {
        $crate::presets::server::handle!($handle, |handle: &$handle| {
            handle.external.as_ref().map(|external| &*external.host)
        });
    };
    ($handle:ident, $host:expr) => {
        impl $handle {
            /// The host of the server: `127.0.0.1`, or the host in the preset's `MIRAKURU_*_URL`.
            #[must_use]
            pub fn host(&self) -> &str {
                let external: fn(&$handle) -> Option<&str> = $host;
                external(self).unwrap_or("127.0.0.1")
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
pub(super) use handle;

/// Implements [`Recipe`](crate::Recipe) for a handle with only the fields `executor` and
/// `external`.
macro_rules! of_executor {
    ($handle:ident) => {
        type Readiness = $crate::presets::Answers;
        type Handle = $handle;

        fn prepare(&self, _: &mut Executor<Self::Readiness>) -> Result<(), Error> {
            match self.options.external(&SERVER)? {
                Some(external) => external.prepare(),
                None => Ok(()),
            }
        }

        fn handle(self, executor: Executor<Self::Readiness>) -> Result<$handle, Error> {
            let external = self.options.external(&SERVER)?;
            Ok($handle { executor, external })
        }
    };
}
pub(super) use of_executor;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_stands_for_the_program_in_it() {
        let server = Server {
            name: "Sleeper",
            programs: &["no-such-sleep", "sleep"],
            users: &[],
            as_root: AsRoot::Never,
            needs: &[],
            external: None,
        };
        let dir = std::env::temp_dir().join(format!("mirakuru-unit-{}-chosen", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join("sbin")).unwrap();
        assert_eq!(server.program_at(&dir), dir.join("no-such-sleep"));
        fs::write(dir.join("sbin/sleep"), "").unwrap();
        assert_eq!(server.program_at(&dir), dir.join("sbin/sleep"));
        fs::write(dir.join("sleep"), "").unwrap();
        assert_eq!(server.program_at(&dir), dir.join("sleep"));
        assert_eq!(server.program_at(&dir.join("other")), dir.join("other"));
        assert_eq!(Some(server.program_at(Path::new("cat"))), find_program("cat"));
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_script_and_a_program_among_shims_are_shims() {
        let dir = std::env::temp_dir().join(format!("mirakuru-unit-{}-shims", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join("shims")).unwrap();
        fs::write(dir.join("script"), "#!/bin/sh\n").unwrap();
        fs::write(dir.join("shims/server"), "\x7fELF").unwrap();
        fs::write(dir.join("server"), "\x7fELF").unwrap();
        assert!(is_shim(&dir.join("script")));
        assert!(is_shim(&dir.join("shims/server")));
        assert!(!is_shim(&dir.join("server")));
        fs::remove_dir_all(&dir).unwrap();
    }
}
