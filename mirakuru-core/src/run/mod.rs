//! Finds the test run to which this process belongs, and the run's directory.
//!
//! `cargo nextest run` starts a process for each test, and `cargo test` one for each test binary.
//! The process that starts them all, the *runner*, identifies the run. The processes of a run share
//! its directory.

pub(crate) mod lease;
pub(crate) mod owner;
pub(crate) mod state;
pub(crate) mod sweep;

use std::ffi::OsString;
use std::fs;
use std::hash::Hasher;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use once_cell::sync::Lazy;

use crate::service_dir;
use crate::sys;
use crate::sys::procfs::{self, Stat};
use crate::util::hash::Fnv1a;
use crate::util::say::say;
use crate::util::settings::SCOPE;

/// A test run. It ends when its runner ends.
#[doc(hidden)]
#[derive(Debug)]
pub struct Run {
    pub(crate) dir: PathBuf,
    pub(crate) runner: u32,
    pub(crate) started: u64,
    /// Whether the run's services are stopped when their last user is gone.
    pub(crate) with_users: bool,
}

impl Run {
    /// The run to which this process belongs. If it is `None`, a shared service belongs to this
    /// process alone.
    ///
    /// This process searches for its run only once. After the runner has been killed, its test
    /// processes live on for a moment under another parent, and a search would fail.
    #[must_use]
    pub fn current() -> Option<&'static Run> {
        static RUN: Lazy<Option<Run>> = Lazy::new(|| {
            let mut variables = Vec::new();
            for name in [SESSION, NEXTEST] {
                match std::env::var(name) {
                    Ok(value) if !value.is_empty() => variables.push((name, value)),
                    _ => {}
                }
            }
            let chain = &mut procfs::own_ancestors();
            let run = Run::find(&variables, chain, sys::origin::is_orphan(), &carries)?;
            // Without pidfds, a supervisor cannot tell when the runner ends.
            if sys::pidfds_are_missing() {
                return None;
            }
            // A tracer waits until every process that it traces has ended. The service would wait
            // for the runner, the runner for the tracer, and the tracer for the service.
            if let Some(tracer) = procfs::tracer() {
                let name = procfs::stat(tracer).map_or_else(|| "a process".to_owned(), |stat| stat.comm);
                say(&format!(
                    "{name} (pid {tracer}) traces this test process; shared services end with it, not with \
                        the run"
                ));
                return None;
            }
            Some(run)
        });
        RUN.as_ref()
    }

    /// The run whose processes share services. The services end with the run, or when their last
    /// user is gone. `None` if [`current`](Run::current) returns `None`, or if
    /// `MIRAKURU_SCOPE=process` makes shared services end with their test process.
    #[must_use]
    pub fn for_services(with_users: bool) -> Option<&'static Run> {
        // Unknown values are not checked here, because each start rejects them.
        static SET: Lazy<OsString> = Lazy::new(|| std::env::var_os(SCOPE).unwrap_or_default());
        static WITH_USERS: Lazy<Option<Run>> = Lazy::new(|| {
            Run::current().map(|run| Run {
                dir: run.dir.clone(),
                with_users: true,
                ..*run
            })
        });
        if *SET == "process" {
            None
        } else if with_users || *SET == "users" {
            WITH_USERS.as_ref()
        } else {
            Run::current()
        }
    }

    /// Whether the run's services are stopped when their last user is gone.
    #[must_use]
    pub fn __with_users(&self) -> bool {
        self.with_users
    }

    /// Finds the runner. A runner sets a variable for its tests, so the runner is the nearest
    /// ancestor without this variable. If no runner has set one, the runner is the nearest ancestor
    /// that is `cargo` or a tool such as `cargo-tarpaulin`. The chain begins with the process
    /// itself. The search stops at an orphan, because the orphan's parent did not start it.
    fn find(
        variables: &[(&str, String)],
        chain: &mut dyn Iterator<Item = (u32, Stat)>,
        was_orphaned: bool,
        carries: &dyn Fn(u32, &[u8]) -> Option<bool>,
    ) -> Option<Run> {
        let mut ancestors = Ancestors {
            chain,
            known: Vec::new(),
            is_orphan: false,
            was_orphaned,
        };
        for (name, value) in variables {
            let entry = format!("{name}={value}");
            let giver = ancestors.find(&|(pid, stat)| {
                // If a test under nextest starts `cargo test`, that is a run of its own.
                let is_inner = *name == NEXTEST && stat.comm == "cargo";
                // If a wrapper has changed the user, the variables cannot be read. Then only cargo
                // counts as the runner.
                is_inner || !carries(*pid, entry.as_bytes()).unwrap_or_else(|| !is_cargo(stat))
            });
            // Process 1 adopts orphans. It is a runner only if it is cargo, as the first process of
            // a container.
            let is_real = |(pid, stat): &(u32, Stat)| *pid != 1 || is_cargo(stat);
            let is_there = giver.is_some();
            if let Some((pid, stat)) = giver.filter(is_real) {
                return Some(Run::of(pid, stat.start(), &entry));
            }
            if *name == NEXTEST && (ancestors.is_orphan || is_there) {
                return Some(Run::lost());
            }
        }
        // `cargo watch` starts the same runner repeatedly, and each start is a run of its own.
        let (pid, stat) = ancestors.find(&|(_, stat)| is_cargo(stat))?;
        (stat.comm != "cargo-watch").then(|| Run::of(pid, stat.start(), "cargo"))
    }

    fn of(runner: u32, started: u64, id: &str) -> Run {
        Run {
            dir: runs_base().join(format!("run-{runner}-{started}-{:016x}", hash(0, id))),
            runner,
            started,
            with_users: false,
        }
    }

    /// The run of a process whose runner is gone.
    fn lost() -> Run {
        Run {
            dir: PathBuf::new(),
            runner: 0,
            started: 0,
            with_users: false,
        }
    }

    /// The directory of this run, and its runner. Without a run, the process gets a directory of
    /// its own, which the sweep treats like a run's.
    pub(crate) fn dir_or_own(run: Option<&Run>) -> (PathBuf, u32) {
        match run {
            Some(run) => (run.dir.clone(), run.runner),
            None => {
                let (pid, started) = service_dir::this_process();
                (Run::of(pid, started, "alone").dir, pid)
            }
        }
    }

    /// The runner's process id and start time.
    pub(crate) fn runner(&self) -> (u32, u64) {
        (self.runner, self.started)
    }
}

/// The ancestors of a process. Each is read only when needed, because the nearest one or two almost
/// always suffice.
struct Ancestors<'a> {
    /// The chain of all ancestors, beginning with the process itself.
    chain: &'a mut dyn Iterator<Item = (u32, Stat)>,
    /// The ancestors read so far.
    known: Vec<(u32, Stat)>,
    /// Whether the last process in `known` was adopted.
    is_orphan: bool,
    was_orphaned: bool,
}

impl Ancestors<'_> {
    /// Finds the nearest ancestor for which `is_it` returns true.
    fn find(&mut self, is_it: &dyn Fn(&(u32, Stat)) -> bool) -> Option<(u32, Stat)> {
        let mut at = 1;
        loop {
            let ancestor = self.get(at)?;
            if is_it(ancestor) {
                return Some(ancestor.clone());
            }
            at += 1;
        }
    }

    fn get(&mut self, at: usize) -> Option<&(u32, Stat)> {
        while self.known.len() <= at && !self.is_orphan {
            let (pid, stat) = self.chain.next()?;
            // A process is in its parent's session, or leads a session of its own. Otherwise it is
            // an orphan that another process has adopted, and the ancestors above it are unrelated.
            self.is_orphan = self.known.last().is_some_and(|(child, of_child)| {
                self.was_orphaned || (of_child.session != stat.session && of_child.session != *child)
            });
            if !self.is_orphan {
                self.known.push((pid, stat));
            }
        }
        self.known.get(at)
    }
}

/// Creates a run's directory and its parent.
pub(crate) fn make_dir(run_dir: &Path) -> io::Result<()> {
    for dir in [run_dir.parent().unwrap_or(Path::new("/")), run_dir] {
        service_dir::base::private_dir(dir, false)
            .map_err(|e| io::Error::new(e.kind(), format!("`{}`: {e}", dir.display())))?;
    }
    Ok(())
}

/// Creates the directory of this run. Returns it with the process id of the runner.
///
/// # Errors
///
/// The error of the operating system, or an error if the runner has ended.
pub fn make_run_dir(run: &Run) -> io::Result<(PathBuf, u32)> {
    if run.runner == 0 {
        return Err(io::ErrorKind::NotFound.into());
    }
    make_dir(&run.dir)?;
    Ok((run.dir.clone(), run.runner))
}

/// Whether the run of this process is over. All files of its services are then removed.
pub(crate) fn is_over() -> bool {
    Run::current().is_some_and(|run| !service_dir::is_alive(run.runner, run.started))
}

const SESSION: &str = "MIRAKURU_SESSION_ID";
const NEXTEST: &str = "NEXTEST_RUN_ID";

/// Whether a program is `cargo`, or a tool such as `cargo-nextest` or `cargo-tarpaulin`, which runs
/// test binaries itself.
pub(crate) fn is_cargo(stat: &Stat) -> bool {
    stat.comm == "cargo" || stat.comm.starts_with("cargo-")
}

/// The directory that contains the runs' directories: in `$XDG_RUNTIME_DIR`, or in the temporary
/// directory if that cannot be used. (Service directories are always in the temporary directory,
/// because `$XDG_RUNTIME_DIR` is in memory, and may be too small for a database.)
pub(crate) fn runs_base() -> PathBuf {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let ours = |dir: &PathBuf| {
        let metadata = fs::metadata(dir);
        // After `sudo`, this directory may belong to another user.
        dir.is_absolute()
            && metadata.is_ok_and(|m| m.is_dir() && m.uid() == sys::euid() && m.mode() & 0o077 == 0)
    };
    service_dir::base::base_in(&runtime.filter(ours).unwrap_or_else(std::env::temp_dir))
}

/// The runner's process id and start time, as contained in the name of a run's directory.
pub(crate) fn runner_of(dir: &str) -> Option<(u32, u64)> {
    let mut parts = dir.strip_prefix("run-")?.split('-');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Whether a run's directory is in use although its runner is not visible, for example because it
/// is in another container.
pub(crate) fn is_in_use(dir: &Path) -> bool {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        // The process that is starting a service holds this lock, and later the supervisor does.
        if path.ends_with("lock") || path.extension().is_some_and(|kind| kind == "lock") {
            let lock = sys::files::open_lock(&path, false);
            if lock.is_ok_and(|lock| matches!(sys::files::is_locked(lock.as_fd()), Ok(true))) {
                return true;
            }
        }
    }
    false
}

/// Describes this process for messages, for example `tests-1f3a (pid 812)`.
pub(crate) fn this_process() -> String {
    let path = std::env::current_exe().ok();
    let name = path.as_deref().and_then(Path::file_name).unwrap_or_default();
    format!("{} (pid {})", name.to_string_lossy(), std::process::id())
}

/// Whether a process was started with this value of the variable. `None` if its environment is
/// hidden.
fn carries(pid: u32, entry: &[u8]) -> Option<bool> {
    let environ = sys::procfs::environment(pid)?;
    Some(sys::procfs::entries(&environ).any(|e| e == entry))
}

/// A hash that is the same in every build, unlike the standard library's.
#[must_use]
pub fn hash(seed: u8, text: &str) -> u64 {
    let mut hash = Fnv1a(0xcbf2_9ce4_8422_2325);
    hash.write(&[seed]);
    hash.write(text.as_bytes());
    hash.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Builds a chain of processes, each from its pid, name and session. The test process comes
    /// first.
    fn chain(chain: &[(u32, &str, u32)]) -> Vec<(u32, Stat)> {
        chain
            .iter()
            .map(|(pid, comm, session)| (*pid, Stat::named(comm, *session, u64::from(*pid) * 100)))
            .collect()
    }

    /// Finds the runner's process id. Returns 0 if the runner is gone.
    fn runner(
        variables: &[&'static str],
        processes: &[(u32, &str, u32)],
        carriers: &[u32],
        unreadable: &[u32],
    ) -> Option<u32> {
        let variables: Vec<(&str, String)> = variables.iter().map(|name| (*name, "x".to_owned())).collect();
        let carries = |pid: u32, entry: &[u8]| {
            assert!(entry.ends_with(b"=x"));
            (!unreadable.contains(&pid)).then(|| carriers.contains(&pid))
        };
        Run::find(&variables, &mut chain(processes).into_iter(), false, &carries).map(|run| run.runner)
    }

    #[test]
    fn of_an_orphan_the_ancestors_say_nothing() {
        let adopted = chain(&[(40, "tests", 9), (20, "cargo", 9), (10, "bash", 9)]);
        let variable = |name| [(name, "x".to_owned())];
        let find = |variables: &[(&str, String)]| {
            Run::find(variables, &mut adopted.iter().cloned(), true, &|_, _| Some(false))
                .map(|run| run.runner)
        };
        assert_eq!(find(&variable(NEXTEST)), Some(0), "its run is over");
        assert_eq!(find(&variable(SESSION)), None);
        assert_eq!(find(&[]), None);
    }

    #[test]
    fn ancestors_above_the_runner_are_not_read() {
        let near = chain(&[(40, "tests", 9), (30, "sh", 9), (20, "cargo", 9)]);
        let mut chain = near
            .into_iter()
            .chain(std::iter::from_fn(|| panic!("this one is read")));
        let run = Run::find(&[], &mut chain, false, &|_, _| Some(false));
        assert_eq!(run.map(|run| run.runner), Some(20));
    }

    #[test]
    fn cargo_is_the_runner_whatever_is_between() {
        let cargo = |processes: &[(u32, &str, u32)]| runner(&[], processes, &[], &[]);
        let test = (40, "tests-1f3a", 9);
        assert_eq!(
            cargo(&[test, (30, "cargo", 9), (20, "bash", 9), (1, "init", 1)]),
            Some(30)
        );
        assert_eq!(
            cargo(&[test, (35, "sudo", 9), (30, "cargo", 9), (20, "cargo-llvm-cov", 9)]),
            Some(30)
        );
        assert_eq!(cargo(&[test, (20, "cargo-tarpaulin", 9)]), Some(20));
        assert_eq!(
            cargo(&[
                (40, "tests", 38),
                (38, "sudo", 38),
                (36, "sudo", 9),
                (30, "cargo", 9)
            ]),
            Some(30),
            "sudo gives it a session of its own"
        );
        assert_eq!(
            cargo(&[test, (20, "bash", 9), (1, "init", 1)]),
            None,
            "a binary that is run by itself"
        );
        assert_eq!(
            cargo(&[test, (30, "sh", 9), (20, "cargo-watch", 9), (10, "cargo", 9)]),
            None,
            "one that is run by itself, again and again"
        );
        assert_eq!(cargo(&[test, (30, "cargo", 9), (20, "cargo-watch", 9)]), Some(30));
        assert_eq!(
            cargo(&[(40, "tests", 1), (1, "cargo", 1)]),
            Some(1),
            "a container whose first process is cargo"
        );
        assert_eq!(
            cargo(&[test, (20, "cargo-adopts", 5)]),
            None,
            "an orphan that something in another session has taken in"
        );
    }

    #[test]
    fn whoever_gave_the_variable_is_the_runner() {
        let processes = [
            (50, "tests-1f3a", 9),
            (40, "sh", 9),
            (30, "cargo-nextest", 9),
            (20, "cargo", 9),
            (1, "init", 1),
        ];
        let nextest =
            |processes: &[(u32, &str, u32)], carriers: &[u32]| runner(&[NEXTEST], processes, carriers, &[]);
        assert_eq!(nextest(&processes, &[40]), Some(30), "a wrapper passes it on");
        assert_eq!(
            nextest(
                &[
                    (50, "tests", 9),
                    (45, "cargo", 9),
                    (40, "outer", 9),
                    (30, "cargo-nextest", 9)
                ],
                &[45, 40]
            ),
            Some(45),
            "a test under nextest that runs `cargo test`"
        );
        assert_eq!(
            runner(&[SESSION, NEXTEST], &processes, &[40, 30], &[]),
            Some(20),
            "the session goes first, and has its own giver"
        );
        assert_eq!(
            runner(&[NEXTEST], &processes, &[], &[40, 30, 20]),
            Some(30),
            "tests run as another user, who sees nobody's variables"
        );
        assert_eq!(
            runner(
                &[SESSION],
                &[(50, "tests", 1), (40, "cargo", 1), (1, "sh", 1)],
                &[40, 1],
                &[]
            ),
            Some(40),
            "a container that was given it: nobody can be seen to have, so it is cargo"
        );
    }

    /// The portable back end cannot see the parents of processes, so a shared service belongs to
    /// one process.
    #[test]
    #[cfg(mirakuru_portable)]
    fn there_are_no_runs_without_a_search_of_other_processes() {
        assert!(Run::current().is_none());
    }

    #[test]
    fn an_orphan_is_no_part_of_what_adopted_it() {
        let nextest = |processes: &[(u32, &str, u32)]| runner(&[NEXTEST], processes, &[], &[]);
        let test = (50, "tests", 9);
        assert_eq!(nextest(&[test, (1, "init", 1)]), Some(0));
        assert_eq!(nextest(&[test, (12, "systemd", 12), (1, "systemd", 1)]), Some(0));
        assert_eq!(
            nextest(&[(50, "tests", 1), (1, "bash", 1)]),
            Some(0),
            "in a container the first process may be in the same session"
        );
        assert_eq!(
            nextest(&[(50, "tests", 50), (12, "cargo-nextest", 9)]),
            Some(12),
            "a session of its own"
        );
    }

    #[test]
    fn the_directory_names_the_runner() {
        let run = Run::of(30, 3000, "cargo");
        let name = run
            .dir
            .file_name()
            .and_then(|name| name.to_str())
            .expect("it is text");
        assert_eq!(runner_of(name), Some((30, 3000)));
        assert_eq!(runner_of("abcdefghijkl"), None);
        assert_eq!(runner_of("run-x-1-2"), None);
        assert_ne!(run.dir, Run::of(30, 3000, "NEXTEST_RUN_ID=x").dir);
    }
}
