//! Helpers for the tests of the presets.

use std::env;
use std::ffi::OsStr;
use std::fmt::Debug;
use std::fs;
use std::io::{self, Write};
use std::net::TcpListener;
use std::ops::Deref;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{self, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use mirakuru::{Error, Executor, Readiness};

#[path = "../common/names.rs"]
pub(crate) mod names;
pub(crate) use names::test_name;

/// Prints past the capture of the test harness, which hides the output of a passing test.
pub(crate) fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

fn this_test() -> String {
    thread::current().name().unwrap_or("a test").to_owned()
}

/// Whether a program is installed. If it is not, prints that (the test then returns). With
/// `CI=true` in the environment the test fails.
#[track_caller]
#[must_use]
pub(crate) fn require(program: &str) -> bool {
    // Without `PATH`, programs are searched in the folders that every system has.
    let path = env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    // Debian keeps PostgreSQL off PATH.
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let mut dirs = env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .chain(versions.flatten().map(|entry| entry.path().join("bin")));
    let found = dirs.any(|dir| dir.join(program).is_file());
    if !found {
        if env::var_os("CI").is_some_and(|value| value == "true") {
            panic!("`{program}` is not installed, and CI=true: run `tests/run`, which installs it");
        }
        say(&format!(
            "\n*** {}: SKIPPED, `{program}` is not installed; `tests/run` installs it ***\n",
            this_test()
        ));
    }
    found
}

// ---- servers by URL -----------------------------------------------------------------------------

/// The programs of the presets, and the variables that name a server in their place.
const BY_URL: [(&str, &str); 8] = [
    ("postgres", "MIRAKURU_POSTGRES_URL"),
    ("mariadbd", "MIRAKURU_MARIADB_URL"),
    ("redis-server", "MIRAKURU_REDIS_URL"),
    ("rabbitmq-server", "MIRAKURU_RABBITMQ_URL"),
    ("nats-server", "MIRAKURU_NATS_URL"),
    ("etcd", "MIRAKURU_ETCD_URL"),
    ("memcached", "MIRAKURU_MEMCACHED_URL"),
    ("mosquitto", "MIRAKURU_MOSQUITTO_URL"),
];

/// The variable of this program, if it is set.
fn url_variable(program: &str) -> Option<&'static str> {
    let (_, variable) = BY_URL
        .into_iter()
        .find(|(known, _)| *known == program)
        .expect("a program of the list");
    let url = env::var_os(variable);
    url.is_some_and(|url| !url.is_empty()).then_some(variable)
}

/// Lets the presets of another process start servers of their own, whatever the variables say.
pub(crate) fn remove_urls(command: &mut Command) -> &mut Command {
    BY_URL
        .iter()
        .fold(command, |command, (_, variable)| command.env_remove(variable))
}

/// Whether a test has a server: a `MIRAKURU_*_URL` names one, or the program is installed.
#[track_caller]
#[must_use]
pub(crate) fn any_server(program: &str) -> bool {
    url_variable(program).is_some() || require(program)
}

/// Whether a test that configures, restarts or kills its server goes on in this process: such a
/// test needs its own server. See [`without_url`].
#[track_caller]
#[must_use]
pub(crate) fn own_server(program: &str) -> bool {
    without_url(program) && require(program)
}

/// Whether the test goes on in this process, because no `MIRAKURU_*_URL` names a server for this
/// program. If one does, prints that, runs the test in another process without the variable, and
/// fails if the test fails there.
#[track_caller]
#[must_use]
pub(crate) fn without_url(program: &str) -> bool {
    let Some(variable) = url_variable(program) else {
        return true;
    };
    let test = this_test();
    say(&format!(
        "*** {test}: runs without {variable}, on a server of its own ***"
    ));
    let output = Command::new(env::current_exe().expect("this binary"))
        .args(["--exact", &test, "--include-ignored", "--nocapture"])
        .env_remove(variable)
        .stderr(Stdio::inherit())
        .output()
        .expect("this binary runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains(" 1 passed"), "{text}");
    false
}

// ---- help for tests -----------------------------------------------------------------------------

/// A key for a seed that no other test and no other run has.
#[must_use]
pub(crate) fn new_key(text: &str) -> String {
    let now = std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .unwrap_or_default()
        .as_nanos();
    format!("{text} {now} {}", process::id())
}

/// Whether this process runs as root. If not, prints that a part of the test is skipped.
#[must_use]
pub(crate) fn require_root() -> bool {
    let root = fs::metadata("/proc/self").is_ok_and(|us| us.uid() == 0);
    if !root {
        say(&format!("\n*** {}: SKIPPED, needs to be root ***\n", this_test()));
    }
    root
}

/// Waits until the condition holds. Returns whether it did within the time limit.
pub(crate) fn within(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < limit {
        if holds() {
            return true;
        }
        thread::sleep(Duration::from_millis(20));
    }
    holds()
}

/// Whether a process exists and is not a zombie.
#[must_use]
pub(crate) fn alive(pid: u32) -> bool {
    let Ok(text) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    // The name may hold anything, so the rest begins after the last parenthesis.
    let state = text
        .rsplit(')')
        .next()
        .and_then(|rest| rest.trim_start().chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

/// Drops a handle, and fails unless its server and the private directory are gone then.
#[track_caller]
pub(crate) fn assert_nothing_is_left<R: Readiness, H: Deref<Target = Executor<R>>>(handle: H) {
    let (pid, dir) = (handle.pid(), handle.dir());
    assert!(alive(pid) && dir.is_dir());
    drop(handle);
    assert!(!alive(pid), "the server is there still (pid {pid})");
    assert!(!dir.exists(), "{} is there still", dir.display());
}

/// Lets a server start on a port that this process has, and fails unless the error names this
/// process. (The portable back end does not see that, but also reports the port.)
#[track_caller]
pub(crate) fn assert_names_the_holder<H: Debug>(start: impl FnOnce(u16) -> Result<H, Error>) {
    let ours = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = ours.local_addr().expect("its address").port();
    let error = start(port).expect_err("the port is ours").to_string();
    let is_named = error.contains(&format!("(pid {}", process::id()));
    assert!(is_named || cfg!(mirakuru_portable), "{error}");
    assert!(error.contains(&port.to_string()), "{error}");
}

// ---- another process ----------------------------------------------------------------------------

const CHILD: &str = "MIRAKURU_TEST_CHILD";

/// The `#[ignore]`d test of this name ([`test_name`]) of this binary as a process of its own, if
/// wanted with a command such as `setpriv` before it. The process has no `MIRAKURU_*_URL`.
pub(crate) fn child(wrapper: &[&str], test: &str) -> Command {
    let binary = env::current_exe().expect("this binary");
    let line: Vec<&OsStr> = wrapper
        .iter()
        .map(OsStr::new)
        .chain([binary.as_os_str()])
        .collect();
    let mut command = Command::new(line[0]);
    remove_urls(&mut command)
        .args(&line[1..])
        .args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"])
        .env(CHILD, "1");
    command
}

/// Runs such a [`child`] with another environment.
#[must_use]
pub(crate) fn in_a_child(test: &str, environment: &[(&str, &str)]) -> Output {
    let mut command = child(&[], test);
    command
        .envs(environment.iter().copied())
        .output()
        .expect("this binary runs")
}

/// Whether this process is such a child. An ignored test that is run by hand does nothing.
#[must_use]
pub(crate) fn is_child() -> bool {
    env::var_os(CHILD).is_some()
}

/// Runs the `#[ignore]`d test with empty directories on PATH, and fails unless its output names
/// this package.
#[track_caller]
pub(crate) fn assert_names_the_package(test: &str, package: &str) {
    let output = in_a_child(test, &[("PATH", "/nonexistent")]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains(&format!("`apt-get install {package}`")),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

// ---- a disk that is full ------------------------------------------------------------------------

/// A tiny file system, which is removed at the end.
pub(crate) struct TinyDisk(PathBuf);

impl TinyDisk {
    /// Mounts a disk of this size in KiB. `None`, with a message, if it cannot be mounted.
    #[must_use]
    pub(crate) fn mount(kib: u32) -> Option<TinyDisk> {
        // Tests of several servers have one at a time.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("mkt-disk-{}-{number}", process::id()));
        // A process of this id may have left one when it was killed.
        let _ = fs::remove_dir(&path);
        fs::create_dir(&path).expect("a directory");
        // Services that run as another user pass through it.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its mode");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={kib}k,mode=1777"), "tmpfs"])
            .arg(&path)
            .output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(TinyDisk(path));
        }
        let _ = fs::remove_dir(&path);
        say(&format!(
            "\n*** {}: SKIPPED, a file system cannot be mounted here ***\n",
            this_test()
        ));
        None
    }

    /// Path of the disk.
    #[must_use]
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
        let _ = fs::remove_dir(&self.0);
    }
}
