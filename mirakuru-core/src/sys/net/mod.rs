//! Reads the kernel's socket tables, reserves ports, and makes socket calls that the standard
//! library does not offer.

use std::net::SocketAddr;

pub(crate) mod listen;
pub(crate) mod ports;
pub(crate) mod raw_socket;
#[cfg(all(target_os = "linux", not(mirakuru_portable)))]
pub(crate) mod sock_diag;
pub(crate) mod sockets;
pub(crate) mod time_wait;

/// The protocol of a port. TCP and UDP have separate ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
}

/// A TCP or UDP socket of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Socket {
    /// Local address as the kernel reports it, for example `0.0.0.0`, `[::]` or an IPv4 address
    /// mapped into IPv6.
    pub(crate) addr: SocketAddr,
    /// Whether an IPv6 socket accepts only IPv6. `None` if the kernel does not report it.
    pub(crate) v6_only: Option<bool>,
    /// Whether a TCP socket listens, or a UDP socket accepts datagrams from any sender.
    pub(crate) listening: bool,
    /// Effective user id of the process that created the socket.
    pub(crate) uid: u32,
    /// The inode number that `/proc/PID/fd/N` shows as `socket:[INODE]`. 0 if no process holds the
    /// socket now.
    pub(crate) inode: u64,
}
