//! Creates the sockets that reserve ports for `ports/reserve.rs`. They never listen, and are
//! close-on-exec.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener};
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;

use super::raw_socket::{bind, family, set_reuse_addr, set_reuse_port, set_v6_only, socket};

/// A loopback address that neither services nor clients use; see [`hold_exactly`].
const NOBODYS_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 97, 109, 105);

/// Binds a socket to all addresses, IPv6 and IPv4, and to a port that is free on all of them.
///
/// SO_REUSEADDR and SO_REUSEPORT are set *after* the bind. So the bind is exclusive, even if
/// `net.ipv4.ip_autobind_reuse` is set. It never gets a port that is in use on any address, even by
/// another hold. A later bind takes the options into account, so a service can bind to the held
/// port.
pub(crate) fn hold_any() -> io::Result<(OwnedFd, u16)> {
    let fd = bind_everywhere(0, false)?;
    allow_sharing(&fd)?;
    with_its_port(fd)
}

/// Holds a given port like [`hold_any`].
///
/// # Errors
///
/// Returns [`io::ErrorKind::AddrInUse`] if a socket is bound to the port, for example by another
/// call of this function. Closed connections in TIME_WAIT and sockets created by [`stand_beside`]
/// do not count.
pub(crate) fn hold_exactly(port: u16) -> io::Result<OwnedFd> {
    if let Ok(fd) = bind_everywhere(port, false) {
        allow_sharing(&fd)?;
        return Ok(fd);
    }
    // The first bind may have failed because of a listener, another hold, or merely a connection in
    // TIME_WAIT. Only in the last case is the port free. A retry with SO_REUSEADDR is not enough to
    // find out: it also succeeds beside another hold, and two processes would then hold the port.
    //
    // An exclusive bind to an unused address distinguishes these cases. It conflicts with every
    // socket on the wildcard address, but not with connections, which have other addresses. While
    // the probe is open, no other process can start to hold the port.
    let probe = match bind_v4(SocketAddrV4::new(NOBODYS_ADDRESS, port), false) {
        Ok(probe) => {
            allow_sharing(&probe)?;
            Some(probe)
        }
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => return Err(e),
        // Only Linux assigns all of 127.0.0.0/8 to loopback, so other systems skip this check.
        Err(_) => None,
    };
    let fd = bind_everywhere(port, true);
    drop(probe);
    fd
}

/// Binds a socket to the port on the IPv6 loopback address alone.
///
/// The socket keeps the port from every process that asks for a free port on all addresses, as
/// [`hold_any`] does. Binds to IPv4 addresses still succeed, with or without SO_REUSEADDR. Without
/// IPv6, the socket is bound to an IPv4 loopback address that services do not use.
pub(crate) fn stand_beside(port: u16) -> io::Result<OwnedFd> {
    let v6 = || bind_v6(Ipv6Addr::LOCALHOST, port, true, true);
    v6().or_else(|_| bind_v4(SocketAddrV4::new(NOBODYS_ADDRESS, port), true))
}

/// Returns the error of a bind to `::1` if this machine, or its loopback device, has no IPv6.
pub(crate) fn ipv6_is_absent() -> Option<io::Error> {
    let error = bind_v6(Ipv6Addr::LOCALHOST, 0, true, true).err()?;
    matches!(
        error.raw_os_error(),
        Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT)
    )
    .then_some(error)
}

/// Whether this UDP port is free on all addresses.
pub(crate) fn udp_is_free(port: u16) -> bool {
    let bind = |ip: IpAddr| {
        let addr = SocketAddr::new(ip, port);
        let fd = socket(family(&addr), libc::SOCK_DGRAM, 0)?;
        if ip.is_ipv6() {
            set_v6_only(&fd, false)?;
        }
        bind(&fd, &addr.into())
    };
    match bind(Ipv6Addr::UNSPECIFIED.into()) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => false,
        Ok(()) => true,
        // The machine has no IPv6.
        Err(_) => bind(Ipv4Addr::UNSPECIFIED.into()).is_ok(),
    }
}

/// The range from which the kernel chooses a port if a socket asks for any port. `None` if the
/// range cannot be read.
pub(crate) fn ephemeral() -> Option<RangeInclusive<u16>> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut ends = text.split_ascii_whitespace().map(str::parse);
    Some(ends.next()?.ok()?..=ends.next()?.ok()?)
}

/// Binds one dual-stack socket, or an IPv4 socket if the machine has no IPv6.
///
/// A conflict on IPv6 is final: a port that is free on IPv4 alone does not count as free.
fn bind_everywhere(port: u16, sharing: bool) -> io::Result<OwnedFd> {
    match bind_v6(Ipv6Addr::UNSPECIFIED, port, false, sharing) {
        Ok(fd) => Ok(fd),
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => Err(e),
        Err(_) => bind_v4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port), sharing),
    }
}

/// Binds a socket that does not listen, with or without SO_REUSEADDR and SO_REUSEPORT.
pub(crate) fn bind_v4(addr: SocketAddrV4, sharing: bool) -> io::Result<OwnedFd> {
    bind_tcp(addr.into(), None, sharing)
}

fn bind_v6(ip: Ipv6Addr, port: u16, v6_only: bool, sharing: bool) -> io::Result<OwnedFd> {
    bind_tcp(SocketAddrV6::new(ip, port, 0, 0).into(), Some(v6_only), sharing)
}

fn bind_tcp(addr: SocketAddr, v6_only: Option<bool>, sharing: bool) -> io::Result<OwnedFd> {
    let fd = socket(family(&addr), libc::SOCK_STREAM, 0)?;
    if let Some(only) = v6_only {
        set_v6_only(&fd, only)?;
    }
    if sharing {
        allow_sharing(&fd)?;
    }
    bind(&fd, &addr.into())?;
    Ok(fd)
}

/// Sets both options, because an option allows sharing only if both sockets set it. Nearly all
/// services set SO_REUSEADDR, and some set only SO_REUSEPORT.
fn allow_sharing(fd: &OwnedFd) -> io::Result<()> {
    set_reuse_addr(fd, true)?;
    set_reuse_port(fd, true)
}

/// Returns a bound socket together with its port.
fn with_its_port(fd: OwnedFd) -> io::Result<(OwnedFd, u16)> {
    // The socket does not listen, but `TcpListener` can still query its address.
    let socket = TcpListener::from(fd);
    let port = socket.local_addr()?.port();
    Ok((socket.into(), port))
}
