//! `cargo test` and `cargo nextest run`, each interrupted, timed out, with one thread, and with two
//! runs at the same time. However they end the test processes, no trace of the services is left.
//!
//! The runners run the tests of a user's crate (`runners/`, see `common/fresh.rs`). If nextest is
//! not installed, each test prints what it leaves out.
//!
//! This is a separate binary, because it runs cargo and looks for its services among all processes.
#![cfg(target_os = "linux")]

mod common;

#[path = "common/fresh.rs"]
mod fresh;
#[path = "common/proof.rs"]
mod proof;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Once;
use std::thread;
use std::time::{Duration, Instant};

use common::{LONG, ODD, SIGINT, Scratch, numbers, require, supervisors, wait_until};
use proof::{Process, marked, service_dirs};

/// Time from the end of the runner until everything must be gone. The services themselves would
/// live for 120 s.
const BOUND: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Runner {
    CargoTest,
    Nextest,
}

use Runner::{CargoTest, Nextest};

/// Builds the crate whose tests the runners run.
fn runners_crate() -> PathBuf {
    let mut two_hundred = include_str!("runners/two_hundred.rs").to_owned();
    for n in 0..200 {
        two_hundred += &format!("#[test]\nfn t{n:03}() {{\n    visit();\n}}\n");
    }
    let dir = fresh::package(
        "runners",
        "[dev-dependencies]\nmirakuru = { path = \"{root}\" }\n",
        &[
            ("src/lib.rs", ""),
            ("tests/endless.rs", include_str!("runners/endless.rs")),
            ("tests/ordinary.rs", include_str!("runners/ordinary.rs")),
            ("tests/systems.rs", include_str!("runners/systems.rs")),
            ("tests/two_hundred.rs", &two_hundred),
            (".config/nextest.toml", include_str!("runners/nextest.toml")),
        ],
    );
    static BUILT: Once = Once::new();
    BUILT.call_once(|| {
        fresh::succeed(fresh::cargo(&dir).args(["test", "--no-run"]));
    });
    dir
}

impl Runner {
    /// The installed runners.
    fn all(what: &str) -> Vec<Runner> {
        match fresh::nextest(what) {
            true => vec![CargoTest, Nextest],
            false => vec![CargoTest],
        }
    }

    /// Prepares the runner for one test binary. All its processes have `dir` in their environment.
    /// `temp` is for temporary files.
    fn command(self, binary: &str, dir: &Path, temp: &Path) -> Command {
        let mut command = fresh::cargo(&runners_crate());
        match self {
            CargoTest => command.args(["test", "--test", binary]),
            Nextest => command.args(["nextest", "run", "--test", binary]),
        };
        command
            .env("RUNNERS_DIR", dir)
            .env("RUNNERS_SERVICE", ODD)
            .env("TMPDIR", temp);
        command
    }
}

/// Fails unless all processes with the directory in their environment end in time.
#[track_caller]
fn assert_nothing_left(dir: &Path) {
    let none = wait_until(|| marked(dir).is_empty(), BOUND);
    let left: Vec<_> = marked(dir).into_iter().filter_map(Process::of).collect();
    assert!(none, "survivors: {left:?}");
}

#[track_caller]
fn assert_no_files_left(temp: &Path) {
    // The supervisors remove the directories at the very end.
    let none = wait_until(|| service_dirs(temp).is_empty(), BOUND);
    assert!(none, "{:?}", service_dirs(temp));
}

/// The lines of a file, split into words.
fn words(path: &str) -> Vec<Vec<String>> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .map(|line| line.split(' ').map(str::to_owned).collect())
        .collect()
}

// ---- a runner that is interrupted ---------------------------------------------------------------

/// A runner with one test, which is still running.
struct Endless {
    /// The runner, in its own process group, like the foreground job of a terminal.
    child: Child,
    /// The processes of the service that only the test uses.
    own: Vec<Process>,
    /// The main process of the service that the whole run shares.
    shared: Process,
    above: Vec<Process>,
    scratch: Scratch,
}

impl Endless {
    #[track_caller]
    fn start(runner: Runner, temp: Option<&Path>, arguments: &[&str]) -> Endless {
        let scratch = Scratch::new();
        let mut command = runner.command("endless", scratch.path(), temp.unwrap_or(scratch.path()));
        let output = fs::File::create(scratch.file("output")).unwrap();
        proof::obeys_signals(&mut command);
        let child = command
            .args(arguments)
            .process_group(0)
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        let mut endless = Endless {
            child,
            own: Vec::new(),
            shared: Process::of(std::process::id()).unwrap(),
            above: Vec::new(),
            scratch,
        };
        let up = endless.scratch.file("up");
        let child = &mut endless.child;
        let over = wait_until(
            || numbers(&up).len() == 2 || !matches!(child.try_wait(), Ok(None)),
            2 * LONG,
        );
        let &[own, shared] = &numbers(&up)[..] else {
            panic!("its test does not start (in time: {over}): {}", endless.output());
        };
        let recorded = numbers(&endless.scratch.file("pids"));
        assert_eq!(recorded.len(), 6, "itself, two children, their two, a daemon");
        endless.own = recorded.iter().filter_map(|&pid| Process::of(pid)).collect();
        assert_eq!(endless.own.len(), 6);
        endless.shared = Process::of(shared).unwrap();
        endless.above = [own, shared]
            .into_iter()
            .flat_map(supervisors)
            .filter_map(Process::of)
            .filter(|process| process.name().starts_with("mirakuru-"))
            .collect();
        assert_eq!(
            endless.above.len(),
            4,
            "two supervisors for each: {:?}",
            endless.above
        );
        endless
    }

    fn output(&self) -> String {
        fs::read_to_string(self.scratch.file("output")).unwrap_or_default()
    }

    fn everybody(&self) -> impl Iterator<Item = &Process> {
        self.own.iter().chain([&self.shared]).chain(&self.above)
    }

    /// Sends SIGINT to the runner's process group, as a terminal does on Ctrl-C.
    fn ctrl_c(&self) {
        unsafe extern "C" {
            fn kill(pid: i32, signal: i32) -> i32;
        }
        let group = self.child.id() as i32;
        assert!(group > 1);
        // SAFETY: `kill` accesses no memory.
        unsafe { kill(-group, SIGINT) };
    }

    /// Waits until the runner has ended. Returns whether it succeeded.
    #[track_caller]
    fn end(&mut self) -> bool {
        let child = &mut self.child;
        let over = wait_until(|| !matches!(child.try_wait(), Ok(None)), LONG);
        assert!(over, "the runner does not end: {}", self.output());
        self.child.wait().unwrap().success()
    }

    #[track_caller]
    fn assert_gone(&self) {
        let gone = wait_until(|| self.everybody().all(|process| !process.is_alive()), BOUND);
        let left: Vec<_> = self.everybody().filter(|process| process.is_alive()).collect();
        assert!(gone, "survivors: {left:?}\n{}", self.output());
        assert_nothing_left(self.scratch.path());
    }
}

impl Drop for Endless {
    fn drop(&mut self) {
        // This file makes the test end, and its runner ends after it.
        let _ = fs::write(self.scratch.file("end"), "");
        if !wait_until(
            || !matches!(self.child.try_wait(), Ok(None)),
            Duration::from_secs(10),
        ) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end does not find processes that leave the process group"
)]
fn ctrl_c() {
    for runner in Runner::all("Ctrl-C") {
        let mut run = Endless::start(runner, None, &[]);
        run.ctrl_c();
        assert!(!run.end(), "{runner:?} takes it for a success: {}", run.output());
        run.assert_gone();
        assert_no_files_left(run.scratch.path());
    }
}

/// nextest ends a slow test with SIGTERM, or at once with SIGKILL if its grace period is zero.
#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end does not find processes that leave the process group"
)]
fn slow_timeout_of_nextest() {
    if !fresh::nextest("slow-timeout") {
        return;
    }
    let runs: Vec<Endless> = ["slow", "ruthless"]
        .into_iter()
        .map(|profile| Endless::start(Nextest, None, &["--profile", profile]))
        .collect();
    for mut run in runs {
        assert!(!run.end());
        assert!(run.output().contains("TIMEOUT"), "{}", run.output());
        run.assert_gone();
        assert_no_files_left(run.scratch.path());
    }
}

/// Two runs of the same tests use the same recipes and one directory for temporary files. Each has
/// its own services, and the end of one run does not affect the other.
#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end does not find processes that leave the process group"
)]
fn two_runs_side_by_side() {
    for runner in Runner::all("two runs side by side") {
        let temp = Scratch::new();
        let mut first = Endless::start(runner, Some(temp.path()), &[]);
        let mut second = Endless::start(runner, Some(temp.path()), &[]);
        for process in first.everybody() {
            assert!(second.everybody().all(|other| other != process), "{process:?}");
        }
        first.ctrl_c();
        first.end();
        first.assert_gone();
        // If the end of the first run affected the second, it would do so within this time.
        thread::sleep(Duration::from_millis(500));
        for process in second.everybody() {
            assert!(process.is_alive(), "{process:?}: {}", second.output());
        }
        fs::write(second.scratch.file("end"), "").unwrap();
        assert!(second.end(), "{}", second.output());
        second.assert_gone();
        assert_no_files_left(temp.path());
    }
}

// ---- runs that come to their end ----------------------------------------------------------------

/// Runs of passing tests, with several threads and with one. No service delays the runner or counts
/// as a leak. The shared service outlives the test that started it.
#[test]
fn ordinary_runs() {
    for runner in Runner::all("ordinary runs") {
        let one_thread: &[&str] = match runner {
            CargoTest => &["--", "--test-threads=1"],
            Nextest => &["--test-threads=1"],
        };
        for arguments in [&[][..], one_thread] {
            let scratch = Scratch::new();
            let mut command = runner.command("ordinary", scratch.path(), scratch.path());
            let text = fresh::succeed(command.args(arguments));
            assert!(text.contains("8 passed"), "{text}");
            assert!(!text.contains("LEAK") && !text.contains("leaky"), "{text}");
            assert_nothing_left(scratch.path());
            assert_no_files_left(scratch.path());

            let noted = words(&scratch.file("noted"));
            let column = |n: usize| noted.iter().map(|line| &line[n]).collect::<BTreeSet<_>>();
            assert_eq!(noted.len(), 8);
            // The portable back end recognises no run, so under nextest each test has its own
            // service.
            let services = match runner {
                Nextest if cfg!(mirakuru_portable) => 8,
                _ => 1,
            };
            assert_eq!(column(0).len(), services, "shared services: {noted:?}");
            if runner == CargoTest {
                assert_eq!(column(1).len(), 8, "not a thread for each test: {noted:?}");
            }
        }
    }
}

#[test]
#[cfg_attr(mirakuru_portable, ignore = "the portable back end recognises no run")]
fn two_hundred_tests_share_one_redis() {
    if require("redis-server").is_none() {
        return;
    }
    for runner in Runner::all("two hundred tests that share one Redis") {
        let scratch = Scratch::new();
        let mut command = runner.command("two_hundred", scratch.path(), scratch.path());
        let text = fresh::succeed(&mut command);
        assert!(text.contains("200 passed"), "{text}");
        assert!(!text.contains("LEAK") && !text.contains("leaky"), "{text}");
        assert_nothing_left(scratch.path());
        assert_no_files_left(scratch.path());

        let noted = words(&scratch.file("noted"));
        let pids: BTreeSet<_> = noted.iter().map(|line| &line[0]).collect();
        assert_eq!(pids.len(), 1, "it was started more than once: {pids:?}");
        let visits: BTreeSet<u32> = noted.iter().map(|line| line[1].parse().unwrap()).collect();
        assert_eq!(visits, (1..=200).collect(), "Redis has not counted all of them");
    }
}

/// All processes of a run share a cluster of three nodes and a system of four services, which are
/// `static`s.
#[test]
#[cfg_attr(mirakuru_portable, ignore = "the portable back end recognises no run")]
fn a_cluster_and_a_system_start_once_a_run() {
    for runner in Runner::all("a cluster and a system of a run") {
        let scratch = Scratch::new();
        fs::write(scratch.file("end"), "").unwrap();
        let text = fresh::succeed(&mut runner.command("systems", scratch.path(), scratch.path()));
        assert!(text.contains("7 passed"), "{text}");
        assert!(!text.contains("LEAK") && !text.contains("leaky"), "{text}");
        assert_nothing_left(scratch.path());
        assert_no_files_left(scratch.path());

        let started: BTreeSet<u32> = numbers(&scratch.file("pids")).into_iter().collect();
        assert_eq!(started.len(), 7, "{runner:?}");
        let noted = words(&scratch.file("noted"));
        assert_eq!(noted.len(), 7);
        for line in noted {
            let used: BTreeSet<u32> = line.iter().map(|pid| pid.parse().unwrap()).collect();
            assert_eq!(used, started, "{runner:?}");
        }
    }
}

#[test]
#[cfg_attr(mirakuru_portable, ignore = "the portable back end recognises no run")]
fn a_cluster_and_a_system_end_with_a_runner_that_is_killed() {
    for runner in Runner::all("a runner that is killed") {
        let scratch = Scratch::new();
        let mut command = runner.command("systems", scratch.path(), scratch.path());
        let mut child = command
            .process_group(0)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let is_up = || words(&scratch.file("noted")).len() == 7;
        assert!(wait_until(is_up, 2 * LONG), "{runner:?}: its tests do not start");
        let services: Vec<Process> = numbers(&scratch.file("pids"))
            .into_iter()
            .filter_map(Process::of)
            .collect();
        assert_eq!(services.len(), 7, "{runner:?}");
        child.kill().unwrap();
        child.wait().unwrap();
        let begun = Instant::now();
        let gone = wait_until(|| services.iter().all(|service| !service.is_alive()), BOUND);
        println!("{runner:?}: all seven are gone after {:?}", begun.elapsed());
        // The orphaned test ends by itself when it sees this file.
        fs::write(scratch.file("end"), "").unwrap();
        assert!(gone, "{runner:?}: survivors");
        assert_nothing_left(scratch.path());
        assert_no_files_left(scratch.path());
    }
}

/// The three forms of the attribute work in a fresh crate that depends on mirakuru and rstest only.
#[test]
fn the_three_forms_pass_in_a_fresh_crate() {
    if require("redis-server").is_none() {
        return;
    }
    let dir = fresh::package(
        "forms",
        "[dev-dependencies]\nmirakuru = { path = \"{root}\" }\nrstest = { version = \"0.29\", \
            default-features = false }\n",
        &[
            ("src/lib.rs", ""),
            ("tests/forms.rs", include_str!("runners/forms.rs")),
        ],
    );
    let scratch = Scratch::new();
    let cargo = |arguments: &[&str]| {
        let mut command = fresh::cargo(&dir);
        command
            .args(arguments)
            .env("RUNNERS_DIR", scratch.path())
            .env("TMPDIR", scratch.path())
            .stderr(Stdio::piped());
        fresh::succeed(&mut command)
    };
    let text = cargo(&["test", "--test", "forms"]);
    assert!(text.contains("5 passed"), "{text}");
    assert_nothing_left(scratch.path());
    if fresh::nextest("the three forms") {
        let text = cargo(&["nextest", "run"]);
        assert!(text.contains("5 passed") && !text.contains("LEAK"), "{text}");
        assert_nothing_left(scratch.path());
    }
}
