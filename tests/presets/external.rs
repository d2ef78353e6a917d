//! Tests external servers (`MIRAKURU_*_URL`): presets use them, and leave them as they were. This
//! file is long because all servers have the same tests, which share helpers.
//!
//! Each test starts a server by hand, and a child of this binary uses the server. The child's tests
//! are `#[ignore]`d, so that only the child runs them.

mod kinds;
mod parts;

use std::env;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crate::common::{child, in_a_child, is_child, own_server, test_name, within};
use mirakuru::presets::{self, Mariadb, Postgres, Redis};
use mirakuru::{Banner, Error, Executor, ExecutorBuilder, Readiness, Recipe, Signal, Tcp, TcpExecutor};
use mysql::prelude::Queryable;
use redis::Commands;

/// A server that was started by hand, and the child that uses it.
struct Subject<'a> {
    variable: &'static str,
    url: String,
    /// The whole content of the server, as text.
    dump: &'a dyn Fn() -> String,
    /// Name of the test that creates objects on the server until it is killed.
    busy: &'static str,
}

impl Subject<'_> {
    /// Runs a test in a child. Panics unless the test passes and leaves the server as it was.
    #[track_caller]
    fn passes(&self, test: &str) {
        self.passes_and_leaves(test, &(self.dump)());
    }

    #[track_caller]
    fn passes_and_leaves(&self, test: &str, before: &str) {
        let output = in_a_child(test, &[(self.variable, &self.url), ("MIRAKURU_SCOPE", "process")]);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains(" 1 passed"),
            "{text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!((self.dump)(), before);
    }

    /// Kills a child at random moments. Panics unless the server is as it was after each kill.
    #[track_caller]
    fn is_as_it_was_after_kills(&self) {
        let rounds = env::var("MIRAKURU_KILL_ROUNDS")
            .ok()
            .and_then(|text| text.parse().ok());
        let before = (self.dump)();
        for round in 0..rounds.unwrap_or(4) {
            let moment = Duration::from_millis(random() % 1_000);
            let mut child = Busy::start(self);
            // A random pause, so that the kill may hit any moment of the test.
            thread::sleep(moment);
            // Without its supervisors, a child leaves the clean-up to the next run.
            match round % 4 {
                3 => child.kill_with_supervisors(),
                _ => child.kill(),
            }
            if round % 4 == 3 {
                self.passes_and_leaves(self.busy, &before);
            }
            let is_clean = within(Duration::from_secs(30), || (self.dump)() == before);
            assert!(
                is_clean,
                "round {round}, {moment:?}:\n{}\n\nbefore:\n{before}",
                (self.dump)()
            );
        }
    }
}

/// The process of a child that creates objects on the server.
struct Busy(Child);

impl Busy {
    fn start(subject: &Subject<'_>) -> Busy {
        let mut command = child(&[], subject.busy);
        command
            .env("MIRAKURU_TEST_BUSY", "1")
            .env(subject.variable, &subject.url)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        Busy(command.spawn().unwrap())
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Kills the child and its supervisors, all at once.
    fn kill_with_supervisors(&mut self) {
        let mut all = vec![self.0.id()];
        // A stopped process cannot fork, so the list of children is complete.
        let mut at = 0;
        while let Some(pid) = all.get(at).copied() {
            signal("STOP", pid);
            all.extend(children(pid));
            at += 1;
        }
        all.iter().rev().for_each(|pid| signal("KILL", *pid));
        self.0.wait().unwrap();
    }
}

fn signal(name: &str, pid: u32) {
    let _ = Command::new("kill")
        .args([&format!("-{name}"), &pid.to_string()])
        .stderr(Stdio::null())
        .status();
}

fn children(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| {
            list.split(' ')
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<_>>()
        })
        .collect()
}

fn random() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap().subsec_nanos().into()
}

/// Whether this child creates objects until it is killed.
fn goes_on() -> bool {
    env::var_os("MIRAKURU_TEST_BUSY").is_some()
}

#[track_caller]
fn assert_is_not_ours<T>(result: Result<T, Error>, variable: &str) {
    let error = result.err().expect("an error").to_string();
    assert!(
        error.contains(&format!("the server is the external one at {variable}")),
        "{error}"
    );
}

/// Calls each method that would change the server. Panics unless each returns an error.
#[track_caller]
fn assert_verbs_are_errors<R: Readiness + Clone>(server: &mut Executor<R>, variable: &str) {
    let same = |recipe: ExecutorBuilder<R>| recipe;
    for result in [
        server.stop(),
        server.kill(),
        server.restart(),
        server.restart_with(same),
        server.stopped(|| ()),
        server.pause(),
        server.resume(),
        server.signal(Signal::Hup),
    ] {
        assert_is_not_ours(result, variable);
    }
    // mirakuru cannot see the server's output, so a wait for a line fails at once.
    let (mark, begun) = (server.mark(), Instant::now());
    let limit = Duration::from_secs(60);
    assert_is_not_ours(server.wait_for_line(&mark, "ready", limit).map(drop), variable);
    assert_is_not_ours(server.wait_until(Banner::matching("ready"), limit), variable);
    assert!(begun.elapsed() < limit / 2, "{:?}", begun.elapsed());
    assert!(server.is_running());
    assert!(server.logs().to_string().contains(variable), "{}", server.logs());
}

/// Runs a test that prints an error. Panics unless the error has `part` and the variable, but no
/// password.
#[track_caller]
fn assert_says_why(test: &str, variable: &str, url: &str, part: &str) {
    let output = in_a_child(test, &[(variable, url)]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains(part) && text.contains(variable), "{url}: {text}");
    for secret in ["secret", "p@ss", "p%40ss"] {
        assert!(!text.contains(secret), "{text}");
    }
}

/// Runs a program until it succeeds, for at most 10 s. Returns its output.
fn output_of(command: &mut Command) -> String {
    let mut output = command.output().unwrap();
    // The program fails if a test drops an object that the program reads.
    within(Duration::from_secs(10), || {
        if !output.status.success() {
            output = command.output().unwrap();
        }
        output.status.success()
    });
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

// ---- Redis --------------------------------------------------------------------------------------

fn redis_by_hand(settings: &str) -> TcpExecutor {
    let command = format!("redis-server --port {{port}} --bind 127.0.0.1 --dir {{dir}} --save '' {settings}");
    Executor::builder(command)
        .wait_for(Tcp::addr("127.0.0.1:{port}"))
        .start()
        .unwrap()
}

fn client(url: &str) -> redis::Connection {
    redis::Client::open(url).unwrap().get_connection().unwrap()
}

/// All keys and values of all databases.
fn redis_dump(url: &str) -> String {
    let dump = || -> redis::RedisResult<String> {
        let mut client = redis::Client::open(url)?.get_connection()?;
        let mut text = String::new();
        let mut number = 0;
        while redis::cmd("SELECT").arg(number).query::<()>(&mut client).is_ok() {
            let mut keys: Vec<String> = client.keys("*")?;
            keys.sort();
            for key in keys {
                let value: redis::Value = redis::cmd("DUMP").arg(&key).query(&mut client)?;
                text.push_str(&format!("{number} {key} {value:?}\n"));
            }
            number += 1;
        }
        // Fail if the loop ended because of a lost connection, not after the last database.
        redis::cmd("PING").query::<()>(&mut client)?;
        Ok(text)
    };
    // The end of a lease disconnects the clients of its database, so try again.
    let mut text = dump();
    within(Duration::from_secs(10), || {
        if text.is_err() {
            text = dump();
        }
        text.is_ok()
    });
    text.unwrap()
}

#[test]
fn a_redis_that_is_there_is_used_and_left_as_it_was() {
    let server = redis_by_hand("--requirepass p@ss");
    let url = format!("redis://:p%40ss@localhost:{}/2", server.port());
    for database in [0, 2, 3, 7] {
        let mut client = client(&format!("redis://:p%40ss@{}/{database}", server.addr()));
        client.set::<_, _, ()>("theirs", database).unwrap();
    }
    let dump = || redis_dump(&url);
    let subject = Subject {
        variable: "MIRAKURU_REDIS_URL",
        url: url.clone(),
        dump: &dump,
        busy: test_name!(redis_is_busy),
    };
    subject.passes(test_name!(redis_gives_each_test_a_database));
    subject.passes(test_name!(redis_verbs_are_errors));
    subject.is_as_it_was_after_kills();
    // Two processes lease eight databases each, but only eleven are free.
    thread::scope(|scope| {
        let runs = [(); 2].map(|()| {
            scope.spawn(|| {
                in_a_child(
                    test_name!(redis_leases_meet_nobody),
                    &[(subject.variable, &*url), ("MIRAKURU_SCOPE", "process")],
                )
            })
        });
        for run in runs {
            let output = run.join().unwrap();
            assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stdout)
            );
        }
    });
}

#[mirakuru::fixture(presets::redis())]
static REDIS: Redis;

#[test]
#[ignore = "a child of another test"]
fn redis_gives_each_test_a_database() {
    if !is_child() {
        return;
    }
    assert_eq!(REDIS.host(), "localhost");
    assert_eq!(REDIS.password(), Some("p@ss"));
    assert_eq!(REDIS.url(), env::var("MIRAKURU_REDIS_URL").unwrap());
    assert_eq!(REDIS.port(), REDIS.addr().port());
    let shared: u32 = client(&REDIS.url()).get("theirs").unwrap();
    assert_eq!(shared, 2);
    let databases: Vec<_> = (0..8).map(|_| REDIS.database()).collect();
    for database in &databases {
        assert!(![0, 2, 3, 7].contains(&database.number()), "{database:?}");
        let mut client = client(&database.url());
        assert_eq!(client.incr::<_, _, u32>("visits", 1).unwrap(), 1);
    }
    let mut numbers: Vec<u32> = databases.iter().map(|database| database.number()).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), databases.len());
    let logs = REDIS.logs().to_string();
    assert!(logs.contains("MIRAKURU_REDIS_URL"), "{logs}");
    assert!(!format!("{:?} {logs}", *REDIS).contains("p%40ss"), "{:?}", *REDIS);
}

#[test]
#[ignore = "a child of another test"]
fn redis_verbs_are_errors() {
    if !is_child() {
        return;
    }
    let mut server = presets::redis().start().unwrap();
    assert_verbs_are_errors(&mut server, "MIRAKURU_REDIS_URL");
    assert_is_not_ours(
        presets::redis().config("maxmemory", "16mb").start(),
        "MIRAKURU_REDIS_URL",
    );
    assert_is_not_ours(presets::redis().port(1).start(), "MIRAKURU_REDIS_URL");
    assert!(client(&server.database().url()).ping::<String>().is_ok());
}

#[test]
#[ignore = "a child of another test"]
fn redis_leases_meet_nobody() {
    if !is_child() {
        return;
    }
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..10 {
                    let database = REDIS.database();
                    let mut client = client(&database.url());
                    assert_eq!(client.incr::<_, _, u32>("visits", 1).unwrap(), 1);
                }
            });
        }
    });
}

#[test]
#[ignore = "a child of another test"]
fn redis_is_busy() {
    if !is_child() {
        return;
    }
    let server = presets::redis().start().unwrap();
    loop {
        let databases = [server.database(), server.database()];
        for database in &databases {
            let mut client = client(&database.url());
            (0..20).for_each(|key| client.set::<_, _, ()>(key, key).unwrap());
        }
        if !goes_on() {
            break;
        }
    }
}

#[test]
fn a_redis_that_cannot_be_used_is_an_error_that_names_the_variable() {
    let server = redis_by_hand("--requirepass p@ss --databases 2");
    let port = server.port();
    let limited = redis_by_hand("--user limited on >secret ~* +@all -eval");
    for (url, part) in [
        (
            format!("http://:secret@127.0.0.1:{port}/"),
            "begin with `redis://`",
        ),
        (format!("redis://:secret@127.0.0.1:{port}/"), "WRONGPASS"),
        (format!("redis://127.0.0.1:{port}/"), "NOAUTH"),
        (format!("redis://:p%40ss@127.0.0.1:{port}/9"), "out of range"),
        (
            format!("redis://:p%40ss@127.0.0.1:{port}/x"),
            "number of a database",
        ),
        (
            "redis://:secret@no-such-host.invalid/".to_owned(),
            "no-such-host.invalid",
        ),
        ("redis://:secret@127.0.0.1:1/".to_owned(), "refused"),
        (
            format!("redis://limited:secret@127.0.0.1:{}/", limited.port()),
            "'eval'",
        ),
    ] {
        assert_says_why(test_name!(redis_says_why), "MIRAKURU_REDIS_URL", &url, part);
    }
}

// ---- PostgreSQL ---------------------------------------------------------------------------------

/// Starts a server that checks the passwords of different users in different ways.
fn postgres_by_hand() -> Postgres {
    let rules = "local all all trust\n\
                 host all by_md5 127.0.0.1/32 md5\n\
                 host all by_scram 127.0.0.1/32 scram-sha-256\n\
                 host all all 127.0.0.1/32 password\n";
    let server = presets::postgres()
        .file("hba.conf", rules)
        .config("hba_file", "{dir}/hba.conf")
        .start()
        .unwrap();
    let mut client = postgres::Client::connect(&server.url(), postgres::NoTls).unwrap();
    client
        .batch_execute(
            "SET password_encryption = 'md5'; CREATE ROLE by_md5 LOGIN CREATEDB PASSWORD 'p@ss';
             SET password_encryption = 'scram-sha-256'; CREATE ROLE by_scram LOGIN CREATEDB PASSWORD 'p@ss';
             CREATE ROLE limited LOGIN PASSWORD 'p@ss';
             CREATE TABLE theirs (who TEXT); INSERT INTO theirs VALUES ('they')",
        )
        .unwrap();
    client.batch_execute("CREATE DATABASE mk_theirs").unwrap();
    server
}

/// Everything on the server, as text.
fn postgres_dump(server: &Postgres) -> String {
    let client = |program: &str| {
        let mut command = Command::new(program);
        command
            .args(["--host", "127.0.0.1", "--username", "postgres", "--port"])
            .arg(server.port().to_string())
            .env("PGPASSWORD", server.password());
        command
    };
    let names = output_of(client("psql").args(["-Atc", "SELECT datname FROM pg_database ORDER BY 1"]));
    let dump = output_of(&mut client("pg_dumpall"));
    // These lines have a random key in each dump.
    let lines = dump
        .lines()
        .filter(|line| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict"));
    names + &lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn a_postgres_that_is_there_is_used_and_left_as_it_was() {
    if !own_server("postgres") {
        return;
    }
    let server = postgres_by_hand();
    let dump = || postgres_dump(&server);
    let subject = |user: &str| Subject {
        variable: "MIRAKURU_POSTGRES_URL",
        url: format!(
            "postgresql://{user}@localhost:{}/postgres?connect_timeout=10",
            server.port()
        ),
        dump: &dump,
        busy: test_name!(postgres_is_busy),
    };
    let everything = format!("postgres:{}", server.password());
    for user in ["by_md5:p%40ss", "by_scram:p%40ss", &everything] {
        subject(user).passes(test_name!(postgres_gives_each_test_a_database));
    }
    subject(&everything).passes(test_name!(postgres_copies_settings));
    subject("by_scram:p%40ss").is_as_it_was_after_kills();
}

fn fill(url: &str) -> Result<(), postgres::Error> {
    let mut client = postgres::Client::connect(url, postgres::NoTls)?;
    client.batch_execute("INSERT INTO visits VALUES ('seeded')")
}

#[mirakuru::fixture(presets::postgres().load_sql("CREATE TABLE visits (who TEXT)").seed("one", fill))]
static POSTGRES: Postgres;

#[test]
#[ignore = "a child of another test"]
fn postgres_gives_each_test_a_database() {
    if !is_child() {
        return;
    }
    let given = env::var("MIRAKURU_POSTGRES_URL").unwrap();
    assert_eq!(POSTGRES.host(), "localhost");
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let database = POSTGRES.database();
                let mut client = postgres::Client::connect(&database.url(), postgres::NoTls).unwrap();
                let row = client.query_one("SELECT count(*) FROM visits", &[]).unwrap();
                assert_eq!(row.get::<_, i64>(0), 1);
                client.execute("INSERT INTO visits VALUES ('test')", &[]).unwrap();
            });
        }
    });
    // `url()` leads to the run's own database with the same content, not to the database in the
    // variable.
    assert_eq!(
        POSTGRES.url().split_once("/mk").unwrap().0,
        given.rsplit_once('/').unwrap().0
    );
    let mut client = postgres::Client::connect(&POSTGRES.url(), postgres::NoTls).unwrap();
    let row = client.query_one("SELECT count(*) FROM visits", &[]).unwrap();
    assert_eq!(row.get::<_, i64>(0), 1);
    let mut client = postgres::Client::connect(&given, postgres::NoTls).unwrap();
    let row = client
        .query_one("SELECT to_regclass('visits')::text", &[])
        .unwrap();
    assert_eq!(row.get::<_, Option<String>>(0), None);
    let mut server = presets::postgres().start().unwrap();
    let mut client = postgres::Client::connect(&server.url(), postgres::NoTls).unwrap();
    client.batch_execute("CREATE TABLE visits (who TEXT)").unwrap();
    assert_verbs_are_errors(&mut server, "MIRAKURU_POSTGRES_URL");
    assert_is_not_ours(
        presets::postgres().initdb_arg("-k").start(),
        "MIRAKURU_POSTGRES_URL",
    );
    let error = presets::postgres().version(9).start().unwrap_err().to_string();
    assert!(error.contains("`version(9)`"), "{error}");
}

#[test]
#[ignore = "a child of another test"]
fn postgres_copies_settings() {
    if !is_child() {
        return;
    }
    let settings = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET work_mem = %L', \
                    current_database(), '9MB'); END $$";
    let server = presets::postgres().load_sql(settings).start().unwrap();
    let database = server.database();
    let mut client = postgres::Client::connect(&database.url(), postgres::NoTls).unwrap();
    assert_eq!(
        client
            .query_one("SHOW work_mem", &[])
            .unwrap()
            .get::<_, String>(0),
        "9MB"
    );
}

#[test]
fn a_seed_of_a_user_with_few_rights_bears_an_autovacuum_of_the_template() {
    if !own_server("postgres") {
        return;
    }
    let server = postgres_by_hand();
    let mut client = postgres::Client::connect(&server.url(), postgres::NoTls).unwrap();
    // An autovacuum starts within two seconds, and then takes some seconds.
    for setting in [
        "naptime = '1s'",
        "vacuum_cost_delay = '100ms'",
        "vacuum_cost_limit = 1",
    ] {
        let statement = format!("ALTER SYSTEM SET autovacuum_{setting}");
        client.batch_execute(&statement).unwrap();
    }
    client.batch_execute("SELECT pg_reload_conf()").unwrap();
    let url = format!(
        "postgresql://by_scram:p%40ss@127.0.0.1:{}/postgres",
        server.port()
    );
    let output = in_a_child(
        test_name!(postgres_cleans_the_template),
        &[("MIRAKURU_POSTGRES_URL", &url)],
    );
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains(" 1 passed"), "{text}");
}

/// Fills the database, and returns while an autovacuum of the database runs.
fn fill_and_wait_for_autovacuum(url: &str) -> Result<(), postgres::Error> {
    let mut client = postgres::Client::connect(url, postgres::NoTls)?;
    client.batch_execute("INSERT INTO visits SELECT 'seeded' FROM generate_series(1, 5000)")?;
    // Only the server's own processes have no user.
    let cleaners = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND usesysid IS NULL";
    let comes = within(Duration::from_secs(60), || {
        client.query(cleaners, &[]).is_ok_and(|rows| !rows.is_empty())
    });
    assert!(comes, "no autovacuum has come");
    Ok(())
}

#[test]
#[ignore = "a child of another test"]
fn postgres_cleans_the_template() {
    if !is_child() {
        return;
    }
    let server = presets::postgres()
        .load_sql("CREATE TABLE visits (who TEXT)")
        .seed("cleaned", fill_and_wait_for_autovacuum)
        .start()
        .unwrap();
    let database = server.database();
    let mut client = postgres::Client::connect(&database.url(), postgres::NoTls).unwrap();
    let row = client.query_one("SELECT count(*) FROM visits", &[]).unwrap();
    assert_eq!(row.get::<_, i64>(0), 5_000);
}

#[test]
#[ignore = "a child of another test"]
fn postgres_is_busy() {
    if !is_child() {
        return;
    }
    let server = presets::postgres()
        .load_sql("CREATE TABLE visits (who TEXT)")
        .start()
        .unwrap();
    loop {
        let databases = [server.database(), server.database()];
        for database in &databases {
            let mut client = postgres::Client::connect(&database.url(), postgres::NoTls).unwrap();
            client.execute("INSERT INTO visits VALUES ('test')", &[]).unwrap();
        }
        if !goes_on() {
            break;
        }
    }
}

#[test]
fn a_postgres_that_cannot_be_used_is_an_error_that_names_the_variable() {
    if !own_server("postgres") {
        return;
    }
    let server = postgres_by_hand();
    let port = server.port();
    for (url, part) in [
        (
            format!("mysql://u:secret@127.0.0.1:{port}/"),
            "begin with `postgresql://`",
        ),
        (
            format!("postgresql://by_md5:secret@127.0.0.1:{port}/postgres"),
            "password authentication failed",
        ),
        (
            format!("postgresql://by_scram:secret@127.0.0.1:{port}/postgres"),
            "password authentication failed",
        ),
        (
            format!("postgresql://by_scram@127.0.0.1:{port}/postgres"),
            "the URL has none",
        ),
        (
            format!("postgresql://by_scram:p%40ss@127.0.0.1:{port}/absent"),
            "does not exist",
        ),
        (
            format!("postgresql://limited:p%40ss@127.0.0.1:{port}/postgres"),
            "`ALTER ROLE limited CREATEDB`",
        ),
        (
            format!("postgresql://by_md5:p%40ss@127.0.0.1:{port}/postgres?sslmode=require"),
            "no TLS",
        ),
        ("postgresql://u:secret@127.0.0.1:1/".to_owned(), "refused"),
    ] {
        assert_says_why(test_name!(postgres_says_why), "MIRAKURU_POSTGRES_URL", &url, part);
    }
}

#[test]
#[ignore = "a child of another test"]
fn postgres_says_why() {
    if is_child() {
        println!("{}", presets::postgres().optional().start().unwrap_err());
    }
}

// ---- MariaDB ------------------------------------------------------------------------------------

/// Starts a server with two users: `app` has only the rights that the preset needs, and `limited`
/// has none.
fn mariadb_by_hand() -> Mariadb {
    let server = presets::mariadb().start().unwrap();
    let mut client = mysql::Conn::new(server.url().as_str()).unwrap();
    for statement in [
        "CREATE USER app IDENTIFIED BY 'p@ss'",
        "GRANT ALL ON `mk%`.* TO app",
        "CREATE USER limited IDENTIFIED BY 'p@ss'",
        "CREATE DATABASE mk_theirs",
        "CREATE TABLE mk_theirs.theirs (who TEXT)",
        "INSERT INTO mk_theirs.theirs VALUES ('they')",
    ] {
        client.query_drop(statement).unwrap();
    }
    server
}

/// Everything on the server, including users and rights, as text.
fn mariadb_dump(server: &Mariadb) -> String {
    let client = |program: &str| {
        let mut command = Command::new(program);
        command
            .args([
                "--no-defaults",
                "--protocol=tcp",
                "--host=127.0.0.1",
                "--user=root",
            ])
            .arg(format!("--port={}", server.port()))
            .arg(format!("--password={}", server.password()));
        command
    };
    let names = output_of(client("mariadb").args(["--batch", "--execute=SHOW DATABASES"]));
    let dump = output_of(client("mariadb-dump").args([
        "--all-databases",
        "--system=all",
        "--routines",
        "--events",
        "--skip-comments",
        "--skip-dump-date",
        // The optimiser changes these tables by itself.
        "--ignore-table=mysql.innodb_index_stats",
        "--ignore-table=mysql.innodb_table_stats",
        // This table contains the server's manual, which no test changes.
        "--ignore-table=mysql.help_topic",
    ]));
    names + &dump
}

#[test]
fn a_mariadb_that_is_there_is_used_and_left_as_it_was() {
    if !own_server("mariadbd") {
        return;
    }
    let server = mariadb_by_hand();
    let dump = || mariadb_dump(&server);
    let subject = |user: &str| Subject {
        variable: "MIRAKURU_MARIADB_URL",
        // With `localhost`, the crate `mysql` might try only `::1`.
        url: format!("mysql://{user}@127.0.0.1:{}/", server.port()),
        dump: &dump,
        busy: test_name!(mariadb_is_busy),
    };
    subject("app:p%40ss").passes(test_name!(mariadb_gives_each_test_a_database));
    subject(&format!("root:{}", server.password())).passes(test_name!(mariadb_gives_each_test_a_database));
    subject("app:p%40ss").is_as_it_was_after_kills();
}

fn fill_mariadb(url: &str) -> Result<(), mysql::Error> {
    mysql::Conn::new(url)?.query_drop("INSERT INTO visits VALUES ('seeded')")
}

#[mirakuru::fixture(presets::mariadb().load_sql("CREATE TABLE visits (who TEXT);").seed("one", fill_mariadb))]
static MARIADB: Mariadb;

#[test]
#[ignore = "a child of another test"]
fn mariadb_gives_each_test_a_database() {
    if !is_child() {
        return;
    }
    assert_eq!(MARIADB.host(), "127.0.0.1");
    // `url()` leads to the run's own database with the same content, not to the database in the
    // variable.
    let given = env::var("MIRAKURU_MARIADB_URL").unwrap();
    assert!(
        MARIADB.url().starts_with(&format!("{given}mk")),
        "{}",
        MARIADB.url()
    );
    let mut client = mysql::Conn::new(MARIADB.url().as_str()).unwrap();
    let count: Option<u32> = client.query_first("SELECT count(*) FROM visits").unwrap();
    assert_eq!(count, Some(1));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let database = MARIADB.database();
                let mut client = mysql::Conn::new(database.url().as_str()).unwrap();
                let count: Option<u32> = client.query_first("SELECT count(*) FROM visits").unwrap();
                assert_eq!(count, Some(1));
                client.query_drop("INSERT INTO visits VALUES ('test')").unwrap();
            });
        }
    });
    let mut server = presets::mariadb().start().unwrap();
    let mut client = mysql::Conn::new(server.url().as_str()).unwrap();
    client.query_drop("CREATE TABLE visits (who TEXT)").unwrap();
    assert_verbs_are_errors(&mut server, "MIRAKURU_MARIADB_URL");
    assert_is_not_ours(
        presets::mariadb().config("port", "1").start(),
        "MIRAKURU_MARIADB_URL",
    );
}

#[test]
#[ignore = "a child of another test"]
fn mariadb_is_busy() {
    if !is_child() {
        return;
    }
    let server = presets::mariadb()
        .load_sql("CREATE TABLE visits (who TEXT);")
        .start()
        .unwrap();
    loop {
        let databases = [server.database(), server.database()];
        for database in &databases {
            let mut client = mysql::Conn::new(database.url().as_str()).unwrap();
            client.query_drop("INSERT INTO visits VALUES ('test')").unwrap();
        }
        if !goes_on() {
            break;
        }
    }
}

#[test]
fn a_mariadb_that_cannot_be_used_is_an_error_that_names_the_variable() {
    if !own_server("mariadbd") {
        return;
    }
    let server = mariadb_by_hand();
    let port = server.port();
    for (url, part) in [
        (
            format!("postgres://u:secret@127.0.0.1:{port}/"),
            "begin with `mysql://`",
        ),
        (
            format!("mysql://app:secret@127.0.0.1:{port}/"),
            "access denied for user",
        ),
        (
            format!("mysql://limited:p%40ss@127.0.0.1:{port}/"),
            "may not create and drop databases",
        ),
        ("mysql://u:secret@127.0.0.1:1/".to_owned(), "refused"),
    ] {
        assert_says_why(test_name!(mariadb_says_why), "MIRAKURU_MARIADB_URL", &url, part);
    }
}

#[test]
#[ignore = "a child of another test"]
fn mariadb_says_why() {
    if is_child() {
        println!("{}", presets::mariadb().optional().start().unwrap_err());
    }
}

/// Prints the error. `optional()` must not skip the test.
#[test]
#[ignore = "a child of another test"]
fn redis_says_why() {
    if !is_child() {
        return;
    }
    println!("{}", presets::redis().optional().start().unwrap_err());
}

// ---- servers that are too old -------------------------------------------------------------------

/// Starts a fake server. It sends `greeting` to each connection, and `answer` to each request.
fn stand_in(greeting: Vec<u8>, answer: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut stream in listener.incoming().map(Result::unwrap) {
            let _ = stream.write_all(&greeting);
            let mut question = [0; 4096];
            while stream.read(&mut question).is_ok_and(|length| length > 0) {
                let _ = stream.write_all(answer);
                // An HTTP/1.0 answer ends when the connection is closed.
                if answer.starts_with(b"HTTP") {
                    let _ = stream.shutdown(Shutdown::Write);
                }
            }
        }
    });
    port
}

/// The first packet of a MariaDB or MySQL server.
fn greeting_of_mysql(version: &str) -> Vec<u8> {
    let mut packet = [&[10], version.as_bytes(), &[0; 45], b"mysql_native_password\0"].concat();
    packet.splice(0..0, [packet.len() as u8, 0, 0, 0]);
    packet
}

#[test]
fn a_server_that_is_too_old_is_named_with_its_version() {
    let nothing = Vec::new;
    let logged_in: &[u8] = &[7, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0];
    for (preset, test, scheme, greeting, answer, part) in [
        (
            "REDIS",
            test_name!(redis_says_why),
            "redis://",
            nothing(),
            &b"$24\r\nredis_version:4.0.14\r\n\r\n\r\n"[..],
            "it is version 4.0.14, but the preset needs 5 or later",
        ),
        (
            "POSTGRES",
            test_name!(postgres_says_why),
            "postgresql://u:secret@",
            nothing(),
            b"R\0\0\0\x08\0\0\0\0S\0\0\0\x19server_version\x0012.22\0Z\0\0\0\x05I",
            "it is PostgreSQL 12, but the preset needs 13 or later",
        ),
        (
            "MARIADB",
            test_name!(mariadb_says_why),
            "mysql://u:secret@",
            greeting_of_mysql("5.5.5-10.2.44-MariaDB"),
            logged_in,
            "it is MariaDB 10.2, but the preset needs 10.3 or later",
        ),
        (
            "MARIADB",
            test_name!(mariadb_says_why),
            "mysql://u:secret@",
            greeting_of_mysql("5.6.51"),
            logged_in,
            "it is MySQL 5.6, but the preset needs 5.7 or later",
        ),
        (
            "ETCD",
            test_name!(parts::etcd_says_why),
            "http://",
            nothing(),
            b"HTTP/1.0 404 Not Found\r\n\r\n",
            "the preset needs etcd 3.4 or later",
        ),
        (
            "MEMCACHED",
            test_name!(parts::memcached_says_why),
            "memcache://",
            nothing(),
            b"ERROR\r\n",
            "the preset needs memcached 1.4.31 or later",
        ),
    ] {
        let url = format!("{scheme}127.0.0.1:{}", stand_in(greeting, answer));
        assert_says_why(test, &format!("MIRAKURU_{preset}_URL"), &url, part);
    }
}
