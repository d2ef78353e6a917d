//! Finds and describes the process that uses a service's port, socket or pid file.
//!
//! The search reads the data of every process on the machine, which takes a few milliseconds. It
//! runs only after a conflict.

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use crate::ports::table;
use crate::sys::Protocol;
use crate::sys::procfs::{self, Closely};
use crate::sys::sockets::{self, UnixAnswer, UnixKind};

/// The full names (`comm`) of a supervisor's two processes. A prefix would also match mirakuru's
/// test programs.
const SUPERVISOR: [&str; 2] = ["mirakuru-guard", "mirakuru-worker"];

fn is_supervisor(comm: &str) -> bool {
    SUPERVISOR.contains(&comm)
}

/// A process that uses an endpoint of a service. A field is `None` or false if the fact cannot be
/// determined.
///
/// Displayed as `redis-server (pid 812)`. [`about`](Holder::about) describes it further, and
/// [`remedy`](Holder::remedy) tells how to free the endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) pid: Option<u32>,
    pub(crate) program: Option<String>,
    /// Name of the process's user, or `uid 1000` if the user has no name.
    pub(crate) user: Option<String>,
    /// Time since the process was started.
    pub(crate) age: Option<Duration>,
    /// Whether mirakuru started the process for a test.
    pub(crate) marked: bool,
    /// Whether the process has a live supervisor, which means that its test is still running.
    pub(crate) supervised: bool,
    /// Whether the process belongs to a test of another user. Locks have no effect between users.
    pub(crate) queues_apart: bool,
    /// Whether this is the test process itself.
    pub(crate) ourselves: bool,
    /// Whether the current user may send a signal to the process.
    pub(crate) may_be_signalled: bool,
    /// Whether the process must not be ended, because it is init, a kernel thread or an ancestor of
    /// this test.
    pub(crate) essential: bool,
    /// The systemd unit to which the process belongs, and which would restart it.
    pub(crate) unit: Option<Box<str>>,
}

impl Holder {
    /// Collects the facts about a process.
    pub(crate) fn of_pid(pid: u32) -> Holder {
        let stat = procfs::stat(pid);
        let uid = procfs::user(pid);
        let is_supervisor = |(_, stat): &(u32, procfs::Stat)| stat.is_alive() && is_supervisor(&stat.comm);
        let supervisor = procfs::ancestors(pid).skip(1).find(is_supervisor);
        Holder {
            pid: Some(pid),
            program: stat.as_ref().map(|stat| program(pid, &stat.comm)),
            user: uid.map(user_name),
            age: stat.as_ref().and_then(procfs::Stat::age),
            // The environment of another user's process is not readable, but a supervisor shows
            // that mirakuru started it.
            marked: supervisor.is_some() || is_marked(pid),
            supervised: supervisor.is_some(),
            queues_apart: supervisor.is_some_and(|(pid, _)| procfs::user(pid) != Some(sockets::user())),
            ourselves: pid == std::process::id(),
            may_be_signalled: sockets::user() == 0 || uid == Some(sockets::user()),
            essential: pid == 1
                || pid == std::os::unix::process::parent_id()
                || is_the_kernels(pid)
                || procfs::ancestors(std::process::id()).any(|(above, _)| above == pid),
            unit: procfs::cgroup(pid).as_deref().and_then(unit_in),
        }
    }

    /// A process that is not visible. The kernel reveals at most its user.
    pub(crate) fn unseen(uid: Option<u32>) -> Holder {
        Holder {
            user: uid.map(user_name),
            ..Holder::default()
        }
    }

    /// Describes the process: its age, its user, and whether it belongs to a test.
    pub(crate) fn about(&self) -> Option<String> {
        self.pid?;
        let mut parts = Vec::new();
        match (self.age, &self.user) {
            (Some(age), Some(user)) => parts.push(format!("started {} ago by user {user}", Rough(age))),
            (Some(age), None) => parts.push(format!("started {} ago", Rough(age))),
            (None, Some(user)) => parts.push(format!("of user {user}")),
            (None, None) => {}
        }
        if self.ourselves {
            parts.push("this test process itself".to_owned());
        } else if self.marked && self.supervised {
            parts.push("the service of another running test".to_owned());
        } else if self.marked {
            parts.push("left behind by an earlier run of mirakuru".to_owned());
        }
        (!parts.is_empty()).then(|| parts.join(", "))
    }

    /// Tells how to free the endpoint, as the beginning of a sentence.
    pub(crate) fn remedy(&self) -> Option<String> {
        let pid = self.pid?;
        if self.ourselves {
            Some("drop the value that holds it, in this test or in another one of this binary".to_owned())
        } else if self.queues_apart {
            Some("wait until the other user's test has ended".to_owned())
        } else if self.marked && self.supervised {
            Some("wait for that test with `.queue(true)`".to_owned())
        } else if self.essential {
            None
        } else {
            let sudo = if self.may_be_signalled { "" } else { "sudo " };
            Some(match &self.unit {
                Some(unit) => format!("stop its systemd unit with `{sudo}systemctl stop {unit}`"),
                None => format!("end it with `{sudo}kill {pid}`"),
            })
        }
    }

    /// The process that owns one of these sockets. Returns the first owner that is visible.
    fn of_sockets(found: &[(u64, u32)], inodes: &[u64]) -> Option<Holder> {
        inodes.iter().find_map(|inode| Holder::of_socket(found, *inode))
    }

    /// The process that has this socket open. If several have, returns one whose parent is not
    /// among them.
    pub(crate) fn of_socket(found: &[(u64, u32)], inode: u64) -> Option<Holder> {
        let pids: Vec<u32> = found
            .iter()
            .filter(|(found, _)| *found == inode)
            .map(|(_, pid)| *pid)
            .collect();
        let is_child = |pid: &u32| procfs::stat(*pid).is_some_and(|stat| pids.contains(&stat.parent));
        let first = pids.iter().find(|pid| !is_child(pid)).or(pids.first())?;
        Some(Holder::of_pid(*first))
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(pid) = self.pid else {
            return match &self.user {
                Some(user) => write!(f, "a process of user {user}"),
                None => f.write_str("a process that cannot be seen from here"),
            };
        };
        let program = self.program.as_deref().unwrap_or("a process");
        write!(f, "{program} (pid {pid})")?;
        Ok(())
    }
}

/// Displays a rounded duration in a single unit.
struct Rough(Duration);

impl fmt::Display for Rough {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        match seconds {
            0 => write!(f, "{} ms", self.0.as_millis()),
            1..120 => write!(f, "{seconds} s"),
            120..7200 => write!(f, "{} min", seconds / 60),
            7200..172_800 => write!(f, "{} h", seconds / 3600),
            _ => write!(f, "{} days", seconds / 86_400),
        }
    }
}

/// The name of a program. The kernel keeps only 15 bytes of it, so a longer name is read from the
/// command line.
fn program(pid: u32, comm: &str) -> String {
    const KEPT: usize = 15;
    if comm.len() < KEPT {
        return comm.to_owned();
    }
    // In the command line of a script, the first word is the interpreter and the second is the
    // script.
    let words = procfs::command_line(pid);
    words
        .iter()
        .take(2)
        .filter_map(|word| Path::new(std::str::from_utf8(word).ok()?).file_name()?.to_str())
        .find(|name| name.starts_with(comm))
        .unwrap_or(comm)
        .to_owned()
}

fn is_marked(pid: u32) -> bool {
    procfs::environment(pid).is_some_and(|environment| procfs::service_ids(&environment).next().is_some())
}

/// Finds the systemd unit in the text of `/proc/PID/cgroup`.
fn unit_in(cgroup: &str) -> Option<Box<str>> {
    let (_, path) = cgroup
        .lines()
        .find_map(|line| line.split_once("/system.slice/"))?;
    let unit = path.split('/').find(|part| part.ends_with(".service"))?;
    Some(unit.strip_suffix(".service").unwrap_or(unit).into())
}

/// The user's name from `/etc/passwd`, or `uid N`.
pub(crate) fn user_name(uid: u32) -> String {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    name_in(&passwd, uid).unwrap_or_else(|| format!("uid {uid}"))
}

fn name_in(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

/// The process that prevents a server from binding this address. It listens on the address or on a
/// wildcard address. If no process listens, returns one that has bound the address.
pub(crate) fn holder_of_port(protocol: Protocol, addr: SocketAddr) -> Option<Holder> {
    let sockets = table::in_the_way(protocol, addr);
    let mut inodes = table::inodes(&sockets);
    inodes.retain(|inode| *inode != 0);
    let found = procfs::search(&procfs::pids(), &inodes, Closely::Process).found;
    Holder::of_sockets(&found, &inodes).or_else(|| Some(Holder::unseen(Some(sockets.first()?.uid))))
}

/// A process that listens on this TCP address and does not descend from `root`.
pub(crate) fn listener_beside(addr: SocketAddr, root: u32) -> Option<Holder> {
    let sockets = table::listeners_in_the_way(Protocol::Tcp, addr);
    let inodes = table::inodes(&sockets);
    let mut found = procfs::search(&procfs::pids(), &inodes, Closely::Process).found;
    found.retain(|(_, pid)| root == 0 || !procfs::descends(*pid, root));
    Holder::of_sockets(&found, &inodes)
}

/// The process that accepts connections on a Unix socket.
pub(crate) fn holder_of_path(path: &Path) -> Option<Holder> {
    let inodes = procfs::unix_listeners(path);
    let found = procfs::search(&procfs::pids(), &inodes, Closely::Process).found;
    Holder::of_sockets(&found, &inodes).or_else(|| {
        // The socket was bound under another path, or its owner's descriptors cannot be read. If
        // the process that called `listen` is alive, it probably still has the socket.
        match sockets::try_connect_unix(path, UnixKind::Stream) {
            Ok(UnixAnswer::Accepted(Some(pid))) => procfs::stat(pid)
                .is_some_and(|stat| stat.is_alive())
                .then(|| Holder::of_pid(pid)),
            _ => None,
        }
    })
}

/// Whether the process is a kernel thread. All kernel threads are children of process 2.
fn is_the_kernels(pid: u32) -> bool {
    const KTHREADD: u32 = 2;
    let is_there = procfs::stat(KTHREADD).is_some_and(|stat| stat.comm == "kthreadd");
    is_there && (pid == KTHREADD || procfs::stat(pid).is_some_and(|stat| stat.parent == KTHREADD))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_is_looked_after_was_not_left_behind() {
        assert!(is_supervisor("mirakuru-guard") && is_supervisor("mirakuru-worker"));
        assert!(!is_supervisor("mirakuru_core-1") && !is_supervisor("mirakuru-1") && !is_supervisor("my"));
        let holder = Holder {
            pid: Some(812),
            program: Some("redis-server".into()),
            marked: true,
            supervised: true,
            ..Holder::default()
        };
        assert_eq!(holder.to_string(), "redis-server (pid 812)");
        assert_eq!(holder.about().unwrap(), "the service of another running test");
        assert_eq!(holder.remedy().unwrap(), "wait for that test with `.queue(true)`");
        let others = Holder {
            queues_apart: true,
            ..holder
        };
        assert_eq!(
            others.remedy().unwrap(),
            "wait until the other user's test has ended"
        );
        let wrong_listener = Holder {
            pid: Some(812),
            ..Holder::default()
        };
        assert_eq!(wrong_listener.about(), None);
        assert_eq!(wrong_listener.remedy().unwrap(), "end it with `sudo kill 812`");
    }

    #[test]
    fn the_remedy_depends_on_the_process() {
        let of = |holder: Holder| holder.remedy();
        let other = || Holder {
            pid: Some(812),
            may_be_signalled: true,
            ..Holder::default()
        };
        assert_eq!(of(other()).unwrap(), "end it with `kill 812`");
        let cgroup = "0::/system.slice/system-redis.slice/redis-server.service\n";
        let unit = unit_in(cgroup);
        assert_eq!(
            of(Holder { unit, ..other() }).unwrap(),
            "stop its systemd unit with `systemctl stop redis-server`"
        );
        assert_eq!(unit_in("0::/user.slice/user-1000.slice/session-2.scope\n"), None);
        // No remedy tells the user to end init, a kernel thread or the parent of this process.
        assert_eq!(Holder::of_pid(1).remedy(), None);
        if procfs::stat(2).is_some_and(|stat| stat.comm == "kthreadd") {
            assert_eq!(Holder::of_pid(2).remedy(), None);
        }
        assert_eq!(Holder::of_pid(std::os::unix::process::parent_id()).remedy(), None);
    }

    #[test]
    fn holders_that_cannot_be_seen() {
        assert_eq!(Holder::unseen(Some(0)).to_string(), "a process of user root");
        assert_eq!(
            Holder::unseen(None).to_string(),
            "a process that cannot be seen from here"
        );
        let passwd = "root:x:0:0::/root:/bin/sh\nbroken\n\npostgres:x:105:1::/:\n";
        assert_eq!(name_in(passwd, 105).as_deref(), Some("postgres"));
        assert_eq!(name_in(passwd, 1), None);
    }

    #[test]
    fn rough_durations() {
        let text = |seconds| Rough(Duration::from_secs(seconds)).to_string();
        assert_eq!(text(119), "119 s");
        assert_eq!(text(120), "2 min");
        assert_eq!(text(3 * 3600), "3 h");
        assert_eq!(text(3 * 86_400), "3 days");
        assert_eq!(Rough(Duration::from_millis(12)).to_string(), "12 ms");
    }
}
