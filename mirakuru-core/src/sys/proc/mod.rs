//! Reads `/proc`: processes, their relations, and their sockets.
//!
//! Every answer is a snapshot, because a process may fork or end between two reads. The functions
//! skip a process that is gone, and do not fail. If a decision depends on the answer, the caller
//! asks again.
//!
//! Without `/proc` no process is visible. The configuration `mirakuru_portable` simulates such a
//! system on Linux.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use once_cell::sync::Lazy;

mod fds;
mod tables;

pub(crate) use fds::{Closely, search, search_tree};
pub(crate) use tables::{listeners, tcp_lingering, unix_listeners, unix_listening};

/// Whether a process with a listening socket is busy with something other than accepting
/// connections. That is the case if its first thread is running, or if every thread is running or
/// in a timed sleep. Returns `false` if `/proc` does not show the state of the threads.
///
/// Examines the other threads only if the first one is in a timed sleep, because reading the `task`
/// directory has a cost: see [`search_tree`].
pub(crate) fn is_between_calls(pid: u32) -> bool {
    let place = |path: String| read(&path).map(|text| String::from_utf8_lossy(&text).into_owned());
    match place(format!("{pid}/wchan")).as_deref() {
        // Either the process does not wait in the kernel, or the kernel hides where it waits.
        Ok("0" | "") => stat(pid).is_some_and(|stat| stat.state == 'R'),
        Ok(place_of_first) if place_of_first.contains("nanosleep") => {
            let tasks = numbers(&format!("/proc/{pid}/task"));
            let mut places = tasks
                .into_iter()
                .filter_map(|task| place(format!("{pid}/task/{task}/wchan")).ok());
            places.all(|place| place == "0" || place.contains("nanosleep"))
        }
        _ => false,
    }
}

/// Some of the fields of `/proc/PID/stat`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    /// The first 15 bytes of the program's name.
    pub(crate) comm: String,
    /// State as one letter; `Z` is a zombie.
    pub(crate) state: char,
    pub(crate) parent: u32,
    /// Id of the process's session, which is the id of the session's first process.
    pub(crate) session: u32,
    /// Start time of the process, in ticks since the machine booted.
    start: u64,
}

/// Whether `/proc` exists in Linux's format. Other systems may have a different `/proc`.
const IS_THERE: bool = cfg!(all(target_os = "linux", not(mirakuru_portable)));

/// Reads a file below `/proc`. The path is relative to `/proc`.
pub(crate) fn read(path: &str) -> io::Result<Vec<u8>> {
    read_start(path, u64::MAX)
}

/// Reads at most `limit` bytes of a file below `/proc`.
fn read_start(path: &str, limit: u64) -> io::Result<Vec<u8>> {
    match IS_THERE {
        true => read_whole(fs::File::open(Path::new("/proc").join(path))?.take(limit)),
        false => Err(io::ErrorKind::NotFound.into()),
    }
}

/// Reads a file of unknown length in few calls, because each read from `/proc` is expensive.
pub(crate) fn read_whole(mut file: io::Take<fs::File>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(4096);
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Opens the file behind another process's standard error for appending. Fails for a socket, and
/// for the terminal of another user.
pub(crate) fn stderr_of(pid: u32) -> io::Result<fs::File> {
    match IS_THERE {
        true => fs::OpenOptions::new()
            .append(true)
            .open(format!("/proc/{pid}/fd/2")),
        false => Err(io::ErrorKind::NotFound.into()),
    }
}

/// `USER_HZ`, the number of ticks per second in `/proc`. The value is the same on every Linux
/// architecture that Rust supports.
const TICKS: u64 = 100;

pub(crate) fn stat(pid: u32) -> Option<Stat> {
    IS_THERE.then(|| read_stat(pid)).flatten()
}

/// One read is enough, because the kernel produces the whole text at the first read.
fn read_stat(pid: u32) -> Option<Stat> {
    let mut text = [0; 2048];
    let mut file = fs::File::open(format!("/proc/{pid}/stat")).ok()?;
    let length = file.read(&mut text).ok()?;
    parse_stat(&String::from_utf8_lossy(&text[..length]))
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The name is in parentheses, and may contain any character, even parentheses and spaces.
    let (before, after) = text.rsplit_once(')')?;
    let (_, comm) = before.split_once('(')?;
    let mut fields = after.split_ascii_whitespace();
    Some(Stat {
        comm: comm.to_owned(),
        state: fields.next()?.chars().next()?,
        parent: fields.next()?.parse().ok()?,
        session: fields.nth(1)?.parse().ok()?,
        start: fields.nth(15)?.parse().ok()?,
    })
}

impl Stat {
    /// Whether the process is still running. `false` for a zombie, which waits for its parent to
    /// fetch the exit status.
    pub(crate) fn is_alive(&self) -> bool {
        !matches!(self.state, 'Z' | 'X')
    }

    #[cfg(test)]
    pub(crate) fn named(comm: &str, session: u32, start: u64) -> Stat {
        Stat {
            comm: comm.to_owned(),
            state: 'S',
            parent: 0,
            session,
            start,
        }
    }

    /// Start time of the process, in ticks since the machine booted. Together with the process id,
    /// it identifies the process.
    pub(crate) fn start(&self) -> u64 {
        self.start
    }

    /// Time since the process was started.
    pub(crate) fn age(&self) -> Option<Duration> {
        let uptime = fs::read_to_string("/proc/uptime").ok()?;
        let uptime: f64 = uptime.split_ascii_whitespace().next()?.parse().ok()?;
        let started = Duration::from_millis(self.start.saturating_mul(1000 / TICKS));
        Some(Duration::try_from_secs_f64(uptime).ok()?.saturating_sub(started))
    }

    /// The wall-clock time of the start, to a hundredth of a second.
    pub(crate) fn started(&self) -> Option<SystemTime> {
        SystemTime::now().checked_sub(self.age()?)
    }
}

/// The ids of all visible processes.
pub(crate) fn pids() -> Vec<u32> {
    numbers("/proc")
}

/// The numeric names in a directory of `/proc`: processes, threads, descriptors.
fn numbers(dir: &str) -> Vec<u32> {
    if !IS_THERE {
        return Vec::new();
    }
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut numbers = Vec::new();
    for entry in entries.flatten() {
        if let Some(Ok(number)) = entry.file_name().to_str().map(str::parse) {
            numbers.push(number);
        }
    }
    numbers
}

/// A process and those of its descendants that are alive and visible.
pub(crate) fn tree(root: u32) -> Vec<u32> {
    tree_until(root, &mut |_| false)
}

/// A process and its descendants, nearest first, until `enough` returns true. Calls `enough` with
/// each process before it looks for that process's children.
fn tree_until(root: u32, enough: &mut dyn FnMut(u32) -> bool) -> Vec<u32> {
    // A kernel without CONFIG_PROC_CHILDREN has no file `children`. The children are then found by
    // reading the parent of every process.
    static TELLS_CHILDREN: Lazy<bool> = Lazy::new(|| Path::new("/proc/thread-self/children").exists());
    if *TELLS_CHILDREN {
        walk(root, &children, enough)
    } else {
        let parents = parents();
        walk(root, &|pid| children_among(&parents, pid), enough)
    }
}

fn walk(root: u32, children: &dyn Fn(u32) -> Vec<u32>, enough: &mut dyn FnMut(u32) -> bool) -> Vec<u32> {
    let mut found = vec![root];
    let mut at = 0;
    while at < found.len() && !enough(found[at]) {
        for child in children(found[at]) {
            if !found.contains(&child) {
                found.push(child);
            }
        }
        at += 1;
    }
    found
}

pub(crate) fn children(pid: u32) -> Vec<u32> {
    // Each thread has its own children.
    let tasks = format!("/proc/{pid}/task");
    let mut children = Vec::new();
    for task in numbers(&tasks) {
        let list = fs::read_to_string(format!("{tasks}/{task}/children")).unwrap_or_default();
        for child in list.split_ascii_whitespace() {
            if let Ok(child) = child.parse() {
                children.push(child);
            }
        }
    }
    children
}

/// All visible processes, each with its parent.
fn parents() -> Vec<(u32, u32)> {
    let mut parents = Vec::new();
    for pid in pids() {
        if let Some(stat) = stat(pid) {
            parents.push((pid, stat.parent));
        }
    }
    parents
}

fn children_among(parents: &[(u32, u32)], parent: u32) -> Vec<u32> {
    let mut children = Vec::new();
    for (pid, other) in parents {
        if *other == parent {
            children.push(*pid);
        }
    }
    children
}

/// A process and its ancestors, nearest first. Each call of `next` reads one process.
pub(crate) struct Ancestors {
    /// The `Stat` of the next process, if it is known already.
    known: Option<Stat>,
    pid: u32,
    /// Limits the number of processes to read, because a chain that changes in the meantime could
    /// form a loop.
    left: u32,
}

impl Iterator for Ancestors {
    type Item = (u32, Stat);

    fn next(&mut self) -> Option<(u32, Stat)> {
        let pid = self.pid;
        if pid == 0 || self.left == 0 {
            return None;
        }
        self.left -= 1;
        self.pid = 0;
        let stat = self.known.take().or_else(|| stat(pid))?;
        self.pid = stat.parent;
        Some((pid, stat))
    }
}

/// A process and its ancestors, nearest first.
pub(crate) fn ancestors(pid: u32) -> Ancestors {
    Ancestors {
        known: None,
        pid,
        left: 1000,
    }
}

/// This process and its ancestors. The entry for this process is built without reading a file, so
/// only its parent and session are correct.
pub(crate) fn own_ancestors() -> Ancestors {
    let parent = std::os::unix::process::parent_id();
    let own = Stat {
        comm: String::new(),
        state: 'R',
        parent,
        // SAFETY: the call takes no pointer.
        session: unsafe { libc::getsid(0) }.unsigned_abs(),
        start: 0,
    };
    Ancestors {
        known: Some(own),
        ..ancestors(std::process::id())
    }
}

/// Whether a process is `root` or descends from it.
pub(crate) fn descends(pid: u32, root: u32) -> bool {
    ancestors(pid).any(|(ancestor, _)| ancestor == root)
}

/// Start time of a process, in ticks since the machine booted. `None` if there is no such process,
/// or only a zombie.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn start_time(pid: u32) -> Option<u64> {
    let stat = read_stat(pid)?;
    stat.is_alive().then_some(stat.start)
}

/// Returns 0 if a process with this id exists, because no portable call returns the start time.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn start_time(pid: u32) -> Option<u64> {
    crate::sys::files::process_exists(pid).then_some(0)
}

/// How much is read of the arguments or the environment of a process. The kernel lets a program
/// start with at most 6 MiB of both. But a process may later present any part of its memory as its
/// environment, and a sweep reads the environments of all processes.
const MOST_BYTES: u64 = 8 << 20;

/// The environment with which a process was started. `None` if we may not read it.
pub(crate) fn environment(pid: u32) -> Option<Vec<u8>> {
    read_start(&format!("{pid}/environ"), MOST_BYTES).ok()
}

/// The environment variable that marks every process of a service. Its value is the id of the
/// service's directory. Sweeps and error messages use it to recognise processes that mirakuru has
/// started.
pub(crate) const ID_VARIABLE: &str = "MIRAKURU_ID";

/// The values of [`ID_VARIABLE`] in the environment of a process. Usually there is at most one.
pub(crate) fn service_ids(environment: &[u8]) -> impl Iterator<Item = &[u8]> {
    entries(environment).filter_map(|entry| entry.strip_prefix(ID_VARIABLE.as_bytes())?.strip_prefix(b"="))
}

/// The arguments of a process, with the program first. Empty if we may not read them.
pub(crate) fn command_line(pid: u32) -> Vec<Vec<u8>> {
    let line = read_start(&format!("{pid}/cmdline"), MOST_BYTES).unwrap_or_default();
    let mut words = Vec::new();
    for word in entries(&line) {
        words.push(word.to_vec());
    }
    words
}

/// The entries of a list in which each entry ends in a zero byte. An empty entry follows the last
/// zero byte.
pub(crate) fn entries(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|byte| *byte == 0)
}

/// Checks whether this process, which runs as root, may run a service as this user and group.
/// Returns `Ok` if `/proc` does not provide the answer.
///
/// # Errors
///
/// Fails with the reason why the service may not run as this user and group.
pub(crate) fn may_become(uid: u32, gid: u32) -> Result<(), String> {
    const NEEDED: [(u32, &str); 3] = [(0, "CAP_CHOWN"), (6, "CAP_SETGID"), (7, "CAP_SETUID")];
    let text = |name: &str| {
        let bytes = read(&format!("self/{name}")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let status = text("status");
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    if let Some(held) = capabilities.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()) {
        let missing = NEEDED.iter().find(|(bit, _)| held & (1 << bit) == 0);
        if let Some((_, name)) = missing {
            return Err(format!("root lacks the capability {name} here"));
        }
    }
    for (map, id, kind) in [("uid_map", uid, "user"), ("gid_map", gid, "group")] {
        let map = text(map);
        // A line contains the first id in this namespace, the first id outside, and the number of
        // ids.
        let mut ranges = map.lines().filter_map(|line| {
            let mut numbers = line.split_whitespace().map(|number| number.parse::<u64>().ok());
            let (first, _, count) = (numbers.next()??, numbers.next()??, numbers.next()??);
            Some(first..first + count)
        });
        if !map.is_empty() && !ranges.any(|range| range.contains(&u64::from(id))) {
            return Err(format!("the user namespace of this process has no {kind} {id}"));
        }
    }
    Ok(())
}

/// The effective user id of a process.
pub(crate) fn user(pid: u32) -> Option<u32> {
    let status = read(&format!("{pid}/status")).ok()?;
    let status = String::from_utf8_lossy(&status);
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    ids.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The file that a process executes.
pub(crate) fn program(pid: u32) -> Option<PathBuf> {
    link(&format!("{pid}/exe"))
}

/// The control groups of a process, as the kernel lists them.
pub(crate) fn cgroup(pid: u32) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()
}

/// Whether `/proc` shows the processes of this process's own pid namespace.
pub(crate) fn is_usable() -> bool {
    fs::read_link("/proc/self").is_ok_and(|target| target.to_str() == Some(&std::process::id().to_string()))
}

/// The working directory of a process.
pub(crate) fn current_dir(pid: u32) -> Option<PathBuf> {
    link(&format!("{pid}/cwd"))
}

fn link(path: &str) -> Option<PathBuf> {
    fs::read_link(Path::new("/proc").join(path))
        .ok()
        .filter(|_| IS_THERE)
}

/// A number that identifies the pid namespace of this process, or 0 if it is not known. Processes
/// of other namespaces may share the temporary directory.
pub(crate) fn pid_namespace() -> u64 {
    fs::metadata("/proc/self/ns/pid").map_or(0, |namespace| namespace.ino())
}

/// Id of the process that traces this one, such as a debugger or `strace`.
pub(crate) fn tracer() -> Option<u32> {
    let status = read("self/status").ok()?;
    let status = String::from_utf8_lossy(&status);
    let pid = status.lines().find_map(|line| line.strip_prefix("TracerPid:"))?;
    pid.trim().parse().ok().filter(|pid| *pid != 0)
}

/// A number that identifies the network namespace of this process, or 0 if it is not known. A port
/// in one namespace cannot be reached from another.
pub(crate) fn net_namespace() -> u64 {
    fs::metadata("/proc/self/ns/net").map_or(0, |namespace| namespace.ino())
}

#[cfg(all(test, target_os = "linux", not(mirakuru_portable)))]
mod tests {
    use std::process::{Command, Stdio};
    use std::ptr;

    use super::*;
    use crate::util::own_process::{is_alone, run_alone, test_name};

    #[test]
    fn the_own_ancestors_are_those_that_proc_shows() {
        let chain = |(pid, stat): (u32, Stat)| (pid, stat.parent, stat.session);
        let shown: Vec<_> = ancestors(std::process::id()).map(chain).collect();
        assert_eq!(own_ancestors().map(chain).collect::<Vec<_>>(), shown);
        assert_eq!(shown[0].1, std::os::unix::process::parent_id());
    }

    #[test]
    fn stat_of_a_name_with_parentheses_and_spaces() {
        let text = "812 (a) b (c) S 7 812 811 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4321 0 0";
        let stat = parse_stat(text).unwrap();
        assert_eq!(stat.comm, "a) b (c");
        assert_eq!((stat.state, stat.parent, stat.start), ('S', 7, 4321));
        assert_eq!(stat.session, 811);
        assert_eq!(parse_stat("812 (a"), None);
    }

    #[test]
    fn own_age_and_start_make_sense() {
        let stat = stat(std::process::id()).unwrap();
        assert!(stat.is_alive());
        assert!(stat.age().unwrap() < Duration::from_secs(24 * 3600));
        assert!(stat.started().unwrap() <= SystemTime::now());
    }

    #[test]
    fn a_grandchild_is_in_the_tree_by_either_way() {
        // The inner shell prints the line only once the grandchild exists.
        let mut child = Command::new("sh")
            .args(["-c", "sh -c 'sleep 60 & echo $!; wait' & wait"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        io::BufRead::read_line(&mut io::BufReader::new(child.stdout.as_mut().unwrap()), &mut line).unwrap();
        let grandchild: u32 = line.trim().parse().unwrap();
        let root = child.id();
        let by_files = walk(root, &children, &mut |_| false);
        let parents = parents();
        let by_parents = walk(root, &|pid| children_among(&parents, pid), &mut |_| false);
        assert!(descends(grandchild, root));
        assert!(descends(grandchild, std::process::id()));
        assert!(!descends(std::process::id(), root));
        for pid in tree(root).into_iter().filter(|pid| *pid != root) {
            let _ = Command::new("kill").arg(pid.to_string()).status();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        for tree in [by_files, by_parents] {
            assert!(tree.contains(&root) && tree.contains(&grandchild), "{tree:?}");
            assert!(!tree.contains(&std::process::id()));
        }
    }

    #[test]
    fn a_huge_environment_is_read_in_part() {
        const SIZE: usize = 64 << 20;
        // Other tests must not meet this process's false environment.
        if !is_alone() {
            return run_alone(test_name!(a_huge_environment_is_read_in_part), &[]);
        }
        let me = std::process::id();
        let own = environment(me).unwrap();
        assert_eq!(read_start(&format!("{me}/environ"), 5).unwrap(), own[..5]);
        let stat = fs::read_to_string("/proc/self/stat").unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        // The manual of `/proc/PID/stat` numbers the fields, and the name is the second one.
        let field = |number: usize| fields[number - 3].parse::<u64>().unwrap();
        // SAFETY: the mapping is new, and stays until the process ends. The call of `prctl` changes
        // only the place of the environment that `/proc` shows. `map` has the form of the kernel's
        // `prctl_mm_map`.
        let changed = unsafe {
            let start = libc::mmap(
                ptr::null_mut(),
                SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            assert_ne!(start, libc::MAP_FAILED);
            let (start, end) = (start as u64, start as u64 + SIZE as u64 - 1);
            let brk = libc::sbrk(0) as u64;
            let [code, code_end, stack, data] = [26, 27, 28, 45].map(field);
            let [data_end, first_brk, args, args_end] = [46, 47, 48, 49].map(field);
            // The last number is two: no auxiliary vector, and -1 for the same executable file.
            let last = u64::from_ne_bytes([0, 0, 0, 0, 255, 255, 255, 255]);
            let map = [
                code, code_end, data, data_end, first_brk, brk, stack, args, args_end, start, end, 0, last,
            ];
            libc::prctl(
                libc::PR_SET_MM,
                libc::PR_SET_MM_MAP,
                map.as_ptr(),
                size_of_val(&map),
                0_usize,
            )
        };
        // A kernel without CONFIG_CHECKPOINT_RESTORE refuses this to all processes.
        if changed == 0 {
            assert_eq!(environment(me).unwrap().len() as u64, MOST_BYTES);
        }
    }
}
