//! Creates listening sockets for services that inherit them.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use super::raw_socket;

/// A backlog larger than any test needs. The kernel reduces it to its own limit.
const WAITING: libc::c_int = 4096;

/// Listens on a TCP address of this machine. Sets SO_REUSEADDR, as most servers do, and on IPv6
/// also IPV6_V6ONLY.
pub(crate) fn listen_tcp(addr: SocketAddr) -> io::Result<OwnedFd> {
    let fd = raw_socket::socket(raw_socket::family(&addr), libc::SOCK_STREAM, 0)?;
    raw_socket::set_reuse_addr(&fd, true)?;
    if addr.is_ipv6() {
        raw_socket::set_v6_only(&fd, true)?;
    }
    raw_socket::bind(&fd, &addr.into())?;
    raw_socket::listen(&fd, WAITING)?;
    Ok(fd)
}
