//! What `/proc` tells about processes: who descends from whom, and who has which socket.
//!
//! Every answer is a snapshot of something that moves: a process may fork or end between two reads. Nothing here fails because of
//! that, a process that is gone is left out. Where a verdict hangs on it, the caller looks again.
//!
//! On systems without `/proc` no process is seen at all; nor is any where Linux has to stand for them (`mirakuru_portable`).

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use once_cell::sync::Lazy;

/// Part of `/proc/PID/stat`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    /// The name of the program, at most 15 bytes of it.
    pub(crate) comm: String,
    /// One letter; `Z` is a zombie.
    pub(crate) state: char,
    pub(crate) parent: u32,
    /// The session that it is in, known by its first process.
    pub(crate) session: u32,
    /// When it was started, in ticks since the machine was.
    start: u64,
}

/// What other systems have under this name, if anything, is not this.
const IS_THERE: bool = cfg!(all(target_os = "linux", not(mirakuru_portable)));

/// A file of `/proc`.
pub(crate) fn read(path: &str) -> io::Result<Vec<u8>> {
    match IS_THERE {
        true => fs::read(Path::new("/proc").join(path)),
        false => Err(io::ErrorKind::NotFound.into()),
    }
}

/// `USER_HZ`: ticks a second in `/proc`, which is this on every architecture that Rust runs Linux on.
const TICKS: u64 = 100;

pub(crate) fn stat(pid: u32) -> Option<Stat> {
    let text = read(&format!("{pid}/stat")).ok()?;
    parse_stat(&String::from_utf8_lossy(&text))
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The name stands in parentheses and may hold any character, parentheses and spaces included.
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
    /// Whether there is still a process that does something, not only an exit status that nobody has fetched.
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

    /// When it was started, in ticks since the machine was: with the process id, what no other process ever has.
    pub(crate) fn start(&self) -> u64 {
        self.start
    }

    /// How long ago it was started.
    pub(crate) fn age(&self) -> Option<Duration> {
        let uptime = fs::read_to_string("/proc/uptime").ok()?;
        let uptime: f64 = uptime.split_ascii_whitespace().next()?.parse().ok()?;
        let started = Duration::from_millis(self.start.saturating_mul(1000 / TICKS));
        Some(Duration::try_from_secs_f64(uptime).ok()?.saturating_sub(started))
    }

    /// When it was started, by the clock on the wall, to a hundredth of a second.
    pub(crate) fn started(&self) -> Option<SystemTime> {
        SystemTime::now().checked_sub(self.age()?)
    }
}

/// The processes that can be seen.
pub(crate) fn pids() -> Vec<u32> {
    numbers("/proc")
}

/// The entries of a directory of `/proc` that are numbers: processes, threads, descriptors.
fn numbers(dir: impl AsRef<Path>) -> Vec<u32> {
    if !IS_THERE {
        return Vec::new();
    }
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

/// A process and everything that descends from it, as far as it is alive and can be seen.
pub(crate) fn tree(root: u32) -> Vec<u32> {
    tree_until(root, |_| false)
}

/// The same, nearest first, until `enough` says so. It is asked about each process before that one's children are looked for.
fn tree_until(root: u32, enough: impl FnMut(u32) -> bool) -> Vec<u32> {
    // A kernel without CONFIG_PROC_CHILDREN has no such file; then it is told from the parents of all processes.
    static TELLS_CHILDREN: Lazy<bool> = Lazy::new(|| Path::new("/proc/thread-self/children").exists());
    if *TELLS_CHILDREN {
        walk(root, children, enough)
    } else {
        let by_parent = by_parent();
        walk(
            root,
            |pid| by_parent.get(&pid).cloned().unwrap_or_default(),
            enough,
        )
    }
}

fn walk(root: u32, children: impl Fn(u32) -> Vec<u32>, mut enough: impl FnMut(u32) -> bool) -> Vec<u32> {
    let mut found = vec![root];
    let mut seen = HashSet::from([root]);
    let mut at = 0;
    while at < found.len() && !enough(found[at]) {
        let next = children(found[at]);
        found.extend(next.into_iter().filter(|pid| seen.insert(*pid)));
        at += 1;
    }
    found
}

fn children(pid: u32) -> Vec<u32> {
    // Each thread has its own children.
    let tasks = format!("/proc/{pid}/task");
    numbers(&tasks)
        .into_iter()
        .filter_map(|task| fs::read_to_string(format!("{tasks}/{task}/children")).ok())
        .flat_map(|list| {
            list.split_ascii_whitespace()
                .filter_map(|child| child.parse().ok())
                .collect::<Vec<u32>>()
        })
        .collect()
}

fn by_parent() -> HashMap<u32, Vec<u32>> {
    let mut by_parent: HashMap<u32, Vec<u32>> = HashMap::new();
    for pid in pids() {
        if let Some(stat) = stat(pid) {
            by_parent.entry(stat.parent).or_default().push(pid);
        }
    }
    by_parent
}

/// A process's parent, the parent's parent and so on, the process itself first.
pub(crate) fn ancestors(pid: u32) -> impl Iterator<Item = (u32, Stat)> {
    // Bounded, since a chain that is read while it changes could turn in a circle.
    let mut next = Some(pid);
    std::iter::from_fn(move || {
        let pid = next.take().filter(|pid| *pid != 0)?;
        let stat = stat(pid)?;
        next = Some(stat.parent);
        Some((pid, stat))
    })
    .take(1000)
}

/// Whether a process is `root` or descends from it.
pub(crate) fn descends(pid: u32, root: u32) -> bool {
    ancestors(pid).any(|(ancestor, _)| ancestor == root)
}

/// What came of a search for sockets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Search {
    /// The sockets that were found, with each process that has them.
    pub(crate) found: Vec<(u64, u32)>,
    /// Whether there was a living process whose descriptors we may not read.
    pub(crate) denied: bool,
}

impl Search {
    pub(crate) fn has(&self, inode: u64) -> bool {
        self.found.iter().any(|(found, _)| *found == inode)
    }
}

/// How closely to look at one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Closely {
    /// The descriptors of the process, which threads share.
    Process,
    /// Those of each thread: a thread may have a table of its own, and where the first thread has ended
    /// the process's table shows nothing.
    Threads,
}

/// Looks for sockets, given by their inodes, among the descriptors of processes.
pub(crate) fn search(pids: &[u32], inodes: &[u64], closely: Closely) -> Search {
    let mut search = Search::default();
    for &pid in pids {
        search.look_at(pid, inodes, closely);
    }
    search
}

/// The same among the processes of a tree, nearest first, until all are found; the root itself last: it is a supervisor, which has
/// no socket of the service's.
///
/// Nearly always the service's main process has them, and then nothing below `task` of that process is looked up. What is
/// looked up there has its price later: the kernel throws the entries of each thread away when the thread ends, and whoever
/// reaps the process in that moment spins until it has.
pub(crate) fn search_tree(root: u32, inodes: &[u64], closely: Closely) -> Search {
    let mut search = Search::default();
    tree_until(root, |pid| {
        if pid != root {
            search.look_at(pid, inodes, closely);
        }
        inodes.iter().all(|inode| search.has(*inode))
    });
    if !inodes.iter().all(|inode| search.has(*inode)) {
        search.look_at(root, inodes, closely);
    }
    search
}

impl Search {
    fn look_at(&mut self, pid: u32, inodes: &[u64], closely: Closely) {
        let mut mine = HashSet::new();
        let polled = match closely {
            Closely::Process => poll(&format!("/proc/{pid}/fd"), inodes, &mut mine),
            Closely::Threads => numbers(format!("/proc/{pid}/task"))
                .into_iter()
                .try_for_each(|task| poll(&format!("/proc/{pid}/task/{task}/fd"), inodes, &mut mine)),
        };
        self.found.extend(mine.into_iter().map(|inode| (inode, pid)));
        // A zombie's descriptors may not be read either, but it has none.
        let is_denied = polled.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
        self.denied |= is_denied && stat(pid).is_some_and(|stat| stat.is_alive());
    }
}

fn poll(dir: &str, inodes: &[u64], found: &mut HashSet<u64>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let link = match entry.and_then(|entry| fs::read_link(entry.path())) {
            Ok(link) => link,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(error),
            // Closed in the meantime.
            Err(_) => continue,
        };
        let inode = link
            .to_str()
            .and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']'))
            .and_then(|digits| digits.parse().ok());
        if let Some(inode) = inode {
            if inodes.contains(&inode) {
                found.insert(inode);
                if found.len() == inodes.len() {
                    break;
                }
            }
        }
    }
    Ok(())
}

/// The inodes of the Unix sockets that are bound to exactly this path (abstract: `@name`) and listen.
pub(crate) fn unix_listeners(path: &Path) -> Vec<u64> {
    use std::os::unix::ffi::OsStrExt;
    let Ok(table) = read("thread-self/net/unix") else {
        return Vec::new();
    };
    parse_unix(&table, path.as_os_str().as_bytes())
}

fn parse_unix(table: &[u8], wanted: &[u8]) -> Vec<u64> {
    const ACCEPTS: u32 = 0x10000;
    // Num RefCount Protocol Flags Type St Inode Path. The inode is padded with spaces, and the path may hold some.
    let inode_of = |line: &[u8]| {
        let mut rest = line;
        let mut fields = [""; 7];
        for field in &mut fields {
            rest = rest.trim_ascii_start();
            let end = rest.iter().position(|byte| *byte == b' ').unwrap_or(rest.len());
            *field = std::str::from_utf8(&rest[..end]).ok()?;
            rest = &rest[end..];
        }
        let accepts = u32::from_str_radix(fields[3], 16).ok()? & ACCEPTS != 0;
        let inode = fields[6].parse().ok()?;
        (accepts && rest.strip_prefix(b" ")? == wanted).then_some(inode)
    };
    table.split(|byte| *byte == b'\n').filter_map(inode_of).collect()
}

#[cfg(all(test, target_os = "linux", not(mirakuru_portable)))]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

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
        // The `echo` comes when the grandchild is there.
        let mut child = Command::new("sh")
            .args(["-c", "sh -c 'sleep 60 & echo $!; wait' & wait"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        io::BufRead::read_line(&mut io::BufReader::new(child.stdout.as_mut().unwrap()), &mut line).unwrap();
        let grandchild: u32 = line.trim().parse().unwrap();
        let root = child.id();
        let by_files = walk(root, children, |_| false);
        let table = by_parent();
        let by_parents = walk(
            root,
            |pid| table.get(&pid).cloned().unwrap_or_default(),
            |_| false,
        );
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
    fn a_zombie_is_not_alive_and_denies_nothing() {
        let mut child = Command::new("true").spawn().unwrap();
        let pid = child.id();
        while stat(pid).unwrap().is_alive() {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(search(&[pid], &[1], Closely::Process), Search::default());
        child.wait().unwrap();
        assert_eq!(stat(pid), None);
    }

    #[test]
    fn finds_a_socket_of_our_own_either_way() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&listener));
        let link = fs::read_link(link).unwrap();
        let inode = link.to_str().unwrap()["socket:[".len()..]
            .trim_end_matches(']')
            .parse()
            .unwrap();
        for closely in [Closely::Process, Closely::Threads] {
            let search = search(&[std::process::id()], &[inode, 1], closely);
            assert_eq!(search.found, [(inode, std::process::id())]);
            assert!(search.has(inode) && !search.has(1) && !search.denied);
        }
    }

    #[test]
    fn unix_table_is_matched_by_the_whole_path() {
        let table = b"Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01    11 /tmp/a b.sock\n\
            0000000000000000: 00000002 00000000 00010000 0001 01    12 /tmp/x /tmp/a b.sock\n\
            0000000000000000: 00000003 00000000 00000000 0001 03    13 /tmp/a b.sock\n\
            0000000000000000: 00000002 00000000 00010000 0001 01    14 @name\n\
            0000000000000000: 00000002 00000000 00010000 0001 01    15\n";
        assert_eq!(parse_unix(table, b"/tmp/a b.sock"), [11]);
        assert_eq!(parse_unix(table, b"b.sock"), []);
        assert_eq!(parse_unix(table, b"@name"), [14]);
    }
}
