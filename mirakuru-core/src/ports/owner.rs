//! Determines whether the sockets that answer on an address belong to a service's process tree.
//!
//! A test that talks to the wrong server passes or fails for the wrong reason. An address belongs
//! to a service only if **every** socket that could get a connection is open in the service's tree.
//! If several sockets share the address (SO_REUSEPORT), the kernel distributes connections among
//! them. Another process's socket on the address is therefore an error even if the service has one
//! there as well.
//!
//! A socket that the service has inherited, as with systemd's socket activation, is open in its
//! tree and therefore belongs to the service.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::observe::trace;
use crate::ports::address::canonical;
use crate::ports::holder::Holder;
use crate::ports::table::{self, all_listeners, answering, listening};
use crate::sys::Protocol;
use crate::sys::procfs::{self, Closely};

/// Number of searches before another process is reported. The service may fork or pass its socket
/// on during a search, which then misses the socket.
const POLLS: u32 = 3;
const BETWEEN_POLLS: Duration = Duration::from_millis(1);

/// The owner of an address.
#[derive(Clone, Debug)]
pub(crate) enum Owner {
    /// No process listens on the address.
    Nobody,
    /// Processes of the service's tree own every socket that could get a connection.
    Tree,
    /// The owner is not visible. Part of the service's tree belongs to another user and cannot be
    /// inspected, and no other process was found that has the socket.
    Unseen,
    /// Another process gets connections.
    WrongListener(WrongListener),
}

/// Another process that answers on the service's address. Errors of kind `AddrInUse` from
/// [`owned_by_tree`] and from the readiness of Unix sockets contain this value.
#[derive(Clone, Debug)]
pub(crate) struct WrongListener {
    /// The service's address or path, for example `127.0.0.1:6379`.
    pub(crate) endpoint: String,
    pub(crate) holder: Holder,
    /// Whether the service also listens on the endpoint (SO_REUSEPORT).
    pub(crate) shared: bool,
}

impl WrongListener {
    /// The advice in the error's hint.
    pub(crate) fn remedy(&self) -> String {
        let what = match self.shared {
            true => "both listen there (SO_REUSEPORT), and each gets some of the connections",
            false => "it uses the address or path that this service needs",
        };
        match self.holder.remedy() {
            Some(remedy) => format!("{what}: {remedy}, or use `{{port}}` to get a free port"),
            None => what.to_owned(),
        }
    }

    /// Extracts the value from an error that contains one.
    pub(crate) fn of(error: &io::Error) -> Option<&WrongListener> {
        error.get_ref()?.downcast_ref()
    }
}

impl fmt::Display for WrongListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let WrongListener {
            endpoint,
            holder,
            shared,
        } = self;
        if *shared {
            write!(
                f,
                "{endpoint} is shared with {holder}, which is not this service and gets some of its \
                    connections"
            )
        } else {
            write!(f, "{endpoint} is answered by {holder}, which is not this service")
        }
    }
}

impl std::error::Error for WrongListener {}

impl From<WrongListener> for io::Error {
    fn from(wrong_listener: WrongListener) -> io::Error {
        io::Error::new(io::ErrorKind::AddrInUse, wrong_listener)
    }
}

/// Determines whether the tree below `root` answers on this local address.
///
/// - `Ok(false)`: no process listens.
/// - `Ok(true)`: the tree listens, or the owner of the listener is not visible.
/// - An error of kind `AddrInUse` with a [`WrongListener`] inside: another process listens.
pub(crate) fn owned_by_tree(protocol: Protocol, addr: SocketAddr, root: u32) -> io::Result<bool> {
    Ok(listeners_of_tree(protocol, addr, root)?.is_some())
}

/// The visible sockets that answer on an address, and the processes that have them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Listeners {
    inodes: Vec<u64>,
    /// Ids of the tree's processes that have the sockets.
    pids: Vec<u32>,
}

/// Like [`owned_by_tree`], but returns the sockets. `None` if no process listens.
pub(crate) fn listeners_of_tree(
    protocol: Protocol,
    addr: SocketAddr,
    root: u32,
) -> io::Result<Option<Listeners>> {
    let mut listeners = Listeners::default();
    match owner(protocol, addr, root, &mut listeners)? {
        Owner::Nobody => return Ok(None),
        Owner::Tree => {}
        Owner::Unseen => trace::owner_unseen(addr),
        Owner::WrongListener(wrong_listener) => return Err(wrong_listener.into()),
    }
    Ok(Some(listeners))
}

/// Determines which process owns an address. Stores the sockets on it in `listeners`.
fn owner(protocol: Protocol, addr: SocketAddr, root: u32, listeners: &mut Listeners) -> io::Result<Owner> {
    let addr = canonical(addr);
    // This check comes first because it is cheap, and no process listens during most of a start.
    if !listening(protocol, addr)? {
        return Ok(Owner::Nobody);
    }
    let mut poll = 1;
    loop {
        let sockets = match answering(protocol, addr) {
            // The process has stopped listening in the meantime.
            Some(sockets) if sockets.is_empty() => return Ok(Owner::Nobody),
            Some(sockets) => sockets,
            None => return Ok(Owner::Unseen),
        };
        listeners.inodes = table::inodes(&sockets);
        match owner_of(&listeners.inodes, root, poll, &mut listeners.pids) {
            Ownership::Tree => return Ok(Owner::Tree),
            Ownership::Unseen => return Ok(Owner::Unseen),
            Ownership::WrongListener { .. } if poll < POLLS => {}
            Ownership::WrongListener {
                holder,
                inode,
                shared,
            } => {
                let uid = sockets
                    .iter()
                    .find(|socket| socket.inode == inode)
                    .map(|socket| socket.uid);
                return Ok(Owner::WrongListener(WrongListener {
                    endpoint: addr.to_string(),
                    holder: holder.unwrap_or_else(|| Holder::unseen(uid)),
                    shared,
                }));
            }
        }
        poll += 1;
        thread::sleep(BETWEEN_POLLS);
    }
}

enum Ownership {
    Tree,
    Unseen,
    WrongListener {
        inode: u64,
        holder: Option<Holder>,
        shared: bool,
    },
}

/// Determines whether processes below `root` have all of these sockets. Stores the ids of those
/// processes in `pids`.
fn owner_of(inodes: &[u64], root: u32, poll: u32, pids: &mut Vec<u32>) -> Ownership {
    // The first search is almost always enough. Later ones examine every thread, which costs more.
    let closely = match poll {
        1 => Closely::Process,
        _ => Closely::Threads,
    };
    if !procfs::is_usable() {
        return Ownership::Unseen;
    }
    let search = procfs::search_tree(root, inodes, closely);
    *pids = search.found.iter().map(|(_, pid)| *pid).collect();
    let mut strange = inodes.to_vec();
    strange.retain(|inode| !search.has(*inode));
    let Some(&first) = strange.first() else {
        return Ownership::Tree;
    };
    let shared = strange.len() < inodes.len();
    if poll < POLLS && !search.denied {
        // The caller searches the tree again, which is cheaper than a search of all processes.
        return Ownership::WrongListener {
            inode: first,
            holder: None,
            shared,
        };
    }
    let mut everybody = procfs::search(&procfs::pids(), &strange, Closely::Process).found;
    // The search downwards from `root` can miss a daemon between its two forks. The search upwards
    // from the process finds it.
    let mut ours = Vec::new();
    for (inode, pid) in &everybody {
        if procfs::descends(*pid, root) {
            ours.push(*inode);
        }
    }
    // If some processes could not be inspected, the test process does not count: it may have opened
    // the socket that the service inherits.
    let counts = |pid: u32| !search.denied || pid != std::process::id();
    everybody.retain(|(inode, pid)| !ours.contains(inode) && counts(*pid));
    if search.denied && everybody.is_empty() {
        return Ownership::Unseen;
    }
    match strange.iter().find(|inode| !ours.contains(inode)) {
        None => Ownership::Tree,
        Some(&first) => {
            let inode = everybody.first().map_or(first, |(inode, _)| *inode);
            Ownership::WrongListener {
                inode,
                holder: Holder::of_socket(&everybody, inode),
                shared: shared || !ours.is_empty(),
            }
        }
    }
}

/// Determines whether the process `root` or one of its descendants has the Unix socket at `path`
/// open. `listener` is the process that called `listen`, if known.
pub(crate) fn unix_owner(path: &Path, listener: Option<u32>, root: u32) -> Owner {
    if listener.is_some_and(|pid| procfs::descends(pid, root)) {
        return Owner::Tree;
    }
    let mut poll = 1;
    loop {
        let mut names = vec![path.to_owned()];
        names.extend(std::path::absolute(path));
        names.extend(std::fs::canonicalize(path));
        names.dedup();
        let mut inodes = Vec::new();
        for name in names {
            inodes.append(&mut procfs::unix_listeners(&name));
        }
        if inodes.is_empty() {
            return unnamed_owner(path, listener, root);
        }
        match owner_of(&inodes, root, poll, &mut Vec::new()) {
            // Immediately after a restart, the table may list two sockets of this name. Only the
            // newer one can be reached.
            Ownership::Tree | Ownership::WrongListener { shared: true, .. } => return Owner::Tree,
            Ownership::Unseen => return Owner::Unseen,
            Ownership::WrongListener { .. } if poll < POLLS => {}
            Ownership::WrongListener { holder, .. } => {
                return Owner::WrongListener(WrongListener {
                    endpoint: path.display().to_string(),
                    holder: holder.unwrap_or_else(|| Holder::unseen(None)),
                    shared: false,
                });
            }
        }
        poll += 1;
        thread::sleep(BETWEEN_POLLS);
    }
}

/// Determines the owner of a socket that was bound under another path, such as a relative one. If
/// the tree has any listening Unix socket, it may be this one, so the owner counts as unseen.
fn unnamed_owner(path: &Path, listener: Option<u32>, root: u32) -> Owner {
    let listening = procfs::unix_listening();
    let search = procfs::search_tree(root, &listening, Closely::Threads);
    if search.denied || !search.found.is_empty() || listening.is_empty() || !procfs::is_usable() {
        return Owner::Unseen;
    }
    let listener = listener.filter(|pid| procfs::stat(*pid).is_some_and(|stat| stat.is_alive()));
    Owner::WrongListener(WrongListener {
        endpoint: path.display().to_string(),
        holder: listener.map_or_else(|| Holder::unseen(None), Holder::of_pid),
        shared: false,
    })
}

/// Maximum age of a socket that a server opens only to check that its port is free.
const CHECK_TAKES: Duration = Duration::from_millis(50);

/// The sockets that answer on an address, and when they were first seen.
#[derive(Clone, Debug)]
pub(crate) struct FirstSeen {
    inodes: Vec<u64>,
    at: Instant,
}

impl FirstSeen {
    /// The pause before the next poll. It grows with the time since the sockets were first seen,
    /// because most servers accept connections within microseconds after they begin to listen.
    pub(crate) fn next_poll(&self) -> Duration {
        (self.at.elapsed() / 4).clamp(Duration::from_micros(50), Duration::from_millis(1))
    }
}

/// Whether the service's sockets on this address are likely to stay open.
///
/// Some servers listen for a moment to check that the port is free, and listen again later to
/// serve. If the process is waiting for something, such as connections, its socket counts
/// immediately. Otherwise the same socket must have been there for [`CHECK_TAKES`]. `seen` stores
/// the result of the previous check.
pub(crate) fn stays(addr: SocketAddr, listeners: Listeners, seen: &mut Option<FirstSeen>) -> bool {
    let Listeners { inodes, pids } = listeners;
    // If the kernel does not list sockets, it is enough that a process listens.
    if inodes.is_empty() {
        return true;
    }
    let first = match seen.take() {
        Some(first) if first.inodes == inodes => first,
        _ => FirstSeen {
            inodes,
            at: Instant::now(),
        },
    };
    let first = seen.insert(first);
    if first.at.elapsed() < CHECK_TAKES && pids.into_iter().any(procfs::is_between_calls) {
        return false;
    }
    answering(Protocol::Tcp, canonical(addr)).is_some_and(|now| table::inodes(&now) == first.inodes)
}

/// The addresses on which the tree below `root` listens, in no particular order. Empty if they
/// cannot be determined.
pub(crate) fn addresses_of_tree(root: u32) -> Vec<SocketAddr> {
    let sockets = all_listeners(Protocol::Tcp, 0).unwrap_or_default();
    let inodes = table::inodes(&sockets);
    let search = procfs::search(&procfs::tree(root), &inodes, Closely::Process);
    let of_tree = sockets.iter().filter(|socket| search.has(socket.inode));
    of_tree.map(|socket| socket.addr).collect()
}

#[cfg(all(test, target_os = "linux", not(mirakuru_portable)))]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::sys::sockets::tests::tcp;
    use crate::sys::tests::in_time;
    use crate::util::own_process::test_name;

    fn v4(port: u16) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, port))
    }

    /// A Python process whose script prints `port`.
    struct Python {
        child: Child,
        port: u16,
    }

    impl Python {
        fn run(script: &str) -> Python {
            use std::io::BufRead;
            use std::os::unix::process::CommandExt;
            let mut child = Command::new("python3")
                .args(["-c", script])
                .process_group(0)
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut line = String::new();
            io::BufReader::new(child.stdout.as_mut().unwrap())
                .read_line(&mut line)
                .unwrap();
            let port = line.trim().parse().unwrap();
            Python { child, port }
        }

        fn listener() -> Python {
            Python::run(
                "import socket, time; s = socket.create_server(('127.0.0.1', 0)); \
                 print(s.getsockname()[1], flush=True); time.sleep(60)",
            )
        }

        fn pid(&self) -> u32 {
            self.child.id()
        }
    }

    impl Drop for Python {
        fn drop(&mut self) {
            // Kills the whole group, because a tree that keeps forking changes faster than it can
            // be listed.
            let _ = Command::new("kill")
                .args(["-9", "--", &format!("-{}", self.child.id())])
                .stderr(Stdio::null())
                .status();
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    #[test]
    fn own_listener_belongs_to_the_tree() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        assert!(owned_by_tree(Protocol::Tcp, addr, std::process::id()).unwrap());
        assert!(addresses_of_tree(std::process::id()).contains(&addr));
        drop(listener);
        in_time(|| !owned_by_tree(Protocol::Tcp, addr, std::process::id()).unwrap());
    }

    #[test]
    fn a_listener_of_a_child_belongs_to_the_parents_tree() {
        let child = Python::listener();
        assert!(owned_by_tree(Protocol::Tcp, v4(child.port), std::process::id()).unwrap());
        assert!(owned_by_tree(Protocol::Tcp, v4(child.port), child.pid()).unwrap());
        assert_eq!(addresses_of_tree(child.pid()), [v4(child.port)]);
    }

    #[test]
    fn another_process_is_named() {
        let wrong_listener = Python::listener();
        // This unrelated process takes the place of the service.
        let tree = Command::new("sleep").arg("60").spawn().unwrap();
        let mut tree = Python { child: tree, port: 0 };
        let error = owned_by_tree(Protocol::Tcp, v4(wrong_listener.port), tree.pid()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        let inside = WrongListener::of(&error).unwrap();
        assert_eq!(inside.holder.pid, Some(wrong_listener.pid()));
        let text = error.to_string();
        let expected = format!("(pid {}), which is not this service", wrong_listener.pid());
        assert!(
            text.starts_with(&format!(
                "127.0.0.1:{} is answered by python3",
                wrong_listener.port
            )) && text.ends_with(&expected),
            "{text}"
        );
        // After its root has ended, the tree has no processes.
        tree.child.kill().unwrap();
        tree.child.wait().unwrap();
        assert!(owned_by_tree(Protocol::Tcp, v4(wrong_listener.port), tree.pid()).is_err());
    }

    #[test]
    fn this_process_can_be_the_wrong_one() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut tree = Python {
            child: Command::new("sleep").arg("60").spawn().unwrap(),
            port: listener.local_addr().unwrap().port(),
        };
        // The listener is close-on-exec, so the child has a copy until it executes `sleep`.
        while std::fs::read_link(format!("/proc/{}/exe", tree.pid())).unwrap()
            == std::env::current_exe().unwrap()
        {
            thread::sleep(Duration::from_millis(1));
        }
        let error = owned_by_tree(Protocol::Tcp, v4(tree.port), tree.pid())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(&format!("(pid {})", std::process::id())),
            "{error}"
        );
        tree.child.kill().unwrap();
    }

    #[test]
    fn a_port_shared_with_another_process_is_not_ours() {
        let (_ours, port) = tcp(v4(0), false, true, None, true).unwrap();
        let wrong_listener = Python::run(&format!(
            "import socket, time; s = socket.socket(); \
             s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1); s.bind(('127.0.0.1', {port})); \
             s.listen(); \
             print({port}, flush=True); time.sleep(60)"
        ));
        // Both sockets are in this process's tree, because Python is its child. Python's tree
        // contains only one.
        assert!(owned_by_tree(Protocol::Tcp, v4(port), std::process::id()).unwrap());
        let seen = owner(
            Protocol::Tcp,
            v4(port),
            wrong_listener.pid(),
            &mut Listeners::default(),
        );
        let Owner::WrongListener(seen) = seen.unwrap() else {
            panic!("not noticed")
        };
        assert!(seen.shared);
        assert_eq!(seen.holder.pid, Some(std::process::id()));
    }

    #[test]
    fn a_daemon_that_forks_all_the_time_is_never_accused() {
        // Each parent passes the listener to its child and exits. The first process adopts the
        // children.
        let script = "
import ctypes, os, socket, time
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
s = socket.create_server(('127.0.0.1', 0))
end = time.monotonic() + 3
if os.fork() == 0:
    print(s.getsockname()[1], flush=True)
    while time.monotonic() < end:
        if os.fork(): os._exit(0)
        time.sleep(0.002)
    os._exit(0)
s.close()
while True:
    try: os.wait()
    except ChildProcessError: break
time.sleep(60)
";
        let tree = Python::run(script);
        let begin = std::time::Instant::now();
        let mut polls = 0;
        while begin.elapsed() < Duration::from_millis(1500) {
            assert!(owned_by_tree(Protocol::Tcp, v4(tree.port), tree.pid()).unwrap());
            polls += 1;
        }
        assert!(polls > 10, "{polls} polls");
    }

    #[test]
    fn a_socket_that_only_a_late_thread_has_is_found() {
        // The first thread exits. Then /proc/PID/fd is empty, and only the other thread has the
        // descriptors.
        let script = "
import ctypes, socket, threading, time
s = socket.create_server(('127.0.0.1', 0))
def run():
    time.sleep(0.2)
    print(s.getsockname()[1], flush=True)
    time.sleep(60)
threading.Thread(target=run).start()
ctypes.CDLL(None).pthread_exit(None)
";
        let tree = Python::run(script);
        assert!(owned_by_tree(Protocol::Tcp, v4(tree.port), tree.pid()).unwrap());
    }

    #[test]
    fn a_tree_of_another_user_gets_the_benefit_of_the_doubt() {
        use std::os::unix::process::CommandExt;
        const NOBODY: u32 = 65534;
        // This test runs itself again as a user who may not read root's processes, and checks the
        // output.
        if let Ok(what) = std::env::var("MIRAKURU_TEST_OWNER") {
            match what.split_once(' ') {
                Some((port, root)) => println!(
                    "SEEN {:?}",
                    owner(
                        Protocol::Tcp,
                        v4(port.parse().unwrap()),
                        root.parse().unwrap(),
                        &mut Listeners::default()
                    )
                ),
                None => {
                    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                    eprintln!("{}", listener.local_addr().unwrap().port());
                    thread::sleep(Duration::from_secs(60));
                }
            }
            return;
        }
        if crate::sys::sockets::user() != 0 {
            eprintln!("skipped: it takes root to start processes of two users");
            return;
        }
        // `nobody` may have no access to the directory of this program, so the program is copied.
        let copy = std::env::temp_dir().join(format!("mk-owner-{}", std::process::id()));
        std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
        let as_nobody = |what: String| {
            let mut command = Command::new(&copy);
            command
                .args(["--exact", "--nocapture"])
                .arg(test_name!(a_tree_of_another_user_gets_the_benefit_of_the_doubt))
                .env("MIRAKURU_TEST_OWNER", what)
                .current_dir("/")
                .uid(NOBODY)
                .gid(NOBODY);
            command
        };
        let poll = |port: u16, root: u32| {
            let output = as_nobody(format!("{port} {root}")).output().unwrap();
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let service = Python::listener();
        let unseen = poll(service.port, service.pid());
        // This server runs as `nobody` and is visible to `nobody`, so the check reports it.
        let mut child = as_nobody("listen".to_owned())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        io::BufRead::read_line(&mut io::BufReader::new(child.stderr.as_mut().unwrap()), &mut line).unwrap();
        let wrong_listener = Python {
            child,
            port: line.trim().parse().unwrap(),
        };
        let seen = poll(wrong_listener.port, service.pid());
        let _ = std::fs::remove_file(&copy);
        assert!(unseen.contains("SEEN Ok(Unseen)"), "{unseen}");
        assert!(
            seen.contains("SEEN Ok(WrongListener(")
                && seen.contains(&format!("pid: Some({})", wrong_listener.pid())),
            "{seen}"
        );
    }
}
