//! The remnants of closed connections (TIME_WAIT), which keep a server without SO_REUSEADDR from
//! binding to its port for a minute.

use std::io;
use std::net::SocketAddr;

use super::raw_socket::{bind, connect, family, set_non_blocking, set_reuse_addr, socket};

/// Removes one remnant, whose other end is on this machine, too.
///
/// A connection that is asked for between the same two addresses, while nobody listens, is answered
/// by the remnant; the kernel finds that answer unacceptable and resets the remnant, which is its
/// end (RFC 1337 calls it "TIME-WAIT assassination"; the sysctl `tcp_rfc1337` forbids it, and is
/// off). On loopback all of that happens during the call.
///
/// # Errors
///
/// When somebody has the other end's address by now. The remnant stays then.
pub(crate) fn remove(local: SocketAddr, remote: SocketAddr) -> io::Result<()> {
    let client = socket(family(&remote), libc::SOCK_STREAM, 0)?;
    set_reuse_addr(&client, true)?;
    set_non_blocking(&client)?;
    bind(&client, &remote.into())?;
    // Nobody accepts it, and nobody waits for it.
    let _ = connect(&client, &local.into());
    Ok(())
}
