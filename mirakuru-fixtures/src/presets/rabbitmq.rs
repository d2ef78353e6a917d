//! RabbitMQ.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mirakuru_core::__private::random_id;
use mirakuru_core::{Error, Executor, ExecutorBuilder};

use super::{
    ANSWER_WITHIN, Answers, Connection, Options, expect, failed, handle, options, percent_encoded,
    unique_name, write_secret,
};
use crate::Recipe;

/// The only user, with a password of its own for each server.
const USER: &str = "guest";

/// The server's own script. What packages have on PATH is another one around it, for root and the
/// user `rabbitmq` alone.
const SCRIPTS: [&str; 1] = ["/usr/lib/rabbitmq/bin/rabbitmq-server"];

/// What of the environment would be taken for this server's configuration.
const NOT_INHERITED: [&str; 17] = [
    "ERL_FLAGS",
    "ERL_LIBS",
    "ERL_ZFLAGS",
    "NOTIFY_SOCKET",
    "RABBITMQ_CONFIG_FILES",
    "RABBITMQ_DEFAULT_PASS",
    "RABBITMQ_DEFAULT_USER",
    "RABBITMQ_DEFAULT_VHOST",
    "RABBITMQ_DIST_PORT",
    "RABBITMQ_FEATURE_FLAGS",
    "RABBITMQ_NODE_IP_ADDRESS",
    "RABBITMQ_NODE_PORT",
    "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
    "RABBITMQ_SERVER_ERL_ARGS",
    "RABBITMQ_SERVER_START_ARGS",
    "RABBITMQ_USE_LONGNAME",
    "RABBITMQ_PLUGINS_DIR",
];

/// What the server does for the handles, in its own language: it waits at a socket in its private
/// directory for lines that say which virtual host to add or to delete. Started at the end of its
/// boot. The functions are those that `rabbitmqctl` calls, which needs seconds for it; the
/// management plugin would make each start and stop longer by as much. It also ends what would look
/// after `epmd` each minute, and start it: see the command.
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

/// Run before the boot. To find its boot steps RabbitMQ loads every module of every application
/// that it depends on, and Erlang compiles each. There are none in Erlang's own libraries, so these
/// have no list of their modules here, and a third less is computed.
const PRELUDE: &str = r#"
[case file:consult(code:where_is_file(atom_to_list(App) ++ ".app")) of
     {ok, [{application, App, Keys}]} ->
         application:load({application, App, lists:keystore(modules, 1, Keys, {modules, []})});
     _ ->
         ok
 end || App <- [asn1, compiler, crypto, inets, mnesia, os_mon, public_key, runtime_tools, ssl, syntax_tools, tools, xmerl]].
"#;

/// How long a start may take by default. It is ready after 4 s where it has two processors to
/// itself, and after 30 s where it has to share them with ten others.
const READY_WITHIN: Duration = Duration::from_secs(180);

/// A RabbitMQ: see [`Rabbitmq`]. The default of [`timeout`](RabbitmqRecipe::timeout) is 180 s here.
pub fn rabbitmq() -> RabbitmqRecipe {
    RabbitmqRecipe {
        options: Options::default(),
        config: Vec::new(),
        plugins: Vec::new(),
    }
}

/// How to start a RabbitMQ: made by [`rabbitmq()`].
#[derive(Clone, Debug)]
#[must_use = "a recipe does nothing until it is started"]
pub struct RabbitmqRecipe {
    options: Options,
    config: Vec<(String, String)>,
    plugins: Vec<String>,
}

options!(RabbitmqRecipe);

impl RabbitmqRecipe {
    /// Sets a key of its `rabbitmq.conf`, over those that the preset sets:
    /// `config("channel_max", "128")`.
    pub fn config(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.config.push((key.into(), value.into()));
        self
    }

    /// Enables a plugin that is installed: `plugin("rabbitmq_consistent_hash_exchange")`. Those
    /// that listen want a port of their own, or they take their standard ones: with
    /// `plugin("rabbitmq_management")` goes `config("management.tcp.ip",
    /// "127.0.0.1").config("management.tcp.port",
    /// "{port:management}")`, and the handle's [`port_named("management")`](Executor::port_named)
    /// knows the number. The default is none.
    pub fn plugin(mut self, name: impl Into<String>) -> Self {
        self.plugins.push(name.into());
        self
    }
}

// Not in the list of recipes that an error gives: it is long enough.
#[diagnostic::do_not_recommend]
impl Recipe for RabbitmqRecipe {
    type Readiness = Answers;
    type Handle = Rabbitmq;

    fn executor(&self) -> Result<ExecutorBuilder<Answers>, Error> {
        let mut options = self.options.clone();
        if options.program.is_none() {
            options.program = SCRIPTS.iter().map(PathBuf::from).find(|path| path.is_file());
        }
        let settings = [
            ("listeners.tcp.1", format!("127.0.0.1:{}", options.port())),
            ("log.console", "true".to_owned()),
            // It blocks those who publish when the disk has less: 50 MB by default.
            ("disk_free_limit.absolute", "1MB".to_owned()),
        ];
        let given = self
            .config
            .iter()
            .map(|(key, value)| (key.as_str(), value.clone()));
        let settings: Vec<(&str, String)> = settings.into_iter().chain(given).collect();
        let mut conf = String::new();
        for (number, (key, value)) in settings.iter().enumerate() {
            // The last of those with the same key.
            if !settings[number + 1..].iter().any(|(later, _)| later == key) {
                conf.push_str(&format!("{key} = {value}\n"));
            }
        }
        options.timeout = options.timeout.or(Some(READY_WITHIN));
        let mut recipe = options
            .executor(&["rabbitmq-server"])
            .current_dir("{dir}")
            .file("rabbitmq.conf", conf)
            .file("enabled_plugins", format!("[{}].\n", self.plugins.join(", ")))
            .file("prelude.erl", PRELUDE)
            .file("clerk.erl", CLERK)
            // What of it is in files of the machine, or of its user, is not for this server.
            .env("HOME", "{dir}")
            .env("RABBITMQ_CONF_ENV_FILE", "{dir}/rabbitmq-env.conf")
            .env("RABBITMQ_CONFIG_FILE", "{dir}/rabbitmq.conf")
            .env("RABBITMQ_ADVANCED_CONFIG_FILE", "{dir}/advanced.config")
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", "{dir}/enabled_plugins")
            .env("RABBITMQ_MNESIA_BASE", "{dir}/data")
            .env("RABBITMQ_GENERATED_CONFIG_DIR", "{dir}/config")
            .env("RABBITMQ_LOG_BASE", "{dir}/log")
            .env("RABBITMQ_LOGS", "-")
            .env("RABBITMQ_PID_FILE", "{dir}/pid")
            .env("RABBITMQ_NODENAME", NODE)
            // The script becomes the server then, instead of waiting for it to tell it about
            // signals.
            .env("RUNNING_UNDER_SYSTEMD", "true");
        for variable in NOT_INHERITED {
            recipe = recipe.env_remove(variable);
        }
        // Erlang takes these before the command line, and the backslashes away.
        recipe = recipe.env("ERL_AFLAGS", r#"-eval file:eval(\"prelude.erl\")"#);
        // Erlang's part of it. Its name service, `epmd`, is one for the whole machine and outlives
        // who starts it, and RabbitMQ would start it by a virtual machine of its own. A node that
        // has its name from the command line is left alone, and one that is told its port needs no
        // name service. Should one be started after all, it is at a port of its own, and ends with
        // the server.
        recipe = recipe
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("ERL_EPMD_PORT", "{port:epmd}");
        recipe = recipe.args([
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
        ]);
        Ok(recipe
            .args(&options.args)
            // Before Erlang has printed what it thinks of that, at length.
            .fail_on("^Error during startup:")
            .fail_on("eaddrinuse")
            .unprivileged(["rabbitmq", "nobody"])
            .wait_for(options.answers_in("answered as AMQP 0-9-1", |connection, dir| {
                // The clerk is there at the end of the boot. Last, because of each that is closed
                // then there is a warning in the logs.
                Ok(ask(dir, "ping").is_ok() && speaks_amqp(connection)?)
            })))
    }

    fn prepare(&self, executor: &mut Executor<Answers>) -> Result<(), Error> {
        let dir = executor.dir();
        let secret = random_id().map_err(|source| failed("make a password", source))?;
        // Read when it has no data yet.
        let config = format!(
            "[{{rabbit, [{{default_user, <<\"{USER}\">>}}, {{default_pass, <<\"{secret}\">>}}]}}].\n"
        );
        for (name, text) in [("password", &secret), ("advanced.config", &config)] {
            write_secret(&dir, name, text)
                .map_err(|source| failed(format!("write {}", dir.join(name).display()), source))?;
        }
        Ok(())
    }

    fn handle(self, executor: Executor<Answers>) -> Result<Rabbitmq, Error> {
        let path = executor.dir().join("password");
        let password =
            fs::read_to_string(&path).map_err(|source| failed(format!("read {}", path.display()), source))?;
        Ok(Rabbitmq { executor, password })
    }
}

/// Each server's name: there is no name service that would know two of them.
const NODE: &str = "rabbit@localhost";

/// Whether the server answers a client's protocol header with the method `connection.start`.
fn speaks_amqp(mut connection: Connection) -> io::Result<bool> {
    connection.send(b"AMQP\x00\x00\x09\x01")?;
    // A method frame, channel 0, four bytes of length, class 10, method 10.
    let mut start = [0; 11];
    connection.0.read_exact(&mut start)?;
    Ok(start[..3] == [1, 0, 0] && start[7..] == [0, 10, 0, 10])
}

/// Asks the clerk for something: see [`CLERK`].
fn ask(dir: &Path, request: &str) -> io::Result<()> {
    let mut socket = UnixStream::connect(dir.join("clerk"))?;
    socket.set_read_timeout(Some(ANSWER_WITHIN))?;
    socket.set_write_timeout(Some(ANSWER_WITHIN))?;
    socket.write_all(format!("{request}\n").as_bytes())?;
    let mut answer = String::new();
    BufReader::new(socket).read_line(&mut answer)?;
    match answer.trim_end() {
        "ok" => Ok(()),
        "" => Err(io::ErrorKind::UnexpectedEof.into()),
        answer => Err(io::Error::other(answer.to_owned())),
    }
}

/// A running RabbitMQ.
///
/// [`vhost`](Rabbitmq::vhost) gives each test a virtual host of its own, with exchanges, queues,
/// bindings and policies that nobody else sees. What all of them share is what belongs to no
/// virtual host: users, the limits and alarms of the whole server, and plugins.
///
/// Its Erlang is alone: it is part of no cluster, and `rabbitmqctl` does not find it. It is the
/// slowest of the presets, with several seconds of computing until it is up, so share one: a
/// `static`, with a virtual host for each test. There is no `durable(..)`: RabbitMQ writes
/// persistent messages to the disk, and has no switch for it.
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
    password: String,
}

handle!(Rabbitmq);

impl Rabbitmq {
    /// The URL of the virtual host `/`, everybody's: `amqp://guest:PASSWORD@127.0.0.1:PORT/%2F`.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_of("/")
    }

    /// The user, who may do everything: `guest`.
    #[must_use]
    pub fn user(&self) -> &'static str {
        USER
    }

    /// The user's password: another one for each server.
    #[must_use]
    pub fn password(&self) -> &str {
        &self.password
    }

    /// A virtual host for one test alone, in which the [user](Rabbitmq::user) may do everything,
    /// until it is dropped. Where the test process is killed, it goes with the server.
    ///
    /// # Panics
    ///
    /// When it cannot be made: see [`try_vhost`](Rabbitmq::try_vhost).
    #[must_use]
    #[track_caller]
    pub fn vhost(&self) -> RabbitmqVhost {
        expect(self.try_vhost())
    }

    /// The same, for those who want the error.
    ///
    /// # Errors
    ///
    /// [`Error::System`] when the server does not answer.
    pub fn try_vhost(&self) -> Result<RabbitmqVhost, Error> {
        let attempt = "make a virtual host of RabbitMQ";
        let name = unique_name()?;
        let dir = self.executor.dir();
        ask(&dir, &format!("add {name}")).map_err(|source| failed(attempt, source))?;
        Ok(RabbitmqVhost {
            url: self.url_of(&name),
            name,
            dir,
        })
    }

    fn url_of(&self, vhost: &str) -> String {
        let Self { executor, password } = self;
        let vhost = percent_encoded(vhost);
        format!("amqp://{USER}:{password}@127.0.0.1:{}/{vhost}", executor.port())
    }
}

/// One virtual host of a [`Rabbitmq`], made for a test. Deleted with all that is in it when this is
/// dropped, and connections to it are closed.
#[derive(Debug)]
pub struct RabbitmqVhost {
    name: String,
    url: String,
    dir: PathBuf,
}

impl RabbitmqVhost {
    /// Its URL: `amqp://guest:PASSWORD@127.0.0.1:PORT/NAME`.
    #[must_use]
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// Its name, which no other virtual host of the server has.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for RabbitmqVhost {
    fn drop(&mut self) {
        // A server that is gone has nothing left.
        let _ = ask(&self.dir, &format!("delete {}", self.name));
    }
}
