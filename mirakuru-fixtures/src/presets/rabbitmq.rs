//! RabbitMQ, a message broker.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mirakuru_core::{Error, Executor, ExecutorBuilder};

use super::connection::{ANSWER_WITHIN, Connection, Stream, TIDY_WITHIN, read, tidied};
use super::external::External;
use super::server::{
    AsRoot, Options, Server, handle, new_password, options, password, unique_name, write_password,
    write_secret,
};
use super::{Answers, expect, failed, insert, percent_encoded};
use crate::Recipe;
use crate::cache::private_dir;

mod external;

pub(super) const SERVER: Server = Server {
    name: "RabbitMQ",
    programs: &["rabbitmq-server"],
    users: &["rabbitmq", "nobody"],
    as_root: AsRoot::With(&[]),
    needs: &[
        ("Max open files", 128, "-n"),
        ("Max file size", 32 << 20, "-f"),
        ("Max address space", 3_000_000 << 10, "-v"),
    ],
    external: Some(&external::PROTOCOL),
};

/// The only user, whose password is different for each server.
const USER: &str = "guest";

/// The server's own script. Packages put a wrapper on `PATH` that only root and the user `rabbitmq`
/// can use.
const SCRIPTS: [&str; 1] = ["/usr/lib/rabbitmq/bin/rabbitmq-server"];

/// An Erlang program that creates and deletes virtual hosts for the handles. It runs in the server,
/// and reads requests from a socket in the private directory. `rabbitmqctl` takes seconds for each
/// call, and the management plugin would add seconds to each start and stop.
///
/// The program starts at the end of the boot, and calls the same functions as `rabbitmqctl`. It
/// also stops RabbitMQ's `epmd` monitor, which checks every minute whether `epmd` runs, and would
/// start it.
const CLERK: &str = r#"
Do = fun(<<"ping">>) ->
             ok;
        (<<"add ", Name/binary>>) ->
             ok = rabbit_vhost:add(Name, <<"mirakuru">>),
             rabbit_auth_backend_internal:set_permissions(
                 <<"guest">>, Name, <<".*">>, <<".*">>, <<".*">>, <<"mirakuru">>);
        (<<"delete ", Name/binary>>) ->
             rabbit_vhost:delete(Name, <<"mirakuru">>)
     end,
Answer = fun(Line) ->
             try Do(string:trim(Line)) of
                 Result -> io_lib:format("~0p~n", [Result])
             catch
                 Class:Reason -> io_lib:format("~0p~n", [{Class, Reason}])
             end
         end,
Serve = fun Loop(Listener) ->
            case gen_tcp:accept(Listener) of
                {ok, Socket} ->
                    case gen_tcp:recv(Socket, 0, 5000) of
                        {ok, Line} -> gen_tcp:send(Socket, Answer(Line));
                        _ -> ok
                    end,
                    gen_tcp:close(Socket);
                _ ->
                    timer:sleep(10)
            end,
            Loop(Listener)
        end,
rabbit_sup:stop_child(rabbit_epmd_monitor_sup),
Boot = self(),
spawn(fun() ->
          file:delete("clerk"),
          {ok, Listener} = gen_tcp:listen(0, [{ifaddr, {local, "clerk"}}, binary, {packet, line}, {active, false}]),
          [spawn(fun() -> Serve(Listener) end) || _ <- [1, 2, 3]],
          Boot ! open,
          Serve(Listener)
      end),
receive open -> ok after 10000 -> error(no_clerk) end.
"#;

/// An Erlang program that runs before the boot, and saves a third of the start's processor time.
/// RabbitMQ loads every module of its applications to look for boot steps. Erlang's own libraries
/// have no boot steps, so the program empties their lists of modules.
const PRELUDE: &str = r#"
[case file:consult(code:where_is_file(atom_to_list(App) ++ ".app")) of
     {ok, [{application, App, Keys}]} ->
         application:load({application, App, lists:keystore(modules, 1, Keys, {modules, []})});
     _ ->
         ok
 end || App <- [asn1, compiler, crypto, inets, mnesia, os_mon, public_key, runtime_tools, ssl, syntax_tools, tools, xmerl]].
"#;

/// Default time limit for the start. On two idle processors, the server is ready after about 4 s.
/// If ten other servers start at the same time, it is ready after 30 s.
const READY_WITHIN: Duration = Duration::from_secs(180);

/// A RabbitMQ server: see [`Rabbitmq`]. Its default [`timeout`](RabbitmqRecipe::timeout) is 180 s.
pub fn rabbitmq() -> RabbitmqRecipe {
    RabbitmqRecipe {
        options: Options::default(),
        plugins: Vec::new(),
    }
}

/// A recipe for a RabbitMQ server, created by [`rabbitmq()`].
#[derive(Clone, Debug)]
#[must_use = "a recipe does nothing until it is started"]
pub struct RabbitmqRecipe {
    options: Options,
    plugins: Vec<String>,
}

options!(RabbitmqRecipe);

impl RabbitmqRecipe {
    /// Sets a key of `rabbitmq.conf`, overriding the preset's value: `config("channel_max",
    /// "128")`.
    pub fn config(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.options.config.push((key.into(), value.into()));
        self
    }

    /// Enables an installed plugin: `plugin("rabbitmq_consistent_hash_exchange")`. By default no
    /// plugin is enabled. If the plugin is not installed, the start fails.
    ///
    /// A plugin that listens on a port uses its standard port, unless its configuration sets
    /// another. For `plugin("rabbitmq_management")` add `config("management.tcp.ip",
    /// "127.0.0.1").config("management.tcp.port", "{port:management}")`. The handle's
    /// [`port_named("management")`](Executor::port_named) then returns the port.
    pub fn plugin(mut self, name: impl Into<String>) -> Self {
        self.plugins.push(name.into());
        self
    }

    fn script(&self) -> Option<PathBuf> {
        if let Some(program) = self.options.program.clone().or_else(|| SERVER.chosen()) {
            return Some(program);
        }
        for script in SCRIPTS {
            if Path::new(script).is_file() {
                return Some(script.into());
            }
        }
        SERVER.find()
    }

    /// Finds the plugins that the server and the recipe need.
    fn needed(&self) -> Result<Vec<PathBuf>, Error> {
        match self.script().as_deref().and_then(Plugins::of) {
            Some(plugins) => plugins.needed(&self.plugins),
            None => Ok(Vec::new()),
        }
    }
}

/// The plugins of an installed server: the name and the directory (`NAME-VERSION`) of each.
struct Plugins(Vec<(String, PathBuf)>);

impl Plugins {
    /// Finds the plugins in `plugins`, beside the directory of the script. `None` if the layout is
    /// different, or if a plugin is an archive.
    fn of(script: &Path) -> Option<Plugins> {
        let script = fs::canonicalize(script).ok()?;
        let mut found = Vec::new();
        for entry in fs::read_dir(script.parent()?.parent()?.join("plugins"))
            .ok()?
            .flatten()
        {
            let name = entry.file_name().into_string().ok()?;
            if name.ends_with(".ez") {
                return None;
            }
            if let Some((name, _)) = name.rsplit_once('-').filter(|_| entry.path().is_dir()) {
                found.push((name.to_owned(), entry.path()));
            }
        }
        let found = Plugins(found);
        found.path("rabbit").is_some().then_some(found)
    }

    fn path(&self, name: &str) -> Option<&Path> {
        let mut found = self.0.iter().filter(|(known, _)| known == name);
        found.next().map(|(_, path)| path.as_path())
    }

    /// Finds the directories of the server, of the plugins in `asked`, and of all their
    /// dependencies. A start reads every plugin that it finds, so fewer plugins make it faster.
    fn needed(&self, asked: &[String]) -> Result<Vec<PathBuf>, Error> {
        let mut needed: Vec<PathBuf> = Vec::new();
        let mut open = vec!["rabbit".to_owned()];
        for name in asked {
            if self.path(name).is_none() {
                let mut known = Vec::new();
                for (name, _) in &self.0 {
                    if name.starts_with("rabbitmq_") {
                        insert(&mut known, name.clone());
                    }
                }
                return Err(Error::other(
                    format!("enable the plugin {name} of RabbitMQ"),
                    format!("it is not installed; the installed ones are {}", known.join(", ")),
                ));
            }
            open.push(name.clone());
        }
        while let Some(name) = open.pop() {
            // A dependency without a directory here is a library of Erlang itself.
            let Some(path) = self
                .path(&name)
                .filter(|path| needed.iter().all(|known| known != path))
            else {
                continue;
            };
            let file = path.join(format!("ebin/{name}.app"));
            let text = fs::read_to_string(&file)
                .map_err(|source| failed(format!("read {}", file.display()), source))?;
            open.extend(applications(&text));
            needed.push(path.to_owned());
        }
        needed.sort();
        Ok(needed)
    }
}

/// Reads the dependencies from a term like `{applications, [kernel, stdlib, ranch]}`.
fn applications(app: &str) -> Vec<String> {
    let list = app
        .split_once("{applications")
        .and_then(|(_, rest)| Some(rest.split_once('[')?.1.split_once(']')?.0));
    let names = list.unwrap_or_default().split(',');
    let mut applications = Vec::new();
    for name in names {
        applications.push(name.trim().trim_matches('\'').to_owned());
    }
    applications
}

// Keeps this type out of the list of implementors in compiler errors about `Recipe`.
#[diagnostic::do_not_recommend]
impl Recipe for RabbitmqRecipe {
    type Readiness = Answers;
    type Handle = Rabbitmq;

    fn executor(&self) -> Result<ExecutorBuilder<Answers>, Error> {
        if let Some(external) = self.options.external(&SERVER)? {
            external.refuse("plugin", !self.plugins.is_empty())?;
            return external.executor(&self.options);
        }
        let mut options = self.options.clone();
        options.program = self.script();
        options.timeout = options.timeout.or(Some(READY_WITHIN));
        let listener = format!("127.0.0.1:{}", options.port());
        let settings = vec![
            ("listeners.tcp.1", &*listener),
            ("log.console", "true"),
            // The server blocks publishers if the disk has less free space. The default is 50 MB.
            ("disk_free_limit.absolute", "1MB"),
        ];
        let settings = self.options.settings(settings);
        let mut conf = String::new();
        for (number, (key, value)) in settings.iter().enumerate() {
            // If a key is set twice, only the last value counts.
            if !settings[number + 1..].iter().any(|(later, _)| later == key) {
                conf.push_str(&format!("{key} = {value}\n"));
            }
        }
        // These arguments keep RabbitMQ from starting `epmd`, Erlang's name service, which would
        // outlive the server. A node with a name and a port on the command line needs no name
        // service.
        let args = [
            "-sname",
            NODE,
            "-start_epmd",
            "false",
            "-erl_epmd_port",
            "{port:dist}",
            "-kernel",
            "inet_dist_use_interface",
            "{127,0,0,1}",
            "-eval",
            r#"ok = file:eval("clerk.erl")"#,
        ];
        let mut recipe = options
            .recipe(&SERVER, &args)?
            // `clerk.erl`, `prelude.erl` and the data directory are relative to this directory.
            .current_dir("{dir}")
            .file("rabbitmq.conf", conf)
            .file("enabled_plugins", format!("[{}].\n", self.plugins.join(", ")))
            .file("prelude.erl", PRELUDE)
            .file("clerk.erl", CLERK)
            // The server must not read the configuration of the machine or of the user.
            .env("HOME", "{dir}")
            .env("RABBITMQ_CONF_ENV_FILE", "{dir}/rabbitmq-env.conf")
            .env("RABBITMQ_CONFIG_FILE", "{dir}/rabbitmq.conf")
            .env("RABBITMQ_ADVANCED_CONFIG_FILE", "{dir}/advanced.config")
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", "{dir}/enabled_plugins")
            .env("RABBITMQ_MNESIA_BASE", DATA)
            .env("RABBITMQ_GENERATED_CONFIG_DIR", "{dir}/config")
            .env("RABBITMQ_LOG_BASE", "{dir}/log")
            .env("RABBITMQ_LOGS", "-")
            .env("RABBITMQ_PID_FILE", "{dir}/pid")
            .env("RABBITMQ_NODENAME", NODE)
            // This variable makes the script replace itself with the server, so that signals reach
            // the server directly.
            .env("RUNNING_UNDER_SYSTEMD", "true")
            // Erlang inserts these arguments before those of the command line, and removes the
            // backslashes.
            .env("ERL_AFLAGS", r#"-eval file:eval(\"prelude.erl\")"#)
            // If `epmd` starts after all, these keep it on loopback, on a port of its own.
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("ERL_EPMD_PORT", "{port:epmd}");
        if !self.needed()?.is_empty() {
            recipe = recipe.env("RABBITMQ_PLUGINS_DIR", "{dir}/plugins");
        }
        Ok(recipe
            // Erlang prints this line, followed by a long report about the error.
            .fail_on("^Error during startup:")
            .fail_on("eaddrinuse")
            .wait_for(options.answers_in(
                "answered as AMQP 0-9-1",
                Box::new(|question| {
                    // A connection that closes without a login leaves a warning in the log. So ask
                    // the program in `CLERK` first, which answers only at the end of the boot.
                    Ok(ask(question.dir, "ping", ANSWER_WITHIN).is_ok() && speaks_amqp(question.connect()?)?)
                }),
            )))
    }

    fn prepare(&self, executor: &mut Executor<Answers>) -> Result<(), Error> {
        if let Some(external) = self.options.external(&SERVER)? {
            return external.prepare();
        }
        let dir = executor.dir();
        let secret = new_password()?;
        // The server reads these settings only if it has no data yet.
        let config = format!(
            "[{{rabbit, [{{default_user, <<\"{USER}\">>}}, {{default_pass, <<\"{secret}\">>}}]}}].\n"
        );
        write_password(&dir, &secret)?;
        write_secret(&dir, "advanced.config", &config)?;
        let failed = |source| failed("link the plugins of RabbitMQ", source);
        let plugins = dir.join("plugins");
        private_dir(&plugins).map_err(failed)?;
        for path in self.needed()? {
            let name = path.file_name().unwrap_or_default();
            symlink(&path, plugins.join(name)).map_err(failed)?;
        }
        Ok(())
    }

    fn handle(self, executor: Executor<Answers>) -> Result<Rabbitmq, Error> {
        let external = self.options.external(&SERVER)?;
        Ok(Rabbitmq {
            password: match &external {
                Some(external) => external::password(external).to_owned(),
                None => password(None, &executor.dir())?,
            },
            executor,
            external,
        })
    }
}

/// Path of the data directory. RabbitMQ quotes the path in a shell command, and hangs if the path
/// itself contains a quote. On Linux, `/proc/self/cwd` avoids the name of the private directory.
const DATA: &str = if cfg!(target_os = "linux") {
    "/proc/self/cwd/data"
} else {
    "{dir}/data"
};

/// The name of every node. Nodes can have the same name, because there is no name service.
const NODE: &str = "rabbit@localhost";

/// Whether the server answers a client's protocol header with the method `connection.start`.
fn speaks_amqp(mut connection: Connection) -> io::Result<bool> {
    connection.send(b"AMQP\x00\x00\x09\x01")?;
    // The frame begins with the type (method), channel 0, four bytes of length, class 10 and method
    // 10.
    let mut start = [0; 11];
    connection.0.read_exact(&mut start)?;
    Ok(start[..3] == [1, 0, 0] && start[7..] == [0, 10, 0, 10])
}

/// Sends a request to the program in [`CLERK`].
fn ask(dir: &Path, request: &str, within: Duration) -> io::Result<()> {
    let mut socket = Stream::Unix(UnixStream::connect(dir.join("clerk"))?);
    socket.within(within)?;
    socket.write_all(format!("{request}\n").as_bytes())?;
    // The program closes the connection after its answer.
    let answer = read(&mut socket, 1 << 16)?;
    match String::from_utf8_lossy(&answer).trim_end() {
        "ok" => Ok(()),
        "" => Err(io::ErrorKind::UnexpectedEof.into()),
        answer => Err(io::Error::other(answer.to_owned())),
    }
}

/// A running RabbitMQ server.
///
/// [`vhost`](Rabbitmq::vhost) gives each test its own virtual host, whose exchanges, queues,
/// bindings and policies no other test sees. Tests share everything else: users, plugins, and the
/// limits and alarms of the whole server.
///
/// A start takes seconds of processor time, so share one server in a `static`, and give each test a
/// virtual host.
///
/// The server belongs to no cluster, and `rabbitmqctl` does not find it. There is no `durable(..)`,
/// because RabbitMQ always writes persistent messages to disk.
///
/// ```no_run
/// # use mirakuru_fixtures as mirakuru;
/// use mirakuru::{Recipe, presets};
///
/// let rabbitmq = presets::rabbitmq().start()?;
/// let vhost = rabbitmq.vhost();
/// // amqp://guest:e5bq7kdw3xta@127.0.0.1:41873/tm2vay7kq4zbo
/// println!("{}", vhost.url());
/// # Ok::<(), mirakuru_core::Error>(())
/// ```
pub struct Rabbitmq {
    executor: Executor<Answers>,
    external: Option<External>,
    password: String,
}

handle!(Rabbitmq, external);

impl Rabbitmq {
    /// The URL of the virtual host `/`, which all tests share:
    /// `amqp://guest:PASSWORD@127.0.0.1:PORT/%2F`.
    #[must_use]
    pub fn url(&self) -> String {
        match &self.external {
            Some(external) => self.url_of(external.path.as_deref().unwrap_or("/")),
            None => self.url_of("/"),
        }
    }

    /// The administrator: `guest`, or the user in `MIRAKURU_RABBITMQ_URL`.
    #[must_use]
    pub fn user(&self) -> &str {
        self.external.as_ref().map_or(USER, external::user)
    }

    /// The user's password, which is different for each server.
    #[must_use]
    pub fn password(&self) -> &str {
        &self.password
    }

    /// Creates a virtual host for one test, in which the [user](Rabbitmq::user) has all rights.
    /// Dropping the value deletes the virtual host. If the test process is killed, the virtual host
    /// is removed with the server.
    ///
    /// # Panics
    ///
    /// Panics if the virtual host cannot be created: see [`try_vhost`](Rabbitmq::try_vhost).
    #[must_use]
    #[track_caller]
    pub fn vhost(&self) -> RabbitmqVhost {
        expect(self.try_vhost())
    }

    /// Like [`vhost`](Rabbitmq::vhost), but returns an error instead of panicking.
    ///
    /// # Errors
    ///
    /// Returns [`Error::System`] if the server does not answer.
    pub fn try_vhost(&self) -> Result<RabbitmqVhost, Error> {
        let attempt = "create a virtual host of RabbitMQ";
        let dir = self.executor.dir();
        let (name, made) = match &self.external {
            Some(external) => {
                let name = external.unique_name(&dir)?;
                let made = external::add(external, &name);
                (name, made)
            }
            None => {
                let name = unique_name()?;
                let made = ask(&dir, &format!("add {name}"), ANSWER_WITHIN);
                (name, made)
            }
        };
        made.map_err(|source| failed(attempt, source))?;
        Ok(RabbitmqVhost {
            url: self.url_of(&name),
            name,
            dir,
            external: self.external.clone(),
        })
    }

    fn url_of(&self, vhost: &str) -> String {
        let vhost = percent_encoded(vhost);
        if let Some(external) = &self.external {
            return external.url(&vhost);
        }
        let Self {
            executor, password, ..
        } = self;
        format!("amqp://{USER}:{password}@127.0.0.1:{}/{vhost}", executor.port())
    }
}

/// A virtual host of a [`Rabbitmq`] for one test. Dropping the value closes the connections to the
/// virtual host, and deletes it with all its content.
#[derive(Debug)]
pub struct RabbitmqVhost {
    name: String,
    url: String,
    dir: PathBuf,
    external: Option<External>,
}

impl RabbitmqVhost {
    /// The URL: `amqp://guest:PASSWORD@127.0.0.1:PORT/NAME`.
    #[must_use]
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// The name, which is unique on the server.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for RabbitmqVhost {
    fn drop(&mut self) {
        let deleted = match &self.external {
            Some(external) => external::delete(external, &self.name),
            None => ask(&self.dir, &format!("delete {}", self.name), TIDY_WITHIN),
        };
        tidied(&format!("delete the virtual host {}", self.name), deleted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::process::{Command, Stdio};

    /// The variable that names the socket's directory for the test's second process.
    const ASK_IN: &str = "MIRAKURU_UNIT_ASK_IN";

    #[test]
    fn a_process_that_was_stopped_still_reads_the_answer() {
        if let Some(dir) = std::env::var_os(ASK_IN) {
            return ask(Path::new(&dir), "ping", ANSWER_WITHIN).unwrap();
        }
        let dir = std::env::temp_dir().join(format!("mirakuru-unit-{}-ask", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let listener = UnixListener::bind(dir.join("clerk")).unwrap();
        let mut asking = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", std::thread::current().name().unwrap()])
            .env(ASK_IN, &dir)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let (mut socket, _) = listener.accept().unwrap();
        socket.read_exact(&mut [0; 5]).unwrap();
        // Linux interrupts a read with a time limit when the process continues.
        let stop = "for _ in 1 2 3 4 5; do sleep 0.02; kill -STOP $0; sleep 0.02; kill -CONT $0; done";
        let pid = asking.id().to_string();
        let stopped = Command::new("sh").args(["-c", stop, &pid]).status();
        // The write fails if the other process has given up.
        let _ = socket.write_all(b"ok\n");
        drop(socket);
        assert!(asking.wait().unwrap().success());
        assert!(stopped.unwrap().success());
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn dependencies_are_read_from_the_app_file() {
        let app = "{application, a,\n [{vsn,\"1\"},\n  {applications, [kernel, 'stdlib',\n ranch]}]}.";
        assert_eq!(applications(app), ["kernel", "stdlib", "ranch"]);
    }

    #[test]
    fn a_plugin_comes_with_its_dependencies_and_a_missing_one_is_named() {
        let dir = std::env::temp_dir().join(format!("mirakuru-unit-{}-plugins", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        for (name, needs) in [
            ("rabbit", "ranch"),
            ("ranch", "ssl"),
            ("rabbitmq_a", "rabbit, b"),
            ("b", ""),
            ("c", ""),
        ] {
            let ebin = dir.join("plugins").join(format!("{name}-1.0")).join("ebin");
            fs::create_dir_all(&ebin).unwrap();
            fs::write(
                ebin.join(format!("{name}.app")),
                format!("{{applications,[kernel,{needs}]}}"),
            )
            .unwrap();
        }
        fs::create_dir(dir.join("sbin")).unwrap();
        fs::write(dir.join("sbin/rabbitmq-server"), "").unwrap();
        let plugins = Plugins::of(&dir.join("sbin/rabbitmq-server")).unwrap();
        let names = |asked: &[&str]| -> Vec<String> {
            let asked: Vec<String> = asked.iter().map(|name| (*name).to_owned()).collect();
            let found = plugins.needed(&asked).unwrap().into_iter();
            found
                .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
                .collect()
        };
        assert_eq!(names(&[]), ["rabbit-1.0", "ranch-1.0"]);
        assert_eq!(
            names(&["rabbitmq_a"]),
            ["b-1.0", "rabbit-1.0", "rabbitmq_a-1.0", "ranch-1.0"]
        );
        let error = plugins.needed(&["no_such".to_owned()]).unwrap_err().to_string();
        assert!(
            error.contains("no_such") && error.contains("rabbitmq_a"),
            "{error}"
        );
        fs::remove_dir_all(&dir).unwrap();
    }
}
