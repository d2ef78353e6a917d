//! Helpers of the integration tests: the helper service, checks of processes, and victims.
//!
//! A *victim* is a test process that is killed, or that must run alone. It is an `#[ignore]`d test
//! of the same binary, which [`victim`] runs in a separate process. Without the directory that
//! [`victim`] passes, it does nothing.

// Each test binary uses only a part of this file.
#![allow(dead_code)]

use std::env;
use std::fs;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use mirakuru::{Error, Executor, ExecutorBuilder, NoWait};

pub(crate) mod names;
#[allow(unused_imports)]
pub(crate) use names::test_name;

/// The service with every bad habit: see `tests/service/odd.rs`, or its `--help`.
pub(crate) const ODD: &str = env!("CARGO_BIN_EXE_mirakuru-odd-service");

/// The root of the repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("this package is a folder of it")
}

/// The time limit for each wait in a test. A test that passes needs far less.
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// Sets a flag when dropped, even if the test panics. Otherwise a thread that waits for the flag
/// would keep a failed test running.
pub(crate) struct SetAtTheEnd<'a>(pub(crate) &'a AtomicBool);

impl Drop for SetAtTheEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A recipe for the helper service.
pub(crate) fn odd<const N: usize>(args: [&str; N]) -> ExecutorBuilder<NoWait> {
    Executor::builder([ODD]).args(args).timeout(LONG)
}

/// The helper service as a foreign server: started without mirakuru, killed when dropped.
pub(crate) struct OtherServer(Child);

impl OtherServer {
    /// Returns once the helper has printed that it is ready.
    pub(crate) fn start(args: &[&str]) -> OtherServer {
        let mut child = Command::new(ODD)
            .args(args)
            .args(["--ready-line", "ready"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the helper starts");
        let output = child.stdout.take().expect("its output");
        let other = OtherServer(child);
        let ready = BufReader::new(output)
            .lines()
            .any(|line| line.is_ok_and(|line| line == "ready"));
        assert!(ready, "the helper has failed");
        other
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for OtherServer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether a string names a process, as in `redis-server (pid 812)` or `(pid 812, ..)`.
pub(crate) fn names_pid(text: &str, pid: u32) -> bool {
    text.contains(&format!("(pid {pid})")) || text.contains(&format!("(pid {pid},"))
}

/// The error of a start that must fail.
#[track_caller]
pub(crate) fn error_of<T>(result: Result<T, Error>) -> Error {
    match result {
        Ok(_) => panic!("this must not succeed"),
        Err(error) => error,
    }
}

// ---- files --------------------------------------------------------------------------------------

/// A directory that is removed when dropped, unless the test fails.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Scratch {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        // The path is short, because the length of a Unix socket's path is limited.
        let name = format!(
            "mkt-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::SeqCst)
        );
        let path = env::temp_dir().join(name);
        // A process that was killed, or whose test failed, may have left this directory.
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).expect("a scratch directory");
        // Services that run as another user must be able to enter the directory.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its mode");
        Scratch(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// The path of a file in the directory, as a string.
    pub(crate) fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("a path in UTF-8").to_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !thread::panicking() {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// Whether the tests can find all processes of the helper with these flags. The portable back end
/// finds only processes in the service's group. If a process cannot be found, prints that the case
/// is skipped.
pub(crate) fn is_found(flags: &[&str]) -> bool {
    let leaves_the_group = flags
        .iter()
        .any(|flag| matches!(*flag, "--deaf-daemons" | "--daemonise"));
    let found = !(cfg!(mirakuru_portable) && leaves_the_group);
    static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    if !found && !said.contains(&flags.join(" ")) {
        said.push(flags.join(" "));
        say(&format!(
            "\n*** {}: SKIPPED, the portable back end finds no processes outside the group ***\n",
            flags.join(" ")
        ));
    }
    found
}

/// The permission bits of a file.
#[track_caller]
pub(crate) fn mode(path: &Path) -> u32 {
    let metadata = fs::metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    metadata.permissions().mode() & 0o7777
}

/// The numbers in a file, one on each line; none if there is no file.
pub(crate) fn numbers(path: &str) -> Vec<u32> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(|line| line.trim().parse().ok()).collect()
}

/// Time of an event in the helper's `--stamp` file, if it has happened.
pub(crate) fn stamped(path: &str, event: &str) -> Option<Duration> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| {
        let nanos = line.strip_prefix(event)?.trim().parse().ok()?;
        Some(Duration::from_nanos(nanos))
    })
}

// ---- time ---------------------------------------------------------------------------------------

/// Waits until a condition holds. Returns whether it held in time.
#[must_use]
pub(crate) fn wait_until(mut condition: impl FnMut() -> bool, bound: Duration) -> bool {
    let end = Instant::now() + bound;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// CLOCK_MONOTONIC, the clock of the helper's stamps.
pub(crate) fn monotonic() -> Duration {
    #[repr(C)]
    struct Timespec {
        sec: std::os::raw::c_long,
        nsec: std::os::raw::c_long,
    }
    unsafe extern "C" {
        fn clock_gettime(clock: i32, time: *mut Timespec) -> i32;
    }
    let clock = if cfg!(target_os = "linux") { 1 } else { 6 };
    let mut now = Timespec { sec: 0, nsec: 0 };
    // SAFETY: the time is written to a live buffer.
    unsafe { clock_gettime(clock, &mut now) };
    Duration::new(now.sec as u64, now.nsec as u32)
}

// ---- processes ----------------------------------------------------------------------------------

/// A process's state letter and its parent; `None` when there is no such process.
pub(crate) fn stat(pid: u32) -> Option<(char, u32)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may contain any character, so the other fields begin after the last parenthesis.
    let mut rest = text[text.rfind(')')? + 1..].split_whitespace();
    Some((rest.next()?.chars().next()?, rest.next()?.parse().ok()?))
}

/// Whether a process lives and is not a zombie. (`kill(pid, 0)` succeeds for a zombie.)
pub(crate) fn alive(pid: u32) -> bool {
    matches!(stat(pid), Some((state, _)) if state != 'Z' && state != 'X')
}

/// All pids of this machine.
pub(crate) fn all_pids() -> Vec<u32> {
    let entries = fs::read_dir("/proc").expect("/proc");
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// The living processes whose command line contains this string, for example a scratch directory's
/// path. A forked child has its parent's command line.
pub(crate) fn processes_with(text: &str) -> Vec<u32> {
    let me = std::process::id();
    let mut pids = all_pids();
    pids.retain(|&pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        pid != me && String::from_utf8_lossy(&line).contains(text) && alive(pid)
    });
    pids
}

/// Waits until no process is left that recorded its pid in `pids`, or whose command line contains
/// the scratch directory's path. Fails after `bound`.
#[track_caller]
pub(crate) fn assert_gone(scratch: &Scratch, pids: &str, bound: Duration) {
    let recorded = numbers(pids);
    assert!(!recorded.is_empty(), "nothing recorded its pid in {pids}");
    let path = scratch.path().to_str().expect("a path in UTF-8");
    let mut left = Vec::new();
    let gone = wait_until(
        || {
            left = processes_with(path);
            left.extend(recorded.iter().copied().filter(|&pid| alive(pid)));
            left.is_empty()
        },
        bound,
    );
    assert!(gone, "survivors: {left:?} of {recorded:?}");
    for _ in 0..3 {
        // A single pass may miss a process that forks and exits.
        thread::sleep(Duration::from_millis(10));
        let late = processes_with(path);
        assert!(late.is_empty(), "survivors at a second look: {late:?}");
    }
}

/// All living descendants of a process except daemons, found by parent pid. Unlike
/// [`processes_with`], this also finds children that have other command lines.
pub(crate) fn descendants(root: u32) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = all_pids()
        .into_iter()
        .filter_map(|pid| stat(pid).map(|(_, parent)| (pid, parent)))
        .collect();
    let mut found = vec![root];
    let mut next = 0;
    while next < found.len() {
        let of = found[next];
        found.extend(
            parents
                .iter()
                .filter(|(_, parent)| *parent == of)
                .map(|(pid, _)| *pid),
        );
        next += 1;
    }
    found.retain(|&pid| pid != root && alive(pid));
    found
}

/// Finds the supervisors of a service: its ancestors below this process.
pub(crate) fn supervisors(service: u32) -> Vec<u32> {
    let mut chain = Vec::new();
    let mut pid = service;
    while let Some((_, parent)) = stat(pid) {
        if parent == std::process::id() || parent <= 1 {
            break;
        }
        chain.push(parent);
        pid = parent;
    }
    chain
}

pub(crate) const SIGINT: i32 = 2;
pub(crate) const SIGKILL: i32 = 9;
pub(crate) const SIGSTOP: i32 = 19;
pub(crate) const SIGTERM: i32 = 15;

/// Sends a signal to a process of this test.
pub(crate) fn send(pid: u32, signal: i32) {
    unsafe extern "C" {
        fn kill(pid: i32, signal: i32) -> i32;
    }
    assert!(pid > 1, "not a process of ours: {pid}");
    // SAFETY: `kill` accesses no memory.
    unsafe { kill(pid as i32, signal) };
}

pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Whether this process runs as root.
pub(crate) fn is_root() -> bool {
    unsafe extern "C" {
        fn geteuid() -> u32;
    }
    // SAFETY: `geteuid` accesses no memory.
    unsafe { geteuid() == 0 }
}

/// Resident memory of this process in kB.
pub(crate) fn rss_kb() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("/proc/self/status");
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .expect("VmRSS");
    line.split_whitespace()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .expect("a number")
}

/// Number of entries in a directory.
pub(crate) fn entries(path: &str) -> usize {
    fs::read_dir(path).map_or(0, Iterator::count)
}

// ---- victims ------------------------------------------------------------------------------------

/// The environment variable that holds a victim's directory. It tells a process that it is a
/// victim.
pub(crate) const VICTIM: &str = "MIRAKURU_TEST_VICTIM";

/// Fails, and shows the output of the process, unless its status is 0.
#[track_caller]
pub(crate) fn assert_success(output: &Output) {
    let [stdout, stderr] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(output.status.success(), "{}\n{stdout}{stderr}", output.status);
}

/// A command that runs one `#[ignore]`d test of this binary in a separate process. `name` comes
/// from [`test_name`]. `dir` is the [`victim_dir`] of that process, and its directory for temporary
/// files.
pub(crate) fn victim(name: &str, dir: &Path) -> Command {
    let mut command = captured_victim(name, dir);
    command.args(["--nocapture", "--test-threads=1"]);
    command
}

/// A [`victim`] whose output the harness captures, as it does by default.
pub(crate) fn captured_victim(name: &str, dir: &Path) -> Command {
    victims(&[name], dir)
}

/// Several [`victim`]s in one process.
pub(crate) fn victims(names: &[&str], dir: &Path) -> Command {
    let mut command = Command::new(env::current_exe().expect("this binary"));
    command
        .args(["--exact", "--ignored"])
        .args(names)
        .env(VICTIM, dir)
        .env("TMPDIR", dir);
    command
}

/// The directory of this victim; `None` in any other process.
pub(crate) fn victim_dir() -> Option<PathBuf> {
    env::var_os(VICTIM).map(PathBuf::from)
}

// ---- crates of others ---------------------------------------------------------------------------

/// The target directory for crates that depend on this one as a user's crate does. It is kept, so
/// only the first run builds the dependencies.
pub(crate) const FRESH_TARGET: &str = if cfg!(mirakuru_portable) {
    concat!(env!("CARGO_TARGET_TMPDIR"), "/fresh-portable")
} else {
    concat!(env!("CARGO_TARGET_TMPDIR"), "/readme")
};

/// Makes cargo build a user's crate in [`FRESH_TARGET`], offline, without debug information, and
/// with the back end of these tests. RUSTFLAGS select the portable back end, because the crate is
/// outside this workspace.
pub(crate) fn build_as_a_user(command: &mut Command) {
    command
        .stdin(Stdio::null())
        .env("CARGO_NET_OFFLINE", "true")
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env("CARGO_TARGET_DIR", FRESH_TARGET);
    if cfg!(mirakuru_portable) {
        let flags = env::var("RUSTFLAGS").unwrap_or_default();
        command
            .env("RUSTFLAGS", format!("{flags} --cfg mirakuru_portable"))
            .env_remove("RUSTC_WORKSPACE_WRAPPER");
    }
}

// ---- the network --------------------------------------------------------------------------------

/// A free port for tests that need a *fixed* one. It is below the kernel's ephemeral range, and in
/// a window that no other test process uses. Each call returns a different port.
pub(crate) fn fixed_port() -> u16 {
    /// Number of ports in a window: more than the tests of one binary need.
    const WINDOW: u16 = 500;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // The first port of this process's window. A listener on the last port reserves the window.
    static FIRST: OnceLock<(u16, TcpListener)> = OnceLock::new();
    let (first, _) = FIRST.get_or_init(|| {
        let begin = std::process::id() as u16 % 25;
        let windows = (0..25).map(|n| 20_000 + (begin + n) % 25 * WINDOW);
        let reserve = |first| Some((first, TcpListener::bind(("127.0.0.1", first + WINDOW - 1)).ok()?));
        windows
            .filter_map(reserve)
            .next()
            .expect("a free window of ports")
    });
    loop {
        let n = NEXT.fetch_add(1, Ordering::SeqCst);
        assert!(n < WINDOW - 1, "no free port");
        let port = first + n;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            // A child that another test has just forked keeps a copy of the listener until it
            // executes its program.
            assert!(wait_until(
                || TcpStream::connect(("127.0.0.1", port)).is_err(),
                LONG
            ));
            return port;
        }
    }
}

/// Sends one line and returns the line that comes back.
pub(crate) fn ask(addr: impl ToSocketAddrs, line: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(format!("{line}\r\n").as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(answer.trim_end().to_owned())
}

/// The pid of the helper that answers on this address.
#[track_caller]
pub(crate) fn who_answers(addr: impl ToSocketAddrs) -> u32 {
    let answer = ask(addr, "PING").expect("an answer");
    let pid = answer
        .strip_prefix("PONG ")
        .unwrap_or_else(|| panic!("not our helper: {answer:?}"));
    pid.parse().expect("a pid")
}

// ---- programs -----------------------------------------------------------------------------------

/// Prints to standard error directly, because the test harness hides the output of a passing test.
pub(crate) fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// The path of an installed program. If it is missing, prints that the test is skipped and returns
/// `None`; with `CI=true` in the environment the test fails.
#[track_caller]
pub(crate) fn require(program: &str) -> Option<PathBuf> {
    let found = find(program);
    if found.is_none() {
        let test = thread::current().name().unwrap_or("a test").to_owned();
        if env::var_os("CI").is_some_and(|value| value == "true") {
            panic!("`{program}` is not installed, and CI=true: run `tests/run`, which installs it");
        }
        say(&format!(
            "\n*** {test}: SKIPPED, `{program}` is not installed; `tests/run` installs it ***\n"
        ));
    }
    found
}

pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let mut dirs: Vec<PathBuf> = env::split_paths(&env::var_os("PATH")?).collect();
    dirs.push("/usr/sbin".into());
    // Debian keeps each version of PostgreSQL in its own folder outside PATH. The newest version
    // comes first.
    let mut versions: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    versions.sort_by_key(|path| path.file_name().and_then(|n| n.to_str()?.parse::<u32>().ok()));
    dirs.extend(versions.iter().rev().map(|path| path.join("bin")));
    dirs.into_iter()
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
}

/// Prints that a part of a test is skipped, because it needs root.
pub(crate) fn skip_without_root() {
    let test = thread::current().name().unwrap_or("a test").to_owned();
    say(&format!("\n*** {test}: SKIPPED in part, needs to be root ***\n"));
}
