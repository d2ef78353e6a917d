//! The scope `run`: all processes of a test run share one service, whichever process starts it and
//! however any of them ends. The file is long because all its tests use the same runner, test
//! processes and statics.
//!
//! The runner is another process of this binary ([`Run`]). It starts test processes on demand, and
//! sets `NEXTEST_RUN_ID` in their environment. Without that variable they would take the `cargo`
//! that runs *these* tests for their runner. The test processes are this binary as well
//! ([`test_process`]). `tests/run_scope_crate.rs` uses real runners and a real crate.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{
    self, ODD, SIGKILL, SIGTERM, Scratch, alive, fixed_port, is_root, numbers, random, say, send,
    skip_without_root, stat, test_name, victim, victim_dir, wait_until,
};
use mirakuru::{
    And, Error, Executor, ExecutorBuilder, HttpExecutor, Prepare, Probe, Readiness, Recipe, SdNotify, Shared,
    SimpleExecutor, Tcp, TcpExecutor, UnixSocketExecutor,
};

/// The limit of each wait. Usually milliseconds are enough. If the kernel schedules by session
/// (`sched_autogroup_enabled`) and other tests fork without pause, a supervisor in its own session
/// may wait half a minute for the processor.
const BOUND: Duration = Duration::from_secs(120);

// ---- what the test processes use ----------------------------------------------------------------

/// The helper service with a lock. If one is already running, a second one exits with status 77,
/// and its start fails.
fn alone() -> ExecutorBuilder<Tcp> {
    let dir = victim_dir().expect("only in test processes");
    let extra = env::var("EXTRA").unwrap_or_default();
    Executor::builder(["flock", "--nonblock", "--conflict-exit-code", "77", "--no-fork"])
        .arg(dir.join("alone"))
        .args([ODD, "--listen", "127.0.0.1:{port}", "--pids"])
        .arg(dir.join("services"))
        .args(extra.split_whitespace())
        .wait_for(Tcp::addr("127.0.0.1:{port}"))
        .timeout(BOUND)
}

#[mirakuru::fixture(alone())]
static SERVICE: TcpExecutor;

/// The same recipe, with a placeholder for an environment variable.
#[mirakuru::fixture(alone().env("VARIABLE", "{env:VARIABLE}"))]
static WITH_VARIABLE: TcpExecutor;

#[mirakuru::fixture(cmd = "sleep 100")]
static SLEEPER: SimpleExecutor;

/// The recipe of `SLEEPER`, in another static.
#[mirakuru::fixture(cmd = "sleep 100")]
static TWIN: SimpleExecutor;

/// A system in which one field needs another.
#[mirakuru::fixture]
struct System {
    #[fixture(cmd = ["sleep", "100"], env = ("PORT", "{port}"))]
    database: SimpleExecutor,
    #[fixture(cmd = "sleep 100", env = ("DATABASE", database.port().to_string()))]
    server: SimpleExecutor,
}

#[mirakuru::fixture(System)]
static SYSTEM: System;

/// Nodes that know each other's ports.
#[mirakuru::fixture(mirakuru::cluster(3, |node| {
    let peers: Vec<String> = node.peers().map(|peer| peer.port().to_string()).collect();
    let line = format!("node {} of {}, at {{port}}", node.index(), node.nodes().count());
    Executor::builder([ODD, "--listen", "127.0.0.1:{port}", "--line"])
        .arg(line)
        .env("PEERS", peers.join(" "))
        .env("PLACE", node.dir())
        .wait_for(Tcp::addr("127.0.0.1:{port}"))
        .timeout(BOUND)
})
.ready_when(mirakuru::Check::new("it had said who it is", |node| {
    Ok(node.logs().stdout().contains("of 3, at"))
})))]
static NODES: mirakuru::Cluster<TcpExecutor>;

#[cfg(feature = "presets")]
#[mirakuru::fixture(mirakuru::presets::redis())]
static REDIS: mirakuru::presets::Redis;

/// A service that uses a database that is leased to one test.
#[cfg(feature = "presets")]
#[mirakuru::fixture(cmd = "sleep 100", env = ("URL", REDIS.database().url()))]
static LEASED: SimpleExecutor;

/// A system whose server uses a database that is leased to one test.
#[cfg(feature = "presets")]
#[mirakuru::fixture]
struct LeasedSystem {
    #[fixture(mirakuru::presets::redis())]
    redis: mirakuru::presets::Redis,
    #[fixture(cmd = "sleep 100", env = ("URL", redis.database().url()))]
    server: SimpleExecutor,
}

#[cfg(feature = "presets")]
#[mirakuru::fixture(LeasedSystem)]
static LEASED_SYSTEM: LeasedSystem;

#[mirakuru::fixture(cmd = "sleep 100", scope = "process")]
static OF_THE_PROCESS: SimpleExecutor;

#[mirakuru::fixture(alone(), scope = "users")]
static OF_ITS_USERS: TcpExecutor;

/// A service with a pipe to one process cannot be shared by the run.
#[mirakuru::fixture(cmd = "cat", stdin = mirakuru::Stdio::piped())]
static READER: SimpleExecutor;

#[mirakuru::fixture(
    cmd = [ODD, "--http", "127.0.0.1:{port:web}", "--listen", "127.0.0.1:{port}", "--line", "hello"],
    http = "http://127.0.0.1:{port:web}/health?x=1",
    name = "handles",
    env = ("PLACE", "{dir} {port}"),
)]
static HTTP: HttpExecutor;

#[mirakuru::fixture(cmd = [ODD, "--unix", "{dir}/socket"], unix = "{dir}/socket")]
static UNIX: UnixSocketExecutor;

#[mirakuru::fixture(cmd = [ODD, "--sd-notify", "--listen", "127.0.0.1:{port}"], wait_for = SdNotify::new())]
static NOTIFIES: Executor<SdNotify>;

/// A service on the port in the variable `PORT`. The recipe reads the variable itself, without a
/// placeholder.
#[mirakuru::fixture(on_a_fixed_port())]
static FIXED: TcpExecutor;

fn on_a_fixed_port() -> ExecutorBuilder<Tcp> {
    let addr = format!("127.0.0.1:{}", env::var("PORT").expect("a port"));
    Executor::builder([ODD, "--listen", &addr])
        .wait_for(Tcp::addr(&addr))
        .timeout(BOUND)
}

/// A condition that always holds. Its `prepare` counts starts, because only the starting process
/// calls it.
struct Starting;

impl Readiness for Starting {
    fn describe(&self) -> String {
        "it was started".to_owned()
    }

    fn prepare(&mut self, _: &mut Prepare<'_>) -> Result<(), Error> {
        static PREPARED: AtomicU32 = AtomicU32::new(0);
        if PREPARED.fetch_add(1, Ordering::SeqCst) == 0 {
            count("starts");
            die_if_doomed("DOOM");
        }
        Ok(())
    }

    fn probe(&mut self, _: &Probe<'_>) -> io::Result<bool> {
        Ok(true)
    }
}

/// A recipe that counts its calls in files. Environment variables make it fail, panic, or kill the
/// starting process.
struct Eventful;

type EventfulExecutor = Executor<And<Starting, Tcp>>;

impl Recipe for Eventful {
    type Readiness = And<Starting, Tcp>;
    type Handle = EventfulExecutor;

    fn executor(&self) -> Result<ExecutorBuilder<Self::Readiness>, Error> {
        // The first process that gets here usually also starts the service, but not always.
        die_if_doomed("DOOM_EARLY");
        Ok(alone().wait_for(Starting.and(Tcp::addr("127.0.0.1:{port}"))))
    }

    fn set_up(&self, executor: &mut EventfulExecutor) -> Result<(), Error> {
        assert!(executor.is_running());
        count("set-ups");
        match env::var("SET_UP").as_deref() {
            Ok("error") => Err(Error::other("apply the migrations", "there are none")),
            Ok("panic") => panic!("the migrations are missing"),
            Ok("ends") => {
                send(executor.pid(), SIGKILL);
                // Waits until the supervisor has noticed the kill.
                while executor.is_running() {
                    thread::sleep(Duration::from_millis(1));
                }
                Ok(())
            }
            Ok("hangs") => loop {
                thread::sleep(BOUND);
            },
            _ => Ok(()),
        }
    }

    fn handle(self, executor: EventfulExecutor) -> Result<EventfulExecutor, Error> {
        Ok(executor)
    }
}

#[mirakuru::fixture(Eventful)]
static EVENTFUL: EventfulExecutor;

/// Kills this process after the number of microseconds in the variable. Only the first process of a
/// round is killed.
fn die_if_doomed(variable: &str) {
    let Ok(micros) = env::var(variable) else { return };
    let delay = Duration::from_micros(micros.parse().expect("a number"));
    let dir = victim_dir().expect("only in test processes");
    let doomed = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(dir.join("doomed"));
    if doomed.is_ok() {
        count("dying");
        thread::spawn(move || {
            // The variable sets how long after this point the kill comes.
            thread::sleep(delay);
            send(std::process::id(), SIGKILL);
        });
    }
}

/// Appends this process's id to a file.
fn count(file: &str) {
    let dir = victim_dir().expect("only in test processes");
    let mut file = fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(dir.join(file))
        .expect("a writable directory");
    file.write_all(format!("{}\n", std::process::id()).as_bytes())
        .expect("a writable file");
}

// ---- the runner and its test processes ----------------------------------------------------------

/// Starts a test process for each line of its input, and ends at the end of the input. A line
/// consists of a number and `KEY=VALUE` pairs, separated by tabs.
#[test]
#[ignore = "a part of other tests"]
fn runner() {
    let Some(dir) = victim_dir() else { return };
    println!("\nready");
    for line in std::io::stdin().lines() {
        let line = line.expect("text");
        let mut words = line.split('\t');
        let number = words.next().expect("a number").to_owned();
        let output = fs::File::create(dir.join(format!("out-{number}"))).expect("a writable directory");
        let mut command = victim(test_name!(test_process), &dir);
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            command.env(key, value);
        }
        if let Ok(wrapper) = env::var("WRAPPER") {
            let mut wrapped = Command::new("sh");
            wrapped.args(["-c", &wrapper, "sh"]).arg(command.get_program());
            wrapped.args(command.get_args()).envs(
                command
                    .get_envs()
                    .filter_map(|(key, value)| Some((key.to_owned(), value?.to_owned()))),
            );
            command = wrapped;
        }
        command.stdin(Stdio::null());
        command
            .stdout(output.try_clone().expect("a descriptor"))
            .stderr(output);
        let mut child = command.spawn().expect("it starts");
        println!("{}", child.id());
        let dir = dir.clone();
        thread::spawn(move || {
            let status = child.wait().expect("a child");
            let staged = dir.join(format!("exit-{number}.new"));
            fs::write(&staged, format!("{}", status.code().unwrap_or(-1))).expect("a writable directory");
            fs::rename(staged, dir.join(format!("exit-{number}"))).expect("a writable directory");
        });
    }
}

/// The work of a test. `USE` names the static. The test first waits for the file `AFTER`, and at
/// its end for the file `UNTIL`.
#[test]
#[ignore = "a part of other tests"]
fn test_process() {
    let Some(dir) = victim_dir() else { return };
    let wait_for = |key: &str| {
        let Ok(file) = env::var(key) else { return };
        assert!(wait_until(|| dir.join(&file).exists(), BOUND), "no file {file}");
    };
    println!();
    told("began", 1);
    wait_for("AFTER");
    let began = Instant::now();
    match env::var("USE").as_deref().unwrap_or("SERVICE") {
        "SERVICE" => tell(Shared::try_get(&SERVICE), began),
        "WITH_VARIABLE" => tell(Shared::try_get(&WITH_VARIABLE), began),
        "SLEEPER" => tell(Shared::try_get(&SLEEPER), began),
        "TWIN" => tell(Shared::try_get(&TWIN), began),
        "OF_ITS_USERS" => {
            tell(Shared::try_get(&OF_ITS_USERS), began);
            if let Ok(hold) = env::var("HOLD") {
                // Other tests use the service during this time.
                thread::sleep(Duration::from_millis(hold.parse().expect("a number")));
                told("still", std::net::TcpStream::connect(OF_ITS_USERS.addr()).is_ok());
            }
        }
        "OF_THE_PROCESS" => tell(Shared::try_get(&OF_THE_PROCESS), began),
        #[cfg(feature = "presets")]
        "LEASED" => tell(Shared::try_get(&LEASED), began),
        #[cfg(feature = "presets")]
        "LEASED_SYSTEM" => {
            let system = Shared::try_get(&LEASED_SYSTEM);
            assert!(system.is_err() || LEASED_SYSTEM.redis.is_running());
            tell(system.map(|system| &system.server), began);
        }
        "SYSTEM" => {
            tell(Shared::try_get(&SYSTEM).map(|system| &system.server), began);
            told("database", SYSTEM.database.pid());
            assert_eq!(
                SYSTEM.server.envs()[std::ffi::OsStr::new("DATABASE")],
                *SYSTEM.database.port().to_string()
            );
        }
        "NODES" => {
            tell(Shared::try_get(&NODES).map(|nodes| &nodes[0]), began);
            for (index, node) in NODES.iter().enumerate() {
                told(&format!("node {index}"), node.pid());
                assert_eq!(node.name(), format!("node-{index}"));
                let peers = NODES.iter().filter(|peer| peer.pid() != node.pid());
                let peers: Vec<String> = peers.map(|peer| peer.port().to_string()).collect();
                assert_eq!(node.envs()[std::ffi::OsStr::new("PEERS")], *peers.join(" "));
                assert_eq!(node.envs()[std::ffi::OsStr::new("PLACE")], *node.dir());
                assert!(std::net::TcpStream::connect(node.addr()).is_ok());
            }
        }
        "READER" => tell(Shared::try_get(&READER), began),
        "HTTP" => {
            tell(Shared::try_get(&HTTP), began);
            told("url", HTTP.url());
            told("web", HTTP.port_named("web"));
            told("addr", HTTP.addr());
        }
        "UNIX" => {
            tell(Shared::try_get(&UNIX), began);
            told("path", UNIX.path().display());
            assert!(std::os::unix::net::UnixStream::connect(UNIX.path()).is_ok());
        }
        "NOTIFIES" => {
            tell(Shared::try_get(&NOTIFIES), began);
            told("addr", NOTIFIES.addr());
        }
        "FIXED" => tell(Shared::try_get(&FIXED), began),
        // A service of this process alone, on the same port.
        "OWN_FIXED" => tell(on_a_fixed_port().queue(true).start().as_ref(), began),
        "EVENTFUL" => tell(Shared::try_get(&EVENTFUL), began),
        other => panic!("no static {other}"),
    }
    told("used", "1");
    if env::var("UNTIL").is_ok() {
        wait_for("UNTIL");
        if env::var("USE").is_err() {
            told("still", SERVICE.is_running());
        }
    }
}

/// Prints the properties of a service, or the error.
fn tell<R: mirakuru::Readiness>(service: Result<&Executor<R>, &Error>, began: Instant) {
    let took = began.elapsed();
    // The harness has begun a line without ending it.
    println!();
    told("took", took.as_micros());
    match service {
        Ok(executor) => {
            told("pid", executor.pid());
            told("running", executor.is_running());
            told("command", executor.command());
            told("name", executor.name());
            told("dir", executor.dir().display());
            told("envs", format_args!("{:?}", executor.envs()));
            told("log", executor.logs().path().display());
            told("output", format_args!("{:?}", executor.logs().stdout()));
        }
        Err(error) => {
            let kind = match error {
                Error::Died { .. } => "Died",
                Error::FailedBefore { .. } => "FailedBefore",
                Error::Exited { .. } => "Exited",
                Error::AlreadyRunning { .. } => "AlreadyRunning",
                Error::System { .. } => "System",
                _ => "another",
            };
            told("kind", kind);
            told("error", error.to_string().replace('\n', "\\n"));
        }
    }
}

fn told(key: &str, value: impl std::fmt::Display) {
    println!("told {key}={value}");
}

/// A runner with its test processes and their directory.
struct Run {
    runner: Child,
    dir: PathBuf,
    id: String,
    begun: AtomicU32,
}

/// One test process.
struct Test {
    dir: PathBuf,
    number: u32,
    pid: u32,
}

impl Run {
    fn begin(scratch: &Scratch) -> Run {
        Run::begin_with(scratch, &[])
    }

    fn begin_with(scratch: &Scratch, envs: &[(&str, &str)]) -> Run {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = format!(
            "run-of-a-test-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::SeqCst)
        );
        let mut command = victim(test_name!(runner), scratch.path());
        command
            .env_remove("NEXTEST_RUN_ID")
            .env_remove("MIRAKURU_SESSION_ID")
            .env_remove("XDG_RUNTIME_DIR")
            .envs(envs.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut runner = command.spawn().expect("the runner starts");
        let mut lines = BufReader::new(runner.stdout.as_mut().expect("its output")).lines();
        assert!(lines.any(|line| line.is_ok_and(|line| line == "ready")));
        Run {
            runner,
            dir: scratch.path().to_owned(),
            id,
            begun: AtomicU32::new(0),
        }
    }

    /// Starts a test process.
    fn test(&mut self, envs: &[(&str, &str)]) -> Test {
        self.test_of(&self.id.clone(), envs)
    }

    fn test_of(&mut self, id: &str, envs: &[(&str, &str)]) -> Test {
        // Several runs may use one directory, so the number includes the runner's pid.
        let number = self.runner.id() * 1000 + self.begun.fetch_add(1, Ordering::SeqCst);
        let mut line = format!("{number}\tNEXTEST_RUN_ID={id}");
        for (key, value) in envs {
            line.push_str(&format!("\t{key}={value}"));
        }
        line.push('\n');
        let input = self.runner.stdin.as_mut().expect("its input");
        input.write_all(line.as_bytes()).expect("the runner lives");
        let mut answer = Vec::new();
        // A buffered reader would lose bytes that it has read ahead.
        let output = self.runner.stdout.as_mut().expect("its output");
        let mut byte = [0];
        while std::io::Read::read(output, &mut byte).expect("the runner lives") == 1 && byte[0] != b'\n' {
            answer.push(byte[0]);
        }
        let pid = String::from_utf8(answer)
            .expect("text")
            .trim()
            .parse()
            .expect("a pid");
        Test {
            dir: self.dir.clone(),
            number,
            pid,
        }
    }

    /// Ends the runner: kills it, or closes its input.
    fn end(mut self, killed: bool) {
        if killed {
            self.runner.kill().expect("it lives");
        }
        drop(self.runner.stdin.take());
        self.runner.wait().expect("a child");
    }
}

impl Test {
    fn output(&self) -> String {
        fs::read_to_string(self.dir.join(format!("out-{}", self.number))).unwrap_or_default()
    }

    fn told(&self) -> BTreeMap<String, String> {
        let output = self.output();
        let lines = output
            .lines()
            .filter_map(|line| line.strip_prefix("told ")?.split_once('='));
        lines
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    }

    /// Waits until the process has asked for the service and is probably waiting for it. If it is
    /// late, the tests still pass.
    #[track_caller]
    fn began(&self) {
        let has_begun = || self.told().contains_key("began");
        assert!(wait_until(has_begun, BOUND), "{}", self.output());
        // Nothing shows when the process begins to wait, so allow it a moment.
        thread::sleep(Duration::from_millis(50));
    }

    /// Waits until the test process has tried to use the service. Returns all that it has printed.
    #[track_caller]
    fn used(&self) -> BTreeMap<String, String> {
        assert!(
            wait_until(|| self.told().contains_key("used"), BOUND),
            "it hangs, or failed:\n{}",
            self.output()
        );
        self.told()
    }

    /// The pid of the service that the test process uses.
    #[track_caller]
    fn service(&self) -> u32 {
        let told = self.used();
        let pid = told.get("pid").unwrap_or_else(|| panic!("no service: {told:?}"));
        pid.parse().expect("a pid")
    }

    /// The kind and the text of the test process's error.
    #[track_caller]
    fn error(&self) -> (String, String) {
        let mut told = self.used();
        let kind = told
            .remove("kind")
            .unwrap_or_else(|| panic!("no error: {told:?}"));
        (kind, told["error"].clone())
    }

    /// Waits until the test process has ended successfully.
    #[track_caller]
    fn ended(&self) {
        assert_eq!(self.exit(), Some(0), "{}", self.output());
    }

    fn exit(&self) -> Option<i32> {
        let file = self.dir.join(format!("exit-{}", self.number));
        let mut code = None;
        let _ = wait_until(
            || {
                code = fs::read_to_string(&file).ok().and_then(|text| text.parse().ok());
                code.is_some()
            },
            BOUND,
        );
        code
    }
}

fn touch(scratch: &Scratch, file: &str) {
    fs::write(scratch.path().join(file), "").expect("a writable directory");
}

/// All files and directories of mirakuru in the directory of a run, except for kept logs.
fn left_in(dir: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for base in fs::read_dir(dir).into_iter().flatten().flatten() {
        if base.file_name().to_string_lossy().starts_with("mirakuru-") {
            // Only the logs of failed services may be kept.
            let is_log = |path: &Path| {
                let is_kept = path.join("kept").exists() && !path.join("d").exists();
                path.ends_with("kept-logs") || (is_kept && !path.join("lock").exists())
            };
            let entries = fs::read_dir(base.path()).into_iter().flatten().flatten();
            let entries = entries.filter(|entry| !is_log(&entry.path()));
            names.extend(entries.map(|entry| entry.file_name().to_string_lossy().into_owned()));
        }
    }
    names
}

/// The pids of a service, its worker and its guard.
fn with_supervisors(service: u32) -> [u32; 3] {
    let parent = |pid: u32| stat(pid).expect("it lives").1;
    let worker = parent(service);
    [service, worker, parent(worker)]
}

/// Waits until these processes and all files are gone. Returns how long the processes took.
#[track_caller]
fn assert_nothing_left(scratch: &Scratch, pids: &[u32]) -> Duration {
    let began = Instant::now();
    let living = || pids.iter().copied().filter(|pid| alive(*pid)).collect::<Vec<_>>();
    assert!(
        wait_until(|| living().is_empty(), BOUND),
        "survivors: {:?}",
        living()
    );
    let took = began.elapsed();
    assert!(
        wait_until(|| left_in(scratch.path()).is_empty(), BOUND),
        "left behind: {:?}",
        left_in(scratch.path())
    );
    took
}

fn services(scratch: &Scratch) -> Vec<u32> {
    numbers(&scratch.file("services"))
}

// ---- one service, for all, until the runner ends ------------------------------------------------

#[test]
#[cfg_attr(mirakuru_portable, ignore = "the portable back end recognises no run")]
fn the_first_starts_it_and_the_others_attach_until_the_runner_ends() {
    for killed in [false, true] {
        let scratch = Scratch::new();
        let mut run = Run::begin(&scratch);
        let first = run.test(&[]);
        first.ended();
        let service = first.service();
        assert!(
            alive(service),
            "it outlives the process that started it, with nobody using it"
        );
        // A service that ends when it has no users would begin to end within this time.
        thread::sleep(Duration::from_millis(50));
        for _ in 0..3 {
            let next = run.test(&[]);
            next.ended();
            assert_eq!(next.service(), service);
        }
        assert_eq!(services(&scratch), [service]);
        let all = with_supervisors(service);
        run.end(killed);
        assert_nothing_left(&scratch, &all);
    }
}

#[test]
#[cfg_attr(mirakuru_portable, ignore = "the portable back end recognises no run")]
fn two_runs_side_by_side_have_one_each() {
    let scratches = [Scratch::new(), Scratch::new()];
    // Both runs use one temporary directory, as real runs do.
    let tmp = scratches[0].path().to_str().expect("a path in UTF-8").to_owned();
    let mut runs: Vec<Run> = scratches.iter().map(Run::begin).collect();
    let tests: Vec<Test> = runs
        .iter_mut()
        .flat_map(|run| [run.test(&[("TMPDIR", &tmp)]), run.test(&[("TMPDIR", &tmp)])])
        .collect();
    let pids: Vec<u32> = tests.iter().map(Test::service).collect();
    assert!(
        pids[0] == pids[1] && pids[2] == pids[3] && pids[0] != pids[2],
        "{pids:?}"
    );
    tests.iter().for_each(Test::ended);
    let first = with_supervisors(pids[0]);
    let second = with_supervisors(pids[2]);
    let mut runs = runs.into_iter();
    runs.next().expect("the first").end(true);
    assert!(wait_until(|| !first.iter().any(|pid| alive(*pid)), BOUND));
    assert!(second.iter().all(|pid| alive(*pid)), "the other's is untouched");
    runs.next().expect("the second").end(true);
    assert_nothing_left(&scratches[0], &second);
}

#[test]
#[cfg_attr(mirakuru_portable, ignore = "the portable back end recognises no run")]
fn what_makes_it_another_one() {
    let scratch = Scratch::new();
    let mut run = Run::begin(&scratch);
    let mut pid = |envs: &[(&str, &str)]| {
        let test = run.test(envs);
        test.ended();
        test.service()
    };
    let sleeper = pid(&[("USE", "SLEEPER")]);
    let twin = pid(&[("USE", "TWIN")]);
    assert_ne!(sleeper, twin, "the same recipe under another name");
    assert_eq!(sleeper, pid(&[("USE", "SLEEPER")]));
    assert_eq!(twin, pid(&[("USE", "TWIN")]));
    // Two of these services may not run at the same time in one directory, so each has its own.
    let first = scratch.file("1");
    fs::create_dir(&first).expect("a writable directory");
    let other = scratch.file("2");
    fs::create_dir(&other).expect("a writable directory");
    let one = pid(&[("MIRAKURU_TEST_VICTIM", &first)]);
    let two = pid(&[("MIRAKURU_TEST_VICTIM", &other)]);
    assert_ne!(one, two, "other arguments");
    assert_eq!(one, pid(&[("MIRAKURU_TEST_VICTIM", &first)]));
    let own = |name: &str| {
        let dir = scratch.file(name);
        fs::create_dir(&dir).expect("a writable directory");
        dir
    };
    let (a, b) = (own("a"), own("b"));
    let variable = |dir: &str, value: &str| {
        [
            ("USE", "WITH_VARIABLE".to_owned()),
            ("MIRAKURU_TEST_VICTIM", dir.to_owned()),
            ("VARIABLE", value.to_owned()),
        ]
    };
    let mut with = |dir: &str, value: &str| {
        let envs = variable(dir, value);
        pid(&envs.each_ref().map(|(key, value)| (*key, value.as_str())))
    };
    let x = with(&a, "x");
    assert_eq!(x, with(&a, "x"));
    assert_ne!(x, with(&b, "x"));
    let all = [sleeper, twin, one, two, x];
    assert!(all.iter().all(|pid| alive(*pid)));
    // The recipe differs only in the variable. The start fails at the lock, so this is not the same
    // service.
    let y = run.test(&[
        ("USE", "WITH_VARIABLE"),
        ("MIRAKURU_TEST_VICTIM", &a),
        ("VARIABLE", "y"),
    ]);
    assert_eq!(y.error().0, "Exited", "{}", y.output());
    run.end(false);
    assert_nothing_left(&scratch, &all);
}

#[test]
fn the_scope_of_a_process_ends_with_it() {
    let scratch = Scratch::new();
    let mut run = Run::begin(&scratch);
    for name in ["OF_THE_PROCESS", "READER"] {
        let tests = [
            run.test(&[("USE", name), ("UNTIL", name)]),
            run.test(&[("USE", name), ("UNTIL", name)]),
        ];
        let pids: Vec<u32> = tests.iter().map(Test::service).collect();
        assert_ne!(pids[0], pids[1]);
        touch(&scratch, name);
        tests.iter().for_each(Test::ended);
        assert_nothing_left(&scratch, &pids);
    }
    run.end(false);
}

#[test]
fn a_variable_lets_the_services_of_the_run_end_with_their_process() {
    let scratch = Scratch::new();
    let mut run = Run::begin_with(&scratch, &[("MIRAKURU_SCOPE", "process")]);
    let tests = [
        run.test(&[("USE", "SLEEPER"), ("UNTIL", "end")]),
        run.test(&[("USE", "SLEEPER"), ("UNTIL", "end")]),
    ];
    let pids: Vec<u32> = tests.iter().map(Test::service).collect();
    assert_ne!(pids[0], pids[1]);
    touch(&scratch, "end");
    tests.iter().for_each(Test::ended);
    // The services are gone although the runner still lives.
    assert!(pids.iter().all(|pid| !alive(*pid)), "{pids:?}");
    run.end(false);
    assert_nothing_left(&scratch, &pids);
}

#[test]
#[cfg_attr(mirakuru_portable, ignore = "the portable back end recognises no run")]
fn the_scope_of_its_users_ends_with_the_last_of_them() {
    let scratch = Scratch::new();
    let mut run = Run::begin(&scratch);
    let mut begin = |until: &str| run.test(&[("USE", "OF_ITS_USERS"), ("UNTIL", until)]);
    let (starter, killed, last) = (begin("first"), begin("never"), begin("last"));
    let service = starter.service();
    assert_eq!([killed.service(), last.service()], [service; 2]);
    touch(&scratch, "first");
    starter.ended();
    send(killed.pid, SIGKILL);
    assert_eq!(killed.exit(), Some(-1));
    assert!(alive(service), "it has a user");
    touch(&scratch, "last");
    last.ended();
    assert!(!alive(service), "its last user waits for its end");
    assert_nothing_left(&scratch, &[service]);

    // The next user starts another service, which ends even if that user is killed.
    let next = begin("never");
    let another = with_supervisors(next.service());
    assert_ne!(another[0], service);
    send(next.pid, SIGKILL);
    assert_nothing_left(&scratch, &another);
    assert_eq!(services(&scratch), [service, another[0]]);
    run.end(false);
}

#[test]
#[cfg_attr(mirakuru_portable, ignore = "the portable back end recognises no run")]
fn a_user_that_comes_while_the_service_ends_has_a_new_one() {
    let scratch = Scratch::new();
    let mut run = Run::begin(&scratch);
    let slow = ("EXTRA", "--stop-delay 300");
    let mut begin = |until: &str| run.test(&[("USE", "OF_ITS_USERS"), slow, ("UNTIL", until)]);
    let first = begin("end");
    let service = first.service();
    touch(&scratch, "end");
    let is_published = || {
        let bases = fs::read_dir(scratch.path()).into_iter().flatten().flatten();
        let dirs = bases.flat_map(|base| fs::read_dir(base.path()).into_iter().flatten().flatten());
        dirs.into_iter().any(|dir| dir.path().join("state").exists())
    };
    assert!(wait_until(|| !is_published(), BOUND), "its last user has gone");
    let next = begin("next");
    assert_ne!(next.service(), service);
    touch(&scratch, "next");
    next.ended();
    first.ended();
    assert_nothing_left(&scratch, &services(&scratch));
    run.end(false);
}

/// The service cannot run twice at the same time, so a user that starts a second one too early
/// fails.
#[test]
#[cfg_attr(mirakuru_portable, ignore = "the portable back end recognises no run")]
fn users_come_and_go_and_each_finds_the_service() {
    let scratch = Scratch::new();
    let mut run = Run::begin(&scratch);
    let tests: Vec<Test> = (0..40_u64)
        .map(|number| {
            // The tests ask for the service at different moments.
            thread::sleep(Duration::from_millis(number * 7 % 30));
            let hold = (number * 13 % 40).to_string();
            run.test(&[("USE", "OF_ITS_USERS"), ("HOLD", &hold)])
        })
        .collect();
    for test in &tests {
        test.ended();
        let told = test.used();
        assert_eq!(
            told.get("still").map(String::as_str),
            Some("true"),
            "{}",
            test.output()
        );
    }
    let started = services(&scratch);
    assert!(started.len() <= tests.len(), "{started:?}");
    assert_nothing_left(&scratch, &started);
    run.end(false);
}

#[test]
#[cfg_attr(mirakuru_portable, ignore = "the portable back end recognises no run")]
fn a_variable_lets_systems_and_clusters_of_the_run_end_with_their_last_user() {
    let scratch = Scratch::new();
    let mut run = Run::begin_with(&scratch, &[("MIRAKURU_SCOPE", "users")]);
    for name in ["SLEEPER", "SYSTEM", "NODES"] {
        let mut begin = |until: &str| run.test(&[("USE", name), ("UNTIL", until)]);
        let tests = [begin("never"), begin(name)];
        let pids: Vec<u32> = tests.iter().map(Test::service).collect();
        assert_eq!(pids[0], pids[1], "{name}");
        send(tests[0].pid, SIGKILL);
        assert_eq!(tests[0].exit(), Some(-1));
        assert!(alive(pids[0]), "{name}");
        touch(&scratch, name);
        tests[1].ended();
        assert!(!alive(pids[0]), "{name}");
        assert_nothing_left(&scratch, &pids);
    }
    run.end(false);
}

#[test]
#[cfg_attr(mirakuru_portable, ignore = "the portable back end recognises no run")]
fn another_binary_attaches_to_it() {
    let scratch = Scratch::new();
    let copy = scratch.file("another-binary");
    fs::copy(env::current_exe().expect("this binary"), &copy).expect("a copy");
    let mut run = Run::begin_with(
        &scratch,
        &[(
            "WRAPPER",
            "if [ -n \"$COPY\" ]; then shift; set -- \"$COPY\" \"$@\"; fi; \"$@\"",
        )],
    );
    let first = run.test(&[]);
    first.ended();
    // A wrapper starts this process and has the variable as well, like cargo's `runner`.
    let second = run.test(&[("COPY", &copy)]);
    second.ended();
    assert_eq!(first.service(), second.service());
    let all = with_supervisors(first.service());
    run.end(true);
    assert_nothing_left(&scratch, &all);
}

/// A test binary that is run by hand has no runner. Its service belongs to the process and ends
/// with it.
#[test]
fn without_a_runner_it_is_the_process_s_own() {
    let scratch = Scratch::new();
    let tests: Vec<Test> = (0..2)
        .map(|number| {
            let output =
                fs::File::create(scratch.file(&format!("out-{number}"))).expect("a writable directory");
            let command = victim(test_name!(test_process), scratch.path());
            // The shell ends at once, so the process is not a descendant of the cargo that runs
            // this test.
            let mut shell = Command::new("sh");
            shell
                .args(["-c", "\"$@\" & echo $! >\"$PID\"", "sh"])
                .arg(command.get_program())
                .args(command.get_args())
                .envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))))
                .env_remove("NEXTEST_RUN_ID")
                .env_remove("MIRAKURU_SESSION_ID")
                .env_remove("XDG_RUNTIME_DIR")
                .env("USE", "SLEEPER")
                .env("AFTER", "go")
                .env("UNTIL", "end")
                .env("PID", scratch.file(&format!("pid-{number}")))
                .stdin(Stdio::null())
                .stderr(output.try_clone().expect("a descriptor"));
            let shell = shell.stdout(output).status().expect("sh");
            assert!(shell.success());
            Test {
                dir: scratch.path().to_owned(),
                number,
                pid: numbers(&scratch.file(&format!("pid-{number}")))[0],
            }
        })
        .collect();
    touch(&scratch, "go");
    let pids: Vec<u32> = tests.iter().map(Test::service).collect();
    assert_ne!(pids[0], pids[1]);
    touch(&scratch, "end");
    let all: Vec<u32> = tests.iter().map(|test| test.pid).chain(pids).collect();
    assert_nothing_left(&scratch, &all);
}

#[test]
#[cfg_attr(mirakuru_portable, ignore = "the portable back end recognises no run")]
fn a_system_and_a_cluster_are_started_once_in_a_run() {
    let scratch = Scratch::new();
    let mut run = Run::begin(&scratch);
    let mut all: Vec<u32> = Vec::new();
    for (name, keys) in [
        ("SYSTEM", &["pid", "database"][..]),
        ("NODES", &["node 0", "node 1", "node 2"]),
    ] {
        // Six processes ask for the service at the same time, and one asks later.
        let tests: Vec<Test> = (0..6)
            .map(|_| run.test(&[("USE", name), ("AFTER", name)]))
            .collect();
        touch(&scratch, name);
        tests.iter().for_each(Test::ended);
        let late = run.test(&[("USE", name)]);
        late.ended();
        let late = late.told();
        all.extend(keys.iter().map(|key| late[*key].parse::<u32>().expect("a pid")));
        for test in &tests {
            let told = test.told();
            for key in keys {
                assert_eq!(told[*key], late[*key], "{name}: {key}");
            }
        }
    }
    run.end(true);
    assert_nothing_left(&scratch, &all);
}

#[test]
#[cfg(feature = "presets")]
#[cfg_attr(mirakuru_portable, ignore = "the portable back end recognises no run")]
fn a_service_of_the_run_is_not_made_from_a_lease_of_a_test() {
    if Command::new("redis-server").arg("--version").output().is_err() {
        return say("skipped: there is no redis-server");
    }
    let scratch = Scratch::new();
    let mut run = Run::begin(&scratch);
    for name in ["LEASED", "LEASED_SYSTEM"] {
        for _ in 0..2 {
            let test = run.test(&[("USE", name)]);
            test.ended();
            let (kind, error) = test.error();
            assert_eq!(kind, "System", "{error}");
            assert!(error.contains("leased for one test"), "{error}");
        }
    }
    run.end(false);
}

#[test]
#[cfg_attr(mirakuru_portable, ignore = "the portable back end recognises no run")]
fn the_handles_of_who_attaches_are_those_of_who_started_it() {
    let scratch = Scratch::new();
    let mut run = Run::begin(&scratch);
    let mut all = Vec::new();
    for name in ["HTTP", "UNIX", "NOTIFIES", "SERVICE"] {
        let first = run.test(&[("USE", name)]);
        first.ended();
        let second = run.test(&[("USE", name)]);
        second.ended();
        let (mut first, mut second) = (first.told(), second.told());
        all.push(first["pid"].parse().expect("a pid"));
        for key in ["took", "output"] {
            let values = [first.remove(key), second.remove(key)].map(|value| value.expect("it was told"));
            // The log may already contain the request that found the service ready.
            assert!(
                key != "output" || name != "HTTP" || values.iter().all(|value| value.starts_with("\"hello"))
            );
        }
        assert_eq!(first, second);
        assert_eq!(first["running"], "true");
        match name {
            "HTTP" => {
                assert_eq!(first["name"], "handles");
                assert_eq!(
                    first["url"],
                    format!("http://127.0.0.1:{}/health?x=1", first["web"])
                );
                assert!(first["envs"].contains(&first["dir"]), "{first:?}");
            }
            "UNIX" => assert!(first["path"].starts_with(&first["dir"]), "{first:?}"),
            "NOTIFIES" => assert!(first["envs"].contains("NOTIFY_SOCKET"), "{first:?}"),
            _ => {}
        }
    }
    run.end(false);
    assert_nothing_left(&scratch, &all);
}

#[test]
#[cfg_attr(mirakuru_portable, ignore = "the portable back end recognises no run")]
fn it_is_set_up_once_in_a_run() {
    let scratch = Scratch::new();
    let mut run = Run::begin(&scratch);
    let tests: Vec<Test> = (0..8).map(|_| run.test(&[("USE", "EVENTFUL")])).collect();
    let pids: Vec<u32> = tests.iter().map(Test::service).collect();
    assert!(pids.iter().all(|pid| *pid == pids[0]), "{pids:?}");
    assert_eq!(numbers(&scratch.file("set-ups")).len(), 1);
    tests.iter().for_each(Test::ended);
    run.end(false);
    assert_nothing_left(&scratch, &pids);
}

// ---- what goes wrong ----------------------------------------------------------------------------

#[test]
#[cfg_attr(mirakuru_portable, ignore = "the portable back end recognises no run")]
fn a_failure_is_told_to_all_at_once() {
    for (how, said) in [
        ("error", "failed to apply the migrations: there are none"),
        ("panic", "the migrations are missing"),
        ("ends", "killed by SIGKILL"),
    ] {
        let scratch = Scratch::new();
        let mut run = Run::begin(&scratch);
        let envs = [
            ("USE", "EVENTFUL"),
            ("SET_UP", how),
            ("AFTER", "go"),
            ("EXTRA", "--line last-words"),
        ];
        let tests: Vec<Test> = (0..20).map(|_| run.test(&envs)).collect();
        touch(&scratch, "go");
        let mut before = 0;
        for test in &tests {
            let exit = test.exit();
            let told = test.told();
            let Some(kind) = told.get("kind") else {
                // This process ran the set-up, which panicked.
                assert!(how == "panic" && exit == Some(101), "{exit:?} {}", test.output());
                continue;
            };
            assert!(told["error"].contains(said), "{told:?}");
            if kind == "FailedBefore" {
                assert!(told["error"].contains("(this happened in it-"), "{told:?}");
                before += 1;
            }
        }
        assert_eq!(before, 19, "{how}");
        assert_eq!(numbers(&scratch.file("starts")).len(), 1, "one attempt");
        // A late process gets the error at once, without a start or a wait.
        let late = run.test(&envs);
        assert_eq!(late.error().0, "FailedBefore");
        let took: u64 = late.told()["took"].parse().expect("a number");
        assert!(took < 1_000_000, "{took} µs");
        let pids = services(&scratch);
        assert!(!pids.iter().any(|pid| alive(*pid)));
        run.end(false);
        // The run's directory still records the failure, because no process was left to remove it.
        // The next run removes it at its first start.
        let mut next = Run::begin(&scratch);
        let test = next.test(&[("USE", "SLEEPER")]);
        test.ended();
        assert_eq!(
            left_in(scratch.path()).len(),
            2,
            "a run and a service: {:?}",
            left_in(scratch.path())
        );
        let service = test.service();
        next.end(false);
        assert_nothing_left(&scratch, &[service]);
    }
}

#[test]
#[cfg_attr(mirakuru_portable, ignore = "the portable back end recognises no run")]
fn a_service_that_dies_is_told_and_not_replaced() {
    for killed in [true, false] {
        let scratch = Scratch::new();
        let mut run = Run::begin(&scratch);
        // All users pass the same arguments, because other arguments would make it another service.
        let extra = "--line last-words --exit-on-term 3";
        let user = run.test(&[("EXTRA", extra), ("UNTIL", "died")]);
        let service = user.service();
        send(service, if killed { SIGKILL } else { SIGTERM });
        assert!(wait_until(|| !alive(service), BOUND));
        let late = run.test(&[("EXTRA", extra)]);
        let (kind, error) = late.error();
        assert_eq!(kind, "Died", "{error}");
        let how = if killed { "SIGKILL" } else { "exited with status 3" };
        assert!(error.contains(how) && error.contains("last-words"), "{error}");
        touch(&scratch, "died");
        user.ended();
        assert_eq!(user.told()["still"], "false");
        assert_eq!(services(&scratch), [service]);
        run.end(true);
        assert_nothing_left(&scratch, &[service]);
    }
}

/// A service that daemonizes counts as running as long as any of its processes lives.
#[test]
#[cfg_attr(mirakuru_portable, ignore = "the portable back end recognises no run")]
fn a_daemon_is_running_until_it_is_gone() {
    let scratch = Scratch::new();
    let mut run = Run::begin(&scratch);
    let envs = [("EXTRA", "--daemonise --exit-on-term 0")];
    let first = run.test(&envs);
    first.ended();
    assert_eq!(first.told()["running"], "true");
    let second = run.test(&envs);
    second.ended();
    assert_eq!(second.told()["running"], "true");
    let pids = services(&scratch);
    pids.iter().for_each(|pid| send(*pid, SIGTERM));
    assert!(wait_until(|| !pids.iter().any(|pid| alive(*pid)), BOUND));
    let mut error = String::new();
    // The supervisor records the end a moment after the processes are gone.
    let told = wait_until(
        || {
            let late = run.test(&envs);
            let told = late.used();
            error = told.get("error").cloned().unwrap_or_default();
            told.get("kind").is_some_and(|kind| kind == "Died")
        },
        BOUND,
    );
    assert!(told, "{error}");
    run.end(false);
    assert_nothing_left(&scratch, &pids);
}

#[test]
#[cfg_attr(mirakuru_portable, ignore = "the portable back end recognises no run")]
fn the_supervisor_can_be_killed() {
    for victims in [&[1][..], &[2], &[1, 2]] {
        let scratch = Scratch::new();
        let mut run = Run::begin(&scratch);
        let user = run.test(&[("UNTIL", "end")]);
        let all = with_supervisors(user.service());
        for victim in victims {
            send(all[*victim], SIGKILL);
        }
        assert!(
            wait_until(|| !alive(all[0]), BOUND),
            "the service goes with either"
        );
        let mut told = BTreeMap::new();
        let died = wait_until(
            || {
                told = run.test(&[]).used();
                told.get("kind").is_some_and(|kind| kind == "Died")
            },
            BOUND,
        );
        assert!(died, "{told:?}");
        touch(&scratch, "end");
        user.ended();
        assert_eq!(user.told()["still"], "false");
        assert_eq!(services(&scratch).len(), 1, "it is not replaced");
        run.end(true);
        if victims.contains(&1) {
            // The killed worker cannot remove the files, so the next run does.
            let mut next = Run::begin(&scratch);
            let test = next.test(&[("USE", "SLEEPER")]);
            let service = test.service();
            test.ended();
            next.end(true);
            assert_nothing_left(&scratch, &[service]);
        }
        assert_nothing_left(&scratch, &all);
    }
}

// ---- who starts it may die ----------------------------------------------------------------------

/// The starter is killed while it waits for readiness, and while it sets the service up. A waiting
/// process takes over.
#[test]
#[cfg_attr(mirakuru_portable, ignore = "the portable back end recognises no run")]
fn the_next_one_takes_over_when_the_starter_dies_before_it_is_published() {
    for key in ["EXTRA", "SET_UP"] {
        let scratch = Scratch::new();
        let until = format!("--until {}", scratch.file("killed"));
        let value = if key == "EXTRA" { until.as_str() } else { "hangs" };
        let mut run = Run::begin(&scratch);
        let first = run.test(&[("USE", "EVENTFUL"), (key, value)]);
        assert!(
            wait_until(|| services(&scratch).len() == 1, BOUND),
            "{}",
            first.output()
        );
        if key == "SET_UP" {
            assert!(wait_until(
                || !numbers(&scratch.file("set-ups")).is_empty(),
                BOUND
            ));
        }
        let extra = if key == "EXTRA" { value } else { "" };
        let waits = run.test(&[("USE", "EVENTFUL"), ("EXTRA", extra)]);
        waits.began();
        send(first.pid, SIGKILL);
        touch(&scratch, "killed");
        waits.ended();
        let late = run.test(&[("USE", "EVENTFUL"), ("EXTRA", extra)]);
        late.ended();
        let all = services(&scratch);
        assert_eq!(all.len(), 2);
        assert!(!alive(all[0]));
        assert_eq!((waits.service(), late.service()), (all[1], all[1]));
        run.end(false);
        assert_nothing_left(&scratch, &all);
    }
}

#[test]
#[cfg_attr(mirakuru_portable, ignore = "the portable back end recognises no run")]
fn it_stays_when_the_starter_is_killed_afterwards() {
    let scratch = Scratch::new();
    let mut run = Run::begin(&scratch);
    let first = run.test(&[("UNTIL", "never")]);
    let service = first.service();
    send(first.pid, SIGKILL);
    assert_eq!(first.exit(), Some(-1));
    let next = run.test(&[]);
    next.ended();
    assert_eq!(next.service(), service);
    run.end(true);
    assert_nothing_left(&scratch, &[service]);
}

/// The pids of the service that the tests have reported. Fails if they differ, or if a test that is
/// not killed reports none.
fn services_of(tests: &[Test], is_doomed: impl Fn(&Test) -> bool, round: u64) -> Vec<u32> {
    let mut pids = Vec::new();
    for test in tests {
        let done = wait_until(
            || test.told().contains_key("used") || (is_doomed(test) && !alive(test.pid)),
            BOUND,
        );
        assert!(done, "round {round}: one hangs\n{}", test.output());
        let told = test.told();
        match told.get("pid") {
            Some(pid) => pids.push(pid.parse::<u32>().expect("a pid")),
            None => assert!(is_doomed(test), "round {round}: {told:?}"),
        }
    }
    assert!(pids.iter().all(|pid| *pid == pids[0]), "round {round}: {pids:?}");
    pids
}

/// Lets the tests and the run end, and checks that nothing is left. Returns whether the next run
/// had to remove a directory.
fn end_of_round(run: Run, scratch: &Scratch, tests: &[Test], mut started: Vec<u32>, round: u64) -> bool {
    let living: Vec<u32> = started.iter().copied().filter(|pid| alive(*pid)).collect();
    assert_eq!(living.len(), 1, "round {round}: {started:?}");
    started.extend(with_supervisors(living[0]));
    touch(scratch, "end");
    for test in tests {
        assert!(wait_until(|| !alive(test.pid), BOUND));
    }
    run.end(round % 2 == 0);
    assert!(
        wait_until(|| !started.iter().any(|pid| alive(*pid)), BOUND),
        "round {round}: {started:?}"
    );
    let is_clean = || left_in(scratch.path()).is_empty();
    let swept = !wait_until(is_clean, Duration::from_secs(1));
    if swept {
        // A process that was killed before it had a supervisor has left a directory. The next run
        // removes it at its first start.
        let mut next = Run::begin(scratch);
        let sweeps = next.test(&[("USE", "SLEEPER")]);
        started.push(sweeps.service());
        sweeps.ended();
        next.end(true);
    }
    assert_nothing_left(scratch, &started);
    swept
}

/// Sixty-four processes ask for one service at the same time. Sixty of them are killed at random
/// moments: before they have the service, while they start it, or while they use it.
#[test]
#[cfg_attr(mirakuru_portable, ignore = "the portable back end recognises no run")]
fn sixty_four_race_and_sixty_are_killed() {
    let rounds: u64 = env::var("MIRAKURU_RACE_ROUNDS").map_or(2, |n| n.parse().expect("a number"));
    let (mut begun, mut services_begun, mut swept) = (0, 0, 0);
    for round in 0..rounds {
        let scratch = Scratch::new();
        let mut run = Run::begin(&scratch);
        let envs = [("USE", "EVENTFUL"), ("AFTER", "go"), ("UNTIL", "end")];
        let tests: Vec<Test> = (0..64).map(|_| run.test(&envs)).collect();
        // The rounds spread their kills over the time of a start, or over a longer time.
        let span = [30_000, 100_000, 400_000][round as usize % 3];
        let mut kills: Vec<(Duration, &Test)> = tests[..60]
            .iter()
            .map(|test| (Duration::from_micros(random() % span), test))
            .collect();
        kills.sort_by_key(|(at, _)| *at);
        let began = Instant::now();
        touch(&scratch, "go");
        for (at, test) in kills {
            // Each kill comes at a random moment.
            thread::sleep(at.saturating_sub(began.elapsed()));
            send(test.pid, SIGKILL);
        }
        let killed: Vec<u32> = tests[..60].iter().map(|test| test.pid).collect();
        let pids = services_of(&tests, |test| killed.contains(&test.pid), round);
        assert!(pids.len() >= 4 && began.elapsed() < 2 * BOUND, "round {round}");
        let started = services(&scratch);
        assert!(started.contains(&pids[0]), "round {round}: {started:?}");
        begun += numbers(&scratch.file("starts")).len();
        services_begun += started.len();
        swept += u32::from(end_of_round(run, &scratch, &tests, started, round));
    }
    say(&format!(
        "{rounds} rounds of 64 processes, 60 of them killed: {begun} starts, {services_begun} services; \
         {swept} times the next run removed a directory"
    ));
}

/// A hundred processes ask for the service. The one that starts it is killed at a random moment.
#[test]
#[cfg_attr(mirakuru_portable, ignore = "the portable back end recognises no run")]
fn a_hundred_race_to_be_first_and_the_winner_is_killed() {
    let rounds: u64 = env::var("MIRAKURU_RACE_ROUNDS").map_or(5, |n| n.parse().expect("a number"));
    let (mut took_over, mut attached, mut no_start, mut swept) = (0, 0, 0, 0);
    for round in 0..rounds {
        // A start takes a few milliseconds, or tens of milliseconds while a hundred processes
        // compete for the processor.
        let doomed_at = ["DOOM", "DOOM", "DOOM", "DOOM_EARLY"][round as usize % 4];
        let doom = (random() % [5_000, 60_000, 300_000][round as usize % 3]).to_string();
        let scratch = Scratch::new();
        let mut run = Run::begin(&scratch);
        let envs = [
            ("USE", "EVENTFUL"),
            ("AFTER", "go"),
            ("UNTIL", "end"),
            (doomed_at, doom.as_str()),
        ];
        let tests: Vec<Test> = (0..100).map(|_| run.test(&envs)).collect();
        let began = Instant::now();
        touch(&scratch, "go");
        let is_doomed = |test: &Test| numbers(&scratch.file("dying")).contains(&test.pid);
        let pids = services_of(&tests, is_doomed, round);
        let took = began.elapsed();
        assert!(pids.len() >= 99, "round {round}");
        let started = services(&scratch);
        let living: Vec<u32> = started.iter().copied().filter(|pid| alive(*pid)).collect();
        assert_eq!(living, [pids[0]], "round {round}: {started:?}");
        // The killed process may have had no service yet, or may not have begun to start one.
        let starts = numbers(&scratch.file("starts"));
        let dying = numbers(&scratch.file("dying"));
        match dying.iter().any(|pid| starts.contains(pid)) {
            false => no_start += 1,
            true if starts.len() == 1 => attached += 1,
            true => took_over += 1,
        }
        assert!(
            starts.len() <= 2 && started.len() <= starts.len(),
            "round {round}: {starts:?} {started:?}"
        );
        swept += u32::from(end_of_round(run, &scratch, &tests, started, round));
        assert!(took < 2 * BOUND, "round {round}: {took:?}");
    }
    say(&format!(
        "{rounds} rounds of a hundred processes, one of them killed: {attached} times the others attached to \
            what it had \
         started, {took_over} times the next one took over, {no_start} times it had not begun to; {swept} \
         times the next run \
         removed a directory that it had not finished"
    ));
}

// ---- the runner ends ----------------------------------------------------------------------------

/// When a runner is killed, its test processes live on for a moment. They must not start a service,
/// which would never end.
#[test]
#[cfg_attr(mirakuru_portable, ignore = "the portable back end recognises no run")]
fn orphans_start_nothing_and_hang_nowhere() {
    orphans();
}

/// The orphans are adopted by a process in their own session, which looks like an ordinary parent.
#[test]
#[cfg_attr(mirakuru_portable, ignore = "the portable back end recognises no run")]
fn orphans_that_are_adopted_within_their_session() {
    let scratch = Scratch::new();
    let output = victim(test_name!(adopter), scratch.path())
        .output()
        .expect("it starts");
    common::assert_success(&output);
}

#[test]
#[ignore = "a part of another test"]
fn adopter() {
    if victim_dir().is_none() {
        return;
    }
    unsafe extern "C" {
        fn prctl(option: i32, ...) -> i32;
    }
    const PR_SET_CHILD_SUBREAPER: i32 = 36;
    // SAFETY: this option of `prctl` accesses no memory.
    let failed = unsafe { prctl(PR_SET_CHILD_SUBREAPER, 1_u64, 0_u64, 0_u64, 0_u64) };
    assert_eq!(failed, 0);
    orphans();
}

fn orphans() {
    let scratch = Scratch::new();
    let mut run = Run::begin(&scratch);
    // One process has already used a service of the run. The other has not asked for one yet.
    let knows = run.test(&[("USE", "SLEEPER"), ("UNTIL", "go")]);
    let asks = run.test(&[("AFTER", "go")]);
    let service = knows.service();
    asks.began();
    run.end(true);
    assert_nothing_left(&scratch, &[service]);
    touch(&scratch, "go");
    let (kind, error) = asks.error();
    assert_eq!(kind, "System");
    assert!(
        error.contains("has ended, and the services of the run with it"),
        "{error}"
    );
    for pid in [knows.pid, asks.pid] {
        assert!(wait_until(|| !alive(pid), BOUND));
    }
    assert_eq!(services(&scratch), [0; 0]);
    assert_eq!(left_in(scratch.path()), [""; 0]);
}

/// The starting process hangs, and its runner is killed. A process that waits for the start must
/// give up.
#[test]
#[cfg_attr(mirakuru_portable, ignore = "the portable back end recognises no run")]
fn those_who_wait_for_a_start_do_not_wait_for_an_orphan() {
    let scratch = Scratch::new();
    let mut run = Run::begin(&scratch);
    let starts = run.test(&[("USE", "EVENTFUL"), ("SET_UP", "hangs")]);
    assert!(wait_until(
        || !numbers(&scratch.file("set-ups")).is_empty(),
        BOUND
    ));
    let waits = run.test(&[("USE", "EVENTFUL")]);
    waits.began();
    run.end(true);
    let (kind, error) = waits.error();
    assert_eq!(kind, "System");
    assert!(error.contains("has ended"), "{error}");
    send(starts.pid, SIGKILL);
    let mut all = services(&scratch);
    all.extend([starts.pid, waits.pid]);
    let living = || all.iter().copied().filter(|pid| alive(*pid)).collect::<Vec<_>>();
    assert!(wait_until(|| living().is_empty(), BOUND), "{:?}", living());
}

/// A session takes precedence over the runner's run, so tests of two runs share its service.
#[test]
#[cfg_attr(mirakuru_portable, ignore = "the portable back end recognises no run")]
fn a_session_is_its_givers() {
    let scratch = Scratch::new();
    let mut run = Run::begin(&scratch);
    let session = [("MIRAKURU_SESSION_ID", "of-a-test"), ("USE", "SLEEPER")];
    let one = run.test_of("one", &session);
    let two = run.test_of("two", &session);
    let other = run.test_of("two", &session[1..]);
    assert_eq!(one.service(), two.service());
    assert_ne!(one.service(), other.service());
    for test in [&one, &two, &other] {
        test.ended();
    }
    let all = [one.service(), other.service()];
    run.end(false);
    assert_nothing_left(&scratch, &all);
}

// ---- fixed ports --------------------------------------------------------------------------------

#[test]
#[cfg_attr(mirakuru_portable, ignore = "the portable back end recognises no run")]
fn a_fixed_port_of_the_run_is_not_waited_for_by_its_own_tests() {
    let scratch = Scratch::new();
    let port = fixed_port().to_string();
    let envs = |name| [("USE", name), ("PORT", port.as_str())];
    let mut run = Run::begin(&scratch);
    let shared = run.test(&envs("FIXED"));
    shared.ended();
    let own = run.test(&envs("OWN_FIXED"));
    let (kind, error) = own.error();
    assert_eq!(kind, "AlreadyRunning");
    assert!(error.contains("whole test run shares"), "{error}");
    // A test of another run waits for the port.
    let mut other = Run::begin(&scratch);
    let waits = other.test(&envs("OWN_FIXED"));
    // A start that did not wait would be ready within this time.
    thread::sleep(Duration::from_millis(300));
    assert!(!waits.told().contains_key("used"), "{}", waits.output());
    run.end(true);
    waits.ended();
    let pids = [shared.service(), waits.service()];
    assert_ne!(pids[0], pids[1]);
    other.end(true);
    assert_nothing_left(&scratch, &pids);
}

// ---- files --------------------------------------------------------------------------------------

#[test]
fn its_files_are_private_and_their_paths_short() {
    let scratch = Scratch::new();
    let mut run = Run::begin(&scratch);
    let test = run.test(&[("USE", "UNIX")]);
    let service = test.service();
    let base = fs::read_dir(scratch.path())
        .expect("the scratch directory")
        .flatten()
        .map(|entry| entry.path())
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("mirakuru-"))
        })
        .expect("a base");
    assert_eq!(common::mode(&base), 0o700);
    for entry in fs::read_dir(&base).expect("the base").flatten() {
        assert_eq!(common::mode(&entry.path()), 0o700, "{}", entry.path().display());
        if entry.file_name().to_string_lossy().starts_with("run-") {
            let files: Vec<PathBuf> = fs::read_dir(entry.path())
                .expect("the run's directory")
                .flatten()
                .map(|entry| entry.path())
                .collect();
            assert_eq!(files.len(), 2, "the lock and the state: {files:?}");
            assert!(files.iter().all(|file| common::mode(file) == 0o600), "{files:?}");
        }
    }
    let path = test.told()["path"].clone();
    assert!(path.len() < base.as_os_str().len() + 40, "{path}");
    test.ended();
    run.end(false);
    assert_nothing_left(&scratch, &[service]);
}

#[test]
fn a_directory_that_is_not_safe_is_refused() {
    let base = |scratch: &Scratch| {
        // The name contains the user's id.
        let uid = fs::metadata(scratch.path()).map(|m| std::os::unix::fs::MetadataExt::uid(&m));
        scratch
            .path()
            .join(format!("mirakuru-{}", uid.expect("its owner")))
    };
    let refused = |scratch: &Scratch, why: &str| {
        let mut run = Run::begin(scratch);
        let (kind, error) = run.test(&[("USE", "SLEEPER")]).error();
        assert_eq!(kind, "System");
        assert!(error.contains(why), "{error}");
        run.end(false);
    };
    let scratch = Scratch::new();
    let target = scratch.path().join("target");
    fs::create_dir(&target).expect("a directory");
    symlink(&target, base(&scratch)).expect("a link");
    refused(&scratch, "it is a symbolic link");
    assert_eq!(fs::read_dir(&target).expect("a directory").count(), 0);

    let scratch = Scratch::new();
    fs::create_dir(base(&scratch)).expect("a directory");
    fs::set_permissions(base(&scratch), fs::Permissions::from_mode(0o770)).expect("its mode");
    refused(&scratch, "other users may write to it (mode 0770)");

    if !is_root() {
        skip_without_root();
        return;
    }
    let scratch = Scratch::new();
    fs::create_dir(base(&scratch)).expect("a directory");
    std::os::unix::fs::chown(base(&scratch), Some(12345), None).expect("root may");
    refused(&scratch, "it belongs to user 12345");
}

/// XDG_RUNTIME_DIR is used only if no other user can enter it.
#[test]
#[cfg_attr(mirakuru_portable, ignore = "the portable back end recognises no run")]
fn the_runtime_directory_is_used_where_it_is_safe() {
    for (mode, is_used) in [(0o700, true), (0o755, false)] {
        let scratch = Scratch::new();
        let runtime = scratch.file("runtime");
        fs::create_dir(&runtime).expect("a directory");
        fs::set_permissions(&runtime, fs::Permissions::from_mode(mode)).expect("its mode");
        let mut run = Run::begin_with(&scratch, &[("XDG_RUNTIME_DIR", &runtime)]);
        let test = run.test(&[("USE", "SLEEPER")]);
        test.ended();
        let there = left_in(Path::new(&runtime));
        assert_eq!(
            there.iter().any(|name| name.starts_with("run-")),
            is_used,
            "{there:?}"
        );
        let second = run.test(&[("USE", "SLEEPER")]);
        second.ended();
        assert_eq!(test.service(), second.service());
        run.end(true);
        assert_nothing_left(&scratch, &[test.service()]);
        assert_eq!(left_in(Path::new(&runtime)), [""; 0]);
    }
}

/// The next run removes directories of runs that ended without clean-up, as after a power failure.
/// It compares process id *and* start time, and never removes a directory in use.
#[test]
#[cfg_attr(mirakuru_portable, ignore = "the portable back end recognises no run")]
fn stale_directories_are_swept_by_the_next_run() {
    let scratch = Scratch::new();
    let mut run = Run::begin(&scratch);
    let first = run.test(&[("USE", "SLEEPER")]);
    first.ended();
    let base = scratch.path().join(
        fs::read_dir(scratch.path())
            .expect("the scratch directory")
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .find(|name| name.starts_with("mirakuru-"))
            .expect("a base"),
    );
    let living = left_in(scratch.path());
    let make = |name: &str| {
        let dir = base.join(name);
        fs::create_dir(&dir).expect("a directory");
        fs::write(dir.join("0123.state"), "pid=1\0").expect("a file");
        fs::write(dir.join("0123.lock"), "").expect("a file");
    };
    let pid = std::process::id();
    let dead = "run-4194305-77-0123456789abcdef";
    let reused = format!("run-{pid}-1-0123456789abcdef");
    let used = "run-4194305-78-0123456789abcdef";
    make(dead);
    make(&reused);
    // The lock is held by a process whose runner is not visible here, as in another container.
    make(used);
    let lock = base.join(used).join("0123.lock");
    let mut holder = Command::new("flock")
        .args([
            "--no-fork".as_ref(),
            lock.as_os_str(),
            "sh".as_ref(),
            "-c".as_ref(),
        ])
        .arg("echo has it; exec sleep 100")
        .stdout(Stdio::piped())
        .spawn()
        .expect("flock");
    let mut lines = BufReader::new(holder.stdout.take().expect("its output")).lines();
    assert!(
        lines
            .next()
            .is_some_and(|line| line.is_ok_and(|line| line == "has it"))
    );
    // This directory has a similar name, but is not a run's.
    fs::create_dir(base.join("run-x")).expect("a directory");

    let mut next = Run::begin(&scratch);
    let second = next.test(&[("USE", "SLEEPER")]);
    second.ended();
    let left = left_in(scratch.path());
    assert!(
        !left.contains(&dead.to_owned()) && !left.contains(&reused),
        "{left:?}"
    );
    for name in living.iter().map(String::as_str).chain([used, "run-x"]) {
        assert!(left.iter().any(|left| left == name), "{name}: {left:?}");
    }
    // The first run and its service are unaffected.
    let again = run.test(&[("USE", "SLEEPER")]);
    assert_eq!(again.service(), first.service());
    holder.kill().expect("it lives");
    holder.wait().expect("a child");
    let pids = [first.service(), second.service()];
    run.end(true);
    next.end(true);
    assert!(wait_until(|| !pids.iter().any(|pid| alive(*pid)), BOUND));
    fs::remove_dir(base.join("run-x")).expect("it is still there");
    fs::remove_dir_all(base.join(used)).expect("it is still there");
    assert_nothing_left(&scratch, &pids);
}

/// If the run's directory is removed, the run continues with a new one, and nothing is left when it
/// ends.
#[test]
fn a_directory_that_is_removed_is_made_again() {
    let scratch = Scratch::new();
    let mut run = Run::begin(&scratch);
    let first = run.test(&[("USE", "SLEEPER")]);
    first.ended();
    for name in left_in(scratch.path()) {
        if name.starts_with("run-") {
            let base = fs::read_dir(scratch.path()).expect("a directory").flatten();
            for base in base.filter(|base| base.file_name().to_string_lossy().starts_with("mirakuru-")) {
                fs::remove_dir_all(base.path().join(&name)).expect("it is ours");
            }
        }
    }
    let second = run.test(&[("USE", "SLEEPER")]);
    second.ended();
    assert_ne!(
        first.service(),
        second.service(),
        "there is nothing to know the first by"
    );
    let all = [first.service(), second.service()];
    run.end(true);
    assert_nothing_left(&scratch, &all);
}

// ---- what it costs ------------------------------------------------------------------------------

/// `MIRAKURU_TEST_ATTACHES=200` gives a figure that is precise enough to publish.
#[test]
#[cfg_attr(mirakuru_portable, ignore = "the portable back end recognises no run")]
fn to_attach_costs_little() {
    let count: usize = env::var("MIRAKURU_TEST_ATTACHES").map_or(20, |n| n.parse().expect("a number"));
    let scratch = Scratch::new();
    let mut run = Run::begin(&scratch);
    let first = run.test(&[]);
    first.ended();
    let mut took: Vec<u64> = (0..count)
        .map(|_| {
            let test = run.test(&[]);
            test.ended();
            assert_eq!(test.service(), first.service());
            test.told()["took"].parse().expect("a number")
        })
        .collect();
    took.sort_unstable();
    let median = took[count / 2];
    say(&format!(
        "the start took {} µs; {count} attaches took {median} µs in the median, {} µs at most",
        first.told()["took"],
        took[count - 1]
    ));
    assert!(median < 200_000, "{median} µs");
    run.end(true);
    assert_nothing_left(&scratch, &[first.service()]);
}
