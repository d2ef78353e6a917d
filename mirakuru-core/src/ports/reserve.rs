//! Reserves free ports so that no other program gets a port before the service has it.
//!
//! If a process binds port 0, reads the number and closes the socket, another process may get the
//! same port. That happens often enough to make tests flaky. A reservation is therefore a *hold*: a
//! socket that is bound to the port and does not listen. While the hold is open, the kernel chooses
//! its port for no other socket, not even for an outgoing connection. It also refuses connections
//! to the port. The hold ends with the process that made it.
//!
//! The service binds the port over the hold. That works because both sockets set SO_REUSEADDR and
//! neither listens when the other binds. Almost every server sets that option, because otherwise it
//! could not restart while old connections linger. One dual-stack socket is enough: Redis, nginx,
//! PostgreSQL, Python's http.server and Rust's std bind over it on wildcard and loopback addresses,
//! in IPv4 and in IPv6.
//!
//! A program that sets neither SO_REUSEADDR nor SO_REUSEPORT cannot bind over the hold. For such a
//! program, the hold can be [loosened](Reservation::loosen). The first step is a socket on IPv6
//! loopback only: other holds avoid the port, but an IPv4 program can bind it. The second step is
//! no hold at all.
//!
//! There are no holds for UDP, because few UDP servers set SO_REUSEADDR, and the others could not
//! bind over them. A reserved port is free for UDP at first, and other reservations avoid it. If a
//! service declares that it uses UDP, it gets a [low](Range::Low) port, which the kernel normally
//! never chooses by itself.
//!
//! The hold stays open while the service runs, because the two sockets do not conflict. When the
//! service stops, its port is therefore still reserved.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::fd::OwnedFd;

use crate::sys;

/// The range of ports for a reservation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Range {
    /// The kernel chooses the port.
    #[default]
    Any,
    /// A port below 50000 that, if possible, is outside the kernel's own range. A server can derive
    /// other ports from it by adding a number.
    Low,
}

/// The strength of the hold on a port, from the strongest to the weakest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HoldLevel {
    /// A hold on every address. A service with SO_REUSEADDR or SO_REUSEPORT can bind over it.
    Firm,
    /// A hold on IPv6 loopback only. Other mirakuru processes do not get the port. A service on
    /// IPv4 can bind the port without setting any option.
    Beside,
    /// No hold: another process may get the port before the service does.
    Open,
}

impl HoldLevel {
    pub(crate) fn looser(self) -> Option<HoldLevel> {
        match self {
            HoldLevel::Firm => Some(HoldLevel::Beside),
            HoldLevel::Beside => Some(HoldLevel::Open),
            HoldLevel::Open => None,
        }
    }
}

/// The low range: above the default ports of most servers, and below 50000.
const LOW: std::ops::Range<u16> = 20_000..50_000;
/// Low ports that are some server's default, so another test may need them.
const WELL_KNOWN: [u16; 10] = [
    25_565, 25_672, 26_257, 26_379, 27_017, 27_018, 27_019, 28_015, 32_400, 33_060,
];

/// A port that was free on every address when it was reserved.
#[derive(Debug)]
pub(crate) struct Reservation {
    port: u16,
    hold: Option<OwnedFd>,
}

impl Reservation {
    /// Refers to a port that another value holds, or that needs no hold.
    pub(crate) fn known(port: u16) -> Reservation {
        Reservation { port, hold: None }
    }

    /// Reserves a port that is free for TCP and UDP and not in `except`.
    pub(crate) fn new(range: Range, hold_level: HoldLevel, except: &[u16]) -> io::Result<Reservation> {
        let is_wanted = |port: u16| !except.contains(&port) && sys::ports::udp_is_free(port);
        let mut reservation = match range {
            Range::Any => Reservation::any(&is_wanted)?,
            Range::Low => Reservation::low(&is_wanted)?,
        };
        reservation.loosen(hold_level);
        Ok(reservation)
    }

    fn any(is_wanted: &dyn Fn(u16) -> bool) -> io::Result<Reservation> {
        // Holds on unwanted ports are kept until the end, so that each round gets a new port.
        let mut unwanted = Vec::new();
        loop {
            let (hold, port) = sys::ports::hold_any()?;
            let reservation = Reservation {
                port,
                hold: Some(hold),
            };
            if is_wanted(port) {
                return Ok(reservation);
            }
            unwanted.push(reservation);
        }
    }

    fn low(is_wanted: &dyn Fn(u16) -> bool) -> io::Result<Reservation> {
        let ephemeral = sys::ports::ephemeral().unwrap_or(32_768..=60_999);
        let mut ports: Vec<u16> = LOW.collect();
        ports.retain(|port| !ephemeral.contains(port));
        // If few low ports are outside the kernel's range, ports inside it are used as well.
        if ports.len() < 1000 {
            ports = LOW.collect();
        }
        // The search starts at a random port, so that processes rarely try the same one.
        let begin = RandomState::new().build_hasher().finish() as usize % ports.len();
        let (after, before) = (&ports[begin..], &ports[..begin]);
        for &port in after.iter().chain(before) {
            if WELL_KNOWN.contains(&port) {
                continue;
            }
            if let Ok(hold) = sys::ports::hold_exactly(port) {
                if is_wanted(port) {
                    return Ok(Reservation {
                        port,
                        hold: Some(hold),
                    });
                }
            }
        }
        Err(io::ErrorKind::AddrInUse.into())
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Weakens the hold to `hold_level`. The new socket is bound before the old one is closed.
    /// Never makes a hold stronger: after [`HoldLevel::Open`], use
    /// [`hold_again`](Reservation::hold_again).
    pub(crate) fn loosen(&mut self, hold_level: HoldLevel) {
        if self.hold.is_none() {
            return;
        }
        match hold_level {
            HoldLevel::Firm => {}
            // Without IPv6, this can fail if only part of 127.0.0.0/8 is usable. The port is then
            // not held.
            HoldLevel::Beside => self.hold = sys::ports::stand_beside(self.port).ok(),
            HoldLevel::Open => self.hold = None,
        }
    }

    /// Holds the port again after its hold has been given up.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::AddrInUse`] if a process has taken the port. Connections in TIME_WAIT do
    /// not count.
    pub(crate) fn hold_again(&mut self, hold_level: HoldLevel) -> io::Result<()> {
        if self.hold.is_none() && hold_level != HoldLevel::Open {
            self.hold = Some(sys::ports::hold_exactly(self.port)?);
            self.loosen(hold_level);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::io::{BufRead, BufReader, Write};
    use std::net::{IpAddr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
    use std::process::{Child, Stdio};

    use super::*;
    use crate::sys::tests::in_time;
    use crate::util::own_process::{process_of, test_name};

    fn firm() -> Reservation {
        Reservation::new(Range::Any, HoldLevel::Firm, &[]).unwrap()
    }

    /// The wildcard and loopback addresses of the address families that this machine supports.
    fn addresses() -> Vec<&'static str> {
        let mut all = vec!["127.0.0.1", "0.0.0.0", "::1", "::"];
        if TcpListener::bind("[::1]:0").is_err() {
            all.truncate(2);
        }
        all
    }

    fn at(ip: &str, port: u16) -> SocketAddr {
        SocketAddr::new(ip.parse::<IpAddr>().unwrap(), port)
    }

    #[test]
    fn a_held_port_refuses_connections() {
        let held = firm();
        for ip in addresses().into_iter().step_by(2) {
            let refused = TcpStream::connect(at(ip, held.port())).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused, "{ip}");
        }
    }

    #[test]
    fn std_listeners_bind_over_a_hold_on_every_address() {
        for ip in addresses() {
            let held = firm();
            let listener = TcpListener::bind(at(ip, held.port())).unwrap_or_else(|e| panic!("{ip}: {e}"));
            let client = if ip.contains(':') { "::1" } else { "127.0.0.1" };
            TcpStream::connect(at(client, held.port())).unwrap_or_else(|e| panic!("{ip}: {e}"));
            drop(listener);
        }
    }

    #[test]
    fn a_free_port_is_never_a_held_one_whoever_asks() {
        let held: Vec<_> = (0..150).map(|_| firm()).collect();
        let ports: HashSet<u16> = held.iter().map(Reservation::port).collect();
        assert_eq!(ports.len(), held.len());
        // Without the holds, dozens of ports would be given out twice.
        for ip in addresses() {
            for _ in 0..3000 {
                let other = TcpListener::bind(at(ip, 0)).unwrap();
                assert!(!ports.contains(&other.local_addr().unwrap().port()), "{ip}");
            }
        }
    }

    #[test]
    fn a_port_that_somebody_has_on_one_address_only_is_not_taken() {
        let mut others = Vec::new();
        let mut theirs = HashSet::new();
        for ip in addresses() {
            for _ in 0..50 {
                let listener = TcpListener::bind(at(ip, 0)).unwrap();
                theirs.insert(listener.local_addr().unwrap().port());
                others.push(listener);
            }
        }
        for _ in 0..5000 {
            assert!(!theirs.contains(&firm().port()));
        }
    }

    #[test]
    fn a_released_port_is_held_again_after_connections_on_it() {
        let mut held = firm();
        let listener = TcpListener::bind(at("127.0.0.1", held.port())).unwrap();
        held.loosen(HoldLevel::Open);
        let client = TcpStream::connect(at("127.0.0.1", held.port())).unwrap();
        let (server, _) = listener.accept().unwrap();
        assert!(
            held.hold_again(HoldLevel::Firm).is_err(),
            "the service still listens"
        );
        // The server closes first, so the TIME_WAIT is on its side.
        drop(server);
        drop(listener);
        drop(client);
        in_time(|| held.hold_again(HoldLevel::Firm).is_ok());
        TcpListener::bind(at("127.0.0.1", held.port())).unwrap();
    }

    #[test]
    fn a_port_is_held_by_one_only() {
        let held = firm();
        let mut second = Reservation {
            port: held.port(),
            hold: None,
        };
        let refused = second.hold_again(HoldLevel::Firm).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        drop(held);
        in_time(|| second.hold_again(HoldLevel::Firm).is_ok());
    }

    #[test]
    fn a_loose_hold_lets_a_service_without_options_bind() {
        // Binds without setting any socket option.
        let plain_bind = |ip: [u8; 4], port| sys::ports::bind_v4(SocketAddrV4::new(ip.into(), port), false);
        let mut ips = vec![[127, 0, 0, 1]];
        if addresses().contains(&"::1") {
            ips.push([0, 0, 0, 0]);
        }
        for ip in ips {
            // Retries, because a loose hold does not stop another test's IPv4 listener from taking
            // the port.
            let bound = (0..20).any(|_| {
                let mut held = firm();
                assert!(plain_bind(ip, held.port()).is_err(), "a firm hold lets it bind");
                held.loosen(HoldLevel::Beside);
                assert!(held.hold.is_some());
                plain_bind(ip, held.port()).is_ok()
            });
            assert!(bound, "{ip:?}");
        }
    }

    #[test]
    fn a_loose_hold_keeps_other_holds_away() {
        let loose: Vec<_> = (0..150)
            .map(|_| Reservation::new(Range::Any, HoldLevel::Beside, &[]).unwrap())
            .collect();
        let ports: HashSet<u16> = loose.iter().map(Reservation::port).collect();
        for _ in 0..5000 {
            assert!(!ports.contains(&firm().port()));
        }
    }

    #[test]
    fn ports_that_are_not_wanted_are_passed_over() {
        // Only one port in 16 is wanted, so the kernel's first choice is probably unwanted.
        let unwanted: Vec<u16> = (1024..=u16::MAX).filter(|port| port % 16 != 1).collect();
        let reserved = Reservation::new(Range::Any, HoldLevel::Open, &unwanted).unwrap();
        assert!(!unwanted.contains(&reserved.port()));
    }

    #[test]
    fn a_port_that_a_udp_socket_has_is_not_taken() {
        // The kernel chooses ports for TCP and UDP in the same way. Without the UDP check, many
        // reservations would get the port of one of these sockets.
        let sockets: Vec<_> = (0..300)
            .map(|n| std::net::UdpSocket::bind((["127.0.0.1", "0.0.0.0"][n % 2], 0)).unwrap())
            .collect();
        let theirs: HashSet<u16> = sockets
            .iter()
            .map(|socket| socket.local_addr().unwrap().port())
            .collect();
        for _ in 0..3000 {
            assert!(!theirs.contains(&firm().port()));
        }
    }

    #[test]
    fn low_ports_are_below_50000_and_given_to_nobody_who_asks_for_any() {
        let low: Vec<_> = (0..100)
            .map(|_| Reservation::new(Range::Low, HoldLevel::Firm, &[]).unwrap())
            .collect();
        let ports: HashSet<u16> = low.iter().map(Reservation::port).collect();
        assert_eq!(ports.len(), low.len());
        assert!(ports.iter().all(|port| (20_000..50_000).contains(port)));
        let ephemeral = sys::ports::ephemeral().unwrap_or(0..=0);
        if *ephemeral.start() > 21_000 {
            assert!(ports.iter().all(|port| !ephemeral.contains(port)));
        }
        // A UDP server that sets no option can bind each port.
        for reserved in &low {
            std::net::UdpSocket::bind(at("0.0.0.0", reserved.port())).unwrap();
        }
    }

    /// One process of the race below: reserves ports, prints them, and keeps them until its
    /// standard input ends.
    #[test]
    #[ignore = "a part of the race"]
    fn racer() {
        let held: Vec<_> = (0..20).map(|_| firm()).collect();
        let ports: Vec<String> = held.iter().map(|r| r.port().to_string()).collect();
        println!("\nheld {}", ports.join(" "));
        std::io::stdout().flush().unwrap();
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).unwrap();
    }

    #[test]
    fn processes_that_race_for_ports_never_get_the_same() {
        const PROCESSES: usize = 60;
        let spawn = || -> Child {
            process_of(test_name!(racer))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        };
        let mut racers: Vec<Child> = (0..PROCESSES).map(|_| spawn()).collect();
        let mut seen = HashSet::new();
        let mut twice = Vec::new();
        for racer in &mut racers {
            let output = BufReader::new(racer.stdout.as_mut().unwrap());
            let line = output
                .lines()
                .map_while(Result::ok)
                .find_map(|line| line.strip_prefix("held ").map(str::to_owned));
            for port in line.expect("a racer says what it holds").split(' ') {
                let port: u16 = port.parse().unwrap();
                if !seen.insert(port) {
                    twice.push(port);
                }
            }
        }
        for racer in &mut racers {
            drop(racer.stdin.take());
            racer.wait().unwrap();
        }
        assert_eq!(seen.len() + twice.len(), PROCESSES * 20);
        assert_eq!(twice, Vec::<u16>::new());
    }
}
