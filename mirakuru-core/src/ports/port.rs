//! [`Port`]: a reserved port for a server inside the test process.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use crate::error::Error;
use crate::ports::reserve::{HoldLevel, Range, Reservation};

/// A port on 127.0.0.1 that is reserved for a server inside the test process.
///
/// The port is free for TCP and UDP, and no program that asks the system for a free port gets it.
/// Connections are refused until [`into_listener`](Port::into_listener) is called. Dropping the
/// value releases the port. The placeholder `{port}` reserves a port in the same way.
///
/// Variables of this type are usually named `port`.
///
/// ```
/// # use mirakuru_core as mirakuru;
/// let port = mirakuru::Port::reserve()?;
/// let config = format!("upstream = {}", port.addr()); // Known before anything listens.
/// let listener = port.into_listener();
/// assert!(config.ends_with(&listener.local_addr().unwrap().to_string()));
/// # Ok::<(), mirakuru_core::Error>(())
/// ```
#[derive(Debug)]
pub struct Port {
    reservation: Reservation,
    udp: UdpSocket,
}

impl Port {
    /// Reserves a port that is free for TCP and UDP.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if no port is free.
    pub fn reserve() -> Result<Port, Error> {
        let mut taken = Vec::new();
        loop {
            let reservation = Reservation::new(Range::Any, HoldLevel::Firm, &taken)
                .map_err(|source| Error::system("reserve a free port", source))?;
            // Another process may have taken the UDP port since the check.
            match UdpSocket::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, reservation.port()))) {
                Ok(udp) => return Ok(Port { reservation, udp }),
                Err(source) if taken.len() > 100 => {
                    return Err(Error::system("reserve a free UDP port", source));
                }
                Err(_) => taken.push(reservation.port()),
            }
        }
    }

    /// The number of the port.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.reservation.port()
    }

    /// The address of the port, which is on 127.0.0.1.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.number()).into()
    }

    /// Creates a TCP listener on the port, which accepts connections from now on.
    ///
    /// # Panics
    ///
    /// If another process has bound this port by number in the meantime. No reservation can prevent
    /// that.
    #[must_use]
    #[track_caller]
    pub fn into_listener(self) -> TcpListener {
        self.into_sockets().0
    }

    /// Creates a TCP listener and a UDP socket on the port, for a server that uses both, such as a
    /// DNS server.
    ///
    /// ```
    /// # use mirakuru_core as mirakuru;
    /// let (listener, socket) = mirakuru::Port::reserve()?.into_sockets();
    /// assert_eq!(listener.local_addr().unwrap(), socket.local_addr().unwrap());
    /// # Ok::<(), mirakuru_core::Error>(())
    /// ```
    ///
    /// # Panics
    ///
    /// For the same reason as [`into_listener`](Port::into_listener).
    #[must_use]
    #[track_caller]
    pub fn into_sockets(self) -> (TcpListener, UdpSocket) {
        let addr = self.addr();
        // The reservation is kept until the listener exists.
        match TcpListener::bind(addr) {
            Ok(listener) => (listener, self.udp),
            Err(error) => panic!("cannot listen on the reserved address {addr}: {error}"),
        }
    }

    /// Returns the UDP socket that has been bound to the port since the reservation. Datagrams
    /// received since then are still in its queue.
    #[must_use]
    pub fn into_udp_socket(self) -> UdpSocket {
        self.udp
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn a_port_is_kept_until_a_server_takes_it() {
        let port = Port::reserve().unwrap();
        let addr = port.addr();
        assert_eq!(
            (addr.ip(), addr.port()),
            (Ipv4Addr::LOCALHOST.into(), port.number())
        );
        assert!(TcpStream::connect(addr).is_err(), "nobody listens yet");
        assert!(UdpSocket::bind(addr).is_err(), "nobody else gets the UDP port");
        let listener = port.into_listener();
        TcpStream::connect(addr).unwrap();
        assert_eq!(listener.local_addr().unwrap(), addr);
    }

    #[test]
    fn datagrams_are_kept_from_the_reservation_on() {
        let port = Port::reserve().unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.send_to(b"early", port.addr()).unwrap();
        let mut buffer = [0; 10];
        let (length, from) = port.into_udp_socket().recv_from(&mut buffer).unwrap();
        assert_eq!(
            (&buffer[..length], from),
            (&b"early"[..], client.local_addr().unwrap())
        );
    }
}
