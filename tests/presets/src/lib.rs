//! What the tests of the presets share.

use std::env;
use std::fmt::Debug;
use std::fs;
use std::io::{self, Write};
use std::net::TcpListener;
use std::ops::Deref;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{self, Command, Output};
use std::thread;

use mirakuru::{Error, Executor, Readiness};

/// Prints past the capture of the test harness, which hides what a passing test prints.
pub fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

fn this_test() -> String {
    thread::current().name().unwrap_or("a test").to_owned()
}

/// Whether a program is installed. When it is not, this says so aloud (the test then returns); with
/// `CI=true` in the environment the test fails.
#[track_caller]
#[must_use]
pub fn require(program: &str) -> bool {
    // Where it is not set, programs are looked for in the folders that every system has.
    let path = env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    let mut dirs = env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
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

/// A key for a seed that no other test and no other run has.
#[must_use]
pub fn new_key(text: &str) -> String {
    let now = std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .unwrap_or_default()
        .as_nanos();
    format!("{text} {now} {}", process::id())
}

/// Whether this process is root's. When it is not, this says aloud that a part of the test is
/// skipped.
#[must_use]
pub fn require_root() -> bool {
    let root = fs::metadata("/proc/self").is_ok_and(|us| us.uid() == 0);
    if !root {
        say(&format!("\n*** {}: SKIPPED, needs to be root ***\n", this_test()));
    }
    root
}

/// Whether a process is there and is no zombie.
#[must_use]
pub fn alive(pid: u32) -> bool {
    let Ok(text) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    // The name may hold anything, so what follows begins after the last parenthesis.
    let state = text
        .rsplit(')')
        .next()
        .and_then(|rest| rest.trim_start().chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

/// Drops a handle, and fails unless its server and the private directory are gone then.
#[track_caller]
pub fn assert_nothing_is_left<R: Readiness, H: Deref<Target = Executor<R>>>(handle: H) {
    let (pid, dir) = (handle.pid(), handle.dir());
    assert!(alive(pid) && dir.is_dir());
    drop(handle);
    assert!(!alive(pid), "the server is there still (pid {pid})");
    assert!(!dir.exists(), "{} is there still", dir.display());
}

/// Has a server start on a port that this process has, and fails unless the error says who that is.
/// (The portable back end does not see that; it is an error all the same, of the port.)
#[track_caller]
pub fn assert_names_the_holder<H: Debug>(start: impl FnOnce(u16) -> Result<H, Error>) {
    let ours = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = ours.local_addr().expect("its address").port();
    let error = start(port).expect_err("the port is ours").to_string();
    let is_named = error.contains(&format!("(pid {}", process::id()));
    assert!(is_named || cfg!(mirakuru_portable), "{error}");
    assert!(error.contains(&port.to_string()), "{error}");
}

// ---- another process ----------------------------------------------------------------------------

const CHILD: &str = "MIRAKURU_TEST_CHILD";

/// Runs the `#[ignore]`d test of this name of this very binary in a process of its own, whose
/// environment can be another one.
#[must_use]
pub fn in_a_child(test: &str, environment: &[(&str, &str)]) -> Output {
    Command::new(env::current_exe().expect("this binary"))
        .args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .envs(environment.iter().copied())
        .output()
        .expect("this binary runs")
}

/// Whether this process is such a child. An ignored test that is run by hand does nothing.
#[must_use]
pub fn is_child() -> bool {
    env::var_os(CHILD).is_some()
}

/// Runs the `#[ignore]`d test where no directory on PATH has anything, and fails unless what it
/// prints names this package.
#[track_caller]
pub fn assert_names_the_package(test: &str, package: &str) {
    let output = in_a_child(test, &[("PATH", "/nonexistent")]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains(&format!("`apt-get install {package}`")),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

// ---- a disk that is full ------------------------------------------------------------------------

/// A tiny file system, and gone at the end.
pub struct TinyDisk(PathBuf);

impl TinyDisk {
    /// Of so many KiB. `None`, said aloud, where it cannot be mounted.
    #[must_use]
    pub fn mount(kib: u32) -> Option<TinyDisk> {
        let path = env::temp_dir().join(format!("mkt-disk-{}", process::id()));
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

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
        let _ = fs::remove_dir(&self.0);
    }
}
