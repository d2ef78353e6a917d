//! Socket operations that `std` lacks, such as a bind without listening, and a connect to a Unix
//! socket that never blocks.

use std::ffi::OsStr;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::Protocol;
use super::raw_socket::{
    Address, bind, connect, family, set_non_blocking, set_reuse_addr, set_v6_only, socket,
};

/// Binds to an address as most servers do, without listening, and closes the socket immediately.
/// TCP uses SO_REUSEADDR, UDP does not.
///
/// The error is `AddrInUse` if a server could not bind to the address. Connections in TIME_WAIT do
/// *not* cause this error. Nor does a socket that has SO_REUSEADDR and does not listen, such as one
/// that reserves a port for a later service.
pub(crate) fn try_bind(protocol: Protocol, addr: SocketAddr) -> io::Result<()> {
    let fd = match protocol {
        Protocol::Tcp => socket(family(&addr), libc::SOCK_STREAM, 0)?,
        Protocol::Udp => socket(family(&addr), libc::SOCK_DGRAM, 0)?,
    };
    set_reuse_addr(&fd, protocol == Protocol::Tcp)?;
    if addr.is_ipv6() {
        // A server on `[::]` that sets this option does not conflict with a socket on IPv4 alone.
        set_v6_only(&fd, true)?;
    }
    bind(&fd, &addr.into())
}

/// Whether a datagram socket keeps the messages that it receives.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Messages {
    Keep,
    /// The kernel discards each message, together with the descriptors in it. The sender does not
    /// notice.
    Discard,
}

/// Makes a socket keep or discard all later messages.
pub(crate) fn filter_messages(socket: BorrowedFd<'_>, messages: Messages) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        // The program returns the number of bytes of a message to keep: all, or none.
        let mut program = [libc::sock_filter {
            code: (libc::BPF_RET | libc::BPF_K) as u16,
            jt: 0,
            jf: 0,
            k: match messages {
                Messages::Keep => u32::MAX,
                Messages::Discard => 0,
            },
        }];
        let filter = libc::sock_fprog {
            len: 1,
            filter: program.as_mut_ptr(),
        };
        // SAFETY: this option takes a `sock_fprog`, whose program outlives the call.
        unsafe { super::raw_socket::set_option(&socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &filter) }
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (socket, messages);
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// The kinds of Unix socket that accept connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UnixKind {
    Stream,
    SeqPacket,
}

/// The result of connecting to a Unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UnixAnswer {
    /// A process accepts connections. Holds the id of the process that called `listen`, if the
    /// system reports it. That process may have ended since, and other processes may hold the
    /// socket.
    Accepted(Option<u32>),
    /// A process listens, and its backlog is full.
    Full,
}

/// Connects to a Unix socket without waiting, and closes the connection. On Linux, a path that
/// begins with `@` is an abstract name.
pub(crate) fn try_connect_unix(path: &Path, kind: UnixKind) -> io::Result<UnixAnswer> {
    let addr = unix_addr(path)?;
    let kind = match kind {
        UnixKind::Stream => libc::SOCK_STREAM,
        UnixKind::SeqPacket => libc::SOCK_SEQPACKET,
    };
    let fd = socket(libc::AF_UNIX, kind, 0)?;
    // A blocking connect could wait for room in the backlog for ever.
    set_non_blocking(&fd)?;
    match connect(&fd, &addr) {
        Ok(()) => Ok(UnixAnswer::Accepted(listener_pid(&fd))),
        Err(e) => match e.raw_os_error() {
            Some(libc::EAGAIN | libc::EINPROGRESS) => Ok(UnixAnswer::Full),
            _ => Err(e),
        },
    }
}

fn unix_addr(path: &Path) -> io::Result<Address> {
    match abstract_name(path) {
        Some(name) if cfg!(target_os = "linux") => Address::unix(Path::new(OsStr::from_bytes(name)), true),
        _ => Address::unix(path, false),
    }
}

/// The name of an abstract socket, if the path begins with `@`.
pub(crate) fn abstract_name(path: &Path) -> Option<&[u8]> {
    path.as_os_str().as_bytes().strip_prefix(b"@")
}

#[cfg(all(target_os = "linux", not(mirakuru_portable)))]
fn listener_pid(fd: &OwnedFd) -> Option<u32> {
    let pid = super::raw_socket::peer_pid(fd).ok()?;
    // 0 means that the process is in a pid namespace that is not visible here.
    u32::try_from(pid).ok().filter(|pid| *pid != 0)
}

#[cfg(any(not(target_os = "linux"), mirakuru_portable))]
fn listener_pid(_: &OwnedFd) -> Option<u32> {
    None
}

/// Whether this error of [`try_connect_unix`] means that the socket at the path is of another kind.
pub(crate) fn is_another_kind(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EPROTOTYPE)
}

/// The effective user id of this process.
pub(crate) fn user() -> u32 {
    nix::unistd::geteuid().as_raw()
}

#[cfg(test)]
pub(crate) mod tests {
    //! Sockets for the tests of other files, and the tests of this file.

    use std::net::TcpListener;

    use super::super::raw_socket::{listen, set_reuse_port};
    use super::*;
    use crate::sys::tests::in_time;

    /// A TCP socket with the given options, and its port.
    pub(crate) fn tcp(
        addr: SocketAddr,
        reuse_addr: bool,
        reuse_port: bool,
        v6_only: Option<bool>,
        listening: bool,
    ) -> io::Result<(OwnedFd, u16)> {
        let fd = socket(family(&addr), libc::SOCK_STREAM, 0)?;
        set_reuse_addr(&fd, reuse_addr)?;
        set_reuse_port(&fd, reuse_port)?;
        if let Some(only) = v6_only {
            set_v6_only(&fd, only)?;
        }
        bind(&fd, &addr.into())?;
        if listening {
            listen(&fd, 1)?;
        }
        let socket = TcpListener::from(fd);
        let port = socket.local_addr()?.port();
        Ok((socket.into(), port))
    }

    /// A listener on `[::]`.
    pub(crate) fn listen_v6(only: bool) -> (OwnedFd, u16) {
        tcp("[::]:0".parse().unwrap(), true, false, Some(only), true).unwrap()
    }

    /// The kinds of Unix socket that a test server can create.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Made {
        Stream,
        SeqPacket,
        Datagram,
    }

    /// A bound Unix socket. Listens with a backlog of `waiting`, unless it is a datagram socket.
    pub(crate) fn unix(path: &Path, made: Made, waiting: i32) -> OwnedFd {
        let kind = match made {
            Made::Stream => libc::SOCK_STREAM,
            Made::SeqPacket => libc::SOCK_SEQPACKET,
            Made::Datagram => libc::SOCK_DGRAM,
        };
        let fd = socket(libc::AF_UNIX, kind, 0).unwrap();
        bind(&fd, &unix_addr(path).unwrap()).unwrap();
        if made != Made::Datagram {
            listen(&fd, waiting).unwrap();
        }
        fd
    }

    #[cfg(all(target_os = "linux", not(mirakuru_portable)))]
    /// A socket that is connected to itself. A `connect` to an ephemeral port on loopback can cause
    /// this by chance.
    pub(crate) fn connected_to_itself() -> std::net::TcpStream {
        let (fd, port) = tcp(loopback(0), true, false, None, false).unwrap();
        connect(&fd, &loopback(port).into()).unwrap();
        std::net::TcpStream::from(fd)
    }

    fn loopback(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn a_listener_is_in_the_way() {
        let (_held, port) = tcp(loopback(0), true, false, None, true).unwrap();
        let error = try_bind(Protocol::Tcp, loopback(port)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        try_bind(Protocol::Tcp, SocketAddr::from(([127, 0, 0, 2], port))).unwrap();
    }

    #[test]
    fn a_bound_socket_without_reuse_is_in_the_way() {
        let (_held, port) = tcp(loopback(0), false, false, None, false).unwrap();
        assert_eq!(
            try_bind(Protocol::Tcp, loopback(port)).unwrap_err().kind(),
            io::ErrorKind::AddrInUse
        );
    }

    #[test]
    fn a_held_port_is_neither_in_the_way_nor_disturbed() {
        let (held, port) = tcp("[::]:0".parse().unwrap(), true, true, Some(false), false).unwrap();
        for _ in 0..3 {
            try_bind(Protocol::Tcp, loopback(port)).unwrap();
            try_bind(
                Protocol::Tcp,
                SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, port)),
            )
            .unwrap();
        }
        // The port is still held: an exclusive bind fails, and a server with SO_REUSEADDR succeeds.
        assert!(tcp(loopback(port), false, false, None, false).is_err());
        let server = tcp(loopback(port), true, false, None, true).unwrap();
        drop((held, server));
    }

    #[test]
    fn time_wait_is_not_in_the_way() {
        use std::io::Read;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let mut client = std::net::TcpStream::connect(addr).unwrap();
        // The side that hangs up first, here the server, enters TIME_WAIT.
        drop(listener.accept().unwrap());
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        drop((client, listener));
        assert!(
            tcp(addr, false, false, None, true).is_err(),
            "the port is not in TIME_WAIT"
        );
        // A child of another test may listen on the port for a moment longer.
        in_time(|| try_bind(Protocol::Tcp, addr).is_ok());
    }
}
