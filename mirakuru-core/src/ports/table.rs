//! Lists the sockets on a port of this machine without connecting to it.
//!
//! A connection would not go unnoticed: PostgreSQL, for example, logs an incomplete startup packet
//! for each connection that sends nothing.
//!
//! Only the most specific sockets get connections: `127.0.0.1` takes precedence over `0.0.0.0`, and
//! `0.0.0.0` over a `[::]` that also serves IPv4.
//!
//! If the kernel cannot be asked (no `tcp_diag` module, a sandbox, not Linux), a connection attempt
//! shows whether a process listens, and `/proc/net/tcp` lists the sockets.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use crate::ports::address::canonical;
use crate::sys::procfs;
#[cfg(all(target_os = "linux", not(mirakuru_portable)))]
use crate::sys::sock_diag::{self, States};
use crate::sys::{Protocol, Socket};
use crate::util::deadline::scaled;

/// Time limit for a connection to this machine. A connection has to wait only if the backlog is
/// full.
const LOCAL_CONNECT: Duration = Duration::from_millis(500);

/// Whether a process listens on this local address, or receives datagrams there.
pub(crate) fn listening(protocol: Protocol, addr: SocketAddr) -> io::Result<bool> {
    let addr = canonical(addr);
    #[cfg(all(target_os = "linux", not(mirakuru_portable)))]
    match sock_diag::listener(protocol, addr) {
        Ok(Some(_)) => return Ok(true),
        Ok(None) if diag_works(protocol) => return Ok(false),
        _ => {}
    }
    match protocol {
        Protocol::Tcp => Ok(connect(addr, scaled(LOCAL_CONNECT)).is_ok()),
        Protocol::Udp => Ok(answering(protocol, addr).is_some_and(|found| !found.is_empty())),
    }
}

/// The inodes of sockets.
pub(crate) fn inodes(sockets: &[Socket]) -> Vec<u64> {
    sockets.iter().map(|socket| socket.inode).collect()
}

/// Checks, without sending anything, that this process can reach a local address. Fails if, for
/// example, the loopback interface is down.
pub(crate) fn check_route(addr: SocketAddr) -> io::Result<()> {
    let any = match addr {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    // Connecting a UDP socket looks up the route, but sends nothing.
    let Ok(socket) = UdpSocket::bind(any) else {
        return Ok(());
    };
    socket.connect(addr).map_err(|error| {
        let text = format!("it listens on {addr}, but this process cannot reach it: {error}");
        let remedy = match addr.ip().is_loopback() {
            true => "; is the loopback interface up (`ip link set lo up`)?",
            false => "",
        };
        io::Error::new(io::ErrorKind::NetworkUnreachable, text + remedy)
    })
}

/// Connects, and checks that the socket has not connected to itself.
///
/// If no process listens on a local ephemeral port, a client's socket can connect to itself,
/// because the kernel may choose that very port for the client.
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

/// Whether the kernel's answer "there is no such socket" can be trusted. A kernel without the
/// `tcp_diag` module gives this answer for every socket. Tested once, with a socket of this
/// process.
#[cfg(all(target_os = "linux", not(mirakuru_portable)))]
fn diag_works(protocol: Protocol) -> bool {
    use std::net::TcpListener;
    use std::os::fd::OwnedFd;
    use std::sync::atomic::{AtomicU8, Ordering};
    static KNOWN: [AtomicU8; 2] = [const { AtomicU8::new(UNKNOWN) }; 2];
    let known = &KNOWN[protocol as usize];
    const UNKNOWN: u8 = 0;
    const YES: u8 = 1;
    const NO: u8 = 2;
    match known.load(Ordering::Relaxed) {
        YES => true,
        NO => false,
        _ => {
            let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
            let own = match protocol {
                Protocol::Tcp => TcpListener::bind(any)
                    .and_then(|socket| Ok((socket.local_addr()?, OwnedFd::from(socket)))),
                Protocol::Udp => {
                    UdpSocket::bind(any).and_then(|socket| Ok((socket.local_addr()?, OwnedFd::from(socket))))
                }
            };
            // If no socket can be created, for example for lack of descriptors, the result stays
            // unknown.
            let Ok((addr, _socket)) = own else {
                return false;
            };
            let works = matches!(sock_diag::listener(protocol, addr), Ok(Some(_)));
            known.store(if works { YES } else { NO }, Ordering::Relaxed);
            works
        }
    }
}

/// The most specific sockets for an address, which get its connections. `None` if sockets cannot be
/// listed.
pub(crate) fn answering(protocol: Protocol, addr: SocketAddr) -> Option<Vec<Socket>> {
    let all = all_listeners(protocol, addr.port())?;
    Some(most_particular(all, addr))
}

fn most_particular(mut all: Vec<Socket>, addr: SocketAddr) -> Vec<Socket> {
    let best = all.iter().filter_map(|socket| particularity(socket, addr)).max();
    all.retain(|socket| best.is_some() && particularity(socket, addr) == best);
    all
}

/// All sockets that listen on a port, or on any port if `port` is 0. If the kernel cannot be asked,
/// reads the tables in `/proc`.
pub(crate) fn all_listeners(protocol: Protocol, port: u16) -> Option<Vec<Socket>> {
    #[cfg(all(target_os = "linux", not(mirakuru_portable)))]
    {
        match sock_diag::on_port(protocol, port, States::Listening) {
            Ok(found) if !found.is_empty() || diag_works(protocol) => Some(found),
            _ => procfs::listeners(protocol, port),
        }
    }
    #[cfg(any(not(target_os = "linux"), mirakuru_portable))]
    procfs::listeners(protocol, port)
}

/// The sockets that prevent a server from binding this address. Returns only listeners if there are
/// any, otherwise sockets that are bound to the address or connected from it.
pub(crate) fn in_the_way(protocol: Protocol, addr: SocketAddr) -> Vec<Socket> {
    let found = listeners_in_the_way(protocol, addr);
    if !found.is_empty() {
        return found;
    }
    #[cfg(all(target_os = "linux", not(mirakuru_portable)))]
    let found = overlapping(
        sock_diag::on_port(protocol, addr.port(), States::Any).unwrap_or_default(),
        addr,
    );
    found
}

/// The listeners among the sockets of [`in_the_way`].
pub(crate) fn listeners_in_the_way(protocol: Protocol, addr: SocketAddr) -> Vec<Socket> {
    overlapping(all_listeners(protocol, addr.port()).unwrap_or_default(), addr)
}

fn overlapping(mut sockets: Vec<Socket>, addr: SocketAddr) -> Vec<Socket> {
    sockets.retain(|socket| overlaps(socket, addr));
    sockets
}

/// Whether a process listens on this address, or on one that prevents a server from binding it.
pub(crate) fn is_taken(protocol: Protocol, addr: SocketAddr) -> bool {
    !listeners_in_the_way(protocol, addr).is_empty()
}

/// How specifically a listener serves an address, as a rank. `None` if it does not serve the
/// address. The listener with the highest rank gets the connections.
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
        // An IPv4 address mapped into IPv6, such as ::ffff:127.0.0.1.
        (here, wanted) if here.to_canonical() == wanted => Some(3),
        (IpAddr::V4(here), IpAddr::V4(_)) if here.is_unspecified() => Some(2),
        // [::] also serves IPv4 unless IPV6_V6ONLY is set.
        (IpAddr::V6(here), IpAddr::V4(_)) if here.is_unspecified() && socket.v6_only != Some(true) => Some(1),
        (IpAddr::V6(here), IpAddr::V6(_)) if here.is_unspecified() && is_its_scope => Some(1),
        _ => None,
    }
}

/// Whether a socket prevents a server from binding this address.
fn overlaps(socket: &Socket, addr: SocketAddr) -> bool {
    let wanted = SocketAddr::new(addr.ip().to_canonical(), addr.port());
    let same_family = socket.addr.ip().to_canonical().is_ipv4() == wanted.is_ipv4();
    particularity(socket, wanted).is_some() || (wanted.ip().is_unspecified() && same_family)
}

#[cfg(all(test, target_os = "linux", not(mirakuru_portable)))]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::ports::owner::owned_by_tree;
    use crate::sys::sockets::tests::{listen_v6, tcp};
    use crate::sys::tests::in_time;

    fn v4(port: u16) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, port))
    }

    fn v6(port: u16) -> SocketAddr {
        SocketAddr::from((Ipv6Addr::LOCALHOST, port))
    }

    fn any(port: u16) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))
    }

    /// Checks the answers of three sources: the lookup, the dump, and a real connection.
    #[track_caller]
    fn check(addr: SocketAddr, expected: bool) {
        assert_eq!(
            listening(Protocol::Tcp, addr).unwrap(),
            expected,
            "lookup of {addr}"
        );
        let addr = canonical(addr);
        assert_eq!(
            !answering(Protocol::Tcp, addr).unwrap().is_empty(),
            expected,
            "dump for {addr}"
        );
        assert_eq!(
            connect(addr, Duration::from_secs(5)).is_ok(),
            expected,
            "connection to {addr}"
        );
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
        // The backlog is full after a few connections, and later ones get no answer.
        let waiting: Vec<_> = (0..6)
            .map(|_| connect(v4(port), Duration::from_millis(100)))
            .collect();
        assert!(waiting.iter().any(Result::is_err));
        assert!(listening(Protocol::Tcp, v4(port)).unwrap());
        assert!(owned_by_tree(Protocol::Tcp, v4(port), std::process::id()).unwrap());
    }

    #[test]
    fn time_wait_is_nobody() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let client = connect(addr, Duration::from_secs(5)).unwrap();
        drop(listener.accept().unwrap());
        drop((client, listener));
        // A process that another test has just forked may have a copy of the listener until it
        // executes its program.
        in_time(|| !listening(Protocol::Tcp, addr).unwrap());
        check(addr, false);
    }

    #[test]
    fn the_tables_say_what_the_kernel_says() {
        let (_held, port) = tcp(v4(0), true, false, None, true).unwrap();
        let asked = all_listeners(Protocol::Tcp, port).unwrap();
        assert_eq!(procfs::listeners(Protocol::Tcp, port).unwrap(), asked);
        let (_held, port) = listen_v6(true);
        let mut asked = all_listeners(Protocol::Tcp, port).unwrap();
        asked[0].v6_only = None;
        assert_eq!(procfs::listeners(Protocol::Tcp, port).unwrap(), asked);
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
    fn a_connection_to_itself_is_none() {
        let own = crate::sys::sockets::tests::connected_to_itself();
        let addr = own.local_addr().unwrap();
        assert_eq!(own.peer_addr().unwrap(), addr);
        assert!(!listening(Protocol::Tcp, addr).unwrap());
        assert!(not_itself(own).is_err());
    }
}
