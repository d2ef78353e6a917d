//! Tests `presets::mariadb()` and `presets::mysql()` with the crate `mysql`.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::common::{
    TinyDisk, any_server, assert_names_the_holder, assert_nothing_is_left, in_a_child, is_child, new_key,
    own_server, require_root, test_name, within, without_url,
};
use mirakuru::presets::{self, Mariadb};
use mirakuru::{OutputExecutor, Recipe};
use mysql::Conn;
use mysql::prelude::Queryable;

const SCHEMA: &str = "CREATE TABLE visits (id INT AUTO_INCREMENT PRIMARY KEY, who TEXT)";

#[mirakuru::fixture(presets::mariadb().load_sql(SCHEMA))]
static MARIADB: Mariadb;

fn connect(url: &str) -> Conn {
    Conn::new(url).unwrap()
}

fn counts_to_three() {
    if !any_server("mariadbd") {
        return;
    }
    let database = MARIADB.database();
    let mut client = connect(&database.url());
    for visit in 1..=3 {
        client
            .exec_drop("INSERT INTO visits (who) VALUES (?)", ("Zoë 🦀",))
            .unwrap();
        assert_eq!(client.last_insert_id(), visit);
    }
    let who: Vec<String> = client.query("SELECT who FROM visits").unwrap();
    assert_eq!(who, ["Zoë 🦀"; 3]);
}

#[test]
fn one_test_has_a_database() {
    counts_to_three();
}

#[test]
fn another_test_has_another() {
    counts_to_three();
}

/// An application that prints the number of visits in its database.
const APPLICATION: &str = r#"
mariadb --no-defaults -NB -h$DB_HOST -P$DB_PORT -u$DB_USER -p$DB_PASSWORD ${DATABASE_URL##*/} \
    -e "SELECT CONCAT('visits: ', COUNT(*)) FROM visits"
exec sleep 60"#;

#[mirakuru::fixture(presets::mariadb().load_sql(SCHEMA))]
#[mirakuru::fixture(cmd = APPLICATION, shell = true, env = ("DATABASE_URL", db.url()),
    env = ("DB_HOST", db.host()), env = ("DB_PORT", db.port().to_string()), env = ("DB_USER", db.user()),
    env = ("DB_PASSWORD", db.password()), banner = r"visits: \d")]
#[test]
fn an_application_finds_the_tables_at_the_url(mut db: Mariadb, mut app: OutputExecutor) {
    assert_eq!(app.logs().stdout(), "visits: 0\n");
    let mut client = connect(&db.url());
    client
        .query_drop("INSERT INTO visits (who) VALUES ('me')")
        .unwrap();
    let database = db.database();
    let others: Option<u32> = connect(&database.url())
        .query_first("SELECT COUNT(*) FROM visits")
        .unwrap();
    assert_eq!(others, Some(0));
    drop(database);
    if !own_server("mariadbd") {
        return;
    }
    // A restart keeps the row.
    db.restart().unwrap();
    app.restart().unwrap();
    assert_eq!(app.logs().stdout(), "visits: 0\nvisits: 1\n");
}

#[test]
fn a_database_is_dropped_with_its_handle() {
    if !any_server("mariadbd") {
        return;
    }
    let (one, two) = (MARIADB.database(), MARIADB.database());
    assert_ne!(one.name(), two.name());
    let mut client = connect(&MARIADB.url());
    let mut exists = |name: &str| {
        let found: Option<String> = client
            .exec_first(
                "SELECT schema_name FROM information_schema.schemata WHERE schema_name = ?",
                (name,),
            )
            .unwrap();
        found.is_some()
    };
    let name = one.name().to_owned();
    assert!(exists(&name));
    drop(one);
    // A server that syncs its files may drop the database after the handle has stopped waiting.
    assert!(within(Duration::from_secs(30), || !exists(&name)));
    assert!(exists(two.name()));
}

#[test]
fn nobody_comes_in_without_the_password() {
    if !own_server("mariadbd") {
        return;
    }
    let url = MARIADB.url();
    for url in [
        url.replace(MARIADB.password(), "wrong"),
        url.replace(&format!(":{}", MARIADB.password()), ""),
        url.replace(&format!("root:{}", MARIADB.password()), "somebody"),
    ] {
        let error = Conn::new(url.as_str()).unwrap_err().to_string();
        assert!(error.contains("Access denied"), "{url}: {error}");
    }
    let by_socket = mysql::OptsBuilder::new()
        .socket(MARIADB.socket().to_str())
        .user(Some(MARIADB.user()))
        .pass(Some(MARIADB.password()));
    let who: Option<String> = Conn::new(by_socket)
        .unwrap()
        .query_first("SELECT USER()")
        .unwrap();
    assert_eq!(who.unwrap(), "root@localhost");
}

#[test]
fn it_is_configured_keeps_its_data_and_leaves_nothing() {
    if !own_server("mariadbd") {
        return;
    }
    let mut server = presets::mysql().config("max-connections", "23").start().unwrap();
    let mut client = connect(&server.url());
    let maximum: Option<u32> = client.query_first("SELECT @@max_connections").unwrap();
    assert_eq!(maximum, Some(23));
    // The blob of 12 MiB is too large for the smallest transaction log.
    client.query_drop("CREATE TABLE x (y LONGBLOB)").unwrap();
    let blob = vec![7_u8; 12 << 20];
    client.exec_drop("INSERT INTO x VALUES (?)", (blob,)).unwrap();
    server.restart().unwrap();
    let length: Option<u32> = connect(&server.url())
        .query_first("SELECT LENGTH(y) FROM x")
        .unwrap();
    assert_eq!(length, Some(12 << 20));
    // `stop` lets the server shut down cleanly.
    server.stop().unwrap();
    assert!(
        server.logs().to_string().contains("Shutdown complete"),
        "{}",
        server.logs()
    );
    server.start().unwrap();
    assert_nothing_is_left(server);
}

#[test]
fn what_is_loaded_may_be_a_file_and_its_mistakes_are_reported() {
    if !any_server("mariadbd") {
        return;
    }
    let dir = std::env::temp_dir().join(format!("mkt-sql-{}", std::process::id()));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir(&dir).unwrap();
    let (good, bad) = (dir.join("good.sql"), dir.join("bad.sql"));
    fs::write(
        &good,
        "DELIMITER //\nCREATE PROCEDURE p() BEGIN SELECT 1; SELECT 2; END//\n",
    )
    .unwrap();
    fs::write(&bad, "SELECT 1;\nCREATE TABEL x (y INT);\n").unwrap();
    let start = |file: &Path| presets::mariadb().load_sql(file.to_str().unwrap()).start();
    let server = start(&good).unwrap();
    let database = server.database();
    let mut client = connect(&database.url());
    let one: Option<u32> = client.query_first("CALL p()").unwrap();
    assert_eq!(one, Some(1));
    drop(client);
    drop(database);
    drop(server);
    let error = start(&bad).unwrap_err().to_string();
    for part in ["bad.sql", "line 2", "TABEL"] {
        assert!(error.contains(part), "{error}");
    }
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_durable_one_flushes_each_commit() {
    if !own_server("mariadbd") {
        return;
    }
    let server = presets::mariadb().durable(true).start().unwrap();
    let flushes: Option<u32> = connect(&server.url())
        .query_first("SELECT @@innodb_flush_log_at_trx_commit")
        .unwrap();
    assert_eq!(flushes, Some(1));
}

#[test]
fn who_has_its_port_is_named() {
    if own_server("mariadbd") {
        assert_names_the_holder(|port| presets::mariadb().port(port).start());
    }
}

#[test]
fn a_missing_program_is_named() {
    if !without_url("mariadbd") {
        return;
    }
    for recipe in [presets::mariadb(), presets::mysql()] {
        let error = recipe.program("/no/such/program").start().unwrap_err();
        assert!(error.to_string().contains("/no/such/program"), "{error}");
    }
}

#[test]
fn what_it_says_of_a_wrong_variable_is_in_the_report() {
    if !own_server("mariadbd") {
        return;
    }
    let error = presets::mariadb()
        .config("no-such-variable", "1")
        .start()
        .unwrap_err()
        .to_string();
    assert!(error.contains("unknown variable 'no-such-variable=1'"), "{error}");
}

#[test]
fn a_full_disk_is_reported() {
    if !own_server("mariadbd") || !require_root() {
        return;
    }
    let Some(disk) = TinyDisk::mount(2048) else {
        return;
    };
    let temp = disk.path().to_str().unwrap();
    let output = in_a_child(test_name!(the_disk_is_full), &[("TMPDIR", temp)]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains("out of disk space") || text.contains("No space left on device"),
        "{text}"
    );
}

#[test]
#[ignore = "for the test above"]
fn the_disk_is_full() {
    if is_child() {
        println!("{}", presets::mariadb().start().unwrap_err());
    }
}

// ---- crashes, clients that stay, mistakes -------------------------------------------------------

#[test]
fn committed_data_survives_a_kill() {
    if !own_server("mariadbd") {
        return;
    }
    let mut server = presets::mariadb().start().unwrap();
    let mut client = connect(&server.url());
    client.query_drop("CREATE TABLE k (x INT)").unwrap();
    for x in 0..50 {
        client.exec_drop("INSERT INTO k VALUES (?)", (x,)).unwrap();
    }
    server.kill().unwrap();
    server.start().unwrap();
    let found: Option<u32> = connect(&server.url())
        .query_first("SELECT COUNT(*) FROM k")
        .unwrap();
    assert_eq!(found, Some(50));
}

#[mirakuru::fixture(presets::mariadb().load_sql(SCHEMA))]
#[test]
fn a_database_is_dropped_in_spite_of_an_open_transaction(server: &Mariadb) {
    let database = server.database();
    let mut client = connect(&database.url());
    client.query_drop("BEGIN").unwrap();
    client
        .query_drop("INSERT INTO visits (who) VALUES ('me')")
        .unwrap();
    let (name, begun) = (database.name().to_owned(), Instant::now());
    drop(database);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let left: Vec<String> = connect(&server.url())
        .query(format!("SHOW DATABASES LIKE '{name}'"))
        .unwrap();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_paused_server_does_not_hold_up_the_end_of_a_test() {
    if !own_server("mariadbd") {
        return;
    }
    let mut server = presets::mariadb().start().unwrap();
    let database = server.database();
    server.pause().unwrap();
    let begun = Instant::now();
    drop(database);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    server.resume().unwrap();
}

#[test]
fn sql_that_would_not_be_in_the_databases_is_refused_with_its_line() {
    if !any_server("mariadbd") {
        return;
    }
    let path = std::env::temp_dir().join(format!("mkt-my-{} dump.sql", std::process::id()));
    let file = path.to_str().unwrap();
    let start = || presets::mariadb().load_sql(file).start().unwrap_err().to_string();
    let error = start();
    assert!(error.contains(file) && error.contains("no such file"), "{error}");
    for (sql, line, word) in [
        (
            "CREATE DATABASE app;\nUSE `app`;\nCREATE TABLE x (y INT);\n",
            "line 2",
            "USE `app`",
        ),
        (
            "SET autocommit = 0;\nINSERT INTO x VALUES (1);\n",
            "line 1",
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

const USERS: &str = "CREATE TABLE users (id INT PRIMARY KEY); INSERT INTO users VALUES (1);";

/// Runs the migrations, as an application does when it starts. Returns whether any were left to
/// run.
fn migrate(url: &str) -> Result<bool, mysql::Error> {
    let mut client = Conn::new(url)?;
    client.query_drop("CREATE TABLE IF NOT EXISTS migrations (name VARCHAR(9) PRIMARY KEY)")?;
    client.query_drop("INSERT IGNORE INTO migrations VALUES ('1')")?;
    let is_new = client.affected_rows() == 1;
    if is_new {
        client.query_drop("ALTER DATABASE CHARACTER SET latin1 COLLATE latin1_bin")?;
        client.query_drop("CREATE TABLE visits (who VARBINARY(9), user INT REFERENCES users (id))")?;
        client.query_drop("INSERT INTO visits VALUES (x'00ff27', 1)")?;
        client.query_drop("CREATE VIEW everybody AS SELECT who FROM visits")?;
        client.query_drop("CREATE PROCEDURE visit() INSERT INTO visits VALUES ('b', 1)")?;
    }
    Ok(is_new)
}

#[test]
fn a_seed_runs_once_for_a_key_and_each_database_begins_with_it() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    if !own_server("mariadbd") {
        return;
    }
    let runs = Arc::new(AtomicU32::new(0));
    let recipe = |key: &str| {
        let runs = Arc::clone(&runs);
        presets::mariadb().load_sql(USERS).seed(key, move |url| {
            runs.fetch_add(1, Ordering::Relaxed);
            migrate(url).map(drop)
        })
    };
    let key = new_key("once");
    let start = || recipe(&key).start().unwrap();
    let servers: Vec<Mariadb> = std::thread::scope(|scope| {
        let starts = [scope.spawn(start), scope.spawn(start)];
        starts.into_iter().map(|start| start.join().unwrap()).collect()
    });
    assert_eq!(runs.load(Ordering::Relaxed), 1, "two at once make one seed");
    for server in &servers {
        assert!(
            !migrate(&server.url()).unwrap(),
            "the common database is seeded, too"
        );
        let (one, other) = (server.database(), server.database());
        assert!(!migrate(&one.url()).unwrap(), "nothing is left to migrate");
        let mut client = connect(&one.url());
        client.query_drop("CALL visit()").unwrap();
        let all: Vec<Vec<u8>> = client.query("SELECT who FROM everybody ORDER BY who").unwrap();
        assert_eq!(all, [&b"\x00\xff'"[..], b"b"]);
        let collation: Option<String> = client.query_first("SELECT @@collation_database").unwrap();
        assert_eq!(collation.unwrap(), "latin1_bin");
        let count: Option<u32> = connect(&other.url())
            .query_first("SELECT count(*) FROM everybody")
            .unwrap();
        assert_eq!(count, Some(1), "each test has a database of its own");
    }
    drop(servers);
    recipe(&key).start().unwrap();
    assert_eq!(runs.load(Ordering::Relaxed), 1, "it is kept");
    recipe(&new_key("another")).start().unwrap();
    assert_eq!(runs.load(Ordering::Relaxed), 2, "a changed key is another seed");
}

#[mirakuru::fixture(presets::mariadb().load_sql(USERS).seed("shared 1", |url| migrate(url).map(drop)))]
static SEEDED: Mariadb;

#[test]
fn a_shared_server_may_have_a_seed() {
    if any_server("mariadbd") {
        assert!(!migrate(&SEEDED.database().url()).unwrap());
    }
}

#[test]
fn a_seed_that_fails_is_named_and_not_kept() {
    use std::sync::atomic::{AtomicU32, Ordering};
    static RUNS: AtomicU32 = AtomicU32::new(0);
    if !any_server("mariadbd") {
        return;
    }
    let key = new_key("fails");
    for round in 1..=2 {
        let recipe = presets::mariadb().seed(&*key, |url| {
            RUNS.fetch_add(1, Ordering::Relaxed);
            Conn::new(url)?.query_drop("SELECT * FROM nowhere")
        });
        let error = recipe.start().map(drop).unwrap_err().to_string();
        assert!(error.contains(&format!("run the seed `{key}`: ")), "{error}");
        assert!(error.contains("nowhere' doesn't exist"), "{error}");
        assert_eq!(RUNS.load(Ordering::Relaxed), round);
    }
}

#[test]
fn sql_text_is_piped_to_the_client_without_a_file() {
    if !own_server("mariadbd") {
        return;
    }
    // Neither the input nor the output fits into a pipe at once.
    let large = format!("SELECT '{}';\n", "x".repeat(2000)).repeat(200);
    let server = presets::mariadb()
        .file("test.sql", "-- the user's own file")
        .load_sql(large)
        .load_sql("CREATE TABLE visits (id INT)")
        .start()
        .unwrap();
    let socket = server.socket();
    let file = socket.parent().unwrap().join("test.sql");
    assert_eq!(fs::read_to_string(file).unwrap(), "-- the user's own file");
    connect(&server.url())
        .query_drop("SELECT id FROM visits")
        .unwrap();
}
