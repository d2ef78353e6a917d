//! Tests the guarantee of teardown as a table: each way in which a test process can end, with each
//! kind of process tree below it. Further tests kill or stop the supervisors, or kill the test
//! process in the middle of a start.
//!
//! Each cell of the table is a *victim*: a process of its own that runs an `#[ignore]`d test of
//! this binary (see `teardown/cell.rs`). `common/proof.rs` checks that nothing is left of it. No
//! service ends by itself while a test waits, because that would prove nothing.
//!
//! `MIRAKURU_MATRIX_REPEATS` sets the number of runs of each cell (default 1), and
//! `MIRAKURU_KILL_ROUNDS` the number of interrupted starts (default 100). `tests/run --long` raises
//! both.
//!
//! The file is long because the table and its exceptions share one set of victims.
#![cfg(target_os = "linux")]

pub(crate) mod cell;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crate::common::{
    self, LONG, ODD, SIGINT, SIGKILL, SIGSTOP, SIGTERM, Scratch, fixed_port, numbers, random, send, stat,
    supervisors, test_name, wait_until,
};
use crate::fresh;
use crate::proof::{self, Lifeline, Process, kept_logs, marked, service_dirs};
use mirakuru::{Executor, Shared, SimpleExecutor, Tcp, TcpExecutor};

const SIGHUP: i32 = 1;
const SIGQUIT: i32 = 3;
const SIGABRT: i32 = 6;
const SIGSEGV: i32 = 11;
const SIGUSR1: i32 = 10;
const SIGUSR2: i32 = 12;
const SIGALRM: i32 = 14;
const SIGVTALRM: i32 = 26;

/// Time from the end of the test process until everything must be gone. Milliseconds are enough,
/// unless the machine is busy. Chains of `--keep-forking` live 20 s and all other processes 120 s,
/// which is much longer.
const BOUND: Duration = Duration::from_secs(10);
/// The grace of all services. It is short, because trees that ignore signals use it up.
const GRACE: Duration = Duration::from_millis(120);

// ---- kinds of tree ------------------------------------------------------------------------------

struct Kind {
    name: &'static str,
    /// The helper's flags for this kind.
    flags: &'static str,
    /// Number of processes that record their ids.
    recorded: usize,
    /// Whether all processes end up stopped (SIGSTOP).
    stopped: bool,
}

impl Kind {
    /// Whether the main process is still alive at the end of the grace.
    fn is_deaf(&self) -> bool {
        let has = |flag| self.flags.contains(flag);
        !has("--daemonise") && (has("--ignore-term") || has("--stop-delay 5000") || has("--flood-after"))
    }
}

const fn kind(name: &'static str, flags: &'static str, recorded: usize) -> Kind {
    Kind {
        name,
        flags,
        recorded,
        stopped: false,
    }
}

const PLAIN: Kind = kind("plain", "", 1);
const GRANDCHILDREN: Kind = kind("grandchildren", "--fork 3", 7);
const DAEMONS: Kind = kind("deaf daemons without a mark", "--deaf-daemons 3", 4);
const DAEMON: Kind = kind("a deaf daemon itself", "--daemonise --ignore-term --fork 1", 3);
const FORKING: Kind = kind("keeps forking", "--keep-forking 4", 1);
const STOPPED: Kind = Kind {
    name: "stopped",
    flags: "--stopped 2 --stop-self",
    recorded: 3,
    stopped: true,
};

const KINDS: [&Kind; 6] = [&PLAIN, &GRANDCHILDREN, &DAEMONS, &DAEMON, &FORKING, &STOPPED];

/// More kinds, which are tested with `MIRAKURU_MATRIX=whole`.
static MORE_KINDS: [Kind; 16] = [
    kind("a daemon", "--daemonise", 1),
    kind("deaf", "--ignore-term", 1),
    kind("deaf, with grandchildren", "--ignore-term --fork 2", 5),
    kind("one deaf daemon", "--deaf-daemons 1", 2),
    kind("many deaf daemons", "--deaf-daemons 8", 9),
    kind("a daemon with deaf daemons", "--daemonise --deaf-daemons 2", 3),
    kind("grandchildren and daemons", "--fork 2 --deaf-daemons 2", 7),
    kind("stopped children", "--stopped 3", 4),
    kind("stopped children of a deaf one", "--ignore-term --stopped 2", 3),
    kind(
        "a deaf daemon with stopped children",
        "--daemonise --ignore-term --stopped 2",
        3,
    ),
    kind("slow to end", "--stop-delay 50", 1),
    kind("slow to end, with grandchildren", "--stop-delay 50 --fork 2", 5),
    kind("slower than its grace", "--stop-delay 5000 --fork 1", 3),
    kind(
        "keeps forking, beside daemons",
        "--keep-forking 2 --deaf-daemons 2",
        3,
    ),
    kind("a daemon that keeps forking", "--daemonise --keep-forking 2", 1),
    kind("prints without pause", "--flood-after 4000000000 --fork 1", 3),
];

/// The kinds to test. The portable back end cannot find every process of some kinds.
fn kinds() -> Vec<&'static Kind> {
    let flags = |kind: &Kind| kind.flags.split(' ').collect::<Vec<_>>();
    let whole = std::env::var_os("MIRAKURU_MATRIX").is_some_and(|value| value == "whole");
    let more = MORE_KINDS.iter().filter(|_| whole);
    KINDS
        .into_iter()
        .chain(more)
        .filter(|kind| common::is_found(&flags(kind)))
        .collect()
}

// ---- victims ------------------------------------------------------------------------------------

/// A victim whose service is up.
struct Victim {
    child: Child,
    /// Kept open without being read, so that the harness can still print.
    _output: BufReader<ChildStdout>,
    lifeline: Lifeline,
    /// The earliest time at which the tree would end by itself.
    natural_end: Option<Instant>,
    /// The processes of the service that have recorded their ids.
    tree: Vec<Process>,
    worker: Process,
    guard: Process,
}

/// Passes a victim its settings in the environment.
fn prepare(command: &mut Command, dir: &Path, death: &str, kind: &Kind, address: &str, lifeline: &str) {
    let pids = dir.join("pids");
    let service = format!("{ODD} --pids {} {}", pids.display(), kind.flags);
    command
        .env(cell::DEATH, death)
        .env(cell::SERVICE, service.trim_end())
        .env(cell::ADDRESS, address)
        .env(cell::LIFELINE, lifeline)
        .env(cell::GRACE, GRACE.as_millis().to_string())
        .env("TMPDIR", dir)
        // Many victims panic, and each backtrace would take a second.
        .env("RUST_BACKTRACE", "0")
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(File::create(dir.join("stderr")).expect("a file in the scratch directory"));
    proof::obeys_signals(command);
}

/// A victim that runs as a test of this binary.
fn under_libtest(dir: &Path) -> Command {
    common::victim(test_name!(victim), dir)
}

#[test]
#[ignore = "a victim"]
fn victim() {
    cell::run();
}

impl Victim {
    fn start(mut command: Command, scratch: &Scratch, death: &str, kind: &Kind) -> Result<Victim, String> {
        let fifo = scratch.file(&format!("lifeline-{}", random()));
        let lifeline = Lifeline::new(&fifo);
        let pids = scratch.file("pids");
        let _ = fs::remove_file(&pids);
        prepare(
            &mut command,
            scratch.path(),
            death,
            kind,
            "127.0.0.1:{port}",
            &fifo,
        );
        let mut child = command.spawn().expect("the victim starts");
        let mut output = BufReader::new(child.stdout.take().expect("its output"));
        let Some(line) = line_with(&mut output, cell::UP) else {
            let _ = child.kill();
            let _ = child.wait();
            let errors = fs::read_to_string(scratch.path().join("stderr")).unwrap_or_default();
            return Err(format!("its service did not start: {errors}"));
        };
        let mut victim = Victim {
            child,
            _output: output,
            lifeline,
            natural_end: (kind.flags == FORKING.flags).then(|| Instant::now() + Duration::from_secs(18)),
            tree: Vec::new(),
            worker: Process::of(std::process::id()).expect("this process"),
            guard: Process::of(std::process::id()).expect("this process"),
        };
        let complete = wait_until(|| numbers(&pids).len() >= kind.recorded, LONG);
        let recorded = numbers(&pids);
        if !complete {
            return Err(format!("not all are there: {recorded:?}"));
        }
        victim.tree = recorded.iter().filter_map(|&pid| Process::of(pid)).collect();
        if victim.tree.len() != kind.recorded {
            return Err(format!(
                "some have ended already: {recorded:?}, {:?}",
                victim.tree
            ));
        }
        if kind.stopped {
            let stopped = || {
                let mut states = victim.tree.iter().map(|process| stat(process.pid));
                states.all(|stat| stat.is_some_and(|(state, _)| state == 'T'))
            };
            if !wait_until(stopped, LONG) {
                return Err("not all have stopped".to_owned());
            }
        }
        let pid = line
            .trim_end_matches(cell::UP)
            .parse()
            .map_err(|_| line.clone())?;
        // The main process of a daemon has already ended.
        let service = if stat(pid).is_some() { pid } else { recorded[0] };
        let above: Vec<Process> = supervisors(service).into_iter().filter_map(Process::of).collect();
        let of_name = |name: &str| above.iter().find(|process| process.name() == name).cloned();
        match (of_name("mirakuru-worker"), of_name("mirakuru-guard")) {
            // The portable back end has one supervisor, whose process has no special name.
            _ if cfg!(mirakuru_portable) && above.len() > 1 => {
                victim.worker = above[0].clone();
                victim.guard = above[0].clone();
            }
            (Some(worker), Some(guard)) => {
                victim.worker = worker;
                victim.guard = guard;
            }
            _ => return Err(format!("no supervisors: {above:?}")),
        }
        if !victim.lifeline.is_held() {
            return Err("nobody holds the lifeline".to_owned());
        }
        Ok(victim)
    }

    /// Sends the victim the line that lets it end.
    fn say(&mut self, word: &str) {
        let input = self.child.stdin.as_mut().expect("its input");
        // If the victim is already gone, the write fails, and so do later checks.
        let _ = writeln!(input, "{word}");
    }

    /// Waits until the victim has ended.
    fn end(&mut self) -> Result<ExitStatus, String> {
        let mut status = None;
        let over = wait_until(
            || {
                status = self.child.try_wait().expect("it is our child");
                status.is_some()
            },
            LONG,
        );
        match status {
            Some(status) if over => Ok(status),
            _ => Err(format!("it does not end:\n{}", proof::why_alive(self.child.id()))),
        }
    }

    /// Waits until nothing of the service is left. `Err` lists the survivors.
    fn leaves_nothing(&self, scratch: &Scratch) -> Result<(), String> {
        let released = self.lifeline.is_released_within(BOUND);
        if self.natural_end.is_some_and(|end| Instant::now() > end) {
            return Err("too late to prove anything: its chains may have ended by themselves".to_owned());
        }
        let everybody = || self.tree.iter().chain([&self.worker, &self.guard]);
        let gone = wait_until(|| everybody().all(|process| !process.is_alive()), BOUND);
        let mut hidden = Vec::new();
        let none_hidden = wait_until(
            || {
                hidden = marked(scratch.path());
                hidden.is_empty()
            },
            BOUND,
        );
        if released && gone && none_hidden {
            return Ok(());
        }
        let alive: Vec<_> = everybody().filter(|process| process.is_alive()).collect();
        let held = if released {
            ""
        } else {
            "; the lifeline is still held"
        };
        Err(format!("survivors: {alive:?}, others: {hidden:?}{held}"))
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads until a line contains this string, and returns the line.
fn line_with(output: &mut BufReader<ChildStdout>, text: &str) -> Option<String> {
    let mut lines = output.lines();
    lines.find_map(|line| line.ok().filter(|line| line.contains(text)))
}

fn setting(name: &str, otherwise: u32) -> u32 {
    let Some(value) = std::env::var_os(name) else {
        return otherwise;
    };
    let number = value.to_str().and_then(|value| value.parse().ok());
    number.unwrap_or_else(|| panic!("{name} is no number: {value:?}"))
}

// ---- the table ----------------------------------------------------------------------------------

/// A way in which a test process ends.
#[derive(Clone, Copy)]
struct Death {
    name: &'static str,
    /// The signal that the test sends to the victim.
    signal: Option<i32>,
    status: Status,
}

#[derive(Clone, Copy, PartialEq)]
enum Status {
    Code(i32),
    Signal(i32),
}

impl Death {
    const fn own(name: &'static str, status: Status) -> Death {
        Death {
            name,
            signal: None,
            status,
        }
    }

    const fn by(signal: i32) -> Death {
        Death {
            name: "a signal",
            signal: Some(signal),
            status: Status::Signal(signal),
        }
    }

    /// A service's log is kept for a day if its test failed or its `stop` returned an error, as it
    /// does if the service had to be killed.
    fn may_keep_the_log(&self, kind: &Kind) -> bool {
        self.status != Status::Code(0) || self.name == "stop" && kind.is_deaf()
    }
}

/// Runs one cell of the table once.
fn cell(command: Command, scratch: &Scratch, death: Death, kind: &Kind) -> Result<(), String> {
    let mut victim = Victim::start(command, scratch, death.name, kind)?;
    victim.say("die");
    if let Some(signal) = death.signal {
        send(victim.child.id(), signal);
    }
    let status = victim.end()?;
    let as_intended = match death.status {
        Status::Code(code) => status.code() == Some(code),
        Status::Signal(signal) => status.signal() == Some(signal),
    };
    if !as_intended {
        let errors = fs::read_to_string(scratch.path().join("stderr")).unwrap_or_default();
        return Err(format!(
            "the victim ended by {status}, as nobody intended: {errors}"
        ));
    }
    victim.leaves_nothing(scratch)?;
    let (service_dirs, logs) = (service_dirs(scratch.path()), kept_logs(scratch.path()));
    // Except after a panic, the service has printed a line at the stop signal, so there is a log to
    // keep.
    let killed = death.may_keep_the_log(kind) && death.status != Status::Code(101);
    if logs.is_empty() && killed && kind.name == PLAIN.name {
        return Err("the log is lost".to_owned());
    }
    if service_dirs.is_empty() && (logs.is_empty() || death.may_keep_the_log(kind)) {
        Ok(())
    } else {
        Err(format!("files are left: {service_dirs:?}, and logs: {logs:?}"))
    }
}

/// Runs one row of the table: all kinds of tree side by side, `MIRAKURU_MATRIX_REPEATS` times.
fn row(death: Death, command: impl Fn(&Path) -> Command + Sync) {
    let repeats = setting("MIRAKURU_MATRIX_REPEATS", 1);
    let kinds = kinds();
    let some_at_a_time = kinds.chunks(6);
    let side_by_side = |kinds: &[&'static Kind]| {
        thread::scope(|scope| {
            let threads: Vec<_> = kinds
                .iter()
                .map(|&kind| {
                    let command = &command;
                    scope.spawn(move || {
                        let mut failures = Vec::new();
                        for cycle in 1..=repeats {
                            let scratch = Scratch::new();
                            if let Err(what) = cell(command(scratch.path()), &scratch, death, kind) {
                                let by = death
                                    .signal
                                    .map(|signal| format!(" {signal}"))
                                    .unwrap_or_default();
                                failures.push(format!(
                                    "[{}{by} x {}] (cycle {cycle} of {repeats}) {what}",
                                    death.name, kind.name
                                ));
                            }
                        }
                        failures
                    })
                })
                .collect();
            threads
                .into_iter()
                .flat_map(|thread| thread.join().expect("the thread of a kind"))
                .collect::<Vec<String>>()
        })
    };
    let failures: Vec<String> = some_at_a_time.flat_map(side_by_side).collect();
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

macro_rules! table {
    ($($test:ident: $death:expr;)*) => {$(
        #[test]
        fn $test() {
            row($death, under_libtest);
        }
    )*};
}

table! {
    scope_end: Death::own("scope end", Status::Code(0));
    stop: Death::own("stop", Status::Code(0));
    panic: Death::own("panic", Status::Code(101));
    process_exit: Death::own("process::exit", Status::Code(cell::EXIT_CODE));
    end_of_libtest_with_a_static: Death::own("end of main with a static", Status::Code(0));
    sigint: Death::by(SIGINT);
    sigterm: Death::by(SIGTERM);
    sighup: Death::by(SIGHUP);
    sigquit: Death::by(SIGQUIT);
    abort: Death::own("abort", Status::Signal(SIGABRT));
    sigsegv: Death::own("SIGSEGV", Status::Signal(SIGSEGV));
    stack_overflow: Death::own("stack overflow", Status::Signal(SIGABRT));
    sigkill: Death::by(SIGKILL);
    sigusr1: Death::by(SIGUSR1);
    sigusr2: Death::by(SIGUSR2);
    sigalrm: Death::by(SIGALRM);
    sigvtalrm: Death::by(SIGVTALRM);
}

/// A program built with `panic = "abort"` neither unwinds nor runs destructors. It is not a test,
/// because cargo ignores the setting for tests. The end of its `main` is tested as well.
#[test]
fn panic_is_abort() {
    let program = fresh::built_with_abort();
    row(Death::own("panic", Status::Signal(SIGABRT)), |_| {
        Command::new(&program)
    });
    row(Death::own("end of main with a static", Status::Code(0)), |_| {
        Command::new(&program)
    });
}

// ---- the supervisors themselves -----------------------------------------------------------------

/// A service of this process. This process does not hold the service's lifeline: a shell opens the
/// lifeline, and then executes the service.
struct Supervised {
    service: TcpExecutor,
    lifeline: Lifeline,
    tree: Vec<Process>,
    /// The worker and the guard.
    above: [Process; 2],
    scratch: Scratch,
}

impl Supervised {
    fn start(kind: &Kind) -> Supervised {
        let scratch = Scratch::new();
        let fifo = scratch.file("lifeline");
        let lifeline = Lifeline::new(&fifo);
        let pids = scratch.file("pids");
        let service = Executor::builder(["sh", "-c", &format!("exec \"$0\" \"$@\" <>{fifo}"), ODD])
            .args(["--listen", "127.0.0.1:{port}", "--pids", &pids])
            .args(kind.flags.split_whitespace())
            .wait_for(Tcp::addr("127.0.0.1:{port}"))
            .timeout(LONG)
            .stop_timeout(GRACE)
            .start()
            .unwrap();
        assert!(lifeline.is_held(), "nobody holds the lifeline");
        let recorded = numbers(&pids);
        assert_eq!(recorded.len(), kind.recorded, "{}", kind.name);
        let tree = recorded.iter().filter_map(|&pid| Process::of(pid)).collect();
        let above: Vec<Process> = supervisors(recorded[0])
            .into_iter()
            .filter_map(Process::of)
            .collect();
        let above: [Process; 2] = above.try_into().expect("a worker and a guard");
        assert_eq!(above[0].name(), "mirakuru-worker");
        assert_eq!(above[1].name(), "mirakuru-guard");
        Supervised {
            service,
            lifeline,
            tree,
            above,
            scratch,
        }
    }

    #[track_caller]
    fn assert_gone(&self, what: &str) {
        assert!(
            self.lifeline.is_released_within(BOUND),
            "{what}: survivors: {:?}",
            self.tree
                .iter()
                .filter(|process| process.is_alive())
                .collect::<Vec<_>>()
        );
        assert!(self.tree.iter().all(|process| !process.is_alive()), "{what}");
    }
}

/// If either supervisor is killed while the test process lives, the other supervisor ends the
/// service.
#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end has one supervisor, which the service outlives"
)]
fn one_supervisor_killed() {
    for kind in KINDS {
        for which in 0..2 {
            let what = format!("{} killed x {}", ["worker", "guard"][which], kind.name);
            let mut supervised = Supervised::start(kind);
            send(supervised.above[which].pid, SIGKILL);
            supervised.assert_gone(&what);
            let other = &supervised.above[1 - which];
            assert!(wait_until(|| !other.is_alive(), BOUND), "{what}: {other:?} stays");
            assert!(wait_until(|| !supervised.service.is_running(), BOUND), "{what}");
            // The service is down, and can be started again.
            let _ = supervised.service.stop();
            let _ = fs::remove_file(supervised.scratch.file("pids"));
            supervised.service.start().unwrap();
            supervised.service.stop().unwrap_or_default();
            supervised.assert_gone(&what);
        }
    }
}

/// Kills both supervisors so that neither can react to the other's death, because a stopped process
/// is killed without running again. The guard is stopped first, as it would continue a stopped
/// worker.
fn kill_both(worker: &Process, guard: &Process) {
    for process in [guard, worker] {
        send(process.pid, SIGSTOP);
        let stopped = || matches!(stat(process.pid), Some(('T', _)));
        assert!(wait_until(stopped, BOUND), "{process:?}");
    }
    for process in [guard, worker] {
        send(process.pid, SIGKILL);
    }
    for process in [guard, worker] {
        assert!(wait_until(|| !process.is_alive(), BOUND), "{process:?}");
    }
}

/// If both supervisors are killed at the same time, the kernel ends the main process (PDEATHSIG).
/// The test process ends all other processes that have the service's mark in their environment.
///
/// One case is not covered: a descendant that has *cleared its environment* survives. No living
/// process knows of it, and only a cgroup could tell to which service it belonged. Someone would
/// have to kill two processes of different names within a millisecond. Chains that fork without end
/// are not tested here, because a search for their mark may be too slow.
#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end has one supervisor, which the service outlives"
)]
fn both_supervisors_killed() {
    for kind in [&PLAIN, &GRANDCHILDREN, &STOPPED] {
        let mut supervised = Supervised::start(kind);
        kill_both(&supervised.above[0], &supervised.above[1]);
        let main = &supervised.tree[0];
        assert!(
            wait_until(|| !main.is_alive(), BOUND),
            "{}: the main process stays",
            kind.name
        );
        assert!(wait_until(|| !supervised.service.is_running(), BOUND));
        let _ = supervised.service.stop();
        supervised.assert_gone(kind.name);
        let _ = fs::remove_file(supervised.scratch.file("pids"));
        supervised.service.start().unwrap();
    }
}

/// Nothing stops a service in a static, so the test process ends it when it exits.
#[test]
fn both_supervisors_of_a_static_killed() {
    for kind in [&PLAIN, &GRANDCHILDREN, &STOPPED] {
        let scratch = Scratch::new();
        let command = under_libtest(scratch.path());
        let mut victim = Victim::start(command, &scratch, "end of main with a static", kind).unwrap();
        kill_both(&victim.worker, &victim.guard);
        victim.say("die");
        assert!(victim.end().unwrap().success());
        victim.leaves_nothing(&scratch).unwrap();
    }
}

/// If both supervisors and the test process are killed, the next run finds the service's processes
/// by their mark, ends them, and removes the files.
///
/// Two cases are not covered: a descendant that has cleared its environment, and the lack of a next
/// run.
#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end has one supervisor, which the service outlives"
)]
fn both_supervisors_and_the_test_process_killed() {
    for kind in [&PLAIN, &GRANDCHILDREN, &STOPPED] {
        let scratch = Scratch::new();
        let mut first = Victim::start(under_libtest(scratch.path()), &scratch, "a signal", kind).unwrap();
        send(first.child.id(), SIGSTOP);
        let victim = first.child.id();
        assert!(wait_until(|| matches!(stat(victim), Some(('T', _))), BOUND));
        kill_both(&first.worker, &first.guard);
        send(victim, SIGKILL);
        first.end().unwrap();
        let main = &first.tree[0];
        assert!(wait_until(|| !main.is_alive(), BOUND), "{}", kind.name);
        // The kernel itself ends a process group that has a stopped member but no process left to
        // continue it.
        if !kind.stopped && kind.recorded > 1 {
            assert!(first.lifeline.is_held(), "nothing is left that could be swept");
        }
        assert_eq!(service_dirs(scratch.path()).len(), 1);

        let scope_end = Death::own("scope end", Status::Code(0));
        cell(under_libtest(scratch.path()), &scratch, scope_end, &PLAIN).unwrap();
        first.leaves_nothing(&scratch).unwrap();
    }
}

/// A stopped supervisor (SIGSTOP) delays nothing. The guard continues the worker, and the test
/// process and the worker continue the guard.
///
/// One case is not covered: if both supervisors are stopped *and* the test process is killed, the
/// service keeps running until one supervisor is continued.
#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end has one supervisor, which the service outlives"
)]
fn stopped_supervisors() {
    // The worker, the guard, and both.
    for which in [&[0][..], &[1], &[1, 0]] {
        for kind in [&GRANDCHILDREN, &DAEMONS, &FORKING] {
            let mut supervised = Supervised::start(kind);
            let what = format!("{which:?} stopped x {}", kind.name);
            for &at in which {
                send(supervised.above[at].pid, SIGSTOP);
            }
            let begin = Instant::now();
            let _ = supervised.service.stop();
            assert!(begin.elapsed() < BOUND, "{what}: it took {:?}", begin.elapsed());
            supervised.assert_gone(&what);
            assert!(
                supervised.above.iter().all(|process| !process.is_alive()),
                "{what}"
            );
        }
    }
    for stop_guard in [false, true] {
        for kind in KINDS {
            let scratch = Scratch::new();
            let mut victim =
                Victim::start(under_libtest(scratch.path()), &scratch, "a signal", kind).unwrap();
            let stopped = if stop_guard { &victim.guard } else { &victim.worker }.clone();
            send(stopped.pid, SIGSTOP);
            send(victim.child.id(), SIGKILL);
            victim.end().unwrap();
            if let Err(what) = victim.leaves_nothing(&scratch) {
                panic!("[{} stopped x {}] {what}", stopped.name(), kind.name);
            }
            assert_eq!(service_dirs(scratch.path()), [""; 0]);
        }
    }
}

// ---- killed in the middle of a start ------------------------------------------------------------

/// The test process is killed many times, at random moments of a start. No process and no lock is
/// left, and the next run removes all files.
#[test]
fn killed_in_the_middle_of_a_start() {
    const SIDE_BY_SIDE: u32 = 4;
    let rounds = setting("MIRAKURU_KILL_ROUNDS", 100);
    thread::scope(|scope| {
        for lane in 0..SIDE_BY_SIDE {
            scope.spawn(move || interrupt_starts(rounds.div_ceil(SIDE_BY_SIDE), lane % 2 == 0));
        }
    });
}

fn interrupt_starts(rounds: u32, fixed: bool) {
    let kinds = kinds();
    let scratch = Scratch::new();
    let fifo = scratch.file("lifeline");
    let lifeline = Lifeline::new(&fifo);
    let port = fixed_port();
    let address = match fixed {
        // The next start waits for the lock of the fixed port.
        true => format!("127.0.0.1:{port}"),
        false => "127.0.0.1:{port}".to_owned(),
    };
    let victim = |kind: &Kind| {
        let mut command = under_libtest(scratch.path());
        let death = "in the middle of a start";
        prepare(&mut command, scratch.path(), death, kind, &address, &fifo);
        let mut child = command.spawn().expect("the victim starts");
        let mut output = BufReader::new(child.stdout.take().expect("its output"));
        assert!(line_with(&mut output, cell::STARTING).is_some(), "it has failed");
        (child, output)
    };
    // Measures how long a start and a stop take on this machine.
    let (mut child, mut output) = victim(&PLAIN);
    let begin = Instant::now();
    for _ in 0..5 {
        assert!(line_with(&mut output, cell::STARTING).is_some(), "it has failed");
    }
    let whole = begin.elapsed() / 5;
    child.kill().unwrap();
    child.wait().unwrap();

    for round in 0..rounds {
        let kind = kinds[round as usize % kinds.len()];
        let (mut child, _output) = victim(kind);
        let moment = whole.as_nanos() as u64 * 3 / 2;
        // A random pause, so that the kill may hit any moment of the start.
        thread::sleep(Duration::from_nanos(random() % moment));
        child.kill().unwrap();
        child.wait().unwrap();
        // A check every twenty rounds is enough, because no service ends by itself before then.
        if round % 20 == 19 || round + 1 == rounds {
            let after = format!("after round {round} ({})", kind.name);
            assert!(
                lifeline.is_released_within(BOUND),
                "survivors {after}: {:?}",
                marked(scratch.path())
            );
            assert!(
                wait_until(|| marked(scratch.path()).is_empty(), BOUND),
                "supervisors {after}: {:?}",
                marked(scratch.path())
            );
            assert!(!lifeline.is_held(), "survivors {after}");
        }
    }
    if fixed {
        // No lock is left, so a start that does not wait gets the port.
        let mut service = Executor::builder([ODD, "--listen", &address])
            .wait_for(Tcp::addr(&address))
            .timeout(LONG)
            .start()
            .unwrap();
        service.stop().unwrap();
    }
    // A new directory may belong to a start in progress, so the next run spares it for a minute.
    let old = SystemTime::now() - Duration::from_secs(120);
    for dir in service_dirs(scratch.path()) {
        let _ = File::open(&dir).and_then(|dir| dir.set_modified(old));
    }
    // This test does not check the logs that killed services leave.
    for log in kept_logs(scratch.path()) {
        fs::remove_dir_all(log).unwrap();
    }
    let scope_end = Death::own("scope end", Status::Code(0));
    cell(under_libtest(scratch.path()), &scratch, scope_end, &PLAIN).unwrap();
    assert_eq!(service_dirs(scratch.path()), [""; 0]);
}

// ---- figures ------------------------------------------------------------------------------------

/// Prints the figures for the README's table. Run it on an idle machine: `cargo test --release
/// --test it teardown::figures -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn figures() {
    for kind in kinds() {
        let mut took: Vec<Duration> = (0..50)
            .map(|_| {
                let scratch = Scratch::new();
                let mut victim =
                    Victim::start(under_libtest(scratch.path()), &scratch, "a signal", kind).unwrap();
                let begin = Instant::now();
                send(victim.child.id(), SIGKILL);
                while victim.lifeline.is_held() {
                    thread::sleep(Duration::from_micros(20));
                }
                let took = begin.elapsed();
                victim.end().unwrap();
                victim.leaves_nothing(&scratch).unwrap();
                took
            })
            .collect();
        took.sort();
        println!(
            "SIGKILL until the tree is empty, {} (grace {GRACE:?}): median {:?}, worst {:?}",
            kind.name, took[25], took[49]
        );
    }
    static SLEEPER: Shared<SimpleExecutor> = Shared::new(|| Executor::builder("sleep 60").start());
    const USES: u32 = 1_000_000;
    let pid = SLEEPER.pid();
    let begin = Instant::now();
    for _ in 0..USES {
        assert_eq!(std::hint::black_box(&SLEEPER).pid(), pid);
    }
    println!("one more use of a static: {:?}", begin.elapsed() / USES);
}
