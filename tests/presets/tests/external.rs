//! Servers that somebody else has started, by `MIRAKURU_*_URL`: presets use them, and leave them as
//! they were.
//!
//! Each test starts a server by hand, and a child of this binary uses it. The child's tests are
//! `#[ignore]`d, so that nobody else runs them.

use std::env;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use mirakuru::presets::{self, Redis};
use mirakuru::{Executor, Recipe, Tcp, TcpExecutor};
use mirakuru_preset_tests::{in_a_child, is_child};
use redis::Commands;

/// A server that was started by hand, and the child that uses it.
struct Subject<'a> {
    variable: &'static str,
    url: String,
    /// Everything that is on the server, as a text.
    dump: &'a dyn Fn() -> String,
    /// The test that makes things on it until it is killed.
    busy: &'static str,
}

impl Subject<'_> {
    /// Runs a test in a child, and fails unless it passes and the server is as it was.
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

    /// Kills a child at random moments, and fails unless the server is as it was after each.
    #[track_caller]
    fn is_as_it_was_after_kills(&self) {
        let rounds = env::var("MIRAKURU_KILL_ROUNDS")
            .ok()
            .and_then(|text| text.parse().ok());
        let before = (self.dump)();
        for round in 0..rounds.unwrap_or(4) {
            let moment = Duration::from_millis(random() % 700);
            let mut child = Busy::start(self);
            thread::sleep(moment);
            // The last round has nobody left to clean up but the next run.
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

/// A child that makes things, and its process.
struct Busy(Child);

impl Busy {
    fn start(subject: &Subject<'_>) -> Busy {
        let mut command = Command::new(env::current_exe().unwrap());
        command
            .args(["--exact", subject.busy, "--ignored", "--nocapture"])
            .env("MIRAKURU_TEST_CHILD", "1")
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
        // Those that are stopped fork no more.
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

fn within(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < limit {
        if holds() {
            return true;
        }
        thread::sleep(Duration::from_millis(20));
    }
    holds()
}

/// Whether a child goes on making things until it is killed.
fn goes_on() -> bool {
    env::var_os("MIRAKURU_TEST_BUSY").is_some()
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

/// All keys of all databases.
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
        // Not because the connection is gone.
        redis::cmd("PING").query::<()>(&mut client)?;
        Ok(text)
    };
    // The end of a lease disconnects those who look at its database.
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
        busy: "redis_is_busy",
    };
    subject.passes("redis_gives_each_test_a_database");
    subject.passes("redis_verbs_are_errors");
    subject.is_as_it_was_after_kills();
    // Eleven numbers are free for two processes of eight leases each.
    thread::scope(|scope| {
        let runs = [(); 2].map(|()| {
            scope.spawn(|| {
                in_a_child(
                    "redis_leases_meet_nobody",
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
    let errors = [
        server.stop(),
        server.kill(),
        server.restart(),
        server.restart_with(|recipe| recipe),
        server.stopped(|| ()),
        server.pause(),
        server.resume(),
        server.signal(mirakuru::Signal::Hup),
        presets::redis().config("maxmemory", "16mb").start().map(drop),
        presets::redis().port(1).start().map(drop),
    ];
    for (number, error) in errors.into_iter().enumerate() {
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("the server is at MIRAKURU_REDIS_URL and not ours"),
            "{number}: {error}"
        );
    }
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
        let output = in_a_child("redis_says_why", &[("MIRAKURU_REDIS_URL", &url)]);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            text.contains(part) && text.contains("MIRAKURU_REDIS_URL"),
            "{url}: {text}"
        );
        for secret in ["secret", "p@ss", "p%40ss"] {
            assert!(!text.contains(secret), "{text}");
        }
    }
}

/// Prints the error, also where a test may be skipped for a program that is missing.
#[test]
#[ignore = "a child of another test"]
fn redis_says_why() {
    if !is_child() {
        return;
    }
    println!("{}", presets::redis().optional().start().unwrap_err());
}
