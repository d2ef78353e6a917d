//! Parses `host:port` and resolves it to addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};

pub(crate) const ZERO: &str =
    "with port 0 the service chooses a port that no client knows; use `{port}` for a free port";

/// Resolves `host:port` to addresses. The error names the mistake and suggests a correction.
pub(crate) fn resolve(text: &str) -> Result<Vec<SocketAddr>, String> {
    if let Some((scheme, rest)) = text.split_once("://") {
        let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
        let host = if host.is_empty() { "localhost:{port}" } else { host };
        return Err(match scheme {
            "http" => format!("it is a URL; use `Http` for it, or give an address such as `{host}`"),
            _ => format!("it is a URL; give an address such as `{host}`"),
        });
    }
    let host = text.rsplit_once(':').map_or(text, |(host, _)| host);
    if host.contains(|c: char| c.is_whitespace() || matches!(c, '/' | '@' | ',')) {
        return Err(format!(
            "`{host}` is not a host; give one name or address and a port, such as `localhost:6379`"
        ));
    }
    let (host, port) = split(text)?;
    let port = match port {
        Some(port) if !port.is_empty() => port,
        None if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) => {
            return Err(format!(
                "there is no host; write `127.0.0.1:{text}`, or use `Tcp::port({text})`"
            ));
        }
        _ => return Err(no_port(text.trim_end_matches(':'))),
    };
    if host.is_empty() {
        return Err(format!(
            "there is no host before the port; write `localhost:{port}`"
        ));
    }
    if port == "0" {
        return Err(ZERO.to_owned());
    }
    let port = port_number(port).ok_or_else(|| {
        format!("`{port}` is not a port; give a number from 1 to 65535, or `{{port}}` for one that is free")
    })?;
    host_addrs(host, port)
}

/// Resolves a host. `localhost` needs no hosts file. Names that end in `.localhost` resolve to
/// loopback without a query to a name server (RFC 6761).
pub(crate) fn host_addrs(host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    if name.ends_with(".localhost") {
        return Ok(loopback(port));
    }
    let found: Vec<SocketAddr> = match (host, port).to_socket_addrs() {
        Ok(found) => found.collect(),
        Err(_) if name == "localhost" => loopback(port),
        Err(error) => {
            return Err(format!(
                "the host `{host}` cannot be resolved ({error}); use `localhost`, or an address such as \
                 `127.0.0.1`"
            ));
        }
    };
    let mut addrs: Vec<SocketAddr> = Vec::new();
    for addr in found {
        if !addrs.contains(&addr) {
            addrs.push(addr);
        }
    }
    if addrs.is_empty() {
        return Err(format!(
            "the host `{host}` has no address; use `localhost`, or an address such as `127.0.0.1`"
        ));
    }
    Ok(addrs)
}

/// The IPv4 and the IPv6 loopback address, with this port.
pub(crate) fn loopback(port: u16) -> Vec<SocketAddr> {
    vec![
        SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        SocketAddr::from((Ipv6Addr::LOCALHOST, port)),
    ]
}

/// Splits `host`, `host:port`, `[v6]` or `[v6]:port` into the host and the unparsed port.
pub(crate) fn split(text: &str) -> Result<(&str, Option<&str>), String> {
    let Some(inside) = text.strip_prefix('[') else {
        if text.parse::<Ipv6Addr>().is_ok() {
            return Err(format!(
                "write an IPv6 address in brackets, with the port after them: `[{text}]:{{port}}`, or \
                    `[::1]:6379`"
            ));
        }
        return match text.rsplit_once(':') {
            Some((host, port)) if host.contains(':') => {
                Err(format!("write an IPv6 address in brackets: `[{host}]:{port}`"))
            }
            Some((host, port)) => Ok((host, Some(port))),
            None => Ok((text, None)),
        };
    };
    let (host, after) = inside
        .split_once(']')
        .ok_or("the bracket of the IPv6 address is not closed; write it as `[::1]:6379`")?;
    let ip = host.split_once('%').map_or(host, |(ip, _)| ip);
    if ip.parse::<Ipv6Addr>().is_err() {
        return Err(format!(
            "`{host}` is not an IPv6 address, and only those are written in brackets: `[::1]:6379`"
        ));
    }
    match after.strip_prefix(':') {
        None if !after.is_empty() => {
            Err("write a colon and the port after the bracket of an IPv6 address: `[::1]:6379`".to_owned())
        }
        port => Ok((host, port)),
    }
}

/// Parses a port number, which has only digits and is not 0.
pub(crate) fn port_number(text: &str) -> Option<u16> {
    let is_digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| *port != 0 && is_digits)
}

fn no_port(text: &str) -> String {
    let host = if text.is_empty() { "localhost" } else { text };
    format!("there is no port; write `{host}:{{port}}` for one that is free, or a number as in `{host}:6379`")
}

/// An address to which clients connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) addr: SocketAddr,
    /// Whether the address belongs to this machine, so that its listeners are visible.
    pub(crate) is_local: bool,
}

impl Place {
    /// Converts addresses with [`canonical`], and removes duplicates.
    pub(crate) fn all(addrs: &[SocketAddr]) -> Vec<Place> {
        let mut places: Vec<Place> = Vec::new();
        for addr in addrs {
            let addr = canonical(*addr);
            if places.iter().all(|known| known.addr != addr) {
                let is_local = is_local(addr.ip());
                places.push(Place { addr, is_local });
            }
        }
        places
    }
}

/// The address to which clients connect. An IPv4 address mapped into IPv6 becomes IPv4, and a
/// wildcard address becomes loopback.
pub(crate) fn canonical(addr: SocketAddr) -> SocketAddr {
    let ip = reachable(addr.ip());
    let mut addr = addr;
    // A new `SocketAddr` would lose the scope of a link-local address.
    if addr.ip() != ip {
        addr = SocketAddr::new(ip, addr.port());
    }
    addr
}

/// Whether an address belongs to this machine.
pub(crate) fn is_local(ip: IpAddr) -> bool {
    // An address of another machine cannot be bound, unless the sysctl `ip_nonlocal_bind` allows
    // it.
    ip.is_loopback() || ip.is_unspecified() || UdpSocket::bind(SocketAddr::new(ip, 0)).is_ok()
}

/// The address at which clients reach a server that listens on `ip`.
pub(crate) fn reachable(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(v4) if v4.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(v6) if v6.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn localhost_needs_no_hosts_file() {
        for host in ["a.localhost", "a.b.LOCALHOST."] {
            assert_eq!(host_addrs(host, 80).unwrap(), loopback(80), "{host}");
        }
        // This name does not end in `.localhost`, so it needs a name server.
        assert!(host_addrs("notlocalhost.invalid", 80).is_err());
        let localhost = host_addrs("localhost", 80).unwrap();
        assert!(
            localhost.iter().all(|addr| addr.ip().is_loopback()),
            "{localhost:?}"
        );
    }

    #[test]
    fn local_addresses_are_told_from_others() {
        for local in ["127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "::"] {
            assert!(is_local(local.parse().unwrap()), "{local}");
        }
        // These addresses are reserved for documentation, so no machine has them.
        for remote in ["192.0.2.1", "2001:db8::1"] {
            assert!(!is_local(remote.parse().unwrap()), "{remote}");
        }
    }
}
