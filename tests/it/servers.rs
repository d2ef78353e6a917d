//! Tests with real servers: Redis, nginx, PostgreSQL, and Python's http.server. `tests/run`
//! installs them.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::common::{self, LONG, Scratch, alive, ask, descendants, fixed_port, is_root, require, wait_until};
use mirakuru::{
    Banner, Error, Exec, Executor, HttpExecutor, OutputExecutor, PidExecutor, PidFile, Signal, Tcp,
    TcpExecutor, UnixSocket, UnixSocketExecutor,
};

// ---- Redis --------------------------------------------------------------------------------------

#[test]
fn redis_over_tcp_on_a_port_that_was_chosen() {
    if require("redis-server").is_none() {
        return;
    }
    let mut redis: TcpExecutor =
        Executor::builder("redis-server --port {port} --bind 127.0.0.1 --save '' --hz 500")
            .wait_for(Tcp::addr("127.0.0.1:{port}"))
            .timeout(LONG)
            .start()
            .unwrap();
    let address = redis.addr();
    assert_eq!(address.port(), redis.port());
    assert_eq!(ask(address, "PING").unwrap(), "+PONG");
    assert_eq!(ask(address, "SET visits 3").unwrap(), "+OK");

    // After `stopped`, the server has the same port and an empty memory.
    let first = redis.pid();
    redis
        .stopped(|| {
            assert!(std::net::TcpStream::connect(address).is_err());
            assert!(!alive(first));
        })
        .unwrap();
    assert_eq!(redis.addr(), address);
    assert_ne!(redis.pid(), first);
    assert_eq!(ask(address, "EXISTS visits").unwrap(), ":0");

    let pid = redis.pid();
    redis.stop().unwrap();
    assert!(!alive(pid));
    assert!(std::net::TcpStream::connect(address).is_err());
}

#[test]
fn redis_over_tcp_on_a_fixed_port() {
    if require("redis-server").is_none() {
        return;
    }
    let port = fixed_port();
    let mut redis: TcpExecutor = Executor::builder(format!("redis-server --port {port} --save '' --hz 500"))
        .wait_for(Tcp::addr(format!("localhost:{port}")))
        .timeout(LONG)
        .start()
        .unwrap();
    assert_eq!(redis.port(), port);
    assert_eq!(ask(("127.0.0.1", port), "PING").unwrap(), "+PONG");

    // A second server on the port is refused before it starts, and the error names the first one.
    let second = Executor::builder(format!("redis-server --port {port} --save ''"))
        .wait_for(Tcp::port(port))
        .start();
    let error = common::error_of(second);
    assert!(matches!(error, Error::AlreadyRunning { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(&format!("port {port} ")), "{text}");
    // The portable back end cannot see the owner of a port.
    assert!(
        cfg!(mirakuru_portable)
            || (text.contains("redis-server (pid ") && common::names_pid(&text, redis.pid())),
        "{text}"
    );
    redis.stop().unwrap();
}

#[test]
fn redis_over_its_unix_socket() {
    if require("redis-server").is_none() {
        return;
    }
    let mut redis: UnixSocketExecutor =
        Executor::builder("redis-server --port 0 --unixsocket {dir}/redis.sock --save '' --hz 500")
            .wait_for(UnixSocket::path("{dir}/redis.sock"))
            .timeout(LONG)
            .start()
            .unwrap();
    let path = redis.path();
    assert_eq!(path, redis.dir().join("redis.sock"));
    for _ in 0..2 {
        let mut stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
        std::io::Write::write_all(&mut stream, b"PING\r\n").unwrap();
        let mut answer = [0; 7];
        std::io::Read::read_exact(&mut stream, &mut answer).unwrap();
        assert_eq!(&answer, b"+PONG\r\n");
        redis.restart().unwrap();
    }
    redis.stop().unwrap();
    assert!(std::os::unix::net::UnixStream::connect(&path).is_err());
}

// ---- nginx --------------------------------------------------------------------------------------

/// nginx with two workers and a location for each status. Returns its configuration file and its
/// directory as well.
fn nginx(program: &Path) -> (Nginx, PathBuf, Scratch) {
    let scratch = Scratch::new();
    let port = fixed_port();
    let dir = scratch.path().display();
    // If nginx runs as root, its workers run as www-data by default, which may not read the
    // directory.
    let user = if is_root() { "user root;" } else { "" };
    let config = format!(
        "{user}
        daemon off;
        worker_processes 2;
        error_log stderr;
        pid {dir}/nginx.pid;
        events {{ worker_connections 64; }}
        http {{
            access_log {dir}/access.log;
            client_body_temp_path {dir}/body;
            proxy_temp_path {dir}/proxy;
            fastcgi_temp_path {dir}/fastcgi;
            uwsgi_temp_path {dir}/uwsgi;
            scgi_temp_path {dir}/scgi;
            server {{
                listen 127.0.0.1:{port};
                location = /ok {{ return 200 'fine'; }}
                location = /empty {{ return 204; }}
                location = /moved {{ return 301 /ok; }}
                location = /busy {{ return 503; }}
                location / {{ return 404; }}
            }}
        }}"
    );
    let file = scratch.path().join("nginx.conf");
    fs::write(&file, config).unwrap();
    let recipe = Nginx {
        command: vec![
            program.to_str().unwrap().to_owned(),
            "-p".to_owned(),
            dir.to_string(),
            "-c".to_owned(),
            file.to_str().unwrap().to_owned(),
        ],
        port,
        base: format!("http://127.0.0.1:{port}"),
    };
    (recipe, file, scratch)
}

struct Nginx {
    command: Vec<String>,
    port: u16,
    base: String,
}

impl Nginx {
    fn start(&self, readiness: mirakuru::Http, timeout: Duration) -> Result<HttpExecutor, Error> {
        Executor::builder(self.command.clone())
            // SIGQUIT makes nginx shut down gracefully.
            .stop_signal(Signal::Quit)
            .stop_timeout(LONG)
            .wait_for(readiness)
            .timeout(timeout)
            .start()
    }
}

#[test]
fn nginx_over_http_with_status_codes() {
    use mirakuru::Http;
    let Some(program) = require("nginx") else {
        return;
    };
    let (recipe, _, _scratch) = nginx(&program);
    let url = |path: &str| format!("{}{path}", recipe.base);

    // Each of these conditions holds for this nginx, which is started anew for each one.
    let fine = [
        Http::head(url("/ok")),
        Http::get(url("/empty")),
        Http::get(url("/empty")).status(204),
        Http::head(url("/nowhere")).status(404),
        Http::head(url("/nowhere")).status(r"(200|404)"),
        Http::post(url("/ok")).form([("a", "1")]).status(r"2\d\d"),
        // A redirect counts as an answer, and is not followed.
        Http::get(url("/moved")).status(301),
    ];
    for readiness in fine {
        let what = format!("{readiness:?}");
        let mut nginx = recipe
            .start(readiness, LONG)
            .unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(nginx.url().starts_with(&recipe.base), "{}", nginx.url());
        let pid = nginx.pid();
        // One worker may answer before the other one is there.
        let mut workers = Vec::new();
        let both = wait_until(
            || {
                workers = descendants(pid);
                workers.len() == 2
            },
            LONG,
        );
        assert!(both, "{workers:?}");
        nginx.stop().unwrap();
        assert!(!alive(pid));
        assert!(
            workers.iter().all(|&worker| !alive(worker)),
            "workers are left: {workers:?}"
        );
    }

    // None of these conditions ever holds.
    let never = [
        Http::head(url("/busy")),
        Http::head(url("/ok")).status(204),
        Http::head(url("/nowhere")),
        // The pattern must match the whole code.
        Http::head(url("/ok")).status("20"),
        Http::get(url("/moved")),
    ];
    for readiness in never {
        let what = format!("{readiness:?}");
        let error = match recipe.start(readiness, Duration::from_millis(500)) {
            Ok(_) => panic!("{what} counted as ready"),
            Err(error) => error,
        };
        assert!(matches!(error, Error::Timeout { .. }), "{what}: {error}");
        // The bind succeeds only if the master and all workers are gone.
        let left = std::net::TcpListener::bind(("127.0.0.1", recipe.port));
        assert!(left.is_ok(), "nginx is left after an error");
    }
}

#[test]
fn nginx_with_a_mistake_in_its_configuration() {
    let Some(program) = require("nginx") else {
        return;
    };
    let (recipe, config, _scratch) = nginx(&program);
    fs::write(config, "no_such_directive on;\n").unwrap();
    let error = common::error_of(recipe.start(mirakuru::Http::head(format!("{}/ok", recipe.base)), LONG));
    let Error::Exited { status, evidence, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(status.code(), Some(1));
    assert!(
        evidence
            .tail
            .iter()
            .any(|line| line.contains("no_such_directive")),
        "{error}"
    );
}

// ---- PostgreSQL ---------------------------------------------------------------------------------

/// A database cluster in a directory of its own. `postgres` refuses to run as root, so for root it
/// runs as another user.
struct Cluster {
    bin: PathBuf,
    scratch: Scratch,
    owner: Option<(u32, u32)>,
}

impl Cluster {
    fn new() -> Option<Cluster> {
        let bin = require("initdb")?.canonicalize().ok()?.parent()?.to_owned();
        let scratch = Scratch::new();
        let owner = is_root().then(|| {
            user("postgres")
                .or_else(|| user("nobody"))
                .expect("an ordinary user")
        });
        let mut initdb = Command::new(bin.join("initdb"));
        initdb
            .args(["--no-sync", "--auth=trust", "--username=postgres", "-D"])
            .arg(scratch.path().join("data"))
            .current_dir("/");
        if let Some((uid, gid)) = owner {
            chown(scratch.path(), Some(uid), Some(gid)).unwrap();
            initdb.uid(uid).gid(gid);
        }
        let output = initdb.output().unwrap();
        assert!(
            output.status.success(),
            "initdb: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Some(Cluster { bin, scratch, owner })
    }

    fn data(&self) -> String {
        self.scratch.file("data")
    }

    fn recipe(&self) -> mirakuru::ExecutorBuilder {
        let mut recipe = Executor::builder([self.bin.join("postgres")])
            .args(["-D", &self.data(), "-p", "{port}", "-F"])
            .args(["-c", "listen_addresses=127.0.0.1", "-k"])
            .arg(self.scratch.path())
            .current_dir("/")
            // SIGINT is PostgreSQL's fast shutdown.
            .stop_signal(Signal::Int)
            .timeout(LONG);
        if let Some((uid, gid)) = self.owner {
            recipe = recipe.uid(uid).gid(gid);
        }
        recipe
    }

    /// The answer of `psql` to a query, or its error message.
    fn query(&self, port: u16, sql: &str) -> Result<String, String> {
        let output = Command::new(self.bin.join("psql"))
            .args([
                "-h",
                "127.0.0.1",
                "-U",
                "postgres",
                "-At",
                "-p",
                &port.to_string(),
                "-c",
                sql,
            ])
            .current_dir("/")
            .output()
            .unwrap();
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }
}

/// A user's uid and gid, from /etc/passwd.
fn user(name: &str) -> Option<(u32, u32)> {
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next()? != name {
            return None;
        }
        let uid = fields.nth(1)?.parse().ok()?;
        Some((uid, fields.next()?.parse().ok()?))
    })
}

#[test]
fn postgres_by_its_banner() {
    let Some(cluster) = Cluster::new() else { return };
    let mut postgres: OutputExecutor = cluster
        .recipe()
        .wait_for(Banner::matching("database system is ready to accept connections").stderr())
        .start()
        .unwrap();
    let port = postgres.port();
    // PostgreSQL prints the banner when it accepts sessions, and may accept connections earlier.
    assert_eq!(cluster.query(port, "select 6 * 7").unwrap(), "42");
    cluster.query(port, "create table visits (n int)").unwrap();

    let helpers = descendants(postgres.pid());
    assert!(helpers.len() >= 3, "{helpers:?}");
    postgres
        .stopped(|| {
            assert!(
                helpers.iter().all(|&pid| !alive(pid)),
                "helpers are left: {helpers:?}"
            )
        })
        .unwrap();
    assert_eq!(postgres.port(), port);
    assert_eq!(cluster.query(port, "select count(*) from visits").unwrap(), "0");
    let pid = postgres.pid();
    postgres.stop().unwrap();
    assert!(!alive(pid));
    assert!(postgres.logs().stderr().contains("database system is shut down"));
}

#[test]
fn postgres_by_its_pid_file_and_by_pg_isready() {
    let Some(cluster) = Cluster::new() else { return };
    let file = format!("{}/postmaster.pid", cluster.data());
    let mut postgres: PidExecutor = cluster
        .recipe()
        .wait_for(PidFile::path(file.as_str()))
        .start()
        .unwrap();
    assert_eq!(postgres.path(), Path::new(&file));
    // PostgreSQL creates the file before it writes the pid into it.
    let pid = postgres.pid().to_string();
    let first_line = || {
        fs::read_to_string(&file)
            .ok()
            .and_then(|text| text.lines().next().map(str::to_owned))
    };
    assert!(
        wait_until(|| first_line().as_deref() == Some(&pid), LONG),
        "{:?}",
        first_line()
    );

    // PostgreSQL creates the file before it accepts sessions, so the test also waits for
    // `pg_isready`.
    let isready = cluster.bin.join("pg_isready");
    let ready = format!("{} -q -h 127.0.0.1 -p {{port}}", isready.display());
    postgres.wait_until(Exec::succeeds(ready), LONG).unwrap();
    assert_eq!(cluster.query(postgres.port(), "select 1").unwrap(), "1");
    postgres.stop().unwrap();
    assert!(
        wait_until(|| !Path::new(&file).exists(), LONG),
        "postgres removes its pid file"
    );
}

/// PostgreSQL logs each connection that opens no session. The condition `Tcp` must make no
/// connection.
#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end cannot find a listener without a connection"
)]
fn postgresql_sees_no_connection_of_a_probe() {
    let Some(bin) =
        require("initdb").and_then(|initdb| Some(initdb.canonicalize().ok()?.parent()?.to_owned()))
    else {
        return;
    };
    let scratch = Scratch::new();
    let data = scratch.file("data");
    let owner = is_root().then(|| postgres_user().expect("the user of the package"));
    let as_owner = |command: &mut Command| {
        if let Some((uid, gid)) = owner {
            command.uid(uid).gid(gid);
        }
    };
    if let Some((uid, gid)) = owner {
        chown(scratch.path(), Some(uid), Some(gid)).unwrap();
    }
    let mut initdb = Command::new(bin.join("initdb"));
    initdb
        .args(["--no-sync", "--auth=trust", "--username=postgres", "-D", &data])
        .current_dir("/");
    as_owner(&mut initdb);
    let output = initdb.output().unwrap();
    common::assert_success(&output);
    let mut recipe = Executor::builder([bin.join("postgres")])
        .args(["-D", &data, "-p", "{port}", "-F", "-k"])
        .arg(scratch.path())
        .args(["-c", "listen_addresses=127.0.0.1", "-c", "log_connections=on"])
        .current_dir("/")
        .stop_signal(mirakuru::Signal::Int)
        .timeout(LONG);
    if let Some((uid, gid)) = owner {
        recipe = recipe.uid(uid).gid(gid);
    }
    let mut postgres = recipe.wait_for(Tcp::addr("127.0.0.1:{port}")).start().unwrap();
    // The server is certainly up during these polls, which must not connect to it.
    for _ in 0..20 {
        postgres.wait_until(Tcp::addr("127.0.0.1:{port}"), LONG).unwrap();
    }
    postgres
        .wait_until(Banner::matching("ready to accept connections"), LONG)
        .unwrap();
    let connected =
        |text: &str| text.contains("connection received") || text.contains("incomplete startup packet");
    assert!(!connected(&postgres.logs().to_string()), "{}", postgres.logs());
    // This connection proves that PostgreSQL logs connections.
    drop(TcpStream::connect(postgres.addr()).unwrap());
    assert!(
        wait_until(|| connected(&postgres.logs().to_string()), LONG),
        "{}",
        postgres.logs()
    );
    postgres.stop().unwrap();
}

fn postgres_user() -> Option<(u32, u32)> {
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    let line = passwd.lines().find(|line| line.starts_with("postgres:"))?;
    let mut fields = line.split(':').skip(2);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

// ---- Python -------------------------------------------------------------------------------------

#[test]
fn the_http_server_of_python() {
    if require("python3").is_none() {
        return;
    }
    let mut server: HttpExecutor = Executor::builder("python3 -m http.server {port} --bind 127.0.0.1")
        .current_dir("{dir}")
        .wait_for(mirakuru::Http::get("http://127.0.0.1:{port}/"))
        .timeout(LONG)
        .start()
        .unwrap();
    assert_eq!(server.url(), format!("http://127.0.0.1:{}/", server.port()));
    fs::write(server.dir().join("hello.txt"), "hello").unwrap();
    let answer = ask(server.addr(), "GET /hello.txt HTTP/1.0\r\n").unwrap();
    assert!(answer.contains("200"), "{answer}");
    let pid = server.pid();
    server.stop().unwrap();
    assert!(!alive(pid));
}
