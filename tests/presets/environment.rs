//! Tests presets in unusual environments, such as odd temporary directories, users with few rights,
//! and version managers.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::ops::Deref;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::common::{child, in_a_child, is_child, own_server, require, require_root, say, test_name};
use mirakuru::{Executor, Readiness, Recipe, presets};

const SCHEMA: &str = "CREATE TABLE visits (who TEXT)";

/// Whether the preset is chosen and its program is installed. In a child, `MIRAKURU_TEST_ONLY`
/// chooses the presets.
fn chosen(preset: &str, program: &str) -> bool {
    let only = env::var("MIRAKURU_TEST_ONLY").unwrap_or_default();
    let is_chosen = only.is_empty() || only.split(' ').any(|name| name == preset);
    is_chosen && require(program)
}

/// Starts each chosen preset, passes its name and pid to `check`, and uses it a little.
fn start_all(check: impl Fn(&str, u32)) {
    fn pid<R: Readiness, H: Deref<Target = Executor<R>>>(handle: &H) -> u32 {
        handle.pid()
    }
    macro_rules! each {
        ($($preset:ident, $program:literal, $recipe:expr, $use:expr;)*) => {$(
            if chosen(stringify!($preset), $program) {
                let server = $recipe.start().unwrap_or_else(|e| panic!("{e}"));
                check(stringify!($preset), pid(&server));
                #[allow(clippy::redundant_closure_call, reason = "the uses differ")]
                ($use)(&server);
            }
        )*};
    }
    each! {
        redis, "redis-server", presets::redis(), |server: &presets::Redis| drop(server.database());
        postgres, "postgres", presets::postgres().load_sql(SCHEMA), |server: &presets::Postgres| {
            let database = server.database();
            let mut client = postgres::Client::connect(&database.url(), postgres::NoTls).unwrap();
            client.execute("INSERT INTO visits VALUES ('żółć')", &[]).unwrap();
            for (name, value) in [("timezone", "UTC"), ("datestyle", "ISO, \
                MDY"), ("server_encoding", "UTF8")] {
                let row = client.query_one(&format!("SHOW {name}"), &[]).unwrap();
                assert_eq!(row.get::<_, String>(0), value, "{name}");
            }
        };
        mariadb, "mariadbd", presets::mariadb().load_sql(SCHEMA), |server: &presets::Mariadb| {
            use mysql::prelude::Queryable;
            let database = server.database();
            let mut client = mysql::Conn::new(database.url().as_str()).unwrap();
            client.query_drop("INSERT INTO visits VALUES ('żółć')").unwrap();
            let zone: Option<String> = client.query_first("SELECT TIMEDIFF(NOW(), UTC_TIMESTAMP())").unwrap();
            assert_eq!(zone.as_deref(), Some("00:00:00"));
        };
        memcached, "memcached", presets::memcached(), |_: &presets::Memcached| ();
        nats, "nats-server", presets::nats().jetstream(true), |server: &presets::Nats| drop(server.account());
        mosquitto, "mosquitto", presets::mosquitto().durable(true), |_: &presets::Mosquitto| ();
        etcd, "etcd", presets::etcd(), |_: &presets::Etcd| ();
        nginx, "nginx", presets::nginx("").document_root(env::temp_dir()), |_: &presets::Nginx| ();
        rabbitmq, "rabbitmq-server", presets::rabbitmq(), |server: &presets::Rabbitmq| drop(server.vhost());
    }
}

/// A directory for one test, removed at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = env::temp_dir().join(format!("mkt-env-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o1777)).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs `all_presets` in a child with only these presets. A `wrapper`, such as `setpriv` with its
/// arguments, comes before the binary.
fn child_under(wrapper: &[&str], only: &str, temp: &Path) -> Output {
    child(wrapper, test_name!(all_presets))
        .env("MIRAKURU_TEST_ONLY", only)
        .env("TMPDIR", temp)
        .env_remove("XDG_RUNTIME_DIR")
        .output()
        .unwrap()
}

#[track_caller]
fn assert_passes(output: &Output) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
}

#[track_caller]
fn assert_says(output: &Output, words: &[&str]) {
    let text = [&output.stdout[..], &output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    for word in words {
        assert!(text.contains(word), "{word} is not in {text}");
    }
}

// ---- variables ----------------------------------------------------------------------------------

const HOSTILE: [(&str, &str); 19] = [
    ("PGHOST", "192.0.2.1"),
    ("PGDATESTYLE", "German"),
    ("PGTZ", "Asia/Tokyo"),
    ("PGCLIENTENCODING", "LATIN1"),
    ("MYSQL_HOST", "192.0.2.1"),
    ("MARIADB_UNIX_PORT", "/nonexistent"),
    ("MYSQL_PWD", "wrong"),
    ("ETCD_WAL_DIR", "/nonexistent/wal"),
    ("ETCD_LISTEN_METRICS_URLS", "http://192.0.2.1:1"),
    ("RABBITMQ_MNESIA_DIR", "/nonexistent/mnesia"),
    ("RABBITMQ_PLUGINS_DIR", "/nonexistent/plugins"),
    ("ERL_FLAGS", "-no_such_module"),
    ("NGINX", "77;"),
    ("MEMCACHED_PORT_FILENAME", "/nonexistent/port"),
    ("LC_ALL", "tr_TR.UTF-8"),
    ("LANG", "xx"),
    ("TZ", "Asia/Tokyo"),
    ("NOTIFY_SOCKET", "/nonexistent/notify"),
    ("http_proxy", "http://192.0.2.1:1"),
];

#[test]
fn no_server_sees_the_developers_environment() {
    assert_passes(&in_a_child(test_name!(among_hostile_variables), &HOSTILE));
}

#[test]
#[ignore = "for the test above"]
fn among_hostile_variables() {
    if !is_child() {
        return;
    }
    start_all(|preset, pid| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let environment = String::from_utf8_lossy(&environment);
        let variables: Vec<&str> = environment.split('\0').collect();
        for (name, value) in HOSTILE {
            let hostile = format!("{name}={value}");
            assert!(!variables.contains(&hostile.as_str()), "{preset} sees {hostile}");
        }
        // If a server has overwritten its environment with its title, there is nothing to check.
        if variables.iter().any(|variable| variable.starts_with("PATH=")) {
            assert!(variables.contains(&"TZ=UTC"), "{preset}: {variables:?}");
        }
    });
}

// ---- temp dirs ----------------------------------------------------------------------------------

#[test]
fn a_temp_dir_may_have_any_name() {
    let scratch = Scratch::new("odd");
    for name in ["a b's \"c\\d", "{port}#;x", "ż%d"] {
        let temp = scratch.0.join(name);
        fs::create_dir(&temp).unwrap();
        fs::set_permissions(&temp, fs::Permissions::from_mode(0o1777)).unwrap();
        assert_passes(&child_under(&["env"], "", &temp));
    }
}

#[test]
fn a_temp_dir_whose_name_a_server_misreads_is_an_error_at_once() {
    let scratch = Scratch::new("misread");
    for (name, preset) in [
        (&b"a:b"[..], "mariadb"),
        (b"a\nb", "mariadb"),
        (b"a:b", "rabbitmq"),
        (b"\xff", "rabbitmq"),
        (b"a,b", "postgres"),
        (b"\xff", "postgres"),
        (b"a\tb", "mosquitto"),
        (b"[x]", "redis"),
        (b"[x]", "nginx"),
    ] {
        let temp = scratch.0.join(OsStr::from_bytes(name));
        fs::create_dir_all(&temp).unwrap();
        fs::set_permissions(&temp, fs::Permissions::from_mode(0o1777)).unwrap();
        let refused = child_under(&["env"], preset, &temp);
        assert_says(&refused, &["set TMPDIR to another directory"]);
    }
}

#[test]
fn all_start_where_path_is_not_set() {
    let scratch = Scratch::new("path");
    assert_passes(&child_under(&["env", "-u", "PATH"], "", &scratch.0));
}

#[test]
#[ignore = "for the tests around it"]
fn all_presets() {
    if is_child() {
        start_all(|_, _| ());
    }
}

#[test]
fn a_temp_dir_may_be_roots_alone() {
    if !require_root() {
        return;
    }
    let scratch = Scratch::new("root");
    fs::set_permissions(&scratch.0, fs::Permissions::from_mode(0o700)).unwrap();
    assert_passes(&child_under(&["env"], "redis postgres nats", &scratch.0));
}

// ---- users --------------------------------------------------------------------------------------

#[test]
fn root_that_may_not_become_another_user_runs_a_server_itself_or_says_why_not() {
    if !require_root() || !require("setpriv") {
        return;
    }
    let scratch = Scratch::new("caps");
    let wrapper = ["setpriv", "--bounding-set=-setuid,-setgid,-chown"];
    let willing = "redis mariadb memcached nats mosquitto etcd nginx";
    assert_passes(&child_under(&wrapper, willing, &scratch.0));
    let refused = child_under(&wrapper, "postgres", &scratch.0);
    assert_says(
        &refused,
        &["refuses to run as root", "CAP_CHOWN", "ordinary user"],
    );
}

#[test]
fn a_user_without_an_entry_in_passwd_runs_servers_or_learns_what_is_missing() {
    if !require_root() || !require("setpriv") {
        return;
    }
    let scratch = Scratch::new("uid");
    let wrapper = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"];
    let binary = env::current_exe().unwrap();
    let test = |path: &Path| {
        Command::new("setpriv")
            .args(&wrapper[1..])
            .args(["test", "-x"])
            .arg(path)
            .status()
    };
    if !test(&binary).is_ok_and(|status| status.success()) {
        say("\n*** SKIPPED: another user cannot execute this test ***\n");
        return;
    }
    let willing = "redis mariadb memcached nats mosquitto etcd nginx";
    assert_passes(&child_under(&wrapper, willing, &scratch.0));
    let refused = child_under(&wrapper, "postgres", &scratch.0);
    assert_says(&refused, &["/etc/passwd"]);
}

#[test]
fn a_file_is_the_servers_and_nobody_elses() {
    if !own_server("redis-server") {
        return;
    }
    let server = presets::redis()
        .file("tls/server.key", "secret {port}")
        .start()
        .unwrap();
    let path = server.dir().join("tls/server.key");
    let (file, dir) = (path.metadata().unwrap(), server.dir().metadata().unwrap());
    assert_eq!(file.mode() & 0o777, 0o600);
    assert_eq!(file.uid(), dir.uid());
    assert_eq!(
        fs::read_to_string(&path).unwrap(),
        format!("secret {}", server.port())
    );
}

#[test]
fn a_limit_that_a_server_cannot_live_with_is_named() {
    let scratch = Scratch::new("limits");
    for (preset, program, limit) in [
        ("etcd", "etcd", "-n 64"),
        ("etcd", "etcd", "-v 2000000"),
        ("rabbitmq", "rabbitmq-server", "-n 64"),
        ("rabbitmq", "rabbitmq-server", "-f 1024"),
        ("mariadb", "mariadbd", "-f 1024"),
        ("postgres", "postgres", "-s 256"),
    ] {
        if !chosen(preset, program) {
            continue;
        }
        let script = format!("ulimit {limit}; exec \"$@\"");
        let refused = child_under(&["sh", "-c", &script, "sh"], preset, &scratch.0);
        assert!(!refused.status.success(), "{preset} with {limit}");
        let option = format!("`ulimit {}`", &limit[..2]);
        assert_says(&refused, &[&option]);
    }
    // If memcached may open fewer files, it starts with fewer connections.
    let script = "ulimit -n 256; exec \"$@\"";
    assert_passes(&child_under(&["sh", "-c", script, "sh"], "memcached", &scratch.0));
}

#[test]
fn an_odd_umask_does_not_shut_a_server_out() {
    let scratch = Scratch::new("umask");
    let script = "umask 0277; exec \"$@\"";
    let presets = "redis postgres mariadb nats mosquitto etcd nginx";
    if require_root() {
        assert_passes(&child_under(&["sh", "-c", script, "sh"], presets, &scratch.0));
    }
}

// ---- version managers ---------------------------------------------------------------------------

#[test]
fn a_version_managers_stand_in_looks_in_the_directory_of_the_tests() {
    let Some(real) = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .find(|bin| bin.join("postgres").is_file())
    else {
        say("\n*** SKIPPED: PostgreSQL is not installed in Debian's place ***\n");
        return;
    };
    let scratch = Scratch::new("shims");
    let (shims, project) = (scratch.0.join("shims"), scratch.0.join("project"));
    fs::create_dir(&shims).unwrap();
    fs::create_dir(&project).unwrap();
    symlink(&real, project.join(".the-version")).unwrap();
    for program in ["postgres", "initdb", "psql"] {
        let path = shims.join(program);
        let script = format!("#!/bin/sh\nexec \"$PWD/.the-version/{program}\" \"$@\"\n");
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let path = format!("{}:{}", shims.display(), env::var("PATH").unwrap());
    let output = child(&[], test_name!(all_presets))
        .env("MIRAKURU_TEST_ONLY", "postgres")
        .env("PATH", path)
        .current_dir(&project)
        .output()
        .unwrap();
    assert_passes(&output);
}

#[test]
#[ignore = "for the test below"]
fn a_wrong_program() {
    if !is_child() {
        return;
    }
    fn check<R: Recipe>(preset: &str, recipe: R) {
        let variable = format!("MIRAKURU_{preset}_PROGRAM");
        let Err(error) = recipe.start() else {
            panic!("{preset} has started");
        };
        assert!(error.missing().is_none(), "it would be skipped: {error}");
        assert!(error.to_string().contains(&variable), "{variable}:\n{error}");
    }
    check("REDIS", presets::redis().optional());
    check("POSTGRES", presets::postgres().optional());
    check("MARIADB", presets::mariadb().optional());
    check("MEMCACHED", presets::memcached().optional());
    check("NATS", presets::nats().optional());
    check("MOSQUITTO", presets::mosquitto().optional());
    check("ETCD", presets::etcd().optional());
    check("NGINX", presets::nginx("").optional());
    check("RABBITMQ", presets::rabbitmq().optional());
}

#[test]
fn an_error_names_the_variable_that_names_the_program() {
    let presets = "REDIS POSTGRES MARIADB MEMCACHED NATS MOSQUITTO ETCD NGINX RABBITMQ";
    let names: Vec<String> = presets
        .split(' ')
        .map(|preset| format!("MIRAKURU_{preset}_PROGRAM"))
        .collect();
    // The program is missing, is not executable, or is not a server.
    for program in ["/mk/no-such-program", "/etc/passwd", "/bin/true"] {
        let variables: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), program)).collect();
        assert_passes(&in_a_child(test_name!(a_wrong_program), &variables));
    }
}
