//! [`Tcp`]: ready when the service accepts TCP connections.

use crate::util::hash;
use std::hash::Hasher;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use super::{Prepare, Probe, Readiness, Wake};
use crate::error::Error;
use crate::ports::address::{self, Place, ZERO, resolve};
use crate::ports::owner::{FirstSeen, stays};
use crate::ports::table;
use crate::sys::Protocol;
use crate::util::deadline::scaled;

/// Time limit for a connection to another machine.
const REMOTE_CONNECT: Duration = Duration::from_secs(1);
/// Ready when the service accepts TCP connections.
///
/// For an address of this machine, mirakuru asks the kernel and makes no connection, so the service
/// neither sees nor logs anything. The listening socket must belong to the service's own processes.
/// If another process listens there, the error names it.
///
/// A server may listen for a moment only to check that the port is free. If its process is doing
/// anything other than waiting for connections, the socket counts only after 50 ms.
///
/// If the service runs as another user and the test does not run as root, mirakuru cannot see which
/// process owns a socket. A listener without a visible owner is taken for the service's.
///
/// For an address of another machine, mirakuru connects to it.
///
/// A server that *asks another process* to listen, such as `docker run -p`, never becomes ready,
/// because that other process owns the port. Use [`Check`](super::Check) or [`Exec`](super::Exec)
/// for such a server.
///
/// ```
/// # use mirakuru_core as mirakuru;
/// use mirakuru::{Executor, Tcp, TcpExecutor};
///
/// let mut server: TcpExecutor = Executor::builder("python3 -m http.server --bind 127.0.0.1 {port}")
///     .wait_for(Tcp::addr("127.0.0.1:{port}"))
///     .start()?;
/// assert!(std::net::TcpStream::connect(server.addr()).is_ok());
/// server.stop()?;
/// # Ok::<(), mirakuru_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Tcp {
    wanted: Wanted,
    /// The endpoints found by [`Readiness::prepare`].
    resolved: Resolved,
}

#[derive(Clone, Debug)]
enum Wanted {
    Addr(String),
    Port(u16),
    /// The address of a server that this recipe does not start.
    External(String),
}

#[derive(Clone, Debug, Default)]
struct Resolved {
    /// The address as messages show it, such as `localhost:6379`.
    text: String,
    /// The addresses to check.
    places: Vec<Place>,
    /// The address on which the service was found.
    answered: Option<SocketAddr>,
    /// A listener that may exist only to check that the port is free.
    seen: Option<FirstSeen>,
}

impl Tcp {
    /// Waits for `host:port`. The host is a name, an IPv4 address, or an IPv6 address in brackets.
    /// Both parts may contain placeholders.
    ///
    /// A name is resolved when the service starts. If it has several addresses, as `localhost` may
    /// have, the service must accept connections on one of them. Another process on any of them is
    /// an error, because a client may reach it. `0.0.0.0` and `[::]` are checked through
    /// `127.0.0.1` and `::1`.
    ///
    /// Usually the port is `{port}`, which is free and reserved for this service. If a fixed port
    /// is in use, the start fails with [`Error::AlreadyRunning`] before the program is executed.
    ///
    /// ```
    /// # use mirakuru_core::Tcp;
    /// let redis = Tcp::addr("127.0.0.1:{port}");
    /// let postgres = Tcp::addr("localhost:5432");
    /// let admin = Tcp::addr("[::1]:{port:ADMIN}");
    /// ```
    pub fn addr(addr: impl Into<String>) -> Self {
        Self::new(Wanted::Addr(addr.into()))
    }

    /// Waits for a port on loopback. The service may use `127.0.0.1` or `::1`.
    ///
    /// ```
    /// # use mirakuru_core::Tcp;
    /// let redis = Tcp::port(6379);
    /// ```
    pub fn port(port: u16) -> Self {
        Self::new(Wanted::Port(port))
    }

    /// Waits for a server that another program has started, by connecting to it.
    #[doc(hidden)]
    pub fn __external(addr: impl Into<String>) -> Self {
        Self::new(Wanted::External(addr.into()))
    }

    fn new(wanted: Wanted) -> Self {
        Self {
            wanted,
            resolved: Resolved::default(),
        }
    }
}

impl Readiness for Tcp {
    fn describe(&self) -> String {
        match &self.wanted {
            Wanted::Port(port) => format!("it accepted connections on port {port}"),
            // `prepare` has not been called yet.
            Wanted::Addr(addr) | Wanted::External(addr) if self.resolved.text.is_empty() => {
                format!("it accepted connections on {addr}")
            }
            Wanted::Addr(_) | Wanted::External(_) => {
                format!("it accepted connections on {}", self.resolved.text)
            }
        }
    }

    fn fingerprint(&self, hasher: &mut dyn Hasher) {
        let Tcp { wanted, resolved: _ } = self;
        match wanted {
            Wanted::Addr(addr) | Wanted::External(addr) => hash::text(hasher, addr.as_ref()),
            Wanted::Port(port) => hash::number(hasher, u64::from(*port)),
        }
    }

    fn prepare(&mut self, cx: &mut Prepare<'_>) -> Result<(), Error> {
        let (text, addrs) = match &self.wanted {
            Wanted::Addr(addr) | Wanted::External(addr) => {
                let text = cx.expand(addr)?.trim().to_owned();
                let addrs = resolve(&text).map_err(|reason| cx.invalid(&text, reason))?;
                (text, addrs)
            }
            Wanted::Port(0) => return Err(cx.invalid("port 0", ZERO)),
            Wanted::Port(port) => (format!("port {port}"), address::loopback(*port)),
        };
        let places = match &self.wanted {
            // The server's process is unknown, so its addresses are treated as remote.
            Wanted::External(_) => addrs
                .iter()
                .map(|addr| Place {
                    addr: *addr,
                    is_local: false,
                })
                .collect(),
            _ => cx.places(Protocol::Tcp, &addrs),
        };
        self.resolved = Resolved {
            text,
            places,
            answered: None,
            seen: None,
        };
        Ok(())
    }

    fn probe(&mut self, cx: &Probe<'_>) -> io::Result<bool> {
        let mut answered = None;
        let mut last = None;
        for &Place { addr, is_local } in &self.resolved.places {
            if is_local {
                // Every address is checked, even after one has been found, because another process
                // on one of them is an error.
                if let Some(listeners) = cx.listeners_on(addr)? {
                    answered.get_or_insert((addr, Some(listeners)));
                }
            } else if answered.is_none() {
                match table::connect(
                    addr,
                    cx.remaining()
                        .clamp(Duration::from_millis(1), scaled(REMOTE_CONNECT)),
                ) {
                    Ok(_) => answered = Some((addr, None)),
                    Err(error) => last = Some(io::Error::new(error.kind(), format!("{addr}: {error}"))),
                }
            }
        }
        match (answered, last) {
            (Some((addr, listeners)), _) => {
                let seen = &mut self.resolved.seen;
                if listeners.is_some_and(|listeners| !stays(addr, listeners, seen)) {
                    return Err(io::Error::new(
                        io::ErrorKind::WouldBlock,
                        format!("it listened on {addr}, but did not wait for connections yet"),
                    ));
                }
                table::check_route(addr)?;
                self.resolved.answered = Some(addr);
                Ok(true)
            }
            (None, Some(error)) => Err(error),
            (None, None) => {
                let places: Vec<String> = self
                    .resolved
                    .places
                    .iter()
                    .map(|place| place.addr.to_string())
                    .collect();
                self.resolved.seen = None;
                Err(io::Error::new(
                    io::ErrorKind::ConnectionRefused,
                    format!("nobody listens on {}", places.join(" or ")),
                ))
            }
        }
    }

    fn wakes(&self, wake: &mut Wake) {
        wake.with_back_off();
        if let Some(seen) = &self.resolved.seen {
            wake.within(seen.next_poll());
        }
    }

    fn addr(&self) -> Option<SocketAddr> {
        let first = self.resolved.places.first().map(|place| place.addr);
        self.resolved.answered.or(first)
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::process::{Child, Command};

    use super::*;
    use crate::ports::owner::WrongListener;
    use crate::ports::values::Values;
    use crate::readiness::harness::poll;
    #[cfg(target_os = "linux")]
    use crate::sys::sockets::tests::{listen_v6, tcp};
    use crate::sys::tests::in_time;

    fn values() -> Values {
        Values::new("test".to_owned(), PathBuf::from("/tmp"))
    }

    fn prepare(tcp: &mut Tcp) -> Result<Vec<SocketAddr>, Error> {
        let mut values = values();
        let mut cx = Prepare::new(&mut values);
        tcp.prepare(&mut cx)?;
        Ok(cx.addrs)
    }

    /// Polls once, for the tree below `root`.
    fn probe(tcp: &mut Tcp, root: u32) -> io::Result<bool> {
        poll(tcp, root, Duration::ZERO)
    }

    /// A process that does not listen.
    struct Bystander(Child);

    impl Bystander {
        fn new() -> Bystander {
            Bystander(Command::new("sleep").arg("60").spawn().unwrap())
        }
    }

    impl Drop for Bystander {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn addresses_are_understood() {
        let one =
            |text: &str| resolve(text).map(|addrs| addrs.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(one("127.0.0.1:6379").unwrap(), ["127.0.0.1:6379"]);
        assert_eq!(one("[::1]:80").unwrap(), ["[::1]:80"]);
        assert_eq!(one("0.0.0.0:1").unwrap(), ["0.0.0.0:1"]);
        let localhost = one("localhost:80").unwrap();
        assert!(
            localhost
                .iter()
                .all(|addr| ["127.0.0.1:80", "[::1]:80"].contains(&addr.as_str()))
                && !localhost.is_empty(),
            "{localhost:?}"
        );
    }

    #[test]
    fn every_mistake_has_its_remedy() {
        for (text, part) in [
            ("", "there is no port; write `localhost:{port}`"),
            ("localhost", "there is no port; write `localhost:{port}`"),
            ("localhost:", "there is no port; write `localhost:{port}`"),
            ("[::1]", "there is no port; write `[::1]:{port}`"),
            ("6379", "write `127.0.0.1:6379`, or use `Tcp::port(6379)`"),
            (
                ":6379",
                "there is no host before the port; write `localhost:6379`",
            ),
            ("localhost:0", "use `{port}` for a free port"),
            ("localhost:65536", "`65536` is not a port"),
            ("localhost:+80", "`+80` is not a port"),
            ("localhost:redis", "`redis` is not a port"),
            ("::1", "`[::1]:{port}`"),
            ("fe80::x:80", "in brackets: `[fe80::x]:80`"),
            ("[::1:80", "not closed"),
            ("[::1]80", "a colon and the port"),
            ("[localhost]:80", "`localhost` is not an IPv6 address"),
            (
                "http://localhost:80/path",
                "use `Http` for it, or give an address such as `localhost:80`",
            ),
            (
                "redis://user:secret@localhost:6379/0",
                "give an address such as `localhost:6379`",
            ),
            ("local host:80", "`local host` is not a host"),
            ("a:1,b:2", "not a host"),
            (
                "no-such-host.invalid:80",
                "the host `no-such-host.invalid` cannot be resolved",
            ),
        ] {
            let reason = resolve(text).unwrap_err();
            assert!(reason.contains(part), "{text:?}: {reason}");
            assert!(!reason.contains("secret"), "{reason}");
            let Err(Error::InvalidReadiness { .. }) = prepare(&mut Tcp::addr(text)) else {
                panic!("{text:?}")
            };
        }
        assert!(prepare(&mut Tcp::port(0)).is_err());
    }

    #[test]
    fn local_addresses_are_locked_as_they_are_given() {
        let endpoints = |text: &str| prepare(&mut Tcp::addr(text)).unwrap();
        assert_eq!(endpoints("127.0.0.1:6379"), ["127.0.0.1:6379".parse().unwrap()]);
        assert_eq!(endpoints("0.0.0.0:6379"), ["0.0.0.0:6379".parse().unwrap()]);
        assert_eq!(endpoints("192.0.2.1:6379"), []);
        let mut port = Tcp::port(6379);
        let both = ["127.0.0.1:6379".parse().unwrap(), "[::1]:6379".parse().unwrap()];
        assert_eq!(prepare(&mut port).unwrap(), both);
        assert_eq!(port.addr(), Some(both[0]));
        assert_eq!(port.describe(), "it accepted connections on port 6379");
        let mut any = Tcp::addr("0.0.0.0:6379");
        prepare(&mut any).unwrap();
        assert_eq!(any.addr(), Some(both[0]));
        assert_eq!(any.describe(), "it accepted connections on 0.0.0.0:6379");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn whichever_loopback_the_service_uses() {
        let me = std::process::id();
        let (held, port) = listen_v6(true);
        let mut both = Tcp::port(port);
        prepare(&mut both).unwrap();
        // A listener counts only after a moment, so try again.
        in_time(|| probe(&mut both, me).unwrap_or(false));
        assert_eq!(both.addr(), Some(address::loopback(port)[1]));
        drop(held);
        let (_held, port) = tcp("127.0.0.1:0".parse().unwrap(), true, false, None, true).unwrap();
        let mut v4 = Tcp::addr(format!("localhost:{port}"));
        prepare(&mut v4).unwrap();
        in_time(|| probe(&mut v4, me).unwrap_or(false));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn nobody_and_bound_only_are_not_ready() {
        let (_bound, port) = tcp("127.0.0.1:0".parse().unwrap(), true, false, None, false).unwrap();
        let mut readiness = Tcp::port(port);
        prepare(&mut readiness).unwrap();
        let error = probe(&mut readiness, std::process::id()).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("nobody listens on 127.0.0.1:{port} or [::1]:{port}")
        );
    }

    #[test]
    #[cfg_attr(
        mirakuru_portable,
        ignore = "the portable back end cannot see the owner of a socket"
    )]
    fn another_process_on_one_address_spoils_the_other() {
        // This process listens, and does not belong to the bystander's tree.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let bystander = Bystander::new();
        let mut readiness = Tcp::port(addr.port());
        prepare(&mut readiness).unwrap();
        // Until the bystander executes `sleep`, it has a copy of the listener.
        let mut answer = probe(&mut readiness, bystander.0.id());
        for _ in 0..100 {
            if answer.is_err() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
            answer = probe(&mut readiness, bystander.0.id());
        }
        let error = answer.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        let wrong_listener = WrongListener::of(&error).unwrap();
        assert_eq!(wrong_listener.endpoint, addr.to_string());
        assert_eq!(wrong_listener.holder.pid, Some(std::process::id()));
    }

    #[test]
    fn a_remote_address_is_connected_to() {
        // The test marks the address as remote, because the kernel would report another process on
        // a local one.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let mut readiness = Tcp::addr(addr.to_string());
        prepare(&mut readiness).unwrap();
        readiness.resolved.places[0].is_local = false;
        assert!(probe(&mut readiness, 1).unwrap());
        listener.accept().unwrap();
        drop(listener);
        in_time(|| probe(&mut readiness, 1).is_err());
        let error = probe(&mut readiness, 1).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{addr}: ")), "{error}");
    }
}
