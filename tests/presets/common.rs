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

/// Prints directly to stderr, because the test harness hides the output of a passing test.
pub(crate) fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

fn this_test() -> String {
    thread::current().name().unwrap_or("a test").to_owned()
}

/// Whether a program is installed. If it is not, prints a message, and the caller skips its test.
/// With `CI=true`, panics instead.
#[track_caller]
#[must_use]
pub(crate) fn require(program: &str) -> bool {
    // Without `PATH`, search the directories that every system has.
    let path = env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    // Debian does not put PostgreSQL's programs on `PATH`.
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

/// Each preset's program, and the variable that names an external server.
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

/// Removes the variables from a command, so that its presets start their own servers.
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

/// Like [`without_url`], but the program must also be installed. Use it for tests that configure,
/// restart or kill their server.
#[track_caller]
#[must_use]
pub(crate) fn own_server(program: &str) -> bool {
    without_url(program) && require(program)
}

/// Returns true if no `MIRAKURU_*_URL` names a server for this program. Otherwise runs the test in
/// another process without the variable, and panics if the test fails there.
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

/// A seed key that no other test and no other run has.
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

/// Waits until the condition holds or the time is over. Returns whether the condition holds.
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
    // The process name may contain parentheses, so look for the state after the last one.
    let state = text
        .rsplit(')')
        .next()
        .and_then(|rest| rest.trim_start().chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

/// Drops a handle, and panics if its server or private directory is still there.
#[track_caller]
pub(crate) fn assert_nothing_is_left<R: Readiness, H: Deref<Target = Executor<R>>>(handle: H) {
    let (pid, dir) = (handle.pid(), handle.dir());
    assert!(alive(pid) && dir.is_dir());
    drop(handle);
    assert!(!alive(pid), "the server is there still (pid {pid})");
    assert!(!dir.exists(), "{} is there still", dir.display());
}

/// Starts a server on a port that this process holds, and panics unless the error names this
/// process. With the portable back end, the error names only the port.
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

/// A command that runs one `#[ignore]`d test of this binary ([`test_name`]) without any
/// `MIRAKURU_*_URL`. A `wrapper`, such as `setpriv` with its arguments, comes before the binary.
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

/// Runs a [`child`] with additional variables.
#[must_use]
pub(crate) fn in_a_child(test: &str, environment: &[(&str, &str)]) -> Output {
    let mut command = child(&[], test);
    command
        .envs(environment.iter().copied())
        .output()
        .expect("this binary runs")
}

/// Whether [`child`] started this process. If somebody runs an ignored test by hand, the test does
/// nothing.
#[must_use]
pub(crate) fn is_child() -> bool {
    env::var_os(CHILD).is_some()
}

/// Runs an `#[ignore]`d test without any program on `PATH`, and panics unless its output names this
/// package.
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

/// A tiny file system, which is unmounted on drop.
pub(crate) struct TinyDisk(PathBuf);

impl TinyDisk {
    /// Mounts a disk of this size in KiB. If that fails, prints a message and returns `None`.
    #[must_use]
    pub(crate) fn mount(kib: u32) -> Option<TinyDisk> {
        // Several tests of this process may have a disk at the same time.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("mkt-disk-{}-{number}", process::id()));
        // A killed process with the same id may have left a directory.
        let _ = fs::remove_dir(&path);
        fs::create_dir(&path).expect("a directory");
        // Services of another user must be able to pass through the directory.
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
