//! Frees a port on which connections from the service's last start linger.
//!
//! The side that closes a connection first keeps its addresses for a minute (TIME_WAIT). During
//! that minute, a server without SO_REUSEADDR cannot bind the port. mirakuru therefore removes such
//! connections if their other end is on this machine.

use std::net::SocketAddr;
use std::time::Duration;

use crate::ports::address;
use crate::ports::free::{Busy, check_free};
use crate::sys::{proc, time_wait};
use crate::util::backoff::Pauses;

/// How long to wait for a port if lingering connections cannot be removed, for example because the
/// other end is still open.
const SHORT_WAIT: Duration = Duration::from_secs(2);
/// Maximum number of connections that one pass removes. Each costs several system calls.
const MANY: usize = 2_000;

/// Like [`check_free`], checks that a server could listen on these addresses, but removes closed
/// connections that prevent it.
pub(crate) fn make_free(addrs: &[SocketAddr]) -> Result<(), Busy> {
    let mut pauses = Pauses::new();
    loop {
        let Err(busy) = check_free(addrs) else {
            return Ok(());
        };
        let mut found = Vec::new();
        for addr in addrs {
            found.append(&mut lingering(*addr));
        }
        if found.is_empty() || pauses.elapsed() > SHORT_WAIT {
            return Err(busy);
        }
        for (local, remote) in found.into_iter().take(MANY) {
            if address::is_local(remote.ip()) {
                // If the connection cannot be removed, the loop waits until it disappears.
                let _ = time_wait::remove(local, remote);
            }
        }
        pauses.sleep(SHORT_WAIT);
    }
}

/// The closed connections that linger on an address, each with its local and its remote address.
pub(crate) fn lingering(addr: SocketAddr) -> Vec<(SocketAddr, SocketAddr)> {
    let ip = addr.ip().to_canonical();
    let mut lingering = proc::tcp_lingering(addr.port());
    lingering.retain(|(local, _)| ip.is_unspecified() || local.ip() == ip);
    lingering
}

/// The hint for an error about lingering connections. `None` if none lingers.
pub(crate) fn hint(addr: SocketAddr) -> Option<String> {
    let (_, client) = lingering(addr).into_iter().next()?;
    Some(format!(
        "an old connection from {client} lingers on port {} (TIME_WAIT) for up to 60 s\n\
         let the server set SO_REUSEADDR before it binds, or let clients close their connections before it \
         stops",
        addr.port()
    ))
}

#[cfg(all(test, target_os = "linux", not(mirakuru_portable)))]
mod tests {
    use std::io::{self, Read};
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::sys::sockets::tests::tcp;
    use crate::sys::tests::{in_time, in_time_some};

    /// Returns a port on which closed connections linger. Its server did not set SO_REUSEADDR.
    fn lingering_port(ip: &str) -> SocketAddr {
        let any = SocketAddr::new(ip.parse().expect("an address"), 0);
        let listener = TcpListener::from(tcp(any, false, false, None, true).expect("a free port").0);
        let addr = listener.local_addr().expect("it is bound");
        for _ in 0..20 {
            let mut client = TcpStream::connect(addr).expect("it listens");
            // The server closes first, so the TIME_WAIT is on its side.
            drop(listener.accept().expect("there is one"));
            assert_eq!(client.read(&mut [0]).expect("the end"), 0);
        }
        addr
    }

    #[test]
    fn a_port_is_free_again_although_connections_lingered() {
        for ip in ["127.0.0.1", "::1"] {
            let addr = lingering_port(ip);
            assert!(lingering(addr).len() >= 20, "{addr}");
            assert!(hint(addr).is_some_and(|hint| hint.contains("TIME_WAIT")));
            // A process that another test has just forked may still have the listener open.
            in_time(|| make_free(&[addr]).is_ok());
            assert!(lingering(addr).is_empty(), "{addr}");
            tcp(addr, false, false, None, true).expect("a server without socket options can bind it");
        }
    }

    /// The kernel may give a former client's port to a client of another server.
    #[test]
    fn a_port_is_free_again_although_a_client_has_the_address_of_the_old_one() {
        for ip in ["127.0.0.1", "::1"] {
            let elsewhere = TcpListener::bind((ip, 0)).expect("a free port");
            let there = elsewhere.local_addr().expect("it is bound");
            // Tries again if another process has bound a client's port in the meantime.
            let (addr, clients) = in_time_some(|| {
                let addr = lingering_port(ip);
                let mut clients = Vec::new();
                for (_, client) in lingering(addr) {
                    match crate::sys::time_wait::connect_from(client, there) {
                        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => return None,
                        taken => {
                            let taken = taken.expect("it listens");
                            clients.push((taken, elsewhere.accept().expect("there is one")));
                        }
                    }
                }
                Some((addr, clients))
            });
            in_time(|| make_free(&[addr]).is_ok());
            assert!(lingering(addr).is_empty(), "{addr}");
            assert!(clients.len() >= 20, "{addr}");
        }
    }

    #[test]
    fn the_port_of_a_running_server_is_left_alone() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("it is bound");
        assert!(make_free(&[addr]).is_err());
        let mut client = TcpStream::connect(addr).expect("it listens");
        drop(listener.accept().expect("there is one"));
        assert_eq!(client.read(&mut [0]).expect("the end"), 0);
    }
}
