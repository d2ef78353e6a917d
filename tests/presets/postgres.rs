//! Tests `presets::postgres()` with the crate `postgres`.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{
    TinyDisk, any_server, assert_names_the_holder, assert_names_the_package, assert_nothing_is_left,
    in_a_child, is_child, new_key, own_server, require_root, say, test_name, within, without_url,
};
use mirakuru::presets::{self, Postgres};
use mirakuru::{OutputExecutor, Recipe};
use postgres::{Client, NoTls};

const SCHEMA: &str = "
CREATE TABLE users (id SERIAL PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE INDEX CONCURRENTLY ON users (name);
";

#[mirakuru::fixture(presets::postgres().load_sql(SCHEMA))]
static PG: Postgres;

fn connect(url: &str) -> Client {
    Client::connect(url, NoTls).unwrap()
}

fn count(client: &mut Client, query: &str) -> i64 {
    client.query_one(query, &[]).unwrap().get(0)
}

fn inserts_a_user() {
    if !any_server("postgres") {
        return;
    }
    let database = PG.database();
    let mut client = connect(&database.url());
    for id in 1..=3 {
        let name = format!("Zoë 🦀 {id}");
        let row = client
            .query_one("INSERT INTO users (name) VALUES ($1) RETURNING id", &[&name])
            .unwrap();
        assert_eq!(row.get::<_, i32>(0), id);
    }
    assert_eq!(count(&mut client, "SELECT count(*) FROM users"), 3);
    let upper: String = client.query_one("SELECT upper('zoë')", &[]).unwrap().get(0);
    assert_eq!(upper, "ZOË");
}

#[test]
fn one_test_has_a_database() {
    inserts_a_user();
}

#[test]
fn another_test_has_another() {
    inserts_a_user();
}

#[test]
fn a_database_is_dropped_with_connections_open() {
    if !any_server("postgres") {
        return;
    }
    let (one, two) = (PG.database(), PG.database());
    assert_ne!(one.name(), two.name());
    let mut shared = connect(&PG.url());
    let mut exists = |name: &str| {
        let row = shared.query_one("SELECT count(*) FROM pg_database WHERE datname = $1", &[&name]);
        row.unwrap().get::<_, i64>(0) == 1
    };
    let mut client = connect(&one.url());
    client
        .batch_execute("BEGIN; INSERT INTO users (name) VALUES ('x')")
        .unwrap();
    let name = one.name().to_owned();
    assert!(exists(&name));
    drop(one);
    // A server that syncs its files may drop the database after the handle has stopped waiting.
    assert!(within(Duration::from_secs(30), || !exists(&name)));
    assert!(exists(two.name()));
    assert!(client.batch_execute("COMMIT").is_err());
}

#[test]
fn the_template_cannot_be_spoilt() {
    if !own_server("postgres") {
        return;
    }
    let name = PG.database().name().to_owned();
    let url_of = |database: &str| format!("{}/{database}", PG.url().rsplit_once('/').unwrap().0);
    let error = Client::connect(&url_of("mirakuru_template"), NoTls)
        .err()
        .unwrap();
    let error = format!("{error:?}");
    assert!(error.contains("not currently accepting connections"), "{error}");
    assert!(Client::connect(&url_of(&name), NoTls).is_err());
}

/// An application that prints the number of users in its database.
const APPLICATION: &str =
    r#"psql "$DATABASE_URL" -Atc "SELECT 'users: ' || count(*) FROM users"; exec sleep 60"#;

#[mirakuru::fixture(presets::postgres().load_sql(SCHEMA))]
#[mirakuru::fixture(cmd = APPLICATION, shell = true, env = ("DATABASE_URL", db.url()), banner = r"users: \d")]
#[test]
fn an_application_finds_the_tables_at_the_url(db: &Postgres, app: &OutputExecutor) {
    assert_eq!(app.logs().stdout(), "users: 0\n");
    let (mut url, database) = (connect(&db.url()), db.database());
    url.batch_execute("INSERT INTO users (name) VALUES ('me')")
        .unwrap();
    // Neither an earlier nor a later copy has the new row.
    for database in [&database, &db.database()] {
        assert_eq!(
            count(&mut connect(&database.url()), "SELECT count(*) FROM users"),
            0
        );
    }
}

#[mirakuru::fixture]
struct System {
    #[fixture(presets::postgres().load_sql(SCHEMA).seed("users 1", a_user))]
    db: Postgres,
    #[fixture(cmd = APPLICATION, shell = true, env = ("DATABASE_URL", db.url()), banner = r"users: \d")]
    app: OutputExecutor,
}

/// A seed that leaves its connection open.
fn a_user(url: &str) -> Result<(), postgres::Error> {
    static CONNECTION: Mutex<Option<Client>> = Mutex::new(None);
    let mut client = Client::connect(url, NoTls)?;
    client.batch_execute("INSERT INTO users (name) VALUES ('me')")?;
    *CONNECTION.lock().unwrap() = Some(client);
    Ok(())
}

#[mirakuru::fixture(System)]
#[test]
fn a_restart_keeps_the_database_of_the_url(mut system: System) {
    assert_eq!(system.app.logs().stdout(), "users: 1\n");
    if system.db.host() != "127.0.0.1" || !own_server("postgres") {
        return;
    }
    let mut client = connect(&system.db.url());
    client
        .batch_execute("INSERT INTO users (name) VALUES ('you')")
        .unwrap();
    system.db.restart().unwrap();
    system.db.kill().unwrap();
    system.db.start().unwrap();
    system.app.restart().unwrap();
    assert_eq!(system.app.logs().stdout(), "users: 1\nusers: 2\n");
}

// On an external server, the SQL of this test needs a superuser.
#[test]
fn the_database_of_the_url_has_the_settings_of_the_template() {
    if !own_server("postgres") {
        return;
    }
    let settings = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET work_mem = %L', \
                    current_database(), '9MB'); END $$";
    let server = presets::postgres().load_sql(settings).start().unwrap();
    let row = connect(&server.url()).query_one("SHOW work_mem", &[]).unwrap();
    assert_eq!(row.get::<_, String>(0), "9MB");
    // If the recipe loads nothing, the server has only its three standard databases.
    let empty = presets::postgres().start().unwrap();
    let databases = "SELECT count(*) FROM pg_database";
    assert_eq!(count(&mut connect(&empty.url()), databases), 3);
    assert!(empty.url().ends_with("/postgres"), "{}", empty.url());
}

#[test]
fn nobody_comes_in_without_the_password() {
    if !own_server("postgres") {
        return;
    }
    assert_eq!((PG.user(), PG.host()), ("postgres", "127.0.0.1"));
    for url in [
        PG.url().replace(PG.password(), "wrong"),
        PG.url().replace(&format!(":{}", PG.password()), ""),
        PG.url().replace("postgres:", "somebody:"),
    ] {
        assert!(Client::connect(&url, NoTls).is_err(), "{url}");
    }
    let by_socket = postgres::Config::new()
        .host_path(PG.socket_dir())
        .port(PG.port())
        .user(PG.user())
        .connect(NoTls);
    assert_eq!(count(&mut by_socket.unwrap(), "SELECT 7::bigint"), 7);
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(PG.dir()), 0o700);
    assert_eq!(mode(PG.dir().join("password")), 0o600);
}

#[test]
fn it_is_configured_keeps_its_data_and_leaves_nothing() {
    if !own_server("postgres") {
        return;
    }
    let mut server = presets::postgres()
        .config("max_connections", "23")
        .config("search_path", "public, \"it's \\ here\"")
        .start()
        .unwrap();
    let mut client = connect(&server.url());
    let setting = |client: &mut Client, name: &str| -> String {
        client.query_one(&format!("SHOW {name}"), &[]).unwrap().get(0)
    };
    assert_eq!(setting(&mut client, "max_connections"), "23");
    assert_eq!(setting(&mut client, "fsync"), "off");
    assert_eq!(setting(&mut client, "TimeZone"), "UTC");
    let mut other = connect(&server.url());
    let reset = count(
        &mut other,
        "SELECT count(*) FROM pg_settings WHERE boot_val <> reset_val AND name = 'search_path'",
    );
    assert_eq!(reset, 1);
    client
        .batch_execute("CREATE TABLE x (y TEXT); INSERT INTO x VALUES ('z')")
        .unwrap();
    server.restart().unwrap();
    // The server recovers from a crash.
    server.kill().unwrap();
    server.start().unwrap();
    assert_eq!(count(&mut connect(&server.url()), "SELECT count(*) FROM x"), 1);
    // There is no template to copy, because the recipe loads no SQL.
    let database = server.database();
    assert_eq!(
        count(
            &mut connect(&database.url()),
            "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
        ),
        0
    );
    drop(database);
    server.stop().unwrap();
    let log = server.logs().to_string();
    assert!(log.contains("database system is shut down"), "{log}");
    server.start().unwrap();
    assert!(
        segments_of(server.pid()).is_empty(),
        "it would outlive a server that is killed"
    );
    assert_nothing_is_left(server);
}

/// Ids of a process's System V segments that are not marked for removal.
fn segments_of(creator: u32) -> Vec<String> {
    let all = fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
    let fields = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    // Columns: key, id, mode (01000: marked for removal), size, creator.
    all.lines()
        .skip(1)
        .map(fields)
        .filter(|f| {
            f[4] == creator.to_string() && u32::from_str_radix(&f[2], 8).is_ok_and(|mode| mode & 0o1000 == 0)
        })
        .map(|f| f[1].clone())
        .collect()
}

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("mkt-pg-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        Scratch(path)
    }
    fn write(&self, name: &str, text: &str) {
        fs::write(self.0.join(name), text).unwrap();
    }
    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn what_is_loaded_may_be_a_directory_and_its_mistakes_are_reported() {
    if !any_server("postgres") {
        return;
    }
    let dir = Scratch::new("load");
    dir.write("10_data.sql", "COPY a FROM stdin;\n1\n2\n\\.\n");
    dir.write("9_schema.sql", "CREATE TABLE a (b INT);");
    dir.write("9_schema.down.sql", "DROP TABLE a;");
    let server = presets::postgres()
        .load_sql(dir.path())
        .load_sql("INSERT INTO a VALUES (3)")
        .start()
        .unwrap();
    let database = server.database();
    assert_eq!(count(&mut connect(&database.url()), "SELECT count(*) FROM a"), 3);
    drop(server);

    dir.write("11_bad.sql", "SELECT 1;\nCREATE TABEL x (y INT);\n");
    let report = |recipe: presets::PostgresRecipe| recipe.start().unwrap_err().to_string();
    let error = report(presets::postgres().load_sql(dir.path()));
    for part in ["11_bad.sql:2", "syntax error", "TABEL"] {
        assert!(error.contains(part), "{error}");
    }
    let error = report(presets::postgres().load_sql("no/such/migrations/"));
    assert!(error.contains("no/such/migrations/"), "{error}");
}

#[test]
fn an_extension_that_is_not_there_is_named() {
    if !any_server("postgres") {
        return;
    }
    let error = presets::postgres()
        .extension("no_such_thing")
        .start()
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("extension \"no_such_thing\" is not available"),
        "{error}"
    );
}

#[test]
fn what_it_says_of_a_wrong_parameter_is_in_the_report() {
    if !own_server("postgres") {
        return;
    }
    let error = presets::postgres()
        .config("no_such_parameter", "1")
        .start()
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("unrecognized configuration parameter \"no_such_parameter\""),
        "{error}"
    );
}

#[test]
fn who_has_its_port_is_named() {
    if own_server("postgres") {
        assert_names_the_holder(|port| presets::postgres().port(port).start());
    }
}

#[test]
fn a_missing_program_is_named() {
    if !without_url("postgres") {
        return;
    }
    let error = presets::postgres()
        .program("/no/such/postgres")
        .start()
        .unwrap_err()
        .to_string();
    assert!(error.contains("/no/such/postgres"), "{error}");
    let error = presets::postgres().version(3).start().unwrap_err().to_string();
    assert!(error.contains("apt-get install postgresql-3"), "{error}");
    if !Path::new("/usr/lib/postgresql").exists() {
        assert_names_the_package(test_name!(no_server), "postgresql");
    }
}

#[test]
#[ignore = "for the test above"]
fn no_server() {
    if is_child() {
        println!("{}", presets::postgres().start().unwrap_err());
    }
}

#[test]
fn it_is_found_by_its_version() {
    if !own_server("postgres") {
        return;
    }
    let versions = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let Some(version) = versions
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .max()
    else {
        say("\n*** it_is_found_by_its_version: SKIPPED, no Debian package of it is installed ***\n");
        return;
    };
    let server = presets::postgres()
        .version(version)
        .durable(true)
        .start()
        .unwrap();
    let mut client = connect(&server.url());
    let fsync = client.query_one("SHOW fsync", &[]).unwrap();
    assert_eq!(fsync.get::<_, String>(0), "on");
    let row = client.query_one("SHOW server_version_num", &[]).unwrap();
    assert!(row.get::<_, String>(0).starts_with(&version.to_string()));
}

#[test]
fn a_full_disk_is_reported() {
    if !own_server("postgres") || !require_root() {
        return;
    }
    let Some(disk) = TinyDisk::mount(2048) else {
        return;
    };
    let output = in_a_child(
        test_name!(the_disk_is_full),
        &[("TMPDIR", disk.path().to_str().unwrap())],
    );
    let text = String::from_utf8_lossy(&output.stdout);
    let its_own_words = ["No space left on device", "Check free disk space"];
    assert!(its_own_words.iter().any(|words| text.contains(words)), "{text}");
}

#[test]
#[ignore = "for the test above"]
fn the_disk_is_full() {
    if is_child() {
        println!("{}", presets::postgres().start().unwrap_err());
    }
}

// ---- measured -----------------------------------------------------------------------------------

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Twenty tables, with an index and some rows each.
fn twenty_tables() -> String {
    let table = |n: i32| {
        format!(
            "CREATE TABLE t{n} (id SERIAL PRIMARY KEY, a TEXT UNIQUE, b INT);
             CREATE INDEX ON t{n} (b);
             INSERT INTO t{n} (a, b) SELECT g::text, g FROM generate_series(1, 50) g;"
        )
    };
    (1..=20).map(table).collect()
}

#[test]
#[ignore = "a measurement"]
fn what_it_costs() {
    const ROUNDS: usize = 25;
    let (mut starts, mut stops) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        let mut server = presets::postgres().start().unwrap();
        starts.push(begin.elapsed());
        let begin = Instant::now();
        server.stop().unwrap();
        stops.push(begin.elapsed());
    }
    say(&format!(
        "start {:.1?} (the first {:.1?}), stop {:.1?}",
        median(starts.clone()),
        starts[0],
        median(stops)
    ));

    let begin = Instant::now();
    let server = presets::postgres().load_sql(twenty_tables()).start().unwrap();
    say(&format!("start with twenty tables {:.1?}", begin.elapsed()));
    let (mut creates, mut drops, mut connects) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..2 * ROUNDS {
        let begin = Instant::now();
        let database = server.database();
        creates.push(begin.elapsed());
        let begin = Instant::now();
        let client = connect(&database.url());
        connects.push(begin.elapsed());
        drop(client);
        let begin = Instant::now();
        drop(database);
        drops.push(begin.elapsed());
    }
    let (create, connect_, drop_) = (median(creates), median(connects), median(drops));
    say(&format!(
        "one after the other: database {create:.1?}, connect {connect_:.1?}, drop {drop_:.1?}"
    ));

    const TESTS: usize = 100;
    let barrier = Barrier::new(TESTS);
    let begin = Instant::now();
    let results: Vec<(Duration, String)> = thread::scope(|scope| {
        let test = |n: usize| {
            let (barrier, server) = (&barrier, &server);
            scope.spawn(move || {
                barrier.wait();
                let begin = Instant::now();
                let database = server.database();
                let took = begin.elapsed();
                let mut client = connect(&database.url());
                for table in 1..=20 {
                    assert_eq!(count(&mut client, &format!("SELECT count(*) FROM t{table}")), 50);
                }
                client
                    .execute("INSERT INTO t1 (a, b) VALUES ($1, 0)", &[&format!("of {n}")])
                    .unwrap();
                // All threads have their databases now, and each sees only its own row.
                barrier.wait();
                assert_eq!(count(&mut client, "SELECT count(*) FROM t1 WHERE b = 0"), 1);
                (took, database.name().to_owned())
            })
        };
        let threads: Vec<_> = (0..TESTS).map(test).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let names: HashSet<&String> = results.iter().map(|(_, name)| name).collect();
    assert_eq!(names.len(), TESTS);
    let took = median(results.iter().map(|(took, _)| *took).collect());
    say(&format!(
        "{TESTS} at once: all done in {:.1?}, database {took:.1?}",
        begin.elapsed()
    ));
}

// ---- crashes, settings, mistakes ----------------------------------------------------------------

#[test]
fn committed_data_survives_a_kill() {
    if !own_server("postgres") {
        return;
    }
    let mut server = presets::postgres().start().unwrap();
    let mut client = connect(&server.url());
    client.batch_execute("CREATE TABLE k (x INT)").unwrap();
    for x in 0..50 {
        client.execute("INSERT INTO k VALUES ($1)", &[&x]).unwrap();
    }
    server.kill().unwrap();
    server.start().unwrap();
    assert_eq!(count(&mut connect(&server.url()), "SELECT count(*) FROM k"), 50);
}

#[test]
fn a_database_can_be_had_right_after_a_backend_has_crashed() {
    if !own_server("postgres") {
        return;
    }
    let server = presets::postgres().start().unwrap();
    let mut client = connect(&server.url());
    let backend: i32 = client.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
    let killed = std::process::Command::new("kill")
        .args(["-9", &backend.to_string()])
        .status();
    assert!(killed.unwrap().success());
    // The server ends all other backends, and then refuses clients until it has recovered.
    while client.simple_query("SELECT 1").is_ok() {
        thread::yield_now();
    }
    let database = server.database();
    assert_eq!(
        count(
            &mut connect(&database.url()),
            "SELECT count(*) FROM pg_database WHERE datistemplate"
        ),
        2
    );
    drop(database);
    let creator = server.pid();
    drop(server);
    assert!(segments_of(creator).is_empty());
}

#[test]
fn a_paused_server_does_not_hold_up_the_end_of_a_test() {
    if !own_server("postgres") {
        return;
    }
    let mut server = presets::postgres().start().unwrap();
    let database = server.database();
    server.pause().unwrap();
    let begun = Instant::now();
    drop(database);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    server.resume().unwrap();
}

const SETTINGS: &str = "
CREATE SCHEMA app;
CREATE TABLE app.visits (who TEXT);
CREATE ROLE boss;
CREATE ROLE reader LOGIN PASSWORD 'x';
DO $$ BEGIN
  EXECUTE format('ALTER DATABASE %I OWNER TO boss', current_database());
  EXECUTE format('ALTER DATABASE %I SET search_path = app, public', current_database());
  EXECUTE format('ALTER ROLE reader IN DATABASE %I SET timezone = %L', current_database(), 'Europe/Warsaw');
  EXECUTE format('REVOKE CONNECT ON DATABASE %I FROM PUBLIC', current_database());
  EXECUTE format('GRANT CREATE ON DATABASE %I TO reader', current_database());
END $$;
";

#[test]
fn each_database_has_the_owner_the_settings_and_the_grants_of_the_template() {
    if !own_server("postgres") {
        return;
    }
    let server = presets::postgres().load_sql(SETTINGS).start().unwrap();
    for database in [server.database(), server.database()] {
        let mut client = connect(&database.url());
        let mut text = |query: &str| -> String { client.query_one(query, &[]).unwrap().get(0) };
        assert_eq!(text("SHOW search_path"), "app, public");
        let owner = "SELECT rolname::text FROM pg_database JOIN pg_roles r ON r.oid = datdba \
                     WHERE datname = current_database()";
        assert_eq!(text(owner), "boss");
        let may = |right: &str| {
            format!("SELECT has_database_privilege('reader', current_database(), '{right}')::text")
        };
        assert_eq!([text(&may("CONNECT")), text(&may("CREATE"))], ["false", "true"]);
        let zone = "SELECT setconfig[1] FROM pg_db_role_setting s JOIN pg_database d ON d.oid = setdatabase \
                    WHERE datname = current_database() AND setrole <> 0";
        assert_eq!(text(zone), "TimeZone=Europe/Warsaw");
        // The copied grant counts as a use of the role, so the role cannot be dropped.
        let error = client.batch_execute("DROP ROLE reader").unwrap_err();
        let error = error.as_db_error().unwrap();
        assert!(
            error.detail().unwrap_or_default().contains("database"),
            "{error:?}"
        );
    }
}

#[test]
fn sql_that_would_not_be_in_the_copies_is_refused_with_its_line() {
    if !any_server("postgres") {
        return;
    }
    let path = std::env::temp_dir().join(format!("mkt-pg-{} dump.sql", std::process::id()));
    let file = path.to_str().unwrap();
    let start = || {
        presets::postgres()
            .load_sql(file)
            .start()
            .unwrap_err()
            .to_string()
    };
    let error = start();
    assert!(error.contains(file) && error.contains("no such file"), "{error}");
    for (sql, line, word) in [
        (
            "CREATE DATABASE app;\n\\connect app\nCREATE TABLE x (y INT);\n",
            "line 2",
            "\\connect app",
        ),
        (
            "CREATE TABLE x (y INT);\n\nBEGIN;\nINSERT INTO x VALUES (1);\n",
            "line 3",
            "COMMIT",
        ),
    ] {
        fs::write(&path, sql).unwrap();
        let error = start();
        assert!(
            error.contains(file) && error.contains(line) && error.contains(word),
            "{error}"
        );
    }
    fs::remove_file(&path).unwrap();
}

#[test]
fn initdb_can_be_told_more() {
    if !own_server("postgres") {
        return;
    }
    let server = presets::postgres()
        .initdb_arg("--locale=C")
        .initdb_arg("--encoding=LATIN1")
        .start()
        .unwrap();
    let database = server.database();
    let row = connect(&database.url())
        .query_one(
            "SELECT pg_encoding_to_char(encoding)::text FROM pg_database WHERE datname = current_database()",
            &[],
        )
        .unwrap();
    assert_eq!(row.get::<_, String>(0), "LATIN1");
}

/// Runs the migrations, as an application does when it starts. A table records which ones have
/// already run.
fn migrate(url: &str) -> Result<bool, postgres::Error> {
    let mut client = Client::connect(url, NoTls)?;
    client.batch_execute("CREATE TABLE IF NOT EXISTS migrations (name TEXT PRIMARY KEY)")?;
    let new = client.execute("INSERT INTO migrations VALUES ('1') ON CONFLICT DO NOTHING", &[])?;
    if new == 1 {
        client.batch_execute("CREATE TABLE visits (who TEXT REFERENCES users (name))")?;
    }
    Ok(new == 1)
}

#[test]
fn a_seed_runs_once_for_a_key_over_servers_and_runs() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    if !own_server("postgres") {
        return;
    }
    let runs = Arc::new(AtomicU32::new(0));
    let recipe = |key: &str| {
        let runs = Arc::clone(&runs);
        presets::postgres().load_sql(SCHEMA).seed(key, move |url| {
            runs.fetch_add(1, Ordering::Relaxed);
            migrate(url).map(drop)
        })
    };
    let key = new_key("once");
    // Two servers that start at once run the seed only once.
    let servers: Vec<Postgres> = thread::scope(|scope| {
        let starts = [0, 1].map(|_| scope.spawn(|| recipe(&key).start().unwrap()));
        starts.into_iter().map(|start| start.join().unwrap()).collect()
    });
    assert_eq!(runs.load(Ordering::Relaxed), 1);
    for server in &servers {
        let (one, other) = (server.database(), server.database());
        // Nothing is left to migrate, and each test has a database of its own.
        assert!(!migrate(&one.url()).unwrap());
        let mut client = connect(&one.url());
        client
            .batch_execute("INSERT INTO users (name) VALUES ('a'); INSERT INTO visits VALUES ('a')")
            .unwrap();
        assert_eq!(
            count(&mut connect(&other.url()), "SELECT count(*) FROM visits"),
            0
        );
    }
    drop(servers);
    recipe(&key).start().unwrap();
    assert_eq!(runs.load(Ordering::Relaxed), 1);
    recipe(&new_key("another")).start().unwrap();
    assert_eq!(runs.load(Ordering::Relaxed), 2, "a changed key is another seed");
}

#[test]
fn a_seed_that_fails_is_named_and_not_kept() {
    use std::sync::atomic::{AtomicU32, Ordering};
    static RUNS: AtomicU32 = AtomicU32::new(0);
    if !any_server("postgres") {
        return;
    }
    let key = new_key("fails");
    for round in 1..=2 {
        let recipe = presets::postgres().seed(&*key, |url| {
            RUNS.fetch_add(1, Ordering::Relaxed);
            connect(url).batch_execute("SELECT * FROM nowhere")
        });
        let error = recipe.start().map(drop).unwrap_err().to_string();
        assert!(
            error.contains(&format!("failed to run the seed `{key}`: ")),
            "{error}"
        );
        assert!(error.contains("nowhere"), "{error}");
        assert_eq!(RUNS.load(Ordering::Relaxed), round);
    }
}
