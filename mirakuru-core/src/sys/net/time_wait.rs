//! Removes the remnants of closed connections (TIME_WAIT). A remnant prevents a server without
//! SO_REUSEADDR from binding to the port for a minute.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use super::raw_socket::{bind, connect, family, set_non_blocking, set_reuse_addr, socket};
#[cfg(any(target_os = "linux", target_os = "android"))]
use super::raw_socket::{set_flag, set_option};

/// Removes the remnant of the connection between these two addresses of this machine.
///
/// A client connects between the same two addresses while no socket listens, so the remnant
/// answers. The client's kernel replies to that answer with a reset, which ends the remnant. RFC
/// 1337 calls this "TIME-WAIT assassination". The sysctl `tcp_rfc1337` prevents it, but is off by
/// default. On loopback, all of this happens during the call.
///
/// # Errors
///
/// Fails if a socket is bound to the other end's address. The remnant then stays.
pub(crate) fn remove(local: SocketAddr, remote: SocketAddr) -> io::Result<()> {
    let client = socket(family(&remote), libc::SOCK_STREAM, 0)?;
    set_reuse_addr(&client, true)?;
    set_non_blocking(&client)?;
    if let Err(error) = bind(&client, &remote.into()) {
        choose_at_connect(&client, remote).map_err(|_| error)?;
    }
    // The socket is non-blocking, so `connect` returns immediately. The returned error does not
    // matter.
    let _ = connect(&client, &local.into());
    Ok(())
}

/// Lets `connect` choose this address. A `bind` fails if any connection uses the address, even one
/// in TIME_WAIT. A `connect` fails only if that connection has the same remote address.
///
/// # Errors
///
/// Fails before Linux 6.3 and on other systems, which lack `IP_LOCAL_PORT_RANGE`.
fn choose_at_connect(client: &OwnedFd, addr: SocketAddr) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        /// The upper half of the value is the highest port, and the lower half the lowest.
        const IP_LOCAL_PORT_RANGE: libc::c_int = 51;
        let port = u32::from(addr.port());
        let range = port << 16 | port;
        // SAFETY: the reference is to an integer, the type of this option.
        unsafe { set_option(client, libc::IPPROTO_IP, IP_LOCAL_PORT_RANGE, &range)? };
        set_flag(client, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, true)?;
        bind(client, &SocketAddr::new(addr.ip(), 0).into())
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    {
        let _ = (client, addr);
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Opens a connection from `here` to `there`.
#[cfg(all(test, target_os = "linux", not(mirakuru_portable)))]
pub(crate) fn connect_from(here: SocketAddr, there: SocketAddr) -> io::Result<OwnedFd> {
    let client = socket(family(&here), libc::SOCK_STREAM, 0)?;
    choose_at_connect(&client, here)?;
    connect(&client, &there.into())?;
    Ok(client)
}
