//! Starts all presets at once, and kills the run in the middle. No process or directory may be
//! left.

use std::any::Any;
use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::common::{alive, child, require, test_name};
use mirakuru::{Executor, Recipe, presets};

/// Starts a preset, and returns its handle.
type Start = fn() -> Box<dyn Any>;

/// Each preset's program, and the function that starts the preset.
const PRESETS: [(&str, Start); 9] = [
    ("redis-server", || Box::new(presets::redis().start().unwrap())),
    ("postgres", || {
        let schema = "CREATE TABLE t (x INT)";
        let server = presets::postgres().load_sql(schema).start().unwrap();
        // The kill may also come while a database is being created or dropped.
        drop(server.database());
        let database = server.database();
        Box::new((database, server))
    }),
    ("mariadbd", || Box::new(presets::mariadb().start().unwrap())),
    ("memcached", || Box::new(presets::memcached().start().unwrap())),
    ("nats-server", || Box::new(presets::nats().start().unwrap())),
    ("mosquitto", || Box::new(presets::mosquitto().start().unwrap())),
    ("etcd", || Box::new(presets::etcd().start().unwrap())),
    ("nginx", || Box::new(presets::nginx("").start().unwrap())),
    ("rabbitmq-server", || {
        Box::new(presets::rabbitmq().start().unwrap())
    }),
];

/// The time limit of each wait. RabbitMQ is slow.
const LONG: Duration = Duration::from_secs(60);

/// Number of rounds, each with one kill.
fn rounds() -> u32 {
    let rounds = env::var("MIRAKURU_KILL_ROUNDS").ok();
    rounds.and_then(|rounds| rounds.parse().ok()).unwrap_or(3)
}

#[test]
fn killed_at_a_random_moment_nothing_is_left() {
    let scratch = Scratch::new();
    let mut random = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .subsec_nanos();
    for round in 0..rounds() {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let moment = Duration::from_millis(u64::from(random >> 8) % 600);
        let mut child = Killed(scratch.child(test_name!(presets_up)));
        let mut seen = BTreeSet::new();
        let begin = Instant::now();
        let all = fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
        let earlier: BTreeSet<&str> = all.lines().map(segment_id).collect();
        // In round 0, all caches are empty. In round 1, the kill waits until all servers are up, so
        // that later rounds find full caches.
        let is_time = || match round {
            1 => scratch.0.join("up").exists(),
            _ => begin.elapsed() >= moment,
        };
        while !is_time() {
            assert!(begin.elapsed() < 2 * LONG, "they are not up\n{}", scratch.log());
            let ended = child.0.try_wait().unwrap();
            assert!(
                ended.is_none(),
                "it has ended by itself: {ended:?}\n{}",
                scratch.log()
            );
            seen.extend(scratch.processes());
            thread::sleep(Duration::from_millis(10));
        }
        let killed_after = begin.elapsed();
        child.0.kill().unwrap();
        child.0.wait().unwrap();

        let killed = Instant::now();
        let left = loop {
            let left = scratch.processes();
            seen.extend(&left);
            if left.is_empty() || killed.elapsed() > LONG {
                break left;
            }
            thread::sleep(Duration::from_millis(10));
        };
        let what: Vec<String> = left.iter().map(|pid| command_line(*pid)).collect();
        assert!(
            left.is_empty(),
            "killed after {killed_after:?}; processes: {left:?} {what:?}"
        );
        if round == 1 {
            assert!(seen.len() > 3, "they were seen");
        }

        // Any process that starts a service later removes leftover files.
        let next = scratch
            .child(test_name!(the_next_run))
            .wait_with_output()
            .unwrap();
        assert!(next.status.success(), "{}", scratch.log());
        let files = scratch.private_dirs();
        assert!(
            files.is_empty(),
            "killed after {killed_after:?}; directories: {files:?}"
        );
        let mut segments = segments_of(&seen);
        // Process ids are reused, so the creator of an older segment may have the same id.
        segments.retain(|segment| !earlier.contains(segment_id(segment)));
        assert!(
            segments.is_empty(),
            "killed after {killed_after:?}; shared memory: {segments:?}"
        );
        let _ = fs::remove_file(scratch.0.join("up"));
    }
}

const SCRATCH: &str = "MIRAKURU_TEST_SCRATCH";

#[test]
#[ignore = "for the test above"]
fn presets_up() {
    let Some(scratch) = env::var_os(SCRATCH) else {
        return;
    };
    let installed = || PRESETS.iter().filter(|(program, _)| require(program));
    let (up, are_up) = mpsc::channel();
    for (_, start) in installed() {
        let up = up.clone();
        thread::spawn(move || {
            let server = start();
            up.send(()).unwrap();
            drop(up);
            // The process waits here until it is killed.
            thread::sleep(4 * LONG);
            drop(server);
        });
    }
    drop(up);
    assert_eq!(are_up.iter().count(), installed().count());
    fs::write(Path::new(&scratch).join("up"), "").unwrap();
    // If nothing kills the process, it ends by itself.
    thread::sleep(2 * LONG);
}

#[test]
#[ignore = "for the test above"]
fn the_next_run() {
    if env::var_os(SCRATCH).is_some() {
        Executor::builder("sleep 60").start().unwrap().stop().unwrap();
    }
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A temporary directory for the children. It is removed at the end, unless the test fails.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        let path = env::temp_dir().join(format!("mkt-all-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        // Services of another user must be able to pass through the directory.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Scratch(path)
    }

    fn child(&self, test: &str) -> Child {
        child(&[], test)
            .env(SCRATCH, &self.0)
            .env("TMPDIR", &self.0)
            .env_remove("XDG_RUNTIME_DIR")
            .stdout(Stdio::null())
            .stderr(fs::File::create(self.0.join("log")).unwrap())
            .spawn()
            .unwrap()
    }

    /// The output of the last child.
    fn log(&self) -> String {
        fs::read_to_string(self.0.join("log")).unwrap_or_default()
    }

    /// Finds the run's living processes by their command line, environment or working directory.
    /// Some processes overwrite their command line and environment.
    fn processes(&self) -> Vec<u32> {
        let path = self.0.to_str().unwrap();
        let mentions = |file: PathBuf| {
            fs::read(file).is_ok_and(|text| text.windows(path.len()).any(|part| part == path.as_bytes()))
        };
        let pids = fs::read_dir("/proc").unwrap().flatten();
        pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
            .filter(|pid| *pid != std::process::id())
            .filter(|pid| {
                let proc = PathBuf::from(format!("/proc/{pid}"));
                let works_there = fs::read_link(proc.join("cwd")).is_ok_and(|dir| dir.starts_with(&self.0));
                works_there || mentions(proc.join("cmdline")) || mentions(proc.join("environ"))
            })
            .filter(|pid| alive(*pid))
            .collect()
    }

    /// The directories of services, without those that have only a log. mirakuru keeps the log of a
    /// service whose test was killed.
    fn private_dirs(&self) -> Vec<PathBuf> {
        let bases = fs::read_dir(&self.0)
            .unwrap()
            .flatten()
            .filter(|entry| entry.path().is_dir());
        let entries = bases.flat_map(|base| fs::read_dir(base.path()).unwrap().flatten());
        entries
            .map(|entry| entry.path())
            .filter(|path| {
                let is_own = ["cache", "locks", "kept-logs"]
                    .iter()
                    .any(|name| path.ends_with(name));
                let is_kept_log =
                    path.join("kept").exists() && !path.join("d").exists() && !path.join("lock").exists();
                !is_own && !is_kept_log
            })
            .collect()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !thread::panicking() {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

fn command_line(pid: u32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).replace('\0', " ")
}

fn segment_id(line: &str) -> &str {
    line.split_whitespace().nth(1).unwrap_or_default()
}

/// The System V segments that these processes have created.
fn segments_of(creators: &BTreeSet<u32>) -> Vec<String> {
    let all = fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
    let is_theirs = |line: &&str| {
        let creator = line.split_whitespace().nth(4).and_then(|pid| pid.parse().ok());
        creator.is_some_and(|pid: u32| creators.contains(&pid))
    };
    all.lines().skip(1).filter(is_theirs).map(str::to_owned).collect()
}
