//! Asks the kernel about TCP and UDP sockets, through `NETLINK_SOCK_DIAG`.
//!
//! There are two kinds of request. Probes use the *exact lookup*, which finds the one socket that
//! an incoming connection would reach (2 to 3 µs). Ownership checks and error messages use the
//! *dump*, which lists all sockets of one port (10 µs for listeners). Neither opens a connection,
//! so the service does not notice it.
//!
//! Each thread keeps one netlink socket open until the thread ends, so no lock is needed. A forked
//! child inherits a copy of the socket, whose answers would mix with the parent's. So the process
//! id is stored with the socket, and a child closes its copy. The socket sees the network namespace
//! in which the thread first used it.
//!
//! Requests and answers are flat structs of `linux/netlink.h` and `linux/inet_diag.h`. The code
//! writes and reads them byte by byte. This needs no `unsafe`, and cannot read past the end of a
//! short answer.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use libc::{AF_INET, AF_INET6, c_int};

use super::{Protocol, Socket, raw_socket};

/// `struct nlmsghdr`: length, type, flags, sequence, port id.
const HEADER: usize = 16;
/// `struct inet_diag_req_v2`: family, protocol, extensions, padding, states, socket id (48 bytes).
const REQUEST: usize = 56;
/// `struct inet_diag_msg`: family, state, timer, retransmissions, socket id (48 bytes), expires,
/// queues, uid, inode.
const ANSWER: usize = 72;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_DUMP: u16 = 0x300;
/// The attribute that reports whether an IPv6 listener accepts only IPv6.
const INET_DIAG_SKV6ONLY: u16 = 11;
const TCP_LISTEN: u8 = 10;
/// The state of a UDP socket that is bound and not connected.
const UDP_BOUND: u8 = 7;
/// Index of the loopback interface in every network namespace. Local connections to *any* address
/// of this machine arrive through this interface. So a lookup with this index also finds sockets
/// that `SO_BINDTODEVICE` has bound to the interface.
const LOOPBACK: u32 = 1;

/// The states of the sockets that a dump lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum States {
    /// Sockets that listen or accept datagrams. For TCP, this dump takes 10 µs.
    Listening,
    /// All sockets except those in TIME_WAIT. Sockets that are only bound are listed since Linux
    /// 6.8. This dump takes milliseconds.
    Any,
}

impl States {
    fn mask(self, protocol: Protocol) -> u32 {
        const TIME_WAIT: u32 = 6;
        match (self, protocol) {
            (States::Listening, Protocol::Tcp) => 1 << TCP_LISTEN,
            (States::Listening, Protocol::Udp) => 1 << UDP_BOUND,
            (States::Any, Protocol::Tcp) => !(1 << TIME_WAIT),
            (States::Any, Protocol::Udp) => u32::MAX,
        }
    }
}

/// The socket that a connection or a datagram from this machine to `addr` would reach. A TCP socket
/// counts only if it listens, even with a full backlog.
///
/// Also `None` if the kernel lacks the `tcp_diag` or `udp_diag` module; `ports/table.rs` checks for
/// that.
pub(crate) fn listener(protocol: Protocol, addr: SocketAddr) -> io::Result<Option<Socket>> {
    with_socket(|diag| diag.lookup(protocol, addr))
}

/// The IPv4 and IPv6 sockets of one local port, or of every port if `port` is 0.
pub(crate) fn on_port(protocol: Protocol, port: u16, states: States) -> io::Result<Vec<Socket>> {
    with_socket(|diag| {
        let mut found = Vec::new();
        for family in [AF_INET, AF_INET6] {
            diag.dump(protocol, family, port, states, &mut found)?;
        }
        Ok(found)
    })
}

struct Diag {
    /// The netlink socket. It is a `File`, because `read` and `write` are enough.
    fd: File,
    /// The process that opened the socket.
    process: u32,
    sequence: u32,
    buffer: Vec<u8>,
}

thread_local! {
    static DIAG: RefCell<Option<Diag>> = const { RefCell::new(None) };
}

/// Runs one exchange on this thread's socket. Closes the socket after an error, so that no unread
/// answer disturbs the next exchange.
fn with_socket<T>(exchange: impl FnOnce(&mut Diag) -> io::Result<T>) -> io::Result<T> {
    // Uses `try_with` and `take`, because a thread that is exiting may drop a fixture after its
    // thread-local values are gone.
    let kept = DIAG.try_with(RefCell::take).unwrap_or(None);
    let mut diag = match kept {
        Some(diag) if diag.process == std::process::id() => diag,
        _ => Diag::open()?,
    };
    let answer = exchange(&mut diag)?;
    let _ = DIAG.try_with(|cell| cell.replace(Some(diag)));
    Ok(answer)
}

impl Diag {
    fn open() -> io::Result<Diag> {
        let fd = raw_socket::socket(libc::AF_NETLINK, libc::SOCK_DGRAM, libc::NETLINK_SOCK_DIAG)?;
        // The kernel answers before `write` returns. The limit is for sandboxes that imitate the
        // kernel and may never answer.
        raw_socket::set_receive_timeout(&fd, 1)?;
        Ok(Diag {
            fd: fd.into(),
            process: std::process::id(),
            sequence: 0,
            buffer: vec![0; 32 * 1024],
        })
    }

    fn lookup(&mut self, protocol: Protocol, addr: SocketAddr) -> io::Result<Option<Socket>> {
        let interface = match addr {
            SocketAddr::V6(v6) if v6.scope_id() != 0 => v6.scope_id(),
            _ => LOOPBACK,
        };
        let question = Question {
            protocol,
            family: raw_socket::family(&addr),
            flags: 0,
            states: u32::MAX,
            port: addr.port(),
            addr: Some(addr.ip()),
            interface,
        };
        let mut found = None;
        self.exchange(question, &mut |socket| found = Some(socket))?;
        Ok(found.filter(|socket| socket.listening))
    }

    fn dump(
        &mut self,
        protocol: Protocol,
        family: c_int,
        port: u16,
        states: States,
        found: &mut Vec<Socket>,
    ) -> io::Result<()> {
        let question = Question {
            protocol,
            family,
            flags: NLM_F_DUMP,
            states: states.mask(protocol),
            port,
            addr: None,
            interface: 0,
        };
        self.exchange(question, &mut |socket| {
            // The request names the port, but a sandbox that imitates the kernel may return more.
            if port == 0 || socket.addr.port() == port {
                found.push(socket);
            }
        })
    }

    /// Sends a question, and calls `each` with every socket in the answer.
    fn exchange(&mut self, question: Question, each: &mut dyn FnMut(Socket)) -> io::Result<()> {
        let Question {
            protocol,
            family,
            flags,
            ..
        } = question;
        self.ask(question)?;
        loop {
            let length = self.receive()?;
            for message in Messages(&self.buffer[..length]) {
                if message.sequence != self.sequence {
                    continue;
                }
                match message.kind {
                    NLMSG_DONE if flags == NLM_F_DUMP => return Ok(()),
                    NLMSG_ERROR => {
                        return match message.errno() {
                            // There is no such socket, or the kernel has no IPv6.
                            libc::ENOENT if flags != NLM_F_DUMP || family == AF_INET6 => Ok(()),
                            errno => Err(io::Error::from_raw_os_error(errno)),
                        };
                    }
                    SOCK_DIAG_BY_FAMILY => {
                        each(parse(protocol, message.body).ok_or_else(malformed)?);
                        if flags != NLM_F_DUMP {
                            return Ok(());
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    fn ask(&mut self, question: Question) -> io::Result<()> {
        let Question {
            protocol,
            family,
            flags,
            states,
            port,
            addr,
            interface,
        } = question;
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = [0u8; HEADER + REQUEST];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            request[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(&((HEADER + REQUEST) as u32).to_ne_bytes());
        put(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        put(&(NLM_F_REQUEST | flags).to_ne_bytes());
        put(&self.sequence.to_ne_bytes());
        put(&0u32.to_ne_bytes());
        let number = match protocol {
            Protocol::Tcp => libc::IPPROTO_TCP,
            Protocol::Udp => libc::IPPROTO_UDP,
        };
        put(&[family as u8, number as u8, 0, 0]);
        put(&states.to_ne_bytes());
        // In the socket id, the local address comes first, and the remote address is zero. For the
        // lookup of a UDP socket, the kernel expects the two in reverse order. A dump compares only
        // the local port.
        let mut ports = [port.to_be_bytes(), [0; 2]];
        let is_swapped = protocol == Protocol::Udp && addr.is_some();
        if is_swapped {
            ports.swap(0, 1);
        }
        put(&ports.concat());
        let mut source = [0u8; 16];
        match addr {
            Some(IpAddr::V4(v4)) => source[..4].copy_from_slice(&v4.octets()),
            Some(IpAddr::V6(v6)) => source = v6.octets(),
            None => {}
        }
        let mut sides = [source, [0; 16]];
        if is_swapped {
            sides.swap(0, 1);
        }
        put(&sides.concat());
        put(&interface.to_ne_bytes());
        // The cookie INET_DIAG_NOCOOKIE matches any socket.
        put(&[0xff; 8]);
        // The request is one datagram, so the kernel accepts all of it or nothing.
        self.fd.write(&request).map(drop)
    }

    fn receive(&mut self) -> io::Result<usize> {
        loop {
            match self.fd.read(&mut self.buffer) {
                Ok(0) => return Err(malformed()),
                Ok(length) => return Ok(length),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

/// A request for sockets.
struct Question {
    protocol: Protocol,
    family: c_int,
    flags: u16,
    states: u32,
    port: u16,
    /// The address to look up; `None` for a dump.
    addr: Option<IpAddr>,
    interface: u32,
}

fn malformed() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the kernel's answer about sockets was not understood",
    )
}

struct Message<'a> {
    kind: u16,
    sequence: u32,
    body: &'a [u8],
}

impl Message<'_> {
    /// The error number, which an NLMSG_ERROR contains as a negative number.
    fn errno(&self) -> c_int {
        get(self.body, 0).map_or(0, |code| -i32::from_ne_bytes(code))
    }
}

/// The messages of one answer. Stops before a message with a wrong length.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let length = u32::from_ne_bytes(get(self.0, 0)?) as usize;
        let kind = u16::from_ne_bytes(get(self.0, 4)?);
        let sequence = u32::from_ne_bytes(get(self.0, 8)?);
        let body = self.0.get(HEADER..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message { kind, sequence, body })
    }
}

fn get<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn parse(protocol: Protocol, body: &[u8]) -> Option<Socket> {
    let [family, state] = get(body, 0)?;
    let port = u16::from_be_bytes(get(body, 4)?);
    let addr = match i32::from(family) {
        AF_INET => SocketAddr::from((Ipv4Addr::from(get::<4>(body, 8)?), port)),
        AF_INET6 => {
            let interface = u32::from_ne_bytes(get(body, 40)?);
            let ip = Ipv6Addr::from(get::<16>(body, 8)?);
            SocketAddr::from(SocketAddrV6::new(ip, port, 0, interface))
        }
        _ => return None,
    };
    let uid = u32::from_ne_bytes(get(body, 64)?);
    let inode = u64::from(u32::from_ne_bytes(get(body, 68)?));
    let mut v6_only = None;
    let mut attributes = body.get(ANSWER..)?;
    while let Some(length) = get(attributes, 0).map(u16::from_ne_bytes) {
        let length = usize::from(length);
        if length < 4 {
            break;
        }
        let kind = u16::from_ne_bytes(get(attributes, 2)?);
        if kind == INET_DIAG_SKV6ONLY {
            v6_only = attributes.get(4).map(|flag| *flag != 0);
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(Socket {
        addr,
        v6_only,
        listening: state
            == match protocol {
                Protocol::Tcp => TCP_LISTEN,
                Protocol::Udp => UDP_BOUND,
            },
        uid,
        inode,
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::sys::tests::in_time;

    #[test]
    fn finds_the_listener_and_only_while_it_listens() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let found = super::listener(Protocol::Tcp, addr).unwrap().expect("a listener");
        assert_eq!(found.addr, addr);
        assert!(found.listening);
        assert_ne!(found.inode, 0);
        // Other sockets may use the same port on other addresses.
        let dumped = || {
            let mut dumped = on_port(Protocol::Tcp, addr.port(), States::Listening).unwrap();
            dumped.retain(|socket| socket.addr == addr);
            dumped
        };
        assert_eq!(dumped().len(), 1);
        assert_eq!(dumped()[0].inode, found.inode);
        drop(listener);
        in_time(|| super::listener(Protocol::Tcp, addr).unwrap().is_none() && dumped().is_empty());
    }

    #[test]
    fn tells_a_v6_only_listener_from_a_dual_stack_one() {
        for only in [true, false] {
            // Another process may use the same port on IPv4, so this tries several ports.
            let mut tries = (0..100).map(|_| crate::sys::sockets::tests::listen_v6(only));
            let (_held, port, dumped) = tries
                .find_map(|(held, port)| {
                    let dumped = on_port(Protocol::Tcp, port, States::Listening).unwrap();
                    (dumped.len() == 1).then_some((held, port, dumped))
                })
                .expect("a port that is this test's alone");
            assert_eq!(dumped[0].v6_only, Some(only));
            let v4 = SocketAddr::from(([127, 0, 0, 1], port));
            assert_eq!(super::listener(Protocol::Tcp, v4).unwrap().is_some(), !only);
            let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
            assert!(super::listener(Protocol::Tcp, v6).unwrap().is_some());
        }
    }

    #[test]
    fn finds_a_udp_socket() {
        for ip in ["127.0.0.1", "::1"] {
            let Ok(socket) = std::net::UdpSocket::bind((ip, 0)) else {
                continue; // this machine has no IPv6
            };
            let addr = socket.local_addr().unwrap();
            let found = super::listener(Protocol::Udp, addr)
                .unwrap()
                .expect("it is bound");
            assert_eq!((found.addr, found.listening), (addr, true));
            let mut dumped = on_port(Protocol::Udp, addr.port(), States::Listening).unwrap();
            dumped.retain(|socket| socket.addr == addr);
            assert_eq!(dumped, [found]);
            drop(socket);
            in_time(|| super::listener(Protocol::Udp, addr).unwrap().is_none());
        }
    }

    #[test]
    fn a_dump_longer_than_the_buffer_is_read_to_its_end() {
        // The answer for one socket takes about 100 bytes, so these sockets need several reads.
        let held: Vec<_> = (0..500)
            .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        let ports: std::collections::HashSet<u16> = on_port(Protocol::Tcp, 0, States::Listening)
            .unwrap()
            .iter()
            .map(|socket| socket.addr.port())
            .collect();
        for listener in &held {
            assert!(ports.contains(&listener.local_addr().unwrap().port()));
        }
    }

    #[test]
    fn an_answer_cut_short_is_no_panic() {
        let mut whole = vec![0u8; ANSWER + 8];
        whole[0] = AF_INET6 as u8;
        whole[ANSWER] = 5;
        whole[ANSWER + 2] = INET_DIAG_SKV6ONLY as u8;
        whole[ANSWER + 4] = 1;
        assert_eq!(parse(Protocol::Tcp, &whole).unwrap().v6_only, Some(true));
        for length in 0..ANSWER {
            assert_eq!(parse(Protocol::Tcp, &whole[..length]), None);
        }
        for length in ANSWER..whole.len() {
            let _ = parse(Protocol::Tcp, &whole[..length]);
        }
        // The message states a length that is too large or too small.
        for said in [0u32, 3, 15, 17, 1 << 20, u32::MAX] {
            let mut message = [0u8; 32];
            message[..4].copy_from_slice(&said.to_ne_bytes());
            assert!(Messages(&message).count() <= 1);
        }
    }

    #[test]
    fn a_thread_keeps_one_socket_and_closes_it_at_its_end() {
        // The kept socket's inode in `/proc`. Unlike a descriptor's number, it is not reused
        // immediately.
        let kept = || {
            on_port(Protocol::Tcp, 1, States::Listening).unwrap();
            let fd = DIAG.with_borrow(|diag| diag.as_ref().unwrap().fd.as_raw_fd());
            std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap()
        };
        let link = std::thread::spawn(move || {
            let first = kept();
            assert_eq!(first, kept());
            first
        })
        .join()
        .unwrap();
        let is_open = std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
            .any(|open| open == link);
        assert!(!is_open);
    }

    #[test]
    fn a_copy_of_another_process_is_not_used() {
        std::thread::spawn(|| {
            on_port(Protocol::Tcp, 1, States::Listening).unwrap();
            // Simulates a child after a fork.
            let other = DIAG.with_borrow_mut(|diag| {
                let diag = diag.as_mut().unwrap();
                diag.process += 1;
                diag.process
            });
            on_port(Protocol::Tcp, 1, States::Listening).unwrap();
            let now = DIAG.with_borrow(|diag| diag.as_ref().unwrap().process);
            assert_eq!((now, other), (std::process::id(), std::process::id() + 1));
        })
        .join()
        .unwrap();
    }

    #[test]
    fn an_error_leaves_no_socket_behind() {
        std::thread::spawn(|| {
            on_port(Protocol::Tcp, 1, States::Listening).unwrap();
            with_socket(|_| Err::<(), _>(malformed())).unwrap_err();
            assert!(DIAG.with_borrow(Option::is_none));
            on_port(Protocol::Tcp, 1, States::Listening).unwrap();
        })
        .join()
        .unwrap();
    }
}
