//! [`Udp`]: ready when the service has bound a UDP port.

use std::hash::Hasher;
use std::io;
use std::net::SocketAddr;

use super::{Prepare, Probe, Readiness};
use crate::error::Error;
use crate::ports::address::{Place, resolve};
use crate::ports::table::answering;
use crate::sys::Protocol;
use crate::util::hash;

/// Ready when the service has bound a UDP port of this machine.
///
/// mirakuru asks the kernel and sends nothing, because UDP has no connections. The socket must
/// belong to the service's own processes. If another process has bound the port, the error names
/// it.
///
/// Only Linux reveals the owner of a UDP port. On other systems, the start fails with
/// [`Error::InvalidReadiness`].
///
/// A server may bind its port before it answers requests. If that matters, add a request in the
/// server's own protocol: `Udp::addr(..).and(Check::new(..))`.
///
/// ```
/// # use mirakuru_core as mirakuru;
/// use mirakuru::{Executor, Udp};
///
/// let script = "import socket, sys, time
/// s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('127.0.0.1', int(sys.argv[1])))
/// time.sleep(60)";
/// let mut server = Executor::builder(["python3", "-c", script, "{port}"])
///     .wait_for(Udp::addr("127.0.0.1:{port}"))
///     .start()?;
/// let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
/// client.send_to(b"hello", server.addr()).unwrap();
/// server.stop()?;
/// # Ok::<(), mirakuru_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Udp {
    given: String,
    /// The address with its placeholders filled in.
    text: String,
    places: Vec<Place>,
    bound: Option<SocketAddr>,
}

impl Udp {
    /// Waits for `host:port`, as [`Tcp::addr`](super::Tcp::addr) does. The address must be local.
    ///
    /// If a name has several addresses, it is enough if the service binds one. Usually the port is
    /// `{port}`, which is free for TCP and UDP. If a fixed port is in use, the start fails with
    /// [`Error::AlreadyRunning`] before the program is executed.
    pub fn addr(addr: impl Into<String>) -> Udp {
        let given = addr.into();
        Udp {
            text: given.clone(),
            given,
            places: Vec::new(),
            bound: None,
        }
    }
}

impl Readiness for Udp {
    fn describe(&self) -> String {
        format!("it bound the UDP address {}", self.text)
    }

    fn fingerprint(&self, hasher: &mut dyn Hasher) {
        let Udp {
            given,
            text: _,
            places: _,
            bound: _,
        } = self;
        hash::text(hasher, given.as_ref());
    }

    fn wants_low_ports(&self) -> bool {
        true
    }

    fn prepare(&mut self, cx: &mut Prepare<'_>) -> Result<(), Error> {
        self.text = cx.expand(&self.given)?.trim().to_owned();
        let addrs = resolve(&self.text).map_err(|reason| cx.invalid(&self.text, reason))?;
        self.places = cx.places(Protocol::Udp, &addrs);
        if let Some(remote) = self.places.iter().find(|place| !place.is_local) {
            let reason = format!(
                "{} is not an address of this machine, so mirakuru cannot see the owner of its UDP port; \
                 use `Check` with a request in the server's protocol",
                remote.addr
            );
            return Err(cx.invalid(&self.text, reason));
        }
        if addrs
            .first()
            .is_some_and(|addr| answering(Protocol::Udp, *addr).is_none())
        {
            let reason = "this system does not show the owner of a UDP port; use `Check` with a request in \
                          the server's protocol";
            return Err(cx.invalid(&self.text, reason));
        }
        self.bound = None;
        Ok(())
    }

    fn probe(&mut self, cx: &Probe<'_>) -> io::Result<bool> {
        let mut bound = None;
        for place in &self.places {
            // Every address is checked, even after one that the service has bound, because a client
            // may reach another process on any of them.
            if cx.binds_udp(place.addr)? {
                bound.get_or_insert(place.addr);
            }
        }
        self.bound = bound;
        match bound {
            Some(_) => Ok(true),
            None => Err(io::Error::new(
                io::ErrorKind::ConnectionRefused,
                format!("no socket is bound to the UDP address {}", self.text),
            )),
        }
    }

    fn addr(&self) -> Option<SocketAddr> {
        self.bound.or(self.places.first().map(|place| place.addr))
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::super::harness::Harness;
    use super::*;

    #[test]
    #[cfg_attr(
        mirakuru_portable,
        ignore = "the portable back end cannot see the owner of a UDP port"
    )]
    fn it_is_ready_once_the_port_is_bound() {
        let harness = Harness::new();
        let port = crate::ports::port::Port::reserve().unwrap().number();
        let mut udp = Udp::addr(format!("localhost:{port}"));
        harness.prepare(&mut udp).unwrap();
        assert_eq!(
            udp.describe(),
            format!("it bound the UDP address localhost:{port}")
        );
        let error = harness.probe(&mut udp).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("no socket is bound to the UDP address localhost:{port}")
        );
        // A TCP listener with the same port number does not count.
        let _tcp = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
        assert!(harness.probe(&mut udp).is_err());
        let _socket = UdpSocket::bind(("127.0.0.1", port)).unwrap();
        assert!(harness.probe(&mut udp).unwrap());
        assert_eq!(udp.addr(), Some(SocketAddr::from(([127, 0, 0, 1], port))));
    }

    #[test]
    #[cfg_attr(
        mirakuru_portable,
        ignore = "the portable back end cannot see the owner of a UDP port"
    )]
    fn a_server_on_every_address_counts() {
        let harness = Harness::new();
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        for host in ["127.0.0.1", "0.0.0.0"] {
            let mut udp = Udp::addr(format!("{host}:{port}"));
            harness.prepare(&mut udp).unwrap();
            assert!(harness.probe(&mut udp).unwrap());
            assert_eq!(udp.addr(), Some(SocketAddr::from(([127, 0, 0, 1], port))));
        }
    }

    #[test]
    fn mistakes_have_their_remedies() {
        let harness = Harness::new();
        for (addr, part) in [
            ("192.0.2.1:53", "not an address of this machine"),
            ("127.0.0.1", "there is no port"),
        ] {
            let text = harness.refusal(&mut Udp::addr(addr));
            assert!(text.contains(part), "{text}");
        }
    }
}
