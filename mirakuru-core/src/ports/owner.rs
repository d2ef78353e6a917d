//! Who listens on a TCP port of this machine: asked of the kernel, without making a connection.
//!
//! Two things a plain `connect` cannot tell. *Whether* somebody listens, without the service noticing: PostgreSQL logs an
//! incomplete startup packet for each connection that comes to nothing. And *who* listens: a test that talks to
//! the wrong server passes or fails for the wrong reason.
//!
//! The rule: an address belongs to a service when **every** socket that could get a connection to it is open in a process
//! of the service's tree. The kernel prefers the more particular socket (`127.0.0.1` to `0.0.0.0`, that to a `[::]`
//! that serves IPv4 too), so only the most particular ones count. If several share the address (SO_REUSEPORT) connections
//! are dealt out among them, so that one stranger among them makes a test flaky: that is an error like a stranger alone.
//!
//! Sockets that the service inherited, as with systemd's socket activation, are open in its tree, whoever made them.
//!
//! Where the kernel cannot be asked (no `tcp_diag` module, a sandbox, not Linux) there is a connection to see whether
//! somebody listens, and `/proc/net/tcp` to see who.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::observe::trace;
use crate::ports::holder::Holder;
use crate::sys::Socket;
use crate::sys::procfs::{self, Closely};
#[cfg(all(target_os = "linux", not(mirakuru_portable)))]
use crate::sys::sock_diag::{self, States};
use crate::util::deadline::scaled;

/// How often the owner is looked for before a stranger is accused, and how long to wait in between: the service may fork, or
/// hand its socket on, between the look at its processes and the look at their descriptors.
const LOOKS: u32 = 3;
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);

/// A connection to this machine is answered, or refused, at once; this is for a listener with a full backlog.
const LOCAL_CONNECT: Duration = Duration::from_millis(500);

/// To whom an address belongs.
#[derive(Clone, Debug)]
pub(crate) enum Owner {
    /// Nobody listens there.
    Nobody,
    /// The service's tree has every socket that a connection could reach.
    Tree,
    /// Somebody listens who may be the service: a part of its tree cannot be looked into (another user, and we are not root),
    /// and nobody else was seen to have the socket.
    Unseen,
    /// Somebody else gets connections.
    WrongListener(WrongListener),
}

/// Somebody who answers where the service should. The inside of the error of kind `AddrInUse` that
/// [`owned_by_tree`] and the Unix socket's readiness give.
#[derive(Clone, Debug)]
pub(crate) struct WrongListener {
    /// Where: `127.0.0.1:6379`, or a path.
    pub(crate) endpoint: String,
    pub(crate) holder: Holder,
    /// The service listens there as well (SO_REUSEPORT).
    pub(crate) shared: bool,
}

impl WrongListener {
    /// What to do about it.
    pub(crate) fn remedy(&self) -> String {
        let what = match self.shared {
            true => "both listen there (SO_REUSEPORT), and each gets a part of the connections",
            false => "it has what this service was to have",
        };
        match self.holder.remedy() {
            Some(remedy) => format!("{what}: {remedy}, or let a free port be chosen with `{{port}}`"),
            None => what.to_owned(),
        }
    }

    /// The inside of an error, if it is one of these.
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
                "{endpoint} is shared with {holder}, which is not this service and gets a part of its connections"
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

/// Whether connections to this address of this machine are answered by a process of the tree below `root`.
///
/// `Ok(false)`: nobody listens. `Ok(true)`: the tree does, or it cannot be seen who does ([`owner`] tells the two apart).
/// An error of kind `AddrInUse`, with a [`WrongListener`] inside: somebody else does.
pub(crate) fn owned_by_tree(addr: SocketAddr, root: u32) -> io::Result<bool> {
    match owner(addr, root)? {
        Owner::Nobody => Ok(false),
        Owner::Tree => Ok(true),
        Owner::Unseen => {
            trace::owner_unseen(addr);
            Ok(true)
        }
        Owner::WrongListener(wrong_listener) => Err(wrong_listener.into()),
    }
}

/// To whom this address of this machine belongs, seen from the tree below `root`.
pub(crate) fn owner(addr: SocketAddr, root: u32) -> io::Result<Owner> {
    let addr = canonical(addr);
    // The cheap question first: for most of a start its answer is no.
    if !listening(addr)? {
        return Ok(Owner::Nobody);
    }
    let mut poll = 1;
    loop {
        let sockets = match answering(addr) {
            // It has stopped listening since.
            Some(sockets) if sockets.is_empty() => return Ok(Owner::Nobody),
            Some(sockets) => sockets,
            None => return Ok(Owner::Unseen),
        };
        let inodes: Vec<u64> = sockets.iter().map(|socket| socket.inode).collect();
        match owner_of(&inodes, root, poll) {
            Ownership::Tree => return Ok(Owner::Tree),
            Ownership::Unseen => return Ok(Owner::Unseen),
            Ownership::WrongListener { .. } if poll < LOOKS => {}
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
        thread::sleep(BETWEEN_LOOKS);
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

/// Whether all of these sockets are open in the tree below `root`.
fn owner_of(inodes: &[u64], root: u32, poll: u32) -> Ownership {
    // The first look is the one that nearly always suffices; the others leave no descriptor out.
    let closely = match poll {
        1 => Closely::Process,
        _ => Closely::Threads,
    };
    let search = procfs::search_tree(root, inodes, closely);
    let strange: Vec<u64> = inodes
        .iter()
        .copied()
        .filter(|inode| !search.has(*inode))
        .collect();
    let Some(&first) = strange.first() else {
        return Ownership::Tree;
    };
    let shared = strange.len() < inodes.len();
    if poll < LOOKS && !search.denied {
        // To look again is cheaper than to look through all processes of the machine.
        return Ownership::WrongListener {
            inode: first,
            holder: None,
            shared,
        };
    }
    let mut everybody = procfs::search(&procfs::pids(), &strange, Closely::Process).found;
    // A daemon in the middle of its double fork can have been missed on the way down; on the way up it is not.
    let ours: Vec<u64> = everybody
        .iter()
        .filter(|(_, pid)| procfs::descends(*pid, root))
        .map(|(inode, _)| *inode)
        .collect();
    everybody.retain(|(inode, _)| !ours.contains(inode));
    if search.denied {
        // The test process does not count here: it may have made the socket for the service to inherit.
        everybody.retain(|(_, pid)| *pid != std::process::id());
        if everybody.is_empty() {
            return Ownership::Unseen;
        }
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

/// Whether the Unix socket at `path` is open in the tree below `root`. `listener` is the process that called `listen`, where the system told.
pub(crate) fn unix_owner(path: &Path, listener: Option<u32>, root: u32) -> Owner {
    if listener.is_some_and(|pid| procfs::descends(pid, root)) {
        return Owner::Tree;
    }
    let mut poll = 1;
    loop {
        let mut inodes = procfs::unix_listeners(path);
        if let Ok(absolute) = std::path::absolute(path) {
            if absolute != path {
                inodes.extend(procfs::unix_listeners(&absolute));
            }
        }
        if inodes.is_empty() {
            // Bound under another name (a relative one, a link): then it cannot be told.
            return Owner::Unseen;
        }
        match owner_of(&inodes, root, poll) {
            // After a restart the table may for a moment have two sockets of one name, of which only the last can be reached.
            Ownership::Tree | Ownership::WrongListener { shared: true, .. } => return Owner::Tree,
            Ownership::Unseen => return Owner::Unseen,
            Ownership::WrongListener { .. } if poll < LOOKS => {}
            Ownership::WrongListener { holder, .. } => {
                return Owner::WrongListener(WrongListener {
                    endpoint: path.display().to_string(),
                    holder: holder.unwrap_or_else(|| Holder::unseen(None)),
                    shared: false,
                });
            }
        }
        poll += 1;
        thread::sleep(BETWEEN_LOOKS);
    }
}

/// The addresses on which the tree below `root` listens, in no particular order: what to tell somebody whose service listens elsewhere than
/// where it is awaited. Empty where the kernel cannot be asked.
pub(crate) fn addresses_of_tree(root: u32) -> Vec<SocketAddr> {
    let sockets = all_listeners(0).unwrap_or_default();
    let inodes: Vec<u64> = sockets.iter().map(|socket| socket.inode).collect();
    let search = procfs::search(&procfs::tree(root), &inodes, Closely::Process);
    sockets
        .into_iter()
        .filter(|socket| search.has(socket.inode))
        .map(|socket| socket.addr)
        .collect()
}

/// An address as connections use it: IPv4 mapped into IPv6 is IPv4, and "any address" is the loopback one.
pub(crate) fn canonical(addr: SocketAddr) -> SocketAddr {
    let ip = match addr.ip().to_canonical() {
        IpAddr::V4(v4) if v4.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(v6) if v6.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let mut addr = addr;
    // Keeps the scope of a link-local address.
    if addr.ip() != ip {
        addr = SocketAddr::new(ip, addr.port());
    }
    addr
}

/// Whether an address belongs to this machine, so that the kernel can be asked who listens there.
pub(crate) fn is_local(ip: IpAddr) -> bool {
    // A bind to a foreign address fails. (Not so with the sysctl `ip_nonlocal_bind`, for routers that take over addresses.)
    ip.is_loopback() || ip.is_unspecified() || UdpSocket::bind((ip, 0)).is_ok()
}

/// Whether anybody listens on this address of this machine.
pub(crate) fn listening(addr: SocketAddr) -> io::Result<bool> {
    let addr = canonical(addr);
    #[cfg(all(target_os = "linux", not(mirakuru_portable)))]
    match sock_diag::listener(addr) {
        Ok(Some(_)) => return Ok(true),
        Ok(None) if diag_works() => return Ok(false),
        _ => {}
    }
    Ok(connect(addr, scaled(LOCAL_CONNECT)).is_ok())
}

/// Makes a connection, and makes sure that it is one.
///
/// A connect to a port of this machine that nobody listens on, and that is in the range of ephemeral ports, can be given this very port for
/// its own end, and then reaches itself.
pub(crate) fn connect(addr: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    not_itself(TcpStream::connect_timeout(&addr, timeout)?)
}

fn not_itself(stream: TcpStream) -> io::Result<TcpStream> {
    let addr = stream.peer_addr()?;
    if stream.local_addr()? == addr {
        return Err(io::Error::new(
            io::ErrorKind::ConnectionRefused,
            format!("nobody listens on {addr}: the connection reached itself"),
        ));
    }
    Ok(stream)
}

/// Whether "there is no such socket" can be believed. A kernel without the `tcp_diag` module says it of every socket, so it
/// is asked once about one of our own.
#[cfg(all(target_os = "linux", not(mirakuru_portable)))]
fn diag_works() -> bool {
    use std::sync::atomic::{AtomicU8, Ordering};
    static KNOWN: AtomicU8 = AtomicU8::new(UNKNOWN);
    const UNKNOWN: u8 = 0;
    const YES: u8 = 1;
    const NO: u8 = 2;
    match KNOWN.load(Ordering::Relaxed) {
        YES => true,
        NO => false,
        _ => {
            let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
            // Out of descriptors, say: that tells nothing.
            let Ok(addr) = listener
                .as_ref()
                .map_err(drop)
                .and_then(|l| l.local_addr().map_err(drop))
            else {
                return false;
            };
            let works = matches!(sock_diag::listener(addr), Ok(Some(_)));
            KNOWN.store(if works { YES } else { NO }, Ordering::Relaxed);
            works
        }
    }
}

/// The sockets that a connection to this address could reach: the most particular ones. `None` where the kernel does not tell.
fn answering(addr: SocketAddr) -> Option<Vec<Socket>> {
    let all = all_listeners(addr.port())?;
    Some(most_particular(all, addr))
}

fn most_particular(all: Vec<Socket>, addr: SocketAddr) -> Vec<Socket> {
    let best = all.iter().filter_map(|socket| particularity(socket, addr)).max();
    all.into_iter()
        .filter(|socket| best.is_some() && particularity(socket, addr) == best)
        .collect()
}

/// All sockets that listen on a port (0: any), asked of the kernel or, where that does not work, read from its table.
fn all_listeners(port: u16) -> Option<Vec<Socket>> {
    #[cfg(all(target_os = "linux", not(mirakuru_portable)))]
    {
        match sock_diag::on_port(port, States::Listening) {
            Ok(found) if !found.is_empty() || diag_works() => Some(found),
            _ => procfs::tcp_listeners(port),
        }
    }
    #[cfg(any(not(target_os = "linux"), mirakuru_portable))]
    procfs::tcp_listeners(port)
}

/// The sockets that are, or stand, in the way of a server that wants this address: listeners first, else what is bound to it
/// or connected from it.
pub(crate) fn in_the_way(addr: SocketAddr) -> Vec<Socket> {
    let found = listeners_in_the_way(addr);
    if !found.is_empty() {
        return found;
    }
    #[cfg(all(target_os = "linux", not(mirakuru_portable)))]
    let found = overlapping(
        sock_diag::on_port(addr.port(), States::Any).unwrap_or_default(),
        addr,
    );
    found
}

/// The listening ones of them.
pub(crate) fn listeners_in_the_way(addr: SocketAddr) -> Vec<Socket> {
    overlapping(all_listeners(addr.port()).unwrap_or_default(), addr)
}

fn overlapping(sockets: Vec<Socket>, addr: SocketAddr) -> Vec<Socket> {
    sockets
        .into_iter()
        .filter(|socket| overlaps(socket, addr))
        .collect()
}

/// Whether somebody listens on this address, or on another that a server on this one would exclude.
pub(crate) fn is_taken(addr: SocketAddr) -> bool {
    all_listeners(addr.port())
        .unwrap_or_default()
        .iter()
        .any(|socket| overlaps(socket, addr))
}

/// How particularly a listener serves an address: `None`, not at all. Of several, the kernel picks the highest.
fn particularity(socket: &Socket, addr: SocketAddr) -> Option<u8> {
    let (here, wanted) = (socket.addr.ip(), addr.ip());
    let is_its_scope = match (socket.addr, addr) {
        (SocketAddr::V6(here), SocketAddr::V6(wanted)) => {
            here.scope_id() == 0 || wanted.scope_id() == 0 || here.scope_id() == wanted.scope_id()
        }
        _ => true,
    };
    match (here, wanted) {
        (here, wanted) if here == wanted && is_its_scope => Some(4),
        // ::ffff:127.0.0.1
        (here, wanted) if here.to_canonical() == wanted => Some(3),
        (IpAddr::V4(here), IpAddr::V4(_)) if here.is_unspecified() => Some(2),
        // [::], which serves IPv4 too, unless it says that it does not.
        (IpAddr::V6(here), IpAddr::V4(_)) if here.is_unspecified() && socket.v6_only != Some(true) => Some(1),
        (IpAddr::V6(here), IpAddr::V6(_)) if here.is_unspecified() && is_its_scope => Some(1),
        _ => None,
    }
}

/// Whether a socket and a server on this address exclude each other.
fn overlaps(socket: &Socket, addr: SocketAddr) -> bool {
    let wanted = SocketAddr::new(addr.ip().to_canonical(), addr.port());
    let same_family = socket.addr.ip().to_canonical().is_ipv4() == wanted.is_ipv4();
    particularity(socket, wanted).is_some() || (wanted.ip().is_unspecified() && same_family)
}

#[cfg(all(test, target_os = "linux", not(mirakuru_portable)))]
mod tests {
    use std::net::TcpListener;
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::sys::sockets::tests::{listen_v6, tcp};
    use crate::sys::tests::in_time;
    use crate::util::own_process::test_name;

    fn v4(port: u16) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, port))
    }

    fn v6(port: u16) -> SocketAddr {
        SocketAddr::from((Ipv6Addr::LOCALHOST, port))
    }

    fn any(port: u16) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))
    }

    /// Every answer three ways: the exact lookup, the dump, and a connection that is really made.
    #[track_caller]
    fn check(addr: SocketAddr, expected: bool) {
        assert_eq!(listening(addr).unwrap(), expected, "lookup of {addr}");
        let addr = canonical(addr);
        assert_eq!(!answering(addr).unwrap().is_empty(), expected, "dump for {addr}");
        assert_eq!(
            connect(addr, Duration::from_secs(5)).is_ok(),
            expected,
            "connection to {addr}"
        );
    }

    /// A python that runs the script, with `port` as the port that it printed.
    struct Python {
        child: Child,
        port: u16,
    }

    impl Python {
        fn run(script: &str) -> Python {
            use std::io::BufRead;
            let mut child = Command::new("python3")
                .args(["-c", script])
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
            for pid in procfs::tree(self.child.id()).into_iter().skip(1) {
                let _ = Command::new("kill")
                    .args(["-9", &pid.to_string()])
                    .stderr(Stdio::null())
                    .status();
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    #[test]
    fn an_address_is_served_by_its_own_listener_only() {
        let (_held, port) = tcp(v4(0), true, false, None, true).unwrap();
        check(v4(port), true);
        check(SocketAddr::from(([127, 0, 0, 2], port)), false);
        check(v6(port), false);
        check(any(port), true);
    }

    #[test]
    fn a_wildcard_serves_every_address_of_its_family() {
        let (_held, port) = tcp(any(0), true, false, None, true).unwrap();
        check(v4(port), true);
        check(SocketAddr::from(([127, 1, 2, 3], port)), true);
        check(v6(port), false);
    }

    #[test]
    fn dual_stack_serves_both_and_v6_only_does_not() {
        let (_dual, port) = listen_v6(false);
        check(v4(port), true);
        check(v6(port), true);
        let (_only, port) = listen_v6(true);
        check(v4(port), false);
        check(v6(port), true);
    }

    #[test]
    fn a_mapped_address_is_the_ipv4_address() {
        let mapped = "[::ffff:127.0.0.1]:0".parse().unwrap();
        let (_held, port) = tcp(mapped, true, false, Some(false), true).unwrap();
        check(v4(port), true);
        check(SocketAddr::new("::ffff:127.0.0.1".parse().unwrap(), port), true);
        check(v6(port), false);
    }

    #[test]
    fn bound_is_not_listening() {
        let (_held, port) = tcp(v4(0), true, false, None, false).unwrap();
        check(v4(port), false);
    }

    #[test]
    fn a_full_backlog_listens() {
        let (_held, port) = tcp(v4(0), true, false, None, true).unwrap();
        // The backlog is one: the third connection is not answered any more.
        let waiting: Vec<_> = (0..6)
            .map(|_| connect(v4(port), Duration::from_millis(100)))
            .collect();
        assert!(waiting.iter().any(Result::is_err));
        assert!(listening(v4(port)).unwrap());
        assert!(owned_by_tree(v4(port), std::process::id()).unwrap());
    }

    #[test]
    fn time_wait_is_nobody() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let client = connect(addr, Duration::from_secs(5)).unwrap();
        drop(listener.accept().unwrap());
        drop((client, listener));
        check(addr, false);
        assert!(matches!(owner(addr, std::process::id()).unwrap(), Owner::Nobody));
    }

    #[test]
    fn the_tables_say_what_the_kernel_says() {
        let (_held, port) = tcp(v4(0), true, false, None, true).unwrap();
        let asked = all_listeners(port).unwrap();
        assert_eq!(procfs::tcp_listeners(port).unwrap(), asked);
        let (_held, port) = listen_v6(true);
        let mut asked = all_listeners(port).unwrap();
        asked[0].v6_only = None;
        assert_eq!(procfs::tcp_listeners(port).unwrap(), asked);
    }

    #[test]
    fn the_more_particular_listener_is_the_one_that_answers() {
        let socket = |addr: &str, v6_only, inode| Socket {
            addr: addr.parse().unwrap(),
            v6_only,
            listening: true,
            uid: 0,
            inode,
        };
        let all = vec![
            socket("[::]:80", Some(false), 1),
            socket("0.0.0.0:80", None, 2),
            socket("[::ffff:127.0.0.1]:80", Some(false), 3),
            socket("127.0.0.1:80", None, 4),
            socket("127.0.0.2:80", None, 5),
            socket("127.0.0.1:80", None, 6),
        ];
        let answering = |all: &[Socket], addr: &str| -> Vec<u64> {
            most_particular(all.to_vec(), addr.parse().unwrap())
                .iter()
                .map(|socket| socket.inode)
                .collect()
        };
        assert_eq!(answering(&all, "127.0.0.1:80"), [4, 6]);
        assert_eq!(answering(&all, "127.0.0.2:80"), [5]);
        assert_eq!(answering(&all, "127.0.0.3:80"), [2]);
        assert_eq!(answering(&all[..3], "127.0.0.1:80"), [3]);
        assert_eq!(answering(&all[..1], "127.0.0.1:80"), [1]);
        assert_eq!(answering(&all, "[::1]:80"), [1]);
        assert_eq!(answering(&[socket("[::]:80", Some(true), 1)], "127.0.0.1:80"), []);
    }

    #[test]
    fn own_listener_belongs_to_the_tree() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        assert!(owned_by_tree(addr, std::process::id()).unwrap());
        assert!(addresses_of_tree(std::process::id()).contains(&addr));
        drop(listener);
        in_time(|| !owned_by_tree(addr, std::process::id()).unwrap());
    }

    #[test]
    fn a_listener_of_a_child_belongs_to_the_parents_tree() {
        let child = Python::listener();
        assert!(owned_by_tree(v4(child.port), std::process::id()).unwrap());
        assert!(owned_by_tree(v4(child.port), child.pid()).unwrap());
        assert_eq!(addresses_of_tree(child.pid()), [v4(child.port)]);
    }

    #[test]
    fn a_stranger_is_named() {
        let wrong_listener = Python::listener();
        // The tree of a process that has nothing to do with it.
        let tree = Command::new("sleep").arg("60").spawn().unwrap();
        let mut tree = Python { child: tree, port: 0 };
        let error = owned_by_tree(v4(wrong_listener.port), tree.pid()).unwrap_err();
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
        // A tree whose root is gone has nobody.
        tree.child.kill().unwrap();
        tree.child.wait().unwrap();
        assert!(owned_by_tree(v4(wrong_listener.port), tree.pid()).is_err());
    }

    #[test]
    fn this_process_can_be_the_stranger() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut tree = Python {
            child: Command::new("sleep").arg("60").spawn().unwrap(),
            port: listener.local_addr().unwrap().port(),
        };
        // `sleep` inherits nothing, the listener is close-on-exec; the first look may still see it before the exec.
        while std::fs::read_link(format!("/proc/{}/exe", tree.pid())).unwrap()
            == std::env::current_exe().unwrap()
        {
            thread::sleep(Duration::from_millis(1));
        }
        let error = owned_by_tree(v4(tree.port), tree.pid()).unwrap_err().to_string();
        assert!(
            error.contains(&format!("(pid {})", std::process::id())),
            "{error}"
        );
        tree.child.kill().unwrap();
    }

    #[test]
    fn a_port_shared_with_a_stranger_is_not_ours() {
        let (_ours, port) = tcp(v4(0), false, true, None, true).unwrap();
        let wrong_listener = Python::run(&format!(
            "import socket, time; s = socket.socket(); \
             s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1); s.bind(('127.0.0.1', {port})); s.listen(); \
             print({port}, flush=True); time.sleep(60)"
        ));
        // Both are ours, seen from this process; one only, seen from the python.
        assert!(owned_by_tree(v4(port), std::process::id()).unwrap());
        let Owner::WrongListener(seen) = owner(v4(port), wrong_listener.pid()).unwrap() else {
            panic!("not noticed")
        };
        assert!(seen.shared);
        assert_eq!(seen.holder.pid, Some(std::process::id()));
    }

    #[test]
    fn a_daemon_that_forks_all_the_time_is_never_accused() {
        // The listener is handed from parent to child, over and over; each parent ends. The first process adopts them.
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
            assert!(owned_by_tree(v4(tree.port), tree.pid()).unwrap());
            polls += 1;
        }
        assert!(polls > 10, "{polls} looks");
    }

    #[test]
    fn a_socket_that_only_a_late_thread_has_is_found() {
        // The first thread ends; from then on /proc/PID/fd is empty, and the descriptors are the other thread's.
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
        assert!(owned_by_tree(v4(tree.port), tree.pid()).unwrap());
    }

    #[test]
    fn a_tree_of_another_user_gets_the_benefit_of_the_doubt() {
        use std::os::unix::process::CommandExt;
        const NOBODY: u32 = 65534;
        // This test runs itself once more, as a user who may not look into root's processes, and reads what that one sees.
        if let Ok(what) = std::env::var("MIRAKURU_TEST_LOOK") {
            match what.split_once(' ') {
                Some((port, root)) => println!(
                    "SEEN {:?}",
                    owner(v4(port.parse().unwrap()), root.parse().unwrap())
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
        // Nobody may not be able to reach the directory that this program is in.
        let copy = std::env::temp_dir().join(format!("mk-look-{}", std::process::id()));
        std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
        let as_nobody = |what: String| {
            let mut command = Command::new(&copy);
            command
                .args(["--exact", "--nocapture"])
                .arg(test_name!(a_tree_of_another_user_gets_the_benefit_of_the_doubt))
                .env("MIRAKURU_TEST_LOOK", what)
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
        // A server of nobody's own, which nobody can see, is a stranger to root's service, which nobody cannot look into.
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

    #[test]
    fn local_addresses_are_told_from_others() {
        for local in ["127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "::"] {
            assert!(is_local(local.parse().unwrap()), "{local}");
        }
        // Addresses set aside for documentation.
        for remote in ["192.0.2.1", "2001:db8::1"] {
            assert!(!is_local(remote.parse().unwrap()), "{remote}");
        }
    }

    #[test]
    fn a_connection_to_itself_is_none() {
        let own = crate::sys::sockets::tests::connected_to_itself();
        let addr = own.local_addr().unwrap();
        assert_eq!(own.peer_addr().unwrap(), addr);
        assert!(!listening(addr).unwrap());
        assert!(not_itself(own).is_err());
    }
}
