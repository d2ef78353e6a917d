//! The scope `run` in a user's crate, under real runners. The crate has five test binaries, and one
//! `static` in `tests/common/mod.rs`.
//!
//! This is a separate binary, because it runs cargo and nextest for minutes, and must not run twice
//! at the same time.

mod common;

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use common::{LONG, Scratch, alive, require, root, say, wait_until};

/// The module `common` of the five test binaries.
const COMMON: &str = r#"
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use mirakuru::{Executor, Prepare, Probe, Readiness, TcpExecutor};

#[mirakuru::fixture(tcp = "127.0.0.1:{port}", cmd = "redis-server --port {port} --save ''")]
pub static REDIS: TcpExecutor;

/// A user's own condition. Its type is different in each binary, but the service is the same.
#[derive(Clone)]
pub struct Mine;

impl Readiness for Mine {
    fn describe(&self) -> String {
        "it was there".to_owned()
    }
    fn prepare(&mut self, _: &mut Prepare<'_>) -> Result<(), mirakuru::Error> {
        Ok(())
    }
    fn probe(&mut self, _: &Probe<'_>) -> std::io::Result<bool> {
        Ok(true)
    }
}

#[mirakuru::fixture(cmd = "sleep 300", wait_for = Mine)]
pub static MINE: Executor<Mine>;

pub fn visit() {
    let began = Instant::now();
    let addr = REDIS.addr();
    let took = began.elapsed();
    let mut client = std::net::TcpStream::connect(addr).unwrap();
    client.write_all(b"INCR visits\r\n").unwrap();
    let mut answer = [0; 16];
    let length = client.read(&mut answer).unwrap();
    assert!(answer.starts_with(b":") && length > 1);
    let slow = std::env::var("SLOW").map_or(0, |ms| ms.parse().unwrap());
    std::thread::sleep(Duration::from_millis(slow));
    let line = format!("{} {} {} {}\n", std::process::id(), REDIS.pid(), MINE.pid(), took.as_micros());
    let uses = std::env::var("USES").unwrap();
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(uses).unwrap();
    file.write_all(line.as_bytes()).unwrap();
}
"#;

const BINARIES: usize = 5;
const TESTS: usize = 40;

/// Forty tests with this line as their body.
fn tests(of: &str, line: &str) -> String {
    let test = |n: usize| format!("\n#[test]\nfn {of}_{n}() {{\n    {line}\n}}\n");
    (0..TESTS).map(test).collect()
}

/// Creates a crate with these test files, and mirakuru as its only dependency.
fn fresh_crate(scratch: &Scratch, name: &str, files: &[(String, String)]) -> PathBuf {
    let dir = scratch.path().join("crate");
    fs::create_dir_all(dir.join("src")).expect("a writable directory");
    fs::create_dir_all(dir.join("tests/common")).expect("a writable directory");
    let manifest = format!(
        "[package]\nname = \"{name}\"\nedition = \"2024\"\n\n[dev-dependencies]\nmirakuru = {{ path = {:?} \
            }}\n\n[workspace]\n",
        root()
    );
    fs::write(dir.join("Cargo.toml"), manifest).expect("a writable directory");
    fs::write(dir.join("src/lib.rs"), "").expect("a writable directory");
    for (file, text) in files {
        fs::write(dir.join("tests").join(file), text).expect("a writable directory");
    }
    // Our lock file pins the versions that are tested and downloaded.
    let _ = fs::copy(root().join("Cargo.lock"), dir.join("Cargo.lock"));
    dir
}

fn visitors(scratch: &Scratch, name: &str) -> PathBuf {
    let mut files = vec![("common/mod.rs".to_owned(), COMMON.to_owned())];
    for binary in 0..BINARIES {
        let text = format!(
            "mod common;\n{}",
            tests(&format!("test_{binary}"), "common::visit();")
        );
        files.push((format!("binary_{binary}.rs"), text));
    }
    fresh_crate(scratch, name, &files)
}

/// Prepares `cargo ARGS` without the variables of our own runner.
fn cargo(scratch: &Scratch, dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (key, _) in env::vars_os() {
        if key.to_str().is_some_and(|key| {
            key.starts_with("NEXTEST") || key.starts_with("CARGO_PKG") || key.starts_with("MIRAKURU")
        }) {
            command.env_remove(key);
        }
    }
    command
        .args(args)
        .current_dir(dir)
        .env("TMPDIR", scratch.path())
        .env_remove("XDG_RUNTIME_DIR");
    common::build_as_a_user(&mut command);
    command
}

/// One run of the crate's tests, with a file to which each test adds a line.
struct Run {
    child: Child,
    uses: PathBuf,
    output: PathBuf,
}

impl Run {
    fn begin(scratch: &Scratch, mut cargo: Command, name: &str, slow: u64) -> Run {
        let uses = scratch.path().join(format!("uses-{name}"));
        let output = scratch.path().join(format!("output-{name}"));
        let file = fs::File::create(&output).expect("a writable directory");
        let child = cargo
            .env("USES", &uses)
            .env("SLOW", slow.to_string())
            .stdout(file.try_clone().expect("a descriptor"))
            .stderr(file)
            .spawn()
            .expect("cargo");
        Run { child, uses, output }
    }

    /// A column of the tests' lines. The columns are the pids of the test process, of Redis and of
    /// the other service, and microseconds.
    fn column(&self, column: usize) -> Vec<u32> {
        let text = fs::read_to_string(&self.uses).unwrap_or_default();
        let lines = text
            .lines()
            .filter_map(|line| line.split(' ').nth(column)?.parse().ok());
        lines.collect()
    }

    fn services(&self) -> BTreeSet<u32> {
        [1, 2]
            .into_iter()
            .flat_map(|column| self.column(column))
            .collect()
    }

    fn output(&self) -> String {
        fs::read_to_string(&self.output).unwrap_or_default()
    }

    /// Waits for the end of the run, and then for the end of its services. Returns whether the run
    /// succeeded, and the time between the two.
    fn end(&mut self) -> (bool, Duration) {
        let status = self.child.wait().expect("a child");
        let services = self.services();
        let began = Instant::now();
        // The services end within milliseconds, or as soon as Redis notices its signal. The limit
        // is for a busy machine.
        let gone = wait_until(|| !services.iter().any(|pid| alive(*pid)), 2 * LONG);
        assert!(gone, "after the runner the services are still there");
        (status.success(), began.elapsed())
    }
}

fn assert_no_file(scratch: &Scratch) {
    let left = || -> Vec<PathBuf> {
        let bases = fs::read_dir(scratch.path())
            .expect("the scratch directory")
            .flatten();
        let bases = bases.filter(|base| base.file_name().to_string_lossy().starts_with("mirakuru-"));
        let dirs = bases.flat_map(|base| fs::read_dir(base.path()).into_iter().flatten().flatten());
        dirs.map(|dir| dir.path()).collect()
    };
    assert!(
        wait_until(|| left().is_empty(), 2 * LONG),
        "left behind: {:?}",
        left()
    );
}

/// The installed runners: their names and arguments.
fn runners(scratch: &Scratch, dir: &Path) -> Vec<(&'static str, Vec<&'static str>)> {
    let mut runners = vec![("cargo-test", vec!["test", "--no-fail-fast"])];
    let nextest = cargo(scratch, dir, &["nextest", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if nextest.is_ok_and(|status| status.success()) {
        runners.push(("nextest", vec!["nextest", "run", "--no-fail-fast"]));
    } else {
        say("*** the scope of a run under nextest: SKIPPED, cargo-nextest is not installed ***");
    }
    runners
}

/// The tests use one target directory, and one of them measures times.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

#[test]
#[cfg_attr(mirakuru_portable, ignore = "the portable back end recognises no run")]
fn five_binaries_with_forty_tests_share_one_redis() {
    if require("redis-server").is_none() {
        return;
    }
    let _one = ONE_AT_A_TIME.lock();
    let scratch = Scratch::new();
    let dir = visitors(&scratch, "visitors");
    let built = cargo(&scratch, &dir, &["test", "--no-run"])
        .output()
        .expect("cargo");
    assert!(
        built.status.success(),
        "{}",
        String::from_utf8_lossy(&built.stderr)
    );

    for (name, args) in runners(&scratch, &dir) {
        let mut run = Run::begin(&scratch, cargo(&scratch, &dir, &args), name, 0);
        let (success, gone) = run.end();
        assert!(success, "{name}:\n{}", run.output());
        let processes = BTreeSet::from_iter(run.column(0)).len();
        assert_eq!(
            processes,
            if name == "nextest" {
                BINARIES * TESTS
            } else {
                BINARIES
            },
            "{name}"
        );
        assert_eq!(run.column(1).len(), BINARIES * TESTS);
        assert_eq!(BTreeSet::from_iter(run.column(1)).len(), 1, "{name}: one Redis");
        assert_eq!(
            BTreeSet::from_iter(run.column(2)).len(),
            1,
            "{name}: one of the other"
        );
        assert!(!run.output().contains("LEAK"), "{name}:\n{}", run.output());
        let mut took = run.column(3);
        took.sort_unstable();
        say(&format!(
            "{name}: {processes} processes, {} tests, one Redis, gone {} ms after the runner; first use {} \
                µs in the median, {} µs at most",
            BINARIES * TESTS,
            gone.as_millis(),
            took[took.len() / 2],
            took[took.len() - 1]
        ));
        assert_no_file(&scratch);
    }

    // Each runner is killed halfway through.
    for (name, args) in runners(&scratch, &dir) {
        let name = format!("{name}-killed");
        let mut run = Run::begin(&scratch, cargo(&scratch, &dir, &args), &name, 20);
        assert!(
            wait_until(|| run.column(0).len() >= 60, Duration::from_secs(120)),
            "{}",
            run.output()
        );
        run.child.kill().expect("it lives");
        let (_, gone) = run.end();
        assert_eq!(run.services().len(), 2, "{name}");
        // The remaining tests fail, and must not start services of their own.
        let tests: BTreeSet<u32> = run.column(0).into_iter().collect();
        assert!(wait_until(|| !tests.iter().any(|pid| alive(*pid)), LONG));
        // If a test started a service by mistake, the service would be recorded within this time.
        thread::sleep(Duration::from_millis(100));
        assert_eq!(run.services().len(), 2, "{name}");
        assert!(
            run.column(0).len() < BINARIES * TESTS,
            "{name}: it was at its end"
        );
        say(&format!("{name}: gone {} ms after the runner", gone.as_millis()));
        assert_no_file(&scratch);
    }

    // All runners run twice at the same time, with one directory for temporary files.
    let mut runs: Vec<(&str, Run)> = Vec::new();
    for copy in ["first", "second"] {
        for (name, args) in runners(&scratch, &dir) {
            let begun = Run::begin(
                &scratch,
                cargo(&scratch, &dir, &args),
                &format!("{name}-{copy}"),
                0,
            );
            runs.push((name, begun));
        }
    }
    let mut redis = BTreeSet::new();
    for (name, run) in &mut runs {
        let (success, _) = run.end();
        assert!(success, "{name}:\n{}", run.output());
        assert!(!run.output().contains("LEAK"), "{name}:\n{}", run.output());
        let own = BTreeSet::from_iter(run.column(1));
        assert_eq!(own.len(), 1, "{name}");
        redis.extend(own);
    }
    assert_eq!(redis.len(), runs.len(), "each run has its own");
    assert_no_file(&scratch);
}

/// Starts PostgreSQL with new data, as each test would do without a shared server.
const POSTGRES: &str = r#"
use std::time::Duration;

use mirakuru::{Exec, Executor, ExecutorBuilder, Signal};

fn id(field: usize) -> u32 {
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let line = users.lines().find(|line| line.starts_with("postgres:")).unwrap();
    line.split(':').nth(field).unwrap().parse().unwrap()
}

pub fn postgres() -> ExecutorBuilder<Exec> {
    let script = "initdb -D {dir}/data -A trust -U postgres --no-sync >/dev/null && \
                  exec postgres -D {dir}/data -p {port} -k {dir} -c listen_addresses=127.0.0.1 -c fsync=off";
    Executor::builder(["sh", "-c", script])
        .env("PATH", concat!("BIN", ":/usr/bin:/bin"))
        .uid(id(2))
        .gid(id(3))
        .current_dir("/")
        .stop_signal(Signal::Int)
        .timeout(Duration::from_secs(120))
        .wait_for(Exec::succeeds("BIN/pg_isready -q -h 127.0.0.1 -p {port}"))
}

pub fn ask(port: u16) {
    let answer = std::process::Command::new("BIN/psql")
        .args(["-h", "127.0.0.1", "-p", &port.to_string(), "-U", "postgres", "-Atc", "select 6 * 7"])
        .output()
        .unwrap();
    assert_eq!(answer.stdout, b"42\n", "{}", String::from_utf8_lossy(&answer.stderr));
}
"#;

/// Measures forty tests on PostgreSQL under nextest: with one server for all, and with a server for
/// each.
#[test]
#[ignore = "takes a minute; `-- --ignored postgres` prints the figures"]
fn forty_tests_on_postgres() {
    let Some(initdb) = require("initdb") else { return };
    let _one = ONE_AT_A_TIME.lock();
    // A directory on PATH may have links to only some of PostgreSQL's programs, so this uses the
    // directory with all of them.
    let initdb = fs::canonicalize(initdb).expect("it is there");
    let bin = initdb.parent().and_then(Path::to_str).expect("a directory");
    let scratch = Scratch::new();
    let setting = POSTGRES.replace("BIN", bin);
    let shared = "mod common;\n#[mirakuru::fixture(common::postgres())]\nstatic SERVER: \
        mirakuru::Executor<mirakuru::Exec>;\n";
    let own = "mod common;\n";
    let of_its_own = |n: usize| {
        format!(
            "\n#[mirakuru::fixture(common::postgres())]\n#[test]\nfn own_{n}(server: \
                &mirakuru::Executor<mirakuru::Exec>) {{\n    common::ask(server.port());\n}}\n"
        )
    };
    let dir = fresh_crate(
        &scratch,
        "on-postgres",
        &[
            ("common/mod.rs".to_owned(), setting),
            (
                "shared.rs".to_owned(),
                format!("{shared}{}", tests("shared", "common::ask(SERVER.port());")),
            ),
            (
                "own.rs".to_owned(),
                format!("{own}{}", (0..TESTS).map(of_its_own).collect::<String>()),
            ),
        ],
    );
    let built = cargo(&scratch, &dir, &["test", "--no-run"])
        .output()
        .expect("cargo");
    assert!(
        built.status.success(),
        "{}",
        String::from_utf8_lossy(&built.stderr)
    );
    for file in ["shared", "own"] {
        let began = Instant::now();
        let output = cargo(&scratch, &dir, &["nextest", "run", "--test", file])
            .output()
            .expect("cargo");
        let took = began.elapsed();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !text.contains("LEAK"), "{text}");
        let summary = text
            .lines()
            .find(|line| line.contains("Summary"))
            .unwrap_or_default();
        say(&format!(
            "{file}: {TESTS} tests on PostgreSQL, {:.1} s with cargo's own part; {}",
            took.as_secs_f64(),
            summary.trim()
        ));
    }
}
